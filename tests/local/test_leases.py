"""Leases: who holds what, for how long, and how it comes back; delays, keys, dead letters."""

import gc
import os
import signal
import threading
import time

import pytest
from processes import DEADLINE, KILLED, forked, status_of

from lmdbqueue import (
    ClosedError,
    CorruptItemError,
    DecodeError,
    DiskFullError,
    Full,
    LeaseExpiredError,
    PersistentQueue,
    _format,
)
from lmdbqueue._format import key_of
from lmdbqueue._model import fifo, lease_records
from lmdbqueue._model import leases as _away

SECOND = 10**9


@pytest.fixture
def queue(open_queue):
    queue = open_queue()
    queue.push(list("abcdef"))
    yield queue
    if not queue._engine.is_closed:
        assert queue.check() == []


def figures(queue):
    stats = queue.stats()
    assert stats.waiting == len(queue)
    return stats.waiting, stats.leased, stats.delayed, stats.dead


def holder(fn, *args):
    """Run ``fn`` in a child that lives on until it is killed; return its pid once ``fn`` is done."""
    ear, mouth = os.pipe()

    def hold():
        kept = fn(*args)
        os.write(mouth, b".")
        signal.pause()
        del kept

    pid = forked(hold)
    os.close(mouth)
    assert os.read(ear, 1), "it failed"
    os.close(ear)
    return pid


def owners(place):
    return [name for name in os.listdir(place / "queue") if name.startswith("owner-")]


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == KILLED


# --- what a lease holds


def test_a_lease_is_a_sequence_of_the_first_items_which_nobody_else_gets(queue, open_queue):
    lease = queue.lease(3)
    assert (list(lease), lease[0], lease[-1], lease[1:], len(lease)) == (list("abc"), "a", "c", ["b", "c"], 3)
    assert (lease.items, lease.seqs, lease.attempts, lease.deadline) == (list("abc"), [0, 1, 2], [1, 1, 1], None)
    assert bool(lease)
    assert "b" in lease
    other = open_queue()
    assert figures(other) == (3, 3, 0, 0)
    assert other.peek(6) == list(other) == ["d", "e", "f"]
    assert other.pop() == "d"
    assert other.delete(5) == 2
    assert (other.pop(), other.peek(3), list(other.lease())) == (None, [], [])
    other.clear()
    lease.ack()
    assert figures(queue) == (0, 0, 0, 0)
    assert queue.stats().removed == 6


def test_an_empty_lease_is_falsy_and_harmless(open_queue):
    queue = open_queue()
    for lease in (queue.lease(), queue.lease(0)):
        assert not lease
        with lease:
            lease.ack()
            lease.nack()
            lease.extend(5)


def test_some_are_acknowledged_and_some_given_back(queue):
    with queue.lease(5) as lease:
        lease.ack(lease.seqs[1])
        lease.nack([0, 3])
        assert figures(queue) == (3, 2, 0, 0)
        lease.ack([1, 2])
        assert list(queue) == ["a", "d", "f"]
    assert list(queue) == ["a", "d", "f"]
    lease.ack()
    lease.nack()
    assert queue.push("g") == 6


def test_items_that_come_back_come_before_what_never_left_in_their_order(queue):
    first, second, third = queue.lease(2), queue.lease(), queue.lease(2)
    third.nack()
    first.nack(1)
    assert queue.pop(2) == ["b", "d"]
    second.nack()
    first.nack()
    assert list(queue) == ["a", "c", "e", "f"]
    assert queue.stats().head == 5


def test_a_number_that_is_not_of_the_lease_is_refused_and_nothing_happens(queue):
    lease = queue.lease(2)
    for call in (lease.ack, lease.nack):
        with pytest.raises(ValueError, match=r"\[5\] are not in this lease, which is of \[0, 1\]"):
            call([0, 5])
    assert figures(queue) == (4, 2, 0, 0)


@pytest.mark.parametrize("ttl", [0, -1, -0.5])
def test_a_ttl_that_is_none_is_refused(queue, ttl):
    with pytest.raises(ValueError, match="ttl is a positive number of seconds"):
        queue.lease(ttl=ttl)


def test_what_happens_in_a_transaction_is_undone_with_it(queue, open_queue):
    outbox = open_queue(name="outbox")
    with queue.lease(2) as lease:
        with pytest.raises(ZeroDivisionError), queue.transaction():  # noqa: PT012
            outbox.push(lease[0])
            lease.ack()
            assert figures(queue) == (4, 0, 0, 0)
            raise ZeroDivisionError
        assert figures(queue) == (4, 2, 0, 0)
        with queue.transaction():
            outbox.push(lease.items)
            lease.ack(0)
    assert figures(queue) == (4, 0, 0, 0)
    with pytest.raises(ZeroDivisionError), queue.transaction():  # noqa: PT012
        lost = queue.lease(3)
        raise ZeroDivisionError
    assert list(queue) == list("cdef")
    with pytest.raises(LeaseExpiredError):
        lost.ack()
    with queue.transaction(), queue.lease() as lease:
        outbox.push(lease[0])
    assert (list(outbox), list(queue)) == (["a", "b", "c"], list("def"))


def test_a_durable_lease_and_its_ack_are_two_commits(queue):
    def newest():
        return queue._engine.environment._generation._env.info()["last_txnid"]

    before = newest()
    with queue.lease(ttl=50):
        assert newest() == before + 1
    assert newest() == before + 2


# --- how long


def test_a_lease_with_a_ttl_ends_with_it_and_a_late_ack_touches_nothing(queue, open_queue, clocks):
    other = open_queue()
    lease = queue.lease(2, ttl=10)
    assert lease.deadline == clocks.mono / SECOND + 10
    clocks.go_on(9.9)
    assert other.peek() == "c"
    clocks.go_on(0.2)
    again = other.lease(2)
    assert (list(again), again.attempts) == (["a", "b"], [2, 2])
    for late in (lease.ack, lease.nack, lambda: lease.extend(5), lambda: lease.ack(0)):
        with pytest.raises(LeaseExpiredError) as caught:
            late()
        assert caught.value.name == "queue"
    assert caught.value.seqs == [0]
    assert figures(queue) == (4, 2, 0, 0)
    again.ack()


def test_a_block_that_ends_late_says_so_but_not_over_another_exception(queue, clocks):
    with pytest.raises(LeaseExpiredError), queue.lease(ttl=1):  # noqa: PT012
        clocks.go_on(2)
        assert queue.peek() == "a"
    with pytest.raises(ZeroDivisionError), queue.lease(ttl=1):  # noqa: PT012
        clocks.go_on(2)
        assert queue.peek() == "a"
        raise ZeroDivisionError


def test_what_is_extended_holds_longer(queue, clocks):
    lease = queue.lease(ttl=1)
    clocks.go_on(0.5)
    lease.extend(10)
    clocks.go_on(5)
    assert queue.peek() == "b"
    lease.extend(None)
    assert lease.deadline is None
    clocks.go_on(1e6)
    assert queue.peek() == "b"
    lease.extend(1)
    clocks.go_on(2)
    assert queue.peek() == "a"


@pytest.mark.parametrize("step", [-86_400, 86_400])
def test_a_step_of_the_wall_clock_moves_no_lease(queue, clocks, step):
    lease = queue.lease(ttl=10)
    clocks.wall += step * SECOND
    assert queue.peek() == "b"
    clocks.mono += 9 * SECOND
    assert queue.peek() == "b"
    clocks.mono += 2 * SECOND
    assert queue.peek() == "a"
    with pytest.raises(LeaseExpiredError):
        lease.ack()


def test_one_who_closes_gives_back_at_once(queue, open_queue):
    other = open_queue()
    lease = other.lease(3)
    assert len(queue) == 3
    other.close()
    other.close()
    assert list(queue) == list("abcdef")
    with pytest.raises(ClosedError):
        lease.ack()
    with pytest.raises(ZeroDivisionError), open_queue() as other, other.lease():  # noqa: PT012
        other.close()
        raise ZeroDivisionError
    assert list(queue) == list("abcdef")


def test_one_who_is_forgotten_gives_back_at_once(queue, tmp_path):
    other = PersistentQueue("queue", tmp_path)
    lease = other.lease(3)
    assert len(queue) == 3
    del other, lease
    gc.collect()
    assert list(queue) == list("abcdef")


def test_a_killed_consumer_gives_back_at_once(queue, tmp_path):
    pid = holder(lambda: queue.lease(2))
    mine = queue.lease()
    assert (list(mine), figures(queue)) == (["c"], (3, 3, 0, 0))
    kill(pid)
    assert list(queue) == ["a", "b", "d", "e", "f"]
    with queue.lease(3) as lease:
        assert (list(lease), lease.attempts) == (["a", "b", "d"], [2, 2, 1])
        assert len(owners(tmp_path)) == 1
    mine.ack()
    queue.close()
    assert owners(tmp_path) == []


def test_one_who_waits_gets_what_a_killed_consumer_held(open_queue):
    queue = open_queue()
    queue.push("a")
    pid = holder(queue.lease)
    found = []
    thread = threading.Thread(target=lambda: found.append(queue.get(timeout=DEADLINE)))
    thread.start()
    kill(pid)
    thread.join(DEADLINE)
    assert found == ["a"]


def test_after_a_reboot_every_lease_is_over_whatever_its_clock_said(queue, clocks):
    clocks.mono = 10**6 * SECOND
    pid = holder(lambda: queue.lease(2, ttl=1e5))
    kill(pid)
    clocks.mono = 5 * SECOND  # it begins anew
    assert list(queue) == list("abcdef")


# --- forks


def test_a_forked_child_has_no_part_in_its_parents_leases(queue):
    def leave(lease):
        with pytest.raises(LeaseExpiredError):
            lease.ack()
        with pytest.raises(LeaseExpiredError):
            lease.extend(1)
        with pytest.raises(ZeroDivisionError), lease:
            raise ZeroDivisionError
        with lease:
            pass
        with queue.lease() as own:
            assert list(own) == ["c"]

    with queue.lease(2) as lease:
        assert status_of(forked(leave, lease)) == 0
        assert figures(queue) == (3, 2, 0, 0)
    assert list(queue) == ["d", "e", "f"]


def test_a_child_does_not_keep_a_dead_parents_leases(queue):
    ear, mouth = os.pipe()

    def parent():
        lease = queue.lease(2)
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
        assert list(queue) == list("abcdef")
    finally:
        os.kill(child, signal.SIGKILL)


# --- waiting


# --- delays


def test_items_with_a_delay_come_in_the_places_of_their_numbers(queue, open_queue, clocks):
    assert queue.push(["x", "y"], delay=20) == range(6, 8)
    assert queue.push("z", delay=10) == 8
    assert queue.push("g") == 9
    assert figures(queue) == (7, 0, 3, 0)
    assert queue.pop(9) == list("abcdefg")
    queue.push("h")
    queue.close()
    queue = open_queue()
    clocks.go_on(10.1)
    assert (list(queue), figures(queue)) == (["z", "h"], (2, 0, 2, 0))
    clocks.go_on(10)
    assert list(queue) == ["x", "y", "z", "h"]
    with queue.lease(3) as lease:
        assert (list(lease), lease.seqs) == (["x", "y", "z"], [6, 7, 8])
        lease.nack(6)
    assert queue.flush(force=True) >= 0
    assert queue.check() == []
    assert queue.pop(3) == ["x", "h"]
    assert queue.stats().removed == 11


def test_what_is_given_back_with_a_delay_waits_for_it(queue, clocks):
    with queue.lease(3) as lease:
        lease.nack(0, delay=30)
        lease.nack(2, delay=10)
    assert figures(queue) == (3, 0, 2, 0)
    clocks.go_on(11)
    assert list(queue) == ["c", "d", "e", "f"]
    clocks.go_on(20)
    assert list(queue) == ["a", "c", "d", "e", "f"]
    assert queue.lease(2).attempts == [2, 2]


def test_a_delay_that_is_none_is_refused(queue):
    for delay in (-1, float("nan"), float("inf"), 1e11):
        with pytest.raises(ValueError, match="a delay is"):
            queue.push("x", delay=delay)
        with pytest.raises(ValueError, match="a delay is"), queue.lease() as lease:
            lease.nack(delay=delay)
    assert list(queue) == list("abcdef")


def test_one_who_waits_is_woken_when_an_item_comes_due(open_queue):
    queue = open_queue()
    queue.push("x", delay=0.2)
    before = time.monotonic()
    assert queue.get(timeout=DEADLINE) == "x"
    assert time.monotonic() - before >= 0.15


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize(
    "take",
    [
        lambda queue, n, _: queue.pop(n),
        lambda queue, n, _: queue.delete(n),
        lambda queue, n, _: queue.lease(n).ack(),
        lambda queue, n, _: queue.lease(n).nack(),
        lambda queue, n, other: queue.move(n, to=other),
        lambda queue, n, _: (queue.retain(len(queue)), queue.push(["new"] * n)),
    ],
    ids=["pop", "delete", "ack", "nack", "move", "retain"],
)
def test_the_first_items_and_what_came_due_among_them_go_together(open_queue, clocks, take, n):
    queue, other = open_queue(), open_queue(name="other")
    queue.push("a")
    queue.push(["x", "y"], delay=1)
    queue.push(["b", "c"])
    clocks.go_on(2)
    assert list(queue) == ["a", "x", "y", "b", "c"]
    take(queue, n, other)
    assert queue.check() == []
    queue.clear()
    assert queue.check() == []


def test_limits_count_what_waits_and_what_is_leased_or_delayed_and_no_dead_letters(open_queue):
    queue = open_queue(maxsize=4)
    queue.push(["dead", "leased", "waits"])
    with queue.lease() as lease:
        lease.nack()
    lease = queue.lease()
    queue.max_attempts = 1
    lease.nack()
    lease = queue.lease()
    queue.push("delayed", delay=50)
    assert figures(queue) == (1, 1, 1, 1)
    assert not queue.full()
    queue.push("fourth")
    assert queue.full()
    with pytest.raises(Full) as caught:
        queue.push("fifth")
    assert (caught.value.used, caught.value.added) == (4, 1)
    lease.ack()
    queue.push("fifth")


def test_limits_hold_for_items_with_a_delay(open_queue):
    queue = open_queue(maxsize=2)
    queue.push(["a", "b"])
    with pytest.raises(Full):
        queue.push("c", delay=5)
    with pytest.raises(Full):
        queue.push("c", unique="c")
    assert figures(queue) == (2, 0, 0, 0)


# --- keys


def test_an_item_whose_key_is_there_is_not_stored_twice(open_queue, clocks):
    queue = open_queue()
    assert queue.push("a", unique="key") == 0
    assert queue.push("b", unique="key") == 0
    assert queue.push(["c", "d", "e", "f"], unique=["key", b"key", None, b"key"]) == [0, 1, 2, 1]
    assert queue.push([], unique=[]) == []
    assert list(queue) == ["a", "d", "e"]
    lease = queue.lease()
    assert queue.push("b", unique="key") == 0
    lease.nack(delay=5)
    assert queue.push("b", unique="key") == 0
    clocks.go_on(6)
    assert queue.push("b", unique="key") == 0
    queue.lease().ack()
    assert queue.push("g", unique="key") == 3
    assert queue.push("h", unique="later", delay=10) == queue.push("i", unique="later") == 4
    assert queue.check() == []


def test_keys_that_are_none_are_refused(open_queue):
    queue = open_queue()
    for keys in (["a"], "ab", ["a", "b", "c"]):
        with pytest.raises(ValueError, match="needs a list of as many keys"):
            queue.push(["x", "y"], unique=keys)
    with pytest.raises(TypeError, match="a unique key is a str or bytes, not int"):
        queue.push("x", unique=5)
    assert len(queue) == 0


# --- the dead


def test_an_item_that_was_leased_too_often_is_dead(open_queue, clocks):
    queue = open_queue(max_attempts=2)
    queue.push(["bad", "good"])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), queue.lease():
            1 / 0  # noqa: B018
    assert (list(queue), figures(queue), len(queue.dead)) == (["good"], (1, 0, 0, 1), 1)
    (letter,) = queue.dead
    assert (letter.seq, letter.item, letter.attempts) == (0, "bad", 2)
    assert letter.reason == "ZeroDivisionError: division by zero"
    assert letter.time == clocks.wall / SECOND
    assert (queue.dead.requeue(5), queue.dead.requeue([0])) == (0, 1)
    assert list(queue) == ["bad", "good"]
    assert queue.lease().attempts == [1]
    queue.clear(all=True)
    assert figures(queue) == (0, 0, 0, 0)


@pytest.mark.parametrize("checksum", [True, False])
def test_what_cannot_be_decoded_is_dead_and_holds_nobody_up(open_queue, checksum):
    def loads(payload):
        if payload == b"bad":
            raise LookupError(payload)
        return payload.decode()

    queue = open_queue(dumps=str.encode, loads=loads, checksum=checksum)
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


def test_what_is_damaged_is_dead_and_holds_nobody_up(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    with queue._engine.environment.exclusive() as (generation, txn):
        txn.put(key_of(0), b"rot", db=generation.table(queue._engine.ref).items)
        generation.commit(txn)
    with queue.lease(2) as lease:
        assert list(lease) == ["b"]
    (letter,) = queue.dead
    assert letter.reason == "its checksum does not fit"
    with pytest.raises(CorruptItemError):
        letter.item  # noqa: B018


# --- beside the rest


def test_a_flush_keeps_everything(queue, clocks):
    queue.max_attempts = 1
    queue.lease().nack()
    lease = queue.lease(2, ttl=50)
    queue.push(["later", "more"], delay=100, unique=["a", "b"])
    before = figures(queue)
    queue.flush(force=True)
    assert (figures(queue), before) == ((3, 2, 2, 1),) * 2
    lease.ack(1)
    clocks.go_on(101)
    assert list(queue) == ["d", "e", "f", "later", "more"]
    assert [letter.item for letter in queue.dead] == ["a", "c"]


def test_in_a_copy_the_leases_are_over(queue):
    lease = queue.lease(2)
    with queue.copy("twin") as twin:
        assert list(twin) == list("abcdef")
        assert twin.check() == []
    lease.ack()
    assert list(queue) == ["c", "d", "e", "f"]


def test_what_cannot_come_back_for_want_of_room_holds_nobody_up(queue, monkeypatch, clocks):
    queue.lease(2, ttl=1)
    clocks.go_on(2)
    update = type(queue._engine.environment).update

    def full(environment, ref, fn, *args, **options):
        if fn is _away.restore:
            raise DiskFullError("bytes", 1, 1, 1)
        return update(environment, ref, fn, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(queue._engine.environment), "update", full)
        assert (len(queue), queue.pop(2)) == (4, ["c", "d"])
    assert queue.pop(9) == ["a", "b", "e", "f"]


def test_very_many_come_back_in_several_steps(open_queue, clocks):
    queue = open_queue(durability="off")
    queue.push("the first of all")
    queue.delete()
    queue.push(list(range(25_000)))
    for _ in range(5):
        queue.lease(5_000, ttl=10)
    queue.push(list(range(25_000, 50_000)), delay=10)
    clocks.go_on(11)
    assert figures(queue) == (50_000, 0, 0, 0)
    assert queue.pop(50_000) == list(range(50_000))


def test_who_takes_items_lets_a_part_of_very_many_come_due_and_who_counts_all(open_queue, clocks):
    """So the first pop after a long delay does not pay for all of it."""
    queue = open_queue(durability="off")
    queue.push(list(range(5_000)), delay=10)
    clocks.go_on(11)

    def still_delayed():
        engine = queue._engine
        return engine.environment.glance(engine.ref, fifo.numbers).delayed

    assert queue.pop() == 0
    assert still_delayed() == 4_000
    queue.lease(2).ack()
    assert still_delayed() == 3_000
    assert queue.pop(1_500) == list(range(3, 1_503))
    assert still_delayed() == 1_500
    assert len(queue) == 5_000 - 1_503
    assert still_delayed() == 0
    queue.push(list(range(5_000)), delay=10)
    clocks.go_on(11)
    assert queue.peek() == 1_503
    assert still_delayed() == 0


def test_many_leases_are_under_one_owner(queue, tmp_path):
    leases = [queue.lease() for _ in range(4)]
    assert len(owners(tmp_path)) == 1
    for lease in leases:
        lease.ack()
    assert list(queue) == ["e", "f"]


def test_files_of_owners_that_nobody_has_are_swept_when_the_queue_is_opened(open_queue, tmp_path):
    queue = open_queue()
    queue.lease()
    stale = tmp_path / "queue" / "owner-0123456789abcdef"
    queue.push("a")
    lease = queue.lease()
    stale.touch()
    assert status_of(forked(open_queue)) == 0
    assert stale.exists(), "another process is there"
    lease.ack()
    queue.close()
    open_queue()
    assert not stale.exists()


# --- what check finds


DAMAGE = {
    "a count": lambda txn, queue: _change_numbers(txn, queue, leased=0, noted=0),
    "a lease": lambda txn, queue: _delete(txn, queue, b"queue/lease/"),
    "what a lease was given": lambda txn, queue: _delete(txn, queue, b"queue/held/"),
    "an item of a lease": lambda txn, queue: _delete(txn, queue, b"queue/leased/"),
    "an owner": lambda txn, queue: _delete(txn, queue, b"queue/owner/"),
    "a deadline": lambda txn, queue: _delete(txn, queue, b"queue/expiry/"),
    "a note": lambda txn, queue: _delete(txn, queue, b"queue/note/"),
    "a key": lambda txn, queue: _delete(txn, queue, b"queue/unique/"),
    "a letter": lambda txn, queue: _delete(txn, queue, b"queue/dead/"),
    "a delay": lambda txn, queue: _delete(txn, queue, b"queue/delayed/"),
    "rot in a letter": lambda txn, queue: _rot(txn, queue, b"queue/dead/"),
    "rot in a lease": lambda txn, queue: _rot(txn, queue, b"queue/lease/"),
    "rot in what a lease was given": lambda txn, queue: _rot(txn, queue, b"queue/held/"),
    "rot in an item of a lease": lambda txn, queue: _rot(txn, queue, b"queue/leased/"),
    "rot in a delay": lambda txn, queue: _rot(txn, queue, b"queue/delayed/"),
    "rot in a note": lambda txn, queue: _rot(txn, queue, b"queue/note/"),
}

WHOLE = {
    "a count",
    "a lease",
    "what a lease was given",
    "an owner",
    "a deadline",
    "a note",
    "a key",
    "rot in a lease",
    "rot in what a lease was given",
    "rot in a note",
}  # after it


def _delete(txn, queue, prefix):
    with txn.cursor(queue.away) as cursor:
        assert cursor.set_range(prefix)
        assert cursor.key().startswith(prefix)
        cursor.delete()


def _change_numbers(txn, queue, **changes):
    record = txn.get(queue.queue, db=queue.meta)
    changed = _format.numbers(record)._replace(**changes)
    txn.put(queue.queue, _format.with_numbers(record, changed), db=queue.meta)


def _rot(txn, queue, prefix):
    with txn.cursor(queue.away) as cursor:
        assert cursor.set_range(prefix)
        assert cursor.key().startswith(prefix)
        txn.put(cursor.key(), cursor.value()[:-3] + b"rot", db=queue.away)


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_with_leases_is_found_and_repaired(tmp_path, monkeypatch, what):
    if "was given" in what:
        monkeypatch.setattr(lease_records, "_FEW", 0)  # so that it has a record of its own
    with PersistentQueue("queue", tmp_path, max_attempts=2) as queue:
        queue.push([*"abcdef"], unique=[*"abcdef"])
        queue.lease().nack()
        with pytest.raises(ZeroDivisionError), queue.lease():
            1 / 0  # noqa: B018
        queue.lease().nack()
        lease = queue.lease(2, ttl=1e6)
        queue.push("later", delay=1e6, unique="later")
        queue.lease().nack()
        assert queue.check() == []
        assert figures(queue) == (3, 2, 1, 1)
        with queue._engine.environment.exclusive() as (generation, txn):
            DAMAGE[what](txn, generation.table(queue._engine.ref))
            generation.commit(txn)
        assert queue.check() != []
        assert queue.check(repair=True) != []
        assert queue.check() == []
        waiting, leased, delayed, dead = figures(queue)
        assert leased == 0
        assert waiting + delayed + dead in ((7,) if what in WHOLE else (6,))
        with pytest.raises(LeaseExpiredError):
            lease.ack()
        numbers = [letter.seq for letter in queue.dead]
        items = queue.pop(100)
        assert len(items) == waiting
        assert sorted(items) == items
        assert len(numbers) == dead
        queue.push([*"abc"], unique=[*"abc"])
        assert queue.check() == []
