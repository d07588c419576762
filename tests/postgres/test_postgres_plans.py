"""What each statement reads of a large table: as much as it needs, whatever the server believes of it.

Of 200,000 items, and with ``-m long`` of a million.
"""

import json
import os

import psycopg
import pytest
from processes import DEADLINE, eventually

from lmdbqueue._verbs.reading import head_of
from lmdbqueue.postgres import PostgresQueue, _session

SIZES = [200_000, pytest.param(1_000_000, marks=pytest.mark.long)]
BLOCKS = 1_000  # that a statement may touch; the smaller table has 2,600, and its indexes 1,400 more
_WATCH = """
LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;
SET auto_explain.log_buffers = on; SET auto_explain.log_timing = off; SET auto_explain.log_format = json;
SET auto_explain.log_level = notice; SET client_min_messages = notice
"""
FILL = """
SET synchronous_commit = off;
INSERT INTO "{schema}".owners (holder, queue, owner) SELECT 7, {queue}, session FROM "{schema}".ledger LIMIT 1;
INSERT INTO "{schema}".items (queue, seq, state, attempts, lease, until, changed, reason, payload)
SELECT {queue}, n, state, 1, CASE state WHEN 1 THEN (7::bigint << 20) + n % 1000 END,
    CASE WHEN state IN (1, 2) THEN now() + n * interval '1 minute' + interval '1 day' END, now(), 'why',
    decode('80054b012e', 'hex')
FROM generate_series(0, {items} - 1) AS n,
LATERAL (SELECT CASE n % 20 WHEN 11 THEN 1 WHEN 12 THEN 2 WHEN 13 THEN 3 ELSE 0 END AS state) AS s;
UPDATE "{schema}".tails SET next = {items} WHERE queue = {queue};
UPDATE "{schema}".queues SET pushed = {items}, waiting = {items} / 20 * 17, size = {items} / 20 * 17 * 5,
    leased = {items} / 20, delayed = {items} / 20, dead = {items} / 20 WHERE id = {queue};
"""


class Watched(_session.Session):
    """A session whose plans are told."""

    plans: list = []  # noqa: RUF012  (of all of them)

    def settle_in(self):
        super().settle_in()
        self.connection.add_notice_handler(self._hear)
        self.connection.execute(_WATCH)

    @classmethod
    def _hear(cls, notice):
        _, _, plan = notice.message_primary.partition("plan:")
        if plan:
            cls.plans.append(json.loads(plan))


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read(plan):
    top = plan["Plan"]
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"]


@pytest.fixture(scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lmdbqueue.postgres._access.Session", Watched)
        yield Watched


@pytest.fixture(scope="module", params=SIZES)
def large(request, postgres, watched):  # noqa: ARG001  (from now on)
    """Give a large queue, and another, to all tests here: none of them takes more than some of it."""
    schema, size = f"large_{os.urandom(4).hex()}", request.param
    with (
        PostgresQueue(postgres.url(), schema=schema) as queue,
        PostgresQueue(postgres.url(), "other", schema=schema) as other,
    ):
        queue.count()
        postgres.execute(FILL.format(schema=schema, queue=queue._engine.place.id, items=size))
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(f'ANALYZE "{schema}".items')
        yield queue, other
        assert queue.check() == []
    postgres.execute(f'DROP SCHEMA "{schema}" CASCADE')


def settle(queue):
    with queue.lease(2, ttl=60) as lease:
        lease.extend(50)
        lease.ack(lease.seqs[0])
    queue.lease().nack()
    queue.lease().nack(delay=100)
    queue.lease().reject()
    with queue.lease():
        pass


def relay(queue):
    engine = queue._engine
    for n in (1, 3):
        leased = engine.lease_each(n, 60.0, head_of(queue).sort_out)
        engine._hold._deaths_seen = float("inf")  # otherwise the leases that follow are left to a look for dead owners
        relayed = engine.relay_each([(token, None) for _, (token, *_) in leased], 60.0, head_of(queue).sort_out)
        assert [acked and found and len(acked) for acked, found in relayed] == [1] * n
        engine.ack_each([(found[1].token, None) for _, found in relayed])


def in_block(queue, other):
    with queue.transaction():
        other.push(queue.pop())
        queue.push("x")
        with queue.lease(2):
            pass


def read_by_name(queue):
    reader = queue.reader("name", start=200)
    for _ in range(3):
        reader.pop()
        reader.peek(2)
        reader.delete(2)
    reader.seek(250)
    queue.pop()
    with queue.lease():
        pass
    queue.readers()
    queue.drop_reader("name")


def wait(queue):
    with pytest.raises(Exception, match="items"):
        queue.pop(10**9, blocking=True, timeout=0.01)


VERBS = {
    "push": lambda queue, _: queue.push("a"),
    "push many": lambda queue, _: queue.push(["a", "b"]),
    "push with headers": lambda queue, _: (queue.push("a", headers={"b": "c"}), queue.push(["a", "b"], expires=1000)),
    "push with a key": lambda queue, _: queue.push("a", unique="k"),
    "push with a key that an item has": lambda queue, _: queue.push("a", unique="k", replace=True),
    "push with a delay": lambda queue, _: queue.push("a", delay=1000),
    "pop": lambda queue, _: [queue.pop() for _ in range(4)],
    "pop some": lambda queue, _: queue.pop(3),
    "peek": lambda queue, _: queue.peek(3),
    "browse": lambda queue, _: next(iter(queue)),
    "delete": lambda queue, _: queue.delete(2),
    "lease, ack, nack": lambda queue, _: settle(queue),
    "relay": lambda queue, _: relay(queue),
    "stats": lambda queue, _: (len(queue), queue.stats()),
    "dead": lambda queue, _: (queue.dead.requeue(next(iter(queue.dead)).seq), queue.dead.delete(33)),
    "move": lambda queue, other: queue.move(2, to=other),
    "block": in_block,
    "wait": lambda queue, _: wait(queue),
    "limit": lambda queue, _: (setattr(queue, "maxsize", 10**7), queue.push("a"), setattr(queue, "maxsize", 0)),
    "readers": lambda queue, _: read_by_name(queue),
    "state": lambda queue, _: (queue.state.update(a=1), queue.state.pop("a")),
}


def test_each_statement_touches_few_blocks_of_a_large_table_and_no_more_than_it_needs(large, watched):
    queue, other = large
    queue.pop(2)
    too_much = {}
    for name, verb in VERBS.items():
        for _ in range(3):  # the third time it is prepared
            watched.plans.clear()
            verb(queue, other)
            for plan in watched.plans:
                scans = [each for each in nodes(plan["Plan"]) if each.get("Relation Name") == "items"]
                if read(plan) > BLOCKS or any(each["Node Type"] == "Seq Scan" for each in scans):
                    too_much[name, read(plan)] = plan["Query Text"][:2000], json.dumps(plan["Plan"])[:3000]
            assert watched.plans, name
    assert too_much == {}


def test_retention_reads_what_goes_and_not_what_stays(large, watched):
    queue, _ = large
    stays = len(queue)  # of which some go: those that other tests have pushed are larger
    for limits in (
        {"items": stays - 10},
        {"items": stays - 10, "bytes": 5 * (stays - 20)},
        {"items": stays, "seconds": 9e8},
    ):
        queue.retain(**limits)
        watched.plans.clear()
        for _ in range(3):
            queue.push([1, 2])
        assert max(map(read, watched.plans)) < BLOCKS, [p for p in watched.plans if read(p) >= BLOCKS]
    assert stays - 200 < len(queue) < stays
    queue.retain()


def test_what_comes_back_reads_no_more_than_that(large, watched, postgres):
    queue, _ = large
    schema, leased = queue.schema, queue.stats().leased
    postgres.execute(f"""
        UPDATE "{schema}".items SET until = now() WHERE queue = {queue._engine.place.id}
        AND seq IN (11, 31, 12, 32) AND state IN (1, 2)""")
    watched.plans.clear()
    assert queue.peek(13)[-1] is not None
    assert max(map(read, watched.plans)) < BLOCKS
    eventually(lambda: queue.stats().leased == leased - 2, DEADLINE)


def test_much_at_once_takes_time_in_proportion(large, watched):
    """No array is searched for each row, which would be quadratic."""
    queue, other = large
    for n in (1_000, 20_000):
        for act in (lambda n=n: queue.move(n, to=other), lambda n=n: queue.delete(n), lambda n=n: queue.pop(n)):
            watched.plans.clear()
            act()
            assert max(map(read, watched.plans)) < 40 * n + BLOCKS
