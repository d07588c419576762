"""Files of python-persistent-queue 1.0.0 to 1.3.0.

Owns: that format. Law: the records that its header counts are items; those behind them are set aside, never imported as
items. Must not know: queues, what happens to the records that it yields.

All eight releases write the same bytes:

- a header of two unsigned 32-bit numbers, in the byte order of the machine: the number of items, and the offset of the
  first
- from that offset on, one record for each: its length, 32 bits as above, and its payload, ``dumps(item)``.
  1.0 always pickles; from 1.1 on users may give another ``dumps``

Every write is flushed before the next begins, so on an honest disk a crash leaves one of these:

- during ``push``: records, the last of them perhaps torn, that the header does not count. The push never returned.
  Later pushes append behind them, and then the library itself returns wrong items
- during ``pop`` or ``delete``: the offset has moved on, and the header counts too many
- during ``flush`` of 1.3.0, which removes the file before it gives the new one its name: a file ``<name>-<32 hex
  digits>`` alone
- during ``clear``: an empty file

Also, ``pop()`` of an item that is None leaves the header counting one too many, and of a list of n things n - 1 too
few: then items that were never taken are behind those that it counts.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from lmdbqueue.legacy._source import Aside, Expected, Found, Payload, Source

_HEADER: Final = 8  # bytes
_LENGTH: Final = 4  # bytes
_FLUSHED: Final = re.compile(r"-[0-9a-f]{32}")
_UNCOUNTED: Final = (
    "its header does not count it: it comes from a push that never returned, or from before a pop() of a list, "
    "which 1.3.0 miscounts"
)


class _Layout(NamedTuple):
    order: str  # of bytes, in the notation of struct
    items: int
    start: int


class OldFile(Source):
    """A file of python-persistent-queue."""

    format = "python-persistent-queue"

    def __init__(self, path: str, layout: _Layout) -> None:
        super().__init__(path)
        self._layout = layout

    def files(self) -> Sequence[str]:
        """Return the one file."""
        return [self.path]

    def read(self) -> Iterator[Found]:
        """Yield the items that the header counts, then the records behind them."""
        order, count, start = self._layout
        yield Expected(count)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            place = start
            for number in range(count):
                if place == size:
                    self.notes.append(
                        f"its header counts {count:,} items and {number:,} are there: a pop was interrupted, or was "
                        f"of None, or the file was cut"
                    )
                    return
                data = _record(file, size - place, order)
                if data is None:
                    yield _rest(file, place, f"item {number} is torn, and {count - number:,} more should follow")
                    return
                yield Payload(data, f"item {number} at byte {place}")
                place += _LENGTH + len(data)
            while place < size:
                data = _record(file, size - place, order)
                if not data:
                    yield _rest(file, place, "a torn record of a push that never returned", damaged=False)
                    return
                yield Aside(data, f"a record at byte {place}", _UNCOUNTED, damaged=False)
                place += _LENGTH + len(data)


def _record(file: BinaryIO, left: int, order: str) -> bytes | None:
    """Return the payload at the file's position; None if the ``left`` bytes do not contain all of it."""
    if left < _LENGTH:
        return None
    (length,) = struct.unpack(order + "I", file.read(_LENGTH))
    return file.read(length) if length <= left - _LENGTH else None


def _rest(file: BinaryIO, place: int, why: str, *, damaged: bool = True) -> Aside:
    file.seek(place)
    return Aside(file.read(), f"all from byte {place} on", why, damaged)


def _layout(head: bytes, size: int) -> _Layout | None:
    for order in "<>":
        count, start = struct.unpack_from(order + "II", head)
        if _HEADER <= start <= size and count <= size // _LENGTH:
            return _Layout(order, count, start)
    return None


def recognize(path: str) -> OldFile | None:
    """Return the file as a source if its header is that of python-persistent-queue."""
    with open(path, "rb") as file:
        head = file.read(_HEADER)
        size = os.fstat(file.fileno()).st_size
    layout = _layout(head, size) if len(head) == _HEADER else None
    return None if layout is None else OldFile(path, layout)


def left_by_a_flush(path: str) -> str | None:
    """Return the file that an interrupted ``flush`` of 1.3.0 left instead of ``path``, if there is one."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return None
    found = [each for each in os.listdir(folder) if each.startswith(name) and _FLUSHED.fullmatch(each[len(name) :])]
    return os.path.join(folder, min(found)) if found else None
