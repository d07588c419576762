"""Awaited calls on PostgreSQL while the server is away."""

import asyncio
import time
from itertools import cycle

import pytest
from postgres_proxy import Proxy
from processes import DEADLINE, eventually

from lmdbqueue import CommitUnknownError, ServerError
from lmdbqueue.postgres.aio import AsyncPostgresQueue

PATIENCE = 1.0  # seconds


@pytest.fixture
def proxy(postgres):
    proxy = Proxy(postgres)
    yield proxy
    proxy.close()


def test_each_awaited_call_has_one_deadline_from_when_it_was_made(proxy, schema):
    """However many are before it, which each wait as long; and one with a time-out is told when that is over."""

    async def main():
        async with AsyncPostgresQueue.open(proxy.url(), schema=schema, patience=PATIENCE) as queue:
            await queue.count()
            proxy.go_down()
            began = time.monotonic()
            leases = [asyncio.ensure_future(queue.lease(n, ttl=9)._awaited) for n in range(1, 9)]
            push, get = asyncio.ensure_future(queue.push("x")), asyncio.ensure_future(queue.get(timeout=0.1))
            put = asyncio.ensure_future(queue.put("y", timeout=0.1))
            await asyncio.wait({get, put})
            assert not any(each.done() for each in leases)
            found = await asyncio.gather(get, put, *leases, push, return_exceptions=True)
            assert {type(each) for each in found} == {ServerError}
            assert time.monotonic() - began < 4 * PATIENCE
            proxy.disarm()
            assert await queue.push("z") == 0
            assert await queue.pop_many(9) == ["z"]

    asyncio.run(main())


def test_a_call_that_has_waited_for_longer_than_its_patience_is_tried_as_long_as_a_new_one(
    postgres, schema, open_postgres
):
    async def main():
        async with AsyncPostgresQueue.open(postgres.url(), schema=schema) as queue:
            engine, asleep, patience = queue.queue._engine, [], []
            waiting = asyncio.ensure_future(queue.get())
            await asyncio.to_thread(eventually, lambda: asleep.extend(queue._courier._grouping.sleepers) or asleep)
            take = engine.take
            engine.take = lambda *args: patience.append(engine.patience) or take(*args)
            asleep[0].deadline = time.monotonic()
            open_postgres().push("x")
            assert await waiting == "x"
            assert patience[-1] == engine.patience

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_a_take_with_a_time_out_whose_commit_is_unknown_is_told_so(proxy, schema, open_postgres):
    """Its item may be gone: that nothing was changed is not for the loop to say, while the worker still asks."""
    look = open_postgres()

    async def outcome(at):
        look.push("a")
        async with AsyncPostgresQueue.open(proxy.url(), schema=schema, patience=PATIENCE) as queue:
            await queue.count()
            proxy.arm("reply", at, then_down=True)
            try:
                return await queue.get(timeout=0.05)
            except (ServerError, CommitUnknownError) as error:
                return type(error)
            finally:
                proxy.disarm()

    async def main():
        for at in cycle(range(1, 7)):
            found = await outcome(at)
            assert found in ("a", ServerError, CommitUnknownError)
            if found is CommitUnknownError:
                return

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_500_waiting_tasks_need_no_more_than_three_connections(postgres, schema):
    ((begun,),) = postgres.execute("SELECT clock_timestamp()")

    def connections():
        ours = "application_name = 'lmdbqueue' AND backend_start > %s"
        return postgres.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {ours}", begun)[0][0]

    async def main():
        async with AsyncPostgresQueue.open(postgres.url(), schema=schema) as queue:
            waiting = [asyncio.create_task(queue.get()) for _ in range(500)]
            await queue.count()  # they have all been tried and sleep
            assert await asyncio.to_thread(connections) <= 3
            await queue.push([*range(500)])
            assert await asyncio.gather(*waiting) == [*range(500)]
            assert await asyncio.to_thread(connections) <= 3

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
