"""What "whole" means: the proof of every invariant, on a file as it stands.

Owns: the invariants. Law: it changes nothing, and nothing found means that all of them hold. Must not
know: how the file came to be as it is, what is done about it.
"""

import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._lmdb.generation import Snapshot, Tables, Txn
from lmdbqueue._lmdb.structure import problems_of
from lmdbqueue._model import fifo, item_notes, lease_records, reader_records

_NO_ITEM: Final = -1
_NUMBER: Final = 8  # bytes
_SAID_BY_THE_BYTES: Final = (  # by records that nobody wrote like that; other errors are the system's, and no finding
    CorruptQueueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)
Progress = Callable[[int, int], None]

_FIRST_OF_A_COPY = 1  # number of the only transaction of a compacted copy, which keeps the stamp of its origin


class Damage(NamedTuple):
    """An item whose checksum does not fit, or something else that another snapshot may have in common."""

    queue: str
    seq: int  # _NO_ITEM for something else
    what: str = ""

    def __str__(self) -> str:
        what = self.what or f"item {self.seq} is damaged, its checksum does not fit"
        return f"queue {self.queue!r}: {what}" if self.queue else what


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

    Only what the bytes say is found: an error of the system is raised.
    ``progress(done, total)``: bytes, of the structure in one step and then of the items.
    """
    total = 2 * os.stat(path).st_size
    if problems := problems_of(path):
        return Findings(tuple(problems))
    if progress is not None:
        progress(total // 2, total)
    try:
        snapshot = Snapshot(path, options)
        try:
            found: Findings = snapshot.read(of_records, None)
        finally:
            snapshot.close()
    except _SAID_BY_THE_BYTES as error:
        return Findings((f"{type(error).__name__}: {error}",))
    if progress is not None:
        progress(total, total)
    return found


def of_records(txn: Txn, snapshot: Snapshot, newest: int | None) -> Findings:
    """Prove the records of all queues, as ``txn`` sees them; ``newest`` transaction: None for that of ``txn``."""
    problems: list[str] = []
    damaged: set[Damage] = set()
    transaction = txn.id() if newest is None else newest
    record, weight = snapshot.last(txn)
    if transaction not in (record, _FIRST_OF_A_COPY):
        problems.append(f"its newest transaction is {transaction}, and its record says {record}")
    if weight is not None and (difference := weight - snapshot.weighed(txn)):
        damaged.add(_other("", f"the weight of its records differs from what transaction {record} noted", difference))
    known = {queue.name for queue in snapshot.queues()}
    if lost := snapshot.recorded(txn).symmetric_difference(known):
        problems.append(f"of the queues {sorted(lost)} it has records and no items, or items and no records")
    for queue in snapshot.queues():
        if queue.name not in lost:
            _add_queue(txn, queue, problems, damaged)
    return Findings(tuple(problems), frozenset(damaged))


def _other(queue: str, what: str, *differences: int) -> Damage:
    """Return a difference that counts as the same only where it is the same."""
    return Damage(queue, _NO_ITEM, f"{what} (by {', '.join(f'{each % (1 << 64):x}' for each in differences)})")


class _Items(NamedTuple):
    """What was found among the items of a queue."""

    total: int
    in_order: int  # numbers from head to below tail that have an item
    behind: int  # items behind the tail
    gaps: list[range]  # numbers that have none
    returned_weight: int  # of the places of those that came back
    damaged: list[int]


def _add_queue(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> None:
    damaged |= {Damage(queue.name, seq) for seq in _add_items(txn, queue, problems, damaged)}
    if queue.away is not None:
        contents = lease_records.contents(txn, queue)
        for record in contents.damaged:
            damaged.add(Damage(queue.name, _NO_ITEM, f"the record {record!r} is damaged, its checksum does not fit"))
        if not contents.damaged:
            problems += _away_problems(txn, queue, contents)
    for record, value in (*fifo.state(txn, queue), *reader_records.records(txn, queue)) if queue.sealed else ():
        if not _format.is_intact(record, value):
            what = f"the state {_format.state_key(record)!r}" if record.count(b"/") > 1 else f"the record {record!r}"
            damaged.add(Damage(queue.name, _NO_ITEM, f"{what} is damaged, its checksum does not fit"))


def _add_items(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> list[int]:
    """Prove that the items are those that the records tell of; return which of them are damaged."""
    head, tail, skipped = fifo.bounds(txn, queue)
    count = fifo.count(txn, queue)
    found = _items(txn, queue, head, tail)
    if found.total != count:
        problems.append(f"queue {queue.name!r}: it has {found.total} items, and its tree counts {count}")
    if found.behind:
        problems.append(
            f"queue {queue.name!r}: its tail is {tail}, and there are {found.behind} items from that number on"
        )
    if found.in_order != tail - head - skipped:
        problems.append(
            f"queue {queue.name!r}: its head is {head}, its tail {tail}, {skipped} numbers between them have no item, "
            f"and {found.in_order} have one"
        )
    elif not found.behind and not fifo.is_of_before_leases(txn, queue):
        noted = fifo.gaps(txn, queue)
        skipped_weight = sum(_format.weigh(_format.pack(seq)) for gap in found.gaps for seq in gap)
        differences = noted.skipped_weight - skipped_weight, noted.returned_weight - found.returned_weight
        if any(each % (1 << 64) for each in differences):
            damaged.add(_other(queue.name, "its items are not those that its records tell of", *differences))
    return found.damaged


def _items(txn: Txn, queue: Tables, head: int, tail: int) -> _Items:
    expected = head
    gaps = []
    damaged = []
    came_back = behind = total = returned_weight = 0
    with txn.cursor(queue.items) as cursor:
        for place, value in cursor.iternext():
            total += 1
            seq = _format.number(place)
            if len(place) > _NUMBER or seq < head:
                came_back += 1
                returned_weight += _format.weigh(place)
            else:
                if seq != expected:
                    gaps.append(range(expected, seq))
                expected = seq + 1
                behind += seq >= tail
            if queue.sealed and not _format.is_intact(place[-_NUMBER:], value):
                damaged.append(seq)
    gaps.append(range(expected, max(expected, tail)))
    return _Items(total, total - came_back - behind, behind, gaps, returned_weight, damaged)


def _away_problems(txn: Txn, queue: Tables, contents: lease_records.Contents) -> Iterator[str]:
    """Yield what is wrong with the records of what does not wait, and with the notes on what does."""
    counts = item_notes.counts(txn, queue)
    found = contents.counts(counts.tokens)
    if found != counts:
        yield f"queue {queue.name!r}: there are {found}, and its record says {counts}"
    held = sorted(seq for lease in contents.leases.values() for seq in lease.seqs)
    if held != sorted(contents.leased):
        yield f"queue {queue.name!r}: its leases are of items {held}, and leased are {sorted(contents.leased)}"
    owners = {(lease.owner, token) for token, lease in contents.leases.items()}
    expiries = {
        (lease.deadline, token) for token, lease in contents.leases.items() if lease.deadline != lease_records.NEVER
    }
    if (owners, expiries) != (contents.owners, contents.expiries):
        yield f"queue {queue.name!r}: the lists of its leases by owner and by time are not those of its leases"
    keys = {}
    for seq, note in contents.notes.items():
        if txn.get(_format.place(seq, note.due), db=queue.items) is None:
            yield f"queue {queue.name!r}: there is a note on item {seq}, which is not there"
        keys[note.unique] = seq
    keys |= {record.note.unique: record.seq for record in (*contents.leased.values(), *contents.delayed.values())}
    keys.pop(b"", None)
    if keys != contents.keys:
        yield f"queue {queue.name!r}: its keys are of items {contents.keys}, and its items have {keys}"
