"""``durability="interval"``: what is on the disk when, whose pages are kept, and for how long."""

import asyncio
import errno
import math
import os
import shutil
import signal
import threading
import time

import lmdb
import pytest
from opener import as_after_a_reboot
from processes import eventually, forked, generations, status_of, touch

from lmdbqueue import DiskFullError, NestedCallError, OptionError, PersistentQueue, StorageError, TransactionError
from lmdbqueue._errors import Full
from lmdbqueue._lmdb import checkpoint_slots
from lmdbqueue._lmdb import generation as of_lmdb
from lmdbqueue._lmdb.checkpoint_slots import SLOT_SIZE, Slots
from lmdbqueue._lmdb.failures import Doubtful
from lmdbqueue._local import live as _live
from lmdbqueue._local.checkpoints import Checkpoints
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.forward import Forwarder, Target

NEVER = 3600.0  # seconds: no checkpoint of the thread's within a test


def _open(place, interval=NEVER, **options):
    return PersistentQueue("queue", str(place), durability="interval", interval=interval, **options)


def _checkpoints(queue):
    return queue._engine.environment._checkpoints


def _pins(queue):
    lines = queue._engine.environment._generation._env.readers().splitlines()[1:]
    mine = [line.split() for line in lines if line.split()[0] == str(os.getpid())]
    return sum(txnid != "-" for _, _, txnid in mine)


def _size(queue):
    (name,) = generations(queue._engine.path)
    return os.path.getsize(os.path.join(queue._engine.path, name))


@pytest.mark.parametrize("interval", [0, -1.0, math.nan, math.inf, 3601, True, "1"])
def test_an_interval_that_makes_no_sense_is_refused(interval, tmp_path):
    with pytest.raises(ValueError, match="interval is a number of seconds"):
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


def test_a_thread_covers_what_was_committed_and_ends_with_its_pin(tmp_path):
    with _open(tmp_path, 0.01) as queue:
        queue.push(1)
        eventually(lambda: queue.stats().unsynced_seconds == 0)
        eventually(lambda: not _checkpoints(queue)._is_kept)
        assert _pins(queue) == 0
        queue.push(2)
        assert _pins(queue) == 1
        eventually(lambda: queue.stats().unsynced_seconds == 0)


def test_the_least_interval_of_the_objects_on_a_directory_counts(tmp_path):
    with _open(tmp_path, 5.0) as queue, _open(tmp_path, 0.5), _open(tmp_path, 7.0):
        assert _checkpoints(queue).interval == 0.5


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


def test_an_idle_process_keeps_no_pages(tmp_path):
    with _open(tmp_path, 0.01) as queue:
        ready = os.fspath(tmp_path / "ready")

        def idle():
            with _open(tmp_path, 0.01) as mine:
                mine.push("mine")
                eventually(lambda: _pins(mine) == 0 and mine.stats().unsynced_seconds == 0)
                touch(ready)
                signal.pause()

        child = forked(idle)
        eventually(lambda: os.path.exists(ready))
        assert queue.pop() == "mine"
        for _ in range(60):
            queue.push(b"x" * 300_000)
            queue.pop()
        queue.sync()
        os.kill(child, signal.SIGKILL)
        status_of(child)
        size = _size(queue)
    assert size < 48 << 20


def test_a_process_that_was_killed_keeps_pages_until_the_file_would_grow(tmp_path):
    with _open(tmp_path) as queue:
        ready = os.fspath(tmp_path / "ready")

        def die():
            with _open(tmp_path) as mine:
                mine.push("mine")
                touch(ready)
                signal.pause()

        child = forked(die)
        eventually(lambda: os.path.exists(ready))
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        for _ in range(50):
            queue.push(b"x" * 1_200_000)
            queue.pop()
            if _checkpoints(queue)._written > 1 << 22:
                queue.sync()
        assert _size(queue) < 64 << 20
        assert len(queue) == 1


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
        assert _pins(queue) == 1


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
        monkeypatch.setattr(Slots, "_write", lambda _slots, offset, each: written.append((offset, each)))
        queue.sync()
        (offset, each) = written[0]
        assert each == newest
        assert checkpoint_slots._read(slots._fd)[offset // SLOT_SIZE] == newest, "over itself, and not the other one"


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
        monkeypatch.setattr(_live, "Checkpoints", Opened)
        queue.flush(force=True)
        for thread in wanting:
            thread.join()
        assert wanting
        assert _checkpoints(queue).interval == environment.interval == 0.5
