"""Pages of LMDB 0.9, read only if they are as LMDB writes them: the foundation of all verification of a file.

Owns: what a single page may look like. Law: bytes that LMDB would not write raise ``Unsound``; an error of the system
(memory, descriptors, an unreadable sector) is raised unchanged, and proves nothing. Must not know: the library
``lmdb``, how pages hang together, what the records mean.

Things that LMDB does write, and that a stricter reader would refuse (from its source, 0.9.36):

- An overflow run may be longer than its value, which may have shrunk to nothing: a value that was stored in the same
  transaction is overwritten in place. So the length of a run is given by its first page.
- A record of the free list may be longer than the list in it, on a page as in an overflow run: room is reserved before
  the number of pages to list is known. A list that needs more than a page is such a run.
- A branch of the free list may have a single child; elsewhere LMDB itself gives up at one (its assertion).
- The first separator of a branch counts for nothing, and may be any key or none.
- The bytes of a page beside its nodes, and 2 bytes of its header, may be anything.
- The flags of the free list's tree are 8 and some of the environment's (0x4000: it is no directory).
- A page that a transaction allocated and freed again was never written: it is anything, or behind the file's end.
"""

from __future__ import annotations

import os
import sys
from struct import Struct, unpack_from
from typing import Final

from lmdbqueue._lmdb.raw_pages import HEADER, NO_ROOT, TREE_SIZE, Tree

MAX_KEY: Final = 511  # bytes
MAX_DEPTH: Final = 32  # of LMDB's cursors
FIRST: Final = 2  # number of the first page that is not a meta page

BIG: Final = 1  # flag of a node: its value is an overflow run
SUB: Final = 2  # flag of a node: its value is the record of a tree

Child = tuple[
    int, bytes | None, bytes | None
]  # page; its keys are from the second, and below the third; None: no bound
Node = tuple[bytes, int, int, bytes, int]  # key, flags, size of the value, value, first page of an overflow run

_BRANCH: Final = 1
_LEAF: Final = 2
_OVERFLOW: Final = 4
_INTEGER_KEYS: Final = 0x08  # flag of the free list's tree, of which the keys are numbers of transactions
_OF_KEYS: Final = 0x7E  # flags of a tree that change how its keys are sorted or stored
_HEADER: Final = Struct("=QHHHH")
_RUN: Final = Struct("=QHHI")
_NODE: Final = Struct("=IHH")
_NUMBER: Final = Struct("=Q")
_REVERSED: Final = sys.byteorder == "little"


class Unsound(Exception):
    """The bytes are not what LMDB would have written."""


def check_tree(tree: Tree, *, is_free_list: bool = False) -> None:
    """Raise ``Unsound`` if no tree can match this record."""
    if tree.flags & _OF_KEYS != (_INTEGER_KEYS if is_free_list else 0):
        raise Unsound(f"its flags are {tree.flags:#x}")
    if tree.depth > MAX_DEPTH:
        raise Unsound(f"its depth is {tree.depth}")
    if (tree.root == NO_ROOT) != (tree.depth == 0) or (tree.depth == 0 and any(tree[3:7])):
        raise Unsound("its root, depth and counts contradict each other")


class SoundPages:
    """The pages of an open file, up to the last one that a snapshot uses."""

    def __init__(self, fd: int, page_size: int) -> None:
        self._fd = fd
        self.page_size = page_size
        self.bytes_read = 0

    def page(self, number: int, size: int = 0) -> bytes:
        """Return the bytes of a page, or the first ``size`` from its beginning."""
        size = size or self.page_size
        page = os.pread(self._fd, size, number * self.page_size) if 0 <= number < 1 << 46 else b""
        self.bytes_read += len(page)
        if len(page) < size:
            raise Unsound(f"page {number} is beyond the end of the file")
        return page

    def branch(self, child: Child, *, is_free_list: bool = False) -> list[Child]:
        """Return the children of a branch, from left to right."""
        number, low, high = child
        page, upper, offsets = self._nodes(number, _BRANCH)
        if len(offsets) == 1 and not is_free_list:
            raise Unsound(f"page {number}, a branch, has only one child")
        size = self.page_size
        spans = []
        found: list[Child] = []
        before, left = low, 0
        for at in offsets:
            if at < upper or at + 8 > size:
                raise Unsound(f"page {number}: a node is outside of it")
            first, second, length = _NODE.unpack_from(page, at)
            end = at + 8 + length
            if end > size:
                raise Unsound(f"page {number}: a node is outside of it")
            spans.append((at, end + 1 & ~1))
            if len(spans) > 1:
                key = _key(number, page[at + 8 : end], is_free_list=is_free_list)
                if (before is not None and key <= before) or (high is not None and key >= high):
                    raise Unsound(f"page {number}: its separators are not in order")
                found.append((left, before, key))
                before = key
            left = first | second << 32
        found.append((left, before, high))
        _tile(number, spans, upper, size)
        return found

    def leaf(self, child: Child, *, is_free_list: bool = False) -> list[Node]:
        """Return the records of a leaf, in order."""
        number, low, high = child
        page, upper, offsets = self._nodes(number, _LEAF)
        size = self.page_size
        spans = []
        found: list[Node] = []
        before = b""
        unpack = _NODE.unpack_from
        for at in offsets:
            if at < upper or at + 8 > size:
                raise Unsound(f"page {number}: a node is outside of it")
            length, flags, of_key = unpack(page, at)
            begin = at + 8 + of_key
            end = begin + (8 if flags & BIG else length)
            if end > size:
                raise Unsound(f"page {number}: a node is outside of it")
            spans.append((at, end + 1 & ~1))
            key = _key(number, page[at + 8 : begin], is_free_list=is_free_list)
            if key <= before:
                raise Unsound(f"page {number}: its keys are not in order")
            before = key
            if flags == BIG:
                found.append((key, BIG, length, b"", _NUMBER.unpack_from(page, begin)[0]))
            elif flags in (0, SUB):
                found.append((key, flags, length, page[begin:end], 0))
            else:
                raise Unsound(f"page {number}: a node has the flags {flags:#x}")
        if (low is not None and found[0][0] < low) or (high is not None and before >= high):
            raise Unsound(f"page {number} has keys that do not belong there")
        _tile(number, spans, upper, size)
        return found

    def run(self, node: Node, last: int) -> range:
        """Return the pages of an overflow run, none of which is behind page ``last``."""
        _, _, size, _, number = node
        if not FIRST <= number <= last:
            raise Unsound(f"an overflow run begins at page {number}")
        stored, _, flags, pages = _RUN.unpack(self.page(number, HEADER))
        if stored != number or flags != _OVERFLOW:
            raise Unsound(f"page {number} is not the beginning of an overflow run")
        if pages < (HEADER - 1 + size) // self.page_size + 1 or number + pages - 1 > last:
            raise Unsound(f"the overflow run at page {number} has {pages} pages, but a value of {size} bytes")
        return range(number, number + pages)

    def value(self, node: Node) -> bytes:
        """Return the value of a record. ``run`` was called before."""
        _, flags, size, value, number = node
        return self.page(number, HEADER + size)[HEADER:] if flags == BIG else value

    def free(self, node: Node, last: int) -> tuple[int, ...]:
        """Return the page numbers in a record of the free list, from the highest to the lowest."""
        value = self.value(node)
        length, rest = divmod(len(value), 8)
        count = int.from_bytes(value[:8], sys.byteorder)
        if rest or not length or count >= length:
            raise Unsound(f"a record of the free list has {len(value)} bytes, but counts {count} pages")
        numbers: tuple[int, ...] = unpack_from(f"={count}Q", value, 8)
        if numbers and (numbers[0] > last or numbers[-1] < FIRST):
            raise Unsound(f"the free list has the pages {numbers[-1]} to {numbers[0]}")
        if not all(map(int.__gt__, numbers, numbers[1:])):
            raise Unsound("a record of the free list is not in order")
        return numbers

    def _nodes(self, number: int, wanted: int) -> tuple[bytes, int, tuple[int, ...]]:
        page = self.page(number)
        stored, _, flags, lower, upper = _HEADER.unpack_from(page)
        if stored != number:
            raise Unsound(f"page {number} says that it is page {stored}")
        if flags != wanted:
            raise Unsound(f"page {number} has the flags {flags:#x}, not {wanted:#x}")
        if not HEADER < lower <= upper <= len(page) or lower & 1:
            raise Unsound(f"page {number}: its nodes begin at {upper}, and their list ends at {lower}")
        return page, upper, unpack_from(f"={(lower - HEADER) >> 1}H", page, HEADER)


def as_tree(node: Node) -> Tree:
    """Return the record of a tree in a node."""
    _, flags, size, value, _ = node
    if flags != SUB or size != TREE_SIZE:
        raise Unsound("the record of a database has the wrong size")
    tree = Tree.unpack(value)
    check_tree(tree)
    return tree


def _key(number: int, key: bytes, *, is_free_list: bool) -> bytes:
    """Return a key in a form whose byte order is the order of keys."""
    if is_free_list:
        if len(key) != 8:  # noqa: PLR2004  (bytes of a number)
            raise Unsound(f"page {number}: the number of a transaction has {len(key)} bytes")
        return key[::-1] if _REVERSED else key
    if not 0 < len(key) <= MAX_KEY:
        raise Unsound(f"page {number}: a key has {len(key)} bytes")
    return key


def _tile(number: int, spans: list[tuple[int, int]], upper: int, end: int) -> None:
    """Raise ``Unsound`` unless the nodes of a page lie side by side from ``upper`` to its end."""
    spans.sort()
    for begin, next_begin in spans:
        if begin != upper:
            break
        upper = next_begin
    if upper != end:
        raise Unsound(f"page {number}: its nodes overlap, or do not fill it")
