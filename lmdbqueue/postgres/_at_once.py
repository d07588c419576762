"""Pushes and pops outside of blocks: the short ways, of one statement each.

Owns: when one statement suffices, and what is known in advance for the next call. Law: if one statement has changed
nothing because more has to be done, the caller does it as a transaction. Must not know: SQL, where connections come
from.

A ``pop`` claims the first unclaimed item, decodes it, and removes it (``_claims``), or several (``_batches``). Items
that cannot be decoded never leave.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from lmdbqueue._base.errors import DecodeError, GoneError
from lmdbqueue._base.values import Entry, Push, Taken
from lmdbqueue._verbs.encoding import PLAIN
from lmdbqueue._verbs.engine import Decode, fitting
from lmdbqueue.postgres import _batches, _claims, _items, _pushing, _taking
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._hold import Hold, size_of
from lmdbqueue.postgres._items import Ahead, Found
from lmdbqueue.postgres._ledger import Settled
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._step import Step

T = TypeVar("T")
R = TypeVar("R")

_BLIND: Final = 16  # pops that do not look ahead after one whose item others had taken
_NO_NOTES: Final = (0, None, None, None, None)


class Pushes:
    """The pushes of one queue object that have no options but headers and an expiry."""

    def __init__(self, hold: Hold, sequence: str) -> None:
        """``sequence``: the source of numbers, "" in the order of commits."""
        self._hold = hold
        self._sequence = sequence
        self._page = b""  # the page of the tail's row

    def append(self, payloads: Sequence[bytes], how: Push = PLAIN) -> range | None:
        """Append by one statement; None if more has to be done.

        ``how``: with headers and an expiry, and no other options.
        """
        place, n, size = self._hold.place, len(payloads), sum(map(len, payloads))
        values: dict[str, Any] = {"n": n, "size": size, "class": 0}
        if n == 1:
            if size > _items.MAX_SIZE:
                refuse_large(payloads[0])
            values["payload"] = payloads[0]
        elif size + 4 * n > _items.MAX_SIZE or (self._sequence and n > 1 << _pushing.BLOCK):
            return None
        else:
            values["payloads"] = payloads
        if how is not PLAIN:
            values |= _pushing.notes_of(how)
        statement = _pushing.AT_ONCE_BY[n == 1, self._sequence != "", how is not PLAIN]
        if self._sequence:
            values["sequence"] = self._sequence
        rows = self._hold.database.once(self._hold.patience, statement, place.id, place.channel, values, awaited=1)
        if isinstance(rows, Settled):
            start = rows.result
            assert start is not None  # so the statement notes it
        elif not rows:
            return None
        else:
            start, _, tail, _ = rows[0]
            if tail is not None and tail[:4] != self._page:
                self._renew_tail(tail[:4])
        return range(start, start + n)

    def _renew_tail(self, page: bytes) -> None:
        """Replace the row of the tail if it has left its page, since its old versions cannot be pruned."""
        before, self._page = self._page, page
        if before:
            self._page = b""
            self._hold.database.alone(self._hold.patience, _pushing.RENEW_TAIL, {"queue": self._hold.place.id})


class Takes:
    """The pops of one queue object."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._ahead: Ahead | None = None  # first when the last item left; each pop takes it, or drops it
        self._misses = 0  # pops for which looking ahead is not worthwhile, since others take items, too

    def begin_anew(self) -> None:
        """Forget everything in a forked child."""
        self._ahead = None

    def take(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Claim the first unclaimed items, decode them, and remove them.

        That is done outside of transactions (``_claims``, ``_batches``). If a single item was seen ahead, when the
        previous one left, it is removed by one statement. In a block everything is a part of its transaction.
        """
        if blocks.current() is not None:
            if max_bytes is not None:
                n, decode = self._hold.that_fit(n, max_bytes), partial(_fitting, decode, max_bytes)
            return self._take_in_block(n, least, decode)
        if n != 1:
            return self._take_batch(n, least, decode, max_bytes)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (taken := self._take_known(ahead, decode)) is not None:
            return taken
        return self._take_claimed(least, decode)

    def _take_in_block(self, n: int, least: int, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Take the first items, decode them, and keep them, as a part of the block of this thread.

        If fewer items can be decoded than were taken, or more were taken than fit, all of that is undone, and repeated
        for those.
        """

        def take(step: Step, deaths: bool, insists: bool) -> tuple[Found, list[T] | None]:
            place = self._hold.place
            found = _taking.take(step, place, n, deaths=deaths, insists=insists)
            if not found.is_there or (found.is_overdue and not insists) or len(found.entries) < max(1, least):
                return found, None
            items = decode(found.entries)
            if len(items) == len(found.entries):
                _taking.keep(step, place, found)
            return found, items

        def attempt(deaths: bool, insists: bool) -> tuple[Found, list[T] | None]:
            return self._hold.database.attempt(take, deaths, insists)

        found, items = self._taken(n, attempt)
        if items is None:
            return ([], []) if least == 0 else None
        if len(items) < len(found.entries):
            return self._take_in_block(len(items), min(least, len(items)), decode)
        return found.entries, items

    def _take_batch(
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None
    ) -> tuple[list[Entry], list[T]] | None:
        """Claim the first unclaimed items, decode them, and remove those that can be decoded."""
        self._ahead = None

        def take(deaths: bool, insists: bool) -> tuple[Found, list[T] | None]:
            how = _batches.How(n, max(1, least), max_bytes, deaths, insists)
            return self._claiming(lambda session: _batches.take(session, self._hold.place, how, decode))

        found, items = self._taken(n, take)
        if items is None:
            return ([], []) if least == 0 else None
        return found.entries, items

    def _claiming(self, act: Callable[[Session], R]) -> R:
        return self._hold.database.claim(self._hold.patience, act)

    def _take_claimed(self, least: int, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Claim the first unclaimed item, decode it, and remove it."""
        looks_ahead = self._misses == 0
        self._misses = max(0, self._misses - 1)

        def take(deaths: bool, insists: bool) -> tuple[Found, list[T] | None]:
            how = _claims.How(deaths, insists, looks_ahead)
            return self._claiming(lambda session: _claims.take(session, self._hold.place, how, decode))

        found, items = self._taken(1, take)
        if items is None:
            return ([], []) if least == 0 else None
        self._ahead = found.ahead
        return found.entries, items

    def _take_known(self, ahead: Ahead, decode: Decode[T]) -> tuple[list[Entry], list[T]] | None:
        """Take the item that was seen ahead, and decoded, if it is still the first."""
        entry = Taken((_items.pack(ahead.seq), ahead.payload))
        try:
            items = decode([entry])
        except DecodeError:
            return None
        place, deaths = self._hold.place, self._hold.is_time_to_look()
        statement = _taking.TAKE_KNOWN if deaths else _taking.TAKE_KNOWN_NOW
        values = {
            "seq": ahead.seq,
            "version": ahead.version,
            "size": len(ahead.payload),
            "deaths": deaths,
            "claims": place.claims,
        }
        rows = self._hold.database.once(self._hold.patience, statement, place.id, place.channel, values, awaited=5)
        if isinstance(rows, Settled):
            entry.notes = _NO_NOTES
            return [entry], items
        if not rows:
            self._misses = _BLIND
            return None
        (row,) = rows
        entry.notes = row[:5]
        if row[6] is not None:
            self._ahead = Ahead(*row[6:9])
        return [entry], items

    def _taken(self, n: int, take: Callable[[bool, bool], tuple[Found, R | None]]) -> tuple[Found, R | None]:
        """Return what ``take`` has found, and its result, after all due items have returned."""
        deaths = self._hold.is_time_to_look()
        insists = False
        while True:
            try:
                found, result = take(deaths, insists)
            except DecodeError:
                self._hold.tell()  # others have skipped it meanwhile
                raise
            if not found.is_there:
                raise GoneError(self._hold.path, self._hold.name)
            if result is not None:
                return found, result
            again = self._hold.again(found, n, deaths=deaths, insists=insists)
            if again is None:
                if found.entries:
                    self._hold.tell()
                return found, None
            deaths, insists = again


def refuse_large(payload: bytes) -> None:
    """Raise ``ValueError`` for a payload that is too large for a row of the server."""
    if len(payload) > _items.MAX_SIZE:
        message = f"an item of {len(payload):,} bytes; PostgreSQL stores at most {_items.MAX_SIZE:,}"
        raise ValueError(message)


def _fitting(decode: Decode[T], max_bytes: int, entries: list[Entry]) -> list[T]:
    """Return the items of those entries that fit."""
    return decode(fitting(entries, size_of, max_bytes))
