"""Statements with the names of one schema filled in.

Owns: how a name of the schema gets into a statement. Law: names are quoted by psycopg, values are parameters, so
nothing that a user gives becomes SQL. Must not know: what a statement does.
"""

from typing import Final, LiteralString

from psycopg import sql

TABLES: Final = ("meta", "queues", "items", "leases", "sessions", "counts", "state", "marks", "readers", "tails")

NEVER: Final = (1 << 63) - 1  # ``due`` of an item without a delay; the greatest bigint, so that it comes last


class Sql:
    """The statements of a schema, each rendered once: ``{items}`` stands for the table, quoted."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._names: dict[str, sql.Composable] = {each: sql.Identifier(schema, each) for each in TABLES}
        self._names["schema"] = sql.Identifier(schema)
        self._names["never"] = sql.Literal(NEVER)
        # microseconds since 1970, by the server's clock
        self._names["now"] = sql.SQL("floor(extract(epoch FROM statement_timestamp()) * 1000000)::bigint")
        # of the advisory lock of who sweeps
        self._names["sweeper"] = sql.SQL("hashtextextended({}, 0)").format(sql.Literal(f"lmdbqueue sweep {schema}"))
        self._rendered: dict[str, bytes] = {}

    def __call__(self, text: LiteralString) -> bytes:
        """Return the statement."""
        rendered = self._rendered.get(text)
        if rendered is None:
            rendered = sql.SQL(text).format(**self._names).as_bytes(None)
            self._rendered[text] = rendered
        return rendered

    def channel(self, queue: int) -> str:
        """Return what those listen to who wait for a queue."""
        return f"{self.schema}.{queue}"

    def queue(self, channel: str) -> int:
        """Return the queue of a channel."""
        return int(channel[len(self.schema) + 1 :])
