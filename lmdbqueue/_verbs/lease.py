"""What a consumer holds: a lease, and the letters of the dead.

Owns: what a user does with a lease. Law: whether a lease still holds is asked of the queue each time, never
remembered, since a transaction that took part may be undone. Must not know: how leases are kept.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar, overload

from lmdbqueue._errors import ClosedError, LeaseExpiredError, TransactionError
from lmdbqueue._format import Note
from lmdbqueue._verbs.writing import checked_delay

T = TypeVar("T")


class Holder(Protocol):
    """What keeps leases: each method is one atomic step; None says that the lease is gone."""

    name: str

    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None: ...

    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None: ...

    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None: ...


class Leased(NamedTuple):
    """What a queue knows of a lease that it has given."""

    token: int  # 0: of nothing
    seqs: list[int]
    attempts: list[int]
    deadline: float | None


NOTHING = Leased(0, [], [], None)


class Lease(Sequence[T]):
    """Items that a consumer holds while it works on them: a sequence, falsy when it is empty.

    As a context manager it acknowledges what it still holds when the block ends, and gives it back to its
    places when an exception leaves the block. ``ack``, ``nack`` and ``extend`` are durable when they return, or
    with the transaction that they are called in. They raise ``LeaseExpiredError``, and change nothing, when
    the lease is over: then others may have the items. A forked child has no part in its parent's leases.

    ``items``, ``seqs`` (sequence numbers) and ``attempts`` (how often each was leased, this time included) go
    together; ``deadline`` is on ``time.monotonic()``, None for a lease that lasts as long as its queue object.
    """

    def __init__(self, queue: Holder, items: list[T], leased: Leased) -> None:
        self.items = items
        self.seqs = leased.seqs
        self.attempts = leased.attempts
        self.deadline = leased.deadline
        self._queue = queue
        self._token = leased.token
        self._held = set(leased.seqs)  # as far as this object was told
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of items {self.seqs} of queue {self._queue.name!r}>"

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
        if self._process != os.getpid():
            return  # a child leaves the block; its parent goes on
        if error is None:
            self.ack()
        else:
            with suppress(LeaseExpiredError, TransactionError, ClosedError):
                self.nack(reason=f"{type(error).__name__}: {error}")

    def ack(self, seqs: int | Iterable[int] | None = None) -> None:
        """Remove what the lease still holds, or those of ``seqs``, for good. What was settled before is left alone."""
        wanted = self._wanted(seqs)
        if self._token:
            self._settle(wanted, self._queue._ack(self._token, wanted))  # noqa: SLF001  (its own protocol)

    def nack(self, seqs: int | Iterable[int] | None = None, delay: float = 0.0, reason: str | None = None) -> None:
        """Give back what the lease still holds, or those of ``seqs``.

        They are in their places again at once, or after ``delay`` seconds before all that waits. An item that
        was leased ``max_attempts`` times (of the queue object) goes to the dead letters, with the reason.
        """
        checked_delay(delay)
        self._nack(seqs, delay, reason)

    def reject(self, seqs: int | Iterable[int] | None = None, reason: str | None = None) -> None:
        """Set aside what the lease still holds, or those of ``seqs``: they are dead letters, however often leased.

        Raises ``LeaseExpiredError`` as ``nack`` does. ``dead.requeue`` tries them again.
        """
        self._nack(seqs, 0.0, "it was rejected" if reason is None else reason, 0)

    def _nack(
        self, seqs: int | Iterable[int] | None, delay: float, reason: str | None, max_attempts: int | None = None
    ) -> None:
        wanted = self._wanted(seqs)
        reason = "it was given back" if reason is None else reason
        if self._token:
            self._settle(wanted, self._queue._nack(self._token, wanted, delay, reason, max_attempts))  # noqa: SLF001

    def extend(self, ttl: float | None) -> None:
        """Let the lease last for ``ttl`` seconds from now; None: for as long as its queue object.

        Does nothing if all that it held is settled.
        """
        if not self._token:
            return
        self._refuse_child()
        found = self._queue._extend(self._token, ttl)  # noqa: SLF001
        if found is not None:
            (self.deadline,) = found
        elif self._held:
            raise LeaseExpiredError(self._queue.name, sorted(self._held))

    def _wanted(self, seqs: int | Iterable[int] | None) -> Collection[int] | None:
        self._refuse_child()
        if seqs is None:
            return None
        wanted = {seqs} if isinstance(seqs, int) else set(seqs)
        if unknown := sorted(wanted.difference(self.seqs)):
            message = f"items {unknown} are not in this lease, which is of {self.seqs}"
            raise ValueError(message)
        return wanted

    def _settle(self, wanted: Collection[int] | None, settled: list[int] | None) -> None:
        asked = self._held if wanted is None else self._held.intersection(wanted)
        if settled is None and asked:
            raise LeaseExpiredError(self._queue.name, sorted(asked))
        self._held -= asked

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise LeaseExpiredError(self._queue.name, self.seqs)


class DeadLetter(Generic[T]):
    """An item that was leased too often, or could not be decoded, and what is known of it.

    ``seq``; ``payload``: its bytes; ``reason``: what happened last; ``attempts``: how often it was leased;
    ``time``: when it died, in seconds since 1970.
    """

    def __init__(self, seq: int, payload: bytes, note: Note, decode: Callable[[], T]) -> None:
        self.seq = seq
        self.payload = payload
        self.reason = note.reason
        self.attempts = note.attempts
        self.time = note.time / 1e9
        self._decode = decode

    @property
    def item(self) -> T:
        """The item; raises ``DecodeError`` or ``CorruptItemError`` if that is why it died."""
        return self._decode()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq}, {self.attempts} attempts: {self.reason}>"


class DeadKeeper(Protocol):
    """What keeps dead letters."""

    def _count_dead(self) -> int: ...

    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]: ...

    def _requeue(self, seqs: Collection[int] | None) -> int: ...

    def _delete_dead(self, seqs: Collection[int] | None) -> int: ...


class DeadLetters(Generic[T]):
    """The dead letters of a queue, by sequence number. Each method is one atomic step, durable when it returns."""

    def __init__(self, queue: DeadKeeper) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return self._queue._count_dead()  # noqa: SLF001  (its own protocol)

    def __iter__(self) -> Iterator[DeadLetter[T]]:
        seq = 0
        while letters := self._queue._dead_since(seq):  # noqa: SLF001
            yield from letters
            seq = letters[-1].seq + 1

    def requeue(self, seqs: int | Iterable[int] | None = None) -> int:
        """Let all, or those of ``seqs``, wait in their places again, as if never tried; return how many there were."""
        return self._queue._requeue(_some(seqs))  # noqa: SLF001

    def delete(self, seqs: int | Iterable[int] | None = None) -> int:
        """Remove all, or those of ``seqs``, for good; return how many there were."""
        return self._queue._delete_dead(_some(seqs))  # noqa: SLF001


def _some(seqs: int | Iterable[int] | None) -> Collection[int] | None:
    return {seqs} if isinstance(seqs, int) else None if seqs is None else set(seqs)
