"""The steps that the verbs are made of, on tables of PostgreSQL.

Owns: what ``lmdbqueue._verbs.writing`` and ``_verbs.consuming`` ask of an engine. Law: each step is one call of the
database; before a step tells what is there, everything that has to come back has. Must not know: SQL, how a queue is
opened.

``pop`` and ``lease`` claim the first items that nobody else has claimed, decode them, and remove or lease them, in one
transaction. So the user's ``loads`` runs inside of it, other than with LMDB: there everybody would wait, here nobody
does, since what is claimed is passed over. What cannot be decoded never left.
"""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from lmdbqueue import _format
from lmdbqueue._errors import ClosedError, DecodeError, GoneError
from lmdbqueue._verbs.lease import DeadLetter, Lease, Leased
from lmdbqueue._verbs.reader import FollowedQueue
from lmdbqueue._verbs.reading import Entry
from lmdbqueue.postgres import _away, _items, _readers
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._items import Found, Place
from lmdbqueue.postgres._owner import Owner
from lmdbqueue.postgres._session import Step

T = TypeVar("T")

_DEATH_LOOK: Final = 0.25  # seconds between two looks whether others who hold leases have died
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper tries again what could not come back


class TableQueue(FollowedQueue[T]):
    """A queue whose items are rows."""

    name: str
    patience: float
    _database: Database | None
    _place: Place
    _owner: Owner
    _path: str  # for errors

    _deaths_seen = 0.0  # when it was looked for dead owners last

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        return self._figures().waiting

    @property
    def _open(self) -> Database:
        database = self._database
        if database is None:
            raise ClosedError(self._path)
        return database

    def _append(self, payloads: Sequence[bytes]) -> range:
        database = self._open
        if self.maxsize > 0 or blocks.current() is not None:
            numbers = self._append_apart(payloads, 0.0, [b""] * len(payloads))
            return range(numbers[0], numbers[-1] + 1)
        values: dict[str, Any] = {"queue": self._place.id, "channel": self._place.channel, "n": len(payloads)}
        if len(payloads) == 1:
            row = database.once(self.patience, _items.PUSH_ONE, values | {"payload": payloads[0]})
        else:
            row = database.once(self.patience, _items.PUSH, values | {"payloads": payloads})
        if row is None:  # it is gone, or more than a push has to be done
            numbers = self._append_apart(payloads, 0.0, [b""] * len(payloads))
            return range(numbers[0], numbers[-1] + 1)
        return range(row[0], row[0] + len(payloads))

    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        apart = _items.Apart(keys, delay, self.maxsize)
        numbers: list[int] | None = self._open.run(self.patience, _readers.push, self._place, payloads, apart)
        if numbers is None:
            raise GoneError(self._path, self.name)
        return numbers

    def _first(self, n: int) -> list[Entry]:
        return self._seen(n, _items.first, n)

    def _candidates(self, n: int) -> list[Entry]:
        def glance(place: Place, n: int, *, deaths: bool) -> Found:
            """Claim and let go at once: what others have claimed is not there."""
            found: Found = self._open.claim(self.patience, partial(_items.claim, deaths=deaths), place, n)
            return found

        return self._found(n, glance, n)

    def _since(self, place: bytes) -> list[Entry]:
        return self._seen(1, _items.since, place)

    def _seen(self, wanted: int, read: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``read``, of a step, finds, once everything that has to come back has."""

        def look(place: Place, *args: Any, deaths: bool) -> Found:
            found: Found = self._open.view(self.patience, partial(read, deaths=deaths), place, *args)
            return found

        return self._found(wanted, look, *args)

    def _found(self, wanted: int, look: Callable[..., Found], *args: Any) -> list[Entry]:
        """Return what ``look`` finds, once everything that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            found = look(self._place, *args, deaths=deaths)
            if not found.is_there:
                raise GoneError(self._path, self.name)
            if not self._has_to_look_again(found, deaths, wanted):
                return found.entries
            deaths = True

    def _has_to_look_again(self, found: Found, deaths: bool, wanted: int) -> bool:
        """Let come back what has to; tell whether to look again. Who finds too little looks for the dead, too."""
        if found.is_overdue:
            return self._restore(deaths=True) > 0
        return not deaths and len(found.entries) < wanted

    def _is_time_to_look(self) -> bool:
        now = time.monotonic()
        is_time = now - self._deaths_seen >= _DEATH_LOOK
        if is_time:
            self._deaths_seen = now
        return is_time

    def _restore(self, *, deaths: bool) -> int:
        restore = partial(_away.restore, deaths=deaths)
        changed: int = self._open.run(self.patience, restore, self._place, self.max_attempts)
        return changed

    def _restored(self) -> None:
        """Let everything come back that has to, for a verb that does not look itself."""
        self._deaths_seen = 0.0  # so that it looks for the dead, too
        self._seen(0, _items.status)

    def _figures(self) -> _away.Figures:
        self._restored()
        found: _away.Figures | None = self._open.view(self.patience, _away.figures, self._place)
        if found is None:
            raise GoneError(self._path, self.name)
        return found

    # --- taking

    def _take_entries(self, n: int, least: int) -> tuple[list[Entry], list[T]] | None:
        def take(step: Step, deaths: bool) -> tuple[Found, list[T] | None]:
            found = _items.take(step, self._place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or len(found.entries) < max(1, least):
                return found, None
            items = self._decode(found.entries)
            _items.keep(step, self._place, found)
            return found, items

        found, items = self._claimed(n, take, self._open.attempt)
        if items is not None:
            return found.entries, items
        return ([], []) if least == 0 else None

    def _leased(self, n: int, ttl: float | None) -> Lease[T] | None:
        owner = 0

        def lease(step: Step, deaths: bool) -> tuple[Found, tuple[list[T], Leased] | None]:
            found = _items.claim(step, self._place, n, deaths=deaths)
            if not found.is_there or found.is_overdue or not found.entries:
                return found, None
            items, unreadable = self._sorted_out(found.entries)
            terms = _away.Terms(owner, ttl, unreadable)
            token, seqs, attempts = _away.lease(step, self._place, found.entries, terms)
            return found, (items, Leased(token, seqs, attempts, deadline))

        while True:
            database = self._open
            owner = self._owner.join()
            deadline = None if ttl is None else time.monotonic() + ttl
            _found, leased = self._claimed(n, lease, database.claim)
            if leased is None:
                return None
            if self._database is not database:  # closed by another thread meanwhile
                self._owner.leave()
            self._refuse_if_closed()
            items, held = leased
            if items:
                return Lease(self, items, held)

    def _claimed(
        self, n: int, fn: Callable[..., tuple[Found, Any]], do: Callable[..., tuple[Found, Any]]
    ) -> tuple[Found, Any]:
        """Return what ``fn``, which ``do`` does, claims and makes of it, once all that has to come back has."""
        deaths = self._is_time_to_look()
        while True:
            try:
                found, result = do(self.patience, fn, deaths)
            except DecodeError:
                self._tell()  # others have passed it over meanwhile
                raise
            if not found.is_there:
                raise GoneError(self._path, self.name)
            if result is not None:
                return found, result
            if not self._has_to_look_again(found, deaths, n):
                if found.entries:
                    self._tell()
                return found, None
            deaths = True

    def _tell(self) -> None:
        self._open.view(self.patience, _items.tell, self._place)

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        raise NotImplementedError  # ``_leased`` leases what it has claimed

    # --- leases

    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        settled: list[int] | None = self._open.run(self.patience, _away.ack, self._place, token, seqs)
        return settled

    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        how = _away.Return(reason, delay, self.max_attempts if max_attempts is None else max_attempts)
        settled: list[int] | None = self._open.run(self.patience, _away.nack, self._place, token, seqs, how)
        return settled

    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        deadline = None if ttl is None else time.monotonic() + ttl
        if not self._open.run(self.patience, _away.extend, self._place, token, ttl):
            return None
        return (deadline,)

    def _count_dead(self) -> int:
        return self._figures().dead

    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]:
        self._restored()
        letters = self._open.view(self.patience, _away.dead, self._place, seq)
        return [
            DeadLetter(*self._open_payload(entry), note, partial(_only, self._decode, entry)) for entry, note in letters
        ]

    def _requeue(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.run(self.patience, _away.requeue, self._place, seqs)
        return count

    def _delete_dead(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.run(self.patience, _away.forget, self._place, seqs)
        return count

    def _begin_with_empty_hands(self) -> None:
        super()._begin_with_empty_hands()
        if self._database is not None:  # not so in the constructor
            self._owner.begin_anew()

    # --- removing

    def _remove(self, keys: list[bytes]) -> int:
        removed: int = self._open.run(self.patience, _items.remove, self._place, keys)
        return removed

    def _put_back(self, entries: list[Entry]) -> None:
        self._open.run(self.patience, _items.put_back, self._place, entries)

    def _delete(self, n: int) -> int:
        self._restored()
        removed: int = self._open.run(self.patience, _items.delete, self._place, n)
        return removed

    def _clear(self, *, all: bool) -> int:  # noqa: A002
        if not all:
            self._restored()
        removed: int = self._open.run(self.patience, _away.clear if all else _items.clear, self._place)
        return removed

    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        return [payload for _, payload in entries]

    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        return _format.number(entry[0]), entry[1]

    # --- waiting

    def _refuse_if_closed(self) -> None:
        if self._database is None:
            raise ClosedError(self._path)

    def _refuse_if_gone(self) -> None:
        if not self._open.view(self.patience, partial(_items.status, deaths=False), self._place).is_there:
            raise GoneError(self._path, self.name)

    def _listen(self) -> int:
        database = self._open
        blocks.refuse_inside(self._path, "a call would wait", "what was taken in it is locked meanwhile: use timeout=0")
        return database.ear.listen(self._place.channel)

    def _sleep(self, ticket: int, timeout: float) -> None:
        database = self._open
        seconds, has_others = database.view(self.patience, _away.next_time, self._place, self._owner.known)
        if seconds is not None:
            timeout = min(timeout, max(_FAILED_LOOK, seconds))
        if has_others:
            timeout = min(timeout, _DEATH_LOOK)
        database.ear.wait(self._place.channel, ticket, timeout)

    def _wake(self) -> None:
        self._open.ear.ring()


def _only(decode: Callable[[list[Entry]], list[T]], entry: Entry) -> T:
    return decode([entry])[0]
