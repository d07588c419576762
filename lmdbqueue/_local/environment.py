"""One queue directory open in this process: the transactions of all threads, and when it is closed.

Owns: how a call gets its transaction, the reference counts. Law: every transaction runs in the live generation
(``_local.live``), and no user code runs inside a transaction. Must not know: LMDB (that is ``_lmdb.generation``), which
caller runs which call, what a verb means.

Group commit. The calls of all threads stand in one line (``_local.commit_line``), and one of the callers runs all of
them in one transaction, commits and flushes (``_local.group_commit``). Then each caller makes sure that its own call is
durable, so no caller depends on one that is interrupted in between.

Nested calls. A signal handler, or a ``__del__`` that the garbage collector runs, may interrupt any call and call this
library. ``_writer``, ``_moving`` and the directory lock know which thread holds them, and ``_reading`` which threads
read. A nested call of such a thread raises ``NestedCallError`` instead of waiting for itself, or for a thread that
waits for it, and closing is deferred (``_host.departures``). Reading in a nested call works, except during the move to
another generation; so does writing amid a reading, while no other thread has the right to write.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple
from weakref import ref as weak

from lmdbqueue._base.errors import ClosedError, NestedCallError, QueueError, TransactionError
from lmdbqueue._host import departures, fork
from lmdbqueue._host.bell import Bell
from lmdbqueue._host.directory import BELL
from lmdbqueue._host.flock import LeftFile
from lmdbqueue._host.session import Session
from lmdbqueue._host.threads import Ending, free, held, holding, is_mine
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import NOT_DONE, Generation
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn, undo
from lmdbqueue._local import group_commit
from lmdbqueue._local.commit_line import Line
from lmdbqueue._local.group_commit import Call
from lmdbqueue._local.live import LOOK, Live, reads
from lmdbqueue._local.recovery import tell
from lmdbqueue._local.swap import Write, write_copy
from lmdbqueue._local.transaction import Transaction, blocks
from lmdbqueue._model import fifo
from lmdbqueue._model.weighed_records import queue_record

if TYPE_CHECKING:
    from lmdbqueue._model.invariants import Progress

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

environments: dict[tuple[int, int, str], Environment] = {}
opening = threading.RLock()  # guards the list and its counts; no thread waits for anything while holding it


def _begin(generation: Generation) -> tuple[Generation, Txn]:
    return generation, generation.begin("locking")


def _begin_on_the_disk(generation: Generation) -> tuple[Generation, Txn]:
    """Begin a transaction that sees only what a power cut cannot undo."""
    generation.grow_ahead()
    txn = generation.begin("locking")
    try:
        generation.secure_before(txn)
    except BaseException:
        txn.commit()  # of nothing: undoing it might wait for other threads
        raise
    return generation, txn


class Environment(Live):
    """The shared handle of one directory. At most one for a directory in a process."""

    def _start(self) -> None:
        super()._start()
        self._is_writing = False  # a block or another long write is under way: other threads use the line
        self._line = Line(self._writer, self._run)
        # the thread whose call takes the short way, at most one (see ``update``). An interrupted one may stay
        # here until it calls again: until then the others use the line, which is slower, but correct
        self._lone: dict[str, int] = {}

    def release(self, ref: Ref | None = None) -> None:
        """Give back one handle, of a queue; the last one closes what is open, once its transactions have ended.

        In a nested call, another thread closes it a moment later.
        """
        with opening:
            if ref is not None:
                self._queues[ref] -= 1
                if self._queues[ref] <= 0:  # no queue object uses it
                    self._queues.pop(ref, None)
            self.handles -= 1
        self._close_if_left()

    def _close_if_left(self) -> None:
        if self.handles:
            return
        if self._is_amid_a_call():
            departures.defer(self._close)
        else:
            self._close()

    def _close(self) -> None:
        """Close everything, unless the directory was opened again meanwhile, which then continues to use it.

        While the program ends, no thread waits here without limit (``departures``): what is not closed ends with the
        process.
        """
        if self._is_amid_a_call():  # the program ends, and there is no other thread: it ends with the process
            return
        with held(self._writer, self._moving, patience=departures.patience()) as is_held:
            if self.handles or not is_held:  # not held: as above
                return
            self._forget_left()
            generation, self._generation = self._generation, None
            session, self._session = self._session, None
            bell, self.bell = self.bell, Bell(self.directory.file(BELL), self.directory.folder)
            try:
                if generation is not None and session is not None:
                    self._leave(generation, session)
            finally:
                if generation is not None:
                    generation.close()
                self._close_retired()
                self._close_slots()
                if session is not None:
                    session.leave()
        bell.close()
        with opening:
            if not self.handles and environments.get(self.directory.identity) is self:  # else it was reopened
                del environments[self.directory.identity]
                self.directory.close()

    def _leave(self, generation: Generation, session: Session) -> None:
        """If no other process is there, leave nothing to verify for the next one to open the queue.

        All under one hold of the directory lock, so that the next process finds either us or no other process:
        otherwise it would consider itself one of several, and not record that the queue is open again. Closing never
        fails: what was left undone is verified at the next opening.
        """
        if (checkpoints := self._checkpoints) is not None:  # kept: a child that a handler forks now has none
            with suppress(QueueError, Superseded, Doubtful):
                checkpoints.cover()
        with suppress(QueueError), self.directory.lock(patience=departures.patience()):
            is_whole = session.is_alone() and generation.settle()
            generation.close()
            if is_whole:
                session.close()
            session.leave()

    # --- transactions

    def view(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, tables, *args)`` on a snapshot of a queue that is on the disk."""
        result: R = self._read(Generation.view, ref, fn, args)
        return result

    def glance(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Like ``view``, on a snapshot that a power cut could undo; for readings that an update will confirm."""
        result: R = self._read(Generation.glance, ref, fn, args)
        return result

    @reads
    def _read(self, read: Callable[..., Any], *what: Any) -> Any:
        """Return ``read(generation, *what)`` of the live generation, or of this thread's transaction."""
        if os.getpid() != fork.pid:
            fork.notice()
        if blocks.of_thread and (block := blocks.current()) is not None:
            block.refuse_other(self)
            return block.read(*what)
        thread = threading.get_ident()
        is_nested = thread in self._reading and self._is_amid_a_reading()  # whose entry stays
        while True:
            self._reading[thread] = None  # before reading the generation: freeze() does it the other way round
            generation = self._generation
            try:
                if generation is not None:
                    return read(generation, *what)
            except Superseded:
                if generation is not None and generation.is_broken:
                    if not is_nested:
                        self._reading.pop(thread, None)  # a thread that waits for readers holds the right to write
                    self._refuse_nested()
                    with self._writer:
                        self._abandon_broken(generation)
                    continue
            finally:
                if not is_nested:
                    self._reading.pop(thread, None)
            self.follow(generation)

    def update(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts, room: int = 0) -> R:
        """Run ``fn(txn, tables, *args)`` in a write transaction and return its result when that is durable.

        ``fn`` may be run more than once before it takes effect once. ``room``: the most bytes of pages that it adds.

        A call that finds the line empty and the right to write free runs alone, the short way; if anything prevents
        that, it has done nothing, and joins the line. Only one thread at a time may take that way: threads waiting for
        the right there would commit one after the other, for as long as others come.
        """
        result: R
        if os.getpid() != fork.pid:
            fork.notice()
        if blocks.of_thread and (block := blocks.current()) is not None:
            block.refuse_other(self)
            result = block.write(ref, fn, args, room)
            return result
        # amid a call of this thread: those who have the right to write may wait for what that call holds
        if self._holds() or self._covers() or self._moves() or self._enters():
            raise NestedCallError(self.directory.path)
        if self._reading and self._is_amid_a_reading():
            result = self._update_amid_a_reading(ref, fn, args, room)
            return result
        generation, bell = self._generation, self.bell  # the bell that close() removes, not a later one
        if generation is not None and not self._line.waiting and not self._retired and not self._is_writing:
            done: Any = NOT_DONE
            thread = threading.get_ident()
            if self._lone.setdefault("", thread) == thread:
                try:
                    with self._writer:
                        done = generation.write(ref, fn, args, room)
                finally:
                    self._lone.pop("", None)
            if done is not NOT_DONE:
                if done:
                    bell.ring()
                result = done
                return result
        call = Call(ref, fn, args, room)
        self._line.pass_through(call)
        if call.generation is not None:
            with self._writer:  # so that no fork happens during the flush
                call.secure()
        result = call.outcome()
        return result

    def _update_amid_a_reading(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...], room: int) -> Any:
        """Like ``update``, only the short way, and only if the right to write is free: who has it may wait for readers.

        While this thread has it, nobody begins to wait for them.
        """
        done: Any = NOT_DONE
        generation, bell = self._generation, self.bell  # as in ``update``
        with held(self._writer, patience=0) as is_held:
            if is_held and generation is not None:
                done = generation.write(ref, fn, args, room)
        if done is NOT_DONE:
            raise NestedCallError(self.directory.path)
        if done:
            bell.ring()
        return done

    def sync(self) -> None:
        """Wait until the effects of all calls that have returned are on disk. Raises ``StorageError``."""
        self.refuse_inside("sync")
        while True:
            try:
                self._read(Generation.sync)
            except Doubtful:
                self._refuse_nested()
                self._begin_anew()
            else:
                return

    def _run(self, calls: Sequence[Call]) -> None:
        """Run calls in the live generation, and wake sleepers. The caller holds ``_writer``."""
        try:
            self._in_live(group_commit.run, calls)
        finally:
            if self._retired:
                self._close_retired()
            for call in calls:
                if call.result:
                    self.bell.ring()
                    break

    @holding
    def transaction(self) -> Iterator[None]:
        """Make all calls of this thread in the block one transaction, durable when it is left (``transaction``)."""
        fork.notice()
        block = blocks.current()
        if block is not None:
            block.refuse_other(self)
            block.refuse_amid_a_call()
            with block.joined():
                yield
            return
        thread = threading.get_ident()
        transaction = 0
        block = None
        ending = Ending()
        is_here = True
        try:
            try:
                self._hold(ending)
                begun = self._seize(_begin_on_the_disk, ending)
                generation = begun[0][0]
                block = Transaction(self, self.directory.path, begun, ending)
                blocks.begin(block, ending)
                yield
                if threading.get_ident() != thread:  # LMDB's mutex belongs to the other thread
                    raise TransactionError(
                        self.directory.path,
                        "the block ends in a different thread from the one it began in",
                        "all of it is undone once that thread calls this library, or ends: use one thread for both",
                    )
                transaction = block.commit()
                if transaction:
                    generation.secure(transaction)
            except GeneratorExit:  # the block was dropped, and the garbage collector ends it: another thread will close
                with opening:
                    self.handles += 1
                departures.defer(self.release)
                raise
            finally:
                is_here = threading.get_ident() == thread
        finally:
            if is_here:
                try:
                    ending.close()
                finally:
                    ending.close()
            elif block is not None:
                block.is_stranded = True
        if transaction:
            self.bell.ring()

    def is_entered(self) -> bool:
        """Return whether this thread is in a transaction or a call here: then writers wait for it."""
        block = blocks.current()
        is_of_a_block = block is not None and block.owner is self
        is_awaited = self._line.awaits(threading.get_ident())
        return is_of_a_block or self._is_amid_a_call() or is_awaited

    def _hold(self, ending: Ending) -> None:
        """Stay open until ``ending`` is closed, even if queue objects are closed before."""
        held: list[bool] = []  # whether it is still held, once it was
        ending.add(partial(self._close_after, held))
        ending.add(partial(self._let_go, held))
        with opening:
            if not self.handles:
                raise ClosedError(self.directory.path)
            self.handles += 1
            held[:] = [True]

    def _let_go(self, held: list[bool]) -> None:
        with opening:
            if held and held[0]:
                self.handles -= 1
                held[:] = [False]

    def _close_after(self, held: list[bool]) -> None:
        if held:
            self._close_if_left()

    def refuse_inside(self, what: str, *advice: str) -> None:
        """Raise ``TransactionError`` if this thread is in a transaction."""
        blocks.refuse_inside(self.directory.path, what, *advice)

    @holding
    def exclusive(
        self, begin: Callable[[Generation], tuple[Generation, Txn]] = _begin
    ) -> Iterator[tuple[Generation, Txn]]:
        """Hold the write lock of the live generation; changes that the block does not commit are undone."""
        ending = Ending()
        try:
            yield self._seize(begin, ending)[0]
        finally:
            try:
                ending.close()
            finally:
                ending.close()

    def _seize(
        self, begin: Callable[[Generation], tuple[Generation, Txn]], ending: Ending
    ) -> list[tuple[Generation, Txn]]:
        """Like ``exclusive``, until ``ending`` is closed, by a list that then is empty."""
        self._refuse_nested()
        writer = self._writer
        begun: list[tuple[Generation, Txn]] = []
        ending.add(partial(free, writer))
        ending.add(partial(self._end_writing, writer, begun))
        writer.acquire()
        self._is_writing = True
        begun[:] = [self._in_live(begin)]
        return begun

    def _end_writing(self, writer: threading.RLock, begun: list[tuple[Generation, Txn]]) -> None:
        if is_mine(writer):
            self._is_writing = False
        if self._writer is not writer:  # in a forked child, which must not end it
            return
        while begun:
            generation, left = begun[0][0], weak(begun[0][1])
            begun.clear()
            undo(left)
            if generation.is_broken:
                self._abandon_broken(generation)

    def swap(self, write: Write = write_copy) -> int:
        """Replace the live generation by the file that ``write`` makes of it; return by how many bytes it shrank."""
        with self.exclusive() as (generation, txn):
            self._forget_left()
            with suppress(OSError):  # without a descriptor it is unknown
                self._left = LeftFile(generation.path + "-lock")
            shrunk = self._swap(generation, txn, write)
        self.follow(generation)
        self.bell.ring()  # sleepers move on, too, and release the old file
        return shrunk

    def prepare(self, progress: Progress | None = None) -> None:
        """Open the live generation unless it is open. Waits for a transaction under way."""
        if blocks.current() is None:
            self._refuse_nested()
            try:
                with self._writer:
                    if self._generation is None:
                        self._move(None, progress)
            finally:
                tell()

    def open_queue(self, name: str, make: Callable[[Txn, Tables], bytes]) -> tuple[Ref, bytes]:
        """Return the reference and the record of queue ``name``, which ``make`` creates if it is missing.

        Waits for a transaction under way.
        """
        if (block := blocks.current()) is not None:
            block.refuse_other(self)
            queue = block.queue(name)
            if queue is None:
                self.refuse_inside(f"a new queue {name!r} was opened", "open it before the block")
            assert queue is not None
            ref = Ref(name, queue.identity)
            record = block.read(ref, queue_record, ())
        else:
            self._refuse_nested()
            self._coming.append(name)  # another thread may open the next generation before it is counted
            try:
                with self._writer:
                    queue, record, transaction, generation = self._in_live(_open_queue, name, make)
                    generation.secure(transaction)
                ref = Ref(name, queue.identity)
                self._count(ref)
            finally:
                self._coming.remove(name)
            return ref, record
        self._count(ref)
        return ref, record

    def _count(self, ref: Ref) -> None:
        """Count a queue object that uses a queue."""
        with opening:
            self._queues[ref] += 1

    def open_every_queue(self) -> None:
        """Open the handles of all queues of the directory, until the next swap."""
        self._refuse_nested()
        with self._writer:
            self._in_live(Generation.prepare, None)

    def drop_queue(self, name: str) -> bool:
        """Remove a queue; return whether it existed. Durable when this returns.

        No thread of this process reads meanwhile, since LMDB closes the handle immediately.
        """
        self.refuse_inside("dropping a queue")
        self._refuse_nested()
        with self._writer:
            dropped = self._in_live(self._drop, name)
        self.bell.ring()
        return dropped

    def _drop(self, generation: Generation, name: str) -> bool:
        with self._moving:
            self._generation = None  # readers wait for _moving
            try:
                while self._reading.keys() - {threading.get_ident()}:
                    time.sleep(LOOK)
                transaction = generation.drop(name, fifo.destroy)
            finally:
                self._generation = generation
        generation.secure(transaction)
        return transaction > 0


def _open_queue(
    generation: Generation, name: str, make: Callable[[Txn, Tables], bytes]
) -> tuple[Tables, bytes, int, Generation]:
    return *generation.open_queue(name, make), generation
