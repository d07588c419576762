"""Where the named readers of a queue are, and how much of it is kept for them.

Owns: the records of readers, their index, the record of what is retained. Law: a reader that loses an item which it has
not passed counts it. Must not know: the order of items, when a reader moves, clocks.

A reader has *passed* a key and all before it; what it reads next is the first item behind that. Each has a record of
its own in META, and an entry in AWAY, ``passed`` with the key and its name, so that the last of them is found at once.
A damaged record never stops a removal: what that reader loses is not counted then, and the reader says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError, GoneError
from lmdbqueue._format import BEFORE_ALL, READERS, RETAINED, SIZED, Position, Retention, away
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._model import lease_records, weighed_records


def names(txn: Txn, queue: Tables) -> list[str]:
    """Return the names of all readers, in order."""
    prefix = _key(queue, "")
    found = []
    with txn.cursor(queue.meta) as cursor:
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    break
                found.append(key[len(prefix) :].decode())
    return found


def exists(txn: Txn, queue: Tables, name: str) -> bool:
    """Return whether there is such a reader."""
    return txn.get(_key(queue, name), db=queue.meta) is not None


def position(txn: Txn, queue: Tables, name: str) -> Position:
    """Return where a reader is. Raises ``GoneError``, ``CorruptQueueError``."""
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
    """Write down where a reader is; ``before``: where it was, None for a new one."""
    weighed_records.put_sealed(txn, queue, _key(queue, name), now.pack())
    if before is None or before.passed != now.passed:
        if before is not None:
            weighed_records.delete_index(txn, queue, _index(queue, before, name))
        weighed_records.put_index(txn, queue, _index(queue, now, name))


def remove(txn: Txn, queue: Tables, name: str) -> bool:
    """Remove a reader, damaged or not; return whether it was there."""
    if not weighed_records.delete_sealed(txn, queue, _key(queue, name)):
        return False
    for key in list(lease_records.keys(txn, queue, away(queue.name, "passed"))):
        if key[len(away(queue.name, "passed")) + _format.KEY_SIZE :].decode() == name:
            weighed_records.delete_index(txn, queue, key)
    return True


def last_passed(txn: Txn, queue: Tables) -> bytes | None:
    """Return what the last of all readers has passed, None if there are none."""
    prefix = away(queue.name, "passed")
    key = next(lease_records.keys(txn, queue, prefix), None)
    return None if key is None else key[len(prefix) : len(prefix) + _format.KEY_SIZE]


def skip(txn: Txn, queue: Tables, keys: Iterable[bytes]) -> None:
    """Count, for each reader, items that leave and that it has not passed."""
    if _flags(txn, queue) & READERS:
        _skip_each(txn, queue, sorted(keys))


def skip_waiting(txn: Txn, queue: Tables) -> None:
    """Count, for each reader, all items that wait and that it has not passed: they are about to leave."""
    if _flags(txn, queue) & READERS:
        with txn.cursor(queue.items) as cursor:
            gone = list(cursor.iternext(values=False))
        _skip_each(txn, queue, gone)


def _skip_each(txn: Txn, queue: Tables, gone: Sequence[bytes]) -> None:
    """Count keys, which are in order, for the readers that have not passed them; no other reader is looked at."""
    for name in _behind(txn, queue, gone[-1]) if gone else ():
        try:
            before = position(txn, queue, name)
        except CorruptQueueError:
            continue
        if n := len(gone) - bisect_right(gone, before.passed):
            set_position(txn, queue, name, before, before._replace(skipped=before.skipped + n))


def _behind(txn: Txn, queue: Tables, key: bytes) -> list[str]:
    """Return the names of the readers that have not passed a key."""
    prefix = away(queue.name, "passed")
    end = len(prefix) + _format.KEY_SIZE
    found = takewhile(lambda each: each[len(prefix) : end] < key, lease_records.keys(txn, queue, prefix))
    return [each[end:].decode() for each in found]


def records(txn: Txn, queue: Tables) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of META that are sealed, but for the state, with their seals."""
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


# --- what is kept


def retention(txn: Txn, queue: Tables) -> tuple[Retention, int] | None:
    """Return what is retained, read or not, and the bytes of payloads that wait; None: no limit.

    A damaged record counts as none.
    """
    if not _flags(txn, queue) & RETAINED:
        return None
    value = txn.get(queue.retain, db=queue.meta)
    data = None if value is None else weighed_records.opened(queue, queue.retain, value, _format.RETENTION.size)
    return None if data is None else Retention.unpack(data)


def set_retention(txn: Txn, queue: Tables, now: Retention | None, held: int) -> None:
    """Write down what is kept."""
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
    """Add to the bytes of payloads that wait, or subtract from them."""
    found = retention(txn, queue)
    if found is not None and found[0].bytes is not None:
        set_held(txn, queue, max(0, found[1] + size))


def set_held(txn: Txn, queue: Tables, held: int) -> None:
    """Note how many bytes of payloads wait."""
    if (found := retention(txn, queue)) is not None:
        weighed_records.put_sealed(txn, queue, queue.retain, found[0].pack(held))
