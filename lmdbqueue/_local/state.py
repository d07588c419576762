"""``queue.state`` in an environment.

Owns: the functions of a transaction that keep a mapping in META. Law: each is one call of the environment. Must not
know: LMDB, what the mapping is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._base.format import SEAL_SIZE
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import fifo, pushing, weighed_records
from lmdbqueue._verbs.state import StateMapping

Put = tuple[Ref, bytes, bytes]  # what is to be put: of which queue, under which key of META, and what it holds


class State(StateMapping):
    """The mapping of a queue of an environment."""

    def __init__(self, engine: LocalEngine, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
        super().__init__(dumps, loads)
        self._engine = engine  # not its environment, which may outlive the queue object
        self._ref = engine.ref

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._ref.name!r} in {self._engine.path!r}>"

    @property
    def _environment(self) -> Environment:
        return self._engine.environment

    def clear(self) -> None:
        """Remove all keys."""
        self._environment.update(self._ref, _clear)

    def _record(self, key: str) -> bytes:
        return _format.state_record(self._ref.name, key)

    def _get(self, record: bytes) -> bytes | None:
        return self._environment.view(self._ref, _get, record)

    def _has(self, record: bytes) -> bool:
        return self._environment.view(self._ref, _has, record)

    def _put(self, record: bytes, payload: bytes) -> None:
        self._environment.update(self._ref, _put, record, payload, room=pushing.room_for([payload]))

    def _delete(self, record: bytes) -> bool:
        return self._environment.update(self._ref, _delete, record)

    def _keys(self) -> list[str]:
        return self._environment.view(self._ref, _keys)

    def _transaction(self) -> AbstractContextManager[object]:
        return self._environment.transaction()


def prepared(state: State, key: str, value: Any) -> Put:
    """Return what sets a key, for a step that does so beside something else (``_local.relay``)."""
    return state._ref, state._checked(key), bytes(memoryview(state._dumps(value)))  # noqa: SLF001  (of this file)


def some_of(state: State, keys: Sequence[str]) -> list[Any]:
    """Return the values of keys, of one snapshot; None for those that are not there."""
    records = [state._checked(key) for key in keys]  # noqa: SLF001  (of this file)
    found = state._environment.view(state._ref, _get_some, records)  # noqa: SLF001
    return [None if value is None else state._loads(value) for value in found]  # noqa: SLF001


def _get(txn: Txn, queue: Tables, record: bytes) -> bytes | None:
    value: bytes | None = txn.get(record, db=queue.meta)
    if value is None or not queue.sealed:
        return value
    if not _format.is_intact(record, value):
        raise CorruptQueueError(queue.generation.path, f"the state {record.decode()!r}: its checksum does not match")
    return value[:-SEAL_SIZE]


def _get_some(txn: Txn, queue: Tables, records: Sequence[bytes]) -> list[bytes | None]:
    return [_get(txn, queue, record) for record in records]


def _has(txn: Txn, queue: Tables, record: bytes) -> bool:
    return txn.get(record, db=queue.meta) is not None


def _put(txn: Txn, queue: Tables, record: bytes, payload: bytes) -> bool:
    weighed_records.put_sealed(txn, queue, record, payload)
    return True


def _delete(txn: Txn, queue: Tables, record: bytes) -> bool:
    return weighed_records.delete_sealed(txn, queue, record)


def _keys(txn: Txn, queue: Tables) -> list[str]:
    return [_format.state_key(record) for record, _ in fifo.state(txn, queue)]


def _clear(txn: Txn, queue: Tables) -> int:
    records = [record for record, _ in fifo.state(txn, queue)]
    return sum(weighed_records.delete_sealed(txn, queue, record) for record in records)
