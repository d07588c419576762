"""Batches: how a consumer has several items for itself while it decodes them, with no transaction open.

Owns: the table ``claims``. Law: claims only save work. They decide who decodes an item, and nobody waits for one; that
an item leaves once is up to the statement that removes it. Must not know: retries, pickling.

A session has one batch at a time: the numbers of its items, as ranges, in its row of ``claims``. The row counts as long
as the session holds the advisory lock of its number, which the server frees when its connection ends; a row without
that lock claims nothing, and leaves when the schema is next opened (``_ledger.sweep``). Only the numbers are claimed,
so an item that arrives or comes back between two of them is free. All who take items pass over those in the batches of
others.

====  =============================  ================================================================================
step  the server does                if it ends here: the process is killed, or the connection is lost
====  =============================  ================================================================================
1     find the first free items,     before the commit, nothing is claimed; after it, as in step 2
      write their numbers; commit,
      without waiting for the disk
2     read these items: all must be  the server ends the session, and its lock, so the row counts for nothing: the items
      there, and no row locked;      are the first again. The next change of a process that is still there waits for
      otherwise begin again          that (``Access.settle``). If the server itself ends, so do all sessions
3     nothing: ``loads`` is called   as above. An exception or an interrupt: the row is emptied at once
4     remove exactly what was        before the commit, as above; after it, the items have left, and the row is empty.
      decoded, empty the row, write  If the reply is lost, the token in the ledger says which. If another call has
      the token; commit              removed or changed one of them meanwhile, nothing is removed: begin again
====  =============================  ================================================================================

**Step 1** is done by one session of a queue at a time, under an advisory lock of its transaction (the gate): otherwise
many would find the same items, as none sees what another is about to write. Nothing else happens under that lock, and
the reply is one row, so no client can hold it up. Whoever finds it taken waits until it is free, and then asks again,
to see the claims that were written meanwhile.

**Step 2** finds out what step 1 has not seen. A batch that was written after step 1 had begun, and before it passed the
gate, is visible by now; this session's own does not count for it, as nobody is kept from a lock by itself. Rows that a
block or a lease has locked show that by their ``xmax``. That may also be of a transaction that is over, so step 1 is
then repeated with row locks, which end with it: it passes over what others have locked. What a lease or a pop of one
item takes that had looked before the batch was written, step 4 finds out.

**Step 4** knows a changed row by ``xmin``: each change gives it a greater one, so the sum over all rows tells.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, LiteralString, TypeVar

from lmdbqueue._base.values import Entry, NamedTuple, Taken
from lmdbqueue._verbs.engine import Decode
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._items import (
    EXPIRY,
    IN_ORDER,
    IS_IN_NO_BATCH,
    LOOK,
    MINE,
    STANDS,
    UNCLAIMED_OF_MANY,
    Found,
    Place,
    hurried,
    number,
    pack,
)
from lmdbqueue.postgres._ledger import ASYNC
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._step import Step
from lmdbqueue.postgres._taking import COLUMNS

T = TypeVar("T")

_GATE: Final = "(%(claims)s::integer, 2147483647)"  # no item has this number (``CLAIM_KEY``)
_WAIT: Final = "SELECT pg_advisory_xact_lock_shared" + _GATE
# More than fit are not claimed, but always one is
_FITTING: Final = """
    SELECT seq FROM (
        SELECT seq, sum(size) OVER in_order AS through, row_number() OVER in_order AS nth FROM (
            SELECT seq, octet_length(payload) AS size"""
_THAT_FIT: Final = """) AS each
        WINDOW in_order AS (ORDER BY seq)) AS summed
    WHERE through <= %(max_bytes)s OR nth = 1"""
_LOCKED: Final = " FOR UPDATE SKIP LOCKED"
_CLAIM: Final = (
    "WITH gate AS MATERIALIZED (SELECT pg_try_advisory_xact_lock"
    + _GATE
    + " AS is_mine, set_config('synchronous_commit', 'off', true)),\n"
    + LOOK
    + """,
first AS MATERIALIZED (SELECT seq FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND (SELECT is_mine FROM gate)
    AND (SELECT NOT is_overdue OR %(insists)s FROM look) AND """
    + IN_ORDER
    + " AND "
    + UNCLAIMED_OF_MANY
    + """
    ORDER BY seq LIMIT %(n)s),
found AS MATERIALIZED (SELECT count(*) AS n, min(seq) AS first, max(seq) AS last FROM first),
written AS (
    INSERT INTO {claims} (queue, session, items)
    SELECT %(queue)s, %(session)s, CASE WHEN last - first = n - 1 THEN int8multirange(int8range(first, last, '[]'))
        ELSE (SELECT range_agg(int8range(seq, seq, '[]')) FROM first) END
    FROM found WHERE n >= %(least)s
    ON CONFLICT (queue, session) DO UPDATE SET items = EXCLUDED.items)
SELECT is_mine, is_overdue, is_followed, is_awaited, n, first, last FROM gate, look, found"""
)
# Added to nothing, so that a row of thousands of ranges is decompressed once, and not for each item
_MINE: Final = (
    "seq <@ (SELECT items + int8multirange() FROM {claims} WHERE queue = %(queue)s AND session = %(session)s)"
)
# The version of a row is negative if a transaction has locked it, be it one that is over
_READ: Final = (
    "SELECT "
    + COLUMNS.replace("expires_at", EXPIRY)
    + """, CASE WHEN xmax = '0'::xid THEN 1 ELSE -1 END * xmin::text::bigint
    FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND seq BETWEEN %(first)s AND %(last)s AND """
    + _MINE
    + " AND "
    + IS_IN_NO_BATCH
    + " ORDER BY seq"
)
_EMPTIED: Final = "UPDATE {claims} SET items = int8multirange() WHERE queue = %(queue)s AND session = %(session)s"
_RELEASE: Final = "WITH unflushed AS MATERIALIZED (" + ASYNC + ") " + _EMPTIED + " AND EXISTS (SELECT FROM unflushed)"
# No row means that an item is not there any more, is another, or is not free
_REMOVE: Final = (
    "WITH "
    + MINE.removeprefix(",")
    + """,
free AS MATERIALIZED (
    SELECT ctid AS at, xmin::text::bigint AS version FROM {items}
    WHERE queue = %(queue)s AND state = 0 AND seq BETWEEN %(first)s AND %(last)s AND """
    + _MINE
    + " AND "
    + STANDS
    + """
    ORDER BY seq FOR UPDATE SKIP LOCKED),
whole AS MATERIALIZED (
    SELECT FROM (SELECT count(*) AS n, sum(version) AS versions FROM free) AS found
    WHERE n = %(n)s AND versions = %(versions)s),
gone AS (DELETE FROM {items} WHERE ctid = ANY(ARRAY(SELECT at FROM free WHERE EXISTS (SELECT FROM whole)))),
emptied AS ("""
    + _EMPTIED
    + """ AND EXISTS (SELECT FROM whole)),
noted AS (
    UPDATE {ledger} SET token = %(token)s, result = NULL, waiting = waiting - %(n)s, size = size - %(size)s
    WHERE id = %(row)s AND EXISTS (SELECT FROM whole) RETURNING ctid AS at)
SELECT EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s), (SELECT at FROM noted) FROM whole"""
)


class How(NamedTuple):
    """How items are looked for."""

    n: int  # at most
    least: int  # none if there are fewer; at least 1
    max_bytes: int | None  # of their payloads, but always one
    deaths: bool  # look for dead owners of leases, too
    insists: bool  # even if items that are due could not return first


def take(session: Session, place: Place, how: How, decode: Decode[T]) -> tuple[Found, list[T] | None]:
    """Claim the first items, decode them, and remove those that can be decoded; None: there are not enough."""
    session.hold(_RELEASE, {"queue": place.id, "session": session.id})  # from now on, whatever happens
    has_claimed = locks = False
    try:
        while True:
            found, span = _claimed(session, place, how, locks=locks)
            if span is None:
                break
            has_claimed = True
            entries, versions = _read(session, place, span, are_locked=locks)
            if not entries:
                locks = True
                continue
            items = decode(entries)
            found = found._replace(entries=entries[: len(items)])
            try:
                rows = _removed(session, place, found, versions[: len(items)])
            except Lost as lost:
                lost.result = found, items
                raise
            if rows:
                session.hold()  # nothing any more
                ((is_awaited, _),) = rows
                if is_awaited or len(items) < len(entries):
                    session.tell({place.channel})
                return found, items
    except BaseException:
        session.release()
        raise
    if has_claimed:
        session.release()
        session.tell({place.channel})  # others may have passed over them
    else:
        session.hold()
    return found, None


class _Span(NamedTuple):
    """The numbers of claimed items: how many, the first and the last."""

    n: int
    first: int
    last: int


def _claimed(session: Session, place: Place, how: How, *, locks: bool) -> tuple[Found, _Span | None]:
    """Claim the first free items; return the facts seen on the way, and None if there are not enough."""
    values = how._asdict() | {"queue": place.id, "claims": place.claims, "session": session.id}
    statement = _claim(deaths=how.deaths, fits=how.max_bytes is not None, locks=locks)
    while rows := session.claim(statement, values):
        ((is_mine, is_overdue, is_followed, is_awaited, *span),) = rows
        if is_mine:
            found = Found([], is_there=True, is_overdue=is_overdue, is_followed=is_followed, is_awaited=is_awaited)
            return found, _Span(*span) if span[0] >= how.least else None
        session.claim(_WAIT, {"claims": place.claims})
    return Found([]), None


def _read(session: Session, place: Place, span: _Span, *, are_locked: bool) -> tuple[list[Entry], list[int]]:
    """Return the claimed items, and the versions of their rows; none if one is gone, or perhaps not free."""
    values = {"queue": place.id, "session": session.id, "first": span.first, "last": span.last}
    rows = session.claim(_READ, values)
    if len(rows) < span.n or (not are_locked and any(row[7] < 0 for row in rows)):
        return [], []
    return [Taken.of((pack(row[0]), row[1]), row[2:7]) for row in rows], [abs(row[7]) for row in rows]


@cache
def _claim(*, deaths: bool, fits: bool, locks: bool) -> LiteralString:
    """Return the statement of the first step."""
    statement = _CLAIM if deaths else hurried(_CLAIM)
    end = "LIMIT %(n)s"
    if fits:
        statement = statement.replace("(SELECT seq FROM {items}\n", "(" + _FITTING + " FROM {items}\n")
    return statement.replace(end, end + (_LOCKED if locks else "") + (_THAT_FIT if fits else ""))


def _removed(session: Session, place: Place, taken: Found, versions: Sequence[int]) -> list[Any]:
    """Remove claimed items; return no row if they are not all there any more, unchanged and free."""
    seqs = [number(key) for key, _ in taken.entries]
    values = {
        "session": session.id,
        "first": seqs[0],
        "last": seqs[-1],
        "n": len(seqs),
        "versions": sum(versions),
        "size": sum(len(payload) for _, payload in taken.entries),
    }
    if not taken.is_followed:
        return session.once(_REMOVE, place.id, values)
    rows: list[Any] = session.run(_removed_and_skipped, (place, values, seqs), queue=place.id)
    return rows


def _removed_and_skipped(step: Step, place: Place, values: dict[str, Any], seqs: Sequence[int]) -> list[Any]:
    """Remove items, and let the readers of the queue count those that they have not passed."""
    rows = step.execute(_REMOVE, queue=place.id, row=step.row(place.id), token=step.token, **values).fetchall()
    if rows:
        step.has_changed = True
        _positions.skip(step, place.id, seqs)
    return rows
