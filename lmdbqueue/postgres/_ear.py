"""Hearing that something changed, from whatever process.

Owns: the connection that listens, and the thread that reads it. Law: whoever looks after ``listen`` and sleeps with
what that returned misses nothing that was told in between; and nobody sleeps for longer than ``CEILING`` without a
look, since a notice may be lost with a connection, and the death of a consumer is told by nobody. Must not know: what
is waited for, how those who tell learn that somebody listens (``announce``).

The thread waits for notices and for calls to listen to more; it starts with the first sleeper. When the connection is
lost, everybody is woken, to look, and it connects again.
"""

import os
import select
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import sql

from lmdbqueue._host.threads import Resting
from lmdbqueue.postgres._session import Session

CEILING: Final = 1.0  # seconds
_PAUSE: Final = 0.25  # seconds between two tries to connect


class Ear:
    """What a process hears from one database."""

    def __init__(self, connect: Callable[[], Session], announce: Callable[[Session, str], object]) -> None:
        """``announce`` lets it be known that a channel is listened to; what is told from its return on is heard."""
        self._connect = connect
        self._announce = announce
        self._lock = threading.Lock()
        self._sleepers = Resting()  # told when anything was heard, and at the end
        self._heard: dict[str, int] = {}  # how much, by channel
        self._is_ready = False  # all of these are listened to
        self._is_closed = False
        self._has_begun = False  # the thread
        self._session: Session | None = None
        self._bell, self._hammer = os.pipe()  # ends the thread's wait

    def listen(self, channel: str) -> int:
        """Begin to notice what is told; return what ``wait`` wants to know."""
        with self._lock:
            if channel not in self._heard:
                self._heard[channel] = 0
                self._is_ready = False
                if not self._has_begun:
                    self._has_begun = True
                    start_new_thread(self._run, ())
                self._strike()
        self._sleepers.wait_for(self._lock, lambda: self._is_ready or self._is_closed, CEILING)
        return self._heard[channel]

    def wait(self, channel: str, ticket: int, timeout: float) -> None:
        """Sleep until something was told after ``ticket`` was given, at most ``timeout`` s and ``CEILING``."""
        self._sleepers.wait_for(
            self._lock, lambda: self._heard[channel] != ticket or self._is_closed, min(timeout, CEILING)
        )

    def ring(self) -> None:
        """End the sleep of everybody in this process."""
        with self._lock:
            self._hear(list(self._heard))

    def close(self) -> None:
        """End the thread and the connection."""
        with self._lock:
            self._is_closed = True
            self._sleepers.tell()
            if not self._has_begun:
                self._close_pipe()
            else:
                self._strike()  # and the thread closes it, when it is back from wherever it is

    def abandon(self) -> None:
        """Give up what is the parent's: a forked child has no thread of it."""
        self._close_pipe()
        if self._session is not None:
            self._session.abandon()

    def _close_pipe(self) -> None:
        for fd in (self._bell, self._hammer):
            with suppress(OSError):
                os.close(fd)

    def _strike(self) -> None:
        os.write(self._hammer, b"\0")

    def _hear(self, channels: list[str]) -> None:
        for channel in channels:
            if channel in self._heard:
                self._heard[channel] += 1
        self._sleepers.tell()

    def _run(self) -> None:
        while not self._is_closed:
            try:
                session = self._session = self._connect()
            except Exception:
                with self._lock:
                    self._is_ready = True
                    self._sleepers.tell()
                time.sleep(_PAUSE)
                continue
            with suppress(psycopg.Error):
                self._follow(session)
            self._session = None
            session.close()
            with self._lock:
                self._hear(list(self._heard))
        self._close_pipe()

    def _follow(self, session: Session) -> None:
        """Listen until the end, or until the connection is lost."""
        connection = session.connection
        known: set[str] = set()
        while not self._is_closed:
            with self._lock:
                new = self._heard.keys() - known
            for channel in new:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                self._announce(session, channel)
            with self._lock:
                known |= new
                self._is_ready = known >= self._heard.keys()
                if new:
                    self._hear(list(self._heard))  # what came before, or amid the statement, is not known
            select.select([connection.fileno(), self._bell], [], [], None)
            with suppress(BlockingIOError):
                if select.select([self._bell], [], [], 0)[0]:
                    os.read(self._bell, 4096)
            told = [notify.channel for notify in connection.notifies(timeout=0)]
            if connection.closed:
                return
            with self._lock:
                self._hear(told)
