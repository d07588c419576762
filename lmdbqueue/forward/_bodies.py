"""What becomes of an item outside of Python.

Owns: the forms that targets send. Law: a payload that is no pickle is never unpickled. Must not know: where it is sent.
"""

import json
import pickle
from collections.abc import Sequence
from typing import Any, Final

_PICKLE: Final = b"\x80"


def load(payload: bytes) -> Any:
    """Return the item of a payload: of a pickle, which begins with byte 0x80, or of a JSON text.

    Args:
        payload: The bytes of the item.
    """
    if payload.startswith(_PICKLE):
        return pickle.loads(payload)  # noqa: S301  (who can write to a queue can run code in who reads it)
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


def as_bytes(item: bytes) -> bytes:
    """Return an item that is bytes, unchanged.

    Args:
        item: The bytes.
    """
    return item
