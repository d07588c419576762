"""The verbs of ``_verbs.reading``, awaited: of a queue, and of a named reader.

Owns: arguments and results of ``peek``, ``pop`` and their kin. Law: a verb means what its namesake without ``await``
means. Must not know: threads, commits.
"""

from asyncio import Future
from collections.abc import Callable
from functools import partial
from operator import index
from typing import Any, Generic, Literal, TypeVar, overload

from lmdbqueue._base.errors import Empty
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.options import VERBS, check
from lmdbqueue._verbs.reading import Many, checked_many, shaped

T = TypeVar("T")
R = TypeVar("R")


class AsyncReading(Generic[T]):
    """Items in their order, and the verbs that read the first ones and remove them."""

    _head: Head[T]
    _begin: "Callable[..., Future[Any]]"  # begins a call outside of the loop

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
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The item, or None if the queue is empty; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.peek``.
        """
        check(VERBS, items=items, blocking=blocking, timeout=timeout)
        n = index(items)
        least = max(1, n) if blocking else 1
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
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The item, or None if the queue is empty; or a list.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.pop``; nothing was removed.
        """
        check(VERBS, items=items, blocking=blocking, timeout=timeout)
        n = index(items)
        least = max(1, n) if blocking else 1
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
            at_least: The number of items to wait for with ``blocking``. One that cannot be decoded counts, too, and
                ends the list, which may then be shorter, since those behind it are not returned.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The items; an empty list if there are none.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.peek_many``.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking, timeout=timeout)
        if not blocking or not many.items:
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
            at_least: The number of items to wait for with ``blocking``. One that cannot be decoded counts, too, and
                ends the list, which may then be shorter, since those behind it are not returned.
            max_bytes: Bytes of payloads, at most; one item is returned in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The items; an empty list if there are none.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``PersistentQueue.pop_many``; nothing was removed.
        """
        many = checked_many(items, at_least, max_bytes, blocking=blocking, timeout=timeout)
        return await self._popped(many, at_least, max_bytes, blocking=blocking, timeout=timeout)

    # --- the parts of the verbs, for a queue and for a reader

    async def _call(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(*args)``, which must not be called in the loop."""
        result: R = await self._begin(fn, *args)
        return result

    async def _until(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:  # noqa: ASYNC109
        """Repeat ``attempt`` until it does not return None, and return its result; None after ``timeout`` seconds."""
        raise NotImplementedError

    async def _popped(
        self,
        many: Many,
        at_least: int,
        max_bytes: int | None,
        *,
        blocking: bool,
        timeout: float | None,  # noqa: ASYNC109
    ) -> list[T]:
        """Return items that are removed, or passed; none of them if the caller is cancelled."""
        raise NotImplementedError
