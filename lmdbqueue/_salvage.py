"""What can be saved of a damaged file: a new one with every item that is whole.

Owns: what is kept, what goes to quarantine, what is lost. Law: nothing is thrown away that could be
read: an item whose checksum does not fit, or that stands outside of head and tail, is kept
as it was found, beside the queue; the old file is not
changed. Must not know: how the new file takes the place of the old one.

LMDB does not see the damaged file, since it trusts what it maps: the trees are walked as bytes
(``_pages``), and what hangs on a page that does not fit is lost. Without a checksum every item that has
a sound page around it is taken for whole.
"""

import os
from collections.abc import Iterator
from itertools import chain
from typing import Final

from lmdbqueue import _format, _generation, _metapage
from lmdbqueue._disk import sync_directory, sync_file
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._pages import NO_ROOT, Node, Pages, root_of

_NUMBER: Final = 8  # bytes
_DATABASE: Final = 48  # bytes of its record
_NAMED: Final = 10  # numbers that a sentence names


class Quarantine:
    """A file of JSON lines, one for each damaged item or part of the state, with what stood there in base64."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, queue: str, value: bytes, **place: object) -> None:
        """Put there, durably, what stood at ``seq`` among the items or ``state`` in the state."""
        import base64  # noqa: PLC0415  (for who repairs, not for who imports)
        import json  # noqa: PLC0415

        line = json.dumps({"queue": queue, **place, "value": base64.b64encode(value).decode()}) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
            sync_file(fd)
        finally:
            os.close(fd)
        sync_directory(os.path.dirname(self.path))


class _Queue:
    """One queue while it is being saved."""

    def __init__(self, name: str, root: int, records: dict[bytes, bytes]) -> None:
        def number(what: str) -> int | None:
            data = records.get(_format.record(name, what), b"")
            return _format.unpack(data) if len(data) == _NUMBER else None

        state = _format.state_record(name, "")
        self.name = name
        self.root = root
        self.head = number("head")
        self.tail = number("tail")
        self.missing = _format.unpack_ranges(records.get(_format.record(name, "missing"), b""))  # before
        self.state = sorted(record for record in records.items() if record[0].startswith(state))
        self.damaged: list[int] = []
        self.damaged_state: list[str] = []
        self.gaps: list[range] = []
        self.kept = 0
        self.first: int | None = None
        self.next = 0

    def keep(self, seq: int) -> None:
        """Note that the item ``seq`` is kept; they come in order."""
        if self.first is None:
            self.first = seq
        elif seq > self.next:
            self.gaps.append(range(self.next, seq))
        self.next = seq + 1
        self.kept += 1

    def records(self, state: Iterator[Node]) -> Iterator[Node]:
        """Yield the records of the queue in the new file, in the order of their keys."""
        tail = self.next if self.tail is None else max(self.tail, self.next)
        if self.first is not None and tail > self.next:
            self.gaps.append(range(self.next, tail))
        head = tail if self.first is None else self.first
        yield _format.record(self.name, "head"), _format.pack(head)
        if self.gaps:
            yield _format.record(self.name, "missing"), _format.pack_ranges(self.gaps)
        yield from state
        yield _format.record(self.name, "tail"), _format.pack(tail)

    def sentences(self, quarantine: str) -> Iterator[str]:
        """Yield what became of items that are not in the new file."""
        if self.damaged:
            numbers = ", ".join(map(str, self.damaged[:_NAMED])) + ", ..." * (len(self.damaged) > _NAMED)
            yield f"queue {self.name!r}: {len(self.damaged)} damaged items are now in {quarantine!r}: {numbers}"
        if self.damaged_state:
            keys = ", ".join(map(repr, self.damaged_state[:_NAMED])) + ", ..." * (len(self.damaged_state) > _NAMED)
            yield f"queue {self.name!r}: damaged parts of its state are now in {quarantine!r}: {keys}"
        tail = self.next if self.tail is None else self.tail
        head = tail if self.first is None else self.first
        expected = tail - (head if self.head is None else self.head)
        if lost := expected - self.kept - len(self.damaged) - sum(map(len, self.missing)):
            yield f"queue {self.name!r}: {lost} items could not be read and are lost"
        if self.head is None or self.tail is None:
            yield f"queue {self.name!r}: its head or tail was lost: items that had left may be there again"


def rebuild(path: str, draft: str, options: _format.Options, quarantine: Quarantine) -> list[str]:
    """Write what is whole in the file at ``path`` to ``draft``, durably but for its name; tell what is not there.

    Nobody may write to the file meanwhile. Raises ``CorruptQueueError`` if nothing can be read at all.
    """
    for name in (draft, draft + "-lock"):
        if os.path.exists(name):
            os.unlink(name)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        newest = _metapage.best(path)
        pages = Pages(fd, newest.page_size)
        queues = _queues(path, pages, newest.main_root)

        def contents() -> Iterator[tuple[bytes, Iterator[Node]]]:
            for queue in queues:
                yield _format.record(queue.name, "items"), _whole(pages, queue, options, quarantine)
            records = (queue.records(_whole_state(queue, options, quarantine)) for queue in queues)
            yield _format.META, chain.from_iterable(records)

        _generation.build(draft, contents())
    finally:
        os.close(fd)
    fd = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    return [sentence for queue in queues for sentence in queue.sentences(quarantine.path)]


def _queues(path: str, pages: Pages, root: int) -> list[_Queue]:
    """Return the queues that are known of, in the order of their records."""
    roots = {key: root_of(data) for key, data in pages.nodes(root) if len(data) == _DATABASE}
    records = dict(pages.nodes(roots.get(_format.META, NO_ROOT)))
    names = {name for key in (*roots, *records) if (name := _format.split_record(key)[0])}
    if not names:
        raise CorruptQueueError(path, "no queue can be found in it")

    by_record = sorted(names, key=lambda name: _format.record(name, ""))
    return [_Queue(name, roots.get(_format.record(name, "items"), NO_ROOT), records) for name in by_record]


def _whole(pages: Pages, queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the items that are whole; put the others away."""
    least = queue.head or 0
    end = 1 << 64 if queue.tail is None else queue.tail
    for key, value in pages.nodes(queue.root):
        seq = int.from_bytes(key)
        if least <= seq < end and len(key) == _NUMBER and (not options.checksum or _format.is_intact(key, value)):
            least = seq + 1
            queue.keep(seq)
            yield key, value
        else:
            quarantine.add(queue.name, value, seq=seq)
            queue.damaged.append(seq)


def _whole_state(queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the records of the state that are whole; put the others away."""
    for record, value in queue.state:
        if options.checksum and not _format.is_intact(record, value):
            key = _format.state_key(record)
            quarantine.add(queue.name, value, state=key)
            queue.damaged_state.append(key)
        else:
            yield record, value
