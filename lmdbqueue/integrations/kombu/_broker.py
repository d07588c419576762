"""The queue directory behind one connection of kombu.

Owns: how exchanges, bindings and declarations are stored; which queue of the directory belongs to which of kombu's.
Law: a queue that another process has dropped is opened anew when it is next used; no thread takes a lock here, since a
forked child would find it locked. Must not know: channels, what messages mean.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from lmdbqueue._base.errors import ClosedError, GoneError, LeaseExpiredError, QueueError
from lmdbqueue._host.directory import absolute
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue.integrations._options import options_for

_UNCHANGING: Final = 60.0  # seconds until a queue that did not expire is checked again
_LONGEST: Final = 160  # bytes of the longest name of a queue that is kept unchanged
_FEW: Final = 100  # open queues; when there are twice as many as at the last look, those that were dropped are closed


class Declared(NamedTuple):
    """The properties of a declared queue."""

    expires: float | None = None  # seconds without a consumer
    ttl: float | None = None  # seconds that a message lives
    is_passing: bool = False  # it is removed with its consumer
    seen: float = 0.0  # when its consumer last looked, or when it was declared, in seconds since 1970

    def is_over(self) -> bool:
        """Return whether it has expired."""
        return self.expires is not None and self.seen + self.expires < time.time()


class Broker:
    """The queue directory, as one connection has it."""

    def __init__(self, path: str, durability: Any) -> None:
        self._path = absolute(path)
        self._options = options_for(self._path, durability, "full")
        self._queues: dict[str, PersistentQueue[bytes]] = {}  # without a lock, which a forked child might find taken
        self._many = _FEW  # open queues from which on dropped ones are looked for
        self._is_closed = False
        self._looked: dict[str, float] = {}  # when the expiry of each queue was last put off
        self._process = os.getpid()
        self.control = self._open("exchanges")
        self._engine = local_engine_of(self.control)

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it, and is not a forked child."""
        return self._process == os.getpid()

    def _open(self, name: str) -> PersistentQueue[bytes]:
        return PersistentQueue(self._path, dumps=bytes, loads=bytes, name=name, **self._options)

    def queue(self, name: str) -> PersistentQueue[bytes]:
        """Return a queue; create it if it is missing."""
        found = self._queues.get(name)
        if found is None:
            opened = self._open(named(name))
            found = self._queues.setdefault(name, opened)
            if found is not opened:  # another thread was faster
                opened.close()
            if self._is_closed:
                found.close()
                raise ClosedError(self._path)
            if len(self._queues) >= self._many:
                self._forget_dropped()
        return found

    def _forget_dropped(self) -> None:
        """Close queues that other processes have dropped, such as those of replies, each with a name of its own."""
        present = set(self.control.queues())
        for name, queue in list(self._queues.items()):
            if named(name) not in present:
                self._forget(name, queue)
        self._many = max(_FEW, 2 * len(self._queues))

    def on(
        self, name: str, do: Callable[[PersistentQueue[bytes]], Any], make: Callable[[], object] = lambda: None
    ) -> Any:
        """Call a function with a queue; if another process has dropped the queue, with a new one, after ``make``."""
        queue = self.queue(name)
        try:
            return do(queue)
        except GoneError:
            self._forget(name, queue)
            make()
            return do(self.queue(name))

    def has(self, name: str) -> bool:
        """Return whether a queue exists."""
        return named(name) in self.control.queues()

    def forget(self, name: str) -> None:
        """Close a queue in this process."""
        if (found := self._queues.get(name)) is not None:
            self._forget(name, found)

    def _forget(self, name: str, queue: PersistentQueue[bytes]) -> None:
        if self._queues.get(name) is queue:  # otherwise another thread has opened it anew
            del self._queues[name]
            self._looked.pop(name, None)
        queue.close()

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Settle a message in the block; if its queue was purged or dropped meanwhile, there is nothing to settle."""
        try:
            yield
        except (LeaseExpiredError, GoneError):
            pass
        except ClosedError:
            if self._is_closed:  # otherwise only its queue is closed, since it was dropped
                raise

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        ticket: int = self._engine.listen()
        return ticket

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changes in the directory after the ticket was given; may return early."""
        self._engine.sleep(ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        with suppress(QueueError):
            self._engine.wake()

    def close(self) -> None:
        """Close all queues; items leased to them return."""
        self._is_closed = True
        with ExitStack() as stack:  # each, even if closing others fails
            stack.callback(self.control.close)
            for queue in list(self._queues.values()):
                stack.callback(queue.close)

    # --- declarations

    def declared(self, name: str) -> Declared | None:
        """Return the declaration of a queue, None if there is none."""
        found = self.control.state.get(f"q/{named(name)}")
        return None if found is None else Declared(*json.loads(found)[1:])

    def declare(self, name: str, known: Declared) -> None:
        """Store the declaration of a queue, and drop queues that have expired."""
        self.control.state[f"q/{named(name)}"] = json.dumps([name, *known]).encode()
        for key in [key for key in self.control.state if key.startswith("q/")]:
            with suppress(KeyError):
                other, *fields = json.loads(self.control.state[key])
                each = Declared(*fields)
                if other != name and each.is_over():
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
        with self.control.transaction():  # the queue may just have been dropped
            if self.declared(name) is not None:
                self.control.state[f"q/{named(name)}"] = json.dumps([name, *known._replace(seen=now)]).encode()

    def drop(self, name: str, known: Declared | None = None) -> None:
        """Remove a queue, its messages and bindings; with ``known``, only if that is still its declaration.

        The declaration goes last: if the process is killed before that, the queue expires, and is dropped again.
        """
        with self.control.transaction():
            found = self.declared(name)
            if known is not None and found != known:  # its consumer has looked meanwhile
                return
            for key in [key for key in self.control.state if key.startswith("x/")]:
                table = json.loads(self.control.state[key])
                left = [row for row in table if row[2] != name]
                if left != table:
                    self.control.state[key] = json.dumps(left).encode()
        self.forget(name)
        with suppress(KeyError):
            self.control.drop_queue(named(name))
        with self.control.transaction():
            if self.declared(name) == found:  # otherwise it was declared again
                self.control.state.pop(f"q/{named(name)}", None)

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


def named(queue: str) -> str:
    """Return the name of the queue that holds one of kombu's."""
    name = f"q-{quote(queue, safe='')}"
    return name if len(name) <= _LONGEST else f"{name[:100]}-{blake2b(name.encode(), digest_size=16).hexdigest()}"
