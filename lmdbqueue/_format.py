"""What the bytes on disk mean, and nothing else.

Owns: the format version, ``queue.json``, the names of the sub-databases and records, sequence numbers,
the seal of a payload and the weight of a record. Law: pure functions of bytes; whoever reads
``docs/format.md`` finds each line of it here. Must not know: files, transactions, LMDB.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from operator import add, itemgetter
from struct import Struct
from typing import Final, Literal, NamedTuple, get_args
from zlib import crc32

from lmdbqueue._errors import CorruptQueueError, VersionError

VERSION: Final = 1
MAX_PAYLOAD: Final = 0xFFFF_FFFF - 4  # LMDB's largest value, less the seal

Durability = Literal["full", "off"]

# --- numbers: 8 bytes, big-endian, so that LMDB's order of bytes is the order of numbers

_NUMBER: Final = Struct(">Q")
pack = _NUMBER.pack


def unpack(data: bytes) -> int:
    """Return the number that 8 big-endian bytes stand for."""
    number: int = _NUMBER.unpack(data)[0]
    return number


_ALL: Final = (1 << 64) - 1

# --- names inside the environment

NEXT_GENERATION: Final = b"next"  # in the unnamed database, readable before any other is open
META: Final = b"meta"
AWAY: Final = b"away"  # what is not waiting: leased, delayed, dead; and notes on what is
LAST_TXN: Final = b"txn"  # in META, as are the heads and tails

_NAME: Final = re.compile(r"[^/\0]+")
_MAX_KEY: Final = 511  # bytes, of LMDB
_MAX_NAME: Final = 200  # bytes


def check_name(name: str) -> str:
    """Return ``name`` if a queue may be called so, else raise ``ValueError``."""
    if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME:
        message = f"a queue's name is 1 to {_MAX_NAME} bytes of UTF-8 without '/' and NUL, not {name!r}"
        raise ValueError(message)
    return name


def record(name: str, what: str) -> bytes:
    """Return the key of something that belongs to the queue ``name``: its items, head or tail."""
    return f"{name}/{what}".encode()


def state_record(name: str, key: str) -> bytes:
    """Return the key of what the state of the queue ``name`` has under ``key``."""
    found = record(name, f"state/{key}")
    if len(found) > _MAX_KEY:
        room = _MAX_KEY - len(record(name, "state/"))
        message = f"a key of {len(key.encode())} bytes; this queue's state takes keys of at most {room}"
        raise ValueError(message)
    return found


def state_key(record: bytes) -> str:
    """Return what ``state_record`` was called with."""
    return record.split(b"/", 2)[2].decode()


def has_seal(record: bytes) -> bool:
    """Tell whether a record of META has a seal: a state, and what is known of readers."""
    return record.split(b"/", 2)[1:2] in _WITH_SEAL


_WITH_SEAL: Final = ([b"state"], [b"readers"], [b"retain"], [b"times"])


def split_record(key: bytes) -> tuple[str, str]:
    """Return the name of the queue that a key belongs to, "" for none, and what it is."""
    try:
        name, slash, what = key.decode().partition("/")
    except UnicodeDecodeError:
        return "", ""
    return (name, what) if slash else ("", name)


def queue_of(key: bytes) -> str | None:
    """Return the name of the queue whose items are in the sub-database ``key``, if it is such a one."""
    name, what = split_record(key)
    return name if name and what == "items" else None


# --- places: where an item waits, which is its key among the items. Its number, or, once a delay is over,
# the time that it was due at, and its number: so what was due comes before what was not, in that order (and
# before all numbers but 0: nothing of 8 bytes or more sorts before that)

_FRONT: Final = pack(0)


def place(seq: int, due: int = 0) -> bytes:
    """Return the key of the item ``seq`` among the items; ``due``: ns since 1970, 0 for one without a delay."""
    return _FRONT + pack(due) + pack(seq) if due else pack(seq)


def number(place: bytes) -> int:
    """Return the number of the item at a place."""
    return unpack(place[-8:])


def due(place: bytes) -> int:
    """Return when the item at a place was due, 0 for one without a delay."""
    return unpack(place[8:16]) if len(place) > len(_FRONT) else 0


# --- gaps: how the items that a queue has differ from all the numbers from its head to its tail


class Gaps(NamedTuple):
    """How many numbers between head and tail have no item, and which; which items came back. No record: none."""

    skipped: int = 0  # numbers from the head to below the tail without an item
    skipped_weight: int = 0  # of their places
    returned_weight: int = 0  # of the places of the items that came back

    def pack(self) -> bytes:
        """Return the record."""
        return _GAPS.pack(self.skipped, self.skipped_weight & _ALL, self.returned_weight & _ALL)

    @classmethod
    def unpack(cls, data: bytes) -> "Gaps":
        """Read the record."""
        return cls(*_GAPS.unpack(data))


_GAPS: Final = Struct(">3Q")


# --- away


class Counts(NamedTuple):
    """How much of a queue is in AWAY; a record in META, which a queue has once anything was."""

    tokens: int = 0  # leases that were ever given
    leased: int = 0  # items
    delayed: int = 0  # items
    dead: int = 0  # items
    noted: int = 0  # notes on items that wait
    unique: int = 0  # keys

    def pack(self) -> bytes:
        """Return the record."""
        return _COUNTS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "Counts":
        """Read the record."""
        return cls(*_COUNTS.unpack(data))


_COUNTS: Final = Struct(">6Q")


def away(name: str, kind: str, *parts: int | bytes) -> bytes:
    """Return the key in AWAY of what the queue ``name`` has there under numbers and bytes."""
    return record(name, kind + "/") + b"".join(pack(part) if isinstance(part, int) else part for part in parts)


class Note(NamedTuple):
    """What is known of an item beside its payload."""

    attempts: int = 0  # leases of it
    due: int = 0  # ns since 1970, of its place, or of the time that it waits for
    time: int = 0  # ns since 1970, when it last came back, or died
    unique: bytes = b""  # the digest of its key, 16 bytes or none
    reason: str = ""  # why it last came back, or died

    def pack(self) -> bytes:
        """Return what stands before the item, or alone."""
        reason = self.reason.encode(errors="replace")[:_MAX_REASON]
        return _NOTE.pack(self.attempts, self.due, self.time, self.unique, len(reason)) + reason

    @classmethod
    def unpack(cls, data: bytes) -> tuple["Note", bytes]:
        """Return a note and what stands behind it."""
        attempts, due, time, unique, length = _NOTE.unpack_from(data)
        end = _NOTE.size + length
        reason = data[_NOTE.size : end].decode(errors="replace")
        return cls(attempts, due, time, unique if unique.strip(b"\0") else b"", reason), data[end:]


_NOTE: Final = Struct(">IQQ16sH")
_MAX_REASON: Final = 1_000  # bytes


# --- readers


class Position(NamedTuple):
    """How far a named reader is."""

    passed: bytes  # place of the last item that it is through with, and with all before; b"": with none
    skipped: int  # items that left before it had passed them
    seen: int  # ns since 1970, when it last moved

    @classmethod
    def unpack_all(cls, data: bytes) -> dict[str, "Position"]:
        """Return the readers that a record has, by their names."""
        found = {}
        while data:
            skipped, seen, length, named = _POSITION.unpack_from(data)
            end = _POSITION.size + length
            found[data[end : end + named].decode()] = cls(data[_POSITION.size : end], skipped, seen)
            data = data[end + named :]
        return found

    @staticmethod
    def pack_all(readers: "dict[str, Position]") -> bytes:
        """Return the record of all readers."""
        names = ((name.encode(), each) for name, each in sorted(readers.items()))
        return b"".join(
            _POSITION.pack(each.skipped, each.seen, len(each.passed), len(name)) + each.passed + name
            for name, each in names
        )


_POSITION: Final = Struct(">QQBB")


class Retention(NamedTuple):
    """What of a queue is kept, whoever has passed it; None: no limit of that kind."""

    items: int | None = None
    bytes: int | None = None  # of the pages of its items
    age: int | None = None  # ns

    def pack(self) -> "_Bytes":
        """Return the record."""
        return _RETENTION.pack(*(_ALL if each is None else each for each in self))

    @classmethod
    def unpack(cls, data: "_Bytes") -> "Retention":
        """Read the record."""
        return cls(*(None if each == _ALL else each for each in _RETENTION.unpack(data)))


_Bytes = bytes  # which a field is called
_RETENTION: Final = Struct(">3Q")


# --- ranges of numbers: first and number after the last of each


def pack_ranges(ranges: Iterable[range]) -> bytes:
    """Return the bytes that stand for ranges."""
    return b"".join(pack(each.start) + pack(each.stop) for each in ranges)


def ranges(numbers: Iterable[int]) -> list[range]:
    """Return ranges that are made of numbers in their order."""
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


# --- the seal: a CRC-32 over key and payload, little-endian and *behind* the payload, since the CRC
# over data and its own little-endian CRC is a constant: checking needs no slice

_SEAL: Final = Struct("<I")
SEAL_SIZE: Final = _SEAL.size
_RESIDUE: Final = 0x2144DF1C


def seal(key: bytes, payload: bytes) -> bytes:
    """Return the value to store under ``key``: the payload and its checksum."""
    return payload + _SEAL.pack(crc32(payload, crc32(key)))


def is_intact(key: bytes, value: bytes) -> bool:
    """Tell whether a sealed value is what was stored under ``key``."""
    return crc32(value, crc32(key)) == _RESIDUE


# of many at once: ``map`` runs no Python between two of them, which takes half of the time


def seal_all(keys: Iterable[bytes], payloads: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the values to store under the keys."""
    return map(add, payloads, map(_SEAL.pack, map(crc32, payloads, map(crc32, keys))))


def are_intact(keys: Iterable[bytes], values: Iterable[bytes]) -> bool:
    """Tell whether sealed values are all what was stored under the keys."""
    return {_RESIDUE}.issuperset(map(crc32, values, map(crc32, keys)))


def unsealed(values: Iterable[bytes]) -> list[bytes]:
    """Return the payloads of sealed values."""
    return list(map(_WITHOUT_SEAL, values))


_WITHOUT_SEAL: Final = itemgetter(slice(-SEAL_SIZE))


# --- the weight of a record, of which the sum stands beside the number of the last transaction
# (see _model.weighed_records). A CRC-32 alone would not do: it is linear, so that differences which are alike would
# cancel each other


def weigh(key: bytes, value: bytes = b"") -> int:
    """Return the weight of a record that is not sealed, or of a place."""
    crc = crc32(value, crc32(key))
    return crc * crc


def weigh_sealed(value: bytes) -> int:
    """Return the weight of a sealed record, whose checksum is that of its key, too."""
    crc: int = _SEAL.unpack_from(value, len(value) - SEAL_SIZE)[0] if len(value) >= SEAL_SIZE else 0
    return crc * crc


def pack_last(transaction: int, weight: int | None) -> bytes:
    """Return the record of the last transaction, with the weight of all other records; None: it is not kept."""
    number = pack(transaction)
    if weight is None:
        return number
    crc = crc32(number, _LAST_TXN_CRC)
    return number + pack((weight + crc * crc) & _ALL)


def unpack_last(data: bytes) -> tuple[int, int | None]:
    """Return the last transaction, and the weight of all other records: None where it is not written down."""
    number = data[:8]
    weight = (unpack(data[8:]) - weigh(LAST_TXN, number)) & _ALL if len(data) > len(number) else None
    return unpack(number), weight


_LAST_TXN_CRC: Final = crc32(LAST_TXN)


# --- queue.json


class Options(NamedTuple):
    """What is fixed when a queue directory is created."""

    checksum: bool = True
    durability: Durability = "full"
    uuid: str = ""  # of a directory; none of options that are only wanted

    def to_json(self) -> bytes:
        """Return the content of ``queue.json``, with a new UUID if there is none."""
        import json  # noqa: PLC0415  (as below: for who opens a queue, not for who imports)

        options = self._replace(uuid=self.uuid or os.urandom(16).hex())
        return json.dumps({"format": VERSION, **options._asdict()}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, path: str, text: bytes) -> "Options":
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
            raise CorruptQueueError(path, "queue.json holds values that no version has written")
        return options
