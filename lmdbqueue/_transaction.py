"""The block of a user as one transaction: what the calls in it do until it ends.

Owns: which thread is in a block, and what spoils one. Law: what the calls of a block change is committed
together or not at all; a block that somebody may rely on never goes on after half a call. Must not know:
who holds which lock (``_env``), what a call means.

====  ====================================================  =====================================
step  what is done                                          killed after it; or the power goes
====  ====================================================  =====================================
1     take the right to write of this process (``_writer``)  nothing was changed; the kernel and
      and LMDB's write lock: nobody else writes              LMDB free the locks
2     flush, if what is seen here is not on the disk yet     as 1
3     run the block: each verb of this thread on a queue     as 1
      of this directory runs in its transaction at once
4     commit                                                 killed: all of it is there; power:
                                                             all or nothing, as of any commit
5     flush; then the block is left, which says that it is   all of it is there
      durable, and sleepers are woken
====  ====================================================  =====================================

A call that refuses before it writes anything (``Full``) leaves the block as it was. Any other error of
a call spoils it, even if the user catches it: what the call did halfway would be committed. So does
an exception that leaves an inner block, which is a part of the outer one.

A fork inside of a block gives a child whose queues of that directory raise ``ForkError``; leaving the block
there does too, and ends nothing: the transaction is the parent's (see ``_env`` on forks).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lmdbqueue._errors import ForkError, Full, StorageError, TransactionError
from lmdbqueue._generation import Doubtful, Generation, Superseded, Txn

_of_thread: dict[int, "Transaction"] = {}
_of_parent: list["Transaction"] = []  # in a child: kept, since LMDB's binding would end what is let go


class Transaction:
    """A block that is under way, in the thread that began it."""

    def __init__(self, owner: object, path: str, generation: Generation, txn: Txn) -> None:
        """``owner``: whose queues may take part; ``path``, of their directory, is for errors."""
        self.owner = owner
        self.path = path
        self.generation = generation
        self._txn = txn
        self._has_changed = False
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

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be a part of it, for an inner block."""
        try:
            yield
        except BaseException as error:
            self._spoiled_by = self._spoiled_by or error
            raise

    def refuse_other(self, owner: object) -> None:
        """Raise ``TransactionError`` for a queue that cannot take part."""
        if owner is not self.owner:
            raise TransactionError(
                self.path,
                "a queue of another directory was used inside of a transaction",
                "a transaction covers one directory: open both queues there, with two names",
            )

    def read(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(txn, tables, *args)``, which changes nothing."""
        self._refuse_if_spoiled()
        try:
            return fn(self._txn, self.generation.table(name), *args)
        except Exception as error:
            self._raise(error, "reading")

    def write(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], room: int) -> Any:
        """Return ``fn(txn, tables, *args)``, which looks before it writes."""
        self._refuse_if_spoiled()
        table = self.generation.table(name)
        try:
            if room:
                self.generation.make_room(self._txn, room)
            result = fn(self._txn, table, *args)
        except Full:
            raise
        except BaseException as error:
            self._spoiled_by = error
            self._raise(error, "writing")
        self._has_changed = bool(result) or self._has_changed
        return result

    def commit(self) -> int:
        """Commit what was changed; return the transaction for ``secure``, 0 if nothing was."""
        if self in _of_parent:
            raise ForkError(self.path)
        self._refuse_if_spoiled()
        if not self._has_changed:
            return 0
        try:
            return self.generation.commit(self._txn)
        except Exception as error:
            self._raise(error, "commit")

    def _refuse_if_spoiled(self) -> None:
        if self._spoiled_by is not None:
            raise TransactionError(
                self.path,
                f"a call inside of it failed ({type(self._spoiled_by).__name__}: {self._spoiled_by})",
                "all of it is undone: do it again, or let the error leave the block",
            ) from self._spoiled_by

    def _raise(self, error: BaseException, operation: str) -> NoReturn:
        explained = self.generation.explain(error, operation) if isinstance(error, Exception) else error
        if isinstance(explained, (Superseded, Doubtful)):  # which only tell what this library must do
            explained = StorageError(self.path, operation, str(error) or "a flush failed")
        if explained is error:
            raise error
        raise explained from error


def current() -> Transaction | None:
    """Return the block that this thread is in."""
    return _of_thread.get(threading.get_ident()) if _of_thread else None


def refuse_inside(path: str, what: str, advice: str = "call it outside of the block") -> None:
    """Raise ``TransactionError`` if this thread is in a block."""
    if current() is not None:
        raise TransactionError(path, f"{what} inside of a transaction", advice)


def _leave_to_the_parent() -> None:
    _of_parent.extend(_of_thread.values())
    _of_thread.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)
