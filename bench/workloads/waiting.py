"""Waiting in another process: how soon a push wakes it, and what it costs while nothing happens.

The latency runs from the moment at which ``push`` returned, which is after the commit, to the moment at
which the waiter has the item in hand. The waiter can be faster than the return of ``push``: then it is 0.
"""

import random
import statistics
import time
from functools import partial

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer
from bench.team import Team

WAITERS = 10
WAKE_P50, WAKE_P99, WAKE_ALL = "wake latency, p50", "wake latency, p99", "wake latency, each"
IDLE = f"CPU of {WAITERS} idle waiters"
_PAUSE_SECONDS = (0.003, 0.02)  # for the waiter to fall asleep; of no fixed length, so no one polls in step
_TIMEOUT_SECONDS = 30.0


def measure_wake(run: Run) -> None:
    """Measure the latency of queues that can wait for another process."""
    with Team(1) as team:
        for mode in ("durable", "off"):
            contenders = {peer.name: partial(_wake, run, team, peer, mode) for peer in _waiters(run, mode)}
            run.interleave("wake", mode, "µs", contenders)


def measure_idle(run: Run) -> None:
    """Measure the CPU of processes that wait for items, as percent of one core."""
    with Team(WAITERS) as team:
        for mode in ("durable", "off"):
            contenders = {peer.name: partial(_idle, run, team, peer, mode) for peer in _waiters(run, mode)}
            run.interleave("idle", mode, "% of a core", contenders)


def _waiters(run: Run, mode: str) -> list[type[Peer]]:
    """Return who waits in that mode; whoever stands in both is measured in the durable one."""
    return [
        peer
        for peer in run.peers
        if peer.can_be(mode) and peer.has("wait") and not peer.is_variant and (mode == "durable" or not peer.durable_by)
    ]


def _wake(run: Run, team: Team, peer: type[Peer], mode: str, directory: str) -> Measures:
    (item,) = make_items(1)
    queue = peer(directory, durable=mode == "durable")
    team.open(peer, directory, mode)
    latencies = []
    for _ in range(run.scale.wakes):
        team.tell("wait", _TIMEOUT_SECONDS)
        time.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - no secret
        queue.push(item)
        pushed = time.monotonic_ns()
        (woken,) = team.answers()
        if woken is None:
            raise TimeoutError(f"a waiter slept through a push for {_TIMEOUT_SECONDS:.0f} s")
        latencies.append(max(0.0, (woken - pushed) / 1e3))
    team.ask("close")
    queue.close()
    for latency in latencies:
        run.results.add("wake samples", mode, peer.name, "µs", {WAKE_ALL: latency})
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {WAKE_P50: cuts[49], WAKE_P99: cuts[98]}


def _idle(run: Run, team: Team, peer: type[Peer], mode: str, directory: str) -> Measures:
    team.open(peer, directory, mode)
    used = team.ask("idle", run.scale.idle_seconds)
    team.ask("close")
    return {IDLE: 100 * sum(used) / run.scale.idle_seconds}
