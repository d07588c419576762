"""A database as this process has it: what is done in it, and again when a connection is lost.

Owns: retrying, blocks, forks; it is shared by all queue objects of one address and schema. Law: a change is repeated
only if it is known that it did not take place; what is not known within ``patience`` is said (``CommitUnknownError``).
Must not know: what a queue is.

What is lost, and when:

====================================  =========================================================================
the connection breaks                 what happens
====================================  =========================================================================
while connecting, or in a reading     another connection, again
in a change                           another connection shuts the old session out, which waits until the server has
                                      undone or committed what was under way, and reads its token: the change took
                                      place, and its result is returned; or it did not, and is done again
... and nobody can be asked           when the call is over ``CommitUnknownError``, if its commit was awaited, else
                                      ``ServerError``
====================================  =========================================================================

Connections lost elsewhere (by an interrupt, in a block, while undoing) are settled in this way before the next change:
until then they might hold the items that they have claimed, and the change would skip those as it skips all items that
others are taking.

A call is over ``patience`` seconds after it was made, whatever it was that did not answer, and however often. Only a
server that says that it is at work is waited for longer (``_silence``).

Another connection may lead to another server, after a failover. Its answer holds there: a change that the old primary
had not acknowledged exists there with its token, or does not exist, and neither does its token.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final, LiteralString, TypeVar, TypeVarTuple

import psycopg

from lmdbqueue._base.errors import CommitUnknownError, ForkError, NestedCallError, QueueError, ServerError
from lmdbqueue._host import fork
from lmdbqueue._host.disk import translated
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import holding
from lmdbqueue.postgres import _schema
from lmdbqueue.postgres._access import Access, pause, refused
from lmdbqueue.postgres._block import Block, blocks
from lmdbqueue.postgres._connection import shown
from lmdbqueue.postgres._ear import Ear
from lmdbqueue.postgres._failures import Lost, cause_of, explained, is_hopeless, is_lost, said
from lmdbqueue.postgres._ledger import Settled
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._session import Session, Values
from lmdbqueue.postgres._silence import over_at, silence
from lmdbqueue.postgres._sql import Sql
from lmdbqueue.postgres._step import Step

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_TO_LISTEN: Final = 5.0  # seconds that a try to connect may take of whoever listens
_databases: dict[tuple[str, str], "Database"] = {}
_registry = threading.RLock()  # reentrant, like all locks here: a nested call of the same thread must not wait for it


def open_database(conninfo: str, schema: str, patience: float, pool: int | None = None) -> "Database":
    """Return the database, opened once in a process for all its users; each of them releases it."""
    with _registry:
        database = _databases.get((conninfo, schema))
        if database is None:
            database = _databases[conninfo, schema] = Database(conninfo, schema, pool)
        elif pool is not None:
            database.access.resize(pool)
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
        self.conninfo = conninfo
        self.sql = Sql(schema)
        self.path = shown(conninfo)
        self.uuid = ""
        self.handles = 0
        self._amid: set[int] = set()  # threads in a transaction of several statements
        self.access = Access(conninfo, self.sql, self.path, limit)
        self.owner = Owner(self.access.entered, self.sql, self.path)
        self.access.greets = self.owner.refuse_if_dead
        self._listen()

    def _listen(self) -> None:
        with translated(self.path, "opening"):
            self.ear = Ear(self._connected_for_listening, self.sql)

    def begin_anew(self) -> None:
        """Have no connections, in a forked child."""
        self.access.begin_anew()
        self._listen()

    def abandon(self) -> None:
        """Give up the parent's connections."""
        self.access.abandon()
        self.ear.abandon()
        self.owner.begin_anew()

    @property
    def is_away(self) -> bool:
        """Whether the server is unreachable, judging by the last unanswered call."""
        return self.access.is_away

    def prepare(self, patience: float) -> None:
        """Create the schema if it is missing, and add the counts of dead sessions."""
        if not self.uuid:
            session, self.uuid = self._done("opening", over_at(patience), patience, self._prepared)
            self.access.has_tables = True
            self.access.drop(session)

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
            for session in self.access.pool.close():
                ending.callback(session.leave)
            ending.callback(self.owner.leave)
            ending.callback(self.ear.close)

    # --- running steps

    def view(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, *args)``, which changes nothing; in the block of this thread, if it is in one."""
        if os.getpid() != fork.pid:
            fork.notice()
        if (block := blocks.current()) is not None:
            joined: R = block.call(self, fn, args)
            return joined
        result: R = self._done_with("reading", over_at(patience), patience, Session.view, fn, args)
        return result

    def run(self, patience: float, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, *args)``, as one transaction, or as a part of the block of this thread."""
        if (block := blocks.current()) is not None:
            joined: R = block.call(self, fn, args)
            return joined
        deadline = self._begun(patience)
        thread = threading.get_ident()
        try:
            self._amid.add(thread)
            result: R = self._done_with("a change", deadline, patience, Session.run, fn, args)
        finally:
            self._amid.discard(thread)
        return result

    def attempt(self, fn: Callable[[Step, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, *args)`` in the block of this thread; undone unless it says that it ``has_changed``."""
        block = blocks.current()
        assert block is not None
        joined: R = block.attempt(self, fn, args)
        return joined

    def once(
        self,
        patience: float,
        text: LiteralString,
        queue: int,
        channel: str,
        values: Values,
        awaited: int | None = None,
    ) -> list[Any] | Settled:
        """Return the rows of a change that is one statement (``Session.once``), outside of blocks.

        ``Settled`` if the rows were lost and the change took place.
        """
        deadline = self._begun(patience)
        done: list[Any] | Settled = self._done_with(
            "a change", deadline, patience, Session.once, text, queue, values, channel, awaited
        )
        return done

    def claim(self, patience: float, act: Callable[[Session], R]) -> R:
        """Return what ``act`` returns for a session, which may claim an item, decode it, and make one change."""
        deadline = self._begun(patience)
        result: R = self._done_with("a change", deadline, patience, act)
        return result

    def alone(self, patience: float, text: LiteralString, values: dict[str, Any]) -> None:
        """Execute a statement that may be done once, twice or not at all."""
        with suppress(QueueError):
            self._done_with("a change", over_at(patience), patience, Session.alone, text, values)

    def _connected_for_listening(self) -> Session:
        return self.access.entered(0.0, _TO_LISTEN)

    @holding
    def transaction(self, patience: float) -> Iterator[Block]:
        """Make the calls of this thread one transaction, for the block; an inner block is a part of the outer one."""
        block = blocks.current()
        if block is not None:
            block.refuse_other(self)
            with block.joined():
                yield block
            return
        deadline = self._begun(patience)
        session, step = self._done("a transaction", deadline, patience, Session.begin)
        block = Block(self, self.path, step, partial(self.access.drop, session), silence(patience))
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
                    self.access.drop(session)
                elif not block.is_of_parent:
                    try:
                        session.undo()
                    except BaseException:
                        self.access.drop(session)
                        raise
                    self._give_back_used(session, block)
                raise
            try:
                is_intact = self._commit(session, block, patience)
            except QueueError:
                raise  # it has dropped the connection
            except BaseException:  # an interrupt, which may come before its first line
                self.access.drop(session)
                raise
            if is_intact:
                self._give_back_used(session, block)
        finally:
            self._amid.discard(thread)

    def _commit(self, session: Session, block: Block, patience: float) -> bool:
        """Commit; return whether the connection is intact. If not, or after a ``QueueError``, it was dropped."""
        operation, deadline = "the end of a transaction", over_at(patience)
        try:
            session.commit(block.step, deadline)
        except psycopg.Error as error:
            is_known = not is_lost(error, session.connection)
            self.access.drop(session)
            if is_known:
                raise explained(error, self.path, operation) from error
            if self._settled(session.id, session.token, deadline, error) is None:
                raise ServerError(self.path, operation, f"the connection was lost ({said(error)})") from error
            return False
        return True

    def _give_back_used(self, session: Session, block: Block) -> None:
        """Return a connection that a user has used: its settings are undone, or it is dropped."""
        if block.was_shown:
            try:
                session.reset()
            except psycopg.Error:
                self.access.drop(session)
                return
        self.access.give_back(session)

    # --- again

    def _done_with(
        self, operation: str, deadline: float, patience: float, act: Callable[..., Any], *args: object
    ) -> Any:
        """Return ``act(session, *args)``, and return the session to the pool."""
        session, result = self._done(operation, deadline, patience, act, *args)
        if session is not None:
            self.access.give_back(session)
        return result

    def _done(
        self, operation: str, deadline: float, patience: float, act: Callable[..., Any], *args: object
    ) -> tuple[Any, Any]:
        """Return a session and ``act(session, *args)``; repeat it with another until the deadline.

        The session is None if it was lost, when what it did was done. ``patience``: how long it waits for a lock.
        """
        number = 0
        while True:
            session = None
            try:
                session = self.access.taken(patience, deadline)
                return session, act(session, *args)
            except Lost as lost:
                self.access.drop(session)
                if session is not None and lost.has_begun:
                    settled = self._after(session, lost, operation, deadline)
                    if settled is not None:
                        return None, settled if lost.result is None else lost.result
                if time.monotonic() >= deadline or is_hopeless(lost.cause):
                    raise refused(lost.cause, self.path, operation) from lost.cause
            except psycopg.Error as error:  # psycopg may be wrong about prepared statements: use a new connection
                self.access.retire(session)
                raise explained(error, self.path, operation) from error
            except Exception:
                if session is not None:
                    self.access.give_back(session)
                raise
            except BaseException:  # an interrupt, at an unknown point
                self.access.abort(session)
                raise
            number = pause(number, deadline, session)

    def _after(self, session: Session, lost: Lost, operation: str, deadline: float) -> Settled | None:
        """Wait until a lost session's change has taken place, or no longer can; return its notes."""
        if session.process != os.getpid():  # the call was under way when this process was forked
            raise ForkError(self.path)
        try:
            return self._settled(session.id, session.token, deadline, lost.cause)
        except CommitUnknownError:
            if lost.is_unknown:
                raise
            raise refused(lost.cause, self.path, operation) from lost.cause

    def _settled(self, session: int, token: int, deadline: float, cause: Exception) -> Settled | None:
        """Find out whether a change took place; return its notes, None if it did not."""
        try:
            return self.access.shut_out(session, token, deadline)
        except (Lost, psycopg.Error) as error:
            reason = f"the connection was lost ({said(cause)}), and nobody could be asked ({said(error)})"
            raise CommitUnknownError(self.path, "the commit", reason) from cause

    def settle(self, patience: float) -> None:
        """Wait until nothing is under way of sessions that were lost, outside of blocks."""
        if blocks.current() is None:
            self._settled_until(patience)

    def _begun(self, patience: float) -> float:
        """Begin a change; return when the call is over.

        Raises ``NestedCallError`` in a transaction of this thread, which may hold what the call would wait for.
        """
        if os.getpid() != fork.pid:
            fork.notice()
        if self._amid and threading.get_ident() in self._amid:
            raise NestedCallError(self.path)
        return self._settled_until(patience) if self.access.unsettled else over_at(patience)

    def _settled_until(self, patience: float) -> float:
        """Wait until nothing is under way of sessions that were lost; return when the call is over."""
        deadline = over_at(patience)
        try:
            self.access.settle(deadline)
        except (Lost, psycopg.Error) as error:
            cause = cause_of(error)
            raise refused(cause, self.path, "a change") from cause
        return deadline


def _leave_to_the_parent() -> None:
    global _registry  # noqa: PLW0603  (its lock may be held by a thread of the parent)
    _registry = threading.RLock()
    for database in list(_databases.values()):
        with suppress(OSError):
            database.abandon()
        database.begin_anew()


at_fork("PostgreSQL connections", in_child=_leave_to_the_parent)
