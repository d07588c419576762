"""Checkpoints: the snapshots on the disk while the commits of ``durability="interval"`` are not flushed.

Owns: when the disk is brought up to date, and which pages LMDB may reuse meanwhile. Law: no process commits unless the
pages of a checkpoint on the disk are protected; a commit waits for the disk only when too much is not there yet. Must
not know: verbs, group commit, how recovery proves a snapshot (``_local.recovery``).

A *checkpoint* is a snapshot c of which all pages are on the disk, and its meta page, stored in the file ``checkpoint``
(``_lmdb.checkpoint_slots``), since LMDB's own two meta pages move on to later transactions. The *pin* is an entry in
LMDB's table of readers that holds a checkpoint: LMDB reuses no page that is visible in this snapshot or in a later one.
So whatever is committed after c, and however much of that a power cut destroys, c can be restored from its meta page.
The pin belongs to no process (``_lmdb.checkpoint_pin``): an idle, stopped or killed process keeps no pages.

====  ====================================================  =========================================================
step  what is done, and with which lock                     killed after it, or stopped; or the power goes
====  ====================================================  =========================================================
1     ``_busy``: copy the meta page of the newest snapshot  nothing was changed: the last checkpoint counts. n is
      n from its slot; it is n's if n is still the newest   kept by the pin, which is at an earlier checkpoint, as
      after reading                                         long as no other process has a later one on the disk
2     flush: n is on the disk, and so is all before it      as 1
3     ``flock`` a free lane of ``checkpoint``; bring its     power: n or the previous one counts, both whole and kept
      newest slot to the disk unless known to be there;     by the pin; the slot being written is that of an older
      write the copy into its other slot if it is newer;    checkpoint, and its CRC shows if it is torn. Killed: the
      fsync; write into the shared words of the lane what   next process in the lane trusts its content only after an
      it covers, before the lock is released                fsync of its own, and then writes the words. Stopped:
                                                            others take the next lane; what this one writes later is
                                                            older than theirs, and the newest of all lanes counts.
                                                            ``sync`` and ``stats`` read the words
4     move the pin to n, unless it is at a later one        stopped before it: may set back a pin that others have
                                                            moved, which keeps more until the next checkpoint
5     clear the moment since which commits are uncovered,   only ``stats`` reads it, and only if the newest
      or set it to the begin of step 1 if there are newer   transaction is not covered: so a moment that was left
      ones                                                  behind says nothing. If one is missing, that is now
====  ====================================================  =========================================================

The rule: no process commits before the pin holds a checkpoint. It holds none if the generation was not open before, so
the first process to commit makes one (``pin``, before LMDB begins to write, which is when it decides which pages to
reuse).

Step 1 needs no writers' lock. The slot of n is overwritten by n+2, and n+2 begins when n+1 is the newest: a page read
while n was the newest is n's. A commit between the two checks costs another attempt. The newest transaction is the one
that LMDB reports to a reader, not the one in the meta pages, which may contain that of a failing commit for a moment.

When. A thread, which exists only while there are commits to cover, makes a checkpoint at most ``interval`` seconds
after a commit of this process, or sooner if much was written (``_MUCH``). A commit waits for it only if twice as much
was written. The thread ends after an interval without a commit. Commits that a killed process left uncovered are
covered by the next process to commit, and by the first to open the queue.

The thread retries a failed checkpoint, after twice as long each time, but at most a second: until then
``unsynced_seconds`` grows. Commits get the error when so much is uncovered that they have to wait. A failed flush puts
the generation in doubt, as with any durability (``_lmdb.durability``): it is rewritten, by the thread if no process
commits before; if that fails, too, it is retried after at most a minute.
"""

from __future__ import annotations

import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lmdbqueue._base.errors import NestedCallError, QueueError
from lmdbqueue._host.disk import translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._host.threads import free
from lmdbqueue._lmdb.checkpoint_slots import Checkpoint, Slots
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import Generation

_MUCH: Final = 1 << 23  # bytes of pages that may be written before a checkpoint is made; commits wait at twice that
_COMMIT: Final = 6 * 4096  # bytes of pages that a commit writes at least: paths of three trees, the free list
_PATHS: Final = 1 << 17  # bytes of room that a call requests beside its items (``_model.pushing``)
_LONGEST_PATIENCE: Final = 1.0  # seconds until a checkpoint that failed is tried again, unless the interval is longer
_LONGEST_IN_DOUBT: Final = 60.0  # the same for a copy of the file, which costs disk time and room each time


def _patience(interval: float, failures: int, longest: float = _LONGEST_PATIENCE) -> float:
    """Return the seconds until the next checkpoint, after this many failures in a row."""
    return max(interval, min(longest, interval * 2.0 ** min(failures, 20)))


class Checkpoints:
    """The checkpoints that one process makes of one generation."""

    def __init__(
        self,
        generation: Generation,
        session: Session,
        slots: Slots,
        writer: threading.RLock,
        interval: float,
        begin_anew: Callable[[], object],
    ) -> None:
        """``writer``: this process's right to write, held by the callers of ``pin`` and ``committed``.

        ``begin_anew``: writes everything durably to a new file, after a flush of this one has failed.
        """
        self.interval = interval
        self._generation = generation
        self._session = session
        self._slots = slots
        self._writer = writer
        self._begin_anew = begin_anew
        self._busy = threading.RLock()  # held while a checkpoint is made, and while the process is being forked
        # whether this thread is making one: then this is a nested call
        self.is_mine: Callable[[], bool] = self._busy._is_owned  # type: ignore[attr-defined]  # noqa: SLF001  (is_mine)
        self._is_pinned = False  # whether the pin is known to hold a checkpoint
        self.is_uncovered = False  # whether this process has committed since step 1 of the last checkpoint
        self._written = 0  # roughly the bytes of pages written since then
        self._alarm = threading.Lock()  # opened to wake the thread
        self._alarm.acquire()
        self._is_kept = False  # whether the thread is running
        self._is_closed = False

    # --- around a commit

    def pin(self) -> None:
        """Wait until this process may commit. Raises ``StorageError``, ``Superseded``."""
        if self._is_kept and self._is_pinned and self._written < 2 * _MUCH:
            return
        if self._is_closed:  # like the generation, now or soon: the pin cannot be read any more
            raise Superseded
        if self._session.is_in_doubt(self._generation.number):
            return  # the generation is being left: only the mark that says so is committed to it
        self._watch()
        if self._must_wait():
            self._refuse_nested()
            with self._busy:
                if self._must_wait():  # still
                    self._make()

    def _must_wait(self) -> bool:
        return self._written >= 2 * _MUCH or not self._is_there()

    def _is_there(self) -> bool:
        """Return whether the pin holds a checkpoint; once it does, it always will."""
        pin = self._generation.pin
        self._is_pinned = pin is not None and not pin.is_empty
        return self._is_pinned

    def committed(self, granted: int) -> None:
        """Note a commit, for which ``granted`` bytes of pages were granted, and after which it ``is_uncovered``."""
        self._written += _COMMIT + max(0, granted - _PATHS)
        self._session.note_unsynced(time.monotonic_ns)
        if not self._is_kept:
            self._cover_at_once()
        elif self._written >= _MUCH:
            self._wake()

    def _cover_at_once(self) -> None:
        """Cover a commit here if no thread could be started. If that fails, the next commit tries."""
        with suppress(QueueError, Superseded, Doubtful), self._busy:
            self._make()

    def renew(self) -> bool:
        """Make a checkpoint, so that pages freed before it can be reused; return whether that may help."""
        pin = self._generation.pin
        if pin is None or self._session.is_in_doubt(self._generation.number):
            return False
        self._refuse_nested()
        with self._busy:
            self._make()
        return True  # the pin may have stood there already, and have been moved after what was refused had begun

    def resume(self) -> None:
        """Soon cover commits left uncovered by others, or by this process before the file was reopened."""
        self.is_uncovered = True
        self._watch()

    def sync(self) -> None:
        """Wait until all commits, of any process, are on the disk. Raises ``StorageError``, ``Superseded``."""
        newest = self._generation.newest()
        if self._session.is_covered(newest):
            return
        self._refuse_nested()
        with self._busy:
            if not self._session.is_covered(newest):
                self._make()

    def uncovered_since(self) -> int:
        """Return a moment not after the oldest uncovered commit, in ns of the monotonic clock; 0: none is uncovered."""
        with suppress(Superseded):  # closed just now by this process
            if self._session.is_covered(self._generation.newest()):
                return 0
            # who cleared the moment just as another process committed may be stopped, or was killed
            return self._session.note_unsynced(time.monotonic_ns)
        return self._session.unsynced_since

    def hurry(self, interval: float) -> None:
        """Make a checkpoint every ``interval`` seconds from now on."""
        self.interval = interval
        self._wake()

    # --- the five steps

    def _make(self) -> None:
        """Make a checkpoint. With ``_busy``."""
        if self._is_closed:
            raise Superseded
        began = time.monotonic_ns()
        was_uncovered, written = self.is_uncovered, self._written
        is_made = False
        try:
            self.is_uncovered, self._written = False, 0  # before the snapshot: commits made meanwhile count again
            transaction, body = self._generation.newest_meta()
            number = self._generation.number
            self._bring_down(Checkpoint(number, body))
            self._pin(transaction)
            is_made = True
        finally:
            if not is_made:
                self.is_uncovered = self.is_uncovered or was_uncovered
                self._written += written
        self._note(began)

    def _bring_down(self, checkpoint: Checkpoint) -> None:
        with translated(self._generation.path, "sync"):
            if self._slots.newest() != checkpoint:  # otherwise there was no commit since that one
                self._generation.flush_to_disk()
            if self._session.is_in_doubt(self._generation.number):  # then the success of this flush proves nothing
                raise Doubtful
            self._slots.raise_to(checkpoint, self._tell)

    def _tell(self, lane: int, checkpoint: Checkpoint) -> None:
        """Let all processes know what a lane covers."""
        self._session.set_covered(lane, stamp(checkpoint.generation, checkpoint.transaction))

    def _pin(self, transaction: int) -> None:
        if (pin := self._generation.pin) is not None:
            pin.move(transaction)
            self._is_pinned = True

    def _note(self, began: int) -> None:
        """Note since when there are commits that no checkpoint covers."""
        if self._generation.is_superseded():
            return  # others may have committed to the next one
        is_all = None
        while is_all != (is_all := self._session.is_covered(self._generation.newest())):
            # a commit that came before the word was cleared did not set it; and what was not covered when this one
            # looked may have been by another process since
            self._session.unsynced_since = 0 if is_all else began
        if self._generation.is_superseded():
            self._session.unsynced_since = began

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` inside a call of this thread that is making a checkpoint."""
        if self.is_mine():
            raise NestedCallError(self._generation.directory)

    # --- the thread

    def _watch(self) -> None:
        """Start the thread unless it is running. With ``_writer``, or before other threads know this object."""
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
            if self.is_uncovered:
                failures = 0 if self._is_covered_now() else failures + 1
            elif self._may_end():
                return

    def _is_covered_now(self) -> bool:
        """Make a checkpoint; return whether it succeeded. If not, it is retried, since perhaps nobody else will."""
        try:
            with self._busy:
                self._make()
        except Doubtful:
            return self._has_begun_anew()
        except Exception:  # raised again by sync(), and by commits when too much is uncovered
            return self._session.is_in_doubt(self._generation.number) and self._has_begun_anew()
        return True

    def _has_begun_anew(self) -> bool:
        with suppress(Exception):  # as above
            self._begin_anew()
            return True
        return False

    def _may_end(self) -> bool:
        """Return whether the thread may end: no other is writing or making a checkpoint, and no commit is uncovered."""
        if not self._writer.acquire(blocking=False):
            return False
        try:
            if not self._busy.acquire(blocking=False):  # what another thread fails to cover is left to this one
                return False
            try:
                self._is_kept = self.is_uncovered
                return not self._is_kept
            finally:
                self._busy.release()
        finally:
            self._writer.release()

    # --- the end, and forks

    def cover(self) -> None:
        """Make a checkpoint if a commit of this process is not covered. Raises ``StorageError``."""
        with self._busy:
            if self.is_uncovered and not self._session.is_in_doubt(self._generation.number):
                self._make()

    def close(self) -> None:
        """Make no more checkpoints, so that the generation can be closed."""
        with self._busy:
            self._is_closed = True
        self._wake()

    def freeze(self, timeout: float) -> bool:
        """Make no checkpoints until ``thaw``; return whether the one under way ended in time."""
        return self._busy.acquire(timeout=timeout)

    def thaw(self) -> None:
        """Continue, if frozen."""
        free(self._busy)
