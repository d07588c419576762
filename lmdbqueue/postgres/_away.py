"""Items held back (leased, delayed or dead), and how they return to their places.

Owns: leases. Law: a lease is a token in the rows of its items, which only ``lease`` writes: an ack, a nack or a restore
changes an item's row only if it has that token, so the item is settled once, and items that others have by now are left
alone. Leases of items that a call took together share a token. Must not know: connections, which owners live (except by
their locks), pickling.

There is no timer. A consumer that looks for work sees in the same statement whether items are due to return, and
returns them in a transaction of its own (``restore``); if it is killed before the commit, nothing happened. All times
are the server's.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from lmdbqueue._base.values import Entry, Nacked
from lmdbqueue.postgres import _positions, _readers, _removal
from lmdbqueue.postgres._items import (
    AT_ONCE,
    IN_ORDER,
    IS_OPEN,
    LOOK,
    MINE,
    OVERDUE,
    STANDS,
    UNCLAIMED,
    UNCLAIMED_OF_MANY,
    Place,
    hurried,
    pack,
    tell,
)
from lmdbqueue.postgres._ledger import ARE_OUT, SHUT_OUT, program_of
from lmdbqueue.postgres._step import Step

_MAX_REASON: Final = 1_000  # characters
_MAX_TRACE: Final = 8_000  # characters
_WAITING, _LEASED, _DELAYED, _DEAD = range(4)
_NAMES: Final = {_WAITING: "waiting", _DELAYED: "delayed", _DEAD: "dead"}

# A row that another transaction has changed since the statement began is locked where it is now, and not found there by
# the update: so what is counted is what was updated
_CLAIMED: Final = (
    """,
claimed AS MATERIALIZED (
    SELECT ctid AS at FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND """
    + IN_ORDER
    + " AND "
    + STANDS
    + " AND "
    + UNCLAIMED_OF_MANY
    + " ORDER BY seq LIMIT %(n)s FOR UPDATE SKIP LOCKED)"
)
_UPDATED: Final = """,
taken AS (
    UPDATE {items} SET state = 1, lease = %(lease)s, attempts = attempts + 1,
        until = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
    WHERE ctid = ANY(ARRAY(SELECT at FROM claimed))
    RETURNING payload, seq, attempts)"""
_TOTAL: Final = "(SELECT count(*) AS n, coalesce(sum(octet_length(payload)), 0)::bigint AS size FROM taken)"
_WHAT_IS_TAKEN: Final = (
    """
SELECT payload, seq, attempts, NULL::boolean, NULL::boolean, NULL::tid FROM taken UNION ALL
SELECT NULL, (SELECT size FROM """
    + _TOTAL
    + " AS total), NULL, is_overdue, is_followed, "
)
LEASE: Final = (
    "WITH "
    + LOOK
    + MINE
    + _CLAIMED
    + _UPDATED
    + """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - total.n, leased = leased + total.n,
        size = ledger.size - total.size
    FROM """
    + _TOTAL
    + """ AS total WHERE id = %(row)s AND total.n > 0 RETURNING ctid AS at)"""
    + _WHAT_IS_TAKEN
    + "(SELECT at FROM noted) FROM look"
)
_LEASE_IN_BLOCK: Final = "WITH " + LOOK + ", mine AS (SELECT)" + _CLAIMED + _UPDATED + _WHAT_IS_TAKEN + "NULL FROM look"
_FIRST_CLAIMED: Final = (
    """
claimed AS MATERIALIZED (
    SELECT ctid AS at FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND EXISTS (SELECT FROM mine) AND NOT ("""
    + OVERDUE
    + """) AND NOT EXISTS (
        SELECT FROM {queues} WHERE id = %(queue)s
        AND (kept_items IS NOT NULL OR kept_bytes IS NOT NULL OR kept_age IS NOT NULL)) AND """
    + UNCLAIMED
    + """
    ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED),
taken AS (
    UPDATE {items} SET state = 1, lease = %(lease)s, attempts = attempts + 1,
        until = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
    WHERE ctid = (SELECT at FROM claimed) RETURNING payload, seq, attempts)"""
)
# One item, and the short way: no row says that there is none, or that more has to be done, and ``LEASE`` what that is
LEASE_ONE: Final = (
    """
WITH mine AS MATERIALIZED (SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE),"""
    + _FIRST_CLAIMED
    + """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - 1, leased = leased + 1,
        size = ledger.size - octet_length(payload)
    FROM taken WHERE id = %(row)s RETURNING ledger.ctid AS at)
SELECT payload, seq, attempts, NULL::boolean, NULL::boolean, at FROM taken, noted
"""
)
# By the places of rows, which each subquery finds by its index whatever the server believes of the table. A row that
# another transaction changes meanwhile is not found at its new place: see ``_of_all``
_OF_LEASE: Final = """WHERE ctid = ANY(ARRAY(
    SELECT (SELECT ctid FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq = held.seq)
    FROM unnest(%(seqs)s::bigint[]) AS held (seq))) AND lease = %(lease)s"""
LEASE_NOW: Final = hurried(LEASE)
_HELD: Final = """
SELECT payload, seq, attempts, NULL::boolean, NULL::boolean, NULL::tid FROM {items}
WHERE queue = %(queue)s AND state = 1 AND lease = %(lease)s ORDER BY seq
"""
_ACKED: Final = """
look AS MATERIALIZED (SELECT is_followed, EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s) AS is_awaited
                      FROM {queues} WHERE id = %(queue)s),
"""
_NOTED_ACK: Final = """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, leased = leased - (SELECT count(*) FROM gone)
    WHERE id = %(row)s AND NOT is_fenced AND EXISTS (SELECT FROM gone) RETURNING ctid AS at)
SELECT seqs, CASE WHEN seqs IS NOT NULL THEN 1 / coalesce((SELECT 1 FROM noted), 0) END, is_followed, is_awaited,
    leases, (SELECT at FROM noted)
FROM look, (SELECT array_agg(seq) AS seqs, array_agg(lease) AS leases FROM gone) AS all_of_them
"""
# No row: the lease is over, readers have to know, or the session's row is gone, as after the restoration of a backup
ACK_ONE: Final = (
    """
WITH gone AS (
    DELETE FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq = %(seq)s AND lease = %(lease)s
    AND NOT EXISTS (SELECT FROM {readers} WHERE queue = %(queue)s)
    AND EXISTS (SELECT FROM {ledger} WHERE id = %(row)s) RETURNING %(row)s AS row)
UPDATE {ledger} SET token = %(token)s, result = NULL, leased = leased - 1
WHERE id = (SELECT row FROM gone) AND """
    + IS_OPEN
    + """
RETURNING ARRAY[%(seq)s], NULL, false, EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s), ctid
"""
)
_OF_PAIRS: Final = """
    DELETE FROM {items} WHERE ctid = ANY(ARRAY(
        SELECT (SELECT ctid FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq = held.seq
                AND lease = held.lease)
        FROM unnest(%(seqs)s::bigint[], %(leases)s::bigint[]) AS held (seq, lease)))
    AND lease = ANY(%(leases)s::bigint[])"""
ACK: Final = (
    "WITH "
    + _ACKED
    + """
gone AS ("""
    + _OF_PAIRS
    + """ AND NOT (SELECT is_followed FROM look)
    RETURNING seq, lease)"""
    + _NOTED_ACK
)
# The ack of one item and the lease of the next, the short way: no row where ``ACK_ONE`` has none, and no item where
# ``LEASE_ONE`` has none
RELAY_ONE: Final = (
    """
WITH mine AS MATERIALIZED (SELECT FROM {ledger} WHERE id = %(row)s AND NOT is_fenced FOR NO KEY UPDATE),
gone AS (
    DELETE FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq = %(seq)s AND lease = %(held)s
    AND EXISTS (SELECT FROM mine) AND NOT EXISTS (SELECT FROM {readers} WHERE queue = %(queue)s) RETURNING seq),
"""
    + _FIRST_CLAIMED.replace("EXISTS (SELECT FROM mine)", "EXISTS (SELECT FROM gone)")
    + """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, leased = leased - (taken.seq IS NULL)::integer,
        waiting = waiting - (taken.seq IS NOT NULL)::integer, size = ledger.size - coalesce(octet_length(payload), 0)
    FROM gone LEFT JOIN taken ON true WHERE id = %(row)s RETURNING ledger.ctid AS at)
SELECT payload, seq, attempts, ARRAY[%(seq)s], ARRAY[%(held)s],
    EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s), noted.at
FROM noted LEFT JOIN taken ON true
"""
)
RELAY: Final = hurried(
    "WITH "
    + LOOK
    + MINE
    + """,
gone AS ("""
    + _OF_PAIRS
    + " AND NOT (SELECT is_followed FROM look) AND "
    + STANDS
    + " RETURNING seq, lease)"
    + _CLAIMED.replace("LIMIT %(n)s", "LIMIT (SELECT count(*) FROM gone)")
    + _UPDATED
    + """,
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - total.n,
        leased = leased + total.n - settled.n, size = ledger.size - total.size
    FROM """
    + _TOTAL
    + """ AS total, (SELECT count(*) AS n FROM gone) AS settled
    WHERE id = %(row)s AND settled.n > 0 RETURNING ctid AS at)
SELECT payload, seq, attempts, NULL::bigint[], NULL::bigint[], is_awaited, NULL::tid FROM taken, look UNION ALL
SELECT NULL, NULL, NULL, seqs, leases, is_awaited, (SELECT at FROM noted)
FROM look, (SELECT array_agg(seq) AS seqs, array_agg(lease) AS leases FROM gone) AS all_of_them
"""
)
_ACK_SLOWLY: Final = _OF_PAIRS + " RETURNING seq, lease"
_STILL_HELD: Final = """
SELECT (SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 1 AND seq = each.seq AND lease = each.lease), lease
FROM unnest(%(seqs)s::bigint[], %(leases)s::bigint[]) AS each (seq, lease)
"""
STILL_THERE: Final = """
SELECT seq FROM {items} WHERE queue = %(queue)s AND state IN (0, 1, 2, 3) AND seq = ANY(%(seqs)s::bigint[])
"""
# What has expired waits, whatever else is to become of it: so ``nack``, or the next look, removes it
_IS_OVER: Final = "expires_at IS NOT NULL AND expires_at <= {now}"
_DIES: Final = "attempts >= %(max_attempts)s::bigint"
_RETURN: Final = f"""
UPDATE {{items}} SET
    state = CASE WHEN {_IS_OVER} THEN 0 WHEN {_DIES} THEN 3 WHEN %(delay)s > 0 THEN 2 ELSE 0 END,
    expires_at = CASE WHEN {_IS_OVER} THEN expires_at WHEN {_DIES} THEN NULL ELSE expires_at END,
    until = CASE WHEN {_IS_OVER} OR {_DIES} THEN NULL
            WHEN %(delay)s > 0 THEN {{now}} + %(delay)s * interval '1 microsecond' END,
    lease = NULL, attempts = attempts - %(undone)s::integer,
    reason = CASE WHEN %(undone)s THEN reason ELSE %(reason)s END,
    changed = CASE WHEN %(undone)s THEN changed ELSE clock_timestamp() END
"""
_RETURNING: Final = f" RETURNING items.seq, items.state, octet_length(payload), {_IS_OVER}"
_NACK: Final = _RETURN + _OF_LEASE + _RETURNING
_OF_HOLDERS: Final = """WHERE queue = %(queue)s AND state = 1
AND NOT (lease >> 20 NOT IN (SELECT unnest(%(holders)s::bigint[])))"""
_GIVE_UP: Final = _RETURN + _OF_HOLDERS + _RETURNING
_GIVE_BACK: Final = _RETURN + "WHERE queue = %(queue)s AND state = 1 AND lease = %(lease)s" + _RETURNING
_FORGET: Final = "DELETE FROM {owners} WHERE holder = ANY(%(holders)s::bigint[])"
_OVER: Final = (
    """
WITH over AS MATERIALIZED (
    SELECT ctid AS at FROM {items} WHERE queue = %(queue)s AND until <= {now} AND state = 1
    ORDER BY until LIMIT %(n)s FOR UPDATE SKIP LOCKED)"""
    + _RETURN
    + "WHERE ctid = ANY(ARRAY(SELECT at FROM over))"
    + _RETURNING
)
_DEAD_HOLDERS: Final = (
    "SELECT holder, owner FROM {owners} WHERE queue = %(queue)s AND owner NOT IN ({alive}) ORDER BY holder LIMIT 1000"
)
_ORPHANED: Final = (
    """
WITH orphaned AS MATERIALIZED (
    SELECT ctid AS at FROM {items} """
    + _OF_HOLDERS
    + " FOR UPDATE SKIP LOCKED)"
    + _RETURN
    + "WHERE ctid = ANY(ARRAY(SELECT at FROM orphaned))"
    + _RETURNING
)
# A holder that still has items, because others had locked them, is left for the next reading; so is one whose
# process may have a lease under way
_FORGET_HOLDERS: Final = """
DELETE FROM {owners} WHERE holder = ANY(%(holders)s::bigint[])
AND holder NOT IN (SELECT lease >> 20 FROM {items} WHERE queue = %(queue)s AND state = 1)
"""
_EXTEND: Final = (
    "UPDATE {items} SET until = clock_timestamp() + %(ttl)s::float8 * interval '1 second' "
    + _OF_LEASE
    + " RETURNING seq"
)
_BURY: Final = (
    """
UPDATE {items} SET state = 3, until = NULL, lease = NULL, expires_at = NULL, changed = clock_timestamp(),
    reason = (SELECT why FROM unnest(%(seqs)s::bigint[], %(reasons)s::bytea[]) AS each (seq, why)
              WHERE each.seq = items.seq)
"""
    + _OF_LEASE
    + " RETURNING seq"
)
_BURY_ITEM: Final = """
UPDATE {items} SET state = 3, expires_at = NULL, changed = clock_timestamp(), reason = %(reason)s
WHERE queue = %(queue)s AND state = 0 AND seq = %(seq)s RETURNING octet_length(payload)
"""
_NEXT_TIME: Final = """
SELECT (SELECT extract(epoch FROM until - {now}) FROM {items}
        WHERE queue = %(queue)s AND until IS NOT NULL ORDER BY until LIMIT 1)::float8,
    EXISTS (SELECT FROM {owners} WHERE queue = %(queue)s AND holder <> ALL(%(holders)s::bigint[]))
"""
_CLEAR_ITEMS: Final = """
WITH gone AS (DELETE FROM {items} WHERE queue = %(queue)s AND state IN (0, 1, 2, 3)
              RETURNING state, seq, octet_length(payload) AS size)
SELECT state, count(*), sum(size)::bigint, array_agg(seq) FILTER (WHERE is_followed)
FROM gone, (SELECT is_followed FROM {queues} WHERE id = %(queue)s) AS q GROUP BY state
"""
_STATS: Final = """
SELECT (SELECT next FROM {tails} WHERE queue = %(queue)s ORDER BY epoch DESC LIMIT 1),
    (q.pushed + coalesce(sum(c.pushed), 0))::bigint, (q.waiting + coalesce(sum(c.waiting), 0))::bigint,
    (q.leased + coalesce(sum(c.leased), 0))::bigint, (q.delayed + coalesce(sum(c.delayed), 0))::bigint,
    (q.dead + coalesce(sum(c.dead), 0))::bigint, (q.expired + coalesce(sum(c.expired), 0))::bigint,
    (q.dropped + coalesce(sum(c.dropped), 0))::bigint,
    (SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 ORDER BY seq LIMIT 1),
    (SELECT extract(epoch FROM clock_timestamp() - pushed_at) FROM {items} WHERE queue = %(queue)s AND state = 0
     ORDER BY seq LIMIT 1)::float8, q.is_relaxed
FROM {queues} AS q LEFT JOIN {ledger} AS c ON c.queue = q.id AND NOT c.is_folded
WHERE q.id = %(queue)s GROUP BY q.id
"""


class Return(NamedTuple):
    """How items come back from a lease."""

    reason: str
    delay: float = 0.0  # seconds
    max_attempts: int | None = None  # attempts after which an item is dead
    trace: str = ""  # the traceback of the failure
    is_undone: bool = False  # the lease does not count as an attempt, and leaves no note


class _GivenBack(NamedTuple):
    """Items that came back from leases."""

    rows: list[tuple[int, int, int, bool]]  # of ``_RETURNING``
    anew: Mapping[int, int] = {}  # numbers of those that got new ones, at the tail
    is_kept: bool = False  # the queue has retention, and its tail is locked


class Claimed(NamedTuple):
    """The items of a lease, from the rows of ``LEASE``."""

    entries: list[Entry]
    attempts: list[int]
    is_there: bool
    is_overdue: bool


class Figures(NamedTuple):
    """The figures of a queue."""

    tail: int
    pushed: int
    waiting: int
    leased: int
    delayed: int
    dead: int
    expired: int
    dropped: int
    head: int  # number of the first waiting item, the tail if there is none
    oldest_age: float | None  # seconds, of that item


# --- leases


def claimed(rows: Sequence[Any]) -> Claimed:
    """Return the content of the rows of a lease."""
    status = rows[-1] if rows and rows[-1][0] is None else None
    held = sorted((row for row in rows if row[0] is not None), key=_by_seq)
    return Claimed(
        [(pack(seq), payload) for payload, seq, *_ in held],
        [attempts for _, _, attempts, *_ in held],
        is_there=status is not None or bool(held),
        is_overdue=status is not None and status[3],
    )


class Relayed(NamedTuple):
    """What came of acks and leases, from the rows of ``RELAY``."""

    gone: set[tuple[int, int]]  # the items that were removed, with the tokens of their leases
    entries: list[Entry]  # that were leased
    attempts: list[int]


def relayed(rows: Sequence[Any]) -> Relayed:
    """Return the content of the rows of a relay."""
    *_, seqs, leases, _, _ = rows[-1] if rows else (None, None, None, None)
    taken = sorted((row for row in rows if row[0] is not None), key=_by_seq)
    return Relayed(
        set(zip(seqs or (), leases or (), strict=True)),
        [(pack(seq), payload) for payload, seq, *_ in taken],
        [attempts for _, _, attempts, *_ in taken],
    )


def _by_seq(row: Any) -> int:
    seq: int = row[1]
    return seq


def lease(step: Step, place: Place, values: dict[str, Any]) -> Claimed:
    """Lease the first items, as a part of a block."""
    rows = step.execute(_LEASE_IN_BLOCK, queue=place.id, **values).fetchall()
    found = claimed(rows)
    if found.entries:
        n = len(found.entries)
        step.count(place.id, waiting=-n, leased=n, size=-(rows[-1][1] or 0))
    return found


def held(step: Step, place: Place, token: int) -> list[Any]:
    """Return the rows of a lease's items."""
    return step.execute(_HELD, queue=place.id, lease=token).fetchall()


def bury(step: Step, place: Place, token: int, unreadable: dict[int, str]) -> None:
    """Make items of a lease dead letters, for these reasons."""
    reasons = {seq: _as_bytes(reason) for seq, reason in unreadable.items()}

    def bury(seqs: list[int], _: Any) -> list[Any]:
        why = [reasons[seq] for seq in seqs]
        return step.execute(_BURY, queue=place.id, lease=token, seqs=seqs, reasons=why).fetchall()

    buried = [seq for (seq,) in _of_all(step, place, [(seq, token) for seq in reasons], bury)]
    _positions.skip(step, place.id, buried)
    step.count(place.id, leased=-len(buried), dead=len(buried))


def bury_item(step: Step, place: Place, seq: int, reason: str) -> bool:
    """Make the item of this number a dead letter if it is waiting; return whether it was."""
    row = step.execute(_BURY_ITEM, queue=place.id, seq=seq, reason=_as_bytes(reason)).fetchone()
    if row is None:
        return False
    _positions.skip(step, place.id, [seq])
    step.count(place.id, waiting=-1, size=-row[0], dead=1)
    tell(step, place)
    return True


def _as_bytes(reason: str, trace: str = "") -> bytes:
    """Return the stored form of a reason, in any encoding of the database, with its traceback behind a NUL."""
    kept = reason[:_MAX_REASON].replace("\0", " ") + ("\0" + trace[-_MAX_TRACE:] if trace else "")
    return kept.encode(errors="replace")


def still_there(step: Step, place: Place, seqs: Sequence[int]) -> list[int]:
    """Return which of these items the queue has, in any state."""
    return [seq for (seq,) in step.execute(STILL_THERE, queue=place.id, seqs=list(seqs)).fetchall()]


def ack(step: Step, place: Place, token: int, seqs: Collection[int]) -> list[int]:
    """Remove those of these items that a lease holds; return their numbers."""
    return sorted(seq for seq, _ in ack_pairs(step, place, [(seq, token) for seq in sorted(seqs)]))


def ack_pairs(step: Step, place: Place, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Remove items, given with the tokens of their leases, if those still hold them; return which."""

    def ack(seqs: list[int], leases: list[int]) -> list[Any]:
        return step.execute(_ACK_SLOWLY, queue=place.id, seqs=seqs, leases=leases).fetchall()

    settled: list[tuple[int, int]] = _of_all(step, place, pairs, ack)
    if settled:
        _positions.skip(step, place.id, sorted(seq for seq, _ in settled))
        step.count(place.id, leased=-len(settled))
        tell(step, place)
    return settled


def _of_all(
    step: Step, place: Place, pairs: Sequence[tuple[int, int]], change: Callable[[list[int], list[int]], list[Any]]
) -> list[Any]:
    """Return the rows of a change of leased items, given with the tokens of their leases; each begins with a number.

    It is repeated for items that their leases still hold: another transaction, such as one that extends the lease, has
    changed them since the statement began, which does not see where they are now.
    """
    rows: list[Any] = []
    while pairs:
        rows += change([seq for seq, _ in pairs], [token for _, token in pairs])
        pairs = _left(step, place, pairs, rows)
    return rows


def _left(step: Step, place: Place, pairs: Sequence[tuple[int, int]], rows: Sequence[Any]) -> list[tuple[int, int]]:
    """Return which of these items are in none of the rows, and are held by their leases."""
    done = {row[0] for row in rows}
    left = [pair for pair in pairs if pair[0] not in done]
    if not left:
        return []
    seqs, leases = [seq for seq, _ in left], [token for _, token in left]
    found = step.execute(_STILL_HELD, queue=place.id, seqs=seqs, leases=leases).fetchall()
    return [(seq, token) for seq, token in found if seq is not None]


def nack(step: Step, place: Place, token: int, seqs: Collection[int], how: Return, *, buries: bool) -> Nacked:
    """Give back those of these items that a lease holds; return what became of each.

    Those that have expired leave, or are dead letters if ``buries``; so do, with retention, all others.
    """
    pairs = [(seq, token) for seq in sorted(seqs)]
    back = _given_back(step, place, _NACK, how, pairs, lease=token, seqs=sorted(seqs))
    over = [seq for seq, _, _, is_over in back.rows if is_over]
    dead = [seq for seq, state, _, _ in back.rows if state == _DEAD]
    dead += _removal.expire_these(step, place, over, buries=buries)
    waiting = {seq: back.anew.get(seq, seq) for seq, state, _, is_over in back.rows if not is_over and not state}
    if back.is_kept:
        _removal.expire_all(step, place, buries=buries)
        _readers.trim_kept(step, place)
        there = still_there(step, place, list(waiting.values()))
        waiting = {seq: number for seq, number in waiting.items() if number in there}
    returned = [*waiting, *(seq for seq, state, _, _ in back.rows if state == _DELAYED)]
    removed = {seq for seq, *_ in back.rows}.difference(returned, dead)
    return Nacked(sorted(returned), sorted(dead), sorted(removed))


def extend(step: Step, place: Place, token: int, seqs: Collection[int], ttl: float | None) -> bool:
    """Give a lease another deadline; return whether it exists."""

    def extend(seqs: list[int], _: Any) -> list[Any]:
        return step.execute(_EXTEND, queue=place.id, lease=token, seqs=seqs, ttl=ttl).fetchall()

    is_there = bool(_of_all(step, place, [(seq, token) for seq in sorted(seqs)], extend))
    step.has_changed = step.has_changed or is_there
    if is_there:
        tell(step, place)  # wakes sleepers that sleep until the old deadline
    return is_there


def give_up(step: Step, place: Place, holders: Sequence[int], how: Return) -> int:
    """Give back all items of holders, which then hold nothing; return their number."""
    returned = _given_back(step, place, _GIVE_UP, how, holders=list(holders))
    step.execute(_FORGET, holders=list(holders))
    step.has_changed = True
    return len(returned.rows)


def give_back_doubtful(step: Step, place: Place, doubtful: Sequence[int]) -> None:
    """Give back the items of leases that no consumer got, since their calls have failed."""
    for token in doubtful:
        how = Return("", is_undone=True)
        _given_back(step, place, _GIVE_BACK, how, lease=token)


def _given_back(
    step: Step, place: Place, statement: Any, how: Return, pairs: Sequence[tuple[int, int]] = (), **values: Any
) -> _GivenBack:
    """Give back items; ``pairs``: those, with their lease, that are to be looked for again if they have moved."""
    locked = step.execute(_positions.LOCK_TAIL_IF_NEEDED, queue=place.id)
    values |= {
        "delay": int(how.delay * 1e6),
        "reason": _as_bytes(how.reason, how.trace),
        "max_attempts": how.max_attempts,
        "undone": how.is_undone,
    }
    returned = step.execute(statement, queue=place.id, **values)
    readers = step.execute(_positions.LOCK, queue=place.id).fetchall()
    rows = returned.fetchall()
    if pairs:

        def give_back(seqs: list[int], _: Any) -> list[Any]:
            return step.execute(statement, queue=place.id, **values | {"seqs": seqs}).fetchall()

        rows += _of_all(step, place, _left(step, place, pairs, rows), give_back)
    (is_followed, is_kept), *_ = locked.fetchall() or [(False, False)]
    if not rows:
        return _GivenBack([])
    counted: dict[str, int] = {}
    for _, state, _, _ in rows:
        counted[_NAMES[state]] = counted.get(_NAMES[state], 0) + 1
    size = sum(each for _, state, each, _ in rows if state == _WAITING)
    step.count(place.id, leased=-len(rows), size=size, **counted)
    if died := [seq for seq, state, _, _ in rows if state == _DEAD]:
        _positions.skip(step, place.id, died)
    back = [seq for seq, state, _, is_over in rows if state == _WAITING and not is_over]
    anew = _readers.push_anew_behind(step, place, back, readers) if is_followed else {}
    tell(step, place)
    return _GivenBack(rows, anew, is_kept)


# --- coming back


def restore(
    step: Step, place: Place, max_attempts: int | None, *, buries_expired: bool = False, deaths: bool = False
) -> int:
    """Requeue the items of expired leases and of dead owners, and those now due; return their number."""
    is_kept = _readers.begin_trimming(step, place)
    changed = 0
    if deaths and (dead := step.execute(_DEAD_HOLDERS, queue=place.id).fetchall()):
        changed += _bequeath(step, place, dead, Return("its consumer died", max_attempts=max_attempts))
    how = Return("its lease expired", max_attempts=max_attempts)
    changed += len(_given_back(step, place, _OVER, how, n=AT_ONCE).rows)
    changed += _readers.come_due(step, place) + _removal.expire(step, place, buries=buries_expired)
    if is_kept:
        _removal.expire_all(step, place, buries=buries_expired)  # including items that have just returned
        changed += _readers.trim_kept(step, place)
    return changed


def _bequeath(step: Step, place: Place, dead: Sequence[tuple[int, int]], how: Return) -> int:
    """Requeue the items of dead holders, given with their owners; return their number.

    A lease of theirs that is under way, or comes late, is not visible here. So the sessions of their processes are shut
    out first; as long as one cannot be, since it is in the middle of a change, its holder is not forgotten. A block
    shuts out none: a living process that has only lost its owner would wait for the end of the block.
    """
    programs = list({program_of(owner) for _, owner in dead})
    if not step.is_block:
        step.execute(SHUT_OUT, queue=place.id, programs=programs)
    out = {program for (program,) in step.execute(ARE_OUT, queue=place.id, programs=programs).fetchall()}
    changed = len(_given_back(step, place, _ORPHANED, how, holders=[holder for holder, _ in dead]).rows)
    holders = [holder for holder, owner in dead if program_of(owner) in out]
    step.has_changed = True
    return changed + step.changed(_FORGET_HOLDERS, queue=place.id, holders=holders)


def next_time(step: Step, place: Place, holders: Sequence[int]) -> tuple[float | None, bool]:
    """Return the seconds until items are due to return, and whether others than ``holders`` hold leases."""
    row = step.execute(_NEXT_TIME, queue=place.id, holders=list(holders)).fetchone()
    assert row is not None  # of functions
    seconds, has_others = row
    return seconds, has_others


# --- the whole queue


def clear(step: Step, place: Place) -> int:
    """Remove all waiting, leased, delayed and dead items; return their number."""
    gone = step.execute(_CLEAR_ITEMS, queue=place.id).fetchall()
    for state, n, size, seqs in gone:
        kind = "leased" if state == _LEASED else _NAMES[state]
        step.count(place.id, **{kind: -n}, **({"size": -size} if state == _WAITING else {}))
        if seqs is not None and state in {_WAITING, _LEASED}:
            _positions.skip(step, place.id, seqs)
    step.has_changed = True
    tell(step, place)
    return sum(n for _, n, _, _ in gone)


def figures(step: Step, place: Place) -> Figures | None:
    """Return the figures of the queue, None if it is gone."""
    row: Any = step.execute(_STATS, queue=place.id).fetchone()
    if row is None:
        return None
    tail, *counted, head, age, is_relaxed = row
    here = step.counts.get(place.id, {})
    kinds = ("pushed", "waiting", "leased", "delayed", "dead", "expired", "dropped")
    counts = {kind: count + here.get(kind, 0) for kind, count in zip(kinds, counted, strict=True)}
    if is_relaxed:
        tail = counts["pushed"]
    return Figures(tail=tail, head=tail if head is None else head, oldest_age=age, **counts)
