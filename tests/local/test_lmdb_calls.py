"""What a call asks of LMDB does not grow with what stands beside it. Counted, never timed."""

import os

import pytest
from clocks import Clock
from lmdb_calls import LmdbCalls

from lmdbqueue import PersistentQueue

FEW, MANY = 20, 80


def _retaining(queue, n):
    queue.push([b"x" * 10] * n)
    queue.retain(bytes=10 * n)
    return lambda: queue.push(b"x" * 10)


def _one_of_a_lease(queue, n):
    queue.push(list(range(n)))
    lease = queue.lease(n)
    return lambda: lease.ack([lease.seqs[n // 2]])


def _reader_among_leased(queue, n):
    reader, late = queue.reader("billing"), queue.reader("late")
    queue.push(list(range(3 * n)))
    late.pop(2)
    held = queue.lease(2 * n)
    return lambda: reader.pop() is held


def _length_beside_owners(queue, n):
    queue.push(list(range(n + 1)))
    for _ in range(n):
        _another(queue).lease(1)
    return lambda: len(queue)


def _pop_beside_delayed(queue, n):
    queue.push(list(range(n)), delay=3600)
    queue.push([1, 2, 3])
    return queue.pop


def _move_beside_readers(queue, n):
    queue.push(list(range(10)))
    return [queue.reader(f"reader {number}") for number in range(n)][n // 2].pop


def _pop_beside_readers_that_have_passed(queue, n):
    queue.retain(items=100)
    queue.push(list(range(20)))
    for number in range(n):
        queue.reader(f"reader {number}").pop(10)
    return queue.pop


def _pop_beside_readers_that_have_not_passed(queue, n):
    queue.push(list(range(20)))
    for number in range(n):
        queue.reader(f"reader {number}")
    return queue.pop


def _pop_amid_readers(queue, n):
    queue.push(list(range(n + 20)))
    readers = [queue.reader(f"reader {number}") for number in range(n)]
    for number, reader in enumerate(readers):
        reader.pop(number + 1)
    return queue.pop


def _ack_beside_readers(queue, n):
    lease = _one_of_a_lease(queue, 10)
    for number in range(n):
        queue.reader(f"reader {number}", start="newest")
    return lease


def _move_past_what_was_removed(queue, n):
    queue.push(list(range(n + 10)))
    reader = queue.reader("billing")
    for seq in range(1, n):
        queue.delete_item(seq)
    reader.pop()
    return reader.pop


def _bounded_beside_names(queue, n):
    for number in range(n):
        _another(queue, name=f"queue {number}")
    queue.push([b"x" * 1000] * 1000)
    queue.delete(500)  # so that it is counted how many pages are free
    queue._engine.max_bytes = queue.stats().bytes_used + 300_000
    return lambda: queue.push(b"x")


def _pop_after_many_came_due(queue, n):
    clock = Clock()
    clock.given_to(queue)
    queue.push(list(range(20 * n)), delay=10)
    queue.push([1, 2])
    clock.go_on(20)
    queue.pop()
    return queue.pop


def _another(queue, **options):
    another = PersistentQueue(os.path.basename(queue._engine.path), queue.path, durability="off", **options)
    queue._others.append(another)
    return another


@pytest.mark.parametrize(
    "beside",
    [
        _retaining,
        _one_of_a_lease,
        _reader_among_leased,
        _length_beside_owners,
        _pop_beside_delayed,
        _move_beside_readers,
        _pop_beside_readers_that_have_passed,
        _pop_beside_readers_that_have_not_passed,
        _pop_amid_readers,
        _ack_beside_readers,
        _move_past_what_was_removed,
        _bounded_beside_names,
        _pop_after_many_came_due,
    ],
)
def test_a_call_asks_no_more_of_lmdb_however_much_there_is(open_queue, beside):
    def cost(filename, n):
        queue = open_queue(filename, durability="off")
        queue._others = []
        call = beside(queue, n)
        calls = LmdbCalls(queue)
        call()
        counted = calls.of(call)
        for each in queue._others:
            each.close()
        return counted

    few = cost("few", FEW)
    assert 0 < cost("many", MANY) <= few + 3
