"""The steps of named readers, on tables of PostgreSQL.

Owns: what ``lmdbqueue._verbs.reader`` asks of an engine. Law: as in ``_engine``. Must not know: SQL, how a
queue is opened.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from lmdbqueue._errors import GoneError
from lmdbqueue._format import Retention
from lmdbqueue._model.readers import ReaderStats
from lmdbqueue._verbs.reader import Start
from lmdbqueue._verbs.reading import Entry
from lmdbqueue.postgres import _readers
from lmdbqueue.postgres._engine import TableQueue
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._readers import Move

T = TypeVar("T")


class FollowedTable(TableQueue[T]):
    """A queue whose items are rows, with named readers."""

    def _reader_create(self, name: str, where: Start) -> None:
        self._restored()
        if self._open.run(self.patience, _readers.create, self._place, name, where) is None:
            raise GoneError(self._path, self.name)

    def _reader_drop(self, name: str) -> bool:
        was_there: bool = self._open.run(self.patience, _readers.drop, self._place, name)
        return was_there

    def _reader_seek(self, name: str, where: Start) -> None:
        self._restored()
        self._moved(name, _readers.seek, name, where)

    def _reader_first(self, name: str, n: int, *, durable: bool) -> list[Entry]:  # noqa: ARG002  (what is seen is)
        def look(place: Place, *, deaths: bool) -> Found:
            found: Found = self._open.view(self.patience, partial(_readers.first, deaths=deaths), place, name, n)
            if not found.is_there:
                raise self._gone(name)
            return found

        return self._found(n, look)

    def _reader_advance(self, name: str, keys: list[bytes]) -> Move | None:
        move: Move | None = self._moved(name, _readers.advance, name, keys) if keys else None
        return move if move and move.passed else None

    def _reader_retreat(self, move: Move, entries: list[Entry]) -> bool:
        undone: bool = self._moved(move.reader, _readers.retreat, move, entries)
        return undone

    def _reader_delete(self, name: str, n: int) -> int:
        self._restored()
        passed: int = self._moved(name, _readers.delete, name, n)
        return passed

    def _moved(self, name: str, move: Callable[..., Any], *args: Any) -> Any:
        moved = self._open.run(self.patience, move, self._place, *args)
        if moved is None:
            raise self._gone(name)
        return moved

    def _reader_lag(self, name: str) -> int:
        return self._reader_stats(name)[0].lag

    def _reader_stats(self, name: str | None) -> list[ReaderStats]:
        self._restored()
        found: list[ReaderStats] = self._open.view(self.patience, _readers.stats, self._place, name)
        if name is not None and not found:
            raise self._gone(name)
        return found

    def _retain(self, retention: Retention | None) -> None:
        if not self._open.run(self.patience, _readers.retain, self._place, retention):
            raise GoneError(self._path, self.name)

    def _gone(self, name: str) -> GoneError:
        return GoneError(self._path, f"reader {name} of {self.name}")
