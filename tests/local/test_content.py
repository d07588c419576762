"""The weight of what a transaction adds, where several calls share one."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import content
import pytest

from lmdbqueue import LeaseExpiredError
from lmdbqueue._base.values import Moment
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._local import group_commit
from lmdbqueue._local.group_commit import Call
from lmdbqueue._model import fifo, leases, pushing, returns
from lmdbqueue._model.dead_letters import Return
from lmdbqueue._model.leases import Terms


@pytest.fixture(autouse=True)
def proven(monkeypatch):
    """Let each commit prove that it notes the weight of what it adds."""
    monkeypatch.setattr(Generation, "_commit", content.proving)


def _run(queue, *calls):
    """Run calls in one transaction, as those of threads that came at once."""
    engine = queue._engine
    run = [Call(engine.ref, fn, args) for fn, *args in calls]
    group_commit.run(engine.environment._generation, run)
    return [call.outcome() for call in run]


@pytest.mark.parametrize("n", [1, 2])
def test_what_is_leased_and_comes_back_in_one_commit_was_not_added(open_queue, n):
    """Another thread closes the queue, or finds the lease expired, while the one that leases waits for its turn."""
    queue = open_queue()
    queue.push(["a", "b", "c"])
    entries = queue._engine.first(n)
    lease = leases.lease_first if n == 1 else leases.lease
    terms = Terms(7, 5, 0, {})
    _run(queue, (lease, entries, terms), (leases.give_up, 7, Return(0)))
    assert list(queue) == ["a", "b", "c"]
    _run(queue, (lease, entries, terms), (returns.restore, [], Moment(monotonic=6, wall=0), Return(0)))
    assert list(queue) == ["a", "b", "c"]
    dying = Terms(7, 5, 0, {entries[0][0]: "it cannot be read"})
    _run(queue, (leases.lease, entries[:1], dying), (returns.requeue, None, 0))
    assert list(queue) == ["a", "b", "c"]


def test_what_is_pushed_and_taken_in_one_commit_was_not_added(open_queue):
    queue = open_queue()
    queue.push("a")
    (entry,) = queue._engine.first(1)
    key = (int.from_bytes(entry[0]) + 1).to_bytes(8)
    push = pushing.push, [b"N."], bytes(8), None, None
    _run(queue, push, (fifo.remove, [entry[0]]), (fifo.remove, [key]), push)
    assert len(queue) == 1
    _run(queue, push, (fifo.clear,), push)
    assert len(queue) == 1


def test_threads_that_push_take_and_lease_at_once_note_what_they_add(open_queue):
    queue = open_queue()
    queue.push(list(range(20)))

    def work():
        for number in range(30):
            queue.push(number)
            queue.lease(ttl=1e-6)
            queue.pop()
            with suppress(LeaseExpiredError):
                queue.lease(2, ttl=1e-3).nack()

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(work) for _ in range(6)]
    for each in done:
        each.result()
    assert queue.check() == []
