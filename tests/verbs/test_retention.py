"""What a queue retains holds whenever somebody looks, on every engine, also without readers: a ring buffer."""

import pytest

from lmdbqueue import Full


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


MORE = {  # what an item has beside its payload
    "nothing": {},
    "headers": {"headers": {"traceparent": 40 * "x"}},
    "an expiry": {"expires": 10_000},
    "all": {"headers": {"a": "b"}, "expires": 10_000},
}


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("has_keys", [False, True])
def test_a_limit_of_bytes_counts_payloads_and_nothing_beside_them(engine, more, has_keys):
    queue, other = engine(dumps=bytes, loads=bytes), engine("other", dumps=bytes, loads=bytes)
    queue.retain(bytes=50)
    reader = queue.reader("r")
    for n in range(9):
        queue.push(b"%010d" % n, **MORE[more], **({"unique": str(n)} if has_keys else {}))
        assert len(queue) == min(n + 1, 5)
    other.push(b"moved-here", **MORE[more])
    other.move(1, to=queue)
    assert (len(queue), queue.stats().dropped) == (5, 5)
    for size, n in ((9, 1), (19, 1), (20, 2), (49, 4), (50, 5)):
        assert len(queue.peek_many(9, max_bytes=size)) == len(reader.peek_many(9, max_bytes=size)) == n
        with pytest.raises(KeyboardInterrupt), queue.lease(9, max_bytes=size) as lease:  # noqa: PT012
            assert len(lease) == n
            raise KeyboardInterrupt
    entries, items = queue._head.take(3, 0)
    queue._engine.put_back(entries)
    assert (len(items), len(queue), queue.stats().dropped) == (3, 5, 5)
    assert len(queue.pop_many(9, max_bytes=29)) == 2
    queue.push([b"x" * 10] * 2, **MORE[more])
    assert (len(queue), queue.stats().dropped, queue.check()) == (5, 5, [])
    queue.retain(bytes=39)
    assert (len(queue), queue.stats().dropped, queue.check()) == (3, 7, [])


@pytest.mark.parametrize("more", MORE)
def test_bytes_of_a_batch_with_priorities_are_those_of_payloads(engine, more):
    queue = engine(dumps=bytes, loads=bytes)
    for n in range(5):
        queue.push(b"%010d" % n, priority=-n, **MORE[more])
    assert queue.peek_many(9, max_bytes=39) == [b"%010d" % n for n in (4, 3, 2)]
    assert queue.lease(9, max_bytes=20).items == [b"%010d" % n for n in (4, 3)]
    assert queue.lease(9, max_bytes=1).items == [b"%010d" % 2]


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


@pytest.mark.parametrize("how", ["push", "push many", "a key", "put back", "requeue", "move", "retain", "bytes"])
def test_what_has_expired_takes_the_place_of_nothing_that_is_wanted(engine, later, how):
    expired = "drop" if how in {"push", "a key", "put back", "move"} else "dead"
    codec = {"dumps": lambda number: b"%40d" % number, "loads": int}
    queue, other = engine(expired=expired, **codec), engine("other", **codec)
    limit = {"bytes": 3 * 40 + 15} if how == "bytes" else {"items": 3}
    if how != "retain":
        queue.retain(**limit)
    queue.push(0)
    queue.push(1, unique="k")
    lease = queue.lease(1) if how in {"put back", "requeue"} else None
    queue.push(7, expires=5)
    queue.push(2)  # and 0 leaves, unless it is leased
    other.push(3)
    later(6)
    if how in {"push", "bytes"}:
        queue.push(3)
    elif how == "push many":
        queue.push_many([3])
    elif how == "a key":
        assert not queue.push(4, unique="k").is_stored
        assert queue.push(3, unique="l").is_stored
    elif how == "put back":
        lease.nack()
    elif how == "requeue":
        lease.reject()
        assert queue.dead.requeue(0) == 1
    elif how == "move":
        assert other.move(1, to=queue) == 1
    else:
        queue.retain(**limit)
    expected = [0, 1, 2] if how in {"put back", "requeue", "retain"} else [1, 2, 3]
    assert seen(queue) == expected
    stats = queue.stats()
    assert (stats.dropped, stats.expired, [letter.item for letter in queue.dead]) == (
        int(expected[0]),
        1,
        [7] if expired == "dead" else [],
    )
    assert queue.check() == []


def test_a_ring_buffer_is_never_full_of_what_it_would_drop(engine):
    queue, other = engine(maxsize=5), engine("other")
    queue.retain(3)
    queue.push(list(range(20)))
    for number in range(20, 30):
        queue.put(number, block=False)
    other.push(["a", "b", "c", "d", "e", "f"])
    assert (other.move(6, to=queue), seen(queue)) == (6, ["d", "e", "f"])
    queue.push(["g", "h"], unique=["g", "h"])
    queue.push(["G", "H", "I"], unique=["g", "h", "i"], replace=True)
    assert (seen(queue), queue.stats().dropped) == (["G", "H", "I"], 36)
    queue.lease(2)
    queue.push(list(range(9)))
    assert (seen(queue), queue.stats().leased) == ([6, 7, 8], 2)
    with pytest.raises(Full):
        queue.push("later", delay=5)
    queue.lease(1)
    with pytest.raises(Full) as caught:
        queue.push(9)
    assert (caught.value.limit, caught.value.used, caught.value.added) == (5, 5, 1)
    assert seen(queue) == [7, 8]


@pytest.mark.parametrize("limit", [{"bytes": 100}, {"seconds": 5}, {"bytes": 60, "items": 7, "seconds": 500}])
def test_each_limit_makes_room(engine, later, limit):
    queue = engine(dumps=bytes, loads=bytes, maxsize=6)
    queue.retain(**limit)
    queue.push([b"x" * 20] * 2)
    later(3)
    queue.push([b"y" * 20] * 2)
    if "bytes" in limit:
        queue.push([b"z" * 20] * 100)
        assert (set(seen(queue)), len(queue)) == ({b"z" * 20}, limit["bytes"] // 20)
        queue.push(b"z" * 1000)
        queue.push([b"", b"a"])
        assert seen(queue) == [b"", b"a"]
    else:
        with pytest.raises(Full):
            queue.push([b"z"] * 3)
        later(3)
        queue.push([b"z"] * 3)
        assert seen(queue) == [b"y" * 20] * 2 + [b"z"] * 3
    assert queue.check() == []


def test_a_limit_that_is_tighter_than_what_is_retained_holds(engine):
    queue = engine(maxsize=2)
    queue.retain(3)
    queue.push([0, 1])
    with pytest.raises(Full):
        queue.push(2)
    with pytest.raises(Full):
        queue.push([2, 3, 4, 5])
    with pytest.raises(Full):
        queue.put(2, timeout=0.01)
    assert seen(queue) == [0, 1]
