"""What the processes that have a queue open tell each other, and the next ones, about it.

Owns: the file ``session``. Law: each process that has the queue open holds a shared ``flock`` on it,
and nobody else does; so whoever can take it exclusively is alone, and no lock outlives its process.
``synced`` names a transaction that is on the disk with all before it, and never one that is not. Must
not know: LMDB, what recovery is.

The file is mapped into memory, so that a word which one process writes is there for all at once, even
when that process is killed the next moment. It is 4096 bytes long, in the machine's byte order::

     0  8   MAGIC
     8  8   synced    the newest transaction known to be durable: its generation; see 4064
    16  8   doubt     the newest generation in which a sync failed, 0 for none
    24  16  boot      id of the boot of the system in which the words were last settled, zeros if not known,
                      CLOSED when the last process had closed the queue
    40   8  mount     id of the mount, never used again within a boot, 0 if not known
    48   8  inode     of this file, so that a copy of the directory is known as such
    56   8  birth     of this file, in ns since 1970, since an inode may be used again; 0 if not known
    64  8   length of the note, 0 for none
    72      note      what recovery must know if it is cut short itself
  4064  8   synced    the transaction's number in its generation
  4072  8   synced    a check of these two words, which several processes may write at once
  4080  8   unsynced  with checkpoints: a moment, by the monotonic clock in ns, since when there may be commits that
                      none covers; 0 if all are covered
  4088  8   joined    whether another process has come since the first one did

A word on the disk may be older than it was in memory when the power went, which is harmless: a
transaction that ``synced`` does not cover is proven, not lost. One that raises ``synced`` may write
over higher words of another process that came in between, or amid its writing, and then the check does not fit: that
costs a sync, nothing else.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lmdbqueue._host import flock
from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.disk import open_private, sync_file
from lmdbqueue._values import NamedTuple

MAGIC: Final = b"lmdbqses"
CLOSED: Final = b"closed".ljust(16)
SIZE: Final = 4096
_GENERATION: Final = 1  # indices of 8-byte words
_DOUBT: Final = 2
_TRANSACTION: Final = 508
_CHECK: Final = 509
_UNSYNCED: Final = 510
_JOINED: Final = 511
_WORD: Final = (1 << 64) - 1
_MIXED: Final = 0x9E37_79B9_7F4A_7C15  # so that words of several writers fit by no arithmetic
_PLACE: Final = struct.Struct("=16s3Q")
_PLACE_AT: Final = 24
_LENGTH: Final = struct.Struct("=Q")
_LENGTH_AT: Final = 64
_NOTE_AT: Final = 72
_TRANSACTION_BITS: Final = 64
_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_MNT_ID_UNIQUE: Final = 0x4000  # Linux 6.8
_STATX_WANTED: Final = _STATX_BTIME | _STATX_MNT_ID_UNIQUE
_STATX: Final = struct.Struct("=I 76x q I 52x Q 104x")  # of struct statx: mask, birth (s, ns), mount id


def stamp(generation: int, transaction: int) -> int:
    """Return one number for a transaction of a generation, that grows with both, of any size."""
    return generation << _TRANSACTION_BITS | transaction


class _Place(NamedTuple):
    """Where a page cache stands: it is gone with the boot, or the mount."""

    boot: bytes
    mount: int
    inode: int
    birth: int


class Session:
    """The life-sign of this process on one queue, and the words it shares. Make it under the directory lock."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """Join by the session file at ``path``. ``first``: nobody else is there; then ``admit`` others."""
        self.path = path
        self.boot = _boot()
        self._known = 0  # a transaction that is on the disk, as far as this process was told
        self._has_left = False
        _make(path, folder)
        fd = flock.acquire(path, folder)  # waits for one that has just died amid recovery
        try:
            self.first = flock.alone(fd)
            if not self.first:
                flock.share(fd)
            self._fd = fd
            self._file = open_at(path, os.O_RDWR, folder)
            try:
                self._memory = mmap.mmap(self._file, SIZE)
                self._words = memoryview(self._memory).cast("Q")
                self._words[_JOINED] = not self.first
            except BaseException:
                close(self._file)
                raise
        except BaseException:  # else nobody could ever open the queue
            flock.release(fd)
            raise

    # --- the words

    def is_synced(self, transaction: int) -> bool:
        """Return whether a transaction, given by its ``stamp``, is known to be on the disk."""
        return self._known >= transaction or self._synced() >= transaction

    def _synced(self) -> int:
        """Return the newest transaction that is known to be on the disk, 0 while another process is writing it down."""
        words = self._words
        generation, transaction = words[_GENERATION], words[_TRANSACTION]
        if words[_CHECK] != (generation * _MIXED + transaction) & _WORD:
            return 0
        self._known = generation << _TRANSACTION_BITS | transaction
        return self._known

    def is_ready(self, generation: int, transaction: int) -> bool:
        """Return whether a transaction is on the disk, and no sync of its generation has failed."""
        is_synced = self._known >= transaction or self._synced() >= transaction
        return is_synced and self._words[_DOUBT] < generation

    def set_synced(self, transaction: int) -> None:
        """Record that a transaction and all before it are on the disk."""
        words = self._words
        generation, number = words[_GENERATION], words[_TRANSACTION]
        is_whole = words[_CHECK] == (generation * _MIXED + number) & _WORD
        if not is_whole or generation << _TRANSACTION_BITS | number < transaction:
            generation, number = transaction >> _TRANSACTION_BITS, transaction & _WORD
            words[_GENERATION] = generation
            words[_TRANSACTION] = number
            words[_CHECK] = (generation * _MIXED + number) & _WORD
            self._known = transaction

    def is_in_doubt(self, generation: int) -> bool:
        """Return whether a sync failed in this generation: no later one proves anything."""
        return self._words[_DOUBT] == generation  # one before it is superseded, and one behind it is a damaged word

    def set_in_doubt(self, generation: int) -> None:
        """Record durably that a sync failed in this generation: it must be known after a power cut, too.

        Called again, it is written again, since the disk may have failed here as well. Raises ``OSError``.
        """
        self._words[_DOUBT] = max(self._words[_DOUBT], generation)
        self.save()

    @property
    def unsynced_since(self) -> int:
        """Since when there may be commits that no checkpoint covers, by the monotonic clock in ns; 0: none."""
        return self._words[_UNSYNCED]

    @unsynced_since.setter
    def unsynced_since(self, time: int) -> None:
        self._words[_UNSYNCED] = time

    def note_unsynced(self, clock: Callable[[], int]) -> None:
        """Note that a commit was made that no checkpoint covers."""
        if not self._words[_UNSYNCED]:
            self._words[_UNSYNCED] = clock()

    def is_shared(self) -> bool:
        """Return whether another process has joined since the first. Joining records this before all else."""
        return self._words[_JOINED] != 0

    # --- the first and the last

    def is_standing(self) -> bool:
        """Return whether all that was ever written is still in the page cache: no power cut came in between."""
        here = _place(self._file)
        return bool(here.boot and here.mount) and self._place == here

    def is_closed(self) -> bool:
        """Return whether all was on the disk when the last process left, and this is no copy of the directory."""
        return self._place.boot == CLOSED and self.is_original()

    def is_original(self) -> bool:
        """Return whether this is the directory that was used, and no copy of it, which may be of several moments."""
        return self._place[2:] == _place(self._file)[2:]

    def settle(self, synced: int) -> None:
        """Write down durably, as the first and once the files are known to be whole, where and how they stand."""
        self._known = self._words[_CHECK] = 0
        self.set_synced(synced)
        self._words[_DOUBT] = 0
        self._words[_UNSYNCED] = 0
        _PLACE.pack_into(self._memory, _PLACE_AT, *_place(self._file))
        self.save()

    def close(self) -> None:
        """Write down durably, as the last and once everything is on the disk, that it is."""
        _PLACE.pack_into(self._memory, _PLACE_AT, *_place(self._file)._replace(boot=CLOSED))
        self.save()

    @property
    def _place(self) -> _Place:
        return _Place(*_PLACE.unpack_from(self._memory, _PLACE_AT))

    def admit(self) -> None:
        """Give up being the first process: others can join from now on."""
        if self.first:
            flock.share(self._fd)
            self.first = False

    def save(self) -> None:
        """Bring the words to the disk."""
        self._memory.flush()
        sync_file(self._file)

    def leave(self) -> None:
        """Take the life-sign down, unless that was done.

        Other threads may be asking for the words: from now on they find them as they were.
        """
        if not self._has_left:
            self._has_left = True
            self._words = memoryview(bytearray(self._words)).cast("Q")
            with suppress(BufferError):  # of who is amid a look, and lets it go
                self._memory.close()
            close(self._file)
            flock.release(self._fd)

    def is_alone(self) -> bool:
        """Return whether no other process has the queue open. Under the directory lock, before ``leave``."""
        return flock.alone(self._fd)

    def processes(self) -> int | None:
        """Return the number of processes that are visible here, this one included; None if unknown."""
        return flock.holders(self._fd)

    # --- the note

    @property
    def note(self) -> bytes:
        """What recovery left for the next one, b"" for nothing."""
        (length,) = _LENGTH.unpack_from(self._memory, _LENGTH_AT)
        return bytes(self._memory[_NOTE_AT : _NOTE_AT + length])

    @note.setter
    def note(self, note: bytes) -> None:
        self._memory[_NOTE_AT : _NOTE_AT + len(note)] = note
        self.save()
        _LENGTH.pack_into(self._memory, _LENGTH_AT, len(note))
        self.save()


def _make(path: str, folder: int | None) -> None:
    fd = open_private(path, os.O_RDWR, folder=folder)
    try:
        if os.fstat(fd).st_size != SIZE:
            os.pwrite(fd, MAGIC.ljust(SIZE, b"\0"), 0)
    finally:
        close(fd)


def _place(fd: int) -> _Place:
    return _Place(_boot(), *_mount_and_birth(fd))


def _boot() -> bytes:
    """Return the id of the boot, none where the system has none; raise ``OSError`` if it cannot be read just now."""
    try:
        with open(_BOOT, encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
        return b""


def _mount_and_birth(fd: int) -> tuple[int, int, int]:
    """Return ids of the mount and of the file. By ctypes: Python has no statx before 3.15."""
    inode = os.fstat(fd).st_ino
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  (2 ms that only the first process pays)

        found = ctypes.create_string_buffer(_STATX.size)
        libc = ctypes.CDLL(None)
        if hasattr(libc, "statx") and libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_WANTED, found) == 0:
            mask, seconds, nanoseconds, mount = _STATX.unpack(found)
            birth = seconds * 10**9 + nanoseconds if mask & _STATX_BTIME else 0
            return mount if mask & _STATX_MNT_ID_UNIQUE else 0, inode, birth
    return 0, inode, 0
