"""LMDB's trees as bytes, for files that LMDB must not see or cannot read.

Owns: the layout of the pages of LMDB 0.9 (64-bit). Law: it only reads, and trusts nothing: invalid parts are left out
and listed in ``damaged``. Must not know: the library ``lmdb``, what the records mean.

A page begins with a header: its number (8 bytes), 2 bytes, flags (2), the offsets at which the list of
nodes ends and the nodes begin (2 each). Then come the offsets of its nodes, 2 bytes each, in order. The
node of a branch has the page of a child in its first 6 bytes. The node of a leaf has the size of the
data (4), flags (2), the size of the key (2), the key, and the data, or the number of the page where
they begin: behind the header of that page, and on over those after it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from struct import Struct, error, unpack_from
from typing import Final

from lmdbqueue._base.values import NamedTuple

HEADER: Final = 16
NO_ROOT: Final = 0xFFFF_FFFF_FFFF_FFFF  # of an empty tree

_HEADER: Final = Struct("=Q2xHHH")
_NODE: Final = Struct("=IHH")
_NUMBER: Final = Struct("=Q")
_ROOT: Final = slice(40, 48)
_BRANCH: Final = 1
_LEAF: Final = 2
_OVERFLOW: Final = 4
_ELSEWHERE: Final = 1  # flag of a node: its data are on pages of their own

Node = tuple[bytes, bytes]  # key and data


class Tree(NamedTuple):
    """LMDB's record of a tree: MDB_db."""

    pad: int
    flags: int
    depth: int
    branches: int  # pages
    leaves: int  # pages
    overflow: int  # pages
    entries: int
    root: int  # page

    @classmethod
    def unpack(cls, data: bytes) -> Tree:
        """Read the record."""
        return cls(*_TREE.unpack(data))


_TREE: Final = Struct("=IHHQQQQQ")
TREE_SIZE: Final = _TREE.size
EMPTY: Final = Tree(0, 0, 0, 0, 0, 0, 0, NO_ROOT)


def root_of(database: bytes) -> int:
    """Return the root of the tree described by a record of 48 bytes, LMDB's MDB_db."""
    return int.from_bytes(database[_ROOT], sys.byteorder)


class Pages:
    """The pages of an open file."""

    def __init__(self, fd: int, page_size: int) -> None:
        self._fd = fd
        self._size = page_size
        self.damaged: list[int] = []  # numbers of the pages that were left out, in whole or in part

    def nodes(self, root: int) -> Iterator[Node]:
        """Yield the records of the tree that begins at page ``root``, in its order."""
        seen: set[int] = set()
        pages = [root] if root != NO_ROOT else []
        while pages:
            number = pages.pop()
            page = self._read(number, self._size)
            flags, offsets = self._header(number, page)
            if number in seen or flags not in (_BRANCH, _LEAF):
                self.damaged.append(number)
                continue
            seen.add(number)
            if flags == _BRANCH:
                pages += reversed([child for child in (self._child(page, at) for at in offsets) if child])
            else:
                for at in offsets:
                    node = self._node(page, at)
                    if node is None:
                        self.damaged.append(number)
                    else:
                        yield node

    def _read(self, number: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, number * self._size)
        except (OSError, OverflowError):  # an unreadable sector, or an impossible number
            return b""

    def _header(self, number: int, page: bytes) -> tuple[int, tuple[int, ...]]:
        """Return flags, 0 if this is not page ``number``, and the offsets of the nodes."""
        if len(page) < HEADER:
            return 0, ()
        stored, flags, lower, upper = _HEADER.unpack_from(page)
        if stored != number or not HEADER <= lower <= upper <= len(page):
            return 0, ()
        return flags, unpack_from(f"={(lower - HEADER) // 2}H", page, HEADER)

    def _child(self, page: bytes, at: int) -> int:
        if at + _NODE.size > len(page):
            return 0  # a meta page, which cannot be a child
        low, high, _ = _NODE.unpack_from(page, at)
        return int(low | high << 32)

    def _node(self, page: bytes, at: int) -> Node | None:
        try:
            size, flags, length = _NODE.unpack_from(page, at)
            begin = at + _NODE.size + length
            if flags & _ELSEWHERE:
                (first,) = _NUMBER.unpack_from(page, begin)
                data = self._elsewhere(first, size)
            else:
                data = page[begin : begin + size]
        except error:
            return None
        return (page[begin - length : begin], data) if len(data) == size else None

    def _elsewhere(self, number: int, size: int) -> bytes:
        page = self._read(number, HEADER + size)
        if len(page) < HEADER or _HEADER.unpack_from(page)[:2] != (number, _OVERFLOW):
            return b""
        return page[HEADER:]
