"""Room in a file: blocks that it has before they are used.

Owns: how far a file is allocated, and how much is kept for removals. Law: what was granted can be written, and so can
what removals need after that, whoever fills the disk. Must not know: LMDB, what is written.

Removing needs pages too, since LMDB writes no page in place. So blocks are allocated ahead of what is used, and a
push, which says how much it takes, is refused before it would use up the reserve that removals may need. On a full
disk consumers go on; and when they have made free pages enough within the file, pushes do, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lmdbqueue._errors import Full
from lmdbqueue._host.disk import allocate, is_of_a_handler, translated

_RESERVE: Final = 64  # pages that removals may need at the least, and one more for each _RESERVE in use
_AHEAD: Final = range(64, 4097)  # pages allocated at a time: at least, at most; between them a sixteenth of the file


def reserve(pages: int) -> int:
    """Return the number of pages kept for removals in a file with this number of pages in use."""
    return _RESERVE + pages // _RESERVE


class Outgrown(Exception):
    """The map through which the file is written is too small for the bytes to be added; nothing was done."""


class Room:
    """What one process knows of the room in a file, in one transaction after the other."""

    def __init__(self, path: str, page: int, largest: int, before: Callable[[], object]) -> None:
        """``page``: bytes of one; ``largest``: bytes that the map has; ``before``: what is tried before it grows."""
        self._path = path
        self.page = page
        self._largest = largest
        self._before = before
        self.allocated = 0  # bytes, as far as this process has seen to it
        self.granted = 0  # bytes, in the transaction under way

    def grant(self, pages: int, added: int, has_free: Callable[..., bool], *of: Any) -> None:
        """Make sure that ``added`` bytes can be written to a file of this number of pages, and after that removals.

        Where it cannot grow, ``has_free(*of, bytes)`` returns whether they are free within it. Raises
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
                allocate(self._path, needed)  # less will do
                self.allocated = needed
