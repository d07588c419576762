"""What "whole" means: the verification of every invariant, on a file as it is.

Owns: the invariants. Law: it changes nothing, and an empty result means that all invariants hold. Must not know: how
the file came to be as it is, what is done about faults.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._base.format import Bounds, pack
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.snapshot import Snapshot, Tables, Txn
from lmdbqueue._lmdb.structure import problems_of
from lmdbqueue._model import away_proof, fifo, reader_records

_NO_ITEM: Final = -1
_NUMBER: Final = 8  # bytes
SAID_BY_THE_BYTES: Final = (  # caused by invalid records; other errors are the system's, and not findings
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

_FIRST_OF_A_COPY = 1  # number of the only transaction of a compacted copy, which keeps the stamp of its original


class Damage(NamedTuple):
    """An item with a wrong checksum, or another fault that another snapshot may share."""

    queue: str
    seq: int  # _NO_ITEM for other faults
    what: str = ""

    def __str__(self) -> str:
        what = self.what or f"item {self.seq} is damaged, its checksum does not match"
        return f"queue {self.queue!r}: {what}" if self.queue else what


class Findings(NamedTuple):
    """The faults of a file: of its structure and records, and of single items."""

    problems: tuple[str, ...] = ()
    damaged: frozenset[Damage] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.problems or self.damaged)

    def sentences(self) -> list[str]:
        """Return one sentence for each fault."""
        return [*self.problems, *map(str, sorted(self.damaged))]


def of_file(path: str, options: _format.Options, progress: Progress | None = None) -> Findings:
    """Verify a file that no process has open. LMDB opens it only after its structure has been verified.

    Findings come only from the bytes: an error of the system is raised. ``progress(done, total)``: bytes, first of the
    structure in one step, then of the items.
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
    except SAID_BY_THE_BYTES as error:
        return Findings((f"{type(error).__name__}: {error}",))
    if progress is not None:
        progress(total, total)
    return found


def of_records(txn: Txn, snapshot: Snapshot, newest: int | None) -> Findings:
    """Verify the records of all queues, as ``txn`` sees them; ``newest`` transaction: None for that of ``txn``."""
    try:
        return _of_records(txn, snapshot, newest)
    except SAID_BY_THE_BYTES as error:
        return Findings((f"{type(error).__name__}: {error}",))


def _of_records(txn: Txn, snapshot: Snapshot, newest: int | None) -> Findings:
    problems: list[str] = []
    damaged: set[Damage] = set()
    transaction = txn.id() if newest is None else newest
    record, weight, _ = snapshot.last(txn)
    slots = meta_page.read(snapshot.path)
    has_own_number = snapshot.options.durability != "off" and slots[0].body != slots[1].body  # else recovery gave it
    if has_own_number and transaction not in (record, _FIRST_OF_A_COPY):
        problems.append(f"its newest transaction is {transaction}, but its record says {record}")
    if weight is not None and (difference := weight - snapshot.weighed(txn)):
        damaged.add(
            _other("", f"the weight of its records differs from the one that transaction {record} recorded", difference)
        )
    if lost := snapshot.recorded(txn).symmetric_difference(snapshot.names(txn)):
        problems.append(f"the queues {sorted(lost)} have records but no items, or items but no records")
    for queue in snapshot.open_to(txn):
        _add_queue(txn, queue, problems, damaged)
    return Findings(tuple(problems), frozenset(damaged))


def _other(queue: str, what: str, *differences: int) -> Damage:
    """Return a fault that equals another only if the differences are the same."""
    return Damage(queue, _NO_ITEM, f"{what} (by {', '.join(f'{each % (1 << 64):x}' for each in differences)})")


class _Items(NamedTuple):
    """The findings about the items of a class."""

    skipped: int
    skipped_weight: int  # only if they are not more than recorded
    returned: int
    returned_weight: int
    behind: int  # items behind the tail
    damaged: list[int]


def _add_queue(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> None:
    damaged |= {Damage(queue.name, seq) for seq in _add_items(txn, queue, problems, damaged)}
    proof = away_proof.Proof(txn, queue)
    problems += proof.sentences()
    for record in proof.damaged:
        damaged.add(Damage(queue.name, _NO_ITEM, f"the record {record!r} is damaged, its checksum does not match"))
    problems += _size_problems(txn, queue)
    for record, value in (*fifo.state(txn, queue), *reader_records.records(txn, queue)) if queue.sealed else ():
        if not _format.is_intact(record, value):
            what = f"the state {_format.state_key(record)!r}" if b"/state/" in record else f"the record {record!r}"
            damaged.add(Damage(queue.name, _NO_ITEM, f"{what} is damaged, its checksum does not match"))


def _add_items(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> list[int]:
    """Verify that the items are those that the records describe; return the damaged ones."""
    damaged_items: list[int] = []
    total = 0
    for number in fifo.classes(txn, queue):
        noted = fifo.bounds(txn, queue, number)
        found = _items(txn, queue, noted)
        damaged_items += found.damaged
        here = noted.tail - noted.head - found.skipped + found.returned
        total += here + found.behind
        name = f"queue {queue.name!r}" + (f", priority {number - _format.CLASS}" if number != _format.CLASS else "")
        head, tail = (each - (number << 56) for each in noted[:2])
        if found.behind:
            problems.append(f"{name}: its tail is {tail}, but there are {found.behind} items from that number on")
        if (found.skipped, found.returned) != (noted.skipped, noted.returned):
            problems.append(
                f"{name}: its head is {head}, its tail {tail}; {noted.skipped} numbers between them have no item by "
                f"its record, and {found.skipped} have none; {noted.returned} before them have one by its record, and "
                f"{found.returned} have one"
            )
        elif not found.behind and queue.weighed:
            differences = (
                noted.skipped_weight - found.skipped_weight,
                noted.returned_weight - found.returned_weight,
            )
            if any(each % (1 << 64) for each in differences):
                damaged.add(_other(queue.name, "its items are not those that its records describe", *differences))
    count = fifo.count(txn, queue)
    if total != count:
        problems.append(
            f"queue {queue.name!r}: {total} items are in the classes that it has, and its tree counts {count}"
        )
    return damaged_items


def _items(txn: Txn, queue: Tables, noted: Bounds) -> _Items:
    expected = noted.head
    damaged = []
    behind = skipped = skipped_weight = returned = returned_weight = 0

    def skip(keys: range) -> None:
        nonlocal skipped, skipped_weight
        skipped += len(keys)
        if skipped <= noted.skipped and queue.weighed:
            skipped_weight += sum(_format.weigh(pack(key)) for key in keys)

    with txn.cursor(queue.items) as cursor:
        entries = cursor.iternext() if cursor.set_range(pack(_format.first_of(noted.head))) else iter(())
        for key, value in entries:
            if len(key) != _NUMBER:
                behind += 1  # a key that only damage can have made
                continue
            number = _format.unpack(key)
            if _format.first_of(number) != _format.first_of(noted.head):
                break
            if number >= noted.tail:
                behind += 1
            elif number < noted.head:
                returned += 1
                returned_weight += _format.weigh(key)
            else:
                if number != expected:
                    skip(range(expected, number))
                expected = number + 1
            if queue.sealed and not _format.is_intact(key, value, queue.salt):
                damaged.append(number - _format.BASE)
    skip(range(expected, max(expected, noted.tail)))
    return _Items(skipped, skipped_weight, returned, returned_weight, behind, damaged)


def _size_problems(txn: Txn, queue: Tables) -> Iterator[str]:
    """Yield a sentence if the bytes of the waiting items, where counted, differ from the record."""
    kept = reader_records.retention(txn, queue)
    if kept is not None and kept[0].bytes is not None:
        with txn.cursor(queue.items) as cursor:
            size = fifo.size_of(queue, cursor.iternext(keys=False))
        if size != kept[1]:
            yield f"queue {queue.name!r}: its items take {size} bytes, but its record says {kept[1]}"
