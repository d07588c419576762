"""Claims: how a consumer has an item for itself while it decodes it, with no transaction open.

Owns: the locks of claimed items. Law: claims only save work. They decide who decodes an item, and nobody waits for one;
that an item leaves once is up to the statement that removes it. Must not know: retries, pickling.

A claim is an advisory lock of the session on the number of an item. It needs no commit, writes nothing, and ends with
the connection. A session has one at a time, and all who take items pass over those that others have claimed:

====  ============================  ==================================================================================
step  the server does               if it ends here: the process is killed, or the connection is lost
====  ============================  ==================================================================================
1     look, and lock the first      the server ends the session, and its lock with it: the item is the first again. The
      item that nobody has locked   next change of a process that is still there waits for that (``Access.settle``)
2     only if its row was written,  as above
      too: look whether the item
      is still there, and free
3     nothing: ``loads`` is called  as above. An exception or an interrupt: the lock is released at once
4     remove exactly this item,     before the commit, as above; after it, the item has left. If the reply is lost, the
      write the token, commit;      token in the ledger says which. If another call has removed or changed the item
      then release the lock         meanwhile, nothing is removed: release the lock, and begin again
====  ============================  ==================================================================================

**Step 1** reads a snapshot, so it may meet an item that has left since, or that a lease or a block is taking, whose row
is locked. The row itself shows that (``xmax``), as it is read after the lock was had, and whoever removes a claimed
item releases it after the commit. So step 2 is rarely needed.

Items are locked one by one, up to the limit, only because they come in the order of an index: a sort would come after
the locks, and lock all items of the queue. The settings of a session (``OUR_PLANS``) forbid sorts.

Several items are not claimed in this way, but by a row of a table (``_batches``): the server has room for some 64 locks
a connection. One item is not claimed by a row, which costs a commit more. Each passes over the claims of the other.
"""

import hashlib
from typing import Any, Final, TypeVar

from lmdbqueue._base.values import NamedTuple
from lmdbqueue._verbs.engine import Decode
from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._items import (
    CLAIM_KEY,
    EXPIRY,
    IN_ORDER,
    IS_IN_NO_BATCH,
    LOOK,
    MINE,
    STANDS,
    Ahead,
    Found,
    Place,
    hurried,
    number,
)
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._step import Step
from lmdbqueue.postgres._taking import COLUMNS, FACTS, ONE_LEFT, VERSION, found_of

T = TypeVar("T")

_AT_ONCE: Final = 64  # items that are looked at, and passed over, together

_CLAIM: Final = (
    "WITH "
    + LOOK
    + """,
first AS MATERIALIZED (
    SELECT """
    + COLUMNS.replace("expires_at", EXPIRY)
    + ", "
    + VERSION
    + """ AS version, xmax <> '0'::xid AS is_doubtful FROM {items} WHERE queue = %(queue)s AND state = 0
    AND CASE WHEN """
    + IN_ORDER
    + " AND seq <> ALL(%(passed)s::bigint[]) AND "
    + IS_IN_NO_BATCH
    + " THEN pg_try_advisory_lock"
    + CLAIM_KEY
    + """ ELSE false END
    ORDER BY seq LIMIT %(n)s)
SELECT * FROM first UNION ALL SELECT NULL, NULL, """
    + FACTS
    + ", NULL, NULL, NULL, NULL, NULL, NULL FROM look"
)
_CLAIM_NOW: Final = hurried(_CLAIM)
# Locks that end with the statement need not be on the disk
_ARE_FREE: Final = """
WITH unflushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
SELECT seq FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq = ANY(%(seqs)s::bigint[])
AND EXISTS (SELECT FROM unflushed) FOR UPDATE SKIP LOCKED
"""
_RELEASE_THESE: Final = "SELECT pg_advisory_unlock" + CLAIM_KEY + " FROM unnest(%(seqs)s::bigint[]) AS claimed (seq)"
# All that this session has locked, be it that the reply which says what was lost to an interrupt; an oid has no sign
_RELEASE: Final = """
SELECT pg_advisory_unlock(%(claims)s::integer, (objid::bigint - (objid::bigint >> 31 << 32))::integer)
FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND pid = pg_backend_pid()
AND classid = %(claims)s::integer::oid AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# No row means that the item is not there, or not free. The lock becomes one of the transaction, which ends after it
_REMOVE: Final = (
    "WITH "
    + MINE.removeprefix(",")
    + """,
claimed AS MATERIALIZED (
    SELECT ctid AS at FROM {items} WHERE queue = %(queue)s AND state = 0 AND seq = %(seq)s AND """
    + VERSION
    + " = %(version)s AND "
    + STANDS
    + """
    FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM {items} WHERE ctid = (SELECT at FROM claimed) RETURNING seq),
"""
    + ONE_LEFT
    + """
SELECT EXISTS (SELECT FROM {sleepers} WHERE queue = %(queue)s), next.*,
    CASE WHEN pg_try_advisory_xact_lock"""
    + CLAIM_KEY.replace("seq", "gone.seq")
    + " THEN pg_advisory_unlock"
    + CLAIM_KEY.replace("seq", "gone.seq")
    + """ END, (SELECT at FROM noted)
FROM gone LEFT JOIN next ON %(ahead)s"""
)


class How(NamedTuple):
    """How an item is looked for."""

    deaths: bool  # look for dead owners of leases, too
    insists: bool  # even if items that are due could not return first
    looks_ahead: bool  # return the next item, too


def place_of(queue: int, uuid: str, channel: str) -> Place:
    """Return the place of a queue in the schema with a uuid: a database has the locks of all its schemas, and others.

    Two queues whose locks are of one class would only pass over an item now and then.
    """
    digest = hashlib.blake2b(f"{uuid}/{queue}".encode(), digest_size=4).digest()
    return Place(queue, channel, int.from_bytes(digest, signed=True))


def take(session: Session, place: Place, how: How, decode: Decode[T]) -> tuple[Found, list[T] | None]:
    """Claim the first item, decode it, and remove it; None: there is none that is free."""
    while True:
        try:
            found, version = _claimed(session, place, how)
            if not found.entries:
                return found, None
            items = decode(found.entries)
            try:
                rows = _removed(session, place, found, version, looks_ahead=how.looks_ahead)
            except Lost as lost:
                lost.result = found, items
                raise
        except BaseException:
            session.release()
            raise
        if rows:
            session.hold()  # nothing any more
            ((is_awaited, seq, *ahead, _, _),) = rows
            if is_awaited:
                session.tell({place.channel})
            return found._replace(ahead=None if seq is None else Ahead(seq, *ahead)), items
        session.release()


def _claimed(session: Session, place: Place, how: How) -> tuple[Found, str]:
    """Claim the first item that nobody has, and that no transaction has locked; return its version, too."""
    statement = _CLAIM if how.deaths else _CLAIM_NOW
    values = {"queue": place.id, "claims": place.claims, "deaths": how.deaths, "insists": how.insists}
    passed: list[int] = []
    n = 1
    while True:
        session.hold(_RELEASE, {"claims": place.claims})  # from now on, whatever happens
        rows = session.claim(statement, values | {"n": n, "passed": passed})
        last = rows.pop() if rows else None
        if not rows:
            session.hold()
            return Found([]) if last is None else found_of([], last), ""
        seqs = [row[0] for row in rows]
        doubtful = [row[0] for row in rows if row[8]]
        free = session.claim(_ARE_FREE, {"queue": place.id, "seqs": doubtful}) if doubtful else []
        left = set(doubtful).difference(seq for (seq,) in free)
        if seqs[0] not in left:
            if len(seqs) > 1:
                session.claim(_RELEASE_THESE, {"claims": place.claims, "seqs": seqs[1:]})
            return found_of(rows[:1], last), rows[0][7]
        session.release()
        passed += left
        n = min(_AT_ONCE, 4 * n)  # a block may have locked many


def _removed(session: Session, place: Place, found: Found, version: str, *, looks_ahead: bool) -> list[Any]:
    """Remove the claimed item; return no row if it is not there any more, or not free."""
    ((key, payload),) = found.entries
    values = {
        "claims": place.claims,
        "seq": number(key),
        "version": version,
        "size": len(payload),
        "ahead": looks_ahead,
    }
    if not found.is_followed:
        return session.once(_REMOVE, place.id, values)
    rows: list[Any] = session.run(_removed_and_skipped, (place, values), queue=place.id)
    return rows


def _removed_and_skipped(step: Step, place: Place, values: dict[str, Any]) -> list[Any]:
    """Remove an item, and let the readers of the queue count it that have not passed it."""
    rows = step.execute(_REMOVE, queue=place.id, row=step.row(place.id), token=step.token, **values).fetchall()
    if rows:
        step.has_changed = True
        _positions.skip(step, place.id, [values["seq"]])
    return rows
