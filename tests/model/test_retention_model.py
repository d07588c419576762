"""What a queue retains, beside expiry, leases and ``maxsize``, is what a list with the same limits has.

The clock is the model's.
"""

import shutil
import tempfile

import pytest
from clocks import SECOND, Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    rule,
    run_state_machine_as_test,
)

from lmdbqueue import Full, PersistentQueue

payloads = st.binary(max_size=9)
times = st.sampled_from([None, None, 1.0, 3.0, 8.0])


def weight(item):
    """Return the bytes that count of an item."""
    return len(item[1])


class RetentionMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize(
        items=st.none() | st.integers(1, 5),
        size=st.none() | st.integers(1, 40),
        seconds=st.none() | st.sampled_from([2.0, 6.0]),
        maxsize=st.sampled_from([0, 0, 3, 6]),
        expired=st.sampled_from(["drop", "dead"]),
    )
    def create(self, items, size, seconds, maxsize, expired):
        self.clock = Clock(*[1_000_000 * SECOND] * 2)
        self.path = tempfile.mkdtemp(dir="/dev/shm")
        options = {"maxsize": maxsize, "expired": expired, "dumps": bytes, "loads": bytes, "durability": "off"}
        self.queue = self.clock.given_to(PersistentQueue("queue", self.path, **options))
        self.queue.retain(items, bytes=size, seconds=seconds)
        self.limits = items, size, None if seconds is None else int(seconds * SECOND)
        self.maxsize = maxsize
        self.waiting = []  # number, payload, when it was pushed, when it expires
        self.held = {}  # by lease
        self.dropped = self.expired = self.tail = 0

    def teardown(self):
        if hasattr(self, "queue"):
            self.queue.close()
            shutil.rmtree(self.path)

    # --- the oracle

    def without_expired(self, items):
        return [item for item in items if item[3] is None or item[3] > self.clock.wall]

    def retained(self, items):
        """Return what stays of items in their order."""
        most, size, age = self.limits
        if most is not None:
            items = items[-most:]
        while age is not None and items and items[0][2] < self.clock.wall - age:
            items = items[1:]
        while size is not None and len(items) > 1 and sum(map(weight, items)) > size:
            items = items[1:]
        return items

    def trim(self):
        there = self.without_expired(self.waiting)
        self.expired += len(self.waiting) - len(there)
        self.waiting = self.retained(there)
        self.dropped += len(there) - len(self.waiting)

    # --- the verbs

    @rule(some=st.lists(payloads, min_size=1, max_size=8), expires=times)
    def push(self, some, expires):
        now = self.clock.wall
        until = None if expires is None else now + int(expires * SECOND)
        new = [(self.tail + number, payload, now, until) for number, payload in enumerate(some)]
        stay = self.retained([*self.without_expired(self.waiting), *new])
        if 0 < self.maxsize < sum(map(len, self.held.values())) + len(stay):
            with pytest.raises(Full):
                self.queue.push(some, expires=expires)
            return
        assert self.queue.push(some, expires=expires) == range(self.tail, self.tail + len(some))
        self.tail += len(some)
        self.waiting += new
        self.trim()

    @rule(target=leases, n=st.integers(1, 4))
    def lease(self, n):
        self.trim()
        lease = self.queue.lease(n)
        assert lease.items == [item[1] for item in self.waiting[:n]]
        self.held[lease], self.waiting = self.waiting[:n], self.waiting[n:]
        return lease

    @rule(lease=consumes(leases))
    def nack(self, lease):
        lease.nack()
        self.waiting = sorted(self.waiting + self.held.pop(lease))
        self.trim()

    @rule(lease=consumes(leases))
    def ack(self, lease):
        lease.ack()
        del self.held[lease]

    @rule(n=st.integers(1, 4))
    def pop(self, n):
        self.trim()
        assert self.queue.pop_many(n) == [item[1] for item in self.waiting[:n]]
        self.waiting = self.waiting[n:]

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0]))
    def go_on(self, seconds):
        self.clock.go_on(seconds)

    @rule()
    def look(self):
        self.trim()
        assert list(self.queue) == [item[1] for item in self.waiting]
        assert self.queue.check() == []

    @rule()
    def count(self):
        self.trim()
        stats = self.queue.stats()
        assert (stats.waiting, stats.dropped, stats.expired) == (len(self.waiting), self.dropped, self.expired)
        assert stats.dead == (self.expired if self.queue.expired == "dead" else 0)


@pytest.mark.usefixtures("weighed_without_syncs")
def test_what_is_retained_is_what_a_list_with_the_same_limits_has():
    run_state_machine_as_test(RetentionMachine, settings=settings(max_examples=20, stateful_step_count=20))
