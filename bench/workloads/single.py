"""One item a call, one thread: pushes, then pops of the same items."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer

_WARM_UP = 10


def measure_single(run: Run) -> None:
    """Measure single pushes and pops in each mode."""
    counts = {"durable": run.scale.single_durable, "between": run.scale.single_off, "off": run.scale.single_off}
    for mode, n in counts.items():
        contenders = {
            peer.name: partial(push_and_pop, peer, mode, n, run.scale.seconds)
            for peer in run.peers
            if peer.can_be(mode) and (peer.is_bound or not peer.is_variant)
        }
        run.interleave("single", mode, "items/s", contenders)


def push_and_pop(peer: type[Peer], mode: str, n: int, seconds: float, directory: str) -> Measures:
    """Return how many single pushes, and then pops, a queue in ``directory`` makes a second."""
    queue = peer.opened(directory, mode)
    items = make_items(n)
    for item in items[:_WARM_UP]:
        queue.push(item)
    for _ in range(_WARM_UP):
        queue.pop()
    pushed, push_rate = _each(queue.push, [(item,) for item in items], seconds)
    _, pop_rate = _each(queue.pop, [()] * pushed, seconds)
    queue.close()
    return {"push": push_rate, "pop": pop_rate}


def _each(call: Callable[..., object], arguments: Sequence[tuple[Any, ...]], seconds: float) -> tuple[int, float]:
    """Call it with each, but for so long at most; return how often and how often a second."""
    begin = time.perf_counter()
    deadline = begin + seconds
    done = 0
    for given in arguments:
        call(*given)
        done += 1
        if time.perf_counter() > deadline:
            break
    return done, done / (time.perf_counter() - begin)
