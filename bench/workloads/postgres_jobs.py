"""Jobs on a PostgreSQL server by 1, 4 and 16 processes: single pushes, pops, and leases with their acks.

Each process has a connection of its own, and each call is a commit of its own. What is beside ``PostgresQueue``:

============  =============================================================================================
``by hand``   an INSERT whose number comes from a sequence; a claim-and-delete of one statement (``SKIP LOCKED``)
``ordered``   an INSERT whose number comes from a counter's row, locked until the commit; the same claim
``pgmq``      the statements of pgmq's functions ``send``, ``read`` and ``delete``, written out and prepared, so
              without the function calls and the planning that these do each time
others        the libraries of ``postgres_frameworks``, as far as they are installed
============  =============================================================================================

Ours is also measured with ``work(handler)``, which acknowledges one job and leases the next by one statement, and with
one and with 16 tasks of one event loop: they lease and acknowledge, or ``work``, what is there or is pushed meanwhile.
All of it is done by three servers: one as it is; one whose commits take 2 ms at the least
(``commit_delay``), as a network's disk does; one with a synchronous standby.
"""

import asyncio
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from bench.items import make_items
from bench.measure import Measures, Run
from bench.workloads import postgres_frameworks
from bench.workloads.postgres import postgres_server, programs_of_postgres, synchronous_standby

OURS, RELAXED, HAND, THEIRS = "PostgresQueue", "PostgresQueue, relaxed", "by hand", "pgmq"
AS_IT_IS, SLOW, STANDBY = "durable", "durable, commits of 2 ms", "durable, with a synchronous standby"
PROCESSES = (1, 4, 16)
TASKS = 16
AWAITED = "lease and ack, awaited by {}"
JOBS = f"push, lease and ack, awaited by {TASKS}"
WORKED = "work, awaited by {}"
WORKED_JOBS = f"push and work, awaited by {TASKS}"
_AT_ONCE = 64  # pushes that are awaited together
_SLOWER, _ROUNDS = 4, 3  # so many times less is measured where commits wait, and in so many rounds
_WARM_UP = 20

BY_HAND = "CREATE TABLE byhand (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload bytea NOT NULL)"
INSERT = "INSERT INTO byhand (payload) VALUES (%s)"
_POP = """
DELETE FROM byhand WHERE id = (SELECT id FROM byhand ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING payload
"""
_ORDERED = (
    "CREATE TABLE byhand (id bigint PRIMARY KEY, payload bytea NOT NULL)",
    "CREATE TABLE counter (tail bigint NOT NULL) WITH (fillfactor = 10)",
    "INSERT INTO counter VALUES (0)",
)
_NUMBERED = """
WITH given AS (UPDATE counter SET tail = tail + 1 RETURNING tail)
INSERT INTO byhand (id, payload) SELECT tail, %s FROM given
"""
PGMQ = (
    """CREATE TABLE q_jobs (
    msg_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, read_ct int DEFAULT 0 NOT NULL,
    enqueued_at timestamptz DEFAULT now() NOT NULL, vt timestamptz NOT NULL, message bytea)""",
    "CREATE INDEX q_jobs_vt_idx ON q_jobs (vt ASC)",
)
_SEND = "INSERT INTO q_jobs (vt, message) VALUES (clock_timestamp(), %s) RETURNING msg_id"
_READ = """
WITH cte AS (
    SELECT msg_id FROM q_jobs WHERE vt <= clock_timestamp() ORDER BY msg_id ASC LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE q_jobs m SET vt = clock_timestamp() + interval '60 seconds', read_ct = read_ct + 1
FROM cte WHERE m.msg_id = cte.msg_id RETURNING m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message
"""
_DELETE = "DELETE FROM q_jobs WHERE msg_id = %s RETURNING msg_id"

Call = Callable[[], object]


class Worker(NamedTuple):
    """What a process does with a queue."""

    push: Callable[[Any], object]
    pop: Call
    job: Call | None  # a lease with its ack
    close: Call
    work: Callable[[int], object] | None = None  # so many jobs in one call


def measure_postgres_jobs(run: Run) -> None:
    """Measure what several processes do with one server, and with others whose commits take longer."""
    for mode in (AS_IT_IS, SLOW, STANDBY):
        with _server(run, mode) as url:
            if url is None:
                return
            measured = partial(_measured, run.scale.single_durable // (1 if mode == AS_IT_IS else _SLOWER), url)
            contenders = {
                OURS: partial(measured, partial(ours, url, "commit"), ()),
                RELAXED: partial(measured, partial(ours, url, "relaxed"), ()),
                HAND: partial(measured, partial(by_hand, url, INSERT), (BY_HAND,)),
                "ordered": partial(measured, partial(by_hand, url, _NUMBERED), _ORDERED),
                THEIRS: partial(measured, partial(pgmq, url), PGMQ),
            }
            for name, open_ in postgres_frameworks.installed().items():
                contenders[name] = partial(measured, partial(_framework, open_, url), ())
            run.interleave("postgres-jobs", mode, "jobs/s", contenders, 0 if mode == AS_IT_IS else _ROUNDS)


@contextmanager
def _server(run: Run, mode: str) -> Iterator[str | None]:
    delay = ("commit_delay=2000", "commit_siblings=0") if mode == SLOW else ()
    with run.fresh_directory() as directory, postgres_server(run, directory, *delay) as url:
        programs = programs_of_postgres()
        if mode != STANDBY or url is None or programs is None:
            yield url
            return
        with run.fresh_directory() as beside, synchronous_standby(programs, beside, url):
            yield url


def _measured(
    n: int, url: str, open_worker: Callable[[], Worker], tables: tuple[str, ...], _directory: str
) -> Measures:
    import psycopg  # noqa: PLC0415  (an extra)

    measures: dict[str, float] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS lmdbqueue CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for statement in tables:
            connection.execute(statement)  # type: ignore[arg-type]  (ours, all of them)
    if open_worker.func is _framework:  # type: ignore[attr-defined]
        open_worker().close()  # so that the tables are there before many want them
    for processes in PROCESSES:
        each = max(50, n // processes)
        measures[f"push, {processes}"] = _together(processes, each, open_worker, "push")
        if open_worker.func not in (pgmq, _framework):  # type: ignore[attr-defined]
            measures[f"pop, {processes}"] = _together(processes, each, open_worker, "pop")
            _together(processes, each, open_worker, "push")
        if open_worker.func is not by_hand:  # type: ignore[attr-defined]
            measures[f"lease and ack, {processes}"] = _together(processes, each, open_worker, "job")
        else:
            _together(processes, each, open_worker, "pop")
        if open_worker.func is ours:  # type: ignore[attr-defined]
            _together(processes, each, open_worker, "push")
            measures[f"work, {processes}"] = _together(processes, each, open_worker, "work")
    if open_worker.func is ours:  # type: ignore[attr-defined]
        measures |= asyncio.run(_awaited(n, *open_worker.args))  # type: ignore[attr-defined]
    return measures


async def _awaited(n: int, url: str, order: Any) -> dict[str, float]:
    """Return how many jobs a second tasks of one event loop take, and take while as many are pushed."""
    from lmdbqueue.postgres.aio import AsyncPostgresQueue  # noqa: PLC0415

    async def work(jobs: int) -> None:
        for _ in range(jobs):
            lease = await queue.lease(ttl=60, blocking=True)
            await lease.ack()

    async def push() -> None:
        for start in range(0, n, _AT_ONCE):
            await asyncio.gather(*map(queue.push, items[start : start + _AT_ONCE]))

    items = make_items(n - n % TASKS)
    measures: dict[str, float] = {}
    async with AsyncPostgresQueue[Any].open(url, "jobs", order=order) as queue:
        for tasks in (1, TASKS):
            await queue.push(items)
            working = (work(len(items) // tasks) for _ in range(tasks))
            measures[AWAITED.format(tasks)] = len(items) / await _seconds(*working)
        measures[JOBS] = len(items) / await _seconds(push(), *(work(len(items) // TASKS) for _ in range(TASKS)))
        for tasks in (1, TASKS):
            await queue.push(items)
            measures[WORKED.format(tasks)] = len(items) / await _seconds(_worked(queue, len(items), tasks))
        measures[WORKED_JOBS] = len(items) / await _seconds(push(), _worked(queue, len(items), TASKS))
    return measures


async def _worked(queue: Any, jobs: int, tasks: int) -> None:
    """Have a worker do so many jobs in so many tasks."""
    done, ending = 0, asyncio.Event()

    async def handle(_: object) -> None:
        nonlocal done
        done += 1
        if done >= jobs:
            ending.set()

    await queue.work(handle, concurrency=tasks, stop=ending)


async def _seconds(*tasks: Coroutine[Any, Any, None]) -> float:
    begin = time.perf_counter()
    await asyncio.gather(*tasks)
    return time.perf_counter() - begin


def _together(processes: int, each: int, open_worker: Callable[[], Worker], verb: str) -> float:
    """Return how many calls a second so many processes made, each ``each`` of them, once all were ready."""
    ready, begin, ended = os.pipe(), os.pipe(), os.pipe()
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _work(each, open_worker, verb, (ready[1], begin[0], ended[1]))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    for fd in (ready[1], ended[1]):
        os.close(fd)  # so that the end of those who fail is seen
    for _ in pids:
        assert os.read(ready[0], 1), verb
    started = time.perf_counter()
    os.write(begin[1], b"." * processes)
    for _ in pids:
        assert os.read(ended[0], 1), verb
    seconds = time.perf_counter() - started
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, verb
    for fd in (ready[0], *begin, ended[0]):
        os.close(fd)
    return processes * (each - _WARM_UP) / seconds


def _work(each: int, open_worker: Callable[[], Worker], verb: str, pipes: tuple[int, int, int]) -> None:
    ready, begin, ended = pipes
    worker = open_worker()
    items = iter(make_items(each))
    call = {"push": lambda: worker.push(next(items)), "pop": worker.pop, "job": worker.job, "work": worker.job}[verb]
    assert call is not None
    for _ in range(_WARM_UP):
        call()
    os.write(ready, b".")
    os.read(begin, 1)
    if verb == "work" and worker.work is not None:
        worker.work(each - _WARM_UP)
    else:
        for _ in range(each - _WARM_UP):
            call()
    os.write(ended, b".")
    worker.close()


def ours(url: str, order: Any) -> Worker:
    """Return what a process does with ``PostgresQueue``."""
    from lmdbqueue.postgres import PostgresQueue  # noqa: PLC0415

    queue = PostgresQueue[Any](url, "jobs", order=order)

    def pop() -> None:
        while queue.pop() is None:  # the last items are locked by others, who may yet give them back
            pass

    def job() -> None:
        while not (lease := queue.lease(ttl=60)):
            pass
        lease.ack()

    def work(jobs: int) -> None:
        done, ending = 0, threading.Event()

        def handle(_: object) -> None:
            nonlocal done
            done += 1
            if done == jobs:
                ending.set()

        queue.work(handle, stop=ending)

    return Worker(queue.push, pop, job, queue.close, work)


def by_hand(url: str, insert: Any) -> Worker:
    """Return what a process does with a table by hand."""
    import psycopg  # noqa: PLC0415

    connection = psycopg.connect(url, autocommit=True)

    def push(item: Any) -> None:
        connection.execute(insert, [pickle.dumps(item)])

    def pop() -> None:
        while not (rows := connection.execute(_POP, binary=True).fetchall()):
            pass
        pickle.loads(rows[0][0])

    return Worker(push, pop, None, connection.close)


def _framework(open_: Any, url: str) -> Worker:
    return Worker(*postgres_frameworks.worker(open_, url))


def pgmq(url: str) -> Worker:
    """Return what a process does with the statements of pgmq."""
    import psycopg  # noqa: PLC0415

    connection = psycopg.connect(url, autocommit=True)

    def push(item: Any) -> None:
        connection.execute(_SEND, [pickle.dumps(item)]).fetchall()

    def job() -> None:
        while not (rows := connection.execute(_READ, binary=True).fetchall()):
            pass
        number, _, _, _, payload = rows[0]
        pickle.loads(payload)
        connection.execute(_DELETE, [number]).fetchall()

    return Worker(push, job, job, connection.close)
