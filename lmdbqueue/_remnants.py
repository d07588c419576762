"""What transactions that did not come to count have left on free pages, and how it is removed.

Owns: LMDB's list of free pages as bytes (LMDB 0.9, 64-bit). Law: only pages that the newest snapshot
does not use are written. Must not know: the library ``lmdb``, what the pages in use hold.

A power cut may keep pages of a transaction k and not its meta page; then k did not happen. What follows
is again a transaction k, and begins with the same free pages. If the power is cut amid that one, before
its pages are on the disk and after its meta page is, those of the first k may stand in their places and
fit: the same item number, with another item. No proof can tell, and what was undone would be there after
all, or stand where something else belongs. So whoever opens a queue after a power cut writes zeros over
all that is free, and every page that stands in the wrong place afterwards is one that does not fit.

A page begins with a header: its number (8 bytes), 2 bytes, flags (2), and the offsets at which the list
of nodes ends and the nodes begin (2 each). A branch node has the page of a child in its first 6 bytes.
A leaf node has the size of the data (4), flags (2), the size of the key (2), the key, and the data, or
the number of the page where the data begins. The data are a count and that many page numbers.
"""

import os
from collections.abc import Iterator
from itertools import count, groupby
from struct import Struct, unpack_from
from typing import Final

from lmdbqueue._disk import sync_file
from lmdbqueue._metapage import MetaPage

_HEADER: Final = Struct("=10xHHH")
_NODE: Final = Struct("=IHH")
_NUMBER: Final = Struct("=Q")
_NONE: Final = 0xFFFF_FFFF_FFFF_FFFF  # the root of an empty tree
_BRANCH: Final = 1
_ELSEWHERE: Final = 1  # flag of a node: its data are on pages of their own
_ZEROS: Final = bytes(1 << 20)


def wipe(path: str, newest: MetaPage) -> None:
    """Write zeros, durably, over all of the file at ``path`` that ``newest``, a proven snapshot, does not use."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)  # the pages of the snapshot before are among them: from here on it is of no use
        end = os.fstat(fd).st_size
        page = newest.page_size
        places = count()
        for _, run in groupby(sorted(_free_pages(fd, newest)), lambda number: number - next(places)):
            numbers = list(run)
            _wipe(fd, numbers[0] * page, min((numbers[-1] + 1) * page, end))
        _wipe(fd, newest.size, end)
        sync_file(fd)
    finally:
        os.close(fd)


def _wipe(fd: int, start: int, end: int) -> None:
    for at in range(start, end, len(_ZEROS)):
        zeros = _ZEROS[: end - at]
        if os.pread(fd, len(zeros), at) != zeros:  # else it may be a hole, and writing would need room
            os.pwrite(fd, zeros, at)


def _free_pages(fd: int, newest: MetaPage) -> Iterator[int]:
    pages = [newest.free_root] if newest.free_root != _NONE else []
    while pages:
        page = os.pread(fd, newest.page_size, pages.pop() * newest.page_size)
        flags, lower, _ = _HEADER.unpack_from(page)
        for node in unpack_from(f"={(lower - _HEADER.size) // 2}H", page, _HEADER.size):
            size, kind, key = _NODE.unpack_from(page, node)
            if flags & _BRANCH:
                pages.append(size | kind << 32)
                continue
            data = page[node + _NODE.size + key :]
            if kind & _ELSEWHERE:
                (number,) = _NUMBER.unpack_from(data)
                data = os.pread(fd, size, number * newest.page_size + _HEADER.size)
            yield from unpack_from(f"={_NUMBER.unpack_from(data)[0]}Q", data, _NUMBER.size)
