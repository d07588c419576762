"""Whether the last transaction of a file is whole, given the previous one: the requirements on its records.

Owns: what ties the pages of a transaction k together, beyond what ``_lmdb.difference`` verifies. Law: it reads only
what changed; everything that the library itself commits is accepted. Must not know: the library ``lmdb``, what is done
about a torn transaction.

Where a page of k did not arrive, its old content shows: a page of k-3 or earlier, of another tree, or of an attempt at
k that was killed or failed. Such pages may match each other by their numbers, keys and counts. Each kind of mixture is
revealed by something that it cannot have:

====================================================  ===========================================================
what is stale                                         what reveals it
====================================================  ===========================================================
all of k, or its records as a whole                   the record ``txn`` has the number of another transaction
some leaf of META or AWAY                             the weight of all records there differs from that of k-1
                                                      plus the difference
a leaf of items, of another queue, or from before     seals do not fit: they begin from the salt of the queue; keys
the queue was dropped and created anew                that k did not use
a leaf of items, of a time before k-1                 head, tail, skipped and returned keys, with the sums of their
                                                      weights, tell exactly which keys have an item; those that
                                                      k-1 and k share were never rewritten
a leaf of items, of a killed attempt at k             the content weight: the sum of the weights of the items that k
                                                      added. The seals of other values would fit, and so would keys
all of a killed attempt at k                          nothing; that attempt was never answered, so it may be there
                                                      instead of another that was not answered either. After a
                                                      recovery there is none: the number advances (``_local.recovery``)
====================================================  ===========================================================

A record of ``txn`` without a content weight belongs to a file before it had its final name: it was completely on the
disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.format import (
    AWAY,
    CLASS,
    CLASSES,
    KEY_SIZE,
    LAST_TXN,
    META,
    NEXT_GENERATION,
    OPTIONS,
    Bounds,
    Last,
)
from lmdbqueue._lmdb.difference import Changes, Difference
from lmdbqueue._lmdb.raw_pages import EMPTY
from lmdbqueue._lmdb.sound_pages import Node, Unsound

_ALL: Final = (1 << 64) - 1
_LAST_SIZES: Final = (8, 16, 24)  # bytes of the record of a transaction: its number, weight, content weight
_NOTHING: Final = Changes(EMPTY, EMPTY, {}, {})


def check(difference: Difference, number: int, *, is_running: bool = False) -> None:
    """Raise ``Unsound`` unless transaction ``number``, the later one of the two, is whole.

    ``is_running``: the content weights are a running sum, and there may be many transactions between the two.
    """
    trees, marks = difference.trees()
    for name, node in marks.added.items():
        is_mark = name == NEXT_GENERATION and node[2] == KEY_SIZE
        if not is_mark and not (name == OPTIONS and _format.is_intact(name, difference.value(node))):
            raise Unsound(f"it has a record {name!r}")
    if any(name in trees and trees[name][1] is None for name in (META, AWAY)) or META not in trees:
        raise Unsound("it left no records")
    records: dict[bytes, Changes] = {name: difference.changes(name) for name in (META, AWAY) if name in trees}
    meta = _Meta(difference, records[META])
    before, last = meta.last(number)
    if last.content is None and not is_running:
        return
    check_weight(difference, records, before, last)
    items = {name: _format.queue_of(name) for name in trees.keys() - records.keys()}
    content = 0
    for name, queue in items.items():
        if queue is None:
            raise Unsound(f"it has a database {name!r}")
        content += _Queue(difference, meta, queue, name, is_running=is_running).check()
    for queue in meta.queues - set(items.values()):
        _Queue(difference, meta, queue, None, is_running=is_running).check()
    check_content(content + (before.content or 0) if is_running else content, last)
    difference.settle()


def check_weight(difference: Difference, records: dict[bytes, Changes], before: Last, last: Last) -> None:
    """Raise ``Unsound`` unless the records of META and AWAY have the weight that the transaction recorded."""

    def weight(name: bytes, nodes: Iterable[Node], value: Callable[[Node], bytes]) -> int:
        return sum(_format.weigh_in(name == AWAY, node[0], value(node)) for node in nodes)

    for name, changes in records.items():
        for node in changes.added.values():
            if _format.is_sealed(name == AWAY, node[0]) and not _format.is_intact(node[0], difference.value(node)):
                raise Unsound(f"its record {node[0]!r} is damaged")
    if before.weight is None:  # the first since the file was built
        trees = {name: difference.tree(name) or EMPTY for name in (META, AWAY)}
        found = sum(weight(name, difference.between(tree, b""), difference.value) for name, tree in trees.items())
    else:
        found = before.weight
        for name, changes in records.items():
            found += weight(name, changes.added.values(), difference.value)
            found -= weight(name, (changes.removed or {}).values(), difference.old_value)
    if (found - (last.weight or 0)) & _ALL:
        raise Unsound("its records do not have the weight that it recorded")


def check_content(content: int, last: Last) -> None:
    """Raise ``Unsound`` unless the added items have the weight that the transaction recorded."""
    if (content - (last.content or 0)) & _ALL:
        raise Unsound("the items that it added are not those that it recorded")


class _Meta:
    """The records of META, before and after."""

    def __init__(self, difference: Difference, changes: Changes) -> None:
        self._difference = difference
        self._changes = changes
        changed = map(_format.split_record, changes.added.keys() | (changes.removed or {}).keys())
        self.queues = {name for name, what in changed if what == "queue" or what.startswith("class/")}

    def record(self, key: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the old and the new value of a record."""
        now, then = self._changes.added.get(key), (self._changes.removed or {}).get(key)
        if now is None and then is None:
            same = self._difference.find(self._changes.after, key)
            value = None if same is None else self._difference.old_value(same)
            return value, value
        return (
            None if then is None else self._difference.old_value(then),
            None if now is None else self._difference.value(now),
        )

    def last(self, number: int) -> tuple[Last, Last]:
        """Return the record of the previous transaction, and its own."""
        before, now = self.record(LAST_TXN)
        if now is None or before == now or len(now) not in _LAST_SIZES:
            raise Unsound("it has no record of itself")
        last = Last.unpack(now)
        check_number(last, number)
        return Last.unpack(before), last

    def bounds(self, queue: str, number: int) -> tuple[Bounds, Bounds]:
        """Return the old and the new bounds of a class of a queue."""
        before, now = self.record(_format.class_record(queue, number))
        return (
            Bounds.empty(number) if before is None else Bounds.unpack(before),
            Bounds.empty(number) if now is None else Bounds.unpack(now),
        )

    def classes(self, queue: str, *, changed: bool) -> set[int]:
        """Return the classes of a queue with bounds in a record of their own; with ``changed``, only changed ones."""
        prefix = _format.record(queue, "class/")
        found: Iterable[bytes]
        if changed:
            found = self._changes.added.keys() | (self._changes.removed or {}).keys()
        else:
            found = (node[0] for node in self._difference.between(self._changes.after, prefix, prefix + b"\xff"))
        return {int(key[len(prefix) :]) for key in found if key.startswith(prefix)}


def check_number(last: Last, number: int) -> None:
    """Raise ``Unsound`` unless the record of the transaction is its own."""
    if last.transaction != number:
        raise Unsound(f"its record is that of transaction {last.transaction}")


class _Queue:
    """A queue whose items or bounds changed."""

    def __init__(
        self, difference: Difference, meta: _Meta, name: str, items: bytes | None, *, is_running: bool
    ) -> None:
        self._difference = difference
        self._is_running = is_running
        self._meta = meta
        self._name = name
        self._items = items  # the key of its tree, None if the tree did not change
        self._before, self._now = meta.record(_format.record(name, "queue"))

    def check(self) -> int:
        """Raise ``Unsound`` unless its items are those that the records describe; return the weight of added ones."""
        then, tree = self._there()
        if (then is None) != (self._before is None) or (tree is None) != (self._now is None):
            raise Unsound(f"the queue {self._name!r} has a record and no items, or items and no record")
        if self._now is None or self._is_cleared():
            return -self._weight_of(self._changes(look=self._is_running))
        changes = self._changes()
        added, weight = self._added(changes)
        removed = set() if self._is_new else set(changes.removed or ())
        if self._is_new and changes.after.entries != len(added):
            raise Unsound(f"the new queue {self._name!r} has items of another")
        numbers = {CLASS} | self._meta.classes(self._name, changed=True)
        numbers.update(map(_format.class_of_key, added), map(_format.class_of_key, removed))
        for number in numbers:
            self._check_class(number, added - removed, removed - added)
        return weight - self._weight_of(changes) if self._is_running else weight

    def _weight_of(self, changes: Changes) -> int:
        """Return the weight of the items that left, if it is needed."""
        if not self._is_running:
            return 0
        weight = 0
        for key, node in (changes.removed or {}).items():
            value, same = self._difference.old_value(node), changes.added.get(key)
            if same is None or self._difference.value(same) != value:
                weight += _format.weigh_item(value)
        return weight

    def _there(self) -> tuple[object, object]:
        if self._items is None:
            return (self._difference.tree(_format.record(self._name, "items")),) * 2
        return self._difference.named[self._items]

    @property
    def _is_new(self) -> bool:
        return (
            self._before is None or self._now is None or _format.identity(self._before) != _format.identity(self._now)
        )

    def _changes(self, *, look: bool = True) -> Changes:
        return _NOTHING if self._items is None else self._difference.changes(self._items, look=look)

    def _is_cleared(self) -> bool:
        """Return whether the records say that no key has an item: then the items that left need not be read."""
        if self._items is None or self._now is None:
            return False
        if (self._difference.named[self._items][1] or EMPTY).entries:
            return False
        classes = {CLASS}
        if _format.flags(self._now) & CLASSES:
            classes |= self._meta.classes(self._name, changed=False)
        for number in classes:
            before, now = self._bounds(number)
            check_order(before, now)
            if now.head != now.tail or now.skipped or now.returned:
                return False
        return True

    def _bounds(self, number: int) -> tuple[Bounds, Bounds]:
        assert self._now is not None  # otherwise none of it is read
        if number == CLASS:
            now = _format.numbers(self._now).bounds()
            before = Bounds.empty(CLASS) if self._before is None else _format.numbers(self._before).bounds()
        else:
            before, now = self._meta.bounds(self._name, number)
        return Bounds.empty(number) if self._is_new else before, now

    def _added(self, changes: Changes) -> tuple[set[bytes], int]:
        """Return the keys of the added items, all with correct seals, and their weight."""
        assert self._now is not None  # otherwise none of it is read
        salt = _format.salt(self._now)
        weight = 0
        found = set()
        for key, node in changes.added.items():
            value = self._difference.value(node)
            same = (changes.removed or {}).get(key)
            found.add(key)
            if same is not None and self._difference.old_value(same) == value:  # unchanged, in another overflow run
                continue
            if len(key) != KEY_SIZE:
                raise Unsound(f"the queue {self._name!r} has an item under the key {key!r}")
            if not _format.is_intact(key, value, salt):
                raise Unsound(f"queue {self._name!r}: item {_format.seq_of(key)} is damaged")
            weight += _format.weigh_item(value)
        return found, weight

    def _check_class(self, number: int, came: set[bytes], left: set[bytes]) -> None:
        before, now = self._bounds(number)
        check_order(before, now)
        items = self._difference.tree(_format.record(self._name, "items")) or EMPTY

        def there(low: int, high: int) -> Iterator[int]:
            for node in self._difference.between(items, _format.pack(low), _format.pack(high)):
                yield _format.unpack(node[0])

        def numbers(keys: set[bytes]) -> set[int]:
            return {_format.unpack(key) for key in keys if _format.class_of_key(key) == number}

        check_bounds(self._name, now, expected(before, now, numbers(came), numbers(left), there))


def check_order(before: Bounds, now: Bounds) -> None:
    """Raise ``Unsound`` unless head and tail have possible values."""
    if now.head > now.tail or now.head < before.head or now.tail < before.tail:
        raise Unsound(f"head and tail are {now.head} and {now.tail}, and were {before.head} and {before.tail}")


def check_bounds(queue: str, now: Bounds, found: Bounds) -> None:
    """Raise ``Unsound`` unless the bounds of a class match those found."""
    if now != found:
        raise Unsound(f"the items of queue {queue!r} are not those that its record describes")


def expected(
    before: Bounds, now: Bounds, came: set[int], left: set[int], there: Callable[[int, int], Iterable[int]]
) -> Bounds:
    """Return the bounds, with the present head and tail, after keys have gained or lost an item.

    ``there(low, high)`` returns the keys of that range that have an item now; it is called for keys that the head
    passed.
    """
    skipped, skipped_weight, returned, returned_weight = before[2:]
    has_no_item = [key for key in left if now.head <= key < now.tail]
    came_back = [key for key in came if key < now.head]
    no_more_skipped = [key for key in came if before.head <= key < before.tail]
    no_more_returned = [key for key in left if key < before.head]
    passed = {key for key in range(before.head, min(now.head, before.tail)) if key not in left and key not in came}
    if passed:  # keys without an item, or with one that is below the head now
        still_there = passed.intersection(there(before.head, now.head))
        came_back += still_there
        no_more_skipped += passed - still_there
    if any(key >= now.tail for key in came):
        raise Unsound("an item is beyond the tail")
    has_no_item += [key for key in range(max(before.tail, now.head), now.tail) if key not in came]

    def weight(more: list[int], less: list[int]) -> int:
        return sum(map(_weigh, more)) - sum(map(_weigh, less))

    return Bounds(
        now.head,
        now.tail,
        skipped + len(has_no_item) - len(no_more_skipped),
        (skipped_weight + weight(has_no_item, no_more_skipped)) & _ALL,
        returned + len(came_back) - len(no_more_returned),
        (returned_weight + weight(came_back, no_more_returned)) & _ALL,
    )


def _weigh(key: int) -> int:
    return _format.weigh(_format.pack(key))
