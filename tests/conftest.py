"""Fixtures that every test file may use, and what a run tells at its end."""

import asyncio
import gc
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import postgres_server
import psycopg
import pytest
from clocks import Clock
from hypothesis import HealthCheck, settings
from processes import MEMORY
from proofs import prove_by_the_checkpoint

from lmdbqueue import PersistentQueue
from lmdbqueue._host import departures
from lmdbqueue._lmdb import snapshot
from lmdbqueue._local import environment
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.postgres import PostgresQueue, _database, _session
from lmdbqueue.postgres.aio import AsyncPostgresQueue

# LMDB asks for 2 MB of zeros at each opening: as a mapping, always, they cost nothing until they are used
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 17))  # for the processes that are started from here

# a shell that starts a run in the background has SIGINT ignored, and all that is started from here would ignore it, too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "lmdbqueue",
    deadline=None,
    max_examples=50,
    derandomize=os.environ.get("LMDBQUEUE_SEEK") != "1",  # what a commit is told must not depend on chance
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("lmdbqueue")

OpenQueue = Callable[..., PersistentQueue[Any]]


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Enable every logger: a test that configures logging disables all that exist, for the tests after it, too."""
    for each in logging.root.manager.loggerDict.values():
        if isinstance(each, logging.Logger):
            each.disabled = False


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handled_as_before() -> Iterator[None]:
    """Put back the handlers of signals: a consumer of Huey's leaves its own, and a child would inherit them."""
    before = [signal.getsignal(number) for number in _SIGNALS]
    yield
    for number, handler in zip(_SIGNALS, before, strict=True):
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


LOOKS_FOR_WHAT_IS_LEFT = os.environ.get("LMDBQUEUE_LEFT_OPEN") == "1"  # after each test, which fails then
_connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()  # to databases, that the library has made
_connect = _session.connect


def _connected(*args: Any) -> psycopg.Connection[Any]:
    connection = _connect(*args)
    _connections.add(connection)
    return connection


if LOOKS_FOR_WHAT_IS_LEFT:
    _session.connect = _connected


def _open_now() -> set[str]:
    """Return what this process has open of the library: directories, databases, connections, threads with a name."""
    directories = {f"the directory {each.directory.path}" for each in list(environment.environments.values())}
    databases = {f"the schema {schema} of {url}" for url, schema in list(_database._databases)}
    connections = {f"a connection, {id(each):x}" for each in list(_connections) if not each.closed}
    threads = {f"the thread {each.name}" for each in threading.enumerate() if each.name.startswith("lmdbqueue")}
    return directories | databases | connections | threads


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Fail a test that leaves something open, or a thread running: later ones would meet it."""
    before = _open_now() if LOOKS_FOR_WHAT_IS_LEFT else set()
    yield
    deadline = time.monotonic() + 10
    while LOOKS_FOR_WHAT_IS_LEFT and (left := _open_now() - before):
        assert time.monotonic() < deadline, f"still open after the test: {left}"
        gc.collect()  # what nobody can reach any more is closed then
        departures.wait(1)
        time.sleep(0.01)  # a thread may be on its way out


@pytest.fixture
def silent(monkeypatch) -> None:
    """Let the library log nothing."""
    monkeypatch.setattr(logging.getLogger("lmdbqueue"), "disabled", True)


@pytest.fixture
def memory() -> Iterator[str]:
    """Give a directory in which a flush costs nothing; a kill takes nothing from the page cache."""
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-", dir=MEMORY) as place:
        yield place


@pytest.fixture
def open_queue(tmp_path) -> Iterator[OpenQueue]:
    """Open queues under ``tmp_path``; at the end prove each of them whole, and close it."""
    opened: list[PersistentQueue[Any]] = []

    def open_(filename: str = "queue", **options: Any) -> PersistentQueue[Any]:
        queue: PersistentQueue[Any] = PersistentQueue(filename, tmp_path, **options)
        if open_.clock is not None:
            open_.clock.given_to(queue)
        opened.append(queue)
        return queue

    open_.clock = None
    open_.opened = opened
    yield open_
    for queue in opened:
        if not queue._engine.is_closed:
            assert queue.check() == []
            prove_by_the_checkpoint(queue)
            queue.close()


@pytest.fixture
def clocks(open_queue) -> Clock:
    """Give the clock of all queues that ``open_queue`` opens, and has opened."""
    open_queue.clock = Clock()
    for queue in open_queue.opened:
        open_queue.clock.given_to(queue)
    return open_queue.clock


@pytest.fixture
def queue(open_queue) -> PersistentQueue[Any]:
    """Give an empty queue."""
    return open_queue()


@pytest.fixture
def weighed_without_syncs(monkeypatch) -> None:
    """Let records be weighed with ``durability="off"``, too, so that a quick model proves that their weight is kept."""
    monkeypatch.setattr(snapshot, "is_weighed", lambda options: options.checksum)


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Skip a test where something that it needs is missing; with LMDBQUEUE_NO_SKIPS=1 let it fail."""

    def needs_(*wanted: str) -> None:
        special = {"root": os.geteuid() == 0, "loop devices": os.path.exists("/dev/loop-control")}
        special["Linux 6.11"] = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 11)
        if "pid namespaces" in wanted:
            tried = shutil.which("unshare") and subprocess.run(["unshare", "-p", "-f", "true"], check=False).returncode
            special["pid namespaces"] = tried == 0
        missing = [each for each in wanted if not special.get(each, shutil.which(each))]
        if missing:
            reason = f"NOT TESTED, since there is no {', no '.join(missing)} here"
            if os.environ.get("LMDBQUEUE_NO_SKIPS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)

    return needs_


@pytest.fixture(scope="session")
def needs_postgres() -> Callable[[], None]:
    """Skip a test where there is no PostgreSQL server; with LMDBQUEUE_NO_SKIPS=1 let it fail."""

    def needs() -> None:
        if postgres_server.programs() is None:
            reason = "NOT TESTED, since there is no PostgreSQL server here: install the package postgresql"
            if os.environ.get("LMDBQUEUE_NO_SKIPS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)

    return needs


@pytest.fixture(scope="session")
def postgres(needs_postgres) -> Iterator[postgres_server.Server]:
    """Give a server that all tests of a run share. No power is cut: it leaves out syncs, half of the time."""
    needs_postgres()
    server = postgres_server.Server(fsync="off").create().start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def kept_schema(postgres) -> Iterator[postgres_server.KeptSchema]:
    """Give a schema that many tests use one after the other: to make one takes longer than most of them."""
    kept = postgres_server.KeptSchema(postgres)
    yield kept
    kept.close()


@pytest.fixture
def schema(kept_schema) -> Iterator[str]:
    """Give the name of a schema that is empty, and that no other test uses now."""
    yield kept_schema.name
    kept_schema.empty()


@pytest.fixture
def open_postgres(postgres, schema) -> Iterator[Callable[..., PostgresQueue[Any]]]:
    """Open queues in a schema of this test; at the end prove all of them whole, and close them."""
    opened: list[PostgresQueue[Any]] = []

    def open_(name: str = "queue", patience: float = 30.0, **options: Any) -> PostgresQueue[Any]:
        queue: PostgresQueue[Any] = PostgresQueue(postgres.url(), name, **{"schema": schema, **options})
        queue._engine._hold.patience = patience  # from now on: opening may take longer on a busy machine
        opened.append(queue)
        return queue

    yield open_
    for queue in opened:
        if not queue._engine.is_closed:
            assert queue.check() == []
            queue.close()


# --- queues of an event loop


class Place:
    """Where a queue is, of one engine."""

    def __init__(self, kind, asynchronous, synchronous):
        self.kind = kind
        self.open_async = asynchronous
        self.open = synchronous

    def commits(self, queue):
        """Return how many changes there were."""
        if self.kind == "lmdb":
            return queue.queue._engine.environment._generation._env.info()["last_txnid"]
        database = queue.queue._engine.database
        return database.view(5.0, lambda step: step.execute("SELECT sum(token)::bigint FROM {ledger}").fetchone()[0])


@pytest.fixture(params=["lmdb", "postgres"])
def place(request):
    """Give where a queue is, of either engine; what is there is proven whole at the end."""
    if request.param == "lmdb":
        where = "queue", str(request.getfixturevalue("tmp_path"))
        classes, options = (AsyncPersistentQueue.open, PersistentQueue), {}
    else:
        where = (request.getfixturevalue("postgres").url(),)
        classes, options = (AsyncPostgresQueue.open, PostgresQueue), {"schema": request.getfixturevalue("schema")}
    place = Place(request.param, *(partial(each, *where, **options) for each in classes))
    yield place
    with place.open() as queue:
        assert queue.check() == []


@pytest.fixture
def run(place):
    """Return a function that runs ``test(queue)`` in a new loop, on the queue of the place."""

    def run_(test, **options):
        async def main():
            async with place.open_async(**options) as queue:
                await asyncio.wait_for(test(queue), 60)

        asyncio.run(main(), debug=False)

    return run_


TOLD = (
    "states after a power cut",
    "real power cuts",
    "kills",
    "interrupts",
    "swaps of the file",
    "injected faults",
    "full disks",
    "damaged files",
)


def _printable(value: Any) -> Any:
    """Return what a report holds with the bytes of paths that are no UTF-8 written as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    return type(value)(map(_printable, value)) if type(value) in (list, tuple) else value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Any:
    """Keep a report about a path that is no UTF-8 from ending the whole run: pytest-xdist sends UTF-8 only."""
    return _printable((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many crashes were tested."""
    everything = [report for found in terminalreporter.stats.values() for report in found]
    reports = [report for report in everything if getattr(report, "when", "") == "call"]
    for name in TOLD:
        numbers = [value for report in reports for key, value in report.user_properties if key == name]
        if numbers:
            terminalreporter.write_line(f"{sum(numbers):,} {name}, in {len(numbers)} tests")
