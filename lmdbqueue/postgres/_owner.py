"""Who holds leases, and whether they live.

Owns: the connection that a process keeps open for as long as it holds leases, and the numbers of its holders. Law:
whoever has leases holds the advisory lock of the session of that connection, and the server frees it when the
connection ends, however it ends; so a lease never outlives the connection that it was given under, and a new
connection is a new owner. Must not know: leases, but for how their tokens begin.

A holder is a queue object: the tokens of its leases begin with its number, so what it holds is a range of tokens. It
gets another number when the tokens of one are used up, or its owner's connection was lost.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import psycopg

from lmdbqueue._errors import ClosedError, NestedCallError
from lmdbqueue.postgres._failures import explained
from lmdbqueue.postgres._failures import is_lost as is_of_no_use
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._sql import Sql

_BITS: Final = 20  # of a token that count the leases of a holder

_REGISTER: Final = "INSERT INTO {owners} (holder, queue, owner) VALUES (%(holder)s, %(queue)s, %(owner)s)"

_LIVES: Final = "SELECT WHERE %(owner)s IN ({alive})"


class Token(int):
    """The number of a lease, which knows its items."""

    seqs: list[int]


class Owner:
    """The life-sign of a process."""

    def __init__(self, connect: Callable[[float], Session], statements: Sql) -> None:
        self._connect = connect
        self._sql = statements
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._is_over = False
        self._dead = 0  # the last one that the server believed to be dead

    @property
    def known(self) -> int:
        """The number of this owner, 0 if it has held nothing yet."""
        session = self._session
        return 0 if session is None else session.id

    def join(self, holder: int, owner: int, queue: int, patience: float) -> tuple[int, int]:
        """Return the number of a holder and of its owner, whose connection stands: those given, or new ones.

        ``patience``: for how many seconds to try.
        """
        with self._lock:
            is_lost = False
            while True:
                session = self._standing(patience)
                if session.id == owner:
                    return holder, owner
                holder = int.from_bytes(os.urandom(6)) >> 5
                values = {"holder": holder, "queue": queue, "owner": session.id}
                try:
                    session.connection.execute(self._sql(_REGISTER), values)
                except psycopg.Error as error:
                    was_lost, is_lost = is_lost, is_of_no_use(error, session.connection)
                    if is_lost:
                        self._session = None
                        session.close()
                    if was_lost or not is_lost:
                        raise explained(error, session.path, "a lease") from error
                else:
                    return holder, session.id

    def _standing(self, patience: float) -> Session:
        """Return the connection, which stands; raise ``NestedCallError`` amid a call of this thread that uses it."""
        session = self._session
        if session is not None:
            if session.connection.lock.locked():
                raise NestedCallError(session.path)
            if session.is_alive and session.id != self._dead:
                return session
            self._session = None
            session.close()
        session = self._connect(patience)
        if self._is_over:  # the database was closed by another thread
            session.leave()
            raise ClosedError(session.path)
        if self._session is not None:  # of a call from within that one
            session.leave()
            return self._session
        self._session = session
        return session

    def refuse_if_dead(self, session: Session) -> None:
        """Use another connection for the next lease if the server does not know of this one any more.

        Its end may not have been heard of here. It is asked by each new session, after that can be shut out: whoever
        finds this owner dead, and forgets it, shuts out all sessions that were before.
        """
        known = self.known
        if known and not session.connection.execute(self._sql(_LIVES), {"owner": known}).fetchall():
            self._dead = known

    def leave(self) -> None:
        """End the connection, for good: what is held comes back."""
        with self._lock:
            self._is_over = True
            session, self._session = self._session, None
        if session is not None:
            session.leave()

    def begin_anew(self) -> None:
        """Be nobody, in a forked child: the connection is the parent's."""
        session, self._session = self._session, None
        self._lock = threading.RLock()
        if session is not None:
            with suppress(psycopg.Error):
                session.abandon()


class Holder:
    """The holder of the leases of one queue object."""

    place: Any  # of the queue

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._lock = threading.RLock()
        self._joined = 0  # the owner whose the last number is
        self.numbers: list[int] = []  # by which it has held leases; new ones begin with the last
        self._free: Iterator[int] = iter(())  # tokens that are not given yet
        self.doubtful: list[int] = []  # tokens of leases of which nobody knows whether they were given

    def token(self, patience: float) -> Token:
        """Return a token for a lease, under a connection that stands, or that can be made within the time given."""
        with self._lock:
            while True:
                number = self.numbers[-1] if self.numbers else 0
                number, owner = self._owner.join(number, self._joined, self.place.id, patience)
                if owner != self._joined:
                    self.numbers.append(number)
                    self._free = iter(range(number << _BITS, (number + 1) << _BITS))
                    self._joined = owner
                given = next(self._free, None)  # in one step: a call from within this one has another
                if given is not None:
                    return Token(given)
                self._joined = 0  # they are used up

    def begin_anew(self) -> None:
        """Hold nothing, in a forked child."""
        self._lock = threading.RLock()
        self._joined = 0
        self.numbers = []
        self.doubtful = []
