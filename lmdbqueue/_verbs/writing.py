"""The verbs that put items into a queue, find them, and remove single ones.

Owns: arguments and results of ``push`` and its kin, browsing. Law: arguments are checked and items encoded before a
transaction begins. Must not know: how items are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from lmdbqueue._base.errors import CorruptItemError, DecodeError
from lmdbqueue._base.format import MAX_PAYLOAD
from lmdbqueue._base.values import Entry, Number, Push, Pushed
from lmdbqueue._verbs.encoding import PLAIN, Key, as_payload, digest, how_to_push, payload_of, payloads_of
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.options import VERBS, check
from lmdbqueue._verbs.reading import Reading

if TYPE_CHECKING:
    from lmdbqueue._verbs.engine import Engine


T = TypeVar("T")

OnError = Literal["raise", "skip"] | Callable[[DecodeError | CorruptItemError], object]


class Writing(Reading[T]):
    """Items in their order, and the verbs that add to them."""

    _engine: Engine
    dumps: Callable[[T], bytes]

    # --- the verbs of python-persistent-queue

    @overload
    def push(  # type: ignore[overload-overlap]  # a list is many items, unless an item is a list
        self,
        items: list[T],
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> range: ...

    @overload
    def push(  # type: ignore[overload-overlap]
        self,
        items: list[T],
        *,
        delay: float = 0.0,
        unique: Sequence[Key | None],
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> list[Number]: ...

    @overload
    def push(
        self,
        items: T,
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> int: ...

    @overload
    def push(
        self,
        items: T,
        *,
        delay: float = 0.0,
        unique: Key,
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Number: ...

    def push(
        self,
        items: T | list[T],
        *,
        delay: float = 0.0,
        unique: Key | Sequence[Key | None] | None = None,
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Any:
        """Append an item, or each item of a list, as one atomic step, durable when this returns.

        A list is many items, and ``[]`` does nothing. A tuple is one item; ``put`` takes a list as one item, too.

        Example:
            >>> queue.push("mail to Ann", delay=60, unique="ann")

        Args:
            items: The item, or a list of items.
            delay: Seconds until the items can be taken, on the wall clock, across restarts. Then they stand where they
                would stand without a delay. ``len`` does not count delayed items.
            unique: A key (str or bytes) of the item; for a list, a key for each item, or None. As long as an item with
                that key is waiting, leased or delayed, the new one is not stored.
            replace: The new item replaces a waiting or delayed one with its key, and the delay starts again (debounce).
                A leased one stays with its consumer, and the new one waits behind it; if the lease ends without an
                ``ack``, the old one leaves, and is no dead letter.
            expires: Seconds after which the items are no longer delivered.
            headers: Strings by name, stored with each item, such as ``traceparent``; leases and dead letters return
                them.
            priority: -128 to 127. Lower leaves sooner; items of equal priority leave in the order of their pushes. With
                a priority other than 0, sequence numbers are very large or negative.

        Returns:
            The sequence number of the item, or the ``range`` of numbers for a list. With ``unique`` each number has an
            attribute ``is_stored``: False if there is an item with that key already; then it is that item's number.

        Raises:
            Full: ``maxsize`` or ``max_bytes`` would be exceeded; nothing is stored. ``put`` waits instead.
            TypeError: ``dumps`` did not return bytes.
            OptionError: A priority was given, and the queue has named readers or ``retain``.
            ShutDown: ``shutdown()`` was called.
        """
        engine = self._engine
        if engine.is_shut_down or engine.is_closed:
            self._head.refuse_push()
        if (
            delay != 0
            or unique is not None
            or headers is not None
            or priority != 0
            or expires is not None
            or replace is not False
        ):
            how = partial(how_to_push, delay=delay, replace=replace, expires=expires, headers=headers)
            return push_apart(engine, self.dumps, items, unique, partial(how, priority=priority))
        if not isinstance(items, list):
            payload = self.dumps(items)  # like payload_of, with one frame less on the path of every push
            if type(payload) is not bytes or len(payload) > MAX_PAYLOAD:
                payload = as_payload(payload)
            return engine.append([payload]).start
        if not items:
            return range(0)
        return engine.append(payloads_of(self.dumps, items))

    @overload
    def push_many(
        self,
        items: Iterable[T],
        *,
        delay: float = 0.0,
        unique: None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> range: ...

    @overload
    def push_many(
        self,
        items: Iterable[T],
        *,
        delay: float = 0.0,
        unique: Sequence[Key | None],
        replace: bool = False,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> list[Number]: ...

    def push_many(self, items: Iterable[T], **options: Any) -> Any:
        """Append each item of an iterable, all or none, as one atomic step, durable when this returns.

        Args:
            items: Any iterable; it is read to its end before the first item is stored.
            **options: As for ``push``; ``unique`` is a sequence with a key, or None, for each item.

        Returns:
            The ``range`` of their sequence numbers, empty for no items; with ``unique`` a list of numbers.

        Raises:
            Full, TypeError, OptionError, ShutDown: As ``push``.
        """
        return self.push(list(items), **options)

    def find(self, key: Key) -> int | None:
        """Return the sequence number of the item with this key, or None.

        Args:
            key: The key that was given as ``unique``. The item may be waiting, leased or delayed.
        """
        check(VERBS, key=key)
        return self._engine.find(digest(key))

    def cancel(self, key: Key) -> bool:
        """Remove the item with this key, if it is waiting or delayed; durable when this returns.

        Args:
            key: The key that was given as ``unique``.

        Returns:
            Whether it was removed. A leased item stays with its consumer.
        """
        check(VERBS, key=key)
        return self._engine.cancel(digest(key))

    def delete_item(self, seq: int) -> bool:
        """Remove a waiting item by its number, without decoding it; durable when this returns.

        For an item that cannot be decoded: ``DecodeError`` and ``CorruptItemError`` carry its ``seq``.

        Args:
            seq: The sequence number of the item.

        Returns:
            Whether it was removed. Leased, delayed and dead items are left alone.
        """
        check(VERBS, seq=seq)
        return self._engine.delete_item(index(seq))

    def dead_letter(self, seq: int, reason: str = "it was set aside") -> bool:
        """Make a waiting item a dead letter; durable when this returns.

        ``dead.requeue`` returns it to its place.

        Args:
            seq: The sequence number of the item, as ``DecodeError`` and ``CorruptItemError`` carry it.
            reason: The reason that the dead letter gives.

        Returns:
            Whether it was moved. Leased, delayed and dead items are left alone.
        """
        check(VERBS, seq=seq, reason=reason)
        return self._engine.dead_letter(index(seq), reason)

    def clear(self, all: bool = False) -> None:  # noqa: A002  (the name that says it)
        """Remove all waiting items; durable when this returns. Sequence numbers are never given again.

        On a full disk it may take several steps, as ``delete`` may.

        Args:
            all: Remove leased, delayed and dead items, too. Leases are then expired.
        """
        check(VERBS, all=all)
        if all:
            self._engine.clear_all()
        else:
            self._engine.clear()

    def __iter__(self) -> Iterator[T]:
        """Iterate from the head to the tail and remove nothing, like ``browse()``."""
        return self.browse()

    def browse(self, *, on_error: OnError = "raise") -> Iterator[T]:
        """Yield the items from the head to the tail and remove nothing.

        Each item is seen once, in order; items that others push or remove meanwhile may or may not be seen. No
        transaction stays open between two items.

        Args:
            on_error: What to do with an item that is damaged or cannot be decoded: ``"raise"``; ``"skip"`` it; or call
                a function with the error, which ends the iteration if it raises.

        Raises:
            DecodeError, CorruptItemError: With ``on_error="raise"``.
        """
        return browsed(self._head, checked_on_error(on_error))


def push_apart(
    engine: Engine,
    dumps: Callable[[T], bytes],
    items: T | list[T],
    unique: Key | Sequence[Key | None] | None,
    how: Callable[..., Push],
) -> int | range | list[Number] | Number:
    """Push items with options; ``how`` is ``how_to_push`` that lacks only the number of items and their keys."""
    payloads, push = encoded_apart(dumps, items, unique, how)
    return told_of(appended(engine, payloads, push) if payloads else [], items, unique)


def encoded_apart(
    dumps: Callable[[T], bytes],
    items: T | list[T],
    unique: Key | Sequence[Key | None] | None,
    how: Callable[..., Push],
) -> tuple[list[bytes], Push]:
    """Return the payloads of items, and what an engine is told of them."""
    if isinstance(items, list):
        push = how(len(items), unique=unique)
        return payloads_of(dumps, items), push
    push = how(1, unique=None if unique is None else [unique])
    return [payload_of(dumps, items)], push


def told_of(
    given: range | list[Pushed], items: T | list[T], unique: Key | Sequence[Key | None] | None
) -> int | range | list[Number] | Number:
    """Return the outcome of a push as its caller wants it."""
    if isinstance(given, range):
        return given if isinstance(items, list) else given.start
    if not isinstance(items, list):
        (pushed,) = given
        return pushed.seq if unique is None else Number.of(pushed)
    if unique is not None:
        return list(map(Number.of, given))
    return range(given[0].seq, given[-1].seq + 1) if given else range(0)


def appended(engine: Engine, payloads: list[bytes], how: Push) -> range | list[Pushed]:
    """Append payloads, with options if there are any."""
    return engine.append(payloads) if how == PLAIN else engine.append_apart(payloads, how)


def of_priority(priority: int) -> Push:
    """Return what an engine is told of an item with a priority."""
    if priority == 0:
        return PLAIN
    return how_to_push(1, delay=0.0, unique=None, replace=False, expires=None, headers=None, priority=priority)


def checked_on_error(on_error: OnError) -> Callable[[DecodeError | CorruptItemError], object]:
    """Return ``on_error`` as a function; raise ``ValueError`` if it is not one of the choices."""
    check(VERBS, on_error=on_error)
    if callable(on_error):
        return on_error
    return _raise if on_error == "raise" else _pass_over


def _raise(error: Exception) -> None:
    raise error


def _pass_over(_: object) -> None:
    pass


def browsed(head: Head[T], on_error: Callable[[DecodeError | CorruptItemError], object]) -> Iterator[T]:
    """Yield the waiting items; pass the errors of those that cannot be decoded to ``on_error``."""
    key = b""
    while entries := head.engine.since(key):
        for entry in entries:
            key = entry[0]
            found = decoded(head, entry, on_error)
            yield from found


def decoded(head: Head[T], entry: Entry, on_error: Callable[[DecodeError | CorruptItemError], object]) -> list[T]:
    """Return the item of an entry; an empty list if it cannot be decoded and ``on_error`` does not raise."""
    try:
        return head.decode([entry])
    except (DecodeError, CorruptItemError) as error:
        on_error(error)
        return []
