"""How our statements are sent, and what comes back.

Owns: the form of values on the wire, the prepared statements of a connection, sending several together. Law: our
statements mean the same whatever a user sets on the connection. Must not know: what a statement does.

A cursor of psycopg's passes 34 frames for each statement, and takes as much processor time as the round trip. Most
statements are therefore executed by what such a cursor is made of: psycopg's functions that dump values, send a
prepared statement, wait for its result, and load the rows. The wait is the connection's own (``_silence``).

They do not take the connection's lock, which a cursor takes, since a session is for one thread at a time. An interrupt
may leave that lock behind: Python calls a trace function before it leaves a ``with`` statement, and a debugger's, amid
which Ctrl-C comes, raises there. The release of a claim would then wait for its own thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, LiteralString, Protocol

import psycopg
from psycopg import adapt, pq
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.rows import tuple_row
from psycopg.types.array import ListBinaryDumper
from psycopg.types.numeric import Int8BinaryDumper, Int8BinaryLoader
from psycopg.types.string import BytesBinaryDumper

from lmdbqueue.postgres._silence import Connection
from lmdbqueue.postgres._sql import Sql

_BINARY: Final = pq.Format.BINARY
_FINE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_IDLE: Final = pq.TransactionStatus.IDLE
FORGOTTEN: Final = psycopg.errors.InvalidSqlStatementName  # a user has said DISCARD or DEALLOCATE


def _adapters() -> adapt.AdaptersMap:
    """Return the adapters for sending values and receiving times.

    Every number is sent as a bigint, whatever its size, and lists are sent as binary. A time is received as the
    server's own number, microseconds since 2000: for thousands of items no other form is as cheap, and it is exact.
    """
    found = adapt.AdaptersMap(psycopg.adapters)
    for kind, dumper in ((int, Int8BinaryDumper), (bytes, BytesBinaryDumper), (list, ListBinaryDumper)):
        found.register_dumper(kind, dumper)
    found.register_loader("timestamptz", Int8BinaryLoader)
    return found


_ADAPTERS: Final = _adapters()


class Cursor(psycopg.Cursor[Any]):
    """A cursor for our own statements, independent of a user's settings of the connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)
        self._adapters = _ADAPTERS
        self.format = _BINARY


class Answer(Protocol):
    """What a statement has returned, or will: a cursor, or ``Rows``."""

    @property
    def rowcount(self) -> int:
        """The number of rows that it returned, or changed."""

    def fetchone(self) -> Any:
        """Return the first row, None if there is none."""

    def fetchall(self) -> list[Any]:
        """Return the rows."""


class Rows:
    """What a prepared statement has returned."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def fetchone(self) -> Any:
        """Return the first row, None if there is none."""
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Any]:
        """Return the rows."""
        return self._rows


class Statements:
    """The prepared statements of a connection. Its methods raise what psycopg raises."""

    def __init__(self, connection: Connection, sql: Sql) -> None:
        self.connection = connection
        self._pgconn = connection.pgconn
        self.sql = sql
        self._values = adapt.Transformer(Cursor(connection))
        self._prepared: dict[tuple[LiteralString, tuple[int, ...] | None], bytes] = {}  # by the types of parameters
        self._names = count()

    def rows(self, text: LiteralString, values: Mapping[str, Any]) -> list[Any]:
        """Execute a statement; return its rows."""
        numbered = self.sql.numbered[text]
        wire, pgconn = self._values, self._pgconn
        sent = wire.dump_sequence([*map(values.__getitem__, numbered.names)], numbered.formats)
        known = self._prepared.get((text, wire.types))
        pgconn.send_query_prepared(known or self._prepare(text, numbered.text), sent, wire.formats, _BINARY)
        results = self.connection.wait(execute(pgconn))
        error = _error_of(results)
        if error is None:
            wire.set_pgresult(results[0])
            return wire.load_rows(0, results[0].ntuples, tuple)
        if known is None or pgconn.transaction_status != _IDLE or not isinstance(error, FORGOTTEN):
            raise error
        self.forget()
        return self.rows(text, values)

    def forget(self) -> None:
        """Prepare all statements anew when they are needed: psycopg has the server forget them at its rollbacks."""
        self._prepared.clear()

    def execute(self, text: LiteralString, values: Mapping[str, Any]) -> Rows:
        """Execute a statement."""
        rows = self.rows(text, values)
        result = self._values.pgresult
        return Rows(rows, (result and result.command_tuples) or 0)

    def command(self, text: bytes) -> None:
        """Execute a command that has no parameters and no result.

        psycopg would take a ROLLBACK for a reason to forget all prepared statements.
        """
        self._pgconn.send_query(text)
        results = self.connection.wait(execute(self._pgconn))
        if (error := _error_of(results)) is not None:
            raise error

    def _prepare(self, text: LiteralString, query: bytes) -> bytes:
        """Prepare a statement for values of the types that were sent last; return its name."""
        types = self._values.types
        name = b"lmdbqueue_%d" % next(self._names)
        self._pgconn.send_prepare(name, query, types)
        if (error := _error_of(self.connection.wait(execute(self._pgconn)))) is not None:
            raise error
        self._prepared[text, types] = name
        return name


def _error_of(results: Sequence[pq.abc.PGresult]) -> psycopg.Error | None:
    """Return the error among the results of a statement: that of a commit comes after the rows."""
    for result in results:
        if result.status not in _FINE:
            return error_from_result(result)
    return None if results else psycopg.InternalError("the server returned no result")


@contextmanager
def together(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Pipeline]:
    """Send the statements of the block together; what ends it is raised, and nothing is logged."""
    ended_by = pipeline = None
    try:
        with connection.pipeline() as pipeline:
            try:
                yield pipeline
            except BaseException as error:  # psycopg would log further errors while this one unwinds
                ended_by = error
    except Exception as error:
        if pipeline is None:  # an interrupt: nobody knows whether it has begun
            connection.close()
        if ended_by is None:
            raise
        raise ended_by from error
    if ended_by is not None:
        raise ended_by
