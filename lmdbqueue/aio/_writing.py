"""The verbs of ``_verbs.writing``, awaited.

Owns: pushing and browsing for an event loop. Law: a verb means what its namesake without ``await`` means. Must
not know: threads, commits.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from lmdbqueue._base.errors import CorruptItemError, DecodeError
from lmdbqueue._base.values import Number
from lmdbqueue._verbs.encoding import Key, how_to_push, payload_of, payloads_of
from lmdbqueue._verbs.reading import Many
from lmdbqueue._verbs.writing import OnError, checked_on_error, decoded, encoded_apart, told_of
from lmdbqueue.aio._calls import Calls
from lmdbqueue.aio._jobs import Push, Wanted

T = TypeVar("T")


class AsyncWriting(Calls[T]):
    """The verbs that add, find and remove items, awaited."""

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
            headers: Strings by name, stored with each item.
            priority: -128 to 127. Lower leaves sooner.

        Returns:
            The sequence number of the item, or the ``range`` of numbers for a list; with ``unique`` numbers with
            ``is_stored``.

        Raises:
            Full, TypeError, OptionError, ShutDown: As ``PersistentQueue.push``; nothing was stored.
        """
        self._head.refuse_push()
        dumps = self.queue.dumps
        if (
            delay != 0
            or unique is not None
            or headers is not None
            or priority != 0
            or expires is not None
            or replace is not False
        ):
            how = partial(how_to_push, delay=delay, replace=replace, expires=expires, headers=headers)
            payloads, push = encoded_apart(dumps, items, unique, partial(how, priority=priority))
            given = await self._carried(Push(self._future(), payloads, push)) if payloads else []
            return told_of(given, items, unique)
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

    async def _popped(
        self,
        many: Many,
        at_least: int,
        max_bytes: int | None,
        *,
        blocking: bool,
        timeout: float | None,  # noqa: ASYNC109
    ) -> list[T]:
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
