"""The proof of every invariant on a queue that is in use.

Owns: how a living queue is held still for it, and the files around it. Law: it changes nothing, and an
empty answer means that all of it holds. Must not know: what the invariants are (``_proof``).
"""

from lmdbqueue import _generation, _proof
from lmdbqueue._env import Environment


def check(environment: Environment, name: str) -> list[str]:
    """Return a sentence for each thing that is wrong. Holds the write lock and the directory lock meanwhile."""
    environment.prepare(name)  # so that every queue's handles are open, also those that others made
    with environment.exclusive() as (generation, txn), environment.directory.lock():
        problems = _generation.structural_problems(generation.path)
        problems += _proof.of_records(txn, generation, txn.id() - 1).sentences()
        strangers = environment.directory.strangers(generation.number)
        problems += [f"the file {stranger!r} does not belong there" for stranger in strangers]
    return problems
