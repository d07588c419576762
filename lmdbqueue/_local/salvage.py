"""What can be saved of a damaged file: a new one with every item that is whole.

Owns: what is kept, what goes to quarantine, what is lost. Law: nothing is thrown away that could be
read: an item whose checksum does not fit, or that stands behind the tail, is kept as it was found, beside the
queue; the old file is not changed. Must not know: how the new file takes the place of the old one.

LMDB does not see the damaged file, since it trusts what it maps: the trees are walked as bytes
(``_lmdb.raw_pages``), and what hangs on a page that does not fit is lost. Without a checksum every item that has
a sound page around it is taken for whole.

What was leased waits again in its place, with its attempts: the lists of leases may be damaged, and an item that
is delivered twice is better than one that never comes back. Who holds such a lease finds it expired.
"""

import os
from collections.abc import Iterator
from heapq import merge
from itertools import chain, groupby
from typing import Final

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._format import Counts, Gaps, Note
from lmdbqueue._host.disk import open_private, sync_directory, sync_file
from lmdbqueue._lmdb import generation, meta_page
from lmdbqueue._lmdb.raw_pages import NO_ROOT, Node, Pages, root_of
from lmdbqueue._model.lease_records import Contents, read

_NUMBER: Final = 8  # bytes
_DATABASE: Final = 48  # bytes of its record
_NAMED: Final = 10  # numbers that a sentence names


def _gaps(data: bytes) -> Gaps:
    return Gaps.unpack(data) if len(data) == len(Gaps().pack()) else Gaps()


class Quarantine:
    """A file of JSON lines, one for each damaged item or part of the state, with what stood there in base64."""

    def __init__(self, directory: str) -> None:
        """``directory``: that of the queue; the file comes beside it."""
        self.path = directory + ".quarantine"
        self._directory = directory

    def add(self, queue: str, value: bytes, **place: object) -> None:
        """Put there, durably, what stood at ``seq`` among the items, as ``state``, or in another ``record``."""
        import base64  # noqa: PLC0415  (for who repairs, not for who imports)
        import json  # noqa: PLC0415

        line = json.dumps({"queue": queue, **place, "value": base64.b64encode(value).decode()}) + "\n"
        fd = open_private(self.path, os.O_WRONLY | os.O_APPEND, beside=self._directory)
        try:
            os.write(fd, line.encode())
            sync_file(fd)
        finally:
            os.close(fd)
        sync_directory(os.path.dirname(self.path))


class _Queue:
    """One queue while it is being saved."""

    def __init__(self, name: str, root: int, records: dict[bytes, bytes], away: Contents) -> None:
        def number(what: str) -> int | None:
            data = records.get(_format.record(name, what), b"")
            return _format.unpack(data) if len(data) == _NUMBER else None

        prefix = _format.record(name, "")
        self.name = name
        self.root = root
        self.head = number("head")
        self.tail = number("tail")
        self.gaps = _gaps(records.get(_format.record(name, "gaps"), b""))
        for lost in _format.unpack_ranges(records.get(_format.record(name, "missing"), b"")):  # before leases
            self.head = max(self.head or 0, lost.stop)
        counts = records.get(_format.record(name, "away"))
        self.counts = Counts() if counts is None else Counts.unpack(counts)
        self.away = away
        self.notes = away.notes | {seq: record.note for seq, record in away.leased.items()}
        self.with_seal = [each for each in records.items() if each[0].startswith(prefix) and _format.has_seal(each[0])]
        self.damaged: list[int] = []
        self.damaged_records: list[str] = []
        self.noted: dict[int, Note] = {}  # of items that are kept
        self.first: int | None = None  # number that is kept in its own place
        self.in_order = 0  # items that are kept from the head on
        self.weight = 0  # of all places that are kept
        self.weight_in_order = 0
        self.next = 0

    def keep(self, place: bytes) -> None:
        """Note that the item at a place is kept; they come in order."""
        seq = _format.number(place)
        weight = _format.weigh(place)
        self.weight += weight
        if len(place) == _NUMBER:
            self.first = seq if self.first is None else self.first
            if self.head is None or seq >= self.head:
                self.in_order += 1
                self.weight_in_order += weight
            self.next = seq + 1
        note = self.notes.get(seq)
        if note is not None and _format.place(seq, note.due) == place:
            self.noted[seq] = note

    def items(self, pages: Pages) -> Iterator[Node]:
        """Yield what stands among the items, and what was leased, in the order of their places."""
        leased = sorted((_format.place(seq, each.note.due), each.value) for seq, each in self.away.leased.items())
        before = None
        for place, value in merge(pages.nodes(self.root), leased):
            if place != before:
                yield place, value
            before = place

    def bounds(self) -> tuple[int, int]:
        """Return head and tail, as far as they can be told."""
        away = max((*self.away.delayed, *self.away.dead, -1)) + 1
        tail = max(self.next, away) if self.tail is None else max(self.tail, self.next)
        if self.head is not None:
            return min(self.head, tail), tail
        return tail if self.first is None else self.first, tail

    def records(self, with_seal: Iterator[Node]) -> list[Node]:
        """Return the records of the queue in the new file, in the order of their keys, with those that have a seal."""
        head, tail = self.bounds()
        gaps = Gaps(returned_weight=self.weight - self.weight_in_order)
        if self.in_order != tail - head:  # numbers are missing, perhaps very many: all items come back
            head, gaps = tail, Gaps(returned_weight=self.weight)
        away = self.away._replace(leased={}, notes=self.noted, keys=self.keys())
        counts = away.counts(self.counts.tokens)
        found = {"head": _format.pack(head), "tail": _format.pack(tail)}
        if any(gaps):
            found["gaps"] = gaps.pack()
        if any(counts):
            found["away"] = counts.pack()
        return sorted([*((_format.record(self.name, what), data) for what, data in found.items()), *with_seal])

    def keys(self) -> dict[bytes, int]:
        """Return the unique keys of what is kept."""
        notes = [*self.noted.items(), *((seq, each.note) for seq, each in self.away.delayed.items())]
        return {note.unique: seq for seq, note in notes if note.unique}

    def records_away(self, *, sealed: bool) -> Iterator[Node]:
        """Yield what does not wait, in the order of the keys."""
        found = {_format.away(self.name, "unique", key): _format.pack(seq) for key, seq in self.keys().items()}
        found |= {_format.away(self.name, "note", seq): note.pack() for seq, note in self.noted.items()}
        found |= {
            _format.away(self.name, "dead", seq): each.note.pack() + each.value for seq, each in self.away.dead.items()
        }
        found |= {
            _format.away(self.name, "delayed", each.note.due, seq): each.note.pack() + each.value
            for seq, each in self.away.delayed.items()
        }
        for key, data in sorted(found.items()):
            yield key, _format.seal(key, data) if sealed else data

    def sentences(self, quarantine: str) -> Iterator[str]:
        """Yield what became of items that are not in the new file."""
        if self.damaged:
            numbers = ", ".join(map(str, self.damaged[:_NAMED])) + ", ..." * (len(self.damaged) > _NAMED)
            yield f"queue {self.name!r}: {len(self.damaged)} damaged items are now in {quarantine!r}: {numbers}"
        if self.damaged_records:
            keys = ", ".join(self.damaged_records[:_NAMED]) + ", ..." * (len(self.damaged_records) > _NAMED)
            yield f"queue {self.name!r}: damaged records are now in {quarantine!r}: {keys}"
        head, tail = self.bounds()
        expected = tail - head - self.gaps.skipped + self.counts.leased + self.counts.delayed + self.counts.dead
        found = self.in_order + len(self.away.leased) + len(self.away.delayed) + len(self.away.dead)
        in_quarantine = len(self.damaged) + sum("/lea" in each or "/de" in each for each in self.damaged_records)
        if (lost := expected - found - in_quarantine) > 0:
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
        newest = meta_page.best(path)
        pages = Pages(fd, newest.page_size)
        queues = _queues(path, pages, newest.main.root, sealed=options.checksum)

        def contents() -> Iterator[tuple[bytes, Iterator[Node]]]:
            for queue in queues:
                yield _format.record(queue.name, "items"), _whole(pages, queue, options, quarantine)
                _put_away(pages, queue, newest.main.root, quarantine)
            yield _format.AWAY, chain.from_iterable(queue.records_away(sealed=options.checksum) for queue in queues)
            records = (queue.records(_whole_records(queue, options, quarantine)) for queue in queues)
            yield _format.META, chain.from_iterable(records)

        generation.build(draft, contents())
    finally:
        os.close(fd)
    fd = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    return [sentence for queue in queues for sentence in queue.sentences(quarantine.path)]


def _queues(path: str, pages: Pages, root: int, *, sealed: bool) -> list[_Queue]:
    """Return the queues that are known of, in the order of their records."""
    roots = _roots(pages, root)
    records = dict(pages.nodes(roots.get(_format.META, NO_ROOT)))
    away = {name: list(each) for name, each in groupby(_records_away(pages, root), lambda node: _name(node[0]))}
    names = {name for key in (*roots, *records) if (name := _name(key))}
    if not names:
        raise CorruptQueueError(path, "no queue can be found in it")

    def queue(name: str) -> _Queue:
        items = roots.get(_format.record(name, "items"), NO_ROOT)
        return _Queue(name, items, records, read(name, away.get(name, ()), sealed=sealed))

    return [queue(name) for name in sorted(names, key=lambda name: _format.record(name, ""))]


def _roots(pages: Pages, root: int) -> dict[bytes, int]:
    return {key: root_of(data) for key, data in pages.nodes(root) if len(data) == _DATABASE}


def _records_away(pages: Pages, root: int) -> Iterator[Node]:
    return pages.nodes(_roots(pages, root).get(_format.AWAY, NO_ROOT))


def _name(key: bytes) -> str:
    """Return the name of the queue that a record belongs to, whatever stands behind it, "" for none."""
    name, slash, _ = key.partition(b"/")
    return name.decode(errors="replace") if slash else ""


def _whole(pages: Pages, queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the items that are whole; put the others away."""
    before = b""
    end = 1 << 64 if queue.tail is None else queue.tail
    for place, value in queue.items(pages):
        seq = int.from_bytes(place[-_NUMBER:])
        is_place = place == _format.place(seq, _format.due(place)) if len(place) >= _NUMBER else False
        is_whole = is_place and (not options.checksum or _format.is_intact(place[-_NUMBER:], value))
        if is_whole and seq < end and place > before:
            before = place
            queue.keep(place)
            yield place, value
        else:
            quarantine.add(queue.name, value, seq=seq)
            queue.damaged.append(seq)


def _put_away(pages: Pages, queue: _Queue, root: int, quarantine: Quarantine) -> None:
    """Put the damaged records of what does not wait to the quarantine."""
    damaged = set(queue.away.damaged)
    for key, value in _records_away(pages, root) if damaged else ():
        if key in damaged:
            record = key.decode(errors="backslashreplace")
            quarantine.add(queue.name, value, record=record)
            queue.damaged_records.append(repr(record))


def _whole_records(queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the records with a seal that are whole, of the state and of readers; put the others away."""
    for record, value in queue.with_seal:
        if options.checksum and not _format.is_intact(record, value):
            _, what = _format.split_record(record)
            kind, _, key = what.partition("/")
            quarantine.add(queue.name, value, **({"state": key} if key else {"record": record.decode()}))
            queue.damaged_records.append(f"the {kind} {key!r}" if key else f"the record of {kind}")
        else:
            yield record, value
