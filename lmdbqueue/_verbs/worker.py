"""The loop of a worker: lease, call, acknowledge, or back off.

Owns: when an item is tried again, how a worker is stopped, how a lease is kept alive. Law: a signal ends a wait
at once and never a handler; what was begun is settled before the loop ends. Must not know: how leases are kept.

Stopping. The handler of a signal runs in the main thread between two steps of whatever that is doing. While the
loop waits it raises, which ends the wait, and nothing was taken yet; at any other time it only sets a flag.
The old handlers are back from then on, so a second signal does what it would have done without the loop.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from lmdbqueue._errors import LeaseExpiredError, QueueError, ShutDown
from lmdbqueue._host.signals import stopped_by_signals
from lmdbqueue._host.threads import beating
from lmdbqueue._verbs.encoding import checked_ttl
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.lease import Lease

LOOK: Final = 1.0  # seconds between two looks at ``stop``


class Event(Protocol):
    """A ``threading.Event``, or the like."""

    def is_set(self) -> bool: ...


Stop = Event | Callable[[], bool]


class Retry(NamedTuple):
    """When an item whose handler raised is tried again: after ``base`` seconds, then ``factor`` times that, and so on.

    At most ``max_delay`` seconds; ``jitter``: by what part, at random, the delay may be longer or shorter. An item
    that was leased ``max_attempts`` times goes to the dead letters.
    """

    max_attempts: int | None = 5
    base: float = 1.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.1

    def delay(self, attempts: int) -> float:
        """Return the seconds until the next try of an item that was tried so often."""
        import random  # noqa: PLC0415  (for who works, not for who imports)

        try:
            delay = min(self.max_delay, self.base * self.factor ** (attempts - 1))
        except OverflowError:
            delay = self.max_delay
        return delay * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311


DEFAULT_RETRY: Final = Retry()


class Worked(NamedTuple):
    """How many items a worker has acknowledged, given back, and sent to the dead letters."""

    done: int = 0
    retried: int = 0
    dead: int = 0

    def after(self, lease: Lease[Any], retry: Retry, error: Exception | None) -> "Worked":
        """Return the counts after one more lease."""
        if error is None:
            return self._replace(done=self.done + len(lease))
        dead = sum(retry.max_attempts is not None and each >= retry.max_attempts for each in lease.attempts)
        return self._replace(retried=self.retried + len(lease) - dead, dead=self.dead + dead)


def give_back(lease: Lease[Any], retry: Retry, error: Exception) -> None:
    """Give back what a handler failed at."""
    reason = f"{type(error).__name__}: {error}"
    for attempts in set(lease.attempts):
        seqs = [seq for seq, each in zip(lease.seqs, lease.attempts, strict=True) if each == attempts]
        lease.nack(seqs, retry.delay(attempts), reason, max_attempts=retry.max_attempts)


def warn(late: LeaseExpiredError) -> None:
    """Tell that a handler was too slow."""
    import logging  # noqa: PLC0415  (as above)

    logging.getLogger("lmdbqueue").warning("%s", late)


def is_set(stop: Stop | None) -> bool:
    """Tell whether a worker shall stop."""
    return stop is not None and (stop() if callable(stop) else stop.is_set())


class _Stopped(BaseException):
    """A signal came amid a wait."""


class Loop:
    """One call of ``work``."""

    def __init__(
        self,
        head: Head[Any],
        handler: Callable[[Any], object],
        *,
        items: int,
        ttl: float,
        retry: Retry,
        stop: Stop | None,
        progress: Callable[[Worked], object] | None,
    ) -> None:
        self._head = head
        self._handler = handler
        self._items = items
        checked_ttl(ttl)
        self._ttl = ttl
        self._retry = retry
        self._stop = stop
        self._progress = progress
        self._is_stopped = False
        self._is_waiting = False
        self._worked = Worked()
        self._lease: Lease[Any] | None = None  # what the handler has

    def run(self) -> Worked:
        """Work until told to stop."""
        with stopped_by_signals(self._end), beating(self._keep, self._ttl / 3), suppress(ShutDown, _Stopped):
            while not self._is_stopped and not is_set(self._stop):
                if self._wait():
                    self._once()
        return self._worked

    def _keep(self) -> None:
        """Let the lease live on, if there is one at the time."""
        lease = self._lease
        if lease is not None:
            with suppress(QueueError):  # its ack will tell
                lease.extend(self._ttl)

    def _once(self) -> None:
        engine = self._head.engine
        found = engine.lease(self._items, self._ttl, self._head.sort_out)
        if found is None:
            return  # another was faster
        lease = Lease(engine, *found)
        error: Exception | None = None
        try:
            with lease:
                self._lease = lease
                try:
                    self._handler(lease.items if self._items > 1 else lease.items[0])
                except Exception as raised:
                    error = raised
                    give_back(lease, self._retry, error)
                finally:
                    self._lease = None
        except LeaseExpiredError as late:
            warn(late)
            return
        self._worked = self._worked.after(lease, self._retry, error)
        if self._progress is not None:
            self._progress(self._worked)

    def _wait(self) -> bool:
        """Wait for an item, for a while; tell whether there is one."""
        if self._anything():
            return True
        ticket = self._head.engine.listen()
        if self._anything():
            return True
        with suppress(_Stopped):
            try:
                self._is_waiting = True  # only in the sleep: what an engine is at must not be interrupted
                if not self._is_stopped:
                    self._head.engine.sleep(ticket, LOOK)
            finally:
                self._is_waiting = False
        return False

    def _anything(self) -> bool | None:
        return self._head.if_enough(1, lambda: bool(self._head.candidates(1)) or None)

    def _end(self) -> None:
        self._is_stopped = True
        if self._is_waiting:
            raise _Stopped
