"""The difference between a snapshot k and the previous one, read and verified page by page; nothing else is read.

Owns: which pages differ, and what they prove about k. Law: nothing of k is trusted; everything of k-1 is, and if that
turns out to be damaged ``Unprovable`` is raised, not ``Unsound``. Must not know: the library ``lmdb``, what the records
mean.

Its foundation. Transaction k never overwrites a page of k-1 or k-2, and k-1 was on the disk before the meta page of k
was written. So every page of k-1 is intact, and only pages that belong to k but not to k-1 can be stale, each
independently: they may show any earlier content. Such a page can look sound by itself, so they are verified against
k-1:

- Both versions of a tree are descended level by level, aligned at the leaves, since its depth may have changed. A
  number that both have on a level denotes the same page with everything below it: it is read in neither, unless k gave
  it narrower bounds; then its first or last key is checked.
- Pages that only k has must be sound (``_lmdb.sound_pages``), within their bounds, used once, and taken from pages that
  k-1 had listed as free, in a record that k removed from the free list, or from behind the end of k-1.
- The counts of each tree, of branches, leaves, overflow pages and records, change by exactly the differences found.
  That of the leaves is compared before any of them is read: a stale root could lead through the whole history of the
  file.
- The free list changes accordingly. With N and O the pages that only k and only k-1 has, F0 and F1 those in records of
  the free list that only k-1 and only k has, and G the pages behind the end of k-1 up to the end of k: N and F1 have no
  page in common, nor have N and O, and N with F1 are O with F0 and G.

So the cost is that of the pages that LMDB had to write for k, times the depth of the trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.raw_pages import EMPTY, NO_ROOT, Tree
from lmdbqueue._lmdb.sound_pages import BIG, FIRST, SUB, Child, Node, SoundPages, Unsound, as_tree, check_tree

R = TypeVar("R")

_SHORT = 64  # leaves that are read although all of them are gone


class Unprovable(Exception):
    """The previous snapshot is damaged, so nothing can be verified against it."""


class Changes(NamedTuple):
    """How the records of a tree changed. A record with another value is both added and removed."""

    before: Tree
    after: Tree
    added: dict[bytes, Node]
    removed: dict[bytes, Node] | None  # None: all records, which were not read


class Difference:
    """The difference of two snapshots of an open file: ``trees``, then ``changes`` of each of them, then ``settle``."""

    def __init__(self, fd: int, before: MetaPage, newest: MetaPage) -> None:
        self._old = before
        self._new = newest
        self._used = _Used(fd, before, newest)
        self.named: dict[bytes, tuple[Tree | None, Tree | None]] = {}  # changed trees, before and after

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from the file."""
        return self._used.pages.bytes_read

    def trees(self) -> tuple[dict[bytes, tuple[Tree | None, Tree | None]], Changes]:
        """Return the changed named trees, before and after (None: no such tree), and the changes of other records."""
        if self._new.last_page < self._old.last_page:
            raise Unsound("it ends before the one before it")
        self._used.know_free(_changes(self._used, self._old.free, self._new.free, is_free_list=True))
        main = _changes(self._used, self._old.main, self._new.main, may_nest=True)
        removed = main.removed or {}
        marks = Changes(main.before, main.after, {}, {})
        for name in main.added.keys() | removed.keys():
            then, now = removed.get(name), main.added.get(name)
            if any(node is not None and node[1] == SUB for node in (then, now)):
                old = None if then is None else known(as_tree, then)
                self.named[name] = old, None if now is None else as_tree(now)
            elif now is not None:
                marks.added[name] = now
        return self.named, marks

    def changes(self, name: bytes, *, look: bool = True) -> Changes:
        """Return how a named tree changed; without ``look``, records may be left out if all are gone."""
        before, after = self.named.get(name, (None, None))
        return _changes(self._used, before or EMPTY, after or EMPTY, look=look)

    def settle(self) -> None:
        """Raise ``Unsound`` unless the used and freed pages are exactly those that they must be."""
        self._used.settle()

    def value(self, node: Node) -> bytes:
        """Return the value of a record that was added."""
        return self._used.pages.value(node)

    def old_value(self, node: Node) -> bytes:
        """Return the value of a record of the previous snapshot."""
        return known(self._used.pages.value, node)

    # --- unchanged records, after the changes of their tree were read

    def tree(self, name: bytes) -> Tree | None:
        """Return a named tree of k."""
        if name in self.named:
            return self.named[name][1]
        node = self.find(self._new.main, name)
        return None if node is None else known(as_tree, node)

    def find(self, tree: Tree, key: bytes) -> Node | None:
        """Return a record of a tree of k, None if there is none."""
        found = [node for node in self.between(tree, key, key + b"\0") if node[0] == key]
        return found[0] if found else None

    def between(self, tree: Tree, low: bytes, high: bytes | None = None) -> Iterator[Node]:
        """Yield the records of a tree of k from ``low`` to below ``high``, or the end."""
        pages: list[tuple[Child, int]] = []
        if tree.root != NO_ROOT:
            pages.append(((tree.root, None, None), tree.depth - 1))
        while pages:
            child, height = pages.pop()
            if (high is not None and child[1] is not None and child[1] >= high) or (child[2] or low + b"\0") <= low:
                continue
            if height:
                pages += [(each, height - 1) for each in reversed(known(self._used.pages.branch, child))]
            else:
                nodes = known(self._used.pages.leaf, child)
                yield from (node for node in nodes if low <= node[0] and (high is None or node[0] < high))


def known(fn: Callable[..., R], *args: object, **options: bool) -> R:
    """Return ``fn(*args)`` on pages that k-1 has, too: if they are unsound, nothing can be said about k."""
    try:
        return fn(*args, **options)
    except Unsound as error:
        raise Unprovable(str(error)) from error


class _Used:
    """The pages that were used and freed between the two snapshots."""

    def __init__(self, fd: int, before: MetaPage, newest: MetaPage) -> None:
        self.pages = SoundPages(fd, newest.page_size)
        self.old_last = before.last_page
        self.last = newest.last_page
        self.only_old: set[int] = set()
        self._transaction = newest.transaction
        self._only_new: set[int] = set()
        self._freed: set[int] = set()  # in records of the free list that only k has
        self._free: set[int] | None = None  # in records that only k-1 has; None: not known yet

    def take(self, number: int) -> None:
        """Note a page that only k has."""
        if number in self._only_new:
            raise Unsound(f"page {number} is in two places")
        if not FIRST <= number <= self.last:
            raise Unsound(f"page {number} is beyond its end")
        self._check_free(number)
        self._only_new.add(number)

    def take_run(self, node: Node) -> int:
        """Note the pages of an overflow run that only k has; return their number."""
        run = self.pages.run(node, self.last)
        for number in run:
            self.take(number)
        return len(run)

    def leave_run(self, node: Node) -> int:
        """Note the pages of an overflow run that only k-1 has; return their number."""
        run = known(self.pages.run, node, self.old_last)
        self.only_old.update(run)
        return len(run)

    def know_free(self, changes: Changes) -> None:
        """Add the changed records of the free list; from here on, a page must have been free to be used."""
        free: set[int] = set()
        for node in (changes.removed or {}).values():
            free.update(known(self.pages.free, node, self.old_last))
        count = 0
        for key, node in changes.added.items():
            if not 0 < int.from_bytes(key) <= self._transaction:
                raise Unsound(f"transaction {int.from_bytes(key)}, a later one, has freed pages")
            numbers = self.pages.free(node, self.last)
            count += len(numbers)
            self._freed.update(numbers)
        if count != len(self._freed):
            raise Unsound("a page is free twice")
        self._free = free
        for number in self._only_new:  # pages of the list itself
            self._check_free(number)

    def _check_free(self, number: int) -> None:
        if self._free is not None and number <= self.old_last and number not in self._free:
            raise Unsound(f"page {number} was not free")

    def settle(self) -> None:
        """Raise ``Unsound`` unless N with F1 are O with F0 and G, and N has no page of F1, nor of O."""
        grown = range(self.old_last + 1, self.last + 1)
        if not self._only_new.isdisjoint(self._freed):
            raise Unsound("a page is both used and free")
        if not self._only_new.isdisjoint(self.only_old):
            raise Unsound("a page of the previous transaction was overwritten")
        if self._only_new | self._freed != self.only_old.union(self._free or (), grown):
            raise Unsound("its free list is not the previous one without the pages it used and with those it freed")


# --- one tree


def _changes(
    used: _Used, before: Tree, after: Tree, *, is_free_list: bool = False, may_nest: bool = False, look: bool = True
) -> Changes:
    known(check_tree, before, is_free_list=is_free_list)
    check_tree(after, is_free_list=is_free_list)
    if before[:2] != after[:2]:
        raise Unsound("the flags of a tree changed")
    is_cut_off = not look and after.root == NO_ROOT and not before.overflow and before.leaves > _SHORT
    both = _Both(used, before, after, is_free_list=is_free_list, skips_old_leaves=is_cut_off)
    both.descend()
    both.check_counts()
    if not may_nest and any(node[1] == SUB for node in both.added.values()):
        raise Unsound("a database is within a database")
    return Changes(before, after, both.added, None if is_cut_off else both.removed)


class _Both:
    """Two versions of a tree, and their differences: ``new`` and ``old`` count branches, leaves and so on."""

    def __init__(self, used: _Used, before: Tree, after: Tree, *, is_free_list: bool, skips_old_leaves: bool) -> None:
        self._used = used
        self._before = before
        self._after = after
        self._is_free_list = is_free_list
        self._skips_old_leaves = skips_old_leaves
        self._new = [0, 0, 0, 0]  # branches, leaves, overflow pages, records
        self._old = [0, 0, 0, 0]
        self.added: dict[bytes, Node] = {}
        self.removed: dict[bytes, Node] = {}

    def descend(self) -> None:
        """Read all pages that only one of them has."""
        new: list[Child] = []
        old: list[Child] = []
        for height in range(max(self._before.depth, self._after.depth) - 1, -1, -1):
            if height == self._after.depth - 1:
                new = [(self._after.root, None, None)]
            if height == self._before.depth - 1:
                old = [(self._before.root, None, None)]
            new, old = self._apart(new, old, height)
            if height:
                new = [each for child in new for each in self._branch_of_new(child)]
                old = [each for child in old for each in self._branch_of_old(child)]
        self._new[1], self._old[1] = len(new), len(old)
        self._check_count(1)  # before any is read
        self._leaves(new, old)
        for key in [key for key, node in self.added.items() if self.removed.get(key) == node]:
            del self.added[key], self.removed[key]  # the same record on another page
        self._new[2] = sum(self._used.take_run(node) for node in self.added.values() if node[1] == BIG)
        self._old[2] = sum(self._used.leave_run(node) for node in self.removed.values() if node[1] == BIG)

    def check_counts(self) -> None:
        """Raise ``Unsound`` unless the counts of the tree changed by the differences found."""
        for which in range(4 - self._skips_old_leaves):
            self._check_count(which)
        if self._skips_old_leaves and self._after.entries:
            raise Unsound("a tree without pages has records")

    def _check_count(self, which: int) -> None:
        now, then = self._after[3 + which], self._before[3 + which]
        if now != then + self._new[which] - self._old[which]:
            what = ("branches", "leaves", "overflow pages", "records")[which]
            raise Unsound(f"a tree does not have as many {what} as its record says")

    def _apart(self, new: list[Child], old: list[Child], height: int) -> tuple[list[Child], list[Child]]:
        """Return one level of both versions without the pages that both have."""
        others = {child[0]: child for child in old}
        rest = []
        for child in new:
            same = others.pop(child[0], None)
            if same is None:
                rest.append(child)
            else:
                self._check_bounds(child, same, height)
        return rest, list(others.values())

    def _check_bounds(self, now: Child, then: Child, height: int) -> None:
        """Raise ``Unsound`` if a shared page has keys outside of its bounds in the later version."""
        number, low, high = now
        if low is not None and (then[1] is None or low > then[1]) and self._edge(number, height, 0) < low:
            raise Unsound(f"page {number}, an older one, has keys below its separator")
        if high is not None and (then[2] is None or high < then[2]) and self._edge(number, height, -1) >= high:
            raise Unsound(f"page {number}, an older one, has keys beyond its separator")

    def _edge(self, number: int, height: int, which: int) -> bytes:
        """Return the first key below a shared page (``which`` 0), or the last (-1)."""
        child: Child = (number, None, None)
        for _ in range(height):
            branch = known(self._used.pages.branch, child, is_free_list=self._is_free_list)
            child = (branch[which][0], None, None)
        return known(self._used.pages.leaf, child, is_free_list=self._is_free_list)[which][0]

    def _branch_of_new(self, child: Child) -> list[Child]:
        self._used.take(child[0])
        self._new[0] += 1
        if self._new[0] > self._after.branches:
            raise Unsound("a tree has more branches than its record says")
        return self._used.pages.branch(child, is_free_list=self._is_free_list)

    def _branch_of_old(self, child: Child) -> list[Child]:
        self._used.only_old.add(child[0])
        self._old[0] += 1
        return known(self._used.pages.branch, child, is_free_list=self._is_free_list)

    def _leaves(self, new: list[Child], old: list[Child]) -> None:
        for child in new:
            self._used.take(child[0])
            nodes = self._used.pages.leaf(child, is_free_list=self._is_free_list)
            self._new[3] += len(nodes)
            self.added.update((node[0], node) for node in nodes)
        for child in old:
            self._used.only_old.add(child[0])
            if not self._skips_old_leaves:
                nodes = known(self._used.pages.leaf, child, is_free_list=self._is_free_list)
                self._old[3] += len(nodes)
                self.removed.update((node[0], node) for node in nodes)
