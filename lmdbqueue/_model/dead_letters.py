"""Dead letters: items that no consumer gets any more, until they are requeued.

Owns: how an item dies, is read, and leaves. Law: a dead letter does not expire, releases its unique key, and keeps its
place for when it is requeued. Must not know: why items die, clocks.
"""

from __future__ import annotations

from collections.abc import Collection

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import Numbers, away
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, item_notes, lease_records, reader_records, weighed_records
from lmdbqueue._model.lease_records import Record
from lmdbqueue._model.weighed_records import queue_record


class Return(NamedTuple):
    """How items come back from a lease."""

    now: int  # ns since 1970
    reason: str = ""
    due: int = 0  # ns since 1970, 0 for immediately
    max_attempts: int | None = None  # attempts after which an item is dead
    trace: str = ""  # the traceback of the failure
    bury_expired: bool = False  # expired items become dead letters instead of leaving
    is_undone: bool = False  # the lease does not count as an attempt, and leaves no note


def dead(txn: Txn, queue: Tables, key: bytes, max_bytes: int) -> list[Record]:
    """Return dead letters from a key on, at least one if there is one, up to about ``max_bytes``."""
    queue_record(txn, queue)
    found = []
    for name, value in weighed_records.entries(txn, queue.away, away(queue.name, "dead"), key):
        found.append(lease_records.record(queue, name, value))
        max_bytes -= len(value)
        if max_bytes <= 0:
            break
    return found


def bury_for_good(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> int:
    """Remove dead letters, all or those of ``seqs``; return their number."""
    return len(exhume(txn, queue, seqs))


def exhume(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> list[Record]:
    """Take out dead letters, all or those of ``seqs``; return them."""
    prefix = away(queue.name, "dead")
    names = (
        list(weighed_records.keys(txn, queue.away, prefix))
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
    """Make the waiting items of these keys dead letters; return their number."""
    found = fifo.take_out(txn, queue, keys)
    before = queue_record(txn, queue)
    notes, now = item_notes.lift(txn, queue, [key for key, _ in found], _format.numbers(before))
    for (key, value), note in zip(found, notes, strict=True):
        now = bury(txn, queue, Record(key, note, value), how, now)
    fifo.set_numbers(txn, queue, before, now)
    return len(found)


def bury(txn: Txn, queue: Tables, record: Record, how: Return, now: Numbers) -> Numbers:
    """Make an item a dead letter, which releases its unique key."""
    if not record.note.due:  # no reader can be before a delayed item, which has no place
        reader_records.skip(txn, queue, [record.key])
    now = item_notes.settle(txn, queue, record.key, record.note, now)
    note = record.note._replace(due=0, expires=0, time=how.now, reason=how.reason, trace=how.trace)
    weighed_records.put_away(txn, queue, away(queue.name, "dead", record.key), note.pack() + record.value)
    return now._replace(dead=now.dead + 1)
