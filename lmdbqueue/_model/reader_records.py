"""The positions of a queue's named readers, and the limits of retention.

Owns: the records of readers, their index, the record of retention. Law: a reader counts each item that leaves before it
has passed it. Must not know: the order of items, when a reader moves, clocks.

A reader has *passed* a key and all before it; it next reads the first item behind that. Each reader has a record in
META, and an entry in AWAY, ``passed`` with the key and its name, so that the last reader is found immediately.

An item that leaves is counted once, however many readers have not passed it: under ``skips``, in AWAY, at the position
of the foremost of these readers. The count there applies to all readers that have passed at most this position. So the
record of a reader contains what it skipped less the sum of ``skips`` from its position on; a move adds the counts that
it leaves behind (``set_position``), and counts that no longer apply to any reader are removed. None of this is in the
record of the queue, which the caller that removes an item may be about to write.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError, GoneError
from lmdbqueue._base.format import BEFORE_ALL, READERS, RETAINED, SIZED, Position, Retention, away, pack, unpack
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import weighed_records


def names(txn: Txn, queue: Tables) -> list[str]:
    """Return the names of all readers, in order."""
    prefix = _key(queue, "")
    return [key[len(prefix) :].decode() for key in weighed_records.keys(txn, queue.meta, prefix)]


def exists(txn: Txn, queue: Tables, name: str) -> bool:
    """Return whether there is such a reader."""
    return txn.get(_key(queue, name), db=queue.meta) is not None


def position(txn: Txn, queue: Tables, name: str) -> Position:
    """Return the position of a reader. Raises ``GoneError``, ``CorruptQueueError``."""
    key = _key(queue, name)
    value = txn.get(key, db=queue.meta)
    if value is None:
        raise GoneError(queue.generation.directory, queue.name, name)
    data = weighed_records.opened(queue, key, value, _format.POSITION.size)
    if data is None:
        raise CorruptQueueError(
            queue.generation.path, f"the record of the reader {name!r} of queue {queue.name!r} is damaged"
        )
    return Position.unpack(data)


def set_position(txn: Txn, queue: Tables, name: str, before: Position | None, now: Position) -> None:
    """Write the position of a reader; ``before``: its old position, None for a new reader.

    ``now.skipped`` is the value for its old position; 0 for a new reader, which has skipped nothing.
    """
    skipped = now.skipped
    if before is None:
        skipped -= sum(n for _, n in skips(txn, queue, now.passed))
    elif before.passed < now.passed:
        skipped += sum(n for _, n in skips(txn, queue, before.passed, now.passed))
    elif before.passed > now.passed:
        skipped -= sum(n for _, n in skips(txn, queue, now.passed, before.passed))
    now = now._replace(skipped=skipped & _ALL)
    weighed_records.put_sealed(txn, queue, _key(queue, name), now.pack())
    if before is None or before.passed != now.passed:
        if before is not None:
            weighed_records.delete_index(txn, queue, _index(queue, before, name))
        weighed_records.put_index(txn, queue, _index(queue, now, name))
        _drop_skips(txn, queue)


def remove(txn: Txn, queue: Tables, name: str) -> bool:
    """Remove a reader, damaged or not; return whether it existed."""
    if not weighed_records.delete_sealed(txn, queue, _key(queue, name)):
        return False
    for key in list(weighed_records.keys(txn, queue.away, away(queue.name, "passed"))):
        if key[len(away(queue.name, "passed")) + _format.KEY_SIZE :].decode() == name:
            weighed_records.delete_index(txn, queue, key)
    _drop_skips(txn, queue)
    return True


def last_passed(txn: Txn, queue: Tables) -> bytes | None:
    """Return the key that the last of all readers has passed, None if there are none."""
    prefix = away(queue.name, "passed")
    key = next(weighed_records.keys(txn, queue.away, prefix), None)
    return None if key is None else key[len(prefix) : len(prefix) + _format.KEY_SIZE]


def skip(txn: Txn, queue: Tables, keys: Iterable[bytes]) -> None:
    """Count, for each reader, leaving items that it has not passed."""
    if _flags(txn, queue) & READERS:
        _skip_each(txn, queue, sorted(keys))


def skip_waiting(txn: Txn, queue: Tables) -> None:
    """Count, for each reader, all waiting items that it has not passed, since they are about to leave."""
    if _flags(txn, queue) & READERS:
        with txn.cursor(queue.items) as cursor:
            gone = list(cursor.iternext(values=False))
        _skip_each(txn, queue, gone)


def _skip_each(txn: Txn, queue: Tables, gone: Sequence[bytes]) -> None:
    """Count keys, in order, for the readers that have not passed them.

    The cost grows with the number of readers' positions between the keys, not with that of readers.
    """
    prefix = away(queue.name, "passed")
    counts: dict[bytes, int] = {}
    left = len(gone)
    with txn.cursor(queue.away) as cursor:
        while left:
            found = cursor.prev() if cursor.set_range(prefix + gone[left - 1]) else cursor.last()
            if not found or not (foremost := cursor.key()).startswith(prefix):
                break
            passed = foremost[len(prefix) : len(prefix) + _format.KEY_SIZE]
            before = min(bisect_right(gone, passed, hi=left), left - 1)
            counts[passed] = counts.get(passed, 0) + left - before
            left = before
    for passed, n in counts.items():
        key = queue.skips + passed
        value = txn.get(key, db=queue.away)
        known = 0 if value is None else _counted(queue, key, value)
        weighed_records.put_away(txn, queue, key, pack(known + n & _ALL))


_ALL = (1 << 64) - 1
_NEGATIVE = 1 << 63


def skipped(position: Position, found: Iterable[tuple[bytes, int]]) -> int:
    """Return how many items a reader has skipped; ``found``: the result of ``skips``."""
    total = position.skipped + sum(n for at, n in found if at >= position.passed) & _ALL
    return total if total < _NEGATIVE else 0  # even after damage


def skips(txn: Txn, queue: Tables, begin: bytes = b"", end: bytes | None = None) -> list[tuple[bytes, int]]:
    """Return the positions from ``begin`` to before ``end`` at which skipped items are counted, with the counts."""
    found = []
    for key, value in weighed_records.entries(txn, queue.away, queue.skips, begin):
        passed = key[len(queue.skips) :]
        if end is not None and passed >= end:
            break
        found.append((passed, _counted(queue, key, value)))
    return found


def _counted(queue: Tables, key: bytes, value: bytes) -> int:
    """Return the count in a record of ``skips``, 0 for a damaged one."""
    data = weighed_records.opened(queue, key, value, _format.NUMBER.size)
    return 0 if data is None else unpack(data[: _format.NUMBER.size])


def _drop_skips(txn: Txn, queue: Tables) -> None:
    """Remove counts that no longer apply to any reader."""
    last = last_passed(txn, queue)
    while (key := next(weighed_records.keys(txn, queue.away, queue.skips), None)) is not None:
        if last is not None and key[len(queue.skips) :] >= last:
            return
        weighed_records.pop_away(txn, queue, key)


def unskip(txn: Txn, queue: Tables, keys: Iterable[bytes]) -> None:
    """Undo ``skip`` for items that wait again, for each reader that will read them."""
    if _flags(txn, queue) & READERS:
        back, found = sorted(keys), skips(txn, queue)
        for name in _behind(txn, queue, back[-1]) if back else ():
            with suppress(CorruptQueueError):
                before = position(txn, queue, name)
                n = min(skipped(before, found), len(back) - bisect_right(back, before.passed))
                set_position(txn, queue, name, before, before._replace(skipped=before.skipped - n))


def _behind(txn: Txn, queue: Tables, key: bytes) -> list[str]:
    """Return the names of the readers that have not passed a key."""
    prefix = away(queue.name, "passed")
    end = len(prefix) + _format.KEY_SIZE
    found = takewhile(lambda each: each[len(prefix) : end] < key, weighed_records.keys(txn, queue.away, prefix))
    return [each[end:].decode() for each in found]


def records(txn: Txn, queue: Tables) -> Iterator[tuple[bytes, bytes]]:
    """Yield the sealed records of META, except the state, with their seals."""
    for key in (*(_key(queue, name) for name in names(txn, queue)), queue.retain):
        value = txn.get(key, db=queue.meta)
        if value is not None:
            yield key, value


def _key(queue: Tables, name: str) -> bytes:
    return _format.record(queue.name, f"reader/{name}")


def _index(queue: Tables, position: Position, name: str) -> bytes:
    return away(queue.name, "passed", position.passed or BEFORE_ALL, name.encode())


def _flags(txn: Txn, queue: Tables) -> int:
    return _format.flags(weighed_records.queue_record(txn, queue))


# --- retention


def retention(txn: Txn, queue: Tables) -> tuple[Retention, int] | None:
    """Return the limits of retention and the bytes of the waiting payloads; None: no limit.

    A damaged record counts as none.
    """
    if not _flags(txn, queue) & RETAINED:
        return None
    value = txn.get(queue.retain, db=queue.meta)
    data = None if value is None else weighed_records.opened(queue, queue.retain, value, _format.RETENTION.size)
    return None if data is None else Retention.unpack(data)


def set_retention(txn: Txn, queue: Tables, now: Retention | None, held: int) -> None:
    """Write the limits of retention."""
    before = weighed_records.queue_record(txn, queue)
    flags = _format.flags(before) & ~(RETAINED | SIZED)
    if now is None:
        weighed_records.delete_sealed(txn, queue, queue.retain)
    else:
        weighed_records.put_sealed(txn, queue, queue.retain, now.pack(held))
        flags |= RETAINED | (SIZED if now.bytes is not None else 0)
    if flags != _format.flags(before):
        weighed_records.replace_queue(txn, queue, before, _format.with_flags(before, flags))


def weigh_down(txn: Txn, queue: Tables, size: int) -> None:
    """Add to the bytes of the waiting payloads, or subtract from them."""
    found = retention(txn, queue)
    if found is not None and found[0].bytes is not None:
        set_held(txn, queue, max(0, found[1] + size))


def set_held(txn: Txn, queue: Tables, held: int) -> None:
    """Record the bytes of the waiting payloads."""
    if (found := retention(txn, queue)) is not None:
        weighed_records.put_sealed(txn, queue, queue.retain, found[0].pack(held))
