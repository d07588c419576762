"""A thousand items a call: push, peek, delete and pop, for the queues that have such a call."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import BATCH_VERBS, Peer

_BATCH = 1_000


def measure_batches(run: Run) -> None:
    """Measure batches in both modes."""
    for mode in ("durable", "off"):
        contenders = {
            peer.name: partial(_batches, peer, mode, run.scale.batches, run.scale.seconds)
            for peer in run.peers
            if peer.can_be(mode) and any(map(peer.has, BATCH_VERBS))
        }
        run.interleave("batches", mode, "items/s", contenders)


def _batches(peer: type[Peer], mode: str, n: int, seconds: float, directory: str) -> Measures:
    queue: Any = peer(directory, durable=mode == "durable")
    items = make_items(_BATCH)
    measures: dict[str, float] = {}
    if peer.has("push_many"):
        queue.push_many(items)  # to warm up
        filled, rate = _repeat(lambda: queue.push_many(items), 2 * n, seconds)
        measures["push 1,000"] = rate
    else:
        filled = 2
        for item in items * filled:
            queue.push(item)
    if peer.has("peek_many"):
        measures["peek 1,000"] = _repeat(lambda: queue.peek_many(_BATCH), n, seconds)[1]
    for verb, measure in (("delete_many", "delete 1,000"), ("pop_many", "pop 1,000")):
        if peer.has(verb):
            measures[measure] = _repeat(lambda verb=verb: getattr(queue, verb)(_BATCH), filled // 2, seconds)[1]
    queue.close()
    return measures


def _repeat(call: Callable[[], object], times: int, seconds: float) -> tuple[int, float]:
    """Call at most so often and, after the second time, for so long; return how often and the items a second."""
    begin = time.perf_counter()
    done = 0
    while done < times and (done < 2 or time.perf_counter() < begin + seconds):  # noqa: PLR2004 - one for each of delete and pop
        call()
        done += 1
    return done, done * _BATCH / (time.perf_counter() - begin)
