"""How what is held back comes back: from leases that nobody holds any more, from delays, and from the dead letters.

Owns: what has to come back, or go, before anybody reads. Law: an item is in one place at a time, and moves in one
transaction. Must not know: clocks, locks of owners (it is told the time, and asks whether an owner is dead), pickling.

There is no timer: a consumer that looks for work finds in its own snapshot what must come back, or go,
before (``overdue``), and sees to it in a transaction of its own (``restore``). Killed before that commit it did
nothing, and the next one finds the same; nothing is lost or doubled, since giving back is a move.

Times are in ns: deadlines on the system-wide monotonic clock, which a step of the wall clock does not move,
and which a reboot begins anew, but then every owner is dead; all others on the wall clock, since they outlive a
reboot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, TypeVarTuple

from lmdbqueue import _format
from lmdbqueue._format import READERS, RETAINED, Note, away, pack, unpack
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import (
    dead_letters,
    expiry,
    fifo,
    item_notes,
    lease_records,
    pushing,
    reader_records,
    retention,
    weighed_records,
)
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.lease_records import DAMAGED, NEVER, Record
from lmdbqueue._model.weighed_records import queue_record
from lmdbqueue._values import Entry, Moment, NamedTuple

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AT_ONCE: Final = 10_000  # items that come back in one transaction, about
_LOOKED_AT: Final = 16  # owners that a look asks after, in turn with the others


if TYPE_CHECKING:

    class Watch(Protocol):
        """What knows which owners of leases are dead."""

        after: int  # the owner that it was asked after last

        def dead_among(self, owners: Sequence[int]) -> tuple[int, ...]:
            """Return which of these are dead."""


class Overdue(NamedTuple):
    """There is something to be done first: for these owners, or since the time of something is over."""

    owners: tuple[int, ...]


def look(
    txn: Txn, queue: Tables, watch: Watch, now: Moment, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts
) -> R | Overdue:
    """Return ``fn(txn, queue, *args)``, or ``Overdue`` if something has to be done before."""
    if (found := overdue(txn, queue, watch, now)) is not None:
        return found
    return fn(txn, queue, *args)


def overdue(txn: Txn, queue: Tables, watch: Watch, now: Moment) -> Overdue | None:
    """Return what has to be done before anybody reads, if there is something."""
    record = queue_record(txn, queue)
    if _format.is_plain(record):
        return None
    numbers = _format.numbers(record)
    is_over = _format.flags(record) & RETAINED and retention.is_beyond(txn, queue, now.wall)
    dead: tuple[int, ...] = ()
    if numbers.leased:
        is_over = is_over or lease_records.first_time(txn, queue, "expiry") <= now.monotonic
        dead = watch.dead_among(lease_records.owners(txn, queue, watch.after, _LOOKED_AT))
    if numbers.delayed:
        is_over = is_over or lease_records.first_time(txn, queue, "delayed") <= now.wall
    if numbers.expiring:
        is_over = is_over or lease_records.first_time(txn, queue, "expires") <= now.wall
    return Overdue(dead) if dead or is_over else None


def next_time(txn: Txn, queue: Tables) -> tuple[int, int, list[int]]:
    """Return when the next lease expires, when the next item comes due, and some owners of leases."""
    numbers = fifo.numbers(txn, queue)
    expiry, due, owners = NEVER, NEVER, list[int]()
    if numbers.leased:
        expiry = lease_records.first_time(txn, queue, "expiry")
        owners = lease_records.owners(txn, queue, 0, 2)
    if numbers.delayed:
        due = lease_records.first_time(txn, queue, "delayed")
    return expiry, due, owners


def restore(
    txn: Txn,
    queue: Tables,
    owners: Iterable[int],
    now: Moment,
    how: Return,
    most: int = _AT_ONCE,
) -> int:
    """Requeue the items of these dead owners and those now due; remove what has expired.

    Return how many items it was, about ``most`` at a time: it may have to be done again.
    """
    changed = 0
    how = how._replace(reason="its consumer died")
    for owner in owners:
        changed += give_back_leases(txn, queue, away(queue.name, "owner", owner), how, most - changed)
    how = how._replace(reason="its lease expired")
    while lease_records.first_time(txn, queue, "expiry") <= now.monotonic and changed < most:
        changed += give_back_leases(txn, queue, away(queue.name, "expiry"), how, 1)
    changed += _restore_delayed(txn, queue, now.wall, most - changed)
    changed += expiry.expire(txn, queue, now.wall, most - changed, bury=how.bury_expired)
    if _format.flags(queue_record(txn, queue)) & RETAINED:  # else what came back behind all readers would be gone
        changed += retention.trim(txn, queue, now.wall, bury=how.bury_expired)
    return changed


def give_back_leases(txn: Txn, queue: Tables, prefix: bytes, how: Return, wanted: int) -> int:
    """Give back leases that an index has under ``prefix``, until ``wanted`` items came back; return how many did."""
    changed = 0
    while changed < wanted and (key := next(lease_records.keys(txn, queue, prefix), None)) is not None:
        released = lease_records.release(txn, queue, unpack(key[-8:]), None)
        weighed_records.delete_index(txn, queue, key)
        if released:
            give_back(txn, queue, released, how)
        changed += max(1, len(released or ()))
    return changed


def _restore_delayed(txn: Txn, queue: Tables, now: int, wanted: int) -> int:
    prefix = away(queue.name, "delayed")
    some = islice(lease_records.keys(txn, queue, prefix), max(0, wanted))
    due = [key for key in some if unpack(key[-16:-8]) <= now]
    if not due:
        return 0
    records = [lease_records.take(txn, queue, key) for key in due]
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    fifo.set_numbers(txn, queue, before, numbers._replace(delayed=numbers.delayed - len(due)))
    _wait(txn, queue, records, now)
    return len(due)


def _wait(txn: Txn, queue: Tables, records: Iterable[Record], now: int) -> None:
    """Make items wait whose time has come: in their places, or, where there are readers, with new keys at the tail."""
    entries = []
    for record in records:
        before = queue_record(txn, queue)
        numbers = _format.numbers(before)
        if record.note.reason == DAMAGED:
            fifo.set_numbers(txn, queue, before, dead_letters.bury(txn, queue, record, Return(now, DAMAGED), numbers))
        elif _format.flags(before) & READERS:
            _wait_at_the_tail(txn, queue, record, now)
        else:
            entries.append((record.key, record.value))
            note = record.note._replace(due=0)
            numbers = item_notes.moved(txn, queue, record.key, note, numbers, 0)
            fifo.set_numbers(txn, queue, before, item_notes.put(txn, queue, record.key, note, numbers))
    fifo.put_back(txn, queue, entries)


def _wait_at_the_tail(txn: Txn, queue: Tables, record: Record, now: int) -> None:
    before = queue_record(txn, queue)
    if queue.sealed and not _format.is_intact(record.key, record.value, queue.salt):
        numbers = dead_letters.bury(txn, queue, record, Return(now, DAMAGED), _format.numbers(before))
        fifo.set_numbers(txn, queue, before, numbers)
        return
    (body,) = _format.bodies([record.value], sealed=queue.sealed)
    size = _format.Trailer.of(body)[1]
    numbers = item_notes.settle(txn, queue, record.key, record.note, _format.numbers(before))
    fifo.set_numbers(txn, queue, before, numbers)
    (number,) = pushing.push(txn, queue, [body[:size]], body[size:], None, None)  # restore() trims at its end
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    key, note = pack(number), record.note._replace(due=0)
    if note.unique:
        numbers = item_notes.hold(txn, queue, note.unique, key, numbers)
    if note.expires:
        numbers = item_notes.expire(txn, queue, note.expires, key, numbers)
    fifo.set_numbers(txn, queue, before, item_notes.put(txn, queue, key, note, numbers))


def give_back(txn: Txn, queue: Tables, released: Sequence[Record], how: Return) -> None:
    """Make items that a lease held wait again, or delay them, or put them to the dead."""
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    now = now._replace(leased=now.leased - len(released))
    entries = []
    for record in released:
        key = record.key
        if how.is_undone:
            note = record.note._replace(attempts=max(0, record.note.attempts - 1))
        else:
            note = record.note._replace(time=how.now, reason=how.reason, trace=how.trace)
        if record.note.reason == DAMAGED:
            now = dead_letters.bury(txn, queue, record, how._replace(reason=DAMAGED), now)
        elif note.unique and item_notes.held_by(txn, queue, note.unique) != key:  # another has replaced it meanwhile
            reader_records.skip(txn, queue, [key])
            now = item_notes.settle(txn, queue, key, note, now)
        elif note.expires and note.expires <= how.now:
            now = now._replace(expired=now.expired + 1)
            if how.bury_expired:
                now = dead_letters.bury(txn, queue, record, Return(how.now, expiry.EXPIRED), now)
            else:
                reader_records.skip(txn, queue, [key])
                now = item_notes.settle(txn, queue, key, note, now)
        elif how.max_attempts is not None and note.attempts >= how.max_attempts:
            now = dead_letters.bury(txn, queue, record, how, now)
        elif how.due:
            note = note._replace(due=how.due)
            name = away(queue.name, "delayed", how.due, key)
            weighed_records.put_away(txn, queue, name, note.pack() + record.value)
            now = item_notes.moved(txn, queue, key, note, now, how.due)
            now = now._replace(delayed=now.delayed + 1)
        else:
            entries.append((key, record.value))
            now = item_notes.put(txn, queue, key, note, now)
    after = fifo.set_numbers(txn, queue, before, now)
    fifo.put_back(txn, queue, entries)
    if entries and _format.flags(after) & RETAINED:
        retention.trim(txn, queue, how.now, bury=how.bury_expired)


def put_back(txn: Txn, queue: Tables, entries: Sequence[Entry], notes: Sequence[Note], now: int, bury: bool) -> int:
    """Undo a removal: items wait again in their places, with what was known of them; return how many came back.

    What is not retained any more goes. ``bury``: what has expired then is dead, not gone.
    """
    came = fifo.put_back(txn, queue, entries)
    keys = [key for key, _ in entries]
    item_notes.remember(txn, queue, keys, notes)
    reader_records.unskip(txn, queue, keys)
    if _format.flags(queue_record(txn, queue)) & RETAINED:
        retention.trim(txn, queue, now, bury=bury)
    return came


def requeue(txn: Txn, queue: Tables, seqs: Collection[int] | None, now: int) -> int:
    """Make the dead, all or those of ``seqs``, wait again in their places, as if never tried; return how many did.

    One whose unique key another item has by now stays dead.
    """
    records = dead_letters.exhume(txn, queue, seqs)
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    entries = []
    for record in records:
        unique = record.note.unique
        if unique and item_notes.held_by(txn, queue, unique) is not None:
            name = away(queue.name, "dead", record.key)
            weighed_records.put_away(txn, queue, name, record.note.pack() + record.value)
            numbers = numbers._replace(dead=numbers.dead + 1)
            continue
        if unique:
            numbers = item_notes.hold(txn, queue, unique, record.key, numbers)
            numbers = item_notes.put(txn, queue, record.key, Note(unique=unique), numbers)
        entries.append((record.key, record.value))
    after = fifo.set_numbers(txn, queue, before, numbers)
    fifo.put_back(txn, queue, entries)
    if entries and _format.flags(after) & RETAINED:
        retention.trim(txn, queue, now)
    return len(entries)
