"""A channel: publishing messages, and delivering them to consumers.

Owns: when a message is leased, and when it is delivered. Law: a message is delivered once for each lease, by the
channel that leased it. Must not know: LMDB, what messages mean.

Choices that kombu and Celery force:

- *Several queues*: a message that an exchange passes to several is in all of them or in none. Acknowledging one copy
  does not affect the others.
- *How many at a time*: ``drain_events`` leases and delivers up to 16 messages, as with AMQP, if the prefetch count
  permits. Messages behind one whose callback raised come with the next call, and return if their consumer is cancelled.
- *A message without ack* (``no_ack``) is popped when it is delivered.
- *In an event loop* an acknowledgement leases the next message of its queue in the same step: one commit a task. Where
  a channel has several consumers, each 16th does not, and the next of them has its turn.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any, Final, NamedTuple

from lmdbqueue._base.errors import ClosedError, Full, GoneError, LeaseExpiredError, QueueError
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._local.relay import relay
from lmdbqueue._verbs.lease import Lease
from lmdbqueue.integrations.kombu._broker import named
from lmdbqueue.integrations.kombu._messages import how_to_push, message_of, stored, tagged
from lmdbqueue.integrations.kombu._qos import AT_ONCE, QoS
from lmdbqueue.integrations.kombu._topology import Topology

_log: Final = logging.getLogger("lmdbqueue")


class _Consumer(NamedTuple):
    """A consumer of the messages of a queue."""

    queue: str
    no_ack: bool
    deliver: Callable[[Any], object]
    stored_as: str  # the name of its queue in the directory


class Channel(Topology):
    """A channel whose queues are those of a directory."""

    QoS = QoS

    def __init__(self, connection: Any, **options: Any) -> None:
        super().__init__(connection, **options)
        self._by_tag: dict[str, _Consumer] = {}
        self.taken: deque[tuple[str, Any]] = deque()  # leased but not delivered, each with the tag of its consumer
        self._turn = 0  # the consumer whose queue is read first
        self._in_a_row = 0  # messages leased with an acknowledgement since the other consumers had their turn

    # --- messages

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **options: Any) -> None:
        """Append a message to the queue that its routing key names, or to all to which an exchange passes it."""
        if not exchange:
            super().basic_publish(message, exchange, routing_key, **options)
            return
        self._inplace_augment_message(message, exchange, routing_key)
        names = []
        for name in sorted(set(self._lookup(exchange, routing_key))):
            known = self.broker.declared(name)
            if known is not None and known.is_over():  # otherwise it might grow without end
                self.broker.drop(name, known)
            else:
                names.append(name)
        if len(names) == 1:
            self._put(names[0], message)
        elif names:
            self._put_all(names, message)

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self.broker.on(queue, lambda found: found.push(stored(message), **self._how(queue, message)))

    def _put_all(self, names: list[str], message: Any) -> None:
        """Append a message to all of several queues, or to none if this fails."""
        for is_last in (False, True):
            queues = {name: self.broker.queue(name) for name in names}
            try:
                with self.broker.control.transaction():
                    for name, queue in queues.items():
                        queue.push(stored(message), **self._how(name, message))
            except GoneError:  # one of the queues was dropped meanwhile
                if is_last:
                    raise
                for name in names:
                    self.broker.on(name, len)  # which opens it anew; messages of the others stay leased
            else:
                return

    def _how(self, queue: str, message: Any) -> dict[str, Any]:
        """Return the options with which a message is pushed."""
        known = self.broker.declared(queue)
        ttl = None if known is None else known.ttl
        return how_to_push(message, self._get_message_priority(message), ttl)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """Return the next message of a queue, None if there is none."""
        self.broker.put_off(queue)
        for payload in self._take(queue, 1, no_ack=no_ack):
            message = self.Message(payload, channel=self)
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def _take(self, queue: str, n: int, *, no_ack: bool) -> list[Any]:
        """Take up to ``n`` messages; items of any other kind become dead letters."""
        again = partial(self._make_again, queue)
        if no_ack:
            message = self.broker.on(queue, _popped, again)
            return [] if message is None else [tagged(message, 1)]
        while lease := self.broker.on(queue, lambda each: each.lease(n), again):
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
        if connection is None or not connection.is_in_loop() or not self.broker.is_mine:
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
        if self._in_a_row >= AT_ONCE and len(self._by_tag) > 1:
            self._in_a_row = 0
            return False
        try:
            more = relay(self.broker.queue(name), lease, seq, room)
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
                message = tagged(message_of(payload), attempts)
            except ValueError as error:
                with suppress(QueueError):  # a full disk: the lease ends with the connection
                    lease.reject(seq, str(error))
                continue
            messages.append(message)
            self.qos.hold(message["properties"]["delivery_tag"], lease, seq)
        return messages

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

    def look_again(self) -> None:
        """Make the event loop look for messages in its next turn, since there may be room for some."""
        if self.connection is not None:
            self.connection.is_to_look = True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering; remove the queue if it is removed with its consumer."""
        consumer = self._by_tag.pop(consumer_tag, None)
        super().basic_cancel(consumer_tag)
        if consumer is None or not self.broker.is_mine:
            return
        try:
            self._give_back(consumer_tag)
            queue = consumer.queue
            if queue not in self._active_queues:
                known = self.broker.declared(queue)
                if known is not None and known.is_passing:
                    self._known.pop(queue, None)
                    self.broker.drop(queue)
        except QueueError as error:  # leases end with the channel, and the queue expires
            _log.warning("a consumer of queue %r is cancelled, and cannot clean up: %s", consumer.queue, error)

    def _give_back(self, consumer_tag: str | None = None) -> None:
        """Give back undelivered leased messages, of one consumer or of all."""
        tags = [message["properties"]["delivery_tag"] for tag, message in self.taken if consumer_tag in (None, tag)]
        self.taken = deque(each for each in self.taken if consumer_tag not in (None, each[0]))
        if tags:
            self.qos.restore(tags, "it was not delivered")

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver some messages of the next consumer that has any; raise ``Empty`` if none has."""
        del timeout, callback
        if not self.broker.is_mine:
            self._begin_anew()
        if not self.taken:
            self._take_some()
        if not self._deliver_next():
            raise Empty
        self.deliver_taken()

    def deliver_taken(self) -> None:
        """Deliver leased messages that may be delivered, without reading the queues again."""
        for _ in range(AT_ONCE):
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
        self.broker = self.connection.broker
        self.taken.clear()
        self.qos.begin_anew()

    def _take_some(self) -> None:
        room = self.qos.can_take() if self._by_tag else 0
        consumers = list(self._by_tag.items())
        for turn in range(len(consumers) if room else 0):
            tag, consumer = consumers[(self._turn + turn) % len(consumers)]
            self.broker.put_off(consumer.queue)
            messages = self._take(consumer.queue, 1 if consumer.no_ack else room, no_ack=consumer.no_ack)
            if messages:
                self._turn = (self._turn + turn + 1) % len(consumers)
                self.taken.extend((tag, message) for message in messages)
                return
        raise Empty

    def put_off(self) -> None:
        """Record that this channel's queues have consumers; called by another thread."""
        for consumer in list(self._by_tag.values()):
            self.broker.put_off(consumer.queue)

    def close(self) -> None:
        """Give back unacknowledged messages, and cancel all consumers."""
        try:
            super().close()
        finally:
            if self.connection is not None:
                self.connection.close_channel(self)


def _popped(queue: PersistentQueue[bytes]) -> Any:
    """Remove and return the first message, None if there is none; items of any other kind become dead letters."""
    while (payload := queue.pop()) is not None:
        try:
            return message_of(payload)
        except ValueError as error:
            queue.dead_letter(queue.push(payload), str(error))
    return None
