"""Opening relative to an open directory, and closing immediately.

Owns: how a name in a queue's directory is opened, so that a directory that has taken its place is never written to.
Law: a descriptor of a directory is closed when ``close`` returns.

``folder`` is always the descriptor of the directory that contains the last name of a path; None: the path itself is
used.
"""

from __future__ import annotations

import os


def open_at(path: str, flags: int, folder: int | None = None, mode: int = 0o600) -> int:
    """Open a file; return its descriptor, which no program that is executed inherits."""
    name = path if folder is None else os.path.basename(path)
    return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=folder)


def open_folder(path: str) -> int:
    """Open a directory; return its descriptor, the ``folder`` for the files in it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close(fd: int) -> None:
    """Close a descriptor, even of a directory, before this returns.

    gevent's ``os.close`` keeps a descriptor that is not a regular file open until its loop next runs, and a lock with
    it.
    """
    os.closerange(fd, fd + 1)
