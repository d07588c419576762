"""The proof of every invariant, on the files as they are.

Owns: what "whole" means. Law: it changes nothing, and an empty answer means that all of it holds. Must
not know: how the files came to be as they are.
"""

from lmdbqueue import _fifo, _format, _generation
from lmdbqueue._env import Environment
from lmdbqueue._generation import Tables, Txn


def check(environment: Environment, name: str) -> list[str]:
    """Return a sentence for each thing that is wrong. Holds the write lock and the directory lock meanwhile."""
    environment.prepare(name)  # so that every queue's handles are open, also those that others made
    with environment.exclusive() as (generation, txn), environment.directory.lock():
        problems = _generation.structural_problems(generation.path)
        for queue in generation.queues():
            problems += _queue_problems(txn, queue)
        strangers = environment.directory.strangers(generation.number)
        problems += [f"the file {stranger!r} does not belong there" for stranger in strangers]
    return problems


def _queue_problems(txn: Txn, queue: Tables) -> list[str]:
    problems = []
    head, tail = _fifo.bounds(txn, queue)
    first: int | None = None
    last = -1
    with txn.cursor(queue.items) as cursor:
        for key, value in cursor.iternext():
            last = _format.unpack(key)
            first = last if first is None else first
            if queue.sealed and not _format.is_intact(key, value):
                problems.append(f"queue {queue.name!r}: item {last} is damaged, its checksum does not fit")
    if head != (tail if first is None else first):
        problems.append(f"queue {queue.name!r}: its head is {head}, its first item {first}, its tail {tail}")
    if last >= tail:
        problems.append(f"queue {queue.name!r}: its tail is {tail}, its last item {last}")
    return problems
