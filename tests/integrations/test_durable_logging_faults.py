"""Log records amid what ends, forks, fails or interrupts: nothing waits for itself, nothing is lost without a word."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from processes import eventually, forked, status_of

from lmdbqueue import DiskFullError, PersistentQueue, Retry
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue.integrations.logging import DurableHandler, DurableListener, _fields


class Collector(logging.Handler):
    """Keeps the messages."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def stored(place):
    collector = Collector()
    with DurableListener(place / "log", collector):
        pass
    return collector.messages


def ends(fn, within=10):
    """Return whether a call in a thread of its own ends."""
    thread = threading.Thread(target=fn, daemon=True)
    thread.start()
    thread.join(within)
    return not thread.is_alive()


def full(*_, **__):
    raise DiskFullError("bytes", 1, 1, 1)


# --- the handler


def test_a_record_that_comes_after_the_end_is_reported_with_linger_too(log, monkeypatch):
    failed = []
    monkeypatch.setattr(DurableHandler, "handleError", lambda _, record: failed.append(record.getMessage()))
    logger = log(linger=0.001)
    logger.info("in time")
    logger.handlers[0].close()
    logger.info("too late")
    assert failed == ["too late"]


def test_logging_s_shutdown_meets_a_closed_queue(log, capsys):
    logger = log(linger=60.0)
    handler = logger.handlers[0]
    logger.info("lost")
    handler.queue.close()
    logging.shutdown([weakref.ref(handler)])
    assert "ClosedError" in capsys.readouterr().err


def test_a_flush_ends_though_others_log_on(log, tmp_path):
    logger = log(linger=0.001)
    handler = logger.handlers[0]
    push, is_over = handler.queue.push, threading.Event()

    def push_and_log(items):
        if not is_over.is_set():
            logger.info("and on")  # there is always one more
        return push(items)

    handler.queue.push = push_and_log
    logger.info("first")
    try:
        assert ends(handler.flush)
    finally:
        is_over.set()
    handler.flush()
    assert stored(tmp_path)[0] == "first"


@pytest.mark.parametrize("what", ["flush", "close"])
def test_in_a_transaction_of_the_same_directory_nothing_waits_for_itself(log, tmp_path, what):
    logger = log(linger=60.0)
    handler = logger.handlers[0]

    def amid():
        with PersistentQueue("log", tmp_path, name="work", durability="off") as work, work.transaction():
            work.push(1)
            logger.info("stored")
            getattr(handler, what)()

    assert ends(amid)
    assert ends(handler.flush)
    eventually(lambda: what == "flush" or not handler._later._is_working)
    assert stored(tmp_path) == ["stored"]


def test_amid_a_call_on_the_directory_a_record_is_handed_over_and_a_flush_does_not_wait(log, tmp_path):
    logger = log()
    handler = logger.handlers[0]

    def amid():
        with handler.queue._engine.environment._writer:  # as a signal's handler comes amid a push
            logger.info("handed over")
            handler.flush()

    assert ends(amid)
    handler.flush()
    assert stored(tmp_path) == ["handed over"]


def test_a_record_amid_a_call_does_not_wait_for_another_thread_that_closes_the_handler(log, tmp_path):
    logger = log()
    handler = logger.handlers[0]
    handler._later.add(_fields(logging.makeLogRecord({"msg": "first"}), None))  # which starts its thread
    handler.flush()
    engine, failed = handler.queue._engine, []
    handler.handleError = failed.append
    closing = threading.Thread(target=handler.close, daemon=True)

    def amid():
        with engine.environment._writer:  # as an object's end, or a signal's handler, comes amid a push
            closing.start()
            eventually(lambda: engine.is_closed)
            handler._here.is_pushing = True
            logger.info("too late")

    assert ends(amid)
    closing.join(10)
    assert not closing.is_alive()
    assert [record.getMessage() for record in failed] == ["too late"]
    assert stored(tmp_path) == ["first"]


@pytest.mark.parametrize("when", ["before it leads", "before it hands on"])
def test_a_flush_amid_a_call_that_leads_others_waits_for_none_of_them(log, tmp_path, monkeypatch, when):
    logger = log()
    handler = logger.handlers[0]
    logger.info("first")
    environment = handler.queue._engine.environment
    line = environment._line
    run, began = line._run, []

    def log_once():  # a signal's handler comes just there
        if not began:
            began.append(1)
            logger.info("signal")
            eventually(lambda: len(line.waiting) == 2 and line.waiting[1].turn)

    class Right:
        def __enter__(self):
            if when == "before it leads" and not began:
                log_once()
                handler.flush()
            return environment._writer.__enter__()

        def __exit__(self, *error):
            environment._writer.__exit__(*error)
            if when == "before it hands on" and len(began) == 1:
                began.append(2)
                handler.flush()

    def run_with_another(calls):
        if when == "before it hands on":
            log_once()
        run(calls)

    monkeypatch.setattr(line, "_right", Right())
    monkeypatch.setattr(line, "_run", run_with_another)
    monkeypatch.setattr("lmdbqueue._local.commit_line._PATIENCE", 3600.0)
    environment._lone[""] = 0  # so that it stands in the line
    assert ends(lambda: logger.info("program"))
    environment._lone.clear()
    assert ends(handler.flush)
    assert sorted(stored(tmp_path)) == ["first", "program", "signal"]


@pytest.mark.parametrize("linger", [0.0, 0.001])
def test_a_signal_s_handler_that_logs_and_flushes_comes_amid_any_step(log, tmp_path, linger):
    logger = log(linger=linger)

    def child():
        told, inside = [], []

        def tell(*_):
            if inside:  # else a slow machine nests them ever deeper
                return
            inside.append(1)
            told.append(1)
            logger.info("signal")
            logger.handlers[0].flush()
            inside.clear()

        signal.signal(signal.SIGALRM, tell)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        for _ in range(2000):
            logger.info("program")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert told
        logger.info("%d", len(told))
        logger.handlers[0].close()

    assert status_of(forked(child), 60) == 0
    found = stored(tmp_path)
    assert found.count("program") == 2000
    (told,) = [message for message in found if message.isdecimal()]
    assert found.count("signal") == int(told)


def test_an_error_in_handle_error_ends_no_thread(log, monkeypatch, tmp_path):
    logger = log(linger=0.001)
    handler = logger.handlers[0]
    logger.info("one")
    handler.flush()
    with monkeypatch.context() as patched:
        patched.setattr(handler, "handleError", lambda _: os.write(-1, b""))
        patched.setattr(handler.queue, "push", full)
        logger.info("lost")
        handler.flush()
    logger.info("two")
    assert ends(handler.flush)
    assert stored(tmp_path) == ["one", "two"]


def test_the_end_of_a_program_pushes_what_lingers_and_what_is_logged_at_its_end(tmp_path):
    program = (
        "import atexit, logging, threading\n"
        "from lmdbqueue.integrations.logging import DurableHandler\n"
        "atexit.register(lambda: logging.getLogger('c').error('at the very end'))\n"
        f"logging.getLogger('a').addHandler(DurableHandler({str(tmp_path / 'log')!r}, linger=60))\n"
        f"logging.getLogger('b').addHandler(DurableHandler({str(tmp_path / 'log')!r}, linger=60))\n"
        f"logging.getLogger('c').addHandler(DurableHandler({str(tmp_path / 'log')!r}))\n"
        "atexit.register(logging.getLogger('b').error, 'at its end')\n"
        "logging.getLogger('a').error('before')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert sorted(stored(tmp_path)) == ["at its end", "at the very end", "before"]


LATE = {
    "a record that lingers": ("handler = DurableHandler(path, linger=0.001)", "logger.error('late')"),
    "a thread amid a push": (
        "handler = DurableHandler(path)",
        """threading.Thread(target=logger.error, args=('late',), daemon=True).start()
while not handler.queue._engine.environment._lone: time.sleep(0.001)""",
    ),
}


@pytest.mark.parametrize("first", ["logging", "lmdbqueue"])  # the functions of atexit run in the other order
@pytest.mark.parametrize("what", LATE)
def test_the_end_of_a_program_waits_for_no_process_that_holds_the_directory(tmp_path, first, what):
    make, log_late = LATE[what]
    program = (
        f"import {first}, logging, threading, time\n"
        "from lmdbqueue._host import departures\n"
        "departures.PATIENCE = 0.1\n"
        "from lmdbqueue.integrations.logging import DurableHandler\n"
        f"path = {str(tmp_path / 'log')!r}\n"
        f"{make}\n"
        "logger = logging.getLogger()\n"
        "logger.addHandler(handler)\n"
        "logger.error('in time')\n"
        "handler.flush()\n"
        "input()\n"
        f"{log_late}\n"
    )
    with (
        PersistentQueue("log", tmp_path, durability="off") as log,
        subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1, text=True) as process,
    ):
        eventually(lambda: len(log) == 1)
        with log.transaction():
            log.push("it holds the directory")
            try:
                said = process.communicate("\n", timeout=30)[1]
            finally:
                process.kill()
    assert process.returncode == 0, said
    assert ("TimeoutError: the queue could not be written to" in said) == (what == "a record that lingers")


def test_a_handler_pushes_where_no_thread_can_be_had(log, tmp_path, monkeypatch):
    def none(*_):
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr("lmdbqueue.integrations._later.start_new_thread", none)
    logger = log(linger=60.0)
    logger.info("one")
    logger.handlers[0].flush()
    logger.info("two")
    logger.handlers[0].close()
    assert stored(tmp_path) == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_of_multiprocessing_that_ends_pushes_what_lingers(log, tmp_path):
    logger = log(linger=60.0)
    logger.info("parent")
    child = multiprocessing.get_context("fork").Process(target=logger.info, args=("child",))
    child.start()
    child.join()
    assert child.exitcode == 0
    logger.handlers[0].flush()
    assert sorted(stored(tmp_path)) == ["child", "parent"]


def test_threads_of_a_forked_child_log_at_once_and_leave_what_is_the_parent_s(log, tmp_path):
    logger = log(linger=60.0)
    logger.info("parent")

    def child():
        gate = threading.Barrier(8)

        def run(number):
            gate.wait()
            logger.info("%d", number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logger.handlers[0].flush()

    assert status_of(forked(child)) == 0
    logger.handlers[0].flush()
    assert sorted(stored(tmp_path)) == [*map(str, range(8)), "parent"]


# --- the listener


def test_a_listener_whose_queue_is_closed_ends(tmp_path):
    listener = DurableListener(tmp_path / "log", Collector())
    listener.start()
    thread = listener._thread
    listener.queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert ends(listener.stop)


def test_a_handler_may_stop_its_listener_and_start_it_again(log, tmp_path):
    logger = log()

    class Stopper(Collector):
        def emit(self, record):
            super().emit(record)
            listener.stop()

    stopper = Stopper()
    listener = DurableListener(tmp_path / "log", stopper, batch=1)
    logger.info("one")
    logger.info("two")
    listener.start()
    eventually(lambda: listener.queue._engine.is_closed)
    assert stopper.messages == ["one"]
    listener.start()
    eventually(lambda: stopper.messages == ["one", "two"])


def test_a_listener_stops_though_the_disk_fails(log, tmp_path, monkeypatch):
    logger = log()
    monkeypatch.setattr("lmdbqueue.integrations.logging._LOOK", 0.01)
    listener = DurableListener(tmp_path / "log", Collector())
    with monkeypatch.context() as patched:
        for what in ("count", "lease"):
            patched.setattr(LocalEngine, what, full)
        logger.info("it stays")
        listener.start()
        assert ends(listener.stop)
    assert stored(tmp_path) == ["it stays"]


def test_a_handler_that_exits_fails_as_any_other(log, tmp_path):
    class Exiting(Collector):
        def emit(self, record):
            super().emit(record)
            if record.getMessage() == "bad":
                sys.exit(1)

    logger = log()
    for message in ("bad", "good"):
        logger.info(message)
    exiting = Exiting()
    with DurableListener(tmp_path / "log", exiting, retry=Retry(max_attempts=1)) as listener:
        eventually(lambda: len(listener.queue.dead) == 1)
    assert exiting.messages == ["bad", "good"]


def test_a_listener_runs_in_a_forked_child_too_if_it_is_started_there(log, tmp_path):
    logger = log()
    collector = Collector()
    listener = DurableListener(tmp_path / "log", collector)
    listener.start()

    def child():
        logger.info("child")
        listener.start()
        listener.stop()
        assert collector.messages == ["child"]

    opened = listener.queue
    thread = listener._thread
    listener.stop()
    assert opened is listener.queue, "it was opened once"
    listener.start()
    listener.queue.shutdown()  # so that this one takes nothing
    eventually(lambda: not thread.is_alive())
    assert status_of(forked(child)) == 0
    listener.stop()


def test_a_listener_that_is_stopped_at_once_hands_on_what_was_logged_before(log, tmp_path):
    logger = log()
    collector = Collector()
    for number in range(50):
        logger.info("%d", number)
        with DurableListener(tmp_path / "log", collector):
            time.sleep(0)
    assert collector.messages == [str(number) for number in range(50)]
