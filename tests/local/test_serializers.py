"""``dumps`` and ``loads``: pairs that people use, and pairs that do not fit."""

import array
import functools
import json
import marshal
import pickle

import bson
import dill
import msgpack
import pytest

from lmdbqueue import DecodeError

RECORD = {"text": "naïve \u2603", "number": -7, "float": 0.5, "none": None, "list": [1, [2, {}]], "empty": ""}
PAIRS = {
    "pickle": (pickle.dumps, pickle.loads),
    "pickle protocol 0": (functools.partial(pickle.dumps, protocol=0), pickle.loads),
    "dill": (dill.dumps, dill.loads),
    "msgpack": (msgpack.packb, msgpack.unpackb),
    "bson": (bson.encode, bson.decode),
    "json": (lambda item: json.dumps(item).encode(), json.loads),
    "marshal": (marshal.dumps, marshal.loads),
    "text": (lambda item: repr(item).encode(), lambda payload: eval(payload, {})),  # noqa: S307
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_items_come_back_equal(open_queue, pair, checksum):
    dumps, loads = PAIRS[pair]
    options = {"dumps": dumps, "loads": loads, "checksum": checksum}
    queue = open_queue(**options)
    items = [{**RECORD, "number": n} for n in range(5)]
    queue.push(items)
    assert queue.peek() == items[0]
    assert list(queue) == items
    queue.close()
    queue = open_queue(**options)
    assert [queue.pop(), *queue.pop(2), queue.get(), queue.pop(1, blocking=True)] == items


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "pickle" not in pair])
def test_loads_gets_exactly_the_bytes_that_dumps_gave(open_queue, pair, checksum):
    given, got = [], []

    def dumps(item):
        given.append(PAIRS[pair][0](item))
        return given[-1]

    def loads(payload):
        got.append(payload)
        return PAIRS[pair][1](payload)

    queue = open_queue(dumps=dumps, loads=loads, checksum=checksum)
    queue.push([RECORD, {}, RECORD])
    for take in (lambda: queue.peek(3), lambda: list(queue), lambda: queue.pop(3)):
        got.clear()
        take()
        assert got == given
        assert {type(payload) for payload in got} == {bytes}
    given.clear()
    got.clear()
    queue.put(RECORD)
    queue.get()
    assert got == given


def test_a_function_of_ones_own_around_pickle_gets_exactly_the_bytes_too(open_queue):
    got = []

    def loads(payload):
        got.append(payload)
        return pickle.loads(payload)

    queue = open_queue(loads=loads)
    queue.push("item")
    assert queue.pop() == "item"
    assert got == [pickle.dumps("item")]


def test_dill_brings_functions_back(open_queue):
    queue = open_queue(dumps=dill.dumps, loads=dill.loads)
    step = 3
    queue.push([lambda x: x + step, lambda x: x * step])
    assert [function(2) for function in queue.pop(2)] == [5, 6]


@pytest.mark.parametrize("kind", [bytearray, memoryview, type("Subclass", (bytes,), {}), lambda b: array.array("B", b)])
@pytest.mark.parametrize("checksum", [True, False])
def test_what_is_like_bytes_is_taken_for_bytes(open_queue, kind, checksum):
    queue = open_queue(dumps=kind, loads=bytes, checksum=checksum)
    queue.push([b"abc", b""])
    queue.put(b"d" * 5000)
    assert queue.pop(3) == [b"abc", b"", b"d" * 5000]


def test_a_buffer_that_its_owner_changes_after_the_push_is_not_changed_on_disk(open_queue):
    buffer = bytearray(b"abc")
    queue = open_queue(dumps=lambda _: buffer, loads=bytes)
    queue.push("item")
    buffer[:] = b"xyz"
    assert queue.pop() == b"abc"


@pytest.mark.parametrize("result", ["text", "", None, 5, [1], {}], ids=repr)
def test_a_dumps_that_returns_no_bytes_is_refused_and_nothing_is_stored(open_queue, result):
    queue = open_queue(dumps=lambda item: item)
    for add in (
        lambda: queue.push(result) if not isinstance(result, list) else queue.push([result]),
        lambda: queue.push([b"good", b"good", result]),
        lambda: queue.put(result),
    ):
        with pytest.raises(TypeError, match=f"bytes, not {type(result).__name__}"):
            add()
    assert queue.count() == 0
    queue.loads = bytes
    assert queue.push(b"next") == 0


def test_an_error_of_dumps_passes_and_nothing_is_stored(open_queue):
    class Reason(Exception):
        pass

    def dumps(item):
        if item == "bad":
            raise Reason
        return pickle.dumps(item)

    queue = open_queue(dumps=dumps)
    for add in (lambda: queue.push("bad"), lambda: queue.push(["good", "bad"]), lambda: queue.put("bad")):
        with pytest.raises(Reason):
            add()
    assert queue.count() == 0


def _loads(payload):
    if payload == b"bad":
        message = "not today"
        raise LookupError(message)
    return payload.decode()


TAKES = {
    "peek": lambda queue: queue.peek(),
    "peek several": lambda queue: queue.peek(3),
    "peek blocking": lambda queue: queue.peek(3, blocking=True, timeout=5),
    "pop": lambda queue: queue.pop(),
    "pop several": lambda queue: queue.pop(3),
    "pop more than there are": lambda queue: queue.pop(30),
    "pop blocking": lambda queue: queue.pop(1, blocking=True, timeout=5),
    "get": lambda queue: queue.get(timeout=5),
    "get_nowait": lambda queue: queue.get_nowait(),
    "browse": list,
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("take", TAKES)
def test_an_item_that_cannot_be_decoded_is_named_and_stays_where_it_is(open_queue, take, checksum):
    queue = open_queue(dumps=str.encode, loads=_loads, checksum=checksum)
    queue.push(["gone", "bad", "b", "c"])
    queue.pop()
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            TAKES[take](queue)
        error = caught.value
        assert (error.seq, error.payload, error.reason) == (1, b"bad", "LookupError: not today")
        assert isinstance(error.__cause__, LookupError)
        assert queue.count() == 3
    assert queue.delete() == 1
    assert queue.pop(2) == ["b", "c"]


@pytest.mark.parametrize("take", ["peek", "pop"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_of_several_those_before_the_one_that_cannot_be_decoded_come_and_it_is_named_then(open_queue, take, position):
    items = ["a", "b", "c"]
    items[position] = "bad"
    queue = open_queue(dumps=str.encode, loads=_loads)
    queue.push(items)
    if position:
        assert getattr(queue, take)(3) == items[:position]
    queue.delete(queue.count() - 3 + position)
    with pytest.raises(DecodeError) as caught:
        getattr(queue, take)(3)
    assert (caught.value.seq, caught.value.payload) == (position, b"bad")
    assert queue.count() == 3 - position


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize(
    "payload", [b"", b"no pickle", pickle.dumps("cut off")[:-1]], ids=["empty", "other", "cut off"]
)
def test_the_bytes_that_pickle_refused_are_those_that_dumps_gave(open_queue, payload, checksum):
    queue = open_queue(dumps=bytes, checksum=checksum)
    queue.push(payload)
    with pytest.raises(DecodeError) as caught:
        queue.pop()
    assert caught.value.payload == payload
    assert queue.delete() == 1


def test_another_loads_can_read_what_the_first_could_not(open_queue):
    queue = open_queue(dumps=str.encode, loads=_loads)
    queue.push("bad")
    with pytest.raises(DecodeError):
        queue.pop()
    assert open_queue(loads=bytes.decode).pop() == "bad"
