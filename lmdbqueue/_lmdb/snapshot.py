"""A file at rest, to which no process writes, and a draft, which no other process has open.

Owns: the tables of the queues of a file. Law: functions of a transaction come in, results or our own errors go out.
Must not know: which generation is the live one, what an item means.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple
from weakref import ReferenceType
from zlib import crc32

import lmdb

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError, ForkError, Full, GoneError
from lmdbqueue._base.values import NamedTuple
from lmdbqueue._host import fork
from lmdbqueue._host.disk import translated
from lmdbqueue._lmdb import free_pages, opening
from lmdbqueue._lmdb.content import Content, Running
from lmdbqueue._lmdb.failures import DAMAGE, Superseded, failure
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.opening import MANY_DBS, open_environment

if TYPE_CHECKING:
    Txn = lmdb.Transaction[bytes]
else:
    Txn = lmdb.Transaction  # generic only in lmdb's stubs
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
Db = Any  # lmdb's class for a handle has no public name
Cursor = Any  # generic in lmdb's stubs only

_ALL: Final = (1 << 64) - 1


class Ref(NamedTuple):
    """Identifies a queue of a directory: a dropped queue and a later one of the same name are different."""

    name: str
    identity: bytes


class Tables(NamedTuple):
    """The places of one queue's records in one generation."""

    generation: Snapshot
    name: str
    identity: bytes
    salt: int  # from which the seals of its items start
    items: Db
    meta: Db
    away: Db
    queue: bytes  # key of its record
    seed: int  # checksum of that key
    retain: bytes  # key of the record of retention
    sealed: bool
    weighed: bool
    lease: bytes  # prefix of its leases' keys in AWAY
    leased: bytes
    owner: bytes
    expiry: bytes
    passed: bytes
    skips: bytes
    reader: bytes  # prefix of the keys of readers' records in META


class Kept(NamedTuple):
    """A snapshot whose pages are not reused before its transaction has ended."""

    txn: Txn
    meta: MetaPage


class Snapshot:
    """A file at rest, and the readings of a generation that do not need a part in it."""

    _env: lmdb.Environment
    is_named = True  # if not, it is completely on the disk before it gets its name, and no content weight is recorded

    def __init__(self, path: str, options: _format.Options) -> None:
        """Open the file at ``path``, which exists, for reading."""
        self._life = fork.life  # in a forked child it is another one: then nothing of LMDB may be ended here
        self.path = path
        self.directory = os.path.dirname(path)
        self.options = options
        self._tables: dict[Ref, Tables] = {}
        self._written: set[Ref] = set()  # queues that the transaction under way may have written to
        self.meta: Db = None
        self.away: Db = None
        self.weight = 0  # added by the transaction under way to the weight of the records (see _model.weighed_records)
        self._is_weighed = is_weighed(options)
        self._is_full = options.durability == "full"
        self._new_content = Running if options.durability == "interval" else Content
        self.content = self._new_content()  # the items that it adds
        # the last transaction committed here, the weight that it left, and its content weight if that is a running sum
        self._left: tuple[int, int | None, int] = (-1, None, 0)
        self._leaves: tuple[int, int | None, int] = (-1, None, 0)  # the same, of the transaction under way
        self._is_closed = False
        self.is_broken = False  # whether LMDB refuses everything until the file is reopened
        self._is_confined = False  # whether there is no address space for a larger map
        with self._translated("opening"):
            self._env, self._map_size = self._open()

    def _open(self) -> tuple[lmdb.Environment, int]:
        return open_environment(self.path, readonly=True, lock=False, max_dbs=MANY_DBS)

    def close(self) -> None:
        """Close the environment, to which no thread is writing; for threads that read it, it is then superseded."""
        self._is_closed = True
        self._env.close()

    def read(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return ``fn(txn, self, *args)`` in a read transaction, even if the generation is superseded."""
        with self._translated("reading"):
            return self._look(self._read_all, fn, *args)

    def _read_all(self, txn: Txn, fn: Callable[..., Any], *args: Any) -> Any:
        self._tables.clear()  # the handles of a reading transaction end with it
        self._keep(self.open_all(txn))
        return fn(txn, self, *args)

    def _look(self, fn: Callable[[Txn, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, *args)`` on the newest snapshot."""
        txn = self._env.begin()
        try:
            return fn(txn, *args)
        finally:
            self._refuse_inherited()
            txn.abort()

    def _refuse_inherited(self) -> None:
        """Raise ``ForkError`` in a child that a signal handler has forked amid a transaction, which is the parent's."""
        if self._life is not fork.life:
            raise ForkError(self.directory)

    def is_superseded(self) -> bool:
        """Return whether the queue continues in the next generation."""
        with self._translated("reading"):
            return self._look(_is_marked)

    def table(self, ref: Ref) -> Tables:
        """Return the tables of a queue. Raises ``GoneError`` if it was dropped."""
        try:
            return self._tables[ref]
        except KeyError:
            raise GoneError(self.directory, ref.name) from None

    def table_to_write(self, ref: Ref) -> Tables:
        """Like ``table``, in a transaction that may write to it."""
        self._written.add(ref)
        return self.table(ref)

    def knows(self, ref: Ref) -> bool:
        """Return whether the handles of a queue are open."""
        return ref in self._tables

    def names(self, txn: Txn) -> list[str]:
        """Return the names of all queues that ``txn`` sees, in order."""
        with txn.cursor() as cursor:
            found = map(_format.queue_of, cursor.iternext(values=False))
            return sorted(name for name in found if name is not None)

    def recorded(self, txn: Txn) -> set[str]:
        """Return the names of all queues that have a record, even if they have no items."""
        with txn.cursor(self.meta) as cursor:
            found = [_format.split_record(key) for key in cursor.iternext(values=False)]
        return {name for name, what in found if what == "queue"}

    def queues(self) -> list[Tables]:
        """Return the queues whose handles are open."""
        return list(self._tables.values())

    def last(self, txn: Txn) -> _format.Last:
        """Return the record of the last transaction that changed anything."""
        return _format.Last.unpack(txn.get(_format.LAST_TXN, db=self.meta))

    def weighed(self, txn: Txn) -> int:
        """Return the computed weight of the records, which should equal that in ``last``."""
        total = 0
        for db in (self.meta, self.away):
            with txn.cursor(db) as cursor:
                total += sum(_format.weigh_in(db is self.away, key, value) for key, value in cursor.iternext())
        return total % (1 << 64)

    def note_last(self, txn: Txn) -> None:
        """Record the number of the transaction that changes something, and the weights that it leaves."""
        number = txn.id()
        weight = None
        base = 0
        if self._is_weighed:
            last, before, base = self._left
            if last != number - 1:
                _, before, noted = self.last(txn)
                base = noted or 0 if self.content.is_running else 0
            weight = (self.weighed(txn) if before is None else before + self.weight) & _ALL
        content = (base + self.content.weight) & _ALL if self.is_named or self.content.is_running else None
        self._leaves = number, weight, content if self.content.is_running and content is not None else 0
        txn.put(_format.LAST_TXN, _format.pack_last(number, weight, content), db=self.meta)

    def extent(self) -> int:
        """Return the bytes of the file up to its last page, without blocks allocated in advance."""
        return int(self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def use_reserve(self, txn: Txn, added: int, quarters: int) -> None:
        """Do nothing: a file at rest has room."""

    def used_at_most(self, _txn: Txn) -> int:
        """Return an upper bound for the bytes of the pages in use."""
        return self.extent()

    def used(self, txn: Txn) -> int:
        """Return the bytes of the pages in use that ``txn`` sees; the extent if it is too old to know."""
        with translated(self.path, "reading"):
            try:
                found = free_pages.used(self.path, txn.id())
            except FileNotFoundError:  # a swap came after the snapshot, and removed the name
                raise Superseded from None
        return found if found is not None else self.extent()

    def used_by(self, txn: Txn, db: Db) -> int:
        """Return the bytes of the pages of one database."""
        stat = txn.stat(db)
        return _pages(stat) * int(stat["psize"])

    def copy(self, fd: int, kept: Kept | None = None) -> bool:
        """Write a compacted copy of a kept snapshot, or of the newest one, to an open, empty file. Not synced.

        Return whether it is a copy of the kept one, which a build of LMDB without its binding's patches cannot make.
        """
        with self._translated("copying"):
            if kept is not None:
                with suppress(TypeError):
                    if self._life is not fork.life:  # as for every commit
                        self._refuse_inherited()
                    self._env.copyfd(fd, compact=True, txn=kept.txn)
                    return True
            if self._life is not fork.life:
                self._refuse_inherited()
            self._env.copyfd(fd, compact=True)
            return False

    def open_all(self, txn: Txn) -> list[Tables]:
        """Open the handles of every queue that ``txn`` sees; return their tables.

        LMDB allows this to one transaction of a process at a time: a write transaction, or any of a file at rest. LMDB
        closes these handles again if the transaction is undone.
        """
        self._open_shared(txn, create=False)
        found = [self._existing(txn, each) for each in self.names(txn)]
        return [each for each in found if each is not None]

    def open_to(self, txn: Txn) -> list[Tables]:
        """Return the tables of the queues that ``txn`` sees and whose handles are open.

        Queues that another process has dropped are left out, though their handles may still be open.
        """
        records = ((name, txn.get(_format.record(name, "queue"), db=self.meta)) for name in self.names(txn))
        found = (self._tables.get(Ref(name, _format.identity(each))) for name, each in records if each is not None)
        return [each for each in found if each is not None]

    def _open_shared(self, txn: Txn, *, create: bool) -> None:
        self.meta = self._env.open_db(_format.META, txn=txn, create=create)
        self.away = self._env.open_db(_format.AWAY, txn=txn, create=create)

    def _existing(self, txn: Txn, name: str) -> Tables | None:
        """Open the handle of a queue; return its tables, None if there is no such queue."""
        record = txn.get(_format.record(name, "queue"), db=self.meta)
        key = _format.record(name, "items")
        if record is None or txn.get(key) is None:
            return None
        return self._known_by(record, self._table(name, self._env.open_db(key, txn=txn, create=False)))

    @staticmethod
    def _known_by(record: bytes, tables: Tables) -> Tables:
        return tables._replace(identity=_format.identity(record), salt=_format.salt(record))

    def _keep(self, found: Iterable[Tables]) -> None:
        """Remember queues. Their handles must be open for good, which those of an undone transaction are not."""
        for each in found:
            self._tables.setdefault(Ref(each.name, each.identity), each)

    def _table(self, name: str, items: Db) -> Tables:
        key = _format.record(name, "queue")
        sealed = self.options.checksum
        return Tables(
            generation=self,
            name=name,
            identity=b"",
            salt=0,
            items=items,
            meta=self.meta,
            away=self.away,
            queue=key,
            seed=crc32(key),
            retain=_format.record(name, "retain"),
            sealed=sealed,
            weighed=self._is_weighed,
            lease=_format.away(name, "lease"),
            leased=_format.away(name, "leased"),
            owner=_format.away(name, "owner"),
            expiry=_format.away(name, "expiry"),
            passed=_format.away(name, "passed"),
            skips=_format.away(name, "skips"),
            reader=_format.record(name, "reader/"),
        )

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, SystemError) as error:
            raise self.explain(error, operation) from error

    def explain(self, error: Exception, operation: str) -> Exception:
        """Return our error for one of LMDB's; any other passes."""
        if isinstance(error, struct.error):  # no version writes it like that
            return CorruptQueueError(self.path, f"one of its records cannot be read: {error}")
        if not isinstance(error, (lmdb.Error, SystemError)):
            return error
        is_outgrown = isinstance(error, lmdb.MapFullError) and not self._is_confined
        if is_outgrown or isinstance(error, (lmdb.PanicError, lmdb.MapResizedError)):  # the latter: by another process
            self.is_broken = True
        if self._is_closed or self.is_broken:
            return Superseded()
        if isinstance(error, DAMAGE):
            return CorruptQueueError(self.path, str(error))
        if isinstance(error, lmdb.MapFullError):
            return Full("address space", self._map_size, self._map_size, 0)
        return failure(self.path, error, operation)


class Draft(Snapshot):
    """An unfinished copy, which no other process has open."""

    is_named = False

    def _open(self) -> tuple[lmdb.Environment, int]:
        try:
            return open_environment(self.path, sync=False, lock=False, max_dbs=MANY_DBS)
        except lmdb.Error:
            gc.collect()  # an interrupt may have left an open one behind
            return open_environment(self.path, sync=False, lock=False, max_dbs=MANY_DBS)

    def change(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return what ``fn(txn, self, *args)`` changed in a transaction; if that is falsy, nothing is written.

        Not durable.
        """
        with self._translated("compaction"):
            txn = self._env.begin(write=True)
            self.weight = 0
            self.content = self._new_content()
            self._tables.clear()
            try:
                self._open_shared(txn, create=False)
                result = fn(txn, self, *args)
                if result:
                    self.note_last(txn)
                    if self._life is not fork.life:  # as for every commit (``_lmdb.durability``)
                        self._refuse_inherited()
                    txn.commit()
            finally:
                end(txn)
            return result

    def weigh_as(self, txn: Txn, weight: int | None) -> None:
        """Adopt the weight of the records of an identical file; recompute it if None."""
        before = self.last(txn).weight
        if before is not None:
            self.weight = (self.weighed(txn) if weight is None else weight) - before

    def database(self, txn: Txn, key: bytes) -> Db:
        """Return the handle of a sub-database; create it if it is missing."""
        return self._env.open_db(key, txn=txn)

    def sync(self) -> None:
        """Bring the file to the disk."""
        with self._translated("compaction"):
            self._env.sync(True)  # noqa: FBT003  (its name for it is force, and positional is what the stubs know)

    def explain(self, error: Exception, operation: str) -> Exception:
        """Return our error for one of LMDB's; any other passes."""
        return failure(self.path, error, operation) if isinstance(error, lmdb.Error) else error


def is_proven_at_opening(options: _format.Options) -> bool:
    """Return whether a queue with these options is flushed less than LMDB requires, hence verified after cuts."""
    return options.checksum or options.durability != "full"


def is_weighed(options: _format.Options) -> bool:
    """Return whether such a queue keeps the weight of its records, which reveals torn transactions."""
    return options.checksum and options.durability != "off"


def remember(path: str, options: _format.Options) -> None:
    """Write these options into a copy that no other process has open yet. Not durable."""
    with opening.unfinished:
        draft = Draft(path, options)
        try:
            draft.change(_remember, options)
        finally:
            draft.close()


def _remember(txn: Txn, _draft: Snapshot, options: _format.Options) -> bool:
    return txn.put(_format.OPTIONS, _format.seal(_format.OPTIONS, options.to_json()))


def _is_marked(txn: Txn) -> bool:
    return txn.get(_format.NEXT_GENERATION) is not None


def end(txn: Txn) -> None:
    """Undo a transaction unless it has ended."""
    if is_open(txn):
        txn.abort()


def undo(left: ReferenceType[Txn]) -> None:
    """Undo a write transaction to which the caller has dropped its reference, unless it has ended.

    The binding undoes it at once when the last reference goes. Its ``abort`` waits until no other thread is within a
    call of the environment: for the length of a copy, and forever beside two threads that read all the time. The write
    lock is held meanwhile, and all processes wait.
    """
    if left() is not None:
        forget_frames(sys.exception())
    txn = left()
    if txn is not None:  # a debugger, for example, refers to it, too
        end(txn)


def forget_frames(error: BaseException | None) -> None:
    """Clear the frames of this library that an error, and those before it, refer to: they refer to a transaction."""
    while error is not None:
        at = error.__traceback__
        while at is not None:
            if at.tb_frame.f_globals.get("__name__", "").startswith("lmdbqueue."):
                with suppress(RuntimeError):  # it has not ended
                    at.tb_frame.clear()
            at = at.tb_next
        error = error.__context__


def is_open(txn: Txn) -> bool:
    """Return whether a transaction has not ended yet."""
    with suppress(lmdb.Error):
        txn.id()
        return True
    return False


def _pages(stat: Any) -> int:
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages
