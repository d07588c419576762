"""What a consumer holds: a lease, and the letters of the dead.

Owns: what a user does with a lease. Law: whether a lease still holds is asked of the queue each time, never
remembered, since a transaction that took part may be undone. Must not know: how leases are kept.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Generic, Self, TypeVar, overload

from lmdbqueue._errors import ClosedError, DecodeError, LeaseExpiredError, TransactionError
from lmdbqueue._format import Note, Trailer
from lmdbqueue._values import Entry, Leased
from lmdbqueue._verbs.encoding import checked_delay, checked_ttl
from lmdbqueue._verbs.engine import Decode, Engine

T = TypeVar("T")


class Lease(Sequence[T]):
    """Items that a consumer holds while it works on them: a sequence, falsy when it is empty.

    As a context manager it acknowledges what it still holds when the block ends, and gives it back to its
    places when an exception leaves the block. ``ack``, ``nack`` and ``extend`` are durable when they return, or
    with the transaction that they are called in. They raise ``LeaseExpiredError``, and change nothing, when
    the lease is over: then others may have the items. A forked child has no part in its parent's leases.

    ``items``, ``seqs`` (sequence numbers) and ``attempts`` (how often each was leased, this time included) go
    together; ``deadline`` is on ``time.monotonic()``, None for a lease that lasts as long as its queue object.
    """

    def __init__(self, engine: Engine, items: list[T], leased: Leased) -> None:
        self.items = items
        self.seqs = leased.seqs
        self.attempts = leased.attempts
        self.deadline = leased.deadline
        self._engine = engine
        self._token = leased.token
        self._entries = leased.entries
        self._held = set(leased.seqs)  # as far as this object was told
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of items {self.seqs} of queue {self._engine.name!r}>"

    @property
    def headers(self) -> list[Mapping[str, str]]:
        """The headers that each item was pushed with, empty for none."""
        return [each.headers for each in self._trailers()]

    @property
    def pushed_at(self) -> list[float]:
        """When each item was pushed, in seconds since 1970; one with a delay: when it was due."""
        return [each.pushed_at / 1e9 for each in self._trailers()]

    def _trailers(self) -> list[Trailer]:
        return self._engine.trailers(self._entries) if self._entries else []

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
        wanted = None if seqs is None and self._process == os.getpid() else self._wanted(seqs)
        if self._token:
            settled = self._engine.ack(self._token, wanted)
            if wanted is None and settled is not None:
                self._held.clear()
            else:
                self._settle(wanted, settled)

    def nack(
        self,
        seqs: int | Iterable[int] | None = None,
        delay: float = 0.0,
        reason: str | None = None,
        *,
        max_attempts: int | None = None,
    ) -> None:
        """Give back what the lease still holds, or those of ``seqs``.

        They are in their places again at once, or after ``delay`` seconds before all that waits. An item that
        was leased ``max_attempts`` times (None: as the queue object has it) goes to the dead letters, with the reason.
        """
        checked_delay(delay)
        wanted = self._wanted(seqs)
        reason = "it was given back" if reason is None else reason
        if self._token:
            self._settle(wanted, self._engine.nack(self._token, wanted, delay, reason, max_attempts))

    def reject(self, seqs: int | Iterable[int] | None = None, reason: str | None = None) -> None:
        """Set aside what the lease still holds, or those of ``seqs``: they are dead letters, however often leased.

        Raises ``LeaseExpiredError`` as ``nack`` does. ``dead.requeue`` tries them again.
        """
        self.nack(seqs, reason="it was rejected" if reason is None else reason, max_attempts=0)

    def extend(self, ttl: float | None) -> None:
        """Let the lease last for ``ttl`` seconds from now; None: for as long as its queue object.

        Does nothing if all that it held is settled.
        """
        checked_ttl(ttl)
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
            raise LeaseExpiredError(self._engine.name, sorted(asked))
        self._held -= asked

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise LeaseExpiredError(self._engine.name, self.seqs)


class DeadLetter(Generic[T]):
    """An item that was leased too often, rejected, or could not be decoded, and what is known of it.

    ``seq``; ``payload``: its bytes; ``reason``: what happened last, and ``traceback``: that of the handler, "" for
    none; ``attempts``: how often it was leased; ``time``: when it died, in seconds since 1970.
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
        """The headers that the item was pushed with, empty for none."""
        return self._engine.trailers([self._entry])[0].headers

    @property
    def item(self) -> T:
        """The item; raises ``DecodeError`` or ``CorruptItemError`` if that is why it died."""
        try:
            return self._decode_all([self._entry])[0]
        except DecodeError as error:
            raise DecodeError(error.seq, error.payload, error.reason, is_dead=True) from error.__cause__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq}, {self.attempts} attempts: {self.reason}>"


class DeadLetters(Generic[T]):
    """The dead letters of a queue, by sequence number. Each method is one atomic step, durable when it returns."""

    def __init__(self, engine: Engine, decode: Decode[T]) -> None:
        self._engine = engine
        self._decode = decode

    def __len__(self) -> int:
        return self._engine.count_dead()

    def __iter__(self) -> Iterator[DeadLetter[T]]:
        seq = 0
        while letters := letters_since(self._engine, self._decode, seq):
            yield from letters
            seq = letters[-1].seq + 1

    def requeue(self, seqs: int | Iterable[int] | None = None) -> int:
        """Let all, or those of ``seqs``, wait in their places again, as if never tried; return how many there were."""
        return self._engine.requeue(_some(seqs))

    def delete(self, seqs: int | Iterable[int] | None = None) -> int:
        """Remove all, or those of ``seqs``, for good; return how many there were."""
        return self._engine.delete_dead(_some(seqs))


def letters_since(engine: Engine, decode: Decode[T], seq: int) -> list[DeadLetter[T]]:
    """Return some dead letters from number ``seq`` on; none only if there are none."""
    return [DeadLetter(engine, entry, note, decode) for entry, note in engine.dead_since(seq)]


def _some(seqs: int | Iterable[int] | None) -> Collection[int] | None:
    return {seqs} if isinstance(seqs, int) else None if seqs is None else set(seqs)
