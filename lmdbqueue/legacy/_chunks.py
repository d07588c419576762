"""Directories of chunk files ``q00000``, ``q00001``, ...: ``persistqueue.Queue`` and queuelib's ``FifoDiskQueue``.

Owns: those two formats. Law: an invalid record ends its chunk, and the rest of that chunk is set aside. Must not know:
queues, what happens to the records that it yields.

``persistqueue.Queue`` (persist-queue 0.1 to 1.1) keeps a dict in the file ``info``, written anew at each ``put``
(and at ``task_done``, or with ``autosave`` at each ``get``): ``chunksize``, ``size``, ``head`` (chunk, items in
it, bytes in it) and ``tail``, the same of the first item. The dict and the items are written by the same serializer,
which determines how records are delimited (``_info``). Bytes behind the head in its chunk come from a ``put`` that
never returned; the library cuts them off.

``FifoDiskQueue`` (queuelib 1.0 to 1.10) writes records of a 32-bit big-endian length and as many bytes, and
keeps the places in ``info.json``, which it writes in ``close()`` only. So if it was not closed, that file is old, torn
or missing, and all records from its tail on are items: they include those popped since, and no pushed item is left out.
"""

import io
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final

from lmdbqueue.legacy._info import LENGTH, Records, checked_places, read_info
from lmdbqueue.legacy._source import Aside, Expected, Found, Payload, Source, Value, pickle_length

_CHUNK: Final = re.compile(r"q([0-9]{5,})")
_QUEUELIB_LENGTH: Final = struct.Struct(">L")
_AMONG: Final = "items popped since it was opened may be among those imported"
_TORN: Final = "a torn or damaged item"
_UNFINISHED: Final = "it is behind the head: it comes from a put that never returned"


class _Chunks(Source):
    """A directory of chunk files with a file that says where the queue begins."""

    info_name: str

    def files(self) -> Sequence[str]:
        """Return the chunks, and the file that says where the queue begins."""
        info = [os.path.join(self.path, self.info_name)]
        return [*filter(os.path.exists, info), *(os.path.join(self.path, name) for _, name in chunks(self.path))]

    def info(self) -> bytes:
        """Return the content of the info file, nothing if there is none."""
        try:
            with open(os.path.join(self.path, self.info_name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def note_difference(self, said: int, found: int) -> None:
        """Note that the count of the info file differs from the number of records."""
        if said != found:
            self.notes.append(f"its file {self.info_name!r} counts {said:,} items, and {found:,} were found")


class PersistQueueFiles(_Chunks):
    """The directory of a ``persistqueue.Queue``."""

    format = "persist-queue files"
    info_name = "info"

    def read(self) -> Iterator[Found]:
        """Yield the items between tail and head."""
        info = read_info(self.info())
        if info is None:
            raise self.error(
                "its file 'info' was not written by one of persist-queue's own serializers, or is damaged",
                "read the items with persist-queue and the serializer that wrote them, and push them",
            )
        yield Expected(info.size)
        (first, _, offset), (last, _, end) = info.tail, info.head
        number = 0
        there = {index: name for index, name in chunks(self.path) if first <= index <= last}
        missing = next(index for index in count(first) if index not in there)
        if missing < last or (missing == last and end):
            self.notes.append(f"its chunk q{missing:05} is not there")
        for index, name in there.items():
            with open(os.path.join(self.path, name), "rb") as file:
                data = file.read()
            limit = end if index == last else len(data)
            for found in _records(data[:limit], offset if index == first else 0, name, info.records):
                number += isinstance(found, Payload)
                yield found
            if rest := data[limit:]:
                yield Aside(rest, f"{name} from byte {limit} on", _UNFINISHED, damaged=False)
        self.note_difference(info.size, number)


def _records(data: bytes, start: int, name: str, records: Records) -> Iterator[Found]:
    """Yield the items from ``start`` on."""
    file = io.BytesIO(data)
    while start < len(data):
        file.seek(start)
        payload, end = _PAYLOADS[records](data, file)
        if payload is None:
            yield Aside(data[start:], f"{name} from byte {start} on", _TORN)
            return
        yield Payload(payload, f"{name} at byte {start}")
        start = end


def _pickle(data: bytes, file: io.BytesIO) -> tuple[bytes | None, int]:
    """Return the payload at the file's position, None if it is incomplete, and the end of the record."""
    start = file.tell()
    end = start + pickle_length(file)
    return data[start:end] or None, end


def _line(_data: bytes, file: io.BytesIO) -> tuple[bytes | None, int]:
    line = file.readline()
    return line[:-1] if line.endswith(b"\n") else None, file.tell()


def _behind_its_length(_data: bytes, file: io.BytesIO) -> tuple[bytes | None, int]:
    head = file.read(LENGTH.size)
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 1
    payload = file.read(length)
    return payload if len(payload) == length else None, file.tell()


_PAYLOADS: Final = {"pickles": _pickle, "lines": _line, "lengths": _behind_its_length}


class QueuelibFiles(_Chunks):
    """The directory of a ``FifoDiskQueue`` of queuelib."""

    format = "queuelib files"
    info_name = "info.json"

    def read(self) -> Iterator[Found]:
        """Yield all items from the tail on."""
        info = self._places()
        size, (first, taken, offset), end = info or (0, (0, 0, 0), (0, 0))
        yield Expected(size)
        number = 0
        head = [0, 0]
        for index, name in chunks(self.path):
            if index >= first:
                head = [index, taken if index == first else 0]
                for found in self._records(name, offset if index == first else 0):
                    number += isinstance(found, Value)
                    head[1] += isinstance(found, Value)
                    yield found
        if info is None:
            self.notes.append(f"it was not closed, and its file 'info.json' does not say what was popped: {_AMONG}")
        elif (size, list(end)) != (number, head):
            self.note_difference(size, number)
            self.notes.append(f"it was not closed: {_AMONG}")

    def _records(self, name: str, place: int) -> Iterator[Found]:
        with open(os.path.join(self.path, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(place)
            while place < size:
                head = file.read(_QUEUELIB_LENGTH.size)
                length = _QUEUELIB_LENGTH.unpack(head)[0] if len(head) == _QUEUELIB_LENGTH.size else size
                if length > size - place - _QUEUELIB_LENGTH.size:
                    yield Aside(head + file.read(), f"{name} from byte {place} on", _TORN)
                    return
                yield Value(file.read(length), f"{name} at byte {place}")
                place += _QUEUELIB_LENGTH.size + length

    def _places(self) -> tuple[int, Any, Any] | None:
        try:
            return checked_places(json.loads(self.info()), head=2)
        except (ValueError, RecursionError):
            return None


def chunks(path: str) -> list[tuple[int, str]]:
    """Return the chunks of a directory in order, each with its number."""
    found = [(int(match[1]), name) for name in os.listdir(path) if (match := _CHUNK.fullmatch(name))]
    return sorted((index, name) for index, name in found if name == f"q{index:05}")


def recognize(path: str) -> Source | None:
    """Return the directory as a source if it contains chunk files."""
    if not chunks(path):
        return None
    return PersistQueueFiles(path) if os.path.exists(os.path.join(path, "info")) else QueuelibFiles(path)
