"""litequeue: one SQLite table whose rows change their status.

Its items are text since 0.10, so these are JSON.
"""

import json
import os
from typing import Any, Self

from litequeue import LiteQueue

from bench.items import Item
from bench.peers.peer import Peer


class Litequeue(Peer):
    """Its ``pop`` marks the row as taken, and no one else gets it; ``done`` would be a second commit."""

    name = "litequeue"
    package = "litequeue"
    durable_by = "PRAGMA synchronous=FULL on its connection"
    relaxed_by = "PRAGMA synchronous=OFF on its connection"
    between_by = "PRAGMA synchronous=NORMAL on its connection, which is in WAL mode"
    pop_is = "pop(), which marks the row; done() would be one more commit"
    is_sqlite = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        self.queue: Any = LiteQueue(os.path.join(directory, "queue.db"), timeout=60.0)
        self.queue.conn.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    @classmethod
    def opened(cls, directory: str, mode: str) -> Self:
        found = super().opened(directory, mode)
        if mode == "between":
            found.queue.conn.execute("PRAGMA synchronous=NORMAL")
        return found

    def push(self, item: Item) -> None:
        self.queue.put(json.dumps(item))

    def pop(self) -> Item:
        item: Item = json.loads(self.queue.pop().data)
        return item

    def peek(self) -> Item:
        item: Item = json.loads(self.queue.peek().data)
        return item

    def push_many(self, items: list[Item]) -> None:
        with self.queue.transaction():
            for item in items:
                self.queue.put(json.dumps(item))

    def close(self) -> None:
        self.queue.conn.close()


ADAPTERS = [Litequeue]
