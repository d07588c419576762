"""Readers on PostgreSQL: who moves, and who removes, at the same moment."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from processes import DEADLINE, eventually, forked, status_of

from lmdbqueue.postgres import _positions
from lmdbqueue.postgres._step import Step


@pytest.fixture
def queue(open_postgres):
    queue = open_postgres()
    queue.push(list("abcdef"))
    return queue


class Blocked:
    """Runs a function in a thread; tells whether it waits for a lock of the server."""

    def __init__(self, postgres, fn):
        self._postgres = postgres
        self._before = self._waiting()
        self.results = []
        self._thread = threading.Thread(target=lambda: self.results.append(fn()))
        self._thread.start()
        eventually(lambda: self.results or self._waiting() > self._before)

    def _waiting(self):
        return self._postgres.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0]

    def result(self):
        self._thread.join(DEADLINE)
        return self.results[0]


def test_of_readers_that_move_at_the_same_moment_the_last_removes_what_all_have_passed(queue, postgres):
    one, other = queue.reader("one"), queue.reader("other")
    with queue.transaction():
        assert one.delete(3) == 3
        blocked = Blocked(postgres, lambda: other.delete(4))
        assert blocked.results == []
    assert blocked.result() == 4
    assert list(queue) == ["d", "e", "f"]


def test_who_pops_waits_for_who_moves_and_counts_only_what_was_not_read(queue, postgres):
    reader = queue.reader("reader")
    behind = queue.reader("behind")
    with queue.transaction():
        assert reader.pop() == "a"
        blocked = Blocked(postgres, lambda: queue.pop(2))
        assert blocked.results == []
        assert reader.pop() == "b"  # it is there until the other has removed it
    assert blocked.result() == ["a", "b"]
    assert (reader.skipped, reader.pop(), behind.skipped, behind.pop()) == (0, "c", 2, "c")


def test_who_moves_waits_for_who_has_popped_and_then_looks_again(queue, postgres):
    reader = queue.reader("reader")
    queue.reader("behind")
    with queue.transaction():
        assert queue.pop() == "a"
        blocked = Blocked(postgres, lambda: reader.pop(2))
        assert blocked.results == []
    assert blocked.result() == ["b", "c"]
    assert reader.skipped == 1


def test_a_pop_whose_item_leaves_with_a_reader_while_it_is_decoded_gets_the_next(queue):
    reader = queue.reader("reader")
    held = threading.Event()
    moved = threading.Event()

    def loads(payload):
        held.set()
        assert moved.wait(DEADLINE)
        return pickle.loads(payload)

    def pop():
        with type(queue)(queue.conninfo, schema=queue.schema, loads=loads) as other:
            popped.append(other.pop())

    popped = []
    thread = threading.Thread(target=pop)
    thread.start()
    assert held.wait(DEADLINE)
    assert reader.delete(3) == 3
    moved.set()
    thread.join(DEADLINE)
    assert (popped, list(queue)) == (["d"], ["e", "f"])
    assert reader.skipped == 1


def test_a_pop_of_several_of_which_some_leave_with_a_reader_while_they_are_decoded_begins_again(queue):
    reader = queue.reader("reader")
    with type(queue)(queue.conninfo, schema=queue.schema) as other:

        def loads(payload):
            if not passed:
                passed.append(reader.delete(1))
            return pickle.loads(payload)

        passed = []
        other.loads = loads
        assert other.pop(2) == ["b", "c"]
    assert (passed, list(queue), reader.skipped) == ([1], ["d", "e", "f"], 2)


def test_a_reader_passes_no_item_that_has_taken_the_number_of_the_one_it_read(queue, postgres):
    """As after a failover to a standby that lagged, between the two: the number was given again there."""
    reader = queue.reader("reader")
    assert reader.pop() == "a"
    table = f'"{queue.schema}".items'
    again = [f"UPDATE {table} SET payload = %s, pushed_at = pushed_at + interval '1 us' WHERE seq = 1"]
    read = []

    def loads(payload):
        read.append(pickle.loads(payload))
        if again:
            postgres.execute(again.pop(), pickle.dumps("x"))
        return read[-1]

    queue.loads = loads
    assert reader.pop(2) == ["x", "c"]
    assert read == ["b", "c", "x", "c"]
    again.append(f"UPDATE {table} SET payload = %s, pushed_at = pushed_at + interval '1 us' WHERE seq = 3")
    queue.shutdown()
    assert list(reader) == ["d", "x", "e", "f"]


def test_readers_consumers_and_producers_of_many_processes_lose_count_of_nothing(open_postgres):
    queue = open_postgres()
    names = ["one", "two", "three"]
    for name in names:
        queue.reader(name)
    seen = open_postgres("seen")

    def produce(producer):
        mine = open_postgres()
        for number in range(0, 200, 4):
            mine.push([(producer, number + n) for n in range(4)])

    def read(name):
        mine = open_postgres()
        reader, told = mine.reader(name), open_postgres("seen")
        while reader.position < 400:
            told.push([(name, item) for item in reader.pop(7)])

    def consume():
        mine, told = open_postgres(), open_postgres("seen")
        while mine.stats().tail < 400 or len(mine):
            taken = mine.pop(2)
            with mine.lease(2) as lease:
                taken += lease.items
            told.push([("consumer", item) for item in taken])

    pids = [*(forked(read, name) for name in names), forked(consume), *(forked(produce, n) for n in range(2))]
    assert [status_of(pid) for pid in pids] == [0] * len(pids)
    found = list(seen)
    assert len(queue) == 0
    lost = {each.name: each.skipped for each in queue.readers()}
    for name in names:
        items = [item for who, item in found if who == name]
        for producer in range(2):
            mine = [number for who, number in items if who == producer]
            assert mine == sorted(set(mine))
        assert len(items) + lost[name] == 400
    popped = [item for who, item in found if who == "consumer"]
    assert len(popped) == len(set(popped))


def test_what_is_known_of_times_and_sizes_stays_small(queue, postgres, schema):
    queue.retain(bytes=200_000, seconds=3600)
    for _ in range(80):
        queue.push([os.urandom(1_000)] * 5)
    assert 180 < len(queue) <= 200
    (rows,) = postgres.execute(f'SELECT count(*) FROM "{schema}".tails')[0]
    assert rows < 40


def test_no_move_reads_more_than_it_needs_however_long_the_queue(open_postgres, postgres, schema):
    queue = open_postgres()
    slow, fast = queue.reader("slow"), queue.reader("fast", start="newest")
    queue.push(list(range(5_000)))
    fast.seek("newest")

    def use():
        for _ in range(10):
            queue.push("new")
            assert fast.pop() == "new"
            slow.pop()
            assert (len(fast), len(slow)) == (0, slow.count())
            assert slow.position
            fast.delete()
            queue.pop()

    use()
    queue.close()
    fetched = f"SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname = 'items'"
    scanned = f"SELECT seq_tup_read FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname = 'items'"
    inserted = f"SELECT n_tup_ins FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname = 'items'"
    eventually(lambda: postgres.execute(inserted)[0][0] >= 5_010)
    assert postgres.execute(scanned)[0][0] < 100
    # the one statement of a verb that goes through all that wait would make it 50,000
    assert postgres.execute(fetched)[0][0] < 25_000


def test_a_nack_in_a_block_waits_for_no_tail_if_the_first_reader_came_meanwhile(open_postgres, postgres, monkeypatch):
    """It held the item by then, for which who has the tail may wait."""
    queue, other, execute = open_postgres(patience=2.0), open_postgres(), Step.execute
    queue.push(["a", "b"])
    lease = queue.lease()
    with psycopg.connect(postgres.url()) as holder, ThreadPoolExecutor(1) as executor:

        def executed(step, text, /, **values):
            cursor = execute(step, text, **values)
            if text == _positions.LOCK_TAIL_IF_NEEDED:
                monkeypatch.undo()
                executor.submit(other.reader, "name", start="newest").result()
                holder.execute(f'SELECT FROM "{queue.schema}".tails FOR UPDATE')
            return cursor

        monkeypatch.setattr(Step, "execute", executed)
        with queue.transaction():
            lease.nack()
        assert holder.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    assert (queue.pop(9), queue.check()) == (["a", "b"], [])
