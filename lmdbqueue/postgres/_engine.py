"""``PostgresEngine``: the steps of the verbs, on tables of PostgreSQL.

Owns: which function of a transaction a step is. Law: each step is one call of the database; before a step tells what
is there, everything that has to come back has. Must not know: SQL, how a queue is opened.

``pop`` and ``lease`` claim the first items that nobody else has claimed, decode them, and remove or lease them, in one
transaction. So the user's ``loads`` runs inside of it, other than with LMDB: there everybody would wait, here nobody
does, since what is claimed is passed over. What cannot be decoded never left.
"""

import sys
import time
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from lmdbqueue._errors import ClosedError, DecodeError, GoneError, OptionError, QueueError
from lmdbqueue._format import Note, Retention, Trailer
from lmdbqueue._host.fork import at_fork
from lmdbqueue._values import Entry, Leased, Push, Pushed, ReaderStats, Start, Stats
from lmdbqueue._verbs.engine import Decode, SortOut, fitting, within
from lmdbqueue.postgres import _away, _items, _pushing, _queues, _readers, _removal, _taking
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._items import Ahead, Found, Place
from lmdbqueue.postgres._ledger import Settled
from lmdbqueue.postgres._owner import Holder, Token
from lmdbqueue.postgres._readers import Move
from lmdbqueue.postgres._step import Step
from lmdbqueue.postgres._taking import Taken

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AGAIN: Final = 3  # tries of a push as one statement
_BLIND: Final = 16  # pops that do not look ahead after one whose item was taken by others
_NO_NOTES: Final = (0, None, None, None, None)
_LAST_PATIENCE: Final = 1.0  # seconds, of an object that is closed and holds leases
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
        is_relaxed: bool = False,
    ) -> None:
        """Use a database, which is released when this object is closed, or gone."""
        self.database = database
        self.name = name
        self.path = database.path
        self.maxsize = maxsize
        self.max_attempts = max_attempts
        self.patience = patience
        self.is_shut_down = self.is_drained = self.is_closed = False
        self.holder = Holder(database.owner)
        self._release = weakref.finalize(self, _let_go, database, self.holder)
        self._deaths_seen = 0.0  # when it was looked for dead owners last
        self._ahead: Ahead | None = None  # what was first when the last item left; each pop takes it, or drops it
        self._misses = 0  # pops for which it is not worth to look ahead, since others take items, too
        self._page = b""  # where the row of the tail is
        try:
            known = database.view(patience, _queues.find, name)
            if known is None:
                known = database.run(patience, partial(_queues.make, is_relaxed=is_relaxed), name)
            refuse_other_order(database.path, stored=known.is_relaxed, given=is_relaxed)
            self.place = self.holder.place = Place(known.id, database.sql.channel(known.id))
            self._sequence = _items.sequence(database.sql, known.id) if is_relaxed else ""
        except BaseException:
            self._release()
            raise
        _engines.add(self)

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        return self._figures().waiting

    def owed(self) -> int:
        """Return how many items ``maxsize`` counts: those that wait."""
        return self.count()

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""
        for _ in range(_AGAIN):
            if self.maxsize > 0 or blocks.current() is not None:
                break
            if (numbers := self._append_at_once(payloads)) is not None:
                return numbers
        start = self.append_apart(payloads, Push())[0].seq
        return range(start, start + len(payloads))

    def _append_at_once(self, payloads: Sequence[bytes]) -> range | None:
        """Append as one statement; None: more than that has to be done, or somebody has renewed the tail."""
        place, n, size = self.place, len(payloads), sum(map(len, payloads))
        values: dict[str, Any] = {"n": n, "size": size, "class": 0}
        if n == 1:
            refuse_large(payloads[0])
            values["payload"] = payloads[0]
            statement = _pushing.PUSH_ONE_RELAXED if self._sequence else _pushing.PUSH_ONE
        elif size + 4 * n > _items.MAX_SIZE or (self._sequence and n > 1 << _pushing.BLOCK):
            return None
        else:
            values["payloads"] = payloads
            statement = _pushing.PUSH_RELAXED if self._sequence else _pushing.PUSH
        if self._sequence:
            values["sequence"] = self._sequence
        rows = self.database.once(self.patience, statement, *place, values, self._told)
        if isinstance(rows, Settled):
            start = rows.result
            assert start is not None  # so the statement notes it
        elif not rows:
            return None
        else:
            start, _, tail, _ = rows[0]
            if tail is not None and tail[:4] != self._page:
                self._renew_tail(tail[:4])
        return range(start, start + n)

    @staticmethod
    def _told(rows: list[Any]) -> bool:
        """Return whether a push says that somebody sleeps."""
        return bool(rows) and rows[0][1]

    def _renew_tail(self, page: bytes) -> None:
        """Replace the row of the tail when it has left its page, since no old version of it can be pruned."""
        before, self._page = self._page, page
        if before:
            self._page = b""
            self.database.alone(self.patience, _pushing.RENEW_TAIL, {"queue": self.place.id})

    def append_apart(self, payloads: Sequence[bytes], how: Push) -> list[Pushed]:
        """Append payloads with a delay, unique keys, an expiry, headers or a priority; all or none (``Full``)."""
        for payload in payloads:
            refuse_large(payload)
        pushed = self.database.run(self.patience, _readers.push, self.place, payloads, how, self.maxsize)
        if pushed is None:
            raise GoneError(self.path, self.name)
        return pushed

    def find(self, key: bytes) -> int | None:
        """Return the number of the item with a unique key."""
        self._restored()
        return self.database.view(self.patience, _items.find, self.place, key)

    def cancel(self, key: bytes) -> bool:
        """Remove the item with a unique key, if it waits or is delayed."""
        self._restored()
        return self.database.run(self.patience, _removal.cancel, self.place, key)

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the first ``n`` entries, or as many as there are; of at most so many payload bytes, but always one."""
        if max_bytes is not None:
            return within(self.first, _size, n, max_bytes)
        return self._seen(n, _items.first, n)

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Do as ``first``, for entries that are to be taken: they need not be durable yet."""
        if max_bytes is not None:
            return within(self.candidates, _size, n, max_bytes)

        def glance(place: Place, n: int, *, deaths: bool) -> Found:
            """Claim and let go at once: what others have claimed is not there."""
            found: Found = self.database.view(self.patience, partial(_items.glance, deaths=deaths), place, n)
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

    def take(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Claim the first items that nobody else has claimed, decode them, and remove them, as one transaction.

        One item that was seen ahead, when the one before it left, is decoded first and removed by one statement. Where
        fewer can be decoded than were claimed, or more were claimed than fit, all is undone, and done again for those.
        """
        if max_bytes is not None:
            return self.take(self._that_fit(n, max_bytes), least, partial(_fitting, decode, max_bytes))
        if n == 1 and (ahead := self._ahead) is not None and blocks.current() is None:
            self._ahead = None
            if (taken := self._take_known(ahead, decode)) is not None:
                return taken
        looks_ahead = n == 1 and self._misses == 0
        self._misses = max(0, self._misses - 1)

        def take(step: Step, deaths: bool) -> tuple[Found, list[T] | None]:
            found = _taking.take(step, self.place, n, deaths=deaths, looks_ahead=looks_ahead)
            if not found.is_there or found.is_overdue or len(found.entries) < max(1, least):
                return found, None
            items = decode(found.entries)
            if len(items) == len(found.entries):
                _taking.keep(step, self.place, found)
            return found, items

        found, items = self._claimed(n, take)
        if items is None:
            return ([], []) if least == 0 else None
        if len(items) < len(found.entries):
            return self.take(len(items), min(least, len(items)), decode)
        self._ahead = found.ahead
        return found.entries, items

    def _take_known(self, ahead: Ahead, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Take the item that was seen ahead, if it is the first; so it was decoded before it leaves."""
        entry = Taken((_items.pack(ahead.seq), ahead.payload))
        try:
            items = decode([entry])
        except DecodeError:
            return None
        deaths = self._is_time_to_look()
        statement = _taking.TAKE_KNOWN if deaths else _taking.TAKE_KNOWN_NOW
        values = {
            "seq": ahead.seq,
            "version": ahead.version,
            "size": len(ahead.payload),
            "deaths": deaths,
        }
        rows = self.database.once(self.patience, statement, *self.place, values, _is_awaited)
        if isinstance(rows, Settled):
            entry.notes = _NO_NOTES
            return [entry], items
        if not rows or rows[0][0] is None:
            self._misses = _BLIND
            return None
        (row,) = rows
        entry.notes = row[:5]
        if row[7] is not None:
            self._ahead = Ahead(*row[7:10])
        return [entry], items

    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease the first items that nobody else has claimed, by one statement; what cannot be decoded dies then.

        What does not fit, since others were faster than the look at what does, is given back at once.
        """
        n = self._that_fit(n, max_bytes)
        deaths = self._is_time_to_look()
        while True:
            self.refuse_if_closed()  # before a connection is opened, which nobody would close
            database, place = self.database, self.place
            deadline = None if ttl is None else time.monotonic() + ttl
            token = self.holder.token()
            values = {"n": n, "ttl": ttl, "lease": token, "deaths": deaths}
            if blocks.current() is not None:
                found = database.run(self.patience, _away.lease, place, values)
            else:
                self._give_back_doubtful()
                try:
                    found = _away.claimed(self._leased(values, is_short=n == 1 and not deaths))
                except BaseException:
                    self.holder.doubtful.append(token)
                    raise
            if not found.is_there:
                raise GoneError(self.path, self.name)
            if not found.entries:
                if self._has_to_look_again(Found([], is_overdue=found.is_overdue), deaths, n):
                    deaths = True
                    continue
                return None
            if self.is_closed:  # by another thread meanwhile
                how = _away.Return("its queue was closed", max_attempts=self.max_attempts)
                database.run(0.0, _away.give_up, place, self.holder.number, how)
            self.refuse_if_closed()
            found = self._without_surplus(token, found, max_bytes)
            if (lease := self._lease_of(token, found, deadline, sort_out)) is not None:
                return lease

    def _leased(self, values: dict[str, Any], *, is_short: bool) -> list[Any]:
        """Lease the first items; return the rows that say which."""
        database, place = self.database, self.place
        statement = _away.LEASE_ONE if is_short else _away.LEASE if values["deaths"] else _away.LEASE_NOW
        rows = database.once(self.patience, statement, *place, values)
        if isinstance(rows, Settled):
            return database.view(self.patience, _away.held, place, values["lease"])
        return rows if rows or not is_short else self._leased(values, is_short=False)

    def _lease_of(
        self, token: Token, found: _away.Claimed, deadline: float | None, sort_out: SortOut[T]
    ) -> tuple[list[T], Leased] | None:
        """Return the lease of what was claimed; what cannot be decoded is dead. None if nothing can."""
        items, unreadable = sort_out(found.entries)
        seqs = [_items.number(key) for key, _ in found.entries]
        attempts = found.attempts
        if unreadable:
            reasons = {_items.number(key): reason for key, reason in unreadable.items()}
            self.database.run(self.patience, _away.bury, self.place, token, reasons)
            attempts = [each for seq, each in zip(seqs, attempts, strict=True) if seq not in reasons]
            seqs = [seq for seq in seqs if seq not in reasons]
        token.seqs = seqs
        entries = [entry for entry in found.entries if entry[0] not in unreadable]
        return (items, Leased(token, seqs, attempts, deadline, entries)) if items else None

    def _that_fit(self, n: int, max_bytes: int | None) -> int:
        """Return how many of the first ``n`` items fit, at least one."""
        return n if max_bytes is None else len(self.candidates(n, max_bytes)) or 1

    def _without_surplus(self, token: Token, found: _away.Claimed, max_bytes: int | None) -> _away.Claimed:
        """Give back what does not fit; return the rest."""
        if max_bytes is None:
            return found
        fits = len(fitting(found.entries, _size, max_bytes))
        surplus = [_items.number(key) for key, _ in found.entries[fits:]]
        if surplus:
            how = _away.Return("it did not fit into a batch")
            self.database.run(self.patience, _away.nack, self.place, token, surplus, how)
        return found._replace(entries=found.entries[:fits], attempts=found.attempts[:fits])

    def _give_back_doubtful(self) -> None:
        """Give back what leases hold of which this object has never heard whether they were given."""
        doubtful, self.holder.doubtful = self.holder.doubtful, []
        if doubtful:
            try:
                self.database.run(self.patience, _away.give_back_doubtful, self.place, doubtful)
            except BaseException:
                self.holder.doubtful += doubtful
                raise

    def _claimed(self, n: int, fn: Callable[[Step, bool], tuple[Found, R | None]]) -> tuple[Found, R | None]:
        """Return what ``fn`` claims and makes of it, once all that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            try:
                found, result = self.database.attempt(self.patience, self.place.id, fn, deaths)
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

    def trailers(self, entries: Sequence[Entry]) -> list[Trailer]:
        """Return when each was pushed, and its headers; those of an item that has left are missing."""
        known = self.database.view(
            self.patience, _items.trailers, self.place, [_items.number(key) for key, _ in entries]
        )
        return [known.get(_items.number(key), Trailer(0)) for key, _ in entries]

    # --- leases

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove what a lease holds, None for all, for good; return which, None if the lease is gone."""
        wanted = _wanted(token, seqs)
        if blocks.current() is None and wanted:
            database, place = self.database, self.place
            is_one = len(wanted) == 1
            statement = _away.ACK_ONE if is_one else _away.ACK
            values: dict[str, Any] = {"seqs": wanted, "leases": [token] * len(wanted)}
            if is_one:
                values = {"seq": wanted[0], "lease": token}
            rows = database.once(self.patience, statement, *place, values, _is_ack_awaited)
            if isinstance(rows, Settled):
                return sorted(set(wanted).difference(database.view(self.patience, _away.still_there, place, wanted)))
            settled: list[int] | None = rows[0][0] if rows else None
            if settled or (rows and not rows[0][2]):
                return settled
        return self.database.run(self.patience, _away.ack, self.place, token, wanted) or None

    def nack(
        self,
        token: int,
        seqs: Collection[int] | None,
        delay: float,
        reason: str,
        max_attempts: int | None,
        trace: str = "",
    ) -> list[int] | None:
        """Give back what a lease holds, None for all; return which, None if the lease is gone."""
        how = _away.Return(reason, delay, self.max_attempts if max_attempts is None else max_attempts, trace)
        return self.database.run(self.patience, _away.nack, self.place, token, _wanted(token, seqs), how) or None

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Let a lease end in ``ttl`` s; return its deadline, None if it is gone."""
        deadline = None if ttl is None else time.monotonic() + ttl
        if not self.database.run(self.patience, _away.extend, self.place, token, _wanted(token, None), ttl):
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

    def reader_first(self, name: str, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries of a reader; of at most so many payload bytes, but always one."""
        if max_bytes is not None:
            return within(partial(self.reader_first, name), _size, n, max_bytes)

        def look(place: Place, *, deaths: bool) -> Found:
            found: Found = self.database.view(self.patience, partial(_readers.first, deaths=deaths), place, name, n)
            if not found.is_there:
                raise self._gone(name)
            return found

        return self._found(n, look)

    def reader_candidates(self, name: str, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries of a reader: what is seen is durable."""
        return self.reader_first(name, n, max_bytes)

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
        return GoneError(self.path, self.name, name)

    # --- removing

    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number, if it waits; return whether it did."""
        self._restored()
        return self.database.run(self.patience, _removal.delete_item, self.place, seq)

    def dead_letter(self, seq: int, reason: str) -> bool:
        """Let the item of this number be a dead letter, if it waits; return whether it did."""
        self._restored()
        return self.database.run(self.patience, _away.bury_item, self.place, seq, reason)

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``: the items have their old numbers again, whatever has left after them."""
        self.database.run(self.patience, _taking.put_back, self.place, entries)

    def delete(self, n: int) -> int:
        """Remove the first ``n`` items, or as many as there are; return how many went."""
        self._restored()
        return self.database.run(self.patience, _removal.delete, self.place, n)

    def clear(self) -> int:
        """Remove all items that wait."""
        self._restored()
        return self.database.run(self.patience, _removal.clear, self.place)

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
        return _items.number(entry[0]), entry[1]

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
        seconds, has_others = database.view(self.patience, _away.next_time, self.place, self.holder.number)
        if seconds is not None:
            timeout = min(timeout, max(_FAILED_LOOK, seconds))
        if has_others:
            timeout = min(timeout, _DEATH_LOOK)
        database.ear.wait(self.place.channel, ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        self.database.ear.ring()

    def watch(self) -> None:
        """Do nothing: whoever removes items tells whoever sleeps."""

    def is_crowded(self) -> bool:
        """Return False: no move waits for the flush of another process."""
        return False

    # --- the whole

    def stats(self) -> Stats:
        """Return the figures of the queue."""
        found = self._figures()
        removed = found.pushed - found.waiting - found.leased - found.delayed - found.dead
        readers = tuple(self.reader_stats(None))
        return Stats(**found._asdict(), removed=removed, readers=readers)

    def close(self) -> None:
        """Give back what is leased, and the database."""
        database = self.database
        was_closed, self.is_closed = self.is_closed, True
        if was_closed:
            return
        self.database = cast("Database", _Closed(self.path))
        database.ear.ring()
        if self.holder.number:
            how = _away.Return("its queue was closed", max_attempts=self.max_attempts)
            with suppress(QueueError):  # else whoever looks when the process is gone finds a dead owner
                database.run(_LAST_PATIENCE, _away.give_up, self.place, self.holder.number, how)
            self.holder.begin_anew()
        self._release()

    def begin_anew(self) -> None:
        """Hold no leases, in a forked child, whose parent may hold some."""
        self.holder.begin_anew()
        self._ahead = None


def _size(entry: Entry) -> int:
    return len(entry[1])


def _fitting(decode: Decode[T], max_bytes: int, entries: list[Entry]) -> list[T]:
    """Return the items of those entries that fit."""
    return decode(fitting(entries, _size, max_bytes))


class _Closed:
    """What stands for the database of a closed queue."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(self._path)


def _let_go(database: Database, holder: Holder) -> None:
    """Give back what a forgotten object held, and let go of the database."""
    if not holder.number or sys.is_finalizing():
        database.release()
        return
    start_new_thread(_give_up, (database, holder))  # not here: this may interrupt anything, with any lock


def _give_up(database: Database, holder: Holder) -> None:
    with suppress(QueueError):
        how = _away.Return("its queue was forgotten")
        database.run(_LAST_PATIENCE, _away.give_up, holder.place, holder.number, how)
    database.release()


def refuse_other_order(path: str, *, stored: bool, given: bool) -> None:
    """Raise ``OptionError`` if a queue was made with another order."""
    if stored != given:
        order = {True: "relaxed", False: "commit"}
        raise OptionError(path, "order", order[stored], order[given])


def refuse_large(payload: bytes) -> None:
    """Raise ``ValueError`` for what no row of the server's can have."""
    if len(payload) > _items.MAX_SIZE:
        message = f"an item of {len(payload):,} bytes; PostgreSQL stores at most {_items.MAX_SIZE:,}"
        raise ValueError(message)


def _wanted(token: int, seqs: Collection[int] | None) -> list[int]:
    """Return which items of a lease are meant: those of ``seqs``, or all that it was given."""
    return sorted(token.seqs if seqs is None and isinstance(token, Token) else seqs or ())


def _is_awaited(rows: list[Any]) -> bool:
    return bool(rows) and rows[0][5] and rows[0][0] is not None


def _is_ack_awaited(rows: list[Any]) -> bool:
    return bool(rows) and rows[0][3] and rows[0][0] is not None


def _begin_anew_in_child() -> None:
    for engine in list(_engines):
        engine.begin_anew()


at_fork("PostgreSQL engines", in_child=_begin_anew_in_child)
