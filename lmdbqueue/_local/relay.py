"""The end of one lease and the beginning of the next, in one commit.

Owns: what a consumer that goes from item to item stores at once. Law: what is acknowledged, what is put into a state
beside it and what is leased next is there as a whole or not at all. Must not know: who consumes, what is put.

====  ==================================================  =================================================
step  what is done, in one transaction                    killed before the commit; after it
====  ==================================================  =================================================
1     remove the items that are acknowledged; if the      before: the lease is the consumer's, who is dead:
      lease is over, do nothing at all                    its items return. After: they are gone for good,
2     put the records of a state                          the records are there, and what was leased next
3     lease the next items, unless something has to       returns, since its owner is dead
      come back first
====  ==================================================  =================================================

Items are decoded after it: one that cannot be becomes a dead letter then, as it would have before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lmdbqueue._base.errors import DiskFullError
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._model import leases, pushing
from lmdbqueue._model.lease_records import NEVER
from lmdbqueue._verbs.lease import Lease, delivered, forsake, settle_by, size_of
from lmdbqueue._verbs.reading import head_of

if TYPE_CHECKING:
    from lmdbqueue._local.state import Put

T = TypeVar("T")

_MOST: Final = 1 << 16  # bytes of items that are leased so; larger ones wait for a lease of their own
_RECORDS: Final = 300  # bytes of the records of a lease and of an item


def relay(
    queue: PersistentQueue[T],
    lease: Lease[Any],
    seqs: int | Iterable[int] | None = None,
    items: int = 1,
    puts: Sequence[Put] = (),
) -> Lease[T]:
    """Acknowledge, put, and lease the next items, as one step, durable when this returns.

    Args:
        queue: The queue.
        lease: A lease of it.
        seqs: The items to acknowledge; None: all that the lease still holds.
        items: The number of items to lease, at most; 0: none.
        puts: What to put into states of the directory.

    Returns:
        The next lease. It may be empty although items wait: ``queue.lease`` gets them.

    Raises:
        LeaseExpiredError: The lease is over; nothing was changed.
        Full: There is no room; nothing was changed. On a full disk it puts no more than what it acknowledges takes up,
            and leases nothing.
    """
    engine = local_engine_of(queue)
    known = tuple(engine.claims)
    relayed: leases.Relayed | None = None

    def step(token: int, wanted: Collection[int] | None) -> list[int] | None:
        nonlocal relayed
        moment = engine.clock()
        terms = leases.Terms(owner, NEVER, moment.wall, {}, has_looked=True, claims=engine.claims, thread=get_ident())
        want = leases.Want(items, _MOST, terms, moment)
        arguments = (token, wanted, puts, want, engine.owners)
        try:
            relayed = engine.environment.update(engine.ref, leases.relay, *arguments, room=room)
        except DiskFullError:
            if sum(len(name) + len(payload) for _, name, payload in puts) > size_of(lease, wanted):
                raise
            arguments = (token, wanted, puts, want._replace(items=0), engine.owners)
            relayed = engine.environment.update(engine.ref, leases.relay, *arguments)  # from the reserve, as a removal
        return None if relayed is None else relayed.acked

    try:
        owner = engine.owners.join() if items else 0
        room = pushing.room_for([payload for _, _, payload in puts]) + 3 * (_MOST + items * _RECORDS)
        settle_by(lease, seqs, step)
        return delivered(Lease(engine, *engine.leased(relayed, None, head_of(queue).sort_out)))
    except BaseException:
        forsake(engine, known)
        raise
