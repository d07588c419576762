"""The memory of a process that holds a long queue: while it fills it, and when it opens it anew.

Own memory is what the process cannot share; pages of the queue's file that it has mapped are counted
apart, since the kernel takes them back when it needs them. The library itself is in both.
"""

from functools import partial

from bench.measure import Measures, Run
from bench.peers import Peer
from bench.team import Team

_BATCH = 1_000
_MIB = 1 << 20


def measure_memory(run: Run) -> None:
    """Measure queues that can be filled in batches, not synced, once: it hardly changes from round to round."""
    run.results.remark(f"memory: with {run.scale.memory_items:,} items, measured once")
    contenders = {
        peer.name: partial(_memory, peer, run.scale.memory_items)
        for peer in run.peers
        if peer.can_be("off") and peer.has("push_many") and not peer.is_variant
    }
    run.interleave("memory", "off", "MiB", contenders, rounds=1)


def _memory(peer: type[Peer], n: int, directory: str) -> Measures:
    measures: dict[str, float] = {}
    for name, verb, arguments in (("filled", "push_many", (n, _BATCH)), ("opened", "pop", (1, 0))):
        with Team(1) as team:
            ((own_before, all_before),) = team.ask("memory")
            team.open(peer, directory, "off")
            team.ask(verb, *arguments)
            ((own, everything),) = team.ask("memory")
            team.ask("close")
        measures[f"own memory, {name}"] = (own - own_before) / _MIB
        measures[f"memory with mapped pages, {name}"] = (everything - all_before) / _MIB
    return measures
