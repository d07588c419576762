"""``queue.reader(name)``: what a program holds that reads the whole queue at its own pace.

Owns: the verbs of a reader, and those of a queue that has readers. Law: a reader's verbs mean what the queue's own do,
with its position in the place of the head. Must not know: how positions are kept.
"""

# ruff: noqa: SLF001  (a reader's engine is that of its queue)

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal, Self, TypeVar

from lmdbqueue._errors import ClosedError, ShutDown
from lmdbqueue._format import Retention, check_name
from lmdbqueue._model.readers import NEWEST, OLDEST, ReaderStats
from lmdbqueue._verbs.consuming import ConsumerQueue
from lmdbqueue._verbs.reading import Entry, Reading

T = TypeVar("T")
R = TypeVar("R")

Start = int | Literal["oldest", "newest"]
Move = Any  # of an engine, by which it undoes what a reader passed at once
_AHEAD: Final = 100  # items that iteration reads at a time
_SHARE: Final = 100  # a reader that waits amid writers rests so many times longer than its move took
_GATHERING: Final = 0.05  # seconds that it rests at the most
_SECOND: Final = 10**9  # ns


class FollowedQueue(ConsumerQueue[T]):
    """A persistent queue with named readers."""

    # --- the engine

    @abstractmethod
    def _reader_create(self, name: str, where: Start) -> None:
        """Make a reader unless it is there."""

    @abstractmethod
    def _reader_drop(self, name: str) -> bool:
        """Remove a reader; tell whether it was there."""

    @abstractmethod
    def _reader_seek(self, name: str, where: Start) -> None:
        """Let a reader go on from another place."""

    @abstractmethod
    def _reader_first(self, name: str, n: int, *, durable: bool) -> list[Entry]:
        """Return the next ``n`` entries of a reader; not ``durable``: a power cut may take them back."""

    @abstractmethod
    def _reader_advance(self, name: str, keys: list[bytes]) -> Move | None:
        """Let a reader pass its next items if they are just those of ``keys``, else nothing, and return None."""

    @abstractmethod
    def _reader_retreat(self, move: Move, entries: list[Entry]) -> bool:
        """Undo a move past ``entries`` if nobody has moved the reader since; tell if so."""

    @abstractmethod
    def _reader_delete(self, name: str, n: int) -> int:
        """Let a reader pass its next ``n`` items, or as many as there are; return how many."""

    @abstractmethod
    def _reader_lag(self, name: str) -> int:
        """Return how many items a reader has not passed."""

    @abstractmethod
    def _reader_stats(self, name: str | None) -> list[ReaderStats]:
        """Return what is known of a reader, None for all."""

    def _is_crowded(self) -> bool:
        """Tell whether the last move of a reader had to wait for the flush of another process."""
        return False

    @abstractmethod
    def _retain(self, retention: Retention | None) -> None:
        """Set what is kept."""

    # --- the verbs

    def reader(self, name: str, *, start: Start = "oldest") -> "Reader[T]":
        """Return the reader ``name``, which is made, durably, if it is not there.

        ``start``, of a new one: ``"oldest"`` for all that is in the queue, ``"newest"`` for what is pushed from now on,
        or the number of an item. Many processes may have the same reader: it is one position, which they share.

        While a queue has readers, what all of them have passed is removed by itself, in the transaction of the last
        one; ``pop``, ``delete``, ``clear`` and an ``ack`` of the queue itself remove for all readers, which count what
        they lose (``skipped``). An item with a delay gets a new number when it comes due, at the tail. Once the reader
        was dropped every verb of it raises ``GoneError``.
        """
        self._refuse_if_closed()
        self._reader_create(check_name(name), checked_start(start))
        return Reader(self, name)

    def readers(self) -> list[ReaderStats]:
        """Return the readers of this queue: name, position, lag, skipped, and when each moved last."""
        return self._reader_stats(None)

    def drop_reader(self, name: str) -> None:
        """Remove a reader for good, and what only it had not passed. Raises ``KeyError`` if there is none."""
        if not self._reader_drop(name):
            raise KeyError(name)

    def retain(
        self,
        items: int | None = None,
        *,
        bytes: int | None = None,  # noqa: A002  (the name that says it)
        seconds: float | None = None,
    ) -> None:
        """Keep the newest items whoever has passed them, and nothing beyond: at most so many, or so much, or so old.

        For a replay (``seek``), and to bound what a slow reader can hold back: what is beyond leaves, read or not, and
        who had not passed it counts it as ``skipped``. With several limits the tightest holds; without any it is as
        it was before: what all readers have passed leaves, and nothing else.

        It is a property of the queue, durable when this returns, and is kept when items are pushed and readers
        move. ``bytes`` are pages of the items (on PostgreSQL their own, kept to a 64th), at least one item stays.
        ``seconds`` are counted from the push, or from when an item with a delay was due, and kept to a 64th, whatever
        steps the wall clock makes meanwhile. What came before the queue kept its times counts from the next push, or
        this call.
        """
        limits = (items, bytes, seconds)
        if any(limit is not None and not limit > 0 for limit in limits):
            message = f"a limit of what is retained is a positive number, and not one of {limits}"
            raise ValueError(message)
        age = None if seconds is None else int(seconds * _SECOND)
        self._retain(None if limits == (None, None, None) else Retention(items, bytes, age))


class Reader(Reading[T]):
    """A named reader of a queue: a position that is kept, durably, and its own verbs on what comes after it.

    ``peek``, ``pop``, ``delete``, ``len`` and waiting mean what they do for the queue; ``pop`` and ``delete`` move only
    this reader. They take part in ``queue.transaction()``. ``for item in reader`` waits for items, and passes each when
    the loop asks for the next: one that dies in its body sees that item again. It ends after ``queue.shutdown()``
    once everything was read. Objects of the same name, in any process, share the position: ``pop`` gives each item to
    one of them.

    A reader that keeps up with writers who never rest would commit once for each item, and each of its commits makes
    them wait for a flush. So once a move of all that there was had to wait for the flush of another process, and as
    long as more than one item comes meanwhile, a blocking verb lets items gather first: until the move was a hundredth
    of the time, and for 50 ms at most.
    """

    def __init__(self, queue: FollowedQueue[T], name: str) -> None:
        self.queue = queue
        self.name = name
        self._is_closed = False
        self._has_all = False  # whether it last read all that there was
        self._gathers = False  # whether it lets items gather, amid others who write
        self._rests_until = 0.0  # on time.monotonic()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.queue!r}{', closed' if self._is_closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same reader in the process that unpickles it."""
        return type(self), (self.queue, self.name)

    def __iter__(self) -> Iterator[T]:
        """Wait for items, and pass each when the next is asked for."""
        while (entries := self._next_entries()) is not None:
            for entry in entries:
                yield self._decode([entry])[0]
                if not self._remove([entry[0]]):  # another who shares this reader was faster
                    break

    def _next_entries(self) -> list[Entry] | None:
        """Wait for some; None when there will be no more."""
        try:
            return self._await(self._ahead, None)
        except ShutDown:
            return None

    def _ahead(self) -> list[Entry] | None:
        return self._if_enough(1, lambda _n, _least: self._first(_AHEAD) or None)  # type: ignore[no-any-return]

    def count(self) -> int:
        """Return how many items this reader has not passed: its lag."""
        self._refuse_if_closed()
        return self.queue._reader_lag(self.name)

    @property
    def position(self) -> int:
        """The number of the item that is read next, or that the next item gets."""
        return self._stats.position

    @property
    def skipped(self) -> int:
        """How many items left the queue before this reader had passed them, since it was made."""
        return self._stats.skipped

    def seek(self, where: Start) -> None:
        """Go on from the item with that number, or the next that is there; or from ``"oldest"`` or ``"newest"``.

        Back to what is still there (see ``retain``), or forward, past what then counts as passed.
        """
        self._refuse_if_closed()
        self.queue._reader_seek(self.name, checked_start(where))

    def close(self) -> None:
        """Close this object: waiting verbs of it, and every later call, raise ``ClosedError``. The reader stays."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(ClosedError):
                self.queue._wake()

    # --- the engine: that of the queue

    @property
    def _stats(self) -> ReaderStats:
        self._refuse_if_closed()
        return self.queue._reader_stats(self.name)[0]

    def _if_enough(self, n: int, get: Any) -> Any:
        self._is_shut_down, self._is_drained = self.queue._is_shut_down, self.queue._is_drained
        return super()._if_enough(n, get)

    def _await(self, attempt: Callable[[], R | None], timeout: float | None) -> R | None:
        rest = self._rest(timeout)
        if rest > 0:
            time.sleep(rest)
            timeout = None if timeout is None else timeout - rest
        return super()._await(attempt, timeout)

    def _rest(self, timeout: float | None) -> float:
        """Return for how many seconds who waits so long lets items gather."""
        rest = self._rests_until - time.monotonic()
        return rest if timeout is None else min(rest, timeout)

    def _first(self, n: int) -> list[Entry]:
        return self._next_few(n, durable=True)

    def _candidates(self, n: int) -> list[Entry]:
        return self._next_few(n, durable=False)

    def _next_few(self, n: int, *, durable: bool) -> list[Entry]:
        self._refuse_if_closed()
        entries = self.queue._reader_first(self.name, n, durable=durable)
        self._has_all = len(entries) < n
        return entries

    def _remove(self, keys: list[bytes]) -> int:
        self._refuse_if_closed()
        return len(keys) if self._advance(keys) else 0

    def _pass(self, entries: list[Entry]) -> tuple[list[T], Move] | None:
        """Pass entries that are the next, and return their items; the move can be undone. None: they are not."""
        self._refuse_if_closed()
        items = self._decode(entries)
        move = self._advance([key for key, _ in entries])
        return None if move is None else (items, move)

    def _advance(self, keys: list[bytes]) -> Move | None:
        begin = time.monotonic()
        move = self.queue._reader_advance(self.name, keys)
        self._moved(len(keys) if move else 0, time.monotonic() - begin)
        return move

    def _delete(self, n: int) -> int:
        begin = time.monotonic()
        passed = self.queue._reader_delete(self.name, n)
        self._moved(passed, time.monotonic() - begin)
        return passed

    def _moved(self, passed: int, took: float) -> None:
        self._gathers = self.queue._is_crowded() or (self._gathers and passed > 1)
        rest = min(_GATHERING, took * _SHARE) if self._gathers and self._has_all else 0.0
        self._rests_until = time.monotonic() + rest

    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        return self.queue._open_payload(entry)

    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        return self.queue._payloads(entries)

    def _decode(self, entries: list[Entry]) -> list[T]:
        return self.queue._decode(entries)

    def _refuse_if_closed(self) -> None:
        self.queue._refuse_if_closed()
        if self._is_closed:
            raise ClosedError(f"reader {self.name!r} of {self.queue.name!r}")

    def _listen(self) -> int:
        self._refuse_if_closed()
        return self.queue._listen()

    def _sleep(self, ticket: int, timeout: float) -> None:
        self.queue._sleep(ticket, timeout)


def checked_start(where: Start) -> Start:
    """Return where a reader is to begin; raise ``ValueError`` for what is no place."""
    if where in (OLDEST, NEWEST) or (isinstance(where, int) and 0 <= where < 1 << 63):
        return where
    message = f"a reader begins at 'oldest', 'newest' or the number of an item, and not at {where!r}"
    raise ValueError(message)
