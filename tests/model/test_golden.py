"""The format on disk is a promise: directories that a released version wrote open as they were left."""

import os
import shutil
from zlib import crc32

import pytest
from clocks import SECOND, Clock

import lmdbqueue
import lmdbqueue._host.session
from lmdbqueue import PersistentQueue, _format

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
LONG = "x" * 10_000


@pytest.mark.parametrize(("filename", "checksum"), [("format-1", True), ("format-1-plain", False)])
def test_queue_written_by_a_released_version_opens_with_all_its_items(tmp_path, filename, checksum):
    shutil.copytree(os.path.join(GOLDEN, filename), tmp_path / "queue")
    with (
        PersistentQueue("queue", tmp_path, checksum=checksum) as queue,
        PersistentQueue(
            "queue", tmp_path, str.encode, bytes.decode, name="andere Schlange", checksum=checksum
        ) as other,
    ):
        assert queue.check() == []
        assert list(queue) == ["first", ("second", 2), LONG, None]
        assert list(other) == ["world", ""]
        assert queue.push("next") == 5
        assert other.push("next") == 3
        assert queue.pop(5) == ["first", ("second", 2), LONG, None, "next"]
        assert queue.flush(force=True) > 0
        assert queue.check() == []


def test_state_written_by_a_released_version_is_there(tmp_path):
    shutil.copytree(os.path.join(GOLDEN, "format-1-state"), tmp_path / "queue")
    with PersistentQueue("queue", tmp_path) as queue, PersistentQueue("queue", tmp_path, name="other") as other:
        assert queue.check() == []
        assert dict(queue.state) == {"total": 2, "long": LONG}
        assert dict(other.state) == {"with/slash": None}
        assert list(queue) == ["first", "second"]


def test_a_queue_of_before_there_were_leases_with_items_that_were_put_back(tmp_path):
    shutil.copytree(os.path.join(GOLDEN, "format-1-missing"), tmp_path / "queue")
    assert lmdbqueue.check(str(tmp_path / "queue")) == []
    with PersistentQueue("queue", tmp_path) as queue:
        left = [f"item {number}" for number in (1, 4, 5, 6, 7, 8, 9)]
        assert list(queue) == left
        assert queue.check() == []
        with queue.lease(3) as lease:
            assert lease.seqs == [1, 4, 5]
            lease.nack(4)
        assert queue.push("next") == 10
        assert queue.pop(9) == ["item 4", *left[3:], "next"]
        assert queue.check() == []


def test_leases_written_by_a_released_version_come_back(tmp_path):
    shutil.copytree(os.path.join(GOLDEN, "format-1-leases"), tmp_path / "queue")
    with PersistentQueue("queue", tmp_path) as queue:
        assert queue.check() == []
        assert list(queue) == ["item 1", "item 3", "item 4", "item 5", "with a key"]
        assert queue.lease(3).attempts == [3, 3, 1]
        assert [(letter.seq, letter.item, letter.reason) for letter in queue.dead] == [
            (0, "item 0", "not today"),
            (7, "long ago", "not today"),
        ]
        assert queue.push("again", unique="key") == 6
        assert queue.push("again", unique="far") == 8
        stats = queue.stats()
        assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (2, 3, 1, 2)
        assert queue.check() == []


def test_readers_written_by_a_released_version_go_on(tmp_path):
    shutil.copytree(os.path.join(GOLDEN, "format-1-readers"), tmp_path / "queue")
    with PersistentQueue("queue", tmp_path) as queue:
        assert queue.check() == []
        readers = queue.readers()
        assert [(each.name, each.position, each.lag, each.skipped) for each in readers] == [
            ("fähig", 5, 5, 0),
            ("slow", 4, 6, 4),
        ]
        queue.push("next")
        assert queue.reader("slow").pop(9) == [*(f"item {number}" for number in range(5, 10)), "next"]
        assert queue.reader("slow").skipped == 5
        queue.retain()
        assert queue.reader("fähig", start="newest").pop(9) == [*(f"item {number}" for number in range(5, 10)), "next"]
        assert len(queue) == 0
        assert queue.check() == []


def test_times_written_by_a_released_version_tell_the_age(tmp_path):
    shutil.copytree(os.path.join(GOLDEN, "format-1-times"), tmp_path / "queue")
    now = 1_764_000_000 + 240 * 3600  # an hour after the last push
    with Clock(5 * SECOND, now * SECOND).given_to(PersistentQueue("queue", tmp_path)) as queue:
        assert queue.check() == []
        while item := queue.peek():
            hours = 240 - int(item.partition(":")[0])
            assert hours * 3600 <= queue.stats().oldest_age <= hours * 3600 * 9 / 8
            queue.delete(1)
        queue.push("next")
        assert queue.stats().oldest_age == 0
        assert queue.check() == []


def test_present_format_version_has_a_golden_directory():
    assert {f"format-{_format.VERSION}", f"format-{_format.VERSION}-plain"} <= set(os.listdir(GOLDEN))


def test_worked_example_of_the_format_page_is_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdbqueue._host.session, "_boot", lambda: bytes(range(16)))
    clock = Clock(3600 * SECOND, 1_764_000_000 * SECOND)
    with clock.given_to(PersistentQueue("ex", tmp_path, str.encode, bytes.decode)) as queue:
        queue.push(["hello", "world"])
        queue.pop()
        records = queue._engine.environment.view("queue", lambda txn, tables: dict(txn.cursor(tables.meta)))
        items = queue._engine.environment.view("queue", lambda txn, tables: dict(txn.cursor(tables.items)))
    one, two, four = (number.to_bytes(8, "big") for number in (1, 2, 4))
    mark = bytes(range(16)) + bytes.fromhex("00 00 03 46 30 b8 a0 00  18 7a fc a7 67 ca 00 00") + bytes(8)
    assert crc32(b"queue/times" + mark) == 0x4A3FF674
    weight = sum(
        crc32(record) ** 2
        for record in (b"queue/head" + one, b"queue/tail" + two, b"queue/times" + mark, b"txn" + four)
    )
    assert weight % 2**64 == 0x5687693E28481C5D
    assert records == {
        b"queue/head": one,
        b"queue/tail": two,
        b"queue/times": mark + bytes.fromhex("74 f6 3f 4a"),
        b"txn": four + (weight % 2**64).to_bytes(8, "big"),
    }
    assert items == {one: bytes.fromhex("77 6f 72 6c 64 79 73 7d 38")}
