"""Three servers, of which the primary is killed: no acknowledged item is lost, none comes twice, the order is kept."""

import os
import random
import shutil
import signal
import subprocess
from contextlib import suppress

import postgres_server
import pytest
from processes import eventually, forked, status_of

from lmdbqueue.postgres import PostgresQueue

PRODUCERS = 4
PATIENCE = 120.0  # seconds
SETTINGS = {
    "synchronous_standby_names": "ANY 1 (s1, s2)",
    "wal_receiver_timeout": "2s",
    "wal_retrieve_retry_interval": "100ms",
}


class Cluster:
    """A primary and two standbys."""

    def __init__(self):
        self.standbys = []
        self.servers = []
        try:
            self._create()
        except BaseException:
            self.remove()
            raise

    def _create(self):
        self.primary = postgres_server.Server(**SETTINGS)
        self.servers.append(self.primary)
        self.primary.create().start()
        for name in ("s1", "s2"):
            standby = postgres_server.Server(**SETTINGS)
            self.servers.append(standby)
            source = f"host={self.primary.place} user=postgres application_name={name}"
            standby.call("pg_basebackup", "-D", standby.data, "-d", source, "-R", "-X", "stream", "-c", "fast")
            standby.start()
            standby.name = name
            self.standbys.append(standby)
        eventually(
            lambda: len(self.primary.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")) == 2
        )

    def url(self):
        hosts = ",".join(server.place for server in self.servers)
        return f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"

    def fail_over(self):
        """Kill the primary; promote the standby that has received most, and let the other one follow it."""
        self.primary.kill()
        for standby in self.standbys:
            eventually(lambda standby=standby: not standby.execute("SELECT 1 FROM pg_stat_wal_receiver"))
        at = [server.execute("SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn")[0][0] for server in self.standbys]
        new, other = self.standbys if at[0] >= at[1] else reversed(self.standbys)
        new.execute("SELECT pg_promote()")
        target = f"host={new.place} user=postgres application_name={other.name}"
        other.execute(f"ALTER SYSTEM SET primary_conninfo = '{target}'")
        other.execute("SELECT pg_reload_conf()")
        eventually(lambda: len(new.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")) == 1)

    def remove(self):
        for server in self.servers:
            server.remove()


def produce(url, place, producer):
    """Push numbers until the file ``stop`` is there; note each that was acknowledged before the next is pushed."""
    with (
        open(place / f"acknowledged-{producer}", "w", encoding="ascii") as file,
        PostgresQueue(url, patience=PATIENCE) as queue,
    ):
        number = 0
        while not os.path.exists(place / "stop"):
            size = number % 3 + 1
            items = [(producer, number + i) for i in range(size)]
            queue.push(items)
            file.write("".join(f"{n}\n" for _, n in items))
            file.flush()
            number += size


def acknowledged(place, producer):
    with open(place / f"acknowledged-{producer}", encoding="ascii") as file:
        return [int(line) for line in file]


def survive(place):
    """Let the primary die while items are pushed, and give an account of them."""
    place.mkdir()
    cluster = Cluster()
    pids = []
    try:
        PostgresQueue(cluster.url()).close()
        pids = [forked(produce, cluster.url(), place, producer) for producer in range(PRODUCERS)]
        enough = random.randrange(20, 200)  # noqa: S311
        paths = [place / f"acknowledged-{producer}" for producer in range(PRODUCERS)]
        eventually(lambda: all(path.exists() for path in paths) and sum(p.stat().st_size for p in paths) > enough * 10)
        cluster.fail_over()
        before = sum(len(acknowledged(place, producer)) for producer in range(PRODUCERS))
        eventually(lambda: sum(len(acknowledged(place, n)) for n in range(PRODUCERS)) > before + 50, PATIENCE)
        (place / "stop").touch()
        assert [status_of(pid, PATIENCE) for pid in pids] == [0] * PRODUCERS
        pids = []
        with PostgresQueue(cluster.url()) as queue:
            found = list(queue)
            assert queue.check() == []
            assert len(queue) == len(found)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended, and was seen to
                os.kill(pid, signal.SIGKILL)
                status_of(pid)
        cluster.remove()
    for producer in range(PRODUCERS):
        assert [number for who, number in found if who == producer] == acknowledged(place, producer)
    return len(found)


def test_an_item_that_another_history_of_the_server_has_is_not_the_one_seen_ahead(needs_postgres):
    """As after a failover to a standby that lagged: numbers of transactions and items are given again, to others."""
    needs_postgres()
    server = postgres_server.Server(fsync="off", autovacuum="off")
    queue = None
    try:
        queue = PostgresQueue(server.create().start().url())
        queue.push("first")
        queue.count()
        before, elsewhere = server.data + "-before", server.url() + "&application_name=other"
        server.stop()
        subprocess.run(["cp", "-a", server.data, before], check=True)
        versions = []
        for payload in ("lost", "new"):
            server.start()
            with PostgresQueue(elsewhere) as other:
                other.push(payload)
            versions += server.execute("SELECT seq, xmin::text FROM lmdbqueue.items ORDER BY seq DESC LIMIT 1")
            if payload == "lost":
                assert queue.pop() == "first"
                server.stop()
                shutil.rmtree(server.data)
                os.rename(before, server.data)
        assert versions[0] == versions[1]
        with PostgresQueue(elsewhere) as other:
            assert other.pop() == "first"
        assert queue.pop() == "new"
    finally:
        if queue is not None:
            queue.close()
        server.remove()


def test_a_primary_that_is_killed_takes_nothing_with_it(needs_postgres, tmp_path, record_property):
    needs_postgres()
    assert survive(tmp_path / "round") > 50
    record_property("kills", 1)


@pytest.mark.long
def test_ten_primaries_that_are_killed_take_nothing_with_them(needs_postgres, tmp_path, record_property):
    needs_postgres()
    for number in range(10):
        survive(tmp_path / str(number))
    record_property("kills", 10)
