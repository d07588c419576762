"""The base of one queue object's steps: its queue, its database, and restoring items that are due.

Owns: how long an object's calls continue, whether it is closed. Law: before a step reports on the queue, all items that
are due to return have returned. Must not know: what the steps do.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from lmdbqueue._base.errors import ClosedError, GoneError
from lmdbqueue._base.values import Entry
from lmdbqueue._verbs.engine import within
from lmdbqueue.postgres import _away, _items
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._owner import Holder
from lmdbqueue.postgres._step import Step

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

DEATH_LOOK: Final = 0.25  # seconds between two checks for dead owners of leases


class Hold:
    """One queue object's hold on a queue of a database."""

    place: Place

    def __init__(self, database: Database, name: str, patience: float, max_attempts: int | None) -> None:
        self.database = database  # after close(), an object that raises ClosedError
        self.name = name
        self.path = database.path
        self.patience = patience  # seconds for which its calls continue while the server is unreachable
        self.max_attempts = max_attempts
        self.buries_expired = False
        self.is_closed = False
        self.holder = Holder(database.owner)
        self._deaths_seen = 0.0  # when dead owners were last looked for

    def run(self, fn: Callable[[Step, Place, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, place, *args)``, as one transaction, or as a part of the block of this thread."""
        return self.database.run(self.patience, fn, self.place, *args)

    def view(self, fn: Callable[[Step, Place, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(step, place, *args)``, which changes nothing."""
        return self.database.view(self.patience, fn, self.place, *args)

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""
        if self.is_closed:
            raise ClosedError(self.path)

    def tell(self) -> None:
        """Wake the waiters of the queue."""
        self.view(_items.tell)

    def seen(self, wanted: int, read: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``read``, called with a step, finds after all due items have returned."""

        def look(*args: Any, deaths: bool) -> Found:
            found: Found = self.view(partial(read, deaths=deaths), *args)
            return found

        return self.found(wanted, look, *args)

    def found(self, wanted: int, look: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``look`` finds after all due items have returned."""
        deaths = self.is_time_to_look()
        while True:
            found = look(*args, deaths=deaths)
            if not found.is_there:
                raise GoneError(self.path, self.name)
            if not self.has_to_look_again(found, deaths, wanted):
                return found.entries
            deaths = True

    def has_to_look_again(self, found: Found, deaths: bool, wanted: int) -> bool:
        """Requeue due items; return whether to look again (if too little was found, also for dead owners)."""
        if found.is_overdue:
            return self._restore(deaths=True) > 0
        return not deaths and len(found.entries) < wanted

    def again(self, found: Found, wanted: int, *, deaths: bool, insists: bool) -> tuple[bool, bool] | None:
        """Requeue due items; return whether to look again for dead owners, and past due items that are locked.

        None: not to look again.
        """
        if self.has_to_look_again(found, deaths, wanted):
            return True, insists
        return (deaths, True) if found.is_overdue and not insists else None

    def is_time_to_look(self) -> bool:
        """Return whether to look for dead owners now, which not every call does."""
        now = time.monotonic()
        if now - self._deaths_seen < DEATH_LOOK:
            return False
        self._deaths_seen = now
        return True

    @property
    def has_to_look(self) -> bool:
        """Whether the next reading will look for dead owners."""
        return time.monotonic() - self._deaths_seen >= DEATH_LOOK

    def _restore(self, *, deaths: bool) -> int:
        return self.run(partial(_away.restore, buries_expired=self.buries_expired, deaths=deaths), self.max_attempts)

    def restored(self) -> None:
        """Requeue all due items, for verbs that do not look for them themselves."""
        self._deaths_seen = 0.0  # so that dead owners are looked for, too
        self.seen(0, _items.status)

    def figures(self) -> _away.Figures:
        """Return the figures of the queue."""
        self.restored()
        found = self.view(_away.figures)
        if found is None:
            raise GoneError(self.path, self.name)
        return found

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the first ``n`` unclaimed entries."""
        if max_bytes is not None:
            return within(self.candidates, size_of, n, max_bytes)

        self.database.settle(self.patience)

        def glance(n: int, *, deaths: bool) -> Found:
            """Claim and release immediately: items claimed by others are left out."""
            found: Found = self.view(partial(_items.glance, deaths=deaths), n)
            return found

        return self.found(n, glance, n)

    def that_fit(self, n: int, max_bytes: int | None) -> int:
        """Return how many of the first ``n`` items fit, but at least 1."""
        return n if max_bytes is None else len(self.candidates(n, max_bytes)) or 1


def size_of(entry: Entry) -> int:
    """Return the bytes of an entry's payload."""
    return len(entry[1])
