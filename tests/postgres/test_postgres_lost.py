"""Connections to PostgreSQL that are lost, at every moment of every change: each is done once, or it is told."""

import asyncio
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, cycle

import postgres_server
import psycopg
import pytest
from postgres_proxy import LATE, Proxy
from processes import DEADLINE, eventually, forked, status_of

from lmdbqueue import CommitUnknownError, DecodeError, LeaseExpiredError, QueueError, ServerError
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.postgres import PostgresQueue, _session, _silence
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._failures import Lost
from lmdbqueue.postgres._ledger import Settled
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres.aio import AsyncPostgresQueue

ITEMS = ["a", "b", "c"]


@pytest.fixture
def proxy(postgres, request):
    proxy = Proxy(postgres, is_near=getattr(request, "param", "near") == "near")
    yield proxy
    proxy.close()


class World:
    """A queue whose connections get lost, and one to look with."""

    def __init__(self, proxy, schema, look, patience=20.0):
        self.look, self.other_look = look("queue"), look("other")
        self.queue = PostgresQueue(proxy.url(), schema=schema)
        self.other = PostgresQueue(proxy.url(), "other", schema=schema)
        self.queue._engine._hold.patience = self.other._engine._hold.patience = patience
        self.lease = None

    def begin(self):
        self.look.retain()
        for reader in self.look.readers():
            self.look.drop_reader(reader.name)
        for queue in (self.look, self.other_look):
            queue.clear(all=True)
            queue.state.clear()
        self.look.push(ITEMS)
        self.lease = self.queue.lease(2)
        self.look.push(["d", "e", "f"])
        self.queue.count()
        self.tail = self.look.stats().tail

    def block(self):
        with self.queue.transaction():
            self.other.push(self.queue.pop())
            self.queue.state["n"] = 1

    def relay(self, n):
        """End leases of one item each, and lease as many others; return how many ended, and the other items."""
        engine, sort_out = self.queue._engine, head_of(self.queue).sort_out
        leased = engine.lease_each(n, None, sort_out)
        engine._hold._deaths_seen = float("inf")  # otherwise the leases that follow are left to a look for dead owners
        relayed = engine.relay_each([(token, None) for _, (token, *_) in leased], None, sort_out)
        return len([acked for acked, _ in relayed if acked]), [found and found[0] for _, found in relayed]

    def all(self):
        """Return all that can be told of both queues."""
        stats = self.look.stats()
        return (
            [*self.look],
            (stats.leased, stats.delayed, stats.dead, stats.tail - self.tail),
            [*self.other_look],
            dict(self.look.state),
            [(each.position - self.tail, each.lag, each.skipped) for each in self.look.readers()],
        )

    def close(self):
        self.queue.close()
        self.other.close()


CHANGES = {
    "push": lambda world: world.queue.push("new"),
    "push a list": lambda world: world.queue.push(["new", "newer"]),
    "push with headers": lambda world: world.queue.push(["new", "newer"], headers={"a": "b"}, expires=100),
    "push with a key": lambda world: world.queue.push(["new", "newer"], unique=["k", None]),
    "push with a delay": lambda world: world.queue.push("new", delay=100),
    "pop": lambda world: world.queue.pop(),
    "pop some": lambda world: world.queue.pop(3),
    "get": lambda world: world.queue.get(timeout=5),
    "delete": lambda world: world.queue.delete(2),
    "clear": lambda world: world.queue.clear(),
    "lease": lambda world: world.queue.lease(2).items,
    "ack": lambda world: world.lease.ack(world.lease.seqs[0]),
    "relay": lambda world: world.relay(1),
    "relay of several": lambda world: world.relay(2),
    "nack": lambda world: [[seq - world.lease.seqs[0] for seq in seqs] for seqs in world.lease.nack()],
    "extend": lambda world: world.lease.extend(50),
    "move": lambda world: world.queue.move(2, to=world.other),
    "reader, and its pop": lambda world: world.queue.reader("name").pop(2),
    "reader, and its delete": lambda world: world.queue.reader("name").delete(2),
    "retain": lambda world: world.queue.retain(3),
    "push beyond what is kept": lambda world: (world.look.retain(2, bytes=10**6), world.queue.push("new"))[1],
    "state": lambda world: world.queue.state.__setitem__("n", 1),
}


@pytest.mark.parametrize("mode", ["request", "reply", "late"])
@pytest.mark.parametrize(
    ("change", "proxy"),
    [*((change, "near") for change in CHANGES), ("pop", "far"), ("pop some", "far"), ("get", "far")],  # sent together
    indirect=["proxy"],
)
def test_a_change_is_done_once_whenever_its_connection_is_lost(proxy, schema, open_postgres, change, mode):
    world = World(proxy, schema, open_postgres)
    world.begin()
    first = world.tail
    expected = CHANGES[change](world), world.all()
    cuts = 0
    while True:
        world.begin()
        proxy.arm(mode, cuts + 1)
        result = CHANGES[change](world)
        has_cut = proxy.has_cut
        proxy.disarm()
        if mode == "late" and has_cut:
            time.sleep(3 * LATE)  # what was late has arrived now, and must not have changed anything
        if isinstance(result, (int, range)) and change.startswith("push"):
            assert result == _shifted(expected[0], world.tail - first)
        elif change == "push with a key":
            assert result == [number + world.tail - first for number in expected[0]]
        else:
            assert result == expected[0]
        assert world.all() == expected[1]  # and what is counted is proven at the end, since counts are never reset
        if not has_cut:
            break
        cuts += 1
    assert cuts >= 1
    world.close()


def _shifted(result, by):
    return range(result.start + by, result.stop + by) if isinstance(result, range) else result + by


@pytest.fixture
def impatient(monkeypatch):
    """Let a silence be short, whatever the patience of a call."""
    monkeypatch.setattr(_silence, "SHORTEST", 0.1)
    monkeypatch.setattr(_silence, "_PART", 0.0)


@pytest.mark.parametrize("mode", ["lost request", "lost reply"])
@pytest.mark.parametrize("change", ["push", "pop", "pop some", "lease", "ack", "relay", "reader, and its pop", "state"])
@pytest.mark.usefixtures("impatient")
def test_a_change_is_done_once_whenever_a_connection_falls_silent(proxy, schema, open_postgres, change, mode):
    """The server hears nothing of its end, and holds what was claimed until it is told."""
    world = World(proxy, schema, open_postgres)
    world.begin()
    first = world.tail
    expected = CHANGES[change](world), world.all()
    for at in count(1):
        world.begin()
        proxy.arm(mode, at)
        result = CHANGES[change](world)
        has_cut = proxy.has_cut
        proxy.disarm()
        assert result == (_shifted(expected[0], world.tail - first) if change == "push" else expected[0])
        assert world.all() == expected[1]
        if not has_cut:
            break
    assert at > 1
    world.close()


@pytest.mark.parametrize("verb", ["push", "pop"])
@pytest.mark.usefixtures("impatient")
def test_the_call_after_one_whose_connection_fell_silent_waits_for_nothing(proxy, schema, open_postgres, verb):
    """It waited for the locks of the lost one until the server's keepalives ended that, half a minute later."""
    look = open_postgres()
    with PostgresQueue(proxy.url(), schema=schema, patience=5.0) as queue:
        look.push(["a", "b"])

        def block():
            with queue.transaction():
                queue.push("lost")
                assert queue.pop() == "a"
                proxy.arm("lost request", 1)
                queue.push("lost, too")

        with pytest.raises(ServerError):
            block()
        assert proxy.has_cut
        assert (queue.push("c") > 1) if verb == "push" else (queue.pop() == "a")
    assert look.pop_many(9) == (["a", "b", "c"] if verb == "push" else ["b"])


@pytest.mark.usefixtures("impatient")
def test_connections_that_rest_are_not_tried_when_one_of_them_was_silent(proxy, schema, open_postgres):
    open_postgres().push("a")
    with PostgresQueue(proxy.url(), schema=schema) as queue:
        access = queue._engine.database.access
        for session in [access.taken(30.0, time.monotonic() + 30.0) for _ in range(5)]:
            access.give_back(session)
        proxy.arm("lost request", 1)
        assert queue.pop() == "a"
        assert proxy.has_cut
        assert len(access.pool.all) == 1


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_at_work_is_waited_for_longer_than_a_silence(proxy, schema):
    with PostgresQueue(proxy.url(), schema=schema, patience=20.0) as queue:
        assert queue._engine.database.view(
            20.0, lambda step: step.connection.execute("SELECT 7 FROM pg_sleep(2)").fetchall()
        ) == [(7,)]


@pytest.mark.usefixtures("impatient")
def test_a_role_that_acts_as_another_knows_of_its_own_connections_and_may_end_them(postgres, schema):
    """As with ALTER ROLE ... SET role; the other knows nothing of what this one is doing."""
    role = f"acts_{schema}"
    postgres.execute(f"""
        CREATE ROLE "{role}_as"; CREATE ROLE "{role}" LOGIN IN ROLE "{role}_as";
        ALTER ROLE "{role}" SET role = '{role}_as'; CREATE SCHEMA "{schema}" AUTHORIZATION "{role}_as"
    """)
    try:
        with PostgresQueue(postgres.url().replace("postgres@", f"{role}@"), schema=schema, patience=20.0) as queue:
            database = queue._engine.database
            acting = "SELECT current_user::text FROM pg_sleep(2)"
            shown = database.view(20.0, lambda step: step.connection.execute(acting).fetchall())
            assert shown == [(f"{role}_as",)]
            lost = database.access.entered(time.monotonic() + DEADLINE)
            database.access.shut_out(lost.id, 1, time.monotonic() + DEADLINE)
            assert postgres.execute("SELECT FROM pg_stat_activity WHERE pid = %s", lost.backend) == []
            lost.close()
            assert queue.push("a") == 0
    finally:
        postgres.execute(f'DROP SCHEMA "{schema}" CASCADE; DROP ROLE "{role}"; DROP ROLE "{role}_as"')


@pytest.mark.usefixtures("impatient")
def test_a_server_without_room_for_another_connection_is_waited_for(postgres, schema):
    role = f"limited_{schema}"
    postgres.execute(f'CREATE ROLE "{role}" LOGIN; CREATE SCHEMA "{schema}" AUTHORIZATION "{role}"')
    try:
        with PostgresQueue(postgres.url().replace("postgres@", f"{role}@"), schema=schema, patience=20.0) as queue:
            postgres.execute(f'ALTER ROLE "{role}" CONNECTION LIMIT 1')
            assert queue._engine.database.view(
                20.0, lambda step: step.connection.execute("SELECT 7 FROM pg_sleep(1)").fetchall()
            ) == [(7,)]
    finally:
        postgres.execute(f'DROP SCHEMA "{schema}" CASCADE; DROP ROLE "{role}"')


class Hand:
    """A clock that goes on by hand."""

    now = 1.0

    def monotonic(self):
        return self.now


def test_what_comes_in_parts_is_no_silence(postgres, monkeypatch):
    """A slow network: each second a part, and a moment before it in which nothing comes."""
    with _silence.Connection.opened(postgres.url(), 5.0, 5.0) as connection:
        clock, asked = Hand(), []
        monkeypatch.setattr(_silence, "time", clock)
        connection.limit(3.0)
        connection.is_at_work = lambda *_: asked.append(clock.now) or True

        def moments(_, gen, **_options):
            next(gen)
            for ready in [0, 1] * 9 + [0] * 5:
                clock.now += 1.0
                gen.send(ready)

        monkeypatch.setattr(psycopg.Connection, "wait", moments)
        connection.wait(1 for _ in count())
        monkeypatch.undo()
        assert asked == [1.0 + 2 * 9 + 4]


def test_only_the_very_process_of_a_server_is_asked_about_and_cancelled(postgres, schema):
    """An address of several hosts may lead to another server, where somebody else's process has the same number."""
    with PostgresQueue(postgres.url(), schema=schema) as queue, psycopg.connect(postgres.url()) as holder:
        queue.push("a")
        holder.execute(f'LOCK TABLE "{schema}".items')
        access = queue._engine.database.access
        session = access.connect(30.0, 30.0)

        def read():
            with suppress(psycopg.errors.QueryCanceled):
                session.connection.execute(f'TABLE "{schema}".items')

        blocked = threading.Thread(target=read)
        blocked.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        eventually(lambda: postgres.execute(waits, session.backend))
        known = session.connection.backend
        assert not access._is_at_work(known._replace(started="1.5"), 5.0, True)  # noqa: FBT003
        assert postgres.execute(waits, session.backend)
        assert access._is_at_work(known, 5.0, True)  # noqa: FBT003
        blocked.join(DEADLINE)
        assert session.is_idle
        session.close()


def test_there_is_time_to_ask_whether_the_server_is_at_work_when_a_call_is_over(postgres):
    """Another connection by an encrypted one takes more than half a second, over a continent."""
    with _silence.Connection.opened(postgres.url(), 5.0, 5.0) as connection:
        asked = []
        connection.is_at_work = lambda *about: asked.append(about) or True
        connection.limit(25.0, time.monotonic())
        connection._refuse_silence(is_over=True)
        assert asked == [(connection.backend, 5.0, True)]


def test_a_lock_is_not_waited_for_when_the_call_is_over_whatever_the_server_was_told(proxy, schema, postgres):
    with PostgresQueue(proxy.url(), schema=schema) as queue:
        queue.push("a")

        def wait(step):
            step.connection.execute("SET lock_timeout = 0")
            step.connection.execute(f'LOCK "{schema}".state')

        with psycopg.connect(postgres.url()) as other:
            other.execute(f'LOCK "{schema}".state')
            with pytest.raises(ServerError) as caught:
                queue._engine.database.run(0.5, wait)
        assert caught.value.sqlstate == "57014"


def test_leases_outlast_a_statement_of_their_owner_that_takes_longer_than_a_call(open_postgres, postgres, schema):
    """Its connection was closed, so all leases of the process were over."""
    queue = open_postgres()
    queue.push("a")
    lease, owner = queue.lease(), queue._engine.database.owner
    known = owner.known
    with psycopg.connect(postgres.url()) as other:
        other.execute(f'LOCK "{schema}".owners')
        with pytest.raises(ServerError):
            owner.join(queue._engine.place.id, time.monotonic())
    assert owner.known == known
    lease.ack()
    assert queue.pop() is None


@pytest.mark.parametrize("mode", ["request", "reply", "late"])
def test_a_block_is_done_whole_or_told_to_have_done_nothing(proxy, schema, open_postgres, mode):
    world = World(proxy, schema, open_postgres)
    cuts = 0
    outcomes = set()
    while True:
        world.begin()
        before = world.all()
        proxy.arm(mode, cuts + 1)
        try:
            world.block()
        except ServerError:
            assert world.all() == before
            outcomes.add("nothing")
        else:
            assert world.all()[2:] == (["c"], {"n": 1}, [])
            outcomes.add("all")
        has_cut = proxy.has_cut
        proxy.disarm()
        if not has_cut:
            break
        cuts += 1
    assert outcomes == {"all", "nothing"}
    world.close()


@pytest.mark.parametrize("change", ["push", "pop", "ack"])
def test_a_change_of_which_nobody_can_be_asked_is_told_to_be_unknown(proxy, schema, open_postgres, change):
    world = World(proxy, schema, open_postgres, patience=1.0)
    told = set()
    for at in range(1, 4):
        world.begin()
        before = world.all()
        proxy.arm("reply", at, then_down=True)
        try:
            CHANGES[change](world)
        except CommitUnknownError:
            told.add("unknown")
        except ServerError:
            told.add("nothing")
            assert world.all() == before
        proxy.disarm()
    assert "unknown" in told
    assert CHANGES[change](world) is not ..., "the queue object is of no use afterwards"
    world.close()


def test_a_lease_is_over_when_the_connection_of_its_owner_is(proxy, schema, open_postgres):
    world = World(proxy, schema, open_postgres)
    world.begin()
    pid = world.queue._engine.database.owner._session.connection.info.backend_pid
    world.look._engine.database.view(
        1.0, lambda step: step.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    )
    eventually(lambda: list(world.look) == [*"abcdef"])
    with pytest.raises(LeaseExpiredError):
        world.lease.ack()
    with world.queue.lease() as lease:
        assert (lease.items, lease.attempts) == (["a"], [2])
    assert world.queue._engine.database.owner.known
    world.close()


def test_what_a_session_sent_that_was_shut_out_does_nothing_when_it_arrives_late(
    open_postgres, postgres, schema, monkeypatch
):
    database = open_postgres()._engine.database
    late, other = database.access.entered(0.0, 5.0), database.access.entered(0.0, 5.0)
    monkeypatch.setattr(_session, "_END", "SELECT %(session)s")  # the server does not hear of the end in time
    assert other.settled(late.id, late.token + 1) is None
    numbers = f'"{schema}".late'
    postgres.execute(f"CREATE SEQUENCE {numbers}")
    with pytest.raises(Lost):  # nextval() is of no transaction: what claimed an item would have had it till the end
        late.run(lambda step: step.connection.execute(f"SELECT nextval('{numbers}')"), ())
    assert postgres.execute(f"SELECT is_called FROM {numbers}") == [(False,)]
    for session in (late, other):
        session.close()


@pytest.mark.parametrize("proxy", ["near", "far"], indirect=True)
def test_what_an_interrupted_pop_claimed_is_free_before_the_server_has_seen_the_end(proxy, schema, monkeypatch):
    interrupts = [KeyboardInterrupt]

    def loads(payload):
        if interrupts:
            raise interrupts.pop()
        return payload

    with PostgresQueue(proxy.url(), schema=schema, dumps=bytes, loads=loads) as queue:
        queue.push([b"a", b"b"])
        dropped = []
        with monkeypatch.context() as patch:
            patch.setattr(Session, "close", lambda session: dropped.append(session) or None)  # which nobody sees
            with pytest.raises(KeyboardInterrupt):
                queue.pop()
            assert queue.pop(2) == [b"a", b"b"]
    dropped[0].close()


def _lease_in_a_process(url, schema):
    with PostgresQueue(url, schema=schema) as queue:
        queue.lease()


def test_a_lease_that_was_under_way_when_its_process_died_comes_back(open_postgres, postgres, schema):
    """Nobody sees what it holds before its commit, which may take as long as a flush, or as a standby needs."""
    queue = open_postgres()
    queue.push("a")
    postgres.execute(f"""
        CREATE FUNCTION "{schema}".wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
        CREATE TRIGGER wait BEFORE UPDATE OF lease ON "{schema}".items
        FOR EACH ROW EXECUTE FUNCTION "{schema}".wait()""")
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
    living = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32) + objid::bigint IN "
    with psycopg.connect(postgres.url(), autocommit=True) as stop:
        stop.execute("SELECT pg_advisory_lock(7)")
        pid = forked(_lease_in_a_process, postgres.url(), schema)
        eventually(lambda: postgres.execute(waiting))
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        eventually(lambda: not postgres.execute(f'{living} (SELECT owner FROM "{schema}".owners)'))
        assert queue.count() == 1, "it looks for the dead"
        assert postgres.execute(waiting), "the server has noticed that it was killed"
    eventually(lambda: postgres.execute(f'SELECT attempts FROM "{schema}".items') == [(1,)])
    postgres.execute(f'DROP FUNCTION "{schema}".wait CASCADE')
    eventually(lambda: queue.count() == 1)
    with queue.lease() as lease:
        assert (lease.items, lease.attempts) == (["a"], [2])
    eventually(lambda: queue.count() == 0 and len(postgres.execute(f'SELECT 1 FROM "{schema}".owners')) == 1)


def test_a_lease_that_is_tried_again_is_one_that_others_know(open_postgres, postgres, schema, monkeypatch):
    """After the server has lost all connections others forget the owner that this process had."""
    queue, look = open_postgres(), open_postgres()
    look.push(["a", "b"])
    queue.lease().ack()
    once, tries = Session.once, []

    def once_lost(session, *args):
        tries.append(None)
        if len(tries) > 1:
            return once(session, *args)
        owner = queue._engine.database.owner._session.backend
        postgres.execute("SELECT pg_terminate_backend(%s, 20000)", owner)
        look.count()
        raise Lost(RuntimeError("the connection was lost"))

    monkeypatch.setattr(Session, "once", once_lost)
    (token,) = {lease._token for lease in [queue.lease()]}
    assert (token >> 20,) in postgres.execute(f'SELECT holder FROM "{schema}".owners')


def test_the_end_of_an_object_gives_back_what_it_leased_before_its_tokens_were_used_up(open_postgres, postgres, schema):
    queue, look = open_postgres(), open_postgres()
    look.push(["a", "b", "c"])
    holder = queue._engine._hold.holder
    leases = [queue.lease()]
    assert sum(1 for _ in holder._free) + 1 == 1 << 20
    leases.append(queue.lease())
    assert len(holder.numbers) == 2
    assert look.pop() == "c"
    queue.close()
    assert list(look) == ["a", "b"]
    assert postgres.execute(f'SELECT 1 FROM "{schema}".owners') == []


TAKES = {
    "pop": lambda queue: queue.pop(),
    "pop what was seen ahead": lambda queue: queue.pop(),
    "pop some": lambda queue: queue.pop(2)[0],
    "pop what fits": lambda queue: queue.pop_many(2, max_bytes=9)[0],
    "lease": lambda queue: queue.lease()[0],
    "lease some": lambda queue: queue.lease(2)[0],
    "lease after a look for the dead": lambda queue: (setattr(queue._engine._hold, "_deaths_seen", 0.0), queue.lease())[
        1
    ][0],
    "glance": lambda queue: queue._head.candidates(1) and "b",
}


@pytest.mark.parametrize("take", TAKES)
def test_a_session_that_was_shut_out_tells_nobody_that_nothing_is_there(open_postgres, postgres, schema, take):
    queue = open_postgres()
    queue.push(["a", "b", "c"])
    if take == "pop what was seen ahead":
        queue.count()
    assert queue.pop() == "a"
    if take != "pop what was seen ahead":
        queue._engine._takes._ahead = None
    queue._engine._hold._deaths_seen = time.monotonic() + DEADLINE
    postgres.execute(f'UPDATE "{schema}".ledger SET is_fenced = true')
    assert TAKES[take](queue) == "b"


def test_an_ack_of_a_session_that_was_shut_out_is_done_by_another(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push(["a", "b"])
    lease = queue.lease()
    postgres.execute(f'UPDATE "{schema}".ledger SET is_fenced = true')
    lease.ack()
    assert queue.check() == []
    assert (queue.stats().leased, queue.pop(9)) == (0, ["b"])


KEPT = ("pushed", "waiting", "size", "leased")


def test_an_ack_of_a_session_that_a_restored_backup_does_not_know_is_counted(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push(["a", "b"])
    lease = queue.lease()
    counts, sums = ", ".join(KEPT), ", ".join(f"sum({each})" for each in KEPT)
    postgres.execute(f"""
        WITH gone AS (DELETE FROM "{schema}".ledger RETURNING *)
        UPDATE "{schema}".queues SET ({counts}) = (SELECT {sums} FROM gone)""")
    lease.ack()
    assert queue.check() == []
    assert (queue.stats().leased, queue.pop(9)) == (0, ["b"])


def test_a_session_that_was_shut_out_begins_nothing_with_another_queue(open_postgres, postgres, schema):
    queue, other = open_postgres(), open_postgres("other")
    queue.push("a")
    postgres.execute(f'UPDATE "{schema}".ledger SET is_fenced = true')
    other.push("b")
    free = f'SELECT session FROM "{schema}".ledger WHERE NOT is_fenced'
    assert postgres.execute(f'SELECT 1 FROM "{schema}".ledger WHERE is_fenced AND session IN ({free})') == []


def _fail(_):
    raise ValueError


@pytest.mark.parametrize("mode", ["request", "reply", "late"])
@pytest.mark.parametrize("proxy", ["near", "far"], indirect=True)
def test_what_cannot_be_decoded_stays_the_first_whenever_its_connection_is_lost(proxy, schema, open_postgres, mode):
    """The undoing may come late, too: until then it would be passed over."""
    look = open_postgres()
    with PostgresQueue(proxy.url(), schema=schema) as queue:
        for at in count(1):
            look.push(["a", "b"])
            queue.loads = _fail
            proxy.arm(mode, at)
            with pytest.raises(DecodeError):
                queue.pop()
            has_cut = proxy.has_cut
            proxy.disarm()
            queue.loads = pickle.loads
            assert queue.pop(2) == ["a", "b"]
            if not has_cut:
                break
    assert at > 2


@pytest.mark.parametrize("mode", ["request", "late"])
def test_what_a_lost_block_had_taken_is_the_first_again_at_once(proxy, schema, open_postgres, mode):
    look = open_postgres()
    with PostgresQueue(proxy.url(), schema=schema) as queue:
        for at in count(1):
            look.push(["a", "b"])
            proxy.arm(mode, at)
            try:
                with queue.transaction():
                    queue.pop()
                    queue.state["n"] = 1
            except ServerError:
                assert queue.pop() == "a"
            has_cut = proxy.has_cut
            proxy.disarm()
            assert queue.pop() == "b"
            if not has_cut:
                break
    assert at > 3


@pytest.mark.parametrize("mode", ["request", "reply"])
def test_a_block_that_finds_nothing_fails_with_our_error_whenever_its_connection_is_lost(proxy, schema, mode):
    with PostgresQueue(proxy.url(), schema=schema) as queue:
        for at in count(1):
            proxy.arm(mode, at)
            with suppress(ServerError), queue.transaction():
                queue.pop()
                queue.pop(2)
            has_cut = proxy.has_cut
            proxy.disarm()
            if not has_cut:
                break
        assert at > 3


def test_what_an_interrupted_pop_had_claimed_is_the_first_again_at_once(open_postgres, monkeypatch):
    queue, close = open_postgres(), Session.close
    queue.push(["a", "b"])

    def interrupted(_):
        raise KeyboardInterrupt

    def close_late(session):  # as the server hears of it
        threading.Timer(5 * LATE, close, [session]).start()

    queue.loads = interrupted
    monkeypatch.setattr(Session, "close", close_late)
    with pytest.raises(KeyboardInterrupt):
        queue.pop()
    monkeypatch.undo()
    queue.loads = pickle.loads
    assert queue.pop(2) == ["a", "b"]


@pytest.mark.parametrize("proxy", ["far"], indirect=True)
@pytest.mark.parametrize("is_asked", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_host_that_vanished_is_given_up_while_patience_is_left(proxy, postgres, schema, is_asked):
    """Nothing is answered any more, not even on the level of the network; first, or after it has the question."""
    with PostgresQueue(proxy.url(), schema=schema, patience=3.0 if is_asked else 1.0) as queue:
        queue.push("a")
        begin = time.monotonic()
        if is_asked:
            with psycopg.connect(postgres.url()) as other, ThreadPoolExecutor(1) as executor:
                other.execute(f'SELECT FROM "{schema}".tails FOR UPDATE')
                pushed = executor.submit(queue.push, "b")
                eventually(lambda: postgres.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
                proxy.fall_silent()
                other.rollback()
                assert pushed.result() == 1
        else:
            proxy.fall_silent()
            with suppress(ServerError):  # what is left may be too little
                assert queue.push("b") == 1
        assert time.monotonic() - begin < 10, "as long as keepalives take that know nothing of patience"


def test_a_lease_is_given_though_the_connection_of_its_owner_is_lost_just_then(open_postgres, postgres, monkeypatch):
    queue, other = open_postgres(), open_postgres("other")
    queue.push("a")
    other.push("x")
    assert queue.lease().items == ["a"]
    monkeypatch.setattr(Session, "is_alive", True)
    monkeypatch.setattr(Session, "is_quiet", True)
    pid = queue._engine.database.owner._session.backend
    postgres.execute("SELECT pg_terminate_backend(%s, 20000)", pid)
    assert other.lease().items == ["x"]


def test_a_lease_whose_ttl_was_over_before_another_connection_was_had_is_asked_for_again(open_postgres, monkeypatch):
    queue = open_postgres()
    queue.push("a")
    once, lost = Database.once, [Settled(None)]
    monkeypatch.setattr(Database, "once", lambda *args: (args[5](), lost.pop())[1] if lost else once(*args))
    assert queue.lease(ttl=9).items == ["a"]


def test_sleepers_wake_though_the_connection_that_listens_was_lost(proxy, schema, open_postgres):
    world = World(proxy, schema, open_postgres)
    world.begin()
    world.look.clear(all=True)
    with pytest.raises(QueueError):
        world.queue.get(timeout=0.01)
    pid = world.queue._engine.database.ear._session.connection.info.backend_pid
    world.look._engine.database.view(
        1.0, lambda step: step.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    )
    world.look.push("x")
    assert world.queue.get(timeout=20) == "x"
    eventually(lambda: world.queue._engine.database.ear._session is not None)
    world.close()


def test_errors_of_the_server_are_ours(open_postgres, postgres):
    queue = open_postgres(dumps=bytes, loads=bytes)

    def fail(step):
        step.connection.execute("SELECT 1/0")

    with pytest.raises(ServerError) as caught:
        queue._engine.database.view(1.0, fail)
    assert caught.value.sqlstate == "22012"
    assert queue.count() == 0
    with pytest.raises(ServerError, match="opening"):
        PostgresQueue(postgres.url("nowhere"), patience=0.1)
    with pytest.raises(ServerError) as caught:
        PostgresQueue("host=/nowhere user=me password=secret", patience=0.1)
    assert "secret" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def produce(url, place, producer, items):
    with PostgresQueue(url, patience=60) as queue:
        for number in range(0, items, 2):
            queue.push([(producer, number), (producer, number + 1)])
    (place / f"produced-{producer}").touch()


def consume(url, place, consumer):
    with (
        PostgresQueue(url, patience=60) as queue,
        open(place / f"consumed-{consumer}", "w", encoding="ascii") as file,
    ):
        while True:
            items = queue.pop(3)
            file.write("".join(f"{producer} {number}\n" for producer, number in items))
            file.flush()
            if not items and (place / "end").exists():
                return


@pytest.mark.parametrize("consumers", [1, 2])
def test_a_server_that_is_killed_again_and_again_loses_nothing_and_gives_nothing_twice(
    needs_postgres, tmp_path, record_property, consumers
):
    """With one consumer the order is kept, too; of two, one may get what the other had claimed when it all broke."""
    needs_postgres()
    kills, items = 4, 1000
    server = postgres_server.Server().create().start()
    pids = []
    try:
        PostgresQueue(server.url()).close()
        pids = [forked(produce, server.url(), tmp_path, producer, items) for producer in range(2)]
        pids += [forked(consume, server.url(), tmp_path, consumer) for consumer in range(consumers)]
        paths = [tmp_path / f"consumed-{consumer}" for consumer in range(consumers)]
        for number in range(kills):
            wanted = (number + 1) * items // (kills + 2)
            eventually(lambda w=wanted: sum(p.read_bytes().count(b"\n") for p in paths if p.exists()) > w)
            (server.kill if number % 2 else server.stop)()
            server.start()
        assert [status_of(pid) for pid in pids[:2]] == [0, 0]
        (tmp_path / "end").touch()
        assert [status_of(pid) for pid in pids[2:]] == [0] * consumers
        pids = []
        with PostgresQueue(server.url()) as queue:
            assert queue.pop(9) == []
            assert queue.check() == []
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended, and was seen to
                os.kill(pid, signal.SIGKILL)
                status_of(pid)
        server.remove()
    seen = [tuple(map(int, line.split())) for path in paths for line in path.read_text().splitlines()]
    assert sorted(seen) == [(producer, number) for producer in range(2) for number in range(items)]
    if consumers == 1:
        for producer in range(2):
            assert [number for who, number in seen if who == producer] == list(range(items))
    record_property("kills", kills)


def test_tasks_that_take_together_are_told_whether_their_items_may_be_gone(proxy, schema, open_postgres):
    """At which message depends on how slow the machine is: one more tells the server how much time is left."""
    look = open_postgres()
    kinds = set()

    async def together(queue):
        """Let them be taken in one step: the worker begins when all are there."""
        go = threading.Event()
        busy = queue._begin(go.wait, DEADLINE)
        pops = [asyncio.ensure_future(queue.pop()) for _ in ITEMS]
        await asyncio.sleep(0)  # each has made its call
        go.set()
        await busy
        return await asyncio.gather(*pops, return_exceptions=True)

    async def main():
        for at in cycle(range(1, 9)):
            look.push(ITEMS)
            async with AsyncPostgresQueue.open(proxy.url(), schema=schema) as queue:
                queue.queue._engine._hold.patience = 0.5
                await queue.count()
                proxy.arm("reply", at, then_down=True)
                found = await together(queue)
                proxy.disarm()
                left = look.pop(9)
                kinds.update(map(type, found))
                if found == ITEMS:
                    assert left == []
                elif {type(each) for each in found} == {CommitUnknownError}:
                    assert left in ([], ITEMS)
                else:
                    assert all(isinstance(each, ServerError) for each in found)
                    assert left == ITEMS
                await queue.push("goes on")
                assert await queue.get() == "goes on"
            if kinds == {str, CommitUnknownError, ServerError}:
                return

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_tasks_that_wait_are_told_when_the_server_stays_away(proxy, schema, open_postgres):
    look = open_postgres()

    async def main():
        async with AsyncPostgresQueue.open(proxy.url(), schema=schema) as queue:
            queue.queue._engine._hold.patience = 0.5
            waiting = [asyncio.create_task(queue.get()) for _ in range(20)]
            await queue.count()
            proxy.arm("request", 1, then_down=True)
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(each) for each in found} == {ServerError}
            proxy.disarm()
            sleep, failed = queue.queue._engine.sleep, threading.Event()

            def fail(ticket, timeout):
                if not failed.is_set():
                    failed.set()
                    raise ServerError("here", "reading", "nobody there")
                sleep(ticket, timeout)

            queue.queue._engine.sleep = fail
            waiting = [asyncio.create_task(queue.get()) for _ in range(20)]
            await asyncio.to_thread(failed.wait, DEADLINE)
            await queue.count()
            look.push(list(range(20)))
            assert await asyncio.gather(*waiting) == list(range(20))

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def _end_of_owner(queue, postgres):
    """End the connection that shows that the leases of a process have an owner."""
    postgres.execute("SELECT pg_terminate_backend(%s, 20000)", queue._engine.database.owner._session.backend)


def test_an_owner_that_cannot_be_forgotten_yet_keeps_nobody_from_what_waits(open_postgres, postgres, schema):
    queue, taken = open_postgres(), []
    with PostgresQueue(f"{postgres.url()}&application_name=other", schema=schema) as other:
        other.push([*"abcd"])
        other.lease()
        with ThreadPoolExecutor(1) as executor, other.transaction():  # so its process cannot be shut out
            _end_of_owner(other, postgres)
            for take in (queue.pop, lambda: queue.lease()[0], lambda: queue.pop(1)[0]):
                queue._engine._hold._deaths_seen = 0.0
                taken.append(executor.submit(take).result())
    assert taken == ["a", "b", "c"]


def test_a_block_keeps_no_process_waiting_whose_owner_it_found_dead(open_postgres, postgres, schema):
    queue = open_postgres()
    with PostgresQueue(f"{postgres.url()}&application_name=other", schema=schema) as other:
        other._engine._hold.patience = 1.0
        other.push(["a", "b"])
        other.lease()
        _end_of_owner(other, postgres)
        with ThreadPoolExecutor(1) as executor, queue.transaction():
            queue._engine._hold._deaths_seen = 0.0
            assert queue.pop() == "a"
            executor.submit(other.push, "c").result()
    eventually(lambda: queue.count() == 2 and not postgres.execute(f'SELECT 1 FROM "{schema}".owners'))


def test_what_is_due_and_locked_by_others_keeps_nobody_from_the_rest(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push([*"abcd"])
    queue.push("x", expires=0.001)
    queue.lease(ttl=0.001)
    with psycopg.connect(postgres.url()) as other:
        other.execute(f'SELECT FROM "{schema}".items WHERE until IS NOT NULL OR expires_at IS NOT NULL FOR UPDATE')
        time.sleep(0.01)
        assert queue.pop() == "b"
        assert queue.lease().items == ["c"]
        assert queue.pop(5) == ["d"]
        assert queue.pop(5) == []


def test_a_pool_whose_connections_are_all_of_no_use_is_left_at_once(open_postgres, postgres, schema):
    queue = open_postgres(patience=3.0)
    access = queue._engine.database.access
    sessions = [access.taken(3.0, time.monotonic() + 3.0) for _ in range(9)]
    for session in sessions:
        access.give_back(session)
    postgres.execute(f'UPDATE "{schema}".ledger SET is_fenced = true')
    begin = time.monotonic()
    queue.push("a")
    assert time.monotonic() - begin < 1.0


def test_a_lease_is_not_given_under_an_owner_that_others_have_forgotten(open_postgres, postgres, schema, monkeypatch):
    """The end of its connection may be heard of here long after the server has seen it."""
    queue = open_postgres()
    with PostgresQueue(f"{postgres.url()}&application_name=other", schema=schema) as look:
        look.push(["a", "b"])
        queue.lease().ack()
        monkeypatch.setattr(Session, "is_alive", True)
        monkeypatch.setattr(Session, "is_quiet", True)
        _end_of_owner(queue, postgres)
        look.count()
        assert postgres.execute(f'SELECT 1 FROM "{schema}".owners') == []
        lease = queue.lease()
        assert (lease._token >> 20,) in postgres.execute(f'SELECT holder FROM "{schema}".owners')
