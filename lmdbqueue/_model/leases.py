"""Items held back: leased, delayed, dead. How an item goes there, and comes back to its place.

Owns: the moves of items between these. Law: an item is in one place at a time: among the items, under a
lease, delayed, or dead, and it moves between them in one transaction; what a lease holds is changed by who
has its token, or by who gives it back since its owner is dead or its time is over, and by nobody else.
Must not know: clocks, locks of owners (it is told the time, and asks whether an owner is dead), pickling.

Times are in ns: deadlines on the system-wide monotonic clock, which a step of the wall clock does not move,
and which a reboot begins anew, but then every owner is dead; all others on the wall clock, since they outlive a
reboot. A token is given once. A lease that is not there any more is gone for ever: an ack that comes late
finds nothing, whoever has the items now.

Coming back. There is no timer: a consumer that looks for work finds in its own snapshot what must come back, or go,
before (``overdue``), and sees to it in a transaction of its own (``restore``). Killed before that commit it did
nothing, and the next one finds the same; nothing is lost or doubled, since giving back is a move.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar, TypeVarTuple
from zlib import crc32

from lmdbqueue import _format
from lmdbqueue._format import (
    BASE,
    CLASS,
    FLAGS_AT,
    HEAD_AT,
    LEASED_AT,
    NOT_PLAIN,
    NOTED,
    NOTHING,
    READERS,
    RESIDUE,
    RETAINED,
    SEAL_SIZE,
    TAIL_AT,
    TOKENS_AT,
    Note,
    Numbers,
    away,
    pack,
    unpack,
    unpack_from,
)
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, item_notes, lease_records, pushing, reader_records, retention, weighed_records
from lmdbqueue._model.lease_records import DAMAGED, LEASE, NEVER, Record
from lmdbqueue._model.pushing import Limits
from lmdbqueue._model.weighed_records import queue_record
from lmdbqueue._values import Entry, Moment

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AT_ONCE: Final = 10_000  # items that come back in one transaction, about
_LOOKED_AT: Final = 16  # owners that a look asks after, in turn with the others
_FIRST: Final = Note(attempts=1).pack()  # of an item that is leased for the first time


class Watch(Protocol):
    """What knows which owners of leases are dead."""

    after: int  # the owner that it was asked after last

    def dead_among(self, owners: Sequence[int]) -> tuple[int, ...]:
        """Return which of these are dead."""


class Return(NamedTuple):
    """How items come back from a lease."""

    now: int  # ns since 1970
    reason: str = ""
    due: int = 0  # ns since 1970, 0 for at once
    max_attempts: int | None = None  # with so many an item is dead
    trace: str = ""  # the traceback of what happened
    bury_expired: bool = False  # what has expired is dead, not gone


class Overdue(NamedTuple):
    """There is something to be done first: for these owners, or since the time of something is over."""

    owners: tuple[int, ...]


class Terms(NamedTuple):
    """Of a lease that is to be given."""

    owner: int
    deadline: int  # ns, ``NEVER`` for as long as the owner lives
    now: int  # ns since 1970
    unreadable: dict[bytes, str]  # keys of items that go to the dead instead, and why


class Apart(NamedTuple):
    """How items are pushed that do not just wait."""

    now: int  # ns since 1970
    trailer: bytes
    due: int = 0  # ns since 1970, 0 for no delay
    unique: Sequence[bytes] = ()  # digests of keys, b"" for none; empty: no item has one
    replace: bool = False  # an item with a key takes the place of the one that has it
    expires: int = 0  # ns since 1970, 0 for never
    number: int = CLASS
    limits: Limits | None = None
    bury_expired: bool = False  # what has a key of these, and has expired, is dead, not gone


class Pushed(NamedTuple):
    """What became of an item that was pushed."""

    key: int  # its key, or that of the item that has its unique key
    is_stored: bool


# --- going


class Given(NamedTuple):
    """A lease as it was given."""

    token: int  # 0 if all items were unreadable
    keys: list[bytes]  # of what was leased
    attempts: list[int]
    following: Entry | None = None  # the first item now, if all before it was just taken


def lease_if_plain(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Lease the first item, if it is this one, and nothing else could have to come before it. Else return None.

    Nothing may be noted of the queue. It is what a lone consumer does most of the time, and so kept short: the records
    are those that ``lease`` writes.
    """
    before = queue_record(txn, queue)
    ((key, value),) = entries
    if before[HEAD_AT:TAIL_AT] != key or before[FLAGS_AT] or before[NOT_PLAIN] != NOTHING or not queue.weighed:
        return None
    generation = queue.generation
    if generation.content.asks or generation.content.remembers:
        return None
    with txn.cursor(queue.items) as cursor:
        if not cursor.first() or cursor.key() != key:
            return None
        cursor.delete()
        following = cursor.item() if cursor.key() else None
    head, token = unpack_from(before, HEAD_AT)[0], unpack_from(before, TOKENS_AT)[0] + 1
    number = pack(token)
    ranges = key + pack(head + 1)
    for name, data in (
        (queue.leased + key, number + _FIRST + value),
        (queue.lease + number, LEASE.pack(1, terms.owner, terms.deadline, 1) + ranges),
    ):
        checksum = crc32(data, crc32(name))
        generation.weight += checksum * checksum
        txn.put(name, data + checksum.to_bytes(SEAL_SIZE, "little"), db=queue.away)
    indexes = [queue.owner + pack(terms.owner) + number]
    if terms.deadline != NEVER:
        indexes.append(queue.expiry + pack(terms.deadline) + number)
    for index in indexes:
        checksum = crc32(index)
        generation.weight += checksum * checksum
        txn.put(index, b"", db=queue.away)
    now = before[:HEAD_AT] + pack(head + 1) + before[TAIL_AT:LEASED_AT] + pack(1) + before[LEASED_AT + 8 : TOKENS_AT]
    weighed_records.replace_queue(txn, queue, before, now + number + before[TOKENS_AT + 8 :])
    return _new(Given, (token, [key], _ONCE, following))


_ONCE: Final = [1]
_new = tuple.__new__


def lease_first(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Do as ``lease``, for one entry that can be read."""
    return lease_if_plain(txn, queue, entries, terms) or lease(txn, queue, entries, terms)


def lease(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Lease the first items, if they are just these entries; None if they are not."""
    keys = [key for key, _ in entries]
    if not fifo.take(txn, queue, keys):
        return None
    before = queue_record(txn, queue)
    notes, now = item_notes.lift(txn, queue, keys, _format.numbers(before))
    token = now.tokens + 1
    leased = []
    attempts = []
    records = []
    header = pack(token)
    for (key, value), note in zip(entries, notes, strict=True):
        if key in terms.unreadable:
            how = Return(terms.now, terms.unreadable[key])
            now = _bury(txn, queue, Record(key, note._replace(attempts=note.attempts + 1), value), how, now)
            continue
        leased.append(key)
        attempts.append(note.attempts + 1)
        taken = _FIRST if note is item_notes.NONE else note._replace(attempts=note.attempts + 1).pack()
        records.append((queue.leased + key, header + taken + value))
    if leased:
        weighed_records.add_away(txn, queue, records)
        lease_records.add_lease(txn, queue, token, terms.owner, terms.deadline, leased)
        now = now._replace(tokens=token, leased=now.leased + len(leased))
    fifo.set_numbers(txn, queue, before, now)
    return Given(token if leased else 0, leased, attempts)


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], apart: Apart) -> list[Pushed]:
    """Append payloads that have a delay, unique keys, an expiry or a priority; return what became of each.

    Raises ``Full`` as ``_model.pushing.push``, ``OptionError`` for a priority beside readers or retention.
    """
    if apart.number != CLASS:
        pushing.refuse_priority(txn, queue)
    digests = apart.unique or [b""] * len(payloads)
    new: list[tuple[bytes, bytes]] = []  # payloads and digests
    places: dict[bytes, int] = {}  # in ``new``, of those with a digest
    found: list[int | bytes] = []  # for each payload its place in ``new``, or the key of the item that has its digest
    repeated: set[int] = set()
    for number, (payload, digest) in enumerate(zip(payloads, digests, strict=True)):
        holder = item_notes.held_by(txn, queue, digest) if digest and not apart.replace else None
        if holder is not None and not _is_over(txn, queue, digest, apart.now):
            found.append(holder)
            continue
        place = places.setdefault(digest, len(new)) if digest else len(new)
        found.append(place)
        if place == len(new):
            new.append((payload, digest))
        elif apart.replace:  # the newest of a call wins, too
            new[place] = payload, digest
        else:
            repeated.add(number)
    leaving = [each for each in (_here(txn, queue, digest) for digest in places) if each is not None]
    if apart.limits is not None and new:
        pushing.refuse_full(txn, queue, [payload for payload, _ in new], apart.limits, len(leaving))
    for key, due in leaving:
        if apart.replace:
            _drop(txn, queue, key, due)
        else:
            _leave(txn, queue, _taken_out(txn, queue, key, due), apart.now, bury=apart.bury_expired)
    given = _push_new(txn, queue, new, apart) if new else range(0)
    return [
        Pushed(unpack(place), is_stored=False)
        if isinstance(place, bytes)
        else Pushed(given[place], is_stored=number not in repeated)
        for number, place in enumerate(found)
    ]


def _is_over(txn: Txn, queue: Tables, digest: bytes, now: int) -> bool:
    """Return whether the item with a unique key has expired, and is only not removed yet."""
    found = _here(txn, queue, digest)
    if found is None:
        return False
    key, due = found
    if due:
        name = away(queue.name, "delayed", due, key)
        expires = lease_records.record(queue, name, txn.get(name, db=queue.away) or b"").note.expires
    else:
        expires = item_notes.get(txn, queue, key).expires
    return 0 < expires <= now


def _here(txn: Txn, queue: Tables, digest: bytes) -> tuple[bytes, int] | None:
    """Return the item with a unique key, and when it is due, if it waits or is delayed; a leased one is elsewhere."""
    key, due = item_notes.where(txn, queue, digest)
    if key is None:
        return None
    is_here = (
        txn.get(away(queue.name, "delayed", due, key), db=queue.away) if due else txn.get(key, db=queue.items)
    ) is not None
    return (key, due) if is_here else None


def _drop(txn: Txn, queue: Tables, key: bytes, due: int) -> bool:
    """Remove an item that waits, or is delayed until ``due``, for good; return whether it was there."""
    if fifo.take_out(txn, queue, [key]):
        fifo.forget(txn, queue, [key])
        return True
    name = away(queue.name, "delayed", due, key)
    if not due or txn.get(name, db=queue.away) is None:
        return False
    record = lease_records.take(txn, queue, name)
    before = queue_record(txn, queue)
    now = item_notes.settle(txn, queue, key, record.note, _format.numbers(before))
    fifo.set_numbers(txn, queue, before, now._replace(delayed=now.delayed - 1))
    return True


def _push_new(txn: Txn, queue: Tables, new: Sequence[tuple[bytes, bytes]], apart: Apart) -> range:
    payloads = [payload for payload, _ in new]
    if apart.due:
        given = pushing.skip(txn, queue, len(new), apart.number)
    else:
        given = pushing.push(txn, queue, payloads, apart.trailer, None, None, apart.number)
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    if apart.due:
        now = now._replace(delayed=now.delayed + len(new))
    for key, (payload, digest) in zip(map(pack, given), new, strict=True):
        note = Note(due=apart.due, expires=apart.expires, unique=digest)
        if apart.due:
            body = payload + apart.trailer
            value = _format.seal(key, body, queue.salt) if queue.sealed else body
            weighed_records.put_away(txn, queue, away(queue.name, "delayed", apart.due, key), note.pack() + value)
        else:
            now = item_notes.put(txn, queue, key, note, now)
        if digest:
            now = item_notes.hold(txn, queue, digest, key, now, apart.due)
        if apart.expires:
            now = item_notes.expire(txn, queue, apart.expires, key, now, apart.due)
    after = fifo.set_numbers(txn, queue, before, now)
    if not apart.due and _format.flags(after) & RETAINED:
        retention.trim(txn, queue, apart.now)  # once all is noted of what may go at once
    return given


# --- by key


def find(txn: Txn, queue: Tables, digest: bytes) -> int | None:
    """Return the number of the item that has a unique key."""
    key = item_notes.held_by(txn, queue, digest)
    return None if key is None else _format.seq_of(key)


def cancel(txn: Txn, queue: Tables, digest: bytes) -> bool:
    """Remove the item with a unique key, if it waits or is delayed; return whether it did."""
    key, due = item_notes.where(txn, queue, digest)
    return key is not None and _drop(txn, queue, key, due)


def delete_items(txn: Txn, queue: Tables, keys: Collection[bytes]) -> int:
    """Remove the items of these keys that wait, wherever they stand, for good; return how many."""
    found = [key for key, _ in fifo.take_out(txn, queue, keys)]
    fifo.forget(txn, queue, found)
    return len(found)


def bury_items(txn: Txn, queue: Tables, keys: Collection[bytes], how: Return) -> int:
    """Put the items of these keys that wait to the dead letters; return how many."""
    found = fifo.take_out(txn, queue, keys)
    before = queue_record(txn, queue)
    notes, now = item_notes.lift(txn, queue, [key for key, _ in found], _format.numbers(before))
    for (key, value), note in zip(found, notes, strict=True):
        now = _bury(txn, queue, Record(key, note, value), how, now)
    fifo.set_numbers(txn, queue, before, now)
    return len(found)


# --- what the holder of a lease does


def ack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None) -> list[int] | None:
    """Remove what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    before = queue_record(txn, queue)
    if seqs is None and queue.weighed and not before[FLAGS_AT] and before[NOTED] == _NOT_NOTED:
        acked = _ack_whole(txn, queue, before, token)
        if acked is not None:
            return acked
    now = _format.numbers(before)
    is_noted = bool(now.keys or now.expiring)
    released = lease_records.release(txn, queue, token, _keys(seqs), read=is_noted)
    if released is None:
        return None
    if not released:
        return []
    keys = [record.key for record in released]
    reader_records.skip(txn, queue, keys)
    if is_noted:
        for record in released:
            now = item_notes.settle(txn, queue, record.key, record.note, now)
    fifo.set_numbers(txn, queue, before, now._replace(leased=now.leased - len(released)))
    return list(map(_format.seq_of, keys))


_NOT_NOTED: Final = bytes(24)


def _ack_whole(txn: Txn, queue: Tables, before: bytes, token: int) -> list[int] | None:
    """Remove all that a lease of one item holds, where nothing is noted of any; None if it is not such a one."""
    number = pack(token)
    name = queue.lease + number
    value = txn.get(name, db=queue.away)
    if value is None or len(value) != _OF_ONE or crc32(value, crc32(name)) != RESIDUE:
        return None
    _, owner, deadline, items = LEASE.unpack_from(value)
    key = value[LEASE.size : LEASE.size + 8]
    held = txn.get(queue.leased + key, db=queue.away)
    if items != 1 or held is None or held[:8] != number:
        return None
    weight = 0
    for each, data in ((name, value), (queue.leased + key, held)):
        checksum = int.from_bytes(data[-SEAL_SIZE:], "little")
        weight += checksum * checksum
        txn.delete(each, db=queue.away)
    indexes = [queue.owner + pack(owner) + number]
    if deadline != NEVER:
        indexes.append(queue.expiry + pack(deadline) + number)
    for index in indexes:
        checksum = crc32(index)
        weight += checksum * checksum
        txn.delete(index, db=queue.away)
    queue.generation.weight -= weight
    (leased,) = unpack_from(before, LEASED_AT)
    now = before[:LEASED_AT] + pack(max(0, leased - 1)) + before[LEASED_AT + 8 :]
    weighed_records.replace_queue(txn, queue, before, now)
    return [unpack_from(key, 0)[0] - BASE]


_OF_ONE: Final = LEASE.size + 16 + SEAL_SIZE  # bytes of the record of a lease of one item


def _keys(seqs: Collection[int] | None) -> list[bytes] | None:
    return None if seqs is None else list(map(_format.key_of, seqs))


def nack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None, how: Return) -> list[int] | None:
    """Give back what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    released = lease_records.release(txn, queue, token, _keys(seqs))
    if released is None:
        return None
    if not released:
        return []
    _give_back(txn, queue, released, how)
    return [_format.seq_of(record.key) for record in released]


def give_up(txn: Txn, queue: Tables, owner: int, how: Return) -> int:
    """Give back all that an owner holds; return how much it was."""
    return _restore_leases(txn, queue, away(queue.name, "owner", owner), how, NEVER)


def extend(txn: Txn, queue: Tables, token: int, deadline: int) -> bool | None:
    """Give a lease another deadline; None if it is gone."""
    found = lease_records.lease(txn, queue, token)
    if found is None:
        return None
    lease_records.set_deadline(txn, queue, token, found, deadline)
    return True


# --- coming back


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
    """Give back what these owners, who are dead, hold, and all whose time has come; remove what has expired.

    Return how many items it was, about ``most`` at a time: it may have to be done again.
    """
    changed = 0
    how = how._replace(reason="its consumer died")
    for owner in owners:
        changed += _restore_leases(txn, queue, away(queue.name, "owner", owner), how, most - changed)
    how = how._replace(reason="its lease expired")
    while lease_records.first_time(txn, queue, "expiry") <= now.monotonic and changed < most:
        changed += _restore_leases(txn, queue, away(queue.name, "expiry"), how, 1)
    changed += _expire(txn, queue, now.wall, most - changed, bury=how.bury_expired)
    changed += _restore_delayed(txn, queue, now.wall, most - changed)
    return changed + retention.trim(txn, queue, now.wall)


def _restore_leases(txn: Txn, queue: Tables, prefix: bytes, how: Return, wanted: int) -> int:
    """Give back leases that an index has under ``prefix``, until ``wanted`` items came back; return how many did."""
    changed = 0
    while changed < wanted and (key := next(lease_records.keys(txn, queue, prefix), None)) is not None:
        released = lease_records.release(txn, queue, unpack(key[-8:]), None)
        weighed_records.delete_index(txn, queue, key)
        if released:
            _give_back(txn, queue, released, how)
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
            fifo.set_numbers(txn, queue, before, _bury(txn, queue, record, Return(now, DAMAGED), numbers))
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
        numbers = _bury(txn, queue, record, Return(now, DAMAGED), _format.numbers(before))
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


def _give_back(txn: Txn, queue: Tables, released: Sequence[Record], how: Return) -> None:
    """Make items that a lease held wait again, or delay them, or put them to the dead."""
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    now = now._replace(leased=now.leased - len(released))
    entries = []
    for record in released:
        key = record.key
        note = record.note._replace(time=how.now, reason=how.reason, trace=how.trace)
        if record.note.reason == DAMAGED:
            now = _bury(txn, queue, record, how._replace(reason=DAMAGED), now)
        elif note.unique and item_notes.held_by(txn, queue, note.unique) != key:  # another has replaced it meanwhile
            now = item_notes.settle(txn, queue, key, note, now)
        elif note.expires and note.expires <= how.now:
            now = now._replace(expired=now.expired + 1)
            if how.bury_expired:
                now = _bury(txn, queue, record, Return(how.now, _EXPIRED), now)
            else:
                now = item_notes.settle(txn, queue, key, note, now)
        elif how.max_attempts is not None and note.attempts >= how.max_attempts:
            now = _bury(txn, queue, record, how, now)
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
        retention.trim(txn, queue, how.now)


def _expire(txn: Txn, queue: Tables, now: int, wanted: int, *, bury: bool) -> int:
    """Remove what has expired, or put it to the dead; what a consumer holds is left to it. Return how many."""
    prefix = away(queue.name, "expires")
    if not fifo.numbers(txn, queue).expiring:
        return 0
    over = []
    for name, value in islice(lease_records.entries(txn, queue, prefix, b""), max(0, wanted)):
        if unpack(name[-16:-8]) > now:
            break
        over.append((name[-8:], name, unpack(value)))
    for key, name, due in over:
        record = _taken_out(txn, queue, key, due)
        if record is None:  # it is leased: its note tells, when it comes back
            before = queue_record(txn, queue)
            numbers = _format.numbers(before)
            weighed_records.delete_index(txn, queue, name)
            fifo.set_numbers(txn, queue, before, numbers._replace(expiring=numbers.expiring - 1))
        else:
            _leave(txn, queue, record, now, bury=bury)
    return len(over)


_EXPIRED: Final = "it expired"


def _leave(txn: Txn, queue: Tables, record: Record | None, now: int, *, bury: bool) -> None:
    """Let an item that has expired, and was taken out, be gone or dead."""
    if record is None:
        return
    before = queue_record(txn, queue)
    numbers = _format.numbers(before)
    numbers = numbers._replace(expired=numbers.expired + 1)
    if bury:
        numbers = _bury(txn, queue, record, Return(now, _EXPIRED), numbers)
    else:
        reader_records.skip(txn, queue, [record.key])
        numbers = item_notes.settle(txn, queue, record.key, record.note, numbers)
    fifo.set_numbers(txn, queue, before, numbers)


def _taken_out(txn: Txn, queue: Tables, key: bytes, due: int) -> Record | None:
    """Take an item out that waits, or is delayed until ``due``, with its note; None if it is neither."""
    found = fifo.take_out(txn, queue, [key])
    before = queue_record(txn, queue)
    now = _format.numbers(before)
    if found:
        (note,), now = item_notes.lift(txn, queue, [key], now)
        fifo.set_numbers(txn, queue, before, now)
        return Record(key, note, found[0][1])
    name = away(queue.name, "delayed", due, key)
    if not due or txn.get(name, db=queue.away) is None:
        return None
    record = lease_records.take(txn, queue, name)
    fifo.set_numbers(txn, queue, before, now._replace(delayed=now.delayed - 1))
    return record


# --- the dead


def _bury(txn: Txn, queue: Tables, record: Record, how: Return, now: Numbers) -> Numbers:
    """Put an item to the dead; its unique key is free then."""
    reader_records.skip(txn, queue, [record.key])
    now = item_notes.settle(txn, queue, record.key, record.note, now)
    note = record.note._replace(due=0, expires=0, time=how.now, reason=how.reason, trace=how.trace)
    weighed_records.put_away(txn, queue, away(queue.name, "dead", record.key), note.pack() + record.value)
    return now._replace(dead=now.dead + 1)


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


def requeue(txn: Txn, queue: Tables, seqs: Collection[int] | None, now: int) -> int:
    """Make the dead, all or those of ``seqs``, wait again in their places, as if never tried; return how many did.

    One whose unique key another item has by now stays dead.
    """
    records = _exhume(txn, queue, seqs)
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


def bury_for_good(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> int:
    """Remove the dead, all or those of ``seqs``; return how many there were."""
    return len(_exhume(txn, queue, seqs))


def _exhume(txn: Txn, queue: Tables, seqs: Collection[int] | None) -> list[Record]:
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


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all that waits, is leased, delayed or dead; return how many items went."""
    before = fifo.numbers(txn, queue)
    leased = [key[-8:] for key in lease_records.keys(txn, queue, away(queue.name, "leased"))]
    reader_records.skip(txn, queue, leased)
    removed = fifo.clear(txn, queue)
    for kind in ("lease", "held", "owner", "expiry", "leased", "delayed", "dead", "note", "unique", "expires"):
        is_index = [kind.encode()] in _format.INDEXES
        for key in list(lease_records.keys(txn, queue, away(queue.name, kind))):
            if is_index:
                weighed_records.delete_index(txn, queue, key)
            else:
                weighed_records.pop_away(txn, queue, key)
    record = queue_record(txn, queue)
    numbers = _format.numbers(record)
    none = dict.fromkeys(("leased", "delayed", "noted", "keys", "expiring", "dead"), 0)
    fifo.set_numbers(txn, queue, record, numbers._replace(**none))
    return removed + before.leased + before.delayed + before.dead
