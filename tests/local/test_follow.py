"""A follower sees each item that waits once, in its order, and takes none."""

import threading
import time

import pytest

from lmdbqueue._local.follow import Follower, numbered

NOW = 0.0  # s to wait
SOON = 20.0  # s; it is woken


def wait_until_due(queue, waiting):
    deadline = time.monotonic() + SOON
    while len(queue) < waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_waits_comes_first_and_then_what_is_pushed(queue):
    queue.push([1, 2])
    follower = Follower(queue)
    assert follower.wait(NOW) == [1, 2]
    assert follower.wait(NOW) == []
    queue.push(3)
    assert follower.wait(NOW) == [3]
    assert list(queue) == [1, 2, 3]


def test_an_empty_queue_is_followed_from_its_first_item_on(queue):
    for follower in (Follower(queue), Follower(queue, new_only=True)):
        assert follower.wait(NOW) == []
        queue.push("a")
        assert follower.wait(NOW) == ["a"]
        queue.clear()


def test_new_only_leaves_out_what_waits(queue):
    queue.push([1, 2])
    follower = Follower(queue, new_only=True)
    assert follower.wait(NOW) == []
    queue.push(3)
    assert follower.wait(NOW) == [3]


def test_new_only_leaves_out_what_was_delayed_and_waits(queue):
    queue.push("due", delay=0.001)
    wait_until_due(queue, 1)
    follower = Follower(queue, new_only=True)
    assert follower.wait(NOW) == []
    queue.push("new", delay=0.001)
    assert follower.wait(SOON) == ["new"]


def test_a_waiting_follower_is_woken_by_a_push(queue):
    follower = Follower(queue)
    threading.Timer(0.05, queue.push, ["a"]).start()
    begun = time.monotonic()
    assert follower.wait(SOON) == ["a"]
    assert time.monotonic() - begun < 0.9  # before the ceiling of a sleep


def test_more_than_fits_into_one_look_comes_whole_and_in_order(queue):
    items = [f"{number:0200}" for number in range(5_000)]
    queue.push(items)
    follower = Follower(queue)
    seen = []
    while found := follower.wait(NOW):
        seen += found
    assert seen == items


@pytest.mark.parametrize("before", [[], ["x" * 300_000], ["a"] * 3])
def test_items_that_come_due_are_seen_though_they_come_before_all_others(queue, before):
    queue.push(before)
    follower = Follower(queue)
    assert follower.wait(NOW) == before
    queue.push(["d", "e"], delay=0.01)
    wait_until_due(queue, len(before) + 2)
    assert follower.wait(NOW) == ["d", "e"]
    queue.push("f", delay=0.01)
    wait_until_due(queue, len(before) + 3)
    assert follower.wait(SOON) == ["f"]
    queue.push("g")
    assert follower.wait(NOW) == ["g"]
    assert follower.wait(NOW) == []


def test_an_item_that_was_due_before_others_but_came_after_them_is_seen(queue):
    queue.push("late", delay=2)
    queue.push("early", delay=0.5)
    follower = Follower(queue)
    assert follower.wait(SOON) == ["early"]
    assert follower.wait(SOON) == ["late"]


def test_many_items_that_came_due_are_seen_once(queue):
    items = [f"{number:0200}" for number in range(5_000)]
    queue.push(items, delay=0.01)
    queue.push("x")
    follower = Follower(queue)
    seen = []
    wait_until_due(queue, 5_001)
    while found := follower.wait(NOW):
        seen += found
    assert sorted(seen) == [*items, "x"]


def test_an_item_that_was_given_back_is_not_seen_twice(queue):
    queue.push([1, 2])
    follower = Follower(queue)
    assert follower.wait(NOW) == [1, 2]
    queue.lease(1).nack()
    assert follower.wait(NOW) == []


def test_removal_of_what_was_seen_hides_nothing(queue):
    queue.push([1, 2])
    follower = Follower(queue)
    follower.wait(NOW)
    queue.pop(2)
    queue.push(3)
    assert follower.wait(NOW) == [3]


def test_numbers_and_payloads_are_those_of_the_items(open_queue):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"%0999d" % number for number in range(1_000)])
    queue.pop(3)
    assert list(numbered(queue)) == [(number, b"%0999d" % number) for number in range(3, 1_000)]
