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
from bench.measure import Measures, Run, Scale
from bench.peers import Peer

VERBS = ("push", "peek", "pop")
_BATCH = 10_000
_BLOCK = 100  # pushes, then as many peeks and pops: the length stays what it is said to be


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
            contenders[peer.name] = partial(_at_all_lengths, by_length, run.scale)
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


def _at_all_lengths(queues: Mapping[int, Any], scale: Scale, _directory: str) -> Measures:
    measures: dict[str, float] = {}
    for length, queue in queues.items():
        for verb, seconds in _cost(queue, scale).items():
            measures[length_measure(verb, length)] = seconds * 1e6
    return measures


def _cost(queue: Any, scale: Scale) -> dict[str, float]:
    """Return the seconds that one call of each verb takes."""
    items = make_items(_BLOCK)
    spent = dict.fromkeys(VERBS, 0.0)
    done = 0
    deadline = time.perf_counter() + scale.seconds
    while done < scale.at_length and time.perf_counter() < deadline:
        begin = time.perf_counter()
        for item in items:
            queue.push(item)
        pushed = time.perf_counter()
        for _ in items:
            queue.peek()
        peeked = time.perf_counter()
        for _ in items:
            queue.pop()
        popped = time.perf_counter()
        for verb, seconds in zip(VERBS, (pushed - begin, peeked - pushed, popped - peeked), strict=True):
            spent[verb] += seconds
        done += _BLOCK
    return {verb: seconds / done for verb, seconds in spent.items()}
