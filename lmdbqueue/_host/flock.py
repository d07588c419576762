"""Locks of the operating system that die with their process.

Owns: ``flock`` on a file or directory, taken through a descriptor of its own. Law: a lock belongs to the process that
took it and to no other; the kernel frees it when that process dies, in whatever way. Must not know: what a lock is for.

The kernel frees the locks of a dead process one after the other: a process that gets the first lock may find the next
still held by the dead one, and must wait for it rather than conclude that its holder is alive.

An ``flock`` belongs to the open file description, which a forked child shares: a child that kept the
descriptor would keep the lock of a dead parent. So every descriptor is listed here and closed in the
child, which leaves the parent's lock alone (only the last close frees it). A POSIX record lock is not inherited, but it
is lost when *any* descriptor of its file is closed in the process, and it cannot be taken on a directory that is open
for reading.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from lmdbqueue._host import fork
from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import Parking, holding

_held: set[int] = set()
_LOOK: Final = 0.02  # seconds between two attempts to get a lock with a time limit
_FLOCK: Final = r": FLOCK +\w+ +\w+ (?P<pid>\d+) (?P<file>\S+) "  # a waiter's line has ": -> FLOCK"


def acquire(fd: int) -> None:
    """Wait for a shared lock by an open descriptor, which becomes the handle; ``release`` it even if this fails."""
    _held.add(fd)
    share(fd)


def adopt(fd: int) -> None:
    """Take an exclusive lock by an open descriptor, which becomes the handle, and is closed if that fails."""
    _held.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        release(fd)
        raise


def share(fd: int) -> None:
    """Convert the lock to a shared one. Another waiter may get it in between."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def is_free(fd: int) -> bool:
    """Return whether no process has the lock exclusively. The caller must close the descriptor immediately."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(fd: int) -> bool:
    """Return whether this process took the lock and has not released it; False in a forked child."""
    return fd in _held


def alone(fd: int) -> bool:
    """Return whether no other process has the lock; if so it is now exclusive, otherwise it is lost."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Free the lock; in a forked child, do nothing for a lock of its parent."""
    if fd in _held:
        _held.discard(fd)
        _unlock(fd)
        close(fd)


def _unlock(fd: int) -> None:
    """Free a lock before its descriptor is closed, since there may be copies of it, or closing may be deferred."""
    with suppress(OSError):  # already closed by code that closes all descriptors
        fcntl.flock(fd, fcntl.LOCK_UN)


def holders(fd: int) -> int | None:
    """Return the number of processes that hold the lock that this one holds by ``fd``; None if the system does not say.

    Linux lists all locks, with the file's device and inode as it writes them for this very descriptor (``stat``
    says something else on some file systems). Within a pid namespace it shows those of that namespace only.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            mine = [re.search(_FLOCK, line) for line in file if line.startswith("lock:")]
        with open("/proc/locks", encoding="ascii") as file:
            found = [re.search(_FLOCK, line) for line in file]
    except OSError:
        return None
    files = {match["file"] for match in mine if match}
    return len({match["pid"] for match in found if match and match["file"] in files}) or None


class LeftFile:
    """A file on which other processes may hold a POSIX lock, even if it has no name any more.

    It is kept open by a descriptor that only names it (``O_PATH``): otherwise another file might get its inode, and the
    locks of that file be counted. Closing such a descriptor drops no lock of this process.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else -1

    def others(self) -> int | None:
        """Return the number of other processes with a lock on it; None if unknown.

        They are found by the device and inode of ``stat``; on some file systems (btrfs) Linux lists another device.
        """
        if self._fd < 0:
            return None
        try:
            status = os.fstat(self._fd)
            file = f" {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} "
            with open("/proc/locks", encoding="ascii") as lines:
                found = {line.split()[4] for line in lines if file in line and line.split()[1] == "POSIX"}
        except OSError:
            return None
        return len(found - {str(os.getpid())})

    def close(self) -> None:
        """Free the descriptor; twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)


@holding
def exclusive(
    path: str, folder: int | None = None, parking: Parking | None = None, patience: float = -1
) -> Iterator[int]:
    """Wait for the exclusive lock of ``path``, and hold it for the block; yield its descriptor. "." is the folder.

    ``parking``: shows a fork that this thread is waiting, so the fork need not wait for it. ``patience``: seconds after
    which ``BlockingIOError`` is raised; -1: never.
    """
    life, before = fork.life, fork.amid.life
    fd = open_at(path, os.O_RDONLY, folder)
    try:
        _held.add(fd)
        if patience >= 0:
            _lock_within(fd, patience)
        elif parking is None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        else:
            with parking.parked():
                fcntl.flock(fd, fcntl.LOCK_EX)
        fork.amid.life = life
        yield fd
    finally:
        fork.amid.life = before
        if fork.life is life:  # otherwise this is a child forked in the block, and its parent holds the lock
            try:  # first, and not by release(): interrupts come when a call ends, or a function is entered
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                try:
                    _held.discard(fd)
                finally:
                    os.closerange(fd, fd + 1)


def _lock_within(fd: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK)
        else:
            return


def _forget_in_child() -> None:
    for fd in _held:
        close(fd)
    _held.clear()


at_fork("locks", in_child=_forget_in_child)
