"""What "whole" means: the proof of every invariant, on a file as it stands.

Owns: the invariants. Law: it changes nothing, and nothing found means that all of them hold. Must not
know: how the file came to be as it is, what is done about it.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from lmdbqueue import _fifo, _format, _generation
from lmdbqueue._generation import Snapshot, Tables, Txn

_STATE = -1
Progress = Callable[[int, int], None]

_FIRST_OF_A_COPY = 1  # number of the only transaction of a compacted copy, which keeps the stamp of its origin


class Damage(NamedTuple):
    """An item, or a part of the state, whose checksum does not fit."""

    queue: str
    seq: int  # _STATE for a part of the state
    key: str = ""

    def __str__(self) -> str:
        what = f"the state {self.key!r}" if self.seq == _STATE else f"item {self.seq}"
        return f"queue {self.queue!r}: {what} is damaged, its checksum does not fit"


class Findings(NamedTuple):
    """What is wrong with a file: with its structure and its records, and with single items."""

    problems: tuple[str, ...] = ()
    damaged: frozenset[Damage] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.problems or self.damaged)

    def sentences(self) -> list[str]:
        """Return one sentence for each."""
        return [*self.problems, *map(str, sorted(self.damaged))]


def of_file(path: str, options: _format.Options, progress: Progress | None = None) -> Findings:
    """Prove a file that nobody has open. LMDB sees it only once its structure is proven.

    ``progress(done, total)``: bytes, of the structure in one step and then of the items.
    """
    total = 2 * os.stat(path).st_size
    if problems := _generation.structural_problems(path):
        return Findings(tuple(problems))
    if progress is not None:
        progress(total // 2, total)
    try:
        snapshot = Snapshot(path, options)
        try:
            found: Findings = snapshot.read(of_records, None)
        finally:
            snapshot.close()
    except Exception as error:  # records that nobody wrote like that
        return Findings((f"{type(error).__name__}: {error}",))
    if progress is not None:
        progress(total, total)
    return found


def of_records(txn: Txn, snapshot: Snapshot, newest: int | None) -> Findings:
    """Prove the records of all queues, as ``txn`` sees them; ``newest`` transaction: None for that of ``txn``."""
    problems: list[str] = []
    damaged: set[Damage] = set()
    transaction, record = txn.id() if newest is None else newest, snapshot.last_stamp(txn)
    if transaction not in (record, _FIRST_OF_A_COPY):
        problems.append(f"its newest transaction is {transaction}, and its record says {record}")
    for queue in snapshot.queues():
        _add_queue(txn, queue, problems, damaged)
    return Findings(tuple(problems), frozenset(damaged))


def _add_queue(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> None:
    head, tail = _fifo.bounds(txn, queue)
    next_ = head
    gaps = []
    with txn.cursor(queue.items) as cursor:
        for key, value in cursor.iternext():
            seq = _format.unpack(key)
            if seq != next_:
                gaps.append(range(next_, seq))
            next_ = seq + 1
            if queue.sealed and not _format.is_intact(key, value):
                damaged.add(Damage(queue.name, seq))
    for record, value in _fifo.state(txn, queue) if queue.sealed else ():
        if not _format.is_intact(record, value):
            damaged.add(Damage(queue.name, _STATE, _format.state_key(record)))
    if next_ != tail:
        gaps.append(range(next_, tail))
    if gaps != _fifo.missing(txn, queue):
        numbers = ", ".join(f"{gap.start} to {gap.stop - 1}" for gap in gaps) or "none"
        problems.append(
            f"queue {queue.name!r}: its head is {head}, its tail {tail}, and these items are missing: {numbers}"
        )
