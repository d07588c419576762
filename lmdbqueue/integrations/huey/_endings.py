"""The end of a task: what it stores, and its acknowledgement, in one step.

Owns: when a task counts as done. Law: a task stays leased to its worker until its results (its value, the tasks that
follow it, its retry) are stored in the same step as its end. Must not know: LMDB, what tasks do.

Huey's storage interface takes a task out of the queue before it runs, as bytes without a receipt, so a killed worker
loses its task. The worker calls ``huey.dequeue()`` and then ``huey.execute(task)``: between the two, ``LmdbHuey`` lets
the task carry the lease.

====  ============================================================  ==================================================
step  what is done, by a worker                                     killed after it
====  ============================================================  ==================================================
1     lease the task                                                it is back in its place at once, for any worker
2     run it                                                        as 1: it runs again
3     in one transaction, store its results and acknowledge it      it is done
====  ============================================================  ==================================================

Calls that a task, a hook or a signal handler makes to Huey (starting other tasks, taking locks) are stored
immediately, as usual.

What a task is yet to store is visible to its hooks and signal handlers, and what they store takes its place.

A counter must return its value immediately, since the last task of a chord enqueues the callback. So a task is counted
immediately, together with a mark that is removed in step 3: a task that comes again between the two is counted once,
and gets the same number, also if it fails the second time and only its retry is counted. Its deletions (of the
counter, of the results of the chord) take place in step 3.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from lmdbqueue._base.errors import Empty, Full, LeaseExpiredError, QueueError, told
from lmdbqueue._host.threads import holding
from lmdbqueue._local.relay import relay
from lmdbqueue._local.state import Put, prepared, some_of
from lmdbqueue._verbs.lease import Lease
from lmdbqueue.integrations.huey._queues import Queues, key_of

_PAUSE: Final = 1.0  # seconds until a task whose end could not be stored comes again, twice as many each time
_DOUBLINGS: Final = 6  # of that pause, at most


class Outcome:
    """What a task that has run will store with its end."""

    def __init__(self, task: Any, outer: "Outcome | None") -> None:
        self.task = task
        self.outer = outer  # of the task that runs this one
        self.results: dict[str, Put | None] = {}  # by keys; None: to be removed
        self.steps: list[Callable[[], object]] = []  # which enqueue or schedule tasks
        self.marks: list[str] = []  # keys of the marks of counted tasks, to be removed
        self.uncounted: set[str] = set()  # counters to be removed
        self.is_open = True  # False while the task, a hook or a signal handler runs
        self.is_interrupted = False

    def records(self) -> dict[str, bytes | None]:
        """Return the records of its results and of those of the tasks that run it, None for those to be removed."""
        records = {} if self.outer is None else self.outer.records()
        return records | {key: None if put is None else put[2] for key, put in self.results.items()}

    def puts(self) -> dict[str, Put]:
        """Return the results to be stored."""
        return {key: put for key, put in self.results.items() if put is not None}

    def removed(self) -> dict[str, None]:
        """Return the results to be removed."""
        return {key: None for key, put in self.results.items() if put is None}

    def has_only_puts(self) -> bool:
        """Return whether there is nothing to be done but to store results."""
        return not (self.steps or self.marks or self.uncounted or self.removed())

    def forget(self, done: Mapping[str, Put | None]) -> None:
        """Forget results that have been stored or removed."""
        for key, put in done.items():
            if self.results.get(key) is put:  # otherwise another was stored meanwhile
                self.results.pop(key, None)

    def supersede(self, key: str) -> None:
        """Forget a result, also of the tasks that run this one: another was stored, or it was removed."""
        self.results.pop(key, None)
        if self.outer is not None:
            self.outer.supersede(key)

    def mark(self, counter: str) -> str:
        """Return the key of the next mark, the same whenever the task or a retry of it runs."""
        mark = key_of(f"\0{self.task.id}/{len(self.marks)}/{counter}")
        self.marks.append(mark)
        return mark


class _Here(threading.local):
    """What a thread does."""

    outcome: Outcome | None = None  # of the task that it runs
    ended: tuple[Lease[bytes], Outcome] | None = None  # the last task, whose end is not yet stored
    is_worker = False


class Endings:
    """The ends of the tasks that each thread runs; ``timeout``: seconds that a worker waits for one."""

    def __init__(self, queues: Queues, timeout: float) -> None:
        self._queues = queues
        self._timeout = timeout
        self._here = _Here()

    # --- the worker

    def begin_worker(self) -> None:
        """Make this thread store the end of a task with the beginning of the next: one wait for the disk, not two."""
        self._here.is_worker = True

    def end_worker(self) -> None:
        """Store the end of the last task."""
        self._here.is_worker = False
        self.settle()

    def take(self) -> Lease[bytes] | None:
        """Store the end of this thread's last task and lease the first one; wait a moment for one."""
        lease = self.settle(is_taking=True)
        if lease:
            return lease
        with suppress(Empty):
            return self._queues.tasks.lease(1, blocking=True, timeout=self._timeout)
        return None

    @holding
    def running(self, lease: Lease[bytes], task: object) -> Iterator[None]:
        """Collect what Huey itself stores in the block, not its task, hooks and signal handlers; then end the task."""
        outer = self._here.outcome
        outcome = Outcome(task, outer)
        raised: BaseException | None = None
        try:
            self._here.outcome = outcome
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            self._here.outcome = outer  # a statement, as no interrupt may come between: what is stored later is no part
            self._end(lease, outcome, raised)

    def begin(self) -> None:
        """Remove the ended revocations of the task that runs now, as others may come meanwhile; if it fails, later."""
        outcome = self.outcome()
        if outcome is not None and (removed := outcome.removed()):
            with suppress(QueueError, OSError):
                with self._queues.tasks.transaction():
                    self._remove((), removed)
                outcome.forget(removed)

    @holding
    def outside(self) -> Iterator[None]:
        """Store immediately what the task, its hooks and signal handlers store in the block."""
        outcome = self.outcome()
        if outcome is None:
            yield
            return
        outcome.is_open = False
        try:
            yield
        finally:
            outcome.is_open = True

    def interrupt(self, task: object) -> None:
        """Return a task to the queue when it ends, if this thread runs it; otherwise it continues, to its end."""
        outcome = self._here.outcome
        if outcome is not None and outcome.task is task:
            outcome.is_interrupted = True

    # --- the storage, as this thread sees it

    def outcome(self) -> Outcome | None:
        """Return the outcome of the task that this thread has run; None while it runs, or if there is none."""
        outcome = self._here.outcome
        return outcome if outcome is not None and outcome.is_open else None

    def do(self, step: Callable[[], object]) -> None:
        """Enqueue or schedule a task now, or with the end of the one that this thread has run."""
        outcome = self.outcome()
        if outcome is None:
            step()
        else:
            outcome.steps.append(step)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the records of results, as this thread's task leaves them; None for a missing one."""
        stored = some_of(self._queues.results, keys)
        coming = {} if self._here.outcome is None else self._here.outcome.records()
        return [coming.get(key, record) for key, record in zip(keys, stored, strict=True)]

    def put(self, key: str, record: bytes) -> None:
        """Store a result now, or with the end of the task that this thread has run."""
        outcome = self.outcome()
        if outcome is None:
            self.put_now(key, record)
        else:
            outcome.results[key] = prepared(self._queues.results, key, record)

    def put_now(self, key: str, record: bytes) -> None:
        """Store a result now, even one that the end of the task would remove."""
        self._queues.results[key] = record
        self._supersede(key)

    def remove(self, key: str) -> bytes | None:
        """Remove a result now, or with the end of the task that this thread has run; return its record, if any."""
        outcome = self.outcome()
        if outcome is None:
            stored = self._queues.results.pop(key, None)
            coming = {} if self._here.outcome is None else self._here.outcome.records()
            self._supersede(key)
            return coming.get(key, stored)
        (record,) = self.get([key])
        if record is not None:
            outcome.results[key] = None
        return record

    def _supersede(self, key: str) -> None:
        if self._here.outcome is not None:
            self._here.outcome.supersede(key)

    def count(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0; return the sum.

        What the task has stored is stored with it: the task that counts last, in another worker, reads the results of
        all.
        """
        queues = self._queues
        outcome = self.outcome()
        if outcome is None:
            mark, puts, is_gone = None, {}, False
        else:
            mark, puts, is_gone = outcome.mark(key), outcome.puts(), key in outcome.uncounted
        with queues.tasks.transaction():
            counted = None if mark is None else queues.counters.get(mark)
            if counted is not None:  # the task comes again
                number = int(counted)
            else:
                number = amount + (0 if is_gone else int(queues.counters.get(key, b"0")))
                queues.counters[key] = b"%d" % number
                if mark is not None:
                    queues.counters[mark] = b"%d" % number
                self._put_all(puts)
        if outcome is not None:
            outcome.uncounted.discard(key)
            outcome.forget(puts)
        return number

    def delete_counter(self, key: str) -> None:
        """Remove a counter now, or with the end of the task that this thread has run."""
        outcome = self.outcome()
        if outcome is None:
            self._queues.counters.pop(key, None)
        else:
            outcome.uncounted.add(key)

    def settled(self) -> Queues:
        """Return the queues for a look at all they hold, including what this thread's task has stored so far.

        That is then stored before the task's end, and stored twice if the worker is killed between. Huey itself does
        not look so.
        """
        outcome = self._here.outcome
        if outcome is not None:
            puts, steps = outcome.puts(), list(outcome.steps)
            if puts or steps:
                with self._queues.tasks.transaction():
                    self._put_all(puts)
                    for step in steps:
                        step()
                outcome.forget(puts)
                del outcome.steps[: len(steps)]
        return self._queues

    # --- the end

    def _end(self, lease: Lease[bytes], outcome: Outcome, error: BaseException | None) -> None:
        """Store the results of a task in one step with its acknowledgement: now, or in a worker with the next ``take``.

        An error of the storage, or an interrupt, returns the task to the queue. Any other error, such as a result that
        cannot be serialized, would come again each time, so the task becomes a dead letter with that reason.
        """
        if outcome.is_interrupted:
            lease.nack(delay=self._timeout + _PAUSE, reason="it was interrupted")  # since the other workers end, too
        elif error is None:
            self._here.ended = lease, outcome
            if outcome.outer is not None or not self._here.is_worker:
                self.settle()
        else:
            reason = told(error)
            with suppress(QueueError):
                if isinstance(error, (QueueError, OSError)) or not isinstance(error, (Exception, SystemExit)):
                    lease.nack(delay=_PAUSE, reason=reason)
                else:
                    with self._queues.tasks.transaction():
                        self._remove(outcome.marks, ())
                        lease.reject(reason=reason)

    def settle(self, *, is_taking: bool = False) -> Lease[bytes] | None:
        """Store the end of this thread's last task; with ``is_taking``, lease the next one in the same step."""
        if self._here.ended is None:
            return None
        lease, outcome = self._here.ended
        try:
            self._here.ended = None
            puts = outcome.puts()
            if outcome.has_only_puts():
                with suppress(Full):  # then a lease may have room where both have none
                    return relay(self._queues.tasks, lease, None, int(is_taking), list(puts.values()))
            with self._queues.tasks.transaction():
                self._put_all(puts)
                for step in outcome.steps:
                    step()
                self._remove([*outcome.marks, *outcome.uncounted], outcome.removed())
                lease.ack()
                return self._queues.tasks.lease() if is_taking else None
        except LeaseExpiredError:
            raise
        except BaseException as error:
            with suppress(QueueError):
                lease.nack(delay=_PAUSE * 2 ** min(lease.attempts[0] - 1, _DOUBLINGS), reason=told(error))
            raise

    def _put_all(self, puts: Mapping[str, Put]) -> None:
        for key, (_, _, record) in puts.items():
            self._queues.results[key] = record

    def _remove(self, counters: Iterable[str], results: Iterable[str]) -> None:
        for key in counters:
            self._queues.counters.pop(key, None)
        for key in results:
            self._queues.results.pop(key, None)
