"""Opening after a power cut reads what the last transaction changed, however long the queue is.

LMDBQUEUE_ITEMS says how many items the long form (``-m long``) has.
"""

import logging
import os
import shutil
import time

import pytest
from opener import as_after_a_reboot

from lmdbqueue import PersistentQueue

ITEMS = 100_000
UNFLUSHED = 1_000_000
LONG_ITEMS = int(os.environ.get("LMDBQUEUE_ITEMS", "10000000"))
AT_MOST = 2_000_000  # bytes that are read


@pytest.fixture
def counted(monkeypatch):
    """Count the bytes that are read of files, except by LMDB, which maps them."""
    read = [0]
    pread = os.pread

    def counting(fd, size, offset):
        found = pread(fd, size, offset)
        read[0] += len(found)
        return found

    monkeypatch.setattr(os, "pread", counting)
    return read


def _open(place, **options):
    return PersistentQueue("queue", str(place), dumps=bytes, loads=bytes, flush_limit=1 << 50, **options)


def _fill(place, items, **options):
    with _open(place, **options) as queue:
        for start in range(0, items, 10_000):
            queue.push([b"%0100d" % number for number in range(start, min(items, start + 10_000))])


VERBS = {
    "push": lambda queue: queue.push(b"x" * 100),
    "pop": lambda queue: queue.pop(),
    "lease": lambda queue: queue.lease(),
    "batch": lambda queue: queue.push([b"x" * 100] * 200),
    "pops": lambda queue: queue.pop(150),
    "state": lambda queue: queue.state.update(key=b"x" * 300),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Give a queue that is long, and closed, to be copied."""
    place = tmp_path_factory.mktemp("filled")
    _fill(place, ITEMS)
    return place


def _after_a_cut(place, copy, verb):
    """Return a copy of the queue as a power cut right after a verb would leave it."""
    with _open(place) as queue:
        for _ in range(3):
            queue.push(b"before")
        VERBS[verb](queue)
        shutil.copytree(place / "queue", copy / "queue")
    os.sync()  # what a power cut leaves is on the disk
    as_after_a_reboot(copy / "queue")


@pytest.mark.parametrize("verb", VERBS)
def test_opening_after_a_cut_reads_little_of_a_long_queue(verb, filled, tmp_path, counted, caplog):
    caplog.set_level(logging.INFO, "lmdbqueue")
    shutil.copytree(filled / "queue", tmp_path / "queue")
    as_after_a_reboot(tmp_path / "queue")  # which it is not: it stays one that was closed
    copy = tmp_path / "copy"
    _after_a_cut(tmp_path, copy, verb)
    counted[0] = 0
    with _open(copy) as queue:
        assert 0 < counted[0] < AT_MOST
        assert "is intact by its changes" in caplog.text
        assert queue.check() == []


def test_opening_after_a_cut_reads_no_more_of_a_queue_ten_times_as_long(tmp_path, counted):
    read = []
    for items in (ITEMS // 10, ITEMS):
        place = tmp_path / str(items)
        place.mkdir()
        _fill(place, items)
        _after_a_cut(place, place / "copy", "push")
        counted[0] = 0
        with _open(place / "copy"):
            read.append(counted[0])
    assert read[1] < 2 * read[0]


def test_opening_after_a_cut_reads_little_of_a_very_long_queue_that_was_not_flushed(tmp_path, counted, caplog):
    caplog.set_level(logging.INFO, "lmdbqueue")
    never = {"durability": "interval", "interval": 3600.0}
    copy = tmp_path / "copy"
    with _open(tmp_path, **never) as queue:
        some = [b"x" * 100] * 50_000
        for _ in range(UNFLUSHED // len(some)):
            queue.push(some)
        queue.sync()
        for verb in VERBS.values():
            verb(queue)
        shutil.copytree(tmp_path / "queue", copy / "queue")
    as_after_a_reboot(copy / "queue")
    counted[0] = 0
    with _open(copy, **never) as queue:
        assert 0 < counted[0] < AT_MOST
        (message,) = caplog.messages
        assert "is intact by its changes" in message
        assert queue.state["key"] == b"x" * 300, "what no checkpoint covers is there"
        stats = queue.stats()
        assert stats.waiting + stats.leased == UNFLUSHED + 201 - 151


@pytest.mark.long
def test_opening_after_a_cut_takes_a_moment_however_long_the_queue_is(tmp_path, counted, record_property):
    """Half of the file is free, in long lists."""
    _fill(tmp_path, LONG_ITEMS)
    with _open(tmp_path) as queue:
        for _ in range(0, LONG_ITEMS // 2, 10_000):
            queue.delete(10_000)
    for verb in VERBS:
        copy = tmp_path / verb
        _after_a_cut(tmp_path, copy, verb)
        counted[0] = 0
        began = time.perf_counter()
        with _open(copy):
            seconds = time.perf_counter() - began
        record_property(f"{verb}, bytes read", counted[0])
        record_property(f"{verb}, ms", round(1_000 * seconds))
        assert counted[0] < AT_MOST
        shutil.rmtree(copy)
