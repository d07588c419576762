"""``PostgresQueue``: the verbs on tables of PostgreSQL.

Owns: the object that users open and pass around; verbs that concern a queue as a whole. Law: the meaning of a verb is
in ``lmdbqueue._verbs.queue``, its steps are in ``_engine``. Must not know: SQL, connections.
"""

import pickle
from collections.abc import Callable, Iterator
from operator import index
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from lmdbqueue._base.errors import ExistsError, TransactionError
from lmdbqueue._base.values import Expired
from lmdbqueue._host.threads import holding
from lmdbqueue._verbs.options import OPENING, TEXT, VERBS, Rule, check, one_of, seconds, whole
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import head_of
from lmdbqueue._verbs.serializers import CUSTOM, Serializer, chosen
from lmdbqueue.postgres import _items, _queues
from lmdbqueue.postgres._block import Block, blocks
from lmdbqueue.postgres._database import open_database
from lmdbqueue.postgres._engine import PostgresEngine
from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._silence import over_at, within
from lmdbqueue.postgres._state import TableState
from lmdbqueue.postgres._step import Step

if TYPE_CHECKING:
    import psycopg

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")

_LONGEST_SCHEMA: Final = 50  # bytes, to leave room for the name of a channel
_DAY: Final = 86_400  # seconds that the rows of dead sessions are kept


def _is_schema(name: str) -> bool:
    try:
        return 0 < len(name.encode()) <= _LONGEST_SCHEMA and not set(name) & {"\0", "%"}
    except UnicodeEncodeError:
        return False


_OPENING: Final = {
    **OPENING,
    "conninfo": TEXT,
    "schema": Rule(
        f"the name of a schema: 1 to {_LONGEST_SCHEMA} bytes of UTF-8 without NUL or %", (str,), fits=_is_schema
    ),
    "patience": seconds(most=_DAY / 2),
    "order": one_of("commit", "relaxed"),
    "pool": whole("a number of connections", 1, 10_000, or_none=True),
}


class Transaction:
    """The block of a ``transaction()``, for statements of your own. ``queue.transaction()`` returns it."""

    def __init__(self, block: Block) -> None:
        self._block = block

    @property
    def connection(self) -> "psycopg.Connection[Any]":
        """The connection of the block. Settings made on it last until the end of the block."""
        return self._block.shown()


class PostgresQueue(Queue[T]):
    """A persistent FIFO queue in a PostgreSQL database, for any number of threads, processes and machines.

    The verbs are those of ``PersistentQueue``. When a call returns, it is committed; the server's
    ``synchronous_commit`` says what that promises (docs/scaling.md). If a connection is lost, calls reconnect and
    continue for ``patience`` seconds; then they raise ``ServerError`` (nothing was stored), or ``CommitUnknownError``
    if no server could say whether the call took effect.

    Threads can share an object; each uses a connection of its own. A forked child can continue to use it. Pickling it,
    as for a spawned process, opens the same queue there (the pickle contains the password).

    Example:
        >>> queue = PostgresQueue("postgresql://localhost/app", "jobs")

    Args:
        conninfo: The address, as libpq takes it: ``postgresql://host/database``; for a primary that may move, several
            hosts and ``target_session_attrs=read-write``.
        name: One of the queues; it is created, with its tables, if it is missing.
        dumps: Converts an item to bytes.
        loads: Converts the bytes back to the item.
        serializer: A pair of ``dumps`` and ``loads`` by name, which is stored with the queue; another name raises
            ``OptionError``.
        maxsize: Items (waiting, leased or delayed) above which pushes of this object raise ``Full``; 0: no limit.
            With ``retain``, a push drops older items before this is checked.
        max_attempts: Leases of an item after which this object makes it a dead letter; None: no limit.
        expired: What this object does with expired items, as for ``PersistentQueue``.
        schema: The schema of the tables.
        patience: Seconds to reconnect, and to wait for a lock, before a call raises ``ServerError``.
        order: ``"commit"``: items leave in the order of the commits, so pushes take turns. ``"relaxed"``: pushes never
            wait for each other. Fixed when the queue is created.
        pool: The largest number of connections of this process for calls; None: one for each thread that calls.

    Raises:
        ServerError: The server refused, or did not answer for ``patience`` seconds.
        OptionError: The queue was created with another ``order`` or ``serializer``.
        VersionError: The schema is of another version of the library.
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
        limits = {"maxsize": maxsize, "max_attempts": max_attempts, "expired": expired}
        check(_OPENING, conninfo=conninfo, name=name, dumps=dumps, loads=loads, **limits)
        check(_OPENING, schema=schema, patience=patience, order=order, pool=pool)
        self.serializer, dumps, loads = chosen(serializer, dumps, loads)

        def opened() -> PostgresEngine:
            return PostgresEngine(
                open_database(conninfo, schema, patience, pool),
                name,
                self.serializer,
                maxsize=maxsize,
                max_attempts=max_attempts,
                buries_expired=expired == "dead",
                patience=patience,
                is_relaxed=order == "relaxed",
            )

        engine = within(over_at(patience), opened)
        super().__init__(engine, dumps, loads)
        self.order = order
        self.pool = pool
        self.conninfo = conninfo
        self.schema = schema

    @property
    def patience(self) -> float:
        """Seconds for which calls reconnect and continue while the server does not answer."""
        return self._engine.patience

    def __repr__(self) -> str:
        state = ", closed" if self._engine.is_closed else ""
        return f"<{type(self).__name__} {self.name!r} in {self._engine.path!r}{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self.conninfo, self._options())

    def flush(self, force: bool = False) -> int:
        """Vacuum the table of items. The server does this often by itself; free space is reused in any case.

        Args:
            force: Has no effect here; it exists for ``PersistentQueue.flush``.

        Returns:
            The number of bytes returned to the file system.
        """
        check(VERBS, force=force)
        engine = self._engine
        engine.refuse_if_closed()
        blocks.refuse_inside(engine.path, "flush() was called")
        return engine.database.view(engine.patience, _queues.vacuum)

    def copy(self, name: str) -> Self:
        """Copy this queue, with its state, to a new one in the same database; durable when this returns.

        The copy is a snapshot of one moment, without leases. Pushes wait meanwhile.

        Args:
            name: The name of the copy.

        Returns:
            The copy, opened.

        Raises:
            ExistsError: There is a queue of that name.
        """
        check(OPENING, name=name)
        engine = self._engine
        engine.refuse_if_closed()
        blocks.refuse_inside(engine.path, "copy() was called")
        if engine.database.run(engine.patience, _queues.copy, engine.place, name) is None:
            engine.refuse_if_gone()
            raise ExistsError(f"{name} in {engine.path}")
        return type(self)(self.conninfo, **self._options() | {"name": name})

    @holding
    def transaction(self) -> Iterator[Transaction]:
        """Make all calls of this thread in the block one atomic step, across all queues of this database and schema.

        Statements on the ``connection`` of the block are part of the step. It is durable when the block ends. An
        exception that leaves the block undoes all of it, and so does a kill. Calls in the block see the effects of
        earlier ones; nobody else does until the end. An inner block is a part of the outer one.

        Other consumers skip the items that it takes. A queue that it pushes to is locked for other pushes until the
        end, so keep blocks short. Two blocks that push to two queues in different orders can block each other: the
        server undoes one of them, which raises ``ServerError``.

        Example:
            >>> with queue.transaction() as txn:
            ...     txn.connection.execute("INSERT INTO orders (what) VALUES ('tea')")
            ...     queue.push("tea")

        Raises:
            TransactionError: A call cannot be part of a transaction: on a queue of another database, a call that waits,
                ``flush``, ``copy``, ``check``, ``drop_queue``. At the end of the block: a call or statement in it
                failed, even if its error was caught. (``Full`` can be caught.)
            ServerError: At the end: nothing was stored.
            CommitUnknownError: At the end: check whether the block took effect.
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

        The items are not decoded.

        Args:
            items: The number of items, at most.
            to: The other queue.

        Returns:
            The number of items moved.

        Raises:
            Full: The limit of ``to`` would be exceeded; nothing was moved.
            TransactionError: ``to`` is in another database or schema.
            ValueError: ``to`` is this queue.
        """
        check(_MOVE, items=items, to=to)
        n, target = index(items), postgres_engine_of(to)
        self._engine.refuse_if_closed()
        head_of(to).refuse_push()
        if target.database is not self._engine.database:
            raise TransactionError(
                self._engine.path,
                f"{to!r} is in another database, or schema",
                "open both queues in one schema, under two names",
            )
        if target.place == self._engine.place:
            message = f"{to!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self._engine.move(n, target) if n else 0

    def queues(self) -> list[str]:
        """Return the names of all queues of this schema."""
        return self._engine.database.view(self.patience, _queues.names)

    def drop_queue(self, name: str) -> None:
        """Remove a queue of this schema with its items and its state.

        Open objects of that queue, anywhere, raise ``GoneError`` from then on.

        Args:
            name: The name of the queue.

        Raises:
            KeyError: There is no such queue.
        """
        check(OPENING, name=name)
        database = self._engine.database
        self._engine.refuse_if_closed()
        blocks.refuse_inside(self._engine.path, "drop_queue() was called")

        def drop() -> None:
            number = database.run(self.patience, _queues.drop, name)
            if number is None:
                raise KeyError(name)
            gone = Place(number, database.sql.channel(number))
            database.run(self.patience, _tell, gone)

        self._engine.one_call(drop)

    def check(self) -> list[str]:
        """Verify the counts, leases and items of all queues of the schema.

        The server's files are checked by its own tools.

        Returns:
            A sentence for each fault; an empty list if there is none.
        """
        self._engine.refuse_if_closed()
        blocks.refuse_inside(self._engine.path, "check() was called")
        return self._engine.database.view(self.patience, _queues.problems)

    def _options(self) -> dict[str, Any]:
        codec = ("dumps", "loads") if self.serializer in ("pickle", CUSTOM) else ("serializer",)
        names = ("name", *codec, "maxsize", "max_attempts", "expired", "schema", "patience", "order", "pool")
        return {name: getattr(self, name) for name in names}


_MOVE: Final = {**VERBS, "to": Rule("an open PostgresQueue", (PostgresQueue,), fits=lambda _: True)}


def _tell(step: Step, place: Place) -> None:
    _items.tell(step, place)
    step.has_changed = True


def postgres_engine_of(queue: PostgresQueue[Any]) -> PostgresEngine:
    """Return the engine of a queue in a database, for work on its items for which there is no verb."""
    return queue._engine  # noqa: SLF001  (the one way in)


def _reopen(cls: type[PostgresQueue[Any]], conninfo: str, options: dict[str, Any]) -> PostgresQueue[Any]:
    return cls(conninfo, **options)
