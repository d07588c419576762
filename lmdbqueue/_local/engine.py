"""The steps that verbs are made of, each as one call of an environment.

Owns: which function of a transaction a step is, what time it is, how long a sleeper may sleep. Law: whoever looks
finds what has to come back in its place again. Must not know: LMDB, generations; what a verb makes of the steps.
"""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from lmdbqueue import _format
from lmdbqueue._errors import ClosedError, CorruptItemError, DiskFullError, Full
from lmdbqueue._host.owners import Owners
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import fifo, item_notes, leases, readers
from lmdbqueue._model.lease_records import NEVER, Record
from lmdbqueue._model.leases import Overdue, Return
from lmdbqueue._model.push_times import Moment
from lmdbqueue._model.readers import Move, ReaderStats
from lmdbqueue._verbs.lease import DeadLetter, Leased
from lmdbqueue._verbs.reader import FollowedQueue, Start
from lmdbqueue._verbs.reading import Entry

T = TypeVar("T")

_BROWSE_BYTES = 1 << 18  # of items that iteration reads at a time
_SECOND = 10**9  # ns
_DEATH_LOOK = 0.25  # seconds between two looks of a sleeper whether others who hold leases have died
_SMALL = 1 << 14  # bytes of an item that is leased on a full disk
_FEW = 64  # items that may be leased on a full disk, so that they cannot use its reserve up
_FAILED_LOOK = 0.05  # seconds until a sleeper tries again what could not come back

# a record of AWAY: its key, its note
_AWAY_OVERHEAD = 100  # bytes


class Engine(FollowedQueue[T]):
    """A queue on an environment: the steps of its verbs."""

    _directory: str
    _environment: Environment | None
    _owners: Owners
    max_bytes: int | None
    checksum: bool

    @property
    def _open(self) -> Environment:
        environment = self._environment
        if environment is None:
            raise ClosedError(self._directory)
        return environment

    def _append(self, payloads: Sequence[bytes]) -> range:
        given: range = self._open.update(
            self.name,
            readers.push,
            payloads,
            (self.maxsize, self.max_bytes),
            now(),
            room=fifo.room_for(payloads),
        )
        return given

    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        moment = now()
        due = moment.wall + int(delay * _SECOND) if delay else 0
        apart = leases.Apart(moment, due, keys, self.maxsize, self.max_bytes)
        numbers: list[int] = self._open.update(self.name, leases.push, payloads, apart, room=_room_away(payloads))
        return numbers

    def _first(self, n: int) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.view, fifo.first, n)
        return entries

    def _candidates(self, n: int) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.glance, fifo.first, n)
        return entries

    def _since(self, place: bytes) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.view, fifo.since, place, _BROWSE_BYTES)
        return entries

    def _read(self, read: Callable[..., Any], fn: Callable[..., Any], *args: Any) -> Any:
        """Return ``fn(txn, tables, *args)`` by ``read``, once everything that has to come back has."""
        while True:
            moment = now()
            found = read(self.name, leases.look, self._owners.is_dead, moment, fn, *args)
            if not isinstance(found, Overdue):
                return found
            if not self._restore(found.owners, moment):
                return read(self.name, fn, *args)

    def _restore(self, owners: Sequence[int], moment: Moment) -> int:
        """Let come back what these owners, who are dead, hold, and what is due; return how much, 0 if it cannot."""
        try:
            changed: int = self._open.update(self.name, leases.restore, owners, moment, self.max_attempts)
        except Full:  # of the disk: when consumers have made room it comes back
            return 0
        self._owners.bury(owners)
        return changed

    # --- leases

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        deadline = _deadline(ttl)
        terms = leases.Terms(self._owners.join(), deadline, time.time_ns(), unreadable)
        update = partial(self._open.update, self.name, leases.lease, entries, terms)
        leased: tuple[int, list[int], list[int]] | None
        try:
            leased = update(room=_room_away([value for _, value in entries]))
        except DiskFullError:
            counts: _format.Counts = self._open.glance(self.name, item_notes.counts)
            if len(entries) > 1 or len(entries[0][1]) > _SMALL or counts.leased > _FEW:
                raise
            leased = update()  # from the reserve, as removals are
        self._refuse_if_closed()  # by another thread meanwhile: then the owner is dead
        if leased is None:
            return None
        token, seqs, attempts = leased
        return Leased(token, seqs, attempts, None if ttl is None else deadline / _SECOND)

    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        settled: list[int] | None = self._open.update(self.name, leases.ack, token, seqs)
        return settled

    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        wall = time.time_ns()
        due = wall + int(delay * _SECOND) if delay else 0
        how = Return(wall, reason, due, self.max_attempts if max_attempts is None else max_attempts)
        settled: list[int] | None = self._open.update(self.name, leases.nack, token, seqs, how)
        return settled

    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        deadline = _deadline(ttl)
        if not self._open.update(self.name, leases.extend, token, deadline):
            return None
        return (None if ttl is None else deadline / _SECOND,)

    def _count_dead(self) -> int:
        counts: _format.Counts = self._read(self._open.view, item_notes.counts)
        return counts.dead

    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]:
        records: list[Record] = self._read(self._open.view, leases.dead, seq, _BROWSE_BYTES)
        return [self._letter(record) for record in records]

    def _letter(self, record: Record) -> DeadLetter[T]:
        entry = _format.pack(record.seq), record.value
        return DeadLetter(*self._open_payload(entry), record.note, partial(_only, self._decode, entry))

    def _requeue(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.update(self.name, leases.requeue, seqs)
        return count

    def _delete_dead(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.update(self.name, leases.bury_for_good, seqs)
        return count

    def _begin_with_empty_hands(self) -> None:
        super()._begin_with_empty_hands()
        if hasattr(self, "_owners"):  # not so in the constructor of the base class
            self._owners.begin_anew()

    # --- readers

    def _reader_create(self, name: str, where: Start) -> None:
        if not self._read(self._open.view, readers.exists, name):
            self._open.update(self.name, readers.create, name, where, now(), room=_SMALL)

    def _reader_drop(self, name: str) -> bool:
        dropped: bool = self._open.update(self.name, readers.drop, name)
        self._trim()
        return dropped

    def _reader_seek(self, name: str, where: Start) -> None:
        self._read(self._open.glance, readers.exists, name)  # so that what is due has come
        self._open.update(self.name, readers.seek, name, where, now())
        self._trim()

    def _trim(self) -> None:
        while self._open.update(self.name, readers.trim, now()):
            pass

    def _reader_first(self, name: str, n: int, *, durable: bool) -> list[Entry]:
        read = self._open.view if durable else self._open.glance
        entries: list[Entry] = self._read(read, readers.first, name, n)
        return entries

    def _reader_advance(self, name: str, keys: list[bytes]) -> Move | None:
        move: Move | None = self._open.update(self.name, readers.advance, name, keys, now())
        return move

    def _reader_retreat(self, move: Move, entries: list[Entry]) -> bool:
        room = fifo.room_for([value for _, value in entries[: move.gone]])
        undone: bool = self._open.update(self.name, readers.retreat, move, entries, now(), room=room)
        return undone

    def _reader_delete(self, name: str, n: int) -> int:
        passed: int = self._open.update(self.name, readers.delete, name, n, now())
        return passed

    def _reader_lag(self, name: str) -> int:
        lag: int = self._read(self._open.view, readers.lag, name)
        return lag

    def _reader_stats(self, name: str | None) -> list[ReaderStats]:
        if name is None:
            found: list[ReaderStats] = self._read(self._open.view, readers.stats)
            return found
        return [self._read(self._open.view, readers.stats_of, name)]

    def _retain(self, retention: _format.Retention | None) -> None:
        self._open.update(self.name, readers.retain, now(), retention, room=_SMALL)
        self._trim()

    def _is_crowded(self) -> bool:
        return self._open.is_crowded

    # --- removing

    def _remove(self, keys: list[bytes]) -> int:
        removed: int = self._open.update(self.name, fifo.remove, keys)
        return removed

    def _put_back(self, entries: list[Entry]) -> None:
        room = fifo.room_for([value for _, value in entries])
        self._open.update(self.name, fifo.put_back, entries, room=room)

    def _delete(self, n: int) -> int:
        removed: int = self._open.update(self.name, fifo.delete, n)
        return removed

    def _clear(self, *, all: bool) -> int:  # noqa: A002
        removed: int = self._open.update(self.name, leases.clear if all else fifo.clear)
        return removed

    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        values = [value for _, value in entries]
        if not self.checksum:
            return values
        if not _format.are_intact([key[-8:] for key, _ in entries], values):
            key, value = next(each for each in entries if not _format.is_intact(each[0][-8:], each[1]))
            raise CorruptItemError(_format.number(key), value[: -_format.SEAL_SIZE])
        return _format.unsealed(values)

    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        key, value = entry
        return _format.number(key), value[: -_format.SEAL_SIZE] if self.checksum else value

    def _refuse_if_closed(self) -> None:
        if self._environment is None:
            raise ClosedError(self._directory)

    def _listen(self) -> int:
        environment = self._open
        environment.refuse_inside("a call would wait", "nobody else can change anything meanwhile: use timeout=0")
        return environment.bell.listen()

    def _sleep(self, ticket: int, timeout: float) -> None:
        environment = self._open
        expiry, due, owners = environment.glance(self.name, leases.next_time)
        if expiry != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (expiry - time.monotonic_ns()) / _SECOND))
        if due != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (due - time.time_ns()) / _SECOND))
        if any(owner != self._owners.mine for owner in owners):
            timeout = min(timeout, _DEATH_LOOK)
        environment.bell.wait(ticket, timeout)

    def _wake(self) -> None:
        self._open.bell.ring()


def now() -> Moment:
    """Return what time it is."""
    return _make(Moment, (time.monotonic_ns(), time.time_ns()))


_make = tuple.__new__  # half of the time of a named tuple's own


def _deadline(ttl: float | None) -> int:
    return NEVER if ttl is None else time.monotonic_ns() + int(ttl * _SECOND)


def _room_away(payloads: Sequence[bytes]) -> int:
    return fifo.room_for(payloads) + 3 * _AWAY_OVERHEAD * len(payloads)


def _only(decode: Callable[[list[Entry]], list[T]], entry: Entry) -> T:
    return decode([entry])[0]
