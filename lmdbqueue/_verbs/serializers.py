"""Serializers by name.

Owns: the pair of functions behind each name. Law: the functions live in modules, so that a queue that uses them can be
pickled; the packages of a name are imported when it is used. Must not know: queues.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Literal

from lmdbqueue._base.errors import OptionError
from lmdbqueue._verbs.options import check, one_of

Serializer = Literal["pickle", "json", "msgpack", "msgspec", "bytes"]
Pair = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
CUSTOM: Final = "custom"


def chosen(
    serializer: Serializer | None, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]
) -> tuple[str, Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return the name and the functions that a queue is opened with; raise ``ValueError`` for an invalid choice."""
    is_default = dumps is pickle.dumps and loads is pickle.loads
    if serializer is None:
        return "pickle" if is_default else CUSTOM, dumps, loads
    if not is_default:
        message = "give a serializer's name, or dumps and loads, not both"
        raise ValueError(message)
    check(_RULES, serializer=serializer)
    return serializer, *_PAIRS[serializer]()


def refuse_other_serializer(path: str, name: str, stored: str, given: str) -> None:
    """Raise ``OptionError`` if the serializer differs from the queue's; a pair of the user's passes as any of them."""
    if stored != given and not {stored, given} & {"", CUSTOM}:
        raise OptionError(path, "serializer", stored, given, name)


def pair_of(name: str) -> Pair | None:
    """Return the functions of a serializer, None if there is none of that name."""
    return _PAIRS[name]() if name in _PAIRS else None


def to_json(item: Any) -> bytes:
    """Return an item as JSON."""
    import json  # noqa: PLC0415  (not every program needs it)

    text = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")  # a lone surrogate becomes a JSON escape


def from_json(payload: bytes) -> Any:
    """Return the item that a JSON text contains."""
    import json  # noqa: PLC0415

    return json.loads(payload)


def _pickle() -> Pair:
    return pickle.dumps, pickle.loads


def _json() -> Pair:
    return to_json, from_json


def _msgpack() -> Pair:
    msgpack = _module("msgpack", "msgpack")
    return msgpack.packb, msgpack.unpackb


def _msgspec() -> Pair:
    msgpack = _module("msgspec", "msgspec.msgpack")
    return msgpack.encode, msgpack.decode


def _module(name: str, module: str) -> Any:
    """Import what a serializer needs; raise ``ImportError`` with advice."""
    try:
        return import_module(module)
    except ImportError as error:
        message = f"serializer={name!r} needs a package: pip install {name} ({error})"
        raise ImportError(message) from error


def _to_bytes(item: Any) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    message = f"with serializer='bytes' an item must be bytes, not {item!r:.80}"  # bytes(5) would be five zeros
    raise TypeError(message)


def _bytes() -> Pair:
    return _to_bytes, bytes


_PAIRS: Final = {"pickle": _pickle, "json": _json, "msgpack": _msgpack, "msgspec": _msgspec, "bytes": _bytes}
_RULES: Final = {"serializer": one_of(*_PAIRS)}
