"""What is in a queue and what comes into it, seen by somebody who takes nothing.

Owns: what a follower has seen; numbers beside items. Law: it removes nothing, sleeps on the bell as every waiter does,
and gives each item that waits once, in the order of places; what others take before it looks, it misses. Must not
know: LMDB, who prints.

Most items come behind all others, so the last place that was seen is all there is to remember. What was delayed comes
before all others, in the order in which it was due, which need not be the order in which it comes: of those the places
that are there are remembered.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from lmdbqueue import _format
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._values import Entry
from lmdbqueue._verbs.reading import head_of

T = TypeVar("T")


class Follower(Generic[T]):
    """Somebody who follows a queue. ``new_only``: what waits already does not count as coming."""

    def __init__(self, queue: PersistentQueue[T], *, new_only: bool = False) -> None:
        self._head = head_of(queue)
        self._engine = self._head.engine
        self._place = b""  # the last that was seen
        self._due: set[bytes] = set()  # places of items that were delayed and are there
        if new_only:
            tail = queue.stats().tail
            self._place = _format.place(tail - 1) if tail else b""
            self._came_due()

    def wait(self, timeout: float) -> list[T]:
        """Return items that came since the last call; wait for some for ``timeout`` seconds, then return none."""
        return self._head.decode(self._head.wait(self._look, timeout) or [])

    def _look(self) -> list[Entry] | None:
        found = self._came_due()
        while not found and (entries := self._engine.since(self._place)):
            self._place = entries[-1][0]
            found = [entry for entry in entries if not _format.due(entry[0])]
        return found or None

    def _came_due(self) -> list[Entry]:
        """Return what was delayed and was not seen yet."""
        found: list[Entry] = []
        there: set[bytes] = set()
        place = _format.place(0)  # which stands before them, all others behind
        entries = self._engine.first(2)
        while entries and any(_format.due(key) for key, _ in entries):
            entries = self._engine.since(place)
            delayed = [entry for entry in entries if _format.due(entry[0])]
            found += [entry for entry in delayed if entry[0] not in self._due]
            there.update(key for key, _ in delayed)
            place = entries[-1][0] if entries else place
        self._due = there
        return found


def numbered(queue: PersistentQueue[T]) -> Iterator[tuple[int, bytes]]:
    """Browse as iteration does, and give the numbers and the bytes of the items."""
    engine = head_of(queue).engine
    place = b""
    while entries := engine.since(place):
        for entry in entries:
            (payload,) = engine.payloads([entry])
            yield _format.number(entry[0]), payload
        place = entries[-1][0]
