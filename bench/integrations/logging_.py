"""What a log call costs the thread that logs.

Owns: the calls that are timed. Law: each handler gets the same calls, in turns, and the median of the turns counts.
Must not know: what the handlers do.
"""

import logging
import logging.handlers
import queue
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from lmdbqueue import PersistentQueue
from lmdbqueue.integrations.logging import DurableHandler

CALLS = 5_000
TURNS = 9


class Nothing(logging.Handler):
    """Costs what any handler does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing."""


def seconds(handler: logging.Handler, calls: int) -> float:
    """Return what a call takes, wall-clock."""
    logger = logging.Logger("bench")  # noqa: LOG001  (nobody else shall have it)
    logger.addHandler(handler)
    begin = time.perf_counter()
    for number in range(calls):
        logger.info("request %s took %d ms", "/a/b", number)
    took = time.perf_counter() - begin
    handler.flush()
    return took / calls


def run() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        listened: queue.Queue[object] = queue.Queue()
        listener = logging.handlers.QueueListener(listened, Nothing())
        listener.start()
        stack.callback(listener.stop)
        handlers: dict[str, Callable[[], logging.Handler]] = {
            "no handler's work": Nothing,
            "QueueHandler, queue.Queue, nobody listens": lambda: logging.handlers.QueueHandler(queue.Queue()),
            "QueueHandler, queue.Queue, QueueListener": lambda: logging.handlers.QueueHandler(listened),
            "QueueHandler, PersistentQueue off": lambda: logging.handlers.QueueHandler(
                PersistentQueue("pickled", place, durability="off")
            ),
            "DurableHandler off, linger=0.05": lambda: DurableHandler(f"{place}/linger", linger=0.05),
            "DurableHandler interval, linger=0.05": lambda: DurableHandler(
                f"{place}/lingering", durability="interval", linger=0.05
            ),
            "DurableHandler interval": lambda: DurableHandler(f"{place}/interval", durability="interval"),
            "DurableHandler off": lambda: DurableHandler(f"{place}/off"),
            "DurableHandler full": lambda: DurableHandler(f"{place}/full", durability="full"),
            "FileHandler": lambda: logging.FileHandler(f"{place}/file"),
        }
        opened = {name: make() for name, make in handlers.items()}
        took = {name: list[float]() for name in opened}
        for _ in range(TURNS):
            for name, handler in opened.items():
                took[name].append(seconds(handler, CALLS // 10 if name.endswith("full") else CALLS))
        base = median(took["QueueHandler, queue.Queue, nobody listens"])
        print(f"{'a log call':45} {'us':>7}  ratio")
        for name, each in took.items():
            print(f"{name:45} {median(each) * 1e6:7.1f}  {median(each) / base:5.2f}")
        for handler in opened.values():
            handler.close()
