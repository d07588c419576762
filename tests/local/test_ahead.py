"""A flush copies while others write, and catches up: what they did meanwhile is there after the swap."""

import errno
import os
import pickle
import random
import threading
from collections.abc import Callable

import pytest
from processes import forked, status_of

from lmdbqueue import PersistentQueue, StorageError
from lmdbqueue._base import format as _format
from lmdbqueue._base.values import Push
from lmdbqueue._host import disk
from lmdbqueue._lmdb.snapshot import Snapshot, is_open
from lmdbqueue._lmdb.sound_pages import SoundPages
from lmdbqueue._local import catch_up, environment


@pytest.fixture
def amid(monkeypatch) -> Callable[..., list[int]]:
    """Return a function that lets something happen after the copy, and once more after each catching up but the last.

    It returns a list of how many items differed at each catching up.
    """

    def amid_(*happenings: Callable[[], object]) -> list[int]:
        left = list(happenings)
        ended: list[int] = []
        view, follow = environment.Environment.view, catch_up._follow

        def viewed(self, ref, fn, *args):
            found = view(self, ref, fn, *args)
            if isinstance(getattr(fn, "__self__", None), catch_up.Ahead) and left:
                left.pop(0)()
            return found

        def followed(*args):
            found = follow(*args)
            ended.append(found)
            return found

        monkeypatch.setattr(environment.Environment, "view", viewed)
        monkeypatch.setattr(catch_up, "_follow", followed)
        return ended

    return amid_


def _in_another_process(fn):
    """Return a function that lets ``fn`` run in a process that is forked now: a fork amid a flush is another matter."""
    told, tell = os.pipe()

    def wait():
        os.read(told, 1)
        fn()

    pid = forked(wait)
    os.close(told)

    def run():
        os.write(tell, b"1")
        os.close(tell)
        assert status_of(pid) == 0

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
    assert len(ended) == 3
    assert ended[0] >= 2_000  # it was followed, and not copied anew
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


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_fork_amid_a_flush_lets_it_begin_anew_or_copy_all_and_the_child_works(open_queue, tmp_path, amid, rounds):
    queue = open_queue()
    queue.push(list(range(10)))

    def work():
        with PersistentQueue("queue", str(tmp_path)) as other:
            other.push("in a child")

    happenings = [lambda: queue.push("before"), lambda: queue.push("again")][: rounds - 1]
    amid(*happenings, lambda: status_of(forked(work)))
    queue.flush(force=True)
    assert queue.check() == []
    assert list(queue) == [*range(10), *["before"][: rounds - 1], "in a child"]


def test_a_snapshot_is_kept_until_it_is_let_go_of_or_nobody_has_it_any_more(queue):
    queue.push("a")
    generation = queue._engine.environment._generation

    def kept():
        return sum(line.split()[-1] != "-" for line in generation._env.readers().splitlines()[1:])

    first, second = generation.keep(), generation.keep()
    assert (kept(), first.meta, second.meta) == (2, second.meta, first.meta)
    generation.let_go(1)
    assert (kept(), is_open(first.txn), is_open(second.txn)) == (1, False, True)
    del second  # as an interrupted flush does
    assert kept() == 0
    generation.keep()
    generation.let_go()
    assert kept() == 0


def test_what_writers_wait_for_does_not_grow_with_what_the_queue_holds(open_queue, amid, monkeypatch):
    read = []
    page = SoundPages.page
    monkeypatch.setattr(SoundPages, "page", lambda self, *args: read.append(args) or page(self, *args))

    def cost(filename, held):
        queue = open_queue(filename, durability="off")
        queue.push([b"x" * 50] * held, delay=3600)
        queue.push([b"x" * 50] * held)
        queue.lease(held // 2)

        def work():
            read.clear()
            queue.push("more")
            queue.push("later", delay=3600)
            queue.pop()
            open_queue(filename, name="another", durability="off")

        ended = amid(lambda: None, work)  # the latter when only the swap is to come
        queue.flush(force=True)
        assert [0 < each < 20 for each in ended] == [False, True]
        return len(read)

    assert cost("long", 4000) <= cost("short", 200) + 15  # a level more, here and there; 4,000 take 300 pages


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


def test_queues_that_are_dropped_or_made_anew_amid_a_flush_are_so_after_it(open_queue, amid):
    queue = open_queue()
    queue.push(list(range(10)))
    for name in ("gone", "anew"):
        open_queue(name=name).push(["old"] * 2_000)

    def drop():
        for name in ("gone", "anew"):
            queue.drop_queue(name)
        open_queue(name="anew").push("new")

    amid(drop)
    queue.flush(force=True)
    assert queue.check() == []
    assert queue.queues() == ["anew", "queue"]
    assert list(open_queue(name="anew")) == ["new"]


def test_what_comes_and_leaves_with_a_priority_amid_a_flush_is_so_after_it(open_queue, amid):
    """The record of the queue says nothing of it: another class has bounds of its own."""
    queue = open_queue()

    def push(payload):
        queue._engine.append_apart([pickle.dumps(payload)], Push(priority=5))

    push("a")

    def work():
        push("b")
        assert queue.pop() == "a"

    amid(work, lambda: push("c"))
    queue.flush(force=True)
    assert queue.check() == []
    assert list(queue) == ["b", "c"]


def _all_records(queue):
    """Return all that a directory holds, but for what is noted with each transaction."""

    def read(txn, tables):
        snapshot = tables.generation
        queues = sorted(snapshot.queues(), key=lambda each: each.name)
        trees = [snapshot.meta, snapshot.away, *(each.items for each in queues)]
        return [[each for each in txn.cursor(db) if each[0] != _format.LAST_TXN] for db in trees]

    environment = queue._engine.environment
    environment.open_every_queue()
    return environment.view(queue._engine.ref, read)


@pytest.mark.parametrize("readers", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_amid_a_flush_the_new_file_holds_the_same_records(
    open_queue, amid, monkeypatch, seed, readers
):
    monkeypatch.setattr(catch_up, "_FEW", -1)  # so that it catches up each time
    chance = random.Random(seed)  # noqa: S311
    queues = [open_queue(name=name, durability="off", max_attempts=2) for name in "ab"]
    leases = []

    def work():
        for _ in range(20):
            queue = chance.choice(queues)
            match chance.randrange(8):
                case 0:
                    queue.push([chance.random() for _ in range(chance.randrange(50))])
                case 1:
                    queue.push("delayed", delay=chance.choice((1e-6, 1000)))
                case 2:
                    queue.pop(chance.randrange(10))
                case 3:
                    leases.append(queue.lease(chance.randrange(1, 5)))
                case 4 if leases:
                    leases.pop(chance.randrange(len(leases))).nack()
                case 5 if leases:
                    leases.pop(chance.randrange(len(leases))).ack()
                case 6:
                    queue.dead.requeue()
                case _ if readers:
                    queue.reader("r").pop(chance.randrange(10))
                case _:
                    queue._engine.append_apart([b"N."], Push(priority=chance.randrange(-2, 3)))

    before = []
    work()
    amid(work, work, lambda: before.append(_all_records(queues[0])))
    queues[0].flush(force=True)
    assert _all_records(queues[0]) == before[0]
    assert queues[0].check() == []


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

    def copied(self, fd, kept):
        copy(self, fd, kept)
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
