"""The connections of a process, and which of them are idle.

Owns: how many there are. Law: as many are kept as were in use at the same time, so threads that take turns with a
database need not connect again and again; an idle one is ended after a while. With a limit, a thread that finds all of
them in use waits for one. Must not know: what they are used for.
"""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from lmdbqueue._host.threads import Resting
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._session import Session

_IDLE: Final = 60.0  # seconds after which an idle connection is ended


class Pool:
    """Connections, for one process."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.RLock()
        self._waiting = Resting()  # threads waiting for a connection; woken when one is put back, or lost
        self._idle: list[Session] = []  # the most recently used one is last
        self._open: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()  # idle or in use
        self._opening = 0
        self._is_closed = False

    @property
    def all(self) -> list[Session]:
        """All open connections."""
        return [each for reference in self._open.valuerefs() if (each := reference()) is not None]

    def take(self) -> Session | None:
        """Return an idle connection, None if there is none."""
        with self._lock:
            if not self._idle:
                return None
            session = self._idle.pop()
            session.thread = threading.get_ident()
            return session

    def wait(self, open_: Callable[[], Session], deadline: float) -> tuple[Session, bool]:
        """Return an idle connection, or one that ``open_`` opens, and whether it was opened.

        Raises ``Lost`` if all permitted ones are in use until the deadline, and the errors of ``open_``.
        """
        while True:
            with self._lock:
                if (session := self.take()) is not None:
                    return session, False
                if self._has_room():
                    self._opening += 1
                    break
            if time.monotonic() >= deadline:
                raise Lost(TimeoutError(f"all {self.limit} connections of the pool are in use"))
            self._waiting.wait_for(
                self._lock, lambda: bool(self._idle) or self._has_room(), deadline - time.monotonic()
            )
        try:
            session = open_()
            session.thread = threading.get_ident()
            self._open[session.id] = session
        finally:
            with self._lock:
                self._opening -= 1
                self._waiting.tell()
        return session, True

    def _has_room(self) -> bool:
        return self.limit is None or len(self._open) + self._opening < self.limit

    def is_used_here(self) -> bool:
        """Return whether this thread uses a connection."""
        return any(each.thread == threading.get_ident() for each in self.all)

    def put(self, session: Session) -> list[Session]:
        """Put a session back; return the sessions to end: those idle for too long or, after ``close``, this one."""
        old = []
        with self._lock:
            session.thread = 0
            if self._is_closed:
                self._open.pop(session.id, None)
                return [session]
            now = session.used_at = time.monotonic()
            self._idle.append(session)
            while now - self._idle[0].used_at > _IDLE:
                old.append(self._idle.pop(0))
                self._open.pop(old[-1].id, None)
            if self.limit is not None:  # otherwise nobody waits
                self._waiting.tell()
        return old

    def lose(self, session: Session) -> bool:
        """Forget a connection that was in use; return whether it was."""
        with self._lock:
            if session.id not in self._open or session in self._idle:
                return False
            self._open.pop(session.id, None)
            self._waiting.tell()
            return True

    def empty(self) -> list[Session]:
        """Return all that wait, which are forgotten."""
        with self._lock:
            idle, self._idle = self._idle, []
            for session in idle:
                self._open.pop(session.id, None)
        return idle

    def close(self) -> list[Session]:
        """Return all idle connections. Those in use are returned by ``put``."""
        with self._lock:
            self._is_closed = True
        return self.empty()
