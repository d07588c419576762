"""Named readers: each reads the whole queue at its own pace. How one moves, and what goes when all have passed.

Owns: what a reader reads next, when an item is removed by itself. Law: a reader gets each item once, in the order of
the queue, or counts it as skipped; an item that all readers have passed goes with the move of the last of them, unless
it is retained. Must not know: connections, waiting, pickling.

A move locks the readers of its queue, looks again, in one snapshot, at what is next and what is leased on the way,
writes where it is, and removes what all have passed. So moves of the readers of one queue take turns; who only looks
waits for nobody.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._format import Retention
from lmdbqueue._values import NEWEST, OLDEST, Entry, ReaderStats
from lmdbqueue.postgres import _items, _positions
from lmdbqueue.postgres._items import STATUS, Apart, Appended, Found, Place
from lmdbqueue.postgres._positions import NOTHING, Reach, Where
from lmdbqueue.postgres._session import Step

_PASSED: Final = "SELECT due, seq FROM {readers} WHERE queue = %(queue)s AND name = %(name)s"
_BEHIND: Final = (
    "queue = %(queue)s AND state = 'waiting' AND (due, seq) > ((SELECT due FROM mine), (SELECT seq FROM mine))"
)
_FIRST: Final = (
    "WITH mine AS MATERIALIZED ("
    + _PASSED
    + ") (SELECT payload, seq, due FROM {items} WHERE "
    + _BEHIND
    + " ORDER BY due, seq LIMIT %(n)s) UNION ALL "
    + STATUS
    + " AND EXISTS (SELECT FROM mine)"
)
# What is next, and how much is leased before the last of it
_NEXT: Final = (
    "WITH mine AS MATERIALIZED ("
    + _PASSED
    + "), next AS MATERIALIZED (SELECT due, seq FROM {items} WHERE "
    + _BEHIND
    + """
    AND (due, seq) <= (%(due)s, %(seq)s) ORDER BY due, seq LIMIT %(n)s)
SELECT due, seq, 0::bigint FROM next
UNION ALL SELECT NULL, NULL, count(*) FROM {items}
WHERE lease = ANY(ARRAY(SELECT token FROM {leases} WHERE queue = %(queue)s))
AND (due, seq) > ((SELECT due FROM mine), (SELECT seq FROM mine))
AND (due, seq) < (SELECT due, seq FROM next ORDER BY due DESC, seq DESC LIMIT 1)
"""
)
# What lags is counted on the shorter side, by numbers: who is far behind has little before it
_STATS: Final = """
SELECT r.name, coalesce((
        SELECT seq FROM {items} WHERE queue = q.id AND state = 'waiting' AND (due, seq) > (r.due, r.seq)
        ORDER BY due, seq LIMIT 1), q.tail),
    CASE WHEN r.seq - coalesce((SELECT seq FROM {items} WHERE queue = q.id AND state = 'waiting'
                                ORDER BY due, seq LIMIT 1), q.tail) < q.tail - r.seq
    THEN q.tail - q.taken + %(here)s - coalesce((SELECT sum(taken) FROM {counts} WHERE queue = q.id), 0)::bigint
        - (SELECT count(*) FROM {items} WHERE queue = q.id AND state = 'waiting' AND (due, seq) <= (r.due, r.seq))
    ELSE (SELECT count(*) FROM {items} WHERE queue = q.id AND state = 'waiting' AND (due, seq) > (r.due, r.seq))
    END, r.skipped, extract(epoch FROM r.seen)::float8
FROM {readers} AS r JOIN {queues} AS q ON q.id = r.queue
WHERE r.queue = %(queue)s AND (%(name)s::text IS NULL OR r.name = %(name)s) ORDER BY r.name
"""
_THERE: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state IN ('waiting', 'leased')
AND (due, seq) > (%(due)s, %(seq)s) AND (due, seq) <= (%(last_due)s, %(last)s)
"""
_END: Final[Where] = ((1 << 63) - 1, (1 << 63) - 1)  # behind all items


class Move(NamedTuple):
    """What a reader passed at once."""

    reader: str
    before: Where
    after: Where
    number: int  # of the reader's moves
    passed: int = 0  # items
    gone: Sequence[int] = ()  # numbers of what left the queue with it


# --- looking


def first(step: Step, place: Place, name: str, n: int, *, deaths: bool) -> Found:
    """Return the next ``n`` entries of a reader; it is not there if the reader is not."""
    return _items.seen(step.execute(_FIRST, queue=place.id, name=name, n=n, deaths=deaths).fetchall())


def stats(step: Step, place: Place, name: str | None) -> list[ReaderStats]:
    """Return what is known of a reader, None for all, by their names."""
    here = step.counts.get(place.id, {}).get("waiting", 0)
    return [ReaderStats(*row) for row in step.execute(_STATS, queue=place.id, name=name, here=here).fetchall()]


# --- moving


def create(step: Step, place: Place, name: str, where: int | str) -> bool | None:
    """Make a reader unless it is there; tell whether it was made, None if the queue is gone."""
    return _positions.add(step, place.id, name, _number(where))


def drop(step: Step, place: Place, name: str) -> bool:
    """Remove a reader, and what only it had not passed; tell whether it was there."""
    was_there = _positions.remove(step, place.id, name)
    if was_there:
        trim(step, place, _positions.lock(step, place.id), _positions.retention(step, place.id))
    return was_there


def seek(step: Step, place: Place, name: str, where: int | str) -> int | None:
    """Let a reader go on from another place; return 0, None if it is gone."""
    readers = _positions.lock(step, place.id)
    if name not in readers:
        return None
    number = _number(where)
    passed = _positions.before(_items.tail(step, place) if number is None else number)
    _positions.put(step, place.id, name, passed)
    trim(step, place, {**readers, name: passed}, _positions.retention(step, place.id))
    return 0


def advance(step: Step, place: Place, name: str, keys: Sequence[bytes]) -> Move | None:
    """Let a reader pass its next items if they are just those of ``keys``, else nothing. None: the reader is gone."""
    return _move(step, place, name, len(keys), list(map(_items.where, keys)))


def delete(step: Step, place: Place, name: str, n: int) -> int | None:
    """Let a reader pass its next ``n`` items, or as many as there are; return how many, None if it is gone."""
    move = _move(step, place, name, n, None)
    return None if move is None else move.passed


def retreat(step: Step, place: Place, move: Move, entries: Sequence[Entry]) -> bool | None:
    """Undo a move past ``entries`` if it is the reader's last; tell if so, None if the reader is gone.

    What left with it is put back.
    """
    _items.is_followed(step, place)  # the queue's row is locked before its readers
    rows = step.execute(_positions.LOCK, queue=place.id).fetchall()
    number = _positions.moves(rows, move.reader)
    if number != move.number:
        return None if number is None else False
    if back := [entry for entry in entries if _format.number(entry[0]) in move.gone]:
        _items.put_back(step, place, back)
    (due, seq), (last_due, last) = move.before, move.after
    between = step.execute(_THERE, queue=place.id, due=due, seq=seq, last_due=last_due, last=last).fetchall()
    there = {seq for (seq,) in between}
    known = {_format.number(key) for key, _ in entries}
    lost = len(known - there) - len(there - known)  # left since; will be met again
    _positions.put(step, place.id, move.reader, move.before, lost)
    readers = {**_positions.places(rows), move.reader: move.before}
    trim(step, place, readers, _positions.retention(step, place.id))
    return True


def _move(step: Step, place: Place, name: str, n: int, wanted: list[Where] | None) -> Move | None:
    due, seq = wanted[-1] if wanted else _END
    locked = step.execute(_positions.LOCK, queue=place.id)
    looked = step.execute(_NEXT, queue=place.id, name=name, n=n, due=due, seq=seq)
    kept = step.execute(_positions.RETENTION, queue=place.id)
    rows = locked.fetchall()
    number = _positions.moves(rows, name)
    if number is None:
        return None
    readers = _positions.places(rows)
    *next_, (_, _, leased) = looked.fetchall()
    found = [(due, seq) for due, seq, _ in next_]
    if not found or (wanted is not None and found != wanted):
        return Move(name, readers[name], readers[name], number)
    _positions.put(step, place.id, name, found[-1], leased)
    gone = trim(step, place, {**readers, name: found[-1]}, _positions.reach(kept.fetchall()))
    return Move(name, readers[name], found[-1], number + 1, len(found), gone)


def _number(where: int | str) -> int | None:
    """Return the number at which a reader begins, None for the tail."""
    return None if where == NEWEST else 0 if where == OLDEST else int(where)


# --- what goes by itself


def retain(step: Step, place: Place, now: Retention | None) -> bool:
    """Set what is kept, whoever has passed it, and beyond which nothing is kept; tell whether the queue is there."""
    is_there = _positions.set_retention(step, place.id, now)
    if is_there:
        trim(step, place, _positions.lock(step, place.id), _positions.retention(step, place.id))
    return is_there


def push(step: Step, place: Place, payloads: Sequence[bytes], apart: Apart) -> list[int] | None:
    """Do as ``_items.append``, and remove what is not retained any more; return the numbers."""
    what = _items.append(step, place, payloads, apart)
    return None if what is None else _appended(step, place, what)


def move(step: Step, place: Place, target: Place, n: int, maxsize: int) -> int | None:
    """Do as ``_items.move``, and remove what is not retained any more; return how many items went."""
    what = _items.move(step, place, target, n, maxsize)
    return None if what is None else len(_appended(step, target, what))


def come_due(step: Step, place: Place) -> int:
    """Let some items wait whose time has come, beside readers where all of them find it; return how many."""
    if not _items.is_followed(step, place):
        return _items.come_due(step, place)
    return len(_appended(step, place, _items.come_last(step, place)))


def _appended(step: Step, place: Place, what: Appended) -> list[int]:
    if what.is_kept:
        kept = _positions.retention(step, place.id)
        assert kept is not None  # the queue's row is locked
        _positions.mark(step, place.id, kept, what.first, what.sizes)
        number = _positions.beyond(step, place.id, kept)
        _trim_beyond(step, place, kept, number)
        _positions.forget(step, place.id, number)
    return what.numbers


def trim(step: Step, place: Place, readers: dict[str, Where], kept: Reach | None) -> list[int]:
    """Remove what nobody needs any more; return the numbers of what went. ``readers``: where they are, locked."""
    if kept is not None:
        return _trim_beyond(step, place, kept, _positions.beyond(step, place.id, kept))
    if readers and (passed := min(readers.values())) != NOTHING:
        return _items.trim(step, place, passed, is_read=True)
    return []


def _trim_beyond(step: Step, place: Place, kept: Reach, number: int) -> list[int]:
    """Remove what is more than what is kept: all before ``number`` is too old, or too much."""
    last = _positions.before(number)
    if kept.items is not None and (over := _items.length(step, place) - kept.items) > 0:
        last = max(last, _items.nth(step, place, over - 1))
    return [] if last == NOTHING else _items.trim(step, place, last, is_read=False)
