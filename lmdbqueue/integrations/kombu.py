"""A transport for kombu, so that Celery runs without a broker: the extra ``celery``.

Owns: how exchanges, queues and messages of AMQP are kept in one queue directory; when a message is acknowledged. Law: a
message that was delivered but not acknowledged is leased to its connection, so it returns to its place immediately when
the connection closes or its process dies. Must not know: LMDB, what messages mean.

    import lmdbqueue.integrations.kombu  # registers lmdb://

    app = Celery("app", broker="lmdb:////var/lib/app/broker")  # a path: three slashes and /var/lib/app/broker

Each of kombu's queues is a queue of the directory. Exchanges, bindings and declarations are kept in the state of one
more queue, since every process must see them: an event that a worker publishes goes to the queue of a monitor.

Choices that kombu and Celery force:

- *Exchanges* copy the message to each queue that is bound (``celery.pidbox``) or whose key matches, in one transaction:
  acknowledging one copy does not affect the others.
- *Queues that are removed with their consumer* (replies, events, the mailboxes of workers) are recognized by
  ``auto_delete`` together with ``expires`` or ``exclusive``. They are dropped when their consumer leaves. If it was
  killed, the next declaration of any queue drops those whose consumer last looked more than ``expires`` seconds ago. In
  an event loop a thread looks for its consumers, so a busy one keeps its queue; one that was stopped for longer
  declares and binds it again.
- *How many at a time*: ``drain_events`` leases and delivers up to 16 messages, as with AMQP, if the prefetch count
  permits. Messages behind one whose callback raised come with the next call, and return if their consumer is cancelled.
- *A message without ack* (``no_ack``) is popped when it is delivered.
- *Rejected without requeue*: AMQP forgets the message, or passes it to a dead-letter exchange; here it becomes a dead
  letter.
- *Priorities* are 0 to 9, and higher ones leave sooner, as with RabbitMQ (Redis has it the other way round).
- *Eta*: Celery's worker takes a message that is due later, and holds it until then. One that is due in more than a
  minute stays in the queue until a minute before that, where no worker's death affects it.
- *In an event loop* an acknowledgement leases the next message of its queue in the same step: one commit a task. Where
  a channel has several consumers, each 16th does not, and the next of them has its turn.
- *Waiting*: a connection sleeps on the bell of the directory, which each commit rings; there is no polling interval.
  The event loop of a worker needs a descriptor to wait for, so a thread sleeps on the bell and writes to a pipe:
  immediately when the worker was idle, and every 10 ms at most when it is busy, since most commits are its own then.
"""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count
from queue import Empty
from typing import Any, Final, NamedTuple

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport.base import to_rabbitmq_queue_arguments

from lmdbqueue._errors import (
    AccessError,
    ClosedError,
    CorruptItemError,
    CorruptQueueError,
    FormatError,
    Full,
    GoneError,
    LeaseExpiredError,
    NestedCallError,
    QueueError,
    StorageError,
)
from lmdbqueue._local.relay import relay
from lmdbqueue._verbs.lease import Lease
from lmdbqueue.integrations._broker import Broker, Declared, message_of, named, popped, stored

__all__ = ["Channel", "Transport"]

TRANSPORT_ALIASES["lmdb"] = "lmdbqueue.integrations.kombu:Transport"

_LOOK: Final = 1.0  # seconds between two checks of a waiting connection
_APART: Final = 0.01  # seconds between two checks of an event loop, since most commits are its own
_SOONEST: Final = 0.001  # seconds after which a message may expire
_LATEST: Final = 100 * 365 * 86_400.0  # seconds after which one may expire or be due, the most that a push accepts
_EARLY: Final = 60.0  # seconds before its eta at which a worker gets a message
_AT_ONCE: Final = 16  # the most messages leased together
_ABANDONED: Final = 86_400.0  # seconds until an exclusive queue whose consumer was killed expires, unless it says so
_ARGUMENTS: Final = frozenset(["x-expires", "x-message-ttl", "x-max-priority"])  # those with an effect
# kombu and Celery answer these with a new connection; TransactionError, the caller's mistake, would only come again
_OF_THE_DIRECTORY: Final = (
    AccessError,
    ClosedError,
    CorruptItemError,
    CorruptQueueError,
    FormatError,
    Full,
    GoneError,
    NestedCallError,
    StorageError,
)
_tags = count(1)


class QoS(virtual.QoS):  # type: ignore[misc]
    """The messages that were delivered but not acknowledged: each is leased."""

    restore_at_shutdown = True

    def __init__(self, channel: "Channel", prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._leases: dict[Any, tuple[Lease[bytes], int]] = {}
        self._process = os.getpid()

    def hold(self, tag: str, lease: Lease[bytes], seq: int) -> None:
        """Note the lease of a message, before it is delivered."""
        self._leases[tag] = lease, seq

    def can_take(self, leaving: int = 0) -> int:
        """Return how many messages may be leased after ``leaving`` of them have left."""
        if not self.prefetch_count:
            return max(0, _AT_ONCE - len(self.channel.taken))
        return max(0, min(_AT_ONCE, int(self.prefetch_count) - len(self._leases) + leaving))

    def can_deliver(self, taken: int) -> bool:
        """Return whether one of the ``taken`` messages, leased but not delivered, may be delivered."""
        return not self.prefetch_count or len(self._leases) - taken < self.prefetch_count

    def ack(self, delivery_tag: Any) -> None:
        """Remove the message, durably."""
        held = self._leases.get(delivery_tag)
        if held is not None and self.channel.ack_and_take(*held):
            self._leases.pop(delivery_tag, None)
        else:
            self._settle(delivery_tag, lambda lease, seq: lease.ack(seq))
        self._quick_ack(delivery_tag)

    def before(self, delivery_tag: Any) -> list[Any]:
        """Return the tags of the unacknowledged messages that were delivered before this one."""
        taken = {message["properties"]["delivery_tag"] for _, message in self.channel.taken}
        return [tag for tag in self._leases if int(tag) < int(delivery_tag) and tag not in taken]

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Give the message back, or set it aside as a dead letter."""
        if requeue:
            self._settle(delivery_tag, lambda lease, seq: lease.nack(seq, reason="it was given back"))
        else:
            self._settle(delivery_tag, lambda lease, seq: lease.reject(seq))
        self._quick_ack(delivery_tag)

    def restore(self, tags: Iterable[Any], reason: str) -> None:
        """Give back messages, those of one lease in one step; a failure does not affect the others."""
        by_lease: dict[int, tuple[Lease[bytes], dict[Any, int]]] = {}
        for tag in tags:
            if (held := self._leases.get(tag)) is not None:
                lease, seq = held
                by_lease.setdefault(id(lease), (lease, {}))[1][tag] = seq
        with ExitStack() as stack:
            for lease, some in by_lease.values():
                stack.callback(self._give_back, lease, some, reason)

    def _give_back(self, lease: Lease[bytes], some: dict[Any, int], reason: str) -> None:
        with self.channel.broker.settling():
            lease.nack(list(some.values()), reason=reason)
        for tag in some:
            self._leases.pop(tag, None)
            self._quick_ack(tag)

    def begin_anew(self) -> None:
        """Hold nothing in a forked child: leased messages belong to its parent."""
        self._process = os.getpid()
        self._leases.clear()
        self._delivered.clear()
        self._dirty.clear()

    def restore_unacked(self) -> list[Any]:
        """Give back all unacknowledged messages."""
        self.channel.taken.clear()
        self.restore(list(self._leases), "its channel was closed")
        self._flush()
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back all unacknowledged messages when the channel closes; not in a forked child."""
        del stderr
        self._on_collect.cancel()
        if self._process == os.getpid():
            try:
                self.restore_unacked()
            except QueueError as error:  # they return when the connection closes, or its process ends
                _logger().warning("messages of a channel that closes could not be given back: %s", error)
        self._delivered.clear()
        self._delivered.restored = True

    def _settle(self, tag: Any, do: Callable[[Lease[bytes], int], None]) -> None:
        held = self._leases.get(tag)
        if held is not None:
            with self.channel.broker.settling():
                do(*held)
            self._leases.pop(tag, None)  # only now: after a failure it can be repeated
            self.channel.look_again()


class _Consumer(NamedTuple):
    """A consumer of the messages of a queue."""

    queue: str
    no_ack: bool
    deliver: Callable[[Any], object]
    stored_as: str  # the name of its queue in the directory


class Channel(virtual.Channel):  # type: ignore[misc]
    """A channel whose queues are those of a directory."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: "Transport", **options: Any) -> None:
        super().__init__(connection, **options)
        self._broker = connection.broker
        self._known: dict[str, Declared] = {}  # the queues declared here
        self._by_tag: dict[str, _Consumer] = {}
        self.taken: deque[tuple[str, Any]] = deque()  # leased but not delivered, each with the tag of its consumer
        self._turn = 0
        self._in_a_row = 0  # messages leased with an acknowledgement since the other consumers had their turn

    # --- queues

    def prepare_queue_arguments(self, arguments: Any, **options: Any) -> Any:
        """Return the arguments of a queue, as RabbitMQ names them."""
        return to_rabbitmq_queue_arguments(arguments, **options)

    def _new_queue(self, queue: str, **options: Any) -> None:
        arguments = options.get("arguments") or {}
        expires, ttl = arguments.get("x-expires"), arguments.get("x-message-ttl")
        is_passing = bool(options.get("auto_delete")) and (expires is not None or bool(options.get("exclusive")))
        lasts = (_ABANDONED if is_passing else None) if expires is None else expires / 1000
        known = Declared(lasts, None if ttl is None else ttl / 1000, is_passing, time.time())
        self._known[queue] = known
        before = self._broker.declared(queue)
        if before is None or before._replace(seen=0.0) != known._replace(seen=0.0) or not self._broker.has(queue):
            if without := sorted(arguments.keys() - _ARGUMENTS):
                _logger().warning("arguments of queue %r that have no effect here: %s", queue, ", ".join(without))
            self._broker.declare(queue, known)
        else:
            self._broker.put_off(queue)
        self._broker.queue(queue)

    def _make_again(self, queue: str) -> None:
        """Declare and bind again a queue that was dropped while its consumer was stopped, if it was declared here."""
        known = self._known.get(queue)
        if known is not None:
            self._broker.declare(queue, known._replace(seen=time.time()))
        for exchange, routing_key, arguments in list(self.state.queue_bindings(queue)):
            self._queue_bind(exchange, *self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments))

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
        if if_empty and self._broker.has(queue):
            found = self._broker.on(queue, lambda each: each.stats())
            if found.waiting or found.leased or found.delayed:
                return
        self._known.pop(queue, None)
        self.state.queue_bindings_delete(queue)
        self._broker.drop(queue)

    # --- exchanges

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the bindings of an exchange, made by any process."""
        return self._broker.table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        row = [routing_key or "", pattern or "", queue]
        if tuple(row) not in self._broker.table(exchange):
            self._broker.change(exchange, lambda table: table if row in table else [*table, row])

    def queue_bind(self, queue: str, exchange: str | None = None, routing_key: str = "", **options: Any) -> None:
        """Bind a queue to an exchange, even if it was bound before, since another process may have dropped it."""
        self.state.binding_delete(queue, exchange or "amq.direct", routing_key)
        super().queue_bind(queue, exchange, routing_key, **options)

    def queue_unbind(self, queue: str, exchange: str, routing_key: str = "", arguments: Any = None, **_: Any) -> None:
        """Remove a binding."""
        self.state.binding_delete(queue, exchange, routing_key)
        _, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        row = [routing_key or "", pattern or "", queue]
        self._broker.change(exchange, lambda table: [each for each in table if each != row])

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Remove an exchange with its bindings; its queues stay, as with AMQP."""
        del if_unused, nowait
        for routing_key, _, queue in self._broker.table(exchange):
            self.state.binding_delete(queue, exchange, routing_key)
        self.state.exchanges.pop(exchange, None)
        self._broker.change(exchange, lambda _: [])

    # --- messages

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **options: Any) -> None:
        """Append a message to the queue that its routing key names, or to all to which an exchange passes it."""
        if not exchange:
            super().basic_publish(message, exchange, routing_key, **options)
            return
        self._inplace_augment_message(message, exchange, routing_key)
        names = []
        for name in sorted(set(self._lookup(exchange, routing_key))):
            known = self._broker.declared(name)
            if known is not None and known.is_over():  # otherwise it might grow without end
                self._broker.drop(name, known)
            else:
                names.append(name)
        if len(names) == 1:
            self._put(names[0], message)
        elif names:
            self._put_all(names, message)

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self._broker.on(queue, lambda found: found.push(stored(message), **self._how(queue, message)))

    def _put_all(self, names: list[str], message: Any) -> None:
        """Append a message to all of several queues, or to none if this fails."""
        for is_last in (False, True):
            queues = {name: self._broker.queue(name) for name in names}
            try:
                with self._broker.control.transaction():
                    for name, queue in queues.items():
                        queue.push(stored(message), **self._how(name, message))
            except GoneError:  # one of the queues was dropped meanwhile
                if is_last:
                    raise
                for name in names:
                    self._broker.on(name, len)  # which opens it anew; messages of the others stay leased
            else:
                return

    def _how(self, queue: str, message: Any) -> dict[str, Any]:
        """Return the options with which a message is pushed."""
        how: dict[str, Any] = {"priority": -self._get_message_priority(message)}
        ends = [float(each) / 1000 for each in (message["properties"].get("expiration"),) if each]
        known = self._broker.declared(queue)
        if known is not None and known.ttl is not None:
            ends.append(known.ttl)
        if ends:
            how["expires"] = min(max(min(ends), _SOONEST), _LATEST)
        eta = (message.get("headers") or {}).get("eta")
        if isinstance(eta, str):
            with suppress(ValueError):
                due = datetime.fromisoformat(eta)
                delay = (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp() - time.time() - _EARLY
                if delay > 0:
                    how["delay"] = min(delay, _LATEST)
        return how

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """Return the next message of a queue, leased."""
        del timeout
        for message in self._take(queue, 1, no_ack=False):
            return message
        raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """Return the next message of a queue, None if there is none."""
        self._broker.put_off(queue)
        for payload in self._take(queue, 1, no_ack=no_ack):
            message = self.Message(payload, channel=self)
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def _take(self, queue: str, n: int, *, no_ack: bool) -> list[Any]:
        """Take up to ``n`` messages; items of any other kind become dead letters."""
        made = partial(self._make_again, queue)
        if no_ack:
            message = self._broker.on(queue, popped, made)
            return [] if message is None else [self._marked(message, 1)]
        while lease := self._broker.on(queue, lambda each: each.lease(n), made):
            if messages := self._held(lease):
                return messages
        return []

    def ack_and_take(self, lease: Lease[bytes], seq: int) -> bool:
        """Acknowledge a message, and lease the next for its consumer in the same step.

        Only in an event loop, which delivers at its next turn what was leased.

        Args:
            lease: The lease of the message.
            seq: Its number.

        Returns:
            Whether it was acknowledged. If there is no consumer, its lease is over, or other consumers of the channel
            have waited for long enough, this does nothing.
        """
        connection = self.connection
        if connection is None or not connection.is_in_loop() or not self._broker.is_mine:
            return False
        found = (
            (tag, each.queue)
            for tag, each in self._by_tag.items()
            if each.stored_as == lease.queue_name and not each.no_ack
        )
        tag, name = next(found, ("", ""))
        room = self.qos.can_take(1)
        if not tag or not room:
            return False
        if self._in_a_row >= _AT_ONCE and len(self._by_tag) > 1:
            self._in_a_row = 0
            return False
        try:
            more = relay(self._broker.queue(name), lease, seq, room)
        except (LeaseExpiredError, GoneError, ClosedError, Full):  # the last: to acknowledge needs no room
            return False
        self._in_a_row += len(more)
        self.taken.extend((tag, message) for message in self._held(more))
        connection.has_taken |= bool(self.taken)
        connection.is_to_look |= len(more) < room  # there may be messages in another queue
        return True

    def _held(self, lease: Lease[bytes]) -> list[Any]:
        messages = []
        for payload, seq, attempts in zip(lease.items, lease.seqs, lease.attempts, strict=True):
            try:
                message = self._marked(message_of(payload), attempts)
            except ValueError as error:
                with suppress(QueueError):  # a full disk: the lease ends with the connection
                    lease.reject(seq, str(error))
                continue
            messages.append(message)
            self.qos.hold(message["properties"]["delivery_tag"], lease, seq)
        return messages

    def _marked(self, message: Any, attempts: int) -> Any:
        properties = message["properties"]
        properties["delivery_tag"] = f"{next(_tags)}"
        properties["delivery_info"]["redelivered"] = attempts > 1
        return message

    # --- consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> None:
        """Begin to deliver the messages of a queue."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        # a kombu connection has one callback for each queue: the channel that leases a message must deliver it
        deliver = self.connection._callbacks[queue]  # noqa: SLF001
        self._by_tag[consumer_tag] = _Consumer(queue, no_ack, deliver, named(queue))
        self.look_again()

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Acknowledge a message; with ``multiple`` also those that this channel has delivered before it."""
        for tag in self.qos.before(delivery_tag) if multiple else ():
            self.qos.ack(tag)
        super().basic_ack(delivery_tag)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Limit the number of delivered but unacknowledged messages."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        if not self.qos.can_deliver(len(self.taken)):
            self._give_back()
        self.look_again()

    @property
    def broker(self) -> Broker:
        """The directory of its connection."""
        return self._broker

    def look_again(self) -> None:
        """Make the event loop look for messages in its next turn, since there may be room for some."""
        if self.connection is not None:
            self.connection.is_to_look = True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering; remove the queue if it is removed with its consumer."""
        consumer = self._by_tag.pop(consumer_tag, None)
        super().basic_cancel(consumer_tag)
        if consumer is None or not self._broker.is_mine:
            return
        try:
            self._give_back(consumer_tag)
            queue = consumer.queue
            if queue not in self._active_queues:
                known = self._broker.declared(queue)
                if known is not None and known.is_passing:
                    self._known.pop(queue, None)
                    self._broker.drop(queue)
        except QueueError as error:  # leases end with the channel, and the queue expires
            _logger().warning("a consumer of queue %r is cancelled, and cannot clean up: %s", consumer.queue, error)

    def _give_back(self, consumer_tag: str | None = None) -> None:
        """Give back undelivered leased messages, of one consumer or of all."""
        tags = [message["properties"]["delivery_tag"] for tag, message in self.taken if consumer_tag in (None, tag)]
        self.taken = deque(each for each in self.taken if consumer_tag not in (None, each[0]))
        if tags:
            self.qos.restore(tags, "it was not delivered")

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver some messages of the next consumer that has any; raise ``Empty`` if none has."""
        del timeout, callback
        if not self._broker.is_mine:
            self._begin_anew()
        if not self.taken:
            self._take_some()
        if not self._deliver_next():
            raise Empty
        self.deliver_taken()

    def deliver_taken(self) -> None:
        """Deliver leased messages that may be delivered, without reading the queues again."""
        for _ in range(_AT_ONCE):
            if not self.taken or not self._deliver_next():
                return
        if self.connection is not None:
            self.connection.has_taken = True  # consumers that acknowledge immediately make room for more without end

    def _deliver_next(self) -> bool:
        if not self.qos.can_deliver(len(self.taken)):
            return False
        tag, message = self.taken.popleft()
        self._by_tag[tag].deliver(message)
        return True

    def _begin_anew(self) -> None:
        """Continue in a forked child, without the messages that its parent has taken."""
        self._broker = self.connection.broker
        self.taken.clear()
        self.qos.begin_anew()

    def _take_some(self) -> None:
        room = self.qos.can_take() if self._by_tag else 0
        consumers = list(self._by_tag.items())
        for turn in range(len(consumers) if room else 0):
            tag, consumer = consumers[(self._turn + turn) % len(consumers)]
            self._broker.put_off(consumer.queue)
            messages = self._take(consumer.queue, 1 if consumer.no_ack else room, no_ack=consumer.no_ack)
            if messages:
                self._turn = (self._turn + turn + 1) % len(consumers)
                self.taken.extend((tag, message) for message in messages)
                return
        raise Empty

    def put_off(self) -> None:
        """Record that this channel's queues have consumers; called by another thread."""
        for consumer in list(self._by_tag.values()):
            self._broker.put_off(consumer.queue)

    def close(self) -> None:
        """Give back unacknowledged messages, and cancel all consumers."""
        try:
            super().close()
        finally:
            if self.connection is not None:
                self.connection.close_channel(self)


class Transport(virtual.Transport):  # type: ignore[misc]
    """kombu on a queue directory: ``lmdb:////path/of/the/directory``.

    The directory is created if it is missing; its parent must exist. With ``transport_options={"durability":
    "interval"}`` nothing waits for the disk: messages survive killed processes, and a power cut undoes at most the last
    moments. With ``"off"`` nothing is promised after a power cut.
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
        self._alarm: _Alarm | None = None
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
            if (host := self.client.hostname) not in (None, "", "localhost"):  # it would be left out of the path
                message = (
                    f"'lmdb://{host}/...' names a host, {host!r}: write 'lmdb:///' and a relative path, "
                    "or 'lmdb:////' and the rest of an absolute one"
                )
                raise ValueError(message)
            durability = self.client.transport_options.get("durability", "full")
            self._opened = Broker(self.client.virtual_host, durability)
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
        """Deliver messages from the loop of a hub from now on."""
        del connection
        self._leave()
        alarm = self._alarm = _Alarm(self.broker, self._put_off)
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


class _Alarm:
    """A descriptor, readable when the directory may have messages; its thread also keeps consumers' queues alive."""

    def __init__(self, broker: Broker, put_off: Callable[[], None]) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._broker = broker
        self._put_off = put_off
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
        """End the thread, and free the descriptors."""
        self._is_closed = True
        self._broker.wake()
        self._thread.join(2 * _LOOK)
        if not self._thread.is_alive():
            os.close(self.reader)
            os.close(self._writer)

    def _sleep(self) -> None:
        while not self._is_closed:
            try:
                ticket = self._broker.listen()
                self.ring()
                self._put_off()
                looked = time.monotonic()
                self._broker.sleep(ticket, _LOOK)
                time.sleep(max(0.0, looked + _APART - time.monotonic()))
            except ClosedError:
                return
            except (QueueError, OSError):  # the loop will look, too, and get the same error
                time.sleep(_LOOK)
                self.ring()


def _nothing() -> None:
    pass


def _logger() -> logging.Logger:
    return logging.getLogger("lmdbqueue")
