"""Named readers, each of which reads the whole queue at its own pace: how one moves, and which items then leave.

Owns: what a reader reads next. Law: a reader gets each item once, in the order of the queue, or counts it as skipped.
Must not know: clocks (it is told the time), waiting, pickling.

A reader's position is in the queue's own order, so nothing may be inserted before it: while a queue has readers, items
that come due get a new key at the tail (``_model.returns``), and pushes with a priority are refused. An item that a
consumer gives back returns to its place; if all readers have passed that, it gets a new key at the tail, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice, takewhile
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import OptionError
from lmdbqueue._base.format import (
    BEFORE_ALL,
    CLASSES,
    FLAGS_AT,
    HEAD_AT,
    NOT_PLAIN,
    NOTHING,
    POSITION,
    READERS,
    RESIDUE,
    SEAL_SIZE,
    TAIL_AT,
    Position,
    away,
    pack,
    unpack_from,
    weigh_sealed,
)
from lmdbqueue._base.values import NEWEST, OLDEST, Entry, NamedTuple, ReaderStats
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import fifo, item_notes, reader_records, retention, weighed_records
from lmdbqueue._model.weighed_records import queue_record


class Move(NamedTuple):
    """One move of a reader."""

    reader: str
    before: Position
    after: Position
    passed: int  # items
    gone: int  # the number of these, from the first on, that left the queue
    notes: Sequence[_format.Note] = ()  # on the items that left
    following: Entry | None = None  # the next entry of the reader


def create(txn: Txn, queue: Tables, name: str, where: int | str, now: int) -> bool:
    """Create a reader unless it exists; return whether it was created."""
    if reader_records.exists(txn, queue, name):
        return False
    refuse_beside_classes(txn, queue)
    reader_records.set_position(txn, queue, name, None, Position(_passed(txn, queue, where), 0, now))
    fifo.set_flag(txn, queue, READERS, to=True)
    return True


def refuse_beside_classes(txn: Txn, queue: Tables) -> None:
    """Raise ``OptionError`` if the queue has items with a priority."""
    if _format.flags(queue_record(txn, queue)) & CLASSES:
        raise OptionError(queue.generation.directory, "reader", "priorities", "a named reader", queue.name)


def seek(txn: Txn, queue: Tables, name: str, where: int | str, now: int) -> bool:
    """Move a reader to another place."""
    position = reader_records.position(txn, queue, name)
    then = position._replace(passed=_passed(txn, queue, where), seen=now)
    reader_records.set_position(txn, queue, name, position, then)
    retention.trim(txn, queue, now)
    return True


def drop(txn: Txn, queue: Tables, name: str) -> bool:
    """Remove a reader; return whether it existed."""
    if not reader_records.remove(txn, queue, name):
        return False
    if reader_records.last_passed(txn, queue) is None:
        fifo.set_flag(txn, queue, READERS, to=False)
    return True


def first(txn: Txn, queue: Tables, name: str, n: int) -> list[Entry]:
    """Return at most the next ``n`` entries of a reader."""
    position = reader_records.position(txn, queue, name)
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(_next(position.passed)):
            return []
        return list(islice(cursor.iternext(), n))


def advance_first(txn: Txn, queue: Tables, name: str, keys: list[bytes], now: int) -> Move | None:
    """Like ``advance``, for the key of one item."""
    return _advance_if_plain(txn, queue, name, keys[0], now) or advance(txn, queue, name, keys, now)


def _advance_if_plain(txn: Txn, queue: Tables, name: str, key: bytes, now: int) -> Move | None:
    """Move a reader past its next item if that has the key ``key``, and the queue has nothing else recorded.

    A reader mostly takes this path, so it is kept short; it writes the same records as ``_pass``. The item leaves if
    this reader was the last that had not passed it.
    """
    before = queue_record(txn, queue)
    if before[FLAGS_AT] != READERS or before[NOT_PLAIN] != NOTHING or not queue.weighed:
        return None
    generation = queue.generation
    if generation.content.asks:
        return None
    record = queue.reader + name.encode()
    value = txn.get(record, db=queue.meta)
    seed = crc32(record)
    if value is None or crc32(value, seed) != RESIDUE:
        return None
    position = _new(Position, POSITION.unpack_from(value)[1:])
    with txn.cursor(queue.items) as cursor, txn.cursor(queue.away) as passed:
        is_next = cursor.set_range(position.passed + b"\0") and cursor.key() == key
        if not is_next or (passed.set_range(queue.skips) and passed.key().startswith(queue.skips)):
            return None
        following = cursor.item() if cursor.next() else None
        first = cursor.key() if cursor.first() else b""
        index = queue.passed + position.passed
        is_last = passed.set_range(queue.passed) and passed.key() == index + name.encode()
        if is_last and passed.next() and passed.key().startswith(queue.passed):
            is_last = passed.key()[len(queue.passed) :][: len(key)] >= key  # else the next has yet to pass it
        if is_last:
            if first != key:
                return None
            if generation.content.is_running:
                generation.content.leave(cursor.value())
            cursor.delete()
    after = _new(Position, (key, position.skipped, now))
    data = POSITION.pack(1, *after)
    data += crc32(data, seed).to_bytes(SEAL_SIZE, "little")
    old, new = index + name.encode(), queue.passed + key + name.encode()
    left, came = crc32(old), crc32(new)
    generation.weight += weigh_sealed(data) - weigh_sealed(value) + came * came - left * left
    txn.put(record, data, db=queue.meta)
    txn.delete(old, db=queue.away)
    txn.put(new, b"", db=queue.away)
    if is_last:
        head = pack(unpack_from(key, 0)[0] + 1)
        weighed_records.replace_queue(txn, queue, before, before[:HEAD_AT] + head + before[TAIL_AT:])
    return _new(Move, (name, position, after, 1, int(is_last), (), following))


_new = tuple.__new__  # half of the time of a named tuple's own


def advance(txn: Txn, queue: Tables, name: str, keys: Sequence[bytes], now: int) -> Move | None:
    """Move a reader past its next items if their keys are ``keys``; otherwise do nothing and return None."""
    position = reader_records.position(txn, queue, name)
    if not keys or _next_keys(txn, queue, position, len(keys)) != keys:
        return None
    return _pass(txn, queue, name, position, keys, now)


def retreat(txn: Txn, queue: Tables, move: Move, entries: Sequence[Entry], now: int) -> bool:
    """Undo a move past ``entries`` if it is the reader's last; return whether it was."""
    position, before = reader_records.position(txn, queue, move.reader), move.before.passed
    if position._replace(skipped=0) != move.after._replace(skipped=0):
        return False
    if move.gone:
        back = list(entries[: move.gone])
        fifo.put_back(txn, queue, back)
        item_notes.remember(txn, queue, [key for key, _ in back], move.notes)
    known = {key for key, _ in entries}
    there = {*_between(txn, queue, _next(before), position.passed)}
    there.update(_leased_between(txn, queue, before, _next(position.passed)))
    skipped = position.skipped + len(known - there) - len(there - known)  # left since; will be read again
    reader_records.set_position(txn, queue, move.reader, position, Position(before, skipped, now))
    retention.trim(txn, queue, now)
    return True


def delete(txn: Txn, queue: Tables, name: str, n: int, now: int) -> int:
    """Move a reader past at most its next ``n`` items; return their number."""
    position = reader_records.position(txn, queue, name)
    keys = _next_keys(txn, queue, position, n)
    return _pass(txn, queue, name, position, keys, now).passed if keys else 0


def settle(txn: Txn, queue: Tables, name: str, seqs: Collection[int], now: int) -> int:
    """Move a reader past the last of these items that it has not passed; return how many of them it passed.

    Other items before that are skipped.
    """
    position = reader_records.position(txn, queue, name)
    wanted = {_format.key_of(seq) for seq in seqs}
    keys = list(_between(txn, queue, _next(position.passed), max(wanted)))
    found = [number for number, key in enumerate(keys) if key in wanted]
    if not found:
        return 0
    passed = found[-1] + 1
    skipped = position.skipped + passed - len(found)
    _pass(txn, queue, name, position._replace(skipped=skipped), keys[:passed], now, position)
    return len(found)


def come(txn: Txn, queue: Tables, name: str) -> int:
    """Return the number up to which a reader has passed all items."""
    passed = reader_records.position(txn, queue, name).passed
    return max(0, _format.seq_of(passed) + 1)


def lag(txn: Txn, queue: Tables, name: str) -> int:
    """Return the number of items that a reader has not passed."""
    return fifo.count_after(txn, queue, reader_records.position(txn, queue, name).passed)


def stats(txn: Txn, queue: Tables) -> list[ReaderStats]:
    """Return the figures of all readers, by name."""
    if not _format.flags(queue_record(txn, queue)) & READERS:
        return []
    skips = reader_records.skips(txn, queue)
    return [stats_of(txn, queue, name, skips) for name in reader_records.names(txn, queue)]


def stats_of(txn: Txn, queue: Tables, name: str, skips: Sequence[tuple[bytes, int]] | None = None) -> ReaderStats:
    """Return the figures of a reader; ``skips``: those of the queue, if known."""
    skips = reader_records.skips(txn, queue) if skips is None else skips
    position = reader_records.position(txn, queue, name)
    keys = _next_keys(txn, queue, position, 1)
    seq = _format.seq_of(keys[0]) if keys else fifo.bounds(txn, queue).tail - _format.BASE
    behind = fifo.count_after(txn, queue, position.passed)
    return ReaderStats(name, seq, behind, reader_records.skipped(position, skips), position.seen / 1e9)


# --- places


def _passed(txn: Txn, queue: Tables, where: int | str) -> bytes:
    """Return the key that a reader has passed if it begins at a number, or at an end."""
    if where == OLDEST:
        return BEFORE_ALL
    number = fifo.bounds(txn, queue).tail if where == NEWEST else int(where) + _format.BASE
    return pack(number - 1)


def _next(passed: bytes) -> bytes:
    """Return the first key behind one."""
    return passed + b"\0"


def _next_keys(txn: Txn, queue: Tables, position: Position, n: int) -> list[bytes]:
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(_next(position.passed)):
            return []
        return list(islice(cursor.iternext(values=False), n))


def _pass(
    txn: Txn,
    queue: Tables,
    name: str,
    before: Position,
    keys: Sequence[bytes],
    now: int,
    noted: Position | None = None,
) -> Move:
    """Move a reader past items; ``noted``: its position on disk, if ``before`` differs."""
    lost = len(_leased_between(txn, queue, before.passed, keys[-1]))
    after = Position(keys[-1], before.skipped + lost, now)
    reader_records.set_position(txn, queue, name, noted or before, after)
    notes = _notes(txn, queue, keys)
    left = _between(txn, queue, keys[0], keys[-1]) if retention.trim(txn, queue, now) else keys
    gone = len(keys) - len(left)
    return Move(name, before, after, len(keys), gone, notes[:gone])


def _notes(txn: Txn, queue: Tables, keys: Sequence[bytes]) -> list[_format.Note]:
    if not fifo.numbers(txn, queue).noted:
        return []
    return [item_notes.get(txn, queue, key) for key in keys]


def _between(txn: Txn, queue: Tables, first: bytes, last: bytes) -> Sequence[bytes]:
    """Return the keys of the items from one key to another."""
    with txn.cursor(queue.items) as cursor:
        if not cursor.set_range(first):
            return []
        return list(takewhile(lambda key: key <= last, cursor.iternext(values=False)))


def _leased_between(txn: Txn, queue: Tables, passed: bytes, last: bytes) -> list[bytes]:
    """Return the keys of the leased items behind one key and before another."""
    if not fifo.numbers(txn, queue).leased:
        return []
    found = (key[-8:] for key in weighed_records.keys(txn, queue.away, away(queue.name, "leased"), _next(passed)))
    return list(takewhile(lambda key: key < last, found))
