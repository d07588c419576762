"""The file ``checkpoint``: the snapshot of a queue with ``durability="interval"`` that is on the disk in any case.

Owns: the bytes of its two slots. Law: a slot is written over only when the other one is newer and on the disk. Must not
know: the library ``lmdb``, when a checkpoint is made (``_local.checkpoints``), what recovery does with it.

A slot, at 0 and at 4,096, so that none shares a sector or a page with the other, in the machine's byte order::

      0   8  MAGIC
      8   8  the generation
     16 136  the body of a meta page, which stands 16 bytes behind the begin of that (``_lmdb.meta_page``); its last 8
             bytes are the number of the transaction
    152   4  CRC-32 of all that
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct
from typing import Final
from zlib import crc32

from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.disk import open_private, sync_directory, sync_file
from lmdbqueue._host.threads import holding
from lmdbqueue._tuples import NamedTuple

MAGIC: Final = b"lmdbqcp1"
BODY_SIZE: Final = 136
SLOT_SIZE: Final = 4096
_SLOT: Final = Struct(f"=8s Q {BODY_SIZE}s")
_SUM: Final = Struct("=I")
_TRANSACTION: Final = Struct("=Q")
_OFFSETS: Final = (0, SLOT_SIZE)


class Checkpoint(NamedTuple):
    """A snapshot that is on the disk."""

    generation: int
    body: bytes  # of its meta page

    @property
    def transaction(self) -> int:
        """The number of its transaction."""
        number: int = _TRANSACTION.unpack_from(self.body, BODY_SIZE - _TRANSACTION.size)[0]
        return number

    @property
    def order(self) -> tuple[int, int]:
        """What is greater of the newer one."""
        return self.generation, self.transaction


class Slots:
    """The open file."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """Open the file at ``path``; make it, durably, if it is not there."""
        fd = open_private(path, os.O_RDWR, folder=folder)
        try:
            if os.fstat(fd).st_size < 2 * SLOT_SIZE:
                os.pwrite(fd, bytes(2 * SLOT_SIZE), 0)
                sync_file(fd)
                sync_directory(os.path.dirname(path), folder)
        finally:
            close(fd)
        self._fd = open_at(path, os.O_RDWR, folder)
        self._durable: Checkpoint | None = None  # that this process knows to be on the disk

    def close(self) -> None:
        """Free the descriptor; twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)

    def raise_to(self, checkpoint: Checkpoint) -> None:
        """Return when this checkpoint, whose pages are on the disk, or a newer one is there. Raises ``OSError``."""
        with self._locked():
            found = _read(self._fd)
            newest = max(filter(None, found), key=lambda each: each.order, default=None)
            if newest is not None and newest != self._durable:
                # who wrote it may have been killed before it was there; or its fsync failed: the next one would say
                # that all is well, since the system drops what it could not write
                self._write(_OFFSETS[found[0] != newest], newest)
                self._durable = newest
            if newest is None or newest.order < checkpoint.order:
                self._write(_OFFSETS[newest is not None and found[0] == newest], checkpoint)
                self._durable = checkpoint

    def _write(self, offset: int, checkpoint: Checkpoint) -> None:
        data = _SLOT.pack(MAGIC, *checkpoint)
        os.pwrite(self._fd, data + _SUM.pack(crc32(data)), offset)
        sync_file(self._fd)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, on the disk or not."""
        return max(filter(None, _read(self._fd)), key=lambda each: each.order, default=None)

    @holding
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the slots, which the kernel frees of a process that dies."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # here, since an interrupt may come as it returns
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def read(path: str) -> tuple[bool, Checkpoint | None]:
    """Return whether the file at ``path`` tells which checkpoints there are, and the newest, None for none.

    It tells nothing if it is gone, and if it was damaged; a file of zeros tells that there is none yet.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, None
    try:
        found = _read(fd)
        is_new = not any(os.pread(fd, 2 * SLOT_SIZE, 0))
    finally:
        os.close(fd)
    newest = max(filter(None, found), key=lambda each: each.order, default=None)
    return is_new or newest is not None, newest


def forget(path: str) -> None:
    """Durably erase the checkpoint in the file at ``path``, if there is one."""
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(2 * SLOT_SIZE), 0)
            sync_file(fd)
        finally:
            os.close(fd)


def _read(fd: int) -> list[Checkpoint | None]:
    return [_unpack(os.pread(fd, _SLOT.size + _SUM.size, offset)) for offset in _OFFSETS]


def _unpack(data: bytes) -> Checkpoint | None:
    if len(data) < _SLOT.size + _SUM.size or _SUM.unpack_from(data, _SLOT.size)[0] != crc32(data[: _SLOT.size]):
        return None
    magic, generation, body = _SLOT.unpack_from(data)
    return Checkpoint(generation, body) if magic == MAGIC else None
