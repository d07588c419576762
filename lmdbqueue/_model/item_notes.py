"""What is known of the items of a queue beside their payloads: attempts, unique keys, how many are where.

Owns: the record of counts, the notes on items that wait, the keys of ``unique``. Law: an item without a note
was never leased and has no key; a key stands for an item that waits, is leased or delayed, and for no other;
the counts are those of the records. Must not know: the order of items, why something is noted.

A queue that never had a lease, a delay or a key has no record of counts, and pays a look for it.
"""

from collections.abc import Iterable

from lmdbqueue import _format
from lmdbqueue._format import Counts, Note, away, pack
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import lease_records, weighed_records
from lmdbqueue._model.weighed_records import opened

DIGEST = 16  # bytes


def counts(txn: Txn, queue: Tables) -> Counts:
    """Return how much of the queue is away."""
    value = txn.get(queue.counts, db=queue.meta)
    return Counts() if value is None else Counts.unpack(value)


def set_counts(txn: Txn, queue: Tables, now: Counts) -> None:
    """Write them down."""
    weighed_records.put(txn, queue, queue.counts, now.pack())


def lift(txn: Txn, queue: Tables, keys: Iterable[bytes], now: Counts) -> tuple[list[Note], Counts]:
    """Remove and return the notes on items, in their order."""
    if not now.noted:
        return [NONE] * len(list(keys)), now
    notes = [_lift(txn, queue, _format.number(key)) for key in keys]
    return [note or NONE for note in notes], now._replace(noted=now.noted - sum(note is not None for note in notes))


def put(txn: Txn, queue: Tables, seq: int, note: Note, now: Counts) -> Counts:
    """Note something on an item that waits, if there is anything to note."""
    if not note.attempts and not note.unique:
        return now
    weighed_records.put_away(txn, queue, away(queue.name, "note", seq), note.pack())
    return now._replace(noted=now.noted + 1)


def forget(txn: Txn, queue: Tables, keys: list[bytes]) -> None:
    """Forget what is known of items that left for good."""
    if txn.get(queue.counts, db=queue.meta) is None:
        return
    before = counts(txn, queue)
    notes, now = lift(txn, queue, keys, before)
    for note in notes:
        now = free(txn, queue, note, now)
    if now != before:
        set_counts(txn, queue, now)


def forget_all(txn: Txn, queue: Tables) -> None:
    """Forget what is known of all items that waited."""
    before = counts(txn, queue)
    if before.noted:
        keys = [key[-8:] for key in lease_records.keys(txn, queue, away(queue.name, "note"))]
        forget(txn, queue, keys)


def held_by(txn: Txn, queue: Tables, unique: bytes) -> int | None:
    """Return the number of the item that has a key."""
    key = away(queue.name, "unique", unique)
    value = txn.get(key, db=queue.away)
    found = None if value is None else opened(queue, key, value)
    return None if found is None else _format.unpack(found)


def hold(txn: Txn, queue: Tables, unique: bytes, seq: int, now: Counts) -> Counts:
    """Note that an item has a key."""
    key = away(queue.name, "unique", unique)
    is_new = txn.get(key, db=queue.away) is None  # else it was damaged
    weighed_records.put_away(txn, queue, key, pack(seq))
    return now._replace(unique=now.unique + is_new)


def free(txn: Txn, queue: Tables, note: Note, now: Counts) -> Counts:
    """Give the key of an item free, if it has one."""
    if note.unique and weighed_records.pop_away(txn, queue, away(queue.name, "unique", note.unique)) is not None:
        return now._replace(unique=now.unique - 1)
    return now


NONE = Note()


def _lift(txn: Txn, queue: Tables, seq: int) -> Note | None:
    key = away(queue.name, "note", seq)
    value = weighed_records.pop_away(txn, queue, key)
    if value is None:
        return None
    data = opened(queue, key, value)
    return NONE if data is None else Note.unpack(data)[0]
