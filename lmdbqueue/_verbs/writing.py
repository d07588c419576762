"""The verbs that put items into a queue, look for them there, and take single ones out.

Owns: arguments and results of ``push`` and its kin, browsing. Law: arguments are checked and items encoded before a
transaction begins. Must not know: how items are kept.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar, overload

from lmdbqueue._errors import CorruptItemError, DecodeError
from lmdbqueue._format import MAX_PAYLOAD
from lmdbqueue._values import Entry, Number, Push
from lmdbqueue._verbs.encoding import Key, as_payload, digest, how_to_push, payload_of, payloads_of
from lmdbqueue._verbs.engine import Engine
from lmdbqueue._verbs.head import Head
from lmdbqueue._verbs.reading import Reading

T = TypeVar("T")

OnError = Literal["raise", "skip"] | Callable[[DecodeError | CorruptItemError], object]
_NUMBERS: Final = 1 << 62  # beyond all of items


class Writing(Reading[T]):
    """Items in their order, and what puts them there."""

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

        A list is many items, and ``[]`` does nothing; a tuple is one item, and ``put`` takes a list as one, too.

        Args:
            items: The item, or a list of items.
            delay: Seconds until the items can be seen. Until then ``len`` does not count them; then they stand where
                they would have stood without. Kept on the wall clock, through restarts.
            unique: A key (str or bytes) of the item; for a list, a key for each item, None for those without. While an
                item with that key waits, is leased or delayed, the new one is not stored.
            replace: The newest item with a key wins: the one that waits or is delayed is removed, and the delay
                begins anew (debounce). One that is leased stays with its consumer, and the new one waits behind it.
            expires: Seconds after which the items are not delivered any more.
            headers: Texts that go with each item, such as a ``traceparent``; leases and dead letters give them back.
            priority: -128 to 127; lower leaves sooner, and items of one priority in the order of their pushes.

        Returns:
            The sequence number of the item, or the ``range`` of them for a list. With ``unique`` numbers that have
            ``is_stored``: False where an item with that key is there, whose number this is.

        Raises:
            Full: ``maxsize`` or ``max_bytes`` would be exceeded; nothing is stored. ``put`` waits instead.
            TypeError: ``dumps`` returned no bytes.
            OptionError: A priority in a queue that has readers.
            ShutDown: ``shutdown()`` was called.
        """
        engine = self._engine
        if engine.is_shut_down or engine.is_closed:
            self._head.refuse_push()
        if delay or unique is not None or headers or priority or expires is not None or replace:
            how = partial(how_to_push, delay=delay, replace=replace, expires=expires, headers=headers)
            return push_apart(engine, self.dumps, items, unique, partial(how, priority=priority))
        if not isinstance(items, list):
            payload = self.dumps(items)  # as payload_of, in one frame less: every push passes it
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
            **options: As of ``push``; ``unique`` is a sequence of as many keys.

        Returns:
            The ``range`` of their sequence numbers, empty for no items; with ``unique`` a list of numbers.

        Raises:
            Full, TypeError, OptionError, ShutDown: As ``push``.
        """
        return self.push(list(items), **options)

    def find(self, key: Key) -> int | None:
        """Return the number of the item with this key of ``unique``, which waits, is leased or delayed; else None."""
        return self._engine.find(digest(key))

    def cancel(self, key: Key) -> bool:
        """Remove the item with this key of ``unique``, if it waits or is delayed; durable when this returns.

        Returns:
            Whether it did. One that is leased stays with its consumer.
        """
        return self._engine.cancel(digest(key))

    def delete_item(self, seq: int) -> bool:
        """Remove the item of this number wherever it waits, undecoded; durable when this returns.

        For an item that cannot be decoded: ``DecodeError`` and ``CorruptItemError`` have its ``seq``.

        Returns:
            Whether it waited. What is leased, delayed or dead is left alone.
        """
        return self._engine.delete_item(checked_number(seq))

    def dead_letter(self, seq: int, reason: str = "it was set aside") -> bool:
        """Move the item of this number from wherever it waits to the dead letters; durable when this returns.

        ``dead.requeue`` takes it back to its place.

        Args:
            seq: Its number, as ``DecodeError`` and ``CorruptItemError`` have it.
            reason: What the dead letter says of it.

        Returns:
            Whether it waited. What is leased, delayed or dead is left alone.
        """
        if not isinstance(reason, str):
            message = f"a reason is a str, not {type(reason).__name__}"
            raise TypeError(message)
        return self._engine.dead_letter(checked_number(seq), reason)

    def clear(self, all: bool = False) -> None:  # noqa: A002  (the name that says it)
        """Remove all items that wait; with ``all`` also those that are leased, delayed or dead.

        Their sequence numbers are not given again. Who holds a lease finds it expired.
        """
        if all:
            self._engine.clear_all()
        else:
            self._engine.clear()

    def __iter__(self) -> Iterator[T]:
        """Browse from the head to the tail and remove nothing, as ``browse()``."""
        return self.browse()

    def browse(self, *, on_error: OnError = "raise") -> Iterator[T]:
        """Yield the items from the head to the tail and remove nothing.

        Items that others remove or push meanwhile may be seen or not; each is seen once, in order. No transaction is
        held between two items.

        Args:
            on_error: What to do at an item that cannot be decoded or is damaged: ``"raise"``; ``"skip"`` to go on
                behind it; or a function that gets the error, and what it raises ends the browsing.

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
    """Push items that do not just wait; ``how``: ``how_to_push`` with all but the number of items and their keys."""
    if not isinstance(items, list):
        push = how(1, unique=None if unique is None else [unique])
        (pushed,) = engine.append_apart([payload_of(dumps, items)], push)
        return pushed.seq if unique is None else Number.of(pushed)
    push = how(len(items), unique=unique)
    given = engine.append_apart(payloads_of(dumps, items), push) if items else []
    if unique is not None:
        return list(map(Number.of, given))
    return range(given[0].seq, given[-1].seq + 1) if given else range(0)


def append_of(engine: Engine, priority: int) -> Callable[[Sequence[bytes]], object]:
    """Return what appends payloads with a priority."""
    if not priority:
        return engine.append
    how = how_to_push(1, delay=0.0, unique=None, replace=False, expires=None, headers=None, priority=priority)
    return lambda payloads: engine.append_apart(payloads, how)


def checked_on_error(on_error: OnError) -> Callable[[DecodeError | CorruptItemError], object]:
    """Return what is to be done with an item that cannot be decoded; raise ``ValueError`` if it is nothing."""
    if callable(on_error):
        return on_error
    if on_error not in ("raise", "skip"):
        message = f"'on_error' is 'raise', 'skip' or a function, not {on_error!r}"
        raise ValueError(message)
    return _raise if on_error == "raise" else _pass_over


def _raise(error: Exception) -> None:
    raise error


def _pass_over(_: object) -> None:
    pass


def browsed(head: Head[T], on_error: Callable[[DecodeError | CorruptItemError], object]) -> Iterator[T]:
    """Yield the items that wait, and hand on the errors of those that cannot be decoded."""
    key = b""
    while entries := head.engine.since(key):
        for entry in entries:
            key = entry[0]
            found = decoded(head, entry, on_error)
            yield from found


def decoded(head: Head[T], entry: Entry, on_error: Callable[[DecodeError | CorruptItemError], object]) -> list[T]:
    """Return the item of an entry, nothing if it cannot be decoded and ``on_error`` passes over that."""
    try:
        return head.decode([entry])
    except (DecodeError, CorruptItemError) as error:
        on_error(error)
        return []


def checked_number(seq: int) -> int:
    """Return the number of an item; raise ``TypeError`` or ``ValueError`` if no item can have it."""
    number = operator.index(seq)
    if not -_NUMBERS <= number < _NUMBERS:
        message = f"no item has the number {seq}"
        raise ValueError(message)
    return number
