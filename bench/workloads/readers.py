"""Named readers in processes of their own: what they read together, and what a writer pushes beside them.

A reader pops a hundred items a call, durably, and each of them reads all.
"""

import time
from functools import partial

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers.lmdbqueue import LmdbQueue
from bench.team import Team

READERS = 8
BATCH = 100


def read_measure(n: int) -> str:
    """Return the name of what ``n`` readers read together."""
    return f"read by {n} reader process{'es' * (n > 1)}, together"


def push_measure(n: int) -> str:
    """Return the name of what a writer pushes beside ``n`` readers."""
    return f"push beside {n} reader processes"


def measure_readers(run: Run) -> None:
    """Measure durable reads, and pushes of 1 item beside readers that wait for them."""
    with Team(READERS) as team:
        run.interleave("readers", "durable", "items/s", {LmdbQueue.name: partial(_ours, run, team)})


def _ours(run: Run, team: Team, directory: str) -> Measures:
    peer = LmdbQueue(directory, durable=True)
    items = run.scale.by_processes * 10 // BATCH * BATCH
    measures: dict[str, float] = {}
    team.open(LmdbQueue, directory, "durable")
    try:
        for n in (1, READERS):
            team.ask("become_reader", members=n)
            peer.push_many(make_items(items))
            times = team.ask_together("read", items, BATCH, members=n)
            measures[read_measure(n)] = (
                n * items / (max(end for _, end in times) - min(begin for begin, _ in times)) * 1e9
            )
        pushes = make_items(run.scale.by_processes)
        measures[push_measure(0)] = _pushed(peer, pushes)
        team.ask("read", len(pushes), BATCH, 0)
        team.tell("follow_until_stopped", BATCH)
        measures[push_measure(READERS)] = _pushed(peer, pushes)
        team.stop()
        team.answers()
    finally:
        team.ask("close")
        peer.close()
    return measures


def _pushed(peer: LmdbQueue, items: list[dict[str, object]]) -> float:
    begin = time.perf_counter()
    for item in items:
        peer.push(item)
    return len(items) / (time.perf_counter() - begin)
