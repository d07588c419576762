"""What is said when something is missing, used up or wrong: what it is, and what to do about it."""

import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
from processes import forked, status_of

from lmdbqueue import (
    CorruptQueueError,
    DecodeError,
    DiskFullError,
    FormatError,
    Full,
    GoneError,
    PersistentQueue,
    StorageError,
    check,
)
from lmdbqueue._host.disk import disk_full, explain
from lmdbqueue.legacy import import_file


def test_a_path_that_is_no_utf_8_is_a_path_like_any_other(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with PersistentQueue(name, tmp_path) as queue:
        queue.push("a")
        queue.flush(force=True)
        with queue.copy(os.fsdecode(b"copi\xe9")) as copied:
            assert copied.pop() == "a"
        assert queue.check() == []
    with PersistentQueue(os.fsdecode(b"caf\xe9"), tmp_path) as queue:
        assert queue.pop() == "a"
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"caf\xe9", b"copi\xe9"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_process_ran_out_of_is_no_fault_of_the_disk(number):
    error = explain(OSError(number, os.strerror(number)), "/q", "opening")
    assert type(error) is StorageError
    assert "disk" not in str(error)
    assert "ulimit" in str(error)


@pytest.mark.parametrize(
    ("number", "unit", "words"),
    [(errno.EDQUOT, "quota", "quota"), (errno.EFBIG, "file size", "ulimit -f"), (errno.ENOSPC, "bytes", "is full")],
)
def test_a_full_disk_says_which_limit_was_met(tmp_path, number, unit, words):
    error = explain(OSError(number, os.strerror(number)), str(tmp_path / "not there yet"), "allocation")
    assert isinstance(error, DiskFullError)
    assert error.unit == unit
    assert words in str(error)


def _run_out_of_inodes(place):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m,nr_inodes=20", "tmpfs", place], check=True)
    try:
        with pytest.raises(DiskFullError) as caught:  # noqa: PT012
            for number in range(100):
                PersistentQueue(str(number), place).close()
        assert caught.value.unit == "files"
        assert "no inode left" in str(caught.value)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_file_system_without_inodes_says_so(tmp_path, needs):
    needs("root", "mount")
    assert status_of(forked(_run_out_of_inodes, str(tmp_path))) == 0


def test_a_limit_on_the_size_of_files_is_told_with_its_limit():
    error = disk_full("/", errno.EFBIG)
    assert "full (" not in str(error)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("missing/queue", FormatError, "it is in '.*/missing', which does not exist; .*: create that directory first"),
        ("file/queue", FormatError, "it is in '.*/file', which is not a directory; .*: choose another path"),
        ("file", FormatError, "it is a file; .*: choose another name"),
        ("link", FormatError, "it is a link to '.*/nowhere', which does not exist; .* or remove the link"),
        ("of others", FormatError, r"it is a directory that holds other files \('theirs'\); .*: choose an empty"),
        (300 * "x", StorageError, "too long; nothing was stored: choose a shorter path"),
    ],
)
def test_a_path_that_can_be_no_queue_is_called_what_it_is(name, error, told, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "of others").mkdir()
    (tmp_path / "of others" / "theirs").touch()
    with pytest.raises(error, match=told):
        PersistentQueue(name, tmp_path)


def test_who_pushes_more_than_the_limit_at_once_is_not_told_to_wait_for_room(tmp_path):
    with PersistentQueue("queue", tmp_path, maxsize=2) as queue:
        with pytest.raises(Full, match="push less at once"):
            queue.push([1, 2, 3])
        queue.push([1, 2])
        with pytest.raises(Full, match=r"remove items, or use put\(\)"):
            queue.push(3)


def test_who_wants_a_queue_that_exists_is_not_told_to_choose_another_name_for_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match=r"it is a file; .*: give the path of a queue's directory"):
        check(tmp_path / "file")


def test_a_path_through_a_file_is_no_queue(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="it is missing"):
        check(tmp_path / "file" / "queue")


def test_a_second_copy_of_the_library_is_told_what_it_is(tmp_path):
    program = f"""
        import sys
        from lmdbqueue import PersistentQueue
        first = PersistentQueue("queue", {str(tmp_path)!r})
        for name in [name for name in sys.modules if name.split(".")[0] == "lmdbqueue"]:
            del sys.modules[name]
        import lmdbqueue
        try:
            lmdbqueue.PersistentQueue("queue", {str(tmp_path)!r})
        except lmdbqueue.StorageError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "loaded twice" in done.stdout
    assert "disk" not in done.stdout


def test_a_dropped_reader_is_told_by_its_name_and_how_it_comes_back(queue):
    reader = queue.reader("billing")
    queue.drop_reader("billing")
    with pytest.raises(GoneError) as caught:
        reader.pop()
    assert "reader 'billing' of queue 'queue'" in str(caught.value)
    assert "creates it again" in str(caught.value)
    assert ".mdb" not in str(caught.value)


def test_a_dead_letter_that_cannot_be_decoded_is_among_the_dead_letters(tmp_path):
    with PersistentQueue("queue", tmp_path, dumps=bytes, loads=json.loads) as queue:
        queue.push(b"no json")
        assert not queue.lease()
        (letter,) = queue.dead
        with pytest.raises(DecodeError, match=r"among the dead letters.*dead.delete\(0\)") as caught:
            letter.item  # noqa: B018
        assert caught.value.is_dead


def test_damaged_pages_name_the_command_that_repairs():
    assert "lmdbqueue check --repair" in str(CorruptQueueError("/q", "a page is wrong"))


def test_an_import_that_was_done_says_that_it_adds_nothing(tmp_path):
    old = tmp_path / "old"
    with open(old, "wb") as file:
        pickled = [pickle.dumps(number) for number in range(3)]
        file.write((3).to_bytes(4, sys.byteorder) + (8).to_bytes(4, sys.byteorder))
        file.writelines(len(each).to_bytes(4, sys.byteorder) + each for each in pickled)
    first = import_file(old, tmp_path / "queue")
    again = import_file(old, tmp_path / "queue")
    assert (first.is_repeated, again.is_repeated) == (False, True)
    assert first.items == again.items


@pytest.mark.parametrize(
    ("package", "extra", "statement"),
    [
        ("psycopg", "postgres", "import lmdbqueue.postgres"),
        ("huey", "huey", "import lmdbqueue.integrations.huey"),
        ("kombu", "celery", "import lmdbqueue.integrations.kombu"),
        ("prometheus_client", "prometheus", "import lmdbqueue.integrations.prometheus"),
        ("opentelemetry", "otel", "import lmdbqueue.integrations.otel"),
        ("opentelemetry", "opentelemetry", "import lmdbqueue.integrations.opentelemetry"),
        ("paho", "mqtt", "from lmdbqueue.forward import MqttTarget; MqttTarget('localhost', topic='a')"),
    ],
)
def test_what_needs_an_extra_names_it(package, extra, statement):
    program = f"""
        import sys
        sys.modules[{package!r}] = None
        try:
            {statement}
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert f"lmdbqueue-persistent[{extra}]'" in done.stdout
