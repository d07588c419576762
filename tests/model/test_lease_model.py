"""Leases, delays, keys, expiry, headers, priorities and dead letters do what a dict of items does, whichever object
they are done through.

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

from lmdbqueue import Empty, Full, LeaseExpiredError, Nacked, PersistentQueue
from lmdbqueue._base.values import Push
from lmdbqueue._verbs.encoding import digest

SECOND = 10**9
handles = st.integers(0, 2)
few = st.integers(1, 4)
keys = st.sampled_from(["k", "l", "m"])
delays = st.sampled_from([0.0, 0.0, 1.0, 2.5, 7.0])


class Item:
    """What is known of an item: it waits, is leased, delayed or dead, and always has the place of its number."""

    def __init__(self, seq, key, due, expires, headers):
        self.seq = seq
        self.key = key
        self.attempts = 0
        self.where = "delayed" if due else "waiting"
        self.lease = None
        self.due = due
        self.expires = expires
        self.headers = headers


class LeaseMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    @initialize(
        limits=st.tuples(*[st.none() | st.integers(1, 3)] * 3),
        expired=st.tuples(*[st.sampled_from(["drop", "dead"])] * 3),
        checksum=st.booleans(),
        maxsize=st.integers(1, 12),
    )
    def create(self, limits, expired, checksum, maxsize):
        self.clock = Clock(*[1_000_000 * SECOND] * 2)
        self.path = tempfile.mkdtemp(dir="/dev/shm")
        self.options = {"durability": "off", "checksum": checksum}
        self.limits = limits
        self.what_expired_is = expired
        self.queues = [self.opened(handle) for handle in range(3)]
        self.queues[2].maxsize = maxsize
        self.maxsize = maxsize
        self.items = {}
        self.tails = {}  # by priority
        self.holders = {}  # by unique key: the number of the newest item with it
        self.held = {}  # by lease: handle, deadline
        self.expired = 0

    def opened(self, handle):
        maxsize = getattr(self, "maxsize", 0) if handle == 2 else 0
        options = {"max_attempts": self.limits[handle], "expired": self.what_expired_is[handle], "maxsize": maxsize}
        queue = PersistentQueue("queue", self.path, **options, **self.options)
        return self.clock.given_to(queue)

    def teardown(self):
        if hasattr(self, "queues"):
            for queue in self.queues:
                queue.close()
            shutil.rmtree(self.path)

    # --- the oracle

    def waiting(self):
        return sorted((item for item in self.items.values() if item.where == "waiting"), key=lambda item: item.seq)

    def leave(self, item):
        """Let an item leave for good."""
        self.give_free(item)
        del self.items[item.seq]

    def give_free(self, item):
        if item.key is not None and self.holders.get(item.key) == item.seq:
            del self.holders[item.key]

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
        if item.key is not None and self.holders.get(item.key) != item.seq:  # it was replaced
            self.leave(item)
        elif self.is_over(item):
            self.expire(item, handle)
        elif limit is not None and item.attempts >= limit:
            self.die_of(item)
        else:
            item.where, item.due = ("waiting", None) if due is None else ("delayed", due)

    def die_of(self, item):
        self.give_free(item)
        item.where, item.expires = "dead", None

    def expire(self, item, handle):
        """Let an item whose time is over leave, or die, as the object ``handle`` has it."""
        self.expired += 1
        if self.what_expired_is[handle] == "dead":
            self.die_of(item)
        else:
            self.leave(item)

    def restored(self, handle):
        """Do what whoever looks through the object ``handle`` does first."""
        for lease, (owner, deadline) in list(self.held.items()):
            if self.queues[owner[0]] is not owner[1] or deadline <= self.clock.wall:
                self.come_back(lease, handle)
        for item in list(self.items.values()):
            if item.where in ("waiting", "delayed") and self.is_over(item):
                self.expire(item, handle)
            elif item.where == "delayed" and item.due <= self.clock.wall:
                item.where = "waiting"

    def is_over(self, item):
        return item.expires is not None and item.expires <= self.clock.wall

    # --- what is done

    @rule(
        handle=handles,
        n=few,
        delay=delays,
        expires=st.sampled_from([None, None, 2.0, 6.0]),
        replace=st.booleans(),
        priority=st.sampled_from([0, 0, 0, -1, 3]),
        data=st.data(),
    )
    def push(self, handle, n, delay, expires, replace, priority, data):
        queue = self.queues[handle]
        unique = data.draw(st.none() | st.lists(st.none() | keys, min_size=n, max_size=n))
        wall = self.clock.wall
        new, found, leaving = [], [], []
        for key in unique or [None] * n:
            holder = None if key is None or key not in self.holders else self.items[self.holders[key]]
            if key is not None and key in new:
                found.append(new.index(key))
                continue
            if holder is not None:
                is_here = holder.where in ("waiting", "delayed")
                if not replace and not (is_here and self.is_over(holder)):
                    found.append(holder)
                    continue
                if is_here:
                    leaving.append(holder)
            found.append(len(new))
            new.append(key)
        headers = {"a": "b"} if n == 3 else None
        how = Push(delay, [digest(key) for key in unique or ()], replace, expires, headers, priority)

        def call():
            payloads = [queue.dumps(f"item {n}")] * n
            return [each.seq for each in queue._engine.append_apart(payloads, how)]

        if handle == 2:
            self.restored_if_full(handle, len(new) - len(leaving))
        owed = sum(item.where != "dead" for item in self.items.values())
        leaving = [item for item in leaving if item.seq in self.items]
        if new and handle == 2 and owed - len(leaving) + len(new) > self.maxsize:
            with pytest.raises(Full):
                call()
            return
        for item in leaving:
            if replace:
                self.leave(item)
            else:
                self.expire(item, handle)
        tail = self.tails.get(priority, priority << 56)
        for seq, key in enumerate(new, tail):
            due = wall + int(delay * SECOND) if delay else None
            over = None if expires is None else wall + int(expires * SECOND)
            self.items[seq] = Item(seq, key, due, over, headers or {})
            if key is not None:
                self.holders[key] = seq
        self.tails[priority] = tail + len(new)
        assert call() == [tail + each if isinstance(each, int) else each.seq for each in found]

    def restored_if_full(self, handle, more):
        if more > 0 and sum(item.where != "dead" for item in self.items.values()) + more > self.maxsize:
            self.restored(handle)

    @rule(handle=handles, n=few)
    def push_plainly(self, handle, n):
        if handle == 2:
            self.restored_if_full(handle, n)
            owed = sum(item.where != "dead" for item in self.items.values())
            if owed + n > self.maxsize:
                with pytest.raises(Full) as caught:
                    self.queues[handle].push(["plain"] * n)
                assert caught.value.args == ("items", self.maxsize, owed, n)
                return
        tail = self.tails.get(0, 0)
        assert self.queues[handle].push(["plain"] * n) == range(tail, tail + n)
        self.items.update((seq, Item(seq, None, None, None, {})) for seq in range(tail, tail + n))
        self.tails[0] = tail + n

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
        assert lease.headers == [item.headers for item in expected]
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
            self.leave(item)
        self.end_if_empty(lease)

    @rule(lease=consumes(leases), some=st.integers(0, 3), delay=delays)
    def nack(self, lease, some, delay):
        due = self.clock.wall + int(delay * SECOND) if delay else None
        handle = self.owner(lease)
        told = []
        mine = self.settle(lease, some, lambda seqs: told.append(lease.nack(seqs, delay)))
        became = {"returned": [], "dead": [], "removed": []}
        for item in sorted(mine, key=lambda item: item.seq):
            self.give_back(item, handle, due)
            is_there = self.items.get(item.seq) is item
            became["removed" if not is_there else "dead" if item.where == "dead" else "returned"].append(item.seq)
        assert told in ([], [Nacked(**became)])
        assert told or not mine
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
            self.leave(item)

    @rule(handle=handles, n=few, least=few)
    def pop_at_least(self, handle, n, least):
        self.restored(handle)
        expected = self.waiting()[:n]
        at_least = {"at_least": min(least, n), "blocking": True, "timeout": 0}
        if len(expected) < min(least, n):
            with pytest.raises(Empty):
                self.queues[handle].pop_many(n, **at_least)
            return
        assert len(self.queues[handle].pop_many(n, **at_least)) == len(expected)
        for item in expected:
            self.leave(item)

    @rule(handle=handles, everything=st.booleans())
    def clear(self, handle, everything):
        if len(self.items) < 8:  # it is left to grow
            return
        self.restored(handle)
        self.queues[handle].clear(all=everything)
        for item in list(self.items.values()):
            if everything or item.where == "waiting":
                self.leave(item)
        if everything:
            self.held = {}

    @rule(handle=handles, some=st.booleans(), deleting=st.booleans(), data=st.data())
    def dead(self, handle, some, deleting, data):
        dead = self.queues[handle].dead
        if not deleting:
            self.restored(handle)
        seqs = data.draw(st.lists(st.sampled_from([*self.items, 99]), max_size=3)) if some else None
        expected = [item for item in self.items.values() if item.where == "dead" and (seqs is None or item.seq in seqs)]
        n = 0
        for item in sorted(expected, key=lambda item: item.seq):
            if deleting:
                del self.items[item.seq]
            elif item.key in self.holders:
                continue  # another item has its key by now: it stays dead
            else:
                item.where, item.attempts = "waiting", 0
                if item.key is not None:
                    self.holders[item.key] = item.seq
            n += 1
        assert (dead.delete if deleting else dead.requeue)(seqs) == n

    @rule(handle=handles, key=keys, cancelling=st.booleans())
    def find_or_cancel(self, handle, key, cancelling):
        self.restored(handle)
        holder = self.holders.get(key)
        if not cancelling:
            assert self.queues[handle].find(key) == holder
            return
        is_here = holder is not None and self.items[holder].where in ("waiting", "delayed")
        assert self.queues[handle].cancel(key) == is_here
        if is_here:
            self.leave(self.items[holder])

    @rule(handle=handles, dying=st.booleans(), data=st.data())
    def one_item(self, handle, dying, data):
        self.restored(handle)
        seq = data.draw(st.sampled_from([*self.items, 99]))
        is_here = seq in self.items and self.items[seq].where == "waiting"
        queue = self.queues[handle]
        assert (queue.dead_letter if dying else queue.delete_item)(seq) == is_here
        if is_here:
            (self.die_of if dying else self.leave)(self.items[seq])

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
        assert stats.expired == self.expired
        assert stats.pushed == sum(tail - (priority << 56) for priority, tail in self.tails.items())
        assert queue.check() == []


@pytest.mark.usefixtures("weighed_without_syncs")
def test_leases_do_what_a_dict_does():
    run_state_machine_as_test(LeaseMachine, settings=settings(max_examples=60, stateful_step_count=30))
