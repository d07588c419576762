"""Awaited queues that are used like those without await, for tests that hold for both.

Owns: a loop in a thread of its own, and the faces of what belongs to it: each verb is awaited there. A verb that there
is only without await is called by ``transact``.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from processes import DEADLINE

from lmdbqueue import PersistentQueue
from lmdbqueue.aio import AsyncDeadLetters, AsyncLease, AsyncPersistentQueue, AsyncReader
from lmdbqueue.postgres import PostgresQueue
from lmdbqueue.postgres.aio import AsyncPostgresQueue


class Loop:
    """A loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def call(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return what ``fn(*args, **options)``, called in the loop, returns when it is awaited."""

        async def called() -> Any:
            found = fn(*args, **options)
            return await found if isinstance(found, Awaitable) else found

        return self.face_of(asyncio.run_coroutine_threadsafe(called(), self._loop).result(DEADLINE))

    def face_of(self, found: Any) -> Any:
        """Return what stands for an object of the loop."""
        if isinstance(found, (AsyncLease, AsyncDeadLetters, AsyncReader)):
            return Face(self, found)
        return found

    def queue(self, queue: "PersistentQueue[Any] | PostgresQueue[Any]") -> "AwaitedQueue":
        """Await the verbs of a queue that is open."""
        awaited = AsyncPersistentQueue if isinstance(queue, PersistentQueue) else AsyncPostgresQueue
        return AwaitedQueue(self, self.call(awaited, queue))

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Face:
    """An object of a loop, whose methods are awaited there."""

    def __init__(self, loop: Loop, awaited: Any) -> None:
        self.__dict__.update(loop=loop, awaited=awaited)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.awaited, name)
        if name in {"headers", "pushed_at"}:  # methods of an awaited lease, properties of a lease
            return self.loop.call(found)
        if not callable(found):
            return self.loop.face_of(found)
        return lambda *args, **options: self.loop.call(found, *args, **options)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.awaited, AsyncLease):
            return iter(self.awaited)

        async def collected() -> list[Any]:
            return [each async for each in self.awaited]

        return iter(self.loop.call(collected))

    def __len__(self) -> int:
        return len(self.awaited) if isinstance(self.awaited, AsyncLease) else self.count()

    def __enter__(self) -> Self:
        self.loop.call(self.awaited.__aenter__)
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call(self.awaited.__aexit__, *error)


class AwaitedQueue(Face):
    """A queue of a loop."""

    def __init__(self, loop: Loop, awaited: Any) -> None:
        super().__init__(loop, awaited)
        self.__dict__["is_plain"] = False  # in the block of a transaction

    def __getattr__(self, name: str) -> Any:
        queue = self.awaited.queue
        if self.is_plain:
            return getattr(queue, name)
        if hasattr(type(self.awaited), name):
            return super().__getattr__(name)
        if not callable(getattr(queue, name)):
            return getattr(queue, name)
        return lambda *args, **options: self.loop.call(
            self.awaited.transact, lambda queue: getattr(queue, name)(*args, **options)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.awaited.queue, name, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Call the verbs in the block as one step, without await."""
        with self.awaited.queue.transaction():
            self.__dict__["is_plain"] = True
            try:
                yield
            finally:
                self.__dict__["is_plain"] = False

    def move(self, items: int = 1, *, to: Any) -> Any:
        """Move items to another queue."""
        return self.loop.call(self.awaited.transact, lambda queue: queue.move(items, to=to.awaited.queue))

    def work(self, handler: Callable[[Any], object], **options: Any) -> Any:
        """Await a handler that calls this one."""

        async def handle(item: Any) -> None:
            handler(item)

        return self.loop.call(self.awaited.work, handle, **options)
