"""The verification of every invariant of a queue, and its repair.

Owns: how a queue in use is held still for it, and the files around it. Law: a check changes nothing, and an empty
result means that every invariant holds; a repair loses nothing that can be read. Must not know: what the invariants are
(``_model.invariants``), what can be saved (``_local.salvage``).

A repair writes a new generation that takes the place of the damaged one, by the swap that ``flush`` uses
(``_local.swap``): others may use the queue meanwhile, and a crash at any step leaves the old one. If the queue can no
longer be opened, no other process can have it open, so the new file simply gets its name:

====  ==================================================  ======================================
step  what is done, under the directory lock              killed after it: the next repair
====  ==================================================  ======================================
1     damaged items to the quarantine, fsync              puts them there once more
2     write the draft of N+1, fsync; fsync the directory  writes it again
3     rename the draft to N+1, fsync the directory        finds a whole queue
4     remove N                                            finds a whole queue
====  ==================================================  ======================================
"""

from __future__ import annotations

import errno

from lmdbqueue._base.errors import CorruptQueueError
from lmdbqueue._host.directory import SESSION, Directory, absolute, find_directory
from lmdbqueue._host.disk import explain, sync_directory, translated
from lmdbqueue._host.session import Session, stamp
from lmdbqueue._lmdb import meta_page
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.options_record import remembered
from lmdbqueue._lmdb.snapshot import Txn
from lmdbqueue._lmdb.structure import problems_of
from lmdbqueue._local import recovery
from lmdbqueue._local.environment import Environment
from lmdbqueue._local.salvage import Quarantine, rebuild
from lmdbqueue._local.sharing import open_environment
from lmdbqueue._model import invariants
from lmdbqueue._verbs import options

_RULES = {"path": options.PATH, "repair": options.FLAG}


def check(path: str, *, repair: bool = False) -> list[str]:
    """Verify the files of a queue directory, which may be too damaged to open, and repair them on request.

    It works like ``PersistentQueue.check``.

    Args:
        path: The directory.
        repair: If there are faults, write all readable items to a new file that replaces the damaged one, durably.

    Returns:
        A sentence for each fault, and for what a repair lost; an empty list if there is none.

    Raises:
        FormatError: There is no queue at the path.
    """
    options.check(_RULES, path=path, repair=repair)
    path = absolute(path)  # the quarantine's directory is made durable
    directory = find_directory(path, remembered)
    found = [f"{directory.finding}: it was restored from the queue's file"] if directory.finding else []
    try:
        return found + _check_at(path, directory, repair=repair)
    finally:
        directory.close()


def _check_at(path: str, directory: Directory, *, repair: bool) -> list[str]:
    try:
        environment = open_environment(path, directory.options)
    except CorruptQueueError as error:
        return [error.reason, *(_rebuild_alone(directory) if repair else ())]
    try:
        return check_open(environment, repair=repair)
    finally:
        environment.release()


def check_open(environment: Environment, *, repair: bool) -> list[str]:
    """Return a sentence for each fault and, with ``repair``, for each loss and each item set aside.

    Holds the lock of flushes, the write lock and the directory lock meanwhile.
    """
    environment.refuse_inside("check")
    with environment.directory.compaction():
        return _check(environment, repair=repair)


def _check(environment: Environment, *, repair: bool) -> list[str]:
    environment.open_every_queue()
    directory = environment.directory
    with environment.exclusive() as (generation, txn), directory.lock():
        problems = _structural_problems(generation.path)
        if not problems:  # otherwise reading could make LMDB abort
            problems = invariants.of_records(txn, generation, txn.id() - 1).sentences()
        strangers = directory.strangers(generation.number)
        if repair:  # no other process writes a draft: that takes the locks held here
            directory.clean(generation.number, alone=True)
        txn.commit()  # of nothing, since undoing it might wait for other threads
    if problems and repair:

        def write(damaged: Generation, _txn: Txn, draft: str) -> None:
            problems.extend(rebuild(damaged.path, draft, damaged.options, _quarantine(directory)))

        environment.swap(write)
    return problems + [f"the file {stranger!r} does not belong there" for stranger in strangers]


def _structural_problems(path: str) -> list[str]:
    """Return the faults in the structure of a file, or that the disk cannot read it."""
    try:
        return problems_of(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise explain(error, path, "check") from error
        return [f"the disk cannot read it: {error.strerror}"]


def _rebuild_alone(directory: Directory) -> list[str]:
    with directory.lock(), translated(directory.path, "repair"):
        session = Session(directory.file(SESSION), directory.folder)
        try:
            session.join()
            if not session.first:
                return ["nothing was repaired, since another process has the queue open: end it first"]
            number = directory.newest()
            path = directory.generation(number)
            recovery.take_back(path, number, session)
            sentences = rebuild(path, directory.draft(number + 1), directory.options, _quarantine(directory))
            sync_directory(directory.path)
            directory.publish(number + 1)
            newest, _ = meta_page.read(directory.generation(number + 1))
            session.settle(stamp(number + 1, newest.transaction))
            directory.clean(number + 1, alone=True)
        finally:
            session.leave()
    return sentences


def _quarantine(directory: Directory) -> Quarantine:
    return Quarantine(directory.path)
