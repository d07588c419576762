"""Leases of a hundred items and their acknowledgement, beside bare LMDB that deletes and puts as many.

Two commits each. A lease is just that, a deletion and a put; its ack another deletion.
"""

import time
from collections.abc import Callable
from functools import partial

from bench.items import make_items
from bench.measure import Measures, Run
from bench.peers.lmdbqueue import LmdbQueue
from bench.peers.raw import Raw

_BATCH = 100
RAW_MEASURE = f"delete {_BATCH} and put {_BATCH}"


def measure(leased: int) -> str:
    """Return the name of the figure beside so many items that are leased."""
    return f"lease({_BATCH}) and ack, {leased:,} leased"


def measure_leases(run: Run) -> None:
    """Measure durable leases."""
    contenders = {
        LmdbQueue.name: partial(_ours, run.scale.leases, run.scale.leased),
        Raw.name: partial(_raw, run.scale.leases),
    }
    run.interleave("leases", "durable", "items/s", contenders)


def _ours(n: int, leased: int, directory: str) -> Measures:
    peer = LmdbQueue(directory, durable=True)
    queue = peer.queue
    items = make_items(_BATCH * n)

    def lease_and_ack() -> None:
        queue.lease(_BATCH).ack()

    measures = {}
    for beside in (0, leased):
        queue.push(make_items(beside))
        held = [queue.lease(_BATCH) for _ in range(beside // _BATCH)]
        queue.push(items)
        measures[measure(beside)] = _rate(lease_and_ack, n)
        assert queue.stats().leased == sum(map(len, held)) == beside
    peer.close()
    return measures


def _raw(n: int, directory: str) -> Measures:
    peer = Raw(directory, durable=True)
    peer.push_many(make_items(_BATCH * n))
    items = make_items(_BATCH)

    def move() -> None:
        peer.delete_many(_BATCH)
        peer.push_many(items)

    rate = _rate(move, n)
    peer.close()
    return {RAW_MEASURE: rate}


def _rate(call: Callable[[], object], n: int) -> float:
    begin = time.perf_counter()
    for _ in range(n):
        call()
    return n * _BATCH / (time.perf_counter() - begin)
