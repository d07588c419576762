"""Opening relative to an open directory, and closing immediately.

Owns: how a name in a queue's directory is opened, so that a directory that has taken its place is never written to.
Law: a descriptor of a directory is closed when ``close`` returns; a directory is listed by a descriptor of its own; no
file of a queue is a standard stream.

``folder`` is always the descriptor of the directory that contains the last name of a path; None: the path itself is
used.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_STANDARD: Final = 3  # the number of standard descriptors: input, output, error


def occupy_standard() -> None:
    """Open ``/dev/null`` as standard input, output and error where they are closed.

    Otherwise a file of a queue would get such a number, and a program that reads lines, prints or redirects its output
    would read the queue, overwrite it, or take its locks away.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < _STANDARD:
        pass
    os.close(fd)


def open_at(path: str, flags: int, folder: int | None = None, mode: int = 0o600) -> int:
    """Open a file; return its descriptor, which no program that is executed inherits."""
    name = path if folder is None else os.path.basename(path)
    return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=folder)


def open_folder(path: str) -> int:
    """Open a directory; return its descriptor, the ``folder`` for the files in it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def names_in(folder: int) -> list[str]:
    """Return the names of all files in an open directory.

    They are read by a descriptor opened for that: the place up to which a directory was read belongs to the open file
    description, which a forked child and other threads share, so each would miss the names that another reads.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.listdir(fd)
    finally:
        close(fd)


def close_when_executing(path: str) -> None:
    """Have programs that are executed inherit no descriptor of a file, whichever library has opened it.

    A program that did would keep the blocks of the file from the file system after a ``flush`` has replaced it.
    """
    with suppress(OSError):  # no such list, or no descriptor left
        file = os.stat(path)
        for fd in map(int, os.listdir("/dev/fd")):
            with suppress(OSError):  # closed meanwhile
                if os.get_inheritable(fd) and os.path.samestat(os.fstat(fd), file):
                    os.set_inheritable(fd, False)  # noqa: FBT003  (positional only)


def close(fd: int) -> None:
    """Close a descriptor, even of a directory, before this returns.

    gevent's ``os.close`` keeps a descriptor that is not a regular file open until its loop next runs, and a lock with
    it.
    """
    os.closerange(fd, fd + 1)
