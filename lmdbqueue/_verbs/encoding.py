"""Items and keys as bytes, before a transaction begins.

Owns: what ``dumps`` may return, what a key of ``unique`` may be. Law: nothing of a user's code runs inside a
transaction, or is called by a ``map`` or a generator of ours, which would take its StopIteration for their own end.
Must not know: who stores the bytes.
"""

from collections.abc import Callable
from typing import TypeVar

from lmdbqueue._format import MAX_PAYLOAD

T = TypeVar("T")
Key = str | bytes  # of ``unique``

_CENTURY = 100 * 365 * 86400.0  # seconds


def payload_of(dumps: Callable[[T], bytes], item: T) -> bytes:
    """Return an item as it is stored."""
    payload = dumps(item)
    return payload if type(payload) is bytes and len(payload) <= MAX_PAYLOAD else _as_payload(payload)


def payloads_of(dumps: Callable[[T], bytes], items: list[T]) -> list[bytes]:
    """Return items as they are stored."""
    payloads = [dumps(item) for item in items]
    if set(map(type, payloads)) == _BYTES and max(map(len, payloads)) <= MAX_PAYLOAD:
        return payloads
    return list(map(_as_payload, payloads))


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
