"""``PostgresQueue``: the verbs on tables of PostgreSQL.

Owns: what a user opens, passes around and closes; what concerns a queue as a whole. Law: what a step means stands in
``_engine``, what a verb makes of it in ``lmdbqueue._verbs.writing``. Must not know: SQL, connections.
"""

import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from lmdbqueue import _format
from lmdbqueue._errors import ExistsError, GoneError, QueueError, TransactionError
from lmdbqueue._verbs.reading import checked_count
from lmdbqueue.postgres import _away, _items, _queues, _readers
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database, open_database
from lmdbqueue.postgres._followed import FollowedTable
from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._session import Step
from lmdbqueue.postgres._state import TableState

if TYPE_CHECKING:
    import psycopg

    from lmdbqueue._model.stats import Stats

T = TypeVar("T")

_LONGEST_SCHEMA: Final = 50  # bytes, so that a channel's name has room
_DAY: Final = 86_400  # seconds that the rows of dead sessions are kept


class Transaction:
    """A block of a user. ``connection`` (psycopg's) is for statements of your own, which are a part of it."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self.connection = connection


class PostgresQueue(FollowedTable[T]):
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

    def stats(self) -> "Stats":
        """Return how much of everything there is in the queue, at a cost that does not depend on it."""
        from lmdbqueue._model.stats import Stats  # noqa: PLC0415  (dataclasses take long to import)

        tail, waiting, leased, delayed, dead, head = self._figures()
        removed = tail - waiting - leased - delayed - dead
        readers = tuple(self._reader_stats(None))
        return Stats(
            waiting, leased, delayed, dead, pushed=tail, removed=removed, head=head, tail=tail, readers=readers
        )

    def flush(self, force: bool = False) -> int:  # noqa: ARG002  (as the other engine has it)
        """Vacuum the table of items; return how many bytes went back to the file system.

        The server does so by itself, often; the room is used again in any case. ``force`` changes nothing.
        """
        database = self._open
        blocks.refuse_inside(self._path, "flush() was called")
        shrunk: int = database.view(self.patience, _queues.vacuum)
        return shrunk

    def copy(self, name: str) -> Self:
        """Make a copy of this queue in the same database, a queue of its own, and return it opened.

        It is a snapshot of one moment, with the state; in it no item is leased. Pushes wait meanwhile. Raises
        ``ExistsError`` if there is a queue of that name.
        """
        database = self._open
        _format.check_name(name)
        blocks.refuse_inside(self._path, "copy() was called")
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
        moved: int | None = self._open.run(self.patience, _readers.move, self._place, target, n, to.maxsize)
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
        blocks.refuse_inside(self._path, "drop_queue() was called")
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
        blocks.refuse_inside(self._path, "check() was called")
        problems: list[str] = database.view(self.patience, _queues.problems)
        return problems

    def _watch(self) -> None:
        self._open.run(self.patience, _queues.watch, self._place)

    @property
    def _where(self) -> str:
        return self._path

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

    def _options(self) -> dict[str, Any]:
        names = ("name", "dumps", "loads", "maxsize", "max_attempts", "schema", "patience")
        return {name: getattr(self, name) for name in names}


def _tell(step: Step, place: Place) -> None:
    _items.tell(step, place)
    step.has_changed = True


def _let_go(database: Database, owner: Owner) -> None:
    try:
        owner.leave()
    finally:
        database.release()


def _reopen(cls: type[PostgresQueue[Any]], conninfo: str, options: dict[str, Any]) -> PostgresQueue[Any]:
    return cls(conninfo, **options)
