"""The queue directory of a Huey.

Owns: where its data are kept, under which names and keys. Law: it is opened again at the next use after ``close``, also
in a forked child. Must not know: tasks, when something is stored.
"""

from contextlib import ExitStack
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import quote

from lmdbqueue._base.format import Durability
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._local.state import State
from lmdbqueue.integrations._options import options_for

_MAX_KEY: Final = 200  # bytes of the longest key that is kept unchanged
_MAX_NAME: Final = 160  # bytes of the longest name of a Huey that is kept unchanged, once it is quoted


class _Opened(NamedTuple):
    tasks: PersistentQueue[bytes]
    schedule: State
    results: State
    counters: State
    all: tuple[PersistentQueue[bytes], ...]

    def close(self) -> None:
        with ExitStack() as stack:  # each, even if closing others fails
            for queue in self.all:
                stack.callback(queue.close)


class Queues:
    """The queue of the tasks, and the states of three more. Hueys of different names may share a directory."""

    def __init__(self, name: str, path: str, durability: Durability | None, max_attempts: int | None) -> None:
        self._name = name
        self._path = path
        self._durability: Durability | None = durability
        self._max_attempts = max_attempts
        self._opened: dict[str, _Opened] = {}  # by path; without a lock, which a forked child might find taken
        self.open()  # so that an invalid path is reported now

    @property
    def tasks(self) -> PersistentQueue[bytes]:
        """The queue of the tasks."""
        return self.open().tasks

    @property
    def schedule(self) -> State:
        """Tasks by their time."""
        return self.open().schedule

    @property
    def results(self) -> State:
        """Results, locks, revocations."""
        return self.open().results

    @property
    def counters(self) -> State:
        """Counters, and the marks of counted tasks."""
        return self.open().counters

    def open(self) -> _Opened:
        """Open the queues unless they are open."""
        found = self._opened.get(self._path)
        if found is None:
            opened = self._open()
            found = self._opened.setdefault(self._path, opened)
            if found is not opened:  # another thread was faster
                opened.close()
        return found

    def _open(self) -> _Opened:
        options = options_for(self._path, self._durability, "full")
        quoted = quote(self._name, safe="")
        name = quoted if len(quoted) <= _MAX_NAME else f"{quoted[: _MAX_NAME // 2]}-{_digest(quoted)}"
        queues = [
            PersistentQueue(
                self._path,
                dumps=bytes,
                loads=bytes,
                name=f"{name}-{part}",
                max_attempts=self._max_attempts,
                **options,
            )
            for part in ("tasks", "schedule", "results", "counters")
        ]
        tasks, schedule, results, counters = queues
        return _Opened(tasks, schedule.state, results.state, counters.state, tuple(queues))

    def close(self) -> None:
        """Close the queues; the next use opens them again."""
        opened = self._opened.pop(self._path, None)
        if opened is not None:
            opened.close()


def key_of(key: str | bytes) -> str:
    """Return a key of Huey's as one of a state."""
    text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key
    if len(text.encode("utf-8", "backslashreplace")) <= _MAX_KEY:
        return text
    return f"{text[:40]}#{_digest(text)}"


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
