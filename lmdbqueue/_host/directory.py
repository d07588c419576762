"""The queue's directory: its files, how it is created, which generation is the live one.

Owns: file names, ``queue.json``, creation, the directory lock, renames and leftovers. Law: after each step the
directory is either no queue at all or one whole queue; a directory is held open while it is used, and its files are
opened, renamed and removed by that descriptor, so a directory that has taken its place is not touched. Must not know:
LMDB (the creating caller passes a function that writes a first environment), transactions, items.

Files::

    queue.json           written once, last: where it exists, there is a whole queue
    00000001.mdb         a generation: one LMDB environment; the live one has the highest number
    00000001.mdb-lock    LMDB's lock file for it
    00000002.mdb.tmp     an unfinished copy (compaction), with its lock file, worthless until generation 1
                         says otherwise
    ahead-*.mdb.tmp      the same, at an earlier stage
    session, bell        see _host.session and _host.bell
    checkpoint           of ``durability="interval"``, as checkpoint-1 and so on: see _lmdb.checkpoint_slots
    owner-*              one for each open queue that holds leases: see _host.owners

The directory lock is an exclusive ``flock`` on the directory itself, held while names change: during creation, opening,
and the last steps of a swap. So no process opens a generation while it is renamed or removed. Code that needs both this
lock and the write lock of a generation takes the write lock first; opening takes no write lock inside it.

Creation, under the directory lock:

====  ================================================  =======================================
step  what is done                                      a crash after it leaves
====  ================================================  =======================================
1     make the directory, fsync its parent              an empty directory: no queue
2     write 00000001.mdb.tmp, fsync it and the          leftovers, no queue
      directory
3     write queue.json.tmp, fsync it                    leftovers, no queue
4     rename it to queue.json, fsync the directory      the queue: the next to open it does step 5
5     rename 00000001.mdb.tmp to 00000001.mdb, fsync    the queue
      the directory
====  ================================================  =======================================

A directory with leftovers of steps 2 and 3 only is cleared, and step 2 begins anew; they never held an item. The swap
of generations is described in ``_local.swap``; it may leave a lock file without its environment, which the next process
to open the queue removes.

``queue.json`` may be removed by someone who cleans up old files, or become zeros in a power cut on a file system that
breaks its promises. Its content is also in each environment (``remembered``), so the next process to open the queue
writes it anew. An environment without such a record is left alone, with an error.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from lmdbqueue._base.errors import (
    CorruptQueueError,
    ExistsError,
    ForkError,
    FormatError,
    GoneError,
    NestedCallError,
    StorageError,
)
from lmdbqueue._base.format import Options
from lmdbqueue._host import flock, fork, owners
from lmdbqueue._host.descriptors import close, names_in, occupy_standard, open_at, open_folder
from lmdbqueue._host.disk import open_private, refuse_short, sync_directory, sync_file, translated, write_in_place
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.strangers import refuse_read_only, warn_of_strangers
from lmdbqueue._host.threads import Parking, held, holding, is_mine

_GENERATION: Final = r"(\d{8,})\.mdb"
_DRAFT: Final = r"(\d{8,}|ahead-\w+)\.mdb\.tmp(-lock)?"
_LOCK_FILE: Final = r"(\d{8,})\.mdb-lock"
_LEFTOVER_OF_CREATION: Final = r"00000001\.mdb\.tmp(-lock)?|queue\.json\.tmp"
_OF_OTHERS: Final = r"q\d{5,}|data\.db"  # files of persist-queue and queuelib
_OPTIONS_FILE: Final = "queue.json"
_CHOOSE_ANOTHER: Final = "choose another name"  # to whoever would create a queue
_GIVE_A_QUEUE: Final = "give the path of a queue's directory"  # to whoever wants one that exists
SESSION: Final = "session"
CHECKPOINT: Final = "checkpoint"
LANE: Final = rf"{CHECKPOINT}-[1-9]\d*"  # other files of checkpoints
BELL: Final = "bell"
FORWARDED: Final = "forwarded.json"  # the progress of its queues, by target; written by forwarders
_LMDB_MAGIC: Final = 0xBEEFC0DE

Build = Callable[[str, Options], None]  # writes a first environment, which contains the options, to a path
Remembered = Callable[[str], bytes]  # returns the options in the environment at a path, b"" if there are none


def open_directory(
    path: str, wanted: Options, build: Build, remembered: Remembered, *, fresh: bool = False
) -> Directory:
    """Open the queue directory at ``path``, or create it with ``wanted`` and a first environment by ``build``.

    With ``fresh`` an existing queue is refused (``ExistsError``). A lost ``queue.json`` is written anew. The caller
    closes the directory.
    """
    with translated(path, "opening"):
        _refuse_file(path, _CHOOSE_ANOTHER)
        _make(path)
        occupy_standard()
        folder = open_folder(path)
        try:
            with _door(path, folder), flock.exclusive(os.path.join(path, "."), folder):
                there = names_in(folder)
                if not _is_queue(there):
                    _create(path, folder, there, wanted, build)
                elif fresh:
                    raise ExistsError(path)  # noqa: TRY301  (the folder is closed below)
                return _existing(path, folder, remembered, mends=True)
        except BaseException:
            close(folder)
            raise


# of directories, by device and inode, since a directory can have several paths (a bind mount) or be renamed: the
# threads of this process enter one at a time
_doors: dict[tuple[int, int], threading.RLock] = {}


@holding
def _door(path: str, folder: int, patience: float = -1) -> Iterator[None]:
    """Hold the door of a directory; raise ``NestedCallError`` inside a call of this thread that holds it.

    Raises ``BlockingIOError`` after ``patience`` seconds; -1: never.
    """
    door = _door_of(os.fstat(folder))
    if is_mine(door):  # it would wait for its own flock
        raise NestedCallError(path)
    with held(door, patience=patience) as is_held:
        if not is_held:
            raise BlockingIOError(errno.EWOULDBLOCK, "another thread has the lock")
        yield


def _door_of(status: os.stat_result) -> threading.RLock:
    return _doors.setdefault((status.st_dev, status.st_ino), threading.RLock())


at_fork("doors", in_child=_doors.clear)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path that holds wherever this process goes; raise ``FormatError`` if it is nowhere now."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise FormatError(
            os.fspath(path), "in the working directory, which was removed", "choose another path"
        ) from None


def find_directory(path: str, remembered: Remembered) -> Directory:
    """Return the queue directory at ``path``, which the caller closes; raise ``FormatError`` if there is none."""
    with translated(path, "opening"):
        _refuse_file(path, _GIVE_A_QUEUE)
        occupy_standard()
        try:
            folder = open_folder(path)
        except (FileNotFoundError, NotADirectoryError):
            raise _no_queue(path, "missing") from None
        try:
            if not _is_queue(names_in(folder)):
                raise _no_queue(path, "an ordinary directory")  # noqa: TRY301  (the folder is closed below)
            return _existing(path, folder, remembered, mends=False)
        except BaseException:
            close(folder)
            raise


def find_options(path: str, remembered: Remembered) -> Options:
    """Return the options of the queue directory at ``path``; raise ``FormatError`` if there is none."""
    directory = find_directory(path, remembered)
    directory.close()
    return directory.options


def is_queue(path: str) -> bool:
    """Return whether there is a queue of this library at ``path``."""
    try:
        return _is_queue(os.listdir(path))
    except OSError:
        return False


def _is_queue(names: list[str]) -> bool:
    return _OPTIONS_FILE in names or bool(_generations(names))


def _no_queue(path: str, found: str) -> FormatError:
    return FormatError(path, found, _GIVE_A_QUEUE)


def _existing(path: str, folder: int, remembered: Remembered, *, mends: bool) -> Directory:
    refuse_read_only(path)
    options, finding = _options(path, folder, remembered)
    if finding and mends:
        _write_options(path, folder, options)
        _report("%s: %s: it was restored from the queue's file", path, finding)
        finding = ""
    warn_of_strangers(path)
    return Directory(path, options, folder, finding)


def _options(path: str, folder: int, remembered: Remembered) -> tuple[Options, str]:
    """Return the options, and the fault of ``queue.json``, "" if there is none."""
    try:
        return Options.from_json(path, _read(os.path.join(path, _OPTIONS_FILE), folder)), ""
    except FileNotFoundError:
        finding = "queue.json is gone"
    except CorruptQueueError as error:
        finding = error.reason
    for number in sorted(_generations(names_in(folder)), reverse=True):
        if found := remembered(_generation(path, number)):
            return Options.from_json(path, found), finding
    if found := remembered(_generation(path, 1) + ".tmp"):  # creation was cut short
        return Options.from_json(path, found), finding
    raise CorruptQueueError(path, f"{finding}, and there is no environment (*.mdb) to restore it from")


def _read(path: str, folder: int) -> bytes:
    fd = open_at(path, os.O_RDONLY, folder)
    try:
        return os.pread(fd, 1 << 16, 0)  # not by the position, which a child forked amid this shares
    finally:
        close(fd)


def _report(message: str, *facts: object) -> None:
    import logging  # noqa: PLC0415  (4 ms that only a repair pays)

    logging.getLogger("lmdbqueue").warning(message, *facts)


class Directory:
    """One queue directory that exists. Safe to use from any thread and process."""

    def __init__(self, path: str, options: Options, folder: int, finding: str = "") -> None:
        """``folder``: its descriptor, owned by this object; ``finding``: the fault of ``queue.json``."""
        self.path = path
        self.options = options
        self.folder = folder
        self.finding = finding
        self._status = os.fstat(folder)
        self.identity = (self._status.st_dev, self._status.st_ino, options.uuid)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin, or continue in a forked child, with no thread in here."""
        self.parking = Parking()  # for threads that wait to move from one generation to the next
        self._compacting = threading.RLock()
        # whether this thread has the lock, or opens the directory: then this is a nested call (is_mine)
        self.enters: Callable[[], bool] = _door_of(self._status)._is_owned  # type: ignore[attr-defined]  # noqa: SLF001

    def close(self) -> None:
        """Free the descriptor; twice is harmless."""
        folder, self.folder = self.folder, -1
        if folder >= 0:
            close(folder)

    def file(self, name: str) -> str:
        """Return the path of one of the queue's small files."""
        return os.path.join(self.path, name)

    @holding
    def lock(self, parking: Parking | None = None, patience: float = -1) -> Iterator[None]:
        """Hold the directory lock for the block. Raises ``GoneError`` if another directory has taken its place.

        ``parking``: where to wait, if a fork of this process need not wait for this thread. ``patience``: seconds after
        which ``StorageError`` is raised; -1: never.
        """
        with (
            translated(self.path, "locking"),
            _door(self.path, self.folder, patience),
            flock.exclusive(self.file("."), self.folder, parking, patience),
        ):
            self.refuse_another()
            yield

    def refuse_another(self) -> None:
        """Raise ``GoneError`` unless the directory is still at its path."""
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise GoneError(self.path) from None
        if (status.st_dev, status.st_ino) != self.identity[:2]:
            raise GoneError(self.path)

    @holding
    def compaction(self) -> Iterator[str]:
        """Hold the right to compact for the block; yield a path for the copy that is made in advance.

        It is taken before any other lock. The lock is on a file that is never replaced while it exists; if it was
        removed during a compaction and created anew, the next compaction uses another path.
        """
        if is_mine(self._compacting):
            raise NestedCallError(self.path)
        with translated(self.path, "listing"):
            is_lost = _OPTIONS_FILE not in names_in(self.folder)
        if is_lost:
            with self.lock():
                _write_options(self.path, self.folder, self.options)
        with (
            self._compacting,
            translated(self.path, "locking"),
            flock.exclusive(self.file(_OPTIONS_FILE), self.folder) as fd,
        ):
            self.refuse_another()
            yield self.file(f"ahead-{os.fstat(fd).st_ino}.mdb.tmp")

    def generation(self, number: int) -> str:
        """Return the path of a generation's environment."""
        return _generation(self.path, number)

    def draft(self, number: int) -> str:
        """Return the path at which generation ``number`` is written before it becomes valid."""
        return self.generation(number) + ".tmp"

    def newest(self) -> int:
        """Return the highest existing generation, 0 for none. Call it under the directory lock."""
        with translated(self.path, "listing"):
            return max(_generations(names_in(self.folder)), default=0)

    def refuse_hard_links(self, number: int) -> None:
        """Raise ``StorageError`` if the file of a generation is in a second directory, too, as after ``cp -al``.

        Both would be one queue, until a ``flush`` of one takes the items out of the other; nor do they share the files
        of the owners of leases, or even the lock file, if a program has linked only files that were equal.
        """
        with translated(self.path, "opening"):
            name = os.path.basename(self.generation(number))
            links = os.stat(name, dir_fd=self.folder).st_nlink
        if links > 1:
            reason = f"{name} has {links} names (hard links), so two directories would be one queue"
            advice = "remove the other directory; copy one with lmdbqueue copy, or close it and use cp -r"
            raise StorageError(self.path, "opening", reason, advice)

    def publish(self, number: int) -> None:
        """Give the finished draft of generation ``number`` its final name, unless it has it. Under the lock."""
        with translated(self.path, "renaming"):
            there = names_in(self.folder)
            name, draft = (os.path.basename(each) for each in (self.generation(number), self.draft(number)))
            if name not in there:
                if draft not in there:
                    raise CorruptQueueError(self.path, f"the file of generation {number} is missing")
                if draft + "-lock" in there:
                    self._rename(draft + "-lock", name + "-lock")
                self._rename(draft, name)
            sync_directory(self.path, self.folder)

    def _rename(self, old: str, new: str) -> None:
        if fork.amid.life not in (None, fork.life):
            raise ForkError(self.path)
        os.rename(old, new, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def clean(self, live: int, *, alone: bool) -> None:
        """Remove leftovers of other generations, and drafts if no other process has the queue open. Under the lock.

        That means generations before ``live``, and lock files of later ones, which a power cut during ``publish``
        leaves.
        """
        for name in names_in(self.folder):
            generation, lock_file = re.match(_GENERATION, name), re.fullmatch(_LOCK_FILE, name)
            is_draft = re.fullmatch(_DRAFT, name)
            is_old = generation and not is_draft and int(generation[1]) < live
            is_left = lock_file and int(lock_file[1]) > live
            if is_old or is_left or (is_draft and (alone or (generation and int(generation[1]) <= live))):
                with suppress(FileNotFoundError):
                    if fork.amid.life not in (None, fork.life):
                        raise ForkError(self.path)
                    os.unlink(name, dir_fd=self.folder)

    def strangers(self, live: int) -> list[str]:
        """Return the names that do not belong in the directory while ``live`` is the live generation.

        Leftovers of this library, which the next process to open the queue removes, do belong there.
        """
        mine = {
            _OPTIONS_FILE,
            f"{_OPTIONS_FILE}.tmp",
            SESSION,
            BELL,
            CHECKPOINT,
            f"{live:08}.mdb",
            f"{live:08}.mdb-lock",
        }
        mine |= {FORWARDED, f"{FORWARDED}.tmp"}
        return sorted(
            name
            for name in names_in(self.folder)
            if name not in mine and not owners.is_owner(name) and not re.fullmatch(rf"{_DRAFT}|{LANE}", name)
        )


def _generation(path: str, number: int) -> str:
    return os.path.join(path, f"{number:08}.mdb")


def _generations(names: list[str]) -> list[int]:
    return [int(match[1]) for name in names if (match := re.fullmatch(_GENERATION, name))]


def remove(path: str) -> None:
    """Remove a queue directory with its contents."""
    import shutil  # noqa: PLC0415  (2 ms that few pay)

    shutil.rmtree(path, ignore_errors=True)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.exists(path):
            target = os.path.realpath(path)
            advice = "create that directory first, or remove the link"
            raise FormatError(path, f"a link to {target!r}, which does not exist", advice) from None
        return
    except (FileNotFoundError, NotADirectoryError):
        parent = os.path.dirname(path)
        if os.path.isdir(parent):
            raise
        is_there = os.path.exists(parent)
        what = "is not a directory" if is_there else "does not exist"
        advice = "choose another path" if is_there else "create that directory first, or choose another path"
        raise FormatError(path, f"in {parent!r}, which {what}", advice) from None
    sync_directory(os.path.dirname(path))


def _create(path: str, folder: int, names: list[str], options: Options, build: Build) -> None:
    if "data.mdb" in names:
        raise FormatError(path, "an LMDB environment of another program", "choose another directory")
    if foreign := [name for name in names if not re.fullmatch(_LEFTOVER_OF_CREATION, name)]:
        found = f"a directory that holds other files ({min(foreign)!r})"
        advice = "choose an empty directory, or a new one"
        if any(re.fullmatch(_OF_OTHERS, name) for name in names):
            advice += _how_to_import(path)
        raise FormatError(path, found, advice)
    for name in names:
        if fork.amid.life not in (None, fork.life):
            raise ForkError(path)
        os.unlink(name, dir_fd=folder)

    write_in_place(folder)
    options = options.named()
    draft = _generation(path, 1) + ".tmp"
    build(draft, options)
    fd = open_at(draft, os.O_RDWR, folder)
    try:
        sync_file(fd)
    finally:
        close(fd)
    sync_directory(path, folder)
    _write_options(path, folder, options)


def _write_options(path: str, folder: int, options: Options) -> None:
    """Write ``queue.json`` durably; an existing one is overwritten in place, since others may have locked it."""
    name = _OPTIONS_FILE
    try:
        fd = open_at(os.path.join(path, name), os.O_RDWR, folder)
    except FileNotFoundError:
        name += ".tmp"
        fd = open_private(os.path.join(path, name), os.O_RDWR, folder=folder)
    try:
        text = options.to_json()
        if fork.amid.life not in (None, fork.life):
            raise ForkError(path)
        refuse_short(os.pwrite(fd, text, 0), text)
        os.ftruncate(fd, len(text))
        sync_file(fd)
    finally:
        close(fd)
    if name != _OPTIONS_FILE:
        if fork.amid.life not in (None, fork.life):
            raise ForkError(path)
        os.rename(name, _OPTIONS_FILE, src_dir_fd=folder, dst_dir_fd=folder)
    sync_directory(path, folder)


def _refuse_file(path: str, advice: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return
    except (FileNotFoundError, NotADirectoryError):  # _make says what is missing
        return
    with open(path, "rb") as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if struct.pack("=I", _LMDB_MAGIC) in head:
        raise FormatError(path, "an LMDB environment of another program", advice)
    if len(head) >= 8:  # noqa: PLR2004  (its header: number of items, offset of the first; both 32 bits)
        count, start = struct.unpack_from("=II", head)
        if 8 <= start <= size and (count == 0) == (start == size):  # noqa: PLR2004
            raise FormatError(
                path,
                f"a file of python-persistent-queue with {count:,} items",
                f"{advice}{_how_to_import(path)}",
            )
    if head.startswith(b"SQLite format 3"):
        raise FormatError(path, "an SQLite database", f"{advice}{_how_to_import(path)}")
    raise FormatError(path, "a file", advice)


def _how_to_import(path: str) -> str:
    """Return the end of an advice, for a path that may be a queue of another library."""
    return f"; to import the items of an old queue: lmdbqueue import {path!r} DEST"
