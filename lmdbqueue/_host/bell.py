"""Waking sleepers, in this process and in others, after a commit.

Owns: the doorbell, a file of one byte. Law: a thread that calls ``listen``, then checks, then sleeps with the ticket of
``listen`` misses no ring: one that comes in between ends the sleep immediately. No thread sleeps longer than
``CEILING`` without checking. Must not know: LMDB, queues, what is waited for.

A committer writes the byte (``ring``) *after* its commit: watching the data file itself would wake sleepers before the
commit is visible. The byte is 0 until the first listener sets it, before it checks: until then there are no sleepers,
and a committer learns that from memory. Sleepers watch the file by inotify on Linux, by kqueue on macOS and the BSDs;
elsewhere, and when the kernel has no watches left, they check every ``POLL`` seconds.

One watch serves all sleepers of a process, and stays open: opening one for each sleep cost a p99 of
15 ms instead of 0.3 ms. One sleeper at a time sits on the watch; the others rest, each at a lock of its own. All of
them are woken when the bell rings, and one of them when the seat becomes free for another reason, to take it.

An interrupt (KeyboardInterrupt) may come anywhere (``_host.threads``): a seat that an interrupted sleeper never left
becomes free at the time at which its sleep would have ended.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from lmdbqueue._host.descriptors import close
from lmdbqueue._host.disk import is_of_a_handler, open_private
from lmdbqueue._host.threads import Resting

CEILING: Final = 1.0  # seconds
POLL: Final = 0.005  # seconds; 0.7 % of a core, 2.8 ms of delay
_LATE: Final = 1.0  # seconds by which a sleeper may wake late
_HEARD: Final = b"\1"


if TYPE_CHECKING:

    class _Watch(Protocol):
        def wait(self, timeout: float) -> bool:
            """Sleep until the file is written to, at most ``timeout`` seconds; return whether it may have been."""

        def close(self) -> None:
            """Free the descriptors."""


class Bell:
    """The doorbell of one directory, in this process."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """Use the file at ``path``; ``hang`` creates it, or the first use."""
        self._path = path
        self._folder = folder
        self._fd: int | None = None
        self._memory: mmap.mmap | None = None  # the byte
        self._watch: _Watch | None = None
        self._rings = 0
        self._sitting: dict[int, float] = {}  # the thread on the watch: by when it has left in any case
        self._others = Resting()
        self._is_closed = False
        self._lock = threading.RLock()  # reentrant: a signal handler may ring; taken in one step of C

    def hang(self) -> None:
        """Create the file if it is missing. Under the directory lock, or others may find it still owned by root."""
        with self._lock, suppress(OSError):  # on a full disk there is no bell
            self._open()

    def ring(self) -> None:
        """Wake every sleeper of every process. Call it after the commit.

        It never fails, since the commit is already done. On a full disk the sleepers wake at their ceiling.
        """
        with self._lock:  # so that close() cannot free the descriptor for another file meanwhile
            if not self._is_closed and (self._memory is None or self._memory[0]):
                try:
                    os.pwrite(self._open(), _HEARD, 0)
                except OSError as error:
                    if is_of_a_handler(error):
                        raise

    def listen(self) -> int:
        """Begin to notice rings; return a ticket for ``wait``."""
        with self._lock:
            if self._watch is None and not self._is_closed:
                try:
                    self._watch = self._listening()
                except OSError as error:  # no descriptor, or no room for the file: this process hears no rings
                    if is_of_a_handler(error):
                        raise
                    self._watch = _Polling()
            return self._rings

    def _listening(self) -> _Watch:
        fd = self._open()
        if self._memory is None or not self._memory[0]:
            try:
                os.pwrite(fd, _HEARD, 0)
            except OSError as error:  # a full disk
                if is_of_a_handler(error):
                    raise
        return _watch(self._path, fd)

    def wait(self, ticket: int, timeout: float) -> None:
        """Sleep until the bell rings after ``ticket`` was given, at most ``timeout`` seconds and ``CEILING``."""
        deadline = time.monotonic() + min(timeout, CEILING)
        while (left := deadline - time.monotonic()) > 0 and self._sleep(ticket, left):
            pass

    def close(self) -> None:
        """Wake the sleepers of this process and free the descriptors."""
        if self._watch is not None:
            self.ring()
        with self._lock:
            self._is_closed = True
            self._rings += 1
            self._others.tell()
        while True:
            with self._lock:
                if not self._is_seat_taken():
                    self.forget()
                    return
                turn = self._others.rest()
            turn.acquire(timeout=CEILING)

    def forget(self) -> None:
        """Only free the descriptors, as a forked child must."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._fd is not None:
            close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = open_private(self._path, os.O_RDWR, folder=self._folder)
        if self._memory is None:
            if not os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, 1)  # writing a byte could overwrite that of a listener
            self._memory = mmap.mmap(self._fd, 1, prot=mmap.PROT_READ)
        return self._fd

    def _is_seat_taken(self) -> bool:
        """Return whether a thread sits on the watch, as far as is known."""
        return any(until > time.monotonic() for until in list(self._sitting.values()))

    def _sleep(self, ticket: int, timeout: float) -> bool:
        """Sleep on the watch, or until woken if another thread sits there; return whether there may be news."""
        me = threading.get_ident()
        turn = None
        rang = False
        hands_on = True  # whether to pass on the seat, or a wake-up that an interrupted thread received
        try:
            with self._lock:
                self._sitting.pop(me, None)
                watch = self._watch
                if self._rings != ticket or self._is_closed or watch is None:
                    hands_on = False
                    return False
                if self._is_seat_taken():
                    turn = self._others.rest()
                else:
                    self._sitting[me] = time.monotonic() + timeout + _LATE
            if turn is None:
                rang = watch.wait(timeout)
            else:
                turn.acquire(timeout=timeout)
                hands_on = False
            return True
        finally:
            with self._lock:
                self._sitting.pop(me, None)
                if turn is not None:
                    self._others.leave(turn)
                self._rings += rang
                self._others.tell(None if rang else hands_on)


class _Inotify:
    """Linux. By ctypes, since the standard library has no inotify and a dependency would be heavier."""

    _IN_MODIFY = 0x2

    def __init__(self, path: str) -> None:
        import ctypes  # noqa: PLC0415  (12 ms, only for waiting calls)

        libc = ctypes.CDLL(None, use_errno=True)
        name = os.fsencode(path)
        self._poll = select.poll()
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        error = 0
        try:
            if self._fd < 0 or libc.inotify_add_watch(self._fd, name, self._IN_MODIFY) < 0:
                error = ctypes.get_errno()
            else:
                self._poll.register(self._fd, select.POLLIN)
        except BaseException:
            self.close()
            raise
        if error:
            self.close()
            raise OSError(error, os.strerror(error))

    def wait(self, timeout: float) -> bool:
        rang = bool(self._poll.poll(timeout * 1000))
        if rang:
            with suppress(BlockingIOError):
                os.read(self._fd, 4096)
        return rang

    def close(self) -> None:
        if self._fd >= 0:
            close(self._fd)


class _Kqueue:
    """macOS and the BSDs."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._queue: Any = None
        try:
            self._queue = select.kqueue()  # type: ignore[attr-defined]
            event = select.kevent(  # type: ignore[attr-defined]
                self._file,
                filter=select.KQ_FILTER_VNODE,  # type: ignore[attr-defined]
                flags=select.KQ_EV_ADD | select.KQ_EV_CLEAR,  # type: ignore[attr-defined]
                fflags=select.KQ_NOTE_WRITE,  # type: ignore[attr-defined]
            )
            self._queue.control([event], 0)
        except BaseException:
            self.close()
            raise

    def wait(self, timeout: float) -> bool:
        return bool(self._queue.control(None, 8, timeout))

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
        os.close(self._file)


class _Polling:
    """Everywhere else: the sleeper checks every ``POLL`` seconds."""

    def wait(self, timeout: float) -> bool:
        time.sleep(min(timeout, POLL))
        return True

    def close(self) -> None:
        pass


def _watch(path: str, fd: int) -> _Watch:
    """Return a watch on the file that is open as ``fd``, even if it was renamed."""
    try:
        here = f"/proc/self/fd/{fd}"
        return _Inotify(here if os.access(here, os.F_OK) else path) if sys.platform == "linux" else _Kqueue(path)
    except TimeoutError:  # raised by an alarm: nothing here waits for a network
        raise
    except (OSError, AttributeError, ImportError):  # no watch or descriptor left, or another kind of system
        return _Polling()
