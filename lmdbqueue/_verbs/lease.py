"""A consumer's lease, and the dead letters.

Owns: the verbs of a lease. Law: whether a lease still holds is asked of the queue each time, never remembered, since a
transaction that it was settled in may be undone. Must not know: how leases are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar, overload

from lmdbqueue._base.errors import ClosedError, DecodeError, LeaseExpiredError, QueueError, TransactionError, told
from lmdbqueue._base.format import Note, Trailer
from lmdbqueue._base.values import Entry, Leased, Nacked
from lmdbqueue._verbs.options import VERBS, check, numbers_of

if TYPE_CHECKING:
    from lmdbqueue._verbs.engine import Decode, Engine, Request, SortOut


T = TypeVar("T")
R = TypeVar("R")

Numbers = int | Iterable[int] | None  # of some items of a lease, or all


class Lease(Sequence[T]):
    """Items reserved for a consumer while it works on them: a sequence, falsy if it is empty.

    As a context manager it acknowledges its items at the end of the block; an exception returns them to their places in
    the queue. ``ack``, ``nack``, ``reject`` and ``extend`` are durable when they return, or with the transaction around
    them. They raise ``LeaseExpiredError`` and change nothing if the lease is over: others may have the items then.
    After its ``ttl`` a lease is over as soon as anybody reads or takes items; until then, a late ``ack`` still counts.
    A forked child does not share its parent's leases. ``queue.lease()`` makes leases.

    Attributes:
        items: The items.
        seqs: Their sequence numbers.
        attempts: The number of leases of each, including this one.
        deadline: The end of the lease on ``time.monotonic()``; None if it lasts as long as its queue object.
    """

    def __init__(self, engine: Engine, items: list[T], leased: Leased) -> None:
        self.items = items
        self.seqs = leased.seqs
        self.attempts = leased.attempts
        self.deadline = leased.deadline
        self._engine = engine
        self._token = leased.token
        self._entries = leased.entries
        self._known: list[Trailer] = []  # trailers, once they have been asked for
        self._held = set(leased.seqs)  # as far as this object knows
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of items {self.seqs} of queue {self._engine.name!r}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: the items belong to this process."""
        message = f"{self!r} belongs to this process: pass on its items, list(lease), and acknowledge them here"
        raise TypeError(message)

    @property
    def headers(self) -> list[Mapping[str, str]]:
        """The headers that each item was pushed with, empty for none.

        On PostgreSQL they are read at the first use; for an item settled before that they are empty.
        """
        return [each.headers for each in self._trailers()]

    @property
    def pushed_at(self) -> list[float]:
        """The time of each push, or of the end of its delay, in seconds since 1970."""
        return [each.pushed_at / 1e9 for each in self._trailers()]

    def _trailers(self) -> list[Trailer]:
        if self._entries and not self._known:
            self._known = self._engine.trailers(self._entries)
        return self._known

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        is_interrupted = True
        try:
            self._leave(error)
            is_interrupted = False
        except Exception:
            is_interrupted = False
            raise
        finally:
            if is_interrupted:  # nobody else will settle the items, which their owner would hold until it closes
                with suppress(QueueError):
                    self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        if self._process != os.getpid():
            return  # a forked child leaves the block; its parent continues
        if error is None:
            self.ack()
        else:
            with suppress(LeaseExpiredError, TransactionError, ClosedError):
                self.nack(reason=told(error))

    def ack(self, seqs: int | Iterable[int] | None = None) -> None:
        """Remove the items for good; durable when this returns. Items settled before are left alone.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
            ValueError: An item is not in this lease.
        """
        wanted = None if seqs is None and self._process == os.getpid() else self._wanted(seqs)
        if self._token:
            self._be_acked(wanted, self._engine.ack(self._token, wanted))

    def _be_acked(self, wanted: Collection[int] | None, settled: list[int] | None) -> None:
        if wanted is None and settled is not None:
            self._held.clear()
        else:
            self._settle(wanted, is_over=settled is None)

    def nack(
        self,
        seqs: int | Iterable[int] | None = None,
        delay: float = 0.0,
        reason: str | None = None,
        *,
        max_attempts: int | None = None,
        trace: str = "",
    ) -> Nacked:
        """Return the items to their places in the queue; durable when this returns.

        An item that was replaced meanwhile, has expired, or is beyond the limits of ``retain`` does not return.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.
            delay: Seconds until they can be taken again.
            reason: The reason, for a dead letter.
            max_attempts: Leases after which an item becomes a dead letter instead; None: the limit of the queue object.
            trace: A traceback, for a dead letter, which keeps 8,000 bytes of it, or none on a full disk.

        Returns:
            What became of each item.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
            DiskFullError: The disk is full, and so is the reserve for returned items; these items stay leased.
            ValueError: An item is not in this lease.
        """
        reason = "it was given back" if reason is None else reason
        check(VERBS, delay=delay, reason=reason, max_attempts=max_attempts, trace=trace)
        wanted = self._wanted(seqs)
        if not self._token:
            return Nacked([], [], [])
        nacked = self._engine.nack(self._token, wanted, delay, reason, max_attempts, trace)
        self._settle(wanted, is_over=nacked is None)
        return nacked or Nacked([], [], [])  # None, too, if all of them had been settled before

    def reject(self, seqs: int | Iterable[int] | None = None, reason: str | None = None) -> Nacked:
        """Make the items dead letters, whatever their number of leases; durable when this returns.

        ``dead.requeue`` tries them again.

        Args:
            seqs: The sequence numbers of some of the items; None: all that the lease still holds.
            reason: The reason that the dead letters give.

        Returns:
            What became of each item, as for ``nack``.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
            ValueError: An item is not in this lease.
        """
        return self.nack(seqs, reason="it was rejected" if reason is None else reason, max_attempts=0)

    @property
    def queue_name(self) -> str:
        """The name of the items' queue."""
        return self._engine.name

    def extend(self, ttl: float | None) -> None:
        """Extend the lease; durable when this returns. It does nothing if all items are settled.

        Args:
            ttl: Seconds from now; None: the lease lasts as long as its queue object.

        Raises:
            LeaseExpiredError: The lease is over; nothing was changed.
        """
        check(VERBS, ttl=ttl)
        if not self._token:
            return
        self._refuse_child()
        found = self._engine.extend(self._token, ttl)
        if found is not None:
            (self.deadline,) = found
        elif self._held:
            raise LeaseExpiredError(self._engine.name, sorted(self._held))

    def _wanted(self, seqs: int | Iterable[int] | None) -> Collection[int] | None:
        self._refuse_child()
        wanted = numbers_of(seqs)
        if wanted is None:
            return None
        if unknown := sorted(wanted.difference(self.seqs)):
            message = f"items {unknown} are not in this lease, which holds {self.seqs}"
            raise ValueError(message)
        return wanted

    def _settle(self, wanted: Collection[int] | None, *, is_over: bool) -> None:
        asked = self._held if wanted is None else self._held.intersection(wanted)
        if is_over and asked:
            raise LeaseExpiredError(self._engine.name, sorted(asked))
        self._held -= asked

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise LeaseExpiredError(self._engine.name, self.seqs)


class ReturnedOnError:
    """A block that settles all items of a lease itself: they are given back only if an exception leaves it."""

    def __init__(self, lease: Lease[Any]) -> None:
        self._lease = lease

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Give back what is left after an exception."""
        if error is not None:
            self._lease.__exit__(kind, error, trace)


def ack_all(engine: Engine, asked: Sequence[tuple[Lease[Any], Numbers]]) -> list[Exception | None]:
    """Acknowledge all or some items of leases of one engine, in one step; return the error of each, or None."""

    def step(requests: Sequence[Request]) -> list[tuple[list[int] | None, None]]:
        return [(gone, None) for gone in engine.ack_each(requests)]

    return [error for error, _ in _settled_by(step, asked)]


def relay_all(
    engine: Engine, leases: Sequence[Lease[T]], ttl: float | None, sort_out: SortOut[T]
) -> list[tuple[Exception | None, tuple[list[T], Leased] | None]]:
    """Acknowledge leases of one engine, and lease an item for each, in one step if that can be done.

    Returns:
        For each lease its error, or None, and what was leased for it, or None.
    """
    asked: list[tuple[Lease[Any], Numbers]] = [(lease, None) for lease in leases]
    if engine.is_drained:
        return [(error, None) for error in ack_all(engine, asked)]
    return _settled_by(lambda requests: engine.relay_each(requests, ttl, sort_out), asked)


def _settled_by(
    step: Callable[[Sequence[Request]], Sequence[tuple[list[int] | None, R | None]]],
    asked: Sequence[tuple[Lease[Any], Numbers]],
) -> list[tuple[Exception | None, R | None]]:
    """Acknowledge by a step that returns the numbers of the removed items of each lease, and something besides.

    Return the error of each, or None, and that.
    """
    results: list[tuple[Exception | None, R | None]] = [(None, None)] * len(asked)
    wanted: dict[int, Collection[int] | None] = {}
    for index, (lease, seqs) in enumerate(asked):
        try:
            some = lease._wanted(seqs)  # noqa: SLF001  (of this file)
            if lease._token:  # noqa: SLF001
                wanted[index] = some
        except Exception as error:  # one invalid request must not stop the others
            results[index] = error, None
    settled = step([(asked[index][0]._token, some) for index, some in wanted.items()])  # noqa: SLF001
    for (index, some), (gone, more) in zip(wanted.items(), settled, strict=True):
        try:
            asked[index][0]._be_acked(some, gone)  # noqa: SLF001
            results[index] = None, more
        except LeaseExpiredError as error:
            results[index] = error, None
    return results


def settle_by(
    lease: Lease[Any],
    seqs: int | Iterable[int] | None,
    step: Callable[[int, Collection[int] | None], list[int] | None],
) -> None:
    """Acknowledge as ``lease.ack(seqs)`` does, by a step that gets the token and the numbers and does more besides."""
    wanted = None if seqs is None and lease._process == os.getpid() else lease._wanted(seqs)  # noqa: SLF001  (of this file)
    lease._be_acked(wanted, step(lease._token, wanted))  # noqa: SLF001


def delivered(lease: Lease[T]) -> Lease[T]:
    """Return a lease as the last step of the call that made it: no interrupt comes between the two."""
    claims = lease._engine.claims  # noqa: SLF001  (of this file)
    if lease._token in claims:  # noqa: SLF001
        del claims[lease._token]  # noqa: SLF001  (a statement; Python looks for signals when a function is called)
    return lease


def forsake(engine: Engine, known: Collection[int]) -> None:
    """Give back what a call that failed, as by an interrupt, has leased for nobody.

    Args:
        engine: The engine.
        known: The tokens of ``engine.claims`` when the call began: a call in a signal handler may be amid another.
    """
    try:
        engine.forsake(known)
    finally:
        engine.forsake(known)


def size_of(lease: Lease[Any], seqs: Collection[int] | None) -> int:
    """Return the bytes of some of the items of a lease, as they are stored; of those that it still holds for None."""
    wanted = lease._held if seqs is None else seqs  # noqa: SLF001  (of this file)
    pairs = zip(lease.seqs, lease._entries, strict=True)  # noqa: SLF001
    return sum(len(entry[1]) for seq, entry in pairs if seq in wanted)


def undo(lease: Lease[Any]) -> None:
    """Give back the items of a lease as if it had never been: no consumer got them."""
    if lease._token:  # noqa: SLF001  (of this file)
        lease._engine.unlease(lease._token)  # noqa: SLF001


class DeadLetter(Generic[T]):
    """An item that failed too often, was rejected, or could not be decoded. ``queue.dead`` yields them.

    Attributes:
        seq: Its sequence number.
        payload: Its bytes.
        reason: The last failure.
        traceback: The traceback of the handler, or "".
        attempts: The number of its leases.
        time: When it became a dead letter, in seconds since 1970.
    """

    def __init__(self, engine: Engine, entry: Entry, note: Note, decode: Decode[T]) -> None:
        self.seq, self.payload = engine.opened(entry)
        self.reason = note.reason
        self.traceback = note.trace
        self.attempts = note.attempts
        self.time = note.time / 1e9
        self._engine = engine
        self._entry = entry
        self._decode_all = decode

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the item's push."""
        return self._engine.trailers([self._entry])[0].headers

    @property
    def item(self) -> T:
        """The item, decoded.

        Raises:
            DecodeError, CorruptItemError: It cannot be decoded, or is damaged.
        """
        try:
            return self._decode_all([self._entry])[0]
        except DecodeError as error:
            raise DecodeError(error.seq, error.payload, error.reason, is_dead=True) from error.__cause__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq}, {self.attempts} attempts: {self.reason}>"


LOWEST: Final = -(1 << 63)  # the smallest number of an item, in the class that leaves first


class DeadLetters(Generic[T]):
    """The dead letters of a queue, ordered by sequence number: ``queue.dead``.

    ``len`` counts them, iteration yields a ``DeadLetter`` for each. Each method is one atomic step, durable when it
    returns.
    """

    def __init__(self, engine: Engine, decode: Decode[T]) -> None:
        self._engine = engine
        self._decode = decode

    def __len__(self) -> int:
        return self._engine.count_dead()

    def __iter__(self) -> Iterator[DeadLetter[T]]:
        seq = LOWEST
        while letters := letters_since(self._engine, self._decode, seq):
            yield from letters
            seq = letters[-1].seq + 1

    def requeue(self, seqs: int | Iterable[int] | None = None) -> int:
        """Return dead letters to their places in the queue, as if never tried.

        A dead letter with a ``unique`` key gets it back; while another item has that key, it stays a dead letter.

        Args:
            seqs: The sequence numbers of some of them; None: all.

        Returns:
            The number of items requeued.
        """
        return self._engine.requeue(numbers_of(seqs))

    def delete(self, seqs: int | Iterable[int] | None = None) -> int:
        """Remove dead letters for good.

        Args:
            seqs: The sequence numbers of some of them; None: all.

        Returns:
            The number of items removed.
        """
        return self._engine.delete_dead(numbers_of(seqs))


def letters_since(engine: Engine, decode: Decode[T], seq: int) -> list[DeadLetter[T]]:
    """Return some dead letters from number ``seq`` on; an empty list only if there are no more.

    A letter whose number is lower, because of damage, is left out: a caller that continues behind the last would meet
    it again.
    """
    found = [DeadLetter(engine, entry, note, decode) for entry, note in engine.dead_since(seq)]
    return [each for each in found if each.seq >= seq]
