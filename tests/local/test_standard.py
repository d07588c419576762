"""The face of ``queue.Queue``: what agrees is tried on both, and what must differ on ours."""

import queue as standard
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import eventually

from lmdbqueue import ClosedError, CorruptItemError, DecodeError, DiskFullError, Empty, Full, QueueError, ShutDown
from lmdbqueue import PersistentQueue as Ours

PATIENCE = 30  # seconds, for what happens at once when all is well


def _waits(queue):
    """Tell whether some thread waits in a verb of the queue."""
    if isinstance(queue, Ours):
        return queue._engine.environment.bell._is_seat_taken() or len(queue._hands.settled) > 0
    conditions = (queue.not_empty, queue.not_full, queue.all_tasks_done)
    return any(condition._waiters for condition in conditions)


@pytest.fixture(params=["queue.Queue", "PersistentQueue"])
def make(request, open_queue):
    """Make a queue of either kind."""
    if request.param == "queue.Queue":
        return standard.Queue
    return lambda maxsize=0: open_queue(maxsize=maxsize)


@pytest.fixture
def make_with_shutdown(make):
    """Make a queue of either kind that has ``shutdown``."""
    if make is standard.Queue and not hasattr(standard.Queue, "shutdown"):
        pytest.skip("queue.Queue has shutdown() from Python 3.13 on")
    return make


STANDARD_SHUTDOWN = getattr(standard, "ShutDown", ShutDown)


# --- the same on both


def test_items_come_out_as_and_in_the_order_in_which_they_were_put(make):
    queue = make()
    items = ["a", [1, 2, 3], [], None, ("b",)]
    for item in items:
        assert queue.put(item) is None
    assert queue.qsize() == 5
    assert [queue.get(timeout=PATIENCE) for _ in items] == items
    with pytest.raises(standard.Empty):
        queue.get_nowait()


NOT_FOR_LONG = [(False,), (False, 10), (False, -1), (True, 0), (True, 0.02)]  # block, timeout


def test_get_from_an_empty_queue_and_put_into_a_full_one_raise_and_store_nothing(make):
    queue = make(1)
    for arguments in NOT_FOR_LONG:
        with pytest.raises(standard.Empty):
            queue.get(*arguments)
    queue.put("a")
    for arguments in NOT_FOR_LONG:
        with pytest.raises(standard.Full):
            queue.put("b", *arguments)
    with pytest.raises(standard.Full):
        queue.put_nowait("b")
    assert queue.qsize() == 1
    assert queue.get() == "a"


def test_a_negative_timeout_is_a_value_error_even_when_nothing_need_be_waited_for(make):
    queue = make(2)
    with pytest.raises(ValueError, match=r"'timeout' (must be|is) a non-negative number"):
        queue.put("a", timeout=-1)
    assert queue.qsize() == 0
    queue.put("a")
    with pytest.raises(ValueError, match=r"'timeout' (must be|is) a non-negative number"):
        queue.get(timeout=-1)
    assert queue.qsize() == 1


def test_a_timeout_is_waited_for(make):
    queue = make(1)
    begun = time.monotonic()
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.1)
    queue.put("a")
    with pytest.raises(standard.Full):
        queue.put("b", timeout=0.1)
    assert time.monotonic() - begun >= 0.2


def test_put_waits_for_a_get(make):
    queue = make(1)
    queue.put("a")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(queue.put, "b", timeout=PATIENCE)
        eventually(lambda: _waits(queue))
        assert not done.done()
        assert queue.qsize() == 1
        assert queue.get() == "a"
        done.result(PATIENCE)
    assert queue.get() == "b"


def test_each_put_ends_the_wait_of_one_get(make):
    queue = make()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(queue.get, timeout=PATIENCE) for _ in range(4)]
        eventually(lambda: _waits(queue))
        for n in range(4):
            queue.put(n)
        assert sorted(each.result(PATIENCE) for each in found) == [0, 1, 2, 3]
    assert queue.empty()


def test_qsize_empty_and_full_tell_the_state(make):
    queue = make(2)
    states = []
    for step in (lambda: None, lambda: queue.put(1), lambda: queue.put(2), queue.get, queue.get):
        step()
        states.append((queue.qsize(), queue.empty(), queue.full()))
    assert states == [(0, True, False), (1, False, False), (2, False, True), (1, False, False), (0, True, False)]


@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_queue_without_a_positive_maxsize_is_never_full(make, maxsize):
    queue = make(maxsize)
    for n in range(50):
        queue.put_nowait(n)
    assert not queue.full()
    assert queue.maxsize == maxsize


def test_task_done_more_often_than_get_is_a_value_error(make):
    queue = make()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        queue.task_done()
    queue.put("a")
    queue.get()
    queue.task_done()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        queue.task_done()


def test_join_of_a_queue_without_unfinished_tasks_returns_at_once(make):
    queue = make()
    queue.join()
    queue.put("a")
    queue.get()
    queue.task_done()
    queue.join()


def test_join_waits_for_workers_in_threads(make):
    queue = make(3)
    done = []

    def work():
        while (item := queue.get()) is not None:
            done.append(item)
            queue.task_done()
        queue.task_done()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for n in range(60):
        queue.put(n)
    queue.join()
    assert sorted(done) == list(range(60))
    for _ in workers:
        queue.put(None)
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()


# --- shutdown, the same on both where queue.Queue has it


def test_after_shutdown_put_is_refused_and_get_goes_on_until_empty(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    queue.put("b")
    assert queue.shutdown() is None
    for put in (queue.put, queue.put_nowait):
        with pytest.raises(STANDARD_SHUTDOWN):
            put("c")
    assert queue.get() == "a"
    assert queue.get_nowait() == "b"
    for get in (queue.get, queue.get_nowait):
        with pytest.raises(STANDARD_SHUTDOWN):
            get()


def test_after_shutdown_a_full_queue_refuses_put_as_shut_down(make_with_shutdown):
    queue = make_with_shutdown(1)
    queue.put("a")
    queue.shutdown()
    for put in (queue.put, queue.put_nowait):
        with pytest.raises(STANDARD_SHUTDOWN):
            put("b")


def test_after_an_immediate_shutdown_get_is_refused_at_once(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    queue.shutdown(immediate=True)
    for get in (queue.get, queue.get_nowait):
        with pytest.raises(STANDARD_SHUTDOWN):
            get()
    with pytest.raises(STANDARD_SHUTDOWN):
        queue.put("b")


def test_shutdown_twice_is_harmless_and_may_become_immediate(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    queue.shutdown()
    queue.shutdown(immediate=True)
    queue.shutdown()
    with pytest.raises(STANDARD_SHUTDOWN):
        queue.get()


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_wakes_every_waiting_get(make_with_shutdown, immediate):
    queue = make_with_shutdown()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(queue.get) for _ in range(3)]
        eventually(lambda: _waits(queue))
        queue.shutdown(immediate)
        assert all(isinstance(each.exception(PATIENCE), STANDARD_SHUTDOWN) for each in waiting)


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_wakes_every_waiting_put_and_stores_nothing_of_it(make_with_shutdown, immediate):
    queue = make_with_shutdown(1)
    queue.put("a")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(queue.put, n) for n in range(3)]
        eventually(lambda: _waits(queue))
        queue.shutdown(immediate)
        assert all(isinstance(each.exception(PATIENCE), STANDARD_SHUTDOWN) for each in waiting)
    if not immediate:
        assert queue.get() == "a"
    with pytest.raises(STANDARD_SHUTDOWN):
        queue.get()


def test_an_immediate_shutdown_ends_a_join_that_waits_for_items_in_the_queue(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(lambda: _waits(queue))
        queue.shutdown(immediate=True)
        joined.result(PATIENCE)


def test_a_join_waits_for_an_item_in_hand_even_after_an_immediate_shutdown(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    queue.put("b")
    queue.get()
    queue.shutdown(immediate=True)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(lambda: _waits(queue))
        assert not joined.done()
        queue.task_done()
        joined.result(PATIENCE)


def test_join_works_after_shutdown_as_before(make_with_shutdown):
    queue = make_with_shutdown()
    queue.put("a")
    queue.shutdown()
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(lambda: _waits(queue))
        queue.get()
        assert not joined.done()
        queue.task_done()
        joined.result(PATIENCE)


# --- ours


def test_our_exceptions_are_those_of_the_standard_library_too():
    assert issubclass(Empty, standard.Empty)
    assert issubclass(Full, standard.Full)
    assert issubclass(DiskFullError, standard.Full)
    if sys.version_info >= (3, 13):
        assert issubclass(ShutDown, standard.ShutDown)
    assert all(issubclass(each, QueueError) for each in (Empty, Full, ShutDown))


def test_it_has_every_public_method_of_queue_queue(queue):
    public = {name for name in dir(standard.Queue) if not name.startswith("_")}
    assert public <= set(dir(queue))


def test_empty_and_full_carry_their_facts(open_queue):
    queue = open_queue(maxsize=1)
    with pytest.raises(Empty) as empty:
        queue.get(timeout=0.01)
    assert (empty.value.wanted, empty.value.timeout) == (1, 0.01)
    with pytest.raises(Empty) as empty:
        queue.get_nowait()
    assert (empty.value.wanted, empty.value.timeout) == (1, None)
    queue.put("a")
    with pytest.raises(Full) as full:
        queue.put("b", timeout=0.01)
    assert (full.value.unit, full.value.limit, full.value.used, full.value.added) == ("items", 1, 1, 1)


def test_put_waits_for_room_in_bytes_as_well(open_queue):
    queue = open_queue(max_bytes=300_000, durability="off")
    with suppress(Full):
        while True:
            queue.put(bytes(50_000), block=False)
    full = queue.qsize()
    assert full > 1
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(queue.put, b"x" * 50_000, timeout=PATIENCE)
        eventually(lambda: _waits(queue))
        assert queue.qsize() == full
        assert [queue.get() for _ in range(full)] == [bytes(50_000)] * full
        done.result(PATIENCE)
    assert queue.get() == b"x" * 50_000


def test_put_does_not_wait_for_room_on_the_disk(queue, monkeypatch):
    def refuse(_):
        raise DiskFullError("bytes", 10, 10, 0)

    monkeypatch.setattr(queue._engine, "append", refuse)
    begun = time.monotonic()
    with pytest.raises(DiskFullError):
        queue.put("a", timeout=PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_the_items_outlive_a_shutdown(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    queue.shutdown(immediate=True)
    assert queue.qsize() == 2
    queue.close()
    assert open_queue().pop(2) == ["a", "b"]


def test_a_shutdown_refuses_push_and_ends_blocking_pop_and_peek(queue):
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(verb, 2, blocking=True) for verb in (queue.pop, queue.peek)]
        eventually(lambda: _waits(queue))
        queue.push("a")
        queue.shutdown()
        assert all(isinstance(each.exception(PATIENCE), ShutDown) for each in waiting)
    for items in ("b", ["b", "c"], []):
        with pytest.raises(ShutDown):
            queue.push(items)
    assert queue.peek(1, blocking=True) == "a"  # it is there and need not be waited for
    assert queue.pop(1, blocking=True) == "a"


def test_after_an_immediate_shutdown_the_items_can_be_looked_at_without_waiting(queue):
    queue.push(["a", "b"])
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.pop(1, blocking=True)
    assert queue.peek(2) == ["a", "b"]
    assert queue.delete() == 1


def test_join_waits_for_items_of_yesterday_and_of_others(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    queue.close()
    queue, other = open_queue(), open_queue()
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.join)
        eventually(lambda: _waits(queue))
        queue.get()
        queue.task_done()
        assert not joined.done()
        other.pop()  # what others take and have not finished is not seen
        joined.result(PATIENCE)


def test_join_does_not_overlook_an_item_that_get_is_just_taking(queue, monkeypatch):
    removed, go_on = threading.Event(), threading.Event()
    real = queue._engine.take

    def take(*args):
        taken = real(*args)
        removed.set()  # the item is on disk no more, and get() has not returned yet
        go_on.wait(PATIENCE)
        return taken

    monkeypatch.setattr(queue._engine, "take", take)
    queue.push("a")
    with ThreadPoolExecutor(2) as pool:
        got = pool.submit(queue.get)
        assert removed.wait(PATIENCE)
        joined = pool.submit(queue.join)
        eventually(lambda: joined.done() or _waits(queue))
        overlooked = joined.done()
        go_on.set()
        assert not overlooked
        assert got.result(PATIENCE) == "a"
        assert not joined.done()
        queue.task_done()
        joined.result(PATIENCE)


def test_task_done_counts_what_get_gave_out_and_not_what_pop_did(queue):
    queue.push(["a", "b"])
    queue.pop()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.get()
    queue.task_done()


def test_a_get_that_fails_leaves_nothing_in_hand(open_queue):
    def loads(payload):
        raise ValueError(payload)

    queue = open_queue(loads=loads)
    queue.put("a")
    for _ in range(2):
        with pytest.raises((DecodeError, CorruptItemError)):
            queue.get()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.delete()
    queue.join()


def test_a_closed_queue_ends_get_with_closed_error_and_not_with_shutdown(open_queue):
    queue = open_queue()
    queue.shutdown()
    queue.close()
    with pytest.raises(ClosedError):
        queue.get()
