"""How long an answer of the server is waited for.

Owns: what ends the wait for a reply, or for a connection, that does not come. Law: a connection on which nothing is
heard for some time is of no use, unless the server says by another one that it is at work on what was asked. Must not
know: what was asked, how often it is repeated.

============================  =====================================================================================
nothing is heard, since       then
============================  =====================================================================================
the host is gone, or packets  the system gives the connection up (``tcp_user_timeout``, keepalives), or this side does
are dropped                   when ``silent`` seconds or the call are over
somebody between took what    the system hears no silence: this side asks by another connection. The server waits for
was sent, and passes nothing  this side, or does not know the session: it is closed
on
the server works, or waits    it is waited for. If it waits for a lock when the call is over, that wait is cancelled
the server hangs              nobody can be asked within the time that is left, or a sixth of the patience: it is closed
the server has no room for    it is waited for until the call is over: that it refuses another one says that it is there
another connection
============================  =====================================================================================
"""

import functools
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, Self, TypeVar, TypeVarTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
S = TypeVar("S", bound="_Limited")

# A peer whose host is gone, and says nothing, is noticed on both sides within half a minute; by a call before its
# patience is over, down to half a second; unless the address says otherwise
SILENCE: Final = 25.0  # seconds
SHORTEST: Final = 0.5
_PART: Final = 5 / 6  # of the patience, to leave time for another connection
_TO_ASK: Final = 1 / 5  # of a silence, at the least: so much is left of the patience
_OF_SILENCE: Final = ("tcp_user_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "keepalives")
_EVER: Final = float("inf")

_AT_WORK: Final = """
SELECT CASE WHEN %s::boolean AND wait_event_type = 'Lock' THEN pg_cancel_backend(pid) END FROM pg_stat_activity
WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s AND wait_event_type IS DISTINCT FROM 'Client'
"""


class Backend(NamedTuple):
    """A process of a server. An address of several hosts may lead to another server, which has such a number, too."""

    pid: int
    started: str  # tells it from all others that have that number, there or elsewhere


class _Calls(threading.local):
    """When the call is over that a thread is amid, and when all of its calls are."""

    until = _EVER
    hurried = _EVER


_calls: Final = _Calls()


def over_at(patience: float) -> float:
    """Return when a step is over that begins now, on ``time.monotonic()``: at the latest with the thread's call."""
    now = time.monotonic()
    return min(_calls.until, now + max(SHORTEST, min(patience, _calls.hurried - now)))


def hurry(deadline: float) -> None:
    """Limit all further calls of this thread to a deadline on ``time.monotonic()``."""
    _calls.hurried = deadline


def within(until: float, fn: Callable[[*Ts], R], *args: *Ts) -> R:
    """Return ``fn(*args)``, as one call, which is over then at the latest, whatever its steps are."""
    before = _calls.until
    try:
        _calls.until = min(before, until)
        return fn(*args)
    finally:
        _calls.until = before


class _Limited(Protocol):
    """What a step belongs to."""

    @property
    def patience(self) -> float: ...


def as_one_call(fn: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make the steps of a method one call, with one deadline."""

    @functools.wraps(fn)
    def called(self: S, /, *args: P.args, **options: P.kwargs) -> R:
        before = _calls.until
        try:
            _calls.until = over_at(self.patience)
            return fn(self, *args, **options)
        finally:
            _calls.until = before

    return called


def silence(patience: float) -> float:
    """Return the seconds of silence after which a connection is given up, in calls with this patience."""
    return min(SILENCE, max(SHORTEST, _PART * patience))


def host_limits(silent: float) -> dict[str, str]:
    """Return the settings that make a silent host count as gone after this many seconds."""
    idle, interval = max(1, round(0.4 * silent)), max(1, round(0.2 * silent))
    names = ("tcp_user_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count")
    return dict(zip(names, map(str, (int(silent * 1000), idle, interval, 3)), strict=True))


class Connection(psycopg.Connection[Any]):
    """A connection that is waited for as long as there is somebody at the other end."""

    silent = SILENCE  # seconds of silence after which it is asked whether the server is at work
    until = _EVER  # when the call is over for which it is used; on time.monotonic()
    was_silent = False  # and closed for that
    backend = Backend(0, "")  # the server's process; of a pooler's connection another one than that of this side
    is_at_work: Callable[[Backend, float, bool], bool] | None = None  # asks the server, in so many seconds

    _opening = threading.local()  # for how many seconds a thread tries to connect to one host

    @classmethod
    def opened(cls, conninfo: str, seconds: float, silent: float) -> Self:
        """Connect, in so many seconds for each host. Raises what psycopg raises."""
        cls._opening.seconds = seconds
        connection = cls.connect(conninfo, autocommit=True, prepare_threshold=2)
        connection.silent = silent
        connection.until = time.monotonic() + seconds
        return connection

    @classmethod
    def _connect_gen(cls, *args: Any, **options: Any) -> Generator[Any, Any, Self]:
        """Do as psycopg does, which knows no time below two seconds."""
        until = time.monotonic() + cls._opening.seconds

        def look(now: float, _since: float) -> bool:
            if now < until:
                return False
            raise psycopg.errors.ConnectionTimeout("connection timeout expired")

        return attended(super()._connect_gen(*args, **options), look)

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Do as psycopg does, and look at the time where nothing comes."""
        return super().wait(attended(gen, self._look), *args, **options)

    def _look(self, now: float, since: float) -> bool:
        is_asked = now - since >= self.silent or now >= self.until
        if is_asked:
            self._refuse_silence(is_over=now >= self.until)
        return is_asked

    def limit(self, silent: float = _EVER, until: float = _EVER) -> None:
        """Set after how many seconds of silence, and when at the latest, it is given up."""
        self.silent, self.until = silent, until

    def _refuse_silence(self, *, is_over: bool) -> None:
        """Close the connection, and raise ``OperationalError``, unless the server is at work."""
        seconds = min(SILENCE, max(SHORTEST, self.silent * _TO_ASK, self.until - time.monotonic()))
        is_at_work = self.is_at_work is not None and self.is_at_work(self.backend, seconds, is_over)
        if not is_at_work and not is_readable(self.fileno()):  # for the answer may have come meanwhile
            self.was_silent = True
            self.pgconn.finish()
            message = "the server did not answer"
            raise psycopg.OperationalError(message)
        if is_over:
            self.until = time.monotonic() + self.silent

    def wait_at_most(self, silent: float, conninfo: str) -> None:
        """Set after how many seconds of silence it is given up; its host counts as gone, unless the address says it."""
        self.silent = silent
        if self.info.host.startswith(("/", "@")) or not conninfo_to_dict(conninfo).keys().isdisjoint(_OF_SILENCE):
            return
        kinds = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL")
        with suppress(OSError), socket.socket(fileno=os.dup(self.fileno())) as same:  # libpq's own stays open
            for kind, value in zip(kinds, host_limits(silent).values(), strict=False):
                if hasattr(socket, kind):  # which a system may lack
                    same.setsockopt(socket.IPPROTO_TCP, getattr(socket, kind), int(value))


def attended(gen: Generator[Any, Any, R], look: Callable[[float, float], bool]) -> Generator[Any, Any, R]:
    """Do as ``gen``, a generator of psycopg's, and call ``look`` each time that nothing came, or went, for a moment.

    It gets the time, and since when that is so; and returns whether to count anew.
    """
    since: float | None = None
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                since = None
            else:
                now = time.monotonic()
                since = now if since is None else since
                if look(now, since):
                    since = None
            wanted = gen.send(ready)
    except StopIteration as end:
        result: R = end.value
        return result


def is_readable(fd: int) -> bool:
    """Return whether there is something to read. Not by ``select``, which is limited to 1,024 descriptors."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(0))


def is_at_work(other: Connection, backend: Backend, *, is_over: bool) -> bool:
    """Return whether a backend does something else than wait for its client.

    ``is_over``: if it waits for a lock, it waits no longer.
    """
    other.execute("SET ROLE NONE")  # another role that it acts as may know nothing of the backend
    return bool(other.execute(_AT_WORK, (is_over, *backend), prepare=False).fetchall())
