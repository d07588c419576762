"""The queues of a schema: making, listing, copying, dropping, proving them.

Owns: what concerns a queue as a whole. Law: whoever uses a queue that was dropped finds its row gone; no number of a
queue is given twice. Must not know: connections, what is in an item.
"""

from typing import Final

from lmdbqueue.postgres._items import Place
from lmdbqueue.postgres._session import Step

_FIND: Final = "SELECT id FROM {queues} WHERE name = %(name)s"
_MAKE: Final = "INSERT INTO {queues} (name) VALUES (%(name)s) ON CONFLICT (name) DO NOTHING"
_WATCH: Final = "UPDATE {queues} SET is_watched = true WHERE id = %(queue)s AND NOT is_watched"
_NAMES: Final = "SELECT name FROM {queues} ORDER BY name"
_DROP: Final = "DELETE FROM {queues} WHERE name = %(name)s RETURNING id"
_DROP_REST: Final = (
    "DELETE FROM {items} WHERE queue = %(queue)s",
    "DELETE FROM {leases} WHERE queue = %(queue)s",
    "DELETE FROM {counts} WHERE queue = %(queue)s",
    "DELETE FROM {state} WHERE queue = %(queue)s",
    "DELETE FROM {marks} WHERE queue = %(queue)s",
    "DELETE FROM {readers} WHERE queue = %(queue)s",
    "DELETE FROM {tails} WHERE queue = %(queue)s",
)
_HOLD: Final = "SELECT tail FROM {queues} WHERE id = %(queue)s FOR NO KEY UPDATE"
_COPY: Final = """
INSERT INTO {queues} (name, tail, is_followed, is_kept, kept_items, kept_bytes, kept_age)
SELECT %(name)s, tail, is_followed, is_kept, kept_items, kept_bytes, kept_age FROM {queues} WHERE id = %(queue)s
ON CONFLICT (name) DO NOTHING RETURNING id
"""
_COPY_ITEMS: Final = """
WITH copied AS (
    INSERT INTO {items} (queue, seq, due, attempts, state, key, changed, reason, payload)
    SELECT %(copy)s, seq, due, attempts, CASE state WHEN 'leased' THEN 'waiting' ELSE state END, key, changed, reason,
           payload FROM {items} WHERE queue = %(queue)s
    RETURNING state),
state_copied AS (
    INSERT INTO {state} (queue, key, value) SELECT %(copy)s, key, value FROM {state} WHERE queue = %(queue)s),
readers_copied AS (
    INSERT INTO {readers} (queue, name, due, seq, skipped, seen)
    SELECT %(copy)s, name, due, seq, skipped, seen FROM {readers} WHERE queue = %(queue)s),
tails_copied AS (
    INSERT INTO {tails} (queue, tail, bytes, at) SELECT %(copy)s, tail, bytes, at FROM {tails} WHERE queue = %(queue)s)
UPDATE {queues} SET
    taken = tail - (SELECT count(*) FROM copied WHERE state = 'waiting'),
    delayed = (SELECT count(*) FROM copied WHERE state = 'delayed'),
    dead = (SELECT count(*) FROM copied WHERE state = 'dead')
WHERE id = %(copy)s
"""
_SIZE: Final = "SELECT pg_total_relation_size(format('%%I.items', %(schema)s::text)::regclass)"
_VACUUM: Final = "VACUUM {items}"

_WRONG_COUNTS: Final = """
SELECT q.name, kind, counted, there FROM {queues} AS q,
LATERAL (SELECT coalesce(sum(taken), 0) AS taken, coalesce(sum(leased), 0) AS leased,
                coalesce(sum(delayed), 0) AS delayed, coalesce(sum(dead), 0) AS dead
         FROM {counts} WHERE queue = q.id) AS c,
LATERAL (VALUES ('waiting', q.tail - q.taken - c.taken), ('leased', q.leased + c.leased),
                ('delayed', q.delayed + c.delayed), ('dead', q.dead + c.dead)) AS kinds (kind, counted),
LATERAL (SELECT count(*) AS there FROM {items} WHERE queue = q.id AND state = kind) AS found
WHERE counted <> there ORDER BY q.name, kind
"""
_WRONG_ITEMS: Final = """
SELECT q.name, i.seq, i.state, i.lease, i.seq >= q.tail FROM {queues} AS q JOIN {items} AS i ON i.queue = q.id
LEFT JOIN {leases} AS l ON l.token = i.lease AND l.queue = q.id
WHERE i.seq >= q.tail OR i.state NOT IN ('waiting', 'leased', 'delayed', 'dead')
OR (i.state = 'leased') <> (l.token IS NOT NULL) OR (i.lease IS NOT NULL AND l.token IS NULL)
ORDER BY q.name, i.seq LIMIT 100
"""
_WRONG_READERS: Final = """
SELECT q.name FROM {queues} AS q WHERE is_followed <> EXISTS (SELECT FROM {readers} WHERE queue = q.id) ORDER BY q.name
"""


def find(step: Step, name: str) -> int | None:
    """Return the number of a queue, None if it is not there."""
    row = step.execute(_FIND, name=name).fetchone()
    return None if row is None else row[0]


def make(step: Step, name: str) -> int:
    """Let a queue be there; return its number."""
    step.has_changed = step.changed(_MAKE, name=name) > 0 or step.has_changed
    found = find(step, name)
    assert found is not None  # nobody drops what is not committed
    return found


def watch(step: Step, place: Place) -> None:
    """Let removals tell those who wait for room, from now on."""
    step.has_changed = step.changed(_WATCH, queue=place.id) > 0 or step.has_changed


def names(step: Step) -> list[str]:
    """Return the names of all queues."""
    return [row[0] for row in step.execute(_NAMES).fetchall()]


def drop(step: Step, name: str) -> int | None:
    """Remove a queue and all that belongs to it; return its number, None if it was not there."""
    row = step.execute(_DROP, name=name).fetchone()
    if row is None:
        return None
    for statement in _DROP_REST:
        step.execute(statement, queue=row[0])
    step.has_changed = True
    found: int = row[0]
    return found


def copy(step: Step, place: Place, name: str) -> int | None:
    """Make a copy of a queue, in which no item is leased; return its number, None if the name is taken.

    No item is pushed meanwhile, and what leaves is in the copy or not.
    """
    step.execute(_HOLD, queue=place.id)
    row = step.execute(_COPY, queue=place.id, name=name).fetchone()
    if row is None:
        return None
    step.execute(_COPY_ITEMS, queue=place.id, copy=row[0])
    step.has_changed = True
    found: int = row[0]
    return found


def vacuum(step: Step) -> int:
    """Let the room of items that are gone be used again; return how many bytes went back to the file system."""
    before = _size(step)
    step.execute(_VACUUM)
    return max(0, before - _size(step))


def _size(step: Step) -> int:
    row = step.execute(_SIZE, schema=step.sql.schema).fetchone()
    assert row is not None
    size: int = row[0]
    return size


def problems(step: Step) -> list[str]:
    """Return what is wrong with the tables: a sentence for each problem."""
    found = [
        f"queue {name!r}: {counted} items are counted as {kind}, and {there} are"
        for name, kind, counted, there in step.execute(_WRONG_COUNTS).fetchall()
    ]
    for name, seq, state, lease, is_behind in step.execute(_WRONG_ITEMS).fetchall():
        what = "is behind the tail" if is_behind else f"is {state}, and its lease is {lease}"
        found.append(f"queue {name!r}: item {seq} {what}")
    for (name,) in step.execute(_WRONG_READERS).fetchall():
        found.append(f"queue {name!r}: its row does not say whether it has readers")
    return found
