"""Saving a damaged file: a new one with every intact item.

Owns: what is kept, what goes to quarantine, what is lost. Law: nothing readable is thrown away: an item whose checksum
does not match, or that is behind the tail, is kept as found, beside the queue; the old file is not changed. Must not
know: how the new file takes the place of the old one.

LMDB does not open the damaged file, since it trusts what it maps: the trees are walked as bytes (``_lmdb.raw_pages``),
and everything below an invalid page is lost. Without checksums every item on a sound page is considered intact.

Leased items wait again in their places, with their attempts: the lists of leases may be damaged, and an item that is
delivered twice is better than one that never comes back. Holders of such leases find them expired.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import merge
from itertools import chain, groupby, islice
from typing import Final
from zlib import crc32

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError, ForkError
from lmdbqueue._base.format import SEAL_SIZE, Bounds, Note, Numbers, Position, Retention
from lmdbqueue._host import fork
from lmdbqueue._host.disk import append, open_private, sync_directory, sync_file
from lmdbqueue._lmdb import meta_page, opening
from lmdbqueue._lmdb.raw_pages import NO_ROOT, Node, Pages, root_of
from lmdbqueue._model.lease_records import Contents, read

_NUMBER: Final = 8  # bytes
_DATABASE: Final = 48  # bytes of its record
_ALL: Final = (1 << 64) - 1
_SHORT: Final = 1_000  # the largest size, in bytes, of items from which a salt is computed
_SAMPLE: Final = 64  # the number of such items
_ONES: Final = 0xFFFF_FFFF
_NAMED: Final = 10  # the most numbers in a sentence


class Quarantine:
    """A file of JSON lines, one for each damaged item or part of the state, with its bytes in base64."""

    def __init__(self, directory: str) -> None:
        """``directory``: the queue's directory; the file is created beside it."""
        self.path = directory + ".quarantine"
        self._directory = directory

    def add(self, queue: str, value: bytes, **place: object) -> None:
        """Store durably the bytes found at ``seq`` among the items, as ``state``, or in another ``record``."""
        import base64  # noqa: PLC0415  (only for repairs)
        import json  # noqa: PLC0415

        line = json.dumps({"queue": queue, **place, "value": base64.b64encode(value).decode()}) + "\n"
        fd = open_private(self.path, os.O_RDWR | os.O_APPEND, beside=self._directory)
        try:
            append(fd, line.encode())
            sync_file(fd)
        finally:
            os.close(fd)
        sync_directory(os.path.dirname(self.path))


class _Queue:
    """One queue while it is being saved."""

    def __init__(self, name: str, root: int, records: dict[bytes, bytes], away: Contents, *, sealed: bool) -> None:
        prefix = _format.record(name, "")
        self.name = name
        self.root = root
        self.record = _sound(records.get(_format.record(name, "queue"), b""))
        self.number = 0  # in its directory, if the record was lost
        self.numbers = Numbers() if self.record is None else _format.numbers(self.record)
        self.away = away
        self.notes = away.notes | {key: each.note for key, each in away.leased.items()}
        self.with_seal = [each for each in records.items() if each[0].startswith(prefix) and _format.has_seal(each[0])]
        self.noted_bounds = _bounds(name, records, self.numbers, has_record=self.record is not None)
        self.damaged: list[int] = []
        self.damaged_records: list[str] = []
        self.noted: dict[bytes, Note] = {}  # notes on items that are kept
        self.kept: dict[int, _Kept] = {}  # by class
        self.size = 0  # bytes of the payloads that are kept
        self.sealed = sealed
        self.salt = None if self.record is None else _format.salt(self.record)  # None: lost

    def find_salt(self, pages: Pages) -> None:
        """If the salt was lost, find the one with which most of some short items are intact."""
        if self.salt is None:
            some = islice((node for node in pages.nodes(self.root) if len(node[1]) < _SHORT), _SAMPLE)
            asked = Counter(_salt_of(*node) for node in some if len(node[1]) >= SEAL_SIZE)
            self.salt = asked.most_common(1)[0][0] if asked else None

    def keep(self, key: bytes, value: bytes) -> None:
        """Note that the item under a key is kept; they come in order."""
        number = _format.class_of_key(key)
        self.kept.setdefault(number, _Kept(self.noted_bounds.get(number))).add(key)
        self.size += _format.payload_size(value, sealed=self.sealed)
        if key in self.notes:
            self.noted[key] = self.notes[key]._replace(due=0)

    def items(self, pages: Pages) -> Iterator[Node]:
        """Yield the waiting and the leased items, in the order of their keys."""
        leased = sorted((key, each.value) for key, each in self.away.leased.items())
        before = None
        for key, value in merge(pages.nodes(self.root), leased):
            if key != before:
                yield key, value
            before = key

    def bounds(self) -> dict[int, Bounds]:
        """Return the bounds of all classes in the new file."""
        away: dict[int, int] = {}
        for key in (*self.away.delayed, *self.away.dead):
            number = _format.class_of_key(key)
            away[number] = max(away.get(number, 0), _format.unpack(key) + 1)
        classes = {_format.CLASS, *self.kept, *self.noted_bounds, *away}
        return {
            number: self.kept.get(number, _Kept(self.noted_bounds.get(number))).bounds(number, away.get(number, 0))
            for number in classes
        }

    def tail_of(self, key: bytes) -> int:
        """Return the key, as a number, below which items of that class must be."""
        noted = self.noted_bounds.get(_format.class_of_key(key))
        return 1 << 64 if noted is None else noted.tail

    def records(self, with_seal: Iterator[Node]) -> list[Node]:
        """Return the records of the queue in the new file, in the order of their keys, with those that have a seal."""
        sealed = [self._weighed_anew(each) for each in with_seal]
        names = [record for record, _ in sealed]
        readers = any(record.split(b"/", 2)[1] == b"reader" for record in names)
        retained = _format.record(self.name, "retain") in names
        bounds = self.bounds()
        others = {number: each for number, each in bounds.items() if number != _format.CLASS}
        keys = self.keys()
        numbers = self.numbers.bounded(bounds[_format.CLASS])._replace(
            leased=0,
            delayed=len(self.away.delayed),
            noted=len(self.noted),
            keys=len(keys),
            expiring=len(self.expires()),
            dead=len(self.away.dead),
        )
        record = self.record or _format.new_queue(self.number, "", self.salt or 0)
        flags = _format.flags(record) & _format.SIZED if retained else 0
        flags |= _format.READERS * readers | _format.RETAINED * retained | _format.CLASSES * bool(others)
        found = {_format.record(self.name, "queue"): _format.with_flags(_format.with_numbers(record, numbers), flags)}
        found |= {_format.class_record(self.name, number): each.pack() for number, each in others.items()}
        return sorted([*found.items(), *sealed])

    def _weighed_anew(self, record: Node) -> Node:
        """Return a sealed record; in that of retention, count the bytes that are kept."""
        key, value = record
        if key != _format.record(self.name, "retain"):
            return record
        data = Retention.unpack(value)[0].pack(self.size)
        return key, _format.seal(key, data) if len(value) > len(data) else data

    def keys(self) -> dict[bytes, tuple[bytes, int]]:
        """Return the unique keys of kept items, with the items' keys and due times."""
        notes = [*self.noted.items(), *((key, each.note) for key, each in self.away.delayed.items())]
        return {note.unique: (key, note.due) for key, note in notes if note.unique}

    def expires(self) -> dict[tuple[int, bytes], int]:
        """Return the times at which kept items expire, with their due times."""
        notes = [*self.noted.items(), *((key, each.note) for key, each in self.away.delayed.items())]
        return {(note.expires, key): note.due for key, note in notes if note.expires}

    def records_away(self, readers: Iterable[tuple[str, bytes]], *, sealed: bool) -> Iterator[Node]:
        """Yield items held back, notes and indexes, in the order of the keys; ``readers``: their names and records."""
        name = self.name
        found = {_format.away(name, "unique", d): key + _format.pack(due) for d, (key, due) in self.keys().items()}
        found |= {_format.away(name, "note", key): note.pack() for key, note in self.noted.items()}
        found |= {_format.away(name, "skips", passed): _format.pack(n) for passed, n in self.away.skips.items()}
        found |= {
            _format.away(name, "dead", key): each.note.pack() + each.value for key, each in self.away.dead.items()
        }
        found |= {
            _format.away(name, "delayed", each.note.due, key): each.note.pack() + each.value
            for key, each in self.away.delayed.items()
        }
        whole = {key: _format.seal(key, data) if sealed else data for key, data in found.items()}
        whole |= {_format.away(name, "expires", *each): _format.pack(due) for each, due in self.expires().items()}
        whole |= {
            _format.away(name, "passed", Position.unpack(data).passed, each.encode()): b"" for each, data in readers
        }
        yield from sorted(whole.items())

    def sentences(self, quarantine: str) -> Iterator[str]:
        """Yield a sentence about each kind of item that is not in the new file."""
        if self.damaged:
            numbers = ", ".join(map(str, self.damaged[:_NAMED])) + ", ..." * (len(self.damaged) > _NAMED)
            what = "damaged item is" if len(self.damaged) == 1 else "damaged items are"
            yield f"queue {self.name!r}: {len(self.damaged)} {what} now in {quarantine!r}: {numbers}"
        if self.damaged_records:
            keys = ", ".join(self.damaged_records[:_NAMED]) + ", ..." * (len(self.damaged_records) > _NAMED)
            yield f"queue {self.name!r}: damaged records are now in {quarantine!r}: {keys}"
        there = [each.tail - each.head - each.skipped + each.returned for each in self.noted_bounds.values()]
        expected = sum(there) + self.numbers.leased + self.numbers.delayed + self.numbers.dead
        found = sum(each.items for each in self.kept.values()) + len(self.away.delayed) + len(self.away.dead)
        in_quarantine = len(self.damaged) + sum("/lea" in each or "/de" in each for each in self.damaged_records)
        if (lost := expected - found - in_quarantine) > 0:
            what = "item could not be read and is" if lost == 1 else "items could not be read and are"
            yield f"queue {self.name!r}: {lost} {what} lost"
        if self.record is None:
            yield f"queue {self.name!r}: its record was lost: items that had left may have come back"


class _Kept:
    """The items of a class that are kept."""

    def __init__(self, noted: Bounds | None) -> None:
        self.noted = noted
        self.items = 0
        self.last = -1
        self.first = -1
        self.before = 0  # items before the head
        self.weight = 0
        self.weight_before = 0

    def add(self, key: bytes) -> None:
        """Keep an item; they come in order."""
        number, weight = _format.unpack(key), _format.weigh(key)
        self.first = number if self.first < 0 else self.first
        self.last = number
        self.items += 1
        self.weight += weight
        if self.noted is not None and number < self.noted.head:
            self.before += 1
            self.weight_before += weight

    def bounds(self, number: int, least_tail: int) -> Bounds:
        """Return bounds that fit the kept items. If keys are missing, all items count as having come back."""
        noted = self.noted or Bounds.empty(number)
        tail = max(noted.tail, self.last + 1, least_tail)
        head = noted.head if self.noted is not None or self.first < 0 else self.first
        if self.items - self.before == tail - head:
            return Bounds(head, tail, returned=self.before, returned_weight=self.weight_before & _ALL)
        return Bounds(tail, tail, returned=self.items, returned_weight=self.weight & _ALL)


def _sound(record: bytes) -> bytes | None:
    """Return the record of a queue, None if it is not one."""
    with suppress(IndexError, struct.error, UnicodeDecodeError):
        numbers = _format.numbers(record)
        _format.serializer(record)
        if record[0] == 1 and numbers.head <= numbers.tail:
            return record
    return None


def _bounds(name: str, records: dict[bytes, bytes], numbers: Numbers, *, has_record: bool) -> dict[int, Bounds]:
    """Return the recorded bounds of the classes."""
    found = {_format.CLASS: numbers.bounds()} if has_record else {}
    prefix = _format.record(name, "class/")
    for key, data in records.items():
        if key.startswith(prefix):
            number = _format.class_of_record(key[len(prefix) :])
            with suppress(ValueError):
                if number is not None:
                    found[number] = Bounds.unpack(data)
    return found


def rebuild(path: str, draft: str, options: _format.Options, quarantine: Quarantine) -> list[str]:
    """Write the intact parts of the file at ``path`` to ``draft``, durably except its name; return what is missing.

    No process may write to the file meanwhile. Raises ``CorruptQueueError`` if nothing can be read at all.
    """
    for name in (draft, draft + "-lock"):
        if os.path.exists(name):
            if fork.amid.life not in (None, fork.life):
                raise ForkError(os.path.dirname(path))
            os.unlink(name)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        newest = meta_page.best(path)
        pages = Pages(fd, newest.page_size)
        queues = _queues(path, pages, newest.main.root, sealed=options.checksum)
        for queue in queues if options.checksum else ():
            queue.find_salt(pages)
        made = max(_number_of(queue.record) for queue in queues)
        for queue in queues:
            made += queue.record is None
            queue.number = made

        def contents() -> Iterator[tuple[bytes, Iterator[Node]]]:
            for queue in queues:
                yield _format.record(queue.name, "items"), _whole(pages, queue, options, quarantine)
                _put_away(pages, queue, newest.main.root, quarantine)
            whole = {queue.name: list(_whole_records(queue, options, quarantine)) for queue in queues}
            readers = {
                name: [(each[0].split(b"/", 2)[2].decode(), each[1]) for each in some if b"/reader/" in each[0]]
                for name, some in whole.items()
            }
            sealed = options.checksum
            yield (
                _format.AWAY,
                chain.from_iterable(queue.records_away(readers[queue.name], sealed=sealed) for queue in queues),
            )
            shared = [(_format.DIRECTORY, _format.Directory(made).pack())]
            records = merge(shared, *(queue.records(iter(whole[queue.name])) for queue in queues))
            yield _format.META, records

        opening.build(draft, options, contents(), os.path.getsize(path))
    finally:
        os.close(fd)
    fd = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    return [sentence for queue in queues for sentence in queue.sentences(quarantine.path)]


def _queues(path: str, pages: Pages, root: int, *, sealed: bool) -> list[_Queue]:
    """Return the queues that can be found, in the order of their records."""
    roots = _roots(pages, root)
    records = dict(pages.nodes(roots.get(_format.META, NO_ROOT)))
    away = {name: list(each) for name, each in groupby(_records_away(pages, root), lambda node: _name(node[0]))}
    names = {name for key in (*roots, *records) if (name := _name(key))}
    if not names:
        raise CorruptQueueError(path, "it contains no recognizable queue")

    def queue(name: str) -> _Queue:
        items = roots.get(_format.record(name, "items"), NO_ROOT)
        return _Queue(name, items, records, read(name, away.get(name, ()), sealed=sealed), sealed=sealed)

    return [queue(name) for name in sorted(names, key=lambda name: _format.record(name, ""))]


def _roots(pages: Pages, root: int) -> dict[bytes, int]:
    return {key: root_of(data) for key, data in pages.nodes(root) if len(data) == _DATABASE}


def _records_away(pages: Pages, root: int) -> Iterator[Node]:
    return pages.nodes(_roots(pages, root).get(_format.AWAY, NO_ROOT))


def _number_of(record: bytes | None) -> int:
    """Return the number of a queue in its directory."""
    return 0 if record is None else int.from_bytes(_format.identity(record)[4:])


def _name(key: bytes) -> str:
    """Return the name of the queue that a record belongs to, "" for none."""
    name, slash, _ = key.partition(b"/")
    return name.decode(errors="replace") if slash else ""


def _whole(pages: Pages, queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the intact items; put the others into quarantine."""
    before = b""
    for key, value in queue.items(pages):
        is_key = len(key) == _NUMBER and _format.unpack(key) < queue.tail_of(key)
        salt = queue.salt
        is_whole = is_key and (not options.checksum or (salt is not None and _format.is_intact(key, value, salt)))
        if is_whole and key > before:
            before = key
            queue.keep(key, value)
            yield key, value
        else:
            seq = int.from_bytes(key[-_NUMBER:]) - _format.BASE
            quarantine.add(queue.name, value, seq=seq)
            queue.damaged.append(seq)


def _put_away(pages: Pages, queue: _Queue, root: int, quarantine: Quarantine) -> None:
    """Put damaged records of items that are not waiting into quarantine."""
    damaged = set(queue.away.damaged)
    for key, value in _records_away(pages, root) if damaged else ():
        if key in damaged:
            record = key.decode(errors="backslashreplace")
            quarantine.add(queue.name, value, record=record)
            queue.damaged_records.append(repr(record))


def _whole_records(queue: _Queue, options: _format.Options, quarantine: Quarantine) -> Iterator[Node]:
    """Yield the intact sealed records of the state and of readers; put the others into quarantine."""
    for record, value in queue.with_seal:
        least = {b"reader": _format.POSITION.size, b"retain": _format.RETENTION.size}.get(record.split(b"/", 2)[1], 0)
        if len(value) < least or (options.checksum and not _format.is_intact(record, value)):
            _, what = _format.split_record(record)
            kind, _, key = what.partition("/")
            quarantine.add(queue.name, value, **({"state": key} if key else {"record": record.decode()}))
            queue.damaged_records.append(f"the {kind} {key!r}" if key else f"the record of {kind}")
        else:
            yield record, value


def _salt_of(key: bytes, value: bytes) -> int:
    """Return the only salt with which a value is intact, by running its checksum backwards over value and key."""
    table = [crc32(bytes([each ^ 0xFF]), 0) ^ 0xFF00_0000 for each in range(256)]
    index = {each >> 24: number for number, each in enumerate(table)}
    state = int.from_bytes(value[-SEAL_SIZE:], "little") ^ _ONES
    for byte in reversed(key + value[:-SEAL_SIZE]):
        number = index[state >> 24]
        state = ((state ^ table[number]) << 8 | number ^ byte) & _ONES
    return state ^ _ONES
