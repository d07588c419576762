"""What "whole" means: the proof of every invariant, on a file as it stands.

Owns: the invariants. Law: it changes nothing, and nothing found means that all of them hold. Must not
know: how the file came to be as it is, what is done about it.
"""

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._format import Bounds, pack
from lmdbqueue._lmdb.generation import Snapshot, Tables, Txn
from lmdbqueue._lmdb.structure import problems_of
from lmdbqueue._model import fifo, lease_records, reader_records

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
    record, weight, _ = snapshot.last(txn)
    if snapshot.options.durability == "full" and transaction not in (record, _FIRST_OF_A_COPY):
        problems.append(f"its newest transaction is {transaction}, and its record says {record}")
    if weight is not None and (difference := weight - snapshot.weighed(txn)):
        damaged.add(_other("", f"the weight of its records differs from what transaction {record} noted", difference))
    if lost := snapshot.recorded(txn).symmetric_difference(snapshot.names(txn)):
        problems.append(f"of the queues {sorted(lost)} it has records and no items, or items and no records")
    for queue in snapshot.open_to(txn):
        _add_queue(txn, queue, problems, damaged)
    return Findings(tuple(problems), frozenset(damaged))


def _other(queue: str, what: str, *differences: int) -> Damage:
    """Return a difference that counts as the same only where it is the same."""
    return Damage(queue, _NO_ITEM, f"{what} (by {', '.join(f'{each % (1 << 64):x}' for each in differences)})")


class _Items(NamedTuple):
    """What was found among the items of a class."""

    skipped: int
    gaps: list[range]  # that those are
    returned: int
    returned_weight: int
    behind: int  # items behind the tail
    damaged: list[int]


def _add_queue(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> None:
    damaged |= {Damage(queue.name, seq) for seq in _add_items(txn, queue, problems, damaged)}
    contents = lease_records.contents(txn, queue)
    for record in contents.damaged:
        damaged.add(Damage(queue.name, _NO_ITEM, f"the record {record!r} is damaged, its checksum does not fit"))
    if not contents.damaged:
        problems += _away_problems(txn, queue, contents)
    for record, value in (*fifo.state(txn, queue), *reader_records.records(txn, queue)) if queue.sealed else ():
        if not _format.is_intact(record, value):
            what = f"the state {_format.state_key(record)!r}" if b"/state/" in record else f"the record {record!r}"
            damaged.add(Damage(queue.name, _NO_ITEM, f"{what} is damaged, its checksum does not fit"))


def _add_items(txn: Txn, queue: Tables, problems: list[str], damaged: set[Damage]) -> list[int]:
    """Prove that the items are those that the records tell of; return which of them are damaged."""
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
            problems.append(f"{name}: its tail is {tail}, and there are {found.behind} items from that number on")
        if (found.skipped, found.returned) != (noted.skipped, noted.returned):
            problems.append(
                f"{name}: its head is {head}, its tail {tail}; {noted.skipped} numbers between them have no item by "
                f"its record, and {found.skipped} have none; {noted.returned} before them have one by its record, and "
                f"{found.returned} have one"
            )
        elif not found.behind and queue.weighed:
            skipped_weight = sum(_format.weigh(pack(key)) for gap in found.gaps for key in gap)
            differences = (
                noted.skipped_weight - skipped_weight,
                noted.returned_weight - found.returned_weight,
            )
            if any(each % (1 << 64) for each in differences):
                damaged.add(_other(queue.name, "its items are not those that its records tell of", *differences))
    count = fifo.count(txn, queue)
    if total != count:
        problems.append(
            f"queue {queue.name!r}: {total} items are in the classes that it has, and its tree counts {count}"
        )
    return damaged_items


def _items(txn: Txn, queue: Tables, noted: Bounds) -> _Items:
    expected = noted.head
    damaged = []
    gaps = []
    behind = skipped = returned = returned_weight = 0
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
                    gaps.append(range(expected, number))
                    skipped += number - expected
                expected = number + 1
            if queue.sealed and not _format.is_intact(key, value, queue.salt):
                damaged.append(number - _format.BASE)
    gaps.append(range(expected, max(expected, noted.tail)))
    skipped += max(0, noted.tail - expected)
    return _Items(skipped, gaps, returned, returned_weight, behind, damaged)


def _away_problems(  # noqa: C901, PLR0912  (a list of invariants)
    txn: Txn, queue: Tables, contents: lease_records.Contents
) -> Iterator[str]:
    """Yield what is wrong with the records of items held back, and with the notes on those that wait."""
    where = f"queue {queue.name!r}"
    numbers = fifo.numbers(txn, queue)
    noted = (numbers.leased, numbers.delayed, numbers.noted, numbers.keys, numbers.expiring, numbers.dead)
    if contents.counts() != noted:
        yield (
            f"{where}: there are {contents.counts()} leased, delayed, noted, unique, expiring and dead, and its record "
            f"says {noted}"
        )
    held = Counter(record.token for record in contents.leased.values())
    if held != {token: lease.items for token, lease in contents.leases.items() if lease.items}:
        yield f"{where}: its leases hold {contents.leases}, and leased are {dict(held)}, by token"
    if any(record.key not in contents.keys_of(record.token) for record in contents.leased.values()):
        yield f"{where}: the keys that its leases were given are not those of the items that they hold"
    if contents.leases and max(contents.leases) > numbers.tokens:
        yield f"{where}: a lease has the token {max(contents.leases)}, and the last that was given is {numbers.tokens}"
    owners = {(lease.owner, token) for token, lease in contents.leases.items()}
    expiries = {
        (lease.deadline, token) for token, lease in contents.leases.items() if lease.deadline != lease_records.NEVER
    }
    if (owners, expiries) != (contents.owners, contents.expiries):
        yield f"{where}: the lists of its leases by owner and by time are not those of its leases"
    for key in contents.notes:
        if txn.get(key, db=queue.items) is None:
            yield f"{where}: there is a note on item {_format.seq_of(key)}, which is not there"
    there = {
        **contents.notes,
        **{record.key: record.note for record in (*contents.leased.values(), *contents.delayed.values())},
    }
    for digest, value in contents.unique.items():
        note = there.get(value[:8])
        if note is None or note.unique != digest:
            yield f"{where}: a unique key is held by item {_format.seq_of(value[:8])}, which does not have it"
    for time, key in contents.expires:
        if key not in there or there[key].expires != time:
            yield f"{where}: item {_format.seq_of(key)} is listed as one that expires, and it is none"
    positions = set()
    for name in reader_records.names(txn, queue):
        with suppress(CorruptQueueError):
            positions.add((reader_records.position(txn, queue, name).passed, name))
    if positions != contents.readers:
        yield f"{where}: the list of its readers is {sorted(contents.readers)}, and they are {sorted(positions)}"
    kept = reader_records.retention(txn, queue)
    if kept is not None and kept[0].bytes is not None:
        with txn.cursor(queue.items) as cursor:
            size = sum(len(value) - queue.behind for value in cursor.iternext(keys=False))
        if size != kept[1]:
            yield f"{where}: its items take {size} bytes, and its record says {kept[1]}"
