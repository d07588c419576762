"""The block of a user as one transaction of the database.

Owns: which thread is in a block, and what spoils one. Law: what the calls and the statements of a block change is
committed together or not at all; a block that somebody may rely on never goes on after half a call. Must not know:
how a transaction is committed, what a call means.

A call that refuses before it writes anything (``Full``) leaves the block as it was. Any other error of a call spoils
it, even if the user catches it; so does an exception that leaves an inner block, which is a part of the outer one.
A forked child has no part in its parent's block: its calls there raise ``ForkError``, and so does leaving it.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from lmdbqueue._errors import ForkError, Full, QueueError, TransactionError
from lmdbqueue.postgres._failures import explained
from lmdbqueue.postgres._session import Step

_of_thread: dict[int, "Block"] = {}


class Block:
    """A block that is under way, in the thread that began it."""

    def __init__(self, database: object, path: str, step: Step) -> None:
        """``database``: whose queues may take part; ``path``, of it, is for errors."""
        self.step = step
        self.is_of_parent = False
        self._database = database
        self._path = path
        self._spoiled_by: BaseException | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calls of this thread join, for the block."""
        thread = threading.get_ident()
        _of_thread[thread] = self
        try:
            yield
        finally:
            _of_thread.pop(thread, None)
            if self.is_of_parent:
                raise ForkError(self._path)

    @contextmanager
    def joined(self, database: object) -> Iterator[None]:
        """Be a part of it, for an inner block."""
        self._refuse_other(database)
        try:
            yield
        except BaseException as error:
            self._spoiled_by = self._spoiled_by or error
            raise

    def call(self, database: object, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(step, *args)``, which looks before it writes."""
        self._refuse_other(database)
        self.refuse_if_spoiled()
        try:
            return fn(self.step, *args)
        except Full:
            raise
        except psycopg.Error as error:
            self._spoiled_by = error
            raise explained(error, self._path, "a call in a transaction") from error
        except QueueError:
            if self.step.connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                raise self._failed() from None
            raise
        except BaseException as error:
            self._spoiled_by = error
            raise

    def attempt(self, database: object, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Do as ``call``, for what looks at what it has written: it is undone if it fails, or changes nothing."""
        return self.call(database, _attempted, (fn, args))

    def refuse_if_spoiled(self) -> None:
        """Raise ``TransactionError`` if the block cannot go on."""
        if self.is_of_parent:
            raise ForkError(self._path)
        if self._spoiled_by is not None:
            raise TransactionError(
                self._path,
                f"a call inside of it failed ({type(self._spoiled_by).__name__}: {self._spoiled_by})",
                "all of it is undone: do it again, or let the error leave the block",
            ) from self._spoiled_by
        status = self.step.connection.info.transaction_status
        if status == psycopg.pq.TransactionStatus.INERROR:
            raise self._failed()
        if status == psycopg.pq.TransactionStatus.IDLE:
            raise TransactionError(
                self._path, "a statement inside of it has ended it", "leave COMMIT and ROLLBACK to the block"
            )

    def _failed(self) -> TransactionError:
        return TransactionError(
            self._path,
            "a statement inside of it failed",
            "all of it is undone: do it again, use txn.connection.transaction() around a statement that may fail",
        )

    def _refuse_other(self, database: object) -> None:
        if database is not self._database:
            raise TransactionError(
                self._path,
                "a queue of another database, or schema, was used inside of a transaction",
                "a transaction covers one: have both queues there",
            )


def _attempted(step: Step, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    had_changed, step.has_changed = step.has_changed, False
    try:
        with step.connection.transaction() as savepoint:
            result = fn(step, *args)
            if not step.has_changed:
                raise psycopg.Rollback(savepoint)
    finally:
        step.has_changed = step.has_changed or had_changed
    return result


def current() -> Block | None:
    """Return the block that this thread is in."""
    return _of_thread.get(threading.get_ident()) if _of_thread else None


def refuse_inside(path: str, what: str, advice: str = "call it outside of the block") -> None:
    """Raise ``TransactionError`` if this thread is in a block."""
    if current() is not None:
        raise TransactionError(path, f"{what} inside of a transaction", advice)


def _leave_to_the_parent() -> None:
    mine = current()
    _of_thread.clear()
    if mine is not None:
        mine.is_of_parent = True
        _of_thread[threading.get_ident()] = mine


os.register_at_fork(after_in_child=_leave_to_the_parent)
