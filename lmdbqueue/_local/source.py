"""A queue on this machine as the source of a forwarder.

Owns: reading items without decoding them, and removing exactly those again. Law: an item that was not read is never
removed, whatever others do with the queue meanwhile; removing twice equals removing once, since numbers are never
reused. Must not know: where the items go.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import Empty
from lmdbqueue._base.values import Entry, NamedTuple
from lmdbqueue._host import flock
from lmdbqueue._host.directory import FORWARDED, absolute
from lmdbqueue._host.disk import open_private, sync_directory, sync_file
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._local.sharing import open_environment
from lmdbqueue._model import fifo, keyed_items, readers
from lmdbqueue._verbs.batch import Envelope, Origin
from lmdbqueue._verbs.head import Head, checked_batch
from lmdbqueue._verbs.reader import Reader, position_of
from lmdbqueue._verbs.reading import head_of


class Bounds(NamedTuple):
    """The progress of a source."""

    removed: int  # the number of items that have left, or the position of a reader; it never decreases
    waiting: int


class Source(ABC):
    """The origin of a forwarder's items: the waiting items of a queue in their order, or those of a reader."""

    path: str
    origin: Origin

    @abstractmethod
    def bounds(self) -> Bounds:
        """Return its progress."""

    @abstractmethod
    def unknown(self, seqs: Collection[int]) -> list[int]:
        """Return those of these numbers that no item of the queue has ever had, in ascending order.

        Args:
            seqs: The numbers.
        """

    @abstractmethod
    def read(self, items: int, size: int) -> tuple[list[Envelope], list[bytes]]:
        """Return the first items: the envelope and the payload of each.

        Args:
            items: The number of items, at most.
            size: Bytes of payloads, at most; one item is returned in any case.
        """

    @abstractmethod
    def remove(self, seqs: Collection[int]) -> int:
        """Remove those of these items that are still there; durable when this returns.

        Args:
            seqs: The numbers of the items.

        Returns:
            The number of items removed.
        """

    def refuse(self, reasons: Mapping[int, str]) -> list[int]:
        """Make those of these items that are still there dead letters; return their numbers.

        Args:
            reasons: The numbers of the items, each with its reason.
        """
        message = f"{type(self).__name__} has no dead letters, and the target refused {len(reasons)} items: {reasons}"
        raise NotImplementedError(message)

    def noted(self, target: str) -> int:  # noqa: ARG002
        """Return the number of the last batch that a target is known to have stored; 0 if none is known.

        Args:
            target: The name of the target.
        """
        return 0

    def note(self, target: str, number: int) -> None:  # noqa: B027  (one that keeps nothing may be written)
        """Record that a target has stored a batch, before its items are removed here.

        Args:
            target: The name of the target.
            number: The number of the batch.
        """

    def sync(self) -> None:  # noqa: B027  (most sources need not do anything)
        """Wait until everything read and removed is on the disk; called before anybody outside hears of it."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Wait until there is an item.

        Args:
            timeout: Seconds to wait at most.
        """

    def fill(self, items: int, size: int, timeout: float) -> bool:
        """Wait for more items.

        Args:
            items: The number of items to wait for.
            size: Bytes of payloads that suffice, too.
            timeout: Seconds to wait at most.

        Returns:
            Whether there are enough. A source that cannot wait for more returns True.
        """
        del items, size, timeout
        return True

    @abstractmethod
    def close(self) -> None:
        """Release all resources."""


class QueueSource(Source):
    """The items of a queue directory, as bytes.

    Args:
        path: The directory.
        name: The queue in it.

    Raises:
        FormatError: There is no queue directory.
        KeyError: There is no queue of that name.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "queue") -> None:
        """Open the queue; raise ``FormatError`` without a queue directory, ``KeyError`` without that queue."""
        self.path = absolute(path)
        options = options_of(self.path)
        if name not in _names(self.path, options):
            raise KeyError(name)
        self._options = options
        self._queue = self._opened(name)
        self._engine = local_engine_of(self._queue)
        self.origin = Origin(options.uuid, name)

    def _opened(self, name: str) -> PersistentQueue[bytes]:
        return PersistentQueue(
            self.path,
            dumps=bytes,
            loads=bytes,
            name=name,
            durability=self._options.durability,
            interval=None,
            checksum=self._options.checksum,
        )

    def bounds(self) -> Bounds:
        """Return the progress of the queue."""
        stats = self._queue.stats()
        return Bounds(stats.removed, stats.waiting)

    def unknown(self, seqs: Collection[int]) -> list[int]:
        """Return those of these numbers that no item of the queue has ever had, in ascending order.

        Args:
            seqs: The numbers.
        """
        keys = [_format.key_of(seq) for seq in sorted(seqs)]
        return list(map(_format.seq_of, self._engine.environment.view(self._engine.ref, fifo.never_given, keys)))

    def read(self, items: int, size: int) -> tuple[list[Envelope], list[bytes]]:
        """Return the first items: the envelope and the payload of each.

        Args:
            items: The number of items, at most.
            size: Bytes of payloads, at most; one item is returned in any case.

        Raises:
            CorruptItemError: The first item is damaged; it has to be removed or set aside.
        """
        envelopes: list[Envelope] = []
        payloads: list[bytes] = []
        place = b""
        while len(envelopes) < items:
            entries = self._behind(place)[: items - len(envelopes)]
            if not entries:
                break
            found = self._engine.payloads(entries), self._engine.trailers(entries)
            for (key, _), payload, trailer in zip(entries, *found, strict=True):
                if envelopes and len(payload) > size:
                    return envelopes, payloads
                envelopes.append(Envelope(_format.seq_of(key), trailer.headers, trailer.pushed_at / 1e9))
                payloads.append(payload)
                size -= len(payload)
            place = entries[-1][0]
        return envelopes, payloads

    def _behind(self, place: bytes) -> list[Entry]:
        """Return some entries behind a key, b"" for the first."""
        return self._engine.since(place)

    def remove(self, seqs: Collection[int]) -> int:
        """Remove these items from among the waiting ones; durable when this returns.

        Args:
            seqs: The numbers of the items.
        """
        if not seqs:
            return 0
        return self._engine.environment.update(
            self._engine.ref, keyed_items.delete_items, list(map(_format.key_of, seqs))
        )

    def noted(self, target: str) -> int:
        """Return the number that ``note`` has recorded in the directory; 0 if there is none.

        Args:
            target: The name of the target.
        """
        return self._notes().get(self._key(target), 0)

    def note(self, target: str, number: int) -> None:
        """Record the number beside the queue, as durably as calls of the queue are.

        If it cannot be written, for example on a full disk, items are removed all the same; then a restored target
        could go unnoticed.

        Args:
            target: The name of the target.
            number: The number of the batch.
        """
        path = os.path.join(self.path, FORWARDED)
        syncs = self._options.durability != "off"
        with suppress(OSError):
            fd = _draft_of(path)
            try:
                notes = self._notes()  # those of forwarders of other queues and readers, too
                notes[self._key(target)] = max(number, self.noted(target))  # another may have come further
                os.ftruncate(fd, 0)
                with open(fd, "w", encoding="utf-8", closefd=False) as file:
                    json.dump(notes, file)
                if syncs:
                    sync_file(fd)
                os.replace(path + ".tmp", path)
            finally:
                flock.release(fd)
            if syncs:
                sync_directory(self.path)

    def _notes(self) -> dict[str, int]:
        try:
            with open(os.path.join(self.path, FORWARDED), encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _key(self, target: str) -> str:
        return f"{self.origin.name} to {target}"

    def sync(self) -> None:
        """Bring everything read and removed to the disk; needed only with ``durability="interval"``."""
        if self._options.durability == "interval":
            self._queue.sync()

    def refuse(self, reasons: Mapping[int, str]) -> list[int]:
        """Make those of these items that still wait dead letters of the queue; return their numbers.

        Args:
            reasons: The numbers of the items, each with its reason.
        """
        return [seq for seq, reason in reasons.items() if self._queue.dead_letter(seq, reason)]

    def wait(self, timeout: float) -> None:
        """Wait until there is an item.

        Args:
            timeout: Seconds to wait at most.
        """
        with suppress(Empty):
            self._queue.peek(1, blocking=True, timeout=timeout)

    def fill(self, items: int, size: int, timeout: float) -> bool:
        """Wait for more items.

        Args:
            items: The number of items to wait for.
            size: Bytes of payloads that suffice, too.
            timeout: Seconds to wait at most.

        Returns:
            Whether there are enough.
        """
        head, batch = self._head(), checked_batch(items, size, 0.0)
        return bool(head.wait(lambda: head.is_full(batch) or None, timeout))

    def _head(self) -> Head[bytes]:
        return head_of(self._queue)

    def close(self) -> None:
        """Close the queue."""
        self._queue.close()


def _draft_of(path: str) -> int:
    """Open and lock the file that is to replace the one at ``path``; its lock goes with ``flock.release``."""
    while True:
        fd = open_private(path + ".tmp", os.O_WRONLY)
        flock.adopt(fd)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path + ".tmp")):
                return fd
        flock.release(fd)  # who had it before has put it in its place


class ReaderSource(QueueSource):
    """The items of a queue directory that a named reader has not passed, as bytes.

    Removing items means passing them. An item that returned meanwhile to a place before the last item of a batch is
    passed, too, and counted as skipped, just as if the reader had moved when it read.

    Args:
        path: The directory.
        name: The queue in it.
        reader: The reader; it is created if it is missing.

    Raises:
        FormatError: There is no queue directory.
        KeyError: There is no queue of that name.
    """

    def __init__(self, path: str | os.PathLike[str], name: str, reader: str) -> None:
        """Open the queue, and raise, as ``QueueSource`` does."""
        super().__init__(path, name)
        self._reader = self._queue.reader(reader)
        self._refused: set[int] = set()  # items that became dead letters, but that the reader has not passed
        self.origin = Origin(self.origin.uuid, f"{name}/{reader}")

    def bounds(self) -> Bounds:
        """Return the progress of the reader."""
        come = self._engine.environment.view(self._engine.ref, readers.come, self._reader.name)
        return Bounds(come, self._reader.count())

    def read(self, items: int, size: int) -> tuple[list[Envelope], list[bytes]]:
        """Return the first items that were not refused: the envelope and the payload of each.

        Args:
            items: The number of items, at most.
            size: Bytes of payloads, at most; one item is returned in any case.
        """
        if not self._refused:
            return super().read(items, size)
        found = zip(*super().read(items + len(self._refused), size), strict=True)
        some = [each for each in found if each[0].seq not in self._refused][:items]
        return [envelope for envelope, _ in some], [payload for _, payload in some]

    def _behind(self, place: bytes) -> list[Entry]:
        if place:
            return super()._behind(place)
        return self._engine.reader(self._reader.name).first(1)

    def remove(self, seqs: Collection[int]) -> int:
        """Move the reader past these items; durable when this returns.

        Args:
            seqs: The numbers of the items.
        """
        if not seqs:
            return 0
        passed = self._pass(seqs)
        self._pass_refused()
        return passed

    def _pass(self, seqs: Collection[int]) -> int:
        args = self._reader.name, frozenset(seqs), self._engine.clock().wall
        return self._engine.environment.update(self._engine.ref, readers.settle, *args)

    def refuse(self, reasons: Mapping[int, str]) -> list[int]:
        """Make these items, with their headers, dead letters of the queue ``NAME-READER-refused``; pass them in turn.

        Return the numbers of those that were still there. The items themselves stay where they are, for other readers.
        If the process is killed before the reader has passed them, the next run sends them again, and they can be dead
        letters twice.

        Args:
            reasons: The numbers of the items, each with its reason.
        """
        found = zip(*self.read(_AHEAD, sys.maxsize), strict=True)
        some = [(envelope, payload) for envelope, payload in found if envelope.seq in reasons]
        if some:
            name = f"{self._queue.name}-{self._reader.name}-refused"
            with self._opened(name) as aside:
                for envelope, payload in some:
                    number = aside.push(payload, headers=envelope.headers)
                    aside.dead_letter(number, f"item {envelope.seq}: {reasons[envelope.seq]}")
            self._refused.update(envelope.seq for envelope, _ in some)
            self._pass_refused()
        return [envelope.seq for envelope, _ in some]

    def _pass_refused(self) -> None:
        """Move the reader past refused items, up to the first other item."""
        while self._refused:
            seqs = [envelope.seq for envelope in super().read(1, 1)[0]]
            if not self._refused.intersection(seqs):
                return
            self._refused.difference_update(seqs)
            self._pass(seqs)

    def wait(self, timeout: float) -> None:
        """Wait until there is an item.

        Args:
            timeout: Seconds to wait at most.
        """
        with suppress(Empty):
            self._reader.peek(1, blocking=True, timeout=timeout)

    def _head(self) -> Head[bytes]:
        return position_of(self._reader)


def _names(path: str, options: _format.Options) -> list[str]:
    """Return the names of the queues of a directory, without creating one."""
    environment = open_environment(path, options)
    try:
        with environment.exclusive() as (generation, txn):
            return list(generation.names(txn))
    finally:
        environment.release()


_AHEAD: Final = 10_000  # the number of items searched for those of a batch


def source_of(local: Any) -> Source:
    """Return the source for a queue, given as an object or a path, or for a reader of it; or a given source."""
    if isinstance(local, Source):
        return local
    if isinstance(local, PersistentQueue):
        return QueueSource(local_engine_of(local).path, local.name)
    if isinstance(local, Reader):
        queue = local.queue
        if not isinstance(queue, PersistentQueue):
            message = f"only a reader of a PersistentQueue can be forwarded, not one of {queue!r}"
            raise TypeError(message)
        return ReaderSource(local_engine_of(queue).path, queue.name, local.name)
    return QueueSource(local)
