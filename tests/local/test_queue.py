"""The verbs of PersistentQueue: what each takes, gives and refuses."""

import gc
import glob
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import eventually, is_taken

from lmdbqueue import ClosedError, CorruptItemError, Empty, Full, PersistentQueue
from lmdbqueue._host import directory as _directory
from lmdbqueue._local import environment as _env
from lmdbqueue._verbs import encoding, writing

PATIENCE = 30  # seconds, for what happens at once when all is well


def _damage(directory, payload):
    """Flip a bit in the middle of a payload, wherever it stands in the files; return the payload as it is then."""
    damaged = bytearray(payload)
    damaged[len(payload) // 2] ^= 1
    found = 0
    for path in glob.glob(os.path.join(directory, "*.mdb")):
        with open(path, "r+b") as file:
            content = file.read()
            found += content.count(payload)
            file.seek(0)
            file.write(content.replace(payload, damaged))
    assert found
    return bytes(damaged)


# --- iteration


def test_iteration_holds_no_transaction_and_no_lock_between_items(queue):
    queue.push([1, 2, 3])
    environment = queue._engine.environment
    for _ in queue:
        assert not environment._reading
        assert not any(is_taken(lock) for lock in (environment._writer, environment._moving))


def test_every_verb_and_a_forced_flush_work_amid_an_iteration(queue):
    items = [bytes([n]) * 100_000 for n in range(9)]
    queue.push(items)
    seen = []
    for number, item in enumerate(queue):
        seen.append(item)
        queue.flush(force=True)
        if number == 0:
            assert queue.pop() == items[0]
            assert queue.delete() == 1
            queue.push("behind")
    assert [item for item in seen if item != items[1]] == [items[0], *items[2:], "behind"]
    assert list(queue) == [*items[2:], "behind"]


def test_iteration_raises_at_a_damaged_item_and_not_before(open_queue, tmp_path):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"first", b"the second payload", b"third"])
    queue.close()
    damaged = _damage(tmp_path / "queue", b"the second payload")
    queue = open_queue(dumps=bytes, loads=bytes)
    browser = iter(queue)
    assert next(browser) == b"first"
    with pytest.raises(CorruptItemError) as caught:
        next(browser)
    assert (caught.value.seq, caught.value.payload) == (1, damaged)
    queue.clear()


# --- limits


def test_a_list_beyond_max_bytes_stores_nothing(open_queue):
    queue = open_queue(max_bytes=1 << 20)
    queue.push(bytes(1000))
    with pytest.raises(Full) as caught:
        queue.push([bytes(100_000)] * 20)
    error = caught.value
    assert (error.unit, error.limit) == ("bytes", 1 << 20)
    assert error.used + error.added > error.limit
    assert error.added >= 2_000_000
    assert queue.count() == 1


def test_the_pages_in_use_never_exceed_max_bytes(open_queue):
    limit = 1 << 20
    queue = open_queue(max_bytes=limit, durability="off")
    with suppress(Full):
        for _ in range(1000):
            queue.push([bytes(3_000), bytes(20_000), b""])
            used = queue._engine.environment.view(queue._engine.ref, lambda txn, tables: tables.generation.used(txn))
            assert used <= limit
    assert queue.count() < 200  # Full was raised
    assert queue.count() >= 90  # most of the space serves the items
    queue.clear()
    queue.push(bytes(100_000))


# --- sizes


@pytest.mark.parametrize("checksum", [True, False])
def test_items_of_any_size_come_back_as_they_went_after_a_flush_too(open_queue, checksum):
    queue = open_queue(dumps=bytes, loads=bytes, checksum=checksum)
    sizes = (0, 1, 500, 2000, 2040, 4095, 4096, 4097, 65_536, 1 << 20)
    items = [(bytes(range(256)) * (size // 256 + 1))[:size] for size in sizes]
    queue.push(items)
    assert list(queue) == items
    queue.flush(force=True)
    assert queue.pop(20) == items


def test_an_item_longer_than_lmdb_can_store_is_refused_and_nothing_is_stored(open_queue, monkeypatch):
    monkeypatch.setattr(writing, "MAX_PAYLOAD", 10)
    monkeypatch.setattr(encoding, "MAX_PAYLOAD", 10)  # it is 4 GiB
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push(bytes(10))
    with pytest.raises(ValueError, match="11 bytes; at most 10"):
        queue.push([b"a", bytes(11)])
    assert queue.count() == 1


# --- damage


@pytest.mark.parametrize("verb", ["peek", "pop", "get"])
@pytest.mark.parametrize("size", [50, 5000])
def test_a_damaged_item_is_reported_with_its_facts_and_stays(open_queue, tmp_path, verb, size):
    payload = os.urandom(size)
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"before", payload, b"after"])
    queue.pop()
    queue.close()
    damaged = _damage(tmp_path / "queue", payload)
    queue = open_queue(dumps=bytes, loads=bytes)
    for _ in range(2):
        with pytest.raises(CorruptItemError) as caught:
            getattr(queue, verb)()
        assert (caught.value.seq, caught.value.payload) == (1, damaged)
    assert queue.count() == 2
    assert any("item 1 is damaged" in problem for problem in queue.check())
    assert queue.delete() == 1
    assert queue.check() == []
    assert queue.pop() == b"after"


def test_a_damaged_item_that_somebody_removed_since_holds_nobody_up(open_queue, tmp_path):
    """The next one that a pop took along, as the first item that would be left, may have left since."""
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"before", b"the payload to be damaged", b"after"])
    queue.close()
    _damage(tmp_path / "queue", b"the payload to be damaged")
    queue = open_queue(dumps=bytes, loads=bytes)
    assert queue.pop() == b"before"
    assert queue.delete() == 1
    assert queue.pop() == b"after"


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_items_asked_for_together_with_a_damaged_one_come_as_far_as_they_stand_before_it(open_queue, tmp_path, verb):
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"before", b"the payload to be damaged", b"after"])
    queue.close()
    _damage(tmp_path / "queue", b"the payload to be damaged")
    queue = open_queue(dumps=bytes, loads=bytes)
    assert getattr(queue, verb)(3) == [b"before"]
    queue.delete(int(verb == "peek"))
    with pytest.raises(CorruptItemError, match=r"delete_item\(1\)") as caught:
        getattr(queue, verb)(3)
    assert caught.value.seq == 1
    assert queue.dead_letter(1)
    assert queue.pop() == b"after"
    assert queue.dead.delete(1) == 1


def test_without_checksums_damage_is_not_noticed(open_queue, tmp_path):
    queue = open_queue(dumps=bytes, loads=bytes, checksum=False)
    queue.push(b"the payload to be damaged")
    queue.close()
    damaged = _damage(tmp_path / "queue", b"the payload to be damaged")
    assert open_queue(dumps=bytes, loads=bytes, checksum=False).pop() == damaged


# --- interrupts in the user's own code


def test_an_interrupt_inside_dumps_leaves_the_queue_whole(open_queue):
    def dumps(item):
        if item == "interrupt":
            raise KeyboardInterrupt
        return pickle.dumps(item)

    queue = open_queue(dumps=dumps)
    queue.push("before")
    for push in (lambda: queue.push(["a", "interrupt"]), lambda: queue.put("interrupt")):
        with pytest.raises(KeyboardInterrupt):
            push()
    with ThreadPoolExecutor(1) as pool:  # no lock was left behind
        assert pool.submit(queue.push, "after").result(PATIENCE) == 1
    assert list(queue) == ["before", "after"]


# --- attributes, names, paths


def test_a_queue_shows_what_it_was_opened_with(tmp_path):
    def dumps(item):
        return repr(item).encode()

    with PersistentQueue(
        "queue", tmp_path, dumps, bytes, 17, name="n", maxsize=5, max_bytes=1 << 30, durability="off", checksum=False
    ) as queue:
        assert (queue.filename, queue.path, queue.flush_limit) == ("queue", tmp_path, 17)
        assert (queue.dumps, queue.loads) == (dumps, bytes)
        assert (queue.name, queue.maxsize, queue.max_bytes) == ("n", 5, 1 << 30)
        assert (queue.durability, queue.checksum) == ("off", False)


def test_the_defaults_are_those_of_python_persistent_queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with PersistentQueue("queue") as queue:
        assert (queue.filename, queue.path, queue.flush_limit) == ("queue", ".", 1048576)
        assert (queue.dumps, queue.loads) == (pickle.dumps, pickle.loads)
        assert (queue.maxsize, queue.max_bytes) == (0, None)
    assert os.path.isdir(tmp_path / "queue")


def test_the_options_that_are_new_are_given_by_name_only(tmp_path):
    with pytest.raises(TypeError):
        PersistentQueue("queue", tmp_path, pickle.dumps, pickle.loads, 0, "name")
    assert not os.path.exists(tmp_path / "queue")


def test_an_unknown_durability_or_a_bad_name_is_refused_and_nothing_is_created(tmp_path):
    for durability in ("", "FULL", None, True, 1):
        with pytest.raises((ValueError, TypeError), match="'full', 'interval' or 'off'"):
            PersistentQueue("queue", tmp_path, durability=durability)
    with pytest.raises(ValueError, match="name"):
        PersistentQueue("queue", tmp_path, name="a/b")
    assert os.listdir(tmp_path) == []


def test_a_relative_path_stands_for_the_same_place_after_chdir(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with PersistentQueue("queue") as queue:
        monkeypatch.chdir(tmp_path / "elsewhere")
        queue.push(["a", "b"])
        queue.flush(force=True)
        with pickle.loads(pickle.dumps(queue)) as other:
            assert other.pop() == "a"
        assert queue.pop(1, blocking=True) == "b"
        assert queue.check() == []
        queue.copy("twin").close()
    assert sorted(os.listdir(tmp_path / "home")) == ["queue", "twin"]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_path_and_filename_may_be_path_objects(tmp_path):
    with PersistentQueue(tmp_path / "queue") as queue, PersistentQueue("queue", os.fspath(tmp_path)) as same:
        queue.push("a")
        assert same.pop() == "a"


# --- copy


def test_a_copy_holds_all_queues_of_the_directory_and_has_the_same_options(open_queue, tmp_path):
    queue, other = open_queue(flush_limit=5, checksum=False), open_queue(name="other", checksum=False)
    queue.push("a")
    other.push(["b", "c"])
    (tmp_path / "there").mkdir()
    with queue.copy("twin", tmp_path / "there") as twin:
        assert (twin.filename, twin._options()) == ("twin", queue._options())
        assert twin.path == tmp_path / "there"
    with PersistentQueue("twin", tmp_path / "there", name="other", checksum=False) as twin:
        assert list(twin) == ["b", "c"]
    assert os.listdir(tmp_path / "there") == ["twin"]


def test_a_copy_is_compacted(open_queue, tmp_path):
    queue = open_queue(durability="off")
    queue.push([bytes(100_000)] * 20)
    queue.delete(20)
    with queue.copy("twin"):
        sizes = [os.path.getsize(tmp_path / name / "00000001.mdb") for name in ("queue", "twin")]
    assert sizes[0] > 1_000_000
    assert sizes[1] < 500_000  # of which 256 KiB are kept for removals


# --- closing


def test_a_queue_that_is_garbage_gives_its_handle_back(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    queue.push("a")
    environment = queue._engine.environment
    identity = environment.directory.identity
    cycle = [queue]
    cycle.append(cycle)
    assert environment.handles == 1
    assert _env.environments[identity] is environment
    del queue, cycle
    gc.collect()
    eventually(lambda: identity not in _env.environments)  # by another thread: the collector closes nothing
    assert environment.handles == 0
    assert identity not in _env.environments
    if sys.platform == "linux":
        eventually(lambda: not [link for link in _open_files() if link.startswith(os.fspath(tmp_path))])


def test_a_closed_queue_leaves_no_descriptor_behind(tmp_path):
    if sys.platform != "linux":
        pytest.skip("the open files of a process are listed on Linux only")
    before = sorted(_open_files())
    with PersistentQueue("queue", tmp_path) as queue:
        with pytest.raises(Empty):
            queue.pop(1, blocking=True, timeout=0.01)
        queue.push("a")
        queue.flush(force=True)
        queue.check()
        assert sorted(_open_files()) != before
    assert sorted(_open_files()) == before


def _open_files():
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # that of listdir itself
            continue
        if not link.startswith("/proc/"):
            yield link


def test_a_queue_whose_directory_was_removed_can_be_closed(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    _directory.remove(os.fspath(tmp_path / "queue"))
    queue.close()
    with pytest.raises(ClosedError):
        queue.count()


def test_repr_names_the_queue_and_its_state(queue, tmp_path):
    assert repr(queue) == f"<PersistentQueue 'queue' in {os.fspath(tmp_path / 'queue')!r}>"
    queue.close()
    assert repr(queue).endswith(", closed>")
    with pytest.raises(ClosedError) as caught:
        queue.pop()
    assert caught.value.path == os.fspath(tmp_path / "queue")
    assert os.listdir(tmp_path) == ["queue"]
