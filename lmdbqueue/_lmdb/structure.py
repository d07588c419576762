"""The verification that the pages of a file are a sound snapshot: trees that LMDB can safely read.

Owns: what a sound structure is. Law: findings come only from the bytes; an error of the system is raised. Everything
that LMDB's own code writes is accepted (``_lmdb.sound_pages``), as it must be for acknowledged data. Memory: a byte for
each page. Must not know: the library ``lmdb``, what the records mean.

Verified: the meta page matches its slot; each tree's pages and records are as many as its record says, at one depth,
with keys in order and within their separators; every page up to the last one is in exactly one place, a tree or the
free list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.raw_pages import NO_ROOT, Tree
from lmdbqueue._lmdb.sound_pages import BIG, FIRST, SUB, Child, Node, SoundPages, Unsound, as_tree, check_tree

_MOST = 20  # sentences

Progress = Callable[[int, int], None]


def problems_of(path: str, progress: Progress | None = None) -> list[str]:
    """Return the faults of the newest snapshot in a file to which no process writes meanwhile.

    ``progress(done, total)`` is called with pages now and then.
    """
    try:
        newest, _ = meta_page.read(path)
    except CorruptQueueError as error:
        return [error.reason]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Proof(fd, newest, progress).problems()
    finally:
        os.close(fd)


class _Proof:
    def __init__(self, fd: int, newest: MetaPage, progress: Progress | None) -> None:
        self._newest = newest
        self._last = newest.last_page
        self._pages = SoundPages(fd, newest.page_size)
        self._file_size = os.fstat(fd).st_size
        self._progress = progress
        self._found: list[str] = []
        self._taken = bytearray()
        self._count = 0  # the number of pages in use

    def problems(self) -> list[str]:
        """Return a sentence for each finding, up to a useful number."""
        newest = self._newest
        pages = self._file_size // newest.page_size
        if not 1 <= self._last <= pages + self._file_size // 8:  # pages behind the end are in the free list
            return [f"its last page is {self._last}, but it has {pages} pages"]
        if newest.transaction % 2 != bool(newest.offset):
            self._found.append(f"transaction {newest.transaction} is in the wrong meta page")
        self._taken = bytearray(self._last + 1)
        self._tree("the free list", newest.free, self._free, is_free_list=True)
        named: list[tuple[str, Tree]] = []
        self._tree("the main tree", newest.main, lambda node: self._database(node, named), may_nest=True)
        for name, tree in named:
            self._tree(name, tree)
        missing = self._last + 1 - FIRST - self._count
        if missing and not self._found:  # otherwise it is only a consequence
            first = self._taken.index(0, FIRST)
            self._found.append(f"{missing} pages are neither in use nor free; the first is {first}")
        return self._found[:_MOST]

    def _database(self, node: Node, named: list[tuple[str, Tree]]) -> None:
        if node[1] == SUB:
            named.append((repr(node[0].decode(errors="backslashreplace")), as_tree(node)))

    def _free(self, node: Node) -> None:
        if not 0 < int.from_bytes(node[0]) <= self._newest.transaction:
            raise Unsound(f"transaction {int.from_bytes(node[0])}, a later one, has freed pages")
        for number in self._pages.free(node, self._last):
            self._take(number)

    def _tree(
        self,
        name: str,
        tree: Tree,
        look: Callable[[Node], object] = bool,
        *,
        is_free_list: bool = False,
        may_nest: bool = False,
    ) -> None:
        """Verify one tree; ``look`` is called with each record."""
        known = len(self._found)
        counts = [0, 0, 0, 0]  # branches, leaves, overflow pages, records

        def descend(child: Child, height: int) -> None:
            try:
                self._take(child[0])
                if height:
                    counts[0] += 1
                    for each in self._pages.branch(child, is_free_list=is_free_list):
                        descend(each, height - 1)
                else:
                    nodes = self._pages.leaf(child, is_free_list=is_free_list)
                    counts[1] += 1
                    counts[2] += self._records(nodes, may_nest=may_nest)
                    counts[3] += len(nodes)
                    for node in nodes:
                        look(node)
            except Unsound as error:
                self._found.append(f"{name}: {error}")

        try:
            check_tree(tree, is_free_list=is_free_list)
        except Unsound as error:
            self._found.append(f"{name}: {error}")
            return
        if tree.root != NO_ROOT:
            descend((tree.root, None, None), tree.depth - 1)
        if len(self._found) == known and counts != list(tree[3:7]):
            self._found.append(f"{name}: it has {_counted(counts)}, but counts {_counted(tree[3:7])}")

    def _records(self, nodes: list[Node], *, may_nest: bool) -> int:
        """Return the number of overflow pages of the records of a leaf."""
        count = 0
        for node in nodes:
            if node[1] == BIG:
                run = self._pages.run(node, self._last)
                count += len(run)
                for number in run:
                    self._take(number)
            elif node[1] == SUB and not may_nest:
                raise Unsound("a database is within a database")
        return count

    def _take(self, number: int) -> None:
        if not FIRST <= number <= self._last:
            raise Unsound(f"page {number} is beyond its {self._last + 1} pages")
        if self._taken[number]:
            raise Unsound(f"page {number} is in two places")
        self._taken[number] = 1
        self._count += 1
        if self._progress is not None and not self._count % 1024:
            self._progress(self._count, self._last + 1)


def _counted(counts: Sequence[int]) -> str:
    return "{} branches, {} leaves, {} overflow pages and {} records".format(*counts)
