"""One item a call, one thread, where a flush costs nothing: what each queue costs beside the disk.

Owns: where that is. Law: it is a file system in memory, where every queue does all that makes it durable; a server's
SSD with a capacitor, whose flush takes some 15 us, comes close to it.
"""

import os
import tempfile
from dataclasses import replace
from functools import partial

from bench.environment import MEMORY_FILE_SYSTEMS, file_system
from bench.measure import Run
from bench.workloads.single import push_and_pop

MODE = "durable, in memory"
PLACE = "/dev/shm"  # noqa: S108  (a directory of its own is made in it)


def measure_free_flush(run: Run) -> None:
    """Measure single pushes and pops that are durable on a file system in memory. Raises ``OSError`` without one."""
    if not os.path.isdir(PLACE) or file_system(PLACE) not in MEMORY_FILE_SYSTEMS:
        message = f"{PLACE} is no file system in memory, and elsewhere a flush costs something"
        raise OSError(message)
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        contenders = {
            peer.name: partial(push_and_pop, peer, "durable", run.scale.single_off, run.scale.seconds)
            for peer in run.peers
            if peer.can_be("durable") and (peer.is_bound or not peer.is_variant)
        }
        replace(run, directory=directory).interleave("free flush", MODE, "items/s", contenders)
