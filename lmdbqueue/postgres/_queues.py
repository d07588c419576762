"""The queues of a schema: creating, listing, copying, dropping, verifying them.

Owns: operations on a queue as a whole. Law: a call on a dropped queue finds its row gone; no number of a queue is used
twice. Must not know: connections, what is in an item.
"""

from typing import Final, LiteralString, NamedTuple

from psycopg import sql

from lmdbqueue.postgres._items import Place, sequence
from lmdbqueue.postgres._positions import lock_tail
from lmdbqueue.postgres._step import Step

_FIND: Final = "SELECT id, is_relaxed, serializer FROM {queues} WHERE name = %(name)s"
_MAKE: Final = """
WITH made AS (
    INSERT INTO {queues} (name, is_relaxed, serializer) VALUES (%(name)s, %(is_relaxed)s, %(serializer)s)
    ON CONFLICT (name) DO NOTHING RETURNING id)
INSERT INTO {tails} (queue) SELECT id FROM made RETURNING queue
"""
_MAKE_SEQUENCE: Final = "CREATE SEQUENCE {} MINVALUE 0"
_START_SEQUENCE: Final = "SELECT setval(%(sequence)s::regclass, nextval(%(source)s::regclass))"
_DROP_SEQUENCE: Final = "DROP SEQUENCE IF EXISTS {}"
_NAMES: Final = "SELECT name FROM {queues} ORDER BY name"
_DROP: Final = "DELETE FROM {queues} WHERE name = %(name)s RETURNING id, is_relaxed"
_DROP_REST: Final = (
    "DELETE FROM {tails} WHERE queue = %(queue)s",
    "DELETE FROM {items} WHERE queue = %(queue)s AND state IN (0, 1, 2, 3)",
    "DELETE FROM {claims} WHERE queue = %(queue)s",
    "DELETE FROM {owners} WHERE queue = %(queue)s",
    "DELETE FROM {sleepers} WHERE queue = %(queue)s",
    "DELETE FROM {state} WHERE queue = %(queue)s",
    "DELETE FROM {marks} WHERE queue = %(queue)s",
    "DELETE FROM {readers} WHERE queue = %(queue)s",
    "UPDATE {ledger} SET is_folded = true, is_fenced = true WHERE queue = %(queue)s AND NOT is_folded",
)
_COPY: Final = """
INSERT INTO {queues} (name, serializer, is_relaxed, has_classes, is_followed, kept_items, kept_bytes, kept_age)
SELECT %(name)s, serializer, is_relaxed, has_classes, is_followed, kept_items, kept_bytes, kept_age
FROM {queues} WHERE id = %(queue)s
ON CONFLICT (name) DO NOTHING RETURNING id, is_relaxed
"""
_COPY_TAIL: Final = "INSERT INTO {tails} (queue, next, is_slow) VALUES (%(copy)s, %(next)s, %(is_slow)s)"
_COPY_ITEMS: Final = """
WITH copied AS (
    INSERT INTO {items} (queue, seq, until, attempts, state, key, changed, reason, payload, pushed_at, expires_at,
                         headers)
    SELECT %(copy)s, seq, CASE state WHEN 1 THEN NULL ELSE until END, attempts, CASE state WHEN 1 THEN 0 ELSE state END,
        key, changed, reason, payload, pushed_at, expires_at, headers
    FROM {items} WHERE queue = %(queue)s AND state IN (0, 1, 2, 3)
    RETURNING state, octet_length(payload) AS size),
state_copied AS (
    INSERT INTO {state} (queue, key, value) SELECT %(copy)s, key, value FROM {state} WHERE queue = %(queue)s),
readers_copied AS (
    INSERT INTO {readers} (queue, name, passed, skipped, seen)
    SELECT %(copy)s, name, passed, skipped, seen FROM {readers} WHERE queue = %(queue)s)
UPDATE {queues} SET
    pushed = %(pushed)s,
    waiting = (SELECT count(*) FROM copied WHERE state = 0),
    size = (SELECT coalesce(sum(size), 0) FROM copied WHERE state = 0),
    delayed = (SELECT count(*) FROM copied WHERE state = 2),
    dead = (SELECT count(*) FROM copied WHERE state = 3)
WHERE id = %(copy)s
"""
_PUSHED: Final = """
SELECT pushed + coalesce((SELECT sum(pushed) FROM {ledger} WHERE queue = %(queue)s AND NOT is_folded), 0)::bigint
FROM {queues} WHERE id = %(queue)s
"""
_SIZE: Final = "SELECT pg_total_relation_size(format('%%I.items', %(schema)s::text)::regclass)"
_VACUUM: Final = "VACUUM {items}"

_WRONG_COUNTS: Final = """
SELECT q.name, kind, counted, there FROM {queues} AS q,
LATERAL (SELECT coalesce(sum(pushed), 0) AS pushed, coalesce(sum(waiting), 0) AS waiting,
                coalesce(sum(size), 0) AS size, coalesce(sum(leased), 0) AS leased,
                coalesce(sum(delayed), 0) AS delayed, coalesce(sum(dead), 0) AS dead
         FROM {ledger} WHERE queue = q.id AND NOT is_folded) AS c,
LATERAL (SELECT count(*) FILTER (WHERE state = 0) AS waiting, count(*) FILTER (WHERE state = 1) AS leased,
                count(*) FILTER (WHERE state = 2) AS delayed, count(*) FILTER (WHERE state = 3) AS dead,
                coalesce(sum(octet_length(payload)) FILTER (WHERE state = 0), 0) AS size
         FROM {items} WHERE queue = q.id) AS i,
LATERAL (SELECT next FROM {tails} WHERE queue = q.id ORDER BY epoch DESC LIMIT 1) AS t,
LATERAL (VALUES ('waiting', q.waiting + c.waiting, i.waiting), ('leased', q.leased + c.leased, i.leased),
                ('delayed', q.delayed + c.delayed, i.delayed), ('dead', q.dead + c.dead, i.dead),
                ('bytes', q.size + c.size, i.size),
                ('pushed', CASE WHEN q.is_relaxed THEN t.next ELSE q.pushed + c.pushed END, t.next))
    AS kinds (kind, counted, there)
WHERE counted <> there ORDER BY q.name, kind
"""
_WRONG_ITEMS: Final = """
SELECT q.name, i.seq, i.state, i.lease, NOT q.is_relaxed AND i.seq & ((1::bigint << 56) - 1) >= t.next
FROM {queues} AS q JOIN {items} AS i ON i.queue = q.id,
LATERAL (SELECT next FROM {tails} WHERE queue = q.id ORDER BY epoch DESC LIMIT 1) AS t
WHERE (NOT q.is_relaxed AND i.seq & ((1::bigint << 56) - 1) >= t.next)
OR i.state NOT IN (0, 1, 2, 3) OR (i.state = 1) <> (i.lease IS NOT NULL) OR (i.state = 2 AND i.until IS NULL)
OR (i.state IN (0, 3) AND i.until IS NOT NULL)
OR (i.state = 1 AND i.lease >> 20 NOT IN (SELECT holder FROM {owners} WHERE queue = q.id))
ORDER BY q.name, i.seq LIMIT 100
"""
_TWICE: Final = """
SELECT q.name, seq, count(*) FROM {items} JOIN {queues} AS q ON q.id = queue
GROUP BY q.name, seq HAVING count(*) > 1 ORDER BY q.name, seq LIMIT 100
"""
_WRONG_READERS: Final = """
SELECT q.name FROM {queues} AS q WHERE is_followed <> EXISTS (SELECT FROM {readers} WHERE queue = q.id) ORDER BY q.name
"""


class Known(NamedTuple):
    """The facts of an existing queue."""

    id: int
    is_relaxed: bool
    serializer: str


def find(step: Step, name: str) -> Known | None:
    """Return the number of a queue and its options, None if it does not exist."""
    row = step.execute(_FIND, name=name).fetchone()
    return None if row is None else Known(*row)


def make(step: Step, name: str, *, is_relaxed: bool, serializer: str) -> Known:
    """Create a queue if it is missing; return its number, and its options if it existed."""
    made = step.execute(_MAKE, name=name, is_relaxed=is_relaxed, serializer=serializer).fetchall()
    if made:
        step.has_changed = True
        if is_relaxed:
            _with_sequence(step, _MAKE_SEQUENCE, made[0][0])
    found = find(step, name)
    assert found is not None  # an uncommitted queue cannot be dropped
    return found


def _with_sequence(step: Step, statement: LiteralString, queue: int) -> None:
    """Create or drop the sequence of a queue."""
    step.connection.execute(sql.SQL(statement).format(sql.Identifier(step.sql.schema, f"numbers_{queue}")))


def names(step: Step) -> list[str]:
    """Return the names of all queues."""
    return [row[0] for row in step.execute(_NAMES).fetchall()]


def drop(step: Step, name: str) -> int | None:
    """Remove a queue with everything that belongs to it; return its number, None if it did not exist."""
    row = step.execute(_DROP, name=name).fetchone()
    if row is None:
        return None
    found: int = row[0]
    for statement in _DROP_REST:
        step.execute(statement, queue=found)
    if row[1]:
        _with_sequence(step, _DROP_SEQUENCE, found)
    step.has_changed = True
    return found


def copy(step: Step, place: Place, name: str) -> int | None:
    """Make a copy of a queue, in which no item is leased; return its number, None if the name is taken.

    No item is pushed meanwhile (in relaxed order, uncommitted items are not in the copy), and items that leave
    meanwhile may or may not be in it.
    """
    tail = lock_tail(step, place.id)
    row = step.execute(_COPY, queue=place.id, name=name).fetchone()
    if row is None or tail is None:
        return None
    found: int = row[0]
    step.execute(_COPY_TAIL, copy=found, next=tail[0], is_slow=tail[1])
    if row[1]:
        _with_sequence(step, _MAKE_SEQUENCE, found)
        names = {"sequence": sequence(step.sql, found), "source": sequence(step.sql, place.id)}
        step.execute(_START_SEQUENCE, **names)
    pushed = step.execute(_PUSHED, queue=place.id).fetchone()
    assert pushed is not None
    step.execute(_COPY_ITEMS, queue=place.id, copy=found, pushed=pushed[0])
    step.has_changed = True
    return found


def vacuum(step: Step) -> int:
    """Make the space of removed items reusable; return the number of bytes returned to the file system."""
    before = _size(step)
    step.execute(_VACUUM)
    return max(0, before - _size(step))


def _size(step: Step) -> int:
    row = step.execute(_SIZE, schema=step.sql.schema).fetchone()
    assert row is not None
    size: int = row[0]
    return size


def problems(step: Step) -> list[str]:
    """Return a sentence for each fault of the tables."""
    found = [
        f"queue {name!r}: {counted} items are counted as {kind}, but {there} are"
        for name, kind, counted, there in step.execute(_WRONG_COUNTS).fetchall()
    ]
    for name, seq, state, lease, is_behind in step.execute(_WRONG_ITEMS).fetchall():
        what = "is beyond the tail" if is_behind else f"is in state {state}, but its lease is {lease}"
        found.append(f"queue {name!r}: item {seq} {what}")
    for name, seq, n in step.execute(_TWICE).fetchall():
        found.append(f"queue {name!r}: item {seq} exists {n} times")
    for (name,) in step.execute(_WRONG_READERS).fetchall():
        found.append(f"queue {name!r}: its row does not say whether it has readers")
    return found
