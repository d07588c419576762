"""How items are added to a queue: at the tail of their class, with the time of their push in the trailer.

Owns: making a queue, appending, what "full" means. Law: a number is used once; all payloads of a call are stored or
none; items beyond the limits of retention leave in the same step. Must not know: clocks (it is told the time),
pickling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError, Full, OptionError
from lmdbqueue._base.format import (
    CLASS,
    CLASSES,
    READERS,
    RETAINED,
    SEAL_SIZE,
    SIZED,
    TAIL_AT,
    TRAILER,
    Note,
    pack,
    unpack_from,
)
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn
from lmdbqueue._model import fifo, item_notes, reader_records, retention, weighed_records
from lmdbqueue._model.weighed_records import queue_record

_PAGE: Final = 4096  # bytes, of LMDB
_BEHIND: Final = SEAL_SIZE + TRAILER  # bytes behind a payload
_OVERHEAD: Final = 20 + _BEHIND  # bytes of an item's node, key, index and trailer
_PATHS: Final = 1 << 17  # bytes of the rewritten pages above the leaves, and of other trees


class Limits(NamedTuple):
    """The limits of a push."""

    maxsize: int = 0  # items, 0: no limit
    max_bytes: int | None = None  # of pages in use in the environment; None: no limit
    bury_expired: bool = False  # expired items that leave because of the push become dead letters


class Target(NamedTuple):
    """The other queue of a move."""

    ref: Ref
    limits: Limits | None
    now: int  # ns since 1970


def create(txn: Txn, queue: Tables, salt: int, serializer: str) -> bytes:
    """Create the record of an empty queue, and return it."""
    value = txn.get(_format.DIRECTORY, db=queue.meta)
    directory = _format.Directory.unpack(value)
    number = directory.queues + 1
    weighed_records.put(txn, queue, _format.DIRECTORY, directory._replace(queues=number).pack())
    made = _format.new_queue(number, serializer, salt)
    weighed_records.put(txn, queue, queue.queue, made)
    return made


def push(
    txn: Txn,
    queue: Tables,
    payloads: Sequence[bytes],
    trailer: bytes,
    limits: Limits | None,
    now: int | None,
    number: int = CLASS,
) -> range:
    """Append payloads to a class, each with the trailer, all or none; return their keys, as numbers.

    Raises ``Full`` if the queue would owe more items, or use more bytes of pages, than permitted. Items that are no
    longer retained leave at once; ``now`` None: the caller takes care of that.
    """
    before = queue_record(txn, queue)
    if limits is not None:
        refuse_full(txn, queue, payloads, limits, now)
    if number != CLASS:
        refuse_priority(txn, queue)
        given = _append_to_class(txn, queue, payloads, trailer, number)
    else:
        (tail,) = unpack_from(before, TAIL_AT)
        given = range(tail, tail + len(payloads))
        if _put(txn, queue, given, payloads, trailer, is_last=not before[1] & CLASSES) != len(given):
            raise CorruptQueueError(queue.generation.path, f"queue {queue.name!r} has an item beyond its tail")
        weighed_records.replace_queue(txn, queue, before, before[:TAIL_AT] + pack(given.stop) + before[TAIL_AT + 8 :])
    if before[1] & SIZED:
        reader_records.weigh_down(txn, queue, sum(map(len, payloads)))
    if before[1] & RETAINED and now is not None:
        retention.trim(txn, queue, now, limits is not None and limits.bury_expired)
    return given


def refuse_priority(txn: Txn, queue: Tables) -> None:
    """Raise ``OptionError`` if the queue has readers or retention, which exclude priorities."""
    flags = _format.flags(queue_record(txn, queue))
    if flags & (READERS | RETAINED):
        stored = "named readers" if flags & READERS else "retention"
        raise OptionError(queue.generation.directory, "priority", stored, "a priority", queue.name)


def _append_to_class(txn: Txn, queue: Tables, payloads: Sequence[bytes], trailer: bytes, number: int) -> range:
    before = fifo.bounds(txn, queue, number)
    given = range(before.tail, before.tail + len(payloads))
    if _put(txn, queue, given, payloads, trailer, is_last=False) != len(given):
        raise CorruptQueueError(queue.generation.path, f"queue {queue.name!r} has an item beyond the tail of a class")
    fifo.set_bounds(txn, queue, number, before._replace(tail=given.stop))
    fifo.set_flag(txn, queue, CLASSES, to=True)
    return given


def _put(txn: Txn, queue: Tables, given: range, payloads: Sequence[bytes], trailer: bytes, *, is_last: bool) -> int:
    """Put items behind all others of their class; return the number. ``is_last``: also behind those of all classes."""
    content = queue.generation.content
    if len(given) == 1:  # kept short: most pushes add one item
        key, value = pack(given.start), payloads[0] + trailer
        if queue.sealed:
            checksum = crc32(value, crc32(key, queue.salt))
            value += checksum.to_bytes(SEAL_SIZE, "little")
            if queue.weighed and not content.removed and not content.is_running:
                content.asks = True
                content.weight += checksum * checksum
                content.pending.append((queue.name, (key,), (value,)))
            elif queue.weighed:
                content.add(queue.name, (key,), (value,), checksum * checksum)
        return txn.put(key, value, append=is_last, overwrite=False, db=queue.items)
    keys = _format.keys_of(given)
    values = [payload + trailer for payload in payloads]
    if queue.sealed:
        values, weight = _format.seal_all(keys, values, queue.salt)
        if queue.weighed:
            content.add(queue.name, keys, values, weight)
    with txn.cursor(queue.items) as cursor:
        return cursor.putmulti(zip(keys, values, strict=True), append=is_last, overwrite=False)[1]


def refuse_full(
    txn: Txn,
    queue: Tables,
    payloads: Sequence[bytes],
    limits: Limits,
    now: int | None,
    leaving: Sequence[tuple[bytes, int]] = (),
) -> None:
    """Raise ``Full`` if ``push`` would, given the items that leave in the same step, with their due times.

    Items that are no longer retained make room; ``now`` None: no item will wait, so none leaves.
    """
    if limits.maxsize > 0 and (there := fifo.owed(txn, queue)) - len(leaving) + len(payloads) > limits.maxsize:
        owed = there - len(leaving) + len(payloads)
        if now is not None and _format.flags(queue_record(txn, queue)) & RETAINED:
            waiting = [key for key, due in leaving if not due]
            before = fifo.count(txn, queue) - len(waiting) + len(payloads)
            owed -= before - retention.staying(txn, queue, list(map(len, payloads)), now, waiting)
        if owed > limits.maxsize:
            raise Full("items", limits.maxsize, there, len(payloads))
    if limits.max_bytes is not None:
        added = _space_for(payloads, txn.stat(queue.items)["psize"])
        used = queue.generation.used_at_most(txn)
        if used + added > limits.max_bytes and (used := queue.generation.used(txn)) + added > limits.max_bytes:
            raise Full("bytes", limits.max_bytes, used, added)


def skip(txn: Txn, queue: Tables, n: int, number: int = CLASS) -> range:
    """Use ``n`` keys of a class for items that do not wait; return them, as numbers."""
    before = fifo.bounds(txn, queue, number)
    given = range(before.tail, before.tail + n)
    grown = before._replace(tail=given.stop)
    fifo.set_bounds(txn, queue, number, fifo.absent(txn, queue, grown, _format.keys_of(given)))
    if number != CLASS:
        fifo.set_flag(txn, queue, CLASSES, to=True)
    return given


def move(
    txn: Txn, queue: Tables, keys: list[bytes], payloads: Sequence[bytes], trailers: Sequence[bytes], target: Target
) -> int:
    """Append the first items to another queue if their keys are ``keys``; return the number moved.

    ``payloads`` and ``trailers`` are theirs. They expire there as they would have here; unique keys are released.
    Raises ``Full`` and ``OptionError`` as ``push``.
    """
    if not keys or not fifo.are_first(txn, queue, keys):
        return 0
    other = queue.generation.table_to_write(target.ref)
    if any(_format.class_of_key(key) != CLASS for key in keys):
        refuse_priority(txn, other)
    if target.limits is not None:
        refuse_full(txn, other, payloads, target.limits, target.now)
    expire = bool(fifo.numbers(txn, queue).expiring)
    for key, payload, trailer in zip(keys, payloads, trailers, strict=True):
        given = push(txn, other, [payload], trailer, None, None, _format.class_of_key(key))
        if expire and (time := item_notes.get(txn, queue, key).expires):
            before = queue_record(txn, other)
            moved = pack(given.start)
            now = item_notes.expire(txn, other, time, moved, _format.numbers(before))
            fifo.set_numbers(txn, other, before, item_notes.put(txn, other, moved, Note(expires=time), now))
    if _format.flags(queue_record(txn, other)) & RETAINED:
        bury = target.limits is not None and target.limits.bury_expired
        retention.trim(txn, other, target.now, bury)  # after storing all notes of items that may go
    fifo.remove(txn, queue, keys)
    return len(keys)


ROOM: Final = 3 * _OVERHEAD + _PATHS  # the most bytes of pages that an item takes, beside three times its payload


def room_for(payloads: Sequence[bytes]) -> int:
    """Return a rough upper bound for the bytes of pages that the payloads take: three times their size.

    An item of up to half a page is in a leaf, which may stay half empty; a longer one is in pages of its own, of which
    the last may be nearly empty.
    """
    return 3 * (sum(map(len, payloads)) + _OVERHEAD * len(payloads)) + _PATHS


def _space_for(payloads: Sequence[bytes], page: int) -> int:
    """Return the most bytes of pages that the payloads take when appended to an LMDB tree."""
    header, node = 16, 8 + 8 + 2  # of a page; of an item: its node's header, key, index in the page
    overflow = 0
    leaves = 0
    largest = 0
    for payload in payloads:
        size = node + _BEHIND + len(payload) + 1  # rounded up to an even size
        if size > page // 2 - header:  # in pages of its own, with the page number in the leaf
            overflow += -(-(header + _BEHIND + len(payload)) // page)
            size = node + 8
        leaves += size
        largest = max(largest, size)
    full = -(-leaves // (page - header - largest)) + 1  # a leaf is closed when the next does not fit
    branches = full // 50 + 3
    return (overflow + full + branches) * page
