"""One connection: its transactions, and finding out which of them took place.

Owns: the one statement or the one transaction that a change is. Law: nothing is committed before a row of the session
is locked and known not to be fenced; finding out what happened to a change locks those rows, too, so that the answer
cannot change any more. Must not know: threads, the rules of queues, what to do when a connection is lost.

Each session has a number of its own, which begins with one of its process, chosen at random, and holds the advisory
lock of that number as long as its connection lives: so others can see when it is dead. It has a row in the ledger, and
one more for each queue that it changes. Each change gets the next token, which its own transaction writes to one of
these rows. If the connection is lost while the reply to a commit is awaited, another connection fences the rows
(``settled``): that waits for a transaction still under way, blocks one that a server may still find in the buffer of a
dead connection, and reads the tokens, which show whether the change took place.

A change of one statement (``once``) writes its token to the row of its queue, together with its counts, and fails if
that is fenced: it divides by the number of rows found, or has no number for an item. A change of several statements
(``run``) locks the session's own row first, by a statement that fails if that is fenced: the others are sent together
with it, and must not claim anything if they arrive after the session has been shut out.
"""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import pq

from lmdbqueue._host import departures
from lmdbqueue.postgres._connection import (
    AS_ITSELF,
    OPENED,
    USUAL_LIMITS,
    USUAL_PLANS,
    attributes,
    connect,
    milliseconds,
    reset,
    settle_in,
)
from lmdbqueue.postgres._failures import Lost, first_amid, interrupt_amid, is_answered, is_lost, is_shut_out, is_undone
from lmdbqueue.postgres._ledger import ARE_THERE, ASYNC, CHEAP, FENCE, NOTE, STAND, Ledger, Settled, sweep
from lmdbqueue.postgres._silence import SHORTEST, SILENCE, Backend, is_readable, silence
from lmdbqueue.postgres._sql import Sql
from lmdbqueue.postgres._statements import FORGOTTEN, Cursor, Statements, together
from lmdbqueue.postgres._step import Step

_IDLE: Final = pq.TransactionStatus.IDLE
_WAIT_AT_MOST: Final = "SELECT set_config('lock_timeout', %(timeout)s, false)"
# The server may not know yet that nobody is at the other end: until it does, what was claimed is locked, so its end is
# waited for. If it comes amid the wait of a commit for a standby, the commit of the fence waits for the same one, and
# comes after it
_END: Final = (
    """
SELECT pg_terminate_backend(pid, 2000) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
AND granted AND mode = 'ExclusiveLock' AND (classid::bigint << 32) | objid::bigint = %(session)s
AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND """
    + AS_ITSELF
)
# Outside of the transaction that changed something: who commits a notice holds a lock of the whole cluster until then
_TELL: Final = (
    "WITH mine AS MATERIALIZED (" + ASYNC + ") SELECT pg_notify(each, '') FROM mine, unnest(%(channels)s::text[]) each"
)
_AS_IF_FENCED: Final = (psycopg.errors.NotNullViolation, psycopg.errors.DivisionByZero)  # or for another reason

Values = dict[str, Any] | Callable[[], dict[str, Any]]


class Session:
    """A connection, for one thread at a time."""

    def __init__(
        self,
        conninfo: str,
        sql: Sql,
        path: str,
        number: int,
        patience: float = 5.0,
        seconds: float | None = None,
        *,
        is_steady: bool = True,
    ) -> None:
        """Connect within ``seconds``, or ``patience``, which also applies to locks. Raises psycopg's errors.

        ``path`` is for errors; ``number`` is the session's. ``is_steady``: it tolerates a silence longer than the
        patience of a call.
        """
        self._sql = sql
        self.path = path
        self._token = 0
        self._transaction: AbstractContextManager[psycopg.Transaction] | None = None
        self._held: tuple[LiteralString, dict[str, Any]] | None = None  # what releases the claim of this session
        self.patience = patience  # for locks
        self.id = number
        self.process = os.getpid()
        self.used_at = 0.0  # set by the pool
        self.thread = 0  # that uses it, as the pool says; 0: none
        self._conninfo = conninfo
        silent = SILENCE if is_steady else silence(patience)
        self.connection = connect(conninfo, path, patience if seconds is None else seconds, silent)
        try:
            self._statements = Statements(self.connection, sql)
            self._ledger = Ledger(Cursor(self.connection), sql, self.id)
            self._is_near = self.connection.info.host.startswith(("/", "@"))
            row = self.connection.execute(OPENED, prepare=False).fetchone()
            assert row is not None
            self.backend, started, *users = row
            self.connection.backend = Backend(self.backend, started)
            self._users = tuple(users)
            self._attributes = attributes(self.connection)
            self.is_pooled = self.backend != self.connection.info.backend_pid
            if not self.is_pooled:
                self.settle_in()
        except BaseException:
            self.close()
            raise

    def settle_in(self) -> None:
        """Make the settings that our statements need."""
        settle_in(self.connection, self.patience)

    def enter(self) -> Self:
        """Make this session known to others; it lives until its connection ends, which it does if this fails."""
        handled = sys.exception()
        try:
            self._ledger.enter()
        except BaseException as error:
            self.close()
            raise (interrupt_amid(error, handled) or error) from None
        return self

    def wait_at_most(self, patience: float) -> None:
        """Set how many seconds a statement waits for a lock."""
        self.connection.wait_at_most(silence(patience), self._conninfo)
        self._statements.rows(_WAIT_AT_MOST, {"timeout": milliseconds(patience)})
        self.patience = patience

    def view(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(step, *args)``, in which each statement is independent and changes nothing."""
        step = self._step()
        try:
            result = fn(step, *args)
        except Exception as error:
            if is_lost(error, self.connection) or (is_shut_out(error) and self._ledger.is_fenced(0)):
                raise Lost(error) from error
            raise
        self.tell(step.told)
        return result

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], queue: int | None = None) -> Any:
        """Return ``fn(step, *args)``, in a transaction that is committed if it changed anything.

        ``queue``: its first statement writes the token to the row of that queue, and is mostly the only one.
        """
        try:
            return self._run(fn, args, queue)
        except Lost as lost:
            if not self._is_near or not isinstance(lost.cause, FORGOTTEN):  # in a pipeline, psycopg has prepared them
                raise
        self._statements.forget()
        return self._run(fn, args, queue)

    def _run(self, fn: Callable[..., Any], args: tuple[Any, ...], queue: int | None) -> Any:
        handled = sys.exception()
        step = None
        result = None
        commits = False
        try:
            self._ledger.renew()
            if queue is not None:
                self._ledger.open_row(queue)
            self._token += 1
            step = self._step()
            with self._together() as step.pipeline:
                self._send(step, "BEGIN")
                if queue is None:
                    step.execute(STAND, row=self._ledger.rows[0])
                result = fn(step, *args)
                commits = step.has_changed
                if commits and (step.counts or queue is None):
                    step.note()
                self._send(step, "COMMIT" if commits else "ROLLBACK")
        except Exception as error:
            if (interrupt := interrupt_amid(error, handled)) is not None:
                raise interrupt from None
            first = first_amid(error, handled)
            if first is not error and not isinstance(first, psycopg.Error):  # a handler's, amid the end of a pipeline
                self.close()
                raise first from None
            self._undo()
            if is_undone(error) or (is_shut_out(error) and self._ledger.is_fenced(queue or 0)):
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
            self._ledger.rows |= step.rows
        self.tell(step.told)
        return result

    def begin(self) -> Step:
        """Begin a transaction that lasts until ``commit`` or ``undo``."""
        handled = sys.exception()
        try:
            self._ledger.renew()
            self._token += 1
            transaction = self.connection.transaction()
            transaction.__enter__()  # so that psycopg refuses a user's commit()
            self._transaction = transaction
            self.connection.execute(USUAL_PLANS)  # for the user's own statements
            self.connection.execute(USUAL_LIMITS, self._users_limits())
            step = self._step(is_block=True)
            if not step.execute(FENCE, row=self._ledger.rows[0]).fetchall():
                raise Lost(RuntimeError("the session was fenced"))  # noqa: TRY301
        except Exception as error:
            first = first_amid(error, handled)
            if not isinstance(first, (psycopg.Error, Lost)):  # and nobody knows how far psycopg has come
                self.close()
                raise first from None
            self.undo()
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise
        return step

    def _users_limits(self) -> list[str]:
        """Return the limits that apply in a block: the user's or, for locks without such a limit, our patience."""
        lock, *others = self._users
        return [milliseconds(self.patience) if lock == "0" else lock, *others]

    def commit(self, step: Step, deadline: float) -> None:
        """Commit the transaction that ``begin`` began, including the user's own statements."""
        self.connection.limit(silence(self.patience), deadline)
        step.execute(NOTE, row=self._ledger.rows[0], token=self._token).fetchall()
        made = step.execute(ARE_THERE, rows=list(step.rows.values())).fetchall() if step.rows else []
        assert self._transaction is not None  # begun
        self._transaction.__exit__(None, None, None)
        self._transaction = None
        self._ledger.rows |= {queue: row for queue, row in step.rows.items() if (row,) in made}
        self.tell(step.told)

    def undo(self) -> None:
        """End the transaction that ``begin`` began."""
        self.connection.limit(silence(self.patience))
        transaction, self._transaction = self._transaction, None
        with suppress(psycopg.Error):
            if transaction is not None:
                transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        self._statements.forget()
        self._undo()

    def undo_at_once(self) -> None:
        """End the transaction under way if the server is waiting for this side.

        The end of the connection reaches the server a moment later; until then, others skip the claimed items.
        """
        if self.connection.pgconn.transaction_status in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}:
            self._undo()

    def reset(self) -> None:
        """Undo all settings that a user may have made on the connection."""
        reset(self.connection, self._attributes, self.patience)

    def tell(self, channels: set[str]) -> None:
        """Wake the waiters of these queues. If it fails, they check by themselves within a second."""
        if channels:
            with suppress(psycopg.Error):
                self._statements.rows(_TELL, {"channels": sorted(channels)})

    def _step(self, *, is_block: bool = False) -> Step:
        return Step(self._statements, self._ledger, self.path, self._token, is_block=is_block)

    def _together(self) -> AbstractContextManager[psycopg.Pipeline | None]:
        """Return a pipeline. With a nearby server it costs more than the round trips that it saves, so then None."""
        return nullcontext() if self._is_near else together(self.connection)

    def _send(self, step: Step, text: LiteralString) -> None:
        if step.pipeline is not None:
            self.connection.execute(text)
        else:
            self._statements.command(text.encode())

    def once(
        self, text: LiteralString, queue: int, values: Values, channel: str = "", awaited: int | None = None
    ) -> list[Any]:
        """Return the rows of a change of one statement, which checks the fence and writes its token and result.

        The last column of its last row is the new place of the ledger's row, None if that was not written.

        Args:
            text: The statement.
            queue: The number of the queue that it changes.
            values: Its values, or a function that makes them once this session has its rows.
            channel: Where the sleepers of the queue listen.
            awaited: The column of the first row that says whether there are sleepers, who are then woken.
        """
        ledger = self._ledger
        if ledger.worn or queue not in ledger.rows:
            self._open_row(queue)
        if callable(values):
            values = values()
        self._token += 1
        try:
            rows = self._statements.rows(
                text, {**values, "queue": queue, "row": ledger.rows[queue], "token": self._token}
            )
        except Exception as error:
            if is_undone(error) or (isinstance(error, _AS_IF_FENCED) and ledger.is_fenced(queue)):
                raise Lost(error) from error
            if is_lost(error, self.connection):
                raise Lost(error, is_unknown=not is_answered(error)) from error
            raise
        if rows:
            if (at := rows[-1][-1]) is not None:
                ledger.look_at(queue, at)
            if awaited is not None and rows[0][awaited]:
                self.tell({channel})
        return rows

    def _open_row(self, queue: int) -> None:
        """Make sure of this session's row for a queue."""
        try:
            self._ledger.renew()
            self._ledger.open_row(queue)
        except Exception as error:
            if is_lost(error, self.connection):
                raise Lost(error) from error
            raise

    def claim(self, text: LiteralString, values: dict[str, Any]) -> list[Any]:
        """Return the rows of a statement that locks for this session and changes nothing.

        If the connection is lost, the server may have locks of it until it has ended the session.
        """
        self._token += 1  # so that this is not taken for the change before
        try:
            return self._statements.rows(text, values)
        except Exception as error:
            if is_lost(error, self.connection):
                raise Lost(error, has_begun=True) from error
            raise

    def hold(self, text: LiteralString = "", values: dict[str, Any] | None = None) -> None:
        """Note the statement that releases what this session has claimed; none: it has no claim."""
        self._held = (text, values or {}) if text else None

    def release(self) -> None:
        """Release what this session has claimed, which also ends with its connection."""
        if self._held is not None and self.connection.pgconn.transaction_status == _IDLE:
            try:
                self.alone(*self._held)
            except psycopg.Error:
                self.close()
            self._held = None

    def alone(self, text: LiteralString, values: dict[str, Any]) -> None:
        """Execute a statement that may be done once, twice or not at all."""
        self._statements.rows(text, values)

    @property
    def token(self) -> int:
        """The token of the last change."""
        return self._token

    @property
    def is_known(self) -> bool:
        """Whether others know this session."""
        return bool(self._ledger.rows)

    @property
    def is_idle(self) -> bool:
        """Return whether this session can be used for the next step, and has claimed nothing."""
        pgconn = self.connection.pgconn
        return self._held is None and pgconn.transaction_status == _IDLE and not pgconn.pipeline_status

    @property
    def is_alive(self) -> bool:
        """Return whether the connection is intact, as far as this side knows."""
        if self.connection.closed:
            return False
        if is_readable(self.connection.fileno()):  # the other end has closed it, or is gone; or it is a notification
            with suppress(psycopg.Error):
                self.connection.execute("")
        return not self.connection.closed

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing came that was not asked for, as its end is. It waits for nobody."""
        try:
            return not is_readable(self.connection.pgconn.socket)
        except psycopg.Error:  # it is closed
            return False

    def settled(self, session: int, token: int) -> Settled | None:
        """Shut out a session that lost its connection; return its notes on a change, None if that is undone."""
        with suppress(psycopg.errors.InsufficientPrivilege):  # of a user's trigger that is executed as another role
            self._statements.rows(_END, {"session": session})
        return self._ledger.settle(session, token)

    def sweep(self) -> None:
        """Add the counts of dead sessions to their queues. A failure does no harm: other sessions sweep, too."""
        sweep(self.connection, self._sql)

    def leave(self) -> None:
        """End an entered session and remove its rows, since nothing has to be settled. It may fail: others sweep.

        Others also sweep if, while the program ends, nothing could end a wait for a server that does not answer.
        """
        self.connection.limit(SHORTEST)
        with suppress(psycopg.Error):
            if self.is_idle and self._ledger.rows and departures.patience() < 0:
                self.connection.execute(CHEAP)
                self._ledger.leave()
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def abandon(self) -> None:
        """Close the descriptor of the parent's connection without sending anything to the server.

        Its number is then that of a socket whose other end is closed: a call that was under way may still write to it.
        """
        with suppress(OSError, psycopg.Error):
            number = self.connection.fileno()
            try:
                one, other = socket.socketpair()
                with one, other:
                    os.dup2(one.fileno(), number, inheritable=False)
            except OSError:  # no descriptor is left
                os.close(number)

    def _undo(self) -> None:
        with suppress(psycopg.Error):
            if not self.connection.closed and self.connection.pgconn.transaction_status != _IDLE:
                self._statements.command(b"ROLLBACK")
