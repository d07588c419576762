"""How far something has come, drawn on a terminal.

Owns: the bars of the command line. Law: without a terminal at stderr nothing is drawn, and nothing of ``rich`` is
imported. Must not know: what is under way.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

R = TypeVar("R")
Report = Callable[[int, int | None], None]  # done and total; None: not known

_LOOK: Final = 0.1  # seconds between two looks at a file that grows


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """Give a function that draws a bar from its first call on, until the block ends."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415  (for a terminal only)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    count = DownloadColumn(binary_units=True) if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)

    def report(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


def while_it_grows(what: str, place: str, total: int, fn: Callable[[], R]) -> R:
    """Return ``fn()``, which writes a draft (``.tmp``) of about ``total`` bytes into the directory ``place``."""
    with progress(what, in_bytes=True) as report:
        report(0, total)
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK):
                report(min(_drafts(place), total), total)

        watcher = threading.Thread(target=look, daemon=True)
        if sys.stderr.isatty():
            watcher.start()
        try:
            return fn()
        finally:
            ended.set()
            if watcher.is_alive():
                watcher.join()


def _drafts(place: str) -> int:
    try:
        return max((entry.stat().st_size for entry in os.scandir(place) if entry.name.endswith(".tmp")), default=0)
    except OSError:  # it came and went in between
        return 0
