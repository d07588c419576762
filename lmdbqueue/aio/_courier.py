"""The threads that carry the calls of an event loop to a queue, and the results back.

Owns: how calls reach the worker and results their callers, what happens to an item that no caller received. Law: an
item that was taken is received once, or put back under its old number; the loop is woken once for a group of calls,
and never blocked. Must not know: what the verbs mean to their callers, which calls share a commit (``_grouping``).

The worker does all calls that have arrived, acks first. A call that waits, for an item or for room, is a sleeper: it is
tried again before each of these groups. As long as there are sleepers, the listener makes the worker try them when the
bell rings. It first begins to listen and *then* asks for an attempt, so no ring is missed (see ``_host.bell``). That
takes two threads, for any number of sleepers.

While a server is unreachable, each call has one deadline, counted from when it was made or last woken. The worker tries
it no longer than that, and the loop answers calls whose time is over while the worker is busy with another.

A function of the caller's that runs in the worker, such as that of a transaction, may make the loop run a coroutine and
wait for it. If that called this object, the worker would wait for itself. Whatever a thread hands to a loop, by
``run_coroutine_threadsafe`` or ``call_soon_threadsafe``, runs in a copy of the thread's context; so the worker puts its
present round there, and a call that comes from it while it lasts is refused.

The result of a call is unclaimed until the coroutine of its caller has resumed with it. That its future has a result
does not suffice: the loop may end before it resumes the task. Either the caller removes the call from the unclaimed
ones, and returns the result; or the worker does, and undoes the call, and the caller raises ``ClosedError``. Callers
never undo anything themselves: one may be running in the garbage collector, which drops the tasks of a closed loop, or
in a loop that must not be blocked.

A caller that is cancelled: a call not yet begun is not made. A push under way is stored completely or not at all. Items
that a take or a lease under way has removed are put back by the worker; if the process dies at that moment they are
lost, like all items popped by a process that then dies.

The end, of this object, its loop or the program, is one step of the worker: it undoes all unclaimed calls, and closes
the queue. ``close`` first lets earlier callers receive their results. A loop tells nobody that it was closed, but it
drops its timers then; so one of them has a callback that wakes the worker when it is dropped. The end of the program
waits for the worker, but not without limit.
"""

import asyncio
import atexit
import logging
import threading
import time
import weakref
from _thread import start_new_thread
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from itertools import groupby
from operator import attrgetter
from queue import Empty as NothingLeft
from queue import SimpleQueue
from typing import Any, Final

from lmdbqueue._base.errors import ClosedError, CommitUnknownError, NestedCallError, QueueError
from lmdbqueue._host import fork
from lmdbqueue._host.fork import at_fork
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.aio._grouping import Grouping, Result
from lmdbqueue.aio._jobs import Ack, Call, Job, Relay

_LONG: Final = 3600.0  # seconds; a bell wakes its sleepers more often
_PAUSE: Final = 0.25  # seconds before the listener asks an unreachable server again


_KIND: Final = attrgetter("kind")

_RANKS: Final[dict[type[Job], int]] = {Ack: 0, Relay: 1}
_END: Final = Job()  # tells the worker to end
_EVER: Final = float("inf")
_PATIENCE: Final = 30.0  # seconds for which the end of a program waits for all workers
_NEVER: Final = 1e9  # seconds, for a timer: 31 years

_amid: ContextVar[object] = ContextVar("_amid")  # the round of a worker that a call comes from

_working: "weakref.WeakSet[Courier]" = weakref.WeakSet()


def _finish_at_exit(courier: "Courier") -> None:
    """Make the end of the program wait for a courier.

    Registered anew for each courier, after its queue was opened, so that it runs before the queues are closed:
    functions registered last run first.
    """
    atexit.unregister(_finish_all)
    atexit.register(_finish_all)
    _working.add(courier)


def _finish_all() -> None:
    couriers = list(_working)
    for courier in couriers:
        courier.finish()
    deadline = time.monotonic() + _PATIENCE
    for courier in couriers:
        courier.wait_until_over(max(0.0, deadline - time.monotonic()))


def _forget_all() -> None:
    """Have no couriers in a forked child: it has none of the threads, and receives none of the results."""
    for courier in list(_working):
        courier.forget()
    _working.clear()


at_fork("couriers", in_child=_forget_all)


def is_dropped() -> bool:
    """Return whether this coroutine is not resumed but dropped, with its loop: it can await nothing any more."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _of_future(error: BaseException) -> BaseException:
    """Return the error in a form that a future accepts: StopIteration becomes RuntimeError, as in a coroutine."""
    if not isinstance(error, StopIteration):
        return error
    raised = RuntimeError("a function of the caller's raised StopIteration")
    raised.__cause__ = error
    return raised


class _Dropped:
    """A callback that is never called, and calls another function when it is dropped."""

    def __init__(self, fn: Callable[[], object]) -> None:
        self._fn = fn

    def __call__(self) -> None:
        """Do nothing."""

    def __del__(self) -> None:
        self._fn()


class Courier:
    """The threads of one asynchronous queue. Make it in the loop; they start with the first call."""

    def __init__(self, queue: Queue[Any], loop: AbstractEventLoop) -> None:
        self._queue = queue
        self._head = head_of(queue)
        self._engine = self._head.engine
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()  # None: try the sleepers
        self._grouping = Grouping(self._head)
        self._is_wanted = threading.Event()  # the listener
        self._threads: list[Callable[[], None]] = [self._listen, self._work]  # not yet started, first one last
        self._round: object = None  # of jobs that the worker is doing at the moment
        self._is_closed = False  # to new calls
        self._has_ended = False
        self._is_over = threading.Event()  # the worker has nothing left to do
        self._undelivered: deque[list[Result]] = deque()  # results that the loop was asked to deliver, and has not yet
        self._unclaimed: dict[Job, Any] = {}  # results that callers have not received, of calls that can be undone
        timer = loop.call_later(_NEVER, _Dropped(partial(self._jobs.put, None)), context=Context())
        self._timer = weakref.ref(timer)  # dropped by the loop when it is closed

    # --- in the loop

    def carry(self, job: Job) -> None:
        """Hand a job to the worker.

        Raises ``ClosedError``, ``NestedCallError``; ``RuntimeError`` in another loop than this object's.
        """
        fork.notice()
        if self._is_closed:
            raise ClosedError(self._engine.path)
        if asyncio.get_running_loop() is not self._loop:  # it would be done, but nobody could await its result
            message = f"this object for {self._engine.path!r} belongs to another event loop: open one in each loop"
            raise RuntimeError(message)
        if self._round is not None and _amid.get(None) is self._round:
            raise NestedCallError(self._engine.path)
        job.latest = job.deadline
        if self._engine.patience != _EVER:
            job.deadline = min(job.latest, time.monotonic() + self._engine.patience)
        self._send(job)

    def give_up(self, job: Job) -> None:
        """Answer a job whose time is over, if the worker cannot, since it is waiting for an unreachable server."""
        if self._engine.is_away and job.withdraw() and not job.future.done():
            job.future.set_exception(self._grouping.refusal())
        else:
            self.look()

    def look(self) -> None:
        """Try the waiting calls again."""
        if not self._is_closed:
            self._send(None)

    def close(self, future: "Future[Any]") -> None:
        """Finish earlier calls, refuse sleepers, close the queue, end the threads."""
        finished: Future[Any] = self._loop.create_future()
        self.carry(Call(finished, self._refuse_sleepers))
        self._is_closed = True

        def end(_: object) -> None:  # all callers whose results were delivered before have resumed
            if (timer := self._timer()) is not None:
                timer.cancel()
            self._send(Call(future, self._end))

        finished.add_done_callback(end)

    def claim(self, job: Job, result: Any) -> None:
        """Receive the result of a job. Raises ``ClosedError`` if it was undone, since this object has ended."""
        if job.has_effect(result) and self._unclaimed.pop(job, None) is None:
            raise ClosedError(self._engine.path)

    def take_back(self, job: Job) -> "Future[bool]":
        """Undo a job that nobody has claimed; the result is whether it was undone.

        Like all that a finalizer may call, it takes no lock and waits for nothing.
        """
        undoing = Call(self._loop.create_future(), partial(self._undo, job))
        if job in self._unclaimed:
            self._jobs.put(undoing)
        else:
            undoing.future.set_result(False)
        return undoing.future

    def leave(self, fn: Callable[[], object]) -> None:
        """Call a function in the worker for a caller who is dropped; take no lock and wait for nothing."""
        self._jobs.put(Call(self._loop.create_future(), fn))

    def _send(self, job: Job | None) -> None:
        while self._threads:  # each is started once, by whichever call comes first
            start_new_thread(self._threads[-1], ())
            self._threads.pop()
            _finish_at_exit(self)
        self._jobs.put(job)

    def _deliver(self) -> None:
        """Deliver all results that there are; after an interrupt, those that it has left, too."""
        try:
            while self._undelivered:
                for job, result, error in self._undelivered[0]:
                    if job.future.cancelled():
                        self.take_back(job)
                    elif job.future.done():  # by a call of this that was interrupted
                        continue
                    elif error is None:
                        job.future.set_result(result)
                    else:
                        job.future.set_exception(_of_future(error))
                self._undelivered.popleft()
        except BaseException:
            self._loop.call_soon(self._deliver)
            raise

    # --- at the end of the loop or program, and after a fork

    def finish(self) -> None:
        """Tell the worker to end; take no lock and wait for nothing."""
        if not self._has_ended:
            self._jobs.put(_END)

    def wait_until_over(self, timeout: float) -> None:
        """Wait until the worker has put back what nobody has received, at most ``timeout`` seconds."""
        if not self._threads and not self._is_over.wait(timeout) and self._unclaimed:
            message = "%s: the items taken by %d calls are lost, since the program ended before they could be put back"
            logging.getLogger("lmdbqueue").error(message, self._engine.path, len(self._unclaimed))

    def forget(self) -> None:
        """Refuse all calls in a forked child; their results belong to the parent."""
        self._is_closed = self._has_ended = True
        self._unclaimed.clear()

    # --- the worker

    def _work(self) -> None:
        try:
            self._work_until_ended()
        finally:
            self._is_over.set()

    def _work_until_ended(self) -> None:
        while not self._has_ended:
            new = self._wait_for_jobs()
            self._wake()
            sleepers = [] if self._loop.is_closed() else self._grouping.sleepers  # nobody waits any more
            jobs = [*sleepers, *new]
            self._grouping.sleepers = []
            live = [job for job in jobs if job is not None and job is not _END]
            live.sort(key=_rank)  # changes nothing except that acks come first
            for kind, group in groupby(live, _KIND):
                self._round = object()
                _amid.set(self._round)
                try:
                    results = [self._noted(result) for result in self._grouping.done(kind, list(group))]
                finally:
                    self._round = None
                self._report(results)
            if _END in jobs or self._loop.is_closed():
                self._end()
            if self._grouping.sleepers:
                self._is_wanted.set()
            else:
                self._is_wanted.clear()
        self._refuse_sleepers()
        self._is_wanted.set()

    def _noted(self, done: Result) -> Result:
        """Note a result as unclaimed, as soon as there is one."""
        job, result, _ = done
        if job.has_effect(result):
            self._unclaimed[job] = result
        return done

    def _wake(self) -> None:
        """Give sleeping calls a new deadline, since the server had answered them."""
        self._engine.hurry(_EVER)
        deadline = time.monotonic() + self._engine.patience
        for job in self._grouping.sleepers:
            job.deadline = min(job.latest, deadline)

    def _wait_for_jobs(self) -> list[Job | None]:
        jobs = [self._jobs.get()]
        with suppress(NothingLeft):
            while True:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _report(self, results: list[Result]) -> None:
        self._undelivered.append(results)
        with suppress(RuntimeError):  # the loop is closed: no caller is waiting any more
            self._loop.call_soon_threadsafe(self._deliver)

    def _refuse_sleepers(self) -> None:
        sleepers, self._grouping.sleepers = self._grouping.sleepers, []
        self._report([(job, None, ClosedError(self._engine.path)) for job in sleepers])

    def _undo(self, job: Job) -> bool:
        """Undo a job, unless its caller has received the result; return whether it is undone. If not, it stays."""
        result = self._unclaimed.pop(job, None)
        if result is None:
            return False
        is_undone = False
        try:
            is_undone = job.undo(self._head, result)
        except CommitUnknownError:
            is_undone = True  # or not: it must not be done twice
            raise
        finally:
            if not is_undone:
                self._unclaimed[job] = result
        return is_undone

    def _undo_all(self) -> None:
        for job in list(self._unclaimed):
            try:
                self._undo(job)
            except QueueError:
                message = "%s: the items taken by a call are lost, since they could not be put back"
                logging.getLogger("lmdbqueue").exception(message, self._engine.path)

    def _end(self) -> None:
        self._engine.hurry(_EVER)
        self._engine.one_call(self._undo_all)
        self._has_ended = True
        self._queue.close()

    # --- the listener

    def _listen(self) -> None:
        with suppress(ClosedError):
            while not self._has_ended:
                self._is_wanted.wait()
                try:
                    ticket = self._engine.listen()
                    self._jobs.put(None)
                    self._engine.sleep(ticket, _LONG)
                except ClosedError:
                    raise
                except QueueError:  # the server is unreachable: waiters learn it when they are tried
                    self._jobs.put(None)
                    time.sleep(_PAUSE)


def _rank(job: Job) -> int:
    return _RANKS.get(type(job), len(_RANKS))
