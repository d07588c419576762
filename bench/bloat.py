"""``python -m bench.bloat``: what a long run leaves in a PostgreSQL database, and what an open snapshot costs.

Owns: the loop, the samples, the table. Law: the server has its default settings for autovacuum; the length of the queue
stays the same, so whatever grows is what was removed. Must not know: what the statements of a queue do.

``--minutes`` long (60 by default), some processes push an item, lease one and acknowledge it, over and over, beside
``STANDING`` items that stay; with ``--only-push`` they only push. Each minute a line tells the rate of that minute, the
size of the tables with their indexes, and how many dead rows they have. With ``--snapshot`` another connection keeps a
transaction open meanwhile, as a report or a backup does, so that the server can remove no dead row; for the last minute
that transaction has ended.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.items import make_items
from bench.workloads.postgres import programs_of_postgres, server
from bench.workloads.postgres_jobs import BY_HAND, INSERT, PGMQ, Worker, by_hand, ours, pgmq

STANDING = 10_000
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint, coalesce(sum(n_dead_tup), 0)::bigint
FROM pg_stat_user_tables
"""
_CONTENDERS: dict[str, Callable[[str], Worker]] = {
    "commit": lambda url: ours(url, "commit"),
    "relaxed": lambda url: ours(url, "relaxed"),
    "pgmq": pgmq,
    "by hand": lambda url: by_hand(url, INSERT),
}
_TABLES = {"pgmq": PGMQ, "by hand": (BY_HAND,)}


def main() -> None:
    """Print a line a minute."""
    parser = argparse.ArgumentParser(prog="python -m bench.bloat")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--contender", choices=sorted(_CONTENDERS), default="commit")
    parser.add_argument("--snapshot", action="store_true")
    parser.add_argument("--only-push", action="store_true")
    chosen = parser.parse_args()
    programs = programs_of_postgres()
    assert programs is not None, "it needs psycopg and the server's package"
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-bloat-") as place, server(programs, f"{place}/pg") as url:
        _measure(url, chosen)


def _measure(url: str, chosen: argparse.Namespace) -> None:
    import psycopg  # noqa: PLC0415  (an extra)

    open_worker = partial(_CONTENDERS[chosen.contender], url)
    with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url) as report:
        for statement in _TABLES.get(chosen.contender, ()):
            connection.execute(statement)
        push, _, _, close, _ = open_worker()
        for item in make_items(STANDING):
            push(item)
        close()
        if chosen.snapshot:
            report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            report.execute("SELECT 1 FROM pg_class LIMIT 1")
        calls = "pushes" if chosen.only_push else "jobs"
        print(f"| minute | {calls} a second | MiB | dead rows |\n|---|---|---|---|", flush=True)
        told, tell = os.pipe()
        os.set_blocking(told, False)
        workers = [_start(open_worker, tell, only_push=chosen.only_push) for _ in range(chosen.processes)]
        try:
            for minute in range(1, chosen.minutes + 1):
                if minute == chosen.minutes:
                    report.rollback()
                jobs = _jobs_in_a_minute(told)
                size, dead = connection.execute(_SIZE).fetchone() or (0, 0)
                print(f"| {minute} | {jobs / 60:,.0f} | {size / 2**20:,.1f} | {dead:,} |", flush=True)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _start(open_worker: Callable[[], Worker], tell: int, *, only_push: bool) -> int:
    """Start a process that writes a byte for each ten jobs, or pushes; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        push, pop, job, *_ = open_worker()
        items: list[Any] = make_items(10)
        while True:
            for item in items:
                push(item)
                if not only_push:
                    (job or pop)()
            os.write(tell, b".")
    finally:
        os._exit(1)


def _jobs_in_a_minute(told: int) -> int:
    jobs = 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
        try:
            jobs += 10 * len(os.read(told, 1 << 16))
        except BlockingIOError:
            continue
    return jobs


if __name__ == "__main__":
    main()
