"""``logging.handlers.QueueHandler`` and ``QueueListener``, unchanged, on a persistent queue."""

import logging
import logging.handlers
import multiprocessing
import os
import signal
import time

import pytest

from lmdbqueue import PersistentQueue

PATIENCE = 60  # seconds


class Collector(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def _logger(queue):
    """Make a logger that nothing else knows, with a handler that puts into the queue."""
    logger = logging.Logger("test")  # noqa: LOG001  (getLogger would give it to the next test too)
    logger.addHandler(logging.handlers.QueueHandler(queue))
    return logger


def _messages(handler):
    return [record.getMessage() for record in handler.records]


def test_records_pass_from_handler_to_listener_in_order_with_all_they_carry(queue):
    collector = Collector()
    listener = logging.handlers.QueueListener(queue, collector)
    listener.start()
    logger = _logger(queue)
    logger.warning("%s is %d", "one", 1)
    try:
        int("no number")
    except ValueError:
        logger.exception("two")
    deadline = time.monotonic() + PATIENCE
    while len(collector.records) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    listener.stop()
    assert [record.levelname for record in collector.records] == ["WARNING", "ERROR"]
    assert _messages(collector)[0] == "one is 1"
    assert "ValueError" in _messages(collector)[1]
    assert collector.records[0].process == os.getpid()


def test_stop_drains_what_was_logged_before(queue):
    logger = _logger(queue)
    for n in range(50):
        logger.warning("record %d", n)
    assert queue.count() == 50
    collector = Collector()
    listener = logging.handlers.QueueListener(queue, collector)
    listener.start()
    listener.stop()
    assert _messages(collector) == [f"record {n}" for n in range(50)]
    assert queue.count() == 0
    queue.join()  # the listener has called task_done for each


def test_a_listener_can_be_started_again(queue):
    collector = Collector()
    listener = logging.handlers.QueueListener(queue, collector)
    for n in range(3):
        listener.start()
        _logger(queue).warning("round %d", n)
        listener.stop()
    assert _messages(collector) == ["round 0", "round 1", "round 2"]


def test_a_full_queue_is_an_error_of_the_handler_and_not_of_the_program(open_queue, monkeypatch):
    queue = open_queue(maxsize=1)
    failed = []
    monkeypatch.setattr(logging.handlers.QueueHandler, "handleError", lambda _, record: failed.append(record.msg))
    logger = _logger(queue)
    logger.warning("fits")
    logger.warning("does not")
    assert failed == ["does not"]
    assert queue.get().msg == "fits"


def _log_and_die(place, durability):
    logger = _logger(PersistentQueue("log", place, durability=durability))
    for n in range(20):
        logger.warning("record %d", n)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("durability", ["full", "off"])
def test_records_of_a_killed_process_are_not_lost(open_queue, tmp_path, durability):
    worker = multiprocessing.get_context("spawn").Process(target=_log_and_die, args=(tmp_path, durability))
    worker.start()
    worker.join(PATIENCE)
    assert worker.exitcode == -signal.SIGKILL
    queue = open_queue("log", durability=durability)
    collector = Collector()
    listener = logging.handlers.QueueListener(queue, collector)
    listener.start()
    listener.stop()
    assert _messages(collector) == [f"record {n}" for n in range(20)]
    assert {record.process for record in collector.records} == {worker.pid}
