"""The items that ``get()`` has returned, ``task_done()`` settles and ``join()`` waits for.

Owns: how many items are in hand, and which threads may be taking one right now. Law: at every moment ``join`` sees an
item somewhere: in the queue, reached for, or in hand. Must not know: the queue.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import Resting

R = TypeVar("R")

_all: weakref.WeakSet[Hands] = weakref.WeakSet()


class Hands:
    """The hands of one queue object."""

    def __init__(self) -> None:
        _all.add(self)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start with empty hands: initially, and in a forked child, which holds none of the parent's items."""
        self.lock = threading.RLock()  # reentrant: a signal handler may interrupt it, and close the queue
        self.settled = Resting()  # join waits on it; woken when queue or hands may have become empty, and by close
        self._in_hand = 0  # items that get() has returned and task_done() has not settled
        self._taken = 0  # items that get() has ever returned
        self._reaching: dict[int, None] = {}  # the threads whose get() may be taking an item right now

    def reach(self, take: Callable[[], R | None]) -> R | None:
        """Take an item into the hand; return None if ``take`` does."""
        thread = threading.get_ident()
        is_nested = thread in self._reaching  # in a signal handler that interrupted another call of this thread
        found = None
        try:
            self._reaching[thread] = None
            found = take()
        finally:
            with self.lock:
                self._in_hand += found is not None
                self._taken += found is not None
                if not is_nested:
                    self._reaching.pop(thread, None)
                if not self._reaching:
                    self.settled.tell()
        return found

    def task_done(self) -> None:
        """Settle one item. Raises ``ValueError`` if none is in hand."""
        with self.lock:
            if self._in_hand <= 0:
                message = "task_done() called too many times"
                raise ValueError(message)
            self._in_hand -= 1
            if not self._in_hand:
                self.settled.tell()

    def wait_until_empty(self, refuse: Callable[[], None]) -> int:
        """Wait until nothing is in hand or reached for; return how many items were ever taken.

        If two waits return the same number, nothing was in hand in between. ``refuse`` raises to end the wait.
        """
        taken = 0

        def is_settled() -> bool:
            nonlocal taken
            refuse()
            taken = self._taken
            return not self._reaching and not self._in_hand

        self.settled.wait_for(self.lock, is_settled)
        return taken

    def tell(self) -> None:
        """Wake the waiters."""
        with self.lock:
            self.settled.tell()


def _begin_anew_in_child() -> None:
    for hands in list(_all):
        hands.begin_anew()


at_fork("hands", in_child=_begin_anew_in_child)
