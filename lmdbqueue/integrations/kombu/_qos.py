"""The messages that were delivered but not acknowledged.

Owns: the lease behind each delivery tag, the prefetch count. Law: a message stays leased until its acknowledgement or
its return is stored, and after a failure either can be repeated. Must not know: queues, exchanges, event loops.

A message that is rejected without requeue becomes a dead letter; AMQP forgets it, or passes it to a dead-letter
exchange.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Final

from kombu.transport import virtual

from lmdbqueue._base.errors import QueueError
from lmdbqueue._verbs.lease import Lease

AT_ONCE: Final = 16  # the most messages leased together

_log: Final = logging.getLogger("lmdbqueue")


class QoS(virtual.QoS):  # type: ignore[misc]
    """The messages that were delivered but not acknowledged: each is leased."""

    restore_at_shutdown = True

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._leases: dict[Any, tuple[Lease[bytes], int]] = {}
        self._process = os.getpid()

    def hold(self, tag: str, lease: Lease[bytes], seq: int) -> None:
        """Note the lease of a message, before it is delivered."""
        self._leases[tag] = lease, seq

    def can_take(self, leaving: int = 0) -> int:
        """Return how many messages may be leased after ``leaving`` of them have left."""
        if not self.prefetch_count:
            return max(0, AT_ONCE - len(self.channel.taken))
        return max(0, min(AT_ONCE, int(self.prefetch_count) - len(self._leases) + leaving))

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
                _log.warning("messages of a channel that closes could not be given back: %s", error)
        self._delivered.clear()
        self._delivered.restored = True

    def _settle(self, tag: Any, do: Callable[[Lease[bytes], int], object]) -> None:
        held = self._leases.get(tag)
        if held is not None:
            with self.channel.broker.settling():
                do(*held)
            self._leases.pop(tag, None)  # only now: after a failure it can be repeated
            self.channel.look_again()
