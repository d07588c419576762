"""Opening relative to a directory that is open, and closing at once.

Owns: how a name in a queue's directory is opened, so that a directory which took its place is never written to. Law: a
descriptor of a directory is closed when ``close`` returns.

``folder`` is always the descriptor of the directory that a path's last name stands in; None: the path itself counts.
"""

from __future__ import annotations

import os


def open_at(path: str, flags: int, folder: int | None = None, mode: int = 0o600) -> int:
    """Open a file; return its descriptor, which no program that is executed inherits."""
    name = path if folder is None else os.path.basename(path)
    return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=folder)


def open_folder(path: str) -> int:
    """Open a directory; return its descriptor, the ``folder`` of what is in it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close(fd: int) -> None:
    """Close a descriptor, also of a directory, before this returns.

    gevent's ``os.close`` lets one that is no regular file open until its loop comes round, and a lock with it.
    """
    os.closerange(fd, fd + 1)
