"""What somebody does to the files and the directory of a queue: noticed where it loses something, else mended.

Each test of what goes on while a queue is open has another process as the one that would lose an acknowledged push.
"""

import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
from processes import forked, status_of, tree

import lmdbqueue
from lmdbqueue import CorruptQueueError, GoneError, PersistentQueue, StorageError
from lmdbqueue._host.owners import is_owner
from lmdbqueue.cli import _bare


@pytest.fixture
def place(tmp_path):
    """Give a directory with a queue of two items in it, beside a backup with one."""
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("backed up")
        queue.copy("backup").close()
        queue.push("pushed since")
    return tmp_path


def _swap_the_directory(place):
    os.rename(place / "queue", place / "queue.old")
    os.rename(place / "backup", place / "queue")


def _rename_the_directory(place):
    os.rename(place / "queue", place / "queue.old")


def _swap_the_parent(place):
    parent = place.parent / f"{place.name}.old"
    os.rename(place, parent)
    os.mkdir(place)
    shutil.copytree(parent / "backup", place / "queue")


def _remove_the_directory(place):
    shutil.rmtree(place / "queue")


def _remove(suffix):
    def remove(place):
        (name,) = (name for name in os.listdir(place / "queue") if name.endswith(suffix))
        os.unlink(place / "queue" / name)

    return remove


def _rename_the_file(place):
    os.rename(place / "queue" / "00000001.mdb", place / "elsewhere")


def _replace_the_lock_file(place):
    _remove(".mdb-lock")(place)
    with PersistentQueue("queue", place) as queue:
        queue.push("by another")


CHANGES = {
    "another directory in its place": _swap_the_directory,
    "renamed": _rename_the_directory,
    "another parent directory in its place": _swap_the_parent,
    "removed": _remove_the_directory,
    "the file removed": _remove(".mdb"),
    "the file renamed": _rename_the_file,
    "the lock file removed": _remove(".mdb-lock"),
    "the session removed": _remove("session"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("durability", ["full", "off"])
def test_no_push_is_acknowledged_once_the_queue_stands_elsewhere(tmp_path, change, durability):
    place = tmp_path / "place"
    place.mkdir()
    with PersistentQueue("queue", place, durability=durability) as made:
        made.copy("backup").close()
    queue = PersistentQueue("queue", place, durability=durability)
    queue.push("before")
    assert status_of(forked(CHANGES[change], place)) == 0
    for _ in range(2):
        with pytest.raises(GoneError, match="open the queue again"):
            queue.push("after")
        with pytest.raises(GoneError), queue.transaction():
            pass
    queue.close()


def test_the_verb_at_hand_notices_whichever_it_is(place):
    queue = PersistentQueue("queue", place)
    lease = queue.lease()
    assert status_of(forked(_swap_the_directory, place)) == 0
    for verb in (
        queue.pop,
        lambda: queue.put(1),
        queue.delete,
        lease.ack,
        queue.clear,
        queue.flush,
    ):
        with pytest.raises(GoneError):
            verb()
    queue.close()
    with PersistentQueue("queue", place) as restored:
        assert list(restored) == ["backed up"]
        assert restored.check() == []


def test_an_owner_makes_its_file_where_its_leases_are(place):
    queue = PersistentQueue("queue", place)
    queue.push("more")
    assert status_of(forked(_swap_the_directory, place)) == 0
    with pytest.raises(GoneError):
        queue.lease()
    assert not [name for name in os.listdir(place / "queue") if is_owner(name)]
    assert [name for name in os.listdir(place / "queue.old") if is_owner(name)]
    queue.close()
    assert not [name for name in os.listdir(place / "queue.old") if is_owner(name)]


def test_two_processes_never_write_at_once_though_the_lock_file_was_removed(place):
    queue = PersistentQueue("queue", place)
    queue.push("ours")
    assert status_of(forked(_replace_the_lock_file, place)) == 0
    with pytest.raises(GoneError):
        queue.push("lost")
    queue.close()
    with PersistentQueue("queue", place) as again:
        assert list(again) == ["backed up", "pushed since", "ours", "by another"]
        assert again.check() == []


def test_a_block_that_outlasts_its_lock_file_takes_nothing_back_that_others_were_told(place):
    queue = PersistentQueue("queue", place)
    with pytest.raises(GoneError), queue.transaction():  # noqa: PT012
        queue.push("of the block")
        _remove(".mdb-lock")(place)
        code = f"from lmdbqueue import PersistentQueue; PersistentQueue('queue', {str(place)!r}).push('by another')"
        subprocess.run([sys.executable, "-c", code], check=True)  # no fork: it would be of this block
    queue.close()
    with PersistentQueue("queue", place) as again:
        assert list(again) == ["backed up", "pushed since", "by another"]
        assert again.check() == []


def test_whoever_reopens_goes_on(place):
    queue = PersistentQueue("queue", place)
    assert status_of(forked(_swap_the_directory, place)) == 0
    with pytest.raises(GoneError):
        queue.push("lost")
    again = PersistentQueue("queue", place)  # while the old object is there
    again.push("new")
    assert list(again) == ["backed up", "new"]
    again.close()
    queue.close()


def test_what_changes_in_the_directory_while_nothing_is_lost_is_no_reason_to_stop(place):
    with PersistentQueue("queue", place) as queue, PersistentQueue("queue", place) as other:
        for number in range(30):
            lease = other.lease()  # makes the file of an owner
            queue.push(number)
            lease.nack()
            if number % 10 == 0:
                queue.flush(force=True)
                os.chmod(place / "queue", 0o700)
        assert queue.check() == []


# --- queue.json

BROKEN = [None, b"", bytes(120), b"{", b"[]", b"null", b'{"format": 1}', b'{"format": "1"}', b"\xff", b'{"format": 0}']


def _break(path, content):
    if content is None:
        os.unlink(path)
    elif content == "cut off":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        with open(path, "wb") as file:
            file.write(content)


@pytest.mark.parametrize("content", [*BROKEN, "cut off"])
def test_a_lost_queue_json_is_written_anew_as_it_was(place, content, caplog):
    path = place / "queue" / "queue.json"
    before = path.read_bytes()
    _break(path, content)
    with caplog.at_level(logging.WARNING, "lmdbqueue"), PersistentQueue("queue", place) as queue:
        assert list(queue) == ["backed up", "pushed since"]
    assert path.read_bytes() == before
    (told,) = caplog.messages
    assert "restored from" in told
    assert lmdbqueue.check(place / "queue") == []


@pytest.mark.parametrize("options", [{"checksum": False}, {"durability": "off"}])
@pytest.mark.parametrize("flushes", [0, 1])
def test_options_are_those_that_the_queue_was_made_with(tmp_path, options, flushes):
    with PersistentQueue("queue", tmp_path, **options) as queue:
        queue.push(["a", "b"])
        for _ in range(flushes):
            queue.flush(force=True)
    stored = json.loads((tmp_path / "queue" / "queue.json").read_text())
    for name in ("queue.json", "session", "bell"):  # as a cleaner of old files does
        os.unlink(tmp_path / "queue" / name)
    with pytest.raises(lmdbqueue.OptionError):
        PersistentQueue("queue", tmp_path)
    with PersistentQueue("queue", tmp_path, **options) as queue:
        assert list(queue) == ["a", "b"]
    assert json.loads((tmp_path / "queue" / "queue.json").read_text()) == stored


def test_a_copy_and_a_repaired_queue_remember_their_own_options(place):
    with PersistentQueue("queue", place) as queue:
        queue.copy("copy").close()
    for name in ("queue", "copy", "backup"):
        path = place / name / "queue.json"
        before = path.read_bytes()
        os.unlink(path)
        PersistentQueue(name, place).close()
        assert path.read_bytes() == before
    with open(place / "queue" / "00000001.mdb", "r+b") as file:
        content = file.read()
        file.seek(content.index(b"pushed since"))
        file.write(b"damaged")
    assert lmdbqueue.check(place / "queue", repair=True)
    path = place / "queue" / "queue.json"
    before = path.read_bytes()
    os.unlink(path)
    with PersistentQueue("queue", place) as queue:
        assert list(queue) == ["backed up"]
    assert path.read_bytes() == before


def test_a_flush_goes_on_though_queue_json_was_removed(place):
    with PersistentQueue("queue", place) as queue:
        os.unlink(place / "queue" / "queue.json")
        queue.flush(force=True)
        assert queue.check() == []
    assert (place / "queue" / "queue.json").exists()


def test_check_says_what_it_did(place, capsys):
    path = os.fspath(place / "queue")
    os.truncate(place / "queue" / "queue.json", 10)
    assert _bare.check(path, repair=True) == 1
    told = capsys.readouterr().out
    assert "queue.json" in told
    assert "restored from" in told
    assert "nothing was changed" not in told
    assert told.endswith("repaired\n")
    assert _bare.check(path, repair=False) == 0
    assert capsys.readouterr().out.endswith("whole\n")


def test_a_repair_that_could_not_be_is_not_called_one(place, capsys):
    (file,) = (name for name in os.listdir(place / "queue") if name.endswith(".mdb"))
    with open(place / "queue" / file, "r+b") as data:
        data.write(bytes(1 << 15))
    before = tree(place / "queue")
    assert _bare.check(os.fspath(place / "queue"), repair=True) == 1
    told = capsys.readouterr().out
    assert told.endswith("not whole\n")
    assert "repaired" not in told
    assert {name: hash_ for name, hash_ in tree(place / "queue").items() if name.endswith(".mdb")} == {
        name: hash_ for name, hash_ in before.items() if name.endswith(".mdb")
    }


def test_a_stranger_stays_and_the_repair_says_so(place, capsys):
    (place / "queue" / "notes.txt").write_text("mine")
    assert _bare.check(os.fspath(place / "queue"), repair=True) == 1
    assert capsys.readouterr().out.endswith("not whole\n")
    assert (place / "queue" / "notes.txt").read_text() == "mine"


def test_an_environment_that_remembers_nothing_is_left_alone(place):
    (file,) = (name for name in os.listdir(place / "queue") if name.endswith(".mdb"))
    os.unlink(place / "queue" / "queue.json")
    (place / "queue" / file).write_bytes(b"something else")
    with pytest.raises(CorruptQueueError, match=r"queue\.json is gone"):
        PersistentQueue("queue", place)
    assert (place / "queue" / file).read_bytes() == b"something else"


# --- leftovers of this library's own


LEFT = ["00000002.mdb-lock", "00000002.mdb.tmp", "00000002.mdb.tmp-lock", "ahead-0123abcd.mdb.tmp", "queue.json.tmp"]


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("is_open_elsewhere", [False, True])
def test_what_a_killed_flush_leaves_is_no_finding(place, name, is_open_elsewhere):
    other = PersistentQueue("queue", place) if is_open_elsewhere else None
    (place / "queue" / name).write_bytes(bytes(8192))
    code = f"import lmdbqueue; print(lmdbqueue.check({os.fspath(place / 'queue')!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    if name.endswith(".mdb-lock") or not is_open_elsewhere:
        assert name == "queue.json.tmp" or not (place / "queue" / name).exists()
    if other is not None:
        other.close()


def test_a_flush_after_a_cut_between_its_two_renames_goes_well(place):
    (place / "queue" / "00000002.mdb-lock").write_bytes(bytes(65536))
    with PersistentQueue("queue", place) as queue:
        queue.flush(force=True)
        assert queue.check() == []
        assert list(queue) == ["backed up", "pushed since"]


def test_generations_are_counted_beyond_eight_digits(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
    for end in ("", "-lock"):
        os.rename(tmp_path / "queue" / f"00000001.mdb{end}", tmp_path / "queue" / f"99999999.mdb{end}")
    with PersistentQueue("queue", tmp_path) as queue:
        queue.flush(force=True)
        queue.push("b")
        queue.flush(force=True)
        assert list(queue) == ["a", "b"]
        assert queue.check() == []
    assert (tmp_path / "queue" / "100000001.mdb").exists()


def test_a_copy_made_of_hard_links_is_refused_before_it_takes_the_file_from_the_original(tmp_path):
    """A flush of either would continue in a file of its own, where the other does not look."""
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push([1, 2])
        shutil.copytree(tmp_path / "queue", tmp_path / "linked", copy_function=os.link)

        def flush_the_copy():
            with pytest.raises(StorageError, match="hard links"), PersistentQueue("linked", tmp_path) as linked:
                linked.flush(force=True)
            with pytest.raises(StorageError, match="hard links"):
                lmdbqueue.check(str(tmp_path / "linked"), repair=True)

        assert status_of(forked(flush_the_copy)) == 0
        queue.push(3)
    with pytest.raises(StorageError, match="remove the other directory"):
        PersistentQueue("queue", tmp_path)
    shutil.rmtree(tmp_path / "linked")
    with PersistentQueue("queue", tmp_path) as queue:
        assert (list(queue), queue.check()) == ([1, 2, 3], [])
