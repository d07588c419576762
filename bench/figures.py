"""The figures that README, the bench's README and two pages of docs quote, written from the newest full run.

Owns: which figures a page quotes, and the marks between which they stand. Law: no page has a figure of speed that is
written by hand beside these, so pages never disagree, and none is older than the newest full run. It imports nothing
but the standard library: a test calls it.

``python -m bench.figures`` fills the pages in; ``python -m bench`` does so at the end of a full run.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = ("README.md", "bench/README.md", "docs/comparison.md", "docs/operations.md")
_RESULTS = "bench/results"
_MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_OURS, _BOUNDS = "lmdbqueue", ("raw", "raw, one flush")
_DURABLE = {
    "push": "push, one thread",
    "pop": "pop, one thread",
    "push, 16 threads": "push, 16 threads",
    "push, 8 processes": "push, 8 processes",
    "pop, 8 processes": "pop, 8 processes",
    "push 1,000": "push, 1,000 a call",
    "pop 1,000": "pop, 1,000 a call",
}
_OFF = {"push": "push, not durable", "pop": "pop, not durable"}
_AWAITED, _BESIDE = "await push, 1,000 at once", "push, beside await"


class Run:
    """A full run, read from its file."""

    def __init__(self, name: str) -> None:
        self.name = name
        with open(os.path.join(ROOT, _RESULTS, f"{name}.json"), encoding="utf-8") as file:
            self.content: dict[str, Any] = json.load(file)
        self.medians = {
            (each["mode"], each["measure"], each["contender"]): float(each["median"]) for each in self.content["series"]
        }

    def median(self, mode: str, measure: str, contender: str) -> float | None:
        """Return that figure, or None if it was not measured."""
        return self.medians.get((mode, measure, contender))

    def others(self, mode: str, measure: str) -> list[tuple[float, str]]:
        """Return what each other queue reached, the best first."""
        return sorted(
            (
                (value, name)
                for (found_mode, found, name), value in self.medians.items()
                if (found_mode, found) == (mode, measure) and not name.startswith(_OURS) and name not in _BOUNDS
            ),
            reverse=True,
        )


def newest() -> Run:
    """Return the newest full run."""
    names = [name.removesuffix(".json") for name in os.listdir(os.path.join(ROOT, _RESULTS))]
    return Run(max(name for name in names if name.endswith("-full")))


def filled(page: str, run: Run) -> str:
    """Return the text of a page with the figures of that run between its marks."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        text = file.read()
    place = os.path.relpath(_RESULTS, os.path.dirname(page) or ".")
    return _MARKED.sub(lambda match: match[1] + "\n" + _PARTS[match[2]](run, place) + "\n\n" + match[3], text)


def write() -> list[str]:
    """Fill all pages in from the newest full run; return the names of those that changed."""
    run = newest()
    changed = []
    for page in PAGES:
        text = filled(page, run)
        path = os.path.join(ROOT, page)
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                continue
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        changed.append(page)
    return changed


def _readme(run: Run, place: str) -> str:
    rows = [_beside(run, "durable", measure, words) for measure, words in _DURABLE.items()]
    awaited, single = run.median("durable", _AWAITED, _OURS), run.median("durable", _BESIDE, "raw")
    if awaited and single:
        rows.insert(3, ["`await push`, 1,000 at once", _short(awaited), f"{_short(single)} (one at a time)", "", ""])
    rows += [_beside(run, "off", measure, words) for measure, words in _OFF.items()]
    head = ["items a second", _OURS, "bare LMDB", "the best other queue", "ratio to it"]
    wake = run.median("durable", "wake latency, p50", _OURS)
    woken = (
        f" A waiting consumer in another process gets the item {wake / 1000:.2g} ms after its commit." if wake else ""
    )
    told = f"{_machine(run)} The median of {run.content['scale']['rounds']} rounds.{woken}"
    return "\n\n".join(
        (
            f"![Durable pushes a second by number of threads]({place}/{run.name}-threads.png)",
            _table(head, rows),
            f"{told} [All tables of this run]({place}/{run.name}.md).",
        )
    )


def _comparison(run: Run, place: str) -> str:
    names = [name for _, name in run.others("durable", "push")]
    measures = list(_DURABLE)
    contenders = [f"**{_OURS}**", *names, "raw"]
    rows = [
        [name, *(_cell(run.median("durable", measure, name.strip("*"))) for measure in measures)] for name in contenders
    ]
    off = [f"**{_OURS}**", *(name for _, name in run.others("off", "push")), "raw"]
    relaxed = [[name, *(_cell(run.median("off", verb, name.strip("*"))) for verb in ("push", "pop"))] for name in off]
    rounds = f"the median of {run.content['scale']['rounds']} rounds"
    told = f"{_machine(run)} Items a second, {rounds}; `raw` is bare LMDB, not a queue."
    return "\n\n".join(
        (
            f"{told} [All tables of this run]({place}/{run.name}.md).",
            _table(["every call durable", *_DURABLE.values()], rows),
            _table(["not durable", "push", "pop"], relaxed),
        )
    )


def _bench(run: Run, place: str) -> str:
    goals = [goal for goal in run.content["goals"] if goal["is_met"] is not None]
    missed = [goal for goal in goals if not goal["is_met"]]
    rows = [[goal["goal"], goal["wanted"], _rounded(goal["reached"])] for goal in missed]
    files = f"[tables, goals and pictures]({place}/{run.name}.md), [every value]({place}/{run.name}.json)"
    met = f"{len(goals) - len(missed)} of its {len(goals)} goals were met. The others:"
    told = f"The newest full run: {files}. {_machine(run)} {met}"
    return f"{told}\n\n{_table(['goal', 'wanted', 'reached'], rows)}"


def _operations(run: Run, place: str) -> str:
    modes = ("durable", "between", "off")
    names = [f"**{_OURS}**", *(name for _, name in run.others("between", "push"))]
    rows = [
        [name, *(_cell(run.median(mode, verb, name.strip("*"))) for verb in ("push", "pop") for mode in modes)]
        for name in names
    ]
    told = f"{_machine(run)} [All tables of this run]({place}/{run.name}.md)."
    head = ["items a second", "push: full", "interval", "off", "pop: full", "interval", "off"]
    return f"{_table(head, rows)}\n\n{told}"


_PARTS: dict[str, Callable[[Run, str], str]] = {
    "readme": _readme,
    "comparison": _comparison,
    "bench": _bench,
    "operations": _operations,
}


def _machine(run: Run) -> str:
    facts = run.content["environment"]
    return (
        f"Measured on {facts['date'][:10]}: {facts['cores']} cores ({facts['cpu']}), {facts['file_system']},"
        f" Python {facts['python'].split()[-1]}, lmdbqueue {facts['packages']['lmdbqueue']}."
    )


def _beside(run: Run, mode: str, measure: str, words: str) -> list[str]:
    ours = run.median(mode, measure, _OURS)
    best = [(value, name) for value, name in run.others(mode, measure) if mode == "durable" or name in _synced(run)]
    value, name = best[0] if best else (0.0, "")
    ratio = f"{ours / value:.2f} x" if ours and value else ""
    return [
        words,
        _cell(ours),
        _cell(run.median(mode, measure, "raw")),
        f"{_short(value)} ({name})" if best else "-",
        ratio,
    ]


def _synced(run: Run) -> set[str]:
    """Return the queues that can be durable at all: beside one that never syncs a rate says nothing."""
    return {name for _, name in run.others("durable", "push")}


def _cell(value: float | None) -> str:
    return "-" if value is None else _short(value)


def _short(value: float) -> str:
    """Return the number with three figures that count."""
    return f"{round(value, 2 - math.floor(math.log10(value))):,.0f}"


def _rounded(value: float) -> str:
    rounded = f"{value:.3g}"
    return _short(value) if "e" in rounded else rounded


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(_line(cells) for cells in (head, ["---"] * len(head), *rows))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def marked(text: str) -> Iterator[str]:
    """Yield what stands between marks."""
    return (match[0] for match in _MARKED.finditer(text))


if __name__ == "__main__":
    for changed in write():
        print(changed)
