"""The verbs as plain functions of a transaction: the essence of a queue.

Owns: the order of items, which keys have one. Law: items leave in the order of their keys; a number is used once, at
the tail of its class; an item that returns keeps its key; a function checks before it writes. Must not know: opening,
committing, waiting, clocks, threads, pickling.

The records of a queue, and their invariants between any two transactions:

- ``items``: key -> value. A key is the priority class and the number in that class (``_format.key_of``), a value is
  payload, trailer and, if the queue has checksums, seal
- the record of the queue (``_format.Numbers``) has the bounds of the class of items without a priority, and everything
  that a plain push or pop needs; the bounds of each other class have a record of their own
- bounds (``_format.Bounds``): ``tail``, the next key to be used; ``head``, which never goes back: from it on every key
  has an item, except the *skipped* ones; below it none has, except the *returned* ones. The numbers of these
  exceptions, and the sums of their weights, are recorded: so the records determine exactly which items exist
  (``_model.weighed_records``)

``head`` need not be the first item: it may lag behind, since it passes only a bounded number of skipped keys at a time.

Functions that write return what they changed; a falsy result means that they changed nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._base.format import (
    CLASS,
    CLASSES,
    FLAGS_AT,
    HEAD_AT,
    KEY_SIZE,
    NOT_PLAIN,
    NOTHING,
    RETAINED,
    SIZED,
    TAIL_AT,
    Bounds,
    class_of_key,
    number_of,
    pack,
    unpack,
    unpack_from,
    weigh,
)
from lmdbqueue._base.values import Entry, NamedTuple
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import item_notes, reader_records, weighed_records
from lmdbqueue._model.weighed_records import queue_record

_PASSED = 1_000  # skipped keys that the head passes in one call, beyond those of the call's own items


_new = tuple.__new__  # half of the time of a named tuple's own


class Removed(NamedTuple):
    """The result of a removal."""

    items: int
    following: Entry | None = None  # the item that is first now, if no other can come before it
    notes: Sequence[_format.Note] = ()  # on the items; empty if none had a note


# --- the record of the queue


def numbers(txn: Txn, queue: Tables) -> _format.Numbers:
    """Return the numbers of the record of the queue."""
    return _format.numbers(queue_record(txn, queue))


def set_numbers(txn: Txn, queue: Tables, before: bytes, now: _format.Numbers) -> bytes:
    """Write other numbers into the record of the queue, which was ``before``; return it."""
    after = _format.with_numbers(before, now)
    if after != before:
        weighed_records.replace_queue(txn, queue, before, after)
    return after


def set_flag(txn: Txn, queue: Tables, flag: int, *, to: bool) -> None:
    """Set a flag in the record of the queue, or clear it."""
    before = queue_record(txn, queue)
    now = _format.flags(before) | flag if to else _format.flags(before) & ~flag
    if now != _format.flags(before):
        weighed_records.replace_queue(txn, queue, before, _format.with_flags(before, now))


def bounds(txn: Txn, queue: Tables, number: int = CLASS) -> Bounds:
    """Return the bounds of a class."""
    if number == CLASS:
        return numbers(txn, queue).bounds()
    data = txn.get(_format.class_record(queue.name, number), db=queue.meta)
    if data is not None:
        with suppress(ValueError):  # a damaged record: its items can be removed, and a check reports it
            return Bounds.unpack(data)
    return Bounds.empty(number)


def set_bounds(txn: Txn, queue: Tables, number: int, now: Bounds) -> None:
    if number == CLASS:
        before = queue_record(txn, queue)
        set_numbers(txn, queue, before, _format.numbers(before).bounded(now))
    else:
        weighed_records.put(txn, queue, _format.class_record(queue.name, number), now.pack())


def classes(txn: Txn, queue: Tables) -> list[int]:
    """Return the classes that have, or had, items."""
    if not _format.flags(queue_record(txn, queue)) & CLASSES:
        return [CLASS]
    prefix = _format.record(queue.name, "class/")
    found = (_format.class_of_record(key[len(prefix) :]) for key in weighed_records.keys(txn, queue.meta, prefix))
    return sorted({CLASS, *(number for number in found if number is not None)})


def never_given(txn: Txn, queue: Tables, keys: Sequence[bytes]) -> list[bytes]:
    """Return those of these keys that no item has ever had."""
    tails = {number: bounds(txn, queue, number).tail for number in set(map(class_of_key, keys))}
    return [key for key in keys if number_of(key) >= tails[class_of_key(key)]]


# --- reading


def count(txn: Txn, queue: Tables) -> int:
    """Return the number of items, from LMDB's own count."""
    return txn.stat(queue.items)["entries"]


def is_plain(txn: Txn, queue: Tables) -> bool:
    """Return whether the items are exactly the keys from head to tail, and none has a note."""
    return _format.is_plain(queue_record(txn, queue))


def owed(txn: Txn, queue: Tables) -> int:
    """Return how many items the queue owes: the waiting, leased and delayed ones."""
    found = numbers(txn, queue)
    return count(txn, queue) + found.leased + found.delayed


def count_after(txn: Txn, queue: Tables, key: bytes) -> int:
    """Return the number of items behind a key, in a queue whose items are all of one class.

    It counts them, or those before the key, whichever are fewer, but only if there are keys without items.
    """
    head, tail, skipped, _, returned, _ = bounds(txn, queue)
    following = unpack(key) + 1
    if not skipped and not returned:
        return max(0, tail - max(head, following))
    total = count(txn, queue)
    with txn.cursor(queue.items) as behind, txn.cursor(queue.items) as before:
        if not behind.set_range(pack(following)):
            return 0
        before.set_range(pack(following))
        if not before.prev():
            return total
        ahead = behind.iternext(values=False)
        pairs = sum(1 for _ in zip(before.iterprev(values=False), ahead, strict=False))
        return pairs if next(ahead, None) is None else total - pairs


def first(txn: Txn, queue: Tables, n: int, max_bytes: int | None = None) -> list[Entry]:
    """Return at most the first ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""
    queue_record(txn, queue)
    with txn.cursor(queue.items) as cursor:
        entries = islice(cursor.iternext(), n)
        return list(entries) if max_bytes is None else list(_within(queue, entries, max_bytes))


def _within(queue: Tables, entries: Iterator[Entry], size: int) -> Iterator[Entry]:
    for number, entry in enumerate(entries):
        size -= _format.payload_size(entry[1], sealed=queue.sealed)
        if size < 0 and number:
            break
        yield entry


def size_of(queue: Tables, values: Iterable[bytes]) -> int:
    """Return the bytes of the payloads of items: what limits of bytes count, without their headers."""
    return sum(_format.payload_size(value, sealed=queue.sealed) for value in values)


def since(txn: Txn, queue: Tables, key: bytes, max_bytes: int) -> list[Entry]:
    """Return the entries behind ``key`` (b"": all), at least one if there is one, up to about ``max_bytes`` of them."""
    queue_record(txn, queue)
    entries = []
    with txn.cursor(queue.items) as cursor:
        if cursor.set_range(key + b"\0"):
            for entry in cursor.iternext():
                entries.append(entry)
                max_bytes -= len(entry[1])
                if max_bytes <= 0:
                    break
    return entries


def at(txn: Txn, queue: Tables, keys: Iterable[bytes]) -> list[Entry]:
    """Return the waiting entries of these keys, in the order of their keys."""
    queue_record(txn, queue)
    found = ((key, txn.get(key, db=queue.items)) for key in sorted(keys))
    return [(key, value) for key, value in found if value is not None]


# --- coming back


def put_back(txn: Txn, queue: Tables, entries: Sequence[Entry]) -> int:
    """Insert items that were taken out, under their old keys; return their number."""
    if not entries:
        return 0
    with txn.cursor(queue.items) as cursor:
        for key, value in entries:
            if not cursor.put(key, value, overwrite=False):
                seq = _format.seq_of(key)
                raise CorruptQueueError(queue.generation.path, f"item {seq} exists, but had left")
    if queue.weighed:
        keys, values = [key for key, _ in entries], [value for _, value in entries]
        queue.generation.content.add(queue.name, keys, values, sum(map(_format.weigh_item, values)))
    for number, keys in _by_class(key for key, _ in entries):
        set_bounds(txn, queue, number, _present(queue, bounds(txn, queue, number), keys))
    if _format.flags(queue_record(txn, queue)) & SIZED:
        reader_records.weigh_down(txn, queue, size_of(queue, [value for _, value in entries]))
    return len(entries)


# --- leaving


def remove(txn: Txn, queue: Tables, keys: list[bytes]) -> Removed | None:
    """Remove the first items if their keys are ``keys``; otherwise do nothing and return None."""
    removed = remove_if_plain(txn, queue, keys) if len(keys) == 1 else None
    if removed is None and take(txn, queue, keys):
        removed = Removed(len(keys), notes=forget(txn, queue, keys))
    return removed


def remove_if_plain(txn: Txn, queue: Tables, keys: list[bytes]) -> Removed | None:
    """Remove the first item if it is the one of ``keys``, and no other item could have to come before it.

    The queue must not have anything else recorded. Nearly every ``pop`` takes this path, so it is kept short.
    """
    before = queue_record(txn, queue)
    if before[HEAD_AT:TAIL_AT] != keys[0] or before[FLAGS_AT] or before[NOT_PLAIN] != NOTHING:
        return None
    if queue.generation.content.asks:  # it wants to know the values
        return None
    with txn.cursor(queue.items) as cursor:
        if not cursor.first() or cursor.key() != keys[0]:
            return None
        if queue.generation.content.is_running:
            queue.generation.content.leave(cursor.value())
        cursor.delete()
        following = cursor.item() if cursor.key() else None
    (head,) = unpack_from(before, HEAD_AT)
    weighed_records.replace_queue(txn, queue, before, before[:HEAD_AT] + pack(head + 1) + before[TAIL_AT:])
    return _new(Removed, (1, following, ()))


def take(txn: Txn, queue: Tables, keys: list[bytes]) -> bool:
    """Take out the first items if their keys are ``keys``, and keep their notes; return whether they were."""
    before = queue_record(txn, queue)
    if not keys:
        return False
    size = 0
    content = queue.generation.content
    with txn.cursor(queue.items) as cursor:
        if list(islice(cursor.iternext(values=False), len(keys))) != keys:
            return False
        cursor.first()
        for _ in keys:
            if before[1] & SIZED:
                size += _format.payload_size(cursor.value(), sealed=queue.sealed)
            if content.is_running:
                content.leave(cursor.value())
            cursor.delete()
    _gone(txn, queue, keys, size)
    return True


def take_out(txn: Txn, queue: Tables, keys: Collection[bytes]) -> list[Entry]:
    """Take out the waiting items of these keys, wherever they are; return them."""
    found = at(txn, queue, keys)
    for key, value in found:
        if queue.generation.content.is_running:
            queue.generation.content.leave(value)
        txn.delete(key, db=queue.items)
    if found:
        is_sized = _format.flags(queue_record(txn, queue)) & SIZED
        size = size_of(queue, [value for _, value in found]) if is_sized else 0
        _gone(txn, queue, [key for key, _ in found], size)
    return found


def _gone(txn: Txn, queue: Tables, keys: Sequence[bytes], size: int) -> None:
    """Record that items, ordered by key, no longer wait; ``size``: bytes of their payloads, if counted."""
    content = queue.generation.content
    if content.asks or content.remembers:
        content.remove(queue.name, keys)
    for number, some in _by_class(keys):
        set_bounds(txn, queue, number, absent(txn, queue, bounds(txn, queue, number), some))
    if size:
        reader_records.weigh_down(txn, queue, -size)


def are_first(txn: Txn, queue: Tables, keys: list[bytes]) -> bool:
    """Return whether the keys of the first items are ``keys``."""
    with txn.cursor(queue.items) as cursor:
        return list(islice(cursor.iternext(values=False), len(keys))) == keys


def delete(txn: Txn, queue: Tables, n: int) -> int:
    """Remove at most the first ``n`` items; return their number."""
    before = queue_record(txn, queue)
    if _format.is_plain(before) and not queue.generation.content.asks:
        return _cut_off(txn, queue, before, min(n, count(txn, queue)))
    with txn.cursor(queue.items) as cursor:
        keys = list(islice(cursor.iternext(values=False), n))
    if keys:
        take(txn, queue, keys)
        forget(txn, queue, keys)
    return len(keys)


def _cut_off(txn: Txn, queue: Tables, before: bytes, n: int) -> int:
    """Remove the first ``n`` items, which exist, of a plain queue: faster, since no key is read."""
    with txn.cursor(queue.items) as cursor:
        cursor.first()
        content = queue.generation.content
        for _ in range(n):
            if content.is_running:
                content.leave(cursor.value())
            cursor.delete()
        following = cursor.key()
    if n:
        tail = before[TAIL_AT : TAIL_AT + 8]
        stop = max(before[HEAD_AT:TAIL_AT], min(following or tail, tail))  # even after damage
        now = before[:HEAD_AT] + stop + before[TAIL_AT:]
        weighed_records.replace_queue(txn, queue, before, now)
    return n


def forget(txn: Txn, queue: Tables, keys: Sequence[bytes]) -> Sequence[_format.Note]:
    """Remove the notes of items that left for good; return the notes, an empty list if there were none."""
    notes = item_notes.forget(txn, queue, keys)
    reader_records.skip(txn, queue, keys)
    return notes


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all waiting items; return their number. Tails stay: no number is used twice."""
    removed = count(txn, queue)
    if removed:
        before = queue_record(txn, queue)
        item_notes.forget_waiting(txn, queue)
        reader_records.skip_waiting(txn, queue)
        if queue.generation.content.asks:
            with txn.cursor(queue.items) as cursor:
                queue.generation.content.remove(queue.name, cursor.iternext(values=False))
        if queue.generation.content.is_running:
            with txn.cursor(queue.items) as cursor:
                for value in cursor.iternext(keys=False):
                    queue.generation.content.leave(value)
        txn.drop(queue.items, delete=False)
        for number in classes(txn, queue):
            tail = bounds(txn, queue, number).tail
            set_bounds(txn, queue, number, Bounds(tail, tail))
        if before[1] & RETAINED:
            reader_records.set_held(txn, queue, 0)
    return removed


def state(txn: Txn, queue: Tables) -> list[tuple[bytes, bytes]]:
    """Return the records of the queue's state, sealed if it has checksums."""
    return list(weighed_records.entries(txn, queue.meta, _format.state_record(queue.name, "")))


def destroy(txn: Txn, queue: Tables) -> bool:
    """Remove the records of the queue; its items are removed by the generation, with their tree."""
    for db in (queue.meta, queue.away):
        prefix = _format.record(queue.name, "")
        with txn.cursor(db) as cursor:
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                if queue.weighed:
                    key, value = cursor.item()
                    queue.generation.weight -= _format.weigh_in(db is queue.away, key, value)
                cursor.delete()
    return True


# --- which keys have an item


def _by_class(keys: Iterable[bytes]) -> list[tuple[int, list[bytes]]]:
    """Return keys by their classes, except keys that only damage can have made, which are not counted."""
    sound = sorted(key for key in keys if len(key) == KEY_SIZE)
    return [(number, list(some)) for number, some in groupby(sound, class_of_key)]


def absent(txn: Txn, queue: Tables, now: Bounds, keys: Sequence[bytes]) -> Bounds:
    """Return the bounds after the items of these keys, in order, have left; never fails, even after damage."""
    head, tail = pack(now.head), pack(now.tail)
    behind = [key for key in keys if head <= key < tail]
    returned = [key for key in keys if key < head]
    if returned:
        now = now._replace(
            returned=max(0, now.returned - len(returned)), returned_weight=_less(queue, now.returned_weight, returned)
        )
    if not behind:
        return now
    if not now.skipped and behind[0] == head and unpack(behind[-1]) - now.head + 1 == len(behind):
        return now._replace(head=now.head + len(behind))
    now = now._replace(skipped=now.skipped + len(behind), skipped_weight=_more(queue, now.skipped_weight, behind))
    return _advanced(txn, queue, now, len(behind) + _PASSED)


def _advanced(txn: Txn, queue: Tables, now: Bounds, most: int) -> Bounds:
    """Return the bounds with the head moved on to the next item, or past at most ``most`` keys without one."""
    with txn.cursor(queue.items) as cursor:
        found = number_of(cursor.key()) if cursor.set_range(pack(now.head)) else now.tail
    head = min(found, now.tail, now.head + most)
    passed = _format.keys_of(range(now.head, head))
    if not passed:
        return now
    skipped_weight = _less(queue, now.skipped_weight, passed)
    return now._replace(head=head, skipped=max(0, now.skipped - len(passed)), skipped_weight=skipped_weight)


def _present(queue: Tables, now: Bounds, keys: Sequence[bytes]) -> Bounds:
    """Return the bounds after the items of these keys have returned."""
    head = pack(now.head)
    behind = [key for key in keys if key >= head]
    before = [key for key in keys if key < head]
    return now._replace(
        skipped=max(0, now.skipped - len(behind)),
        skipped_weight=_less(queue, now.skipped_weight, behind),
        returned=now.returned + len(before),
        returned_weight=_more(queue, now.returned_weight, before),
    )


def _more(queue: Tables, weight: int, keys: Sequence[bytes]) -> int:
    return (weight + sum(map(weigh, keys))) & _ALL if queue.weighed else 0


def _less(queue: Tables, weight: int, keys: Sequence[bytes]) -> int:
    return (weight - sum(map(weigh, keys))) & _ALL if queue.weighed else 0


_ALL = (1 << 64) - 1
