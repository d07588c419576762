"""A flush copies while others write, and catches up: what they did meanwhile is there after the swap."""

import errno
import os
import threading
from collections.abc import Callable

import pytest
from processes import forked, status_of

from lmdbqueue import PersistentQueue, StorageError
from lmdbqueue._host import disk
from lmdbqueue._lmdb.generation import Snapshot
from lmdbqueue._local import catch_up, environment


@pytest.fixture
def amid(monkeypatch) -> Callable[..., list[str]]:
    """Return a function that lets something happen after the copy, and once more after each catching up but the last.

    It returns a list that says how each flush ended: "followed" or "copied".
    """

    def amid_(*happenings: Callable[[], object]) -> list[str]:
        left = list(happenings)
        ended: list[str] = []
        view, follow = environment.Environment.view, catch_up._follow

        def viewed(self, name, fn, *args):
            found = view(self, name, fn, *args)
            if isinstance(getattr(fn, "__self__", None), catch_up.Ahead) and left:
                left.pop(0)()
            return found

        def followed(*args):
            found = follow(*args)
            ended.append("copied" if found == catch_up._OTHER else "followed")
            return found

        monkeypatch.setattr(environment.Environment, "view", viewed)
        monkeypatch.setattr(catch_up, "_follow", followed)
        return ended

    return amid_


def _in_another_process(fn):
    def run():
        assert status_of(forked(fn)) == 0

    return run


def test_what_is_pushed_and_popped_amid_a_flush_is_there_after_it(open_queue, tmp_path, amid):
    queue = open_queue()
    queue.push(list(range(10_000)))

    def work():
        with PersistentQueue("queue", str(tmp_path)) as other:
            assert other.pop(3_000)[0] == 0
            other.push(list(range(10_000, 12_000)))

    def work_again():
        with PersistentQueue("queue", str(tmp_path)) as other:
            other.push("large" * 100_000)
            other.pop()

    ended = amid(_in_another_process(work), _in_another_process(work_again), queue.pop)
    queue.flush(force=True)
    assert set(ended) == {"followed"}
    assert len(ended) == 3
    assert queue.check() == []
    assert list(queue) == [*range(3_002, 12_000), "large" * 100_000]
    assert queue.push("next") == 12_001


def test_all_may_go_and_others_come_amid_a_flush(open_queue, amid):
    queue = open_queue()
    queue.push(list(range(5_000)))

    def work():
        queue.clear()
        queue.push(list(range(5_000, 5_010)))

    amid(work, queue.clear)
    queue.flush(force=True)
    assert queue.check() == []
    assert queue.peek(1) is None
    assert queue.push("next") == 5_010


def test_queues_that_are_made_amid_a_flush_are_there_after_it(open_queue, tmp_path, amid):
    queue = open_queue()
    queue.push(list(range(10)))

    def make_another():
        with PersistentQueue("queue", str(tmp_path), name="theirs") as other:
            other.push("in another process")

    amid(_in_another_process(make_another), lambda: open_queue(name="mine").push("in this one"))
    queue.flush(force=True)
    assert queue.check() == []
    assert list(open_queue(name="theirs")) == ["in another process"]
    assert list(open_queue(name="mine")) == ["in this one"]


def test_a_generation_that_is_replaced_amid_a_flush_is_followed(open_queue, amid):
    queue = open_queue()
    queue.push(list(range(10)))
    amid(queue._engine.environment.swap, lambda: queue.push("after"))
    queue.flush(force=True)
    assert list(queue) == [*range(10), "after"]
    assert queue.check() == []


def test_what_cannot_be_followed_is_copied(open_queue, amid, monkeypatch):
    queue = open_queue()
    queue.push(list(range(10)))
    ended = amid(lambda: queue.push("after"))
    monkeypatch.setattr(catch_up, "_follow_items", lambda *_: 0)
    queue.flush(force=True)
    assert "copied" in ended
    assert list(queue) == [*range(10), "after"]


def test_a_flush_waits_for_the_flush_of_another_and_has_nothing_left_to_do(open_queue, tmp_path, amid):
    queue = open_queue(flush_limit=1)
    queue.push(list(range(100_000)))
    queue.delete(100_000)
    pids = []

    def flush_too():
        with PersistentQueue("queue", str(tmp_path), flush_limit=1) as other:
            assert other.flush() == 0

    amid(lambda: pids.append(forked(flush_too)))
    assert queue.flush() > 0
    assert status_of(pids[0]) == 0
    assert len([name for name in os.listdir(tmp_path / "queue") if name.endswith(".mdb")]) == 1


def test_a_sync_that_fails_while_the_copy_is_written_fails_the_flush(open_queue, monkeypatch):
    queue = open_queue()
    queue.push(["x" * 1000] * 1000)
    failed = threading.Event()
    copy = Snapshot.copy

    def copied(self, fd):
        copy(self, fd)
        assert failed.wait(10)

    def sync(_fd):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Snapshot, "copy", copied)
    monkeypatch.setattr(disk, "sync_file", sync)
    with pytest.raises(StorageError, match="Input/output error"):
        queue.flush(force=True)
    assert queue.check() == []
    assert len(queue) == 1000
