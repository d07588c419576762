"""Named readers: each reads the whole queue at its own pace. How one moves, and what goes when all have passed.

Owns: what a reader reads next, when an item is removed by itself. Law: a reader gets each item once, in the order of
the queue, or counts it as skipped; an item that all readers have passed goes with the move of the last of them,
unless it is retained. Must not know: clocks (it is told the time), waiting, pickling.

A reader's place is in the queue's own order, so that nothing may come in before it: while a queue has readers an item
with a delay gets a new number when it comes due, at the tail (``_model.leases``). What a lease gives back to a place
that a reader has passed is not read by it, and counted as skipped when it was passed.

Removing by itself (``trim``) is a step of the same transaction that made it due: a move, or with a retention a
push. At most ``_AT_ONCE`` items a step: what is left goes with the next.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import islice, takewhile
from typing import NamedTuple

from lmdbqueue import _format
from lmdbqueue._errors import GoneError
from lmdbqueue._format import Position, Retention, away, pack
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import fifo, item_notes, lease_records, push_times, reader_records
from lmdbqueue._values import NEWEST, OLDEST, Entry, Moment, ReaderStats

_AT_ONCE = 10_000  # items
Limits = tuple[int, int | None]  # maxsize and max_bytes of a push
Target = tuple[str, Limits, Moment]  # of a move: name and limits of the other queue, and now


class Move(NamedTuple):
    """What a reader passed at once."""

    reader: str
    before: Position
    after: Position
    passed: int  # items
    gone: int  # of these, that left the queue with it: the first


def create(txn: Txn, queue: Tables, name: str, where: int | str, now: Moment) -> bool:
    """Make a reader unless it is there; tell whether it was made."""
    known = reader_records.readers(txn, queue)
    if name in known:
        return False
    reader_records.set_readers(txn, queue, {**known, name: Position(_passed(txn, queue, where), 0, now.wall)})
    return True


def seek(txn: Txn, queue: Tables, name: str, where: int | str, now: Moment) -> bool:
    """Let a reader go on from another place."""
    position = _position(txn, queue, name)
    _move(txn, queue, name, position._replace(passed=_passed(txn, queue, where), seen=now.wall))
    trim(txn, queue, now)
    return True


def drop(txn: Txn, queue: Tables, name: str) -> bool:
    """Remove a reader; tell whether it was there."""
    known = reader_records.readers(txn, queue)
    position = known.pop(name, None)
    if position is not None:
        reader_records.set_readers(txn, queue, known)
    return position is not None


def exists(txn: Txn, queue: Tables, name: str) -> bool:
    """Tell whether there is such a reader."""
    return name in reader_records.readers(txn, queue)


def first(txn: Txn, queue: Tables, name: str, n: int) -> list[Entry]:
    """Return the next ``n`` entries of a reader, or as many as there are."""
    position = _position(txn, queue, name)
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(_next(position.passed)):
            return []
        return list(islice(cursor.iternext(), n))


def advance(txn: Txn, queue: Tables, name: str, keys: Sequence[bytes], now: Moment) -> Move | None:
    """Let a reader pass its next items if they are just those of ``keys``, else nothing, and return None."""
    position = _position(txn, queue, name)
    if not keys or _next_keys(txn, queue, position, len(keys)) != keys:
        return None
    return _pass(txn, queue, (name, position), keys, now)


def retreat(txn: Txn, queue: Tables, move: Move, entries: Sequence[Entry], now: Moment) -> bool:
    """Undo a move past ``entries`` if it is the reader's last; tell if so. What left with it is put back."""
    position, before = _position(txn, queue, move.reader), move.before.passed
    if position._replace(skipped=0) != move.after._replace(skipped=0):
        return False
    if move.gone:
        fifo.put_back(txn, queue, list(entries[: move.gone]))
    known = {key[-8:] for key, _ in entries}
    there = {key[-8:] for key in _between(txn, queue, _next(before), position.passed)}
    there.update(_leased_between(txn, queue, before, _next(position.passed)))
    skipped = position.skipped + len(known - there) - len(there - known)  # left since; will be met again
    _move(txn, queue, move.reader, Position(before, skipped, now.wall))
    trim(txn, queue, now)
    return True


def delete(txn: Txn, queue: Tables, name: str, n: int, now: Moment) -> int:
    """Let a reader pass its next ``n`` items, or as many as there are; return how many."""
    position = _position(txn, queue, name)
    keys = _next_keys(txn, queue, position, n)
    return _pass(txn, queue, (name, position), keys, now).passed if keys else 0


def settle(txn: Txn, queue: Tables, name: str, seqs: Collection[int], now: Moment) -> int:
    """Let a reader pass all up to the last item of these numbers that it has not passed; return how many of them.

    What else stands there is skipped.
    """
    position = _position(txn, queue, name)
    last = _format.place(max(seqs))
    keys: list[bytes] = []
    found = 0
    passed = 0  # of the keys
    with txn.cursor(queue.items) as cursor:
        if cursor.set_range(_next(position.passed)):
            for key in cursor.iternext(values=False):
                if found == len(seqs) or (len(key) == len(last) and key > last):
                    break
                keys.append(key)
                if _format.number(key) in seqs:
                    found += 1
                    passed = len(keys)
    if found:
        skipped = position.skipped + passed - found
        _pass(txn, queue, (name, position._replace(skipped=skipped)), keys[:passed], now)
    return found


def come(txn: Txn, queue: Tables, name: str) -> int:
    """Return the number before which a reader has passed all, as far as items are in the order of their numbers."""
    passed = _position(txn, queue, name).passed
    return _format.number(passed) + 1 if passed and not _format.due(passed) else 0


def lag(txn: Txn, queue: Tables, name: str) -> int:
    """Return how many items a reader has not passed."""
    return fifo.count_after(txn, queue, _position(txn, queue, name).passed)


def stats(txn: Txn, queue: Tables) -> list[ReaderStats]:
    """Return all readers, by their names."""
    return [stats_of(txn, queue, name) for name in sorted(reader_records.readers(txn, queue))]


def stats_of(txn: Txn, queue: Tables, name: str) -> ReaderStats:
    """Return what is known of a reader."""
    position = _position(txn, queue, name)
    keys = _next_keys(txn, queue, position, 1)
    number = _format.number(keys[0]) if keys else fifo.bounds(txn, queue)[1]
    behind = fifo.count_after(txn, queue, position.passed)
    return ReaderStats(name, number, behind, position.skipped, position.seen / 1e9)


# --- what goes by itself


def retain(txn: Txn, queue: Tables, now: Moment, retention: Retention | None) -> bool:
    """Set what is kept, whoever has passed it, and beyond which nothing is kept."""
    before = reader_records.retention(txn, queue)
    changed = reader_records.set_retention(txn, queue, retention)
    if changed:
        push_times.mark(txn, queue, fifo.bounds(txn, queue)[1], now, None if before is None else before.age)
    return bool(trim(txn, queue, now)) or changed


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], limits: Limits, now: Moment) -> range:
    """Do as ``_model.fifo.push``, and remove what is not retained any more."""
    given = fifo.push(txn, queue, payloads, *limits)
    appended(txn, queue, given.start, now)
    return given


def move(txn: Txn, queue: Tables, keys: list[bytes], payloads: Sequence[bytes], target: Target) -> int:
    """Append the first items, if they are just those of ``keys``, to another queue; return how many went.

    ``payloads`` are theirs. Raises ``Full`` as ``push``.
    """
    name, limits, now = target
    if not keys or not fifo.are_first(txn, queue, keys):
        return 0
    push(txn, queue.generation.table(name), payloads, limits, now)
    return fifo.remove(txn, queue, keys)


def appended(txn: Txn, queue: Tables, first: int, now: Moment) -> None:
    """Note when items were appended, from the number ``first`` on, and remove what is not retained any more."""
    retention = reader_records.retention(txn, queue)
    push_times.appended(txn, queue, first, now, None if retention is None else retention.age)
    if retention is not None:
        trim(txn, queue, now)


def trim(txn: Txn, queue: Tables, now: Moment) -> int:
    """Remove what nobody needs any more, some of it; return how many items went."""
    removed = 0
    while removed < _AT_ONCE and (n := _unneeded(txn, queue, now)) > 0:
        removed += fifo.delete(txn, queue, min(n, _AT_ONCE - removed))
    return removed


def _unneeded(txn: Txn, queue: Tables, now: Moment) -> int:
    """Return how many of the first items may go, or a part of them."""
    retention = reader_records.retention(txn, queue)
    if retention is not None:
        return _beyond(txn, queue, retention, now)
    known = reader_records.readers(txn, queue)
    if not known:
        return 0
    place = _next(min(position.passed for position in known.values()))
    return _while(txn, queue, lambda key: key < place)


def _beyond(txn: Txn, queue: Tables, retention: Retention, now: Moment) -> int:
    """Return how many of the first items are more than what is retained, or a part of them."""
    count = fifo.count(txn, queue)
    found = [0]
    if retention.items is not None:
        found.append(count - retention.items)
    if retention.bytes is not None and (used := queue.generation.used_by(txn, queue.items)) > retention.bytes:
        found.append(min(count - 1, _that_take(txn, queue, used - retention.bytes)))
    if retention.age is not None:
        first = pack(push_times.tail_before(txn, queue, fifo.bounds(txn, queue)[1], now, retention.age))
        due = now.wall - retention.age
        found.append(_while(txn, queue, lambda place: place < first and _format.due(place) <= due))
    return max(found)


def _that_take(txn: Txn, queue: Tables, size: int) -> int:
    """Return how many of the first items take so many bytes, at the least."""
    n = 0
    with txn.cursor(queue.items) as cursor:
        for _, value in cursor.iternext():
            n += 1
            size -= fifo.room_of(len(value))
            if size <= 0:
                break
    return n


def _while(txn: Txn, queue: Tables, is_unneeded: Callable[[bytes], bool]) -> int:
    """Return how many of the first items have such places, at most ``_AT_ONCE``."""
    with txn.cursor(queue.items) as cursor:
        return sum(1 for _ in takewhile(is_unneeded, islice(cursor.iternext(values=False), _AT_ONCE)))


# --- places


def _passed(txn: Txn, queue: Tables, where: int | str) -> bytes:
    """Return what a reader has passed that begins at a number, or at an end."""
    if where == OLDEST:
        return b""
    number = fifo.bounds(txn, queue)[1] if where == NEWEST else int(where)
    return pack(number - 1) if number > 0 else b""


def _next(passed: bytes) -> bytes:
    """Return the first place behind one."""
    return passed + b"\0" if passed else b""


def _next_keys(txn: Txn, queue: Tables, position: Position, n: int) -> list[bytes]:
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(_next(position.passed)):
            return []
        return list(islice(cursor.iternext(values=False), n))


def _position(txn: Txn, queue: Tables, name: str) -> Position:
    try:
        return reader_records.readers(txn, queue)[name]
    except KeyError:
        raise GoneError(queue.generation.path, f"reader {name} of {queue.name}") from None


def _pass(txn: Txn, queue: Tables, reader: tuple[str, Position], keys: Sequence[bytes], now: Moment) -> Move:
    name, before = reader
    lost = len(_leased_between(txn, queue, before.passed, keys[-1]))
    after = Position(keys[-1], before.skipped + lost, now.wall)
    _move(txn, queue, name, after)
    left = _between(txn, queue, keys[0], keys[-1]) if trim(txn, queue, now) else keys
    return Move(name, before, after, len(keys), len(keys) - len(left))


def _move(txn: Txn, queue: Tables, name: str, position: Position) -> None:
    reader_records.set_readers(txn, queue, {**reader_records.readers(txn, queue), name: position})


def _between(txn: Txn, queue: Tables, first: bytes, last: bytes) -> Sequence[bytes]:
    """Return the places of the items from one place to another."""
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(first):
            return []
        return list(takewhile(lambda key: key <= last, cursor.iternext(values=False)))


def _leased_between(txn: Txn, queue: Tables, passed: bytes, last: bytes) -> list[bytes]:
    """Return the numbers of the items that are leased now, behind one place and before another."""
    if not item_notes.counts(txn, queue).leased:
        return []
    seqs = (key[-8:] for key in lease_records.keys(txn, queue, away(queue.name, "leased")))
    return [seq for seq in takewhile(lambda seq: seq < last, seqs) if seq > passed]
