"""What transactions that did not come to count have left on free pages, and how it is removed.

Owns: what is free. Law: only pages that the newest snapshot does not use are written. Must not know: the
library ``lmdb``, what the pages in use hold.

A power cut may keep pages of a transaction k and not its meta page; then k did not happen. What follows
is again a transaction k, and begins with the same free pages. If the power is cut amid that one, before
its pages are on the disk and after its meta page is, those of the first k may stand in their places and
fit: the same item number, with another item. No proof can tell, and what was undone would be there after
all, or stand where something else belongs. So whoever opens a queue after a power cut writes zeros over
all that is free, and every page that stands in the wrong place afterwards is one that does not fit.

LMDB's list of free pages is a tree: each record is a count and that many page numbers.
"""

import os
import sys
from collections.abc import Iterator
from itertools import count, groupby
from struct import unpack_from
from typing import Final

from lmdbqueue._host.disk import sync_file
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.raw_pages import Pages

_ZEROS: Final = bytes(1 << 16)


def wipe(path: str, newest: MetaPage) -> None:
    """Write zeros, durably, over all of the file at ``path`` that ``newest``, a proven snapshot, does not use."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)  # the pages of the snapshot before are among them: from here on it is of no use
        end = os.fstat(fd).st_size
        page = newest.page_size
        places = count()
        for _, run in groupby(sorted(free_pages(fd, newest)), lambda number: number - next(places)):
            numbers = list(run)
            _wipe(fd, numbers[0] * page, min((numbers[-1] + 1) * page, end))
        _wipe(fd, newest.size, end)
        sync_file(fd)
    finally:
        os.close(fd)


def free_pages(fd: int, newest: MetaPage) -> Iterator[int]:
    """Yield the numbers of the pages that are in LMDB's list, in no order."""
    for _, numbers in Pages(fd, newest.page_size).nodes(newest.free.root):
        yield from unpack_from(f"={len(numbers) // 8 - 1}Q", numbers, 8)


def used(path: str, transaction: int) -> int | None:
    """Return how many bytes the pages in use take that a transaction sees, None if that is not known any more.

    A reading transaction has the number of its snapshot, a writing one the next number.
    """
    slots = {each.transaction: each for each in meta_page.read(path)}
    snapshot = slots.get(transaction, slots.get(transaction - 1))
    if snapshot is None:
        return None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        free = sum(
            int.from_bytes(numbers[:8], sys.byteorder)
            for _, numbers in Pages(fd, snapshot.page_size).nodes(snapshot.free.root)
        )
    finally:
        os.close(fd)
    of_the_list = snapshot.free.branches + snapshot.free.leaves + snapshot.free.overflow
    return snapshot.size - (free + of_the_list) * snapshot.page_size


def _wipe(fd: int, start: int, end: int) -> None:
    for at in range(start, end, len(_ZEROS)):
        zeros = _ZEROS[: end - at]
        if os.pread(fd, len(zeros), at) != zeros:  # else it may be a hole, and writing would need room
            os.pwrite(fd, zeros, at)
