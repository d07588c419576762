"""One item a call, and 1,000, into a PostgreSQL server and out of it, beside loops written by hand with psycopg.

The server is started from the distribution's package, in the bench's directory, on a Unix socket, and syncs each
commit. What the loops promise:

==========================  =====================================================================================
``by hand``                 the order of commits, as ours: a number from a counter's row, which stays locked until
                            then; what cannot be decoded has not left, as ours: deleted and decoded in one transaction
``by hand, one statement``  the same pushes; a pop is one statement, so what cannot be decoded is lost
``by hand, identity``       the same pops; a push takes its number from a sequence, whose order is not that of commits,
                            so a consumer may pass over an item that comes in later with a smaller number
==========================  =====================================================================================

Each call is a commit of its own; each may be made by many at once (``SKIP LOCKED``). None of them counts, wakes those
who wait, lets leases and delays come back, or knows what became of a commit whose reply was lost.
"""

import glob
import os
import pickle
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from bench.items import Item, make_items
from bench.measure import Measures, Run
from bench.workloads import postgres_tasks

OURS, BY_HAND = "PostgresQueue", "by hand"
_BATCH = 1_000
MEASURES = (
    "push to a server",
    "pop from a server",
    f"push {_BATCH:,} to a server",
    f"pop {_BATCH:,} from a server",
)
_WARM_UP = 20
_TABLES = (
    "CREATE TABLE byhand (id bigint PRIMARY KEY, payload bytea NOT NULL)",
    "CREATE TABLE counter (tail bigint NOT NULL) WITH (fillfactor = 10)",
    "INSERT INTO counter VALUES (0)",
)
_NUMBERED = """
WITH given AS (UPDATE counter SET tail = tail + 1 RETURNING tail)
INSERT INTO byhand (id, payload) SELECT tail, %s FROM given
"""
_NUMBERED_LIST = """
WITH given AS (UPDATE counter SET tail = tail + cardinality(%(items)s::bytea[])
               RETURNING tail - cardinality(%(items)s::bytea[]) AS first)
INSERT INTO byhand (id, payload) SELECT first + place, payload
FROM given, unnest(%(items)s::bytea[]) WITH ORDINALITY AS pushed (payload, place)
"""
_IDENTITY = "CREATE TABLE byhand (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload bytea NOT NULL)"
_INSERT = "INSERT INTO byhand (payload) VALUES (%s)"
_INSERT_LIST = "INSERT INTO byhand (payload) SELECT unnest(%s::bytea[])"
_POP = """
WITH gone AS (
    DELETE FROM byhand WHERE id = ANY(ARRAY(SELECT id FROM byhand ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING id, payload)
SELECT payload FROM gone ORDER BY id
"""


def measure_postgres(run: Run) -> None:
    """Measure single items and batches, durable on the server."""
    with run.fresh_directory() as directory, postgres_server(run, directory) as url:
        if url is None:
            return
        contenders: dict[str, Callable[[str], Measures]] = {
            OURS: partial(_ours, run, url),
            BY_HAND: partial(_by_hand, run, url, _pop),
            "by hand, one statement": partial(_by_hand, run, url, _pop_at_once),
            "by hand, identity": partial(_by_identity, run, url),
            **postgres_tasks.contenders(url),
        }
        run.interleave("postgres", "durable", "items/s", contenders)


@contextmanager
def postgres_server(run: Run, directory: str, *settings: str) -> Iterator[str | None]:
    """Start a server in a directory, and yield its address; None, and a remark, if there is none here."""
    programs = programs_of_postgres()
    if programs is None:
        run.results.remark("postgres is left out: it needs psycopg and the server's package")
        yield None
        return
    with server(programs, directory, *settings) as url:
        yield url


def programs_of_postgres() -> str | None:
    """Return where the server's programs are, None if they, or psycopg, are not here."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))
    return programs[-1] if programs and find_spec("psycopg") is not None else None


@contextmanager
def server(programs: str, directory: str, *settings: str) -> Iterator[str]:
    """Run a server whose data are in a directory, with some settings, and yield its address."""
    call = _prepared(programs, directory)
    call("initdb", "-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8")
    with _running(call, directory, settings) as url:
        yield url


@contextmanager
def synchronous_standby(programs: str, directory: str, url: str) -> Iterator[None]:
    """Run a standby of the server at ``url`` in a directory, which has each commit on its disk before that returns."""
    import psycopg  # noqa: PLC0415  (an extra)

    call = _prepared(programs, directory)
    call("pg_basebackup", "-d", f"{url} application_name=standby", "-R", "-X", "stream", "-c", "fast")
    with _running(call, directory, ()), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names TO 'standby'")
        connection.execute("SELECT pg_reload_conf()")
        while connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone() is None:
            time.sleep(0.05)
        yield


def _prepared(programs: str, directory: str) -> Callable[..., None]:
    """Make a directory for a server; return what calls its programs."""
    os.makedirs(directory, exist_ok=True)
    user: dict[str, Any] = {}
    if not os.geteuid():
        found = pwd.getpwnam("postgres")
        os.chown(directory, found.pw_uid, found.pw_gid)
        os.chmod(os.path.dirname(directory), 0o711)  # noqa: S103  (the bench's own, which the server passes through)
        user = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": [], "cwd": directory}

    def call(program: str, *arguments: str) -> None:
        words = [os.path.join(programs, program), "-D", os.path.join(directory, "data"), *arguments]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)

    return call


@contextmanager
def _running(call: Callable[..., None], directory: str, settings: Sequence[str]) -> Iterator[str]:
    options = " ".join([f"-c listen_addresses='' -k {directory}", *(f"-c {setting}" for setting in settings)])
    call("pg_ctl", "-w", "-o", options, "-l", os.path.join(directory, "log"), "start")
    try:
        yield f"host={directory} user=postgres dbname=postgres"
    finally:
        call("pg_ctl", "-w", "-m", "immediate", "stop")


def _ours(run: Run, url: str, _directory: str) -> Measures:
    from lmdbqueue.postgres import PostgresQueue  # noqa: PLC0415

    with PostgresQueue[Any](url, "bench") as queue:
        measures = _measured(run, queue.push, queue.push, queue.pop)
        queue.drop_queue("bench")
    return measures


def _by_hand(run: Run, url: str, pop: Callable[[Any, int], object], _directory: str) -> Measures:
    import psycopg  # noqa: PLC0415

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _TABLES:
            connection.execute(statement)

        def push(item: Item) -> None:
            connection.execute(_NUMBERED, [pickle.dumps(item)])

        def push_many(items: list[Item]) -> None:
            connection.execute(_NUMBERED_LIST, {"items": list(map(pickle.dumps, items))})

        measures = _measured(run, push, push_many, partial(pop, connection))
        connection.execute("DROP TABLE byhand, counter")
    return measures


def _by_identity(run: Run, url: str, _directory: str) -> Measures:
    import psycopg  # noqa: PLC0415

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_IDENTITY)

        def push(item: Item) -> None:
            connection.execute(_INSERT, [pickle.dumps(item)])

        def push_many(items: list[Item]) -> None:
            connection.execute(_INSERT_LIST, [list(map(pickle.dumps, items))])

        measures = _measured(run, push, push_many, partial(_pop_at_once, connection))
        connection.execute("DROP TABLE byhand")
    return measures


def _pop(connection: Any, n: int) -> list[Item]:
    with connection.transaction():
        return _pop_at_once(connection, n)


def _pop_at_once(connection: Any, n: int) -> list[Item]:
    return [pickle.loads(payload) for (payload,) in connection.execute(_POP, [n], binary=True)]


def _measured(
    run: Run, push: Callable[[Any], object], push_many: Callable[[list[Item]], object], pop: Callable[[int], object]
) -> Measures:
    n, batches = run.scale.single_durable, run.scale.batches
    items = make_items(n)
    for item in items[:_WARM_UP]:
        push(item)
    for _ in range(_WARM_UP):
        pop(1)
    lots = [make_items(_BATCH) for _ in range(batches)]
    rates = (
        _rate(push, [(item,) for item in items]),
        _rate(pop, [(1,)] * n),
        _BATCH * _rate(push_many, [(lot,) for lot in lots]),
        _BATCH * _rate(pop, [(_BATCH,)] * batches),
    )
    return dict(zip(MEASURES, rates, strict=True))


def _rate(call: Callable[..., object], arguments: list[tuple[Any, ...]]) -> float:
    begin = time.perf_counter()
    for given in arguments:
        call(*given)
    return len(arguments) / (time.perf_counter() - begin)
