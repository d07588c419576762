"""The file ``checkpoint``: the snapshot of a queue with ``durability="interval"`` that is certainly on the disk.

Owns: the bytes of its two slots, and its lanes. Law: a slot is overwritten only when the other one of its lane is newer
and on the disk. Must not know: the library ``lmdb``, when a checkpoint is made (``_local.checkpoints``), what recovery
does with it.

Lanes. A process that writes a slot holds the ``flock`` of the file, and waits for the disk while holding it. Another
process does not wait for it, since it may be stopped: it takes the next file, ``checkpoint-1``, ``checkpoint-2``, ...,
which it creates if necessary, and if there is room. Each file has slots of its own, and the newest of all counts. An
older one that is written later does no harm. What all processes may know of a lane is told by the one that holds it, so
that nobody else is telling it at the same time.

A slot, at 0 and at 4,096, so that none shares a sector or a page with the other, in the machine's byte order::

      0   8  MAGIC
      8   8  the generation
     16 136  the body of a meta page, which stands 16 bytes behind the begin of that (``_lmdb.meta_page``); its last 8
             bytes are the number of the transaction
    152   4  CRC-32 of all that
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from struct import Struct
from typing import Final
from zlib import crc32

from lmdbqueue._base.errors import ForkError
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._host import fork
from lmdbqueue._host.descriptors import close
from lmdbqueue._host.directory import LANE
from lmdbqueue._host.disk import NO_ROOM, open_private, refuse_short, sync_directory, sync_file

MAGIC: Final = b"lmdbqcp1"
BODY_SIZE: Final = 136
SLOT_SIZE: Final = 4096
_SLOT: Final = Struct(f"=8s Q {BODY_SIZE}s")
_SUM: Final = Struct("=I")
_TRANSACTION: Final = Struct("=Q")
_OFFSETS: Final = (0, SLOT_SIZE)
_PATIENCE: Final = 1.0  # seconds within which a process that is not stopped has written its slot
_LOOK: Final = 0.001  # seconds between two checks whether it has


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
        """A value that is greater for the newer of two checkpoints."""
        return self.generation, self.transaction


class Slots:
    """The open lanes."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """Open the first lane, the file at ``path``; create it if it is missing."""
        self._path = path
        self._folder = folder
        self._lanes = [_Lane(path, folder)]

    def close(self) -> None:
        """Free the descriptors; twice is harmless.

        The lanes keep their numbers: a child that was forked amid ``raise_to`` goes on there.
        """
        for lane in self._lanes:
            lane.close()

    def raise_to(self, checkpoint: Checkpoint, tell: Callable[[int, Checkpoint], object]) -> None:
        """Store this checkpoint, whose pages are on the disk, durably, unless a newer one is. Raises ``OSError``.

        It waits for a lane of another process only if the disk has no room for another lane, and only a moment. While
        it has the lane, it calls ``tell`` with its number and its newest checkpoint, once that is on the disk.
        """
        deadline = time.monotonic() + _PATIENCE
        number = 0
        while True:
            try:
                if number == len(self._lanes):
                    self._lanes.append(_Lane(f"{self._path}-{number}", self._folder))
                if self._lanes[number].raise_to(checkpoint, partial(tell, number)):
                    return
                number += 1
            except OSError as error:
                if not number or error.errno not in NO_ROOM or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK)
                number = 0

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, on the disk or not, of the lanes that this process has used."""
        return _newest(each for lane in self._lanes for each in lane.read())


class _Lane:
    """One open file."""

    def __init__(self, path: str, folder: int | None) -> None:
        self._life = fork.life
        self._path = path
        self._folder = folder
        self._fd = open_private(path, os.O_RDWR, folder=folder)
        self._durable: Checkpoint | None = None  # the checkpoint that this process knows to be on the disk

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)

    def read(self) -> list[Checkpoint | None]:
        try:
            return _read(self._fd)
        finally:
            self._refuse_inherited()

    def _refuse_inherited(self) -> None:
        """Raise ``ForkError`` in a child that a signal handler has forked amid this, in place of what it has met."""
        if self._life is not fork.life:
            raise ForkError(os.path.dirname(self._path))

    def raise_to(self, checkpoint: Checkpoint, tell: Callable[[Checkpoint], object]) -> bool:
        """Like ``Slots.raise_to``; return False if another process is writing here, or was stopped while writing."""
        self._refuse_inherited()  # for a lane that was not yet among those that the child has closed
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # here, since an interrupt may come as it returns
            tell(self._raise_to(checkpoint))
        except BlockingIOError:
            return False
        finally:
            if self._life is not fork.life:  # without a call, as which an interrupt would leave it locked
                raise ForkError(os.path.dirname(self._path))
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def _raise_to(self, checkpoint: Checkpoint) -> Checkpoint:
        if self._durable is None:
            self._complete()
        found = self.read()
        newest = _newest(found)
        if newest is not None and newest != self._durable:
            # its writer may have been killed before it was on the disk, or its fsync failed: the next one would falsely
            # succeed, since the system drops what it could not write
            self._write(_OFFSETS[found[0] != newest], newest)
            self._durable = newest
        if newest is None or newest.order < checkpoint.order:
            self._write(_OFFSETS[newest is not None and found[0] == newest], checkpoint)
            self._durable = newest = checkpoint
        return newest

    def _complete(self) -> None:
        """Bring the file and its name to the disk, since its creator may have been killed before that."""
        size = os.fstat(self._fd).st_size
        if size < 2 * SLOT_SIZE:
            rest = bytes(2 * SLOT_SIZE - size)
            refuse_short(os.pwrite(self._fd, rest, size), rest)
            sync_file(self._fd)
        sync_directory(os.path.dirname(self._path), self._folder)

    def _write(self, offset: int, checkpoint: Checkpoint) -> None:
        data = _SLOT.pack(MAGIC, *checkpoint)
        data += _SUM.pack(crc32(data))
        refuse_short(os.pwrite(self._fd, data, offset), data)
        sync_file(self._fd)


def read(path: str) -> tuple[bool, Checkpoint | None]:
    """Return whether the lanes, the first of which is at ``path``, are readable, and the newest checkpoint.

    A missing or damaged lane is not readable; an empty one, or one of zeros, says that there is no checkpoint.
    """
    newest: list[Checkpoint | None] = []
    try:
        for each in _lanes(path):
            with open(each, "rb") as file:
                found = _read(file.fileno())
                newest.append(_newest(found))
                if newest[-1] is None and any(os.pread(file.fileno(), 2 * SLOT_SIZE, 0)):
                    return False, None
    except FileNotFoundError:
        return False, None
    return True, _newest(newest)


def forget(path: str) -> None:
    """Record durably in all existing lanes that there is no checkpoint."""
    folder = os.path.dirname(path)
    with suppress(FileNotFoundError):
        for each in reversed(_lanes(path)):
            fd = os.open(each, os.O_RDWR | os.O_CLOEXEC)
            try:
                if fork.amid.life not in (None, fork.life):
                    raise ForkError(folder)
                os.pwrite(fd, bytes(2 * SLOT_SIZE), 0)
                sync_file(fd)
            finally:
                os.close(fd)


def _lanes(path: str) -> list[str]:
    """Return the paths of all lanes, the first of them first."""
    folder = os.path.dirname(path)
    return [path, *(os.path.join(folder, name) for name in os.listdir(folder) if re.fullmatch(LANE, name))]


def _newest(found: Iterable[Checkpoint | None]) -> Checkpoint | None:
    return max(filter(None, found), key=lambda each: each.order, default=None)


def _read(fd: int) -> list[Checkpoint | None]:
    return [_unpack(os.pread(fd, _SLOT.size + _SUM.size, offset)) for offset in _OFFSETS]


def _unpack(data: bytes) -> Checkpoint | None:
    if len(data) < _SLOT.size + _SUM.size or _SUM.unpack_from(data, _SLOT.size)[0] != crc32(data[: _SLOT.size]):
        return None
    magic, generation, body = _SLOT.unpack_from(data)
    return Checkpoint(generation, body) if magic == MAGIC else None
