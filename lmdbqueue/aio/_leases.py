"""Leases, dead letters and the worker loop, awaited.

Owns: ``_verbs.lease`` and ``_verbs.worker`` for an event loop. Law: each means the same as its namesake there; items
held by a cancelled block are given back before the cancellation continues. Must not know: threads.
"""

import asyncio
import threading
from _thread import start_new_thread
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from lmdbqueue._base.errors import ClosedError, LeaseExpiredError, QueueError, ShutDown
from lmdbqueue._base.values import Nacked
from lmdbqueue._host.signals import stopped_by_signals
from lmdbqueue._host.threads import holding
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.lease import LOWEST, DeadLetter, DeadLetters, Lease, letters_since, undo
from lmdbqueue._verbs.worker import (
    LOOK,
    Group,
    Plan,
    Tally,
    Worked,
    call_hooks,
    give_back,
    groups,
    is_set,
    jobs_of,
    logger,
    refuse_unawaited,
    with_failed,
)
from lmdbqueue.aio._courier import is_dropped

T = TypeVar("T")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any, None])
Calls = Callable[..., Awaitable[Any]]  # of a function that must not be called in the loop, and its arguments
Leave = Callable[[Callable[[], object]], None]  # calls a function outside of the loop, and waits for nothing
Acks = Callable[[Lease[Any], int | Iterable[int] | None], "asyncio.Future[None]"]
Relays = Callable[["AsyncLease[Any]", float], Awaitable["AsyncLease[Any] | None"]]  # acks one, and leases another


class AsyncLease(Sequence[T]):
    """Items reserved for a consumer while it works on them: a ``Lease`` whose methods are awaited.

    ``async with`` acknowledges the items at the end of the block; an exception returns them to the queue.
    """

    def __init__(self, lease: Lease[T], call: Calls, acked: Acks, leave: Leave) -> None:
        self.lease = lease
        self.call = call  # runs a function outside of the loop
        self._acked = acked
        self._leave = leave

    def __repr__(self) -> str:
        return repr(self.lease)

    @property
    def items(self) -> list[T]:
        """The items."""
        return self.lease.items

    @property
    def seqs(self) -> list[int]:
        """Their sequence numbers."""
        return self.lease.seqs

    @property
    def attempts(self) -> list[int]:
        """The number of leases of each, including this one."""
        return self.lease.attempts

    @property
    def deadline(self) -> float | None:
        """The end of the lease on ``time.monotonic()``; None if it lasts as long as its queue object."""
        return self.lease.deadline

    async def headers(self) -> list[Mapping[str, str]]:
        """Return the headers of each item's push."""
        found: list[Mapping[str, str]] = await self.call(lambda: self.lease.headers)
        return found

    async def pushed_at(self) -> list[float]:
        """Return the time of each push, or of the end of its delay, in seconds since 1970."""
        found: list[float] = await self.call(lambda: self.lease.pushed_at)
        return found

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self.lease[index]

    def __len__(self) -> int:
        return len(self.lease)

    async def __aenter__(self) -> Self:
        """Return this object."""
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Acknowledge the items; return them to the queue after an exception."""
        if error is None:
            await asyncio.shield(self._acked(self.lease, None))
        elif is_dropped():
            self._leave(partial(self.lease.__exit__, kind, error, trace))
        else:
            with suppress(ClosedError):  # closing the queue has given them back
                await asyncio.shield(asyncio.ensure_future(self.call(self.lease.__exit__, kind, error, trace)))

    async def ack(self, seqs: int | Iterable[int] | None = None) -> None:
        """Remove the items for good; durable when it returns.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
        """
        await self._acked(self.lease, seqs)

    async def nack(
        self,
        seqs: int | Iterable[int] | None = None,
        delay: float = 0.0,
        reason: str | None = None,
        *,
        max_attempts: int | None = None,
        trace: str = "",
    ) -> Nacked:
        """Return the items to their places in the queue; durable when it returns.

        An item that was replaced meanwhile, has expired, or is beyond the limits of ``retain`` does not return.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.
            delay: Seconds until they can be taken again.
            reason: The reason, for a dead letter.
            max_attempts: Leases after which an item becomes a dead letter instead; None: the limit of the queue object.
            trace: A traceback, for a dead letter, which keeps 8,000 bytes of it, or none on a full disk.

        Returns:
            What became of each item.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
            DiskFullError: The disk is full, and so is the reserve for returned items; these items stay leased.
        """
        call = partial(self.lease.nack, seqs, delay, reason, max_attempts=max_attempts, trace=trace)
        nacked: Nacked = await self.call(call)
        return nacked

    async def reject(self, seqs: int | Iterable[int] | None = None, reason: str | None = None) -> Nacked:
        """Make the items dead letters; durable when it returns.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.
            reason: The reason that the dead letters give.

        Returns:
            What became of each item, as for ``nack``.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
        """
        nacked: Nacked = await self.call(self.lease.reject, seqs, reason)
        return nacked

    async def extend(self, ttl: float | None) -> None:
        """Extend the lease; durable when it returns.

        Args:
            ttl: Seconds from now; None: the lease lasts as long as its queue object.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
        """
        await self.call(self.lease.extend, ttl)


class ReturnedOnError:
    """A block that settles all items of a lease itself: they are given back only if an exception leaves it."""

    def __init__(self, lease: AsyncLease[Any]) -> None:
        self._lease = lease

    async def __aenter__(self) -> None:
        """Do nothing."""

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Give back what is left after an exception."""
        if error is not None:
            await self._lease.__aexit__(kind, error, trace)


class Opening(Generic[C]):
    """An opening that can be awaited, or entered with ``async with``."""

    def __init__(self, opened: Awaitable[C]) -> None:
        self._awaited = opened

    def __await__(self) -> Generator[Any, None, C]:
        return self._awaited.__await__()

    async def __aenter__(self) -> C:
        """Await it."""
        self._opened = await self
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        await self._opened.__aexit__(kind, error, trace)


class AsyncDeadLetters(Generic[T]):
    """The dead letters of a queue, ordered by sequence number: ``DeadLetters`` with awaited methods."""

    def __init__(self, head: Head[T], call: Calls) -> None:
        self._head = head
        self._dead = DeadLetters(head.engine, head.decode)
        self._call = call

    async def count(self) -> int:
        """Return their number."""
        found: int = await self._call(self._head.engine.count_dead)
        return found

    async def __aiter__(self) -> AsyncIterator[DeadLetter[T]]:
        """Yield each, by sequence number."""
        seq = LOWEST
        while letters := await self._call(letters_since, self._head.engine, self._head.decode, seq):
            for letter in letters:
                yield letter
            seq = letters[-1].seq + 1

    async def requeue(self, seqs: int | Iterable[int] | None = None) -> int:
        """Return dead letters to their places in the queue, as if never tried.

        Args:
            seqs: The sequence numbers of some of them; None: all.

        Returns:
            The number of items requeued.
        """
        count: int = await self._call(self._dead.requeue, seqs)
        return count

    async def delete(self, seqs: int | Iterable[int] | None = None) -> int:
        """Remove dead letters for good.

        Args:
            seqs: The sequence numbers of some of them; None: all.

        Returns:
            The number of items removed.
        """
        count: int = await self._call(self._dead.delete, seqs)
        return count


class AsyncLoop:
    """One task of a worker. Stopping: see ``_verbs.worker``; here a signal sets an event that ends the wait."""

    def __init__(
        self,
        head: Head[Any],
        lease: Callable[[], Awaitable["AsyncLease[Any]"]],
        anything: Callable[[float], Awaitable[bool]],
        plan: Plan,
        tally: Tally,
        stopped: asyncio.Event,
        relay: Relays,
    ) -> None:
        self._engine = head.engine
        self._take = lease
        self._relay = relay
        self._anything = anything
        self._plan = plan
        self._tally = tally
        self._stopped = stopped
        self._lease: Lease[Any] | None = None  # the lease that the handler is working on

    async def serve(self) -> None:
        """Work until told to stop."""
        with suppress(ShutDown):
            while not self._is_stopped():
                if await self._wait():
                    with _beating(self._keep, self._plan.ttl / 3):
                        while await self._once():
                            if self._is_stopped():
                                return

    def _is_stopped(self) -> bool:
        return self._stopped.is_set() or is_set(self._plan.stop)

    async def _wait(self) -> bool:
        found = asyncio.ensure_future(self._anything(LOOK))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({found, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopped.is_set() and found.result()
        finally:
            if not is_dropped():  # they are dropped, too
                found.cancel()
                stopped.cancel()

    async def _once(self) -> bool:
        """Lease and handle items; return whether there may be more, which need not be waited for."""
        if self._engine.is_drained:
            raise ShutDown
        lease: AsyncLease[Any] | None = await self._take()
        has_found = bool(lease)  # otherwise another consumer was faster
        while lease:
            lease = await self._handled(lease)
        return has_found and not self._plan.batch.linger

    def _keep(self) -> None:
        """Extend the lease, if there is one at the moment."""
        lease = self._lease
        if lease is not None:
            with suppress(QueueError):  # the next attempt may succeed; if not, the ack will raise the error
                lease.extend(self._plan.ttl)

    async def _handled(self, lease: AsyncLease[Any]) -> AsyncLease[Any] | None:
        """Have the items of a lease handled, and settle them; return the next lease if it came with the ack."""
        plan = self._plan
        done, failed = 0, Worked()
        following: AsyncLease[Any] | None = None
        try:
            async with ReturnedOnError(lease):
                self._lease = lease.lease
                try:
                    jobs = await lease.call(jobs_of, lease.lease) if plan.wants_jobs else []
                    for group in groups(lease.lease):
                        try:
                            refuse_unawaited(await plan.handler(*group.arguments(lease.lease, jobs, plan)))
                        except Exception as error:
                            nacked = await lease.call(give_back, lease.lease, group, plan, error)
                            failed = with_failed(failed, nacked)
                            call_hooks(group, jobs, plan, error, nacked)
                        else:
                            following = await self._ack(lease, group)
                            done += len(group.places)
                finally:
                    self._lease = None
        except LeaseExpiredError as late:
            logger().warning("%s", late)
        if done or any(failed):
            self._tally.add(done, failed)
        if following is not None and self._is_stopped():
            await asyncio.shield(asyncio.ensure_future(following.call(undo, following.lease)))
            return None
        return following

    async def _ack(self, lease: AsyncLease[Any], group: Group) -> AsyncLease[Any] | None:
        """Acknowledge items whose handler has returned; return the next lease, if it could be had in the same step."""
        if self._plan.relays and not self._is_stopped():
            return await self._relay(lease, self._plan.ttl)
        await lease.ack(group.seqs(lease.lease))
        return None


@holding
def _beating(fn: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``fn`` every ``seconds`` seconds in a thread while the block runs, which may block the loop.

    The end of the block waits for no call under way, since that would block the loop, too.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            fn()

    start_new_thread(beat, ())
    try:
        yield
    finally:
        ended.set()


async def run_tasks(loops: Sequence[AsyncLoop], stopped: asyncio.Event, *, signals: bool) -> None:
    """Run loops until they are told to stop; an error in one ends all."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        with suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(stopped.set)

    with stopped_by_signals(stop) if signals else nullcontext():
        tasks = [asyncio.ensure_future(each.serve()) for each in loops]
        try:
            await asyncio.gather(*tasks)
        finally:
            if not is_dropped():
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
