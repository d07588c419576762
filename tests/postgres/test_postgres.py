"""What only PostgreSQL has: sessions, schemas, plans, connections, statements of the user's own."""

import ctypes
import gc
import hashlib
import itertools
import os
import pickle
import random
import re
import signal
import sys
import threading
from contextlib import nullcontext

import psycopg
import pytest
from processes import DEADLINE, INTERRUPTED, KILLED, STEP, Moments, eventually, forked, interrupt, status_of

from lmdbqueue import ClosedError, DecodeError, ServerError, TransactionError, VersionError
from lmdbqueue._host import fork
from lmdbqueue.postgres import PostgresQueue, _ear, _items, _pool, _schema
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._step import Step


@pytest.fixture
def queue(open_postgres):
    return open_postgres()


def rows(postgres, schema, table):
    return postgres.execute(f'SELECT count(*) FROM "{schema}".{table}')[0][0]


# --- many processes


def test_numbers_have_the_order_of_commits_and_no_gaps_whoever_pushes(queue, open_postgres):
    def produce(producer):
        mine = open_postgres()
        for number in range(0, 60, 3):
            mine.push([(producer, number), (producer, number + 1)])
            with mine.transaction():
                mine.push((producer, number + 2))

    pids = [forked(produce, producer) for producer in range(4)]
    seen = []
    while len(seen) < 240:  # a consumer that reads on from where it was misses nothing
        seen += queue.pop(7, blocking=False)
    assert [status_of(pid) for pid in pids] == [0] * 4
    assert queue.stats().tail == 240
    for producer in range(4):
        assert [number for who, number in seen if who == producer] == list(range(60))


def test_consumers_of_many_processes_get_each_item_once(queue, open_postgres):
    queue.push(list(range(120)))
    done = open_postgres("done")

    def consume(number):
        mine, taken = open_postgres(), open_postgres("done")
        while True:
            items = mine.pop(3)
            with mine.lease(2) as lease:
                items += lease.items
            if not items:
                return
            assert items == sorted(items)
            taken.push([(number, item) for item in items])

    pids = [forked(consume, number) for number in range(4)]
    assert [status_of(pid) for pid in pids] == [0] * 4
    assert sorted(item for _, item in done) == list(range(120))


def test_what_killed_processes_have_counted_is_counted_still(queue, open_postgres, postgres, schema):
    def work():
        mine = open_postgres()
        while True:
            mine.push([1, 2, 3])
            mine.pop(2)
            mine.lease()

    for _ in range(4):
        pid = forked(work)
        before = queue.stats().pushed
        eventually(lambda before=before: queue.stats().pushed >= before + 6)
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == KILLED
    eventually(lambda: queue.stats().leased == 0)
    assert queue.check() == []

    def swept():
        PostgresQueue(postgres.url(), schema=schema).close()
        gc.collect()
        return rows(postgres, schema, "ledger WHERE NOT is_folded") <= 4

    other = PostgresQueue(postgres.url(), "queue", schema=schema)
    assert len(other) == queue.stats().waiting
    other.close()
    queue.close()
    eventually(swept)
    with PostgresQueue(postgres.url(), schema=schema) as other:
        assert other.check() == []


def test_a_wrong_count_is_found(queue, postgres, schema):
    queue.push(["a", "b"], unique=["a", "b"])
    lease = queue.lease()
    postgres.execute(f'UPDATE "{schema}".queues SET waiting = waiting + 1')
    assert queue.check() == ["queue 'queue': 2 items are counted as waiting, but 1 are"]
    postgres.execute(f'UPDATE "{schema}".queues SET waiting = waiting - 1, pushed = pushed - 1')
    postgres.execute(f'UPDATE "{schema}".tails SET next = 1')
    assert queue.check() == ["queue 'queue': item 1 is beyond the tail"]
    postgres.execute(f'UPDATE "{schema}".queues SET pushed = pushed + 1')
    postgres.execute(f'UPDATE "{schema}".tails SET next = 2')
    postgres.execute(f'DELETE FROM "{schema}".owners')
    (problem,) = queue.check()
    assert problem.startswith("queue 'queue': item 0 is in state 1, but its lease is")
    queue.clear(all=True)
    postgres.execute(f"""INSERT INTO "{schema}".items (queue, seq, payload) SELECT id, 0, 'x'
        FROM "{schema}".queues, generate_series(1, 2)""")
    assert "queue 'queue': item 0 exists 2 times" in queue.check()
    postgres.execute(f'DELETE FROM "{schema}".items')
    del lease


# --- the schema


def test_many_who_open_a_schema_at_the_same_moment_make_it_once(open_postgres, needs_postgres):
    needs_postgres()
    ear, mouth = os.pipe()

    def open_():
        os.read(ear, 1)
        open_postgres("a").push(1)

    pids = [forked(open_) for _ in range(8)]
    os.write(mouth, b"." * 8)
    assert [status_of(pid) for pid in pids] == [0] * 8
    os.close(ear)
    os.close(mouth)
    assert len(open_postgres("a")) == 8


@pytest.mark.parametrize(
    ("version", "advice"), [(_schema.VERSION + 1, "upgrade"), (_schema.VERSION - 1, "before the first release")]
)
def test_a_schema_of_another_version_is_refused(open_postgres, postgres, schema, version, advice):
    open_postgres().close()
    postgres.execute(f'UPDATE "{schema}".meta SET version = {version}')
    with pytest.raises(VersionError, match=f"version {version} .*{advice}"):
        open_postgres()


def test_tables_that_differ_have_another_version():
    """A state before the first release kept an index of an older one, since both said that they were version 1."""
    definitions = " ".join(re.sub("--.*", "", _schema.TABLES).split())
    assert (_schema.VERSION, hashlib.sha256(definitions.encode()).hexdigest()[:16]) == (3, "71ce469aa87e04c9")


@pytest.mark.parametrize("is_block", [False, True])
def test_a_pop_of_several_brings_few_columns_with_each_item(queue, monkeypatch, is_block):
    """A number, a payload, what putting it back needs, and outside of a block a version; each one costs both sides."""
    queue.push(["a", "b", "c"], headers={"x": "y"})
    execute, claim, columns = Step.execute, Session.claim, []

    def executed(*args, **values):
        cursor = execute(*args, **values)
        columns.append(len(cursor.description or ()))
        return cursor

    def claimed(*args):
        rows = claim(*args)
        columns.extend(map(len, rows))
        return rows

    with queue.transaction() if is_block else nullcontext():
        monkeypatch.setattr(*(Step, "execute", executed) if is_block else (Session, "claim", claimed))
        assert queue.pop(2) == ["a", "b"]
        monkeypatch.undo()
    assert max(columns) == (7 if is_block else 8)
    assert queue.pop() == "c"


def test_a_look_at_what_may_be_claimed_waits_for_no_flush(queue):
    queue.push(["a", "b"])

    def looked(step, place):
        assert len(_items.glance(step, place, 1, deaths=False).entries) == 1
        return step.execute("SHOW synchronous_commit").fetchall()  # until the end of the transaction, here a longer one

    assert queue._engine._hold.run(looked) == [("off",)]


def test_the_end_of_a_block_that_has_looked_waits_for_its_flush(queue):
    queue.push(["a", "b"])
    with queue.transaction() as txn:
        assert len(queue._engine.candidates(1)) == 1
        assert txn.connection.execute("SHOW synchronous_commit").fetchall() == [("on",)]


def test_what_cannot_be_decoded_has_not_left_inside_of_a_block_which_can_go_on(open_postgres):
    queue = open_postgres(loads=_not_first)
    queue.push(["first", "second"])
    with queue.transaction():
        with pytest.raises(DecodeError):
            queue.pop(2)
        assert (len(queue), queue.delete()) == (2, 1)
        assert queue.pop() == "second"
        queue.push("third")
    assert (queue.pop(), queue.pop(), queue.check()) == ("third", None, [])


def test_what_comes_due_in_a_block_is_in_its_place(queue, postgres):
    queue.push("a", delay=0.001)
    queue.push("b")
    postgres.execute("SELECT pg_sleep(0.01)")  # by the server's clock
    with queue.transaction():
        assert (queue.pop(), queue.pop(), queue.pop()) == ("a", "b", None)
    assert queue.check() == []


def _not_first(payload):
    item = pickle.loads(payload)
    if item == "first":
        raise ValueError(item)
    return item


def test_a_push_tells_from_the_first_sleeper_on(open_postgres, monkeypatch):
    monkeypatch.setattr(_ear, "CEILING", 10 * DEADLINE)  # so that no look of its own finds the item
    queue, other = open_postgres(), open_postgres()
    ticket = queue._engine.listen()
    other.push("a")
    queue._engine.sleep(ticket, 2 * DEADLINE)
    assert queue._engine.database.ear.listen(queue._engine.place.channel) > ticket


def test_names_are_quoted_whatever_is_in_them(postgres):
    schema = "Upper \"quoted\" 'single' ; {x}"
    name = "'; DROP TABLE items; -- %s {y}"
    with PostgresQueue(postgres.url(), name, schema=schema) as queue:
        queue.push("a")
        threading.Timer(0.05, queue.push, ["b"]).start()
        assert queue.pop(2, blocking=True, timeout=DEADLINE) == ["a", "b"]
        assert queue.queues() == [name]
        assert queue.flush() >= 0
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(schema)))
    for bad in ("", "x" * 51, "a\0", "a%b"):
        with pytest.raises(ValueError, match="the name of a schema"):
            PostgresQueue(postgres.url(), schema=bad)
    with pytest.raises(ValueError, match=r"not the address.*like 'postgresql:"):
        PostgresQueue("postgresql://host/?what=1")
    for bad in ("postgresql//me:secret@host/app", "postgresql://me:secret word@host/app", "host=a password='secret"):
        with pytest.raises(ValueError, match="not the address") as caught:
            PostgresQueue(bad)
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="patience"):
        PostgresQueue(postgres.url(), patience=-1)


# --- what it costs


def test_no_verb_reads_more_than_it_needs_though_the_server_believes_that_the_table_is_empty(
    open_postgres, postgres, schema
):
    queue = open_postgres(max_attempts=1)
    other = open_postgres("other")
    queue.push("first")
    queue.pop()
    postgres.execute(f'VACUUM ANALYZE "{schema}".items')
    for each in (queue, other):
        each.push(list(range(5_000)))
        each.push(list(range(1_000)), delay=1_000)
        each.lease(500).nack()
        held = each.lease(500)
    queue.push(["k"], unique=["k"])

    def use():
        for _ in range(20):
            queue.push("new")
            queue.pop()
            queue.delete()
            queue.peek(3)
            queue.push("k", unique="k")
            with queue.lease(2, ttl=50):
                queue.stats()
            queue.lease().nack()
            queue.dead.requeue(next(iter(queue.dead)).seq)
            queue.move(1, to=other)
            with queue.transaction():
                queue.pop()
        queue.push("due", delay=0.001)
        eventually(lambda: queue.stats().delayed == 1_000)

    use()  # so that each statement has its plan
    queue.close()
    other.close()
    tables = f"FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname = 'items'"
    read = f"SELECT seq_tup_read {tables}"
    fetched = f"SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = '{schema}' AND relname = 'items'"
    eventually(lambda: postgres.execute(f"SELECT n_tup_ins {tables}")[0][0] > 12_000)
    assert postgres.execute(read)[0][0] < 100
    # one statement a verb that goes through all that wait would make it some 100,000
    assert postgres.execute(fetched)[0][0] < 60_000
    del held


def test_each_statement_has_a_snapshot_of_its_own_whatever_the_server_says(postgres, schema):
    url = postgres.url() + "&options=-c%20default_transaction_isolation%3Dserializable"
    with PostgresQueue(url, schema=schema, maxsize=10) as queue, PostgresQueue(url, schema=schema) as other:
        with queue.transaction() as txn:
            assert txn.connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        threads = [threading.Thread(target=lambda: [queue.push(n) for n in range(2)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(other) == 8


def test_a_worker_waits_for_what_others_have_claimed_and_does_not_spin(queue, open_postgres):
    other = open_postgres()
    queue.push("a")
    looks = []
    find = queue._engine.candidates
    queue._engine.candidates = lambda *n: looks.append(n) or find(*n)
    stop = threading.Event()
    done = []
    thread = threading.Thread(target=lambda: done.append(queue.work(lambda _: stop.set(), stop=stop)))
    with other.transaction():
        assert other.pop() == "a"
        thread.start()
        stop.wait(0.5)  # nothing happens
        assert len(looks) < 10
        other.push("b")
    thread.join(DEADLINE)
    assert (done[0].done, len(queue)) == (1, 0)


def test_flush_lets_room_be_used_again(queue):
    queue.push([os.urandom(3_000) for _ in range(2_000)])
    queue.clear()
    assert queue.flush() > 3_000_000
    assert queue.flush(force=True) == 0


def test_a_closed_or_forgotten_queue_leaves_no_connection_behind(postgres, schema):
    ((begun,),) = postgres.execute("SELECT clock_timestamp()")

    def connections():
        ours = "application_name = 'lmdbqueue' AND backend_start > %s"
        return postgres.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {ours}", begun)[0][0]

    queue = PostgresQueue(postgres.url(), schema=schema)
    with pytest.raises(Exception, match="no item"):
        queue.get(timeout=0.01)
    queue.push("a")
    assert queue.lease().items == ["a"]
    assert connections() == 3  # for calls, for waiting, for leases
    queue.close()
    eventually(lambda: connections() == 0)
    with PostgresQueue(postgres.url(), schema=schema) as queue:
        assert rows(postgres, schema, "ledger") <= 3
    queue = PostgresQueue(postgres.url(), schema=schema)
    lease = queue.lease()
    assert lease.items == ["a"]
    del queue, lease
    gc.collect()
    eventually(lambda: connections() == 0)


def test_a_connection_that_a_call_gives_back_after_a_close_is_ended(open_postgres, monkeypatch):
    queue, taken = open_postgres(), []
    real = _pool.Pool.put

    def put(pool, session):
        taken.append(session)
        monkeypatch.undo()
        queue.close()  # as another thread may, just here
        return real(pool, session)

    monkeypatch.setattr(_pool.Pool, "put", put)
    queue.push("a")
    assert taken[0].connection.closed


def test_a_lease_that_a_close_overtakes_leaves_no_connection_behind(open_postgres):
    queue = open_postgres()
    queue.push("a")
    owner = queue._engine._hold.database.owner
    join, connect, made = owner.join, owner._connect, []

    def closing(*args):
        owner.join = join
        queue.close()  # as another thread may, just here
        return join(*args)

    def connected(patience):
        made.append(connect(patience))
        return made[-1]

    owner.join, owner._connect = closing, connected
    with pytest.raises(ClosedError):
        queue.lease()
    assert all(session.connection.closed for session in made)


def test_who_comes_to_listen_after_a_close_writes_into_no_other_file(open_postgres):
    queue = open_postgres()
    ear = queue._engine._hold.database.ear
    number = ear._hammer
    read, write = os.pipe()
    os.set_blocking(read, False)
    queue.close()
    os.dup2(write, number)  # another file has the number of the ear's
    try:
        ear.wait("channel", ear.listen("channel"), 60.0)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        os.fstat(number)  # it is open still
    finally:
        for each in (read, write, number):
            os.close(each)


# --- statements of the user's own


def test_statements_of_a_block_are_a_part_of_it(queue):
    with queue.transaction() as txn:
        txn.connection.execute("CREATE TEMPORARY TABLE orders (what text)")
        txn.connection.execute("INSERT INTO orders VALUES ('tea')")
    with queue.transaction() as txn:
        assert txn.connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    with pytest.raises(ZeroDivisionError), queue.transaction() as txn:  # noqa: PT012
        txn.connection.execute("DELETE FROM orders")
        queue.push("a")
        raise ZeroDivisionError
    with queue.transaction() as txn:
        assert txn.connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
        assert txn.connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
    assert len(queue) == 0


def test_a_statement_that_fails_undoes_the_block_even_if_it_is_caught(queue):
    with pytest.raises(TransactionError, match="a statement inside it failed"), queue.transaction() as txn:  # noqa: PT012
        queue.push("a")
        with pytest.raises(psycopg.errors.DivisionByZero):
            txn.connection.execute("SELECT 1 / 0")
    with pytest.raises(TransactionError, match="failed"), queue.transaction() as txn:  # noqa: PT012
        with pytest.raises(psycopg.errors.DivisionByZero):
            txn.connection.execute("SELECT 1 / 0")
        with pytest.raises(ServerError, match="25P02"):
            queue.push("a")
    with queue.transaction() as txn:
        queue.push("b")
        with pytest.raises(psycopg.errors.DivisionByZero), txn.connection.transaction():
            txn.connection.execute("SELECT 1 / 0")
        queue.push("c")
    assert list(queue) == ["b", "c"]


def test_a_block_cannot_be_ended_from_inside(queue):
    with queue.transaction() as txn:
        queue.push("a")
        with pytest.raises(psycopg.ProgrammingError):
            txn.connection.commit()
    with pytest.raises(TransactionError, match="has ended it"), queue.transaction() as txn:
        txn.connection.execute("ROLLBACK")
    assert list(queue) == ["a"]
    assert queue.push("b") == 1


def test_of_two_blocks_that_wait_for_each_other_one_is_told_and_can_be_done_again(open_postgres):
    one, two = open_postgres("one"), open_postgres("two")
    met = threading.Barrier(2)
    failed = []

    def block(first, second):
        try:
            with first.transaction():
                first.push("x")
                met.wait(DEADLINE)
                second.push("y")
        except ServerError as error:
            failed.append(error.sqlstate)

    thread = threading.Thread(target=block, args=(two, one))
    thread.start()
    block(one, two)
    thread.join(DEADLINE)
    assert failed == ["40P01"]
    assert (len(one), len(two)) == (1, 1)


def test_what_is_taken_in_a_block_is_passed_over_by_others_until_its_end(queue, open_postgres):
    other = open_postgres()
    queue.push([1, 2, 3])
    found = []
    with pytest.raises(ZeroDivisionError), queue.transaction():  # noqa: PT012
        assert queue.pop() == 1
        thread = threading.Thread(target=lambda: found.append((other.pop(), other.peek(), other.lease().items)))
        thread.start()
        thread.join(DEADLINE)
        1 / 0  # noqa: B018
    assert found == [(2, 1, [3])]
    assert queue.pop() == 1


def test_a_server_that_only_reads_is_waited_for_and_then_told_of(open_postgres, postgres, schema):
    queue = open_postgres(patience=0.3)
    postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        eventually(lambda: postgres.execute("SHOW default_transaction_read_only") == [("on",)])
        with pytest.raises(ServerError) as caught:
            queue.push("a")
        assert caught.value.sqlstate == "25006"
    finally:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")
    eventually(lambda: postgres.execute("SHOW default_transaction_read_only") == [("off",)])
    assert queue.push("a") == 0
    assert schema


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a connection that is just opened
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_amid_a_call_is_not_swallowed_and_leaves_the_queue_whole(queue, interruption):
    chance = random.Random(1)  # noqa: S311
    queue.push(list(range(1_000)))
    raised, caught, seen = [], [], []

    def interrupt(number, _frame):
        raised.append(number)
        raise interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(40):
            queue.count()  # connects
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-3))
                seen += queue.pop(2)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except interruption:
                caught.append(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(raised) == len(caught) > 5, "one was swallowed"
    assert seen == sorted(set(seen))
    assert queue.check() == []
    assert queue.push("next") == 1_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", INTERRUPTED)
def test_an_interrupt_at_any_moment_of_a_call_is_raised_and_leaves_the_queue_whole(
    open_postgres, verb, monkeypatch, record_property
):
    swallowed = []  # by Python: amid the end of an object
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    each = 20 * STEP
    first = 1 + random.randrange(each)  # noqa: S311
    for number in itertools.count(first, each):
        with open_postgres() as queue:
            queue.clear(all=True)
            if verb != "get":
                queue.push("first")
            moments = Moments(number, interrupt)
            try:
                with moments:
                    INTERRUPTED[verb](queue)
            except KeyboardInterrupt:
                assert moments.left == 0
            else:
                assert moments.left > 0 or swallowed, f"swallowed at moment {number}"
            queue.push("last")
            assert queue.pop(10)[-1] == "last"
            assert queue.check() == []
        if moments.left > 0:
            record_property("interrupts", (number - first) // each)
            return


def test_a_child_forked_by_code_in_c_has_connections_of_its_own(queue):
    queue.push("first")
    before = fork.life
    child = ctypes.PyDLL(None).fork()
    if not child:
        code = 1
        try:
            for number in range(100):
                queue.push(number)
            assert fork.life is not before  # with connections that two processes share, all may go well by chance
            code = 0
        finally:
            os._exit(code)
    for number in range(100):
        queue.push(number)
    assert status_of(child) == 0
    assert sorted(queue.pop(300)[1:]) == sorted([*range(100), *range(100)])
