"""Address space: a map that grows with the file, in every process; what is said where there is none left."""

import gc
import os
import resource
from contextlib import suppress

import pytest
from processes import DEADLINE, forked, status_of

from lmdbqueue import Full, PersistentQueue, StorageError
from lmdbqueue._lmdb import generation, opening

SMALL = 1 << 20  # bytes of the smallest map in these tests
FAST = {"durability": "off"}


@pytest.fixture
def small_maps(monkeypatch):
    """Let maps begin small, so that files outgrow them soon."""
    monkeypatch.setattr(opening, "_LEAST_MAP", SMALL)
    monkeypatch.setattr(opening, "_LEAST_OF_LITTLE", SMALL)


def _map_size(queue):
    return queue._engine.environment._generation._env.info()["map_size"]


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("step", [1_000, 300_000, 5_000_000])
def test_a_map_grows_with_its_file_and_every_item_is_there(open_queue, step):
    queue = open_queue(**FAST)
    before = _map_size(queue)
    for number in range(20_000_000 // step if step > 1_000 else 3_000):
        queue.push(bytes([number % 256]) * step)
    count = len(queue)
    assert _map_size(queue) > before
    for number in range(count):
        assert queue.pop() == bytes([number % 256]) * step


@pytest.mark.usefixtures("small_maps")
def test_a_block_that_adds_more_than_the_map_has_is_undone_whole_and_goes_well_when_it_is_done_again(open_queue):
    queue = open_queue()
    queue.push("before")

    def work():
        with queue.transaction():
            for number in range(40):
                queue.push(bytes([number]) * 1_000_000)

    with pytest.raises(StorageError, match="repeat it"):
        work()
    assert list(queue) == ["before"]
    for _ in range(6):
        with suppress(StorageError):
            work()
            break
    assert len(queue) == 41
    assert queue.delete(41) == 41


@pytest.mark.usefixtures("small_maps")
def test_processes_that_meet_a_file_which_outgrew_their_map_go_on(open_queue, tmp_path):
    queue = open_queue()
    queue.push("before")

    def push_much():
        with PersistentQueue("queue", tmp_path) as other:
            for number in range(60):
                other.push(bytes([number]) * 200_000)

    assert status_of(forked(push_much)) == 0
    assert len(queue) == 61  # reads first
    assert queue.pop() == "before"
    assert status_of(forked(push_much)) == 0
    queue.push("after")  # writes first
    assert len(queue) == 121
    queue.flush(force=True)
    assert queue.pop(121)[-1] == "after"


@pytest.mark.usefixtures("small_maps")
def test_every_way_of_writing_a_file_anew_finds_room_for_it(open_queue, tmp_path):
    queue = open_queue()
    queue.push([bytes([number]) * 500_000 for number in range(20)])
    with queue.copy("copy") as copied:
        assert len(copied) == 20
    (name,) = (name for name in os.listdir(tmp_path / "queue") if name.endswith(".mdb"))
    with open(tmp_path / "queue" / name, "r+b") as file:
        content = file.read()
        file.seek(content.index(b"\x07" * 1000))
        file.write(b"damaged")
    assert queue.check(repair=True)
    assert len(queue) == 19


def _open_many(place, count):
    queues = [PersistentQueue(str(number), place, **FAST) for number in range(count)]
    for queue in queues:
        queue.push("a")
    block = bytearray(200 << 20)  # malloc has room, too
    assert block
    assert all(queue.pop() == "a" for queue in queues)


def test_three_hundred_directories_fit_a_process(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 6_000:
        pytest.skip("a process may not open that many files here")

    def run():
        resource.setrlimit(resource.RLIMIT_NOFILE, (6_000, limits[1]))
        _open_many(tmp_path, 300)

    assert status_of(forked(run), DEADLINE) == 0


def _live_on_little(place, limit):
    queues = []
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(4):
        queue = PersistentQueue(str(number), place, **FAST)
        queues.append(queue)
        queue.push("a")
        assert queue.pop() == "a"
    assert bytearray(64 << 20)  # malloc has room, too


def test_where_address_space_is_limited_queues_leave_some_to_the_program(tmp_path):
    assert status_of(forked(_live_on_little, tmp_path, 4 << 30), DEADLINE) == 0


def _use_it_up(place):
    PersistentQueue("queue", place, **FAST).close()
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20), -1))
    with pytest.raises(StorageError) as caught:
        PersistentQueue("queue", place, **FAST)
    assert "address space" in str(caught.value)
    assert "the disk" not in str(caught.value)


def test_what_cannot_be_mapped_at_all_is_refused_for_want_of_address_space(tmp_path):
    with PersistentQueue("queue", tmp_path, **FAST) as queue:
        queue.push(bytes(300_000_000))
    assert status_of(forked(_use_it_up, tmp_path), DEADLINE) == 0


@pytest.mark.usefixtures("small_maps")
def test_a_file_that_has_all_address_space_there_is_says_so_and_can_be_emptied(open_queue, monkeypatch):
    queue = open_queue(**FAST)
    for module in (opening, generation):
        monkeypatch.setattr(module, "wanted_map", lambda _path, _size=0: SMALL)
    queue._engine.environment._generation._is_confined = True
    with pytest.raises(Full) as caught:  # noqa: PT012
        while True:
            queue.push(bytes(10_000))
    assert caught.value.unit == "address space"
    assert "ulimit -v" in str(caught.value)
    assert "0 more" not in str(caught.value)
    while queue.pop() is not None:
        pass
