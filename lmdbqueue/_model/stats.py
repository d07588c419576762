"""``queue.stats()``: how much of everything there is.

Owns: the figures and their names. Law: all of one snapshot, each at a cost that does not depend on the length
of the queue. Must not know: LMDB.
"""

import os
from dataclasses import dataclass

from lmdbqueue._lmdb.generation import Generation, Tables, Txn
from lmdbqueue._lmdb.preallocation import reserve
from lmdbqueue._model import fifo, item_notes, push_times
from lmdbqueue._model import readers as _readers
from lmdbqueue._model.push_times import Moment
from lmdbqueue._model.readers import ReaderStats


@dataclass(frozen=True)
class Stats:
    """Figures of a queue, in items, and of the directory that it shares with others, in bytes.

    ``oldest_age`` is of the item that waits longest: at most so many seconds, and at least that less two seconds or an
    eighth of itself, whichever is more. An item waits since it was pushed, or since it was due if it had a delay; one
    that was leased or dead in between has not begun anew, one that was moved here has. A clock that is stepped does
    not change it, and a machine that is suspended does not let it grow; over a reboot it is the wall clock that counts.
    ``head``, ``tail`` and numbers of items: see ``docs/format.md``. ``processes`` are those that the kernel shows
    to this one: all of the machine, or, seen from within a container, those of the container.
    """

    waiting: int  # what len() says
    leased: int
    delayed: int
    dead: int
    pushed: int  # ever, delayed ones included
    removed: int  # ever: popped, deleted, acknowledged, cleared
    head: int  # number of the first item that never left
    tail: int  # number that the next item gets
    oldest_age: float | None = None  # seconds; None: nothing waits, or it was pushed by a version that noted no times
    readers: tuple[ReaderStats, ...] = ()  # by their names
    bytes_used: int | None = None  # pages in use, of all queues of the directory; None: not in a directory
    bytes_free: int | None = None  # what flush(force=True) would give back
    file_size: int | None = None  # bytes, those allocated ahead included
    generation: int | None = None  # of the file: one more than how often it was written anew
    processes: int | None = None  # that have the directory open, this one included; None: not known here


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
