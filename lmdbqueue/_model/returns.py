"""How items held back return: from leases of dead owners or past their time, from delays, and from the dead letters.

Owns: which items have to return, or leave, before anything is read. Law: an item is in one place at a time, and moves
in one transaction. Must not know: clocks, locks of owners (it is told the time, and asks whether an owner is dead),
pickling.

There is no timer: a consumer that looks for work finds in its own snapshot which items must first return or leave
(``overdue``), and does that in a transaction of its own (``restore``). If it is killed before that commit, nothing
happened, and the next consumer finds the same; nothing is lost or duplicated, since giving back is a move.

**Behind all readers.** What all readers of a queue have passed leaves with the next move of one. So an item that a
consumer had meanwhile, and gives back, does not come to stand there, where nobody would meet it again:

====  ==========================================================================================================
step  in the transaction that gives it back (a nack, the end of a lease, an undone pop, a dead letter that is requeued)
====  ==========================================================================================================
1     it leaves where it was held: its place is one that has no item, as if it had been acknowledged
2     if some reader has not passed its place, or there is none, it waits in its place again
3     else it is pushed anew: it gets a number at the tail, where every reader meets it, and keeps the time of its
      push, its headers, attempts, unique key and the time of its expiry
====  ==========================================================================================================

Where the last reader is, the first entry of the index ``passed`` tells: one look. Readers move in transactions of
their own, so whether all have passed the place cannot change before the commit. Killed before that, nothing was done:
the item is held as before, and comes back when its owner is found dead. An item that comes due in a queue with readers
goes to the tail wherever they are, since nobody has met it.

Times are in ns: deadlines on the system-wide monotonic clock, which steps of the wall clock do not affect; a reboot
restarts it, but then every owner is dead. All others are on the wall clock, since they outlive a reboot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, TypeVarTuple

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import READERS, RETAINED, Note, Numbers, away, pack, unpack
from lmdbqueue._base.values import Entry, Moment, Nacked, NamedTuple
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

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AT_ONCE: Final = 10_000  # roughly the number of items restored in one transaction
_LOOKED_AT: Final = 16  # owners tested at each reading, in rotation


if TYPE_CHECKING:

    class Watch(Protocol):
        """Knows which owners of leases are dead."""

        after: int  # the owner that was tested last

        def dead_among(self, owners: Sequence[int]) -> tuple[int, ...]:
            """Return which of these are dead."""


class Overdue(NamedTuple):
    """There is something to restore first: leases of these dead owners, or items that are due."""

    owners: tuple[int, ...]


def look(
    txn: Txn, queue: Tables, watch: Watch, now: Moment, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts
) -> R | Overdue:
    """Return ``fn(txn, queue, *args)``, or ``Overdue`` if something has to be restored first."""
    if (found := overdue(txn, queue, watch, now)) is not None:
        return found
    return fn(txn, queue, *args)


def overdue(txn: Txn, queue: Tables, watch: Watch, now: Moment) -> Overdue | None:
    """Return what has to be restored before anything is read, None if nothing has."""
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
    """Requeue the items of these dead owners and those now due; remove expired ones.

    Return the number of items, about ``most`` at a time: it may have to be repeated.
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
    if _format.flags(queue_record(txn, queue)) & RETAINED:  # else items behind all readers would leave
        changed += retention.trim(txn, queue, now.wall, bury=how.bury_expired)
    return changed


def give_back_leases(txn: Txn, queue: Tables, prefix: bytes, how: Return, wanted: int) -> int:
    """Give back leases listed under ``prefix`` in an index, until ``wanted`` items returned; return their number."""
    changed = 0
    while changed < wanted and (key := next(weighed_records.keys(txn, queue.away, prefix), None)) is not None:
        released = lease_records.release(txn, queue, unpack(key[-8:]), None)
        weighed_records.delete_index(txn, queue, key)
        if released:
            give_back(txn, queue, released, how)
        changed += max(1, len(released or ()))
    return changed


def _restore_delayed(txn: Txn, queue: Tables, now: int, wanted: int) -> int:
    prefix = away(queue.name, "delayed")
    some = islice(weighed_records.keys(txn, queue.away, prefix), max(0, wanted))
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
    """Make due items wait: in their places or, if there are readers, with new keys at the tail."""
    entries = []
    for record in records:
        before = queue_record(txn, queue)
        numbers = _format.numbers(before)
        if record.note.reason == DAMAGED:
            fifo.set_numbers(txn, queue, before, dead_letters.bury(txn, queue, record, Return(now, DAMAGED), numbers))
        elif _format.flags(before) & READERS:
            _push_anew(txn, queue, record._replace(note=record.note._replace(due=0)), now)
        else:
            entries.append((record.key, record.value))
            note = record.note._replace(due=0)
            numbers = item_notes.moved(txn, queue, record.key, note, numbers, 0)
            fifo.set_numbers(txn, queue, before, item_notes.put(txn, queue, record.key, note, numbers))
    fifo.put_back(txn, queue, entries)


def _wait_again(
    txn: Txn, queue: Tables, before: bytes, numbers: Numbers, records: Sequence[Record], now: int
) -> list[bytes | None]:
    """Let items wait that were held, in their places or, where all readers have passed those, at the tail.

    Return the key that each has now, None for a damaged one, which is a dead letter. ``numbers``: those that the record
    of the queue, which is ``before``, is to have with it.
    """
    passed = reader_records.last_passed(txn, queue) if _format.flags(before) & READERS else None
    here = [record for record in records if passed is None or record.key > passed]
    for record in here:
        numbers = item_notes.put(txn, queue, record.key, record.note, numbers)
    fifo.set_numbers(txn, queue, before, numbers)
    fifo.put_back(txn, queue, [(record.key, record.value) for record in here])
    keys: list[bytes | None] = []
    for record in records:
        is_behind = passed is not None and record.key <= passed
        keys.append(_push_anew(txn, queue, record, now) if is_behind else record.key)
    return keys


def _push_anew(txn: Txn, queue: Tables, record: Record, now: int) -> bytes | None:
    """Let an item that was taken out wait at the tail, with all that is known of it; return its new key.

    None: it is damaged, and a dead letter now.
    """
    before = queue_record(txn, queue)
    if queue.sealed and not _format.is_intact(record.key, record.value, queue.salt):
        numbers = dead_letters.bury(txn, queue, record, Return(now, DAMAGED), _format.numbers(before))
        fifo.set_numbers(txn, queue, before, numbers)
        return None
    (body,) = _format.bodies([record.value], sealed=queue.sealed)
    size = _format.Trailer.of(body)[1]
    numbers = item_notes.settle(txn, queue, record.key, record.note, _format.numbers(before))
    fifo.set_numbers(txn, queue, before, numbers)
    (number,) = pushing.push(txn, queue, [body[:size]], body[size:], None, None)  # restore() trims at its end
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    key, note = pack(number), record.note
    if note.unique:
        numbers = item_notes.hold(txn, queue, note.unique, key, numbers)
    if note.expires:
        numbers = item_notes.expire(txn, queue, note.expires, key, numbers)
    fifo.set_numbers(txn, queue, before, item_notes.put(txn, queue, key, note, numbers))
    return key


def give_back(txn: Txn, queue: Tables, released: Sequence[Record], how: Return) -> Nacked:
    """Make items released by a lease wait again, delay them, or make them dead letters; return what became of each."""
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    now = now._replace(leased=now.leased - len(released))
    back = []
    returned: list[bytes] = []
    dead: list[bytes] = []
    removed: list[bytes] = []
    for record in released:
        key = record.key
        if how.is_undone:
            note = record.note._replace(attempts=max(0, record.note.attempts - 1))
        else:
            note = record.note._replace(time=how.now, reason=how.reason, trace=how.trace)
        if record.note.reason == DAMAGED:
            now = dead_letters.bury(txn, queue, record, how._replace(reason=DAMAGED), now)
            dead.append(key)
        elif note.unique and item_notes.held_by(txn, queue, note.unique) != key:  # another has replaced it
            reader_records.skip(txn, queue, [key])
            now = item_notes.settle(txn, queue, key, note, now)
            removed.append(key)
        elif note.expires and note.expires <= how.now:
            now = now._replace(expired=now.expired + 1)
            if how.bury_expired:
                now = dead_letters.bury(txn, queue, record, Return(how.now, expiry.EXPIRED), now)
                dead.append(key)
            else:
                reader_records.skip(txn, queue, [key])
                now = item_notes.settle(txn, queue, key, note, now)
                removed.append(key)
        elif how.max_attempts is not None and note.attempts >= how.max_attempts:
            now = dead_letters.bury(txn, queue, record, how, now)
            dead.append(key)
        elif how.due:
            note = note._replace(due=how.due)
            name = away(queue.name, "delayed", how.due, key)
            weighed_records.put_away(txn, queue, name, note.pack() + record.value)
            now = item_notes.moved(txn, queue, key, note, now, how.due)
            now = now._replace(delayed=now.delayed + 1)
            returned.append(key)
        else:
            back.append(record._replace(note=note))
    waiting = _wait_again(txn, queue, before, now, back, how.now)
    dropped = _dropped(txn, queue, waiting, how)
    for record, there in zip(back, waiting, strict=True):
        (dead if there is None else removed if there in dropped else returned).append(record.key)
    return Nacked(*(sorted(map(_format.seq_of, keys)) for keys in (returned, dead, removed)))


def _dropped(txn: Txn, queue: Tables, keys: Sequence[bytes | None], how: Return) -> Collection[bytes | None]:
    """Remove items beyond the limits of retention, since these wait now; return which of these went."""
    if not keys or not _format.flags(queue_record(txn, queue)) & RETAINED:
        return ()
    retention.trim(txn, queue, how.now, bury=how.bury_expired)
    return {key for key in keys if key is not None and txn.get(key, db=queue.items) is None}


def put_back(txn: Txn, queue: Tables, entries: Sequence[Entry], notes: Sequence[Note], now: int, bury: bool) -> int:
    """Undo a removal: items wait again, with their notes; return their number.

    Items that are no longer retained leave. ``bury``: items that have expired by then become dead letters.
    """
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    records = []
    for (key, value), note in zip(entries, notes, strict=True):
        kept, numbers = item_notes.remembered(txn, queue, key, note, numbers)
        records.append(Record(key, kept, value))
    _wait_again(txn, queue, before, numbers, records, now)
    reader_records.unskip(txn, queue, [key for key, _ in entries])
    if _format.flags(before) & RETAINED:
        retention.trim(txn, queue, now, bury=bury)
    return len(entries)


def requeue(txn: Txn, queue: Tables, seqs: Collection[int] | None, now: int) -> int:
    """Requeue dead letters, all or those of ``seqs``, as if never tried; return their number.

    A dead letter whose unique key another item has by now stays dead.
    """
    records = dead_letters.exhume(txn, queue, seqs)
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    back = []
    for record in records:
        unique = record.note.unique
        if unique and item_notes.held_by(txn, queue, unique) is not None:
            name = away(queue.name, "dead", record.key)
            weighed_records.put_away(txn, queue, name, record.note.pack() + record.value)
            numbers = numbers._replace(dead=numbers.dead + 1)
            continue
        if unique:
            numbers = item_notes.hold(txn, queue, unique, record.key, numbers)
        back.append(record._replace(note=Note(unique=unique)))
    _wait_again(txn, queue, before, numbers, back, now)
    if back and _format.flags(before) & RETAINED:
        retention.trim(txn, queue, now)
    return len(back)
