"""``queue.state``: a mapping that is stored beside a queue's items.

Owns: what is kept under a key: ``StateMapping``, whatever engine keeps it, and ``State``, in an environment. Law:
each method is one atomic step, and joins the transaction that it is called in. Must not know: LMDB, what is done
with it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._format import SEAL_SIZE
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import fifo, weighed_records


class StateMapping(MutableMapping[str, Any]):
    """A persistent mapping of one queue: from str to what its ``dumps`` and ``loads`` take.

    For a few totals and offsets of consumers, in the same transaction as what they are of. Keys are
    iterated in the order of their UTF-8 bytes. Changes are durable when the method returns, or when
    the transaction is left that it was called in. Raises ``TypeError`` for a key that is no str,
    ``ValueError`` for one that is longer than can be kept (300 bytes always fit), ``CorruptQueueError``
    for a value that is damaged, which can still be set anew or deleted; what ``loads`` raises goes through.
    """

    def __init__(self, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
        self._dumps = dumps
        self._loads = loads

    # --- the engine

    @abstractmethod
    def _record(self, key: str) -> bytes:
        """Return what stands for a key, which is a str; raise ``ValueError`` if it is too long."""

    @abstractmethod
    def _get(self, record: bytes) -> bytes | None:
        """Return a value, None if it is not there."""

    @abstractmethod
    def _has(self, record: bytes) -> bool:
        """Tell whether a value is there, damaged or not."""

    @abstractmethod
    def _put(self, record: bytes, payload: bytes) -> None:
        """Set a value."""

    @abstractmethod
    def _delete(self, record: bytes) -> bool:
        """Remove a value; tell whether it was there."""

    @abstractmethod
    def _keys(self) -> list[str]:
        """Return all keys, in order."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[object]:
        """Make what is done in the block one step."""

    # --- the mapping

    def __getitem__(self, key: str) -> Any:
        value = self._get(self._checked(key))
        if value is None:
            raise KeyError(key)
        return self._loads(value)

    def __setitem__(self, key: str, value: Any) -> None:
        payload = bytes(memoryview(self._dumps(value)))
        self._put(self._checked(key), payload)

    def __delitem__(self, key: str) -> None:
        if not self._delete(self._checked(key)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._has(self._checked(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    # what a MutableMapping makes of several steps

    def pop(self, *args: Any) -> Any:
        """Remove a key and return its value, or the default if one is given."""
        with self._transaction():
            return super().pop(*args)

    def popitem(self) -> tuple[str, Any]:
        """Remove the first key and return it with its value."""
        with self._transaction():
            return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of the key, which gets the default if it is not there."""
        with self._transaction():
            return super().setdefault(key, default)

    def update(self, *args: Any, **values: Any) -> None:
        """Set all keys of a mapping or of pairs, and those given by name."""
        with self._transaction():
            super().update(*args, **values)

    def _checked(self, key: str) -> bytes:
        if not isinstance(key, str):
            message = f"a key of the state is a str, not {type(key).__name__}"
            raise TypeError(message)
        return self._record(key)


class State(StateMapping):
    """The mapping of a queue of an environment."""

    def __init__(
        self, environment: Environment, name: str, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]
    ) -> None:
        super().__init__(dumps, loads)
        self._environment = environment
        self._name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name!r} in {self._environment.directory.path!r}>"

    def clear(self) -> None:
        """Remove all keys."""
        self._environment.update(self._name, _clear)

    def _record(self, key: str) -> bytes:
        return _format.state_record(self._name, key)

    def _get(self, record: bytes) -> bytes | None:
        value: bytes | None = self._environment.view(self._name, _get, record)
        return value

    def _has(self, record: bytes) -> bool:
        found: bool = self._environment.view(self._name, _has, record)
        return found

    def _put(self, record: bytes, payload: bytes) -> None:
        self._environment.update(self._name, _put, record, payload, room=fifo.room_for([payload]))

    def _delete(self, record: bytes) -> bool:
        was_there: bool = self._environment.update(self._name, _delete, record)
        return was_there

    def _keys(self) -> list[str]:
        keys: list[str] = self._environment.view(self._name, _keys)
        return keys

    def _transaction(self) -> AbstractContextManager[object]:
        return self._environment.transaction()


def _get(txn: Txn, queue: Tables, record: bytes) -> bytes | None:
    value: bytes | None = txn.get(record, db=queue.meta)
    if value is None or not queue.sealed:
        return value
    if not _format.is_intact(record, value):
        raise CorruptQueueError(queue.generation.path, f"the state {record.decode()!r}: its checksum does not fit")
    return value[:-SEAL_SIZE]


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
