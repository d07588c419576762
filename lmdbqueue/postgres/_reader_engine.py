"""``PostgresReaderEngine``: the steps of one named reader, on tables of PostgreSQL.

Owns: the function of a transaction behind each step of a reader. Law: each step is one call of the database. Must not
know: SQL.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

from lmdbqueue._base.errors import GoneError
from lmdbqueue._base.values import Entry, ReaderStats, Start
from lmdbqueue._verbs.engine import within
from lmdbqueue.postgres import _readers
from lmdbqueue.postgres._hold import Hold, size_of
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._readers import Move
from lmdbqueue.postgres._silence import as_one_call
from lmdbqueue.postgres._step import Step

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class PostgresReaderEngine:
    """The steps of a reader of one queue object."""

    def __init__(self, hold: Hold, queue: str, name: str) -> None:
        self.name = name
        self._hold = hold
        self._queue = queue
        self._path = hold.database.path

    @property
    def patience(self) -> float:
        """Seconds for which a call continues while the server is unreachable."""
        return self._hold.patience

    @as_one_call
    def create(self, where: Start) -> None:
        """Create the reader unless it exists."""
        self._hold.restored()
        if self._hold.run(_readers.create, self.name, where) is None:
            raise GoneError(self._path, self._queue)

    def drop(self) -> bool:
        """Remove the reader; return whether it existed."""
        return self._hold.run(_readers.drop, self.name)

    @as_one_call
    def seek(self, where: Start) -> None:
        """Move the reader to another item."""
        self._hold.restored()
        self._moved(_readers.seek, self.name, where)

    @as_one_call
    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the next ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""
        if max_bytes is not None:
            return within(self.first, size_of, n, max_bytes)

        def look(*, deaths: bool) -> Found:
            found: Found = self._hold.view(partial(_readers.first, deaths=deaths), self.name, n)
            if not found.is_there:
                raise self._gone()
            return found

        return self._hold.found(n, look)

    @as_one_call
    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries; everything visible is durable."""
        return self.first(n, max_bytes)

    @as_one_call
    def advance(self, keys: list[bytes]) -> Move | None:
        """Move the reader past its next items if their keys are ``keys``; otherwise do nothing and return None."""
        move = self._moved(_readers.advance, self.name, keys) if keys else None
        return move if move and move.passed else None

    @as_one_call
    def retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if the reader has not been moved since; return whether it was undone."""
        return self._moved(_readers.retreat, move, entries)

    @as_one_call
    def delete(self, n: int) -> int:
        """Move the reader past at most its next ``n`` items; return their number."""
        return self._moved(_readers.delete, self.name, n)  # like ``delete``, for items that were seen before

    @as_one_call
    def lag(self) -> int:
        """Return the number of items that the reader has not passed."""
        return self.stats().lag

    @as_one_call
    def stats(self) -> ReaderStats:
        """Return the figures of the reader."""
        self._hold.restored()
        found = self._hold.view(_readers.stats, self.name)
        if not found:
            raise self._gone()
        return found[0]

    def _moved(self, move: Callable[[Step, Place, *Ts], R | None], *args: *Ts) -> R:
        moved = self._hold.run(move, *args)
        if moved is None:
            raise self._gone()
        return moved

    def _gone(self) -> GoneError:
        return GoneError(self._path, self._queue, self.name)
