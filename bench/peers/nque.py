"""nque: a ring of items in LMDB."""

import os
import pickle
from typing import Any

import lmdb
from nque import FifoBasicQueueLmdb

from bench.items import Item
from bench.peers.peer import Peer


class _Unsynced(FifoBasicQueueLmdb):
    def _get_env(self, db_path: str) -> lmdb.Environment:
        return lmdb.open(db_path, map_size=self._get_db_size(), max_dbs=1, sync=False)


class Nque(Peer):
    """It takes bytes, in lists; its size is fixed when it is opened."""

    name = "nque"
    package = "nque"
    durable_by = "nothing to do: it leaves LMDB's sync on"
    relaxed_by = "a subclass that opens LMDB with sync=False, since it has no option for it"

    def __init__(self, directory: str, *, durable: bool) -> None:
        queue_class = FifoBasicQueueLmdb if durable else _Unsynced
        self.queue: Any = queue_class(os.path.join(directory, "nque"), 20_000_000, 2_048)

    def push(self, item: Item) -> None:
        self.queue.put([pickle.dumps(item)])

    def pop(self) -> Item:
        item: Item = pickle.loads(self.queue.pop()[0])
        return item

    def peek(self) -> Item:
        item: Item = pickle.loads(self.queue.get()[0])
        return item

    def push_many(self, items: list[Item]) -> None:
        self.queue.put(list(map(pickle.dumps, items)))

    def peek_many(self, n: int) -> list[Item]:
        return list(map(pickle.loads, self.queue.get(n)))

    def delete_many(self, n: int) -> None:
        self.queue.remove(n)

    def pop_many(self, n: int) -> list[Item]:
        return list(map(pickle.loads, self.queue.pop(n)))

    def close(self) -> None:
        self.queue._env.close()


ADAPTERS = [Nque]
