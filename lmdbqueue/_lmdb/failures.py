"""LMDB's errors as ours, and the errors that stay within this library.

Owns: which of LMDB's errors mean damage, a failure of the system, or neither. Law: none of them reaches a user.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from typing import Final

import lmdb

from lmdbqueue._base.errors import AccessError, CommitUnknownError, NestedCallError, PidError, QueueError, StorageError
from lmdbqueue._host.disk import NO_ROOM, explain

DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.NotFoundError,  # of a database that every queue has
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    SystemError,
)
_PAGE: Final = 4096  # bytes
_BEGIN: Final = "mdb_txn_begin"  # the binding's name of the call, in its message
_OF_THE_SYSTEM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_OF_A_TRANSACTION: Final = (lmdb.Error, SystemError, struct.error, QueueError, MemoryError)


class Superseded(Exception):
    """The generation is continued in the next one; nothing was done."""


class Doubtful(Exception):
    """A flush of the generation failed: it must be rewritten before anything is committed; nothing was done."""


def may_be_of_a_handler(error: BaseException) -> bool:
    """Return whether an error raised during a transaction is not one of its own.

    A signal handler may raise anything, anywhere, and that is meant for the thread that it interrupted.
    """
    return not isinstance(error, (*_OF_A_TRANSACTION, Superseded, Doubtful)) or isinstance(error, NestedCallError)


def came_after_the_commit(error: BaseException) -> bool:
    """Return whether an ended transaction was committed, since then only a signal handler can have raised this."""
    return not isinstance(error, (lmdb.Error, CommitUnknownError))


def failure(path: str, error: Exception, operation: str) -> QueueError:
    """Return our error for one of LMDB's that concerns the system."""
    reason = str(error)
    if os.strerror(errno.EACCES) in reason:
        return AccessError(path, reason)
    if isinstance(error, lmdb.LockError):
        return _unavailable(path, reason, operation)
    if "already open in this process" in reason:
        return StorageError(
            path,
            operation,
            reason,
            "the library was loaded twice, as a second copy, by importlib.reload or in a sub-interpreter: import one "
            "copy, once",
        )
    for number in _OF_THE_SYSTEM:
        if os.strerror(number) in reason:
            return explain(OSError(number, os.strerror(number)), path, operation)
    if (refused := _refused_room(path, reason)) is not None:
        return explain(refused, path, operation)
    return StorageError(path, operation, reason)


def _refused_room(path: str, reason: str) -> OSError | None:
    """Return why the file can get no further page, None if it can: a full disk may look like a broken one.

    LMDB calls it an I/O error if a write is cut short, be it by a quota or limit. Pages beyond the allocated ones are
    written if the free ones suffice for an item (``_lmdb.preallocation``), but no run of them is long enough.
    """
    with suppress(OSError):  # a swap may have removed the name of the file
        if os.statvfs(path).f_bavail == 0:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if os.strerror(errno.EIO) not in reason or not hasattr(os, "posix_fallocate"):
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, os.fstat(fd).st_size, _PAGE)
        finally:
            os.close(fd)
    except OSError as error:
        return error if error.errno in NO_ROOM else None
    return None


def _unavailable(path: str, reason: str, operation: str) -> QueueError:
    """Return our error for what LMDB could not get, but might later."""
    if _BEGIN in reason:  # the byte ``pid`` of its file
        return PidError(path, reason)
    advice = "LMDB copies with a thread of its own, and the system allows no more: see ulimit -u and ulimit -v"
    return StorageError(path, operation, reason, advice)
