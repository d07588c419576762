"""What a transaction adds, as its two snapshots tell: the content weight that its record has to note."""

from lmdbqueue._base import format as _format
from lmdbqueue._lmdb.generation import Generation

_commit = Generation._commit


class WrongContentError(BaseException):
    """Nothing catches it to try again."""


def proving(generation, txn):
    """Commit as ``Generation`` does, once the content weight is found to be what the difference weighs."""
    if generation._is_weighed:
        with generation._env.begin() as before:
            added = sum(_added(before, txn, queue) for queue in generation.open_to(txn))
        noted = generation.content.weight
        if (noted - added) % (1 << 64):
            raise WrongContentError(noted, added)
    _commit(generation, txn)


def _added(before, txn, queue):
    known = set()
    if before.get(queue.queue, db=queue.meta) is not None:
        known = set(before.cursor(queue.items).iternext(values=False))
    return sum(_format.weigh_item(value) for key, value in txn.cursor(queue.items) if key not in known)
