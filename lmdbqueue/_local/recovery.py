"""Recovery: what the first process to open a queue does about what a power cut may have left.

Owns: the decision which of the two newest snapshots counts. Law: what was acknowledged stays; what was torn goes,
whole; where it cannot be told, nothing is changed; an error of the system ends the opening, and nothing is changed.
Must not know: how commits are made durable, beyond what is said here.

What a power cut can leave. Transaction k is committed when k-1 is on the disk, and acknowledged when one flush has
brought its pages and its meta page there (see ``_lmdb.durability``). Pages and meta page arrive in any order, in units
of a sector, so there are three cases:

- the meta page of k did not arrive: the other slot holds k-1, which counts, and is whole;
- all of k arrived: k counts, whether it was acknowledged or not;
- the meta page of k arrived, and not all of its pages: k is torn. It was never acknowledged, since its flush did not
  end. Nothing of k-1 was written over, and its meta page is in the other slot.

So k is proven, and if that fails k-1 is made to count again. Since k-1 is known to be whole, only what k changed is
read: that is done in some milliseconds, however long the queue is. What proves its pages is said in
``_lmdb.difference``, what proves its records in ``_model.last_transaction``.

When nothing is proven. Opening happens under the directory lock, and the first to open knows that it is alone
(``_host.session``). Then, in this order:

1. The page cache in which everything was written still stands (same boot, same mount): every commit is there, flushed
   or not. This is so after ``kill -9``.
2. The last process closed the queue, and this is no copy that somebody made of the directory.
3. Each commit is flushed as LMDB wants it (``checksum=False``).
4. Both slots have the same body: nothing was committed since the last recovery. Or the newest transaction is the first
   of its file: files get their name when they are on the disk.

When all of the file is read instead (``_model.invariants``), since k-1 may not be whole, either: a copy made by other
means; a generation in doubt (a flush of it failed, see ``_local.swap``); ``durability="off"``; k-1 turns out to be
damaged.

The number advances. What a killed attempt at k+1 left on free pages may all have arrived, and the next transaction
would be k+1 again: amid its flush the power could be cut with its meta page on the disk and those pages in the places
of its own. So no recovery leaves that number to be given: what counts gets the next number, in the other slot. The
pages of a torn transaction k are left behind in the same way, since k-1 gets the number of k.

====  ==================================================  ===========================================
step  what is done                                        a crash after it: the next to open
====  ==================================================  ===========================================
1     prove k
2     k is whole: fsync, so that it is on the disk        proves k
3     write k over k-1 as k+1, fsync                      finds the same body twice, or does 2 again
2'    k is torn: write k-1 over k as k, fsync             proves k, or finds the same body twice
3'    write k-1 over k-1 as k+1, fsync                    finds the same body twice
4     note that the files stand in this page cache        begins after the next power cut only
====  ==================================================  ===========================================

Each write is one of 160 bytes within a sector. Where all of the file is read LMDB itself must see k-1 as the newest
snapshot to prove it, and k may have to come back, if k-1 is no better: what stood in its slot goes into the session's
note before, and whoever finds a note writes it back first.

With checkpoints (``durability="interval"``: ``_local.checkpoints``) it is another snapshot that is known to be whole:
the checkpoint c, whose meta page stands in the file ``checkpoint``. What LMDB's two slots hold, n and n-1, is proven
against c, n first: each page was written at most once after c, so the argument is the same, but for the content weight,
which is a running sum. If neither is whole, c counts. What counts is written into both slots, the newest first, with
numbers that were never given: transactions after n may have left pages, too, without their meta pages, so the numbers
leap (``_LEAP``). They do so also where both slots have the same body already, unless the last checkpoint is older than
that: then nobody has committed since the recovery that left it so.

====  ==================================================  ===========================================
step  what is done, with checkpoints                      a crash after it: the next to open
====  ==================================================  ===========================================
1     prove n against c, then n-1                         does the same
2     fsync, so that what counts is on the disk           does the same
3     write it over each slot that holds anything else,   finds it in the newest slot, which needs no
      the newest first, each with an fsync                proof if it is c, or in both; else does 1
4     note that the files stand in this page cache        begins after the next power cut only
====  ==================================================  ===========================================

A file without a checkpoint of its own generation is as it was when it got its name: nobody commits before there is
one. Without a file ``checkpoint`` that can be read all of the file is read, as of a copy; after that there is no
checkpoint: what stands in that of a copy may be later than the file.

Damage of another origin is not looked for here: seals show it when it is met, and ``check`` when asked. Where all of
the file is read: when only items of k are damaged, and the same ones are in k-1, it was no power cut, k counts, and
those items raise ``CorruptItemError`` as at any other time. When neither snapshot has a sound structure:
``CorruptQueueError``, and the file is as it was found. What is not seen: damage that happened to the pages of the
very last transaction only, and before a power cut, is taken for its work.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._host.directory import CHECKPOINT
from lmdbqueue._host.disk import sync_file, translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.snapshot import is_proven_at_opening, is_weighed

if TYPE_CHECKING:
    from lmdbqueue._model.invariants import Progress

_FIRST = 1  # transaction of a file
_LEAP = 1 << 32  # transactions, more than there can be between two checkpoints


def recover(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None = None
) -> None:
    """Make the file at ``path``, generation ``number``, one that LMDB may open. For the first to open it.

    ``progress(done, total)`` is called with bytes of the proof where all of it is read. Raises ``CorruptQueueError``.
    """
    with translated(path, "recovery"):
        take_back(path, number, session)
        if session.is_standing():
            return
        newest, before = meta_page.read(path)
        if options.durability == "interval" and not session.is_closed():
            newest = _recover_to_checkpoint(path, number, options, session, progress)
        elif is_proven_at_opening(options) and not session.is_closed():
            can_differ = is_weighed(options) and session.is_original() and not session.is_in_doubt(number)
            is_first = newest.transaction == _FIRST  # then the file was on the disk before it got its name
            if not is_first and not (can_differ and _prove_last(path, newest, before)):
                _prove_all(path, number, options, session, progress)
            if session.is_original() or not is_first:  # else nobody ever used it
                newest = _advance(path)
        session.settle(stamp(number, newest.transaction))


def _recover_to_checkpoint(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None
) -> MetaPage:
    """Make the newest snapshot count that is whole, the last checkpoint at the least; return its meta page."""
    from lmdbqueue._lmdb import checkpoint_slots  # noqa: PLC0415  (for these queues only)

    newest, before = meta_page.read(path)
    slots = os.path.join(os.path.dirname(path), CHECKPOINT)
    is_known, checkpoint = checkpoint_slots.read(slots)
    if not session.is_original() or not is_known or (checkpoint and checkpoint.generation > number):
        if session.is_original() or newest.transaction != _FIRST:
            _prove_all(path, number, options, session, progress)
            newest = _make_count(path, meta_page.read(path)[0])
        checkpoint_slots.forget(slots)  # one of a moment that this file never saw would keep its own from being noted
        return newest
    if checkpoint is None or checkpoint.generation < number:  # nothing was committed since the file got its name,
        return newest  # when it was on the disk
    if newest.body == before.body and checkpoint.transaction < newest.transaction:  # nor since the last recovery
        return newest
    base = meta_page.with_body(newest, checkpoint.body)
    counts = next((each for each in (newest, before) if _is_newer_and_whole(path, each, base)), None)
    if counts is None and session.is_in_doubt(number) and is_whole(_draft_after(path, number), options):
        raise CorruptQueueError(path, "a flush of it failed, and its replacement is whole")
    if counts is None:
        _report(
            "WARNING",
            "%s: what was committed since the last checkpoint, transaction %d, was torn and is taken back",
            path,
            checkpoint.transaction,
        )
    return _make_count(path, base if counts is None else counts)


def _is_newer_and_whole(path: str, slot: MetaPage, base: MetaPage) -> bool:
    """Return whether the snapshot of a slot is not older than the checkpoint, and whole."""
    from lmdbqueue._lmdb.difference import Difference, Unprovable  # noqa: PLC0415  (at most the first to open needs it)
    from lmdbqueue._lmdb.sound_pages import Unsound  # noqa: PLC0415
    from lmdbqueue._model import last_transaction  # noqa: PLC0415

    if slot.body == base.body:
        return True
    if slot.transaction <= base.transaction:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        difference = Difference(fd, base, slot)
        last_transaction.check(difference, slot.transaction, is_running=True)
    except (Unprovable, Unsound) as error:
        _report("INFO", "%s: transaction %d is not whole (%s)", path, slot.transaction, error)
        return False
    finally:
        os.close(fd)
    return True


def _make_count(path: str, counts: MetaPage) -> MetaPage:
    """Bring a snapshot to the disk, and write it into both slots, with numbers that were never given."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    newest, before = meta_page.read(path)
    slots = [each for each in (newest, before) if each.body != counts.body] or [before]
    number = max(newest.transaction, counts.transaction) + _LEAP
    for slot in slots:  # the newest first: until it is written over, whoever opens the file does this again
        number += (number % 2 == 1) != (slot.offset > 0)  # the slot of a transaction is the one of its parity
        counts = meta_page.with_body(slot, counts.whole_body, number)
        meta_page.write(path, counts)
        number += 1
    return counts


def _draft_after(path: str, number: int) -> str:
    return os.path.join(os.path.dirname(path), f"{number + 1:08}.mdb.tmp")


def is_whole(path: str, options: _format.Options) -> bool:
    """Return whether a file is there, and nothing wrong with it."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    return os.path.exists(path) and not invariants.of_file(path, options)


def take_back(path: str, number: int, session: Session) -> None:
    """Undo a recovery that was cut short."""
    if note := session.note:
        if _format.unpack(note[:8]) == number:
            meta_page.restore(path, note[8:])
        session.note = b""


def _advance(path: str) -> MetaPage:
    """Bring what counts to the disk and give it the next number, so that no attempt of before has one to come."""
    newest, other = meta_page.read(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    return meta_page.advance(path, newest, other)


def _prove_last(path: str, newest: MetaPage, before: MetaPage) -> bool:
    """Prove the newest transaction against the one before, undo it if it is torn; return whether that can be done."""
    from lmdbqueue._lmdb.difference import Difference, Unprovable  # noqa: PLC0415  (at most the first to open needs it)
    from lmdbqueue._lmdb.sound_pages import Unsound  # noqa: PLC0415
    from lmdbqueue._model import last_transaction  # noqa: PLC0415

    if newest.body == before.body:
        return True
    if newest.transaction != before.transaction + 1:
        return False
    began = time.monotonic()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        difference = Difference(fd, before, newest)
        last_transaction.check(difference, newest.transaction)
    except Unprovable as error:
        _report("WARNING", "%s: its last transaction cannot be proven by what it changed (%s)", path, error)
        return False
    except Unsound as error:
        _report(
            "WARNING",
            "%s: transaction %d was torn and is undone; it was never acknowledged (%s)",
            path,
            newest.transaction,
            error,
        )
        meta_page.undo(path, newest, before, newest.transaction)
    else:
        message = "%s was not closed before its cache was lost: its last transaction is intact (%s bytes in %.3f s)"
        _report("INFO", message, path, f"{difference.bytes_read:,}", time.monotonic() - began)
    finally:
        os.close(fd)
    return True


def _prove_all(path: str, number: int, options: _format.Options, session: Session, progress: Progress | None) -> None:
    """Prove all of the newest snapshot, and make the one before count if only that is whole."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    began = time.monotonic()
    newest, before = meta_page.read(path)
    message = "%s is a copy, or a flush of it failed, or it is not made durable: proving all of its %s bytes"
    _report("INFO", message, path, f"{newest.size:,}")
    found = invariants.of_file(path, options, progress)
    if found and newest.transaction == before.transaction + 1 > 1:
        session.note = _format.pack(number) + newest.raw
        meta_page.undo(path, newest, before, newest.transaction - 2)
        try:
            earlier = invariants.of_file(path, options, progress)
        except BaseException:  # of the system: nothing is known, and nothing may be changed
            take_back(path, number, session)
            raise
        if not earlier.problems and (found.problems or not found.damaged <= earlier.damaged):
            torn, found = found, earlier
            _report(
                "WARNING",
                "%s: transaction %d was torn and is undone; it was never acknowledged (%s)",
                path,
                newest.transaction,
                torn.sentences()[0],
            )
        else:
            meta_page.restore(path, newest.raw)
        session.note = b""
    for sentence in found.sentences():
        _report("ERROR", "%s: %s", path, sentence)
    if found.problems:
        raise CorruptQueueError(path, "; ".join(found.problems[:3]))
    _report("INFO", "%s: proven in %.3f s", path, time.monotonic() - began)


def _report(level: str, message: str, *facts: object) -> None:
    import logging  # noqa: PLC0415  (4 ms that only a recovery pays)

    logging.getLogger("lmdbqueue").log(logging.getLevelNamesMapping()[level], message, *facts)
