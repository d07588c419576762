"""Many threads on one queue: each item once and in order, and commits that callers share."""

import asyncio
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import eventually

from lmdbqueue import ClosedError, CommitUnknownError, Full, PersistentQueue, QueueError
from lmdbqueue._base.values import Push as HowToPush
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.aio._grouping import Grouping
from lmdbqueue.aio._jobs import APART, Push

PATIENCE = 60  # seconds, for what happens at once when all is well


def _last_txn(queue):
    """Return the number of the last transaction that changed something."""
    return queue._engine.environment.view(queue._engine.ref, lambda txn, tables: tables.generation.last(txn)[0])


class Crowd:
    """Calls that all wait while this thread holds the right to write; then one of them leads the others."""

    def __init__(self, queue):
        self.queue = queue
        self.environment = queue._engine.environment
        self.pool = ThreadPoolExecutor(32)
        self.futures = []

    def __enter__(self):
        self.environment._writer.acquire()
        self.environment._is_writing = True
        return self

    def add(self, function, *args):
        """Start a call and wait until it waits."""
        self.futures.append(self.pool.submit(function, *args))
        eventually(lambda: len(self.environment._line) == len(self.futures))

    def __exit__(self, *_):
        self.environment._writer.release()
        for future in self.futures:
            future.exception(PATIENCE)
        self.pool.shutdown()


# --- every item once, in order


@pytest.fixture(params=["one object", "an object a thread", "a name a producer"])
def crowd_queues(request, open_queue):
    """Give 16 queues to push to and 16 to pop from, which are the same, or share their items."""
    if request.param == "one object":
        return [open_queue(durability="off")] * 16, None
    if request.param == "an object a thread":
        return [open_queue(durability="off") for _ in range(16)], [open_queue(durability="off") for _ in range(16)]
    return [open_queue(name=f"queue {n}", durability="off") for n in range(16)], None


def test_32_threads_get_each_item_once_and_those_of_a_producer_in_order(crowd_queues):
    sources, sinks = crowd_queues
    sinks = sinks or sources
    each = 150

    def produce(producer, queue):
        for start in range(0, each, 3):
            batch = [(producer, n) for n in range(start, start + 3)]
            queue.push(batch) if start % 2 else [queue.push(item) for item in batch]

    def consume(queue):
        taken = []
        while (item := queue.pop(1, blocking=True, timeout=PATIENCE)) is not None:
            taken.append(item)
        return taken

    with ThreadPoolExecutor(32) as pool:
        consumers = [pool.submit(consume, queue) for queue in sinks]
        producers = [pool.submit(produce, number, queue) for number, queue in enumerate(sources)]
        for producer in producers:
            producer.result(PATIENCE)
        for queue in sinks:
            queue.push([None])
        taken = [consumer.result(PATIENCE) for consumer in consumers]
    assert Counter(item for items in taken for item in items) == Counter((p, n) for p in range(16) for n in range(each))
    for items in taken:
        for producer in range(16):
            numbers = [n for p, n in items if p == producer]
            assert numbers == sorted(numbers)
    assert all(queue.count() == 0 for queue in sinks)


def test_a_list_is_never_torn_apart_by_the_lists_of_others(open_queue):
    queue = open_queue(durability="off")
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda n: queue.push([n] * 50), range(32)))
    assert sorted(numbers.start for numbers in given) == list(range(0, 1600, 50))
    items = list(queue)
    for n, numbers in enumerate(given):
        assert items[numbers.start : numbers.stop] == [n] * 50


def test_concurrent_pops_of_several_take_runs_that_do_not_overlap(open_queue):
    queue = open_queue(durability="off")
    queue.push(list(range(3000)))

    def take():
        runs = []
        while run := queue.pop(7):
            runs.append(run)
        return runs

    with ThreadPoolExecutor(8) as pool:
        runs = [run for runs in [pool.submit(take) for _ in range(8)] for run in runs.result(PATIENCE)]
    assert sorted(item for run in runs for item in run) == list(range(3000))
    assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)


def test_items_are_never_missed_by_threads_that_open_and_close_the_queue_all_the_time(open_queue, tmp_path):
    keep = open_queue(durability="off")

    def work(n):
        with PersistentQueue("queue", tmp_path, durability="off") as queue:
            queue.push(n)
            return queue.pop()

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(work, range(200)))
    assert sorted(taken) == list(range(200))
    assert keep.count() == 0


def test_closing_amid_pushes_of_other_threads_ends_them_with_closed_error_and_loses_nothing(open_queue):
    for _ in range(20):
        queue = open_queue(durability="off")
        acknowledged = []

        def push(queue=queue, acknowledged=acknowledged):
            while True:
                acknowledged.append(queue.push("item"))

        with ThreadPoolExecutor(4) as pool:
            pushing = [pool.submit(push) for _ in range(4)]
            eventually(lambda acknowledged=acknowledged: len(acknowledged) > 20)
            queue.close()
            assert {type(each.exception(PATIENCE)) for each in pushing} == {ClosedError}
        queue = open_queue(durability="off")
        head = queue.stats().head
        kept = range(head, head + queue.count())
        assert set(acknowledged) <= set(kept)
        queue.clear()
        queue.close()


@pytest.mark.skipif(sys.platform != "linux", reason="it lists open files in /proc")
def test_closing_amid_pushes_of_another_thread_leaves_no_descriptor_behind(open_queue):
    open_queue(durability="off").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        queue = open_queue(durability="off")
        pushed = threading.Event()

        def push(queue=queue, pushed=pushed):
            while True:
                queue.push("item")
                pushed.set()

        with ThreadPoolExecutor(1) as pool:
            pushing = pool.submit(push)
            assert pushed.wait(PATIENCE)
            queue.close()
            assert isinstance(pushing.exception(PATIENCE), ClosedError)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="it lists open files in /proc")
def test_a_push_that_a_close_overtakes_leaves_no_descriptor_behind(open_queue):
    open_queue().close()
    before = len(os.listdir("/proc/self/fd"))
    queue = open_queue()
    bell = queue._engine.environment.bell
    real, committed, closed = bell.ring, threading.Event(), threading.Event()

    def ring():
        if not committed.is_set():
            committed.set()
            closed.wait(0.3)  # a push that close() waits for goes on after that
        real()

    bell.ring = ring
    with ThreadPoolExecutor(2) as pool:
        pushing = pool.submit(queue.push, "item")
        assert committed.wait(PATIENCE)
        closing = pool.submit(queue.close)
        while not closing.done() and not pushing.done():
            time.sleep(0.001)
        closed.set()
        closing.result(PATIENCE)
        assert pushing.result(PATIENCE) == 0
    assert len(os.listdir("/proc/self/fd")) == before


# --- group commit


@pytest.mark.parametrize("number", [1, 2, 20])
def test_calls_that_come_while_another_writes_share_one_transaction(queue, number):
    before = _last_txn(queue)
    with Crowd(queue) as crowd:
        for n in range(number):
            crowd.add(queue.push, n)
    assert _last_txn(queue) == before + 1
    assert [future.result() for future in crowd.futures] == list(range(number))
    assert list(queue) == list(range(number))


def test_calls_that_all_find_the_right_to_write_free_at_one_moment_share_transactions(queue, monkeypatch):
    """Else they would wait for it one behind the other, and never meet in the line."""
    environment = queue._engine.environment

    class Right:
        """It looks free, as it does between two holders."""

        locked = staticmethod(lambda: False)
        __enter__, __exit__ = environment._writer.__enter__, environment._writer.__exit__

    before = _last_txn(queue)
    with ThreadPoolExecutor(8) as pool, environment._writer, monkeypatch.context() as patch:
        patch.setattr(environment, "_writer", Right())
        pushing = [pool.submit(queue.push, n) for n in range(8)]
        eventually(lambda: len(environment._line) == 7)
    assert sorted(each.result(PATIENCE) for each in pushing) == list(range(8))
    assert _last_txn(queue) <= before + 2


def test_calls_that_come_one_after_the_other_have_a_transaction_each(queue):
    before = _last_txn(queue)
    for n in range(5):
        queue.push(n)
    assert _last_txn(queue) == before + 5


def test_pushes_and_removals_of_several_queues_share_one_transaction_in_the_order_they_came(open_queue):
    one, two = open_queue(), open_queue(name="two")
    two.push(["x", "y"])
    before = _last_txn(one)
    with Crowd(one) as crowd:
        crowd.add(one.push, ["a", "b"])
        crowd.add(two.delete, 1)
        crowd.add(one.delete, 1)
        crowd.add(two.push, "z")
        crowd.add(one.clear)
        crowd.add(one.push, "c")
    assert _last_txn(one) == before + 1
    assert [future.result() for future in crowd.futures] == [range(2), 1, 1, 2, None, 2]
    assert list(one) == ["c"]
    assert list(two) == ["y", "z"]


def test_calls_that_change_nothing_commit_nothing(queue):
    before = _last_txn(queue)
    with Crowd(queue) as crowd:
        crowd.add(queue.delete, 1)
        crowd.add(queue.clear)
        crowd.add(queue.delete, 5)
    assert _last_txn(queue) == before
    assert [future.result() for future in crowd.futures] == [0, None, 0]


def test_a_call_that_finds_the_queue_full_spoils_nothing_for_its_neighbours(open_queue):
    queue, limited = open_queue(), open_queue(maxsize=3)
    before = _last_txn(queue)
    with Crowd(queue) as crowd:
        for n in range(10):
            crowd.add(limited.push if n % 3 == 2 else queue.push, [n] if n % 3 == 2 else n)
    errors = [type(future.exception()) for future in crowd.futures]
    assert errors == [type(None)] * 5 + [Full] + [type(None)] * 2 + [Full] + [type(None)]
    assert _last_txn(queue) == before + 1
    assert list(queue) == [0, 1, 2, 3, 4, 6, 7, 9]


@pytest.mark.parametrize("position", [0, 2, 5])
def test_an_unexpected_error_of_one_call_fails_that_call_only(queue, position):
    class Unexpected(Exception):
        pass

    def fail(txn, tables):
        txn.put(b"half done", b"", db=tables.meta)
        raise Unexpected

    with Crowd(queue) as crowd:
        for n in range(6):
            if n == position:
                crowd.add(queue._engine.environment.update, queue._engine.ref, fail)
            else:
                crowd.add(queue.push, n)
    errors = [type(future.exception()) for future in crowd.futures]
    assert errors == [Unexpected if n == position else type(None) for n in range(6)]
    assert list(queue) == [n for n in range(6) if n != position]
    engine = queue._engine
    assert engine.environment.view(engine.ref, lambda txn, tables: txn.get(b"half done", db=tables.meta)) is None


def test_several_calls_that_fail_get_their_own_error_each(queue):
    def fail(_txn, _tables, reason):
        raise LookupError(reason)

    with Crowd(queue) as crowd:
        for n in range(6):
            if n % 2:
                crowd.add(queue._engine.environment.update, queue._engine.ref, fail, n)
            else:
                crowd.add(queue.push, n)
    assert [future.exception().args for future in crowd.futures[1::2]] == [(1,), (3,), (5,)]
    assert list(queue) == [0, 2, 4]


@pytest.mark.parametrize("position", [0, 3, 7])
def test_calls_that_an_interrupted_leader_had_in_hand_complete_all_the_same(queue, position):
    interrupted = []

    def interrupt_once(_txn, _tables):
        if not interrupted:
            interrupted.append(threading.current_thread())
            raise KeyboardInterrupt  # as a signal does that comes while the leader is here
        return ()

    with Crowd(queue) as crowd:
        for n in range(8):
            if n == position:
                crowd.add(queue._engine.environment.update, queue._engine.ref, interrupt_once)
            else:
                crowd.add(queue.push, n)
    assert interrupted
    errors = [future.exception() for future in crowd.futures]
    of_leader = [n for n, error in enumerate(errors) if error is not None]
    assert [type(errors[n]) for n in of_leader] == [KeyboardInterrupt]
    assert sorted(queue) == [n for n in range(8) if n != position and n not in of_leader]
    assert not queue._engine.environment._line


def test_an_interrupt_before_the_commit_takes_the_whole_call_back(queue, monkeypatch):
    generation = queue._engine.environment._generation

    def commit(_txn):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_commit", commit)
        with pytest.raises(KeyboardInterrupt):
            queue.push("a")
    assert queue.count() == 0
    assert not queue._engine.environment._line
    with ThreadPoolExecutor(1) as pool:  # no lock was left behind
        assert pool.submit(queue.push, "b").result(PATIENCE) == 0


def test_an_interrupt_after_the_commit_counts_as_done(queue, monkeypatch):
    generation = queue._engine.environment._generation
    real = generation._commit
    interrupted = []

    def commit(txn):
        real(txn)
        if not interrupted:
            interrupted.append(threading.current_thread())
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_commit", commit)
        with Crowd(queue) as crowd:
            for n in range(6):
                crowd.add(queue.push, n)
    assert interrupted
    errors = [type(future.exception()) for future in crowd.futures]
    assert sorted(errors, key=str) == sorted([KeyboardInterrupt, *[type(None)] * 5], key=str)
    assert list(queue) == list(range(6))  # that of the interrupted caller too, and each once
    assert not queue._engine.environment._line


def test_an_interrupted_waiter_takes_its_call_out(queue, monkeypatch):
    environment = queue._engine.environment

    class Interrupting:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(environment, "_is_writing", True)  # so that the call goes to the line
        patch.setattr(environment._line, "_right", Interrupting())
        with pytest.raises(KeyboardInterrupt):
            queue.push("a")
    assert not environment._line
    queue.push("b")
    assert list(queue) == ["b"]


def test_a_failed_commit_is_reported_to_every_caller_that_shared_it(queue, monkeypatch):
    generation = queue._engine.environment._generation
    commits = []

    def commit(txn):
        commits.append(txn.id())
        raise CommitUnknownError(generation.path, "commit", "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_commit", commit)
        with Crowd(queue) as crowd:
            for n in range(4):
                crowd.add(queue.push, n)
    assert {type(future.exception()) for future in crowd.futures} == {CommitUnknownError}
    assert len(commits) == 1  # nothing is done a second time while it is unknown what the first did
    assert queue.push("next") == 0


def test_an_error_of_a_call_is_the_callers_own_and_not_shared_with_others(open_queue):
    limited = open_queue(maxsize=1)
    limited.push("a")
    with Crowd(limited) as crowd:
        for n in range(3):
            crowd.add(limited.push, [n] * (n + 1))
    errors = [future.exception() for future in crowd.futures]
    assert [error.added for error in errors] == [1, 2, 3]
    assert all(isinstance(error, QueueError) for error in errors)


@pytest.mark.parametrize("verb", ["peek", "count", "stats", "sync"])
def test_a_read_amid_which_the_queue_is_closed_ends_well_or_says_that_it_is_closed(open_queue, monkeypatch, verb):
    """What it still asks of the session, which has ended, is no error of Python's."""
    queue = open_queue()
    queue.push("a")
    environment = queue._engine.environment
    generation, session = environment._generation, environment._session
    closing = []

    def close():
        if not closing:
            closing.append(threading.Thread(target=queue.close))
            closing[0].start()
            closing[0].join(PATIENCE)

    def glance(*args):
        found = real(*args)
        close()
        session._known = 0  # so that the words are asked
        return found

    real = generation._glance
    monkeypatch.setattr(generation, "_glance", glance)
    if verb == "sync":
        is_in_doubt = session.is_in_doubt
        monkeypatch.setattr(session, "is_in_doubt", lambda number: (close(), is_in_doubt(number))[1])
    with suppress(ClosedError):
        getattr(queue, verb)()
    assert closing


def test_a_reader_that_meets_a_file_being_opened_anew_puts_it_in_no_doubt(open_queue, monkeypatch):
    """Another process is still flushing what it reads, and a writer of this one finds that the file outgrew its map."""
    queue = open_queue()
    queue.push("a")
    environment = queue._engine.environment
    generation = environment._generation
    real = generation._glance

    def glance(*args):
        found, transaction = real(*args)
        with environment._writer:
            generation.is_broken = True
            environment._abandon_broken(generation)
        return found, transaction + 1

    monkeypatch.setattr(generation, "_glance", glance)
    assert queue.peek() == "a"
    assert not environment._session.is_in_doubt(1)


def test_what_is_read_while_the_queue_is_closed_and_was_not_on_the_disk_is_not_handed_out(open_queue, monkeypatch):
    """Another process has committed it and did not flush yet, so who closes does not, either."""
    queue = open_queue()
    queue.push("a")
    environment = queue._engine.environment
    generation, session = environment._generation, environment._session
    monkeypatch.setattr(session, "is_alone", lambda: False)
    synced = session.is_synced

    def is_synced(_):
        thread = threading.Thread(target=queue.close)
        thread.start()
        thread.join(PATIENCE)
        return False

    monkeypatch.setattr(session, "is_synced", is_synced)
    with pytest.raises(ClosedError):
        queue.peek()
    assert synced(generation.number)


def test_pushes_with_options_are_stored_once_though_one_of_them_is_refused_amid_the_calls_of_others(open_queue):
    queue, other = open_queue(maxsize=3), open_queue(name="other")
    loop = asyncio.new_event_loop()
    jobs = [
        Push(loop.create_future(), [queue.dumps(item) for item in items], HowToPush(headers={"n": items}))
        for items in ("a", "bcde", "f")
    ]
    told = []
    with Crowd(queue) as crowd:
        crowd.add(other.push, "x")
        crowd.add(lambda: told.extend(Grouping(head_of(queue)).done(APART, jobs)))
    loop.close()
    assert [(job, type(error)) for job, _, error in told] == list(
        zip(jobs, [type(None), Full, type(None)], strict=True)
    )
    assert (list(queue), list(other)) == (["a", "f"], ["x"])
