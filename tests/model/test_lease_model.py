"""Leases, delays, keys and dead letters do what a dict of items does, whichever object they are done through.

The clock is the model's. Owners die as a killed process does: their lock goes, and nothing else happens.
"""

import shutil
import tempfile

import pytest
from clocks import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lmdbqueue import LeaseExpiredError, PersistentQueue

SECOND = 10**9
handles = st.integers(0, 2)
few = st.integers(1, 4)
keys = st.sampled_from(["k", "l", "m"])
delays = st.sampled_from([0.0, 0.0, 1.0, 2.5, 7.0])


class Item:
    """What is known of an item: it waits at a place, is leased, delayed, or dead."""

    def __init__(self, seq, key):
        self.seq = seq
        self.key = key
        self.place = (seq > 0, 0, seq)  # what was due comes before numbers, but for 0
        self.attempts = 0
        self.where = "waiting"
        self.lease = None
        self.due = None

    def is_delayed(self, due):
        self.where, self.due = "delayed", due
        self.place = (True, -1, due, self.seq)


class LeaseMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize(limits=st.tuples(*[st.none() | st.integers(1, 3)] * 3), checksum=st.booleans())
    def create(self, limits, checksum):
        self.clock = Clock(*[1_000_000 * SECOND] * 2)
        self.path = tempfile.mkdtemp(dir="/dev/shm")
        self.options = {"durability": "off", "checksum": checksum}
        self.limits = limits
        self.queues = [self.opened(handle) for handle in range(3)]
        self.items = {}
        self.tail = 0
        self.held = {}  # by lease: handle, deadline

    def opened(self, handle):
        queue = PersistentQueue("queue", self.path, max_attempts=self.limits[handle], **self.options)
        return self.clock.given_to(queue)

    def teardown(self):
        if hasattr(self, "queues"):
            for queue in self.queues:
                queue.close()
            shutil.rmtree(self.path)

    # --- the oracle

    def waiting(self):
        return sorted((item for item in self.items.values() if item.where == "waiting"), key=lambda item: item.place)

    def leased(self, lease):
        return [item for item in self.items.values() if item.lease is lease]

    def come_back(self, lease, handle):
        """Let what a lease holds wait again, or die, as the object ``handle`` sees it."""
        for item in self.leased(lease):
            self.give_back(item, handle)
        self.held.pop(lease, None)

    def give_back(self, item, handle, due=None):
        limit = self.limits[handle]
        item.lease = None
        if limit is not None and item.attempts >= limit:
            item.where = "dead"
            item.key = None
        elif due is not None:
            item.is_delayed(due)
        else:
            item.where = "waiting"

    def restored(self, handle):
        """Do what whoever looks through the object ``handle`` does first."""
        for lease, (owner, deadline) in list(self.held.items()):
            if self.queues[owner[0]] is not owner[1] or deadline <= self.clock.wall:
                self.come_back(lease, handle)
        for item in self.items.values():
            if item.where == "delayed" and item.due <= self.clock.wall:
                item.where = "waiting"

    # --- what is done

    @rule(handle=handles, n=few, delay=delays, data=st.data())
    def push(self, handle, n, delay, data):
        unique = data.draw(st.none() | st.lists(st.none() | keys, min_size=n, max_size=n))
        expected = []
        for key in unique or [None] * n:
            there = [item.seq for item in self.items.values() if key is not None and item.key == key]
            if not there:
                item = self.items[self.tail] = Item(self.tail, key)
                if delay:
                    item.is_delayed(self.clock.wall + int(delay * SECOND))
                self.tail += 1
                there = [item.seq]
            expected += there
        numbers = self.queues[handle].push([f"item {n}"] * n, delay=delay, unique=unique)
        assert list(numbers) == expected

    @rule(handle=handles, n=few, ttl=st.none() | st.sampled_from([1.0, 3.0]), target=leases)
    def lease(self, handle, n, ttl):
        self.restored(handle)
        lease = self.queues[handle].lease(n, ttl=ttl)
        expected = self.waiting()[:n]
        assert lease.seqs == [item.seq for item in expected]
        for item in expected:
            item.attempts += 1
            item.where, item.lease = "leased", lease
        assert lease.attempts == [item.attempts for item in expected]
        if expected:
            deadline = float("inf") if ttl is None else self.clock.wall + int(ttl * SECOND)
            self.held[lease] = ((handle, self.queues[handle]), deadline)
        return lease

    def settle(self, lease, some, call):
        """Do ``call`` with those of the lease's items that ``some`` picks; return them if the lease still holds."""
        picked = lease.seqs[:some] if some else None
        mine = [item for item in self.leased(lease) if picked is None or item.seq in picked]
        is_open = self.queues[self.owner(lease)]._engine is lease._engine if lease.seqs else True
        if not is_open:
            return []
        believed = lease._held if picked is None else lease._held.intersection(picked)
        if lease not in self.held and believed:
            with pytest.raises(LeaseExpiredError):
                call(picked)
            return []
        call(picked)
        return mine

    def owner(self, lease):
        return next((at for at, queue in enumerate(self.queues) if queue._engine is lease._engine), 0)

    @rule(lease=leases, some=st.integers(0, 3))
    def ack(self, lease, some):
        for item in self.settle(lease, some, lease.ack):
            del self.items[item.seq]
        self.end_if_empty(lease)

    @rule(lease=consumes(leases), some=st.integers(0, 3), delay=delays)
    def nack(self, lease, some, delay):
        due = self.clock.wall + int(delay * SECOND) if delay else None
        handle = self.owner(lease)
        for item in self.settle(lease, some, lambda seqs: lease.nack(seqs, delay)):
            self.give_back(item, handle, due)
        self.end_if_empty(lease)

    def end_if_empty(self, lease):
        if not self.leased(lease):
            self.held.pop(lease, None)

    @rule(lease=leases, ttl=st.none() | st.sampled_from([1.0, 5.0]))
    def extend(self, lease, ttl):
        if not lease.seqs or self.queues[self.owner(lease)]._engine is not lease._engine:
            return
        if lease not in self.held and lease._held:
            with pytest.raises(LeaseExpiredError):
                lease.extend(ttl)
            return
        lease.extend(ttl)
        if lease not in self.held:
            return  # all of it was settled: there is nothing to extend
        deadline = float("inf") if ttl is None else self.clock.wall + int(ttl * SECOND)
        self.held[lease] = (self.held[lease][0], deadline)

    @rule(handle=handles, n=few, removing=st.sampled_from(["pop", "delete"]))
    def remove(self, handle, n, removing):
        if removing == "pop":
            self.restored(handle)
        else:
            len(self.queues[handle])
            self.restored(handle)
        expected = self.waiting()[:n]
        found = getattr(self.queues[handle], removing)(n)
        if removing == "delete":
            assert found == len(expected)
        for item in expected:
            del self.items[item.seq]

    @rule(handle=handles, everything=st.booleans())
    def clear(self, handle, everything):
        if len(self.items) < 8:  # it is left to grow
            return
        len(self.queues[handle])
        self.restored(handle)
        self.queues[handle].clear(all=everything)
        self.items = {seq: item for seq, item in self.items.items() if not everything and item.where != "waiting"}
        if everything:
            self.held = {}

    @rule(handle=handles, seqs=st.none() | st.lists(st.integers(0, 20), max_size=3), deleting=st.booleans())
    def dead(self, handle, seqs, deleting):
        dead = self.queues[handle].dead
        expected = [item for item in self.items.values() if item.where == "dead" and (seqs is None or item.seq in seqs)]
        assert (dead.delete if deleting else dead.requeue)(seqs) == len(expected)
        for item in expected:
            if deleting:
                del self.items[item.seq]
            else:
                item.where, item.attempts = "waiting", 0

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 4.0]))
    def time_passes(self, seconds):
        self.clock.go_on(seconds)

    @rule(handle=handles)
    def close(self, handle):
        mine = [lease for lease, (owner, _) in self.held.items() if owner == (handle, self.queues[handle])]
        for lease in mine:
            self.come_back(lease, handle)
        self.queues[handle].close()
        self.queues[handle] = self.opened(handle)

    @rule(handle=handles)
    def die(self, handle):
        self.queues[handle]._engine.owners.leave()
        self.queues[handle].close()
        self.queues[handle] = self.opened(handle)

    @rule(handle=handles)
    def flush(self, handle):
        self.queues[handle].flush(force=True)

    @invariant()
    def everything_is_where_the_model_has_it(self):
        queue = self.queues[0]
        self.restored(0)
        numbers = [queue._engine.opened(entry)[0] for entry in queue._engine.first(1_000)]
        assert numbers == [item.seq for item in self.waiting()]
        places = [item.where for item in self.items.values()]
        stats = queue.stats()
        assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == tuple(
            map(places.count, ("waiting", "leased", "delayed", "dead"))
        )
        assert [letter.seq for letter in queue.dead] == sorted(
            item.seq for item in self.items.values() if item.where == "dead"
        )
        assert queue.check() == []


@pytest.mark.usefixtures("weighed_without_syncs")
def test_leases_do_what_a_dict_does():
    run_state_machine_as_test(LeaseMachine, settings=settings(max_examples=180, stateful_step_count=30))
