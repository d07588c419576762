"""The pictures of ``lmdbqueue watch`` in the documents, drawn by its own screen.

Owns: the samples that they show. Law: only the figures are made up; what is drawn of them is the program's. Must not
know: which page shows a picture.

``python tests/support/pictures.py`` writes all of them to ``docs/_static``.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from io import StringIO
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from lmdbqueue._base.values import ReaderStats, Stats
from lmdbqueue.cli._screen import WIDTH, Sample, frame

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs", "_static")
_SVG = '<svg role="img" aria-label="TITLE" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">\n\
<style>\n\
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}\n\
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}\n\
{styles}\n\
</style>\n\
<defs>\n\
<clipPath id="{unique_id}-clip-terminal">\n\
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />\n\
</clipPath>\n\
{lines}\n\
</defs>\n\
{chrome}\n\
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">\n\
{backgrounds}\n\
<g class="{unique_id}-matrix">\n\
{matrix}\n\
</g>\n\
</g>\n\
</svg>\n'  # that of rich, without fonts from elsewhere


def workers() -> Iterator[Sample]:
    """A queue whose workers lag behind for a while, with an item that always fails."""
    pushed, removed = 8_000, 7_900
    for second in range(WIDTH + 1):
        pushed += round(120 + 90 * math.sin(second / 5))
        removed = min(pushed, removed + round(135 + 8 * math.sin(second * 1.7)))
        waiting = pushed - removed
        yield Sample(
            second,
            Stats(
                waiting,
                leased=8,
                delayed=3,
                dead=1,
                pushed=pushed + 12,
                removed=removed,
                head=removed,
                tail=pushed,
                oldest_age=waiting / 135,
                bytes_used=120 * waiting,
                bytes_free=1_400_000,
                file_size=2_100_000,
                processes=6,
            ),
        )


def readers() -> Iterator[Sample]:
    """A queue that keeps 5,000 items, with a reader that loses some."""
    pushed, lost = 40_000, 0
    for second in range(WIDTH + 1):
        pushed += round(800 + 300 * math.sin(second / 6))
        search = min(5_000, 1_000 + 130 * second)
        lost += max(0, 1_000 + 130 * second - 5_000) // 3
        passed = pushed - 5_000
        yield Sample(
            second,
            Stats(
                5_000,
                leased=0,
                delayed=0,
                dead=0,
                pushed=pushed,
                removed=passed,
                head=passed,
                tail=pushed,
                oldest_age=5_000 / 800,
                readers=(
                    ReaderStats("audit", pushed, 0, 0, 0.0),
                    ReaderStats("billing", pushed - 40 - second, 40 + second, 0, 0.0),
                    ReaderStats("search", pushed - search, search, lost, 0.0),
                ),
                bytes_used=700_000,
                bytes_free=380_000,
                file_size=3_200_000,
                processes=5,
            ),
        )


PICTURES: dict[str, tuple[str, Callable[[], Iterator[Sample]]]] = {
    "watch.svg": ("jobs", workers),
    "watch-readers.svg": ("events", readers),
}


def screen(name: str) -> Console:
    """Return a console that has printed what a picture shows."""
    path, samples = PICTURES[name]
    console = Console(
        record=True, width=72, file=StringIO(), highlight=False, force_terminal=True, legacy_windows=False
    )
    console.print(frame(f"{path}, queue 'queue'", list(samples())))
    return console


def svg(name: str) -> str:
    """Return a picture."""
    title = f"lmdbqueue watch {PICTURES[name][0]}"
    identity = name.removesuffix(".svg")
    return screen(name).export_svg(
        title=title, theme=MONOKAI, code_format=_SVG.replace("TITLE", title), unique_id=identity
    )


def words(picture: str) -> str:
    """Return the text that a picture shows, without blanks."""
    tree = ET.fromstring(picture)  # noqa: S314  (it is ours)
    texts = [node for node in tree.iter("{http://www.w3.org/2000/svg}text") if "-title" not in node.get("class", "")]
    return re.sub(r"\s", "", "".join("".join(node.itertext()) for node in texts))


def printed(name: str) -> str:
    """Return the text that the program prints now, without blanks."""
    return re.sub(r"\s", "", Text.from_ansi(screen(name).export_text()).plain)


if __name__ == "__main__":
    for each in PICTURES:
        with open(os.path.join(FOLDER, each), "w", encoding="utf-8") as file:
            file.write(svg(each))
