"""The doorbell: whoever looks and then sleeps misses nothing, and nobody is kept busy by it."""

import errno
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import eventually

from lmdbqueue import Empty, PersistentQueue
from lmdbqueue._host import bell as _wakeup
from lmdbqueue._host.bell import Bell

PATIENCE = 30  # seconds, for what happens at once when all is well
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="it counts descriptors in /proc, and watches by inotify")
spawn = multiprocessing.get_context("spawn")


def _refuse(_path):
    raise OSError(errno.EMFILE, "no watch left")


@pytest.fixture
def no_ceiling(monkeypatch):
    """Let a sleep end by a ring only."""
    monkeypatch.setattr(_wakeup, "CEILING", 100 * PATIENCE)


@pytest.fixture(params=["kernel", "polling"])
def bell(request, tmp_path, monkeypatch):
    """Make a bell, with the kernel's watch and without."""
    if request.param == "polling":
        monkeypatch.setattr(_wakeup, "_Inotify", _refuse)
        monkeypatch.setattr(_wakeup, "_Kqueue", _refuse)
    bell = Bell(os.fspath(tmp_path / "bell"))
    yield bell
    assert isinstance(bell._watch, _wakeup._Polling) == (request.param == "polling") or bell._watch is None
    bell.close()


def _wait_seconds(bell, ticket, timeout=PATIENCE):
    begun = time.monotonic()
    while bell._rings == ticket and time.monotonic() - begun < timeout:
        bell.wait(ticket, timeout)
    return time.monotonic() - begun


# --- the bell


@pytest.mark.usefixtures("no_ceiling")
@on_linux
def test_a_watch_that_cannot_be_had_whole_leaves_no_descriptor(tmp_path, monkeypatch):
    class Refusing:
        def register(self, *_):
            raise MemoryError

    monkeypatch.setattr(_wakeup.select, "poll", Refusing)
    (tmp_path / "bell").write_bytes(b"\0")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError):
        _wakeup._Inotify(str(tmp_path / "bell"))
    assert os.listdir("/proc/self/fd") == before


def test_a_ring_between_listening_and_sleeping_is_not_missed(bell):
    ticket = bell.listen()
    bell.ring()
    assert _wait_seconds(bell, ticket) < PATIENCE / 2


@pytest.mark.usefixtures("no_ceiling")
def test_a_ring_through_another_bell_on_the_file_counts(bell, tmp_path):
    other = Bell(os.fspath(tmp_path / "bell"))
    ticket = bell.listen()
    other.ring()
    assert _wait_seconds(bell, ticket) < PATIENCE / 2
    other.close()


def test_who_rings_writes_only_if_somebody_has_ever_listened(tmp_path, monkeypatch):
    path = os.fspath(tmp_path / "bell")
    ringer, listener = Bell(path), Bell(path)
    ringer.hang()
    written = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *call: written.append(call) or real(*call))
    ringer.ring()
    assert not written
    listener.listen()
    written.clear()
    ringer.ring()
    Bell(path).ring()
    assert len(written) == 2
    ringer.close()
    listener.close()


@pytest.mark.usefixtures("no_ceiling")
def test_a_ring_of_another_thread_ends_a_sleep_at_once(bell):
    ticket = bell.listen()
    with ThreadPoolExecutor(1) as pool:
        slept = pool.submit(_wait_seconds, bell, ticket)
        eventually(lambda: bell._is_seat_taken() or slept.done())  # one that polls looks by itself
        bell.ring()
        assert slept.result(2 * PATIENCE) < PATIENCE / 2


def _ring(path):
    Bell(path).ring()


@pytest.mark.usefixtures("no_ceiling")
def test_a_ring_of_another_process_ends_a_sleep_at_once(bell, tmp_path):
    ticket = bell.listen()
    ringer = spawn.Process(target=_ring, args=(os.fspath(tmp_path / "bell"),))
    ringer.start()
    assert _wait_seconds(bell, ticket) < PATIENCE
    assert bell._rings != ticket
    ringer.join(PATIENCE)
    assert ringer.exitcode == 0


@pytest.mark.usefixtures("no_ceiling")
def test_one_ring_ends_the_sleep_of_all(bell):
    tickets = [bell.listen() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        slept = [pool.submit(_wait_seconds, bell, ticket) for ticket in tickets]
        if not isinstance(bell._watch, _wakeup._Polling):
            eventually(lambda: len(bell._others) == 7)
        bell.ring()
        assert max(each.result(2 * PATIENCE) for each in slept) < PATIENCE / 2


@pytest.mark.usefixtures("no_ceiling")
def test_a_second_ring_ends_a_second_sleep(bell):
    for _ in range(5):
        ticket = bell.listen()
        bell.ring()
        assert _wait_seconds(bell, ticket) < PATIENCE / 2


@pytest.mark.usefixtures("no_ceiling")
def test_closing_ends_every_sleep(bell):
    ticket = bell.listen()
    with ThreadPoolExecutor(4) as pool:
        slept = [pool.submit(_wait_seconds, bell, ticket) for _ in range(4)]
        eventually(
            lambda: bell._is_seat_taken() or all(each.done() for each in slept)
        )  # those who poll look by themselves
        bell.close()
        assert max(each.result(2 * PATIENCE) for each in slept) < PATIENCE / 2


def test_a_sleep_ends_at_its_timeout(bell):
    ticket = bell.listen()
    begun = time.monotonic()
    while time.monotonic() - begun < 0.05:
        bell.wait(ticket, 0.05)
        ticket = bell._rings
    assert time.monotonic() - begun < PATIENCE / 2


@on_linux
def test_nobody_sleeps_longer_than_the_ceiling(tmp_path, monkeypatch):
    monkeypatch.setattr(_wakeup, "CEILING", 0.1)
    bell = Bell(os.fspath(tmp_path / "bell"))
    ticket = bell.listen()
    begun = time.monotonic()
    bell.wait(ticket, 10 * PATIENCE)
    assert 0.09 < time.monotonic() - begun < PATIENCE
    assert bell._rings == ticket
    bell.close()


@on_linux
@pytest.mark.usefixtures("no_ceiling")
def test_a_sleeper_that_leaves_gives_the_seat_to_one_that_stays(tmp_path):
    bell = Bell(os.fspath(tmp_path / "bell"))
    ticket = bell.listen()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bell.wait, ticket, 0.2)
        eventually(bell._is_seat_taken)
        second = pool.submit(_wait_seconds, bell, ticket)
        eventually(lambda: bell._others)
        first.result(PATIENCE)
        eventually(bell._is_seat_taken)  # the second has sat down, or it would sleep through the ring
        bell.ring()
        assert second.result(2 * PATIENCE) < PATIENCE / 2
    bell.close()


@pytest.mark.usefixtures("no_ceiling")
def test_a_seat_that_an_interrupted_sleeper_never_left_is_free_in_time(bell):
    bell._sitting[0] = time.monotonic() + 0.1
    ticket = bell.listen()
    bell.wait(ticket, 0.05)  # rests
    eventually(lambda: not bell._is_seat_taken())
    with ThreadPoolExecutor(1) as pool:
        slept = pool.submit(_wait_seconds, bell, ticket)
        eventually(lambda: bell._is_seat_taken() or slept.done())
        bell.ring()
        assert slept.result(2 * PATIENCE) < PATIENCE / 2


def test_an_interrupted_sleeper_tells_another_what_it_was_told(bell, monkeypatch):
    other = bell._others.rest()
    ticket = bell.listen()
    bell._sitting[0] = time.monotonic() + PATIENCE

    class Interrupting:
        def acquire(self, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr(bell._others, "rest", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        bell.wait(ticket, PATIENCE)
    assert other.acquire(timeout=PATIENCE)
    assert not bell._others
    bell._sitting.clear()


@pytest.mark.usefixtures("no_ceiling")
def test_an_interrupted_sleeper_that_never_left_its_seat_sits_down_again(bell):
    bell._sitting[threading.get_ident()] = time.monotonic() + 10 * PATIENCE
    ticket = bell.listen()
    bell.ring()
    assert _wait_seconds(bell, ticket) < PATIENCE / 2


def test_a_ring_never_fails_since_what_it_follows_is_done(tmp_path):
    Bell(os.fspath(tmp_path / "no such directory" / "bell")).ring()


def test_a_ring_that_a_close_overtakes_writes_into_no_other_file(tmp_path, monkeypatch):
    bell = Bell(os.fspath(tmp_path / "bell"))
    bell.ring()
    innocent = tmp_path / "innocent"
    innocent.write_bytes(b"content")
    ringing, closed = threading.Event(), threading.Event()
    real = os.pwrite

    def pwrite(fd, data, offset):
        if not ringing.is_set():
            ringing.set()
            closed.wait(0.3)  # a ring that close() has to wait for goes on after that
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with ThreadPoolExecutor(2) as pool:
        ring = pool.submit(bell.ring)
        assert ringing.wait(PATIENCE)
        close = pool.submit(bell.close)
        while not close.done() and not ring.done():
            time.sleep(0.001)
        with open(innocent, "r+b") as file:  # its descriptor is the one that was free
            closed.set()
            ring.result(PATIENCE)
            close.result(PATIENCE)
            file.seek(0)
            assert file.read() == b"content"


# --- what it costs


def _inotify_count():
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of listdir itself
            count += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify"
    return count


@on_linux
def test_all_sleepers_of_a_process_share_one_watch(queue, open_queue):
    before = _inotify_count()
    objects = [queue, open_queue(), open_queue(name="other")]
    bell = queue._engine.environment.bell
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(each.pop, 1, blocking=True) for each in objects for _ in range(4)]
        eventually(lambda: bell._is_seat_taken() and len(bell._others) == 11)
        assert _inotify_count() == before + 1
        for each in objects:
            each.push([1, 2, 3, 4])
        for each in waiting:
            each.result(PATIENCE)
    assert _inotify_count() == before + 1
    for each in objects:
        each.close()
    assert _inotify_count() == before


@on_linux
def test_no_watch_is_opened_for_those_who_do_not_wait(queue):
    before = _inotify_count()
    queue.push(["a", "b"])
    queue.pop()
    queue.get()
    assert _inotify_count() == before


@pytest.mark.parametrize("watch", ["kernel", "polling"])
def test_a_process_that_waits_is_idle(queue, monkeypatch, watch):
    if watch == "polling":
        monkeypatch.setattr(_wakeup, "_Inotify", _refuse)
        monkeypatch.setattr(_wakeup, "_Kqueue", _refuse)
    with pytest.raises(Empty):
        queue.pop(1, blocking=True, timeout=0)  # imports and opens what waiting needs
    before = time.process_time()
    with pytest.raises(Empty):
        queue.pop(1, blocking=True, timeout=1.0)
    assert time.process_time() - before < 0.25


@on_linux
def test_a_waiter_that_nobody_wakes_looks_no_more_often_than_the_ceiling_says(queue, monkeypatch):
    monkeypatch.setattr(_wakeup, "CEILING", 0.25)
    looks = []
    real = queue.count
    monkeypatch.setattr(queue, "count", lambda: looks.append(None) or real())
    with pytest.raises(Empty):
        queue.pop(1, blocking=True, timeout=1.0)
    assert len(looks) <= 2 * 5  # twice around each sleep


# --- the bell of a queue


def test_a_waiter_whose_ring_was_lost_finds_the_item_at_the_ceiling(queue, monkeypatch):
    monkeypatch.setattr(_wakeup, "CEILING", 0.2)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(queue.pop, 1, blocking=True, timeout=PATIENCE)
        eventually(queue._engine.environment.bell._is_seat_taken)
        with monkeypatch.context() as patch:
            patch.setattr(Bell, "ring", lambda _: None)
            queue.push("a")
        assert found.result(PATIENCE) == "a"


@pytest.mark.usefixtures("no_ceiling")
def test_where_the_kernel_has_no_watch_left_waiting_works_all_the_same(queue, monkeypatch):
    monkeypatch.setattr(_wakeup, "_Inotify", _refuse)
    monkeypatch.setattr(_wakeup, "_Kqueue", _refuse)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(queue.pop, 1, blocking=True, timeout=PATIENCE) for _ in range(3)]
        eventually(queue._engine.environment.bell._is_seat_taken)
        assert isinstance(queue._engine.environment.bell._watch, _wakeup._Polling)
        queue.push([1, 2, 3])
        assert sorted(each.result(PATIENCE) for each in found) == [1, 2, 3]


@on_linux
@pytest.mark.usefixtures("no_ceiling")
def test_a_forked_child_has_a_watch_of_its_own_and_the_parent_keeps_its(queue):
    before = _inotify_count()
    bell = queue._engine.environment.bell
    bell.listen()
    assert _inotify_count() == before + 1
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        facts = []
        try:
            facts.append(_inotify_count() == before)
            facts.append(queue._engine.environment.bell is not bell)
            queue._engine.environment.bell.listen()
            facts.append(_inotify_count() == before + 1)
            os.write(writable, b"ready")
            facts.append(queue.pop(1, blocking=True, timeout=PATIENCE) == "for the child")
            facts.append(_inotify_count() == before + 1)
        finally:
            os._exit(0 if facts == [True] * 5 else 1)
    assert os.read(readable, 5) == b"ready"
    queue.push("for the child")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(readable)
    os.close(writable)
    ticket = bell.listen()
    bell.ring()
    assert _wait_seconds(bell, ticket) < PATIENCE / 2
    assert _inotify_count() == before + 1


PINGS = 5_000
MANY_PINGS = 100_000


def _pong(place, pings):
    _wakeup.CEILING = 100 * PATIENCE
    with (
        PersistentQueue("queue", place, name="ping", durability="off") as ping,
        PersistentQueue("queue", place, name="pong", durability="off") as pong,
    ):
        for n in range(pings):
            assert ping.pop(1, blocking=True, timeout=PATIENCE) == n
            pong.push(n)


@pytest.mark.usefixtures("no_ceiling")
@pytest.mark.parametrize("pings", [PINGS, pytest.param(MANY_PINGS, marks=pytest.mark.long)])
def test_no_wake_is_lost_in_many_rounds_between_two_processes(open_queue, tmp_path, pings):
    ping = open_queue(name="ping", durability="off")
    pong = open_queue(name="pong", durability="off")
    player = spawn.Process(target=_pong, args=(tmp_path, pings))
    player.start()
    slowest = 0.0
    for n in range(pings):
        begun = time.monotonic()
        ping.push(n)
        assert pong.pop(1, blocking=True, timeout=PATIENCE) == n
        slowest = max(slowest, time.monotonic() - begun)
    player.join(PATIENCE)
    assert player.exitcode == 0
    assert slowest < PATIENCE / 2  # a lost wake sleeps for PATIENCE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_who_cannot_open_the_bell_waits_all_the_same(open_queue, monkeypatch, number):
    queue, other = open_queue(durability="off"), open_queue(durability="off")
    bell = queue._engine.environment.bell
    bell.forget()

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_wakeup, "open_private", refuse)
    with pytest.raises(Empty):
        queue.get(timeout=0.02)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(queue.get, timeout=PATIENCE)
        other.push("a")
        assert found.result(PATIENCE) == "a"
