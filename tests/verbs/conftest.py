"""Queues of every engine, for tests of what all of them must do."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from awaited import Loop
from clocks import Clock
from postgres_server import age

from lmdbqueue._base.values import now


class Engine:
    """Opens queues of one engine, in one directory or schema."""

    def __init__(self, kind: str, open_: Callable[..., Any], elsewhere: Callable[[], Any]) -> None:
        self.kind = kind
        self._open = open_
        self.elsewhere = elsewhere  # opens a queue that cannot take part in a transaction of these

    def __call__(self, name: str = "queue", **options: Any) -> Any:
        if self.kind == "postgres":
            return self._open(name, **options)
        return self._open(name=name, durability="interval", interval=3600.0, **options)


@pytest.fixture(params=["lmdb", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Open queues of either engine."""
    if request.param == "lmdb":
        open_ = request.getfixturevalue("open_queue")
        yield Engine("lmdb", open_, lambda: open_("elsewhere"))
    else:
        open_ = request.getfixturevalue("open_postgres")
        other = f"elsewhere_{os.urandom(4).hex()}"
        opened = []

        def elsewhere() -> Any:
            opened.append(open_(schema=other))
            return opened[0]

        yield Engine("postgres", open_, elsewhere)
        for queue in opened:
            queue.close()
        request.getfixturevalue("postgres").execute(f'DROP SCHEMA IF EXISTS "{other}" CASCADE')


class AwaitedEngine:
    """Opens queues of an engine whose verbs are awaited, in a loop of another thread."""

    def __init__(self, engine: Engine, loop: Loop) -> None:
        self.kind = engine.kind
        self.opened: list[Any] = []
        self._open, self._loop = engine, loop

    def __call__(self, name: str = "queue", **options: Any) -> Any:
        self.opened.append(self._loop.queue(self._open(name, **options)))
        return self.opened[-1]


@pytest.fixture
def awaited() -> Iterator[Callable[[Engine], AwaitedEngine]]:
    """Give a function that makes an engine an awaited one; at the end its queues are proven whole, and closed."""
    loop = Loop()
    engines: list[AwaitedEngine] = []

    def awaited_(engine: Engine) -> AwaitedEngine:
        engines.append(AwaitedEngine(engine, loop))
        return engines[-1]

    try:
        yield awaited_
        for queue in (queue for engine in engines for queue in engine.opened):
            assert queue.check() == []
            queue.close()
    finally:
        loop.close()


@pytest.fixture
def later(engine: Engine, request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Give a function that lets seconds pass: a clock goes on, or all that a schema knows of times goes back."""
    if engine.kind == "lmdb":
        clock: Clock = request.getfixturevalue("clocks")
        clock.mono, clock.wall = now()
        return clock.go_on
    execute, schema = request.getfixturevalue("postgres").execute, request.getfixturevalue("schema")
    return lambda seconds: age(execute, schema, seconds)


@pytest.fixture
def queue(engine: Engine) -> Any:
    """Give an empty queue of either engine."""
    return engine()
