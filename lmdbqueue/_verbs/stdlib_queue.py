"""The face of the standard library's ``queue.Queue``, as Python 3.13 has it.

Owns: ``put`` and ``get``, their kin, ``task_done``, ``join``, ``shutdown``. Law: whoever takes a
``queue.Queue`` takes this one (``logging.handlers.QueueHandler`` and ``QueueListener`` do). Must not
know: how items are kept. What has to differ, because items outlive the process, is said at each verb.
"""

import os
import threading
import weakref
from typing import Any, TypeVar

from lmdbqueue._errors import DiskFullError, Empty, Full
from lmdbqueue._host.threads import Resting
from lmdbqueue._verbs.writing import Verbs

T = TypeVar("T")

_queues: "weakref.WeakSet[StandardQueue[Any]]" = weakref.WeakSet()


class StandardQueue(Verbs[T]):
    """A persistent queue that can stand where a ``queue.Queue`` does."""

    def __init__(self) -> None:
        _queues.add(self)
        self._begin_with_empty_hands()

    def _begin_with_empty_hands(self) -> None:
        """Begin anew: at first, and in a forked child, which has nothing of what the parent took."""
        self._hands = threading.Lock()
        self._settled = Resting()  # in join; told when one of the two may have become empty, and by close
        self._in_hand = 0  # items that get() gave out and task_done() has not answered
        self._reaching: dict[int, None] = {}  # the threads whose get() may be taking an item right now

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Append exactly one item, a list too; wait for room if the queue is full.

        Raises ``Full`` after ``timeout`` seconds, or at once with ``block=False``; ``DiskFullError``
        at once in any case; ``ShutDown`` after ``shutdown()``.
        """
        payloads = [self._encoded(item)]
        refusal: Full | None = None

        def attempt() -> range | None:
            nonlocal refusal
            self._refuse_after_shutdown()
            try:
                return self._append(payloads)
            except DiskFullError:
                raise
            except Full as error:
                refusal = error
                return None

        if (self._await(attempt, timeout) if block else attempt()) is None:
            assert refusal is not None  # attempt gives None for no other reason
            raise refusal

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the first item; wait for one if there is none.

        Raises ``Empty`` after ``timeout`` seconds, or at once with ``block=False``; ``ShutDown``
        after ``shutdown()`` when the queue is empty; what ``pop`` raises for damaged items.
        """
        found = self._await(self._reach, timeout) if block else self._reach()
        if found is None:
            raise Empty(1, timeout if block else None)
        return found[0]

    def _reach(self) -> list[T] | None:
        """Take an item into the hand, seen by ``join`` at every moment: in the queue, reached for, in hand."""
        thread = threading.get_ident()
        found = None
        try:
            self._reaching[thread] = None
            found = self._if_enough(1, self._take)
        finally:
            with self._hands:
                self._in_hand += found is not None
                self._reaching.pop(thread, None)
                if not self._reaching:
                    self._settled.tell()
        return found

    def put_nowait(self, item: T) -> None:
        """Append exactly one item; raise ``Full`` if there is no room."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """Remove and return the first item; raise ``Empty`` if there is none."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Return how many items are in the queue."""
        return self.count()

    def empty(self) -> bool:
        """Tell whether the queue is empty; it may not be so any more when this returns."""
        return self.count() == 0

    def full(self) -> bool:
        """Tell whether ``maxsize`` items are in the queue; it may not be so any more when this returns."""
        waiting = self.count()
        return 0 < self.maxsize <= waiting

    def task_done(self) -> None:
        """Say that one item from ``get`` of this object is dealt with.

        It counts what this object gave out, not what was put: items may come from other processes
        and from yesterday. Raises ``ValueError`` when called more often than ``get`` returned.
        """
        self._refuse_if_closed()
        with self._hands:
            if self._in_hand <= 0:
                message = "task_done() called too many times"
                raise ValueError(message)
            self._in_hand -= 1
            if not self._in_hand:
                self._settled.tell()

    def join(self) -> None:
        """Wait until the queue is empty and ``task_done`` has answered all that ``get`` of this object gave out.

        What other processes took and have not finished is not seen. After ``shutdown(immediate=True)``
        the items left in the queue are not waited for.
        """

        def is_settled() -> bool:
            self._refuse_if_closed()
            return not self._reaching and not self._in_hand

        self._watch()
        while True:
            self._await(lambda: self._is_empty() or None, None)
            self._settled.wait_for(self._hands, is_settled)
            if self._is_empty():  # what was reached for may have stayed, or more may have come
                return

    def _watch(self) -> None:
        """Let whoever removes items wake those who wait for that, from now on; most engines do so in any case."""

    def _is_empty(self) -> bool:
        return self._is_drained or not self.count()

    def close(self) -> None:
        """Close this object: a ``join`` that waits ends."""
        with self._hands:
            self._settled.tell()

    def shutdown(self, immediate: bool = False) -> None:
        """Make ``put`` and ``push`` of this object raise ``ShutDown``, and ``get`` once the queue is empty.

        With ``immediate`` ``get`` raises at once. Waiting verbs wake up and do the same. Other than
        in ``queue.Queue`` the items stay, for whoever opens the queue next, and other objects on the
        same queue go on as before.
        """
        self._refuse_if_closed()
        self._is_shut_down = True
        self._is_drained = self._is_drained or immediate
        self._wake()


def _begin_anew_in_child() -> None:
    for queue in list(_queues):
        queue._begin_with_empty_hands()  # noqa: SLF001


os.register_at_fork(after_in_child=_begin_anew_in_child)
