"""The calls of an event loop, as the courier sees them.

Owns: what a call is, which calls may be done together, and how a call is undone. Law: successive calls of one kind ask
for the same thing; if one of them finds nothing, there is nothing for the others either. Must not know: threads, the
loop.
"""

import threading
from asyncio import Future
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from lmdbqueue._base.errors import ClosedError, DiskFullError, Full
from lmdbqueue._base.values import Entry, NamedTuple
from lmdbqueue._base.values import Push as HowToPush
from lmdbqueue._verbs.encoding import PLAIN
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.lease import Lease, delivered, relay_all, undo
from lmdbqueue._verbs.writing import appended

AnyHead = Head[Any]
Taken = tuple[list[Entry], list[Any]]


class Job:
    """A call, and the future that gets its result."""

    kind: object = None  # successive jobs of one kind may be done together
    waits = False  # until ``run`` does not return None
    is_late = False  # its time is over: it is tried once more
    deadline = float("inf")  # when to stop trying while a server is unreachable; on time.monotonic()
    latest = float("inf")  # the caller's own limit, which the deadline never exceeds
    future: "Future[Any]"
    _is_under_way = False  # known to the worker

    def __init__(self) -> None:
        self._turn = threading.Lock()  # held while deciding who answers it

    def run(self, head: AnyHead) -> Any:
        """Do it, in the worker."""
        raise NotImplementedError

    def has_effect(self, result: Any) -> bool:  # noqa: ARG002  (nor asked for its truth: it may be the user's)
        """Return whether it must be undone if nobody receives this result."""
        return False

    def undo(self, head: AnyHead, result: Any) -> bool:
        """Undo it, in the worker, which nobody received; return whether that was possible."""
        raise NotImplementedError

    def is_for_all(self, result: Any) -> bool:  # noqa: ARG002
        """Return whether a result also holds for all other jobs of this kind that are tried at the same time."""
        return False

    def take_up(self) -> bool:
        """Return whether the worker may run it; from then on only it answers, since it alone knows what was done."""
        if not self._is_under_way:
            self._is_under_way = not self.future.done() and self._turn.acquire(blocking=False)
        return self._is_under_way

    def lay_down(self) -> None:
        """Mark it as not under way, so that the loop may answer it."""
        self._is_under_way = False
        self._turn.release()

    def withdraw(self) -> bool:
        """Return whether it is not under way, and never will be, so that the loop may answer it."""
        return self._turn.acquire(blocking=False)


class Call(Job):
    """A function without arguments, and another that undoes its result."""

    def __init__(
        self,
        future: "Future[Any]",
        fn: Callable[[], Any],
        *,
        undo: Callable[[Any], bool] | None = None,
        waits: bool = False,
        look: object = None,
    ) -> None:
        """``look``: identifies a call that only reads; all calls with an equal one get the same answer."""
        super().__init__()
        self.future = future
        self.waits = waits
        self.fn = fn
        self.undone_by = undo
        if look is not None:
            self.kind = "look", look

    def run(self, head: AnyHead) -> Any:  # noqa: ARG002
        """Call it."""
        return self.fn()

    def is_for_all(self, result: Any) -> bool:  # noqa: ARG002
        """Return whether it only reads."""
        return self.kind is not None

    def has_effect(self, result: Any) -> bool:
        """Return whether it has a function that undoes it, and found anything."""
        return self.undone_by is not None and result is not None

    def undo(self, head: AnyHead, result: Any) -> bool:  # noqa: ARG002
        """Call that function."""
        return self.undone_by is not None and self.undone_by(result)


APART: Final = "push with options"


class Push(Job):
    """A push of payloads, all or none; its result is their numbers, or what became of each if they have options."""

    kind: object = "push"
    refusal: Full

    def __init__(
        self,
        future: "Future[Any]",
        payloads: list[bytes],
        how: HowToPush = PLAIN,
        *,
        waits: bool = False,
    ) -> None:
        super().__init__()
        self.future = future
        self.payloads = payloads
        self.how = how
        self.waits = waits
        if how != PLAIN:
            self.kind = APART

    def run(self, head: AnyHead) -> object:
        """Append them."""
        head.refuse_push()
        try:
            return appended(head.engine, self.payloads, self.how)
        except Full as error:
            if not self.waits or isinstance(error, DiskFullError):
                raise
            self.refusal = error
            return None


class Wanted(NamedTuple):
    """The items that a take asks for."""

    items: int
    least: int  # none if there are fewer
    awaited: int  # the number for which it waits
    max_bytes: int | None = None


class Take(Job):
    """A take of items; with ``waits`` it waits until there are enough. Its result is entries and items."""

    def __init__(self, future: "Future[Any]", wanted: Wanted, *, waits: bool = False) -> None:
        super().__init__()
        self.future = future
        self.waits = waits
        self.wanted = self.kind = wanted

    def run(self, head: AnyHead) -> Taken | None:
        """Remove them."""
        wanted = self.wanted
        if not self.waits:
            return head.take(wanted.items, 0, wanted.max_bytes)
        return head.if_enough(wanted.awaited, lambda: head.take(wanted.items, wanted.least, wanted.max_bytes))

    def is_for_all(self, result: Taken | None) -> bool:
        """Return whether there was nothing to take."""
        return result is None or not result[0]

    def has_effect(self, result: Taken | None) -> bool:
        """Return whether there are any."""
        return result is not None and bool(result[0])

    def undo(self, head: AnyHead, result: Taken) -> bool:
        """Put them back."""
        head.engine.put_back(result[0])
        return True


ONE: Final = Wanted(1, 1, 1)


class Claimed(NamedTuple):
    """The items that a lease asks for."""

    items: int
    ttl: float | None
    max_bytes: int | None
    waits: bool
    verb: str = "lease"  # a tuple of this length never equals one of ``Wanted``

    @property
    def is_one(self) -> bool:
        """Whether it asks for one item of any size."""
        return self.items == 1 and self.max_bytes is None


class Claim(Job):
    """A lease of items; with ``waits`` it waits until there is one."""

    def __init__(self, future: "Future[Any]", claimed: Claimed, lease: Callable[[], Lease[Any]]) -> None:
        """``lease``: makes this lease alone."""
        super().__init__()
        self.future = future
        self.waits = claimed.waits
        self.kind = claimed
        self._lease = lease

    def run(self, head: AnyHead) -> Lease[Any] | None:
        """Lease them."""
        if not self.waits:
            return self._lease()
        return head.if_enough(1, lambda: self._lease() or None)

    def is_for_all(self, result: Lease[Any] | None) -> bool:
        """Return whether there was nothing to take."""
        return not result

    def has_effect(self, result: Lease[Any] | None) -> bool:
        """Return whether there are any."""
        return bool(result)

    def undo(self, head: AnyHead, result: Lease[Any]) -> bool:  # noqa: ARG002
        """Give them back."""
        return undo_unclaimed(result)


class Ack(Job):
    """An ack of what a lease still holds, or of ``seqs``."""

    kind: object = "ack"

    def __init__(self, future: "Future[Any]", lease: Lease[Any], seqs: Collection[int] | None) -> None:
        super().__init__()
        self.future = future
        self.lease = lease
        self.seqs = seqs

    def run(self, head: AnyHead) -> Any:  # noqa: ARG002
        """Acknowledge the items."""
        self.lease.ack(self.seqs)


class RelayTerms(NamedTuple):
    """The terms of a relay."""

    ttl: float


class Relay(Ack):
    """An ack of a whole lease, and the lease of another item if it can be had in the same step, which is the result."""

    kind: RelayTerms

    def __init__(self, future: "Future[Any]", lease: Lease[Any], ttl: float) -> None:
        super().__init__(future, lease, None)
        self.kind = RelayTerms(ttl)

    def run(self, head: AnyHead) -> Lease[Any] | None:
        """Acknowledge and lease."""
        ((error, following),) = relay_all(head.engine, [self.lease], self.kind.ttl, head.sort_out)
        if error is not None:
            raise error
        return None if following is None else delivered(Lease(head.engine, *following))

    def has_effect(self, result: Lease[Any] | None) -> bool:
        """Return whether there is another lease."""
        return result is not None

    def undo(self, head: AnyHead, result: Lease[Any]) -> bool:  # noqa: ARG002
        """Give back what was leased; the ack stays."""
        return undo_unclaimed(result)


def undo_unclaimed(lease: Lease[Any]) -> bool:
    """Undo a lease that nobody got; a queue that was closed has done so."""
    with suppress(ClosedError):
        undo(lease)
    return True
