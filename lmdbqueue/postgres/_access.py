"""How a process comes by a session, and what becomes of one that was lost.

Owns: the pool, the number of this process, which sessions may still have something under way. Law: what was under way
in a lost session is settled before the next change of the process: until then it might hold what it has claimed, and
the change would pass that over, since it passes over what others are taking. Must not know: what a session is used for.

A session is settled by another one, which ends its backend, if the server still has that, waits until it has undone or
committed what was under way, and shuts it out. So that takes no longer than the server needs, however long it would
have waited for a network that says nothing.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

import psycopg

from lmdbqueue._base.errors import NestedCallError, QueueError, ServerError
from lmdbqueue.postgres._connection import connect
from lmdbqueue.postgres._failures import (
    Lost,
    cause_of,
    explained,
    is_answer,
    is_final,
    is_hopeless,
    is_refused,
    said,
    sqlstate_of,
)
from lmdbqueue.postgres._ledger import Program, Settled
from lmdbqueue.postgres._pool import Pool
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._silence import SHORTEST, SILENCE, Backend, is_at_work, silence
from lmdbqueue.postgres._sql import Sql

_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # seconds before each attempt; the last one repeats
_OTHERS: Final = 2  # connections in transactions, which occupy the free ones of a pooler
_MUCH: Final = 0.9  # of the patience of a call
_SLOW: Final = 2.5  # the most seconds that connecting to a reachable server takes


class Access:
    """The sessions of a process in one schema of one database."""

    def __init__(self, conninfo: str, sql: Sql, path: str, limit: int | None) -> None:
        self.conninfo = conninfo
        self.sql = sql
        self.path = path
        self.limit = limit
        self.has_tables = False
        self.is_lost = False  # the last connection that was used, or tried
        self.greets: Callable[[Session], None]  # called with each new session of the pool
        self._is_apart = False  # whether each connection has its own server connection, as with session pooling
        self._connecting: float | None = None  # since when a connection is being opened, on time.monotonic()
        self.unsettled: set[int] = set()  # lost sessions that may still have something under way
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start without connections: initially, and in a forked child."""
        self.pool = Pool(self.limit)
        self._program = Program()
        self.unsettled.clear()

    def abandon(self) -> None:
        """Give up the parent's connections."""
        for session in self.pool.all:
            session.abandon()

    @property
    def is_away(self) -> bool:
        """Whether the server is unreachable, judging by the last unanswered call."""
        since = self._connecting
        return self.is_lost or (since is not None and time.monotonic() - since > _SLOW)

    def resize(self, limit: int) -> None:
        """Set the largest number of connections for calls."""
        self.limit = self.pool.limit = limit

    # --- opening

    def connect(self, patience: float, seconds: float, *, is_steady: bool = True) -> Session:
        """Open a connection outside of the pool, as ``Session`` does."""
        number = self._program.session()
        session = Session(self.conninfo, self.sql, self.path, number, patience, seconds, is_steady=is_steady)
        session.connection.is_at_work = self._is_at_work
        if session.is_pooled:
            try:
                self._refuse_shared(session)
                session.settle_in()
            except BaseException:
                session.close()
                raise
        return session

    def _refuse_shared(self, session: Session) -> None:
        """Raise ``ServerError`` if a pooler gives each transaction another server connection.

        Then a session's locks, settings and channels would belong to the next user of the connection.
        """
        if self._is_apart:
            return
        sessions = [session]
        with ExitStack() as stack:
            for _ in range(_OTHERS):
                other = Session(self.conninfo, self.sql, self.path, self._program.session())
                stack.enter_context(closing(other))
                stack.enter_context(other.connection.transaction())  # which occupies its server connection
                sessions.append(other)
            pids = [each.connection.execute("SELECT pg_backend_pid()").fetchall()[0][0] for each in reversed(sessions)]
        backends = [each.backend for each in reversed(sessions)]
        self._is_apart = pids == backends and len(set(pids)) == len(pids)
        if not self._is_apart:
            reason = "a pooler between this program and the server changes the connection with each transaction"
            advice = "use the pooler's session mode, or the address of the server itself"
            raise ServerError(self.path, "opening", f"{reason}: {advice}")

    def entered(self, deadline: float, least: float = SHORTEST) -> Session:
        """Open a connection that is not of the pool, and known to others; one try, of ``least`` s, at the least."""
        number = 0
        while True:
            try:
                session = self.connect(5.0, max(least, deadline - time.monotonic())).enter()
            except psycopg.Error as error:
                self.is_lost = True
                if time.monotonic() >= deadline or is_refused(error):
                    raise explained(error, self.path, "connecting") from error
            else:
                session.connection.limit(SILENCE)
                return session
            number = pause(number, deadline)

    def _is_at_work(self, backend: Backend, seconds: float, is_over: bool) -> bool:
        """Ask by another connection whether the server is at work for one that is silent."""
        try:
            with closing(connect(self.conninfo, self.path, seconds, silence(seconds))) as other:
                other.until = time.monotonic() + seconds
                return is_at_work(other, backend, is_over=is_over)
        except psycopg.Error as error:
            return is_answer(error) and not is_over

    # --- using

    def taken(self, patience: float, deadline: float) -> Session:
        """Take a connection from the pool, or open one, for a call that is over at the deadline.

        The server is told for how long to wait for locks only if much of the patience is gone.
        """
        left = deadline - time.monotonic()
        if left <= _MUCH * patience:
            patience = max(0.0, left)
        session = self.pool.take()
        if session is None:
            session, is_new = self._waited_for(patience, deadline)
            if is_new:
                return session
        try:
            session.connection.until = deadline
            if session.patience != patience:
                session.wait_at_most(patience)
        except BaseException as error:
            self.drop(session)
            if isinstance(error, psycopg.Error):
                raise Lost(error) from error
            raise
        return session

    def _waited_for(self, patience: float, deadline: float) -> tuple[Session, bool]:
        """Open a connection, or wait for one; return it, and whether it was opened.

        Raises ``NestedCallError`` rather than wait for one while this thread itself uses one.
        """
        is_nested = self.pool.is_used_here()
        try:
            return self.pool.wait(partial(self._opened, patience, deadline), 0.0 if is_nested else deadline)
        except psycopg.Error as error:
            raise Lost(error) from error
        except Lost:
            if is_nested:
                raise NestedCallError(self.path) from None
            raise

    def _opened(self, patience: float, deadline: float) -> Session:
        """Open a connection for the pool."""
        self._connecting = time.monotonic()
        try:
            session = self.connect(patience, max(0.0, deadline - time.monotonic()), is_steady=False)
        finally:
            self._connecting = None
        session.connection.until = deadline
        if self.has_tables:
            session.enter()
            try:
                self.greets(session)
            except BaseException:
                session.close()
                raise
        return session

    def give_back(self, session: Session) -> None:
        """Put a session back for its next use, or end it."""
        if session.process != os.getpid():
            return
        self.is_lost = False
        if session.is_idle and self.has_tables:
            for old in self.pool.put(session):
                old.leave()
        else:
            self.retire(session)

    def retire(self, session: Session | None) -> None:
        """End an intact connection."""
        if session is not None and session.process == os.getpid() and self.pool.lose(session):
            if session.is_known and not session.is_idle:
                self.unsettled.add(session.id)
            session.leave()

    def drop(self, session: Session | None) -> None:
        """Forget a connection that is lost; None: there was none to be had.

        If it was silent, those that rest may be so, too, and each would be waited for.
        """
        self.is_lost = True
        if session is not None and self.pool.lose(session):
            if session.is_known:
                self.unsettled.add(session.id)
            if session.connection.was_silent:
                for other in self.pool.empty():
                    other.close()
            session.close()

    def abort(self, session: Session | None) -> None:
        """Forget a connection after an interrupt, with everything that it has claimed."""
        try:
            if session is not None:
                session.undo_at_once()
        finally:
            self.drop(session)

    # --- settling

    def shut_out(self, session: int, token: int, deadline: float) -> Settled | None:
        """Wait until nothing of a lost session is under way; return its notes on a change, None if there are none.

        Raises the error of the last attempt.
        """
        number = 0
        while True:
            other = None
            try:
                other = self.taken(max(0.001, deadline - time.monotonic()), deadline)
                settled = other.settled(session, token)
            except (Lost, psycopg.Error) as error:
                self.drop(other)
                if time.monotonic() >= deadline or is_final(sqlstate_of(error)) or is_hopeless(cause_of(error)):
                    raise
                number = pause(number, deadline, other)
            else:
                self.unsettled.discard(session)
                self.give_back(other)
                return settled

    def settle(self, deadline: float) -> None:
        """Wait until nothing is under way of sessions that were lost, and not settled. Raises as ``shut_out`` does."""
        for session in tuple(self.unsettled):
            try:
                self.shut_out(session, 0, deadline)
            except (Lost, psycopg.Error) as error:
                if is_final(sqlstate_of(error)):  # the ledger is not there any more, or not for us
                    self.unsettled.discard(session)
                    continue
                if not isinstance(error, (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)):
                    raise
                reason = f"the change of a lost connection has not ended ({said(error)})"
                raise ServerError(self.path, "a change", reason, error.sqlstate or "") from error


def pause(number: int, deadline: float, lost: Session | None = None) -> int:
    """Sleep before another attempt; return the number of the next pause.

    A connection from the pool may have been dead for long, like all others there: that is no reason to wait.
    """
    if lost is not None and lost.used_at:
        return number
    time.sleep(min(_PAUSES[min(number, len(_PAUSES) - 1)], max(0.0, deadline - time.monotonic())))
    return number + 1


def refused(error: Exception, path: str, operation: str) -> QueueError:
    """Return what a user gets when a connection was lost, and there is no time left for another."""
    if isinstance(error, psycopg.Error):
        return explained(error, path, operation)
    return error if isinstance(error, QueueError) else ServerError(path, operation, str(error))
