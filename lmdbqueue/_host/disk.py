"""Services of the operating system beyond reading and writing: durability, room, rights, and its errors in our terms.

Owns: fsync, allocation, the owner of a new file, the translation of ``OSError``. Law: after ``sync_file`` the bytes are
on the disk, and after ``allocate`` writing them cannot fail for lack of room (as far as the file system keeps its
promises). A file that root creates in another user's directory is given to that user, who could not open it otherwise.
Must not know: what the files contain.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager, suppress
from struct import Struct
from typing import Final

from lmdbqueue._base.errors import AccessError, DiskFullError, QueueError, StorageError
from lmdbqueue._host.descriptors import close, open_at, open_folder
from lmdbqueue._host.threads import beating, holding

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the last: ``ulimit -f``
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})
_STEADILY: Final = 0.01  # seconds between two syncs
_GET_FLAGS: Final = 0x8008_6601  # FS_IOC_GETFLAGS
_SET_FLAGS: Final = 0x4008_6602
_FLAGS: Final = Struct("=I4x")
_IN_PLACE: Final = 0x80_0000  # FS_NOCOW_FL
_NO_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})


@contextmanager
def translated(path: str, operation: str) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if is_of_a_handler(error):
            raise
        raise explain(error, path, operation) from error
    except ImportError as error:  # importing a module at its first use needs a descriptor
        if os.strerror(errno.EMFILE) not in str(error):
            raise
        raise out_of_descriptors(path, operation, os.strerror(errno.EMFILE)) from error


def is_of_a_handler(error: BaseException) -> bool:
    """Return whether an error lacks the number that system errors have: then a signal handler raised it."""
    return not getattr(error, "errno", None)


def explain(error: OSError, path: str, operation: str) -> QueueError:
    """Return our error for an error of the operating system."""
    reason = error.strerror or str(error)
    if error.errno in NO_ROOM:
        return disk_full(path, error.errno)
    if error.errno in _NO_DESCRIPTOR:
        return out_of_descriptors(path, operation, reason)
    if error.errno == errno.ENOMEM:
        return out_of_memory(path, operation, reason)
    if error.errno == errno.ENAMETOOLONG:
        return StorageError(path, operation, reason, "choose a shorter path")
    if error.errno in _NO_ACCESS:
        return AccessError(path, f"{operation} {error.filename or path!r}: {reason}")
    return StorageError(path, operation, reason)


def out_of_descriptors(path: str, operation: str, reason: str) -> StorageError:
    """Return the error that says that no more files can be opened."""
    return StorageError(path, operation, reason, "close files that are not needed, or raise the limit (ulimit -n)")


def out_of_memory(path: str, operation: str, reason: str) -> StorageError:
    """Return the error that says that there is no address space, or no memory, left."""
    return StorageError(
        path, operation, reason, "the process has no address space or memory left: see ulimit -v, or open fewer queues"
    )


def disk_full(path: str, number: int | None = errno.ENOSPC) -> DiskFullError:
    """Return the error that names the exhausted resource, of the file system of ``path`` or of this process."""
    while not os.path.exists(path) and os.path.dirname(path) != path:  # it could not be created
        path = os.path.dirname(path)
    space = os.statvfs(path)
    total = space.f_blocks * space.f_frsize
    used = total - space.f_bavail * space.f_frsize
    if number == errno.EDQUOT:
        return DiskFullError("quota", total, used, 0)
    if number == errno.EFBIG:
        import resource  # noqa: PLC0415  (seldom needed)

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return DiskFullError("file size", max(limit, 0), max(limit, 0), 0)
    if space.f_files and not space.f_favail:
        return DiskFullError("files", space.f_files, space.f_files - space.f_favail, 0)
    return DiskFullError("bytes", total, used, 0)


def refuse_short(written: int, data: Sized) -> None:
    """Raise ``OSError`` if only a part of ``data`` was written, as where the disk has room for no more."""
    if written < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append(fd: int, line: bytes) -> None:
    """Append a line to a file, on a line of its own even if an earlier one was cut short. Raises ``OSError``."""
    size = os.fstat(fd).st_size
    left = memoryview(line if not size or os.pread(fd, 1, size - 1) == b"\n" else b"\n" + line)
    while left:  # one call writes 2 GiB at most
        left = left[os.write(fd, left) :]


def sync_file(fd: int) -> None:
    """Bring a file to the disk; on macOS, also through the disk's own cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_path(path: str) -> None:
    """Bring the file at ``path`` to the disk, whoever has written it; not its name."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)


@holding
def synced_steadily(fd: int) -> Iterator[None]:
    """Bring a long file to the disk while the block writes it: a single sync at the end would delay those of others.

    An error of a sync is raised at the end, since the next sync would not report it again. If no thread can be had, as
    at the program's end, nothing is synced here: the caller does it in any case.
    """
    with ExitStack() as syncing:
        with suppress(RuntimeError):
            syncing.enter_context(beating(lambda: sync_file(fd), _STEADILY))
        yield


def sync_directory(path: str, folder: int | None = None) -> None:
    """Bring the names in a directory to the disk; no file's own fsync does that. ``folder``: a descriptor of it."""
    fd = open_folder(path) if folder is None else folder
    try:
        sync_file(fd)
    finally:
        if folder is None:
            close(fd)


def allocate(path: str, size: int) -> None:
    """Give the file at ``path`` blocks for its first ``size`` bytes, and at least that length; keep what it holds.

    Where the system has no ``posix_fallocate`` (macOS), it only creates the file.
    """
    fd = open_private(path, os.O_RDWR)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
    finally:
        close(fd)


def write_in_place(folder: int) -> None:
    """Have the files that will be created in an open directory written in place, where btrfs would write copies.

    There a store to a mapped file needs a free block, and on a full disk such a store kills the process (SIGBUS). Other
    file systems refuse the flag, or ignore it.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            flags = _FLAGS.unpack(fcntl.ioctl(folder, _GET_FLAGS, bytes(_FLAGS.size)))[0]
            fcntl.ioctl(folder, _SET_FLAGS, _FLAGS.pack(flags | _IN_PLACE))


def open_private(path: str, flags: int, *, beside: str | None = None, folder: int | None = None) -> int:
    """Open a file for its owner alone, and create it if it is missing; return its descriptor.

    If root creates it, it is given to the owner of its directory, or of ``beside``. If root is killed in between, the
    file stays root's, and root's next opening gives it away.
    """
    fd = open_at(path, flags | os.O_CREAT, folder)
    try:
        if os.geteuid() == 0:
            parent = os.stat(beside or os.path.dirname(path)) if folder is None else os.fstat(folder)
            with suppress(FileNotFoundError):  # another process has put it in its place meanwhile, or removed it
                name = path if folder is None else os.path.basename(path)
                _give(fd, parent, os.stat(name, dir_fd=folder, follow_symlinks=False))
    except BaseException:
        close(fd)
        raise
    return fd


def _give(fd: int, directory: os.stat_result, named: os.stat_result) -> None:
    """Give root's file to the owner of its directory, unless that owner has linked it there from elsewhere."""
    found = os.fstat(fd)
    is_here = os.path.samestat(found, named) and stat.S_ISREG(found.st_mode) and found.st_nlink == 1  # not a link
    if directory.st_uid and not found.st_uid and is_here:
        with suppress(PermissionError):  # root without that capability, as in some containers
            os.fchown(fd, directory.st_uid, directory.st_gid)
