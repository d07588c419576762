"""Whether a directory, and the relevant files in it, are still those that were opened.

Owns: the identity of a file, and when it suffices to look at the directory. Law: nothing is written once the directory
was removed, renamed or replaced. Must not know: what the files are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

from lmdbqueue._base.errors import GoneError

_SECOND: Final = 10**9  # ns
_TICK: Final = _SECOND // 50  # longer than the time for which a kernel's clock shows the same value
_COARSEST: Final = 3 * _SECOND  # the same for a file system that records whole seconds only


class Presence:
    """The identities of a directory and some files when they were opened."""

    def __init__(self, directory: str, files: Iterable[str]) -> None:
        self._directory = directory
        self._device, self.inode = _identity(directory)
        self._files = {each: _identity(each) for each in files}
        self.since = 0  # when the directory was last changed with all of them in it, in ns since 1970

    def refuse_gone(self) -> None:
        """Raise ``GoneError`` if the directory, or one of these files, was removed, renamed or replaced.

        It first reads the directory's time of change, which shows all of that. Reading the times of a file makes Linux
        (6.13 and later) record the next write to it exactly, so checking the file itself in each transaction made each
        flush write its inode, too.
        """
        try:
            found = os.stat(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            raise GoneError(self._directory) from None
        except PermissionError:  # the program has given up rights since
            return
        if found.st_ctime_ns != self.since or found.st_ino != self.inode:
            self.look_at_all(found)

    def look_at_all(self, directory: os.stat_result) -> None:
        """Like ``refuse_gone``, for a directory that may have changed."""
        if (directory.st_dev, directory.st_ino) != (self._device, self.inode):
            raise GoneError(self._directory)
        try:
            if any(_identity(path) != identity for path, identity in self._files.items()):
                raise GoneError(self._directory)
        except FileNotFoundError:
            raise GoneError(self._directory) from None
        changed = directory.st_ctime_ns
        same = _TICK if changed % _SECOND else _COARSEST  # within this time, another change may get the same time
        if changed + same < time.time_ns():
            self.since = changed


def _identity(path: str) -> tuple[int, int]:
    """Return numbers that identify a file or directory among all that exist at the same time."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
