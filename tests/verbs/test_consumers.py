"""Consumers that can die, on every engine: leases, delays, keys, dead letters, the loop of a worker."""

import copy
import gc
import math
import os
import pickle
import signal
import threading
import time
from functools import partial

import pytest
from processes import DEADLINE, Sleeps, eventually, forked, holder, kill, status_of

from lmdbqueue import ClosedError, DecodeError, Empty, LeaseExpiredError, Retry, ShutDown, Worked


@pytest.fixture
def full(queue):
    """Give a queue with six items."""
    queue.push(list("abcdef"))
    return queue


def figures(queue):
    stats = queue.stats()
    assert stats.waiting == len(queue)
    return stats.waiting, stats.leased, stats.delayed, stats.dead


# --- what a lease holds


@pytest.mark.parametrize("pass_on", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_lease_that_is_passed_to_another_process_says_what_to_pass_on_instead(full, pass_on):
    with full.lease(2) as lease, pytest.raises(TypeError, match=r"items \[0, 1\] .* pass on its items, list\(lease\)"):
        pass_on(lease)


def test_a_lease_is_a_sequence_of_the_first_items_which_nobody_else_gets(full, engine):
    lease = full.lease(3)
    assert (list(lease), lease[-1], lease[1:], len(lease)) == (list("abc"), "c", ["b", "c"], 3)
    assert (lease.items, lease.seqs, lease.attempts, lease.deadline) == (list("abc"), [0, 1, 2], [1, 1, 1], None)
    assert "b" in lease
    other = engine()
    assert figures(other) == (3, 3, 0, 0)
    assert other.peek(6) == list(other) == ["d", "e", "f"]
    assert other.pop() == "d"
    assert other.delete(5) == 2
    assert (other.pop(), other.peek(3), list(other.lease())) == (None, [], [])
    other.clear()
    lease.ack()
    assert figures(full) == (0, 0, 0, 0)
    assert full.stats().removed == 6


def test_an_interrupt_while_items_are_decoded_leaves_nothing_leased(engine):
    interrupts = [KeyboardInterrupt()]

    def loads(payload):
        while interrupts:
            raise interrupts.pop()
        return payload

    queue = engine(dumps=bytes, loads=loads)
    queue.push(b"a")
    with pytest.raises(KeyboardInterrupt):
        queue.lease()
    assert queue.lease().items == [b"a"]


def test_an_empty_lease_is_falsy_and_harmless(queue):
    for lease in (queue.lease(), queue.lease(0)):
        assert not lease
        with lease:
            lease.ack()
            lease.nack()
            lease.extend(5)


def test_a_ttl_that_is_none_is_refused(full):
    with full.lease() as lease:
        for ttl in (math.inf, -math.inf, math.nan, 0, -0.5, 1e300):
            for call in (full.lease, lease.extend, partial(full.work, print)):
                with pytest.raises(ValueError, match="'ttl' must be a positive number of seconds"):
                    call(ttl=ttl)
    assert full.stats().leased == 0


def test_the_end_of_the_block_acknowledges_and_an_exception_gives_back_to_the_places(full):
    with full.lease(2) as lease:
        assert list(lease) == ["a", "b"]
    assert list(full) == ["c", "d", "e", "f"]
    full.push("g")
    with pytest.raises(KeyboardInterrupt), full.lease(2):  # noqa: PT012
        full.push("h")
        raise KeyboardInterrupt
    assert list(full) == list("cdefgh")
    assert full.lease(3).attempts == [2, 2, 1]


def test_some_are_acknowledged_and_some_given_back_in_their_order(full):
    with full.lease(5) as lease:
        lease.ack(lease.seqs[1])
        lease.nack([0, 3])
        assert figures(full) == (3, 2, 0, 0)
        lease.ack([1, 2])
        assert list(full) == ["a", "d", "f"]
        for call in (lease.ack, lease.nack):
            with pytest.raises(ValueError, match=r"\[7\] are not in this lease"):
                call([0, 7])
    assert list(full) == ["a", "d", "f"]
    lease.ack()
    lease.nack()
    assert full.push("g") == 6


def test_items_of_several_leases_come_back_to_their_places(full):
    first, second, third = full.lease(2), full.lease(), full.lease(2)
    third.nack()
    first.nack(1)
    assert full.pop(2) == ["b", "d"]
    second.nack()
    first.nack()
    assert list(full) == ["a", "c", "e", "f"]


def test_a_lease_with_a_ttl_ends_with_it_and_a_late_ack_touches_nothing(full, engine, later):
    other = engine()
    lease = full.lease(2, ttl=100)
    later(60)
    assert other.peek() == "c"
    later(41)
    again = other.lease(2)
    assert (list(again), again.attempts) == (["a", "b"], [2, 2])
    for late in (lease.ack, lease.nack, lambda: lease.extend(5), lambda: lease.ack(0)):
        with pytest.raises(LeaseExpiredError) as caught:
            late()
        assert caught.value.name == "queue"
    assert caught.value.seqs == [0]
    assert figures(full) == (4, 2, 0, 0)
    again.ack()


def test_an_ack_after_the_ttl_counts_if_nobody_has_looked_since(full, later):
    lease = full.lease(2, ttl=1)
    later(2)
    lease.ack()
    assert next(iter(full)) == "c"


def test_a_block_that_ends_late_says_so_but_not_over_another_exception(full, later):
    for error in (LeaseExpiredError, ZeroDivisionError):
        with pytest.raises(error), full.lease(ttl=1):  # noqa: PT012
            later(2)
            assert full.peek() == "a"
            if error is ZeroDivisionError:
                raise error


def test_what_is_extended_holds_longer(full, later):
    lease = full.lease(ttl=100)
    lease.extend(1_000)
    later(500)
    assert full.peek() == "b"
    lease.extend(None)
    assert lease.deadline is None
    later(1e6)
    assert full.peek() == "b"
    lease.extend(100)
    later(101)
    assert full.peek() == "a"


def test_a_deadline_is_on_the_monotonic_clock(engine):
    queue = engine()
    queue.push("a")
    before = time.monotonic()
    assert before + 49 < queue.lease(ttl=50).deadline < time.monotonic() + 50


def test_one_who_closes_gives_back_at_once(full, engine):
    other = engine()
    lease = other.lease(3)
    assert len(full) == 3
    other.close()
    other.close()
    assert list(full) == list("abcdef")
    with pytest.raises(ClosedError):
        lease.ack()
    with pytest.raises(ZeroDivisionError), engine() as other, other.lease():  # noqa: PT012
        other.close()
        raise ZeroDivisionError
    assert list(full) == list("abcdef")


def test_one_who_is_killed_gives_back_and_a_waiter_gets_it(full):
    pid = holder(lambda: full.lease(2))
    mine = full.lease()
    assert (list(mine), figures(full)) == (["c"], (3, 3, 0, 0))
    full.delete(3)
    found = []
    thread = threading.Thread(target=lambda: found.append(full.get(timeout=DEADLINE)))
    thread.start()
    kill(pid)
    thread.join(DEADLINE)
    assert found == ["a"]
    with full.lease(3) as lease:
        assert (list(lease), lease.attempts) == (["b"], [2])
    mine.ack()
    assert figures(full) == (0, 0, 0, 0)


def test_a_stopped_consumer_keeps_what_it_has_until_its_ttl_is_over(full):
    ear, mouth = os.pipe()

    def consume():
        lease = full.lease(1, ttl=1.0)
        kept = full.lease(1)
        os.write(mouth, b".")
        os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(LeaseExpiredError):
            lease.ack()
        kept.ack()

    pid = forked(consume)
    os.close(mouth)
    assert os.read(ear, 1)
    os.close(ear)
    os.waitpid(pid, os.WUNTRACED)
    eventually(lambda: len(full) == 5)
    assert list(full) == ["a", "c", "d", "e", "f"]
    os.kill(pid, signal.SIGCONT)
    assert status_of(pid) == 0
    assert figures(full) == (5, 0, 0, 0)


def test_a_forked_child_has_no_part_in_its_parents_leases_and_does_not_end_them(full):
    def leave(lease):
        for call in (lease.ack, lambda: lease.extend(1)):
            with pytest.raises(LeaseExpiredError):
                call()
        with pytest.raises(ZeroDivisionError), lease:
            raise ZeroDivisionError
        with lease:
            pass
        with full.lease() as own:
            assert list(own) == ["c"]
        full.push("of the child")

    with full.lease(2) as lease:
        assert status_of(forked(leave, lease)) == 0
        gc.collect()
        assert figures(full) == (4, 2, 0, 0)
    assert list(full) == ["d", "e", "f", "of the child"]


def test_a_child_does_not_keep_a_dead_parents_leases(full):
    ear, mouth = os.pipe()

    def parent():
        lease = full.lease(2)
        child = forked(signal.pause)
        os.write(mouth, b"%d" % child)
        signal.pause()
        del lease

    pid = forked(parent)
    child = int(os.read(ear, 20))
    os.close(ear)
    os.close(mouth)
    kill(pid)
    try:
        eventually(lambda: list(full) == list("abcdef"))
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lease_waits_for_one_item(queue):
    with pytest.raises(Empty):
        queue.lease(5, blocking=True, timeout=0.01)
    leases = []
    thread = threading.Thread(target=lambda: leases.append(queue.lease(5, blocking=True, timeout=DEADLINE)))
    thread.start()
    queue.push(["a", "b"])
    thread.join(DEADLINE)
    assert [list(lease) for lease in leases] == [["a", "b"]]
    queue.shutdown()
    with pytest.raises(ShutDown):
        queue.lease(blocking=True)


def test_one_who_waits_gets_what_was_given_back_or_whose_ttl_is_over(queue):
    queue.push("f")
    for end in (lambda lease: lease.nack(), lambda _: None, lambda lease: lease.nack(delay=0.1)):
        lease = queue.lease(ttl=1.0)
        thread = threading.Thread(target=queue.peek, kwargs={"blocking": True, "timeout": DEADLINE})
        thread.start()
        end(lease)
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert queue.peek() == "f"


def test_clear_leaves_what_does_not_wait_unless_it_is_told(full):
    lease = full.lease(2)
    full.push("later", delay=100)
    full.clear()
    assert figures(full) == (0, 2, 1, 0)
    full.clear(all=True)
    assert figures(full) == (0, 0, 0, 0)
    with pytest.raises(LeaseExpiredError):
        lease.ack()
    assert full.push("next") == 7


# --- delays


def test_items_with_a_delay_come_when_they_are_due_in_the_places_of_their_push(full, engine, later):
    assert full.push(["x", "y"], delay=200) == range(6, 8)
    assert full.push("z", delay=100) == 8
    assert full.push("g") == 9
    assert figures(full) == (7, 0, 3, 0)
    assert full.pop(7) == list("abcdefg")
    full.push("h")
    full.close()
    queue = engine()
    later(101)
    assert (list(queue), figures(queue)) == (["z", "h"], (2, 0, 2, 0))
    later(100)
    assert list(queue) == ["x", "y", "z", "h"]
    with queue.lease(3) as lease:
        assert (list(lease), lease.seqs) == (["x", "y", "z"], [6, 7, 8])
        lease.nack(6)
    assert queue.flush(force=True) >= 0
    assert queue.pop(3) == ["x", "h"]
    assert queue.stats().removed == 11


def test_one_who_waits_is_woken_when_an_item_comes_due(queue):
    before = time.monotonic()
    queue.push("x", delay=0.3)
    assert queue.get(timeout=DEADLINE) == "x"
    assert 0.25 <= time.monotonic() - before < 5


def test_what_is_given_back_with_a_delay_waits_for_it_and_has_its_place_again(full, later):
    with full.lease(3) as lease:
        for delay in (-1, float("nan"), float("inf"), 1e11):
            with pytest.raises(ValueError, match="'delay' must be a non-negative number of seconds"):
                lease.nack(delay=delay)
        lease.nack(0, delay=300)
        lease.nack(2, delay=100)
    assert figures(full) == (3, 0, 2, 0)
    later(101)
    assert list(full) == ["c", "d", "e", "f"]
    later(200)
    assert list(full) == ["a", "c", "d", "e", "f"]
    assert full.lease(2).attempts == [2, 2]


# --- keys


def test_an_item_whose_key_is_there_is_not_stored_twice(queue, later):
    assert queue.push("a", unique="key") == 0
    assert queue.push("b", unique="key") == 0
    assert queue.push(["c", "d", "e", "f"], unique=["key", b"key", None, b"key"]) == [0, 1, 2, 1]
    assert queue.push([], unique=[]) == []
    assert list(queue) == ["a", "d", "e"]
    lease = queue.lease()
    assert queue.push("b", unique="key") == 0
    lease.nack(delay=50)
    assert queue.push("b", unique="key") == 0
    later(60)
    assert queue.push("b", unique="key") == 0
    queue.lease().ack()
    assert queue.push("g", unique="key") == 3
    assert queue.push("h", unique="later", delay=10) == queue.push("i", unique="later") == 4
    for keys in (["a"], "ab", ["a", "b", "c"]):
        with pytest.raises((ValueError, TypeError), match="'unique' must be a list of 2 keys"):
            queue.push(["x", "y"], unique=keys)
    assert len(queue) == 3


@pytest.mark.parametrize("remove", ["pop", "delete", "clear", "get", "move", "die"])
def test_a_key_is_free_when_its_item_has_left(engine, remove):
    queue, other = engine(max_attempts=1), engine("other")
    queue.push(["a", "b"], unique=["a", "b"])
    {
        "pop": lambda: queue.pop(2),
        "delete": lambda: queue.delete(2),
        "clear": queue.clear,
        "get": lambda: (queue.get(), queue.get()),
        "move": lambda: queue.move(2, to=other),
        "die": lambda: queue.lease(2).nack(),
    }[remove]()
    assert queue.push(["a", "b"], unique=["a", "b"]) == [2, 3]


def test_pushes_of_many_threads_with_one_key_store_one_item(engine):
    queue = engine()
    numbers = []

    def push():
        numbers.extend(queue.push("x", unique="key") for _ in range(10))

    threads = [threading.Thread(target=push) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert (set(numbers), len(numbers), list(queue)) == ({0}, 60, ["x"])


# --- the dead


def test_an_item_that_was_leased_too_often_is_dead(engine):
    queue = engine(max_attempts=2)
    queue.push(["bad", "good"])
    before = time.time()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), queue.lease():
            1 / 0  # noqa: B018
    assert (list(queue), figures(queue), len(queue.dead)) == (["good"], (1, 0, 0, 1), 1)
    (letter,) = queue.dead
    assert (letter.seq, letter.item, letter.attempts) == (0, "bad", 2)
    assert letter.reason == "ZeroDivisionError: division by zero"
    assert before - 1 <= letter.time <= time.time() + 1
    assert (queue.dead.requeue(5), queue.dead.requeue([0])) == (0, 1)
    assert list(queue) == ["bad", "good"]
    assert queue.lease().attempts == [1]
    queue.clear(all=True)
    assert figures(queue) == (0, 0, 0, 0)


def test_the_dead_are_listed_in_the_order_of_their_numbers_and_removed(engine):
    queue = engine(max_attempts=1)
    queue.push(["x" * 100_000] * 8)
    lease = queue.lease(8)
    for seq in (5, 3, 7, 1):
        lease.nack(seq, reason=f"no {seq}")
    lease.ack()
    assert [(letter.seq, letter.reason) for letter in queue.dead] == [(n, f"no {n}") for n in (1, 3, 5, 7)]
    assert queue.dead.delete([3, 4]) == 1
    assert queue.dead.requeue(5) == 1
    assert queue.lease().seqs == [5]
    assert queue.dead.delete() == 2
    assert list(queue.dead) == []


def test_what_is_rejected_is_dead_at_once_and_the_rest_of_the_lease_holds(engine):
    queue = engine(max_attempts=9)
    queue.push(list(range(4)))
    with queue.lease(4) as lease:
        lease.reject(1, reason="no use")
        lease.reject([2])
    assert [(letter.item, letter.attempts, letter.reason) for letter in queue.dead] == [
        (1, 1, "no use"),
        (2, 1, "it was rejected"),
    ]
    assert figures(queue) == (0, 0, 0, 2)
    lease.reject(0)  # it was acknowledged
    with pytest.raises(ValueError, match="not in this lease"):
        lease.reject(9)
    assert queue.dead.requeue() == 2
    assert list(queue) == [1, 2]


def test_one_that_kills_its_consumers_is_dead_in_the_end(engine):
    queue = engine(max_attempts=3)
    queue.push(["poison", "good"])
    for _ in range(3):
        kill(holder(queue.lease))
        eventually(lambda: queue.stats().leased == 0)
    assert list(queue) == ["good"]
    (letter,) = queue.dead
    assert (letter.item, letter.attempts, letter.reason) == ("poison", 3, "its consumer died")


def test_what_cannot_be_decoded_is_dead_and_holds_nobody_up(engine):
    def loads(payload):
        if payload == b"bad":
            raise LookupError(payload)
        return payload.decode()

    queue = engine(dumps=str.encode, loads=loads)
    queue.push(["bad", "a", "bad", "b"])
    with queue.lease(3) as lease:
        assert (list(lease), lease.seqs) == (["a"], [1])
    with queue.lease(5) as lease:
        assert list(lease) == ["b"]
    assert [(letter.seq, letter.payload, letter.attempts) for letter in queue.dead] == [(0, b"bad", 1), (2, b"bad", 1)]
    letter = next(iter(queue.dead))
    assert letter.reason == "it cannot be decoded: LookupError: b'bad'"
    with pytest.raises(DecodeError):
        letter.item  # noqa: B018
    queue.push("bad")
    assert not queue.lease()
    assert queue.dead.requeue() == 3
    assert queue.delete(3) == 3


# --- the loop of a worker


def test_a_worker_does_every_item_retries_and_buries(queue):
    queue.push(["bad", "good", "better"])
    tried, seen, times = [], [], []

    def handle(item):
        tried.append(item)
        if item == "bad":
            times.append(time.monotonic())
            raise LookupError(item)

    def enough():
        return bool(seen) and seen[-1].done + seen[-1].dead == 3

    retry = Retry(max_attempts=2, base=0.05, jitter=0)
    assert queue.work(handle, retry=retry, stop=enough, progress=seen.append) == Worked(2, 1, 1)
    assert sorted(tried) == ["bad", "bad", "better", "good"]
    assert times[1] - times[0] >= 0.05
    assert [worked.done + worked.retried + worked.dead for worked in seen] == [1, 2, 3, 4]
    (letter,) = queue.dead
    assert (letter.item, letter.attempts, letter.reason) == ("bad", 2, "LookupError: bad")


def test_a_lease_is_kept_alive_while_its_handler_runs(queue, engine):
    other = engine()
    queue.push("a")
    seen = []

    def handle(_item):
        ends = time.monotonic() + 1.6
        while time.monotonic() < ends:
            assert not other.lease()
            time.sleep(0.01)

    assert queue.work(handle, ttl=1.0, stop=lambda: bool(seen), progress=seen.append).done == 1
    assert len(queue) == 0


def test_a_signal_ends_the_wait_of_a_worker(queue):
    sleeps = Sleeps(queue)

    def work():
        queue.push("a")
        queue.work(lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert len(queue) == 0

    assert status_of(forked(work)) == 0
    timer = threading.Thread(target=lambda: (eventually(lambda: sleeps.count), os.kill(os.getpid(), signal.SIGTERM)))
    timer.start()
    assert queue.work(print) == Worked()
    timer.join(DEADLINE)


def test_four_workers_that_are_killed_again_and_again_do_each_item_at_least_once(queue, engine, record_property):
    items, kills = 300, 12
    done = engine("done")
    queue.push(list(range(items)))

    def work():
        with_mine = engine("done")
        queue.work(lambda item: with_mine.push((item, os.getpid())), ttl=30)

    pids = [forked(work) for _ in range(4)]
    for n in range(kills):
        wanted = len(done) + n % 5
        eventually(lambda wanted=wanted: len(done) >= wanted or len(done) >= items)
        kill(pids.pop(0))
        pids.append(forked(work))
    eventually(lambda: queue.stats().removed == items)
    numbers = [number for number, _ in done]
    assert set(numbers) == set(range(items))
    assert len(numbers) <= items + kills
    while not set(pids) <= {pid for _, pid in done}:  # one may not have come as far as its handler of signals
        queue.push("more")
        eventually(lambda: len(queue) == 0)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        assert status_of(pid) == 0
    record_property("kills", kills)
