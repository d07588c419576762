"""A queue in another directory as the target of a forwarder.

Owns: where its marks are kept. Law: a batch and its mark are one transaction, and a mark follows only the previous one;
so a batch is stored once, no matter who tries to store it again, or when. Must not know: the source.

The marks are in the state of a queue of the directory that has no items, ``lmdbqueue-marks``, by the name of the queue
that is filled and by the source: the state of a queue itself belongs to its users. There is no lock: of two forwarders
of one source, the mark admits one batch, and the other forwarder begins again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from lmdbqueue._base.errors import DiskFullError, ForwardError, Full
from lmdbqueue._base.values import Push
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.batch import AwayError, Batch, BusyError, Mark, Origin, Target, ends_of, seqs_of

_MARKS: Final = "lmdbqueue-marks"


class QueueTarget(Target):
    """A target that stores each item, with its headers, in a ``PersistentQueue`` exactly once.

    Items are stored in the same bytes as in the source. A full queue counts as unreachable. The marks are in the state
    of the queue ``lmdbqueue-marks`` of the same directory.

    Args:
        queue: An open queue, which the caller closes; or a function that opens it.
    """

    def __init__(self, queue: PersistentQueue[Any] | Callable[[], PersistentQueue[Any]]) -> None:
        self._open_queue = None if isinstance(queue, PersistentQueue) else queue
        self._queue = queue if isinstance(queue, PersistentQueue) else None
        self._marks: PersistentQueue[bytes] | None = None
        self.limit: int | None = None

    @property
    def identity(self) -> str:
        """The directory, by its uuid, which a restored backup keeps, and the queue."""
        return "" if self._queue is None else _identity(self._queue)

    def last(self, origin: Origin) -> Mark | None:
        """Return the mark of the last batch of a source.

        Args:
            origin: The queue that the items come from.

        Raises:
            ForwardError: The source is this queue itself.
        """
        queue, state = self._opened()
        if f"{origin.uuid}/{origin.name}" == _identity(queue):
            reason = f"queue {queue.name!r} would be forwarded into itself"
            raise ForwardError(local_engine_of(queue).path, reason, "give another queue, or another directory")
        return _last(state, _key(queue, origin))

    def store(self, batch: Batch) -> None:
        """Push the items of a batch and store its mark, as one transaction.

        Args:
            batch: The items and their mark.

        Raises:
            BusyError: Another forwarder has stored this batch, or the previous one; or the queue has room for fewer
                items.
            AwayError: The queue, or the disk, is full.
        """
        queue, state = self._opened()
        engine, key = local_engine_of(queue), _key(queue, batch.origin)
        stored = 0  # items of this batch
        try:
            with queue.transaction():
                before = _last(state, key)
                if batch.mark.number != (0 if before is None else before.number) + 1:
                    raise BusyError
                for headers, payloads in _alike(batch):
                    engine.append_apart(payloads, Push(headers=headers)) if headers else engine.append(payloads)
                    stored += len(payloads)
                state[key] = _stored(batch)
        except Full as error:
            if self._lessen(len(batch.payloads), error, stored):
                raise BusyError from error
            raise AwayError(str(error)) from error
        if self.limit is not None:
            self.limit *= 2
        queue.sync()

    def _lessen(self, n: int, error: Full, stored: int) -> bool:
        """Make the next batch smaller, if one of ``n`` items could never fit; return whether it may fit now.

        ``stored``: items of the batch that were counted as in the queue.
        """
        if isinstance(error, DiskFullError):
            return False
        fitting = error.limit - error.used + stored if error.unit == "items" else n // 2
        self.limit = max(1, min(fitting, n - 1))
        return fitting > 0 and n > 1

    def close(self) -> None:
        """Close the queues that were opened here."""
        marks, self._marks = self._marks, None
        if marks is not None:
            marks.close()
        if self._open_queue is not None and self._queue is not None:
            self._queue.close()
            self._queue = None

    def _opened(self) -> tuple[PersistentQueue[Any], MutableMapping[str, bytes]]:
        """Return the queue, and the marks. Raises ``AwayError`` if the disk is too full to make them."""
        try:
            if self._queue is None:
                assert self._open_queue is not None  # one of the two is set
                self._queue = self._open_queue()
            if self._marks is None:
                environment = local_engine_of(self._queue).environment
                options = environment.directory.options
                self._marks = PersistentQueue(
                    environment.directory.path,
                    dumps=bytes,
                    loads=bytes,
                    name=_MARKS,
                    durability=options.durability,
                    interval=self._queue.interval,
                    checksum=options.checksum,
                )
        except Full as error:
            raise AwayError(str(error)) from error
        return self._queue, self._marks.state


def _identity(queue: PersistentQueue[Any]) -> str:
    return f"{local_engine_of(queue).environment.directory.options.uuid}/{queue.name}"


def _key(queue: PersistentQueue[Any], origin: Origin) -> str:
    source = hashlib.blake2b(f"{origin.uuid}/{origin.name}".encode(), digest_size=16).hexdigest()
    return f"{queue.name}: {source}"


def _last(state: Mapping[str, bytes], key: str) -> Mark | None:
    found = state.get(key)
    if found is None:
        return None
    _, number, ends, following, removed, digest = json.loads(found)
    return Mark(number, seqs_of(ends), following, removed, bytes.fromhex(digest))


def _stored(batch: Batch) -> bytes:
    number, seqs, following, removed, digest = batch.mark
    source = f"{batch.origin.uuid}/{batch.origin.name}"  # for human readers
    return json.dumps([source, number, ends_of(seqs), following, removed, digest.hex()]).encode()


def _alike(batch: Batch) -> Iterator[tuple[Mapping[str, str], list[bytes]]]:
    """Yield the payloads of successive items with equal headers, together with these headers."""
    pairs = [(envelope.headers, payload) for envelope, payload in batch.enveloped()]
    for headers, some in groupby(pairs, itemgetter(0)):
        yield headers, [payload for _, payload in some]
