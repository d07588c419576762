"""A named reader, awaited.

Owns: the verbs of ``Reader`` for an event loop, and what cancelling one means. Law: each means what its namesake
there means; a read that is cancelled moves nothing. Must not know: threads, how positions are kept.

A pop has two steps. It waits for the next items, and can be cancelled there at any time; then the reader passes them. A
caller cancelled during that step lets it finish and has it undone. One thing can prevent that: if another object of the
same reader has moved on since, it would not get these items any more. Then the pop returns them, as if the cancellation
had come too late. Moves by one queue object never overlap, so they do not interfere with each other.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

from lmdbqueue._base.errors import ClosedError, Empty, ShutDown
from lmdbqueue._base.values import Entry, Start
from lmdbqueue._verbs.engine import Move
from lmdbqueue._verbs.reader import Position, Reader, position_of
from lmdbqueue._verbs.reading import Many
from lmdbqueue.aio._courier import Courier, is_dropped
from lmdbqueue.aio._jobs import Call
from lmdbqueue.aio._reading import AsyncReading

T = TypeVar("T")
R = TypeVar("R")
Begin = Callable[..., "asyncio.Future[Any]"]  # begins a call outside of the loop
Until = Callable[[Callable[[], Any], float | None], Awaitable[Any]]  # result of an attempt, or None after it


class AsyncReader(AsyncReading[T]):
    """A named reader of a queue: a ``Reader`` whose verbs are awaited.

    ``async for item in reader`` waits for items, and passes each one when the loop asks for the next. A cancelled
    ``pop`` moves nothing; if it had passed items, it moves back. There is one exception: if another object of the same
    reader has moved on meanwhile, the ``pop`` returns its items, and the cancellation comes too late.
    """

    _head: Position[T]

    def __init__(self, reader: Reader[T], courier: Courier, begin: Begin, until: Until, moving: asyncio.Lock) -> None:
        self.reader = reader
        self._head = position_of(reader)
        self._courier = courier
        self._begin = begin
        self._waits = until
        self._moving = moving  # held by each move, and while it is undone

    def __repr__(self) -> str:
        return repr(self.reader)

    async def __aenter__(self) -> Self:
        """Return this object."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    @property
    def name(self) -> str:
        """The name of the reader."""
        return self.reader.name

    async def delete(self, items: int = 1) -> int:
        """Pass the next items without decoding them. If it is cancelled, it passes all of them or none.

        Args:
            items: The number of items, at most.

        Returns:
            The number of items passed.
        """
        count: int = await self._moved(self.reader.delete, items)
        return count

    async def count(self) -> int:
        """Return the number of items that this reader has not passed: its lag."""
        lag: int = await self._begin(self.reader.count)
        return lag

    async def position(self) -> int:
        """Return the sequence number of the next item, or of the next push if everything is read."""
        number: int = await self._begin(lambda: self.reader.position)
        return number

    async def skipped(self) -> int:
        """Return the number of items that left the queue before this reader had passed them."""
        count: int = await self._begin(lambda: self.reader.skipped)
        return count

    async def seek(self, where: Start) -> None:
        """Move the reader, back to items that are still there or forward; durable when it returns.

        Args:
            where: The sequence number of an item, or of the next one that is there; ``"oldest"`` or ``"newest"``.
        """
        await self._moved(self.reader.seek, where)

    async def __aiter__(self) -> AsyncIterator[T]:
        """Wait for items, and pass each one when the next is asked for; end after ``shutdown()`` when all is read."""
        with suppress(ShutDown):
            while (entries := await self._until(self._head.ahead, None)) is not None:
                for entry in entries:
                    yield self._head.decode([entry])[0]
                    if not await self._moved(self._head.advance, [entry[0]]):  # another object was faster
                        break

    async def close(self) -> None:
        """Close this object; its waiting calls and all later ones raise ``ClosedError``. The reader itself stays."""
        if is_dropped():
            return
        with suppress(ClosedError):
            await self._begin(self.reader.close)

    # --- the parts of the verbs

    async def _popped(
        self,
        many: Many,
        at_least: int,
        max_bytes: int | None,
        *,
        blocking: bool,
        timeout: float | None,  # noqa: ASYNC109
    ) -> list[T]:
        head = self._head
        left = timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if blocking and many.items:
                enough = partial(self._enough, many, max_bytes)
                entries = await self._until(partial(head.if_enough, at_least, enough), left)
                if entries is None:
                    raise Empty(at_least, timeout)
            else:
                entries = await self._begin(head.first, many.items, max_bytes)
            found: list[T] | None = await self._passed(entries) if entries else []
            if found is not None:
                return found
            left = None if deadline is None else max(0.0, deadline - time.monotonic())  # another object was faster

    def _enough(self, many: Many, max_bytes: int | None) -> list[Entry] | None:
        entries = self._head.first(many.items, max_bytes)
        return entries if len(entries) >= many.least else None

    async def _until(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:  # noqa: ASYNC109
        rest = self._head.rest(timeout)
        if rest > 0:
            await asyncio.sleep(rest)
            timeout = None if timeout is None else timeout - rest
        found: R | None = await self._waits(attempt, timeout)
        return found

    async def _moved(self, fn: Callable[..., Any], *args: Any) -> Any:
        async with self._moving:
            return await self._begin(fn, *args)

    async def _passed(self, entries: list[Entry]) -> list[T] | None:
        """Pass the next entries, and return their items; None if they are no longer the next."""

        def undo(taken: tuple[list[T], Move]) -> bool:
            return self._head.steps.retreat(taken[1], entries[: len(taken[0])])

        async with self._moving:
            loop = asyncio.get_running_loop()
            passing = Call(loop.create_future(), partial(self._head.pass_by, entries), undo=undo)
            self._courier.carry(passing)
            try:
                await asyncio.shield(passing.future)
            except asyncio.CancelledError:
                await _end_of(passing.future)
                if passing.future.exception() or passing.future.result() is None:
                    raise
                undoing = self._courier.take_back(passing)
                await _end_of(undoing)
                if undoing.exception() is None and undoing.result():
                    raise
            taken: tuple[list[T], Move] | None = passing.future.result()
            self._courier.claim(passing, taken)
        return None if taken is None else taken[0]


async def _end_of(future: "asyncio.Future[Any]") -> None:
    """Wait for the end of a step that must not be abandoned, even if this is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
