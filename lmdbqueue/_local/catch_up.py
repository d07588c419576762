"""A copy of the live generation that is made while others write to it, and catches up at the end.

Owns: what happens before a swap, so that writers wait for it as short as can be. Law: what takes the
place of the live generation holds exactly what that holds at the moment of the swap; where that is not
certain, it is copied then. Must not know: the swap (``_local.swap``), when it is worth it.

====  ====================================================  ==================================
step  what is done, by who has the lock of flushes          killed after it
====  ====================================================  ==================================
1     copy a snapshot of N to the file ahead                the file is worthless: the next
2     catch up with a newer snapshot, again and again,      flush, or the next process to open
      until little is new; fsync                            the queue alone, removes it
3     the swap begins: write lock of N (``_local.swap``, step 1)
4     catch up with N, give the file its reserve, fsync     as above
5     rename it to the draft of N+1; the swap goes on       as of the swap
====  ====================================================  ==================================

Catching up: what has left is deleted from the copy, what has come is appended, what stands before the
head, since it came back, is written anew, and so are the records that differ. That is all there can be,
since an item never changes and a number is given once. A queue whose record and bounds are as they were has the items
that it had: each that comes, leaves or comes back changes those of its class. Queues that were made or dropped
meanwhile are followed, too.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Self

from lmdbqueue import _format
from lmdbqueue._format import pack
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.snapshot import Db, Draft, Snapshot, Tables, Txn
from lmdbqueue._local.swap import complete, write_copy
from lmdbqueue._model import fifo
from lmdbqueue._values import Entry

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
        queues = queue.generation.known(txn)
        return (
            self._source is queue.generation
            and queues is not None
            and self._catch_up(txn, queue.generation, queues) > _FEW
        )

    def finish(self, generation: Generation, txn: Txn, path: str) -> None:
        """Write what ``generation`` holds to ``path``, durably but for its name. ``txn`` holds its write lock."""
        if self._source is generation:
            self._catch_up(txn, generation, generation.open_all(txn))
            complete(self._path)
            os.rename(self._path + "-lock", path + "-lock")
            os.rename(self._path, path)
        else:
            write_copy(generation, txn, path)

    def _catch_up(self, txn: Txn, generation: Snapshot, queues: Sequence[Tables]) -> int:
        draft = Draft(self._path, generation.options)  # for a moment only: a forked child must not inherit it
        try:
            changed: int = draft.change(_follow, txn, generation, queues)
            draft.sync()
        finally:
            draft.close()
        return changed


def _follow(draft_txn: Txn, draft: Draft, txn: Txn, live: Snapshot, queues: Sequence[Tables]) -> int:
    """Make a draft hold what ``txn`` sees of the live generation; return how many items differed."""
    copies = {queue.name: queue for queue in draft.queues()}
    changed = 0
    for queue in queues:
        copy = copies.pop(queue.name, None)
        now = txn.get(queue.queue, db=live.meta)
        was = None if copy is None else draft_txn.get(queue.queue, db=draft.meta)
        if copy is None or was is None or _format.identity(was) != queue.identity:
            changed += 1 + _copy_items(txn, queue, draft_txn, draft, copy)
        elif now != was or fifo.all_bounds(txn, queue) != fifo.all_bounds(draft_txn, copy):
            changed += _follow_items(txn, queue, draft_txn, copy)
    for gone in copies.values():
        draft_txn.drop(gone.items, delete=True)
        changed += 1
    changed += _follow_records(txn, live.meta, draft_txn, draft.meta)
    changed += _follow_records(txn, live.away, draft_txn, draft.away)
    draft.weigh_as(draft_txn, live.last(txn).weight)
    return changed


def _copy_items(txn: Txn, queue: Tables, draft_txn: Txn, draft: Draft, before: Tables | None) -> int:
    """Give a draft the items of a queue that it does not have, or has another one of that name instead of."""
    if before is not None:
        draft_txn.drop(before.items, delete=True)
    items = draft.database(draft_txn, _format.record(queue.name, "items"))
    with txn.cursor(queue.items) as cursor, draft_txn.cursor(items) as target:
        return target.putmulti(cursor.iternext(), append=True)[1] if cursor.first() else 0


def _follow_items(txn: Txn, queue: Tables, copy_txn: Txn, copy: Tables) -> int:
    """Make an older copy of the queue hold the items that it holds now; return how many left and came.

    Where all keys from the head to the tail have an item, then as now, those are the same as far as the copy goes. The
    records, such as the tail of the copy, are as they were: ``_follow_records`` comes after it.
    """
    now, was = fifo.numbers(txn, queue), fifo.numbers(copy_txn, copy)
    in_order = not now.skipped and not was.skipped and len(fifo.classes(txn, queue)) == 1
    never_left = pack(now.head)
    known = max(never_left, pack(was.tail))
    with txn.cursor(queue.items) as cursor, copy_txn.cursor(copy.items) as target:
        entries, copied = cursor.iternext(), target.iternext()
        if not in_order:
            return _change(copy_txn, copy.items, list(_differences(entries, copied)))
        differences = _differences(
            *(takewhile(lambda entry: entry[0] < never_left, each) for each in (entries, copied))
        )
        changed = _change(copy_txn, copy.items, list(differences))
        if cursor.set_range(known):
            changed += target.putmulti(cursor.iternext(), append=True)[1]
    return changed


def _follow_records(txn: Txn, db: Db, copy_txn: Txn, copy: Db) -> int:
    """Make the records of an older copy those that are there now; return how many differed."""
    with txn.cursor(db) as cursor, copy_txn.cursor(copy) as known:
        differences = list(_differences(cursor.iternext(), known.iternext()))
    return _change(copy_txn, copy, [each for each in differences if each[0] != _format.LAST_TXN])


def _change(txn: Txn, db: Db, records: Sequence[tuple[bytes, bytes | None]]) -> int:
    """Put each record, or delete it if it has no value; return how many there were."""
    for key, value in records:
        if value is None:
            txn.delete(key, db=db)
        else:
            txn.put(key, value, db=db)
    return len(records)


def _differences(now: Iterator[Entry], was: Iterator[Entry]) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield each record that differs as it is now, None for one that is gone; both are in the order of their keys."""
    new, old = next(now, None), next(was, None)
    while new or old:
        if new and (old is None or new[0] < old[0]):
            yield new
            new = next(now, None)
        elif old and (new is None or old[0] < new[0]):
            yield old[0], None
            old = next(was, None)
        elif new and old:
            if new[1] != old[1]:
                yield new
            new, old = next(now, None), next(was, None)
