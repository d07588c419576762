"""Locks of the operating system that die with their process.

Owns: ``flock`` on a file or directory, taken through a descriptor of its own. Law: a lock belongs to
the process that took it and to nobody else; the kernel frees it at death, however that comes. Must
not know: what a lock is for.

The kernel frees the locks of a dead process one after the other: who gets the first may find that the dead
one has the next still, and has to wait for it rather than to take its holder for alive.

An ``flock`` belongs to the open file description, which a forked child shares: a child that kept the
descriptor would keep the lock of a dead parent. So every descriptor is listed here and closed in the
child, which leaves the parent's lock alone (only the last close frees it). A POSIX record lock is not
inherited, but is lost when *any* descriptor of its file is closed in the process, and cannot be had
on a directory that is open for reading.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import Parking, holding

_held: set[int] = set()
_life = object()  # of this process: a forked child has another. Compared without a call, which could be interrupted
_LOOK: Final = 0.02  # seconds between two looks for a lock that is not waited for without end
_FLOCK: Final = r": FLOCK +\w+ +\w+ (?P<pid>\d+) (?P<file>\S+) "  # a waiter's line has ": -> FLOCK"


def acquire(path: str, folder: int | None = None) -> int:
    """Take a shared lock of what is at ``path``, which must exist, once nobody has it alone; return a handle."""
    fd = open_at(path, os.O_RDONLY, folder)
    _held.add(fd)
    try:
        share(fd)
    except BaseException:
        release(fd)
        raise
    return fd


def adopt(fd: int) -> None:
    """Take an exclusive lock by a descriptor that is open, which is the handle from now on and closed if that fails."""
    _held.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        release(fd)
        raise


def share(fd: int) -> None:
    """Make the lock a shared one, whatever it was. Another waiter may slip in between."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def is_free(fd: int) -> bool:
    """Return whether nobody has the lock alone. For a descriptor that the caller closes at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(fd: int) -> bool:
    """Return whether this process took the lock, and has not released it: not in a forked child of the one that did."""
    return fd in _held


def alone(fd: int) -> bool:
    """Return whether nobody else has the lock; it is then exclusive, and else it is lost."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Free the lock; in a forked child, of a lock that its parent took, do nothing."""
    if fd in _held:
        _held.discard(fd)
        _unlock(fd)
        close(fd)


def _unlock(fd: int) -> None:
    """Free a lock before its descriptor is closed: something else may have a copy of that, or put closing off."""
    with suppress(OSError):  # closed by code that closes descriptors of others
        fcntl.flock(fd, fcntl.LOCK_UN)


def holders(fd: int) -> int | None:
    """Return how many processes have the lock that this one has by ``fd``; None where the system does not tell.

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
    """A file that other processes may have a POSIX lock on, also when it has no name any more.

    It is open meanwhile, by a descriptor that only names it (``O_PATH``): else another file might get its inode, and
    what has that locked be counted. To close such a descriptor drops no lock of this process.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else -1

    def others(self) -> int | None:
        """Return how many other processes have a lock on it; None if nothing tells.

        Found by device and inode, as ``stat`` says them: on some file systems (btrfs) Linux lists another device.
        """
        if self._fd < 0:
            return None
        status = os.fstat(self._fd)
        file = f" {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} "
        try:
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
    """Hold the exclusive lock of ``path`` for the block, waiting for it first; give its descriptor. "." is the folder.

    ``parking``: what tells a fork that this thread waits, and that it need not wait for it. ``patience``: seconds after
    which ``BlockingIOError`` is raised; -1: never.
    """
    life = _life
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
        yield fd
    finally:
        if _life is life:  # else a child was forked in the block, and its parent holds the lock
            try:  # first, and not by release(): an interrupt comes when a call ends, or a function is entered
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
    global _life  # noqa: PLW0603
    _life = object()
    for fd in _held:
        close(fd)
    _held.clear()


at_fork("locks", in_child=_forget_in_child)
