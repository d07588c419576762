"""Huey's storage interface on a queue directory.

Owns: how each of Huey's verbs is stored. Law: what a task stores with its end passes through ``_endings``. Must not
know: LMDB, what tasks do.

A due task stays in the schedule until the scheduler has enqueued it, and then moves in one step.
``LmdbStorage.dequeue``, which ``LmdbHuey`` does not use, removes the task, since a plain ``Huey`` never acknowledges:
there a killed worker loses its task as usual.
"""

import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any, Final, TypeVar

from huey.constants import EmptyData
from huey.storage import BaseStorage

from lmdbqueue._base.errors import Empty
from lmdbqueue._base.format import Durability
from lmdbqueue._host.directory import absolute
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue.integrations.huey._endings import Endings
from lmdbqueue.integrations.huey._queues import Queues, key_of

K = TypeVar("K")

_UNTIL: Final = struct.Struct(">d")  # before each value: when it expires, in seconds since 1970; 0 for never
_HIGHEST: Final = 127  # priority


class LmdbStorage(BaseStorage):  # type: ignore[misc]
    """Huey's storage in a queue directory, for any number of processes of one machine.

    Args:
        name: The name of the Huey instance; several may share a directory.
        path: The directory; created if it is missing; its parent must exist.
        durability: ``"full"``: enqueued tasks survive a power cut; ``"interval"``: all but those of the last moments
            do; ``"off"``: they survive killed processes. Fixed when the directory is created. None: that of the
            directory, ``"full"`` for a new one.
        read_timeout: Seconds that a worker waits for a task before it checks whether to stop. A task wakes it at once.
        max_attempts: The number of starts after which a task becomes a dead letter (``storage.tasks.dead``), for tasks
            that kill their workers; None: no limit. Huey counts its own retries itself.
    """

    blocking = True
    priority = True

    def __init__(
        self,
        name: str = "huey",
        path: str | os.PathLike[str] = "huey",
        *,
        durability: Durability | None = None,
        read_timeout: float = 1.0,
        max_attempts: int | None = None,
    ) -> None:
        super().__init__(name)
        self.path = absolute(path)
        self._queues = Queues(name, self.path, durability, max_attempts)
        self.endings = Endings(self._queues, read_timeout)
        self._timeout = read_timeout
        self._here = threading.local()  # .moving: the key of the task that this thread moves out of the schedule

    @property
    def tasks(self) -> PersistentQueue[bytes]:
        """The queue of the tasks, for ``stats()``, ``dead`` and the like."""
        return self._queues.tasks

    def close(self) -> None:
        """Close the queues; they are opened again when they are needed, also in a forked child."""
        self._queues.close()

    # --- tasks

    def enqueue(self, data: bytes, priority: float | None = None) -> None:
        """Append a task; one of a higher priority, -127 to 127, leaves sooner."""
        place = -max(-_HIGHEST, min(_HIGHEST, round(priority or 0)))
        moved = getattr(self._here, "moving", None)
        if moved is None:
            self.endings.do(lambda: self._queues.tasks.push(data, priority=place))
            return
        with self._queues.tasks.transaction():
            if self._queues.schedule.pop(moved, None) is not None:  # otherwise another scheduler did it
                self._queues.tasks.push(data, priority=place)

    def dequeue(self) -> bytes | None:
        """Remove the first task for good and return it; wait a moment for one."""
        with suppress(Empty):
            return self._queues.tasks.pop(1, blocking=True, timeout=self._timeout)
        return None

    def queue_size(self) -> int:
        """Return the number of waiting tasks, without running ones."""
        return len(self._queues.tasks)

    def enqueued_items(self, limit: int | None = None) -> list[bytes]:
        """Return the first tasks."""
        if limit is None:
            return list(self._queues.tasks)
        return self._queues.tasks.peek_many(limit)

    def flush_queue(self) -> None:
        """Remove all waiting tasks."""
        self._queues.tasks.clear()

    # --- the schedule

    def add_to_schedule(self, data: bytes, ts: Any) -> None:
        """Store a task until it is due."""
        key = f"{_sortable(ts)}-{time.time_ns():020d}-{os.urandom(4).hex()}"
        self.endings.do(lambda: self._queues.schedule.__setitem__(key, data))

    def due(self, ts: Any) -> list[tuple[str, bytes]]:
        """Return the due tasks, each with its key in the schedule.

        Args:
            ts: The time, a ``datetime``.
        """
        state, last = self.endings.settled().schedule, _sortable(ts) + "~"
        keys = takewhile(lambda key: key <= last, state)
        return [(key, data) for key in keys if (data := state.get(key)) is not None]

    @contextmanager
    def moving(self, key: str | None) -> Iterator[None]:
        """Make the ``enqueue`` of this thread in the block move a task out of the schedule.

        Args:
            key: The key of the task in the schedule; None: the task is a new one, which a signal's handler enqueues
                while another is moved.
        """
        outer = getattr(self._here, "moving", None)
        self._here.moving = key
        try:
            yield
        finally:
            self._here.moving = outer

    def read_schedule(self, ts: Any) -> list[bytes]:
        """Remove the due tasks, and return them."""
        with self._queues.tasks.transaction():
            found = self.due(ts)
            for key, _ in found:
                del self._queues.schedule[key]
        return [data for _, data in found]

    def unschedule(self, key: str) -> None:
        """Remove a task from the schedule.

        Args:
            key: The key of the task in the schedule.
        """
        self.endings.settled().schedule.pop(key, None)

    def schedule_size(self) -> int:
        """Return the number of scheduled tasks."""
        return len(self.endings.settled().schedule)

    def scheduled_items(self, limit: int | None = None) -> list[bytes]:
        """Return the scheduled tasks, soonest first."""
        state = self.endings.settled().schedule
        return [data for key in list(state)[:limit] if (data := state.get(key)) is not None]

    def flush_schedule(self) -> None:
        """Remove all scheduled tasks."""
        self.endings.settled().schedule.clear()

    # --- results, locks, revocations

    def put_data(self, key: str | bytes, value: bytes, is_result: bool = False) -> None:
        """Store a value under a key."""
        del is_result
        self.endings.put(key_of(key), _record(value))

    def peek_data(self, key: str | bytes) -> Any:
        """Return a value, or ``EmptyData``."""
        (record,) = self.endings.get([key_of(key)])
        return _value(record)

    def peek_many(self, keys: Iterable[str | bytes]) -> dict[str | bytes, bytes]:
        """Return those of the values that are there, by their keys."""
        wanted = list(keys)
        return _values(zip(wanted, self.endings.get(list(map(key_of, wanted))), strict=True))

    def pop_data(self, key: str | bytes) -> Any:
        """Remove a value and return it, or ``EmptyData``."""
        return _value(self.endings.remove(key_of(key)))

    def delete_data(self, key: str | bytes) -> bool:
        """Remove a value; return whether there was one."""
        return self.pop_data(key) is not EmptyData

    def has_data_for_key(self, key: str | bytes) -> bool:
        """Return whether there is a value."""
        return self.peek_data(key) is not EmptyData

    def put_if_empty(self, key: str | bytes, value: bytes, ttl: float | None = None) -> bool:
        """Store a value for ``ttl`` seconds if the key has none; return whether it was stored."""
        with self._queues.tasks.transaction():
            if self.has_data_for_key(key):
                return False
            self.endings.put_now(key_of(key), _record(value, 0.0 if ttl is None else time.time() + ttl))
            return True

    def result_store_size(self) -> int:
        """Return the number of values."""
        return len(self.endings.settled().results)

    def result_items(self) -> dict[str, bytes]:
        """Return all values by their keys."""
        return _values(dict(self.endings.settled().results).items())

    def flush_results(self) -> None:
        """Remove all values."""
        self.endings.settled().results.clear()

    # --- counters

    def incr(self, key: str | bytes, amount: int = 1) -> int:
        """Add to a counter, which begins at 0; return the sum."""
        return self.endings.count(key_of(key), amount)

    def delete_counter(self, key: str | bytes) -> None:
        """Remove a counter."""
        self.endings.delete_counter(key_of(key))

    def flush_counters(self) -> None:
        """Remove all counters."""
        self.endings.settled().counters.clear()


def _sortable(ts: Any) -> str:
    """Return a ``datetime`` as digits, in the order of time."""
    return f"{round(ts.timestamp() * 1e6) + (1 << 62):020d}"


def _record(value: bytes, until: float = 0.0) -> bytes:
    return _UNTIL.pack(until) + value


def _value(record: bytes | None) -> Any:
    """Return the value in a record; ``EmptyData`` if there is none, or it has expired."""
    if record is None:
        return EmptyData
    until: float = _UNTIL.unpack_from(record)[0]
    return record[_UNTIL.size :] if until == 0.0 or time.time() < until else EmptyData


def _values(records: Iterable[tuple[K, bytes | None]]) -> dict[K, bytes]:
    return {key: value for key, record in records if (value := _value(record)) is not EmptyData}
