"""Space: what is deleted comes back, what is used again does not grow, and memory does not follow the queue."""

import os
import sys
import threading
from contextlib import suppress

import pytest
from processes import directory_size, forked, status_of

from lmdbqueue import Full, PersistentQueue
from lmdbqueue._local import group_commit
from lmdbqueue._local.group_commit import Call
from lmdbqueue._model import pushing
from lmdbqueue._model.pushing import Limits

MILLION = 1_000_000
BATCH = 10_000
PAYLOAD = b"x" * 97  # 100 bytes and a bit when pickled


def _fill(queue, number):
    for _ in range(0, number, BATCH):
        queue.push([PAYLOAD] * min(BATCH, number))


def test_a_flush_after_most_of_a_million_items_went_shrinks_the_directory_below_2_mb(open_queue):
    queue = open_queue(durability="off")
    _fill(queue, MILLION)
    full = directory_size(queue._engine.path)
    assert full > 100 * MILLION
    assert queue.delete(995_000) == 995_000
    given = queue.flush()
    assert queue.count() == 5_000
    assert directory_size(queue._engine.path) < 2_000_000
    assert given > full - 2_500_000
    assert queue.pop(6_000) == [PAYLOAD] * 5_000


def test_a_queue_of_a_thousand_items_stays_below_5_mb_through_a_million_without_a_flush(open_queue):
    queue = open_queue(durability="off")
    for number in range(0, MILLION, 500):
        queue.push([PAYLOAD] * 500)
        if number % 50_000 == 0:
            assert directory_size(queue._engine.path) < 5_000_000
        if number:
            assert len(queue.pop(500)) == 500
    assert directory_size(queue._engine.path) < 5_000_000
    assert queue.count() == 500


class _HighWater:
    """The most private memory that this process had during the block, in bytes, beyond that at its start.

    Pages of the mapped file are not counted: the kernel takes them back whenever it wants them.
    """

    def __enter__(self):
        self._before = self.bytes = _private_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, _private_memory()) - self._before

    def _watch(self):
        while not self._stop.wait(0.001):
            self.bytes = max(self.bytes, _private_memory())


def _private_memory():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def _measure(place, result):
    with _HighWater() as high_water, PersistentQueue("queue", place, durability="off") as queue:
        for _ in range(20):
            queue.push([PAYLOAD] * 100)
            queue.push(PAYLOAD)
            assert len(queue.peek(100)) == 100
            assert len(queue.pop(100)) == 100
            assert queue.delete(10) == 10
            assert queue.count() > 0
        for _, item in zip(range(100), queue, strict=False):
            assert item == PAYLOAD
    os.write(result, str(high_water.bytes).encode())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_memory_of_a_process_does_not_depend_on_the_length_of_the_queue(tmp_path):
    used = {}
    for number in (1_000, MILLION):
        place = tmp_path / str(number)
        place.mkdir()
        with PersistentQueue("queue", place, durability="off") as queue:
            _fill(queue, number)
        read, write = os.pipe()
        assert status_of(forked(_measure, place, write)) == 0
        used[number] = int(os.read(read, 100))
        os.close(read)
        os.close(write)
    assert used[MILLION] < used[1_000] + 3_000_000  # the items are 100 MB


def test_what_a_block_has_pushed_counts_in_its_limit(open_queue):
    limit = 1_000_000
    queue = open_queue(max_bytes=limit)
    with queue.transaction():
        with suppress(Full):
            for _ in range(100):
                queue.push("x" * 100_000)
        assert 5 <= len(queue) <= 10
        queue.delete(2)
        queue.push("x" * 100_000)  # what left has made room
    assert queue.stats().bytes_used <= limit


def test_what_others_push_in_the_same_commit_counts_in_the_limit(open_queue):
    queue = open_queue(max_bytes=1_000_000)
    engine = queue._engine
    limits = Limits(0, 1_000_000)
    calls = [Call(engine.ref, pushing.push, ([b"x" * 100_000], bytes(8), limits, None), 300_000) for _ in range(20)]
    group_commit.run(engine.environment._generation, calls)
    assert sum(isinstance(call.error, Full) for call in calls) == 20 - len(queue)
    assert queue.stats().bytes_used <= 1_000_000


def test_room_is_counted_from_the_last_page_of_the_commit_before(open_queue, monkeypatch):
    queue = open_queue()
    generation = queue._engine.environment._generation
    asked = []
    monkeypatch.setattr(generation._room, "grant", lambda pages, *_: asked.append(pages))
    for number in range(20):
        generation._room.allocated = 0
        pages = generation._env.info()["last_pgno"] + 1
        queue.push(list(range(1_000)))
        assert asked == [pages]
        asked.clear()
        if number % 3 == 0:
            queue.pop()  # so that the next push is in the other meta page
