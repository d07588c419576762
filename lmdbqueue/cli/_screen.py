"""The screen of ``lmdbqueue watch``.

Owns: the drawing of present and earlier figures. Law: a frame depends on its samples alone, so that it can be tested.
Must not know: where samples come from, when the next one is due.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from lmdbqueue._base.values import ReaderStats, Stats

WIDTH: Final = 40  # of a sparkline
_RAMPS: Final = {True: "_.-=+*%#", False: "▁▂▃▄▅▆▇█"}  # by ascii_only
_READERS: Final = 10  # readers that are shown
_TIMES: Final = ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"))
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Sample(NamedTuple):
    """The result of a queue's ``stats()`` at a time in seconds."""

    time: float
    stats: Stats


def frame(title: str, samples: Sequence[Sample], *, ascii_only: bool = False) -> RenderableType:
    """Draw the newest of the samples, and the course of all."""
    now = samples[-1].stats
    items = Table.grid(padding=(0, 2))
    for justify in ("right", "right", "right", "left"):
        items.add_column(justify=justify, no_wrap=True)
    depths = [float(sample.stats.waiting) for sample in samples]
    items.add_row("waiting", f"[bold]{now.waiting:,}[/]", "", f"[cyan]{_sparkline(depths, ascii_only)}[/]")
    for name, field, colour in (("pushed", _pushed, "green"), ("removed", _removed, "blue")):
        rates = _rates(samples, field)
        rate = f"{rates[-1]:,.1f}/s" if rates else "-"
        items.add_row(name, f"{field(now):,}", rate, f"[{colour}]{_sparkline(rates, ascii_only)}[/]")
    return Panel(Group(items, "", *_rest(now)), title=escape(title), title_align="left", expand=False)


def _rest(now: Stats) -> Iterator[str]:
    dead = f"[bold red]{now.dead:,} dead[/]" if now.dead else "0 dead"
    yield f"{now.leased:,} leased, {now.delayed:,} delayed, {dead}"
    if now.oldest_age is not None:
        yield f"the oldest has waited {_duration(now.oldest_age)}"
    yield from _readers(now.readers)
    yield f"file {_size(now.file_size or 0)}, of which {_size(now.bytes_free or 0)} is empty"
    if now.processes is not None:
        yield f"open in {now.processes:,} process{'es' * (now.processes > 1)}, this one included"


def _readers(readers: Sequence[ReaderStats]) -> Iterator[str]:
    """Yield a line for each of the readers that are furthest behind."""
    for each in sorted(readers, key=lambda each: -each.lag)[:_READERS]:
        lost = f", [bold red]{each.skipped:,} lost[/]" if each.skipped else ""
        yield f"reader {escape(each.name)}: {each.lag:,} behind{lost}"
    if len(readers) > _READERS:
        yield f"and {len(readers) - _READERS:,} readers less far behind"


def _pushed(stats: Stats) -> int:
    return stats.pushed


def _removed(stats: Stats) -> int:
    return stats.removed


def _rates(samples: Sequence[Sample], field: Callable[[Stats], int]) -> list[float]:
    """Return the growth of a field per second, between each sample and the next."""
    return [
        max(0, field(after.stats) - field(before.stats)) / (after.time - before.time)
        for before, after in pairwise(samples)
        if after.time > before.time
    ]


def _sparkline(values: Sequence[float], ascii_only: bool) -> str:
    """Draw the last values, from 0 to the largest of them."""
    values = values[-WIDTH:]
    ramp = _RAMPS[ascii_only]
    top = max(values, default=0) or 1
    return "".join(ramp[min(len(ramp) - 1, int(value / top * len(ramp)))] for value in values).rjust(WIDTH)


def _duration(seconds: float) -> str:
    unit, name = next((each for each in _TIMES if seconds >= 2 * each[0]), _TIMES[-1])
    return f"{seconds / unit:,.0f} {name}"


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004  (the next unit)
            return f"{count:,.0f} {unit}" if unit == _UNITS[0] else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError
