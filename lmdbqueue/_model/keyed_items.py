"""Pushes with options (a delay, a unique key, an expiry or a priority), and access to items by their keys.

Owns: which of two items with the same key is stored. Law: a key belongs to at most one waiting or delayed item. Must
not know: clocks, pickling, what a key is (it gets digests).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import Full
from lmdbqueue._base.format import CLASS, RETAINED, Note, away, pack, unpack
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import expiry, fifo, item_notes, lease_records, pushing, retention, weighed_records
from lmdbqueue._model.pushing import Limits
from lmdbqueue._model.weighed_records import queue_record


class Apart(NamedTuple):
    """The options of a push."""

    now: int  # ns since 1970
    trailer: bytes
    due: int = 0  # ns since 1970, 0 for no delay
    unique: Sequence[bytes] = ()  # digests of keys, b"" for none; empty: no item has one
    replace: bool = False  # a new item replaces the one that has its key
    expires: int = 0  # ns since 1970, 0 for never
    number: int = CLASS
    limits: Limits | None = None
    bury_expired: bool = False  # expired items with one of these keys become dead letters instead of leaving


class Pushed(NamedTuple):
    """The outcome of a push, for one item."""

    key: int  # its key, or that of the existing item with its unique key
    is_stored: bool


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], apart: Apart) -> list[Pushed]:
    """Append payloads with a delay, unique keys, an expiry or a priority; return the outcome for each.

    Raises ``Full`` as ``_model.pushing.push``, ``OptionError`` for a priority beside readers or retention.
    """
    if apart.number != CLASS:
        pushing.refuse_priority(txn, queue)
    if apart.unique and _format.flags(queue_record(txn, queue)) & RETAINED:
        retention.trim(txn, queue, apart.now, apart.bury_expired)  # items that are too old release their keys
    digests = apart.unique or [b""] * len(payloads)
    new: list[tuple[bytes, bytes]] = []  # payloads and digests
    places: dict[bytes, int] = {}  # in ``new``, of those with a digest
    found: list[int | bytes] = []  # for each payload its place in ``new``, or the key of the item with its digest
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
        elif apart.replace:  # within a call the newest wins, too
            new[place] = payload, digest
        else:
            repeated.add(number)
    leaving = [each for each in (_here(txn, queue, digest) for digest in places) if each is not None]
    if apart.limits is not None and new:
        now = None if apart.due else apart.now
        pushing.refuse_full(txn, queue, [payload for payload, _ in new], apart.limits, now, leaving)
    for key, due in leaving:
        if apart.replace:
            _drop(txn, queue, key, due)
        else:
            expiry.leave(txn, queue, expiry.take_out(txn, queue, key, due), apart.now, bury=apart.bury_expired)
    given = _push_new(txn, queue, new, apart) if new else range(0)
    return [
        Pushed(unpack(place), is_stored=False)
        if isinstance(place, bytes)
        else Pushed(given[place], is_stored=number not in repeated)
        for number, place in enumerate(found)
    ]


def push_each(txn: Txn, queue: Tables, pushes: Sequence[tuple[Sequence[bytes], Apart]]) -> list[list[Pushed]]:
    """Like ``push``, for several pushes, up to the first that ``Full`` refuses; raises it if that is the first of all.

    Else what the others have written would not be undone, as a transaction goes on after ``Full``.
    """
    outcomes: list[list[Pushed]] = []
    for payloads, apart in pushes:
        try:
            outcomes.append(push(txn, queue, payloads, apart))
        except Full:
            if not outcomes:
                raise
            break
    return outcomes


def _is_over(txn: Txn, queue: Tables, digest: bytes, now: int) -> bool:
    """Return whether the item with a unique key has expired, but is not removed yet."""
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
    """Return the item with a unique key and its due time, if it is waiting or delayed; leased ones are elsewhere."""
    key, due = item_notes.where(txn, queue, digest)
    if key is None:
        return None
    is_here = (
        txn.get(away(queue.name, "delayed", due, key), db=queue.away) if due else txn.get(key, db=queue.items)
    ) is not None
    return (key, due) if is_here else None


def _drop(txn: Txn, queue: Tables, key: bytes, due: int) -> bool:
    """Remove for good an item that is waiting, or delayed until ``due``; return whether it existed."""
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
        retention.trim(txn, queue, apart.now, apart.bury_expired)  # after storing all notes of items that may go
    return given


def find(txn: Txn, queue: Tables, digest: bytes) -> int | None:
    """Return the number of the item with a unique key."""
    key = item_notes.held_by(txn, queue, digest)
    return None if key is None else _format.seq_of(key)


def cancel(txn: Txn, queue: Tables, digest: bytes) -> bool:
    """Remove the item with a unique key, if it is waiting or delayed; return whether it was."""
    key, due = item_notes.where(txn, queue, digest)
    return key is not None and _drop(txn, queue, key, due)


def delete_items(txn: Txn, queue: Tables, keys: Collection[bytes]) -> int:
    """Remove for good the waiting items of these keys, wherever they are; return their number."""
    found = [key for key, _ in fifo.take_out(txn, queue, keys)]
    fifo.forget(txn, queue, found)
    return len(found)
