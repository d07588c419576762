"""``LocalEngine``: the steps of the verbs in an LMDB environment.

Owns: the function of a transaction behind each step, the current time, how long a sleeper may sleep. Law: every reading
first restores the items that are due to return. Must not know: LMDB, generations; how verbs combine the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptItemError, DecodeError, DiskFullError, Full, QueueError
from lmdbqueue._base.format import BASE, Note, Trailer, pack
from lmdbqueue._base.values import NOTHING, Entry, Leased, Moment, Nacked, Push, Pushed, ReaderStats, Stats, Taken
from lmdbqueue._host.disk import translated
from lmdbqueue._local.hold import LocalHold
from lmdbqueue._local.transaction import blocks
from lmdbqueue._model import (
    dead_letters,
    fifo,
    keyed_items,
    leases,
    pushing,
    retention,
    returns,
)
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.keyed_items import Apart
from lmdbqueue._model.lease_records import NEVER
from lmdbqueue._model.pushing import Limits, Target

if TYPE_CHECKING:
    from lmdbqueue._local.reader_engine import LocalReaderEngine
    from lmdbqueue._verbs.engine import Decode, Relayed, Request, SortOut

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_BROWSE_BYTES: Final = 1 << 18  # of items read at a time by iteration
_RELAYED: Final = 1 << 16  # bytes of the items that are leased in the commit that ends as many other leases, for each
_RELAYED_AT_ONCE: Final = 16  # leases for which that much is allowed
_TOGETHER: Final = 1 << 22  # bytes of items that are leased in one transaction, each by itself
_SECOND: Final = 10**9  # ns
_DEATH_LOOK: Final = 0.25  # seconds between two checks of a sleeper for dead owners of leases
_SMALL: Final = 1 << 14  # bytes of the largest item that is leased on a full disk
_FEW: Final = 64  # items that may be leased on a full disk, so that leases cannot use up its reserve
_SHORT: Final = 100  # characters of the reason that is noted on a full disk
_FAILED_LOOK: Final = 0.05  # seconds until a sleeper retries to restore items that could not return

# a record of AWAY: its key, its note
_AWAY_OVERHEAD: Final = 100  # bytes


class LocalEngine(LocalHold):
    """The engine of one queue object on an environment."""

    # --- waiting items

    patience = float("inf")  # there is no server
    is_away = False

    def one_call(self, fn: Callable[[*Ts], R], *args: *Ts) -> R:
        """Return what a function returns: there is no server, and no deadline for one."""
        return fn(*args)

    def hurry(self, deadline: float) -> None:
        """Do nothing: there is no server."""

    def count(self) -> int:
        """Return the number of waiting items."""
        return self.view(fifo.count)

    def owed(self) -> int:
        """Return the number of waiting, leased and delayed items."""
        return self.view(fifo.owed)

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``)."""
        wall = self.clock().wall
        room = pushing.room_for(payloads) if len(payloads) > 1 else 3 * len(payloads[0]) + pushing.ROOM
        limits = self._limits() if self.maxsize or self.max_bytes is not None or self.buries_expired else None
        try:
            given = self.environment.update(self.ref, pushing.push, payloads, pack(wall), limits, wall, room=room)
        except Full:
            if not self._makes_room():
                raise
            given = self.environment.update(self.ref, pushing.push, payloads, pack(wall), limits, wall, room=room)
        return range(given.start - BASE, given.stop - BASE)

    def _restore_due(self) -> None:
        """Restore the items that are due to return, and remove those that have expired, as every reading does first."""
        self.view(fifo.count)

    def _limits(self) -> Limits:
        return Limits(self.maxsize, self.max_bytes, self.buries_expired)

    def append_apart(self, payloads: Sequence[bytes], how: Push) -> list[Pushed]:
        """Append payloads with options."""
        (pushed,) = self.append_each([(payloads, how)])
        return pushed

    def append_each(self, pushes: Sequence[tuple[Sequence[bytes], Push]]) -> list[list[Pushed]]:
        """Append the payloads of the first of several pushes with options, in one transaction."""
        wall = self.clock().wall
        apart = [(payloads, self._apart(how, wall)) for payloads, how in pushes]
        room = sum(_room_away(payloads) for payloads, _ in pushes)
        try:
            found = self.environment.update(self.ref, keyed_items.push_each, apart, room=room)
        except Full:
            if not self._makes_room():
                raise
            found = self.environment.update(self.ref, keyed_items.push_each, apart, room=room)
        return [[Pushed(item.key - BASE, item.is_stored) for item in each] for each in found]

    def _apart(self, how: Push, wall: int) -> Apart:
        due = wall + int(how.delay * _SECOND) if how.delay else 0
        expires = 0 if how.expires is None else wall + int(how.expires * _SECOND)
        trailer = Trailer(due or wall, expires, how.headers or {}).pack()
        number = _format.class_of(how.priority)
        buries = self.buries_expired
        return Apart(wall, trailer, due, how.keys, how.replace, expires, number, self._limits(), buries)

    def find(self, key: bytes) -> int | None:
        """Return the number of the item with a unique key."""
        return self.view(keyed_items.find, key)

    def cancel(self, key: bytes) -> bool:
        """Remove the item with a unique key, if it is waiting or delayed."""
        self._restore_due()
        return self.environment.update(self.ref, keyed_items.cancel, key)

    def first(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the first ``n`` entries."""
        return self.view(fifo.first, n, max_bytes)

    def candidates(self, n: int, max_bytes: int | None = None) -> list[Entry]:
        """Return the first ``n`` entries, durable or not."""
        return self.glance(n, fifo.first, n, max_bytes)

    def since(self, key: bytes) -> list[Entry]:
        """Return some entries behind that of ``key``."""
        return self.view(fifo.since, key, _BROWSE_BYTES)

    def take(  # noqa: C901, PLR0912  (in one frame: every pop passes it)
        self, n: int, least: int, decode: Decode[T], max_bytes: int | None = None
    ) -> tuple[list[Entry], list[T]] | None:
        """Read the first items, decode them, and remove exactly those.

        If another consumer was faster, the removal does nothing, and this starts again: no item goes to two consumers,
        and one that cannot be decoded never leaves. The transaction that removes an item has seen the next one: the
        next call begins with that, and need not read.
        """
        if n == 1 and self._next:
            try:
                entries = [self._next.pop()]
                items = decode(entries)
            except (IndexError, CorruptItemError, DecodeError):  # another thread was faster, or the item has left
                return self.take(n, least, decode, max_bytes)
            removed = self.environment.update(self.ref, fifo.remove_if_plain, [entries[0][0]])
            if removed is not None:
                if removed.following is not None:
                    self._next = [removed.following]
                return entries, items
        while len(entries := self.candidates(n, max_bytes)) >= least:
            if not entries:
                if not self.first(1):  # empty, and that is durable
                    return [], []
                continue
            items = decode(entries)
            if len(items) < len(entries):
                entries = entries[: len(items)]
            try:
                removed = self.environment.update(self.ref, fifo.remove, [key for key, _ in entries])
            except DiskFullError:  # as in ``_in_steps``
                n = len(entries) // 2
                if n < max(1, least) or blocks.current() is not None:
                    raise
                continue
            if removed is not None:
                if removed.following is not None:
                    self._next = [removed.following]
                if removed.notes:
                    entries = list(map(Taken.of, entries, removed.notes))
                return entries, items
        return None

    def is_plain(self) -> bool:
        """Return whether items came and left only in order, and none has a note."""
        return self.environment.view(self.ref, fifo.is_plain)

    def put_back(self, entries: list[Entry]) -> None:
        """Undo ``take``. On a full disk it uses the reserve, as removals do: items not put back now would be lost."""
        notes = [each.notes if isinstance(each, Taken) else Note() for each in entries]
        wall, bury = self.clock().wall, self.buries_expired
        try:
            room = _room_away([value for _, value in entries])
            self.environment.update(self.ref, returns.put_back, entries, notes, wall, bury, room=room)
        except DiskFullError:
            self.environment.update(self.ref, returns.put_back, entries, notes, wall, bury)

    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number, if it is waiting."""
        self._restore_due()
        return self.environment.update(self.ref, keyed_items.delete_items, [_format.key_of(seq)]) > 0

    def dead_letter(self, seq: int, reason: str) -> bool:
        """Make the item of this number a dead letter if it is waiting."""
        self._restore_due()
        how = Return(self.clock().wall, reason)
        return self.environment.update(self.ref, dead_letters.bury_items, [_format.key_of(seq)], how, room=_SMALL) > 0

    def delete(self, n: int) -> int:
        """Remove the first ``n`` items."""
        try:
            return self.environment.update(self.ref, fifo.delete, n)
        except DiskFullError as error:
            return self._in_steps(n, error)

    def _in_steps(self, n: int, refused: DiskFullError) -> int:
        """Remove the first ``n`` items in several transactions, on a full disk, where one was refused.

        LMDB lists the pages that a transaction frees in one value, for which it needs pages that lie side by side; on a
        full disk there may be only single ones, which suffice for some 500. A kill between two steps leaves the rest.
        """
        if blocks.current() is not None:
            raise refused
        left = min(n, self.count())
        step = left // 2
        removed = 0
        while left:
            if not step:
                raise refused
            try:
                gone = self.environment.update(self.ref, fifo.delete, min(step, left))
            except DiskFullError:
                step //= 2
                continue
            removed += gone
            left = left - gone if gone else 0
        return removed

    def clear(self) -> int:
        """Remove all waiting items, including those that have just come due."""
        self._restore_due()
        try:
            return self.environment.update(self.ref, fifo.clear)
        except DiskFullError as error:
            return self._in_steps(self.count(), error)

    def clear_all(self) -> int:
        """Remove all items."""
        try:
            return self.environment.update(self.ref, leases.clear)
        except DiskFullError as error:
            waiting = self._in_steps(self.count(), error)
            return waiting + self.environment.update(self.ref, leases.clear)

    def move(self, n: int, to: LocalEngine) -> int:
        """Move at most the first ``n`` items to the tail of another queue; return their number."""
        while entries := self.first(n):
            payloads = self.payloads(entries)
            keys, bodies = [key for key, _ in entries], self._bodies(entries)
            trailers = [body[len(payload) :] for body, payload in zip(bodies, payloads, strict=True)]
            target = Target(to.ref, to._limits(), self.clock().wall)
            room = pushing.room_for(bodies)
            if moved := self.environment.update(self.ref, pushing.move, keys, payloads, trailers, target, room=room):
                return moved
        return 0

    # --- leases

    def lease(
        self, n: int, ttl: float | None, sort_out: SortOut[T], max_bytes: int | None = None
    ) -> tuple[list[T], Leased] | None:
        """Lease at most the first ``n`` items; return None if there are none, durably."""
        if n == 1 and self._next and (found := self._lease_next(ttl, sort_out)) is not None:
            return found
        while entries := self.candidates(n, max_bytes) or self.first(n, max_bytes):
            items, unreadable = sort_out(entries)
            try:
                leased = self._lease(entries, unreadable, ttl)
            except DiskFullError:
                if len(entries) == 1:
                    raise
                n = 1  # which needs hardly any room
                continue
            if leased is not None and items:
                kept = [entry for entry in entries if entry[0] not in unreadable] if unreadable else entries
                return items, leased._replace(entries=kept)
        return None

    def _lease_next(self, ttl: float | None, sort_out: SortOut[T]) -> tuple[list[T], Leased] | None:
        """Lease the item that was first when this object last took one, if it still is, as ``take`` does."""
        try:
            entries = [self._next.pop()]
        except IndexError:  # another thread was faster
            return None
        items, unreadable = sort_out(entries)
        if unreadable:
            return None
        moment = self.clock()
        deadline = NEVER if ttl is None else moment.monotonic + int(ttl * _SECOND)
        terms = _make_terms(
            leases.Terms,
            (
                self.owners.mine or self.owners.join(),
                deadline,
                moment.wall,
                unreadable,
                False,
                self.claims,
                get_ident(),
            ),
        )
        room = 3 * len(entries[0][1]) + pushing.ROOM + 3 * _AWAY_OVERHEAD
        try:
            given = self.environment.update(self.ref, leases.lease_if_plain, entries, terms, room=room)
        except DiskFullError:
            return None  # the usual path will deal with it
        if given is None:
            return None
        if self.is_closed:  # closed by another thread meanwhile: then the owner is dead
            self.refuse_if_closed()
        if given.following is not None:
            self._next = [given.following]
        seqs = [_unpack(given.keys[0])[0] - BASE]
        return items, Leased(given.token, seqs, [1], None if ttl is None else deadline / _SECOND, entries)

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        """Lease the first items if they are exactly these, else return None. ``unreadable``: to die, with reasons."""
        environment = self.environment
        moment = self.clock()
        deadline = _deadline(moment, ttl)
        owner = self.owners.join()
        terms = leases.Terms(
            owner, deadline, moment.wall, unreadable, has_looked=True, claims=self.claims, thread=get_ident()
        )
        room = _room_away([value for _, value in entries])
        lease = leases.lease_first if len(entries) == 1 and not unreadable else leases.lease
        try:
            given = environment.update(self.ref, lease, entries, terms, room=room)
        except DiskFullError:
            numbers = environment.glance(self.ref, fifo.numbers)
            if len(entries) > 1 or len(entries[0][1]) > _SMALL or numbers.leased > _FEW:
                raise
            given = environment.update(self.ref, leases.lease_from_reserve, entries, terms)
        self.refuse_if_closed()  # closed by another thread meanwhile: then the owner is dead
        if given is None:
            return None
        if given.following is not None:
            self._next = [given.following]
        seqs = list(map(_format.seq_of, given.keys))
        return Leased(given.token, seqs, given.attempts, None if ttl is None else deadline / _SECOND)

    def forsake(self, known: Collection[int]) -> None:
        """Undo the leases that this thread has made and nobody has, except ``known`` ones."""
        thread = get_ident()
        for token in [token for token, of in self.claims.copy().items() if of == thread and token not in known]:
            how = Return(self.clock().wall, bury_expired=self.buries_expired, is_undone=True)
            with suppress(QueueError):  # then they return when this object is closed
                arguments = (token, self.owners.mine, self.claims, thread, how)
                self.environment.update(self.ref, leases.forsake, *arguments)
            if self.claims.get(token) == thread:
                del self.claims[token]

    def lease_each(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease at most the first ``n`` items, each with a lease of its own, many in one transaction."""
        leases: list[tuple[list[T], Leased]] = []
        known = list(self.claims)
        while len(leases) < n:
            try:
                found = self._lease_some(n - len(leases), ttl, sort_out)
            except BaseException:  # even of ``loads``: the next call gets it, and the other callers get their items
                self.forsake([*known, *(leased.token for _, leased in leases)])
                if not leases:
                    raise
                break
            if not found:
                break
            leases += found
        return leases

    def _lease_some(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease some of the first ``n`` items, each by itself; an empty list if there are none, durably."""
        if n > 1 and (found := self._lease_together(n, ttl, sort_out)):
            return found
        lease = self.lease(1, ttl, sort_out)
        return [] if lease is None else [lease]

    def _lease_together(self, n: int, ttl: float | None, sort_out: SortOut[T]) -> list[tuple[list[T], Leased]]:
        """Lease some of the first ``n`` items, each by itself, in one transaction; an empty list if that fails."""
        entries = self.candidates(n, _TOGETHER)
        if not entries:
            return []
        try:
            items, unreadable = sort_out(entries)
        except BaseException:  # one at a time: the caller who meets it gets it
            return []
        moment = self.clock()
        deadline = _deadline(moment, ttl)
        terms = leases.Terms(
            self.owners.join(),
            deadline,
            moment.wall,
            unreadable,
            has_looked=True,
            claims=self.claims,
            thread=get_ident(),
        )
        room = _room_away([value for _, value in entries])
        try:
            given = self.environment.update(self.ref, leases.lease_each, entries, terms, room=room)
        except DiskFullError:  # for one there may be room
            return []
        self.refuse_if_closed()  # closed by another thread meanwhile: then the owner is dead
        if given and (following := given[-1].following) is not None:
            self._next = [following]
        until = None if ttl is None else deadline / _SECOND
        held = [(each, entry) for each, entry in zip(given, entries, strict=False) if each.token]
        return [
            ([item], Leased(each.token, [_format.seq_of(entry[0])], each.attempts, until, [entry]))
            for item, (each, entry) in zip(items, held, strict=False)
        ]

    def ack_each(self, asked: Sequence[Request]) -> list[list[int] | None]:
        """Like ``ack``, for several leases in one transaction; return the result of each."""
        return self.environment.update(self.ref, leases.ack_each, asked)

    def ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        """Remove items of a lease for good."""
        return self.environment.update(self.ref, leases.ack, token, seqs)

    def relay_each(self, asked: Sequence[Request], ttl: float | None, sort_out: SortOut[T]) -> list[Relayed[T]]:
        """Remove items of leases for good, and lease one for each unless it is large or something is due to return."""
        moment = self.clock()
        deadline = _deadline(moment, ttl)
        terms = leases.Terms(
            self.owners.join(), deadline, moment.wall, {}, has_looked=True, claims=self.claims, thread=get_ident()
        )
        size = _RELAYED * min(len(asked), _RELAYED_AT_ONCE)
        want = leases.Want(1, size, terms, moment)
        room = 3 * (size + len(asked) * _AWAY_OVERHEAD)
        until = None if ttl is None else deadline / _SECOND
        found: list[Relayed[T]] = []
        known = list(self.claims)
        since = moment.monotonic
        try:
            relayed = self.environment.update(self.ref, leases.relay_each, asked, want, self.owners, room=room)
            found += [(None if each is None else each.acked, None) for each in relayed]
            for place, each in enumerate(relayed):
                items, leased = self.leased(each, until, sort_out)
                found[place] = found[place][0], (items, leased) if items else None
                now = self.clock().monotonic
                if ttl is not None and 3 * (now - since) > ttl * _SECOND:  # decoding takes long
                    since = now
                    self._extended([each.given.token for each in relayed if each and each.given], ttl)
        except BaseException as error:  # even of ``loads``: this and those after it have not been leased
            self.forsake([*known, *(each[1].token for _, each in found if each is not None)])
            if not found and isinstance(error, DiskFullError):
                return [(acked, None) for acked in self.ack_each(asked)]
            if not found or len(asked) == 1:  # of several, the others get theirs
                raise
        return found if ttl is None or since == moment.monotonic else self._begun_now(found, ttl)

    def _begun_now(self, relayed: list[Relayed[T]], ttl: float) -> list[Relayed[T]]:
        """Have the leases begin now, since decoding took long; leave out those whose items others have."""
        tokens = [each[1].token for _, each in relayed if each is not None]
        extended = self._extended(tokens, ttl)
        for token in set(tokens).difference(extended):
            self.claims.pop(token, None)
        return [
            (acked, (each[0], each[1]._replace(deadline=extended[each[1].token])))
            if each is not None and each[1].token in extended
            else (acked, None)
            for acked, each in relayed
        ]

    def _extended(self, tokens: list[int], ttl: float) -> dict[int, float]:
        """Extend leases; return the deadline of each that is held."""
        deadline = _deadline(self.clock(), ttl)
        try:
            is_held = self.environment.update(self.ref, leases.extend_each, tokens, deadline)
        except QueueError:  # the ack will raise the error
            is_held = [True] * len(tokens)
        return {token: deadline / _SECOND for token, each in zip(tokens, is_held, strict=True) if each}

    def leased(
        self, relayed: leases.Relayed | None, deadline: float | None, sort_out: SortOut[T]
    ) -> tuple[list[T], Leased]:
        """Return what was leased as another lease ended; what cannot be decoded becomes dead letters."""
        if relayed is None or relayed.given is None:
            return [], NOTHING
        self.refuse_if_closed()  # by another thread meanwhile: then the owner is dead
        given, entries, attempts = relayed.given, relayed.entries, relayed.given.attempts
        items, unreadable = sort_out(entries)
        if unreadable:
            for key, reason in unreadable.items():
                self.nack(given.token, [_format.seq_of(key)], 0.0, reason, 0)
            kept = [each for each in zip(entries, attempts, strict=True) if each[0][0] not in unreadable]
            if not kept:
                self.claims.pop(given.token, None)
                return [], NOTHING
            entries, attempts = map(list, zip(*kept, strict=True))
        seqs = [_format.seq_of(key) for key, _ in entries]
        return items, Leased(given.token, seqs, attempts, deadline, entries)

    def nack(
        self,
        token: int,
        seqs: Collection[int] | None,
        delay: float,
        reason: str,
        max_attempts: int | None,
        trace: str = "",
    ) -> Nacked | None:
        """Give back items of a lease."""
        wall = self.clock().wall
        due = wall + int(delay * _SECOND) if delay else 0
        how = Return(
            wall, reason, due, self.max_attempts if max_attempts is None else max_attempts, trace, self.buries_expired
        )
        try:
            return self.environment.update(self.ref, leases.nack, token, seqs, how)
        except Full:
            how = how._replace(reason=reason[:_SHORT], trace="")
            return self.environment.update(self.ref, leases.nack, token, seqs, how)

    def unlease(self, token: int) -> None:
        """Undo ``lease``."""
        how = Return(self.clock().wall, bury_expired=self.buries_expired, is_undone=True)
        self.environment.update(self.ref, leases.nack, token, None, how)

    def extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        """Give a lease another deadline."""
        deadline = _deadline(self.clock(), ttl)
        if not self.environment.update(self.ref, leases.extend, token, deadline):
            return None
        return (None if ttl is None else deadline / _SECOND,)

    def count_dead(self) -> int:
        """Return the number of dead letters."""
        return self.view(fifo.numbers).dead

    def dead_since(self, seq: int) -> list[tuple[Entry, Note]]:
        """Return some dead letters from number ``seq`` on."""
        records = self.view(dead_letters.dead, _format.key_of(seq), _BROWSE_BYTES)
        return [((record.key, record.value), record.note) for record in records]

    def requeue(self, seqs: Collection[int] | None) -> int:
        """Return dead letters to the queue."""
        self._restore_due()
        return self.environment.update(self.ref, returns.requeue, seqs, self.clock().wall)

    def delete_dead(self, seqs: Collection[int] | None) -> int:
        """Remove dead letters."""
        return self.environment.update(self.ref, dead_letters.bury_for_good, seqs)

    # --- readers

    def reader(self, name: str) -> LocalReaderEngine:
        """Return the engine of a reader."""
        with translated(self.path, "opening"):  # a late import needs a descriptor
            from lmdbqueue._local.reader_engine import LocalReaderEngine  # noqa: PLC0415  (most queues have no readers)

        return LocalReaderEngine(self, name)

    def readers(self) -> list[ReaderStats]:
        """Return the figures of all readers."""
        with translated(self.path, "reading"):
            from lmdbqueue._model import readers  # noqa: PLC0415  (as above)

        return self.view(readers.stats)

    def retain(self, limits: _format.Retention | None) -> None:
        """Set the limits of retention."""
        self.environment.update(self.ref, retention.retain, self.clock().wall, limits, self.buries_expired, room=_SMALL)
        self.trim()

    def is_crowded(self) -> bool:
        """Return whether the last move of a reader had to wait for the flush of another process."""
        return self.environment.is_crowded

    # --- waiting, and the queue as a whole

    def listen(self) -> int:
        """Return a ticket for ``sleep``."""
        environment = self.environment
        environment.refuse_inside("a call would wait", "no other call can change anything meanwhile: use timeout=0")
        return environment.bell.listen()

    def sleep(self, ticket: int, timeout: float) -> None:
        """Sleep until something changes after the ticket was given, or comes due, at most ``timeout`` seconds."""
        environment = self.environment
        expiry, due, owners = environment.glance(self.ref, returns.next_time)
        moment = self.clock()
        if expiry != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (expiry - moment.monotonic) / _SECOND))
        if due != NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (due - moment.wall) / _SECOND))
        if any(owner != self.owners.mine for owner in owners):
            timeout = min(timeout, _DEATH_LOOK)
        environment.bell.wait(ticket, timeout)

    def wake(self) -> None:
        """End the sleep of every waiter."""
        self.environment.bell.ring()

    def watch(self) -> None:
        """Do nothing: removals wake waiters in any case."""

    def stats(self) -> Stats:
        """Return the figures of the queue, and of its directory."""
        with translated(self.path, "reading"):
            from lmdbqueue._model.stats import of_queue  # noqa: PLC0415  (only when asked)

        environment = self.environment
        found = self.view(of_queue, self.clock())
        return found._replace(processes=environment.processes(), unsynced_seconds=environment.unsynced_seconds())

    def sync(self) -> None:
        """Wait until the effects of all calls that have returned are on disk."""
        self.environment.sync()


_make_terms = tuple.__new__
_unpack = _format.NUMBER.unpack


def _deadline(moment: Moment, ttl: float | None) -> int:
    return NEVER if ttl is None else moment.monotonic + int(ttl * _SECOND)


def _room_away(payloads: Sequence[bytes]) -> int:
    return pushing.room_for(payloads) + 3 * _AWAY_OVERHEAD * len(payloads)
