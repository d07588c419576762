"""The verbs of PersistentQueue: what each takes, gives and refuses."""

import gc
import glob
import itertools
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import eventually

from lmdbqueue import ClosedError, CorruptItemError, DecodeError, Empty, ExistsError, FormatError, Full, PersistentQueue
from lmdbqueue._host import directory as _directory
from lmdbqueue._host.threads import is_taken
from lmdbqueue._local import environment as _env
from lmdbqueue._verbs import encoding, writing

PATIENCE = 30  # seconds, for what happens at once when all is well


def _until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def _sleeps(queue):
    """Tell whether a thread of this process sits on the queue's bell."""
    return queue._engine.environment.bell._is_seat_taken() or len(queue._hands.settled) > 0


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


# --- push


def test_push_of_an_item_returns_its_sequence_number(queue):
    assert [queue.push("a"), queue.push("b"), queue.push("c")] == [0, 1, 2]


def test_push_of_a_list_appends_each_of_its_items_and_returns_their_range(queue):
    queue.push("first")
    assert queue.push(["a", "b", "c"]) == range(1, 4)
    assert list(queue) == ["first", "a", "b", "c"]


def test_push_of_a_list_with_one_item_returns_a_range(queue):
    assert queue.push(["a"]) == range(1)


def test_push_of_a_tuple_appends_one_item(queue):
    assert queue.push((1, 2)) == 0
    assert list(queue) == [(1, 2)]


def test_push_of_an_empty_list_does_nothing(queue):
    assert queue.push([]) == range(0)
    assert queue.count() == 0
    assert queue.push("next") == 0


def test_push_of_an_empty_tuple_string_or_none_appends_an_item(queue):
    for item in ((), "", None, {}, 0):
        queue.push(item)
    assert list(queue) == [(), "", None, {}, 0]


def test_push_takes_a_subclass_of_list_for_a_list(queue):
    class Batch(list):
        pass

    assert queue.push(Batch("ab")) == range(2)
    assert list(queue) == ["a", "b"]


def test_push_of_a_list_of_lists_appends_the_inner_lists(queue):
    queue.push([[1, 2], []])
    assert list(queue) == [[1, 2], []]


# --- peek and pop


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_one_item_is_the_item_and_none_when_there_is_none(queue, verb):
    assert getattr(queue, verb)() is None
    assert getattr(queue, verb)(1) is None
    queue.push(["a", "b"])
    assert getattr(queue, verb)(1) == "a"
    assert getattr(queue, verb)() == ("b" if verb == "pop" else "a")


@pytest.mark.parametrize("verb", ["peek", "pop"])
@pytest.mark.parametrize("blocking", [False, True])
def test_no_items_are_an_empty_list_even_when_blocking(queue, verb, blocking):
    assert getattr(queue, verb)(0, blocking=blocking) == []
    queue.push("a")
    assert getattr(queue, verb)(0, blocking=blocking) == []
    assert queue.count() == 1


@pytest.mark.parametrize("verb", ["peek", "pop"])
@pytest.mark.parametrize("there", [0, 1, 2, 3, 4])
def test_several_items_are_a_list_of_at_most_that_many(queue, verb, there):
    queue.push(list(range(there)))
    assert getattr(queue, verb)(3) == list(range(min(there, 3)))
    assert queue.count() == (there if verb == "peek" else max(0, there - 3))


def test_peek_leaves_the_items(queue):
    queue.push(["a", "b"])
    assert [queue.peek(2), queue.peek(2), queue.peek()] == [["a", "b"], ["a", "b"], "a"]


def test_pop_gives_items_in_the_order_of_their_push(queue):
    queue.push(["a", "b"])
    queue.push("c")
    assert [queue.pop(), queue.pop(), queue.pop(), queue.pop()] == ["a", "b", "c", None]


def test_pop_across_keys_of_several_lengths_in_decimal_keeps_the_order(open_queue):
    queue = open_queue(durability="off")
    queue.push(list(range(1200)))
    assert queue.pop(1100) == list(range(1100))
    assert queue.pop(1000) == list(range(1100, 1200))


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_blocking_without_time_looks_once(queue, verb):
    with pytest.raises(Empty):
        getattr(queue, verb)(1, blocking=True, timeout=0)
    queue.push("a")
    assert getattr(queue, verb)(1, blocking=True, timeout=0) == "a"


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_a_negative_timeout_is_refused_when_blocking(queue, verb):
    queue.push("a")
    with pytest.raises(ValueError, match="non-negative"):
        getattr(queue, verb)(1, blocking=True, timeout=-0.001)
    assert queue.count() == 1


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_blocking_waits_until_all_the_items_are_there(queue, verb):
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(getattr(queue, verb), 3, blocking=True, timeout=PATIENCE)
        for item in ("a", "b"):
            _until(lambda: _sleeps(queue))
            queue.push(item)
            assert not found.done()
        _until(lambda: _sleeps(queue))
        assert not found.done()
        queue.push("c")
        assert found.result(PATIENCE) == ["a", "b", "c"]


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_blocking_gives_one_item_as_itself(queue, verb):
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(getattr(queue, verb), blocking=True)
        _until(lambda: _sleeps(queue))
        queue.push(("a", "b"))
        assert found.result(PATIENCE) == ("a", "b")


def test_blocking_pop_sees_what_another_object_pushes(queue, open_queue):
    other = open_queue()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(queue.pop, 1, blocking=True, timeout=PATIENCE)
        _until(lambda: _sleeps(queue))
        other.push("a")
        assert found.result(PATIENCE) == "a"


# --- counts


@pytest.mark.parametrize("verb", ["peek", "pop", "delete"])
@pytest.mark.parametrize(
    ("number", "error"),
    [(-1, ValueError), (-(10**30), ValueError), (1.0, TypeError), ("1", TypeError), (None, TypeError)],
)
def test_a_number_of_items_that_is_none_is_refused_and_nothing_changes(queue, verb, number, error):
    queue.push(["a", "b"])
    with pytest.raises(error):
        getattr(queue, verb)(number)
    assert list(queue) == ["a", "b"]


def test_anything_with_an_index_is_a_number_of_items(queue):
    class Two:
        def __index__(self):
            return 2

    queue.push(["a", "b", "c", "d"])
    assert queue.peek(True) == "a"  # noqa: FBT003  (True is the integer 1)
    assert queue.pop(Two()) == ["a", "b"]
    assert queue.delete(True) == 1  # noqa: FBT003
    assert list(queue) == ["d"]


@pytest.mark.parametrize("verb", ["peek", "pop"])
def test_more_items_than_any_machine_can_hold_are_all_there_are(queue, verb):
    queue.push(["a", "b"])
    assert getattr(queue, verb)(sys.maxsize) == ["a", "b"]


# --- delete, clear, count


@pytest.mark.parametrize(("number", "gone"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (10**30, 3)])
def test_delete_removes_from_the_head_and_says_how_many(queue, number, gone):
    queue.push(["a", "b", "c"])
    assert queue.delete(number) == gone
    assert list(queue) == ["a", "b", "c"][gone:]


def test_delete_removes_one_item_by_itself(queue):
    queue.push(["a", "b"])
    assert [queue.delete(), queue.delete(), queue.delete()] == [1, 1, 0]


def test_delete_asks_nothing_of_loads(open_queue):
    def refuse(_):
        raise AssertionError

    queue = open_queue(loads=refuse)
    queue.push([1, 2])
    assert queue.delete(2) == 2


def test_count_and_len_follow_every_verb(queue):
    seen = []
    for step in (
        lambda: queue.push([1, 2, 3, 4, 5, 6]),
        lambda: queue.push(7),
        queue.peek,
        queue.pop,
        lambda: queue.pop(2),
        queue.delete,
        queue.clear,
        queue.pop,
    ):
        step()
        assert queue.count() == len(queue) == queue.qsize()
        seen.append(queue.count())
    assert seen == [6, 7, 7, 6, 4, 3, 0, 0]


def test_an_empty_queue_is_false_and_another_is_true(queue):
    assert not queue
    queue.push(0)
    assert queue


def test_clear_removes_all_and_its_numbers_are_not_given_again(queue):
    queue.push([1, 2, 3])
    assert queue.clear() is None
    assert queue.count() == 0
    assert queue.peek() is None
    assert queue.push("next") == 3


def test_numbers_are_not_given_again_after_pop_delete_and_reopening(open_queue):
    queue = open_queue()
    queue.push([1, 2, 3, 4])
    queue.pop(2)
    queue.delete(2)
    queue.close()
    assert open_queue().push("next") == 4


def test_clear_of_an_empty_queue_does_nothing(queue):
    queue.clear()
    assert queue.push("first") == 0


# --- iteration


def test_iteration_sees_every_item_in_order_and_removes_none(open_queue):
    queue = open_queue()
    items = [bytes([n]) * 100_000 for n in range(10)]  # more than is read at a time
    queue.push(items)
    assert list(queue) == items
    assert list(queue) == items


def test_iteration_of_an_empty_queue_ends_at_once(queue):
    assert list(queue) == []


def test_iteration_begins_at_the_head(queue):
    queue.push([1, 2, 3, 4])
    queue.delete(2)
    assert list(queue) == [3, 4]


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


def test_iteration_shows_no_item_twice_when_the_head_moves(queue):
    queue.push(list(range(6)))
    browser = iter(queue)
    seen = [next(browser)]
    queue.delete(3)
    seen += browser
    assert seen == sorted(set(seen))
    assert seen[-3:] == [3, 4, 5]


def test_an_iteration_that_the_queue_is_cleared_under_ends(open_queue):
    queue = open_queue()
    queue.push([bytes(100_000)] * 6)
    browser = iter(queue)
    next(browser)
    queue.clear()
    assert len(list(browser)) < 6


def test_iteration_raises_at_an_item_that_cannot_be_decoded_and_not_before(open_queue):
    queue = open_queue(dumps=bytes, loads=lambda payload: payload.decode("ascii"))
    queue.push([b"a", b"b", b"\xff", b"d"])
    browser = iter(queue)
    assert list(itertools.islice(browser, 2)) == ["a", "b"]
    with pytest.raises(DecodeError) as caught:
        next(browser)
    assert (caught.value.seq, caught.value.payload) == (2, b"\xff")
    assert queue.count() == 4


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


def test_a_push_beyond_maxsize_is_refused_at_once_with_the_facts(open_queue):
    queue = open_queue(maxsize=3)
    queue.push([1, 2])
    with pytest.raises(Full) as caught:
        queue.push([3, 4])
    error = caught.value
    assert (error.unit, error.limit, error.used, error.added) == ("items", 3, 2, 2)


def test_room_made_by_a_removal_is_used_again(open_queue):
    queue = open_queue(maxsize=1, durability="off")
    for n in range(10):
        assert queue.push(n) == n
        assert queue.pop() == n


def test_maxsize_limits_what_its_own_object_pushes_only(open_queue):
    limited, free = open_queue(maxsize=1), open_queue()
    free.push([1, 2, 3])
    with pytest.raises(Full) as caught:
        limited.push(4)
    assert caught.value.used == 3


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
@pytest.mark.parametrize("size", [0, 1, 500, 2000, 2040, 4095, 4096, 4097, 65_536, 1 << 20, 5 << 20])
def test_an_item_of_any_size_comes_back_as_it_went(open_queue, size, checksum):
    queue = open_queue(dumps=bytes, loads=bytes, checksum=checksum)
    item = (bytes(range(256)) * (size // 256 + 1))[:size]
    queue.push([item, b"next"])
    assert queue.peek() == item
    queue.flush(force=True)
    assert list(queue) == [item, b"next"]
    assert queue.pop(2) == [item, b"next"]


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
    queue.delete(verb == "peek")
    with pytest.raises(CorruptItemError, match=r"delete_item\(1\)") as caught:
        getattr(queue, verb)(3)
    assert caught.value.seq == 1
    assert queue.dead_letter(1)
    assert queue.pop() == b"after"
    assert queue.dead.delete(1) == 1


def test_a_damaged_pickle_is_found_before_it_is_unpickled(open_queue, tmp_path):
    queue = open_queue()
    queue.push("a text that stands as it is in its pickle")
    queue.close()
    _damage(tmp_path / "queue", b"a text that stands as it is in its pickle")
    queue = open_queue()
    with pytest.raises(CorruptItemError):
        queue.pop()
    queue.delete()


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


@pytest.mark.parametrize("take", ["peek", "pop", "get", "browse"])
def test_an_interrupt_inside_loads_leaves_the_items_where_they_are(open_queue, take):
    interrupted = []

    def loads(payload):
        item = pickle.loads(payload)
        if item == "b" and not interrupted:
            interrupted.append(item)
            raise KeyboardInterrupt
        return item

    queue = open_queue(loads=loads)
    queue.push(["b", "c"])
    with pytest.raises(KeyboardInterrupt):
        list(queue) if take == "browse" else getattr(queue, take)()
    assert interrupted
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(queue.pop, 2).result(PATIENCE) == ["b", "c"]
    queue.join()  # nothing is in hand


def test_a_queue_may_be_used_inside_its_own_dumps_and_loads(open_queue):
    def dumps(item):
        return f"{item} after {queue.count()}".encode()

    def loads(payload):
        return f"{payload.decode()} of {queue.count()}"

    queue = open_queue(dumps=dumps, loads=loads)
    queue.push(["a", "b"])
    assert queue.pop(2) == ["a after 0 of 2", "b after 0 of 2"]


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


def test_dumps_and_loads_may_be_replaced_while_the_queue_is_open(queue):
    queue.dumps, queue.loads = str.encode, bytes.decode
    queue.push("text")
    assert queue.pop() == "text"
    queue.loads = len
    queue.push("text")
    assert queue.pop() == 4


@pytest.mark.parametrize("durability", ["", "FULL", None, True, 1])
def test_an_unknown_durability_is_refused_and_nothing_is_created(tmp_path, durability):
    with pytest.raises(ValueError, match="'full' or 'off'"):
        PersistentQueue("queue", tmp_path, durability=durability)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\0", "x" * 201, "é" * 101, "\ud800"])
def test_a_bad_name_is_refused_and_nothing_is_created(tmp_path, name):
    with pytest.raises(ValueError):  # noqa: PT011  (a lone surrogate fails in encode())
        PersistentQueue("queue", tmp_path, name=name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a", " ", "queue", "meta", "next", "txn", "x" * 200, "é" * 100, "a.b-c\n", "items"])
def test_any_other_name_is_a_queue_of_its_own(open_queue, name):
    queue, other = open_queue(name=name), open_queue(name="other")
    queue.push("a")
    assert (queue.count(), other.count()) == (1, 0)
    queue.close()
    assert open_queue(name=name).pop() == "a"


def test_queues_of_several_names_have_items_numbers_and_limits_of_their_own(open_queue):
    queues = [open_queue(name=f"queue {n}", maxsize=n + 1, durability="off") for n in range(20)]
    for n, queue in enumerate(queues):
        assert queue.push([n] * (n + 1)) == range(n + 1)
        with pytest.raises(Full):
            queue.push(n)
    queues[3].clear()
    assert [queue.count() for queue in queues] == [0 if n == 3 else n + 1 for n in range(20)]
    assert [queue.pop() for queue in queues] == [None if n == 3 else n for n in range(20)]


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
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_copy_lands_beside_a_queue_with_a_relative_path_after_chdir(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with PersistentQueue("queue") as queue:
        monkeypatch.chdir(tmp_path / "elsewhere")
        queue.copy("twin").close()
    assert sorted(os.listdir(tmp_path / "home")) == ["queue", "twin"]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_path_and_filename_may_be_path_objects(tmp_path):
    with PersistentQueue(tmp_path / "queue") as queue, PersistentQueue("queue", os.fspath(tmp_path)) as same:
        queue.push("a")
        assert same.pop() == "a"


def test_a_pickled_queue_opens_the_same_queue_with_the_same_options(open_queue):
    queue = open_queue(
        name="n", maxsize=2, durability="off", checksum=False, flush_limit=5, loads=len, dumps=str.encode
    )
    queue.push("four")
    with pickle.loads(pickle.dumps(queue)) as other:
        assert other._options() == queue._options()
        assert other.pop() == 4


# --- copy


def test_a_copy_is_a_queue_of_its_own_with_the_same_items_numbers_and_options(open_queue, tmp_path):
    queue = open_queue(name="n", dumps=str.encode, loads=bytes.decode, maxsize=9, durability="off", checksum=False)
    queue.push(["a", "b", "c"])
    queue.pop()
    with queue.copy("twin") as twin:
        assert (twin.filename, os.fspath(twin.path)) == ("twin", str(tmp_path))
        assert twin._options() == queue._options()
        assert list(twin) == ["b", "c"]
        assert twin.push("d") == 3
        assert twin.check() == []
        queue.clear()
        assert list(twin) == ["b", "c", "d"]
    assert queue.count() == 0


def test_a_copy_holds_all_queues_of_the_directory(open_queue, tmp_path):
    queue, other = open_queue(), open_queue(name="other")
    queue.push("a")
    other.push(["b", "c"])
    (tmp_path / "there").mkdir()
    queue.copy("twin", tmp_path / "there").close()
    with PersistentQueue("twin", tmp_path / "there", name="other") as twin:
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


def test_a_copy_never_overwrites(open_queue, tmp_path):
    queue, other = open_queue(), open_queue("other")
    queue.push("a")
    other.push("b")
    with pytest.raises(ExistsError) as caught:
        queue.copy("other")
    assert caught.value.path == os.fspath(tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError):
        queue.copy("file")
    assert (tmp_path / "file").read_text() == "mine"
    assert list(other) == ["b"]


def test_a_queue_copied_onto_itself_is_refused(queue):
    queue.push("a")
    with pytest.raises(ExistsError):
        queue.copy("queue")
    assert list(queue) == ["a"]


# --- flush


def test_flush_gives_space_back_and_says_how_much(open_queue, tmp_path):
    queue = open_queue(durability="off")
    queue.push([bytes(100_000)] * 30)
    queue.delete(29)
    before = os.path.getsize(tmp_path / "queue" / "00000001.mdb")
    shrunk = queue.flush()
    assert shrunk == before - os.path.getsize(tmp_path / "queue" / "00000002.mdb") > 2_000_000
    assert list(queue) == [bytes(100_000)]
    assert queue.push("next") == 30


@pytest.mark.parametrize(("limit", "flushes"), [(1 << 20, False), (100_000, True), (0, True), (-5, True)])
def test_flush_does_nothing_below_its_limit_unless_forced(open_queue, tmp_path, limit, flushes):
    queue = open_queue(flush_limit=limit, durability="off")
    queue.push([bytes(100_000)] * 3)
    queue.delete(3)
    assert (queue.flush() > 0) == flushes
    assert os.path.exists(tmp_path / "queue" / "00000001.mdb") != flushes
    if not flushes:
        assert queue.flush(force=True) > 0


# --- closing


def _closed(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    queue.get()
    queue.close()
    return queue


VERBS = {
    "__iter__": list,
    "__len__": len,
    "check": lambda queue: queue.check(),
    "browse": lambda queue: list(queue.browse()),
    "cancel": lambda queue: queue.cancel("key"),
    "clear": lambda queue: queue.clear(),
    "dead_letter": lambda queue: queue.dead_letter(0),
    "delete_item": lambda queue: queue.delete_item(0),
    "find": lambda queue: queue.find("key"),
    "peek_many": lambda queue: queue.peek_many(0),
    "pop_many": lambda queue: queue.pop_many(0),
    "push_many": lambda queue: queue.push_many([]),
    "copy": lambda queue: queue.copy("twin"),
    "count": lambda queue: queue.count(),
    "dead": lambda queue: len(queue.dead),
    "delete": lambda queue: queue.delete(),
    "drop_queue": lambda queue: queue.drop_queue("queue"),
    "empty": lambda queue: queue.empty(),
    "flush": lambda queue: queue.flush(),
    "full": lambda queue: queue.full(),
    "lease": lambda queue: queue.lease(),
    "stats": lambda queue: queue.stats(),
    "work": lambda queue: queue.work(print),
    "get": lambda queue: queue.get(),
    "get_nowait": lambda queue: queue.get_nowait(),
    "join": lambda queue: queue.join(),
    "move": lambda queue: queue.move(to=queue),
    "peek": lambda queue: queue.peek(),
    "pop": lambda queue: queue.pop(),
    "push": lambda queue: queue.push("c"),
    "put": lambda queue: queue.put("c"),
    "put_nowait": lambda queue: queue.put_nowait("c"),
    "qsize": lambda queue: queue.qsize(),
    "queues": lambda queue: queue.queues(),
    "reader": lambda queue: queue.reader("billing"),
    "readers": lambda queue: queue.readers(),
    "drop_reader": lambda queue: queue.drop_reader("billing"),
    "retain": lambda queue: queue.retain(1),
    "shutdown": lambda queue: queue.shutdown(),
    "state": lambda queue: queue.state,
    "task_done": lambda queue: queue.task_done(),
    "transaction": lambda queue: queue.transaction().__enter__(),
}
STILL_ALLOWED = {"close", "loads", "max_attempts", "max_bytes", "maxsize", "name"}


def test_every_public_verb_is_tried_on_a_closed_queue():
    public = {name for name in dir(PersistentQueue) if not name.startswith("_")}
    assert public - STILL_ALLOWED == {name for name in VERBS if not name.startswith("_")}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_closed_queue_says_so_at_every_verb(open_queue, tmp_path, verb):
    queue = _closed(open_queue)
    with pytest.raises(ClosedError) as caught:
        VERBS[verb](queue)
    assert caught.value.path == os.fspath(tmp_path / "queue")
    assert os.listdir(tmp_path) == ["queue"]


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("push", ([],)),
        ("peek", (0,)),
        ("pop", (0,)),
        ("delete", (0,)),
        ("peek", (1, True)),
        ("pop", (5, True, 1)),
        ("flush", (True,)),
        ("put", ("c", False)),
    ],
)
def test_a_closed_queue_says_so_whatever_the_arguments(open_queue, verb, arguments):
    queue = _closed(open_queue)
    with pytest.raises(ClosedError):
        getattr(queue, verb)(*arguments)


def test_closing_twice_is_harmless(open_queue):
    queue, other = open_queue(), open_queue()
    queue.close()
    queue.close()
    other.push("a")  # the handle was given back once
    assert other.pop() == "a"


def test_leaving_the_context_closes(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
    with pytest.raises(ClosedError):
        queue.count()


def test_leaving_the_context_by_an_error_closes_and_lets_it_pass(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    with pytest.raises(ZeroDivisionError), queue:
        raise ZeroDivisionError
    with pytest.raises(ClosedError):
        queue.count()


def test_items_outlive_the_object(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    queue.close()
    assert open_queue().pop(2) == ["a", "b"]


def test_closing_one_object_leaves_others_on_the_same_queue_open(open_queue):
    one, two = open_queue(), open_queue()
    one.close()
    two.push("a")
    with pytest.raises(ClosedError):
        one.pop()
    assert two.pop() == "a"


@pytest.mark.parametrize("company", [False, True])
@pytest.mark.parametrize("verb", ["pop", "peek", "get", "join"])
def test_closing_ends_waiting_verbs_of_the_object_and_no_others(open_queue, verb, company):
    queue = open_queue()
    other = open_queue() if company else None
    if verb == "join":
        queue.push("a")
        queue.get()
    arguments = {"blocking": True} if verb in {"pop", "peek"} else {}
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(getattr(queue, verb), **arguments)
        _until(lambda: _sleeps(queue))
        of_other = pool.submit(other.pop, blocking=True) if other else None
        queue.close()
        assert isinstance(waiting.exception(PATIENCE), ClosedError)
        if other:
            other.push("b")
            assert of_other.result(PATIENCE) == "b"


def test_closing_ends_a_put_that_waits_for_room(open_queue):
    queue = open_queue(maxsize=1)
    queue.push("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.put, "b")
        _until(lambda: _sleeps(queue))
        queue.close()
        assert isinstance(waiting.exception(PATIENCE), ClosedError)
    assert open_queue().count() == 1


def test_a_queue_that_is_garbage_gives_its_handle_back(tmp_path):
    queue = PersistentQueue("queue", tmp_path)
    queue.push("a")
    environment = queue._engine.environment
    identity = environment.directory.identity
    cycle = [queue]
    cycle.append(cycle)
    assert environment.handles == 1
    assert _env._environments[identity] is environment
    del queue, cycle
    gc.collect()
    eventually(lambda: identity not in _env._environments)  # by another thread: the collector closes nothing
    assert environment.handles == 0
    assert identity not in _env._environments
    if sys.platform == "linux":
        assert not [link for link in _open_files() if link.startswith(os.fspath(tmp_path))]


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
