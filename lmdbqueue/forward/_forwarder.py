"""Draining a source into a target: each item exactly once if the target keeps marks, otherwise at least once.

Owns: the order of the steps, waiting, stopping. Law: an item is removed here only after it was stored there, and no
batch is begun before the previous one has been removed here. So only the last batch can be in doubt, and the mark
stored with it resolves that. Must not know: how items are kept here or there, or what they mean: they are passed on as
bytes.

====  ==================================================  =======================================================
step  what is done                                        killed after it, or the target is lost: the next run
====  ==================================================  =======================================================
1     ask the target for the mark of this source; again   does the same
      if another forwarder has noted a later batch here
2     compare it with the source: if items are missing    does the same
      or extra, a side was restored from a backup: stop
3     remove here the items that the mark lists           finds none of them here any more
4     read the first items                                reads them again
5     store the batch there with its mark, in one step    finds the mark: 1, 3
6     remove the batch here                               finds the mark, and nothing to remove
7     again from 4
====  ==================================================  =======================================================

Two forwarders of one source: the target has a lock, and the second waits. If both get through, since the first lost its
connection, the mark admits one batch: the other forwarder finds it (``BusyError``) and begins again at 1.

A reader of a queue is drained in the same way, with "the reader passes" for "remove".

The source has one consumer, the forwarder. Another one may pop items that are being forwarded at that moment; but no
item is ever removed that was not forwarded. A target that keeps no mark gets the last batch again after a crash.

Items that a target refuses for good (``RefusedError``) become dead letters; if a reader is drained, it passes them and
they become dead letters of a separate queue. The stored items of the batch are removed; then step 4. After a kill
before that, the next run sends the refused items again, and they are refused again.
"""

import sys
import time
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lmdbqueue._base.errors import ForwardError, StorageError
from lmdbqueue._host.directory import FORWARDED
from lmdbqueue._host.signals import stopped_by_signals
from lmdbqueue._host.threads import Flag
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._local.source import source_of
from lmdbqueue._local.target import QueueTarget
from lmdbqueue._verbs.batch import AwayError, Batch, BusyError, Mark, RefusedError, Target, digest
from lmdbqueue._verbs.options import FLAG, HOOK, VERBS, check, seconds, whole

if TYPE_CHECKING:
    import logging

_AHEAD: Final = 10_000  # roughly the number of items searched for those of a batch in doubt
_LOOK: Final = 1.0  # seconds between two checks whether to stop
_TURN: Final = 0.5  # seconds between two checks whether the other forwarder has ended


class Forwarded(NamedTuple):
    """The progress of a forwarder.

    Attributes:
        items: Items forwarded.
        batches: Batches forwarded.
        size: Bytes forwarded.
        failures: Failures of the target, each followed by another attempt.
        waiting: Items that were waiting here at the last check.
        away_since: When the target stopped answering, in seconds since 1970; None: it answers.
        refused: Items refused by the target, now dead letters.
    """

    items: int = 0
    batches: int = 0
    size: int = 0
    failures: int = 0
    waiting: int = 0
    away_since: float | None = None
    refused: int = 0


_RULES: Final = {
    "batch": whole("a number of items", 1),
    "max_bytes": whole("a number of bytes", 1),
    "linger": VERBS["linger"],
    "follow": FLAG,
    "pause": seconds(),
    "progress": HOOK,
}


class Forwarder:
    """Drains a queue into a target, in order: each item exactly once, or at least once if the target keeps no marks.

    An item is removed here only after it was stored there. While the target does not answer, the forwarder tries again;
    the logger ``lmdbqueue`` reports when that began, and when it ended.

    Example:
        >>> Forwarder(PersistentQueue("readings"), HttpTarget("https://example.org/readings"), follow=True).run()

    Args:
        local: A ``PersistentQueue`` or the path of its directory; a reader of it, ``queue.reader("central")``: then
            only the reader moves, and the items stay for others; or a ``Source``.
        remote: A ``PostgresQueue``; a ``PersistentQueue`` in another directory; an ``HttpTarget``, ``MqttTarget``, or
            a ``Target`` of your own.
        batch: The maximum number of items in a batch.
        max_bytes: The maximum size of a batch in bytes; a single item may exceed it.
        follow: Whether to wait for more items; otherwise ``run`` ends when none is left.
        linger: With ``follow``, seconds to wait for a batch to fill.
        away: The types of errors that mean that the target does not answer at the moment; ``AwayError`` is an
            ``OSError``.
        pause: The longest pause between two attempts, in seconds.
        progress: Called with a ``Forwarded`` after each batch, each failure, and when the target is back.
    """

    def __init__(
        self,
        local: Any,
        remote: Any,
        *,
        batch: int = 1000,
        max_bytes: int = 8 << 20,
        linger: float = 0.0,
        follow: bool = False,
        away: tuple[type[Exception], ...] = (OSError, StorageError),
        pause: float = 30.0,
        progress: Callable[[Forwarded], object] | None = None,
    ) -> None:
        check(_RULES, batch=batch, max_bytes=max_bytes, linger=linger, follow=follow, pause=pause, progress=progress)
        if linger and not follow:
            message = "'linger' waits for more items, but without 'follow' it ends when none is left: pass follow=True"
            raise ValueError(message)
        self._batch = batch
        self._max_bytes = max_bytes
        self._linger = linger
        self._follow = follow
        self._away = away
        self._pause = pause
        self._progress = progress
        self._stopped = Flag()
        self._done = Forwarded()
        self._failures = 0  # since the last success, except those that named a time to wait
        self._failed_at = ""  # the step of the target that failed, while it is unreachable
        self._source = source_of(local)
        self._owns_source = self._source is not local
        self._target = _target_of(remote)

    def run(self) -> Forwarded:
        """Forward until nothing is left (with ``follow``: for ever), or until it is stopped.

        In the main thread, SIGTERM and SIGINT stop it. The current batch is finished first.

        Returns:
            The final progress.

        Raises:
            ForwardError: The mark of the target does not match the source.
        """
        try:
            with stopped_by_signals(self.stop):
                while not self._stopped.is_set() and self._try():
                    pass
        finally:
            self._target.close()
            if self._owns_source:
                self._source.close()
        return self._done

    def stop(self) -> None:
        """End ``run`` after the current batch; call it from another thread or from a signal handler."""
        self._stopped.set()

    def _try(self) -> bool:
        """Forward until something fails; return whether to start again."""
        try:
            mark, noted = self._last()
        except BusyError:
            self._stopped.wait(_TURN)
            return True
        except self._away as error:
            self._tell("last", error)
            return True
        self._answered("last")
        self._take_up(mark, noted)
        number = 0 if mark is None else mark.number
        while not self._stopped.is_set():
            number += 1
            batch = self._filled(number)
            if batch is None:
                if not self._follow:
                    return False
                number -= 1
                self._source.wait(_LOOK)
                continue
            self._source.sync()  # or a power cut could reuse these numbers, or undo removals
            try:
                self._target.store(batch)
            except BusyError:
                return True
            except RefusedError as error:
                self._take_refusal(batch, error)
                number -= 1
                continue
            except self._away as error:
                if isinstance(error, AwayError) and self._settle(batch, error):
                    self._answered("store")
                self._tell("store", error)
                return True
            self._answered("store")
            self._remove(batch.mark)
            self._count(batch)
        return False

    def _last(self) -> tuple[Mark | None, int]:
        """Return the mark of the target, and the last batch that was noted here before the target was asked for it."""
        mark = self._target.last(self._source.origin)
        identity = self._target.identity
        noted = self._source.noted(identity) if identity else 0
        if noted > (0 if mark is None else mark.number):  # another forwarder may have stored a batch since
            mark = self._target.last(self._source.origin)
        return mark, noted

    def _take_up(self, mark: Mark | None, noted: int) -> None:
        """Remove items that the target has already; refuse a source or a target restored from an older copy."""
        number = 0 if mark is None else mark.number
        if noted > number:
            reason = f"the target had stored {noted} batches of it, and now has {number}"
            advice = (
                "it seems to be an older copy, and the items that it got since are no longer here, either: to continue "
                f"with those that are here, remove {FORWARDED} from this directory"
            )
            raise ForwardError(self._source.path, reason, advice)
        if mark is None:
            return
        removed = self._source.bounds().removed
        if unknown := self._source.unknown(mark.seqs):
            reason = f"item {unknown[-1]} was forwarded, and this queue never had an item with that number"
        elif removed < mark.removed - len(mark.seqs):
            reason = f"it had removed {mark.removed - len(mark.seqs)} items, and now has removed {removed}"
        elif self._has_others(mark):
            reason = f"it has other items under numbers that were forwarded, up to {mark.next - 1}"
        else:
            self._remove(mark)
            return
        advice = "it seems to be an older copy: find out which items have arrived, and remove those here, and the mark"
        raise ForwardError(self._source.path, reason, advice)

    def _remove(self, mark: Mark) -> None:
        """Note how far the target has come, then remove the items that it has stored."""
        if self._target.identity:
            self._source.note(self._target.identity, mark.number)
        self._source.remove(mark.seqs)

    def _has_others(self, mark: Mark) -> bool:
        """Return whether other items have the numbers of forwarded ones, as in a restored copy."""
        if not mark.digest:
            return False
        known, n = set(mark.seqs), len(mark.seqs)
        while True:
            envelopes, payloads = self._source.read(n, sys.maxsize)
            found = zip(envelopes, payloads, strict=True)
            there = [payload for envelope, payload in found if envelope.seq in known]
            is_last = len(envelopes) < n or envelopes[-1].seq > max(known) or n > _AHEAD
            if is_last or len(there) == len(known):
                return bool(there) and digest(there) != mark.digest
            n *= 2  # items that came back, or are more urgent, may stand before them

    def _read(self, number: int) -> Batch | None:
        bounds = self._source.bounds()
        self._done = self._done._replace(waiting=bounds.waiting)
        envelopes, payloads = self._source.read(*self._most())
        if not envelopes:
            return None
        seqs = [envelope.seq for envelope in envelopes]
        mark = Mark(number, seqs, max(seqs) + 1, bounds.removed + len(seqs), digest(payloads))
        return Batch(self._source.origin, mark, payloads, envelopes)

    def _most(self) -> tuple[int, int]:
        """Return the maximum numbers of items and bytes in a batch."""
        target = self._target
        return min(self._batch, target.limit or self._batch), min(self._max_bytes, target.max_bytes or self._max_bytes)

    def _filled(self, number: int) -> Batch | None:
        """Return the next batch, with items that arrive while it lingers; None if there are none."""
        batch = self._read(number)
        if batch is None or not self._linger:
            return batch
        deadline = time.monotonic() + self._linger
        while not self._stopped.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._source.fill(*self._most(), min(left, _LOOK)):
                break
        return self._read(number)

    def _take_refusal(self, batch: Batch, error: RefusedError) -> None:
        if self._settle(batch, error):
            self._answered("store")
        else:  # the next attempt would be the same, and at once
            self._tell("store", AwayError("it refused no item of the batch, but did not store it"))

    def _settle(self, batch: Batch, error: RefusedError | AwayError) -> bool:
        """Make refused items dead letters, remove those stored before the first of unknown fate; return whether any."""
        refused = {seq: error.refused[seq] for seq in batch.mark.seqs if seq in error.refused}
        if refused:
            buried = self._source.refuse(refused)  # the others have left meanwhile
            self._done = self._done._replace(refused=self._done.refused + len(buried))
            seq, reason = next(iter(refused.items()))
            told = "the target of %r refused items: %d; new dead letters: %d; item %d: %s"
            _logger().warning(told, self._source.origin.name, len(refused), len(buried), seq, reason)
            if self._progress is not None:
                self._progress(self._done)
        known = {*error.stored, *refused}
        pairs = zip(batch.mark.seqs, batch.payloads, strict=True)
        prefix = [pair for pair in takewhile(lambda pair: pair[0] in known, pairs) if pair[0] not in refused]
        if prefix:
            self._source.remove([seq for seq, _ in prefix])
            self._count(batch._replace(payloads=[payload for _, payload in prefix]))
        return bool(refused or prefix)

    def _count(self, batch: Batch) -> None:
        done = self._done
        self._failures = 0
        self._done = done._replace(
            items=done.items + len(batch.payloads),
            batches=done.batches + 1,
            size=done.size + sum(map(len, batch.payloads)),
            waiting=max(0, done.waiting - len(batch.payloads)),
        )
        if self._progress is not None:
            self._progress(self._done)

    def _answered(self, step: str) -> None:
        """Log that the target is back, if this is the step that had failed."""
        since = self._done.away_since
        if since is None or self._failed_at != step:
            return
        self._done = self._done._replace(away_since=None)
        away = max(0.0, time.time() - since)
        _logger().warning("the target of %r is back after %.1f s", self._source.origin.name, away)
        if self._progress is not None:
            self._progress(self._done)

    def _tell(self, step: str, error: Exception) -> None:
        """Log that the target is unreachable, and wait before the next attempt."""
        done = self._done
        since = time.time() if done.away_since is None else done.away_since
        self._done = done._replace(failures=done.failures + 1, away_since=since)
        self._failed_at = step
        pause = getattr(error, "retry_after", None) or 0.0
        if pause <= 0:  # no wish, or "at once", as proxies answer for servers that are down
            pause = min(self._pause, 0.1 * 2.0**self._failures)
            self._failures = min(self._failures + 1, 20)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        told = "the target of %r has been away since %s, next try in %.1f s: %s"
        _logger().warning(told, self._source.origin.name, when, pause, error)
        if self._progress is not None:
            self._progress(self._done)
        deadline = time.monotonic() + pause
        while not self._stopped.is_set() and (left := deadline - time.monotonic()) > 0:
            self._stopped.wait(min(left, _LOOK))


def _logger() -> "logging.Logger":
    import logging  # noqa: PLC0415  (not every program needs it)

    return logging.getLogger("lmdbqueue")


def _target_of(remote: Any) -> Target:
    if isinstance(remote, Target):
        return remote
    if isinstance(remote, PersistentQueue):
        return QueueTarget(remote)
    from lmdbqueue.postgres import PostgresQueue, PostgresTarget  # noqa: PLC0415  (needs psycopg)

    if isinstance(remote, PostgresQueue):
        return PostgresTarget(remote)
    message = f"'remote' must be a queue or a Target, not {type(remote).__name__}"
    raise TypeError(message)
