"""lmdb-queue, which is imported as equeue: jobs with leases in LMDB."""

import os
import time
from typing import Any

from equeue import Queue, QueueEmpty

from bench.items import Item
from bench.peers.peer import Peer


class LmdbQueuePackage(Peer):
    """It writes through the map and flushes it in the background, whatever its ``sync`` says."""

    name = "lmdb-queue"
    package = "lmdb-queue"
    durable_by = None
    relaxed_by = "sync=False, the default (with sync=True too, map_async makes no call wait for the disk)"
    pop_is = "get() and ack(), two commits"

    def __init__(self, directory: str, *, durable: bool) -> None:  # noqa: ARG002 - it has no choice
        self.queue: Any = Queue(os.path.join(directory, "equeue"), map_size=1 << 32)

    def push(self, item: Item) -> None:
        self.queue.put(item)

    def pop(self) -> Item:
        record = self.queue.get(timeout=60.0)
        record.ack()
        item: Item = record.payload
        return item

    def wait(self, timeout: float) -> int | None:
        try:
            record = self.queue.get(timeout=timeout)
        except QueueEmpty:
            return None
        now = time.monotonic_ns()
        record.ack()
        return now

    def close(self) -> None:
        self.queue.close()


ADAPTERS = [LmdbQueuePackage]
