"""Which other users may write to a queue's directory, and whether this process may.

Owns: the meaning of a file's owner and mode. Law: it only reads and warns. Must not know: what is in the files.
"""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import suppress
from typing import Final

from lmdbqueue._base.errors import AccessError

_CALLER: Final = 6  # frames up to the caller that opens the queue


def warn_of_strangers(path: str) -> None:
    """Warn if other users may write the files that are read here; by default once for each directory."""
    if not (found := strange(path)):
        return
    message = f"{path!r} {found}, who can run code here through pickle: chmod 700 it, or use loads=json.loads"
    warnings.warn(message, RuntimeWarning, stacklevel=_CALLER)


def strange(path: str) -> str:
    """Return why users other than this one and root may write to a file or directory, "" if they may not."""
    status = os.stat(path)
    if status.st_uid not in (os.geteuid(), 0):
        return f"is owned by user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by other users (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def strange_in(path: str) -> str:
    """Return why others may have written to the queue directory at ``path``, "" if they cannot have."""
    for each in (path, *sorted(entry.path for entry in os.scandir(path))):
        with suppress(FileNotFoundError):  # removed meanwhile, like owners' files and drafts
            if found := strange(each):
                return f"{each!r} {found}"
    return ""


def refuse_read_only(path: str) -> None:
    """Raise ``AccessError`` unless this process may write to a directory."""
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise AccessError(path, "its directory is not writable")
