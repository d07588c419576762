"""How items arrive at the tail of a queue: pushed, moved from another, or due after readers have passed their places.

Owns: the numbers of items. Law: a number is used once. In the order of commits it is assigned under the lock of the
queue's tail, which is held until the commit; in relaxed order it comes from a sequence, and pushes never wait for each
other. Must not know: connections, retries, pickling.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

from lmdbqueue._base.errors import Full, OptionError
from lmdbqueue._base.values import Push, Pushed
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._items import (
    AT_ONCE,
    AWAITED,
    CLASS,
    MAX_SIZE,
    UNCLAIMED,
    Place,
    class_of,
    extent,
    owed,
    sequence,
    tell,
    with_keys,
)
from lmdbqueue.postgres._removal import expire, replaced, staying
from lmdbqueue.postgres._step import Step

BLOCK: Final = 12  # bits of a number in relaxed order that count items of one push; its other bits, the pushes


class Appended(NamedTuple):
    """The appended items; ``is_kept``: some items may now exceed the limits of retention."""

    items: list[Pushed]
    is_kept: bool


# If the session is fenced there is no number for an item, and the server undoes all of it: ``Session.once`` knows that.
# If more has to be done, since the queue has retention, or is gone, nothing is done and no row returned.
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
    + AWAITED
    + ", at, (SELECT at FROM noted) FROM given"
)
PUSH_ONE: Final = (
    _GIVEN
    + """
INSERT INTO {items} (queue, seq, payload) SELECT %(queue)s, %(class)s + (SELECT result FROM noted), %(payload)s
FROM given RETURNING seq, """
    + AWAITED
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
    + AWAITED
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
    + AWAITED
    + ", NULL::tid, at FROM noted"
)


def _noted(statement: LiteralString) -> LiteralString:
    """Return a push whose items have headers, all the same or each its own, or expire."""
    notes: LiteralString = "%(headers)s::bytea, {now} + %(expires)s::bigint * interval '1 microsecond'"
    return (
        statement.replace("(queue, seq, payload)", "(queue, seq, payload, headers, expires_at)")
        .replace("%(payload)s", "%(payload)s, " + notes)
        .replace("place - 1, payload", "place - 1, payload, coalesce(own, " + notes.replace("bytea,", "bytea),"))
        .replace("unnest(%(payloads)s::bytea[])", "unnest(%(payloads)s::bytea[], %(owns)s::bytea[])")
        .replace("pushed (payload, place)", "pushed (payload, own, place)")
    )


# By whether it is of one item, in relaxed order, and with headers or an expiry
AT_ONCE_BY: Final[dict[tuple[bool, bool, bool], LiteralString]] = {
    (True, False, False): PUSH_ONE,
    (True, True, False): PUSH_ONE_RELAXED,
    (False, False, False): PUSH,
    (False, True, False): PUSH_RELAXED,
    (True, False, True): _noted(PUSH_ONE),
    (True, True, True): _noted(PUSH_ONE_RELAXED),
    (False, False, True): _noted(PUSH),
    (False, True, True): _noted(PUSH_RELAXED),
}
# Under an old snapshot the versions of a row cannot be pruned: a new row without history takes its place
RENEW_TAIL: Final = """
WITH mine AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
old AS (
    DELETE FROM {tails} WHERE queue = %(queue)s AND EXISTS (SELECT FROM mine)
    AND epoch = (SELECT epoch FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
    RETURNING *)
INSERT INTO {tails} (queue, epoch, next, is_slow) SELECT queue, epoch + 1, next, is_slow FROM old
"""
_BLOCKS: Final = "SELECT nextval(%(sequence)s::regclass) FROM generate_series(1, %(n)s)"
_APPEND: Final = """
INSERT INTO {items} (queue, seq, payload, key, headers, expires_at, state, until)
SELECT %(queue)s, seq, payload, nullif(key, ''::bytea), coalesce(own, %(headers)s::bytea),
    {now} + %(expires)s::bigint * interval '1 microsecond', CASE WHEN %(delay)s > 0 THEN 2 ELSE 0 END,
    CASE WHEN %(delay)s > 0 THEN {now} + %(delay)s * interval '1 microsecond' END
FROM unnest(%(seqs)s::bigint[], %(payloads)s::bytea[], %(keys)s::bytea[], %(owns)s::bytea[])
     AS pushed (seq, payload, key, own)
"""
_SET_NEXT: Final = """
UPDATE {tails} SET next = %(next)s
WHERE queue = %(queue)s AND epoch = (SELECT epoch FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1)
"""
_NAME: Final = "SELECT name FROM {queues} WHERE id = %(queue)s"
_OPTIONS: Final = "SELECT is_relaxed, is_followed, has_classes FROM {queues} WHERE id = %(queue)s"
_HAVE_CLASSES: Final = "UPDATE {queues} SET has_classes = true WHERE id = %(queue)s"
_ARE_FIRST: Final = """
SELECT seq, octet_length(payload) FROM {items} WHERE queue = %(queue)s AND state = 0
ORDER BY seq LIMIT %(n)s FOR UPDATE
"""
_MOVED: Final = (
    """
WITH first AS MATERIALIZED (
    SELECT ctid AS at, seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND """
    + UNCLAIMED
    + """
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
)
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
_PUSH_ANEW: Final = """
WITH numbered AS MATERIALIZED (
    SELECT (SELECT ctid FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq = wanted.seq) AS at, place
    FROM unnest(%(seqs)s::bigint[]) WITH ORDINALITY AS wanted (seq, place))
UPDATE {items} SET seq = %(tail)s + place - 1 FROM numbered WHERE items.ctid = numbered.at
"""


def append(
    step: Step, place: Place, payloads: Sequence[bytes], how: Push, maxsize: int, *, buries: bool
) -> Appended | None:
    """Append payloads, all or none; return their numbers, or those of the items that have the keys.

    None: the queue is gone. Raises ``Full``, and ``OptionError`` for a priority beside readers or retention.
    """
    locked, options = _locked(step, place)
    if locked is None or options is None:
        return None
    (tail, is_kept), (is_relaxed, is_followed, has_classes) = locked, options
    keys = how.keys or [b""] * len(payloads)
    if how.replace:
        replaced(step, place, keys)
        newest = {key: payload for key, payload in zip(keys, payloads, strict=True) if key}
        payloads = [newest.get(key, payload) for key, payload in zip(keys, payloads, strict=True)]
    held = _held(step, place, keys, buries=buries)
    while how.replace and held:  # an item that a lease has begun or ended with in between
        replaced(step, place, keys)
        held = _held(step, place, keys, buries=buries)
    fresh = []  # the payloads that are stored
    first_of: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        if not key or (key not in held and first_of.setdefault(key, index) == index):
            fresh.append(index)
    if how.priority and (is_followed or is_kept):
        raise _no_priority(step, place, is_followed=is_followed)
    if not fresh:
        return Appended([Pushed(held[key], is_stored=False) for key in keys], is_kept=False)
    sizes = [len(payloads[index]) for index in fresh]
    refuse_full(step, place, maxsize, sizes, is_kept=is_kept and not how.delay)
    numbers = _numbers(step, place, len(fresh), tail, is_relaxed=is_relaxed)
    seqs = [class_of(how.priority) + number for number in numbers]
    delay = int(how.delay * 1e6)
    for part in _parts(sizes):
        step.execute(
            _APPEND,
            queue=place.id,
            seqs=seqs[part],
            delay=delay,
            payloads=[payloads[index] for index in fresh[part]],
            keys=[keys[index] for index in fresh[part]],
            headers=stored(how.headers),
            owns=[stored(how.headers_of_each[index]) for index in fresh[part]] if how.headers_of_each else [],
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
        else Pushed(held[key] if key in held else new[first_of[key]], is_stored=how.replace)
        for index, key in enumerate(keys)
    ]
    return Appended(items, is_kept and not how.delay)


def notes_of(how: Push) -> dict[str, Any]:
    """Return the values of a push whose only options are headers and an expiry."""
    return {
        "headers": stored(how.headers if len(how.headers_of_each) != 1 else how.headers_of_each[0]),
        "owns": list(map(stored, how.headers_of_each)),
        "expires": None if how.expires is None else int(how.expires * 1e6),
    }


def stored(headers: Mapping[str, str] | None) -> bytes | None:
    """Return headers in their stored form, None for none."""
    return json.dumps(dict(headers)).encode() if headers else None


def _held(step: Step, place: Place, keys: Sequence[bytes], *, buries: bool) -> dict[bytes, int]:
    """Return the numbers of the items with these keys, after expired ones have been removed."""
    while True:
        held = with_keys(step, place, keys)
        if not any(is_over for _, is_over in held.values()):
            return {key: seq for key, (seq, _) in held.items()}
        expire(step, place, buries=buries)


def _no_priority(step: Step, place: Place, *, is_followed: bool) -> OptionError:
    ((name,),) = step.execute(_NAME, queue=place.id).fetchall()
    return OptionError(step.path, "priority", "named readers" if is_followed else "retention", "a priority", name)


def _locked(step: Step, place: Place) -> tuple[tuple[int, bool] | None, Any]:
    """Lock the tail of a queue; return the result of ``lock_tail``, and the options that apply from now on."""
    locked = _positions.lock_tail(step, place.id)
    return locked, step.execute(_OPTIONS, queue=place.id).fetchone()


def _numbers(step: Step, place: Place, n: int, tail: int, *, is_relaxed: bool) -> list[int]:
    """Return the next ``n`` numbers of a queue, whose tail is locked."""
    if not n:
        return []
    if is_relaxed:
        blocks = 1 + (n - 1 >> BLOCK)
        while True:  # until no other process has taken a block in between
            rows = step.execute(_BLOCKS, sequence=sequence(step.sql, place.id), n=blocks).fetchall()
            first, last = rows[0][0], rows[-1][0]
            if last - first == blocks - 1:
                return list(range(first << BLOCK, (first << BLOCK) + n))
    step.execute(_SET_NEXT, queue=place.id, next=tail + n)
    return list(range(tail, tail + n))


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Return slices of payloads, by size, that fit into one statement of less than a gigabyte each."""
    parts = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > MAX_SIZE:
            parts.append(slice(start, index))
            start, total = index, 0
        total += size + 4
    parts.append(slice(start, len(sizes)))
    return parts


def refuse_full(step: Step, place: Place, maxsize: int, sizes: Sequence[int], *, is_kept: bool) -> None:
    """Raise ``Full`` if items of these sizes do not fit. The queue's tail is locked, so no one else adds any.

    ``is_kept``: the queue has retention, so older items make room.
    """
    if maxsize > 0 and (there := owed(step, place)) + len(sizes) > maxsize:
        kept = _positions.retention(step, place.id) if is_kept else None
        if kept is None or there - extent(step, place)[0] + staying(step, place, kept, sizes) > maxsize:
            raise Full("items", maxsize, there, len(sizes))


def come_due(step: Step, place: Place) -> int:
    """Move some due items to their places in the queue; return their number."""
    row = step.execute(_COME_DUE, queue=place.id, n=AT_ONCE).fetchone()
    assert row is not None
    come: int = row[0]
    if come:
        step.count(place.id, delayed=-come, waiting=come, size=row[1])
        tell(step, place)
    return come


def come_last(step: Step, place: Place) -> Appended | None:
    """Like ``come_due``, but the items wait at the tail, with new numbers. None: the queue is gone."""
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


def push_anew(step: Step, place: Place, seqs: Sequence[int]) -> dict[int, int]:
    """Give items that wait, and that this transaction has locked, new numbers at the tail, in their order.

    Return the old and the new number of each.
    """
    locked = _positions.lock_tail(step, place.id)
    assert locked is not None  # they are in the queue
    tail, _ = locked
    step.execute(_PUSH_ANEW, queue=place.id, tail=tail, seqs=sorted(seqs))
    step.execute(_SET_NEXT, queue=place.id, next=tail + len(seqs))
    step.count(place.id, pushed=len(seqs))
    return dict(zip(sorted(seqs), range(tail, tail + len(seqs)), strict=True))


def move(step: Step, place: Place, target: Place, n: int, maxsize: int) -> Appended | None:
    """Move the first ``n`` items to the tail of another queue; return the appended items, None if it is gone.

    They keep their priorities.
    """
    locked, options = _locked(step, target)
    if locked is None or options is None:
        return None
    (tail, is_kept), (is_relaxed, is_followed, has_classes) = locked, options
    numbers = None
    if maxsize > 0 or is_relaxed:
        sizes = [size for _, size in step.execute(_ARE_FIRST, queue=place.id, n=n).fetchall()]
        n = len(sizes)
        refuse_full(step, target, maxsize, sizes, is_kept=is_kept)
        numbers = (_numbers(step, target, n, 0, is_relaxed=True) or None) if is_relaxed else None
    values = {"target": target.id, "tail": tail, "n": n, "numbers": numbers, "claims": place.claims}
    moved = sorted(step.execute(_MOVED, queue=place.id, **values).fetchall())
    if moved:
        if any(seq >> CLASS for seq, _, _ in moved):
            if is_followed or is_kept:
                raise _no_priority(step, target, is_followed=is_followed)
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
