"""``AsyncPersistentQueue``: the verbs, awaited; threads carry out the calls of an event loop.

    from lmdbqueue.aio import AsyncPersistentQueue

    async with AsyncPersistentQueue("jobs") as queue:
        await queue.push("a job")

The map; imports go down this list only. All but the first serve any engine: ``lmdbqueue.postgres.aio`` stands on them.

===============  ===============================================================
``_persistent``  ``AsyncPersistentQueue``: opening, copying, checking a directory
``_queue``       ``AsyncQueue``: consumers, readers, the verbs of asyncio.Queue
``_writing``     pushing, browsing, removing single items
``_calls``       the base of the verbs: an open object, time limits
``_reader``      a named reader, awaited
``_reading``     ``peek`` and ``pop``, of a queue and of a reader
``_leases``      leases and the loop of a worker, awaited
``_courier``     the threads that carry the calls of an event loop
``_grouping``    which of those calls share a commit
``_jobs``        each of those calls: its kind, and how it is undone
===============  ===============================================================
"""

from lmdbqueue.aio._calls import NotOpenError
from lmdbqueue.aio._leases import AsyncDeadLetters, AsyncLease
from lmdbqueue.aio._persistent import AsyncPersistentQueue
from lmdbqueue.aio._queue import AsyncState
from lmdbqueue.aio._reader import AsyncReader

__all__ = ["AsyncDeadLetters", "AsyncLease", "AsyncPersistentQueue", "AsyncReader", "AsyncState", "NotOpenError"]

for _each in __all__:
    globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module
