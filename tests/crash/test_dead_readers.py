"""A reader that is killed amid a read: what it held is given back though nobody opens the file again."""

import os
import signal
import subprocess
import sys

from processes import eventually, forked, generations, status_of, touch

SIZE = 100_000  # bytes of an item
ROUNDS = 600  # 60 MB in all


def _read_until_killed(queue, begun):
    def read(_txn, _tables):
        touch(begun)
        signal.pause()

    queue._engine.environment.view(queue._engine.ref, read)


def _size(queue):
    (name,) = generations(queue._engine.path)
    return os.path.getsize(os.path.join(queue._engine.path, name))


def test_the_file_does_not_grow_for_a_reader_that_was_killed(open_queue, tmp_path):
    queue = open_queue()
    queue.push(b"x" * SIZE)
    begun = os.fspath(tmp_path / "begun")
    child = forked(_read_until_killed, queue, begun)
    eventually(lambda: os.path.exists(begun))
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    for _ in range(ROUNDS):
        queue.push(b"x" * SIZE)
        queue.pop()
    assert _size(queue) < 5_000_000


def test_a_living_reader_keeps_its_snapshot(open_queue, tmp_path):
    queue = open_queue()
    queue.push(b"first" * SIZE)

    program = f"""
from lmdbqueue import PersistentQueue
with PersistentQueue("queue", {str(tmp_path)!r}) as queue:
    for _ in range(100):
        queue.push([b"x" * {SIZE}] * 5)
        queue.delete(5)
"""

    def look_late(txn, tables):
        before = bytes(next(txn.cursor(tables.items).iternext())[1])
        subprocess.run([sys.executable, "-c", program], check=True)
        return before == next(txn.cursor(tables.items).iternext())[1]

    assert queue._engine.environment.view(queue._engine.ref, look_late)


def _fork_amid_a_read(queue, place):
    def look_late(txn, tables):
        before = bytes(next(txn.cursor(tables.items).iternext())[1])
        child = forked(queue.push, "by the child")
        assert status_of(child) == 1  # ForkError
        for _ in range(6):
            assert status_of(forked(_push_and_pop, place)) == 0
        return before == next(txn.cursor(tables.items).iternext())[1]

    assert queue._engine.environment.view(queue._engine.ref, look_late)


def _push_and_pop(place):
    program = f"from lmdbqueue import PersistentQueue as Q; q = Q('queue', {str(place)!r}); q.push([bytes(99999)] * 9)"
    subprocess.run([sys.executable, "-c", program + "; q.delete(9)"], check=True)


def test_a_fork_by_a_handler_amid_a_read_takes_no_snapshot_from_the_reader(open_queue, tmp_path):
    """The child must not end what it inherited: that would free the slot of its parent's reader."""
    queue = open_queue()
    queue.push(b"first" * SIZE)
    assert status_of(forked(_fork_amid_a_read, queue, tmp_path)) == 0
