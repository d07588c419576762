"""The queues, exchanges and bindings that a channel declares.

Owns: how AMQP's declarations become queues and records of the directory. Law: every process sees them: an event that a
worker publishes goes to the queue of a monitor. Must not know: messages, LMDB.

Choices that kombu and Celery force:

- *Exchanges* copy a message to each queue that is bound (``celery.pidbox``) or whose key matches.
- *Queues that are removed with their consumer* (replies, events, the mailboxes of workers) are recognized by
  ``auto_delete`` together with ``expires`` or ``exclusive``. They are dropped when their consumer leaves. If it was
  killed, the next declaration of any queue drops those whose consumer last looked more than ``expires`` seconds ago. In
  an event loop a thread looks for its consumers, so a busy one keeps its queue; one that was stopped for longer
  declares and binds it again.
"""

import logging
import time
from typing import Any, Final

from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments

from lmdbqueue.integrations.kombu._broker import Broker, Declared

_ABANDONED: Final = 86_400.0  # seconds until an exclusive queue whose consumer was killed expires, unless it says so
_ARGUMENTS: Final = frozenset(["x-expires", "x-message-ttl", "x-max-priority"])  # those with an effect

_log: Final = logging.getLogger("lmdbqueue")


class Topology(virtual.Channel):  # type: ignore[misc]
    """What a channel declares; the rest of it is in ``Channel``."""

    supports_fanout = True

    def __init__(self, connection: Any, **options: Any) -> None:
        super().__init__(connection, **options)
        self.broker: Broker = connection.broker
        self._known: dict[str, Declared] = {}  # the queues declared here

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
        before = self.broker.declared(queue)
        if before is None or before._replace(seen=0.0) != known._replace(seen=0.0) or not self.broker.has(queue):
            if without := sorted(arguments.keys() - _ARGUMENTS):
                _log.warning("arguments of queue %r that have no effect here: %s", queue, ", ".join(without))
            self.broker.declare(queue, known)
        else:
            self.broker.put_off(queue)
        self.broker.queue(queue)

    def _make_again(self, queue: str) -> None:
        """Declare and bind again a queue that was dropped while its consumer was stopped, if it was declared here."""
        known = self._known.get(queue)
        if known is not None:
            self.broker.declare(queue, known._replace(seen=time.time()))
        for exchange, routing_key, arguments in list(self.state.queue_bindings(queue)):
            self._queue_bind(exchange, *self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self.broker.has(queue)

    def _size(self, queue: str) -> int:
        return int(self.broker.on(queue, len)) if self.broker.has(queue) else 0

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if size:
            self.broker.on(queue, lambda found: found.clear())
        return size

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> None:
        """Remove a queue with its messages."""
        del if_unused  # consumers of other processes are not known
        if if_empty and self.broker.has(queue):
            found = self.broker.on(queue, lambda each: each.stats())
            if found.waiting or found.leased or found.delayed:
                return
        self._known.pop(queue, None)
        self.state.queue_bindings_delete(queue)
        self.broker.drop(queue)

    # --- exchanges

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the bindings of an exchange, made by any process."""
        return self.broker.table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        row = [routing_key or "", pattern or "", queue]
        if tuple(row) not in self.broker.table(exchange):
            self.broker.change(exchange, lambda table: table if row in table else [*table, row])

    def queue_bind(self, queue: str, exchange: str | None = None, routing_key: str = "", **options: Any) -> None:
        """Bind a queue to an exchange, even if it was bound before, since another process may have dropped it."""
        self.state.binding_delete(queue, exchange or "amq.direct", routing_key)
        super().queue_bind(queue, exchange, routing_key, **options)

    def queue_unbind(self, queue: str, exchange: str, routing_key: str = "", arguments: Any = None, **_: Any) -> None:
        """Remove a binding."""
        self.state.binding_delete(queue, exchange, routing_key)
        _, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        row = [routing_key or "", pattern or "", queue]
        self.broker.change(exchange, lambda table: [each for each in table if each != row])

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Remove an exchange with its bindings; its queues stay, as with AMQP."""
        del if_unused, nowait
        for routing_key, _, queue in self.broker.table(exchange):
            self.state.binding_delete(queue, exchange, routing_key)
        self.state.exchanges.pop(exchange, None)
        self.broker.change(exchange, lambda _: [])
