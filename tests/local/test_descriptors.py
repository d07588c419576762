"""Descriptors that run out: at any step of opening and of every verb, in one process again and again.

What fails says what is missing, leaks nothing, keeps nothing locked, and changes nothing.
"""

import gc
import os
import resource
import sys
from contextlib import contextmanager, suppress

import pytest
from processes import DEADLINE, forked, in_a_small_process, status_of

from lmdbqueue import PersistentQueue, QueueError, StorageError
from lmdbqueue._host import departures
from lmdbqueue._host.descriptors import names_in, open_folder
from lmdbqueue._local import environment as _env

MOST = 30  # free descriptors; opening needs fewer
FAST = {"durability": "off"}


def test_a_directory_is_listed_whole_whatever_others_have_read_of_it_by_the_same_description(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    folder = open_folder(str(tmp_path))
    other = os.dup(folder)  # as a forked child has it
    with os.scandir(other) as entries:
        next(entries)
        assert os.listdir(folder) == []  # how a child missed the live generation
        assert sorted(names_in(folder)) == ["a", "b", "c"]
    os.close(other)
    os.close(folder)


def _open_files():
    """Return what is open, by descriptor, but for what lists it."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@contextmanager
def _free(count):
    """Let only so many descriptors be free in the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(_open_files()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + MOST + 1, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _opened_elsewhere(place, items):
    """Demand that another process, which has descriptors, can open the queue and finds it whole."""

    def look():
        with PersistentQueue("queue", place, **FAST) as queue:
            assert queue.check() == []
            assert list(queue) == items

    assert status_of(forked(look), 10) == 0


def _open_with_few(place, count):
    """Open and close once; tell whether there were enough descriptors."""
    with _free(count):
        try:
            queue = PersistentQueue("queue", place, **FAST)
        except StorageError as error:
            told = str(error)
            del error
        else:
            queue.close()
            return True
    assert "Too many open files" in told
    assert "ulimit -n" in told
    return False


def _run_out_at_opening(place, is_new, order):
    if not is_new:
        with PersistentQueue("queue", place, **FAST) as queue:
            queue.push(["a", "b"])
    gc.collect()
    assert departures.wait(DEADLINE)
    others = {*_env.environments}  # that tests before this one have left
    before = _open_files()
    opened = []
    for count in order:
        for _ in range(2):
            opened.append(_open_with_few(place, count))
            assert departures.wait(DEADLINE)
            gc.collect()
            assert {*_env.environments} == others
            assert _open_files() == before, count
        if is_new and any(opened):
            break
        if count % 5 == 0 and os.path.exists(place / "queue" / "queue.json"):
            _opened_elsewhere(place, [] if is_new else ["a", "b"])
    assert True in opened
    assert False in opened
    _opened_elsewhere(place, [] if is_new else ["a", "b"])


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("order", ["up", "down"])
def test_opening_with_few_descriptors_leaks_none_and_locks_nobody_out(tmp_path, is_new, order):
    counts = range(MOST + 1) if order == "up" or is_new else range(MOST, -1, -1)
    in_a_small_process(_run_out_at_opening, tmp_path, is_new, counts)


def _lease(queue):
    lease = queue.lease()
    lease.nack()


def _push_within_bytes(queue):
    queue.max_bytes = 1
    try:
        queue.push("more")
    finally:
        queue.max_bytes = None


VERBS = {
    "push": lambda queue: queue.push("more"),
    "push within a limit of bytes": _push_within_bytes,
    "pop": lambda queue: queue.pop(),
    "get": lambda queue: queue.get(timeout=0.001),
    "peek": lambda queue: queue.peek(3),
    "lease": _lease,
    "stats": lambda queue: queue.stats(),
    "reader": lambda queue: queue.reader("reader").pop(),
    "flush": lambda queue: queue.flush(force=True),
    "check": lambda queue: queue.check(),
    "copy": lambda queue: queue.copy("copy").close(),
    "drop": lambda queue: queue.drop_queue("other"),
    "wait for what does not come": lambda queue: queue.peek(9, blocking=True, timeout=0.001),
}


def _run_out_in_a_verb(place, verb):
    for count in range(0, MOST + 1, 3):
        with PersistentQueue("queue", place, **FAST) as queue, PersistentQueue("queue", place, name="other", **FAST):
            queue.clear(all=True)
            queue.push(["a", "b"])
            for _ in range(2):
                with _free(count), suppress(QueueError, KeyError):
                    VERBS[verb](queue)
            queue.clear(all=True)
            queue.push("c")
            assert list(queue) == ["c"]
            assert queue.check() == []
            if count % 6 == 0:
                _opened_elsewhere(place, ["c"])
        assert departures.wait(DEADLINE)
        gc.collect()
        assert not [each for each in _open_files().values() if each.startswith(os.fspath(place))], (verb, count)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_with_few_descriptors_leaks_none_and_goes_well_afterwards(tmp_path, verb):
    in_a_small_process(_run_out_in_a_verb, tmp_path, verb)


def _close_with_few(place):
    for count in range(MOST + 1):
        before = _open_files()
        queue = PersistentQueue("queue", place)
        queue.push(count)
        queue.lease()
        with _free(count):
            queue.close()
        assert _open_files() == before
        _expected = list(range(count + 1))
        with PersistentQueue("queue", place) as again:
            assert list(again) == _expected


def test_closing_with_few_descriptors_closes(tmp_path):
    in_a_small_process(_close_with_few, tmp_path)


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)])
def test_no_file_of_a_queue_is_standard_input_output_or_error(tmp_path, closed):
    code = f"""
import os
from lmdbqueue import PersistentQueue
queue = PersistentQueue("queue", {str(tmp_path)!r})
queue.push(1)
for fd in {closed}:
    assert os.readlink(f"/proc/self/fd/{{fd}}") == os.devnull, fd
    os.close(fd)
assert queue.pop() == 1
os._exit(77)
"""

    def begin():
        for fd in closed:
            os.close(fd)
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606

    assert status_of(forked(begin), DEADLINE) == 77


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_a_program_that_is_executed_inherits_no_file_of_a_queue(open_queue, durability):
    queue = open_queue(durability=durability)
    queue.push("item")
    queue.flush(force=True)
    with queue.lease():
        found = {fd: file for fd, file in _open_files().items() if queue.filename in file.split("/")}
        assert any(file.endswith(".mdb") for file in found.values())
        assert {file for fd, file in found.items() if os.get_inheritable(fd)} == set()
