"""python-persistent-queue 1.3.0: one file, appended to; the queue whose verbs this project took over."""

from typing import Any

from persistent_queue import PersistentQueue

from bench.items import Item
from bench.peers.peer import Peer


class PythonPersistentQueue(Peer):
    """It syncs by itself, several times a call, and has no option that leaves it out."""

    name = "python-persistent-queue"
    package = "python-persistent-queue"
    durable_by = "nothing to do: it calls fsync after each item and after each change of its header"
    relaxed_by = None
    shares_processes = False

    def __init__(self, directory: str, *, durable: bool) -> None:  # noqa: ARG002 - it has no choice
        self.queue: Any = PersistentQueue("queue", directory)

    def push(self, item: Item) -> None:
        self.queue.push(item)

    def pop(self) -> Item:
        item: Item = self.queue.pop()
        return item

    def push_many(self, items: list[Item]) -> None:
        self.queue.push(items)

    def peek_many(self, n: int) -> list[Item]:
        items: list[Item] = self.queue.peek(n)
        return items

    def delete_many(self, n: int) -> None:
        self.queue.delete(n)

    def pop_many(self, n: int) -> list[Item]:
        items: list[Item] = self.queue.pop(n)
        return items

    def close(self) -> None:
        self.queue.file.close()


ADAPTERS = [PythonPersistentQueue]
