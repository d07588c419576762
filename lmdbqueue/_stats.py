"""``queue.stats()``: how much of everything there is.

Owns: the figures and their names. Law: all of one snapshot, each at a cost that does not depend on the length
of the queue. Must not know: LMDB.
"""

from dataclasses import dataclass

from lmdbqueue import _fifo, _notes
from lmdbqueue._generation import Tables, Txn


@dataclass(frozen=True)
class Stats:
    """Figures of a queue, all in items. ``head``, ``tail`` and numbers of items: see ``docs/format.md``."""

    waiting: int  # what len() says
    leased: int
    delayed: int
    dead: int
    pushed: int  # ever, delayed ones included
    removed: int  # ever: popped, deleted, acknowledged, cleared
    head: int  # number of the first item that never left
    tail: int  # number that the next item gets


def of_queue(txn: Txn, queue: Tables) -> Stats:
    """Return the figures of a queue."""
    head, tail, _ = _fifo.bounds(txn, queue)
    waiting = _fifo.count(txn, queue)
    away = _notes.counts(txn, queue)
    return Stats(
        waiting=waiting,
        leased=away.leased,
        delayed=away.delayed,
        dead=away.dead,
        pushed=tail,
        removed=tail - waiting - away.leased - away.delayed - away.dead,
        head=head,
        tail=tail,
    )
