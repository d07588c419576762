"""What passes between a source of items and what they are forwarded to.

Owns: batches, marks, and the interface of a target. Law: a batch is of one source, has a number, and follows the one
before; its mark says enough to tell after any crash whether it was stored. Must not know: where items come from, how
they are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from lmdbqueue._format import ranges
from lmdbqueue._values import NamedTuple


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
        next: A number greater than those of all batches so far.
        removed: The number of items that have left the source, after the batch.
        digest: A digest of the payloads, to detect other items with these numbers in a restored copy; b"" if unknown.
    """

    number: int
    seqs: list[int]
    next: int
    removed: int
    digest: bytes = (
        b""  # of the payloads, b"" if it was not noted: other items may have these numbers in a restored copy
    )


def ends_of(seqs: Sequence[int]) -> list[int]:
    """Return numbers as the ends of their ranges: first, last + 1, first, last + 1, and so on."""
    return [end for each in ranges(seqs) for end in (each.start, each.stop)]


def seqs_of(ends: Sequence[int]) -> list[int]:
    """Return the numbers that ``ends_of`` was given."""
    return [seq for start, stop in zip(ends[::2], ends[1::2], strict=True) for seq in range(start, stop)]


def digest(payloads: Sequence[bytes]) -> bytes:
    """Return 16 bytes that stand for these payloads, in their order."""
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
        """Return each item's envelope with its payload."""
        envelopes = self.envelopes or [Envelope(seq) for seq in self.mark.seqs]
        return list(zip(envelopes, self.payloads, strict=True))


class Target(ABC):
    """The destination of a forwarder; subclass it for one of your own.

    If a method raises, the forwarder tries again, from ``last`` on.

    Attributes:
        limit: Items of a batch, at most; None: as the forwarder likes.
        max_bytes: Bytes of a batch, at most; None: as the forwarder likes.
    """

    limit: int | None = None
    max_bytes: int | None = None

    @property
    def identity(self) -> str:
        """What it is, once ``last`` has answered; a source notes how far it has come with it. "": nothing is noted.

        What is restored from a backup has the identity that it had, so that the source can tell.
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
            RefusedError: The target will never take some of the items. They become dead letters of the source, and the
                others come again in a new batch. A target that keeps marks raises it before it has stored anything.
            AwayError: The target takes nothing now.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all resources."""


class BusyError(Exception):
    """Another forwarder of the same source is, or was, at work."""


class RefusedError(Exception):
    """Items of a batch that the target will never take. ``stored``: what it has taken; the rest comes again."""

    def __init__(self, refused: Mapping[int, str], stored: Collection[int] = ()) -> None:
        """``refused``: the numbers of the items, and why."""
        super().__init__(f"{len(refused)} refused")
        self.refused = dict(refused)
        self.stored = stored


class AwayError(OSError):
    """The target cannot be reached, or takes nothing now.

    ``retry_after``: seconds for which it wants to be left alone, None: as the forwarder likes. ``stored`` and
    ``refused``: as of ``RefusedError``, what became of a part of the batch before.
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
