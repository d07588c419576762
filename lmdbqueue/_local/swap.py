"""The swap of generations: a new file takes the place of the live one while others continue to work.

Owns: the steps of the swap. Law: at every moment exactly one generation is live, and a write can only
ever be committed to that one. Must not know: why it is done (``_local.compaction``, ``_local.environment``),
verbs, items.

====  ==================================================  ======================================
step  what is done; N is the live generation              killed after it: who puts it right
====  ==================================================  ======================================
1     take the write lock of N: nobody else writes        the kernel frees the lock
2     remove an old draft of N+1; write N to the draft,   N is live; the draft is worthless: the
      or let an earlier copy catch up with N              next swap, or the next process to open
      (``catch_up``); allocate reserve and lock file      the queue alone, removes it
3     fsync the draft and the directory                   as 2
4     take the directory lock: nobody opens meanwhile     as 2
5     commit the mark "next = N+1" to N. *The switch.*    N is closed for ever, the draft whole:
                                                          a process that sees the mark does 6
6     rename the draft to N+1, fsync the directory        N+1 is live: the next to open the queue
                                                          does step 7
7     remove N and its lock file                          nothing is left to do
====  ==================================================  ======================================

Every transaction, of any process, looks for the mark in its own snapshot before it does anything, and moves on to N+1
if it is there. A writer cannot miss it, since it holds the write lock. A reader that began before the switch reads the
queue as it was then.

A power cut. The mark needs no flush of its own, since nothing is committed to N+1 before step 6 is on the disk (each
process that moves on ensures that). Before that, the mark and the name may have arrived or not:

- neither, or a torn transaction of the mark: N counts, and the draft is a leftover
- the mark only: the draft, which was on the disk before the mark was made, gets its name
- the name, with the mark or without: the highest number counts, and has everything that N had

When N is in doubt (a flush of it failed, see ``_lmdb.durability``), its pages are read from memory or, if they were
dropped there, from a disk that never received them: so the draft is verified before the switch. The mark then follows a
transaction that may not be on the disk, so recovery could not verify it by the difference: therefore the doubt is
recorded on the disk first, and recovery then reads all of N. If N is beyond repair, the draft, which is whole, takes
its place.

Removing N is safe while others have it open or read it: the file lives on without a name until they move on. No process
can be about to open it by name, since opening takes the directory lock. Each generation has a lock file of its own:
LMDB loses data when a new file comes under an old lock file.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from lmdbqueue._base.errors import CorruptQueueError, ForkError
from lmdbqueue._host import fork
from lmdbqueue._host.directory import Directory
from lmdbqueue._host.disk import open_private, sync_directory, sync_path, synced_steadily, translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.opening import provide
from lmdbqueue._lmdb.snapshot import Kept, Snapshot, Txn

Write = Callable[[Generation, Txn, str], object]


def swap(directory: Directory, session: Session, generation: Generation, txn: Txn, write: Write) -> int:
    """Replace the live generation by the file that ``write(generation, txn, path)`` makes.

    ``txn`` holds its write lock, and is ended here. Return the number of bytes by which the file shrank.
    """
    number = generation.number + 1
    with translated(directory.path, "compaction"):
        write(generation, txn, directory.draft(number))
        sync_directory(directory.path)
        shrunk = os.stat(generation.path).st_size - os.stat(directory.draft(number)).st_size
        if session.is_in_doubt(generation.number):
            session.set_in_doubt(generation.number)  # on the disk before anything is committed on top
            _refuse_damaged(directory.draft(number), generation)
        with directory.lock():
            generation.supersede(txn)
            directory.publish(number)
            session.set_synced(stamp(number, meta_page.read(directory.generation(number))[0].transaction))
            directory.clean(number, alone=False)
    return max(0, shrunk)


def _refuse_damaged(draft: str, generation: Generation) -> None:
    """Raise ``CorruptQueueError`` if the pages that could not be flushed are gone from memory, too."""
    from lmdbqueue._model import invariants  # noqa: PLC0415  (seldom needed)

    if found := invariants.of_file(draft, generation.options):
        raise CorruptQueueError(generation.path, f"a flush failed, and then {found.sentences()[0]}")


def write_copy(generation: Snapshot, _txn: Txn, path: str, kept: Kept | None = None) -> bool:
    """Write a compacted copy to ``path``, durably except its name: of the newest snapshot, or of a kept one.

    Return whether it is a copy of the latter.
    """
    for name in (path, path + "-lock"):
        if os.path.exists(name):
            if fork.amid.life not in (None, fork.life):
                raise ForkError(os.path.dirname(path))
            os.unlink(name)
    fd = open_private(path, os.O_RDWR)
    try:
        with synced_steadily(fd):
            is_of_kept = generation.copy(fd, kept)
    finally:
        os.close(fd)
    complete(path)
    return is_of_kept


def complete(path: str) -> None:
    """Give a new file its reserve and its lock file, and bring it to the disk."""
    provide(path)
    sync_path(path)
