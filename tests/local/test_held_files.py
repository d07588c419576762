"""What a flush gave back and other processes hold still: it is said, and they let go of it."""

import fcntl
import logging
import os
import select
from contextlib import contextmanager, suppress

import pytest
from processes import Sleeps, eventually, forked, status_of

from lmdbqueue import Empty, PersistentQueue
from lmdbqueue._host.flock import LeftFile

FAST = {"durability": "off"}


def _idle(place, told, ready):
    """Use the queue once, and then once for each byte that comes."""
    with PersistentQueue("queue", place, **FAST) as queue:
        while True:
            assert len(queue)
            os.write(ready, b"1")
            if not os.read(told, 1):
                break


def _waiting(place, told, ready):
    with PersistentQueue("queue", place, name="other", **FAST) as queue:
        Sleeps(queue, lambda: os.write(ready, b"1"))
        while not select.select([told], [], [], 0)[0]:
            with suppress(Empty):
                assert queue.get(timeout=1) == "the end"
                break


@contextmanager
def _another(fn, place):
    """Run ``fn`` in another process, which ends with the block at the latest; give what tells it, and what it tells."""
    told, tell = os.pipe()
    heard, ready = os.pipe()

    def run():
        os.close(tell)  # so that it ends with its parent, too
        fn(str(place), told, ready)

    pid = forked(run)
    os.close(told)
    os.close(ready)
    try:
        yield tell, heard
    finally:
        os.close(tell)
        assert status_of(pid) == 0
        os.close(heard)


@pytest.fixture
def queue(open_queue):
    queue = open_queue(**FAST)
    queue.push([b"x" * 100_000] * 20)
    queue.delete(19)
    return queue


def _held(queue):
    return queue._engine.environment.held_elsewhere()


def test_a_flush_says_how_many_idle_processes_hold_the_old_file_and_their_next_call_lets_it_go(queue, tmp_path, caplog):
    with _another(_idle, tmp_path) as (tell, heard), _another(_idle, tmp_path) as (_, heard_other):
        os.read(heard, 1)
        os.read(heard_other, 1)
        with caplog.at_level(logging.INFO, "lmdbqueue"):
            assert queue.flush(force=True) > 1_000_000
        assert "2 processes have not released the old file yet" in caplog.text
        assert _held(queue) == 2
        os.write(tell, b"1")
        os.read(heard, 1)
        eventually(lambda: _held(queue) == 1)
    assert _held(queue) == 0


def _locking(place, told, ready):
    with open(os.path.join(place, "another"), "wb") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.write(ready, b"1")
        os.read(told, 1)


def test_a_file_that_is_made_when_the_old_one_was_removed_is_not_taken_for_it(tmp_path):
    """Most file systems give it the same inode, unless somebody has the old one open."""
    old = tmp_path / "old"
    old.touch()
    left = LeftFile(os.fspath(old))
    old.unlink()
    with _another(_locking, tmp_path) as (_, heard):
        os.read(heard, 1)
        assert left.others() == 0
    left.close()
    assert left.others() is None


def test_a_flush_that_nobody_else_holds_a_file_of_keeps_no_descriptor(queue):
    before = len(os.listdir("/proc/self/fd"))
    assert queue.flush(force=True) > 1_000_000
    assert _held(queue) == 0
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)  # once the old generation is closed


def test_a_process_that_waits_lets_go_of_the_old_file_by_itself(queue, open_queue, tmp_path):
    other = open_queue(name="other", **FAST)
    with _another(_waiting, tmp_path) as (_, heard):
        os.read(heard, 1)
        assert queue.flush(force=True) > 1_000_000
        eventually(lambda: _held(queue) == 0)
        other.push("the end")
