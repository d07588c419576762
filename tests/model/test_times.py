"""The times of pushes: what the record tells of an item's age is so, and there is little of it."""

import shutil
import tempfile
from itertools import pairwise
from math import log

import pytest
from clocks import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from lmdbqueue._model.push_times import Mark, thinned

import lmdbqueue._host.session
from lmdbqueue import PersistentQueue, _format
from lmdbqueue._model import push_times, readers

SECOND = 10**9
YEAR = 365 * 86_400


@pytest.fixture
def reboot(clocks, monkeypatch):
    """Close a queue, and return it opened again by the system's next boot."""
    numbers = iter(range(1, 100))

    def reboot_(queue, place):
        queue.close()
        monkeypatch.setattr(lmdbqueue._host.session, "_boot", lambda: bytes([next(numbers)] * 16))
        clocks.mono = 10 * SECOND
        return clocks.given_to(PersistentQueue("queue", place))

    return reboot_


def age(queue):
    return queue.stats().oldest_age


def record(queue):
    """Return the record of times as it stands on disk."""
    tables = queue._engine.environment._generation.table(queue.name)
    return queue._engine.environment.view(queue.name, lambda txn, _: txn.get(tables.times, db=tables.meta))


# --- what it says


def test_age_is_that_of_the_item_that_waits_longest(queue, clocks):
    assert age(queue) is None
    queue.push("a")
    assert age(queue) == 0
    clocks.go_on(100)
    queue.push("b")
    assert age(queue) == 100
    queue.pop()
    assert age(queue) == 0
    clocks.go_on(7)
    assert age(queue) == 7
    queue.pop()
    assert age(queue) is None


def test_an_item_pushed_within_a_second_of_another_counts_as_that_one(queue, clocks):
    queue.push("a")
    clocks.go_on(0.9)
    queue.push("b")
    clocks.go_on(3600)
    queue.push("c")
    queue.pop()
    assert age(queue) == 3600.9
    queue.pop()
    assert age(queue) == 0


@pytest.mark.parametrize("dead", [False, True])
def test_item_that_was_leased_or_dead_is_as_old_as_if_it_had_waited(open_queue, clocks, dead):
    queue = open_queue(max_attempts=1 if dead else None)
    queue.push("a")
    lease = queue.lease(1)
    if dead:
        lease.nack()
    for _ in range(20):
        clocks.go_on(1_000)
        queue.push("c")
        queue.pop()
    queue.push("d")
    assert age(queue) == 0
    if dead:
        queue.dead.requeue()
    else:
        lease.nack()
    assert age(queue) == 20_000


def test_item_with_a_delay_waits_since_it_was_due(queue, clocks):
    queue.push("later", delay=50)
    assert age(queue) is None
    clocks.go_on(60)
    assert age(queue) == 10
    queue.push("now")
    clocks.go_on(5)
    assert age(queue) == 15
    queue.pop()
    assert age(queue) == 5
    queue.lease(1).nack(delay=50)
    clocks.go_on(60)
    assert age(queue) == 10


def test_item_with_a_delay_waits_since_it_was_due_with_readers_too(queue, clocks):
    queue.reader("r")
    queue.push("later", delay=50)
    clocks.go_on(60)
    assert len(queue) == 1  # which gave it its number
    clocks.go_on(5)
    assert age(queue) == 5


def test_moved_item_waits_since_it_was_moved(open_queue, clocks):
    first, second = open_queue(name="first"), open_queue(name="second")
    first.push("a")
    clocks.go_on(10)
    first.move(1, to=second)
    clocks.go_on(5)
    assert age(second) == 5


def test_what_a_push_rolled_back_had_noted_is_forgotten(queue, clocks):
    block = queue.transaction()
    block.__enter__()
    queue.push("a")
    assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    queue.push("b")
    assert age(queue) == 0
    with queue.transaction():
        clocks.go_on(100)
        queue.push("c")
        queue.pop()
    clocks.go_on(1)
    assert age(queue) == 1


def test_the_record_is_looked_at_once_a_second_and_written_if_no_other_process_did(queue, clocks):
    queue.push("a")
    marked = queue._engine.environment._generation.marked
    assert marked == {"queue": clocks.mono}
    marked["queue"] -= 100 * SECOND  # as if another process had made that mark, since this one looked
    clocks.go_on(0.5)
    before = record(queue)
    queue.push("b")
    assert record(queue) == before
    assert marked == {"queue": clocks.mono - SECOND // 2}
    clocks.go_on(0.5)
    queue.push("c")
    assert record(queue) != before
    assert marked == {"queue": clocks.mono}


def test_who_waited_long_for_its_turn_changes_nothing_that_others_noted(queue, clocks):
    queue.push("a")
    early = clocks()
    clocks.go_on(50)
    queue.push("b")
    clocks.go_on(5)
    queue.push("c")
    queue._engine.environment.update("queue", readers.retain, early, _format.Retention(age=100 * SECOND))
    queue._engine.environment.update("queue", readers.push, [queue.dumps("d")], (0, None), early)
    clocks.go_on(46.5)
    assert age(queue) == 101.5
    queue.push("e")
    assert list(queue) == ["b", "c", "d", "e"]
    assert age(queue) == 51.5


# --- clocks


@pytest.mark.parametrize("step", [-53 * YEAR, -3600, -1, 1, 3600, YEAR * 50])
def test_a_step_of_the_wall_clock_ages_nothing(queue, clocks, step):
    queue.push("a")
    clocks.go_on(100)
    queue.push("b")
    clocks.go_on(20)
    clocks.step(step)
    assert age(queue) == 120
    clocks.go_on(5)
    queue.push("c")  # a mark by the new time
    assert age(queue) == 125
    queue.delete(2)
    clocks.go_on(3)
    assert age(queue) == 3
    clocks.step(-step)
    assert age(queue) == 3


def test_item_with_a_delay_that_a_step_of_the_clock_made_due_has_not_waited_longer_than_since_it_was_pushed(
    queue, clocks
):
    queue.push("a")
    clocks.go_on(1)
    queue.push("later", delay=3_600)
    queue.pop()
    clocks.step(YEAR)
    assert list(queue) == ["later"]
    assert age(queue) == 1  # and another one, since the push before it


def test_a_machine_without_a_battery_that_boots_in_1970_ages_nothing(tmp_path, clocks, reboot):
    clocks.wall = 5 * SECOND
    queue = clocks.given_to(PersistentQueue("queue", tmp_path))
    queue.push("a")
    clocks.go_on(60)
    clocks.step(56 * YEAR)  # the time came by the network
    queue.push("b")
    assert age(queue) == 60
    queue = reboot(queue, tmp_path)
    clocks.wall = 5 * SECOND
    assert age(queue) == 60  # the newest mark
    queue.push("c")
    clocks.go_on(60)
    clocks.step(56 * YEAR)
    queue.push("d")
    assert age(queue) == 120
    queue.close()


def test_time_between_two_boots_is_that_of_the_wall_clock(tmp_path, clocks, reboot):
    queue = clocks.given_to(PersistentQueue("queue", tmp_path))
    queue.push("a")
    clocks.go_on(100)
    queue.push("b")
    queue = reboot(queue, tmp_path)
    clocks.wall += 50 * SECOND
    assert age(queue) == 150
    queue.push("c")
    clocks.go_on(1)
    assert age(queue) == 151
    queue.close()


def test_a_reboot_to_an_earlier_time_counts_as_none(tmp_path, clocks, reboot):
    queue = clocks.given_to(PersistentQueue("queue", tmp_path))
    queue.push("a")
    clocks.go_on(100)
    queue.push("b")
    queue = reboot(queue, tmp_path)
    clocks.wall -= 50 * SECOND
    assert age(queue) == 100
    queue.push("c")
    clocks.go_on(1)
    assert age(queue) == 101
    clocks.step(70)
    assert age(queue) == 101
    queue.close()


def test_where_boots_cannot_be_told_apart_the_wall_clock_counts(tmp_path, clocks, monkeypatch):
    monkeypatch.setattr(lmdbqueue._host.session, "_boot", lambda: b"")
    with clocks.given_to(PersistentQueue("queue", tmp_path)) as queue:
        queue.push("a")
        clocks.go_on(100)
        queue.push("b")
        clocks.step(-50)
        assert age(queue) == 100  # so long before the last push
        clocks.go_on(1)
        queue.push("c")
        clocks.go_on(10)
        assert age(queue) == 110
        assert queue.check() == []


# --- where the record goes


def test_age_is_kept_by_flush_copy_and_a_restart(tmp_path, clocks):
    with clocks.given_to(PersistentQueue("queue", tmp_path)) as queue:
        queue.push(["a", "b"])
        clocks.go_on(100)
        queue.flush(force=True)
        assert age(queue) == 100
        with clocks.given_to(queue.copy("copy")) as copy:
            assert age(copy) == 100
    clocks.go_on(100)
    with clocks.given_to(PersistentQueue("queue", tmp_path)) as queue:
        assert age(queue) == 200


@pytest.mark.parametrize("retained", [False, True])
def test_items_of_a_version_that_noted_no_times_have_no_age_until_they_are_gone(queue, clocks, retained):
    queue.push(["a", "b"])
    tables = queue._engine.environment._generation.table("queue")
    queue._engine.environment.update(
        "queue", lambda txn, _: push_times.weighed_records.delete_sealed(txn, tables, tables.times)
    )
    queue._engine.environment._generation.marked.clear()
    assert age(queue) is None
    if retained:
        queue.retain(seconds=64)
    clocks.go_on(10)
    queue.push("c")
    assert age(queue) is None
    queue.push("due", delay=1)
    clocks.go_on(2)
    assert queue.peek(2) == ["a", "due"]
    assert age(queue) is None
    lease = queue.lease(2)
    lease.ack([3])
    lease.nack()
    clocks.go_on(53)
    if retained:
        queue.push("d")
        assert list(queue) == ["c", "d"]
    else:
        queue.delete(2)
    assert age(queue) == 55


def test_a_damaged_record_counts_as_none(open_queue, clocks):
    queue = open_queue()
    queue.push("a")
    tables = queue._engine.environment._generation.table("queue")
    sound = record(queue)
    queue._engine.environment.update("queue", lambda txn, _: txn.put(tables.times, sound[:-1] + b"x", db=tables.meta))
    assert age(queue) is None
    assert any("queue/times" in problem for problem in queue.check())
    clocks.go_on(5)
    queue.push("b")
    queue.pop()
    assert age(queue) == 0
    queue.close()  # the weight of its records was spoilt, too


# --- what is retained


def test_item_whose_delay_is_just_over_is_not_too_old(queue, clocks):
    queue.push(["a", "b"])
    queue.retain(seconds=100)
    clocks.go_on(150)
    queue.push("later", delay=10)
    clocks.go_on(20)
    assert len(queue) == 3
    queue.push("c")
    assert list(queue) == ["later", "b", "c"]
    clocks.go_on(91)
    queue.push("d")
    assert list(queue) == ["c", "d"]


def test_what_is_retained_is_kept_through_a_step_of_the_clock(queue, clocks):
    queue.retain(seconds=100)
    queue.push("a")
    clocks.step(YEAR)
    clocks.go_on(50)
    queue.push("b")
    assert list(queue) == ["a", "b"]
    clocks.step(-2 * YEAR)
    clocks.go_on(52)
    queue.push("c")
    assert list(queue) == ["b", "c"]


def test_a_limit_of_time_that_is_set_later_counts_from_the_push(queue, clocks):
    queue.push("a")
    clocks.go_on(50)
    queue.push("b")
    queue.retain(seconds=100)
    clocks.go_on(51)
    queue.push("c")
    assert list(queue) == ["b", "c"]


def test_a_limit_of_time_that_is_set_later_takes_nothing_too_early(queue, clocks):
    queue.push("a")
    clocks.go_on(0.9)
    queue.push("b")  # which makes no mark
    queue.retain(seconds=10)
    clocks.go_on(9.2)
    queue.push("c")
    assert list(queue)[-2:] == ["b", "c"]


# --- thinning

gaps = st.lists(st.integers(1, 50 * YEAR).map(lambda n: n * SECOND // 50), min_size=1, max_size=40)


@given(gaps, st.none() | st.integers(SECOND, YEAR * SECOND))
def test_marks_that_are_left_are_few_and_their_windows_short(between, age):
    marks, now, tail, given = [], 0, 0, []
    for gap in between:
        now, tail = now + gap, tail + 1
        given.append((now, tail))
        marks = thinned([*marks, Mark(now, tail)], now, age)
    assert marks[0] == given[0]
    assert marks[-1] == given[-1]
    assert set(marks) <= set(given)
    for earlier, later in pairwise(marks):
        inside = any(earlier.time < time < later.time for time, _ in given)
        assert not inside or later.time - earlier.time <= max(2 * SECOND, (now - later.time) // 8)
        assert not inside or age is None or later.time - earlier.time <= age // 64
    spans = zip(marks, marks[2:], strict=False)
    assert all(later.time - earlier.time > push_times._window(now - later.time, age) for earlier, later in spans)


@pytest.mark.parametrize(("seconds", "pause"), [(20_000, 1), (YEAR, 2_000), (10 * YEAR, 20_000)])
def test_a_record_grows_with_the_logarithm_of_the_age(seconds, pause):
    marks = []
    for time in range(0, seconds, pause):
        marks = thinned([*marks, Mark(time * SECOND, time)], time * SECOND, None)
    assert len(marks) < 2 * log(seconds) / log(1 + 1 / 8)
    assert len(marks) * 16 < 6_000


def test_the_record_of_a_queue_that_is_nearly_empty_is_one_mark(queue, clocks):
    for number in range(100):
        queue.push(number)
        clocks.go_on(10)
        queue.pop()
    assert len(record(queue)) == 24 + 16 + _format.SEAL_SIZE


class TimesMachine(RuleBasedStateMachine):
    """Pushes, pops, steps of the clock and reboots, against a list that knows when each item was pushed."""

    @initialize(retained=st.sampled_from([None, 20.0, 1_000.0]))
    def create(self, retained):
        self.clocks = Clock()
        self.place = tempfile.mkdtemp(dir="/dev/shm")
        self.queue = self.clocks.given_to(PersistentQueue("queue", self.place, durability="off"))
        self.retained = retained
        if retained:
            self.queue.retain(seconds=retained)
        self.since = 0.0  # seconds, steadily
        self.items = []  # since when each waits

    def teardown(self):
        if hasattr(self, "queue"):
            self.queue.close()
            shutil.rmtree(self.place)

    @rule(n=st.integers(1, 3))
    def push(self, n):
        self.queue.push(list(range(n)))
        self.items += [self.since] * n
        if self.retained:
            left = len(self.queue)
            gone, kept = self.items[: len(self.items) - left], self.items[len(self.items) - left :]
            assert all(self.since - each >= self.retained - 1e-6 for each in gone)
            assert all(self.since - each <= self.retained * 65 / 64 + 1e-6 for each in kept)
            self.items = kept

    @rule(n=st.integers(1, 3))
    def pop(self, n):
        self.queue.delete(n)
        del self.items[:n]

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.9, 1.0, 1.7, 5.0, 60.0, 3_600.0, 1e6]), times=st.integers(1, 5))
    def time_passes(self, seconds, times):
        for _ in range(times):
            self.clocks.go_on(seconds)
            self.since += seconds
            if times > 1:
                self.push(1)

    @rule(seconds=st.sampled_from([-1e6, -3.0, -0.5, 0.5, 3.0, 1e6, 1e9]))
    def clock_is_stepped(self, seconds):
        self.clocks.step(seconds)

    @rule()
    def flush_and_open_again(self):
        self.queue.flush(force=True)
        self.queue.close()
        self.queue = self.clocks.given_to(PersistentQueue("queue", self.place, durability="off"))

    @invariant()
    def age_is_at_most_what_is_said_and_not_much_less(self):
        if not hasattr(self, "queue"):
            return
        said = age(self.queue)
        if not self.items:
            assert said is None
            return
        true = self.since - self.items[0]
        assert true - 0.001 <= said <= true + max(2.0, true / 8) + 0.001
        assert len(record(self.queue) or b"") < 6_000
        assert self.queue.check() == []


@pytest.mark.usefixtures("weighed_without_syncs")
def test_ages_are_those_of_a_list_that_knows():
    run_state_machine_as_test(TimesMachine, settings=settings(max_examples=90, stateful_step_count=30))
