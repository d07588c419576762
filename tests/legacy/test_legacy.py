"""Imports from other libraries: what comes over, what is set aside, what is refused; and nothing is run or changed."""

import base64
import dataclasses
import importlib
import json
import os
import pickle
import pickletools
import resource
import stat
import struct
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import msgpack
import persistent_queue
import persistqueue
import persistqueue.serializers.msgpack
import pytest
from old_queues import (
    BUILDERS,
    BYTES,
    ITEMS,
    TEXTS,
    write_chunks,
    write_file,
    write_litequeue,
    write_queuelib,
    write_table,
)
from processes import forked, status_of, tree
from queuelib import FifoDiskQueue

from lmdbqueue import DiskFullError, FormatError, PersistentQueue, SourceError, TransactionError
from lmdbqueue.legacy import detect, import_file


@pytest.fixture
def old(tmp_path):
    """Give a path in a directory of its own, for an old queue."""
    (tmp_path / "of others").mkdir()
    return str(tmp_path / "of others" / "queue")


@pytest.fixture
def new(tmp_path):
    return str(tmp_path / "new")


def items(path, **options):
    with PersistentQueue(path, **options) as queue:
        assert queue.check() == []
        return list(queue)


def lines(imported):
    with open(imported.quarantine, encoding="ascii") as file:
        return [json.loads(line) for line in file]


def json_dumps(item):
    return json.dumps(item).encode()


JSON = {"dumps": json_dumps, "loads": json.loads}
TEXT = {"dumps": str.encode, "loads": bytes.decode}


def file_of(path, payloads, *, tail=b"", order="="):
    """Write a file of python-persistent-queue by hand."""
    with open(path, "wb") as file:
        file.write(struct.pack(order + "II", len(payloads), 8))
        file.writelines(struct.pack(order + "I", len(payload)) + payload for payload in payloads)
        file.write(tail)


# --- what comes over


@pytest.mark.parametrize("name", BUILDERS)
def test_what_waits_in_an_old_queue_waits_in_the_new_one_and_the_old_one_is_as_it_was(old, new, name):
    expected = BUILDERS[name](old)
    before = tree(os.path.dirname(old))
    imported = import_file(old, new)
    assert items(new) == expected.items
    assert (imported.format, imported.items, imported.finished) == (detect(old), len(expected.items), expected.finished)
    assert imported.set_aside == len(expected.set_aside)
    if expected.set_aside:
        assert [base64.b64decode(line["value"]) for line in lines(imported)] == expected.set_aside
    else:
        assert imported.quarantine == ""
    assert tree(os.path.dirname(old)) == before


@pytest.mark.parametrize("name", BUILDERS)
def test_a_second_import_of_the_same_brings_nothing_and_tells_what_the_first_did(old, new, name):
    BUILDERS[name](old)
    first = import_file(old, new)
    before = items(new)
    again = dataclasses.replace(first, is_repeated=True)
    assert import_file(old, new) == again
    assert import_file(os.path.relpath(old), os.path.relpath(new)) == again
    assert items(new) == before


def test_items_come_behind_those_that_are_there_and_other_queues_stay_as_they_are(old, new):
    write_table(old)
    with PersistentQueue(new) as queue, PersistentQueue(new, name="other") as other:
        queue.push(["a", "b"])
        other.push("c")
        assert import_file(old, new, name="other").items == 5
        assert list(queue) == ["a", "b"]
        assert list(other) == ["c", *ITEMS[1:]]


@pytest.mark.parametrize("options", [{"checksum": False}, {"durability": "off"}])
def test_options_of_a_queue_that_is_there_are_kept(old, new, options):
    write_table(old)
    PersistentQueue(new, **options).close()
    import_file(old, new)
    assert items(new, **options) == ITEMS[1:]


def test_one_source_may_go_to_several_queues(old, new):
    expected = write_file(old)
    quarantines = {import_file(old, new, name=name).quarantine for name in ("one", "two")}
    assert len(quarantines) == 2
    assert items(new, name="one") == items(new, name="two") == expected.items


def test_progress_tells_of_records_and_ends_with_all(old, new):
    file_of(old, [pickle.dumps(number) for number in range(25_000)])
    told = []
    import_file(old, new, progress=lambda done, total: told.append((done, total)))
    assert told == [(10_000, 25_000), (20_000, 25_000), (25_000, 25_000)]
    assert items(new) == list(range(25_000))


def test_others_see_nothing_of_an_import_before_its_end(old, new):
    file_of(old, [pickle.dumps(number) for number in range(10_001)])
    with PersistentQueue(new) as queue:
        queue.push("before")
    program = f"""
import sys
from lmdbqueue import PersistentQueue
queue = PersistentQueue({new!r})
print(flush=True)
for line in sys.stdin:
    print(len(queue), queue.peek(), flush=True)
"""
    reader = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with reader:
        reader.stdout.readline()  # it has opened the queue

        def seen():
            reader.stdin.write("look\n")
            reader.stdin.flush()
            return reader.stdout.readline()

        meanwhile = []
        import_file(old, new, progress=lambda done, _total: meanwhile.append((done, seen())))
        assert meanwhile == [(10_000, "1 before\n"), (10_001, "1 before\n")]
        assert seen() == "10002 before\n"
        reader.stdin.close()


# --- what is run, and what is looked at


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [write_file, write_chunks, write_table])
def test_an_import_runs_nothing_that_a_pickle_says(old, new, write, monkeypatch, tmp_path):
    trap = str(tmp_path / "trap")
    monkeypatch.setattr("old_queues.ITEMS", ["gone", Trap(trap)])
    write(old)
    assert import_file(old, new).items == 1
    assert not os.path.exists(trap)
    with PersistentQueue(new) as queue:
        queue.pop()
    assert os.path.exists(trap)


def test_what_stands_in_the_info_file_of_persist_queue_is_not_run_either(old, new, tmp_path):
    write_chunks(old)
    trap = str(tmp_path / "trap")
    with open(os.path.join(old, "info"), "wb") as file:
        pickle.dump(Trap(trap), file)
    with pytest.raises(SourceError, match="'info' was not written by one of persist-queue's own serializers"):
        import_file(old, new)
    assert not os.path.exists(trap)


def test_pickles_are_taken_over_byte_for_byte(old, new):
    payloads = [pickle.dumps(ITEMS, protocol=protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    payloads.append(pickletools.optimize(payloads[0]))
    file_of(old, payloads)
    import_file(old, new)
    assert items(new, dumps=bytes, loads=bytes) == payloads


def test_items_that_are_no_pickles_come_over_for_the_loads_that_reads_them(old, new, tmp_path):
    file_of(old, [b'{"a": 1}', b"[]", b"null"])
    import_file(old, new, **JSON)
    assert items(new, **JSON) == [{"a": 1}, [], None]
    packed = persistqueue.SQLiteQueue(str(tmp_path / "packed"), serializer=persistqueue.serializers.msgpack)
    packed.put([1, "two"])
    packed.close()
    msgpacked = {"dumps": msgpack.packb, "loads": msgpack.unpackb}
    import_file(tmp_path / "packed", new, name="packed", **msgpacked)
    assert items(new, name="packed", **msgpacked) == [[1, "two"]]


@pytest.mark.parametrize("name", ["json", "msgpack", "cbor2"])
@pytest.mark.parametrize("count", [8, 300])
def test_a_queue_of_persist_queue_with_another_serializer_comes_over(old, new, name, count):
    serializer = importlib.import_module(f"persistqueue.serializers.{name}")
    queue = persistqueue.Queue(old, chunksize=count // 2 - 1, serializer=serializer, autosave=True)
    for number in range(count):
        queue.put({"number": number, "text": "x" * number})
    queue.get()
    pair = {"dumps": serializer.dumps, "loads": serializer.loads}
    imported = import_file(old, new, **pair)
    assert (imported.items, imported.set_aside, imported.notes) == (count - 1, 0, ())
    assert items(new, **pair) == [{"number": number, "text": "x" * number} for number in range(1, count)]


def test_items_of_which_none_is_a_pickle_are_refused_with_the_way_out(old, new):
    file_of(old, [b'{"a": 1}', b"[]"])
    with pytest.raises(SourceError, match=r"none of its items is whole: item 0 at byte 8.*pass the dumps and loads"):
        import_file(old, new)
    assert items(new) == []
    assert sorted(os.listdir(os.path.dirname(new))) == ["new", "of others"]


def test_text_and_bytes_go_through_the_dumps_of_the_new_queue(old, new, tmp_path):
    write_litequeue(old)
    import_file(old, new, **TEXT)
    assert items(new, **TEXT) == [*TEXTS[1:4], "last"]
    write_queuelib(str(tmp_path / "bytes"))
    import_file(tmp_path / "bytes", new, name="bytes", dumps=bytes, loads=bytes)
    assert items(new, name="bytes", dumps=bytes, loads=bytes) == BYTES[1:]


@pytest.mark.parametrize("pair", [{}, JSON, TEXT, {"dumps": bytes, "loads": bytes}])
def test_the_state_can_be_read_by_who_uses_the_queue_and_the_import_is_known_again(old, new, pair):
    file_of(old, [pickle.dumps(1)])
    first = import_file(old, new, **pair)
    with PersistentQueue(new, **pair) as queue:
        assert len(dict(queue.state)) == 1
    assert not first.is_repeated
    assert import_file(old, new, **pair) == replace(first, is_repeated=True)


# --- a source that changes


def test_a_source_that_changed_after_its_import_is_refused_until_the_record_is_deleted(old, new):
    write_table(old)
    import_file(old, new)
    with closing(persistqueue.SQLiteQueue(old)) as queue:
        queue.put("later")
    with pytest.raises(SourceError, match=r"has changed since.*del queue.state\['(imported-\w+)'\]") as caught:
        import_file(old, new)
    assert items(new) == ITEMS[1:]
    with PersistentQueue(new) as queue:
        queue.clear()
        del queue.state[caught.value.advice.split("'")[1]]
    assert import_file(old, new).items == 6


@pytest.mark.parametrize("change", ["more", "another chunk", "gone"])
def test_a_source_that_changes_while_it_is_read_is_refused_and_nothing_comes_over(old, new, change):
    write_queuelib(old)

    def dumps(item):
        if item == b"last":
            if change == "more":
                with open(os.path.join(old, "q00001"), "ab") as file:
                    file.write(b"\0\0\0\1x")
            elif change == "another chunk":
                open(os.path.join(old, "q00002"), "wb").close()
            else:
                os.unlink(os.path.join(old, "q00000"))
        return bytes(item)

    with pytest.raises(SourceError, match="changed while it was read"):
        import_file(old, new, dumps=dumps, loads=bytes)
    assert items(new, dumps=bytes, loads=bytes) == []
    assert not [name for name in os.listdir(os.path.dirname(new)) if "quarantine" in name]


def test_a_source_that_goes_away_while_it_is_read_is_told_of(old, new):
    file_of(old, [pickle.dumps(number) for number in range(10_001)])
    with pytest.raises(SourceError, match="changed while it was read"):
        import_file(old, new, progress=lambda _done, _total: os.unlink(old))
    assert items(new) == []


def test_an_import_is_no_part_of_a_transaction(old, new):
    write_table(old)
    with PersistentQueue(new) as queue:
        with queue.transaction(), pytest.raises(TransactionError, match="an import inside a transaction"):
            import_file(old, new)
        assert list(queue) == []


def test_what_dumps_raises_undoes_the_import(old, new):
    write_queuelib(old)
    with pytest.raises(TypeError):
        import_file(old, new, dumps=lambda _item: "no bytes", loads=bytes)
    assert items(new) == []


def test_an_import_for_which_there_is_no_room_leaves_nothing_and_is_done_when_there_is(old, new):
    file_of(old, [pickle.dumps(bytes(100_000)), b"damaged"] * 100)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        with pytest.raises(DiskFullError):
            import_file(old, new)

    assert status_of(forked(limited)) == 0
    assert items(new) == []
    assert sorted(os.listdir(os.path.dirname(new))) == ["new", "of others"]
    assert import_file(old, new).items == 100
    assert len(items(new)) == 100


# --- what is set aside


def test_what_is_set_aside_can_be_read_by_its_owner_only_and_tells_where_it_stood(old, new):
    expected = write_file(old)
    imported = import_file(old, new)
    assert imported.quarantine.startswith(new + ".quarantine-")
    assert stat.S_IMODE(os.stat(imported.quarantine).st_mode) == 0o600
    found = lines(imported)
    assert [line["queue"] for line in found] == ["queue", "queue"]
    assert {line["source"] for line in found} == {os.path.realpath(old)}
    assert found[0]["place"].startswith("a record at byte ")
    assert "does not count" in found[0]["why"]
    assert "torn" in found[1]["why"]
    assert len(expected.set_aside) == 2


def test_a_damaged_item_between_whole_ones_is_set_aside(old, new):
    file_of(old, [pickle.dumps(1), b"garbage", pickle.dumps(3), pickle.dumps(4)[:-1], pickle.dumps(5) + b"."])
    imported = import_file(old, new)
    assert items(new) == [1, 3]
    assert [(line["place"], line["why"]) for line in lines(imported)] == [
        ("item 1 at byte 17", "it is not a whole pickle"),
        ("item 3 at byte 37", "it is not a whole pickle"),
        ("item 4 at byte 45", "it is not a whole pickle"),
    ]


# --- python-persistent-queue


def test_a_file_cut_within_an_item_gives_the_items_before_it_and_sets_the_rest_aside(old, new):
    payloads = [pickle.dumps(f"item {number}") for number in range(5)]
    file_of(old, payloads)
    os.truncate(old, os.path.getsize(old) - len(payloads[4]) - 7)
    imported = import_file(old, new)
    assert items(new) == ["item 0", "item 1", "item 2"]
    (line,) = lines(imported)
    assert line["why"] == "item 3 is torn, and 2 more should follow"
    assert base64.b64decode(line["value"]) == struct.pack("I", len(payloads[3])) + payloads[3][:-3]


def test_items_that_its_header_counts_and_that_are_not_there_are_told_of(old, new):
    queue = persistent_queue.PersistentQueue(os.path.basename(old), os.path.dirname(old))
    queue.push([None, "a", "b"])
    queue.pop()  # of None: it moves on and still counts three
    queue.file.close()
    imported = import_file(old, new)
    assert items(new) == ["a", "b"]
    assert imported.notes == (
        "its header counts 3 items and 2 are there: a pop was interrupted, or was of None, or the file was cut",
    )


def test_items_that_the_pop_of_a_list_made_it_forget_are_set_aside_and_can_be_pushed(old, new):
    queue = persistent_queue.PersistentQueue(os.path.basename(old), os.path.dirname(old))
    queue.push([[1, 2, 3], "a", "b", "c"])
    queue.pop()  # of a list of three: it counts one item now
    queue.file.close()
    assert len(queue) == 1
    imported = import_file(old, new)
    assert items(new) == ["a"]
    assert [pickle.loads(base64.b64decode(line["value"])) for line in lines(imported)] == ["b", "c"]


@pytest.mark.parametrize("order", "<>")
def test_a_file_of_a_machine_with_another_byte_order_is_read(old, new, order):
    file_of(old, [pickle.dumps(number) for number in range(300)], order=order)
    import_file(old, new)
    assert items(new) == list(range(300))


def test_a_file_that_an_interrupted_flush_left_under_another_name_is_named(old, new):
    left = f"{old}-{'0f' * 16}"
    file_of(left, [pickle.dumps(1)])
    with pytest.raises(SourceError, match=f"an interrupted flush left its items in {left!r}"):
        import_file(old, new)
    assert not os.path.exists(new)
    assert import_file(left, new).items == 1


def test_bytes_behind_the_items_that_are_no_record_are_set_aside_in_one_piece(old, new):
    file_of(old, [pickle.dumps(1)], tail=bytes(4096))
    imported = import_file(old, new)
    assert items(new) == [1]
    assert [base64.b64decode(line["value"]) for line in lines(imported)] == [bytes(4096)]


# --- directories of chunks


def test_what_was_got_and_not_marked_as_done_is_imported_as_persist_queue_would_give_it_again(old, new):
    queue = persistqueue.Queue(old, chunksize=2)
    for item in ITEMS:
        queue.put(item)
    queue.get()
    queue.get()
    queue.task_done()
    queue.get()
    assert import_file(old, new).items == 4
    assert items(new) == ITEMS[2:]


def test_a_chunk_of_persist_queue_that_was_cut_costs_its_own_items_only(old, new):
    queue = persistqueue.Queue(old, chunksize=3)
    for number in range(9):
        queue.put(number)
    os.truncate(os.path.join(old, "q00001"), 7)
    imported = import_file(old, new)
    assert items(new) == [0, 1, 2, 3, 6, 7, 8]
    assert imported.set_aside == 1
    assert imported.notes == ("its file 'info' counts 9 items, and 7 were found",)


def test_a_chunk_of_persist_queue_that_is_missing_is_told_of(old, new):
    queue = persistqueue.Queue(old, chunksize=3)
    for number in range(9):
        queue.put(number)
    os.unlink(os.path.join(old, "q00001"))
    imported = import_file(old, new)
    assert items(new) == [0, 1, 2, 6, 7, 8]
    assert imported.notes == (
        "its chunk q00001 is not there",
        "its file 'info' counts 9 items, and 6 were found",
    )


def test_a_queue_of_queuelib_that_was_never_closed_comes_over_with_all_that_was_pushed(old, new):
    queue = FifoDiskQueue(old, chunksize=2)
    for item in BYTES:
        queue.push(item)
    queue.pop()
    imported = import_file(old, new)
    queue.close()
    assert items(new) == BYTES
    assert "it was not closed" in imported.notes[0]


def test_a_queue_of_queuelib_that_was_not_closed_again_comes_over_from_where_it_was_opened(old, new):
    queue = FifoDiskQueue(old, chunksize=2)
    for item in BYTES[:4]:
        queue.push(item)
    queue.pop()
    queue.close()
    queue = FifoDiskQueue(old)
    queue.push(BYTES[4])
    queue.pop()  # ends the chunk, which it removes
    imported = import_file(old, new)
    queue.close()
    assert items(new) == BYTES[2:5]
    assert "it was not closed" in imported.notes[-1]


# --- what is refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"", "not the file of a known queue"),
        (b"\0" * 7, "not the file of a known queue"),
        (b"dear diary, today I wrote a file", "not the file of a known queue"),
        (b"SQLite format 3\0" + b"\1" * 4096, "SQLite cannot read it"),
    ],
)
def test_what_is_no_old_queue_is_refused_and_nothing_is_made(old, new, content, words):
    if content is not None:
        with open(old, "wb") as file:
            file.write(content)
    for call in (detect, lambda path: import_file(path, new)):
        with pytest.raises(SourceError, match=words) as caught:
            call(old)
        assert old in str(caught.value)
    assert not os.path.exists(new)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(old, new):
    os.mkfifo(old)
    with pytest.raises(SourceError, match="not a regular file"):
        import_file(old, new)


def test_a_directory_without_a_queue_is_refused(old, new):
    os.mkdir(old)
    with pytest.raises(SourceError, match="not of a known queue"):
        import_file(old, new)
    PersistentQueue(old).close()
    with pytest.raises(SourceError, match=r"is a queue of lmdbqueue.*: open it as it is"):
        import_file(old, new)


def test_a_queue_is_not_made_where_something_else_stands(old):
    write_table(old)
    before = tree(os.path.dirname(old))
    with pytest.raises(FormatError):
        import_file(old, old)
    with pytest.raises(FormatError):
        import_file(old, os.path.join(old, "data.db"))
    assert tree(os.path.dirname(old)) == before
