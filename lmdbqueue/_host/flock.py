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

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_held: set[int] = set()
_FLOCK: Final = re.compile(r": FLOCK +\w+ +\w+ (?P<pid>\d+) (?P<file>\S+) ")  # of who waits: ": -> FLOCK"


def acquire(path: str) -> int:
    """Take a shared lock of what is at ``path``, which must exist, once nobody has it alone; return a handle."""
    fd = os.open(path, os.O_RDONLY)
    _held.add(fd)
    try:
        share(fd)
    except BaseException:
        release(fd)
        raise
    return fd


def share(fd: int) -> None:
    """Make the lock a shared one, whatever it was. Another waiter may slip in between."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def make_exclusive(fd: int) -> None:
    """Make the lock an exclusive one, once nobody else has it. Another waiter may slip in between."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def is_free(fd: int) -> bool:
    """Tell whether nobody has the lock alone. For a descriptor that the caller closes at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(fd: int) -> bool:
    """Tell whether this process took the lock, and has not released it: not in a forked child of the one that did."""
    return fd in _held


def alone(fd: int) -> bool:
    """Tell whether nobody else has the lock; it is then exclusive, and else it is lost."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Free the lock; in a forked child, of a lock that its parent took, do nothing."""
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def holders(fd: int) -> int | None:
    """Return how many processes have the lock that this one has by ``fd``; None where the system does not tell.

    Linux lists all locks, with the file's device and inode as it writes them for this very descriptor (``stat``
    says something else on some file systems). Within a pid namespace it shows those of that namespace only.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            mine = [_FLOCK.search(line) for line in file if line.startswith("lock:")]
        with open("/proc/locks", encoding="ascii") as file:
            found = [_FLOCK.search(line) for line in file]
    except OSError:
        return None
    files = {match["file"] for match in mine if match}
    return len({match["pid"] for match in found if match and match["file"] in files}) or None


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the exclusive lock of ``path`` for the block, waiting for it first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        _held.add(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        try:  # not by release(): an interrupt at its first line would leave the lock taken
            _held.discard(fd)
        finally:
            os.close(fd)


def _forget_in_child() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
