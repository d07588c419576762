"""Writes the golden directory of the present format: ``python tests/support/make_golden.py``, once a format version.

What is in them stands in ``test_golden.py``. A golden directory that was released is never written again.
"""

import os
import shutil

from clocks import Clock

import lmdbqueue._host.session
from lmdbqueue import PersistentQueue
from lmdbqueue._format import VERSION

PLACE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "model", "golden")
LONG = "x" * 10_000  # in pages of its own
EPOCH = 1_764_000_000 * 10**9  # ns since 1970, when the clock of ``make_times`` begins


def make(filename: str, *, checksum: bool) -> None:
    """Write a directory with two queues that have seen pushes, pops and a flush."""
    with PersistentQueue[object](filename, PLACE, checksum=checksum) as queue:
        queue.push(["gone", "first", ("second", 2), LONG])
        queue.pop()
        queue.flush(force=True)
        queue.push(None)
    with PersistentQueue[str](
        filename, PLACE, str.encode, bytes.decode, name="andere Schlange", checksum=checksum
    ) as other:
        other.push(["hello", "world", ""])
        other.delete(1)
    _leave(filename)


def make_state(filename: str) -> None:
    """Write a directory with two queues that have a state."""
    with (
        PersistentQueue[object](filename, PLACE) as queue,
        PersistentQueue[object](filename, PLACE, name="other") as other,
    ):
        with queue.transaction():
            queue.push(["first", "second"])
            queue.state.update(total=1, long=LONG)
        other.state["with/slash"] = None
        queue.flush(force=True)
        queue.state["total"] = 2
    _leave(filename)


def make_leases(filename: str) -> None:
    """Write a directory with items that wait, came back, are leased, delayed and dead, and with keys."""
    with PersistentQueue[object](filename, PLACE, max_attempts=2) as queue:
        queue.push([f"item {number}" for number in range(6)])
        queue.push("with a key", unique="key")
        queue.push("long ago", delay=1e-9)
        queue.push("in a century", delay=99 * 365 * 86400, unique="far")
        for _ in range(2):
            queue.lease(2).nack(reason="not today")  # item 0, and the one that was long ago: dead then
        with queue.lease(3) as lease:
            lease.nack([1, 3])
        queue.flush(force=True)
        held = queue.lease(2, ttl=1e9)
        shutil.copytree(os.path.join(PLACE, filename), os.path.join(PLACE, "held"))  # with its lease
        held.ack()
    shutil.rmtree(os.path.join(PLACE, filename))
    os.rename(os.path.join(PLACE, "held"), os.path.join(PLACE, filename))
    _leave(filename)


def make_readers(filename: str) -> None:
    """Write a directory with two readers and what they skipped, and with a retention."""
    with PersistentQueue[object](filename, PLACE) as queue:
        queue.push([f"item {number}" for number in range(10)])
        queue.reader("slow")
        queue.reader("fähig").delete(5)
        queue.pop(2)
        queue.retain(6, seconds=1e9)
    _leave(filename)


def make_times(filename: str) -> None:
    """Write a directory with items that were pushed over ten days of a clock of its own, one or two an hour."""
    boot, clock = lmdbqueue._host.session._boot, Clock(0, EPOCH)
    lmdbqueue._host.session._boot = lambda: bytes(range(16))
    try:
        with clock.given_to(PersistentQueue[object](filename, PLACE)) as queue:
            for hour in range(240):
                clock.go_on(3600 if hour else 0)
                queue.push([f"{hour}:00"] if hour % 7 else [f"{hour}:00", f"{hour}:00 too"])
            queue.delete(100)
    finally:
        lmdbqueue._host.session._boot = boot
    _leave(filename)


def _leave(filename: str) -> None:
    """Remove what is made anew at each opening."""
    for name in os.listdir(os.path.join(PLACE, filename)):
        if name.endswith("-lock") or name == "bell" or name.startswith("owner-"):
            os.unlink(os.path.join(PLACE, filename, name))


if __name__ == "__main__":
    os.makedirs(PLACE, exist_ok=True)
    directories = {
        f"format-{VERSION}": lambda name: make(name, checksum=True),
        f"format-{VERSION}-plain": lambda name: make(name, checksum=False),
        f"format-{VERSION}-state": make_state,
        f"format-{VERSION}-leases": make_leases,
        f"format-{VERSION}-readers": make_readers,
        f"format-{VERSION}-times": make_times,
    }
    for name, write in directories.items():
        if not os.path.exists(os.path.join(PLACE, name)):
            write(name)
