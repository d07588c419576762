"""The end of one lease and the beginning of the next: one commit, all of it or nothing."""

import os
import signal

import pytest
from processes import KILLED, forked, status_of

from lmdbqueue import LeaseExpiredError
from lmdbqueue._local.relay import relay
from lmdbqueue._local.state import prepared


@pytest.fixture(params=["full", "interval", "off", "unsealed"])
def queue(open_queue, request):
    return open_queue(**({"checksum": False} if request.param == "unsealed" else {"durability": request.param}))


def commits(queue):
    return queue._engine.environment._generation.newest()


def test_an_item_goes_and_the_next_comes_with_what_is_put_in_one_commit(queue):
    queue.push(["a", "b", "c", "d"])
    lease, other = queue.lease(), queue.lease()
    before = commits(queue)
    following = relay(queue, lease, puts=[prepared(queue.state, "a", 1)])
    assert commits(queue) == before + 1
    assert (following.items, following.attempts, dict(queue.state)) == (["c"], [1], {"a": 1})
    assert relay(queue, following, items=2).items == ["d"]
    other.ack()
    assert (len(queue), queue.stats().leased) == (0, 1)


def test_one_of_several_items_goes_and_the_lease_holds_the_others(queue):
    queue.push(list(range(5)))
    lease = queue.lease(3)
    following = relay(queue, lease, lease.seqs[1], 5)
    assert following.items == [3, 4]
    lease.ack()
    assert queue.stats().leased == 2
    following.nack()
    assert list(queue) == [3, 4]


def test_a_lease_that_is_over_changes_nothing(queue):
    queue.push(["a", "b"])
    lease = queue.lease()
    queue._engine.nack(lease._token, None, 0.0, "", None)  # as by one that finds its owner dead
    before = commits(queue)
    with pytest.raises(LeaseExpiredError):
        relay(queue, lease, puts=[prepared(queue.state, "a", 1)])
    assert (commits(queue), dict(queue.state), list(queue)) == (before, {}, ["a", "b"])


def test_what_has_to_come_back_comes_before_what_waits(queue):
    queue.push(["a", "b", "c"])
    lease = queue.lease()

    def child():
        queue.lease()
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(child)) == KILLED
    assert relay(queue, lease).items == [], "the item of the dead one stands before it"
    assert queue.lease(2).items == ["b", "c"]


def test_one_that_cannot_be_decoded_is_a_dead_letter_and_a_large_one_waits_for_a_lease_of_its_own(open_queue):
    queue = open_queue(dumps=str.encode, loads=bytes.decode)
    queue.push(["a", "b", "c"])
    queue._engine.append([b"\xff"])
    queue.push(["e", "f" * 100_000])
    following = relay(queue, queue.lease(), items=4)
    assert following.items == ["b", "c", "e"]
    assert [letter.payload for letter in queue.dead] == [b"\xff"]
    assert len(following.seqs) == len(following.attempts) == 3
    assert relay(queue, following).items == []
    assert [len(item) for item in queue.lease()] == [100_000]


def test_nothing_of_it_is_there_if_it_is_killed_before_its_commit(queue, monkeypatch):
    queue.push(["a", "b"])

    def child():
        lease = queue.lease()
        environment = queue._engine.environment
        monkeypatch.setattr(environment._generation, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        relay(queue, lease, puts=[prepared(queue.state, "a", 1)])

    assert status_of(forked(child)) == KILLED
    assert (dict(queue.state), queue.lease(5).items) == ({}, ["a", "b"])


def test_in_a_transaction_it_is_a_part_of_that(queue):
    queue.push(["a", "b"])
    lease = queue.lease()

    def fail():
        with queue.transaction():
            assert relay(queue, lease).items == ["b"]
            queue.push("c")
            os.stat("/nothing/is/here")

    with pytest.raises(FileNotFoundError):
        fail()
    assert (lease.items, list(queue)) == (["a"], ["b"])
    with queue.transaction():
        relay(queue, lease).nack()
        queue.push("c")
    assert (list(queue), queue.stats().leased) == (["b", "c"], 0)
