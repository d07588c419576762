"""Named readers and retention do what lists do, beside everything else that takes items from a queue.

The clock is the model's.
"""

import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import lmdbqueue._engine
from lmdbqueue import GoneError, PersistentQueue

SECOND = 10**9
NAMES = st.sampled_from(["audit", "billing", "search"])
handles = st.integers(0, 1)
few = st.integers(1, 4)


class Clock:
    now = 1_000_000 * SECOND

    def monotonic_ns(self):
        return self.now

    def time_ns(self):
        return self.now


def number_place(seq):
    return (seq > 0, 0, seq)  # what was due comes before numbers, but for 0


class Item:
    def __init__(self, seq, value):
        self.seq, self.value, self.place = seq, value, number_place(seq)


class Position:
    def __init__(self, passed, seen):
        self.passed, self.skipped, self.seen = passed, 0, seen


class ReaderMachine(RuleBasedStateMachine):
    @initialize(checksum=st.booleans())
    def create(self, checksum):
        self.clock = lmdbqueue._engine.time = Clock()
        self.path = tempfile.mkdtemp(dir="/dev/shm")
        self.options = {"durability": "off", "checksum": checksum}
        self.queues = [PersistentQueue("queue", self.path, **self.options) for _ in range(2)]
        self.items = []
        self.delayed = []  # due time, item
        self.lease = None
        self.leased = []
        self.tail = 0
        self.positions = {}
        self.readers = {}  # the objects
        self.retained = None
        self.marks = []  # time, tail: when what was pushed
        self.move = None  # of a reader, that can be undone

    def teardown(self):
        if hasattr(self, "queues"):
            for queue in self.queues:
                queue.close()
            shutil.rmtree(self.path)

    # --- the oracle

    def append(self, value):
        self.items.append(Item(self.tail, value))
        self.tail += 1

    def lose(self, items):
        """Let items leave the queue for good."""
        for position in self.positions.values():
            position.skipped += sum(item.place > position.passed for item in items)
        self.items = [item for item in self.items if item not in items]

    def trim(self):
        if self.retained is not None:
            self.lose(self.items[: max(0, len(self.items) - self.retained)])
        elif self.positions:
            least = min(position.passed for position in self.positions.values())
            self.lose([item for item in self.items if item.place <= least])

    def come_due(self):
        due = sorted(
            (entry for entry in self.delayed if entry[0] <= self.clock.now), key=lambda entry: (entry[0], entry[1].seq)
        )
        for entry in due:
            self.delayed.remove(entry)
            when, item = entry
            if self.positions:
                self.append(item.value)
                if self.retained is not None:
                    self.trim()
            else:
                item.place = (True, -1, when, item.seq)
                self.items.append(item)
        self.items.sort(key=lambda item: item.place)

    def before(self, name):
        passed = self.positions[name].passed
        return [item for item in self.items if item.place > passed]

    def passes(self, name, items):
        if items:
            position = self.positions[name]
            last = items[-1].place
            position.skipped += sum(position.passed < number_place(item.seq) < last for item in self.leased)
            position.passed, position.seen = last, self.clock.now
            self.trim()

    def passed_at(self, where):
        if where == "oldest":
            return ()
        number = self.tail if where == "newest" else where
        return number_place(number - 1) if number else ()

    # --- what is done

    @rule(handle=handles, n=few, delay=st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0]))
    def push(self, handle, n, delay):
        self.come_due()
        values = [f"item {self.tail + i}" for i in range(n)]
        self.queues[handle].push(values, delay=delay)
        for value in values:
            if delay:
                self.delayed.append((self.clock.now + int(delay * SECOND), Item(self.tail, value)))
                self.tail += 1
            else:
                self.append(value)
        if self.retained is not None and not delay:
            self.trim()

    @rule(handle=handles, n=few, verb=st.sampled_from(["pop", "delete", "clear"]))
    def take(self, handle, n, verb):
        self.come_due()
        if verb == "clear" and len(self.items) < 6:
            return
        taken = self.items if verb == "clear" else self.items[:n]
        if verb == "clear":
            self.queues[handle].clear()
        else:
            getattr(self.queues[handle], verb)(n)
        self.lose(list(taken))

    @rule(handle=handles, name=NAMES, start=st.sampled_from(["oldest", "newest", 0, 3, 7]))
    def open_reader(self, handle, name, start):
        self.come_due()
        self.readers[name, handle] = self.queues[handle].reader(name, start=start)
        if name not in self.positions:
            self.positions[name] = Position(self.passed_at(start), self.clock.now)

    @rule(handle=handles, name=NAMES, n=few, verb=st.sampled_from(["peek", "pop", "delete"]))
    def read(self, handle, name, n, verb):
        reader = self.readers.get((name, handle))
        if reader is None:
            return
        self.come_due()
        if name not in self.positions:
            with pytest.raises(GoneError):
                getattr(reader, verb)(n)
            return
        items = self.before(name)[:n]
        found = getattr(reader, verb)(n)
        if verb == "delete":
            assert found == len(items)
        else:
            values = [item.value for item in items]
            assert found == (values if n > 1 else values[0] if values else None)
        if verb != "peek":
            self.passes(name, items)

    @rule(handle=handles, name=NAMES, where=st.sampled_from(["oldest", "newest", 1, 5, 9]))
    def seek(self, handle, name, where):
        reader = self.readers.get((name, handle))
        if reader is None or name not in self.positions:
            return
        self.come_due()
        reader.seek(where)
        self.positions[name].passed, self.positions[name].seen = self.passed_at(where), self.clock.now
        self.trim()

    @rule(handle=handles, name=NAMES, n=few)
    def pass_some(self, handle, name, n):
        reader = self.readers.get((name, handle))
        if reader is None or name not in self.positions:
            return
        self.come_due()
        items = self.before(name)[:n]
        entries = reader._first(n)
        if items:
            before = self.positions[name].passed
            _, move = reader._pass(entries)
            had = list(self.items)
            self.passes(name, items)
            gone = [item for item in had if item in items and item not in self.items]
            self.move = name, (move, entries), before, self.clock.now, items, gone

    @precondition(lambda self: getattr(self, "move", None) is not None)
    @rule(handle=handles)
    def retreat(self, handle):
        name, move, before, seen, items, gone = self.move
        self.move = None
        if name not in self.positions:
            with pytest.raises(GoneError):
                self.queues[handle]._reader_retreat(*move)
            return
        position = self.positions[name]
        last = items[-1].place
        is_last = (position.passed, position.seen) == (last, seen)
        assert self.queues[handle]._reader_retreat(*move) == is_last
        if is_last:
            self.items = sorted(self.items + gone, key=lambda item: item.place)
            there = {item.seq for item in self.items if before < item.place <= last}
            there |= {item.seq for item in self.leased if before < number_place(item.seq) <= last}
            known = {item.seq for item in items}
            position.skipped += len(known - there) - len(there - known)
            position.passed, position.seen = before, self.clock.now
            self.trim()

    @rule(handle=handles, name=NAMES)
    def drop(self, handle, name):
        self.come_due()
        if name in self.positions:
            self.queues[handle].drop_reader(name)
            del self.positions[name]
            self.trim()

    @rule(handle=handles, items=st.none() | st.integers(1, 6))
    def retain(self, handle, items):
        self.come_due()
        self.queues[handle].retain(items)
        self.retained = items
        self.trim()

    @rule(handle=handles, n=few)
    def lease_some(self, handle, n):
        self.come_due()
        if self.lease is None and self.items:
            self.lease = self.queues[handle].lease(n)
            self.leased, self.items = self.items[:n], self.items[n:]
            assert self.lease.seqs == [item.seq for item in self.leased]

    @precondition(lambda self: getattr(self, "lease", None) is not None)
    @rule(acked=st.integers(0, 4))
    def settle(self, acked):
        self.come_due()
        gone, back = self.leased[:acked], self.leased[acked:]
        self.lease.ack([item.seq for item in gone])
        self.lease.nack()
        for position in self.positions.values():
            position.skipped += sum(number_place(item.seq) > position.passed for item in gone)
        self.items = sorted(self.items + back, key=lambda item: item.place)
        self.lease, self.leased = None, []

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, seconds):
        self.clock.now += int(seconds * SECOND)

    @rule(handle=handles)
    def flush(self, handle):
        self.queues[handle].flush(force=True)

    @precondition(lambda self: getattr(self, "lease", None) is None)
    @rule(handle=handles)
    def open_again(self, handle):
        self.queues[handle].close()
        self.queues[handle] = PersistentQueue("queue", self.path, **self.options)
        self.readers = {key: reader for key, reader in self.readers.items() if key[1] != handle}

    @invariant()
    def everything_is_where_the_model_has_it(self):
        self.come_due()
        queue = self.queues[0]
        assert list(queue) == [item.value for item in self.items]
        found = queue.readers()
        assert [each.name for each in found] == sorted(self.positions)
        for each in found:
            items = self.before(each.name)
            assert each.lag == len(items)
            assert each.position == (items[0].seq if items else self.tail)
            assert each.skipped == self.positions[each.name].skipped
        assert queue.check() == []


@pytest.mark.usefixtures("weighed_without_syncs")
def test_readers_do_what_lists_do(monkeypatch):
    monkeypatch.setattr(lmdbqueue._engine, "time", lmdbqueue._engine.time)  # put back at the end
    run_state_machine_as_test(ReaderMachine, settings=settings(max_examples=250, stateful_step_count=30))
