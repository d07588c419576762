"""Compaction: how a queue returns space to the file system, and how a copy of it is made.

Owns: when compaction is worthwhile, where the result goes, what is left out. Law: a copy is a whole queue or nothing.
Must not know: LMDB's calls, verbs, items; how a compacted file takes the place of the live one (``_local.swap``).
"""

from __future__ import annotations

from lmdbqueue._base.format import Options
from lmdbqueue._host.directory import open_directory
from lmdbqueue._lmdb.failures import Superseded
from lmdbqueue._lmdb.options_record import remembered
from lmdbqueue._lmdb.snapshot import Ref, Snapshot, Tables, Txn, remember
from lmdbqueue._local.catch_up import Ahead
from lmdbqueue._local.environment import Environment
from lmdbqueue._local.swap import write_copy

_ROUNDS = 5  # of catching up, before writers must wait


def flush(environment: Environment, ref: Ref, limit: int) -> int:
    """Compact if at least ``limit`` bytes of the file are empty; return the number of bytes by which it shrank."""
    environment.refuse_inside("flush")
    with environment.directory.compaction() as path, Ahead(path) as ahead:
        if environment.view(ref, _empty) < limit:
            return 0
        environment.view(ref, ahead.copy)
        for _ in range(_ROUNDS):
            if not environment.view(ref, ahead.approach):
                break
        shrunk = environment.swap(ahead.finish)
    if held := environment.held_elsewhere():
        _report("%s: %s processes have not released the old file yet", environment.directory.path, held)
    return shrunk


def _report(message: str, *facts: object) -> None:
    import logging  # noqa: PLC0415  (only if there is something to log)

    logging.getLogger("lmdbqueue").info(message, *facts)


def copy(environment: Environment, ref: Ref, path: str) -> None:
    """Make the directory ``path`` an independent queue with the contents of this one."""
    environment.refuse_inside("copy")
    options = environment.directory.options

    def build(draft: str, named: Options) -> None:
        environment.view(ref, _copy_snapshot, draft)
        remember(draft, named)

    open_directory(path, Options(options.checksum, options.durability), build, remembered, fresh=True).close()


def _empty(txn: Txn, queue: Tables) -> int:
    return queue.generation.extent() - queue.generation.used(txn)


def _copy_snapshot(txn: Txn, queue: Tables, path: str) -> None:
    write_copy(queue.generation, txn, path)
    copied = Snapshot(path, queue.generation.options)
    try:
        if copied.is_superseded():  # a flush came before the copy's own snapshot
            raise Superseded
    finally:
        copied.close()
