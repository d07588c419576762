"""``AsyncPersistentQueue``: the verbs of ``PersistentQueue``, awaited.

Owns: how a queue in a directory is opened for an event loop. Law: a verb (``aio._queue``) means what its namesake
without ``await`` means. Must not know: threads, commits.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue.aio._leases import Opening
from lmdbqueue.aio._queue import AsyncQueue

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")


class AsyncPersistentQueue(AsyncQueue[T]):
    """A ``PersistentQueue`` for one event loop.

    ``async with`` opens it; ``await AsyncPersistentQueue.open(...)`` creates and opens it in one step.

    Example:
        >>> async with AsyncPersistentQueue("jobs") as queue:
        ...     await queue.push("a job")

    Args:
        queue: The directory; or an open ``PersistentQueue``, which then belongs to this object.
        path: The directory that contains it.
        **options: As for ``PersistentQueue``.
    """

    queue: PersistentQueue[T]

    def __init__(
        self,
        queue: PersistentQueue[T] | str | os.PathLike[str],
        path: str | os.PathLike[str] = ".",
        **options: Any,
    ) -> None:
        super().__init__(
            queue if isinstance(queue, PersistentQueue) else partial(PersistentQueue, queue, path, **options)
        )

    @classmethod
    def open(cls, filename: Any, path: Any = ".", **options: Any) -> Opening[Self]:
        """Open or create a queue. Await it, or use it with ``async with``.

        Args:
            filename: The directory.
            path: The directory that contains it.
            **options: As for ``PersistentQueue``.
        """
        return cls._opened_by(partial(PersistentQueue, filename, path, **options))

    async def copy(self, new_filename: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Make a compacted copy of the whole directory: an independent queue, durable when it returns.

        Args:
            new_filename: The directory of the copy.
            path: The directory that contains it; None: beside this queue.

        Returns:
            The copy, opened.

        Raises:
            ExistsError: There is a queue already.
        """
        return type(self)(await self._call(self.queue.copy, new_filename, path))

    async def check(self, repair: bool = False) -> list[str]:
        """Verify the files of the directory, and repair them on request.

        Args:
            repair: If there are faults, write all readable items to a new file that replaces the damaged one.

        Returns:
            A sentence for each fault; an empty list if there is none.
        """
        return await self._call(self.queue.check, repair)
