"""What does not wait: leased, delayed, dead; and how it comes back to its place.

Owns: leases and dead letters. Law: the row of a lease is its lock: who acknowledges, gives back or takes back what it
holds has locked that row before, and a lease whose row is gone is over for ever. Must not know: connections, who is
alive but for the advisory lock of an owner, pickling.

There is no timer. Whoever looks for work sees in the same statement whether something has to come back, and lets it
come back in a transaction of its own (``restore``); killed before its commit, it did nothing. All times are those of
the server.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._format import Note
from lmdbqueue._values import Entry
from lmdbqueue.postgres import _positions, _readers
from lmdbqueue.postgres._items import BROWSE_BYTES, Place, tell, where
from lmdbqueue.postgres._session import KINDS, Step
from lmdbqueue.postgres._sql import NEVER

_MAX_REASON: Final = 1_000  # characters

_LEASE: Final = """
WITH given AS (
    INSERT INTO {leases} (queue, owner, deadline)
    VALUES (%(queue)s, %(owner)s, coalesce(clock_timestamp() + %(ttl)s::float8 * interval '1 second', 'infinity'))
    RETURNING token)
UPDATE {items} SET state = 'leased', lease = token, attempts = attempts + 1
FROM given WHERE items.queue = %(queue)s AND items.seq = ANY(%(seqs)s::bigint[])
RETURNING items.seq, items.attempts, items.lease
"""
_BURY: Final = """
UPDATE {items} SET state = 'dead', key = NULL, attempts = attempts + 1, reason = why, changed = clock_timestamp()
FROM unnest(%(seqs)s::bigint[], %(reasons)s::text[]) AS unreadable (number, why)
WHERE queue = %(queue)s AND seq = number
"""
_HOLD: Final = """
SELECT (SELECT is_followed FROM {queues} WHERE id = %(queue)s) FROM {leases}
WHERE token = %(token)s AND queue = %(queue)s FOR UPDATE
"""
_ACK: Final = """
DELETE FROM {items} WHERE lease = %(token)s
AND (%(seqs)s::bigint[] IS NULL OR seq = ANY(%(seqs)s::bigint[])) RETURNING due, seq
"""
_END: Final = """
DELETE FROM {leases} WHERE token = %(token)s AND NOT EXISTS (SELECT FROM {items} WHERE lease = %(token)s)
"""
_RETURN: Final = """
UPDATE {items} SET
    state = CASE WHEN attempts >= %(max_attempts)s::integer THEN 'dead'
                 WHEN %(delay)s > 0 THEN 'delayed' ELSE 'waiting' END,
    key = CASE WHEN attempts >= %(max_attempts)s::integer THEN NULL ELSE key END,
    due = CASE WHEN attempts >= %(max_attempts)s::integer THEN due
               WHEN %(delay)s > 0 THEN {now} + %(delay)s ELSE due END,
    lease = NULL, reason = %(reason)s, changed = clock_timestamp()
WHERE lease = ANY(%(tokens)s::bigint[])
AND (%(seqs)s::bigint[] IS NULL OR seq = ANY(%(seqs)s::bigint[]))
RETURNING due, seq, state
"""
_EXTEND: Final = """
UPDATE {leases} SET
    deadline = coalesce(clock_timestamp() + %(ttl)s::float8 * interval '1 second', 'infinity')
WHERE token = %(token)s AND queue = %(queue)s RETURNING 1
"""
_GIVE_UP: Final = "DELETE FROM {leases} WHERE queue = %(queue)s AND owner = %(owner)s RETURNING token"
_OVER: Final = """
DELETE FROM {leases} WHERE token IN (
    SELECT token FROM {leases} WHERE queue = %(queue)s AND deadline <= statement_timestamp()
    ORDER BY token FOR UPDATE SKIP LOCKED)
RETURNING token
"""
_ORPHANED: Final = """
DELETE FROM {leases} WHERE token IN (
    SELECT token FROM {leases} WHERE queue = %(queue)s AND owner IN (
        SELECT owner FROM (SELECT DISTINCT owner FROM {leases} WHERE queue = %(queue)s) AS each
        WHERE pg_try_advisory_xact_lock_shared(owner))
    ORDER BY token FOR UPDATE SKIP LOCKED)
RETURNING token
"""
_NEXT_TIME: Final = """
SELECT least(
    (SELECT extract(epoch FROM deadline - statement_timestamp()) FROM {leases}
     WHERE queue = %(queue)s AND deadline < 'infinity' ORDER BY deadline LIMIT 1),
    (SELECT (due - {now}) / 1e6 FROM {items} WHERE queue = %(queue)s AND state = 'delayed'
     ORDER BY due LIMIT 1))::float8,
    EXISTS (SELECT FROM {leases} WHERE queue = %(queue)s AND owner <> %(owner)s)
"""
_DEAD: Final = """
SELECT seq, due, payload, attempts, reason, extract(epoch FROM changed)::float8 FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY seq) - octet_length(payload) AS before
    FROM (SELECT * FROM {items} WHERE queue = %(queue)s AND state = 'dead' AND seq >= %(seq)s
          ORDER BY seq LIMIT 1000) AS next) AS page
WHERE before < %(size)s ORDER BY seq
"""
_REQUEUE: Final = """
UPDATE {items} SET state = 'waiting', attempts = 0, reason = NULL, changed = NULL
WHERE queue = %(queue)s AND state = 'dead' AND (%(seqs)s::bigint[] IS NULL OR seq = ANY(%(seqs)s::bigint[]))
"""
_FORGET: Final = """
DELETE FROM {items}
WHERE queue = %(queue)s AND state = 'dead' AND (%(seqs)s::bigint[] IS NULL OR seq = ANY(%(seqs)s::bigint[]))
"""
_CLEAR_LEASES: Final = "DELETE FROM {leases} WHERE queue = %(queue)s"
_CLEAR_ITEMS: Final = """
WITH gone AS (DELETE FROM {items} WHERE queue = %(queue)s RETURNING state, due, seq)
SELECT state, count(*), array_agg(due) FILTER (WHERE is_followed), array_agg(seq) FILTER (WHERE is_followed)
FROM gone, (SELECT is_followed FROM {queues} WHERE id = %(queue)s) AS q GROUP BY state
"""
_STATS: Final = """
SELECT q.tail,
    (q.tail - q.taken - coalesce(sum(c.taken), 0))::bigint, (q.leased + coalesce(sum(c.leased), 0))::bigint,
    (q.delayed + coalesce(sum(c.delayed), 0))::bigint, (q.dead + coalesce(sum(c.dead), 0))::bigint,
    (SELECT seq FROM {items}
     WHERE queue = %(queue)s AND state = 'waiting' AND due = {never} AND attempts = 0 ORDER BY due, seq LIMIT 1)
FROM {queues} AS q LEFT JOIN {counts} AS c ON c.queue = q.id WHERE q.id = %(queue)s GROUP BY q.id
"""


class Terms(NamedTuple):
    """Of a lease that is to be given."""

    owner: int
    ttl: float | None  # seconds, None for as long as the owner lives
    unreadable: dict[bytes, str]  # places of items that die instead, and why


class Return(NamedTuple):
    """How items come back from a lease."""

    reason: str
    delay: float = 0.0  # seconds
    max_attempts: int | None = None  # with so many an item is dead


class Figures(NamedTuple):
    """How much of everything there is in a queue."""

    tail: int
    waiting: int
    leased: int
    delayed: int
    dead: int
    head: int  # number of the first item that waits and never left, the tail if there is none


# --- leases


def lease(step: Step, place: Place, entries: Sequence[Entry], terms: Terms) -> tuple[int, list[int], list[int]]:
    """Lease entries that were claimed, but for the unreadable ones, which die; return token, numbers, attempts."""
    unreadable = terms.unreadable
    seqs = [_format.number(key) for key, _ in entries if key not in unreadable]
    if unreadable:
        _positions.skip(step, place.id, map(where, unreadable))
        reasons = list(map(_as_text, unreadable.values()))
        step.execute(_BURY, queue=place.id, seqs=list(map(_format.number, unreadable)), reasons=reasons)
    step.count(place.id, waiting=-len(entries), leased=len(seqs), dead=len(unreadable))
    if not seqs:
        return 0, [], []
    rows = step.execute(_LEASE, queue=place.id, owner=terms.owner, ttl=terms.ttl, seqs=seqs).fetchall()
    attempts = {seq: number for seq, number, _ in rows}
    return rows[0][2], seqs, [attempts[seq] for seq in seqs]


def _as_text(reason: str) -> str:
    """Return what a column can have of a reason."""
    return reason[:_MAX_REASON].encode(errors="replace").decode().replace("\0", "?")


def ack(step: Step, place: Place, token: int, seqs: Collection[int] | None) -> list[int] | None:
    """Remove what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    lease = step.execute(_HOLD, queue=place.id, token=token)
    gone = step.execute(_ACK, token=token, seqs=None if seqs is None else sorted(seqs))
    step.execute(_END, token=token)
    places = gone.fetchall()
    settled = sorted(seq for _, seq in places)
    held = lease.fetchall()
    if not held:
        return None
    if held == [(True,)]:
        _positions.skip(step, place.id, places)
    step.count(place.id, leased=-len(settled))
    return settled


def nack(step: Step, place: Place, token: int, seqs: Collection[int] | None, how: Return) -> list[int] | None:
    """Give back what a lease holds, or those of ``seqs`` that it holds; return which, None if the lease is gone."""
    if not step.execute(_HOLD, queue=place.id, token=token).fetchall():
        return None
    settled = _give_back(step, place, [token], seqs, how)
    step.execute(_END, token=token)
    return sorted(settled)


def extend(step: Step, place: Place, token: int, ttl: float | None) -> bool:
    """Give a lease another deadline; tell whether it is there."""
    is_there = step.changed(_EXTEND, queue=place.id, token=token, ttl=ttl) == 1
    step.has_changed = step.has_changed or is_there
    if is_there:
        tell(step, place)  # who sleeps until the old one
    return is_there


def give_up(step: Step, place: Place, owner: int, how: Return) -> int:
    """Give back all that an owner holds; return how much it was."""
    tokens = [row[0] for row in step.execute(_GIVE_UP, queue=place.id, owner=owner).fetchall()]
    return len(_give_back(step, place, tokens, None, how)) if tokens else 0


def _give_back(step: Step, place: Place, tokens: Sequence[int], seqs: Collection[int] | None, how: Return) -> list[int]:
    rows = step.execute(
        _RETURN,
        tokens=tokens,
        seqs=None if seqs is None else sorted(seqs),
        delay=int(how.delay * 1e6),
        reason=_as_text(how.reason),
        max_attempts=how.max_attempts,
    ).fetchall()
    step.count(place.id, leased=-len(rows), **Counter(state for _, _, state in rows))
    if died := [(due, seq) for due, seq, state in rows if state == "dead"]:
        _positions.skip(step, place.id, died)
    tell(step, place)
    return [seq for _, seq, _ in rows]


# --- coming back


def restore(step: Step, place: Place, max_attempts: int | None, *, deaths: bool) -> int:
    """Let come back all whose time is over, and what dead owners held; return how much it was."""
    changed = _readers.come_due(step, place)
    if deaths and (tokens := [row[0] for row in step.execute(_ORPHANED, queue=place.id).fetchall()]):
        how = Return("its consumer died", max_attempts=max_attempts)
        changed += len(_give_back(step, place, tokens, None, how))
    if tokens := [row[0] for row in step.execute(_OVER, queue=place.id).fetchall()]:
        how = Return("its lease expired", max_attempts=max_attempts)
        changed += len(_give_back(step, place, tokens, None, how))
    return changed


def next_time(step: Step, place: Place, owner: int) -> tuple[float | None, bool]:
    """Return in how many seconds something has to come back, and whether others than ``owner`` hold leases."""
    row = step.execute(_NEXT_TIME, queue=place.id, owner=owner).fetchone()
    assert row is not None  # of functions
    seconds, has_others = row
    return seconds, has_others


# --- the dead, and all of it


def dead(step: Step, place: Place, seq: int) -> list[tuple[Entry, Note]]:
    """Return some dead letters from number ``seq`` on; none only if there are none."""
    rows = step.execute(_DEAD, queue=place.id, seq=seq, size=BROWSE_BYTES).fetchall()
    return [
        (
            (_format.place(number, 0 if due == NEVER else due), payload),
            Note(attempts, time=int((changed or 0) * 1e9), reason=reason or ""),
        )
        for number, due, payload, attempts, reason, changed in rows
    ]


def requeue(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Let the dead, all or those of ``seqs``, wait again in their places; return how many did."""
    changed = step.changed(_REQUEUE, queue=place.id, seqs=_listed(seqs))
    if changed:
        step.count(place.id, dead=-changed, waiting=changed)
        tell(step, place)
    return changed


def forget(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Remove the dead, all or those of ``seqs``; return how many there were."""
    removed = step.changed(_FORGET, queue=place.id, seqs=_listed(seqs))
    if removed:
        step.count(place.id, dead=-removed)
    return removed


def _listed(seqs: Iterable[int] | None) -> list[int] | None:
    return None if seqs is None else sorted(seqs)


def clear(step: Step, place: Place) -> int:
    """Remove all that waits, is leased, delayed or dead; return how many items went."""
    step.execute(_CLEAR_LEASES, queue=place.id)
    gone = step.execute(_CLEAR_ITEMS, queue=place.id).fetchall()
    step.count(place.id, **{state: -number for state, number, _, _ in gone})
    for state, _, dues, seqs in gone:
        if dues is not None and state in {"waiting", "leased"}:
            _positions.skip(step, place.id, zip(dues, seqs, strict=True))
    tell(step, place)
    return sum(number for _, number, _, _ in gone)


def figures(step: Step, place: Place) -> Figures | None:
    """Return how much of everything there is, None if the queue is gone."""
    row: Any = step.execute(_STATS, queue=place.id).fetchone()
    if row is None:
        return None
    tail, *counted, head = row
    here = step.counts.get(place.id, {})
    counts = {kind: count + here.get(kind, 0) for kind, count in zip(KINDS, counted, strict=True)}
    return Figures(tail=tail, head=tail if head is None else head, **counts)
