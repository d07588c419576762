"""Damaged sources: whatever stands there, an import gives whole items in their order and tells of what is missing.

And sources that are whole: it gives what the library's own reader gives.
"""

import importlib
import os
import pickle
import shutil
import tempfile
from contextlib import contextmanager

import persistent_queue
import persistqueue
import pytest
import queuelib
from hypothesis import given
from hypothesis import strategies as st
from old_queues import BUILDERS

from lmdbqueue import SourceError
from lmdbqueue.legacy._import import _readable, _recognized
from lmdbqueue.legacy._info import read_info
from lmdbqueue.legacy._source import Aside, Expected, Payload, Value, is_pickle


def found_in(path, *, are_pickles=True):
    """Return the items, what is set aside, what is noted; None if it is refused, as only our error does."""
    try:
        source = _recognized(path, None)
        everything = list(_readable(source))
    except SourceError:
        return None
    assert isinstance(everything[0], Expected)
    items = [each for each in everything if _is_item(each, are_pickles)]
    aside = [each for each in everything if isinstance(each, (Aside, Payload)) and not _is_item(each, are_pickles)]
    return [each[0] for each in items], aside, source.notes


def _is_item(found, are_pickles):
    return isinstance(found, Value) or (isinstance(found, Payload) and (not are_pickles or is_pickle(found.data)))


@pytest.fixture(scope="module")
def sources():
    """Write each queue once."""
    with tempfile.TemporaryDirectory() as place:
        for name, build in BUILDERS.items():
            build(os.path.join(place, name))
        yield place


@contextmanager
def copy_of(path):
    with tempfile.TemporaryDirectory() as place:
        copy = os.path.join(place, "copy")
        (shutil.copytree if os.path.isdir(path) else shutil.copy)(path, copy)
        yield copy


def files(path):
    return sorted(os.path.join(path, name) for name in os.listdir(path)) if os.path.isdir(path) else [path]


@pytest.mark.parametrize("name", BUILDERS)
@given(data=st.data())
def test_a_source_that_was_cut_gives_whole_items_in_their_order_or_is_refused(sources, name, data):
    whole, _, _ = found_in(os.path.join(sources, name))
    with copy_of(os.path.join(sources, name)) as path:
        file = data.draw(st.sampled_from(files(path)))
        os.truncate(file, data.draw(st.integers(0, os.path.getsize(file) - 1)))
        found = found_in(path)
    if found is not None:
        items, aside, notes = found
        rest = iter(whole)
        if not os.path.basename(file).startswith("info"):
            assert all(item in rest for item in items), "an item that was not there, or out of order"
        assert len(items) >= len(whole) or aside or notes, "items are missing, and nothing tells"


@pytest.mark.parametrize("name", BUILDERS)
@given(data=st.data())
def test_a_source_with_garbage_in_it_gives_items_or_is_refused_and_nothing_else(sources, name, data):
    with copy_of(os.path.join(sources, name)) as path:
        file = data.draw(st.sampled_from(files(path)))
        for _ in range(data.draw(st.integers(1, 3))):
            garbage = data.draw(st.binary(min_size=1, max_size=64))
            place = data.draw(st.integers(0, os.path.getsize(file)))
            with open(file, "r+b") as opened:
                opened.seek(place)
                opened.write(garbage)
        found_in(path)


@pytest.mark.parametrize("head", [b"", b"SQLite format 3\0", (3).to_bytes(4, "little") + (8).to_bytes(4, "little")])
@given(garbage=st.binary(max_size=3_000))
def test_a_file_of_garbage_is_refused_or_gives_what_is_whole(head, garbage):
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "garbage")
        with open(path, "wb") as file:
            file.write(head + garbage)
        found_in(path)


@given(garbage=st.binary(max_size=80), has_length=st.booleans())
def test_an_info_file_of_garbage_says_nothing(garbage, has_length):
    found = read_info(len(garbage).to_bytes(4, "little") + garbage if has_length else garbage)
    assert found is None or min(found.size, *found.tail, *found.head) >= 0


@given(garbage=st.dictionaries(st.sampled_from(["info", "info.json", "q00000", "q00001"]), st.binary(max_size=300)))
def test_a_directory_of_garbage_is_refused_or_gives_what_is_whole(garbage):
    with tempfile.TemporaryDirectory() as place:
        for name, content in garbage.items():
            with open(os.path.join(place, name), "wb") as file:
                file.write(content)
        found_in(place)


numbers = st.lists(st.integers(0, 4) | st.none() | st.text(max_size=40), max_size=12)
calls = st.lists(st.tuples(st.just("push"), numbers) | st.tuples(st.just("take"), st.integers(0, 6)), max_size=25)


@given(calls)
def test_a_file_of_python_persistent_queue_gives_what_its_own_reader_gives(calls):
    with tempfile.TemporaryDirectory() as place:
        queue = persistent_queue.PersistentQueue("old", place, flush_limit=100)
        for call, argument in calls:
            if call == "push":
                queue.push(argument)
            else:
                queue.delete(argument)
                queue.flush()
        found = found_in(os.path.join(place, "old"))
        theirs = queue.peek(len(queue) + 2)
        queue.file.close()
    assert ([pickle.loads(item) for item in found[0]], found[1:]) == (theirs, ([], []))


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack", "cbor2"])
@given(calls=calls)
def test_a_queue_of_persist_queue_gives_what_its_own_reader_gives(name, calls):
    serializer = importlib.import_module(f"persistqueue.serializers.{name}")
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "old")
        queue = persistqueue.Queue(path, chunksize=3, autosave=True, serializer=serializer)
        for call, argument in calls:
            for each in argument if call == "push" else range(min(argument, queue.qsize())):
                queue.put(each) if call == "push" else queue.get()
        found = found_in(path, are_pickles=name == "pickle")
        theirs = [queue.get() for _ in range(queue.qsize())]
        queue.headf.close()
        queue.tailf.close()
        has_info = os.path.exists(os.path.join(path, "info"))
    if has_info:
        assert found == ([serializer.dumps(item) for item in theirs], [], [])
    else:
        assert found[:2] == (theirs, []) == ([], [])


@given(calls)
def test_a_directory_of_queuelib_gives_what_its_own_reader_gives(calls):
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "old")
        queue = queuelib.FifoDiskQueue(path, chunksize=3)
        for call, argument in calls:
            for each in argument if call == "push" else range(argument):
                queue.push(str(each).encode()) if call == "push" else queue.pop()
        left = len(queue)
        queue.close()
        found = found_in(path)
        theirs = []
        if left:
            queue = queuelib.FifoDiskQueue(path)
            theirs = [queue.pop() for _ in range(left)]
            queue.close()
    assert found == ((theirs, [], []) if left else None)
