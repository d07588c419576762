"""Values that cross layers: passed between engines, verbs and interfaces; and ``NamedTuple``, their base.

Owns: their fields and units. Law: each is frozen, and holds nothing but values. Must not know: where they come from.

To a type checker, a subclass of this ``NamedTuple`` is one of ``typing.NamedTuple``. It adds a twentieth of that one's
time to the import, since ``typing`` compiles a constructor for each of the forty classes. Tools can show the
signatures, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414  (so that it can be imported from here)
else:
    from collections import _tuplegetter

    _new = tuple.__new__

    class _Kind(type):
        """Makes a tuple class with a field for each annotation in the class body."""

        def __new__(cls, name, bases, body):
            made = type.__new__(cls, name, bases, {**body, "__slots__": ()})
            if bases:
                made._fields = made.__match_args__ = fields = tuple(made.__annotations__)
                made._field_defaults = {field: body[field] for field in fields if field in body}
                for index, field in enumerate(fields):
                    setattr(made, field, _tuplegetter(index, None))
            return made

        @property
        def __signature__(cls):
            from inspect import Parameter, Signature  # noqa: PLC0415  (for tools that show it)

            default = dict.fromkeys(cls._fields, Parameter.empty) | cls._field_defaults
            kind, types = Parameter.POSITIONAL_OR_KEYWORD, cls.__annotations__
            return Signature([Parameter(each, kind, default=default[each], annotation=types[each]) for each in default])

    class NamedTuple(tuple, metaclass=_Kind):  # noqa: SLOT001  (its metaclass says so)
        """A tuple whose values have names."""

        def __new__(cls, *values, **named):
            fields = cls._fields
            if len(values) == len(fields) and not named:
                return _new(cls, values)
            found = {**cls._field_defaults, **named, **dict(zip(fields, values, strict=False))}
            beyond = len(values) > len(fields) or not named.keys().isdisjoint(fields[: len(values)])
            if beyond or len(found) != len(fields):
                message = f"{cls.__name__} is of {', '.join(fields)}, not of {len(values)} values and {sorted(named)}"
                raise TypeError(message)
            return _new(cls, [found[field] for field in fields])

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changed):
            made = _new(self.__class__, map(changed.pop, self._fields, self))
            if changed:
                message = f"{self.__class__.__name__} has no {', '.join(changed)}"
                raise TypeError(message)
            return made

        __replace__ = _replace

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            values = ", ".join(f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{self.__class__.__name__}({values})"


Entry = tuple[bytes, bytes]  # an engine's key and value of an item; only the engine looks inside

OLDEST: Final = "oldest"
NEWEST: Final = "newest"
Expired = Literal["drop", "dead"]  # what happens to an expired item
Start = int | Literal["oldest", "newest"]  # where a reader begins: at an item's number, or at either end of the queue


class Taken(tuple[bytes, bytes]):  # noqa: SLOT001  (a tuple cannot have slots)
    """An entry that was taken, with the notes that ``put_back`` needs; only the engine reads them."""

    notes: Any

    @classmethod
    def of(cls, entry: Entry, notes: Any) -> Taken:
        """Return an entry together with its notes."""
        taken = cls(entry)
        taken.notes = notes
        return taken


class Moment(NamedTuple):
    """A time, on both clocks of the system."""

    monotonic: int  # ns since it booted
    wall: int  # ns since 1970


Clock = Callable[[], Moment]


def now() -> Moment:
    """Return the current time."""
    return _make(Moment, (time.monotonic_ns(), time.time_ns()))


_make = tuple.__new__  # half of the time of a named tuple's own


class Push(NamedTuple):
    """The options of a push."""

    delay: float = 0.0  # seconds until the items can be taken
    keys: Sequence[bytes] = ()  # digests of their unique keys, b"" for none; empty: none of them has one
    replace: bool = False  # an item with a key takes the place of the one that has it
    expires: float | None = None  # seconds after which they are no longer delivered
    headers: Mapping[str, str] | None = None
    priority: int = 0  # lower leaves sooner
    headers_of_each: Sequence[Mapping[str, str]] = ()  # instead; empty: all have the same


class Pushed(NamedTuple):
    """The outcome of a push, for one item."""

    seq: int  # its number, or that of the existing item with its unique key
    is_stored: bool


class Number(int):
    """The number of an item pushed with a unique key; ``is_stored``: whether the item is new."""

    is_stored: bool

    @classmethod
    def of(cls, pushed: Pushed) -> Number:
        """Return the number of a pushed item."""
        number = cls(pushed.seq)
        number.is_stored = pushed.is_stored
        return number


class Leased(NamedTuple):
    """A lease as an engine gives it."""

    token: int  # 0: of nothing
    seqs: list[int]
    attempts: list[int]
    deadline: float | None  # seconds, on ``time.monotonic()``
    entries: Sequence[Entry] = ()  # of the items, from which their trailers can be read


NOTHING: Final = Leased(0, [], [], None)


class Nacked(NamedTuple):
    """What became of the items of a ``nack`` or ``reject``, by their sequence numbers in the lease.

    Items settled before are in none of the lists.

    Attributes:
        returned: Items that returned to the queue, or will after their delay.
        dead: Items that became dead letters.
        removed: Items that left for good instead: replaced, expired, or beyond the limits of ``retain``.
    """

    returned: list[int]
    dead: list[int]
    removed: list[int]


class ReaderStats(NamedTuple):
    """The figures of a named reader.

    Attributes:
        name: Its name.
        position: The sequence number of the next item, or of the next push if everything is read.
        lag: The number of items that it has not passed.
        skipped: The number of items that left before it had passed them.
        seen: The time of its last move, in seconds since 1970.
    """

    name: str
    position: int
    lag: int
    skipped: int
    seen: float


class Stats(NamedTuple):
    """The figures of a queue, in items, and of its directory, in bytes.

    Attributes:
        waiting: Waiting items, as ``len`` counts them.
        leased: Leased items.
        delayed: Delayed items.
        dead: Dead letters.
        pushed: Items ever pushed, including delayed ones.
        removed: Items ever popped, deleted, acknowledged or cleared.
        head: The sequence number below which all items have left, except those that came back.
        tail: The sequence number of the next push.
        oldest_age: The age in seconds, on the wall clock, of the item that has waited longest, since its push or the
            end of its delay; None if no item is waiting.
        readers: The figures of the named readers, ordered by name.
        bytes_used: Pages in use by all queues of the directory, in bytes; None on PostgreSQL.
        bytes_free: The empty space in the file, in bytes; ``flush(force=True)`` returns it to the file system.
            None on PostgreSQL.
        file_size: The size of the file in bytes, with blocks allocated in advance.
        generation: The number of the file; it grows whenever the file is written anew.
        dropped: Items ever dropped by ``retain``.
        expired: Items ever expired.
        unsynced_seconds: The age of the oldest call that a power cut could undo, 0.0 if there is none; None with
            ``durability="off"`` and on PostgreSQL.
        processes: The number of processes that have the directory open, including this one, as far as the kernel shows
            them to this process; None if unknown.
    """

    waiting: int
    leased: int
    delayed: int
    dead: int
    pushed: int
    removed: int
    head: int
    tail: int
    oldest_age: float | None = None
    readers: tuple[ReaderStats, ...] = ()
    bytes_used: int | None = None
    bytes_free: int | None = None
    file_size: int | None = None
    generation: int | None = None
    dropped: int = 0
    expired: int = 0
    unsynced_seconds: float | None = None
    processes: int | None = None
