"""A transaction under way, or a reading: what functions of it use.

Owns: how their statements are sent, and what they count and tell until the commit. Law: what was counted is written
down in the transaction that changed it. Must not know: how a transaction begins and ends.
"""

from typing import Any, LiteralString

import psycopg

from lmdbqueue.postgres._connection import Cursor
from lmdbqueue.postgres._ledger import COUNT, FIRST_COUNT, KINDS, NOTE, Ledger, random_id
from lmdbqueue.postgres._sql import Sql


class Step:
    """A transaction under way, or a reading: what functions of it use."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        ledger: Ledger,
        sql: Sql,
        path: str,
        token: int,
        *,
        is_block: bool = False,
    ) -> None:
        """``path`` is for errors, ``token`` that of the change."""
        self.connection = connection
        self.sql = sql
        self.path = path
        self.token = token
        self.pipeline: psycopg.Pipeline | None = None  # statements are sent together, up to the next result
        self.has_changed = False
        self.counts: dict[int, dict[str, int]] = {}
        self.told: set[str] = set()  # channels of those to be woken after the commit
        self.rows: dict[int, int] = {}  # of the ledger, made in this transaction
        self.is_block = is_block
        self._ledger = ledger

    def execute(self, text: LiteralString, /, **values: Any) -> psycopg.Cursor[Any]:
        """Send a statement; asking the cursor for its rows waits for them."""
        return Cursor(self.connection).execute(self.sql(text), values)

    def changed(self, text: LiteralString, /, **values: Any) -> int:
        """Execute a statement; return how many rows it changed."""
        cursor = self.execute(text, **values)
        if self.pipeline is not None:
            self.pipeline.sync()
        return cursor.rowcount

    def count(self, queue: int, **changes: int) -> None:
        """Note that so much more, or less, was pushed, waits (and its bytes), is leased, delayed, dead.

        In a user's block it is written down at once: a savepoint that undoes the change undoes that, too.
        """
        self.has_changed = True
        known = self.counts.setdefault(queue, dict.fromkeys(KINDS, 0))
        for kind, change in changes.items():
            known[kind] += change
        if self.is_block:
            self.note_counts()

    def tell(self, channel: str) -> None:
        """Wake the waiters of a queue when this is committed."""
        self.told.add(channel)

    def row(self, queue: int) -> int:
        """Return the key of this session's row of a queue in the ledger, which is there."""
        return self._ledger.rows[queue]

    def note(self) -> None:
        """Write down the token, and what was counted, in a transaction of several statements."""
        if not any(map(any, (each.values() for each in self.counts.values()))):
            self.execute(NOTE, row=self._ledger.rows[0], token=self.token)
        self.note_counts()

    def note_counts(self) -> None:
        """Write down what was counted."""
        for queue, changes in sorted(self.counts.items()):
            if not any(changes.values()):
                continue
            row = self._ledger.rows.get(queue) or self.rows.get(queue)
            is_there = row is not None
            if is_there:
                written = self.execute(COUNT, row=row, token=self.token, **changes)
                is_there = not self.is_block or bool(written.fetchall())  # else it was undone with a savepoint
            if not is_there:
                row = self.rows[queue] = random_id()
                self.execute(
                    FIRST_COUNT, row=row, session=self._ledger.session, queue=queue, token=self.token, **changes
                )
        self.counts.clear()
