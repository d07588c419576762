"""Statements with the names of one schema filled in.

Owns: how a name of the schema gets into a statement, and the common parts of statements. Law: names are quoted by
psycopg and values are parameters, so no user input becomes SQL. Must not know: what a statement does.
"""

import re
from collections.abc import Sequence
from typing import Final, LiteralString, NamedTuple

from psycopg import sql
from psycopg.adapt import PyFormat

TABLES: Final = (
    "meta",
    "queues",
    "tails",
    "items",
    "claims",
    "ledger",
    "owners",
    "sleepers",
    "state",
    "marks",
    "readers",
)

# The living sessions and owners, according to the server's lock table: no lock is taken to find out, since
# thousands of dead ones would fill that table
_ALIVE: Final = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND mode = 'ExclusiveLock'
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_NAMED: Final = re.compile(rb"%\((\w+)\)s|%%")


class Numbered(NamedTuple):
    """A statement with numbers for its parameters, as the server has it."""

    text: bytes
    names: tuple[str, ...]  # of its parameters, in the order of their numbers
    formats: Sequence[PyFormat]


class _Numbering(dict[LiteralString, Numbered]):
    """The statements of a schema with numbered parameters, each made once."""

    def __init__(self, sql: "Sql") -> None:
        super().__init__()
        self._sql = sql

    def __missing__(self, text: LiteralString) -> Numbered:
        names: dict[bytes, int] = {}

        def number(found: re.Match[bytes]) -> bytes:
            return b"$%d" % names.setdefault(found[1], len(names) + 1) if found[1] else b"%"

        made = _NAMED.sub(number, self._sql(text))
        self[text] = Numbered(made, tuple(name.decode() for name in names), [PyFormat.AUTO] * len(names))
        return self[text]


class Sql:
    """The statements of a schema, each rendered once: ``{items}`` stands for the table, quoted."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._names: dict[str, sql.Composable] = {each: sql.Identifier(schema, each) for each in TABLES}
        self._names["schema"] = sql.Identifier(schema)
        self._names["now"] = sql.SQL("statement_timestamp()")
        self._names["alive"] = sql.SQL(_ALIVE)
        # the key of the advisory lock of a sweep
        self._names["sweeper"] = sql.SQL("hashtextextended({}, 0)").format(sql.Literal(f"lmdbqueue sweep {schema}"))
        self._rendered: dict[str, bytes] = {}
        self.numbered = _Numbering(self)

    def __call__(self, text: LiteralString) -> bytes:
        """Return the statement."""
        rendered = self._rendered.get(text)
        if rendered is None:
            rendered = sql.SQL(text).format(**self._names).as_bytes(None)
            self._rendered[text] = rendered
        return rendered

    def channel(self, queue: int) -> str:
        """Return the channel on which waiters of a queue listen."""
        return f"{self.schema}.{queue}"

    def queue(self, channel: str) -> int:
        """Return the queue of a channel."""
        return int(channel[len(self.schema) + 1 :])
