"""The base of one queue object's steps: its environment, reading entries, restoring items that are due.

Owns: opening and closing an engine, payloads and trailers as bytes, restoring overdue items. Law: every reading first
restores the items that are due to return. Must not know: LMDB, generations, verbs.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, cast
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import ClosedError, CorruptItemError, Full, OptionError, QueueError
from lmdbqueue._base.format import Trailer
from lmdbqueue._base.values import Clock, Entry, Moment, now
from lmdbqueue._host import departures
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.owners import Owners
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import leases, pushing, retention, returns
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.returns import Overdue
from lmdbqueue._verbs.serializers import refuse_other_serializer

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_AT_ONCE: Final = 10_000  # items restored in one transaction
_FEW_AT_ONCE: Final = 1_000  # the same, if a verb only needs the first items

_engines: weakref.WeakSet[LocalHold] = weakref.WeakSet()


class LocalHold:
    """The base of an engine."""

    environment: Environment  # after close(), an object that raises ClosedError

    def __init__(
        self,
        environment: Environment,
        path: str,
        name: str,
        serializer: str = "",
        *,
        maxsize: int = 0,
        max_bytes: int | None = None,
        max_attempts: int | None = None,
        buries_expired: bool = False,
        clock: Clock = now,
    ) -> None:
        """Use an environment, opened at ``path``; release it when this object is closed or collected."""
        self.environment = environment
        self.name = name
        self.path = path
        self.maxsize = maxsize
        self.max_bytes = max_bytes
        self.max_attempts = max_attempts
        self.buries_expired = buries_expired
        self.checksum = environment.directory.options.checksum
        self.clock = clock
        # the leases that this object's threads have made, and nobody has yet: token to thread. A transaction puts it
        # here before its commit, and the caller's last step before it returns the lease takes it away: what is here
        # when a call has failed was leased for nobody. A later one with the same token takes its place
        self.claims: dict[int, int] = {}
        self._next: list[Entry] = []  # the item that was first when this object last removed one; at most one
        self.is_shut_down = self.is_drained = self.is_closed = False
        self.owners = Owners(environment.directory.path, environment.directory.folder)
        try:
            self.ref, self.record = environment.open_queue(name, partial(_make, serializer))
        except BaseException:
            environment.release()
            raise
        try:
            refuse_other_serializer(path, name, _format.serializer(self.record), serializer)
        except OptionError:
            environment.release(self.ref)
            raise
        self.salt = _format.salt(self.record)
        self._behind = _format.TRAILER + (_format.SEAL_SIZE if self.checksum else 0)
        self._release = weakref.finalize(self, departures.defer, _let_go, environment, self.ref, self.owners)
        self._release.atexit = False  # ``release_at_end`` does it, before code that waits for it
        self._stays_open = False
        _engines.add(self)

    # --- reading entries

    def payloads(self, entries: list[Entry]) -> list[bytes]:
        """Return the payloads of the entries, which must be undamaged."""
        if len(entries) == 1:  # the most frequent case, kept short
            ((key, value),) = entries
            if not self.checksum or crc32(value, crc32(key, self.salt)) == _format.RESIDUE:
                end = len(value) - self._behind
                if end >= 0 and value[end] < _format.MARKED:
                    return [value[:end]]
        values = [value for _, value in entries]
        if self.checksum and not _format.are_intact([key for key, _ in entries], values, self.salt):
            raise CorruptItemError(
                *self.opened(next(each for each in entries if not _format.is_intact(*each, self.salt)))
            )
        try:
            return _format.payloads(values, sealed=self.checksum)
        except (ValueError, IndexError):  # one is damaged, and there are no checksums
            bad = next(each for each in entries if not _format.has_trailer(each[1], sealed=self.checksum))
            raise CorruptItemError(*self.opened(bad)) from None

    def _bodies(self, entries: list[Entry]) -> Sequence[bytes]:
        return _format.bodies([value for _, value in entries], sealed=self.checksum)

    def trailers(self, entries: Sequence[Entry]) -> list[Trailer]:
        """Return the trailers of undamaged entries."""
        return [Trailer.of(body)[0] for body in self._bodies(list(entries))]

    def opened(self, entry: Entry) -> tuple[int, bytes]:
        """Return an entry's sequence number and payload, damaged or not."""
        key, value = entry
        with suppress(ValueError, IndexError):
            (payload,) = _format.payloads([value], sealed=self.checksum)
            return _format.seq_of(key), payload
        return _format.seq_of(key), value

    def size(self, entry: Entry) -> int:
        return _format.payload_size(entry[1], sealed=self.checksum)

    # --- restoring first

    def view(self, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, tables, *args)`` on the disk's state, after all items due to return have returned."""
        moment = self.clock()
        found = self.environment.view(self.ref, returns.look, self.owners, moment, fn, *args)
        while isinstance(found, Overdue):
            if not self._restore(found.owners, moment, _AT_ONCE):
                return self.environment.view(self.ref, fn, *args)
            moment = self.clock()
            found = self.environment.view(self.ref, returns.look, self.owners, moment, fn, *args)
        return found

    def glance(self, n: int, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, tables, *args)`` on a state not yet durable, after ``n`` due items have returned.

        If very many come due at once, each call restores a part of them.
        """
        moment = self.clock()
        found = self.environment.glance(self.ref, returns.look, self.owners, moment, fn, *args)
        if isinstance(found, Overdue):
            self._restore(found.owners, moment, max(n, _FEW_AT_ONCE))
            return self.environment.glance(self.ref, fn, *args)
        return found

    def _restore(self, owners: Sequence[int], moment: Moment, most: int) -> int:
        """Requeue the items of dead owners and those now due; return the count, 0 if the disk is full."""
        try:
            how = Return(moment.wall, "", 0, self.max_attempts, "", self.buries_expired)
            changed = self.environment.update(self.ref, returns.restore, owners, moment, how, most)
        except Full:  # the disk is full: they return when consumers have made room
            return 0
        self.owners.bury(owners)
        return changed

    def _makes_room(self) -> bool:
        """Remove or restore overdue items, since there may be no consumer to do so; return whether there were any."""
        moment = self.clock()
        found = self.environment.view(self.ref, returns.overdue, self.owners, moment)
        return found is not None and self._restore(found.owners, moment, _AT_ONCE) > 0

    def trim(self) -> None:
        """Remove items beyond the limits of retention."""
        while self.environment.update(self.ref, retention.trim, self.clock().wall, self.buries_expired):
            pass

    # --- the end

    def refuse_if_closed(self) -> None:
        """Raise ``ClosedError`` after ``close()``."""
        if self.is_closed:
            raise ClosedError(self.path)

    def close(self) -> None:
        """Give back leased items, and release the environment."""
        environment = self.environment
        was_closed, self.is_closed = self.is_closed, True
        if was_closed:
            return
        self.environment = cast("Environment", _Closed(self.path))
        environment.bell.ring()
        if self.owners.mine:
            with suppress(QueueError):  # otherwise the next reading finds a dead owner
                how = Return(
                    self.clock().wall,
                    "its queue was closed",
                    max_attempts=self.max_attempts,
                    bury_expired=self.buries_expired,
                )
                environment.update(self.ref, leases.give_up, self.owners.mine, how)
        if self._release.detach():  # otherwise the garbage collector was faster
            _let_go(environment, self.ref, self.owners)

    def stay_open_at_exit(self) -> None:
        """Let other code close this at the program's end, after ``atexit`` functions that still use it."""
        self._stays_open = True

    def release_at_end(self) -> None:
        """Release the environment at the program's end, as the garbage collector would."""
        found = None if self._stays_open else self._release.detach()  # from then on it cannot be called any more
        if found is not None:
            found[1](*found[2])

    def begin_anew(self) -> None:
        """Hold no leases in a forked child; its parent may hold some."""
        self.claims.clear()
        self.owners.begin_anew()


class _Closed:
    """Stands in for the environment of a closed queue."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(self._path)


def _make(serializer: str, txn: Txn, queue: Tables) -> bytes:
    return pushing.create(txn, queue, int.from_bytes(os.urandom(4)), serializer)


def _let_go(environment: Environment, ref: Ref, owners: Owners) -> None:
    try:
        owners.leave()
    finally:
        environment.release(ref)


@departures.at_end
def _release_all() -> None:
    for engine in list(_engines):
        engine.release_at_end()


def _begin_anew_in_child() -> None:
    for engine in list(_engines):
        engine.begin_anew()


at_fork("engines", in_child=_begin_anew_in_child)
