"""``PostgresEngine``: the steps of the verbs, on tables of PostgreSQL.

Owns: the function of a transaction behind each step. Law: each step is one call of the database. Must not know: SQL,
how a queue is opened.
"""

import time
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from lmdbqueue._base.errors import ClosedError, GoneError, OptionError, QueueError
from lmdbqueue._base.format import Note, Retention, Trailer
from lmdbqueue._base.values import Entry, Leased, Nacked, Push, Pushed, ReaderStats, Stats
from lmdbqueue._host import departures
from lmdbqueue._host.fork import at_fork
from lmdbqueue._verbs.engine import Decode, Relayed, Request, SortOut
from lmdbqueue._verbs.engine import within as up_to
from lmdbqueue._verbs.serializers import refuse_other_serializer
from lmdbqueue.postgres import _away, _claims, _dead, _items, _queues, _readers, _removal
from lmdbqueue.postgres._at_once import Pushes, Takes, refuse_large
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._hold import DEATH_LOOK, Hold, size_of
from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._leasing import Leases, wanted
from lmdbqueue.postgres._owner import Holder
from lmdbqueue.postgres._reader_engine import PostgresReaderEngine
from lmdbqueue.postgres._silence import as_one_call, hurry, over_at, within

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AGAIN: Final = 3  # attempts of a push by one statement
_LAST_PATIENCE: Final = 1.0  # seconds, for closing an object that holds leases
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper retries to restore items that could not return

_engines: "weakref.WeakSet[PostgresEngine]" = weakref.WeakSet()


class PostgresEngine:
    """The engine of one queue object on a database."""

    def __init__(
        self,
        database: Database,
        name: str,
        serializer: str = "",
        *,
        maxsize: int = 0,
        max_attempts: int | None = None,
        buries_expired: bool = False,
        patience: float = 30.0,
        is_relaxed: bool = False,
    ) -> None:
        """Use a database, which is released when this object is closed or collected."""
        self._hold = Hold(database, name, patience, max_attempts)
        self._hold.buries_expired = buries_expired
        self.name = name
        self.path = database.path
        self.maxsize = maxsize
        self.is_shut_down = self.is_drained = self.is_closed = False
        self.claims: dict[int, int] = {}  # a call that is interrupted here does not know what it has leased
        self._release = weakref.finalize(self, departures.defer, _let_go, database, self._hold.holder)
        try:
            known = database.view(patience, _queues.find, name)
            if known is None:
                make = partial(_queues.make, is_relaxed=is_relaxed, serializer=serializer)
                known = database.run(patience, make, name)
            refuse_other_order(database.path, name, stored=known.is_relaxed, given=is_relaxed)
            refuse_other_serializer(database.path, name, known.serializer, serializer)
            place = _claims.place_of(known.id, database.uuid, database.sql.channel(known.id))
            self._hold.place = self._hold.holder.place = place
            sequence = _items.sequence(database.sql, known.id) if is_relaxed else ""
        except BaseException:
            self._release.detach()
            database.release()
            raise
        self._pushes = Pushes(self._hold, sequence)
        self._takes = Takes(self._hold)
        self._leases = Leases(self._hold)
        _engines.add(self)

    @property
    def database(self) -> Database:
        """The database; after ``close()``, an object that raises ``ClosedError``."""
        return self._hold.database

    @property
    def place(self) -> Place:
        """The queue."""
        return self._hold.place

    @property
    def patience(self) -> float:
        """Seconds for which a call continues while the server is unreachable."""
        return self._hold.patience

    @property
    def is_away(self) -> bool:
        """Whether a call is waiting for an unreachable server."""
        return not self.is_closed and self._hold.database.is_away

    def one_call(self, fn: Callable[[*Ts], R], *args: *Ts) -> R:
        """Return what a function returns whose steps have one deadline."""
        return within(over_at(self.patience), fn, *args)

    def hurry(self, deadline: float) -> None:
        """Limit the calls of this thread to a deadline on ``time.monotonic()``."""
        hurry(deadline)

    @property
    def max_attempts(self) -> int | None:
        """The number of leases after which an item becomes a dead letter."""
        return self._hold.max_attempts

    @max_attempts.setter
    def max_attempts(self, times: int | None) -> None:
        self._hold.max_attempts = times

    @property
    def buries_expired(self) -> bool:
        """Whether expired items become dead letters."""
        return self._hold.buries_expired

    @buries_expired.setter
    def buries_expired(self, buries: bool) -> None:
        self._hold.buries_expired = buries

    @as_one_call
    def count(self) -> int:
        """Return the number of waiting items, in constant time."""
        return self._hold.figures().waiting

    @as_one_call
    def owed(self) -> int:
        """Return the number of items that ``maxsize`` counts: waiting, leased and delayed ones."""
        found = self._hold.figures()
        return found.waiting + found.leased + found.delayed

    @as_one_call
    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""
        for _ in range(_AGAIN):
            if self.maxsize > 0 or blocks.current() is not None:
                break
            if (numbers := self._pushes.append(payloads)) is not None:
                return numbers
        start = self.append_apart(payloads, Push())[0].seq
        return range(start, start + len(payloads))

    def append_apart(self, payloads: Sequence[bytes], how: Push) -> list[Pushed]:
        """Append payloads with a delay, unique keys, an expiry, headers or a priority; all or none (``Full``)."""
        (pushed,) = self.append_each([(payloads, how)])
        return pushed

    def append_each(self, pushes: Sequence[tuple[Sequence[bytes], Push]]) -> list[list[Pushed]]:
        """Like ``append_apart``, for several pushes in one step; return the result of each.

        If they have no options but headers, and expire alike, that is one statement.
        """
        for payloads, _ in pushes:
            for payload in payloads:
                refuse_large(payload)
        if (appended := self._appended(pushes)) is not None:
            return appended
        pushed = self._hold.run(partial(_readers.push_each, buries=self.buries_expired), pushes, self.maxsize)
        if pushed is None:
            raise GoneError(self.path, self.name)
        return pushed

    def _appended(self, pushes: Sequence[tuple[Sequence[bytes], Push]]) -> list[list[Pushed]] | None:
        """Append by one statement; None if more has to be done."""
        payloads = [payload for some, _ in pushes for payload in some]
        how = _alike(pushes)
        if how is None or not payloads or self.maxsize > 0 or blocks.current() is not None:
            return None
        if (numbers := self._pushes.append(payloads, how)) is None:
            return None
        numbered = iter(numbers)
        return [[Pushed(seq, is_stored=True) for seq in islice(numbered, len(some))] for some, _ in pushes]

    @as_one_call
    def find(self, key: bytes) -> int | None:
        """Return the number of the item with a unique key."""
        self._hold.restored()
        return self._hold.view(_items.find, key)

    @as_one_call
    def cancel(self, key: bytes) -> bool:
        """Remove the item with a unique key, if it is waiting or delayed."""
        self._hold.restored()
        return self._hold.run(_removal.cancel, key)

    @as_one_call
    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the first ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""
        if max_bytes is not None:
            return up_to(self.first, size_of, n, max_bytes)
        return self._hold.seen(n, _items.first, n)

    @as_one_call
    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Like ``first``, for entries that will be taken: they need not be durable yet."""
        return self._hold.candidates(n, max_bytes)

    @as_one_call
    def since(self, key: bytes) -> list[Entry]:
        """Return some entries behind ``key``, from the head for b""; an empty list only if there are no more."""
        return self._hold.seen(1, _items.since, key)

    # --- taking

    @as_one_call
    def take(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Claim the first unclaimed items, decode them, and remove them, as one transaction."""
        return self._takes.take(n, least, decode, max_bytes)

    def trailers(self, entries: Sequence[Entry]) -> list[Trailer]:
        """Return the trailer of each item; for an item that has left, the headers are missing."""
        letters = [entry.trailer for entry in entries if isinstance(entry, _dead.Letter)]
        if len(letters) == len(entries):
            return letters
        known = self._hold.view(_items.trailers, [_items.number(key) for key, _ in entries])
        return [known.get(_items.number(key), Trailer(0)) for key, _ in entries]

    # --- leases

    @as_one_call
    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease the first unclaimed items; those that cannot be decoded become dead letters."""
        return self._leases.lease(n, ttl, sort_out, max_bytes)

    @as_one_call
    def lease_each(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease at most the first ``n`` items, each with a lease of its own."""
        return self._leases.lease_each(n, ttl, sort_out)

    @as_one_call
    def ack_each(self, asked: Sequence[Request]) -> list[list[int] | None]:
        """Like ``ack``, for several leases by one statement; return the result of each."""
        return self._leases.ack_each(asked)

    @as_one_call
    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove items of a lease for good, None for all; return their numbers, None if the lease is gone."""
        return self._leases.ack(token, seqs)

    @as_one_call
    def relay_each(self, asked: Sequence[Request], ttl: float | None, sort_out: SortOut[T]) -> list[Relayed[T]]:
        """Do as ``ack_each``, and lease an item for each by the same statement; return the results of both."""
        return self._leases.relay_each(asked, ttl, sort_out)

    def nack(
        self,
        token: int,
        seqs: Collection[int] | None,
        delay: float,
        reason: str,
        max_attempts: int | None,
        trace: str = "",
    ) -> Nacked | None:
        """Give back items of a lease, None for all; return what became of each, None if the lease is gone."""
        how = _away.Return(reason, delay, self._hold.max_attempts if max_attempts is None else max_attempts, trace)
        nacked = self._nack(token, seqs, how)
        return nacked if any(nacked) else None

    def _nack(self, token: int, seqs: Collection[int] | None, how: _away.Return) -> Nacked:
        nack = partial(_away.nack, buries=self._hold.buries_expired)
        return self._hold.run(nack, token, wanted(token, seqs), how)

    def unlease(self, token: int) -> None:
        """Undo ``lease``."""
        self._nack(token, None, _away.Return("", is_undone=True))

    def forsake(self, known: Collection[int]) -> None:
        """Do nothing: see ``claims``."""

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Make a lease end in ``ttl`` s; return its deadline, None if it is gone."""
        deadline = None if ttl is None else time.monotonic() + ttl
        if not self._hold.run(_away.extend, token, wanted(token, None), ttl):
            return None
        return (deadline,)

    @as_one_call
    def count_dead(self) -> int:
        """Return the number of dead letters."""
        return self._hold.figures().dead

    @as_one_call
    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some dead letters from number ``seq`` on."""
        self._hold.restored()
        return self._hold.view(_dead.since, seq)

    @as_one_call
    def requeue(self, seqs: Collection[int] | None) -> int:
        """Return dead letters, None for all, to the queue; return their number."""
        self._hold.restored()  # so that no expired item holds a key
        return self._hold.run(_dead.requeue, seqs)

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters, None for all; return their number."""
        return self._hold.run(_dead.forget, seqs)

    # --- readers

    def reader(self, name: str) -> PostgresReaderEngine:
        """Return the engine of a reader, which need not exist yet."""
        return PostgresReaderEngine(self._hold, self.name, name)

    @as_one_call
    def readers(self) -> list[ReaderStats]:
        """Return the figures of all readers."""
        self._hold.restored()
        return self._hold.view(_readers.stats, None)

    @as_one_call
    def retain(self, retention: Retention | None) -> None:
        """Set the limits up to which items are kept, read or not."""
        self._hold.restored()
        if not self._hold.run(_readers.retain, retention):
            raise GoneError(self.path, self.name)

    # --- removing

    @as_one_call
    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number, if it is waiting; return whether it was."""
        self._hold.restored()
        return self._hold.run(_removal.delete_item, seq)

    @as_one_call
    def dead_letter(self, seq: int, reason: str) -> bool:
        """Make the item of this number a dead letter if it is waiting; return whether it was."""
        self._hold.restored()
        return self._hold.run(_away.bury_item, seq, reason)

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``: the items get their old numbers back, even if later items have left since."""
        self._hold.run(partial(_readers.put_back, buries=self._hold.buries_expired), entries)

    @as_one_call
    def delete(self, n: int) -> int:
        """Remove at most the first ``n`` items; return their number.

        The items that were seen first are removed: if expired ones were removed before, others would go that no caller
        has seen.
        """
        removed = self._hold.run(_removal.delete, n)
        if not removed:
            self.refuse_if_gone()
        return removed

    @as_one_call
    def clear(self) -> int:
        """Remove all waiting items."""
        self._hold.restored()
        return self._hold.run(_removal.clear)

    def clear_all(self) -> int:
        """Remove all items."""
        return self._hold.run(_away.clear)

    @as_one_call
    def move(self, n: int, to: "PostgresEngine") -> int:
        """Move at most the first ``n`` items to the tail of another queue; return their number."""
        self._hold.restored()
        moved = self._hold.run(partial(_readers.move, buries=to.buries_expired), to.place, n, to.maxsize)
        if moved is None:
            raise GoneError(self.path, to.name)
        return moved

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries."""
        return [payload for _, payload in entries]

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""
        return _items.number(entry[0]), entry[1]

    # --- waiting

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""
        self._hold.refuse_if_closed()

    def refuse_if_gone(self) -> None:
        """Raise ``GoneError`` if the queue was dropped."""
        if not self._hold.view(partial(_items.status, deaths=False)).is_there:
            raise GoneError(self.path, self.name)

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        database = self._hold.database
        blocks.refuse_inside(self.path, "a call would wait", "items taken in it are locked meanwhile: use timeout=0")
        return database.ear.listen(self._hold.place.channel)

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changes after the ticket was given, at most ``timeout`` seconds; may return early."""
        database = self._hold.database
        seconds, has_others = self._hold.view(_away.next_time, self._hold.holder.numbers)
        if seconds is not None:
            timeout = min(timeout, max(_FAILED_LOOK, seconds))
        if has_others:
            timeout = min(timeout, DEATH_LOOK)
        database.ear.wait(self._hold.place.channel, ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        self._hold.database.ear.ring()

    def watch(self) -> None:
        """Do nothing: removals wake sleepers."""

    def is_crowded(self) -> bool:
        """Return False: no move waits for the flush of another process."""
        return False

    # --- the queue as a whole

    @as_one_call
    def stats(self) -> Stats:
        """Return the figures of the queue."""
        found = self._hold.figures()
        removed = found.pushed - found.waiting - found.leased - found.delayed - found.dead
        readers = tuple(self.readers())
        return Stats(**found._asdict(), removed=removed, readers=readers)

    def sync(self) -> None:
        """Do nothing: each call is durable when it returns, within what the server's settings promise."""
        self.refuse_if_closed()

    def close(self) -> None:
        """Give back leased items, and release the database."""
        database = self._hold.database
        was_closed, self.is_closed = self.is_closed, True
        if was_closed:
            return
        self._hold.is_closed = True
        self._hold.database = cast("Database", _Closed(self.path))
        database.ear.ring()
        if numbers := self._hold.holder.numbers:
            how = _away.Return("its queue was closed", max_attempts=self._hold.max_attempts)
            with suppress(QueueError):  # otherwise a reading after the end of the process finds a dead owner
                database.run(_LAST_PATIENCE, _away.give_up, self._hold.place, numbers, how)
            self._hold.holder.begin_anew()
        if self._release.detach():  # otherwise the garbage collector was faster
            database.release()

    def begin_anew(self) -> None:
        """Hold no leases in a forked child; its parent may hold some."""
        self._hold.holder.begin_anew()
        self._takes.begin_anew()


class _Closed:
    """Stands in for the database of a closed queue."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(self._path)


def _alike(pushes: Sequence[tuple[Sequence[bytes], Push]]) -> Push | None:
    """Return the options of one push that stores the same items; None if they differ in more than their headers."""
    (_, first), *others = pushes
    alike = Push(expires=first.expires)
    if any(how._replace(headers=None, headers_of_each=()) != alike for _, how in pushes):
        return None
    if not others:
        return first
    headers = [how.headers_of_each or [how.headers or {}] * len(payloads) for payloads, how in pushes]
    return alike._replace(headers_of_each=list(chain.from_iterable(headers)))


def _let_go(database: Database, holder: Holder) -> None:
    """Give back the items of a dropped object, and release the database.

    While the program ends, when nothing could end a wait for the server, they return with the end of their connection.
    """
    try:
        if holder.numbers and departures.patience() < 0:
            with suppress(QueueError):
                how = _away.Return("its queue was forgotten")
                database.run(_LAST_PATIENCE, _away.give_up, holder.place, holder.numbers, how)
    finally:
        database.release()


def refuse_other_order(path: str, name: str, *, stored: bool, given: bool) -> None:
    """Raise ``OptionError`` if a queue was created with another order."""
    if stored != given:
        order = {True: "relaxed", False: "commit"}
        raise OptionError(path, "order", order[stored], order[given], name)


def _begin_anew_in_child() -> None:
    for engine in list(_engines):
        engine.begin_anew()


at_fork("PostgreSQL engines", in_child=_begin_anew_in_child)
