"""Leases and acks outside of blocks: one statement each, or one for both.

Owns: when one statement suffices, and leases whose fate is unknown. Law: if one statement has changed nothing because
more has to be done, the caller does it as a transaction; a lease that nobody has got is given back by the next one.
Must not know: SQL, where connections come from.

A worker acknowledges an item and leases the next by one statement (``relay_each``): then a job is one commit.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, NoReturn, TypeVar

from lmdbqueue._base.errors import ClosedError, GoneError, QueueError
from lmdbqueue._base.values import Leased
from lmdbqueue._verbs.engine import Relayed, Request, SortOut, fitting
from lmdbqueue.postgres import _away, _items
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._hold import Hold, size_of
from lmdbqueue.postgres._items import Found
from lmdbqueue.postgres._ledger import Settled
from lmdbqueue.postgres._owner import Token

T = TypeVar("T")


class Leases:
    """The leases of one queue object, and their acks."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease the first unclaimed items by one statement; those that cannot be decoded then become dead letters.

        Items that do not fit, because others were faster than the estimate, are given back at once.
        """
        n = self._hold.that_fit(n, max_bytes)
        deaths = self._hold.is_time_to_look()
        insists = False
        while True:
            self._hold.refuse_if_closed()
            database = self._hold.database
            deadline = None if ttl is None else time.monotonic() + ttl
            tokens: list[Token] = []
            values = partial(self._values, tokens, {"n": n, "ttl": ttl, "deaths": deaths, "insists": insists})
            if blocks.current() is not None:
                found = self._hold.run(_away.lease, values())
            else:
                self._give_back_doubtful()
                try:
                    found = _away.claimed(self._leased(values, tokens, deaths=deaths, is_short=n == 1 and not deaths))
                except BaseException:
                    self._hold.holder.doubtful += tokens
                    raise
            token = tokens[-1]
            if not found.is_there:
                raise GoneError(self._hold.path, self._hold.name)
            if not found.entries:
                empty = Found([], is_overdue=found.is_overdue)
                again = self._hold.again(empty, n, deaths=deaths, insists=insists)
                if again is None:
                    return None
                deaths, insists = again
                continue
            if self._hold.is_closed:  # by another thread meanwhile
                self._give_up(database)
            try:
                found = self._without_surplus(token, found, max_bytes)
                lease = self._lease_of(token, found, deadline, sort_out)
            except BaseException:  # the lease is not handed out
                self._take_back([token])
                raise
            if lease is not None:
                return lease

    def _give_up(self, database: Database) -> NoReturn:
        """Give back what was leased since the queue object was closed, and say that it is."""
        how = _away.Return("its queue was closed", max_attempts=self._hold.max_attempts)
        database.run(0.0, _away.give_up, self._hold.place, self._hold.holder.numbers, how)
        raise ClosedError(self._hold.path)

    def _values(self, tokens: list[Token], others: dict[str, Any]) -> dict[str, Any]:
        """Return the values of an attempt, with a new token, since another process may have forgotten the old owner."""
        self._hold.refuse_if_closed()  # before a connection is opened that would never be closed
        tokens.append(self._hold.holder.token(self._hold.patience))
        return {**others, "claims": self._hold.place.claims, "lease": tokens[-1]}

    def _leased(
        self, values: Callable[[], dict[str, Any]], tokens: list[Token], *, deaths: bool, is_short: bool
    ) -> list[Any]:
        """Lease the first items, under the last of ``tokens``; return the rows that say which."""
        database, place = self._hold.database, self._hold.place
        statement = _away.LEASE_ONE if is_short else _away.LEASE if deaths else _away.LEASE_NOW
        rows = database.once(self._hold.patience, statement, place.id, place.channel, values)
        if isinstance(rows, Settled):  # nothing is held if its ttl ended before another connection was available
            rows = self._hold.view(_away.held, tokens[-1])
            return rows or self._leased(values, tokens, deaths=deaths, is_short=is_short)
        return rows if rows or not is_short else self._leased(values, tokens, deaths=deaths, is_short=False)

    def _lease_of(
        self, token: Token, found: _away.Claimed, deadline: float | None, sort_out: SortOut[T]
    ) -> tuple[list[T], Leased] | None:
        """Return the lease of the claimed items; undecodable ones become dead letters. None if all are."""
        items, unreadable = sort_out(found.entries)
        seqs = [_items.number(key) for key, _ in found.entries]
        attempts = found.attempts
        if unreadable:
            reasons = {_items.number(key): reason for key, reason in unreadable.items()}
            self._hold.run(_away.bury, token, reasons)
            attempts = [each for seq, each in zip(seqs, attempts, strict=True) if seq not in reasons]
            seqs = [seq for seq in seqs if seq not in reasons]
        token.seqs = set(seqs)
        entries = [entry for entry in found.entries if entry[0] not in unreadable]
        return (items, Leased(token, seqs, attempts, deadline, entries)) if items else None

    def _without_surplus(self, token: Token, found: _away.Claimed, max_bytes: int | None) -> _away.Claimed:
        """Give back items that do not fit; return the rest."""
        if max_bytes is None:
            return found
        fits = len(fitting(found.entries, size_of, max_bytes))
        surplus = [_items.number(key) for key, _ in found.entries[fits:]]
        if surplus:
            how = _away.Return("it did not fit into a batch")
            self._hold.run(partial(_away.nack, buries=self._hold.buries_expired), token, surplus, how)
        return found._replace(entries=found.entries[:fits], attempts=found.attempts[:fits])

    def _take_back(self, tokens: Sequence[Token]) -> None:
        """Give back what was leased by a call that fails, by an exception of ``loads``, or the next lease does."""
        self._hold.holder.doubtful += tokens
        with suppress(QueueError):
            if blocks.current() is None and not self._hold.database.is_away:
                self._give_back_doubtful()

    def _give_back_doubtful(self) -> None:
        """Give back the items of leases whose outcome this object never learned."""
        doubtful, self._hold.holder.doubtful = self._hold.holder.doubtful, []
        if doubtful:
            try:
                self._hold.run(_away.give_back_doubtful, doubtful)
            except BaseException:
                self._hold.holder.doubtful += doubtful
                raise

    def lease_each(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease items together; return a lease for each, which can be settled by itself."""
        found = self.lease(n, ttl, sort_out)
        return [] if found is None else _each_of(*found)

    def relay_each(self, asked: Sequence[Request], ttl: float | None, sort_out: SortOut[T]) -> list[Relayed[T]]:
        """Do as ``ack_each``, and lease an item for each lease that ended, by the same statement; return both results.

        Nothing is leased if more has to be done, for the acks or before a lease: the next ``lease`` does that.
        """
        pairs = [(seq, int(token)) for token, seqs in asked for seq in wanted(token, seqs)]
        has_more_to_do = blocks.current() is not None or self._hold.holder.doubtful or self._hold.has_to_look
        if has_more_to_do or not len(asked) == len(pairs) == len(set(pairs)):
            acked = [self.ack(*asked[0])] if len(asked) == 1 else self.ack_each(asked)
            return [(each, None) for each in acked]
        deadline = None if ttl is None else time.monotonic() + ttl
        database = self._hold.database
        tokens: list[Token] = []
        leases: list[tuple[list[T], Leased]] = []
        gone: set[tuple[int, int]] | None = None
        try:
            relayed = self._relayed(pairs, ttl, tokens)
            gone = relayed.gone if len(relayed.gone) == len(pairs) else self._and_the_rest(pairs, relayed.gone)
            if relayed.entries:
                if self._hold.is_closed:
                    self._give_up(database)
                found = _away.Claimed(relayed.entries, relayed.attempts, is_there=True, is_overdue=False)
                lease = self._lease_of(tokens[-1], found, deadline, sort_out)
                leases = [] if lease is None else _each_of(*lease)
        except BaseException:  # nothing is handed out
            if gone is None:
                self._hold.holder.doubtful += tokens
                raise
            self._take_back(tokens)
            if len(pairs) == 1:  # of several, all are acknowledged
                raise
        following = iter(leases)
        return [
            (_ended(token, [seq]), next(following, None)) if (seq, token) in gone else (None, None)
            for (token, _), (seq, _) in zip(asked, pairs, strict=True)
        ]

    def _relayed(self, pairs: Sequence[tuple[int, int]], ttl: float | None, tokens: list[Token]) -> _away.Relayed:
        """Remove items of leases, and lease as many others under the last of ``tokens``, by one statement."""
        database, place = self._hold.database, self._hold.place
        seqs, leases = [seq for seq, _ in pairs], [token for _, token in pairs]
        statement = _away.RELAY
        held: dict[str, Any] = {"seqs": seqs, "leases": leases, "insists": False}
        if len(pairs) == 1:
            statement = _away.RELAY_ONE
            held = {"seq": seqs[0], "held": leases[0]}
        values = partial(self._values, tokens, {**held, "ttl": ttl})
        rows = database.once(self._hold.patience, statement, place.id, place.channel, values, awaited=5)
        if isinstance(rows, Settled):
            there = self._hold.view(_away.still_there, seqs)
            found = _away.claimed(self._hold.view(_away.held, tokens[-1]))
            return _away.Relayed({pair for pair in pairs if pair[0] not in there}, found.entries, found.attempts)
        return _away.relayed(rows)

    def ack_each(self, asked: Sequence[Request]) -> list[list[int] | None]:
        """Remove items of several leases, all or none; return the numbers for each."""
        pairs = [[(seq, int(token)) for seq in wanted(token, seqs)] for token, seqs in asked]
        together = list(dict.fromkeys(chain.from_iterable(pairs)))
        if blocks.current() is not None:
            gone = set(self._hold.run(_away.ack_pairs, together)) if together else set()
            return [[seq for seq, token in each if (seq, token) in gone] or None for each in pairs]
        gone = self._acked(together) if together else set()
        return [
            _ended(token, [seq for seq, of in each if (seq, of) in gone])
            for (token, _), each in zip(asked, pairs, strict=True)
        ]

    def _acked(self, pairs: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Remove items, given with the tokens of their leases, if those still hold them; return which."""
        database, place = self._hold.database, self._hold.place
        values = {"seqs": [seq for seq, _ in pairs], "leases": [token for _, token in pairs]}
        rows = database.once(self._hold.patience, _away.ACK, place.id, place.channel, values, awaited=3)
        if isinstance(rows, Settled):
            there = self._hold.view(_away.still_there, values["seqs"])
            return {pair for pair in pairs if pair[0] not in there}
        gone = set(zip(rows[0][0] or (), rows[0][4] or (), strict=True)) if rows else set()
        return gone if len(gone) == len(pairs) else self._and_the_rest(pairs, gone)

    def _and_the_rest(self, pairs: Sequence[tuple[int, int]], gone: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Remove what one statement has not: it had moved, readers have to be informed, or its lease is over."""
        return gone.union(self._hold.run(_away.ack_pairs, [pair for pair in pairs if pair not in gone]))

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove items of a lease for good, None for all; return their numbers, None if the lease is gone."""
        asked = wanted(token, seqs)
        if blocks.current() is not None:
            return self._hold.run(_away.ack, token, asked) or None
        if not asked:
            return []
        database, place = self._hold.database, self._hold.place
        is_one = len(asked) == 1
        statement = _away.ACK_ONE if is_one else _away.ACK
        values: dict[str, Any] = {"seqs": asked, "leases": [token] * len(asked)}
        if is_one:
            values = {"seq": asked[0], "lease": token}
        rows = database.once(self._hold.patience, statement, place.id, place.channel, values, awaited=3)
        if isinstance(rows, Settled):
            return _ended(token, sorted(set(asked).difference(self._hold.view(_away.still_there, asked))))
        settled: list[int] = (rows[0][0] if rows else None) or []
        if left := sorted(set(asked).difference(settled)):  # as in ``_and_the_rest``
            settled += self._hold.run(_away.ack, token, left)
        return _ended(token, sorted(settled))


def _each_of(items: list[T], leased: Leased) -> list[tuple[list[T], Leased]]:
    """Return a lease for each item of one, with the same token."""
    leases = []
    for item, seq, attempts, entry in zip(items, leased.seqs, leased.attempts, leased.entries, strict=True):
        token = Token(leased.token)
        token.seqs = {seq}
        leases.append(([item], Leased(token, [seq], [attempts], leased.deadline, [entry])))
    return leases


def _ended(token: int, settled: list[int] | None) -> list[int] | None:
    """Return the items that a lease has lost for good, by an ack outside of blocks; its token forgets them."""
    if settled and isinstance(token, Token):
        token.seqs.difference_update(settled)
    return settled or None


def wanted(token: int, seqs: Collection[int] | None) -> list[int]:
    """Return the items of a lease that are meant: those of ``seqs``, or all that it may hold."""
    return sorted(token.seqs if seqs is None and isinstance(token, Token) else seqs or ())
