"""``queue.state`` in a table.

Owns: the rows of the state. Law: each method is one atomic step, and joins the transaction that it is called in. Must
not know: what it is used for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from lmdbqueue._verbs.state import StateMapping
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._silence import as_one_call
from lmdbqueue.postgres._step import Step

_MAX_KEY: Final = 1_000  # bytes; a row of an index takes some 2,700

_GET: Final = "SELECT value FROM {state} WHERE queue = %(queue)s AND key = %(key)s"
_PUT: Final = """
INSERT INTO {state} (queue, key, value) SELECT id, %(key)s, %(value)s FROM {queues} WHERE id = %(queue)s
ON CONFLICT (queue, key) DO UPDATE SET value = excluded.value
"""
_DELETE: Final = "DELETE FROM {state} WHERE queue = %(queue)s AND key = %(key)s"
_KEYS: Final = "SELECT key FROM {state} WHERE queue = %(queue)s ORDER BY key"
_CLEAR: Final = "DELETE FROM {state} WHERE queue = %(queue)s"


class TableState(StateMapping):
    """The mapping of a queue of a database.

    ``update``, ``pop`` and the like are transactions of several statements: if their connection is lost, they raise
    ``ServerError``, and nothing was changed.
    """

    def __init__(
        self,
        database: Database,
        place: Place,
        patience: float,
        refuse: Callable[[], Any],
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]],
    ) -> None:
        """``refuse`` raises if the queue is gone; ``codec``: ``dumps`` and ``loads``."""
        super().__init__(*codec)
        self._database = database
        self._place = place
        self.patience = patience
        self._refuse_if_gone = refuse

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._place.id} in {self._database.path!r}>"

    @as_one_call
    def clear(self) -> None:
        """Remove all keys."""
        if not self._database.run(self.patience, _clear, self._place):
            self._refuse_if_gone()

    def _record(self, key: str) -> bytes:
        record = key.encode()
        if len(record) > _MAX_KEY:
            message = f"a key of {len(record)} bytes; this queue's state takes keys of at most {_MAX_KEY}"
            raise ValueError(message)
        return record

    @as_one_call
    def _get(self, record: bytes) -> bytes | None:
        value = self._database.view(self.patience, _get, self._place, record)
        if value is None:
            self._refuse_if_gone()
        return value

    def _has(self, record: bytes) -> bool:
        return self._get(record) is not None

    @as_one_call
    def _put(self, record: bytes, payload: bytes) -> None:
        if not self._database.run(self.patience, _put, self._place, record, payload):
            self._refuse_if_gone()

    @as_one_call
    def _delete(self, record: bytes) -> bool:
        was_there = self._database.run(self.patience, _delete, self._place, record)
        if not was_there:
            self._refuse_if_gone()
        return was_there

    @as_one_call
    def _keys(self) -> list[str]:
        keys = self._database.view(self.patience, _keys, self._place)
        if not keys:
            self._refuse_if_gone()
        return keys

    def _transaction(self) -> AbstractContextManager[object]:
        return self._database.transaction(self.patience)


def _get(step: Step, place: Place, record: bytes) -> bytes | None:
    row = step.execute(_GET, queue=place.id, key=record).fetchone()
    return None if row is None else row[0]


def _put(step: Step, place: Place, record: bytes, payload: bytes) -> bool:
    return _changed(step, step.changed(_PUT, queue=place.id, key=record, value=payload))


def _delete(step: Step, place: Place, record: bytes) -> bool:
    return _changed(step, step.changed(_DELETE, queue=place.id, key=record))


def _clear(step: Step, place: Place) -> bool:
    return _changed(step, step.changed(_CLEAR, queue=place.id))


def _changed(step: Step, rows: int) -> bool:
    step.has_changed = step.has_changed or rows > 0
    return rows > 0


def _keys(step: Step, place: Place) -> list[str]:
    return [row[0].decode() for row in step.execute(_KEYS, queue=place.id).fetchall()]
