"""When an item was pushed stands behind its payload, for life: its age is exact, and so is what is too old."""

import pytest

from lmdbqueue import PersistentQueue
from lmdbqueue._base.values import Push
from lmdbqueue._local.queue import local_engine_of

YEAR = 365 * 86_400


def age(queue):
    return queue.stats().oldest_age


# --- the age of what waits


def test_age_is_that_of_the_item_that_waits_longest(queue, clocks):
    assert age(queue) is None
    queue.push("a")
    assert age(queue) == 0
    clocks.go_on(0.25)
    queue.push(["b", "c"])
    clocks.go_on(100)
    assert age(queue) == 100.25
    queue.pop()
    assert age(queue) == 100
    queue.pop(2)
    assert age(queue) is None


@pytest.mark.parametrize("dead", [False, True])
def test_item_that_was_leased_or_dead_is_as_old_as_if_it_had_waited(open_queue, clocks, dead):
    queue = open_queue(max_attempts=1 if dead else None)
    queue.push("a")
    lease = queue.lease(1)
    if dead:
        lease.nack()
    clocks.go_on(1_000)
    queue.push("b")
    assert age(queue) == 0
    if dead:
        queue.dead.requeue()
    else:
        lease.nack()
    assert age(queue) == 1_000


def test_item_with_a_delay_waits_since_it_was_due(queue, clocks):
    queue.push("later", delay=50)
    assert age(queue) is None
    clocks.go_on(60)
    assert age(queue) == 10
    queue.push("now")
    queue.pop()
    assert age(queue) == 0


def test_item_with_a_delay_waits_since_it_was_due_with_readers_too(queue, clocks):
    queue.reader("r")
    queue.push("later", delay=50)
    clocks.go_on(60)
    assert len(queue) == 1  # which gave it its number
    clocks.go_on(5)
    assert age(queue) == 15


def test_item_that_was_given_back_with_a_delay_is_as_old_as_before(queue, clocks):
    queue.push("a")
    queue.lease(1).nack(delay=50)
    clocks.go_on(60)
    assert age(queue) == 60


def test_moved_item_is_as_old_as_before(open_queue, clocks):
    first, second = open_queue(name="first"), open_queue(name="second")
    first.push("a")
    clocks.go_on(10)
    first.move(1, to=second)
    clocks.go_on(5)
    assert age(second) == 15


def test_age_is_that_of_the_oldest_item_of_any_priority(queue, clocks):
    engine = local_engine_of(queue)
    for priority in (0, 5, -5):
        engine.append_apart([queue.dumps(priority)], Push(priority=priority))
        clocks.go_on(100)
    assert age(queue) == 300
    assert queue.pop(2) == [-5, 0]
    assert age(queue) == 200


@pytest.mark.parametrize("step", [-53 * YEAR, -3600, -1, 3600])
def test_a_step_of_the_wall_clock_counts_and_no_age_is_negative(queue, clocks, step):
    queue.push("a")
    clocks.go_on(100)
    clocks.step(step)
    assert age(queue) == max(0, 100 + step)


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


def test_age_of_an_item_that_is_cut_off_by_damage_is_0(open_queue):
    queue = open_queue()
    queue.push("a")
    engine = local_engine_of(queue)
    engine.environment.update(engine.ref, lambda txn, tables: txn.put(engine.first(1)[0][0], b"a", db=tables.items))
    assert age(queue) == 0
    assert queue.check()
    queue.close()


# --- what is too old


def test_what_is_retained_is_exact(queue, clocks):
    queue.push("a")
    clocks.go_on(0.5)
    queue.push("b")
    queue.retain(seconds=100)  # counted from the push, whenever it is set
    clocks.go_on(99.5)
    assert list(queue) == ["a", "b"]
    clocks.go_on(0.001)
    assert list(queue) == ["b"]
    clocks.go_on(0.498)
    assert list(queue) == ["b"]
    clocks.go_on(0.002)
    assert list(queue) == []
    assert queue.stats().dropped == 2


def test_item_whose_delay_is_just_over_is_not_too_old(queue, clocks):
    queue.retain(seconds=100)
    queue.push("later", delay=1_000)
    clocks.go_on(1_050)
    assert list(queue) == ["later"]
    clocks.go_on(51)
    assert list(queue) == []


def test_item_that_comes_back_too_old_goes_at_once(queue, clocks):
    queue.retain(seconds=100)
    queue.push("a")
    lease = queue.lease()
    clocks.go_on(150)
    queue.push("b")
    lease.nack()
    assert list(queue) == ["b"]
