"""The loop of a worker: lease, call, acknowledge, or back off.

Owns: when an item is tried again, how a worker is stopped, how a lease is kept alive. Law: a signal ends a wait
immediately, but never a handler; items that were begun are settled before the loop ends. Must not know: how leases are
kept.

An item's ack and the lease of the next are one step where the engine can do that, since each alone would be a commit.
If the worker is told to stop just then, the lease is undone, and counts as no attempt. A worker that has had an item
leases the next without looking first whether there is one.

Stopping. A signal handler runs in the main thread, between two steps of whatever that thread is doing. While the loop
waits, the handler raises, which ends the wait before anything was taken; at any other time it only sets a flag. After
the first signal the old handlers are restored, so a second one does what it would have done without the loop.
"""

import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from lmdbqueue._base.errors import LeaseExpiredError, QueueError, ShutDown, told
from lmdbqueue._base.values import Leased, Nacked
from lmdbqueue._host.signals import stopped_by_signals
from lmdbqueue._host.threads import beating
from lmdbqueue._verbs.head import Batch, Head
from lmdbqueue._verbs.lease import Lease, ReturnedOnError, delivered, forsake, relay_all, undo
from lmdbqueue._verbs.options import OPENING, Rule, check, seconds

LOOK: Final = 1.0  # seconds between two checks of ``stop``
_LONGEST_TRACE: Final = 8_000  # characters of a traceback that are kept


class Event(Protocol):
    """A ``threading.Event``, or something like it."""

    def is_set(self) -> bool: ...


Stop = Event | Callable[[], bool]


class Retry(NamedTuple):
    """When ``work`` tries an item again after its handler has raised.

    The delays grow from ``base`` seconds by ``factor``, up to ``max_delay``. The default tries an item 13 times, the
    last time about 68 minutes after the first, so an outage of an hour makes no dead letters.

    Attributes:
        max_attempts: Leases after which an item becomes a dead letter; None: the limit of the queue object, which
            applies in any case if it is lower.
        base: Seconds until the second attempt.
        factor: The ratio of each delay to the previous one.
        max_delay: The longest delay, in seconds.
        jitter: The fraction by which a delay is randomly longer or shorter.
    """

    max_attempts: int | None = 13
    base: float = 1.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.1

    def delay(self, attempts: int) -> float:
        """Return the seconds until the next attempt.

        Args:
            attempts: The number of attempts so far.
        """
        import random  # noqa: PLC0415  (only workers need it)

        try:
            delay = min(self.max_delay, self.base * self.factor ** (attempts - 1))
        except OverflowError:
            delay = self.max_delay
        return delay * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311


DEFAULT_RETRY: Final = Retry()

_RETRY: Final = {"retry": Rule("a Retry", (Retry,), fits=lambda _: True)}
_FIELDS: Final = {
    "retry.max_attempts": OPENING["max_attempts"],
    "retry.base": seconds(),
    "retry.factor": Rule("a number, 1 to 1,000,000", (int, float), 1, 1_000_000),
    "retry.max_delay": seconds(),
    "retry.jitter": Rule("a fraction, 0 to 1", (int, float), 0, 1),
}


def checked_retry(retry: Retry, limit: int | None) -> Retry:
    """Return a ``Retry`` that keeps the limit of the queue object; raise for fields that make no sense.

    Args:
        retry: As the user gave it.
        limit: The ``max_attempts`` of the queue object.
    """
    check(_RETRY, retry=retry)
    check(_FIELDS, **{f"retry.{name}": value for name, value in retry._asdict().items()})
    if limit is not None and retry.max_attempts is not None and retry.max_attempts > limit:
        return retry._replace(max_attempts=limit)
    return retry


class Job(NamedTuple):
    """The facts of an item, for handlers with a second parameter and for hooks.

    Attributes:
        seq: Its sequence number.
        attempts: The number of its leases, including this one.
        headers: The headers of its push.
        pushed_at: The time of its push, or of the end of its delay, in seconds since 1970.
    """

    seq: int
    attempts: int
    headers: Mapping[str, str]
    pushed_at: float


class Worked(NamedTuple):
    """The result of ``work``, and its progress.

    Attributes:
        done: Items acknowledged.
        retried: Items given back, to be tried again.
        dead: Items turned into dead letters.
        removed: Items whose handler failed, and which had left for good by then: replaced, expired, or dropped.
    """

    done: int = 0
    retried: int = 0
    dead: int = 0
    removed: int = 0


Hook = Callable[[Job, Exception], object]


class Plan(NamedTuple):
    """The arguments of ``work``."""

    handler: Callable[..., Any]
    takes_job: bool
    batch: Batch
    ttl: float
    retry: Retry
    stop: Stop | None
    progress: Callable[[Worked], object] | None
    on_retry: Hook | None
    on_dead: Hook | None

    @property
    def wants_jobs(self) -> bool:
        """Whether the handler or a hook wants jobs, not only items."""
        return self.takes_job or self.on_retry is not None or self.on_dead is not None

    @property
    def relays(self) -> bool:
        """Whether an item may be leased in the step that acknowledges another.

        A function of the user's that is called between the two, ``progress`` or ``stop``, may close the queue, look at
        its items, or take longer than a lease lasts: then they are two steps.
        """
        return self.batch.items == 1 and self.progress is None and not callable(self.stop)


def takes_job(handler: Callable[..., Any], *, is_awaited: bool) -> bool:
    """Return whether a handler takes a second argument; raise ``TypeError`` for one that cannot be called so."""
    called = function_of(handler)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        message = f"{handler!r} is a generator function, and a call of it does nothing: write it without yield"
        raise TypeError(message)
    is_coroutine = inspect.iscoroutinefunction(called)
    if is_coroutine and not is_awaited:
        message = f"{handler!r} is a coroutine function: await the work() of lmdbqueue.aio for it"
        raise TypeError(message)
    # A lambda, or an object with a plain __call__, such as an AsyncMock, may return something to await. A decorator may
    # make a coroutine function of a plain one, or hide one.
    can_be_told = inspect.isfunction(called) and called.__name__ not in ("<lambda>", "__call__")
    innermost = inspect.unwrap(called, stop=inspect.iscoroutinefunction)
    if is_awaited and can_be_told and not inspect.iscoroutinefunction(innermost):
        message = f"{handler!r} is not a coroutine function: use async def, or the work() of a PersistentQueue"
        raise TypeError(message)
    return takes_second(handler, "its job")


def function_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a call of ``fn`` runs: a partial, a method and an object have one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    call = fn if inspect.isroutine(fn) else type(fn).__call__
    return getattr(call, "__func__", call)


def refuse_coroutines(**hooks: object) -> None:
    """Raise ``TypeError`` for a hook that is a coroutine function: hooks are not awaited, even where handlers are."""
    for name, hook in hooks.items():
        if callable(hook) and inspect.iscoroutinefunction(function_of(hook)):
            message = f"'{name}' is called and not awaited: give a plain function, not {hook!r}, a coroutine function"
            raise TypeError(message)


def refuse_unawaited(result: object, what: str = "the handler", advice: str = "use work() of lmdbqueue.aio") -> None:
    """Raise ``TypeError`` for a coroutine or generator that a function of the user's returned: nothing was done."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
    elif not inspect.isasyncgen(result):
        return
    message = f"{what} returned a coroutine or generator, which nobody runs: await it, or {advice}"
    raise TypeError(message)


def takes_second(fn: Callable[..., Any], second: str) -> bool:
    """Return whether a function of an item needs a second argument; raise ``TypeError`` if it takes neither."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # a function of C without a signature
        return False
    with suppress(TypeError):
        signature.bind(None)
        return False
    try:
        signature.bind(None, None)
    except TypeError as error:
        message = f"{fn!r} cannot be called with an item, or with an item and {second}: {error}"
        raise TypeError(message) from None
    return True


class Group(NamedTuple):
    """Items of a lease that one call of the handler processes."""

    places: list[int]  # in the lease

    def arguments(self, lease: Lease[Any], jobs: list[Job], plan: Plan) -> tuple[Any, ...]:
        """Return the arguments for the handler."""
        items: Any = [lease.items[place] for place in self.places]
        some: Any = [jobs[place] for place in self.places] if plan.takes_job else None
        if plan.batch.items == 1:
            items, some = items[0], some and some[0]
        return (items, some) if plan.takes_job else (items,)

    def seqs(self, lease: Lease[Any]) -> list[int]:
        """Return the numbers of the items."""
        return [lease.seqs[place] for place in self.places]


def groups(lease: Lease[Any]) -> list[Group]:
    """Return the groups of a lease: items tried for the first time together, those that failed before one by one."""
    fresh = [place for place, attempts in enumerate(lease.attempts) if attempts == 1]
    tried = [Group([place]) for place, attempts in enumerate(lease.attempts) if attempts > 1]
    return ([Group(fresh)] if fresh else []) + tried


def jobs_of(lease: Lease[Any]) -> list[Job]:
    """Return the items of a lease as jobs."""
    return list(map(Job._make, zip(lease.seqs, lease.attempts, lease.headers, lease.pushed_at, strict=True)))


def give_back(lease: Lease[Any], group: Group, plan: Plan, error: Exception) -> Nacked:
    """Give back the items that a handler failed on; log and return what became of each."""
    import traceback  # noqa: PLC0415  (not every program needs it)

    trace = "".join(traceback.format_exception(error))[-_LONGEST_TRACE:]
    seqs, attempts = group.seqs(lease), lease.attempts[group.places[0]]  # the same for all of a group
    delay = plan.retry.delay(attempts)
    fates = [(seqs, "not given back")]
    try:
        nacked = lease.nack(seqs, delay, told(error), max_attempts=plan.retry.max_attempts, trace=trace)
        told_of = f"tried again in {delay:.1f} s", "a dead letter now", "replaced, expired or dropped meanwhile"
        fates = [*zip(nacked, told_of, strict=True), (sorted({*seqs}.difference(*nacked)), "no longer leased")]
    finally:  # whatever has become of the items, the error is told
        for some, fate in fates:
            if some:
                logger().error(
                    "items %s of %r failed, attempt %d: %s", some, lease.queue_name, attempts, fate, exc_info=error
                )
    return nacked


def call_hooks(group: Group, jobs: list[Job], plan: Plan, error: Exception, nacked: Nacked) -> None:
    """Tell the hooks what became of the items; an error of a hook is logged."""
    hooks = dict.fromkeys(nacked.returned, plan.on_retry) | dict.fromkeys(nacked.dead, plan.on_dead)
    for job in [jobs[place] for place in group.places] if jobs else []:
        hook = hooks.get(job.seq)
        if hook is not None:
            try:
                hook(job, error)
            except Exception:
                logger().exception("%r raised", hook)


def with_failed(worked: Worked, nacked: Nacked) -> Worked:
    """Return counts that include items that a handler failed on."""
    return worked._replace(
        retried=worked.retried + len(nacked.returned),
        dead=worked.dead + len(nacked.dead),
        removed=worked.removed + len(nacked.removed),
    )


def logger() -> Any:
    """Return the logger of workers."""
    import logging  # noqa: PLC0415  (as above)

    return logging.getLogger("lmdbqueue.work")


def is_set(stop: Stop | None) -> bool:
    """Return whether a worker should stop."""
    return stop is not None and (stop() if callable(stop) else stop.is_set())


class Tally:
    """The counts and the end of a worker, shared by its threads."""

    def __init__(self, progress: Callable[[Worked], object] | None) -> None:
        self.is_stopped = False
        self.worked = Worked()
        self._progress = progress
        self._untold: deque[Worked] = deque()
        self._is_telling = False  # whether a thread is reporting; it continues while there is something to report
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Stop every thread."""
        self.is_stopped = True

    def add(self, done: int, failed: Worked) -> None:
        """Count settled items, and report progress."""
        with self._lock:
            done_before, retried, dead, removed = self.worked
            self.worked = Worked(
                done_before + done, retried + failed.retried, dead + failed.dead, removed + failed.removed
            )
            if self._progress is None:
                return
            self._untold.append(self.worked)
            if self._is_telling:
                return
            self._is_telling = True
        try:
            while (told := self._next()) is not None:
                self._progress(told)
        except BaseException:
            self._is_telling = False
            raise

    def _next(self) -> Worked | None:
        """Return the next counts to report, None if there are none; takes no lock."""
        with self._lock:
            self._is_telling = bool(self._untold)
            return self._untold.popleft() if self._untold else None


class _Stopped(BaseException):
    """A signal came during a wait."""


class Loop:
    """One thread of a worker."""

    def __init__(self, head: Head[Any], plan: Plan, tally: Tally) -> None:
        self._head = head
        self._plan = plan
        self._tally = tally
        self._is_waiting = False
        self._lease: Lease[Any] | None = None  # the lease that the handler is working on
        self._thread = threading.get_ident()

    def run(self) -> Worked:
        """Work until told to stop, which a signal does, too."""
        with stopped_by_signals(self._end):
            self.serve()
        return self._tally.worked

    def serve(self) -> None:
        """Work until told to stop."""
        with beating(self._keep, self._plan.ttl / 3), suppress(ShutDown, _Stopped):
            has_more = False
            while not self._is_stopped():
                if has_more or self._wait():
                    has_more = self._once()

    def _keep(self) -> None:
        """Extend the lease, if there is one at the moment."""
        lease = self._lease
        if lease is not None:
            with suppress(QueueError):  # the ack will raise the error
                lease.extend(self._plan.ttl)

    def _once(self) -> bool:
        """Lease and handle items; return whether there may be more, which need not be waited for."""
        plan, head = self._plan, self._head
        if plan.batch.linger:
            head.fill(plan.batch, 0.0)
        lease = functools.partial(head.engine.lease, plan.batch.items, plan.ttl, head.sort_out, plan.batch.max_bytes)
        known = tuple(head.engine.claims)
        try:
            found = head.if_enough(1, lease)
            has_found = found is not None  # otherwise another consumer was faster
            while found is not None:
                found = self._handle(Lease(head.engine, *found))
        except BaseException:
            forsake(head.engine, known)
            raise
        return has_found and not plan.batch.linger

    def _handle(self, lease: Lease[Any]) -> tuple[list[Any], Leased] | None:
        """Have the items of a lease handled, and settle them; return the next lease if it came with the ack."""
        plan = self._plan
        done, failed = 0, Worked()
        following: tuple[list[Any], Leased] | None = None
        try:
            with ReturnedOnError(lease):
                self._lease = delivered(lease)  # from here on the block settles the items
                try:
                    jobs = jobs_of(lease) if plan.wants_jobs else []
                    for group in groups(lease):
                        try:
                            refuse_unawaited(plan.handler(*group.arguments(lease, jobs, plan)))
                        except Exception as error:
                            nacked = give_back(lease, group, plan, error)
                            failed = with_failed(failed, nacked)
                            call_hooks(group, jobs, plan, error, nacked)
                        else:
                            following = self._ack(lease, group)
                            done += len(group.places)
                finally:
                    self._lease = None
        except LeaseExpiredError as late:
            logger().warning("%s", late)
        if done or any(failed):
            self._tally.add(done, failed)
        if following is not None and self._is_stopped():
            unwanted = Lease(self._head.engine, *following)
            undo(unwanted)
            delivered(unwanted)
            return None
        return following

    def _ack(self, lease: Lease[Any], group: Group) -> tuple[list[Any], Leased] | None:
        """Acknowledge items whose handler has returned; return the next lease, if it could be had in the same step."""
        plan, head = self._plan, self._head
        if not plan.relays or self._is_stopped():
            lease.ack(group.seqs(lease))
            return None
        ((error, following),) = relay_all(head.engine, [lease], plan.ttl, head.sort_out)
        if error is not None:
            raise error
        return following

    def _is_stopped(self) -> bool:
        return self._tally.is_stopped or is_set(self._plan.stop)

    def _wait(self) -> bool:
        """Wait for an item for up to a second or so; return whether there is one."""
        if self._anything():
            return True
        ticket = self._head.engine.listen()
        if self._anything():
            return True
        with suppress(_Stopped):
            try:
                self._is_waiting = True  # only during the sleep: steps of an engine must not be interrupted
                if not self._tally.is_stopped:
                    self._head.engine.sleep(ticket, LOOK)
            finally:
                self._is_waiting = False
        return False

    def _anything(self) -> bool | None:
        return self._head.if_enough(1, lambda: bool(self._head.candidates(1)) or None)

    def _end(self) -> None:
        self._tally.stop()
        if self._is_waiting and threading.get_ident() == self._thread:  # otherwise it checks within a second
            raise _Stopped


def run_threads(head: Head[Any], plan: Plan, tally: Tally, n: int) -> Worked:
    """Work in ``n`` threads until told to stop; after all have ended, raise the first error of one of them."""
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            Loop(head, plan, tally).serve()
        except BaseException as error:  # raised again by the thread that called work()
            failed.append(error)
            tally.stop()

    with stopped_by_signals(tally.stop):
        threads = [threading.Thread(target=serve, name=f"lmdbqueue work {number}") for number in range(n)]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                threads[-1].join(LOOK / 10)
                threads.sort(key=threading.Thread.is_alive)
                if tally.is_stopped:
                    with suppress(QueueError):
                        head.engine.wake()
        finally:
            tally.stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if failed:
        raise failed[0]
    return tally.worked
