"""Leases: how items go into one, and how its holder settles them.

Owns: tokens. Law: the items of a lease are changed only with its token, or by returning them because its owner is dead
or its time is over (``returns``). Must not know: clocks, locks of owners, pickling.

A token is used once. A lease that no longer exists is gone for ever: a late ack finds nothing, no matter who has the
items now.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import (
    BASE,
    ENDS,
    FLAGS_AT,
    HEAD_AT,
    LEASED_AT,
    NOT_PLAIN,
    NOTED,
    NOTHING,
    OUT_OF_ORDER,
    RESIDUE,
    SEAL_SIZE,
    TAIL_AT,
    TOKENS_AT,
    Note,
    away,
    pack,
    unpack_from,
)
from lmdbqueue._base.values import Entry, Moment, Nacked, NamedTuple
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn
from lmdbqueue._model import dead_letters, fifo, item_notes, lease_records, reader_records, returns, weighed_records
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.lease_records import LEASE, NEVER, Record
from lmdbqueue._model.weighed_records import queue_record

if TYPE_CHECKING:
    from lmdbqueue._model.returns import Watch

_AMID: Final = 8 * 4096  # bytes of the pages above the leaves, and of other trees, that a lease of one item rewrites
_LONGEST_NOTE: Final = 3 * 4096  # bytes of the pages of a note with a traceback
_OVERHEAD: Final = 50  # bytes of the key of a record, its node and its seal
_FIRST: Final = Note(attempts=1).pack()  # note of an item that is leased for the first time


class Terms(NamedTuple):
    """The terms of a new lease."""

    owner: int
    deadline: int  # ns, ``NEVER`` for as long as the owner lives
    now: int  # ns since 1970
    unreadable: dict[bytes, str]  # keys of items that become dead letters instead, with reasons
    has_looked: bool = False  # a moment ago nothing that is leased or delayed had to return
    claims: dict[int, int] | None = None  # gets the token of the lease, with ``thread``
    thread: int = 0  # that will have it


class Given(NamedTuple):
    """A new lease."""

    token: int  # 0 if all items were unreadable
    keys: list[bytes]  # keys of the leased items
    attempts: list[int]
    following: Entry | None = None  # the item that is first now, if all before it were just taken


def lease_if_plain(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Lease the first item if it is this one, and no other item could have to come before it; else return None.

    Nothing may be recorded about the waiting items. Consumers mostly take this path, so it is kept short; it writes the
    same records as ``lease``.
    """
    before = queue_record(txn, queue)
    ((key, value),) = entries
    if before[HEAD_AT:TAIL_AT] != key or before[FLAGS_AT] or not queue.sealed:
        return None
    if before[NOT_PLAIN] != NOTHING and not (
        terms.has_looked and before[OUT_OF_ORDER] == _IN_ORDER and before[NOTED] == _NOT_NOTED
    ):
        return None
    generation = queue.generation
    content = generation.content
    with txn.cursor(queue.items) as cursor:
        if not cursor.first() or cursor.key() != key:
            return None
        if content.is_running:
            content.leave(value)
        elif content.asks or content.remembers:
            content.remove(queue.name, [key])
        cursor.delete()
        following = cursor.item() if cursor.key() else None
    head, last = unpack_from(before, HEAD_AT)[0], unpack_from(before, TOKENS_AT)[0]
    (leased,) = unpack_from(before, LEASED_AT)
    number = pack(last + 1)
    ranges = key + pack(head + 1)
    for name, data in (
        (queue.leased + key, number + _FIRST + value),
        (queue.lease + number, LEASE.pack(1, terms.owner, terms.deadline, 1) + ranges),
    ):
        value = data + crc32(data, crc32(name)).to_bytes(SEAL_SIZE, "little")
        inner, crc = ENDS.unpack_from(value, len(value) - ENDS.size)  # ``weigh_sealed``, in no frame of its own
        generation.weight += inner * inner + crc * crc
        txn.put(name, value, db=queue.away)
    indexes = [queue.owner + pack(terms.owner) + number]
    if terms.deadline != NEVER:
        indexes.append(queue.expiry + pack(terms.deadline) + number)
    for index in indexes:
        checksum = crc32(index)
        generation.weight += checksum * checksum
        txn.put(index, b"", db=queue.away)
    now = before[:HEAD_AT] + pack(head + 1) + before[TAIL_AT:LEASED_AT] + pack(min(leased + 1, NEVER))
    now += before[LEASED_AT + 8 : TOKENS_AT] + number + before[TOKENS_AT + 8 :]
    weighed_records.replace_queue(txn, queue, before, now)
    if terms.claims is not None:
        terms.claims[last + 1] = terms.thread
    return _new(Given, (last + 1, [key], _ONCE, following))


_ONCE: Final = [1]
_new = tuple.__new__


def lease_from_reserve(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Like ``lease``, for one entry, on a full disk. Raises ``Full``."""
    ((_, value),) = entries
    queue.generation.use_reserve(txn, _AMID + len(value) + _LONGEST_NOTE, 2)
    return lease_first(txn, queue, entries, terms)


def lease_first(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Like ``lease``, for one readable entry."""
    return lease_if_plain(txn, queue, entries, terms) or lease(txn, queue, entries, terms)


def lease(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> Given | None:
    """Lease the first items if they are exactly these entries; else return None."""
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
            now = dead_letters.bury(txn, queue, Record(key, note._replace(attempts=note.attempts + 1), value), how, now)
            continue
        leased.append(key)
        attempts.append(note.attempts + 1)
        taken = _FIRST if note is item_notes.NONE else note._replace(attempts=note.attempts + 1).pack()
        records.append((queue.leased + key, header + taken + value))
    if leased:
        weighed_records.add_away(txn, queue, records)
        lease_records.add_lease(txn, queue, token, terms.owner, terms.deadline, leased)
        now = now._replace(tokens=token, leased=now.leased + len(leased))
        if terms.claims is not None:
            terms.claims[token] = terms.thread
    fifo.set_numbers(txn, queue, before, now)
    return Given(token if leased else 0, leased, attempts)


def lease_each(txn: Txn, queue: Tables, entries: Sequence[Entry], terms: Terms) -> list[Given]:
    """Lease the first items, each with a lease of its own, as far as they are exactly these entries."""
    leases: list[Given] = []
    for entry in entries:
        given = (lease if entry[0] in terms.unreadable else lease_first)(txn, queue, [entry], terms)
        if given is None:
            break
        leases.append(given)
    return leases


def ack_each(txn: Txn, queue: Tables, asked: Sequence[tuple[int, Collection[int] | None]]) -> list[list[int] | None]:
    """Like ``ack``, for several leases."""
    return [ack(txn, queue, token, seqs) for token, seqs in asked]


def ack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None) -> list[int] | None:
    """Remove all items of a lease, or those of ``seqs``; return their numbers, None if the lease is gone."""
    before = queue_record(txn, queue)
    is_whole = seqs is None or len(seqs) == 1
    if is_whole and queue.sealed and not before[FLAGS_AT] and before[NOTED] == _NOT_NOTED:
        acked = _ack_whole(txn, queue, before, token, seqs)
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


class Want(NamedTuple):
    """What is to be leased when another lease ends."""

    items: int  # at most
    size: int  # bytes of them, at most
    terms: Terms
    now: Moment


class Relayed(NamedTuple):
    """What came of that."""

    acked: list[int]
    entries: list[Entry]  # that are leased
    given: Given | None


def relay(
    txn: Txn,
    queue: Tables,
    token: int,
    seqs: Collection[int] | None,
    puts: Sequence[tuple[Ref, bytes, bytes]],
    want: Want,
    watch: Watch,
) -> Relayed | None:
    """Do as ``ack``, put records of states, and lease the first items; None, and nothing done, if the lease is gone.

    None are leased if something has to come back first. ``puts``: each of a queue, with its key and what it holds.
    """
    acked = ack(txn, queue, token, seqs)
    if acked is None:
        return None
    for ref, name, payload in puts:
        weighed_records.put_sealed(txn, queue.generation.table(ref), name, payload)
    if not want.items or returns.overdue(txn, queue, watch, want.now) is not None:
        return Relayed(acked, [], None)
    entries = fifo.first(txn, queue, want.items, want.size if want.items > 1 else None)
    if not entries or len(entries[0][1]) > want.size:
        return Relayed(acked, [], None)
    given = (lease_first if len(entries) == 1 else lease)(txn, queue, entries, want.terms)
    return Relayed(acked, entries, given)


def relay_each(
    txn: Txn, queue: Tables, asked: Sequence[tuple[int, Collection[int] | None]], want: Want, watch: Watch
) -> list[Relayed | None]:
    """Like ``relay``, for several leases; ``want.size`` limits the bytes of all new leases together."""
    relayed = []
    for token, seqs in asked:
        each = relay(txn, queue, token, seqs, (), want, watch)
        if each is not None:
            want = want._replace(size=want.size - sum(len(value) for _, value in each.entries))
        relayed.append(each)
    return relayed


_NOT_NOTED: Final = bytes(24)
_IN_ORDER: Final = bytes(32)


def _ack_whole(txn: Txn, queue: Tables, before: bytes, token: int, seqs: Collection[int] | None) -> list[int] | None:
    """Remove the item of a lease of one, in a queue without notes; None if the lease does not hold exactly that."""
    number = pack(token)
    name = queue.lease + number
    value = txn.get(name, db=queue.away)
    if value is None or len(value) != _OF_ONE or crc32(value, crc32(name)) != RESIDUE:
        return None
    _, owner, deadline, items = LEASE.unpack_from(value)
    key = value[LEASE.size : LEASE.size + 8]
    held = txn.get(queue.leased + key, db=queue.away)
    acked = [unpack_from(key, 0)[0] - BASE]
    if items != 1 or held is None or held[:8] != number or acked[0] not in (seqs or acked):
        return None
    weight = 0
    for each, data in ((name, value), (queue.leased + key, held)):
        inner, crc = ENDS.unpack_from(data, len(data) - ENDS.size)  # ``weigh_sealed``
        weight += inner * inner + crc * crc
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
    return acked


_OF_ONE: Final = LEASE.size + 16 + SEAL_SIZE  # bytes of the record of a lease of one item


def _keys(seqs: Collection[int] | None) -> list[bytes] | None:
    return None if seqs is None else list(map(_format.key_of, seqs))


def nack(txn: Txn, queue: Tables, token: int, seqs: Collection[int] | None, how: Return) -> Nacked | None:
    """Give back all items of a lease, or those of ``seqs``; return what became of each, None if the lease is gone.

    Raises ``Full`` if there is no room for what is noted on them.
    """
    if not how.is_undone and (found := lease_records.lease(txn, queue, token)) is not None:
        n = found.items if seqs is None else min(len(seqs), found.items)
        noted = len(Note(reason=how.reason, trace=how.trace).pack())
        queue.generation.use_reserve(txn, 2 * n * (noted + _OVERHEAD), 3)
    released = lease_records.release(txn, queue, token, _keys(seqs))
    if released is None:
        return None
    return returns.give_back(txn, queue, released, how) if released else Nacked([], [], [])


def forsake(
    txn: Txn, queue: Tables, token: int, owner: int, claims: dict[int, int], thread: int, how: Return
) -> Nacked | None:
    """Give back the items of a lease that a thread has made and nobody has; None if there is no such lease.

    If that was not committed, another thread may have made a lease with the same token since, or another owner.
    """
    found = lease_records.lease(txn, queue, token)
    if claims.get(token) != thread or found is None or found.owner != owner:
        return None
    return nack(txn, queue, token, None, how)


def give_up(txn: Txn, queue: Tables, owner: int, how: Return) -> int:
    """Give back all items that an owner holds; return their number."""
    return returns.give_back_leases(txn, queue, away(queue.name, "owner", owner), how, NEVER)


def extend(txn: Txn, queue: Tables, token: int, deadline: int) -> bool | None:
    """Give a lease another deadline; None if it is gone."""
    found = lease_records.lease(txn, queue, token)
    if found is None:
        return None
    lease_records.set_deadline(txn, queue, token, found, deadline)
    return True


def extend_each(txn: Txn, queue: Tables, tokens: Sequence[int], deadline: int) -> list[bool | None]:
    """Like ``extend``, for several leases."""
    return [extend(txn, queue, token, deadline) for token in tokens]


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all waiting, leased, delayed and dead items; return their number."""
    before = fifo.numbers(txn, queue)
    leased = [key[-8:] for key in weighed_records.keys(txn, queue.away, away(queue.name, "leased"))]
    reader_records.skip(txn, queue, leased)
    removed = fifo.clear(txn, queue)
    for kind in ("lease", "held", "owner", "expiry", "leased", "delayed", "dead", "note", "unique", "expires"):
        is_index = [kind.encode()] in _format.INDEXES
        for key in list(weighed_records.keys(txn, queue.away, away(queue.name, kind))):
            if is_index:
                weighed_records.delete_index(txn, queue, key)
            else:
                weighed_records.pop_away(txn, queue, key)
    record = queue_record(txn, queue)
    numbers = _format.numbers(record)
    none = dict.fromkeys(("leased", "delayed", "noted", "keys", "expiring", "dead"), 0)
    fifo.set_numbers(txn, queue, record, numbers._replace(**none))
    return removed + before.leased + before.delayed + before.dead
