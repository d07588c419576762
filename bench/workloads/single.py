"""One item a call, one thread: pushes, then pops of the same items."""

import time
from functools import partial

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer

_WARM_UP = 10


def measure_single(run: Run) -> None:
    """Measure single pushes and pops in both modes."""
    for mode, n in (("durable", run.scale.single_durable), ("off", run.scale.single_off)):
        contenders = {
            peer.name: partial(_push_and_pop, peer, mode, n, run.scale.seconds)
            for peer in run.peers
            if peer.can_be(mode) and not peer.is_variant
        }
        run.interleave("single", mode, "items/s", contenders)


def _push_and_pop(peer: type[Peer], mode: str, n: int, seconds: float, directory: str) -> Measures:
    queue = peer(directory, durable=mode == "durable")
    items = make_items(n)
    for item in items[:_WARM_UP]:
        queue.push(item)
    for _ in range(_WARM_UP):
        queue.pop()
    begin = time.perf_counter()
    deadline = begin + seconds
    pushed = 0
    for item in items:
        queue.push(item)
        pushed += 1
        if time.perf_counter() > deadline:
            break
    middle = time.perf_counter()
    for _ in range(pushed):
        queue.pop()
    end = time.perf_counter()
    queue.close()
    return {"push": pushed / (middle - begin), "pop": pushed / (end - middle)}
