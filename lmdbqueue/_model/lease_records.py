"""The records of what is not waiting: leases, and the items that are leased, delayed or dead.

Owns: how AWAY is written and read, but for the notes. Law: a record that is damaged is known as such, and never
taken for what it was. Must not know: why an item goes there or comes back (``_model.leases``), clocks.

The records, each under the queue's name (see ``_format.away``)::

    lease    token                 owner, deadline, the numbers of what it holds still
    owner    owner, token          nothing: to find the leases of one that is dead
    expiry   deadline, token       nothing, for a lease with a ttl: to find those whose time is over
    leased   number                note and value of an item
    delayed  due time, number      the same
    dead     number                the same

Times are in ns: deadlines on the system-wide monotonic clock, due times on the wall clock. A token is given once.
"""

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from typing import Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._format import Counts, Note, away, pack, unpack
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import weighed_records

NEVER: Final = (1 << 64) - 1  # a deadline that does not come
DAMAGED: Final = "its record was damaged"
Entry = tuple[bytes, bytes]  # key and value of a record, as they stand on disk


class Record(NamedTuple):
    """An item that is leased, delayed or dead."""

    seq: int
    note: Note
    value: bytes


class Lease(NamedTuple):
    """A lease as it stands on disk."""

    owner: int
    deadline: int
    seqs: Sequence[int]


# --- one by one


def lease(txn: Txn, queue: Tables, token: int) -> Lease | None:
    """Return a lease, None if it is gone, or damaged."""
    key = away(queue.name, "lease", token)
    value = txn.get(key, db=queue.away)
    data = None if value is None else weighed_records.opened(queue, key, value)
    return None if data is None else _unpack(data)


def _unpack(data: bytes) -> Lease:
    seqs = [seq for each in _format.unpack_ranges(data[16:]) for seq in each]
    return Lease(unpack(data[:8]), unpack(data[8:16]), seqs)


def put_lease(txn: Txn, queue: Tables, token: int, lease: Lease) -> None:
    """Write a lease down, and where it is found by its owner and its time."""
    seqs = _format.pack_ranges(_format.ranges(sorted(lease.seqs)))
    weighed_records.put_away(
        txn, queue, away(queue.name, "lease", token), pack(lease.owner) + pack(lease.deadline) + seqs
    )
    txn.put(away(queue.name, "owner", lease.owner, token), b"", db=queue.away)
    if lease.deadline != NEVER:
        txn.put(away(queue.name, "expiry", lease.deadline, token), b"", db=queue.away)


def release(txn: Txn, queue: Tables, token: int, wanted: Collection[int] | None) -> list[int] | None:
    """Strike what is wanted (None: all) off a lease, which ends with the last; None if it is gone."""
    found = lease(txn, queue, token)
    if found is None:
        return None
    seqs = list(found.seqs) if wanted is None else [seq for seq in found.seqs if seq in wanted]
    if len(seqs) == len(found.seqs):
        weighed_records.pop_away(txn, queue, away(queue.name, "lease", token))
        txn.delete(away(queue.name, "owner", found.owner, token), db=queue.away)
        txn.delete(away(queue.name, "expiry", found.deadline, token), db=queue.away)
    elif seqs:
        gone = set(seqs)
        put_lease(txn, queue, token, found._replace(seqs=[seq for seq in found.seqs if seq not in gone]))
    return seqs


def take(txn: Txn, queue: Tables, key: bytes) -> Record:
    """Remove and return a record of an item, which is there."""
    value = weighed_records.pop_away(txn, queue, key)
    assert value is not None  # by the invariants
    return record(queue, key, value)


def record(queue: Tables, key: bytes, value: bytes) -> Record:
    """Return the item that a record has."""
    seq = unpack(key[-8:])
    data = weighed_records.opened(queue, key, value)
    if data is None:
        return Record(seq, Note(reason=DAMAGED), value)
    return Record(seq, *Note.unpack(data))


def first_time(txn: Txn, queue: Tables, kind: str) -> int:
    """Return the first number that an index of times has, ``NEVER`` if it is empty."""
    key = next(keys(txn, queue, away(queue.name, kind)), None)
    return NEVER if key is None else unpack(key[-16:-8])


def owners(txn: Txn, queue: Tables) -> Iterator[int]:
    """Yield each owner of leases once."""
    prefix = away(queue.name, "owner")
    with txn.cursor(queue.away) as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            owner = unpack(cursor.key()[-16:-8])
            yield owner
            found = cursor.set_range(prefix + pack(owner) + pack(NEVER))


def keys(txn: Txn, queue: Tables, prefix: bytes) -> Iterator[bytes]:
    """Yield the keys that begin with ``prefix``."""
    with txn.cursor(queue.away) as cursor:
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    return
                yield key


def entries(txn: Txn, queue: Tables, prefix: bytes, first: bytes) -> Iterator[Entry]:
    """Yield what is under keys that begin with ``prefix``, from ``prefix + first`` on."""
    with txn.cursor(queue.away) as cursor:
        if cursor.set_range(prefix + first):
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    return
                yield key, value


# --- all of it


class Contents(NamedTuple):
    """All records of a queue in AWAY."""

    leases: dict[int, Lease]  # by token
    owners: set[tuple[int, int]]  # owner, token
    expiries: set[tuple[int, int]]  # deadline, token
    leased: dict[int, Record]
    delayed: dict[int, Record]
    dead: dict[int, Record]
    notes: dict[int, Note]
    keys: dict[bytes, int]
    damaged: list[bytes]

    def counts(self, tokens: int) -> Counts:
        """Return how many there are; ``tokens``: leases that were ever given."""
        records: tuple[Sized, ...] = (self.leased, self.delayed, self.dead, self.notes, self.keys)
        leased, delayed, dead, noted, unique = (len(each) for each in records)
        return Counts(tokens, leased, delayed, dead, noted, unique)


def contents(txn: Txn, queue: Tables) -> Contents:
    """Return all records of a queue."""
    return read(queue.name, entries(txn, queue, _format.record(queue.name, ""), b""), sealed=queue.sealed)


def read(name: str, records: Iterable[Entry], *, sealed: bool) -> Contents:
    """Return what records are, all of which are of the queue ``name``."""
    found = Contents({}, set(), set(), {}, {}, {}, {}, {}, [])
    start = len(_format.record(name, ""))
    for key, value in records:
        kind, _, rest = key[start:].partition(b"/")
        is_index = kind in (b"owner", b"expiry")
        try:
            if sealed and not is_index and not _format.is_intact(key, value):
                raise ValueError  # noqa: TRY301  (as what cannot be read)
            _add(found, kind, rest, value[: -_format.SEAL_SIZE] if sealed else value)
        except (ValueError, KeyError, struct.error):
            found.damaged.append(key)
    return found


def _add(found: Contents, kind: bytes, rest: bytes, data: bytes) -> None:
    if kind in (b"owner", b"expiry"):
        index = found.owners if kind == b"owner" else found.expiries
        index.add((unpack(rest[:8]), unpack(rest[8:])))
    elif kind == b"lease":
        found.leases[unpack(rest)] = _unpack(data)
    elif kind == b"unique":
        found.keys[rest] = unpack(data)
    elif kind == b"note":
        found.notes[unpack(rest)] = Note.unpack(data)[0]
    else:
        records = {b"leased": found.leased, b"delayed": found.delayed, b"dead": found.dead}[kind]
        records[unpack(rest[-8:])] = Record(unpack(rest[-8:]), *Note.unpack(data))
