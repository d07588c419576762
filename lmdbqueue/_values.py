"""Values that cross floors: what engines, verbs and faces hand to each other.

Owns: their fields and units. Law: each is frozen, and holds nothing but values. Must not know: where they come from.
"""

import time
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from lmdbqueue._tuples import NamedTuple

Entry = tuple[bytes, bytes]  # an engine's key and value of an item; only the engine looks inside

OLDEST: Final = "oldest"
NEWEST: Final = "newest"
Expired = Literal["drop", "dead"]  # what becomes of an item whose time is over
Start = int | Literal["oldest", "newest"]  # where a reader begins: at the number of an item, or at an end


class Moment(NamedTuple):
    """A time, on both clocks of the system."""

    monotonic: int  # ns since it booted
    wall: int  # ns since 1970


Clock = Callable[[], Moment]


def now() -> Moment:
    """Return what time it is."""
    return _make(Moment, (time.monotonic_ns(), time.time_ns()))


_make = tuple.__new__  # half of the time of a named tuple's own


class Push(NamedTuple):
    """How items are pushed that do not just wait."""

    delay: float = 0.0  # seconds until they can be seen
    keys: Sequence[bytes] = ()  # digests of their unique keys, b"" for none; empty: none of them has one
    replace: bool = False  # an item with a key takes the place of the one that has it
    expires: float | None = None  # seconds until they are not delivered any more
    headers: Mapping[str, str] | None = None
    priority: int = 0  # lower leaves sooner


class Pushed(NamedTuple):
    """What became of an item that was pushed."""

    seq: int  # its number, or that of the item that has its unique key
    is_stored: bool


class Number(int):
    """The number of an item that was pushed with a key; ``is_stored``: whether it is a new one."""

    is_stored: bool

    @classmethod
    def of(cls, pushed: Pushed) -> "Number":
        """Return the number of what was pushed."""
        number = cls(pushed.seq)
        number.is_stored = pushed.is_stored
        return number


class Leased(NamedTuple):
    """A lease as an engine gives it."""

    token: int  # 0: of nothing
    seqs: list[int]
    attempts: list[int]
    deadline: float | None  # seconds, on ``time.monotonic()``
    entries: Sequence[Entry] = ()  # of the items, for what else is known of them


NOTHING: Final = Leased(0, [], [], None)


class ReaderStats(typing.NamedTuple):
    """A named reader: what it reads next, how much is before it, how much it lost, when it moved last."""

    name: str
    position: int  # number of the item that it reads next, or that the next item gets
    lag: int  # items that it has not passed
    skipped: int  # items that were removed before it had passed them
    seen: float  # seconds since 1970, when it last moved


class Stats(typing.NamedTuple):
    """Figures of a queue, in items, and of the directory that it shares with others, in bytes.

    ``oldest_age`` is of the item that waits longest, by the wall clock. An item waits since it was pushed, or, if that
    was with a delay, since it was due; one that was leased, dead or moved here in between has not begun anew.
    ``head``, ``tail`` and numbers of items: see ``docs/format.md``. ``processes`` are those that the kernel shows
    to this one: all of the machine, or, seen from within a container, those of the container.
    """

    waiting: int  # what len() says
    leased: int
    delayed: int
    dead: int
    pushed: int  # ever, delayed ones included
    removed: int  # ever: popped, deleted, acknowledged, cleared
    head: int  # all items with a smaller number have left, but for those that came back
    tail: int  # number that the next item gets
    oldest_age: float | None = None  # seconds; None: nothing waits
    readers: tuple[ReaderStats, ...] = ()  # by their names
    bytes_used: int | None = None  # pages in use, of all queues of the directory; None: not in a directory
    bytes_free: int | None = None  # what flush(force=True) would give back
    file_size: int | None = None  # bytes, those allocated ahead included
    generation: int | None = None  # of the file: one more than how often it was written anew
    dropped: int = 0  # ever: beyond what is retained
    expired: int = 0  # ever: their time was over
    processes: int | None = None  # that have the directory open, this one included; None: not known here
