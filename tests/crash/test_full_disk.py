"""On a full disk pushes are refused, and whoever takes out goes on: every item can be read and removed.

LMDBQUEUE_TREE says how many bytes the long form fills a disk with.
"""

import os
import random
import resource
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import mutants
import pytest
from opener import own_mounts
from processes import DEADLINE, forked, status_of

from lmdbqueue import DiskFullError, Full, PersistentQueue
from lmdbqueue._local.relay import relay
from lmdbqueue._local.state import prepared

TREE = int(os.environ.get("LMDBQUEUE_TREE", str(1 << 30)))
DISK = 10 << 20  # bytes
DISK_OF_SMALL = 4 << 20  # many of them go in
TOLD = "full disks"
_SINGLY = 300  # pops in a row
SIZES = [10, 300, 3_000, 40_000, 1_000_000]
_IN_CI = {
    "tmpfs": {10, 300, 40_000},
    "ext4": {3_000, 1_000_000},
    "file size limit": {300, 40_000},
    "max_bytes": {3_000, 1_000_000},
}


def _deleted_at_once(queue: PersistentQueue[bytes], left: int) -> int:
    """Delete in a block, which is one transaction in any case."""
    with queue.transaction():
        return queue.delete(1 + left // 2)


DRAINS: dict[str, Callable[[PersistentQueue[bytes], int], int]] = {
    "pop": lambda queue, _: queue.pop() is not None,
    "pop of many": lambda queue, left: len(queue.pop(2 + left // 3)),
    "delete": _deleted_at_once,
    "delete of all": lambda queue, left: queue.delete(left),
    "clear": lambda queue, left: (queue.clear(), left)[1],
}


@contextmanager
def disk(kind: str, place: str, size: int) -> Iterator[str]:
    """Give a place with room for ``size`` bytes. In a child of its own."""
    if kind == "file size limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    elif kind != "max_bytes":
        own_mounts()
        mount_point = os.path.join(place, "mnt")
        os.mkdir(mount_point)
        if kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount_point], check=True)
        else:
            image = os.path.join(place, "image")
            with open(image, "xb") as file:
                file.truncate(size + (4 << 20))  # for its own
            subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, mount_point], check=True)
        place = mount_point
    yield place


def _disk_for(size: int) -> int:
    return DISK if size > 1_000 else DISK_OF_SMALL


def _item(number: int, size: int) -> bytes:
    return number.to_bytes(4).ljust(size, b"x")


def fill(queue: PersistentQueue[bytes], size: int, batch: int, kind: str) -> int:
    """Push until that is refused; return how many items are there."""
    number = 0
    try:
        while True:
            if batch == 1:
                queue.push(_item(number, size))
            else:
                queue.push([_item(each, size) for each in range(number, number + batch)])
            number += batch
    except DiskFullError:
        assert kind != "max_bytes"
    except Full:
        assert kind == "max_bytes"
    return number


def read(queue: PersistentQueue[bytes], first: int, count: int, size: int) -> None:
    """Demand that just those items are there."""
    assert len(queue) == count
    for number, item in enumerate(queue, first):
        assert item == _item(number, size)


def _open(place: str, kind: str, size: int, **options: object) -> PersistentQueue[bytes]:
    limit = {"max_bytes": size} if kind == "max_bytes" else {}
    return PersistentQueue("queue", place, dumps=bytes, loads=bytes, **limit, **options)


def _fill_and_drain(kind: str, place: str, room: int, size: int, drains: list[str], **options: object) -> None:
    with disk(kind, place, room) as where, _open(where, kind, room, **options) as queue:
        for drain in drains:
            count = fill(queue, size, max(1, room // 50 // size) if size < room // 100 else 1, kind)
            assert count * (size + 30) > room // 4, "hardly anything went in"
            read(queue, 0, count, size)
            left = count
            while left:
                gone = DRAINS[drain](queue, left)
                assert gone > 0
                left -= gone
                if count - left > _SINGLY and drain == "pop":
                    left -= queue.delete(left)
            assert queue.check() == []
            assert queue.check() == []
        assert queue.push(b"room again") > 0


def _each_of_some(chosen: dict[str, set[int]], sizes: list[int]) -> list[Any]:
    """Return all pairs of a kind of disk and a size; those that were not chosen belong to the long form."""
    marks = {True: (), False: (pytest.mark.long,)}
    return [pytest.param(kind, size, marks=marks[size in some]) for kind, some in chosen.items() for size in sizes]


def _relay_all(kind: str, place: str) -> None:
    with disk(kind, place, DISK_OF_SMALL) as where, _open(where, kind, DISK_OF_SMALL) as queue:
        count = fill(queue, 3_000, 1, kind)
        lease = queue.lease()
        with pytest.raises(DiskFullError):
            relay(queue, lease, puts=[prepared(queue.state, "large", b"x" * 4_000)])
        for number in range(count):
            assert lease.items == [_item(number, 3_000)]
            put = prepared(queue.state, f"{number:06d}", b"x" * 2_500)
            lease = relay(queue, lease, puts=[put]) or queue.lease()
        assert not lease
        assert [int(key) for key in queue.state] == list(range(count))
        assert queue.check() == []


@pytest.mark.parametrize("kind", ["tmpfs", "file size limit"])
def test_a_relay_on_a_full_disk_may_put_what_is_no_larger_than_what_it_removes(kind, tmp_path, needs, record_property):
    needs("root", "mount")
    assert status_of(forked(lambda: _relay_all(kind, str(tmp_path)))) == 0
    record_property(TOLD, 1)


@pytest.mark.parametrize(("kind", "size"), _each_of_some(_IN_CI, SIZES))
def test_everything_can_be_taken_out_of_a_full_disk(kind, size, tmp_path, needs, record_property):
    needs("root", "mount", "mkfs.ext4", "loop devices")
    fn = lambda: _fill_and_drain(kind, str(tmp_path), _disk_for(size), size, list(DRAINS))  # noqa: E731
    assert status_of(forked(fn)) == 0
    record_property(TOLD, len(DRAINS))


def test_everything_can_be_taken_out_of_a_full_disk_where_no_page_is_free_before_a_checkpoint(
    tmp_path, needs, record_property
):
    needs("root", "mount")
    never = {"durability": "interval", "interval": 3600.0}
    fn = lambda: _fill_and_drain("tmpfs", str(tmp_path), DISK_OF_SMALL, 1_000, list(DRAINS), **never)  # noqa: E731
    assert status_of(forked(fn)) == 0
    record_property(TOLD, len(DRAINS))


@pytest.mark.parametrize("name", mutants.FILLING)
def test_a_full_disk_finds_that_no_room_is_kept(name, tmp_path, needs):
    needs("root", "mount")

    def use() -> None:
        mutants.FILLING[name]()
        _fill_and_drain("tmpfs", str(tmp_path), DISK, 300, ["delete"])

    assert status_of(forked(use)) == 1


@pytest.mark.parametrize("size", [10, 3_000, 200_000])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_others_have_filled_stops_pushes_only(kind, size, tmp_path, needs, record_property):
    needs("root", "mount", "mkfs.ext4", "loop devices")

    def use() -> None:
        with disk(kind, str(tmp_path), DISK) as place:
            with _open(place, kind, 0) as queue:
                count = max(10, 2_000_000 // (size + 30))
                for start in range(0, count, 100):
                    queue.push([_item(number, size) for number in range(start, min(count, start + 100))])
                _fill_with_a_file(place)
                more = fill(_Shifted(queue, count), size, 1, kind)  # what was allocated ahead
                count += more
                read(queue, 0, count, size)
            with _open(place, kind, 0) as queue:  # opening needs no room
                assert queue.pop() == _item(0, size)
                pid = forked(lambda: _pop_in_another_process(place, size))
                assert status_of(pid) == 0
                with pytest.raises(DiskFullError):
                    queue.flush(force=True)
                read(queue, 2, count - 2, size)
                assert queue.delete(count) == count - 2
                assert queue.check() == []
                os.unlink(os.path.join(place, "file of others"))
                queue.push(b"room again")
                queue.flush(force=True)
                assert queue.pop() == b"room again"

    assert status_of(forked(use)) == 0
    record_property(TOLD, 1)


class _Shifted:
    """A queue that is pushed items with higher numbers."""

    def __init__(self, queue: PersistentQueue[bytes], first: int) -> None:
        self._queue = queue
        self._first = first

    def push(self, item: bytes) -> None:
        self._queue.push(_item(int.from_bytes(item[:4]) + self._first, len(item)))


def _fill_with_a_file(place: str) -> None:
    with open(os.path.join(place, "file of others"), "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 512):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass


def _pop_in_another_process(place: str, size: int) -> None:
    with _open(place, "", 0) as queue:
        assert queue.pop() == _item(1, size)
        with pytest.raises(DiskFullError):
            queue.push(b"y" * DISK)


@pytest.mark.parametrize(("kind", "size"), _each_of_some({"tmpfs": {3_000}, "ext4": {12_000}}, [100, 3_000, 12_000]))
def test_a_consumer_with_leases_goes_on_on_a_full_disk(kind, size, tmp_path, needs, record_property):
    needs("root", "mount", "mkfs.ext4", "loop devices")

    def use() -> None:
        room = _disk_for(size)
        with disk(kind, str(tmp_path), room) as place, _open(place, kind, 0) as queue:
            count = fill(queue, size, max(1, room // 50 // size), kind)
            done = 0
            while lease := queue.lease(1 if done < _SINGLY else 200):
                assert list(lease) == [_item(number, size) for number in range(done, done + len(lease))]
                if done % 7:
                    lease.nack()
                    lease = queue.lease(len(lease))
                lease.ack()
                done += len(lease)
            assert done == count
            assert queue.check() == []

    assert status_of(forked(use), 4 * DEADLINE) == 0  # of a thousand commits, on a disk of its own
    record_property(TOLD, 1)


def test_one_who_hoards_leases_on_a_full_disk_leaves_room_for_removals(tmp_path, needs, record_property):
    needs("root", "mount")

    def use() -> None:
        with disk("tmpfs", str(tmp_path), DISK) as place, _open(place, "tmpfs", 0) as queue:
            count = fill(queue, 10, 1_000, "tmpfs")
            hoard = []
            with pytest.raises(DiskFullError):  # noqa: PT012
                while True:
                    hoard.append(queue.lease(1))
            for lease in hoard[::2]:
                lease.ack()
            assert queue.delete(count) == count - len(hoard)
            for lease in hoard[1::2]:
                lease.nack()
            assert len(queue) == len(hoard[1::2])
            assert queue.check() == []

    assert status_of(forked(use)) == 0
    record_property(TOLD, 1)


@pytest.mark.parametrize("trace", ["", "a line of a traceback\n" * 300])
def test_a_worker_that_fails_again_and_again_on_a_full_disk_leaves_room_for_others(
    trace, tmp_path, needs, record_property
):
    """What is noted on each item that it gives back would use up what removals need."""
    needs("root", "mount")

    def use() -> None:
        with disk("tmpfs", str(tmp_path), DISK) as place, _open(place, "tmpfs", 0) as queue:
            count = fill(queue, 1_000, 10, "tmpfs")
            tried = 0
            with suppress(DiskFullError):
                while tried < count:
                    lease = queue.lease()
                    lease.nack(delay=3600, reason="no space left on device", trace=trace)
                    tried += 1
            assert tried > 10
            lease.ack()
            for _ in range(_SINGLY):
                queue.lease().ack()
                assert queue.pop() is not None
            left = count - tried - 1 - 2 * _SINGLY
            assert queue.delete(count) == left
            assert queue.clear(all=True) is None
            assert queue.check() == []

    assert status_of(forked(use), 4 * DEADLINE) == 0
    record_property(TOLD, 1)


def _fill(queue: PersistentQueue[bytes], items: int) -> None:
    refused = 0
    while refused < 20:
        try:
            queue.push([b"x" * 300] * items)
        except DiskFullError:
            refused += 1


def _popped(queue: PersistentQueue[bytes], count: int) -> int:
    popped = 0
    while items := queue.pop(count):
        popped += len(items)
    return popped


_LARGE_REMOVALS: dict[str, Callable[[PersistentQueue[bytes], int], int]] = {
    "delete": lambda queue, count: queue.delete(count),
    "clear": lambda queue, count: queue.clear() or count,
    "clear all": lambda queue, count: queue.clear(all=True) or count,
    "pop": _popped,
}


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "file size limit"])
def test_where_free_pages_are_scattered_a_push_is_refused_as_on_any_full_disk(kind, tmp_path, needs, record_property):
    """LMDB finds no run for a large item, writes behind what is allocated, and calls that an I/O error."""
    if kind != "file size limit":
        needs("root", "mount", "mkfs.ext4", "loop devices")

    def use() -> None:
        chance = random.Random(1)  # noqa: S311
        with disk(kind, str(tmp_path), DISK) as place, _open(place, kind, 0) as queue:
            kept: deque[bytes] = deque()
            refused = 0
            for number in range(3_000):
                item = _item(number, chance.choice([300, 17_000, 60_000, 400_000]))
                try:
                    queue.push(item)
                    kept.append(item)
                except DiskFullError:
                    refused += 1
                if number % 200 == 0:
                    for _ in range(min(chance.randrange(60), len(kept))):
                        assert queue.pop() == kept.popleft()
            assert refused > 100
            assert list(queue) == list(kept)
            assert queue.check() == []

    assert status_of(forked(use), 4 * DEADLINE) == 0
    record_property(TOLD, 1)


@pytest.mark.parametrize(
    "verb", ["delete", "pop", *(pytest.param(each, marks=pytest.mark.long) for each in ("clear", "clear all"))]
)
def test_where_free_pages_are_scattered_much_can_be_removed_at_once(verb, tmp_path, record_property):
    """LMDB lists what a removal frees in one value, for which it finds no pages that lie side by side."""

    def use() -> None:
        chance = random.Random(2)  # noqa: S311
        options = {"dumps": bytes, "loads": bytes, "durability": "interval"}
        with disk("file size limit", str(tmp_path), DISK) as place, PersistentQueue("queue", place, **options) as queue:
            for _ in range(2):
                _fill(queue, 50)
                for seq in range(queue.stats().tail):
                    if chance.random() < 0.3:
                        queue.delete_item(seq)
            _fill(queue, 1)
            count = queue.count()
            assert count > 5_000
            assert _LARGE_REMOVALS[verb](queue, count) == count
            assert queue.count() == 0
            assert queue.check() == []

    assert status_of(forked(use), 4 * DEADLINE) == 0
    record_property(TOLD, 1)


def test_of_a_transaction_that_fills_the_disk_nothing_is_left(tmp_path, needs, record_property):
    needs("root", "mount")

    def use() -> None:
        with disk("tmpfs", str(tmp_path), DISK) as place, _open(place, "tmpfs", 0) as queue:
            queue.push([b"a", b"b"])
            with pytest.raises(DiskFullError), queue.transaction():  # noqa: PT012
                queue.pop()
                while True:
                    queue.push([b"x" * 3_000] * 20)
            assert list(queue) == [b"a", b"b"]
            with queue.transaction():
                assert queue.pop() == b"a"
                with pytest.raises(DiskFullError):
                    queue.push([b"x" * DISK])
            assert list(queue) == [b"b"], "what was done before a refusal that was caught stays"
            assert queue.check() == []

    assert status_of(forked(use)) == 0
    record_property(TOLD, 1)


def test_a_queue_of_many_names_can_be_emptied_on_a_full_disk(tmp_path, needs, record_property):
    needs("root", "mount")

    def use() -> None:
        with disk("tmpfs", str(tmp_path), DISK) as place:
            queues = [_open(place, "tmpfs", 0, name=f"name {number}") for number in range(60)]
            counts = [0] * len(queues)
            full = False
            while not full:
                for each, queue in enumerate(queues):
                    try:
                        queue.push([_item(counts[each] + number, 700) for number in range(5)])
                        counts[each] += 5
                    except DiskFullError:
                        full = True
            for queue, count in zip(queues, counts, strict=True):
                assert queue.pop() == _item(0, 700)
                assert queue.delete(count) == count - 1
            assert queues[0].check() == []
            for queue in queues:
                queue.close()

    assert status_of(forked(use)) == 0
    record_property(TOLD, 1)


def test_a_queue_that_cannot_be_created_leaves_nothing(tmp_path, needs, record_property):
    needs("root", "mount")

    def use() -> None:
        with disk("tmpfs", str(tmp_path), 1 << 20) as place:
            _fill_with_a_file(place)
            with pytest.raises(DiskFullError):
                _open(place, "tmpfs", 0)
            os.unlink(os.path.join(place, "file of others"))
            with _open(place, "tmpfs", 0) as queue:
                pass
            with pytest.raises(DiskFullError), _open(place, "tmpfs", 0) as queue:
                queue.push(b"x" * (1 << 20))

    assert status_of(forked(use)) == 0
    record_property(TOLD, 1)


@pytest.mark.parametrize(("drain", "size"), [("delete of all", 30), ("clear", 5_000), ("pop of many", 5_000)])
def test_a_large_tree_can_be_removed_at_once_on_a_full_disk(size, drain, tmp_path, needs, record_property):
    needs("root", "mount")
    fn = lambda: _fill_and_drain("tmpfs", str(tmp_path), 40 << 20, size, [drain])  # noqa: E731
    assert status_of(forked(fn), 120) == 0
    record_property(TOLD, 1)


@pytest.mark.long
@pytest.mark.parametrize("drain", ["delete of all", "clear", "delete", "pop of many"])
@pytest.mark.parametrize("size", [30, 1_000, 5_000, 1_000_000])
def test_a_very_large_tree_can_be_removed_at_once_on_a_full_disk(size, drain, tmp_path, needs, record_property):
    needs("root", "mount")
    assert status_of(forked(lambda: _fill_and_drain("ext4", str(tmp_path), TREE, size, [drain])), 3600) == 0
    record_property(TOLD, 1)


def _fill_btrfs(place: str, durability: str) -> None:
    own_mounts()
    mount_point, image = os.path.join(place, "mnt"), os.path.join(place, "image")
    os.mkdir(mount_point)
    with open(image, "xb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, mount_point], check=True)
    with _open(mount_point, "btrfs", 0, durability=durability) as queue:
        queue.push([_item(number, 1_000) for number in range(300)])
    with open(os.path.join(mount_point, "others"), "xb", buffering=0) as others:
        for first in range(0, 300, 100):
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while others.write(os.urandom(size)):
                        pass
            os.sync()  # from now on each first store to a page that was written before needs a copy of it
            with _open(mount_point, "btrfs", 0, durability=durability) as queue:
                with pytest.raises(DiskFullError):
                    queue.push(b"x" * 30_000_000)
                for number in range(first, first + 100, 2):
                    assert queue.pop() == _item(number, 1_000)
                    with queue.lease() as lease:
                        assert list(lease) == [_item(number + 1, 1_000)]
                assert queue.check() == []


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_consumers_continue_where_a_copy_on_write_file_system_is_full(durability, tmp_path, needs, record_property):
    needs("root", "mount", "mkfs.btrfs", "loop devices")
    assert status_of(forked(lambda: _fill_btrfs(str(tmp_path), durability))) == 0
    record_property(TOLD, 1)
