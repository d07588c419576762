"""``durability="interval"``: what is on the disk when, whose pages are kept, and for how long."""

import asyncio
import errno
import fcntl
import itertools
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing

import lmdb
import pytest
from old_queues import write_file
from opener import as_after_a_reboot
from processes import Moments, eventually, forked, generations, interrupt, status_of
from proofs import prove_by_the_checkpoint

from lmdbqueue import (
    DiskFullError,
    NestedCallError,
    OptionError,
    PersistentQueue,
    StorageError,
    TransactionError,
    check,
)
from lmdbqueue._base.errors import Full
from lmdbqueue._host import session
from lmdbqueue._lmdb import checkpoint_pin, checkpoint_slots, meta_page
from lmdbqueue._lmdb import generation as of_lmdb
from lmdbqueue._lmdb.checkpoint_pin import NOTHING, Pin
from lmdbqueue._lmdb.checkpoint_slots import SLOT_SIZE, Checkpoint, Slots
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._local import checkpoints
from lmdbqueue._local.checkpoints import Checkpoints
from lmdbqueue._local.group_commit import Call
from lmdbqueue._model import fifo, invariants
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.forward import Forwarder, QueueSource, Target
from lmdbqueue.legacy import import_file

PAGE = 4096
NEVER = 3600.0  # seconds: no checkpoint of the thread's within a test


def _open(place, interval=NEVER, **options):
    return PersistentQueue("queue", str(place), durability="interval", interval=interval, **options)


def _checkpoints(queue):
    return queue._engine.environment._checkpoints


def _pin(queue):
    return queue._engine.environment._generation.pin


def _size(queue):
    (name,) = generations(queue._engine.path)
    return os.path.getsize(os.path.join(queue._engine.path, name))


@pytest.mark.parametrize("interval", [0, -1.0, math.nan, math.inf, 3601])
def test_an_interval_that_makes_no_sense_is_refused(interval, tmp_path):
    with pytest.raises(ValueError, match="'interval' must be a positive number of seconds, at most 3600"):
        _open(tmp_path, interval)


def test_what_cannot_be_combined_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="needs checksum=True"):
        _open(tmp_path, checksum=False)
    with pytest.raises(ValueError, match="'full', 'interval' or 'off'"):
        PersistentQueue("queue", str(tmp_path), durability="sometimes")
    _open(tmp_path).close()
    with pytest.raises(OptionError, match="interval"):
        PersistentQueue("queue", str(tmp_path))


def test_calls_do_not_wait_for_the_disk_and_sync_does(tmp_path, monkeypatch):
    flushes = []
    flush = of_lmdb.Generation.flush_to_disk
    monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", lambda each: (flushes.append(1), flush(each))[1])
    with _open(tmp_path) as queue:
        queue.sync()
        flushes.clear()
        for n in range(20):
            queue.push(n)
        assert flushes == []
        assert queue.stats().unsynced_seconds > 0
        queue.sync()
        assert len(flushes) == 1
        assert queue.stats().unsynced_seconds == 0
        queue.sync()
        assert len(flushes) == 1, "there was nothing to bring to the disk"


@pytest.mark.parametrize(("durability", "expected"), [("full", 0.0), ("off", None)])
def test_sync_returns_on_any_queue_and_stats_tell_what_is_known(durability, expected, tmp_path):
    with PersistentQueue("queue", str(tmp_path), durability=durability) as queue:
        queue.push(1)
        queue.sync()
        assert queue.stats().unsynced_seconds == expected


def test_sync_is_refused_within_a_transaction_and_amid_itself(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        with pytest.raises(TransactionError), queue.transaction():
            queue.sync()
        queue.push(1)
        flush = of_lmdb.Generation.flush_to_disk

        def interrupted(each):
            monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", flush)
            with pytest.raises(NestedCallError):
                queue.sync()
            with pytest.raises(NestedCallError):  # a writer may wait for this checkpoint, which would wait for that
                queue.push(2)
            assert queue.peek() == 1
            flush(each)

        monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", interrupted)
        queue.sync()
        queue.push(2)
        assert queue.peek(2) == [1, 2]


def test_awaited_sync(tmp_path):
    async def use():
        async with AsyncPersistentQueue("queue", str(tmp_path), durability="interval", interval=NEVER) as queue:
            await queue.push(1)
            assert (await queue.stats()).unsynced_seconds > 0
            await queue.sync()
            assert (await queue.stats()).unsynced_seconds == 0

    asyncio.run(use())


def test_a_thread_covers_what_was_committed_and_ends_and_who_commits_then_does_not_wait(tmp_path, monkeypatch):
    flushed_by = set()
    flush = of_lmdb.Generation.flush_to_disk
    monkeypatch.setattr(
        of_lmdb.Generation, "flush_to_disk", lambda each: (flushed_by.add(threading.get_ident()), flush(each))[1]
    )
    with _open(tmp_path, 0.01) as queue:
        queue.push(1)
        for n in range(2):
            eventually(lambda: queue.stats().unsynced_seconds == 0 and not _checkpoints(queue)._is_kept)
            flushed_by.clear()
            queue.push(n)
            assert threading.get_ident() not in flushed_by


def test_the_least_interval_of_the_objects_on_a_directory_counts(tmp_path):
    with _open(tmp_path, 5.0) as queue, _open(tmp_path, 0.5), _open(tmp_path, 7.0):
        assert _checkpoints(queue).interval == 0.5


def _checked(path):
    assert check(path) == []


def _read(path):
    with closing(QueueSource(path)) as source:
        assert source.bounds().waiting == 1


def _imported(path):
    old = path + " of before"
    write_file(old)
    import_file(old, path, name="another")


@pytest.mark.parametrize("maintain", [_checked, _read, _imported])
def test_maintenance_leaves_the_interval_of_others_as_it_is(maintain, tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        maintain(str(tmp_path / "queue"))
        assert _checkpoints(queue).interval == NEVER
        assert queue.stats().unsynced_seconds > 0


def test_maintenance_by_another_process_makes_no_checkpoint_for_others(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        before = Slots(str(tmp_path / "queue" / "checkpoint")).newest()
        program = "import sys; from lmdbqueue import check; assert check(sys.argv[1]) == []"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "queue")], check=True)
        assert queue.stats().unsynced_seconds > 0
        assert Slots(str(tmp_path / "queue" / "checkpoint")).newest() == before


def test_a_commit_is_covered_though_an_interrupt_comes_as_it_is_noted(tmp_path, monkeypatch):
    noted = Checkpoints.committed

    def interrupted(*_):
        monkeypatch.setattr(Checkpoints, "committed", noted)
        raise KeyboardInterrupt

    with _open(tmp_path, 0.01) as queue:
        monkeypatch.setattr(Checkpoints, "committed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.push(1)
        newest = queue._engine.environment._generation.newest() & (1 << 64) - 1
        eventually(lambda: _checkpoints(queue)._slots.newest().transaction == newest)


def test_who_has_no_interval_of_its_own_has_a_tenth_of_a_second_until_others_want_another(tmp_path):
    with _open(tmp_path, None) as queue:
        assert _checkpoints(queue).interval == 0.1
        with _open(tmp_path, 5.0):
            assert _checkpoints(queue).interval == 5.0


def test_an_object_that_wants_checkpoints_sooner_wakes_the_thread_that_sleeps(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        with _open(tmp_path, 0.01):
            eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_a_checkpoint_comes_sooner_when_much_was_written(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(b"x" * 3_000_000)
        eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_a_commit_waits_for_the_disk_when_too_much_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_wake", lambda _self: None)  # the thread is slow
    with _open(tmp_path) as queue:
        size = _size(queue)
        for _ in range(40):
            queue.push(b"x" * 2_500_000)
            queue.pop()
        assert _size(queue) - size < 64 << 20


# --- whose pages are kept


def _push_and_be(how, place):
    """Be what ``how`` says when something was pushed that no checkpoint covers, and go on when that is over."""
    with _open(place) as queue:
        if how == "idle":
            queue.push("mine")
            signal.pause()
        elif how == "killed":
            queue.push("mine")
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "stopped":
            queue.push("mine")
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            owner, name = STEPS[how]
            before = getattr(owner, name)

            def stop(*args):
                setattr(owner, name, before)
                os.kill(os.getpid(), signal.SIGSTOP)
                return before(*args)

            queue.push("mine")
            setattr(owner, name, stop)
            queue.sync()
        queue.push("later")
        queue.sync()


STEPS = {
    "stopped before the flush": (of_lmdb.Generation, "flush_to_disk"),
    "stopped with a lane": (checkpoint_slots._Lane, "_raise_to"),
    "stopped amid a write to a slot": (checkpoint_slots, "sync_file"),
    "stopped before the pin is moved": (Pin, "move"),
}


@pytest.mark.parametrize("how", ["idle", "killed", "stopped", *STEPS])
def test_no_process_keeps_pages(how, tmp_path, monkeypatch):
    much = 1 << 18
    monkeypatch.setattr(checkpoints, "_MUCH", much)
    with _open(tmp_path) as queue:
        queue.push("before")
        queue.sync()
        child = forked(_push_and_be, how, tmp_path)
        if how == "idle":
            eventually(lambda: len(queue) == 2)
        else:
            _, status = os.waitpid(child, os.WUNTRACED)
            assert os.WIFSIGNALED(status) if how == "killed" else os.WIFSTOPPED(status)
        for _ in range(4 * 24):
            queue.push(b"x" * (much // 4))
            queue.pop()
        size = _size(queue)
        if how == "idle":
            os.kill(child, signal.SIGKILL)
            status_of(child)
        elif how != "killed":
            os.kill(child, signal.SIGCONT)
            assert status_of(child) == 0
            assert queue.stats().unsynced_seconds == 0
        queue.push("last")
        assert queue.check() == []
        prove_by_the_checkpoint(queue)
    assert size < 10 * much  # of 24 that were written, and as many paths


def _table_of_readers(queue):
    return queue._engine.environment._generation._env.readers()


def test_the_pin_is_of_no_process_and_goes_on_with_the_checkpoints(tmp_path):
    with _open(tmp_path) as queue:
        pinned = _pin(queue).transaction
        assert pinned != NOTHING

        def push():
            with _open(tmp_path) as mine:
                mine.push(1)
                os.kill(os.getpid(), signal.SIGKILL)

        assert status_of(forked(push)) == -signal.SIGKILL
        assert _pin(queue).transaction == pinned
        queue._engine.environment._generation._env.reader_check()
        assert [line.split() for line in _table_of_readers(queue).splitlines()[1:] if str(pinned) in line.split()] == [
            ["-1", f"{int.from_bytes(b'lmdbqpin', sys.byteorder):x}", str(pinned)]
        ]
        queue.push(2)
        assert _pin(queue).transaction == pinned, "no checkpoint was made"
        queue.sync()
        assert _pin(queue).transaction > pinned
    with _open(tmp_path) as queue:
        assert _pin(queue).transaction == NOTHING, "nobody has committed since somebody has had the file open"
        queue.push(3)
        assert _pin(queue).transaction != NOTHING


def test_a_pin_that_is_left_of_before_is_not_taken_for_one(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        (name,) = generations(queue._engine.path)
        lock_file = os.path.join(queue._engine.path, f"{name}-lock")
    with open(lock_file, "r+b") as file:
        file.seek(64 * 100)
        file.write(struct.pack("=Qi4xQ", 1, -1, int.from_bytes(b"lmdbqpin", sys.byteorder)))
    with _open(tmp_path) as queue:
        queue.push(2)
        queue.sync()
        assert str(_pin(queue).transaction) in _table_of_readers(queue).split()
        assert _pin(queue)._memory[:].count(b"lmdbqpin") == 1


def test_a_system_that_lets_the_pin_be_cleared_is_found_out_at_the_opening(tmp_path, monkeypatch):
    child = forked(lambda: None)
    status_of(child)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_pin, "_NOBODY", child)  # who is dead, and the system says so
        with pytest.raises(StorageError, match="does not keep the pin"):
            _open(tmp_path)
    with _open(tmp_path) as queue:
        queue.push(1)


def test_an_interrupt_at_any_line_that_makes_the_pin_leaves_no_descriptor_whose_end_drops_the_lock_of_lmdb(tmp_path):
    class Interrupt(BaseException):
        pass

    def interrupt_at(number):
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if frame.f_code.co_filename != checkpoint_pin.__file__:
                return None
            lines += event == "line"
            if lines == number and event == "line":
                raise Interrupt
            return trace

        return trace

    _open(tmp_path).close()
    (name,) = generations(tmp_path / "queue")
    inode = os.stat(tmp_path / "queue" / f"{name}-lock").st_ino

    def locks():
        with open("/proc/locks", encoding="ascii") as lines:
            return [
                line for line in lines if f" POSIX  ADVISORY  READ {os.getpid()} " in line and f":{inode} 0 0" in line
            ]

    number, is_through = 0, False
    while not is_through:
        interrupt, number = None, number + 1
        sys.settrace(interrupt_at(number))
        try:
            queue = _open(tmp_path)
        except Interrupt as error:
            interrupt = error  # with what is in its frames
        finally:
            sys.settrace(None)
        with queue if interrupt is None else _open(tmp_path):
            is_through = interrupt is None
            if not is_through:
                interrupt.__traceback__ = None
            assert locks(), number
    assert number > 20


def test_a_lane_that_another_process_has_is_left_to_it(tmp_path):
    place = tmp_path / "lanes"
    place.mkdir()
    path = os.fspath(place / "checkpoint")
    bodies = [bytes(128) + struct.pack("=Q", number) for number in range(5)]
    mine, others = Slots(path), Slots(path)
    assert checkpoint_slots.read(path) == (True, None)
    told = []
    mine.raise_to(Checkpoint(1, bodies[1]), lambda lane, newest: told.append((lane, newest.transaction)))
    with open(path, "rb") as lane:
        fcntl.flock(lane, fcntl.LOCK_EX)
        others.raise_to(Checkpoint(1, bodies[3]), lambda lane, newest: told.append((lane, newest.transaction)))
        assert sorted(os.listdir(place)) == ["checkpoint", "checkpoint-1"]
        assert checkpoint_slots.read(path) == (True, Checkpoint(1, bodies[3]))
    mine.raise_to(Checkpoint(1, bodies[2]), lambda lane, newest: told.append((lane, newest.transaction)))
    assert told == [(0, 1), (1, 3), (0, 2)]
    assert checkpoint_slots.read(path) == (True, Checkpoint(1, bodies[3])), "the newest of all lanes"
    for slots in (mine, others):
        slots.close()
    with open(f"{path}-1", "r+b") as lane:
        lane.write(b"damaged" * 2_000)
    assert checkpoint_slots.read(path) == (False, None)
    checkpoint_slots.forget(path)
    assert checkpoint_slots.read(path) == (True, None)


def test_where_the_disk_has_no_room_for_another_lane_one_that_is_taken_is_waited_for_a_moment(tmp_path, monkeypatch):
    path = os.fspath(tmp_path / "checkpoint")
    bodies = [bytes(128) + struct.pack("=Q", number) for number in range(3)]
    slots = Slots(path)
    slots.raise_to(Checkpoint(1, bodies[1]), lambda *_: None)

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_slots, "open_private", refuse)
    with open(path, "rb") as lane:
        fcntl.flock(lane, fcntl.LOCK_EX)
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_slots, "_PATIENCE", 0.01, raising=False)
            with pytest.raises(OSError, match="No space"):
                slots.raise_to(Checkpoint(1, bodies[2]), lambda *_: None)
        other = threading.Timer(0.05, fcntl.flock, (lane, fcntl.LOCK_UN))
        other.start()
        slots.raise_to(Checkpoint(1, bodies[2]), lambda *_: None)
        other.join()
    assert checkpoint_slots.read(path) == (True, Checkpoint(1, bodies[2]))
    slots.close()


# --- checkpoints that fail


class _Failing:
    """A function that fails until that is over."""

    def __init__(self, before, error):
        self.before, self.error = before, error
        self.is_over = False
        self.calls = 0

    def __call__(self, *args):
        self.calls += 1
        if not self.is_over:
            raise self.error
        return self.before(*args)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_checkpoint_that_fails_is_made_again_with_no_call_and_what_is_not_covered_is_told(
    number, tmp_path, monkeypatch
):
    with _open(tmp_path) as queue:
        queue.push(1)
        failing = _Failing(checkpoint_slots.sync_file, OSError(number, os.strerror(number)))
        monkeypatch.setattr(checkpoint_slots, "sync_file", failing)
        with _open(tmp_path, 0.01):
            eventually(lambda: failing.calls >= 2)
            told = queue.stats().unsynced_seconds
            assert told > 0.01
            queue.push(2)  # which does not wait for the disk
            eventually(lambda: failing.calls >= 4)
            assert queue.stats().unsynced_seconds > told
            failing.is_over = True
            eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_a_checkpoint_that_fails_is_tried_again_after_twice_as_long_up_to_a_second_or_the_interval():
    assert [checkpoints._patience(0.1, failures) for failures in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert checkpoints._patience(60.0, 3) == 60.0


def test_where_a_flush_failed_and_the_file_cannot_be_copied_that_is_tried_less_and_less_often(tmp_path, monkeypatch):
    waits = []
    patience = checkpoints._patience
    monkeypatch.setattr(checkpoints, "_patience", lambda *args: (waits.append(patience(*args)), 0.001)[1])
    with _open(tmp_path, 0.5) as queue:
        environment = queue._engine.environment
        monkeypatch.setattr(environment, "_swap", _Failing(None, DiskFullError("bytes", 1, 1, 0)))
        queue.push(1)
        environment._session.set_in_doubt(1)
        _checkpoints(queue).resume()
        eventually(lambda: waits[-1:] == [60.0])
        monkeypatch.undo()
        queue.sync()
        assert queue._engine.environment._generation.number == 2


def test_after_a_flush_that_failed_the_file_is_written_anew_with_no_call(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
        before = of_lmdb.Generation.flush_to_disk

        def flush(each):
            if each.number == 1:
                each._refuse_failed(lmdb.Error("EIO"))
            before(each)

        monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", flush)
        with _open(tmp_path, 0.01):
            eventually(lambda: generations(queue._engine.path) == ["00000002.mdb"])
            eventually(lambda: queue.stats().unsynced_seconds == 0)
            assert queue.peek() == 1


def test_what_a_sync_fails_to_cover_is_left_to_the_thread_though_that_would_have_ended(tmp_path, monkeypatch):
    flush, ends = of_lmdb.Generation.flush_to_disk, []
    may_end = Checkpoints._may_end

    def fail_when_the_thread_has_looked(_):
        monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", flush)
        _checkpoints(queue).hurry(0.001)
        eventually(lambda: len(ends) > 1 or True in ends)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with _open(tmp_path) as queue:
        queue.push(1)
        monkeypatch.setattr(Checkpoints, "_may_end", lambda each: (ends.append(may_end(each)), ends[-1])[1])
        monkeypatch.setattr(of_lmdb.Generation, "flush_to_disk", fail_when_the_thread_has_looked)
        with pytest.raises(StorageError):
            queue.sync()
        eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_an_interrupt_at_any_moment_of_a_sync_leaves_what_is_uncovered_to_the_thread(tmp_path):
    with _open(tmp_path, 0.001) as queue:
        mine = _checkpoints(queue)

        def leave_it_to_sync():
            eventually(lambda: not mine._is_kept)
            mine.interval = NEVER
            queue.push(1)

        leave_it_to_sync()
        for number in itertools.count(1):
            moments = Moments(number, interrupt)
            try:
                with moments:
                    queue.sync()
                break
            except KeyboardInterrupt:
                assert moments.left == 0
            mine.hurry(0.001)
            eventually(lambda: queue.stats().unsynced_seconds == 0)
            leave_it_to_sync()
    assert number > 20


def test_what_was_committed_before_the_file_was_reopened_is_covered(tmp_path):
    with _open(tmp_path, None) as queue:
        environment = queue._engine.environment
        queue.push(1)
        with environment._writer:
            environment._abandon_broken(environment._generation)
        eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_an_uncovered_commit_is_told_though_the_moment_of_it_was_cleared(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        queue._engine.environment._session.unsynced_since = 0  # by another process, which was killed just then
        assert queue.stats().unsynced_seconds > 0
        queue.sync()
        assert queue.stats().unsynced_seconds == 0


def test_where_no_thread_can_be_started_each_commit_is_covered_at_once(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError

    monkeypatch.setattr(checkpoints, "start_new_thread", refuse)
    with _open(tmp_path) as queue:
        for n in range(3):
            queue.push(n)
            assert queue.stats().unsynced_seconds == 0


def test_what_another_process_has_covered_meanwhile_is_not_said_to_be_uncovered(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
        environment = queue._engine.environment
        session, newest = environment._session, environment._generation.newest
        queue.push(2)

        def after_the_other():
            session.set_covered(1, newest())
            session.unsynced_since = 0
            return newest()

        monkeypatch.setattr(environment._generation, "newest", after_the_other)
        _checkpoints(queue)._note(time.monotonic_ns())
        assert session.unsynced_since == 0
        assert queue.stats().unsynced_seconds == 0


@pytest.fixture
def syncing_process(tmp_path):
    """Give a function with which another process pushes an item, and then syncs."""
    (orders, mouth), (ear, answers) = os.pipe(), os.pipe()

    def work():
        with _open(tmp_path) as queue:
            os.write(answers, b".")
            while os.read(orders, 1) == b"p":
                queue.push("theirs")
                queue.sync()
                os.write(answers, b".")

    pid = forked(work)

    def push():
        os.write(mouth, b"p")
        assert os.read(ear, 1) == b"."

    assert os.read(ear, 1) == b"."
    yield push
    os.write(mouth, b"e")
    assert status_of(pid) == 0
    for fd in (orders, mouth, ear, answers):
        os.close(fd)


def test_whenever_another_process_makes_a_newer_checkpoint_all_is_said_to_be_covered(tmp_path, syncing_process):
    files = {each.__file__ for each in (checkpoints, checkpoint_slots, session)}
    with _open(tmp_path) as queue:
        mine, word = _checkpoints(queue), queue._engine.environment._session
        is_done = False
        for when in itertools.count():
            queue.push("mine")
            lines = itertools.count()

            def trace(frame, event, _, when=when, lines=lines):
                if event == "line" and next(lines) == when:
                    sys.settrace(None)
                    syncing_process()
                return trace if frame.f_code.co_filename in files else None

            sys.settrace(trace)
            try:
                mine.cover()
            finally:
                sys.settrace(None)
            is_done = next(lines) <= when
            assert queue.stats().unsynced_seconds == 0, when
            assert word.unsynced_since == 0, when
            if is_done:
                break
    assert when > 50


def test_who_has_not_heard_of_a_swap_says_nothing_of_what_is_covered_since(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)

        def swap():
            queue.flush(force=True)
            queue.sync()
            queue.push("theirs")
            os.kill(os.getpid(), signal.SIGKILL)

        assert status_of(forked(swap)) == -signal.SIGKILL
        old = _checkpoints(queue)
        with old._busy:
            old._make()
        assert queue.stats().unsynced_seconds > 0, "theirs is not covered"


# --- what is lost when


def _push_and_be_killed(place, n):
    queue = _open(place)
    for each in range(n):
        queue.push(each)
    queue.sync()
    for each in range(n, 2 * n):
        queue.push(each)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_mounted_anew", [False, True])
def test_a_kill_loses_nothing_also_where_the_disk_is_mounted_anew(is_mounted_anew, tmp_path):
    assert status_of(forked(_push_and_be_killed, tmp_path, 50)) == -signal.SIGKILL
    if is_mounted_anew:
        as_after_a_reboot(tmp_path / "queue")
    with _open(tmp_path, 0.01) as queue:
        assert list(queue) == list(range(100))
        assert queue.check() == []
        eventually(lambda: queue.stats().unsynced_seconds == 0)  # what the dead one had left uncovered


def test_a_recovery_leaves_no_number_to_be_given_that_a_call_before_it_had(tmp_path):
    path = tmp_path / "queue" / "00000001.mdb"
    meta_pages = []

    def live(item, *, is_torn):
        def push():
            with _open(tmp_path) as queue:
                if is_torn:
                    (tmp_path / "meta pages").write_bytes(path.read_bytes()[:8192])
                queue.push(item)
                if not is_torn:
                    queue.sync()
                os.kill(os.getpid(), signal.SIGKILL)

        assert status_of(forked(push)) == -signal.SIGKILL
        as_after_a_reboot(tmp_path / "queue")
        meta_pages.append(meta_page.read(str(path))[0].transaction)

    live("first", is_torn=False)
    live("comes, but for its meta page", is_torn=True)
    with open(path, "r+b") as file:
        file.write((tmp_path / "meta pages").read_bytes())
    with _open(tmp_path) as queue:
        assert list(queue) == ["first"]
        assert queue.push("next") == 1
        assert queue._engine.environment._generation._env.info()["last_txnid"] > meta_pages[-1] + 1


def test_a_child_goes_on_and_the_parent_too(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)

        def child():
            queue.push(2)
            assert queue.stats().unsynced_seconds > 0
            queue.sync()

        assert status_of(forked(child)) == 0
        queue.push(3)
        assert list(queue) == [1, 2, 3]


def test_a_fork_waits_for_those_in_sync_before_it_stops_checkpoints(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        environment = queue._engine.environment
        order = []
        freeze = Checkpoints.freeze
        monkeypatch.setattr(
            Checkpoints, "freeze", lambda *args: (order.append(list(environment._reading)), freeze(*args))[1]
        )
        environment._reading[0] = None  # another thread is there
        assert not environment.freeze(0.01)
        assert order == []
        del environment._reading[0]
        assert environment.freeze(0.01)
        environment.thaw()
        assert order == [[]]


@pytest.mark.parametrize("what", ["what broke", "what a flush of failed"])
def test_a_fork_waits_for_no_thread_that_waits_to_open_the_file_anew(what, tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
        environment = queue._engine.environment
        generation = environment._generation
        refuse_nested = environment._refuse_nested
        is_reached, may_go_on = threading.Event(), threading.Event()

        def late():
            is_reached.set()
            may_go_on.wait(10)
            refuse_nested()

        def broken(each, *args):
            if each is generation:
                raise Superseded
            return view(each, *args)

        view = of_lmdb.Generation.view
        monkeypatch.setattr(environment, "_refuse_nested", late)
        if what == "what broke":
            monkeypatch.setattr(of_lmdb.Generation, "view", broken)
            generation.is_broken = True
            thread = threading.Thread(target=queue.peek)
        else:
            environment._session.set_in_doubt(1)
            thread = threading.Thread(target=queue.sync)
        thread.start()
        assert is_reached.wait(10)
        assert environment.freeze(0.2), "it holds the right to write, which that thread waits for"
        environment.thaw()
        may_go_on.set()
        thread.join(10)
        assert queue.peek() == 1


def test_a_fork_amid_a_checkpoint_waits_for_it(tmp_path):
    with _open(tmp_path, 0.001) as queue:
        for n in range(8):
            queue.push(n)
            assert status_of(forked(queue.peek)) == 0
        assert len(queue) == 8


def test_a_flush_that_fails_lets_the_queue_be_written_anew(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
        with monkeypatch.context() as patched:

            def fail(each):
                each._session.set_in_doubt(each.number)
                raise StorageError(each.path, "sync", "Input/output error")

            patched.setattr(of_lmdb.Generation, "flush_to_disk", fail)
            with pytest.raises(StorageError):
                queue.sync()
        queue.push(2)
        assert queue._engine.environment._generation.number == 2
        assert list(queue) == [1, 2]
        queue.sync()


def test_after_a_flush_that_failed_no_later_one_makes_a_checkpoint(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
        checkpoints = _checkpoints(queue)
        before = checkpoints._slots.newest()
        with monkeypatch.context() as patched:
            patched.setattr(of_lmdb.Generation, "flush_to_disk", lambda each: each._refuse_failed(lmdb.Error("EIO")))
            with pytest.raises(StorageError):
                queue.sync()
        with pytest.raises(Doubtful), checkpoints._busy:
            checkpoints._make()  # as its thread does
        assert checkpoints._slots.newest() == before
        queue.sync()
        assert queue.peek() == 1


def test_a_slot_whose_fsync_failed_is_written_again(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)

        def fail(_fd):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_slots, "sync_file", fail)
            with pytest.raises(StorageError):
                queue.sync()
        slots = _checkpoints(queue)._slots
        newest = slots.newest()
        written = []
        monkeypatch.setattr(checkpoint_slots._Lane, "_write", lambda _, *slot: written.append(slot))
        queue.sync()
        (offset, each) = written[0]
        assert each == newest
        assert slots._lanes[0].read()[offset // SLOT_SIZE] == newest, "over itself, and not the other one"


def test_a_call_that_shares_a_commit_hears_nothing_of_a_checkpoint_that_could_not_make_room_for_another(
    tmp_path, monkeypatch
):
    def is_full(*_):
        raise lmdb.Error(os.strerror(errno.ENOSPC))

    with _open(tmp_path) as queue:
        queue.push([1, 2])
        queue.sync()
        engine = queue._engine
        with monkeypatch.context() as patched:
            taking, filling = [Call(engine.ref, fn, ()) for fn in (lambda _, tables: tables.name, is_full)]
            patched.setattr(checkpoint_slots, "sync_file", _Failing(None, OSError(errno.EIO, os.strerror(errno.EIO))))
            with engine.environment._writer:
                engine.environment._run([taking, filling])
        assert taking.outcome() == queue.name
        with pytest.raises(DiskFullError):
            filling.outcome()


def test_removals_go_on_where_no_page_can_be_had_before_a_checkpoint(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(list(range(10)))
        commit = of_lmdb.Generation.commit
        made = []

        def full(self, txn):
            if not made:
                raise DiskFullError("bytes", 1, 1, 0)
            return commit(self, txn)

        make = Checkpoints._make
        monkeypatch.setattr(Checkpoints, "_make", lambda self: (make(self), made.append(1))[0])
        monkeypatch.setattr(of_lmdb.Generation, "commit", full)
        assert queue.pop() == 0
        assert made == [1]
        made.clear()
        monkeypatch.setattr(Checkpoints, "renew", lambda _self: False)
        with pytest.raises(Full):
            queue.pop()


def test_a_forwarder_tells_outside_of_nothing_that_a_power_cut_could_take_back(tmp_path):
    unsynced = []

    class Outside(Target):
        mark = None

        def last(self, _origin):
            return self.mark

        def store(self, batch):
            unsynced.append(queue.stats().unsynced_seconds)
            self.mark = batch.mark

        def close(self):
            pass

    with _open(tmp_path, dumps=bytes, loads=bytes) as queue:
        for n in range(5):
            queue.push(b"%d" % n)
        assert Forwarder(queue, Outside(), batch=2).run().items == 5
        assert unsynced == [0, 0, 0]


def test_a_copy_and_a_flush_of_a_queue_in_use_hold_all_of_it(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(list(range(2_000)))
        queue.delete(1_500)
        queue.flush(force=True)
        queue.push("after")
        with queue.copy("copy") as copy:
            assert list(copy) == list(queue)
            copy.push("its own")
            copy.sync()
        queue.clear()
        queue.push("last")
        queue.sync()
        assert queue.check() == []


def test_sync_follows_to_where_others_have_committed(tmp_path):
    with _open(tmp_path) as queue:

        def swap():
            queue.flush(force=True)
            queue.push("theirs")
            os._exit(0)  # without a checkpoint

        queue.push(1)
        queue.sync()
        assert status_of(forked(swap)) == 0
        queue.sync()
        (slot,) = {_checkpoints(queue)._slots.newest()}
        generation = queue._engine.environment._generation
        assert (slot.generation, slot.transaction) == (2, generation._env.info()["last_txnid"])


def test_a_copy_with_a_checkpoint_that_is_later_than_its_data_makes_its_own(tmp_path):
    with _open(tmp_path) as queue:
        queue.push(1)
        queue.sync()
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copy(tmp_path / "queue" / "00000001.mdb", copy)
        for n in range(5):
            queue.push(n)
        queue.sync()
        for name in ("checkpoint", "session", "queue.json"):
            shutil.copy(tmp_path / "queue" / name, copy)

    def use():
        mine = PersistentQueue("copy", str(tmp_path), durability="interval", interval=NEVER)
        mine.push(2)
        mine.sync()
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(use)) == -signal.SIGKILL
    as_after_a_reboot(copy)
    with PersistentQueue("copy", str(tmp_path), durability="interval") as mine:
        assert list(mine) == [1, 2]
        assert mine.check() == []


# --- a copy of a directory as a power cut left it


def _left_by_a_cut(place, items, *, keeps=()):
    """Return a copy of a queue with "on the disk" and ``items``, a call each, of whose pages only some are there.

    ``keeps``: what of the changes arrived beside the meta pages, as functions of the bytes of a page.
    """
    with _open(place, dumps=bytes, loads=bytes) as queue:
        queue.push(b"on the disk")
        queue.sync()
        path = place / "queue" / "00000001.mdb"
        image = path.read_bytes()
        for each in items:
            queue.push(each)
        after = path.read_bytes()
        shutil.copytree(place / "queue", place / "cut" / "queue")
    cut = bytearray(image.ljust(len(after), b"\0"))
    for at in range(0, len(after), PAGE):
        if at < 2 * PAGE or any(keep(after[at : at + PAGE]) for keep in keeps):
            cut[at : at + PAGE] = after[at : at + PAGE]
    (place / "cut" / "queue" / "00000001.mdb").write_bytes(cut)
    return place / "cut"


def _items(place):
    with _open(place, dumps=bytes, loads=bytes) as queue:
        assert queue.check() == []
        return list(queue)


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_copy_holds_what_its_checkpoint_covers_though_all_that_is_newer_is_torn(is_copy, tmp_path):
    cut = _left_by_a_cut(tmp_path, [b"lost", b"lost, too"])
    if not is_copy:
        as_after_a_reboot(cut / "queue")
    assert _items(cut) == [b"on the disk"]
    assert _items(cut) == [b"on the disk"], "when it is opened again"


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_copy_holds_no_items_of_pages_that_did_not_arrive_and_show_others(is_copy, tmp_path):
    """Those of an attempt that was taken back: their seals, keys and number fit."""
    images = []
    with _open(tmp_path, dumps=bytes, loads=bytes) as queue:
        queue.push(b"on the disk")
        queue.sync()
        for name in ("taken back", "then"):
            shutil.copytree(tmp_path / "queue", tmp_path / name / "queue")
    for name, what in (("taken back", b"A"), ("then", b"B")):
        with _open(tmp_path / name, dumps=bytes, loads=bytes) as queue:
            queue.push([what * 300] * 60)
            images.append((tmp_path / name / "queue" / "00000001.mdb").read_bytes())
            shutil.copytree(tmp_path / name / "queue", tmp_path / name / "cut" / "queue")
    cut = tmp_path / "then" / "cut"
    old, new = images
    stale = [at for at in range(2 * PAGE, len(new), PAGE) if new[at : at + PAGE].count(b"B") > 10 * 300]
    assert len(stale) > 2
    assert old[stale[1] : stale[1] + PAGE].count(b"A") > 10 * 300
    image = bytearray(new)
    image[stale[1] : stale[1] + PAGE] = old[stale[1] : stale[1] + PAGE]
    (cut / "queue" / "00000001.mdb").write_bytes(image)
    if not is_copy:
        as_after_a_reboot(cut / "queue")
    assert _items(cut) == [b"on the disk"]


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_leased_item_is_not_taken_for_one_that_was_leased_in_its_place_and_taken_back(is_copy, tmp_path, monkeypatch):
    """The record of a leased item ends in the item, whose seal makes the checksum of all such records the same."""
    images = []
    with _open(tmp_path, dumps=bytes, loads=bytes) as queue:
        queue.push(b"on the disk")
        queue.sync()
        for name in ("taken back", "then"):
            shutil.copytree(tmp_path / "queue", tmp_path / name / "queue")
    monkeypatch.setattr(os, "urandom", lambda n: b"\1" * n)  # of the owners of leases
    for name, what in (("taken back", b"A"), ("then", b"B")):
        with _open(tmp_path / name, dumps=bytes, loads=bytes) as queue:
            queue.push(what * 50)
            lease = queue.lease(2)
            assert lease is not None
            shutil.copytree(tmp_path / name / "queue", tmp_path / name / "cut" / "queue")
            images.append((tmp_path / name / "queue" / "00000001.mdb").read_bytes())
    cut = tmp_path / "then" / "cut"
    old, new = images
    (stale,) = [at for at in range(2 * PAGE, len(new), PAGE) if b"/leased/" in new[at : at + PAGE]]
    assert old[stale : stale + PAGE].count(b"A" * 50) == 1
    image = bytearray(new)
    image[stale : stale + PAGE] = old[stale : stale + PAGE]
    (cut / "queue" / "00000001.mdb").write_bytes(image)
    if not is_copy:
        as_after_a_reboot(cut / "queue")
    assert b"A" * 50 not in _items(cut)


def test_a_copy_of_a_queue_that_was_killed_or_closed_loses_nothing(tmp_path):
    assert status_of(forked(_push_and_be_killed, tmp_path, 50)) == -signal.SIGKILL
    for name in ("killed", "closed"):
        shutil.copytree(tmp_path / "queue", tmp_path / name / "queue")
        with _open(tmp_path / name) as queue:
            assert list(queue) == list(range(100))
            assert queue.check() == []
        with _open(tmp_path) as queue:
            assert queue.count() == 100


class _Cut(BaseException):
    """The end of a process."""


def _after_some_steps(steps, error, monkeypatch, place):
    """Open a queue; its recovery fails, or its process ends, after so many writes; return whether it came to that."""
    calls = itertools.count()

    def failing(function):
        def call(*args):
            if next(calls) >= steps:
                raise error
            return function(*args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing(os.pwrite))
        patched.setattr(meta_page, "sync_file", failing(meta_page.sync_file))
        patched.setattr(session, "sync_file", failing(session.sync_file))
        try:
            _items(place)
        except (_Cut, StorageError):
            return True
    return False


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), _Cut()], ids=["error", "end"])
def test_an_error_or_an_end_amid_the_proof_of_a_copy_leaves_it_as_it_was(error, tmp_path, monkeypatch):
    cut = _left_by_a_cut(tmp_path, [b"lost", b"lost, too"])
    for steps in itertools.count():
        shutil.copytree(cut, tmp_path / str(steps))
        failed = _after_some_steps(steps, error, monkeypatch, tmp_path / str(steps))
        assert _items(tmp_path / str(steps)) == [b"on the disk"], steps
        if not failed:
            break
    assert steps > 12


def test_what_is_read_of_a_copy_is_shown_to_lmdb_and_put_back_after_an_error(tmp_path, monkeypatch):
    cut = _left_by_a_cut(tmp_path, [b"lost", b"lost, too"])
    path = cut / "queue" / "00000001.mdb"
    before = path.read_bytes()
    shown = []

    def refuse(path, _options, _progress):
        shown.append({each.body for each in meta_page.read(path)})
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(invariants, "of_file", refuse)
        with pytest.raises(MemoryError):
            _items(cut)
    assert path.read_bytes() == before
    assert [len(each) for each in shown] == [1]
    assert shown[0].isdisjoint(each.body for each in meta_page.read(os.fspath(path)))


def test_closing_leaves_nothing_to_recover(tmp_path, monkeypatch):
    with _open(tmp_path) as queue:
        queue.push(1)
    as_after_a_reboot(tmp_path / "queue")
    monkeypatch.setattr("lmdbqueue._local.recovery._recover_to_checkpoint", None)
    with _open(tmp_path) as queue:
        assert queue.pop() == 1


def test_what_another_process_committed_is_covered_by_who_commits_next(tmp_path):
    with _open(tmp_path) as queue:

        def commit():
            queue.close()  # else this process does not leave
            with _open(tmp_path) as mine:
                mine.push("mine")

        assert status_of(forked(commit)) == 0
        assert queue.stats().unsynced_seconds == 0, "it covered it when it left"
        began = time.monotonic()
        queue.push("ours")
        assert 0 < queue.stats().unsynced_seconds <= time.monotonic() - began + 1


def test_the_shortest_interval_counts_though_it_is_wanted_while_a_generation_is_opened(tmp_path, monkeypatch):
    wanting = []

    class Opened(Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            thread = threading.Thread(target=environment.want_interval, args=(0.5,))
            wanting.append(thread)
            thread.start()
            thread.join(0.1)

    with _open(tmp_path) as queue:
        environment = queue._engine.environment
        queue.push("a")
        monkeypatch.setattr(checkpoints, "Checkpoints", Opened)
        queue.flush(force=True)
        for thread in wanting:
            thread.join()
        assert wanting
        assert _checkpoints(queue).interval == environment.interval == 0.5


def test_a_call_that_meets_a_file_which_was_closed_meanwhile_has_done_nothing(tmp_path):
    """It waited for its turn while another thread closed the queue, or went on to the next file."""
    queue = _open(tmp_path, 0.001)
    queue.push("a")
    generation, ref = queue._engine.environment._generation, queue._engine.ref
    eventually(lambda: not generation.keeper._is_kept)
    queue.close()
    assert generation.write(ref, fifo.delete, (1,), 0) is of_lmdb.NOT_DONE


def test_a_meta_page_that_the_disk_fails_to_read_is_told_as_any_failure_of_the_disk(tmp_path, monkeypatch):
    def unreadable(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        queue = PersistentQueue("queue", tmp_path, durability="interval", interval=3600)
        queue.push("item")
        failing.setattr(meta_page, "body_of", unreadable)
        with pytest.raises(StorageError, match="Input/output error"):
            queue.sync()
        queue.close()
    with PersistentQueue("queue", tmp_path, durability="interval") as queue:
        assert (list(queue), queue.check()) == (["item"], [])
