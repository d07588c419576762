"""The verbs as plain functions of a transaction: what a queue *is*.

Owns: the order of items, head and tail. Law: items leave in the order of their sequence numbers; a
number is given once, to the tail; a function looks before it writes. Must not know: opening,
committing, waiting, clocks, threads, pickling.

The records of a queue, and what holds of them between any two transactions:

- ``items``: sequence number -> value (the payload, sealed if the queue has checksums)
- ``tail``: the next number to be given, so also how many items were ever pushed
- ``head``: the number of the first item, or ``tail`` when there is none
- every number from ``head`` to below ``tail`` is in ``items``, but for those in ``missing``
- ``missing``: ranges of numbers whose items left before those before them, or were lost to damage

Functions that write return what they changed; an empty answer says that nothing was.
"""

from collections.abc import Iterable, Sequence
from itertools import islice, takewhile

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError, Full
from lmdbqueue._format import SEAL_SIZE, pack, seal, unpack
from lmdbqueue._generation import Db, Tables, Txn

_OVERHEAD = 32  # bytes of an item's node, key, seal and index
_PATHS = 1 << 17  # bytes of the pages above the leaves, and of the other trees, that are written anew

Entry = tuple[bytes, bytes]  # key and value of an item, as they stand on disk


def create(txn: Txn, queue: Tables) -> bool:
    """Make the records of an empty queue."""
    txn.put(queue.head, pack(0), db=queue.meta)
    txn.put(queue.tail, pack(0), db=queue.meta)
    return True


def bounds(txn: Txn, queue: Tables) -> tuple[int, int]:
    """Return head and tail."""
    return _number(txn, queue, queue.head), _number(txn, queue, queue.tail)


def missing(txn: Txn, queue: Tables) -> list[range]:
    """Return the numbers between head and tail that have no item."""
    lost = _format.unpack_ranges(txn.get(_format.record(queue.name, "missing"), b"", db=queue.meta))
    head = _number(txn, queue, queue.head)
    return [each for each in lost if each.start >= head]


def count(txn: Txn, queue: Tables) -> int:
    """Return how many items there are, from LMDB's own count."""
    return txn.stat(queue.items)["entries"]


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], maxsize: int, max_bytes: int | None) -> range:
    """Append the payloads, all or none; return their sequence numbers.

    Raises ``Full`` if more than ``maxsize`` items (0: no limit) would be in the queue, or more than
    ``max_bytes`` (None: no limit) of pages in use in its environment.
    """
    if maxsize > 0 and (waiting := count(txn, queue)) + len(payloads) > maxsize:
        raise Full("items", maxsize, waiting, len(payloads))
    if max_bytes is not None:
        used, added = queue.generation.used(txn), _space_for(payloads, txn.stat(queue.items)["psize"])
        if used + added > max_bytes:
            raise Full("bytes", max_bytes, used, added)
    tail = _number(txn, queue, queue.tail)
    given = range(tail, tail + len(payloads))
    if _append(txn, queue, given, payloads) != len(given):  # py-lmdb skips what is out of order without a word
        raise CorruptQueueError(queue.generation.path, f"queue {queue.name!r} has an item behind its tail, {tail}")
    txn.put(queue.tail, pack(given.stop), db=queue.meta)
    return given


def _append(txn: Txn, queue: Tables, numbers: range, payloads: Sequence[bytes]) -> int:
    """Put items behind all others; return how many it took."""
    if len(numbers) == 1:  # 2 us less than by a cursor
        key, payload = pack(numbers.start), payloads[0]
        return txn.put(key, seal(key, payload) if queue.sealed else payload, append=True, db=queue.items)
    keys = map(pack, numbers)
    entries: Iterable[Entry]
    if queue.sealed:
        entries = ((key, seal(key, payload)) for key, payload in zip(keys, payloads, strict=True))
    else:
        entries = zip(keys, payloads, strict=True)
    with txn.cursor(queue.items) as cursor:
        return cursor.putmulti(entries, append=True)[1]


def first(txn: Txn, queue: Tables, n: int) -> list[Entry]:
    """Return the first ``n`` entries, or as many as there are."""
    with txn.cursor(queue.items) as cursor:
        return list(islice(cursor.iternext(), n))


def since(txn: Txn, queue: Tables, seq: int, max_bytes: int) -> list[Entry]:
    """Return the entries from number ``seq`` on, at least one if there is one, up to about ``max_bytes`` of them."""
    entries = []
    with txn.cursor(queue.items) as cursor:
        if cursor.set_range(pack(seq)):
            for entry in cursor.iternext():
                entries.append(entry)
                max_bytes -= len(entry[1])
                if max_bytes <= 0:
                    break
    return entries


def remove(txn: Txn, queue: Tables, keys: list[bytes]) -> int:
    """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""
    return delete(txn, queue, len(keys)) if _are_first(txn, queue, keys) else 0


def _are_first(txn: Txn, queue: Tables, keys: list[bytes]) -> bool:
    with txn.cursor(queue.items) as cursor:
        return list(islice(cursor.iternext(values=False), len(keys))) == keys


def move(
    txn: Txn,
    queue: Tables,
    keys: list[bytes],
    payloads: Sequence[bytes],
    target: tuple[str, int, int | None],
) -> int:
    """Append the first items, if they are just those of ``keys``, to another queue; return how many went.

    ``payloads`` are theirs; ``target``: its name, ``maxsize`` and ``max_bytes``. Raises ``Full`` as ``push``.
    """
    name, maxsize, max_bytes = target
    if not _are_first(txn, queue, keys):
        return 0
    push(txn, queue.generation.table(name), payloads, maxsize, max_bytes)
    return delete(txn, queue, len(keys))


def put_back(txn: Txn, queue: Tables, entries: list[Entry]) -> bool:
    """Insert items that were removed, under the numbers that they had: they are the first again.

    What left after them and stays away leaves gaps, which are written down.
    """
    head, _ = bounds(txn, queue)
    with txn.cursor(queue.items) as cursor:
        for key, value in entries:
            if not cursor.put(key, value, overwrite=False):
                raise CorruptQueueError(queue.generation.path, f"item {unpack(key)}, which had left, is there")
        first = min(head, unpack(entries[0][0]))
        end = max([head, *(gap.stop for gap in missing(txn, queue))])
        gaps = []
        next_ = first
        cursor.set_key(pack(first))
        for key in cursor.iternext(values=False):
            seq = min(unpack(key), end)
            if seq > next_:
                gaps.append(range(next_, seq))
            next_ = seq + 1
            if next_ > end:
                break
        else:
            if next_ < end:
                gaps.append(range(next_, end))
    txn.put(queue.head, pack(first), db=queue.meta)
    txn.put(_format.record(queue.name, "missing"), _format.pack_ranges(gaps), db=queue.meta)
    return True


def delete(txn: Txn, queue: Tables, n: int) -> int:
    """Remove the first ``n`` items, or as many as there are; return how many went."""
    removed = 0
    with txn.cursor(queue.items) as cursor:
        if cursor.first():
            while removed < n and cursor.delete():
                removed += 1
        head = cursor.key()  # that of the item now under the cursor, empty behind the last
    if removed:
        txn.put(queue.head, head or pack(_number(txn, queue, queue.tail)), db=queue.meta)
    return removed


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all items; return how many went. The tail stays: no number is given twice."""
    removed = count(txn, queue)
    if removed:
        txn.drop(queue.items, delete=False)
        txn.put(queue.head, pack(_number(txn, queue, queue.tail)), db=queue.meta)
    return removed


def state(txn: Txn, queue: Tables) -> list[tuple[bytes, bytes]]:
    """Return the records of the queue's state, sealed if it has checksums."""
    prefix = _format.state_record(queue.name, "")
    with txn.cursor(queue.meta) as cursor:
        cursor.set_range(prefix)
        return list(takewhile(lambda record: record[0].startswith(prefix), cursor.iternext()))


def destroy(txn: Txn, queue: Tables) -> bool:
    """Remove the queue with all that belongs to it. Its handles are void then, so of a draft only."""
    txn.drop(queue.items)
    keys = [queue.head, queue.tail, _format.record(queue.name, "missing"), *(key for key, _ in state(txn, queue))]
    for key in keys:
        txn.delete(key, db=queue.meta)
    return True


def follow(txn: Txn, queue: Tables, copy_txn: Txn, copy: Tables) -> int:
    """Make an older copy of the queue hold the items that it holds now; return how many left and came.

    The records, such as the tail of the copy, are as they were: ``follow_records`` comes after it.
    """
    head, _ = bounds(txn, queue)
    known = _number(copy_txn, copy, copy.tail)
    changed = 0
    with copy_txn.cursor(copy.items) as cursor:
        while cursor.first() and cursor.key() < pack(head):
            cursor.delete()
            changed += 1
    with txn.cursor(queue.items) as cursor, copy_txn.cursor(copy.items) as target:
        if cursor.set_range(pack(known)):
            changed += target.putmulti(cursor.iternext(), append=True)[1]
    return changed


def follow_records(txn: Txn, meta: Db, copy_txn: Txn, copy: Db) -> int:
    """Make the records of an older copy those that are there now; return how many differed."""
    now, known = (
        {key: value for key, value in each.cursor(db) if key != _format.LAST_TXN}
        for each, db in ((txn, meta), (copy_txn, copy))
    )
    gone = known.keys() - now.keys()
    for key in gone:
        copy_txn.delete(key, db=copy)
    new = [record for record in now.items() if known.get(record[0]) != record[1]]
    for key, value in new:
        copy_txn.put(key, value, db=copy)
    return len(gone) + len(new)


def _number(txn: Txn, queue: Tables, key: bytes) -> int:
    value = txn.get(key, db=queue.meta)
    if value is None:
        raise CorruptQueueError(queue.generation.path, f"the record {key.decode()!r} is missing")
    return unpack(value)


def room_for(payloads: Sequence[bytes]) -> int:
    """Return the bytes of pages that the payloads take at the most, roughly: three times what they are.

    An item of up to half a page stands in a leaf, which may stay half empty; a longer one in pages of its
    own, of which the last may be nearly empty.
    """
    return 3 * (sum(map(len, payloads)) + _OVERHEAD * len(payloads)) + _PATHS


def _space_for(payloads: Sequence[bytes], page: int) -> int:
    """Return the bytes of pages that the payloads take at the most, appended to a tree of LMDB."""
    header, node = 16, 8 + 8 + 2  # of a page; of an item: its node's header, key, index in the page
    overflow = 0
    leaves = 0
    largest = 0
    for payload in payloads:
        size = node + SEAL_SIZE + len(payload) + 1  # rounded up to an even size
        if size > page // 2 - header:  # in pages of its own, with a page number in the leaf
            overflow += -(-(header + SEAL_SIZE + len(payload)) // page)
            size = node + 8
        leaves += size
        largest = max(largest, size)
    full = -(-leaves // (page - header - largest)) + 1  # a leaf is closed when the next does not fit
    branches = full // 50 + 3
    return (overflow + full + branches) * page
