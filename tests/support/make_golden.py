"""Writes the golden directories of the present format: ``python tests/support/make_golden.py``, once a format version.

What is in them stands in ``test_golden.py``. A golden directory that was released is never written again.
"""

import fcntl
import os
import shutil

from clocks import Clock

from lmdbqueue import PersistentQueue
from lmdbqueue._base.format import VERSION
from lmdbqueue._base.values import Push
from lmdbqueue._local.queue import local_engine_of
from lmdbqueue._verbs.encoding import digest

PLACE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "model", "golden")
LONG = "x" * 10_000  # in pages of its own
EPOCH = 1_764_000_000 * 10**9  # ns since 1970, when the items of ``make`` were pushed
YEARS = 365 * 86400.0  # seconds


def make(filename: str, *, checksum: bool) -> None:
    """Write a directory with two queues that have seen pushes, pops and a flush."""
    with PersistentQueue[object](filename, PLACE, checksum=checksum) as queue:
        Clock(0, EPOCH).given_to(queue)
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
        queue.push("has lost its key", unique="taken")
        queue.lease().reject(reason="no")  # item 0
        queue.push("replaced", unique="replaced")
        queue.push([f"item {number}" for number in range(2, 8)])
        queue.push("due", delay=1e-9)
        queue.push("with a key", unique="key")
        queue.push("has the key now", unique="taken")
        queue.push("in a century", delay=99 * YEARS, unique="far")
        with queue.lease(6) as lease:
            lease.nack([1, 2], reason="not today")
            lease.nack([3, 4, 6], reason="not yet")  # and item 5 is done
        second = queue.lease(2)
        second.nack([2], reason="never")  # it is dead then
        queue.flush(force=True)
        held = queue.lease(2, ttl=1e9)  # items 3 and 4, and item 1 is leased still
        local_engine_of(queue).append_apart(
            [queue.dumps("the newer one")], Push(keys=[digest("replaced")], replace=True)
        )
        shutil.copytree(os.path.join(PLACE, filename), os.path.join(PLACE, "held"))  # with its leases
        held.ack()
        second.ack()
    shutil.rmtree(os.path.join(PLACE, filename))
    os.rename(os.path.join(PLACE, "held"), os.path.join(PLACE, filename))
    _leave(filename)


def make_readers(filename: str) -> None:
    """Write a directory with two readers and what they skipped, an item with a delay, and a retention."""
    with PersistentQueue[object](filename, PLACE) as queue:
        queue.push([f"item {number}" for number in range(10)])
        queue.reader("slow")
        queue.push("due", delay=1e-9)
        queue.reader("fähig").delete(5)
        queue.pop(2)
        queue.retain(6, bytes=1_000, seconds=1e9)
    _leave(filename)


def make_priorities(filename: str) -> None:
    """Write a directory with items of several priorities, some of which left or came back."""
    with PersistentQueue[object](filename, PLACE) as queue:
        queue.push(["plain 0", "plain 1"])
        for priority in (127, -128, 5):
            items = [queue.dumps(f"{priority}: {number}") for number in range(4)]
            local_engine_of(queue).append_apart(items, Push(priority=priority))
        with queue.lease(3) as lease:
            lease.nack(lease.seqs[1:2])
        queue.push("plain 2")
    _leave(filename)


def make_headers(filename: str) -> None:
    """Write a directory with items that have headers, and that expire soon, in a century and never."""
    with PersistentQueue[object](filename, PLACE) as queue:
        engine = local_engine_of(queue)
        engine.append_apart([queue.dumps("with headers")], Push(headers={"traceparent": "00-ab", "größe": ""}))
        queue.push("plain")
        engine.append_apart([queue.dumps("lasts")], Push(expires=99 * YEARS, headers={"a": "b"}))
        engine.append_apart([queue.dumps("in a while")], Push(expires=99 * YEARS, delay=50 * YEARS))
        engine.append_apart([queue.dumps("is over")], Push(expires=1e-9))
    _leave(filename)


def make_interval(filename: str) -> None:
    """Write a directory of a queue in use: checkpoints in two lanes, and after them what no checkpoint covers."""
    path = os.path.join(PLACE, filename)
    with PersistentQueue[str](filename, PLACE, durability="interval", interval=3600.0) as queue:
        queue.push(["gone", "first", "second"])
        queue.sync()
        with open(os.path.join(path, "checkpoint"), "rb") as lane:
            fcntl.flock(lane, fcntl.LOCK_EX)  # as another process that was stopped amid a checkpoint
            queue.pop()
            queue.sync()
        queue.push(["uncovered", LONG])
        queue.pop()
        shutil.copytree(path, os.path.join(PLACE, "held"))
    shutil.rmtree(path)
    os.rename(os.path.join(PLACE, "held"), path)
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
        f"format-{VERSION}-priorities": make_priorities,
        f"format-{VERSION}-headers": make_headers,
        f"format-{VERSION}-interval": make_interval,
    }
    for name, write in directories.items():
        if not os.path.exists(os.path.join(PLACE, name)):
            write(name)
