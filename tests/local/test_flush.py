"""The swap of generations, and copies: amid the work of others, and killed at every step."""

import contextlib
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time

import pytest
from processes import (
    DEADLINE,
    KILLED,
    STEP,
    assert_each_item_came_once_and_in_order,
    browse,
    consume,
    eventually,
    finish,
    flush_again_and_again,
    forked,
    generations,
    in_a_small_process,
    killed_at_line,
    produce,
    start,
    status_of,
    touch,
    tree,
)

from lmdbqueue import ClosedError, CorruptQueueError, ExistsError, FormatError, PersistentQueue
from lmdbqueue._host import threads

FAST = {"durability": "off"}


def _size_on_disk(queue):
    (name,) = generations(queue._engine.path)
    return os.path.getsize(os.path.join(queue._engine.path, name))


def _assert_no_leftovers(directory):
    (live,) = generations(directory)
    assert sorted(os.listdir(directory)) == sorted(["bell", "queue.json", "session", live, live + "-lock"])
    assert re.fullmatch(r"\d{8}\.mdb", live)


def _open_files_of_old_generations(pid="self"):
    """Return the queue files that a process has open or mapped though they have no name any more."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        found = [line.split()[-2] for line in maps if line.endswith(".mdb (deleted)\n")]
    found += [name for name in _open_files(pid) if re.search(r"\.mdb(-lock)? \(deleted\)$", name)]
    return found


def _open_files(pid):
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return names


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


# --- what it gives back


@pytest.mark.parametrize(("limit", "flushes"), [(1 << 20, False), (100_000, True), (0, True)])
def test_flush_does_nothing_below_its_limit_unless_forced(open_queue, limit, flushes):
    queue = open_queue(flush_limit=limit, **FAST)
    queue.push([bytes(100_000)] * 3)
    queue.delete(3)
    before = tree(queue._engine.path)
    assert (queue.flush() > 0) == flushes
    assert (tree(queue._engine.path) != before) == flushes
    if not flushes:
        assert queue.flush(force=True) > 0


def test_flush_above_its_limit_returns_by_how_much_the_file_shrank(open_queue):
    queue = open_queue(flush_limit=1_000_000)
    queue.push([b"x" * 1_000] * 2_000)
    queue.delete(1_900)
    before = _size_on_disk(queue)
    given = queue.flush()
    assert given == before - _size_on_disk(queue)
    assert given > 1_500_000
    _assert_no_leftovers(queue._engine.path)
    assert queue.peek(200) == [b"x" * 1_000] * 100
    assert queue.push("next") == 2_000


def test_flush_keeps_every_queue_of_the_directory_also_those_it_has_not_seen(open_queue, tmp_path):
    queues = {name: open_queue(name=name) for name in ("a", "b", "c")}
    for name, queue in queues.items():
        queue.push([name] * 10)
        queue.delete(3)

    def make_another():
        with PersistentQueue("queue", tmp_path, name="elsewhere") as queue:
            queue.push(["e"] * 5)

    assert status_of(forked(make_another)) == 0
    queues["a"].flush(force=True)
    for name, queue in queues.items():
        assert queue.peek(20) == [name] * 7
        assert queue.push(name) == 10  # numbers go on
    assert open_queue(name="elsewhere").pop(20) == ["e"] * 5


# --- amid the work of others


def test_flush_again_and_again_amid_the_work_of_others_loses_nothing(tmp_path):
    place = str(tmp_path)
    enough, stop = str(tmp_path / "enough"), str(tmp_path / "stop")
    work = [start("fork", consume, place, FAST, number) for number in range(2)]
    producers = [start("fork", produce, place, FAST, number, 3_000, enough) for number in range(2)]
    company = [
        start("fork", browse, place, FAST, stop),
        start("fork", flush_again_and_again, place, FAST, 40, enough, stop),
    ]
    finish(producers)
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.push([None] * 2)
        finish(work)
        touch(stop)
        finish(company)
        assert int(generations(queue._engine.path)[0][:8]) > 40
        assert queue.check() == []
        assert queue.count() == 0
        _assert_no_leftovers(queue._engine.path)
    assert_each_item_came_once_and_in_order(place, 2, 2)


@linux
def test_a_snapshot_is_of_one_moment_though_a_flush_comes_amid_and_the_old_file_is_let_go(open_queue):
    queue = open_queue()
    queue.push(list(range(1_000)))
    begun, flushed = threading.Event(), threading.Event()
    seen = []

    def read(txn, tables):
        seq = []
        with txn.cursor(tables.items) as cursor:
            for number, entry in enumerate(cursor.iternext()):
                if number == 10:
                    begun.set()
                    assert flushed.wait(DEADLINE)
                seq.append(queue._engine.opened(entry)[0])
        return seq

    reader = threading.Thread(target=lambda: seen.extend(queue._engine.environment.view(queue._engine.ref, read)))
    reader.start()
    assert begun.wait(DEADLINE)
    queue.delete(500)
    queue.flush(force=True)
    assert queue.pop() == 500
    flushed.set()
    reader.join(DEADLINE)
    assert seen in (list(range(1_000)), list(range(501, 1_000)))  # as it was then, or read anew
    assert _open_files_of_old_generations() == []


@pytest.mark.parametrize("elsewhere", [False, True], ids=["by this process", "by another"])
def test_threads_read_and_write_on_amid_flushes(open_queue, tmp_path, elsewhere):
    queue = open_queue(**FAST)
    queue.push(list(range(1_000)))
    stop = tmp_path / "stop"
    enough = tmp_path / "enough"
    failures = []

    def until_stopped(work):
        try:
            while not stop.exists():
                work()
        except BaseException as error:
            failures.append(error)
            raise

    def look():
        assert queue.peek(1_000) == list(range(1_000))
        assert len(queue) >= 1_000

    def browse_some():
        for expected, item in zip(range(1_000), queue, strict=False):
            assert item == expected

    threads = [
        threading.Thread(target=until_stopped, args=(work,))
        for work in (look, look, browse_some, lambda: queue.push(queue.count()))
    ]
    for thread in threads:
        thread.start()
    if elsewhere:
        flusher = forked(flush_again_and_again, str(tmp_path), FAST, 30, str(enough), str(stop))
        eventually(lambda: enough.exists() or failures)
        touch(str(stop))
        assert status_of(flusher) == 0
    else:
        for _ in range(30):
            queue.flush(force=True)
        touch(str(stop))
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    if sys.platform == "linux":
        queue.count()
        eventually(lambda: not _open_files_of_old_generations())


def _get_one(queue):
    assert queue.get(timeout=DEADLINE) == "the end"


@linux
def test_a_sleeping_process_lets_go_of_the_old_file(open_queue):
    queue = open_queue()
    sleeper = forked(_get_one, queue)
    eventually(lambda: any("inotify" in name for name in _open_files(sleeper)))
    queue.flush(force=True)
    eventually(lambda: not _open_files_of_old_generations(sleeper))
    with open(f"/proc/{sleeper}/maps", encoding="utf-8") as maps:
        assert "00000002.mdb" in maps.read()
    queue.push("the end")
    assert status_of(sleeper) == 0


def _flush(queue):
    queue.flush(force=True)


def _close_while_a_call_moves_on(place):
    queue = PersistentQueue("queue", place)
    queue.push("a")
    assert status_of(forked(_flush, queue)) == 0  # this process has not noticed
    environment = queue._engine.environment
    generation = environment._generation
    look = generation._refuse_superseded
    reached = threading.Event()
    errors = []

    def look_late(txn):
        reached.set()
        eventually(lambda: not environment.handles)  # close() is under way
        look(txn)

    def count():
        try:
            queue.count()
        except BaseException as error:
            errors.append(type(error))

    generation._refuse_superseded = look_late
    reader = threading.Thread(target=count)
    reader.start()
    assert reached.wait(DEADLINE)
    queue.close()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    assert errors in ([], [ClosedError])
    with PersistentQueue("queue", place) as again:
        assert again.pop() == "a"


def test_closing_ends_even_if_another_thread_is_just_finding_a_flush_by_others(tmp_path):
    assert status_of(forked(_close_while_a_call_moves_on, str(tmp_path)), 10) == 0


# --- killed


def _flush_killed_at(number, place):
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.count()
        killed_at_line(
            number,
            (
                "_local/compaction",
                "_local/swap",
                "_host/directory",
                "_lmdb/generation",
                "_lmdb/durability",
                "_lmdb/snapshot",
            ),
            queue.flush,
            force=True,
        )


ITEMS = [f"item {number}" * 20 for number in range(300)]


def _kill_flushes(place):
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.push(ITEMS)
        for number in itertools.count(1, STEP):
            ended = status_of(forked(_flush_killed_at, number, place))
            assert queue.peek(400) == ITEMS, f"killed at line {number}"
            queue.push("new")
            assert queue.peek(400) == [*ITEMS, "new"]
            assert queue.pop(301) == [*ITEMS, "new"]
            strange = [
                problem for problem in queue.check() if not re.search(r"\.mdb\.tmp(-lock)?' does not belong", problem)
            ]
            assert strange == []
            queue.push(ITEMS)
            queue.flush(force=True)
            assert queue.check() == []
            _assert_no_leftovers(queue._engine.path)
            if ended == 0:
                return number
            assert ended == KILLED
    raise AssertionError


def test_a_flush_killed_at_any_line_leaves_a_whole_queue_to_those_who_have_it_open(tmp_path):
    assert in_a_small_process(_kill_flushes, str(tmp_path)) > 100


def _copy_killed_at(number, queue):
    killed_at_line(number, ("_local/compaction", "_local/swap", "_host/directory"), queue.copy, new_filename="copy")


def _kill_copies(place):
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.push(ITEMS)
        for number in itertools.count(1, STEP):
            ended = status_of(forked(_copy_killed_at, number, queue))
            try:
                copy = queue.copy("copy")
            except ExistsError:
                copy = PersistentQueue("copy", place, **FAST)
            with copy:
                assert copy.check() == [], f"killed at line {number}"
                assert copy.pop(400) == ITEMS
            assert queue.check() == []
            shutil.rmtree(os.path.join(place, "copy"))
            if ended == 0:
                assert queue.pop(400) == ITEMS
                return number
            assert ended == KILLED
    raise AssertionError


def test_a_copy_killed_at_any_line_is_whole_or_can_be_made_again(tmp_path):
    assert in_a_small_process(_kill_copies, str(tmp_path)) > 100


# --- copies


def _push_lists(queue, until):
    number = 0
    while not os.path.exists(until):
        queue.push(list(range(number, number + 5)))
        number += 5


def test_copies_amid_pushes_and_flushes_are_snapshots_of_one_moment(open_queue, tmp_path):
    queue = open_queue(**FAST)
    stop = str(tmp_path / "stop")
    producer = forked(_push_lists, queue, stop)
    flusher = forked(flush_again_and_again, str(tmp_path), FAST, 10, str(tmp_path / "enough"), stop)
    lengths = []
    deadline = time.monotonic() + DEADLINE
    for turn in itertools.count():
        with queue.copy(f"copy {turn}") as copy:
            items = list(copy)
            assert items == list(range(len(items)))
            assert len(items) % 5 == 0
            assert copy.check() == []
        lengths.append(len(items))
        shutil.rmtree(tmp_path / f"copy {turn}")
        if turn >= 15 and len(set(lengths)) >= 5 and os.path.exists(tmp_path / "enough"):
            break
        assert time.monotonic() < deadline
    touch(stop)
    assert status_of(producer) == 0
    assert status_of(flusher) == 0
    assert lengths == sorted(lengths)
    assert queue.count() >= lengths[-1]


def test_a_copy_has_the_options_of_the_queue_and_a_life_of_its_own(open_queue, tmp_path):
    def dumps(item):
        return repr(item).encode()

    queue = open_queue(
        dumps=dumps, loads=int, flush_limit=5, name="n", maxsize=9, max_bytes=10**9, checksum=False, **FAST
    )
    queue.push([1, 2, 3])
    queue.delete()
    with queue.copy("copy") as copy:
        assert copy._options() == queue._options()
        assert os.path.join(copy.path, copy.filename) == str(tmp_path / "copy")
        assert copy.push(4) == 3
        assert copy.pop(9) == [2, 3, 4]
        assert copy.check() == []
        assert copy._engine.environment is not queue._engine.environment
    assert queue.peek(9) == [2, 3]
    with open(tmp_path / "copy" / "queue.json", "rb") as of_copy, open(tmp_path / "queue" / "queue.json", "rb") as own:
        assert of_copy.read() != own.read()  # each has a UUID of its own
    _assert_no_leftovers(str(tmp_path / "copy"))


def test_a_copy_onto_something_is_refused_and_touches_nothing(open_queue, tmp_path):
    queue = open_queue()
    queue.push("a")
    open_queue("other").push("b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter").write_text("dear")
    (tmp_path / "file").write_text("dear")
    before = tree(tmp_path)
    for name in ("queue", "other"):
        with pytest.raises(ExistsError) as caught:
            queue.copy(name)
        assert caught.value.path == str(tmp_path / name)
    with pytest.raises(FormatError):
        queue.copy("folder")
    with pytest.raises(FormatError):
        queue.copy("file")
    with pytest.raises(FormatError):
        queue.copy("copy", tmp_path / "nowhere")
    assert tree(tmp_path) == before


# --- copies of the directory


def _is_of_items(page, mark):
    return page[10] == 2 and page.count(mark) > 2_000  # flag of a leaf


@pytest.mark.parametrize(
    "options", [{}, {"durability": "interval"}, {"durability": "off"}, {"checksum": False}], ids=str
)
def test_a_copy_of_a_directory_that_was_flushed_and_used_meanwhile_is_read_as_a_whole(options, open_queue, tmp_path):
    """The file's first transaction was on the disk in the original, but later ones may show in such a copy."""
    options = {"dumps": bytes, "loads": bytes, "flush_limit": 0, **options}
    queue = open_queue(**options)
    for _ in range(50):
        queue.push([b"a" * 500] * 10)
    queue.pop(200)
    queue.flush()
    file = tmp_path / "queue" / "00000002.mdb"
    image = bytearray(file.read_bytes())
    for _ in range(30):
        queue.pop(10)
        queue.push([b"b" * 500] * 10)
        queue.sync()
    later = file.read_bytes()
    shutil.copytree(tmp_path / "queue", tmp_path / "copied")
    pages = [slice(at, at + 4096) for at in range(0, len(image), 4096)]
    (page, *_) = [each for each in pages if _is_of_items(image[each], b"a") and _is_of_items(later[each], b"b")]
    image[page] = later[page]
    (tmp_path / "copied" / "00000002.mdb").write_bytes(image)
    with pytest.raises(CorruptQueueError):
        open_queue("copied", **options)


def test_a_copy_that_the_library_made_is_not_read_when_it_is_first_opened(open_queue):
    queue = open_queue()
    queue.push(list(range(1_000)))
    queue.copy("copy")
    progress = []
    assert len(open_queue("copy", progress=lambda *done: progress.append(done))) == 1_000
    assert progress == []


def test_a_flush_and_a_copy_need_no_further_thread(open_queue, tmp_path, monkeypatch):
    """There is none left for a process with a limit, and from Python 3.12 on at the end of any program."""

    def refuse(*_):
        message = "can't start new thread"
        raise RuntimeError(message)

    queue = open_queue()
    queue.push_many([b"x" * 1000] * 3000)
    queue.delete(2990)
    monkeypatch.setattr(threads, "start_new_thread", refuse)
    assert queue.flush(force=True) > 0
    with queue.copy("copy", tmp_path) as copy:
        assert list(copy) == list(queue) == [b"x" * 1000] * 10


NO_THREAD = """
import os, resource, sys, threading
stack, most = 1 << 47, resource.getrlimit(resource.RLIMIT_STACK)[1]
if resource.getrlimit(resource.RLIMIT_STACK)[0] != stack:
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))  # no thread finds room for its stack
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
from lmdbqueue import PersistentQueue, StorageError
queue = PersistentQueue(sys.argv[1])
queue.push([1, 2, 3])
for copies in (lambda: queue.flush(force=True), lambda: queue.copy("other")):
    try:
        copies()
    except StorageError as error:
        print(error)
assert queue.pop() == 1
assert not queue.check()
"""


def test_a_copy_for_which_the_system_has_no_thread_says_so_and_the_queue_goes_on(tmp_path):
    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of a stack is limited here")
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD, "queue"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    flush, copy = done.stdout.splitlines()
    assert "ulimit -u" in flush
    assert "ulimit -u" in copy
