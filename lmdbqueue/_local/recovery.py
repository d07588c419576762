"""Recovery: how the first process to open a queue deals with what a power cut may have left.

Owns: the decision which of the two newest snapshots counts. Law: acknowledged calls stay; torn transactions are undone
as a whole; if neither can be established, nothing is changed; an error of the system ends the opening, and nothing is
changed. Must not know: how commits are made durable, beyond what is said here.

What a power cut can leave. Transaction k is committed when k-1 is on the disk, and acknowledged when one flush has
brought its pages and its meta page to the disk (see ``_lmdb.durability``). Pages and meta page arrive in any order, in
units of a sector, so there are three cases:

- the meta page of k did not arrive: the other slot holds k-1, which counts, and is whole;
- all of k arrived: k counts, whether it was acknowledged or not;
- the meta page of k arrived, but not all of its pages: k is torn. It was never acknowledged, since its flush did not
  finish. No page of k-1 was overwritten, and its meta page is in the other slot.

So k is verified, and if that fails k-1 is made to count again. Since k-1 is known to be whole, only the changes of k
are read, which takes a few milliseconds for a queue of any length. ``_lmdb.difference`` describes the proof of its
pages, ``_model.last_transaction`` that of its records.

When nothing is verified. Opening happens under the directory lock, and the first to open knows that it is alone
(``_host.session``). Then, in this order:

1. The page cache into which everything was written still exists (same boot, same mount): every commit is there, flushed
   or not. This is the case after ``kill -9``.
2. The last process closed the queue, and the directory is not a copy.
3. Each commit is flushed as LMDB wants it (``checksum=False``).
4. Both slots have the same body: nothing was committed since the last recovery. Or the newest transaction is the first
   of its file: files get their name when they are on the disk.

The whole file is read instead (``_model.invariants``) if k-1 may not be whole, either: for a copy made by other means;
for a generation in doubt (a flush of it failed, see ``_local.swap``); with ``durability="off"``; and if k-1 turns out
to be damaged.

The number advances. All pages that a killed attempt at k+1 left on free pages may have arrived, and the next
transaction would be k+1 again: a power cut during its flush could leave its meta page on the disk, with those pages in
the places of its own. So no recovery leaves that number to be used again: the snapshot that counts gets the next
number, in the other slot. The pages of a torn transaction k are disarmed in the same way, since k-1 gets the number of
k.

====  ==================================================  ===========================================
step  what is done                                        a crash after it: the next to open
====  ==================================================  ===========================================
1     verify k
2     k is whole: fsync, so that it is on the disk        verifies k
3     write k over k-1 as k+1, fsync                      finds the same body twice, or does 2 again
2'    k is torn: write k-1 over k as k, fsync             verifies k, or finds the same body twice
3'    write k-1 over k-1 as k+1, fsync                    finds the same body twice
4     note that the files are in this page cache          begins after the next power cut only
====  ==================================================  ===========================================

Each write is one of 160 bytes within a sector. When the whole file is read, LMDB itself must see k-1 as the newest
snapshot to verify it, and k may have to come back if k-1 is no better: so the previous content of its slot is first
stored in the session's note, and a process that finds a note first writes it back.

With checkpoints (``durability="interval"``: ``_local.checkpoints``) another snapshot is known to be whole: the
checkpoint c, whose meta page is in the file ``checkpoint``. The snapshots in LMDB's two slots, n and n-1, are verified
against c, n first: each page was written at most once after c, so the argument is the same, except for the content
weight, which is a running sum. If neither is whole, c counts. The snapshot that counts is written into both slots, the
newest first, with numbers that were never used: transactions after n may have left pages, too, without their meta
pages, so the numbers leap (``_LEAP``). They leap even if both slots already have the same body, unless the last
checkpoint is older than that: then there was no commit since the recovery that left them so.

====  ==================================================  ===========================================
step  what is done, with checkpoints                      a crash after it: the next to open
====  ==================================================  ===========================================
1     verify n against c, then n-1                        does the same
2     fsync, so that what counts is on the disk           does the same
3     write it over each slot that holds anything else,   finds it in the newest slot, which needs no
      the newest first, each with an fsync                proof if it is c, or in both; else does 1
4     note that the files are in this page cache          begins after the next power cut only
====  ==================================================  ===========================================

A file without a checkpoint of its own generation is as it was when it got its name: no process commits before there is
one. Without a readable file ``checkpoint`` the whole file is read, as for a copy; after that there is no checkpoint,
since the one in a copy may be later than the file.

Damage of any other origin is not searched for here: seals reveal it when it is read, and ``check`` on request. When the
whole file is read: if only items of k are damaged, and the same ones in k-1, the cause was not a power cut; k counts,
and those items raise ``CorruptItemError`` as at any other time. If neither snapshot has a sound structure,
``CorruptQueueError`` is raised, and the file is left as it was found. One case is missed: damage before a power cut
that affects only pages of the very last transaction is mistaken for the effect of that power cut.
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
_LEAP = 1 << 32  # more transactions than there can be between two checkpoints


def recover(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None = None
) -> None:
    """Make the file at ``path``, generation ``number``, fit for LMDB to open. Called by the first process to open it.

    ``progress(done, total)`` is called with the bytes read, if the whole file is read. Raises ``CorruptQueueError``.
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
            if session.is_original() or not is_first:  # otherwise it was never used
                newest = _advance(path)
        session.settle(stamp(number, newest.transaction))


def _recover_to_checkpoint(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None
) -> MetaPage:
    """Make the newest whole snapshot count, at least the last checkpoint; return its meta page."""
    from lmdbqueue._lmdb import checkpoint_slots  # noqa: PLC0415  (for these queues only)

    newest, before = meta_page.read(path)
    slots = os.path.join(os.path.dirname(path), CHECKPOINT)
    is_known, checkpoint = checkpoint_slots.read(slots)
    if not session.is_original() or not is_known or (checkpoint and checkpoint.generation > number):
        if session.is_original() or newest.transaction != _FIRST:
            _prove_all(path, number, options, session, progress)
            newest = _make_count(path, meta_page.read(path)[0])
        checkpoint_slots.forget(slots)  # one that does not belong to this file would prevent its own from being stored
        return newest
    if checkpoint is None or checkpoint.generation < number:  # no commit since the file got its name,
        return newest  # when it was on the disk
    if newest.body == before.body and checkpoint.transaction < newest.transaction:  # no commit since the last recovery
        return newest
    base = meta_page.with_body(newest, checkpoint.body)
    counts = next((each for each in (newest, before) if _is_newer_and_whole(path, each, base)), None)
    if counts is None and session.is_in_doubt(number) and is_whole(_draft_after(path, number), options):
        raise CorruptQueueError(path, "a flush of it failed, and its replacement is whole")
    if counts is None:
        _report(
            "WARNING",
            "%s: the commits since the last checkpoint, transaction %d, were torn and are undone",
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
    """Bring a snapshot to the disk, and write it into both slots, with numbers that were never used."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    newest, before = meta_page.read(path)
    slots = [each for each in (newest, before) if each.body != counts.body] or [before]
    number = max(newest.transaction, counts.transaction) + _LEAP
    for slot in slots:  # the newest first: until it is overwritten, the next process to open the file repeats this
        number += (number % 2 == 1) != (slot.offset > 0)  # the slot of a transaction is the one of its parity
        counts = meta_page.with_body(slot, counts.whole_body, number)
        meta_page.write(path, counts)
        number += 1
    return counts


def _draft_after(path: str, number: int) -> str:
    return os.path.join(os.path.dirname(path), f"{number + 1:08}.mdb.tmp")


def is_whole(path: str, options: _format.Options) -> bool:
    """Return whether a file exists and has no faults."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    return os.path.exists(path) and not invariants.of_file(path, options)


def take_back(path: str, number: int, session: Session) -> None:
    """Undo an interrupted recovery."""
    if note := session.note:
        if _format.unpack(note[:8]) == number:
            meta_page.restore(path, note[8:])
        session.note = b""


def _advance(path: str) -> MetaPage:
    """Bring the current state to the disk under the next number, so that no earlier attempt has a future number."""
    newest, other = meta_page.read(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
    finally:
        os.close(fd)
    return meta_page.advance(path, newest, other)


def _prove_last(path: str, newest: MetaPage, before: MetaPage) -> bool:
    """Verify the newest transaction against the previous one, undo it if it is torn; return whether it could."""
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
        _report("WARNING", "%s: its last transaction cannot be verified by its changes alone (%s)", path, error)
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
    """Verify the whole newest snapshot; make the previous one count if only that is whole."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    began = time.monotonic()
    newest, before = meta_page.read(path)
    message = "%s is a copy, or a flush of it failed, or it is not made durable: verifying all of its %s bytes"
    _report("INFO", message, path, f"{newest.size:,}")
    found = invariants.of_file(path, options, progress)
    if found and newest.transaction == before.transaction + 1 > 1:
        session.note = _format.pack(number) + newest.raw
        meta_page.undo(path, newest, before, newest.transaction - 2)
        try:
            earlier = invariants.of_file(path, options, progress)
        except BaseException:  # an error of the system: nothing is known, and nothing may be changed
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
