"""What a queue is: the verbs as plain functions of a transaction, without a queue object around them."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lmdbqueue import CorruptQueueError, Full, GoneError
from lmdbqueue._base import format as fmt
from lmdbqueue._host.session import Session
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.opening import build
from lmdbqueue._lmdb.snapshot import Ref
from lmdbqueue._local.group_commit import Call, run
from lmdbqueue._model import fifo as _fifo
from lmdbqueue._model import invariants, pushing
from lmdbqueue._model.pushing import Limits

NAME = "jobs"
SALT = 0x5A17
NOW = 1_764_000_000 * 10**9
TRAILER = fmt.Trailer(NOW).pack()


class Fifo:
    """The functions of a transaction on one queue of a generation, each in a transaction of its own."""

    def __init__(self, generation, name=NAME):
        self.generation = generation
        make = partial(pushing.create, salt=SALT, serializer="pickle")
        self.tables, _, _ = generation.open_queue(name, make)
        self.ref = Ref(name, self.tables.identity)

    def read(self, fn, *args):
        return self.generation.view(self.ref, fn, args)

    def write(self, fn, *args):
        call = Call(self.ref, fn, args)
        run(self.generation, [call])
        if call.error is not None:
            raise call.error
        return call.result

    def push(self, payloads, maxsize=0, max_bytes=None, number=fmt.CLASS):
        """Push to a class; return the numbers in that class."""
        keys = self.write(pushing.push, payloads, TRAILER, Limits(maxsize, max_bytes), NOW, number)
        first = fmt.first_of(keys.start)
        return range(keys.start - first, keys.stop - first)

    def entries(self):
        return self.read(_fifo.first, 1 << 40)

    def bounds(self):
        """Return head and tail of items without a priority, as numbers that users see."""
        head, tail, *others = self.read(_fifo.bounds)
        assert others == [0] * 4
        return head - fmt.BASE, tail - fmt.BASE

    def used(self):
        return self.read(lambda txn, queue: queue.generation.used(txn))

    def problems(self):
        return self.read(lambda txn, queue: invariants.of_records(txn, queue.generation, None)).sentences()


@contextmanager
def opened_generation(directory, *, checksum=True):
    path = os.path.join(directory, "00000001.mdb")
    options = fmt.Options(checksum=checksum, durability="off")
    build(path, options)
    session = Session(os.path.join(directory, "session"))
    session.join()
    generation = Generation(path, 1, options, session)
    generation.prepare(None)
    try:
        yield generation
    finally:
        generation.close()
        session.leave()


@pytest.fixture
def fifo(tmp_path, weighed_without_syncs):  # noqa: ARG001
    with opened_generation(tmp_path) as generation:
        yield Fifo(generation)


def stored(number, payload, *, checksum=True, number_of_class=fmt.CLASS):
    key = fmt.pack((number_of_class << 56) + number)
    return key, fmt.seal(key, payload + TRAILER, SALT) if checksum else payload + TRAILER


# --- every verb against a list

payloads = st.binary(max_size=30) | st.builds(
    lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(0, 20_000)
)
few = st.integers(0, 5)
classes = st.sampled_from([fmt.CLASS] * 4 + [0, 127, 255])


class FifoMachine(RuleBasedStateMachine):
    """One queue beside a list of entries in the order of their keys, and a second queue that nobody touches."""

    @initialize(checksum=st.booleans(), max_bytes=st.none() | st.integers(10_000, 300_000))
    def open_queue(self, checksum, max_bytes):
        self.checksum = checksum
        self.max_bytes = max_bytes
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.opened = opened_generation(self.directory, checksum=checksum)
        generation = self.opened.__enter__()
        self.other = Fifo(generation, "other")
        self.other.push([b"untouched"])
        self.fifo = Fifo(generation)
        self.model = []
        self.taken = []
        self.tails = {}
        self.is_plain = True

    def teardown(self):
        if hasattr(self, "opened"):
            self.opened.__exit__(None, None, None)
            shutil.rmtree(self.directory)

    def stored(self, number, payload, number_of_class=fmt.CLASS):
        return stored(number, payload, checksum=self.checksum, number_of_class=number_of_class)

    def not_yet_there(self):
        return fmt.key_of(self.tails.get(fmt.CLASS, 0))

    @rule(added=st.lists(payloads, max_size=10), maxsize=st.integers(0, 20), number=classes)
    def push(self, added, maxsize, number):
        if 0 < maxsize < len(self.model) + len(added):
            with pytest.raises(Full) as refusal:
                self.fifo.push(added, maxsize, self.max_bytes, number)
            assert refusal.value.args == ("items", maxsize, len(self.model), len(added))
            return
        used = self.fifo.used()
        try:
            given_numbers = self.fifo.push(added, maxsize, self.max_bytes, number)
        except Full as error:
            full = error
        else:
            tail = self.tails.get(number, 0)
            assert given_numbers == range(tail, tail + len(added))
            entries = [self.stored(seq, each, number) for seq, each in zip(given_numbers, added, strict=True)]
            self.model = sorted(self.model + entries)
            self.tails[number] = tail + len(added)
            self.is_plain = self.is_plain and (number == fmt.CLASS or not added)
            assert self.max_bytes is None or self.fifo.used() <= self.max_bytes
            return
        assert full.args == ("bytes", self.max_bytes, used, full.added)
        assert used + full.added > self.max_bytes

    @rule(n=few)
    def first(self, n):
        assert self.fifo.read(_fifo.first, n) == self.model[:n]

    @rule(n=few, size=st.integers(0, 20_000))
    def first_of_so_many_bytes(self, n, size):
        found = self.fifo.read(_fifo.first, n, size)
        assert found == self.model[: len(found)]
        assert bool(found) == bool(self.model[:n])
        behind = fmt.TRAILER + fmt.SEAL_SIZE
        assert len(found) <= 1 or sum(len(value) - behind for _, value in found) <= size

    @rule(back=st.integers(-2, 12), max_bytes=st.integers(0, 30_000))
    def since(self, back, max_bytes):
        place = self.model[-back][0] if 0 < back <= len(self.model) else self.not_yet_there() if back < 0 else b""
        found = self.fifo.read(_fifo.since, place, max_bytes)
        there = [(key, value) for key, value in self.model if key > place]
        assert found == there[: len(found)]
        assert bool(found) == bool(there)
        sizes = [len(value) for _, value in found]
        assert len(found) == len(there) or sum(sizes) >= max_bytes
        assert len(found) <= 1 or sum(sizes[:-1]) < max_bytes

    @rule(n=few)
    def delete(self, n):
        assert self.fifo.write(_fifo.delete, n) == min(n, len(self.model))
        del self.model[:n]

    @rule(n=few)
    def remove(self, n):
        keys = [key for key, _ in self.model[:n]]
        removed = self.fifo.write(_fifo.remove, keys)
        assert removed is None if not keys else removed.items == len(keys)
        del self.model[:n]
        if removed is not None and removed.following is not None:
            assert removed.following == self.model[0]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(1, 5))
    def remove_what_is_not_first(self, data, n):
        keys = [key for key, _ in self.model]
        first = keys[:n]
        nowhere = self.not_yet_there()
        gone = fmt.pack(fmt.unpack(keys[0]) - 1) if keys[0] > fmt.pack(0) else nowhere
        others = {
            "gone already": [gone, *first],
            "not yet there": [*keys, nowhere],
            "from the second on": keys[1 : n + 1] or [nowhere],
            "in another order": first[::-1] if len(first) > 1 else first * 2,
            "one left out": [keys[0], *keys[2:4]] if len(keys) > 2 else [nowhere],
        }
        wrong = others[data.draw(st.sampled_from(sorted(others)))]
        assert self.fifo.write(_fifo.remove, wrong) is None

    @rule()
    def clear(self):
        assert self.fifo.write(_fifo.clear) == len(self.model)
        self.model = []

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(1, 3))
    def take_out(self, data, n):
        some = data.draw(st.lists(st.sampled_from(self.model), min_size=1, max_size=n, unique=True))
        keys = [key for key, _ in some]
        assert self.fifo.write(_fifo.take_out, [*keys, self.not_yet_there()]) == sorted(some)
        self.model = [each for each in self.model if each not in some]
        self.taken += some
        self.is_plain = False  # or it may not be

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def put_back(self, data):
        some = data.draw(st.lists(st.sampled_from(self.taken), min_size=1, max_size=4, unique=True))
        assert self.fifo.write(_fifo.put_back, some) == len(some)
        self.taken = [each for each in self.taken if each not in some]
        self.model = sorted(self.model + some)

    @invariant()
    def queue_is_what_the_list_is(self):
        assert self.fifo.read(_fifo.count) == len(self.model)
        assert self.fifo.entries() == self.model
        for number, tail in self.tails.items():
            assert self.fifo.read(_fifo.bounds, number).tail == (number << 56) + tail
        if self.fifo.read(_fifo.is_plain):
            head, tail = self.fifo.bounds()
            assert [key for key, _ in self.model] == list(map(fmt.key_of, range(head, tail)))
        else:
            assert not self.is_plain
        assert self.fifo.problems() == []
        assert self.other.bounds() == (0, 1)
        assert self.other.entries() == [self.stored(0, b"untouched")]


@pytest.mark.usefixtures("weighed_without_syncs")
def test_functions_do_what_a_list_does():
    run_state_machine_as_test(FifoMachine, settings=settings(max_examples=40, stateful_step_count=40))


# --- max_bytes

# Around what LMDB keeps in a leaf at the most (a node of 2038 bytes, so about 2010 of payload) and around
# whole numbers of overflow pages (4096 k - 16 of header - 12 of trailer and seal) an estimate goes wrong first.
sizes = st.one_of(
    st.integers(0, 100),
    st.integers(0, 20_000),
    st.integers(1_990, 2_050),
    st.integers(1, 4).flatmap(lambda pages: st.integers(4_096 * pages - 40, 4_096 * pages + 10)),
)
batches = st.lists(st.tuples(sizes, st.integers(1, 40)), min_size=1, max_size=4).map(
    lambda runs: [bytes(size) for size, times in runs for _ in range(times)]
)
steps = st.lists(
    st.one_of(batches, batches, st.integers(0, 100), st.just("clear")),  # push, push, delete, clear
    min_size=1,
    max_size=8,
)


def push_with_the_smallest_limit(fifo, payloads):
    """Push with the limit that the push just meets, and prove that it is kept; refused with less, it does nothing."""
    before = fifo.read(_fifo.count), fifo.bounds()
    with pytest.raises(Full) as refusal:
        fifo.push(payloads, max_bytes=0)
    full = refusal.value
    assert (full.unit, full.limit, full.used) == ("bytes", 0, fifo.used())
    smallest = full.used + full.added
    with pytest.raises(Full):
        fifo.push(payloads, max_bytes=smallest - 1)
    assert (fifo.read(_fifo.count), fifo.bounds()) == before
    fifo.push(payloads, max_bytes=smallest)
    assert fifo.used() <= smallest


@settings(max_examples=100)
@given(st.booleans(), steps)
@example(checksum=True, steps=[[bytes(2_010)] * 120, 100, [b""] * 300, [bytes(2_011)] * 40])
@example(checksum=True, steps=[[b""] * 20_000])
@example(checksum=False, steps=[[b""] * 1_000, 999, [bytes(1_400)] * 250])
def test_pages_in_use_never_exceed_max_bytes_after_an_accepted_push(checksum, steps):
    with tempfile.TemporaryDirectory() as directory, opened_generation(directory, checksum=checksum) as generation:
        fifo = Fifo(generation)
        for step in steps:
            if step == "clear":
                fifo.write(_fifo.clear)
            elif isinstance(step, int):
                fifo.write(_fifo.delete, step)
            else:
                push_with_the_smallest_limit(fifo, step)


@pytest.mark.parametrize("size", [1_500, 2_000, 5_000])
def test_pages_in_use_never_exceed_max_bytes_while_the_tree_grows_by_one_item_at_a_time(fifo, size):
    for _ in range(600):  # two to a page: 300 leaves, more than one branch page can hold
        push_with_the_smallest_limit(fifo, [bytes(size)])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=500))
def test_a_limit_of_twice_what_the_payloads_take_and_some_pages_is_enough_for_small_ones(lengths):
    with tempfile.TemporaryDirectory() as directory, opened_generation(directory) as generation:
        fifo = Fifo(generation)
        taken = sum(8 + 8 + 2 + fmt.TRAILER + fmt.SEAL_SIZE + length for length in lengths)
        fifo.push([bytes(length) for length in lengths], max_bytes=fifo.used() + 2 * taken + 10 * 4_096)
        assert fifo.read(_fifo.count) == len(lengths)


def test_used_counts_a_queue_that_was_made_after_this_one_was_opened(tmp_path):
    with opened_generation(tmp_path) as generation:
        fifo = Fifo(generation)
        alone = fifo.used()
        Fifo(generation, "other").push([bytes(100_000)])
        assert fifo.used() >= alone + 100_000


# --- one by one


def test_new_queue_is_empty_and_begins_at_0(fifo):
    assert fifo.bounds() == (0, 0)
    assert fifo.entries() == []
    assert fifo.push([b"a"]) == range(1)


def test_refused_push_gives_no_number(fifo):
    with pytest.raises(Full):
        fifo.push([b"a", b"b"], maxsize=1)
    assert fifo.push([b"c"]) == range(1)


def test_calls_of_one_transaction_see_what_those_before_them_did_and_a_refused_one_did_nothing(fifo):
    def push(payloads):
        return Call(fifo.ref, pushing.push, (payloads, TRAILER, Limits(2), NOW))

    calls = [push([b"a", b"b"]), push([b"c"]), Call(fifo.ref, _fifo.delete, (1,)), push([b"d"])]
    run(fifo.generation, calls)
    first = fmt.BASE
    assert [call.result for call in calls] == [range(first, first + 2), None, 1, range(first + 2, first + 3)]
    assert isinstance(calls[1].error, Full)
    assert fifo.entries() == [stored(1, b"b"), stored(2, b"d")]


def test_number_is_not_given_again_after_the_queue_was_emptied(fifo):
    fifo.push([b"a", b"b"])
    fifo.write(_fifo.delete, 2)
    assert fifo.bounds() == (2, 2)
    assert fifo.push([b"c", b"d"]) == range(2, 4)
    fifo.write(_fifo.clear)
    assert fifo.bounds() == (4, 4)
    assert fifo.push([b"e"]) == range(4, 5)


def test_number_is_not_given_again_after_a_class_was_emptied(fifo):
    assert fifo.push([b"a", b"b"], number=3) == range(2)
    fifo.write(_fifo.clear)
    assert fifo.push([b"c"], number=3) == range(2, 3)
    assert fifo.push([b"d"]) == range(1)
    assert fifo.entries() == [stored(2, b"c", number_of_class=3), stored(0, b"d")]


@pytest.mark.parametrize(
    ("fn", "args"), [(_fifo.delete, (5,)), (_fifo.delete, (0,)), (_fifo.clear, ()), (_fifo.remove, ([],))]
)
def test_removal_of_nothing_answers_with_nothing(fifo, fn, args):
    assert not fifo.write(fn, *args)
    assert fifo.bounds() == (0, 0)


def test_only_one_of_two_consumers_removes_what_both_read(fifo):
    fifo.push([b"a", b"b", b"c"])
    keys = [key for key, _ in fifo.read(_fifo.first, 2)]
    assert fifo.write(_fifo.remove, keys).items == 2
    assert fifo.write(_fifo.remove, keys) is None
    assert fifo.entries() == [stored(2, b"c")]


def test_removal_of_the_first_item_tells_which_one_is_next_where_nothing_can_come_before_it(fifo):
    fifo.push([b"a", b"b"])
    assert fifo.write(_fifo.remove, [fmt.key_of(0)]).following == stored(1, b"b")
    assert fifo.write(_fifo.remove, [fmt.key_of(1)]).following is None
    fifo.push([b"c", b"d"], number=3)
    (c, _), _ = fifo.entries()
    assert fifo.write(_fifo.remove, [c]).following is None


def test_item_that_is_put_back_twice_is_damage_and_nothing_is_changed(fifo):
    fifo.push([b"a", b"b"])
    entries = fifo.write(_fifo.take_out, [fmt.key_of(0)])
    with pytest.raises(CorruptQueueError):
        fifo.write(_fifo.put_back, [*entries, *entries])
    assert fifo.entries() == [stored(1, b"b")]
    assert fifo.problems() == []


def test_head_passes_any_number_of_skipped_keys_in_time_and_none_is_lost(fifo):
    fifo.push([b""] * 5_000)
    keys = list(map(fmt.key_of, range(1, 4_999)))
    fifo.write(_fifo.take_out, keys[::-1])
    fifo.write(_fifo.delete, 1)  # now the head may move, and does so a part of the way
    assert fifo.problems() == []
    for _ in range(10):
        fifo.push([b""])
        assert fifo.write(_fifo.delete, 1) == 1
        assert fifo.problems() == []
    assert fifo.bounds() == (5_009, 5_010)


@pytest.mark.parametrize("stray", [0, 2])
@pytest.mark.parametrize("number", [7, fmt.CLASS])
def test_push_onto_an_item_at_or_behind_the_tail_is_refused_and_undone(fifo, stray, number):
    key = fmt.pack((number << 56) + stray)
    fifo.write(lambda txn, queue: txn.put(key, b"stray", db=queue.items))
    with pytest.raises(CorruptQueueError) as caught:
        fifo.push([b"a", b"b", b"c"], number=number)
    assert caught.value.path == fifo.generation.path
    assert repr(NAME) in caught.value.reason
    assert fifo.entries() == [(key, b"stray")]
    assert fifo.bounds() == (0, 0)


def lose_record(fifo):
    fifo.write(lambda txn, queue: txn.delete(queue.queue, db=queue.meta))


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (pushing.push, ([b"b"], TRAILER, None, NOW)),
        (_fifo.clear, ()),
        (_fifo.delete, (1,)),
        (_fifo.remove, ([fmt.key_of(0)],)),
        (_fifo.take_out, ([fmt.key_of(0)],)),
        (_fifo.first, (1,)),
        (_fifo.since, (b"", 1)),
        (_fifo.bounds, ()),
    ],
)
def test_verb_that_misses_the_record_of_its_queue_says_that_it_is_gone_and_changes_nothing(fifo, fn, args):
    fifo.push([b"a"])
    items = fifo.read(lambda _, queue: queue.items)
    lose_record(fifo)
    with pytest.raises(GoneError) as caught:
        fifo.write(fn, *args)
    assert NAME in str(caught.value)
    with fifo.generation._env.begin() as txn:
        assert list(txn.cursor(items)) == [stored(0, b"a")]


def test_verb_that_finds_the_record_of_another_queue_with_its_name_says_that_its_own_is_gone(fifo):
    fifo.push([b"a"])
    lose_record(fifo)
    fifo.write(pushing.create, SALT, "pickle")
    with pytest.raises(GoneError):
        fifo.push([b"b"])
    with pytest.raises(GoneError):
        fifo.entries()


@pytest.mark.parametrize(
    ("lost", "n", "head"),
    [
        ((), 2, 2),
        ((), 9, 5),
        ((1,), 2, 3),  # the next item tells where the head is, not how many went
        ((3, 4), 3, 5),
        ((0, 1, 2, 3, 4), 1, 0),
    ],
)
def test_deleting_moves_the_head_to_the_next_item_whatever_is_lost(fifo, lost, n, head):
    fifo.push([b"a", b"b", b"c", b"d", b"e"])
    for number in lost:
        fifo.write(lambda txn, queue, number=number: txn.delete(fmt.key_of(number), db=queue.items))
    left = 5 - len(lost)
    assert fifo.write(_fifo.delete, n) == min(n, left)
    assert fifo.bounds() == (head, 5)
    assert len(fifo.entries()) == max(0, left - n)


@pytest.mark.parametrize("stray", [b"\0", fmt.pack(7), fmt.key_of(7), b"\xff" * 8, b"\xff" * 20])
def test_deleting_goes_on_beside_keys_that_no_item_can_have(fifo, stray):
    fifo.push([b"a", b"b"])
    fifo.write(lambda txn, queue: txn.put(stray, b"stray", db=queue.items))
    for _ in range(3):
        assert fifo.write(_fifo.delete, 1) == 1
        head, tail = fifo.bounds()
        assert 0 <= head <= tail == 2
    assert fifo.write(_fifo.delete, 1) == 0
    assert fifo.bounds() == (2, 2)
    assert fifo.push([b"c"]) == range(2, 3)
