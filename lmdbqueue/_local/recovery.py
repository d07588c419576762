"""Recovery: what the first process to open a queue does about what a power cut may have left.

Owns: the decision which of the two newest snapshots counts. Law: what was acknowledged stays; what was
torn goes, whole; where it cannot be told, nothing is changed. Must not know: how commits are made
durable, beyond what is said here.

What a power cut can leave. Transaction k is committed when k-1 is on the disk, and acknowledged when
one flush has brought its pages and its meta page there (see ``_lmdb.generation``). Pages and meta page
arrive in any order, in units of a sector, so there are three cases:

- the meta page of k did not arrive: the other slot holds k-1, which counts, and is whole;
- all of k arrived: k counts, whether it was acknowledged or not;
- the meta page of k arrived, and not all of its pages: k is torn. It was never acknowledged, since
  its flush did not end. Nothing of k-1 was written over, and its meta page is in the other slot.

So the newest snapshot is proven, and if the proof fails the one before it is made to count again. The
proof (``_model.invariants``): every page reachable once or free, every tree sound; the number of the transaction
that is kept among the records is that of the meta page; the records weigh what that transaction noted
(``_model.weighed_records``); the items are those which they tell of; each checksum fits. LMDB opens the file only after
the structure was proven, since it trusts what it maps.

When there is nothing to prove. Opening happens under the directory lock, and the first to open knows
that it is alone (``_host.session``). Then, in this order:

1. The page cache in which everything was written still stands (same boot, same mount): every commit is
   there, flushed or not. This is so after ``kill -9``.
2. The newest transaction is the first of its file: files get their name when they are on the disk.
   (There may be remnants, see below.)
3. The last process closed the queue, and the files are not a copy that somebody made of the directory.

How a torn transaction is undone. The body of meta page k-1 is written over slot k, with the number
k-2: it has the parity that LMDB wants in that slot, and leaves k-1 as the newest. That is one write
within a sector. Before it, what stood in the slot goes into the session's note:

====  ================================================  ===========================================
step  what is done                                      a crash after it: the next to open
====  ================================================  ===========================================
1     prove k; it is not whole                          proves k
2     note the meta page of k, fsync                    writes it back, proves k
3     write k-1 over it, fsync                          writes it back, proves k
4     prove k-1                                         writes it back, proves k
5     whole: clear the note, fsync                      finds k-1 newest, proves it
5'    not whole: write k back, fsync, clear the note    proves k
6     fsync; write zeros over all free pages, fsync     proves the newest, which uses none of them
7     note that the files stand in this page cache      begins after the next power cut only
====  ================================================  ===========================================

Step 6 takes away what transactions that never came to count have left (``_lmdb.free_pages``). It is done
after every power cut, since the meta page of such a transaction may not have arrived.

Damage of another origin. When only items of k are damaged, and the same ones are in k-1, it was no
power cut: k counts, and those items raise ``CorruptItemError`` as at any other time. When neither
snapshot has a sound structure: ``CorruptQueueError``, and the file is as it was found. What is not
seen: damage that happened to the items of the very last transaction only, and before a power cut, is
taken for its work.
"""

import time

from lmdbqueue import _format
from lmdbqueue._errors import CorruptQueueError
from lmdbqueue._host.disk import NO_ROOM, translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import free_pages, meta_page
from lmdbqueue._lmdb.generation import is_proven_at_opening
from lmdbqueue._model import invariants
from lmdbqueue._model.invariants import Progress

_FIRST = 1  # transaction of a file


def recover(
    path: str, number: int, options: _format.Options, session: Session, progress: Progress | None = None
) -> None:
    """Make the file at ``path``, generation ``number``, one that LMDB may open. For the first to open it.

    ``progress(done, total)`` is called with bytes of the proof. Raises ``CorruptQueueError``.
    """
    with translated(path, "recovery"):
        take_back(path, number, session)
        if session.is_standing():
            return
        newest, _ = meta_page.read(path)
        if is_proven_at_opening(options) and not session.is_closed():
            if newest.transaction > _FIRST:
                _prove(path, number, options, session, progress)
                newest, _ = meta_page.read(path)
            _wipe(path, newest)
        session.settle(stamp(number, newest.transaction))


def take_back(path: str, number: int, session: Session) -> None:
    """Undo a recovery that was cut short."""
    if note := session.note:
        if _format.unpack(note[:8]) == number:
            meta_page.restore(path, note[8:])
        session.note = b""


def _wipe(path: str, newest: meta_page.MetaPage) -> None:
    try:
        free_pages.wipe(path, newest)
    except OSError as error:  # of a file system that writes elsewhere (btrfs): consumers must go on
        if error.errno not in NO_ROOM:
            raise
        _report("WARNING", "%s: no room to write zeros over its free pages", path)


def _prove(path: str, number: int, options: _format.Options, session: Session, progress: Progress | None) -> None:
    began = time.monotonic()
    newest, before = meta_page.read(path)
    _report("INFO", "%s was not closed before its page cache went: proving its %s bytes", path, f"{newest.size:,}")
    found = invariants.of_file(path, options, progress)
    if found and newest.transaction == before.transaction + 1 > 1:
        session.note = _format.pack(number) + newest.raw
        meta_page.roll_back(path, newest, before)
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
