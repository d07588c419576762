"""One connection: its transactions, and the proof of which of them took place.

Owns: how a connection is opened, what its row in ``sessions`` says, the one statement or the one transaction that a
change is. Law: nothing is committed before the session's row was seen not to be fenced, and is locked; and whoever
asks what became of a change locks that row too, so that the answer cannot change any more. Must not know: threads,
queues' rules, what to do when a connection is lost.

Each session has a number of its own, chosen at random, and holds the advisory lock of that number as long as its
connection lives: so others can tell that it is dead. Each change gets the next token, which its own transaction
writes to the session's row. If the connection is lost while the reply to a commit is awaited, another connection
fences the row (``settled``): that waits for a transaction that is still under way, refuses one that a server may
still find in the buffer of a dead connection, and reads the token, which tells whether the change took place.
"""

import os
import select
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lmdbqueue._errors import VersionError
from lmdbqueue.postgres._failures import Lost, interrupt_amid, is_answered, is_lost, is_undone
from lmdbqueue.postgres._sql import Sql

KINDS: Final = ("waiting", "leased", "delayed", "dead")

_OLDEST: Final = 140_000  # PostgreSQL 14, the oldest that is maintained

# A dead peer is noticed on both sides within half a minute, unless the address says otherwise
_DEFAULTS: Final = {
    "application_name": "lmdbqueue",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
# What is read after a lock was waited for must be newer than the lock, so each statement has a snapshot of its own
_SETTINGS: Final = """
SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false), set_config('client_connection_check_interval', '2s', false),
       set_config('idle_session_timeout', '0', false), set_config('lock_timeout', '0', false),
       set_config('statement_timeout', '0', false),
       set_config('default_transaction_isolation', 'read committed', false)
"""
# A plan that was made when a table was nearly empty is kept, and must not read the whole of it later; to make one anew
# for each call took more time than to execute it
_PLANNER: Final = """
SELECT set_config('enable_seqscan', {0}, {1}), set_config('enable_sort', {0}, {1}),
       set_config('enable_bitmapscan', {0}, {1}), set_config('jit', {0}, {1}),
       set_config('plan_cache_mode', {2}, {1})
"""
_OUR_PLANS: Final = _PLANNER.format("'off'", "false", "'force_generic_plan'")
_USUAL_PLANS: Final = _PLANNER.format("'on'", "true", "'auto'")
_ENTER: Final = """
WITH mine AS (SELECT set_config('synchronous_commit', 'off', true))
INSERT INTO {sessions} (id) SELECT %(session)s FROM mine
"""
_LOCK: Final = "SELECT pg_advisory_lock(%(session)s)"
_FENCE: Final = "SELECT FROM {sessions} WHERE id = %(session)s AND NOT is_fenced FOR UPDATE"
_NOTE: Final = """
UPDATE {sessions} SET token = %(token)s, result = NULL, seen = statement_timestamp() WHERE id = %(session)s
"""
_COUNT: Final = """
INSERT INTO {counts} (queue, session, taken, leased, delayed, dead)
VALUES (%(queue)s, %(session)s, -%(waiting)s, %(leased)s, %(delayed)s, %(dead)s)
ON CONFLICT (queue, session) DO UPDATE SET
    taken = {counts}.taken + excluded.taken, leased = {counts}.leased + excluded.leased,
    delayed = {counts}.delayed + excluded.delayed, dead = {counts}.dead + excluded.dead
"""
# Of a change of one queue: two statements in one
_NOTE_AND_COUNT: Final = "WITH noted AS (" + _NOTE + ")" + _COUNT
_SETTLE: Final = "UPDATE {sessions} SET is_fenced = true WHERE id = %(session)s RETURNING token, result"
_WAIT_AT_MOST: Final = "SELECT set_config('lock_timeout', %(timeout)s, false)"

# What dead sessions have counted goes to the queues; their rows stay for a day, for those who may ask for a token. A
# queue that is being pushed to is left for the next time: nobody waits for this, and it waits for nobody
_SWEEP: Final = """
WITH free AS (
    SELECT id FROM {queues} WHERE id IN (SELECT queue FROM {counts}) ORDER BY id FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {counts} WHERE queue IN (SELECT id FROM free) AND session IN (
        SELECT session FROM (SELECT DISTINCT session FROM {counts}) AS each
        WHERE session = %(session)s OR pg_try_advisory_xact_lock_shared(session))
    RETURNING queue, taken, leased, delayed, dead),
old AS (
    DELETE FROM {sessions} WHERE id = %(session)s
    OR (seen < clock_timestamp() - interval '1 day' AND pg_try_advisory_xact_lock_shared(id))),
sums AS (
    SELECT queue, sum(taken) AS taken, sum(leased) AS leased, sum(delayed) AS delayed, sum(dead) AS dead
    FROM gone GROUP BY queue)
UPDATE {queues} SET
    taken = queues.taken + sums.taken, leased = queues.leased + sums.leased,
    delayed = queues.delayed + sums.delayed, dead = queues.dead + sums.dead
FROM sums WHERE queues.id = sums.queue
"""
_SWEEPER: Final = "SELECT pg_try_advisory_xact_lock({sweeper})"


def shown(conninfo: str) -> str:
    """Return an address without what is secret in it; raise ``ValueError`` if it is none."""
    try:
        known = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        message = f"this is no address of a database: {str(error).strip()}"
        raise ValueError(message) from None
    return make_conninfo("", **{key: known[key] for key in ("host", "port", "user", "dbname") if known.get(key)})


class Step:
    """A transaction under way, or a reading: what functions of it use."""

    def __init__(self, connection: psycopg.Connection[Any], sql: Sql, session: int, token: int) -> None:
        self.connection = connection
        self.session = session
        self.token = token
        self.pipeline: psycopg.Pipeline | None = None  # statements are sent together, up to the next result
        self.sql = sql
        self.has_changed = False
        self.is_noted = False  # a statement has written the token
        self.counts: dict[int, dict[str, int]] = {}

    def execute(self, text: LiteralString, /, **values: Any) -> psycopg.Cursor[Any]:
        """Send a statement; asking the cursor for its rows waits for them."""
        return self.connection.execute(self.sql(text), values, binary=True)

    def fence(self) -> psycopg.Cursor[Any]:
        """Lock the session's row; there is one row if it is not fenced."""
        return self.execute(_FENCE, session=self.session)

    def changed(self, text: LiteralString, /, **values: Any) -> int:
        """Execute a statement; return how many rows it changed."""
        cursor = self.execute(text, **values)
        if self.pipeline is not None:
            self.pipeline.sync()
        return cursor.rowcount

    def count(self, queue: int, **changes: int) -> None:
        """Note that so many items more (or fewer) are waiting, leased, delayed, dead; a push counts as waiting."""
        self.has_changed = True
        known = self.counts.setdefault(queue, dict.fromkeys(KINDS, 0))
        for kind, change in changes.items():
            known[kind] += change


class Session:
    """A connection, for one thread at a time."""

    def __init__(self, conninfo: str, sql: Sql, path: str) -> None:
        """Connect. ``path`` is for errors. Raises what psycopg raises."""
        self._sql = sql
        self._token = 0
        self._transaction: AbstractContextManager[psycopg.Transaction] | None = None
        self.id = int.from_bytes(os.urandom(8)) >> 1
        self.process = os.getpid()
        known: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(conninfo)}
        self.connection = psycopg.connect(make_conninfo("", **known), autocommit=True, prepare_threshold=2)
        try:
            version = self.connection.info.server_version
            if version < _OLDEST:
                found = f"a server of version {version // 10_000}"
                raise VersionError(path, found, "use PostgreSQL 14 or later")  # noqa: TRY301  (as what the server says)
            self._cursor = self.connection.cursor(binary=True)  # for what has one statement
            self._is_near = self.connection.info.host.startswith(("/", "@"))
            self.connection.execute(_SETTINGS)
            self.connection.execute(_OUR_PLANS)
        except BaseException:
            self.close()
            raise

    def enter(self) -> Self:
        """Make this session known to others; it lives until its connection ends, which it does if this fails."""
        handled = sys.exception()
        try:
            with self.connection.pipeline():
                self.connection.execute(self._sql(_ENTER), {"session": self.id})
                self.connection.execute(_LOCK, {"session": self.id})
        except BaseException as error:
            self.close()
            raise (interrupt_amid(error, handled) or error) from None
        return self

    def view(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(step, *args)``, in which each statement is on its own and changes nothing."""
        try:
            return fn(self._step(), *args)
        except Exception as error:
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], *, claims: bool = False, is_one: bool = False) -> Any:
        """Return ``fn(step, *args)``, in a transaction that is committed if it changed anything.

        ``claims``: its first statement locks the session's row itself, and finds nothing if that is fenced.
        ``is_one``: it is mostly the only one.
        """
        self._token += 1
        handled = sys.exception()
        step = self._step()
        result = None
        commits = False
        try:
            with self._pipeline(is_one) as step.pipeline:
                self._send(step, "BEGIN")
                fence = None if claims else step.fence()
                result = fn(step, *args)
                if fence is not None and not fence.fetchall():
                    raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301  (as what the server says)
                commits = step.has_changed
                self._finish(step)
        except Exception as error:
            if (interrupt := interrupt_amid(error, handled)) is not None:
                raise interrupt from None
            self._undo()
            if is_undone(error):
                raise Lost(error) from error
            if is_lost(error, self.connection):
                is_open = is_answered(error)
                raise Lost(error, has_begun=not is_open, is_unknown=commits and not is_open, result=result) from error
            raise
        return result

    def begin(self) -> Step:
        """Begin a transaction that goes on until ``commit``, or ``undo``."""
        self._token += 1
        try:
            self._transaction = self.connection.transaction()
            self._transaction.__enter__()  # so that psycopg refuses a user's commit()
            self.connection.execute(_USUAL_PLANS)  # for the user's own statements
            step = self._step()
            if not step.fence().fetchall():
                raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301
        except Exception as error:
            self.undo()
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise
        return step

    def commit(self, step: Step) -> None:
        """Commit the transaction that ``begin`` began, with what the user's own statements did."""
        self._note(step)
        assert self._transaction is not None  # begun
        self._transaction.__exit__(None, None, None)
        self._transaction = None

    def undo(self) -> None:
        """End the transaction that ``begin`` began."""
        transaction, self._transaction = self._transaction, None
        with suppress(psycopg.Error):
            if transaction is not None:
                transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        self._undo()

    def _step(self) -> Step:
        return Step(self.connection, self._sql, self.id, self._token)

    def _pipeline(self, is_one: bool) -> AbstractContextManager[psycopg.Pipeline | None]:
        """Return what sends statements together. It costs more than the one exchange that it saves, if that is near."""
        return nullcontext() if is_one and self._is_near else self.connection.pipeline()

    def _finish(self, step: Step) -> None:
        if step.has_changed:
            self._note(step)
            self._send(step, "COMMIT")
        else:
            self._send(step, "ROLLBACK")

    def _send(self, step: Step, text: LiteralString) -> None:
        (self.connection if step.pipeline else self._cursor).execute(text)

    def _note(self, step: Step) -> None:
        """Write down what was counted, and the token."""
        counted = [(queue, changes) for queue, changes in sorted(step.counts.items()) if any(changes.values())]
        if len(counted) == 1:
            queue, changes = counted[0]
            step.execute(_NOTE_AND_COUNT, queue=queue, session=self.id, token=self._token, **changes)
            return
        for queue, changes in counted:
            step.execute(_COUNT, queue=queue, session=self.id, **changes)
        if not step.is_noted:
            step.execute(_NOTE, session=self.id, token=self._token)

    def once(self, text: LiteralString, values: dict[str, Any]) -> Any:
        """Execute a change that is one statement, which looks at the fence and notes its token and result itself."""
        self._token += 1
        step = self._step()
        try:
            values |= {"session": self.id, "token": self._token}
            row = self._cursor.execute(self._sql(text), values).fetchone()
            if row is None and not step.fence().fetchall():
                raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301
        except psycopg.errors.NotNullViolation as error:
            raise Lost(error) from error  # so says a statement that found the session fenced
        except Exception as error:
            if is_undone(error):
                raise Lost(error) from error
            if is_lost(error, self.connection):
                raise Lost(error, is_unknown=not is_answered(error)) from error
            raise
        return row

    @property
    def token(self) -> int:
        """Of the last change."""
        return self._token

    @property
    def is_idle(self) -> bool:
        """Tell whether it can be used for the next step."""
        return self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE

    @property
    def is_alive(self) -> bool:
        """Tell whether the connection stands, as far as this side has been told."""
        if self.connection.closed:
            return False
        readable, _, _ = select.select([self.connection.fileno()], [], [], 0)
        if readable:  # the other end has said good-bye, or is gone; or it is a notice
            with suppress(psycopg.Error):
                self.connection.execute("")
        return not self.connection.closed

    def settled(self, session: int, timeout: float) -> tuple[int, int | None]:
        """Shut out a session that lost its connection; return its last token, 0 for none, and its result."""
        self.connection.execute(_WAIT_AT_MOST, {"timeout": str(max(1, int(timeout * 1000)))})
        row = self.connection.execute(self._sql(_SETTLE), {"session": session}).fetchone()
        self.connection.execute(_WAIT_AT_MOST, {"timeout": "0"})
        return (0, None) if row is None else row

    def sweep(self, session: int = 0) -> None:
        """Let the queues count what dead sessions have counted, and ``session``, unless another does so now."""
        with self.connection.transaction():
            if self.connection.execute(self._sql(_SWEEPER)).fetchall() == [(True,)]:
                self.connection.execute(self._sql(_SWEEP), {"session": session})

    def leave(self) -> None:
        """End an entered session: nothing is to be settled, so its row goes too. It may fail: others sweep."""
        with suppress(psycopg.Error):
            if self.is_idle:
                self.connection.execute("SELECT set_config('synchronous_commit', 'off', false)")
                self.connection.execute(_WAIT_AT_MOST, {"timeout": "100"})
                self.sweep(self.id)
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def abandon(self) -> None:
        """Give up the descriptor of a connection that is the parent's, without a word to the server."""
        with suppress(OSError, psycopg.Error):
            os.close(self.connection.fileno())

    def _undo(self) -> None:
        with suppress(psycopg.Error):
            if not self.connection.closed and not self.is_idle:
                self.connection.execute("ROLLBACK")
