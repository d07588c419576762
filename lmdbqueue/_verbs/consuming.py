"""Consumers that can die: leases, dead letters, and the worker loop over them.

Owns: what ``lease``, ``dead`` and ``work`` mean, whatever engine keeps the items. Law: what cannot be decoded
goes to the dead letters and holds nobody up; nothing of a user's code runs inside a transaction of the
library. Must not know: LMDB, files.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from lmdbqueue._errors import CorruptItemError, DecodeError, DiskFullError, Empty
from lmdbqueue._verbs.lease import NOTHING, DeadLetter, DeadLetters, Lease, Leased
from lmdbqueue._verbs.reading import Entry, checked_count
from lmdbqueue._verbs.stdlib_queue import StandardQueue

if TYPE_CHECKING:
    from lmdbqueue._verbs.worker import Retry, Stop, Worked

T = TypeVar("T")


class ConsumerQueue(StandardQueue[T]):
    """A persistent queue whose consumers may die while they work."""

    name: str
    max_attempts: int | None

    # --- the engine

    @abstractmethod
    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        """Lease the first items, if they are just these; None if not. ``unreadable`` ones die, for those reasons."""

    @abstractmethod
    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove what a lease holds, None for all, for good; return which, None if it is gone."""

    @abstractmethod
    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        """Give back what a lease holds, None for all; return which, None if it is gone."""

    @abstractmethod
    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Let a lease end in ``ttl`` s; return its deadline, None if it is gone."""

    @abstractmethod
    def _count_dead(self) -> int:
        """Return how many dead letters there are."""

    @abstractmethod
    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]:
        """Return some dead letters from number ``seq`` on; none only if there are none."""

    @abstractmethod
    def _requeue(self, seqs: Collection[int] | None) -> int:
        """Let dead letters wait again, None for all; return how many there were."""

    @abstractmethod
    def _delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters, None for all; return how many there were."""

    # --- the verbs

    def lease(
        self, items: int = 1, *, ttl: float | None = None, blocking: bool = False, timeout: float | None = None
    ) -> Lease[T]:
        """Take the first items, at most ``items``, into a lease: nobody else gets them while it holds.

        It holds until they are acknowledged or given back, at most for ``ttl`` seconds; None: for as long as
        this queue object lives. When its process dies, however that comes, what it held is in its places again for
        the next consumer to look, without any time-out. So each item is delivered at least once, and to one living
        consumer at a time, as long as that is done within the ttl. ``len`` counts leased items no more.

        An empty lease, which is falsy, says that nothing was there; with ``blocking`` it waits for at least one
        item, and raises ``Empty`` after ``timeout`` seconds. What cannot be decoded goes to ``dead``. On a full
        disk it gives one item, as long as few are leased, and raises ``DiskFullError`` for one of over 16 KiB.
        """
        self._refuse_if_closed()
        n = checked_count(items)
        if ttl is not None and ttl <= 0:
            message = f"ttl is a positive number of seconds, not {ttl!r}"
            raise ValueError(message)
        found = None
        if n and blocking:
            found = self._await(lambda: self._if_enough(1, lambda _n, _least: self._leased(n, ttl)), timeout)
            if found is None:
                raise Empty(1, timeout)
        elif n:
            found = self._leased(n, ttl)
        return found or Lease(self, [], NOTHING)

    def _leased(self, n: int, ttl: float | None) -> Lease[T] | None:
        """Return a lease of at most ``n`` items; None if there are none, durably."""
        while entries := self._candidates(n) or self._first(n):
            items, unreadable = self._sorted_out(entries)
            try:
                leased = self._lease(entries, unreadable, ttl)
            except DiskFullError:
                if len(entries) == 1:
                    raise
                n = 1  # which needs next to no room
                continue
            if leased is not None and items:
                return Lease(self, items, leased)
        return None

    def _sorted_out(self, entries: list[Entry]) -> tuple[list[T], dict[bytes, str]]:
        """Return the items, and the places of those that cannot be had, with the reasons."""
        try:
            return self._decode(entries), {}
        except (DecodeError, CorruptItemError):
            pass
        items: list[T] = []
        unreadable = {}
        for entry in entries:
            try:
                items += self._decode([entry])
            except (DecodeError, CorruptItemError) as error:
                unreadable[entry[0]] = _reason(error)
        return items, unreadable

    @property
    def dead(self) -> DeadLetters[T]:
        """The items that were leased ``max_attempts`` times in vain, or cannot be decoded."""
        return DeadLetters(self)

    def work(
        self,
        handler: Callable[[Any], object],
        *,
        items: int = 1,
        ttl: float = 60.0,
        retry: "Retry | None" = None,
        stop: "Stop | None" = None,
        progress: "Callable[[Worked], object] | None" = None,
    ) -> "Worked":
        """Lease, call ``handler``, acknowledge, again and again; return what was done when it is told to stop.

        ``handler`` gets one item, or with ``items`` > 1 a list of at most so many; what it raises (an
        ``Exception``) gives them back by ``retry`` (None: ``Retry()``): after its delay, or to ``dead`` after its
        ``max_attempts``. While it runs the lease is extended, so ``ttl`` is only what a process that hangs as a whole
        can hold items for. A handler that was too slow all the same may have its items done by others, too.

        It stops at SIGTERM and SIGINT, if it is called in the main thread; when ``stop`` (an event, or a
        function) is set, which is looked at before each lease and once a second; and after ``shutdown()``. What
        is under way is finished before. ``progress`` is called after each lease.
        """
        from lmdbqueue._verbs.worker import DEFAULT_RETRY, Loop  # noqa: PLC0415  (for who works, not for who imports)

        n = max(1, checked_count(items))
        return Loop(self, handler, items=n, ttl=ttl, retry=retry or DEFAULT_RETRY, stop=stop, progress=progress).run()


def _reason(error: DecodeError | CorruptItemError) -> str:
    return f"it cannot be decoded: {error.reason}" if isinstance(error, DecodeError) else "its checksum does not fit"
