"""The items that a transaction adds, for the content weight in its record (see ``_model.weighed_records``).

Owns: which of them count. Law: what a transaction both adds and removes is no part of it, nor is what it removes and
puts back: what counts is the difference between its beginning and its end.

With checkpoints a transaction is proven against one that may be many before it. So what counts there is a running sum
(``Running``): of each item that comes, less that of each that leaves, whichever transaction it came with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from lmdbqueue._format import weigh_sealed


class Content:
    """The items that a transaction has added so far.

    A call does not put back what it removed itself. But a user's block may, and where several calls share a transaction
    one may give back what another leased.
    """

    __slots__ = ("added", "asks", "is_simple", "pending", "remembers", "removed", "weight")
    is_running = False  # whether it has to be told the weights of the items that leave

    def __init__(self) -> None:
        self.weight = 0
        self.asks = False  # whether it has to be told which items are removed
        self.is_simple = True  # whether it knows nothing but ``weight`` and ``pending``
        self.remembers = False  # what it removed
        self.pending: list[
            tuple[str, Sequence[bytes], Sequence[bytes]]
        ] = []  # queue, keys, values: not in ``added`` yet
        self.added: dict[tuple[str, bytes], int] = {}  # queue and key of an item, and its weight
        self.removed: set[tuple[str, bytes]] = set()

    def add(self, name: str, keys: Sequence[bytes], values: Sequence[bytes], weight: int) -> None:
        """Note that sealed items were added, whose weight is known."""
        self.asks = True
        if self.removed and not self.removed.isdisjoint(zip(repeat(name), keys)):
            for key, value in zip(keys, values, strict=True):
                if (name, key) in self.removed:
                    self.removed.discard((name, key))
                else:
                    self.add(name, [key], [value], weigh_sealed(value))
        else:
            self.weight += weight
            self.pending.append((name, keys, values))

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        """Note that items were removed."""
        self.is_simple = False
        for queue, there, values in self.pending:
            self.added |= {(queue, key): weigh_sealed(value) for key, value in zip(there, values, strict=True)}
        self.pending.clear()
        for key in keys:
            weight = self.added.pop((name, key), None)
            if weight is not None:
                self.weight -= weight
            elif self.remembers:
                self.removed.add((name, key))

    def leave(self, value: bytes) -> None:
        """Note that a sealed item leaves. For a running sum only."""

    def enter_block(self) -> None:
        """Be that of a user's block."""
        self.enter_group()
        self.asks = True

    def enter_group(self) -> None:
        """Be that of several calls. What is taken for good need not be told: no other call can put it back."""
        self.is_simple = False
        self.remembers = True


class Running(Content):
    """What a transaction changes of the running sum."""

    __slots__ = ()
    is_running = True

    def add(self, name: str, keys: Sequence[bytes], values: Sequence[bytes], weight: int) -> None:  # noqa: ARG002
        """Note that sealed items came, whose weight is known."""
        self.asks = True  # so that the next transaction begins anew
        self.weight += weight

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        """Do nothing: ``leave`` was called."""

    def leave(self, value: bytes) -> None:
        """Note that a sealed item leaves."""
        self.asks = True
        self.weight -= weigh_sealed(value)

    def enter_block(self) -> None:
        """Be that of a user's block."""

    def enter_group(self) -> None:
        """Be that of several calls."""
