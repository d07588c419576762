"""The forms in which items leave Python.

Owns: the forms that targets send. Law: a payload that is not a pickle is never unpickled. Must not know: where items
are sent.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from lmdbqueue._base.errors import told
from lmdbqueue._verbs.batch import Envelope
from lmdbqueue._verbs.worker import takes_second

Encode = Callable[[Any], bytes | str] | Callable[[Any, Any], bytes | str]  # of items; of items and their envelopes

_PICKLE: Final = b"\x80"


class CannotEncodeError(Exception):
    """An item cannot be encoded for its target."""


def encoded(encode: Callable[[], object]) -> bytes:
    """Return the result of ``encode`` as bytes; raise ``CannotEncodeError`` if it fails twice.

    An error that occurs only once is not the item's fault: lack of memory, say, or an exception of a signal handler.
    """
    try:
        return _bytes_of(encode())
    except Exception as error:
        try:
            _bytes_of(encode())
        except Exception:
            message = f"it cannot be encoded: {told(error)}"
            raise CannotEncodeError(message) from error
        raise


def _bytes_of(body: object) -> bytes:
    """Return what ``encode`` has made as bytes; anything else than bytes or a text would be sent as something else."""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    message = f"encode returned {type(body).__name__}, neither bytes nor str"
    raise TypeError(message)


def load(payload: bytes) -> Any:
    """Return the item of a payload: of a pickle, which begins with byte 0x80, or of a JSON text.

    Args:
        payload: The bytes of the item.
    """
    if payload.startswith(_PICKLE):
        return pickle.loads(payload)  # noqa: S301  (writers of a queue can run code in its readers)
    return json.loads(payload)


def as_json(item: Any) -> bytes:
    """Return an item, or a list of items, as JSON.

    Args:
        item: Anything that JSON can express.
    """
    return json.dumps(item, separators=(",", ":")).encode()


def as_json_lines(items: Sequence[Any]) -> bytes:
    """Return items as JSON lines: a text and a line feed for each.

    Args:
        items: The items.
    """
    return b"".join(as_json(item) + b"\n" for item in items)


def as_json_with_headers(item: Any, envelope: Envelope | Sequence[Envelope]) -> bytes:
    """Return an item as a JSON object with ``seq``, ``pushed_at``, ``headers`` and ``item``; a list of items as a list.

    Args:
        item: Anything that JSON can express, or a list of items.
        envelope: The facts of the item, or those of each.
    """
    if isinstance(envelope, Envelope):
        return as_json(_described(item, envelope))
    return as_json([_described(*each) for each in zip(item, envelope, strict=True)])


def _described(item: Any, envelope: Envelope) -> dict[str, Any]:
    facts = {"seq": envelope.seq, "pushed_at": envelope.pushed_at, "headers": dict(envelope.headers)}
    return {**facts, "item": item}


def as_bytes(item: bytes) -> bytes:
    """Return an item that is bytes, unchanged.

    Args:
        item: The bytes.
    """
    return item


def encoder_of(encode: Encode) -> Callable[[Any, Any], bytes | str]:
    """Return ``encode`` as a function of items and envelopes; raise ``TypeError`` if it can be called neither way."""
    if takes_second(encode, "its envelope"):
        return cast("Callable[[Any, Any], bytes | str]", encode)
    return partial(_without_envelope, cast("Callable[[Any], bytes | str]", encode))


def _without_envelope(encode: Callable[[Any], bytes | str], item: Any, _envelope: object) -> bytes | str:
    return encode(item)
