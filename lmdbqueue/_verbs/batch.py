"""The batches that pass from a source of items to the target of a forwarder.

Owns: batches, marks, and the interface of a target. Law: a batch comes from one source, has a number, and follows the
previous one; its mark suffices to find out after any crash whether the batch was stored. Must not know: where items
come from, how they are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from lmdbqueue._base.format import ranges
from lmdbqueue._base.values import NamedTuple


class Origin(NamedTuple):
    """The queue that items come from.

    Attributes:
        uuid: The uuid of its directory.
        name: Its name there.
    """

    uuid: str
    name: str


class Mark(NamedTuple):
    """A target's knowledge of a source: its last batch.

    Attributes:
        number: The number of the batch; the first is 1.
        seqs: The sequence numbers of its items.
        next: A number greater than those of its items.
        removed: The number of items that have left the source, including those of the batch.
        digest: A digest of the payloads, to detect other items with these numbers in a restored copy; b"" if unknown.
    """

    number: int
    seqs: list[int]
    next: int
    removed: int
    digest: bytes = b""  # of the payloads, b"" if unknown: other items may have these numbers in a restored copy


def ends_of(seqs: Sequence[int]) -> list[int]:
    """Return numbers as the ends of their ranges: first, last + 1, first, last + 1, and so on."""
    return [end for each in ranges(seqs) for end in (each.start, each.stop)]


def seqs_of(ends: Sequence[int]) -> list[int]:
    """Return the numbers from which ``ends_of`` made these ends."""
    return [seq for start, stop in zip(ends[::2], ends[1::2], strict=True) for seq in range(start, stop)]


def digest(payloads: Sequence[bytes]) -> bytes:
    """Return a 16-byte digest of these payloads, in their order."""
    import hashlib  # noqa: PLC0415  (not every program needs it)

    found = hashlib.blake2b(digest_size=16)
    for payload in payloads:
        found.update(len(payload).to_bytes(8))
        found.update(payload)
    return found.digest()


class Envelope(NamedTuple):
    """The facts of an item that is forwarded.

    Attributes:
        seq: Its sequence number.
        headers: The headers of its push.
        pushed_at: The time of its push, or of the end of its delay, in seconds since 1970.
    """

    seq: int
    headers: Mapping[str, str] = {}
    pushed_at: float = 0.0


class Batch(NamedTuple):
    """Items in their order, as bytes, and the mark to store with them.

    Attributes:
        origin: The queue that they come from.
        mark: The mark.
        payloads: The items.
        envelopes: The number, headers and time of push of each item; empty if the source knows only their numbers.
    """

    origin: Origin
    mark: Mark
    payloads: list[bytes]
    envelopes: Sequence[Envelope] = ()

    def enveloped(self) -> list[tuple[Envelope, bytes]]:
        """Return the envelope and the payload of each item."""
        envelopes = self.envelopes or [Envelope(seq) for seq in self.mark.seqs]
        return list(zip(envelopes, self.payloads, strict=True))


class Target(ABC):
    """The destination of a forwarder; subclass it for one of your own.

    If a method raises, the forwarder tries again, from ``last`` on.

    Attributes:
        limit: The maximum number of items in a batch; None: that of the forwarder.
        max_bytes: The maximum size of a batch in bytes; None: that of the forwarder.
    """

    limit: int | None = None
    max_bytes: int | None = None

    @property
    def identity(self) -> str:
        """The identity of the target, known once ``last`` has answered; "" for none.

        A source notes its progress for each identity. A target restored from a backup keeps its identity, so the source
        can detect that.
        """
        return ""

    @abstractmethod
    def last(self, origin: Origin) -> Mark | None:
        """Return the mark of the last batch of a source.

        If a target stores each mark in one step with its batch, each item arrives exactly once; otherwise at least
        once.

        Args:
            origin: The queue that the items come from.

        Returns:
            The mark; None if there is none, or if this target keeps none.

        Raises:
            BusyError: Another forwarder of this source is at work.
        """

    @abstractmethod
    def store(self, batch: Batch) -> None:
        """Store a batch completely; it is safe when this returns.

        Args:
            batch: The items and their mark.

        Raises:
            RefusedError: The target will never accept some of the items. They become dead letters of the source, and
                the others come again in a new batch. A target that keeps marks raises it before it has stored anything.
            AwayError: The target accepts nothing at the moment.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all resources."""


class BusyError(Exception):
    """Another forwarder of the same source is, or was, running."""


class RefusedError(Exception):
    """The target will never accept some items. ``stored``: the items that it has stored; the rest come again.

    If it names no item of the batch, the target counts as unreachable.
    """

    def __init__(self, refused: Mapping[int, str], stored: Collection[int] = ()) -> None:
        """``refused``: the numbers of the items, with the reasons."""
        super().__init__(f"{len(refused)} refused")
        self.refused = dict(refused)
        self.stored = stored


class AwayError(OSError):
    """The target cannot be reached, or accepts nothing at the moment.

    ``retry_after``: seconds until the next attempt; None or 0: the forwarder decides. ``stored`` and ``refused``: as in
    ``RefusedError``, for the part of the batch that was already processed.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        stored: Collection[int] = (),
        refused: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.stored = stored
        self.refused = dict(refused or {})
