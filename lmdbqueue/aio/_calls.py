"""The base of all awaited verbs: an object opened for a loop, and calls that its courier carries out.

Owns: when an object is open, time limits, what cancelling a call does. Must not know: what the calls do, threads.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

from lmdbqueue._base.errors import ClosedError, Empty
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.aio._courier import Courier
from lmdbqueue.aio._jobs import Call, Job, Take, Wanted
from lmdbqueue.aio._leases import Opening
from lmdbqueue.aio._reading import AsyncReading

T = TypeVar("T")
R = TypeVar("R")


class NotOpenError(ClosedError):
    """The object was created with the name of a queue, but has not been opened yet."""

    def __str__(self) -> str:
        """Return the message, which says how to open it."""
        return f"this {self.path} is not open yet: use it in 'async with', or await {self.path}.open(...)"


_AGAIN: Final = 0.25  # seconds between two checks of a call whose time is over, and which was not answered
_OPENED = ("queue", "_head", "_engine", "_courier", "_moving", "_loop", "_is_closed", "_settled", "_in_hand")


class Calls(AsyncReading[T]):
    """The part of a queue for one event loop that concerns the loop."""

    queue: Queue[T]

    def __init__(self, queue: Queue[T] | Callable[[], Queue[T]]) -> None:
        """Use ``queue``, which then belongs to this object; or a function, with which ``async with`` opens it."""
        self._open: Callable[[], Queue[T]] | None = None
        if isinstance(queue, Queue):
            self._begin_with(queue)
        else:
            self._open = queue

    def __getattr__(self, name: str) -> Any:
        """Raise ``NotOpenError`` for the attributes of an object that is not open yet."""
        if name in _OPENED and self.__dict__.get("_open") is not None:
            raise NotOpenError(type(self).__name__)
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(message)

    def _begin_with(self, queue: Queue[T]) -> None:
        self.queue = queue
        self._head = head_of(queue)
        self._engine = self._head.engine
        self._in_hand = 0  # items that get() has returned and task_done() has not settled
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

    def __repr__(self) -> str:
        """Name the queue."""
        on = "not open" if self._open is not None else f"on {self.queue!r}"
        return f"<{type(self).__name__} {on}>"

    # --- the parts of the verbs

    def _future(self) -> "asyncio.Future[Any]":
        return self._loop.create_future()

    async def _carried(self, job: Job) -> Any:
        self._courier.carry(job)
        return await job.future

    def _begin(self, fn: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        call = Call(self._future(), lambda: fn(*args))
        self._courier.carry(call)
        return call.future

    async def _until(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:  # noqa: ASYNC109
        """Repeat ``attempt`` until it does not return None, and return its result; None after ``timeout`` seconds."""
        result: R | None = await self._waited_for(Call(self._future(), attempt, waits=True), timeout)
        return result

    async def _waited_for(self, job: Job, timeout: float | None) -> Any:  # noqa: ASYNC109
        """Return the result of a job; None if it is a waiting one and not done after ``timeout`` seconds."""
        if timeout is None or not job.waits:
            return await self._carried(job)

        handle: asyncio.TimerHandle

        def end() -> None:
            nonlocal handle
            job.is_late = True
            handle = self._loop.call_later(_AGAIN, end)
            self._courier.give_up(job)

        job.deadline = time.monotonic() + timeout
        handle = self._loop.call_later(timeout, end)
        try:
            return await self._carried(job)
        finally:
            handle.cancel()

    async def _taken(self, wanted: Wanted, *, blocking: bool, timeout: float | None) -> list[T]:  # noqa: ASYNC109
        """Return removed items, durably; they are put back if the caller does not receive them."""
        found = await self._kept(Take(self._future(), wanted, waits=blocking), timeout)
        if found is None:
            raise Empty(wanted.awaited, timeout)
        items: list[T] = found[1]
        return items

    async def _kept(self, job: Job, timeout: float | None) -> Any:  # noqa: ASYNC109
        """Return the result of a job; it is undone if the caller is cancelled meanwhile, or dropped with its loop."""
        try:
            result = await self._waited_for(job, timeout)
        except BaseException:
            self._courier.take_back(job)
            raise
        self._courier.claim(job, result)
        return result
