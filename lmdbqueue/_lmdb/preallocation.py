"""Room in a file: blocks that are allocated before they are used.

Owns: how far a file is allocated, and how much is reserved for removals. Law: granted bytes can be written, and after
them the pages that removals need, no matter who fills the disk. Must not know: LMDB, what is written.

Removing needs pages, too, since LMDB never writes a page in place. So blocks are allocated in advance, and a push,
which states how much it takes, is refused before it would use the reserve that removals may need. On a full disk
consumers continue; and once they have freed enough pages within the file, so do pushes.

What consumers do besides removing makes the file grow, too, and can be repeated without end. On a full disk, notes on
items that they give back get a quarter of the reserve, leases another one, and the rest is for removals (``lend``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lmdbqueue._base.errors import Full
from lmdbqueue._host.disk import allocate, is_of_a_handler, translated

_RESERVE: Final = 64  # pages reserved for removals, and one more for each _RESERVE pages in use
_AHEAD: Final = range(64, 4097)  # pages allocated at a time: at least, at most; between them a sixteenth of the file


def reserve(pages: int) -> int:
    """Return the number of pages kept for removals in a file with this number of pages in use."""
    return _RESERVE + pages // _RESERVE


class Outgrown(Exception):
    """The map through which the file is written is too small for the bytes to be added; nothing was done."""


class Room:
    """One process's account of the room in a file, across transactions."""

    def __init__(self, path: str, page: int, largest: int, before: Callable[[], object]) -> None:
        """``page``: its size; ``largest``: the size of the map; ``before``: is called before the file grows."""
        self._path = path
        self.page = page
        self._largest = largest
        self._before = before
        self.allocated = 0  # bytes allocated by this process
        self.granted = 0  # bytes, in the transaction under way

    def grant(self, pages: int, added: int, has_free: Callable[..., bool], *of: Any) -> None:
        """Make sure that ``added`` bytes can be written to a file of this number of pages, and after that removals.

        If the file cannot grow, ``has_free(*of, bytes)`` says whether that many are free within it. Raises
        ``DiskFullError``, or ``Outgrown``.
        """
        kept = (_RESERVE + pages // _RESERVE) * self.page  # as reserve() has it
        wanted = self.granted + added + kept
        needed = pages * self.page + wanted
        if needed > self.allocated:
            try:
                self._allocate(needed, pages)
            except (Full, Outgrown):
                if not has_free(*of, wanted):
                    raise
        self.granted += added

    def lend(self, pages: int, added: int, quarters: int, free: int) -> bool:
        """Return whether ``added`` bytes can be taken from ``free`` ones, with some quarters of the reserve left."""
        if self.granted + added + reserve(pages) * quarters // 4 * self.page > free:
            return False
        self.granted += added
        return True

    def _allocate(self, needed: int, pages: int) -> None:
        self._before()
        if needed > self._largest:
            raise Outgrown(needed)
        ahead = min(max(_AHEAD.start, pages // 16), _AHEAD.stop - 1) * self.page
        with translated(self._path, "allocation"):
            try:
                allocate(self._path, min(needed + ahead, self._largest))
                self.allocated = needed + ahead
            except OSError as error:
                if is_of_a_handler(error):
                    raise
                allocate(self._path, needed)  # less is enough
                self.allocated = needed
