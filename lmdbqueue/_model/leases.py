"""What is not waiting in the queue: leased, delayed, dead. How it goes there, and comes back to its place.

Owns: the moves of items between these. Law: an item is in one place at a time: among the items, under a
lease, delayed, or dead, and it moves between them in one transaction; what a lease holds is changed by who
has its token, or by who gives it back since its owner is dead or its time is over, and by nobody else.
Must not know: clocks, locks of owners (it is told the time, and asks whether an owner is dead), pickling.

Times are in ns: deadlines on the system-wide monotonic clock, which a step of the wall clock does not move,
and which a reboot begins anew, but then every owner is dead; due times on the wall clock, since they outlive a
reboot. A token is given once. A lease that is not there any more is gone for ever: an ack that comes late
finds nothing, whoever has the items now.

Coming back. There is no timer: who looks for work finds in its own snapshot what must come back before
(``overdue``), and gives it back in a transaction of its own (``restore``). Killed before that commit it did
nothing, and the next one finds the same; nothing is lost or doubled, since giving back is a move.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

from lmdbqueue import _format
from lmdbqueue._format import Counts, Note, away, pack, unpack
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import fifo, item_notes, lease_records, reader_records, readers, weighed_records
from lmdbqueue._model.lease_records import DAMAGED, NEVER, Lease, Record
from lmdbqueue._values import Entry, Moment

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AT_ONCE: Final = 10_000  # items that come back in one transaction, about
_FIRST: Final = Note(attempts=1).pack()  # of an item that is leased for the first time
_FIRST_PLACE: Final = _format.place(0)


class Return(NamedTuple):
    """How items come back from a lease."""

    now: int  # ns since 1970
    reason: str = ""
    due: int = 0  # ns since 1970, 0 for at once
    max_attempts: int | None = None  # with so many an item is dead


class Overdue(NamedTuple):
    """There is something that has to come back first: of these owners, or of leases and delays whose time is over."""

    owners: tuple[int, ...]


class Terms(NamedTuple):
    """Of a lease that is to be given."""

    owner: int
    deadline: int  # ns, ``NEVER`` for as long as the owner lives
    now: int  # ns since 1970
    unreadable: dict[bytes, str]  # places of items that go to the dead instead, and why


class Apart(NamedTuple):
    """How items are pushed that do not just wait."""

    now: Moment
    due: int  # ns since 1970, 0 for no delay
    digests: Sequence[bytes]  # of keys, b"" for none
    maxsize: int
    max_bytes: int | None


# --- going


def lease(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> tuple[int, list[int], list[int]] | None:
    """Lease the first items, if they are just these entries; None if they are not.

    Returns the token (0 if all were unreadable), the numbers of what was leased, and the attempts at each.
    """
    places = [place for place, _ in entries]
    if not fifo.take(txn, queue, places):
        return None
    notes, counts = item_notes.lift(txn, queue, places, item_notes.counts(txn, queue))
    seqs = []
    attempts = []
    records = []
    prefix = away(queue.name, "leased")
    for (place, value), note in zip(entries, notes, strict=True):
        key = prefix + place[-8:]
        seq = unpack(place[-8:])
        header = _FIRST
        times = 1
        if note is not item_notes.NONE or len(place) > len(_FIRST_PLACE) or terms.unreadable:  # else it takes a third
            taken = note._replace(attempts=note.attempts + 1, due=_format.due(place))
            if place in terms.unreadable:
                how = Return(terms.now, terms.unreadable[place])
                counts = _bury(txn, queue, Record(seq, taken, value), how, counts)
                continue
            header = taken.pack()
            times = taken.attempts
        seqs.append(seq)
        attempts.append(times)
        records.append((key, header + value))
    token = 0
    if seqs:
        token = counts.tokens + 1
        weighed_records.add_away(txn, queue, records)
        lease_records.put_lease(txn, queue, token, Lease(terms.owner, terms.deadline, seqs))
        counts = counts._replace(tokens=token, leased=counts.leased + len(seqs))
    item_notes.set_counts(txn, queue, counts)
    return token, seqs, attempts


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], apart: Apart) -> list[int]:
    """Append payloads, or let them wait for their time; return their numbers.

    What has a key that an item has already is not stored, and that item's number is given. Raises ``Full``
    as ``_model.fifo.push``.
    """
    held = {digest: item_notes.held_by(txn, queue, digest) for digest in apart.digests if digest}
    numbers: list[int | None] = []
    new: list[tuple[bytes, bytes]] = []  # payloads and digests
    for payload, digest in zip(payloads, apart.digests, strict=True):
        number = held.get(digest)
        if number is None:
            number = -1 - len(new)  # until it gets one
            new.append((payload, digest))
            if digest:
                held[digest] = number
        numbers.append(number)
    given = _push_new(txn, queue, new, apart) if new else range(0)
    return [given[-1 - number] if number < 0 else number for number in numbers if number is not None]


def _push_new(txn: Txn, queue: Tables, new: Sequence[tuple[bytes, bytes]], apart: Apart) -> range:
    payloads = [payload for payload, _ in new]
    counts = item_notes.counts(txn, queue)
    if apart.due:
        fifo.refuse_full(txn, queue, payloads, apart.maxsize, apart.max_bytes)
        given = fifo.skip(txn, queue, len(new))
        counts = counts._replace(delayed=counts.delayed + len(new))
    else:
        given = fifo.push(txn, queue, payloads, apart.maxsize, apart.max_bytes)
    for seq, (payload, digest) in zip(given, new, strict=True):
        note = Note(due=apart.due, unique=digest)
        if apart.due:
            value = _format.seal(pack(seq), payload) if queue.sealed else payload
            weighed_records.put_away(txn, queue, away(queue.name, "delayed", apart.due, seq), note.pack() + value)
        else:
            counts = item_notes.put(txn, queue, seq, note, counts)
        if digest:
            counts = item_notes.hold(txn, queue, digest, seq, counts)
    item_notes.set_counts(txn, queue, counts)
    if not apart.due:
        readers.appended(txn, queue, given.start, apart.now)  # once all is noted of what may go at once
    return given


# --- what the holder of a lease does


def ack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None) -> list[int] | None:
    """Remove what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    released = lease_records.release(txn, queue, token, seqs)
    if released:
        reader_records.skip(txn, queue, map(pack, released))
        counts = item_notes.counts(txn, queue)
        prefix = away(queue.name, "leased")
        keys = [prefix + pack(seq) for seq in released]
        if counts.unique:
            for key in keys:
                counts = item_notes.free(txn, queue, lease_records.take(txn, queue, key).note, counts)
        else:
            for key in keys:
                weighed_records.pop_away(txn, queue, key)
        item_notes.set_counts(txn, queue, counts._replace(leased=counts.leased - len(released)))
    return released


def nack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None, how: Return) -> list[int] | None:
    """Give back what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    released = lease_records.release(txn, queue, token, seqs)
    if released:
        _give_back(txn, queue, released, how)
    return released


def give_up(txn: Txn, queue: Tables, owner: int, how: Return) -> int:
    """Give back all that an owner holds; return how much it was."""
    return _restore_leases(txn, queue, away(queue.name, "owner", owner), how, NEVER)


def extend(txn: Txn, queue: Tables, token: int, deadline: int) -> bool | None:
    """Give a lease another deadline; None if it is gone."""
    found = lease_records.lease(txn, queue, token)
    if found is None:
        return None
    txn.delete(away(queue.name, "expiry", found.deadline, token), db=queue.away)
    lease_records.put_lease(txn, queue, token, found._replace(deadline=deadline))
    return True


# --- coming back


def look(
    txn: Txn,
    queue: Tables,
    is_dead: Callable[[int], bool],
    now: Moment,
    fn: Callable[[Txn, Tables, *Ts], R],
    *args: *Ts,
) -> R | Overdue:
    """Return ``fn(txn, queue, *args)``, or ``Overdue`` if something has to come back before."""
    if txn.get(queue.counts, db=queue.meta) is not None and (found := overdue(txn, queue, is_dead, now)) is not None:
        return found
    return fn(txn, queue, *args)


def overdue(txn: Txn, queue: Tables, is_dead: Callable[[int], bool], now: Moment) -> Overdue | None:
    """Tell what has to come back."""
    expiry, due, owners = next_time(txn, queue)
    dead = tuple(filter(is_dead, owners))
    return Overdue(dead) if dead or expiry <= now.monotonic or due <= now.wall else None


def next_time(txn: Txn, queue: Tables) -> tuple[int, int, list[int]]:
    """Return when the next lease expires, when the next item comes due, and the owners of leases."""
    counts = item_notes.counts(txn, queue)
    if not counts.leased and not counts.delayed:
        return NEVER, NEVER, []
    expiry, due = (lease_records.first_time(txn, queue, kind) for kind in ("expiry", "delayed"))
    return expiry, due, list(lease_records.owners(txn, queue))


def restore(txn: Txn, queue: Tables, owners: Iterable[int], now: Moment, max_attempts: int | None) -> int:
    """Give back what these owners, who are dead, hold, and everything whose time is over; return how much it was.

    About ``_AT_ONCE`` items at a time: it may have to be done again.
    """
    changed = 0
    for owner in owners:
        how = Return(now.wall, "its consumer died", max_attempts=max_attempts)
        changed += _restore_leases(txn, queue, away(queue.name, "owner", owner), how, _AT_ONCE - changed)
    how = Return(now.wall, "its lease expired", max_attempts=max_attempts)
    while lease_records.first_time(txn, queue, "expiry") <= now.monotonic and changed < _AT_ONCE:
        changed += _restore_leases(txn, queue, away(queue.name, "expiry"), how, 1)
    return changed + _restore_delayed(txn, queue, now, _AT_ONCE - changed)


def _restore_leases(txn: Txn, queue: Tables, prefix: bytes, how: Return, wanted: int) -> int:
    """Give back leases that an index has under ``prefix``, until ``wanted`` items came back; return how many did."""
    changed = 0
    while changed < wanted and (key := next(lease_records.keys(txn, queue, prefix), None)) is not None:
        token = unpack(key[-8:])
        released = lease_records.release(txn, queue, token, None)
        txn.delete(key, db=queue.away)
        if released:
            _give_back(txn, queue, released, how)
        changed += max(1, len(released or ()))
    return changed


def _restore_delayed(txn: Txn, queue: Tables, now: Moment, wanted: int) -> int:
    due = [
        key
        for key in islice(lease_records.keys(txn, queue, away(queue.name, "delayed")), max(0, wanted))
        if unpack(key[-16:-8]) <= now.wall
    ]
    if not due:
        return 0
    counts = item_notes.counts(txn, queue)
    records = [lease_records.take(txn, queue, key) for key in due]
    item_notes.set_counts(txn, queue, counts._replace(delayed=counts.delayed - len(due)))
    if txn.get(queue.readers, db=queue.meta) is not None:
        _append_due(txn, queue, records, now)
        return len(due)
    counts = item_notes.counts(txn, queue)
    entries = []
    for record in records:
        if record.note.reason == DAMAGED:
            counts = _bury(txn, queue, record, Return(now.wall, DAMAGED), counts)
            continue
        entries.append((_format.place(record.seq, record.note.due), record.value))
        counts = item_notes.put(txn, queue, record.seq, record.note, counts)
    fifo.put_back(txn, queue, entries)
    item_notes.set_counts(txn, queue, counts)
    return len(due)


def _append_due(txn: Txn, queue: Tables, records: Iterable[Record], now: Moment) -> None:
    """Let items whose time has come wait with new numbers, where every reader finds them."""
    first = fifo.bounds(txn, queue)[1]
    counts = item_notes.counts(txn, queue)
    for record in records:
        payload = weighed_records.opened(queue, pack(record.seq), record.value)
        if payload is None or record.note.reason == DAMAGED:
            counts = _bury(txn, queue, record, Return(now.wall, DAMAGED), counts)
            continue
        (seq,) = fifo.push(txn, queue, [payload], 0, None)
        counts = item_notes.put(txn, queue, seq, record.note._replace(due=0), counts)
        if record.note.unique:
            counts = item_notes.hold(txn, queue, record.note.unique, seq, counts)
    item_notes.set_counts(txn, queue, counts)
    readers.appended(txn, queue, first, now)


def _give_back(txn: Txn, queue: Tables, seqs: Sequence[int], how: Return) -> None:
    """Let items that a lease held wait again, or be delayed, or dead."""
    counts = item_notes.counts(txn, queue)
    counts = counts._replace(leased=counts.leased - len(seqs))
    entries = []
    for seq in seqs:
        record = lease_records.take(txn, queue, away(queue.name, "leased", seq))
        note = record.note._replace(time=how.now, reason=how.reason)
        if record.note.reason == DAMAGED or (how.max_attempts is not None and note.attempts >= how.max_attempts):
            reason = how.reason if record.note.reason != DAMAGED else DAMAGED
            counts = _bury(txn, queue, record, how._replace(reason=reason), counts)
        elif how.due:
            note = note._replace(due=how.due)
            weighed_records.put_away(
                txn, queue, away(queue.name, "delayed", how.due, record.seq), note.pack() + record.value
            )
            counts = counts._replace(delayed=counts.delayed + 1)
        else:
            entries.append((_format.place(record.seq, note.due), record.value))
            counts = item_notes.put(txn, queue, record.seq, note, counts)
    fifo.put_back(txn, queue, entries)
    item_notes.set_counts(txn, queue, counts)


# --- the dead


def _bury(txn: Txn, queue: Tables, record: Record, how: Return, counts: Counts) -> Counts:
    """Put an item to the dead; its key is free then."""
    reader_records.skip(txn, queue, [pack(record.seq)])
    counts = item_notes.free(txn, queue, record.note, counts)
    note = record.note._replace(time=how.now, reason=how.reason, unique=b"")
    weighed_records.put_away(txn, queue, away(queue.name, "dead", record.seq), note.pack() + record.value)
    return counts._replace(dead=counts.dead + 1)


def dead(txn: Txn, queue: Tables, seq: int, max_bytes: int) -> list[Record]:
    """Return the dead from number ``seq`` on, at least one if there is one, up to about ``max_bytes`` of them."""
    found = []
    for key, value in lease_records.entries(txn, queue, away(queue.name, "dead"), pack(seq)):
        found.append(lease_records.record(queue, key, value))
        max_bytes -= len(value)
        if max_bytes <= 0:
            break
    return found


def requeue(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> int:
    """Let the dead, all or those of ``seqs``, wait again in their places, as if never tried; return how many did."""
    records = _exhume(txn, queue, seqs)
    entries = [(_format.place(record.seq, record.note.due), record.value) for record in records]
    fifo.put_back(txn, queue, entries)
    return len(records)


def bury_for_good(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> int:
    """Remove the dead, all or those of ``seqs``; return how many there were."""
    return len(_exhume(txn, queue, seqs))


def _exhume(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> list[Record]:
    prefix = away(queue.name, "dead")
    keys = (
        list(lease_records.keys(txn, queue, prefix)) if seqs is None else [prefix + pack(seq) for seq in sorted(seqs)]
    )
    records = [lease_records.take(txn, queue, key) for key in keys if txn.get(key, db=queue.away) is not None]
    if records:
        counts = item_notes.counts(txn, queue)
        item_notes.set_counts(txn, queue, counts._replace(dead=counts.dead - len(records)))
    return records


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all that waits, is leased, delayed or dead; return how many items went."""
    counts = item_notes.counts(txn, queue)
    reader_records.skip(txn, queue, (key[-8:] for key in lease_records.keys(txn, queue, away(queue.name, "leased"))))
    removed = fifo.clear(txn, queue)
    if counts != Counts():
        for kind in ("lease", "owner", "expiry", "leased", "delayed", "dead", "note", "unique"):
            for key in list(lease_records.keys(txn, queue, away(queue.name, kind))):
                weighed_records.pop_away(txn, queue, key)
        item_notes.set_counts(txn, queue, Counts(tokens=counts.tokens))
    return removed + counts.leased + counts.delayed + counts.dead
