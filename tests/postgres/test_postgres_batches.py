"""A pop of several items: they are claimed, decoded where no transaction is open, and removed."""

import asyncio
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest
from processes import DEADLINE, eventually, forked, status_of

from lmdbqueue import DecodeError, Empty
from lmdbqueue.postgres import _batches, _ledger
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._sql import Sql
from lmdbqueue.postgres.aio import AsyncPostgresQueue

_OPEN = "SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
_TERMINATE = """
SELECT pg_terminate_backend(pid, 20000) FROM pg_locks JOIN "{}".claims AS c ON NOT isempty(items)
WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = c.session
"""


@pytest.fixture
def claims(postgres, schema):
    """Give a function that returns what living sessions have claimed."""
    claimed = f"""
        SELECT items::text FROM "{schema}".claims WHERE NOT isempty(items) AND session IN (
            SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1)
        ORDER BY 1"""
    return lambda: [items for (items,) in postgres.execute(claimed)]


@pytest.fixture
def queue(open_postgres, claims):
    """Give a queue of six items, of which nothing is claimed in the end."""
    queue = open_postgres()
    queue.push([*"abcdef"])
    yield queue
    assert claims() == []
    assert queue.check() == []


def _awaited(queue):
    async def main():
        async with AsyncPostgresQueue.open(
            queue.conninfo, queue.name, schema=queue.schema, loads=queue.loads
        ) as awaited:
            return await awaited.pop(2)

    return asyncio.run(main())


POPS = {
    "pop": lambda queue: queue.pop(2),
    "pop_many": lambda queue: queue.pop_many(2),
    "pop_many, blocking": lambda queue: queue.pop_many(2, at_least=2, blocking=True),
    "pop_many, as much as fits": lambda queue: queue.pop_many(9, max_bytes=2 * len(pickle.dumps("a"))),
    "awaited": _awaited,
}


@pytest.mark.parametrize("verb", POPS)
def test_what_is_decoded_is_claimed_and_no_transaction_is_open(queue, postgres, claims, verb):
    seen = []

    def loads(payload):
        seen.append((claims(), postgres.execute(_OPEN)))
        return pickle.loads(payload)

    queue.loads = loads
    assert POPS[verb](queue) == ["a", "b"]
    assert seen == [(["{[0,2)}"], [])] * 2
    queue.loads = pickle.loads
    assert queue.pop(9) == [*"cdef"]


def test_whoever_takes_items_passes_over_those_that_are_being_decoded(queue, open_postgres):
    queue.push([*"ghij"])
    looks, other = [], open_postgres()
    target = open_postgres("target")

    def loads(payload):
        if not looks:
            with other.transaction():
                looks.append(other.pop())
            with other.lease() as one, other.lease(2) as two:
                looks.extend([*one.items, *two.items])
            looks.extend(other.pop(2))
            looks.append((other.pop(), other.delete(), other.move(9, to=target)))
            looks.append((other.pop(), other.pop(2)))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(2) == ["a", "b"]
    assert looks == ["c", "d", "e", "f", "g", "h", ("i", 1, 0), (None, [])]


def test_nobody_waits_for_a_process_that_is_stuck_in_loads(queue, open_postgres, claims):
    reading, writing = os.pipe()

    def stuck(_payload):
        os.write(writing, b"x")
        signal.pause()

    pid = forked(lambda: open_postgres(loads=stuck).pop(3))
    try:
        assert os.read(reading, 1) == b"x"
        assert (queue.pop(), queue.pop(2), queue.pop(2)) == ("d", ["e", "f"], [])
        queue.push("g")
        assert queue.pop_many(9, blocking=True, timeout=DEADLINE) == ["g"]
        assert claims() == ["{[0,3)}"]
    finally:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        os.close(reading)
        os.close(writing)
    eventually(lambda: claims() == [])
    assert queue.pop(9) == ["a", "b", "c"]


def test_consumers_at_once_decode_different_items_and_none_decodes_in_vain(queue, open_postgres):
    assert len(queue) == 6
    decoded, together = [], threading.Barrier(3)

    def loads(payload):
        item = pickle.loads(payload)
        decoded.append(item)
        together.wait(DEADLINE)
        return item

    others = [open_postgres(loads=loads) for _ in range(3)]
    with ThreadPoolExecutor(3) as executor:
        pops = [executor.submit(other.pop, 2) for other in others]
        found = sorted(pop.result() for pop in pops)
    assert found == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert sorted(decoded) == [*"abcdef"]


@pytest.mark.parametrize("priority", [-1, 1])
def test_what_comes_between_two_claimed_items_is_free(open_postgres, priority, claims):
    queue, other = open_postgres(), open_postgres()
    queue.push(["a", "b"])
    queue.push(["y", "z"], priority=priority)
    looks = []

    def loads(payload):
        if not looks:
            assert claims()[0].count("[") == 2
            other.push("c")
            other.push("x", priority=priority)
            looks.extend([other.pop(2), other.pop()])
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(9) == ([*"yzab"] if priority < 0 else [*"abyz"])
    assert looks == [["x", "c"] if priority < 0 else ["c", "x"], None]


def test_items_in_relaxed_order_are_claimed_one_by_one(open_postgres, claims):
    queue, other = open_postgres(order="relaxed"), open_postgres(order="relaxed")
    for item in range(300):
        queue.push(item)
    looks = []

    def loads(payload):
        if not looks:
            assert claims()[0].count("[") == 200
            looks.append(other.pop(200))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(200) == list(range(200))
    assert looks == [list(range(200, 300))]
    assert queue.check() == []


def test_a_function_that_decodes_may_use_the_same_queue(queue):
    nested = []

    def loads(payload):
        if not nested:
            nested.append(len(queue))
            queue.push("more")
            queue.loads = pickle.loads
            nested.extend([queue.pop(2), queue.pop(), queue.pop_many(9, blocking=True)])
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(2) == ["a", "b"]
    assert nested == [6, ["c", "d"], "e", ["f", "more"]]


@pytest.mark.parametrize("nth", range(4))
def test_the_items_before_one_that_cannot_be_decoded_leave_and_the_rest_is_free_at_once(
    queue, open_postgres, nth, claims
):
    def loads(payload):
        item = pickle.loads(payload)
        if item == "abcd"[nth]:
            raise ZeroDivisionError
        return item

    queue.loads = loads
    if nth:
        assert queue.pop(4) == [*"abcd"[:nth]]
    else:
        with pytest.raises(DecodeError):
            queue.pop(4)
    assert claims() == []
    assert open_postgres().pop(9) == [*"abcdef"[nth:]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_frees_all_items_at_once(queue, open_postgres, error, claims):
    def loads(_payload):
        raise error

    queue.loads = loads
    with pytest.raises(error):
        queue.pop(4)
    assert claims() == []
    assert open_postgres().pop(9) == [*"abcdef"]


def test_a_waiter_gets_what_the_failing_pop_of_another_has_freed(queue, open_postgres):
    other, waiting = open_postgres(), threading.Event()
    queue.delete(3)

    def loads(payload):
        if not waiting.is_set():
            listen = other._engine.listen
            other._engine.listen = lambda: (waiting.set(), listen())[1]
            pops.append(executor.submit(other.pop_many, 2, blocking=True))
            assert waiting.wait(DEADLINE)
        if pickle.loads(payload) == "e":
            raise ZeroDivisionError
        return pickle.loads(payload)

    pops = []
    queue.loads = loads
    with ThreadPoolExecutor(1) as executor:
        assert queue.pop(9) == ["d"]
        assert pops[0].result() == ["e", "f"]


def test_a_pop_whose_connection_is_lost_while_it_decodes_takes_its_items_with_another(queue, postgres, schema):
    decoded = []

    def loads(payload):
        decoded.append(pickle.loads(payload))
        if len(decoded) == 2:
            assert postgres.execute(_TERMINATE.format(schema)) == [(True,)]
        return decoded[-1]

    queue.loads = loads
    assert (queue.pop(2), queue.pop(2)) == (["a", "b"], ["c", "d"])
    assert decoded == [*"ababcd"]


@pytest.mark.parametrize("how", ["cancel", "delete_item", "clear", "reader", "dead_letter", "block"])
def test_a_pop_of_which_an_item_leaves_while_it_is_decoded_begins_again(queue, open_postgres, how):
    other, decoded = open_postgres(), []
    queue.push("g", unique="key")
    reader = queue.reader("reader") if how == "reader" else None
    expected = [*"bcdefg"]

    def clear_in_a_block():
        with other.transaction():
            other.clear()
            raise ZeroDivisionError

    act = {
        "cancel": lambda: other.cancel("key"),
        "delete_item": lambda: other.delete_item(0),
        "clear": other.clear,
        "reader": lambda: reader.delete(1),
        "dead_letter": lambda: other.dead_letter(0, "bad"),
        "block": clear_in_a_block,
    }[how]

    def loads(payload):
        if not decoded:
            decoded.append(1)
            with suppress(ZeroDivisionError):
                act()
        return pickle.loads(payload)

    queue.loads = loads
    if how == "cancel":
        expected = [*"abcdef"]
    elif how == "block":
        expected = [*"abcdefg"]
    elif how == "clear":
        expected = []
    assert queue.pop(9) == expected
    assert len(queue) == 0


def test_another_item_of_the_same_number_is_not_taken_for_the_one_that_was_decoded(queue, postgres, schema):
    """As after a failover to a standby that lagged, between the two: the number was given again there."""
    decoded = []

    def loads(payload):
        decoded.append(pickle.loads(payload))
        if len(decoded) == 2:
            postgres.execute(f'UPDATE "{schema}".items SET payload = %s WHERE seq = 0', pickle.dumps("x"))
        return decoded[-1]

    queue.loads = loads
    assert queue.pop(2) == ["x", "b"]
    assert decoded == [*"abxb"]


def test_a_lease_that_looked_before_the_claim_gets_its_items_and_the_pop_those_behind(queue, open_postgres):
    """As if its statement had begun before the claim was written: it does not see that."""
    other, seen = open_postgres(), []

    def loads(payload):
        if not seen:
            seen.append(1)
            postgres_claims = f'UPDATE "{queue.schema}".claims SET items = int8multirange()'
            queue._engine.database.view(5.0, lambda step: step.connection.execute(postgres_claims))
            seen.append(other.lease(2))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(3) == ["c", "d", "e"]
    assert seen[1].items == ["a", "b"]
    seen[1].ack()
    assert queue.pop(9) == ["f"]


@pytest.mark.parametrize("many", [3, 150])
def test_what_a_block_is_taking_is_passed_over(open_postgres, many):
    queue, other = open_postgres(), open_postgres()
    queue.push(list(range(many + 4)))
    with queue.transaction():
        assert len(queue.pop(many)) == many
        with ThreadPoolExecutor(1) as executor:
            popped = executor.submit(lambda: [other.pop(2), other.pop_many(9), other.pop(2)]).result(DEADLINE)
        assert popped == [[many, many + 1], [many + 2, many + 3], []]
    assert queue.check() == []


def test_what_was_locked_before_and_is_free_again_is_taken_first(queue, open_postgres):
    with suppress(ZeroDivisionError), queue.transaction():
        queue.pop(3)
        raise ZeroDivisionError
    assert open_postgres().pop(4) == [*"abcd"]


def test_no_more_is_claimed_than_fits(queue, open_postgres):
    size, looks = len(pickle.dumps("a")), []

    def loads(payload):
        if not looks:
            looks.append(open_postgres().pop_many(9, max_bytes=3 * size - 1))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop_many(9, max_bytes=2 * size) == ["a", "b"]
    assert looks == [["c", "d"]]
    assert queue.pop_many(9, max_bytes=1) == ["e"]


def test_nothing_fits_behind_empty_items_that_is_too_large(open_postgres):
    queue = open_postgres(dumps=bytes, loads=bytes)
    queue.push([b"", b"", b"large", b""])
    assert [queue.pop_many(9, max_bytes=1) for _ in range(3)] == [[b"", b""], [b"large"], [b""]]


def test_too_few_are_not_claimed(queue, open_postgres, claims):
    """Of six items, two are claimed by another, so there are no five."""
    tried = []

    def loads(payload):
        if not tried:
            with pytest.raises(Empty):
                queue.pop_many(9, at_least=5, blocking=True, timeout=0)
            tried.append(claims())
        return pickle.loads(payload)

    assert open_postgres(loads=loads).pop(2) == ["a", "b"]
    assert tried == [["{[0,2)}"]]
    assert queue.pop_many(9, at_least=4, blocking=True, timeout=0) == [*"cdef"]


def test_readers_count_what_was_claimed_and_left(queue):
    readers = queue.reader("one"), queue.reader("two")
    readers[1].seek(1)
    assert queue.pop(3) == ["a", "b", "c"]
    assert [reader.skipped for reader in readers] == [3, 2]


def test_a_pop_that_is_put_back_restores_all_notes(open_postgres):
    queue = open_postgres()
    queue.push("a", unique="key", headers={"x": "y"}, expires=3600)
    queue.push("b")
    with suppress(ZeroDivisionError), queue.lease(2):
        raise ZeroDivisionError
    entries, _ = queue._engine.take(2, 1, lambda entries: [*entries])
    queue._engine.put_back(entries)
    assert queue.find("key") == 0
    with queue.lease(2) as lease:
        assert (lease.items, lease.attempts) == (["a", "b"], [2, 2])
        assert lease.headers[0] == {"x": "y"}


def test_delayed_and_retained_items_keep_to_their_rules(queue):
    queue.retain(items=4)
    assert len(queue) == 4
    queue.push("later", delay=3600)
    assert queue.pop(9) == [*"cdef"]
    assert (queue.pop(9), queue.stats().delayed) == ([], 1)


def test_a_claim_that_cannot_be_released_ends_with_its_connection(queue, monkeypatch, claims):
    alone, failed = Session.alone, []

    def failing(self, *_statement):
        failed.append(self.id)
        return alone(self, "SELECT 1 / 0", {})

    monkeypatch.setattr(Session, "alone", failing)
    queue.loads = int
    with pytest.raises(DecodeError):
        queue.pop(3)
    monkeypatch.undo()
    assert len(failed) == 1
    eventually(lambda: claims() == [])
    queue.loads = pickle.loads
    assert queue.pop(9) == [*"abcdef"]


def test_claims_of_the_dead_claim_nothing_and_are_swept(queue, postgres, schema):
    postgres.execute(f'INSERT INTO "{schema}".claims SELECT id, 5, \'{{[0,3)}}\' FROM "{schema}".queues')
    of_the_dead = f'SELECT items::text FROM "{schema}".claims WHERE session = 5'
    assert (queue.pop(), queue.pop(2)) == ("a", ["b", "c"])
    assert postgres.execute(of_the_dead) == [("{[0,3)}",)]
    with psycopg.connect(queue.conninfo, autocommit=True) as connection:
        _ledger.sweep(connection, Sql(schema))
    assert postgres.execute(of_the_dead) == []


def test_a_batch_that_overlaps_one_that_was_not_seen_is_given_up_before_anything_is_decoded(queue, schema):
    """As if another had claimed items between the beginning of the statement that claims, and the gate."""
    place, read = queue._engine.place, []

    def look(session):
        table = f'"{schema}".claims'
        session.connection.execute(f"INSERT INTO {table} VALUES (%s, %s, '{{[1,4)}}')", [place.id, session.id])
        read.append(_batches._read(session, place, _batches._Span(3, 1, 3), are_locked=False))
        session.connection.execute(f"DELETE FROM {table} WHERE session = %s", [session.id])

    def loads(payload):
        if not read:
            queue._engine.database.claim(DEADLINE, look)
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop(2) == ["a", "b"]
    assert read == [([], [])]


def test_who_looks_whether_a_session_is_dead_is_not_taken_for_it(queue):
    """A look holds a shared lock of its number for a moment, in which the lost session may be ended."""
    session = 5
    with psycopg.connect(queue.conninfo, autocommit=True) as looking:
        looking.execute("SELECT pg_advisory_lock_shared(%s::bigint)", [session])
        queue._engine.database.access.shut_out(session, 1, time.monotonic() + DEADLINE)
        assert looking.execute("SELECT 1").fetchall() == [(1,)]


def test_whoever_finds_the_gate_taken_asks_again_when_it_is_free(queue, postgres):
    """Another holds it for the moment in which it finds its items and writes their numbers."""
    gate = (queue._engine.place.claims, 2147483647)
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND NOT granted"
    with psycopg.connect(queue.conninfo, autocommit=True) as passing, ThreadPoolExecutor(1) as executor:
        passing.execute("SELECT pg_advisory_lock(%s, %s)", gate)
        pop = executor.submit(queue.pop, 2)
        eventually(lambda: postgres.execute(waits) == [(1,)])
        passing.execute("SELECT pg_advisory_unlock(%s, %s)", gate)
        assert pop.result() == ["a", "b"]
