"""A copy of the live generation that is made while others write to it, and catches up at the end.

Owns: what happens before a swap, so that writers wait for it as short as can be. Law: what takes the
place of the live generation holds exactly what that holds at the moment of the swap; where that is not
certain, it is copied then. Must not know: the swap (``_swap``), when it is worth it.

====  ====================================================  ==================================
step  what is done, by who has the lock of flushes          killed after it
====  ====================================================  ==================================
1     copy a snapshot of N to the file ahead                the file is worthless: the next
2     catch up with a newer snapshot, again and again,      flush, or the next process to open
      until little is new; fsync                            the queue alone, removes it
3     the swap begins: write lock of N (``_swap``, step 1)
4     catch up with N, give the file its reserve, fsync     as above
5     rename it to the draft of N+1; the swap goes on       as of the swap
====  ====================================================  ==================================

Catching up: what has left is deleted from the copy, what has come is appended, what stands before the
head, since it came back, is written anew, and so are the records that differ. That is all there can be,
since an item never changes and a number is given once. What this process does not know of (another has
made a queue meanwhile) cannot be caught up with.
"""

import os
from typing import Self

from lmdbqueue import _fifo
from lmdbqueue._generation import Draft, Generation, Snapshot, Tables, Txn
from lmdbqueue._swap import complete, write_copy

_OTHER = -1  # there is something that cannot be caught up with
_FEW = 1_000  # items that may be left for step 4


class Ahead:
    """The file of one copy. Use it as a context manager, under the lock of flushes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._source: Snapshot | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self._path, self._path + "-lock"):
            if os.path.exists(name):
                os.unlink(name)

    def copy(self, txn: Txn, queue: Tables) -> bool:
        """Copy the newest snapshot. As what is read of a queue in a transaction."""
        self._source = queue.generation
        write_copy(queue.generation, txn, self._path)
        return True

    def approach(self, txn: Txn, queue: Tables) -> bool:
        """Catch up with ``txn``; tell whether much was new. As what is read of a queue in a transaction."""
        return self._source is queue.generation and self._catch_up(txn, queue.generation) > _FEW

    def finish(self, generation: Generation, txn: Txn, path: str) -> None:
        """Write what ``generation`` holds to ``path``, durably but for its name. ``txn`` holds its write lock."""
        if self._source is generation and self._catch_up(txn, generation) != _OTHER:
            complete(self._path)
            os.rename(self._path + "-lock", path + "-lock")
            os.rename(self._path, path)
        else:
            write_copy(generation, txn, path)

    def _catch_up(self, txn: Txn, generation: Snapshot) -> int:
        draft = Draft(self._path, generation.options)  # for a moment only: a forked child must not inherit it
        try:
            changed: int = draft.change(_follow, txn, generation)
            draft.sync()
        finally:
            draft.close()
        return changed


def _follow(draft_txn: Txn, draft: Draft, txn: Txn, live: Snapshot) -> int:
    """Make a draft hold what ``txn`` sees of the live generation; return how many items differed, or ``_OTHER``."""
    if not live.knows_all(txn):
        return _OTHER
    known = {queue.name for queue in draft.queues()}
    changed = 0
    for queue in live.queues():
        changed += queue.name not in known
        copied = draft.make(draft_txn, queue.name, _fifo.create)
        changed += _fifo.follow(txn, queue, draft_txn, copied)
        if _fifo.count(txn, queue) != _fifo.count(draft_txn, copied):
            return _OTHER
    for db, copy in ((live.meta, draft.meta), (live.away, draft.away)):
        if (db is None) != (copy is None):
            return _OTHER
        if db is not None:
            changed += _fifo.follow_records(txn, db, draft_txn, copy)
    draft.weigh_as(draft_txn, live.last(txn)[1])
    return changed
