"""What one push, peek and pop cost when the queue is short and when it is long.

Not durable, since a sync would hide the difference. All queues of all lengths are filled first and stay
open, and in each round each of them is measured once, so a ratio of two lengths is taken within a round.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer

VERBS = ("push", "peek", "pop")
_BATCH = 10_000


def length_measure(verb: str, length: int) -> str:
    """Return the name of the figure for a verb at a length."""
    return f"{verb} at {length:,}"


def measure_length(run: Run) -> None:
    """Measure the cost of a call at each length, in microseconds."""
    longest = run.scale.lengths[-1]
    run.results.remark(f"length: up to {longest:,} items for lmdbqueue and raw, {run.scale.peer_length:,} for peers")
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Callable[[str], Measures]] = {}
        cells = [(peer, length) for length in run.scale.lengths for peer in _measured(run, length)]
        bar = run.progress.add_task("length fill", total=len(cells))
        queues: dict[type[Peer], dict[int, Any]] = {}
        for peer, length in cells:
            directory = stack.enter_context(run.fresh_directory())
            queue = _filled(peer, directory, length)
            stack.callback(queue.close)
            queues.setdefault(peer, {})[length] = queue
            run.progress.advance(bar)
        for peer, by_length in queues.items():
            contenders[peer.name] = partial(_at_all_lengths, by_length, run.scale.at_length)
        run.interleave("length", "off", "µs", contenders)


def _measured(run: Run, length: int) -> list[type[Peer]]:
    return [
        peer
        for peer in run.peers
        if peer.can_be("off")
        and peer.has("push_many")
        and peer.has("peek")
        and not peer.is_variant
        and (length <= run.scale.peer_length or peer.name in ("lmdbqueue", "raw"))
    ]


def _filled(peer: type[Peer], directory: str, length: int) -> Any:
    queue: Any = peer(directory, durable=False)
    items = make_items(min(length, _BATCH))
    for _ in range(length // len(items)):
        queue.push_many(items)
    return queue


def _at_all_lengths(queues: Mapping[int, Any], n: int, _directory: str) -> Measures:
    items = make_items(n)
    measures: dict[str, float] = {}
    for length, queue in queues.items():
        calls: dict[str, Callable[[int], object]] = {
            "push": lambda index, queue=queue: queue.push(items[index]),
            "peek": lambda _, queue=queue: queue.peek(),
            "pop": lambda _, queue=queue: queue.pop(),
        }
        for verb in VERBS:
            call = calls[verb]
            begin = time.perf_counter()
            for index in range(n):
                call(index)
            measures[length_measure(verb, length)] = (time.perf_counter() - begin) / n * 1e6
    return measures
