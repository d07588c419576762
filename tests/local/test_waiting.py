"""Who waits for whom: readers for no writer, a fork for no other directory's lock."""

import fcntl
import os
import threading
import time

import pytest
from processes import DEADLINE, eventually, forked, has_ended, is_taken, status_of, touch

from lmdbqueue import PersistentQueue

LONG = 20.0  # seconds that the other process would hold what it holds
SOON = 3.0  # seconds; far more than what does not wait takes, far less than that


def _flush_and_hold_a_block(place, held, until):
    with PersistentQueue("queue", place) as queue:
        queue.flush(force=True)
        with queue.transaction():
            queue.push("uncommitted")
            touch(held)
            eventually(lambda: os.path.exists(until), LONG)
            queue.pop(100)


@pytest.fixture
def beside(tmp_path):
    """Give a queue of two items, amid a block of another process that has flushed before; end it afterwards."""
    queue = PersistentQueue("queue", tmp_path)
    queue.push(["a", "b"])
    queue.reader("r")
    other = PersistentQueue("queue", tmp_path, name="other")
    held, until = os.fspath(tmp_path / "held"), os.fspath(tmp_path / "until")
    child = forked(_flush_and_hold_a_block, tmp_path, held, until)
    eventually(lambda: os.path.exists(held))
    yield queue
    assert not has_ended(child)
    touch(until)
    assert status_of(child) == 0
    queue.push("after")
    assert queue.pop(3)[-1] == "after"
    assert queue.check() == []
    other.close()
    queue.close()


READING = {
    "len": len,
    "peek": lambda queue: queue.peek(3),
    "iteration": list,
    "stats": lambda queue: queue.stats(),
    "empty": lambda queue: queue.empty(),
    "queues": lambda queue: queue.queues(),
    "state": lambda queue: dict(queue.state),
    "peek of a reader": lambda queue: queue.reader("r").peek(2),
    "dead letters": lambda queue: list(queue.dead),
}


@pytest.mark.parametrize("verb", READING)
def test_readers_do_not_wait_for_a_block_of_another_process_that_has_flushed(beside, verb):
    began = time.monotonic()
    for _ in range(3):
        READING[verb](beside)
    assert time.monotonic() - began < SOON


def test_readers_do_not_wait_while_a_writer_of_their_process_does(beside):
    writer = threading.Thread(target=beside.push, args=("late",))
    writer.start()
    eventually(lambda: is_taken(beside._engine.environment._writer))
    began = time.monotonic()
    assert list(beside) == ["a", "b"]
    assert len(beside) == 2
    assert time.monotonic() - began < SOON
    beside.writer = writer


def _hold_the_directory(place, held, until):
    fd = os.open(place / "queue", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    touch(held)
    eventually(lambda: os.path.exists(until), LONG)


@pytest.mark.parametrize("waiting", ["who opens", "who moves on"])
def test_a_fork_does_not_wait_for_the_directory_lock_that_another_process_has(tmp_path, waiting):
    busy = PersistentQueue("busy", tmp_path)
    moving = PersistentQueue("queue", tmp_path)
    moving.push("a")
    if waiting == "who moves on":

        def flush():
            with PersistentQueue("queue", tmp_path) as queue:
                queue.flush(force=True)

        assert status_of(forked(flush)) == 0
    held, until = os.fspath(tmp_path / "held"), os.fspath(tmp_path / "until")
    holder = forked(_hold_the_directory, tmp_path, held, until)
    eventually(lambda: os.path.exists(held))
    found = []

    def wait():
        if waiting == "who opens":
            with PersistentQueue("queue", tmp_path) as queue:
                found.append(len(queue))
        else:
            found.append(len(moving))

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: _is_blocked(thread))
    began = time.monotonic()
    child = forked(busy.push, "by the child")
    taken = time.monotonic() - began
    touch(until)
    assert status_of(holder) == 0
    thread.join(DEADLINE)
    assert taken < 1
    assert found == [1]
    assert status_of(child) == 0
    assert busy.pop() == "by the child"
    assert status_of(forked(moving.push, "b")) == 0
    assert list(moving) == ["a", "b"]
    for queue in (busy, moving):
        assert queue.check() == []
        queue.close()


def _is_blocked(thread):
    """Tell whether a thread waits for a lock of a file."""
    with open(f"/proc/self/task/{thread.native_id}/wchan", encoding="ascii") as file:
        return "lock" in file.read()


def test_writers_of_one_directory_go_on_while_a_fork_waits_for_another(tmp_path):
    """A block of this process holds up a fork, for its patience; pushes elsewhere do not wait as long."""
    slow, busy = PersistentQueue("slow", tmp_path), PersistentQueue("busy", tmp_path)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with slow.transaction():
            entered.set()
            assert leave.wait(DEADLINE)

    longest = [0.0]
    is_over = threading.Event()

    def push():
        while not is_over.is_set():
            began = time.monotonic()
            busy.push("a")
            longest[0] = max(longest[0], time.monotonic() - began)

    threads = [threading.Thread(target=each) for each in (hold, push)]
    for thread in threads:
        thread.start()
    assert entered.wait(DEADLINE)
    began = time.monotonic()
    child = forked(lambda: None)
    taken = time.monotonic() - began
    is_over.set()
    leave.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert status_of(child) == 0
    assert taken > 1  # it did wait
    assert longest[0] < 1
    slow.close()
    busy.close()
