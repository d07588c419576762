"""The records beside the items, their weight, and the weight of the items that a transaction adds.

Owns: how all other files write META and AWAY. Law: with every change there, the weight recorded with the transaction
changes accordingly. Must not know: what the records mean.

Why. A power cut may leave transaction k torn: its meta page is on the disk, and some of its pages are not
(see ``_lmdb.durability``). In the places of the missing pages, the old content shows: pages of k-3 or earlier, of
another queue, or of an attempt at k that was killed before it was committed. Such a page looks valid: its number is
right, its items have their checksums, and its content was true once, or might have been. So each tree is tied to its
transaction by something that a page of another time cannot have:

- the record ``txn`` in META has the number of the transaction, which the meta page has, too;
- it has the sum of the weights of all other records of META and AWAY, so that all of these are of that transaction;
- it has the *content weight*: the sum of the weights of the items that this transaction added to any queue and that
  exist at its end, except those that existed under the same key at its beginning;
- the records in META determine which keys have an item: head, tail, skipped and returned ones (``fifo``).

A weight is the square of a CRC-32: of key and value for a record, the seal itself for an item, since that covers key,
value and salt. A sealed record weighs its seal and, in addition, the four bytes before it: a record of AWAY may end in
an item, which ends in a CRC-32, too, and a CRC-32 over that is the same for all items of a length. Sums are modulo
2^64. With ``checksum=False`` there is no weight, and two flushes instead (see ``_lmdb.durability``); with
``durability="off"`` there is none, since nothing is promised. With ``durability="interval"`` the content weight is a
running sum (``_lmdb.content.Running``).
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import GoneError
from lmdbqueue._base.format import weigh, weigh_sealed
from lmdbqueue._base.values import Entry
from lmdbqueue._lmdb.snapshot import Db, Tables, Txn


def queue_record(txn: Txn, queue: Tables) -> bytes:
    """Return the record of a queue. Raises ``GoneError`` if it was dropped, even if another has its name now."""
    found = txn.get(queue.queue, db=queue.meta)
    if found is None or found[4:16] != queue.identity:
        raise GoneError(queue.generation.directory, queue.name)
    return found


def keys(txn: Txn, db: Db, prefix: bytes, behind: bytes = b"") -> Iterator[bytes]:
    """Yield the keys that begin with ``prefix``, from ``prefix + behind`` on."""
    with txn.cursor(db) as cursor:
        if cursor.set_range(prefix + behind):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    return
                yield key


def entries(txn: Txn, db: Db, prefix: bytes, first: bytes = b"") -> Iterator[Entry]:
    """Yield the records whose keys begin with ``prefix``, from ``prefix + first`` on."""
    with txn.cursor(db) as cursor:
        if cursor.set_range(prefix + first):
            for entry in cursor.iternext():
                if not entry[0].startswith(prefix):
                    return
                yield entry


def replace_queue(txn: Txn, queue: Tables, before: bytes, now: bytes) -> None:
    """Write the record of a queue, which was ``before``."""
    if queue.weighed:
        old, new = crc32(before, queue.seed), crc32(now, queue.seed)
        queue.generation.weight += new * new - old * old
    txn.put(queue.queue, now, db=queue.meta)


def put(txn: Txn, queue: Tables, key: bytes, value: bytes) -> None:
    """Write a record of META that is not sealed."""
    if queue.weighed:
        before = txn.get(key, db=queue.meta)
        queue.generation.weight += weigh(key, value) - (0 if before is None else weigh(key, before))
    txn.put(key, value, db=queue.meta)


def delete(txn: Txn, queue: Tables, key: bytes) -> bool:
    """Delete a record of META that is not sealed; return whether it existed."""
    before = txn.pop(key, db=queue.meta)
    if before is not None and queue.weighed:
        queue.generation.weight -= weigh(key, before)
    return before is not None


def put_sealed(txn: Txn, queue: Tables, key: bytes, data: bytes) -> None:
    """Write a record of META that gets a seal."""
    _put_sealed(txn, queue, queue.meta, key, data)


def delete_sealed(txn: Txn, queue: Tables, key: bytes) -> bool:
    """Delete a record of META that has a seal; return whether it existed."""
    return _pop_sealed(txn, queue, queue.meta, key) is not None


def put_away(txn: Txn, queue: Tables, key: bytes, data: bytes) -> None:
    """Write a record of AWAY, which gets a seal."""
    _put_sealed(txn, queue, queue.away, key, data)


def pop_away(txn: Txn, queue: Tables, key: bytes) -> bytes | None:
    """Delete a record of AWAY, and return it with its seal, None if there was none."""
    return _pop_sealed(txn, queue, queue.away, key)


def restore_away(txn: Txn, queue: Tables, key: bytes, value: bytes) -> None:
    """Write a record of AWAY as ``pop_away`` returned it."""
    if queue.weighed:
        queue.generation.weight += weigh_sealed(value)
    txn.put(key, value, db=queue.away)


def add_away(txn: Txn, queue: Tables, records: list[tuple[bytes, bytes]]) -> None:
    """Write new records of AWAY, which get seals."""
    if queue.sealed:
        keys, data = zip(*records, strict=True)
        values, _ = _format.seal_all(keys, data)
        records = list(zip(keys, values, strict=True))
        if queue.weighed:
            queue.generation.weight += sum(map(weigh_sealed, values))
    with txn.cursor(queue.away) as cursor:
        cursor.putmulti(records)


def put_index(txn: Txn, queue: Tables, key: bytes, value: bytes = b"") -> bool:
    """Write an entry of an index of AWAY, which gets no seal; return whether it is new."""
    before = txn.get(key, db=queue.away)
    if queue.weighed:
        queue.generation.weight += weigh(key, value) - (0 if before is None else weigh(key, before))
    txn.put(key, value, db=queue.away)
    return before is None


def delete_index(txn: Txn, queue: Tables, key: bytes) -> bool:
    """Delete an entry of an index of AWAY; return whether it existed."""
    before = txn.pop(key, db=queue.away)
    if before is not None and queue.weighed:
        queue.generation.weight -= weigh(key, before)
    return before is not None


def opened(queue: Tables, key: bytes, value: bytes, least: int = 0) -> bytes | None:
    """Return the data sealed under a key, None if it is damaged; ``least``: its minimum size in bytes."""
    if not queue.sealed:
        return value if len(value) >= least else None
    return value[: -_format.SEAL_SIZE] if _format.is_intact(key, value) else None


def _put_sealed(txn: Txn, queue: Tables, db: Db, key: bytes, data: bytes) -> None:
    if queue.sealed:
        data = _format.seal(key, data)
    if queue.weighed:
        before = txn.get(key, db=db)
        queue.generation.weight += weigh_sealed(data) - (0 if before is None else weigh_sealed(before))
    txn.put(key, data, db=db)


def _pop_sealed(txn: Txn, queue: Tables, db: Db, key: bytes) -> bytes | None:
    value: bytes | None = txn.pop(key, db=db)
    if value is not None and queue.weighed:
        queue.generation.weight -= weigh_sealed(value)
    return value
