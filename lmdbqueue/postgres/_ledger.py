"""The notes of each session on itself and its changes: its rows in the ledger.

Owns: the rows of a session, and the fate of those of dead ones. Law: a row that cannot be pruned is replaced, so that
no chain of its versions is longer than a page; the counts of a dead session are added to its queues once. Must not
know: what is counted, when a change is repeated.
"""

import os
from contextlib import suppress
from itertools import count
from typing import Any, Final, NamedTuple

import psycopg

from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._sql import Sql
from lmdbqueue.postgres._statements import Cursor

_BITS: Final = 23  # of a session's number that count those of its process

KINDS: Final = ("pushed", "waiting", "size", "leased", "delayed", "dead", "expired", "dropped")

ASYNC: Final = "SELECT set_config('synchronous_commit', 'off', true)"
LOCK: Final = "SELECT pg_advisory_lock(%(session)s)"
ENTER: Final = (
    "WITH mine AS MATERIALIZED ("
    + ASYNC
    + ") INSERT INTO {ledger} (id, session, queue) SELECT %(row)s, %(session)s, %(queue)s FROM mine"
)
_OPEN: Final = ENTER + ", (SELECT FROM {ledger} WHERE id = %(own)s AND NOT is_fenced FOR NO KEY UPDATE) AS own"
# A row that cannot be pruned, since an old snapshot is open, is replaced by one with a new key
_RENEW: Final = (
    "WITH mine AS MATERIALIZED ("
    + ASYNC
    + """),
old AS (DELETE FROM {ledger} WHERE id = %(old)s AND NOT is_fenced AND EXISTS (SELECT FROM mine) RETURNING *)
INSERT INTO {ledger} (id, session, queue, token, result, pushed, waiting, size, leased, delayed, dead,
    expired, dropped)
SELECT %(row)s, session, queue, token, result, pushed, waiting, size, leased, delayed, dead, expired, dropped FROM old
"""
)
FENCE: Final = "SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE"
# Fails if the session is fenced, so that statements sent together with it, and arriving late, claim nothing
STAND: Final = "SELECT 1 / count(*) FROM (" + FENCE + ") AS mine"
NOTE: Final = "UPDATE {ledger} SET token = %(token)s, result = NULL WHERE id = %(row)s RETURNING ctid"
COUNT: Final = """
UPDATE {ledger} SET token = %(token)s, result = NULL, pushed = pushed + %(pushed)s, waiting = waiting + %(waiting)s,
    size = size + %(size)s, leased = leased + %(leased)s, delayed = delayed + %(delayed)s, dead = dead + %(dead)s,
    expired = expired + %(expired)s, dropped = dropped + %(dropped)s
WHERE id = %(row)s RETURNING ctid
"""
FIRST_COUNT: Final = """
INSERT INTO {ledger} (id, session, queue, token, pushed, waiting, size, leased, delayed, dead, expired, dropped)
VALUES (%(row)s, %(session)s, %(queue)s, %(token)s, %(pushed)s, %(waiting)s, %(size)s, %(leased)s, %(delayed)s,
        %(dead)s, %(expired)s, %(dropped)s)
RETURNING ctid
"""
ARE_THERE: Final = "SELECT id FROM {ledger} WHERE id = ANY(%(rows)s)"
_SETTLE_OWN: Final = """
UPDATE {ledger} SET is_fenced = true WHERE session = %(session)s AND queue = 0 RETURNING token, result
"""
_SETTLE_REST: Final = """
UPDATE {ledger} SET is_fenced = true WHERE session = %(session)s AND queue <> 0 RETURNING token, result
"""

# The sessions of processes with a dead owner: one may have a lease under way, or in a buffer that the server reads
# later. A locked row is left alone: something is under way there
_OF_THE_DEAD: Final = """
ledger.session BETWEEN dead.program << 23 AND (dead.program << 23) + 8388607
AND ledger.queue IN (0, %(queue)s) AND NOT ledger.is_fenced"""
SHUT_OUT: Final = (
    """
UPDATE {ledger} SET is_fenced = true WHERE id = ANY(ARRAY(
    SELECT ledger.id FROM unnest(%(programs)s::bigint[]) AS dead (program) JOIN {ledger} ON"""
    + _OF_THE_DEAD
    + """
    FOR NO KEY UPDATE OF ledger SKIP LOCKED))
"""
)
ARE_OUT: Final = (
    "SELECT program FROM unnest(%(programs)s::bigint[]) AS dead (program) WHERE NOT EXISTS (SELECT FROM {ledger} WHERE"
    + _OF_THE_DEAD
    + ")"
)

# The counts of dead sessions are added to the queues, some rows at a time; their rows stay for a day, for processes
# that may ask for a token. A locked queue is left for the next time, so that nothing waits here
_FOLD: Final = """
WITH dead AS MATERIALIZED (
    SELECT id, queue FROM {ledger} WHERE NOT is_folded AND session NOT IN ({alive})
    ORDER BY queue LIMIT 500 FOR UPDATE SKIP LOCKED),
free AS MATERIALIZED (
    SELECT id FROM {queues} WHERE id = ANY(ARRAY(SELECT queue FROM dead)) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
old AS MATERIALIZED (
    SELECT * FROM {ledger} WHERE id = ANY(ARRAY(SELECT dead.id FROM dead))
    AND (queue = 0 OR queue IN (SELECT id FROM free))),
folded AS (
    UPDATE {ledger} SET is_folded = true, is_fenced = true, seen = clock_timestamp(), pushed = 0, waiting = 0,
        size = 0, leased = 0, delayed = 0, dead = 0, expired = 0, dropped = 0
    WHERE id = ANY(ARRAY(SELECT old.id FROM old))),
sums AS (
    SELECT queue, sum(pushed) AS pushed, sum(waiting) AS waiting, sum(size) AS size, sum(leased) AS leased,
        sum(delayed) AS delayed, sum(dead) AS dead, sum(expired) AS expired, sum(dropped) AS dropped
    FROM old GROUP BY queue),
counted AS (
    UPDATE {queues} SET pushed = q.pushed + sums.pushed, waiting = q.waiting + sums.waiting, size = q.size + sums.size,
        leased = q.leased + sums.leased, delayed = q.delayed + sums.delayed, dead = q.dead + sums.dead,
        expired = q.expired + sums.expired, dropped = q.dropped + sums.dropped
    FROM sums JOIN {queues} AS q ON q.id = sums.queue WHERE queues.id = q.id)
SELECT count(*) FROM old
"""
_FORGET: Final = """
DELETE FROM {ledger} WHERE id = ANY(ARRAY(
    SELECT id FROM {ledger} WHERE is_folded AND seen < clock_timestamp() - interval '1 day'
    AND session NOT IN ({alive}) LIMIT 500 FOR UPDATE SKIP LOCKED))
"""
_FORGET_SLEEPERS: Final = "DELETE FROM {sleepers} WHERE session NOT IN ({alive})"
_FORGET_CLAIMS: Final = "DELETE FROM {claims} WHERE session NOT IN ({alive})"
_SWEEPER: Final = "SELECT pg_try_advisory_xact_lock({sweeper})"
_ROUNDS: Final = 20  # of one sweep: the next opening continues

# For this session, which has nothing under way
_LEAVE: Final = """
WITH gone AS (DELETE FROM {ledger} WHERE session = %(session)s AND queue = %(queue)s RETURNING *)
UPDATE {queues} SET pushed = queues.pushed + gone.pushed, waiting = queues.waiting + gone.waiting,
    size = queues.size + gone.size, leased = queues.leased + gone.leased, delayed = queues.delayed + gone.delayed,
    dead = queues.dead + gone.dead, expired = queues.expired + gone.expired, dropped = queues.dropped + gone.dropped
FROM gone WHERE queues.id = %(queue)s
"""
_LEAVE_OWN: Final = "DELETE FROM {ledger} WHERE session = %(session)s AND queue = 0"
CHEAP: Final = "SELECT set_config('synchronous_commit', 'off', false), set_config('lock_timeout', '100', false)"


class Settled(NamedTuple):
    """The notes on a change that took place although its reply was lost."""

    result: int | None


class Ledger:
    """The rows of a session."""

    def __init__(self, cursor: Cursor, sql: Sql, session: int) -> None:
        self._cursor = cursor
        self._sql = sql
        self.session = session
        self.worn: set[int] = set()  # queues whose row has left its page
        self._pages: dict[int, bytes] = {}  # the page of each queue's row
        self.rows: dict[int, int] = {}  # their keys, by queue; 0: the session's own

    def enter(self) -> None:
        """Make the session known to others; it lives until its connection ends."""
        row = random_id()
        self._cursor.execute(LOCK, {"session": self.session})  # first: a row without the lock belongs to a dead session
        self._cursor.execute(self._sql(ENTER), {"session": self.session, "row": row, "queue": 0})
        self.rows[0] = row

    def open_row(self, queue: int) -> None:
        """Create this session's row for a queue, unless it was shut out."""
        if queue not in self.rows:
            row = random_id()
            values = {"session": self.session, "row": row, "queue": queue, "own": self.rows[0]}
            self._cursor.execute(self._sql(_OPEN), values)
            if not self._cursor.rowcount:
                raise Lost(RuntimeError("the session was fenced"))
            self.rows[queue] = row

    def renew(self) -> None:
        """Replace the rows that have left their pages."""
        while self.worn:
            queue = self.worn.pop()
            row = random_id()
            self._cursor.execute(self._sql(_RENEW), {"old": self.rows[queue], "row": row})
            if not self._cursor.rowcount:
                raise Lost(RuntimeError("the session was fenced"))
            self.rows[queue] = row
            self._pages.pop(queue, None)

    def look_at(self, queue: int, ctid: bytes) -> None:
        """Note the place of a row's new version: while it can be pruned, it stays in its page."""
        if self._pages.setdefault(queue, ctid[:4]) != ctid[:4]:
            self.worn.add(queue)

    def is_fenced(self, queue: int) -> bool:
        """Return whether the server refused a change since this session was shut out."""
        try:
            return not self._cursor.execute(self._sql(FENCE), {"row": self.rows[queue]}).fetchall()
        except psycopg.Error:
            return False

    def settle(self, session: int, token: int) -> Settled | None:
        """Shut out another session; return its notes on a change, None if that is undone."""
        rows = []
        for statement in (_SETTLE_OWN, _SETTLE_REST):  # its own row first: a change of a queue may hold it already
            rows += self._cursor.execute(self._sql(statement), {"session": session}).fetchall()
        return next((Settled(result) for last, result in rows if last == token), None)

    def leave(self) -> None:
        """Remove the rows, since nothing has to be settled. It may fail: other sessions sweep."""
        for queue in sorted(self.rows):
            if queue:
                with suppress(psycopg.errors.LockNotAvailable):
                    self._cursor.execute(self._sql(_LEAVE), {"session": self.session, "queue": queue})
        self._cursor.execute(self._sql(_LEAVE_OWN), {"session": self.session})


def sweep(connection: psycopg.Connection[Any], sql: Sql) -> None:
    """Add the counts of dead sessions to their queues, unless another session is doing so. It may fail in part."""
    cursor = Cursor(connection)
    with suppress(psycopg.Error):
        for _ in range(_ROUNDS):
            with connection.transaction():
                if cursor.execute(sql(_SWEEPER)).fetchall() != [(True,)]:
                    return
                ((folded,),) = cursor.execute(sql(_FOLD)).fetchall()
                forgotten = cursor.execute(sql(_FORGET)).rowcount
                cursor.execute(sql(_FORGET_SLEEPERS))
                cursor.execute(sql(_FORGET_CLAIMS))
            if not folded and not forgotten:
                return


class Program:
    """A process as others see it: the numbers of its sessions have a common prefix, so they are a range."""

    def __init__(self) -> None:
        start = random_id()
        self._first = program_of(start) << _BITS
        self._numbers = count(start - self._first)

    def session(self) -> int:
        """Return the number of a new session."""
        return self._first + next(self._numbers) % (1 << _BITS)


def program_of(session: int) -> int:
    """Return the common prefix of the numbers of all sessions of the same process."""
    return session >> _BITS


def random_id() -> int:
    """Return a unique number: 63 random bits."""
    return int.from_bytes(os.urandom(8)) >> 1
