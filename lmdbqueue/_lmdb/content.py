"""The items that a transaction adds, for the content weight in its record (see ``_model.weighed_records``).

Owns: which items count. Law: items that a transaction both adds and removes do not count, nor do those that it removes
and puts back: the weight describes the difference between its beginning and its end.

With checkpoints a transaction is verified against one that may be many before it. So there the weight is a running sum
(``Running``): of each item that is added, less that of each that leaves, no matter which transaction added it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from lmdbqueue._base.format import weigh_item


class Content:
    """The items that a transaction has added so far.

    A single call never puts back what it has removed. But a user's block may, and if several calls share a transaction,
    one may give back items that another leased.
    """

    __slots__ = ("added", "asks", "is_simple", "pending", "remembers", "removed", "weight")
    is_running = False  # whether it needs the weights of leaving items

    def __init__(self) -> None:
        self.weight = 0
        self.asks = False  # whether it needs to know which items are removed
        self.is_simple = True  # whether only ``weight`` and ``pending`` are used
        self.remembers = False  # whether it remembers removed items
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
                    self.add(name, [key], [value], weigh_item(value))
        else:
            self.weight += weight
            self.pending.append((name, keys, values))

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        """Note that items were removed."""
        self.is_simple = False
        for queue, there, values in self.pending:
            self.added |= {(queue, key): weigh_item(value) for key, value in zip(there, values, strict=True)}
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
        """Begin a user's block."""
        self.enter_group()
        self.asks = True

    def enter_group(self) -> None:
        """Begin a group of calls. Items taken for good need not be reported: no other call can put them back."""
        self.is_simple = False
        self.remembers = True


class Running(Content):
    """The change of the running sum by a transaction."""

    __slots__ = ()
    is_running = True

    def add(self, name: str, keys: Sequence[bytes], values: Sequence[bytes], weight: int) -> None:  # noqa: ARG002
        """Note that sealed items were added, whose weight is known."""
        self.asks = True  # so that the next transaction begins anew
        self.weight += weight

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        """Do nothing: ``leave`` was called."""

    def leave(self, value: bytes) -> None:
        """Note that a sealed item leaves."""
        self.asks = True
        self.weight -= weigh_item(value)

    def enter_block(self) -> None:
        """Begin a user's block."""

    def enter_group(self) -> None:
        """Begin a group of calls."""
