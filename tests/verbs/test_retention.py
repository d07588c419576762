"""What a queue retains holds whenever somebody looks, on every engine, also without readers: a ring buffer."""

import pytest


def seen(queue):
    """Return what is there, however it is looked at."""
    found = queue.peek_many(99)
    assert (list(queue), len(queue), queue.stats().waiting) == (found, len(found), len(found))
    return found


def test_a_ring_buffer_keeps_the_newest_and_counts_what_went(queue):
    queue.push(list(range(10)))
    queue.retain(3)
    assert (seen(queue), queue.stats().dropped) == ([7, 8, 9], 7)
    queue.push(list(range(20_000)))
    assert (seen(queue), queue.stats().dropped) == ([19_997, 19_998, 19_999], 20_007)
    queue.retain()
    queue.push(["a", "b"])
    assert len(queue) == 5
    assert queue.check() == []


def test_bytes_keep_what_fits_and_one_item_always(engine):
    queue = engine(dumps=bytes, loads=bytes)
    queue.push([b"x" * 1000] * 10_000)
    queue.retain(bytes=100_000)
    assert (len(queue), queue.stats().dropped) == (100, 9_900)
    queue.push([b"y" * 1000] * 25_000)
    assert (len(queue), queue.stats().dropped) == (100, 34_900)
    queue.push(b"z" * 200_000)
    assert len(queue) == 1
    lease = queue.lease(1)
    queue.push(b"a" * 90_000)
    lease.nack()
    assert seen(queue) == [b"a" * 90_000]
    queue.pop()
    queue.push(b"b" * 60_000)
    queue.push(b"c" * 40_000)
    assert len(queue) == 2
    assert queue.check() == []


@pytest.mark.parametrize("how", ["nack", "delay", "requeue", "ttl", "close"])
def test_what_comes_back_cannot_exceed_what_is_retained(engine, later, how):
    queue, other = engine(), engine()
    queue.retain(3)
    queue.push([0, 1, 2])
    lease = other.lease(2, ttl=5)
    queue.push([3, 4])
    assert seen(queue) == [2, 3, 4]
    if how == "nack":
        lease.nack()
    elif how == "delay":
        lease.nack(delay=5)
    elif how == "requeue":
        lease.reject()
        assert queue.dead.requeue() == 2
    elif how == "close":
        other.close()
    later(6)
    assert (seen(queue), queue.stats().dropped) == ([2, 3, 4], 2)
    assert queue.check() == []


def test_nobody_sees_what_is_too_old(engine, later):
    queue, other = engine(), engine("other")
    reader = queue.reader("r")
    queue.retain(seconds=5)
    looks = [
        lambda: queue.peek_many(9),
        lambda: len(queue),
        lambda: list(queue),
        lambda: queue.lease(1),
        lambda: queue.lease(9),
        lambda: queue.pop_many(9),
        lambda: queue.stats().waiting,
        lambda: queue.find("key"),
        lambda: queue.cancel("key"),
        lambda: queue.move(9, to=other),
        lambda: reader.peek_many(9),
        lambda: reader.pop_many(9),
        lambda: len(reader),
        lambda: queue.readers()[0].lag,
    ]
    for look in looks:
        number = queue.push("old", unique="key")
        assert number.is_stored
        later(6)
        assert not look()
    queue.push("older", unique="key")
    later(6)
    assert queue.push("new", unique="key").is_stored
    assert (seen(queue), queue.stats().dropped) == (["new"], len(looks) + 1)
    later(6)
    with queue.transaction():
        assert seen(queue) == []
        queue.push("newer")
        assert seen(queue) == ["newer"]
    assert queue.check() == []
