"""What the verbs ask of the keeper of the items.

Owns: the ``Engine`` protocol. Law: each method is one atomic step, durable when it returns, or a part of the
transaction that it is called in; before a step tells what is there, everything that has to come back has come back.
Must not know: how items are kept.

An engine belongs to one queue object and is *held*: by the queue, and by its readers, leases, dead letters and, for an
event loop, its courier. ``_local.engine`` keeps items in LMDB, ``postgres._engine`` in tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeVar

from lmdbqueue._format import Note, Retention, Trailer
from lmdbqueue._values import Entry, Leased, Push, Pushed, ReaderStats, Start, Stats

T = TypeVar("T")

Move = Any  # of an engine, by which it undoes what a reader passed at once
Decode = Callable[[list[Entry]], list[T]]  # the items of the entries, which are not empty, in their order
SortOut = Callable[[list[Entry]], tuple[list[T], dict[bytes, str]]]  # the items; the keys of the unreadable, and why


class Engine(Protocol):
    """What keeps the items of one queue, for one queue object."""

    name: str  # of the queue
    path: str  # of its directory or database, for errors
    maxsize: int  # items; 0: no limit

    @property
    def max_attempts(self) -> int | None:
        """The number of attempts after which an item is dead."""

    @max_attempts.setter
    def max_attempts(self, times: int | None) -> None: ...

    @property
    def buries_expired(self) -> bool:
        """Whether what has expired goes to the dead letters."""

    @buries_expired.setter
    def buries_expired(self, buries: bool) -> None: ...

    is_shut_down: bool  # no pushes any more
    is_drained: bool  # shut down at once: not even the items that are there are handed out
    is_closed: bool

    @property
    def patience(self) -> float:
        """For how many seconds a call goes on while a server is away, from now on; inf without one."""

    @property
    def is_away(self) -> bool:
        """Whether a call waits for a server that is away."""

    def hurry(self, deadline: float) -> None:
        """Limit the calls of this thread in the block to a deadline on ``time.monotonic()``."""

    # --- items that wait

    def count(self) -> int:
        """Return how many items wait, at a cost that does not depend on it."""

    def owed(self) -> int:
        """Return how many items ``maxsize`` counts."""

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""

    def append_apart(self, payloads: Sequence[bytes], how: Push) -> list[Pushed]:
        """Append payloads with a delay, unique keys, an expiry, headers or a priority; all or none (``Full``)."""

    def find(self, key: bytes) -> int | None:
        """Return the number of the item with a unique key, given by its digest."""

    def cancel(self, key: bytes) -> bool:
        """Remove the item with a unique key, if it waits or is delayed; return whether it did."""

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the first ``n`` entries, or as many as there are; of at most so many payload bytes, but always one."""

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Do as ``first``, for entries that are to be taken: they need not be durable yet."""

    def since(self, key: bytes) -> list[Entry]:
        """Return some entries behind that of ``key``, b"" for all; none only if there are none."""

    def take(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Remove the first ``n`` items, or as many as there are, once ``decode`` has decoded them; return both.

        None, and nothing removed, if there are fewer than ``least``. ``decode`` may return fewer items than it was
        given entries: the others stay. What it raises leaves all in place.
        """

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``: the items have their old numbers again, whatever has left after them.

        All that was known of them is known again, but for a unique key that another item has got since; readers do
        not count them as skipped any more. What is beyond what is retained goes at once.
        """

    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number, if it waits; return whether it did."""

    def dead_letter(self, seq: int, reason: str) -> bool:
        """Make a waiting item a dead letter; return whether it was waiting."""

    def delete(self, n: int) -> int:
        """Remove the first ``n`` items, or as many as there are; return how many went."""

    def clear(self) -> int:
        """Remove all items that wait; return how many went."""

    def clear_all(self) -> int:
        """Remove all items, those too that are leased, delayed or dead; return how many went."""

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries, found undamaged (``CorruptItemError``)."""

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""

    def trailers(self, entries: Sequence[Entry]) -> list[Trailer]:
        """Return when each was pushed, and its headers; those of an item that has left may be missing."""

    # --- leases

    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease the first ``n`` items, or as many as there are; what cannot be read dies. None: there are none.

        ``ttl`` in seconds, None for as long as the queue object lives.
        """

    def lease_each(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease the first ``n`` items, or as many as there are, each by itself."""

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove what a lease holds, None for all, for good; return which, None if the lease is gone."""

    def ack_each(self, asked: Sequence[tuple[int, Collection[int] | None]]) -> list[list[int] | None]:
        """Do as ``ack`` for leases and items of theirs, all or none; return what it would for each."""

    def nack(
        self,
        token: int,
        seqs: Collection[int] | None,
        delay: float,
        reason: str,
        max_attempts: int | None,
        trace: str = "",
    ) -> list[int] | None:
        """Give back what a lease holds, None for all; return which, None if the lease is gone.

        ``trace``: the traceback of what happened. ``max_attempts`` None: as the queue has it.
        """

    def unlease(self, token: int) -> None:
        """Undo ``lease``, as far as the lease still holds: it is no attempt, and no item dies."""

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Make a lease end in ``ttl`` s; return its deadline, None if it is gone."""

    # --- dead letters

    def count_dead(self) -> int:
        """Return how many there are."""

    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some from number ``seq`` on; none only if there are none."""

    def requeue(self, seqs: Collection[int] | None) -> int:
        """Return dead letters to their places, None for all; return their number."""

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters, None for all; return how many there were."""

    # --- named readers

    def reader(self, name: str) -> ReaderEngine:
        """Return the steps of a reader, which may not be there yet."""

    def readers(self) -> list[ReaderStats]:
        """Return what is known of all readers."""

    def retain(self, retention: Retention | None, /) -> None:
        """Set what is retained, read or not."""

    def is_crowded(self) -> bool:
        """Return whether the last move of a reader had to wait for the flush of another process."""

    # --- waiting, and the whole

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changed after the ticket was given, or for ``timeout`` s, or a while."""

    def wake(self) -> None:
        """End the sleep of every waiter."""

    def watch(self) -> None:
        """Make removals wake waiters, from now on."""

    def stats(self) -> Stats:
        """Return the figures of the queue, at a cost that does not depend on its length."""

    def sync(self) -> None:
        """Wait until the effects of all calls that have returned are on disk."""

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""

    def close(self) -> None:
        """Give back what is leased, and free what is held; every later step raises ``ClosedError``. Idempotent."""


class ReaderEngine(Protocol):
    """What keeps the position of one named reader; all but ``create`` and ``drop`` raise ``GoneError`` without it."""

    def create(self, where: Start) -> None:
        """Make the reader unless it is there."""

    def drop(self) -> bool:
        """Remove the reader; return whether it was there."""

    def seek(self, where: Start) -> None:
        """Move the reader to another item."""

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the next ``n`` entries; of at most so many payload bytes, but always one."""

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Do as ``first``, for entries that are to be passed: they need not be durable yet."""

    def advance(self, keys: list[bytes]) -> Move | None:
        """Move the reader past its next items if their keys are ``keys``; otherwise do nothing and return None."""

    def retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if nobody has moved the reader since; return whether it was undone."""

    def delete(self, n: int) -> int:
        """Move the reader past its next ``n`` items, or as many as there are; return their number."""

    def lag(self) -> int:
        """Return how many items the reader has not passed."""

    def stats(self) -> ReaderStats:
        """Return what is known of the reader."""


_FEW: Final = 16  # entries that are read at first


def within(fetch: Callable[[int], list[Entry]], size: Callable[[Entry], int], n: int, max_bytes: int) -> list[Entry]:
    """Return the first ``n`` entries of at most ``max_bytes``, but always one, and read few more."""
    wanted = min(n, _FEW)
    while True:
        entries = fetch(wanted)
        found = fitting(entries, size, max_bytes)
        if len(found) < len(entries) or len(entries) < wanted or wanted == n:
            return found
        wanted = min(n, 4 * wanted)


def fitting(entries: list[Entry], size: Callable[[Entry], int], max_bytes: int) -> list[Entry]:
    """Return the first entries of at most ``max_bytes``, but always one."""
    left = max_bytes
    for number, entry in enumerate(entries):
        left -= size(entry)
        if left < 0:
            return entries[: max(1, number)]
    return entries
