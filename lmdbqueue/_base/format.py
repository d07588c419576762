"""What the bytes on disk mean, and nothing else.

Owns: the format version, ``queue.json``, the names of the sub-databases and records, the keys of items, the trailer of
a payload, the seal, the weight of a record. Law: pure functions of bytes; each line of ``docs/format.md`` has its line
here. Must not know: files, transactions, LMDB.

In this order, each under a heading: numbers; names; the key of an item; the record of a queue; records of AWAY;
readers; ranges; the trailer of an item; the seal; the weight of a record; ``queue.json``.

It is one file since every program loads all of it, and each further module would cost the import of the package 1 %.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import add, itemgetter, mul
from struct import Struct
from struct import error as struct_error
from typing import Final, Literal, get_args
from zlib import crc32

from lmdbqueue._base.errors import CorruptQueueError, VersionError
from lmdbqueue._base.values import NamedTuple

VERSION: Final = 1

Durability = Literal["full", "interval", "off"]

# --- numbers: 8 bytes, big-endian, so that LMDB's order of bytes is the order of numbers

NUMBER: Final = Struct(">Q")
pack = NUMBER.pack


def unpack(data: bytes) -> int:
    """Return the number that 8 big-endian bytes represent."""
    number: int = NUMBER.unpack(data)[0]
    return number


unpack_from = NUMBER.unpack_from
_ALL: Final = (1 << 64) - 1
_NONE: Final = _ALL  # in place of a number that may be missing

# --- names inside the environment

NEXT_GENERATION: Final = b"next"  # in the unnamed database, readable before any other is open
OPTIONS: Final = b"options"  # in the unnamed database: what queue.json holds, and a checksum
META: Final = b"meta"
AWAY: Final = b"away"  # items held back: leased, delayed, dead; and notes on those that wait
LAST_TXN: Final = b"txn"  # in META
DIRECTORY: Final = b"directory"  # in META: the record shared by all queues of the directory

_NAME: Final = r"[^/\0]+"
_MAX_KEY: Final = 511  # bytes, of LMDB
_MAX_NAME: Final = 200  # bytes


def is_name(name: str) -> bool:
    """Return whether a queue or a reader may be called so."""
    return re.fullmatch(_NAME, name) is not None and _is_utf8(name) and len(name.encode()) <= _MAX_NAME


def check_name(name: str) -> str:
    """Return ``name`` if a queue may be called so, else raise ``ValueError``."""
    if not is_name(name):
        message = (
            f"the name of a queue or reader must be 1 to {_MAX_NAME} bytes of UTF-8 without '/' or NUL, not {name!r}"
        )
        raise ValueError(message)
    return name


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def record(name: str, what: str) -> bytes:
    """Return the key of something that belongs to the queue ``name``, such as its record or its items."""
    return f"{name}/{what}".encode()


def state_record(name: str, key: str) -> bytes:
    """Return the key of the record that holds the value of ``key`` in the state of the queue ``name``."""
    found = record(name, f"state/{key}")
    if len(found) > _MAX_KEY:
        room = _MAX_KEY - len(record(name, "state/"))
        message = f"a key of {len(key.encode())} bytes; this queue's state takes keys of at most {room}"
        raise ValueError(message)
    return found


def state_key(record: bytes) -> str:
    """Return the key that ``state_record`` was given."""
    return record.split(b"/", 2)[2].decode()


def has_seal(record: bytes) -> bool:
    """Return whether a record of META has a seal: records of the state, of readers and of retention do."""
    return record.split(b"/", 2)[1:2] in _WITH_SEAL


_WITH_SEAL: Final = ([b"state"], [b"reader"], [b"retain"])


def split_record(key: bytes) -> tuple[str, str]:
    """Return the name of the queue that a key belongs to, "" for none, and the kind of record."""
    try:
        name, slash, what = key.decode().partition("/")
    except UnicodeDecodeError:
        return "", ""
    return (name, what) if slash else ("", name)


def queue_of(key: bytes) -> str | None:
    """Return the name of the queue whose items are in the sub-database ``key``, None for other databases."""
    name, what = split_record(key)
    return name if name and what == "items" else None


# --- the key of an item: 1 byte priority class, 7 bytes number in that class. The order of keys is the order of
# delivery, and an item that comes back keeps its key

CLASS: Final = 128  # of items without a priority
_CLASS_BITS: Final = 56
BASE: Final = CLASS << _CLASS_BITS  # the first key of that class
KEY_SIZE: Final = 8
PRIORITIES: Final = range(-CLASS, CLASS)


def key_of(seq: int) -> bytes:
    """Return the key of the item that users know by the number ``seq``."""
    return pack(seq + BASE)


def seq_of(key: bytes) -> int:
    """Return the number by which users know the item under a key."""
    return number_of(key) - BASE


def keys_of(numbers: range) -> list[bytes]:
    """Return the keys of successive numbers.

    Most are 2^63 or more, so they are counted and packed as the negative numbers with the same bytes: those fit the
    integers of C, which takes two thirds of the time.
    """
    if numbers.start < _HALF:
        return list(map(pack, numbers))
    return list(map(_NEGATIVE.pack, range(numbers.start - 2 * _HALF, numbers.stop - 2 * _HALF)))


_HALF: Final = 1 << 63
_NEGATIVE: Final = Struct(">q")


def number_of(key: bytes) -> int:
    """Return a key as a number; a damaged key of another length counts as the number with the same first bytes."""
    return unpack(key if len(key) == KEY_SIZE else key[:KEY_SIZE].ljust(KEY_SIZE, b"\0"))


def class_of(priority: int) -> int:
    """Return the class of items with a priority."""
    return priority + CLASS


def class_of_key(key: bytes) -> int:
    """Return the class of the item under a key."""
    return key[0]


def first_of(number: int) -> int:
    """Return the first key, as a number, of the class that a key, given as a number, is in."""
    return number >> _CLASS_BITS << _CLASS_BITS


def class_record(name: str, number: int) -> bytes:
    """Return the key of the bounds of a class other than ``CLASS``."""
    return record(name, f"class/{number:03}")


def class_of_record(digits: bytes) -> int | None:
    """Return the class whose bounds are in a record with this ending, None if the ending is damaged."""
    is_sound = len(digits) == _DIGITS and digits.isdigit()
    return number if is_sound and (number := int(digits)) < 2 * CLASS else None


_DIGITS: Final = 3


class Bounds(NamedTuple):
    """The keys of a class that have an item. ``head`` and ``tail`` are keys, as numbers.

    From ``head`` to below ``tail`` all keys except ``skipped`` of them have one; below ``head`` only ``returned`` keys
    have one. The weights are sums over exactly these exceptions, so they identify them.
    """

    head: int
    tail: int
    skipped: int = 0
    skipped_weight: int = 0
    returned: int = 0
    returned_weight: int = 0

    def pack(self) -> bytes:
        """Return the record of a class."""
        return _CLASS_VERSION + _BOUNDS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Bounds:
        """Read the record of a class; raise ``ValueError`` if it is not one."""
        if len(data) <= _BOUNDS.size:
            raise ValueError(data)
        return cls(*_BOUNDS.unpack_from(data, 1))

    @classmethod
    def empty(cls, number: int) -> Bounds:
        """Return the bounds of a class that has never had an item."""
        return cls(number << _CLASS_BITS, number << _CLASS_BITS)


_BOUNDS: Final = Struct(">6Q")
_CLASS_VERSION: Final = b"\1"


# --- the record of a queue: all that a plain push or pop needs to read. Fields added by a later version stand behind
# those of this one and before the name of the serializer; programs that do not know them keep them

READERS: Final = 1  # flags: it has named readers
RETAINED: Final = 2  # it has a limit of what is retained
CLASSES: Final = 4  # it has items in other classes than CLASS, or had
SIZED: Final = 8  # the bytes of its items are counted, in the record of what is retained

FLAGS_AT: Final = 1
IDENTITY: Final = slice(4, 16)
HEAD_AT: Final = 16
TAIL_AT: Final = 24
LEASED_AT: Final = 64
TOKENS_AT: Final = 112
NOT_PLAIN: Final = slice(32, 104)  # the numbers that are all 0 if exactly the keys from head to tail have items
OUT_OF_ORDER: Final = slice(32, 64)  # those that are all 0 if items left in their order, though some are held back
NOTED: Final = slice(80, 104)  # those that are all 0 if no item has a note
NOTHING: Final = bytes(72)
_HEADER: Final = Struct(">BBBBIQ")
_NUMBERS: Final = Struct(">15Q")
_FIXED: Final = _HEADER.size + _NUMBERS.size
_QUEUE_VERSION: Final = 1


class Numbers(NamedTuple):
    """The numbers of a queue's record."""

    head: int = BASE
    tail: int = BASE
    skipped: int = 0
    skipped_weight: int = 0
    returned: int = 0
    returned_weight: int = 0
    leased: int = 0  # items
    delayed: int = 0  # items
    noted: int = 0  # notes on items that wait
    keys: int = 0  # of ``unique``
    expiring: int = 0  # items with a time of expiry, wherever they are
    dead: int = 0  # items
    tokens: int = 0  # the last token that was given to a lease
    dropped: int = 0  # items dropped by retention, ever
    expired: int = 0  # items that expired, ever

    def bounds(self) -> Bounds:
        """Return the bounds of the class ``CLASS``."""
        return Bounds(*self[:6])

    def bounded(self, bounds: Bounds) -> Numbers:
        """Return them with other bounds."""
        return self._replace(**bounds._asdict())


def new_queue(number: int, serializer: str, salt: int) -> bytes:
    """Return the record of a new queue, the ``number``-th of its directory.

    Its range of tokens differs from those of the 16 million queues created before and after it.
    """
    name = serializer.encode()
    header = _HEADER.pack(_QUEUE_VERSION, 0, len(name), _FIXED, salt, number)
    return header + _NUMBERS.pack(*Numbers(tokens=number << 40 & _ALL)) + name


def identity(queue: bytes) -> bytes:
    """Return the bytes that distinguish a queue from an earlier one of the same name."""
    return queue[IDENTITY]


def salt(queue: bytes) -> int:
    """Return the number that the checksums of a queue's items start from."""
    return int.from_bytes(queue[4:8])


def flags(queue: bytes) -> int:
    """Return the flags of a queue's record."""
    return queue[FLAGS_AT]


def with_flags(queue: bytes, now: int) -> bytes:
    """Return a queue's record with other flags."""
    return queue[:FLAGS_AT] + bytes([now]) + queue[FLAGS_AT + 1 :]


def serializer(queue: bytes) -> str:
    """Return the name of the serializer of a queue."""
    return queue[queue[3] : queue[3] + queue[2]].decode()


def numbers(queue: bytes) -> Numbers:
    """Return the numbers of a queue's record."""
    return _new(Numbers, _NUMBERS.unpack_from(queue, HEAD_AT))


def with_numbers(queue: bytes, now: Numbers) -> bytes:
    """Return a queue's record with other numbers; a number that would become negative, after damage, becomes 0."""
    try:
        packed = _NUMBERS.pack(*now)
    except struct_error:
        packed = _NUMBERS.pack(*(min(max(0, each), _ALL) for each in now))
    return queue[:HEAD_AT] + packed + queue[_FIXED:]


def is_plain(queue: bytes) -> bool:
    """Return whether its items are exactly the keys from head to tail, and nothing has to be noted when one leaves."""
    return queue[FLAGS_AT] == 0 and queue[NOT_PLAIN] == NOTHING


_new = tuple.__new__  # half of the time of a named tuple's own


class Directory(NamedTuple):
    """The record that all queues of a directory share."""

    queues: int = 0  # that were ever made

    def pack(self) -> bytes:
        """Return the record."""
        return b"\1" + pack(self.queues)

    @classmethod
    def unpack(cls, data: bytes | None) -> Directory:
        """Read the record; None: none was written yet."""
        return cls() if data is None else cls(unpack_from(data, 1)[0])


# --- records of AWAY


def away(name: str, kind: str, *parts: int | bytes) -> bytes:
    """Return the key of a record of the queue ``name`` in AWAY, made of numbers and bytes."""
    return record(name, kind + "/") + b"".join(pack(part) if isinstance(part, int) else part for part in parts)


class Note(NamedTuple):
    """The facts of an item that are stored outside of its payload."""

    attempts: int = 0  # leases of it
    due: int = 0  # ns since 1970, of a delayed item: when it can be taken again
    time: int = 0  # ns since 1970, when it last came back, or died
    expires: int = 0  # ns since 1970, when it expires, 0 for never
    unique: bytes = b""  # the digest of its key, 16 bytes or none
    reason: str = ""  # why it last came back, or died
    trace: str = ""  # the traceback of that failure

    def pack(self) -> bytes:
        """Return the bytes of the note, which stand before an item, or alone."""
        reason = _cut(self.reason, _MAX_REASON)
        trace = _cut(self.trace, _MAX_TRACE)
        sizes = len(reason), len(trace)
        return (
            NOTE.pack(1, min(self.attempts, _MOST_ATTEMPTS), self.due, self.time, self.expires, self.unique, *sizes)
            + reason
            + trace
        )

    @classmethod
    def unpack(cls, data: bytes, at: int = 0) -> tuple[Note, bytes]:
        """Return the note that begins at ``at``, and the bytes behind it."""
        _, attempts, due, time, expires, unique, reason, trace = NOTE.unpack_from(data, at)
        middle = at + NOTE.size + reason
        end = middle + trace
        texts = data[at + NOTE.size : middle].decode(errors="replace"), data[middle:end].decode(errors="replace")
        return cls(attempts, due, time, expires, unique if unique.strip(b"\0") else b"", *texts), data[end:]


def _cut(text: str, size: int) -> bytes:
    """Return at most ``size`` bytes of a text, in whole characters."""
    data = text.encode(errors="replace")
    return data if len(data) <= size else data[:size].decode(errors="ignore").encode()


NOTE: Final = Struct(">BIQQQ16sHH")
_MOST_ATTEMPTS: Final = (1 << 32) - 1  # that can be noted
_MAX_REASON: Final = 1_000  # bytes
_MAX_TRACE: Final = 8_000  # bytes


# --- readers


class Position(NamedTuple):
    """The position of a named reader."""

    passed: bytes  # key of the last item that it has passed, with all before; ``BEFORE_ALL``: none
    skipped: int  # items that left before it had passed them, less what ``skips`` has from here on, modulo 2^64
    seen: int  # ns since 1970, when it last moved

    def pack(self) -> bytes:
        """Return the record of a reader."""
        return POSITION.pack(1, self.passed, self.skipped, self.seen)

    @classmethod
    def unpack(cls, data: bytes) -> Position:
        """Read the record of a reader."""
        return cls(*POSITION.unpack_from(data)[1:])


BEFORE_ALL: Final = bytes(KEY_SIZE)
POSITION: Final = Struct(">B8sQQ")


class Retention(NamedTuple):
    """The limits up to which a queue keeps items, read or not; None: no limit of that kind."""

    items: int | None = None
    bytes: int | None = None  # of payloads
    age: int | None = None  # ns

    def pack(self, held: int) -> _Bytes:
        """Return the record; ``held``: bytes of the waiting payloads, counted if there is a limit of bytes."""
        return RETENTION.pack(1, *(_NONE if each is None else each for each in self), held)

    @classmethod
    def unpack(cls, data: _Bytes) -> tuple[Retention, int]:
        """Read the record: the limits, and the bytes of the waiting payloads."""
        *limits, held = RETENTION.unpack_from(data)[1:]
        return cls(*(None if each == _NONE else each for each in limits)), held


_Bytes = bytes  # since a field is called ``bytes``
RETENTION: Final = Struct(">B4Q")


# --- ranges of numbers: first and number after the last of each


def pack_ranges(ranges: Iterable[range]) -> bytes:
    """Return ranges as bytes."""
    return b"".join(pack(each.start) + pack(each.stop) for each in ranges)


def ranges(numbers: Iterable[int]) -> list[range]:
    """Return ascending numbers as ranges."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def unpack_ranges(data: bytes) -> list[range]:
    """Return the ranges that ``pack_ranges`` has packed."""
    numbers = [unpack(data[at : at + 8]) for at in range(0, len(data), 8)]
    return [range(start, stop) for start, stop in zip(numbers[::2], numbers[1::2], strict=True)]


# --- the trailer of an item: the time of its push, its expiry and its headers. It stands behind the
# payload, so that payloads without headers can be cut from many values at once

TRAILER: Final = 8  # bytes of one without headers
_WITH_HEADERS: Final = 1 << 63
_MOST_HEADERS: Final = 0xFFFF  # bytes
MAX_PAYLOAD: Final = 0xFFFF_FFFF - TRAILER - 4 - 4 - _MOST_HEADERS  # LMDB's largest value, less trailer and seal


class Trailer(NamedTuple):
    """The facts that are stored behind a payload."""

    pushed_at: int  # ns since 1970, when it could first be taken: at its push, or at the end of its delay
    expires: int = 0  # ns since 1970, 0 for never
    headers: Mapping[str, str] = {}

    def pack(self) -> bytes:
        """Return the trailer."""
        if not self.expires and not self.headers:
            return pack(self.pushed_at)
        parts = [pack(self.expires)]
        for text in (each for pair in self.headers.items() for each in pair):
            data = text.encode()
            parts += (len(data).to_bytes(2), data)
        block = b"".join(parts)
        if len(block) > _MOST_HEADERS:
            message = f"headers of {len(block):,} bytes; at most {_MOST_HEADERS:,} can be stored"
            raise ValueError(message)
        return block + len(block).to_bytes(4) + pack(self.pushed_at | _WITH_HEADERS)

    @classmethod
    def of(cls, body: bytes) -> tuple[Trailer, int]:
        """Split ``body``: return its trailer and the size of its payload; raise ``ValueError`` if it has no trailer."""
        if len(body) < TRAILER:
            raise ValueError(body)
        pushed_at = unpack(body[-TRAILER:])
        if pushed_at < _WITH_HEADERS:
            return cls(pushed_at), len(body) - TRAILER
        end = len(body) - TRAILER - 4
        length = int.from_bytes(body[end : end + 4])
        begin = end - length
        if begin < 0 or not TRAILER <= length <= _MOST_HEADERS:
            raise ValueError(length)
        texts = []
        at = begin + 8
        while at < end:
            size = int.from_bytes(body[at : at + 2])
            texts.append(body[at + 2 : at + 2 + size].decode())
            at += 2 + size
        headers = dict(zip(texts[::2], texts[1::2], strict=True))
        return cls(pushed_at - _WITH_HEADERS, unpack(body[begin : begin + 8]), headers), begin


# --- the seal: a CRC-32 over key and what is stored, little-endian and *behind* it, since the CRC over data and its
# own little-endian CRC is a constant: checking needs no slice. The seal of an item starts from the salt of its queue,
# so that an item of another queue never matches

_SEAL: Final = Struct("<I")
ENDS: Final = Struct("<II")  # the end of the data of a sealed record, which may be a seal, too, and the seal
SEAL_SIZE: Final = _SEAL.size
RESIDUE: Final = 0x2144DF1C


def seal(key: bytes, data: bytes, salt: int = 0) -> bytes:
    """Return the value to store under ``key``: the data and its checksum."""
    return data + _SEAL.pack(crc32(data, crc32(key, salt)))


def is_intact(key: bytes, value: bytes, salt: int = 0) -> bool:
    """Return whether a sealed value is intact, and was stored under ``key``."""
    return crc32(value, crc32(key, salt)) == RESIDUE


# seals of many values at once: ``map`` runs no Python between two of them, which halves the time


def seal_all(keys: Iterable[bytes], data: Sequence[bytes], salt: int = 0) -> tuple[list[bytes], int]:
    """Return the values to store under the keys, and their weight as items."""
    checksums = list(map(crc32, data, map(crc32, keys, repeat(salt))))
    return list(map(add, data, map(_SEAL.pack, checksums))), sum(map(mul, checksums, checksums))


def are_intact(keys: Iterable[bytes], values: Iterable[bytes], salt: int = 0) -> bool:
    """Return whether all sealed values are intact, and were stored under these keys."""
    return {RESIDUE}.issuperset(map(crc32, values, map(crc32, keys, repeat(salt))))


def bodies(values: Sequence[bytes], *, sealed: bool) -> Sequence[bytes]:
    """Return items without their seals: payloads and trailers."""
    return list(map(_WITHOUT_SEAL, values)) if sealed else values


def payloads(values: Sequence[bytes], *, sealed: bool) -> list[bytes]:
    """Return the payloads of items."""
    marks, without = _OF_SEALED if sealed else _OF_PLAIN
    if max(map(marks, values), default=0) < MARKED:
        return list(map(without, values))
    return [body[: Trailer.of(body)[1]] for body in bodies(values, sealed=sealed)]


def payload_size(value: bytes, *, sealed: bool) -> int:
    """Return the bytes of the payload of an item, without those of its headers; some number if it is damaged."""
    end = len(value) - (SEAL_SIZE + TRAILER if sealed else TRAILER)
    if end > 0 and value[end] >= MARKED:  # the first byte of a time with headers before it
        end -= 4
        end -= int.from_bytes(value[max(0, end) : end + 4])
    return max(0, end)


def has_trailer(value: bytes, *, sealed: bool) -> bool:
    """Return whether an item's value contains a trailer."""
    try:
        payloads([value], sealed=sealed)
    except (ValueError, IndexError):
        return False
    return True


_WITHOUT_SEAL: Final = itemgetter(slice(-SEAL_SIZE))
_OF_SEALED: Final = itemgetter(-SEAL_SIZE - TRAILER), itemgetter(slice(-SEAL_SIZE - TRAILER))
_OF_PLAIN: Final = itemgetter(-TRAILER), itemgetter(slice(-TRAILER))
MARKED: Final = 0x80  # the first byte of a time with headers before it


# --- the weight of a record, of which the sum stands beside the number of the last transaction (see
# _model.weighed_records). A CRC-32 alone would not do: it is linear, so equal differences would cancel out


def weigh(key: bytes, value: bytes = b"") -> int:
    """Return the weight of a record that is not sealed, or of a key."""
    crc = crc32(value, crc32(key))
    return crc * crc


def weigh_item(value: bytes) -> int:
    """Return the weight of an item: that of its seal, which is the checksum of its key, too."""
    crc: int = _SEAL.unpack_from(value, len(value) - SEAL_SIZE)[0] if len(value) >= SEAL_SIZE else 0
    return crc * crc


def weigh_sealed(value: bytes) -> int:
    """Return the weight of a sealed record: that of its seal, and that of the four bytes before it.

    The data may end in a seal of its own, as those with an item do. A CRC over data and its own CRC depends on their
    length only, so the outer seal alone would not tell one item from another.
    """
    if len(value) < ENDS.size:
        return weigh_item(value)
    inner, crc = ENDS.unpack_from(value, len(value) - ENDS.size)
    found: int = inner * inner + crc * crc
    return found


def is_sealed(is_away: bool, key: bytes) -> bool:
    """Return whether a record of META, or of AWAY, has a seal."""
    return key.split(b"/", 2)[1:2] not in INDEXES if is_away else has_seal(key)


def weigh_in(is_away: bool, key: bytes, value: bytes) -> int:
    """Return what a record of META, or of AWAY, adds to the weight of the records."""
    if key == LAST_TXN and not is_away:
        return 0
    return weigh_sealed(value) if is_sealed(is_away, key) else weigh(key, value)


INDEXES: Final = ([b"owner"], [b"expiry"], [b"expires"], [b"passed"])  # in AWAY: they have no seals


class Last(NamedTuple):
    """The record of the last transaction."""

    transaction: int
    weight: int | None = None  # of all other records of META and AWAY; None: not kept
    content: int | None = None  # of the items that the transaction added; None: the file has no final name yet

    @classmethod
    def unpack(cls, data: bytes | None) -> Last:
        """Read the record; None if there is none, or if it is damaged."""
        if data is None or len(data) not in (NUMBER.size, _TWO.size, LAST.size):
            return cls(-1)
        return cls(*struct.unpack(f">{len(data) // 8}Q", data))


def pack_last(transaction: int, weight: int | None = None, content: int | None = None) -> bytes:
    """Return the record of the last transaction, with the weight that it leaves and that of the items it added."""
    if weight is None:
        return pack(transaction)
    return _TWO.pack(transaction, weight) if content is None else LAST.pack(transaction, weight, content & _ALL)


_TWO: Final = Struct(">2Q")
LAST: Final = Struct(">3Q")


# --- queue.json


class Options(NamedTuple):
    """The options that are fixed when a queue directory is created."""

    checksum: bool = True
    durability: Durability = "full"
    uuid: str = ""  # of a directory; "" in options that were only requested

    def named(self) -> Options:
        """Return these options with a UUID, for a new directory."""
        return self._replace(uuid=os.urandom(16).hex())

    def to_json(self) -> bytes:
        """Return the content of ``queue.json``."""
        import json  # noqa: PLC0415  (as below: needed at opening, not at import)

        return json.dumps({"format": VERSION, **self._asdict()}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, path: str, text: bytes) -> Options:
        """Read the content of ``queue.json``; ``path``, the queue's directory, is for the errors."""
        import json  # noqa: PLC0415

        try:
            stored = json.loads(text)
            version = stored.pop("format")
            if isinstance(version, int) and version > VERSION:
                raise VersionError(
                    path, f"format {version}, this version reads up to {VERSION}", "upgrade lmdbqueue to open it"
                )
            options = cls(**stored)
            sound = (
                version == VERSION
                and type(version) is int
                and stored.keys() == options._asdict().keys()
                and isinstance(options.checksum, bool)
                and options.durability in get_args(Durability)
                and len(bytes.fromhex(options.uuid)) == 16  # noqa: PLR2004  (a UUID has 16 bytes)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptQueueError(path, f"queue.json cannot be read ({error})") from error
        if not sound:
            raise CorruptQueueError(path, "queue.json contains values that no version writes")
        return options
