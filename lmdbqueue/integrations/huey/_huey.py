"""``LmdbHuey``: Huey whose workers lease tasks, and whose scheduler moves them.

Owns: what a worker and the scheduler do otherwise than Huey's own. Law: a leased task ends as the table of ``_endings``
says, even if immediate mode is switched on meanwhile. Must not know: LMDB, how anything is stored.

Choices. A task that Huey's shutdown interrupts returns to the queue; Huey's own storages forget it. A task that cannot
be read (it is no longer registered) becomes a dead letter; Huey drops it. A due task that was not enqueued comes to the
scheduler again after a minute.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from huey.api import Huey
from huey.constants import WORKER_GREENLET
from huey.exceptions import ConfigurationError
from huey.signals import SIGNAL_INTERRUPTED

from lmdbqueue._base.errors import told
from lmdbqueue._host.threads import waits_in_native_code
from lmdbqueue.integrations.huey._storage import LmdbStorage

_GREENLETS: Final = (WORKER_GREENLET, "gevent")  # types of workers
_AGAIN: Final = 60.0  # seconds until the scheduler gets a due task that it has not enqueued again


class LmdbHuey(Huey):  # type: ignore[misc]
    """Huey whose workers may die.

    ``LmdbHuey("app", path="tasks")`` takes the place of ``SqliteHuey("app", filename="tasks.db")``. A task runs at
    least once. Its end is stored in one step with its result, its retry and the next task; if its worker dies before
    that, it runs again. The options are those of ``LmdbStorage`` (``path``, ``durability``, ``max_attempts``, ...) and
    of ``Huey``.
    """

    storage_class = LmdbStorage
    _kept: Any = None  # the storage to which immediate mode returns

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._due: dict[str, float] = {}  # the due tasks that the scheduler was given, and when
        self.signal(SIGNAL_INTERRUPTED)(self._on_interrupted)
        self.on_startup("lmdbqueue")(self._on_startup)
        self.on_shutdown("lmdbqueue")(self._on_shutdown)

    def get_storage(self, **options: Any) -> Any:
        """Return the storage, the same after each use of immediate mode: workers may have tasks of it."""
        if self._kept is None:
            self._kept = super().get_storage(**options)
        return self._kept

    @property
    def _durable(self) -> LmdbStorage | None:
        """The storage of leased tasks, also while immediate mode has another."""
        storage = self.storage if isinstance(self.storage, LmdbStorage) else self._kept
        return storage if isinstance(storage, LmdbStorage) else None

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
            if (durable := self._durable) is not None:
                durable.endings.settle()
            return super().dequeue()
        lease = storage.endings.take()
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
        key = task.__dict__.pop("lmdbqueue_key", None)
        durable = self._durable
        if lease is None or durable is None:
            value = super().execute(task, timestamp)
            if key is not None and durable is not None:  # it was taken out of the schedule to be run immediately
                durable.unschedule(key)
            return value
        run, endings = task.execute, durable.endings

        def execute() -> Any:
            endings.begin()
            with endings.outside():
                return run()

        with endings.running(lease, task):
            task.execute = execute
            try:
                return super().execute(task, timestamp)
            finally:
                del task.execute

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
        return nullcontext() if durable is None else durable.endings.outside()

    def _on_startup(self) -> None:
        if (durable := self._durable) is not None:
            durable.endings.begin_worker()

    def _on_shutdown(self) -> None:
        if (durable := self._durable) is not None:
            durable.endings.end_worker()

    def _on_interrupted(self, _signal: str, task: Any, *_: Any) -> None:
        if (durable := self._durable) is not None:
            durable.endings.interrupt(task)

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
