"""The free space of a file.

Owns: how LMDB's list of free pages is counted. Law: it only reads. Must not know: the library ``lmdb``, what the
pages in use hold.

The list is a tree: each record is a count and that many page numbers; it may have room for more.
"""

from __future__ import annotations

import os
import sys

from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.raw_pages import Pages


def used(path: str, transaction: int) -> int | None:
    """Return the bytes of the pages in use that a transaction sees, None if that is no longer known.

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
