"""Fixtures that every test file may use."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lmdbqueue import PersistentQueue

settings.register_profile(
    "lmdbqueue", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("lmdbqueue")

OpenQueue = Callable[..., PersistentQueue[Any]]


@pytest.fixture
def open_queue(tmp_path) -> Iterator[OpenQueue]:
    """Open queues under ``tmp_path``; at the end prove each of them whole, and close it."""
    opened: list[PersistentQueue[Any]] = []

    def open_(filename: str = "queue", **options: Any) -> PersistentQueue[Any]:
        queue: PersistentQueue[Any] = PersistentQueue(filename, tmp_path, **options)
        opened.append(queue)
        return queue

    yield open_
    for queue in opened:
        if queue._environment is not None:
            assert queue.check() == []
            queue.close()


@pytest.fixture
def queue(open_queue) -> PersistentQueue[Any]:
    """Give an empty queue."""
    return open_queue()
