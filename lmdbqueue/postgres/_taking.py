"""How items are taken from a queue, and put back.

Owns: the pop in a block, and that of an item that was seen ahead. Law: items that others are
taking at the moment are skipped, never waited for; an item that is put back gets its old place, with its notes. Must
not know: connections, retries, pickling.
"""

from collections.abc import Sequence
from typing import Any, Final

from lmdbqueue._base.values import Entry, Taken
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._items import (
    CLAIM_KEY,
    EXPIRY,
    IN_ORDER,
    IS_IN_NO_BATCH,
    LOOK,
    ORPHANED,
    OVERDUE,
    UNCLAIMED_OF_MANY,
    Found,
    Place,
    hurried,
    number,
    pack,
    tell,
)
from lmdbqueue.postgres._step import Step

COLUMNS: Final = "seq, payload, attempts, pushed_at, expires_at, key, headers"
# The last row has the facts seen on the way, in the columns of an item, since each further one costs as much with every
# item as with this row. It has no time
_IS_OVERDUE, _IS_FOLLOWED, _IS_AWAITED = 1, 2, 4
FACTS: Final = (
    f"is_overdue::integer * {_IS_OVERDUE} + is_followed::integer * {_IS_FOLLOWED} + is_awaited::integer * {_IS_AWAITED}"
)
# What one transaction leaves of an item is one version. After a failover to a standby that lagged, or the restoration
# of a backup, another transaction may have the same number, and its item that of the one that was seen
VERSION: Final = "xmin::text || ' ' || pushed_at::text"
_TAKE: Final = (
    "WITH "
    + LOOK
    + """,
first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND """
    + IN_ORDER
    + " AND "
    + UNCLAIMED_OF_MANY
    + """
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, payload, attempts, pushed_at, """
    + EXPIRY
    + """ AS expires_at, key, headers)
SELECT """
    + COLUMNS
    + " FROM gone UNION ALL SELECT NULL, NULL, "
    + FACTS
    + ", NULL, NULL, NULL, NULL FROM look"
)
# The token of the item that is ``gone``, and the item that is first then
ONE_LEFT: Final = (
    """noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - 1, size = size - %(size)s
    WHERE id = (SELECT %(row)s FROM gone) RETURNING ctid AS at),
next AS (
    SELECT seq, payload, """
    + VERSION
    + """ AS version FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq > %(seq)s ORDER BY seq LIMIT 1)"""
)
# The first item, if it is the one whose payload was already decoded; and the one that is first after that. No row means
# that another is first, or that more has to be done
TAKE_KNOWN: Final = (
    """
WITH mine AS MATERIALIZED (SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE),
first AS MATERIALIZED (
    SELECT ctid AS at, seq, """
    + VERSION
    + """ AS version FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND EXISTS (SELECT FROM mine) AND NOT ("""
    + OVERDUE
    + ORPHANED
    + """) AND NOT EXISTS (
        SELECT FROM {queues} WHERE id = %(queue)s
        AND (is_followed OR kept_items IS NOT NULL OR kept_bytes IS NOT NULL OR kept_age IS NOT NULL))
    AND """
    + IS_IN_NO_BATCH
    + " AND pg_try_advisory_xact_lock"
    + CLAIM_KEY
    + """
    ORDER BY seq LIMIT 1),
free AS MATERIALIZED (
    SELECT ctid AS at FROM {items} WHERE ctid = (SELECT at FROM first WHERE seq = %(seq)s AND version = %(version)s)
    FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = (SELECT at FROM free)
    RETURNING attempts, pushed_at, """
    + EXPIRY
    + """, key, headers),
"""
    + ONE_LEFT
    + """
SELECT gone.*, EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s), next.*, (SELECT at FROM noted)
FROM gone LEFT JOIN next ON true"""
)
TAKE_KNOWN_NOW: Final = hurried(TAKE_KNOWN)
# A key that another item has by now stays with that one
_PUT_BACK: Final = """
INSERT INTO {items} (queue, seq, payload, attempts, pushed_at, expires_at, key, headers)
SELECT id, seq, payload, attempts,
    coalesce(timestamptz '2000-01-01 00:00:00+00' + pushed_at * interval '1 microsecond', {now}),
    to_timestamp(expires_at::float8),
    CASE WHEN NOT EXISTS (SELECT FROM {items} AS other WHERE other.queue = %(queue)s AND other.key = pushed.key
                              AND other.state <> 3)
    THEN key END, headers
FROM (SELECT id FROM {queues} WHERE id = %(queue)s FOR KEY SHARE) AS there,
     unnest(%(seqs)s::bigint[], %(payloads)s::bytea[], %(attempts)s::bigint[], %(pushed)s::bigint[], %(expire)s::text[],
            %(keys)s::bytea[], %(headers)s::bytea[])
     AS pushed (seq, payload, attempts, pushed_at, expires_at, key, headers)
"""


def take(step: Step, place: Place, n: int, *, deaths: bool, insists: bool) -> Found:
    """Remove and return the first ``n`` unlocked entries, as a part of a block.

    It is undone unless the caller calls ``keep``. ``insists``: even if items that are due could not return first.
    """
    asked = {"queue": place.id, "claims": place.claims, "n": n, "deaths": deaths, "insists": insists}
    rows = step.execute(_TAKE, **asked).fetchall()
    if not rows or rows[-1][3] is not None:
        return Found([])
    last = rows.pop()
    rows.sort()
    return found_of(rows, last)


def found_of(rows: Sequence[Any], last: Any) -> Found:
    """Return what was found, with all that ``put_back`` needs of an item, from its rows and that of the facts."""
    facts = last[2]
    return Found(
        [Taken.of((pack(row[0]), row[1]), row[2:7]) for row in rows],
        is_there=True,
        is_overdue=bool(facts & _IS_OVERDUE),
        is_followed=bool(facts & _IS_FOLLOWED),
        is_awaited=bool(facts & _IS_AWAITED),
    )


def keep(step: Step, place: Place, taken: Found) -> None:
    """Delete the taken items. Readers count them only now, after the user's ``loads``, since that locks them."""
    step.count(place.id, waiting=-len(taken.entries), size=-sum(len(payload) for _, payload in taken.entries))
    if taken.is_followed:
        _positions.skip(step, place.id, [number(key) for key, _ in taken.entries])
    if taken.is_awaited:
        tell(step, place)


def have_keys(entries: Sequence[Entry]) -> bool:
    """Return whether any of the taken items has a unique key."""
    return any(isinstance(entry, Taken) and entry.notes[3] is not None for entry in entries)


def put_back(step: Step, place: Place, entries: Sequence[Entry]) -> None:
    """Insert taken items at their old places, with their notes."""
    notes = [entry.notes if isinstance(entry, Taken) else (0, None, None, None, None) for entry in entries]
    attempts, pushed, expire, keys, headers = map(list, zip(*notes, strict=True))
    inserted = step.changed(
        _PUT_BACK,
        queue=place.id,
        seqs=[number(key) for key, _ in entries],
        payloads=[payload for _, payload in entries],
        attempts=attempts,
        pushed=pushed,
        expire=expire,
        keys=keys,
        headers=headers,
    )
    step.count(place.id, waiting=inserted, size=sum(len(payload) for _, payload in entries) * (inserted > 0))
    tell(step, place)
