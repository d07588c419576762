"""Where the named readers of a queue are, and what is kept for them.

Owns: the tables ``readers`` and ``tails``, and what a queue's row says of both. Law: a reader that loses an item which
it has not passed counts it, in the transaction that removes it; who moves a reader has locked all readers of the queue
before, so the last one to move sees where the others are. Must not know: the order of items, when a reader moves.

Locks are taken in this order: the queue's row, items, readers. Who moves holds the readers, and passes over items that
others have locked; so nobody waits in a circle.

A tail is what the queue's tail was at a time, and how many bytes had been pushed by then. The last one is that of now;
of those before, two in a row are further apart than a 64th of what is kept.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from lmdbqueue._format import Retention
from lmdbqueue.postgres._session import Step
from lmdbqueue.postgres._sql import NEVER

Where = tuple[int, int]  # of an item: when it was due (``NEVER`` without a delay), its number

NOTHING: Final[Where] = (-1, -1)  # before all items
_PARTS: Final = 64  # of what is kept: what is too old, or too much, may stay for one of them

_SKIP: Final = """
UPDATE {readers} SET skipped = skipped + (
    SELECT count(*) FROM unnest(%(dues)s::bigint[], %(seqs)s::bigint[]) AS gone (due, seq)
    WHERE (gone.due, gone.seq) > (readers.due, readers.seq))
WHERE queue = %(queue)s
"""
LOCK: Final = "SELECT name, due, seq, moves FROM {readers} WHERE queue = %(queue)s ORDER BY name FOR NO KEY UPDATE"
_LOCK_QUEUE: Final = "SELECT tail FROM {queues} WHERE id = %(queue)s FOR UPDATE"
_ADD: Final = """
INSERT INTO {readers} (queue, name, due, seq) VALUES (%(queue)s, %(name)s, %(due)s, %(seq)s)
ON CONFLICT (queue, name) DO NOTHING
"""
_REMOVE: Final = "DELETE FROM {readers} WHERE queue = %(queue)s AND name = %(name)s"
_FOLLOWED: Final = """
UPDATE {queues} SET is_followed = EXISTS (SELECT FROM {readers} WHERE queue = %(queue)s) WHERE id = %(queue)s
"""
_SET: Final = """
UPDATE {readers} SET due = %(due)s, seq = %(seq)s, skipped = skipped + %(skipped)s, moves = moves + 1,
    seen = clock_timestamp()
WHERE queue = %(queue)s AND name = %(name)s
"""

RETENTION: Final = "SELECT kept_items, kept_bytes, kept_age FROM {queues} WHERE id = %(queue)s"
_RETAIN: Final = """
UPDATE {queues} SET is_kept = %(kept)s, kept_items = %(items)s, kept_bytes = %(bytes)s, kept_age = %(age)s
WHERE id = %(queue)s
"""
_FORGET_TAILS: Final = "DELETE FROM {tails} WHERE queue = %(queue)s"
# What is there already counts as pushed now; what had a delay is before all of it, and goes first in any case
_FIRST_TAILS: Final = """
INSERT INTO {tails} (queue, tail, bytes) SELECT %(queue)s, max(seq) + 1, max(bytes) FROM (
    SELECT seq, sum(octet_length(payload)) OVER (ORDER BY seq)::bigint AS bytes FROM {items}
    WHERE queue = %(queue)s AND state = 'waiting' AND due = {never}) AS each
GROUP BY bytes / %(part)s
"""
_LAST_TAIL: Final = """
INSERT INTO {tails} (queue, tail, bytes)
SELECT id, tail, coalesce((SELECT max(bytes) FROM {tails} WHERE queue = %(queue)s), 0)
FROM {queues} WHERE id = %(queue)s
ON CONFLICT (queue, tail) DO NOTHING
"""
_LATEST: Final = """
SELECT tail, bytes, floor(extract(epoch FROM statement_timestamp() - at) * 1000000)::bigint FROM {tails}
WHERE queue = %(queue)s ORDER BY tail DESC LIMIT 2
"""
_FORGET_TAIL: Final = "DELETE FROM {tails} WHERE queue = %(queue)s AND tail = %(tail)s"
_FORGET_BEFORE: Final = "DELETE FROM {tails} WHERE queue = %(queue)s AND tail < %(tail)s"
_ADD_TAILS: Final = """
INSERT INTO {tails} (queue, tail, bytes)
SELECT %(queue)s, tail, bytes FROM unnest(%(tails)s::bigint[], %(bytes)s::bigint[]) AS each (tail, bytes)
"""
# The number before which all is beyond what is kept; at least the newest item stays if there is too much
_BEYOND: Final = """
SELECT greatest(
    (SELECT max(tail) FROM {tails}
     WHERE queue = %(queue)s AND at <= statement_timestamp() - %(age)s::bigint * interval '1 microsecond'),
    (SELECT least(tail, (SELECT max(seq) FROM {items}
                         WHERE queue = %(queue)s AND state = 'waiting' AND due = {never}))
     FROM (SELECT min(tail) AS tail FROM {tails} WHERE queue = %(queue)s AND bytes >=
               (SELECT max(bytes) FROM {tails} WHERE queue = %(queue)s) - %(bytes)s::bigint) AS first
     WHERE tail IS NOT NULL))
"""


class Reach(NamedTuple):
    """What of a queue is kept, whoever has passed it; None: no limit of that kind."""

    items: int | None
    bytes: int | None
    age: int | None  # microseconds


# --- readers


def skip(step: Step, queue: int, gone: Iterable[Where]) -> None:
    """Count, for each reader, items that leave and that it has not passed."""
    places = list(gone)
    step.execute(_SKIP, queue=queue, dues=[due for due, _ in places], seqs=[seq for _, seq in places])


def lock(step: Step, queue: int) -> dict[str, Where]:
    """Lock all readers of a queue; return what each has passed."""
    return places(step.execute(LOCK, queue=queue).fetchall())


def places(rows: Iterable[tuple[str, int, int, int]]) -> dict[str, Where]:
    """Return what each reader has passed, by the rows of ``LOCK``."""
    return {name: (due, seq) for name, due, seq, _ in rows}


def moves(rows: Iterable[tuple[str, int, int, int]], name: str) -> int | None:
    """Return the number of a reader's last move, None if it is not there, by the rows of ``LOCK``."""
    return next((count for each, _, _, count in rows if each == name), None)


def add(step: Step, queue: int, name: str, where: int | None) -> bool | None:
    """Make a reader that has passed what is before a number, None for the tail; tell whether it was not there.

    None: the queue is gone.
    """
    row = step.execute(_LOCK_QUEUE, queue=queue).fetchone()
    if row is None:
        return None
    due, seq = before(row[0] if where is None else where)
    is_new = step.changed(_ADD, queue=queue, name=name, due=due, seq=seq) > 0
    if is_new:
        step.execute(_FOLLOWED, queue=queue)
        step.has_changed = True
    return is_new


def remove(step: Step, queue: int, name: str) -> bool:
    """Remove a reader; tell whether it was there."""
    step.execute(_LOCK_QUEUE, queue=queue)
    was_there = step.changed(_REMOVE, queue=queue, name=name) > 0
    if was_there:
        step.execute(_FOLLOWED, queue=queue)
        step.has_changed = True
    return was_there


def put(step: Step, queue: int, name: str, passed: Where, skipped: int = 0) -> None:
    """Let a reader have passed a place, and count what it lost on the way."""
    step.execute(_SET, queue=queue, name=name, due=passed[0], seq=passed[1], skipped=skipped)
    step.has_changed = True


def before(number: int) -> Where:
    """Return the place before that of a number."""
    return (NEVER, number - 1) if number > 0 else NOTHING


# --- what is kept


def retention(step: Step, queue: int) -> Reach | None:
    """Return what is kept; None: what some reader has not passed."""
    return reach(step.execute(RETENTION, queue=queue).fetchall())


def reach(rows: Sequence[tuple[int | None, int | None, int | None]]) -> Reach | None:
    """Return what is kept, by the rows of ``RETENTION``."""
    return Reach(*rows[0]) if rows and any(each is not None for each in rows[0]) else None


def set_retention(step: Step, queue: int, now: Retention | None) -> bool:
    """Write down what is kept; what is there counts as pushed now. Tell whether the queue is there."""
    if step.execute(_LOCK_QUEUE, queue=queue).fetchone() is None:
        return False
    nothing = Reach(None, None, None)
    wanted = nothing if now is None else Reach(now.items, now.bytes, None if now.age is None else now.age // 1000)
    if wanted == (retention(step, queue) or nothing):
        return True
    step.execute(_RETAIN, queue=queue, kept=now is not None, **wanted._asdict())
    step.execute(_FORGET_TAILS, queue=queue)
    if wanted.bytes is not None:
        step.execute(_FIRST_TAILS, queue=queue, part=_part(wanted.bytes))
    if wanted.bytes is not None or wanted.age is not None:
        step.execute(_LAST_TAIL, queue=queue)
    step.has_changed = True
    return True


def mark(step: Step, queue: int, kept: Reach, first: int, sizes: Sequence[int]) -> None:
    """Note that items of these sizes were appended, numbered from ``first`` on. The queue's row is locked."""
    if kept.bytes is None and kept.age is None:
        return
    (tail, pushed, _), *rest = step.execute(_LATEST, queue=queue).fetchall()
    ends = list(accumulate(sizes, initial=pushed))[1:]
    part = None if kept.bytes is None else _part(kept.bytes)
    for _, pushed_before, age_before in rest:
        is_soon = kept.age is None or age_before < kept.age // _PARTS
        if is_soon and (part is None or ends[-1] - pushed_before < part):
            step.execute(_FORGET_TAIL, queue=queue, tail=tail)
    last_of_part = {0 if part is None else end // part: (first + n, end) for n, end in enumerate(ends, 1)}
    tails, counted = zip(*last_of_part.values(), strict=True)
    step.execute(_ADD_TAILS, queue=queue, tails=list(tails), bytes=list(counted))


def beyond(step: Step, queue: int, kept: Reach) -> int:
    """Return the number before which all is too old, or too much."""
    if kept.bytes is None and kept.age is None:
        return 0
    row = step.execute(_BEYOND, queue=queue, age=kept.age, bytes=kept.bytes).fetchone()
    return (row and row[0]) or 0


def forget(step: Step, queue: int, number: int) -> None:
    """Forget the tails before a number. The queue's row is locked."""
    step.execute(_FORGET_BEFORE, queue=queue, tail=number)


def _part(size: int) -> int:
    return max(1, size // _PARTS)
