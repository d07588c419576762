"""One adapter for each queue, all with the same few verbs.

Owns: which queues take part. Law: an adapter adds nothing to its queue and takes nothing away; it says
in one line how the queue was made durable. What a queue cannot do (a batch, a wait) its adapter does
not have, and the tables show a dash. A queue that is not installed is left out.
"""

import importlib

from bench.peers.peer import Peer

__all__ = ["BATCH_VERBS", "MODULES", "Peer", "load_all", "load_one"]

BATCH_VERBS = ("push_many", "peek_many", "delete_many", "pop_many")
MODULES = (
    "lmdbqueue",
    "raw",
    "persistent_queue",
    "persistqueue",
    "litequeue",
    "diskcache",
    "localqueue",
    "nque",
    "huey",
    "equeue",
    "rocksq",
    "queuelib",
)


def load_one(address: str) -> type[Peer]:
    """Return the adapter of that ``Peer.address()``, and import no other library."""
    module, name = address.split(":")
    return next(peer for peer in _load(module) if peer.__name__ == name)


def load_all() -> tuple[list[type[Peer]], list[str]]:
    """Return all adapters whose library is there, and a sentence for each one that is not."""
    found: list[type[Peer]] = []
    missing: list[str] = []
    for module in MODULES:
        try:
            found += _load(module)
        except ImportError as error:
            missing.append(f"{module} is left out: {error.name} cannot be imported")
    return found, missing


def _load(module: str) -> list[type[Peer]]:
    adapters: list[type[Peer]] = importlib.import_module(f"bench.peers.{module}").ADAPTERS
    return adapters
