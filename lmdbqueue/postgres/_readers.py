"""Named readers, each of which reads the whole queue at its own pace: how one moves, and which items then leave.

Owns: what a reader reads next, when an item is removed without a call for it. Law: a reader gets each item once, in the
order of the queue, or counts it as skipped; an item that all readers have passed leaves with the move of the last of
them, unless it is retained. Must not know: connections, waiting, pickling.

A move locks the readers of its queue, reads again, in one snapshot, the next items and the leased ones on the way,
writes the new position, and removes items that all have passed. So moves of the readers of one queue take turns; mere
readings never wait.

**Behind all readers.** An item that a consumer had while all readers passed its place, and that it gives back (a nack,
the end of a lease, an undone pop, a dead letter that is requeued), would leave with the next of their moves, and nobody
would meet it. So it gets a number at the tail, and keeps all that is known of it:

====  ==========================================================================================================
step  in the transaction that gives it back
====  ==========================================================================================================
1     if the queue has readers, lock its tail, before any item; else the item keeps its place
2     let the item wait in its place: this locks its row, so a move passes over it, and does not remove it
3     lock the readers: who is moving has committed then, and who moves later waits, and then finds the item
4     if all have passed its place, give it the number of the tail
====  ==========================================================================================================

The first two are sent together with the third. A first reader that is created after 1 begins behind what was given
back, or before it, like one that is created after the commit: so 4 is left out, which would lock the tail in the other
order. Undone at any step, the item is held as before.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from lmdbqueue._base.format import Retention
from lmdbqueue._base.values import NEWEST, OLDEST, Entry, Push, Pushed, ReaderStats, Taken
from lmdbqueue.postgres import _items, _positions, _pushing, _removal, _taking
from lmdbqueue.postgres._items import LOOK, Found, Place
from lmdbqueue.postgres._positions import NOTHING, Reach
from lmdbqueue.postgres._pushing import Appended
from lmdbqueue.postgres._step import Step

# The time of its push tells an item from another of the same number, as after a failover between the look and the move
_SEEN: Final = "timestamptz_send(pushed_at)"
_PASSED: Final = "SELECT passed FROM {readers} WHERE queue = %(queue)s AND name = %(name)s"
_FIRST: Final = (
    "WITH "
    + LOOK
    + ", mine AS MATERIALIZED ("
    + _PASSED
    + """)
(SELECT payload, seq, """
    + _SEEN
    + """, NULL::boolean, NULL::boolean, NULL::boolean FROM {items}
WHERE queue = %(queue)s AND state = 0 AND seq > (SELECT passed FROM mine) ORDER BY seq LIMIT %(n)s)
UNION ALL """
    + "SELECT NULL, NULL, NULL, is_overdue, is_followed, is_awaited FROM look"
    + " WHERE EXISTS (SELECT FROM mine)"
)
# The next items, and the number of leased ones before the last of them
_NEXT: Final = (
    "WITH mine AS MATERIALIZED ("
    + _PASSED
    + """),
next AS MATERIALIZED (
    SELECT seq, pushed_at FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND seq > (SELECT passed FROM mine) AND seq <= %(last)s
    ORDER BY seq LIMIT %(n)s)
SELECT seq, """
    + _SEEN
    + """, 0::bigint FROM next
UNION ALL SELECT NULL, NULL, count(*) FROM {items}
WHERE queue = %(queue)s AND state = 1 AND seq > (SELECT passed FROM mine) AND seq < (SELECT max(seq) FROM next)
"""
)
# The lag is counted on the shorter side, by numbers: a reader far behind has few items before it
_STATS: Final = """
SELECT r.name, coalesce((
        SELECT seq FROM {items} WHERE queue = q.id AND state = 0 AND seq > r.passed ORDER BY seq LIMIT 1), t.next),
    CASE WHEN r.passed - coalesce((SELECT seq FROM {items} WHERE queue = q.id AND state = 0 ORDER BY seq LIMIT 1),
                                  t.next) < t.next - r.passed
    THEN q.waiting + %(here)s
        + coalesce((SELECT sum(waiting) FROM {ledger} WHERE queue = q.id AND NOT is_folded), 0)::bigint
        - (SELECT count(*) FROM {items} WHERE queue = q.id AND state = 0 AND seq <= r.passed)
    ELSE (SELECT count(*) FROM {items} WHERE queue = q.id AND state = 0 AND seq > r.passed)
    END, r.skipped, extract(epoch FROM r.seen)::float8
FROM {readers} AS r JOIN {queues} AS q ON q.id = r.queue,
LATERAL (SELECT next FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1) AS t
WHERE r.queue = %(queue)s AND (%(name)s::text IS NULL OR r.name = %(name)s) ORDER BY r.name
"""
_THERE: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq > %(seq)s AND seq <= %(last)s
UNION ALL
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq > %(seq)s AND seq <= %(last)s
"""
_END: Final = (1 << 63) - 1  # behind all items


class Move(NamedTuple):
    """One move of a reader."""

    reader: str
    before: int
    after: int
    number: int  # of the reader's moves
    passed: int = 0  # items
    gone: Mapping[int, Any] = {}  # numbers of the items that left the queue with it, with their notes


# --- reading


def first(step: Step, place: Place, name: str, n: int, *, deaths: bool) -> Found:
    """Return the next ``n`` entries of a reader, marked as missing if there is no such reader."""
    rows = step.execute(_FIRST, queue=place.id, name=name, n=n, deaths=deaths).fetchall()
    found = _items.seen([(payload, seq, *facts) for payload, seq, _, *facts in rows])
    entries = [(key + row[2], payload) for (key, payload), row in zip(found.entries, rows, strict=False)]
    return found._replace(entries=entries)


def stats(step: Step, place: Place, name: str | None) -> list[ReaderStats]:
    """Return the figures of a reader, None for all, ordered by name."""
    here = step.counts.get(place.id, {}).get("waiting", 0)
    return [ReaderStats(*row) for row in step.execute(_STATS, queue=place.id, name=name, here=here).fetchall()]


# --- moving


def create(step: Step, place: Place, name: str, where: int | str) -> bool | None:
    """Create a reader if it is missing; return whether it was created, None if the queue is gone.

    Raises ``OptionError`` if the order of the queue does not allow readers.
    """
    is_new = _positions.add(step, place.id, name, _number(where))
    if is_new:
        _positions.refuse_readers(step, place.id)
    return is_new


def drop(step: Step, place: Place, name: str) -> bool:
    """Remove a reader, and the items that only it had not passed; return whether it existed."""
    was_there = _positions.remove(step, place.id, name)
    if was_there:
        trim(step, place, _positions.lock(step, place.id), _positions.retention(step, place.id))
    return was_there


def seek(step: Step, place: Place, name: str, where: int | str) -> int | None:
    """Move a reader to another place; return 0, None if it is gone."""
    readers = _positions.lock(step, place.id)
    if name not in readers:
        return None
    number = _number(where)
    passed = _positions.before(_items.tail(step, place) if number is None else number)
    _positions.put(step, place.id, name, passed)
    trim(step, place, {**readers, name: passed}, _positions.retention(step, place.id))
    return 0


def advance(step: Step, place: Place, name: str, keys: Sequence[bytes]) -> Move | None:
    """Move a reader past its next items if their keys, as ``first`` returns them, are ``keys``, else do nothing.

    Returns None if it is gone.
    """
    return _move(step, place, name, len(keys), keys)


def delete(step: Step, place: Place, name: str, n: int) -> int | None:
    """Move a reader past at most its next ``n`` items; return their number, None if the reader is gone."""
    move = _move(step, place, name, n, None)
    return None if move is None else move.passed


def retreat(step: Step, place: Place, move: Move, entries: Sequence[Entry]) -> bool | None:
    """Undo a move past ``entries`` if it is the reader's last; return whether it was, None if the reader is gone.

    Items that left with it are put back.
    """
    _positions.lock_tail(step, place.id)  # before its readers
    rows = step.execute(_positions.LOCK, queue=place.id).fetchall()
    number = _positions.moves(rows, move.reader)
    if number != move.number:
        return None if number is None else False
    numbered = [(_items.number(entry[0]), entry) for entry in entries]
    if back := [Taken.of(entry, move.gone[seq]) for seq, entry in numbered if seq in move.gone]:
        _taking.put_back(step, place, back)
    between = step.execute(_THERE, queue=place.id, seq=move.before, last=move.after).fetchall()
    there = {seq for (seq,) in between}
    known = {_items.number(key) for key, _ in entries}
    lost = len(known - there) - len(there - known)  # left since; will be read again
    _positions.put(step, place.id, move.reader, move.before, lost)
    readers = {**_positions.places(rows), move.reader: move.before}
    trim(step, place, readers, _positions.retention(step, place.id))
    return True


def _move(step: Step, place: Place, name: str, n: int, wanted: Sequence[bytes] | None) -> Move | None:
    last = _items.number(wanted[-1]) if wanted else _END
    locked = step.execute(_positions.LOCK, queue=place.id)
    looked = step.execute(_NEXT, queue=place.id, name=name, n=n, last=last)
    kept = step.execute(_positions.RETENTION, queue=place.id)
    rows = locked.fetchall()
    number = _positions.moves(rows, name)
    if number is None:
        return None
    readers = _positions.places(rows)
    *next_, (_, _, leased) = looked.fetchall()
    found = [seq for seq, _, _ in next_]
    if not found or (wanted is not None and [_items.pack(seq) + seen for seq, seen, _ in next_] != wanted):
        return Move(name, readers[name], readers[name], number)
    _positions.put(step, place.id, name, found[-1], leased)
    gone = trim(step, place, {**readers, name: found[-1]}, _positions.reach(kept.fetchall()))
    return Move(name, readers[name], found[-1], number + 1, len(found), gone)


def _number(where: int | str) -> int | None:
    """Return the number at which a reader begins, None for the tail."""
    return None if where == NEWEST else 0 if where == OLDEST else int(where)


# --- items that leave by themselves


def retain(step: Step, place: Place, now: Retention | None) -> bool:
    """Set the limits up to which items are kept, read or not; return whether the queue exists."""
    is_there = _positions.set_retention(step, place.id, now)
    if is_there:
        trim(step, place, _positions.lock(step, place.id), _positions.retention(step, place.id))
    return is_there


def push_each(
    step: Step, place: Place, pushes: Sequence[tuple[Sequence[bytes], Push]], maxsize: int, *, buries: bool
) -> list[list[Pushed]] | None:
    """Like ``push``, for several pushes, one after another; None if the queue is gone."""
    outcomes = []
    for payloads, how in pushes:
        pushed = push(step, place, payloads, how, maxsize, buries=buries)
        if pushed is None:
            return None
        outcomes.append(pushed)
    return outcomes


def push(
    step: Step, place: Place, payloads: Sequence[bytes], how: Push, maxsize: int, *, buries: bool = False
) -> list[Pushed] | None:
    """Like ``_pushing.append``, and remove items that are no longer retained; return the outcome for each."""
    if how.keys and begin_trimming(step, place):
        _removal.expire_all(step, place, buries=buries)
        trim_kept(step, place)  # items that are too old release their keys
    what = _pushing.append(step, place, payloads, how, maxsize, buries=buries)
    return None if what is None else _appended(step, place, what, buries=buries)


def move(step: Step, place: Place, target: Place, n: int, maxsize: int, *, buries: bool) -> int | None:
    """Like ``_pushing.move``, and remove items that are no longer retained; return the number moved."""
    what = _pushing.move(step, place, target, n, maxsize)
    return None if what is None else len(_appended(step, target, what, buries=buries))


def come_due(step: Step, place: Place) -> int:
    """Move some due items to the queue, to the tail if it has readers; return their number."""
    if not _items.is_followed(step, place):
        return _pushing.come_due(step, place)
    what = _pushing.come_last(step, place)  # ``restore`` trims at its end
    return 0 if what is None else len(what.items)


def push_anew_behind(
    step: Step, place: Place, seqs: Sequence[int], rows: Sequence[tuple[str, int, int]]
) -> dict[int, int]:
    """Give those of these waiting items new numbers whose places all readers have passed; return the numbers of each.

    This transaction has made them wait. ``rows``: those of ``LOCK``.
    """
    if rows:
        passed = min(_positions.places(rows).values())
        if behind := [seq for seq in seqs if seq <= passed]:
            return _pushing.push_anew(step, place, behind)
    return {}


def _appended(step: Step, place: Place, what: Appended, *, buries: bool) -> list[Pushed]:
    if what.is_kept:
        _removal.expire_all(step, place, buries=buries)  # an expired item displaces none that is still wanted
    if what.is_kept and (kept := _positions.retention(step, place.id)) is not None:
        _trim_beyond(step, place, kept)
    return what.items


def put_back(step: Step, place: Place, entries: Sequence[Entry], *, buries: bool) -> None:
    """Undo a take, and remove items no longer retained; ``buries``: those expired by then become dead letters."""
    is_kept = begin_trimming(step, place)
    is_followed = _items.is_followed(step, place)
    if not is_kept and (is_followed or _taking.have_keys(entries)):
        _positions.lock_tail(step, place.id)  # so that nobody pushes a key meanwhile
    _taking.put_back(step, place, entries)
    if is_followed:
        seqs = [_items.number(key) for key, _ in entries]
        _positions.unskip(step, place.id, seqs)
        push_anew_behind(step, place, seqs, step.execute(_positions.LOCK, queue=place.id).fetchall())
    if is_kept:
        _removal.expire_all(step, place, buries=buries)
        trim_kept(step, place)


def trim(step: Step, place: Place, readers: dict[str, int], kept: Reach | None) -> dict[int, Any]:
    """Remove items that are no longer retained; return their numbers. ``readers``: locked positions."""
    if kept is not None:
        return _trim_beyond(step, place, kept)
    if readers and (passed := min(readers.values())) != NOTHING:
        return _removal.trim(step, place, passed, is_read=True)
    return {}


def begin_trimming(step: Step, place: Place) -> bool:
    """Return whether there is retention; if so, lock out pushes until the end, as they lock in another order."""
    is_kept = _positions.retention(step, place.id) is not None
    if is_kept:
        _positions.lock_tail(step, place.id)
    return is_kept


def trim_kept(step: Step, place: Place) -> bool:
    """Remove the items beyond what is retained, except those being taken; return whether any were removed."""
    kept = _positions.retention(step, place.id)
    if kept is None:
        return False
    before = _items.extent(step, place)
    _trim_beyond(step, place, kept)
    return _items.extent(step, place) < before


def _trim_beyond(step: Step, place: Place, kept: Reach) -> dict[int, Any]:
    """Remove items beyond the limits."""
    went: dict[int, Any] = {}
    before = None
    while (last := _removal.beyond(step, place, kept)) not in (NOTHING, before):
        went |= _removal.trim(step, place, last, is_read=False)
        before = last
    return went
