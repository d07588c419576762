"""Named readers and retention do what lists do, beside everything else that takes items from a queue.

The clock is the model's.
"""

import os
import pickle
import shutil
import tempfile

import pytest
from clocks import Clock
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
from postgres_server import age

from lmdbqueue import GoneError, PersistentQueue
from lmdbqueue.postgres import PostgresQueue

SECOND = 10**9
NAMES = st.sampled_from(["audit", "billing", "search"])
handles = st.integers(0, 1)
few = st.integers(1, 4)


class Item:
    def __init__(self, seq, value, place, pushed_at):
        self.seq, self.value, self.place, self.pushed_at = seq, value, place, pushed_at
        self.size = len(pickle.dumps(value))


class Position:
    def __init__(self, passed, seen):
        self.skipped = 0
        self.move(passed, seen)

    def move(self, passed, seen):
        self.passed, self.seen = passed, seen
        self.last = object()


class ReaderMachine(RuleBasedStateMachine):
    unit = 1.0  # seconds
    kinds = ("items", "bytes", "seconds")  # of limits that hold whenever somebody looks

    @initialize(checksum=st.booleans())
    def create(self, checksum):
        self.begin(checksum)
        self.queues = [self.open() for _ in range(2)]
        self.items = []
        self.delayed = []  # due time, item
        self.lease = None
        self.leased = []
        self.taken = []  # entries, items
        self.tail = 0
        self.positions = {}
        self.readers = {}  # the objects
        self.retained = {}  # limits of items, bytes, seconds
        self.move = None  # of a reader, that can be undone

    def teardown(self):
        if hasattr(self, "queues"):
            for queue in self.queues:
                queue.close()
            self.end()

    # --- the engine

    def begin(self, checksum):
        self.clock = Clock(*[1_000_000 * SECOND] * 2)
        self.path = tempfile.mkdtemp(dir="/dev/shm")
        self.options = {"durability": "off", "checksum": checksum}

    def end(self):
        shutil.rmtree(self.path)

    def open(self):
        return self.clock.given_to(PersistentQueue("queue", self.path, **self.options))

    def pass_(self, seconds):
        self.clock.go_on(seconds)

    def number_place(self, seq):
        return (seq,)

    def mark_of(self, position):
        """Return what tells a move of a reader from others."""
        return position.passed, position.seen

    # --- the oracle

    def append(self, value, pushed_at):
        self.items.append(Item(self.tail, value, self.number_place(self.tail), pushed_at))
        self.tail += 1

    def lose(self, items):
        """Let items leave the queue for good."""
        for position in self.positions.values():
            position.skipped += sum(item.place > position.passed for item in items)
        self.items = [item for item in self.items if item not in items]

    def trim(self):
        if self.retained:
            limit, size, seconds = (self.retained.get(kind) for kind in ("items", "bytes", "seconds"))
            if limit is not None:
                self.lose(self.items[: max(0, len(self.items) - limit)])
            while seconds is not None and self.items and self.items[0].pushed_at < self.clock.wall - seconds * SECOND:
                self.lose(self.items[:1])
            while size is not None and len(self.items) > 1 and sum(item.size for item in self.items) > size:
                self.lose(self.items[:1])
        elif self.positions:
            least = min(position.passed for position in self.positions.values())
            self.lose([item for item in self.items if item.place <= least])

    def give_back(self, items):
        """Let items wait in their places again, or at the tail, if all readers have passed those."""
        least = min((position.passed for position in self.positions.values()), default=())
        self.items += [item for item in items if item.place > least]
        for item in items:
            if item.place <= least:
                self.append(item.value, item.pushed_at)
        self.items.sort(key=lambda item: item.place)

    def come_due(self):
        due = sorted(
            (entry for entry in self.delayed if entry[0] <= self.clock.wall), key=lambda entry: (entry[0], entry[1].seq)
        )
        for entry in due:
            self.delayed.remove(entry)
            _, item = entry
            if self.positions:
                self.append(item.value, item.pushed_at)
            else:
                item.place = self.number_place(item.seq)
                self.items.append(item)
        self.items.sort(key=lambda item: item.place)
        if due or self.retained:
            self.came_due()

    def came_due(self):
        """Remove what is not retained any more, now that something came due or too old."""
        if self.retained:
            self.trim()

    def before(self, name):
        passed = self.positions[name].passed
        return [item for item in self.items if item.place > passed]

    def passes(self, name, items):
        if items:
            position = self.positions[name]
            last = items[-1].place
            position.skipped += sum(position.passed < self.number_place(item.seq) < last for item in self.leased)
            position.move(last, self.clock.wall)
            self.trim()

    def passed_at(self, where):
        if where == "oldest":
            return ()
        number = self.tail if where == "newest" else where
        return self.number_place(number - 1) if number else ()

    # --- what is done

    @rule(handle=handles, n=few, delay=st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0]), more=st.sampled_from([0, 0, 50]))
    def push(self, handle, n, delay, more):
        delay *= self.unit
        self.come_due()
        values = [f"item {self.tail + i}" + more * "x" for i in range(n)]
        self.queues[handle].push(values, delay=delay)
        due = self.clock.wall + int(delay * SECOND)
        for value in values:
            if delay:
                self.delayed.append((due, Item(self.tail, value, None, due)))
                self.tail += 1
            else:
                self.append(value, due)
        if self.retained and not delay:
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

    @rule(handle=handles, n=few)
    def take_some(self, handle, n):
        self.come_due()
        entries, _ = self.queues[handle]._head.take(n, 0)
        if entries:
            self.taken.append((entries, self.items[:n]))
            self.lose(self.items[:n])

    @precondition(lambda self: getattr(self, "taken", None))
    @rule(handle=handles, which=st.integers(0, 9))
    def put_back(self, handle, which):
        entries, items = self.taken.pop(which % len(self.taken))
        self.queues[handle]._engine.put_back(entries)
        for position in self.positions.values():
            position.skipped = max(0, position.skipped - sum(item.place > position.passed for item in items))
        self.give_back(items)
        if self.retained:
            self.trim()

    @rule(handle=handles, name=NAMES, start=st.sampled_from(["oldest", "newest", 0, 3, 7]))
    def open_reader(self, handle, name, start):
        self.come_due()
        self.readers[name, handle] = self.queues[handle].reader(name, start=start)
        if name not in self.positions:
            self.positions[name] = Position(self.passed_at(start), self.clock.wall)

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
        self.positions[name].move(self.passed_at(where), self.clock.wall)
        self.trim()

    @rule(handle=handles, name=NAMES, n=few)
    def pass_some(self, handle, name, n):
        reader = self.readers.get((name, handle))
        if reader is None or name not in self.positions:
            return
        self.come_due()
        items = self.before(name)[:n]
        entries = reader._head.first(n)
        if items:
            before = self.positions[name].passed
            _, move = reader._head.pass_by(entries)
            had = list(self.items)
            self.passes(name, items)
            gone = [item for item in had if item in items and item not in self.items]
            self.move = name, (move, entries), before, self.mark_of(self.positions[name]), items, gone

    @precondition(lambda self: getattr(self, "move", None) is not None)
    @rule(handle=handles)
    def retreat(self, handle):
        name, move, before, mark, items, gone = self.move
        self.move = None
        if name not in self.positions:
            with pytest.raises(GoneError):
                self.queues[handle]._engine.reader(name).retreat(*move)
            return
        position = self.positions[name]
        last = items[-1].place
        is_last = self.mark_of(position) == mark
        assert self.queues[handle]._engine.reader(name).retreat(*move) == is_last
        if is_last:
            self.items = sorted(self.items + gone, key=lambda item: item.place)
            there = {item.seq for item in self.items if before < item.place <= last}
            there |= {item.seq for item in self.leased if before < self.number_place(item.seq) <= last}
            known = {item.seq for item in items}
            position.skipped += len(known - there) - len(there - known)
            position.move(before, self.clock.wall)
            self.trim()

    @rule(handle=handles, name=NAMES)
    def drop(self, handle, name):
        self.come_due()
        if name in self.positions:
            self.queues[handle].drop_reader(name)
            del self.positions[name]
            self.trim()

    @rule(
        handle=handles,
        limits=st.fixed_dictionaries(
            {},
            optional={"items": st.integers(1, 6), "bytes": st.integers(1, 160), "seconds": st.sampled_from([1.2, 2.7])},
        ),
    )
    def retain(self, handle, limits):
        self.come_due()
        self.retained = {kind: limit for kind, limit in limits.items() if kind in self.kinds}
        if "seconds" in self.retained:
            self.retained["seconds"] *= self.unit
        self.queues[handle].retain(**self.retained)
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
            position.skipped += sum(self.number_place(item.seq) > position.passed for item in gone)
        self.give_back(back)
        self.lease, self.leased = None, []
        if self.retained and back:
            self.trim()

    @precondition(lambda self: not getattr(self, "taken", None))  # whose times are in nobody's hands
    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, seconds):
        self.pass_(seconds * self.unit)

    @rule(handle=handles)
    def flush(self, handle):
        self.queues[handle].flush(force=True)

    @precondition(lambda self: getattr(self, "lease", None) is None)
    @rule(handle=handles)
    def open_again(self, handle):
        self.queues[handle].close()
        self.queues[handle] = self.open()
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
def test_readers_do_what_lists_do():
    run_state_machine_as_test(ReaderMachine, settings=settings(max_examples=50, stateful_step_count=30))


def on_postgres(server, schema):
    """Return the machine for queues of a schema: instead of a clock that goes on, all that it knows of times goes back.

    The server's own clock goes on, too, so the unit is far more than an example takes.
    """

    class PostgresMachine(ReaderMachine):
        unit = 1000.0
        kinds = ("items", "bytes")  # what is too old leaves with the next push or move of a reader

        def came_due(self):  # and so does what is beyond since something came due, but for what did at the tail
            if self.positions:
                self.trim()

        def begin(self, _):
            self.clock = Clock(*[1_000_000 * SECOND] * 2)
            self.name = os.urandom(4).hex()

        def end(self):
            pass

        def open(self):
            return PostgresQueue(server.url(), self.name, schema=schema)

        def pass_(self, seconds):
            super().pass_(seconds)
            age(server.execute, schema, seconds)

        def mark_of(self, position):
            return position.last

    return PostgresMachine


def test_readers_of_a_database_do_what_lists_do(postgres, schema):
    PostgresQueue(postgres.url(), schema=schema).close()
    examples = settings(max_examples=20, stateful_step_count=30)
    run_state_machine_as_test(on_postgres(postgres, schema), settings=examples)
