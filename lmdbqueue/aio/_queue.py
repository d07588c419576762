"""``AsyncQueue``: what a queue is for one event loop, on any engine.

Owns: awaited consumers, readers, transactions, and the verbs of ``asyncio.Queue``. Law: a verb means what its namesake
without ``await`` means. Must not know: threads, commits.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from lmdbqueue._base.errors import Empty
from lmdbqueue._base.values import ReaderStats, Start
from lmdbqueue._verbs.encoding import payload_of
from lmdbqueue._verbs.head import Batch, is_over, remaining
from lmdbqueue._verbs.lease import Lease
from lmdbqueue._verbs.options import VERBS, WORK, check, numbers_of
from lmdbqueue._verbs.queue import Queue, is_empty
from lmdbqueue._verbs.worker import (
    DEFAULT_RETRY,
    Hook,
    Plan,
    Retry,
    Stop,
    Tally,
    Worked,
    checked_retry,
    function_of,
    refuse_coroutines,
    refuse_unawaited,
    takes_job,
)
from lmdbqueue._verbs.worker import Job as WorkerJob
from lmdbqueue._verbs.writing import of_priority
from lmdbqueue.aio._courier import is_dropped
from lmdbqueue.aio._jobs import Ack, Call, Claim, Claimed, Push, Relay, Wanted
from lmdbqueue.aio._leases import AsyncDeadLetters, AsyncLease, AsyncLoop, Opening, run_tasks
from lmdbqueue.aio._reader import AsyncReader
from lmdbqueue.aio._writing import AsyncWriting

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
        found: dict[str, Any] = await self._call(self._queue.state.as_dict)
        return found


class AsyncQueue(AsyncWriting[T]):
    """A queue for one event loop, on any engine: each verb is a coroutine, and none blocks the loop.

    Calls at the same moment share commits. Any number of coroutines can wait; other processes and threads, with or
    without a loop, can use the same queue. An object belongs to the loop in which it was created: each loop, and each
    forked child, opens its own.

    Cancelling (also by ``asyncio.timeout``): a ``push`` or ``put`` is stored completely or not at all. A cancelled
    ``get``, ``pop`` or ``lease`` takes nothing: items that it had removed return to their places with their numbers,
    attempts and unique keys (a key that was used again meanwhile stays with the newer item). A cancelled reader stays
    where it was. The same applies to a task that its loop never resumes, since it was closed or the program ended.

    Closing the loop closes the object and the queue beneath it.

    Attributes:
        queue: The queue beneath, with the same verbs without ``await``, which block; for metrics, for example.
    """

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

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
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The lease, durable. It is empty, and falsy, if there was no item.

        Raises:
            Empty: No item came within ``timeout`` seconds.
        """
        wait = {"linger": linger, "blocking": blocking, "timeout": timeout}
        check(VERBS, items=items, ttl=ttl, max_bytes=max_bytes, **wait)
        batch = Batch(index(items), max_bytes, linger)
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
                return AsyncLease(found, self._call, self._acked, self._courier.leave)
            if not batch.linger or is_over(deadline):
                raise Empty(1, timeout)
        found = await self._kept(self._claim(batch, ttl, lease, waits=False), None)
        return AsyncLease(found, self._call, self._acked, self._courier.leave)

    def _claim(self, batch: Batch, ttl: float | None, lease: Callable[[], Lease[T]], *, waits: bool) -> Claim:
        return Claim(self._future(), Claimed(batch.items, ttl, batch.max_bytes, waits), lease)

    def _acked(self, lease: Lease[T], seqs: int | Iterable[int] | None) -> "asyncio.Future[None]":
        ack = Ack(self._future(), lease, numbers_of(seqs))
        self._courier.carry(ack)
        return ack.future

    async def _relayed(self, lease: AsyncLease[T], ttl: float) -> AsyncLease[T] | None:
        """Acknowledge a lease, and lease another item if that can be had in the same step."""
        found = await self._kept(Relay(self._future(), lease.lease, ttl), None)
        return None if found is None else AsyncLease(found, self._call, self._acked, self._courier.leave)

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
            ttl: Seconds that a lease lasts unless it is extended.
            retry: When failed items are tried again.
            concurrency: The number of tasks that await the handler.
            signals: Whether to stop at SIGTERM and SIGINT, and pass them to the previous handlers, which are restored
                afterwards. By default no signal is touched, and the framework stops the worker, or cancels its task.
            stop: An event, or a function that returns whether to stop; checked before each lease and once a second.
            progress: Called after each lease with the counts so far.
            on_retry: Called with the ``Job`` and the error of each item that will be tried again.
            on_dead: Called with the ``Job`` and the error of each item that became a dead letter. Neither is called for
                an item that was replaced while its handler ran, or has expired.

        Returns:
            The numbers of items done, given back, turned into dead letters, and removed meanwhile.

        Raises:
            TypeError: The handler is not a coroutine function, or a hook is one; nothing was leased.
        """
        hooks = {"stop": stop, "progress": progress, "on_retry": on_retry, "on_dead": on_dead, "signals": signals}
        check(WORK, items=items, max_bytes=max_bytes, linger=linger, ttl=ttl, concurrency=concurrency, **hooks)
        retry = checked_retry(retry, self.queue.max_attempts)
        batch, tasks = Batch(max(1, index(items)), max_bytes, linger), index(concurrency)
        job = takes_job(handler, is_awaited=True)
        refuse_coroutines(stop=stop, progress=progress, on_retry=on_retry, on_dead=on_dead)
        plan = Plan(handler, job, batch, ttl, retry, stop, progress, on_retry, on_dead)
        tally, stopped = Tally(progress), asyncio.Event()
        lease = partial(self._leased, batch, ttl, blocking=False, timeout=None)
        loops = [
            AsyncLoop(self._head, lease, self._anything, plan, tally, stopped, self._relayed) for _ in range(tasks)
        ]
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
        check(VERBS, name=name, start=start)

        async def opened() -> AsyncReader[T]:
            reader = await self._call(partial(self.queue.reader, name, start=start))
            return AsyncReader(reader, self._courier, self._begin, self._until, self._moving)

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
            TypeError: ``fn`` is a coroutine function, or returns a coroutine or a generator; nothing was changed.
            NestedCallError: Raised in a coroutine that uses this queue while ``fn`` waits for that coroutine: the two
                would wait for each other.
        """
        if inspect.iscoroutinefunction(function_of(fn)):
            message = f"{fn!r} is a coroutine function, but a transaction must not await: pass an ordinary function"
            raise TypeError(message)

        def transact() -> R:
            with self.queue.transaction():
                result = fn(self.queue)
                refuse_unawaited(result, "the function of a transaction", "pass an ordinary function")
                return result

        return await self._call(transact)

    @property
    def state(self) -> AsyncState:
        """The state of this queue, to read; ``transact`` changes it."""
        return AsyncState(self.queue, self._call)

    # --- the queue as a whole

    async def stats(self) -> Any:
        """Return the figures of the queue (``Stats``)."""
        return await self._call(self.queue.stats)

    async def count(self) -> int:
        """Return the number of waiting items."""
        return await self._call(self.queue.count)

    async def sync(self) -> None:
        """Wait until the effects of all calls that have returned, in any process, are on disk."""
        await self._call(self.queue.sync)

    async def flush(self, force: bool = False) -> int:
        """Return empty space to the file system; other calls of this object wait meanwhile.

        Args:
            force: Shrink the file even if less than ``flush_limit`` bytes are empty.

        Returns:
            The number of bytes by which the file shrank.
        """
        return await self._call(self.queue.flush, force)

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
        check(VERBS, block=block, timeout=timeout if block else None)
        payloads = [payload_of(self.queue.dumps, item)]
        push = Push(self._future(), payloads, of_priority(priority), waits=block)
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
        check(VERBS, block=block, timeout=timeout if block else None)
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
            if not self._in_hand:  # items that have left the queue were delivered before
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
        """Finish earlier calls and close; waiting calls and all later ones raise ``ClosedError``.

        Closing twice, or before opening, is harmless.
        """
        if self._open is not None:
            return
        if is_dropped():
            self._courier.finish()
            return
        async with self._moving:  # a cancelled move is undone first
            if self._is_closed:
                return
            future = self._future()
            self._courier.close(future)
            self._is_closed = True
            self._settled.set()  # waiters in join() are refused at their next check
        await asyncio.shield(future)
