"""Named readers: each reads the whole queue at its own pace, and what all have passed goes."""

import os

import pytest
from processes import forked, status_of

import lmdbqueue._host.session
import lmdbqueue._verbs.reader
from lmdbqueue import CorruptQueueError, Empty, Nacked, PersistentQueue

SECOND = 10**9


@pytest.fixture
def queue(open_queue):
    queue = open_queue()
    queue.push(list("abcdef"))
    return queue


@pytest.fixture
def billing(queue):
    return queue.reader("billing")


def test_a_damaged_item_with_a_delay_goes_to_the_dead_letters_of_a_queue_with_readers(queue, billing, clocks):
    queue.push("late", delay=5)

    def damage(txn, tables):
        ((key, value),) = [(key, value) for key, value in txn.cursor(tables.away) if key.startswith(b"queue/delayed/")]
        txn.put(key, value[:-9] + bytes([value[-9] ^ 1]) + value[-8:], db=tables.away)
        return True

    queue._engine.environment.update(queue._engine.ref, damage)
    clocks.go_on(6)
    assert billing.peek(10) == list("abcdef")
    assert [letter.seq for letter in queue.dead] == [6]
    queue.dead.delete()


def test_a_damaged_item_that_is_given_back_behind_all_readers_is_a_dead_letter_and_told_of_as_one(queue, billing):
    def damage(txn, tables):
        key, value = next(iter(txn.cursor(tables.items)))
        txn.put(key, bytes([value[0] ^ 1]) + value[1:], db=tables.items)
        return True

    queue._engine.environment.update(queue._engine.ref, damage)
    _, leased = queue._engine.lease(2, None, lambda entries: (["?"] * len(entries), {}))
    assert billing.delete(9) == 4
    assert queue._engine.nack(leased.token, None, 0.0, "no", None) == Nacked([1], [0], [])
    assert ([letter.seq for letter in queue.dead], billing.peek(9)) == ([0], ["b"])
    queue.dead.delete()


def test_readers_and_retention_survive_a_repair(tmp_path):
    with PersistentQueue("queue", tmp_path, durability="off") as queue:
        queue.push([f"item {n:050}" for n in range(500)])
        billing = queue.reader("billing")
        queue.reader("slow")
        queue.retain(450)
        billing.delete(100)
    path = tmp_path / "queue" / "00000001.mdb"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"item " + b"%050d" % 300)
    data[at + 20] ^= 1
    path.write_bytes(data)
    with PersistentQueue("queue", tmp_path, durability="off") as queue:
        assert len(queue.check(repair=True)) == 2
        assert queue.check() == []
        found = queue.readers()
        assert [(each.name, each.position, each.skipped) for each in found] == [("billing", 150, 50), ("slow", 50, 50)]
        assert len(queue) == 449
        queue.push(["x", "y"])
        assert len(queue) == 450


def test_a_damaged_record_of_readers_stops_readers_and_nobody_else(queue, billing):
    def damage(txn, tables):
        key = b"queue/reader/billing"
        value = txn.get(key, db=tables.meta)
        txn.put(key, bytes([value[0] ^ 1]) + value[1:], db=tables.meta)
        return True

    queue._engine.environment.update(queue._engine.ref, damage)
    for verb in (billing.peek, billing.pop, billing.delete, billing.count, queue.readers):
        with pytest.raises(CorruptQueueError, match="the reader 'billing'"):
            verb()
    assert queue.pop() == "a"
    assert queue.delete() == 1
    queue.clear()
    queue.push("b")
    assert any("reader/billing" in problem for problem in queue.check())
    queue.check(repair=True)
    assert queue.readers() == []
    assert list(queue) == ["b"]


def test_many_readers_cost_bytes_and_no_copies(tmp_path):
    def size(readers):
        with PersistentQueue(f"{readers}", tmp_path, durability="off") as queue:
            for number in range(readers):
                queue.reader(f"reader {number}")
            queue.push([os.urandom(1000)] * 2000)
            return queue._engine.environment.view(queue._engine.ref, lambda txn, tables: tables.generation.used(txn))

    assert size(8) - size(1) <= 2 * 4096


# --- gathering


@pytest.fixture
def rests(monkeypatch):
    found = []
    monkeypatch.setattr(lmdbqueue._verbs.reader.time, "sleep", found.append)
    return found


def test_a_reader_that_moved_amid_the_flush_of_another_lets_items_gather(queue, billing, monkeypatch, rests):
    assert billing.pop(100) == list("abcdef")
    queue.push(["g", "h"])
    assert billing.peek(blocking=True) == "g"
    assert rests == []
    monkeypatch.setattr(queue._engine, "is_crowded", lambda: True)
    assert billing.pop(100) == ["g", "h"]
    queue.push(["i", "j"])
    assert billing.peek(blocking=True) == "i"
    assert [0 < rest <= 0.05 for rest in rests] == [True]
    monkeypatch.setattr(queue._engine, "is_crowded", lambda: False)
    assert billing.pop(100) == ["i", "j"]  # some came, so it goes on
    queue.push("k")
    assert billing.pop(blocking=True) == "k"
    assert len(rests) == 2
    queue.push("l")
    assert billing.pop(blocking=True) == "l"
    assert len(rests) == 2


def test_a_reader_that_is_behind_does_not_rest(queue, billing, monkeypatch, rests):
    monkeypatch.setattr(queue._engine, "is_crowded", lambda: True)
    assert [billing.pop(2, blocking=True), billing.pop(blocking=True)] == [["a", "b"], "c"]
    assert billing.peek(3) == ["d", "e", "f"]
    assert billing.delete(3) == 3
    queue.push("g")
    assert billing.pop(blocking=True) == "g"
    assert rests == []


def test_a_reader_that_gathers_is_in_time(queue, billing, monkeypatch, rests):
    monkeypatch.setattr(queue._engine, "is_crowded", lambda: True)
    assert len(billing.pop(100)) == 6
    with pytest.raises(Empty):
        billing.peek(blocking=True, timeout=0)
    assert rests == []
    with pytest.raises(Empty):
        billing.peek(blocking=True, timeout=1e-6)
    assert rests == [1e-6]


def test_who_commits_amid_the_flush_of_another_knows(queue):
    def write():
        len(queue)  # which opens it in this process
        generation = queue._engine.environment._generation
        generation.commit(generation.begin("writing"))  # and does not come to its flush

    queue.push("g")
    assert not queue._engine.is_crowded()
    assert status_of(forked(write)) == 0
    queue.push("h")
    assert queue._engine.is_crowded()
    queue.push("i")
    assert not queue._engine.is_crowded()
