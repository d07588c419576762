"""A copy of the live generation, made while others write to it, which catches up at the end.

Owns: the preparation of a swap, so that writers wait for it as briefly as possible. Law: the file that replaces the
live generation contains exactly what that contains at the moment of the swap; if that is not certain, it is copied
then. Must not know: the swap (``_local.swap``), when it is worth it.

====  ====================================================  ==================================
step  what is done, holding the lock of flushes             killed after it
====  ====================================================  ==================================
1     copy a snapshot of N to the file ahead                the file is worthless: the next
2     catch up with a newer snapshot, again and again,      flush, or the next process to open
      until little is new; fsync                            the queue alone, removes it
3     the swap begins: write lock of N (step 1 of
      ``_local.swap``)
4     catch up with N, give the file its reserve, fsync     as above
5     rename it to the draft of N+1; the swap goes on       as of the swap
====  ====================================================  ==================================

Catching up: each round keeps a snapshot for the next one, which compares it with a newer one, writes the records that
differ and deletes those that are gone, including trees created or dropped with their queues. Only pages that changed
are read (``_lmdb.changed_records``), so the cost of step 4, for which writers wait, depends on the changes since the
last round and not on the size of the queue. A fork during a flush releases the snapshot: then the flush begins anew, or
copies everything in step 4.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Self

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import ForkError
from lmdbqueue._host import fork
from lmdbqueue._lmdb.changed_records import ChangedTree
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.snapshot import Draft, Kept, Tables, Txn, is_open
from lmdbqueue._lmdb.sound_pages import Unsound
from lmdbqueue._local.swap import complete, write_copy

_FEW = 1_000  # records that may be left for step 4


class Ahead:
    """The file of one copy. Use it as a context manager, under the lock of flushes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._source: Generation | None = None
        self._kept: Kept | None = None  # the snapshot that was copied

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._source is not None:
            self._source.let_go()
        for name in (self._path, self._path + "-lock"):
            if os.path.exists(name) and fork.amid.life in (None, fork.life):  # otherwise it is the parent's
                os.unlink(name)

    def copy(self, txn: Txn, queue: Tables) -> bool:
        """Copy the newest snapshot; called in a read transaction."""
        assert isinstance(queue.generation, Generation)  # since it is live
        self._source = queue.generation
        self._source.let_go()  # the snapshot that an interrupted flush has left
        kept = self._source.keep()
        self._kept = kept if write_copy(self._source, txn, self._path, kept) else None
        return True

    def approach(self, txn: Txn, queue: Tables) -> bool:
        """Catch up with a newer snapshot; return whether much was new. Called in a read transaction."""
        if self._source is None or self._source is not queue.generation:
            return False
        kept = self._source.keep()
        changed = self._catch_up(self._source, kept.meta)
        if changed is None:  # a fork came in between, or the changes cannot be followed
            return self._kept is not None and self.copy(txn, queue)
        self._kept = kept
        self._source.let_go(1)
        return changed > _FEW

    def finish(self, generation: Generation, txn: Txn, path: str) -> None:
        """Write the content of ``generation`` to ``path``, durably except its name. ``txn`` holds its write lock."""
        if self._source is generation and self._catch_up(generation, generation.last_committed(txn)) is not None:
            complete(self._path)
            for end in ("-lock", ""):
                if fork.amid.life not in (None, fork.life):
                    raise ForkError(generation.directory)
                os.rename(self._path + end, path + end)
        else:
            write_copy(generation, txn, path)

    def _catch_up(self, generation: Generation, now: MetaPage | None) -> int | None:
        """Bring the copy to a later snapshot; return the number of records that differed, None if it is unknown."""
        if self._kept is None or now is None or not is_open(self._kept.txn):
            return None
        draft = Draft(self._path, generation.options)  # for a moment only: a forked child must not inherit it
        try:
            changed: int = draft.change(_follow, generation.changed_since(self._kept, now))
            draft.sync()
        except Unsound:  # LMDB itself will report the fault
            self._kept = None
            return None
        finally:
            draft.close()
        return changed


def _follow(txn: Txn, draft: Draft, changes: Iterable[tuple[bytes, ChangedTree | None]]) -> int:
    """Write the changes of a live generation to a draft; return the number of changed records."""
    changed = 0
    last = None
    for name, tree in changes:
        db = draft.database(txn, name)
        if tree is None:
            txn.drop(db, delete=True)
            changed += 1
            continue
        for key, value in tree.records():
            if value is None:
                txn.delete(key, db=db)
            elif key == _format.LAST_TXN and name == _format.META:
                last = _format.Last.unpack(value)
                continue
            else:
                txn.put(key, value, db=db)
            changed += 1
    if last is not None:
        draft.weigh_as(txn, last.weight)
    return changed
