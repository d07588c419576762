"""A connection of kombu: a queue directory, opened by a URL.

Owns: how a connection waits for messages, and how an event loop delivers them. Law: there is no polling interval; a
forked child opens the directory anew. Must not know: LMDB, what messages mean.

A connection sleeps on the bell of the directory, which each commit rings; in an event loop its ``Alarm`` does.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any, Final

from kombu.transport import virtual

from lmdbqueue._base import errors as _errors
from lmdbqueue.integrations.kombu._alarm import LOOK, Alarm
from lmdbqueue.integrations.kombu._broker import Broker
from lmdbqueue.integrations.kombu._channel import Channel

# kombu and Celery answer these with a new connection; TransactionError, the caller's mistake, would only come again
_OF_THE_DIRECTORY: Final = (
    _errors.AccessError,
    _errors.ClosedError,
    _errors.CorruptItemError,
    _errors.CorruptQueueError,
    _errors.FormatError,
    _errors.Full,
    _errors.GoneError,
    _errors.NestedCallError,
    _errors.StorageError,
)


def _nothing() -> None:
    pass


class Transport(virtual.Transport):  # type: ignore[misc]
    """kombu on a queue directory: ``lmdb:////path/of/the/directory``.

    The directory is created if it is missing; its parent must exist. With ``transport_options={"durability":
    "interval"}`` nothing waits for the disk: messages survive killed processes, and a power cut undoes at most the last
    moments. With ``"off"`` nothing is promised after a power cut. Without it, a directory keeps its own.
    """

    Channel = Channel
    driver_type = "lmdb"
    driver_name = "lmdbqueue"
    default_port = 0
    polling_interval = None
    connection_errors = (*virtual.Transport.connection_errors, *_OF_THE_DIRECTORY, OSError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._opened: Broker | None = None
        self._alarm: Alarm | None = None
        self._leave: Callable[[], None] = _nothing  # leaves the event loop
        self._loop_thread: int | None = None
        self.is_to_look = False  # whether the event loop should look for messages
        self.has_taken = False  # whether a channel, in the event loop, has undelivered messages

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """None: there is no host, and kombu would warn that it takes a default for one."""
        return {}

    @property
    def broker(self) -> Broker:
        """The directory of this connection."""
        if self._opened is None or not self._opened.is_mine:
            host, path = self.client.hostname, self.client.virtual_host
            wrong = None
            if host not in (None, "", "localhost"):  # it would be left out of the path
                wrong = f"'lmdb://{host}/...' names a host, {host!r}"
            elif path in (None, "", "/"):  # kombu gives "/" for none
                wrong = "'lmdb://' names no directory"
            if wrong is not None:
                message = (
                    f"{wrong}: write 'lmdb:///' and a relative path, or 'lmdb:////' and the rest of an absolute one"
                )
                raise ValueError(message)
            self._opened = Broker(path, self.client.transport_options.get("durability"))
        return self._opened

    def driver_version(self) -> str:
        """Return the version of this library."""
        from lmdbqueue import __version__  # noqa: PLC0415  (which imports no integration)

        return __version__

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver some messages; wait for them, and raise ``socket.timeout`` after ``timeout`` seconds."""
        del connection
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            ticket = self.broker.listen()
            with suppress(Empty):
                self.cycle.get(self._deliver, timeout=timeout)
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise socket.timeout  # noqa: UP041  (as kombu says it)
            self.broker.sleep(ticket, min(left, LOOK))

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver messages from the loop of a hub from now on."""
        del connection
        self._leave()
        alarm = self._alarm = Alarm(self.broker, self._put_off)
        self._loop_thread = threading.get_ident()
        loop.add_reader(alarm.reader, self._on_alarm)
        loop.on_tick.add(self._on_tick)

        def leave() -> None:
            self._leave, self._alarm, self._loop_thread = _nothing, None, None
            with suppress(KeyError, ValueError, OSError):
                loop.remove_reader(alarm.reader)
            loop.on_tick.discard(self._on_tick)
            alarm.close()

        self._leave = leave

    def _on_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.quiet()
            self.is_to_look = True

    def is_in_loop(self) -> bool:
        """Return whether this is the thread of an event loop that delivers."""
        return self._loop_thread == threading.get_ident()

    def _on_tick(self) -> None:
        is_to_look, has_taken = self.is_to_look, self.has_taken
        if not (is_to_look or has_taken):
            return
        self.is_to_look = self.has_taken = False
        try:
            if is_to_look:
                with suppress(Empty):
                    self.cycle.get(self._deliver)
                    self._go_on()
            for channel in list(self.channels):
                channel.deliver_taken()
        except BaseException:
            self._go_on()
            raise
        if self.has_taken and self._alarm is not None:
            self._alarm.ring()

    def _go_on(self) -> None:
        """Look again, after the other work of the loop."""
        self.is_to_look = True
        if self._alarm is not None:
            self._alarm.ring()

    def _put_off(self) -> None:
        for channel in list(self.channels):
            channel.put_off()

    def close_connection(self, connection: Any) -> None:
        """Close all channels and the directory; unacknowledged messages return."""
        opened = self._opened
        try:
            if opened is not None and opened.is_mine:
                self._leave()
            super().close_connection(connection)
        finally:
            self._opened = None
            if opened is not None and opened.is_mine:
                opened.close()
