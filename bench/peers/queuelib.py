"""queuelib: its file queue, a file for each 100,000 items."""

import os
import pickle

from queuelib import FifoDiskQueue

from bench.items import Item
from bench.peers.peer import Peer


class QueuelibFile(Peer):
    """It takes bytes; for one thread of one process, and it saves its position in ``close()`` only."""

    name = "queuelib file"
    package = "queuelib"
    durable_by = None
    relaxed_by = "nothing to do: it never syncs"
    shares_threads = False
    shares_processes = False

    def __init__(self, directory: str, *, durable: bool) -> None:  # noqa: ARG002 - it has no choice
        self.queue = FifoDiskQueue(os.path.join(directory, "queuelib"))

    def push(self, item: Item) -> None:
        self.queue.push(pickle.dumps(item))

    def pop(self) -> Item:
        item: Item = pickle.loads(self.queue.pop() or b"")
        return item

    def peek(self) -> Item:
        item: Item = pickle.loads(self.queue.peek() or b"")
        return item

    def close(self) -> None:
        self.queue.close()


ADAPTERS = [QueuelibFile]
