"""Who is alive: the life-sign of every process that has the queue open.

Owns: the file ``session``. Law: each process that has the queue open holds a shared ``flock`` on it,
and nobody else does; so whoever can take it exclusively is alone, and no lock outlives its process.
Must not know: LMDB, generations, items.

The file is ``SIZE`` bytes long: 8 bytes ``MAGIC``, then zeros that are reserved for words that
processes share through memory (the last synced transaction, boot and mount of the last session).
"""

import os
from typing import Final

from lmdbqueue import _flock

MAGIC: Final = b"lmdbqses"
SIZE: Final = 4096


class Session:
    """The life-sign of this process on one queue. Make it under the directory lock."""

    def __init__(self, path: str) -> None:
        """Join by the session file at ``path``. ``first`` tells whether nobody else is there."""
        _make(path)
        fd = _flock.acquire(path, exclusive=True, wait=False)
        self.first = fd is not None
        if fd is None:
            fd = _flock.acquire(path, exclusive=False)
            assert fd is not None  # it waited
        else:
            _flock.share(fd)
        self._fd = fd

    def leave(self) -> None:
        """Take the life-sign down."""
        _flock.release(self._fd)


def _make(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(fd).st_size != SIZE:
            os.pwrite(fd, MAGIC.ljust(SIZE, b"\0"), 0)
    finally:
        os.close(fd)
