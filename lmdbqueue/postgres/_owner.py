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
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import length_hint
from typing import Any, Final

import psycopg

from lmdbqueue._base.errors import ClosedError, NestedCallError, ServerError
from lmdbqueue._host.threads import free, holding, is_mine
from lmdbqueue.postgres._failures import explained
from lmdbqueue.postgres._failures import is_lost as is_of_no_use
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._silence import SILENCE, over_at
from lmdbqueue.postgres._sql import Sql

_BITS: Final = 20  # of a token that number the leases of a holder

_REGISTER: Final = "INSERT INTO {owners} (holder, queue, owner) VALUES (%(holder)s, %(queue)s, %(owner)s)"

_LIVES: Final = "SELECT WHERE %(owner)s IN ({alive})"


class Token(int):
    """The token of a lease."""

    seqs: set[int]  # its items, less those that were acknowledged outside of blocks, which nothing undoes


class Owner:
    """The connection whose lock shows that a process is alive."""

    def __init__(self, connect: Callable[[float], Session], statements: Sql, path: str) -> None:
        """``connect`` opens a connection by a deadline, on ``time.monotonic()``; ``path`` is for errors."""
        self._path = path
        self._connect = connect
        self._sql = statements
        self._lock = threading.RLock()  # of who uses the connection
        self._session: Session | None = None
        self._is_over = False
        self._dead = 0  # the last owner that the server considered dead

    @property
    def known(self) -> int:
        """The number of this owner, 0 if there have been no leases yet."""
        session = self._session
        return 0 if session is None else session.id

    @holding
    def alone(self, lock: threading.RLock, deadline: float) -> Iterator[None]:
        """Hold a lock, whose holder may wait for the server; raise ``ServerError`` if it is not had by the deadline."""
        is_nested = is_mine(lock)
        try:
            if not is_nested and not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise ServerError(self._path, "a lease", "the server is away")
            yield
        finally:
            if not is_nested:
                free(lock)

    def stands(self, owner: int) -> bool:
        """Return whether this is the owner, and nothing was heard of the end of its connection. It waits for nobody."""
        session = self._session
        return session is not None and session.id == owner != self._dead and session.is_quiet

    def join(self, queue: int, deadline: float) -> tuple[int, int]:
        """Return the number of a new holder and of its owner, whose connection stands.

        Raises ``ServerError`` if there is none by the deadline.
        """
        with self.alone(self._lock, deadline):
            is_lost = False
            while True:
                session = self._standing(deadline)
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
                finally:
                    session.connection.limit(SILENCE)

    def _standing(self, deadline: float) -> Session:
        """Return the intact connection; raise ``NestedCallError`` inside a call of this thread that uses it."""
        session = self._session
        if session is not None:
            if session.connection.lock.locked():
                raise NestedCallError(session.path)
            session.connection.limit(SILENCE, deadline)
            if session.is_alive and session.id != self._dead:
                return session
            self._session = None
            session.close()
        session = self._connect(deadline)
        if self._session is not None:  # opened by a nested call
            session.leave()
            return self._session
        session.connection.limit(SILENCE, deadline)
        self._session = session
        if self._is_over:  # the database was closed by another thread, which may have looked before
            self.leave()
            raise ClosedError(session.path)
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
        deadline = 0.0
        while True:
            if self._owner.stands(self._joined):
                given = next(self._free, None)  # in one step, so that a nested call gets another
                if given is not None:
                    return Token(given)
            deadline = deadline or over_at(patience)
            with self._owner.alone(self._lock, deadline):
                if self._owner.stands(self._joined) and not self._is_used_up():
                    continue  # another thread was faster
                number, owner = self._owner.join(self.place.id, deadline)
                self.numbers.append(number)
                self._free = iter(range(number << _BITS, (number + 1) << _BITS))
                self._joined = owner

    def _is_used_up(self) -> bool:
        return not length_hint(self._free)

    def begin_anew(self) -> None:
        """Hold nothing in a forked child."""
        self._lock = threading.RLock()
        self._joined = 0
        self.numbers = []
        self.doubtful = []
