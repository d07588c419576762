"""What stopped, slowed or lost once, on a server as others have it: its limits, its settings, its other users."""

import errno
import itertools
import logging
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg
import pytest
from postgres_pooler import Pooler
from postgres_proxy import Proxy
from processes import DEADLINE, eventually, forked, status_of
from psycopg.adapt import PyFormat
from psycopg.rows import dict_row

from lmdbqueue import ForwardError, PersistentQueue, QueueError, ServerError, StorageError, TransactionError
from lmdbqueue._base.values import Push
from lmdbqueue._local import source
from lmdbqueue._verbs.encoding import digest
from lmdbqueue._verbs.lease import ack_all
from lmdbqueue.forward import Forwarder
from lmdbqueue.postgres import PostgresQueue, _ear
from lmdbqueue.postgres._pool import Pool


def begin_at(postgres, schema, number):
    """Let the next item of every queue have this number."""
    postgres.execute(f'UPDATE "{schema}".tails SET next = {number}; UPDATE "{schema}".queues SET pushed = {number}')


# --- numbers of every size


@pytest.mark.parametrize("number", [2**15, 2**31])
def test_every_verb_goes_on_where_numbers_need_more_bytes(open_postgres, postgres, schema, number):
    queue, other = open_postgres(maxsize=100), open_postgres("other")
    begin_at(postgres, schema, number - 2)
    assert queue.push(["a", "b", "c"]) == range(number - 2, number + 1)
    assert queue.push("d", unique="d") == number + 1
    assert queue.push("e", delay=100) == number + 2
    with queue.transaction():
        assert queue.push("f") == number + 3
    other.retain(5)
    assert len(other.push(list("uvwxyz"))) == 6
    assert len(other) == 5
    with queue.lease(2) as lease:
        assert lease.seqs == [number - 2, number - 1]
        lease.extend(50)
    reader = other.reader("name", start="oldest")
    assert reader.pop(2) == ["v", "w"]
    assert queue.move(1, to=other) == 1
    assert queue.delete(1) == 1
    queue.clear(all=True)


@pytest.mark.parametrize("n", [2**15])
def test_every_verb_takes_any_count(open_postgres, n):
    queue, other = open_postgres(), open_postgres("other")
    queue.push([b""] * (3 * n))
    assert queue.move(n, to=other) == n
    assert queue.delete(n) == n
    with queue.lease(n) as lease:
        assert len(lease) == n
    assert len(other.pop(n)) == n


# --- what the dead leave behind


def test_rows_of_many_dead_sessions_stop_nobody_and_go_in_the_end(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push("a")
    postgres.execute(f"""
        INSERT INTO "{schema}".ledger (id, session, queue, pushed, waiting, seen)
        SELECT n, n, {queue._engine.place.id}, 0, 0, now() - interval '2 days' FROM generate_series(1, 15000) AS n""")
    postgres.execute(f"""
        INSERT INTO "{schema}".owners (holder, queue, owner)
        SELECT n, {queue._engine.place.id}, n FROM generate_series(1, 15000) AS n""")

    for number in range(4):  # as other processes, which look once
        url = f"{postgres.url()}&application_name=other{number}"
        with PostgresQueue(url, "third", schema=schema) as third:
            assert third.push("x") >= 0
    ledger = f'SELECT count(*) FROM "{schema}".ledger WHERE NOT is_folded AND queue > 0'
    assert postgres.execute(ledger)[0][0] < 9
    with queue.lease() as lease:
        assert lease.items == ["a"]
    eventually(lambda: queue.peek() is None and postgres.execute(f'SELECT count(*) FROM "{schema}".owners') == [(1,)])


# --- descriptors


def test_more_descriptors_than_select_knows_are_no_matter(open_postgres):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1_100)]
    try:
        queue = open_postgres()
        queue.push("a")
        with queue.lease() as lease:
            assert lease.items == ["a"]
        with queue.lease():
            pass
        threading.Timer(0.2, queue.push, ["b"]).start()
        assert queue.get(timeout=DEADLINE) == "b"
        assert queue._engine.database.ear._session is not None
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- blocks


@pytest.mark.parametrize("undo", ["decode", "savepoint"])
def test_what_a_savepoint_undid_does_not_count_and_the_block_is_known_to_be_stored(postgres, schema, undo):
    def loads(payload):
        if payload == b"bad":
            raise ValueError
        return payload

    proxy = Proxy(postgres)
    options = {"schema": schema, "dumps": bytes, "loads": loads}
    try:
        with PostgresQueue(proxy.url(), **options) as queue, PostgresQueue(postgres.url(), **options) as look:
            look.push([b"bad", b"good"])
            queue.count()
            cuts = 0
            while True:
                proxy.arm("reply", cuts + 1)
                before = len(look)
                try:
                    with queue.transaction() as txn:
                        if undo == "decode":
                            with pytest.raises(QueueError):
                                queue.pop()
                        else:
                            with txn.connection.transaction(force_rollback=True):
                                queue.push(b"undone")
                        queue.push(b"more")
                except (ServerError, TransactionError, psycopg.Error):
                    assert len(look) == before
                else:
                    assert len(look) == before + 1
                has_cut = proxy.has_cut
                proxy.disarm()
                assert look.check() == []
                if not has_cut:
                    break
                cuts += 1
            assert cuts > 3
    finally:
        proxy.close()


def test_what_a_user_sets_in_a_block_ends_with_it(open_postgres):
    queue = open_postgres()
    with queue.transaction() as txn:
        backend = txn.connection.info.backend_pid
        txn.connection.row_factory = dict_row
        txn.connection.execute("SET synchronous_commit = off; SET lock_timeout = 1; SET search_path = nowhere")
        queue.push("a")
    with queue.transaction() as txn:
        assert txn.connection.info.backend_pid == backend
        assert txn.connection.execute("SHOW synchronous_commit").fetchall() == [("on",)]
        assert txn.connection.execute("SHOW lock_timeout").fetchone() != ("1ms",)
    assert (queue.pop(), queue.stats().pushed) == ("a", 1)
    with queue.lease(), queue.transaction() as txn:
        assert txn.connection.execute("SHOW enable_seqscan").fetchone() == ("on",)


def test_a_user_s_own_limits_hold_in_a_block(postgres, schema):
    url = postgres.url() + "&options=-c%20lock_timeout%3D1234%20-c%20statement_timeout%3D54321"
    with PostgresQueue(url, schema=schema) as queue, queue.transaction() as txn:
        assert txn.connection.execute("SHOW lock_timeout").fetchone() == ("1234ms",)
        assert txn.connection.execute("SHOW statement_timeout").fetchone() == ("54321ms",)


def test_a_push_waits_for_a_stopped_process_no_longer_than_its_patience(open_postgres):
    queue = open_postgres(patience=0.7)
    queue.push("a")
    ear, mouth = os.pipe()

    def hold():
        with queue.transaction():
            queue.push("b")
            os.write(mouth, b".")
            signal.pause()

    pid = forked(hold)
    os.read(ear, 1)
    try:
        begin = time.monotonic()
        with pytest.raises(ServerError) as caught:
            queue.push("c")
        assert caught.value.sqlstate == "55P03"
        assert time.monotonic() - begin < 10
    finally:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        os.close(ear)
        os.close(mouth)
    eventually(lambda: len(queue) == 1)
    queue.push("c")


# --- other servers, other settings


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_reasons_of_any_characters_are_kept_on_a_server_of_any_encoding(postgres, schema, encoding):
    name = f"db_{encoding.lower()}_{os.getpid()}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING {encoding} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with PostgresQueue(postgres.url(name), schema=schema, max_attempts=1) as queue:
            queue.push(["a", "b"])
            queue.lease().nack(reason="it → there")
            queue.lease().reject(reason="\udcff")
            first, _ = queue.dead
            assert first.reason == "it → there"
            assert queue.check() == []
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_strings_as_of_old_are_no_matter(postgres, schema):
    url = postgres.url() + "&options=-c%20standard_conforming_strings%3Doff"
    payloads = [b"\\x41", b"\\\\", bytes(range(256))]
    with PostgresQueue(url, schema=schema, dumps=bytes, loads=bytes) as queue:
        queue.push(payloads)
        queue.push(payloads, unique=["a", "b", "c"])
        assert queue.pop(9) == payloads * 2


def test_lists_of_payloads_go_out_as_binary_at_their_own_size(postgres, schema):
    with PostgresQueue(postgres.url(), schema=schema, dumps=bytes, loads=bytes) as queue:
        queue.push(b"")
        sent = []

        def watch(step):
            sent.extend(step._statements._values.dump_sequence([[b"\xff" * 1000]], [PyFormat.AUTO]))
            return step.execute("SELECT octet_length((%(each)s::bytea[])[1])", each=[b"\xff" * 1000]).fetchone()

        assert queue._engine.database.view(1.0, watch) == (1000,)
        assert len(sent[0]) < 1100


def test_a_pool_may_grow_while_it_is_asked_who_uses_it():
    """As by another thread, or by a signal handler amid the question."""
    pool, opened = Pool(None), []

    class Connected:
        @property
        def thread(self):
            if len(opened) < 5:
                opened.append(pool.wait(lambda: Connected(len(opened) + 2), 0.0)[0])
            return 0

        @thread.setter
        def thread(self, number):
            pass

        def __init__(self, number):
            self.id = number

    opened.append(pool.wait(lambda: Connected(1), 0.0)[0])
    assert not pool.is_used_here()
    assert pool.all == opened


def undo_a_part(txn):
    with txn.connection.transaction() as part:
        raise psycopg.Rollback(part)


FORGETS = {
    "a part of the block is rolled back": undo_a_part,
    "the user says so": lambda txn: txn.connection.execute("DEALLOCATE ALL"),
    "the block is rolled back": lambda _: 1 // 0,
}
NEXT = {
    "push": lambda queue: queue.push("d"),
    "pop": lambda queue: queue.pop(),
    "lease": lambda queue: queue.lease(),
    "peek": lambda queue: queue.peek(),
    "delete": lambda queue: queue.delete(1),
    "push of what is due later": lambda queue: queue.push("d", delay=100),  # a transaction, with nothing before it
}


@pytest.mark.parametrize("forgets", FORGETS)
@pytest.mark.parametrize("verb", NEXT)
def test_a_connection_that_has_forgotten_its_statements_prepares_them_anew(open_postgres, forgets, verb):
    queue = open_postgres()
    for _ in range(2):
        queue.push([*"abcdefg"])
        NEXT[verb](queue)
    (session,) = queue._engine.database.access.pool.all
    with suppress(ZeroDivisionError), queue.transaction() as txn:
        for _ in range(4):  # so that psycopg has prepared some, too
            queue.pop()  # a push would be followed by a notification, outside of transactions
        FORGETS[forgets](txn)
    NEXT[verb](queue)
    assert list(queue._engine.database.access.pool.all) == [session]


def test_a_change_that_fails_at_its_commit_has_failed(postgres, schema, open_postgres):
    """The server has sent the rows by then, and its error comes after them."""
    queue = open_postgres()
    postgres.execute(f"""
        CREATE FUNCTION "{schema}".refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
        CREATE CONSTRAINT TRIGGER refuses AFTER INSERT ON "{schema}".items DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION "{schema}".refuse()
    """)
    for _ in range(3):
        with pytest.raises(ServerError, match="not today"):
            queue.push("a")
    assert queue.count() == 0


SETTINGS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "1000",
    "idle_in_transaction_session_timeout": "2000",
    "client_encoding": "LATIN1",
    "search_path": "nowhere",
    "bytea_output": "escape",
    "DateStyle": "German",
    "array_nulls": "off",
    "enable_indexscan": "off",
}


@pytest.mark.parametrize("take", ["one", "the next one", "several", "in a block", "by a reader"])
def test_an_item_that_is_put_back_expires_when_it_would_have_wherever_the_server_is(postgres, schema, take):
    """In this form of times, a zone is an abbreviation, which is that of another zone when it is read."""
    url = postgres.url() + "&options=-c%20DateStyle%3DSQL%20-c%20TimeZone%3DAsia/Shanghai"
    when = f'SELECT expires_at FROM "{schema}".items ORDER BY seq'
    with PostgresQueue(url, schema=schema) as queue:
        queue.push(["a", "b", "c"], expires=100)
        before, engine = postgres.execute(when), queue._engine
        if take == "by a reader":
            reader = queue.reader("name")._head.steps
            entries = reader.first(3)
            move = reader.advance([key for key, _ in entries])
            assert postgres.execute(when) == []
            reader.retreat(move, entries)
        elif take == "in a block":
            with queue.transaction():
                engine.put_back(engine.take(2, 1, list)[0])
        else:
            counts = {"one": [1], "the next one": [1, 1], "several": [2]}[take]
            for entries in [engine.take(n, 1, list)[0] for n in counts]:
                engine.put_back(entries)
        assert postgres.execute(when) == before


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_role_s_own_settings_change_nothing(postgres, schema, setting):
    role = f"role_{setting.lower()}_{os.getpid()}"
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET {setting} = '{SETTINGS[setting]}'")
    try:
        with PostgresQueue(postgres.url().replace("postgres@", f"{role}@"), schema=schema, patience=5.0) as queue:
            queue.push(["a", "b", "→", "d"], unique=[*"1234"], expires=100)
            with queue.transaction() as txn:
                assert txn.connection.execute(f"SHOW {setting}").fetchall() != []
                assert queue.pop(2) == ["a", "b"]
                queue.state["n"] = 1
            queue.lease().nack(reason="→")
            assert queue.reader("name", start="oldest").pop(2) == ["→", "d"]
            assert (len(queue), dict(queue.state), queue.check()) == (0, {"n": 1}, [])
    finally:
        postgres.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize("name", ['we"ird {x}', "q'uote", "-- {items}", "Ünï. x"])
@pytest.mark.parametrize("order", ["commit", "relaxed"])
def test_a_schema_may_have_any_name(postgres, name, order):
    try:
        with PostgresQueue(postgres.url(), schema=name, order=order) as queue:
            queue.push(["a", "b", "c"])
            assert queue.pop() == "a"
            with queue.lease() as lease:
                assert lease.items == ["b"]
            threading.Timer(0.1, queue.push, ["d"]).start()
            assert queue.pop(2, blocking=True, timeout=DEADLINE) == ["c", "d"]
            assert queue.check() == []
    finally:
        quoted = name.replace('"', '""')
        postgres.execute(f'DROP SCHEMA "{quoted}" CASCADE')


def test_a_pooler_of_transactions_is_refused_with_the_reason_and_one_of_sessions_is_not(postgres, schema):
    pooler, proxy = Pooler(postgres), Proxy(postgres)
    try:
        with pytest.raises(ServerError, match=r"pooler.*session mode"):
            PostgresQueue(pooler.url(), schema=schema, patience=30)
        assert pooler.clients == 3, "it was tried again, or not with enough of them"
        with psycopg.connect(pooler.url(), autocommit=True) as connection:  # others find nothing of ours there
            assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
        with PostgresQueue(proxy.url(), schema=schema) as queue:  # each client has its own connection
            assert queue.push("a") == 0
    finally:
        pooler.close()
        proxy.close()


@pytest.mark.parametrize("change", ["database", "role"])
def test_a_wrong_address_fails_at_once(postgres, change):
    url = postgres.url("nowhere") if change == "database" else postgres.url().replace("postgres@", "nobody@")
    begin = time.monotonic()
    with pytest.raises(ServerError, match="does not exist"):
        PostgresQueue(url, patience=30)
    assert time.monotonic() - begin < 5


def test_a_permission_that_is_taken_away_fails_at_once(postgres, schema, open_postgres):
    open_postgres().push("a")
    role = f"role_{os.getpid()}"
    postgres.execute(f"""
        CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA "{schema}" TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {role}""")
    try:
        with PostgresQueue(postgres.url().replace("postgres@", f"{role}@"), schema=schema) as queue:
            queue.push("b")
            postgres.execute(f'REVOKE INSERT ON "{schema}".items FROM {role}')
            with pytest.raises(ServerError) as caught:
                queue.push("c")
            assert caught.value.sqlstate == "42501"
            postgres.execute(f'REVOKE INSERT ON "{schema}".owners FROM {role}')
            with pytest.raises(ServerError) as caught:
                queue.lease()
            assert caught.value.sqlstate == "42501"
    finally:
        postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_acks_of_one_step_are_done_all_or_none_beside_readers(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push(["a", "b"])
    queue.reader("name", start="oldest")
    leases = [queue.lease(), queue.lease()]
    postgres.execute(f"""
        CREATE FUNCTION "{schema}".refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
        CREATE TRIGGER refuse BEFORE DELETE ON "{schema}".items
        FOR EACH ROW WHEN (OLD.seq = 1) EXECUTE FUNCTION "{schema}".refuse()""")
    with pytest.raises(ServerError):
        ack_all(queue._engine, [(lease, None) for lease in leases])
    assert queue.stats().leased == 2
    postgres.execute(f'DROP FUNCTION "{schema}".refuse CASCADE')
    assert ack_all(queue._engine, [(lease, None) for lease in leases]) == [None, None]
    assert [each.skipped for each in queue.readers()] == [2]


def test_a_process_has_no_more_connections_for_calls_than_its_pool_may(open_postgres):
    queue, hasty, go = open_postgres(pool=2), open_postgres("other", patience=0.1), threading.Event()
    database = queue._engine.database
    queue.push(list(range(6)))
    entered = Counter()

    def loads(payload):
        entered["loads"] += 1
        assert go.wait(DEADLINE)
        return pickle.loads(payload)

    queue.loads = loads
    with ThreadPoolExecutor(6) as executor:
        pops = [executor.submit(queue.pop) for _ in range(6)]
        eventually(lambda: entered["loads"] == 2)
        with pytest.raises(ServerError, match="all 2 connections of the pool are in use"):
            hasty.push("x")
        assert (entered["loads"], len(database.access.pool.all)) == (2, 2)
        assert open_postgres("third", pool=3).push("y") == 0
        go.set()
        assert sorted(pop.result() for pop in pops) == list(range(6))
    assert len(database.access.pool.all) == 3


def test_after_an_error_of_the_server_the_connection_is_another(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push("there")
    postgres.execute(f"""
        CREATE FUNCTION "{schema}".refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.payload LIKE '%bad%'::bytea THEN RAISE division_by_zero; END IF; RETURN new; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON "{schema}".items FOR EACH ROW EXECUTE FUNCTION "{schema}".refuse()""")
    for _ in range(4):
        with pytest.raises(ServerError) as caught:
            queue.push("bad", unique="k")
        assert caught.value.sqlstate == "22012"
        with pytest.raises(ServerError):
            queue.push("bad")
    for number in range(5):
        assert queue.push(f"good {number}", unique=str(number)) > 0
    assert len(queue) == 6


def test_a_lost_connection_fills_no_log(postgres, schema, caplog):
    caplog.set_level(logging.WARNING)
    proxy = Proxy(postgres)
    try:
        with PostgresQueue(proxy.url(), schema=schema) as queue:
            for at in range(1, 6):
                proxy.arm("request", at)
                queue.push("a", unique=str(at))
                proxy.disarm()
    finally:
        proxy.close()
    assert [each.getMessage() for each in caplog.records if "ignored" in each.getMessage()] == []


# --- telling


def test_a_push_tells_nobody_when_nobody_sleeps_any_more(open_postgres, postgres, schema):
    queue = open_postgres()
    with pytest.raises(Exception, match="no item"):
        queue.get(timeout=0.01)
    rows = f'SELECT count(*) FROM "{schema}".sleepers'
    eventually(lambda: postgres.execute(rows) == [(0,)])
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f'LISTEN "{queue._engine.place.channel}"')
        for number in range(5):
            queue.push(number)
            queue.pop()
        assert list(connection.notifies(timeout=0.2)) == []
        thread = threading.Thread(target=lambda: queue.get(timeout=DEADLINE))
        thread.start()
        eventually(lambda: postgres.execute(rows) == [(1,)])
        queue.push("x")
        thread.join(DEADLINE)
        assert list(connection.notifies(timeout=0.5, stop_after=1)) != []


# --- under an old snapshot


def test_a_snapshot_that_stays_open_slows_nobody_more_and_more(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push("a")
    with psycopg.connect(postgres.url()) as report:
        report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        report.execute("SELECT 1").fetchall()
        for _ in range(600):
            queue.push("b")
            queue.pop()
        (epoch,) = postgres.execute(f'SELECT max(epoch) FROM "{schema}".tails')[0]
        assert epoch > 3
        for table, key in (("tails", "queue, epoch"), ("ledger", "id")):
            pages = f"""SELECT max(n) FROM (SELECT count(*) AS n FROM "{schema}".{table} GROUP BY {key}) AS each"""
            assert postgres.execute(pages)[0][0] == 1
        # the versions that a statement may have to pass are those of one page
        sizes = f"""SELECT pg_relation_size('"{schema}".ledger') / 8192, pg_relation_size('"{schema}".tails') / 8192"""
        ledger, tails = postgres.execute(sizes)[0]
        assert ledger > 8
        assert tails > 4
        ids = f"""SELECT count(*) FROM "{schema}".ledger"""
        assert postgres.execute(ids)[0][0] <= 6
    assert queue.check() == []


WRITES = {"push": {"items": 1, "ledger": 1, "tails": 1}}
WRITES |= {verb: {"items": 1, "ledger": 1} for verb in ("pop", "lease", "ack")}


@pytest.mark.parametrize("has_report", [False, True])
def test_a_call_writes_the_rows_of_its_item_and_of_its_session_and_none_that_all_share(
    open_postgres, postgres, schema, has_report
):
    calls = 60
    queue, leases = open_postgres(), []
    verbs = {
        "push": lambda: queue.push("a"),
        "pop": queue.pop,
        "lease": lambda: leases.append(queue.lease(ttl=99)),
        "ack": lambda: leases.pop().ack(),
    }

    def written():
        for _ in range(2):  # a connection tells what it has counted when it is asked, and its statement is over
            queue._engine.database.view(1.0, lambda step: step.execute("SELECT pg_stat_force_next_flush()").fetchall())
        rows = postgres.execute(f"""
            SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE schemaname = '{schema}'""")
        return Counter(dict(rows))

    with psycopg.connect(postgres.url()) as report:
        if has_report:
            report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            report.execute("SELECT 1").fetchall()
        for _ in range(2 * calls + 5):
            queue.push("a")
        queue.lease(ttl=99).ack()
        queue.pop()
        found = {}
        for name, verb in verbs.items():
            before = written()
            for _ in range(calls):
                verb()
            found[name] = {table: round(n / calls, 1) for table, n in (written() - before).items()}
    if not has_report:
        assert found == WRITES
    for name, tables in found.items():  # beside a snapshot a row gets another key each time that its page is full
        assert set(tables) == set(WRITES[name])
        assert all(n <= 1.2 * WRITES[name][table] for table, n in tables.items()), found


def test_pushes_of_many_go_on_while_the_tail_is_renewed_under_them(open_postgres, postgres):
    queue = open_postgres()

    def push(producer):
        mine = open_postgres()
        for number in range(0, 120, 3):
            mine.push((producer, number))
            mine.push([(producer, number + 1)], unique=[f"{producer} {number}"])
            mine.push([(producer, number + 2)])

    with psycopg.connect(postgres.url()) as report:
        report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        report.execute("SELECT 1").fetchall()
        pids = [forked(push, producer) for producer in range(4)]
        assert [status_of(pid) for pid in pids] == [0] * 4
    assert queue.stats().tail == 480
    seen = queue.pop(480)
    for producer in range(4):
        assert [number for who, number in seen if who == producer] == list(range(120))


# --- keys and attempts of what is put back


def test_what_a_cancelled_pop_puts_back_has_its_key_and_attempts(open_postgres):
    queue = open_postgres()
    queue.push("a", unique="k")
    queue.lease().nack()
    for n in (1, 1, 2):
        entries, _ = queue._engine.take(n, 0, lambda each: each)
        queue._engine.put_back(entries)
    assert queue.push("b", unique="k") == 0
    with queue.lease() as lease:
        assert lease.attempts == [2]


def test_what_is_put_back_is_the_row_that_was_taken(open_postgres, postgres):
    queue = open_postgres()
    queue.push(["a", "b"], expires=100, headers={"h": "1"})
    queue.push(["c", "d", "e"])
    table = f'"{queue._engine.database.sql.schema}".items'
    before = postgres.execute(f"SELECT * FROM {table} ORDER BY seq")
    assert len(before) == 5
    for n in (1, 1, 3):  # the second one was seen ahead
        entries, _ = queue._engine.take(n, 0, lambda each: each)
        queue._engine.put_back(entries)
        assert postgres.execute(f"SELECT * FROM {table} ORDER BY seq") == before


# --- order


def test_in_relaxed_order_pushes_wait_for_nobody_and_each_item_comes_once(open_postgres):
    queue = open_postgres(order="relaxed")
    other = open_postgres(order="relaxed")
    found = []
    with queue.transaction():
        queue.push("slow")
        thread = threading.Thread(target=lambda: found.extend([other.push("fast") > 0, list(other)]))
        thread.start()
        thread.join(DEADLINE)
        assert found == [True, ["fast"]]  # though the first is not committed
    assert list(other) == ["slow", "fast"]
    numbers = queue.push(list(range(5_000)))
    assert (len(numbers), numbers.stop - numbers.start) == (5_000, 5_000)
    assert queue.stats().pushed == 5_002
    with pytest.raises(ValueError, match=r"has a relaxed order, .* so it cannot have a named reader"):
        queue.reader("name")
    with pytest.raises(ValueError, match="order"):
        open_postgres(order="commit")
    assert queue.pop(3) == ["slow", "fast", 0]


def test_priorities_come_first_and_keep_their_class_through_a_retry(open_postgres):
    queue, other = open_postgres(), open_postgres("other")

    def push(item, priority):
        return queue._engine.append_apart([queue.dumps(item)], Push(priority=priority))[0].seq

    queue.push(["a", "b"])
    push("low", 127)
    push("high", -128)
    push("high too", -128)
    assert list(queue) == ["high", "high too", "a", "b", "low"]
    queue.lease().nack()
    assert queue.pop() == "high"
    assert queue.move(1, to=other) == 1
    other.push("c")
    assert list(other) == ["high too", "c"]
    with pytest.raises(ValueError, match="prior"):
        queue.reader("name")
    with queue.lease(3) as lease:
        assert lease.items == ["a", "b", "low"]
    follower = open_postgres("followed")
    follower.reader("name")
    with pytest.raises(ValueError, match="prior"):
        follower._engine.append_apart([b"x"], Push(priority=1))


def test_expired_items_are_not_delivered_and_a_replaced_one_is_gone(open_postgres, postgres):
    queue = open_postgres()
    queue._engine.append_apart([queue.dumps("short")], Push(expires=0.01))
    queue.push("long", unique="k")
    postgres.execute("SELECT pg_sleep(0.05)")
    assert list(queue) == ["long"]
    assert queue.stats().expired == 1
    (pushed,) = queue._engine.append_apart([queue.dumps("longer")], Push(keys=[digest("k")], replace=True))
    assert (pushed.seq, pushed.is_stored, list(queue)) == (2, True, ["longer"])
    lease = queue.lease()
    queue._engine.append_apart([queue.dumps("longest")], Push(keys=[digest("k")], replace=True))
    lease.nack()
    assert list(queue) == ["longest"]


# --- forwarding


def test_items_of_a_restored_spool_are_not_taken_for_those_that_were_forwarded(open_postgres, tmp_path):
    spool = PersistentQueue("spool", tmp_path)
    spool.push("before")
    spool.pop()
    spool.close()
    shutil.copytree(tmp_path / "spool", tmp_path / "backup")
    with PersistentQueue("spool", tmp_path) as spool:
        spool.push(["a", "b"])
    remote = open_postgres()
    Forwarder(str(tmp_path / "spool"), remote).run()
    assert list(remote) == ["a", "b"]
    shutil.rmtree(tmp_path / "spool")
    shutil.copytree(tmp_path / "backup", tmp_path / "spool")
    with PersistentQueue("spool", tmp_path) as spool:
        spool.push(["new", "newer"])
    with pytest.raises(ForwardError, match="other items"):
        Forwarder(str(tmp_path / "spool"), remote).run()
    with PersistentQueue("spool", tmp_path) as spool:
        assert list(spool) == ["new", "newer"]


def test_a_database_that_was_restored_is_told_and_nothing_is_forwarded_to_it(open_postgres, postgres, schema, tmp_path):
    """As a dump restores it: with the same uuid, and an older mark, or none."""
    with PersistentQueue("spool", tmp_path) as spool:
        spool.push("a")
        remote = open_postgres()
        Forwarder(spool, remote).run()
        before = postgres.execute(f'SELECT * FROM "{schema}".marks')
        spool.push("b")
        Forwarder(spool, remote).run()
        assert remote.pop(9) == ["a", "b"]
        spool.push("c")
        postgres.execute(f'UPDATE "{schema}".marks SET number = 1, next = 1, removed = 1, batch = ARRAY[0, 1]')
        assert len(before) == 1
        with pytest.raises(ForwardError, match=r"stored 2 batches of it, and now has 1: .*forwarded\.json"):
            Forwarder(spool, remote).run()
        postgres.execute(f'DELETE FROM "{schema}".marks')
        with pytest.raises(ForwardError, match="and now has 0"):
            Forwarder(spool, remote).run()
        assert (list(spool), list(remote)) == (["c"], [])
        other = open_postgres("another target")
        assert Forwarder(spool, other).run().items == 1
        os.remove(tmp_path / "spool" / "forwarded.json")
        spool.push("d")
        Forwarder(spool, remote).run()
        assert list(remote) == ["d"]
        assert spool.check() == []


@pytest.mark.parametrize("durability", ["full", "off"])
def test_how_far_a_target_has_come_is_on_the_disk_before_its_items_leave(tmp_path, monkeypatch, durability):
    with PersistentQueue("spool", tmp_path, durability=durability) as spool:
        spool.push("a")
    done = []

    def told(name, act):
        return lambda *args: (done.append(name), act(*args))[1]

    for name in ("sync_file", "sync_directory"):
        monkeypatch.setattr(source, name, told(name, getattr(source, name)))
    monkeypatch.setattr(os, "replace", told("replace", os.replace))
    with closing(source.QueueSource(tmp_path / "spool")) as spool:
        spool.note("there", 3)
        assert spool.noted("there") == 3
    assert done == (["sync_file", "replace", "sync_directory"] if durability == "full" else ["replace"])


def test_what_a_server_will_never_take_is_refused_by_its_number_and_a_permission_stops(
    open_postgres, postgres, schema, tmp_path
):
    remote = open_postgres()
    postgres.execute(f"""ALTER TABLE "{schema}".items ADD CHECK (octet_length(payload) < 1000)""")
    with PersistentQueue("spool", tmp_path) as spool:
        spool.push(["a", "b" * 5_000, "c"])
    done = Forwarder(str(tmp_path / "spool"), remote).run()
    assert list(remote) == ["a", "c"]
    with PersistentQueue("spool", tmp_path) as spool:
        (letter,) = spool.dead
        assert (letter.seq, "check" in letter.reason) == (1, True)
    assert done.failures == 0


def test_a_server_that_does_not_let_us_listen_is_not_asked_without_a_pause(open_postgres, monkeypatch):
    """Who waits looks by itself meanwhile."""
    queue, asked = open_postgres(), []

    def follow(_self, _session):
        asked.append(time.monotonic())
        raise psycopg.errors.FeatureNotSupported

    monkeypatch.setattr(_ear.Ear, "_follow", follow)
    taker = threading.Thread(target=lambda: queue.get(timeout=DEADLINE))
    taker.start()
    eventually(lambda: len(asked) >= 3)
    queue.push("x")
    taker.join(DEADLINE)
    assert queue.count() == 0
    assert all(later - before >= 0.2 for before, later in itertools.pairwise(asked))


def test_an_opening_that_finds_no_descriptor_left_is_our_error(postgres, schema, monkeypatch):
    def fail():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", fail)
    with pytest.raises(StorageError, match="ulimit -n"):
        PostgresQueue(postgres.url(), schema=schema)
