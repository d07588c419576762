"""Log records that survive the program: the handler, the listener, and what kills either."""

import json
import logging
import logging.config
import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import count

import pytest
from processes import KILLED, eventually, forked, status_of

from lmdbqueue import PersistentQueue, Retry
from lmdbqueue.integrations.logging import DurableHandler, DurableListener, decode, encode

SOON = Retry(max_attempts=3, base=0.01, jitter=0.0)


class Collector(logging.Handler):
    """Keeps what it takes; raises for messages that begin with ``bad``, in the way it is told."""

    def __init__(self, how="", level=logging.NOTSET):
        super().__init__(level)
        self.how = how
        self.records = []
        self.tries = 0

    def emit(self, record):
        if record.getMessage().startswith("bad"):
            self.tries += 1
            if self.how == "raises":
                os.write(-1, b"")
            if self.how == "tells":
                try:
                    os.write(-1, b"")
                except OSError:
                    self.handleError(record)
                    return
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


def listened(place, *handlers, **options):
    with DurableListener(place / "log", *handlers, **options):
        pass


# --- records


def test_a_record_is_json_and_comes_back_with_all_that_handlers_use(log, tmp_path):
    logger = log()
    logger.warning("%s took %d ms", "/a", 7, extra={"user": "Ann", "path": tmp_path, 1: 2}, stack_info=True)
    try:
        int("no number")
    except ValueError:
        logger.exception("it failed")
    raw = PersistentQueue("log", tmp_path, durability="off", dumps=bytes, loads=bytes)
    stored = json.loads(raw.peek())
    raw.close()
    assert stored["msg"] == "/a took 7 ms"
    collector = Collector()
    listened(tmp_path, collector)
    first, second = collector.records
    assert (first.getMessage(), first.levelname, first.user, first.path) == (
        "/a took 7 ms",
        "WARNING",
        "Ann",
        repr(tmp_path),
    )
    assert (first.filename, first.module) == ("test_durable_logging.py", "test_durable_logging")
    assert (first.process, first.funcName) == (
        os.getpid(),
        "test_a_record_is_json_and_comes_back_with_all_that_handlers_use",
    )
    assert first.stack_info.startswith("Stack")
    told = logging.Formatter("%(asctime)s.%(msecs)d %(message)s").format(second)
    assert "it failed\nTraceback" in told
    assert "ValueError: invalid literal" in told


@pytest.mark.parametrize("extra", [{(1, 2): 3}, float("nan"), "\ud800", [print], b"bytes"])
def test_whatever_a_program_adds_to_a_record_can_be_stored(extra):
    record = logging.LogRecord("app", 20, __file__, 1, "x", (), None)
    record.extra = extra
    found = decode(encode(record)).extra
    assert repr(found) == repr(extra) or isinstance(found, (str, list))
    record.extra = circle = []
    circle.append(circle)
    assert "..." in decode(encode(record)).extra


@pytest.mark.parametrize("payload", [b"", b"\x80", b"[]", b"{}", b'{"msg": "x"}'])
def test_what_is_no_record_is_refused(payload):
    with pytest.raises(ValueError, match=r"log record|Expecting|decode"):
        decode(payload)


def test_a_formatter_of_the_handler_makes_the_message_once(log, tmp_path):
    logger = log()
    logger.handlers[0].setFormatter(logging.Formatter("<%(message)s>"))
    try:
        int("no number")
    except ValueError:
        logger.exception("it failed")
    collector = Collector()
    listened(tmp_path, collector)
    told = logging.Formatter().format(collector.records[0])
    assert told.startswith("<it failed>")
    assert told.count("Traceback") == 1


# --- the program that logs


def test_the_newest_records_are_kept_when_nobody_listens(log, tmp_path):
    logger = log(retain=10)
    for number in range(50):
        logger.info("record %d", number)
    collector = Collector()
    listened(tmp_path, collector)
    assert collector.messages == [f"record {number}" for number in range(40, 50)]


def test_no_error_reaches_the_program(log, monkeypatch):
    failed = []
    monkeypatch.setattr(DurableHandler, "handleError", lambda _, record: failed.append(record.msg))
    logger = log()
    logger.info("%d", "no number")
    logger.handlers[0].close()
    logger.info("too late")
    assert failed == ["%d", "too late"]
    logger = log(linger=0.001)
    logger.info("fits")
    logger.handlers[0].flush()
    logger.handlers[0].queue.close()
    logger.info("lost")
    eventually(lambda: "lost" in failed)


def test_records_of_a_transaction_are_stored_though_it_is_of_another_directory(log, tmp_path):
    logger = log()
    with PersistentQueue("work", tmp_path) as work, work.transaction():
        work.push(1)
        logger.info("in it")
        assert list(work) == [1]
    logger.handlers[0].flush()
    collector = Collector()
    listened(tmp_path, collector)
    assert collector.messages == ["in it"]


def test_a_push_that_logs_or_is_interrupted_by_a_handler_that_logs_is_no_circle(log, tmp_path):
    logger = log()
    handler = logger.handlers[0]
    push = handler.queue.push

    def noisy(item):
        if not isinstance(item, list):
            logger.info("a push")
        return push(item)

    handler.queue.push = noisy
    logger.info("outside")
    handler.flush()
    collector = Collector()
    listened(tmp_path, collector)
    assert sorted(collector.messages) == ["a push", "outside"]


def test_a_forked_child_logs_too_and_none_comes_twice(log, tmp_path):
    logger = log(linger=30.0)
    logger.info("parent")

    def child():
        logger.info("child")
        logger.handlers[0].flush()

    assert status_of(forked(child)) == 0
    logger.handlers[0].flush()
    collector = Collector()
    listened(tmp_path, collector)
    assert sorted(collector.messages) == ["child", "parent"]


def test_it_is_configured_by_a_dict(tmp_path):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "durable": {
                    "class": "lmdbqueue.integrations.logging.DurableHandler",
                    "path": str(tmp_path / "log"),
                    "level": "INFO",
                    "retain": 1000,
                    "durability": "full",
                }
            },
            "loggers": {"by.dict": {"handlers": ["durable"], "level": "DEBUG", "propagate": False}},
        }
    )
    logger = logging.getLogger("by.dict")
    logger.debug("too low")
    logger.info("%s", "fits")
    logger.handlers[0].close()
    logger.handlers.clear()
    collector = Collector()
    listened(tmp_path, collector)  # a directory is opened as it is
    assert collector.messages == ["fits"]


# --- the listener


@pytest.mark.parametrize("how", ["raises", "tells"])
def test_a_record_that_a_handler_fails_at_is_set_aside_and_the_others_go_on(log, tmp_path, how, capsys):
    logger = log()
    for message in ("one", "bad", "two"):
        logger.info(message)
    failing, other = Collector(how), Collector()
    listener = DurableListener(tmp_path / "log", failing, other, retry=SOON)
    listener.start()
    eventually(lambda: len(listener.queue.dead) == 1)
    logger.info("three")
    eventually(lambda: "three" in failing.messages)
    (letter,) = listener.queue.dead
    assert (letter.item.getMessage(), letter.attempts) == ("bad", 3)
    assert letter.reason == "OSError: [Errno 9] Bad file descriptor"
    listener.stop()
    assert failing.messages == ["one", "two", "three"]
    assert other.messages == ["one", "bad", "two", "three"], "it had taken the record at its first attempt"
    assert failing.handleError.__self__ is failing, "it has its own again"
    told = capsys.readouterr().err
    assert told.count("--- Logging error ---") == 2, "it reports the first attempt and the last"
    assert told.count("Bad file descriptor") == 2


def test_a_record_that_cannot_be_decoded_is_set_aside(log):
    logger = log()
    logger.info("one")
    logger.handlers[0].queue.push(b"rotten")
    logger.info("two")
    collector = Collector()
    with DurableListener(logger.handlers[0].queue, collector) as listener:
        eventually(lambda: len(collector.records) == 2)
        assert [letter.payload for letter in listener.queue.dead] == [b"rotten"]


def test_levels_of_handlers_are_kept_if_wanted(log, tmp_path):
    logger = log()
    for level in (logging.INFO, logging.ERROR):
        logger.log(level, "%d", level)
    all_, some = Collector(level=logging.ERROR), Collector(level=logging.ERROR)
    listened(tmp_path, all_)
    logger.log(logging.INFO, "low")
    listened(tmp_path, some, respect_handler_level=True)
    assert (len(all_.records), len(some.records)) == (2, 0)


def test_a_listener_begins_again_and_nothing_that_an_earlier_one_left_ends_it(log, tmp_path):
    logger = log()
    collector = Collector()
    listener = DurableListener(tmp_path / "log", collector)
    for number in range(3):
        listener.start()
        listener.start()
        logger.info("round %d", number)
        listener.stop()
        listener.stop()
    assert collector.messages == ["round 0", "round 1", "round 2"]


@pytest.mark.parametrize("source", ["a path", "a queue"])
def test_a_listener_keeps_its_directory_though_the_program_goes_to_another(log, tmp_path, monkeypatch, source):
    logger = log()
    collector = Collector()
    monkeypatch.chdir(tmp_path)
    queue = PersistentQueue("log", dumps=bytes, durability="off")
    (tmp_path / "elsewhere").mkdir()
    if source == "a queue":
        monkeypatch.chdir("elsewhere")
    with DurableListener("log" if source == "a path" else queue, collector) as listener:
        monkeypatch.chdir(tmp_path / "elsewhere")
        listener.stop()
        logger.info("here")
        listener.start()
    queue.close()
    assert collector.messages == ["here"]


def test_a_handler_that_changes_a_record_does_not_change_that_of_the_next(log, tmp_path):
    class Spoiler(Collector):
        def emit(self, record):
            record.msg = "spoiled"

    log().info("whole")
    collector = Collector()
    listened(tmp_path, Spoiler(), collector)
    assert collector.messages == ["whole"]


# --- kills


class _Killer(logging.Handler):
    """Writes each record down, and kills its process at one of them, before it can be acknowledged."""

    def __init__(self, path, left):
        super().__init__()
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.left = left

    def emit(self, record):
        os.write(self.fd, f"{record.process} {record.getMessage()}\n".encode())
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _log_many(place, records, durability):
    logger = logging.Logger("app")  # noqa: LOG001
    logger.addHandler(DurableHandler(place / "log", durability=durability))
    for number in range(records):
        logger.info("%d", number)
    os.kill(os.getpid(), signal.SIGKILL)  # what returned is stored


def _listen_until_killed(place, left):
    DurableListener(place / "log", _Killer(place / "seen", left), batch=20).start()
    time.sleep(60)


def _account(place, processes, records, kills, record_property):
    pids = [forked(_log_many, place, records, "off") for _ in range(processes)]
    eventually((place / "log").exists)
    killed = 0
    for _ in range(kills):
        listener = forked(_listen_until_killed, place, random.randrange(1, 60))  # noqa: S311
        assert status_of(listener) == KILLED
        killed += 1
    assert [status_of(pid, 300) for pid in pids] == [KILLED] * processes
    listened(place, _Killer(place / "seen", 0))
    seen = {pid: [] for pid in pids}
    for line in (place / "seen").read_text().splitlines():
        pid, number = map(int, line.split())
        seen[pid].append(number)
    for numbers in seen.values():
        assert sorted(set(numbers)) == list(range(records)), "some were lost"
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts), "first sights are out of order"
    twice = sum(map(len, seen.values())) - processes * records
    assert twice <= 20 * kills
    record_property("kills", killed + processes)


def test_four_processes_log_and_die_and_their_listener_is_killed_again_and_again(tmp_path, record_property):
    _account(tmp_path, 4, 300, 15, record_property)


@pytest.mark.long
def test_four_processes_log_and_die_and_their_listener_is_killed_for_long(tmp_path, record_property):
    _account(tmp_path, 4, 5000, 300, record_property)


def test_threads_log_at_once_and_each_record_is_there(log, tmp_path):
    logger = log(durability="full")
    numbers = count()

    def run():
        for _ in range(20):
            logger.info("%d", next(numbers))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collector = Collector()
    listened(tmp_path, collector)
    assert sorted(map(int, collector.messages)) == list(range(160))


@pytest.mark.parametrize("linger", [0.0, 0.01])
def test_a_record_that_comes_after_the_close_is_told_to_be_lost(log, linger):
    """Also where the thread that would push it was there, and has ended."""
    logger = log(linger=linger)
    (handler,) = logger.handlers
    logger.warning("before")
    handler.flush()
    handler.close()
    lost = []
    handler.handleError = lost.append
    logger.warning("after")
    assert [record.getMessage() for record in lost] == ["after"]


_LOGS_AND_ENDS = """
import logging
from lmdbqueue.integrations.logging import DurableHandler

logger = logging.Logger("app")
logger.addHandler(DurableHandler("log", linger=60.0))
logger.warning("the last words")
"""


def test_a_program_that_ends_pushes_what_it_has_logged(tmp_path):
    done = subprocess.run([sys.executable, "-c", _LOGS_AND_ENDS], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    with PersistentQueue("log", tmp_path, durability="off", loads=decode) as queue:
        assert [record.getMessage() for record in queue] == ["the last words"]
