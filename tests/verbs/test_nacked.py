"""What became of items that a consumer gives back, and what a worker tells of it: what the engine did, no forecast.

On every engine, and awaited. Another object, of the same queue, does what happens meanwhile.
"""

import logging
from contextlib import suppress

import pytest

from lmdbqueue import GoneError, LeaseExpiredError, Nacked, Retry, Worked

ENDS = {
    "nack": lambda lease: lease.nack(),
    "delay": lambda lease: lease.nack(delay=50),
    "last": lambda lease: lease.nack(delay=50, max_attempts=1),
    "reject": lambda lease: lease.reject(),
}
USUAL = {  # what becomes of item 0 if nothing has happened to it
    "nack": Nacked([0], [], []),
    "delay": Nacked([0], [], []),
    "last": Nacked([], [0], []),
    "reject": Nacked([], [0], []),
}


@pytest.fixture(params=["called", "awaited"])
def consumer(request, engine):
    """Open queues of either engine, whose verbs are called, or awaited."""
    return engine if request.param == "called" else request.getfixturevalue("awaited")(engine)


@pytest.fixture(params=ENDS)
def end(request):
    """Give how a consumer gives back what it has leased."""
    return request.param


def figures(queue):
    stats = queue.stats()
    return stats.waiting, stats.leased, stats.delayed, stats.dead


# --- nack and reject


def test_what_is_given_back_returns_or_is_dead(engine, consumer, end):
    other, queue = engine(), consumer()
    other.push("a", unique="k")
    assert ENDS[end](queue.lease()) == USUAL[end]
    assert figures(other) == {"nack": (1, 0, 0, 0), "delay": (0, 0, 1, 0)}.get(end, (0, 0, 0, 1))
    assert other.find("k") == (0 if USUAL[end].returned else None)


def test_each_item_is_in_one_list_and_those_settled_before_in_none(engine, consumer, later):
    other, queue = engine(), consumer()
    other.push("a")
    other.push("b", unique="b")
    other.push("c", expires=5)
    other.push(["d", "e", "f", "g"])
    lease = queue.lease(7)
    assert lease.nack(4) == Nacked([4], [], [])
    assert lease.reject([6, 5]) == Nacked([], [5, 6], [])
    lease.ack(3)
    other.push("new b", unique="b", replace=True)
    later(6)
    assert lease.nack() == Nacked([0], [], [1, 2])
    assert lease.nack() == lease.nack(2) == lease.nack([]) == lease.reject([0, 1]) == Nacked([], [], [])
    assert (list(other), figures(other)) == (["a", "e", "new b"], (3, 0, 0, 2))
    other.clear()
    assert queue.lease().nack() == Nacked([], [], [])
    assert other.check() == []


def test_what_was_replaced_meanwhile_is_removed_and_no_dead_letter(engine, consumer, end, later):
    other, queue = engine(), consumer(expired="dead")
    other.push("old", unique="k")
    lease = queue.lease()
    new = other.push("new", unique="k", replace=True, delay=10)
    assert ENDS[end](lease) == Nacked([], [], [0])
    assert (figures(other), other.find("k"), other.stats().expired) == ((0, 0, 1, 0), new, 0)
    later(100)
    assert (list(other), figures(other), other.check()) == (["new"], (1, 0, 0, 0), [])


@pytest.mark.parametrize("expired", ["drop", "dead"])
def test_what_has_expired_meanwhile_is_removed_or_dead(engine, consumer, end, later, expired):
    """So the object that gives it back says, and at once: whoever looks next may think otherwise."""
    other = engine(expired="drop" if expired == "dead" else "dead")
    queue = consumer(expired=expired)
    other.push("a", expires=5, unique="k")
    lease = queue.lease()
    later(6)
    assert ENDS[end](lease) == (Nacked([], [0], []) if expired == "dead" else Nacked([], [], [0]))
    assert (figures(other), other.stats().expired) == ((0, 0, 0, int(expired == "dead")), 1)
    assert [letter.reason for letter in other.dead] == ["it expired"] * (expired == "dead")
    assert (other.find("k"), other.check()) == (None, [])


def test_of_a_lease_that_is_over_nothing_is_told_though_others_have_its_items(engine, consumer, end, later):
    other, queue = engine(), consumer()
    other.push(["a", "b"])
    lease = queue.lease(2, ttl=5)
    later(6)
    held = other.lease(1)
    with pytest.raises(LeaseExpiredError):
        ENDS[end](lease)
    assert (held.items, figures(other)) == (["a"], (1, 1, 0, 0))
    assert held.nack() == Nacked([0], [], [])


def test_the_limit_is_that_of_who_gives_back_at_that_moment(engine, consumer):
    other, queue = engine(max_attempts=2), consumer(max_attempts=5)
    other.push(["a", "b"])
    assert queue.lease(2).nack() == Nacked([0, 1], [], [])
    assert queue.lease(1).nack(delay=0) == Nacked([0], [], [])  # for ``other`` it would have been the last time
    assert other.lease(2).nack(delay=50) == Nacked([], [0, 1], [])
    other.dead.requeue()
    lease = queue.lease(2)
    queue.max_attempts = 1
    assert lease.nack(0) == Nacked([], [0], [])
    assert lease.nack(max_attempts=2) == Nacked([1], [], [])


def test_of_a_dead_letter_that_another_made_of_it_nothing_is_told(engine, consumer, end, later):
    other, queue = engine(max_attempts=1), consumer(max_attempts=9)
    other.push("a")
    lease = queue.lease(1, ttl=5)
    later(6)
    assert figures(other) == (0, 0, 0, 1)
    with pytest.raises(LeaseExpiredError):
        ENDS[end](lease)
    assert [letter.reason for letter in other.dead] == ["its lease expired"]


def test_of_what_was_cleared_or_dropped_meanwhile_nothing_is_told(engine, consumer, end):
    other, queue = engine(), consumer()
    other.push(["a", "b"])
    lease = queue.lease()
    other.clear()
    assert ENDS[end](lease) == USUAL[end]  # it did not wait
    other.push(["c", "d"])
    other.dead.requeue()
    lease = queue.lease()
    other.clear(all=True)
    with pytest.raises(LeaseExpiredError):
        ENDS[end](lease)
    other.push("e")
    lease = queue.lease()
    engine("beside").drop_queue("queue")
    with pytest.raises((GoneError, LeaseExpiredError)):
        ENDS[end](lease)


@pytest.mark.parametrize("limit", [{"items": 2}, {"bytes": 2}, {"seconds": 5}])
def test_what_retention_drops_as_it_comes_back_is_removed(engine, consumer, later, limit):
    codec = {"dumps": str.encode, "loads": bytes.decode}
    other, queue = engine(**codec), consumer(**codec)
    other.push(["a", "b", "c"])
    lease = queue.lease(3)
    if "seconds" in limit:
        later(6)
    else:
        other.push("d")
    other.retain(**limit)
    assert lease.nack(2, delay=50) == Nacked([2], [], [])  # it does not wait yet
    kept = [1] if "seconds" not in limit else []
    assert lease.nack() == Nacked(kept, [], [seq for seq in (0, 1) if seq not in kept])
    assert (len(other), other.stats().dropped, other.check()) == (2 * len(kept), 2 - len(kept), [])


def test_what_returns_behind_all_readers_is_told_of_by_the_number_that_it_had(engine, consumer):
    other, queue = engine(), consumer()
    reader = other.reader("r")
    other.push(["a", "b", "c"])
    lease = queue.lease(2)
    assert reader.pop_many(9) == ["c"]
    assert lease.nack(0) == Nacked([0], [], [])
    other.retain(1)
    other.push("d")
    assert lease.nack() == Nacked([1], [], [])
    assert list(other) == reader.peek_many(9) == ["b"]
    lease = queue.lease()
    assert reader.pop_many(9) == []
    other.push(["e", "f"])
    other.retain(2)
    other.push("g")
    assert lease.nack(max_attempts=2) == Nacked([], lease.seqs, [])
    assert (reader.peek_many(9), other.check()) == (["f", "g"], [])


def test_in_a_block_it_is_what_holds_if_the_block_does(engine, consumer):
    queue = consumer()
    engine().push("a", unique="k")
    lease = queue.lease() if consumer is engine else queue.lease().awaited.lease
    for kept in (False, True):
        with suppress(ZeroDivisionError), queue.transaction():
            queue.push("new", unique="k", replace=True)
            assert lease.reject() == Nacked([], [], [0])
            1 / kept
    assert (list(engine()), figures(engine())) == (["new"], (1, 0, 0, 0))


# --- workers


class Work:
    """A worker that fails at whatever it gets, and all that it tells of that."""

    def __init__(self, queue, meanwhile, n=1, retry=None, **options):
        self.failures, self.worked, self.retried, self.dead = 0, [], [], []
        self._n, self._meanwhile = n, meanwhile
        options = {"on_retry": self._told(self.retried), "on_dead": self._told(self.dead), **options}
        last = Retry(max_attempts=1, base=50.0, jitter=0.0)
        self.total = queue.work(
            self._handle, retry=retry or last, stop=self._is_over, progress=self.worked.append, **options
        )

    def _handle(self, _):
        self.failures += 1
        self._meanwhile()
        raise LookupError

    def _is_over(self):
        return self.failures >= self._n

    @staticmethod
    def _told(seqs):
        return lambda job, error: seqs.append((job.seq, type(error)))


def test_a_worker_tells_of_dead_letters_and_of_retries(engine, consumer, caplog):
    other, queue = engine(), consumer()
    other.push("a")
    work = Work(queue, lambda: None)
    assert (work.total, work.retried, work.dead) == (Worked(0, 0, 1), [], [(0, LookupError)])
    other.dead.requeue()
    work = Work(queue, lambda: None, retry=Retry(max_attempts=2, base=50.0, jitter=0.0))
    assert (work.total, work.retried, work.dead) == (Worked(0, 1, 0), [(0, LookupError)], [])
    assert work.worked == [Worked(0, 1, 0)]
    told = [record.getMessage() for record in caplog.records if record.name == "lmdbqueue.work"]
    assert told == [
        "items [0] of 'queue' failed, attempt 1: a dead letter now",
        "items [0] of 'queue' failed, attempt 1: tried again in 50.0 s",
    ]


@pytest.mark.parametrize("tries", [1, 2])
@pytest.mark.parametrize("what", ["replaced", "expired"])
def test_a_worker_tells_no_hook_of_an_item_that_left_meanwhile(engine, consumer, later, caplog, what, tries):
    other, queue = engine(), consumer()
    other.push("a", unique="k", expires=5)
    happens = {
        "replaced": lambda: other.push("b", unique="k", replace=True, delay=500),
        "expired": lambda: later(6),
    }
    work = Work(queue, happens[what], retry=Retry(max_attempts=tries, base=50.0, jitter=0.0))
    assert (work.retried, work.dead, work.total) == ([], [], Worked(0, 0, 0, 1))
    assert work.worked == [Worked(0, 0, 0, 1)]
    assert list(other.dead) == []
    (record,) = [record for record in caplog.records if record.name == "lmdbqueue.work"]
    assert record.getMessage().endswith("attempt 1: replaced, expired or dropped meanwhile")
    assert record.exc_info[0] is LookupError


def test_a_worker_tells_on_dead_of_an_item_that_expired_where_that_is_a_dead_letter(engine, consumer, later):
    other, queue = engine(), consumer(expired="dead")
    other.push("a", expires=5)
    work = Work(queue, lambda: later(6), retry=Retry(base=50.0))
    assert (work.retried, work.dead, work.total) == ([], [(0, LookupError)], Worked(0, 0, 1))
    assert [letter.reason for letter in other.dead] == ["it expired"]


def test_a_worker_tells_of_each_item_of_a_batch_what_became_of_that_one(engine, consumer, later):
    other, queue = engine(), consumer(expired="dead")
    other.push("a")
    other.push("b", unique="k")
    other.push("c", expires=5)
    other.push("d")

    def meanwhile():
        other.push("new", unique="k", replace=True, delay=500)
        later(6)

    work = Work(queue, meanwhile, items=4, retry=Retry(base=50.0))
    assert (work.retried, work.dead) == ([(0, LookupError), (3, LookupError)], [(2, LookupError)])
    assert (work.total, figures(other)) == (Worked(0, 2, 1, 1), (0, 0, 3, 1))


@pytest.mark.parametrize("how", ["taken", "dead", "cleared"])
def test_a_worker_whose_lease_was_over_tells_of_the_error_and_of_no_fate(engine, consumer, later, caplog, how):
    other, queue = engine(max_attempts=1 if how == "dead" else None), consumer()
    other.push("a")
    held = []

    def meanwhile():
        later(70)
        if how == "taken":
            held.append(other.lease())
        elif how == "dead":
            assert figures(other) == (0, 0, 0, 1)
        else:
            other.clear(all=True)

    with caplog.at_level(logging.WARNING, "lmdbqueue.work"):
        work = Work(queue, meanwhile)
    assert (work.retried, work.dead, work.total, work.worked) == ([], [], Worked(), [])
    failed, late = [record for record in caplog.records if record.name == "lmdbqueue.work"]
    assert failed.getMessage() == "items [0] of 'queue' failed, attempt 1: not given back"
    assert (failed.exc_info[0], "is over" in late.getMessage()) == (LookupError, True)
    assert figures(other) == {"taken": (0, 1, 0, 0), "dead": (0, 0, 0, 1), "cleared": (0, 0, 0, 0)}[how]


def test_a_worker_uses_the_limit_that_holds_when_the_handler_has_failed(engine, consumer):
    other, queue = engine(), consumer(max_attempts=9)
    other.push("a")

    def meanwhile():
        queue.max_attempts = 1

    work = Work(queue, meanwhile, retry=Retry(max_attempts=None, base=50.0))
    assert (work.retried, work.dead, work.total) == ([], [(0, LookupError)], Worked(0, 0, 1))
