"""Queues that the present releases of other libraries write, with what an import has to find in them.

Each builder writes one at ``path`` in which there is something of all that its format knows: items that were taken,
that are done, that failed, and what a crash leaves.
"""

import os
import pickle
import struct
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import litequeue
import persistent_queue
import persistqueue
import queuelib
from queuelib.queue import FifoSQLiteQueue

ITEMS = ["gone", "first", ("second", 2), None, [1, [2]], "x" * 5_000]
TEXTS = ["gone", "first", "second, \u00fc", "", "failed", "last"]
BYTES = [text.encode() for text in TEXTS]


class Old(NamedTuple):
    """What is in an old queue."""

    items: list[Any]
    set_aside: list[bytes]
    finished: int


def write_file(path: str) -> Old:
    queue = persistent_queue.PersistentQueue(os.path.basename(path), os.path.dirname(path))
    queue.push(ITEMS)
    queue.delete(1)
    queue.file.close()
    uncounted = pickle.dumps("not counted")
    with open(path, "ab") as file:  # as a push that is killed leaves it
        file.write(struct.pack("I", len(uncounted)) + uncounted + struct.pack("I", 100) + b"torn")
    return Old(ITEMS[1:], [uncounted, struct.pack("I", 100) + b"torn"], 0)


def write_chunks(path: str) -> Old:
    queue = persistqueue.Queue(path, chunksize=4, autosave=True)
    for item in ITEMS:
        queue.put(item)
    queue.get()
    queue.headf.close()
    queue.tailf.close()
    behind = pickle.dumps("not in its info") + b"torn"
    with open(os.path.join(path, "q00001"), "ab") as file:  # as two puts that are killed leave it
        file.write(behind)
    return Old(ITEMS[1:], [behind], 0)


def write_table(path: str) -> Old:
    with closing(persistqueue.SQLiteQueue(path)) as queue:
        for item in ITEMS:
            queue.put(item)
        queue.get()
    return Old(ITEMS[1:], [], 0)


def write_unique(path: str) -> Old:
    class Sorted:
        """Takes ``sort_keys``, as UniqueQ wants it."""

        loads = staticmethod(pickle.loads)

        @staticmethod
        def dumps(item: object, *, sort_keys: bool) -> bytes:  # noqa: ARG004
            return pickle.dumps(item)

    with closing(persistqueue.UniqueQ(path, serializer=Sorted)) as queue:
        for item in [*ITEMS, "first"]:
            queue.put(item)
        queue.get()
    return Old(ITEMS[1:], [], 0)


def write_acks(path: str) -> Old:
    with closing(persistqueue.SQLiteAckQueue(path)) as queue:
        for item in [*ITEMS, "failed", "given back"]:
            queue.put(item)
        queue.ack(queue.get())
        queue.get()  # and not acknowledged
        queue.ack_failed(id=7)
        queue.nack(id=8)
    return Old([*ITEMS[1:], "given back"], [pickle.dumps("failed", protocol=4)], 1)


def write_litequeue(path: str) -> Old:
    with closing(litequeue.LiteQueue(path)) as queue:
        messages = [queue.put(text) for text in TEXTS]
        queue.done(queue.pop().message_id)
        queue.pop()  # and not done
        queue.mark_failed(messages[4].message_id)
    return Old([*TEXTS[1:4], "last"], [b"failed"], 1)


def write_queuelib(path: str) -> Old:
    queue = queuelib.FifoDiskQueue(path, chunksize=4)
    for item in BYTES:
        queue.push(item)
    queue.pop()
    queue.close()
    with open(os.path.join(path, "q00001"), "ab") as file:
        file.write(b"\0\0\1\0torn")
    return Old(BYTES[1:], [b"\0\0\1\0torn"], 0)


def write_queuelib_table(path: str) -> Old:
    queue = FifoSQLiteQueue(path)
    for item in BYTES:
        queue.push(item)
    queue.pop()
    queue.close()
    return Old(BYTES[1:], [], 0)


BUILDERS: dict[str, Callable[[str], Old]] = {
    "a file of python-persistent-queue": write_file,
    "a Queue of persist-queue": write_chunks,
    "an SQLiteQueue of persist-queue": write_table,
    "a UniqueQ of persist-queue": write_unique,
    "an SQLiteAckQueue of persist-queue": write_acks,
    "a LiteQueue": write_litequeue,
    "a FifoDiskQueue of queuelib": write_queuelib,
    "a FifoSQLiteQueue of queuelib": write_queuelib_table,
}
