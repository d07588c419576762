"""lmdbqueue: a crash-safe FIFO queue in a directory, for any number of threads and processes on one machine.

    from lmdbqueue import PersistentQueue

    queue = PersistentQueue('jobs')           # the directory ./jobs, created if it is missing
    queue.push({'file': 'report.pdf'})        # on disk when it returns
    with queue.lease(10, ttl=60) as lease:    # up to 10 items, for this consumer alone
        upload(list(lease))                   # the end of the block removes them; an exception returns them

``help(PersistentQueue)`` describes all verbs. ``queue.work(handler)`` leases and processes items in a loop, with
retries and dead letters. ``queue.transaction()`` makes several calls one step, ``queue.reader(name)`` lets several
programs read every item. The errors of this library derive from ``QueueError``, carry their facts as attributes, and
say what to do; a wrong argument raises ``TypeError`` or ``ValueError``.

``lmdbqueue.aio`` has the verbs for ``asyncio``, ``lmdbqueue.postgres`` has them on PostgreSQL, ``lmdbqueue.forward``
moves items elsewhere, ``lmdbqueue.legacy`` imports queues of other libraries, ``lmdbqueue.integrations`` is for
logging, Celery, Huey, OpenTelemetry and Prometheus. The distribution is called ``lmdbqueue-persistent``.

The rest is for maintainers. The map: each package is a layer, and imports only go down. Each package lists its files in
its own docstring, top down; each file begins with what it owns. ``docs/design.md`` says where to look for what. Of all
packages only ``_lmdb`` imports ``lmdb``, and only ``postgres`` imports ``psycopg``.

================  ==================================================================================
``integrations``  frameworks that programs already use, on top of this queue; a package with its own map
``__main__``      ``python -m lmdbqueue``
``cli``           the command line; a package with its own map
``legacy``        ``import_file``: imports queues of other libraries; a package, too
``forward``       ``Forwarder``: drains a queue into a central one, a URL or a topic; a package, too
``postgres``      ``PostgresQueue``: the verbs on tables of PostgreSQL; a package with its own map
``aio``           ``AsyncPersistentQueue``: the verbs, awaited; threads carry out the calls of an event loop
``_local``        ``PersistentQueue`` on LMDB
``_verbs``        what each verb means, on any engine
``_model``        the data structure of a queue: functions of a transaction
``_lmdb``         everything that trusts or bypasses LMDB
``_host``         files, processes, threads
``_base``         what all of them share: what the bytes on disk mean, every exception, values
================  ==================================================================================
"""

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    message = "lmdbqueue does not support Windows, where it was never tested for loss of items: use Linux or macOS"
    raise ImportError(message)

from lmdbqueue._base.errors import (
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
    NestedCallError,
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
from lmdbqueue._base.values import Nacked, ReaderStats, Stats
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._verbs.lease import DeadLetter, DeadLetters, Lease

if TYPE_CHECKING:
    from lmdbqueue._local.check import check
    from lmdbqueue._verbs.reader import Reader
    from lmdbqueue._verbs.worker import Job, Retry, Worked
else:

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import rarely used names at their first use."""
        if name == "check":
            from lmdbqueue._local import check as module  # noqa: PLC0415
        elif name == "Reader":
            from lmdbqueue._verbs import reader as module  # noqa: PLC0415
        elif name in ("Job", "Retry", "Worked"):
            from lmdbqueue._verbs import worker as module  # noqa: PLC0415
        else:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        found = getattr(module, name)
        found.__module__ = __name__
        return found


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
    "Job",
    "Lease",
    "LeaseExpiredError",
    "Nacked",
    "NestedCallError",
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
__version__ = "1.0.0"

for _each in __all__:
    if _each in globals():  # the others are imported at first use
        globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module
