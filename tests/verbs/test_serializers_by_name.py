"""Serializers by name, on every engine: what is stored, and that another name is refused."""

import pickle
import sys

import pytest

from lmdbqueue import OptionError


@pytest.mark.parametrize(
    ("name", "item", "payload"),
    [
        ("json", {"a": [1, "é"]}, '{"a":[1,"é"]}'.encode()),
        ("bytes", b"raw", b"raw"),
        ("msgpack", {"a": 1}, b"\x81\xa1a\x01"),
        ("msgspec", {"a": 1}, b"\x81\xa1a\x01"),
        ("pickle", {"a": 1}, None),
    ],
)
def test_a_serializer_is_chosen_by_its_name_which_is_kept(engine, name, item, payload):
    queue = engine(serializer=name)
    queue.push(item)
    queue.flush(force=True)
    assert queue.serializer == name
    if payload is not None:
        assert engine(dumps=bytes, loads=bytes).peek() == payload
    with pickle.loads(pickle.dumps(queue)) as again:
        assert (again.serializer, again.peek()) == (name, item)
    with queue.copy("twin") as twin:
        assert (twin.serializer, twin.peek()) == (name, item)
    other = "json" if name != "json" else "pickle"
    with pytest.raises(OptionError, match=f"^queue '{queue.name}' in .* serializer='{name}'") as caught:
        engine(serializer=other)
    assert (caught.value.name, caught.value.stored, caught.value.given) == (queue.name, name, other)
    if name != "pickle":
        with pytest.raises(OptionError):
            engine()
    assert queue.pop() == item


def test_a_pair_of_ones_own_is_never_refused_and_says_nothing_of_names(engine):
    engine(dumps=str.encode, loads=bytes.decode).push("a")
    assert engine(serializer="bytes").pop() == b"a"
    with pytest.raises(ValueError, match="not both"):
        engine(serializer="json", dumps=str.encode)
    with pytest.raises(ValueError, match="'serializer' must be 'pickle', 'json'"):
        engine(serializer="yaml")


@pytest.mark.parametrize("item", [5, (1, 2), "text", None])
def test_nothing_but_bytes_is_an_item_of_a_queue_of_bytes(engine, item):
    queue = engine(serializer="bytes")
    with pytest.raises(TypeError, match="an item must be bytes"):
        queue.put(item)
    with pytest.raises(TypeError, match="an item must be bytes"):
        queue.push_many([b"a", item])
    queue.push_many([b"a", bytearray(b"b"), memoryview(b"c")])
    assert queue.pop_many(9) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("name", "module"), [("msgpack", "msgpack"), ("msgspec", "msgspec.msgpack")])
def test_a_serializer_whose_package_is_missing_says_what_to_install(engine, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {name} "):
        engine(serializer=name)
