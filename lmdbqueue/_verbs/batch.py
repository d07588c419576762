"""What passes between a source of items and what they are forwarded to.

Owns: batches, marks, and the interface of a target. Law: a batch is of one source, has a number, and follows the one
before; its mark says enough to tell after any crash whether it was stored. Must not know: where items come from, how
they are stored.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple


class Origin(NamedTuple):
    """Which queue items come from: the uuid of its directory, its name there."""

    uuid: str
    name: str


class Mark(NamedTuple):
    """What a target knows of a source: its last batch."""

    number: int  # of the batch; the first is 1
    seqs: list[int]  # the numbers of its items
    next: int  # no item of a batch had a number as great
    removed: int  # how many items have left the source, when those of the batch have


class Batch(NamedTuple):
    """Items in their order, as bytes, and the mark to store with them."""

    origin: Origin
    mark: Mark
    payloads: list[bytes]


class Target(ABC):
    """What items are forwarded to. Each method may raise: the forwarder tries again, from ``last`` on."""

    @abstractmethod
    def last(self, origin: Origin) -> Mark | None:
        """Return the mark that was stored with the last batch of a source; None if there is none, or none is kept.

        With a mark stored in one step with its batch, each item comes exactly once; without, at least once.
        ``BusyError`` says that another forwarder of this source is at work.
        """

    @abstractmethod
    def store(self, batch: Batch) -> None:
        """Store a batch, all of it, so that it is safe when this returns."""

    @abstractmethod
    def close(self) -> None:
        """Free what this object holds."""


class BusyError(Exception):
    """Another forwarder of the same source is at work, or has been."""
