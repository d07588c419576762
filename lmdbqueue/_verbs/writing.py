"""What the verbs mean that only a queue has, whatever engine keeps the items: to push, to clear, to browse.

Owns: checking arguments, encoding before the transactions. Law: nothing of a user's code (``dumps``) runs inside a
transaction of the library. Must not know: LMDB, files.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from lmdbqueue._errors import ShutDown
from lmdbqueue._format import MAX_PAYLOAD
from lmdbqueue._verbs.reading import Entry, Reading

if TYPE_CHECKING:
    from lmdbqueue._model.stats import Stats

_CENTURY = 100 * 365 * 86400.0  # seconds

T = TypeVar("T")

Key = str | bytes  # of ``unique``


class Verbs(Reading[T]):
    """A persistent FIFO queue: items leave in the order in which they were pushed.

    Safe to use from many threads and processes at once. Every verb is one atomic step, durable when
    it returns.
    """

    dumps: Callable[[T], bytes]
    maxsize: int

    # --- the engine

    @abstractmethod
    def _append(self, payloads: Sequence[bytes]) -> range:
        """Append all payloads or none (``Full``); return their sequence numbers."""

    @abstractmethod
    def _since(self, place: bytes) -> list[Entry]:
        """Return some entries behind that whose key is ``place``, b"" for all; none only if there are none."""

    @abstractmethod
    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        """Append payloads that wait for ``delay`` s, and whose keys (b"" for none) no other item may have.

        Return their numbers, or those of the items that have the keys. All or none (``Full``).
        """

    @abstractmethod
    def _put_back(self, entries: list[Entry]) -> None:
        """Undo ``_remove``: the items have their old numbers again, whatever has left after them."""

    @abstractmethod
    def _clear(self, *, all: bool) -> int:  # noqa: A002  (as the verb has it)
        """Remove all items, with ``all`` those too that do not wait; return how many went."""

    @abstractmethod
    def _wake(self) -> None:
        """End the sleep of every waiter."""

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""

    @property
    @abstractmethod
    def _where(self) -> str:
        """What errors call the place of the queue."""

    @abstractmethod
    def stats(self) -> "Stats":
        """Return how much of everything there is in the queue, at a cost that does not depend on it."""

    @abstractmethod
    def flush(self, force: bool = False) -> int:
        """Give empty space back; return how many bytes."""

    # --- the verbs of python-persistent-queue

    @overload
    def push(self, items: T | list[T], *, delay: float = 0.0, unique: None = None) -> int | range: ...

    @overload
    def push(
        self, items: T | list[T], *, delay: float = 0.0, unique: Key | Sequence[Key | None]
    ) -> int | list[int]: ...

    def push(
        self, items: T | list[T], *, delay: float = 0.0, unique: Key | Sequence[Key | None] | None = None
    ) -> int | range | list[int]:
        """Append an item, or each item of a list, as one atomic step.

        A list (not a tuple, which is an item) is many items; ``[]`` does nothing. Returns the
        sequence number given to the item, or the ``range`` of them for a list. Raises ``Full`` at
        once when ``maxsize`` or ``max_bytes`` would be exceeded (nothing is stored; ``put`` waits
        instead), ``TypeError`` when ``dumps`` returns no bytes, ``ShutDown`` after ``shutdown()``.

        ``delay``: seconds until the items can be seen; until then they are no part of ``len``, and then they
        come before what waits, in the order in which they came due. It is kept on the wall clock, through
        restarts. ``unique``: a key, str or bytes, of the item; for a list, one for each item, None for
        those without. While an item with that key waits, is leased or delayed, the new one is not stored
        and the number of the old one is returned. Numbers of a list with keys come as a list.
        """
        self._refuse_if_closed()
        self._refuse_after_shutdown()
        if delay or unique is not None:
            return self._push_apart(items, delay, unique)
        if not isinstance(items, list):
            return self._append([self._encoded(items)]).start
        if not items:
            return range(0)
        return self._append(self._encode(items))

    def _push_apart(
        self, items: T | list[T], delay: float, unique: Key | Sequence[Key | None] | None
    ) -> int | range | list[int]:
        """Do as ``push``, for items with a delay or with keys."""
        checked_delay(delay)
        if not isinstance(items, list):
            return self._append_apart([self._encoded(items)], delay, [digest(unique)])[0]  # type: ignore[arg-type]
        keys = [None] * len(items) if unique is None else unique
        if isinstance(keys, (str, bytes)) or len(keys) != len(items):
            message = f"a list of {len(items)} items needs a list of as many keys"
            raise ValueError(message)
        numbers = self._append_apart(self._encode(items), delay, list(map(digest, keys))) if items else []
        if unique is not None:
            return numbers
        return range(numbers[0], numbers[-1] + 1) if numbers else range(0)

    def clear(self, all: bool = False) -> None:  # noqa: A002  (the name that says it)
        """Remove all items that wait; with ``all`` also those that are leased, delayed or dead.

        Their sequence numbers are not given again. Who holds a lease finds it expired.
        """
        self._clear(all=all)

    def __iter__(self) -> Iterator[T]:
        """Browse from the head to the tail and remove nothing.

        Items that others remove or push meanwhile may be seen or not; each is seen once, in order.
        No transaction is held between two items.
        """
        place = b""
        while entries := self._since(place):
            for entry in entries:
                place = entry[0]
                yield self._decode([entry])[0]

    def _refuse_after_shutdown(self) -> None:
        if self._is_shut_down:
            raise ShutDown

    def _encode(self, items: list[T]) -> list[bytes]:
        payloads = [self.dumps(item) for item in items]  # by no map, which takes a StopIteration of dumps for its end
        if set(map(type, payloads)) == _BYTES and max(map(len, payloads)) <= MAX_PAYLOAD:
            return payloads
        return list(map(_as_payload, payloads))

    def _encoded(self, item: T) -> bytes:
        payload = self.dumps(item)
        return payload if type(payload) is bytes and len(payload) <= MAX_PAYLOAD else _as_payload(payload)


def checked_delay(delay: float) -> None:
    """Raise ``ValueError`` for what is no number of seconds to wait."""
    if not 0 <= delay < _CENTURY:
        message = f"a delay is a non-negative number of seconds, less than a century, and not {delay!r}"
        raise ValueError(message)


def digest(key: Key | None) -> bytes:
    """Return the 16 bytes that stand for a key of ``unique``, b"" for none."""
    if key is None:
        return b""
    if not isinstance(key, (str, bytes)):
        message = f"a unique key is a str or bytes, not {type(key).__name__}"
        raise TypeError(message)
    import hashlib  # noqa: PLC0415  (for who uses keys, not for who imports)

    data = b"s" + key.encode() if isinstance(key, str) else b"b" + key
    return hashlib.blake2b(data, digest_size=16).digest()


_BYTES = {bytes}


def _as_payload(payload: object) -> bytes:
    try:
        data = bytes(memoryview(payload))  # type: ignore[arg-type]
    except TypeError:
        message = f"dumps must return bytes or the like, not {type(payload).__name__}"
        raise TypeError(message) from None
    if len(data) > MAX_PAYLOAD:
        message = f"an item of {len(data):,} bytes; at most {MAX_PAYLOAD:,} can be stored"
        raise ValueError(message)
    return data
