"""How waiting and delayed items expire.

Owns: the fate of expired items. Law: items that a consumer holds stay with it, and their notes show that they have
expired when they return; an expired item is counted once, and leaves, or becomes a dead letter if the queue object says
so. Must not know: clocks (it is told the time), who reads.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import away, unpack
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import dead_letters, fifo, item_notes, lease_records, reader_records, weighed_records
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.lease_records import Record
from lmdbqueue._model.weighed_records import queue_record

EXPIRED: Final = "it expired"
_AT_ONCE: Final = 10_000  # items


def expire_all(txn: Txn, queue: Tables, now: int, *, bury: bool) -> None:
    """Remove all expired items, or make them dead letters."""
    while expire(txn, queue, now, _AT_ONCE, bury=bury):
        pass


def expire(txn: Txn, queue: Tables, now: int, wanted: int, *, bury: bool) -> int:
    """Remove expired items, or make them dead letters, unless a consumer holds them. Return their number."""
    prefix = away(queue.name, "expires")
    if not fifo.numbers(txn, queue).expiring:
        return 0
    over = []
    for name, value in islice(weighed_records.entries(txn, queue.away, prefix), max(0, wanted)):
        if unpack(name[-16:-8]) > now:
            break
        over.append((name[-8:], name, unpack(value)))
    for key, name, due in over:
        record = take_out(txn, queue, key, due)
        if record is None:  # it is leased: its note will show it when the item returns
            before = queue_record(txn, queue)
            numbers = _format.numbers(before)
            weighed_records.delete_index(txn, queue, name)
            fifo.set_numbers(txn, queue, before, numbers._replace(expiring=numbers.expiring - 1))
        else:
            leave(txn, queue, record, now, bury=bury)
    return len(over)


def leave(txn: Txn, queue: Tables, record: Record | None, now: int, *, bury: bool) -> None:
    """Let an expired item, which was taken out, leave for good, or make it a dead letter."""
    if record is None:
        return
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    numbers = numbers._replace(expired=numbers.expired + 1)
    if bury:
        numbers = dead_letters.bury(txn, queue, record, Return(now, EXPIRED), numbers)
    else:
        if not record.note.due:  # a delayed item has no place that a reader could be before
            reader_records.skip(txn, queue, [record.key])
        numbers = item_notes.settle(txn, queue, record.key, record.note, numbers)
    fifo.set_numbers(txn, queue, before, numbers)


def take_out(txn: Txn, queue: Tables, key: bytes, due: int) -> Record | None:
    """Take out an item that is waiting, or delayed until ``due``, with its note; None if it is neither."""
    found = fifo.take_out(txn, queue, [key])
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    if found:
        (note,), now = item_notes.lift(txn, queue, [key], now)
        fifo.set_numbers(txn, queue, before, now)
        return Record(key, note, found[0][1])
    name = away(queue.name, "delayed", due, key)
    if not due or txn.get(name, db=queue.away) is None:
        return None
    record = lease_records.take(txn, queue, name)
    fifo.set_numbers(txn, queue, before, now._replace(delayed=now.delayed - 1))
    return record
