"""What was taken for a caller who was cancelled is put back as it was, on every engine, and on both alike."""

import random
import threading
from operator import attrgetter

import pytest

from lmdbqueue import Full, OptionError


def take(queue, n=1):
    """Take items as ``get`` of an event loop does; return what puts them back."""
    entries, _ = queue._head.take(n, 0)
    return lambda: queue._engine.put_back(entries)


def test_an_item_comes_back_with_its_key_attempts_headers_and_times(queue, later):
    seq = queue.push("a", unique="k", headers={"to": "me"}, expires=100)
    queue.push("b")
    queue.lease(1).nack(reason="no")
    later(5)
    put_back = take(queue, 2)
    assert (queue.find("k"), list(queue)) == (None, [])
    put_back()
    assert queue.check() == []
    assert (queue.find("k"), list(queue)) == (seq, ["a", "b"])
    again = queue.push("c", unique="k")
    assert (again, again.is_stored) == (seq, False)
    assert queue.stats().oldest_age == pytest.approx(5, abs=2)
    with queue.lease(1) as lease:
        assert (lease.seqs, lease.attempts, lease.headers) == ([seq], [2], [{"to": "me"}])
        lease.nack()
    later(96)
    assert (list(queue), queue.stats().expired, queue.find("k")) == (["b"], 1, None)
    assert queue.check() == []


def test_a_key_that_another_item_has_got_stays_with_that_one(queue):
    queue.push("a", unique="k")
    put_back = take(queue)
    seq = queue.push("b", unique="k")
    put_back()
    assert queue.check() == []
    assert (queue.find("k"), list(queue)) == (seq, ["a", "b"])
    assert queue.pop() == "a"
    assert queue.find("k") == seq
    assert queue.cancel("k")
    assert (queue.find("k"), list(queue), queue.check()) == (None, [], [])


def test_a_key_that_another_item_is_just_getting_stays_with_that_one(queue, engine):
    queue.push("a", unique="k")
    put_back = take(queue)
    other = engine()
    has_pushed, can_commit = threading.Event(), threading.Event()

    def push():
        with other.transaction():
            other.push("b", unique="k")
            has_pushed.set()
            can_commit.wait(30)

    threads = [threading.Thread(target=push), threading.Thread(target=put_back)]
    threads[0].start()
    has_pushed.wait(30)
    threads[1].start()
    threads[1].join(0.1)
    can_commit.set()
    for thread in threads:
        thread.join(30)
    assert (queue.find("k"), list(queue), queue.check()) == (1, ["a", "b"], [])


def test_what_is_put_back_when_its_time_is_over_goes(engine, later):
    queue = engine(expired="dead")
    queue.push("a", unique="k", expires=5)
    put_back = take(queue)
    put_back()
    later(6)
    assert (len(queue), len(queue.dead), queue.find("k"), queue.check()) == (0, 1, None, [])


def test_readers_do_not_count_what_comes_back_before_they_meet_it(queue):
    queue.push(["a", "b", "c", "d"])
    late, early = queue.reader("late"), queue.reader("early")
    early.pop()
    put_back = take(queue, 2)
    assert (late.skipped, early.skipped) == (2, 1)
    early.pop()
    put_back()
    assert queue.check() == []
    assert (late.skipped, early.skipped) == (0, 1)
    assert (late.pop(9), early.pop(9)) == (["a", "b", "c", "d"], ["d"])
    assert (len(queue), queue.check()) == (0, [])


def test_what_comes_back_cannot_exceed_what_is_retained(engine):
    queue = engine(dumps=bytes, loads=bytes)
    reader = queue.reader("r")
    queue.retain(3, seconds=100)
    queue.push([b"0", b"1", b"2"], unique=["k", None, None])
    put_back = take(queue, 2)
    queue.push([b"3", b"4"])
    put_back()
    assert queue.check() == []
    assert (list(queue), queue.stats().dropped, queue.find("k"), reader.skipped) == ([b"2", b"3", b"4"], 2, None, 2)
    put_back = take(queue)
    queue.retain(bytes=2)
    queue.push(b"5")
    put_back()
    assert (list(queue), queue.stats().dropped, queue.check()) == ([b"4", b"5"], 4, [])
    put_back = take(queue, 2)
    put_back()
    assert (list(queue), queue.check()) == ([b"4", b"5"], [])
    queue.retain(bytes=1)
    assert (list(queue), queue.check()) == ([b"5"], [])


def test_an_item_with_a_priority_and_a_full_queue(engine):
    queue = engine(maxsize=3)
    queue.push("b")
    queue.push("a", priority=-1, unique="k")
    queue.push("c", priority=5)
    put_back = take(queue, 2)
    queue.push(["d", "e"])
    with pytest.raises(Full):
        queue.push("f")
    put_back()
    assert (list(queue), queue.check()) == (["a", "b", "d", "e", "c"], [])
    assert queue.find("k") is not None
    with pytest.raises(Full):
        queue.push("f")
    assert queue.pop_many(9) == ["a", "b", "d", "e", "c"]
    assert queue.check() == []


class Both:
    """The same calls on both engines; what one answers the other must."""

    def __init__(self, queues):
        self.queues = queues
        self.taken = []
        self.readers = []

    def ask(self, fn):
        """Return what a call answers on both, an error as its class."""
        answers = []
        for queue in self.queues:
            try:
                answers.append(fn(queue))
            except (Full, OptionError, KeyError) as error:
                answers.append(type(error).__name__)
        assert answers[0] == answers[1]
        return answers[0]

    def number(self, seq):
        """Return what both engines say of the number of an item: those in classes differ."""
        return seq if not self.has_classes or seq is None else True

    def look(self):
        """Compare all that can be seen, and prove both whole."""
        self.ask(lambda queue: queue.check() or list(queue))
        self.ask(lambda queue: [self.number(queue.find(key)) for key in KEYS])
        self.ask(lambda queue: [(each.name, each.position, each.lag, each.skipped) for each in queue.readers()])
        self.ask(lambda queue: figures(queue.stats()))


KEYS = ["k0", "k1", "k2"]
figures = attrgetter("waiting", "leased", "dead", "pushed", "dropped", "expired")


def _push(both, chance, number):
    n = chance.randrange(1, 4)
    keys = [chance.choice([None, *KEYS]) for _ in range(n)]
    how = {"replace": chance.random() < 0.3}
    how["expires"] = chance.choice([None, None, 3600])
    how["headers"] = chance.choice([None, {"a": "b"}])
    if both.has_classes:
        how["priority"] = chance.choice([0, 0, -1, 2])
    items = [number * 10 + each for each in range(n)]
    both.ask(lambda queue: [(both.number(int(each)), each.is_stored) for each in queue.push(items, unique=keys, **how)])


def _take(both, chance, _):
    n = chance.randrange(1, 4)
    found = [queue._head.take(n, 0) for queue in both.queues]
    assert found[0][1] == found[1][1]
    if found[0][1]:
        both.taken.append([entries for entries, _ in found])


def _put_back(both, chance, _):
    if both.taken:
        found = both.taken.pop(chance.randrange(len(both.taken)))
        for queue, entries in zip(both.queues, found, strict=True):
            queue._engine.put_back(entries)


def _give_back(both, chance, _):
    n, acked = chance.randrange(1, 4), chance.random() < 0.2

    def call(queue):
        lease = queue.lease(n)
        seen = lease.items, lease.attempts, lease.headers
        lease.ack(lease.seqs[:acked])
        lease.nack()
        return seen

    both.ask(call)


def _read(both, chance, _):
    name, n = chance.choice(["r0", "r1"]), chance.randrange(1, 4)
    if not both.has_classes:
        both.ask(lambda queue: queue.reader(name).pop_many(n))


def _retain(both, chance, _):
    limit = chance.choice([{"items": 6}, {"bytes": 60}, {}])
    if not both.has_classes:
        both.ask(lambda queue: queue.retain(**limit))


def _cancel(both, chance, _):
    key = chance.choice(KEYS)
    both.ask(lambda queue: queue.cancel(key))


def _drop_reader(both, _chance, _):
    both.ask(lambda queue: queue.drop_reader("r1"))


CALLS = [_push] * 6 + [_take] * 4 + [_put_back] * 4 + [_give_back] * 2 + [_read] * 3 + [_retain, _cancel, _drop_reader]


@pytest.mark.parametrize("seed", range(4))
def test_both_engines_put_back_alike_amid_other_verbs(open_queue, open_postgres, seed):
    chance = random.Random(seed)  # noqa: S311
    both = Both([open_queue(durability="interval", interval=3600.0, maxsize=20), open_postgres(maxsize=20)])
    both.has_classes = seed % 2 == 1
    for number in range(60):
        chance.choice(CALLS)(both, chance, number)
        both.look()
    while both.taken:
        _put_back(both, chance, 0)
        both.look()
    both.ask(lambda queue: queue.pop_many(99))
    both.look()
