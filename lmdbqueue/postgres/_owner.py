"""The holders of leases, and whether they live.

Owns: the connection that a process keeps open for as long as it holds leases, and the numbers of its holders. Law: a
process with leases holds the advisory lock of that connection's session, and the server frees it when the connection
ends, in whatever way; so a lease never outlives the connection under which it was given, and a new connection is a new
owner. Must not know: leases, except the prefix of their tokens.

A holder is a queue object: the tokens of its leases begin with its number, so its leases are a range of tokens. It gets
another number when the tokens of one are used up, or its owner's connection is lost.
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

_BITS: Final = 20  # of a token that number the leases of a holder

_REGISTER: Final = "INSERT INTO {owners} (holder, queue, owner) VALUES (%(holder)s, %(queue)s, %(owner)s)"

_LIVES: Final = "SELECT WHERE %(owner)s IN ({alive})"


class Token(int):
    """The token of a lease, with its items."""

    seqs: list[int]


class Owner:
    """The connection whose lock shows that a process is alive."""

    def __init__(self, connect: Callable[[float], Session], statements: Sql) -> None:
        self._connect = connect
        self._sql = statements
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._is_over = False
        self._dead = 0  # the last owner that the server considered dead

    @property
    def known(self) -> int:
        """The number of this owner, 0 if there have been no leases yet."""
        session = self._session
        return 0 if session is None else session.id

    def join(self, holder: int, owner: int, queue: int, patience: float) -> tuple[int, int]:
        """Return the numbers of a holder and of its owner, whose connection is intact: the given ones, or new ones.

        ``patience``: seconds for which to try.
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
        """Return the intact connection; raise ``NestedCallError`` inside a call of this thread that uses it."""
        session = self._session
        if session is not None:
            if session.connection.lock.locked():
                raise NestedCallError(session.path)
            if session.is_alive and session.id != self._dead:
                return session
            self._session = None
            session.close()
        session = self._connect(patience)
        if self._is_over:  # another thread has closed the database
            session.leave()
            raise ClosedError(session.path)
        if self._session is not None:  # opened by a nested call
            session.leave()
            return self._session
        self._session = session
        return session

    def refuse_if_dead(self, session: Session) -> None:
        """Use another connection for the next lease if the server no longer knows this one.

        Its end may not have been noticed here. Each new session asks, once it can be shut out: a process that finds
        this owner dead, and forgets it, shuts out all earlier sessions.
        """
        known = self.known
        if known and not session.connection.execute(self._sql(_LIVES), {"owner": known}).fetchall():
            self._dead = known

    def leave(self) -> None:
        """End the connection for good: leased items return."""
        with self._lock:
            self._is_over = True
            session, self._session = self._session, None
        if session is not None:
            session.leave()

    def begin_anew(self) -> None:
        """Stop being an owner in a forked child: the connection belongs to the parent."""
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
        self._joined = 0  # the owner to which the last number belongs
        self.numbers: list[int] = []  # numbers under which it has held leases; new tokens begin with the last
        self._free: Iterator[int] = iter(())  # unused tokens
        self.doubtful: list[int] = []  # tokens of leases with an unknown outcome

    def token(self, patience: float) -> Token:
        """Return a token for a lease, under an intact connection, or one that can be made within ``patience``."""
        with self._lock:
            while True:
                number = self.numbers[-1] if self.numbers else 0
                number, owner = self._owner.join(number, self._joined, self.place.id, patience)
                if owner != self._joined:
                    self.numbers.append(number)
                    self._free = iter(range(number << _BITS, (number + 1) << _BITS))
                    self._joined = owner
                given = next(self._free, None)  # in one step, so that a nested call gets another
                if given is not None:
                    return Token(given)
                self._joined = 0  # the tokens are used up

    def begin_anew(self) -> None:
        """Hold nothing in a forked child."""
        self._lock = threading.RLock()
        self._joined = 0
        self.numbers = []
        self.doubtful = []
