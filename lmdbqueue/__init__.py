"""lmdbqueue: a persistent FIFO queue on LMDB.

    queue = PersistentQueue('queue')     # the directory ./queue
    queue.push(['a', 'b', 'c'])
    queue.peek(2)                        # ['a', 'b']
    queue.delete(2)

The map: one floor a package, imports go down it only. Each package lists its files in its own docstring, top down; each
file begins with what it owns. Only ``_lmdb.generation`` imports ``lmdb``, only ``postgres`` imports ``psycopg``.

================  ==========================================================================="""

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    message = "lmdbqueue does not run on Windows: nobody has tested there that it loses nothing; Linux and macOS do"
    raise ImportError(message)

from lmdbqueue._errors import (
    AccessError,
    ClosedError,
    CommitUnknownError,
    CorruptItemError,
    CorruptQueueError,
    DecodeError,
    DiskFullError,
    Empty,
    ExistsError,
    ForkError,
    FormatError,
    ForwardError,
    Full,
    GoneError,
    LeaseExpiredError,
    OptionError,
    PidError,
    QueueError,
    ServerError,
    ShutDown,
    SourceError,
    StorageError,
    TransactionError,
    VersionError,
)
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._values import ReaderStats, Stats
from lmdbqueue._verbs.lease import DeadLetter, DeadLetters, Lease
from lmdbqueue._verbs.reader import Reader

if TYPE_CHECKING:
    from lmdbqueue._local.check import check
    from lmdbqueue._verbs.worker import Retry, Worked
else:

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import at its first use what few need: 5 % of what an import takes."""
        if name == "check":
            from lmdbqueue._local import check as module  # noqa: PLC0415
        elif name in ("Retry", "Worked"):
            from lmdbqueue._verbs import worker as module  # noqa: PLC0415
        else:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        return getattr(module, name)


__all__ = [
    "AccessError",
    "ClosedError",
    "CommitUnknownError",
    "CorruptItemError",
    "CorruptQueueError",
    "DeadLetter",
    "DeadLetters",
    "DecodeError",
    "DiskFullError",
    "Empty",
    "ExistsError",
    "ForkError",
    "FormatError",
    "ForwardError",
    "Full",
    "GoneError",
    "Lease",
    "LeaseExpiredError",
    "OptionError",
    "PersistentQueue",
    "PidError",
    "QueueError",
    "Reader",
    "ReaderStats",
    "Retry",
    "ServerError",
    "ShutDown",
    "SourceError",
    "Stats",
    "StorageError",
    "TransactionError",
    "VersionError",
    "Worked",
    "check",
]
__version__ = "0.1.0"
