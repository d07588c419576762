"""lmdbqueue: a persistent FIFO queue on LMDB.

    queue = PersistentQueue('queue')     # the directory ./queue
    queue.push(['a', 'b', 'c'])
    queue.peek(2)                        # ['a', 'b']
    queue.delete(2)

The map. Each file begins with what it owns, the law it keeps and what it must not know; imports go
down this list only, and only ``_generation`` imports ``lmdb``, only ``postgres`` imports ``psycopg``.

====================  ============================================================================
``__main__``          ``python -m lmdbqueue``
``cli``               the command line, a package with a map of its own
``legacy``            ``import_file``: queues of other libraries, taken over; a package, too
``otel``              figures for OpenTelemetry
``_metrics``          figures as metrics, Prometheus' text
``_follow``           what comes into a queue, seen by who takes nothing
``forward``           ``Forwarder``: a queue drained into a central one, each item exactly once
``_source``           the queue that is drained
``postgres``          ``PostgresQueue``: the verbs on tables of PostgreSQL; a package with a map of its own
``aio``               ``AsyncPersistentQueue``: the verbs, awaited
``_awaited``          leases and the loop of a worker, awaited
``_awaited_reader``   a named reader, awaited
``_courier``          the threads that carry the calls of an event loop
``_queue``            ``PersistentQueue``: opening, closing, the verbs on an environment
``_engine``           the steps of the verbs, each as one call of an environment
``_reader``           ``reader``, ``readers``, ``retain``: many who read all
``_consumer``         ``lease``, ``dead``, ``work``: consumers that can die
``_work``             the loop of a worker
``_lease``            what a consumer holds
``_batch``            what a forwarder hands to its target, and how far that has come
``_signals``          being told to stop
``_standard``         ``put``, ``get``, ``join``, ``shutdown``: the face of ``queue.Queue``
``_verbs``            what each verb means that writes: arguments, encoding
``_reading``          what it means to read: decoding, waiting
``_compact``          ``flush``, ``copy``, ``drop_queue``: when space is given back
``_check``            ``check``: the proof on a queue in use, and its repair
``_state``            ``state``: a mapping beside the items
``_stats``            ``stats``: how much of everything there is
``_ahead``            a copy made before a swap, while writers go on
``_env``              a directory as this process has it: sharing, swaps, forks
``_recovery``         after a power cut: which of the two newest snapshots counts
``_swap``             the swap of generations, step by step
``_salvage``          what can be saved of a damaged file
``_proof``            what "whole" means: every invariant
``_away``             what does not wait, leased, delayed, dead: how it goes and comes back; functions of a transaction
``_readers``          named readers, and what goes when all have passed it
``_times``            when what was pushed: a sparse record of times
``_fifo``             what a queue is: the verbs as functions of a transaction
``_notes``            what is known of items: attempts, unique keys, counts
``_positions``        where readers are, what is kept for them
``_absent``           the records of what does not wait
``_records``          the records beside the items, and their weight, by which a torn transaction is seen
``_line``             the calls that wait for a transaction, and who runs them
``_group``            several calls in one transaction
``_transaction``      the calls of a user's block in one transaction
``_nesting``          the block of a user: which thread is in one, what spoils it
``_generation``       one LMDB environment: when a commit is durable, LMDB's errors
``_room``             blocks that a file has before they are used
``_remnants``         what a power cut leaves on free pages
``_pages``            LMDB's trees as bytes
``_metapage``         LMDB's meta pages as bytes
``_session``          who is alive, and what is known to be on the disk
``_directory``        file names, creation, the directory lock
``_wakeup``           waking sleepers of other processes
``_owner``            who holds leases, and whether it lives
``_disk``             fsync, allocation, whose a new file is, the system's errors
``_flock``            locks that die with their process
``_format``           what the bytes on disk mean
``_threads``          a thread that waits for another, or has one work beside it
``_errors``           every exception
====================  ============================================================================
"""

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
from lmdbqueue._lease import DeadLetter, DeadLetters, Lease
from lmdbqueue._queue import PersistentQueue
from lmdbqueue._reader import Reader
from lmdbqueue._readers import ReaderStats

if TYPE_CHECKING:
    from lmdbqueue._check import check
    from lmdbqueue._stats import Stats
    from lmdbqueue._work import Retry, Worked
else:

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import at its first use what few need: 5 % of what an import takes."""
        if name == "check":
            from lmdbqueue import _check as module  # noqa: PLC0415
        elif name == "Stats":
            from lmdbqueue import _stats as module  # noqa: PLC0415
        elif name in ("Retry", "Worked"):
            from lmdbqueue import _work as module  # noqa: PLC0415
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
