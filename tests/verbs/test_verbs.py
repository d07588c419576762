"""The verbs, on every engine: what each takes, gives and refuses."""

import itertools
import operator
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import DEADLINE, Sleeps, eventually

from lmdbqueue import ClosedError, DecodeError, Empty, ExistsError, Full, ShutDown

PATIENCE = DEADLINE


def sleeper(queue):
    """Return a function that tells whether a thread sleeps in a verb of the queue."""
    sleeps = Sleeps(queue)
    seen = [0]

    def is_asleep():
        asleep = sleeps.count > seen[0]
        seen[0] = sleeps.count if asleep else seen[0]
        return asleep

    return is_asleep


# --- push


def test_push_returns_numbers_in_their_order(queue):
    assert [queue.push("a"), queue.push("b")] == [0, 1]
    assert queue.push(["c", "d"]) == range(2, 4)
    assert queue.push(["e"]) == range(4, 5)
    assert queue.push([]) == range(0)
    assert queue.push((1, 2)) == 5
    assert queue.push([[7], []]) == range(6, 8)
    assert list(queue) == ["a", "b", "c", "d", "e", (1, 2), [7], []]
    queue.clear()

    class Batch(list):
        pass

    assert queue.push(Batch("xy")) == range(8, 10)
    for item in ((), "", None, {}, 0):
        queue.push(item)
    assert list(queue) == ["x", "y", (), "", None, {}, 0]


def test_push_stores_nothing_of_a_list_whose_last_item_cannot_be_encoded(queue):
    for add in (
        lambda: queue.push([1, 2, threading.Lock()]),
        lambda: queue.push(threading.Lock()),
        lambda: queue.put(threading.Lock()),
    ):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            add()
    assert queue.count() == 0
    assert queue.push("next") == 0


def empty(_):
    """Do what ``next(csv.reader([]))`` and ``next(iter({}))`` do in a function of the user's."""
    return next(iter(()))


def test_dumps_that_raises_stop_iteration_stores_nothing(engine):
    queue = engine(dumps=lambda item: item or empty(item), loads=bytes)
    for push in (
        lambda: queue.push(b""),
        lambda: queue.push([b"a", b""]),
        lambda: queue.push([b"a", b"", b"c"], delay=9),
        lambda: queue.push([b"a", b""], unique=["x", "y"]),
        lambda: queue.put(b""),
        lambda: queue.state.update({"k": b""}),
    ):
        with pytest.raises(StopIteration):
            push()
    assert (queue.count(), queue.stats().delayed, dict(queue.state)) == (0, 0, {})


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_loads_that_raises_stop_iteration_is_told_and_everything_stays(engine, bad):
    queue = engine(dumps=bytes, loads=lambda payload: payload or empty(payload))
    queue.push([b"" if n == bad else b"%d" % n for n in range(3)])
    reader = queue.reader("r")
    for read in (
        lambda: queue.peek(3),
        lambda: queue.pop(3),
        lambda: queue.pop(3, blocking=True, timeout=5),
        lambda: list(queue),
        lambda: reader.peek(3),
        lambda: reader.pop(3),
    ):
        if bad:
            assert read() == [b"%d" % n for n in range(bad)]
            break
        with pytest.raises(DecodeError, match="StopIteration"):
            read()
        assert queue.count() == 3
    queue.drop_reader("r")
    lease = queue.lease(3)
    assert lease.seqs == [n for n in range(3) if n != bad]
    assert [(letter.seq, letter.payload) for letter in queue.dead] == [(bad, b"")]
    with pytest.raises(DecodeError, match="StopIteration"):
        next(iter(queue.dead)).item  # noqa: B018


def test_stop_iteration_in_a_block_undoes_it_and_is_what_the_caller_gets(queue):
    def fail():
        with queue.transaction():
            queue.push("undone")
            empty(None)

    with pytest.raises(StopIteration):
        fail()
    assert queue.count() == 0


def test_dumps_that_gives_no_bytes_is_refused(engine):
    queue = engine(dumps=str)
    with pytest.raises(TypeError, match="dumps must return bytes"):
        queue.push(1)
    queue.dumps = bytearray
    queue.loads = bytes
    queue.push(b"a")
    assert queue.pop() == b"a"


# --- peek and pop


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_one_item_is_the_item_and_several_are_a_list(queue, verb):
    assert getattr(queue, verb)() is None
    assert getattr(queue, verb)(3) == []
    assert getattr(queue, verb)(0, blocking=True) == []
    queue.push(["a", "b", "c", "d"])
    assert getattr(queue, verb)() == "a"
    assert getattr(queue, verb)(2) == (["b", "c"] if verb == "pop" else ["a", "b"])
    assert getattr(queue, verb)(sys.maxsize) == (["d"] if verb == "pop" else ["a", "b", "c", "d"])
    assert len(queue) == (0 if verb == "pop" else 4)


@pytest.mark.parametrize("verb", ["peek", "pop"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_blocking_raises_empty_after_the_timeout_and_takes_nothing(queue, verb, wanted):
    queue.push(["a", "b"][: wanted - 1])
    begun = time.monotonic()
    with pytest.raises(Empty) as caught:
        getattr(queue, verb)(wanted, blocking=True, timeout=0.05)
    assert time.monotonic() - begun >= 0.05
    assert (caught.value.wanted, caught.value.timeout) == (wanted, 0.05)
    assert queue.count() == wanted - 1
    with pytest.raises(ValueError, match="non-negative"):
        getattr(queue, verb)(1, blocking=True, timeout=-0.001)
    with pytest.raises(Empty):
        getattr(queue, verb)(wanted, blocking=True, timeout=0)
    queue.push("c")
    assert getattr(queue, verb)(blocking=True, timeout=0) == ("a" if wanted > 1 else "c")


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_blocking_waits_until_all_the_items_are_there(queue, engine, verb):
    other = engine()
    is_asleep = sleeper(queue)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(getattr(queue, verb), 3, blocking=True, timeout=PATIENCE)
        for item in ("a", "b"):
            eventually(is_asleep)
            other.push(item)
            assert not found.done()
        other.push("c")
        assert found.result(PATIENCE) == ["a", "b", "c"]


def test_one_who_waits_is_woken_and_not_late(queue, engine):
    other = engine()
    is_asleep = sleeper(queue)
    late = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            found = pool.submit(queue.get, timeout=PATIENCE)
            eventually(is_asleep)
            begun = time.monotonic()
            other.push("a")
            found.result(PATIENCE)
            late.append(time.monotonic() - begun)
    assert min(late) < 0.5, "it found the item by its look each second"


@pytest.mark.parametrize("verb", ["peek", "pop", "delete", "lease", "move"])
def test_a_number_of_items_that_is_none_is_refused_and_nothing_changes(engine, verb):
    queue, other = engine(), engine("other")
    queue.push(["a", "b"])
    for number, error in (
        (-(10**30), ValueError),
        (-1, ValueError),
        (1.0, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            queue.move(number, to=other) if verb == "move" else getattr(queue, verb)(number)
    assert list(queue) == ["a", "b"]


def test_anything_with_an_index_is_a_number_of_items(queue):
    class Two:
        def __index__(self):
            return 2

    queue.push(["a", "b", "c", "d"])
    for verb in (queue.peek, queue.pop, queue.delete):
        with pytest.raises(TypeError, match="not True"):
            verb(True)  # noqa: FBT003
    assert queue.pop(Two()) == ["a", "b"]
    assert queue.delete(Two()) == 2


TAKES = {
    "peek": lambda queue: queue.peek(),
    "peek several": lambda queue: queue.peek(3),
    "peek blocking": lambda queue: queue.peek(2, blocking=True, timeout=5),
    "pop": lambda queue: queue.pop(),
    "pop more than there are": lambda queue: queue.pop(30),
    "pop blocking": lambda queue: queue.pop(1, blocking=True, timeout=5),
    "get": lambda queue: queue.get(timeout=5),
    "get_nowait": lambda queue: queue.get_nowait(),
    "browse": list,
}


def test_what_cannot_be_decoded_is_told_and_stays_and_so_does_what_was_asked_for_with_it(engine):
    def loads(payload):
        return payload.decode("ascii")

    queue = engine(dumps=bytes, loads=loads)
    queue.push([b"gone", b"\xff", b"b", b"c"])
    queue.pop()
    for take in [*TAKES.values(), *TAKES.values()]:
        with pytest.raises(DecodeError) as caught:
            take(queue)
        error = caught.value
        assert (error.seq, error.payload, error.reason.split(":")[0]) == (1, b"\xff", "UnicodeDecodeError")
        assert isinstance(error.__cause__, UnicodeDecodeError)
        assert queue.count() == 3
    assert queue.delete() == 1
    assert queue.pop(2) == ["b", "c"]


@pytest.mark.parametrize("take", ["peek", "pop", "get", "browse"])
def test_an_interrupt_inside_loads_leaves_the_items_where_they_are(engine, take):
    interrupted = []

    def loads(payload):
        if not interrupted:
            interrupted.append(payload)
            raise KeyboardInterrupt
        return pickle.loads(payload)

    queue = engine(loads=loads)
    queue.push(["b", "c"])
    with pytest.raises(KeyboardInterrupt):
        list(queue) if take == "browse" else getattr(queue, take)()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(queue.pop, 2).result(PATIENCE) == ["b", "c"]
    queue.join()  # nothing is in hand


def test_a_queue_may_be_used_inside_its_own_dumps_and_loads(engine):
    queue = engine(
        dumps=lambda item: f"{item} after {queue.count()}".encode(),
        loads=lambda payload: f"{payload.decode()} of {queue.count()}",
    )
    queue.push(["a", "b"])
    assert queue.pop(2) == ["a after 0 of 2", "b after 0 of 2"]


@pytest.mark.parametrize("size", [0, 1, 2000, 4097, 1 << 20, 20 << 20])
def test_an_item_of_any_size_comes_back_as_it_went(engine, size):
    queue = engine(dumps=bytes, loads=bytes)
    item = (bytes(range(256)) * (size // 256 + 1))[:size]
    queue.push([item, b"next"])
    assert queue.peek() == item
    assert list(queue) == [item, b"next"]
    with queue.lease() as lease:
        assert lease[0] == item
        lease.nack()
    assert queue.pop(2) == [item, b"next"]


def test_many_items_in_one_call_keep_their_order(queue):
    items = list(range(20_000))
    queue.push(items)
    assert queue.peek(15_000) == items[:15_000]
    assert list(queue) == items
    assert queue.delete(5_000) == 5_000
    assert queue.pop(20_000) == items[5_000:]


# --- delete, clear, count


@pytest.mark.parametrize("kind", ["queue", "reader"])
def test_delete_removes_what_was_peeked_though_it_has_expired_since_or_something_came_due(queue, later, kind):
    reading = queue if kind == "queue" else queue.reader("r")
    queue.push("due", delay=4)
    queue.push("first", expires=5)
    queue.push("second")
    assert reading.peek() == "first"
    later(6)
    assert reading.delete() == 1
    assert sorted(reading.peek_many(9)) == ["due", "second"]


@pytest.mark.parametrize(("number", "gone"), [(0, 0), (1, 1), (3, 3), (sys.maxsize, 3)])
def test_delete_removes_from_the_head_without_decoding_and_says_how_many(engine, number, gone):
    queue = engine()
    queue.push(["a", "b", "c"])
    queue.loads = lambda _: 1 / 0
    assert queue.delete(number) == gone
    queue.loads = pickle.loads
    assert list(queue) == ["a", "b", "c"][gone:]


def test_clear_removes_all_and_numbers_are_not_given_again(queue, engine):
    queue.push([1, 2, 3])
    assert queue
    assert queue.clear() is None
    assert (queue.count(), queue.peek(), bool(queue)) == (0, None, False)
    assert queue.push("next") == 3
    queue.pop()
    queue.close()
    assert engine().push("later") == 4


def test_iteration_sees_every_item_in_order_and_removes_none(engine):
    queue = engine(dumps=bytes, loads=bytes)
    items = [bytes([n]) * 100_000 for n in range(10)]  # more than is read at a time
    queue.push(items)
    assert list(queue) == items
    browser = iter(queue)
    seen = [next(browser)]
    queue.delete(5)
    seen += browser
    assert seen == sorted(set(seen))
    assert seen[-4:] == items[6:]
    queue.push(items)
    browser = iter(queue)
    next(browser)
    queue.clear()
    assert len(list(browser)) < 14
    assert list(queue) == []


def test_iteration_raises_at_an_item_that_cannot_be_decoded_and_not_before(engine):
    queue = engine(dumps=bytes, loads=lambda payload: payload.decode("ascii"))
    queue.push([b"a", b"b", b"\xff", b"d"])
    browser = iter(queue)
    assert list(itertools.islice(browser, 2)) == ["a", "b"]
    with pytest.raises(DecodeError) as caught:
        next(browser)
    assert (caught.value.seq, caught.value.payload, queue.count()) == (2, b"\xff", 4)


# --- limits


@pytest.mark.parametrize("there", [0, 2, 3])
@pytest.mark.parametrize("more", [1, 3, 4])
def test_a_list_goes_into_a_limited_queue_whole_or_not_at_all(engine, there, more):
    queue = engine(maxsize=3)
    queue.push(list(range(there)))
    if there + more > 3:
        with pytest.raises(Full) as caught:
            queue.push(list(range(more)))
        error = caught.value
        assert (error.unit, error.limit, error.used, error.added) == ("items", 3, there, more)
        more = 0
    else:
        queue.push(list(range(more)))
    assert queue.count() == there + more
    queue.clear()
    assert queue.push("next") == there + more


def test_limits_count_what_waits_and_what_is_leased_or_delayed_and_no_dead_letters(engine):
    queue = engine(maxsize=4)
    queue.push(["dead", "leased", "waits"])
    assert queue.dead_letter(0)
    lease = queue.lease()
    queue.push("delayed", delay=50)
    assert not queue.full()
    queue.push("fourth")
    assert queue.full()
    with pytest.raises(Full) as caught:
        queue.push("fifth")
    assert (caught.value.used, caught.value.added) == (4, 1)
    lease.ack()
    queue.push("fifth")


def test_limits_hold_for_delayed_and_keyed_items_and_for_what_pushes_only(engine):
    queue, free = engine(maxsize=2), engine()
    queue.push(["a", "b"])
    for options in ({"delay": 5}, {"unique": "c"}):
        with pytest.raises(Full):
            queue.push("c", **options)
    free.push([1, 2])
    assert queue.full()
    with pytest.raises(Full) as caught:
        queue.put("c", block=False)
    assert caught.value.used == 4


def test_pushes_of_many_threads_never_exceed_the_limit(engine):
    queue = engine(maxsize=10)

    def push(n):
        try:
            return queue.push([n, n])
        except Full:
            return None

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(push, range(16)))
    assert len([each for each in given if each is not None]) == 5
    assert len(queue) == 10


# --- names, copies, closing


def test_queues_of_several_names_have_items_numbers_and_limits_of_their_own(engine):
    names = ["a", " ", "queue", "é" * 100, "x" * 200, "a.b-c\n", "items", "meta", "next", "txn", 'with "quotes" %s']
    queues = [engine(name, maxsize=n + 1) for n, name in enumerate(names)]
    for n, queue in enumerate(queues):
        assert queue.push([n] * (n + 1)) == range(n + 1)
        with pytest.raises(Full):
            queue.push(n)
    queues[3].clear()
    assert [queue.count() for queue in queues] == [0 if n == 3 else n + 1 for n in range(len(names))]
    assert queues[0].queues() == sorted(names)


def test_a_bad_name_is_refused(engine):
    for name in ("", "a/b", "/", "a\0", "x" * 201, "é" * 101, "\ud800"):
        with pytest.raises(ValueError):  # noqa: PT011  (a lone surrogate fails in encode())
            engine(name)


def test_two_objects_of_one_name_share_the_items(engine):
    one, two = engine(), engine()
    one.push("a")
    assert two.push("b") == 1
    assert two.pop(2) == ["a", "b"]
    assert one.count() == 0


def test_a_pickled_queue_opens_the_same_queue_with_the_same_options(engine):
    queue = engine("n", maxsize=2, loads=operator.methodcaller("decode"), dumps=str.encode)
    queue.push("four")
    with pickle.loads(pickle.dumps(queue)) as other:
        options, known = other._options(), queue._options()
        assert options.pop("loads")(b"x") == known.pop("loads")(b"x")
        assert options == known
        assert other.pop() == "four"


def test_a_copy_is_a_queue_of_its_own_with_items_numbers_and_state(engine):
    queue = engine(maxsize=9)
    queue.push(["a", "b", "c", "d"], unique=["a", "b", None, None])
    queue.push("later", delay=100)
    queue.pop()
    queue.state["n"] = 1
    lease = queue.lease()
    with queue.copy("twin") as twin:
        assert (list(twin), twin.stats().delayed, twin.maxsize) == (["b", "c", "d"], 1, 9)
        assert (twin.push("e"), twin.push("x", unique="b")) == (5, 1)
        assert twin.state["n"] == 1
        queue.clear()
        assert list(twin) == ["b", "c", "d", "e"]
        assert twin.check() == []
        with pytest.raises(ExistsError):
            queue.copy("twin")
    lease.ack()
    assert queue.count() == 0


VERBS = {
    "browse": [list, lambda q: list(q.browse())],
    "cancel": [lambda q: q.cancel("key")],
    "check": [lambda q: q.check()],
    "clear": [lambda q: q.clear()],
    "copy": [lambda q: q.copy("twin")],
    "count": [len, lambda q: q.count()],
    "dead": [lambda q: len(q.dead), lambda q: q.dead.requeue()],
    "dead_letter": [lambda q: q.dead_letter(0)],
    "delete": [lambda q: q.delete(), lambda q: q.delete(0)],
    "delete_item": [lambda q: q.delete_item(0)],
    "drop_queue": [lambda q: q.drop_queue("queue")],
    "drop_reader": [lambda q: q.drop_reader("billing")],
    "empty": [lambda q: q.empty()],
    "find": [lambda q: q.find("key")],
    "flush": [lambda q: q.flush(), lambda q: q.flush(force=True)],
    "full": [lambda q: q.full()],
    "get": [lambda q: q.get()],
    "get_nowait": [lambda q: q.get_nowait()],
    "join": [lambda q: q.join()],
    "lease": [lambda q: q.lease()],
    "peek": [lambda q: q.peek(0), lambda q: q.peek(1, blocking=True)],
    "peek_many": [lambda q: q.peek_many(0)],
    "pop": [lambda q: q.pop(), lambda q: q.pop(0), lambda q: q.pop(5, blocking=True, timeout=1)],
    "pop_many": [lambda q: q.pop_many(0)],
    "push": [lambda q: q.push("c"), lambda q: q.push([])],
    "push_many": [lambda q: q.push_many([])],
    "put": [lambda q: q.put("c"), lambda q: q.put("c", block=False)],
    "put_nowait": [lambda q: q.put_nowait("c")],
    "qsize": [lambda q: q.qsize()],
    "queues": [lambda q: q.queues()],
    "reader": [lambda q: q.reader("billing")],
    "readers": [lambda q: q.readers()],
    "retain": [lambda q: q.retain(1)],
    "shutdown": [lambda q: q.shutdown()],
    "state": [lambda q: q.state.get("a")],
    "stats": [lambda q: q.stats()],
    "sync": [lambda q: q.sync()],
    "task_done": [lambda q: q.task_done()],
    "transaction": [lambda q: q.transaction().__enter__()],
    "work": [lambda q: q.work(print)],
}
STILL_ALLOWED = {"close", "expired", "loads", "max_attempts", "max_bytes", "maxsize", "name", "patience"}


def test_every_verb_of_a_closed_queue_says_so(engine):
    queue, other = engine(), engine("other")
    queue.push(["a", "b"])
    queue.get()
    queue.close()
    queue.close()
    calls = VERBS | {"move": [lambda q: q.move(to=other), lambda q: other.move(to=q)]}
    assert {name for name in dir(type(queue)) if not name.startswith("_")} - STILL_ALLOWED == calls.keys()
    for call in itertools.chain(*calls.values()):
        with pytest.raises(ClosedError):
            call(queue)
    other.push("still")
    assert other.pop() == "still"
    with pytest.raises(ZeroDivisionError), other:
        1 / 0  # noqa: B018
    with pytest.raises(ClosedError):
        other.count()
    assert engine().pop() == "b"


@pytest.mark.parametrize("verb", ["pop", "get", "join", "lease", "put"])
def test_closing_ends_waiting_verbs_of_the_object_and_no_others(engine, verb):
    queue = engine(maxsize=1)
    other = None if verb in {"join", "put"} else engine()
    if other is None:
        queue.push("a")
    arguments = {"pop": {"blocking": True}, "lease": {"blocking": True}, "put": {"item": "b"}}.get(verb, {})
    is_asleep = sleeper(queue)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(getattr(queue, verb), **arguments)
        eventually(is_asleep)
        if other is not None:
            other_is_asleep = sleeper(other)
            of_other = pool.submit(other.pop, 1, blocking=True)
            eventually(other_is_asleep)
        queue.close()
        assert isinstance(waiting.exception(PATIENCE), ClosedError)
        if other is not None:
            other.push("b")
            assert of_other.result(PATIENCE) == "b"
    if verb == "put":
        assert list(engine()) == ["a"]


# --- the standard library's face


def test_put_and_get_are_those_of_the_standard_library(engine):
    queue = engine(maxsize=2)
    assert queue.put([1, 2]) is None
    queue.put_nowait(None)
    for arguments in ((False,), (True, 0.02), (True, 0)):
        with pytest.raises(Full):
            queue.put("c", *arguments)
    assert (queue.qsize(), queue.empty(), queue.full()) == (2, False, True)
    assert (queue.get(), queue.get_nowait(), queue.empty()) == ([1, 2], None, True)
    for arguments in ((False,), (True, 0.02), (True, 0)):
        with pytest.raises(Empty):
            queue.get(*arguments)
    queue.task_done()
    queue.task_done()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_put_waits_for_room_that_another_object_makes(engine):
    queue, other = engine(maxsize=1), engine()
    queue.put("a")
    is_asleep = sleeper(queue)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(queue.put, "b", timeout=PATIENCE)
        eventually(is_asleep)
        assert other.get() == "a"
        done.result(PATIENCE)
    assert queue.get() == "b"


def test_join_misses_no_item_that_is_taken_between_its_looks(queue, monkeypatch):
    """A consumer pushes what follows from an item, is done with that, and takes the other: never was all done."""
    queue.push("x")
    assert queue.get() == "x"
    count, looks = queue._engine.count, []

    def counted():
        looks.append(1)
        if len(looks) == 2:
            assert queue.get() == "y"
        found = count()
        if len(looks) == 1:
            queue.push("y")
            queue.task_done()
        return found

    monkeypatch.setattr(queue._engine, "count", counted)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(lambda: joined.done() or len(queue._hands.settled))
        assert not joined.done()
        queue.task_done()
        joined.result(PATIENCE)


def test_join_waits_until_every_item_is_taken_and_done(queue, engine):
    other = engine()
    queue.push([0, 1])
    is_asleep = sleeper(queue)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(is_asleep)
        assert queue.get() == 0
        assert other.pop() == 1
        assert not joined.done()
        queue.task_done()
        joined.result(PATIENCE)


def test_what_was_pushed_just_before_the_shutdown_is_got(queue):
    found = []

    def look():
        if found:
            return queue.pop()
        found.append(None)
        queue.push("late")
        queue.shutdown()
        return None

    assert queue._head.awaited(1, look, PATIENCE) == "late"


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_waits_and_refuses_pushes_of_this_object_only(queue, engine, immediate):
    other = engine()
    is_asleep = sleeper(queue)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.get)
        eventually(is_asleep)
        queue.shutdown(immediate)
        assert isinstance(waiting.exception(PATIENCE), ShutDown)
    with pytest.raises(ShutDown):
        queue.push("a")
    with pytest.raises(ShutDown):
        queue.put("a")
    other.push("b")
    if immediate:
        with pytest.raises(ShutDown):
            queue.get()
    else:
        assert queue.get() == "b"
