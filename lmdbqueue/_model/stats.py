"""``queue.stats()``: how much of everything there is.

Owns: where each figure comes from. Law: all of one snapshot, each at a cost that does not depend on the length
of the queue. Must not know: LMDB.
"""

import os

from lmdbqueue._lmdb.generation import Generation, Tables, Txn
from lmdbqueue._lmdb.preallocation import reserve
from lmdbqueue._model import fifo, item_notes, push_times
from lmdbqueue._model import readers as _readers
from lmdbqueue._values import Moment, Stats


def of_queue(txn: Txn, queue: Tables, now: Moment) -> Stats:
    """Return the figures of a queue, but for the processes, which no transaction knows."""
    generation = queue.generation
    assert isinstance(generation, Generation)  # nobody asks of a file at rest
    head, tail, _ = fifo.bounds(txn, queue)
    waiting = fifo.count(txn, queue)
    away = item_notes.counts(txn, queue)
    age = push_times.longest_wait(txn, queue, now)
    used, page = generation.used(txn), txn.stat(queue.items)["psize"]
    file_size = os.stat(generation.path).st_size
    needed = used + reserve(used // page - 1) * page  # the size of a file that was just written anew
    return Stats(
        waiting=waiting,
        leased=away.leased,
        delayed=away.delayed,
        dead=away.dead,
        pushed=tail,
        removed=tail - waiting - away.leased - away.delayed - away.dead,
        head=head,
        tail=tail,
        oldest_age=None if age is None else round(age / 1e9, 3),
        readers=tuple(_readers.stats(txn, queue)),
        bytes_used=used,
        bytes_free=max(0, file_size - needed),
        file_size=file_size,
        generation=generation.number,
    )
