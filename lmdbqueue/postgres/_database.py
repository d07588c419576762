"""A database as this process has it: its connections, and what is done when one of them is lost.

Owns: the pool, shared by all queue objects of one address and schema; retrying; forks. Law: a change is repeated only
if it is known that it did not take place; what is not known within ``patience`` is said (``CommitUnknownError``).
Must not know: what a queue is.

What is lost, and when:

====================================  =========================================================================
the connection breaks                 what happens
====================================  =========================================================================
while connecting, or in a reading     another connection, again
in a change                           another connection shuts the old session out, which waits until the server has
                                      undone or committed what was under way, and reads its token: the change took
                                      place, and its result is returned; or it did not, and is done again
... and nobody can be asked           after ``patience`` seconds ``CommitUnknownError``, if its commit was awaited, else
                                      ``ServerError``
====================================  =========================================================================

Another connection may be one to another server, after a failover. What it says is so there: a change that the old
primary had acknowledged to nobody is there with its token, or not there and without it.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, LiteralString, NoReturn, TypeVar, TypeVarTuple

import psycopg

from lmdbqueue._errors import CommitUnknownError, QueueError, ServerError
from lmdbqueue.postgres import _schema
from lmdbqueue.postgres._block import Block, blocks
from lmdbqueue.postgres._ear import Ear
from lmdbqueue.postgres._failures import Lost, explained, is_lost
from lmdbqueue.postgres._session import Session, Step, shown
from lmdbqueue.postgres._sql import Sql

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_KEPT: Final = 4  # connections that wait for their next use
_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # seconds before each try, the last for all others

_AWAITED: Final = "UPDATE {queues} SET is_awaited = true WHERE id = %(queue)s AND NOT is_awaited"

_databases: dict[tuple[str, str], "Database"] = {}
_registry = threading.Lock()


def open_database(conninfo: str, schema: str, patience: float) -> "Database":
    """Return the database, opened once in a process for all who use it; each of them releases it."""
    with _registry:
        database = _databases.get((conninfo, schema))
        if database is None:
            database = _databases[conninfo, schema] = Database(conninfo, schema)
        database.handles += 1
    try:
        database.prepare(patience)
    except BaseException:
        database.release()
        raise
    return database


class Database:
    """The connections of a process to one schema of one database."""

    def __init__(self, conninfo: str, schema: str) -> None:
        self.conninfo = conninfo
        self.sql = Sql(schema)
        self.path = shown(conninfo)
        self.uuid = ""
        self.handles = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Have no connections: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._used: weakref.WeakSet[Session] = weakref.WeakSet()
        self.ear = Ear(self.connect, self._announce)

    def abandon(self) -> None:
        """Give up what is the parent's."""
        for session in [*self._idle, *self._used]:
            session.abandon()
        self.ear.abandon()

    def prepare(self, patience: float) -> None:
        """Let the schema be there, and count what dead sessions have left."""
        if not self.uuid:
            session, self.uuid = self._done("opening", patience, self._prepared)
            session.close()

    def _prepared(self, session: Session) -> str:
        try:
            uuid = _schema.prepare(session.connection, self.sql, self.path)
            session.sweep()
        except psycopg.errors.UniqueViolation as error:  # two made the schema at the same moment
            raise Lost(error) from error
        return uuid

    def release(self) -> None:
        """Close the connections when the last who used it is gone."""
        with _registry:
            self.handles -= 1
            if self.handles:
                return
            if _databases.get((self.conninfo, self.sql.schema)) is self:
                del _databases[self.conninfo, self.sql.schema]
        self.ear.close()
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.leave()

    # --- what is done

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
        result: R = self._done_with("a change", patience, lambda session: session.run(fn, args))
        return result

    def claim(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Do as ``run``, for a function whose first statement is a claim, which looks at the fence itself.

        What it did is undone if it does not say that it ``has_changed`` anything, inside of a block, too.
        """
        if (block := blocks.current()) is not None:
            joined: R = block.attempt(self, fn, args)
            return joined
        result: R = self._done_with("a change", patience, lambda session: session.run(fn, args, claims=True))
        return result

    def attempt(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Do as ``claim``, for a function whose claim is all that it sends."""
        if (block := blocks.current()) is not None:
            joined: R = block.attempt(self, fn, args)
            return joined
        result: R = self._done_with(
            "a change", patience, lambda session: session.run(fn, args, claims=True, is_one=True)
        )
        return result

    def once(self, patience: float, text: LiteralString, values: dict[str, Any]) -> Any:
        """Return the row that a change returns which is one statement (``Session.once``), outside of blocks."""
        return self._done_with("a change", patience, lambda session: session.once(text, values))

    def connect(self) -> Session:
        """Open a connection that is not of the pool."""
        return Session(self.conninfo, self.sql, self.path)

    def _announce(self, session: Session, channel: str) -> None:
        """Let pushes tell from now on: one that does not know yet has the queue's row, and is waited for."""
        session.connection.execute(self.sql(_AWAITED), {"queue": self.sql.queue(channel)})

    def entered(self, patience: float) -> Session:
        """Open a connection that is not of the pool, and known to others."""
        deadline = time.monotonic() + patience
        number = 0
        while True:
            try:
                return self.connect().enter()
            except psycopg.Error as error:
                if time.monotonic() >= deadline:
                    raise explained(error, self.path, "connecting") from error
            number = _pause(number, deadline)

    @contextmanager
    def transaction(self, patience: float) -> Iterator[Step]:
        """Let the calls of this thread be one transaction, for the block; an inner block is a part of the outer."""
        block = blocks.current()
        if block is not None:
            block.refuse_other(self)
            with block.joined():
                yield block.step
            return
        session, step = self._done("a transaction", patience, Session.begin)
        block = Block(self, self.path, step)
        try:
            with block.entered():
                yield step
                block.refuse_if_spoiled()
        except BaseException:
            if not block.is_of_parent:
                session.undo()
                self._give_back(session)
            raise
        self._commit(session, step, patience)

    def _commit(self, session: Session, step: Step, patience: float) -> None:
        operation = "the end of a transaction"
        try:
            session.commit(step)
        except psycopg.Error as error:
            is_known = not is_lost(error, session.connection)
            self._drop(session)
            if is_known:
                raise explained(error, self.path, operation) from error
            if not self._is_settled(session.id, session.token, patience, error)[0]:
                raise ServerError(self.path, operation, f"the connection was lost ({_said(error)})") from error
        except BaseException:
            self._drop(session)
            raise
        else:
            self._give_back(session)

    # --- connections

    def _done_with(self, operation: str, patience: float, act: Callable[[Session], Any]) -> Any:
        """Return what ``act`` returns for a session, and give that back."""
        session, result = self._done(operation, patience, act)
        if session is not None:
            self._give_back(session)
        return result

    def _done(self, operation: str, patience: float, act: Callable[[Session], Any]) -> tuple[Any, Any]:
        """Return a session and what ``act`` returns for it; repeat it with another as long as it may be.

        The session is None if it was lost, when what it did was done.
        """
        deadline = time.monotonic() + patience
        number = 0
        while True:
            session = None
            try:
                session = self._taken()
                return session, act(session)
            except Lost as lost:
                self._drop(session)
                if session is not None and lost.has_begun:
                    is_done, result = self._after(session, lost, operation, deadline - time.monotonic())
                    if is_done:
                        return None, result
                if time.monotonic() >= deadline:
                    self._refuse(operation, lost.cause)
            except psycopg.Error as error:
                self._give_back(session)
                raise explained(error, self.path, operation) from error
            except Exception:
                self._give_back(session)
                raise
            except BaseException:  # an interrupt: who knows where
                self._drop(session)
                raise
            number = _pause(number, deadline)

    def _taken(self) -> Session:
        """Take a connection from the pool, or open one."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        if session is None:
            try:
                session = self.connect()
                if self.uuid:
                    session.enter()
            except psycopg.Error as error:
                raise Lost(error) from error
        self._used.add(session)
        return session

    def _give_back(self, session: Session | None) -> None:
        if session is None:
            return
        self._used.discard(session)
        if session.process == os.getpid() and session.is_idle and self.handles and self.uuid:
            with self._lock:
                if len(self._idle) < _KEPT:
                    self._idle.append(session)
                    return
        if session.process == os.getpid():
            session.leave()

    def _drop(self, session: Session | None) -> None:
        if session is not None:
            self._used.discard(session)
            session.close()

    def _after(self, session: Session, lost: Lost, operation: str, patience: float) -> tuple[bool, Any]:
        """Wait until a lost session's change took place, or cannot any more; tell which, and return its result."""
        try:
            is_done, result = self._is_settled(session.id, session.token, patience, lost.cause)
        except CommitUnknownError:
            if lost.is_unknown:
                raise
            self._refuse(operation, lost.cause)
        return is_done, lost.result if result is None else (result,)

    def _is_settled(self, session: int, token: int, patience: float, cause: Exception) -> tuple[bool, int | None]:
        """Find out whether a change took place; return its result, too."""
        deadline = time.monotonic() + patience
        number = 0
        while True:
            other = None
            try:
                other = self._taken()
                last, result = other.settled(session, deadline - time.monotonic())
            except (Lost, psycopg.Error) as error:
                if other is not None:
                    self._drop(other)
                if time.monotonic() >= deadline:
                    reason = f"the connection was lost ({_said(cause)}), and nobody could be asked ({_said(error)})"
                    raise CommitUnknownError(self.path, "the commit", reason) from cause
                number = _pause(number, deadline)
            else:
                self._give_back(other)
                return last == token, result

    def _refuse(self, operation: str, cause: Exception) -> NoReturn:
        if isinstance(cause, psycopg.Error):
            raise explained(cause, self.path, operation) from cause
        if isinstance(cause, QueueError):
            raise cause
        raise ServerError(self.path, operation, str(cause)) from cause


def _pause(number: int, deadline: float) -> int:
    """Sleep before another try; return the number of the next pause."""
    time.sleep(min(_PAUSES[min(number, len(_PAUSES) - 1)], max(0.0, deadline - time.monotonic())))
    return number + 1


def _said(error: Exception) -> str:
    return str(error).strip().replace("\n", " ") or type(error).__name__


def _leave_to_the_parent() -> None:
    global _registry  # noqa: PLW0603  (its lock may be held by a thread of the parent)
    _registry = threading.Lock()
    for database in list(_databases.values()):
        with suppress(OSError):
            database.abandon()
        database.begin_anew()


os.register_at_fork(after_in_child=_leave_to_the_parent)
