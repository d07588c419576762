"""The pin of a checkpoint: an entry in LMDB's table of readers that belongs to no process.

Owns: its place in the lock file of a generation, and how it is created. Law: once created, it stays for as long as any
process has the generation open; it holds a checkpoint that is on the disk, or nothing. Must not know: when a checkpoint
is made (``_local.checkpoints``), what recovery does with it.

LMDB reuses a page only if no entry in its table of readers can see it, no matter who made the entry. An entry owned by
a process would stay for as long as that process is stopped, and vanish when it is killed. This one is moved to each new
checkpoint by the process that has made it, and needs no living process.

====  =====================================================  ========================================================
step  what the first to open a generation does, who holds    killed after it: the next to open
      the directory lock
====  =====================================================  ========================================================
1     map the lock file; LMDB opens it, and sets it up anew  does the same: LMDB's own lock of the file died, too
      if nobody has it open
2     list LMDB's readers: the pin is not among them.        the same
      Remnants of an earlier pin are cleared
3     begin two transactions, look where their entries are,  the same: LMDB sets the file up anew
      end both: one at least is free then, and in use
      as far as LMDB counts
4     write "no transaction" and the mark into it, and then  as 3, or finds the pin, which holds nothing
      the pid of nobody
====  =====================================================  ========================================================

Later processes find it in step 2. LMDB's lock of the table is not needed: no other process has the file open during
steps 2 to 4, since every process that opens it holds the directory lock, and the first of them creates the pin.

The pid of nobody is -1. LMDB clears the entries of dead processes, which it detects by a lock on the byte of the lock
file with the number of the pid; there is no such byte, so the system refuses the request (``EINVAL``), and LMDB leaves
the entry alone (``mdb_reader_pid``, ``mdb_reader_check0``). Each opening verifies this.

An entry, at a multiple of 8, in the machine's byte order::

      0   8  number of the transaction, 2^64-1 for none
      8   4  pid
     16   8  thread, which LMDB only shows: the mark
"""

import errno
import mmap
import os
import re
import sys
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from lmdbqueue._base.errors import ForkError
from lmdbqueue._host import fork
from lmdbqueue._host.descriptors import close, open_at

NOTHING: Final = (1 << 64) - 1
_NOBODY: Final = -1
_MARK: Final = b"lmdbqpin"
_THREAD: Final = 16  # its offset in an entry
_PID: Final = Struct("=i")
_BEGIN: Final = Struct("=Qi")
_WORD: Final = 8


class Pin:
    """The pin of one generation. Map it before LMDB opens the file, and close it afterwards."""

    def __init__(self, lock_file: str) -> None:
        """Note the lock file. The caller of ``map`` must already hold this object, to close it after an interrupt."""
        self._lock_file = lock_file
        self._at = -1

    def map(self) -> None:
        """Map the lock file. No descriptor of it may be closed while LMDB has it: that would drop LMDB's own locks."""
        fd = open_at(self._lock_file, os.O_RDWR)
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            close(fd)
        self._words = memoryview(self._memory).cast("Q")

    def find(self, env: Any, clear_readers: Callable[[Any], object]) -> None:
        """Find the pin in an environment that only this thread knows, or create it. Raises ``OSError``.

        ``clear_readers`` makes LMDB clear dead readers, which must not clear the pin.
        """
        if not _is_among(env.readers()):
            self._make(env)
        clear_readers(env)
        at = self._memory.find(_MARK)
        if at < 0 or not _is_among(env.readers()):
            raise OSError(errno.ENOTSUP, "the table of readers does not keep the pin of a checkpoint")
        self._at = (at - _THREAD) // _WORD

    def _make(self, env: Any) -> None:
        memory = self._memory
        while (old := memory.find(_MARK)) >= 0:  # of before the file was set up anew: LMDB no longer reads it
            memory[old : old + len(_MARK)] = bytes(len(_MARK))
        transactions = [env.begin(), env.begin()]
        entry = _BEGIN.pack(transactions[0].id(), os.getpid())
        found = [match.start() for match in re.finditer(re.escape(entry), memory[:])]
        while transactions:
            if fork.amid.life not in (None, fork.life):  # the entries are the parent's
                raise ForkError(os.path.dirname(self._lock_file))
            transactions.pop().abort()
        at = next((at for at in found if not _PID.unpack_from(memory, at + _WORD)[0]), None)
        if at is None:
            raise OSError(errno.ENOTSUP, "the table of readers is not laid out as LMDB 0.9 does")
        self._words[at // _WORD] = NOTHING
        memory[at + _THREAD : at + _THREAD + len(_MARK)] = _MARK
        memory[at + _WORD : at + _WORD + _PID.size] = _PID.pack(_NOBODY)

    @property
    def transaction(self) -> int:
        """The protected checkpoint, ``NOTHING`` for none; all later snapshots are protected, too."""
        return self._words[self._at]

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing, since no checkpoint was made after LMDB set up the file."""
        return self.transaction == NOTHING

    def move(self, transaction: int) -> None:
        """Protect this checkpoint, which is on the disk, and nothing before it; a newer one stays.

        If another process moves it to a newer one at the same time, this one may stay until the next move: that
        protects more pages than necessary, never fewer.
        """
        if self.is_empty or self.transaction < transaction:
            self._words[self._at] = transaction

    def close(self) -> None:
        """Free the map of the file, which LMDB has closed; twice is harmless."""
        if hasattr(self, "_words"):
            self._words.release()
        if hasattr(self, "_memory"):
            self._memory.close()


def _is_among(readers: str) -> bool:
    """Return whether the pin is in the list of readers that LMDB prints."""
    mark = [str(_NOBODY), f"{int.from_bytes(_MARK, sys.byteorder):x}"]
    return any(line.split()[:2] == mark for line in readers.splitlines()[1:])
