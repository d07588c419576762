"""What every adapter has.

Law: an item goes in as a dict and comes out as an equal dict, so whoever stores bytes pays for pickle
in its adapter, as its user would.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from bench.items import Item


class Peer(ABC):
    """A queue in ``directory``, open; made durable, or as fast as its own options make it.

    Some adapters have more: ``push_many(items)``, ``peek_many(n)``, ``delete_many(n)``,
    ``pop_many(n)``, each one transaction; ``peek()``; and ``wait(timeout)``, which blocks until another
    process has pushed, removes the item, and returns the ``time.monotonic_ns()`` at which it was in
    hand, or None after ``timeout`` seconds.
    """

    name: ClassVar[str]
    package: ClassVar[str]  # what pip installs
    durable_by: ClassVar[str | None]  # how it was made durable; None: it cannot be
    relaxed_by: ClassVar[str | None]  # how it was made not to sync; None: it always syncs
    between_by: ClassVar[str | None] = (
        None  # how a power cut takes the last moment, and breaks nothing; None: it cannot
    )
    pop_is: ClassVar[str] = "one call"  # what it takes until no one else gets the item
    is_sqlite: ClassVar[bool] = False
    shares_threads: ClassVar[bool] = True  # one object for many threads
    shares_processes: ClassVar[bool] = True
    is_variant: ClassVar[bool] = False  # of another adapter: measured where the difference matters
    is_bound: ClassVar[bool] = False  # no queue to be had: what is possible at the most, of single calls

    @abstractmethod
    def __init__(self, directory: str, *, durable: bool) -> None:
        """Open the queue, and create it if it is not there."""

    @abstractmethod
    def push(self, item: Item) -> None:
        """Append one item."""

    @abstractmethod
    def pop(self) -> Item:
        """Remove the first item and return it."""

    @abstractmethod
    def close(self) -> None:
        """Close the queue."""

    @classmethod
    def address(cls) -> str:
        """Return where another process finds this adapter: its module and class."""
        return f"{cls.__module__.rpartition('.')[2]}:{cls.__name__}"

    @classmethod
    def has(cls, verb: str) -> bool:
        """Return whether this queue has that verb."""
        return hasattr(cls, verb)

    @classmethod
    def can_be(cls, mode: str) -> bool:
        """Return whether it belongs in the table of that mode."""
        how = {"durable": cls.durable_by, "between": cls.between_by, "off": cls.relaxed_by}
        return how[mode] is not None

    @classmethod
    def opened(cls, directory: str, mode: str) -> Self:
        """Open the queue in that mode, one that it can be in."""
        return cls(directory, durable=mode == "durable")
