"""Pushes that a thread makes a moment later, for callers that should not wait, or cannot push at that point.

Owns: the pending items, and the thread. Law: added items are pushed, or their failure is reported, before ``close`` and
the program's end, though not before a kill; no thread waits for itself, and the program's end waits ten seconds at most
for a directory that another process holds. Must not know: what the items are.

A push is impossible in a transaction of another directory, and during another call of the same thread (in a signal
handler, or in ``__del__``). Both can also interrupt any step here. So the lock is reentrant, no thread waits while
holding it (``_host.threads``), and pending items are swapped out, never copied and then cleared.
"""

import sys
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from lmdbqueue._base.errors import ClosedError
from lmdbqueue._host import departures
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import Resting, is_mine
from lmdbqueue._local.queue import PersistentQueue, local_engine_of

T = TypeVar("T")

_all: Final["weakref.WeakSet[Later[Any]]"] = weakref.WeakSet()


class Later(Generic[T]):
    """The thread of a queue, which starts with the first item.

    Args:
        queue: The queue, closed by ``close``.
        push: Pushes some items; called by the thread, or by ``flush`` and ``close`` if no thread can be started.
        failed: Called with the last item of a push that raised, in an ``except`` block.
        linger: Seconds for which items are collected before a push.
    """

    def __init__(
        self,
        queue: PersistentQueue[Any],
        push: Callable[[Sequence[T]], object],
        failed: Callable[[T], object],
        linger: float = 0.0,
    ) -> None:
        self._queue = queue
        self._push = push
        self._failed = failed
        self._linger = linger
        self._is_closed = False
        local_engine_of(queue).stay_open_at_exit()  # logging.shutdown and the like run late, and close it
        self.begin_anew()
        _all.add(self)

    def begin_anew(self) -> None:
        """Start without thread and items: initially, and in a forked child, since both belong to its parent."""
        self._here = threading.local()
        self._guard = threading.RLock()  # guards the fields below
        self._pending: deque[T] = deque()
        self._flying: Sequence[T] = ()  # items being pushed
        self._done = 0  # the number of items pushed so far
        self._is_hurried = False  # stop lingering
        self._is_working = False  # whether there is a thread
        self._wanted = Resting()  # where the thread waits for work
        self._come = Resting()  # where flush waits for the thread

    def is_here(self) -> bool:
        """Return whether the caller is the pushing thread."""
        return getattr(self._here, "is_worker", False)

    def add(self, item: T) -> None:
        """Queue an item to be pushed; after ``close`` raise ``ClosedError``."""
        with self._guard:
            if self._is_closed:
                raise ClosedError(local_engine_of(self._queue).path)
            self._pending.append(item)
            if not self._linger:
                self._is_hurried = True
            if self._is_working:
                if self._is_hurried or len(self._pending) == 1:
                    self._tell()
                return
            self._is_working = True
            try:
                start_new_thread(self._run, ())
            except RuntimeError:  # the program ends, or there are too many threads: flush and close push
                self._is_working = False
                return
        if (util := sys.modules.get("multiprocessing.util")) is not None:  # its children end without atexit
            util.Finalize(None, _flush, args=(weakref.ref(self),), exitpriority=0)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all items added before are pushed, or have failed; return whether they are.

        It does not wait where it would be for itself.

        Args:
            timeout: Seconds to wait at most; None: as long as it takes, or as the program's end may.
        """
        is_amid = self._is_amid()
        timeout = departures.PATIENCE if timeout is None and departures.is_ending() else timeout
        with self._guard:
            upto = self._done + len(self._flying) + len(self._pending)
            self._is_hurried = True
            self._tell()
        if self._done < upto and not is_amid:
            self._come.wait_for(self._guard, lambda: self._done >= upto or not self._is_working, timeout)
            if self._done < upto and (timeout is None or not self._is_working):
                self._push_some()
        return self._done >= upto

    def close(self, timeout: float | None = None) -> None:
        """Push pending items and close the queue; where this would wait for itself, the thread does both.

        Args:
            timeout: Seconds to wait at most, after which a thread goes on; None: as long as it takes, or as the
                program's end may.
        """
        is_amid = self._is_amid()
        timeout = departures.PATIENCE if timeout is None and departures.is_ending() else timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._guard:
            self._is_closed = True
            self._tell()
        if is_amid and self._is_working:
            return
        self._come.wait_for(self._guard, lambda: not self._is_working, timeout)
        if self._is_working:
            self._report_late(timeout)
            return
        self._push_some()
        if deadline is None:
            self._queue.close()
        else:
            departures.defer(self._queue.close)
            departures.wait(max(0.0, deadline - time.monotonic()))

    def _report_late(self, timeout: float | None) -> None:
        """Report items that are not pushed yet as failed, since the program may end before they are."""
        with self._guard:
            late = [*self._flying, *self._pending][-1:]
        for item in late:
            try:
                message = f"the queue could not be written to for {timeout:.1f} s"
                raise TimeoutError(message)  # noqa: TRY301  (``failed`` finds it as the current exception)
            except TimeoutError:
                with suppress(Exception):
                    self._failed(item)

    def _is_amid(self) -> bool:
        """Return whether the pushing thread waits for this one, or is this one."""
        if self.is_here() or is_mine(self._guard):
            return True
        try:
            return local_engine_of(self._queue).environment.is_entered()
        except ClosedError:
            return False

    def _tell(self) -> None:
        with suppress(IndexError):  # a signal handler was faster
            self._wanted.tell()

    def _run(self) -> None:
        self._here.is_worker = True
        while True:
            self._wanted.wait_for(self._guard, lambda: bool(self._pending or self._is_closed))
            if self._linger:
                self._wanted.wait_for(self._guard, lambda: self._is_hurried or self._is_closed, self._linger)
            self._push_some()
            with self._guard:
                is_over = self._is_closed and not self._pending
            if is_over:  # nothing is added any more
                self._queue.close()  # without the guard: it waits for calls under way, in which records are logged
                with self._guard:
                    self._is_working = False
                    self._come.tell()
                return

    def _push_some(self) -> None:
        with self._guard:
            some, self._pending = self._pending, deque()
            self._flying = [*self._flying, *some]
            self._is_hurried = False
        if not some:
            return
        try:
            self._push(some)
        except Exception:  # these items are lost, and the last one is reported
            with suppress(Exception):
                self._failed(some[-1])
        with self._guard:
            self._flying = self._flying[len(some) :]
            self._done += len(some)
            self._come.tell()


def _flush(later: "weakref.ref[Later[Any]]") -> None:
    if (found := later()) is not None:
        found.flush(departures.PATIENCE)


def _begin_anew() -> None:
    for each in list(_all):
        each.begin_anew()


at_fork("pushes to come", in_child=_begin_anew)
