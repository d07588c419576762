"""The live generation of a directory in this process: opened, followed through swaps, kept safe at forks.

Owns: which generation is live in this process, with its session and bell. Law: a generation that was left is closed by
a thread that holds the right to write. Must not know: LMDB (that is ``_lmdb.generation``), transactions, what a verb
means.

Locks of one directory, in the order in which they may be taken; none is held while user code runs:

``_writer``   the right of one thread to open a write transaction; LMDB's own write lock follows it
``_moving``   held while the live generation is replaced

Reading takes no lock. Closing a generation while others read it is safe: LMDB's binding waits for the calls under way,
and refuses later ones, which ``_lmdb.generation`` reports as superseded. It would wait for a writer, so a generation is
closed by a thread that holds ``_writer`` (``_retired``).

Superseded generations. Each transaction looks for the mark of a swap in its own snapshot before it does anything (see
``_local.swap``). The thread that finds it moves this process on and tries again. A broken generation (LMDB wants it
reopened) is left in the same way, and reopened; one in doubt (a flush failed) is replaced by a copy before the next
commit.

Fork. A fork waits until no transaction of this process is under way (``_local.sharing``), since an open one could not
be ended in the child without damage to the parent's: for writers by ``_writer``; for readers, by hiding the generation
from new ones and waiting for those in ``_reading``. Then nothing of this process is left in LMDB's table of readers,
which the child would clear (``Generation.leave_table_of_readers``). A thread that waits for another process to release
the directory lock is parked, outside of any transaction, and the fork does not wait for it: the generation that it
leaves is superseded, so its pages are not used again, whatever the child clears. In the child everything is dropped,
and reopened at the next call.

An interrupt (KeyboardInterrupt) may come at any step, so nothing waits for a count that an interrupted thread should
have lowered: ``_reading`` has an entry for each thread, which its next transaction clears.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast
from weakref import ref as weak

from lmdbqueue._base.errors import ClosedError, CorruptQueueError, ForkError, NestedCallError
from lmdbqueue._host import departures, owners
from lmdbqueue._host.bell import Bell
from lmdbqueue._host.directory import BELL, CHECKPOINT, SESSION, Directory
from lmdbqueue._host.disk import sync_path, translated
from lmdbqueue._host.flock import LeftFile
from lmdbqueue._host.session import Session
from lmdbqueue._host.threads import Ending, free, held, is_mine
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.snapshot import Ref, Txn, undo
from lmdbqueue._local.recovery import has_said, is_whole, recover, tell
from lmdbqueue._local.swap import Write, swap, write_copy
from lmdbqueue._local.transaction import blocks

if TYPE_CHECKING:
    from lmdbqueue._lmdb.checkpoint_slots import Slots
    from lmdbqueue._local.checkpoints import Checkpoints
    from lmdbqueue._model.invariants import Progress

P = ParamSpec("P")
R = TypeVar("R")

_readings: Final[set[CodeType]] = set()  # the code of the functions of this file's class that read
_INTERVAL: Final = 0.1  # seconds between checkpoints, where nobody says how many
LOOK: Final = 0.0002  # seconds between two checks whether the readers are done, which takes them microseconds


def reads(fn: Callable[P, R]) -> Callable[P, R]:
    """Note that a function is a reading, in ``_reading`` while it has a transaction open. A decorator."""
    _readings.add(cast("FunctionType", fn).__code__)
    return fn


def _refuse_doubt(generation: Generation) -> None:
    """Raise ``Doubtful`` if a flush of it failed."""
    if generation.is_in_doubt:
        raise Doubtful


class Live:
    """The live generation of one directory."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.handles = 0  # queue objects that use it
        self._queues: Counter[Ref] = Counter()  # the number of queue objects for each queue
        self._coming: list[str] = []  # names of queues that are being opened and not counted yet
        self._torn = False  # in a child: whether a transaction of the parent was open at the fork
        self._wanted: float | None = None  # seconds between checkpoints, the shortest that a queue object asks for
        self._frozen = Ending()  # the steps that end holding this process still during a fork
        self._inherited: list[Generation | None] = []  # in a child: kept, since ending them would harm the parent
        self._start()

    def _start(self) -> None:
        """Begin with nothing open: initially, and again in a forked child."""
        self.bell = Bell(self.directory.file(BELL), self.directory.folder)
        self._session: Session | None = None
        self._generation: Generation | None = None
        self._slots: Slots | None = None
        self._checkpoints: Checkpoints | None = None  # of the live generation
        self._hidden: Generation | None = None  # the live one, hidden from new readers during a fork
        self._retired: list[Generation] = []
        self._left: LeftFile | None = None  # the file left by this process's last swap, while others hold it
        self._writer = threading.RLock()  # both reentrant only for ``is_mine``; neither is taken twice
        self._moving = threading.RLock()
        self._holds: Callable[[], bool] = self._writer._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  (is_mine)
        self._moves: Callable[[], bool] = self._moving._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  (as above)
        self._enters = self.directory.enters  # whether this thread has the directory lock
        self._covers: Callable[[], bool] = bool  # whether this thread is making a checkpoint; so far none does
        self._reading: dict[int, None] = {}  # the threads that have a read transaction open
        self._max_dbs = 0  # the least number of handles for which a generation needs room

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` inside a call of this thread."""
        if self._is_amid_a_call():
            raise NestedCallError(self.directory.path)

    def _is_amid_a_call(self) -> bool:
        """Return whether this thread is amid a call here, and so must not wait for those who may wait for that call."""
        return self._holds() or self._may_not_move()

    def _may_not_move(self) -> bool:
        """Return whether this thread is amid a call for whose end those who move, or read ``_session``, may wait."""
        return self._covers() or self._moves() or self._enters() or self._is_amid_a_reading()

    def _is_amid_a_reading(self) -> bool:
        """Return whether the function that asks was called amid a reading of this thread, as by a signal handler.

        Those who hold the locks, to fork or to drop a queue, wait for that reading: so it must not wait for them. An
        entry in ``_reading`` alone may be one that an interrupt left, so it is searched for the reading itself.
        """
        if threading.get_ident() not in self._reading:
            return False
        frame = sys._getframe(1).f_back  # noqa: SLF001  (as traceback asks it)
        while frame is not None and frame.f_code not in _readings:
            frame = frame.f_back
        return frame is not None

    @property
    def interval(self) -> float:
        """Seconds between checkpoints."""
        return _INTERVAL if self._wanted is None else self._wanted

    def want_interval(self, seconds: float | None) -> None:
        """Make checkpoints every ``seconds``, or more often if another queue object wants that; None: as others do."""
        if seconds is None:
            return
        if self._may_not_move():
            raise NestedCallError(self.directory.path)
        with self._moving:  # so that no checkpoints begin with a longer one meanwhile
            if self._wanted is None or seconds < self._wanted:
                self._wanted = seconds
                if self._checkpoints is not None:
                    self._checkpoints.hurry(seconds)

    def unsynced_seconds(self) -> float | None:
        """Return the age of the oldest call that a power cut could undo, 0.0 if there is none; None: unknown."""
        if self.directory.options.durability == "off":
            return None
        if self._may_not_move():
            return self._unsynced_seconds()
        with self._moving:  # a fork waits for that: the child cannot close a file that is being asked
            return self._unsynced_seconds()

    def _unsynced_seconds(self) -> float:
        checkpoints = self._checkpoints
        since = 0 if checkpoints is None else checkpoints.uncovered_since()
        return max(1, time.monotonic_ns() - since) / 1e9 if since else 0.0

    @property
    def is_crowded(self) -> bool:
        """Return whether another process was flushing when this one last came to commit."""
        generation = self._generation
        return generation is not None and generation.is_crowded

    def processes(self) -> int | None:
        """Return the number of visible processes that have the directory open; None if unknown."""
        if self._may_not_move():
            return None
        with self._moving:  # so that the session is not closed meanwhile
            return None if self._session is None else self._session.processes()

    # --- the live generation

    def _in_live(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(generation, *args)`` for the live generation. The caller holds ``_writer``."""
        while True:
            generation = self._generation
            if generation is None:
                self.follow(None)
                continue
            try:
                if not generation.is_prepared:
                    generation.prepare([*(ref.name for ref in list(self._queues)), *self._coming])
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
        """Replace a generation whose flush failed by a copy, unless another process has."""
        with suppress(Superseded):
            txn: Any = generation.begin("locking")
            try:
                self._swap(generation, txn)
            finally:
                left, txn = weak(txn), None
                undo(left)
        self.follow(generation)

    def _begin_anew(self) -> None:
        """Replace the live generation by a copy if a flush of it failed, and so bring it to the disk."""
        with self._writer:
            self._in_live(_refuse_doubt)
            self._close_retired()

    def _swap(self, generation: Generation, txn: Txn, write: Write = write_copy) -> int:
        assert self._session is not None  # it was opened before the generation
        return swap(self.directory, self._session, generation, txn, write)

    def held_elsewhere(self) -> int | None:
        """Return how many other processes still have open the file left by this process's last swap; None: unknown.

        They release it at their next call, or immediately if a call is waiting.
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

    def _abandon_broken(self, generation: Generation) -> None:
        """Close a generation that LMDB wants reopened. The caller holds ``_writer``."""
        with self._moving:
            if self._generation is generation:
                self._generation = None
                generation.close()

    def follow(self, old: Generation | None) -> None:
        """Move from ``old`` to the live generation, unless another thread of this process has."""
        try:
            self._move(old)
        finally:
            if has_said():  # by the first process to open it, as a forked child may be; callers hold locks
                departures.defer(tell)

    def _move(self, old: Generation | None, progress: Progress | None = None) -> None:
        if self._may_not_move():
            raise NestedCallError(self.directory.path)
        with self._moving:
            if self._generation is not old:
                return
            if self._torn:
                raise ForkError(self.directory.path)
            if not self.handles:
                raise ClosedError(self.directory.path)
            if old is not None and old.keeper is not None:
                old.keeper.close()
            self._open_live(old, progress)
        if self._retired and not is_mine(self._writer):  # otherwise this thread does it after writing
            departures.defer(self._clear_away)

    def _clear_away(self) -> None:
        """Close the generations that were left, in a separate thread, so that reading waits for no writer."""
        with held(self._writer, patience=departures.patience()) as is_held:
            if is_held:
                self._close_retired()

    def _close_retired(self) -> None:
        """Close the generations that were left. The caller holds ``_writer``: none of them is written to."""
        while self._retired:
            self._retired.pop().close()

    def _open_live(self, old: Generation | None, progress: Progress | None) -> None:
        """Open the live generation, for reading: the first write opens its handles for good."""
        with self.directory.lock(self.directory.parking):
            number = self._published(1 if old is None else old.number + 1)
            joins = self._session is None
            session = self._session or Session(self.directory.file(SESSION), self.directory.folder)
            try:
                if joins:
                    self.directory.refuse_hard_links(number)
                    session.join()
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
            self._generation = generation  # here: an interrupt may come as the lock is let go
            if old is not None:
                self._retired.append(old)

    def _keep_checkpoints(self, generation: Generation, session: Session) -> None:
        """Keep the pages of a checkpoint while this process commits. Under the directory lock."""
        if self.directory.options.durability != "interval":
            return
        from lmdbqueue._lmdb.checkpoint_slots import Slots  # noqa: PLC0415  (here and below: for these queues only)
        from lmdbqueue._local.checkpoints import Checkpoints  # noqa: PLC0415

        if self._slots is None:
            self._slots = Slots(self.directory.file(CHECKPOINT), self.directory.folder)
        before = self._checkpoints
        found = Checkpoints(generation, session, self._slots, self._writer, self.interval, self._begin_anew)
        generation.keeper = self._checkpoints = found
        self._covers = found.is_mine
        has_left_some = before is not None and before.is_uncovered  # before this process reopened the file
        is_for_others = session.first or self._wanted is not None  # not for maintenance
        if (has_left_some or is_for_others) and not session.is_covered(generation.newest()):
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
        """Make a file fit for LMDB to open; return whether it is the live one.

        One in doubt may be beyond repair, while the draft that was to replace it is whole (see ``_local.swap``).
        """
        try:
            recover(path, number, self.directory.options, session, progress)
        except CorruptQueueError:
            draft = self.directory.draft(number + 1)
            if not session.is_in_doubt(number) or not is_whole(draft, self.directory.options):
                raise
            with translated(draft, "recovery"):
                sync_path(draft)  # its writer may have been killed before
            return False
        return True

    def _published(self, number: int) -> int:
        """Return the newest generation, at least ``number``; complete an interrupted creation or swap."""
        number = max(number, self.directory.newest())
        self.directory.publish(number)
        return number

    # --- fork

    def freeze(self, timeout: float) -> bool:
        """Quiesce transactions of this process until ``thaw``; return whether that succeeded in time."""
        deadline = time.monotonic() + timeout
        block = blocks.current()
        self._torn = block is not None and block.owner is self
        self._torn = self._torn or self._is_amid_a_reading()
        if self._torn or is_mine(self._writer) or is_mine(self._moving):
            return False  # held by this very thread: waiting is useless
        parking = self.directory.parking
        self._frozen = Ending()
        self._frozen.add(parking.let_go)
        if parking.hold():
            return True
        for lock in (self._writer, self._moving):
            self._frozen.add(partial(free, lock))
            if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self.thaw()
                return False
        self._hidden = self._generation
        self._frozen.add(self._show)
        self._generation = None  # new readers wait for _moving
        while is_read := bool(self._reading.keys() - {threading.get_ident()}):
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK)
        is_still = not is_read and self._freeze_checkpoints(deadline)  # after sync(), which waits for checkpoints
        if is_still and self._hidden is not None:
            is_still = self._hidden.leave_table_of_readers()
        if not is_still:
            self.thaw()
        return is_still

    def _show(self) -> None:
        if self._hidden is not None:
            self._generation, self._hidden = self._hidden, None

    def _freeze_checkpoints(self, deadline: float) -> bool:
        checkpoints = self._checkpoints
        if checkpoints is None:
            return True
        if checkpoints.is_mine():
            return False
        self._frozen.add(checkpoints.thaw)
        return checkpoints.freeze(max(0.0, deadline - time.monotonic()))

    @property
    def is_torn(self) -> bool:
        """Whether this very thread has a transaction open, so that waiting is useless."""
        return self._torn

    def give_up(self) -> None:
        """Note that a transaction is open at a fork."""
        self._torn = True

    def thaw(self) -> None:
        """Continue in the parent."""
        self._torn = False
        self._frozen.close()

    def restart(self) -> None:
        """Continue in the child, with nothing of the parent's except the files."""
        self.bell.forget()
        self._forget_left()
        inherited = [*self._retired, self._generation, self._hidden]
        for generation in inherited:
            if generation is not None:
                generation.keeper = None  # its thread does not exist here
        self._close_slots()
        if self._torn:
            self._inherited += inherited
            for generation in inherited:
                if generation is not None:
                    generation.let_go_of_locks()
        else:
            for generation in inherited:
                if generation is not None:
                    generation.close()
        if self._session is not None:
            self._session.leave()
        self.directory.begin_anew()
        self._frozen = Ending()
        self._start()
