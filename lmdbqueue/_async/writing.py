"""The verbs of ``_verbs.reading`` and ``_verbs.writing``, awaited.

Owns: pushing, reading and browsing for an event loop. Law: a verb means what its namesake without ``await`` means. Must
not know: threads, commits.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, overload

from lmdbqueue._async.calls import Calls
from lmdbqueue._async.jobs import Push, Wanted
from lmdbqueue._errors import CorruptItemError, DecodeError, Empty
from lmdbqueue._values import Number
from lmdbqueue._verbs.encoding import Key, how_to_push, payload_of, payloads_of
from lmdbqueue._verbs.reading import checked_count, checked_many, shaped
from lmdbqueue._verbs.writing import OnError, checked_on_error, decoded, push_apart

T = TypeVar("T")


class AsyncWriting(Calls[T]):
    """The verbs of python-persistent-queue, awaited, and what goes with them."""

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
