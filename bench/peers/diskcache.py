"""diskcache: its ``Deque``, used from the right in and from the left out."""

import os
from itertools import islice
from typing import Any, Self

from diskcache import Cache, Deque

from bench.items import Item
from bench.peers.peer import Peer


class DiskcacheDeque(Peer):
    """A SQLite database; batches are its ``transact()`` around single calls."""

    name = "diskcache Deque"
    package = "diskcache"
    durable_by = "sqlite_synchronous=2 (FULL)"
    relaxed_by = "sqlite_synchronous=0 (OFF)"
    between_by = "sqlite_synchronous=1 (NORMAL), its default, in WAL mode"
    is_sqlite = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        path = os.path.join(directory, "deque")
        cache = Cache(path, eviction_policy="none", sqlite_synchronous=2 if durable else 0)
        self.deque: Any = Deque.fromcache(cache)

    @classmethod
    def opened(cls, directory: str, mode: str) -> Self:
        found = super().opened(directory, mode)
        if mode == "between":
            found.deque._cache.reset("sqlite_synchronous", 1)
        return found

    def push(self, item: Item) -> None:
        self.deque.append(item)

    def pop(self) -> Item:
        item: Item = self.deque.popleft()
        return item

    def peek(self) -> Item:
        item: Item = self.deque.peekleft()
        return item

    def push_many(self, items: list[Item]) -> None:
        with self.deque.transact():
            self.deque.extend(items)

    def peek_many(self, n: int) -> list[Item]:
        return list(islice(self.deque, n))

    def pop_many(self, n: int) -> list[Item]:
        with self.deque.transact():
            return [self.deque.popleft() for _ in range(n)]

    def close(self) -> None:
        self.deque.cache.close()


ADAPTERS = [DiskcacheDeque]
