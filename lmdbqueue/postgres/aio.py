"""``AsyncPostgresQueue``: the verbs of ``PostgresQueue``, awaited.

Owns: how a queue in a database is opened for an event loop. Law: a verb means what its namesake in ``PostgresQueue``
means. Must not know: what the verbs do, threads.

The calls of a loop are carried out by the two threads of ``lmdbqueue.aio._courier``, not by psycopg's asynchronous
connections, for three reasons. Pushes to one queue take turns, one commit at a time: a thousand tasks with a connection
each would commit a thousand times, one after the other, where the courier makes one statement of them. A waiting task
costs a future, not a connection, for which the server needs a process. And for the synchronous steps it is tested that
a change is made once even if its connection is lost or its caller cancelled; a second set of steps would have to be
tested again. So for any number of waiting tasks there are two threads, a third that hears the server's notifications,
and at most one connection for each of the three.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lmdbqueue.aio._leases import Opening
from lmdbqueue.aio._queue import AsyncQueue
from lmdbqueue.postgres._queue import PostgresQueue

__all__ = ["AsyncPostgresQueue"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")


class AsyncPostgresQueue(AsyncQueue[T]):
    """A ``PostgresQueue`` for one event loop.

    ``async with`` opens it; ``await AsyncPostgresQueue.open(...)`` creates and opens it in one step. The verbs are
    those of ``lmdbqueue.aio``. While the server does not answer, a call waits for its ``timeout`` or the ``patience``,
    whichever is over first.

    Args:
        queue: The address; or an open ``PostgresQueue``, which then belongs to this object.
        name: One of the queues.
        **options: As for ``PostgresQueue``.
    """

    queue: PostgresQueue[T]

    def __init__(self, queue: PostgresQueue[T] | str, name: str = "queue", **options: Any) -> None:
        """Take the arguments of ``PostgresQueue``, which ``async with`` opens, or an open one."""
        super().__init__(queue if isinstance(queue, PostgresQueue) else partial(PostgresQueue, queue, name, **options))

    @classmethod
    def open(cls, conninfo: str, name: str = "queue", **options: Any) -> Opening[Self]:
        """Open or create a queue. Await it, or use it with ``async with``.

        Args:
            conninfo: The address.
            name: One of the queues.
            **options: As for ``PostgresQueue``.
        """
        return cls._opened_by(partial(PostgresQueue, conninfo, name, **options))

    async def copy(self, name: str) -> Self:
        """Copy this queue to a new one in the same database.

        Args:
            name: The name of the copy.

        Returns:
            The copy, opened.

        Raises:
            ExistsError: There is a queue of that name.
        """
        return type(self)(await self._call(self.queue.copy, name))

    async def check(self) -> list[str]:
        """Verify the tables; return a sentence for each fault."""
        return await self._call(self.queue.check)
