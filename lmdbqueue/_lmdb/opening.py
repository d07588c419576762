"""Opening a file as an LMDB environment: its map, its lock file, fatal faults; and creating one.

Owns: the options with which LMDB opens a file, and the locks on its lock file. Law: files that would crash LMDB are
refused before it opens them; no descriptor of a lock file is closed while LMDB has it open in this process.

LMDB's own locks on that file are POSIX record locks. A process loses all of them when *anything* in it closes a
descriptor of the file, for example a backup that copies the directory (``shutil.copytree``). Then LMDB would let the
next process that opens the queue set up the mutexes anew during a transaction of the first one, and both would write at
the same time. So each process also holds locks of an open file description (OFD), which end only with its own
descriptor, and which LMDB takes for those of another process:

==============  =============================  ======================================================================
byte            LMDB's lock                    this library's lock
==============  =============================  ======================================================================
0               shared: the file is set up     the same; LMDB sets the file up only if it can lock it exclusively
pid             exclusive: the process lives   none, since LMDB could not take its own
2^32 + pid      none                           shared: the process lives. If it holds this one without LMDB's, it has
                                               lost that, and LMDB must not look for dead readers
==============  =============================  ======================================================================

A system without such locks (macOS, and what runs programs of Linux without its kernel) has LMDB's alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from struct import Struct
from typing import Any, Final

import lmdb

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError, ForkError, StorageError
from lmdbqueue._host import fork
from lmdbqueue._host.descriptors import close, close_when_executing, open_at
from lmdbqueue._host.disk import allocate, translated
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import free
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.failures import failure
from lmdbqueue._lmdb.preallocation import reserve

MANY_DBS: Final = 1 << 15  # handles for a file at rest, at the cost of some megabytes for a moment
_LEAST_MAP: Final = 1 << 34  # bytes; an address space of 47 bits has room for 8,192 of them
_LEAST_OF_LITTLE: Final = 1 << 28  # bytes, if the address space is limited
_GROWTH: Final = 4  # times the file: the larger, the less often the file is reopened
_MAX_READERS: Final = 1022  # 64 bytes each in the lock file
LOCK_FILE: Final = 64 * (_MAX_READERS + 2)  # bytes
_AT_A_TIME: Final = 1_000  # records in one transaction while a file is built
_SET_UP: Final = 0  # bytes of the lock file, as above
_LIVES: Final = 1 << 32
_RECORD: Final = Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_HAS_THEM: Final = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")


# held while a file that has no final name yet is open: a fork waits for it. LMDB's binding opens no file twice in a
# process, and would take it for open in the child, which has no thread that closes it
unfinished = threading.RLock()
_PATIENCE: Final = 5.0  # seconds that a fork waits


def _wait() -> None:
    unfinished.acquire(timeout=_PATIENCE)


def _go_on() -> None:
    free(unfinished)


def _begin_anew() -> None:
    global unfinished  # noqa: PLW0603
    unfinished = threading.RLock()


at_fork("unfinished files", before=_wait, in_parent=_go_on, in_child=_begin_anew)


def provide(path: str) -> None:
    """Give a new file, which no process has open yet, its reserve and its lock file."""
    newest, _ = meta_page.read(path)
    allocate(path, newest.size + reserve(newest.last_page) * newest.page_size)
    allocate(path + "-lock", LOCK_FILE)


def build(
    path: str,
    options: _format.Options,
    contents: Iterable[tuple[bytes, Iterable[tuple[bytes, bytes]]]] = (),
    size: int = 0,
) -> None:
    """Write a new environment to ``path``, which must not exist: databases with records in the order of their keys.

    ``size``: their approximate size in bytes.

    The next transaction records the weight of its records: until then nothing of it can be torn.
    """
    with unfinished:
        _write(path, options, contents, size)
    with translated(path, "allocation"):
        provide(path)


def _write(
    path: str, options: _format.Options, contents: Iterable[tuple[bytes, Iterable[tuple[bytes, bytes]]]], size: int
) -> None:
    try:
        env, _ = open_environment(
            path, size, sync=False, lock=False, max_dbs=MANY_DBS
        )  # a lock file without room would kill the process
        try:
            for database, records in contents:
                left = iter(records)
                some = list(islice(left, _AT_A_TIME))
                while True:  # at least once, so that the database exists
                    with env.begin(write=True) as txn:
                        with txn.cursor(env.open_db(database, txn=txn)) as cursor:
                            cursor.putmulti(some, append=True)
                        if fork.amid.life not in (None, fork.life):
                            raise ForkError(os.path.dirname(path))
                    if not (some := list(islice(left, _AT_A_TIME))):
                        break
            with env.begin(write=True) as txn:
                meta = env.open_db(_format.META, txn=txn)
                env.open_db(_format.AWAY, txn=txn)
                txn.put(_format.LAST_TXN, _format.pack_last(txn.id()), db=meta)
                txn.put(_format.OPTIONS, _format.seal(_format.OPTIONS, options.to_json()))
                if fork.amid.life not in (None, fork.life):
                    raise ForkError(os.path.dirname(path))
        finally:
            env.close()
    except lmdb.Error as error:
        raise failure(path, error, "creation") from error


def open_environment(path: str, size: int = 0, **options: Any) -> tuple[lmdb.Environment, int]:
    """Open an environment of about ``size`` bytes, or its present size, with a sufficient map; return the map's size.

    The map is smaller if the address space is limited.
    """
    map_size = wanted_map(path, size)
    name = os.fsencode(path)
    while True:
        life, env = fork.life, None
        if fork.amid.life not in (None, life):
            raise ForkError(os.path.dirname(path))
        try:
            env = lmdb.open(
                name,
                map_size=map_size,
                subdir=False,
                mode=0o600,
                max_readers=_MAX_READERS,
                lib_version=0,
                **options,
            )
            close_when_executing(path)  # LMDB opens it without O_CLOEXEC
            return env, max(map_size, int(env.info()["map_size"]))
        except BaseException as error:
            if env is not None and life is fork.life:  # an interrupt; in a child it would end its parent's transactions
                env.close()
            is_of_little_memory = isinstance(error, lmdb.Error) and os.strerror(errno.ENOMEM) in str(error)
            if env is not None or not is_of_little_memory or map_size <= _LEAST_OF_LITTLE:
                raise
            map_size //= 2


def open_shared(path: str, **options: Any) -> tuple[lmdb.Environment, int]:
    """Like ``open_environment``, with the lock file. Raises ``StorageError`` if the fault is that file's.

    LMDB reports it like damage of the file beside it, whose meta pages are whole (``refuse_cut_off``). It finds a lock
    file that it has not set up if another program holds a lock on that, or if the system refused its own lock once.
    """
    try:
        return open_environment(path, **options)
    except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        reason = f"{path}-lock was not set up by this version of LMDB ({error})"
        advice = "try again; if that fails, too, end all other processes that have the queue open"
        raise StorageError(path, "opening", reason, advice) from error


def wanted_map(path: str, size: int = 0) -> int:
    """Return the size of a map for the file at ``path``: it can grow to that without being reopened."""
    import resource  # noqa: PLC0415  (only to open a queue)

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    is_large = limit == resource.RLIM_INFINITY and sys.maxsize > 1 << 32
    with suppress(FileNotFoundError):
        size = max(size, os.stat(path).st_size)
    return 1 << (max(_LEAST_MAP if is_large else _LEAST_OF_LITTLE, _GROWTH * size) - 1).bit_length()


class LockFile:
    """The lock file of one generation. To be opened before LMDB opens it, and closed after LMDB."""

    def __init__(self, path: str) -> None:
        """Remember the path. The caller keeps this object before ``open``, to close it if an interrupt comes."""
        self._path = path
        self._fd = -1
        self._has_them = _HAS_THEM

    def open(self) -> None:
        """Wait until no process is setting up the file. Under the directory lock, so that none begins to."""
        self._fd = open_at(self._path, os.O_RDWR)
        fcntl.lockf(self._fd, fcntl.LOCK_SH, 1)
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)

    def hold(self) -> None:
        """Take the locks of this library, after LMDB has taken its own."""
        try:
            for byte in (_SET_UP, _LIVES + os.getpid()) if self._has_them else ():
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _RECORD.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._has_them = False  # the system takes the calls of Linux, without this one

    def clear_readers(self, env: Any) -> None:
        """Let LMDB clear the entries of dead readers, unless it would clear those of a living process."""
        pids = {int(line.split()[0]) for line in env.readers().splitlines()[1:]}
        if not any(pid > 0 and self._has_lost(pid) for pid in pids - {os.getpid()}):
            env.reader_check()

    def _has_lost(self, pid: int) -> bool:
        """Return whether another process lives that LMDB takes for dead."""
        return self._has_them and self._is_locked(_LIVES + pid) and not self._is_locked(pid)

    def _is_locked(self, byte: int) -> bool:
        asked = _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        found: int = _RECORD.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))[0]
        return found != fcntl.F_UNLCK

    def close(self) -> None:
        """Free the descriptor and its locks; idempotent. In a forked child the parent keeps the locks."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)


def refuse_cut_off(path: str) -> None:
    """Raise ``CorruptQueueError`` for files that would crash LMDB: without meta page, or with pages beyond the end.

    LMDB maps the file and trusts its meta pages; reading behind the end kills the process (SIGBUS).
    """
    newest, _ = meta_page.read(path)
    size = os.stat(path).st_size  # after the meta pages: a writer extends the file before it writes its meta page
    # it may end before its last page, if only free ones are missing: LMDB does not write pages that were
    # allocated and freed in one transaction; the walk through all trees finds out
    if size < newest.size and _has_problems(path):
        raise CorruptQueueError(path, f"it is truncated: {size:,} bytes, but its pages need {newest.size:,}")


def _has_problems(path: str) -> bool:
    from lmdbqueue._lmdb.structure import problems_of  # noqa: PLC0415  (a file is seldom too short)

    return bool(problems_of(path))
