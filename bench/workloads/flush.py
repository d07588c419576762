"""Giving space back: how long ``flush`` takes, and how long a writer in another process stands still.

The stall is the longest single push that overlaps the flush; the longest one before it stands beside,
since a disk alone can stall a writer.
"""

import os
import time
from functools import partial

import lmdbqueue
from bench.measure import Measures, Run
from bench.peers.lmdbqueue import LmdbQueue
from bench.team import Team

DURATION, STALL, STALL_BEFORE = "flush", "longest stall of a writer", "longest push before"
LEFT, LIVE = "little left", "all live"
_ITEM_BYTES = 1_000
_BATCH = 10_000
_SECONDS_BEFORE = 0.5


def measure_flush(run: Run) -> None:
    """Measure a flush of a large file with little left in it, and with all of it live."""
    size = run.scale.flush_bytes
    run.results.remark(
        f"flush: a file of {size >> 20} MiB, {run.scale.flush_left >> 20} MiB left in it or all of it, "
        f"items of {_ITEM_BYTES:,} bytes"
    )
    with Team(1) as team:
        contender = partial(_both, team, size, run.scale.flush_left)
        run.interleave("flush", "durable", "ms", {LmdbQueue.name: contender})


def flush_measure(figure: str, case: str) -> str:
    """Return the name of a figure in one of the two cases."""
    return f"{figure}, {case}"


def _both(team: Team, size: int, little: int, directory: str) -> Measures:
    measures: dict[str, float] = {}
    for case, left in ((LEFT, little), (LIVE, size)):
        below = os.path.join(directory, case)
        os.mkdir(below)
        for figure, milliseconds in _flush(team, size, left, below).items():
            measures[flush_measure(figure, case)] = milliseconds
    return measures


def _flush(team: Team, size: int, left: int, directory: str) -> Measures:
    queue: lmdbqueue.PersistentQueue[bytes] = lmdbqueue.PersistentQueue("queue", directory)
    _fill(queue, directory, size)
    if left < size:
        keep = left // _ITEM_BYTES
        while (surplus := len(queue) - keep) > 0:
            queue.delete(min(surplus, _BATCH))
    team.open(LmdbQueue, directory, "durable")
    team.tell("push_until_stopped")
    time.sleep(_SECONDS_BEFORE)
    begin = time.monotonic_ns()
    queue.flush(force=True)
    end = time.monotonic_ns()
    time.sleep(0.05)
    team.stop()
    (pushes,) = team.answers()
    team.ask("close")
    queue.close()
    during = [done - begun for begun, done in pushes if done > begin and begun < end]
    before = [done - begun for begun, done in pushes if done <= begin]
    return {
        DURATION: (end - begin) / 1e6,
        STALL: max(during, default=0) / 1e6,
        STALL_BEFORE: max(before, default=0) / 1e6,
    }


def _fill(queue: lmdbqueue.PersistentQueue[bytes], directory: str, size: int) -> None:
    item = os.urandom(_ITEM_BYTES)
    while _file_bytes(os.path.join(directory, "queue")) < size:
        queue.push([item] * _BATCH)


def _file_bytes(directory: str) -> int:
    return max(entry.stat().st_size for entry in os.scandir(directory) if entry.name.endswith(".mdb"))
