"""The options of a queue as stored in its environment, in case ``queue.json`` is lost.

Owns: their place, and reading them from a file that LMDB has not opened and that was not verified. Law: the returned
bytes have a correct checksum. Must not know: what the options are.
"""

from __future__ import annotations

import os
from contextlib import suppress

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._host import directory
from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.raw_pages import Pages


def options_of(path: str) -> _format.Options:
    """Return the options of the queue directory at ``path``; raise ``FormatError`` if there is none."""
    return directory.find_options(path, remembered)


def remembered(path: str) -> bytes:
    """Return the content of ``queue.json`` stored in the environment at ``path``, b"" if it is not intact.

    The previous snapshot has it, too, since it never changes.
    """
    with suppress(CorruptQueueError, FileNotFoundError):
        for slot in sorted(meta_page.whole(path), key=lambda slot: -slot.transaction):
            if found := _found(path, slot):
                return found
    return b""


def _found(path: str, slot: meta_page.MetaPage) -> bytes:
    fd = open_at(path, os.O_RDONLY)
    try:
        for key, value in Pages(fd, slot.page_size).nodes(slot.main.root):
            if key == _format.OPTIONS and _format.is_intact(key, value):
                return value[: -_format.SEAL_SIZE]
    finally:
        close(fd)
    return b""
