"""What each verb means, whatever engine keeps the items.

Owns: checking arguments, encoding before and decoding after the transactions, waiting, the order in
which a verb uses its engine. Law: no item leaves before it was decoded, and nothing of a user's code
(``dumps``, ``loads``) runs inside a transaction of the library. Must not know: LMDB, files.

An engine is a subclass with the few methods that raise ``NotImplementedError`` here; each is one
atomic step. ``pop`` is three of their steps: read the first items, decode them, remove *just those*.
If another consumer was faster the removal does nothing and ``pop`` begins anew, so no item goes to
two consumers, and one that cannot be decoded never left.
"""

import operator
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

from lmdbqueue._errors import DecodeError, Empty, ShutDown
from lmdbqueue._format import MAX_PAYLOAD

_CENTURY = 100 * 365 * 86400.0  # seconds

T = TypeVar("T")
R = TypeVar("R")

Entry = tuple[bytes, bytes]  # an engine's key and value of an item; only the engine looks inside
Key = str | bytes  # of ``unique``


class Verbs(ABC, Generic[T]):
    """A persistent FIFO queue: items leave in the order in which they were pushed.

    Safe to use from many threads and processes at once. Every verb is one atomic step, durable when
    it returns.
    """

    dumps: Callable[[T], bytes]
    loads: Callable[[bytes], T]
    maxsize: int

    _is_shut_down = False
    _is_drained = False  # shut down at once: not even the items that are there are handed out

    # --- the engine

    @abstractmethod
    def count(self) -> int:
        """Return how many items are in the queue, at a cost that does not depend on it."""

    @abstractmethod
    def _append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""

    @abstractmethod
    def _first(self, n: int) -> list[Entry]:
        """Return the first ``n`` entries, or as many as there are."""

    def _candidates(self, n: int) -> list[Entry]:
        """Do as ``_first``, for entries that ``_remove`` will be asked for: they need not be durable yet."""
        return self._first(n)

    @abstractmethod
    def _since(self, place: bytes) -> list[Entry]:
        """Return some entries behind that whose key is ``place``, b"" for all; none only if there are none."""

    @abstractmethod
    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        """Append payloads that wait for ``delay`` s, and whose keys (b"" for none) no other item may have.

        Return their numbers, or those of the items that have the keys. All or none (``Full``).
        """

    @abstractmethod
    def _remove(self, keys: list[bytes]) -> int:
        """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""

    @abstractmethod
    def _put_back(self, entries: list[Entry]) -> None:
        """Undo ``_remove``: the items have their old numbers again, whatever has left after them."""

    @abstractmethod
    def _delete(self, n: int) -> int:
        """Remove the first ``n`` items, or as many as there are; return how many went."""

    @abstractmethod
    def _clear(self, *, all: bool) -> int:  # noqa: A002  (as the verb has it)
        """Remove all items, with ``all`` those too that do not wait; return how many went."""

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

    @abstractmethod
    def _wake(self) -> None:
        """End the sleep of every waiter."""

    # --- the verbs of python-persistent-queue

    @overload
    def push(self, items: T | list[T], *, delay: float = 0.0, unique: None = None) -> int | range: ...

    @overload
    def push(
        self, items: T | list[T], *, delay: float = 0.0, unique: Key | Sequence[Key | None]
    ) -> int | list[int]: ...

    def push(
        self, items: T | list[T], *, delay: float = 0.0, unique: Key | Sequence[Key | None] | None = None
    ) -> int | range | list[int]:
        """Append an item, or each item of a list, as one atomic step.

        A list (not a tuple, which is an item) is many items; ``[]`` does nothing. Returns the
        sequence number given to the item, or the ``range`` of them for a list. Raises ``Full`` at
        once when ``maxsize`` or ``max_bytes`` would be exceeded (nothing is stored; ``put`` waits
        instead), ``TypeError`` when ``dumps`` returns no bytes, ``ShutDown`` after ``shutdown()``.

        ``delay``: seconds until the items can be seen; until then they are no part of ``len``, and then they
        come before what waits, in the order in which they came due. It is kept on the wall clock, through
        restarts. ``unique``: a key, str or bytes, of the item; for a list, one for each item, None for
        those without. While an item with that key waits, is leased or delayed, the new one is not stored
        and the number of the old one is returned. Numbers of a list with keys come as a list.
        """
        self._refuse_if_closed()
        self._refuse_after_shutdown()
        if delay or unique is not None:
            return self._push_apart(items, delay, unique)
        if not isinstance(items, list):
            return self._append(self._encode([items])).start
        if not items:
            return range(0)
        return self._append(self._encode(items))

    def _push_apart(
        self, items: T | list[T], delay: float, unique: Key | Sequence[Key | None] | None
    ) -> int | range | list[int]:
        """Do as ``push``, for items with a delay or with keys."""
        checked_delay(delay)
        if not isinstance(items, list):
            return self._append_apart(self._encode([items]), delay, [digest(unique)])[0]  # type: ignore[arg-type]
        keys = [None] * len(items) if unique is None else unique
        if isinstance(keys, (str, bytes)) or len(keys) != len(items):
            message = f"a list of {len(items)} items needs a list of as many keys"
            raise ValueError(message)
        numbers = self._append_apart(self._encode(items), delay, list(map(digest, keys))) if items else []
        if unique is not None:
            return numbers
        return range(numbers[0], numbers[-1] + 1) if numbers else range(0)

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

    def clear(self, all: bool = False) -> None:  # noqa: A002  (the name that says it)
        """Remove all items that wait; with ``all`` also those that are leased, delayed or dead.

        Their sequence numbers are not given again. Who holds a lease finds it expired.
        """
        self._clear(all=all)

    def __len__(self) -> int:
        """Return how many items are in the queue."""
        return self.count()

    def __iter__(self) -> Iterator[T]:
        """Browse from the head to the tail and remove nothing.

        Items that others remove or push meanwhile may be seen or not; each is seen once, in order.
        No transaction is held between two items.
        """
        place = b""
        while entries := self._since(place):
            for entry in entries:
                place = entry[0]
                yield self._decode([entry])[0]

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

    def _refuse_after_shutdown(self) -> None:
        if self._is_shut_down:
            raise ShutDown

    def _encode(self, items: list[T]) -> list[bytes]:
        payloads = list(map(self.dumps, items))
        for index, payload in enumerate(payloads):
            if type(payload) is not bytes:
                payloads[index] = _as_bytes(payload)
            if len(payload) > MAX_PAYLOAD:
                message = f"an item of {len(payload):,} bytes; at most {MAX_PAYLOAD:,} can be stored"
                raise ValueError(message)
        return payloads

    def _decode(self, entries: list[Entry]) -> list[T]:
        payloads = self._payloads(entries)
        items: list[T] = []
        try:
            items.extend(map(self.loads, payloads))
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


def checked_delay(delay: float) -> None:
    """Raise ``ValueError`` for what is no number of seconds to wait."""
    if not 0 <= delay < _CENTURY:
        message = f"a delay is a non-negative number of seconds, less than a century, and not {delay!r}"
        raise ValueError(message)


def digest(key: Key | None) -> bytes:
    """Return the 16 bytes that stand for a key of ``unique``, b"" for none."""
    if key is None:
        return b""
    if not isinstance(key, (str, bytes)):
        message = f"a unique key is a str or bytes, not {type(key).__name__}"
        raise TypeError(message)
    import hashlib  # noqa: PLC0415  (for who uses keys, not for who imports)

    data = b"s" + key.encode() if isinstance(key, str) else b"b" + key
    return hashlib.blake2b(data, digest_size=16).digest()


def _as_bytes(payload: object) -> bytes:
    try:
        return bytes(memoryview(payload))  # type: ignore[arg-type]
    except TypeError:
        message = f"dumps must return bytes or the like, not {type(payload).__name__}"
        raise TypeError(message) from None
