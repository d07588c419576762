"""The head: the place from which items are read and taken, in a queue or at the position of a named reader.

Owns: decoding outside of transactions, waiting, and the order in which a verb calls the engine. Law: no item leaves
before it is decoded. Must not know: how items are kept, who waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Generic, TypeVar

from lmdbqueue._base.errors import ClosedError, CorruptItemError, DecodeError, Empty, ShutDown, told
from lmdbqueue._base.values import Entry, NamedTuple
from lmdbqueue._verbs.options import VERBS, check

if TYPE_CHECKING:
    from lmdbqueue._verbs.engine import Engine


T = TypeVar("T")
R = TypeVar("R")


class Head(Generic[T]):
    """The head of a queue."""

    def __init__(self, engine: Engine, loads: Callable[[bytes], T]) -> None:
        self.engine = engine
        self.loads = loads

    # --- the steps that a reader overrides

    def count(self) -> int:
        """Return the number of items waiting here."""
        return self.engine.count()

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the first ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""
        return self.engine.first(n, max_bytes)

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Like ``first``, for entries that will be taken: they need not be durable yet."""
        return self.engine.candidates(n, max_bytes)

    def take(self, n: int, least: int, max_bytes: int | None = None) -> tuple[list[Entry], list[T]] | None:
        """Take at most the first ``n`` items; return None, and take nothing, if there are fewer than ``least``.

        An item that cannot be decoded ends it: the items before it are taken. If it is the first, its error is raised.
        """
        return self.engine.take(n, least, self.decode_some, max_bytes)

    def delete(self, n: int) -> int:
        """Remove at most the first ``n`` items undecoded; return their number."""
        return self.engine.delete(n)

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` if the object that this head belongs to is closed."""
        self.engine.refuse_if_closed()

    # --- reading

    def look(self, n: int, least: int, max_bytes: int | None = None) -> list[T] | None:
        """Return the first ``n`` items, up to one that cannot be decoded; None if there are fewer than ``least``."""
        entries = self.first(n, max_bytes)
        return self.decode_some(entries) if len(entries) >= least else None

    def decode_some(self, entries: list[Entry]) -> list[T]:
        """Return the items before the first unreadable one; if that is the first entry, raise as ``decode`` does."""
        try:
            return self.decode(entries)
        except (CorruptItemError, DecodeError):
            if len(entries) == 1:
                raise
        items = self.decode(entries[:1])
        with suppress(CorruptItemError, DecodeError):
            for entry in entries[1:]:
                items += self.decode([entry])
        return items

    def decode(self, entries: list[Entry]) -> list[T]:
        """Return the items of the entries. Raises ``CorruptItemError``, ``DecodeError``."""
        payloads = self.engine.payloads(entries)
        loads = self.loads
        items: list[T] = []
        try:
            for payload in payloads:  # not by a map, which would take a StopIteration of loads for its own end
                items.append(loads(payload))  # noqa: PERF401  (a comprehension would not say how far it came)
        except Exception as error:
            if len(items) == len(payloads) or self._can_be_had(payloads[len(items)]):
                raise  # a signal handler interrupted loads and raised it
            seq, payload = self.engine.opened(entries[len(items)])
            raise DecodeError(seq, payload, told(error)) from error
        return items

    def _can_be_had(self, payload: bytes) -> bool:
        with suppress(Exception):
            self.loads(payload)
            return True
        return False

    def sort_out(self, entries: list[Entry]) -> tuple[list[T], dict[bytes, str]]:
        """Return the items, and the keys of unreadable ones with the reasons."""
        try:
            return self.decode(entries), {}
        except (DecodeError, CorruptItemError):
            pass
        items: list[T] = []
        unreadable = {}
        for entry in entries:
            try:
                items += self.decode([entry])
            except (DecodeError, CorruptItemError) as error:
                unreadable[entry[0]] = _reason(error)
        return items, unreadable

    # --- waiting

    def awaited(self, n: int, get: Callable[[], R | None], timeout: float | None) -> R:
        """Return what ``get()`` returns once there are ``n`` items; raise ``Empty`` after ``timeout`` seconds."""
        self.refuse_if_closed()

        def attempt() -> R | None:
            return self.if_enough(n, get)

        found = self.wait(lambda: self.engine.one_call(attempt), timeout)
        if found is None:
            raise Empty(n, timeout)
        return found

    def if_enough(self, n: int, get: Callable[[], R | None]) -> R | None:
        """Return what ``get()`` returns, or None if there are not ``n`` items (yet). Raises ``ShutDown``."""
        if self.engine.is_drained:
            raise ShutDown
        is_shut_down = self.engine.is_shut_down  # asked before reading, so that all earlier pushes are seen
        found = get() if n == 1 or self.count() >= n else None  # counting is cheaper than reading too few
        if found is None and is_shut_down:
            raise ShutDown
        return found

    def fill(self, batch: Batch, timeout: float | None) -> None:
        """Wait for an item, at most ``timeout`` seconds; then, for at most ``linger``, until the batch is full."""

        def anything() -> bool | None:
            return self.if_enough(1, lambda: bool(self.candidates(1)) or None)

        if self.wait(anything, timeout):
            with suppress(ShutDown):
                self.wait(lambda: self.is_full(batch) or None, batch.linger)

    def is_full(self, batch: Batch) -> bool:
        """Return whether more items would not fit, or cannot come."""
        if self.engine.is_shut_down:
            return True
        count = self.count()
        if count >= batch.items or not count:  # taken by others
            return True
        if batch.max_bytes is None:
            return False
        found = self.candidates(batch.items, batch.max_bytes)
        return len(found) < count or sum(len(self.engine.opened(entry)[1]) for entry in found) >= batch.max_bytes

    def wait(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:
        """Repeat ``attempt`` until it does not return None, and return its result; None after ``timeout`` seconds."""
        result = attempt()
        if timeout == 0:
            return result
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while result is None:
            self.refuse_if_closed()
            ticket = self.engine.listen()
            result = attempt()
            if result is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self.engine.sleep(ticket, left)
        return result

    def refuse_push(self) -> None:
        """Raise ``ClosedError`` or ``ShutDown`` if the queue accepts no more pushes."""
        if self.engine.is_closed:
            raise ClosedError(self.engine.path)
        if self.engine.is_shut_down:
            raise ShutDown


class Batch(NamedTuple):
    """The size of the batch that a lease waits for."""

    items: int
    max_bytes: int | None
    linger: float  # seconds


def checked_batch(items: int, max_bytes: int | None, linger: float) -> Batch:
    """Return what a lease waits for; raise ``TypeError`` or ``ValueError`` for what cannot be."""
    check(VERBS, items=items, max_bytes=max_bytes, linger=linger)
    return Batch(index(items), max_bytes, linger)


def remaining(deadline: float | None) -> float | None:
    """Return the seconds until a deadline on ``time.monotonic()``."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def is_over(deadline: float | None) -> bool:
    """Return whether a deadline has passed."""
    return deadline is not None and time.monotonic() >= deadline


def _reason(error: DecodeError | CorruptItemError) -> str:
    return f"it cannot be decoded: {error.reason}" if isinstance(error, DecodeError) else "its checksum does not match"
