"""Queues in SQLite databases: of persist-queue, litequeue and queuelib.

Owns: those formats. Law: the database is read as it is on the disk, completely or not at all, and neither its file nor
one beside it is changed. Must not know: queues, what happens to the records that it yields.

=====================================  ================================  ======================================
library, versions                      table                             the items, and their order
=====================================  ================================  ======================================
persist-queue 0.2 to 1.1, SQLiteQueue  ``queue_<name>`` (``queue`` of    ``data``, by ``_id``
and UniqueQ                            the asynchronous one),
                                       ``unique_queue_<name>``
persist-queue, SQLiteAckQueue and      ``ack_queue_<name>``,             ``data`` by ``_id``, of status 0, 1
UniqueAckQ                             ``ack_unique_queue_<name>``       (ready) and 2 (unacked); 5 (acked) is
                                                                         finished, 9 (failed) is set aside
litequeue 0.6 to 0.14                  any name, ``Queue`` by default    ``data`` by ``message_id``, of status
                                                                         0 (ready) and 1 (locked); 2 (done)
                                                                         is finished, 3 (failed) set aside
litequeue 0.1 to 0.5                   ``Queue``                         ``message``, by ``rowid``; the same
queuelib, FifoSQLiteQueue              ``queue``                         ``item``, by ``id``
=====================================  ================================  ======================================

Tables with another order (FILO and priority queues of persist-queue) or none (``PDict``) are refused. The table of
queuelib's LifoSQLiteQueue cannot be distinguished from that of FifoSQLiteQueue.

SQLite changes files even when it only reads: it creates the index of a WAL, and applies a WAL or a journal left by a
killed program. So a database that has neither is opened as immutable; otherwise it is copied with them to the directory
for temporary files, and the copy is opened.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from lmdbqueue._base.errors import SourceError
from lmdbqueue.legacy._source import Aside, Expected, Finished, Found, Payload, Source, Value

_MAGIC: Final = b"SQLite format 3\0"
_BESIDE: Final = ("-wal", "-journal")
_WAITS, _FINISHED, _FAILED = "waits", "finished", "failed"
_PERSIST_QUEUE: Final = {0: _WAITS, 1: _WAITS, 2: _WAITS, 5: _FINISHED, 9: _FAILED}
_LITEQUEUE: Final = {0: _WAITS, 1: _WAITS, 2: _FINISHED, 3: _FAILED}
_REFUSED: Final = {
    "filo_queue_": "a FILO queue",
    "ack_filo_queue_": "a FILO queue",
    "priority_queue_": "a priority queue",
    "dict_": "a dict",
}


class _Kind(NamedTuple):
    """The kind of a table."""

    format: str
    item: str  # a column
    order: str
    status: dict[int, str] | None  # the meaning of the values of the status column, if there is one
    is_encoded: bool  # whether the library's dumps has encoded it


class _Damaged(bytes):
    """Text that is not UTF-8."""


class Table(Source):
    """One queue in a database."""

    def __init__(self, path: str, table: str, kind: _Kind) -> None:
        super().__init__(path)
        self.part = table
        self.format = kind.format
        self._kind = kind

    def files(self) -> Sequence[str]:
        """Return the database, and SQLite's files beside it."""
        return _files(self.path)

    def read(self) -> Iterator[Found]:
        """Yield the items of the rows, after SQLite has found no damage in the whole database."""
        kind = self._kind
        status = "0" if kind.status is None else "status"
        table = _quoted(self.part)
        query = f"SELECT {kind.item}, {status}, rowid FROM {table} ORDER BY {kind.order}"  # noqa: S608  (a name of it)
        with _opened(self.path) as db:
            problems = [row[0] for row in db.execute("PRAGMA integrity_check")]
            if problems != ["ok"]:
                raise self.error(f"SQLite finds it damaged ({problems[0]})", "repair a copy of it, and import that")
            yield Expected(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  (the same)
            for value, state, row in db.execute(query):
                meaning = _WAITS if kind.status is None else kind.status.get(state, f"of the unknown status {state!r}")
                yield _found(value, meaning, f"row {row}", is_encoded=kind.is_encoded)


def _found(value: Any, meaning: str, place: str, *, is_encoded: bool) -> Found:
    data = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
    if meaning == _FINISHED:
        return Finished(place)
    if meaning == _FAILED:
        return Aside(data, place, "its consumer marked it as failed", damaged=False)
    if meaning != _WAITS:
        return Aside(data, place, f"it is {meaning}")
    if isinstance(value, _Damaged):
        return Aside(data, place, "it is text that is not UTF-8")
    if not isinstance(value, (bytes, str)):
        return Aside(data, place, f"it is not an item, but {value!r}")
    return Payload(data, place) if is_encoded else Value(value, place)


def recognize(path: str, table: str | None) -> Table:
    """Return the queue in a database, selected by ``table`` if there are several; raise ``SourceError`` for none."""
    found, refused = _tables(path)
    others = ", ".join(map(repr, found))
    if table is not None:
        found = {name: kind for name, kind in found.items() if name == table}
        refused = {name: what for name, what in refused.items() if name == table}
    if len(found) == 1:
        return Table(path, *found.popitem())
    if found:
        raise SourceError(
            path, f"it holds several queues: the tables {others}", "name one of them by table=, or --table in a shell"
        )
    if refused:
        name, what = refused.popitem()
        raise SourceError(
            path,
            f"its table {name!r} is {what} of persist-queue, not a FIFO queue",
            "read it with persist-queue",
        )
    wanted = "no table" if table is None else f"no table {table!r}"
    raise SourceError(
        path,
        f"it is an SQLite database with {wanted} of persist-queue, litequeue or queuelib",
        f"name one of its tables: {others}" if others else "give the path of one of their queues",
    )


def _tables(path: str) -> tuple[dict[str, _Kind], dict[str, str]]:
    """Return the tables that are queues with their kinds, and the refused ones with their descriptions."""
    found: dict[str, _Kind] = {}
    refused: dict[str, str] = {}
    with _opened(path) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        for name in filter(_is_text, names):
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({_quoted(name)})")}
            prefix = next((each for each in _REFUSED if name.startswith(each)), None)
            if prefix and "data" in columns:
                refused[name] = _REFUSED[prefix]
            elif kind := _kind(name, columns):
                found[name] = kind
    return found, refused


def _kind(name: str, columns: set[str]) -> _Kind | None:
    if {"_id", "data", "timestamp"} <= columns and name.startswith(("queue", "unique_queue_", "ack_")):
        status = _PERSIST_QUEUE if "status" in columns else None
        return _Kind("persist-queue SQLite", "data", "_id", status, is_encoded=True)
    if {"status", "in_time", "lock_time"} <= columns and columns & {"data", "message"}:
        item, order = ("data", "message_id, rowid") if "data" in columns else ("message", "rowid")
        return _Kind("litequeue", item, order, _LITEQUEUE, is_encoded=False)
    if name == "queue" and columns == {"id", "item"}:
        return _Kind("queuelib SQLite", "item", "id", None, is_encoded=False)
    return None


def is_database(path: str) -> bool:
    """Return whether a file is an SQLite database, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _files(path: str) -> list[str]:
    return [path, *filter(os.path.exists, (path + suffix for suffix in _BESIDE))]


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """Open the database, in place or as a copy, for reading. SQLite's errors become ``SourceError``."""
    try:
        if any(os.path.getsize(each) for each in _files(path)[1:]):
            with TemporaryDirectory(prefix="lmdbqueue-") as place:
                copy = os.path.join(place, "copy")
                for each in _files(path):
                    shutil.copyfile(each, copy + each[len(path) :])
                with _connected(f"file:{quote(copy)}") as db:
                    yield db
        else:
            with _connected(f"file:{quote(path)}?mode=ro&immutable=1") as db:
                yield db
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:  # garbage causes the last two
        reason = f"SQLite cannot read it ({error})"
        raise SourceError(path, reason, "recover a copy with sqlite3 (.recover), and import that") from error


@contextmanager
def _connected(uri: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.text_factory = _text
        yield db


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _Damaged(data)


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
