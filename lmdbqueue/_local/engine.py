"""``LocalEngine``: the steps of the verbs in an LMDB environment.

Owns: which function of a transaction a step is, what time it is, how long a sleeper may sleep. Law: whoever looks
finds what has to come back in its place again. Must not know: LMDB, generations; what a verb makes of the steps.
"""

import os
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from lmdbqueue import _format
from lmdbqueue._errors import ClosedError, CorruptItemError, DiskFullError, Full, QueueError
from lmdbqueue._format import Note
from lmdbqueue._host.owners import Owners
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import fifo, item_notes, leases, readers
from lmdbqueue._model.lease_records import NEVER
from lmdbqueue._model.leases import Overdue, Return
from lmdbqueue._model.readers import Move
from lmdbqueue._values import Clock, Entry, Leased, Moment, ReaderStats, Start, Stats, now
from lmdbqueue._verbs.engine import Decode, SortOut

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_BROWSE_BYTES: Final = 1 << 18  # of items that iteration reads at a time
_SECOND: Final = 10**9  # ns
_DEATH_LOOK: Final = 0.25  # seconds between two looks of a sleeper whether others who hold leases have died
_SMALL: Final = 1 << 14  # bytes of an item that is leased on a full disk
_FEW: Final = 64  # items that may be leased on a full disk, so that they cannot use its reserve up
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper tries again what could not come back

# a record of AWAY: its key, its note
_AWAY_OVERHEAD: Final = 100  # bytes

_engines: "weakref.WeakSet[LocalEngine]" = weakref.WeakSet()


class LocalEngine:
    """The engine of one queue object on an environment."""

    environment: Environment  # once closed, what raises ClosedError

    def __init__(
        self,
        environment: Environment,
        path: str,
        name: str,
        *,
        maxsize: int = 0,
        max_bytes: int | None = None,
        max_attempts: int | None = None,
        clock: Clock = now,
    ) -> None:
        """Use an environment, which was opened at ``path``, and release it when this object is closed, or gone."""
        self.environment = environment
        self.name = name
        self.path = path
        self.maxsize = maxsize
        self.max_bytes = max_bytes
        self.max_attempts = max_attempts
        self.checksum = environment.directory.options.checksum
        self.clock = clock
        self.is_shut_down = self.is_drained = self.is_closed = False
        self.owners = Owners(environment.directory.path)
        self._release = weakref.finalize(self, _let_go, environment, self.owners)
        _engines.add(self)

    # --- items that wait

    def count(self) -> int:
        """Return how many items wait."""
        return self._view(fifo.count)

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``)."""
        limits = self.maxsize, self.max_bytes
        room = fifo.room_for(payloads)
        return self.environment.update(self.name, readers.push, payloads, limits, self.clock(), room=room)

    def append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        """Append payloads with a delay or with keys."""
        moment = self.clock()
        due = moment.wall + int(delay * _SECOND) if delay else 0
        apart = leases.Apart(moment, due, keys, self.maxsize, self.max_bytes)
        return self.environment.update(self.name, leases.push, payloads, apart, room=_room_away(payloads))

    def first(self, n: int) -> list[Entry]:
        """Return the first ``n`` entries."""
        return self._view(fifo.first, n)

    def candidates(self, n: int) -> list[Entry]:
        """Return the first ``n`` entries, durable or not."""
        return self._glance(fifo.first, n)

    def since(self, key: bytes) -> list[Entry]:
        """Return some entries behind that of ``key``."""
        return self._view(fifo.since, key, _BROWSE_BYTES)

    def take(self, n: int, least: int, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Read the first items, decode them, remove *just those*.

        If another consumer was faster the removal does nothing, and this begins anew: no item goes to two consumers,
        and one that cannot be decoded never left.
        """
        while len(entries := self.candidates(n)) >= least:
            if not entries:
                if not self.first(1):  # empty, and durably so
                    return [], []
                continue
            items = decode(entries)
            if self.remove([key for key, _ in entries]):
                return entries, items
        return None

    def remove(self, keys: list[bytes]) -> int:
        """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""
        return self.environment.update(self.name, fifo.remove, keys)

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``."""
        room = fifo.room_for([value for _, value in entries])
        self.environment.update(self.name, fifo.put_back, entries, room=room)

    def delete(self, n: int) -> int:
        """Remove the first ``n`` items."""
        return self.environment.update(self.name, fifo.delete, n)

    def clear(self) -> int:
        """Remove all items that wait."""
        return self.environment.update(self.name, fifo.clear)

    def clear_all(self) -> int:
        """Remove all items."""
        return self.environment.update(self.name, leases.clear)

    def move(self, n: int, to: "LocalEngine") -> int:
        """Move the first ``n`` items, or as many as there are, to the tail of another queue; return how many."""
        while entries := self.first(n):
            payloads = self.payloads(entries)
            keys = [key for key, _ in entries]
            target = to.name, (to.maxsize, to.max_bytes), self.clock()
            room = fifo.room_for(payloads)
            if moved := self.environment.update(self.name, readers.move, keys, payloads, target, room=room):
                return moved
        return 0

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries, found undamaged."""
        values = [value for _, value in entries]
        if not self.checksum:
            return values
        if not _format.are_intact([key[-8:] for key, _ in entries], values):
            key, value = next(each for each in entries if not _format.is_intact(each[0][-8:], each[1]))
            raise CorruptItemError(_format.number(key), value[: -_format.SEAL_SIZE])
        return _format.unsealed(values)

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""
        key, value = entry
        return _format.number(key), value[: -_format.SEAL_SIZE] if self.checksum else value

    # --- what has to come back first

    def _view(self, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, tables, *args)`` of what is on the disk, once everything that has to come back has."""
        moment = self.clock()
        found = self.environment.view(self.name, leases.look, self.owners.is_dead, moment, fn, *args)
        while isinstance(found, Overdue):
            if not self._restore(found.owners, moment):
                return self.environment.view(self.name, fn, *args)
            moment = self.clock()
            found = self.environment.view(self.name, leases.look, self.owners.is_dead, moment, fn, *args)
        return found

    def _glance(self, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Do as ``_view``, of what need not be durable yet."""
        moment = self.clock()
        found = self.environment.glance(self.name, leases.look, self.owners.is_dead, moment, fn, *args)
        while isinstance(found, Overdue):
            if not self._restore(found.owners, moment):
                return self.environment.glance(self.name, fn, *args)
            moment = self.clock()
            found = self.environment.glance(self.name, leases.look, self.owners.is_dead, moment, fn, *args)
        return found

    def _restore(self, owners: Sequence[int], moment: Moment) -> int:
        """Requeue the items of dead owners and those now due; return the count, 0 if the disk is full."""
        try:
            changed = self.environment.update(self.name, leases.restore, owners, moment, self.max_attempts)
        except Full:  # of the disk: when consumers have made room it comes back
            return 0
        self.owners.bury(owners)
        return changed

    # --- leases

    def lease(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> tuple[list[T], Leased] | None:
        """Lease the first ``n`` items, or as many as there are; None if there are none, durably."""
        while entries := self.candidates(n) or self.first(n):
            items, unreadable = sort_out(entries)
            try:
                leased = self._lease(entries, unreadable, ttl)
            except DiskFullError:
                if len(entries) == 1:
                    raise
                n = 1  # which needs next to no room
                continue
            if leased is not None and items:
                return items, leased
        return None

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        """Lease the first items, if they are just these; None if not. ``unreadable`` ones die, for those reasons."""
        environment = self.environment
        moment = self.clock()
        deadline = _deadline(moment, ttl)
        terms = leases.Terms(self.owners.join(), deadline, moment.wall, unreadable)
        room = _room_away([value for _, value in entries])
        try:
            leased = environment.update(self.name, leases.lease, entries, terms, room=room)
        except DiskFullError:
            counts = environment.glance(self.name, item_notes.counts)
            if len(entries) > 1 or len(entries[0][1]) > _SMALL or counts.leased > _FEW:
                raise
            leased = environment.update(self.name, leases.lease, entries, terms)  # from the reserve, as removals are
        self.refuse_if_closed()  # by another thread meanwhile: then the owner is dead
        if leased is None:
            return None
        token, seqs, attempts = leased
        return Leased(token, seqs, attempts, None if ttl is None else deadline / _SECOND)

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove what a lease holds, for good."""
        return self.environment.update(self.name, leases.ack, token, seqs)

    def nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        """Give back what a lease holds."""
        wall = self.clock().wall
        due = wall + int(delay * _SECOND) if delay else 0
        how = Return(wall, reason, due, self.max_attempts if max_attempts is None else max_attempts)
        return self.environment.update(self.name, leases.nack, token, seqs, how)

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Give a lease another deadline."""
        deadline = _deadline(self.clock(), ttl)
        if not self.environment.update(self.name, leases.extend, token, deadline):
            return None
        return (None if ttl is None else deadline / _SECOND,)

    def count_dead(self) -> int:
        """Return how many dead letters there are."""
        return self._view(item_notes.counts).dead

    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some dead letters from number ``seq`` on."""
        records = self._view(leases.dead, seq, _BROWSE_BYTES)
        return [((_format.pack(record.seq), record.value), record.note) for record in records]

    def requeue(self, seqs: Collection[int] | None) -> int:
        """Let dead letters wait again."""
        return self.environment.update(self.name, leases.requeue, seqs)

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters."""
        return self.environment.update(self.name, leases.bury_for_good, seqs)

    # --- readers

    def reader_create(self, name: str, where: Start) -> None:
        """Make a reader unless it is there."""
        if not self._view(readers.exists, name):
            self.environment.update(self.name, readers.create, name, where, self.clock(), room=_SMALL)

    def reader_drop(self, name: str) -> bool:
        """Remove a reader."""
        dropped = self.environment.update(self.name, readers.drop, name)
        self._trim()
        return dropped

    def reader_seek(self, name: str, where: Start) -> None:
        """Let a reader go on from another item."""
        self._glance(readers.exists, name)  # so that what is due has come
        self.environment.update(self.name, readers.seek, name, where, self.clock())
        self._trim()

    def _trim(self) -> None:
        while self.environment.update(self.name, readers.trim, self.clock()):
            pass

    def reader_first(self, name: str, n: int) -> list[Entry]:
        """Return the next ``n`` entries of a reader."""
        return self._view(readers.first, name, n)

    def reader_candidates(self, name: str, n: int) -> list[Entry]:
        """Return the next ``n`` entries of a reader, durable or not."""
        return self._glance(readers.first, name, n)

    def reader_advance(self, name: str, keys: list[bytes]) -> Move | None:
        """Let a reader pass its next items if they are just those of ``keys``."""
        return self.environment.update(self.name, readers.advance, name, keys, self.clock())

    def reader_retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if nobody has moved the reader since."""
        room = fifo.room_for([value for _, value in entries[: move.gone]])
        return self.environment.update(self.name, readers.retreat, move, entries, self.clock(), room=room)

    def reader_delete(self, name: str, n: int) -> int:
        """Let a reader pass its next ``n`` items."""
        return self.environment.update(self.name, readers.delete, name, n, self.clock())

    def reader_lag(self, name: str) -> int:
        """Return how many items a reader has not passed."""
        return self._view(readers.lag, name)

    def reader_stats(self, name: str | None) -> list[ReaderStats]:
        """Return what is known of a reader, None for all."""
        return self._view(readers.stats) if name is None else [self._view(readers.stats_of, name)]

    def retain(self, retention: _format.Retention | None) -> None:
        """Set what is kept."""
        self.environment.update(self.name, readers.retain, self.clock(), retention, room=_SMALL)
        self._trim()

    def is_crowded(self) -> bool:
        """Return whether the last move of a reader had to wait for the flush of another process."""
        return self.environment.is_crowded

    # --- waiting, and the whole

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        environment = self.environment
        environment.refuse_inside("a call would wait", "nobody else can change anything meanwhile: use timeout=0")
        return environment.bell.listen()

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed after the ticket was given, or has to come back, or for ``timeout`` s."""
        environment = self.environment
        expiry, due, owners = environment.glance(self.name, leases.next_time)
        moment = self.clock()
        if expiry != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (expiry - moment.monotonic) / _SECOND))
        if due != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (due - moment.wall) / _SECOND))
        if any(owner != self.owners.mine for owner in owners):
            timeout = min(timeout, _DEATH_LOOK)
        environment.bell.wait(ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        self.environment.bell.ring()

    def watch(self) -> None:
        """Do nothing: whoever removes items wakes those who wait, in any case."""

    def stats(self) -> Stats:
        """Return the figures of the queue, and of its directory."""
        from lmdbqueue._model.stats import of_queue  # noqa: PLC0415  (for who asks, not for who imports)

        environment = self.environment
        return self._view(of_queue, self.clock())._replace(processes=environment.processes())

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""
        if self.is_closed:
            raise ClosedError(self.path)

    def close(self) -> None:
        """Give back what is leased, and the environment."""
        environment = self.environment
        was_closed, self.is_closed = self.is_closed, True
        if was_closed:
            return
        self.environment = cast("Environment", _Closed(self.path))
        environment.bell.ring()
        if self.owners.mine:
            with suppress(QueueError):  # else who looks next finds a dead owner
                how = Return(self.clock().wall, "its queue was closed", max_attempts=self.max_attempts)
                environment.update(self.name, leases.give_up, self.owners.mine, how)
        self._release()

    def begin_anew(self) -> None:
        """Hold no leases, in a forked child, whose parent may hold some."""
        self.owners.begin_anew()


class _Closed:
    """What stands for the environment of a closed queue."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(self._path)


def _deadline(moment: Moment, ttl: float | None) -> int:
    return NEVER if ttl is None else moment.monotonic + int(ttl * _SECOND)


def _room_away(payloads: Sequence[bytes]) -> int:
    return fifo.room_for(payloads) + 3 * _AWAY_OVERHEAD * len(payloads)


def _let_go(environment: Environment, owners: Owners) -> None:
    try:
        owners.leave()
    finally:
        environment.release()


def _begin_anew_in_child() -> None:
    for engine in list(_engines):
        engine.begin_anew()


os.register_at_fork(after_in_child=_begin_anew_in_child)
