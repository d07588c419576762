"""The verbs that read, of a queue and of a named reader, whose position takes the place of the queue's head.

Owns: arguments and results of ``peek``, ``pop``, ``delete`` and their kin. Law: no item leaves before it is decoded.
Must not know: how items are kept, or anything beyond the items in their order.
"""

from __future__ import annotations

from operator import index
from typing import Any, Generic, Literal, TypeVar, overload

from lmdbqueue._base.values import NamedTuple
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.options import VERBS, check

T = TypeVar("T")


class Reading(Generic[T]):
    """Items in their order, and the verbs that read the first ones and remove them."""

    _head: Head[T]

    @overload
    def peek(  # type: ignore[overload-overlap]  # there is no type for "every int but 1"
        self, items: Literal[1] = 1, blocking: bool = False, timeout: float | None = None
    ) -> T | None: ...

    @overload
    def peek(self, items: int, blocking: bool = False, timeout: float | None = None) -> list[T]: ...

    def peek(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:
        """Return the first items and leave them in the queue.

        ``peek_many`` always returns a list.

        Args:
            items: The number of items, at most. 1 returns the item itself, any other number a list.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The item, or None if the queue is empty; or a list, which ends before an item that cannot be decoded.

        Raises:
            Empty: There were too few items for ``timeout`` seconds.
            DecodeError, CorruptItemError: The first item cannot be decoded, or is damaged; the error has its ``seq``.
            ShutDown: It would wait after ``shutdown()``.
        """
        check(VERBS, items=items, blocking=blocking, timeout=timeout)
        n = index(items)
        if n != 1:
            return self.peek_many(n, at_least=max(1, n) if blocking else 1, blocking=blocking, timeout=timeout)
        head = self._head
        found = head.awaited(1, lambda: head.look(1, 1), timeout) if blocking else head.look(1, 0)
        return found[0] if found else None

    @overload
    def pop(  # type: ignore[overload-overlap]  # as above
        self, items: Literal[1] = 1, blocking: bool = False, timeout: float | None = None
    ) -> T | None: ...

    @overload
    def pop(self, items: int, blocking: bool = False, timeout: float | None = None) -> list[T]: ...

    def pop(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:
        """Return the first items and remove them, as one atomic step.

        The removal is durable when this returns: if the process dies before it has used the items, they are lost. If
        you cannot afford that, use ``lease``.

        Args:
            items: The number of items, as for ``peek``.
            blocking: Whether to wait until there are ``items`` of them.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The item, None or a list, as ``peek``. An item that cannot be decoded stays, and so do those behind it.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``peek``; nothing was removed.
        """
        check(VERBS, items=items, blocking=blocking, timeout=timeout)
        n = index(items)
        if n != 1:
            return self.pop_many(n, at_least=max(1, n) if blocking else 1, blocking=blocking, timeout=timeout)
        head = self._head
        taken = head.awaited(1, lambda: head.take(1, 1), timeout) if blocking else head.take(1, 0)
        return taken[1][0] if taken and taken[1] else None

    def peek_many(
        self,
        items: int,
        *,
        at_least: int = 1,
        max_bytes: int | None = None,
        blocking: bool = False,
        timeout: float | None = None,
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
            The items; an empty list if there are none. The list ends before an item that cannot be decoded.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``peek``.
            ValueError: ``at_least`` is more than ``items``.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking, timeout=timeout)
        if not many.items:
            head.refuse_if_closed()
            return []
        if not blocking:
            return head.look(many.items, 0, max_bytes) or []
        return head.awaited(at_least, lambda: head.look(many.items, many.least, max_bytes), timeout)

    def pop_many(
        self,
        items: int,
        *,
        at_least: int = 1,
        max_bytes: int | None = None,
        blocking: bool = False,
        timeout: float | None = None,
    ) -> list[T]:
        """Return the first items as a list, even a single one, and remove them, as one atomic step.

        Durable when this returns, like ``pop``.

        Args:
            items: The number of items, at most.
            at_least: The number of items to wait for with ``blocking``. One that cannot be decoded counts, too, and
                ends the list, which may then be shorter, since those behind it are not returned.
            max_bytes: Bytes of payloads, at most; one item is taken in any case.
            blocking: Whether to wait until there are ``at_least`` items.
            timeout: With ``blocking``, seconds to wait at most; None: no limit.

        Returns:
            The items; an empty list if there are none. An item that cannot be decoded stays, and so do those behind it.

        Raises:
            Empty, DecodeError, CorruptItemError, ShutDown: As ``pop``; nothing was removed.
            ValueError: ``at_least`` is more than ``items``.
        """
        head, many = self._head, checked_many(items, at_least, max_bytes, blocking=blocking, timeout=timeout)
        if not many.items:
            head.refuse_if_closed()
            return []
        taken = (
            head.awaited(at_least, lambda: head.take(many.items, many.least, max_bytes), timeout)
            if blocking
            else head.take(many.items, 0, max_bytes)
        )
        return taken[1] if taken else []

    def delete(self, items: int = 1) -> int:
        """Remove the first items without decoding them; durable when this returns.

        On a full disk many items may be removed in several steps; a process that is killed between two leaves the rest.

        Args:
            items: The number of items, at most. After ``peek_many`` pass the ``len()`` of its result; if there are
                other consumers, use ``lease`` and ``ack`` instead.

        Returns:
            The number of items removed.
        """
        check(VERBS, items=items)
        n = index(items)
        if n == 0:
            self._head.refuse_if_closed()
            return 0
        return self._head.delete(n)

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return self._head.count()


def head_of(reading: Reading[T]) -> Head[T]:
    """Return the head of a queue or a reader, for code that waits and takes differently than the verbs do."""
    return reading._head  # noqa: SLF001  (the one way in)


def shaped(n: int, found: list[T]) -> T | list[T] | None:
    """Return items in the shape that ``peek(n)`` and ``pop(n)`` promise."""
    return found if n != 1 else found[0] if found else None


class Many(NamedTuple):
    """How many items a verb is to return."""

    items: int  # at most
    least: int  # none if there are fewer


def checked_many(items: int, at_least: int, max_bytes: int | None, *, blocking: bool, timeout: float | None) -> Many:
    """Return the numbers of items asked for; raise ``TypeError`` or ``ValueError`` if they make no sense."""
    check(VERBS, items=items, at_least=at_least, max_bytes=max_bytes, blocking=blocking, timeout=timeout)
    n, least = index(items), index(at_least)
    if least != 1 and not blocking:
        message = f"'at_least' must be 1 without blocking=True, not {least}: it is the number of items to wait for"
        raise ValueError(message)
    if least > n and n and blocking:
        message = f"'at_least' must be 1 to {n}, the number of items, not {least}"
        raise ValueError(message)
    return Many(n, least if max_bytes is None else 1)  # fewer may be as much as fits
