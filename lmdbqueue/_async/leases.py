"""Leases, dead letters and the worker loop, awaited.

Owns: what ``_verbs.lease`` and ``_verbs.worker`` are for an event loop. Law: each means what its
namesake there means; what a cancelled block holds is given back before the cancellation goes on. Must not know:
threads.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from lmdbqueue._errors import LeaseExpiredError, QueueError, ShutDown
from lmdbqueue._host.signals import SIGNALS
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.lease import DeadLetter, DeadLetters, Lease, letters_since
from lmdbqueue._verbs.worker import LOOK, Retry, Stop, Worked, give_back, is_set, warn

T = TypeVar("T")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any, None])
Calls = Callable[..., Awaitable[Any]]  # of a function that must not be called in the loop, and its arguments


class AsyncLease(Sequence[T]):
    """Items that a consumer holds while it works on them: as ``Lease``, with its methods awaited."""

    def __init__(self, lease: Lease[T], call: Calls) -> None:
        self.lease = lease
        self.call = call  # runs a function outside of the loop

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
        """How often each was leased, this time included."""
        return self.lease.attempts

    @property
    def deadline(self) -> float | None:
        """When the lease ends, on ``time.monotonic()``; None if it lasts as long as its queue object."""
        return self.lease.deadline

    async def headers(self) -> list[Mapping[str, str]]:
        """Return the headers that each item was pushed with, empty for none."""
        found: list[Mapping[str, str]] = await self.call(lambda: self.lease.headers)
        return found

    async def pushed_at(self) -> list[float]:
        """Return when each item was pushed, in seconds since 1970."""
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
        """Acknowledge what is held, or give it back after an exception."""
        await asyncio.shield(asyncio.ensure_future(self.call(self.lease.__exit__, kind, error, trace)))

    async def ack(self, seqs: int | Iterable[int] | None = None) -> None:
        """Remove what the lease still holds, or those of ``seqs``, for good."""
        await self.call(self.lease.ack, seqs)

    async def nack(
        self, seqs: int | Iterable[int] | None = None, delay: float = 0.0, reason: str | None = None
    ) -> None:
        """Give back what the lease still holds, or those of ``seqs``."""
        await self.call(self.lease.nack, seqs, delay, reason)

    async def reject(self, seqs: int | Iterable[int] | None = None, reason: str | None = None) -> None:
        """Set aside what the lease still holds, or those of ``seqs``, as dead letters."""
        await self.call(self.lease.reject, seqs, reason)

    async def extend(self, ttl: float | None) -> None:
        """Let the lease last for ``ttl`` seconds from now; None: for as long as its queue object."""
        await self.call(self.lease.extend, ttl)


class Opening(Generic[C]):
    """What is to be awaited, or entered with ``async with``."""

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
    """The dead letters of a queue: as ``DeadLetters``, awaited."""

    def __init__(self, head: Head[T], call: Calls) -> None:
        self._head = head
        self._dead = DeadLetters(head.engine, head.decode)
        self._call = call

    async def count(self) -> int:
        """Return how many there are."""
        found: int = await self._call(self._head.engine.count_dead)
        return found

    async def __aiter__(self) -> AsyncIterator[DeadLetter[T]]:
        """Yield each, by sequence number."""
        seq = 0
        while letters := await self._call(letters_since, self._head.engine, self._head.decode, seq):
            for letter in letters:
                yield letter
            seq = letters[-1].seq + 1

    async def requeue(self, seqs: int | Iterable[int] | None = None) -> int:
        """Let all, or those of ``seqs``, wait in their places again; return how many there were."""
        count: int = await self._call(self._dead.requeue, seqs)
        return count

    async def delete(self, seqs: int | Iterable[int] | None = None) -> int:
        """Remove all, or those of ``seqs``, for good; return how many there were."""
        count: int = await self._call(self._dead.delete, seqs)
        return count


class AsyncLoop:
    """One call of ``work``. Stopping: see ``_verbs.worker``; here a signal sets an event that ends the wait."""

    def __init__(
        self,
        lease: Callable[[], Awaitable["AsyncLease[Any]"]],
        anything: Callable[[float], Awaitable[bool]],
        handler: Callable[[Any], Awaitable[object]],
        *,
        items: int,
        ttl: float,
        retry: Retry,
        stop: Stop | None,
        progress: Callable[[Worked], object] | None,
    ) -> None:
        self._take = lease
        self._anything = anything
        self._handler = handler
        self._items = items
        self._ttl = ttl
        self._retry = retry
        self._stop = stop
        self._progress = progress
        self._stopped = asyncio.Event()
        self._worked = Worked()

    async def run(self) -> Worked:
        """Work until told to stop."""
        with self._signals(), suppress(ShutDown):
            while not self._stopped.is_set() and not is_set(self._stop):
                if await self._wait():
                    await self._once()
        return self._worked

    async def _wait(self) -> bool:
        found = asyncio.ensure_future(self._anything(LOOK))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({found, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopped.is_set() and found.result()
        finally:
            found.cancel()
            stopped.cancel()

    async def _once(self) -> None:
        lease = await self._take()
        if not lease:
            return  # another was faster
        error: Exception | None = None
        try:
            async with lease:
                heart = asyncio.ensure_future(self._beat(lease))
                try:
                    await self._handler(lease.items if self._items > 1 else lease.items[0])
                except Exception as raised:
                    error = raised
                    await lease.call(partial(give_back, lease.lease, self._retry, raised))
                finally:
                    heart.cancel()
        except LeaseExpiredError as late:
            warn(late)
            return
        self._worked = self._worked.after(lease.lease, self._retry, error)
        if self._progress is not None:
            self._progress(self._worked)

    async def _beat(self, lease: AsyncLease[Any]) -> None:
        with suppress(QueueError):  # its ack will tell
            while True:
                await asyncio.sleep(self._ttl / 3)
                await lease.extend(self._ttl)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        before: dict[signal.Signals, Any] = {}

        def restore() -> None:
            while before:
                number, handler = before.popitem()
                loop.remove_signal_handler(number)
                if handler is not None:
                    signal.signal(number, handler)

        def stop() -> None:
            self._stopped.set()
            restore()

        with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            for number in SIGNALS:
                handler = signal.getsignal(number)
                loop.add_signal_handler(number, stop)
                before[number] = handler
        try:
            yield
        finally:
            restore()
