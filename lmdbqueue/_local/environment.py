"""One queue directory as this process has it open: shared, followed through swaps, kept safe at forks.

Owns: which generation is the live one here, the reference counts. Law: whatever runs, runs in the live
generation, and nothing of a user's code runs inside a transaction. Must not know: LMDB (that is
``_lmdb.generation``), who of the callers runs whose call, what a verb means.

Locks of one environment, in the order in which they may be taken; none is held while user code runs:

``_writer``   the right of one thread to open a write transaction; LMDB's own write lock follows it
``_moving``   held while the live generation is replaced

Reading takes no lock. Closing a generation while others read it is safe: LMDB's binding waits for
what it is doing right now, and refuses what comes after, which ``_lmdb.generation`` reports as superseded.
A writer it would wait for, so a generation is closed by who holds ``_writer`` (``_retired``).

Group commit. The calls of all threads stand in one line (``_local.commit_line``), and one of the callers runs what is
there in one transaction, commits and flushes (``_local.group_commit``). Then each caller makes sure that its own is
durable, so nobody depends on one that is interrupted in between.

Superseded generations. Each transaction looks for the mark of a swap in its own snapshot before it
does anything (see ``_local.swap``). Whoever finds it moves this process on and tries again. A generation
that is broken (LMDB wants it reopened) is left in the same way, for itself opened anew; one that is in
doubt (a flush failed) is swapped for a copy before the next commit.

Fork. ``fork`` waits until no transaction of this process is under way, since one that was open could
not be ended in the child without damage to the parent's: writers by ``_writer``; readers, by hiding
the generation from those who come and waiting for those in ``_reading``. A thread that waits for another process
to let the directory lock go is parked, amid no transaction, and not waited for; and while one directory lasts, no lock
of another is kept. In the child everything is dropped and opened anew at the next call. A fork that cannot wait
(somebody's transaction lasts too long) leaves a child in which that queue raises ``ForkError``.

Calls from within calls. The handler of a signal, or a ``__del__`` that the collector runs, may come amid any call and
call this library. ``_writer`` and ``_moving`` know who holds them: a call of that very thread raises
``NestedCallError`` instead of waiting for itself, and closing is put off (``_host.departures``). Reading in such a
call goes well, unless it comes amid the move to another generation.

An interrupt (KeyboardInterrupt) may come at any step, so nothing waits for a count that an interrupted
thread should have lowered: ``_verbs.reading`` has an entry a thread, which its next transaction clears.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from lmdbqueue import _format
from lmdbqueue._errors import (
    ClosedError,
    CorruptQueueError,
    ForkError,
    NestedCallError,
    OptionError,
    QueueError,
    TransactionError,
)
from lmdbqueue._host import departures, owners
from lmdbqueue._host.bell import Bell
from lmdbqueue._host.directory import BELL, CHECKPOINT, SESSION, Directory, open_directory
from lmdbqueue._host.flock import LeftFile
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.session import Session
from lmdbqueue._host.threads import Ending, is_mine
from lmdbqueue._lmdb.checkpoint_slots import Slots
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import NOT_DONE, Generation
from lmdbqueue._lmdb.opening import build
from lmdbqueue._lmdb.options_record import remembered
from lmdbqueue._lmdb.snapshot import Ref, Tables, Txn, end
from lmdbqueue._local import group_commit
from lmdbqueue._local.checkpoints import Checkpoints
from lmdbqueue._local.commit_line import Line
from lmdbqueue._local.group_commit import Call
from lmdbqueue._local.recovery import is_whole, recover
from lmdbqueue._local.swap import Write, swap, write_copy
from lmdbqueue._local.transaction import Transaction, blocks
from lmdbqueue._model import fifo
from lmdbqueue._model.weighed_records import queue_record

if TYPE_CHECKING:
    from lmdbqueue._model.invariants import Progress

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_FORK_PATIENCE: Final = 5.0  # seconds that a fork waits for a transaction under way
_FORK_LOOK: Final = 0.0002  # seconds between two looks whether the readers are done, each a matter of microseconds
_FORK_TURN: Final = 0.05  # seconds that a fork waits for one directory while it keeps others still

_environments: dict[tuple[int, int, str], Environment] = {}
_opening = threading.RLock()  # of the list, and the counts in it; nothing is waited for with it


def open_environment(
    path: str, wanted: _format.Options, progress: Progress | None = None, *, interval: float = 0.1
) -> Environment:
    """Return this process's handle on the directory at ``path``; it has to be released.

    ``interval``: seconds between checkpoints, if there are any.
    """
    directory = open_directory(path, wanted, build, remembered)
    try:
        _refuse_other_options(path, directory.options, wanted)
        with _opening:
            environment = _environments.get(directory.identity)
            if environment is None:
                environment = Environment(directory)
                _environments[directory.identity] = environment
            environment.handles += 1
    except BaseException:
        directory.close()
        raise
    if environment.directory is not directory:
        directory.close()
    try:
        environment.want_interval(interval)
        environment.prepare(progress)
    except BaseException:
        environment.release()
        raise
    return environment


def _refuse_other_options(path: str, stored: _format.Options, given: _format.Options) -> None:
    for option in ("checksum", "durability"):
        if getattr(stored, option) != getattr(given, option):
            raise OptionError(path, option, getattr(stored, option), getattr(given, option))


def _refuse_doubt(generation: Generation) -> None:
    """Raise ``Doubtful`` if a flush of it failed."""
    if generation.is_in_doubt:
        raise Doubtful


def _begin(generation: Generation) -> tuple[Generation, Txn]:
    return generation, generation.begin("locking")


def _begin_on_the_disk(generation: Generation) -> tuple[Generation, Txn]:
    """Begin a transaction that sees nothing which a power cut could take back."""
    generation.grow_ahead()
    txn = generation.begin("locking")
    try:
        generation.secure_before(txn)
    except BaseException:
        end(txn)
        raise
    return generation, txn


class Environment:
    """The shared handle of one directory. At most one for a directory in a process."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.handles = 0  # queue objects that use it
        self._queues: Counter[Ref] = Counter()  # that they use
        self._torn = False  # in a child: a transaction of the parent was open at the fork
        self.interval = math.inf  # seconds between checkpoints, the least that a queue object wants
        self._frozen: list[Callable[[], object]] = []  # what lets this process go on after a fork
        self._start()

    def _start(self) -> None:
        """Begin with nothing open: at first, and again in a forked child."""
        self.bell = Bell(self.directory.file(BELL), self.directory.folder)
        self._session: Session | None = None
        self._generation: Generation | None = None
        self._slots: Slots | None = None
        self._checkpoints: Checkpoints | None = None  # of the live generation
        self._hidden: Generation | None = None  # the live one, from those who come to read amid a fork
        self._retired: list[Generation] = []
        self._left: LeftFile | None = None  # by the last swap of this process, while others hold it
        self._writer = threading.RLock()  # both for the sake of ``is_mine``; neither is taken twice
        self._moving = threading.RLock()
        self._holds: Callable[[], bool] = self._writer._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  (is_mine)
        self._is_writing = False  # a block, or the like, which lasts: others go to the line
        self._line = Line(self._writer, self._run)
        # the thread whose call goes the short way, one at most (see ``update``). One that was interrupted may stay
        # here until it comes again: until then the others go to the line, which is slower, and right
        self._lone: dict[str, int] = {}
        self._reading: dict[int, None] = {}  # the threads that have a read transaction open
        self._max_dbs = 0  # handles that a generation needs room for, at the least

    def release(self, ref: Ref | None = None) -> None:
        """Give back one handle, of a queue; the last one closes what is open, once its transactions have ended.

        In a call from within a call it is closed by another thread, a moment later.
        """
        with _opening:
            if ref is not None:
                self._queues[ref] -= 1
                if self._queues[ref] <= 0:  # nobody uses it
                    self._queues.pop(ref, None)
            self.handles -= 1
        self._close_if_left()

    def _close_if_left(self) -> None:
        if self.handles:
            return
        checkpoints = self._checkpoints
        if is_mine(self._writer) or is_mine(self._moving) or (checkpoints is not None and checkpoints.is_mine):
            departures.defer(self._close)
        else:
            self._close()

    def _close(self) -> None:
        """Close what is open, unless somebody has opened the directory again meanwhile, who goes on with it."""
        with self._writer, self._moving:
            if self.handles:
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
        with _opening:
            if not self.handles and _environments.get(self.directory.identity) is self:  # else closed, and opened anew
                del _environments[self.directory.identity]
                self.directory.close()

    def _leave(self, generation: Generation, session: Session) -> None:
        """Leave nothing to prove for the next to open, if nobody else is there.

        All in one hold of the directory lock, so that who comes next finds either us or nobody: it would
        take itself for one of many, and not write down that the queue is open again. Closing never fails:
        what was left undone is proven at the next opening.
        """
        if self._checkpoints is not None:
            with suppress(QueueError, Superseded, Doubtful):
                self._checkpoints.cover()
        with suppress(QueueError), self.directory.lock():
            is_whole = session.is_alone() and generation.settle()
            generation.close()
            if is_whole:
                session.close()
            session.leave()

    # --- transactions

    def view(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Return ``fn(txn, tables, *args)`` of a snapshot of a queue that is on the disk."""
        result: R = self._read(Generation.view, ref, fn, args)
        return result

    def glance(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts) -> R:
        """Do as ``view``, of a snapshot that a power cut could take back; for what an update will depend on."""
        result: R = self._read(Generation.glance, ref, fn, args)
        return result

    def _read(self, read: Callable[..., Any], ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if blocks.of_thread and (block := blocks.current()) is not None:
            block.refuse_other(self)
            return block.read(ref, fn, args)
        thread = threading.get_ident()
        while True:
            self._reading[thread] = None  # before the look at the generation: freeze() does it the other way round
            generation = self._generation
            try:
                if generation is not None:
                    return read(generation, ref, fn, args)
            except Superseded:
                if generation is not None and generation.is_broken:
                    self._refuse_nested()
                    with self._writer:
                        self._abandon_broken(generation)
                    continue
            finally:
                self._reading.pop(thread, None)
            self.follow(generation)

    def update(self, ref: Ref, fn: Callable[[Txn, Tables, *Ts], R], *args: *Ts, room: int = 0) -> R:
        """Run ``fn(txn, tables, *args)`` in a write transaction and return its result when that is durable.

        ``fn`` may be run more than once before it takes effect once. ``room``: the bytes of pages that
        it adds at the most.

        A call that finds nobody in the line and the right to write free runs by itself, the short way; if anything
        is in its way there, it has done nothing, and goes to the line. Only one thread at a time may go that way: those
        who waited for the right there would commit one after the other, for as long as others come.
        """
        result: R
        if blocks.of_thread and (block := blocks.current()) is not None:
            block.refuse_other(self)
            result = block.write(ref, fn, args, room)
            return result
        if self._holds():
            raise NestedCallError(self.directory.path)
        generation, bell = self._generation, self.bell  # the bell that a close takes down, and not the next one
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
            with self._writer:  # so that no fork comes amid the flush
                call.secure()
        result = call.outcome()
        return result

    def want_interval(self, seconds: float) -> None:
        """Make checkpoints every ``seconds``, or more often if another queue object wants that."""
        if seconds < self.interval:
            self.interval = seconds
            if (checkpoints := self._checkpoints) is not None:
                checkpoints.hurry(seconds)

    def sync(self) -> None:
        """Return when everything that has returned is on the disk. Raises ``StorageError``."""
        self.refuse_inside("sync")
        thread = threading.get_ident()
        while True:
            self._reading[thread] = None  # before the look at the generation: freeze() does it the other way round
            generation = self._generation
            try:
                if generation is not None:
                    generation.sync()
                    return
            except Superseded:
                if generation is not None and generation.is_broken:
                    self._refuse_nested()
                    with self._writer:
                        self._abandon_broken(generation)
                    continue
            except Doubtful:
                self._refuse_nested()
                with self._writer:
                    self._in_live(_refuse_doubt)
                continue
            finally:
                self._reading.pop(thread, None)
            self.follow(generation)

    def unsynced_seconds(self) -> float | None:
        """Return the age of the oldest call that a power cut could take back, 0.0 if there is none; None: unknown."""
        if self.directory.options.durability == "off":
            return None
        session = self._session
        since = 0 if session is None or self._slots is None else session.unsynced_since
        return max(0, time.monotonic_ns() - since) / 1e9 if since else 0.0

    @property
    def is_crowded(self) -> bool:
        """Return whether another process was flushing when this one last came to commit."""
        generation = self._generation
        return generation is not None and generation.is_crowded

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

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all calls of this thread in the block one transaction, durable when it is left (``transaction``)."""
        block = blocks.current()
        if block is not None:
            block.refuse_other(self)
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
                generation, txn = self._seize(_begin_on_the_disk, ending)
                block = Transaction(self, self.directory.path, generation, txn, ending)
                blocks.begin(block, ending)
                yield
                if threading.get_ident() != thread:  # whose LMDB's mutex is not
                    raise TransactionError(
                        self.directory.path,
                        "the block ends in another thread than it began in",
                        "all of it is undone once that thread calls this library, or ends: use one thread for both",
                    )
                transaction = block.commit()
                if transaction:
                    generation.secure(transaction)
            except GeneratorExit:  # nobody leaves the block, and the collector ends it: another thread shall close
                with _opening:
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

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` in a call from within one of this thread that writes or moves."""
        if self._holds() or is_mine(self._moving):
            raise NestedCallError(self.directory.path)

    def _hold(self, ending: Ending) -> None:
        """Be open until ``ending`` is closed, whichever queue objects are closed before."""
        held: list[bool] = []  # whether it still is, once it was
        ending.add(partial(self._close_after, held))
        ending.add(partial(self._let_go, held))
        with _opening:
            if not self.handles:
                raise ClosedError(self.directory.path)
            self.handles += 1
            held[:] = [True]

    def _let_go(self, held: list[bool]) -> None:
        with _opening:
            if held and held[0]:
                self.handles -= 1
                held[:] = [False]

    def _close_after(self, held: list[bool]) -> None:
        if held:
            self._close_if_left()

    def refuse_inside(self, what: str, *advice: str) -> None:
        """Raise ``TransactionError`` if this thread is in a transaction."""
        blocks.refuse_inside(self.directory.path, what, *advice)

    @contextmanager
    def exclusive(
        self, begin: Callable[[Generation], tuple[Generation, Txn]] = _begin
    ) -> Iterator[tuple[Generation, Txn]]:
        """Hold the write lock of the live generation; what the block does not commit is undone."""
        ending = Ending()
        try:
            yield self._seize(begin, ending)
        finally:
            try:
                ending.close()
            finally:
                ending.close()

    def _seize(self, begin: Callable[[Generation], tuple[Generation, Txn]], ending: Ending) -> tuple[Generation, Txn]:
        """Do as ``exclusive``, until ``ending`` is closed."""
        self._refuse_nested()
        writer = self._writer
        begun: list[tuple[Generation, Txn]] = []
        ending.add(partial(_free, writer))
        ending.add(partial(self._end_writing, writer, begun))
        writer.acquire()
        self._is_writing = True
        begun[:] = [self._in_live(begin)]
        return begun[0]

    def _end_writing(self, writer: threading.RLock, begun: Sequence[tuple[Generation, Txn]]) -> None:
        if is_mine(writer):
            self._is_writing = False
        if self._writer is not writer:  # in a forked child: it is not ours to end
            return
        for generation, txn in begun:
            end(txn)
            if generation.is_broken:
                self._abandon_broken(generation)

    def swap(self, write: Write = write_copy) -> int:
        """Put what ``write`` makes of the live generation in its place; return by how many bytes the file shrank."""
        with self.exclusive() as (generation, txn):
            self._forget_left()
            with suppress(OSError):  # without a descriptor nobody knows
                self._left = LeftFile(generation.path + "-lock")
            shrunk = self._swap(generation, txn, write)
        self.follow(generation)
        self.bell.ring()  # sleepers move on too, and let go of the old file
        return shrunk

    def held_elsewhere(self) -> int | None:
        """Return how many other processes have the file open that the last swap of this one has left; None: unknown.

        They let go of it at their next call, or, if one waits, at once.
        """
        left = self._left
        found = 0 if left is None else left.others()
        if not found:
            self._forget_left()
        return found

    def _forget_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left.close()

    def _swap(self, generation: Generation, txn: Txn, write: Write = write_copy) -> int:
        assert self._session is not None  # it came before the generation
        return swap(self.directory, self._session, generation, txn, write)

    def prepare(self, progress: Progress | None = None) -> None:
        """Open the live generation, unless it is. Waits for a transaction under way."""
        if blocks.current() is None:
            self._refuse_nested()
            with self._writer:
                if self._generation is None:
                    self.follow(None, progress)

    def open_queue(self, name: str, make: Callable[[Txn, Tables], bytes]) -> tuple[Ref, bytes]:
        """Return which queue ``name`` is, which ``make`` makes if it is not there, and its record.

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
            with self._writer:
                queue, record, transaction, generation = self._in_live(_open_queue, name, make)
                generation.secure(transaction)
            ref = Ref(name, queue.identity)
        with _opening:
            self._queues[ref] += 1
        return ref, record

    def open_every_queue(self) -> None:
        """Open the handles of all queues of the directory, until the next swap."""
        self._refuse_nested()
        with self._writer:
            self._in_live(Generation.prepare, None)

    def drop_queue(self, name: str) -> bool:
        """Remove a queue; return whether it was there. Durable when this returns.

        No thread of this process reads meanwhile: LMDB closes the handle at once.
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
                    time.sleep(_FORK_LOOK)
                transaction = generation.drop(name, fifo.destroy)
            finally:
                self._generation = generation
        generation.secure(transaction)
        return transaction > 0

    def processes(self) -> int | None:
        """Return how many processes have the directory open, as far as can be seen; None if nothing can."""
        with self._moving:  # so that the session is not closed meanwhile
            return None if self._session is None else self._session.processes()

    # --- the live generation

    def _in_live(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(generation, *args)`` of the live generation. Only who holds ``_writer`` may."""
        while True:
            generation = self._generation
            if generation is None:
                self.follow(None)
                continue
            try:
                if not generation.is_prepared:
                    generation.prepare([ref.name for ref in list(self._queues)])
                return fn(generation, *args)
            except Superseded:
                if not generation.is_broken:
                    self.follow(generation)
            except Doubtful:
                self._rewrite(generation)
            finally:
                if generation.is_broken:
                    self._max_dbs = max(self._max_dbs, generation.wanted_dbs)
                    self._abandon_broken(generation)

    def _rewrite(self, generation: Generation) -> None:
        """Put a copy in the place of a generation whose flush failed, unless another process did."""
        with suppress(Superseded):
            txn = generation.begin("locking")
            try:
                self._swap(generation, txn)
            finally:
                end(txn)
        self.follow(generation)

    def _abandon_broken(self, generation: Generation) -> None:
        """Close a generation that LMDB wants reopened. Only who holds ``_writer`` may."""
        with self._moving:
            if self._generation is generation:
                self._generation = None
                generation.close()

    def follow(self, old: Generation | None, progress: Progress | None = None) -> None:
        """Go from ``old`` to the live generation, unless another thread of this process did already."""
        checkpoints = self._checkpoints
        if is_mine(self._moving) or (checkpoints is not None and checkpoints.is_mine):
            raise NestedCallError(self.directory.path)
        with self._moving:
            if self._generation is not old:
                return
            if self._torn:
                raise ForkError(self.directory.path)
            if not self.handles:
                raise ClosedError(self.directory.path)
            if old is not None and old.keeper is not None:
                old.keeper.close()  # its pin keeps nothing any more, and must not be open at a fork
            self._generation = self._open_live(1 if old is None else old.number + 1, progress)
            if old is not None:
                self._retired.append(old)
        if self._retired and not is_mine(self._writer):  # else this thread does it, when it has written
            departures.defer(self._clear_away)

    def _clear_away(self) -> None:
        """Close the generations that were left, in a thread of its own: those who read wait for no writer."""
        with self._writer:
            self._close_retired()

    def _close_retired(self) -> None:
        """Close the generations that were left. Only who holds ``_writer`` may: none of them is written to."""
        while self._retired:
            self._retired.pop().close()

    def _open_live(self, number: int, progress: Progress | None) -> Generation:
        """Open the live generation, for reading: its handles are opened for good by who writes first."""
        with self.directory.lock(self.directory.parking):
            number = self._published(number)
            joins = self._session is None
            session = self._session or Session(self.directory.file(SESSION), self.directory.folder)
            try:
                self.bell.hang()
                generation = self._open_newest(number, session, progress)
                try:
                    self._keep_checkpoints(generation, session)
                    self.directory.clean(generation.number, alone=session.first)
                    if session.first:
                        owners.sweep(self.directory.path, self.directory.folder)
                    session.admit()
                except BaseException:
                    generation.close()
                    raise
            except BaseException:
                if joins:
                    session.leave()
                raise
            self._session = session
            return generation

    def _keep_checkpoints(self, generation: Generation, session: Session) -> None:
        """Keep the pages of a checkpoint while this process commits. Under the directory lock."""
        if self.directory.options.durability != "interval":
            return
        if self._slots is None:
            self._slots = Slots(self.directory.file(CHECKPOINT), self.directory.folder)
        found = Checkpoints(generation, session, self._slots, self._writer, self.interval)
        generation.keeper = self._checkpoints = found
        self._holds = found.is_within
        if session.unsynced_since:
            found.resume()

    def _close_slots(self) -> None:
        slots, self._slots, self._checkpoints = self._slots, None, None
        if slots is not None:
            slots.close()

    def _open_newest(self, number: int, session: Session, progress: Progress | None) -> Generation:
        """Open the live generation, ``number`` or a later one. Under the directory lock."""
        while True:
            path = self.directory.generation(number)
            if session.first and not self._recovered(path, number, session, progress):
                number = self._published(number + 1)
                continue
            generation = Generation(path, number, self.directory.options, session, self._max_dbs)
            try:
                if not generation.is_superseded():
                    return generation
            except BaseException:
                generation.close()
                raise
            generation.close()
            number = self._published(number + 1)

    def _recovered(self, path: str, number: int, session: Session, progress: Progress | None) -> bool:
        """Make a file one that LMDB may open; return whether it is the live one.

        One in doubt may be beyond repair, and a draft that was to take its place whole (see ``_local.swap``).
        """
        try:
            recover(path, number, self.directory.options, session, progress)
        except CorruptQueueError:
            draft = self.directory.draft(number + 1)
            if not session.is_in_doubt(number) or not is_whole(draft, self.directory.options):
                raise
            return False
        return True

    def _published(self, number: int) -> int:
        """Return the newest generation, at least ``number``; end a creation or a swap that was cut short before."""
        number = max(number, self.directory.newest())
        self.directory.publish(number)
        return number

    # --- fork

    def freeze(self, timeout: float) -> bool:
        """Quiesce transactions of this process until ``thaw``; return whether that succeeded in time."""
        deadline = time.monotonic() + timeout
        block = blocks.current()
        self._torn = block is not None and block.owner is self
        self._torn = self._torn or threading.get_ident() in self._reading
        if self._torn or is_mine(self._writer) or is_mine(self._moving):
            return False  # by this very thread: waiting is of no use
        parking = self.directory.parking
        if parking.hold():
            self._frozen = [parking.let_go]
            return True
        self._frozen = []
        for lock in (self._writer, self._moving):
            if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self.thaw()
                return False
            self._frozen.append(lock.release)
        generation, self._generation = self._generation, None  # who comes now waits for _moving
        while is_read := bool(self._reading.keys() - {threading.get_ident()}):
            if time.monotonic() > deadline:
                break
            time.sleep(_FORK_LOOK)
        is_still = not is_read and self._freeze_checkpoints(deadline)  # after those in sync(), who wait for checkpoints
        self._frozen.append(partial(self._show, generation))  # not before: other directories may have to be waited for
        self._hidden = generation
        if not is_still:
            self.thaw()
        elif generation is not None:
            generation.let_go()
        return is_still

    def _show(self, generation: Generation | None) -> None:
        self._generation, self._hidden = generation, None

    def _freeze_checkpoints(self, deadline: float) -> bool:
        checkpoints = self._checkpoints
        if checkpoints is None:
            return True
        if not checkpoints.freeze(max(0.0, deadline - time.monotonic())):
            return False
        self._frozen.append(checkpoints.thaw)
        return True

    @property
    def is_torn(self) -> bool:
        """Whether this very thread has a transaction open, so that waiting is of no use."""
        return self._torn

    def give_up(self) -> None:
        """Note that a transaction is open at a fork."""
        self._torn = True

    def thaw(self) -> None:
        """Go on in the parent."""
        self._torn = False
        while self._frozen:
            self._frozen.pop()()

    def restart(self) -> None:
        """Go on in the child, with nothing of the parent's but the files."""
        self.bell.forget()
        self._forget_left()
        self._inherited = [*self._retired, self._generation, self._hidden]
        for generation in self._inherited:
            if generation is not None:
                generation.keeper = None  # whose pin has ended, and whose thread is not here
        self._close_slots()
        if not self._torn:  # else closing them would harm the parent
            for generation in self._inherited:
                if generation is not None:
                    generation.close()
        if self._session is not None:
            self._session.leave()
        self.directory.begin_anew()
        self._frozen = []
        self._start()


def _free(lock: threading.RLock) -> None:
    """Release a lock if this thread holds it, and did not before."""
    if is_mine(lock):
        lock.release()


def _open_queue(
    generation: Generation, name: str, make: Callable[[Txn, Tables], bytes]
) -> tuple[Tables, bytes, int, Generation]:
    return *generation.open_queue(name, make), generation


def _freeze_all() -> None:
    _opening.acquire()
    deadline = time.monotonic() + _FORK_PATIENCE
    waiting = list(_environments.values())
    frozen: list[Environment] = []
    while waiting:
        environment = waiting.pop(0)
        left = max(0.0, deadline - time.monotonic())
        if environment.freeze(min(left, _FORK_TURN) if frozen else left):
            frozen.append(environment)
        elif not frozen or not left or environment.is_torn:
            environment.give_up()
        else:  # the others go on while this one is waited for, first
            for each in frozen:
                each.thaw()
            waiting = [environment, *frozen, *waiting]
            frozen = []


def _thaw_all() -> None:
    for environment in _environments.values():
        environment.thaw()
    _opening.release()


def _restart_all() -> None:
    for environment in _environments.values():
        environment.restart()
    _opening.release()


at_fork("environments", before=_freeze_all, in_parent=_thaw_all, in_child=_restart_all)
