"""What one connection of kombu's knows of its queue directory.

Owns: how exchanges, bindings and what was declared are stored; which queue of the directory is which of kombu's. Law: a
queue that another process has dropped is opened anew when it is next used; nothing here is locked by a thread, since a
forked child would find it so. Must not know: channels, what messages mean.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from kombu.utils.json import dumps, loads

from lmdbqueue._errors import ClosedError, FormatError, GoneError, QueueError
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue, local_engine_of

_UNCHANGING: Final = 60.0  # seconds until it is looked again whether a queue expires that did not
_LONGEST: Final = 160  # bytes of a queue's name that is kept as it is


class Declared(NamedTuple):
    """What is known of a queue that was declared."""

    expires: float | None = None  # seconds without a consumer
    ttl: float | None = None  # seconds of a message
    is_passing: bool = False  # it goes with its consumer
    seen: float = 0.0  # when its consumer looked last, or it was declared, in seconds since 1970


class Broker:
    """The queue directory, as one connection has it."""

    def __init__(self, path: str, durability: Any) -> None:
        self._path = os.path.abspath(path)
        self._options = {"durability": durability, "checksum": True}
        with suppress(FormatError):
            found = options_of(self._path)
            self._options = {"durability": found.durability, "checksum": found.checksum}
        self._queues: dict[str, PersistentQueue[bytes]] = {}  # without a lock, which a forked child might find taken
        self._is_closed = False
        self._looked: dict[str, float] = {}  # when the expiry of a queue was put off
        self._process = os.getpid()
        self.control = self._open("exchanges")
        self._engine = local_engine_of(self.control)

    @property
    def is_mine(self) -> bool:
        """Whether this is not the forked child of who opened it."""
        return self._process == os.getpid()

    def _open(self, name: str) -> PersistentQueue[bytes]:
        return PersistentQueue(self._path, dumps=bytes, loads=bytes, name=name, **self._options)

    def queue(self, name: str) -> PersistentQueue[bytes]:
        """Return a queue, which is made if it is not there."""
        found = self._queues.get(name)
        if found is None:
            opened = self._open(named(name))
            found = self._queues.setdefault(name, opened)
            if found is not opened:  # another thread was faster
                opened.close()
            if self._is_closed:
                found.close()
                raise ClosedError(self._path)
        return found

    def on(
        self, name: str, do: Callable[[PersistentQueue[bytes]], Any], make: Callable[[], object] = lambda: None
    ) -> Any:
        """Do something with a queue; if another process has dropped it, with a new one, after ``make``."""
        queue = self.queue(name)
        try:
            return do(queue)
        except GoneError:
            self._forget(name, queue)
            make()
            return do(self.queue(name))

    def has(self, name: str) -> bool:
        """Return whether a queue is there."""
        return named(name) in self.control.queues()

    def forget(self, name: str) -> None:
        """Close a queue here."""
        if (found := self._queues.get(name)) is not None:
            self._forget(name, found)

    def _forget(self, name: str, queue: PersistentQueue[bytes]) -> None:
        if self._queues.get(name) is queue:  # else another thread has opened it anew
            del self._queues[name]
        queue.close()

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        ticket: int = self._engine.listen()
        return ticket

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed in the directory since the ticket was given, or for a while."""
        self._engine.sleep(ticket, timeout)

    def wake(self) -> None:
        """End the sleep of everyone."""
        with suppress(QueueError):
            self._engine.wake()

    def close(self) -> None:
        """Close all queues; what is leased to them goes back."""
        self._is_closed = True
        with ExitStack() as stack:  # each, whatever becomes of the others
            stack.callback(self.control.close)
            for queue in list(self._queues.values()):
                stack.callback(queue.close)

    # --- what was declared

    def declared(self, name: str) -> Declared | None:
        """Return what is known of a queue."""
        found = self.control.state.get(f"q/{named(name)}")
        return None if found is None else Declared(*json.loads(found)[1:])

    def declare(self, name: str, known: Declared) -> None:
        """Note a queue, and drop those that nobody came back for."""
        self.control.state[f"q/{named(name)}"] = json.dumps([name, *known]).encode()
        now = time.time()
        for key in [key for key in self.control.state if key.startswith("q/")]:
            with suppress(KeyError):
                other, *fields = json.loads(self.control.state[key])
                each = Declared(*fields)
                if other != name and each.expires is not None and each.seen + each.expires < now:
                    self.drop(other, each)

    def put_off(self, name: str) -> None:
        """Record that a queue has a consumer."""
        now = time.time()
        if now < self._looked.get(name, 0.0):
            return
        known = self.declared(name)
        if known is None or known.expires is None:
            self._looked[name] = now + _UNCHANGING
            return
        self._looked[name] = now + known.expires / 3
        with self.control.transaction():  # it may just have been dropped
            if self.declared(name) is not None:
                self.control.state[f"q/{named(name)}"] = json.dumps([name, *known._replace(seen=now)]).encode()

    def drop(self, name: str, known: Declared | None = None) -> None:
        """Remove a queue, its messages, its bindings; given ``known``, only while that is what is known of it."""
        with self.control.transaction():
            if known is not None and self.declared(name) != known:  # its consumer has looked meanwhile
                return
            self.control.state.pop(f"q/{named(name)}", None)
            for key in [key for key in self.control.state if key.startswith("x/")]:
                table = json.loads(self.control.state[key])
                left = [row for row in table if row[2] != name]
                if left != table:
                    self.control.state[key] = json.dumps(left).encode()
        self.forget(name)
        with suppress(KeyError):
            self.control.drop_queue(named(name))

    # --- exchanges

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the bindings of an exchange: routing key, pattern, queue."""
        found = self.control.state.get(f"x/{quote(exchange, safe='')}")
        return [] if found is None else [tuple(row) for row in json.loads(found)]

    def change(self, exchange: str, change: Callable[[list[Any]], list[Any]]) -> None:
        """Change the bindings of an exchange."""
        key = f"x/{quote(exchange, safe='')}"
        with self.control.transaction():
            table = json.loads(self.control.state.get(key, b"[]"))
            changed = change(list(table))
            if not changed:
                self.control.state.pop(key, None)
            elif changed != table:
                self.control.state[key] = json.dumps(changed).encode()


def stored(message: Any) -> bytes:
    """Return a message as it is stored."""
    return str(dumps(message)).encode()


def message_of(payload: bytes) -> Any:
    """Return the message of what is stored; raise ``ValueError`` if it is none."""
    try:
        message = loads(payload)
        message["properties"]["delivery_info"]["redelivered"] = False
    except Exception as error:
        text = f"it is no message: {type(error).__name__}: {error}"
        raise ValueError(text) from error
    return message


def popped(queue: PersistentQueue[bytes]) -> Any:
    """Remove the first message, and return it, None if there is none; what is no message becomes a dead letter."""
    while (payload := queue.pop()) is not None:
        try:
            return message_of(payload)
        except ValueError as error:
            queue.dead_letter(queue.push(payload), str(error))
    return None


def named(queue: str) -> str:
    """Return the name of the queue that stands for one of kombu's."""
    name = f"q-{quote(queue, safe='')}"
    return name if len(name) <= _LONGEST else f"{name[:100]}-{blake2b(name.encode(), digest_size=16).hexdigest()}"
