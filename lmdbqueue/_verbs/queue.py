"""``Queue``: every verb of a queue, on any engine; users open a subclass.

Owns: arguments and results of the verbs. Law: arguments are checked and items encoded before a transaction begins; code
that accepts a ``queue.Queue`` accepts this one (``logging.handlers.QueueHandler`` and ``QueueListener`` do);
differences that follow from items outliving the process are stated at each verb. Must not know: how items are kept.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

from lmdbqueue._base.errors import DiskFullError, Empty, Full
from lmdbqueue._base.format import Retention
from lmdbqueue._base.values import NOTHING, Expired, ReaderStats, Start, Stats
from lmdbqueue._host.disk import translated
from lmdbqueue._verbs.encoding import payload_of
from lmdbqueue._verbs.hands import Hands
from lmdbqueue._verbs.head import Batch, Head, is_over, remaining
from lmdbqueue._verbs.lease import DeadLetters, Lease, delivered, forsake
from lmdbqueue._verbs.options import OPENING, RETAINED, VERBS, WORK, check
from lmdbqueue._verbs.writing import Writing, appended, of_priority

if TYPE_CHECKING:
    from lmdbqueue._verbs.engine import Engine
    from lmdbqueue._verbs.reader import Reader
    from lmdbqueue._verbs.state import StateMapping
    from lmdbqueue._verbs.worker import Hook, Job, Retry, Stop, Worked

T = TypeVar("T")

_SECOND: Final = 10**9  # ns


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
        """The function that converts bytes to an item."""
        return self._head.loads

    @loads.setter
    def loads(self, loads: Callable[[bytes], T]) -> None:
        self._head.loads = loads

    @property
    def maxsize(self) -> int:
        """Items in the queue above which pushes of this object raise ``Full``; 0: no limit."""
        return self._engine.maxsize

    @maxsize.setter
    def maxsize(self, items: int) -> None:
        check(OPENING, maxsize=items)
        self._engine.maxsize = items

    @property
    def max_attempts(self) -> int | None:
        """Leases of an item after which this object makes it a dead letter; None: no limit."""
        return self._engine.max_attempts

    @max_attempts.setter
    def max_attempts(self, times: int | None) -> None:
        check(OPENING, max_attempts=times)
        self._engine.max_attempts = times

    @property
    def expired(self) -> Expired:
        """What this object does with items that it finds expired: ``"drop"``, or ``"dead"`` for dead letters."""
        return "dead" if self._engine.buries_expired else "drop"

    @expired.setter
    def expired(self, what: Expired) -> None:
        check(OPENING, expired=what)
        self._engine.buries_expired = what == "dead"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""

    # --- the queue as a whole

    def count(self) -> int:
        """Return the number of waiting items, in constant time."""
        return self._engine.count()

    def stats(self) -> Stats:
        """Return the figures of the queue (``Stats``), in constant time unless a reader's lag must be counted."""
        return self._engine.stats()

    def sync(self) -> None:
        """Wait until the effects of all calls that have returned, in any process, are on disk.

        With ``durability="interval"`` it makes a checkpoint now; with ``"full"``, and on PostgreSQL, it returns at
        once. Call it before you report items to anything outside, which would otherwise hear of items that a power cut
        could undo.
        """
        self._engine.sync()

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """Make what this thread does in the block one atomic step."""

    @property
    @abstractmethod
    def state(self) -> StateMapping:
        """A persistent mapping of this queue."""

    @abstractmethod
    def flush(self, force: bool = False) -> int:
        """Return empty space to the file system.

        Args:
            force: Even if there is little.

        Returns:
            The number of bytes.
        """

    # --- the verbs of queue.Queue

    def put(self, item: T, block: bool = True, timeout: float | None = None, *, priority: int = 0) -> None:
        """Append exactly one item, even if it is a list; wait for room if the queue is full. Durable when this returns.

        Args:
            item: The item.
            block: Whether to wait for room.
            timeout: Seconds to wait at most; None: no limit.
            priority: As for ``push``.

        Raises:
            Full: There was no room for ``timeout`` seconds, or at once with ``block=False``.
            DiskFullError: At once in any case.
            ShutDown: ``shutdown()`` was called.
        """
        check(VERBS, block=block, timeout=timeout if block else None)  # ignored, as queue.Queue does
        head, payloads = self._head, [payload_of(self.dumps, item)]
        how = of_priority(priority)
        refusal: Full | None = None

        def attempt() -> object:
            nonlocal refusal
            head.refuse_push()
            try:
                return appended(head.engine, payloads, how)
            except DiskFullError:
                raise
            except Full as error:
                refusal = error
                return None

        if (head.wait(attempt, timeout) if block else attempt()) is None:
            assert refusal is not None  # the only reason for which attempt returns None
            raise refusal

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the first item; wait for one if the queue is empty. Durable when this returns.

        Args:
            block: Whether to wait for an item.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item.

        Raises:
            Empty: There was no item for ``timeout`` seconds, or at once with ``block=False``.
            ShutDown: The queue is empty after ``shutdown()``.
            DecodeError, CorruptItemError: As ``pop``; nothing was removed.
        """
        check(VERBS, block=block, timeout=timeout if block else None)  # ignored, as queue.Queue does
        taken = self._head.wait(self._reach, timeout) if block else self._reach()
        if taken is None:
            raise Empty(1, timeout if block else None)
        return taken[1][0]

    def _reach(self) -> tuple[list[Any], list[T]] | None:
        return self._hands.reach(lambda: self._head.if_enough(1, lambda: self._head.take(1, 1)))

    def put_nowait(self, item: T) -> None:
        """Append exactly one item, without waiting.

        Args:
            item: The item.

        Raises:
            Full: There is no room.
        """
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """Remove and return the first item; raise ``Empty`` if there is none."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Return the number of waiting items."""
        return self.count()

    def empty(self) -> bool:
        """Return whether the queue is empty. The answer can be outdated when this returns."""
        return self.count() == 0

    def full(self) -> bool:
        """Return whether ``maxsize`` is reached. The answer can be outdated when this returns."""
        owed = self._engine.owed()
        return 0 < self.maxsize <= owed

    def task_done(self) -> None:
        """Report that one item from a ``get`` of this object is processed.

        It counts the items that this object returned, not those that were put, which can come from other processes.

        Raises:
            ValueError: It was called more often than ``get`` returned.
        """
        self._engine.refuse_if_closed()
        self._hands.task_done()

    def join(self) -> None:
        """Wait until the queue is empty and ``task_done`` was called for each item of this object's ``get``.

        Items that other processes took and have not finished are not counted. After ``shutdown(immediate=True)`` it
        does not wait for the items left in the queue.
        """
        self._engine.watch()
        while True:
            self._head.wait(lambda: is_empty(self._engine) or None, None)
            taken = self._hands.wait_until_empty(self._engine.refuse_if_closed)
            # items may have stayed after all, and others may have been pushed and taken before this check
            if is_empty(self._engine) and self._hands.wait_until_empty(self._engine.refuse_if_closed) == taken:
                return

    def shutdown(self, immediate: bool = False) -> None:
        """Make ``put`` and ``push`` of this object raise ``ShutDown``, and ``get`` once the queue is empty.

        Waiting calls wake up and do the same. Unlike in ``queue.Queue``, the items stay on disk, and other objects of
        the same queue are not affected.

        Args:
            immediate: ``get`` raises at once, too.
        """
        engine = self._engine
        check(VERBS, immediate=immediate)
        engine.refuse_if_closed()
        engine.is_shut_down = True
        engine.is_drained = engine.is_drained or bool(immediate)
        engine.wake()

    def close(self) -> None:
        """Close this object; its waiting calls and all later ones raise ``ClosedError``.

        Its leased items return to the queue immediately. Durability does not depend on closing: nothing is kept in
        memory. Closing twice is harmless.
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
        """Reserve the first items for this consumer: nobody else gets them while the lease lasts.

        If the process dies, for whatever reason, its items are back in their places for the next consumer, without any
        timeout. Each item is delivered at least once, and to one living consumer at a time, as long as each finishes
        within its ``ttl``. ``len`` does not count leased items. Items that cannot be decoded become dead letters.

        Example:
            >>> with queue.lease(10, ttl=60) as lease:
            ...     upload(list(lease))  # the end of the block acknowledges the items

        Args:
            items: The number of items, at most.
            ttl: Seconds after which others can get the items; None: the lease lasts as long as this queue object.
            max_bytes: Bytes of payloads, at most; one item is leased in any case.
            linger: Seconds to wait for more items, once one is there, until ``items`` or ``max_bytes`` is reached.
            blocking: Whether to wait for at least one item.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The lease, durable. It is empty, and falsy, if there was no item.

        Raises:
            Empty: No item came within ``timeout`` seconds.
            DiskFullError: The disk is full, and the first item is larger than 16 KiB or many items are leased already.
                Otherwise one item can be leased on a full disk.
            ShutDown: It would wait after ``shutdown()``.
        """
        wait = {"linger": linger, "blocking": blocking, "timeout": timeout}
        check(VERBS, items=items, ttl=ttl, max_bytes=max_bytes, **wait)
        head, n = self._head, index(items)
        if not n:
            head.refuse_if_closed()
            return Lease(head.engine, [], NOTHING)
        deadline = None if timeout is None else time.monotonic() + timeout
        known = tuple(head.engine.claims)
        try:
            while True:
                if linger:
                    head.fill(Batch(n, max_bytes, linger), remaining(deadline) if blocking else 0.0)
                if blocking:
                    lease = partial(head.engine.lease, n, ttl, head.sort_out, max_bytes)
                    found = head.wait(partial(head.if_enough, 1, lease), 0 if linger else timeout)
                    if found is None and linger and not is_over(deadline):
                        continue  # another consumer was faster
                    if found is None:
                        raise Empty(1, timeout)  # noqa: TRY301  (what was leased meanwhile is given back)
                else:
                    found = head.engine.lease(n, ttl, head.sort_out, max_bytes)
                return delivered(Lease(head.engine, *(found or ([], NOTHING))))
        except BaseException:
            forsake(head.engine, known)
            raise

    @property
    def dead(self) -> DeadLetters[T]:
        """The dead letters: items that failed too often, were rejected, or cannot be decoded."""
        return DeadLetters(self._engine, self._head.decode)

    @overload
    def work(
        self,
        handler: Callable[[T], object] | Callable[[T, Job], object],
        *,
        items: Literal[1] = 1,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry | None = None,
        concurrency: int = 1,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked: ...

    @overload
    def work(
        self,
        handler: Callable[[list[T]], object] | Callable[[list[T], list[Job]], object],
        *,
        items: int,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry | None = None,
        concurrency: int = 1,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked: ...

    def work(
        self,
        handler: Callable[[Any], object] | Callable[[Any, Any], object],
        *,
        items: int = 1,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry | None = None,
        concurrency: int = 1,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked:
        """Lease items, call ``handler``, acknowledge; repeat until told to stop.

        If the handler raises an ``Exception``, its items return after the delay of ``retry``, or become dead letters.
        The logger ``lmdbqueue.work`` gets the traceback, and dead letters keep it. The items of a failed batch return
        one by one, so one bad item does not make its neighbours dead letters.

        Another thread extends the lease while the handler runs, so ``ttl`` only limits how long a process that hangs as
        a whole can hold items. Code in C that holds the GIL for longer than ``ttl`` stops that thread, too; then others
        may process the same items.

        It stops after ``shutdown()``, and at SIGTERM and SIGINT, which it then passes to the program's own handlers. It
        finishes the current items first. In any thread other than the main one, signals stop it only while ``work``
        also runs in the main thread.

        Example:
            >>> queue.work(send, retry=Retry(max_attempts=5))

        Args:
            handler: Gets one item, or a list if ``items`` > 1. With two parameters it also gets the ``Job`` (or a list
                of them): ``seq``, ``attempts``, ``headers``, ``pushed_at``.
            items: Items for each call, at most.
            max_bytes: Bytes of payloads for each call, at most; one item in any case.
            linger: Seconds to wait for a batch to fill.
            ttl: Seconds that a lease lasts without being extended.
            retry: When failed items are tried again; None: ``Retry()``, which survives an outage of an hour.
            concurrency: The number of threads that call the handler.
            stop: An event, or a function that returns whether to stop; checked before each lease and once a second.
            progress: Called after each lease with the counts so far.
            on_retry: Called with the ``Job`` and the error of each item that will be tried again.
            on_dead: Called with the ``Job`` and the error of each item that became a dead letter. Neither is called for
                an item that was replaced while its handler ran, or has expired.

        Returns:
            The numbers of items done, given back, turned into dead letters, and removed meanwhile.

        Raises:
            TypeError: The handler cannot be called with an item, or it or a hook is a coroutine function; nothing was
                leased.
        """
        from lmdbqueue._verbs import worker  # noqa: PLC0415  (only workers need it)

        hooks = {"stop": stop, "progress": progress, "on_retry": on_retry, "on_dead": on_dead}
        check(WORK, items=items, max_bytes=max_bytes, linger=linger, ttl=ttl, concurrency=concurrency, **hooks)
        retry = worker.checked_retry(worker.DEFAULT_RETRY if retry is None else retry, self.max_attempts)
        takes_job = worker.takes_job(handler, is_awaited=False)
        worker.refuse_coroutines(**hooks)
        batch, threads = Batch(max(1, index(items)), max_bytes, linger), index(concurrency)
        plan = worker.Plan(handler, takes_job, batch, ttl, retry, stop, progress, on_retry, on_dead)
        tally = worker.Tally(progress)
        self._engine.refuse_if_closed()
        if threads > 1:
            return worker.run_threads(self._head, plan, tally, threads)
        return worker.Loop(self._head, plan, tally).run()

    # --- named readers

    def reader(self, name: str, *, start: Start = "oldest") -> Reader[T]:
        """Return a named reader; create it, durably, if there is none of that name.

        Several processes can use the same reader: it is one position, which they share.

        While a queue has readers, an item leaves when all of them have passed it. ``pop``, ``delete``, ``clear`` and
        ``ack`` of the queue itself remove items for all readers, which count their losses in ``skipped``. A delayed
        item moves to the tail, with a new number, when it comes due; so does an item that a consumer gives back after
        all readers have passed its place.

        Args:
            name: The name of the reader.
            start: Where a new reader begins: ``"oldest"``, at the first item of the queue; ``"newest"``, at the next
                push; or at the sequence number of an item.

        Returns:
            The reader. After ``drop_reader`` all its methods raise ``GoneError``.

        Raises:
            OptionError: The queue has items with priorities, or is one of PostgreSQL with ``order="relaxed"``.
        """
        check(VERBS, name=name, start=start)
        self._engine.refuse_if_closed()
        with translated(self._engine.path, "opening"):  # a late import needs a descriptor
            from lmdbqueue._verbs.reader import Reader  # noqa: PLC0415  (most queues have no readers)

        self._engine.reader(name).create(start)
        return Reader(self, name)

    def readers(self) -> list[ReaderStats]:
        """Return the readers of this queue with name, position, lag, skipped items and the time of their last move."""
        return self._engine.readers()

    def drop_reader(self, name: str) -> None:
        """Remove a reader, and the items that only it had not passed; durable when this returns.

        Args:
            name: The name of the reader.

        Raises:
            KeyError: There is no such reader.
        """
        check(VERBS, name=name)
        if not self._engine.reader(name).drop():
            raise KeyError(name)

    def retain(
        self,
        items: int | None = None,
        *,
        bytes: int | None = None,  # noqa: A002  (the name that says it)
        seconds: float | None = None,
    ) -> None:
        """Keep the newest items, read or not, and drop older ones.

        Use it for replays (``seek``), and to limit what a slow reader can hold back: readers count dropped items that
        they had not passed in ``skipped``. The tightest limit applies. Called without a limit, it restores the default:
        items leave when all readers have passed them. In a queue without readers it makes a ring buffer, and
        ``stats().dropped`` counts the items dropped.

        This is a property of the queue, durable when this returns. From then on no caller sees more than the limits
        allow. Expired items leave before anything is counted; ``maxsize`` counts the items that then remain.

        Args:
            items: The number of items to keep.
            bytes: Bytes of payloads to keep, as ``dumps`` returned them, without headers; at least one item stays.
            seconds: The age up to which items stay, on the wall clock, since their push or the end of their delay.
                Items behind one that is not too old stay, too.

        Raises:
            OptionError: The queue has, or had, items with a priority: its first items are the most urgent.
        """
        check(RETAINED, items=items, bytes=bytes, seconds=seconds)
        limits = (items, bytes, seconds)
        age = None if seconds is None else int(seconds * _SECOND)
        self._engine.retain(None if limits == (None, None, None) else Retention(items, bytes, age))


def is_empty(engine: Engine) -> bool:
    """Return whether there is no item that a ``get`` could return, for ``join``."""
    return engine.is_drained or not engine.count()
