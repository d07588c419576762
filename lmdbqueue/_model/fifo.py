"""The verbs as plain functions of a transaction: what a queue *is*.

Owns: the order of items, which keys have one. Law: items leave in the order of their keys; a number is given once, at
the tail of its class; an item that comes back has the key that it had; a function looks before it writes. Must
not know: opening, committing, waiting, clocks, threads, pickling.

The records of a queue, and what holds of them between any two transactions:

- ``items``: key -> value. A key is the priority class and the number in that class (``_format.key_of``), a value is
  payload, trailer and, if the queue has checksums, seal
- the record of the queue (``_format.Numbers``) has the bounds of the class of items without a priority, and all that a
  plain push or pop needs to know; the bounds of each other class have a record of their own
- bounds (``_format.Bounds``): ``tail``, the next key to be given; ``head``, which never goes back: from it on every key
  has an item but for those that were *skipped*, below it none but for those that *returned*. How many these are, and
  the sums of their weights, are noted: so the records tell exactly which items there are (``_model.weighed_records``)

``head`` need not be the first item: it may lag behind, since it passes skipped keys a bounded number at a time.

Functions that write return what they changed; an empty answer says that nothing was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._format import (
    CLASS,
    CLASSES,
    FLAGS_AT,
    HEAD_AT,
    KEY_SIZE,
    NOT_PLAIN,
    NOTHING,
    RETAINED,
    SEAL_SIZE,
    SIZED,
    TAIL_AT,
    TRAILER,
    Bounds,
    class_of_key,
    number_of,
    pack,
    unpack,
    unpack_from,
    weigh,
)
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import item_notes, reader_records, weighed_records
from lmdbqueue._model.weighed_records import queue_record
from lmdbqueue._values import Entry, NamedTuple

_BEHIND = SEAL_SIZE + TRAILER  # bytes behind a payload
_PASSED = 1_000  # skipped keys that the head passes in a call, beyond those of its own items


_new = tuple.__new__  # half of the time of a named tuple's own


class Removed(NamedTuple):
    """Of a removal."""

    items: int
    following: Entry | None = None  # the first item now, where nothing else can come before it
    notes: Sequence[_format.Note] = ()  # on the items, none where nothing was noted of any


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
        with suppress(ValueError):  # of a damaged one: its items can be removed, and a check finds it
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
    found = {CLASS}
    with txn.cursor(queue.meta) as cursor:
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    break
                if (number := _format.class_of_record(key[len(prefix) :])) is not None:
                    found.add(number)
    return sorted(found)


# --- reading


def count(txn: Txn, queue: Tables) -> int:
    """Return how many items there are, from LMDB's own count."""
    return txn.stat(queue.items)["entries"]


def is_plain(txn: Txn, queue: Tables) -> bool:
    """Return whether the items are just the keys from head to tail, and nothing is noted of any."""
    return _format.is_plain(queue_record(txn, queue))


def owed(txn: Txn, queue: Tables) -> int:
    """Return how many items the queue owes: those that wait, and those that are leased or delayed."""
    found = numbers(txn, queue)
    return count(txn, queue) + found.leased + found.delayed


def count_after(txn: Txn, queue: Tables, key: bytes) -> int:
    """Return how many items stand behind a key, of a queue whose items all are of one class.

    By counting them, or those up to it, whichever are fewer, only if keys have no item there.
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
    """Return the first ``n`` entries, or as many as there are; of at most so many bytes of payload, but one always."""
    queue_record(txn, queue)
    with txn.cursor(queue.items) as cursor:
        entries = islice(cursor.iternext(), n)
        return list(entries) if max_bytes is None else list(_within(entries, max_bytes))


def _within(entries: Iterator[Entry], size: int) -> Iterator[Entry]:
    for number, entry in enumerate(entries):
        size -= len(entry[1]) - _BEHIND
        if size < 0 and number:
            break
        yield entry


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
    """Return the entries of these keys that wait, in the order of their keys."""
    queue_record(txn, queue)
    found = ((key, txn.get(key, db=queue.items)) for key in sorted(keys))
    return [(key, value) for key, value in found if value is not None]


# --- coming back


def put_back(txn: Txn, queue: Tables, entries: Sequence[Entry]) -> int:
    """Insert items that were taken out, under the keys that they had; return how many there are."""
    if not entries:
        return 0
    with txn.cursor(queue.items) as cursor:
        for key, value in entries:
            if not cursor.put(key, value, overwrite=False):
                seq = _format.seq_of(key)
                raise CorruptQueueError(queue.generation.path, f"item {seq} exists, but had left")
    if queue.weighed:
        keys, values = [key for key, _ in entries], [value for _, value in entries]
        queue.generation.content.add(queue.name, keys, values, sum(map(_format.weigh_sealed, values)))
    for number, keys in _by_class(key for key, _ in entries):
        set_bounds(txn, queue, number, _present(queue, bounds(txn, queue, number), keys))
    if _format.flags(queue_record(txn, queue)) & SIZED:
        reader_records.weigh_down(txn, queue, sum(len(value) - queue.behind for _, value in entries))
    return len(entries)


# --- leaving


def remove(txn: Txn, queue: Tables, keys: list[bytes]) -> Removed | None:
    """Remove the first items if their keys are ``keys``; otherwise do nothing and return None."""
    removed = remove_if_plain(txn, queue, keys) if len(keys) == 1 else None
    if removed is None and take(txn, queue, keys):
        removed = Removed(len(keys), notes=forget(txn, queue, keys))
    return removed


def remove_if_plain(txn: Txn, queue: Tables, keys: list[bytes]) -> Removed | None:
    """Remove the first item if it is the one of ``keys``, and nothing else could have to come before it.

    Nothing but that may be noted of the queue. It is what nearly every ``pop`` does, and so kept short.
    """
    before = queue_record(txn, queue)
    if before[HEAD_AT:TAIL_AT] != keys[0] or before[FLAGS_AT] or before[NOT_PLAIN] != NOTHING:
        return None
    if queue.generation.content.asks:  # it has to be told
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
    """Take the first items out if their keys are ``keys``, keeping the notes on them; return whether they were."""
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
                size += len(cursor.value()) - queue.behind
            if content.is_running:
                content.leave(cursor.value())
            cursor.delete()
    _gone(txn, queue, keys, size)
    return True


def take_out(txn: Txn, queue: Tables, keys: Collection[bytes]) -> list[Entry]:
    """Take out those items of these keys that are waiting, wherever they stand; return them."""
    found = at(txn, queue, keys)
    for key, value in found:
        if queue.generation.content.is_running:
            queue.generation.content.leave(value)
        txn.delete(key, db=queue.items)
    if found:
        _gone(txn, queue, [key for key, _ in found], sum(len(value) - queue.behind for _, value in found))
    return found


def _gone(txn: Txn, queue: Tables, keys: Sequence[bytes], size: int) -> None:
    """Note that items, in the order of their keys, wait no more; ``size``: bytes of their payloads, if counted."""
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
    """Remove the first ``n`` items, or as many as there are; return how many went."""
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
    """Remove the first ``n`` items, which are there, of a queue that is plain: quicker, since no key is looked at."""
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
        stop = max(before[HEAD_AT:TAIL_AT], min(following or tail, tail))  # whatever damage says
        now = before[:HEAD_AT] + stop + before[TAIL_AT:]
        weighed_records.replace_queue(txn, queue, before, now)
    return n


def forget(txn: Txn, queue: Tables, keys: Sequence[bytes]) -> Sequence[_format.Note]:
    """Note that items left for good; return what was known of them, nothing if that was nothing of any."""
    notes = item_notes.forget(txn, queue, keys)
    reader_records.skip(txn, queue, keys)
    return notes


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all items that wait; return how many went. Tails stay: no number is given twice."""
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
    prefix = _format.state_record(queue.name, "")
    found = []
    with txn.cursor(queue.meta) as cursor:
        if cursor.set_range(prefix):
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    break
                found.append((key, value))
    return found


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
    """Return keys by their classes; those that only damage can have made are left out: nothing counts them."""
    sound = sorted(key for key in keys if len(key) == KEY_SIZE)
    return [(number, list(some)) for number, some in groupby(sound, class_of_key)]


def absent(txn: Txn, queue: Tables, now: Bounds, keys: Sequence[bytes]) -> Bounds:
    """Return the bounds once the keys, in their order, have no item any more; whatever damage there is."""
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
    """Return the bounds with the head moved on to the next item, or past ``most`` keys that have none."""
    with txn.cursor(queue.items) as cursor:
        found = number_of(cursor.key()) if cursor.set_range(pack(now.head)) else now.tail
    head = min(found, now.tail, now.head + most)
    passed = list(map(pack, range(now.head, head)))
    if not passed:
        return now
    skipped_weight = _less(queue, now.skipped_weight, passed)
    return now._replace(head=head, skipped=max(0, now.skipped - len(passed)), skipped_weight=skipped_weight)


def _present(queue: Tables, now: Bounds, keys: Sequence[bytes]) -> Bounds:
    """Return the bounds once the keys have an item again."""
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
