"""A program that opens and closes LMDB's lock file, as a backup does, loses LMDB's locks of it, and nothing else."""

import errno
import fcntl
import os
import shutil

import pytest
from processes import eventually, forked, status_of

from lmdbqueue import PersistentQueue, StorageError
from lmdbqueue._host.session import Session
from lmdbqueue._lmdb.opening import LockFile

DURABILITIES = ["full", "interval", "off"]
ITEMS = 20


def _touch(path):
    os.close(os.open(path, os.O_CREAT))


def _back_up(place):
    """Copy the directory as any program would, which closes descriptors of all of its files."""
    shutil.copytree(place / "queue", place / "backup")


@pytest.mark.parametrize("durability", DURABILITIES)
def test_nobody_writes_amid_a_block_of_a_process_that_has_copied_the_directory(tmp_path, durability):
    with PersistentQueue("queue", tmp_path, durability=durability) as queue:
        queue.push("before")
        begun, opens = tmp_path / "begun", tmp_path / "opens"

        def push_as_another():
            eventually(begun.exists)
            join = Session.is_shared
            Session.is_shared = lambda self: (_touch(opens), join(self))[1]  # asked before each write
            with PersistentQueue("queue", tmp_path, durability=durability) as other:
                assert other.pop(3) == ["before", "in the block", "in the block"]
                other.push(list(range(ITEMS)))

        child = forked(push_as_another)
        _back_up(tmp_path)
        with queue.transaction():
            queue.push("in the block")
            _touch(begun)
            eventually(opens.exists)  # it has LMDB's file open, and is about to wait for the lock
            queue.push("in the block")
        assert status_of(child) == 0
        assert list(queue) == list(range(ITEMS))
        assert queue.check() == []


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_a_process_reads_that_has_copied_the_directory_is_not_written_over(tmp_path, durability):
    with PersistentQueue("queue", tmp_path, dumps=bytes, loads=bytes, durability=durability) as queue:
        queue.push([bytes([number]) * 9_000 for number in range(ITEMS)])
        begun = tmp_path / "begun"

        def write_as_another():
            eventually(begun.exists)
            with PersistentQueue("queue", tmp_path, dumps=bytes, loads=bytes, durability=durability) as other:
                for number in range(100, 100 + ITEMS):
                    other.pop()
                    other.push(bytes([number]) * 9_000)
                    other.sync()

        def read_slowly(txn, tables):
            found = list(txn.cursor(tables.items).iternext())
            _touch(begun)
            assert status_of(child) == 0
            assert list(txn.cursor(tables.items).iternext()) == found
            return len(found)

        child = forked(write_as_another)
        _back_up(tmp_path)
        assert queue._engine.environment.view(queue._engine.ref, read_slowly) == ITEMS


def test_readers_of_the_dead_are_cleared_though_one_that_lives_has_lost_its_lock_and_reads_nothing(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
        begun = tmp_path / "begun"

        def die_in_a_read():
            with PersistentQueue("queue", tmp_path) as other:
                other._engine.environment.view(other._engine.ref, lambda *_: (_touch(begun), os._exit(0)))

        assert status_of(forked(die_in_a_read)) == 0
        assert begun.exists()
        _back_up(tmp_path)
        generation = queue._engine.environment._generation
        assert len(generation._env.readers().splitlines()) == 2  # a heading, and that of the dead
        with PersistentQueue("queue", tmp_path, name="other"):
            generation._lock_file.clear_readers(generation._env)
        assert generation._env.readers() == "(no active readers)\n"


def test_a_child_that_cannot_end_a_block_of_its_parent_keeps_none_of_its_locks(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
        lock_file = queue._engine.environment._generation._lock_file
        assert isinstance(lock_file, LockFile)

        def look():
            assert lock_file._fd == -1

        with queue.transaction():
            child = forked(look)
        assert status_of(child) == 0
        assert lock_file._fd >= 0


def test_a_system_without_these_locks_has_those_of_lmdb(tmp_path, monkeypatch):
    call = fcntl.fcntl

    def call_without_them(fd, command, *arguments):
        if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return call(fd, command, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", call_without_them)
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")

        def read_as_another():
            with PersistentQueue("queue", tmp_path) as other:
                assert other.pop() == "a"
                generation = other._engine.environment._generation
                generation._lock_file.clear_readers(generation._env)

        assert status_of(forked(read_as_another)) == 0
        assert len(queue) == 0


@pytest.mark.parametrize(("content", "reason"), [(b"", "not an LMDB file"), (b"\xde\xc0\xef\xbe", "version mismatch")])
def test_a_lock_file_that_lmdb_may_not_set_up_is_no_damage_of_the_queue(content, reason, tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("kept")
    (path,) = (tmp_path / "queue").glob("*.mdb-lock")
    path.write_bytes(content.ljust(path.stat().st_size, b"\0"))
    is_locked, is_told = tmp_path / "locked", tmp_path / "told"

    def lock_as_another():
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_SH, 1)
            _touch(is_locked)
            eventually(is_told.exists)

    child = forked(lock_as_another)
    eventually(is_locked.exists)
    with pytest.raises(StorageError, match=f"-lock was not set up by this version of LMDB .*{reason}"):
        PersistentQueue("queue", tmp_path)
    _touch(is_told)
    assert status_of(child) == 0
    with PersistentQueue("queue", tmp_path) as queue:
        assert queue.pop() == "kept"
