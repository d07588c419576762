"""Transactions: what the calls of a block do together, what spoils it, what cannot be a part of it."""

import multiprocessing
import os
import random
import signal
import threading
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from processes import DEADLINE, STEP, eventually, forked, killed_at_line, status_of

import lmdbqueue
from lmdbqueue import Empty, ForkError, Full, GoneError, PersistentQueue, StorageError, TransactionError
from lmdbqueue._model import pushing

FAST = {"durability": "off"}


@pytest.fixture
def pair(open_queue):
    """Give two queues of one directory."""
    return open_queue(name="inbox"), open_queue(name="outbox")


# --- all or nothing


def test_calls_of_a_block_take_effect_together_and_see_each_other(pair):
    inbox, outbox = pair
    inbox.push([1, 2, 3])
    with inbox.transaction():
        assert inbox.pop() == 1
        assert outbox.push(["one", "eins"]) == range(2)
        assert outbox.peek(5) == ["one", "eins"]
        assert inbox.delete() == 1
        assert (len(inbox), list(outbox)) == (1, ["one", "eins"])
        outbox.clear()
        assert outbox.push("last") == 2
    assert (list(inbox), list(outbox)) == ([3], ["last"])


def test_nobody_else_sees_what_a_block_has_done_before_its_end(pair, tmp_path):
    inbox, outbox = pair
    inbox.push([1, 2])
    seen = []

    def look():
        seen.append((list(inbox), list(outbox)))

    here, there = multiprocessing.Pipe()

    def elsewhere():  # a process that has it open before: opening waits for the write lock
        with PersistentQueue("queue", tmp_path, name="inbox") as other:
            there.send("open")
            there.recv()
            there.send((other.peek(), list(other), len(other)))

    pid = forked(elsewhere)
    assert here.recv() == "open"
    with inbox.transaction():
        outbox.push(inbox.pop())
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(DEADLINE)
        here.send("look")
        assert here.recv() == (1, [1, 2], 2)
    assert seen == [([1, 2], [])]
    assert status_of(pid) == 0
    assert (list(inbox), list(outbox)) == ([2], [1])


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


def test_an_exception_that_leaves_an_inner_block_undoes_the_outer_even_if_it_is_caught(pair):
    inbox, outbox = pair
    with pytest.raises(TransactionError, match="boom"), inbox.transaction():  # noqa: PT012
        inbox.push(1)
        with suppress(ValueError), outbox.transaction():
            outbox.push(2)
            message = "boom"
            raise ValueError(message)
    assert (len(inbox), len(outbox)) == (0, 0)


def test_a_call_that_fails_halfway_undoes_the_block_even_if_its_error_is_caught(pair, monkeypatch):
    inbox, outbox = pair
    outbox.push("there")

    def halfway(txn, queue, *_):
        txn.delete(queue.queue, db=queue.meta)
        message = "halfway"
        raise OSError(message)

    with pytest.raises(TransactionError, match="OSError"), inbox.transaction():  # noqa: PT012
        inbox.push(1)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="halfway"):  # noqa: PT012
            patch.setattr(pushing, "push", halfway)
            outbox.push(2)
        with pytest.raises(TransactionError, match="failed"):
            inbox.push(3)
    assert (list(inbox), list(outbox)) == ([], ["there"])
    assert inbox.push(4) == 0


def test_a_block_that_changes_nothing_commits_nothing(pair):
    inbox, _ = pair
    inbox.push(1)
    before = inbox._engine.environment.view(inbox._engine.ref, lambda txn, _: txn.id())
    with inbox.transaction():
        assert inbox.peek() == 1
        assert inbox.state.get("n") is None
    assert inbox._engine.environment.view(inbox._engine.ref, lambda txn, _: txn.id()) == before


def test_closing_inside_of_a_block_ends_the_object_and_not_the_block(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    with queue.transaction():
        queue.push(1)
        queue.close()
    directory = str(tmp_path / "queue")
    assert directory not in [each.directory.path for each in lmdbqueue._local.environment._environments.values()]
    with PersistentQueue("queue", tmp_path) as queue:
        assert list(queue) == [1]


def test_a_queue_that_is_known_can_be_opened_in_a_block_and_another_not(pair, tmp_path):
    inbox, _ = pair
    with inbox.transaction():
        with PersistentQueue("queue", tmp_path, name="outbox") as again:
            again.push(1)
        with pytest.raises(TransactionError, match="open it before the block"):
            PersistentQueue("queue", tmp_path, name="third")
        with pytest.raises(TransactionError, match="another directory"):
            PersistentQueue("elsewhere", tmp_path)
    assert inbox.queues() == ["inbox", "outbox"]
    assert len(pair[1]) == 1


# --- what cannot be a part of it


REFUSED = {
    "flush": lambda queue, _: queue.flush(force=True),
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


def test_verbs_that_wait_do_their_work_in_a_block_when_they_need_not_wait(pair):
    inbox, outbox = pair
    inbox.push([1, 2, 3])
    with inbox.transaction():
        outbox.put(inbox.get())
        outbox.put(inbox.pop(blocking=True), timeout=5)
        assert inbox.get_nowait() == 3
        with pytest.raises(Empty):
            inbox.get_nowait()
        with pytest.raises(Empty):
            inbox.get(timeout=0)
    assert (list(inbox), list(outbox)) == ([], [1, 2])


def test_a_putter_in_a_block_finds_a_full_queue_full(open_queue):
    queue = open_queue(maxsize=1)
    with queue.transaction():
        queue.put(1)
        with pytest.raises(Full):
            queue.put(2, block=False)
        with pytest.raises(TransactionError):
            queue.put(2)
    assert list(queue) == [1]


# --- others


def test_other_threads_write_before_and_after_a_block(pair):
    inbox, outbox = pair

    def shuffle(number):
        for i in range(50):
            with inbox.transaction():
                inbox.push((number, i))
                outbox.push((number, i))

    threads = [threading.Thread(target=shuffle, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for i in range(100):
        outbox.push(("single", i))
    for thread in threads:
        thread.join(DEADLINE)
    blocks = [item for item in outbox if item[0] != "single"]
    assert list(inbox) == blocks
    assert sorted(blocks) == [(number, i) for number in range(4) for i in range(50)]


def test_a_child_forked_in_a_block_leaves_it_to_the_parent(pair):
    inbox, outbox = pair
    inbox.push([1, 2])

    def child():
        with pytest.raises(ForkError):
            inbox.pop()
        with pytest.raises(ForkError):
            len(outbox)

    with inbox.transaction():
        outbox.push(inbox.pop())
        assert status_of(forked(child)) == 0
        outbox.push(inbox.pop())
    assert (list(inbox), list(outbox)) == ([], [1, 2])


def test_a_child_that_leaves_the_block_ends_nothing(pair):
    inbox, _ = pair
    pid = -1
    try:
        with inbox.transaction():
            inbox.push(1)
            pid = os.fork()
    except ForkError:
        os._exit(7 if pid == 0 else 1)
    if pid == 0:
        os._exit(2)
    assert status_of(pid) == 7
    assert list(inbox) == [1]
    assert inbox.push(2) == 1


def test_a_thread_that_forks_while_another_is_in_a_block_waits_for_its_end(pair):
    inbox, _ = pair
    entered, leave = threading.Event(), threading.Event()

    def block():
        with inbox.transaction():
            inbox.push(1)
            entered.set()
            leave.wait(DEADLINE)

    thread = threading.Thread(target=block)
    thread.start()
    entered.wait(DEADLINE)
    threading.Timer(0.05, leave.set).start()

    def child():
        assert list(inbox) == [1]
        inbox.push(2)

    assert status_of(forked(child)) == 0
    thread.join(DEADLINE)
    assert list(inbox) == [1, 2]


# --- a disk that fails


def test_a_block_whose_commit_fails_has_done_nothing(pair, monkeypatch):
    inbox, outbox = pair
    inbox.push([1, 2])

    def refuse(*_):
        raise StorageError("there", "sync", "said the test")

    with pytest.raises(StorageError, match="said the test"), inbox.transaction():  # noqa: PT012
        outbox.push(inbox.pop())
        monkeypatch.setattr(lmdbqueue._lmdb.generation.Generation, "commit", refuse)
    monkeypatch.undo()
    assert (list(inbox), list(outbox)) == ([1, 2], [])


def test_a_block_begins_anew_in_a_file_that_is_not_in_doubt(pair):
    inbox, outbox = pair
    inbox.push([1, 2])
    environment = inbox._engine.environment
    number = environment._generation.number
    environment._session.set_in_doubt(number)
    with inbox.transaction():
        outbox.push(inbox.pop())
    assert environment._generation.number == number + 1
    assert (list(inbox), list(outbox)) == ([2], [1])


def test_a_block_in_which_the_file_gets_in_doubt_does_nothing(pair):
    inbox, outbox = pair
    inbox.push([1, 2])
    environment = inbox._engine.environment
    with pytest.raises(StorageError), inbox.transaction():  # noqa: PT012
        outbox.push(inbox.pop())
        environment._session.set_in_doubt(environment._generation.number)
    assert (list(inbox), list(outbox)) == ([1, 2], [])
    with inbox.transaction():
        outbox.push(inbox.pop())
    assert (list(inbox), list(outbox)) == ([2], [1])


def test_a_block_makes_durable_what_it_sees_before_it_shows_it(pair):
    inbox, _ = pair
    session = inbox._engine.environment._session
    inbox.push(1)
    newest = session._words[1]
    session._words[1] = 0
    with inbox.transaction():
        assert session.is_synced(newest)
        assert inbox.peek() == 1


# --- move, queues, drop_queue


def test_move_takes_items_to_the_tail_of_another_queue_without_decoding(open_queue):
    raw = open_queue(name="inbox", dumps=bytes, loads=lambda _: 1 / 0)
    outbox = open_queue(name="outbox", dumps=bytes, loads=bytes)
    raw.push([b"1", b"2" * 9000, b"3"])
    outbox.push(b"0")
    assert raw.move(2, to=outbox) == 2
    assert (len(raw), list(outbox)) == (1, [b"0", b"1", b"2" * 9000])
    assert raw.move(7, to=outbox) == 1
    assert raw.move(7, to=outbox) == 0
    assert raw.move(0, to=outbox) == 0
    assert outbox.push(b"next") == 4


def test_move_honours_the_limits_of_its_target(open_queue):
    inbox, outbox = open_queue(name="inbox"), open_queue(name="outbox", maxsize=2)
    inbox.push([1, 2, 3])
    with pytest.raises(Full):
        inbox.move(3, to=outbox)
    assert (len(inbox), len(outbox)) == (3, 0)
    assert inbox.move(2, to=outbox) == 2


def test_move_refuses_what_it_cannot_do(pair, open_queue, tmp_path):
    inbox, outbox = pair
    inbox.push(1)
    with PersistentQueue("queue", tmp_path, name="inbox") as same, pytest.raises(ValueError, match="itself"):
        inbox.move(to=same)
    with pytest.raises(TransactionError, match="another directory"):
        inbox.move(to=open_queue("elsewhere"))
    with pytest.raises(ValueError, match="negative"):
        inbox.move(-1, to=outbox)
    outbox.shutdown()
    with pytest.raises(lmdbqueue.ShutDown):
        inbox.move(to=outbox)
    assert list(inbox) == [1]


def test_movers_in_many_threads_move_each_item_once_and_in_order(pair):
    inbox, outbox = pair
    inbox.push(list(range(300)))
    threads = [threading.Thread(target=lambda: [inbox.move(3, to=outbox) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert list(outbox) == list(range(300))


def test_queues_are_listed_whoever_made_them(pair, tmp_path):
    inbox, _ = pair

    def elsewhere():
        PersistentQueue("queue", tmp_path, name="élan").close()

    assert inbox.queues() == ["inbox", "outbox"]
    assert status_of(forked(elsewhere)) == 0
    assert inbox.queues() == ["inbox", "outbox", "élan"]


def test_a_dropped_queue_is_gone_for_everybody(pair, tmp_path):
    inbox, outbox = pair
    inbox.push([b"x" * 100_000] * 50)
    inbox.state["n"] = 1
    outbox.push("stays")
    ear, mouth = os.pipe()

    def elsewhere():
        with PersistentQueue("queue", tmp_path, name="inbox") as other:
            os.write(mouth, b".")
            with pytest.raises(GoneError, match="inbox"):
                other.peek(60, blocking=True, timeout=DEADLINE)

    pid = forked(elsewhere)
    assert os.read(ear, 1)
    outbox.drop_queue("inbox")
    assert status_of(pid) == 0
    for call in (inbox.pop, inbox.count, lambda: inbox.push(1), lambda: inbox.move(to=outbox), inbox.state.clear):
        with pytest.raises(GoneError, match="inbox"):
            call()
    assert outbox.queues() == ["outbox"]
    assert list(outbox) == ["stays"]
    assert outbox.stats().bytes_free > 4_000_000  # for new items, or for flush() to give back
    assert outbox.flush(force=True) > 4_000_000
    with pytest.raises(KeyError):
        outbox.drop_queue("inbox")
    with PersistentQueue("queue", tmp_path, name="inbox") as anew:
        assert (len(anew), dict(anew.state), anew.push(1)) == (0, {}, 0)
    inbox.close()


def test_a_queue_that_another_process_dropped_is_gone_and_one_of_its_name_is_another(pair, tmp_path):
    inbox, outbox = pair

    def elsewhere(*, anew):
        with PersistentQueue("queue", tmp_path, name="third") as other:
            other.drop_queue("outbox")
        if anew:
            PersistentQueue("queue", tmp_path, name="outbox").close()

    assert status_of(forked(partial(elsewhere, anew=False))) == 0
    assert inbox.check() == []
    with inbox.transaction(), pytest.raises(TransactionError, match="open it before the block"):
        PersistentQueue("queue", tmp_path, name="outbox")
    PersistentQueue("queue", tmp_path, name="outbox").close()
    assert inbox.queues() == ["inbox", "outbox", "third"]
    assert inbox.check() == []
    assert status_of(forked(partial(elsewhere, anew=True))) == 0
    with (
        PersistentQueue("queue", tmp_path, name="outbox"),  # which is known now
        inbox.transaction(),
        PersistentQueue("queue", tmp_path, name="outbox") as anew,
    ):
        inbox.push("a")
        assert inbox.move(to=anew) == 1
        assert list(anew) == ["a"]
    assert inbox.check() == []
    with pytest.raises(GoneError):
        outbox.push("b")
    outbox.close()


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


@pytest.mark.parametrize("seed", range(20))
def test_random_blocks_leave_what_lists_would_hold(open_queue, seed):
    chance = random.Random(seed)  # noqa: S311
    queues = {name: open_queue(name=name, **FAST) for name in "abc"}
    model = {name: [] for name in queues}

    def call():
        name, other = chance.sample(sorted(queues), 2)
        n = chance.randrange(4)
        match chance.randrange(6):
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

    for _ in range(40):
        with _block(chance.choice(list(queues.values())), model, undone=chance.random() < 0.4):
            for _ in range(chance.randrange(8)):
                call()
        assert {name: list(queue) for name, queue in queues.items()} == model
        call()
        if chance.random() < 0.1:
            queues["a"].flush(force=True)


# --- kills


def _work(place):
    with (
        PersistentQueue("queue", place, name="inbox") as inbox,
        PersistentQueue("queue", place, name="outbox") as outbox,
    ):
        while True:
            with inbox.transaction():
                job = inbox.pop()
                if job is None:
                    return
                outbox.push(job)
                inbox.state["handled"] = inbox.state.get("handled", 0) + 1


def test_four_workers_that_are_killed_again_and_again_handle_each_item_exactly_once(pair, tmp_path, record_property):
    items, kills = 20_000, 200
    inbox, outbox = pair
    chance = random.Random(1)  # noqa: S311
    inbox.push(list(range(items)))
    workers = [forked(_work, tmp_path) for _ in range(4)]
    for _ in range(kills):
        wanted = len(outbox) + chance.randrange(60)
        eventually(lambda wanted=wanted: len(outbox) >= wanted)
        number = chance.randrange(4)
        os.kill(workers[number], signal.SIGKILL)
        assert status_of(workers[number]) == -signal.SIGKILL
        workers[number] = forked(_work, tmp_path)
    assert [status_of(pid) for pid in workers] == [0] * 4
    assert list(outbox) == list(range(items)), "they were handled in their order, each once"
    assert inbox.state["handled"] == items
    assert len(inbox) == 0
    record_property("kills", kills)


def test_a_kill_at_any_line_of_a_block_leaves_all_of_it_or_nothing(tmp_path, record_property):
    modules = [
        "_local/transaction",
        "_verbs/block",
        "_local/environment",
        "_lmdb/generation",
        "_lmdb/snapshot",
        "_lmdb/preallocation",
        "_lmdb/content",
        "_model/fifo",
        "_model/pushing",
        "_model/weighed_records",
        "_local/engine",
        "_local/state",
        "_local/queue",
    ]

    def block(place):
        with (
            PersistentQueue("queue", place, name="a", **FAST) as a,
            PersistentQueue("queue", place, name="b", **FAST) as b,
        ):
            a.push([1, 2])

            def run():
                with a.transaction():
                    b.push(a.pop())
                    a.state["n"] = 1

            killed_at_line(number, modules, run)

    number = 0
    status = -signal.SIGKILL
    found = set()
    while status:
        number += STEP
        place = tmp_path / str(number)
        place.mkdir()
        status = status_of(forked(block, place))
        with (
            PersistentQueue("queue", place, name="a", **FAST) as a,
            PersistentQueue("queue", place, name="b", **FAST) as b,
        ):
            found.add((tuple(a), tuple(b), a.state.get("n")))
            assert a.check() == []
    assert found == {((1, 2), (), None), ((2,), (1,), 1)}
    record_property("kills", number // STEP - 1)
