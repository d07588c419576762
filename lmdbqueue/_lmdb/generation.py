"""One generation: a file that is an LMDB environment, and one transaction at a time on it.

Owns: LMDB's requirements on the use of a file, except when a commit is durable (``_lmdb.durability``). Only this
package imports ``lmdb``, so no other code can violate them. Law: functions of a transaction come in, results or our own
errors go out. Must not know: which generation is the live one, who else has it open, what an item means.

LMDB's further requirements, and where they are met:

- Opening a file twice in one process breaks its locks: ``_local.environment`` keeps one Generation for each file.
- ``open_db`` without a transaction waits for the write lock *with the GIL held*: handles are opened
  here inside a write transaction, whose begin frees the GIL.
- Ending a transaction in a forked child damages the parent's: ``_local.sharing`` ensures that none is open at a fork.
- Undoing a write transaction may wait for all other threads, with the write lock held: it is dropped instead
  (``_lmdb.snapshot.undo``).
- A value cannot exceed 4 GiB, and a file cannot outgrow its map: the map is larger than the file, and when the file
  approaches its end the generation ``is_broken`` and reopened with a larger one. A map costs only address space, of
  which a process has 47 bits for all directories, or less if it is limited (``ulimit -v``).
- A killed reader keeps its slot, and all pages from its snapshot on: slots of dead processes are cleared before the
  file grows.
- A file in use must not be removed or replaced, least of all the lock file: the next process to open the queue would
  write at the same time. So each writer checks (``_host.presence``).
- The only process to open a file sets up its lock file; if it is killed meanwhile, it may keep LMDB's lock a moment
  longer than the directory lock, and a process that waits for that lock inside LMDB then mistakes a half-made lock file
  for a complete one, and loses every commit. So that is waited for before (``_lmdb.opening``).
- A process loses LMDB's locks on the lock file when anything in it opens and closes that file. So it holds further ones
  (``_lmdb.opening``).
- A lock file with holes on a full disk kills the process (SIGBUS): it is allocated before LMDB opens it.
- If the meta page cannot be written, every later call fails (``MDB_PANIC``): then the generation ``is_broken``, and
  ``_local.live`` reopens it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import lmdb

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import (
    CommitUnknownError,
    CorruptQueueError,
    ForkError,
    Full,
    GoneError,
    NestedCallError,
    StorageError,
)
from lmdbqueue._host import fork
from lmdbqueue._host.descriptors import close, open_at
from lmdbqueue._host.disk import allocate, explain, is_of_a_handler, translated
from lmdbqueue._host.presence import Presence
from lmdbqueue._host.session import Session
from lmdbqueue._host.threads import is_mine
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.content import Content
from lmdbqueue._lmdb.durability import Durable
from lmdbqueue._lmdb.failures import Superseded, came_after_the_commit, may_be_of_a_handler
from lmdbqueue._lmdb.meta_page import LAST_PAGE, LAST_PAGE_AT, MetaPage
from lmdbqueue._lmdb.opening import LOCK_FILE, LockFile, open_shared, refuse_cut_off, wanted_map
from lmdbqueue._lmdb.preallocation import Outgrown, Room
from lmdbqueue._lmdb.snapshot import Kept, Ref, Tables, Txn, end, is_open, undo

if TYPE_CHECKING:
    from lmdbqueue._lmdb.changed_records import ChangedTree
    from lmdbqueue._lmdb.checkpoint_pin import Pin

_MAX_DBS: Final = 64  # handles at first; a process that needs more reopens the file


class _NotDone:
    """The result of a lone call that could not take the short way."""


NOT_DONE: Final = _NotDone()


class Generation(Durable):
    """A file that takes part in the queue. At most one for a file in a process."""

    def __init__(self, path: str, number: int, options: _format.Options, session: Session, max_dbs: int = 0) -> None:
        """Open the file at ``path``, which exists and is whole. ``max_dbs``: handles that may be open at once."""
        self._max_dbs = max(max_dbs, _MAX_DBS)
        self.wanted_dbs = 0  # handles that it would need, after it has run out
        self._is_tight = False  # whether it lives on free pages, since the file cannot grow
        self.is_prepared = False  # whether the handles are open for good, which takes a write transaction
        self._kept: list[weakref.ref[Txn]] = []  # the transactions that keep snapshots, oldest first
        self.pin: Pin | None = None  # the pin, with durability "interval"
        self._borrowing = threading.RLock()  # held by the one transaction that opens handles, for itself or for good
        self._lock_file = LockFile(path + "-lock")
        self._fd = open_at(path, os.O_RDONLY)  # LMDB's own descriptor is not accessible
        try:
            super().__init__(path, number, options, session)
            clear_readers = partial(self._lock_file.clear_readers, self._env)
            self._room = Room(path, self._env.stat()["psize"], self._map_size, clear_readers)
            self._map_meta_pages()
            self.presence = Presence(self.directory, (path, path + "-lock", session.path))
        except BaseException:
            self.close()
            raise

    def _map_meta_pages(self) -> None:
        """Map them by another descriptor: the map keeps a copy, and with one of ``_fd`` it would keep its lock."""
        with translated(self.path, "opening"):
            fd = open_at(self.path, os.O_RDONLY)
            try:
                self._meta_pages = mmap.mmap(fd, 2 * self._room.page, prot=mmap.PROT_READ)
            finally:
                close(fd)

    def _open(self) -> tuple[lmdb.Environment, int]:
        refuse_cut_off(self.path)
        with translated(self.path, "opening"):
            allocate(self.path + "-lock", LOCK_FILE)
            self._lock_file.open()
            if self.options.durability == "interval":
                self._map_pin()
        env = None
        try:
            env, map_size = open_shared(self.path, sync=not self._is_flushed_once, max_dbs=self._max_dbs)
            self._is_confined = map_size < wanted_map(self.path)
            with translated(self.path, "opening"):
                self._lock_file.hold()
                if self.pin is None:
                    self._lock_file.clear_readers(env)
                else:
                    self.pin.find(env, self._lock_file.clear_readers)
        except BaseException:
            if env is not None and self._life is fork.life:  # in a child it would end its parent's transactions
                env.close()
            raise
        return env, map_size

    def _map_pin(self) -> None:
        from lmdbqueue._lmdb.checkpoint_pin import Pin  # noqa: PLC0415  (only with checkpoints)

        self.pin = Pin(self.path + "-lock")
        self.pin.map()

    def explain(self, error: Exception, operation: str) -> Exception:
        """Return our error for one of LMDB's; any other passes."""
        if self._life is not fork.life:  # as in ``write``
            return ForkError(self.directory)
        if isinstance(error, lmdb.DbsFullError):  # it has to be reopened, with room for more handles
            self.wanted_dbs = 4 * self._max_dbs
            self.is_broken = True
        return super().explain(error, operation)

    def close(self) -> None:
        """Close the environment, to which no thread is writing; for threads that read it, it is then superseded."""
        if self.keeper is not None:
            self.keeper.close()
        if hasattr(self, "_env"):  # not set if it could not be opened
            super().close()
        if self.pin is not None:
            self.pin.close()
        if hasattr(self, "_meta_pages"):  # as above
            self._meta_pages.close()
        self.let_go_of_locks()

    def let_go_of_locks(self) -> None:
        """Have none of the locks beside LMDB any more. In a forked child they are the parent's, who keeps them.

        That includes the turn for LMDB's lock (``_begin_in_turn``): a child that kept the descriptor would keep the
        turn of a parent that is killed, and others would wait for it.
        """
        self._lock_file.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)

    # --- snapshots that are kept

    def keep(self) -> Kept:
        """Keep the newest snapshot until ``let_go``, or until the result is no longer referenced."""
        while True:
            with self._translated("reading"):
                txn = self._env.begin()
            self._kept.append(weakref.ref(txn))
            try:
                found = self._slot(txn.id())
            except FileNotFoundError:
                raise Superseded from None
            if found is not None:
                return Kept(txn, found)
            end(txn)  # two commits came in between

    def let_go(self, most: int = 0) -> None:
        """Keep only the newest snapshots, at most this number; a fork keeps none."""
        while len(self._kept) > most:
            txn = self._kept.pop(0)()
            if txn is not None and self._life is fork.life:
                end(txn)

    def leave_table_of_readers(self) -> bool:
        """Free this process's entries in LMDB's table of readers before a fork; return whether that succeeded.

        No transaction may be under way. Those that have ended keep their entries as long as their objects exist. A
        forked child has these, too: by closing its environment it would clear the entries, in the table that it shares
        with its parent, when other readings of the parent may have them already; and pages that those still read would
        be reused. Of all calls of the binding, only that which maps the file anew frees the entries.
        """
        self.let_go()
        try:
            self._env.set_mapsize(self._map_size)
        except lmdb.Error:  # no address space, for example: then it has to be reopened
            self.is_broken = True
            return False
        return True

    def changed_since(self, before: Kept, now: MetaPage) -> Iterator[tuple[bytes, ChangedTree | None]]:
        """Yield the trees that changed between a kept snapshot and a later one; None for a deleted tree."""
        from lmdbqueue._lmdb.changed_records import changed_trees  # noqa: PLC0415  (only for compactions)

        return changed_trees(self._fd, before.meta, now)

    def last_committed(self, txn: Txn) -> MetaPage | None:
        """Return the snapshot that a write transaction begins with, if it can be found."""
        return self._slot(txn.id() - 1)

    def _slot(self, transaction: int) -> MetaPage | None:
        for each in meta_page.read(self.path):  # not a generator, whose end swallows an interrupt
            if each.transaction == transaction:
                return each
        return None

    # --- handles

    def prepare(self, names: Iterable[str] | None) -> None:
        """Open the handles of these queues, or of all, for good; missing queues are passed over.

        Takes the write lock, as LMDB requires, and writes nothing.
        """
        txn: Any = self.begin("opening", pinned=False)
        try:
            with self._translated("opening"), self._borrowing:
                self._open_shared(txn, create=False)
                found = [self._existing(txn, name) for name in (self.names(txn) if names is None else names)]
                txn.commit()  # commits nothing; undoing would close the handles
                self._keep(each for each in found if each is not None)
                self.is_prepared = True
        finally:
            left, txn = weakref.ref(txn), None
            undo(left)

    def open_queue(self, name: str, make: Callable[[Txn, Tables], bytes]) -> tuple[Tables, bytes, int]:
        """Open the handle of a queue, which ``make`` creates if it is missing.

        Return its tables, its record, and the transaction for ``secure``, 0 for none. Raises ``Superseded`` if the
        handle of a queue of that name, which another process has dropped, is still open: it is closed with the file.
        """
        txn: Any = self.begin("opening", pinned=False)
        transaction = 0
        try:
            with self._translated("opening"):
                self._open_shared(txn, create=False)
                found = self._existing(txn, name)
                if found is None and self.keeper is not None:
                    txn.commit()  # commits nothing; undoing would close the handles
                    txn = self.begin("opening")
                    found = self._existing(txn, name)
                if found is None:
                    if txn.get(_format.record(name, "items")) is not None:
                        raise CorruptQueueError(self.path, f"queue {name!r} has items but no record")
                    made = self._table(name, self._env.open_db(_format.record(name, "items"), txn=txn))
                    if txn.get(_format.record(name, "items")) is None:  # LMDB found an open handle, and created nothing
                        self.is_broken = True
                        raise Superseded
                    record = make(txn, made)
                    transaction = self.commit(txn)
                    found = self._known_by(record, made)
                else:
                    record = txn.get(found.queue, db=self.meta) or b""
                    txn.commit()
        finally:
            left, txn = weakref.ref(txn), None
            undo(left)
        self._keep([found])
        return found, record, transaction

    def drop(self, name: str, destroy: Callable[[Txn, Tables], object]) -> int:
        """Remove a queue with its handle, which no thread of this process may use meanwhile.

        Return the transaction, 0 if there is no such queue. The handle is closed in any case: if this is not committed,
        the file has to be reopened.
        """
        txn: Any = self.begin("dropping")
        has_handle = True
        try:
            with self._translated("dropping"):
                self._open_shared(txn, create=False)
                queue = self._existing(txn, name)
                if queue is None:
                    txn.commit()  # of nothing; undone, it would close handles
                    return 0
                destroy(txn, queue)
                self._content_leaves(txn, queue)
                has_handle = False
                for ref in [each for each in self._tables if each.name == name]:
                    del self._tables[ref]
                txn.drop(queue.items, delete=True)
                return self.commit(txn)
        except BaseException:
            self.is_broken = self.is_broken or not has_handle
            raise
        finally:
            left, txn = weakref.ref(txn), None
            undo(left)

    def _content_leaves(self, txn: Txn, queue: Tables) -> None:
        if self.content.is_running:
            with txn.cursor(queue.items) as cursor:
                for value in cursor.iternext(keys=False):
                    self.content.leave(value)

    # --- reading

    def view(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return ``fn(txn, tables, *args)`` on a snapshot that is on the disk."""
        result, transaction = self._glance(ref, fn, args)
        if not self.is_secured(transaction) and not self._session.is_in_doubt(self.number):
            with suppress(StorageError):  # a disk that fails must not stop readers
                self._sync(transaction)
        return result

    def glance(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Like ``view``, on a snapshot that a power cut could undo; for readings that a commit will confirm."""
        return self._glance(ref, fn, args)[0]

    def _glance(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, int]:
        if not self.is_prepared:
            if is_mine(self._borrowing):
                raise NestedCallError(self.directory)
            with self._borrowing:
                if not self.is_prepared:
                    return self._glance_by_itself(ref, fn, args)
        try:
            txn = self._env.begin()
            try:
                self._refuse_superseded(txn)
                return fn(txn, self.table(ref), *args), self._first_stamp + txn.id()
            finally:
                if self._life is not fork.life:  # like _look(), with two frames less
                    self._refuse_inherited()
                txn.abort()
        except (lmdb.Error, SystemError, struct.error) as error:
            raise self.explain(error, "reading") from error

    def _glance_by_itself(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, int]:
        """Like ``_glance``, with handles that end with the transaction, so that reading waits for no writer.

        LMDB allows this to one transaction of a process at a time.
        """
        try:
            return self._look(self._read_once, ref, fn, args)
        except (lmdb.Error, SystemError, struct.error) as error:
            raise self.explain(error, "reading") from error
        finally:
            self.meta = self.away = None

    def _read_once(self, txn: Txn, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, int]:
        self._refuse_superseded(txn)
        self._open_shared(txn, create=False)
        queue = self._existing(txn, ref.name)
        if queue is None or queue.identity != ref.identity:
            raise GoneError(self.directory, ref.name)
        return fn(txn, queue, *args), self._first_stamp + txn.id()

    def _refuse_superseded(self, txn: Txn) -> None:
        if txn.get(_format.NEXT_GENERATION) is not None:
            raise Superseded

    # --- writing

    def write(  # noqa: C901  (in one frame: every push passes it)
        self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...], room: int
    ) -> Any:
        """Return what ``fn(txn, tables, *args)`` changed, durably: a lone call, the short way.

        ``NOT_DONE`` if anything prevents it: then nothing was done. Raises ``CommitUnknownError``.
        """
        if not self.is_prepared:
            return NOT_DONE
        txn = None
        try:
            txn = self.begin("writing")
            if room:
                self._written.add(ref)
                self.make_room(txn, room)
            result = fn(txn, self._tables[ref], *args)
            if not result:
                seen = self._first_stamp + txn.id() - 1
                left, txn = weakref.ref(txn), None
                undo(left)
                return result if self.is_secured(seen) else NOT_DONE
            transaction = self.commit(txn)
        except CommitUnknownError:
            raise
        except BaseException as error:
            if self._life is not fork.life:  # whatever this child, which has nothing of it open, has met
                self._refuse_inherited()
            if txn is not None:
                if is_open(txn):
                    left, txn = weakref.ref(txn), None
                    undo(left)
                elif came_after_the_commit(error):
                    raise
            if may_be_of_a_handler(error) and not (isinstance(error, KeyError) and ref not in self._tables):
                raise
            return NOT_DONE  # the usual path will meet and handle it, for example a dropped queue
        if self._is_full:
            try:
                self._sync(transaction)
            except StorageError as error:
                raise CommitUnknownError(self.path, error.operation, error.reason) from error
        return result

    def begin(self, operation: str, *, pinned: bool = True) -> Txn:  # noqa: C901  (as ``write``)
        """Begin a write transaction, which the caller must end in any case. ``pinned``: something may be written.

        Raises ``Superseded``; ``GoneError`` if a file, or the directory, was removed or replaced.
        """
        if self.keeper is not None and pinned:
            self.keeper.pin()
        self._room.granted = 0
        self._written.clear()
        self.weight = 0
        content = self.content
        if content.asks or content.remembers:
            if content.is_simple:
                content.pending.clear()  # first, so that an interrupt cannot leave pending items behind
                content.weight, content.asks = 0, False
            else:
                self.content = Content()
        try:
            txn = self._begin_in_turn() if self._session.is_shared() else self._env.begin(write=True)
            try:
                if txn.get(_format.NEXT_GENERATION) is not None:  # a swap removes the file, but sets the mark before
                    raise Superseded  # noqa: TRY301  (to end the transaction)
                found = os.stat(self.directory)  # like refuse_gone(), with one frame less
                presence = self.presence
                if found.st_ctime_ns != presence.since or found.st_ino != presence.inode:
                    presence.look_at_all(found)
            except BaseException:
                txn.commit()  # of nothing: abort() might wait for other threads (``undo``)
                raise
        except (lmdb.Error, SystemError) as error:  # not by _translated, since every commit passes here
            raise self.explain(error, operation) from error
        except (FileNotFoundError, NotADirectoryError):
            raise GoneError(self.directory) from None
        except OSError as error:
            if is_of_a_handler(error):
                raise
            raise explain(error, self.directory, operation) from error
        return txn

    def _begin_in_turn(self) -> Txn:
        """Begin a write transaction, as the only process waiting for LMDB's lock.

        A waiter that is killed just after being woken can leave others asleep before a free lock (a lost wake-up of
        robust mutexes, seen once in some hundred kills). The kernel passes on an ``flock`` no matter who dies. A
        process that is alone needs no turn, and saves the two calls: a process that joins announces itself some ms
        before it waits for anything, and takes turns itself.
        """
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            except (OSError, ValueError) as error:  # it is being closed, which LMDB reports, too
                if is_of_a_handler(error) and self._fd >= 0:
                    raise
            return self._env.begin(write=True)
        finally:
            try:  # noqa: SIM105  (here, since an interrupt may come when a function is entered, and others would wait)
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            except (OSError, ValueError):
                pass

    def grow_ahead(self) -> None:
        """Raise ``Superseded``, to be reopened with a larger map, if a long transaction could outgrow this one."""
        if not self._is_confined and self.size() > self._map_size // 2:
            self.is_broken = True
            raise Superseded

    def make_room(self, txn: Txn, added: int) -> None:
        """Make sure that pages for ``added`` bytes can be written, and after that those for removals.

        Raises ``DiskFullError``, or ``Full`` when the map is full. For the transaction under way.
        """
        room = self._room
        # of the last commit, as env.info() has it among nine others, which took a push 7 % of its instructions
        (last,) = LAST_PAGE.unpack_from(self._meta_pages, (~txn.id() & 1) * room.page + LAST_PAGE_AT)
        pages = last + 1
        if (pages + pages // 64 + 65) * room.page + room.granted + added <= room.allocated:  # as in grant()
            room.granted += added
            return
        try:
            try:
                room.grant(pages, added, self._has_free, txn)
            except Full:
                if self.keeper is None or not self.keeper.renew():
                    raise
                room.grant(pages, added, self._has_free, txn)
        except Outgrown as error:
            if self._is_confined:
                raise Full("address space", self._map_size, self.extent(), added) from error
            with translated(self.path, "allocation"):
                allocate(self.path, *error.args)  # which determines the size of the next map
            self.is_broken = True
            raise Superseded("the file has outgrown its map") from error

    def use_reserve(self, txn: Txn, added: int, quarters: int) -> None:
        """Like ``make_room``, for what consumers need: on a full disk it may take from the reserve for removals.

        So many ``quarters`` of that stay: everything can still be removed, however often this is called. The call that
        needs it has written nothing yet.
        """
        try:
            self.make_room(txn, added)
        except Full:  # the disk, or the address space
            free = self.size() - super().used(txn)  # behind the last page and before it
            if not self._room.lend(self.extent() // self._room.page, added, quarters, free):
                raise

    def _has_free(self, txn: Txn, size: int) -> bool:
        """Return whether the file has ``size`` bytes of free pages that no reader holds."""
        ages = (line.split()[-1] for line in self._env.readers().splitlines()[1:])
        self._is_tight = all(age in ("-", str(txn.id() - 1)) for age in ages)
        return self._is_tight and self.extent() - super().used(txn) >= size

    def used_at_most(self, txn: Txn) -> int:
        """Return an upper bound for the bytes of the pages in use, with those that ``txn`` has added."""
        return super().used_at_most(txn) + self._room.granted

    def used(self, txn: Txn) -> int:
        """Return the bytes of the pages in use, with those that ``txn`` has added so far."""
        return super().used(txn) + self._look(self._grown, txn)

    def _grown(self, before: Txn, txn: Txn) -> int:
        """Return by how many bytes of pages a transaction has grown the trees, 0 if it only reads."""
        if txn.id() != before.id() + 1:
            return 0
        written = [self._tables[ref].items for ref in list(self._written) if ref in self._tables]
        return sum(self.used_by(txn, db) - self.used_by(before, db) for db in [self.meta, self.away, *written])

    def size(self) -> int:
        """Return the size of the file in bytes."""
        with translated(self.path, "reading"):
            return os.fstat(self._fd).st_size

    def renew(self) -> bool:
        """Make the pages freed by the last transaction usable for the next, if it may need them; return whether it may.

        LMDB does not reuse a page in the transaction after the one that freed it.
        """
        if self.keeper is not None and self.keeper.renew():
            return True
        if not self._is_tight:
            return False
        self._is_tight = False
        txn: Any = self.begin("writing")
        try:
            with self._translated("writing"):
                self.commit(txn)
        finally:
            left, txn = weakref.ref(txn), None
            undo(left)
        return True
