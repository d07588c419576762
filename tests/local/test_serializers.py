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


@pytest.mark.parametrize("pair", PAIRS)
def test_items_come_back_equal(open_queue, pair):
    dumps, loads = PAIRS[pair]
    options = {"dumps": dumps, "loads": loads}
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


def test_a_dumps_that_returns_no_bytes_is_refused_and_nothing_is_stored(open_queue):
    queue = open_queue(dumps=lambda item: item)
    for result in ("text", "", None, 5, [1], {}):
        for add in (queue.put, lambda item: queue.push([item]), lambda item: queue.push([b"good", b"good", item])):
            with pytest.raises(TypeError, match=f"bytes, not {type(result).__name__}"):
                add(result)
    assert queue.count() == 0
    queue.loads = bytes
    assert queue.push(b"next") == 0


def _loads(payload):
    if payload == b"bad":
        message = "not today"
        raise LookupError(message)
    return payload.decode()


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
