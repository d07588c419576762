"""The verbs as plain functions of a transaction: what a queue *is*.

Owns: the order of items, head and tail. Law: items leave in the order of their sequence numbers; a
number is given once, to the tail; a function looks before it writes. Must not know: opening,
committing, waiting, clocks, threads, pickling.

The records of a queue, and what holds of them between any two transactions:

- ``items``: place -> value (the payload, sealed if the queue has checksums). A place is the sequence
  number, or, of an item that had a delay, longer, and before all numbers (``_format.place``)
- ``tail``: the next number to be given, so also how many items were ever pushed
- ``head``: every item from this number on has never left; those before it came back
- ``gaps``: how many numbers from ``head`` to below ``tail`` have no item, since they were given to items with
  a delay, or are of items that were lost to damage; all others have one. And by their weight, which numbers
  these are, and which items came back: so the records tell exactly which items there are (``_model.weighed_records``)

Functions that write return what they changed; an empty answer says that nothing was.
"""

from collections.abc import Sequence
from itertools import islice, takewhile

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError, Full
from lmdbqueue._format import SEAL_SIZE, Gaps, pack, seal, unpack, weigh
from lmdbqueue._lmdb.generation import Cursor, Tables, Txn
from lmdbqueue._model import item_notes, reader_records, weighed_records
from lmdbqueue._values import Entry

_PAGE = 4096  # bytes, of LMDB
_PAGE_HEADER = 16
_LARGE = _PAGE // 2 - _PAGE_HEADER  # bytes of an item that stands in pages of its own
_OVERHEAD = 32  # bytes of an item's node, key, seal and index
_FIRST = pack(0)
_NO_GAPS = Gaps()
_PATHS = 1 << 17  # bytes of the pages above the leaves, and of the other trees, that are written anew


def create(txn: Txn, queue: Tables) -> bool:
    """Make the records of an empty queue, or those of one that was made before there were leases what they are now."""
    if txn.get(queue.tail, db=queue.meta) is None:
        weighed_records.put(txn, queue, queue.head, pack(0))
        weighed_records.put(txn, queue, queue.tail, pack(0))
        return True
    if not is_of_before_leases(txn, queue):
        return False
    head = _head(txn, queue)
    weighed_records.put(txn, queue, queue.head, pack(head))
    with txn.cursor(queue.items) as cursor:
        returned = list(takewhile(lambda place: place < pack(head), cursor.iternext(values=False)))
    _set_gaps(txn, queue, Gaps(returned_weight=sum(map(weigh, returned))))
    return weighed_records.delete(txn, queue, _format.record(queue.name, "missing"))


def is_of_before_leases(txn: Txn, queue: Tables) -> bool:
    """Tell whether a queue has no gaps noted, but what was there before these."""
    return txn.get(_format.record(queue.name, "missing"), db=queue.meta) is not None


def bounds(txn: Txn, queue: Tables) -> tuple[int, int, int]:
    """Return head, tail, and how many numbers between them have no item."""
    return _head(txn, queue), _number(txn, queue, queue.tail), gaps(txn, queue).skipped


def _head(txn: Txn, queue: Tables) -> int:
    missing = txn.get(_format.record(queue.name, "missing"), db=queue.meta)  # until there were leases
    lost = [] if missing is None else _format.unpack_ranges(missing)
    return max([_number(txn, queue, queue.head), *(each.stop for each in lost)])


def gaps(txn: Txn, queue: Tables) -> Gaps:
    """Return how the items differ from the numbers between head and tail."""
    value = txn.get(queue.gaps, db=queue.meta)
    return _NO_GAPS if value is None else Gaps.unpack(value)


def _set_gaps(txn: Txn, queue: Tables, now: Gaps) -> None:
    if any(now):
        weighed_records.put(txn, queue, queue.gaps, now.pack())
    else:
        weighed_records.delete(txn, queue, queue.gaps)


def count(txn: Txn, queue: Tables) -> int:
    """Return how many items there are, from LMDB's own count."""
    return txn.stat(queue.items)["entries"]


def count_after(txn: Txn, queue: Tables, place: bytes) -> int:
    """Return how many items stand behind a place, b"" for all.

    By counting them, or those up to it, whichever are fewer, only if numbers have no item there.
    """
    if not place:
        return count(txn, queue)
    head, tail, skipped = bounds(txn, queue)
    if not skipped and len(place) == len(_FIRST) and place > _FIRST and (next_ := _format.number(place) + 1) >= head:
        return max(0, tail - next_)
    total = count(txn, queue)
    with txn.cursor(queue.items) as behind, txn.cursor(queue.items) as before:
        if not behind.set_range(place + b"\0"):
            return 0
        before.set_range(place + b"\0")
        if not before.prev():
            return total
        ahead = behind.iternext(values=False)
        pairs = sum(1 for _ in zip(before.iterprev(values=False), ahead, strict=False))
        return pairs if next(ahead, None) is None else total - pairs


def push(txn: Txn, queue: Tables, payloads: Sequence[bytes], maxsize: int, max_bytes: int | None) -> range:
    """Append the payloads, all or none; return their sequence numbers.

    Raises ``Full`` if more than ``maxsize`` items (0: no limit) would be in the queue, or more than
    ``max_bytes`` (None: no limit) of pages in use in its environment.
    """
    if maxsize > 0 or max_bytes is not None:
        refuse_full(txn, queue, payloads, maxsize, max_bytes)
    before = _record(txn, queue, queue.tail)
    tail = unpack(before)
    given = range(tail, tail + len(payloads))
    if _append(txn, queue, given, payloads) != len(given):  # py-lmdb skips what is out of order without a word
        raise CorruptQueueError(queue.generation.path, f"queue {queue.name!r} has an item behind its tail, {tail}")
    weighed_records.replace(txn, queue, queue.tail, before, pack(given.stop))
    return given


def refuse_full(txn: Txn, queue: Tables, payloads: Sequence[bytes], maxsize: int, max_bytes: int | None) -> None:
    """Raise ``Full`` if ``push`` has to."""
    if maxsize > 0 and (waiting := count(txn, queue)) + len(payloads) > maxsize:
        raise Full("items", maxsize, waiting, len(payloads))
    if max_bytes is not None:
        used, added = queue.generation.used(txn), _space_for(payloads, txn.stat(queue.items)["psize"])
        if used + added > max_bytes:
            raise Full("bytes", max_bytes, used, added)


def skip(txn: Txn, queue: Tables, n: int) -> range:
    """Give ``n`` numbers to items that do not wait here; return them."""
    tail = _number(txn, queue, queue.tail)
    given = range(tail, tail + n)
    weighed_records.put(txn, queue, queue.tail, pack(given.stop))
    before = gaps(txn, queue)
    weight = before.skipped_weight + sum(map(weigh, map(pack, given)))
    _set_gaps(txn, queue, before._replace(skipped=before.skipped + n, skipped_weight=weight))
    return given


def _append(txn: Txn, queue: Tables, numbers: range, payloads: Sequence[bytes]) -> int:
    """Put items behind all others; return how many it took."""
    if len(numbers) == 1:  # 2 us less than by a cursor
        key, payload = pack(numbers.start), payloads[0]
        return txn.put(key, seal(key, payload) if queue.sealed else payload, append=True, db=queue.items)
    keys = list(map(pack, numbers))
    values = _format.seal_all(keys, payloads) if queue.sealed else payloads
    with txn.cursor(queue.items) as cursor:
        return cursor.putmulti(zip(keys, values, strict=True), append=True)[1]


def first(txn: Txn, queue: Tables, n: int) -> list[Entry]:
    """Return the first ``n`` entries, or as many as there are."""
    with txn.cursor(queue.items) as cursor:
        return list(islice(cursor.iternext(), n))


def since(txn: Txn, queue: Tables, place: bytes, max_bytes: int) -> list[Entry]:
    """Return the entries behind ``place``, at least one if there is one, up to about ``max_bytes`` of them."""
    entries = []
    with txn.cursor(queue.items) as cursor:
        if cursor.set_range(place + b"\0"):
            for entry in cursor.iternext():
                entries.append(entry)
                max_bytes -= len(entry[1])
                if max_bytes <= 0:
                    break
    return entries


def remove(txn: Txn, queue: Tables, keys: list[bytes]) -> int:
    """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""
    if not take(txn, queue, keys):
        return 0
    _forget(txn, queue, keys)
    return len(keys)


def take(txn: Txn, queue: Tables, keys: list[bytes]) -> bool:
    """Take the first items out if they are just those of ``keys``, and leave what is known of them; tell if so."""
    if not keys:
        return False
    with txn.cursor(queue.items) as cursor:
        if list(islice(cursor.iternext(values=False), len(keys))) != keys:
            return False
        _take_first(txn, queue, keys, cursor)
    return True


def are_first(txn: Txn, queue: Tables, keys: list[bytes]) -> bool:
    """Tell whether the first items are just those of ``keys``."""
    with txn.cursor(queue.items) as cursor:
        return list(islice(cursor.iternext(values=False), len(keys))) == keys


def put_back(txn: Txn, queue: Tables, entries: list[Entry]) -> bool:
    """Insert items that were taken out at the places that they had: they come before all that never left."""
    before = gaps(txn, queue)
    returned = before.returned_weight + sum(weigh(place) for place, _ in entries)
    _set_gaps(txn, queue, before._replace(returned_weight=returned))
    with txn.cursor(queue.items) as cursor:
        for place, value in entries:
            if not cursor.put(place, value, overwrite=False):
                seq = _format.number(place)
                raise CorruptQueueError(queue.generation.path, f"item {seq}, which had left, is there")
    return True


def delete(txn: Txn, queue: Tables, n: int) -> int:
    """Remove the first ``n`` items, or as many as there are; return how many went."""
    if _is_plain(txn, queue):
        return _cut_off(txn, queue, min(n, count(txn, queue)))
    with txn.cursor(queue.items) as cursor:
        keys = list(islice(cursor.iternext(values=False), n))
        if keys:
            _take_first(txn, queue, keys, cursor)
    if keys:
        _forget(txn, queue, keys)
    return len(keys)


def _is_plain(txn: Txn, queue: Tables) -> bool:
    """Tell whether the items are just the numbers from head to tail, and nobody notes anything of one that leaves."""
    get, meta = txn.get, queue.meta
    return (
        get(queue.gaps, db=meta) is None and get(queue.counts, db=meta) is None and get(queue.readers, db=meta) is None
    )


def _cut_off(txn: Txn, queue: Tables, n: int) -> int:
    """Remove the first ``n`` items, which are there, of a queue that is plain: quicker, since no key is looked at."""
    with txn.cursor(queue.items) as cursor:
        cursor.first()
        for _ in range(n):
            cursor.delete()
        following = cursor.key()
    if n:
        head = _record(txn, queue, queue.head)
        tail = txn.get(queue.tail, db=queue.meta) or pack(unpack(head) + n)
        stop = following or tail  # which is n behind the head, unless something is lost or damaged
        stop = max(head, min(stop, tail)) if len(stop) == len(tail) else tail
        weighed_records.replace(txn, queue, queue.head, head, stop)
    return n


def _forget(txn: Txn, queue: Tables, keys: list[bytes]) -> None:
    """Note that items left for good."""
    item_notes.forget(txn, queue, keys)
    reader_records.skip(txn, queue, keys)


def _take_first(txn: Txn, queue: Tables, keys: list[bytes], cursor: Cursor) -> None:
    """Take out the first items, which are those of ``keys``, by a cursor, and move the head past them."""
    cursor.first()
    for _ in keys:
        cursor.delete()
    first = _record(txn, queue, queue.head)
    head = unpack(first)
    last = keys[-1] if len(keys[-1]) == len(first) else keys[0]  # item 0 stands before what was due
    stop = unpack(last) + 1 if len(last) == len(first) and last >= first else head  # else they had all come back
    second = keys[:2][-1]  # which was due if any was, and item 0 is there
    if stop - head != len(keys) or keys[0] != first or len(second) != len(first):  # else none had; none was skipped
        stop = min(stop, max(head, _number(txn, queue, queue.tail)))  # since a damaged place may be anywhere
        _pass(txn, queue, keys, range(head, stop))
    if stop != head:
        weighed_records.replace(txn, queue, queue.head, first, pack(stop))


def _pass(txn: Txn, queue: Tables, keys: list[bytes], passed: range) -> None:
    """Note that items are taken which came back, or behind numbers that were skipped; the head moves as far."""
    before = gaps(txn, queue)
    first = pack(passed.start)
    returned = [key for key in keys if len(key) > len(first) or key < first]
    skipped = before.skipped - (len(passed) - (len(keys) - len(returned)))
    weight = before.skipped_weight
    if skipped != before.skipped:
        weight -= sum(map(weigh, {*map(pack, passed)}.difference(keys)))
    now = Gaps(max(0, skipped), weight, before.returned_weight - sum(map(weigh, returned)))
    _set_gaps(txn, queue, now)


def clear(txn: Txn, queue: Tables) -> int:
    """Remove all items; return how many went. The tail stays: no number is given twice."""
    removed = count(txn, queue)
    if removed:
        reader_records.skip_each(txn, queue, lambda position: count_after(txn, queue, position.passed))
        txn.drop(queue.items, delete=False)
        weighed_records.put(txn, queue, queue.head, pack(_number(txn, queue, queue.tail)))
        _set_gaps(txn, queue, _NO_GAPS)
        item_notes.forget_all(txn, queue)
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
    before = queue.generation.weighed(txn)
    for db in (queue.meta, queue.away):
        if db is not None:
            with txn.cursor(db) as cursor:
                prefix = _format.record(queue.name, "")
                while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    cursor.delete()
    queue.generation.weight += queue.generation.weighed(txn) - before
    return True


def _number(txn: Txn, queue: Tables, key: bytes) -> int:
    return unpack(_record(txn, queue, key))


def _record(txn: Txn, queue: Tables, key: bytes) -> bytes:
    value = txn.get(key, db=queue.meta)
    if value is None:
        raise CorruptQueueError(queue.generation.path, f"the record {key.decode()!r} is missing")
    return value


def room_for(payloads: Sequence[bytes]) -> int:
    """Return the bytes of pages that the payloads take at the most, roughly: three times what they are.

    An item of up to half a page stands in a leaf, which may stay half empty; a longer one in pages of its
    own, of which the last may be nearly empty.
    """
    return 3 * (sum(map(len, payloads)) + _OVERHEAD * len(payloads)) + _PATHS


def room_of(size: int) -> int:
    """Return the bytes of pages that an item takes whose value has this size."""
    return size + _OVERHEAD if size < _LARGE else -(-(size + _PAGE_HEADER) // _PAGE) * _PAGE


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
