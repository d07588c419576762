"""Where an item waits, as the bytes that an engine hands out as its key.

Owns: those bytes. Law: their order is that of delivery. Must not know: SQL.
"""

from typing import Final

from lmdbqueue._format import pack, unpack

_FRONT: Final = pack(0)


def place(seq: int, due: int = 0) -> bytes:
    """Return the key of the item ``seq``; ``due``: ns since 1970, 0 for one without a delay."""
    return _FRONT + pack(due) + pack(seq) if due else pack(seq)


def number(place: bytes) -> int:
    """Return the number of the item at a place."""
    return unpack(place[-8:])


def due(place: bytes) -> int:
    """Return when the item at a place was due, 0 for one without a delay."""
    return unpack(place[8:16]) if len(place) > len(_FRONT) else 0
