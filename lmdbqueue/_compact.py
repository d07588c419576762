"""Compaction: how a queue gives space back to the file system, and how a copy of it is made.

Owns: the swap of generations. Law: at every moment exactly one generation is live, and a write can
only ever be committed to that one. Must not know: LMDB's calls, verbs, items.

LMDB never shrinks a file, so the live part is copied to a new one, which takes its place while other
processes go on working. ``flush`` takes these steps; N is the live generation:

====  ==================================================  ======================================
step  what is done                                        killed after it: who puts it right
====  ==================================================  ======================================
1     take the write lock of N: nobody else writes        the kernel frees the lock
2     remove an old draft of N+1; copy N to the draft     N is live; the draft is worthless: the
                                                          next flush, or the next process to open
                                                          the queue alone, removes it
3     fsync the draft and the directory                   as 2
4     take the directory lock: nobody opens meanwhile     as 2
5     commit the mark "next = N+1" to N. *The switch.*    N is closed for ever, the draft whole:
                                                          whoever sees the mark does step 6
6     rename the draft to N+1, fsync the directory        N+1 is live: whoever opens the queue
                                                          does step 7
7     remove N and its lock file                          nothing is left to do
====  ==================================================  ======================================

Every transaction, of any process, looks for the mark in its own snapshot before it does anything, and
moves on to N+1 if it is there. It cannot be missed by a writer, who has the write lock. A reader that
began before the switch reads the queue as it was then. The mark's commit is durable before the name
changes, and the draft is durable before the mark: a power cut leaves one of the rows above.

Removing N is safe while others have it open or read it: the file lives on, nameless, until they move
on. Nobody can be about to open it by name, since opening takes the directory lock. Each generation
has a lock file of its own: LMDB loses data when a new file comes under an old lock file.
"""

import os

from lmdbqueue import _generation
from lmdbqueue._directory import open_directory, sync_directory, sync_file, translated
from lmdbqueue._env import Environment
from lmdbqueue._format import Options
from lmdbqueue._generation import Generation, Tables, Txn


def flush(environment: Environment, name: str, limit: int) -> int:
    """Compact if at least ``limit`` bytes of the file are empty; return by how many bytes it shrank."""
    if environment.view(name, _empty) < limit:
        return 0
    directory = environment.directory
    with environment.exclusive() as (generation, txn):
        before = generation.size()
        number = generation.number + 1
        with translated(directory.path, "compaction"):
            _copy(generation, directory.draft(number))
            sync_directory(directory.path)
            with directory.lock():
                generation.supersede(txn)
                directory.publish(number)
                directory.clean(number, alone=False)
            after = os.stat(directory.generation(number)).st_size
    environment.follow(generation)
    environment.bell.ring()  # sleepers move on too, and let go of the old file
    return before - after


def copy(environment: Environment, name: str, path: str) -> None:
    """Make the directory ``path`` a queue of its own with what is in this one."""
    options = environment.directory.options

    def build(draft: str) -> None:
        environment.view(name, _copy_snapshot, draft)

    open_directory(path, Options(options.checksum, options.durability), build, fresh=True)


def _empty(txn: Txn, queue: Tables) -> int:
    return queue.generation.size() - queue.generation.used(txn)


def _copy_snapshot(_txn: Txn, queue: Tables, path: str) -> None:
    _copy(queue.generation, path)
    _generation.refuse_superseded(path)  # a flush may have come before the copy's own snapshot


def _copy(generation: Generation, path: str) -> None:
    for name in (path, path + "-lock"):
        if os.path.exists(name):
            os.unlink(name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        generation.copy(fd)
        sync_file(fd)
    finally:
        os.close(fd)
