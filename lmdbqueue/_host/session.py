"""The information that processes with a queue open share, and leave for later ones.

Owns: the file ``session``. Law: each process that has the queue open holds a shared ``flock`` on it, and no other
process does; so a process that can take it exclusively is alone, and no lock outlives its process. ``synced`` names a
transaction that is on the disk with all before it, and never one that is not. Must not know: LMDB, what recovery is.

The file is mapped into memory, so a word that one process writes is immediately visible to all, even if that process is
killed the next moment. It is 4096 bytes long, in the machine's byte order::

     0  8   MAGIC
     8  8   synced    the newest transaction known to be durable: its generation; see 4064
    16  8   doubt     the newest generation in which a sync failed, 0 for none
    24  16   boot      id of the boot of the system in which the words were last settled, zeros if unknown,
                      CLOSED when the last process had closed the queue
    40   8  mount     id of the mount, never used again within a boot, 0 if unknown
    48   8  inode     of this file, so that a copy of the directory is recognized
    56   8  birth     of this file, in ns since 1970, since an inode may be used again; 0 if unknown
    64  8   length of the note, 0 for none
    72      note      what the next recovery must know if this one is cut short
  3672  8   pids      the inode of the pid namespace of all processes that have the queue open; 0 if unknown
  3680 384  covered   with checkpoints, for each of 16 lanes, 8 bytes each: the generation and the number of the newest
                      transaction that it covers, and a check
  4064  8   synced    the transaction's number in its generation
  4072  8   synced    a check of these two words, which several processes may write at once
  4080  8   unsynced  with checkpoints: a moment, by the monotonic clock in ns, since which there may be commits that
                      none covers; 0 if all are covered
  4088  8   joined    whether another process has come since the first one did

**Pids.** LMDB's lock for writing knows its holder by the number of its thread, and the kernel, when a process dies that
waits for the lock, compares that with the number of the dead. In another namespace it may be the same: then the lock
would be taken from its living holder, two processes would write at once, and an acknowledged call would be lost. So all
processes that have the queue open have to be of one namespace: that of the first.

A word on the disk may be older than it was in memory when the power went, which is harmless: a
transaction that ``synced`` does not cover is verified, not lost. A process that raises ``synced`` may overwrite higher
words of another process that wrote in between, or at the same time so that the check does not match: that costs a sync,
nothing else. With checkpoints it would cost more: commits would be called uncovered until the next one comes. So there
``synced`` is written only under the directory lock, and the words of a lane only by the process that has the lane
(``_lmdb.checkpoint_slots``); the highest of all counts.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lmdbqueue._base.errors import ForkError, PidError
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._host import flock, fork
from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.disk import open_private, refuse_short, sync_file

MAGIC: Final = b"lmdbqses"
CLOSED: Final = b"closed".ljust(16)
SIZE: Final = 4096
_LANES: Final = 16
_GENERATION: Final = 1  # indices of 8-byte words
_DOUBT: Final = 2
_PIDS: Final = 459
_COVERED: Final = 460
_TRANSACTION: Final = 508
_CHECK: Final = 509
_UNSYNCED: Final = 510
_JOINED: Final = 511
_WORD: Final = (1 << 64) - 1
_MIXED: Final = 0x9E37_79B9_7F4A_7C15  # so that mixed words of several writers do not match by coincidence
_PLACE: Final = struct.Struct("=16s3Q")
_PLACE_AT: Final = 24
_LENGTH: Final = struct.Struct("=Q")
_LENGTH_AT: Final = 64
_NOTE_AT: Final = 72
_TRANSACTION_BITS: Final = 64
_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_NAMESPACE: Final = "/proc/self/ns/pid"
_PIDFD_GET_PID_NAMESPACE: Final = 0xFF05
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_MNT_ID_UNIQUE: Final = 0x4000  # Linux 6.8
_STATX_WANTED: Final = _STATX_BTIME | _STATX_MNT_ID_UNIQUE
_STATX: Final = struct.Struct("=I 76x q I 52x Q 104x")  # of struct statx: mask, birth (s, ns), mount id


def stamp(generation: int, transaction: int) -> int:
    """Return one number for a transaction of a generation, which grows with both."""
    return generation << _TRANSACTION_BITS | transaction


class _Place(NamedTuple):
    """The boot and the mount in which a page cache lives."""

    boot: bytes
    mount: int
    inode: int
    birth: int


class Session:
    """The session of one queue in this process: a lock, and shared words."""

    def __init__(self, path: str, folder: int | None = None) -> None:
        """Name the session of the file at ``path``, without joining it."""
        self.path = path
        self.boot = _boot()
        self.first = False
        self._folder = folder
        self._known = 0  # the newest transaction that this process knows to be on the disk
        self._has_left = False
        self._fd = self._file = -1
        self._memory = mmap.mmap(-1, SIZE)
        self._words = memoryview(self._memory).cast("Q")

    def join(self) -> None:
        """Join the session. If ``first`` is then true, no other process has; then ``admit`` them.

        Call it under the directory lock, and ``leave`` even if it fails, since an interrupt may come as it returns.
        """
        _make(self.path, self._folder)
        self._fd = open_at(self.path, os.O_RDONLY, self._folder)  # ``leave`` has it before it has the lock
        flock.acquire(self._fd)  # waits for a process that has just died during recovery
        self.first = flock.alone(self._fd)
        if not self.first:
            flock.share(self._fd)
        self._file = open_at(self.path, os.O_RDWR, self._folder)
        self._memory = mmap.mmap(self._file, SIZE)
        self._words = memoryview(self._memory).cast("Q")
        self._refuse_other_pids()
        self._words[_JOINED] = not self.first

    def _refuse_other_pids(self) -> None:
        """Raise ``PidError`` beside processes of another pid namespace."""
        words, pids = self._words, _pids()
        if self.first:
            words[_PIDS] = pids
        elif pids and words[_PIDS] not in (0, pids):
            raise PidError(os.path.dirname(self.path), f"pid:[{words[_PIDS]}], here pid:[{pids}]")

    # --- the words

    def is_synced(self, transaction: int) -> bool:
        """Return whether a transaction, given by its ``stamp``, is known to be on the disk."""
        return self._known >= transaction or self._synced() >= transaction

    def _synced(self) -> int:
        """Return the newest transaction known to be on the disk, 0 while another process is writing that word."""
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
        is_older = generation << _TRANSACTION_BITS | number < transaction
        if is_older or words[_CHECK] != (generation * _MIXED + number) & _WORD:
            generation, number = transaction >> _TRANSACTION_BITS, transaction & _WORD
            words[_GENERATION] = generation
            words[_TRANSACTION] = number
            words[_CHECK] = (generation * _MIXED + number) & _WORD
            self._known = transaction

    def set_covered(self, lane: int, transaction: int) -> None:
        """Record that a checkpoint covers a transaction, as the process that has this lane."""
        self._known = max(self._known, transaction)
        if lane < _LANES:  # the seventeenth, behind 16 that were stopped while writing, is known to this process only
            generation, number = transaction >> _TRANSACTION_BITS, transaction & _WORD
            at = _COVERED + 3 * lane
            self._words[at] = generation
            self._words[at + 1] = number
            self._words[at + 2] = (generation * _MIXED + number) & _WORD

    def is_covered(self, transaction: int) -> bool:
        """Like ``is_synced``, where there are checkpoints."""
        return self.is_synced(transaction) or any(self._covered(lane) >= transaction for lane in range(_LANES))

    def _covered(self, lane: int) -> int:
        at = _COVERED + 3 * lane
        generation, number, check = self._words[at : at + 3]
        is_whole = check == (generation * _MIXED + number) & _WORD
        return generation << _TRANSACTION_BITS | number if is_whole else 0

    def is_in_doubt(self, generation: int) -> bool:
        """Return whether a sync failed in this generation: then no later sync proves anything."""
        return self._words[_DOUBT] == generation  # a lower one is superseded, and a higher one is a damaged word

    def set_in_doubt(self, generation: int) -> None:
        """Record durably that a sync failed in this generation, since that must be known after a power cut.

        Each call writes it again, since the disk may have failed here as well. Raises ``OSError``.
        """
        self._words[_DOUBT] = max(self._words[_DOUBT], generation)
        self.save()

    @property
    def unsynced_since(self) -> int:
        """The moment since which there may be commits without a checkpoint, in ns of the monotonic clock; 0: none."""
        return self._words[_UNSYNCED]

    @unsynced_since.setter
    def unsynced_since(self, time: int) -> None:
        self._words[_UNSYNCED] = time

    def note_unsynced(self, clock: Callable[[], int]) -> int:
        """Note that there is a commit that no checkpoint covers; return the moment since which there may be one."""
        since = self._words[_UNSYNCED]
        if not since:
            since = self._words[_UNSYNCED] = clock()
        return since

    def is_shared(self) -> bool:
        """Return whether another process has joined after the first; joining records this before anything else."""
        return self._words[_JOINED] != 0

    # --- the first and the last process

    def is_standing(self) -> bool:
        """Return whether all writes are still in the page cache, since there was no power cut in between."""
        here = _place(self._file)
        return bool(here.boot and here.mount) and self._place == here

    def is_closed(self) -> bool:
        """Return whether everything was on the disk when the last process left, and the directory is not a copy."""
        return self._place.boot == CLOSED and self.is_original()

    def is_original(self) -> bool:
        """Return whether this is the original directory, not a copy, which may mix several moments."""
        return self._place[2:] == _place(self._file)[2:]

    def is_new(self) -> bool:
        """Return whether no process has ever opened the directory, as that of a copy that the library made."""
        return self._place.inode == 0

    def settle(self, synced: int) -> None:
        """As the first process, record durably the place and state of the files, once they are known to be whole."""
        if fork.amid.life not in (None, fork.life):
            raise ForkError(os.path.dirname(self.path))
        self._known = self._words[_CHECK] = 0
        self._words[_COVERED:_TRANSACTION] = memoryview(bytes(8 * (_TRANSACTION - _COVERED))).cast("Q")
        self.set_synced(synced)
        self._words[_DOUBT] = 0
        self._words[_UNSYNCED] = 0
        _PLACE.pack_into(self._memory, _PLACE_AT, *_place(self._file))
        self.save()

    def close(self) -> None:
        """As the last process, record durably that everything is on the disk."""
        place = _place(self._file)._replace(boot=CLOSED)
        if fork.amid.life not in (None, fork.life):
            raise ForkError(os.path.dirname(self.path))
        _PLACE.pack_into(self._memory, _PLACE_AT, *place)
        self.save()

    @property
    def _place(self) -> _Place:
        return _Place(*_PLACE.unpack_from(self._memory, _PLACE_AT))

    def admit(self) -> None:
        """Let other processes join from now on."""
        if self.first:
            flock.share(self._fd)
            self.first = False

    def save(self) -> None:
        """Bring the words to the disk."""
        self._memory.flush()
        sync_file(self._file)

    def leave(self) -> None:
        """Release the session lock; idempotent.

        Other threads may be reading the words: from now on they find their last values.
        """
        if not self._has_left:
            self._has_left = True
            self._words = memoryview(bytearray(self._words)).cast("Q")
            with suppress(BufferError):  # a thread that is just reading will drop it
                self._memory.close()
            if self._file >= 0:
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
        """The note that a recovery left for the next one, b"" for none."""
        (length,) = _LENGTH.unpack_from(self._memory, _LENGTH_AT)
        return bytes(self._memory[_NOTE_AT : _NOTE_AT + length])

    @note.setter
    def note(self, note: bytes) -> None:
        self._memory[_NOTE_AT : _NOTE_AT + len(note)] = note
        self.save()
        size = len(note)
        if fork.amid.life not in (None, fork.life):
            raise ForkError(os.path.dirname(self.path))
        _LENGTH.pack_into(self._memory, _LENGTH_AT, size)
        self.save()


def _make(path: str, folder: int | None) -> None:
    fd = open_private(path, os.O_RDWR, folder=folder)
    try:
        if os.fstat(fd).st_size != SIZE:
            empty = MAGIC.ljust(SIZE, b"\0")
            refuse_short(os.pwrite(fd, empty, 0), empty)
    finally:
        close(fd)


def _place(fd: int) -> _Place:
    return _Place(_boot(), *_mount_and_birth(fd))


def _pids() -> int:
    """Return the inode of this process's pid namespace, 0 where there is none to be seen.

    There may be no /proc, or that of another namespace, as for ``nsenter -m``: then the kernel is asked directly.
    """
    with suppress(OSError):
        return os.stat(_NAMESPACE).st_ino
    with suppress(OSError, AttributeError):  # which it answers since Linux 6.11
        process = os.pidfd_open(os.getpid())
        try:
            namespace = fcntl.ioctl(process, _PIDFD_GET_PID_NAMESPACE)
        finally:
            close(process)
        try:
            return os.fstat(namespace).st_ino
        finally:
            close(namespace)
    return 0


def _boot() -> bytes:
    """Return the id of the boot, b"" if the system has none; raise ``OSError`` if it cannot be read now."""
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
