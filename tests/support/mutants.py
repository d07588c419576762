"""Faults to plant on purpose, to see that the crash tests find them.

A mutant is a function that changes the library in memory, in the process that calls it, and the scenario that
must show it. ``RECORDING`` are applied where calls are made and recorded, ``OPENING`` where the queue is opened
after the crash. To add one, write the function and enter it into its table under a name that says what is wrong.
Those of recovery, but for the coarsest, are in ``seams``.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from account import Worker

from lmdbqueue._base import format as _format
from lmdbqueue._host import directory, disk
from lmdbqueue._host.session import stamp
from lmdbqueue._lmdb import generation, meta_page, opening, preallocation, snapshot
from lmdbqueue._local import live as _live
from lmdbqueue._model import last_transaction


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, and the scenario that shows it."""

    apply: Callable[..., None]
    scenario: str


def _replace_everywhere(original: object, replacement: object) -> None:
    """Put ``replacement`` in place of ``original`` in every module of the library that imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lmdbqueue"):
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, replacement)


class _UnsyncedEnvironment:
    """An environment of LMDB that never syncs."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def sync(self, force: bool = False) -> None:  # noqa: ARG002
        return None


def no_sync(_worker: Worker) -> None:
    open_ = opening.lmdb.open

    class Lmdb:
        def __getattr__(self, name: str) -> Any:
            return getattr(sys.modules["lmdb"], name)

        def open(self, *args: Any, **options: Any) -> Any:
            return _UnsyncedEnvironment(open_(*args, **{**options, "sync": False}))

    opening.lmdb = Lmdb()  # type: ignore[assignment]


def acknowledged_before_commit(worker: Worker) -> None:
    commit = generation.Generation._commit

    def early(self: Any, *args: Any, **options: Any) -> Any:
        worker.acknowledge_early()
        return commit(self, *args, **options)

    generation.Generation._commit = early  # type: ignore[method-assign]


def no_directory_sync(_worker: Worker) -> None:
    _replace_everywhere(disk.sync_directory, lambda *_: None)


def no_sync_of_drafts(_worker: Worker) -> None:
    _replace_everywhere(disk.sync_file, lambda _fd: None)


def no_sync_before_the_next_commit(_worker: Worker) -> None:
    def commit(self: Any, txn: Any) -> int:
        transaction = self.stamp(txn)
        self._commit(txn)
        return transaction

    generation.Generation.commit = commit  # type: ignore[method-assign]


RECORDING = {
    "no sync": Mutant(no_sync, "solo"),
    "no sync, by three processes": Mutant(no_sync, "turns"),
    "no sync of transaction k-1 before k is committed": Mutant(no_sync_before_the_next_commit, "trio"),
    "acknowledged before commit": Mutant(acknowledged_before_commit, "solo"),
    "no directory sync at creation": Mutant(no_directory_sync, "creation"),
    "no directory sync at a flush": Mutant(no_directory_sync, "flush"),
    "no sync of the draft at creation": Mutant(no_sync_of_drafts, "creation"),
    "no sync of the draft at a flush": Mutant(no_sync_of_drafts, "flush"),
}


def forgets_the_head() -> None:
    """Recover to a queue that begins one item late: a fault that every state shows."""
    from lmdbqueue import PersistentQueue  # noqa: PLC0415

    started = PersistentQueue.__init__

    def start(self: Any, *args: Any, **options: Any) -> None:
        started(self, *args, **options)
        self.delete(1)

    PersistentQueue.__init__ = start  # type: ignore[method-assign]


def skips_the_recovery() -> None:
    def recover(_path: str, number: int, _options: object, session: Any, _progress: object = None) -> None:
        session.settle(stamp(number, 0))

    _live.recover = recover  # type: ignore[assignment]


def undoes_nothing() -> None:
    meta_page.undo = lambda *_: None  # type: ignore[assignment]


def weighs_no_records() -> None:
    """Take the records of a torn transaction for its own if their number is right."""
    last_transaction.check_weight = lambda *_: None  # type: ignore[assignment]


OPENING = {
    "recovery skipped": Mutant(skips_the_recovery, "solo"),
    "recovery skipped, with readers": Mutant(skips_the_recovery, "readers"),
    "a torn transaction is not undone": Mutant(undoes_nothing, "solo"),
    "forgets the head": Mutant(forgets_the_head, "solo"),
    "records are not weighed": Mutant(weighs_no_records, "held"),
    "records are not weighed, of a state": Mutant(weighs_no_records, "transactions"),
}


def checks_no_checksum() -> None:
    _replace_everywhere(_format.is_intact, lambda _key, _value: True)
    _format.is_intact = lambda _key, _value: True  # type: ignore[assignment]


READING = {"no CRC": checks_no_checksum}


def keeps_no_pages_back() -> None:
    generation.Generation.make_room = lambda *_: None  # type: ignore[assignment,method-assign]
    _replace_everywhere(preallocation.reserve, lambda _pages: 0)


FILLING = {"no page reserve": keeps_no_pages_back}


def swaps_over_a_living_lock_file() -> None:
    """Put the new file under the name, and so under the lock file, of the old one."""

    def publish(self: Any, _number: int) -> None:
        for name in sorted(os.listdir(self.path)):
            if name.endswith(".mdb.tmp"):
                os.rename(os.path.join(self.path, name), self.generation(1))

    directory.Directory.publish = publish  # type: ignore[method-assign]
    directory.Directory.generation = lambda self, _number: self.file("00000001.mdb")  # type: ignore[method-assign]
    directory.Directory.draft = lambda self, _number: self.file("00000001.mdb.tmp")  # type: ignore[method-assign]
    directory.Directory.clean = lambda *_, **__: None  # type: ignore[assignment,method-assign]
    snapshot.Snapshot.is_superseded = lambda _self: False  # type: ignore[method-assign]


def leaves_no_mark() -> None:
    """Swap without the mark that tells others to move on."""
    generation.Generation.supersede = generation.Generation._commit  # type: ignore[method-assign]


SWAPPING = {
    "naive swap over a living lock file": swaps_over_a_living_lock_file,
    "no mark in the old file": leaves_no_mark,
}


def goes_on_in_a_child() -> None:
    _live.Live.restart = _live.Live.thaw  # type: ignore[method-assign]


FORKING = {"no pid check": goes_on_in_a_child}

IN_WORKERS = RECORDING
