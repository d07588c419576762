"""Hearing of changes by any process.

Owns: the connection that listens, the thread that reads it, and the rows that say who is listening. Law: a change of a
queue looks for such a row, and only if there is one sends a notification, after its commit: committing a notification
holds a lock of the whole cluster. A change that looked before the row existed notifies nobody, so a new listener checks
again some moments later; and no listener sleeps longer than ``CEILING`` without checking, since a notification may be
lost with a connection, and the death of a consumer is not announced. Must not know: what is waited for.

The thread waits for notifications and for calls to listen to more channels; it starts with the first sleeper. When the
connection is lost, all sleepers are woken to check, and it connects again.
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
from lmdbqueue.postgres._sql import Sql

CEILING: Final = 1.0  # seconds
_PAUSE: Final = 0.25  # seconds between two attempts to connect
_LINGER: Final = 2.0  # seconds after the last sleep for which notifications are still sent
_ECHOES: Final = (0.02, 0.1, 0.4)  # seconds after beginning to listen at which it checks again

_SLEEP: Final = """
WITH mine AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
INSERT INTO {sleepers} (queue, session) SELECT %(queue)s, %(session)s FROM mine ON CONFLICT DO NOTHING
"""
_RISE: Final = """
WITH mine AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
DELETE FROM {sleepers} WHERE queue = %(queue)s AND session = %(session)s AND EXISTS (SELECT FROM mine)
"""


class Ear:
    """The notifications that a process hears from one database."""

    def __init__(self, connect: Callable[[], Session], statements: Sql) -> None:
        self._connect = connect
        self._sql = statements
        self._lock = threading.RLock()
        self._sleepers = Resting()  # woken when anything was heard, and at the end
        self._heard: dict[str, int] = {}  # number of notifications, by channel
        self._slept: dict[str, float] = {}  # the time of the last sleep, by channel; on time.monotonic()
        self._known: set[str] = set()  # channels that are registered at the server
        self._echoes: list[float] = []  # when to check again; on time.monotonic()
        self._is_away = False  # the server
        self._is_closed = False
        self._has_begun = False  # whether the thread has started
        self._session: Session | None = None
        self._bell, self._hammer = os.pipe()  # ends the thread's wait
        os.set_blocking(self._hammer, False)  # the writer holds the lock, and the thread may not read for hours

    def listen(self, channel: str) -> int:
        """Begin to notice notifications; return a ticket for ``wait``."""
        with self._lock:
            self._slept[channel] = time.monotonic()
            self._heard.setdefault(channel, 0)
            if channel in self._known or self._is_closed:  # the pipe's descriptor may be reused by now
                return self._heard[channel]
            if not self._has_begun:
                self._begin()
            self._strike()
        self._sleepers.wait_for(self._lock, lambda: channel in self._known or self._is_away or self._is_closed, CEILING)
        return self._heard[channel]

    def _begin(self) -> None:
        self._has_begun = True
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # there are too many threads: waiters check now and then, and the next one tries again
            self._has_begun = False

    def wait(self, channel: str, ticket: int, timeout: float) -> None:
        """Sleep until a notification after ``ticket`` was given, at most ``timeout`` seconds and ``CEILING``."""
        self._sleepers.wait_for(
            self._lock, lambda: self._heard[channel] != ticket or self._is_closed, min(timeout, CEILING)
        )
        self._slept[channel] = time.monotonic()

    def ring(self) -> None:
        """End the sleep of every waiter in this process."""
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
                self._strike()  # the thread closes the pipe when it gets there

    def abandon(self) -> None:
        """Give up the parent's connection in a forked child, which lacks its thread."""
        self._close_pipe()
        if self._session is not None:
            self._session.abandon()

    def _close_pipe(self) -> None:
        bell, hammer, self._bell, self._hammer = self._bell, self._hammer, -1, -1
        for fd in (bell, hammer):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)

    def _strike(self) -> None:
        """End the thread's wait. With the lock, without which the thread does not close the pipe."""
        if self._hammer >= 0:
            with suppress(BlockingIOError):  # the pipe is full, so the thread will not wait
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
                    self._is_away = True
                    self._hear(list(self._heard))
                time.sleep(_PAUSE)
                continue
            self._is_away = False
            began = time.monotonic()
            with suppress(psycopg.Error):
                self._follow(session)
            self._session = None
            with self._lock:
                self._known.clear()
                self._hear(list(self._heard))
            if self._is_closed:
                session.leave()
            else:
                session.close()
                time.sleep(max(0.0, began + _PAUSE - time.monotonic()))  # in case the server refuses LISTEN
        with self._lock:  # close() may not have written yet, and the descriptor could be reused
            self._close_pipe()

    def _follow(self, session: Session) -> None:
        """Listen until the end, or until the connection is lost."""
        connection = session.connection
        listened: set[str] = set()
        waiting = select.poll()  # not by select, which is limited to 1,024 descriptors
        for fd in (connection.fileno(), self._bell):
            waiting.register(fd, select.POLLIN)
        while not self._is_closed:
            now = time.monotonic()
            with self._lock:
                awake = {channel for channel in self._known if now - self._slept[channel] > _LINGER}
                new = {channel for channel in self._heard if now - self._slept[channel] <= _LINGER} - self._known
                self._known -= awake
            for channel in awake:
                self._announce(session, _RISE, channel)
            for channel in new:
                if channel not in listened:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    listened.add(channel)
                self._announce(session, _SLEEP, channel)
            with self._lock:
                self._known |= new
                if new:
                    self._echoes = [time.monotonic() + each for each in _ECHOES]
                    self._hear(list(new))  # notifications before, or during, the statement are not known
            self._rest(waiting)
            told = [notify.channel for notify in connection.notifies(timeout=0)]
            if connection.closed:
                return
            with self._lock:
                self._hear(told)

    def _rest(self, waiting: select.poll) -> None:
        """Wait for a notification, a call, or the next thing to do."""
        seconds = _LINGER / 2 if self._known else None
        if self._echoes:
            seconds = max(0.0, self._echoes[0] - time.monotonic())
        ready = dict(waiting.poll(None if seconds is None else int(seconds * 1000) + 1))
        if self._bell in ready:
            os.read(self._bell, 4096)
        now = time.monotonic()
        if self._echoes and self._echoes[0] <= now:
            self._echoes = [each for each in self._echoes if each > now]
            with self._lock:
                self._hear(list(self._heard))

    def _announce(self, session: Session, statement: str, channel: str) -> None:
        """Register the listener of a channel, or remove it."""
        values = {"queue": self._sql.queue(channel), "session": session.id}
        session.connection.execute(self._sql(statement), values)
