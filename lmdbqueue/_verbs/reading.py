"""What it means to read a queue, whatever engine keeps the items, and whoever reads: the queue, or a named reader.

Owns: decoding after the transactions, waiting, the order in which a reading verb uses its engine. Law: no item leaves
before it was decoded, and nothing of a user's code (``loads``) runs inside a transaction of the library. Must not know:
LMDB, files, what else there is than the items in their order.

An engine is a subclass with the abstract methods; each is one atomic step. ``pop`` is three of their steps: read the
first items, decode them, remove *just those*. If another consumer was faster the removal does nothing and ``pop``
begins anew, so no item goes to two consumers, and one that cannot be decoded never left.
"""

import operator
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, overload

from lmdbqueue._errors import DecodeError, Empty, ShutDown

T = TypeVar("T")
R = TypeVar("R")

Entry = tuple[bytes, bytes]  # an engine's key and value of an item; only the engine looks inside


class Reading(ABC, Generic[T]):
    """Items in their order, of which the first are read and leave."""

    loads: Callable[[bytes], T]

    _is_shut_down = False
    _is_drained = False  # shut down at once: not even the items that are there are handed out

    # --- the engine

    @abstractmethod
    def count(self) -> int:
        """Return how many items are in the queue, at a cost that does not depend on it."""

    @abstractmethod
    def _first(self, n: int) -> list[Entry]:
        """Return the first ``n`` entries, or as many as there are."""

    def _candidates(self, n: int) -> list[Entry]:
        """Do as ``_first``, for entries that ``_remove`` will be asked for: they need not be durable yet."""
        return self._first(n)

    @abstractmethod
    def _remove(self, keys: list[bytes]) -> int:
        """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""

    @abstractmethod
    def _delete(self, n: int) -> int:
        """Remove the first ``n`` items, or as many as there are; return how many went."""

    @abstractmethod
    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, found undamaged (``CorruptItemError``)."""

    @abstractmethod
    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries, found undamaged (``CorruptItemError``)."""

    @abstractmethod
    def _refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""

    @abstractmethod
    def _listen(self) -> int:
        """Return a ticket for ``_sleep``. Raises ``ClosedError``."""

    @abstractmethod
    def _sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed after the ticket was given, or for ``timeout`` s, or a while."""

    # --- the verbs

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
        return self._shaped(items, self._look, blocking=blocking, timeout=timeout)

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
        return self._shaped(items, self._take, blocking=blocking, timeout=timeout)

    def delete(self, items: int = 1) -> int:
        """Remove the first items without decoding them; return how many there were, at most ``items``."""
        self._refuse_if_closed()
        n = checked_count(items)
        return self._delete(n) if n else 0

    def __len__(self) -> int:
        """Return how many items are in the queue."""
        return self.count()

    # --- what the verbs are made of

    def _shaped(
        self, items: int, get: Callable[[int, int], list[T] | None], *, blocking: bool, timeout: float | None
    ) -> T | list[T] | None:
        """Give the result of ``get``, ``_look`` or ``_take``, the shape that the verbs promise."""
        self._refuse_if_closed()
        n = checked_count(items)
        if n == 0:
            return []
        if blocking:
            found = self._await(lambda: self._if_enough(n, get), timeout)
            if found is None:
                raise Empty(n, timeout)
        else:
            found = get(n, 0) or []
        return shaped(n, found)

    def _look(self, n: int, least: int) -> list[T] | None:
        """Return the first ``n`` items; None if there are fewer than ``least``."""
        entries = self._first(n)
        return self._decode(entries) if len(entries) >= least else None

    def _take(self, n: int, least: int) -> list[T] | None:
        """Remove and return the first ``n`` items; None, and nothing removed, if there are fewer than ``least``."""
        taken = self._take_entries(n, least)
        return None if taken is None else taken[1]

    def _take_entries(self, n: int, least: int) -> tuple[list[Entry], list[T]] | None:
        """Do as ``_take``; return the entries, for ``_put_back``, and the items."""
        while len(entries := self._candidates(n)) >= least:
            if not entries:
                if not self._first(1):  # empty, and durably so
                    return [], []
                continue
            items = self._decode(entries)
            if self._remove([key for key, _ in entries]):
                return entries, items
        return None

    def _if_enough(self, n: int, get: Callable[[int, int], R | None]) -> R | None:
        """Return what ``get`` gives for ``n`` items, or None if they are not there (yet)."""
        if self._is_drained:
            raise ShutDown
        found = get(n, n) if n == 1 or self.count() >= n else None  # counting is cheaper than to read too few
        if found is None and self._is_shut_down:
            raise ShutDown
        return found

    def _await(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:
        """Return what ``attempt`` returns as soon as that is not None; None after ``timeout`` seconds."""
        if timeout is not None and timeout < 0:
            message = "'timeout' must be a non-negative number"
            raise ValueError(message)
        result = attempt()
        if timeout == 0:
            return result
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while result is None:
            ticket = self._listen()
            result = attempt()
            if result is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._sleep(ticket, left)
        return result

    def _decode(self, entries: list[Entry]) -> list[T]:
        payloads = self._payloads(entries)
        items: list[T] = []
        try:
            for payload in payloads:  # by no map, which takes a StopIteration of loads for its own end
                items.append(self.loads(payload))  # noqa: PERF401  (a comprehension would not say how far it came)
        except Exception as error:
            seq, payload = self._open_payload(entries[len(items)])
            raise _decode_error(seq, payload, error) from error
        return items


def _decode_error(seq: int, payload: bytes, error: Exception) -> DecodeError:
    return DecodeError(seq, payload, f"{type(error).__name__}: {error}")


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
