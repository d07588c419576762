"""The positions of a queue's named readers, and the limits of retention.

Owns: the table ``readers``, and retention in a queue's row. Law: a reader counts each item that leaves before it has
passed it, in the transaction that removes it; a move first locks all readers of the queue, so the last one to move sees
the positions of the others. Must not know: the order of items, when a reader moves.

Locks are taken in this order: the queue's tail, its row, items, readers. A move holds the readers, and skips items that
others have locked; so there is no deadlock.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from lmdbqueue._base.errors import OptionError
from lmdbqueue._base.format import Retention
from lmdbqueue.postgres._step import Step

NOTHING: Final = -1  # before all items of a queue with readers

_SKIP: Final = """
UPDATE {readers} SET skipped = skipped + (
    SELECT count(*) FROM unnest(%(seqs)s::bigint[]) AS gone (seq) WHERE gone.seq > readers.passed)
WHERE queue = %(queue)s
"""
# For each reader that will read them
_UNSKIP: Final = """
UPDATE {readers} SET skipped = greatest(0, skipped - (
    SELECT count(*) FROM unnest(%(seqs)s::bigint[]) AS back (seq) WHERE back.seq > readers.passed))
WHERE queue = %(queue)s
"""
LOCK: Final = "SELECT name, passed, moves FROM {readers} WHERE queue = %(queue)s ORDER BY name FOR NO KEY UPDATE"
# Pushes wait, and then see the change
_LOCK_TAIL: Final = """
SELECT next, is_slow FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1 FOR NO KEY UPDATE
"""
# A row if the queue has readers, or retention. If that of the tail is renewed while this waits for it, it is not locked
LOCK_TAIL_IF_NEEDED: Final = """
SELECT is_followed, is_kept FROM (
    SELECT *, kept_items IS NOT NULL OR kept_bytes IS NOT NULL OR kept_age IS NOT NULL AS is_kept FROM {queues}) AS q
LEFT JOIN LATERAL (
    SELECT next FROM {tails} WHERE queue = q.id ORDER BY epoch DESC LIMIT 1 FOR NO KEY UPDATE) AS tail ON true
WHERE q.id = %(queue)s AND (is_followed OR is_kept)
"""
_IS_THERE: Final = "SELECT FROM {queues} WHERE id = %(queue)s"
_OPTIONS: Final = "SELECT name, is_relaxed, has_classes FROM {queues} WHERE id = %(queue)s"
_ADD: Final = """
INSERT INTO {readers} (queue, name, passed) VALUES (%(queue)s, %(name)s, %(passed)s)
ON CONFLICT (queue, name) DO NOTHING
"""
_REMOVE: Final = "DELETE FROM {readers} WHERE queue = %(queue)s AND name = %(name)s"
_FOLLOWED: Final = """
UPDATE {queues} SET is_followed = EXISTS (SELECT FROM {readers} WHERE queue = %(queue)s) WHERE id = %(queue)s
"""
_SET: Final = """
UPDATE {readers} SET passed = %(passed)s, skipped = skipped + %(skipped)s, moves = moves + 1,
    seen = clock_timestamp()
WHERE queue = %(queue)s AND name = %(name)s
"""

RETENTION: Final = "SELECT kept_items, kept_bytes, kept_age FROM {queues} WHERE id = %(queue)s"
_RETAIN: Final = """
UPDATE {queues} SET kept_items = %(items)s, kept_bytes = %(bytes)s, kept_age = %(age)s WHERE id = %(queue)s
"""
_BE_SLOW: Final = "UPDATE {tails} SET is_slow = %(is_slow)s WHERE queue = %(queue)s"


class Reach(NamedTuple):
    """The limits up to which a queue keeps items, read or not; None: no limit of that kind."""

    items: int | None
    bytes: int | None
    age: int | None  # microseconds


def lock_tail(step: Step, queue: int) -> tuple[int, bool] | None:
    """Lock the tail of a queue; return the next number, and whether a push has more to do. None: the queue is gone.

    If the row is renewed while this waits for it, it is gone, and the new one is looked up.
    """
    while True:
        row = step.execute(_LOCK_TAIL, queue=queue).fetchone()
        if row is not None:
            return row[0], row[1]
        if step.execute(_IS_THERE, queue=queue).fetchone() is None:
            return None


# --- readers


def skip(step: Step, queue: int, gone: Iterable[int]) -> None:
    """Count, for each reader, leaving items that it has not passed."""
    step.execute(_SKIP, queue=queue, seqs=list(gone))


def unskip(step: Step, queue: int, back: Iterable[int]) -> None:
    """Undo ``skip`` for items that wait again."""
    step.execute(_UNSKIP, queue=queue, seqs=list(back))


def lock(step: Step, queue: int) -> dict[str, int]:
    """Lock all readers of a queue; return the number that each has passed."""
    return places(step.execute(LOCK, queue=queue).fetchall())


def places(rows: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """Return the number that each reader has passed, from the rows of ``LOCK``."""
    return {name: passed for name, passed, _ in rows}


def moves(rows: Iterable[tuple[str, int, int]], name: str) -> int | None:
    """Return the number of a reader's last move, None if there is no such reader, from the rows of ``LOCK``."""
    return next((count for each, _, count in rows if each == name), None)


def refuse_readers(step: Step, queue: int) -> None:
    """Raise ``OptionError`` if items may arrive before the position of a reader."""
    row = step.execute(_OPTIONS, queue=queue).fetchone()
    name, is_relaxed, has_classes = row or ("", False, False)
    if is_relaxed:
        raise OptionError(step.path, "order", "relaxed order", "a named reader", name)
    if has_classes:
        raise OptionError(step.path, "reader", "priorities", "a named reader", name)


def add(step: Step, queue: int, name: str, where: int | None) -> bool | None:
    """Create a reader whose next item has a number, None for the tail; return whether it is new.

    None: the queue is gone.
    """
    row = lock_tail(step, queue)
    if row is None:
        return None
    is_new = step.changed(_ADD, queue=queue, name=name, passed=before(row[0] if where is None else where)) > 0
    if is_new:
        step.execute(_FOLLOWED, queue=queue)
        step.has_changed = True
    return is_new


def remove(step: Step, queue: int, name: str) -> bool:
    """Remove a reader; return whether it existed."""
    lock_tail(step, queue)
    was_there = step.changed(_REMOVE, queue=queue, name=name) > 0
    if was_there:
        step.execute(_FOLLOWED, queue=queue)
        step.has_changed = True
    return was_there


def put(step: Step, queue: int, name: str, passed: int, skipped: int = 0) -> None:
    """Set the number that a reader has passed, and count what it lost on the way."""
    step.execute(_SET, queue=queue, name=name, passed=passed, skipped=skipped)
    step.has_changed = True


def before(number: int) -> int:
    """Return the position before a number."""
    return max(number - 1, NOTHING)


# --- retention


def retention(step: Step, queue: int) -> Reach | None:
    """Return the limits of retention; None: items stay only until all readers have passed them."""
    return reach(step.execute(RETENTION, queue=queue).fetchall())


def reach(rows: Sequence[tuple[int | None, int | None, int | None]]) -> Reach | None:
    """Return the limits of retention, from the rows of ``RETENTION``."""
    return Reach(*rows[0]) if rows and any(each is not None for each in rows[0]) else None


def set_retention(step: Step, queue: int, now: Retention | None) -> bool:
    """Store the limits of retention; return whether the queue exists."""
    if lock_tail(step, queue) is None:
        return False
    if now is not None:
        name, _, has_classes = step.execute(_OPTIONS, queue=queue).fetchall()[0]
        if has_classes:
            raise OptionError(step.path, "retain", "priorities", "retention", name)
    nothing = Reach(None, None, None)
    wanted = nothing if now is None else Reach(now.items, now.bytes, None if now.age is None else now.age // 1000)
    if wanted == (retention(step, queue) or nothing):
        return True
    step.execute(_RETAIN, queue=queue, **wanted._asdict())
    step.execute(_BE_SLOW, queue=queue, is_slow=now is not None)
    step.has_changed = True
    return True
