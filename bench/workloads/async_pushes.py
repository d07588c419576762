"""A thousand coroutines that await a durable push at once, beside raw's single pushes."""

import asyncio
import importlib
import time
from functools import partial
from typing import Any

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers import Peer

AT_ONCE = 1_000
MEASURE = f"await push, {AT_ONCE:,} at once"
RAW_MEASURE = "push, beside await"
_TIMES = 5
_SINGLE = 200


def measure_async_pushes(run: Run) -> None:
    """Measure concurrent awaited pushes; says so if the library has no ``aio`` (yet)."""
    try:
        queue_class = importlib.import_module("lmdbqueue.aio").AsyncPersistentQueue
    except ImportError:
        run.results.remark("async: lmdbqueue.aio is not there, so concurrent awaited pushes were not measured")
        return
    raw = [peer for peer in run.peers if peer.name == "raw"]
    contenders = {peer.name: partial(_push_singly, peer) for peer in raw}
    run.interleave("async", "durable", "items/s", {"lmdbqueue": partial(_push_at_once, queue_class), **contenders})


def _push_at_once(queue_class: Any, directory: str) -> Measures:
    async def push_all() -> float:
        items = make_items(AT_ONCE)
        async with await queue_class.open("queue", directory) as queue:
            await asyncio.gather(*map(queue.push, items))
            begin = time.perf_counter()
            for _ in range(_TIMES):
                await asyncio.gather(*map(queue.push, items))
            return time.perf_counter() - begin

    return {MEASURE: _TIMES * AT_ONCE / asyncio.run(push_all())}


def _push_singly(peer: type[Peer], directory: str) -> Measures:
    queue = peer(directory, durable=True)
    first, *items = make_items(_SINGLE + 1)
    queue.push(first)
    begin = time.perf_counter()
    for item in items:
        queue.push(item)
    seconds = time.perf_counter() - begin
    queue.close()
    return {RAW_MEASURE: _SINGLE / seconds}
