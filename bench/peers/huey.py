"""huey: the SQLite storage under its task queue, without tasks."""

import os
import pickle
from typing import Any

from huey.storage import SqliteStorage

from bench.items import Item
from bench.peers.peer import Peer


class HueyStorage(Peer):
    """It takes bytes."""

    name = "huey SqliteStorage"
    package = "huey"
    durable_by = "fsync=True"
    relaxed_by = "fsync=False (SQLite's OFF)"
    is_sqlite = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        self.storage: Any = SqliteStorage("bench", os.path.join(directory, "huey.db"), fsync=durable, timeout=60)

    def push(self, item: Item) -> None:
        self.storage.enqueue(pickle.dumps(item))

    def pop(self) -> Item:
        item: Item = pickle.loads(self.storage.dequeue())
        return item

    def peek_many(self, n: int) -> list[Item]:
        return list(map(pickle.loads, self.storage.enqueued_items(n)))

    def close(self) -> None:
        self.storage.close()


ADAPTERS = [HueyStorage]
