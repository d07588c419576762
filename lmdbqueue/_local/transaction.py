"""The block of a ``transaction()`` as one transaction: what its calls do until it ends.

Owns: the transaction of a block. Law: the changes of a block are committed together or not at all. Must not know: who
holds which lock (``_local.environment``), what spoils a block (``_verbs.block``), what a call means.

====  ====================================================  =====================================
step  what is done                                          killed after it; or the power goes
====  ====================================================  =====================================
1     take this process's right to write (``_writer``)      nothing was changed; the kernel and
      and LMDB's write lock: nobody else writes              LMDB free the locks
2     flush, if what is seen here is not on the disk yet     as 1
3     run the block: each verb of this thread on a queue     as 1
      of this directory runs in its transaction at once
4     commit                                                 killed: all of it is there; power:
                                                             all or nothing, as of any commit
5     flush; then the block is left, which says that it is   all of it is there
      durable, and sleepers are woken
====  ====================================================  =====================================

A fork inside a block creates a child in which queues of that directory raise ``ForkError``; leaving the block there
raises it, too, and ends nothing: the transaction belongs to the parent (see ``_local.live`` on forks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from lmdbqueue._base.errors import Full, NestedCallError, StorageError
from lmdbqueue._host.disk import translated
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import Ending
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn, forget_frames
from lmdbqueue._verbs.block import Block, Blocks

blocks: Blocks[Transaction] = Blocks()
_of_parent: list[Transaction] = []  # in a child: kept, since LMDB's binding would end dropped transactions


class Transaction(Block):
    """A block whose calls share one LMDB transaction."""

    def __init__(self, owner: object, path: str, begun: list[tuple[Generation, Txn]], ending: Ending) -> None:
        """Begin. ``begun``: the only reference to its transaction, which is emptied to undo it.

        ``ending``: the steps that end everything begun for it; closed by the thread that began it.
        """
        super().__init__(owner, path)
        self._begun = begun
        self.generation = generation = begun[0][0]
        self._ending = ending
        self._has_changed = False
        self._is_busy = False  # whether a call or the commit is under way
        generation.content.enter_block()

    def queue(self, name: str) -> Tables | None:
        """Return the tables of a queue, None if it was not opened before."""
        self.refuse_amid_a_call()
        return next((each for each in self.generation.open_to(self._begun[0][1]) if each.name == name), None)

    def end(self) -> None:
        """End it in its thread, since the block was left in another thread, or never."""
        self._ending.close()

    def read(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(txn, tables, *args)``, which changes nothing."""
        self.refuse_if_spoiled()
        self.refuse_amid_a_call()
        try:
            return fn(self._begun[0][1], self.generation.table(ref), *args)
        except BaseException as error:
            forget_frames(error)  # as below
            self._raise(error, "reading")

    def write(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...], room: int) -> Any:
        """Return ``fn(txn, tables, *args)``, which checks before it writes."""
        self.refuse_if_spoiled()
        self.refuse_amid_a_call()
        table = self.generation.table_to_write(ref)
        try:
            self._is_busy = True
            if room:
                self.generation.make_room(self._begun[0][1], room)
            result = fn(self._begun[0][1], table, *args)
        except Full as error:
            forget_frames(error)  # which keep the transaction, and the user may keep the error
            raise
        except BaseException as error:
            forget_frames(error)
            self._spoiled_by = error
            self._raise(error, "writing")
        finally:
            self._is_busy = False
        self._has_changed = bool(result) or self._has_changed
        return result

    def refuse_amid_a_call(self) -> None:
        """Raise ``NestedCallError`` during a call or the commit of the block, which a signal handler may interrupt."""
        if self._is_busy:
            raise NestedCallError(self.path)

    def commit(self) -> int:
        """Commit the changes; return the transaction for ``secure``, 0 if there are none. No more calls can join."""
        self._is_busy = True
        self.refuse_if_spoiled()
        if not self._has_changed:
            return 0
        with translated(self.path, "commit"):
            self.generation.presence.refuse_gone()  # the block may have lasted long
        try:
            return self.generation.commit(self._begun[0][1])
        except Exception as error:
            self._raise(error, "commit")

    def _raise(self, error: BaseException, operation: str) -> NoReturn:
        explained = self.generation.explain(error, operation) if isinstance(error, Exception) else error
        if isinstance(explained, Superseded):  # which is only meant for this library
            explained = StorageError(self.path, operation, str(error), "the block is undone: repeat it")
        elif isinstance(explained, Doubtful):
            explained = StorageError(self.path, operation, "a flush failed")
        if explained is error:
            raise error
        raise explained from error


at_fork("blocks", in_child=lambda: _of_parent.extend(blocks.leave_to_the_parent()))
