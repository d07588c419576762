"""The format on disk is a promise: directories that a released version wrote open as they were left."""

import os
import shutil
from zlib import crc32

import pytest
from clocks import SECOND, Clock
from opener import as_after_a_reboot

import lmdbqueue
from lmdbqueue import PersistentQueue
from lmdbqueue._base import format as _format
from lmdbqueue._lmdb import checkpoint_slots, meta_page
from lmdbqueue._local import hold
from lmdbqueue._local.queue import local_engine_of

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
LONG = "x" * 10_000


@pytest.fixture
def golden(tmp_path):
    """Return a function that copies a golden directory to where it can be opened, and proves it whole."""

    def golden_(filename):
        shutil.copytree(os.path.join(GOLDEN, filename), tmp_path / "queue")
        assert lmdbqueue.check(str(tmp_path / "queue")) == []

    return golden_


@pytest.mark.parametrize(("filename", "checksum"), [("format-1", True), ("format-1-plain", False)])
def test_queue_written_by_a_released_version_opens_with_all_its_items(golden, tmp_path, filename, checksum):
    golden(filename)
    with (
        PersistentQueue("queue", tmp_path, checksum=checksum) as queue,
        PersistentQueue(
            "queue", tmp_path, str.encode, bytes.decode, name="andere Schlange", checksum=checksum
        ) as other,
    ):
        Clock(0, 1_764_000_100 * SECOND).given_to(queue)
        assert queue.queues() == ["andere Schlange", "queue"]
        assert list(queue) == ["first", ("second", 2), LONG, None]
        assert queue.stats().oldest_age == 100
        assert list(other) == ["world", ""]
        assert queue.push("next") == 5
        assert other.push("next") == 3
        assert queue.pop(5) == ["first", ("second", 2), LONG, None, "next"]
        assert queue.flush(force=True) > 0
        assert queue.check() == []


def test_state_written_by_a_released_version_is_there(golden, tmp_path):
    golden("format-1-state")
    with PersistentQueue("queue", tmp_path) as queue, PersistentQueue("queue", tmp_path, name="other") as other:
        assert dict(queue.state) == {"total": 2, "long": LONG}
        assert dict(other.state) == {"with/slash": None}
        assert list(queue) == ["first", "second"]
        assert queue.check() == []


def test_leases_written_by_a_released_version_come_back(golden, tmp_path):
    golden("format-1-leases")
    with PersistentQueue("queue", tmp_path) as queue:
        waiting = [
            *("item 3", "item 4", "item 6", "item 7", "due"),
            *("with a key", "has the key now", "the newer one"),
        ]
        assert list(queue) == waiting
        with queue.lease(4) as lease:
            assert (lease.seqs, lease.attempts) == ([3, 4, 6, 7], [3, 3, 2, 1])
            lease.nack()
        assert [(letter.seq, letter.item, letter.attempts, letter.reason) for letter in queue.dead] == [
            (0, "has lost its key", 1, "no"),
            (2, "item 2", 2, "never"),
        ]
        assert queue.dead.requeue() == 1  # another item has the key of the first
        assert queue.pop() == "item 2"
        assert queue.push("again", unique="key") == 9
        assert queue.push("again", unique="far") == 11
        assert queue.push("again", unique="taken") == 10
        assert queue.push("again", unique="replaced") == 12
        stats = queue.stats()
        assert (stats.waiting, stats.leased, stats.delayed, stats.dead) == (8, 0, 1, 1)
        assert queue.pop(8) == waiting
        assert queue.dead.requeue() == 1
        assert queue.check() == []


def test_readers_written_by_a_released_version_go_on(golden, tmp_path):
    golden("format-1-readers")
    with PersistentQueue("queue", tmp_path) as queue:
        readers = queue.readers()
        assert [(each.name, each.position, each.lag, each.skipped) for each in readers] == [
            ("fähig", 5, 6, 0),
            ("slow", 5, 6, 5),
        ]
        queue.push("next")
        left = [*(f"item {number}" for number in range(6, 10)), "due", "next"]
        assert queue.reader("slow").pop(9) == left
        assert queue.reader("slow").skipped == 6
        queue.push("x" * 2_000)  # which is all that fits
        assert queue.reader("fähig").pop(9) == ["x" * 2_000]
        queue.retain()
        assert queue.reader("slow").pop(9) == ["x" * 2_000]
        assert len(queue) == 0
        assert queue.check() == []


def test_priorities_written_by_a_released_version_hold(golden, tmp_path):
    golden("format-1-priorities")
    with PersistentQueue("queue", tmp_path) as queue:
        assert list(queue) == [
            *("-128: 1", "-128: 3"),
            *("plain 0", "plain 1", "plain 2"),
            *(f"5: {number}" for number in range(4)),
            *(f"127: {number}" for number in range(4)),
        ]
        queue.push("plain 3")
        assert queue.pop(6) == ["-128: 1", "-128: 3", "plain 0", "plain 1", "plain 2", "plain 3"]
        assert queue.check() == []


def test_headers_and_times_of_expiry_written_by_a_released_version_are_there(golden, tmp_path):
    golden("format-1-headers")
    with PersistentQueue("queue", tmp_path) as queue:
        engine = local_engine_of(queue)
        assert list(queue) == ["with headers", "plain", "lasts"]
        headers = [trailer.headers for trailer in engine.trailers(engine.first(9))]
        assert headers == [{"traceparent": "00-ab", "größe": ""}, {}, {"a": "b"}]
        stats = queue.stats()
        assert (stats.waiting, stats.delayed, stats.expired) == (3, 1, 1)
        clock = Clock()
        clock.given_to(queue)
        clock.wall = engine.trailers(engine.first(3))[2].expires + SECOND  # those of the others are moments later
        assert list(queue) == ["with headers", "plain"]
        assert queue.stats().expired == 3  # what was delayed was over, too, and never seen
        assert queue.check() == []


def test_what_was_not_flushed_by_a_released_version_is_there_when_its_directory_is_copied(golden, tmp_path):
    golden("format-1-interval")
    with PersistentQueue("queue", tmp_path, durability="interval") as queue:
        assert list(queue) == ["second", "uncovered", LONG]


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_checkpoint_of_a_released_version_counts_where_what_came_after_it_was_torn(is_torn, tmp_path):
    place = tmp_path / "queue"
    shutil.copytree(os.path.join(GOLDEN, "format-1-interval"), place)
    is_known, checkpoint = checkpoint_slots.read(str(place / "checkpoint"))
    assert is_known
    if is_torn:
        path = str(place / "00000001.mdb")
        newest, _ = meta_page.read(path)
        size = meta_page.with_body(newest, checkpoint.body).size
        with open(path, "r+b") as file:
            file.seek(size)
            file.write(bytes(os.path.getsize(path) - size))
    as_after_a_reboot(place)
    with PersistentQueue("queue", tmp_path, durability="interval") as queue:
        assert list(queue) == (["first", "second"] if is_torn else ["second", "uncovered", LONG])
        assert queue.check() == []
        queue.push("next")


def test_present_format_version_has_golden_directories():
    kinds = ("", "-plain", "-state", "-leases", "-readers", "-priorities", "-headers", "-interval")
    assert {f"format-{_format.VERSION}{kind}" for kind in kinds} <= set(os.listdir(GOLDEN))


def test_worked_example_of_the_format_page_is_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(hold.os, "urandom", lambda n: (b"\x5a\x17\xc0\xde" * n)[:n])
    clock = Clock(3600 * SECOND, 1_764_000_000 * SECOND)
    with clock.given_to(PersistentQueue("ex", tmp_path, str.encode, bytes.decode)) as queue:
        queue.push(["hello", "world"])
        queue.pop()
        queue.push("!")
        environment, ref = queue._engine.environment, queue._engine.ref
        records = environment.view(ref, lambda txn, tables: dict(txn.cursor(tables.meta)))
        away = environment.view(ref, lambda txn, tables: dict(txn.cursor(tables.away)))
        items = environment.view(ref, lambda txn, tables: dict(txn.cursor(tables.items)))
    salt, pushed_at = bytes.fromhex("5a 17 c0 de"), bytes.fromhex("18 7a fc a7 67 ca 00 00")
    keys = [bytes([128, 0, 0, 0, 0, 0, 0, number]) for number in range(4)]
    one, five = (number.to_bytes(8, "big") for number in (1, 5))
    header = bytes([1, 0, len(b"custom"), 136]) + salt + one
    queue_record = header + keys[1] + keys[3] + bytes(80) + bytes.fromhex("00 00 01 00 00 00 00 00")
    queue_record += bytes(16) + b"custom"
    directory = b"\1" + one
    weight = crc32(b"directory" + directory) ** 2 + crc32(b"queue/queue" + queue_record) ** 2
    assert weight % 2**64 == 0xED46C56EB6D3400D
    content = crc32(keys[2] + b"!" + pushed_at, 0x5A17C0DE) ** 2
    assert content == 0x76A7CA11**2 == 0x36FF1C40EDACD521
    assert away == {}
    assert items == {
        keys[1]: b"world" + pushed_at + bytes.fromhex("2e 7b 9c bd"),
        keys[2]: b"!" + pushed_at + bytes.fromhex("11 ca a7 76"),
    }
    assert records == {
        b"directory": directory,
        b"queue/queue": queue_record,
        b"txn": five + (weight % 2**64).to_bytes(8, "big") + content.to_bytes(8, "big"),
    }
