"""The dict that ``persistqueue.Queue`` keeps in its file ``info``, whichever of its serializers wrote it.

Owns: as much of pickle, JSON, msgpack and CBOR as is needed to read a dict of numbers, and how records of each are
delimited. Law: anything that is not such a dict, byte for byte, is None. Must not know: chunks, items.

With pickle a record ends where its pickle ends, with JSON at the end of its line; msgpack and cbor2 records follow
their length, 32 bits, little-endian. Of these two, only the types in such a dict are read: maps, lists, texts and
non-negative numbers.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

from lmdbqueue.legacy._source import plain

LENGTH: Final = Struct("<L")
Records = Literal["pickles", "lines", "lengths"]
_Head = tuple[Literal["number", "text", "list", "map"], int, int]  # the type, its value or size, its end


class Info(NamedTuple):
    """Where a queue begins and ends, and how its records are delimited."""

    records: Records
    size: int
    tail: tuple[int, int, int]  # of the first item: its chunk, how many were before it there, its offset
    head: tuple[int, int, int]  # of the next item, the same


def read_info(data: bytes) -> Info | None:
    """Return the content of an info file, None if it is not one."""
    readers: list[tuple[Records, Callable[[bytes], object]]] = [
        ("pickles", plain),
        ("lines", json.loads),
        ("lengths", lambda data: _whole(data, _msgpack)),
        ("lengths", lambda data: _whole(data, _cbor)),
    ]
    for records, read in readers:
        found = None
        with suppress(Exception):  # garbage may cause any error
            found = read(data)
        places = checked_places(found, head=3)
        if places is not None:
            return Info(records, *places)
    return None


def checked_places(info: object, *, head: int) -> tuple[int, Any, Any] | None:
    """Return ``size``, ``tail`` and ``head`` of a dict; None unless tail has three numbers and head ``head``."""
    if not isinstance(info, dict):
        return None
    size, first, next_ = (info.get(name) for name in ("size", "tail", "head"))
    if not isinstance(first, (list, tuple)) or not isinstance(next_, (list, tuple)):
        return None
    are_numbers = all(type(each) is int and each >= 0 for each in (size, *first, *next_))
    if not are_numbers or (len(first), len(next_)) != (3, head):
        return None
    assert isinstance(size, int)
    return size, tuple(first), tuple(next_)


def _whole(data: bytes, head: Callable[[bytes, int], _Head]) -> object:
    """Return the single value behind its length."""
    if LENGTH.unpack_from(data)[0] != len(data) - LENGTH.size:
        return None
    value, end = _value(data, LENGTH.size, head)
    return value if end == len(data) else None


def _value(data: bytes, at: int, head: Callable[[bytes, int], _Head]) -> tuple[Any, int]:
    """Return the value at an offset, and its end."""
    kind, size, at = head(data, at)
    if kind == "number":
        return size, at
    if kind == "text":
        return data[at : at + size].decode(), at + size
    values = []
    for _ in range(2 * size if kind == "map" else size):
        value, at = _value(data, at, head)
        values.append(value)
    return dict(zip(values[::2], values[1::2], strict=True)) if kind == "map" else values, at


def _msgpack(data: bytes, at: int) -> _Head:
    first = data[at]
    if first < 0x80:  # noqa: PLR2004  (the numbers of the specification)
        return "number", first, at + 1
    if first < 0x90:  # noqa: PLR2004
        return "map", first & 0x0F, at + 1
    if first < 0xA0:  # noqa: PLR2004
        return "list", first & 0x0F, at + 1
    if first < 0xC0:  # noqa: PLR2004
        return "text", first & 0x1F, at + 1
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}[first]
    return "number", int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size


def _cbor(data: bytes, at: int) -> _Head:
    kind, size = data[at] >> 5, data[at] & 0x1F
    at += 1
    if size >= 24:  # noqa: PLR2004  (then that many bytes are the size)
        width = {24: 1, 25: 2, 26: 4, 27: 8}[size]
        size = int.from_bytes(data[at : at + width], "big")
        at += width
    kinds: dict[int, Literal["number", "text", "list", "map"]] = {0: "number", 3: "text", 4: "list", 5: "map"}
    return kinds[kind], size, at
