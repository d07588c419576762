"""A queue does what a ``collections.deque`` of numbered items does, whichever object and process it is done through."""

import os
import pickle
import select
import shutil
import signal
import tempfile
from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile

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

from lmdbqueue import DecodeError, Empty, Full, PersistentQueue

NAMES = ("jobs", "results")
CHILD_PATIENCE = 30.0  # seconds until a child counts as hanging
END = b"END"  # of each payload, so that a byte too many or too few is seen: pickle.loads does not look


@dataclass(frozen=True)
class Poison:
    """An item whose payload no ``loads`` can decode."""

    number: int


def dumps(item):
    return b"poison %d" % item.number if isinstance(item, Poison) else pickle.dumps(item) + END


def loads(payload):
    if payload.startswith(b"poison"):
        raise LookupError(payload.decode())
    assert payload.endswith(END)
    return pickle.loads(payload.removesuffix(END))


items = st.one_of(
    st.integers(),
    st.integers(),
    st.text(max_size=10),
    st.none(),
    st.lists(st.integers(), max_size=3),
    st.builds(lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(1_900, 9_000)),
    st.builds(Poison, st.integers(0, 9)),
)
lists = st.lists(items, max_size=6)
pushed = items.filter(lambda item: not isinstance(item, list)) | lists
numbers = st.integers(0, 5)
handles = st.integers(0, 3)


class Model:
    """What a queue should be: the items that are there, with their numbers, and the number that comes next."""

    def __init__(self, waiting=(), tail=0):
        self.waiting = deque(waiting)
        self.tail = tail

    def copy(self):
        return Model(self.waiting, self.tail)

    def append(self, added):
        given = range(self.tail, self.tail + len(added))
        self.waiting.extend(zip(given, added, strict=True))
        self.tail = given.stop
        return given

    def first(self, n):
        """Return the first ``n`` items, or those before one that cannot be decoded."""
        return [*takewhile(lambda item: not isinstance(item, Poison), (item for _, item in islice(self.waiting, n)))]

    def poison(self):
        """Return the number and payload of the first item if it cannot be decoded, or None."""
        found = ((seq, dumps(item)) for seq, item in islice(self.waiting, 1) if isinstance(item, Poison))
        return next(found, None)

    def remove(self, n):
        removed = min(n, len(self.waiting))
        for _ in range(removed):
            self.waiting.popleft()
        return removed

    def __len__(self):
        return len(self.waiting)


class QueueMachine(RuleBasedStateMachine):
    """Two named queues in one directory, two objects on each, and a model of each queue.

    The objects differ in ``maxsize`` (only the second of each two has one) and in ``loads``.
    """

    @initialize(
        checksum=st.booleans(),
        maxsize=st.integers(1, 60),
        flush_limit=st.integers(0, 100_000),
        added=st.tuples(st.lists(items, max_size=20), st.lists(items, max_size=20)),
    )
    def create(self, checksum, maxsize, flush_limit, added):
        self.path = tempfile.mkdtemp()
        self.filename = "queue"
        self.copies = 0
        self.maxsize = maxsize
        self.options = {"checksum": checksum, "flush_limit": flush_limit, "durability": "off", "dumps": dumps}
        self.models = [Model() for _ in NAMES]
        self.queues = [self.opened(handle) for handle in range(4)]
        self.push_to_both_queues(*added)

    def opened(self, handle):
        return PersistentQueue(
            self.filename,
            self.path,
            name=NAMES[handle % 2],
            maxsize=self.maxsize if handle >= 2 else 0,
            loads=pickle.loads if handle in (1, 2) else loads,
            **self.options,
        )

    def teardown(self):
        if hasattr(self, "queues"):
            self.close_all()
            shutil.rmtree(self.path)

    def close_all(self):
        for queue in self.queues:
            queue.close()

    def at(self, handle):
        return self.queues[handle], self.models[handle % 2]

    def file_size(self):
        directory = os.path.join(self.path, self.filename)
        (name,) = [name for name in os.listdir(directory) if name.endswith(".mdb")]
        return os.stat(os.path.join(directory, name)).st_size

    # --- in

    def add(self, handle, added, call):
        """Do ``call``, which appends ``added``; return its result, and whether there was room."""
        queue, model = self.at(handle)
        if 0 < queue.maxsize < len(model) + len(added):
            with pytest.raises(Full) as refusal:
                call()
            assert refusal.value.args == ("items", queue.maxsize, len(model), len(added))
            return None, False
        return call(), True

    @rule(handle=handles, added=pushed)
    def push(self, handle, added):
        queue, model = self.at(handle)
        if added == []:
            assert queue.push([]) == range(0)
            return
        many = isinstance(added, list)
        numbers, there_was_room = self.add(handle, added if many else [added], lambda: queue.push(added))
        if there_was_room:
            given = model.append(added if many else [added])
            assert numbers == (given if many else given.start)
            assert type(numbers) is (range if many else int)

    @rule(handle=handles, count=st.integers(5, 40), item=items)
    def push_many(self, handle, count, item):
        self.push(handle, [*range(count), item])

    @rule(first=pushed, second=pushed)
    def push_to_both_queues(self, first, second):
        self.push(0, first)
        self.push(1, second)

    @rule(handle=handles, item=items, how=st.sampled_from(["put", "put at once", "put in time", "put_nowait"]))
    def put(self, handle, item, how):
        queue, model = self.at(handle)
        calls = {
            "put": lambda: queue.put(item, timeout=0),
            "put at once": lambda: queue.put(item, block=False),
            "put in time": lambda: queue.put(item, True, 0.001),  # noqa: FBT003  (as queue.Queue takes it)
            "put_nowait": lambda: queue.put_nowait(item),
        }
        result, there_was_room = self.add(handle, [item], calls[how])
        assert result is None
        if there_was_room:
            model.append([item])

    # --- out

    def take(self, handle, n, call):
        """Do ``call``, which is to give the first ``n`` items; return how many it gave: none if the first is poison."""
        _, model = self.at(handle)
        poison = model.poison() if n else None
        if poison is None:
            there = model.first(n)
            assert call() == (there if n != 1 else there[0] if there else None)
            return len(there)
        with pytest.raises(DecodeError) as refusal:
            call()
        assert (refusal.value.seq, refusal.value.payload) == poison
        assert refusal.value.__cause__ is not None
        return 0

    @rule(handle=handles, n=numbers)
    def peek(self, handle, n):
        self.take(handle, n, lambda: self.queues[handle].peek(n))

    @rule(handle=handles, n=numbers)
    def pop(self, handle, n):
        self.at(handle)[1].remove(self.take(handle, n, lambda: self.queues[handle].pop(n)))

    @rule(handle=handles, n=st.integers(1, 5), removing=st.booleans())
    def wait_for_items(self, handle, n, removing):
        queue, model = self.at(handle)
        verb = queue.pop if removing else queue.peek
        if len(model) < n:
            with pytest.raises(Empty) as refusal:
                verb(n, blocking=True, timeout=0)
            assert (refusal.value.wanted, refusal.value.timeout) == (n, 0)
        else:
            taken = self.take(handle, n, lambda: verb(n, blocking=True, timeout=0))
            model.remove(taken if removing else 0)

    @rule(handle=handles, how=st.sampled_from(["get", "get at once", "get_nowait"]))
    def get(self, handle, how):
        queue, model = self.at(handle)
        call = {
            "get": lambda: queue.get(timeout=0),
            "get at once": lambda: queue.get(block=False),
            "get_nowait": queue.get_nowait,
        }[how]
        if not model:
            with pytest.raises(Empty) as refusal:
                call()
            assert refusal.value.wanted == 1
        elif self.take(handle, 1, call):
            model.remove(1)

    @rule(handle=handles, n=numbers)
    def delete(self, handle, n):
        queue, model = self.at(handle)
        assert queue.delete(n) == model.remove(n)

    @precondition(lambda self: any(model.poison() for model in self.models))
    @rule()
    def delete_what_cannot_be_decoded(self):
        for queue, model in zip(self.queues, self.models, strict=False):
            if model.poison():
                assert queue.delete() == 1
                model.remove(1)

    @precondition(lambda self: max(map(len, self.models)) > 20)  # shorter ones are left to grow
    @rule(handle=handles)
    def clear(self, handle):
        queue, model = self.at(handle)
        queue.clear()
        model.remove(len(model))

    # --- the whole

    @rule(handle=handles)
    def browse(self, handle):
        queue, model = self.at(handle)
        browsing = iter(queue)
        for seq, item in model.waiting:
            if isinstance(item, Poison):
                with pytest.raises(DecodeError) as refusal:
                    next(browsing)
                assert (refusal.value.seq, refusal.value.payload) == (seq, dumps(item))
                return
            assert next(browsing) == item
        with pytest.raises(StopIteration):
            next(browsing)

    @rule(handle=handles, force=st.booleans())
    def flush(self, handle, force):
        before = self.file_size()
        shrunk = self.queues[handle].flush(force=force)
        assert before - self.file_size() == shrunk
        assert shrunk >= 0

    @rule(handle=handles, go_on_with_the_copy=st.booleans(), added=items)
    def copy(self, handle, go_on_with_the_copy, added):
        queue, model = self.at(handle)
        self.copies += 1
        copied = queue.copy(f"copy {self.copies}")
        try:
            for option in ("name", "maxsize", "flush_limit", "dumps", "loads", "checksum", "durability"):
                assert getattr(copied, option) == getattr(queue, option)
            if go_on_with_the_copy:
                self.close_all()
                self.filename = copied.filename
                self.queues = [self.opened(each) for each in range(4)]
            else:
                assert copied.count() == len(model)
                copied.clear()  # which the original must not notice
                assert copied.push(added if not isinstance(added, list) else (added,)) == model.tail
            assert copied.check() == []
        finally:
            copied.close()

    @rule(handle=handles)
    def reopen_one(self, handle):
        self.queues[handle].close()
        self.queues[handle] = self.opened(handle)

    @rule()
    def reopen_all(self):
        self.close_all()
        self.queues = [self.opened(handle) for handle in range(4)]

    @rule(handle=st.integers(0, 1), added=lists.filter(bool), flushing=st.booleans())
    def push_in_a_forked_child(self, handle, added, flushing):
        queue, model = self.at(handle)
        given = model.append(added)

        def work():
            assert queue.push(added) == given
            if flushing:
                queue.flush(force=True)

        in_a_child(work)

    @rule(handle=handles, n=st.integers(1, 3))
    def pop_in_a_forked_child(self, handle, n):
        _, model = self.at(handle)
        in_a_child(lambda: self.take(handle, n, lambda: self.queues[handle].pop(n)))
        if n and model.poison() is None:
            model.remove(len(model.first(n)))

    @invariant()
    def every_object_sees_what_the_model_holds(self):
        for handle, queue in enumerate(self.queues):
            _, model = self.at(handle)
            assert queue.count() == queue.qsize() == len(queue) == len(model)
            assert queue.empty() == (not model)
            assert queue.full() == (0 < queue.maxsize <= len(model))
            entries = [queue._engine.opened(entry) for entry in queue._engine.first(len(model) + 1)]
            assert entries == [(seq, dumps(item)) for seq, item in model.waiting]
        assert self.queues[0].check() == []


def in_a_child(work):
    """Do ``work`` in a forked child, and fail if it fails there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:  # nothing may unwind into the parent's test run
            os.write(writing, repr(error).encode()[:4_000])
        finally:
            os._exit(status)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], CHILD_PATIENCE)  # the child's end closes when it exits
    if not ready:
        os.kill(child, signal.SIGKILL)
    with open(reading, "rb") as report:
        said = report.read().decode()
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status), said) == (0, "")


@pytest.mark.usefixtures("weighed_without_syncs")
def test_queue_does_what_a_deque_does():
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=30, stateful_step_count=50))
