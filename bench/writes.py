"""Count what a call writes to a PostgreSQL server: ``python -m bench.writes``.

Owns: figures that no other load of the machine changes: transactions that write, and bytes of the log (WAL), for
``PostgresQueue`` in both orders, beside the loop by hand and the statements of ``postgres_jobs``. Each is the mean of
some hundred calls on a server of its own.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from bench.items import make_items
from bench.workloads import postgres_jobs
from bench.workloads.postgres import programs_of_postgres, server

_CALLS = 300
_WARM_UP = 20


class Written(NamedTuple):
    """What the server has written so far."""

    commits: float
    size: float  # bytes

    def since(self, before: "Written", calls: int) -> "Written":
        """Return the mean of a call."""
        return Written(*((now - then) / calls for now, then in zip(self, before, strict=True)))


def main() -> int:
    """Print a line for each contender and verb."""
    programs = programs_of_postgres()
    if programs is None:
        sys.stderr.write("this needs psycopg and a PostgreSQL server: install the package postgresql\n")
        return 1
    print(f"{'':28}{'commits':>9}{'bytes':>9}")
    with tempfile.TemporaryDirectory() as directory, server(programs, os.path.join(directory, "server")) as url:
        for name, (tables, open_worker) in _contenders(url).items():
            for verb, written in _measured(url, tables, open_worker).items():
                figures = "".join(f"{figure:9.1f}" for figure in written)
                print(f"{f'{name}: {verb}':28}{figures}", flush=True)
    return 0


def _contenders(url: str) -> dict[str, tuple[tuple[str, ...], Callable[[], Any]]]:
    return {
        "commit order": ((), partial(postgres_jobs.ours, url, "commit")),
        "relaxed order": ((), partial(postgres_jobs.ours, url, "relaxed")),
        "by hand": ((postgres_jobs.BY_HAND,), partial(postgres_jobs.by_hand, url, postgres_jobs.INSERT)),
        "pgmq": (postgres_jobs.PGMQ, partial(postgres_jobs.pgmq, url)),
    }


def _measured(url: str, tables: tuple[str, ...], open_worker: Callable[[], Any]) -> dict[str, Written]:
    import psycopg  # noqa: PLC0415  (an extra)

    found = {}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS lmdbqueue CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for statement in tables:
            connection.execute(statement)  # type: ignore[arg-type]  (ours, all of them)
        verbs = {"push": 0, "pop": 1, "lease and ack": 2}
        for verb, place in verbs.items():
            if open_worker()[place] is None or (verb == "pop" and open_worker.func is postgres_jobs.pgmq):  # type: ignore[attr-defined]
                continue
            if verb != "push":
                _call(open_worker, 0)
            counted = _call(open_worker, place, partial(_written, connection))
            found[verb] = counted[1].since(counted[0], _CALLS)
    return found


def _call(open_worker: Callable[[], Any], place: int, look: Callable[[], Written] | None = None) -> list[Written]:
    """Call a verb some hundred times; return what ``look`` sees before and after that."""
    *verbs, close, _ = open_worker()
    items = iter(make_items(_CALLS + _WARM_UP))
    call = verbs[place] if place else lambda: verbs[0](next(items))
    seen = []
    for number in range(_WARM_UP + _CALLS):
        if number == _WARM_UP and look is not None:
            seen.append(look())
        call()
    if look is not None:
        seen.append(look())
    close()
    return seen


def _written(connection: Any) -> Written:
    row = connection.execute("SELECT txid_current(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    return Written(*map(float, row))


if __name__ == "__main__":
    sys.exit(main())
