"""``stats()``: what it says of a queue and its file is what is there, at a cost that does not depend on the length."""

import os
import pickle
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from processes import eventually, finish, forked, start, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue._host import flock
from lmdbqueue._lmdb import free_pages
from lmdbqueue._model import readers


def test_figures_of_items_say_where_each_is(queue):
    queue.push(list(range(10)))
    queue.push("later", delay=3600)
    queue.pop(2)
    with pytest.raises(ZeroDivisionError), queue.lease(1):
        _ = 1 / 0
    queue.lease(3)
    stats = queue.stats()
    assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (5, 3, 1, 0)
    assert (stats.pushed, stats.removed, stats.head, stats.tail) == (11, 2, 5, 11)


def test_figures_cannot_be_changed_and_can_be_pickled(queue):
    stats = queue.stats()
    with pytest.raises(AttributeError):
        stats.waiting = 1
    assert pickle.loads(pickle.dumps(stats)) == stats


@pytest.mark.parametrize("left", [0, 1, 3000])
def test_bytes_free_are_those_that_a_flush_gives_back(queue, left):
    queue.push(["x" * 1000] * 20_000)
    queue.delete(20_000 - left)
    before = queue.stats()
    assert before.bytes_free > 20_000_000 - left * 2000
    assert queue.flush(force=True) == before.bytes_free
    after = queue.stats()
    assert before.file_size - after.file_size == before.bytes_free
    assert after.bytes_free == 0
    assert left * 1000 <= after.bytes_used < left * 1500 + 100_000
    assert (before.generation, after.generation) == (1, 2)


def test_file_size_is_that_of_the_file(queue, tmp_path):
    queue.push(["x" * 1000] * 2_000)
    assert queue.stats().file_size == os.path.getsize(tmp_path / "queue" / "00000001.mdb")


def test_readers_are_told_with_their_lag(queue):
    assert queue.stats().readers == ()
    queue.push(list(range(10)))
    queue.reader("slow")
    queue.reader("fast").delete(7)
    found = queue.stats().readers
    assert found == tuple(queue.readers())
    assert [(each.name, each.lag) for each in found] == [("fast", 3), ("slow", 10)]


def test_lag_among_gaps_costs_no_more_than_the_way_to_the_nearer_end(queue):
    queue.reader("slow")
    queue.push(list(range(1000)))
    queue.push("later", delay=3600)  # its number has no item
    queue.push(list(range(1000)))
    queue.reader("middle").delete(1000)
    queue.reader("fast").delete(1990)
    steps = []

    def counted(keys):
        for key in keys:
            steps.append(key)
            yield key

    class Cursor:
        """One that counts its steps."""

        def __init__(self, cursor):
            self._cursor = cursor

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._cursor.close()

        def iternext(self, **options):
            return counted(self._cursor.iternext(**options))

        def iterprev(self, **options):
            return counted(self._cursor.iterprev(**options))

        def __getattr__(self, name):
            return getattr(self._cursor, name)

    def lag(txn, tables, name):
        return readers.lag(
            SimpleNamespace(cursor=lambda db: Cursor(txn.cursor(db)), get=txn.get, stat=txn.stat), tables, name
        )

    queue.reader("second", start=1).seek(2)
    for name, expected, most in (("slow", 2000, 5), ("second", 1998, 10), ("fast", 10, 30), ("middle", 1000, 2010)):
        steps.clear()
        assert queue._engine.environment.view(queue._engine.ref, lag, name) == expected
        assert len(steps) < most, name


def test_figures_in_a_transaction_are_those_of_the_transaction(queue):
    with queue.transaction():
        queue.push([1, 2])
        assert queue.stats().pushed == 2


# --- processes


def hold_open(place, ready, end):
    queue = PersistentQueue("queue", place)
    queue.push(0)
    with open(ready, "w"):
        pass
    eventually(lambda: os.path.exists(end))
    queue.close()


needs_locks = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="this system shows no locks")


@needs_locks
def test_processes_are_those_that_have_it_open_and_no_dead_one(queue, tmp_path):
    assert queue.stats().processes == 1
    with PersistentQueue("queue", tmp_path, name="another") as another:
        assert another.stats().processes == 1  # the same process
    end = os.fspath(tmp_path / "end")
    others = [start("spawn", hold_open, os.fspath(tmp_path), f"{end}-{index}", end) for index in range(2)]
    eventually(lambda: queue.stats().processes == 3)
    queue.flush(force=True)  # who did not look since has it open, too
    assert queue.stats().processes == 3
    others[0].kill()
    others[0].join()
    assert queue.stats().processes == 2
    with open(end, "w"):
        pass
    finish(others[1:])
    assert queue.stats().processes == 1


@needs_locks
def test_a_forked_child_counts_once_it_uses_the_queue(queue, tmp_path):
    end = os.fspath(tmp_path / "end")

    def child():
        assert queue.stats().processes == 2
        eventually(lambda: os.path.exists(end))

    pid = forked(child)
    eventually(lambda: queue.stats().processes == 2)
    with open(end, "w"):
        pass
    assert status_of(pid) == 0
    eventually(lambda: queue.stats().processes == 1)


@needs_locks
def test_a_process_that_waits_to_open_it_does_not_count(queue, tmp_path):
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    waiting = subprocess.Popen([sys.executable, "-c", program, tmp_path / "queue" / "session"])
    try:
        eventually(lambda: re.search(rf"-> FLOCK .* {waiting.pid} ", locks()))
        assert queue.stats().processes == 1
    finally:
        waiting.kill()
        waiting.wait()


def locks():
    with open("/proc/locks") as file:
        return file.read()


@needs_locks
def test_processes_of_a_queue_next_door_do_not_count(open_queue):
    first, second = open_queue("first"), open_queue("second")
    assert (first.stats().processes, second.stats().processes) == (1, 1)


def test_processes_are_not_known_where_the_system_does_not_tell(queue, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(flock, "open", refuse, raising=False)
    assert queue.stats().processes is None


def test_figures_are_had_though_a_flush_takes_the_file_away_meanwhile(open_queue, monkeypatch):
    """Of another thread, or of another process: what the pages take is read by the name of the file."""
    queue = open_queue()
    queue.push(["a", "b"])
    used, flushed = free_pages.used, []

    def used_after_a_flush(path, transaction):
        if not flushed:
            thread = threading.Thread(target=queue.flush, args=(True,))
            flushed.append(thread)
            thread.start()
            thread.join()
            assert not os.path.exists(path)
        return used(path, transaction)

    monkeypatch.setattr(free_pages, "used", used_after_a_flush)
    assert queue.stats().waiting == 2
    assert flushed
