"""rocksq: RocksDB driven from Rust."""

import os
import pickle
from typing import Any

from rocksq.blocking import PersistentQueueWithCapacity

from bench.items import Item
from bench.peers.peer import Peer


class Rocksq(Peer):
    """It takes bytes, in lists; one process has it at a time."""

    name = "rocksq"
    package = "rocksq"
    durable_by = None
    relaxed_by = "nothing to do: it has no option that makes RocksDB sync its log"
    shares_processes = False

    def __init__(self, directory: str, *, durable: bool) -> None:  # noqa: ARG002 - it has no choice
        self.queue: Any = PersistentQueueWithCapacity(os.path.join(directory, "rocksq"))

    def push(self, item: Item) -> None:
        self.queue.push([pickle.dumps(item)])

    def pop(self) -> Item:
        item: Item = pickle.loads(self.queue.pop()[0])
        return item

    def push_many(self, items: list[Item]) -> None:
        self.queue.push(list(map(pickle.dumps, items)))

    def pop_many(self, n: int) -> list[Item]:
        return list(map(pickle.loads, self.queue.pop(n)))

    def close(self) -> None:
        del self.queue  # it has no other way to be closed


ADAPTERS = [Rocksq]
