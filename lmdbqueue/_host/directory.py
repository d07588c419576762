"""The queue's directory: its files, how it comes to be, which generation is the live one.

Owns: file names, ``queue.json``, creation, the directory lock, renames and leftovers. Law: after each
step the directory is either no queue at all or one whole queue. Must not know: LMDB (whoever creates
passes a function that writes a first environment), transactions, items.

Files::

    queue.json           written once, last: where it stands, a whole queue stands
    00000001.mdb         a generation: one LMDB environment; the live one has the highest number
    00000001.mdb-lock    LMDB's lock file for it
    00000002.mdb.tmp     a copy in the making (compaction), with its lock file, worthless until generation 1
                         says otherwise
    session, bell        see _host.session and _wakeup
    owner-*              one for each open queue that holds leases: see _host.owners

The directory lock is an exclusive ``flock`` on the directory itself, held for the moments in which
names change: creating, opening, and the last steps of a swap. So nobody opens a generation while it
is renamed or removed. Whoever wants both it and the write lock of a generation takes the write lock
first; opening takes no write lock inside it.

Creation, under the directory lock:

====  ================================================  =======================================
step  what is done                                      a crash after it leaves
====  ================================================  =======================================
1     make the directory, fsync its parent              an empty directory: no queue
2     write 00000001.mdb.tmp, fsync it and the          leftovers, no queue
      directory
3     write queue.json.tmp, fsync it                    leftovers, no queue
4     rename it to queue.json, fsync the directory      the queue: whoever opens it does step 5
5     rename 00000001.mdb.tmp to 00000001.mdb, fsync    the queue
      the directory
====  ================================================  =======================================

A directory with leftovers of steps 2 and 3 only is cleared and step 2 begins anew; they never held an
item. An environment without a ``queue.json`` is nobody's leftover: it is left alone, with an error.
The swap of generations is described in ``_local.swap``.
"""

import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from lmdbqueue._errors import AccessError, CorruptQueueError, ExistsError, FormatError, GoneError
from lmdbqueue._format import Options
from lmdbqueue._host import flock, owners
from lmdbqueue._host.disk import open_private, sync_directory, sync_file, translated

_GENERATION: Final = re.compile(r"(\d{8})\.mdb")
_LEFTOVER_OF_CREATION: Final = r"00000001\.mdb\.tmp(-lock)?|queue\.json\.tmp"
_OF_OTHERS: Final = r"q\d{5,}|data\.db"  # what persist-queue and queuelib have in their directories
_OPTIONS_FILE: Final = "queue.json"
_AHEAD: Final = "99999999.mdb.tmp"  # as the draft of a generation that never comes: removed by who is alone
SESSION: Final = "session"
BELL: Final = "bell"
_LMDB_MAGIC: Final = 0xBEEFC0DE
_CALLER: Final = 6  # frames up to who opens the queue


def open_directory(path: str, wanted: Options, build: Callable[[str], None], *, fresh: bool = False) -> "Directory":
    """Open the queue directory at ``path``, or create it with ``wanted`` and a first environment by ``build``.

    With ``fresh`` a queue that is there already is refused (``ExistsError``).
    """
    with translated(path, "opening"):
        _refuse_file(path)
        _make(path)
        with flock.exclusive(path):
            if not os.path.exists(os.path.join(path, _OPTIONS_FILE)):
                _create(path, wanted, build)
            elif fresh:
                raise ExistsError(path)
        return _existing(path)


def find_directory(path: str) -> "Directory":
    """Return the queue directory at ``path``; raise ``FormatError`` if there is none."""
    with translated(path, "opening"):
        _refuse_file(path)
        if not os.path.exists(os.path.join(path, _OPTIONS_FILE)):
            raise FormatError(path, "no queue", "give the path of a queue's directory")
        return _existing(path)


def _existing(path: str) -> "Directory":
    with open(os.path.join(path, _OPTIONS_FILE), "rb") as file:
        options = Options.from_json(path, file.read())
    _refuse_read_only(path)
    _warn_of_strangers(path)
    return Directory(path, options)


class Directory:
    """One queue directory that exists. Safe to use from any thread and process."""

    def __init__(self, path: str, options: Options) -> None:
        self.path = path
        self.options = options
        status = os.stat(path)
        self.identity = (status.st_dev, status.st_ino, options.uuid)

    def file(self, name: str) -> str:
        """Return the path of one of the queue's small files."""
        return os.path.join(self.path, name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory lock for the block. Raises ``GoneError`` if another directory has taken its place."""
        with translated(self.path, "locking"), flock.exclusive(self.path):
            self._refuse_another()
            yield

    def _refuse_another(self) -> None:
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self.identity[:2]:
            raise GoneError(self.path)

    @contextmanager
    def compaction(self) -> Iterator[str]:
        """Hold the right to compact, for the block; give a path for the copy that is made ahead.

        It comes before any other lock. The lock is on a file that is always there and never written.
        """
        with translated(self.path, "locking"), flock.exclusive(self.file(_OPTIONS_FILE)):
            self._refuse_another()
            yield self.file(_AHEAD)

    def generation(self, number: int) -> str:
        """Return the path of a generation's environment."""
        return os.path.join(self.path, f"{number:08}.mdb")

    def draft(self, number: int) -> str:
        """Return the path where generation ``number`` is written before it counts."""
        return self.generation(number) + ".tmp"

    def newest(self) -> int:
        """Return the highest generation there is, 0 for none. Call it under the directory lock."""
        with translated(self.path, "listing"):
            numbers = [int(match[1]) for name in os.listdir(self.path) if (match := _GENERATION.fullmatch(name))]
        return max(numbers, default=0)

    def publish(self, number: int) -> None:
        """Give the finished draft of generation ``number`` its name, unless somebody did. Under the lock."""
        with translated(self.path, "renaming"):
            if not os.path.exists(self.generation(number)):
                if not os.path.exists(self.draft(number)):
                    raise CorruptQueueError(self.path, f"the file of generation {number} is not there")
                if os.path.exists(self.draft(number) + "-lock"):
                    os.rename(self.draft(number) + "-lock", self.generation(number) + "-lock")
                os.rename(self.draft(number), self.generation(number))
            sync_directory(self.path)

    def clean(self, live: int, *, alone: bool) -> None:
        """Remove the generations before ``live`` and, when no other process is there, drafts. Under the lock."""
        for name in os.listdir(self.path):
            match = _GENERATION.match(name)
            if match and (int(match[1]) < live or (alone and ".tmp" in name)):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, name))

    def strangers(self, live: int) -> list[str]:
        """Return the names that do not belong in the directory while ``live`` is the live generation."""
        mine = {_OPTIONS_FILE, SESSION, BELL, f"{live:08}.mdb", f"{live:08}.mdb-lock"}
        return sorted(name for name in os.listdir(self.path) if name not in mine and not owners.is_owner(name))


def remove(path: str) -> None:
    """Remove a queue directory and all in it."""
    import shutil  # noqa: PLC0415  (2 ms that few pay)

    shutil.rmtree(path, ignore_errors=True)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    sync_directory(os.path.dirname(path))


def _create(path: str, options: Options, build: Callable[[str], None]) -> None:
    names = os.listdir(path)
    if "data.mdb" in names:
        raise FormatError(path, "an LMDB environment of another program", "choose another directory")
    if any(_GENERATION.fullmatch(name) for name in names):
        raise CorruptQueueError(path, "it holds an environment (*.mdb) but no queue.json")
    if foreign := [name for name in names if not re.fullmatch(_LEFTOVER_OF_CREATION, name)]:
        found = f"a directory that holds other files ({min(foreign)!r})"
        advice = "choose a directory that is empty or not there yet"
        if any(re.fullmatch(_OF_OTHERS, name) for name in names):
            advice += _how_to_import(path)
        raise FormatError(path, found, advice)
    for name in names:
        os.unlink(os.path.join(path, name))

    draft = Directory(path, options).draft(1)
    build(draft)
    fd = os.open(draft, os.O_RDWR)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    sync_directory(path)

    final = os.path.join(path, _OPTIONS_FILE)
    fd = open_private(final + ".tmp", os.O_RDWR | os.O_EXCL)
    try:
        os.write(fd, options.to_json())
        sync_file(fd)
    finally:
        os.close(fd)
    os.rename(final + ".tmp", final)
    sync_directory(path)


def _refuse_file(path: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with open(path, "rb") as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if struct.pack("=I", _LMDB_MAGIC) in head:
        raise FormatError(path, "an LMDB environment of another program", "choose another name")
    if len(head) >= 8:  # noqa: PLR2004  (its header: number of items, offset of the first; both 32 bits)
        count, start = struct.unpack_from("=II", head)
        if 8 <= start <= size and (count == 0) == (start == size):  # noqa: PLR2004
            raise FormatError(
                path,
                f"a file of python-persistent-queue with {count:,} items",
                f"choose another name{_how_to_import(path)}",
            )
    if head.startswith(b"SQLite format 3"):
        raise FormatError(path, "an SQLite database", f"choose another name{_how_to_import(path)}")
    raise FormatError(path, "a file", "choose another name")


def _how_to_import(path: str) -> str:
    """Return the end of an advice, for what may be a queue of another library."""
    return f"; the items of an old queue are taken over by: lmdbqueue import {path!r} DEST"


def _warn_of_strangers(path: str) -> None:
    """Warn, once for each directory as Python's filters are set, if other users may write what is read here."""
    if not (found := strange(path)):
        return
    message = f"{path!r} {found}, who can run code here by what pickle reads: chmod 700 it, or use loads=json.loads"
    warnings.warn(message, RuntimeWarning, stacklevel=_CALLER)


def strange(path: str) -> str:
    """Return why others than this user and root may write to a file or directory, "" if they may not."""
    status = os.stat(path)
    if status.st_uid not in (os.geteuid(), 0):
        return f"is owned by user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by other users (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def strange_in(path: str) -> str:
    """Return why others may have written what is in the queue directory at ``path``, "" if they may not have."""
    for each in (path, *sorted(entry.path for entry in os.scandir(path))):
        with suppress(FileNotFoundError):  # gone since, as owners and drafts go
            if found := strange(each):
                return f"{each!r} {found}"
    return ""


def _refuse_read_only(path: str) -> None:
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise AccessError(path, "its directory is not writable")
