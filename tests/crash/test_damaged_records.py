"""Damage to single records, while a queue is open: errors of ours, an end of every call, and a way on for consumers.

LMDBQUEUE_FUZZ_SECONDS says how long the fuzzer looks, LMDBQUEUE_FUZZ_SEED where it begins.
"""

import contextlib
import os
import pickle
import random
import time

import pytest

import lmdbqueue
from lmdbqueue import CorruptItemError, CorruptQueueError, Full, GoneError, PersistentQueue, QueueError
from lmdbqueue._base.format import BASE, pack
from lmdbqueue._base.values import Push

SECONDS = float(os.environ.get("LMDBQUEUE_FUZZ_SECONDS", "5"))
MORE = 60  # items than a queue has here


def _change(queue, change):
    """Let ``change`` do what it likes to the records of a queue."""
    queue._engine.environment.update(queue._engine.ref, change)


def _altered(record, chance):  # noqa: PLR0911  (a list of damages)
    """Return a record as damage may leave it, None if it is gone."""
    key, value = record
    at = chance.randrange(1 + max(0, len(value) - 1))
    match chance.randrange(8):
        case 0:
            return key, value[:at] + bytes([(value + b"\0")[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
        case 1:
            return key, value[:at]
        case 2:
            return key, b""
        case 3:
            return key, b"\xff" * len(value)
        case 4:
            return None
        case 5:
            at = chance.randrange(len(key))
            return key[:at] + bytes([key[at] ^ 1 << chance.randrange(8)]) + key[at + 1 :], value
        case 6:
            return key[: chance.randrange(1, len(key) + 1)], value
        case _:
            return key + b"zz", value


def _damage(queue, chance):
    """Alter a record; return how it was and how it is."""
    told = []

    def change(txn, tables):
        db = chance.choice([tables.items, tables.meta, tables.away])
        records = list(txn.cursor(db))
        if records:
            record = chance.choice(records)
            altered = _altered(record, chance)
            txn.delete(record[0], db=db)
            if altered is not None:
                txn.put(*altered, db=db)
            told[:] = [record, altered]
        return True

    _change(queue, change)
    return told


def _fill(queue, *, readers):
    """Put something into every kind of record; return the leases that are held."""
    queue.push(list(range(12)))
    if readers:
        queue.reader("a").pop(3)
        queue.reader("b").pop(1)
        queue.retain(8, bytes=10**5, seconds=1000)
        return []
    for how in (
        Push(delay=1e-3, keys=[b"k" * 16], expires=5),
        Push(expires=5.0, headers={"a": "b"}),
        Push(expires=1e-3),
        Push(priority=3),
        Push(priority=-3),
        Push(keys=[b"u" * 16]),
    ):
        queue._engine.append_apart([pickle.dumps(how)], how)
    queue.lease(2).nack()
    leases = [queue.lease(3, ttl=1e-3), queue.lease(2, ttl=100)]
    queue.lease(1).nack(delay=100)
    for _ in range(3):
        queue.lease(1).nack()
    return [*leases, queue.lease(2)]


def _verbs(queue, leases, *, readers):
    found = [
        *(queue.peek, queue.pop, queue.stats, queue.check, queue.dead.requeue, queue.__len__, lambda: list(queue)),
        *(lambda: list(queue.dead), lambda: queue.lease(4), lambda: queue.pop(5), lambda: queue.push(1)),
        *(each.ack for each in leases[1:]),
        *(each.nack for each in leases),
    ]
    if readers:
        a, b = queue.reader("a"), queue.reader("b")
        found += [a.pop, b.pop, a.peek, lambda: a.delete(2), lambda: b.pop(3), a.__len__, queue.readers]
    return found


def _empty(queue):
    """Demand that a consumer comes to the end, unless the record of the queue itself is lost."""
    with contextlib.suppress(GoneError, CorruptQueueError):
        for _ in range(MORE):
            if not queue.delete():
                return
        raise AssertionError("there is no end")


def test_whatever_happens_to_a_record_there_are_our_errors_only_and_an_end(tmp_path, record_property):
    seed = int(os.environ.get("LMDBQUEUE_FUZZ_SEED", "1"))
    end = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < end:
        seed += 1
        rounds += 1
        chance = random.Random(seed)  # noqa: S311
        readers, checksum = chance.random() < 0.4, chance.random() < 0.5
        path = str(tmp_path / str(seed))
        told = []
        try:
            queue = PersistentQueue(path, durability="off", checksum=checksum, max_attempts=3)
            verbs = _verbs(queue, _fill(queue, readers=readers), readers=readers)
            told = _damage(queue, chance)
            chance.shuffle(verbs)
            for verb in verbs[: chance.randrange(len(verbs))]:
                with contextlib.suppress(QueueError, Full):
                    verb()
            _empty(queue)
            with contextlib.suppress(QueueError):
                queue.clear(all=True)
            queue.close()
            with contextlib.suppress(QueueError):
                lmdbqueue.check(path, repair=True)
                assert lmdbqueue.check(path) == []
        except BaseException as error:
            error.add_note(f"LMDBQUEUE_FUZZ_SEED={seed - 1}, {readers=}, {checksum=}, {told}")
            raise
    record_property("damaged records", rounds)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("value", [b"", b"\xff" * 30, b"\xff" * 12])
def test_an_item_without_a_trailer_is_damaged_and_can_be_removed(tmp_path, checksum, value):
    """Its headers would take up to 4 GiB before it."""
    with PersistentQueue("queue", tmp_path, checksum=checksum, durability="off") as queue:
        queue.push([1, 2, 3])
        _change(queue, lambda txn, tables: txn.put(pack(BASE), value, db=tables.items))
        for verb in (queue.pop, lambda: queue.peek(3), lambda: list(queue), lambda: queue.pop(2)):
            with pytest.raises(CorruptItemError):
                verb()
        assert queue.delete() == 1
        assert queue.pop(5) == [2, 3]


@pytest.mark.parametrize("key", [b"\x80", pack(BASE)[:6], pack(BASE + 1) + b"zz", b"\xff" * 12])
def test_an_item_under_a_key_of_another_length_is_damaged_and_can_be_removed(tmp_path, key):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push([1, 2, 3, 4])
        lease = queue.lease(1)
        _change(queue, lambda txn, tables: txn.put(key, b"\0" * 30, db=tables.items))
        with pytest.raises(CorruptItemError):
            list(queue)
        for _ in range(4):
            assert queue.delete() == 1
        assert queue.delete() == 0
        lease.nack()
        assert queue.pop() == 1


def test_a_repair_counts_the_bytes_that_are_retained_anew(tmp_path):
    with PersistentQueue("queue", tmp_path, durability="off") as queue:
        queue.push(["a", "b", "c"])
        queue.retain(bytes=10**5)
        _change(queue, lambda txn, tables: txn.put(pack(BASE + 1), b"damaged", db=tables.items))
    path = str(tmp_path / "queue")
    assert lmdbqueue.check(path, repair=True)
    assert lmdbqueue.check(path) == []
    with PersistentQueue("queue", tmp_path, durability="off") as queue:
        assert queue.pop(5) == ["a", "c"]


def test_dead_letters_are_listed_whatever_their_priority(open_queue):
    queue = open_queue(max_attempts=1)
    for priority in (-128, -3, 0, 127):
        queue._engine.append_apart([pickle.dumps(priority)], Push(priority=priority))
    queue.lease(4).nack()
    assert [letter.item for letter in queue.dead] == [-128, -3, 0, 127]
