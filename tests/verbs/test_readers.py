"""Named readers, on every engine: each reads the whole queue at its own pace, and what all have passed goes."""

import math
import os
import pickle
import threading
import time

import pytest
from processes import DEADLINE, Sleeps, eventually, forked, status_of

from lmdbqueue import ClosedError, DecodeError, Empty, Full, GoneError, ShutDown, TransactionError


@pytest.fixture
def queue(engine):
    queue = engine()
    queue.push(list("abcdef"))
    return queue


@pytest.fixture
def billing(queue):
    return queue.reader("billing")


# --- reading


def test_each_reader_reads_all_items_at_its_own_pace(queue, billing):
    audit = queue.reader("audit")
    assert billing.peek() == "a"
    assert billing.pop(2) == ["a", "b"]
    assert billing.peek(9) == list("cdef")
    assert audit.peek(2) == ["a", "b"]
    assert audit.delete(4) == 4
    assert (len(billing), audit.count()) == (4, 2)
    assert billing.delete(9) == 4
    assert billing.pop() is None
    assert billing.pop(2) == []
    assert audit.pop(3) == ["e", "f"]


def test_a_reader_is_where_it_was_when_it_is_opened_again(engine):
    with engine() as queue:
        queue.push([1, 2, 3])
        queue.reader("billing", start="newest").seek(1)
    with engine() as queue:
        assert queue.reader("billing", start="newest").peek(5) == [2, 3]


@pytest.mark.parametrize(
    ("start", "seen"), [("oldest", "abcdefg"), ("newest", "g"), (0, "abcdefg"), (4, "efg"), (9, "")]
)
def test_a_new_reader_begins_where_it_is_told(queue, start, seen):
    reader = queue.reader("billing", start=start)
    queue.push("g")
    assert reader.peek(10) == list(seen)


def test_what_is_no_place_is_refused(queue, billing):
    for start in ("begin", -1, 1.5, None, 1 << 63):
        with pytest.raises((ValueError, TypeError), match="'oldest', 'newest' or the number of an item"):
            queue.reader("other", start=start)
        with pytest.raises((ValueError, TypeError), match="'oldest', 'newest' or the number of an item"):
            billing.seek(start)
    assert [each.name for each in queue.readers()] == ["billing"]


def test_blocking_verbs_of_a_reader_wait_for_what_it_has_not_passed(queue, billing):
    billing.delete(6)
    with pytest.raises(Empty):
        billing.peek(blocking=True, timeout=0.01)
    found = []
    thread = threading.Thread(target=lambda: found.append(billing.pop(2, blocking=True)))
    sleeps = Sleeps(queue)
    thread.start()
    eventually(lambda: sleeps.count)
    queue.push("g")
    queue.push("h")
    thread.join()
    assert found == [["g", "h"]]


def test_a_loop_over_a_reader_passes_each_item_when_it_asks_for_the_next(queue, billing):
    seen = []
    for item in billing:
        seen.append((item, billing.position))
        if item == "c":
            break
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert billing.peek() == "c"
    queue.shutdown()
    assert list(billing) == list("cdef")
    assert len(billing) == 0


def test_two_who_share_a_reader_get_each_item_once(queue):
    one, other = queue.reader("billing"), queue.reader("billing")
    assert [one.pop(), other.pop(), one.pop(2), other.pop()] == ["a", "b", ["c", "d"], "e"]
    loop = iter(one)
    assert next(loop) == "f"
    assert other.pop() == "f"
    queue.push(["g", "h"])
    assert next(loop) == "g"


def test_an_item_that_cannot_be_decoded_stops_a_reader_until_it_is_deleted(engine):
    queue = engine(dumps=bytes, loads=lambda data: data.decode("ascii"))
    queue.push([b"a", b"\xff", b"b"])
    reader = queue.reader("billing")
    assert reader.pop() == "a"
    with pytest.raises(DecodeError):
        reader.pop()
    assert reader.delete() == 1
    assert reader.pop() == "b"


# --- positions


def test_seek_goes_back_to_what_is_still_there_and_forward(queue, billing):
    queue.reader("slow")
    billing.delete(5)
    billing.seek(2)
    assert (billing.position, billing.peek(2)) == (2, ["c", "d"])
    billing.seek("newest")
    assert (billing.position, len(billing), billing.peek()) == (6, 0, None)
    billing.seek("oldest")
    assert (billing.position, billing.peek()) == (0, "a")
    assert billing.skipped == 0


def test_readers_tells_of_all_of_them(queue, billing, later):
    audit = queue.reader("audit", start="newest")
    later(5)
    billing.delete(2)
    found = queue.readers()
    assert [(each.name, each.position, each.lag, each.skipped) for each in found] == [
        ("audit", 6, 0, 0),
        ("billing", 2, 4, 0),
    ]
    assert 5 <= found[1].seen - found[0].seen < 5 + DEADLINE
    assert abs(found[1].seen - time.time()) < 5 + DEADLINE
    assert audit.position == 6


def test_a_dropped_reader_is_gone_for_all_who_have_it(queue, billing):
    queue.reader("slow")
    billing.delete(4)
    with pytest.raises(KeyError):
        queue.drop_reader("nobody")
    queue.drop_reader("slow")
    assert list(queue) == ["e", "f"]
    queue.drop_reader("billing")
    for verb in (
        billing.peek,
        billing.pop,
        billing.delete,
        billing.count,
        lambda: billing.seek(1),
        lambda: billing.position,
    ):
        with pytest.raises(GoneError, match="billing"):
            verb()
    assert list(queue) == ["e", "f"]
    assert queue.reader("billing").peek() == "e"


def test_a_closed_reader_refuses_and_the_reader_stays(queue, billing):
    found = []

    def wait():
        with pytest.raises(ClosedError, match="billing"):
            billing.pop(7, blocking=True)
        found.append(True)

    thread = threading.Thread(target=wait)
    sleeps = Sleeps(queue)
    thread.start()
    eventually(lambda: sleeps.count)
    billing.close()
    thread.join()
    assert found == [True]
    billing.close()
    verbs = (billing.peek, billing.pop, billing.delete, billing.count, lambda: billing.seek(1), lambda: billing.skipped)
    for verb in (*verbs, lambda: next(iter(billing))):
        with pytest.raises(ClosedError):
            verb()
    assert "closed" in repr(billing)
    with queue.reader("billing") as again:
        assert again.peek() == "a"
    queue.close()
    with pytest.raises(ClosedError):
        queue.reader("billing")


def test_a_reader_goes_on_in_a_child_and_by_a_pickle(billing):
    assert billing.pop() == "a"

    def child():
        assert billing.pop() == "b"

    assert status_of(forked(child)) == 0
    with pickle.loads(pickle.dumps(billing)) as again:
        assert again.pop() == "c"
        again.queue.close()
    assert billing.pop() == "d"


def test_a_shut_down_queue_ends_the_waits_of_its_readers(queue, billing):
    queue.shutdown()
    assert billing.pop(6, blocking=True) == list("abcdef")
    with pytest.raises(ShutDown):
        billing.pop(blocking=True)


# --- what goes by itself


def test_what_all_readers_have_passed_goes_with_the_move_of_the_last(queue, billing):
    audit = queue.reader("audit")
    billing.delete(4)
    assert list(queue) == list("abcdef")
    assert audit.pop(2) == ["a", "b"]
    assert list(queue) == list("cdef")
    audit.seek("newest")
    assert list(queue) == ["e", "f"]
    billing.delete(2)
    assert queue.peek() is None
    assert (billing.skipped, audit.skipped) == (0, 0)


def test_a_queue_without_readers_keeps_what_nobody_took(queue):
    queue.reader("billing")
    queue.drop_reader("billing")
    assert list(queue) == list("abcdef")


def test_what_is_removed_from_the_queue_is_skipped_by_who_had_not_passed_it(queue, billing):
    audit = queue.reader("audit")
    billing.delete(2)
    assert queue.pop(3) == ["a", "b", "c"]
    assert (billing.skipped, audit.skipped) == (1, 3)
    assert (billing.peek(), audit.peek(), len(billing), len(audit)) == ("d", "d", 3, 3)
    queue.delete()
    queue.clear()
    assert (billing.skipped, audit.skipped) == (4, 6)
    queue.push("g")
    assert (billing.pop(), audit.pop()) == ("g", "g")
    assert queue.peek() is None


def test_moving_items_to_another_queue_is_removing_them(engine, queue, billing):
    other = engine("other")
    follower = other.reader("follower", start="newest")
    assert queue.move(2, to=other) == 2
    assert billing.skipped == 2
    assert follower.pop(2) == ["a", "b"]


def test_what_is_acknowledged_or_dead_is_skipped_once(engine):
    queue = engine(max_attempts=1)
    queue.push(list("abcdef"))
    before, behind = queue.reader("before"), queue.reader("behind")
    lease = queue.lease(4)
    assert behind.pop() == "e"
    assert (before.skipped, behind.skipped) == (0, 4)
    lease.ack(0)
    lease.nack(1, reason="no")
    assert [letter.seq for letter in queue.dead] == [1]
    assert (before.skipped, behind.skipped) == (2, 4)
    lease.ack(2)
    queue.clear(all=True)
    assert (before.skipped, behind.skipped) == (6, 5)


@pytest.mark.parametrize("expired", ["drop", "dead"])
def test_what_expires_while_it_is_delayed_is_not_skipped(engine, later, expired):
    queue = engine(expired=expired)
    reader = queue.reader("r")
    queue.push("a", expires=1000)
    queue.lease(1).nack(delay=2000)
    later(1500)
    assert (len(queue), queue.stats().expired, reader.skipped, queue.check()) == (0, 1, 0, [])


def test_what_leaves_when_its_lease_ends_is_skipped(engine, later):
    queue = engine()
    reader = queue.reader("r")
    queue.push(["a", "b"], unique=["k", None], expires=1000)
    lease = queue.lease(2)
    queue.push("c", unique="k", replace=True)
    later(1500)
    lease.nack()
    assert (list(queue), queue.stats().expired, reader.skipped, queue.check()) == (["c"], 1, 2, [])


def test_an_undone_move_of_the_last_reader_brings_back_all_that_was_known(engine, later):
    queue = engine()
    reader = queue.reader("r")
    queue.push("a", unique="k", headers={"to": "me"}, expires=1000)
    queue.lease(1).nack()
    entries = reader._head.first(1)
    _, move = reader._head.pass_by(entries)
    assert (list(queue), queue.find("k")) == ([], None)
    assert queue._engine.reader("r").retreat(move, entries)
    assert queue.find("k") == 0
    with queue.lease(1) as lease:
        assert (lease.items, lease.headers, lease.attempts) == (["a"], [{"to": "me"}], [2])
        lease.nack()
    later(1500)
    assert (list(queue), queue.stats().expired, queue.check()) == ([], 1, [])


def test_what_a_lease_gives_back_is_read_by_who_has_not_passed_its_place(queue, billing):
    behind = queue.reader("behind")
    lease = queue.lease(2)
    assert behind.pop() == "c"
    lease.nack()
    assert (billing.pop(3), billing.skipped) == (["a", "b", "c"], 0)
    assert (behind.pop(), behind.skipped) == ("d", 2)
    assert list(queue) == list("def")


@pytest.mark.parametrize("how", ["nack", "ttl", "close", "unlease", "put back", "requeue"])
def test_what_is_given_back_behind_all_readers_goes_to_the_tail_where_each_meets_it(engine, later, how):
    queue, other = engine(), engine()
    queue.push("a", unique="k", headers={"to": "me"}, expires=10_000)
    queue.push(["b", "c", "d"])
    billing, slow = queue.reader("billing"), queue.reader("slow")
    lease = None
    if how == "put back":
        entries, _ = other._head.take(1, 0)
    else:
        lease = other.lease(1, ttl=1000)
        pushed_at = lease.pushed_at
    assert billing.pop_many(2) == slow.pop_many(2) == ["b", "c"]
    if how == "nack":
        lease.nack()
    elif how == "close":
        other.close()
    elif how == "unlease":
        other._engine.unlease(lease._token)
    elif how == "put back":
        other._engine.put_back(entries)
    elif how == "requeue":
        lease.reject()
        assert other.dead.requeue() == 1
    else:
        later(1001)
    assert (list(queue), queue.find("k"), billing.position) == (["d", "a"], 4, 3)
    assert queue.push("e") == 5
    assert billing.pop_many(9) == ["d", "a", "e"]
    assert slow.pop_many(1) == ["d"]
    assert list(queue) == ["a", "e"]
    again = queue.lease(1)
    tried = 2 if how in {"nack", "ttl", "close"} else 1
    assert (again.items, again.attempts, again.headers) == (["a"], [tried], [{"to": "me"}])
    if how in {"nack", "close", "unlease", "requeue"}:
        assert again.pushed_at == pushed_at
    again.nack()  # to its place, which ``slow`` has not passed
    assert (queue.find("k"), slow.peek_many(9), queue.check()) == (4, ["a", "e"], [])
    stats = queue.stats()
    assert (stats.pushed, stats.removed, stats.waiting, stats.leased) == (6, 4, 2, 0)
    later(10_001)
    assert slow.peek_many(9) == (["a", "e"] if how == "requeue" else ["e"])
    assert queue.stats().expired == int(how != "requeue")


def test_what_is_given_back_again_and_again_behind_all_readers_is_met_each_time(queue, billing):
    for n in range(1, 5):
        lease = queue.lease(2)
        assert lease.items == ["a", "b"] if n == 1 else lease.attempts == [n, n]
        billing.delete(9)
        assert list(queue) == []
        lease.nack([lease.seqs[1]])
        lease.nack()
        assert billing.peek_many(9) == list(queue) == ["b", "a"]
        assert queue.check() == []


def test_keys_of_what_comes_back_behind_all_readers_are_those_of_newer_items(queue, billing):
    queue.push(["x", "y"], unique=["k", "k"], replace=False)
    queue.delete(6)
    lease = queue.lease(1)
    lease.reject()
    assert queue.push("z", unique="k").is_stored
    assert billing.pop_many(9) == ["z"]
    queue.push("w", unique="l")
    entries, _ = queue._head.take(1, 0)
    assert queue.push("v", unique="l").is_stored
    assert billing.pop_many(9) == ["v"]
    assert queue.dead.requeue() == 1  # the key is free again
    queue._engine.put_back(entries)
    assert billing.pop_many(9) == ["x", "w"]
    assert (queue.find("k"), queue.find("l"), queue.check()) == (None, None, [])


def test_an_item_that_comes_due_stands_at_the_tail_where_every_reader_finds_it(queue, billing, later):
    assert queue.push("late", delay=5, unique="key") == 6
    queue.push("g")
    assert billing.pop(7) == list("abcdefg")
    later(6)
    assert billing.position == 8
    assert billing.pop() == "late"
    assert billing.pop() is None
    assert queue.push("now", unique="key") == 9  # the key went with its item
    assert queue.check() == []


def test_an_item_that_is_due_keeps_its_key_and_its_attempts(queue, billing, later):
    with queue.lease(1) as lease:
        lease.nack(delay=5)
    number = queue.push("late", delay=5, unique="key")
    later(6)
    assert billing.peek(9) == [*"bcdefa", "late"]
    assert queue.check() == []
    assert queue.push("again", unique="key") == number + 2
    assert billing.delete(5) == 5
    lease = queue.lease(2)
    assert (lease.items, lease.attempts) == (["a", "late"], [2, 1])
    lease.ack()
    assert queue.push("again", unique="key") == number + 3


# --- retention


def test_retained_items_are_there_for_a_replay_and_nothing_beyond(queue, billing):
    queue.retain(4)
    assert list(queue) == list("cdef")
    assert billing.skipped == 2
    assert billing.pop(4) == list("cdef")
    assert list(queue) == list("cdef")
    queue.push(["g", "h"])
    assert list(queue) == list("efgh")
    billing.seek("oldest")
    assert billing.peek(9) == list("efgh")
    slow = queue.reader("slow")
    queue.push(list("ijklmn"))
    assert (slow.skipped, slow.pop(9)) == (6, list("klmn"))
    queue.retain()
    assert list(queue) == list("klmn")
    billing.delete(9)
    assert queue.peek() is None


def test_retained_bytes_bound_what_stays_and_the_newest_item_always_does(engine):
    queue = engine()
    reader = queue.reader("slow")
    queue.push([os.urandom(10_000) for _ in range(30)])
    queue.retain(bytes=200_000)
    assert 10 <= len(queue) <= 20
    for _ in range(100):
        item = os.urandom(10_000)
        queue.push(item)
        assert 10 <= len(queue) <= 20
        assert list(queue)[-1] == item
    queue.push([os.urandom(1_000) for _ in range(300)])
    assert 50 < len(queue) <= 200
    assert reader.skipped + len(queue) == 430
    queue.push(os.urandom(300_000))
    assert len(queue) == 1
    queue.push("small")
    assert queue.pop(9)[-1] == "small"


def test_what_is_there_already_stays_as_far_as_it_fits(engine):
    queue = engine()
    queue.push(["a", "b", "c"])
    queue.retain(bytes=10**6)
    assert list(queue) == ["a", "b", "c"]
    queue.push("d")
    assert list(queue) == ["a", "b", "c", "d"]


def test_retained_seconds_are_kept_to_a_64th(queue, billing, later):
    queue.retain(seconds=640)
    begun = time.monotonic()
    for now in range(0, 2000, 10):
        later(10)
        queue.push(now)
        oldest = queue.peek()
        if not isinstance(oldest, str):
            assert now - oldest <= 660
            assert 63 - (time.monotonic() - begun) / 10 <= len(queue) <= 66  # the time of the test passes, too
    assert billing.skipped == 6 + 200 - len(queue)
    later(1000)
    billing.delete(1)
    assert len(queue) == 0


def test_the_tightest_limit_holds_and_others_see_it(engine):
    with engine() as queue, engine() as other:
        queue.retain(5, bytes=1 << 30, seconds=1e6)
        other.push(list(range(20)))
        assert list(queue) == [15, 16, 17, 18, 19]
        with pytest.raises(ValueError, match="'items' must be a number of items, 1 or more, or None"):
            queue.retain(0)
        with pytest.raises(ValueError, match="positive"):
            queue.retain(seconds=-1.0)
        for limit in ({"seconds": math.inf}, {"seconds": math.nan}, {"items": 1 << 80}, {"bytes": 1 << 64}):
            with pytest.raises(ValueError, match=r"'(seconds|items|bytes)' must be"):
                queue.retain(**limit)
        for wrong in ({"items": 1.5}, {"bytes": 1.5}, {"seconds": "1"}):
            with pytest.raises(TypeError):
                queue.retain(**wrong)
        assert list(queue) == [15, 16, 17, 18, 19]


def test_what_goes_by_itself_goes_in_steps_of_bounded_size(engine):
    queue = engine()
    reader = queue.reader("fast")
    queue.reader("slow")
    queue.push(list(range(25_000)))
    reader.delete(25_000)
    queue.drop_reader("slow")
    assert len(queue) == 0


# --- together with everything else


def test_moves_of_readers_take_part_in_transactions(engine, queue, billing):
    out = engine("out")
    with queue.transaction():
        out.push(billing.pop(2))
        out.state["at"] = billing.position
    assert (list(out), out.state["at"], billing.position) == (["a", "b"], 2, 2)
    with pytest.raises(ZeroDivisionError), queue.transaction():
        out.push(billing.pop(2)[5 // 0])
    assert (list(out), billing.peek()) == (["a", "b"], "c")
    with queue.transaction(), pytest.raises(TransactionError):
        billing.peek(9, blocking=True)


def test_readers_and_retention_go_with_a_flush_and_a_copy(queue, billing):
    queue.retain(5)
    billing.delete(3)
    queue.flush(force=True)
    assert (billing.position, list(queue)) == (4, list("bcdef"))
    with queue.copy("copied") as copied:
        assert copied.reader("billing").peek() == "e"
        copied.push(["g", "h"])
        assert list(copied) == list("defgh")
        assert copied.check() == []


def test_limits_of_a_queue_hold_beside_readers(engine):
    queue = engine(maxsize=3)
    billing, audit = queue.reader("billing"), queue.reader("audit")
    queue.push([1, 2, 3])
    with pytest.raises(Full):
        queue.push(4)
    billing.delete(3)
    with pytest.raises(Full):
        queue.push(4)
    audit.delete(1)
    queue.push(4)
    assert (billing.pop(), audit.peek(9)) == (4, [2, 3, 4])


def test_a_waiting_put_goes_on_when_the_last_reader_has_passed(engine):
    queue = engine(maxsize=1)
    reader = queue.reader("billing")
    queue.push(1)
    done = []
    thread = threading.Thread(target=lambda: done.append(queue.put(2)))
    sleeps = Sleeps(queue)
    thread.start()
    eventually(lambda: sleeps.count)
    reader.delete()
    thread.join()
    assert reader.pop() == 2


def test_a_reader_wakes_for_what_another_process_pushes(queue, billing):
    billing.delete(6)
    pid = forked(lambda: eventually(lambda: queue.push("g") == 6))
    assert billing.pop(blocking=True, timeout=30) == "g"
    assert status_of(pid) == 0


# --- moves that are undone


def _passed(reader, n):
    """Pass some items; return what undoes that."""
    entries = reader._head.first(n)
    _, move = reader._head.pass_by(entries)
    return lambda: reader._head.steps.retreat(move, entries)


def test_an_undone_move_gives_back_what_left_with_it_and_counts_what_others_took_since(queue, billing):
    audit = queue.reader("audit")
    audit.delete(2)
    undo = _passed(billing, 4)  # the first two leave, since both have passed them
    assert queue.count() == 4
    assert queue.pop() == "c"
    assert (billing.skipped, audit.skipped) == (0, 1)
    assert undo()
    assert (billing.position, billing.skipped, audit.skipped) == (0, 1, 1)
    assert billing.pop(9) == ["a", "b", "d", "e", "f"]
    assert audit.pop(9) == ["d", "e", "f"]


def test_what_is_leased_when_a_move_is_undone_is_counted_when_it_is_passed_again(queue, billing):
    queue.reader("audit")
    lease = queue.lease(2)
    undo = _passed(billing, 2)
    assert billing.skipped == 2
    lease.ack([0])
    assert undo()
    assert (billing.position, billing.skipped) == (2, 1)
    lease.nack()
    assert (billing.position, billing.pop(9), billing.skipped) == (1, list("bcdef"), 1)


def test_a_move_is_not_undone_once_the_reader_has_moved_again_even_to_the_same_place(queue, billing):
    queue.reader("audit")
    undo, other = _passed(billing, 2), queue.reader("billing")
    assert other.pop() == "c"
    assert not undo()
    other.seek(0)
    assert other.pop(2) == ["a", "b"]
    assert not undo()
    assert other.peek() == "c"


def test_an_undone_move_keeps_no_more_than_what_is_retained(queue, billing):
    queue.retain(6)
    undo = _passed(billing, 2)
    queue.push(["g", "h"])
    assert undo()
    assert (billing.skipped, billing.peek(9)) == (2, list("cdefgh"))
    queue.retain(None)
    queue.push("i")
    undo = _passed(billing, 3)
    queue.retain(2)
    assert undo()
    assert list(queue) == ["h", "i"]


def test_a_move_of_a_reader_that_was_dropped_is_not_undone(queue, billing):
    undo = _passed(billing, 2)
    queue.drop_reader("billing")
    with pytest.raises(GoneError):
        undo()
    assert list(queue) == list("cdef")


def test_dropping_a_reader_that_is_not_there_removes_nothing(queue):
    queue.reader("newest", start="newest")
    with pytest.raises(KeyError):
        queue.drop_reader("nobody")
    assert list(queue) == list("abcdef")
