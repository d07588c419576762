"""``PostgresEngine``: the steps of the verbs, on tables of PostgreSQL.

Owns: which function of a transaction a step is. Law: each step is one call of the database; before a step tells what
is there, everything that has to come back has. Must not know: SQL, how a queue is opened.

``pop`` and ``lease`` claim the first items that nobody else has claimed, decode them, and remove or lease them, in one
transaction. So the user's ``loads`` runs inside of it, other than with LMDB: there everybody would wait, here nobody
does, since what is claimed is passed over. What cannot be decoded never left.
"""

import os
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from lmdbqueue import _format
from lmdbqueue._errors import ClosedError, DecodeError, GoneError, QueueError
from lmdbqueue._format import Note, Retention
from lmdbqueue._values import Entry, Leased, ReaderStats, Start, Stats
from lmdbqueue._verbs.engine import Decode, SortOut
from lmdbqueue.postgres import _away, _items, _queues, _readers
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._readers import Move
from lmdbqueue.postgres._session import Step

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_DEATH_LOOK: Final = 0.25  # seconds between two looks whether others who hold leases have died
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper tries again what could not come back

_engines: "weakref.WeakSet[PostgresEngine]" = weakref.WeakSet()


class PostgresEngine:
    """The engine of one queue object on a database."""

    database: Database  # once closed, what raises ClosedError

    def __init__(
        self,
        database: Database,
        name: str,
        *,
        maxsize: int = 0,
        max_attempts: int | None = None,
        patience: float = 30.0,
    ) -> None:
        """Use a database, which is released when this object is closed, or gone."""
        self.database = database
        self.name = name
        self.path = database.path
        self.maxsize = maxsize
        self.max_attempts = max_attempts
        self.patience = patience
        self.is_shut_down = self.is_drained = self.is_closed = False
        self.owner = Owner(partial(database.entered, patience))
        self._release = weakref.finalize(self, _let_go, database, self.owner)
        self._deaths_seen = 0.0  # when it was looked for dead owners last
        try:
            number = database.view(patience, _queues.find, name)
            if number is None:
                number = database.run(patience, _queues.make, name)
            self.place = Place(number, database.sql.channel(number))
            if maxsize > 0:
                database.run(patience, _queues.watch, self.place)
        except BaseException:
            self._release()
            raise
        _engines.add(self)

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        return self._figures().waiting

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""
        database = self.database
        if self.maxsize > 0 or blocks.current() is not None:
            numbers = self.append_apart(payloads, 0.0, [b""] * len(payloads))
            return range(numbers[0], numbers[-1] + 1)
        values: dict[str, Any] = {"queue": self.place.id, "channel": self.place.channel, "n": len(payloads)}
        if len(payloads) == 1:
            row = database.once(self.patience, _items.PUSH_ONE, values | {"payload": payloads[0]})
        else:
            row = database.once(self.patience, _items.PUSH, values | {"payloads": payloads})
        if row is None:  # it is gone, or more than a push has to be done
            numbers = self.append_apart(payloads, 0.0, [b""] * len(payloads))
            return range(numbers[0], numbers[-1] + 1)
        return range(row[0], row[0] + len(payloads))

    def append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        """Append payloads that wait for ``delay`` s, and whose keys (b"" for none) no other item may have."""
        apart = _items.Apart(keys, delay, self.maxsize)
        numbers = self.database.run(self.patience, _readers.push, self.place, payloads, apart)
        if numbers is None:
            raise GoneError(self.path, self.name)
        return numbers

    def first(self, n: int) -> list[Entry]:
        """Return the first ``n`` entries, or as many as there are."""
        return self._seen(n, _items.first, n)

    def candidates(self, n: int) -> list[Entry]:
        """Do as ``first``, for entries that are to be taken: they need not be durable yet."""

        def glance(place: Place, n: int, *, deaths: bool) -> Found:
            """Claim and let go at once: what others have claimed is not there."""
            found: Found = self.database.claim(self.patience, partial(_items.claim, deaths=deaths), place, n)
            return found

        return self._found(n, glance, n)

    def since(self, place: bytes) -> list[Entry]:
        """Return some entries behind that of ``key``, b"" for all; none only if there are none."""
        return self._seen(1, _items.since, place)

    def _seen(self, wanted: int, read: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``read``, of a step, finds, once everything that has to come back has."""

        def look(place: Place, *args: Any, deaths: bool) -> Found:
            found: Found = self.database.view(self.patience, partial(read, deaths=deaths), place, *args)
            return found

        return self._found(wanted, look, *args)

    def _found(self, wanted: int, look: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``look`` finds, once everything that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            found = look(self.place, *args, deaths=deaths)
            if not found.is_there:
                raise GoneError(self.path, self.name)
            if not self._has_to_look_again(found, deaths, wanted):
                return found.entries
            deaths = True

    def _has_to_look_again(self, found: Found, deaths: bool, wanted: int) -> bool:
        """Let come back what has to; tell whether to look again. Who finds too little looks for the dead, too."""
        if found.is_overdue:
            return self._restore(deaths=True) > 0
        return not deaths and len(found.entries) < wanted

    def _is_time_to_look(self) -> bool:
        now = time.monotonic()
        is_time = now - self._deaths_seen >= _DEATH_LOOK
        if is_time:
            self._deaths_seen = now
        return is_time

    def _restore(self, *, deaths: bool) -> int:
        restore = partial(_away.restore, deaths=deaths)
        return self.database.run(self.patience, restore, self.place, self.max_attempts)

    def _restored(self) -> None:
        """Let everything come back that has to, for a verb that does not look itself."""
        self._deaths_seen = 0.0  # so that it looks for the dead, too
        self._seen(0, _items.status)

    def _figures(self) -> _away.Figures:
        self._restored()
        found = self.database.view(self.patience, _away.figures, self.place)
        if found is None:
            raise GoneError(self.path, self.name)
        return found

    # --- taking

    def take(self, n: int, least: int, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Claim the first items that nobody else has claimed, decode them, and remove them, as one transaction."""

        def take(step: Step, deaths: bool) -> tuple[Found, list[T] | None]:
            found = _items.take(step, self.place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or len(found.entries) < max(1, least):
                return found, None
            items = decode(found.entries)
            _items.keep(step, self.place, found)
            return found, items

        found, items = self._claimed(n, take, self.database.attempt)
        if items is not None:
            return found.entries, items
        return ([], []) if least == 0 else None

    def lease(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> tuple[list[T], Leased] | None:
        """Claim the first items that nobody else has claimed, decode them, and lease them, as one transaction."""
        owner = 0

        def lease(step: Step, deaths: bool) -> tuple[Found, tuple[list[T], Leased] | None]:
            found = _items.claim(step, self.place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or not found.entries:
                return found, None
            items, unreadable = sort_out(found.entries)
            terms = _away.Terms(owner, ttl, unreadable)
            token, seqs, attempts = _away.lease(step, self.place, found.entries, terms)
            return found, (items, Leased(token, seqs, attempts, deadline))

        while True:
            self.refuse_if_closed()  # before a connection is opened, which nobody would close
            database = self.database
            owner = self.owner.join()
            deadline = None if ttl is None else time.monotonic() + ttl
            _found, leased = self._claimed(n, lease, database.claim)
            if leased is None:
                return None
            if self.is_closed:  # by another thread meanwhile
                self.owner.leave()
            self.refuse_if_closed()
            if leased[0]:
                return leased

    def _claimed(
        self,
        n: int,
        fn: Callable[[Step, bool], tuple[Found, R | None]],
        do: Callable[[float, Callable[[Step, bool], tuple[Found, R | None]], bool], tuple[Found, R | None]],
    ) -> tuple[Found, R | None]:
        """Return what ``fn``, which ``do`` does, claims and makes of it, once all that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            try:
                found, result = do(self.patience, fn, deaths)
            except DecodeError:
                self._tell()  # others have passed it over meanwhile
                raise
            if not found.is_there:
                raise GoneError(self.path, self.name)
            if result is not None:
                return found, result
            if not self._has_to_look_again(found, deaths, n):
                if found.entries:
                    self._tell()
                return found, None
            deaths = True

    def _tell(self) -> None:
        self.database.view(self.patience, _items.tell, self.place)

    # --- leases

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove what a lease holds, None for all, for good; return which, None if the lease is gone."""
        return self.database.run(self.patience, _away.ack, self.place, token, seqs)

    def nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        """Give back what a lease holds, None for all; return which, None if the lease is gone."""
        how = _away.Return(reason, delay, self.max_attempts if max_attempts is None else max_attempts)
        return self.database.run(self.patience, _away.nack, self.place, token, seqs, how)

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Let a lease end in ``ttl`` s; return its deadline, None if it is gone."""
        deadline = None if ttl is None else time.monotonic() + ttl
        if not self.database.run(self.patience, _away.extend, self.place, token, ttl):
            return None
        return (deadline,)

    def count_dead(self) -> int:
        """Return how many there are."""
        return self._figures().dead

    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some dead letters from number ``seq`` on."""
        self._restored()
        return self.database.view(self.patience, _away.dead, self.place, seq)

    def requeue(self, seqs: Collection[int] | None) -> int:
        """Let dead letters wait again, None for all; return how many there were."""
        return self.database.run(self.patience, _away.requeue, self.place, seqs)

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters, None for all; return how many there were."""
        return self.database.run(self.patience, _away.forget, self.place, seqs)

    # --- readers

    def reader_create(self, name: str, where: Start) -> None:
        """Make a reader unless it is there."""
        self._restored()
        if self.database.run(self.patience, _readers.create, self.place, name, where) is None:
            raise GoneError(self.path, self.name)

    def reader_drop(self, name: str) -> bool:
        """Remove a reader; return whether it was there."""
        return self.database.run(self.patience, _readers.drop, self.place, name)

    def reader_seek(self, name: str, where: Start) -> None:
        """Let a reader go on from another item."""
        self._restored()
        self._moved(name, _readers.seek, name, where)

    def reader_first(self, name: str, n: int) -> list[Entry]:
        """Return the next ``n`` entries of a reader."""

        def look(place: Place, *, deaths: bool) -> Found:
            found: Found = self.database.view(self.patience, partial(_readers.first, deaths=deaths), place, name, n)
            if not found.is_there:
                raise self._gone(name)
            return found

        return self._found(n, look)

    def reader_candidates(self, name: str, n: int) -> list[Entry]:
        """Return the next ``n`` entries of a reader: what is seen is durable."""
        return self.reader_first(name, n)

    def reader_advance(self, name: str, keys: list[bytes]) -> Move | None:
        """Let a reader pass its next items if they are just those of ``keys``, else nothing, and return None."""
        move = self._moved(name, _readers.advance, name, keys) if keys else None
        return move if move and move.passed else None

    def reader_retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if nobody has moved the reader since; return whether it was undone."""
        return self._moved(move.reader, _readers.retreat, move, entries)

    def reader_delete(self, name: str, n: int) -> int:
        """Let a reader pass its next ``n`` items, or as many as there are; return how many."""
        self._restored()
        return self._moved(name, _readers.delete, name, n)

    def _moved(self, name: str, move: Callable[[Step, Place, *Ts], R | None], *args: *Ts) -> R:
        moved = self.database.run(self.patience, move, self.place, *args)
        if moved is None:
            raise self._gone(name)
        return moved

    def reader_lag(self, name: str) -> int:
        """Return how many items a reader has not passed."""
        return self.reader_stats(name)[0].lag

    def reader_stats(self, name: str | None) -> list[ReaderStats]:
        """Return what is known of a reader, None for all."""
        self._restored()
        found = self.database.view(self.patience, _readers.stats, self.place, name)
        if name is not None and not found:
            raise self._gone(name)
        return found

    def retain(self, retention: Retention | None) -> None:
        """Set what is kept, whoever has passed it."""
        if not self.database.run(self.patience, _readers.retain, self.place, retention):
            raise GoneError(self.path, self.name)

    def _gone(self, name: str) -> GoneError:
        return GoneError(self.path, f"reader {name} of {self.name}")

    # --- removing

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``: the items have their old numbers again, whatever has left after them."""
        self.database.run(self.patience, _items.put_back, self.place, entries)

    def delete(self, n: int) -> int:
        """Remove the first ``n`` items, or as many as there are; return how many went."""
        self._restored()
        return self.database.run(self.patience, _items.delete, self.place, n)

    def clear(self) -> int:
        """Remove all items that wait."""
        self._restored()
        return self.database.run(self.patience, _items.clear, self.place)

    def clear_all(self) -> int:
        """Remove all items."""
        return self.database.run(self.patience, _away.clear, self.place)

    def move(self, n: int, to: "PostgresEngine") -> int:
        """Move the first ``n`` items, or as many as there are, to the tail of another queue; return how many."""
        self._restored()
        moved = self.database.run(self.patience, _readers.move, self.place, to.place, n, to.maxsize)
        if moved is None:
            raise GoneError(self.path, to.name)
        return moved

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries, found undamaged (``CorruptItemError``)."""
        return [payload for _, payload in entries]

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""
        return _format.number(entry[0]), entry[1]

    # --- waiting

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""
        if self.is_closed:
            raise ClosedError(self.path)

    def refuse_if_gone(self) -> None:
        """Raise ``GoneError`` if the queue was dropped."""
        if not self.database.view(self.patience, partial(_items.status, deaths=False), self.place).is_there:
            raise GoneError(self.path, self.name)

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        database = self.database
        blocks.refuse_inside(self.path, "a call would wait", "what was taken in it is locked meanwhile: use timeout=0")
        return database.ear.listen(self.place.channel)

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed after the ticket was given, or for ``timeout`` s, or a while."""
        database = self.database
        seconds, has_others = database.view(self.patience, _away.next_time, self.place, self.owner.known)
        if seconds is not None:
            timeout = min(timeout, max(_FAILED_LOOK, seconds))
        if has_others:
            timeout = min(timeout, _DEATH_LOOK)
        database.ear.wait(self.place.channel, ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        self.database.ear.ring()

    def watch(self) -> None:
        """Let whoever removes items tell, from now on."""
        self.database.run(self.patience, _queues.watch, self.place)

    def is_crowded(self) -> bool:
        """Return False: no move waits for the flush of another process."""
        return False

    # --- the whole

    def stats(self) -> Stats:
        """Return the figures of the queue."""
        tail, waiting, leased, delayed, dead, head = self._figures()
        removed = tail - waiting - leased - delayed - dead
        readers = tuple(self.reader_stats(None))
        return Stats(
            waiting, leased, delayed, dead, pushed=tail, removed=removed, head=head, tail=tail, readers=readers
        )

    def close(self) -> None:
        """Give back what is leased, and the database."""
        database = self.database
        was_closed, self.is_closed = self.is_closed, True
        if was_closed:
            return
        self.database = cast("Database", _Closed(self.path))
        database.ear.ring()
        if self.owner.known:
            how = _away.Return("its queue was closed", max_attempts=self.max_attempts)
            with suppress(QueueError):  # else who looks next finds a dead owner
                database.run(0.0, _away.give_up, self.place, self.owner.known, how)
        self._release()

    def begin_anew(self) -> None:
        """Hold no leases, in a forked child, whose parent may hold some."""
        self.owner.begin_anew()


class _Closed:
    """What stands for the database of a closed queue."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(self._path)


def _let_go(database: Database, owner: Owner) -> None:
    try:
        owner.leave()
    finally:
        database.release()


def _begin_anew_in_child() -> None:
    for engine in list(_engines):
        engine.begin_anew()


os.register_at_fork(after_in_child=_begin_anew_in_child)
