"""How items leave without a consumer: deleted, expired, replaced, read by all, or beyond the limits of retention.

Owns: which items exceed the limits of retention. Law: every leaving item is counted in the transaction that removes it,
also by the readers that have not passed it. Must not know: connections, retries, pickling.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString

from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._items import AT_ONCE, EXPIRY, UNCLAIMED, Place, extent, tell
from lmdbqueue.postgres._step import Step

# Expired items, and those whose key another item gets: leased ones among them leave when they return.
# The second are outdated, and neither dead letters nor counted
_IS_OUTDATED: Final = "expires_at = '-infinity'"
_OVER: Final = """
WITH over AS MATERIALIZED (
    SELECT ctid AS at, state AS was FROM {items} WHERE queue = %(queue)s AND expires_at <= {now} AND state <> 1
    ORDER BY expires_at LIMIT %(n)s FOR UPDATE SKIP LOCKED)
"""
_THESE: Final = """
WITH over AS MATERIALIZED (
    SELECT ctid AS at, state AS was FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND seq = ANY(%(seqs)s::bigint[]))
"""
_EXPIRE: Final = (
    "DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM over)) RETURNING seq, state, octet_length(payload), "
    + _IS_OUTDATED
)
_EXPIRE_OUTDATED: Final = (
    "DELETE FROM {items} WHERE queue = %(queue)s AND state <> 1 AND "
    + _IS_OUTDATED
    + " RETURNING seq, state, octet_length(payload), true"
)
_BURY: Final = """
UPDATE {items} SET state = 3, until = NULL, expires_at = NULL, changed = clock_timestamp(),
    reason = %(reason)s
FROM over WHERE items.ctid = over.at RETURNING seq, over.was, octet_length(payload), false
"""
_WITH_KEYS: Final = "WHERE queue = %(queue)s AND key = ANY(%(keys)s::bytea[]) AND key IS NOT NULL AND state <> 3"
_REPLACE: Final = (
    "DELETE FROM {items} " + _WITH_KEYS + " AND state + 0 <> 1 RETURNING seq, state, octet_length(payload)"
)
_OUTDATE: Final = "UPDATE {items} SET key = NULL, expires_at = '-infinity' " + _WITH_KEYS + " AND state + 0 = 1"
# The number of items that left, and which they were, if readers have to count them
_COUNTED: Final = """
SELECT count(*), coalesce(sum(size), 0)::bigint, array_agg(seq) FILTER (WHERE is_followed)
FROM gone, (SELECT is_followed FROM {queues} WHERE id = %(queue)s) AS q
"""
_DELETE: Final = (
    """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND """
    + UNCLAIMED
    + """
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, octet_length(payload) AS size)
"""
    + _COUNTED
)
_DELETE_ITEM: Final = """
DELETE FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq = %(seq)s RETURNING seq, state, octet_length(payload)
"""
_CLEAR: Final = (
    """
WITH gone AS (
    DELETE FROM {items} WHERE queue = %(queue)s AND state = 0 RETURNING seq, octet_length(payload) AS size)
"""
    + _COUNTED
)
# Items that all have passed, or that exceed the limits. Items that others are taking leave with them, or next time.
# If readers have to count them, also which they were, and their notes, to put them back
_TRIM: Final = (
    """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq <= %(last)s
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, octet_length(payload) AS size, attempts,
        (extract(epoch FROM pushed_at - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint AS pushed,
        """
    + EXPIRY
    + """ AS expires, key, headers)
SELECT count(*), coalesce(sum(size), 0)::bigint, array_agg(seq) FILTER (WHERE is_followed),
    array_agg(attempts::bigint) FILTER (WHERE is_followed), array_agg(pushed) FILTER (WHERE is_followed),
    array_agg(expires) FILTER (WHERE is_followed), array_agg(key) FILTER (WHERE is_followed),
    array_agg(headers) FILTER (WHERE is_followed)
FROM gone, (SELECT is_followed FROM {queues} WHERE id = %(queue)s) AS q
"""
)
# The last item beyond the limits: too many items, or bytes, come after it, or it is too old
_BEYOND_ITEMS: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq OFFSET %(n)s LIMIT 1
"""
_BEYOND_BYTES: Final = """
SELECT seq FROM (
    SELECT seq, sum(octet_length(payload)) OVER (ORDER BY seq) AS through
    FROM (SELECT seq, payload FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT %(n)s) AS first
) AS each WHERE through >= %(over)s OR seq = (
    SELECT max(seq) FROM (
        SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT %(n)s) AS first)
ORDER BY seq LIMIT 1
"""
# The number of the newest items that would stay
_STAYING: Final = """
SELECT count(*) FROM (
    SELECT sum(octet_length(payload)) OVER (ORDER BY seq DESC) AS through
    FROM (SELECT seq, payload FROM {items} WHERE queue = %(queue)s AND state = 0
          AND (%(age)s::bigint IS NULL OR seq >= (
              SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0
              AND pushed_at > {now} - %(age)s::bigint * interval '1 microsecond' ORDER BY seq LIMIT 1))
          ORDER BY seq DESC LIMIT %(n)s::bigint) AS last) AS each
WHERE %(room)s::bigint IS NULL OR through <= %(room)s::bigint
"""
_NEWEST: Final = "SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq DESC LIMIT 1"
_BEYOND_AGE: Final = """
SELECT coalesce(
    (SELECT seq - 1 FROM {items} WHERE queue = %(queue)s AND state = 0
     AND pushed_at > {now} - %(age)s * interval '1 microsecond' ORDER BY seq LIMIT 1),
    (SELECT next - 1 FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1))
"""


def staying(step: Step, place: Place, kept: _positions.Reach, sizes: Sequence[int]) -> int:
    """Return how many items would wait after a push of payloads of these sizes."""
    stay, room = 0, kept.bytes
    for size in reversed(sizes):
        if stay and ((room is not None and size > room) or stay == kept.items):
            return stay
        stay += 1
        room = None if room is None else room - size
    if room is not None and room < 0:
        return stay
    values = {"age": kept.age, "room": room, "n": None if kept.items is None else max(0, kept.items - stay)}
    row = step.execute(_STAYING, queue=place.id, **values).fetchone()
    assert row is not None  # of an aggregate
    there: int = row[0]
    return stay + there


def expire_all(step: Step, place: Place, *, buries: bool) -> None:
    """Like ``expire``, for all unlocked items."""
    while expire(step, place, buries=buries):
        pass


def expire(step: Step, place: Place, *, buries: bool) -> int:
    """Remove expired items, or make them dead letters; return their number."""
    removed, buried = _expire(step, place, _OVER, buries=buries, n=AT_ONCE)
    return removed + len(buried)


def expire_these(step: Step, place: Place, seqs: Sequence[int], *, buries: bool) -> list[int]:
    """Like ``expire``, for waiting items of these numbers, which have expired; return which are dead letters now."""
    return _expire(step, place, _THESE, buries=buries, seqs=list(seqs))[1] if seqs else []


def _expire(step: Step, place: Place, over: LiteralString, *, buries: bool, **values: Any) -> tuple[int, list[int]]:
    """Return how many items were removed, and the numbers of those that are dead letters now."""
    if buries:
        removed = step.execute(_EXPIRE_OUTDATED, queue=place.id).fetchall()
        buried = step.execute(over + _BURY, queue=place.id, reason=b"it expired", **values).fetchall()
        if buried:
            step.count(place.id, dead=len(buried))
    else:
        removed = step.execute(over + _EXPIRE, queue=place.id, **values).fetchall()
        buried = []
    if expired := sum(not is_outdated for *_, is_outdated in removed + buried):
        step.count(place.id, expired=expired)
    _left(step, place, [row[:3] for row in removed + buried])
    return len(removed), [seq for seq, *_ in buried]


def replaced(step: Step, place: Place, keys: Sequence[bytes]) -> None:
    """Remove the items that have these keys."""
    wanted = sorted(set(keys))
    _left(step, place, step.execute(_REPLACE, queue=place.id, keys=wanted).fetchall())
    step.execute(_OUTDATE, queue=place.id, keys=wanted)


def cancel(step: Step, place: Place, key: bytes) -> bool:
    """Remove the item with a unique key, if it is waiting or delayed; return whether it was."""
    return _left(step, place, step.execute(_REPLACE, queue=place.id, keys=[key]).fetchall()) > 0


def delete_item(step: Step, place: Place, seq: int) -> bool:
    """Remove the item of this number, if it is waiting; return whether it was."""
    return _left(step, place, step.execute(_DELETE_ITEM, queue=place.id, seq=seq).fetchall()) > 0


def delete(step: Step, place: Place, n: int) -> int:
    """Remove at most the first ``n`` items; return their number."""
    return _gone(step, place, step.execute(_DELETE, queue=place.id, n=n, claims=place.claims).fetchone())


def clear(step: Step, place: Place) -> int:
    """Remove all waiting items; return their number."""
    return _gone(step, place, step.execute(_CLEAR, queue=place.id).fetchone())


def trim(step: Step, place: Place, last: int, *, is_read: bool) -> dict[int, Any]:
    """Remove the items up to a number, passed by all readers or not, except items being taken.

    Returns their numbers, if there are readers, with the notes that ``_taking.put_back`` needs.
    """
    went: dict[int, Any] = {}
    while True:
        row: Any = step.execute(_TRIM, queue=place.id, last=last, n=AT_ONCE).fetchone()
        removed = _gone(step, place, row[:3], is_read=is_read)
        if removed and not is_read:
            step.count(place.id, dropped=removed)
        if row[2]:
            went.update(zip(row[2], zip(*row[3:], strict=True), strict=True))
        if removed < AT_ONCE:
            return went


def beyond(step: Step, place: Place, kept: _positions.Reach) -> int:
    """Return the number of the last item beyond the limits, or of an earlier one beyond them."""
    last = _positions.NOTHING
    items, size = extent(step, place)
    if kept.items is not None and items > kept.items:
        row = step.execute(_BEYOND_ITEMS, queue=place.id, n=items - kept.items - 1).fetchone()
        last = max(last, _positions.NOTHING if row is None else row[0])
    if kept.bytes is not None and size > kept.bytes:
        row = step.execute(_BEYOND_BYTES, queue=place.id, n=AT_ONCE, over=size - kept.bytes).fetchone()
        newest = step.execute(_NEWEST, queue=place.id).fetchone()
        if row is not None and newest is not None:
            last = max(last, min(row[0], newest[0] - 1))  # at least one stays
    if kept.age is not None:
        row = step.execute(_BEYOND_AGE, queue=place.id, age=kept.age).fetchone()
        last = max(last, _positions.NOTHING if row is None or row[0] is None else row[0])
    return last


def _left(step: Step, place: Place, rows: Sequence[tuple[int, int, int]]) -> int:
    """Count items that have left, by their numbers, states and sizes."""
    if rows:
        waiting = [(seq, size) for seq, state, size in rows if not state]
        delayed, dead = ([state for _, state, _ in rows].count(each) for each in (2, 3))
        step.count(
            place.id,
            waiting=-len(waiting),
            size=-sum(size for _, size in waiting),
            delayed=-delayed,
            dead=-dead,
        )
        _positions.skip(step, place.id, [seq for seq, _ in waiting])
        tell(step, place)
    return len(rows)


def _gone(step: Step, place: Place, row: Any, *, is_read: bool = False) -> int:
    assert row is not None  # of an aggregate
    removed, size, seqs = row
    if removed:
        step.count(place.id, waiting=-removed, size=-size)
        tell(step, place)
        if seqs is not None and not is_read:
            _positions.skip(step, place.id, seqs)
    count: int = removed
    return count
