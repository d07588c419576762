"""A thousand tasks of one event loop that push into a PostgreSQL server at once, beside psycopg's own connections.

By hand the tasks share 20 asynchronous connections, and each push takes its number from a row, so that numbers have the
order of commits: what ``PostgresQueue`` promises.
"""

import asyncio
import pickle
import time
from collections.abc import Callable
from typing import Any

from bench.items import Item, make_items
from bench.measure import Measures

_AT_ONCE = 1_000
_CONNECTIONS = 20
_MEASURE = f"await push, {_AT_ONCE:,} at once, to a server"
_TABLES = """
CREATE TABLE tasks_tail (tail bigint NOT NULL);
CREATE TABLE tasks (id bigint PRIMARY KEY, payload bytea NOT NULL);
INSERT INTO tasks_tail VALUES (0)
"""
_PUSH = """
WITH given AS (UPDATE tasks_tail SET tail = tail + 1 RETURNING tail)
INSERT INTO tasks SELECT tail, %s FROM given
"""


def contenders(url: str) -> dict[str, Callable[[str], Measures]]:
    """Return what is to be measured, of a server at ``url``."""
    return {
        "AsyncPostgresQueue": lambda _directory: asyncio.run(_ours(url)),
        f"by hand, {_CONNECTIONS} asynchronous connections": lambda _directory: asyncio.run(_by_hand(url)),
    }


async def _ours(url: str) -> Measures:
    from lmdbqueue.postgres.aio import AsyncPostgresQueue  # noqa: PLC0415

    async with AsyncPostgresQueue[Any].open(url, "bench") as queue:
        await queue.push(make_items(1)[0])
        measures = await _measured(queue.push)
        await asyncio.to_thread(queue.queue.drop_queue, "bench")
    return measures


async def _by_hand(url: str) -> Measures:
    import psycopg  # noqa: PLC0415

    free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
    for _ in range(_CONNECTIONS):
        free.put_nowait(await psycopg.AsyncConnection.connect(url, autocommit=True))

    async def execute(statement: Any, *values: object) -> None:
        connection = await free.get()
        try:
            await connection.execute(statement, values or None)
        finally:
            free.put_nowait(connection)

    async def push(item: Item) -> None:
        await execute(_PUSH, pickle.dumps(item))

    await execute(_TABLES)
    measures = await _measured(push)
    await execute("DROP TABLE tasks, tasks_tail")
    while not free.empty():
        await free.get_nowait().close()
    return measures


async def _measured(push: Callable[[Item], Any]) -> Measures:
    items = make_items(_AT_ONCE)
    begin = time.perf_counter()
    await asyncio.gather(*map(push, items))
    return {_MEASURE: _AT_ONCE / (time.perf_counter() - begin)}
