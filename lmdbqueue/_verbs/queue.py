"""``Queue``: every verb of a queue, whatever engine keeps its items; what users open is a subclass.

Owns: what the verbs take and give. Law: arguments are checked and items encoded before a transaction begins; whoever
takes a ``queue.Queue`` takes this one (``logging.handlers.QueueHandler`` and ``QueueListener`` do), and what has to
differ, since items outlive the process, is said at each verb. Must not know: how items are kept.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from lmdbqueue._errors import DiskFullError, Empty, Full
from lmdbqueue._format import Retention, check_name
from lmdbqueue._values import NOTHING, ReaderStats, Start, Stats
from lmdbqueue._verbs.encoding import checked_limits, checked_ttl, payload_of
from lmdbqueue._verbs.engine import Engine
from lmdbqueue._verbs.hands import Hands
from lmdbqueue._verbs.head import Head, checked_batch, is_over, remaining
from lmdbqueue._verbs.lease import DeadLetters, Lease
from lmdbqueue._verbs.reader import Reader, checked_start
from lmdbqueue._verbs.reading import checked_count
from lmdbqueue._verbs.writing import Writing, append_of

if TYPE_CHECKING:
    from lmdbqueue._verbs.worker import Retry, Stop, Worked

T = TypeVar("T")

_SECOND: Final = 10**9  # ns
_NUMBERS: Final = 1 << 62  # beyond all of items


class Queue(Writing[T], ABC):
    """A persistent FIFO queue: items leave in the order in which they were pushed.

    Safe to use from many threads and processes at once. Every verb is one atomic step, durable when
    it returns.
    """

    def __init__(self, engine: Engine, dumps: Callable[[T], bytes], loads: Callable[[bytes], T]) -> None:
        self._engine = engine
        self._head = Head(engine, loads)
        self._hands = Hands()
        self.dumps = dumps

    # --- what it was opened with

    @property
    def name(self) -> str:
        """The name of the queue."""
        return self._engine.name

    @property
    def loads(self) -> Callable[[bytes], T]:
        """What turns bytes into an item."""
        return self._head.loads

    @loads.setter
    def loads(self, loads: Callable[[bytes], T]) -> None:
        self._head.loads = loads

    @property
    def maxsize(self) -> int:
        """How many items may wait for a push of this object to be taken; 0: no limit."""
        return self._engine.maxsize

    @maxsize.setter
    def maxsize(self, items: int) -> None:
        self._engine.maxsize = items

    @property
    def max_attempts(self) -> int | None:
        """How often an item is leased before it goes to ``dead``, when this object gives it back; None: for ever."""
        return self._engine.max_attempts

    @max_attempts.setter
    def max_attempts(self, times: int | None) -> None:
        self._engine.max_attempts = times

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""

    # --- the whole

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        return self._engine.count()

    def stats(self) -> Stats:
        """Return how much of everything there is in the queue, at a cost that does not depend on it."""
        return self._engine.stats()

    @abstractmethod
    def flush(self, force: bool = False) -> int:
        """Give empty space back; return how many bytes."""

    # --- the verbs of queue.Queue

    def put(self, item: T, block: bool = True, timeout: float | None = None, *, priority: int = 0) -> None:
        """Append exactly one item, a list too; wait for room if the queue is full.

        Args:
            item: The item.
            block: Wait for room.
            timeout: Seconds to wait at most; None waits for ever.
            priority: As of ``push``.

        Raises:
            Full: There was no room for ``timeout`` seconds, or at once with ``block=False``.
            DiskFullError: At once in any case.
            ShutDown: ``shutdown()`` was called.
        """
        head, payloads = self._head, [payload_of(self.dumps, item)]
        append = append_of(head.engine, priority)
        refusal: Full | None = None

        def attempt() -> object:
            nonlocal refusal
            head.refuse_push()
            try:
                return append(payloads)
            except DiskFullError:
                raise
            except Full as error:
                refusal = error
                return None

        if (head.wait(attempt, timeout) if block else attempt()) is None:
            assert refusal is not None  # attempt gives None for no other reason
            raise refusal

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the first item; wait for one if there is none.

        Raises ``Empty`` after ``timeout`` seconds, or at once with ``block=False``; ``ShutDown``
        after ``shutdown()`` when the queue is empty; what ``pop`` raises for damaged items.
        """
        taken = self._head.wait(self._reach, timeout) if block else self._reach()
        if taken is None:
            raise Empty(1, timeout if block else None)
        return taken[1][0]

    def _reach(self) -> tuple[list[Any], list[T]] | None:
        return self._hands.reach(lambda: self._head.if_enough(1, lambda: self._head.take(1, 1)))

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
        """Return whether the queue is empty; it may not be so any more when this returns."""
        return self.count() == 0

    def full(self) -> bool:
        """Return whether ``maxsize`` items are in the queue; it may not be so any more when this returns."""
        waiting = self.count()
        return 0 < self.maxsize <= waiting

    def task_done(self) -> None:
        """Say that one item from ``get`` of this object is dealt with.

        It counts what this object gave out, not what was put: items may come from other processes
        and from yesterday. Raises ``ValueError`` when called more often than ``get`` returned.
        """
        self._engine.refuse_if_closed()
        self._hands.task_done()

    def join(self) -> None:
        """Wait until the queue is empty and ``task_done`` has answered all that ``get`` of this object gave out.

        What other processes took and have not finished is not seen. After ``shutdown(immediate=True)``
        the items left in the queue are not waited for.
        """
        self._engine.watch()
        while True:
            self._head.wait(lambda: is_empty(self._engine) or None, None)
            self._hands.wait_until_empty(self._engine.refuse_if_closed)
            if is_empty(self._engine):  # what was reached for may have stayed, or more may have come
                return

    def shutdown(self, immediate: bool = False) -> None:
        """Make ``put`` and ``push`` of this object raise ``ShutDown``, and ``get`` once the queue is empty.

        With ``immediate`` ``get`` raises at once. Waiting verbs wake up and do the same. Other than
        in ``queue.Queue`` the items stay, for whoever opens the queue next, and other objects on the
        same queue go on as before.
        """
        engine = self._engine
        engine.refuse_if_closed()
        engine.is_shut_down = True
        engine.is_drained = engine.is_drained or immediate
        engine.wake()

    def close(self) -> None:
        """Close this object; waiting verbs of it raise ``ClosedError``, and so does every later call.

        What it holds in leases is given back at once. Closing is not needed for durability: there is nothing in
        memory. Doing it twice is harmless.
        """
        self._engine.close()
        self._hands.tell()

    # --- consumers that can die

    def lease(
        self,
        items: int = 1,
        *,
        ttl: float | None = None,
        max_bytes: int | None = None,
        linger: float = 0.0,
        blocking: bool = False,
        timeout: float | None = None,
    ) -> Lease[T]:
        """Take the first items into a lease: nobody else gets them while it holds.

        When the process dies, however that comes, what it held is in its places again for the next consumer to look,
        without any time-out. So each item is delivered at least once, and to one living consumer at a time, as long
        as that is done within the ttl. ``len`` counts leased items no more. What cannot be decoded goes to ``dead``.

        Args:
            items: How many at most.
            ttl: Seconds for which the lease holds; None: for as long as this queue object lives.
            max_bytes: How many bytes of payloads at most; one item is leased in any case.
            linger: Seconds for which an item that is there waits for more, until ``items`` or ``max_bytes`` are full.
            blocking: Wait for at least one item.
            timeout: Seconds to wait for it at most; None waits for ever.

        Returns:
            The lease, durable. An empty one, which is falsy, says that nothing was there.

        Raises:
            Empty: ``timeout`` is over.
            DiskFullError: The disk is full, and the first item has over 16 KiB, or many are leased; else a full disk
                gives one item.
            ShutDown: Waiting is of no use after ``shutdown()``.
        """
        head, n = self._head, checked_count(items)
        batch = checked_batch(n, max_bytes, linger) if linger or max_bytes is not None else None
        checked_ttl(ttl)
        if not n:
            head.refuse_if_closed()
            return Lease(head.engine, [], NOTHING)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if batch is not None and linger:
                head.fill(batch, remaining(deadline) if blocking else 0.0)
            if blocking:
                lease = partial(head.engine.lease, n, ttl, head.sort_out, max_bytes)
                found = head.wait(partial(head.if_enough, 1, lease), 0 if linger else timeout)
                if found is None and linger and not is_over(deadline):
                    continue  # another was faster
                if found is None:
                    raise Empty(1, timeout)
            else:
                found = head.engine.lease(n, ttl, head.sort_out, max_bytes)
            return Lease(head.engine, *(found or ([], NOTHING)))

    @property
    def dead(self) -> DeadLetters[T]:
        """The items that were leased ``max_attempts`` times in vain, or cannot be decoded."""
        return DeadLetters(self._engine, self._head.decode)

    def work(
        self,
        handler: Callable[[Any], object],
        *,
        items: int = 1,
        ttl: float = 60.0,
        retry: "Retry | None" = None,
        stop: "Stop | None" = None,
        progress: "Callable[[Worked], object] | None" = None,
    ) -> "Worked":
        """Lease, call ``handler``, acknowledge, again and again; return what was done when it is told to stop.

        ``handler`` gets one item, or with ``items`` > 1 a list of at most so many; what it raises (an
        ``Exception``) gives them back by ``retry`` (None: ``Retry()``): after its delay, or to ``dead`` after its
        ``max_attempts``. While it runs the lease is extended, so ``ttl`` is only what a process that hangs as a whole
        can hold items for. A handler that was too slow all the same may have its items done by others, too.

        It stops at SIGTERM and SIGINT, if it is called in the main thread; when ``stop`` (an event, or a
        function) is set, which is looked at before each lease and once a second; and after ``shutdown()``. What
        is under way is finished before. ``progress`` is called after each lease.
        """
        from lmdbqueue._verbs.worker import DEFAULT_RETRY, Loop  # noqa: PLC0415  (for who works, not for who imports)

        n = max(1, checked_count(items))
        retry = retry or DEFAULT_RETRY
        return Loop(self._head, handler, items=n, ttl=ttl, retry=retry, stop=stop, progress=progress).run()

    # --- named readers

    def reader(self, name: str, *, start: Start = "oldest") -> Reader[T]:
        """Return the reader ``name``, which is made, durably, if it is not there.

        ``start``, of a new one: ``"oldest"`` for all that is in the queue, ``"newest"`` for what is pushed from now on,
        or the number of an item. Many processes may have the same reader: it is one position, which they share.

        While a queue has readers, what all of them have passed is removed by itself, in the transaction of the last
        one; ``pop``, ``delete``, ``clear`` and an ``ack`` of the queue itself remove for all readers, which count what
        they lose (``skipped``). An item with a delay gets a new number when it comes due, at the tail. Once the reader
        was dropped every verb of it raises ``GoneError``.
        """
        self._engine.refuse_if_closed()
        self._engine.reader_create(check_name(name), checked_start(start))
        return Reader(self, name)

    def readers(self) -> list[ReaderStats]:
        """Return the readers of this queue: name, position, lag, skipped, and when each moved last."""
        return self._engine.reader_stats(None)

    def drop_reader(self, name: str) -> None:
        """Remove a reader for good, and what only it had not passed. Raises ``KeyError`` if there is none."""
        if not self._engine.reader_drop(name):
            raise KeyError(name)

    def retain(
        self,
        items: int | None = None,
        *,
        bytes: int | None = None,  # noqa: A002  (the name that says it)
        seconds: float | None = None,
    ) -> None:
        """Keep the newest items whoever has passed them, and nothing beyond: at most so many, or so much, or so old.

        For a replay (``seek``), and to bound what a slow reader can hold back: what is beyond leaves, read or not, and
        who had not passed it counts it as ``skipped``. With several limits the tightest holds; without any it is as
        it was before: what all readers have passed leaves, and nothing else.

        It is a property of the queue, durable when this returns, and is kept when items are pushed and readers
        move. ``bytes`` are those of the items as ``dumps`` returned them; at least one item stays. ``seconds`` are
        counted on the wall clock from the push, or from when an item with a delay was due; what stands behind an
        item that is not too old yet stays, too.
        """
        limits = (items, bytes, seconds)
        checked_limits(*limits)
        age = None if seconds is None else int(seconds * _SECOND)
        self._engine.retain(None if limits == (None, None, None) else Retention(items, bytes, age))


def is_empty(engine: Engine) -> bool:
    """Return whether nothing waits that anybody could get, for ``join``."""
    return engine.is_drained or not engine.count()
