"""Celery without a broker: kombu's own tests, a real worker that is killed, and what others see of it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version

import pytest
from celery import Celery
from kombu import pools
from processes import DEADLINE, eventually

import lmdbqueue.integrations.kombu  # noqa: F401  (registers lmdb://)
from lmdbqueue import PersistentQueue

pytestmark = pytest.mark.filterwarnings("default")  # Celery has its own

APP = """
import os
import lmdbqueue.integrations.kombu
from celery import Celery

PLACE = os.path.dirname(os.path.abspath(__file__))
app = Celery("app", broker=f"lmdb:///{PLACE}/broker", backend=f"file://{PLACE}/results")
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_send_task_events=True,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
)


@app.task
def work(n):
    fd = os.open(f"{PLACE}/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % n)
    os.close(fd)
    return n


@app.task(acks_late=True)
def wait(name):
    import time

    with open(f"{PLACE}/{name}", "a") as file:
        file.write("x")
    while not os.path.exists(f"{PLACE}/{name} may end"):
        time.sleep(0.01)
    return name
"""


class Site:
    """An app in a folder of its own, and workers of it."""

    def __init__(self, place):
        self.place = place
        (place / "results").mkdir()
        (place / "app.py").write_text(APP)
        self.log = place / "ran"
        self.app = Celery("app", broker=f"lmdb:///{place}/broker", backend=f"file://{place}/results")
        self.workers = []

    def send(self, name, *args, **options):
        return self.app.send_task(f"app.{name}", args, **options)

    def worker(self, *options):
        """Start a worker with two processes, in a session of its own."""
        command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-c", "2", "-l", "WARNING", *options]
        where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.place), *filter(None, sys.path)])}
        with open(self.place / "worker.log", "ab") as log:
            worker = subprocess.Popen(
                command, cwd=self.place, env=where, stdout=log, stderr=log, start_new_session=True
            )
        self.workers.append(worker)
        return worker

    def kill(self, worker):
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def close(self):
        for worker in self.workers:
            if worker.poll() is None:
                self.kill(worker)
        self.app.close()
        pools.reset()  # which are kombu's, for all apps of a process

    def ran(self):
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def queue(self):
        return PersistentQueue("broker", self.place, name="q-celery", dumps=bytes, loads=bytes)

    def figures(self):
        with self.queue() as queue:
            stats = queue.stats()
            return stats.waiting, stats.leased, stats.delayed, stats.dead


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    site.close()


def done(results):
    return [result.get(timeout=DEADLINE, interval=0.02) for result in results]


# --- kombu's and Celery's own tests, from their source archives


def _archive(place, package):
    """Return the folder of a package's source archive, as it is on the index."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps"]
    done = subprocess.run(
        [*command, "-d", place, f"{package}=={version(package)}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = f"NOT TESTED, since the source archive of {package} cannot be had here"
        if os.environ.get("LMDBQUEUE_NO_SKIPS") == "1":
            pytest.fail(f"{reason}: {done.stderr}")
        pytest.skip(reason)
    (archive,) = place.glob("*.tar.gz")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    shutil.unpack_archive(archive, place, **safely)
    return place / f"{package}-{version(package)}"


def _run(folder, *arguments, within, **environment):
    """Run pytest in a folder; return how many tests passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-W", "ignore", "-p", "no:cacheprovider"]
    path = os.pathsep.join([str(folder.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [*command, "-p", "no:xdist", "-p", "lmdbqueue.integrations.kombu", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


OF_KOMBU = """
import kombu, pytest
from .common import BaseEventLoop, BaseExchangeTypes, BaseMessage, BasePriority, BaseTimeToLive, BasicFunctionality

@pytest.fixture
def connection(tmp_path):
    return kombu.Connection(f"lmdb:///{tmp_path}/broker")

@pytest.fixture
def invalid_connection():
    return kombu.Connection("lmdb:////nowhere/at/all/broker")

class LmdbBasic(BasicFunctionality): pass
class LmdbExchanges(BaseExchangeTypes): pass
class LmdbMessages(BaseMessage): pass
class LmdbEventLoop(BaseEventLoop): pass
class LmdbPriority(BasePriority): pass
class LongLmdbTimeToLive(BaseTimeToLive): pass
"""


def _kombu(place, classes):
    folder = _archive(place, "kombu")
    (folder / "t/integration/test_lmdb.py").write_text(OF_KOMBU)
    return _run(folder, "-o", f"python_classes={classes}", "t/integration/test_lmdb.py", within=300)


def test_kombu_s_own_tests_of_a_transport_pass(tmp_path):
    assert _kombu(tmp_path, "Lmdb*") == 27


@pytest.mark.long
def test_kombu_s_own_tests_of_times_to_live_pass(tmp_path):
    assert _kombu(tmp_path, "LongLmdb*") == 3


OF_CELERY = [  # which of its tests need a broker, and no Redis or Django beside it
    ("inspect", ""),
    ("tasks", "not headers_simple_canvas and not trace_log"),  # those want a log of Celery's own configuration
    ("tasks", "headers_simple_canvas"),  # by itself: amid the others it depends on the moment, with its reruns
    ("beat", ""),
    ("worker", "auto_sizes or pidbox"),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "which"), OF_CELERY)
def test_celery_s_own_tests_of_a_broker_pass(tmp_path, name, which):
    folder = _archive(tmp_path, "celery")
    (tmp_path / "results").mkdir()
    (tmp_path / "sitecustomize.py").write_text("import lmdbqueue.integrations.kombu\n")  # in its workers, too
    where = {"TEST_BROKER": f"lmdb:///{tmp_path}/broker", "TEST_BACKEND": f"file://{tmp_path}/results"}
    file = f"t/integration/test_{name}.py"
    assert _run(folder, "-p", "celery.contrib.pytest", "-k", which, file, within=900, **where)


# --- a worker


def test_tasks_run_and_an_idle_worker_is_awake_at_once(site):
    site.worker()
    assert done([site.send("work", n) for n in range(20)]) == list(range(20))
    eventually(lambda: site.figures() == (0, 0, 0, 0))
    took = []
    for n in range(5):
        before = site.ran()
        time.sleep(0.3)  # so that it is idle
        begin = time.monotonic()
        site.send("work", n)
        eventually(lambda before=before: site.ran() > before)
        took.append(time.monotonic() - begin)
    assert min(took) < 0.5, "it polls"


def test_what_a_killed_worker_held_is_with_another_at_once(site):
    results = [site.send("wait", f"t{n}") for n in range(4)]
    first = site.worker("-n", "first@%h")
    eventually(lambda: (site.place / "t0").exists() and (site.place / "t1").exists())
    site.kill(first)
    for n in range(4):
        (site.place / f"t{n} may end").touch()
    site.worker("-n", "second@%h")
    assert done(results) == ["t0", "t1", "t2", "t3"]
    eventually(lambda: site.figures() == (0, 0, 0, 0))


def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_begun(site):
    results = [site.send("wait", f"t{n}") for n in range(6)]
    worker = site.worker()
    eventually(lambda: (site.place / "t0").exists() and (site.place / "t1").exists())
    worker.terminate()
    for n in range(6):
        (site.place / f"t{n} may end").touch()
    worker.wait(DEADLINE)
    assert done(results[:2]) == ["t0", "t1"]
    begun = sum((site.place / f"t{n}").exists() for n in range(6))  # some may have been since it was told
    assert site.figures() == (6 - begun, 0, 0, 0)
    site.worker()
    assert done(results) == [f"t{n}" for n in range(6)]
    assert [(site.place / f"t{n}").read_text() for n in range(6)] == ["x"] * 6, "each ran once"


@pytest.mark.long
def test_a_worker_that_is_told_to_stop_at_once_gives_back_what_runs_too(site):
    results = [site.send("wait", f"t{n}") for n in range(6)]
    worker = site.worker()
    eventually(lambda: (site.place / "t0").exists() and (site.place / "t1").exists())
    worker.send_signal(signal.SIGQUIT)
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:  # now and then Celery's pool waits for the processes that it has cancelled
        site.kill(worker)
    assert site.figures() == (6, 0, 0, 0)
    for n in range(6):
        (site.place / f"t{n} may end").touch()
    site.worker()
    assert done(results) == [f"t{n}" for n in range(6)]
    assert [(site.place / f"t{n}").read_text() for n in range(6)] == ["xx"] * 2 + ["x"] * 4


def test_inspect_and_events_answer(site):
    site.worker("-E", "-n", "one@%h")
    site.worker("-E", "-n", "two@%h")
    seen = []
    eventually(lambda: len(site.app.control.ping(timeout=0.5)) == 2, 30)
    with site.app.connection_for_read() as connection:
        receiver = site.app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        captured = receiver.itercapture(limit=None, timeout=60)
        next(captured)  # the consumer is there
        site.send("work", 1)
        while "task-succeeded" not in seen:
            next(captured)
    assert {"task-received", "task-started", "task-succeeded"} <= set(seen)
    assert set(map(len, site.app.control.inspect(timeout=1).active_queues().values())) == {1}
    command = [sys.executable, "-m", "celery", "-A", "app", "inspect", "ping", "--timeout", "2"]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.place), *filter(None, sys.path)])}
    told = subprocess.run(command, cwd=site.place, env=where, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.count("pong") == 2


@pytest.mark.long
def test_a_worker_that_was_stopped_for_longer_than_its_mailbox_lives_answers_again(site):
    worker = site.worker("-n", "one@%h")
    eventually(lambda: site.app.control.ping(timeout=0.5), 30)
    worker.send_signal(signal.SIGSTOP)
    with PersistentQueue("broker", site.place, name="exchanges", dumps=bytes, loads=bytes) as control:
        for key in [key for key in control.state if key.startswith("q/")]:
            name, *known, seen = json.loads(control.state[key])
            control.state[key] = json.dumps([name, *known, seen - 1000]).encode()  # a quarter of an hour later
    assert site.app.control.ping(timeout=0.2) == [], "which declares a queue, and drops those that are over"
    worker.send_signal(signal.SIGCONT)
    eventually(lambda: site.app.control.ping(timeout=0.5), 30)


# --- kills


def _account(site, tasks, kills):
    for n in range(tasks):
        site.send("work", n, ignore_result=True)
    for moment in sorted(random.sample(range(1, tasks), kills)):
        worker = site.worker("--without-gossip", "--without-mingle")
        eventually(lambda moment=moment: site.ran() >= moment, 300)
        site.kill(worker)
    worker = site.worker()
    eventually(lambda: site.figures() == (0, 0, 0, 0), 300)
    site.kill(worker)
    ran = list(map(int, site.log.read_text().split()))
    assert set(ran) == set(range(tasks)), "some were lost"
    assert len(ran) - tasks <= 4 * (kills + 1)
    return kills + 1


def test_a_worker_that_is_killed_loses_no_task(site, record_property):
    record_property("kills", _account(site, 150, 3))


@pytest.mark.long
def test_a_worker_is_killed_fifty_times_in_5000_tasks(site, record_property):
    record_property("kills", _account(site, 5000, 50))
