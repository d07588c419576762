"""Jobs on a PostgreSQL server by the libraries that frameworks use for it, as ``postgres_jobs`` measures them.

Each process awaits their own verbs, one at a time: ``procrastinate`` defers, fetches and finishes a job (which it
deletes), ``pgqueuer`` enqueues, dequeues and logs one. Both keep more of a job than a queue does. What is not installed
is left out.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

Verb = Callable[[Any], Coroutine[Any, Any, object]]
Job = Callable[[], Coroutine[Any, Any, object]]
Opened = tuple[Verb, Job, Callable[[], Coroutine[Any, Any, object]]]  # push, take and settle, close


def installed() -> dict[str, Callable[[str], Coroutine[Any, Any, Opened]]]:
    """Return how each of them is opened, with its tables, that is installed here."""
    known = {"procrastinate": _procrastinate, "pgqueuer": _pgqueuer}
    return {name: open_ for name, open_ in known.items() if find_spec(name) is not None}


async def _procrastinate(url: str) -> Opened:
    from procrastinate import App, PsycopgConnector  # noqa: PLC0415
    from procrastinate.jobs import Status  # noqa: PLC0415

    app = App(connector=PsycopgConnector(conninfo=url, min_size=1, max_size=1))
    await app.open_async()
    rows = await app.connector.execute_query_one_async("SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS there")
    if not rows["there"]:
        await app.schema_manager.apply_schema_async()
    worker = await app.job_manager.register_worker()

    async def push(item: Any) -> None:
        await app.configure_task("job", queue="jobs").defer_async(item=item)

    async def job() -> None:
        while (found := await app.job_manager.fetch_job(None, worker)) is None:
            pass
        await app.job_manager.finish_job(found, status=Status.SUCCEEDED, delete_job=True)

    return push, job, app.close_async


async def _pgqueuer(url: str) -> Opened:
    import psycopg  # noqa: PLC0415
    from pgqueuer.db import PsycopgDriver  # noqa: PLC0415
    from pgqueuer.queries import EntrypointExecutionParameter, Queries  # noqa: PLC0415

    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    queries = Queries(PsycopgDriver(connection))
    cursor = await connection.execute("SELECT to_regclass('pgqueuer') IS NOT NULL")
    if await cursor.fetchone() == (False,):
        await queries.install()
    entrypoints: Any = {"job": EntrypointExecutionParameter(0)}
    manager: Any = uuid4()

    async def push(item: Any) -> None:
        await queries.enqueue("job", json.dumps(item).encode())

    async def job() -> None:
        while not (found := await queries.dequeue(1, entrypoints, manager, None, timedelta(minutes=1))):
            pass
        await queries.log_jobs([(found[0], "successful", None)])

    return push, job, connection.close


def worker(open_: Callable[[str], Coroutine[Any, Any, Opened]], url: str) -> Any:
    """Return the verbs of one of them, to be called, as a process of ``postgres_jobs`` has them."""
    loop = asyncio.new_event_loop()
    push, job, close = loop.run_until_complete(open_(url))

    def pushed(item: Any) -> None:
        loop.run_until_complete(push(item))

    def done() -> None:
        loop.run_until_complete(job())

    def closed() -> None:
        loop.run_until_complete(close())
        loop.close()

    return pushed, None, done, closed
