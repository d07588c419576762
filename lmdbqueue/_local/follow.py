"""The present and future items of a queue, seen without taking them.

Owns: what a follower has seen; numbers beside items. Law: it removes nothing, sleeps on the bell like every waiter, and
returns each waiting item once; it misses items that others take before it reads them. Must not know: LMDB, who prints.

Most items arrive behind all others, so the last key seen is nearly all that must be remembered. Items with a delay or a
priority may arrive before it: they are recognized by the time in their trailer, from which on they could be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Generic, TypeVar

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptItemError, DecodeError
from lmdbqueue._base.values import Entry
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.reading import head_of
from lmdbqueue._verbs.writing import OnError, checked_on_error, decoded

T = TypeVar("T")
_MARGIN: Final = 10**9  # ns that a push may take from the time in its trailer to its commit


class Follower(Generic[T]):
    """A follower of a queue. ``new_only``: items that are already waiting do not count."""

    def __init__(self, queue: PersistentQueue[T], *, new_only: bool = False, on_error: OnError = "raise") -> None:
        self._on_error = checked_on_error(on_error)
        self._left: list[Entry] = []  # from the first undecodable entry on
        self._head = head_of(queue)
        self._engine = local_engine_of(queue)
        self._key = b""  # the last key seen
        self._looked = 0  # ns since 1970, when this last read the queue
        self._lately: dict[bytes, int] = {}  # recent keys that were seen, with the times of their items
        if new_only:
            while entries := self._engine.since(self._key):
                self._see(entries)
            self._looked = self._engine.clock().wall

    def wait(self, timeout: float) -> list[T]:
        """Return items that came since the last call; wait for some for ``timeout`` seconds, then return none."""
        entries = self._left or self._head.wait(self._look, timeout) or []
        self._left = []
        items: list[T] = []
        for number, entry in enumerate(entries):
            try:
                items += decoded(self._head, entry, self._on_error)
            except (DecodeError, CorruptItemError):
                if not items:
                    raise
                self._left = entries[number:]
                break
        return items

    def _look(self) -> list[Entry] | None:
        now = self._engine.clock().wall
        found = [] if self._engine.is_plain() else self._come_before()
        found += self._see(self._engine.since(self._key))
        if not found or found[-1][0] == self._key:
            self._looked = now
        self._lately = {key: time for key, time in self._lately.items() if time >= self._looked - _MARGIN}
        return found or None

    def _see(self, entries: list[Entry]) -> list[Entry]:
        if entries:
            self._key = max(self._key, entries[-1][0])
            self._lately.update((entry[0], self._engine.trailers([entry])[0].pushed_at) for entry in entries)
        return entries

    def _come_before(self) -> list[Entry]:
        """Return items that arrived since the last reading, but before the last key seen."""
        found: list[Entry] = []
        key = b""
        while (entries := self._engine.since(key)) and key < self._key:
            key = entries[-1][0]
            found += [
                entry
                for entry in entries
                if entry[0] < self._key
                and entry[0] not in self._lately
                and self._engine.trailers([entry])[0].pushed_at >= self._looked - _MARGIN
            ]
        return self._see(found)


def numbered(queue: PersistentQueue[T]) -> Iterator[tuple[int, bytes]]:
    """Browse as iteration does, and yield the numbers and bytes of the items."""
    return ((seq, payload) for seq, payload, _ in described(queue))


def described(queue: PersistentQueue[T]) -> Iterator[tuple[int, bytes, Mapping[str, str]]]:
    """Like ``numbered``, with their headers, too."""
    engine = local_engine_of(queue)
    key = b""
    while entries := engine.since(key):
        for entry in entries:
            (payload,) = engine.payloads([entry])
            yield _format.seq_of(entry[0]), payload, engine.trailers([entry])[0].headers
        key = entries[-1][0]
