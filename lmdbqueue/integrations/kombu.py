"""A transport of kombu's, so that Celery runs without a broker: the extra ``celery``.

Owns: how exchanges, queues and messages of AMQP stand in one queue directory; when a message is acknowledged. Law: a
message that was delivered and not acknowledged is leased to its connection, so it comes back at once, to its place,
when that or its process dies. Must not know: LMDB, what messages mean.

    import lmdbqueue.integrations.kombu  # registers lmdb://

    app = Celery("app", broker="lmdb:////var/lib/app/broker")  # a path: three slashes and /var/lib/app/broker

Each queue of kombu's is a queue of the directory. Exchanges, bindings and what is known of queues are the state of one
more, since every process must see them: an event that a worker publishes goes to the queue of a monitor.

Choices that kombu and Celery force:

- *Fan-out* (``celery.pidbox``) copies the message to each bound queue, in one transaction: a consumer that acknowledges
  its copy says nothing of the others'.
- *Queues that go with their consumer* (replies, events, the boxes of workers) are told by ``auto_delete`` together with
  ``expires`` or ``exclusive``. They are dropped when their consumer leaves; when it was killed, whoever declares a new
  queue drops those whose ``expires`` seconds are over since their consumer last looked.
- *A message without ack* (``no_ack``) is popped when it is delivered.
- *Rejected without requeue*: AMQP forgets the message, or gives it to a dead-letter exchange; here it is a dead letter.
- *Priorities* are 0 to 9, and higher ones leave sooner, as with RabbitMQ (Redis has it the other way round).
- *Eta*: Celery's worker takes a message that is due later, and holds it until then. One that is due in more than a
  minute stays in the queue until a minute before, where no death of a worker touches it.
- *Waiting*: a connection sleeps on the bell of the directory, which each commit rings; there is no polling interval.
  The event loop of a worker wants a descriptor to wait for: a thread sleeps on the bell for it, and writes to a pipe.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import count
from queue import Empty
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.json import dumps, loads

from lmdbqueue._errors import FormatError, GoneError, LeaseExpiredError, QueueError
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.lease import Lease

__all__ = ["Channel", "Transport"]

TRANSPORT_ALIASES["lmdb"] = "lmdbqueue.integrations.kombu:Transport"

_LOOK: Final = 1.0  # seconds between two looks of a connection that waits
_SOONEST: Final = 0.001  # seconds after which a message may expire
_EARLY: Final = 60.0  # seconds before its eta at which a worker gets a message
_AT_ONCE: Final = 16  # messages that are leased together, at the most
_LONGEST: Final = 160  # bytes of a queue's name that is kept as it is
_tags = count(1)


class _Declared(NamedTuple):
    """What is known of a queue that was declared."""

    expires: float | None = None  # seconds without a consumer
    ttl: float | None = None  # seconds of a message
    is_passing: bool = False  # it goes with its consumer
    seen: float = 0.0  # when its consumer looked last, or it was declared, in seconds since 1970


class _Broker:
    """The queue directory, as one connection has it."""

    def __init__(self, path: str, durability: Any) -> None:
        self._path = os.path.abspath(path)
        self._options = {"durability": durability, "checksum": True}
        with suppress(FormatError):
            found = options_of(self._path)
            self._options = {"durability": found.durability, "checksum": found.checksum}
        self._lock = threading.Lock()
        self._queues: dict[str, PersistentQueue[bytes]] = {}
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
        with self._lock:
            found = self._queues.get(name)
            if found is None:
                found = self._queues[name] = self._open(_named(name))
            return found

    def on(self, name: str, do: Callable[[PersistentQueue[bytes]], Any]) -> Any:
        """Do something with a queue; if another process has dropped it, with a new one."""
        try:
            return do(self.queue(name))
        except GoneError:
            self.forget(name)
            return do(self.queue(name))

    def has(self, name: str) -> bool:
        """Return whether a queue is there."""
        return _named(name) in self.control.queues()

    def forget(self, name: str) -> None:
        """Close a queue here."""
        with self._lock:
            found = self._queues.pop(name, None)
        if found is not None:
            found.close()

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        ticket: int = self._engine.listen()
        return ticket

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed in the directory since the ticket was given, or for a while."""
        self._engine.sleep(ticket, timeout)

    def close(self) -> None:
        """Close all queues; what is leased to them goes back."""
        with self._lock:
            queues, self._queues = [*self._queues.values(), self.control], {}
        for queue in queues:
            queue.close()

    # --- what was declared

    def declared(self, name: str) -> _Declared | None:
        """Return what is known of a queue."""
        found = self.control.state.get(f"q/{_named(name)}")
        return None if found is None else _Declared(*json.loads(found)[1:])

    def declare(self, name: str, known: _Declared) -> None:
        """Note a queue, and drop those that nobody came back for."""
        self.control.state[f"q/{_named(name)}"] = json.dumps([name, *known]).encode()
        now = time.time()
        for key in [key for key in self.control.state if key.startswith("q/")]:
            with suppress(KeyError):
                other, *fields = json.loads(self.control.state[key])
                each = _Declared(*fields)
                if other != name and each.expires is not None and each.seen + each.expires < now:
                    self.drop(other)

    def put_off(self, name: str) -> None:
        """Record that a queue has a consumer."""
        now = time.time()
        if now < self._looked.get(name, 0.0):
            return
        known = self.declared(name)
        if known is None or known.expires is None:
            self._looked[name] = now + _LOOK * 60
            return
        self._looked[name] = now + known.expires / 3
        self.control.state[f"q/{_named(name)}"] = json.dumps([name, *known._replace(seen=now)]).encode()

    def drop(self, name: str) -> None:
        """Remove a queue, its messages, and its bindings."""
        with self.control.transaction():
            self.control.state.pop(f"q/{_named(name)}", None)
            for key in [key for key in self.control.state if key.startswith("x/")]:
                table = json.loads(self.control.state[key])
                left = [row for row in table if row[2] != name]
                if left != table:
                    self.control.state[key] = json.dumps(left).encode()
        self.forget(name)
        with suppress(KeyError):
            self.control.drop_queue(_named(name))

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


class QoS(virtual.QoS):  # type: ignore[misc]
    """The messages that were delivered and not acknowledged: each is leased."""

    restore_at_shutdown = True

    def __init__(self, channel: "Channel", prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._leases: dict[Any, tuple[Lease[bytes], int]] = {}
        self._process = os.getpid()

    def hold(self, tag: str, lease: Lease[bytes], seq: int) -> None:
        """Note the lease of a message, before it is delivered."""
        self._leases[tag] = lease, seq

    def can_take(self) -> int:
        """Return how many messages may be delivered now."""
        if not self.prefetch_count:
            return _AT_ONCE
        room = self.prefetch_count - (len(self._delivered) - len(self._dirty))
        return max(0, min(_AT_ONCE, int(room)))

    def ack(self, delivery_tag: Any) -> None:
        """Remove the message, durably."""
        self._settle(delivery_tag, lambda lease, seq: lease.ack(seq))
        self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Give the message back, or set it aside as a dead letter."""
        if requeue:
            self._settle(delivery_tag, lambda lease, seq: lease.nack(seq, reason="it was given back"))
        else:
            self._settle(delivery_tag, lambda lease, seq: lease.reject(seq))
        self._quick_ack(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        """Give back all that was not acknowledged."""
        for tag in list(self._leases):
            self._settle(tag, lambda lease, seq: lease.nack(seq, reason="its channel was closed"))
        self._flush()
        self._delivered.clear()
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back all that was not acknowledged, when the channel closes; not in a forked child."""
        del stderr
        self._on_collect.cancel()
        if self._process == os.getpid():
            self.restore_unacked()
        self._delivered.restored = True

    def _settle(self, tag: Any, do: Callable[[Lease[bytes], int], None]) -> None:
        held = self._leases.pop(tag, None)
        if held is not None:
            with suppress(LeaseExpiredError, GoneError):  # the queue was purged or dropped: there is nothing to settle
                do(*held)
            self.channel.look_again()


class Channel(virtual.Channel):  # type: ignore[misc]
    """A channel whose queues are those of a directory."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: "Transport", **options: Any) -> None:
        super().__init__(connection, **options)
        self._broker = connection.broker
        self._without_ack: set[str] = set()  # queues whose consumer acknowledges nothing
        self._turn = 0

    # --- queues

    def prepare_queue_arguments(self, arguments: Any, **options: Any) -> Any:
        """Return the arguments of a queue, as RabbitMQ names them."""
        return to_rabbitmq_queue_arguments(arguments, **options)

    def _new_queue(self, queue: str, **options: Any) -> None:
        arguments = options.get("arguments") or {}
        expires, ttl = arguments.get("x-expires"), arguments.get("x-message-ttl")
        is_passing = bool(options.get("auto_delete")) and (expires is not None or bool(options.get("exclusive")))
        known = _Declared(
            None if expires is None else expires / 1000, None if ttl is None else ttl / 1000, is_passing, time.time()
        )
        before = self._broker.declared(queue)
        if before is None or before._replace(seen=0.0) != known._replace(seen=0.0) or not self._broker.has(queue):
            self._broker.declare(queue, known)
        self._broker.queue(queue)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self._broker.has(queue)

    def _size(self, queue: str) -> int:
        return int(self._broker.on(queue, len)) if self._broker.has(queue) else 0

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if size:
            self._broker.on(queue, lambda found: found.clear())
        return size

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> None:
        """Remove a queue with its messages."""
        del if_unused  # consumers of other processes are not known
        if if_empty and self._size(queue):
            return
        self.state.queue_bindings_delete(queue)
        self._broker.drop(queue)

    # --- exchanges

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the bindings of an exchange, of all processes."""
        return self._broker.table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        row = [routing_key or "", pattern or "", queue]
        if tuple(row) not in self._broker.table(exchange):
            self._broker.change(exchange, lambda table: table if row in table else [*table, row])

    def queue_bind(self, queue: str, exchange: str | None = None, routing_key: str = "", **options: Any) -> None:
        """Bind a queue to an exchange, also if it was bound before and another process has dropped it since."""
        self.state.binding_delete(queue, exchange or "amq.direct", routing_key)
        super().queue_bind(queue, exchange, routing_key, **options)

    def queue_unbind(self, queue: str, exchange: str, routing_key: str = "", arguments: Any = None, **_: Any) -> None:
        """Remove a binding."""
        self.state.binding_delete(queue, exchange, routing_key)
        _, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        row = [routing_key or "", pattern or "", queue]
        self._broker.change(exchange, lambda table: [each for each in table if each != row])

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Remove an exchange with its bindings."""
        super().exchange_delete(exchange, if_unused, nowait)
        self._broker.change(exchange, lambda _: [])

    # --- messages

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self._broker.on(queue, lambda found: found.push(_stored(message), **self._how(queue, message)))

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **_: Any) -> None:
        del routing_key
        for is_last in (False, True):
            names = [name for _, _, name in self._broker.table(exchange)]
            queues = {name: self._broker.queue(name) for name in names}
            try:
                with self._broker.control.transaction():
                    for name, queue in queues.items():
                        queue.push(_stored(message), **self._how(name, message))
            except GoneError:  # one of them was dropped meanwhile
                if is_last:
                    raise
                for name in names:
                    self._broker.forget(name)
            else:
                return

    def _how(self, queue: str, message: Any) -> dict[str, Any]:
        """Return with which options a message is pushed."""
        how: dict[str, Any] = {"priority": -self._get_message_priority(message)}
        ends = [float(each) / 1000 for each in (message["properties"].get("expiration"),) if each]
        known = self._broker.declared(queue)
        if known is not None and known.ttl is not None:
            ends.append(known.ttl)
        if ends:
            how["expires"] = max(min(ends), _SOONEST)
        eta = (message.get("headers") or {}).get("eta")
        if isinstance(eta, str):
            with suppress(ValueError):
                due = datetime.fromisoformat(eta)
                delay = (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp() - time.time() - _EARLY
                if delay > 0:
                    how["delay"] = delay
        return how

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """Return the next message of a queue, leased, or popped if its consumer acknowledges nothing."""
        del timeout
        for message in self._take(queue, 1, no_ack=queue in self._without_ack):
            return message
        raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """Return the next message of a queue, None if there is none."""
        for payload in self._take(queue, 1, no_ack=no_ack):
            message = self.Message(payload, channel=self)
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def _take(self, queue: str, n: int, *, no_ack: bool) -> Iterator[Any]:
        """Take up to ``n`` messages."""
        found: list[tuple[bytes, Lease[bytes] | None, int, int]]
        if no_ack:
            popped = self._broker.on(queue, lambda each: each.pop())
            found = [] if popped is None else [(popped, None, 0, 1)]
        else:
            lease = self._broker.on(queue, lambda each: each.lease(n))
            rows = zip(lease.items, lease.seqs, lease.attempts, strict=True)
            found = [(item, lease, seq, attempts) for item, seq, attempts in rows]
        for item, lease_, seq, attempts in found:
            message = loads(item)
            properties = message["properties"]
            properties["delivery_tag"] = tag = f"{next(_tags)}"
            properties["delivery_info"]["redelivered"] = attempts > 1
            if lease_ is not None:
                self.qos.hold(tag, lease_, seq)
            yield message

    # --- consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> None:
        """Begin to deliver the messages of a queue."""
        if no_ack:
            self._without_ack.add(queue)
        super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        self.look_again()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Limit how many messages are delivered and not acknowledged."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.look_again()

    def look_again(self) -> None:
        """Make the event loop look for messages at its next turn, since there may be room for some."""
        if self.connection is not None:
            self.connection.is_to_look = True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Deliver no more; a queue that goes with its consumer goes."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self._without_ack.discard(queue)
            if self._broker.is_mine:
                known = self._broker.declared(queue)
                if known is not None and known.is_passing:
                    self._broker.drop(queue)

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver some messages of the next queue that has any; raise ``Empty`` if none has."""
        del timeout
        callback = callback or self.connection._deliver  # noqa: SLF001  (as kombu's own does)
        room = self.qos.can_take() if self._consumers else 0
        queues = list(dict.fromkeys(self._active_queues))
        for turn in range(len(queues) if room else 0):
            queue = queues[(self._turn + turn) % len(queues)]
            self._broker.put_off(queue)
            messages = list(self._take(queue, room, no_ack=queue in self._without_ack))
            if messages:
                self._turn = (self._turn + turn + 1) % len(queues)
                for message in messages:
                    callback(message, queue)
                return
        raise Empty


class Transport(virtual.Transport):  # type: ignore[misc]
    """kombu on a queue directory: ``lmdb:////path/of/the/directory``.

    The directory is made if it is not there; its parent must be. ``transport_options={"durability": "interval"}`` makes
    it without waits for the disk: then messages survive killed processes, and a power cut takes back the last moments.
    With ``"off"`` nothing is promised after a power cut.
    """

    Channel = Channel
    driver_type = "lmdb"
    driver_name = "lmdbqueue"
    default_port = 0
    polling_interval = None
    connection_errors = (*virtual.Transport.connection_errors, QueueError, OSError)
    channel_errors = (*virtual.Transport.channel_errors, QueueError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._opened: _Broker | None = None
        self._alarm: _Alarm | None = None
        self._leave: Callable[[], None] = _nothing  # the event loop
        self.is_to_look = False

    @property
    def broker(self) -> _Broker:
        """The directory of this connection."""
        if self._opened is None or not self._opened.is_mine:
            durability = self.client.transport_options.get("durability", "full")
            self._opened = _Broker(self.client.virtual_host, durability)
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
            self.broker.sleep(ticket, min(left, _LOOK))

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver messages from a hub's loop from now on."""
        del connection
        self._leave()
        alarm = self._alarm = _Alarm(self.broker)
        loop.add_reader(alarm.reader, self._on_alarm)
        loop.on_tick.add(self._on_tick)

        def leave() -> None:
            self._leave = _nothing
            with suppress(KeyError, ValueError, OSError):
                loop.remove_reader(alarm.reader)
            loop.on_tick.discard(self._on_tick)
            alarm.close()

        self._leave = leave

    def _on_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.quiet()
            self.is_to_look = True

    def _on_tick(self) -> None:
        if self.is_to_look:
            self.is_to_look = False
            with suppress(Empty):
                self.cycle.get(self._deliver)
                self.is_to_look = True  # there may be more, after what else the loop has to do
                if self._alarm is not None:
                    self._alarm.ring()

    def close_connection(self, connection: Any) -> None:
        """Close all channels, and the directory: what was not acknowledged goes back."""
        if self._opened is not None and self._opened.is_mine:
            self._leave()
        super().close_connection(connection)
        opened, self._opened = self._opened, None
        if opened is not None and opened.is_mine:
            opened.close()


class _Alarm:
    """A descriptor that can be read once there may be something in the directory."""

    def __init__(self, broker: _Broker) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._broker = broker
        self._is_closed = False
        self._thread = threading.Thread(target=self._sleep, name="lmdbqueue-alarm", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Make it readable."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def quiet(self) -> None:
        """Make it unreadable until the next ring."""
        with suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def close(self) -> None:
        """End the thread, at its next look, and free the descriptors."""
        self._is_closed = True
        self._thread.join(2 * _LOOK)
        if not self._thread.is_alive():
            os.close(self.reader)
            os.close(self._writer)

    def _sleep(self) -> None:
        with suppress(QueueError):  # closed
            while not self._is_closed:
                ticket = self._broker.listen()
                self.ring()
                self._broker.sleep(ticket, _LOOK)


def _nothing() -> None:
    pass


def _stored(message: Any) -> bytes:
    """Return a message as it is stored."""
    return str(dumps(message)).encode()


def _named(queue: str) -> str:
    """Return the name of the queue that stands for one of kombu's."""
    name = f"q-{quote(queue, safe='')}"
    return name if len(name) <= _LONGEST else f"{name[:100]}-{blake2b(name.encode(), digest_size=16).hexdigest()}"
