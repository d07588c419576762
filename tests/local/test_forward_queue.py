"""The forwarder from one directory to another: each item once, with its headers, whatever is killed between."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from processes import KILLED, eventually, forked, status_of

from lmdbqueue import DiskFullError, ForwardError, Full, OptionError, PersistentQueue
from lmdbqueue.forward import (
    AwayError,
    Batch,
    BusyError,
    Envelope,
    Forwarder,
    Mark,
    Origin,
    QueueSource,
    QueueTarget,
    ReaderSource,
)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("is_reader", [False, True])
def test_items_come_in_order_with_their_headers_and_without_being_decoded(open_queue, is_reader):
    queue = open_queue(loads=lambda _: 1 / 0)
    there = open_queue("there", name="jobs")
    headers = [{"traceparent": "00-4bf9"}, {"traceparent": "00-4bf9"}, {}, {}, {"a": "é"}]
    for number, each in enumerate(headers):
        queue.push(number, headers=each)
    queue.push("later", delay=500)
    source = queue.reader("r") if is_reader else queue
    assert Forwarder(source, there, batch=3).run()[:2] == (5, 2)
    lease = there.lease(9)
    assert (lease.items, lease.headers) == ([0, 1, 2, 3, 4], headers)
    lease.ack()
    queue.push("more")
    assert Forwarder(source, there).run().items == 1
    assert (there.pop(), there.queues()) == ("more", ["jobs", "lmdbqueue-marks"])
    assert there.check() == []


@pytest.mark.parametrize("kind", [QueueSource, ReaderSource])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_whose_removal_did_not_take_place_is_not_stored_twice(open_queue, monkeypatch, kind, batch):
    queue, there = open_queue(), open_queue("there")
    queue.push(list(range(10)))
    source = queue.reader("r") if kind is ReaderSource else queue
    remove, left = kind.remove, [2]

    def die_before(self, seqs):
        left[0] -= bool(seqs)
        if left[0] == 0:
            raise _Killed
        return remove(self, seqs)

    monkeypatch.setattr(kind, "remove", die_before)
    with pytest.raises(_Killed):
        Forwarder(source, there, batch=batch).run()
    assert len(there) == 2 * batch
    queue.push("new")
    Forwarder(source, there, batch=3).run()
    assert list(there) == [*range(10), "new"]


def test_a_batch_that_another_has_stored_is_not_stored_again(open_queue):
    there = open_queue("there", dumps=bytes, loads=bytes)
    target, origin = QueueTarget(there), Origin("u", "n")
    assert target.last(origin) is None
    batch = Batch(origin, Mark(1, [0, 1], 2, 2, b"d"), [b"a", b"b"])
    target.store(batch)
    for number in (1, 3):
        with pytest.raises(BusyError):
            target.store(batch._replace(mark=Mark(number, [4], 5, 3)))
    assert target.last(origin) == batch.mark
    assert target.last(Origin("u", "m")) is None
    second = Batch(origin, Mark(2, [7, 8, 2], 9, 5), [b"c", b"d", b"e"], [Envelope(7), Envelope(8), Envelope(2)])
    target.store(second)
    target.close()
    assert target.last(origin) == second.mark
    assert list(there) == [b"a", b"b", b"c", b"d", b"e"]
    target.close()


def test_a_full_queue_is_away_and_nothing_of_a_batch_is_stored(open_queue):
    queue, there = open_queue(dumps=bytes, loads=bytes), open_queue("there", maxsize=3, dumps=bytes, loads=bytes)
    queue.push([b"b", b"c"])
    there.push([b"1", b"2", b"3"])
    target = QueueTarget(there)
    target.last(Origin("u", "n"))
    with pytest.raises(AwayError, match="at most 3 items"):
        target.store(Batch(Origin("u", "n"), Mark(1, [0, 1], 2, 2), [b"x"] * 2))
    assert (len(there), target.last(Origin("u", "n"))) == (3, None)
    forwarder = Forwarder(queue, target, pause=0.01)
    running = threading.Thread(target=forwarder.run)
    running.start()
    eventually(lambda: forwarder._done.failures > 1)
    there.maxsize = 5
    running.join(30)
    assert list(there) == [b"1", b"2", b"3", b"b", b"c"]
    with pytest.raises(Full):
        there.push(b"e")


def test_a_queue_that_a_batch_does_not_fit_into_gets_as_much_as_fits(open_queue):
    queue, there = open_queue(), open_queue("there", maxsize=3)
    queue.push(0, headers={"a": "1"})
    queue.push(list(range(1, 10)))
    forwarder = Forwarder(queue, there, pause=0.01)
    running = threading.Thread(target=forwarder.run)
    running.start()
    got = []
    for n in (3, 3, 3):
        eventually(lambda: len(there) == 3)
        got += there.pop_many(n)
    running.join(30)
    assert [*got, *there] == list(range(10))
    limited = open_queue("limited", max_bytes=there.stats().bytes_used + 300_000, dumps=bytes, loads=bytes)
    queue = open_queue("large", dumps=bytes, loads=bytes)
    queue.push([bytes(100_000)] * 5)
    forwarder = Forwarder(queue, limited, pause=0.01, progress=lambda done: done.failures and forwarder.stop())
    assert 0 < forwarder.run().items == len(limited) < 5


def test_a_directory_that_cannot_be_made_on_a_full_disk_is_away():
    def open_there():
        raise DiskFullError("bytes", 10, 10, 0)

    with pytest.raises(AwayError, match="full"):
        QueueTarget(open_there).last(Origin("u", "n"))


@pytest.mark.parametrize("kind", [QueueSource, ReaderSource])
def test_what_came_back_before_a_batch_in_doubt_does_not_make_it_that_of_others(open_queue, monkeypatch, kind):
    queue, there = open_queue(), open_queue("there")
    queue.push(list(range(6)))
    source = queue.reader("r") if kind is ReaderSource else queue
    lease = queue.lease(2)

    def die(*_):
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(kind, "remove", die)
        with pytest.raises(_Killed):
            Forwarder(source, there, batch=3).run()
    lease.nack()
    Forwarder(source, there, batch=3).run()
    assert sorted(there) == ([2, 3, 4, 5] if kind is ReaderSource else list(range(6)))


def test_a_queue_is_not_forwarded_into_itself_but_into_another_of_its_directory(open_queue):
    queue, other = open_queue(), open_queue(name="other")
    queue.push([1, 2])
    with pytest.raises(ForwardError, match="into itself"):
        Forwarder(queue, queue).run()
    assert Forwarder(queue, other).run().items == 2
    assert (list(queue), list(other)) == ([], [1, 2])


def test_a_target_that_was_restored_from_a_backup_is_noticed(open_queue, tmp_path):
    queue, there = open_queue(), open_queue("there")
    queue.push([1, 2])
    Forwarder(queue, there).run()
    there.close()
    shutil.copytree(tmp_path / "there", tmp_path / "backup")
    queue.push(3)
    with PersistentQueue("there", tmp_path) as there:
        Forwarder(queue, there).run()
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "backup").rename(tmp_path / "there")
    queue.push(4)
    with PersistentQueue("there", tmp_path) as there, pytest.raises(ForwardError, match="older copy"):
        Forwarder(queue, there).run()
    assert list(queue) == [4]


@pytest.mark.parametrize("priority", [-3, 3])
def test_items_with_a_priority_do_not_keep_the_next_forwarder_from_starting(open_queue, priority):
    queue, there = open_queue(), open_queue("there")
    queue.push(["a", "b"])
    queue.push("c", priority=priority)
    assert Forwarder(queue, there).run().items == 3
    assert Forwarder(queue, there).run().items == 0
    queue.push("d")
    queue.push("e", priority=priority)
    assert Forwarder(queue, there, batch=1).run().items == 2
    queue.push("f")
    assert Forwarder(queue, there).run().items == 1
    assert sorted(there) == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("priority", [-3, 0, 3])
def test_a_source_that_never_had_an_item_that_was_forwarded_is_refused(open_queue, tmp_path, priority):
    queue, there = open_queue(), open_queue("there")
    for each in (-3, 0, 3):
        queue.push("old", priority=each)
    Forwarder(queue, there).run()
    queue.close()
    shutil.copytree(tmp_path / "queue", tmp_path / "backup")
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("lost", priority=priority)
        Forwarder(queue, there).run()
    shutil.rmtree(tmp_path / "queue")
    (tmp_path / "backup").rename(tmp_path / "queue")
    with PersistentQueue("queue", tmp_path) as queue:
        for each in {-3, 0, 3} - {priority}:
            queue.push(["new", "new"], priority=each)
        with pytest.raises(ForwardError, match="never had an item with that number"):
            Forwarder(queue, there).run()
        assert len(queue) == 4


def test_what_is_noted_of_a_target_does_not_go_back(open_queue):
    source = QueueSource(open_queue()._engine.path)
    source.note("t", 3)
    source.note("t", 2)  # by a forwarder that was stopped before
    assert source.noted("t") == 3
    source.close()


def test_forwarders_of_a_directory_that_note_at_once_lose_none_of_their_notes(open_queue):
    queue = open_queue(durability="off")
    names = ["a", "b", "c"]
    for name in names:
        queue.reader(name)
    path = queue._engine.path

    def note(name):
        source = ReaderSource(path, "queue", name)
        for number in range(1, 301):
            source.note("t", number)
        source.close()

    assert [status_of(child) for child in [forked(lambda name=name: note(name)) for name in names]] == [0, 0, 0]
    found = []
    for name in names:
        source = ReaderSource(path, "queue", name)
        found.append(source.noted("t"))
        source.close()
    assert found == [300, 300, 300]


def test_a_batch_that_another_forwarder_stores_and_notes_meanwhile_makes_no_target_an_older_copy(open_queue):
    queue, there = open_queue(), open_queue("there")
    queue.push([1, 2])

    class Overtaken(QueueTarget):
        asked = 0

        def last(self, origin):
            mark = super().last(origin)
            self.asked += 1
            if self.asked == 1:  # the answer comes late
                super().close()
                Forwarder(queue, there).run()
            return mark

    target = Overtaken(there)
    assert Forwarder(queue, target).run().items == 0
    assert (list(there), target.asked) == ([1, 2], 2)


def test_the_command_fills_another_directory(open_queue, tmp_path):
    queue = open_queue()
    queue.push("a", headers={"traceparent": "00-4bf9"})
    command = [sys.executable, "-m", "lmdbqueue", "forward", queue._engine.path, f"file://{tmp_path}/there%20now"]
    done = subprocess.run([*command, "--to", "jobs"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("1 item in 1 batch; failures of the target: 0\n")
    with PersistentQueue("there now", tmp_path, name="jobs") as there:
        lease = there.lease(1)
        assert (lease.items, lease.headers) == (["a"], [{"traceparent": "00-4bf9"}])
    failed = subprocess.run([*command, "--name", "none"], capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 4


def test_a_queue_that_the_command_makes_has_the_serializer_of_its_source(tmp_path):
    command = [sys.executable, "-m", "lmdbqueue", "forward", tmp_path / "queue"]
    with PersistentQueue("queue", tmp_path, serializer="json") as queue:
        queue.push({"a": 1})
        subprocess.run([*command, f"file://{tmp_path}/there"], capture_output=True, timeout=60, check=True)
        with PersistentQueue("there", tmp_path, serializer="json") as there:
            assert there.pop() == {"a": 1}
        with pytest.raises(OptionError):
            PersistentQueue("there", tmp_path)
        queue.push({"a": 2})
        PersistentQueue("pickles", tmp_path).close()
        wrong = subprocess.run([*command, f"file://{tmp_path}/pickles"], capture_output=True, timeout=60, check=False)
        assert (wrong.returncode, b"serializer" in wrong.stderr, len(queue)) == (1, True, 1)


@pytest.mark.parametrize(("items", "kills"), [(400, 4), pytest.param(20_000, 50, marks=pytest.mark.long)])
def test_a_forwarder_that_is_killed_stores_each_item_once(tmp_path, record_property, items, kills):
    killed = 0
    with PersistentQueue("queue", tmp_path) as queue, PersistentQueue("there", tmp_path) as there:
        queue.push_many(range(items))
        for moment in sorted(random.sample(range(items), kills)):
            pid = forked(lambda: Forwarder(tmp_path / "queue", PersistentQueue("there", tmp_path), batch=7).run())
            eventually(lambda moment=moment: len(there) >= moment, 60)
            os.kill(pid, signal.SIGKILL)
            killed += status_of(pid) == KILLED
        Forwarder(queue, there, batch=100).run()
        assert list(there) == list(range(items))
        assert len(queue) == 0
    record_property("kills", killed)
