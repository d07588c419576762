"""Checkpoints: what a queue with ``durability="interval"`` has on the disk while its commits are not flushed.

Owns: when the disk is brought up to date, and which pages LMDB may use again meanwhile. Law: nobody commits unless the
pages of a checkpoint that is on the disk are kept; a commit waits for the disk only when too much is not there. Must
not know: verbs, group commit, how recovery proves a snapshot (``_local.recovery``).

A *checkpoint* is a snapshot c of which all pages are on the disk, and its meta page, written down in the file
``checkpoint`` (``_lmdb.checkpoint_slots``), since LMDB's own two go on to later transactions. The *pin* is an entry in
LMDB's table of readers, which holds a checkpoint: LMDB uses no page again that this one can see, or one after it. So
whatever is committed after c, and however much of that a power cut takes, c can be had back by its meta page. The pin
belongs to no process (``_lmdb.checkpoint_pin``): one that is idle, stopped or killed keeps no pages.

====  ====================================================  =========================================================
step  what is done, and with which lock                     killed after it, or stopped; or the power goes
====  ====================================================  =========================================================
1     ``_busy``: copy the meta page of the newest snapshot  nothing was changed: the checkpoint before stands. n is
      n out of its slot, which is n's for sure if n is the  kept by the pin, which is at a checkpoint before it, for
      newest still once it was read                         as long as no other process has one after it on the disk
2     flush: n is on the disk, and so is all before it      as 1
3     the flock of a lane of ``checkpoint``, which no       power: n or the one before it, both of which are whole
      other process has: bring its newest slot to the       and kept by the pin; the slot that is written is the
      disk, unless it is known to be there; write the copy  one of an older checkpoint, and a torn one is known by its
      into its other slot if it is newer; fsync             CRC. Killed: the next in the lane does not trust what it
                                                            finds before its own fsync. Stopped: others take the next
                                                            lane; what this one writes when it goes on is older
                                                            than theirs, and the newest of all lanes counts
4     move the pin to n, unless it is at a later one        stopped, and then set back a pin that others have moved:
                                                            that keeps more, until the next checkpoint
5     raise the shared word: n is on the disk               only ``sync`` and ``stats`` look at it
====  ====================================================  =========================================================

The rule: nobody commits before the pin holds a checkpoint. It holds none when nobody had the generation open before, so
whoever commits first makes one (``pin``, before LMDB begins to write: then it decides which pages it uses again).

Step 1 needs no lock of the writers. The slot of n is written again by n+2, and n+2 begins when n+1 is the newest: what
was read while n was the newest is n's. A commit between the two looks costs another try. What is the newest is what
LMDB tells a reader, and not what the meta pages say: that of a commit which fails may stand there for a moment.

When. A thread, which is there only while there is something to cover, makes a checkpoint at most ``interval`` seconds
after a commit of this process; sooner if much was written (``_MUCH``). A commit waits for it only if twice as much was.
When an interval has passed in which nothing was committed the thread ends. What a process that was killed has left
uncovered is covered by whoever commits next, and by the first to open the queue.

A checkpoint that failed is tried again by the thread, after twice as long each time, a second at the most: until then
``unsynced_seconds`` grows. Commits meet the failure when so much is uncovered that they have to wait. A flush that
failed puts the generation in doubt, as with any durability (``_lmdb.durability``): it is written anew, by the thread if
nobody commits before; if that fails, too, it is tried again after a minute at the most.
"""

from __future__ import annotations

import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lmdbqueue._errors import NestedCallError, QueueError
from lmdbqueue._host.disk import translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._host.threads import free
from lmdbqueue._lmdb.checkpoint_slots import Checkpoint, Slots
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import Generation

_MUCH: Final = 1 << 23  # bytes of pages that may be written before a checkpoint is made; commits wait at twice that
_COMMIT: Final = 6 * 4096  # bytes of pages that a commit writes at the least: paths of three trees, the free list
_PATHS: Final = 1 << 17  # bytes that a call asks room for beside its items (``_model.pushing``)
_LONGEST_PATIENCE: Final = 1.0  # seconds until a checkpoint that failed is tried again, unless the interval is longer
_LONGEST_IN_DOUBT: Final = 60.0  # the same of a copy of the file, which takes a disk's time, and room, each time


def _patience(interval: float, failures: int, longest: float = _LONGEST_PATIENCE) -> float:
    """Return after how many seconds a checkpoint is due, when so many in turn have failed."""
    return max(interval, min(longest, interval * 2.0 ** min(failures, 20)))


class Checkpoints:
    """Those that one process makes of one generation."""

    def __init__(
        self,
        generation: Generation,
        session: Session,
        slots: Slots,
        writer: threading.RLock,
        interval: float,
        begin_anew: Callable[[], object],
    ) -> None:
        """``writer``: the right to write of this process, which whoever calls ``pin`` and ``committed`` holds.

        ``begin_anew``: what brings everything to the disk, in a new file, when a flush of this one has failed.
        """
        self.interval = interval
        self._generation = generation
        self._session = session
        self._slots = slots
        self._writer = writer
        self._begin_anew = begin_anew
        self._busy = threading.RLock()  # while one is made, and while the process is being forked
        # whether this thread is making one: then a call came from within a call
        self.is_mine: Callable[[], bool] = self._busy._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  (is_mine)
        self._is_pinned = False  # the pin is known to hold a checkpoint
        self._is_uncovered = False  # something was committed by this process since step 1 of the last one
        self._written = 0  # bytes of pages since then, about
        self._alarm = threading.Lock()  # opened to wake the thread
        self._alarm.acquire()
        self._is_kept = False  # the thread is there
        self._is_closed = False

    # --- around a commit

    def pin(self) -> None:
        """Return when this process may commit. Raises ``StorageError``, ``Superseded``."""
        if self._is_kept and self._is_pinned and self._written < 2 * _MUCH:
            return
        if self._is_closed:  # as the generation is, or will be: there is no pin to look at any more
            raise Superseded
        if self._session.is_in_doubt(self._generation.number):
            return  # it is left, and nothing committed to it but the mark that says so
        self._watch()
        if self._must_wait():
            self._refuse_nested()
            with self._busy:
                if self._must_wait():  # still
                    self._make()

    def _must_wait(self) -> bool:
        return self._written >= 2 * _MUCH or not self._is_there()

    def _is_there(self) -> bool:
        """Return whether the pin holds a checkpoint; it holds one ever after."""
        pin = self._generation.pin
        self._is_pinned = pin is not None and not pin.is_empty
        return self._is_pinned

    def committed(self, granted: int) -> None:
        """Note a commit, for which ``granted`` bytes of pages were granted."""
        self._is_uncovered = True
        self._written += _COMMIT + max(0, granted - _PATHS)
        self._session.note_unsynced(time.monotonic_ns)
        if not self._is_kept:
            self._cover_at_once()
        elif self._written >= _MUCH:
            self._wake()

    def _cover_at_once(self) -> None:
        """Cover a commit when no thread could be started that would. If that fails, the next commit tries."""
        with suppress(QueueError, Superseded, Doubtful), self._busy:
            self._make()

    def renew(self) -> bool:
        """Make a checkpoint, so that what was freed before it can be used again; return whether that may help."""
        pin = self._generation.pin
        if pin is None or self._session.is_in_doubt(self._generation.number):
            return False
        self._refuse_nested()
        with self._busy:
            before = pin.transaction
            self._make()
            return pin.transaction != before

    def resume(self) -> None:
        """Cover in a while what others have left uncovered, or this process before the file was opened anew."""
        self._is_uncovered = True
        self._watch()

    def sync(self) -> None:
        """Return when all that was committed, by whomever, is on the disk. Raises ``StorageError``, ``Superseded``."""
        newest = self._generation.newest()
        if self._session.is_synced(newest):
            return
        self._refuse_nested()
        with self._busy:
            if not self._session.is_synced(newest):
                self._make()

    def hurry(self, interval: float) -> None:
        """Make one every ``interval`` seconds from now on."""
        self.interval = interval
        self._wake()

    # --- the five steps

    def _make(self) -> None:
        """Make a checkpoint. With ``_busy``."""
        if self._is_closed:
            raise Superseded
        began = time.monotonic_ns()
        was_uncovered, written = self._is_uncovered, self._written
        self._is_uncovered, self._written = False, 0  # before the snapshot: what is committed amid this counts again
        is_made = False
        try:
            transaction, body = self._generation.newest_meta()
            number = self._generation.number
            self._bring_down(Checkpoint(number, body))
            self._pin(transaction)
            is_made = True
        finally:
            if not is_made:
                self._is_uncovered = self._is_uncovered or was_uncovered
                self._written += written
        self._tell(stamp(number, transaction), began)

    def _bring_down(self, checkpoint: Checkpoint) -> None:
        with translated(self._generation.path, "sync"):
            if self._slots.newest() != checkpoint:  # else nothing was committed since that one was made
                self._generation.flush_to_disk()
            if self._session.is_in_doubt(self._generation.number):  # then it tells nothing that this one went well
                raise Doubtful
            self._slots.raise_to(checkpoint)

    def _pin(self, transaction: int) -> None:
        if (pin := self._generation.pin) is not None:
            pin.move(transaction)
            self._is_pinned = True

    def _tell(self, covered: int, began: int) -> None:
        """Raise the shared words: what is covered, and since when something is not."""
        self._session.set_synced(covered)
        if self._generation.is_superseded():
            return  # others may have committed to the next one
        is_all = None
        while is_all != (is_all := self._session.is_synced(self._generation.newest())):
            # a commit that came before the word was cleared did not set it; and what was not covered when this one
            # looked may have been by another process since
            self._session.unsynced_since = 0 if is_all else began
        if self._generation.is_superseded():
            self._session.unsynced_since = began

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` in a call from within one of this thread that makes a checkpoint."""
        if self.is_mine():
            raise NestedCallError(self._generation.directory)

    # --- the thread

    def _watch(self) -> None:
        """Start the thread, unless it is there. With ``_writer``, or before anybody else knows of this object."""
        if not self._is_kept and not self._is_closed:
            self._is_kept = True
            try:
                start_new_thread(self._keep, ())
            except RuntimeError:  # there are too many threads
                self._is_kept = False

    def _wake(self) -> None:
        with suppress(RuntimeError):  # it is awake
            self._alarm.release()

    def _keep(self) -> None:
        failures = 0
        while not self._is_closed:
            is_in_doubt = self._session.is_in_doubt(self._generation.number)
            longest = _LONGEST_IN_DOUBT if is_in_doubt else _LONGEST_PATIENCE
            self._alarm.acquire(timeout=_patience(self.interval, failures, longest))
            if self._is_uncovered:
                failures = 0 if self._is_covered_now() else failures + 1
            elif self._may_end():
                return

    def _is_covered_now(self) -> bool:
        """Make a checkpoint; return whether that went well. If not, it is tried again: nobody else may come."""
        try:
            with self._busy:
                self._make()
        except Doubtful:
            return self._has_begun_anew()
        except Exception:  # who commits when too much is uncovered meets it, and whoever calls sync()
            return self._session.is_in_doubt(self._generation.number) and self._has_begun_anew()
        return True

    def _has_begun_anew(self) -> bool:
        with suppress(Exception):  # as above
            self._begin_anew()
            return True
        return False

    def _may_end(self) -> bool:
        """Return whether the thread may end, unless somebody is writing or something is uncovered."""
        if not self._writer.acquire(blocking=False):
            return False
        try:
            if self._is_uncovered:
                return False
            self._is_kept = False
            return True
        finally:
            self._writer.release()

    # --- the end, and forks

    def cover(self) -> None:
        """Make a checkpoint if something that this process committed is not covered. Raises ``StorageError``."""
        with self._busy:
            if self._is_uncovered and not self._session.is_in_doubt(self._generation.number):
                self._make()

    def close(self) -> None:
        """Make no more, so that the generation can be closed."""
        with self._busy:
            self._is_closed = True
        self._wake()

    def freeze(self, timeout: float) -> bool:
        """Make none until ``thaw``; return whether none is under way any more in time."""
        return self._busy.acquire(timeout=timeout)

    def thaw(self) -> None:
        """Go on, if it is frozen."""
        free(self._busy)
