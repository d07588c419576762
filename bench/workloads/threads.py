"""Threads of one process that push durably, one item a call, through one object."""

import threading
import time
from functools import partial

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer

THREADS = (1, 2, 4, 8, 16, 32)


def threads_measure(n: int) -> str:
    """Return the name of the figure for ``n`` threads."""
    return f"push, {n} thread{'s' * (n > 1)}"


def measure_threads(run: Run) -> None:
    """Measure durable pushes of 1 to 32 threads."""
    contenders = {
        peer.name: partial(_all_counts, peer, run.scale.threaded)
        for peer in run.peers
        if peer.can_be("durable") and peer.shares_threads and not peer.is_variant
    }
    run.interleave("threads", "durable", "items/s", contenders)


def _all_counts(peer: type[Peer], pushes: int, directory: str) -> Measures:
    queue = peer(directory, durable=True)
    queue.push(make_items(1)[0])
    measures = {threads_measure(n): _push_by_threads(queue, n, pushes // n) for n in THREADS}
    queue.close()
    return measures


def _push_by_threads(queue: Peer, n: int, each: int) -> float:
    items = make_items(each)
    start = threading.Barrier(n + 1)
    errors: list[Exception] = []

    def push_all() -> None:
        start.wait()
        try:
            for item in items:
                queue.push(item)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=push_all) for _ in range(n)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if errors:
        raise errors[0]
    return n * each / seconds
