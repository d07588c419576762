"""``LocalReaderEngine``: the steps of one named reader in an LMDB environment.

Owns: the function of a transaction behind each step of a reader, and the entry that its last move saw. Law: as in
``_local.hold``, by which it restores due items. Must not know: LMDB, generations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lmdbqueue._model import pushing, reader_records, readers
from lmdbqueue._verbs.engine import within

if TYPE_CHECKING:
    from lmdbqueue._base.values import Entry, ReaderStats, Start
    from lmdbqueue._local.hold import LocalHold
    from lmdbqueue._model.readers import Move

_ROOM: Final = 1 << 14  # the most bytes that a new reader needs


class LocalReaderEngine:
    """The steps of a reader of one queue object."""

    def __init__(self, engine: LocalHold, name: str) -> None:
        self.name = name
        self._engine = engine
        self._next: Entry | None = None  # the entry that was next when this object last passed one

    def create(self, where: Start) -> None:
        """Create the reader unless it exists."""
        engine = self._engine
        if not engine.view(reader_records.exists, self.name):
            now = engine.clock().wall
            engine.environment.update(engine.ref, readers.create, self.name, where, now, room=_ROOM)

    def drop(self) -> bool:
        """Remove the reader."""
        engine = self._engine
        dropped = engine.environment.update(engine.ref, readers.drop, self.name)
        if dropped:  # else nothing may change
            engine.trim()
        return dropped

    def seek(self, where: Start) -> None:
        """Move the reader to another item."""
        engine = self._engine
        engine.glance(0, reader_records.exists, self.name)  # so that due items have returned
        engine.environment.update(engine.ref, readers.seek, self.name, where, engine.clock().wall)
        engine.trim()

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries."""
        if max_bytes is not None:
            return within(self.first, self._engine.size, n, max_bytes)
        return self._engine.view(readers.first, self.name, n)

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries, durable or not: the one that ``advance`` saw, if one is asked for."""
        if max_bytes is not None:
            return within(self.candidates, self._engine.size, n, max_bytes)
        if n == 1 and (entry := self._next) is not None:
            self._next = None
            return [entry]
        return self._engine.glance(n, readers.first, self.name, n)

    def advance(self, keys: list[bytes]) -> Move | None:
        """Move the reader past its next items if their keys are ``keys``."""
        engine = self._engine
        if len(keys) != 1:
            return engine.environment.update(engine.ref, readers.advance, self.name, keys, engine.clock().wall)
        move = engine.environment.update(engine.ref, readers.advance_first, self.name, keys, engine.clock().wall)
        if move is not None and move.following is not None:
            self._next = move.following
        return move

    def retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if the reader has not been moved since."""
        engine = self._engine
        room = pushing.room_for([value for _, value in entries[: move.gone]])
        return engine.environment.update(engine.ref, readers.retreat, move, entries, engine.clock().wall, room=room)

    def delete(self, n: int) -> int:
        """Move the reader past its next ``n`` items."""
        engine = self._engine
        return engine.environment.update(engine.ref, readers.delete, self.name, n, engine.clock().wall)

    def lag(self) -> int:
        """Return the number of items that the reader has not passed."""
        return self._engine.view(readers.lag, self.name)

    def stats(self) -> ReaderStats:
        """Return the figures of the reader."""
        return self._engine.view(readers.stats_of, self.name)
