"""The waiting items of a queue, and how they are read.

Owns: the place of an item, the results of reading a queue, what is counted. Law: a reading of items sees in the same
statement what has to return first, and whether there are sleepers. Must not know: connections, retries, pickling.

``seq`` is the order of delivery, priority first, and stays the same for as long as the item is in the queue. Only in a
queue with readers, which may have passed its place, does an item that comes due, or is given back, get a new number at
the tail.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import sql as text

from lmdbqueue._base.format import Trailer
from lmdbqueue._base.values import Entry
from lmdbqueue.postgres._step import Step

BROWSE_BYTES: Final = 1 << 18  # of items read at a time by iteration
AT_ONCE: Final = 10_000  # items that return, or leave, in one statement
_BROWSE_ITEMS: Final = 2_000
CLASS: Final = 56  # bits of a number in its class
_FIRST_SEQ: Final = -(1 << 63)
MAX_SIZE: Final = (1 << 30) - (1 << 20)  # bytes of the payloads in a statement: less than the server's 1 GiB


class Place(NamedTuple):
    """The queue that a function works on."""

    id: int
    channel: str
    claims: int = 0  # the class of the locks of its claimed items


class Found(NamedTuple):
    """The entries found in a queue, and the facts seen on the way."""

    entries: list[Entry]
    is_there: bool = False
    is_overdue: bool = False  # items have to return first
    is_followed: bool = False  # the queue has readers, which count what they lose
    is_awaited: bool = False  # there are sleepers
    ahead: "Ahead | None" = None


class Ahead(NamedTuple):
    """The first item of a queue, as it was seen; ``version`` changes when the item does."""

    seq: int
    payload: bytes
    version: str


# When an item expires, as text that means the same whatever the server's DateStyle and TimeZone are
EXPIRY: Final = "extract(epoch FROM expires_at)::text"
# The key of the lock of a claimed item (``_claims``): modulo a prime, so that equal numbers of two priorities differ
CLAIM_KEY: Final = "(%(claims)s::integer, mod(seq, 2147483647)::integer)"
# Whether a session that lives has claimed an item together with others (``_batches``)
_IS_IN_BATCH: Final = """seq <@ (
        SELECT coalesce(range_agg(items), int8multirange()) FROM {claims}
        WHERE queue = %(queue)s AND NOT isempty(items) AND NOT CASE
            WHEN pg_try_advisory_lock_shared(session) THEN pg_advisory_unlock_shared(session) ELSE false END)"""
IS_IN_NO_BATCH: Final = f"NOT {_IS_IN_BATCH}"
# Whether nobody has claimed an item, at this moment
UNCLAIMED: Final = f"""{IS_IN_NO_BATCH}
    AND CASE WHEN pg_try_advisory_lock_shared{CLAIM_KEY} THEN pg_advisory_unlock_shared{CLAIM_KEY} ELSE false END"""
# The same for many items, which costs less for each: of the moment when the statement began
UNCLAIMED_OF_MANY: Final = f"""{IS_IN_NO_BATCH} AND mod(seq, 2147483647)::integer::oid NOT IN (
        SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = %(claims)s::integer::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
# Whether a claim proceeds: due items return first, but those that cannot, because others have locked them, do
# not hide the rest
IN_ORDER: Final = """((SELECT NOT is_overdue FROM look)
        OR %(insists)s AND (expires_at IS NULL OR expires_at > {now}))"""
# Items that are due: leases and delays whose time is over, and, on request, leases whose owner is dead. An
# empty range costs less than to fetch the first row of the index and to compare it: 35 of 205 us of a lease
OVERDUE: Final = """
    EXISTS (SELECT FROM {items} WHERE queue = %(queue)s AND until <= {now})
    OR EXISTS (SELECT FROM {items} WHERE queue = %(queue)s AND expires_at <= {now} AND state <> 1)"""
ORPHANED: Final = """
    OR %(deaths)s AND EXISTS (SELECT FROM {owners} WHERE queue = %(queue)s AND owner NOT IN ({alive}))"""
AWAITED: Final = "EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s)"
# More items wait than are kept, since some returned, or are too old; asked only with retention
_BEYOND: Final = """
    OR (q.kept_items IS NOT NULL OR q.kept_bytes IS NOT NULL) AND EXISTS (
        SELECT FROM (
            SELECT q.waiting + coalesce(sum(l.waiting), 0) AS n, q.size + coalesce(sum(l.size), 0) AS bytes
            FROM {ledger} AS l WHERE l.queue = %(queue)s AND NOT l.is_folded) AS held
        WHERE n > q.kept_items OR (bytes > q.kept_bytes AND n > 1))
    OR q.kept_age IS NOT NULL AND EXISTS (
        SELECT FROM (
            SELECT pushed_at FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT 1) AS oldest
        WHERE pushed_at <= {now} - q.kept_age * interval '1 microsecond')"""
LOOK: Final = (
    "look AS MATERIALIZED (SELECT is_followed, " + AWAITED + " AS is_awaited, (" + OVERDUE + ORPHANED + _BEYOND + ")"
    " AS is_overdue FROM {queues} AS q WHERE id = %(queue)s)"
)
# A session that was shut out claims nothing, even if its statement arrives late: it fails, so it cannot report that
# there is nothing
MINE: Final = """,
mine AS MATERIALIZED (SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE)"""
STANDS: Final = "1 / coalesce((SELECT 1 FROM mine), 0) = 1"
# The same of the row that a statement writes last, and that it has found
IS_OPEN: Final = "1 / (NOT is_fenced)::integer = 1"
STATUS: Final = "SELECT NULL::bytea, NULL::bigint, is_overdue, is_followed, is_awaited FROM look"
_FIRST: Final = (
    "WITH "
    + LOOK
    + """
(SELECT payload, seq, NULL::boolean, NULL::boolean, NULL::boolean FROM {items}
WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT %(n)s)
UNION ALL """
    + STATUS
)
# If no item waits, nothing is written, not even a lock. Locks that end with the statement need not be on the disk, but
# what a block writes beside them
_CLAIM: Final = (
    "WITH "
    + LOOK
    + MINE
    + """,
unflushed AS MATERIALIZED (
    SELECT WHERE %(is_block)s OR set_config('synchronous_commit', 'off', true) = 'off'),
first AS (
    SELECT payload, seq FROM {items} WHERE queue = %(queue)s AND state = 0
    AND CASE WHEN EXISTS (SELECT FROM {items} WHERE queue = %(queue)s AND state = 0) THEN EXISTS (SELECT FROM unflushed)
        AND """
    + STANDS
    + """ END AND """
    + UNCLAIMED
    + """
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED)
SELECT payload, seq, NULL::boolean, NULL::boolean, NULL::boolean FROM first
UNION ALL """
    + STATUS
)
_SINCE: Final = (
    "WITH "
    + LOOK
    + """
(SELECT payload, seq, NULL::boolean, NULL::boolean, NULL::boolean FROM (
    SELECT payload, seq, sum(octet_length(payload)) OVER (ORDER BY seq) - octet_length(payload) AS before
    FROM (SELECT * FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq >= %(seq)s
          ORDER BY seq LIMIT %(n)s) AS next) AS page
WHERE before < %(size)s ORDER BY seq)
UNION ALL """
    + STATUS
)
_STATUS: Final = "WITH " + LOOK + STATUS
_NEXT_NUMBER: Final = "SELECT next FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1"
_LENGTH: Final = """
SELECT (waiting + coalesce((SELECT sum(waiting) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0))::bigint,
    (size + coalesce((SELECT sum(size) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0))::bigint
FROM {queues} WHERE id = %(queue)s
"""
_OWED: Final = """
SELECT (waiting + leased + delayed + coalesce((
    SELECT sum(waiting + leased + delayed) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0))::bigint
FROM {queues} WHERE id = %(queue)s
"""
_HELD: Final = """
SELECT key, seq, state <> 1 AND expires_at IS NOT NULL AND expires_at <= {now} FROM {items}
WHERE queue = %(queue)s AND key = ANY(%(keys)s::bytea[]) AND state <> 3
"""
_TRAILERS: Final = """
SELECT seq, (extract(epoch FROM pushed_at) * 1000000)::bigint, headers FROM {items}
WHERE queue = %(queue)s AND state IN (0, 1, 2, 3) AND seq = ANY(%(seqs)s::bigint[])
"""
_IS_FOLLOWED: Final = "SELECT is_followed FROM {queues} WHERE id = %(queue)s"


def hurried(statement: LiteralString) -> LiteralString:
    """Return a statement without its search for dead owners, which takes planning time even if not executed."""
    return statement.replace(ORPHANED, "")


def pack(seq: int) -> bytes:
    """Return the key of an item; the order of keys is that of the numbers."""
    return (seq - _FIRST_SEQ).to_bytes(8)


def number(key: bytes) -> int:
    """Return the number of the item with a key."""
    return int.from_bytes(key[:8]) + _FIRST_SEQ


def class_of(priority: int) -> int:
    """Return the offset of the numbers of items with a priority."""
    return priority << CLASS


def sequence(step_or_sql: Any, queue: int) -> str:
    """Return the name of the sequence of a queue in relaxed order, quoted."""
    found: str = text.Identifier(step_or_sql.schema, f"numbers_{queue}").as_string(None)
    return found


def first(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Return the first ``n`` entries; ``deaths``: whether to look for owners that are dead."""
    return seen(step.execute(_FIRST, queue=place.id, n=n, deaths=deaths).fetchall())


def glance(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Return the first ``n`` unclaimed entries."""
    values = {"deaths": deaths, "row": step.row(0), "is_block": step.is_block}
    return seen(step.execute(_CLAIM, queue=place.id, n=n, claims=place.claims, **values).fetchall())


def since(step: Step, place: Place, after: bytes, *, deaths: bool) -> Found:
    """Return some entries behind a key, from the head for b""; an empty list only if there are no more."""
    seq = number(after) + 1 if after else _FIRST_SEQ
    return seen(
        step.execute(_SINCE, queue=place.id, seq=seq, n=_BROWSE_ITEMS, size=BROWSE_BYTES, deaths=deaths).fetchall()
    )


def status(step: Step, place: Place, *, deaths: bool) -> Found:
    """Return the facts of a reading without entries."""
    return seen(step.execute(_STATUS, queue=place.id, deaths=deaths).fetchall())


def seen(rows: list[Any]) -> Found:
    """Return the content of rows, the last of which is that of ``STATUS``."""
    if not rows or rows[-1][0] is not None:
        return Found([])
    *_, is_overdue, is_followed, is_awaited = rows[-1]
    entries = [(pack(seq), payload) for payload, seq, *_ in rows[:-1]]
    return Found(entries, is_there=True, is_overdue=is_overdue, is_followed=is_followed, is_awaited=is_awaited)


def trailers(step: Step, place: Place, seqs: Sequence[int]) -> dict[int, Trailer]:
    """Return the trailers of items of these numbers, in any state."""
    rows = step.execute(_TRAILERS, queue=place.id, seqs=list(seqs)).fetchall()
    return {seq: trailer_of(pushed_at, headers) for seq, pushed_at, headers in rows}


def trailer_of(pushed_at: int, headers: bytes | None) -> Trailer:
    """Return a trailer of a time in microseconds since 1970, and headers as they are stored."""
    return Trailer(pushed_at * 1000, headers=json.loads(headers or b"{}"))


def find(step: Step, place: Place, key: bytes) -> int | None:
    """Return the number of the item with a unique key."""
    return with_keys(step, place, [key]).get(key, (None, False))[0]


def with_keys(step: Step, place: Place, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bool]]:
    """Return the numbers of the items that have these keys, and whether each has expired and is held by no lease."""
    wanted = [key for key in keys if key]
    rows = step.execute(_HELD, queue=place.id, keys=wanted).fetchall() if wanted else []
    return {key: (seq, is_over) for key, seq, is_over in rows}


def owed(step: Step, place: Place) -> int:
    """Return the number of waiting, leased and delayed items. The queue must exist."""
    row = step.execute(_OWED, queue=place.id).fetchone()
    assert row is not None
    here = step.counts.get(place.id, {})
    count: int = row[0] + sum(here.get(kind, 0) for kind in ("waiting", "leased", "delayed"))
    return count


def extent(step: Step, place: Place) -> tuple[int, int]:
    """Return the number of waiting items, and their bytes. The queue must exist."""
    row = step.execute(_LENGTH, queue=place.id).fetchone()
    assert row is not None
    here = step.counts.get(place.id, {})
    return row[0] + here.get("waiting", 0), row[1] + here.get("size", 0)


def tail(step: Step, place: Place) -> int:
    """Return the number of the next item, 0 if the queue is gone."""
    row = step.execute(_NEXT_NUMBER, queue=place.id).fetchone()
    return 0 if row is None else row[0]


def is_followed(step: Step, place: Place) -> bool:
    """Return whether the queue has readers. Creating one requires the lock of the tail."""
    return bool(step.execute(_IS_FOLLOWED, queue=place.id).fetchone() == (True,))


def tell(step: Step, place: Place) -> None:
    """Wake the waiters of the queue when this is committed."""
    step.tell(place.channel)
