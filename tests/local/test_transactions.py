"""Transactions: what the calls of a block do together, what spoils it, what cannot be a part of it."""

import multiprocessing
import os
import random
import signal
import threading
from functools import partial

import pytest
from processes import DEADLINE, STEP, eventually, forked, killed_at_line, status_of

import lmdbqueue
from lmdbqueue import GoneError, PersistentQueue, StorageError, TransactionError
from lmdbqueue._model import pushing

FAST = {"durability": "off"}


@pytest.fixture
def pair(open_queue):
    """Give two queues of one directory."""
    return open_queue(name="inbox"), open_queue(name="outbox")


# --- all or nothing


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
    assert directory not in [each.directory.path for each in lmdbqueue._local.environment.environments.values()]
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


# --- others


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


def test_what_a_dropped_queue_took_is_free_and_a_process_that_waits_for_its_items_is_told(pair, tmp_path):
    inbox, outbox = pair
    inbox.push([b"x" * 100_000] * 50)
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
    assert list(outbox) == ["stays"]
    assert outbox.stats().bytes_free > 4_000_000  # for new items, or for flush() to give back
    assert outbox.flush(force=True) > 4_000_000
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
    items, kills = 8_000, 80
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
        "_local/live",
        "_lmdb/generation",
        "_lmdb/durability",
        "_lmdb/snapshot",
        "_lmdb/preallocation",
        "_lmdb/content",
        "_model/fifo",
        "_model/pushing",
        "_model/weighed_records",
        "_local/engine",
        "_local/hold",
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
