"""persist-queue: its SQLite queue."""

from typing import Any, Self

from persistqueue import SQLiteQueue

from bench.items import Item
from bench.peers.peer import Peer


class PersistQueue(Peer):
    """One table in WAL mode; it has no batches."""

    name = "persist-queue"
    package = "persist-queue"
    durable_by = "PRAGMA synchronous=FULL on its connections"
    relaxed_by = "PRAGMA synchronous=OFF on its connections"
    between_by = "PRAGMA synchronous=NORMAL on its connections, in WAL mode"
    is_sqlite = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        self.queue: Any = SQLiteQueue(directory, multithreading=True, auto_commit=True, timeout=60.0)
        for connection in (self.queue._getter, self.queue._putter):
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    @classmethod
    def opened(cls, directory: str, mode: str) -> Self:
        found = super().opened(directory, mode)
        if mode == "between":
            for connection in (found.queue._getter, found.queue._putter):
                connection.execute("PRAGMA synchronous=NORMAL")
        return found

    def push(self, item: Item) -> None:
        self.queue.put(item)

    def pop(self) -> Item:
        item: Item = self.queue.get(block=False)
        return item

    def close(self) -> None:
        self.queue.close()


ADAPTERS = [PersistQueue]
