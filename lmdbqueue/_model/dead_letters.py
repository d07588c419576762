"""Dead letters: items that nobody is handed any more, until they are told to wait again.

Owns: how an item dies, is read, and leaves. Law: a dead letter does not expire, leaves its unique key to others, and
keeps its place for when it waits again. Must not know: why items die, clocks.
"""

from __future__ import annotations

from collections.abc import Collection

from lmdbqueue import _format
from lmdbqueue._format import Numbers, away
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, item_notes, lease_records, reader_records, weighed_records
from lmdbqueue._model.lease_records import Record
from lmdbqueue._model.weighed_records import queue_record
from lmdbqueue._values import NamedTuple


class Return(NamedTuple):
    """How items come back from a lease."""

    now: int  # ns since 1970
    reason: str = ""
    due: int = 0  # ns since 1970, 0 for at once
    max_attempts: int | None = None  # with so many an item is dead
    trace: str = ""  # the traceback of what happened
    bury_expired: bool = False  # what has expired is dead, not gone
    is_undone: bool = False  # the lease was no attempt, and nothing is noted of it


def dead(txn: Txn, queue: Tables, key: bytes, max_bytes: int) -> list[Record]:
    """Return the dead from a key on, at least one if there is one, up to about ``max_bytes`` of them."""
    queue_record(txn, queue)
    found = []
    for name, value in lease_records.entries(txn, queue, away(queue.name, "dead"), key):
        found.append(lease_records.record(queue, name, value))
        max_bytes -= len(value)
        if max_bytes <= 0:
            break
    return found


def bury_for_good(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> int:
    """Remove the dead, all or those of ``seqs``; return how many there were."""
    return len(exhume(txn, queue, seqs))


def exhume(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> list[Record]:
    """Take the dead, all or those of ``seqs``, out; return them."""
    prefix = away(queue.name, "dead")
    names = (
        list(lease_records.keys(txn, queue, prefix))
        if seqs is None
        else [prefix + _format.key_of(seq) for seq in sorted(seqs)]
    )
    records = [lease_records.take(txn, queue, name) for name in names if txn.get(name, db=queue.away) is not None]
    if records:
        before = queue_record(txn, queue)
        numbers = _format.numbers(before)
        fifo.set_numbers(txn, queue, before, numbers._replace(dead=numbers.dead - len(records)))
    return records


def bury_items(txn: Txn, queue: Tables, keys: Collection[bytes], how: Return) -> int:
    """Put the items of these keys that wait to the dead letters; return how many."""
    found = fifo.take_out(txn, queue, keys)
    before = queue_record(txn, queue)
    notes, now = item_notes.lift(txn, queue, [key for key, _ in found], _format.numbers(before))
    for (key, value), note in zip(found, notes, strict=True):
        now = bury(txn, queue, Record(key, note, value), how, now)
    fifo.set_numbers(txn, queue, before, now)
    return len(found)


def bury(txn: Txn, queue: Tables, record: Record, how: Return, now: Numbers) -> Numbers:
    """Put an item to the dead; its unique key is free then."""
    if not record.note.due:  # a delayed item has no place that a reader could be before
        reader_records.skip(txn, queue, [record.key])
    now = item_notes.settle(txn, queue, record.key, record.note, now)
    note = record.note._replace(due=0, expires=0, time=how.now, reason=how.reason, trace=how.trace)
    weighed_records.put_away(txn, queue, away(queue.name, "dead", record.key), note.pack() + record.value)
    return now._replace(dead=now.dead + 1)
