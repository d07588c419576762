"""Leases: who holds what, for how long, and how it comes back; delays, keys, dead letters."""

import gc
import itertools
import os
import signal
import threading
from contextlib import nullcontext

import pytest
from processes import DEADLINE, KILLED, forked, holder, kill, status_of

from lmdbqueue import (
    CommitUnknownError,
    CorruptItemError,
    DiskFullError,
    LeaseExpiredError,
    PersistentQueue,
    StorageError,
)
from lmdbqueue._base import format as _format
from lmdbqueue._base.format import key_of
from lmdbqueue._host import departures
from lmdbqueue._host import owners as _owners
from lmdbqueue._model import fifo, lease_records, returns
from lmdbqueue._verbs.lease import ack_all
from lmdbqueue._verbs.reading import head_of

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


def owners(place):
    return [name for name in os.listdir(place / "queue") if name.startswith("owner-")]


# --- what a lease holds


def test_a_durable_lease_and_its_ack_are_two_commits(queue):
    def newest():
        return queue._engine.environment._generation._env.info()["last_txnid"]

    before = newest()
    with queue.lease(ttl=50):
        assert newest() == before + 1
    assert newest() == before + 2


# --- how long


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


def test_one_who_is_forgotten_gives_back_at_once(queue, tmp_path):
    other = PersistentQueue("queue", tmp_path)
    lease = other.lease(3)
    assert len(queue) == 3
    del other, lease
    gc.collect()
    assert departures.wait(DEADLINE)
    assert list(queue) == list("abcdef")


def test_after_a_reboot_every_lease_is_over_whatever_its_clock_said(queue, clocks):
    clocks.mono = 10**6 * SECOND
    pid = holder(lambda: queue.lease(2, ttl=1e5))
    kill(pid)
    clocks.mono = 5 * SECOND  # it begins anew
    assert list(queue) == list("abcdef")


# --- delays


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
def test_the_first_items_and_what_came_due_among_them_go_together(open_queue, clocks, take):
    for n in range(1, 6):
        queue, other = open_queue(name=f"queue {n}"), open_queue(name="other")
        queue.push("a")
        queue.push(["x", "y"], delay=1)
        queue.push(["b", "c"])
        clocks.go_on(2)
        assert list(queue) == ["a", "x", "y", "b", "c"]
        take(queue, n, other)
        assert queue.check() == []
        queue.clear()
        assert queue.check() == []


# --- the dead


def test_what_is_damaged_is_dead_and_holds_nobody_up(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    with queue._engine.environment.exclusive() as (generation, txn):
        txn.put(key_of(0), b"rot", db=generation.table(queue._engine.ref).items)
        generation.commit(txn)
    with queue.lease(2) as lease:
        assert list(lease) == ["b"]
    (letter,) = queue.dead
    assert letter.reason == "its checksum does not match"
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


def test_what_cannot_come_back_for_want_of_room_holds_nobody_up(queue, monkeypatch, clocks):
    queue.lease(2, ttl=1)
    clocks.go_on(2)
    update = type(queue._engine.environment).update

    def full(environment, ref, fn, *args, **options):
        if fn is returns.restore:
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
    kill(holder(queue.lease))
    assert list(queue) == ["e", "f"]
    assert len(owners(tmp_path)) == 1
    queue.close()
    assert owners(tmp_path) == []


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


def test_an_ack_that_makes_no_sense_is_told_to_whoever_asked_for_it_only(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    first, second = queue.lease(), queue.lease()
    errors = ack_all(queue._engine, [(first, [5, 7]), (first, ["x"]), (second, None)])
    assert [type(error) for error in errors] == [ValueError, TypeError, type(None)]
    with pytest.raises(ValueError, match="not in this lease"):
        first.ack([5, 7])
    assert list(first) == ["a"]
    assert (queue.stats().leased, queue.stats().removed) == (1, 1)


@pytest.mark.parametrize("lasts", [True, False])
def test_leases_of_several_that_loads_ends_are_not_lost(open_queue, lasts):
    """Nobody could give back those that were made before."""
    failing = []

    def loads(payload):
        if payload == b"c" and failing:
            if not lasts:
                failing.clear()
            raise SystemExit
        return payload

    queue = open_queue(dumps=bytes, loads=loads)
    queue.push([b"a", b"b", b"c"])
    failing.append(1)
    found = queue._engine.lease_each(3, None, head_of(queue).sort_out)
    if lasts:
        assert [items for items, _ in found] == [[b"a"], [b"b"]]
        with pytest.raises(SystemExit):
            queue._engine.lease_each(1, None, head_of(queue).sort_out)
    else:
        assert [items for items, _ in found] == [[b"a"], [b"b"], [b"c"]]
    assert queue.stats().leased == len(found)


def test_leases_of_several_share_a_commit_and_set_aside_what_cannot_be_decoded(open_queue):
    def loads(payload):
        if payload == b"bad":
            raise ValueError(payload)
        return payload

    queue = open_queue(dumps=bytes, loads=loads)
    queue.push([b"a", b"b", b"bad", b"c", b"d", b"e"])
    environment = queue._engine.environment._generation._env
    before = environment.info()["last_txnid"]
    found = queue._engine.lease_each(4, 60.0, head_of(queue).sort_out)
    assert environment.info()["last_txnid"] == before + 2  # the second for one in the place of the bad one
    assert [(items, leased.seqs) for items, leased in found] == [
        ([b"a"], [0]),
        ([b"b"], [1]),
        ([b"c"], [3]),
        ([b"d"], [4]),
    ]
    assert [letter.payload for letter in queue.dead] == [b"bad"]
    found += queue._engine.lease_each(9, 60.0, head_of(queue).sort_out)
    assert len({leased.token for _, leased in found}) == len(found) == 5
    for number, (_, leased) in enumerate(found):
        assert queue._engine.ack(leased.token, None) == leased.seqs
        assert queue.stats().leased == 4 - number
    assert queue.check() == []


@pytest.mark.parametrize("fails_at", [1, 2])
def test_leases_of_several_whose_flush_fails_are_given_back(open_queue, monkeypatch, fails_at):
    queue = open_queue()
    queue.push([b"x" * 3_000_000] * 4)  # of which one transaction leases two
    engine, generation = queue._engine, queue._engine.environment._generation
    sync, flushes = generation._sync, itertools.count(1)

    def failing(transaction):
        if next(flushes) == fails_at:
            raise StorageError(generation.path, "sync", "input/output error")
        sync(transaction)

    monkeypatch.setattr(generation, "_sync", failing)
    found = None
    with pytest.raises(CommitUnknownError) if fails_at == 1 else nullcontext():
        found = engine.lease_each(4, None, head_of(queue).sort_out)
    held = [leased.token for _, leased in found or ()]
    assert (list(engine.claims), queue.stats().leased) == (held, len(held))
    assert [len(queue), len(held)] == ([4, 0] if fails_at == 1 else [3, 1])


def test_the_item_of_one_who_dies_comes_before_the_one_that_was_seen_next(open_queue):
    queue = open_queue()
    queue.push(["a", "b", "c"])
    read, write = os.pipe()

    def child():
        assert queue.lease().items == ["a"]
        os.write(write, b".")
        signal.pause()

    pid = forked(child)
    assert os.read(read, 1)
    assert queue.lease().items == ["b"], "which saw that 'c' is next"
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == KILLED
    assert queue.lease().items == ["a"]
    for each in (read, write):
        os.close(each)


def test_a_queue_that_becomes_an_owner_keeps_no_other_thread_from_leasing(open_queue, monkeypatch, tmp_path):
    queue = open_queue()
    queue.push(["a", "b"])
    leased = []

    def lease_in_a_block():
        with queue.transaction():  # for which a handler amid the other lease would wait
            leased.append(queue.lease())

    def open_after_another_thread(*what, **how):
        monkeypatch.undo()
        other = threading.Thread(target=lease_in_a_block, daemon=True)
        other.start()
        other.join(DEADLINE)
        assert not other.is_alive()
        return open_private(*what, **how)

    open_private = _owners.open_private
    monkeypatch.setattr(_owners, "open_private", open_after_another_thread)
    leased.append(queue.lease())
    assert [each[0] for each in leased] == ["a", "b"]
    assert len(owners(tmp_path)) == 1
    for each in leased:
        each.ack()
