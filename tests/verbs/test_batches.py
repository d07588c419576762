"""Many items at once, on every engine: always a list, by number, by bytes, by time."""

import threading
import time

import pytest
from processes import DEADLINE, Sleeps, eventually

from lmdbqueue import DecodeError, Empty, Full, ShutDown


@pytest.fixture
def of_bytes(engine):
    """Give a queue of bytes, whose payloads are the items."""
    return engine(dumps=bytes, loads=bytes)


def reading(queue, by):
    return queue if by == "queue" else queue.reader("r")


# --- pushing


def test_push_many_takes_any_iterable_as_one_step(engine):
    queue = engine()
    assert queue.push_many(n * n for n in range(3)) == range(3)
    assert queue.push_many([]) == range(0)
    assert queue.push_many([[7]]) == range(3, 4)
    assert queue.push_many({"a": 1}) == range(4, 5)
    assert list(queue) == [0, 1, 4, [7], "a"]


def test_push_many_stores_nothing_if_the_iterable_fails_or_there_is_no_room(engine):
    queue = engine(maxsize=2)

    def failing():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        queue.push_many(failing())
    with pytest.raises(Full):
        queue.push_many([1, 2, 3])
    assert queue.push_many([1, 2]) == range(2)


def test_push_many_with_keys_tells_what_was_stored(engine):
    queue = engine()
    queue.push("a", unique="x")
    numbers = queue.push_many(["b", "c"], unique=["x", None])
    assert numbers == [0, 1]
    if engine.kind == "lmdb":
        assert [each.is_stored for each in numbers] == [False, True]
    assert queue.push("d", unique="y").is_stored


# --- reading and taking


@pytest.mark.parametrize("by", ["queue", "reader"])
def test_peek_many_and_pop_many_give_a_list_for_one_too(queue, by):
    read = reading(queue, by)
    assert (read.peek_many(1), read.pop_many(1), read.peek_many(0), read.pop_many(0)) == ([], [], [], [])
    queue.push(list("abcde"))
    assert (read.peek_many(1), read.peek_many(2), read.pop_many(1)) == (["a"], ["a", "b"], ["a"])
    assert read.pop_many(3) == ["b", "c", "d"]
    assert read.pop_many(3, at_least=1, blocking=True) == ["e"]


@pytest.mark.parametrize("by", ["queue", "reader"])
@pytest.mark.parametrize("verb", ["peek_many", "pop_many"])
def test_at_least_is_how_many_are_waited_for(queue, by, verb):
    read = reading(queue, by)
    queue.push(["a", "b"])
    with pytest.raises(Empty) as caught:
        getattr(read, verb)(5, at_least=3, blocking=True, timeout=0.05)
    assert (caught.value.wanted, len(queue)) == (3, 2)
    sleeps, found = Sleeps(queue), []
    thread = threading.Thread(
        target=lambda: found.extend(getattr(read, verb)(5, at_least=3, blocking=True, timeout=60))
    )
    thread.start()
    eventually(lambda: sleeps.count)
    queue.push("c")
    thread.join(DEADLINE)
    assert found == ["a", "b", "c"]


@pytest.mark.parametrize("by", ["queue", "reader"])
def test_max_bytes_bounds_the_payloads_but_gives_one_item_always(of_bytes, by):
    queue, read = of_bytes, reading(of_bytes, by)
    items = [b"%010d" % number for number in range(60)]
    queue.push(items)
    for size, n in ((1, 1), (10, 1), (11, 1), (19, 1), (20, 2), (29, 2), (30, 3)):
        assert read.peek_many(50, max_bytes=size) == items[:n]
        assert read.pop_many(50, max_bytes=size) == items[:n]
        assert read.pop_many(2, max_bytes=size, blocking=True, at_least=1) == items[n:][: min(n, 2)]
        del items[: n + min(n, 2)]
    assert read.pop_many(50, max_bytes=10**9) == items
    assert queue.check() == []


def test_at_least_with_max_bytes_waits_for_so_many_and_gives_what_fits(of_bytes):
    of_bytes.push([b"x" * 10] * 5)
    assert of_bytes.pop_many(5, at_least=5, max_bytes=20, blocking=True, timeout=60) == [b"x" * 10] * 2
    with pytest.raises(Empty):
        of_bytes.pop_many(5, at_least=5, max_bytes=20, blocking=True, timeout=0)


@pytest.mark.parametrize("verb", ["peek_many", "pop_many"])
def test_what_cannot_be_asked_for_is_refused(queue, verb):
    call = getattr(queue, verb)
    too_few, too_many = {"at_least": 0, "blocking": True}, {"at_least": 4, "blocking": True}
    for wrong in ({"at_least": 2}, too_few, too_many, {"max_bytes": 0}):
        with pytest.raises(ValueError, match=r"at_least|max_bytes"):
            call(3, **wrong)
    with pytest.raises(ValueError, match="'items' must be a number of items, 0 or more"):
        call(-1)
    with pytest.raises(TypeError):
        call(1.5)


# --- leases by size and time


def test_a_lease_is_bounded_by_bytes(of_bytes):
    queue = of_bytes
    queue.push([b"x" * 10] * 5 + [b"y" * 100])
    with queue.lease(10, max_bytes=35) as lease:
        assert lease.seqs == [0, 1, 2]
    assert queue.lease(10, max_bytes=20).seqs == [3, 4]
    assert queue.lease(10, max_bytes=1).seqs == [5]
    assert not queue.lease(10, max_bytes=1)


FULL = {
    "by number": ([b"b", b"c"], {}, [b"a", b"b", b"c"]),
    "by bytes, which are exceeded": ([b"b" * 50], {"max_bytes": 20}, [b"a"]),
    "by bytes, which are reached": ([b"b" * 19], {"max_bytes": 20}, [b"a", b"b" * 19]),
}


@pytest.mark.parametrize("how", FULL)
def test_a_lease_lingers_until_it_is_full(of_bytes, how):
    queue, (more, options, wanted) = of_bytes, FULL[how]
    queue.push(b"a")
    sleeps, leases = Sleeps(queue), []
    thread = threading.Thread(target=lambda: leases.append(queue.lease(3, linger=60, blocking=True, **options)))
    thread.start()
    eventually(lambda: sleeps.count)
    queue.push(more)
    thread.join(DEADLINE)
    assert leases[0].items == wanted


def test_an_item_larger_than_a_batch_is_leased_at_once(of_bytes):
    of_bytes.push(b"a" * 50)
    sleeps = Sleeps(of_bytes)
    assert len(of_bytes.lease(3, max_bytes=20, linger=1, blocking=True)) == 1
    assert sleeps.count == 0


def test_a_lease_lingers_no_longer_than_it_was_told_and_not_for_nothing(queue):
    begin = time.monotonic()
    assert not queue.lease(3, linger=60)
    with pytest.raises(Empty):
        queue.lease(3, linger=60, blocking=True, timeout=0.05)
    assert time.monotonic() - begin < 30
    queue.push(["a", "b"])
    begin = time.monotonic()
    with queue.lease(3, linger=0.1) as lease:
        assert lease.items == ["a", "b"]
    assert time.monotonic() - begin >= 0.1
    queue.push(["a", "b", "c"])
    assert len(queue.lease(3, linger=60, blocking=True)) == 3


def test_shutdown_ends_the_lingering(queue):
    queue.push("a")
    sleeps, leases = Sleeps(queue), []
    thread = threading.Thread(target=lambda: leases.append(queue.lease(3, linger=60, blocking=True)))
    thread.start()
    eventually(lambda: sleeps.count)
    queue.shutdown()
    thread.join(DEADLINE)
    assert leases[0].items == ["a"]
    leases[0].ack()
    with pytest.raises(ShutDown):
        queue.lease(3, linger=60, blocking=True)


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, *({"linger": each} for each in (-1, float("inf"), float("nan")))])
def test_bounds_of_a_lease_that_are_none_are_refused(queue, wrong):
    with pytest.raises(ValueError, match=r"max_bytes|linger"):
        queue.lease(3, **wrong)


# --- what cannot be decoded


class Bad(Exception):
    """What ``loads`` raises."""


def picky(payload):
    if payload.startswith(b"bad"):
        raise Bad(payload)
    return payload


@pytest.fixture
def poisoned(engine):
    """Give a queue whose third item cannot be decoded."""
    queue = engine(dumps=bytes, loads=picky)
    queue.push([b"a", b"b", b"bad", b"d"])
    return queue


@pytest.mark.parametrize("by", ["queue", "reader"])
@pytest.mark.parametrize("verb", ["pop", "pop_many"])
def test_what_stands_before_an_item_that_cannot_be_decoded_is_returned(poisoned, by, verb):
    read = reading(poisoned, by)
    assert read.peek(4) == read.peek_many(4) == [b"a", b"b"]
    assert getattr(read, verb)(4) == [b"a", b"b"]
    for call in (read.peek, read.pop, lambda: read.pop(2), lambda: read.peek_many(2)):
        with pytest.raises(DecodeError, match=r"delete_item\(2\)") as caught:
            call()
        assert (caught.value.seq, caught.value.payload) == (2, b"bad")
    assert read.count() == 2
    assert poisoned.delete_item(2)
    assert read.pop(4) == [b"d"]
    assert poisoned.check() == []


def test_waiting_for_items_of_which_one_cannot_be_decoded_gives_those_before_it(poisoned):
    assert poisoned.pop(4, blocking=True, timeout=5) == [b"a", b"b"]


def test_an_item_is_removed_by_its_number_wherever_it_waits(queue, later):
    queue.push(list("abcde"))
    reader = queue.reader("r")
    queue.push("late", delay=5)
    with queue.lease(1):
        assert not queue.delete_item(0)  # leased
        assert (queue.delete_item(2), queue.delete_item(2), queue.delete_item(99), queue.delete_item(-1)) == (
            *(True, False, False, False),
        )
        assert not queue.delete_item(5)  # delayed
        assert queue.delete_item(1)
    assert list(queue) == ["d", "e"]
    assert reader.skipped == 3
    assert (queue.stats().waiting, queue.stats().removed) == (2, 3)
    later(6)
    assert len(queue) == 3
    for wrong, error in (("1", TypeError), (1.5, TypeError), (1 << 80, ValueError)):
        with pytest.raises(error):
            queue.delete_item(wrong)
    assert queue.check() == []


def test_a_key_is_free_when_its_item_is_removed_by_its_number(queue):
    seq = queue.push("a", unique="k")
    assert queue.delete_item(seq)
    assert queue.push("b", unique="k") == 1
    assert queue.dead_letter(1)
    assert queue.push("c", unique="k") == 2


def test_an_item_is_set_aside_by_its_number(poisoned):
    with pytest.raises(TypeError):
        poisoned.dead_letter(2, 5)
    assert poisoned.dead_letter(2, "no use")
    assert not poisoned.dead_letter(2)
    assert list(poisoned) == [b"a", b"b", b"d"]
    (letter,) = poisoned.dead
    assert (letter.seq, letter.payload, letter.reason, letter.attempts) == (2, b"bad", "no use", 0)
    assert (poisoned.stats().waiting, poisoned.stats().dead) == (3, 1)
    assert poisoned.dead.requeue() == 1
    assert poisoned.peek_many(9) == [b"a", b"b"]
    assert poisoned.check() == []


def test_what_is_removed_by_its_number_in_a_block_comes_back_with_it(poisoned):
    def fail():
        with poisoned.transaction():
            assert poisoned.delete_item(2)
            assert poisoned.dead_letter(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (poisoned.count(), len(poisoned.dead)) == (4, 0)


def test_browsing_goes_on_past_what_cannot_be_decoded(poisoned):
    assert list(poisoned.browse(on_error="skip")) == [b"a", b"b", b"d"]
    errors = []
    assert list(poisoned.browse(on_error=errors.append)) == [b"a", b"b", b"d"]
    assert [error.seq for error in errors] == [2]
    with pytest.raises(DecodeError):
        list(poisoned.browse())

    def fail(error):
        raise KeyError(error.seq)

    with pytest.raises(KeyError):
        list(poisoned.browse(on_error=fail))
    with pytest.raises(ValueError, match="on_error"):
        poisoned.browse(on_error="ignore")
    assert poisoned.count() == 4


def test_a_queue_is_drained_past_anything(poisoned):
    drained = []
    while poisoned.count():
        try:
            drained += poisoned.pop_many(10)
        except DecodeError as error:
            poisoned.dead_letter(error.seq, error.reason)
    assert drained == [b"a", b"b", b"d"]
    assert len(poisoned.dead) == 1


# --- by key


def test_an_item_is_found_and_cancelled_by_its_key(queue, later):
    assert (queue.find("k"), queue.cancel("k")) == (None, False)
    queue.push("a")
    queue.push("b", unique="k")
    queue.push("later", delay=100, unique="l")
    assert (queue.find("k"), queue.find("l"), queue.find(b"k")) == (1, 2, None)
    assert (queue.cancel("k"), queue.cancel("k"), queue.cancel("l")) == (True, False, True)
    assert (queue.find("k"), queue.find("l"), list(queue), queue.stats().delayed) == (None, None, ["a"], 0)
    queue.clear()
    queue.push("c", unique="k")
    lease = queue.lease()
    assert (queue.find("k"), queue.cancel("k")) == (3, False)
    lease.nack()
    assert queue.cancel("k")
    later(200)
    assert queue.count() == 0
    with pytest.raises(TypeError):
        queue.find(5)
    assert queue.check() == []
