"""``check(repair=True)`` saves every item that can be read, says what is lost, and leaves a whole queue."""

import base64
import errno
import json
import os
import random

import pytest
from processes import forked, generations, status_of, tree

import lmdbqueue
from lmdbqueue import CorruptItemError, CorruptQueueError, FormatError, PersistentQueue
from lmdbqueue._base import format as _format
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.raw_pages import Pages, root_of
from lmdbqueue._local.queue import local_engine_of
from lmdbqueue._local.salvage import Quarantine
from lmdbqueue.cli import main

ITEMS = [f"item {number} ".encode() * (number % 7 + 1) for number in range(300)]


@pytest.fixture
def place(tmp_path):
    """A directory with a queue of ``ITEMS`` behind ten that have left, and another of one."""
    with PersistentQueue("queue", str(tmp_path), dumps=bytes, loads=bytes) as queue:
        queue.push([b"gone"] * 10)
        queue.push(ITEMS)
        queue.delete(10)
        with PersistentQueue("queue", str(tmp_path), dumps=bytes, loads=bytes, name="other") as other:
            other.push(b"alone")
    return tmp_path


def _open(place, **options):
    return PersistentQueue("queue", str(place), dumps=bytes, loads=bytes, **options)


def _file(place):
    return os.path.join(place, "queue", generations(place / "queue")[-1])


def _damage(place, *payloads):
    """Change a byte of each of these payloads where it stands in a page in use."""
    with open(_file(place), "r+b") as file:
        content = file.read()
        for payload in payloads:
            at = content.find(payload)
            while at >= 0:
                file.seek(at + 1)
                file.write(b"\xff")
                at = content.find(payload, at + 1)


def _pages_of_items(place):
    """Return the numbers of the leaves of the items, in order."""
    newest, _ = meta_page.read(_file(place))
    with open(_file(place), "rb") as file:
        pages = Pages(file.fileno(), newest.page_size)
        root = root_of(dict(pages.nodes(newest.main.root))[b"queue/items"])
        file.seek(root * newest.page_size)
        page = file.read(newest.page_size)
        _, offsets = pages._header(root, page)
        return [pages._child(page, at) for at in offsets], newest.page_size


def test_a_repair_puts_damaged_items_aside_and_keeps_the_others(place):
    _damage(place, ITEMS[50], ITEMS[200])
    with _open(place) as queue, _open(place, name="other") as other:
        problems = queue.check()
        assert len(problems) == 2
        assert queue.check(repair=True)[:2] == problems
        assert queue.check() == []
        assert list(queue) == [item for item in ITEMS if item not in (ITEMS[50], ITEMS[200])]
        assert list(other) == [b"alone"]
        assert queue.push(b"next") == 310
        assert queue.delete(60) == 60
        assert queue.check() == []
    lines = [json.loads(line) for line in (place / "queue.quarantine").read_text().splitlines()]
    assert [(line["queue"], line["seq"]) for line in lines] == [("queue", 60), ("queue", 210)]
    assert (
        base64.b64decode(lines[0]["value"])[: -_format.TRAILER - _format.SEAL_SIZE]
        == ITEMS[50][:1] + b"\xff" + ITEMS[50][2:]
    )
    with _open(place) as queue:
        assert queue.check() == []


def test_a_repair_works_while_others_use_the_queue(place):
    _damage(place, ITEMS[50])
    go, tell = os.pipe()
    told, say = os.pipe()

    def work():
        with _open(place) as queue:
            queue.pop()
            os.write(say, b"1")
            os.read(go, 1)
            assert queue.pop(60) == [*ITEMS[1:50], *ITEMS[51:62]]
            queue.push(b"late")

    pid = forked(work)
    os.read(told, 1)
    with _open(place) as queue:
        assert queue.check(repair=True)
        os.write(tell, b"1")
        assert status_of(pid) == 0
        assert queue.peek(1) == ITEMS[62]
        assert queue.count() == len(ITEMS) - 62 + 1
        assert queue.check() == []


def test_a_damaged_page_costs_its_own_items_only(place):
    leaves, size = _pages_of_items(place)
    with open(_file(place), "r+b") as file:
        file.seek(leaves[1] * size)
        file.write(random.Random(0).randbytes(size))  # noqa: S311
    problems = lmdbqueue.check(os.path.join(place, "queue"), repair=True)
    assert any("could not be read and are lost" in problem for problem in problems)
    with _open(place) as queue:
        left = list(queue)
        assert queue.check() == []
        assert queue.push(b"next") == 310
        assert queue.clear() is None
        assert queue.check() == []
    assert len(ITEMS) - 150 < len(left) < len(ITEMS)
    assert left == [item for item in ITEMS if item in set(left)]


def test_a_queue_that_cannot_be_opened_can_be_repaired(place):
    newest, _ = meta_page.read(_file(place))
    with open(_file(place), "r+b") as file:
        file.seek(newest.offset)
        file.write(bytes(200))
    path = os.path.join(place, "queue")
    with pytest.raises(CorruptQueueError):
        _open(place)
    before = tree(path)
    assert lmdbqueue.check(path)
    assert tree(path) == before
    assert lmdbqueue.check(path, repair=True)
    assert lmdbqueue.check(path) == []
    with _open(place) as queue:
        assert [item for item in queue if item in ITEMS] == ITEMS


def test_an_item_behind_the_tail_is_put_aside(place):
    def put_the_tail_back(txn, tables):
        record = txn.get(tables.queue, db=tables.meta)
        numbers = _format.numbers(record)
        return txn.put(
            tables.queue, _format.with_numbers(record, numbers._replace(tail=numbers.tail - 5)), db=tables.meta
        )

    with _open(place) as queue:
        engine = local_engine_of(queue)
        engine.environment.update(engine.ref, put_the_tail_back)
    with _open(place) as queue:
        assert any("its tail is 305, but there are 5 items" in problem for problem in queue.check())
        queue.check(repair=True)
        assert queue.check() == []
        assert list(queue) == ITEMS[:295]
    lines = (place / "queue.quarantine").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [305, 306, 307, 308, 309]


def test_a_repair_of_a_whole_queue_changes_nothing_but_removes_leftovers(place):
    (place / "queue" / "00000002.mdb.tmp").write_bytes(b"leftover")
    (place / "queue" / "notes.txt").write_bytes(b"mine")
    before = generations(place / "queue")
    with _open(place) as queue:
        (place / "queue" / "00000002.mdb.tmp").write_bytes(b"leftover")
        assert len(queue.check(repair=True)) == 1
        assert queue.check() == ["the file 'notes.txt' does not belong there"]
        assert generations(place / "queue") == before
        assert list(queue) == ITEMS


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--repair"], 1)])
def test_the_command_tells_by_its_exit_code(place, arguments, code, capsys):
    _damage(place, ITEMS[3])
    path = os.path.join(place, "queue")
    with pytest.raises(SystemExit) as ended:
        main(["check", path, *arguments])
    assert ended.value.code == code
    assert "item 13 is damaged" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["check", path])
    assert ended.value.code == (0 if arguments else 1)


def test_the_command_makes_no_queue_where_none_is(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path)])
    assert ended.value.code == 4
    assert os.listdir(tmp_path) == []
    with pytest.raises(FormatError):
        lmdbqueue.check(str(tmp_path))


def test_a_check_makes_no_queue_of_its_own(place):
    lmdbqueue.check(os.path.join(place, "queue"))
    assert lmdbqueue.check(os.path.join(place, "queue")) == []
    with _open(place) as queue:
        assert queue.queues() == ["other", "queue"]


def test_after_a_repair_damage_raises_no_more(place):
    _damage(place, ITEMS[0])
    with _open(place) as queue:
        with pytest.raises(CorruptItemError):
            queue.pop()
        queue.check(repair=True)
        assert queue.pop() == ITEMS[1]


def test_a_queue_whose_record_is_lost_is_not_made_anew_and_all_its_items_are_saved(place):
    with _open(place) as queue:
        engine = local_engine_of(queue)
        engine.environment.update(engine.ref, lambda txn, tables: txn.delete(tables.queue, db=tables.meta))
    with pytest.raises(CorruptQueueError, match="items but no record"):
        _open(place)
    found = lmdbqueue.check(str(place / "queue"), repair=True)
    assert any("its record was lost" in each for each in found)
    with _open(place) as queue, _open(place, name="other") as other:
        assert list(queue) == ITEMS, "the salt of its seals was found again"
        assert queue.push(b"next") == len(ITEMS) + 10
        assert list(other) == [b"alone"]
        assert queue.check() == []


def test_each_line_of_a_quarantine_file_is_whole_whatever_the_disk_cuts_short(tmp_path, monkeypatch):
    write = os.write
    room = 150

    def cut_short(fd, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[: min(room, 50)])
        room -= written
        return written

    (tmp_path / "queue").mkdir()
    quarantine = Quarantine(str(tmp_path / "queue"))
    monkeypatch.setattr(os, "write", cut_short)
    quarantine.add("queue", b"a" * 30, seq=1)
    with pytest.raises(OSError, match="No space"):
        quarantine.add("queue", b"b" * 300, seq=2)
    room = 1000
    quarantine.add("queue", b"b" * 300, seq=2)
    first, _, again = (tmp_path / "queue.quarantine").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in (first, again)] == [1, 2]
    assert base64.b64decode(json.loads(again)["value"]) == b"b" * 300
