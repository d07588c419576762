"""A named reader, awaited.

Owns: the verbs of ``Reader`` for an event loop, and what cancelling one means. Law: each means what its namesake
there means; a read that is cancelled moves nothing. Must not know: threads, how positions are kept.

A pop is two steps. It waits for the next items, and may be cancelled there at any time; then the reader passes
them. Who is cancelled meanwhile sees that to its end and undoes it. One thing can forbid that: somebody else who has
the same reader has moved it on since, and would not get these items any more. Then the pop returns them, as if the
cancellation had come too late. Moves by one queue object never overlap, so they are not in each other's way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Literal, Self, TypeVar, overload

from lmdbqueue._errors import ClosedError, Empty, ShutDown
from lmdbqueue._values import Entry, Start
from lmdbqueue._verbs.engine import Move
from lmdbqueue._verbs.reader import Reader, position_of
from lmdbqueue._verbs.reading import Many, checked_count, checked_many, shaped

T = TypeVar("T")
Begin = Callable[..., "asyncio.Future[Any]"]  # what must not be called in the loop, with its arguments; ``undo``
Until = Callable[[Callable[[], Any], float | None], Awaitable[Any]]  # what an attempt gives, None after its timeout


class AsyncReader(Generic[T]):
    """A named reader of a queue: a ``Reader`` whose verbs are awaited.

    ``async for item in reader`` waits for items, and passes each one when the loop asks for the next. A cancelled
    ``pop`` moves nothing; if it had passed items, it moves back. There is one exception: if another object of the same
    reader has moved on meanwhile, the ``pop`` returns its items, and the cancellation comes too late.
    """

    def __init__(self, reader: Reader[T], begin: Begin, until: Until, moving: asyncio.Lock) -> None:
        self.reader = reader
        self._head = position_of(reader)
        self._begin = begin
        self._until = until
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
        """Return the next items without passing them.

        Args:
            items: The number of items, at most. 1 returns the item itself, any other number a list.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item, or None if there is none; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``Reader.peek``.
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
        """Return the next items and pass them; durable when it returns.

        Args:
            items: The number of items, at most. 1 returns the item itself, any other number a list.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: Seconds to wait at most; None: no limit.

        Returns:
            The item, or None if there is none; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``Reader.pop``; the reader has not moved.
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
        """Return the next items as a list, even a single one, without passing them.

        Args:
            items: The number of items, at most.
            at_least: The number of items to wait for with ``blocking``.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: Seconds to wait at most; None: no limit.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking)
        if not blocking or not many.items:
            return await self._begin(head.look, many.items, 0, max_bytes) or []
        look = partial(head.look, many.items, many.least, max_bytes)
        found: list[T] | None = await self._gathered(partial(head.if_enough, at_least, look), timeout)
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
        """Return the next items as a list, even a single one, and pass them; durable when it returns.

        Args:
            items: The number of items, at most.
            at_least: The number of items to wait for with ``blocking``.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: Seconds to wait at most; None: no limit.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking)
        left = timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if blocking and many.items:
                enough = partial(self._enough, many, max_bytes)
                entries = await self._gathered(partial(head.if_enough, at_least, enough), left)
                if entries is None:
                    raise Empty(at_least, timeout)
            else:
                entries = await self._begin(head.first, many.items, max_bytes)
            found: list[T] | None = await self._passed(entries) if entries else []
            if found is not None:
                return found
            left = None if deadline is None else max(0.0, deadline - time.monotonic())  # another was faster

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
            while True:
                for entry in await self._gathered(self._head.ahead, None):
                    yield self._head.decode([entry])[0]
                    if not await self._moved(self._head.advance, [entry[0]]):  # another was faster
                        break

    async def close(self) -> None:
        """Close this object; its waiting calls and all later ones raise ``ClosedError``. The reader itself stays."""
        with suppress(ClosedError):
            await self._begin(self.reader.close)

    # --- what the verbs are made of

    def _enough(self, many: Many, max_bytes: int | None) -> list[Entry] | None:
        entries = self._head.first(many.items, max_bytes)
        return entries if len(entries) >= many.least else None

    async def _gathered(self, attempt: Callable[[], Any], timeout: float | None) -> Any:  # noqa: ASYNC109
        rest = self._head.rest(timeout)
        if rest > 0:
            await asyncio.sleep(rest)
            timeout = None if timeout is None else timeout - rest
        return await self._until(attempt, timeout)

    async def _moved(self, fn: Callable[..., Any], *args: Any) -> Any:
        async with self._moving:
            return await self._begin(fn, *args)

    async def _passed(self, entries: list[Entry]) -> list[T] | None:
        """Pass entries that are the next, and return their items; None if they are not the next any more."""

        def undo(taken: tuple[list[T], Move]) -> bool:
            return self._head.steps.retreat(taken[1], entries[: len(taken[0])])

        async with self._moving:
            passing: asyncio.Future[tuple[list[T], Move] | None] = self._begin(self._head.pass_by, entries, undo=undo)
            try:
                await asyncio.shield(passing)
            except asyncio.CancelledError:
                await _end_of(passing)
                taken = None if passing.exception() else passing.result()
                if taken is None:
                    raise
                undoing = self._begin(undo, taken)
                await _end_of(undoing)
                if undoing.exception() is None and undoing.result():
                    raise
            taken = passing.result()
        return None if taken is None else taken[0]


async def _end_of(future: "asyncio.Future[Any]") -> None:
    """Wait for the end of a step that must not be abandoned, even if this is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
