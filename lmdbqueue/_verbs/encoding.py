"""Items and keys as bytes, before a transaction begins.

Owns: what ``dumps`` may return, what a key of ``unique`` may be. Law: no user code runs inside a transaction, or is
called by our own ``map`` or generator, which would take its StopIteration for the end of the iteration. Must not
know: who stores the bytes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from lmdbqueue._format import MAX_PAYLOAD
from lmdbqueue._values import Push

T = TypeVar("T")
Key = str | bytes  # of ``unique``

_CENTURY: Final = 100 * 365 * 86400.0  # seconds
_MOST: Final = 1 << 63  # items, or bytes
_LOWEST: Final = 128  # the magnitude of the lowest priority
_LONGEST_HEADER: Final = 65_535  # bytes


def payload_of(dumps: Callable[[T], bytes], item: T) -> bytes:
    """Return an item as bytes."""
    payload = dumps(item)
    return payload if type(payload) is bytes and len(payload) <= MAX_PAYLOAD else as_payload(payload)


def payloads_of(dumps: Callable[[T], bytes], items: list[T]) -> list[bytes]:
    """Return items as bytes."""
    payloads = [dumps(item) for item in items]
    if set(map(type, payloads)) == _BYTES and max(map(len, payloads)) <= MAX_PAYLOAD:
        return payloads
    return list(map(as_payload, payloads))


def checked_delay(delay: float) -> None:
    """Raise ``ValueError`` unless this is a valid delay."""
    if not 0 <= delay < _CENTURY:
        message = f"a delay is a non-negative number of seconds, less than a century, not {delay!r}"
        raise ValueError(message)


def checked_ttl(ttl: float | None) -> None:
    """Raise ``ValueError`` unless this is a valid duration of a lease."""
    if ttl is not None and not 0 < ttl < _CENTURY:
        message = f"ttl is a positive number of seconds, less than a century, or None for no end, not {ttl!r}"
        raise ValueError(message)


def checked_limits(items: int | None, size: int | None, seconds: float | None) -> None:
    """Raise ``ValueError`` for invalid limits of ``retain``, ``TypeError`` for fractions of items or bytes."""
    for whole in (items, size):
        if whole is not None:
            operator.index(whole)
    for limit, most in ((items, _MOST), (size, _MOST), (seconds, _CENTURY)):
        if limit is not None and not 0 < limit < most:
            limits = (items, size, seconds)
            message = f"a limit of retain() is a positive number, or None for no limit, not one of {limits}"
            raise ValueError(message)


def how_to_push(
    n: int,
    *,
    delay: float,
    unique: Key | Sequence[Key | None] | None,
    replace: bool,
    expires: float | None,
    headers: Mapping[str, str] | None,
    priority: int,
) -> Push:
    """Return the options of a push of ``n`` items for an engine; raise for invalid or incompatible ones."""
    checked_delay(delay)
    if expires is not None and not delay < expires < _CENTURY:
        message = f"'expires' is a number of seconds, more than the delay and less than a century, not {expires!r}"
        raise ValueError(message)
    if not -_LOWEST <= operator.index(priority) < _LOWEST:
        message = f"a priority is {-_LOWEST} to {_LOWEST - 1}, lower leaves sooner, not {priority!r}"
        raise ValueError(message)
    if replace and unique is None:
        message = "'replace' keeps the newest item with a key: it needs unique="
        raise ValueError(message)
    for each in (each for pair in (headers or {}).items() for each in pair):
        if not isinstance(each, str) or len(each.encode()) > _LONGEST_HEADER:
            message = f"headers are str, of at most {_LONGEST_HEADER:,} bytes each, not {each!r:.80}"
            raise TypeError(message) if not isinstance(each, str) else ValueError(message)
    keys: Sequence[bytes] = ()
    if unique is not None:
        if isinstance(unique, (str, bytes)) or len(unique) != n:
            message = f"a list of {n} items needs a list of {n} keys"
            raise ValueError(message)
        keys = list(map(digest, unique))
    return Push(delay, keys, replace, expires, headers, priority)


def digest(key: Key | None) -> bytes:
    """Return the 16-byte digest of a key of ``unique``, b"" for none."""
    if key is None:
        return b""
    if not isinstance(key, (str, bytes)):
        message = f"a unique key is a str or bytes, not {type(key).__name__}"
        raise TypeError(message)
    import hashlib  # noqa: PLC0415  (not every program needs it)

    data = b"s" + key.encode() if isinstance(key, str) else b"b" + key
    return hashlib.blake2b(data, digest_size=16).digest()


_BYTES = {bytes}


def as_payload(payload: object) -> bytes:
    """Return the result of ``dumps`` as bytes, if it was a ``bytearray`` or the like."""
    try:
        data = bytes(memoryview(payload))  # type: ignore[arg-type]
    except TypeError:
        message = f"dumps must return bytes, not {type(payload).__name__}"
        raise TypeError(message) from None
    if len(data) > MAX_PAYLOAD:
        message = f"an item of {len(data):,} bytes; at most {MAX_PAYLOAD:,} can be stored"
        raise ValueError(message)
    return data
