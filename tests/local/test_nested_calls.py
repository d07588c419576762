"""Calls from within calls of the same thread: of signals' handlers, of ``__del__`` in the collector, of finalizers.

None of them may wait for the call that it came amid, for this process or for others. A moment is planted by calling the
handler where a function of the library begins or one of C returns, which is where Python itself would call it.
"""

import gc
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import pytest
from processes import DEADLINE, STEP, Moments, eventually, forked, is_taken, status_of

from lmdbqueue import ClosedError, Empty, NestedCallError, PersistentQueue, QueueError
from lmdbqueue._host import departures, directory
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._local import environment as _env
from lmdbqueue._verbs.hands import Hands

FAST = {"durability": "off"}


def _push(queue):
    queue.push("nested")


def _read(queue):
    len(queue)
    queue.peek(3)
    queue.stats()


def _close(queue):
    queue.close()


def _wait(queue):
    with suppress(Empty):
        queue.get(timeout=0.001)


def _lease(queue):
    with queue.lease():
        pass


def _open_another(queue):
    PersistentQueue(queue.filename, queue.path, name="another", **FAST).close()


def _flush(queue):
    queue.flush(force=True)


NESTED = {
    "push": _push,
    "read": _read,
    "close": _close,
    "wait": _wait,
    "lease": _lease,
    "open": _open_another,
    "flush": _flush,
}


def _block(queue):
    with queue.transaction():
        queue.push("in a block")
        queue.pop()


OUTER = {
    "push": lambda queue: queue.push(["outer"] * 3),
    "pop": lambda queue: queue.pop(),
    "get": _wait,
    "lease": _lease,
    "block": _block,
    "flush": _flush,
    "open": _open_another,
    "peek": lambda queue: queue.peek(2),
}


def _run(place, outer, nested):
    """Call ``nested`` at one moment after the other of ``outer``; the queue is whole and free after each."""
    number = 1
    refused = 0
    while True:
        queue = PersistentQueue("queue", place, **FAST)
        queue.push(["a", "b", "c"])
        told = []

        def handle(queue=queue, told=told):
            try:
                NESTED[nested](queue)
            except NestedCallError as error:
                told.append(error)
            except QueueError:
                pass

        moments = Moments(number, handle)
        with suppress(QueueError), moments:  # closed, or spoiled by what came amid the block
            OUTER[outer](queue)
        refused += bool(told)
        queue.close()
        assert departures.wait(DEADLINE)
        with PersistentQueue("queue", place, **FAST) as again:
            again.push("after")
            assert again.check() == []
            again.clear(all=True)
        if moments.left > 0:
            return
        number += STEP * (5 if outer != "flush" else 40)  # of which there are 2,000


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("outer", OUTER)
def test_no_call_waits_for_the_call_of_the_same_thread_that_it_came_amid(tmp_path, outer, nested):
    assert status_of(forked(_run, tmp_path, outer, nested), DEADLINE) == 0


def _open_by_another_path(place):
    told = []
    refuse = directory.refuse_read_only

    def refuse_amid_which_a_signal_comes(path):  # with the lock of the directory
        directory.refuse_read_only = refuse
        os.rename(place / "queue", place / "renamed")
        try:
            PersistentQueue("renamed", place)
        except NestedCallError as error:
            told.append(error)
        finally:
            os.rename(place / "renamed", place / "queue")
        refuse(path)

    PersistentQueue("queue", place).close()
    directory.refuse_read_only = refuse_amid_which_a_signal_comes
    with PersistentQueue("queue", place) as queue:
        queue.push("a")
        assert list(queue) == ["a"]
    assert told


def test_no_opening_waits_for_one_of_the_same_thread_and_directory_by_another_path(tmp_path):
    assert status_of(forked(_open_by_another_path, tmp_path), 20) == 0


def _call_amid_a_reading(place, nested):
    """Call ``nested`` amid a reading for whose end another thread waits, which holds what writers need."""
    with PersistentQueue("queue", place, **FAST) as queue:
        PersistentQueue("queue", place, name="other", **FAST).close()
        queue.push(["a", "b"])
        engine, told = queue._engine, []
        environment = engine.environment
        dropper = threading.Thread(target=queue.drop_queue, args=("other",))

        def read(_, __):
            dropper.start()
            eventually(lambda: environment._generation is None)
            try:
                NESTED[nested](queue)
            except NestedCallError as error:
                told.append(error)

        with suppress(ClosedError):
            environment.view(engine.ref, read)
        dropper.join(DEADLINE)
        assert not dropper.is_alive()
        assert told or nested == "close"
    with PersistentQueue("queue", place, **FAST) as again:
        assert list(again) == ["a", "b"]
        assert again.check() == []


@pytest.mark.parametrize("nested", NESTED)
def test_no_call_amid_a_reading_waits_for_those_who_wait_for_that_reading(tmp_path, nested):
    assert status_of(forked(_call_amid_a_reading, tmp_path, nested), DEADLINE) == 0


def _call_amid(place, nested, owner, name, outer):
    """Call ``nested`` in ``outer``, where ``name`` is called, while a writer of another thread waits for ``outer``."""
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.push(["a", "b"])
        environment, told, moving = queue._engine.environment, [], []
        assert status_of(forked(_compact, place)) == 0  # so the writer has to move
        writer = threading.Thread(target=queue.push, args=("by another thread",))
        inner, move = getattr(owner, name), environment._move
        environment._move = lambda *args: (moving.append(threading.get_ident()), move(*args))

        def amid(*args):
            setattr(owner, name, inner)
            writer.start()
            eventually(lambda: writer.ident in moving)  # with the right to write
            try:
                NESTED[nested](queue)
            except NestedCallError as error:
                told.append(error)
            return inner(*args)

        setattr(owner, name, amid)
        with suppress(ClosedError):
            outer(queue)
        writer.join(DEADLINE)
        assert not writer.is_alive()
        assert told or nested in ("close", "read")
    assert departures.wait(DEADLINE)
    with PersistentQueue("queue", place, **FAST) as again:
        assert [item for item in again if item != "by another thread"] == ["a", "b"]
        assert again.check() == []


def _compact(place):
    with PersistentQueue("queue", place, **FAST) as queue:
        queue.flush(force=True)


@pytest.mark.parametrize("nested", NESTED)
def test_no_call_amid_a_move_waits_for_a_writer_who_waits_for_that_move(tmp_path, nested):
    assert status_of(forked(_call_amid, tmp_path, nested, _env.Environment, "_open_live", len), DEADLINE) == 0


@pytest.mark.parametrize("nested", NESTED)
def test_no_call_amid_an_opening_waits_for_a_writer_who_waits_for_that_opening(tmp_path, nested):
    """They wait for the lock of the directory."""
    outer = _open_another
    assert status_of(forked(_call_amid, tmp_path, nested, directory, "refuse_read_only", outer), DEADLINE) == 0


def test_a_push_amid_a_reading_is_stored_if_nobody_waits_for_that_reading(open_queue):
    queue = open_queue(**FAST)
    queue.push(["a", "b"])
    engine = queue._engine

    def read(_, __):
        queue.push("nested")
        queue.pop()
        with queue.lease():
            return queue.stats().waiting

    assert engine.environment.view(engine.ref, read) == 1
    assert list(queue) == ["nested"]
    assert queue.check() == []


@pytest.mark.parametrize("nested", ["push", "read", "open", "block"])
def test_no_call_joins_a_block_that_has_been_committed(open_queue, monkeypatch, nested):
    queue, told = open_queue(**FAST), []
    secure = Generation.secure

    def secure_amid_which_a_signal_comes(generation, transaction):
        monkeypatch.setattr(Generation, "secure", secure)
        try:
            {**NESTED, "block": _block}[nested](queue)
        except NestedCallError as error:
            told.append(error)
        secure(generation, transaction)

    with queue.transaction():
        queue.push(["a", "b"])
        monkeypatch.setattr(Generation, "secure", secure_amid_which_a_signal_comes)
    assert told
    assert queue.pop(2) == ["a", "b"]


class _Pushes:
    """Refers to itself, so only the collector lets it go."""

    def __init__(self, queue, told):
        self.queue = queue
        self.told = told
        self.itself = self

    def __del__(self):
        try:
            self.queue.push("from __del__")
        except QueueError as error:
            self.told.append(error)


def _amid_a_transaction(generation, do):
    """Have ``do()`` called when a write transaction has just begun."""
    begin = generation.begin

    def begin_and_do(operation):
        generation.begin = begin
        txn = begin(operation)
        do()
        return txn

    generation.begin = begin_and_do


def _collect_amid_a_push(place):
    told = []
    with PersistentQueue("queue", place) as queue, PersistentQueue("other", place) as other:
        gc.disable()
        _Pushes(queue, told)
        _Pushes(other, told)
        _amid_a_transaction(queue._engine.environment._generation, gc.collect)
        queue.push("outer")
        assert [type(error) for error in told] == [NestedCallError]
        assert "make the call in another thread" in str(told[0])
        assert list(queue) == ["outer"]
        assert list(other) == ["from __del__"]  # another directory has locks of its own
        assert queue.check() == []


def test_a_push_by_the_collector_amid_a_push_is_refused_and_the_outer_one_is_done(tmp_path):
    assert status_of(forked(_collect_amid_a_push, tmp_path), DEADLINE) == 0


def _log_amid_a_push(place):
    with PersistentQueue("log", place) as queue:
        handler = logging.handlers.QueueHandler(queue)
        handler.handleError = lambda _record: None
        logger = logging.Logger("test")  # noqa: LOG001  (of this test alone)
        logger.addHandler(handler)

        class Logs:
            def __init__(self):
                self.itself = self

            def __del__(self):
                logger.warning("collected")

        gc.disable()
        Logs()
        _amid_a_transaction(queue._engine.environment._generation, gc.collect)
        logger.warning("outer")
        assert [record.getMessage() for record in queue] == ["outer"]
        logger.warning("after")
        assert len(queue) == 2


def test_logging_by_the_collector_through_the_documented_handler_hangs_nobody(tmp_path):
    assert status_of(forked(_log_amid_a_push, tmp_path), DEADLINE) == 0


def test_a_handler_that_closes_and_exits_amid_a_push_ends_the_program(tmp_path):
    program = f"""
        import os, signal, sys
        from lmdbqueue import PersistentQueue
        queue = PersistentQueue("queue", {str(tmp_path)!r})
        queue.push("before")
        lease = queue.lease()

        def stop(*_):
            queue.close()
            sys.exit(7)

        signal.signal(signal.SIGTERM, stop)
        generation = queue._engine.environment._generation
        begin = generation.begin

        def begin_and_die(operation):
            txn = begin(operation)
            os.kill(os.getpid(), signal.SIGTERM)
            return txn

        generation.begin = begin_and_die
        queue.push("amid")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=30, check=False, capture_output=True
    )
    assert done.returncode == 7, done.stderr.decode()
    with PersistentQueue("queue", tmp_path) as queue:
        assert list(queue) == ["before"]  # whose lease ended with its owner
        assert queue.check() == []


def test_a_real_handler_of_a_signal_pushes_again_and_again_amid_the_verbs_of_its_thread(tmp_path):
    def run():
        queue = PersistentQueue("queue", tmp_path, **FAST)
        stored, refused = [], []

        def handle(*_):
            try:
                stored.append(queue.push("by the handler"))
            except NestedCallError as error:
                refused.append(error)

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        deadline = time.monotonic() + 20
        pushed = 0
        while (len(stored) < 100 or len(refused) < 20) and time.monotonic() < deadline:
            queue.push("mine")
            pushed += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert refused
        assert stored
        assert len(queue) == pushed + len(stored)
        assert queue.check() == []

    assert status_of(forked(run), DEADLINE) == 0


# --- finalizers


def test_the_collector_takes_no_lock_and_touches_no_file_for_a_queue_that_is_let_go(tmp_path, monkeypatch):
    queue = PersistentQueue("queue", tmp_path)
    queue.push("a")
    queue.lease()
    environment = queue._engine.environment
    seen = set()
    for module, name in ((Generation, "close"), (_env.Environment, "release"), (type(queue._engine.owners), "leave")):
        done = getattr(module, name)

        def told(self, *args, _done=done):
            seen.add(threading.get_ident())
            return _done(self, *args)

        monkeypatch.setattr(module, name, told)
    with environment._writer:  # as amid a call
        del queue
        gc.collect()
        assert environment.handles == 1 or threading.get_ident() not in seen
    eventually(lambda: not environment.handles)
    assert departures.wait(DEADLINE)
    assert seen
    assert threading.get_ident() not in seen
    with PersistentQueue("queue", tmp_path) as again:
        assert list(again) == ["a"]


def test_the_collector_undoes_a_block_that_nobody_leaves_and_closes_nothing_itself(tmp_path, monkeypatch):
    queue = PersistentQueue("queue", tmp_path)
    queue.push("before")
    environment = queue._engine.environment
    closed = []
    close = _env.Environment._close
    monkeypatch.setattr(_env.Environment, "_close", lambda self: (closed.append(threading.get_ident()), close(self)))
    block = queue.transaction()
    block.__enter__()
    queue.push("undone")
    queue.close()
    del block
    gc.collect()
    assert departures.wait(DEADLINE)
    assert not environment.handles
    assert closed
    assert threading.get_ident() not in closed
    with PersistentQueue("queue", tmp_path) as again:
        assert list(again) == ["before"]


def test_what_is_let_go_at_the_end_of_a_program_is_closed(tmp_path):
    program = f"""
        from lmdbqueue import PersistentQueue
        queue = PersistentQueue("queue", {str(tmp_path)!r})
        queue.push("a")
        queue.lease()
        other = PersistentQueue("other", {str(tmp_path)!r})
        del other
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=30, check=True)
    assert not [name for name in os.listdir(tmp_path / "queue") if name.startswith("owner-")]
    with open(tmp_path / "queue" / "session", "rb") as file:
        assert file.read()[24:30] == b"closed"


def test_a_close_amid_a_call_closes_once_the_call_has_ended(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    environment = queue._engine.environment
    _amid_a_transaction(environment._generation, queue.close)
    queue.push("outer")  # goes on: it had begun
    with pytest.raises(ClosedError):
        queue.push("more")
    assert departures.wait(DEADLINE)
    assert environment._generation is None
    assert not is_taken(environment._writer)
    with PersistentQueue("queue", tmp_path) as again:
        assert list(again) == ["outer"]


def test_a_get_that_another_one_of_its_thread_came_amid_still_counts_as_reaching_for_an_item():
    """Else a join might end between the taking and the counting."""
    hands, seen = Hands(), []

    def take():
        hands.reach(lambda: None)  # of a signal's handler
        seen.append(list(hands._reaching))
        return "item"

    assert hands.reach(take) == "item"
    assert seen == [[threading.get_ident()]]
    assert not hands._reaching


def test_a_block_that_comes_amid_a_call_of_another_one_is_refused_and_harms_it_not(open_queue):
    queue, told = open_queue(**FAST), []

    def amid_which_a_signal_comes(_txn, _tables):
        try:
            with queue.transaction():
                queue.push("nested")
        except NestedCallError as error:
            told.append(error)
        return ()

    with queue.transaction():
        queue.push("a")
        queue._engine.environment.update(queue._engine.ref, amid_which_a_signal_comes)
    assert told
    assert queue.pop(2) == ["a"]


_ENDS = """
import os, sys, threading
from lmdbqueue import PersistentQueue
from lmdbqueue._host import departures

departures.PATIENCE = 0.05
queues = [PersistentQueue("queue", durability="off") for _ in range(2)]
other = PersistentQueue("other")
other.push("a")
other.lease()  # makes it an owner
print("ready", flush=True)
if input() == "write":
    threading.Thread(target=queues[0].push, args=("waits",), daemon=True).start()
    while not queues[0]._engine.environment._lone:
        pass


def refused(*_):
    raise RuntimeError


if sys.argv[1] == "refused":  # as Python 3.12 does when the program ends
    departures.start_new_thread = refused
"""


@pytest.mark.parametrize("threads", ["refused", "as this Python has them"])
@pytest.mark.parametrize("held", ["write lock", "directory lock"])
def test_a_program_ends_while_another_process_holds_what_it_would_close_with(tmp_path, held, threads):
    """And all that does not wait for that is closed."""
    with (
        PersistentQueue("queue", tmp_path, **FAST) as queue,
        subprocess.Popen(
            [sys.executable, "-c", _ENDS, threads],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as program,
    ):
        try:
            assert program.stdout.readline() == b"ready\n"
            directory = queue._engine.environment.directory
            with queue.transaction() if held == "write lock" else directory.lock():
                program.stdin.write(b"write\n" if held == "write lock" else b"end\n")
                program.stdin.flush()
                assert program.wait(DEADLINE / 4) == 0
        finally:
            program.kill()
        assert queue.count() == 0
    assert not [name for name in os.listdir(tmp_path / "other") if name.startswith("owner-")]
    with open(tmp_path / "other" / "session", "rb") as file:
        assert file.read()[24:30] == b"closed"
