"""The verification of AWAY, record by record: leases, items held back, notes, unique keys, indexes.

Owns: the invariants between the records of a queue in AWAY. Law: it keeps only sums of the records, however many there
are; that two kinds of records describe the same things is shown by the sums of their weights, and if one must have a
counterpart, that is looked up. Must not know: clocks, how the records came about.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import ClassVar

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._base.format import Note, away, pack, unpack, weigh
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, lease_records, reader_records, weighed_records
from lmdbqueue._model.lease_records import NEVER, Lease

_MOST = 20  # the most sentences of one kind
_KNOWN = 1_000  # leases whose keys are kept in memory
_TOKEN = 8  # bytes


class Proof:
    """The verification of one queue. ``damaged``: keys of damaged records; if any, only they are reported."""

    def __init__(self, txn: Txn, queue: Tables) -> None:
        self._txn = txn
        self._queue = queue
        self._where = f"queue {queue.name!r}"
        self._counts: Counter[str] = Counter()
        self._weights: Counter[str] = Counter()  # of pairs that must describe the same things: 0 if they do
        self._last_token = 0
        self._held: dict[int, list[range]] = {}
        self.damaged: list[bytes] = []

    def sentences(self) -> list[str]:
        """Return a sentence for each fault."""
        found = list(islice(self._record_by_record(), _MOST))
        if self.damaged:
            return []
        return [*found, *self._sums()]

    def _record_by_record(self) -> Iterator[str]:
        prefix = _format.record(self._queue.name, "")
        for name, value in weighed_records.entries(self._txn, self._queue.away, prefix):
            kind, _, rest = name[len(prefix) :].partition(b"/")
            try:
                is_sealed = self._queue.sealed and [kind] not in _format.INDEXES
                if is_sealed and not _format.is_intact(name, value):
                    raise ValueError  # noqa: TRY301  (as what cannot be read)
                data = value[: -_format.SEAL_SIZE] if is_sealed else value
                found = list(self._looks[kind.decode()](self, rest, data))
            except (ValueError, KeyError, struct.error, IndexError):
                self.damaged.append(name)
            else:
                self._counts[kind.decode()] += 1
                yield from found

    def _sums(self) -> Iterator[str]:
        numbers = fifo.numbers(self._txn, self._queue)
        counts = tuple(self._counts[kind] for kind in ("leased", "delayed", "note", "unique", "expires", "dead"))
        noted = (numbers.leased, numbers.delayed, numbers.noted, numbers.keys, numbers.expiring, numbers.dead)
        if counts != noted:
            kinds = "leased, delayed, noted, unique, expiring and dead"
            yield f"{self._where}: there are {counts} {kinds}, but its record says {noted}"
        for name in reader_records.names(self._txn, self._queue):
            with suppress(CorruptQueueError):
                passed = reader_records.position(self._txn, self._queue, name).passed
                self._weigh("the list of its readers is not that of its readers", passed + name.encode())
        yield from (f"{self._where}: {what}" for what, weight in self._weights.items() if weight % (1 << 64))
        if self._last_token > numbers.tokens:
            yield f"{self._where}: a lease has token {self._last_token}, but the last one given was {numbers.tokens}"

    def _weigh(self, what: str, key: bytes, count: int = 1) -> None:
        self._weights[what] += count * weigh(key)

    # --- the requirements of each kind of record

    def _lease(self, rest: bytes, data: bytes) -> Iterator[str]:
        token, found = unpack(rest), Lease.unpack(data)
        self._last_token = max(self._last_token, token)
        self._weigh(_BY_OWNER, pack(found.owner) + rest)
        if not found.ranges:
            self._weigh(_KEYS, rest)
        self._weigh(_ITEMS, rest, found.items)
        if found.deadline != NEVER:
            self._weigh(_BY_TIME, pack(found.deadline) + rest)
        yield from ()

    def _held_keys(self, rest: bytes, _data: bytes) -> Iterator[str]:
        self._weigh(_KEYS, rest, -1)
        yield from ()

    def _owner(self, rest: bytes, _data: bytes) -> Iterator[str]:
        self._weigh(_BY_OWNER, rest, -1)
        yield from ()

    def _expiry(self, rest: bytes, _data: bytes) -> Iterator[str]:
        self._weigh(_BY_TIME, rest, -1)
        yield from ()

    def _passed(self, rest: bytes, _data: bytes) -> Iterator[str]:
        self._weigh("the list of its readers is not that of its readers", rest, -1)
        yield from ()

    def _skips(self, rest: bytes, data: bytes) -> Iterator[str]:
        if not len(rest) == len(data) == _format.KEY_SIZE:
            raise ValueError(rest)
        yield from ()

    def _leased(self, rest: bytes, data: bytes) -> Iterator[str]:
        Note.unpack(data, _TOKEN)
        token = data[:_TOKEN]
        self._weigh(_ITEMS, token, -1)
        if not self._has_been_given(unpack(token), unpack(rest)):
            yield f"{self._where}: item {_format.seq_of(rest)} is held by a lease that was not given it"

    def _has_been_given(self, token: int, key: int) -> bool:
        if token not in self._held:
            if len(self._held) >= _KNOWN:
                self._held.clear()
            self._held[token] = _format.unpack_ranges(self._given(token))
        ranges = self._held[token]
        at = bisect_right(ranges, key, key=lambda each: each.start)
        return at > 0 and key in ranges[at - 1]

    def _given(self, token: int) -> bytes:
        """Return the ranges of keys that a lease was given."""
        lease = lease_records.lease(self._txn, self._queue, token)
        if lease is not None and lease.ranges:
            return lease.ranges
        value = self._txn.get(away(self._queue.name, "held", token), db=self._queue.away) or b""
        return value[: -_format.SEAL_SIZE] if self._queue.sealed else value

    def _delayed(self, _rest: bytes, data: bytes) -> Iterator[str]:
        Note.unpack(data)
        yield from ()

    def _note(self, rest: bytes, data: bytes) -> Iterator[str]:
        Note.unpack(data)
        if self._txn.get(rest, db=self._queue.items) is None:
            yield f"{self._where}: there is a note on item {_format.seq_of(rest)}, which does not exist"

    def _unique(self, rest: bytes, data: bytes) -> Iterator[str]:
        note = self._note_on(data[:8], unpack(data[8:16]))
        if note is None or note.unique != rest:
            yield f"{self._where}: a unique key is held by item {_format.seq_of(data[:8])}, which does not have it"

    def _expires(self, rest: bytes, data: bytes) -> Iterator[str]:
        note = self._note_on(rest[8:], unpack(data))
        if note is None or note.expires != unpack(rest[:8]):
            yield f"{self._where}: item {_format.seq_of(rest[8:])} is listed as expiring, but does not expire"

    def _note_on(self, key: bytes, due: int) -> Note | None:
        """Return the note on an item that is waiting, leased, or delayed until ``due``."""
        name = self._queue.name
        for record, at in (
            (away(name, "note", key), 0),
            (away(name, "leased", key), _TOKEN),
            (away(name, "delayed", due, key), 0),
        ):
            value = self._txn.get(record, db=self._queue.away)
            if value is not None:
                return Note.unpack(value, at)[0]
        return None

    _looks: ClassVar = {
        "dead": _delayed,
        "delayed": _delayed,
        "expires": _expires,
        "expiry": _expiry,
        "held": _held_keys,
        "lease": _lease,
        "leased": _leased,
        "note": _note,
        "owner": _owner,
        "passed": _passed,
        "skips": _skips,
        "unique": _unique,
    }


_BY_OWNER = "the list of its leases by owner is not that of its leases"
_BY_TIME = "the list of its leases by time is not that of its leases"
_KEYS = "the lists of what its leases were given are not those of its leases"
_ITEMS = "its leases do not hold the items that are leased"
