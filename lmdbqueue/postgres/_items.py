"""What waits: the verbs as functions of a transaction.

Owns: the order of items. Law: a number is given once, under the lock of the queue's row, which is held until the
commit, so the order of numbers is that of commits; what somebody else is taking at this moment is passed over, never
waited for. Must not know: connections, retries, pickling.

An item that had a delay is before all that had none, in the order of the times at which they came due; that is the
order of (due, seq), since ``due`` is the greatest number for those without.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._errors import Full
from lmdbqueue._values import Entry
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._positions import Where
from lmdbqueue.postgres._session import Step
from lmdbqueue.postgres._sql import NEVER

BROWSE_BYTES: Final = 1 << 18  # of items that iteration reads at a time
_BROWSE_ITEMS: Final = 2_000


class Place(NamedTuple):
    """The queue that a function works on."""

    id: int
    channel: str


class Apart(NamedTuple):
    """How items are pushed that do not just wait."""

    keys: Sequence[bytes]  # digests, b"" for none
    delay: float  # seconds
    maxsize: int


class Appended(NamedTuple):
    """What was appended: ``numbers`` of what was given, ``sizes`` of what was new, numbered from ``first`` on."""

    numbers: list[int]
    first: int
    sizes: list[int]
    is_kept: bool  # something may be beyond what is kept now


class Found(NamedTuple):
    """What was found in a queue, and what was seen of it on the way."""

    entries: list[Entry]
    is_there: bool = False
    is_overdue: bool = False  # something has to come back first
    is_followed: bool = False  # the queue has readers, which count what they lose


# What has to come back: leases and delays whose time is over, and, if that is asked, leases whose owner is dead
_OVERDUE: Final = """
    coalesce((SELECT deadline FROM {leases} WHERE queue = %(queue)s ORDER BY deadline LIMIT 1)
             <= statement_timestamp(), false)
    OR coalesce((SELECT due FROM {items} WHERE queue = %(queue)s AND state = 'delayed' ORDER BY due LIMIT 1)
                <= {now}, false)"""
_ORPHANED: Final = """
    OR %(deaths)s AND EXISTS (
        SELECT FROM (SELECT DISTINCT owner FROM {leases} WHERE queue = %(queue)s) AS each
        WHERE pg_try_advisory_xact_lock_shared(owner))"""
STATUS: Final = (
    "SELECT NULL::bytea, NULL::bigint, ("
    + _OVERDUE
    + _ORPHANED
    + """)::int::bigint
FROM {queues} WHERE id = %(queue)s
"""
)
_FIRST: Final = (
    """
(SELECT payload, seq, due FROM {items} WHERE queue = %(queue)s AND state = 'waiting'
ORDER BY due, seq LIMIT %(n)s)
UNION ALL """
    + STATUS
)
_CLAIM: Final = (
    """
WITH mine AS (SELECT FROM {sessions} WHERE id = %(session)s AND NOT is_fenced FOR UPDATE),
first AS (
    SELECT payload, seq, due FROM {items} WHERE queue = %(queue)s AND state = 'waiting' AND EXISTS (SELECT FROM mine)
    ORDER BY due, seq LIMIT %(n)s FOR UPDATE SKIP LOCKED)
SELECT payload, seq, due FROM first
UNION ALL """
    + STATUS
    + " AND EXISTS (SELECT FROM mine)"
)
_SINCE: Final = (
    """
(SELECT payload, seq, due FROM (
    SELECT payload, seq, due, sum(octet_length(payload)) OVER (ORDER BY due, seq) - octet_length(payload) AS before
    FROM (SELECT * FROM {items} WHERE queue = %(queue)s AND state = 'waiting' AND (due, seq) > (%(due)s, %(seq)s)
          ORDER BY due, seq LIMIT %(n)s) AS next) AS page
WHERE before < %(size)s ORDER BY due, seq)
UNION ALL """
    + STATUS
)

# If the session is fenced there is no number for an item, and the server undoes all of it: ``Session.once`` knows that.
# Where more has to be done, since the queue keeps only so much, or is gone, nothing is done and no row returned
_PUSH: Final = """
WITH given AS (
    UPDATE {queues} SET tail = tail + %(n)s WHERE id = %(queue)s AND NOT is_kept
    RETURNING tail - %(n)s AS first, is_awaited),
noted AS (
    UPDATE {sessions} SET token = %(token)s, result = (SELECT first FROM given), seen = statement_timestamp()
    WHERE id = %(session)s AND NOT is_fenced AND EXISTS (SELECT FROM given) RETURNING result)"""
PUSH: Final = (
    _PUSH
    + """,
stored AS (
    INSERT INTO {items} (queue, seq, payload)
    SELECT %(queue)s, (SELECT result FROM noted) + place - 1, payload
    FROM given, unnest(%(payloads)s::bytea[]) WITH ORDINALITY AS pushed (payload, place))
SELECT first, CASE WHEN is_awaited THEN pg_notify(%(channel)s, '') END FROM given
"""
)
PUSH_ONE: Final = (
    _PUSH
    + """
INSERT INTO {items} (queue, seq, payload) SELECT %(queue)s, (SELECT result FROM noted), %(payload)s FROM given
RETURNING seq, (SELECT pg_notify(%(channel)s, '') FROM given WHERE is_awaited)
"""
)
# Nothing is removed if the session is fenced
_TAKE: Final = """
WITH noted AS (
    UPDATE {sessions} SET token = %(token)s, result = NULL, seen = statement_timestamp()
    WHERE id = %(session)s AND NOT is_fenced RETURNING 1),
first AS (
    SELECT payload, seq, due FROM {items} WHERE queue = %(queue)s AND state = 'waiting' AND EXISTS (SELECT FROM noted)
    ORDER BY due, seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM {items} WHERE queue = %(queue)s AND seq = ANY(ARRAY(SELECT seq FROM first))),
counted AS (
    INSERT INTO {counts} (queue, session, taken) SELECT %(queue)s, %(session)s, count(*) FROM first
    ON CONFLICT (queue, session) DO UPDATE SET taken = {counts}.taken + excluded.taken)
SELECT payload, seq, due, (SELECT pg_notify(%(channel)s, '') FROM {queues} WHERE id = %(queue)s AND is_watched), ("""
_TAKE_END: Final = "), (SELECT is_followed FROM {queues} WHERE id = %(queue)s) FROM first"
_TAKE_NOW: Final = _TAKE + _OVERDUE + _TAKE_END
_TAKE_ALSO: Final = _TAKE + _OVERDUE + _ORPHANED + _TAKE_END

_TAIL: Final = "SELECT tail, is_kept FROM {queues} WHERE id = %(queue)s FOR NO KEY UPDATE"
_NEXT_NUMBER: Final = "SELECT tail FROM {queues} WHERE id = %(queue)s"
_LENGTH: Final = """
SELECT q.tail - q.taken - coalesce((SELECT sum(c.taken) FROM {counts} AS c WHERE c.queue = q.id), 0)::bigint
FROM {queues} AS q WHERE q.id = %(queue)s
"""
_HELD: Final = "SELECT key, seq FROM {items} WHERE queue = %(queue)s AND key = ANY(%(keys)s::bytea[])"
_APPEND: Final = """
WITH stored AS (
    INSERT INTO {items} (queue, seq, payload, key, state, due)
    SELECT %(queue)s, %(first)s + place - 1, payload, nullif(key, ''::bytea),
           CASE WHEN %(delay)s > 0 THEN 'delayed' ELSE 'waiting' END,
           CASE WHEN %(delay)s > 0 THEN {now} + %(delay)s ELSE {never} END
    FROM unnest(%(payloads)s::bytea[], %(keys)s::bytea[]) WITH ORDINALITY AS pushed (payload, key, place))
UPDATE {queues} SET tail = %(first)s + %(n)s WHERE id = %(queue)s
"""
_NOTIFY: Final = "SELECT pg_notify(%(channel)s, '')"

_REMOVE: Final = "DELETE FROM {items} WHERE queue = %(queue)s AND seq = ANY(%(seqs)s::bigint[])"
_ARE_FIRST: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 'waiting' ORDER BY due, seq LIMIT %(n)s FOR UPDATE
"""
# How many went, whether somebody wants to know, and which they were, if readers have to
_COUNTED: Final = """
SELECT count(*), bool_or(is_watched),
    array_agg(due) FILTER (WHERE is_followed), array_agg(seq) FILTER (WHERE is_followed)
FROM gone, (SELECT is_watched, is_followed FROM {queues} WHERE id = %(queue)s) AS q
"""
_DELETE: Final = (
    """
WITH first AS (
    SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 'waiting'
    ORDER BY due, seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} USING first WHERE items.queue = %(queue)s AND items.seq = first.seq RETURNING due, items.seq)
"""
    + _COUNTED
)
_CLEAR: Final = (
    """
WITH gone AS (DELETE FROM {items} WHERE queue = %(queue)s AND state = 'waiting' RETURNING due, seq)
"""
    + _COUNTED
)
# What all have passed, or what is beyond what is kept. What others are taking leaves with them, or else the next time
_TRIM: Final = (
    """
WITH first AS (
    SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 'waiting' AND (due, seq) <= (%(due)s, %(seq)s)
    ORDER BY due, seq FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM {items} USING first WHERE items.queue = %(queue)s AND items.seq = first.seq RETURNING due, items.seq)
"""
    + _COUNTED
)
_NTH: Final = """
SELECT due, seq FROM {items} WHERE queue = %(queue)s AND state = 'waiting' ORDER BY due, seq OFFSET %(n)s LIMIT 1
"""
_PUT_BACK: Final = """
INSERT INTO {items} (queue, seq, due, payload)
SELECT id, seq, due, payload
FROM (SELECT id FROM {queues} WHERE id = %(queue)s FOR KEY SHARE) AS there,
     unnest(%(seqs)s::bigint[], %(dues)s::bigint[], %(payloads)s::bytea[]) AS pushed (seq, due, payload)
"""
_MOVE: Final = """
WITH first AS (
    SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 'waiting'
    ORDER BY due, seq LIMIT %(n)s FOR UPDATE SKIP LOCKED),
numbered AS (SELECT due, seq, row_number() OVER (ORDER BY due, seq) AS place FROM {items} JOIN first USING (seq)
             WHERE queue = %(queue)s),
moved AS (
    UPDATE {items} SET queue = %(target)s, seq = %(tail)s + place - 1, due = {never}, key = NULL, attempts = 0,
                       changed = NULL, reason = NULL
    FROM numbered WHERE items.queue = %(queue)s AND items.seq = numbered.seq
    RETURNING items.seq, numbered.due, numbered.seq, octet_length(payload))
SELECT * FROM moved ORDER BY 1
"""
_COME_DUE: Final = """
UPDATE {items} SET state = 'waiting' WHERE queue = %(queue)s AND seq = ANY(ARRAY(
    SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 'delayed' AND due <= {now}
    ORDER BY due LIMIT 10000 FOR UPDATE SKIP LOCKED))
"""
_COME_LAST: Final = """
WITH due AS (
    SELECT due, seq FROM {items} WHERE queue = %(queue)s AND state = 'delayed' AND due <= {now}
    ORDER BY due LIMIT 10000 FOR UPDATE SKIP LOCKED),
numbered AS (SELECT seq, row_number() OVER (ORDER BY due, seq) AS place FROM due),
come AS (
    UPDATE {items} SET state = 'waiting', seq = %(tail)s + place - 1, due = {never}
    FROM numbered WHERE items.queue = %(queue)s AND items.seq = numbered.seq
    RETURNING items.seq, octet_length(payload))
SELECT * FROM come ORDER BY 1
"""
_IS_FOLLOWED: Final = "SELECT is_followed FROM {queues} WHERE id = %(queue)s FOR KEY SHARE"
_SET_TAIL: Final = "UPDATE {queues} SET tail = %(tail)s WHERE id = %(queue)s"


# --- looking


def first(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Return the first ``n`` entries; ``deaths``: whether to look for owners that are dead."""
    return seen(step.execute(_FIRST, queue=place.id, n=n, deaths=deaths).fetchall())


def claim(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Lock and return the first ``n`` entries that nobody else has locked, and the session's row, if it is ours."""
    found = seen(step.execute(_CLAIM, queue=place.id, n=n, deaths=deaths, session=step.session).fetchall())
    if not found.is_there and not step.fence().fetchall():
        raise Lost(RuntimeError("the session was fenced"))
    return found


def since(step: Step, place: Place, after: bytes, *, deaths: bool) -> Found:
    """Return some entries behind a place, b"" for all; none only if there are none."""
    due, seq = where(after) if after else (-1, -1)
    rows = step.execute(
        _SINCE, queue=place.id, due=due, seq=seq, n=_BROWSE_ITEMS, size=BROWSE_BYTES, deaths=deaths
    ).fetchall()
    return seen(rows)


def status(step: Step, place: Place, *, deaths: bool) -> Found:
    """Return what there is to see but the entries."""
    return seen(step.execute(STATUS, queue=place.id, deaths=deaths).fetchall())


def seen(rows: list[tuple[bytes | None, int, int]]) -> Found:
    """Return what the rows say that end with those of ``STATUS``."""
    entries = [(_key(seq, due), payload) for payload, seq, due in rows if payload is not None]
    for payload, _, is_overdue in reversed(rows):
        if payload is None:
            return Found(entries, is_there=True, is_overdue=bool(is_overdue))
    return Found([])


def _key(seq: int, due: int) -> bytes:
    return _format.pack(seq) if due == NEVER else _format.place(seq, due)


def where(place: bytes) -> Where:
    """Return what stands in the table for the key of an entry."""
    return _format.due(place) or NEVER, _format.number(place)


# --- changing


def append(step: Step, place: Place, payloads: Sequence[bytes], apart: Apart) -> Appended | None:
    """Append payloads, all or none; return their numbers, or those of the items that have the keys.

    None: the queue is gone. Raises ``Full``.
    """
    row = step.execute(_TAIL, queue=place.id).fetchone()
    if row is None:
        return None
    tail, is_kept = row
    wanted = [key for key in apart.keys if key]
    held: dict[bytes, int] = dict(step.execute(_HELD, queue=place.id, keys=wanted).fetchall()) if wanted else {}
    numbers = []
    new: list[tuple[bytes, bytes]] = []
    for payload, key in zip(payloads, apart.keys, strict=True):
        number = held.get(key) if key else None
        if number is None:
            number = tail + len(new)
            new.append((payload, key))
            if key:
                held[key] = number
        numbers.append(number)
    if new:
        refuse_full(step, place, apart.maxsize, len(new))
        step.execute(
            _APPEND,
            queue=place.id,
            first=tail,
            n=len(new),
            delay=int(apart.delay * 1e6),
            payloads=[payload for payload, _ in new],
            keys=[key for _, key in new],
        )
        step.has_changed = True
        if apart.delay:
            step.count(place.id, waiting=-len(new), delayed=len(new))
        tell(step, place)
    sizes = [len(payload) for payload, _ in new]
    return Appended(numbers, tail, sizes, is_kept and bool(new) and not apart.delay)


def refuse_full(step: Step, place: Place, maxsize: int, added: int) -> None:
    """Raise ``Full`` if so many items more do not fit. The queue's row is locked, so nobody else adds any."""
    if maxsize > 0 and (waiting := length(step, place)) + added > maxsize:
        raise Full("items", maxsize, waiting, added)


def length(step: Step, place: Place) -> int:
    """Return how many items wait. The queue is there."""
    row = step.execute(_LENGTH, queue=place.id).fetchone()
    assert row is not None
    waiting: int = row[0] + step.counts.get(place.id, {}).get("waiting", 0)
    return waiting


def tail(step: Step, place: Place) -> int:
    """Return the number that the next item gets, 0 if the queue is gone."""
    row = step.execute(_NEXT_NUMBER, queue=place.id).fetchone()
    return 0 if row is None else row[0]


def tell(step: Step, place: Place) -> None:
    """Wake those who wait for the queue, when this is committed."""
    step.execute(_NOTIFY, channel=place.channel)


def take(step: Step, place: Place, n: int, *, deaths: bool) -> Found:
    """Remove and return the first ``n`` entries that nobody else has locked; count them, and note the token.

    It is undone unless the caller calls ``keep``.
    """
    rows = step.execute(
        _TAKE_ALSO if deaths else _TAKE_NOW,
        queue=place.id,
        channel=place.channel,
        session=step.session,
        token=step.token,
        n=n,
        **{"deaths": True} if deaths else {},
    ).fetchall()
    if rows:
        step.is_noted = True
        *_, is_overdue, is_followed = rows[0]
        entries = [(_key(seq, due), payload) for payload, seq, due, _, _, _ in rows]
        return Found(entries, is_there=True, is_overdue=is_overdue, is_followed=is_followed)
    if not step.fence().fetchall():
        raise Lost(RuntimeError("the session was fenced"))
    return status(step, place, deaths=deaths)


def keep(step: Step, place: Place, taken: Found) -> None:
    """Let what was taken be gone. Only now readers count it, since that locks them: a user's ``loads`` came before."""
    step.has_changed = True
    if taken.is_followed:
        _positions.skip(step, place.id, [where(key) for key, _ in taken.entries])


def remove(step: Step, place: Place, keys: Sequence[bytes]) -> int:
    """Remove the first items if they are just those of ``keys``, else nothing; return how many went."""
    seqs = [_format.number(key) for key in keys]
    rows = step.execute(_ARE_FIRST, queue=place.id, n=len(seqs)).fetchall()
    if not seqs or [row[0] for row in rows] != seqs:
        return 0
    step.execute(_REMOVE, queue=place.id, seqs=seqs)
    _positions.skip(step, place.id, map(where, keys))
    step.count(place.id, waiting=-len(seqs))
    tell(step, place)
    return len(seqs)


def delete(step: Step, place: Place, n: int) -> int:
    """Remove the first ``n`` items, or as many as there are; return how many went."""
    return _gone(step, place, step.execute(_DELETE, queue=place.id, n=n).fetchone())


def clear(step: Step, place: Place) -> int:
    """Remove all items that wait; return how many went."""
    return _gone(step, place, step.execute(_CLEAR, queue=place.id).fetchone())


def trim(step: Step, place: Place, last: Where, *, is_read: bool) -> list[int]:
    """Remove the items up to a place that nobody is taking, which all readers have passed or not.

    Returns the numbers of what went, if there are readers.
    """
    row = step.execute(_TRIM, queue=place.id, due=last[0], seq=last[1]).fetchone()
    _gone(step, place, row, is_read=is_read)
    return (row and row[3]) or []


def nth(step: Step, place: Place, n: int) -> Where:
    """Return the place of the item before which ``n`` wait, that before all if there is none."""
    row = step.execute(_NTH, queue=place.id, n=n).fetchone()
    return _positions.NOTHING if row is None else (row[0], row[1])


def _gone(step: Step, place: Place, row: Any, *, is_read: bool = False) -> int:
    assert row is not None  # of an aggregate
    removed, is_watched, dues, seqs = row
    if removed:
        step.count(place.id, waiting=-removed)
        if is_watched:
            tell(step, place)
        if dues is not None and not is_read:
            _positions.skip(step, place.id, zip(dues, seqs, strict=True))
    count: int = removed
    return count


def put_back(step: Step, place: Place, entries: Sequence[Entry]) -> None:
    """Insert items that were taken at the places that they had."""
    places = [where(key) for key, _ in entries]
    inserted = step.changed(
        _PUT_BACK,
        queue=place.id,
        seqs=[seq for _, seq in places],
        dues=[due for due, _ in places],
        payloads=[payload for _, payload in entries],
    )
    step.count(place.id, waiting=inserted)
    tell(step, place)


def is_followed(step: Step, place: Place) -> bool:
    """Tell whether the queue has readers, and let it stay so until the end of the transaction."""
    return step.execute(_IS_FOLLOWED, queue=place.id).fetchone() == (True,)


def come_due(step: Step, place: Place) -> int:
    """Let some items wait whose time has come, before all others; return how many."""
    come = step.changed(_COME_DUE, queue=place.id)
    if come:
        step.count(place.id, delayed=-come, waiting=come)
        tell(step, place)
    return come


def come_last(step: Step, place: Place) -> Appended:
    """Do as ``come_due``, but let them wait at the tail, with new numbers. The queue is there."""
    ((first, is_kept),) = step.execute(_TAIL, queue=place.id).fetchall()
    come = step.execute(_COME_LAST, queue=place.id, tail=first).fetchall()
    if come:
        step.execute(_SET_TAIL, queue=place.id, tail=first + len(come))  # which counts them
        step.count(place.id, delayed=-len(come))
        tell(step, place)
    return Appended([number for number, _ in come], first, [size for _, size in come], is_kept and bool(come))


def move(step: Step, place: Place, target: Place, n: int, maxsize: int) -> Appended | None:
    """Move the first ``n`` items to the tail of another queue; return what came there, None if that is gone."""
    row = step.execute(_TAIL, queue=target.id).fetchone()
    if row is None:
        return None
    tail, is_kept = row
    if maxsize > 0:
        there = len(step.execute(_ARE_FIRST, queue=place.id, n=n).fetchall())
        refuse_full(step, target, maxsize, there)
    moved = step.execute(_MOVE, queue=place.id, target=target.id, tail=tail, n=n).fetchall()
    if moved:
        step.execute(_SET_TAIL, queue=target.id, tail=tail + len(moved))
        _positions.skip(step, place.id, [(due, seq) for _, due, seq, _ in moved])
        step.count(place.id, waiting=-len(moved))
        tell(step, place)
        tell(step, target)
    return Appended(
        [number for number, _, _, _ in moved], tail, [size for _, _, _, size in moved], is_kept and bool(moved)
    )
