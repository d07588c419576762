"""The block of a ``transaction()`` as one transaction of the database.

Owns: the effect of a user's statements on a block. Law: the changes by calls and statements of a block are committed
together or not at all. Must not know: how a transaction is committed, what a call means.

A forked child has no part in its parent's block: its calls there raise ``ForkError``, and so does leaving it.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from lmdbqueue._base.errors import ForkError, Full, NestedCallError, QueueError, TransactionError
from lmdbqueue._host import departures
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import holding
from lmdbqueue._verbs import block
from lmdbqueue.postgres._failures import explained, interrupt_amid
from lmdbqueue.postgres._step import Step

blocks: block.Blocks["Block"] = block.Blocks()


class Block(block.Block):
    """A block whose calls share a transaction of the database, with statements of the user's own."""

    covers = "schema of a database"

    def __init__(self, owner: object, path: str, step: Step, drop: Callable[[], object], silent: float) -> None:
        """``drop`` ends its connection, and with that the transaction; ``silent``: how long a call waits for it."""
        super().__init__(owner, path)
        self.step = step
        self.was_shown = False  # its connection, to the user
        self.is_over = False  # its thread ended without leaving it
        self._is_busy = False  # whether a call of several statements is under way
        self._drop = drop
        self._silent = silent
        self._thread = threading.get_ident()

    def end(self) -> None:
        """End it because its thread ends without leaving it. It is called anywhere, so another thread does the work."""
        self.is_over = True
        blocks.leave(self)
        departures.defer(self._drop)

    def shown(self) -> psycopg.Connection[Any]:
        """Return the connection, for statements of the user's own."""
        self.was_shown = True
        return self.step.connection

    @holding
    def entered(self) -> Iterator[None]:
        """Make the calls of this thread join the transaction, for the block."""
        try:
            with blocks.entered(self):
                self.step.connection.limit()  # a user's own statement is waited for as they like
                yield
                self._refuse_elsewhere()
        finally:
            blocks.leave(self)  # in case an interrupt came before
            if self.is_of_parent:
                raise ForkError(self.path)

    def _refuse_elsewhere(self) -> None:
        if threading.get_ident() != self._thread:
            raise TransactionError(
                self.path,
                "the block ends in a different thread from the one it began in",
                "all of it is undone: use one thread for both",
            )

    def call(self, database: object, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(step, *args)``, which checks before it writes, and calls no user code."""
        self._refuse_nested()
        try:
            self._is_busy = True
            return self._called(database, fn, args)
        finally:
            self._is_busy = False

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` if a call of the block is half done, which a signal handler may interrupt."""
        if self._is_busy or self.step.connection.lock.locked():
            raise NestedCallError(self.path)

    def _called(self, database: object, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self.refuse_other(database)
        self.refuse_if_spoiled()
        handled = sys.exception()
        try:
            self.step.connection.limit(self._silent)
            return fn(self.step, *args)
        except Full:
            raise
        except psycopg.Error as error:
            self._spoiled_by = error
            if (interrupt := interrupt_amid(error, handled)) is not None:
                raise interrupt from None
            raise explained(error, self.path, "a call in a transaction") from error
        except QueueError:
            if self.step.connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                raise self._failed() from None
            raise
        except BaseException as error:
            self._spoiled_by = error
            raise
        finally:
            self.step.connection.limit()

    def attempt(self, database: object, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Like ``call``, for functions that decode what they take: undone if they fail, or change nothing."""
        self._refuse_nested()
        return self._called(database, _attempted, (fn, args))

    def refuse_if_spoiled(self) -> None:
        """Raise ``TransactionError`` if the block is spoiled."""
        super().refuse_if_spoiled()
        if self.is_over:
            raise TransactionError(self.path, "the thread in which it began has ended", "end it in the same thread")
        status = self.step.connection.info.transaction_status
        if status == psycopg.pq.TransactionStatus.INERROR:
            raise self._failed()
        if status == psycopg.pq.TransactionStatus.IDLE:
            raise TransactionError(
                self.path, "a statement inside it has ended it", "leave COMMIT and ROLLBACK to the block"
            )

    def _failed(self) -> TransactionError:
        return TransactionError(
            self.path,
            "a statement inside it failed",
            "all of it is undone: repeat it, with txn.connection.transaction() around a statement that may fail",
        )


def _attempted(step: Step, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    had_changed, step.has_changed = step.has_changed, False
    try:
        with step.connection.transaction() as savepoint:
            result = fn(step, *args)
            savepoint.force_rollback = not step.has_changed  # a Rollback would come out if the connection were lost
    finally:
        step.has_changed = step.has_changed or had_changed
    return result


def _leave_to_the_parent() -> None:
    mine = blocks.current()
    blocks.leave_to_the_parent()
    if mine is not None:
        blocks.enter(mine)  # so that calls in it are refused


at_fork("PostgreSQL blocks", in_child=_leave_to_the_parent)
