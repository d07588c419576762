"""The records of items held back: leases, and the items that are leased, delayed or dead.

Owns: how AWAY is written and read, except notes and unique keys. Law: a damaged record is recognized as such, and never
mistaken for an intact one. Must not know: why an item goes there or returns (``_model.returns``), clocks.

The records, each under the queue's name (see ``_format.away``)::

    lease    token                 owner, deadline, the number of items left, and the keys of those that it was
                                   given, in ranges, if these are few
    held     token                 the ranges, if they are many
    owner    owner, token          nothing: to find the leases of a dead owner
    expiry   deadline, token       nothing, for a lease with a ttl: to find expired leases
    leased   key                   token, note and value of an item
    delayed  due time, key         note and value
    dead     key                   note and value
    expires  time, key             nothing: to find expired items, wherever they are

Times are in ns: deadlines on the system-wide monotonic clock, all others on the wall clock. A token is used once in a
directory. An item belongs to a lease as long as its record under ``leased`` has the lease's token, so settling one item
touches two small records, however many the lease holds.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence, Sized
from typing import Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import Note, away, pack, unpack
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import weighed_records

NEVER: Final = (1 << 64) - 1  # a deadline that never comes
DAMAGED: Final = "its record was damaged"
LEASE: Final = struct.Struct(">B3Q")
_FEW: Final = 8 * 16  # bytes of ranges in the record of a lease
_TOKEN: Final = 8  # bytes
_NOTHING: Final = Note()
Entry = tuple[bytes, bytes]  # key and value of a record, as they are on disk


class Record(NamedTuple):
    """An item that is leased, delayed or dead."""

    key: bytes  # its key among the items
    note: Note
    value: bytes
    token: int = 0  # of the lease that holds it


class Lease(NamedTuple):
    """A lease as it is on disk."""

    owner: int
    deadline: int
    items: int  # the number that it still holds
    ranges: bytes  # of the keys of its original items; b"": they are in a record of their own

    def pack(self) -> bytes:
        """Return the record."""
        return LEASE.pack(1, self.owner, self.deadline, self.items) + self.ranges

    @classmethod
    def unpack(cls, data: bytes) -> Lease:
        """Read the record."""
        _, owner, deadline, items = LEASE.unpack_from(data)
        return cls(owner, deadline, items, data[LEASE.size :])


# --- one by one


def lease(txn: Txn, queue: Tables, token: int) -> Lease | None:
    """Return a lease, None if it is gone, or damaged."""
    key = away(queue.name, "lease", token)
    value = txn.get(key, db=queue.away)
    data = None if value is None else weighed_records.opened(queue, key, value, LEASE.size)
    return None if data is None else Lease.unpack(data)


def add_lease(txn: Txn, queue: Tables, token: int, owner: int, deadline: int, keys: Sequence[bytes]) -> None:
    """Write a new lease, with the keys of its items and its entries in the indexes of owners and times."""
    ranges = _format.pack_ranges(_format.ranges(map(unpack, keys)))
    are_few = len(ranges) <= _FEW
    found = Lease(owner, deadline, len(keys), ranges if are_few else b"")
    weighed_records.put_away(txn, queue, away(queue.name, "lease", token), found.pack())
    if not are_few:
        weighed_records.put_away(txn, queue, away(queue.name, "held", token), ranges)
    weighed_records.put_index(txn, queue, away(queue.name, "owner", owner, token))
    if deadline != NEVER:
        weighed_records.put_index(txn, queue, away(queue.name, "expiry", deadline, token))


def set_deadline(txn: Txn, queue: Tables, token: int, before: Lease, deadline: int) -> None:
    """Give a lease another deadline."""
    if before.deadline != NEVER:
        weighed_records.delete_index(txn, queue, away(queue.name, "expiry", before.deadline, token))
    if deadline != NEVER:
        weighed_records.put_index(txn, queue, away(queue.name, "expiry", deadline, token))
    now = before._replace(deadline=deadline).pack()
    weighed_records.put_away(txn, queue, away(queue.name, "lease", token), now)


def release(
    txn: Txn, queue: Tables, token: int, wanted: Collection[bytes] | None, *, read: bool = True
) -> list[Record] | None:
    """Take the items of these keys (None: all) out of a lease that holds them; None if the lease is gone.

    The lease ends with its last item. Without ``read``, neither their notes are read nor their checksums verified.
    """
    found = lease(txn, queue, token)
    if found is None:
        return None
    released = [
        record
        for key in (held(txn, queue, token, found) if wanted is None else sorted(wanted))
        if (record := _pop_leased(txn, queue, token, key, read=read)) is not None
    ]
    if wanted is None or len(released) >= found.items:
        _end(txn, queue, token, found)
    elif released:
        now = found._replace(items=found.items - len(released)).pack()
        weighed_records.put_away(txn, queue, away(queue.name, "lease", token), now)
    return released


def held(txn: Txn, queue: Tables, token: int, found: Lease) -> list[bytes]:
    """Return the keys of the items that a lease was given; it may no longer hold some of them."""
    ranges: bytes | None = found.ranges
    if not ranges:
        key = away(queue.name, "held", token)
        value = txn.get(key, db=queue.away)
        ranges = None if value is None else weighed_records.opened(queue, key, value)
    return [pack(number) for each in _format.unpack_ranges(ranges or b"") for number in each]


def _pop_leased(txn: Txn, queue: Tables, token: int, key: bytes, *, read: bool) -> Record | None:
    """Remove and return an item if this lease holds it."""
    name = away(queue.name, "leased", key)
    value = weighed_records.pop_away(txn, queue, name)
    if value is None:
        return None
    if value[:_TOKEN] != pack(token):
        weighed_records.restore_away(txn, queue, name, value)
        return None
    return record(queue, name, value) if read else Record(key, _NOTHING, value, token)


def _end(txn: Txn, queue: Tables, token: int, found: Lease) -> None:
    weighed_records.pop_away(txn, queue, away(queue.name, "lease", token))
    if not found.ranges:
        weighed_records.pop_away(txn, queue, away(queue.name, "held", token))
    weighed_records.delete_index(txn, queue, away(queue.name, "owner", found.owner, token))
    if found.deadline != NEVER:
        weighed_records.delete_index(txn, queue, away(queue.name, "expiry", found.deadline, token))


def take(txn: Txn, queue: Tables, key: bytes) -> Record:
    """Remove and return the record of an existing item."""
    value = weighed_records.pop_away(txn, queue, key)
    assert value is not None  # by the invariants
    return record(queue, key, value)


def record(queue: Tables, key: bytes, value: bytes) -> Record:
    """Return the item in a record."""
    item, at = key[-_format.KEY_SIZE :], _TOKEN if _kind(queue.name, key) == b"leased" else 0
    data = weighed_records.opened(queue, key, value, at + _format.NOTE.size)
    token = unpack(value[:_TOKEN]) if at and len(value) >= at else 0
    if data is None:
        return Record(item, Note(reason=DAMAGED), value, token)
    return Record(item, *Note.unpack(data, at), token)


def _kind(name: str, key: bytes) -> bytes:
    start = len(_format.record(name, ""))
    return key[start : key.index(b"/", start)]


def leased(token: int, note: Note, value: bytes) -> bytes:
    """Return the record of an item that a lease holds."""
    return pack(token) + note.pack() + value


def first_time(txn: Txn, queue: Tables, kind: str) -> int:
    """Return the first time in an index, ``NEVER`` if it is empty."""
    prefix = away(queue.name, kind)
    with txn.cursor(queue.away) as cursor:
        if cursor.set_range(prefix) and (key := cursor.key()).startswith(prefix):
            return unpack(key[len(prefix) : len(prefix) + 8])
    return NEVER


def owners(txn: Txn, queue: Tables, after: int, most: int) -> list[int]:
    """Return up to ``most`` owners of leases, each once, from the one behind ``after`` on, then from the first on."""
    prefix = away(queue.name, "owner")
    found: list[int] = []
    with txn.cursor(queue.away) as cursor:
        start, wrapped = prefix + pack(after) + pack(NEVER), after == 0
        while len(found) < most:
            if cursor.set_range(start) and cursor.key().startswith(prefix):
                owner = unpack(cursor.key()[-16:-8])
                if found and wrapped and after and owner > after:
                    break
                found.append(owner)
                start = prefix + pack(owner) + pack(NEVER)
            elif wrapped:
                break
            else:
                start, wrapped = prefix, True
    return list(dict.fromkeys(found))


# --- all records


class Contents(NamedTuple):
    """All records of a queue in AWAY."""

    leases: dict[int, Lease]  # by token
    held: dict[int, list[bytes]]  # keys by token
    owners: set[tuple[int, int]]  # owner, token
    expiries: set[tuple[int, int]]  # deadline, token
    leased: dict[bytes, Record]
    delayed: dict[bytes, Record]
    dead: dict[bytes, Record]
    notes: dict[bytes, Note]
    unique: dict[bytes, bytes]  # keys by digest
    expires: set[tuple[int, bytes]]  # time, key
    readers: set[tuple[bytes, str]]  # passed, name
    skips: dict[bytes, int]  # items by position
    damaged: list[bytes]

    @classmethod
    def nothing(cls) -> Contents:
        """Return the contents of a queue without records."""
        return cls({}, {}, set(), set(), {}, {}, {}, {}, {}, set(), set(), {}, [])

    def keys_of(self, token: int) -> frozenset[bytes]:
        """Return the keys of the items that a lease was given."""
        lease = self.leases.get(token)
        found = _format.unpack_ranges(lease.ranges) if lease is not None and lease.ranges else []
        return frozenset(self.held.get(token) or [pack(number) for each in found for number in each])

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of records: leased, delayed, noted, keys, expiring, dead."""
        records: tuple[Sized, ...] = (
            self.leased,
            self.delayed,
            self.notes,
            self.unique,
            self.expires,
            self.dead,
        )
        return tuple(map(len, records))


def contents(txn: Txn, queue: Tables) -> Contents:
    """Return all records of a queue."""
    records = weighed_records.entries(txn, queue.away, _format.record(queue.name, ""))
    return read(queue.name, records, sealed=queue.sealed)


def read(name: str, records: Iterable[Entry], *, sealed: bool) -> Contents:
    """Return the contents of records, which all belong to the queue ``name``."""
    found = Contents.nothing()
    start = len(_format.record(name, ""))
    for key, value in records:
        kind, _, rest = key[start:].partition(b"/")
        try:
            if sealed and [kind] not in _format.INDEXES and not _format.is_intact(key, value):
                raise ValueError  # noqa: TRY301  (as what cannot be read)
            _add(found, kind, rest, value[: -_format.SEAL_SIZE] if sealed else value)
        except (ValueError, KeyError, struct.error, IndexError):
            found.damaged.append(key)
    return found


def _add(found: Contents, kind: bytes, rest: bytes, data: bytes) -> None:
    if kind in (b"owner", b"expiry"):
        index = found.owners if kind == b"owner" else found.expiries
        index.add((unpack(rest[:8]), unpack(rest[8:])))
    elif kind == b"expires":
        found.expires.add((unpack(rest[:8]), rest[8:]))
    elif kind == b"passed":
        found.readers.add((rest[:8], rest[8:].decode()))
    elif kind == b"skips":
        found.skips[rest] = unpack(data)
    elif kind == b"lease":
        found.leases[unpack(rest)] = Lease.unpack(data)
    elif kind == b"held":
        found.held[unpack(rest)] = [pack(number) for each in _format.unpack_ranges(data) for number in each]
    elif kind == b"unique":
        found.unique[rest] = data
    elif kind == b"note":
        found.notes[rest] = Note.unpack(data)[0]
    elif kind == b"leased":
        found.leased[rest] = Record(rest, *Note.unpack(data, _TOKEN), unpack(data[:_TOKEN]))
    else:
        records = {b"delayed": found.delayed, b"dead": found.dead}[kind]
        records[rest[-8:]] = Record(rest[-8:], *Note.unpack(data))
