"""The verbs that read: of a queue, and of a named reader, which has its position in the place of the queue's head.

Owns: arguments and results of ``peek``, ``pop`` and ``delete``. Law: no item leaves before it was decoded. Must not
know: how items are kept, what else there is than the items in their order.
"""

import operator
import sys
from typing import Any, Generic, Literal, TypeVar, overload

from lmdbqueue._verbs.head import Head

T = TypeVar("T")


class Reading(Generic[T]):
    """Items in their order, of which the first are read and leave."""

    _head: Head[T]

    @overload
    def peek(self, items: Literal[1] = 1, blocking: bool = False, timeout: float | None = None) -> T | None: ...

    @overload
    def peek(self, items: Literal[0], blocking: bool = False, timeout: float | None = None) -> list[T]: ...

    @overload
    def peek(self, items: int, blocking: bool = False, timeout: float | None = None) -> Any: ...

    def peek(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:
        """Return the first items and leave them in the queue.

        With ``items=1`` the item, or None when the queue is empty; with 0 ``[]``; else a list of at
        most that many. ``blocking=True`` waits until there are ``items`` of them and raises ``Empty``
        after ``timeout`` seconds. Raises ``DecodeError`` or ``CorruptItemError`` for what cannot be
        decoded or is damaged, and ``ShutDown`` instead of waiting after ``shutdown()``.
        """
        head, n = self._head, checked_count(items)
        if n == 0:
            head.refuse_if_closed()
            return []
        found = head.awaited(n, head.look, timeout) if blocking else head.look(n, 0) or []
        return found if n != 1 else found[0] if found else None

    @overload
    def pop(self, items: Literal[1] = 1, blocking: bool = False, timeout: float | None = None) -> T | None: ...

    @overload
    def pop(self, items: Literal[0], blocking: bool = False, timeout: float | None = None) -> list[T]: ...

    @overload
    def pop(self, items: int, blocking: bool = False, timeout: float | None = None) -> Any: ...

    def pop(self, items: int = 1, blocking: bool = False, timeout: float | None = None) -> Any:
        """Return the first items and remove them, as one atomic step.

        Arguments, results and errors are those of ``peek``. What cannot be decoded stays where it
        is, and so does what was asked for together with it. The removal is durable when this
        returns: a process that dies before it used what it got has lost it. Whoever cannot afford
        that peeks, works, and then deletes.
        """
        head, n = self._head, checked_count(items)
        if n == 0:
            head.refuse_if_closed()
            return []
        taken = head.awaited(n, head.take, timeout) if blocking else head.take(n, 0)
        found = taken[1] if taken else []
        return found if n != 1 else found[0] if found else None

    def delete(self, items: int = 1) -> int:
        """Remove the first items without decoding them; return how many there were, at most ``items``."""
        n = checked_count(items)
        if n == 0:
            self._head.refuse_if_closed()
            return 0
        return self._head.delete(n)

    def __len__(self) -> int:
        """Return how many items are in the queue."""
        return self._head.count()


def head_of(reading: Reading[T]) -> Head[T]:
    """Return from where a queue or a reader reads, for who waits and takes in another way than its verbs."""
    return reading._head  # noqa: SLF001  (the one way in)


def shaped(n: int, found: list[T]) -> T | list[T] | None:
    """Give items that ``n`` were asked of the shape that the verbs promise."""
    if n == 1:
        return found[0] if found else None
    return found


def checked_count(items: int) -> int:
    """Return the number of items that was asked for; raise ``TypeError`` or ``ValueError`` if it is none."""
    n = operator.index(items)
    if n < 0:
        message = f"the number of items must not be negative, and it is {n}"
        raise ValueError(message)
    return min(n, sys.maxsize)
