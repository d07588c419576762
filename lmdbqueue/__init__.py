"""lmdbqueue: a persistent FIFO queue on LMDB.

    queue = PersistentQueue('queue')     # the directory ./queue
    queue.push(['a', 'b', 'c'])
    queue.peek(2)                        # ['a', 'b']
    queue.delete(2)

The map. Each file begins with what it owns, the law it keeps and what it must not know; imports go
down this list only, and only ``_generation`` imports ``lmdb``.

====================  ============================================================================
``__main__``, ``cli``  the command line: ``python -m lmdbqueue``
``_demo``             its ``demo``: producer and consumer, killed again and again
``_queue``            ``PersistentQueue``: opening, closing, the verbs on an environment
``_standard``         ``put``, ``get``, ``join``, ``shutdown``: the face of ``queue.Queue``
``_verbs``            what each verb means: arguments, encoding, decoding, waiting
``_compact``          ``flush`` and ``copy``: the swap of generations, step by step
``_check``            ``check``: the proof of every invariant
``_env``              a directory as this process has it: sharing, group commit, swaps, forks
``_fifo``             what a queue is: the verbs as functions of a transaction
``_generation``       one LMDB environment: transactions, handles, LMDB's errors
``_directory``        file names, creation, the directory lock
``_session``          who is alive
``_wakeup``           waking sleepers of other processes
``_flock``            locks that die with their process
``_format``           what the bytes on disk mean
``_errors``           every exception
====================  ============================================================================
"""

import sys

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
    Full,
    OptionError,
    QueueError,
    ShutDown,
    StorageError,
    VersionError,
)
from lmdbqueue._queue import PersistentQueue

__all__ = [
    "AccessError",
    "ClosedError",
    "CommitUnknownError",
    "CorruptItemError",
    "CorruptQueueError",
    "DecodeError",
    "DiskFullError",
    "Empty",
    "ExistsError",
    "ForkError",
    "FormatError",
    "Full",
    "OptionError",
    "PersistentQueue",
    "QueueError",
    "ShutDown",
    "StorageError",
    "VersionError",
]
__version__ = "0.1.0"
