"""Processes that push to one queue and then pop from it, one item a call, each with the queue open."""

from functools import partial

from bench.measure import Measures, Run
from bench.peers import Peer
from bench.team import Team

PROCESSES = (1, 2, 4, 8)


def processes_measure(verb: str, n: int) -> str:
    """Return the name of the figure for ``n`` processes."""
    return f"{verb}, {n} process{'es' * (n > 1)}"


def measure_processes(run: Run) -> None:
    """Measure durable pushes and pops of 1 to 8 processes."""
    with Team(max(PROCESSES)) as team:
        contenders = {
            peer.name: partial(_all_counts, run, team, peer)
            for peer in run.peers
            if peer.can_be("durable") and peer.shares_processes and not peer.is_variant
        }
        run.interleave("processes", "durable", "items/s", contenders)


def _all_counts(run: Run, team: Team, peer: type[Peer], directory: str) -> Measures:
    measures: dict[str, float] = {}
    try:
        team.open(peer, directory, "durable")
        for n in PROCESSES:
            each = run.scale.by_processes // n
            pushed = team.ask_together("push", each, members=n)
            measures[processes_measure("push", n)] = _rate(n * each, pushed)
            popped = team.ask_together("pop", each, members=n)
            measures[processes_measure("pop", n)] = _rate(n * each, [(begin, end) for begin, end, _ in popped])
            ids = [number for _, _, numbers in popped for number in numbers]
            if len(set(ids)) < len(ids):
                run.results.remark(f"{peer.name}: several processes popped the same item, so its pops are not one step")
    finally:
        team.ask("close")
    return measures


def _rate(items: int, times: list[tuple[int, int]]) -> float:
    return items / (max(end for _, end in times) - min(begin for begin, _ in times)) * 1e9
