"""``queue.reader(name)``: a named reader, for a program that reads the whole queue at its own pace.

Owns: the verbs that only a reader has, and when it lets items gather. Law: a reader's verbs mean the same as the
queue's own, with its position in place of the head. Must not know: how positions are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from lmdbqueue._base.errors import ClosedError, ShutDown
from lmdbqueue._base.values import Entry, ReaderStats, Start
from lmdbqueue._verbs.engine import Engine, Move
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.options import VERBS, check
from lmdbqueue._verbs.reading import Reading, head_of

T = TypeVar("T")
R = TypeVar("R")

_AHEAD: Final = 100  # items that iteration reads at a time
_SHARE: Final = 100  # a reader that waits among writers rests this many times longer than its move took
_GATHERING: Final = 0.05  # seconds that it rests at most


class Position(Head[T]):
    """The position of a named reader, as the head from which it reads."""

    def __init__(self, head: Head[T], name: str) -> None:
        super().__init__(head.engine, head.loads)
        self.name = name
        self.steps = head.engine.reader(name)
        self.is_closed = False
        self._queue = head
        self._has_all = False  # whether its last reading reached the end
        self._gathers = False  # whether it lets items gather, since other processes write
        self._rests_until = 0.0  # on time.monotonic()

    def decode(self, entries: list[Entry]) -> list[T]:
        """Return the items of the entries, as the queue does."""
        return self._queue.decode(entries)

    def count(self) -> int:
        """Return the number of items that it has not passed."""
        self.refuse_if_closed()
        return self.steps.lag()

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the next ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""
        self.refuse_if_closed()
        entries = self.steps.first(n, max_bytes)
        self._has_all = len(entries) < n
        return entries

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Like ``first``, for entries that will be passed: they need not be durable yet."""
        self.refuse_if_closed()
        entries = self.steps.candidates(n, max_bytes)
        self._has_all = len(entries) < n
        return entries

    def take(self, n: int, least: int, max_bytes: int | None = None) -> tuple[list[Entry], list[T]] | None:
        """Pass at most the next ``n`` items; return None, and pass none, if there are fewer than ``least``."""
        return self.engine.one_call(self._take, n, least, max_bytes)

    def _take(self, n: int, least: int, max_bytes: int | None) -> tuple[list[Entry], list[T]] | None:
        while len(entries := self.candidates(n, max_bytes)) >= least:
            if not entries:
                if not self.first(1):  # there are none, and that is durable
                    return [], []
                continue
            items = self.decode_some(entries)
            entries = entries[: len(items)]
            if self.advance([key for key, _ in entries]):
                return entries, items
        return None

    def delete(self, n: int) -> int:
        """Pass at most the next ``n`` items undecoded; return their number."""
        self.refuse_if_closed()
        begin = time.monotonic()
        passed = self.steps.delete(n)
        self._moved(passed, time.monotonic() - begin)
        return passed

    def advance(self, keys: list[bytes]) -> Move | None:
        """Pass the next items if their keys are ``keys``; return the move, None if they are not."""
        self.refuse_if_closed()
        begin = time.monotonic()
        move = self.steps.advance(keys)
        self._moved(len(keys) if move else 0, time.monotonic() - begin)
        return move

    def pass_by(self, entries: list[Entry]) -> tuple[list[T], Move] | None:
        """Pass the next entries, up to one that cannot be decoded; return their items, and the move, to undo it.

        None: they are not the next.
        """
        self.refuse_if_closed()
        items = self.decode_some(entries)
        move = self.advance([key for key, _ in entries[: len(items)]])
        return None if move is None else (items, move)

    def ahead(self) -> list[Entry] | None:
        """Return some of the next entries, for an iteration; None if there are none yet. Raises ``ShutDown``."""
        return self.if_enough(1, lambda: self.first(_AHEAD) or None)

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` if the reader, or its queue, was closed."""
        self.engine.refuse_if_closed()
        if self.is_closed:
            raise ClosedError(f"reader {self.name!r} of {self.engine.name!r}")

    # --- gathering

    def wait(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:
        """Rest while items gather, then wait as every head does."""
        rest = self.rest(timeout)
        if rest > 0:
            time.sleep(rest)
            timeout = None if timeout is None else timeout - rest
        return super().wait(attempt, timeout)

    def rest(self, timeout: float | None) -> float:
        """Return the seconds, within ``timeout``, for which items may gather."""
        rest = self._rests_until - time.monotonic()
        return rest if timeout is None else min(rest, timeout)

    def _moved(self, passed: int, took: float) -> None:
        self._gathers = self.engine.is_crowded() or (self._gathers and passed > 1)
        rest = min(_GATHERING, took * _SHARE) if self._gathers and self._has_all else 0.0
        self._rests_until = time.monotonic() + rest


class Reader(Reading[T]):
    """A named reader of a queue: a durable position, with the queue's verbs for the items after it.

    ``peek``, ``pop``, ``delete``, ``len`` and waiting work as for the queue, but ``pop`` and ``delete`` move only this
    reader. They can be part of ``queue.transaction()``. ``for item in reader`` waits for items, and passes each one
    when the loop asks for the next, so a loop that dies in its body sees that item again; it ends after
    ``queue.shutdown()`` when everything is read. Objects of the same name, in any process, share the position: ``pop``
    gives each item to one of them. ``queue.reader(name)`` makes readers.

    Each move of a reader is a commit, for which writers wait. So that a reader that keeps up does not slow down the
    writers of other processes, a blocking verb that has read everything lets items gather before it moves again: for
    a hundred times the duration of its last move, but for at most 50 ms.
    """

    __module__ = "lmdbqueue"  # set here, since the public module imports it only at first use

    _head: Position[T]

    def __init__(self, queue: Reading[T], name: str) -> None:
        self.queue = queue
        self.name = name
        self._head = Position(head_of(queue), name)
        self._engine: Engine = self._head.engine

    def __repr__(self) -> str:
        state = ", closed" if self._head.is_closed else ""
        return f"<{type(self).__name__} {self.name!r} of {self.queue!r}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same reader in the process that unpickles it."""
        return type(self), (self.queue, self.name)

    def __iter__(self) -> Iterator[T]:
        """Wait for items, and pass each when the next is asked for."""
        while (entries := self._next_entries()) is not None:
            for entry in entries:
                yield self._head.decode([entry])[0]
                if not self._head.advance([entry[0]]):  # another object of the same reader was faster
                    break

    def _next_entries(self) -> list[Entry] | None:
        """Wait for entries; return None when there will be no more."""
        try:
            return self._head.wait(self._head.ahead, None)
        except ShutDown:
            return None

    def count(self) -> int:
        """Return the number of items that this reader has not passed: its lag."""
        return self._head.count()

    @property
    def position(self) -> int:
        """The sequence number of the next item, or of the next push if everything is read."""
        return self._stats().position

    @property
    def skipped(self) -> int:
        """The number of items that left the queue before this reader had passed them, since its creation."""
        return self._stats().skipped

    def _stats(self) -> ReaderStats:
        self._head.refuse_if_closed()
        return self._head.steps.stats()

    def seek(self, where: Start) -> None:
        """Move the reader, back to items that are still there (see ``retain``) or forward; durable when this returns.

        Args:
            where: The sequence number of an item, or of the next one that is there; ``"oldest"`` or ``"newest"``. Items
                that are skipped forward count as passed.

        Raises:
            GoneError: The reader was dropped.
        """
        check(VERBS, where=where)
        self._head.refuse_if_closed()
        self._head.steps.seek(where)

    def close(self) -> None:
        """Close this object; its waiting calls and all later ones raise ``ClosedError``. The reader itself stays."""
        if not self._head.is_closed:
            self._head.is_closed = True
            with suppress(ClosedError):
                self._engine.wake()


def position_of(reader: Reader[T]) -> Position[T]:
    """Return the position of a reader, for code that waits and passes differently than its verbs do."""
    return reader._head  # noqa: SLF001  (as ``head_of``)
