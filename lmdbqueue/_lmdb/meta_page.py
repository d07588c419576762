"""LMDB's two meta pages as bytes, for readings and changes that must precede opening by LMDB.

Owns: the layout of a meta page of LMDB 0.9 (64-bit). Law: it reads, and only ``undo``, ``advance``, ``restore`` and
``write`` write, each a single slot within a sector. Must not know: the content of the other pages, ``lmdb``.

LMDB writes its meta pages in turn: transaction k goes to slot k modulo 2, and the higher number is the
snapshot that counts. A slot, from the beginning of its page, in the machine's byte order::

      0  16  page header
     16   8  magic 0xBEEFC0DE and version 1, 4 bytes each
     24  16  address and size of the map
     40  48  record of the tree of the free pages (``_lmdb.raw_pages.Tree``), whose first field is the page size
     88  48  record of the main tree
    136   8  last page in use
    144   8  number of the transaction
"""

from __future__ import annotations

import os
from contextlib import suppress
from struct import Struct
from typing import BinaryIO, Final

from lmdbqueue._base.errors import CorruptQueueError, ForkError
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._host import fork
from lmdbqueue._host.disk import sync_file
from lmdbqueue._lmdb.raw_pages import Tree

_SLOT: Final = Struct("=10x H 4x II 16x 48s 48s QQ")
_HEADER: Final = 16
SLOT_SIZE: Final = _SLOT.size
BODY_SIZE: Final = 136  # size of MDB_meta, behind the page header
_BODY: Final = 40  # where the records of the trees begin
_TRANSACTION: Final = Struct("=Q")
_MAGIC: Final = (0xBEEFC0DE, 1)
_IS_META: Final = 8  # flag of the page
LAST_PAGE: Final = Struct("=Q")
LAST_PAGE_AT: Final = 136  # its offset in the slot
_PAGE_SIZES: Final = tuple(1 << bits for bits in range(8, 17))


class MetaPage(NamedTuple):
    """One slot."""

    offset: int
    raw: bytes
    page_size: int
    free: Tree  # of the list of free pages
    main: Tree
    last_page: int
    transaction: int

    @property
    def body(self) -> bytes:
        """Everything that identifies the snapshot, except the number of its transaction."""
        return self.raw[_BODY:-8]

    @property
    def whole_body(self) -> bytes:
        """All bytes behind the header of the page."""
        return self.raw[_HEADER:]

    @property
    def size(self) -> int:
        """The bytes up to the end of the last page in use. The file may end before: free pages may never be written."""
        return (self.last_page + 1) * self.page_size


def read(path: str) -> tuple[MetaPage, MetaPage]:
    """Return the slot that counts and the other one; raise ``CorruptQueueError`` if either is damaged."""
    with open(path, "rb") as file:
        first = _read(file, 0)
        second = _read(file, first.page_size)
    return (second, first) if second.transaction > first.transaction else (first, second)


def body_of(fd: int, transaction: int, page_size: int) -> bytes:
    """Return the bytes behind the page header in the slot of a transaction, of a file that LMDB has open."""
    return os.pread(fd, BODY_SIZE, transaction % 2 * page_size + _HEADER)


def with_body(slot: MetaPage, body: bytes, number: int | None = None) -> MetaPage:
    """Return ``slot`` with another body, as transaction ``number`` or as its own."""
    raw = slot.raw[:_HEADER] + body
    return _slot("", slot.offset, raw if number is None else raw[:-8] + _TRANSACTION.pack(number))


def write(path: str, slot: MetaPage) -> None:
    """Write a slot, durably."""
    _write(path, slot.offset, slot.raw)


def best(path: str) -> MetaPage:
    """Return the slot that counts, or the one that is left when the other is damaged."""
    return max(whole(path), key=lambda slot: slot.transaction)


def whole(path: str) -> list[MetaPage]:
    """Return the slots that are not damaged; raise ``CorruptQueueError`` if both are."""
    found = []
    with open(path, "rb") as file:
        for offset in (0, *_PAGE_SIZES):
            with suppress(CorruptQueueError):
                slot = _read(file, offset)
                if offset in (0, slot.page_size):
                    found.append(slot)
    if not found:
        raise CorruptQueueError(path, "both meta pages of LMDB 0.9 are damaged")
    return found


def undo(path: str, newest: MetaPage, before: MetaPage, number: int) -> None:
    """Make ``before`` count, durably: write it over ``newest``, as transaction ``number``, of the same parity."""
    _write(path, newest.offset, newest.raw[:_HEADER] + before.raw[_HEADER:-8] + _TRANSACTION.pack(number))


def advance(path: str, newest: MetaPage, other: MetaPage) -> MetaPage:
    """Give ``newest``, which must be on the disk, the next number, durably, in the slot of ``other``; return that."""
    number = newest.transaction + 1
    raw = other.raw[:_HEADER] + newest.raw[_HEADER:-8] + _TRANSACTION.pack(number)
    _write(path, other.offset, raw)
    return newest._replace(offset=other.offset, raw=raw, transaction=number)


def both(path: str) -> bytes:
    """Return the bytes of both slots, the first one first, for ``restore``."""
    return b"".join(slot.raw for slot in sorted(read(path)))


def restore(path: str, raw: bytes) -> None:
    """Write back, durably, what ``both`` returned."""
    first = _slot(path, 0, raw[:SLOT_SIZE])
    second = _slot(path, first.page_size, raw[SLOT_SIZE:])
    for slot in (first, second):
        write(path, slot)


def _read(file: BinaryIO, offset: int) -> MetaPage:
    """Read a slot by its offset: a child that a handler forks amid this shares the position in the file."""
    return _slot(file.name, offset, os.pread(file.fileno(), SLOT_SIZE, offset))


def _slot(path: str, offset: int, raw: bytes) -> MetaPage:
    where = "the second" if offset else "the first"
    if len(raw) < SLOT_SIZE:
        raise CorruptQueueError(path, f"the file ends within {where} meta page of LMDB")
    flags, *magic, free, main, last_page, transaction = _SLOT.unpack(raw)
    page_size = Tree.unpack(free).pad
    if tuple(magic) != _MAGIC or not flags & _IS_META or page_size not in _PAGE_SIZES:
        raise CorruptQueueError(path, f"{where} meta page of LMDB 0.9 is damaged")
    return MetaPage(offset, raw, page_size, Tree.unpack(free), Tree.unpack(main), last_page, transaction)


def _write(path: str, offset: int, raw: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if fork.amid.life not in (None, fork.life):
            raise ForkError(os.path.dirname(path))
        os.pwrite(fd, raw, offset)
        sync_file(fd)
    finally:
        os.close(fd)
