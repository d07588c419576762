"""One item a call, and 1,000, into a PostgreSQL server and out of it, beside loops written by hand with psycopg.

The server is started from the distribution's package, in the bench's directory, on a Unix socket, and syncs each
commit. By hand a pop is one statement that deletes and returns; ``by hand, decoded first`` is what it takes if an item
shall not leave before it was decoded: lock, decode, delete, commit. A loop by hand has one table, an identity as its
number (whose order is not that of commits), counts nothing, wakes nobody, and does not know what became of a commit
whose reply is lost.
"""

import glob
import os
import pickle
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.items import Item, make_items
from bench.measure import Measures, Run
from bench.workloads import postgres_tasks

_BATCH = 1_000
_WARM_UP = 20
_TABLE = "CREATE TABLE byhand (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload bytea NOT NULL)"
_INSERT = "INSERT INTO byhand (payload) VALUES (%s)"
_FIRST = "SELECT id, payload FROM byhand ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
_DELETE = (
    "DELETE FROM byhand WHERE id = ANY(ARRAY(SELECT id FROM byhand ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)) "
    "RETURNING payload"
)
_DELETE_THESE = "DELETE FROM byhand WHERE id = ANY(%s)"


def measure_postgres(run: Run) -> None:
    """Measure single items and batches, durable on the server."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))
    try:
        import psycopg  # noqa: F401, PLC0415  (an extra)
    except ImportError:
        programs = []
    if not programs:
        run.results.remark("postgres is left out: it needs psycopg and the server's package")
        return
    with run.fresh_directory() as directory, _server(programs[-1], directory) as url:
        contenders: dict[str, Callable[[str], Measures]] = {
            "PostgresQueue": partial(_ours, run, url),
            "by hand": partial(_by_hand, run, url, _pop_by_hand),
            "by hand, decoded first": partial(_by_hand, run, url, _pop_decoded_first),
            **postgres_tasks.contenders(url),
        }
        run.interleave("postgres", "durable", "items/s", contenders)


@contextmanager
def _server(programs: str, directory: str) -> Iterator[str]:
    user: dict[str, Any] = {}
    if not os.geteuid():
        found = pwd.getpwnam("postgres")
        os.chown(directory, found.pw_uid, found.pw_gid)
        os.chmod(os.path.dirname(directory), 0o711)  # noqa: S103  (the bench's own, which the server passes through)
        user = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": [], "cwd": directory}
    data = os.path.join(directory, "data")

    def call(program: str, *arguments: str) -> None:
        words = [os.path.join(programs, program), "-D", data, *arguments]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)

    call("initdb", "-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8")
    call("pg_ctl", "-w", "-o", f"-c listen_addresses='' -k {directory}", "-l", os.path.join(directory, "log"), "start")
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
        connection.execute(_TABLE)

        def push(item: Item) -> None:
            connection.execute(_INSERT, [pickle.dumps(item)])

        def push_many(items: list[Item]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(_INSERT, [[pickle.dumps(item)] for item in items])

        measures = _measured(run, push, push_many, partial(pop, connection))
        connection.execute("DROP TABLE byhand")
    return measures


def _pop_by_hand(connection: Any, n: int) -> list[Item]:
    return [pickle.loads(payload) for (payload,) in connection.execute(_DELETE, [n], binary=True).fetchall()]


def _pop_decoded_first(connection: Any, n: int) -> list[Item]:
    with connection.transaction():
        rows = connection.execute(_FIRST, [n], binary=True).fetchall()
        items = [pickle.loads(payload) for _, payload in rows]
        connection.execute(_DELETE_THESE, [[number for number, _ in rows]])
    return items


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
    return {
        "push to a server": _rate(push, [(item,) for item in items]),
        "pop from a server": _rate(pop, [(1,)] * n),
        f"push {_BATCH} to a server": _BATCH * _rate(push_many, [(lot,) for lot in lots]),
        f"pop {_BATCH} from a server": _BATCH * _rate(pop, [(_BATCH,)] * batches),
    }


def _rate(call: Callable[..., object], arguments: list[tuple[Any, ...]]) -> float:
    begin = time.perf_counter()
    for given in arguments:
        call(*given)
    return len(arguments) / (time.perf_counter() - begin)
