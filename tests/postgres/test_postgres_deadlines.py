"""A call has one deadline, from when it was made, whatever its steps are: counted with a clock that goes on by hand."""

import asyncio
import threading
import time

import pytest

from lmdbqueue._verbs.lease import relay_all
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.aio import _courier, _grouping
from lmdbqueue.postgres import PostgresQueue, _access, _database, _hold, _leasing, _owner, _pool, _silence
from lmdbqueue.postgres._silence import Connection
from lmdbqueue.postgres.aio import AsyncPostgresQueue

PATIENCE = 1000.0  # seconds
STEP = 0.001  # seconds that each message takes, by the clock of the test


class Clock:
    """What ``time`` is, for the modules that look at it."""

    def __init__(self):
        self.now = time.monotonic()
        self.told = []  # when each wait for the server was to be over

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Let each message of the thread that makes a call take ``STEP``, and note until when it is waited for."""
    clock, wait = Clock(), Connection.wait
    for module in (_access, _courier, _database, _grouping, _hold, _leasing, _owner, _pool, _silence):
        monkeypatch.setattr(module, "time", clock)

    def waited(connection, *args, **options):
        if threading.get_ident() not in listeners:
            clock.told.append(connection.until)
            clock.now += STEP
        return wait(connection, *args, **options)

    listeners = []
    listened = _database.Database._connected_for_listening
    monkeypatch.setattr(
        _database.Database,
        "_connected_for_listening",
        lambda database: (listeners.append(threading.get_ident()), listened(database))[1],
    )
    monkeypatch.setattr(Connection, "wait", waited)
    return clock


VERBS = {
    "push": lambda queue: queue.push("x"),
    "push with a key": lambda queue: queue.push("x", unique="k"),
    "pop": lambda queue: queue.pop(),
    "pop many": lambda queue: queue.pop(3),
    "pop what fits": lambda queue: queue.pop_many(3, max_bytes=50),
    "pop more than there are": lambda queue: queue.pop(99),
    "wait for some": lambda queue: queue.pop(2, blocking=True),
    "lease": lambda queue: queue.lease(),
    "lease what fits": lambda queue: queue.lease(3, max_bytes=50),
    "ack": lambda queue: queue.leased.ack(),
    "relay": lambda queue: relay_all(queue._engine, [queue.leased], None, head_of(queue).sort_out),
    "nack": lambda queue: queue.leased.nack(),
    "peek": lambda queue: queue.peek(),
    "len": len,
    "stats": lambda queue: queue.stats(),
    "clear": lambda queue: queue.clear(),
    "delete": lambda queue: queue.delete(2),
    "delete what is gone": lambda queue: queue.delete_item(99),
    "move": lambda queue: queue.move(2, to=queue.other),
    "retain": lambda queue: queue.retain(2),
    "dead": lambda queue: len(queue.dead),
    "reader": lambda queue: queue.reader("another"),
    "reader's pop": lambda queue: queue.named.pop(2),
    "reader's lag": lambda queue: len(queue.named),
    "state": lambda queue: queue.state.get("k"),
    "drop a queue": lambda queue: queue.drop_queue("other"),
    "another object": lambda queue: PostgresQueue(
        queue.conninfo, "new", schema=queue.schema, patience=PATIENCE
    ).close(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_all_steps_of_a_call_are_over_when_its_patience_is(postgres, schema, open_postgres, clock, verb):
    other = open_postgres("other", patience=PATIENCE)
    with PostgresQueue(postgres.url(), schema=schema, patience=PATIENCE) as queue:
        queue.push([*"abcdefgh"])
        queue.other, queue.named, queue.leased = other, queue.reader("name", start="oldest"), queue.lease()
        queue._engine._hold._deaths_seen = 0.0  # so that it looks for the dead, too
        clock.told.clear()
        begin = clock.now
        VERBS[verb](queue)
        assert clock.told
        assert max(clock.told) <= begin + PATIENCE


def test_all_steps_of_an_opening_are_over_when_its_patience_is(postgres, schema, clock):
    begin = clock.now
    with PostgresQueue(postgres.url(), schema=schema, patience=PATIENCE):
        assert len(clock.told) > 5
        assert max(clock.told) <= begin + PATIENCE


AWAITED = {
    "push": lambda queue: queue.push("x"),
    "pop": lambda queue: queue.pop(),
    "get": lambda queue: queue.get(timeout=PATIENCE / 2),
    "lease": lambda queue: queue.lease(),
    "len": lambda queue: queue.count(),
    "stats": lambda queue: queue.stats(),
    "clear": lambda queue: queue.clear(),
}


@pytest.mark.parametrize("verb", AWAITED)
def test_all_steps_of_an_awaited_call_are_over_when_its_patience_is(postgres, schema, clock, verb):
    async def main():
        async with AsyncPostgresQueue.open(postgres.url(), schema=schema, patience=PATIENCE) as queue:
            await queue.push([*"abc"])
            clock.told.clear()
            begin = clock.now
            await AWAITED[verb](queue)
            assert clock.told
            assert max(clock.told) <= begin + PATIENCE

    asyncio.run(main())


def test_leases_of_many_threads_do_not_wait_for_each_other_s_patience(open_postgres):
    """Each waited for the lock of the one before it, that tried to connect meanwhile, and then tried as long itself."""
    queue = open_postgres()
    owner = queue._engine.database.owner
    held, go = threading.Event(), threading.Event()

    def connecting():
        with owner._lock:
            held.set()
            go.wait(30)

    thread = threading.Thread(target=connecting)
    thread.start()
    held.wait(30)
    try:
        with pytest.raises(_owner.ServerError, match="away"):
            queue._engine._hold.holder.token(0.0)
    finally:
        go.set()
        thread.join()
    assert queue.lease() is not ...
