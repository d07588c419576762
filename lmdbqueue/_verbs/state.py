"""``queue.state``: a mapping that is stored beside a queue's items, on any engine.

Owns: the values of the keys. Law: each method is one atomic step, and joins the transaction that it is called in. Must
not know: how values are kept, or what they are used for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any


class StateMapping(MutableMapping[str, Any]):
    """A persistent mapping of one queue, from str to anything that its ``dumps`` and ``loads`` can convert.

    Meant for a few totals and offsets of consumers, which can change in one transaction with the items. Keys are
    iterated in the order of their UTF-8 bytes. Changes are durable when the method returns, or with the transaction
    around it. A key that is not a str raises ``TypeError``, one that is too long ``ValueError`` (300 bytes always
    fit). A damaged value raises ``CorruptQueueError``; it can still be replaced or deleted. Errors of ``loads`` are
    passed on.
    """

    def __init__(self, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
        self._dumps = dumps
        self._loads = loads

    # --- the engine

    @abstractmethod
    def _record(self, key: str) -> bytes:
        """Return the record of a key, a str; raise ``ValueError`` if it is too long."""

    @abstractmethod
    def _get(self, record: bytes) -> bytes | None:
        """Return a value, None if there is none."""

    @abstractmethod
    def _has(self, record: bytes) -> bool:
        """Return whether there is a value, damaged or not."""

    @abstractmethod
    def _put(self, record: bytes, payload: bytes) -> None:
        """Set a value."""

    @abstractmethod
    def _delete(self, record: bytes) -> bool:
        """Remove a value; return whether there was one."""

    @abstractmethod
    def _keys(self) -> list[str]:
        """Return all keys, in order."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[object]:
        """Make the calls in the block one step."""

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

    # MutableMapping makes these of several steps; here each is one, with ``dumps`` before or ``loads`` after it

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key and return its value, or the default if one is given."""
        if len(default) > 1:
            message = f"pop takes a key and a default, not {1 + len(default)} arguments"
            raise TypeError(message)
        found = self._taken(self._checked(key))
        if found is not None:
            return found[0]
        if default:
            return default[0]
        raise KeyError(key)

    def popitem(self) -> tuple[str, Any]:
        """Remove the first key and return it with its value."""
        while keys := self._keys():
            found = self._taken(self._checked(keys[0]))
            if found is not None:  # otherwise another call was faster
                return keys[0], found[0]
        message = "the state is empty"
        raise KeyError(message)

    def _taken(self, record: bytes) -> tuple[Any] | None:
        """Decode a value, then remove it; return it, None if there is none."""
        while (payload := self._get(record)) is not None:
            value = self._loads(payload)
            with self._transaction():
                if self._get(record) == payload:
                    self._delete(record)
                    return (value,)
        return None

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of the key; set it to the default if there is none."""
        record = self._checked(key)
        payload = self._get(record)
        if payload is None:
            new = bytes(memoryview(self._dumps(default)))
            with self._transaction():
                payload = self._get(record)
                if payload is None:
                    self._put(record, new)
                    return default
        return self._loads(payload)

    def update(self, *args: Any, **values: Any) -> None:
        """Set all keys of a mapping or of pairs, and those given by name."""
        items = dict(*args, **values)
        payloads = {self._checked(key): bytes(memoryview(self._dumps(value))) for key, value in items.items()}
        with self._transaction():
            for record, payload in payloads.items():
                self._put(record, payload)

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values, as of one moment."""
        with self._transaction():
            found = [(key, self._get(self._record(key))) for key in self._keys()]
        return {key: self._loads(payload) for key, payload in found if payload is not None}

    def _checked(self, key: str) -> bytes:
        if not isinstance(key, str):
            message = f"a key of the state must be a str, not {type(key).__name__}"
            raise TypeError(message)
        return self._record(key)
