"""Huey on a queue that loses no running task: the extra ``huey``.

Owns: where Huey's data are kept; when a task counts as done. Law: a task stays leased to its worker until its results
(its value, the tasks that follow it, its retry) are stored in the same step as its end. Must not know: LMDB, what tasks
do.

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
immediately, as usual. A due task stays in the schedule until the scheduler has enqueued it, and then moves in one step;
if that fails, the scheduler gets it again after a minute.

A counter must return its value immediately, since the last task of a chord enqueues the callback. So a task is counted
immediately, together with a mark that is removed in step 3: a task that comes again between the two is counted once,
and gets the same number. Its deletions (of the counter, of the results of the chord) take place in step 3.

Choices. A task that Huey's shutdown interrupts returns to the queue; Huey's own storages forget it. A task that cannot
be read (it is no longer registered) becomes a dead letter; Huey drops it. ``LmdbStorage.dequeue``, which ``LmdbHuey``
does not use, removes the task, since a plain ``Huey`` never acknowledges: there a killed worker loses its task as
usual.
"""

import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from huey.api import Huey
from huey.constants import WORKER_GREENLET, EmptyData
from huey.exceptions import ConfigurationError
from huey.signals import SIGNAL_INTERRUPTED
from huey.storage import BaseStorage

from lmdbqueue._errors import Empty, FormatError, Full, LeaseExpiredError, QueueError, told
from lmdbqueue._format import Durability
from lmdbqueue._host.threads import holding, waits_in_native_code
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._local.relay import relay
from lmdbqueue._local.state import Put, State, prepared, some_of
from lmdbqueue._verbs.lease import Lease

__all__ = ["LmdbHuey", "LmdbStorage"]

_UNTIL: Final = struct.Struct(">d")  # before each value: when it expires, in seconds since 1970; 0 for never
_LONGEST: Final = 200  # bytes of the longest key that is kept unchanged
_NAME: Final = 160  # bytes of the longest name of a Huey that is kept unchanged, but for its quoting
_GREENLETS: Final = (WORKER_GREENLET, "gevent")  # types of workers
_HIGHEST: Final = 127  # priority
_PAUSE: Final = 1.0  # seconds until a task whose end could not be stored comes again, twice as many each time
_DOUBLINGS: Final = 6  # of that pause, at most
_AGAIN: Final = 60.0  # seconds until the scheduler gets a due task that it has not enqueued again


class _Opened(NamedTuple):
    """The directory of one Huey: a queue, and the states of three more."""

    tasks: PersistentQueue[bytes]
    schedule: State  # tasks by their time
    results: State  # results, locks, revocations
    counters: State
    queues: tuple[PersistentQueue[bytes], ...]  # all four


def _close(opened: _Opened) -> None:
    with ExitStack() as stack:  # each, even if closing others fails
        for queue in opened.queues:
            stack.callback(queue.close)


class _Put:
    """A step that stores a value, with the end of a task."""

    def __init__(self, results: State, key: str, record: bytes) -> None:
        self.prepared = prepared(results, key, record)
        self.key, self.record = key, record
        self._results = results

    def __call__(self) -> None:
        self._results[self.key] = self.record


class LmdbStorage(BaseStorage):  # type: ignore[misc]
    """Huey's storage in a queue directory, for any number of processes of one machine.

    Args:
        name: The name of the Huey instance; several may share a directory.
        path: The directory; created if it is missing; its parent must exist.
        durability: ``"full"``: enqueued tasks survive a power cut; ``"interval"``: all but those of the last moments
            do; ``"off"``: they survive killed processes. For a new directory; an existing one keeps its own.
        read_timeout: Seconds that a worker waits for a task before it checks whether to stop. A task wakes it at once.
        max_attempts: The number of starts after which a task becomes a dead letter (``storage.tasks.dead``), for tasks
            that kill their workers; None: no limit. Huey counts its own retries itself.
    """

    blocking = True
    priority = True

    def __init__(
        self,
        name: str = "huey",
        path: str | os.PathLike[str] = "huey",
        *,
        durability: Durability = "full",
        read_timeout: float = 1.0,
        max_attempts: int | None = None,
    ) -> None:
        super().__init__(name)
        self.path = os.path.abspath(path)
        self._durability: Durability = durability
        self._timeout = read_timeout
        self._max_attempts = max_attempts
        self._opened: dict[str, _Opened] = {}  # by path; without a lock, which a forked child might find taken
        self._here = threading.local()  # .box: the results of this thread's task; .moving: see ``moving``
        assert self._queues  # an invalid path is reported now

    @property
    def _queues(self) -> _Opened:
        found = self._opened.get(self.path)
        if found is None:
            opened = self._open()
            found = self._opened.setdefault(self.path, opened)
            if found is not opened:  # another thread was faster
                _close(opened)
        return found

    def _open(self) -> _Opened:
        durability, checksum = self._durability, True
        with suppress(FormatError):
            found = options_of(self.path)
            durability, checksum = found.durability, found.checksum

        quoted = quote(self.name, safe="")
        name = quoted if len(quoted) <= _NAME else f"{quoted[: _NAME // 2]}-{_digest(quoted)}"

        def queue(part: str) -> PersistentQueue[bytes]:
            return PersistentQueue(
                self.path,
                dumps=bytes,
                loads=bytes,
                name=f"{name}-{part}",
                max_attempts=self._max_attempts,
                durability=durability,
                checksum=checksum,
            )

        queues = tasks, *others = [queue(part) for part in ("tasks", "schedule", "results", "counters")]
        schedule, results, counters = (each.state for each in others)
        return _Opened(tasks, schedule, results, counters, tuple(queues))

    @property
    def tasks(self) -> PersistentQueue[bytes]:
        """The queue of the tasks, for ``stats()``, ``dead`` and the like."""
        return self._queues.tasks

    def close(self) -> None:
        """Close the queues; they are opened again when they are needed, also in a forked child."""
        opened = self._opened.pop(self.path, None)
        if opened is not None:
            _close(opened)

    # --- tasks

    def enqueue(self, data: bytes, priority: float | None = None) -> None:
        """Append a task; one of a higher priority, -127 to 127, leaves sooner."""
        place = -max(-_HIGHEST, min(_HIGHEST, round(priority or 0)))
        moved = getattr(self._here, "moving", None)
        if moved is None:
            self._do(lambda: self._queues.tasks.push(data, priority=place))
            return
        with self._queues.tasks.transaction():
            if self._queues.schedule.pop(moved, None) is not None:  # otherwise another scheduler did it
                self._queues.tasks.push(data, priority=place)

    def dequeue(self) -> bytes | None:
        """Remove the first task for good and return it; wait a moment for one."""
        with suppress(Empty):
            return self._queues.tasks.pop(1, blocking=True, timeout=self._timeout)
        return None

    def take(self) -> Lease[bytes] | None:
        """Store the end of this thread's last task and lease the first one; wait a moment for one."""
        lease = self.settle(is_taking=True)
        if lease:
            return lease
        with suppress(Empty):
            return self._queues.tasks.lease(1, blocking=True, timeout=self._timeout)
        return None

    def queue_size(self) -> int:
        """Return the number of waiting tasks, without running ones."""
        return len(self._queues.tasks)

    def enqueued_items(self, limit: int | None = None) -> list[bytes]:
        """Return the first tasks."""
        if limit is None:
            return list(self._queues.tasks)
        return self._queues.tasks.peek_many(limit)

    def flush_queue(self) -> None:
        """Remove all waiting tasks."""
        self._queues.tasks.clear()

    # --- the end of a task

    @holding
    def running(self, lease: Lease[bytes]) -> Iterator["_Box"]:
        """Collect what Huey itself stores in the block, not its task, hooks and signal handlers; then end the task.

        Args:
            lease: The lease of the task.
        """
        outer: _Box | None = getattr(self._here, "box", None)
        box = _Box(lease.seqs[0], outer)
        raised: BaseException | None = None
        try:
            self._here.box = box
            yield box
        except BaseException as error:
            raised = error
            raise
        finally:
            self._here.box = outer  # a statement, as no interrupt may come between: what is stored later is no part
            self._end(lease, box, raised)

    def begin(self, box: "_Box") -> None:
        """Remove the ended revocations of a task that now runs, since others may come meanwhile; if it fails, later.

        Args:
            box: The box of the task.
        """
        if box.deleted:
            with suppress(QueueError, OSError):
                with self._queues.tasks.transaction():
                    self._remove((), box.deleted)
                box.deleted.clear()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Store immediately what hooks and signal handlers store in the block."""
        box = self._open_box()
        if box is None:
            yield
            return
        box.is_open = False
        try:
            yield
        finally:
            box.is_open = True

    def _end(self, lease: Lease[bytes], box: "_Box", error: BaseException | None) -> None:
        """Store the results of a task in one step with its acknowledgement: now, or in a worker with the next ``take``.

        An error of the storage, or an interrupt, returns the task to the queue. Any other error, such as a result that
        cannot be serialized, would come again each time, so the task becomes a dead letter with that reason.
        """
        if box.is_interrupted:
            lease.nack(delay=self._timeout + _PAUSE, reason="it was interrupted")  # since the other workers end, too
        elif error is None:
            self._here.ended = lease, box
            if box.outer is not None or not getattr(self._here, "is_worker", False):
                self.settle()
        else:
            reason = told(error)
            with suppress(QueueError):
                if isinstance(error, (QueueError, OSError)) or not isinstance(error, (Exception, SystemExit)):
                    lease.nack(delay=_PAUSE, reason=reason)
                else:
                    with self._queues.tasks.transaction():
                        self._remove(box.marks, ())
                        lease.reject(reason=reason)

    def settle(self, *, is_taking: bool = False) -> Lease[bytes] | None:
        """Store the end of this thread's last task.

        Args:
            is_taking: Lease the next task in the same step.

        Returns:
            The lease of the next task, or None.
        """
        ended: tuple[Lease[bytes], _Box] | None = getattr(self._here, "ended", None)
        if ended is None:
            return None
        lease, box = ended
        try:
            self._here.ended = None
            puts = box.puts()
            if puts is not None:
                with suppress(Full):  # then a lease may have room where both have none
                    return relay(self._queues.tasks, lease, None, int(is_taking), puts)
            with self._queues.tasks.transaction():
                box.run()
                self._remove([*box.marks, *box.uncounted], box.deleted)
                lease.ack()
                return self._queues.tasks.lease() if is_taking else None
        except LeaseExpiredError:
            raise
        except BaseException as error:
            with suppress(QueueError):
                lease.nack(delay=_PAUSE * 2 ** min(lease.attempts[0] - 1, _DOUBLINGS), reason=told(error))
            raise

    def begin_worker(self) -> None:
        """Make this thread store the end of a task with the beginning of the next: one wait for the disk, not two."""
        self._here.is_worker = True

    def end_worker(self) -> None:
        """Store the end of the last task."""
        self._here.is_worker = False
        self.settle()

    def _remove(self, counters: Iterable[str], results: Iterable[str]) -> None:
        for key in counters:
            self._queues.counters.pop(key, None)
        for key in results:
            self._queues.results.pop(key, None)

    def _open_box(self) -> "_Box | None":
        """Return the box of the task that this thread has run; None while it runs, or if there is none."""
        box: _Box | None = getattr(self._here, "box", None)
        return box if box is not None and box.is_open else None

    def _do(self, step: Callable[[], object]) -> None:
        """Do a step now, or with the end of the task that this thread has run."""
        box = self._open_box()
        if box is not None:
            box.steps.append(step)
        else:
            step()

    def _settled(self, key: str | None = None) -> _Opened:
        """Return the queues for reading, including what this thread's task has written so far.

        That is then stored before the task's end, and stored twice if the worker is killed between: the calls of Huey
        itself, which are for keys, do so only if the task stores that very key.

        Args:
            key: The key of the value to be read; None: any.
        """
        box: _Box | None = getattr(self._here, "box", None)
        queues = self._queues
        if box is not None and box.steps and (key is None or box.stored(key) is not None):
            with queues.tasks.transaction():
                box.run()
        return queues

    # --- the schedule

    def add_to_schedule(self, data: bytes, ts: Any) -> None:
        """Store a task until it is due."""
        key = f"{round(ts.timestamp() * 1e6) + (1 << 62):020d}-{time.time_ns():020d}-{os.urandom(4).hex()}"
        self._do(lambda: self._queues.schedule.__setitem__(key, data))

    def due(self, ts: Any) -> list[tuple[str, bytes]]:
        """Return the due tasks, each with its key in the schedule.

        Args:
            ts: The time, a ``datetime``.
        """
        last = f"{round(ts.timestamp() * 1e6) + (1 << 62):020d}~"
        state = self._settled().schedule
        found = []
        for key in state:
            if key > last:
                break
            data = state.get(key)
            if data is not None:
                found.append((key, data))
        return found

    @contextmanager
    def moving(self, key: str | None) -> Iterator[None]:
        """Make the ``enqueue`` of this thread in the block move a task out of the schedule.

        Args:
            key: The key of the task in the schedule; None: the task is a new one, which a signal's handler enqueues
                while another is moved.
        """
        outer = getattr(self._here, "moving", None)
        self._here.moving = key
        try:
            yield
        finally:
            self._here.moving = outer

    def read_schedule(self, ts: Any) -> list[bytes]:
        """Remove the due tasks, and return them."""
        with self._queues.tasks.transaction():
            found = self.due(ts)
            for key, _ in found:
                del self._queues.schedule[key]
        return [data for _, data in found]

    def unschedule(self, key: str) -> None:
        """Remove a task from the schedule.

        Args:
            key: The key of the task in the schedule.
        """
        self._settled().schedule.pop(key, None)

    def schedule_size(self) -> int:
        """Return the number of scheduled tasks."""
        return len(self._settled().schedule)

    def scheduled_items(self, limit: int | None = None) -> list[bytes]:
        """Return the scheduled tasks, soonest first."""
        state = self._settled().schedule
        return [data for key in list(state)[:limit] if (data := state.get(key)) is not None]

    def flush_schedule(self) -> None:
        """Remove all scheduled tasks."""
        self._settled().schedule.clear()

    # --- results, locks, revocations

    def put_data(self, key: str | bytes, value: bytes, is_result: bool = False) -> None:
        """Store a value under a key."""
        del is_result
        record = _UNTIL.pack(0.0) + value
        if (box := self._open_box()) is not None:
            box.deleted.discard(_key(key))
        self._do(_Put(self._queues.results, _key(key), record))

    def peek_data(self, key: str | bytes) -> Any:
        """Return a value, or ``EmptyData``."""
        record = None if self._is_deleted(key) else self._record(_key(key))
        return EmptyData if record is None or _is_over(record) else record[_UNTIL.size :]

    def peek_many(self, keys: Iterable[str | bytes]) -> dict[str | bytes, bytes]:
        """Return those of the values that are there, by their keys."""
        wanted = [key for key in keys if not self._is_deleted(key)]
        box = self._open_box()
        for key in wanted if box is None else ():
            self._settled(_key(key))
        stored = some_of(self._queues.results, list(map(_key, wanted)))
        records = [(box and box.stored(_key(key))) or one for key, one in zip(wanted, stored, strict=True)]
        found = zip(wanted, records, strict=True)
        return {key: record[_UNTIL.size :] for key, record in found if record is not None and not _is_over(record)}

    def pop_data(self, key: str | bytes) -> Any:
        """Remove a value and return it, or ``EmptyData``."""
        state = self._settled(_key(key)).results
        if self._is_deleted(key) or _key(key) not in state:
            return EmptyData
        record = state.pop(_key(key), None)
        return EmptyData if record is None or _is_over(record) else record[_UNTIL.size :]

    def delete_data(self, key: str | bytes) -> bool:
        """Remove a value; return whether there was one."""
        box = self._open_box()
        if box is None:
            return self.pop_data(key) is not EmptyData
        if self._is_deleted(key) or self._record(_key(key)) is None:
            return False
        box.deleted.add(_key(key))  # an earlier step may store it
        return True

    def _record(self, key: str) -> bytes | None:
        """Return what is stored under a key, or will be with the end of this thread's task."""
        box = self._open_box()
        if box is None:
            return self._settled(key).results.get(key)
        return box.stored(key) or self._queues.results.get(key)

    def _is_deleted(self, key: str | bytes) -> bool:
        """Return whether the end of this thread's task will remove a value."""
        box = self._open_box()
        return box is not None and _key(key) in box.deleted

    def has_data_for_key(self, key: str | bytes) -> bool:
        """Return whether there is a value."""
        return self.peek_data(key) is not EmptyData

    def put_if_empty(self, key: str | bytes, value: bytes, ttl: float | None = None) -> bool:
        """Store a value for ``ttl`` seconds if the key has none; return whether it was stored."""
        queues = self._settled(_key(key))
        with queues.tasks.transaction():
            if self.has_data_for_key(key):
                return False
            until = 0.0 if ttl is None else time.time() + ttl
            if (box := self._open_box()) is not None:
                box.deleted.discard(_key(key))
            queues.results[_key(key)] = _UNTIL.pack(until) + value
            return True

    def result_store_size(self) -> int:
        """Return the number of values."""
        return len(self._settled().results)

    def result_items(self) -> dict[str, bytes]:
        """Return all values by their keys."""
        found = dict(self._settled().results)
        return {key: record[_UNTIL.size :] for key, record in found.items() if not _is_over(record)}

    def flush_results(self) -> None:
        """Remove all values."""
        self._settled().results.clear()

    # --- counters

    def incr(self, key: str | bytes, amount: int = 1) -> int:
        """Add to a counter, which begins at 0; return the sum.

        What the task has stored is stored with it: who counts last, in another worker, reads the results of all.
        """
        queues = self._queues
        box = self._open_box()
        mark = None if box is None else box.mark()
        values = [] if box is None else [step for step in box.steps if isinstance(step, _Put)]
        with queues.tasks.transaction():
            known = None if mark is None else queues.counters.get(mark)
            if known is not None:  # the task comes again
                number = int(known)
            else:
                is_gone = box is not None and _key(key) in box.uncounted
                number = amount + (0 if is_gone else int(queues.counters.get(_key(key), b"0")))
                queues.counters[_key(key)] = b"%d" % number
                if mark is not None:
                    queues.counters[mark] = b"%d" % number
                for store in values:
                    store()
        if box is not None:
            box.uncounted.discard(_key(key))
            box.steps = [step for step in box.steps if step not in values]
        return number

    def delete_counter(self, key: str | bytes) -> None:
        """Remove a counter."""
        box = self._open_box()
        if box is None:
            self._queues.counters.pop(_key(key), None)
        else:
            box.uncounted.add(_key(key))

    def flush_counters(self) -> None:
        """Remove all counters."""
        self._settled().counters.clear()


class _Box:
    """The results of a task that has run, to be stored with its end."""

    def __init__(self, seq: int, outer: "_Box | None") -> None:
        self._seq = seq  # number of the task
        self.outer = outer  # the box of the task that runs this one
        self.marks: list[str] = []  # keys of the marks of counted tasks
        self.deleted: set[str] = set()  # results that its end removes
        self.uncounted: set[str] = set()  # counters that its end removes
        self.steps: list[Callable[[], object]] = []
        self.is_open = True  # False while the task runs
        self.is_interrupted = False

    def stored(self, key: str) -> bytes | None:
        """Return what the end of the task is to store under a key of the results."""
        found = (step.record for step in reversed(self.steps) if isinstance(step, _Put) and step.key == key)
        return next(found, None)

    def mark(self) -> str:
        """Return the key of the next mark, the same whenever the task runs."""
        mark = f"\0{self._seq}/{len(self.marks)}"
        self.marks.append(mark)
        return mark

    def puts(self) -> list[Put] | None:
        """Return what its end is to store, None if that is more than values."""
        if self.marks or self.deleted or self.uncounted:
            return None
        puts = [step.prepared for step in self.steps if isinstance(step, _Put)]
        return puts if len(puts) == len(self.steps) else None

    def run(self) -> None:
        """Do all steps, in order; if the transaction is undone, they are lost together with the task's end."""
        steps, self.steps = self.steps, []
        is_open, self.is_open = self.is_open, False
        for step in steps:
            step()
        self.is_open = is_open


class LmdbHuey(Huey):  # type: ignore[misc]
    """Huey whose workers may die.

    ``LmdbHuey("app", path="tasks")`` takes the place of ``SqliteHuey("app", filename="tasks.db")``. A task runs at
    least once. Its end is stored in one step with its result, its retry and the next task; if its worker dies before
    that, it runs again. It takes the options of ``LmdbStorage`` and those of ``Huey``.
    """

    storage_class = LmdbStorage
    _kept: Any = None  # the storage to which immediate mode returns

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._running = threading.local()
        self._due: dict[str, float] = {}  # the due tasks that the scheduler was given, and when
        self.signal(SIGNAL_INTERRUPTED)(self._note_interrupted)
        self.on_startup("lmdbqueue")(lambda: self._tell_storage("begin_worker"))
        self.on_shutdown("lmdbqueue")(lambda: self._tell_storage("end_worker"))

    def get_storage(self, **options: Any) -> Any:
        """Return the storage, the same after each use of immediate mode: workers may have tasks of it."""
        if self._kept is None:
            self._kept = super().get_storage(**options)
        return self._kept

    @property
    def _durable(self) -> Any:
        """The storage of leased tasks, also while immediate mode has another."""
        return self.storage if isinstance(self.storage, LmdbStorage) else self._kept

    def create_consumer(self, **options: Any) -> Any:
        """Create a consumer, with Huey's options; one of greenlets needs ``gevent.monkey.patch_all()``."""
        if options.get("worker_type") in _GREENLETS and waits_in_native_code():
            message = "greenlets need gevent.monkey.patch_all() before lmdbqueue is imported, or all wait for each"
            raise ConfigurationError(message)
        return super().create_consumer(**options)

    def dequeue(self) -> Any:
        """Lease the first task; called by a worker."""
        storage = self.storage
        if not isinstance(storage, LmdbStorage):  # Huey's own, in immediate mode
            self._tell_storage("settle")
            return super().dequeue()
        lease = storage.take()
        if lease is None:
            return None
        try:
            task = self.deserialize_task(lease[0])
        except Exception as error:
            lease.reject(reason=f"it cannot be read: {told(error)}")
            raise
        except BaseException as error:
            lease.nack(reason=told(error))
            raise
        task.lmdbqueue_lease = lease
        return task

    def execute(self, task: Any, timestamp: Any = None) -> Any:
        """Run a task, and store its end; called by a worker."""
        lease = task.__dict__.pop("lmdbqueue_lease", None)
        if lease is None:
            key = task.__dict__.pop("lmdbqueue_key", None)
            value = super().execute(task, timestamp)
            if key is not None:  # it was taken out of the schedule to be run immediately
                self._durable.unschedule(key)
            return value
        with self._durable.running(lease) as box:
            run = task.execute

            def execute() -> Any:
                self._durable.begin(box)
                box.is_open = False
                try:
                    return run()
                finally:
                    box.is_open = True

            task.execute = execute
            self._running.task, self._running.box = task, box  # from now on Huey takes an interrupt for one of the task
            try:
                return super().execute(task, timestamp)
            finally:
                del task.execute
                self._running.task = None

    def _run_pre_execute(self, task: Any) -> None:
        with self._outside():
            super()._run_pre_execute(task)

    def _run_post_execute(self, task: Any, task_value: Any, exception: Any) -> None:
        with self._outside():
            super()._run_post_execute(task, task_value, exception)

    def _emit(self, signal: str, task: Any, *args: Any, **options: Any) -> None:
        with self._outside():
            super()._emit(signal, task, *args, **options)

    def _outside(self) -> AbstractContextManager[None]:
        durable = self._durable
        return durable.outside() if isinstance(durable, LmdbStorage) else nullcontext()

    def _tell_storage(self, what: str) -> None:
        if isinstance(self._durable, LmdbStorage):
            getattr(self._durable, what)()

    def _note_interrupted(self, _signal: str, task: Any, *_: Any) -> None:
        if getattr(self._running, "task", None) is task:  # otherwise it continues in another thread, to its end
            self._running.box.is_interrupted = True

    def read_schedule(self, timestamp: Any = None) -> Any:
        """Return the due tasks; ``enqueue`` moves each. Called by the scheduler."""
        storage = self.storage
        if not isinstance(storage, LmdbStorage):
            return super().read_schedule(timestamp)
        tasks = []
        now = time.monotonic()
        due = storage.due(self._get_timestamp() if timestamp is None else timestamp)
        self._due = {key: self._due[key] for key, _ in due if now < self._due.get(key, -_AGAIN) + _AGAIN}
        for key, data in due:
            if key in self._due:
                continue
            self._due[key] = now
            try:
                task = self.deserialize_task(data)
            except Exception:  # the workers will set it aside
                with storage.moving(key):
                    storage.enqueue(data)
                continue
            task.lmdbqueue_key = key
            tasks.append(task)
        return tasks

    def enqueue(self, task: Any) -> Any:
        """Append a task, or move one that has come due."""
        storage = self.storage
        if self.immediate or not isinstance(storage, LmdbStorage):  # ``execute`` removes it from the schedule
            return super().enqueue(task)
        with storage.moving(getattr(task, "__dict__", {}).pop("lmdbqueue_key", None)):
            return super().enqueue(task)


def _key(key: str | bytes) -> str:
    """Return a key of Huey's as one of a state."""
    text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key
    if len(text.encode("utf-8", "backslashreplace")) <= _LONGEST:
        return text
    return f"{text[:40]}#{_digest(text)}"


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _is_over(record: bytes) -> bool:
    until: float = _UNTIL.unpack_from(record)[0]
    return until != 0.0 and until <= time.time()
