"""Items that leave a queue by themselves: passed by all readers, or beyond the limits of retention.

Owns: when an item is removed without a call for it. Law: an item that all readers have passed leaves with the move of
the last of them, unless it is retained; at the end of a transaction that added items, none exceeds the limits. Must not
know: clocks (it is told the time), who reads.

Trimming is a step of the transaction that made it due. Items that all readers have passed leave in portions of
``_AT_ONCE``; the rest leaves with the next. Expired items leave before anything is counted, so they never displace an
item that is still wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice, takewhile
from typing import Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import OptionError
from lmdbqueue._base.format import Retention, unpack
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import expiry, fifo, reader_records
from lmdbqueue._model.weighed_records import queue_record

_AT_ONCE: Final = 10_000  # items


def retain(txn: Txn, queue: Tables, now: int, retention: Retention | None, bury: bool) -> bool:
    """Set the limits up to which items are kept, read or not; ``bury`` as in ``trim``.

    Raises ``OptionError`` if the queue has, or had, items with a priority.
    """
    if retention is not None and _format.flags(queue_record(txn, queue)) & _format.CLASSES:
        raise OptionError(queue.generation.directory, "retain", "priorities", "retention", queue.name)
    held = 0
    if retention is not None and retention.bytes is not None:
        with txn.cursor(queue.items) as cursor:
            held = fifo.size_of(queue, cursor.iternext(keys=False))
    reader_records.set_retention(txn, queue, retention, held)
    trim(txn, queue, now, bury)
    return True


def trim(txn: Txn, queue: Tables, now: int, bury: bool | None = None) -> int:
    """Remove items that are no longer retained; return their number.

    ``bury``: expired items become dead letters; None: no item that could have expired was added.
    """
    found = reader_records.retention(txn, queue)
    if found is not None:
        if bury is not None and fifo.numbers(txn, queue).expiring:
            expiry.expire_all(txn, queue, now, bury=bury)
        removed = _trim_to(txn, queue, found[0], now)
        if removed:
            before = queue_record(txn, queue)
            numbers = _format.numbers(before)
            fifo.set_numbers(txn, queue, before, numbers._replace(dropped=numbers.dropped + removed))
        return removed
    place = reader_records.last_passed(txn, queue)
    if place is None:
        return 0
    with txn.cursor(queue.items) as cursor:
        keys = islice(cursor.iternext(values=False), _AT_ONCE)
        n = sum(1 for _ in takewhile(lambda key: key <= place, keys))
    return fifo.delete(txn, queue, n) if n else 0


def is_beyond(txn: Txn, queue: Tables, now: int) -> bool:
    """Return whether the first item is older than the limit."""
    found = reader_records.retention(txn, queue)
    return found is not None and found[0].age is not None and _older(txn, queue, now - found[0].age) > 0


def _trim_to(txn: Txn, queue: Tables, retention: Retention, now: int) -> int:
    removed = 0
    if retention.items is not None:
        removed += fifo.delete(txn, queue, max(0, fifo.count(txn, queue) - retention.items))
    if retention.age is not None:
        while n := _older(txn, queue, now - retention.age):
            removed += fifo.delete(txn, queue, n)
    if retention.bytes is not None:
        beyond = min(_beyond(txn, queue, retention.bytes), fifo.count(txn, queue) - 1)  # the newest item always stays
        removed += fifo.delete(txn, queue, max(0, beyond))
    return removed


def staying(txn: Txn, queue: Tables, sizes: Sequence[int], now: int, leaving: Collection[bytes] = ()) -> int:
    """Return how many items would wait after a push of items of these sizes, and after those of ``leaving`` left."""
    there = fifo.count(txn, queue) - len(leaving)
    waiting = there + len(sizes)
    found = reader_records.retention(txn, queue)
    if found is None:
        return waiting
    limits, held = found
    left = fifo.size_of(queue, [value for _, value in fifo.at(txn, queue, leaving)])
    over = 0 if limits.bytes is None else held - left + sum(sizes) - limits.bytes
    oldest = 0 if limits.age is None else now - limits.age
    beyond = 0
    with txn.cursor(queue.items) as cursor:
        for value in (value for key, value in cursor.iternext() if key not in leaving):
            if over <= 0 and pushed_at(queue, value) >= oldest:
                break
            over -= _format.payload_size(value, sealed=queue.sealed)
            beyond += 1
    if beyond == there:
        for size in sizes:
            if over <= 0:
                break
            over -= size
            beyond += 1
    if limits.items is not None:
        beyond = max(beyond, waiting - limits.items)
    return max(waiting - beyond, bool(sizes))  # the newest item always stays


def _beyond(txn: Txn, queue: Tables, size: int) -> int:
    """Return how many of the first items must leave so that the payloads of the rest fit the limit of bytes."""
    found = reader_records.retention(txn, queue)
    over = 0 if found is None else found[1] - size
    n = 0
    if over > 0:
        with txn.cursor(queue.items) as cursor:
            for value in cursor.iternext(keys=False):
                n += 1
                over -= _format.payload_size(value, sealed=queue.sealed)
                if over <= 0:
                    break
    return n


def _older(txn: Txn, queue: Tables, time: int) -> int:
    """Return how many of the first items were pushed before a time, at most ``_AT_ONCE``."""
    n = 0
    with txn.cursor(queue.items) as cursor:
        for value in islice(cursor.iternext(keys=False), _AT_ONCE):
            if pushed_at(queue, value) >= time:
                break
            n += 1
    return n


def pushed_at(queue: Tables, value: bytes) -> int:
    """Return the time of an item's push, or of the end of its delay, in ns since 1970; far in the future if damaged."""
    end = len(value) - (_format.SEAL_SIZE if queue.sealed else 0)
    return unpack(value[end - 8 : end]) & (1 << 63) - 1 if end >= _format.TRAILER else 1 << 63
