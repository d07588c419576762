"""``PostgresQueue``: the verbs on tables of PostgreSQL.

Owns: what a user opens, passes around and closes. Law: each step is one call of the database; what it means stands in
``_items`` and ``_away``, what a verb makes of it in ``lmdbqueue._verbs``. Must not know: SQL, connections.

``pop`` and ``lease`` claim the first items that nobody else has claimed, decode them, and remove or lease them, in one
transaction. So the user's ``loads`` runs inside of it, other than with LMDB: there everybody would wait, here nobody
does, since what is claimed is passed over. What cannot be decoded never left.
"""

import pickle
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from lmdbqueue import _format
from lmdbqueue._consumer import ConsumerQueue
from lmdbqueue._errors import ClosedError, DecodeError, ExistsError, GoneError, QueueError, TransactionError
from lmdbqueue._lease import DeadLetter, Lease, Leased
from lmdbqueue._verbs import Entry, checked_count
from lmdbqueue.postgres import _away, _block, _items, _queues
from lmdbqueue.postgres._database import Database, open_database
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._session import Step
from lmdbqueue.postgres._state import TableState

if TYPE_CHECKING:
    import psycopg

    from lmdbqueue._stats import Stats

T = TypeVar("T")

_DEATH_LOOK: Final = 0.25  # seconds between two looks whether others who hold leases have died
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper tries again what could not come back
_LONGEST_SCHEMA: Final = 50  # bytes, so that a channel's name has room
_DAY: Final = 86_400  # seconds that the rows of dead sessions are kept


class Transaction:
    """A block of a user. ``connection`` (psycopg's) is for statements of your own, which are a part of it."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self.connection = connection


class PostgresQueue(ConsumerQueue[T]):
    """A persistent FIFO queue in a PostgreSQL database, for any number of threads, processes and machines.

    ``conninfo`` is the address, as libpq has it: ``postgresql://host/database``, with several hosts and
    ``target_session_attrs=read-write`` for a primary that may move. ``name`` picks one of the queues; it is made if
    it is not there, and so are the tables, in ``schema``. ``dumps``, ``loads``, ``maxsize`` and ``max_attempts`` are
    those of ``PersistentQueue``.

    A call that returned is committed; what that promises is the server's ``synchronous_commit`` (docs/scaling.md).
    When a connection is lost, calls connect again and go on, for ``patience`` seconds; then they raise
    ``ServerError`` (nothing was stored), or ``CommitUnknownError`` if nobody could be asked whether they took place.

    One object may be used by many threads, each with a connection of its own. A forked child may go on using it;
    sent to a spawned process, by pickling, it opens the same queue there (the pickle has the password).
    """

    def __init__(
        self,
        conninfo: str,
        name: str = "queue",
        dumps: Callable[[T], bytes] = pickle.dumps,
        loads: Callable[[bytes], T] = pickle.loads,
        *,
        maxsize: int = 0,
        max_attempts: int | None = None,
        schema: str = "lmdbqueue",
        patience: float = 30.0,
    ) -> None:
        if not 0 < len(schema.encode()) <= _LONGEST_SCHEMA or "\0" in schema or "%" in schema:
            message = f"the name of a schema is 1 to {_LONGEST_SCHEMA} bytes of UTF-8 without NUL and %, not {schema!r}"
            raise ValueError(message)
        if not 0 <= patience <= _DAY / 2:
            message = f"patience is a number of seconds up to half a day, not {patience!r}"
            raise ValueError(message)
        self._database: Database | None = None
        super().__init__()
        self.conninfo = conninfo
        self.name = _format.check_name(name)
        self.dumps = dumps
        self.loads = loads
        self.maxsize = maxsize
        self.max_attempts = max_attempts
        self.schema = schema
        self.patience = patience
        database = open_database(conninfo, schema, patience)
        self._owner = Owner(partial(database.entered, patience))
        self._release = weakref.finalize(self, _let_go, database, self._owner)
        self._path = database.path
        self._deaths_seen = 0.0  # when it was looked for dead owners last
        try:
            number = database.view(patience, _queues.find, name)
            if number is None:
                number = database.run(patience, _queues.make, name)
            self._place = Place(number, database.sql.channel(number))
            if maxsize > 0:
                database.run(patience, _queues.watch, self._place)
        except BaseException:
            self._release()
            raise
        self._database = database

    def __repr__(self) -> str:
        state = "" if self._database is not None else ", closed"
        return f"<{type(self).__name__} {self.name!r} in {self._path!r}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self.conninfo, self._options())

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        return self._figures().waiting

    def stats(self) -> "Stats":
        """Return how much of everything there is in the queue, at a cost that does not depend on it."""
        from lmdbqueue._stats import Stats  # noqa: PLC0415  (dataclasses take long to import)

        tail, waiting, leased, delayed, dead, head = self._figures()
        removed = tail - waiting - leased - delayed - dead
        return Stats(waiting, leased, delayed, dead, pushed=tail, removed=removed, head=head, tail=tail)

    def flush(self, force: bool = False) -> int:  # noqa: ARG002  (as the other engine has it)
        """Vacuum the table of items; return how many bytes went back to the file system.

        The server does so by itself, often; the room is used again in any case. ``force`` changes nothing.
        """
        database = self._open
        _block.refuse_inside(self._path, "flush() was called")
        shrunk: int = database.view(self.patience, _queues.vacuum)
        return shrunk

    def copy(self, name: str) -> Self:
        """Make a copy of this queue in the same database, a queue of its own, and return it opened.

        It is a snapshot of one moment, with the state; in it no item is leased. Pushes wait meanwhile. Raises
        ``ExistsError`` if there is a queue of that name.
        """
        database = self._open
        _format.check_name(name)
        _block.refuse_inside(self._path, "copy() was called")
        if database.run(self.patience, _queues.copy, self._place, name) is None:
            self._refuse_if_gone()
            raise ExistsError(f"{name} in {self._path}")
        return type(self)(self.conninfo, **self._options() | {"name": name})

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Make what this thread does in the block, with all queues of this database and schema, one atomic step.

        What the block gets has the ``connection``, for statements of your own: they are a part of it, too. An
        exception that leaves the block undoes all, and so does a kill. Every verb in it sees what those before it
        did, and nobody else sees any of it before the end. Blocks may be nested: the inner one is a part of the outer.

        What is taken in it is passed over by others; a queue that is pushed to is locked for other pushes until the
        end, so keep it short. Two blocks that push to two queues in different orders can block each other: the
        server undoes one, which raises ``ServerError``.

        Raises ``TransactionError`` for what cannot be a part of it: a queue of another database, waiting, ``flush``,
        ``copy``, ``check``, ``drop_queue``; and at the end if a call or a statement in it failed, even if that error
        was caught. ``Full`` can be caught. ``ServerError`` at the end: nothing was stored; ``CommitUnknownError``:
        look.
        """
        with self._open.transaction(self.patience) as step:
            yield Transaction(step.connection)

    @property
    def state(self) -> TableState:
        """A persistent mapping of this queue, for totals and offsets; it takes part in transactions."""
        codec = self.dumps, self.loads
        return TableState(self._open, self._place, self.patience, self._refuse_if_gone, codec)

    def move(self, items: int = 1, *, to: "PostgresQueue[Any]") -> int:
        """Move the first items to the tail of another queue of this database, as one atomic step.

        They are not decoded. Returns how many there were, at most ``items``. Raises ``Full`` by the limit of ``to``
        (nothing is moved then), ``TransactionError`` if ``to`` is elsewhere, ``ValueError`` if it is this queue.
        """
        n = checked_count(items)
        target = to._as_target(self._open, self._place)  # noqa: SLF001  (of its own class)
        if not n:
            return 0
        self._restored()
        moved: int | None = self._open.run(self.patience, _items.move, self._place, target, n, to.maxsize)
        if moved is None:
            raise GoneError(self._path, to.name)
        return moved

    def _as_target(self, database: Database, place: Place) -> Place:
        """Return where a queue at ``place`` may move items to."""
        self._refuse_after_shutdown()
        if self._open is not database:
            raise TransactionError(
                database.path, f"{self!r} is in another database, or schema", "open both in one, with two names"
            )
        if self._place == place:
            message = f"{self!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self._place

    def queues(self) -> list[str]:
        """Return the names of all queues of this schema."""
        names: list[str] = self._open.view(self.patience, _queues.names)
        return names

    def drop_queue(self, name: str) -> None:
        """Remove the queue ``name`` of this schema, with its items and state.

        Objects that are open on that queue, anywhere, raise ``GoneError`` from then on. Raises ``KeyError`` if there
        is no such queue.
        """
        database = self._open
        _block.refuse_inside(self._path, "drop_queue() was called")
        number: int | None = database.run(self.patience, _queues.drop, name)
        if number is None:
            raise KeyError(name)
        gone = Place(number, database.sql.channel(number))
        database.run(self.patience, _tell, gone)

    def check(self) -> list[str]:
        """Return what is wrong with the tables: an empty list, or a sentence for each problem.

        It counts the items of all queues of the schema; what the server's files are like is for its own tools.
        """
        database = self._open
        _block.refuse_inside(self._path, "check() was called")
        problems: list[str] = database.view(self.patience, _queues.problems)
        return problems

    def join(self) -> None:
        """Wait until the queue is empty and ``task_done`` has answered all that ``get`` of this object gave out."""
        self._open.run(self.patience, _queues.watch, self._place)
        super().join()

    def close(self) -> None:
        """Close this object; waiting verbs of it raise ``ClosedError``, and so does every later call.

        What it holds in leases is given back at once. Doing it twice is harmless.
        """
        database, self._database = self._database, None
        if database is not None:
            database.ear.ring()
            super().close()
            if self._owner.known:
                how = _away.Return("its queue was closed", max_attempts=self.max_attempts)
                with suppress(QueueError):  # else who looks next finds a dead owner
                    database.run(0.0, _away.give_up, self._place, self._owner.known, how)
            self._release()

    # --- the engine

    @property
    def _open(self) -> Database:
        database = self._database
        if database is None:
            raise ClosedError(self._path)
        return database

    def _options(self) -> dict[str, Any]:
        names = ("name", "dumps", "loads", "maxsize", "max_attempts", "schema", "patience")
        return {name: getattr(self, name) for name in names}

    def _append(self, payloads: Sequence[bytes]) -> range:
        database = self._open
        if self.maxsize > 0 or _block.current() is not None:
            numbers = self._append_apart(payloads, 0.0, [b""] * len(payloads))
            return range(numbers[0], numbers[-1] + 1)
        values: dict[str, Any] = {"queue": self._place.id, "channel": self._place.channel, "n": len(payloads)}
        if len(payloads) == 1:
            row = database.once(self.patience, _items.PUSH_ONE, values | {"payload": payloads[0]})
        else:
            row = database.once(self.patience, _items.PUSH, values | {"payloads": payloads})
        if row is None:
            raise GoneError(self._path, self.name)
        return range(row[0], row[0] + len(payloads))

    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        apart = _items.Apart(keys, delay, self.maxsize)
        numbers: list[int] | None = self._open.run(self.patience, _items.append, self._place, payloads, apart)
        if numbers is None:
            raise GoneError(self._path, self.name)
        return numbers

    def _first(self, n: int) -> list[Entry]:
        return self._seen(n, _items.first, n)

    def _candidates(self, n: int) -> list[Entry]:
        def glance(place: Place, n: int, *, deaths: bool) -> Found:
            """Claim and let go at once: what others have claimed is not there."""
            found: Found = self._open.claim(self.patience, partial(_items.claim, deaths=deaths), place, n)
            return found

        return self._found(n, glance, n)

    def _since(self, place: bytes) -> list[Entry]:
        return self._seen(1, _items.since, place)

    def _seen(self, wanted: int, read: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``read``, of a step, finds, once everything that has to come back has."""

        def look(place: Place, *args: Any, deaths: bool) -> Found:
            found: Found = self._open.view(self.patience, partial(read, deaths=deaths), place, *args)
            return found

        return self._found(wanted, look, *args)

    def _found(self, wanted: int, look: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``look`` finds, once everything that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            found = look(self._place, *args, deaths=deaths)
            if not found.is_there:
                raise GoneError(self._path, self.name)
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
        changed: int = self._open.run(self.patience, restore, self._place, self.max_attempts)
        return changed

    def _restored(self) -> None:
        """Let everything come back that has to, for a verb that does not look itself."""
        self._deaths_seen = 0.0  # so that it looks for the dead, too
        self._seen(0, _items.status)

    def _figures(self) -> _away.Figures:
        self._restored()
        found: _away.Figures | None = self._open.view(self.patience, _away.figures, self._place)
        if found is None:
            raise GoneError(self._path, self.name)
        return found

    # --- taking

    def _take_entries(self, n: int, least: int) -> tuple[list[Entry], list[T]] | None:
        def take(step: Step, deaths: bool) -> tuple[Found, list[T] | None]:
            found = _items.claim(step, self._place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or len(found.entries) < max(1, least):
                return found, None
            items = self._decode(found.entries)
            _items.take(step, self._place, found)
            return found, items

        found, items = self._claimed(n, take)
        if items is not None:
            return found.entries, items
        return ([], []) if least == 0 else None

    def _leased(self, n: int, ttl: float | None) -> Lease[T] | None:
        owner = 0

        def lease(step: Step, deaths: bool) -> tuple[Found, tuple[list[T], Leased] | None]:
            found = _items.claim(step, self._place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or not found.entries:
                return found, None
            items, unreadable = self._sorted_out(found.entries)
            terms = _away.Terms(owner, ttl, unreadable)
            token, seqs, attempts = _away.lease(step, self._place, found.entries, terms)
            return found, (items, Leased(token, seqs, attempts, deadline))

        while True:
            database = self._open
            owner = self._owner.join()
            deadline = None if ttl is None else time.monotonic() + ttl
            _found, leased = self._claimed(n, lease)
            if leased is None:
                return None
            if self._database is not database:  # closed by another thread meanwhile
                self._owner.leave()
            self._refuse_if_closed()
            items, held = leased
            if items:
                return Lease(self, items, held)

    def _claimed(self, n: int, fn: Callable[..., tuple[Found, Any]]) -> tuple[Found, Any]:
        """Return what ``fn`` claims and makes of it, once everything that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            try:
                found, result = self._open.claim(self.patience, fn, deaths)
            except DecodeError:
                self._tell()  # others have passed it over meanwhile
                raise
            if not found.is_there:
                raise GoneError(self._path, self.name)
            if result is not None:
                return found, result
            if not self._has_to_look_again(found, deaths, n):
                if found.entries:
                    self._tell()
                return found, None
            deaths = True

    def _tell(self) -> None:
        self._open.view(self.patience, _items.tell, self._place)

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        raise NotImplementedError  # ``_leased`` leases what it has claimed

    # --- leases

    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        settled: list[int] | None = self._open.run(self.patience, _away.ack, self._place, token, seqs)
        return settled

    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        how = _away.Return(reason, delay, self.max_attempts if max_attempts is None else max_attempts)
        settled: list[int] | None = self._open.run(self.patience, _away.nack, self._place, token, seqs, how)
        return settled

    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        deadline = None if ttl is None else time.monotonic() + ttl
        if not self._open.run(self.patience, _away.extend, self._place, token, ttl):
            return None
        return (deadline,)

    def _count_dead(self) -> int:
        return self._figures().dead

    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]:
        self._restored()
        letters = self._open.view(self.patience, _away.dead, self._place, seq)
        return [
            DeadLetter(*self._open_payload(entry), note, partial(_only, self._decode, entry)) for entry, note in letters
        ]

    def _requeue(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.run(self.patience, _away.requeue, self._place, seqs)
        return count

    def _delete_dead(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.run(self.patience, _away.forget, self._place, seqs)
        return count

    def _begin_with_empty_hands(self) -> None:
        super()._begin_with_empty_hands()
        if self._database is not None:  # not so in the constructor
            self._owner.begin_anew()

    # --- removing

    def _remove(self, keys: list[bytes]) -> int:
        removed: int = self._open.run(self.patience, _items.remove, self._place, keys)
        return removed

    def _put_back(self, entries: list[Entry]) -> None:
        self._open.run(self.patience, _items.put_back, self._place, entries)

    def _delete(self, n: int) -> int:
        self._restored()
        removed: int = self._open.run(self.patience, _items.delete, self._place, n)
        return removed

    def _clear(self, *, all: bool) -> int:  # noqa: A002
        if not all:
            self._restored()
        removed: int = self._open.run(self.patience, _away.clear if all else _items.clear, self._place)
        return removed

    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        return [payload for _, payload in entries]

    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        return _format.number(entry[0]), entry[1]

    # --- waiting

    def _refuse_if_closed(self) -> None:
        if self._database is None:
            raise ClosedError(self._path)

    def _refuse_if_gone(self) -> None:
        if not self._open.view(self.patience, partial(_items.status, deaths=False), self._place).is_there:
            raise GoneError(self._path, self.name)

    def _listen(self) -> int:
        database = self._open
        _block.refuse_inside(self._path, "a call would wait", "what was taken in it is locked meanwhile: use timeout=0")
        return database.ear.listen(self._place.channel)

    def _sleep(self, ticket: int, timeout: float) -> None:
        database = self._open
        seconds, has_others = database.view(self.patience, _away.next_time, self._place, self._owner.known)
        if seconds is not None:
            timeout = min(timeout, max(_FAILED_LOOK, seconds))
        if has_others:
            timeout = min(timeout, _DEATH_LOOK)
        database.ear.wait(self._place.channel, ticket, timeout)

    def _wake(self) -> None:
        self._open.ear.ring()


def _tell(step: Step, place: Place) -> None:
    _items.tell(step, place)
    step.has_changed = True


def _let_go(database: Database, owner: Owner) -> None:
    try:
        owner.leave()
    finally:
        database.release()


def _only(decode: Callable[[list[Entry]], list[T]], entry: Entry) -> T:
    return decode([entry])[0]


def _reopen(cls: type[PostgresQueue[Any]], conninfo: str, options: dict[str, Any]) -> PostgresQueue[Any]:
    return cls(conninfo, **options)
