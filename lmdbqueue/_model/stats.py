"""``queue.stats()``: the figures of a queue.

Owns: the source of each figure. Law: all figures belong to one snapshot, and the cost of none depends on the length of
the queue. Must not know: LMDB.
"""

from __future__ import annotations

from lmdbqueue._base import format as _format
from lmdbqueue._base.values import Moment, Stats
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.preallocation import reserve
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, readers, retention


def of_queue(txn: Txn, queue: Tables, now: Moment) -> Stats:
    """Return the figures of a queue, except the processes, which no transaction knows."""
    generation = queue.generation
    assert isinstance(generation, Generation)  # figures are only asked of a live generation
    numbers = fifo.numbers(txn, queue)
    waiting = fifo.count(txn, queue)
    held_back = numbers.leased + numbers.delayed + numbers.dead
    pushed = sum(
        bounds.tail - _format.first_of(bounds.tail)
        for bounds in (fifo.bounds(txn, queue, each) for each in fifo.classes(txn, queue))
    )
    age = _longest_wait(txn, queue, now.wall)
    used, page = generation.used(txn), txn.stat(queue.items)["psize"]
    file_size = generation.size()
    needed = used + reserve(used // page - 1) * page  # the size of a freshly written file
    return Stats(
        waiting=waiting,
        leased=numbers.leased,
        delayed=numbers.delayed,
        dead=numbers.dead,
        pushed=pushed,
        removed=pushed - waiting - held_back,
        head=numbers.head - _format.BASE,
        tail=numbers.tail - _format.BASE,
        oldest_age=None if age is None else round(age / 1e9, 3),
        readers=tuple(readers.stats(txn, queue)),
        bytes_used=used,
        bytes_free=max(0, file_size - needed),
        file_size=file_size,
        generation=generation.number,
        dropped=numbers.dropped,
        expired=numbers.expired,
    )


def _longest_wait(txn: Txn, queue: Tables, now: int) -> int | None:
    """Return the longest waiting time, in ns, of the first items of all classes; None: no item waits."""
    with txn.cursor(queue.items) as cursor:
        found = [
            retention.pushed_at(queue, cursor.value())
            for number in fifo.classes(txn, queue)
            if cursor.set_range(_format.pack(number << 56)) and _format.class_of_key(cursor.key()) == number
        ]
    return max(0, now - min(found)) if found else None
