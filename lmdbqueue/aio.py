"""``AsyncPersistentQueue``: the verbs of ``PersistentQueue``, awaited; ``AsyncQueue``: what they are on every engine.

Owns: arguments and results of the asynchronous verbs, time limits, what cancelling means to the caller.
Law: a verb means what its namesake without ``await`` means. Must not know: threads, commits.
"""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

from lmdbqueue._async.courier import Courier
from lmdbqueue._async.jobs import Ack, Call, Claim, Claimed, Job, Push, Take, Wanted
from lmdbqueue._async.leases import AsyncDeadLetters, AsyncLease, AsyncLoop, Opening, run_tasks
from lmdbqueue._async.reader import AsyncReader
from lmdbqueue._errors import ClosedError, CorruptItemError, DecodeError, Empty
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._values import Number, ReaderStats, Start
from lmdbqueue._verbs.encoding import Key, checked_ttl, how_to_push, payload_of, payloads_of
from lmdbqueue._verbs.head import Batch, checked_batch, is_over, remaining
from lmdbqueue._verbs.lease import Lease
from lmdbqueue._verbs.queue import Queue, is_empty
from lmdbqueue._verbs.reading import checked_count, checked_many, head_of, shaped
from lmdbqueue._verbs.worker import DEFAULT_RETRY, Hook, Plan, Retry, Stop, Tally, Worked, takes_job
from lmdbqueue._verbs.worker import Job as WorkerJob
from lmdbqueue._verbs.writing import OnError, append_of, checked_on_error, decoded, push_apart

__all__ = ["AsyncDeadLetters", "AsyncLease", "AsyncPersistentQueue", "AsyncReader", "AsyncState", "NotOpenError"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")
R = TypeVar("R")


class AsyncState:
    """The state of a queue, read with ``await``; ``transact`` changes it."""

    def __init__(self, queue: Queue[Any], call: Callable[..., Awaitable[Any]]) -> None:
        self._queue = queue
        self._call = call

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key.

        Args:
            key: The key.
            default: The result if there is no such key.
        """
        return await self._call(lambda: self._queue.state.get(key, default))

    async def items(self) -> dict[str, Any]:
        """Return all keys and values, as of one moment."""

        def items() -> dict[str, Any]:
            with self._queue.transaction():
                return dict(self._queue.state)

        found: dict[str, Any] = await self._call(items)
        return found


class NotOpenError(ClosedError):
    """The object was created with the name of a queue, and not opened yet."""

    def __str__(self) -> str:
        """Say how it is opened."""
        return f"this {self.path} is not open yet: use it in 'async with', or await {self.path}.open(...)"


_AGAIN: Final = 0.25  # seconds between two looks at a call whose time is over, and which was not answered
_OPENED = ("queue", "_head", "_engine", "_courier", "_moving", "_loop", "_is_closed", "_settled", "_in_hand")


class AsyncQueue(Generic[T]):
    """A queue for one event loop, on any engine: each verb is a coroutine, and none blocks the loop.

    Calls at the same moment share commits. Any number of coroutines can wait; other processes and threads, with or
    without a loop, can use the same queue. An object belongs to the loop in which it was created: each loop, and each
    forked child, opens its own.

    Cancelling (also by ``asyncio.timeout``): a ``push`` or ``put`` is stored completely or not at all. A cancelled
    ``get``, ``pop`` or ``lease`` takes nothing: items that it had removed return to their places under their old
    numbers. A cancelled reader stays where it was.
    """

    queue: Queue[T]

    def __init__(self, queue: Queue[T] | Callable[[], Queue[T]]) -> None:
        """Use ``queue``, which belongs to this object from now on, or what opens it, with ``async with``."""
        self._open: Callable[[], Queue[T]] | None = None
        if isinstance(queue, Queue):
            self._begin_with(queue)
        else:
            self._open = queue

    def __getattr__(self, name: str) -> Any:
        """Say of an object that was not opened yet that it is not."""
        if name in _OPENED and self.__dict__.get("_open") is not None:
            raise NotOpenError(type(self).__name__)
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(message)

    def _begin_with(self, queue: Queue[T]) -> None:
        self.queue = queue
        self._head = head_of(queue)
        self._engine = self._head.engine
        self._in_hand = 0  # items that get() gave out and task_done() has not answered
        self._settled = asyncio.Event()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._courier = Courier(queue, self._loop)
        self._moving = asyncio.Lock()  # readers

    @classmethod
    def _opened_by(cls, open_: Callable[[], Queue[T]]) -> Opening[Self]:
        async def opened() -> Self:
            return cls(await asyncio.to_thread(open_))

        return Opening(opened())

    async def __aenter__(self) -> Self:
        """Open the queue, unless it is open, and return this object."""
        if self._open is not None:
            queue = await asyncio.to_thread(self._open)
            self._open = None
            self._begin_with(queue)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    def __repr__(self) -> str:
        """Name the queue."""
        on = "not open" if self._open is not None else f"on {self.queue!r}"
        return f"<{type(self).__name__} {on}>"

    # --- the verbs

    @overload
    async def push(  # type: ignore[overload-overlap]  # a list is many items, unless an item is a list
        self,
        items: list[T],
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> range: ...

    @overload
    async def push(  # type: ignore[overload-overlap]
        self,
        items: list[T],
        *,
        delay: float = 0.0,
        unique: Sequence[Key | None],
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> list[Number]: ...

    @overload
    async def push(
        self,
        items: T,
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> int: ...

    @overload
    async def push(
        self,
        items: T,
        *,
        delay: float = 0.0,
        unique: Key,
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Number: ...

    async def push(
        self,
        items: T | list[T],
        *,
        delay: float = 0.0,
        unique: Key | Sequence[Key | None] | None = None,
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Any:
        """Append an item, or each item of a list, as one atomic step; durable when it returns.

        It works like ``PersistentQueue.push``. Items are encoded before other tasks run.

        Args:
            items: The item, or a list of items.
            delay: Seconds until the items can be taken.
            unique: A key of the item; for a list, a key for each item, or None.
            replace: The new item replaces a waiting or delayed one with its key.
            expires: Seconds after which the items are no longer delivered.
            headers: Texts stored with each item.
            priority: -128 to 127. Lower leaves sooner.

        Returns:
            The sequence number of the item, or the ``range`` of numbers for a list; with ``unique`` numbers with
            ``is_stored``.

        Raises:
            Full, TypeError, OptionError, ShutDown: As ``PersistentQueue.push``; nothing was stored.
        """
        self._head.refuse_push()
        dumps = self.queue.dumps
        if delay or unique is not None or headers or priority or expires is not None or replace:
            how = partial(how_to_push, delay=delay, replace=replace, expires=expires, headers=headers)
            return await self._call(push_apart, self._engine, dumps, items, unique, partial(how, priority=priority))
        if not isinstance(items, list):
            return (await self._pushed([payload_of(dumps, items)])).start
        return await self._pushed(payloads_of(dumps, items)) if items else range(0)

    @overload
    async def push_many(
        self,
        items: Iterable[T],
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> range: ...

    @overload
    async def push_many(
        self,
        items: Iterable[T],
        *,
        delay: float = 0.0,
        unique: Sequence[Key | None],
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> list[Number]: ...

    async def push_many(self, items: Iterable[T], **options: Any) -> Any:
        """Append each item of an iterable, all or none, as one atomic step; durable when it returns.

        Args:
            items: Any iterable; it is read to its end first.
            **options: As for ``push``; ``unique`` is a sequence with a key, or None, for each item.

        Returns:
            The ``range`` of their sequence numbers; with ``unique`` a list of numbers.
        """
        return await self.push(list(items), **options)

    def _pushed(self, payloads: list[bytes]) -> "asyncio.Future[range]":
        push = Push(self._loop.create_future(), payloads)
        self._courier.carry(push)
        return push.future

    @overload
    async def peek(  # type: ignore[overload-overlap]  # there is no type for "every int but 1"
        self,
        items: Literal[1] = 1,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T | None: ...

    @overload
    async def peek(
        self,
        items: int,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[T]: ...

    async def peek(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Return the first items and leave them in the queue.

        Args:
            items: The number of items, at most. 1 returns the item itself, any other number a list.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item, or None if the queue is empty; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.peek``.
        """
        n = checked_count(items)
        least = n if blocking else 1
        return shaped(n, await self.peek_many(n, at_least=least, blocking=blocking, timeout=timeout))

    @overload
    async def pop(  # type: ignore[overload-overlap]  # as above
        self,
        items: Literal[1] = 1,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T | None: ...

    @overload
    async def pop(
        self,
        items: int,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[T]: ...

    async def pop(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Remove and return the first items, as one atomic step; durable when it returns.

        Args:
            items: The number of items, at most. 1 returns the item itself, any other number a list.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item, or None if the queue is empty; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.pop``; nothing was removed.
        """
        n = checked_count(items)
        least = n if blocking else 1
        return shaped(n, await self.pop_many(n, at_least=least, blocking=blocking, timeout=timeout))

    async def peek_many(
        self,
        items: int,
        *,
        at_least: int = 1,
        max_bytes: int | None = None,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[T]:
        """Return the first items as a list, even a single one, and leave them in the queue.

        Args:
            items: The number of items, at most.
            at_least: The number of items to wait for with ``blocking``.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The items; an empty list if there are none.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.peek_many``.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking)
        if not many.items:
            return []
        if not blocking:
            return await self._call(head.look, many.items, 0, max_bytes) or []
        look = partial(head.look, many.items, many.least, max_bytes)
        found = await self._until(partial(head.if_enough, at_least, look), timeout)
        if found is None:
            raise Empty(at_least, timeout)
        return found

    async def pop_many(
        self,
        items: int,
        *,
        at_least: int = 1,
        max_bytes: int | None = None,
        blocking: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[T]:
        """Remove and return the first items as a list, even a single one; durable when it returns.

        Args:
            items: The number of items, at most.
            at_least: The number of items to wait for with ``blocking``.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The items; an empty list if there are none.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.pop_many``; nothing was removed.
        """
        many = checked_many(items, at_least, max_bytes, blocking=blocking)
        if not many.items:
            return []
        wanted = Wanted(many.items, many.least, at_least, max_bytes)
        return await self._taken(wanted, blocking=blocking, timeout=timeout)

    async def find(self, key: Key) -> int | None:
        """Return the sequence number of the item with this key, or None.

        Args:
            key: The key that was given as ``unique``.
        """
        return await self._call(self.queue.find, key)

    async def cancel(self, key: Key) -> bool:
        """Remove the item with this key, if it is waiting or delayed; durable when it returns.

        Args:
            key: The key that was given as ``unique``.

        Returns:
            Whether it was removed.
        """
        return await self._call(self.queue.cancel, key)

    async def delete_item(self, seq: int) -> bool:
        """Remove a waiting item by its number, without decoding it; durable when it returns.

        Args:
            seq: The sequence number of the item.

        Returns:
            Whether it was removed.
        """
        return await self._call(self.queue.delete_item, seq)

    async def dead_letter(self, seq: int, reason: str = "it was set aside") -> bool:
        """Make a waiting item a dead letter; durable when it returns.

        Args:
            seq: The sequence number of the item.
            reason: The reason that the dead letter gives.

        Returns:
            Whether it was moved.
        """
        return await self._call(self.queue.dead_letter, seq, reason)

    async def delete(self, items: int = 1) -> int:
        """Remove the first items without decoding them; durable when it returns.

        Args:
            items: The number of items, at most.

        Returns:
            The number of items removed.
        """
        return await self._call(self.queue.delete, items)

    async def clear(self, all: bool = False) -> None:  # noqa: A002
        """Remove all waiting items; durable when it returns.

        Args:
            all: Remove leased, delayed and dead items, too.
        """
        await self._call(self.queue.clear, all)

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
    ) -> Opening[AsyncLease[T]]:
        """Reserve the first items for this consumer. Await it, or use it with ``async with``.

        It works like ``PersistentQueue.lease``.

        Example:
            >>> async with queue.lease(10, ttl=60) as lease:
            ...     await upload(list(lease))

        Args:
            items: The number of items, at most.
            ttl: Seconds after which others can get the items; None: the lease lasts as long as this queue object.
            max_bytes: Bytes of payloads, at most; one item is leased in any case.
            linger: Seconds to wait for more items, once one is there.
            blocking: Whether to wait for at least one item.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The lease, durable. It is empty, and falsy, if there was no item.

        Raises:
            Empty: No item came within ``timeout`` seconds.
        """
        batch = checked_batch(checked_count(items), max_bytes, linger)
        return Opening(self._leased(batch, ttl, blocking=blocking, timeout=timeout))

    async def _leased(
        self,
        batch: Batch,
        ttl: float | None,
        *,
        blocking: bool,
        timeout: float | None,  # noqa: ASYNC109
    ) -> AsyncLease[T]:
        queue, head = self.queue, self._head
        lease = partial(queue.lease, batch.items, ttl=ttl, max_bytes=batch.max_bytes)
        deadline = None if timeout is None else time.monotonic() + timeout
        while batch.items:
            if batch.linger and await self._anything(remaining(deadline) if blocking else 0.0):
                await self._until(lambda: head.is_full(batch) or None, batch.linger)
            if not blocking:
                break
            found = await self._kept(self._claim(batch, ttl, lease, waits=True), 0.0 if batch.linger else timeout)
            if found is not None:
                return AsyncLease(found, self._call, self._acked)
            if not batch.linger or is_over(deadline):
                raise Empty(1, timeout)
        found = await self._kept(self._claim(batch, ttl, lease, waits=False), None)
        return AsyncLease(found, self._call, self._acked)

    def _claim(self, batch: Batch, ttl: float | None, lease: Callable[[], Lease[T]], *, waits: bool) -> Claim:
        checked_ttl(ttl)
        return Claim(self._future(), Claimed(batch.items, ttl, batch.max_bytes, waits), lease)

    def _acked(self, lease: Lease[T], seqs: int | Iterable[int] | None) -> "asyncio.Future[None]":
        ack = Ack(self._future(), lease, {seqs} if isinstance(seqs, int) else seqs if seqs is None else set(seqs))
        self._courier.carry(ack)
        return ack.future

    @property
    def dead(self) -> AsyncDeadLetters[T]:
        """The dead letters: items that failed too often, were rejected, or cannot be decoded."""
        return AsyncDeadLetters(self._head, self._call)

    @overload
    async def work(
        self,
        handler: Callable[[T], Awaitable[object]] | Callable[[T, WorkerJob], Awaitable[object]],
        *,
        items: Literal[1] = 1,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry = DEFAULT_RETRY,
        concurrency: int = 1,
        signals: bool = False,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked: ...

    @overload
    async def work(
        self,
        handler: Callable[[list[T]], Awaitable[object]] | Callable[[list[T], list[WorkerJob]], Awaitable[object]],
        *,
        items: int,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry = DEFAULT_RETRY,
        concurrency: int = 1,
        signals: bool = False,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked: ...

    async def work(
        self,
        handler: Callable[[Any], Awaitable[object]] | Callable[[Any, Any], Awaitable[object]],
        *,
        items: int = 1,
        max_bytes: int | None = None,
        linger: float = 0.0,
        ttl: float = 60.0,
        retry: Retry = DEFAULT_RETRY,
        concurrency: int = 1,
        signals: bool = False,
        stop: Stop | None = None,
        progress: Callable[[Worked], object] | None = None,
        on_retry: Hook | None = None,
        on_dead: Hook | None = None,
    ) -> Worked:
        """Lease items, await ``handler``, acknowledge; repeat until told to stop.

        It works like ``PersistentQueue.work``. If the task is cancelled, its items return to the queue. A thread
        extends leases, even while a handler blocks the loop.

        Args:
            handler: A coroutine function. It gets one item, or a list if ``items`` > 1; with two parameters also the
                ``Job``.
            items: Items for each call, at most.
            max_bytes: Bytes of payloads for each call, at most; one item in any case.
            linger: Seconds to wait for a batch to fill.
            ttl: Seconds that a lease lasts without being extended.
            retry: When failed items are tried again.
            concurrency: The number of tasks that await the handler.
            signals: Whether to stop at SIGTERM and SIGINT, and pass them to the previous handlers, which are restored
                afterwards. By default no signal is touched, and the framework stops the worker, or cancels its task.
            stop: An event, or a function that returns whether to stop; checked before each lease and once a second.
            progress: Called after each lease with the counts so far.
            on_retry: Called with the ``Job`` and the error of each item that will be tried again.
            on_dead: Called with the ``Job`` and the error of each item that became a dead letter.

        Returns:
            The numbers of items done, given back, and turned into dead letters.

        Raises:
            TypeError: The handler is not a coroutine function; nothing was leased.
        """
        n, tasks = max(1, checked_count(items)), checked_count(concurrency)
        if not tasks:
            message = "'concurrency' is a number of tasks, not 0"
            raise ValueError(message)
        batch = checked_batch(n, max_bytes, linger)
        job = takes_job(handler, is_awaited=True)
        plan = Plan(handler, job, batch, ttl, retry, stop, progress, on_retry, on_dead)
        tally, stopped = Tally(progress), asyncio.Event()
        lease = partial(self._leased, batch, ttl, blocking=False, timeout=None)
        loops = [AsyncLoop(lease, self._anything, plan, tally, stopped) for _ in range(tasks)]
        await run_tasks(loops, stopped, signals=signals)
        return tally.worked

    async def _anything(self, timeout: float | None) -> bool:  # noqa: ASYNC109
        """Return whether there is an item, after at most ``timeout`` seconds."""
        head = self._head

        def attempt() -> bool | None:
            return head.if_enough(1, lambda: bool(head.candidates(1)) or None)

        look = Call(self._future(), attempt, waits=True, look="anything")
        return bool(await self._waited_for(look, timeout))

    # --- named readers

    def reader(self, name: str, *, start: Start = "oldest") -> Opening[AsyncReader[T]]:
        """Return a named reader; create it, durably, if there is none. Await it, or use it with ``async with``.

        Args:
            name: The name of the reader.
            start: Where a new reader begins: ``"oldest"``, ``"newest"``, or at the sequence number of an item.

        Returns:
            The reader.
        """

        async def opened() -> AsyncReader[T]:
            reader = await self._call(partial(self.queue.reader, name, start=start))
            return AsyncReader(reader, self._begin, self._until, self._moving)

        return Opening(opened())

    async def readers(self) -> list[ReaderStats]:
        """Return the readers of this queue with name, position, lag, skipped items and the time of their last move."""
        return await self._call(self.queue.readers)

    async def drop_reader(self, name: str) -> None:
        """Remove a reader, and the items that only it had not passed; durable when it returns.

        Args:
            name: The name of the reader.

        Raises:
            KeyError: There is no such reader.
        """
        await self._call(self.queue.drop_reader, name)

    async def retain(
        self,
        items: int | None = None,
        *,
        bytes: int | None = None,  # noqa: A002
        seconds: float | None = None,
    ) -> None:
        """Keep the newest items, read or not, and drop older ones, as ``PersistentQueue.retain``.

        Args:
            items: The number of items to keep.
            bytes: Bytes of items to keep, as ``dumps`` returned them.
            seconds: The age up to which items stay.
        """
        await self._call(partial(self.queue.retain, items, bytes=bytes, seconds=seconds))

    # --- several steps as one

    async def transact(self, fn: Callable[[Any], R]) -> R:
        """Run ``fn(queue)`` as one transaction of the synchronous queue, in a thread; durable when it returns.

        All calls of ``fn`` on the queue, and on other queues of the directory that it has open, are one atomic step. An
        exception undoes them, and is raised here.

        Example:
            >>> def step(queue):
            ...     queue.state["handled"] = queue.pop()
            >>> await queue.transact(step)

        Args:
            fn: A function that gets the ``PersistentQueue`` or ``PostgresQueue``. It must not wait.

        Returns:
            The result of ``fn``.

        Raises:
            TypeError: ``fn`` is a coroutine function.
        """
        if inspect.iscoroutinefunction(fn):
            message = f"{fn!r} is a coroutine function, but a transaction must not await: pass an ordinary function"
            raise TypeError(message)

        def transact() -> R:
            with self.queue.transaction():
                return fn(self.queue)

        return await self._call(transact)

    @property
    def state(self) -> AsyncState:
        """The state of this queue, to read; ``transact`` changes it."""
        return AsyncState(self.queue, self._call)

    # --- the whole of it

    async def stats(self) -> Any:
        """Return the figures of the queue (``Stats``)."""
        return await self._call(self.queue.stats)

    async def count(self) -> int:
        """Return the number of waiting items."""
        return await self._call(self.queue.count)

    async def flush(self, force: bool = False) -> int:
        """Return empty space to the file system; other calls of this object wait meanwhile.

        Args:
            force: Also if less than ``flush_limit`` bytes are empty.

        Returns:
            The number of bytes by which the file shrank.
        """
        return await self._call(self.queue.flush, force)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate from the head to the tail and remove nothing, like ``browse()``."""
        return self.browse()

    def browse(self, *, on_error: OnError = "raise") -> AsyncIterator[T]:
        """Yield the items from the head to the tail and remove nothing.

        Args:
            on_error: What to do with an item that is damaged or cannot be decoded: ``"raise"``; ``"skip"`` it; or call
                a function with the error.
        """
        return self._browsed(checked_on_error(on_error))

    async def _browsed(self, on_error: Callable[[DecodeError | CorruptItemError], object]) -> AsyncIterator[T]:
        key = b""
        while entries := await self._call(self._engine.since, key):
            for entry in entries:
                key = entry[0]
                for item in decoded(self._head, entry, on_error):
                    yield item

    # --- the verbs of asyncio.Queue

    async def put(
        self,
        item: T,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        priority: int = 0,
    ) -> None:
        """Append exactly one item, even if it is a list; wait for room if the queue is full. Durable when it returns.

        Args:
            item: The item.
            block: Whether to wait for room.
            timeout: Seconds to wait at most; None: no limit.
            priority: As for ``push``.

        Raises:
            Full: There was no room for ``timeout`` seconds, or at once with ``block=False``.
        """
        payloads = [payload_of(self.queue.dumps, item)]
        if priority:
            push = Push(self._future(), payloads, waits=block, append=append_of(self._engine, priority))
        else:
            push = Push(self._future(), payloads, waits=block)
        if timeout is not None:
            push.deadline = time.monotonic() + timeout
        if await self._waited_for(push, timeout) is None:
            raise push.refusal

    async def get(self, block: bool = True, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Remove and return the first item; wait for one if the queue is empty. Durable when it returns.

        Args:
            block: Whether to wait for an item.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item.

        Raises:
            Empty: There was no item for ``timeout`` seconds, or at once with ``block=False``.
        """
        found = await self._taken(Wanted(1, 1, 1), blocking=block, timeout=timeout)
        if not found:
            raise Empty(1, None)
        self._in_hand += 1
        self._settled.clear()
        return found[0]

    async def put_nowait(self, item: T) -> None:
        """Append exactly one item, without waiting.

        Args:
            item: The item.

        Raises:
            Full: There is no room.
        """
        await self.put(item, block=False)

    async def get_nowait(self) -> T:
        """Remove and return the first item, without waiting.

        Raises:
            Empty: There is none.
        """
        return await self.get(block=False)

    async def qsize(self) -> int:
        """Return the number of waiting items."""
        return await self.count()

    async def empty(self) -> bool:
        """Return whether the queue is empty."""
        return await self._call(self.queue.empty)

    async def full(self) -> bool:
        """Return whether ``maxsize`` is reached."""
        return await self._call(self.queue.full)

    def task_done(self) -> None:
        """Report that one item from ``get`` is processed.

        Raises:
            ValueError: It was called more often than ``get`` returned.
        """
        if not self._in_hand:
            message = "task_done() called too many times"
            raise ValueError(message)
        self._in_hand -= 1
        if not self._in_hand:
            self._settled.set()

    async def join(self) -> None:
        """Wait until the queue is empty and ``task_done`` was called for each item from ``get`` of this object."""
        await self._call(self._engine.watch)
        while True:
            await self._until(lambda: is_empty(self._engine) or None, None)
            if not self._in_hand:  # what left the queue before was delivered before
                return
            await self._settled.wait()

    def shutdown(self, immediate: bool = False) -> None:
        """Make ``put`` and ``push`` raise ``ShutDown``, and ``get`` once the queue is empty.

        Args:
            immediate: ``get`` raises at once, too.
        """
        self.queue.shutdown(immediate)
        self._courier.look()

    async def close(self) -> None:
        """Finish earlier calls and close; waiting calls and all later ones raise ``ClosedError``."""
        async with self._moving:  # a move that was cancelled is undone before
            if self._is_closed:
                return
            self._is_closed = True
            future = self._future()
            self._courier.close(future)
        await asyncio.shield(future)

    # --- what the verbs are made of

    def _future(self) -> "asyncio.Future[Any]":
        return self._loop.create_future()

    async def _carried(self, job: Job) -> Any:
        self._courier.carry(job)
        return await job.future

    def _begin(
        self, fn: Callable[..., Any], *args: Any, undo: Callable[[Any], object] | None = None
    ) -> "asyncio.Future[Any]":
        call = Call(self._future(), lambda: fn(*args), undo=undo)
        self._courier.carry(call)
        return call.future

    async def _call(self, fn: Callable[..., R], *args: Any) -> R:
        result: R = await self._begin(fn, *args)
        return result

    async def _until(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:  # noqa: ASYNC109
        """Return what ``attempt`` gives as soon as that is not None; None after ``timeout`` seconds."""
        result: R | None = await self._waited_for(Call(self._future(), attempt, waits=True), timeout)
        return result

    async def _waited_for(self, job: Job, timeout: float | None) -> Any:  # noqa: ASYNC109
        """Return the result of a job, None if it waits and is not done after ``timeout`` seconds."""
        if timeout is None or not job.waits:
            return await self._carried(job)
        if timeout < 0:
            message = "'timeout' must be a non-negative number"
            raise ValueError(message)

        handle: asyncio.TimerHandle

        def end() -> None:
            nonlocal handle
            job.is_late = True
            handle = self._loop.call_later(_AGAIN, end)
            self._courier.give_up(job)

        handle = self._loop.call_later(timeout, end)
        try:
            return await self._carried(job)
        finally:
            handle.cancel()

    async def _taken(self, wanted: Wanted, *, blocking: bool, timeout: float | None) -> list[T]:  # noqa: ASYNC109
        """Return items that are removed, durably; put them back if the caller was cancelled meanwhile."""
        found = await self._kept(Take(self._future(), wanted, waits=blocking), timeout)
        if found is None:
            raise Empty(wanted.awaited, timeout)
        items: list[T] = found[1]
        return items

    async def _kept(self, job: Job, timeout: float | None) -> Any:  # noqa: ASYNC109
        """Return the result of a job; undo it if the caller was cancelled meanwhile."""
        try:
            return await self._waited_for(job, timeout)
        except asyncio.CancelledError:
            future = job.future
            if future.done() and not future.cancelled() and future.exception() is None and future.result():
                self._courier.take_back(job, future.result())
            raise


class AsyncPersistentQueue(AsyncQueue[T]):
    """A ``PersistentQueue`` for one event loop.

    ``async with`` opens it; ``await AsyncPersistentQueue.open(...)`` creates and opens it in one step.

    Example:
        >>> async with AsyncPersistentQueue("jobs") as queue:
        ...     await queue.push("a job")

    Args:
        queue: The directory; or an open ``PersistentQueue``, which then belongs to this object.
        path: The directory that contains it.
        **options: As for ``PersistentQueue``.
    """

    queue: PersistentQueue[T]

    def __init__(
        self,
        queue: PersistentQueue[T] | str | os.PathLike[str],
        path: str | os.PathLike[str] = ".",
        **options: Any,
    ) -> None:
        super().__init__(
            queue if isinstance(queue, PersistentQueue) else partial(PersistentQueue, queue, path, **options)
        )

    @classmethod
    def open(cls, filename: Any, path: Any = ".", **options: Any) -> Opening[Self]:
        """Open or create a queue. Await it, or use it with ``async with``.

        Args:
            filename: The directory.
            path: The directory that contains it.
            **options: As for ``PersistentQueue``.
        """
        return cls._opened_by(partial(PersistentQueue, filename, path, **options))

    async def copy(self, new_filename: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Make a compacted copy of the whole directory: an independent queue, durable when it returns.

        Args:
            new_filename: The directory of the copy.
            path: The directory that contains it; None: beside this queue.

        Returns:
            The copy, opened.

        Raises:
            ExistsError: There is a queue already.
        """
        return type(self)(await self._call(self.queue.copy, new_filename, path))

    async def check(self, repair: bool = False) -> list[str]:
        """Verify the files of the directory, and repair them on request.

        Args:
            repair: If there are faults, write all readable items to a new file that replaces the damaged one.

        Returns:
            A sentence for each fault; an empty list if there is none.
        """
        return await self._call(self.queue.check, repair)
