"""localqueue: SQLite driven from Rust, with leases."""

import pickle
import time
from typing import Any

from localqueue import DurabilityMode, Empty, SimpleQueue

from bench.items import Item
from bench.peers.peer import Peer


class LocalQueue(Peer):
    """An item that is not acknowledged comes back, so a pop is ``get`` and ``ack``."""

    name = "localqueue"
    package = "localqueue"
    durable_by = "DurabilityMode.DURABLE"
    relaxed_by = "DurabilityMode.RELAXED, the default (SQLite's NORMAL)"
    pop_is = "get() and ack(), two commits"
    is_sqlite = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        durability = DurabilityMode.DURABLE if durable else DurabilityMode.RELAXED
        serializer: Any = pickle
        self.queue: Any = SimpleQueue(directory, durability=durability, serializer=serializer)

    def push(self, item: Item) -> None:
        self.queue.put(item)

    def pop(self) -> Item:
        job = self.queue.get(timeout=60.0)
        self.queue.ack(job)
        item: Item = job.data
        return item

    def push_many(self, items: list[Item]) -> None:
        self.queue.put_many(items)

    def wait(self, timeout: float) -> int | None:
        try:
            job = self.queue.get(timeout=timeout)
        except Empty:
            return None
        now = time.monotonic_ns()
        self.queue.ack(job)
        return now

    def close(self) -> None:
        self.queue.close()


ADAPTERS = [LocalQueue]
