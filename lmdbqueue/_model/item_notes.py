"""The notes on the items of a queue: attempts, unique keys, times of expiry.

Owns: the notes on waiting items, the keys of ``unique``, the index of times of expiry. Law: an item without a note was
never leased, has no key and never expires; a key belongs to an item that is waiting, leased or delayed, and to no
other; the counts in the record of the queue equal the numbers of records. Must not know: the order of items, why
something is noted.

A queue that never had a lease, a delay, a key or an expiry pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import Note, Numbers, away, pack, unpack
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import weighed_records
from lmdbqueue._model.weighed_records import opened

NONE = Note()


def lift(txn: Txn, queue: Tables, keys: Iterable[bytes], now: Numbers) -> tuple[list[Note], Numbers]:
    """Remove and return the notes on items, in their order."""
    if not now.noted:
        return [NONE] * len(list(keys)), now
    notes = [_lift(txn, queue, key) for key in keys]
    return [note or NONE for note in notes], now._replace(noted=now.noted - sum(note is not None for note in notes))


def _lift(txn: Txn, queue: Tables, key: bytes) -> Note | None:
    name = away(queue.name, "note", key)
    value = weighed_records.pop_away(txn, queue, name)
    if value is None:
        return None
    data = opened(queue, name, value, _format.NOTE.size)
    return NONE if data is None else Note.unpack(data)[0]


def put(txn: Txn, queue: Tables, key: bytes, note: Note, now: Numbers) -> Numbers:
    """Store the note on a waiting item, unless it is empty."""
    if not note.attempts and not note.unique and not note.expires:
        return now
    weighed_records.put_away(txn, queue, away(queue.name, "note", key), note.pack())
    return now._replace(noted=now.noted + 1)


def get(txn: Txn, queue: Tables, key: bytes) -> Note:
    """Return the note on a waiting item."""
    name = away(queue.name, "note", key)
    value = txn.get(name, db=queue.away)
    data = None if value is None else opened(queue, name, value, _format.NOTE.size)
    return NONE if data is None else Note.unpack(data)[0]


def forget(txn: Txn, queue: Tables, keys: Iterable[bytes]) -> Sequence[Note]:
    """Remove the notes on items that have left for good; return the notes, an empty list if there are none."""
    before = weighed_records.queue_record(txn, queue)
    numbers = _format.numbers(before)
    if not numbers.noted:
        return ()
    notes, now = lift(txn, queue, keys, numbers)
    for key, note in zip(keys, notes, strict=True):
        now = settle(txn, queue, key, note, now)
    weighed_records.replace_queue(txn, queue, before, _format.with_numbers(before, now))
    return notes


def remember(txn: Txn, queue: Tables, keys: Iterable[bytes], notes: Sequence[Note]) -> None:
    """Undo ``forget`` for items that wait again. A unique key that another item has by now stays with that one."""
    if not any(note != NONE for note in notes):
        return
    before = weighed_records.queue_record(txn, queue)
    now = _format.numbers(before)
    for key, note in zip(keys, notes, strict=True):
        kept, now = remembered(txn, queue, key, note, now)
        now = put(txn, queue, key, kept, now)
    weighed_records.replace_queue(txn, queue, before, _format.with_numbers(before, now))


def remembered(txn: Txn, queue: Tables, key: bytes, note: Note, now: Numbers) -> tuple[Note, Numbers]:
    """Give an item its unique key again, unless another has got that since, and its time of expiry; return its note."""
    if note.unique and held_by(txn, queue, note.unique) is None:
        now = hold(txn, queue, note.unique, key, now)
    elif note.unique:
        note = note._replace(unique=b"")
    return note, expire(txn, queue, note.expires, key, now) if note.expires else now


def forget_waiting(txn: Txn, queue: Tables) -> None:
    """Remove the notes on all waiting items."""
    forget(txn, queue, [key[-8:] for key in weighed_records.keys(txn, queue.away, away(queue.name, "note"))])


def settle(txn: Txn, queue: Tables, key: bytes, note: Note, now: Numbers) -> Numbers:
    """Release the unique key and the expiry entry of an item that leaves for good."""
    if note.expires and weighed_records.delete_index(txn, queue, away(queue.name, "expires", note.expires, key)):
        now = now._replace(expiring=now.expiring - 1)
    if note.unique and held_by(txn, queue, note.unique) == key:
        weighed_records.pop_away(txn, queue, away(queue.name, "unique", note.unique))
        now = now._replace(keys=now.keys - 1)
    return now


# --- unique keys


def held_by(txn: Txn, queue: Tables, unique: bytes) -> bytes | None:
    """Return the key of the newest item with a unique key."""
    return where(txn, queue, unique)[0]


def where(txn: Txn, queue: Tables, unique: bytes) -> tuple[bytes | None, int]:
    """Return the key of the newest item with a unique key, and when it is due, in ns since 1970, if it is delayed."""
    name = away(queue.name, "unique", unique)
    value = txn.get(name, db=queue.away)
    data = None if value is None else opened(queue, name, value, 16)
    return (None, 0) if data is None else (data[:8], unpack(data[8:16]))


def hold(txn: Txn, queue: Tables, unique: bytes, key: bytes, now: Numbers, due: int = 0) -> Numbers:
    """Give an item a unique key, with its due time; an item that had the key before loses it."""
    name = away(queue.name, "unique", unique)
    is_new = txn.get(name, db=queue.away) is None
    weighed_records.put_away(txn, queue, name, key + pack(due))
    return now._replace(keys=now.keys + is_new)


# --- expiry


def expire(txn: Txn, queue: Tables, time: int, key: bytes, now: Numbers, due: int = 0) -> Numbers:
    """Record when an item expires, and when it is due, if it is delayed."""
    name = away(queue.name, "expires", time, key)
    return now._replace(expiring=now.expiring + weighed_records.put_index(txn, queue, name, pack(due)))


def moved(txn: Txn, queue: Tables, key: bytes, note: Note, now: Numbers, due: int) -> Numbers:
    """Record that an item waits again (0), or when it is due."""
    if note.unique and held_by(txn, queue, note.unique) == key:
        now = hold(txn, queue, note.unique, key, now, due)
    if note.expires:
        now = expire(txn, queue, note.expires, key, now, due)
    return now
