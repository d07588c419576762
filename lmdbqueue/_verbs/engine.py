"""The interface between the verbs and the engine that keeps the items.

Owns: the ``Engine`` protocol. Law: each method is one atomic step, durable when it returns, or a part of the
transaction that it is called in; before a step reports on the queue, all items that are due to return have returned.
Must not know: how items are kept.

An engine belongs to one queue object and is *held*: by the queue, and by its readers, leases, dead letters and, for an
event loop, its courier. ``_local.engine`` keeps items in LMDB, ``postgres._engine`` in tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

from lmdbqueue._base.format import Note, Retention, Trailer
from lmdbqueue._base.values import Entry, Leased, Nacked, Push, Pushed, ReaderStats, Start, Stats

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

Move = Any  # of an engine: the record by which it undoes a reader's move
Request = tuple[int, Collection[int] | None]  # the token of a lease, and the numbers of some of its items; None: all
Relayed = tuple[list[int] | None, tuple[list[T], Leased] | None]  # what an ack returns, and the lease of another item
Decode = Callable[[list[Entry]], list[T]]  # the items of the entries, which are not empty, in their order
SortOut = Callable[[list[Entry]], tuple[list[T], dict[bytes, str]]]  # the items; the keys of the unreadable, and why


class Engine(Protocol):
    """The keeper of the items of one queue, for one queue object."""

    name: str  # of the queue
    path: str  # of its directory or database, for errors
    maxsize: int  # items; 0: no limit

    @property
    def max_attempts(self) -> int | None:
        """The number of leases after which an item becomes a dead letter."""

    @max_attempts.setter
    def max_attempts(self, times: int | None) -> None: ...

    @property
    def buries_expired(self) -> bool:
        """Whether expired items become dead letters."""

    @buries_expired.setter
    def buries_expired(self, buries: bool) -> None: ...

    is_shut_down: bool  # pushes are refused
    is_drained: bool  # shut down immediately: even the items that are left are not handed out
    is_closed: bool
    claims: dict[int, int]  # leases that nobody has yet: the token of each, with the thread that made it

    @property
    def patience(self) -> float:
        """Seconds, from now, for which a call continues while a server is unreachable; inf if there is no server."""

    @property
    def is_away(self) -> bool:
        """Whether a call is waiting for an unreachable server."""

    def one_call(self, fn: Callable[[*Ts], R], *args: *Ts) -> R:
        """Return what a function returns whose steps have one deadline, if a server is away."""

    def hurry(self, deadline: float) -> None:
        """Limit the calls of this thread in the block to a deadline on ``time.monotonic()``."""

    # --- waiting items

    def count(self) -> int:
        """Return the number of waiting items, in constant time."""

    def owed(self) -> int:
        """Return the number of items that ``maxsize`` counts."""

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""

    def append_apart(self, payloads: Sequence[bytes], how: Push) -> list[Pushed]:
        """Append payloads with a delay, unique keys, an expiry, headers or a priority; all or none (``Full``)."""

    def append_each(self, pushes: Sequence[tuple[Sequence[bytes], Push]]) -> list[list[Pushed]]:
        """Like ``append_apart``, for several pushes in one step, or for the first ones; return the result of each.

        If it raises, nothing was stored. ``Full`` and errors of an argument may be those of any push.
        """

    def find(self, key: bytes) -> int | None:
        """Return the number of the item with a unique key, given by its digest."""

    def cancel(self, key: bytes) -> bool:
        """Remove the item with a unique key, if it is waiting or delayed; return whether it was."""

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the first ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Like ``first``, for entries that will be taken: they need not be durable yet."""

    def since(self, key: bytes) -> list[Entry]:
        """Return some entries behind ``key``, from the head for b""; an empty list only if there are no more."""

    def take(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Remove at most the first ``n`` items, after ``decode`` has decoded them; return entries and items.

        None, and nothing removed, if there are fewer than ``least``. ``decode`` may return fewer items than it was
        given entries: the others stay. If it raises, all items stay.
        """

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``: the items get their old numbers back, even if later items have left since.

        Those whose places all readers have passed get new numbers at the tail. Their notes are restored, except a
        unique key that another item has been given since; readers that meet them in their old places no longer count
        them as skipped. Items beyond the limits of retention are dropped immediately.
        """

    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number, if it is waiting; return whether it was."""

    def dead_letter(self, seq: int, reason: str) -> bool:
        """Make a waiting item a dead letter; return whether it was waiting."""

    def delete(self, n: int) -> int:
        """Remove at most the first ``n`` items; return their number."""

    def clear(self) -> int:
        """Remove all waiting items; return their number."""

    def clear_all(self) -> int:
        """Remove all items, including leased, delayed and dead ones; return their number."""

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries; raise ``CorruptItemError`` if one is damaged."""

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""

    def trailers(self, entries: Sequence[Entry]) -> list[Trailer]:
        """Return the trailer of each item; for an item that has left, the headers may be missing."""

    # --- leases

    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease at most the first ``n`` items; unreadable ones become dead letters. None: there are no items.

        ``ttl`` in seconds, None for as long as the queue object lives.
        """

    def lease_each(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease at most the first ``n`` items, each with a lease of its own."""

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove items of a lease for good, None for all; return their numbers, None if the lease is gone."""

    def ack_each(self, asked: Sequence[Request]) -> list[list[int] | None]:
        """Like ``ack``, for several leases in one step, all or none; return the result of each."""

    def relay_each(self, asked: Sequence[Request], ttl: float | None, sort_out: SortOut[T]) -> list[Relayed[T]]:
        """Do as ``ack_each``, and lease an item for each if that can be done in the same step; return both of each.

        There may be no leases although items wait. There is none for a lease that is gone.
        """

    def nack(
        self,
        token: int,
        seqs: Collection[int] | None,
        delay: float,
        reason: str,
        max_attempts: int | None,
        trace: str = "",
    ) -> Nacked | None:
        """Give back items of a lease, None for all; return what became of each, None if the lease is gone.

        Only the engine knows that: an item may have been replaced meanwhile, or have expired. ``trace``: the traceback
        of the failure. ``max_attempts`` None: that of the queue object.
        """

    def unlease(self, token: int) -> None:
        """Undo ``lease`` for the items that it still holds: it counts as no attempt, and makes no dead letters."""

    def forsake(self, known: Collection[int]) -> None:
        """Undo the leases that this thread has made and nobody has, except ``known`` ones."""

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Make a lease end in ``ttl`` s; return its deadline, None if it is gone."""

    # --- dead letters

    def count_dead(self) -> int:
        """Return the number of dead letters."""

    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some dead letters from number ``seq`` on; an empty list only if there are no more."""

    def requeue(self, seqs: Collection[int] | None) -> int:
        """Return dead letters to their places, or as ``put_back``, None for all; return their number."""

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters, None for all; return their number."""

    # --- named readers

    def reader(self, name: str) -> ReaderEngine:
        """Return the engine of a reader, which need not exist yet."""

    def readers(self) -> list[ReaderStats]:
        """Return the figures of all readers."""

    def retain(self, retention: Retention | None, /) -> None:
        """Set the limits up to which items are kept, read or not."""

    def is_crowded(self) -> bool:
        """Return whether the last move of a reader had to wait for the flush of another process."""

    # --- waiting, and the queue as a whole

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changes after the ticket was given, at most ``timeout`` seconds; may return early."""

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
        """Give back leased items and free all resources; every later step raises ``ClosedError``. Idempotent."""


class ReaderEngine(Protocol):
    """The keeper of one reader's position. Without that reader, all but ``create`` and ``drop`` raise ``GoneError``."""

    def create(self, where: Start) -> None:
        """Create the reader unless it exists."""

    def drop(self) -> bool:
        """Remove the reader; return whether it existed."""

    def seek(self, where: Start) -> None:
        """Move the reader to another item."""

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return at most the next ``n`` entries, with payloads of at most ``max_bytes`` in total, but at least one."""

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Like ``first``, for entries that will be passed: they need not be durable yet."""

    def advance(self, keys: list[bytes]) -> Move | None:
        """Move the reader past its next items if their keys are ``keys``; otherwise do nothing and return None."""

    def retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if the reader has not been moved since; return whether it was undone."""

    def delete(self, n: int) -> int:
        """Move the reader past at most its next ``n`` items; return their number."""

    def lag(self) -> int:
        """Return the number of items that the reader has not passed."""

    def stats(self) -> ReaderStats:
        """Return the figures of the reader."""


_FEW: Final = 16  # entries read at first


def within(fetch: Callable[[int], list[Entry]], size: Callable[[Entry], int], n: int, max_bytes: int) -> list[Entry]:
    """Return the first ``n`` entries of at most ``max_bytes``, but at least one; read few entries in vain."""
    wanted = min(n, _FEW)
    while True:
        entries = fetch(wanted)
        found = fitting(entries, size, max_bytes)
        if len(found) < len(entries) or len(entries) < wanted or wanted == n:
            return found
        wanted = min(n, 4 * wanted)


def fitting(entries: list[Entry], size: Callable[[Entry], int], max_bytes: int) -> list[Entry]:
    """Return the first entries of at most ``max_bytes``, but at least one."""
    left = max_bytes
    for number, entry in enumerate(entries):
        left -= size(entry)
        if left < 0:
            return entries[: max(1, number)]
    return entries
