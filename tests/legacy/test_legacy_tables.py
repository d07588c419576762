"""Imports from SQLite databases: which table, which rows, and what a program that was killed left beside them."""

import os
import signal
import sqlite3
from contextlib import closing

import litequeue
import persistqueue
import pytest
from old_queues import write_acks, write_litequeue, write_table
from processes import forked, status_of, tree
from queuelib.queue import FifoSQLiteQueue

from lmdbqueue import PersistentQueue, SourceError
from lmdbqueue.legacy import detect, import_file


def items(path, **options):
    with PersistentQueue(path, **options) as queue:
        return list(queue)


def changed(path, *statements):
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


@pytest.fixture
def new(tmp_path):
    return str(tmp_path / "new")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (persistqueue.FILOSQLiteQueue, "FILO queue"),
        (persistqueue.FILOSQLiteAckQueue, "FILO queue"),
        (persistqueue.PriorityQueue, "priority queue"),
        (lambda path: persistqueue.PDict(path, "default"), "dict"),
    ],
)
def test_what_is_no_fifo_queue_is_refused_as_what_it_is(tmp_path, new, kind, words):
    with closing(kind(str(tmp_path / "old"))) as queue:
        if words == "dict":
            queue["a"] = 1
        else:
            queue.put(1)
    for call in (detect, lambda path: import_file(path, new)):
        with pytest.raises(SourceError, match=words):
            call(tmp_path / "old")
    assert not os.path.exists(new)


def test_of_a_database_with_several_queues_one_is_chosen(tmp_path, new):
    path = str(tmp_path / "old")
    for name in ("mails", "logs"):
        with closing(persistqueue.SQLiteQueue(path, name=name)) as queue:
            queue.put(name)
    with closing(persistqueue.FILOSQLiteQueue(path)) as queue:
        queue.put("last in")
    with pytest.raises(SourceError, match=r"the tables 'queue_logs', 'queue_mails'.* --table") as caught:
        detect(path)
    assert str(tmp_path) in str(caught.value)
    assert detect(path, table="queue_mails") == "persist-queue SQLite"
    with pytest.raises(SourceError, match="FILO"):
        detect(path, table="filo_queue_default")
    with pytest.raises(SourceError, match=r"with no table 'queue_news'.*: 'queue_logs', 'queue_mails'"):
        detect(path, table="queue_news")
    import_file(path, new, table="queue_mails")
    import_file(path, new, table="queue_logs")
    assert items(new) == ["mails", "logs"]


def test_a_database_of_another_program_is_refused(tmp_path, new):
    changed(tmp_path / "old", "CREATE TABLE queue (id INTEGER, item BLOB, more TEXT)")
    with pytest.raises(SourceError, match="an SQLite database with no table of"):
        import_file(tmp_path / "old", new)


def test_messages_of_litequeue_come_in_the_order_of_their_ids(tmp_path, new):
    with closing(litequeue.LiteQueue(str(tmp_path / "old"), queue_name="my own; queue")) as queue:
        ids = [queue.put(text).message_id for text in ("a", "b", "c")]
    changed(tmp_path / "old", f"""UPDATE "my own; queue" SET message_id = '{ids[2]}x' WHERE data = 'a'""")  # noqa: S608
    assert import_file(tmp_path / "old", new).items == 3
    assert items(new) == ["b", "c", "a"]


def test_a_queue_in_which_nothing_waits_gives_an_empty_one(tmp_path, new):
    with closing(litequeue.LiteQueue(str(tmp_path / "old"))) as queue:
        queue.mark_failed(queue.put("a").message_id)
        queue.done(queue.put("b").message_id)
    imported = import_file(tmp_path / "old", new)
    assert (imported.items, imported.finished, imported.set_aside) == (0, 1, 1)
    assert items(new) == []


def test_bytes_in_litequeue_stay_bytes(tmp_path, new):
    with closing(litequeue.LiteQueue(str(tmp_path / "old"))) as queue:
        queue.put(b"\xff\0")
        queue.put("\0 and text")
    import_file(tmp_path / "old", new)
    assert items(new) == [b"\xff\0", "\0 and text"]


def test_rows_that_hold_no_item_are_set_aside(tmp_path, new):
    path = str(tmp_path / "old")
    write_litequeue(path)
    changed(path, "UPDATE Queue SET status = 7 WHERE data = 'first'")
    changed(path, "UPDATE Queue SET data = CAST(x'ff61' AS TEXT) WHERE data = 'last'")
    imported = import_file(path, new)
    assert (imported.items, imported.set_aside) == (2, 3)
    with open(imported.quarantine, encoding="ascii") as file:
        told = file.read()
    assert "of the unknown status 7" in told
    assert "text that is not UTF-8" in told


@pytest.mark.parametrize("value", ["NULL", "7", "0.5"])
def test_rows_of_persist_queue_without_bytes_are_set_aside(tmp_path, new, value):
    path = str(tmp_path / "old")
    write_acks(path)
    changed(os.path.join(path, "data.db"), f"UPDATE ack_queue_default SET data = {value} WHERE _id = 3")  # noqa: S608
    imported = import_file(path, new)
    assert (imported.items, imported.set_aside) == (5, 2)


def _killed(fn):
    def run():
        fn()
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(run)) == -signal.SIGKILL


def test_what_a_killed_program_left_in_its_log_comes_over_and_no_file_is_changed(tmp_path, new):
    (tmp_path / "old").mkdir()
    path = str(tmp_path / "old" / "messages")

    def put():
        queue = litequeue.LiteQueue(path)
        queue.put("a")
        queue.put("b")

    _killed(put)
    assert os.path.getsize(path + "-wal") > 0
    assert b"b" not in (tmp_path / "old" / "messages").read_bytes()[4096:]
    before = tree(tmp_path / "old")
    assert detect(path) == "litequeue"
    assert import_file(path, new).items == 2
    assert tree(tmp_path / "old") == before
    assert items(new) == ["a", "b"]
    assert import_file(path, new).items == 2
    assert items(new) == ["a", "b"]


def test_half_a_transaction_of_a_killed_program_does_not_come_over(tmp_path, new):
    (tmp_path / "old").mkdir()
    path = str(tmp_path / "old" / "items")
    queue = FifoSQLiteQueue(path)
    for number in range(200):
        queue.push(b"%03d" % number + bytes(5_000))
    queue._db.close()

    def half():
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA cache_size = 5")  # pages, so that the others go to the file
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE queue SET item = zeroblob(6000)")

    _killed(half)
    assert os.path.getsize(path + "-journal") > 0
    before = tree(tmp_path / "old")
    import_file(path, new)
    assert [item[:3] for item in items(new)] == [b"%03d" % number for number in range(200)]
    assert tree(tmp_path / "old") == before


def test_a_damaged_database_is_refused_whole(tmp_path, new):
    path = str(tmp_path / "old")
    with closing(persistqueue.SQLiteQueue(path)) as queue:
        for number in range(2_000):
            queue.put(number)
    with open(os.path.join(path, "data.db"), "r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xee" * 4096)
    with pytest.raises(SourceError, match=r"SQLite (finds it damaged|cannot read it)"):
        import_file(path, new)
    assert items(new) == []


def test_a_database_that_would_give_fewer_rows_without_an_error_is_refused(tmp_path, new):
    path = str(tmp_path / "old")
    with closing(persistqueue.SQLiteQueue(path)) as queue:
        for number in range(500):
            queue.put(number)
    with open(os.path.join(path, "data.db"), "r+b") as file:
        pages = [file.read(4096) for _ in range(os.path.getsize(file.name) // 4096)]
        leaf = next(number for number, page in enumerate(pages) if page[0] == 13 and page[3:5] > b"\0\x32")
        file.seek(leaf * 4096 + 3)  # how many rows are in it
        file.write((int.from_bytes(pages[leaf][3:5], "big") - 7).to_bytes(2, "big"))
    with closing(sqlite3.connect(os.path.join(path, "data.db"))) as db:
        assert len(db.execute("SELECT data FROM queue_default").fetchall()) == 493
    with pytest.raises(SourceError, match="SQLite finds it damaged"):
        import_file(path, new)


def test_a_database_is_found_by_its_file_too(tmp_path, new):
    write_table(str(tmp_path / "old"))
    os.rename(tmp_path / "old" / "data.db", tmp_path / "jobs?mode=memory#1.db")
    assert import_file(tmp_path / "jobs?mode=memory#1.db", new).items == 5
