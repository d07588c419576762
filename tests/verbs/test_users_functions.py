"""Functions of the user's are called where nothing is held: others can begin a transaction meanwhile, and end it.

Each function asks another thread and another process to write to the same queue, before it returns.
"""

import copy
import logging
import pickle
import shutil
import threading
from functools import partial

import pytest
from old_queues import write_chunks, write_litequeue
from outsiders import DEADLINE, Outsiders, start_process

from lmdbqueue import PersistentQueue, Retry
from lmdbqueue._local import sharing
from lmdbqueue._model import invariants
from lmdbqueue._verbs.batch import Target
from lmdbqueue.forward import Forwarder
from lmdbqueue.legacy import import_file

_OPEN = "SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"


@pytest.fixture(scope="module")
def process():
    """Give the process that is asked."""
    with start_process() as process:
        yield process
        process.kill()


@pytest.fixture
def outsiders(engine, process, request):
    """Give the others of the queue that ``engine`` opens."""

    def transactions():
        """Return what a server's open transactions have done last."""
        if engine.kind == "lmdb":
            return []
        server = request.getfixturevalue("postgres")
        return [query for (query,) in server.execute(_OPEN)]

    others = Outsiders(process, partial(copy.copy, engine()), transactions)
    yield others
    assert others.asked
    assert others.found == []


@pytest.fixture
def queue(engine, outsiders):
    """Give a queue whose ``dumps`` and ``loads`` ask the others."""
    return engine(dumps=outsiders.asking("dumps", pickle.dumps), loads=outsiders.asking("loads", pickle.loads))


PUSHES = {
    "push": lambda queue: queue.push("a"),
    "push of a list": lambda queue: queue.push(["a", "b"]),
    "push_many": lambda queue: queue.push_many(iter(["a", "b"])),
    "push with options": lambda queue: queue.push("a", unique="key", replace=True, expires=60, headers={"a": "b"}),
    "put": lambda queue: queue.put("a"),
    "state": lambda queue: queue.state.update(a=1),
}


@pytest.mark.parametrize("verb", PUSHES)
def test_dumps_is_called_where_nothing_is_held(queue, outsiders, verb):
    PUSHES[verb](queue)
    assert "dumps" in outsiders.asked


def _leased(queue):
    with queue.lease(2) as lease:
        assert list(lease) == ["a", "b"]


def _rejected(queue):
    queue.dead_letter(queue.find("key"))
    assert [each.item for each in queue.dead] == ["c"]


def _read(queue):
    reader = queue.reader("reader")
    assert reader.peek(2) == ["a", "b"]
    assert reader.pop() == "a"
    assert reader.pop(2) == ["b", "c"]


READS = {
    "peek": lambda queue: queue.peek(2),
    "pop": lambda queue: queue.pop(),
    "pop of several": lambda queue: queue.pop(2),
    "peek_many": lambda queue: queue.peek_many(2, max_bytes=100),
    "pop_many": lambda queue: queue.pop_many(2, at_least=2, blocking=True),
    "get": lambda queue: queue.get(timeout=60),
    "iteration": list,
    "browse": lambda queue: list(queue.browse(on_error="skip")),
    "lease": _leased,
    "dead": _rejected,
    "reader": _read,
    "state": lambda queue: dict(queue.state),
}


@pytest.mark.parametrize("verb", READS)
def test_loads_is_called_where_nothing_is_held(engine, queue, outsiders, verb):
    quiet = engine()
    quiet.push(["a", "b"])
    quiet.push("c", unique="key")
    quiet.state["a"] = 1
    READS[verb](queue)
    assert "loads" in outsiders.asked


class _AskingRetry(Retry):
    ask = None

    def delay(self, attempts):
        _AskingRetry.ask("delay")
        return super().delay(attempts)


def test_what_work_is_given_is_called_where_nothing_is_held(queue, outsiders, monkeypatch):
    queue.push(["good", "again", "dead"])
    monkeypatch.setattr(_AskingRetry, "ask", outsiders.ask)
    handled = []

    def handle(item):
        handled.append(item)
        if item == "dead" or handled == ["good", "again"]:
            raise ValueError

    told = {name: outsiders.asking(name, lambda *_: None) for name in ("progress", "on_retry", "on_dead")}
    stop = outsiders.asking("stop", lambda: len(handled) == 5)
    queue.work(outsiders.asking("handler", handle), retry=_AskingRetry(2, base=0.0), stop=stop, **told)
    assert sorted(handled) == ["again", "again", "dead", "dead", "good"]
    assert set(outsiders.asked) == {"dumps", "loads", "handler", "delay", "stop", *told}


class _Asking(Target):
    """Takes everything, and asks the others in each of its methods."""

    def __init__(self, ask):
        self.ask, self.taken = ask, []

    @property
    def identity(self):
        self.ask("identity")
        return "elsewhere"

    def last(self, _origin):
        self.ask("last")

    def store(self, batch):
        self.ask("store")
        self.taken += batch.payloads

    def close(self):
        self.ask("close")


def test_what_a_forwarder_is_given_is_called_where_nothing_is_held(engine, outsiders):
    queue = engine()
    if engine.kind != "lmdb":
        outsiders.ask("")
        pytest.skip("a forwarder drains queues on this machine")
    queue.push(["a", "b"])
    target = _Asking(outsiders.ask)
    forwarder = Forwarder(queue, target, progress=outsiders.asking("progress", lambda _: forwarder.stop()))
    forwarder.run()
    target.close()
    assert list(map(pickle.loads, target.taken)) == ["a", "b"]
    assert {"identity", "last", "store", "progress"} <= set(outsiders.asked)


@pytest.mark.parametrize("write", [write_chunks, write_litequeue])
def test_what_an_import_is_given_is_called_where_nothing_is_held(engine, outsiders, tmp_path, write):
    if engine.kind != "lmdb":
        outsiders.ask("")
        pytest.skip("imports go into queues on this machine")
    old, new = str(tmp_path / "old"), engine()._engine.path
    expected = write(old)
    functions = {"dumps": pickle.dumps, "loads": pickle.loads, "progress": lambda *_: None}
    functions = {name: outsiders.asking(name, fn) for name, fn in functions.items()}
    for is_repeated in (False, True):
        assert import_file(old, new, **functions).is_repeated == is_repeated
    assert list(engine()) == expected.items
    assert set(outsiders.asked) == {"dumps", "loads", "progress"}


def test_the_progress_of_an_opening_holds_up_nobody(tmp_path, process, monkeypatch):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push(["a", "b"])
    shutil.copytree(tmp_path / "queue", tmp_path / "copy")  # which is proven as a whole
    monkeypatch.setattr(sharing, "_REPORT", 0.001)
    others = Outsiders(process, partial(PersistentQueue, "copy", tmp_path))
    is_told = threading.Event()
    prove = invariants.of_file

    def proven_until_told(path, options, progress):
        found = prove(path, options, progress)
        assert is_told.wait(DEADLINE)
        return found

    def told(_done, _total):
        is_told.set()
        others.ask("progress")

    monkeypatch.setattr(invariants, "of_file", proven_until_told)
    with PersistentQueue("copy", tmp_path, progress=told) as queue:
        assert list(queue) == ["a", "b"]
    assert others.asked
    assert others.found == []


class _AskingHandler(logging.Handler):
    """A handler that asks others to use the queue, and waits for their answer."""

    def __init__(self, others):
        super().__init__()
        self.others = others
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())
        self.others.ask("log")


def test_what_an_opening_logs_holds_up_nobody(tmp_path, process, monkeypatch, caplog):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push(["a", "b"])
    shutil.copytree(tmp_path / "queue", tmp_path / "copy")  # which is proven as a whole
    handler = _AskingHandler(Outsiders(process, partial(PersistentQueue, "copy", tmp_path)))
    monkeypatch.setattr(logging.getLogger("lmdbqueue"), "handlers", [handler])
    caplog.set_level(logging.INFO, "lmdbqueue")
    with PersistentQueue("copy", tmp_path) as queue:
        assert list(queue) == ["a", "b"]
    assert any("verifying all of its" in message for message in handler.messages)
    assert handler.others.found == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_logging_handler_that_raises_loses_nothing_of_what_an_opening_logs(error, tmp_path, monkeypatch, caplog):
    class Raising(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage().partition(":")[0])
            if len(told) == 1:
                raise error

    told = []
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push(["a", "b"])
    for name in ("copy", "another"):
        shutil.copytree(tmp_path / "queue", tmp_path / name)
    caplog.set_level(logging.INFO, "lmdbqueue")
    monkeypatch.setattr(logging.getLogger("lmdbqueue"), "handlers", [Raising()])
    with pytest.raises(error):
        PersistentQueue("copy", tmp_path)
    with PersistentQueue("another", tmp_path):
        of_each = [sum(f"/{name}/" in message for message in told) for name in ("copy", "another")]
    assert of_each[0] == of_each[1] > 1


def test_what_the_progress_of_an_opening_raises_leaves_nothing_open(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
    shutil.copytree(tmp_path / "queue", tmp_path / "copy")

    def fail(_done, _total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PersistentQueue("copy", tmp_path, progress=fail)
    with open(tmp_path / "copy" / "session", "rb") as file:
        assert file.read()[24:30] == b"closed"
    with PersistentQueue("copy", tmp_path) as queue:
        assert list(queue) == ["a"]
