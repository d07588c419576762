"""The queue of this project, with and without the checksum over each item."""

import time
from typing import Any, ClassVar, Self

import lmdbqueue
from bench.items import Item
from bench.peers.peer import Peer


class LmdbQueue(Peer):
    """As a user opens it, all options but the one for durability left alone."""

    name = "lmdbqueue"
    package = "lmdbqueue"
    durable_by = "durability='full', the default"
    relaxed_by = "durability='off'"
    between_by: ClassVar[str | None] = "durability='interval', of 0.1 s"
    options: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(self, directory: str, *, durable: bool, between: bool = False) -> None:
        durability: Any = "interval" if between else "full" if durable else "off"
        self.queue: lmdbqueue.PersistentQueue[Any] = lmdbqueue.PersistentQueue(
            "queue", directory, durability=durability, **self.options
        )

    @classmethod
    def opened(cls, directory: str, mode: str) -> Self:
        return cls(directory, durable=mode == "durable", between=mode == "between")

    def push(self, item: Item) -> None:
        self.queue.push(item)

    def pop(self) -> Item:
        item: Item = self.queue.pop()
        return item

    def peek(self) -> Item:
        item: Item = self.queue.peek()
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

    def wait(self, timeout: float) -> int | None:
        try:
            self.queue.peek(blocking=True, timeout=timeout)
        except lmdbqueue.Empty:
            return None
        now = time.monotonic_ns()
        self.queue.delete()
        return now

    def close(self) -> None:
        self.queue.close()


class LmdbQueueWithoutChecksum(LmdbQueue):
    """The same, with ``checksum=False``."""

    name = "lmdbqueue, no checksum"
    between_by = None
    options = {"checksum": False}  # noqa: RUF012 - read only
    is_variant = True


ADAPTERS = [LmdbQueue, LmdbQueueWithoutChecksum]
