"""Creation and opening: one queue whoever comes first, and errors that touch nothing."""

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from multiprocessing import get_context

import lmdb
import persistent_queue
import pytest
from processes import DEADLINE, drained, eventually, finish, forked, generations, start, status_of, tree

from lmdbqueue import (
    AccessError,
    CorruptQueueError,
    DiskFullError,
    Empty,
    FormatError,
    OptionError,
    PersistentQueue,
    VersionError,
    check,
)

NOBODY = 65534


# --- several at once


def _push_at_once(place, barrier, number):
    barrier.wait(DEADLINE)
    with PersistentQueue("queue", place) as queue:
        queue.push(number)


@pytest.mark.parametrize("turn", range(5))
def test_eight_processes_that_create_a_queue_at_once_create_one(tmp_path, turn):
    del turn
    barrier = get_context("fork").Barrier(8)
    finish([start("fork", _push_at_once, tmp_path, barrier, number) for number in range(8)])
    with PersistentQueue("queue", tmp_path) as queue:
        assert sorted(drained(queue)) == list(range(8))
        assert queue.check() == []
        assert generations(queue._engine.path) == ["00000001.mdb"]
    assert sorted(os.listdir(tmp_path)) == ["queue"]


def test_threads_that_create_a_queue_at_once_create_one(tmp_path):
    for turn in range(10):
        place = tmp_path / str(turn)
        place.mkdir()
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=_push_at_once, args=(place, barrier, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        with PersistentQueue("queue", place) as queue:
            assert sorted(drained(queue)) == list(range(4))
            assert queue.check() == []


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_the_owner_can_read_a_queue_whatever_the_umask(tmp_path, umask):
    previous = os.umask(umask)
    try:
        with PersistentQueue("queue", tmp_path) as queue:
            with pytest.raises(Empty):
                queue.get(timeout=0.001)  # makes the bell
            queue.push("a")
            queue.flush(force=True)
            queue.copy("copy").close()
    finally:
        os.umask(previous)
    for directory in (tmp_path / "queue", tmp_path / "copy"):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert {stat.S_IMODE(os.stat(directory / name).st_mode) for name in os.listdir(directory)} == {0o600}


# --- refused, and nothing touched


def _assert_refused(place, error, *words, **options):
    before = tree(place)
    with pytest.raises(error) as caught:
        PersistentQueue("queue", place, **options)
    assert type(caught.value) is error
    assert tree(place) == before
    for word in (str(place), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("items", [0, 1, 3, 1_000])
def test_a_file_of_python_persistent_queue_is_refused_by_its_name(tmp_path, items):
    old = persistent_queue.PersistentQueue("queue", str(tmp_path))
    old.push(list(range(items)))
    old.delete(items // 3)
    old.file.close()
    command = f"lmdbqueue import {os.fspath(tmp_path / 'queue')!r} DEST"
    _assert_refused(tmp_path, FormatError, "python-persistent-queue", f" {items - items // 3:,} items", command)


def test_a_large_file_of_python_persistent_queue_is_refused_by_its_name_too(tmp_path):
    old = persistent_queue.PersistentQueue("queue", str(tmp_path))
    old.push([b"x" * 300_000])
    old.file.close()
    _assert_refused(tmp_path, FormatError, "python-persistent-queue")


def test_a_database_is_refused_with_the_command_that_imports_it(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "queue")) as db:
        db.execute("CREATE TABLE queue (id, item)")
    _assert_refused(tmp_path, FormatError, "an SQLite database", "lmdbqueue import")


@pytest.mark.parametrize("name", ["q00000", "data.db"])
def test_a_directory_of_another_library_is_refused_with_the_command_that_imports_it(tmp_path, name):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / name).touch()
    _assert_refused(tmp_path, FormatError, "lmdbqueue import")


@pytest.mark.parametrize("subdir", [True, False], ids=["a directory", "a file"])
def test_an_environment_of_somebody_else_is_refused(tmp_path, subdir):
    with lmdb.open(str(tmp_path / "queue"), subdir=subdir) as env, env.begin(write=True) as txn:
        txn.put(b"their", b"data")
    _assert_refused(tmp_path, FormatError, "an LMDB environment of another program")


@pytest.mark.parametrize("name", ["letter", ".hidden", "queue.json.bak", "session", "00000002.mdb.tmp"])
def test_a_directory_with_other_files_is_refused(tmp_path, name):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / name).write_text("dear")
    _assert_refused(tmp_path, FormatError, name)


def test_a_directory_with_a_directory_is_refused(tmp_path):
    (tmp_path / "queue" / "folder").mkdir(parents=True)
    _assert_refused(tmp_path, FormatError, "folder")


@pytest.mark.parametrize("content", [b"", b"x", b"some text\n" * 100, bytes(100)])
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "queue").write_bytes(content)
    _assert_refused(tmp_path, FormatError)


def test_an_empty_directory_becomes_a_queue(tmp_path):
    (tmp_path / "queue").mkdir()
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
        assert queue.check() == []


@pytest.fixture
def place(tmp_path):
    """Give a directory with a queue in it that is not open."""
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push(["a", "b"])
    return tmp_path


def test_a_queue_of_a_newer_format_is_refused_by_its_version(place):
    file = place / "queue" / "queue.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2, "novelty": True}))
    _assert_refused(place, VersionError, "format 2", "upgrade")


@pytest.mark.parametrize(("option", "other"), [("durability", "off"), ("checksum", False)])
def test_another_value_for_a_fixed_option_is_refused_with_both_values(place, option, other):
    stored = {"durability": "full", "checksum": True}[option]
    _assert_refused(place, OptionError, f"{option}={stored!r}", repr(other), **{option: other})
    with PersistentQueue("queue", place) as queue:  # and while it is open
        with pytest.raises(OptionError):
            PersistentQueue("queue", place, **{option: other})
        assert queue.pop(2) == ["a", "b"]


@pytest.mark.parametrize("rest", [["queue.json"], ["queue.json", "session", "bell"]])
def test_options_without_an_environment_are_reported_and_left_alone(place, rest):
    assert set(rest) < set(os.listdir(place / "queue"))
    for name in set(os.listdir(place / "queue")) - set(rest):
        os.unlink(place / "queue" / name)
    _assert_refused(place, CorruptQueueError, "generation 1")


def _cut(path):
    os.truncate(path, 8192)


def _empty(path):
    os.truncate(path, 0)


def _zero(path):
    size = os.path.getsize(path)
    with open(path, "wb") as file:
        file.write(bytes(size))


def _replace_by_text(path):
    with open(path, "wb") as file:
        file.write(b"some text\n" * 2_000)


def _replace_by_another_environment(path):
    os.unlink(path)
    with lmdb.open(path, subdir=False) as env, env.begin(write=True) as txn:
        txn.put(b"their", b"data")


@pytest.mark.parametrize("damage", [_cut, _empty, _zero, _replace_by_text, _replace_by_another_environment])
def test_a_damaged_environment_is_reported_and_left_alone(place, damage):
    path = str(place / "queue" / "00000001.mdb")
    damage(path)
    os.unlink(path + "-lock")
    # in a process of its own: a file that is cut off may end it with SIGBUS
    assert status_of(forked(_assert_refused_environment, place)) == 0


def _assert_refused_environment(place):
    with open(place / "queue" / "00000001.mdb", "rb") as file:
        before = file.read()
    with pytest.raises(CorruptQueueError):
        PersistentQueue("queue", place)
    with open(place / "queue" / "00000001.mdb", "rb") as file:
        assert file.read() == before


def _push_much_and_remove_it_in_one_commit(queue, much):
    environment = queue._engine.environment
    verbs = [lambda: queue.push([b"x" * 20_000] * much), lambda: queue.delete(much + 1), lambda: queue.push("last")]
    threads = [threading.Thread(target=verb) for verb in verbs]
    with environment._writer:  # so that the three share a commit
        environment._is_writing = True
        for number, thread in enumerate(threads, 1):
            thread.start()
            eventually(lambda number=number: len(environment._line) == number)
    for thread in threads:
        thread.join(DEADLINE)


def test_a_queue_that_grew_and_shrank_in_one_commit_can_be_opened_again(tmp_path):
    """LMDB does not write pages that one transaction takes and frees: the file may end before its last page."""
    queue = PersistentQueue("queue", tmp_path)
    queue.push("first")
    for much in (5, 50, 500):
        _push_much_and_remove_it_in_one_commit(queue, much)
        queue.close()
        queue = PersistentQueue("queue", tmp_path)
        assert queue.peek(5) == ["last"]
        assert queue.check() == []
    queue.close()


# --- without the right to


def test_a_missing_parent_is_no_place_for_a_queue(tmp_path):
    (tmp_path / "file").write_text("dear")
    before = tree(tmp_path)
    for parent in ("nowhere", "file"):
        with pytest.raises(FormatError) as caught:
            PersistentQueue("queue", tmp_path / parent)
        assert "choose another path" in str(caught.value)
        assert str(tmp_path / parent / "queue") in str(caught.value)
    assert tree(tmp_path) == before


def _import_what_an_opening_imports():
    with tempfile.TemporaryDirectory() as path:
        _open(path)


def _as_nobody(fn, *args):
    """Run ``fn(*args)`` in a child that is not root, to whom no mode would matter."""

    def give_up_rights():
        _import_what_an_opening_imports()
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        fn(*args)

    return status_of(forked(give_up_rights))


def _allow(path, mode):
    os.chmod(path, mode)


@pytest.fixture
def public_place():
    """Give a directory that anybody can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as path:
        _allow(path, 0o755)
        yield path
        _allow(path, 0o755)


def _open(place):
    with PersistentQueue("queue", place) as queue:
        queue.push("a")


def _fail_to_open(place):
    with pytest.raises(AccessError):
        PersistentQueue("queue", place)


def test_an_unwritable_parent_is_no_place_for_a_queue(public_place):
    _allow(public_place, 0o555)
    assert _as_nobody(_fail_to_open, public_place) == 0
    assert tree(public_place) == {}
    _allow(public_place, 0o777)
    assert _as_nobody(_open, public_place) == 0  # so it was the mode


@pytest.mark.parametrize(
    "closed",
    ["", "00000001.mdb", "00000001.mdb-lock", "queue.json", "session"],
    ids=lambda name: name or "the directory",
)
@pytest.mark.parametrize("closed_to", ["writing", "all"])
@pytest.mark.filterwarnings("ignore:.* may be written by other users:RuntimeWarning")
def test_a_queue_with_something_closed_to_its_user_is_refused_and_left_alone(public_place, closed, closed_to):
    _open(public_place)
    directory = os.path.join(public_place, "queue")
    _allow(directory, 0o777)
    for name in os.listdir(directory):
        _allow(os.path.join(directory, name), 0o666)
    shutil.copytree(directory, os.path.join(public_place, "control", "queue"))
    _allow(os.path.join(public_place, "control"), 0o755)
    assert _as_nobody(_open, os.path.join(public_place, "control")) == 0  # with everything open it works
    shutil.rmtree(os.path.join(public_place, "control"))
    if (closed, closed_to) == ("queue.json", "writing"):
        pytest.skip("it is never written again")
    mode = (0o555 if closed == "" else 0o444) if closed_to == "writing" else 0o000
    _allow(os.path.join(directory, closed), mode)
    before = tree(public_place)
    assert _as_nobody(_fail_to_open, public_place) == 0
    after = tree(public_place)
    after["queue/session"] = before["queue/session"]  # which tells in what page cache it was looked at
    assert after == before


def test_a_path_in_a_working_directory_that_was_removed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for open_ in (PersistentQueue, check):
        with pytest.raises(FormatError, match="removed"):
            open_("queue")
    PersistentQueue("queue", tmp_path).close()


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_a_write_that_the_disk_cuts_short_is_a_full_disk(tmp_path, monkeypatch, durability):
    """As on a file system with small blocks that has room for some of them: the call reports what it has written."""
    write = os.pwrite
    for cut in range(1, 100):
        calls = 0

        def cut_short(fd, data, offset, cut=cut):
            nonlocal calls
            calls += 1
            return write(fd, data[: len(data) // 2] if calls == cut and len(data) > 1 else data, offset)

        with monkeypatch.context() as cutting, contextlib.suppress(DiskFullError):
            cutting.setattr(os, "pwrite", cut_short)
            with PersistentQueue(f"queue {cut}", tmp_path, durability=durability) as queue:
                queue.push("item")
                queue.sync()
        with PersistentQueue(f"queue {cut}", tmp_path, durability=durability) as queue:
            assert queue.check() == []
            queue.push("item")
        if calls < cut:
            break
    assert cut > 2
