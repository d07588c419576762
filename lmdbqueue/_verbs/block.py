"""The block of a ``transaction()``, on any engine: which thread is in one, and what spoils it.

Owns: the blocks under way. Law: a block never continues after a call that stopped halfway. Must not know: what a
transaction is, how one ends.

A call that refuses before it writes anything (``Full``) leaves the block as it was. Any other error of a call spoils
it, even if the user catches it: half of the call would be committed. So does an exception that leaves an inner block,
which is a part of the outer one. A block under way at a fork belongs to the parent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

from lmdbqueue._base.errors import ForkError, TransactionError, told
from lmdbqueue._host.threads import Ending, holding


class Block:
    """A block under way, in the thread that began it."""

    covers = "directory"  # what one transaction covers

    def __init__(self, owner: object, path: str) -> None:
        """``owner``: its queues may take part; ``path`` is its path, for errors."""
        self.owner = owner
        self.path = path
        self.is_of_parent = False
        self.is_stranded = False  # it was left in another thread, which must not end it
        self._spoiled_by: BaseException | None = None

    def end(self) -> None:
        """End it in the thread that began it, because it was left in another one, or because that thread ends."""

    @holding
    def joined(self) -> Iterator[None]:
        """Run an inner block as a part of it."""
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
                f"a queue of another {self.covers} was used inside a transaction",
                f"a transaction covers one {self.covers}: open both queues in it, under two names",
            )

    def refuse_if_spoiled(self) -> None:
        """Raise ``TransactionError`` if the block is spoiled, ``ForkError`` if it belongs to the parent."""
        if self.is_of_parent:
            raise ForkError(self.path)
        if self._spoiled_by is not None:
            raise TransactionError(
                self.path,
                f"a call inside it failed ({told(self._spoiled_by)})",
                "all of it is undone: repeat it, or let the error leave the block",
            ) from self._spoiled_by


class _Guard:
    """An object that a thread drops when it ends, which is the last chance to end its blocks."""

    _under_way: Sequence[Block] = ()  # if an interrupt came before __init__ has set it

    def __init__(self, under_way: list[Block]) -> None:
        self._thread = threading.get_ident()
        self._under_way = under_way

    def __del__(self) -> None:
        if self._under_way and self._thread != threading.get_ident():
            return  # the main thread at the program's end: a daemon thread may stand still and hold locks
        for block in list(self._under_way):
            if not block.is_of_parent:
                block.end()


B = TypeVar("B", bound=Block)


class Blocks(Generic[B]):
    """The blocks of one engine."""

    def __init__(self) -> None:
        self.of_thread: dict[int, B] = {}
        self._here = threading.local()

    def current(self) -> B | None:
        """Return the block that this thread is in, None if there is none."""
        if not self.of_thread:
            return None
        block = self.of_thread.get(threading.get_ident())
        if block is not None and block.is_stranded:
            block.end()
            return None
        return block

    @holding
    def entered(self, block: B) -> Iterator[None]:
        """Make the calls of this thread join ``block`` until the end. A thread that ends earlier ends the block."""
        ending = Ending()
        try:
            self.begin(block, ending)
            yield
        finally:
            try:
                ending.close()
            finally:
                ending.close()

    def begin(self, block: B, ending: Ending) -> None:
        """Like ``entered``, until ``ending`` is closed."""
        under_way: list[Block] = [block]
        ending.add(under_way.clear)
        ending.add(partial(self.of_thread.pop, threading.get_ident(), None))
        self.enter(block)
        self._here.guard = _Guard(under_way)  # the only reference

    def leave(self, block: B) -> None:
        """Keep all further calls out of ``block``."""
        for thread, each in list(self.of_thread.items()):
            if each is block:
                self.of_thread.pop(thread, None)

    def enter(self, block: B) -> None:
        """Make the calls of this thread join ``block`` from now on."""
        self.of_thread[threading.get_ident()] = block

    def refuse_inside(self, path: str, what: str, advice: str = "call it outside of the block") -> None:
        """Raise ``TransactionError`` if this thread is in a block."""
        if self.current() is not None:
            raise TransactionError(path, f"{what} inside a transaction", advice)

    def leave_to_the_parent(self) -> list[B]:
        """Leave all blocks, in a forked child; return those that were under way."""
        blocks = list(self.of_thread.values())
        self.of_thread.clear()
        for block in blocks:
            block.is_of_parent = True
        return blocks
