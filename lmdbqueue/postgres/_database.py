"""A database in this process: its connections, and what is done when one of them is lost.

Owns: the pool, shared by all queue objects of one address and schema; retrying; forks. Law: a change is repeated only
if it certainly did not take place; if that cannot be found out within ``patience``, the call says so
(``CommitUnknownError``). Must not know: what a queue is.

What is lost, and when:

====================================  =========================================================================
the connection breaks                 what happens
====================================  =========================================================================
while connecting, or in a reading     another connection, again
in a change                           another connection shuts the old session out, which waits until the server has
                                      undone or committed what was under way, and reads its token: the change took
                                      place, and its result is returned; or it did not, and is done again
... and no server can be asked        after ``patience`` seconds ``CommitUnknownError``, if its commit was awaited, else
                                      ``ServerError``
====================================  =========================================================================

Connections lost elsewhere (by an interrupt, in a block, while undoing) are settled in this way before the next change:
until then they might hold the items that they have claimed, and the change would skip those as it skips all items that
others are taking.

Another connection may lead to another server, after a failover. Its answer holds there: a change that the old primary
had not acknowledged exists there with its token, or does not exist, and neither does its token.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any, Final, LiteralString, NoReturn, TypeVar, TypeVarTuple

import psycopg

from lmdbqueue._errors import CommitUnknownError, NestedCallError, QueueError, ServerError
from lmdbqueue._host.disk import translated
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import holding
from lmdbqueue.postgres import _schema
from lmdbqueue.postgres._block import Block, blocks
from lmdbqueue.postgres._connection import shown
from lmdbqueue.postgres._ear import Ear
from lmdbqueue.postgres._failures import Lost, explained, is_final, is_lost, is_refused
from lmdbqueue.postgres._ledger import Program, Settled
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._pool import Pool
from lmdbqueue.postgres._session import Session, Values
from lmdbqueue.postgres._sql import Sql
from lmdbqueue.postgres._step import Step

_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # seconds before each attempt; the last one repeats

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_OTHERS: Final = 2  # connections in transactions, which occupy the free ones of a pooler
_SLOW: Final = 2.5  # the most seconds that connecting to a reachable server takes
_databases: dict[tuple[str, str], "Database"] = {}
_registry = threading.RLock()  # reentrant, like all locks here: a nested call of the same thread must not wait for it


def open_database(conninfo: str, schema: str, patience: float, pool: int | None = None) -> "Database":
    """Return the database, opened once in a process for all its users; each of them releases it."""
    with _registry:
        database = _databases.get((conninfo, schema))
        if database is None:
            database = _databases[conninfo, schema] = Database(conninfo, schema, pool)
        elif pool is not None:
            database.resize(pool)
        database.handles += 1
    try:
        database.prepare(patience)
    except BaseException:
        database.release()
        raise
    return database


class Database:
    """The connections of a process to one schema of one database."""

    def __init__(self, conninfo: str, schema: str, limit: int | None = None) -> None:
        self.limit = limit
        self.conninfo = conninfo
        self.sql = Sql(schema)
        self.path = shown(conninfo)
        self.uuid = ""
        self._amid: set[int] = set()  # threads in a transaction of several statements
        self._using: set[int] = set()  # threads using a connection of the pool
        self._is_apart = False  # whether each connection has its own server connection, as with session pooling
        self._is_lost = False  # whether the last connection used, or attempted, was lost
        self._connecting: float | None = None  # since when a connection is being opened, on time.monotonic()
        self.handles = 0
        self._unsettled: set[int] = set()  # lost sessions that may still have something under way
        self.owner = Owner(self.entered, self.sql)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start without connections: initially, and in a forked child."""
        self._pool = Pool(self.limit)
        self._program = Program()
        self._unsettled.clear()
        with translated(self.path, "opening"):
            self.ear = Ear(self._connected_for_listening, self.sql)

    def abandon(self) -> None:
        """Give up the parent's connections."""
        for session in self._pool.all:
            session.abandon()
        self.ear.abandon()
        self.owner.begin_anew()

    @property
    def is_away(self) -> bool:
        """Whether the server is unreachable, judging by the last unanswered call."""
        since = self._connecting
        return self._is_lost or (since is not None and time.monotonic() - since > _SLOW)

    def resize(self, limit: int) -> None:
        """Set the largest number of connections for calls."""
        self.limit = self._pool.limit = limit

    def prepare(self, patience: float) -> None:
        """Create the schema if it is missing, and add the counts of dead sessions."""
        if not self.uuid:
            session, self.uuid = self._done("opening", patience, self._prepared)
            self._drop(session)

    def _prepared(self, session: Session) -> str:
        try:
            uuid = _schema.prepare(session.connection, self.sql, self.path)
            session.sweep()
        except psycopg.errors.UniqueViolation as error:  # two processes created the schema at the same moment
            raise Lost(error) from error
        return uuid

    def release(self) -> None:
        """Close the connections when the last user has released them."""
        with _registry:
            self.handles -= 1
            if self.handles:
                return
            if _databases.get((self.conninfo, self.sql.schema)) is self:
                del _databases[self.conninfo, self.sql.schema]
        with ExitStack() as ending:  # in spite of failures and interrupts: nothing else will close the rest
            for session in self._pool.close():
                ending.callback(session.leave)
            ending.callback(self.owner.leave)
            ending.callback(self.ear.close)

    # --- running steps

    def view(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, *args)``, which changes nothing; in the block of this thread, if it is in one."""
        if (block := blocks.current()) is not None:
            joined: R = block.call(self, fn, args)
            return joined
        result: R = self._done_with("reading", patience, lambda session: session.view(fn, args))
        return result

    def run(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, *args)``, as one transaction, or as a part of the block of this thread."""
        if (block := blocks.current()) is not None:
            joined: R = block.call(self, fn, args)
            return joined
        self._refuse_nested()
        patience = self.settle(patience)
        thread = threading.get_ident()
        try:
            self._amid.add(thread)
            result: R = self._done_with("a change", patience, lambda session: session.run(fn, args))
        finally:
            self._amid.discard(thread)
        return result

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` in a transaction of this thread, which may hold what the call would wait for."""
        if threading.get_ident() in self._amid:
            raise NestedCallError(self.path)

    def attempt(self, patience: float, queue: int, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Like ``run``, for a function whose first statement writes its token to the ledger's row of a queue.

        Its effects are undone, even inside a block, unless it says that it ``has_changed`` something.
        """
        if (block := blocks.current()) is not None:
            joined: R = block.attempt(self, fn, args)
            return joined
        patience = self.settle(patience)
        result: R = self._done_with("a change", patience, lambda session: session.run(fn, args, queue=queue))
        return result

    def once(
        self,
        patience: float,
        text: LiteralString,
        queue: int,
        channel: str,
        values: Values,
        is_awaited: Callable[[list[Any]], bool] | None = None,
    ) -> list[Any] | Settled:
        """Return the rows of a change that is one statement (``Session.once``), outside of blocks.

        ``values`` may be a function that makes them for each try.

        ``Settled`` if the rows were lost and the change took place. ``is_awaited``: whether the rows say that there are
        sleepers.
        """

        def act(session: Session) -> list[Any]:
            rows = session.once(text, queue, values)
            if is_awaited is not None and is_awaited(rows):
                session.tell({channel})
            return rows

        self._refuse_nested()
        patience = self.settle(patience)
        done: list[Any] | Settled = self._done_with("a change", patience, act)
        return done

    def alone(self, patience: float, text: LiteralString, values: dict[str, Any]) -> None:
        """Execute a statement that may be done once, twice or not at all."""
        with suppress(QueueError):
            self._done_with("a change", patience, lambda session: session.alone(text, values))

    def connect(self, patience: float = 5.0, seconds: float | None = None, *, is_steady: bool = True) -> Session:
        """Open a connection outside of the pool, as ``Session`` does."""
        number = self._program.session()
        session = Session(self.conninfo, self.sql, self.path, number, patience, seconds, is_steady=is_steady)
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

    def _connected_for_listening(self) -> Session:
        return self.entered(0.0)

    def entered(self, patience: float) -> Session:
        """Open a connection outside of the pool, and make it known to others."""
        deadline = time.monotonic() + patience
        number = 0
        while True:
            try:
                seconds = deadline - time.monotonic() if patience else None
                return self.connect(seconds=seconds).enter()
            except psycopg.Error as error:
                self._is_lost = True
                if time.monotonic() >= deadline or is_refused(error):
                    raise explained(error, self.path, "connecting") from error
            number = _pause(number, deadline)

    @holding
    def transaction(self, patience: float) -> Iterator[Block]:
        """Make the calls of this thread one transaction, for the block; an inner block is a part of the outer one."""
        block = blocks.current()
        if block is not None:
            block.refuse_other(self)
            with block.joined():
                yield block
            return
        self._refuse_nested()
        patience = self.settle(patience)
        session, step = self._done("a transaction", patience, Session.begin)
        block = Block(self, self.path, step, partial(self._drop, session))
        thread = threading.get_ident()
        try:
            try:
                with block.entered():
                    try:
                        yield block
                        block.refuse_if_spoiled()
                    finally:
                        self._amid.add(thread)
            except BaseException:
                if block.is_over:
                    self._drop(session)
                elif not block.is_of_parent:
                    try:
                        session.undo()
                    except BaseException:
                        self._drop(session)
                        raise
                    self._give_back_used(session, block)
                raise
            self._commit(session, block, patience)
        finally:
            self._amid.discard(thread)

    def _commit(self, session: Session, block: Block, patience: float) -> None:
        operation = "the end of a transaction"
        try:
            session.commit(block.step)
        except psycopg.Error as error:
            is_known = not is_lost(error, session.connection)
            self._drop(session)
            if is_known:
                raise explained(error, self.path, operation) from error
            if self._settled(session.id, session.token, patience, error) is None:
                raise ServerError(self.path, operation, f"the connection was lost ({_said(error)})") from error
        except BaseException:
            self._drop(session)
            raise
        else:
            self._give_back_used(session, block)

    def _give_back_used(self, session: Session, block: Block) -> None:
        """Return a connection that a user has used: its settings are undone, or it is dropped."""
        if block.was_shown:
            try:
                session.reset()
            except psycopg.Error:
                self._drop(session)
                return
        self._give_back(session)

    # --- connections

    def _done_with(self, operation: str, patience: float, act: Callable[[Session], Any]) -> Any:
        """Return the result of ``act`` for a session, and return the session to the pool."""
        session, result = self._done(operation, patience, act)
        if session is not None:
            self._give_back(session)
        return result

    def _done(self, operation: str, patience: float, act: Callable[[Session], Any]) -> tuple[Any, Any]:
        """Return a session and the result of ``act`` for it; repeat it with another session as long as permitted.

        The session is None if it was lost after its change had taken place.
        """
        deadline = time.monotonic() + patience
        number = 0
        while True:
            session = None
            try:
                session = self._taken(patience, deadline)
                return session, self._acted(act, session)
            except Lost as lost:
                self._drop(session)
                if session is not None and lost.has_begun:
                    settled = self._after(session, lost, operation, deadline - time.monotonic())
                    if settled is not None:
                        return None, settled if lost.result is None else lost.result
                if time.monotonic() >= deadline or is_hopeless(lost.cause):
                    self._refuse(operation, lost.cause)
            except psycopg.Error as error:  # psycopg may be wrong about prepared statements: use a new connection
                self._retire(session)
                raise explained(error, self.path, operation) from error
            except Exception:
                if session is not None:
                    self._give_back(session)
                raise
            except BaseException:  # an interrupt, at an unknown point
                self._abort(session)
                raise
            number = _pause(number, deadline, session)

    def _acted(self, act: Callable[[Session], Any], session: Session) -> Any:
        """Return the result of ``act`` for a session, which this thread uses meanwhile."""
        thread = threading.get_ident()
        if thread in self._using:
            return act(session)
        try:
            self._using.add(thread)
            return act(session)
        finally:
            self._using.discard(thread)

    def _taken(self, patience: float, deadline: float) -> Session:
        """Take a connection from the pool, or open one.

        Raises ``NestedCallError`` rather than wait for one while this thread itself uses one.
        """
        is_nested = threading.get_ident() in self._using

        def opened() -> Session:
            self._connecting = time.monotonic()
            try:
                session = self.connect(patience, max(0.0, deadline - time.monotonic()), is_steady=False)
            finally:
                self._connecting = None
            if self.uuid:
                session.enter()
                try:
                    self.owner.refuse_if_dead(session)
                except BaseException:
                    session.close()
                    raise
            return session

        try:
            session, is_new = self._pool.take(opened, 0.0 if is_nested else deadline)
        except psycopg.Error as error:
            raise Lost(error) from error
        except Lost:
            if is_nested:
                raise NestedCallError(self.path) from None
            raise
        if not is_new:
            try:
                session.wait_at_most(patience)
            except BaseException as error:
                self._drop(session)
                if isinstance(error, psycopg.Error):
                    raise Lost(error) from error
                raise
        return session

    def _give_back(self, session: Session) -> None:
        if session.process != os.getpid():
            return
        self._is_lost = False
        if session.is_idle and self.handles and self.uuid:
            for old in self._pool.put(session):
                old.leave()
        else:
            self._retire(session)

    def _retire(self, session: Session | None) -> None:
        """End an intact connection."""
        if session is not None and session.process == os.getpid() and self._pool.lose(session):
            if session.is_known and not session.is_idle:
                self._unsettled.add(session.id)
            session.leave()

    def _drop(self, session: Session | None) -> None:
        """Forget a lost connection; None: there was none."""
        self._is_lost = True
        if session is not None and self._pool.lose(session):
            if session.is_known:
                self._unsettled.add(session.id)
            session.close()

    def _abort(self, session: Session | None) -> None:
        """Forget a connection after an interrupt, with everything that it has claimed."""
        try:
            if session is not None:
                session.undo_at_once()
        finally:
            self._drop(session)

    def _after(self, session: Session, lost: Lost, operation: str, patience: float) -> Settled | None:
        """Wait until a lost session's change has taken place, or no longer can; return its notes."""
        try:
            return self._settled(session.id, session.token, patience, lost.cause)
        except CommitUnknownError:
            if lost.is_unknown:
                raise
            self._refuse(operation, lost.cause)

    def _settled(self, session: int, token: int, patience: float, cause: Exception) -> Settled | None:
        """Find out whether a change took place; return its notes, None if it did not."""
        try:
            return self._shut_out(session, token, patience)
        except (Lost, psycopg.Error) as error:
            reason = f"the connection was lost ({_said(cause)}), and nobody could be asked ({_said(error)})"
            raise CommitUnknownError(self.path, "the commit", reason) from cause

    def _shut_out(self, session: int, token: int, patience: float) -> Settled | None:
        """Wait until nothing of a lost session is under way; return its notes on a change, None if there are none.

        Raises the error of the last attempt.
        """
        deadline = time.monotonic() + patience
        number = 0
        while True:
            other = None
            try:
                left = max(0.0, deadline - time.monotonic())
                other = self._taken(left, deadline)
                settled = other.settled(session, token, left)
            except (Lost, psycopg.Error) as error:
                self._drop(other)
                if time.monotonic() >= deadline or is_final(_sqlstate(error)) or is_hopeless(_cause(error)):
                    raise
                number = _pause(number, deadline, other)
            else:
                self._unsettled.discard(session)
                self._give_back(other)
                return settled

    def settle(self, patience: float) -> float:
        """Wait until nothing of lost, unsettled sessions is under way; return the patience left."""
        if not self._unsettled or blocks.current() is not None:
            return patience
        deadline = time.monotonic() + patience
        for session in tuple(self._unsettled):
            try:
                self._shut_out(session, 0, deadline - time.monotonic())
            except (Lost, psycopg.Error) as error:
                if is_final(_sqlstate(error)):  # the ledger no longer exists, or is not accessible
                    self._unsettled.discard(session)
                    continue
                if not isinstance(error, psycopg.errors.LockNotAvailable):
                    self._refuse("a change", _cause(error))
                reason = f"what a lost connection had under way has not ended ({_said(error)})"
                raise ServerError(self.path, "a change", reason, error.sqlstate or "") from error
        return max(0.0, deadline - time.monotonic())

    def _refuse(self, operation: str, cause: Exception) -> NoReturn:
        if isinstance(cause, psycopg.Error):
            raise explained(cause, self.path, operation) from cause
        if isinstance(cause, QueueError):
            raise cause
        raise ServerError(self.path, operation, str(cause)) from cause


def is_hopeless(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None and is_refused(error)


def _pause(number: int, deadline: float, lost: Session | None = None) -> int:
    """Sleep before another attempt; return the number of the next pause.

    A connection from the pool may have been dead for long, like all others there: that is no reason to wait.
    """
    if lost is not None and lost.used_at:
        return number
    time.sleep(min(_PAUSES[min(number, len(_PAUSES) - 1)], max(0.0, deadline - time.monotonic())))
    return number + 1


def _cause(error: Exception) -> Exception:
    return error.cause if isinstance(error, Lost) else error


def _sqlstate(error: Exception) -> str:
    cause = _cause(error)
    return (cause.sqlstate if isinstance(cause, psycopg.Error) else None) or ""


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leave_to_the_parent() -> None:
    global _registry  # noqa: PLW0603  (its lock may be held by a thread of the parent)
    _registry = threading.RLock()
    for database in list(_databases.values()):
        with suppress(OSError):
            database.abandon()
        database.begin_anew()


at_fork("PostgreSQL connections", in_child=_leave_to_the_parent)
