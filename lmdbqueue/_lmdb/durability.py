"""When a transaction of a generation is durable: one flush a commit, or fewer.

Owns: commits, flushes, and what is known to be on the disk. Law: a transaction that was secured is on the disk, and
none is committed before the one before it is. Must not know: handles, which generation is the live one, who else has
it open.

One flush a commit. LMDB's own durable commit flushes the data, and then the meta page, so that a meta
page on the disk proves its data. Here the environment is open with ``sync=False``, and one flush after
the commit covers both (``secure``); whether a meta page that a power cut left has its data is proven
at the next opening instead (``_local.recovery``). That works because LMDB has two meta slots, written in
turn, and transaction k never writes on pages of the snapshots k-1 and k-2. So a power cut amid the
flush of k leaves k whole, or torn beside a whole k-1; and a torn k was never acknowledged, given that

- k-1 is on the disk before k is committed (``commit``): LMDB frees the write lock *inside* its commit,
  so the next writer, of another process, can come before the flush of the one before has ended;
- no reader hands out what it saw in k before k is on the disk (``view``).

Both look at a word that all processes share, the newest transaction known to be synced (``_host.session``),
and flush themselves if it is too old. Where the proof would have nothing to hold on to, with
``checksum=False``, the two flushes of LMDB stay. With ``durability="off"`` nothing is flushed,
and with ``"interval"`` all commits of a while at once (``_local.checkpoints``).

A flush that failed is never repeated: the second one would say that all is well, since the system
drops what it could not write. The generation is *in doubt* then, for all processes: nothing is
committed to it any more (``Doubtful``), until its content, as it stands in memory, was written to a
new file (``_local.live`` sees to that). Reading goes on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import lmdb

from lmdbqueue import _format
from lmdbqueue._errors import CommitUnknownError, StorageError
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.preallocation import Room
from lmdbqueue._lmdb.snapshot import Snapshot, Txn, is_proven_at_opening

_ALL: Final = (1 << 64) - 1
_CLOSED: Final = "closed/deleted/dropped"  # what the binding says of an environment that is closed: nothing was flushed


if TYPE_CHECKING:

    class Keeper(Protocol):
        """What keeps the pages of a checkpoint while this process commits (``_local.checkpoints``)."""

        def pin(self) -> None:
            """Return when this process may commit."""

        def committed(self, granted: int) -> None:
            """Note a commit, for which ``granted`` bytes of pages were granted."""

        def renew(self) -> bool:
            """Make freed pages usable again; return whether that may help."""

        def sync(self) -> None:
            """Return when all that was committed is on the disk."""

        def close(self) -> None:
            """Make no more checkpoints."""


class Durable(Snapshot):
    """A file whose commits are flushed, one by one or several at once."""

    _room: Room  # what was allocated, and granted to the transaction under way
    _fd: int
    keeper: Keeper | None = None  # of checkpoints, if commits are not flushed one by one

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

        Raises ``Doubtful``; ``CommitUnknownError`` when LMDB cannot tell; any other error: nothing was stored.
        """
        transaction = self.secure_before(txn)
        try:
            self._commit(txn)
        finally:  # also if it is not known: a checkpoint too many does no harm, and one too few would
            if self.keeper is not None:
                self.keeper.committed(self._room.granted)
        return transaction

    def secure_before(self, txn: Txn) -> int:
        """Return the transaction when the one before it is on the disk. Raises ``Doubtful``, ``StorageError``."""
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
        """Announce in ``txn``, and commit, that the queue goes on in the next generation. Not durable by itself."""
        before = self.stamp(txn) - 1
        if not self.is_secured(before) and not self._session.is_in_doubt(self.number):
            self._sync(before)
        with self._translated("compaction"):
            txn.put(_format.NEXT_GENERATION, _format.pack(self.number + 1))
            self._commit(txn)

    def _commit(self, txn: Txn) -> None:
        if self._is_weighed and self._left[0] == (number := txn.id()) - 1:  # as note_last() does, most of the time
            weight = (self._left[1] or 0) + self.weight & _ALL
            content = self._left[2] + self.content.weight & _ALL
            self._leaves = number, weight, content if self.content.is_running else 0
            last = _format.LAST.pack(number, weight, content)
            txn.put(_format.LAST_TXN, last, db=self.meta)
        elif self._is_full or self._is_weighed:
            self.note_last(txn)
        try:
            txn.commit()
        except lmdb.Error as error:
            if self._can_be_read():
                raise  # it was undone
            self.is_broken = True
            raise CommitUnknownError(self.path, "commit", str(error)) from error
        self._left = self._leaves

    def _can_be_read(self) -> bool:
        with suppress(lmdb.Error), self._env.begin():
            return True
        return False

    # --- flushes

    def is_secured(self, transaction: int) -> bool:
        """Return whether a transaction is known to be on the disk, as far as it has to be."""
        return not self._is_full or self._session.is_synced(transaction)

    def secure(self, transaction: int) -> None:
        """Return when a transaction is on the disk. Raises ``CommitUnknownError`` if that cannot be had."""
        if not self.is_secured(transaction):
            try:
                if self._session.is_in_doubt(self.number):
                    raise StorageError(self.path, "sync", "a flush failed")  # noqa: TRY301  (as one that fails now)
                self._sync(transaction)
            except StorageError as error:
                raise CommitUnknownError(self.path, error.operation, error.reason) from error
            except Superseded as error:  # a swap would have secured it: this process has left
                raise CommitUnknownError(self.path, "sync", "the queue was closed meanwhile") from error

    def sync(self) -> None:
        """Return when all that was committed is on the disk. Raises ``Doubtful``, ``Superseded``, ``StorageError``."""
        if self._session.is_in_doubt(self.number):
            raise Doubtful
        if not self._is_full and self.is_superseded():  # others may have committed to the next one
            raise Superseded
        if self.keeper is not None:
            self.keeper.sync()
        elif not self.is_secured(newest := self.newest()) or not self._is_full:
            self._sync(newest)

    def newest(self) -> int:
        """Return the transaction that was the last to be committed, as ``stamp`` does."""
        with self._translated("reading"):
            return self._first_stamp + int(self._env.info()["last_txnid"])

    def newest_meta(self) -> tuple[int, bytes]:
        """Return the number of the newest snapshot, and the body of its meta page.

        What was read is of that snapshot if it is the newest one still: see ``_local.checkpoints``.
        """
        with self._translated("reading"):
            while True:
                number = self._newest_to_read()
                body = meta_page.body_of(self._fd, number, self._room.page)
                if self._is_newest(number):
                    return number, body

    def _is_newest(self, number: int) -> bool:
        return self._newest_to_read() == number

    def _newest_to_read(self) -> int:
        """Return the newest snapshot by what LMDB writes down when a commit is through, its meta page included."""
        with self._env.begin() as txn:
            return txn.id()

    @property
    def is_in_doubt(self) -> bool:
        """Whether a flush of it failed: nothing is committed to it any more."""
        return self._session.is_in_doubt(self.number)

    def settle(self) -> bool:
        """Bring everything to the disk, as the last process to leave; return whether that succeeded."""
        if self._session.is_in_doubt(self.number):
            return False
        newest = self.newest()
        if not self._session.is_synced(newest):
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
        """Bring everything to the disk that was committed until now. Raises ``StorageError``: it is in doubt then."""
        try:
            self._env.sync(True)  # noqa: FBT003  (as above)
        except lmdb.Error as error:
            self._refuse_failed(error)

    def _refuse_failed(self, error: lmdb.Error) -> None:
        """Raise ``StorageError`` for a flush that failed, and put the generation in doubt."""
        if self._is_closed and (not self.is_broken or _CLOSED in str(error)):
            raise Superseded from error  # by a swap, or this process has left: what was read counts no more
        with suppress(OSError):  # the swap that follows insists (``_local.swap``)
            self._session.set_in_doubt(self.number)
        raise StorageError(self.path, "sync", str(error)) from error
