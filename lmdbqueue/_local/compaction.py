"""Compaction: how a queue gives space back to the file system, and how a copy of it is made.

Owns: when it is worth it, where it goes, what is left out. Law: a copy is a whole queue or nothing. Must not know:
LMDB's calls, verbs, items; how a compacted file takes the place of the live one (``_local.swap``).
"""

from functools import partial

from lmdbqueue._format import Options
from lmdbqueue._host.directory import open_directory
from lmdbqueue._lmdb.generation import Draft, Snapshot, Superseded, Tables, Txn
from lmdbqueue._local.catch_up import Ahead
from lmdbqueue._local.environment import Environment
from lmdbqueue._local.swap import write_copy
from lmdbqueue._model import fifo

_ROUNDS = 5  # in which the copy may come closer, before writers must wait


def flush(environment: Environment, name: str, limit: int) -> int:
    """Compact if at least ``limit`` bytes of the file are empty; return by how many bytes it shrank."""
    environment.refuse_inside("flush")
    with environment.directory.compaction() as path, Ahead(path) as ahead:
        if environment.view(name, _empty) < limit:
            return 0
        environment.view(name, ahead.copy)
        for _ in range(_ROUNDS):
            if not environment.view(name, ahead.approach):
                break
        return environment.swap(ahead.finish)


def copy(environment: Environment, name: str, path: str) -> None:
    """Make the directory ``path`` a queue of its own with what is in this one."""
    environment.refuse_inside("copy")
    options = environment.directory.options

    def build(draft: str) -> None:
        environment.view(name, _copy_snapshot, draft)

    open_directory(path, Options(options.checksum, options.durability), build, fresh=True)


def drop(environment: Environment, name: str) -> None:
    """Remove a queue, by a new generation without it: so nobody's handles are void, and its space is given back."""
    environment.refuse_inside("dropping a queue")
    with environment.directory.compaction() as path, Ahead(path):
        environment.swap(partial(_write_without, name, path))


def _write_without(name: str, spare: str, generation: Snapshot, txn: Txn, path: str) -> None:
    """Write a copy to ``spare``, remove the queue there, and write what is left to ``path``."""
    write_copy(generation, txn, spare)
    draft = Draft(spare, generation.options)
    try:
        draft.change(lambda draft_txn, draft: fifo.destroy(draft_txn, draft.table(name)))
        write_copy(draft, txn, path)
    finally:
        draft.close()


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
