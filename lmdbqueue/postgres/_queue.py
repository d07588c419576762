"""``PostgresQueue``: the verbs on tables of PostgreSQL.

Owns: what a user opens and passes around; what concerns a queue as a whole. Law: what a verb means stands in
``lmdbqueue._verbs.queue``, what its steps are in ``_engine``. Must not know: SQL, connections.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from lmdbqueue import _format
from lmdbqueue._errors import ExistsError, TransactionError
from lmdbqueue._values import Expired
from lmdbqueue._verbs.queue import Queue, checked_expired
from lmdbqueue._verbs.reading import checked_count, head_of
from lmdbqueue._verbs.serializers import CUSTOM, Serializer, chosen
from lmdbqueue.postgres import _items, _queues
from lmdbqueue.postgres._block import Block, blocks
from lmdbqueue.postgres._database import open_database
from lmdbqueue.postgres._engine import PostgresEngine
from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._state import TableState
from lmdbqueue.postgres._step import Step

if TYPE_CHECKING:
    import psycopg

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")

_LONGEST_SCHEMA: Final = 50  # bytes, so that a channel's name has room
_DAY: Final = 86_400  # seconds that the rows of dead sessions are kept


class Transaction:
    """A block of a user. ``connection`` (psycopg's) is for statements of your own, which are a part of it."""

    def __init__(self, block: Block) -> None:
        self._block = block

    @property
    def connection(self) -> "psycopg.Connection[Any]":
        """The connection of the block. What is set on it lasts until the end of the block."""
        return self._block.shown()


class PostgresQueue(Queue[T]):
    """A persistent FIFO queue in a PostgreSQL database, for any number of threads, processes and machines.

    ``conninfo`` is the address, as libpq has it: ``postgresql://host/database``, with several hosts and
    ``target_session_attrs=read-write`` for a primary that may move. ``name`` picks one of the queues; it is made if
    it is not there, and so are the tables, in ``schema``. ``dumps``, ``loads``, ``maxsize``, ``max_attempts`` and
    ``expired`` are those of ``PersistentQueue``; so is ``serializer``, whose name is kept with the queue.

    A call that returned is committed; what that promises is the server's ``synchronous_commit`` (docs/scaling.md).
    When a connection is lost, calls connect again and go on, for ``patience`` seconds; then they raise
    ``ServerError`` (nothing was stored), or ``CommitUnknownError`` if nobody could be asked whether they took place.

    One object may be used by many threads, each with a connection of its own. A forked child may go on using it;
    sent to a spawned process, by pickling, it opens the same queue there (the pickle has the password).
    """

    _engine: PostgresEngine

    def __init__(
        self,
        conninfo: str,
        name: str = "queue",
        dumps: Callable[[T], bytes] = pickle.dumps,
        loads: Callable[[bytes], T] = pickle.loads,
        *,
        serializer: Serializer | None = None,
        maxsize: int = 0,
        max_attempts: int | None = None,
        expired: Expired = "drop",
        schema: str = "lmdbqueue",
        patience: float = 30.0,
        order: Literal["commit", "relaxed"] = "commit",
        pool: int | None = None,
    ) -> None:
        if not 0 < len(schema.encode()) <= _LONGEST_SCHEMA or "\0" in schema or "%" in schema:
            message = f"the name of a schema is 1 to {_LONGEST_SCHEMA} bytes of UTF-8 without NUL and %, not {schema!r}"
            raise ValueError(message)
        if not 0 <= patience <= _DAY / 2:
            message = f"patience is a number of seconds up to half a day, not {patience!r}"
            raise ValueError(message)
        if order not in ("commit", "relaxed"):
            message = f"order is 'commit' or 'relaxed', not {order!r}"
            raise ValueError(message)
        if pool is not None and pool < 1:
            message = f"a pool has at least one connection, not {pool!r}"
            raise ValueError(message)
        _format.check_name(name)
        self.serializer, dumps, loads = chosen(serializer, dumps, loads)
        database = open_database(conninfo, schema, patience, pool)
        engine = PostgresEngine(
            database,
            name,
            self.serializer,
            maxsize=maxsize,
            max_attempts=max_attempts,
            buries_expired=checked_expired(expired),
            patience=patience,
            is_relaxed=order == "relaxed",
        )
        super().__init__(engine, dumps, loads)
        self.order = order
        self.pool = pool
        self.conninfo = conninfo
        self.schema = schema

    @property
    def patience(self) -> float:
        """For how many seconds calls connect again and go on while the server is away."""
        return self._engine.patience

    def __repr__(self) -> str:
        state = ", closed" if self._engine.is_closed else ""
        return f"<{type(self).__name__} {self.name!r} in {self._engine.path!r}{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self.conninfo, self._options())

    def flush(self, force: bool = False) -> int:  # noqa: ARG002  (as the other engine has it)
        """Vacuum the table of items; return how many bytes went back to the file system.

        The server does so by itself, often; the room is used again in any case. ``force`` changes nothing.
        """
        engine = self._engine
        engine.refuse_if_closed()
        blocks.refuse_inside(engine.path, "flush() was called")
        return engine.database.view(engine.patience, _queues.vacuum)

    def copy(self, name: str) -> Self:
        """Make a copy of this queue in the same database, a queue of its own, and return it opened.

        It is a snapshot of one moment, with the state; in it no item is leased. Pushes wait meanwhile. Raises
        ``ExistsError`` if there is a queue of that name.
        """
        engine = self._engine
        engine.refuse_if_closed()
        _format.check_name(name)
        blocks.refuse_inside(engine.path, "copy() was called")
        if engine.database.run(engine.patience, _queues.copy, engine.place, name) is None:
            engine.refuse_if_gone()
            raise ExistsError(f"{name} in {engine.path}")
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
        with self._engine.database.transaction(self.patience) as block:
            yield Transaction(block)

    @property
    def state(self) -> TableState:
        """A persistent mapping of this queue, for totals and offsets; it takes part in transactions."""
        engine, codec = self._engine, (self.dumps, self.loads)
        engine.refuse_if_closed()
        return TableState(engine.database, engine.place, engine.patience, engine.refuse_if_gone, codec)

    def move(self, items: int = 1, *, to: "PostgresQueue[Any]") -> int:
        """Move the first items to the tail of another queue of this database, as one atomic step.

        They are not decoded. Returns how many there were, at most ``items``. Raises ``Full`` by the limit of ``to``
        (nothing is moved then), ``TransactionError`` if ``to`` is elsewhere, ``ValueError`` if it is this queue.
        """
        n = checked_count(items)
        target = postgres_engine_of(to)
        self._engine.refuse_if_closed()
        head_of(to).refuse_push()
        if target.database is not self._engine.database:
            raise TransactionError(
                self._engine.path, f"{to!r} is in another database, or schema", "open both in one, with two names"
            )
        if target.place == self._engine.place:
            message = f"{to!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self._engine.move(n, target) if n else 0

    def queues(self) -> list[str]:
        """Return the names of all queues of this schema."""
        return self._engine.database.view(self.patience, _queues.names)

    def drop_queue(self, name: str) -> None:
        """Remove the queue ``name`` of this schema, with its items and state.

        Objects that are open on that queue, anywhere, raise ``GoneError`` from then on. Raises ``KeyError`` if there
        is no such queue.
        """
        database = self._engine.database
        self._engine.refuse_if_closed()
        blocks.refuse_inside(self._engine.path, "drop_queue() was called")
        number = database.run(self.patience, _queues.drop, name)
        if number is None:
            raise KeyError(name)
        gone = Place(number, database.sql.channel(number))
        database.run(self.patience, _tell, gone)

    def check(self) -> list[str]:
        """Return what is wrong with the tables: an empty list, or a sentence for each problem.

        It counts the items of all queues of the schema; what the server's files are like is for its own tools.
        """
        self._engine.refuse_if_closed()
        blocks.refuse_inside(self._engine.path, "check() was called")
        return self._engine.database.view(self.patience, _queues.problems)

    def _options(self) -> dict[str, Any]:
        codec = ("dumps", "loads") if self.serializer in ("pickle", CUSTOM) else ("serializer",)
        names = ("name", *codec, "maxsize", "max_attempts", "expired", "schema", "patience", "order", "pool")
        return {name: getattr(self, name) for name in names}


def _tell(step: Step, place: Place) -> None:
    _items.tell(step, place)
    step.has_changed = True


def postgres_engine_of(queue: PostgresQueue[Any]) -> PostgresEngine:
    """Return the engine of a queue in a database, for who does with its items what no verb does."""
    return queue._engine  # noqa: SLF001  (the one way in)


def _reopen(cls: type[PostgresQueue[Any]], conninfo: str, options: dict[str, Any]) -> PostgresQueue[Any]:
    return cls(conninfo, **options)
