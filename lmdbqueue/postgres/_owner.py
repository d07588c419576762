"""Who holds leases, and whether it lives.

Owns: the connection that a queue object keeps open for as long as it lives. Law: whoever has leases holds the advisory
lock of its number, and the server frees that when the connection ends, however it ends; so a lease never outlives the
connection that it was given under, and a new connection is a new owner. Must not know: leases.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from lmdbqueue.postgres._session import Session


class Owner:
    """The life-sign of one queue object."""

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._session: Session | None = None

    @property
    def known(self) -> int:
        """The number of this owner, 0 if it has held nothing yet."""
        session = self._session
        return 0 if session is None else session.id

    def join(self) -> int:
        """Return the number of this owner, whose connection stands."""
        with self._lock:
            if self._session is not None and not self._session.is_alive:
                self._session.close()
                self._session = None
            if self._session is None:
                self._session = self._connect()
            return self._session.id

    def leave(self) -> None:
        """End the connection: what is held comes back."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.leave()

    def begin_anew(self) -> None:
        """Be nobody, in a forked child: the connection is the parent's."""
        session, self._session = self._session, None
        self._lock = threading.Lock()
        if session is not None:
            with suppress(psycopg.Error):
                session.abandon()
