"""Huey on a queue: its own tests of storages, and workers that are killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

os.environ["HUEY_SLOW_TESTS"] = "1"  # before its tests are imported

from huey.api import Huey, chord
from huey.constants import EmptyData
from huey.signals import SIGNAL_COMPLETE, SIGNAL_ENQUEUED, SIGNAL_ERROR, SIGNAL_EXECUTING, SIGNAL_INTERRUPTED
from huey.tests import test_api, test_consumer, test_priority, test_signals
from huey.tests.base import BaseTestCase
from huey.tests.test_storage import StorageTests
from processes import KILLED, eventually, forked, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue.integrations.huey import LmdbHuey, LmdbStorage

pytestmark = pytest.mark.filterwarnings("default")  # Huey's tests have their own


# --- Huey's own tests


class _OnAQueue(BaseTestCase):
    """Gives each test a directory of its own."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.place = tmp_path

    def get_huey(self):
        return LmdbHuey(path=self.place / "tasks", utc=False, read_timeout=0.05, durability="off")

    def tearDown(self):
        super().tearDown()
        storage = self.huey.storage
        if isinstance(storage, LmdbStorage):
            storage.close()


class TestStorage(StorageTests, _OnAQueue):
    """All of what Huey asks of a storage."""

    def tearDown(self):
        super().tearDown()  # which empties the storage at its end, and so opens it again
        self.huey.storage.close()


def _own_tests():
    for module in (test_api, test_consumer, test_priority, test_signals):
        for name, case in vars(module).items():
            is_case = isinstance(case, type) and issubclass(case, BaseTestCase) and case is not BaseTestCase
            if "Redis" in name or "Valkey" in name:
                continue
            if is_case and case.__module__ == module.__name__ and case.get_huey is BaseTestCase.get_huey:
                left_out = {
                    "test_chord_bookkeeping_cleared": None,  # it looks into Huey's storage in memory
                    "test_read_schedule": None,  # here a task stays in the schedule until it is enqueued
                }
                yield (
                    f"{name}OnAQueue",
                    type(f"{name}OnAQueue", (_OnAQueue, case), {"__module__": __name__, **left_out}),
                )


globals().update(_own_tests())


# --- what is different


@pytest.fixture
def huey(tmp_path):
    huey = LmdbHuey("app", path=tmp_path / "tasks", read_timeout=0.05)
    yield huey
    with PersistentQueue(tmp_path / "tasks", name="app-tasks") as queue:
        assert queue.check() == []
    huey.storage.close()


def figures(huey):
    stats = huey.storage.tasks.stats()
    return stats.waiting, stats.leased, stats.dead


def test_a_task_is_leased_until_its_result_is_stored_with_its_end(huey):
    seen = []

    @huey.task()
    def double(n):
        seen.append(figures(huey))
        return 2 * n

    result = double(21)
    task = huey.dequeue()
    assert figures(huey) == (0, 1, 0)
    assert huey.execute(task) == 42
    assert seen == [(0, 1, 0)]
    assert figures(huey) == (0, 0, 0)
    assert result() == 42


@pytest.mark.parametrize("how", ["dequeued", "fails", "schedules"])
def test_what_follows_a_task_is_there_only_with_its_end(huey, monkeypatch, how):
    @huey.task(retries=how != "dequeued", retry_delay=0 if how == "fails" else 60)
    def step(n):
        if how != "dequeued":
            raise ValueError
        return n

    @huey.task()
    def after(n):
        return n

    huey.enqueue(step.s(1).then(after))
    lease_of = huey.storage.endings.take
    leases = []
    monkeypatch.setattr(huey.storage.endings, "take", lambda: leases.append(lease_of()) or leases[-1])
    task = huey.dequeue()
    monkeypatch.setattr(leases[0], "ack", lambda: os.write(-1, b""))
    with pytest.raises(OSError, match="descriptor"):
        huey.execute(task)
    assert (len(huey), huey.scheduled_count(), huey.result_count()) == (0, 0, 0)
    assert huey.storage.tasks.stats().delayed == 1, "it comes again"


def test_a_task_may_start_another_and_wait_for_it(huey):
    @huey.task()
    def inner(n):
        return n + 1

    @huey.task()
    def outer(n):
        result = inner(n)
        huey.execute(huey.dequeue())
        return result.get()

    result = outer(1)
    huey.execute(huey.dequeue())
    assert result.get() == 2
    assert figures(huey) == (0, 0, 0)


def _tasks_of_a_sum(huey):
    @huey.task()
    def one(n):
        return n

    @huey.task()
    def total(numbers):
        return sum(numbers)

    return one, total


@pytest.mark.parametrize("when", ["delete_counter", "_end"])
def test_a_chord_whose_last_task_is_killed_before_its_end_calls_back_once(huey, monkeypatch, when):
    one, total = _tasks_of_a_sum(huey)
    result = huey.enqueue(chord([one.s(n) for n in range(3)], total.s()))

    def run():
        huey.execute(huey.dequeue())

    run()
    run()

    def killed():
        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(huey.storage.endings, when, kill)
        run()

    assert status_of(forked(killed)) == KILLED
    run()
    run()
    assert result.callback.get() == 3
    assert figures(huey) == (0, 0, 0)
    assert huey.storage.result_store_size() == 3, "those of the tasks themselves"
    assert len(huey.storage._queues.counters) == 0


def test_a_member_of_a_chord_that_is_killed_fails_and_is_retried_is_counted_once(huey, monkeypatch):
    fails = []

    @huey.task()
    def one(n):
        if fails:
            raise fails.pop()
        return n

    @huey.task()
    def total(numbers):
        return numbers

    members = [one.s(0, retries=1, priority=1), one.s(1), one.s(2)]
    result = huey.enqueue(chord(members, total.s()))

    def killed():
        monkeypatch.setattr(huey.storage.endings, "_end", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        huey.execute(huey.dequeue())

    assert status_of(forked(killed)) == KILLED
    fails.append(ValueError())
    while huey.pending():
        huey.execute(huey.dequeue())
    assert result.callback.get() == [0, 1, 2]
    assert len(huey.storage._queues.counters) == 0


@pytest.mark.parametrize("n", [1, 2])
def test_what_follows_a_failed_member_of_a_chord_is_there_once_though_it_is_killed_before_its_end(huey, monkeypatch, n):
    @huey.task()
    def fail():
        raise ZeroDivisionError

    @huey.task()
    def note(_error):
        pass

    @huey.task()
    def total(results):
        return len(results)

    result = huey.enqueue(chord([fail.s().error(note) for _ in range(n)], total.s()))
    for _ in range(n - 1):
        huey.execute(huey.dequeue())

    def killed():
        monkeypatch.setattr(huey.storage.endings, "_end", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        huey.execute(huey.dequeue())

    assert status_of(forked(killed)) == KILLED
    huey.execute(huey.dequeue())
    names = sorted(task.name for task in huey.pending())
    assert names == ["note"] * n + ["total"]
    while huey.pending():
        huey.execute(huey.dequeue())
    assert result.callback.get() == n


def test_who_counts_last_in_a_chord_reads_the_result_of_a_member_that_is_not_over_yet(huey, monkeypatch):
    one, total = _tasks_of_a_sum(huey)
    result = huey.enqueue(chord([one.s(1), one.s(2)], total.s()))
    end, ends = huey.storage.endings._end, []

    def end_after_the_other(*args):
        if not ends:  # of the first: it has counted itself
            ends.append(args)
            other = threading.Thread(target=lambda: huey.execute(huey.dequeue()))
            other.start()
            other.join()
        return end(*args)

    monkeypatch.setattr(huey.storage.endings, "_end", end_after_the_other)
    huey.execute(huey.dequeue())
    while huey.pending():
        huey.execute(huey.dequeue())
    assert result.callback.get() == 3
    assert huey.storage.result_store_size() == 2, "those of the members themselves"
    assert len(huey.storage._queues.counters) == 0


def test_a_hook_sees_the_result_of_the_task(huey):
    seen = []

    @huey.task()
    def one():
        return 1

    @huey.post_execute()
    def look(task, *_):
        seen.append(huey.get(task.id, peek=True))

    one()
    huey.execute(huey.dequeue())
    assert seen == [1]


def test_a_task_that_is_not_registered_is_a_dead_letter(huey, tmp_path):
    other = LmdbHuey("app", path=tmp_path / "tasks")

    @other.task()
    def gone():
        pass

    gone()
    gone.schedule(delay=-1)
    other.execute(other.dequeue())
    other.storage.close()
    with pytest.raises(Exception, match="gone"):
        huey.dequeue()
    assert figures(huey) == (0, 0, 1)
    assert huey.scheduled_count() in (0, 1)
    assert "it cannot be read" in next(iter(huey.storage.tasks.dead)).reason


def test_a_result_that_cannot_be_serialized_is_no_circle(huey):
    @huey.task()
    def bad():
        return lambda: None

    bad()
    with pytest.raises(Exception, match=r"pickle|local object"):
        huey.execute(huey.dequeue())
    assert figures(huey) == (0, 0, 1)


def test_one_that_is_interrupted_goes_back(huey):
    told = []

    @huey.task()
    def long():
        raise KeyboardInterrupt

    @huey.signal(SIGNAL_INTERRUPTED)
    def note(_signal, task):
        told.append(task.id)

    result = long()
    huey.execute(huey.dequeue())
    assert told == [result.id]
    assert huey.storage.tasks.stats().delayed == 1


def test_one_that_is_interrupted_before_it_begins_goes_back_too(huey, monkeypatch):
    """A worker's process is interrupted as soon as Huey has noted the task."""

    @huey.task()
    def never():
        os.write(-1, b"")

    def interrupt(_):
        assert huey._tasks_in_flight
        raise KeyboardInterrupt

    never()
    monkeypatch.setattr(huey, "_timeout_context", interrupt)
    huey.execute(huey.dequeue())
    stats = huey.storage.tasks.stats()
    assert (stats.waiting, stats.leased, stats.delayed) == (0, 0, 1)


def test_one_that_is_interrupted_after_it_has_run_another_goes_back_too(huey):
    @huey.task()
    def inner():
        pass

    @huey.task()
    def outer():
        inner()
        huey.execute(huey.dequeue())
        raise KeyboardInterrupt

    outer()
    huey.execute(huey.dequeue())
    assert huey.storage.tasks.stats().delayed == 1


def test_what_is_stored_after_an_interrupt_is_no_part_of_the_task_it_came_amid(huey, monkeypatch):
    @huey.task()
    def one():
        return 1

    def interrupt(*_):
        raise KeyboardInterrupt

    one()
    task = huey.dequeue()
    with monkeypatch.context() as patched:
        patched.setattr(huey.storage.endings, "_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            huey.execute(task)
    one()
    assert figures(huey) == (1, 1, 0)


def test_a_due_task_is_in_the_schedule_until_it_is_enqueued(huey, tmp_path):
    @huey.task()
    def later(n):
        return n

    result = later.schedule((1,), delay=-1)
    huey._due = {}
    task = huey.deserialize_task(huey.storage.tasks.pop())
    huey.add_schedule(task)
    other = LmdbHuey("app", path=tmp_path / "tasks")
    other._registry = huey._registry
    (mine,), (theirs,) = huey.read_schedule(), other.read_schedule()
    assert huey.scheduled_count() == 1
    assert huey.read_schedule() == []
    huey.enqueue(mine)
    other.enqueue(theirs)  # of another scheduler, too late
    other.storage.close()
    assert (huey.scheduled_count(), len(huey)) == (0, 1)
    huey.execute(huey.dequeue())
    assert result() == 1


def test_a_handler_of_signals_that_starts_a_task_does_not_replace_one_that_comes_due(huey):
    @huey.task()
    def later():
        pass

    @huey.task()
    def audit():
        pass

    later.schedule(delay=-1)
    huey.add_schedule(huey.deserialize_task(huey.storage.tasks.pop()))

    @huey.signal(SIGNAL_ENQUEUED)
    def on_enqueued(_signal, task):
        if task.name == "later":
            audit()

    (due,) = huey.read_schedule()
    huey.enqueue(due)
    assert [task.name for task in huey.pending()] == ["audit", "later"]
    assert huey.scheduled_count() == 0


def test_a_due_task_that_is_run_immediately_leaves_the_schedule(huey):
    ran = []

    @huey.task()
    def later():
        ran.append(1)

    later.schedule(delay=-1)
    huey.add_schedule(huey.deserialize_task(huey.storage.tasks.pop()))
    huey.immediate_use_memory = False
    huey.immediate = True
    (due,) = huey.read_schedule()
    huey.enqueue(due)
    assert (ran, huey.scheduled_count(), len(huey)) == ([1], 0, 0)


def test_a_plain_huey_takes_the_storage_too(tmp_path):
    huey = Huey("app", storage_class=LmdbStorage, path=tmp_path / "tasks", read_timeout=0.05)

    @huey.task()
    def one():
        return 1

    result = one()
    huey.execute(huey.dequeue())
    assert result() == 1
    assert huey.dequeue() is None
    huey.storage.close()


def test_immediate_mode_needs_no_queue(tmp_path):
    huey = LmdbHuey("app", path=tmp_path / "tasks", immediate=True)

    @huey.task()
    def one():
        return 1

    assert one()() == 1
    assert not (tmp_path / "tasks").exists()
    assert huey.dequeue() is None
    assert huey.read_schedule() == []


def test_several_hueys_share_a_directory_and_keys_may_be_long(huey, tmp_path):
    other = LmdbHuey("other/one", path=tmp_path / "tasks", read_timeout=0.05)
    key = "k" * 1000
    huey.storage.put_data(key, b"1")
    other.storage.put_data(key + "x", b"2")
    assert huey.storage.peek_data(key) == b"1"
    assert other.storage.peek_data(key) is EmptyData
    assert other.storage.incr(key.encode()) == 1
    other.storage.close()


GREENLETS = """
from gevent import monkey

monkey.patch_all()
import sys
import time

import gevent

from lmdbqueue.integrations.huey import LmdbHuey

huey = LmdbHuey("app", path=sys.argv[1], durability="off")
turns, ran = [], []


@huey.task()
def nap(n):
    ran.append(n)
    time.sleep(0.1)
    return n


def beat():
    while True:
        turns.append(1)
        time.sleep(0.005)


gevent.spawn(beat)
consumer = huey.create_consumer(workers=2, worker_type="greenlet")
gevent.spawn(consumer.run)
time.sleep(0.5)
assert len(turns) > 20, f"idle workers hold the program up: {len(turns)}"
results = [nap(0), nap(1)]
time.sleep(0.09)
assert sorted(ran) == [0, 1], f"one waits for the other: {ran}"
assert [result.get(blocking=True, timeout=20) for result in results] == [0, 1]
"""


def test_workers_that_are_greenlets_wait_without_holding_up_others(tmp_path):
    command = [sys.executable, "-c", GREENLETS, str(tmp_path / "tasks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- consumers that are killed


class _Site:
    """A Huey whose task writes down that it ran, and consumers of it in processes of their own."""

    def __init__(self, place, **options):
        self.log = place / "ran"
        self.log.touch()
        self.huey = LmdbHuey("app", path=place / "tasks", **options)

        @self.huey.task()
        def work(n):
            fd = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"%d\n" % n)
            os.close(fd)
            return n

        self.work = work

    def ran(self):
        return self.log.read_text().count("\n")

    def consume(self, kind, **options):
        """Start a consumer with two workers; return its pid, which is that of its group."""
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                self.huey.create_consumer(workers=2, worker_type=kind, **options).run()
            finally:
                os._exit(1)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it did so itself
            os.setpgid(pid, pid)
        return pid


def _catches(pid, number):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (caught,) = (line.split()[1] for line in file if line.startswith("SigCgt"))
    return int(caught, 16) >> number - 1 & 1


def _ends(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED


def _account(place, tasks, kills, kind):
    site = _Site(place)
    results = [site.work(n) for n in range(tasks)]
    for moment in sorted(random.sample(range(1, tasks), kills)):
        pid = site.consume(kind)
        eventually(lambda moment=moment: site.ran() >= moment, 120)
        os.killpg(pid, signal.SIGKILL)
        _ends(pid)
    pid = site.consume(kind)
    eventually(lambda: figures(site.huey) == (0, 0, 0), 120)
    os.killpg(pid, signal.SIGKILL)
    _ends(pid)
    ran = list(map(int, site.log.read_text().split()))
    assert set(ran) == set(range(tasks)), "some were lost"
    assert len(ran) - tasks <= 2 * (kills + 1), "no more came twice than workers were killed"
    assert [result.get() for result in results] == list(range(tasks))
    assert site.huey.storage.tasks.check() == []
    site.huey.storage.close()
    return kills + 1


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_consumers_that_are_killed_lose_no_task(tmp_path, record_property, kind):
    record_property("kills", _account(tmp_path, 200, 5, kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_consumer_is_killed_a_hundred_times_in_5000_tasks(tmp_path, record_property, kind):
    record_property("kills", _account(tmp_path, 5000, 100, kind))


def test_a_worker_of_a_consumer_is_killed_and_the_other_gets_its_task_at_once(tmp_path):
    site = _Site(tmp_path)

    @site.huey.task()
    def suicide():
        if site.ran() == 0:
            fd = os.open(site.log, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"0\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    result = suicide()
    pid = site.consume("process")
    assert result.get(blocking=True, timeout=20) == "done"
    os.killpg(pid, signal.SIGKILL)
    _ends(pid)
    site.huey.storage.close()


def test_one_that_kills_its_workers_again_and_again_is_dead_in_the_end(tmp_path):
    site = _Site(tmp_path, max_attempts=2)

    @site.huey.task()
    def suicide():
        os.kill(os.getpid(), signal.SIGKILL)

    suicide()
    pid = site.consume("process", health_check_interval=0.1)
    eventually(lambda: figures(site.huey) == (0, 0, 1), 30)
    os.killpg(pid, signal.SIGKILL)
    _ends(pid)
    site.huey.storage.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_shutdown_lets_tasks_end_or_gives_them_back(tmp_path, kind):
    site = _Site(tmp_path)
    gate = tmp_path / "begun"

    @site.huey.task()
    def long():
        gate.touch()
        time.sleep(30)

    pid = site.consume(kind)
    eventually(lambda: _catches(pid, signal.SIGTERM))
    long()
    eventually(gate.exists)
    os.kill(pid, signal.SIGTERM)
    status_of(pid)
    eventually(lambda: figures(site.huey) == (1, 0, 0))
    site.huey.storage.close()


# --- hooks, handlers, revocations


@pytest.mark.parametrize("where", ["pre", SIGNAL_EXECUTING, "task", "post", SIGNAL_COMPLETE, SIGNAL_ERROR])
def test_what_hooks_and_handlers_store_is_there_at_once(huey, where):
    seen = []

    others = LmdbStorage("app", huey.storage.path)

    def store(*_):
        if not seen:
            seen.append(None)  # before the next signal
            huey.put("state", where)
            huey.delete("old")
            note()
            seen[0] = others.queue_size(), others.has_data_for_key("state"), others.has_data_for_key("old")

    @huey.task()
    def note():
        pass

    @huey.task()
    def work():
        if where == "task":
            store()
        if where == SIGNAL_ERROR:
            raise ValueError
        return 1

    huey.put("old", 1)
    result = work()
    if where == "pre":
        huey.pre_execute()(store)
    elif where == "post":
        huey.post_execute()(store)
    elif where != "task":
        huey.signal(where)(store)
    huey.execute(huey.dequeue())
    assert seen == [(1, True, False)]
    assert len(huey) == 1
    others.close()
    if where != SIGNAL_ERROR:
        assert result.get() == 1


def test_a_handler_of_a_task_that_has_run_reads_its_result(huey):
    @huey.task()
    def work():
        return 1

    found = []
    result = work()
    huey.signal(SIGNAL_COMPLETE)(lambda _signal, task: found.append(huey.result(task.id, preserve=True)))
    huey.execute(huey.dequeue())
    assert (found, result.get()) == ([1], 1)


def test_a_result_that_a_hook_fails_to_read_is_stored_with_the_end_of_the_task_all_the_same(huey, monkeypatch):
    transaction = huey.storage.tasks.transaction

    @contextlib.contextmanager
    def undone():
        with transaction():
            yield
            raise OSError

    @huey.task()
    def work():
        return 1

    @huey.post_execute()
    def look(*_):
        with monkeypatch.context() as patched:
            patched.setattr(huey.storage.tasks, "transaction", undone)
            huey.all_results()

    result = work()
    huey.execute(huey.dequeue())
    assert result.get() == 1


def test_a_hook_that_revokes_its_task_again_stops_its_retries(huey):
    ran, revoked = [], []

    @huey.task(retries=3, context=True)
    def work(task):
        ran.append(task.id)
        huey.revoke(task)
        raise ValueError

    @huey.post_execute()
    def stop(task, *_):
        revoked.append(huey.is_revoked(task))
        huey.revoke(task)

    work()
    while huey.pending():
        huey.execute(huey.dequeue())
    assert (len(ran), revoked) == (1, [False]), "Huey ends a revocation that came during the task"


def test_a_hook_takes_replaces_or_removes_the_result_of_its_task(huey):
    results = {}

    @huey.task()
    def work(how):
        return how

    @huey.post_execute()
    def look(task, *_):
        how = task.args[0]
        if how == "replaces":
            huey.put(task.id, "another")
        else:
            results[how] = huey.get(task.id) if how == "takes" else huey.delete(task.id)

    left = {how: work(how) for how in ("takes", "replaces", "removes")}
    while huey.pending():
        huey.execute(huey.dequeue())
    assert results == {"takes": "takes", "removes": True}
    assert {how: result.get() for how, result in left.items()} == {
        "takes": None,
        "replaces": "another",
        "removes": None,
    }


def test_a_task_that_a_hook_runs_sees_the_result_of_the_hook_s_task(huey):
    seen = []

    @huey.task()
    def outer():
        return 1

    @huey.task()
    def inner(key):
        seen.append(huey.get(key, peek=True))

    @huey.post_execute()
    def run(task, *_):
        if task.name == "outer":
            inner(task.id)
            huey.execute(huey.dequeue())

    outer()
    huey.execute(huey.dequeue())
    assert seen == [1]


def test_a_hook_that_asks_for_revocations_stores_nothing_of_the_end_of_its_task(huey):
    counts = []
    others = LmdbStorage("app", huey.storage.path)

    @huey.task()
    def work():
        return 1

    @huey.post_execute()
    def after(_task, _value, _error):
        counts.append((work.is_revoked(), others.result_store_size()))

    work()
    huey.execute(huey.dequeue())
    counts.append(others.result_store_size())
    assert counts == [(False, 0), 1]
    others.close()


@pytest.mark.parametrize("is_full", [False, True])
def test_a_revocation_during_a_task_outlives_one_that_ended_before_it(huey, monkeypatch, is_full):
    def fail():
        raise OSError

    @huey.task()
    def work():
        monkeypatch.undo()
        if not is_full:
            work.revoke()
        return 1

    work.revoke(revoke_until=huey._get_timestamp())
    result = work()
    task = huey.dequeue()
    if is_full:
        monkeypatch.setattr(huey.storage.tasks, "transaction", fail)
    huey.execute(task)
    assert result.get() == 1
    assert work.is_revoked() is not is_full
    assert huey.result_count() == (not is_full)


def test_a_child_that_is_forked_while_a_thread_opens_the_directory_opens_it_too(huey, monkeypatch):
    storage = huey.storage
    storage.enqueue(b"task")
    storage.close()
    opening, go_on = threading.Event(), threading.Event()
    open_ = storage._queues._open

    def slow():
        opening.set()
        go_on.wait(60)
        return open_()

    with monkeypatch.context() as patched:
        patched.setattr(storage._queues, "_open", slow)
        sizes = []
        thread = threading.Thread(target=lambda: sizes.append(storage.queue_size()))
        thread.start()
        assert opening.wait(60)
    child = forked(lambda: os._exit(storage.queue_size() + 10))
    assert status_of(child) == 11
    assert storage.queue_size() == 1, "another thread opens it meanwhile"
    go_on.set()
    thread.join()
    assert sizes == [1]
    assert storage.tasks.stats().processes == 1


@pytest.mark.parametrize("when", ["dequeued", "runs", "ran"])
def test_a_worker_ends_its_task_once_though_immediate_mode_is_switched_on_and_off(huey, when):
    runs = []

    @huey.task()
    def work():
        runs.append(1)
        if when == "runs":
            huey.immediate = True

    storage = huey.storage
    storage.endings.begin_worker()
    work()
    task = huey.dequeue()
    if when == "dequeued":
        huey.immediate = True
    huey.execute(task)
    huey.immediate = True
    if when == "ran":
        huey.immediate = False
        assert huey.storage is storage, "not a second one, which knows nothing of the task"
    assert huey.dequeue() is None
    huey.immediate = False
    assert (runs, figures(huey)) == ([1], (0, 0, 0))
    storage.endings.end_worker()


# --- names, greenlets


def test_a_huey_may_have_any_name(tmp_path):
    names = ["", "a b", "a/b", "a_b", "%", "日" * 60, "x" * 240, "x" * 240 + "y", "x" * 160, "x" * 161]
    storages = [LmdbStorage(name, tmp_path / "tasks", durability="off") for name in names]
    for storage in storages:
        storage.enqueue(storage.name.encode())
    assert [storage.enqueued_items() for storage in storages] == [[name.encode()] for name in names]
    for storage in storages:
        storage.close()


_GREENLETS = """
import sys

if sys.argv[2] == "late":
    import lmdbqueue
if sys.argv[2] != "never":
    from gevent import monkey
    monkey.patch_all()
import gevent
from huey.exceptions import ConfigurationError
from lmdbqueue.integrations.huey import LmdbHuey

huey = LmdbHuey("app", path=sys.argv[1], durability="off")


@huey.task()
def work(n):
    gevent.sleep(0.001 * (n % 3))
    return n


try:
    consumer = huey.create_consumer(workers=4, worker_type="greenlet", periodic=False)
except ConfigurationError as error:
    sys.exit(f"refused: {error}")
consumer.start()
results = [work(n) for n in range(1, 41)]
assert [result.get(blocking=True, timeout=30) for result in results] == list(range(1, 41))
consumer.stop(graceful=True)
"""


@pytest.mark.parametrize("when", ["early", "late", "never"])
def test_greenlets_work_if_all_is_patched_and_are_refused_if_each_would_stop_the_others(tmp_path, when):
    pytest.importorskip("gevent")
    command = [sys.executable, "-c", _GREENLETS, str(tmp_path / "tasks"), when]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if when == "early":
        assert done.returncode == 0, done.stderr
    else:
        assert "refused: greenlets need gevent.monkey.patch_all()" in done.stderr
