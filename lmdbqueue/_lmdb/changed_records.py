"""The records of a file that changed between two of its snapshots, the earlier of which is kept.

Owns: how two snapshots are compared. Law: only pages that differ between the two are read, and those on the way to
them; a snapshot that is no longer kept is never compared. Must not know: what the records mean, who writes.

A transaction never overwrites pages of a snapshot that is being read: while one is kept, a page number that both have
denotes the same page, with everything below it. So both versions of a tree are descended side by side, level by level,
aligned at the leaves, and equal numbers cancel, as in ``_lmdb.difference``; but any two snapshots may be compared, and
pages that were freed and used in between do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from lmdbqueue._base.values import NamedTuple
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.raw_pages import EMPTY, NO_ROOT, Tree
from lmdbqueue._lmdb.sound_pages import SUB, Child, Node, SoundPages, as_tree


class ChangedTree(NamedTuple):
    """A named tree that differs between two snapshots."""

    pages: SoundPages
    before: Tree
    now: Tree

    def records(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each record that differs, in order, with its present value; None for a deleted one."""
        new, old = _changed_leaves(self.pages, self.before, self.now)
        for key, node in _differences(_nodes(self.pages, new), _nodes(self.pages, old)):
            yield key, None if node is None else self.pages.value(node)


def changed_trees(fd: int, before: MetaPage, now: MetaPage) -> Iterator[tuple[bytes, ChangedTree | None]]:
    """Yield the name of each named tree that changed or is new, with its changes; None for a deleted one.

    ``before`` is kept, ``now`` is read by the caller. Raises ``Unsound`` for pages that LMDB would not have written.
    """
    pages = SoundPages(fd, now.page_size)
    new, old = _changed_leaves(pages, before.main, now.main)
    were = {node[0]: node for node in _nodes(pages, old)}
    for name, node in _differences(_nodes(pages, new), iter(were.values())):
        then = were.get(name)
        if node is not None and node[1] == SUB:
            yield name, ChangedTree(pages, EMPTY if then is None else as_tree(then), as_tree(node))
        elif node is None and then is not None and then[1] == SUB:
            yield name, None


def _changed_leaves(pages: SoundPages, before: Tree, now: Tree) -> tuple[list[Child], list[Child]]:
    """Return the leaves, from left to right, that only the later version of a tree has, and only the earlier one."""
    new: list[Child] = []
    old: list[Child] = []
    for height in range(max(before.depth, now.depth) - 1, -1, -1):
        if height == now.depth - 1 and now.root != NO_ROOT:
            new = [(now.root, None, None)]
        if height == before.depth - 1 and before.root != NO_ROOT:
            old = [(before.root, None, None)]
        there, was = {child[0] for child in new}, {child[0] for child in old}
        new = [child for child in new if child[0] not in was]
        old = [child for child in old if child[0] not in there]
        if height:
            new = [each for child in new for each in pages.branch(child)]
            old = [each for child in old for each in pages.branch(child)]
    return new, old


def _nodes(pages: SoundPages, leaves: list[Child]) -> Iterator[Node]:
    for child in leaves:
        yield from pages.leaf(child)


def _differences(now: Iterator[Node], was: Iterator[Node]) -> Iterator[tuple[bytes, Node | None]]:
    """Yield each key whose node differs, with the present node, None for a deleted one; both inputs are in order.

    Two nodes with the same overflow run are the same, since both snapshots have its pages.
    """
    new, old = next(now, None), next(was, None)
    while new or old:
        if new and (old is None or new[0] < old[0]):
            yield new[0], new
            new = next(now, None)
        elif old and (new is None or old[0] < new[0]):
            yield old[0], None
            old = next(was, None)
        elif new and old:
            if new != old:
                yield new[0], new
            new, old = next(now, None), next(was, None)
