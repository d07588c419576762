"""Imports of other libraries' queues into a queue of this one.

    from lmdbqueue.legacy import import_file
    import_file("old.queue", "new")      # as ``lmdbqueue import old.queue new`` does

Owns: the protocol of an import. Law: others see either nothing of it in the destination or all of it, each item once
and in order, whenever it is killed and however often it is run; the source is not changed; nothing is unpickled except
this module's own records. Must not know: the formats (``_file``, ``_chunks``, ``_tables``).

The source is read first, and what goes into the queue is written to a file without a name: there ``dumps``, ``loads``
and ``progress`` are called, and nobody waits for them. Then one transaction on the destination
(``queue.transaction()``) stores the items and, in the queue's ``state``, a record that they were imported. A run that
was killed before the commit is begun anew; one that was killed after it finds the record, and does nothing.

====  ===================================================  =========================================
step  what is done                                         killed after it
====  ===================================================  =========================================
1     recognize the source                                 nothing
2     open the destination, or create it                   an empty queue, if there was none
3     look for the record of this source: if it is there,  as 2
      return what it says; if the source has changed
      since, refuse
4     note size, time and inode of the source's files;     as 2, and a copy in the system's directory
      read them, and write the items to a file without a   of temporary files; the file without a
      name in the destination; a copy of a database is     name is gone with the process
      read if it has a journal (``_tables``)
5     note them again: if they differ, refuse; make the    as 4
      record
6     begin the transaction: nobody else can write to the  as 2; the write lock is free
      directory until its end
7     look for the record again: if another run has come   as 6; nothing is done twice
      first, return what it says
8     push the items; what is no item goes to a file of    as 6; what was to be set aside, in
      its own                                              ``<dest>.quarantine-<id>.tmp``, which the
                                                           next run writes anew
9     put the record                                       as 8
10    fsync the file of what was set aside, rename it to   nothing was imported; the next run writes
      ``<dest>.quarantine-<id>``, fsync its directory      the same file again
11    commit and flush                                     all of it is there, and so is the record
====  ===================================================  =========================================

What follows from this: others use the directory while the source is read, however long that takes (measured: 8 s to
look at a million pickles); who writes to it, or opens it, waits for the storing (2 s for a million items of 150
bytes). All must fit in one transaction of LMDB, which keeps up to half a GiB of what it changed in memory and writes
the rest to the file; beside it there must be room for the file without a name. A run that was killed is begun anew and
does not go on where it was: nothing of it may stay, or it would have to be hidden from everybody.

A program that still writes to the source is noticed by step 5 if that happens while it is read, as far as the
times of its file system tell; stop it before. A source that changed after it was imported is refused, since
what is new in it cannot be told from what was there.

**What is imported.** If the library stores ``dumps(item)`` (python-persistent-queue, persist-queue), the bytes are
stored unchanged: open the queue with the ``dumps`` and ``loads`` that they were written with, and pass the same here.
If ``loads`` is ``pickle.loads``, the default, each is inspected opcode by opcode, and must be one complete pickle. With
another ``loads`` the bytes are not inspected. If the library stores text or bytes (litequeue, queuelib), these are the
items, str and bytes as its own reader returns them, encoded by ``dumps``. The module of each format says which records
count as items.

**What is set aside**: torn and damaged records, leftovers of a crash of the old library, and messages marked as failed.
JSON lines: ``queue``, ``source``, ``place`` and ``why`` in words, and ``value``, the bytes in base64.
"""

import json
import os
import pickle
import stat
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import Any

from lmdbqueue._base.errors import FormatError, SourceError
from lmdbqueue._host.directory import absolute, is_queue
from lmdbqueue._host.disk import translated
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._local.transaction import blocks
from lmdbqueue.legacy import _chunks, _file, _tables
from lmdbqueue.legacy._aside import AsideFile
from lmdbqueue.legacy._source import Aside, Expected, Finished, Found, Payload, Source, Stamp, Value, is_pickle

__all__ = ["Imported", "SourceError", "detect", "import_file"]

Progress = Callable[[int, int], object]
Spool = SpooledTemporaryFile[bytes]

_BATCH_ITEMS = 10_000
_BATCH_BYTES = 1 << 22
_IN_MEMORY = 1 << 24  # bytes of a spool


@dataclass(frozen=True)
class Imported:
    """The result of an import; if the import had been done before, the result of that run.

    Attributes:
        format: The format of the source, as ``detect`` names it.
        items: The number of items imported.
        finished: The number of finished items left out.
        set_aside: The number of failed items and of records that are not items.
        quarantine: The file that contains them, or "".
        notes: Other findings, in sentences.
        is_repeated: Whether it was done before, and nothing was added now.
    """

    format: str
    items: int
    finished: int
    set_aside: int
    quarantine: str
    notes: tuple[str, ...]
    is_repeated: bool = False


def detect(path: str | os.PathLike[str], *, table: str | None = None) -> str:
    """Return the format of the queue at a path, which names the library that wrote it.

    Args:
        path: The file or directory.
        table: The queue, in a database that holds several.

    Returns:
        ``"python-persistent-queue"``, ``"persist-queue files"``, ``"persist-queue SQLite"``, ``"litequeue"``,
        ``"queuelib files"`` or ``"queuelib SQLite"``.

    Raises:
        SourceError: It cannot be imported; the error says why.
    """
    return _recognized(os.path.realpath(path), table).format


def import_file(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    name: str = "queue",
    progress: Progress | None = None,
    table: str | None = None,
    dumps: Callable[[Any], bytes] = pickle.dumps,
    loads: Callable[[bytes], Any] = pickle.loads,
) -> Imported:
    """Append all items of another library's queue to a queue of this library.

    It is all or nothing, and as durable as a push when it returns. After a crash, run it again; a run after a complete
    one does nothing. Others can use ``dest`` while the source is read, and wait while its items are stored. The source
    is not changed, and nothing is unpickled.

    Args:
        path: A file or directory of python-persistent-queue, persist-queue, litequeue or queuelib. Its program must not
            be running.
        dest: The queue's directory; created if it is missing.
        name: The queue in the directory.
        progress: Called with the number of records read, including finished ones, and the total that the source
            states, which may be wrong; for the last time before the items are stored.
        table: The queue, in a database that holds several.
        dumps: The ``dumps`` with which the new queue will be used.
        loads: The ``loads`` with which the new queue will be used.

    Returns:
        The result of the import.

    Raises:
        SourceError: The source cannot be imported.
        TransactionError: It was called in a transaction.
        DiskFullError: There is no room. As with every error of a push, nothing was imported.
        CommitUnknownError: Run it again to find out.
    """
    source = _recognized(os.path.realpath(path), table)
    directory = absolute(dest)
    blocks.refuse_inside(directory, "an import")
    options: dict[str, Any] = {"name": name, "dumps": _as_it_is, "loads": _as_it_is, "interval": None}
    with suppress(FormatError):  # no queue is there: it is created, or that says why not
        found = options_of(directory)
        options |= {"checksum": found.checksum, "durability": found.durability}
    with PersistentQueue[bytes](directory, **options) as queue:
        return _Import(source, queue, directory, dumps, loads).run(progress or _nobody)


class _Import:
    """One run of an import. Functions of the user's are called by ``_read`` and ``_earlier``, outside of everything."""

    def __init__(
        self,
        source: Source,
        queue: PersistentQueue[bytes],
        directory: str,
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
    ) -> None:
        self._source = source
        self._queue = queue
        self._dumps = dumps
        self._loads = loads
        self._is_whole = is_pickle if loads is pickle.loads else _anything
        whose = f"{source.path}\0{source.part}\0{queue.name}"
        self._id = sha256(os.fsencode(whose)).hexdigest()[:16]
        self._aside = AsideFile(directory, self._id[:8], queue.name, source.path)
        self._directory = directory
        self._batch: list[bytes] = []
        self._asides: list[Aside] = []
        self._batch_bytes = 0
        self._items = self._finished = self._set_aside = self._damaged = 0
        self._first = ""  # what was set aside first

    def run(self, progress: Progress) -> Imported:
        """Import, or return the result of an earlier run."""
        key = f"imported-{self._id}"
        earlier = self._queue.state.get(key)
        if earlier is not None:
            return self._earlier(key, earlier)
        with SpooledTemporaryFile(_IN_MEMORY, dir=self._directory) as spool:
            imported, record = self._read(spool, progress)
            earlier = self._store(spool, key, record)
        return imported if earlier is None else self._earlier(key, earlier)

    def _earlier(self, key: str, found: bytes) -> Imported:
        try:
            record = self._loads(found)
            record = record if isinstance(record, dict) else json.loads(record)
            stamp, done, when = record["stamp"], record["done"], record["time"]
            imported = Imported(**{**done, "notes": tuple(done["notes"]), "is_repeated": True})
        except Exception as error:
            reason = f"the record of an earlier import, state[{key!r}], cannot be read ({error})"
            raise self._source.error(reason, "pass the dumps and loads that it was imported with") from error
        if [list(each) for each in stamp] != _stamp(self._source):
            raise self._source.error(
                f"it was imported into this queue on {when}, and has changed since: some items may be in both",
                f"choose another queue; or del queue.state[{key!r}] to import everything in it again",
            )
        return imported

    def _read(self, spool: Spool, progress: Progress) -> tuple[Imported, bytes]:
        """Write what is in the source to a spool; return the result, and the record of it."""
        stamp = _stamp(self._source)
        done = total = 0
        with closing(_readable(self._source)) as everything:
            for found in everything:
                if isinstance(found, Expected):
                    total = found.records
                    continue
                self._take(found)
                done += 1
                if len(self._batch) + len(self._asides) >= _BATCH_ITEMS or self._batch_bytes >= _BATCH_BYTES:
                    self._write(spool)
                    progress(done, max(done, total))
        self._write(spool)
        if self._damaged and not self._items:
            raise self._source.error(
                f"none of its items is whole: {self._first}",
                "if they are not pickles, pass the dumps and loads that they were written with",
            )
        if _stamp(self._source) != stamp:
            raise _changed(self._source)
        imported = Imported(
            self._source.format,
            self._items,
            self._finished,
            self._set_aside,
            self._aside.path if self._set_aside else "",
            tuple(self._source.notes),
        )
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"path": self._source.path, "time": when, "stamp": stamp, "done": asdict(imported)}
        recorded = self._recorded(record)
        progress(done, done)
        return imported, recorded

    def _take(self, found: Found) -> None:
        if isinstance(found, Value):
            self._add(bytes(memoryview(self._dumps(found.value))))
        elif isinstance(found, Payload) and self._is_whole(found.data):
            self._add(found.data)
        elif isinstance(found, Payload):
            self._put_aside(Aside(found.data, found.place, "it is not a whole pickle"))
        elif isinstance(found, Aside):
            self._put_aside(found)
        else:
            assert isinstance(found, Finished)
            self._finished += 1

    def _add(self, payload: bytes) -> None:
        self._batch.append(payload)
        self._batch_bytes += len(payload)
        self._items += 1

    def _put_aside(self, found: Aside) -> None:
        self._asides.append(found)
        self._batch_bytes += len(found.data)
        self._set_aside += 1
        self._damaged += found.damaged
        self._first = self._first or f"{found.place}: {found.why}"

    def _write(self, spool: Spool) -> None:
        with translated(self._directory, "import"):
            pickle.dump((self._batch, self._asides), spool)
        self._batch, self._asides = [], []
        self._batch_bytes = 0

    def _store(self, spool: Spool, key: str, record: bytes) -> bytes | None:
        """Store what was read, and the record of it; return the record of a run that did so before, and do nothing."""
        with translated(self._directory, "import"):
            end = spool.tell()
            spool.seek(0)
        try:
            with self._queue.transaction():
                earlier: bytes | None = self._queue.state.get(key)
                if earlier is not None:
                    return earlier
                while spool.tell() < end:
                    with translated(self._directory, "import"):
                        payloads, asides = pickle.load(spool)  # noqa: S301  (written by ``_write``)
                    self._queue.push(payloads)
                    for each in asides:
                        self._aside.add(each)
                self._queue.state[key] = record
                self._aside.publish()
        finally:
            self._aside.discard()
        return None

    def _recorded(self, record: dict[str, Any]) -> bytes:
        """Return the record in a form that the queue's own ``dumps`` accepts: a dict, or JSON as str or bytes."""
        text = json.dumps(record)
        for form in (record, text):
            with suppress(Exception):  # dumps is made for other things
                return bytes(memoryview(self._dumps(form)))
        return bytes(memoryview(self._dumps(text.encode())))


def _recognized(path: str, table: str | None) -> Source:
    try:
        if os.path.isdir(path):
            if source := _chunks.recognize(path):
                return source
            if is_queue(path):
                raise SourceError(
                    path, "it is a queue of lmdbqueue", "open it as it is; or import what lmdbqueue export prints of it"
                )
            inside = os.path.join(path, "data.db")  # persist-queue's name for it
            if not os.path.isfile(inside):
                raise SourceError(
                    path, "it is a directory, but not of a known queue", "give the path of a queue, or of its database"
                )
            path = inside
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SourceError(path, "it is not a regular file", "give the path of a queue")
        if _tables.is_database(path):
            return _tables.recognize(path, table)
        if source := _file.recognize(path):
            return source
    except FileNotFoundError as error:
        left = _file.left_by_a_flush(path)
        advice = f"an interrupted flush left its items in {left!r}: import that" if left else "give the path of a queue"
        raise SourceError(path, "there is no such file", advice) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    raise SourceError(
        path,
        "it is not the file of a known queue",
        "give the path of one of python-persistent-queue, persist-queue, litequeue or queuelib",
    )


def _readable(source: Source) -> Generator[Found, None, None]:
    """Yield the records of the source; raise ``SourceError`` if it cannot be read."""
    try:
        yield from source.read()
    except FileNotFoundError as error:
        raise _changed(source) from error
    except OSError as error:
        raise _unreadable(source.path, error) from error


def _stamp(source: Source) -> Stamp:
    try:
        return source.stamp()
    except OSError as error:
        raise _changed(source) from error


def _changed(source: Source) -> SourceError:
    return source.error("it was changed while it was read", "stop the program that uses it, and import it then")


def _unreadable(path: str, error: OSError) -> SourceError:
    return SourceError(path, f"it cannot be read ({error})", "check its permissions and its disk")


def _as_it_is(payload: bytes) -> bytes:
    return payload


def _anything(_payload: bytes) -> bool:
    return True


def _nobody(_done: int, _total: int) -> None:
    pass
