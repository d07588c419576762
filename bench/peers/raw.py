"""Bare py-lmdb and pickle in the layout of this project's queue: the floor that it is measured against.

One LMDB file, ``items`` under 8-byte big-endian numbers, ``meta`` with ``head`` and ``tail``. No
checksum, no limits, no waking, no flush; one transaction a call, as short as it can be written.
"""

import os
import pickle
import struct
import threading
import time
from itertools import islice

import lmdb

from bench.items import Item
from bench.peers.peer import Peer

_NUMBER = struct.Struct(">Q")
_POLL_SECONDS = 0.005
_INTERVAL = 0.1  # seconds between two snapshots


class Raw(Peer):
    """LMDB by hand."""

    name = "raw"
    package = "lmdb"
    durable_by = "sync=True, LMDB's default"
    relaxed_by = "sync=False"

    def __init__(self, directory: str, *, durable: bool) -> None:
        path = os.path.join(directory, "raw.mdb")
        self.env = lmdb.open(path, subdir=False, map_size=1 << 40, max_dbs=2, sync=durable)
        self.items = self.env.open_db(b"items")
        self.meta = self.env.open_db(b"meta")

    def push(self, item: Item) -> None:
        payload = pickle.dumps(item)
        with self.env.begin(write=True) as txn:
            tail = self._number(txn, b"tail")
            txn.put(_NUMBER.pack(tail), payload, db=self.items, append=True)
            txn.put(b"tail", _NUMBER.pack(tail + 1), db=self.meta)

    def pop(self) -> Item:
        with self.env.begin(write=True) as txn:
            cursor = txn.cursor(self.items)
            cursor.first()
            key, payload = cursor.item()
            cursor.delete()
            txn.put(b"head", _NUMBER.pack(_NUMBER.unpack(key)[0] + 1), db=self.meta)
        item: Item = pickle.loads(payload)
        return item

    def peek(self) -> Item | None:
        with self.env.begin() as txn, txn.cursor(self.items) as cursor:
            payload = cursor.value() if cursor.first() else None
        item: Item | None = None if payload is None else pickle.loads(payload)
        return item

    def push_many(self, items: list[Item]) -> None:
        payloads = list(map(pickle.dumps, items))
        with self.env.begin(write=True) as txn:
            tail = self._number(txn, b"tail")
            keys = map(_NUMBER.pack, range(tail, tail + len(payloads)))
            txn.cursor(self.items).putmulti(zip(keys, payloads, strict=True), append=True)
            txn.put(b"tail", _NUMBER.pack(tail + len(payloads)), db=self.meta)

    def peek_many(self, n: int) -> list[Item]:
        with self.env.begin() as txn, txn.cursor(self.items) as cursor:
            payloads = list(islice(cursor.iternext(keys=False), n))
        return list(map(pickle.loads, payloads))

    def delete_many(self, n: int) -> None:
        with self.env.begin(write=True) as txn:
            cursor = txn.cursor(self.items)
            cursor.first()
            head = _NUMBER.unpack(cursor.key())[0]
            for _ in range(n):
                cursor.delete()
            txn.put(b"head", _NUMBER.pack(head + n), db=self.meta)

    def pop_many(self, n: int) -> list[Item]:
        with self.env.begin(write=True) as txn:
            cursor = txn.cursor(self.items)
            cursor.first()
            head = _NUMBER.unpack(cursor.key())[0]
            payloads = list(islice(cursor.iternext(keys=False), n))
            cursor.first()
            for _ in range(n):
                cursor.delete()
            txn.put(b"head", _NUMBER.pack(head + n), db=self.meta)
        return list(map(pickle.loads, payloads))

    def wait(self, timeout: float) -> int | None:
        """Look each 5 ms, since LMDB wakes no one."""
        deadline = time.monotonic() + timeout
        while self.peek() is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        now = time.monotonic_ns()
        self.delete_many(1)
        return now

    def close(self) -> None:
        self.env.close()

    def _number(self, txn: lmdb.Transaction, name: bytes) -> int:
        found = txn.get(name, db=self.meta)
        return 0 if found is None else _NUMBER.unpack(found)[0]


class RawWithOneFlush(Peer):
    """The same with one flush a commit, and nothing to tell a torn one by: what no queue on LMDB exceeds."""

    name = "raw, one flush"
    package = "lmdb"
    durable_by = (
        "sync=False, and one env.sync(True) after each commit, which alone is not safe; the bound of single calls"
    )
    relaxed_by = None
    is_variant = True
    is_bound = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        assert durable
        self.raw = Raw(directory, durable=False)

    def push(self, item: Item) -> None:
        self.raw.push(item)
        self.raw.env.sync(True)  # noqa: FBT003 (its name for it is force)

    def pop(self) -> Item:
        item = self.raw.pop()
        self.raw.env.sync(True)  # noqa: FBT003 (its name for it is force)
        return item

    def close(self) -> None:
        self.raw.close()


class RawWithCheckpoints(Peer):
    """The same, not synced, while a thread brings a snapshot to the disk ten times a second.

    A reader keeps the pages of the last one. No queue on LMDB whose power cut takes the last moment exceeds this.
    """

    name = "raw, checkpoints"
    package = "lmdb"
    durable_by = None
    relaxed_by = None
    between_by = "sync=False, and a thread that syncs a snapshot each 0.1 s and keeps its pages; the bound"
    is_variant = True
    is_bound = True

    def __init__(self, directory: str, *, durable: bool) -> None:
        assert not durable
        self.raw = Raw(directory, durable=False)
        self._file = os.open(self.raw.env.path(), os.O_RDWR | os.O_CLOEXEC)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._cover)
        self._thread.start()

    def push(self, item: Item) -> None:
        self.raw.push(item)

    def pop(self) -> Item:
        return self.raw.pop()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._file)
        self.raw.close()

    def _cover(self) -> None:
        kept = self.raw.env.begin()
        while not self._ended.wait(_INTERVAL):
            newer = self.raw.env.begin()
            os.fdatasync(self._file)
            kept.abort()
            kept = newer
        kept.abort()


ADAPTERS = [Raw, RawWithOneFlush, RawWithCheckpoints]
