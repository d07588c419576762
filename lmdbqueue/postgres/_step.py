"""A transaction under way, or a reading, as its functions use it.

Owns: how statements are sent, and the counts and notifications collected until the commit. Law: counts are written in
the transaction that makes the change. Must not know: how a transaction begins and ends.
"""

from typing import Any, LiteralString

import psycopg

from lmdbqueue.postgres._ledger import COUNT, FIRST_COUNT, KINDS, NOTE, Ledger, random_id
from lmdbqueue.postgres._statements import Answer, Cursor, Statements


class Step:
    """A transaction under way, or a reading: what functions of it use."""

    def __init__(
        self,
        statements: Statements,
        ledger: Ledger,
        path: str,
        token: int,
        *,
        is_block: bool = False,
    ) -> None:
        """``path`` is for errors; ``token`` is that of the change."""
        self.connection = statements.connection
        self.sql = statements.sql
        self.path = path
        self.token = token
        self.pipeline: psycopg.Pipeline | None = None  # sends statements together, up to the next result
        self.has_changed = False
        self.counts: dict[int, dict[str, int]] = {}
        self.told: set[str] = set()  # channels to be notified after the commit
        self.rows: dict[int, int] = {}  # rows of the ledger, created in this transaction
        self.is_block = is_block
        self._ledger = ledger
        self._statements = statements

    def execute(self, text: LiteralString, /, **values: Any) -> Answer:
        """Send a statement; asking for its rows waits for them."""
        if self.pipeline is None and not self.is_block:
            return self._statements.execute(text, values)
        return Cursor(self.connection).execute(self.sql(text), values)

    def changed(self, text: LiteralString, /, **values: Any) -> int:
        """Execute a statement; return the number of rows that it changed."""
        answer = self.execute(text, **values)
        if self.pipeline is not None:
            self.pipeline.sync()
        return answer.rowcount

    def count(self, queue: int, **changes: int) -> None:
        """Count changes of pushed, waiting (and its bytes), leased, delayed and dead items.

        In a user's block the counts are written immediately, so a savepoint that undoes the change undoes them, too.
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
        """Return the key of this session's existing row for a queue in the ledger."""
        return self._ledger.rows[queue]

    def note(self) -> None:
        """Write the token and the counts, in a transaction of several statements."""
        if not any(map(any, (each.values() for each in self.counts.values()))):
            self.execute(NOTE, row=self._ledger.rows[0], token=self.token)
        self.note_counts()

    def note_counts(self) -> None:
        """Write the counts."""
        for queue, changes in sorted(self.counts.items()):
            if not any(changes.values()):
                continue
            row = self._ledger.rows.get(queue) or self.rows.get(queue)
            is_there = row is not None
            if is_there:
                written = self.execute(COUNT, row=row, token=self.token, **changes)
                is_there = not self.is_block or bool(written.fetchall())  # otherwise it was undone with a savepoint
            if not is_there:
                row = self.rows[queue] = random_id()
                self.execute(
                    FIRST_COUNT, row=row, session=self._ledger.session, queue=queue, token=self.token, **changes
                )
        self.counts.clear()
