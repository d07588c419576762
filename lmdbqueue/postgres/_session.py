"""One connection: its transactions, and the proof of which of them took place.

Owns: how a connection is opened, what its rows in the ledger say, the one statement or the one transaction that a
change is. Law: nothing is committed before a row of the session was seen not to be fenced, and is locked; and who asks
what became of a change locks those rows too, so that the answer cannot change any more. Must not know: threads,
the rules of queues, what to do when a connection is lost.

Each session has a number of its own, chosen at random, and holds the advisory lock of that number as long as its
connection lives: so others can tell that it is dead. It has a row in the ledger, and one more for each queue that it
changes. Each change gets the next token, which its own transaction writes to one of these rows. If the connection is
lost while the reply to a commit is awaited, another connection fences the rows (``settled``): that waits for a
transaction that is still under way, refuses one that a server may still find in the buffer of a dead connection, and
reads the tokens, which tell whether the change took place.

A change that is one statement (``once``) writes its token to the row of its queue, together with what it counts, and
fails if that is fenced: it divides by the number of rows that it found, or has no number for an item. A change of
several statements (``run``) locks the session's own row first.
"""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final, LiteralString, NamedTuple, Self

import psycopg
from psycopg import adapt, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg.types.array import ListBinaryDumper
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import BytesBinaryDumper

from lmdbqueue._errors import VersionError
from lmdbqueue.postgres._failures import Lost, interrupt_amid, is_answered, is_lost, is_undone
from lmdbqueue.postgres._sql import Sql

KINDS: Final = ("pushed", "waiting", "size", "leased", "delayed", "dead", "expired", "dropped")

_OLDEST: Final = 140_000  # PostgreSQL 14, the oldest that is maintained
_MAX_TIMEOUT: Final = (1 << 31) - 1  # ms

# A dead peer is noticed on both sides within half a minute, unless the address says otherwise
_DEFAULTS: Final = {
    "application_name": "lmdbqueue",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
# Whatever the database is encoded in, names and messages come and go as UTF-8
_ENCODING: Final = {"client_encoding": "UTF8"}

# Settings of the user's that hold in a block again
_USERS: Final = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
_OPENED: Final = "SELECT pg_backend_pid(), " + ", ".join(f"current_setting('{name}')" for name in _USERS)

# What is read after a lock was waited for must be newer than the lock, so each statement has a snapshot of its own
_SETTINGS: Final = """
SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false), set_config('client_connection_check_interval', '2s', false),
       set_config('idle_session_timeout', '0', false), set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('statement_timeout', '0', false), set_config('lock_timeout', '{}', false),
       set_config('default_transaction_isolation', 'read committed', false)
"""
# A plan that was made when a table was nearly empty is kept, and must not read the whole of it later; to make one anew
# for each call took more time than to execute it
_PLANNER: Final = """
SELECT set_config('enable_seqscan', {0}, {1}), set_config('enable_sort', {0}, {1}),
       set_config('enable_bitmapscan', {0}, {1}), set_config('enable_hashjoin', {0}, {1}),
       set_config('enable_mergejoin', {0}, {1}), set_config('jit', 'off', {1}),
       set_config('max_parallel_workers_per_gather', '0', {1}),
       set_config('plan_cache_mode', {2}, {1})
"""
_OUR_PLANS: Final = _PLANNER.format("'off'", "false", "'force_generic_plan'")
_USUAL_PLANS: Final = _PLANNER.format("'on'", "true", "'auto'")
_USUAL_LIMITS: Final = "SELECT " + ", ".join(f"set_config('{name}', %s, true)" for name in _USERS)
# After statements of a user's own: what they set goes, and ours comes back
_RESET: Final = "RESET SESSION AUTHORIZATION; RESET ROLE; UNLISTEN *; RESET ALL"

_ASYNC: Final = "SELECT set_config('synchronous_commit', 'off', true)"
_LOCK: Final = "SELECT pg_advisory_lock(%(session)s)"
_ENTER: Final = (
    "WITH mine AS MATERIALIZED ("
    + _ASYNC
    + ") INSERT INTO {ledger} (id, session, queue) SELECT %(row)s, %(session)s, %(queue)s FROM mine"
)
# A row that cannot be pruned, since an old snapshot is open, is replaced by one with a new key
_RENEW: Final = (
    "WITH mine AS MATERIALIZED ("
    + _ASYNC
    + """),
old AS (DELETE FROM {ledger} WHERE id = %(old)s AND NOT is_fenced AND EXISTS (SELECT FROM mine) RETURNING *)
INSERT INTO {ledger} (id, session, queue, token, result, pushed, waiting, size, leased, delayed, dead,
    expired, dropped)
SELECT %(row)s, session, queue, token, result, pushed, waiting, size, leased, delayed, dead, expired, dropped FROM old
"""
)
_FENCE: Final = "SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE"
_NOTE: Final = "UPDATE {ledger} SET token = %(token)s, result = NULL WHERE id = %(row)s RETURNING ctid"
_COUNT: Final = """
UPDATE {ledger} SET token = %(token)s, result = NULL, pushed = pushed + %(pushed)s, waiting = waiting + %(waiting)s,
    size = size + %(size)s, leased = leased + %(leased)s, delayed = delayed + %(delayed)s, dead = dead + %(dead)s,
    expired = expired + %(expired)s, dropped = dropped + %(dropped)s
WHERE id = %(row)s RETURNING ctid
"""
_FIRST_COUNT: Final = """
INSERT INTO {ledger} (id, session, queue, token, pushed, waiting, size, leased, delayed, dead, expired, dropped)
VALUES (%(row)s, %(session)s, %(queue)s, %(token)s, %(pushed)s, %(waiting)s, %(size)s, %(leased)s, %(delayed)s,
        %(dead)s, %(expired)s, %(dropped)s)
RETURNING ctid
"""
_ARE_THERE: Final = "SELECT id FROM {ledger} WHERE id = ANY(%(rows)s)"
_SETTLE_OWN: Final = """
UPDATE {ledger} SET is_fenced = true WHERE session = %(session)s AND queue = 0 RETURNING token, result
"""
_SETTLE_REST: Final = """
UPDATE {ledger} SET is_fenced = true WHERE session = %(session)s AND queue <> 0 RETURNING token, result
"""
_WAIT_AT_MOST: Final = "SELECT set_config('lock_timeout', %(timeout)s, false)"
# Outside of the transaction that changed something: who commits a notice holds a lock of the whole cluster until then
_TELL: Final = (
    "WITH mine AS MATERIALIZED (" + _ASYNC + ") SELECT pg_notify(each, '') FROM mine, unnest(%(channels)s::text[]) each"
)

# What dead sessions have counted goes to the queues, some rows at a time; their rows stay for a day, for those who may
# ask for a token. A queue that is locked is left for the next time: nobody waits for this, and it waits for nobody
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
_SWEEPER: Final = "SELECT pg_try_advisory_xact_lock({sweeper})"
_ROUNDS: Final = 20  # of a sweep at once: the next opening goes on

# Of this session, which has nothing under way
_LEAVE: Final = """
WITH gone AS (DELETE FROM {ledger} WHERE session = %(session)s AND queue = %(queue)s RETURNING *)
UPDATE {queues} SET pushed = queues.pushed + gone.pushed, waiting = queues.waiting + gone.waiting,
    size = queues.size + gone.size, leased = queues.leased + gone.leased, delayed = queues.delayed + gone.delayed,
    dead = queues.dead + gone.dead, expired = queues.expired + gone.expired, dropped = queues.dropped + gone.dropped
FROM gone WHERE queues.id = %(queue)s
"""
_LEAVE_OWN: Final = "DELETE FROM {ledger} WHERE session = %(session)s AND queue = 0"
_CHEAP: Final = "SELECT set_config('synchronous_commit', 'off', false), set_config('lock_timeout', '100', false)"


def shown(conninfo: str) -> str:
    """Return an address without what is secret in it; raise ``ValueError`` if it is none."""
    try:
        known = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        message = f"this is no address of a database: {str(error).strip()}"
        raise ValueError(message) from None
    return make_conninfo("", **{key: known[key] for key in ("host", "port", "user", "dbname") if known.get(key)})


def _adapters() -> adapt.AdaptersMap:
    """Return how values are sent: every number as a bigint, whatever its size, and lists as binary."""
    found = adapt.AdaptersMap(psycopg.adapters)
    for kind, dumper in ((int, Int8BinaryDumper), (bytes, BytesBinaryDumper), (list, ListBinaryDumper)):
        found.register_dumper(kind, dumper)
    return found


_ADAPTERS: Final = _adapters()


class Cursor(psycopg.Cursor[Any]):
    """A cursor for our own statements, whatever a user has set on the connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)
        self._adapters = _ADAPTERS
        self.format = pq.Format.BINARY


class Settled(NamedTuple):
    """What is known of a change whose reply was lost and which took place."""

    result: int | None


class Step:
    """A transaction under way, or a reading: what functions of it use."""

    def __init__(self, session: "Session", sql: Sql, token: int, *, is_block: bool = False) -> None:
        self.connection = session.connection
        self.sql = sql
        self.path = session.path  # for errors
        self.token = token
        self.pipeline: psycopg.Pipeline | None = None  # statements are sent together, up to the next result
        self.has_changed = False
        self.counts: dict[int, dict[str, int]] = {}
        self.told: set[str] = set()  # channels of those to be woken after the commit
        self.rows: dict[int, int] = {}  # of the ledger, made in this transaction
        self.is_block = is_block
        self._session = session

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
            self._session.note_counts(self)

    def tell(self, channel: str) -> None:
        """Wake those who wait for a queue, when this is committed."""
        self.told.add(channel)

    def row(self, queue: int) -> int:
        """Return the key of this session's row of a queue in the ledger, which is there."""
        return self._session.rows[queue]


class Session:
    """A connection, for one thread at a time."""

    def __init__(self, conninfo: str, sql: Sql, path: str, patience: float = 5.0) -> None:
        """Connect. ``path`` is for errors, ``patience`` for locks. Raises what psycopg raises."""
        self._sql = sql
        self.path = path
        self._token = 0
        self._transaction: AbstractContextManager[psycopg.Transaction] | None = None
        self._patience = patience
        self._worn: set[int] = set()  # queues whose row has left its page
        self._pages: dict[int, bytes] = {}  # where the row of a queue is
        self.rows: dict[int, int] = {}  # of the ledger, by queue
        self.id = _random()
        self.process = os.getpid()
        self.used_at = 0.0  # by the pool
        known: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(conninfo), **_ENCODING}
        self.connection = psycopg.connect(make_conninfo("", **known), autocommit=True, prepare_threshold=2)
        try:
            version = self.connection.info.server_version
            if version < _OLDEST:
                found = f"a server of version {version // 10_000}"
                raise VersionError(path, found, "use PostgreSQL 14 or later")  # noqa: TRY301  (as what the server says)
            self._cursor = Cursor(self.connection)  # for what has one statement
            self._is_near = self.connection.info.host.startswith(("/", "@"))
            row = self.connection.execute(_OPENED, prepare=False).fetchone()
            assert row is not None
            self.backend, *users = row
            self._users = tuple(users)
            self._attributes = {name: getattr(self.connection, name) for name in _ATTRIBUTES}
            self.is_pooled = self.backend != self.connection.info.backend_pid
            if not self.is_pooled:
                self.settle_in()
        except BaseException:
            self.close()
            raise

    def settle_in(self) -> None:
        """Make the settings that our statements need."""
        self.connection.execute(self._settings(), prepare=False)
        self.connection.execute(_OUR_PLANS, prepare=False)

    def _settings(self) -> LiteralString:
        return _SETTINGS.format(_milliseconds(self._patience))

    def enter(self) -> Self:
        """Make this session known to others; it lives until its connection ends, which it does if this fails."""
        handled = sys.exception()
        row = _random()
        try:
            self._cursor.execute(_LOCK, {"session": self.id})  # first: a row without it is of a dead one
            self._cursor.execute(self._sql(_ENTER), {"session": self.id, "row": row, "queue": 0})
        except BaseException as error:
            self.close()
            raise (interrupt_amid(error, handled) or error) from None
        self.rows[0] = row
        return self

    def wait_at_most(self, patience: float) -> None:
        """Let a lock be waited for so many seconds."""
        if patience != self._patience:
            self._cursor.execute(_WAIT_AT_MOST, {"timeout": _milliseconds(patience)})
            self._patience = patience

    def view(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(step, *args)``, in which each statement is on its own and changes nothing."""
        step = self._step()
        try:
            result = fn(step, *args)
        except Exception as error:
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise
        self.tell(step.told)
        return result

    def run(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        queue: int | None = None,
    ) -> Any:
        """Return ``fn(step, *args)``, in a transaction that is committed if it changed anything.

        ``queue``: its first statement writes the token to the row of that queue, and is mostly the only one.
        """
        handled = sys.exception()
        step = None
        result = None
        commits = False
        try:
            self._renew()
            if queue is not None:
                self._open_row(queue)
            self._token += 1
            step = self._step()
            with self._together(queue is not None) as step.pipeline:
                self._send(step, "BEGIN")
                fence = None if queue is not None else step.execute(_FENCE, row=self.rows[0])
                result = fn(step, *args)
                if fence is not None and not fence.fetchall():
                    raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301  (as what the server says)
                commits = step.has_changed
                if commits and (step.counts or queue is None):
                    self._note(step)
                self._send(step, "COMMIT" if commits else "ROLLBACK")
        except Exception as error:
            if (interrupt := interrupt_amid(error, handled)) is not None:
                raise interrupt from None
            self._undo()
            if is_undone(error):
                raise Lost(error) from error
            if is_lost(error, self.connection):
                is_open = is_answered(error)
                raise Lost(
                    error,
                    has_begun=not is_open and step is not None,
                    is_unknown=commits and not is_open,
                    result=result,
                ) from error
            raise
        if commits:
            self.rows |= step.rows
        self.tell(step.told)
        return result

    def begin(self) -> Step:
        """Begin a transaction that goes on until ``commit``, or ``undo``."""
        try:
            self._renew()
            self._token += 1
            self._transaction = self.connection.transaction()
            self._transaction.__enter__()  # so that psycopg refuses a user's commit()
            self.connection.execute(_USUAL_PLANS)  # for the user's own statements
            self.connection.execute(_USUAL_LIMITS, self._users_limits())
            step = Step(self, self._sql, self._token, is_block=True)
            if not step.execute(_FENCE, row=self.rows[0]).fetchall():
                raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301
        except Exception as error:
            self.undo()
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise
        return step

    def _users_limits(self) -> list[str]:
        """Return the limits that hold in a block: the user's, and for locks our patience where they have none."""
        lock, *others = self._users
        return [_milliseconds(self._patience) if lock == "0" else lock, *others]

    def commit(self, step: Step) -> None:
        """Commit the transaction that ``begin`` began, with what the user's own statements did."""
        step.execute(_NOTE, row=self.rows[0], token=self._token).fetchall()
        made = step.execute(_ARE_THERE, rows=list(step.rows.values())).fetchall() if step.rows else []
        assert self._transaction is not None  # begun
        self._transaction.__exit__(None, None, None)
        self._transaction = None
        self.rows |= {queue: row for queue, row in step.rows.items() if (row,) in made}
        self.tell(step.told)

    def undo(self) -> None:
        """End the transaction that ``begin`` began."""
        transaction, self._transaction = self._transaction, None
        with suppress(psycopg.Error):
            if transaction is not None:
                transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        self._undo()

    def reset(self) -> None:
        """Undo what a user may have set on the connection, which was in their hands."""
        for name, value in self._attributes.items():
            if getattr(self.connection, name) is not value:
                setattr(self.connection, name, value)
        self.connection.execute(f"{_RESET}; {self._settings()}; {_OUR_PLANS}", prepare=False)

    def tell(self, channels: set[str]) -> None:
        """Wake those who wait for these queues. If it fails they look by themselves, a second later."""
        if channels:
            with suppress(psycopg.Error):
                self._cursor.execute(_TELL, {"channels": sorted(channels)})

    def _step(self) -> Step:
        return Step(self, self._sql, self._token)

    def _together(self, is_one: bool) -> AbstractContextManager[psycopg.Pipeline | None]:
        """Return what sends statements together. It costs more than the one exchange that it saves, if that is near."""
        return nullcontext() if is_one and self._is_near else together(self.connection)

    def _send(self, step: Step, text: LiteralString) -> None:
        (self.connection if step.pipeline else self._cursor).execute(text)

    # --- the rows of the ledger

    def _open_row(self, queue: int) -> None:
        """Let this session have a row for a queue."""
        if queue not in self.rows:
            row = _random()
            self._cursor.execute(self._sql(_ENTER), {"session": self.id, "row": row, "queue": queue})
            self.rows[queue] = row

    def _renew(self) -> None:
        """Replace the rows that have left their pages."""
        while self._worn:
            queue = self._worn.pop()
            row = _random()
            self._cursor.execute(self._sql(_RENEW), {"old": self.rows[queue], "row": row})
            if not self._cursor.rowcount:
                raise Lost(RuntimeError("the session was fenced"))
            self.rows[queue] = row
            self._pages.pop(queue, None)

    def _look_at(self, queue: int, ctid: bytes | None) -> None:
        """Note where the new version of a row is: while it can be pruned it stays in its page."""
        if ctid is not None and self._pages.setdefault(queue, ctid[:4]) != ctid[:4]:
            self._worn.add(queue)

    def _note(self, step: Step) -> None:
        """Write down the token, and what was counted, in a transaction of several statements."""
        if not any(map(any, (each.values() for each in step.counts.values()))):
            step.execute(_NOTE, row=self.rows[0], token=step.token)
        self.note_counts(step)

    def note_counts(self, step: Step) -> None:
        """Write down what was counted."""
        for queue, changes in sorted(step.counts.items()):
            if not any(changes.values()):
                continue
            row = self.rows.get(queue) or step.rows.get(queue)
            is_there = row is not None
            if is_there:
                written = step.execute(_COUNT, row=row, token=step.token, **changes)
                is_there = not step.is_block or bool(written.fetchall())  # else it was undone with a savepoint
            if not is_there:
                row = step.rows[queue] = _random()
                step.execute(_FIRST_COUNT, row=row, session=self.id, queue=queue, token=step.token, **changes)
        step.counts.clear()

    def once(self, text: LiteralString, queue: int, values: dict[str, Any]) -> list[Any]:
        """Return the rows of a change that is one statement, which looks at the fence and notes its token and result.

        The last column of its last row is where the row of the ledger is now, None if that was not written.
        """
        self._renew()
        self._open_row(queue)
        self._token += 1
        try:
            rows = self._cursor.execute(
                self._sql(text), values | {"queue": queue, "row": self.rows[queue], "token": self._token}
            ).fetchall()
        except (psycopg.errors.NotNullViolation, psycopg.errors.DivisionByZero) as error:
            if self._is_fenced(queue):
                raise Lost(error) from error
            raise
        except Exception as error:
            if is_undone(error):
                raise Lost(error) from error
            if is_lost(error, self.connection):
                raise Lost(error, is_unknown=not is_answered(error)) from error
            raise
        if rows:
            self._look_at(queue, rows[-1][-1])
        return rows

    def alone(self, text: LiteralString, values: dict[str, Any]) -> None:
        """Execute a statement of which it does not matter whether it is done, or done twice."""
        self._cursor.execute(self._sql(text), values)

    def _is_fenced(self, queue: int) -> bool:
        """Return whether the server refused a change since this session was shut out."""
        try:
            return not self._cursor.execute(self._sql(_FENCE), {"row": self.rows[queue]}).fetchall()
        except psycopg.Error:
            return False

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
        if is_readable(self.connection.fileno()):  # the other end has said good-bye, or is gone; or it is a notice
            with suppress(psycopg.Error):
                self.connection.execute("")
        return not self.connection.closed

    def settled(self, session: int, token: int, timeout: float) -> Settled | None:
        """Shut out a session that lost its connection; return what it noted of a change, None if that is undone."""
        self.wait_at_most(max(0.001, timeout))
        rows = []
        for statement in (_SETTLE_OWN, _SETTLE_REST):  # its own first: who changes a queue may hold it already
            rows += self._cursor.execute(self._sql(statement), {"session": session}).fetchall()
        return next((Settled(result) for last, result in rows if last == token), None)

    def sweep(self) -> None:
        """Let the queues count what dead sessions have counted, unless another does so now. It may fail, in part."""
        with suppress(psycopg.Error):
            for _ in range(_ROUNDS):
                with self.connection.transaction():
                    if self._cursor.execute(self._sql(_SWEEPER)).fetchall() != [(True,)]:
                        return
                    ((folded,),) = self._cursor.execute(self._sql(_FOLD)).fetchall()
                    forgotten = self._cursor.execute(self._sql(_FORGET)).rowcount
                    self._cursor.execute(self._sql(_FORGET_SLEEPERS))
                if not folded and not forgotten:
                    return

    def leave(self) -> None:
        """End an entered session: nothing is to be settled, so its rows go too. It may fail: others sweep."""
        with suppress(psycopg.Error):
            if self.is_idle and self.rows:
                self.connection.execute(_CHEAP)
                for queue in sorted(self.rows):
                    if queue:
                        with suppress(psycopg.errors.LockNotAvailable):
                            self._cursor.execute(self._sql(_LEAVE), {"session": self.id, "queue": queue})
                self._cursor.execute(self._sql(_LEAVE_OWN), {"session": self.id})
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


_ATTRIBUTES: Final = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")


def _random() -> int:
    """Return a number that nobody else has: 63 random bits."""
    return int.from_bytes(os.urandom(8)) >> 1


def _milliseconds(seconds: float) -> str:
    return str(min(_MAX_TIMEOUT, max(1, int(seconds * 1000))))


def is_readable(fd: int) -> bool:
    """Return whether something can be read now. Not by ``select``, which knows 1,024 descriptors only."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(0))


@contextmanager
def together(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Pipeline]:
    """Send the statements of the block together; what ends it is raised, and nothing is logged."""
    ended_by = None
    try:
        with connection.pipeline() as pipeline:
            try:
                yield pipeline
            except BaseException as error:  # psycopg would log what it meets while this one unwinds
                ended_by = error
    except Exception as error:
        if ended_by is None:
            raise
        raise ended_by from error
    if ended_by is not None:
        raise ended_by
