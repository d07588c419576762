"""Where the named readers of a queue are, and how much of it is kept for them.

Owns: the records ``readers`` and ``retain``. Law: a reader that loses an item which it has not passed
counts it. Must not know: the order of items, when a reader moves, clocks.

A reader has *passed* a place and all before it; what it reads next is the first item behind that. A damaged
record of readers never stops who removes: what they lose is not counted then, and the readers say so.
"""

from collections.abc import Callable, Iterable

from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._format import Position, Retention
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import weighed_records


def readers(txn: Txn, queue: Tables) -> dict[str, Position]:
    """Return the readers by their names. Raises ``CorruptQueueError``."""
    value = txn.get(queue.readers, db=queue.meta)
    if value is None:
        return {}
    data = weighed_records.opened(queue, queue.readers, value)
    if data is None:
        raise CorruptQueueError(queue.generation.path, f"the record of the readers of queue {queue.name!r} is damaged")
    return Position.unpack_all(data)


def set_readers(txn: Txn, queue: Tables, now: dict[str, Position]) -> None:
    """Write the readers down."""
    if now:
        weighed_records.put_sealed(txn, queue, queue.readers, Position.pack_all(now))
    else:
        weighed_records.delete_sealed(txn, queue, queue.readers)


def skip(txn: Txn, queue: Tables, places: Iterable[bytes]) -> None:
    """Count, for each reader, items that leave and that it has not passed."""
    if txn.get(queue.readers, db=queue.meta) is not None:
        gone = list(places)
        skip_each(txn, queue, lambda position: sum(place > position.passed for place in gone))


def skip_each(txn: Txn, queue: Tables, lost: Callable[[Position], int]) -> None:
    """Count what each reader loses."""
    try:
        before = readers(txn, queue)
    except CorruptQueueError:
        return
    now = {name: each._replace(skipped=each.skipped + lost(each)) for name, each in before.items()}
    if now != before:
        set_readers(txn, queue, now)


def records(txn: Txn, queue: Tables) -> list[tuple[bytes, bytes]]:
    """Return the records of META that are sealed, but for the state, with their seals."""
    keys = (queue.readers, queue.retain, queue.times)
    return [(key, value) for key in keys if (value := txn.get(key, db=queue.meta)) is not None]


# --- what is kept


def retention(txn: Txn, queue: Tables) -> Retention | None:
    """Return what is kept whoever has passed it, and beyond which nothing is kept; None: what somebody has not passed.

    A damaged record counts as none.
    """
    value = txn.get(queue.retain, db=queue.meta)
    data = None if value is None else weighed_records.opened(queue, queue.retain, value)
    return None if data is None else Retention.unpack(data)


def set_retention(txn: Txn, queue: Tables, now: Retention | None) -> bool:
    """Write down what is kept; tell whether that is another than before."""
    if now == retention(txn, queue):
        return False
    if now is None:
        weighed_records.delete_sealed(txn, queue, queue.retain)
    else:
        weighed_records.put_sealed(txn, queue, queue.retain, now.pack())
    return True
