"""Transactions and the state, on every engine."""

import gc
import itertools
import json
import os
import random
import signal
import threading
from collections.abc import MutableMapping
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import DEADLINE, KILLED, STEP, Moments, eventually, forked, interrupt, status_of

from lmdbqueue import (
    Empty,
    ForkError,
    Full,
    GoneError,
    LeaseExpiredError,
    NestedCallError,
    ShutDown,
    TransactionError,
)


@pytest.fixture
def pair(engine):
    """Give two queues that can take part in one transaction."""
    return engine("inbox"), engine("outbox")


def test_calls_of_a_block_take_effect_together_and_see_each_other(pair):
    inbox, outbox = pair
    inbox.push([1, 2, 3])
    seen = []
    with inbox.transaction():
        assert inbox.pop() == 1
        assert outbox.push(["one", "eins"]) == range(2)
        assert outbox.peek(5) == ["one", "eins"]
        assert inbox.delete() == 1
        assert (len(inbox), list(outbox)) == (1, ["one", "eins"])
        outbox.clear()
        assert outbox.push("last") == 2
        assert outbox.push("later", delay=100, unique="k") == outbox.push("again", unique="k") == 3
        assert outbox.stats().delayed == 1
        thread = threading.Thread(target=lambda: seen.append((len(outbox), list(outbox))))
        thread.start()
        thread.join(DEADLINE)
    assert seen == [(0, [])], "others saw it before its end"
    assert (list(inbox), list(outbox)) == ([3], ["last"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_undoes_all_and_goes_on(pair, error):
    inbox, outbox = pair
    inbox.push([1, 2])
    inbox.state["n"] = 1
    with pytest.raises(error), inbox.transaction():  # noqa: PT012
        outbox.push(inbox.pop())
        inbox.state["n"] = 2
        inbox.state["m"] = 3
        raise error
    assert (list(inbox), list(outbox), dict(inbox.state)) == ([1, 2], [], {"n": 1})
    assert outbox.push("next") == 0, "a number of an undone push was lost"


def test_an_inner_block_is_a_part_of_the_outer(pair):
    inbox, outbox = pair
    with inbox.transaction():
        inbox.push(1)
        with outbox.transaction():
            outbox.push(2)
    assert (list(inbox), list(outbox)) == ([1], [2])
    with suppress(ValueError), inbox.transaction():
        with inbox.transaction():
            inbox.push(3)
        raise ValueError
    assert list(inbox) == [1]
    with pytest.raises(TransactionError, match="boom"), inbox.transaction():  # noqa: PT012
        inbox.push(1)
        with suppress(ValueError), outbox.transaction():
            message = "boom"
            raise ValueError(message)
    assert list(inbox) == [1]


def test_a_full_queue_can_be_caught_and_the_block_goes_on(engine):
    inbox, outbox = engine("inbox"), engine("outbox", maxsize=2)
    inbox.push([1, 2, 3])
    with inbox.transaction():
        outbox.push(inbox.pop(2))
        for call in (lambda: outbox.push(inbox.peek()), lambda: outbox.put(4, block=False)):
            with pytest.raises(Full):
                call()
        with pytest.raises(TransactionError):
            outbox.put(4)
    assert (list(inbox), list(outbox)) == ([3], [1, 2])


REFUSED = {
    "flush": lambda queue, _: queue.flush(),
    "copy": lambda queue, _: queue.copy("copy"),
    "check": lambda queue, _: queue.check(),
    "drop_queue": lambda queue, _: queue.drop_queue("outbox"),
    "get": lambda queue, _: queue.get(),
    "get with a timeout": lambda queue, _: queue.get(timeout=1),
    "blocking pop": lambda queue, _: queue.pop(2, blocking=True),
    "blocking peek": lambda queue, _: queue.peek(blocking=True, timeout=3),
    "push elsewhere": lambda _, other: other.push(1),
    "peek elsewhere": lambda _, other: other.peek(),
    "block elsewhere": lambda _, other: other.transaction().__enter__(),
    "state elsewhere": lambda _, other: other.state.get("a"),
    "move elsewhere": lambda queue, other: queue.move(to=other),
}


def test_what_cannot_be_a_part_of_a_transaction_is_refused_and_the_block_goes_on(pair, engine):
    inbox, outbox = pair
    other = engine.elsewhere()
    with inbox.transaction():
        for name, call in REFUSED.items():
            with pytest.raises(TransactionError):
                call(inbox, other)
            outbox.push(name)
    assert list(outbox) == list(REFUSED)
    assert len(other) == 0


def test_verbs_that_wait_do_their_work_in_a_block_when_they_need_not_wait(pair):
    inbox, outbox = pair
    inbox.push([1, 2, 3])
    with inbox.transaction():
        outbox.put(inbox.get())
        outbox.put(inbox.pop(blocking=True), timeout=5)
        assert inbox.get_nowait() == 3
        for get in (inbox.get_nowait, lambda: inbox.get(timeout=0)):
            with pytest.raises(Empty):
                get()
    assert (list(inbox), list(outbox)) == ([], [1, 2])


def test_what_a_lease_does_in_a_transaction_is_undone_with_it(pair):
    queue, outbox = pair
    queue.push(list("abcdef"))
    with queue.lease(2) as lease:
        with pytest.raises(ZeroDivisionError), queue.transaction():  # noqa: PT012
            outbox.push(lease[0])
            lease.ack()
            assert queue.stats().leased == 0
            raise ZeroDivisionError
        assert queue.stats().leased == 2
        with queue.transaction():
            outbox.push(lease.items)
            lease.ack(0)
    with pytest.raises(ZeroDivisionError), queue.transaction():  # noqa: PT012
        lost = queue.lease(3)
        raise ZeroDivisionError
    assert list(queue) == list("cdef")
    with pytest.raises(LeaseExpiredError):
        lost.ack()
    with queue.transaction(), queue.lease() as lease:
        outbox.push(lease[0])
    assert (list(outbox), list(queue)) == (["a", "b", "c"], list("def"))


def test_a_waiter_wakes_when_a_block_ends(pair):
    inbox, outbox = pair
    got = []
    thread = threading.Thread(target=lambda: got.append(outbox.get(timeout=DEADLINE)))
    thread.start()
    with inbox.transaction():
        outbox.push("first")
    thread.join(DEADLINE)
    assert got == ["first"]


def test_blocks_of_many_threads_are_whole_and_in_one_order(pair):
    inbox, outbox = pair

    def shuffle(number):
        for i in range(25):
            with inbox.transaction():
                inbox.push((number, i))
                outbox.push((number, i))

    threads = [threading.Thread(target=shuffle, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for i in range(50):
        outbox.push(("single", i))
    for thread in threads:
        thread.join(DEADLINE)
    assert list(inbox) == [item for item in outbox if item[0] != "single"]
    assert sorted(inbox) == [(number, i) for number in range(4) for i in range(25)]


def test_a_child_forked_in_a_block_leaves_it_to_the_parent(pair):
    inbox, outbox = pair
    inbox.push([1, 2])

    def child():
        for call in (inbox.pop, lambda: len(outbox)):
            with pytest.raises(ForkError):
                call()

    with inbox.transaction():
        outbox.push(inbox.pop())
        assert status_of(forked(child)) == 0
        outbox.push(inbox.pop())
    assert (list(inbox), list(outbox)) == ([], [1, 2])
    pid = -1
    try:
        with inbox.transaction():
            inbox.push(3)
            pid = os.fork()
    except ForkError:
        os._exit(7 if pid == 0 else 1)
    if pid == 0:
        os._exit(2)
    assert status_of(pid) == 7
    assert list(inbox) == [3]


def test_one_who_is_killed_in_a_block_has_done_nothing(pair):
    inbox, outbox = pair
    inbox.push([1, 2])

    def die():
        with inbox.transaction():
            outbox.push(inbox.pop())
            os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(die)) == KILLED
    popped = set()
    eventually(lambda: popped.add(inbox.pop()) or 1 in popped)  # 2 first, until a server has noticed the kill
    assert popped - {None} | {*inbox} == {1, 2}
    assert list(outbox) == []


# --- move, drop


def test_move_takes_items_to_the_tail_of_another_queue_without_decoding(engine):
    raw = engine("inbox", dumps=bytes, loads=lambda _: 1 / 0)
    outbox = engine("outbox", dumps=bytes, loads=bytes, maxsize=5)
    raw.push([b"1", b"2" * 9000, b"3", b"4", b"5"])
    outbox.push(b"0")
    assert raw.move(2, to=outbox) == 2
    assert (len(raw), list(outbox)) == (3, [b"0", b"1", b"2" * 9000])
    with pytest.raises(Full):
        raw.move(3, to=outbox)
    outbox.delete(3)
    assert raw.move(7, to=outbox) == 3
    assert (raw.move(7, to=outbox), raw.move(0, to=outbox)) == (0, 0)
    outbox.delete()
    assert outbox.push(b"next") == 6
    for same in (raw, engine("inbox")):
        with pytest.raises(ValueError, match="itself"):
            raw.move(to=same)
    outbox.shutdown()
    with pytest.raises(ShutDown):
        raw.move(to=outbox)


def test_movers_in_many_threads_move_each_item_once(pair):
    inbox, outbox = pair
    inbox.push(list(range(300)))

    def move():
        while len(inbox):
            inbox.move(3, to=outbox)

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(outbox) == list(range(300))


def test_a_dropped_queue_is_gone_for_everybody(pair, engine):
    inbox, outbox = pair
    inbox.push([1, 2])
    inbox.state["n"] = 1
    outbox.push("stays")
    waiting = []

    def wait():
        with pytest.raises(GoneError, match="inbox"):
            inbox.peek(60, blocking=True, timeout=DEADLINE)
        waiting.append("woken")

    thread = threading.Thread(target=wait)
    thread.start()
    outbox.drop_queue("inbox")
    thread.join(DEADLINE)
    assert waiting
    for call in (
        *(inbox.pop, inbox.count, lambda: inbox.push(1), lambda: inbox.move(to=outbox), inbox.state.clear),
        *(lambda: inbox.push(1, delay=5), lambda: inbox.state["n"], lambda: list(inbox), inbox.lease, inbox.stats),
        lambda: outbox.move(to=inbox),
    ):
        with pytest.raises(GoneError, match="inbox"):
            call()
    assert (outbox.queues(), list(outbox)) == (["outbox"], ["stays"])
    with pytest.raises(KeyError):
        outbox.drop_queue("inbox")
    anew = engine("inbox")
    assert (len(anew), dict(anew.state), anew.push(1)) == (0, {}, 0)


# --- against lists


class _Undo(Exception):
    pass


@contextmanager
def _block(queue, model, *, undone):
    before = {name: list(items) for name, items in model.items()}
    with suppress(_Undo), queue.transaction():
        yield
        if undone:
            model.clear()
            model.update(before)
            raise _Undo


@pytest.mark.parametrize("seed", range(6))
def test_random_blocks_leave_what_lists_would_hold(engine, seed):
    chance = random.Random(seed)  # noqa: S311
    queues = {name: engine(name) for name in "abc"}
    model = {name: [] for name in queues}

    def call():
        name, other = chance.sample(sorted(queues), 2)
        n = chance.randrange(4)
        match chance.randrange(7):
            case 0 | 1:
                items = [chance.randbytes(chance.choice((1, 100, 5000))) for _ in range(n)]
                queues[name].push(items)
                model[name] += items
            case 2:
                assert queues[name].pop(2) == model[name][:2]
                del model[name][:2]
            case 3:
                assert queues[name].move(n, to=queues[other]) == len(model[name][:n])
                model[other] += model[name][:n]
                del model[name][:n]
            case 4:
                assert list(queues[name]) == model[name]
                assert len(queues[name]) == len(model[name])
            case 5:
                assert queues[name].delete(n) == len(model[name][:n])
                del model[name][:n]
            case 6:
                with queues[name].lease(n) as lease:
                    assert list(lease) == model[name][:n]
                    if len(lease) > 1:
                        lease.nack(lease.seqs[0])
                        del model[name][1:n]
                    else:
                        del model[name][:n]

    for _ in range(25):
        with _block(chance.choice(list(queues.values())), model, undone=chance.random() < 0.4):
            for _ in range(chance.randrange(8)):
                call()
        assert {name: list(queue) for name, queue in queues.items()} == model
        call()
        if chance.random() < 0.1:
            queues["a"].flush(force=True)


# --- the state


def test_state_is_a_mapping(queue):
    state = queue.state
    assert isinstance(state, MutableMapping)
    state.update({"b": [1, 2], "a": None, "": "empty", "with/slash": b"x" * 10_000, "nul\0": 0})
    assert list(state) == ["", "a", "b", "nul\0", "with/slash"]
    assert (len(state), "a" in state, "c" in state, 7 in state) == (5, True, False, False)
    assert state["with/slash"] == b"x" * 10_000
    assert (state.pop("b"), state.pop("b", 3), state.setdefault("b", 4), state.setdefault("b", 5)) == ([1, 2], 3, 4, 4)
    assert state.popitem() == ("", "empty")
    state.update({"a": 1}, c=2)
    assert state == {"a": 1, "b": 4, "c": 2, "nul\0": 0, "with/slash": b"x" * 10_000}
    del state["a"]
    for call in (lambda: state["a"], lambda: state.pop("a"), lambda: state.__delitem__("a")):
        with pytest.raises(KeyError):
            call()
    state.clear()
    assert dict(state) == {}
    state["k" * 300] = 1
    with pytest.raises(ValueError, match="at most"):
        state["k" * 1001] = 1
    with pytest.raises(TypeError, match="str"):
        state[b"bytes"] = 1
    with pytest.raises(TypeError, match="str"):
        state[3]


def test_values_of_the_state_go_through_dumps_and_loads(engine):
    queue = engine(dumps=lambda value: bytearray(json.dumps(value).encode()), loads=json.loads)
    queue.state["k"] = (1, 2)
    assert queue.state["k"] == [1, 2]
    with pytest.raises(TypeError):
        queue.state["k"] = {1}
    assert queue.state["k"] == [1, 2]


def test_each_queue_has_a_state_of_its_own(engine):
    a, b, c = (engine(name) for name in ("a", "a!", "ab"))
    for number, queue in enumerate((a, b, c)):
        queue.state["k"] = number
    a.state.clear()
    assert (dict(a.state), dict(b.state), dict(c.state)) == ({}, {"k": 1}, {"k": 2})


KEYS = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(("set", "set", "pop", "pop", "flush")), KEYS, st.integers())))
def test_state_is_what_a_dict_would_be(queue, steps):
    queue.state.clear()
    model = {}
    for what, key, value in steps:
        if what == "set":
            queue.state[key] = model[key] = value
        elif what == "pop":
            assert queue.state.pop(key, None) == model.pop(key, None)
        else:
            queue.flush(force=True)
    assert dict(queue.state) == model
    assert list(queue.state) == sorted(model, key=str.encode)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a connection that is just opened
def test_nothing_that_comes_after_it_joins_a_block_that_an_interrupt_ended(queue, engine):
    """Though somebody keeps the interrupt, as an interactive Python does, whose traceback refers to all there was."""
    other, kept, pushed = engine(), [], 0
    for number in itertools.count(1, STEP // 2 or 1):
        moments = Moments(number, interrupt)
        try:
            with moments, queue.transaction():
                pass
        except KeyboardInterrupt as error:
            kept.append(error)
        with suppress(NestedCallError):  # amid the end of a connection that the interrupt broke
            queue.push(number)
            pushed += 1
        assert other.count() == pushed, f"at moment {number}"
        if moments.left > 0:
            break
    assert len(kept) > 3
    kept.clear()
    gc.collect()  # here, and not amid another test
