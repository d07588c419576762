"""Proves a queue that is open: what it holds by what is on the disk.

Owns: how the newest snapshot of a queue in use is found whole by its last checkpoint.
"""

import os
from typing import Any

from lmdbqueue import PersistentQueue
from lmdbqueue._lmdb import checkpoint_slots, meta_page
from lmdbqueue._local import recovery


def prove_by_the_checkpoint(queue: PersistentQueue[Any]) -> None:
    """Demand that the newest snapshot is found whole by the last checkpoint, if the queue has one."""
    live = queue._engine.environment._generation
    is_known, found = checkpoint_slots.read(os.path.join(queue._engine.path, "checkpoint"))
    if live is not None and is_known and found is not None and found.generation == live.number:
        newest, _ = meta_page.read(live.path)
        base = meta_page.with_body(newest, found.body)
        assert recovery._newest_whole(live.path, newest, newest, base).body == newest.body
