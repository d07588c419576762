"""Very many queues in a directory: each costs a commit, and only those that are open cost anything after that."""

import os
import sys

import pytest
from processes import forked, status_of

from lmdbqueue import PersistentQueue

PAGE = 4096
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Costs:
    """What a call costs: transactions, and bytes that this process writes."""

    def __init__(self, queue):
        self._queue = queue

    def of(self, call, *args):
        transactions, written = self._now()
        call(*args)
        after = self._now()
        return after[0] - transactions, after[1] - written

    def _now(self):
        environment = self._queue._engine.environment
        with open("/proc/self/io", encoding="ascii") as file:
            written = int(next(line for line in file if line.startswith("wchar")).split()[1])
        return environment._generation._env.info()["last_txnid"], written


def _make(place, name):
    PersistentQueue("queue", place, name=name).close()


def _make_many(place, number, more):
    """``more``: pages that a commit may write where the trees have grown; a copy of the names would be hundreds."""
    names = [f"queue {each:05}" for each in range(number)]
    with PersistentQueue("queue", place, name=names[0]) as first:
        costs = Costs(first)
        made = [costs.of(_make, place, name) for name in names[1:]]
        assert {transactions for transactions, _ in made} == {1}
        first_ones, last_ones = made[:10], made[-10:]
        assert max(last_ones)[1] <= min(first_ones)[1] + more * PAGE
        assert first.queues() == names
        with PersistentQueue("queue", place, name=names[-1]) as last:
            pushes = [costs.of(queue.push, "item") for queue in (first, last) for _ in range(5)]
            assert {transactions for transactions, _ in pushes} == {1}
            assert max(pushes[5:])[1] <= min(pushes[:5])[1] + more * PAGE
            assert len(last) == 5
        transactions, written = costs.of(first.drop_queue, names[-1])
        assert (transactions, written <= made[0][1] + more * PAGE) == (1, True)
        assert first.queues() == names[:-1]
        assert first.check() == []


@linux
def test_the_thousandth_queue_costs_what_the_first_did(tmp_path):
    assert status_of(forked(_make_many, tmp_path, 1_000, 8)) == 0


@linux
@pytest.mark.long
def test_the_ten_thousandth_queue_costs_what_the_first_did(tmp_path):
    assert status_of(forked(_make_many, tmp_path, 10_000, 12), 1_800) == 0  # 10,000 flushes, whatever the disk is


def test_a_process_may_have_hundreds_of_queues_open_at_once(open_queue):
    """More than LMDB gives room for at first: the file is opened anew then, and all of them go on."""
    queues = [open_queue(name=f"queue {number}", durability="off") for number in range(300)]
    for number, queue in enumerate(queues):
        queue.push(number)
    assert [queue.pop() for queue in queues] == list(range(300))
    queues[0].flush(force=True)
    for number, queue in enumerate(queues):
        queue.push(number)
    assert [queue.pop() for queue in queues] == list(range(300))
    for queue in queues[1:]:
        queue.close()


def test_a_queue_that_another_process_makes_costs_nobody_else_a_handle(open_queue, tmp_path):
    queue = open_queue()
    queue.push("a")

    def make():
        for number in range(100):
            PersistentQueue("queue", tmp_path, name=str(number)).close()

    assert status_of(forked(make)) == 0
    assert queue.pop() == "a"
    assert len(queue.queues()) == 101
    assert [each.name for each in queue._engine.environment._generation.queues()] == ["queue"]
    assert os.listdir(tmp_path) == ["queue"]
