"""When a transaction of a generation is durable: one flush a commit, or fewer.

Owns: commits, flushes, and what is known to be on the disk. Law: a secured transaction is on the disk, and none is
committed before the previous one is. Must not know: handles, which generation is the live one, who else has it open.

One flush a commit. LMDB's own durable commit flushes the data, and then the meta page, so that a meta
page on the disk proves its data. Here the environment is open with ``sync=False``, and one flush after
the commit covers both (``secure``); whether a meta page that survived a power cut has its data is verified at the next
opening instead (``_local.recovery``). That works because LMDB has two meta slots, written in turn, and transaction k
never overwrites pages of the snapshots k-1 and k-2. So a power cut during the flush of k leaves k whole, or torn beside
a whole k-1; and a torn k was never acknowledged, given that

- k-1 is on the disk before k is committed (``commit``): LMDB frees the write lock *inside* its commit,
  so the next writer, in another process, can come before the previous one's flush has finished;
- no reader hands out items that it saw in k before k is on the disk (``view``).

Both check a word that all processes share, the newest transaction known to be synced (``_host.session``), and flush
themselves if it is too old. With ``checksum=False`` the verification would lack its basis, so LMDB's two flushes
remain. With ``durability="off"`` nothing is flushed, and with ``"interval"`` all recent commits are flushed at once
(``_local.checkpoints``).

A failed flush is never repeated: the second one would falsely succeed, since the system drops what it could not write.
The generation is then *in doubt* for all processes: nothing more is committed (``Doubtful``) until its content, as it
is in memory, has been written to a new file (by ``_local.live``). Reading continues.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import lmdb

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CommitUnknownError, StorageError
from lmdbqueue._host import fork
from lmdbqueue._host.disk import translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.preallocation import Room
from lmdbqueue._lmdb.snapshot import Snapshot, Txn, is_proven_at_opening

_ALL: Final = (1 << 64) - 1
_CLOSED: Final = "closed/deleted/dropped"  # the binding's message about a closed environment: nothing was flushed


if TYPE_CHECKING:

    class Keeper(Protocol):
        """Protects the pages of a checkpoint while this process commits (``_local.checkpoints``)."""

        is_uncovered: bool  # something was committed that no checkpoint covers

        def pin(self) -> None:
            """Wait until this process may commit."""

        def committed(self, granted: int) -> None:
            """Note a commit, for which ``granted`` bytes of pages were granted."""

        def renew(self) -> bool:
            """Make freed pages reusable; return whether that may help."""

        def sync(self) -> None:
            """Wait until all commits are on the disk."""

        def close(self) -> None:
            """Make no more checkpoints."""


class Durable(Snapshot):
    """A file whose commits are flushed, one by one or several at once."""

    _room: Room  # the room allocated, and granted to the transaction under way
    _fd: int
    keeper: Keeper | None = None  # keeper of checkpoints, if commits are not flushed one by one

    def __init__(self, path: str, number: int, options: _format.Options, session: Session) -> None:
        self.number = number
        self._first_stamp = stamp(number, 0)
        self._session = session
        self._is_flushed_once = is_proven_at_opening(options)
        self.is_crowded = False  # the flush of another process was under way when this one last came to commit
        super().__init__(path, options)

    # --- commits

    def stamp(self, txn: Txn) -> int:
        """Return the transaction, for ``secure``."""
        return self._first_stamp + txn.id()

    def commit(self, txn: Txn) -> int:
        """Commit; return the transaction for ``secure``. The only way in which a verb changes anything.

        Raises ``Doubtful``; ``CommitUnknownError`` if LMDB does not know; after any other error nothing was stored.
        """
        transaction = self.secure_before(txn)
        try:
            self._commit(txn)
        finally:  # even if the outcome is unknown: a superfluous checkpoint does no harm, a missing one would
            if self.keeper is not None:
                self.keeper.is_uncovered = True  # here, since an interrupt may come when a function is entered
                self.keeper.committed(self._room.granted)
        return transaction

    def secure_before(self, txn: Txn) -> int:
        """Secure the previous transaction; return the stamp of this one. Raises ``Doubtful``, ``StorageError``."""
        transaction = self._first_stamp + txn.id()
        self.is_crowded = self._is_full and not self._session.is_ready(self.number, transaction - 1)
        if self.is_crowded:
            if self._session.is_in_doubt(self.number):
                raise Doubtful
            self._sync(transaction - 1)
        elif self.keeper is not None and self._session.is_in_doubt(self.number):
            raise Doubtful
        return transaction

    def supersede(self, txn: Txn) -> None:
        """Record in ``txn`` that the queue continues in the next generation, and commit. Not durable by itself."""
        before = self.stamp(txn) - 1
        if not self.is_secured(before) and not self._session.is_in_doubt(self.number):
            self._sync(before)
        with self._translated("compaction"):
            txn.put(_format.NEXT_GENERATION, _format.pack(self.number + 1))
            self._commit(txn)

    def _commit(self, txn: Txn) -> None:
        if self._is_weighed and self._left[0] == (number := txn.id()) - 1:  # like note_last() in the usual case
            weight = (self._left[1] or 0) + self.weight & _ALL
            content = self._left[2] + self.content.weight & _ALL
            self._leaves = number, weight, content if self.content.is_running else 0
            last = _format.LAST.pack(number, weight, content)
            txn.put(_format.LAST_TXN, last, db=self.meta)
        elif self._is_full or self._is_weighed:
            self.note_last(txn)
        try:
            if self._life is not fork.life:  # here, since a signal handler may fork as any call returns
                self._refuse_inherited()
            txn.commit()
        except lmdb.Error as error:
            self.is_broken = True  # until it is known to be undone: a signal's handler may end the look
            self.is_broken = not self._can_be_read()
            if not self.is_broken:
                raise  # it was undone
            raise CommitUnknownError(self.path, "commit", str(error)) from error
        self._left = self._leaves

    def _can_be_read(self) -> bool:
        with suppress(lmdb.Error):
            return self._look(bool)
        return False

    # --- flushes

    def is_secured(self, transaction: int) -> bool:
        """Return whether a transaction is known to be on the disk, or need not be."""
        return not self._is_full or self._session.is_synced(transaction)

    def secure(self, transaction: int) -> None:
        """Wait until a transaction is on the disk. Raises ``CommitUnknownError`` if that fails."""
        if not self.is_secured(transaction):
            try:
                if self._session.is_in_doubt(self.number):
                    raise StorageError(self.path, "sync", "a flush failed")  # noqa: TRY301  (as one that fails now)
                self._sync(transaction)
            except StorageError as error:
                raise CommitUnknownError(self.path, error.operation, error.reason) from error
            except Superseded as error:  # a swap would have secured it: this process has closed it
                raise CommitUnknownError(self.path, "sync", "the queue was closed meanwhile") from error

    def sync(self) -> None:
        """Wait until all commits are on the disk. Raises ``Doubtful``, ``Superseded``, ``StorageError``."""
        if self._session.is_in_doubt(self.number):
            raise Doubtful
        if not self._is_full and self.is_superseded():  # others may have committed to the next generation
            raise Superseded
        if self.keeper is not None:
            self.keeper.sync()
        elif not self.is_secured(newest := self.newest()) or not self._is_full:
            self._sync(newest)

    def newest(self) -> int:
        """Return the last committed transaction, in the form of ``stamp``."""
        with self._translated("reading"):
            return self._first_stamp + int(self._env.info()["last_txnid"])

    def newest_meta(self) -> tuple[int, bytes]:
        """Return the number of the newest snapshot, and the body of its meta page.

        The body belongs to that snapshot if it is still the newest: see ``_local.checkpoints``.
        """
        with translated(self.path, "reading"), self._translated("reading"):
            while True:
                number = self._newest_to_read()
                try:
                    body = meta_page.body_of(self._fd, number, self._room.page)
                finally:
                    self._refuse_inherited()
                if self._is_newest(number):
                    return number, body

    def _is_newest(self, number: int) -> bool:
        return self._newest_to_read() == number

    def _newest_to_read(self) -> int:
        """Return the newest snapshot, from the word that LMDB writes after a commit is complete with its meta page."""
        return self._look(_number)

    @property
    def is_in_doubt(self) -> bool:
        """Whether a flush of it failed: then nothing more is committed to it."""
        return self._session.is_in_doubt(self.number)

    def settle(self) -> bool:
        """Bring everything to the disk, as the last process to leave; return whether that succeeded."""
        if self._session.is_in_doubt(self.number):
            return False
        newest = self.newest()
        if not self._session.is_covered(newest):
            self._sync(newest)
        return True

    def _sync(self, transaction: int) -> None:
        if self._is_flushed_once:
            try:
                self._env.sync(True)  # noqa: FBT003  (its name for it is force, and positional is what the stubs know)
            except lmdb.Error as error:
                self._refuse_failed(error)
                return
        self._session.set_synced(transaction)

    def flush_to_disk(self) -> None:
        """Bring all commits so far to the disk. After a ``StorageError`` the generation is in doubt."""
        try:
            self._env.sync(True)  # noqa: FBT003  (as above)
        except lmdb.Error as error:
            self._refuse_failed(error)

    def _refuse_failed(self, error: lmdb.Error) -> None:
        """Raise ``StorageError`` for a flush that failed, and put the generation in doubt."""
        if self._is_closed and (not self.is_broken or _CLOSED in str(error)):
            raise Superseded from error  # by a swap, or since this process has closed it: the reading no longer counts
        with suppress(OSError):  # the swap that follows insists (``_local.swap``)
            self._session.set_in_doubt(self.number)
        raise StorageError(self.path, "sync", str(error)) from error


def _number(txn: Txn) -> int:
    return txn.id()
