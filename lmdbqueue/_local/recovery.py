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
3. Each commit is flushed as LMDB wants it (``checksum=False``), and the directory is not a copy.
4. Both slots have the same body: nothing was committed since the last recovery. Or the newest transaction is the first
   of its file, which got its name when it was on the disk, and the directory is not a copy, whose pages may be those of
   later transactions; or it is one that this library made (``copy``), and nobody has opened it yet.

The whole file is read, too (``_model.invariants``), if k-1 may not be whole, either: for a copy made by other means;
for a generation in doubt (a flush of it failed, see ``_local.swap``); with ``durability="off"``; and if k-1 turns out
to be damaged. A copy may be one of a directory as a power cut left it, and then its changes say which snapshot is
whole, as they do for the original: they reveal a page of k that did not arrive and shows an older content, sound in
itself, which nothing in the rest of the file contradicts. Or it may mix several moments, so that they say nothing. So
the changes are verified first, and then all of the snapshot that counts by them; only if that is not whole, the newest
one is read, and then the one before.

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

Each write is one slot, within a sector. When the whole file is read, LMDB itself must see the snapshot to be verified
as the newest, under its own number. So it is *shown*, unless it is the newest, and the file is then as it was found:

====  ==================================================  ===========================================
step  what is done to read all of a snapshot              a crash after it: the next to open
====  ==================================================  ===========================================
1     store both slots in the session's note              writes both back, and forgets the note
2     write the snapshot into both slots                  the same
3     read all of it                                      the same
4     write both slots back, forget the note              begins anew, as after an error of the system
====  ==================================================  ===========================================

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
one. Without a readable file ``checkpoint`` the whole file is read, as for a copy. A copy has what the original has, so
its changes are verified against its checkpoint, which counts if nothing newer is whole; unless the checkpoint is later
than the file, in a copy that mixes several moments. All of the snapshot that counts is then read. In the end there is
no checkpoint, since one that does not belong to the file would prevent its own from being stored.

Damage of any other origin is not searched for here: seals reveal it when it is read, and ``check`` on request. When the
whole file is read: if only items of k are damaged, and the same ones in k-1, the cause was not a power cut; k counts,
and those items raise ``CorruptItemError`` as at any other time. If neither snapshot has a sound structure,
``CorruptQueueError`` is raised, and the file is left as it was found. One case is missed: damage before a power cut
that affects only pages of the very last transaction is mistaken for the effect of that power cut.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._host.directory import CHECKPOINT
from lmdbqueue._host.disk import sync_path, translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.meta_page import MetaPage
from lmdbqueue._lmdb.snapshot import is_proven_at_opening, is_weighed

if TYPE_CHECKING:
    from lmdbqueue._model.invariants import Findings, Progress

_FIRST = 1  # transaction of a file
_LEAP = 1 << 32  # more transactions than there can be between two checkpoints

_said: Final[deque[tuple[str, str, tuple[object, ...]]]] = deque()  # not logged yet: level, message, facts


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
        newest, _ = meta_page.read(path)
        if options.durability == "interval" and not session.is_closed():
            newest = _recover_to_checkpoint(path, number, options, session, progress)
        elif not session.is_closed() and (is_proven_at_opening(options) or not session.is_original()):
            is_first = newest.transaction == _FIRST  # then the file was on the disk before it got its name
            if not (is_first and (session.is_original() or session.is_new())):
                _recover_last(path, number, options, session, progress)
            if not (is_first and session.is_new()):
                newest = _advance(path)
        session.settle(stamp(number, newest.transaction))


def _recover_last(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None
) -> None:
    """Make the newest transaction count if it is whole, otherwise the one before it."""
    newest, before = meta_page.read(path)
    counts = _last_whole(path, newest, before) if is_weighed(options) else None
    if counts is None or not session.is_original() or session.is_in_doubt(number):
        counts = _prove_all(path, number, options, session, counts or newest, progress)
    if counts.body != newest.body:
        caveat = "" if session.is_original() else ", unless the directory was in use while it was copied"
        message = "%s: transaction %d was torn and is undone; it was never acknowledged%s"
        _report("WARNING", message, path, newest.transaction, caveat)
        meta_page.undo(path, newest, counts, newest.transaction)


def _recover_to_checkpoint(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None
) -> MetaPage:
    """Make the newest whole snapshot count, at least the last checkpoint; return its meta page."""
    from lmdbqueue._lmdb import checkpoint_slots  # noqa: PLC0415  (for these queues only)

    newest, before = meta_page.read(path)
    slots = os.path.join(os.path.dirname(path), CHECKPOINT)
    is_known, checkpoint = checkpoint_slots.read(slots)
    is_trusted = session.is_original() and is_known and (checkpoint is None or checkpoint.generation <= number)
    base = None
    if checkpoint is not None and checkpoint.generation == number:
        base = _base(newest, before, checkpoint.body, is_trusted=is_trusted)
    if is_trusted and base is None:  # no commit since the file got its name, when it was on the disk, or was recovered
        return newest
    if not (newest.transaction == _FIRST and session.is_new()):
        counts = newest if base is None else _newest_whole(path, newest, before, base)
        if counts is base and base.body not in (newest.body, before.body):
            _refuse_draft(path, number, options, session)
        if not is_trusted:
            counts = _prove_all(path, number, options, session, counts, progress)
        if base is not None and counts.body == base.body != newest.body:
            message = "%s: the commits since the last checkpoint, transaction %d, were torn and are undone"
            _report("WARNING", message, path, base.transaction)
        newest = _make_count(path, counts)
    if not is_trusted:
        checkpoint_slots.forget(slots)
    return newest


def _base(newest: MetaPage, before: MetaPage, checkpoint: bytes, *, is_trusted: bool) -> MetaPage | None:
    """Return the checkpoint with which what was committed since is verified; None if there is nothing, or it is alien.

    ``checkpoint``: the body of its meta page.
    """
    base = meta_page.with_body(newest, checkpoint)
    if newest.body == before.body and base.transaction < newest.transaction:  # by the last recovery
        return None
    is_alien = not is_trusted and base.transaction > newest.transaction  # of a later moment than the file
    return None if is_alien else base


def _refuse_draft(path: str, number: int, options: _format.Options, session: Session) -> None:
    """Raise ``CorruptQueueError`` if the replacement of a file of which a flush failed is whole."""
    if session.is_in_doubt(number) and is_whole(_draft_after(path, number), options):
        raise CorruptQueueError(path, "a flush of it failed, and its replacement is whole")


def _newest_whole(path: str, newest: MetaPage, before: MetaPage, base: MetaPage) -> MetaPage:
    """Return the newest snapshot that is whole, given that the checkpoint is: ``base`` if no other one is."""
    for each in (newest, before):
        if each.body == base.body:
            return base  # under its own number, which a recovery may have changed
        if each.transaction > base.transaction and _is_whole_after(path, base, each, is_running=True):
            return each
    return base


def _last_whole(path: str, newest: MetaPage, before: MetaPage) -> MetaPage | None:
    """Return the newest snapshot if it is whole given that the one before is, else that; None if nothing is proven."""
    if newest.body == before.body:
        return newest
    if newest.transaction == _FIRST or newest.transaction != before.transaction + 1:
        return None
    is_so = _is_whole_after(path, before, newest)
    return None if is_so is None else newest if is_so else before


def _is_whole_after(path: str, base: MetaPage, newest: MetaPage, *, is_running: bool = False) -> bool | None:
    """Return whether a snapshot is whole, given that an earlier one is; None if that turns out to be damaged.

    ``is_running``: the content weights are a running sum.
    """
    from lmdbqueue._lmdb.difference import Difference, Unprovable  # noqa: PLC0415  (at most the first to open needs it)
    from lmdbqueue._lmdb.sound_pages import Unsound  # noqa: PLC0415
    from lmdbqueue._model import invariants, last_transaction  # noqa: PLC0415

    began = time.monotonic()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        difference = Difference(fd, base, newest)
        last_transaction.check(difference, newest.transaction, is_running=is_running)
    except Unsound as error:
        _report("INFO", "%s: transaction %d is not whole (%s)", path, newest.transaction, error)
        return False
    except (Unprovable, *invariants.SAID_BY_THE_BYTES) as error:
        message = "%s: transaction %d cannot be verified by its changes alone (%s)"
        _report("WARNING", message, path, newest.transaction, error)
        return None
    finally:
        os.close(fd)
    message = "%s: transaction %d is intact by its changes (%s bytes in %.3f s)"
    _report("INFO", message, path, newest.transaction, f"{difference.bytes_read:,}", time.monotonic() - began)
    return True


def _make_count(path: str, counts: MetaPage) -> MetaPage:
    """Bring a snapshot to the disk, and write it into both slots, with numbers that were never used."""
    sync_path(path)
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
    sync_path(path)
    return meta_page.advance(path, newest, other)


def _prove_all(
    path: str,
    number: int,
    options: _format.Options,
    session: Session,
    likeliest: MetaPage,
    progress: Progress | None,
) -> MetaPage:
    """Verify the whole file; return the first snapshot that is whole, of the likeliest, the newest, the one before."""
    began = time.monotonic()
    newest, before = meta_page.read(path)
    message = "%s is a copy, or a flush of it failed, or it is not durable: verifying all of its %s bytes"
    _report("INFO", message, path, f"{likeliest.size:,}")
    candidates = [likeliest, newest]
    if newest.transaction == before.transaction + 1 > 1:
        candidates.append(before)
    found: dict[bytes, Findings] = {}
    counts = None  # the one with the least damage
    for each in candidates:
        if each.body in found:
            continue
        here = found[each.body] = _findings(path, number, options, session, each, progress)
        if not here.problems and (counts is None or not found[counts.body].damaged <= here.damaged):
            counts = each
        if not here:
            break
        _report("INFO", "%s: transaction %d is not whole (%s)", path, each.transaction, here.sentences()[0])
    what_counts = found[likeliest.body if counts is None else counts.body]
    for sentence in what_counts.sentences():
        _report("ERROR", "%s: %s", path, sentence)
    if counts is None:
        raise CorruptQueueError(path, "; ".join(what_counts.problems[:3]))
    _report("INFO", "%s: proven in %.3f s", path, time.monotonic() - began)
    return counts


def _findings(
    path: str,
    number: int,
    options: _format.Options,
    session: Session,
    snapshot: MetaPage,
    progress: Progress | None,
) -> Findings:
    """Verify all of a snapshot; afterwards the file is as before, also after an error of the system."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    newest, _ = meta_page.read(path)
    if (snapshot.body, snapshot.transaction) == (newest.body, newest.transaction):
        return invariants.of_file(path, options, progress)
    session.note = _format.pack(number) + meta_page.both(path)
    try:
        _show(path, snapshot)
        return invariants.of_file(path, options, progress)
    finally:
        take_back(path, number, session)


def _show(path: str, snapshot: MetaPage) -> None:
    """Make a snapshot the newest of the file, under its own number, without any other."""
    for slot in meta_page.read(path):
        is_its_own = (snapshot.transaction % 2 == 1) == (slot.offset > 0)
        transaction = snapshot.transaction if is_its_own else snapshot.transaction - 1
        meta_page.write(path, meta_page.with_body(slot, snapshot.whole_body, transaction))


def _report(level: str, message: str, *facts: object) -> None:
    _said.append((level, message, facts))


def has_said() -> bool:
    """Return whether there is anything to ``tell``."""
    return bool(_said)


def tell() -> None:
    """Log what recoveries have said. A handler is a function of the user's: nothing may be held."""
    if _said:
        import logging  # noqa: PLC0415  (4 ms that only a recovery pays)

        logger, levels = logging.getLogger("lmdbqueue"), logging.getLevelNamesMapping()
        found = []
        with suppress(IndexError):  # all at once: another thread that a handler waits for has nothing to log
            while True:
                found.append(_said.popleft())
        raised: list[Exception] = []
        try:
            while found:
                level, message, facts = found.pop(0)
                try:
                    logger.log(levels[level], message, *facts)
                except Exception as error:  # of a handler: the others are told all the same
                    raised.append(error)
        finally:
            _said.extendleft(reversed(found))  # after an interrupt the next opening tells them
        if raised:
            raise raised[0]
