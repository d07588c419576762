"""Progress bars on a terminal.

Owns: the bars of the command line. Law: without a terminal at stderr nothing is drawn; ``rich`` is not imported unless
a bar is shown. Must not know: whose progress it is.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from lmdbqueue._host.threads import beating

if TYPE_CHECKING:
    from rich.progress import Progress

R = TypeVar("R")

_LOOK: Final = 0.1  # seconds between two checks of a growing file


class Report(Protocol):
    """Report the amount done, the total (None: unknown), and anything else worth showing."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None: ...


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """Yield a function that draws a bar, from its first call until the block ends."""
    if not sys.stderr.isatty():
        yield lambda done, total, note="": None  # noqa: ARG005
        return
    bars: list[Progress] = []

    def report(done: int, total: int | None, note: str = "") -> None:
        if not bars:
            bars.append(_started(what, total, in_bytes=in_bytes))
        told = f"{what}; {note}" if note else what
        bars[0].update(bars[0].task_ids[0], completed=done, total=total, description=told)

    try:
        yield report
    finally:
        for bar in bars:
            bar.stop()


def _started(what: str, total: int | None, *, in_bytes: bool) -> "Progress":
    from rich import progress as rich  # noqa: PLC0415  (0.1 s, only where a bar is shown)
    from rich.console import Console  # noqa: PLC0415

    count = rich.DownloadColumn(binary_units=True) if in_bytes else rich.MofNCompleteColumn()
    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), count, rich.TimeElapsedColumn()
    bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar


def while_it_grows(what: str, place: str, total: int, fn: Callable[[], R]) -> R:
    """Return ``fn()``, which writes a draft (``.tmp``) of about ``total`` bytes into the directory ``place``."""
    with progress(what, in_bytes=True) as report:
        if not sys.stderr.isatty():
            return fn()
        report(0, total)
        with beating(lambda: report(min(_drafts(place), total), total), _LOOK):
            return fn()


def _drafts(place: str) -> int:
    try:
        return max((entry.stat().st_size for entry in os.scandir(place) if entry.name.endswith(".tmp")), default=0)
    except OSError:  # the file came and went in between
        return 0
