"""Every option of every verb, on every engine and awaited: what it cannot be is refused at the call, by its name.

The verbs are found by ``inspect``: a new option needs values here that it refuses, or it is among those that take all.
"""

import asyncio
import inspect
import math
import os

import pytest

import lmdbqueue
from lmdbqueue import PersistentQueue, Retry
from lmdbqueue.aio import AsyncDeadLetters, AsyncLease, AsyncPersistentQueue, AsyncReader
from lmdbqueue.postgres import PostgresQueue
from lmdbqueue.postgres.aio import AsyncPostgresQueue

HUGE = 2**70
NUMBERS = ["x", math.nan, math.inf, 1.5, True, -1, HUGE, [1]]
COUNTS = [*NUMBERS, None]
OR_NONE = [*NUMBERS]
SECONDS = ["x", math.nan, math.inf, True, -1, HUGE, [1]]
FLAGS = ["x", "", math.nan, 2, -1, HUGE, None, []]
CALLS = ["x", 5]
TEXTS = [5, b"x", ["x"], True]
NAMES = ["", "a/b", "a\0", "\ud800", "x" * 201, 5, b"x", None]
PATHS = [5, b"x", True, "a\0b"]
STARTS = ["begin", -1, 1.5, None, HUGE, True]
KEYS = [5, 1.5, ["x"], "\ud800"]
SEQS = ["x", 1.5, HUGE, -HUGE, True, math.nan, [0, "x"], [HUGE]]

WRONG = {  # by option, or by verb and option
    "items": COUNTS,
    "retain.items": [*OR_NONE, 0],
    "bytes": [*OR_NONE, 0],
    "seconds": [*SECONDS, 0],
    "at_least": [*COUNTS, 0],
    "max_bytes": [*OR_NONE, 0],
    "linger": [*SECONDS, None],
    "timeout": SECONDS,
    "ttl": [*SECONDS, 0],
    "work.ttl": [*SECONDS, 0, None],
    "delay": [*SECONDS, None, ""],
    "expires": [*SECONDS, 0, ""],
    "priority": ["x", math.nan, 1.5, True, HUGE, 128, -129, None, ""],
    "headers": ["x", "", 5, [], {"a": 1}, {1: "a"}, {"a": "x" * 65_536}, {"a": "\ud800"}],
    "unique": KEYS,
    "key": [*KEYS, None],
    "seq": ["x", 1.5, HUGE, -HUGE, True, None],
    "seqs": SEQS,
    "reason": TEXTS,
    "trace": TEXTS,
    "name": NAMES,
    "start": STARTS,
    "where": STARTS,
    "on_error": ["x", 5, None],
    "concurrency": [*COUNTS, 0],
    "retry": ["x", 5, (1, 2)],
    "stop": CALLS,
    "progress": CALLS,
    "on_retry": CALLS,
    "on_dead": CALLS,
    "max_attempts": OR_NONE,
    "__init__.max_attempts": [*OR_NONE, 0],
    "maxsize": [each for each in COUNTS if each != -1] + [-HUGE],  # as queue.Queue, which has no limit then
    "flush_limit": COUNTS,
    "interval": [*SECONDS, 0, 3601],
    "durability": ["x", 5, None, True],
    "expired": ["x", 5, None, True],
    "order": ["x", 5, None, True],
    "serializer": ["x", 5, True],
    "patience": [*SECONDS, 86_400, None],
    "pool": [*OR_NONE, 0],
    "schema": ["", "x" * 51, "a\0", "a%b", "\ud800", 5, b"x", None],
    "conninfo": [5, b"x", None],
    "filename": [*PATHS, None],
    "path": [*PATHS, None],
    "copy.path": PATHS,
    "new_filename": [*PATHS, None],
    "dumps": [*CALLS, None],
    "loads": [*CALLS, None],
    "to": ["x", 5, None],
    **dict.fromkeys(
        ("all", "block", "blocking", "checksum", "force", "immediate", "repair", "replace", "signals"), FLAGS
    ),
}
FREE = {  # what is no option: items of any kind, what is called or belongs to the object, options of another signature
    *("push.items", "push_many.items", "put.item", "put_nowait.item", "work.handler", "transact.fn"),
    *("push_many.options", "open.options", "__init__.options", "__init__.queue"),
}
NEEDED = {  # by verb: what it cannot be called without, or where the wrong value is looked at
    "push": {"items": "a"},
    "put": {"item": "a"},
    "peek_many": {"items": 1},
    "pop_many": {"items": 1},
    "reader": {"name": "r"},
    "drop_reader": {"name": "r"},
    "drop_queue": {"name": "q"},
    "delete_item": {"seq": 0},
    "dead_letter": {"seq": 0},
    "work": {"handler": print, "stop": lambda: True},
    "copy": {"new_filename": "copy"},
}


def verbs_of(cls):
    """Return the public verbs of a class with their options, but for those that are inherited from ``Sequence``."""
    for verb, fn in inspect.getmembers(cls, callable):
        is_public = verb == "__init__" or not verb.startswith("_")
        if is_public and inspect.getmodule(fn).__name__.startswith("lmdbqueue"):
            for option in inspect.signature(fn).parameters:
                if option not in ("self", "cls") and f"{verb}.{option}" not in FREE:
                    yield verb, option


SYNC = (PersistentQueue, PostgresQueue)
QUEUES = (*SYNC, AsyncPersistentQueue, AsyncPostgresQueue)
HELD = (lmdbqueue.Reader, lmdbqueue.Lease, lmdbqueue.DeadLetters, AsyncReader, AsyncLease, AsyncDeadLetters)
_GETTERS = (lambda queue: queue.reader("r"), lambda queue: queue.lease(0), lambda queue: queue.dead)
HOLDERS = dict(zip(HELD, 2 * _GETTERS, strict=True))
CASES = [(cls, *each) for cls in QUEUES for each in verbs_of(cls)]
CASES += [(cls, *each) for cls in HELD for each in verbs_of(cls) if each[0] != "__init__"]


def refuses(call, option, value, name=None):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(value)
    message = str(caught.value)
    shown = value[-1] if option == "seqs" and isinstance(value, list) else value
    assert f"'{name or option}' must be " in message, (value, message)
    assert f"not {shown!r:.80}"[:80] in message, (value, message)


@pytest.fixture(scope="module")
def place(tmp_path_factory, postgres):
    """Give what to open queues with, and one loop for all that is awaited."""
    schema = f"options_{os.urandom(4).hex()}"
    yield tmp_path_factory.mktemp("options"), postgres.url(), schema
    postgres.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def opened(place, loop):
    """Give an open queue of each class, with what it holds, by class."""
    path, url, schema = place
    queues = {
        PersistentQueue: PersistentQueue("sync", path),
        PostgresQueue: PostgresQueue(url, "sync", schema=schema),
    }

    async def begin():
        queues[AsyncPersistentQueue] = await AsyncPersistentQueue.open("async", path)
        queues[AsyncPostgresQueue] = await AsyncPostgresQueue.open(url, "async", schema=schema)
        for cls in (AsyncPersistentQueue, AsyncPostgresQueue):
            await queues[cls].push(["a", "b"])

    async def end():
        for cls in (AsyncPersistentQueue, AsyncPostgresQueue):
            await queues[cls].close()

    loop.run(begin())
    for cls in (PersistentQueue, PostgresQueue):
        queues[cls].push(["a", "b"])
    yield queues
    loop.run(end())
    for cls in (PersistentQueue, PostgresQueue):
        queues[cls].close()


def opener(cls, place, loop):
    """Return a function that opens a queue of a class with an option, beside those that it needs."""
    path, url, schema = place
    of_directory = cls in (PersistentQueue, AsyncPersistentQueue)
    needed = {"filename": "made", "path": path} if of_directory else {"conninfo": url, "schema": schema}

    async def awaited(given):
        await cls.open(**given)

    def open_(**given):
        return cls(**needed | given) if cls in SYNC else loop.run(awaited(needed | given))

    return open_


def caller(cls, queue, verb, loop):
    """Return a function that calls a verb of a queue, or of what it gives, with an option beside those it needs."""

    async def handle(_):
        pass

    is_awaited = type(queue) not in SYNC
    needed = NEEDED.get(verb, {})
    if verb == "move":
        needed = {"to": queue}
    if verb == "work" and is_awaited:
        needed = {**needed, "handler": handle}
    if verb == "copy" and type(queue) in (PostgresQueue, AsyncPostgresQueue):
        needed = {}

    async def awaited(given):
        holder = HOLDERS.get(cls, lambda queue: queue)(queue)
        holder = await holder if inspect.isawaitable(holder) else holder
        outcome = getattr(holder, verb)(**needed | given)
        if inspect.isawaitable(outcome):
            await outcome

    def call(**given):
        if is_awaited:
            loop.run(awaited(given))
        else:
            getattr(HOLDERS.get(cls, lambda queue: queue)(queue), verb)(**needed | given)

    return call


@pytest.mark.parametrize(("cls", "verb", "option"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_what_an_option_cannot_be_is_refused_by_its_name(place, opened, loop, cls, verb, option):
    if verb in {"__init__", "open"}:
        calls = [opener(cls, place, loop)]
    else:
        queues = [
            queue
            for kind, queue in opened.items()
            if kind is cls or (cls in HELD and (kind in SYNC) == (cls in HELD[:3]))
        ]
        calls = [caller(cls, queue, verb, loop) for queue in queues]
    wrong = WRONG[f"{verb}.{option}"] if f"{verb}.{option}" in WRONG else WRONG[option]
    for call in calls:
        for value in wrong:
            refuses(lambda value, call=call: call(**{option: value}), option, value)
    assert [opened[cls].count() for cls in SYNC] == [2, 2]


@pytest.mark.parametrize("cls", SYNC)
@pytest.mark.parametrize("option", ["maxsize", "max_attempts", "expired", "max_bytes"])
def test_a_limit_that_is_set_later_is_held_to_the_same_rule(opened, cls, option):
    queue = opened[cls]
    if hasattr(queue, option):
        for value in WRONG.get(f"__init__.{option}", WRONG[option]):
            refuses(lambda value: setattr(queue, option, value), option, value)


WRONG_RETRY = {
    "max_attempts": [*OR_NONE, 0],
    "base": [*SECONDS, None],
    "factor": ["x", math.nan, math.inf, True, -1, 0.5, HUGE, None],
    "max_delay": [*SECONDS, None],
    "jitter": ["x", math.nan, True, -1, 1.5, None],
}


@pytest.mark.parametrize("field", Retry._fields)
def test_a_retry_of_work_is_held_to_rules(opened, loop, field):
    for cls, queue in opened.items():
        work = caller(cls, queue, "work", loop)
        for value in WRONG_RETRY[field]:
            refuses(lambda value, work=work: work(retry=Retry(**{field: value})), field, value, f"retry.{field}")


def test_what_options_can_be_is_taken(queue):
    class Whole:
        def __index__(self):
            return 2

    queue.push(["a", "b", "c"], delay=0, headers={}, replace=0)
    assert queue.peek(Whole()) == queue.peek_many(2, timeout=0) == ["a", "b"]
    assert queue.lease(Whole(), ttl=5, max_bytes=1 << 40, linger=0).seqs == [0, 1]
    queue.retain(1 << 62, bytes=1 << 62, seconds=1e9)
    assert queue.pop(2**63 - 1) == ["c"]
