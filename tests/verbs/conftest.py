"""Queues of every engine, for tests of what all of them must do."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from postgres_server import age

import lmdbqueue._local.engine


class Engine:
    """Opens queues of one engine, in one directory or schema."""

    def __init__(self, kind: str, open_: Callable[..., Any], elsewhere: Callable[[], Any]) -> None:
        self.kind = kind
        self._open = open_
        self.elsewhere = elsewhere  # opens a queue that cannot take part in a transaction of these

    def __call__(self, name: str = "queue", **options: Any) -> Any:
        if self.kind == "postgres":
            return self._open(name, **options)
        return self._open(name=name, durability="off", **options)


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


class Clock:
    """The engine's clock, which stands still."""

    def __init__(self) -> None:
        self.now = time.time_ns()
        self.boot = self.now - time.monotonic_ns()

    def monotonic_ns(self) -> int:
        return self.now - self.boot

    def time_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9


@pytest.fixture
def later(engine: Engine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Give a function that lets seconds pass: a clock goes on, or all that a schema knows of times goes back."""
    if engine.kind == "lmdb":
        clock = Clock()
        monkeypatch.setattr(lmdbqueue._local.engine, "time", clock)

        def pass_(seconds: float) -> None:
            clock.now += int(seconds * 1e9)

        return pass_
    execute, schema = request.getfixturevalue("postgres").execute, request.getfixturevalue("schema")
    return lambda seconds: age(execute, schema, seconds)


@pytest.fixture
def queue(engine: Engine) -> Any:
    """Give an empty queue of either engine."""
    return engine()
