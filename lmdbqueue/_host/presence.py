"""Whether a directory, and the files in it that count, are still those that were opened.

Owns: what tells a file from any other, and when one look at the directory will do. Law: nothing is written once the
directory was removed, renamed or replaced. Must not know: what the files are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

from lmdbqueue._errors import GoneError

_SECOND: Final = 10**9  # ns
_TICK: Final = _SECOND // 50  # longer than a kernel takes two times for the same
_COARSEST: Final = 3 * _SECOND  # longer than a file system does that knows whole seconds only


class Presence:
    """What a directory and some files were when they were opened."""

    def __init__(self, directory: str, files: Iterable[str]) -> None:
        self._directory = directory
        self._device, self.inode = _identity(directory)
        self._files = {each: _identity(each) for each in files}
        self.since = 0  # when the directory was last changed with all of them in it, in ns since 1970

    def refuse_gone(self) -> None:
        """Raise ``GoneError`` if somebody has removed, renamed or replaced the directory, or a file in it that counts.

        Asks the path of the directory first, whose time of change tells of all that. Whoever asks for the times of a
        file lets Linux (6.13 and later) note the next write to it exactly, so asking the file itself in each
        transaction made each flush write its inode, too.
        """
        try:
            found = os.stat(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            raise GoneError(self._directory) from None
        except PermissionError:  # of a program that has given up rights since
            return
        if found.st_ctime_ns != self.since or found.st_ino != self.inode:
            self.look_at_all(found)

    def look_at_all(self, directory: os.stat_result) -> None:
        """Do as ``refuse_gone``, of a directory that may have changed."""
        if (directory.st_dev, directory.st_ino) != (self._device, self.inode):
            raise GoneError(self._directory)
        try:
            if any(_identity(path) != identity for path, identity in self._files.items()):
                raise GoneError(self._directory)
        except FileNotFoundError:
            raise GoneError(self._directory) from None
        changed = directory.st_ctime_ns
        same = _TICK if changed % _SECOND else _COARSEST  # for so long another change may have the same time
        if changed + same < time.time_ns():
            self.since = changed


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a file or a directory from any other that is there at the same time."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
