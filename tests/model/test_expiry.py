"""An item whose time is over, or that was replaced, is in nobody's way, also where no consumer is there."""

import pytest

from lmdbqueue import Full
from lmdbqueue._base.values import Push
from lmdbqueue._local.queue import local_engine_of
from lmdbqueue._verbs.encoding import digest


def push(queue, item, key=None, **how):
    """Push an item apart; return its number, and whether it was stored."""
    keys = () if key is None else [digest(key)]
    return tuple(local_engine_of(queue).append_apart([queue.dumps(item)], Push(keys=keys, **how))[0])


@pytest.mark.parametrize("delay", [0.0, 1_000.0])
def test_key_of_an_item_that_has_expired_is_free_before_anybody_looks(queue, clocks, delay):
    assert push(queue, "old", "key", expires=5, delay=delay) == (0, True)
    assert push(queue, "refused", "key") == (0, False)
    clocks.go_on(6)
    assert push(queue, "new", "key") == (1, True)
    assert push(queue, "refused", "key") == (1, False)
    assert list(queue) == ["new"]
    assert queue.stats().expired == 1


def test_key_of_an_item_that_expired_under_its_lease_is_its_consumers(queue, clocks):
    push(queue, "old", "key", expires=5)
    lease = queue.lease()
    clocks.go_on(6)
    assert push(queue, "refused", "key") == (0, False)
    lease.ack()
    assert push(queue, "new", "key") == (1, True)


@pytest.mark.parametrize("apart", [False, True])
def test_what_has_expired_makes_room_for_a_push(open_queue, clocks, apart):
    queue = open_queue(maxsize=2)
    push(queue, "old", expires=5)
    queue.push("lasts")
    with pytest.raises(Full):
        queue.push("new")
    clocks.go_on(6)
    if apart:
        push(queue, "new", "key")
    else:
        queue.push("new")
    with pytest.raises(Full):
        queue.push("one too many")
    assert list(queue) == ["lasts", "new"]


@pytest.mark.parametrize("delay", [0.0, 1_000.0])
def test_replacing_an_item_of_a_full_queue_needs_no_room(open_queue, delay):
    queue = open_queue(maxsize=2)
    queue.push("first")
    push(queue, "old", "key", delay=delay)
    with pytest.raises(Full):
        push(queue, "one too many", "other")
    assert push(queue, "new", "key", replace=True) == (2, True)
    assert list(queue) == ["first", "new"]
    queue.lease(2)
    with pytest.raises(Full):  # the one that is leased stays its consumer's
        push(queue, "newer", "key", replace=True)


def test_item_that_was_replaced_under_its_lease_does_not_come_back(queue):
    push(queue, "old", "key")
    lease = queue.lease()
    assert push(queue, "new", "key", replace=True) == (1, True)
    lease.nack()
    assert list(queue) == ["new"]
    assert push(queue, "refused", "key") == (1, False)


@pytest.mark.parametrize("retained", [None, 3, 1])
def test_item_that_is_moved_expires_when_it_would_have(open_queue, clocks, retained):
    first, second = open_queue(name="first"), open_queue(name="second")
    push(first, "short", expires=5)
    first.push("lasts")
    push(first, "long", expires=50)
    if retained is not None:
        second.retain(retained)
    assert first.move(3, to=second) == 3
    assert list(second) == ["short", "lasts", "long"][-(retained or 3) :]
    clocks.go_on(6)
    assert list(second) == ["lasts", "long"][-(retained or 3) :]
    clocks.go_on(50)
    assert list(second) == ["lasts"][: (retained or 3) - 1]
    assert first.check() == []
