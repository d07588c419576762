"""The records beside the items, and their weight, by which pages of another time are seen.

Owns: how META and AWAY are written, by every other file. Law: whatever changes there, the weight that is noted
with the transaction changes with it. Must not know: what the records mean.

Why. A power cut may leave transaction k torn: its meta page is on the disk, and some of its pages are not
(see ``_lmdb.generation``). What stands in the places of those then is what was there before: pages of k-3 or
earlier, which k has used again, often at the very same place in the same tree, since LMDB uses pages in
turn. Such a page fits: its number is right, its items have their checksums, and what it says was true
once. So each tree must be tied to its transaction by something that a page of another time cannot have:

- the record ``txn`` in META has the number of the transaction, which the meta page tells, too;
- it has the sum of the weights of all other records of META and AWAY, so that all of these are of that transaction;
- the records in META tell which items there are: head, tail and gaps (``_model.fifo``), and an item never changes.

A weight is the square of the CRC-32 of key and value, and the sum is modulo 2^64, so it costs a record that
changes one multiplication, and nothing where nothing changes. With ``checksum=False`` there is no weight, and
two flushes instead (see ``_lmdb.generation``); with ``durability="off"`` there is none, since nothing is promised.
The indexes of leases are not weighed: they follow from the leases.
"""

from lmdbqueue import _format
from lmdbqueue._format import weigh, weigh_sealed
from lmdbqueue._lmdb.generation import Db, Tables, Txn


def put(txn: Txn, queue: Tables, key: bytes, value: bytes) -> None:
    """Write a record of META that is not sealed."""
    replace(txn, queue, key, txn.get(key, db=queue.meta) if queue.weighed else None, value)


def replace(txn: Txn, queue: Tables, key: bytes, before: bytes | None, value: bytes) -> None:
    """Do as ``put``, for who knows what is there."""
    if queue.weighed:
        queue.generation.weight += weigh(key, value) - (0 if before is None else weigh(key, before))
    txn.put(key, value, db=queue.meta)


def delete(txn: Txn, queue: Tables, key: bytes) -> bool:
    """Delete a record of META that is not sealed; tell whether it was there."""
    before = txn.pop(key, db=queue.meta)
    if before is not None and queue.weighed:
        queue.generation.weight -= weigh(key, before)
    return before is not None


def put_sealed(txn: Txn, queue: Tables, key: bytes, data: bytes) -> None:
    """Write a record of META that gets a seal."""
    _put_sealed(txn, queue, queue.meta, key, data)


def delete_sealed(txn: Txn, queue: Tables, key: bytes) -> bool:
    """Delete a record of META that has a seal; tell whether it was there."""
    return _pop_sealed(txn, queue, queue.meta, key) is not None


def put_away(txn: Txn, queue: Tables, key: bytes, data: bytes) -> None:
    """Write a record of AWAY, which gets a seal."""
    _put_sealed(txn, queue, queue.away, key, data)


def pop_away(txn: Txn, queue: Tables, key: bytes) -> bytes | None:
    """Delete a record of AWAY, and return it with its seal, None if it was not there."""
    return _pop_sealed(txn, queue, queue.away, key)


def add_away(txn: Txn, queue: Tables, records: list[tuple[bytes, bytes]]) -> None:
    """Write new records of AWAY, which get seals."""
    if queue.sealed:
        keys, values = zip(*records, strict=True)
        records = list(zip(keys, _format.seal_all(keys, values), strict=True))
    if queue.weighed:
        queue.generation.weight += sum(weigh_sealed(value) for _, value in records)
    with txn.cursor(queue.away) as cursor:
        cursor.putmulti(records)


def opened(queue: Tables, key: bytes, value: bytes) -> bytes | None:
    """Return what was written under a key with a seal, None if it is damaged."""
    if not queue.sealed:
        return value
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
