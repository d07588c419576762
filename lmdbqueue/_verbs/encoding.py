"""Items and keys as bytes, before a transaction begins.

Owns: what ``dumps`` may return, what a key of ``unique`` may be. Law: no user code runs inside a transaction, or is
called by our own ``map`` or generator, which would take its StopIteration for the end of the iteration. Must not
know: who stores the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

from lmdbqueue._base.format import MAX_PAYLOAD
from lmdbqueue._base.values import Push
from lmdbqueue._verbs.options import VERBS, check

T = TypeVar("T")
Key = str | bytes  # of ``unique``

PLAIN: Final = Push()


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
    """Return what an engine is told of ``n`` items; raise for what cannot be, or not together."""
    check(VERBS, delay=delay, replace=replace, expires=expires, headers=headers, priority=priority)
    if expires is not None and expires <= delay:
        message = f"'expires' must be more than the delay of {delay!r} s, not {expires!r}"
        raise ValueError(message)
    if replace and unique is None:
        message = "'replace' keeps the newest item with a key: it needs unique="
        raise ValueError(message)
    keys: Sequence[bytes] = ()
    if unique is not None:
        is_list = isinstance(unique, Collection) and not isinstance(unique, (str, bytes))
        some: list[Any] = list(unique) if is_list else []
        if len(some) != n:
            message = f"'unique' must be a list of {n} keys for a list of {n} items, not {unique!r:.80}"
            raise ValueError(message) if is_list else TypeError(message)
        for key in some:
            check(VERBS, unique=key)
        keys = list(map(digest, some))
    return Push(delay, keys, bool(replace), expires, headers or None, priority)


def digest(key: Key | None) -> bytes:
    """Return the 16-byte digest of a key of ``unique``, b"" for none."""
    if key is None:
        return b""
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
