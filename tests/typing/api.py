"""What a type checker must find in the public names. Checked by mypy, never run."""

import json
import logging.handlers
import os
import queue as standard
from pathlib import Path
from typing import Any, assert_type

import lmdbqueue
from lmdbqueue import (
    ClosedError,
    DecodeError,
    DiskFullError,
    Empty,
    Full,
    Job,
    Lease,
    Nacked,
    OptionError,
    PersistentQueue,
    QueueError,
    Reader,
    ReaderStats,
    Retry,
    ShutDown,
    StorageError,
    Worked,
)
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.aio._leases import AsyncLease
from lmdbqueue.aio._reader import AsyncReader
from lmdbqueue.postgres import PostgresQueue
from lmdbqueue.postgres.aio import AsyncPostgresQueue


def one(item: int) -> None: ...


def one_with_job(item: int, job: Job) -> None: ...


def many(items: list[int]) -> None: ...


def many_with_jobs(items: list[int], jobs: list[Job]) -> None: ...


def text(item: str) -> None: ...


async def awaited_one(item: int) -> None: ...


async def awaited_many(items: list[int], jobs: list[Job]) -> None: ...


def handlers(queue: PersistentQueue[int], n: int) -> None:
    assert_type(queue.work(one), Worked)
    queue.work(one_with_job, retry=Retry(max_attempts=3), on_dead=lambda job, error: (job.seq, error))
    queue.work(many, items=10, linger=0.5)
    queue.work(many_with_jobs, items=n)
    queue.work(print)
    queue.work(lambda item: item + 1)
    PersistentQueue("queue").work(text)
    queue.work(text)  # type: ignore[arg-type]
    queue.work(one, items=10)  # type: ignore[arg-type]
    queue.work(many)  # type: ignore[arg-type]


def given_back(lease: Lease[int]) -> None:
    assert_type(lease.nack(delay=5.0), Nacked)
    assert_type(lease.reject().dead, list[int])


async def awaited_given_back(lease: AsyncLease[int]) -> None:
    assert_type(await lease.nack(max_attempts=3), Nacked)
    assert_type(await lease.reject(), Nacked)


async def awaited_handlers(queue: AsyncPersistentQueue[int]) -> None:
    assert_type(await queue.work(awaited_one, signals=True), Worked)
    await queue.work(awaited_many, items=10, concurrency=5)
    await queue.work(awaited_many)  # type: ignore[arg-type]
    await queue.work(one)  # type: ignore[arg-type]
    assert_type(await queue.push(5), int)
    assert_type(await queue.pop(3), list[int])
    assert_type(await queue.pop(), int | None)
    assert_type(await queue.pop_many(1), list[int])
    assert_type(await queue.peek_many(1), list[int])


def opening(path: Path) -> None:
    assert_type(PersistentQueue[int]("queue"), PersistentQueue[int])
    assert_type(PersistentQueue[int](path, path), PersistentQueue[int])
    assert_type(PersistentQueue[int]("queue", os.fspath(path), flush_limit=0), PersistentQueue[int])
    assert_type(PersistentQueue("queue", dumps=_to_bytes, loads=_from_bytes), PersistentQueue[str])
    annotated: PersistentQueue[dict[str, int]] = PersistentQueue(
        "queue", path, name="n", maxsize=5, max_bytes=1 << 20, durability="off", checksum=False
    )
    assert_type(annotated.pop(), dict[str, int] | None)
    PersistentQueue[Any]("queue", dumps=lambda item: json.dumps(item).encode(), loads=json.loads)


def without_annotation(path: Path) -> None:
    queue = PersistentQueue("queue")
    assert_type(queue, PersistentQueue[Any])
    assert_type(queue.push("text"), int)
    assert_type(queue.pop(3), list[Any])
    assert_type(PostgresQueue("postgresql:///app"), PostgresQueue[Any])
    with PersistentQueue(path) as opened:
        opened.push({"any": "thing"})


def refused(path: Path) -> None:
    PersistentQueue[int]("queue", path, durability="half")  # type: ignore[arg-type]
    PersistentQueue[int]("queue", path, dumps=_to_bytes)  # type: ignore[arg-type]
    PersistentQueue[int](5)  # type: ignore[arg-type]
    PersistentQueue[int]("queue", maxsize=None)  # type: ignore[arg-type]
    PersistentQueue[int]("queue").push("text")  # type: ignore[call-overload]
    PersistentQueue[int]("queue").push(["text"])  # type: ignore[list-item]
    PersistentQueue[int]("queue").put("text")  # type: ignore[arg-type]
    PersistentQueue[int]("queue").pop("1")  # type: ignore[call-overload]
    PersistentQueue[int]("queue").delete(1.5)  # type: ignore[arg-type]


def verbs(queue: PersistentQueue[int], n: int) -> None:
    assert_type(queue.push(5), int)
    assert_type(queue.push([5, 6]), range)
    assert_type(queue.push_many(range(3)), range)
    assert_type(queue.push(5, unique="k", replace=True).is_stored, bool)
    assert_type(queue.push_many([5, 6], unique=["k", None])[0].is_stored, bool)
    assert_type(queue.peek(), int | None)
    assert_type(queue.peek(1), int | None)
    assert_type(queue.peek(1, blocking=True, timeout=0.5), int | None)
    assert_type(queue.peek(0), list[int])
    assert_type(queue.peek(n), list[int])
    assert_type(queue.peek(2), list[int])
    assert_type(queue.peek_many(1), list[int])
    assert_type(queue.pop_many(n, at_least=2, max_bytes=9, blocking=True), list[int])
    assert_type(queue.pop(), int | None)
    assert_type(queue.pop(1), int | None)
    assert_type(queue.pop(items=1, blocking=True), int | None)
    assert_type(queue.pop(0), list[int])
    assert_type(queue.pop(n, True, 1), list[int])
    assert_type(queue.delete(), int)
    assert_type(queue.delete(n), int)
    queue.clear()
    assert_type(queue.count(), int)
    assert_type(len(queue), int)
    assert_type([item for item in queue], list[int])  # noqa: C416  (what iteration gives)
    assert_type(queue.flush(), int)
    assert_type(queue.flush(force=True), int)
    assert_type(queue.copy("twin"), PersistentQueue[int])
    assert_type(queue.copy(Path("twin"), Path("there")), PersistentQueue[int])
    assert_type(queue.check(), list[str])
    queue.close()
    with queue as same:
        assert_type(same, PersistentQueue[int])


def attributes(queue: PersistentQueue[int]) -> None:
    assert_type(queue.filename, str | os.PathLike[str])
    assert_type(queue.path, str | os.PathLike[str])
    assert_type(queue.flush_limit, int)
    assert_type(queue.name, str)
    assert_type(queue.maxsize, int)
    assert_type(queue.max_bytes, int | None)
    assert_type(queue.checksum, bool)
    assert_type(queue.loads(queue.dumps(5)), int)


def standard_face(queue: PersistentQueue[int]) -> None:
    queue.put(5)
    queue.put(5, False)  # noqa: FBT003  (as people write it)
    queue.put(5, timeout=1)
    queue.put_nowait(5)
    assert_type(queue.get(), int)
    assert_type(queue.get(True, 0.5), int)
    assert_type(queue.get_nowait(), int)
    assert_type(queue.qsize(), int)
    assert_type(queue.empty(), bool)
    assert_type(queue.full(), bool)
    queue.task_done()
    queue.join()
    queue.shutdown()
    queue.shutdown(immediate=True)


def logging_takes_it(queue: PersistentQueue[Any]) -> None:
    logging.handlers.QueueHandler(queue)
    logging.handlers.QueueListener(queue)


class Mine(PersistentQueue[str]):
    """A subclass keeps its type."""


def subclass(mine: Mine) -> None:
    assert_type(mine.copy("twin"), Mine)
    with mine as same:
        assert_type(same, Mine)


def takes_errors(
    _empty: type[standard.Empty], _full: type[standard.Full], _value: type[ValueError], *_ours: type[QueueError]
) -> None: ...


def errors() -> None:
    takes_errors(Empty, Full, OptionError, ClosedError, ShutDown)
    takes_errors(Empty, DiskFullError, OptionError)
    takes_errors(Full, Full, OptionError)  # type: ignore[arg-type]
    try:
        raise Full("items", 1, 1, 1)
    except StorageError as error:
        assert_type(error.operation, str)
    except QueueError as error:
        assert_type(error, QueueError)


def facts(full: Full, empty: Empty, decode: DecodeError) -> None:
    assert_type((full.unit, full.limit, full.used, full.added), tuple[str, int, int, int])
    assert_type((empty.wanted, empty.timeout), tuple[int, float | None])
    assert_type((decode.seq, decode.payload, decode.reason), tuple[int, bytes, str])
    assert_type(lmdbqueue.__version__, str)


async def asynchronous() -> None:
    async with AsyncPersistentQueue[str].open("queue") as queue:
        assert_type(queue, AsyncPersistentQueue[str])
        assert_type(await queue.get(), str)
        assert_type(await queue.copy("copied"), AsyncPersistentQueue[str])
    there = await AsyncPostgresQueue[int].open("postgresql:///app", "jobs")
    assert_type(there, AsyncPostgresQueue[int])
    assert_type(await there.get(), int)
    assert_type(await there.check(), list[str])
    assert_type(there.queue.reader("billing"), Reader[int])


def _to_bytes(item: str) -> bytes:
    return item.encode()


def _from_bytes(payload: bytes) -> str:
    return payload.decode()


async def awaited(queue: AsyncPersistentQueue[int]) -> None:
    async with AsyncPersistentQueue[int].open("queue") as opened:
        assert_type(opened, AsyncPersistentQueue[int])
    assert_type(await queue.lease(), AsyncLease[int])
    async with queue.lease() as lease:
        assert_type(lease, AsyncLease[int])
    assert_type(await queue.reader("billing", start="newest"), AsyncReader[int])
    async with queue.reader("billing", start=5) as reader:
        assert_type(reader, AsyncReader[int])
        assert_type(await reader.delete(2), int)
        assert_type(await reader.position(), int)
        async for item in reader:
            assert_type(item, int)
    assert_type(await queue.readers(), list[ReaderStats])
    queue.reader("billing", start="begin")  # type: ignore[arg-type]


def imported_late(place: str) -> None:
    assert_type(lmdbqueue.check(place), list[str])
    assert_type(lmdbqueue.Retry().max_attempts, int | None)
    lmdbqueue.no_such_name  # type: ignore[attr-defined]  # noqa: B018
