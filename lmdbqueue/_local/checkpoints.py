"""Checkpoints: what a queue with ``durability="interval"`` has on the disk while its commits are not flushed.

Owns: when the disk is brought up to date, and which pages LMDB may use again meanwhile. Law: nobody commits unless the
pages of a checkpoint that is on the disk are kept; a commit waits for the disk only when too much is not there. Must
not know: verbs, group commit, how recovery proves a snapshot (``_local.recovery``).

A *checkpoint* is a snapshot c of which all pages are on the disk, and its meta page, written down in the file
``checkpoint`` (``_lmdb.checkpoint_slots``), since LMDB's own two go on to later transactions. A *pin* is a read
transaction at c or before it: LMDB uses no page again that it can see. So whatever is committed after c, and however
much of that a power cut takes, c can be had back by its meta page.

====  ====================================================  =========================================================
step  what is done, and with which lock                     killed after it; or the power goes
====  ====================================================  =========================================================
1     ``_busy``: begin a read transaction, the new pin, at  nothing was changed: the checkpoint before stands, and the
      the newest snapshot n; copy the meta page of n out    pins of all who commit are at it or before it. LMDB frees
      of its slot, which is n's for sure if n is the        the pin of who is killed
      newest still once it was read
2     flush: n is on the disk, and so is all before it      as 1
3     the flock of the file ``checkpoint``, which the       power: n or the one before it, both of which are whole
      kernel frees: bring its newest slot to the disk,      and kept by the old pin; the slot that is written is the
      unless it is known to be there; write the copy into   one of an older checkpoint, and a torn one is known by its
      the other slot if it is newer; fsync                  CRC. Killed: the next in line does not trust what it finds
                                                            before its own fsync
4     raise the shared word: n is on the disk               only ``sync`` and ``stats`` look at it
5     end the old pin, of this process                      nothing is left to do
====  ====================================================  =========================================================

The rule: a process commits only while it has a pin of its own at the newest checkpoint or before it, and one that has
none makes a checkpoint first (``pin``, before LMDB begins to write: then it decides which pages it uses again). So
whoever dies, the pins of the others stand, and who forks lets its pin go, since a child could not end it.

Step 1 needs no lock of the writers. The slot of n is written again by n+2, and n+2 begins when n+1 is the newest: what
was read while n was the newest is n's. A commit between the two looks costs another try.

When. A thread, which is there only while there is something to cover, makes a checkpoint at most ``interval`` seconds
after a commit of this process; sooner if much was written (``_MUCH``). A commit waits for it only if twice as much was.
When an interval has passed in which nothing was committed the pin is let go and the thread ends: an idle process keeps
no pages. What one that was killed has left uncovered is covered by whoever commits next, and by the first to open the
queue.

A flush that failed puts the generation in doubt, as with any durability (``_lmdb.generation``): it is written anew
before the next commit.
"""

import threading
import time
from _thread import start_new_thread
from contextlib import suppress
from typing import Final

from lmdbqueue._errors import NestedCallError
from lmdbqueue._host.disk import translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._host.threads import free, is_mine
from lmdbqueue._lmdb.checkpoint_slots import Checkpoint, Slots
from lmdbqueue._lmdb.failures import Doubtful, Superseded
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.snapshot import Txn, end

_MUCH: Final = 1 << 23  # bytes of pages that may be written before a checkpoint is made; commits wait at twice that
_COMMIT: Final = 6 * 4096  # bytes of pages that a commit writes at the least: paths of three trees, the free list
_PATHS: Final = 1 << 17  # bytes that a call asks room for beside its items (``_model.pushing``)


class Checkpoints:
    """Those that one process makes of one generation."""

    def __init__(
        self, generation: Generation, session: Session, slots: Slots, writer: "threading.RLock", interval: float
    ) -> None:
        """``writer``: the right to write of this process, which whoever calls ``pin`` and ``committed`` holds."""
        self.interval = interval
        self._generation = generation
        self._session = session
        self._slots = slots
        self._writer = writer
        self._busy = threading.RLock()  # while one is made, and while the process is being forked
        self._pin: Txn | None = None
        self._is_uncovered = False  # something was committed by this process since step 1 of the last one
        self._written = 0  # bytes of pages since then, about
        self._alarm = threading.Lock()  # opened to wake the thread
        self._alarm.acquire()
        self._is_kept = False  # the thread is there
        self._is_closed = False

    # --- around a commit

    def pin(self) -> None:
        """Return when this process may commit. Raises ``StorageError``, ``Superseded``."""
        if self._is_kept and self._pin is not None and self._written < 2 * _MUCH:
            return
        if self._session.is_in_doubt(self._generation.number):
            return  # it is left, and nothing committed to it but the mark that says so
        self._refuse_nested()
        with self._busy:
            self._watch()
            has_none = self._pin is None or self._written >= 2 * _MUCH
            if has_none or (self._is_uncovered and not self._is_kept):  # without a thread each commit covers the last
                self._make()

    def committed(self, granted: int) -> None:
        """Note a commit, for which so many bytes of pages were granted."""
        self._is_uncovered = True
        self._written += _COMMIT + max(0, granted - _PATHS)
        self._session.note_unsynced(time.monotonic_ns)
        if self._written >= _MUCH:
            self._wake()

    def renew(self) -> bool:
        """Make a checkpoint, so that what was freed before it can be used again; return whether that may help."""
        if not self._written or self._session.is_in_doubt(self._generation.number):
            return False
        self._refuse_nested()
        with self._busy:
            self._make()
        return True

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
            self._watch()  # with the lock, so that no thread which is about to end is taken for one

    def hurry(self, interval: float) -> None:
        """Make one so often from now on."""
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
        pin = None
        is_made = False
        try:
            pin, transaction, body = self._generation.pinned()
            number = self._generation.number
            self._bring_down(Checkpoint(number, body))
            old, self._pin, pin = self._pin, pin, None
            if old is not None:
                end(old)
            is_made = True
        finally:
            if pin is not None:
                end(pin)
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

    def _tell(self, covered: int, began: int) -> None:
        """Raise the shared words: what is covered, and since when something is not."""
        self._session.set_synced(covered)
        for _ in range(2):  # a commit that came before the word was cleared did not set it
            is_all = self._generation.newest() == covered
            self._session.unsynced_since = 0 if is_all else began

    @property
    def is_mine(self) -> bool:
        """Whether this thread is making one: then a call came from within a call."""
        return is_mine(self._busy)

    def is_within(self) -> bool:
        """Return whether this thread writes or makes one: a call from within may wait for a writer who waits for it."""
        return is_mine(self._writer) or is_mine(self._busy)

    def _refuse_nested(self) -> None:
        """Raise ``NestedCallError`` in a call from within one of this thread that makes a checkpoint."""
        if self.is_mine:
            raise NestedCallError(self._generation.directory)

    # --- the thread

    def _watch(self) -> None:
        """Start the thread if there is none."""
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
        while not self._is_closed:
            self._alarm.acquire(timeout=self.interval)
            has_failed = False
            if self._is_uncovered:
                try:
                    with self._busy:
                        self._make()
                except Exception:  # who writes next meets it, where it is dealt with
                    has_failed = True
            if (has_failed or not self._is_uncovered) and self._rest(has_failed=has_failed):
                return

    def _rest(self, *, has_failed: bool) -> bool:
        """Release the pin unless somebody is writing or something is uncovered; return whether the thread may end."""
        if not self._writer.acquire(blocking=False):
            return False
        try:
            if self._is_uncovered and not has_failed:
                return False
            with self._busy:
                self._let_go()
                self._is_kept = False
            return True
        finally:
            self._writer.release()

    def _let_go(self) -> None:
        pin, self._pin = self._pin, None
        if pin is not None:
            end(pin)

    # --- the end, and forks

    def cover(self) -> None:
        """Make a checkpoint if something that this process committed is not covered. Raises ``StorageError``."""
        with self._busy:
            if self._is_uncovered and not self._session.is_in_doubt(self._generation.number):
                self._make()

    def close(self) -> None:
        """Release the pin and make no more, so that the generation can be closed."""
        with self._busy:
            self._is_closed = True
            self._let_go()
        self._wake()

    def freeze(self, timeout: float) -> bool:
        """Have no transaction open until ``thaw``, with the right to write; return whether that came about in time."""
        if not self._busy.acquire(timeout=timeout):
            return False
        self._let_go()
        return True

    def thaw(self) -> None:
        """Go on, if it is frozen."""
        free(self._busy)
