"""One generation: an open LMDB environment, and one transaction at a time on it.

Owns: everything LMDB. No other module imports it, so no other can be bitten by it. Law: functions of
a transaction come in, results or our own errors go out; a commit that returned is on disk (unless the
queue was created with ``durability="off"``). Must not know: which generation is the live one, who
else has it open, what an item means.

What LMDB demands, and where it is answered:

- Opening a file twice in one process breaks its locks: ``_env`` keeps one Generation a file.
- ``open_db`` without a transaction waits for the write lock *with the GIL held*: handles are opened
  here inside a write transaction, whose begin frees the GIL.
- Ending a transaction in a forked child damages the parent's: ``_env`` lets none be open at a fork.
- A value cannot be written over 4 GiB; a map cannot be outgrown: it is reserved large, which costs
  address space only, and less where that is limited (``ulimit -v``).
- ``commit`` may be interrupted after the fact (KeyboardInterrupt): whether a transaction is still
  open tells whether it took place.
"""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import lmdb

from lmdbqueue import _format
from lmdbqueue._directory import disk_full
from lmdbqueue._errors import AccessError, CommitUnknownError, CorruptQueueError, Full, QueueError, StorageError

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]
else:
    Txn = lmdb.Transaction  # which is generic in its stubs only
Db = Any  # lmdb's class for a handle has no public name

_MAP_SIZES: Final = tuple(1 << bits for bits in range(40, 27, -1))  # 1 TiB down to 256 MiB
_MAX_DBS: Final = 256  # 0.14 us more a read transaction than 8
_MAX_READERS: Final = 1022  # 64 bytes each in the lock file
_META_PAGES: Final = 2
_META_RECORD: Final = Struct("=16x II 16x I 92x QQ")  # page header, magic, version, page size, last page, txn
_DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.NotFoundError,  # of a database that every queue has
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    SystemError,
)
_DB_RECORD: Final = Struct("=IHHQQQQQ")  # LMDB's MDB_db; fields 3 to 5: branch, leaf and overflow pages


class Superseded(Exception):
    """The generation is continued in the next one; nothing was done."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Where one named queue's records are in one generation."""

    generation: "Generation"
    name: str
    items: Db
    meta: Db
    head: bytes
    tail: bytes
    sealed: bool


@dataclass(slots=True, eq=False)
class Call:
    """A function of a write transaction that waits to be run, and then how it ended.

    ``fn(txn, tables, *args)`` returns what it changed; an empty answer says that it changed nothing.
    It looks before it writes: when it raises ``Full`` it has written nothing.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    result: Any = None
    error: BaseException | None = None
    done: bool = False


class Generation:
    """An open LMDB environment. At most one for a file in a process."""

    def __init__(self, path: str, number: int, options: _format.Options) -> None:
        """Open the file at ``path``, which exists."""
        self.path = path
        self.number = number
        self._is_closed = False
        self._sealed = options.checksum
        self._tables: dict[str, Tables] = {}
        self._meta: Db = None
        try:
            _refuse_damaged(path)
            self._env = _open(path, sync=options.durability == "full")
        except lmdb.Error as error:
            raise self._translate(error, "opening") from error

    def close(self) -> None:
        """Close the environment, which nobody writes to; other threads that read it are told that it is superseded."""
        self._is_closed = True
        self._env.close()

    def is_superseded(self) -> bool:
        """Tell whether the queue goes on in the next generation."""
        try:
            with self._env.begin() as txn:
                return txn.get(_format.NEXT_GENERATION) is not None
        except lmdb.Error as error:
            raise self._translate(error, "reading") from error

    def prepare(self, name: str | None, create: Callable[[Txn, Tables], object]) -> None:
        """Open the handles of every queue that is there, and make the queue ``name`` if it is not.

        Takes the write lock, since LMDB wants it so; writes nothing where nothing is missing.
        """
        try:
            with self._env.begin(write=True) as txn:
                self._refuse_superseded(txn)
                with txn.cursor() as cursor:
                    names = {_format.queue_of(key) for key in cursor.iternext(values=False)} - {None}
                meta = self._env.open_db(_format.META, txn=txn, create=False)
                tables = {each: self._table(txn, each, meta) for each in names if each is not None}
                if name is not None and name not in tables:
                    tables[name] = self._table(txn, name, meta)
                    create(txn, tables[name])
                    self._stamp(txn, meta)
        except lmdb.Error as error:
            raise self._translate(error, "opening") from error
        self._meta = meta
        self._tables = tables

    def _table(self, txn: Txn, name: str, meta: Db) -> Tables:
        return Tables(
            generation=self,
            name=name,
            items=self._env.open_db(_format.record(name, "items"), txn=txn),
            meta=meta,
            head=_format.record(name, "head"),
            tail=_format.record(name, "tail"),
            sealed=self._sealed,
        )

    def view(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(txn, tables, *args)`` of a read transaction: a snapshot of one moment."""
        try:
            with self._env.begin() as txn:
                self._refuse_superseded(txn)
                return fn(txn, self._tables[name], *args)
        except (lmdb.Error, SystemError) as error:
            raise self._translate(error, "reading") from error

    def update(self, calls: Sequence[Call]) -> None:
        """Run the calls in one transaction and commit it; mark each ``done`` with its result or error.

        A call that raises ``Full`` leaves the others alone. When anything else is raised the
        transaction is undone, and each call gets one of its own, so that only the culprit fails.
        """
        try:
            self._run(calls)
        except Superseded:
            raise
        except Exception as error:  # it goes to the callers that it belongs to
            if len(calls) > 1 and not isinstance(error, CommitUnknownError):
                for call in calls:
                    self.update([call])
                return
            for call in calls:
                call.error = self._translate(error, "writing")
            _finish(calls)

    def _run(self, calls: Sequence[Call]) -> None:
        txn = self._env.begin(write=True)
        try:
            self._refuse_superseded(txn)
            changed = False
            for call in calls:
                call.error = None
                try:
                    call.result = call.fn(txn, self._tables[call.name], *call.args)
                    changed = bool(call.result) or changed
                except Full as error:
                    call.error = error
            if changed:
                self._stamp(txn, self._meta)
                self._commit(txn)
            else:
                txn.abort()
        except BaseException as error:
            if _is_open(txn):
                txn.abort()
            elif not isinstance(error, Exception):  # interrupted after the end: it counts
                _finish(calls)
            raise
        _finish(calls)

    def _commit(self, txn: Txn) -> None:
        """Commit durably: when this returns the transaction is on disk. The only place that commits a verb."""
        try:
            txn.commit()
        except lmdb.Error as error:
            if isinstance(error, (lmdb.MapFullError, lmdb.TxnFullError)):
                raise
            raise CommitUnknownError(self.path, "commit", str(error)) from error

    def supersede(self, txn: Txn) -> None:
        """Announce in ``txn``, and commit, that the queue goes on in the next generation."""
        try:
            txn.put(_format.NEXT_GENERATION, _format.pack(self.number + 1))
            self._commit(txn)
        except lmdb.Error as error:
            raise self._translate(error, "compaction") from error

    def begin_exclusive(self) -> Txn:
        """Begin a write transaction, for whoever needs the write lock itself. To be ended by the caller."""
        try:
            txn = self._env.begin(write=True)
            try:
                self._refuse_superseded(txn)
            except BaseException:
                txn.abort()
                raise
        except lmdb.Error as error:
            raise self._translate(error, "locking") from error
        return txn

    def copy(self, fd: int) -> None:
        """Write a compacted copy of the newest snapshot to an open, empty file. Not synced."""
        try:
            self._env.copyfd(fd, compact=True)
        except lmdb.Error as error:
            raise self._translate(error, "copying") from error

    def queues(self) -> list[Tables]:
        """Return the queues whose handles are open."""
        return list(self._tables.values())

    def size(self) -> int:
        """Return the size of the file, in bytes."""
        return os.stat(self.path).st_size

    def used(self, txn: Txn) -> int:
        """Return how many bytes the pages in use take, as ``txn`` sees it."""
        handles = {_format.record(name, "items"): tables.items for name, tables in self._tables.items()}
        handles[_format.META] = self._meta
        total = txn.stat()
        pages = _META_PAGES + _pages(total)
        with txn.cursor() as cursor:
            for key, value in cursor.iternext():
                if key in handles:
                    pages += _pages(txn.stat(handles[key]))
                elif len(value) == _DB_RECORD.size:  # a queue that another process has made since
                    pages += sum(_DB_RECORD.unpack(value)[3:6])
        return pages * total["psize"]

    def _refuse_superseded(self, txn: Txn) -> None:
        if txn.get(_format.NEXT_GENERATION) is not None:
            raise Superseded

    def _stamp(self, txn: Txn, meta: Db) -> None:
        txn.put(_format.LAST_TXN, _format.pack(txn.id()), db=meta)

    def _translate(self, error: Exception, operation: str) -> Exception:
        """Return our error for one of LMDB's; an error of ours passes."""
        if self._is_closed:
            return Superseded()
        if isinstance(error, QueueError) or not isinstance(error, (lmdb.Error, SystemError)):
            return error
        if isinstance(error, _DAMAGE):
            return CorruptQueueError(self.path, str(error))
        if os.strerror(errno.EACCES) in str(error):
            return AccessError(self.path, str(error))
        if os.statvfs(self.path).f_bavail == 0:  # LMDB reports a full disk as an input/output error
            return disk_full(self.path)
        return StorageError(self.path, operation, str(error))


def build(path: str) -> None:
    """Write a new environment without any queue to ``path``, where nothing is."""
    try:
        env = _open(path, sync=True)
        try:
            with env.begin(write=True) as txn:
                meta = env.open_db(_format.META, txn=txn)
                txn.put(_format.LAST_TXN, _format.pack(txn.id()), db=meta)
        finally:
            env.close()
    except lmdb.Error as error:
        raise StorageError(path, "creation", str(error)) from error
    os.unlink(path + "-lock")


def refuse_superseded(path: str) -> None:
    """Raise ``Superseded`` if the file at ``path``, which nobody has open, is continued in another."""
    generation = Generation(path, 0, _format.Options())
    try:
        superseded = generation.is_superseded()
    finally:
        generation.close()
        os.unlink(path + "-lock")
    if superseded:
        raise Superseded


def structural_problems(path: str) -> list[str]:
    """Return what is wrong with the pages and trees of a file that nobody writes to meanwhile."""
    from lmdb import verify  # noqa: PLC0415  (seldom needed, and imports must be quick)

    try:
        problems: list[str] = verify.verify(path)  # type: ignore[no-untyped-call]
    except verify.VerifyError as error:
        return [str(error)]
    return problems


def _open(path: str, *, sync: bool) -> lmdb.Environment:
    refusal: Exception | None = None
    for map_size in _MAP_SIZES:
        try:
            env = lmdb.open(
                path,
                map_size=map_size,
                subdir=False,
                sync=sync,
                mode=0o600,
                max_readers=_MAX_READERS,
                max_dbs=_MAX_DBS,
                lib_version=0,
            )
        except (lmdb.MemoryError, lmdb.Error) as error:
            if "Cannot allocate memory" not in str(error):
                raise
            refusal = error
        else:
            env.reader_check()
            return env
    assert refusal is not None  # there is at least one size
    raise refusal


def _pages(stat: Any) -> int:
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages


def _refuse_damaged(path: str) -> None:
    """Raise ``CorruptQueueError`` for what LMDB would not survive: no meta page, or pages beyond the end.

    LMDB maps the file and trusts its meta pages; reading behind the end kills the process (SIGBUS).
    """
    with open(path, "rb") as file:
        first = _Meta.read(file, 0)
        if not first.is_sound:
            raise CorruptQueueError(path, "it does not begin with a meta page of LMDB 0.9")
        second = _Meta.read(file, first.page_size)
        size = os.fstat(file.fileno()).st_size  # after them: a writer lets the file grow before its meta page tells
    if not second.is_sound:
        raise CorruptQueueError(path, "its second meta page is damaged")
    pages = max(first, second, key=lambda meta: meta.txn).last_page + 1
    # it may end before its last page, if only free ones are missing: LMDB does not write pages that were
    # allocated and freed in one transaction; the walk through all trees tells
    if size < pages * first.page_size and structural_problems(path):
        raise CorruptQueueError(path, f"it is cut off: {size:,} bytes, and its {pages:,} pages need more")


@dataclass(frozen=True, slots=True)
class _Meta:
    """The part of a meta page of LMDB 0.9 that tells whether the file can be opened."""

    is_sound: bool
    page_size: int
    last_page: int
    txn: int

    @classmethod
    def read(cls, file: BinaryIO, offset: int) -> "_Meta":
        file.seek(offset)
        data = file.read(_META_RECORD.size)
        if len(data) < _META_RECORD.size:
            return cls(is_sound=False, page_size=0, last_page=0, txn=0)
        magic, version, page_size, last_page, txn = _META_RECORD.unpack(data)
        is_sound = (magic, version) == (0xBEEFC0DE, 1) and 256 <= page_size <= 1 << 15  # noqa: PLR2004  (LMDB's own)
        return cls(is_sound, page_size, last_page, txn)


def _is_open(txn: Txn) -> bool:
    with suppress(lmdb.Error):
        txn.id()
        return True
    return False


def _finish(calls: Iterable[Call]) -> None:
    for call in calls:
        call.done = True
