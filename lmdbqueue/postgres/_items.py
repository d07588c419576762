"""What waits: the verbs as functions of a transaction.

Owns: the order of items. Law: a number is given once. In the order of commits it is given under the lock of the queue's
tail, which is held until the commit; in relaxed order it comes from a sequence, and nobody waits for anybody. What
somebody else is taking at this moment is passed over, never waited for.
Must not know: connections, retries, pickling.

``seq`` is the order of delivery, priority first, and stays the same for as long as the item is in the queue; only in a
queue with readers, which have passed its place, an item that comes due gets a new number at the tail.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import sql as text

from lmdbqueue._errors import Full, OptionError
from lmdbqueue._format import Trailer
from lmdbqueue._values import Entry, Push, Pushed
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._session import Step

BROWSE_BYTES: Final = 1 << 18  # of items that iteration reads at a time
AT_ONCE: Final = 10_000  # items that come back, or go, in one statement
_BROWSE_ITEMS: Final = 2_000
BLOCK: Final = 12  # bits of a number in relaxed order that count items of one push; its other bits, the pushes
_CLASS: Final = 56  # bits of a number in its class
_FIRST_SEQ: Final = -(1 << 63)
MAX_SIZE: Final = (1 << 30) - (1 << 20)  # bytes of the payloads in a statement: less than the server's 1 GiB


class Place(NamedTuple):
    """The queue that a function works on."""

    id: int
    channel: str


class Appended(NamedTuple):
    """What was appended; ``is_kept``: something may be beyond what is kept now."""

    items: list[Pushed]
    is_kept: bool


class Found(NamedTuple):
    """What was found in a queue, and what was seen of it on the way."""

    entries: list[Entry]
    is_there: bool = False
    is_overdue: bool = False  # something has to come back first
    is_followed: bool = False  # the queue has readers, which count what they lose
    is_awaited: bool = False  # somebody sleeps until it changes
    ahead: "Ahead | None" = None


class Ahead(NamedTuple):
    """The first item of a queue, as it was seen: ``version`` changes with the item."""

    seq: int
    payload: bytes
    version: str


class Taken(tuple[bytes, bytes]):  # noqa: SLOT001  (a tuple cannot have slots)
    """An entry that has left, with what else was known of it, for ``put_back``."""

    notes: tuple[Any, ...]


# What has to come back: leases and delays whose time is over, and, if that is asked, leases whose owner is dead
OVERDUE: Final = """
    coalesce((SELECT until FROM {items} WHERE queue = %(queue)s AND until IS NOT NULL ORDER BY until LIMIT 1)
             <= {now}, false)
    OR coalesce((SELECT expires_at FROM {items} WHERE queue = %(queue)s AND expires_at IS NOT NULL AND state <> 1
                 ORDER BY expires_at LIMIT 1) <= {now}, false)"""
ORPHANED: Final = """
    OR %(deaths)s AND EXISTS (SELECT FROM {owners} WHERE queue = %(queue)s AND owner NOT IN ({alive}))"""
_AWAITED: Final = "EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s)"
LOOK: Final = (
    "look AS MATERIALIZED (SELECT is_followed, " + _AWAITED + " AS is_awaited, (" + OVERDUE + ORPHANED + ")"
    " AS is_overdue FROM {queues} WHERE id = %(queue)s)"
)
# A session that was shut out claims nothing, though its statement arrives late
MINE: Final = """,
mine AS MATERIALIZED (SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE)"""
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
_CLAIM: Final = (
    "WITH "
    + LOOK
    + """,
first AS (
    SELECT payload, seq FROM {items} WHERE queue = %(queue)s AND state = 0
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

# If the session is fenced there is no number for an item, and the server undoes all of it: ``Session.once`` knows that.
# Where more has to be done, since the queue keeps only so much, or is gone, nothing is done and no row returned.
# The tail is locked before the row of the ledger, which only this session writes
_GIVEN: Final = """
WITH given AS (
    UPDATE {tails} SET next = next + %(n)s
    WHERE queue = %(queue)s AND NOT is_slow
    AND epoch = (SELECT epoch FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
    RETURNING next - %(n)s AS first, ctid AS at),
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = (SELECT first FROM given), pushed = pushed + %(n)s,
        waiting = waiting + %(n)s, size = size + %(size)s
    WHERE id = %(row)s AND NOT is_fenced AND EXISTS (SELECT FROM given) RETURNING result, ctid AS at)"""
PUSH: Final = (
    _GIVEN
    + """,
stored AS (
    INSERT INTO {items} (queue, seq, payload)
    SELECT %(queue)s, %(class)s + (SELECT result FROM noted) + place - 1, payload
    FROM given, unnest(%(payloads)s::bytea[]) WITH ORDINALITY AS pushed (payload, place))
SELECT %(class)s + first, """
    + _AWAITED
    + ", at, (SELECT at FROM noted) FROM given"
)
PUSH_ONE: Final = (
    _GIVEN
    + """
INSERT INTO {items} (queue, seq, payload) SELECT %(queue)s, %(class)s + (SELECT result FROM noted), %(payload)s
FROM given RETURNING seq, """
    + _AWAITED
    + ", (SELECT at FROM given), (SELECT at FROM noted)"
)
_GIVEN_RELAXED: Final = """
WITH noted AS (
    UPDATE {ledger} SET token = %(token)s, result = nextval(%(sequence)s::regclass) << 12,
        pushed = pushed + %(n)s, waiting = waiting + %(n)s, size = size + %(size)s
    WHERE id = %(row)s AND NOT is_fenced
    AND NOT (SELECT is_slow FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
    RETURNING result, ctid AS at)"""
PUSH_ONE_RELAXED: Final = (
    _GIVEN_RELAXED
    + """
INSERT INTO {items} (queue, seq, payload) SELECT %(queue)s, %(class)s + result, %(payload)s FROM noted
RETURNING seq, """
    + _AWAITED
    + ", NULL::tid, (SELECT at FROM noted)"
)
PUSH_RELAXED: Final = (
    _GIVEN_RELAXED
    + """,
stored AS (
    INSERT INTO {items} (queue, seq, payload)
    SELECT %(queue)s, %(class)s + result + place - 1, payload
    FROM noted, unnest(%(payloads)s::bytea[]) WITH ORDINALITY AS pushed (payload, place))
SELECT %(class)s + result, """
    + _AWAITED
    + ", NULL::tid, at FROM noted"
)
# Under an old snapshot the versions of a row cannot be pruned: another row with no past takes its place
RENEW_TAIL: Final = """
WITH mine AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
old AS (
    DELETE FROM {tails} WHERE queue = %(queue)s AND EXISTS (SELECT FROM mine)
    AND epoch = (SELECT epoch FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
    RETURNING *)
INSERT INTO {tails} (queue, epoch, next, is_slow) SELECT queue, epoch + 1, next, is_slow FROM old
"""

_NO_STATUS: Final = "NULL::boolean, NULL::boolean, NULL::boolean, NULL::tid"
_VERSION: Final = "ctid::text || ' ' || xmin::text"
_TAKEN: Final = """,
first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND (SELECT NOT is_overdue FROM look)
    AND EXISTS (SELECT FROM mine)
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, payload, attempts, pushed_at::text, expires_at::text, key, headers)"""
_NOTED: Final = """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - went.n, size = ledger.size - went.size
    FROM (SELECT count(*) AS n, coalesce(sum(octet_length(payload)), 0)::bigint AS size FROM gone) AS went
    WHERE id = %(row)s AND NOT is_fenced AND went.n > 0 RETURNING ctid AS at)"""
_NEXT: Final = (
    """,
next AS (
    SELECT seq, payload, """
    + _VERSION
    + """ AS version FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq > (SELECT max(seq) FROM gone)
    ORDER BY seq LIMIT 1)
"""
)
_TAKE: Final = (
    "WITH "
    + LOOK
    + MINE
    + _TAKEN
    + _NOTED
    + _NEXT
    + "SELECT seq, payload, attempts, pushed_at, expires_at, key, headers, "
    + _NO_STATUS
    + " FROM gone UNION ALL SELECT next.seq, next.payload, NULL, next.version, NULL, NULL, NULL,"
    " is_overdue, is_followed, is_awaited, (SELECT at FROM noted) FROM look LEFT JOIN next ON %(ahead)s"
)
_TAKE_IN_BLOCK: Final = (
    "WITH "
    + LOOK
    + ", mine AS (SELECT)"
    + _TAKEN
    + " SELECT seq, payload, attempts, pushed_at, expires_at, key, headers, "
    + _NO_STATUS
    + " FROM gone UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL,"
    " is_overdue, is_followed, is_awaited, NULL FROM look"
)
# The first item, if it is the one whose payload was decoded already; and the one that is first then
TAKE_KNOWN: Final = (
    "WITH "
    + LOOK
    + MINE
    + """,
first AS MATERIALIZED (
    SELECT seq, """
    + _VERSION
    + """ AS version FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND (SELECT NOT is_overdue AND NOT is_followed FROM look)
    AND EXISTS (SELECT FROM mine)
    ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE queue = %(queue)s AND state = 0
    AND seq = (SELECT seq FROM first WHERE seq = %(seq)s AND version = %(version)s)
    RETURNING seq, attempts, pushed_at::text, expires_at::text, key, headers),
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - 1, size = size - %(size)s
    WHERE id = %(row)s AND NOT is_fenced AND EXISTS (SELECT FROM gone) RETURNING ctid AS at)"""
    + _NEXT
    + """SELECT gone.attempts, gone.pushed_at, gone.expires_at, gone.key, gone.headers, look.is_awaited,
    CASE WHEN gone.seq IS NOT NULL THEN 1 / (SELECT count(*) FROM noted) END,
    next.seq, next.payload, next.version, (SELECT at FROM noted)
FROM look LEFT JOIN gone ON true LEFT JOIN next ON true"""
)

_NEXT_NUMBER: Final = "SELECT next FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1"
_BLOCKS: Final = "SELECT nextval(%(sequence)s::regclass) FROM generate_series(1, %(n)s)"
_LENGTH: Final = """
SELECT (waiting + coalesce((SELECT sum(waiting) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0))::bigint,
    (size + coalesce((SELECT sum(size) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0))::bigint
FROM {queues} WHERE id = %(queue)s
"""
# Items whose time is over, and those whose key another item gets: what a lease holds of them goes when it comes back
_EXPIRE: Final = """
WITH over AS MATERIALIZED (
    SELECT ctid AS at FROM {items} WHERE queue = %(queue)s AND expires_at <= {now} AND state <> 1
    ORDER BY expires_at LIMIT %(n)s FOR UPDATE SKIP LOCKED)
DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM over)) RETURNING seq, state, octet_length(payload)
"""
_WITH_KEYS: Final = """WHERE ctid = ANY(ARRAY(
    SELECT (SELECT ctid FROM {items} WHERE queue = %(queue)s AND key = wanted.key)
    FROM unnest(%(keys)s::bytea[]) AS wanted (key)))"""
_REPLACE: Final = (
    "DELETE FROM {items} " + _WITH_KEYS + " AND state + 0 <> 1 RETURNING seq, state, octet_length(payload)"
)
_OUTDATE: Final = "UPDATE {items} SET key = NULL, expires_at = {now} " + _WITH_KEYS + " AND state + 0 = 1"
_HELD: Final = "SELECT key, seq FROM {items} WHERE queue = %(queue)s AND key = ANY(%(keys)s::bytea[])"
_APPEND: Final = """
INSERT INTO {items} (queue, seq, payload, key, headers, expires_at, state, until)
SELECT %(queue)s, seq, payload, nullif(key, ''::bytea), %(headers)s::bytea,
    {now} + %(expires)s::bigint * interval '1 microsecond', CASE WHEN %(delay)s > 0 THEN 2 ELSE 0 END,
    CASE WHEN %(delay)s > 0 THEN {now} + %(delay)s * interval '1 microsecond' END
FROM unnest(%(seqs)s::bigint[], %(payloads)s::bytea[], %(keys)s::bytea[]) AS pushed (seq, payload, key)
"""
_SET_NEXT: Final = """
UPDATE {tails} SET next = %(next)s
WHERE queue = %(queue)s AND epoch = (SELECT epoch FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
"""
_OPTIONS: Final = "SELECT is_relaxed, is_followed, has_classes FROM {queues} WHERE id = %(queue)s"
_HAVE_CLASSES: Final = "UPDATE {queues} SET has_classes = true WHERE id = %(queue)s"

_ARE_FIRST: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT %(n)s FOR UPDATE
"""
# How many went, and which they were, if readers have to know
_COUNTED: Final = """
SELECT count(*), coalesce(sum(size), 0)::bigint, array_agg(seq) FILTER (WHERE is_followed)
FROM gone, (SELECT is_followed FROM {queues} WHERE id = %(queue)s) AS q
"""
_DELETE: Final = (
    """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, octet_length(payload) AS size)
"""
    + _COUNTED
)
_TRAILERS: Final = """
SELECT seq, (extract(epoch FROM pushed_at) * 1000000)::bigint, headers FROM {items}
WHERE queue = %(queue)s AND state IN (0, 1, 2, 3) AND seq = ANY(%(seqs)s::bigint[])
"""
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
# What all have passed, or what is beyond what is kept. What others are taking leaves with them, or else the next time
_TRIM: Final = (
    """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq <= %(last)s
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM first))
    RETURNING seq, octet_length(payload) AS size)
"""
    + _COUNTED
)
# The last item that is beyond what is kept: too many come after it, or too much, or it is too old
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
_NEWEST: Final = "SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq DESC LIMIT 1"
_BEYOND_AGE: Final = """
SELECT coalesce(
    (SELECT seq - 1 FROM {items} WHERE queue = %(queue)s AND state = 0
     AND pushed_at > {now} - %(age)s * interval '1 microsecond' ORDER BY seq LIMIT 1),
    (SELECT next - 1 FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1))
"""
# A key that another item has got meanwhile stays with that one
_PUT_BACK: Final = """
INSERT INTO {items} (queue, seq, payload, attempts, pushed_at, expires_at, key, headers)
SELECT id, seq, payload, attempts, coalesce(pushed_at::timestamptz, {now}), expires_at::timestamptz,
    CASE WHEN NOT EXISTS (SELECT FROM {items} AS other WHERE other.queue = %(queue)s AND other.key = pushed.key)
    THEN key END, headers
FROM (SELECT id FROM {queues} WHERE id = %(queue)s FOR KEY SHARE) AS there,
     unnest(%(seqs)s::bigint[], %(payloads)s::bytea[], %(attempts)s::bigint[], %(pushed)s::text[], %(expire)s::text[],
            %(keys)s::bytea[], %(headers)s::bytea[])
     AS pushed (seq, payload, attempts, pushed_at, expires_at, key, headers)
"""
_MOVED: Final = """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0
    ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
numbered AS MATERIALIZED (SELECT at, seq, row_number() OVER (ORDER BY seq) AS place FROM first),
moved AS (
    UPDATE {items} SET queue = %(target)s, pushed_at = {now}, key = NULL, attempts = 0, changed = NULL, reason = NULL,
        seq = (items.seq >> 56 << 56) + CASE WHEN %(numbers)s::bigint[] IS NULL THEN %(tail)s + place - 1
                                             ELSE (%(numbers)s::bigint[])[place] END
    FROM numbered WHERE items.ctid = numbered.at
    RETURNING items.seq, numbered.seq AS before, octet_length(payload))
SELECT * FROM moved
"""
_COME_DUE: Final = """
WITH due AS MATERIALIZED (
    SELECT ctid AS at FROM {items} WHERE queue = %(queue)s AND until <= {now} AND state = 2
    ORDER BY until LIMIT %(n)s FOR UPDATE SKIP LOCKED),
come AS (
    UPDATE {items} SET state = 0, until = NULL
    WHERE ctid = ANY(ARRAY(SELECT at FROM due))
    RETURNING octet_length(payload) AS size)
SELECT count(*), coalesce(sum(size), 0)::bigint FROM come
"""
_COME_LAST: Final = """
WITH due AS MATERIALIZED (
    SELECT ctid AS at, seq, until FROM {items} WHERE queue = %(queue)s AND until <= {now} AND state = 2
    ORDER BY until LIMIT %(n)s FOR UPDATE SKIP LOCKED),
numbered AS MATERIALIZED (SELECT at, row_number() OVER (ORDER BY until, seq) AS place FROM due),
come AS (
    UPDATE {items} SET state = 0, until = NULL, seq = %(tail)s + place - 1, pushed_at = {now}
    FROM numbered WHERE items.ctid = numbered.at
    RETURNING octet_length(payload) AS size)
SELECT count(*), coalesce(sum(size), 0)::bigint FROM come
"""
_IS_FOLLOWED: Final = "SELECT is_followed FROM {queues} WHERE id = %(queue)s"


def hurried(statement: LiteralString) -> LiteralString:
    """Return a statement without its look for dead owners, whose plan takes time though it is not executed."""
    return statement.replace(ORPHANED, "")


TAKE_KNOWN_NOW: Final = hurried(TAKE_KNOWN)
_TAKE_NOW: Final = hurried(_TAKE)


def pack(seq: int) -> bytes:
    """Return the key of an item, whose order is that of the numbers."""
    return (seq - _FIRST_SEQ).to_bytes(8)


def number(key: bytes) -> int:
    """Return the number of the item with a key."""
    return int.from_bytes(key[:8]) + _FIRST_SEQ


def class_of(priority: int) -> int:
    """Return what is added to the number of an item with a priority."""
    return priority << _CLASS


def sequence(step_or_sql: Any, queue: int) -> str:
    """Return the name of the sequence of a queue in relaxed order, quoted."""
    found: str = text.Identifier(step_or_sql.schema, f"numbers_{queue}").as_string(None)
    return found


# --- looking


def first(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Return the first ``n`` entries; ``deaths``: whether to look for owners that are dead."""
    return seen(step.execute(_FIRST, queue=place.id, n=n, deaths=deaths).fetchall())


def glance(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Return the first ``n`` entries that nobody else has claimed."""
    return seen(step.execute(_CLAIM, queue=place.id, n=n, deaths=deaths).fetchall())


def since(step: Step, place: Place, after: bytes, *, deaths: bool) -> Found:
    """Return some entries behind a key, b"" for all; none only if there are none."""
    seq = number(after) + 1 if after else _FIRST_SEQ
    return seen(
        step.execute(_SINCE, queue=place.id, seq=seq, n=_BROWSE_ITEMS, size=BROWSE_BYTES, deaths=deaths).fetchall()
    )


def status(step: Step, place: Place, *, deaths: bool) -> Found:
    """Return what there is to see but the entries."""
    return seen(step.execute(_STATUS, queue=place.id, deaths=deaths).fetchall())


def seen(rows: list[Any]) -> Found:
    """Return what the rows say of which the last is that of ``STATUS``."""
    if not rows or rows[-1][0] is not None:
        return Found([])
    *_, is_overdue, is_followed, is_awaited = rows[-1]
    entries = [(pack(seq), payload) for payload, seq, *_ in rows[:-1]]
    return Found(entries, is_there=True, is_overdue=is_overdue, is_followed=is_followed, is_awaited=is_awaited)


# --- changing


def append(step: Step, place: Place, payloads: Sequence[bytes], how: Push, maxsize: int) -> Appended | None:
    """Append payloads, all or none; return their numbers, or those of the items that have the keys.

    None: the queue is gone. Raises ``Full``, and ``OptionError`` for a priority beside readers.
    """
    locked, options = _locked(step, place)
    if locked is None or options is None:
        return None
    (tail, is_kept), (is_relaxed, is_followed, has_classes) = locked, options
    keys = how.keys or [b""] * len(payloads)
    if how.replace:
        keys = _replaced(step, place, keys)
    held = _held(step, place, keys)
    fresh = []  # which of them are stored
    first_of: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        if not key or (key not in held and first_of.setdefault(key, index) == index):
            fresh.append(index)
    if how.priority and is_followed:
        raise OptionError(step.path, "priority", "named readers", "a priority")
    if not fresh:
        return Appended([Pushed(held[key], is_stored=False) for key in keys], is_kept=False)
    refuse_full(step, place, maxsize, len(fresh))
    numbers = _numbers(step, place, len(fresh), tail, is_relaxed=is_relaxed)
    seqs = [class_of(how.priority) + number for number in numbers]
    delay = int(how.delay * 1e6)
    sizes = [len(payloads[index]) for index in fresh]
    for part in _parts(sizes):
        step.execute(
            _APPEND,
            queue=place.id,
            seqs=seqs[part],
            delay=delay,
            payloads=[payloads[index] for index in fresh[part]],
            keys=[keys[index] for index in fresh[part]],
            headers=None if how.headers is None else json.dumps(dict(how.headers)).encode(),
            expires=None if how.expires is None else int(how.expires * 1e6),
        )
    if how.priority and not has_classes:
        step.execute(_HAVE_CLASSES, queue=place.id)
    where = {"delayed": len(fresh)} if delay else {"waiting": len(fresh), "size": sum(sizes)}
    step.count(place.id, pushed=len(fresh), **where)
    tell(step, place)
    new = dict(zip(fresh, seqs, strict=True))
    items = [
        Pushed(new[index], is_stored=True)
        if index in new
        else Pushed(held[key] if key in held else new[first_of[key]], is_stored=False)
        for index, key in enumerate(keys)
    ]
    return Appended(items, is_kept and not how.delay)


def _locked(step: Step, place: Place) -> tuple[tuple[int, bool] | None, Any]:
    """Lock the tail of a queue; return what ``lock_tail`` does, and the options that hold from now on."""
    locked = _positions.lock_tail(step, place.id)
    return locked, step.execute(_OPTIONS, queue=place.id).fetchone()


def _held(step: Step, place: Place, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Return the numbers of the items that have these keys."""
    wanted = [key for key in keys if key]
    rows = step.execute(_HELD, queue=place.id, keys=wanted).fetchall() if wanted else []
    return dict(rows)


def _replaced(step: Step, place: Place, keys: Sequence[bytes]) -> Sequence[bytes]:
    """Remove the items that have these keys; return the keys, of which the last of each counts."""
    wanted = sorted(set(keys))
    _left(step, place, step.execute(_REPLACE, queue=place.id, keys=wanted).fetchall(), "")
    step.execute(_OUTDATE, queue=place.id, keys=wanted)
    last = {key: index for index, key in enumerate(keys)}
    return [key if last[key] == index else b"" for index, key in enumerate(keys)]


def expire(step: Step, place: Place) -> int:
    """Remove items whose time is over; return how many."""
    return _left(step, place, step.execute(_EXPIRE, queue=place.id, n=AT_ONCE).fetchall(), "expired")


def _left(step: Step, place: Place, rows: Sequence[tuple[int, int, int]], kind: str) -> int:
    """Count items that have left, by their numbers, states and sizes."""
    if rows:
        waiting = [(seq, size) for seq, state, size in rows if not state]
        delayed, dead = ([state for _, state, _ in rows].count(each) for each in (2, 3))
        counted = {kind: len(rows)} if kind else {}
        step.count(
            place.id,
            waiting=-len(waiting),
            size=-sum(size for _, size in waiting),
            delayed=-delayed,
            dead=-dead,
            **counted,
        )
        _positions.skip(step, place.id, [seq for seq, _ in waiting])
        tell(step, place)
    return len(rows)


def _numbers(step: Step, place: Place, n: int, tail: int, *, is_relaxed: bool) -> list[int]:
    """Return the next ``n`` numbers of a queue, whose tail is locked."""
    if not n:
        return []
    if is_relaxed:
        blocks = 1 + (n - 1 >> BLOCK)
        while True:  # until no other process took a block amid ours
            rows = step.execute(_BLOCKS, sequence=sequence(step.sql, place.id), n=blocks).fetchall()
            first, last = rows[0][0], rows[-1][0]
            if last - first == blocks - 1:
                return list(range(first << BLOCK, (first << BLOCK) + n))
    step.execute(_SET_NEXT, queue=place.id, next=tail + n)
    return list(range(tail, tail + n))


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Return which of so large payloads go together in a statement, which takes less than a gigabyte."""
    parts = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > MAX_SIZE:
            parts.append(slice(start, index))
            start, total = index, 0
        total += size + 4
    parts.append(slice(start, len(sizes)))
    return parts


def refuse_full(step: Step, place: Place, maxsize: int, added: int) -> None:
    """Raise ``Full`` if so many items more do not fit. The queue's tail is locked, so nobody else adds any."""
    if maxsize > 0 and (waiting := length(step, place)) + added > maxsize:
        raise Full("items", maxsize, waiting, added)


def length(step: Step, place: Place) -> int:
    """Return how many items wait. The queue is there."""
    return extent(step, place)[0]


def extent(step: Step, place: Place) -> tuple[int, int]:
    """Return how many items wait, and their bytes. The queue is there."""
    row = step.execute(_LENGTH, queue=place.id).fetchone()
    assert row is not None
    here = step.counts.get(place.id, {})
    return row[0] + here.get("waiting", 0), row[1] + here.get("size", 0)


def tail(step: Step, place: Place) -> int:
    """Return the number that the next item gets, 0 if the queue is gone."""
    row = step.execute(_NEXT_NUMBER, queue=place.id).fetchone()
    return 0 if row is None else row[0]


def tell(step: Step, place: Place) -> None:
    """Wake those who wait for the queue, when this is committed."""
    step.tell(place.channel)


def take(step: Step, place: Place, n: int, *, deaths: bool, looks_ahead: bool) -> Found:
    """Remove and return the first ``n`` entries that nobody else has locked, and note the token.

    It is undone unless the caller calls ``keep``. ``looks_ahead``: what is first then is returned, too.
    """
    if step.is_block:
        rows = step.execute(_TAKE_IN_BLOCK, queue=place.id, n=n, deaths=deaths).fetchall()
    else:
        values = {"row": step.row(place.id), "token": step.token, "ahead": looks_ahead}
        rows = step.execute(_TAKE if deaths else _TAKE_NOW, queue=place.id, n=n, deaths=deaths, **values).fetchall()
    if not rows or rows[-1][-4] is None:
        return Found([])
    *gone, (seq, payload, _, version, *_, is_overdue, is_followed, is_awaited, at) = rows
    ahead = Ahead(seq, payload, version) if seq is not None else None
    entries: list[Entry] = []
    for seq, payload, *notes, _, _, _, _ in sorted(gone, key=lambda each: each[0]):
        entry = Taken((pack(seq), payload))
        entry.notes = tuple(notes)
        entries.append(entry)
    if entries and not step.is_block and at is None:
        raise Lost(RuntimeError("the session was fenced"))
    return Found(
        entries,
        is_there=True,
        is_overdue=is_overdue,
        is_followed=is_followed,
        is_awaited=is_awaited,
        ahead=ahead,
    )


def keep(step: Step, place: Place, taken: Found) -> None:
    """Let what was taken be gone. Only now readers count it, since that locks them: a user's ``loads`` came before."""
    step.has_changed = True
    if step.is_block:
        step.count(place.id, waiting=-len(taken.entries), size=-sum(len(payload) for _, payload in taken.entries))
    if taken.is_followed:
        _positions.skip(step, place.id, [number(key) for key, _ in taken.entries])
    if taken.is_awaited:
        tell(step, place)


def trailers(step: Step, place: Place, seqs: Sequence[int]) -> dict[int, Trailer]:
    """Return when items of these numbers were pushed, and their headers, wherever they are."""
    rows = step.execute(_TRAILERS, queue=place.id, seqs=list(seqs)).fetchall()
    return {seq: Trailer(pushed_at * 1000, headers=json.loads(headers or b"{}")) for seq, pushed_at, headers in rows}


def find(step: Step, place: Place, key: bytes) -> int | None:
    """Return the number of the item with a unique key."""
    return _held(step, place, [key]).get(key)


def cancel(step: Step, place: Place, key: bytes) -> bool:
    """Remove the item with a unique key, if it waits or is delayed; return whether it did."""
    return _left(step, place, step.execute(_REPLACE, queue=place.id, keys=[key]).fetchall(), "") > 0


def delete_item(step: Step, place: Place, seq: int) -> bool:
    """Remove the item of this number, if it waits; return whether it did."""
    return _left(step, place, step.execute(_DELETE_ITEM, queue=place.id, seq=seq).fetchall(), "") > 0


def delete(step: Step, place: Place, n: int) -> int:
    """Remove the first ``n`` items, or as many as there are; return how many went."""
    return _gone(step, place, step.execute(_DELETE, queue=place.id, n=n).fetchone())


def clear(step: Step, place: Place) -> int:
    """Remove all items that wait; return how many went."""
    return _gone(step, place, step.execute(_CLEAR, queue=place.id).fetchone())


def trim(step: Step, place: Place, last: int, *, is_read: bool) -> list[int]:
    """Remove the items up to a number that nobody is taking, which all readers have passed or not.

    Returns the numbers of what went, if there are readers.
    """
    went: list[int] = []
    while True:
        row = step.execute(_TRIM, queue=place.id, last=last, n=AT_ONCE).fetchone()
        removed = _gone(step, place, row, is_read=is_read)
        if removed and not is_read:
            step.count(place.id, dropped=removed)
        went += (row and row[2]) or []
        if removed < AT_ONCE:
            return went


def beyond(step: Step, place: Place, kept: _positions.Reach) -> int:
    """Return the number of the last item that is beyond what is kept, or some of which are."""
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


def put_back(step: Step, place: Place, entries: Sequence[Entry]) -> None:
    """Insert items that were taken at the places that they had, with all that was known of them."""
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


def is_followed(step: Step, place: Place) -> bool:
    """Tell whether the queue has readers. Whoever makes one locks the tail before."""
    return step.execute(_IS_FOLLOWED, queue=place.id).fetchone() == (True,)


def come_due(step: Step, place: Place) -> int:
    """Let some items wait whose time has come, in their places; return how many."""
    row = step.execute(_COME_DUE, queue=place.id, n=AT_ONCE).fetchone()
    assert row is not None
    come: int = row[0]
    if come:
        step.count(place.id, delayed=-come, waiting=come, size=row[1])
        tell(step, place)
    return come


def come_last(step: Step, place: Place) -> Appended | None:
    """Do as ``come_due``, but let them wait at the tail, with new numbers. None: the queue is gone."""
    locked = _positions.lock_tail(step, place.id)
    if locked is None:
        return None
    first, is_kept = locked
    counted = step.execute(_COME_LAST, queue=place.id, tail=first, n=AT_ONCE).fetchone()
    assert counted is not None
    come, size = counted
    if come:
        step.execute(_SET_NEXT, queue=place.id, next=first + come)
        step.count(place.id, pushed=come, delayed=-come, waiting=come, size=size)
        tell(step, place)
    items = [Pushed(seq, is_stored=True) for seq in range(first, first + come)]
    return Appended(items, is_kept and bool(come))


def move(step: Step, place: Place, target: Place, n: int, maxsize: int) -> Appended | None:
    """Move the first ``n`` items to the tail of another queue; return what came there, None if that is gone.

    They keep their priorities.
    """
    locked, options = _locked(step, target)
    if locked is None or options is None:
        return None
    (tail, is_kept), (is_relaxed, is_followed, has_classes) = locked, options
    numbers = None
    if maxsize > 0 or is_relaxed:
        n = len(step.execute(_ARE_FIRST, queue=place.id, n=n).fetchall())
        refuse_full(step, target, maxsize, n)
        numbers = (_numbers(step, target, n, 0, is_relaxed=True) or None) if is_relaxed else None
    moved = sorted(step.execute(_MOVED, queue=place.id, target=target.id, tail=tail, n=n, numbers=numbers).fetchall())
    if moved:
        if any(seq >> _CLASS for seq, _, _ in moved):
            if is_followed:
                raise OptionError(step.path, "priority", "named readers", "a priority")
            if not has_classes:
                step.execute(_HAVE_CLASSES, queue=target.id)
        size = sum(each for _, _, each in moved)
        if not is_relaxed:
            step.execute(_SET_NEXT, queue=target.id, next=tail + len(moved))
        _positions.skip(step, place.id, [before for _, before, _ in moved])
        step.count(place.id, waiting=-len(moved), size=-size)
        step.count(target.id, pushed=len(moved), waiting=len(moved), size=size)
        tell(step, place)
        tell(step, target)
    items = [Pushed(seq, is_stored=True) for seq, _, _ in moved]
    return Appended(items, is_kept and bool(moved))
