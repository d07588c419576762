"""What a push may say of its items: priority, expiry, headers, which of two with a key wins.

On every engine, and awaited.
"""

import pickle
import re
import time

import pytest

from lmdbqueue import LeaseExpiredError, OptionError


@pytest.fixture(params=["called", "awaited"])
def way(request):
    """Give how the verbs are used."""
    return request.param


@pytest.fixture
def engine(engine, way, request):
    """Open queues of either engine, whose verbs are used in either way."""
    return engine if way == "called" else request.getfixturevalue("awaited")(engine)


def test_headers_come_back_with_leases_and_dead_letters(queue):
    before = time.time()
    queue.push("a", headers={"traceparent": "00-é", "empty": ""})
    queue.push_many(["b", "c"], headers={"batch": "1"})
    queue.push("plain")
    lease = queue.lease(10)
    assert lease.headers == [{"traceparent": "00-é", "empty": ""}, {"batch": "1"}, {"batch": "1"}, {}]
    assert all(before - 1 <= each <= time.time() + 1 for each in lease.pushed_at)
    lease.reject([0, 3])
    letters = list(queue.dead)
    queue.dead.delete()  # what was read of them stays
    assert [letter.headers for letter in letters] == [{"traceparent": "00-é", "empty": ""}, {}]
    lease.nack()
    assert lease.headers[1] == {"batch": "1"}
    assert queue.lease(1).headers == [{"batch": "1"}]
    assert (queue.lease(0).headers, queue.lease(0).pushed_at) == ([], [])
    assert queue.check() == []


NO_OPTIONS = [
    ({"headers": {"a": 1}}, TypeError),
    ({"headers": {1: "a"}}, TypeError),
    ({"headers": {"a": "x" * 65_536}}, ValueError),
    ({"priority": 128}, ValueError),
    ({"priority": -129}, ValueError),
    ({"priority": 1.5}, TypeError),
    ({"expires": 0}, ValueError),
    ({"expires": 5, "delay": 5}, ValueError),
    ({"expires": float("inf")}, ValueError),
    ({"expires": float("nan")}, ValueError),
    *(({"delay": delay}, ValueError) for delay in (-1, 1e11, float("inf"), float("nan"))),
    ({"replace": True}, ValueError),
    ({"unique": ["a", "b"]}, TypeError),
    ({"unique": 5}, TypeError),
]


def test_what_cannot_be_said_of_an_item_is_refused(queue):
    for wrong, error in NO_OPTIONS:
        with pytest.raises(error):
            queue.push("a", **wrong)
    assert queue.stats().tail == 0


def test_lower_priorities_leave_sooner_and_each_in_its_order(queue):
    queue.push_many(["n1", "n2"])
    queue.push("late", priority=127)
    queue.push_many(["u1", "u2"], priority=-128)
    queue.put("n3")
    queue.put("m", priority=-1)
    expected = ["u1", "u2", "m", "n1", "n2", "n3", "late"]
    assert list(queue) == queue.peek_many(10) == expected
    with queue.lease(2) as lease:
        assert lease.items == ["u1", "u2"]
        lease.nack()
    assert queue.pop_many(3) == ["u1", "u2", "m"]
    assert [queue.get() for _ in range(4)] == expected[3:]
    assert queue.check() == []


def test_every_verb_keeps_the_order_of_priorities(queue, engine):
    for seq in range(3):
        queue.push(f"n{seq}")
        queue.push(f"u{seq}", priority=-7, unique=f"k{seq}")
        queue.put(f"l{seq}", priority=7)
    urgent, normal, late = ([f"{each}{seq}" for seq in range(3)] for each in "unl")
    assert queue.find("k0") < queue.find("k1") < queue.find("k2") < 0
    assert not queue.push("u3", priority=-7, unique="k1").is_stored

    for end in ("nack", "reject", "undone"):  # what comes back stands where it stood
        lease = queue.lease(4)
        assert lease.items == [*urgent, "n0"]
        lease.nack() if end == "nack" else lease.reject() if end == "reject" else lease.extend(None)
        if end == "reject":
            assert queue.peek_many(9) == [*normal[1:], *late]
            assert queue.dead.requeue(lease.seqs[:1]) == 1
            assert queue.peek() == "u0"
            assert queue.dead.requeue() == 3
        elif end == "undone":
            lease.nack(delay=0)
        assert list(queue) == [*urgent, *normal, *late]

    assert (queue.cancel("k1"), queue.cancel("k1")) == (True, False)
    assert queue.push("first", priority=-8, unique="k2", replace=True).is_stored
    assert list(queue) == ["first", "u0", *normal, *late]
    assert (queue.pop(), queue.get(), queue.pop_many(2)) == ("first", "u0", ["n0", "n1"])

    other = engine("other")
    assert queue.move(3, to=other) == 3
    other.push("between", priority=6)
    assert list(other) == ["n2", "between", "l0", "l1"]
    worked = []
    other.work(worked.append, stop=lambda: len(worked) == 4)
    assert (worked, list(queue), len(other)) == (["n2", "between", "l0", "l1"], ["l2"], 0)
    assert queue.check() == other.check() == []


@pytest.mark.parametrize("priority", [-128, -65, 64, 127])
def test_an_item_of_any_priority_is_settled_by_its_number(priority, queue):
    queue.push_many(["a", "b", "c", "d"], priority=priority)
    lease = queue.lease(4)
    lease.ack(lease.seqs[:1])
    lease.nack(lease.seqs[1:2])
    lease.reject(lease.seqs[2:3])
    queue.dead.delete(lease.seqs[2])
    assert len(queue.dead) == 0
    lease.nack()
    assert queue.pop(4) == ["b", "d"]


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("priority", 128, "a whole number from -128 (leaves first) to 127, not 128"),
        (
            "headers",
            {"a": "x" * 65_536},
            "a mapping of str to str, each at most 65,535 bytes of UTF-8, or None, not {'a'",
        ),
    ],
)
def test_a_refusal_says_what_an_option_must_be(queue, option, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"'{option}' must be {allowed}")):
        queue.push("a", **{option: value})


@pytest.mark.parametrize("what", ["readers", "retention"])
def test_a_priority_beside_readers_or_retention_is_refused_and_the_other_way_round(engine, what):
    def begin(queue):
        return queue.reader("r") if what == "readers" else queue.retain(10)

    queue = engine()
    begin(queue)
    for more in ({}, {"delay": 5}, {"unique": "k"}, {"unique": "k", "replace": True}):
        queue.push("plain", unique="k")
        with pytest.raises(
            OptionError, match=f"has (named )?{what}, which.*cannot have a priority: use another"
        ) as caught:
            queue.push("a", priority=1, **more)
        assert (caught.value.option, queue.stats().tail, queue.find("k")) == ("priority", 1, 0)
        assert caught.value.name == queue.name
    other = engine("other")
    other.push("b")
    other.push("c", priority=1)
    assert other.move(1, to=queue) == 1
    with pytest.raises(OptionError, match=f"^queue '{queue.name}' .*{what}"):
        other.move(1, to=queue)
    assert (list(queue), list(other)) == (["plain", "b"], ["c"])
    with pytest.raises(OptionError, match="had items with a priority") as caught:
        begin(other)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert caught.value.name == other.name
    other.retain()
    assert queue.check() == other.check() == []


def test_what_has_expired_is_not_delivered_and_is_counted(queue, later):
    queue.push("stale", expires=5)
    queue.push("fresh", expires=500)
    queue.push("later", delay=10, expires=20)
    queue.push("plain")
    later(6)
    assert queue.peek_many(10) == ["fresh", "plain"]
    assert queue.stats().expired == 1
    later(30)
    assert (list(queue), len(queue), queue.stats().expired) == (["fresh", "plain"], 2, 2)
    assert queue.check() == []


def test_what_has_expired_is_a_dead_letter_where_the_queue_is_asked_for_that(engine, later):
    queue = engine(expired="dead")
    queue.push("waits", expires=5)
    queue.push("delayed", delay=2, expires=5)
    queue.push("has a key", expires=5, unique="k")
    queue.push("held", expires=5)
    queue.push("held", expires=5)
    queue.push("replaced", expires=5, unique="r")
    queue.push("plain")
    leases = [queue.lease(1) for _ in range(5)]
    assert [lease.items for lease in leases] == [["waits"], ["has a key"], ["held"], ["held"], ["replaced"]]
    leases.pop(0).nack()
    leases.pop(0).nack()
    assert queue.push("replacing", unique="r", replace=True).is_stored
    later(6)
    again = queue.push("again", unique="k")
    assert (again.is_stored, queue.find("k")) == (True, again)
    for lease in leases:
        lease.nack(max_attempts=1)
    assert sorted(letter.item for letter in queue.dead) == ["delayed", "has a key", "held", "held", "waits"]
    assert {letter.reason for letter in queue.dead} == {"it expired"}
    assert queue.peek_many(9) == ["plain", "replacing", "again"]
    assert (queue.stats().expired, queue.stats().dead) == (5, 5)
    later(500)
    assert len(queue.dead) == 5
    assert queue.dead.requeue([letter.seq for letter in queue.dead if letter.item == "waits"]) == 1
    later(500)
    assert queue.peek_many(9) == ["waits", "plain", "replacing", "again"]
    queue.expired = "drop"
    queue.push("late", expires=5)
    later(6)
    assert (queue.peek_many(9)[-1], len(queue.dead), queue.stats().expired) == ("again", 4, 6)
    assert queue.check() == []
    with pytest.raises(ValueError, match="'drop' or 'dead'"):
        engine("other", expired="keep")


def test_of_a_call_with_a_key_twice_the_newest_replaces(queue):
    queue.push("old", unique="k")
    pushed = queue.push(["a", "b", "c", "d"], unique=["k", None, "k", "l"], replace=True)
    assert [(int(each), each.is_stored) for each in pushed] == [(1, True), (2, True), (1, True), (3, True)]
    assert (list(queue), queue.find("k"), queue.check()) == (["c", "b", "d"], 1, [])


def test_a_dead_letter_does_not_expire(queue, later):
    queue.push_many(["a", "b", "c"], expires=5)
    queue.dead_letter(0)
    lease = queue.lease(2)
    lease.reject([1])
    lease.nack(max_attempts=1)
    later(500)
    assert ([letter.item for letter in queue.dead], queue.stats().expired) == (["a", "b", "c"], 0)
    assert queue.check() == []


def test_the_newest_item_with_a_key_wins_and_its_delay_begins_anew(queue, later):
    assert queue.push("old", unique="k", replace=True, delay=10) == 0
    later(8)
    number = queue.push("new", unique="k", replace=True, delay=10)
    assert (number.is_stored, queue.find("k")) == (True, number)
    later(8)
    assert queue.peek_many(9) == []
    later(3)
    lease = queue.lease()
    assert lease.items == ["new"]
    behind = queue.push("behind", unique="k", replace=True)
    assert behind.is_stored
    lease.ack()
    assert queue.peek_many(9) == ["behind"]
    again = queue.push("again", unique="k")
    assert (again == behind, again.is_stored) == (True, False)
    assert queue.check() == []


def test_what_replaces_a_leased_item_waits_behind_it_whatever_becomes_of_that(queue, later):
    for end in ("ack", "nack", "reject", "expire"):
        assert queue.push("old", unique="k").is_stored
        lease = queue.lease(1, ttl=5)
        first = queue.push("first", unique="k", replace=True, delay=10)
        second = queue.push_many(["plain", "second"], unique=[None, "k"], replace=True, delay=10)[1]
        assert (first.is_stored, second.is_stored, queue.find("k")) == (True, True, second)
        assert not queue.push("third", unique="k").is_stored
        later(4)
        if end == "expire":
            later(3)
            assert queue.peek_many(9) == []
            with pytest.raises(LeaseExpiredError):
                lease.ack()
        else:
            getattr(lease, end)()
        assert (list(queue), queue.find("k")) == ([], second)  # the old one never comes before the new one
        later(7)
        assert queue.pop_many(9) == ["plain", "second"]
        assert (queue.find("k"), len(queue.dead)) == (None, 0)
    assert queue.check() == []


def killed(queue, how, later):
    """Make the first item, which has a key, a dead letter."""
    if how == "set aside":
        queue.dead_letter(next(iter(queue.peek_many(1))))
    elif how == "rejected":
        queue.lease(1).reject()
    elif how == "attempts":
        queue.lease(1).nack(max_attempts=1)
    elif how == "ttl":
        queue.lease(1, ttl=5)
        queue.max_attempts = 1
        later(6)
        len(queue)
        queue.max_attempts = None
    else:
        later(6)
        len(queue)


@pytest.mark.parametrize("how", ["set aside", "rejected", "attempts", "ttl", "expired"])
def test_a_dead_letter_that_waits_again_has_its_key_and_never_makes_two_with_one(engine, later, how):
    queue = engine(expired="dead")
    options = {"expires": 5} if how == "expired" else {}
    for seq in range(2):
        assert queue.push(seq, unique="k", **options).is_stored
        killed(queue, how, later)
    assert ([letter.item for letter in queue.dead], queue.find("k")) == ([0, 1], None)
    new = queue.push("new", unique="k")
    assert (new.is_stored, queue.dead.requeue(), queue.dead.requeue([0, 1])) == (True, 0, 0)
    held = queue.lease(1)
    assert queue.dead.requeue() == 0
    held.nack(delay=50)
    assert queue.dead.requeue() == 0
    assert queue.cancel("k")
    assert queue.dead.requeue() == 1  # the first, and no other beside it
    assert (queue.find("k"), list(queue), [letter.item for letter in queue.dead]) == (0, [0], [1])
    again = queue.push("again", unique="k")
    assert (again, again.is_stored) == (0, False)
    assert queue.push("last", unique="k", replace=True).is_stored
    assert (list(queue), queue.dead.requeue(1)) == (["last"], 0)
    assert (queue.pop(), queue.dead.requeue([1]), list(queue)) == ("last", 1, [1])
    assert queue.check() == []


def test_a_dead_letter_waits_again_when_the_item_with_its_key_has_expired(queue, later):
    queue.push("dead", unique="k")
    queue.dead_letter(0)
    queue.push("stale", unique="k", expires=5)
    later(6)
    assert (queue.dead.requeue(), list(queue), queue.find("k")) == (1, ["dead"], 0)
    assert queue.check() == []


def test_clear_removes_all_that_waits_as_of_now(engine, later):
    queue, other = engine(), engine()
    queue.push("due", delay=5)
    queue.push("held")
    queue.push("plain")
    queue.push("later", delay=500)
    lease = other.lease(1, ttl=5)
    assert lease.items == ["held"]
    later(6)
    queue.clear()
    assert (list(queue), queue.stats().delayed, queue.stats().leased, queue.stats().removed) == ([], 1, 0, 3)
    queue.push("due", delay=5)
    later(6)
    with queue.transaction():
        queue.clear()
    assert list(queue) == []
    assert queue.check() == []
