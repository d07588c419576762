"""The holders of leases: the lock that shows that an open queue is alive, and whether those of others are held.

Owns: the files ``owner-``. Law: an owner holds the exclusive ``flock`` of its file for as long as it lives, in no other
process, and its id is never used again; so if the lock can be taken, or there is no file, the owner is dead for ever.
Must not know: leases, LMDB.

An owner is an open queue rather than a process id, which means nothing in another container, and may belong to another
process later. The lock decides: it ends with its process, in whatever way, and a stopped process keeps it.

====  ==================================================  ================================================
step  what is done, by a new owner                        killed after it; or another comes in between
====  ==================================================  ================================================
1     create the file                                     a file without a lock: swept by the next that looks
2     lock it, waiting for a process that tests it        the kernel frees it: as 1
3     check that the file still exists                    it was swept between 1 and 2: begin anew
4     only now use the id in a lease                      the owner is dead
====  ==================================================  ================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from lmdbqueue._base.errors import ClosedError
from lmdbqueue._host import flock
from lmdbqueue._host.descriptors import close, names_in, open_at
from lmdbqueue._host.disk import open_private, translated

_PREFIX = "owner-"


class Owners:
    """The owners of one directory, as seen by one open queue, which becomes one once it holds leases."""

    def __init__(self, directory: str, folder: int | None = None) -> None:
        """``directory``: where the owners' files are; ``folder``: its descriptor, open while this is in use."""
        self._directory = directory
        self._folder = folder
        self._mine: dict[str, Owner] = {}  # one at most, set and taken by calls of C: nobody waits for it
        self._has_left = False
        self.after = 0  # the owner that was tested last

    @property
    def mine(self) -> int:
        """The id of this queue as an owner, 0 until ``join``."""
        found = self._mine.get("")
        return 0 if found is None else found.id

    def join(self) -> int:
        """Return the id of this queue as an owner. Raises ``ClosedError`` after ``leave``.

        Without a lock: a signal handler amid it may push, and wait for a block of another thread, which may lease.
        """
        if self._has_left:
            raise ClosedError(self._directory)
        return self.mine or self._become().id

    def _become(self) -> Owner:
        mine = Owner(self._directory, self._folder)
        try:
            found = self._mine.setdefault("", mine)
        finally:
            if self._mine.get("") is not mine:  # another thread was faster, or has closed the queue
                mine.release()
        if self._has_left:  # which may have come before ``mine`` was there
            self.leave()
            raise ClosedError(self._directory)
        return found

    def dead_among(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return which of these owners are dead for ever; the next call should test those behind the last of them."""
        self.after = ids[-1] if ids else 0
        return tuple(id_ for id_ in ids if id_ != self.mine and _is_dead(path(self._directory, id_), self._folder))

    def bury(self, ids: Iterable[int]) -> None:
        """Remove the files of dead owners."""
        for id_ in ids:
            with suppress(OSError):
                _unlink(path(self._directory, id_), self._folder)

    def begin_anew(self) -> None:
        """Stop being an owner in a forked child, whose parent may be one."""
        self._mine = {}

    def leave(self) -> None:
        """Release the lock of this owner, whose leases then return; idempotent."""
        self._has_left = True
        mine = self._mine.pop("", None)
        if mine is not None:
            mine.release()


class Owner:
    """The lock that shows that one open queue is alive, until the object is released."""

    def __init__(self, directory: str, folder: int | None = None) -> None:
        """``directory``: where the owners' files are; ``folder``: its descriptor."""
        self._folder = folder
        with translated(directory, "locking"):
            while True:
                self.id = int.from_bytes(os.urandom(8)) or 1
                self._path = path(directory, self.id)
                self._fd = open_private(self._path, os.O_RDWR | os.O_EXCL, folder=folder)
                flock.adopt(self._fd)
                if _exists(self._path, folder):
                    return
                flock.release(self._fd)

    def release(self) -> None:
        """Release the lock: from now on the owner counts as dead. Idempotent; harmless in a forked child."""
        if flock.is_held(self._fd):
            with suppress(OSError):
                _unlink(self._path, self._folder)
            flock.release(self._fd)


def _exists(path: str, folder: int | None) -> bool:
    try:
        os.stat(_name(path, folder), dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _unlink(path: str, folder: int | None) -> None:
    os.unlink(_name(path, folder), dir_fd=folder)


def _name(path: str, folder: int | None) -> str:
    return path if folder is None else os.path.basename(path)


def _is_dead(path: str, folder: int | None) -> bool:
    try:
        fd = open_at(path, os.O_RDONLY, folder)
    except FileNotFoundError:
        return True
    except OSError:  # no descriptor left: unknown
        return False
    try:
        return flock.is_free(fd)
    finally:
        close(fd)


def sweep(directory: str, folder: int) -> None:
    """Remove the files of all dead owners."""
    with suppress(OSError):
        for name in names_in(folder):
            with suppress(OSError):
                if is_owner(name) and _is_dead(os.path.join(directory, name), folder):
                    os.unlink(name, dir_fd=folder)


def is_owner(name: str) -> bool:
    """Return whether this is the name of an owner's file."""
    return name.startswith(_PREFIX)


def path(directory: str, id_: int) -> str:
    """Return the path of an owner's file."""
    return os.path.join(directory, f"{_PREFIX}{id_:016x}")
