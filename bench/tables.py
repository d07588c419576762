"""The results as Markdown: what is durable, what is not, and the goals.

Law: durable figures and others never stand in one table. A cell is the median over the rounds, with the
least and the greatest in brackets.
"""

from collections.abc import Callable, Sequence
from typing import Any

from bench.goals import Verdict
from bench.measure import Results, Series
from bench.peers import Peer
from bench.workloads.waiting import WAKE_ALL

_HEADINGS = {
    "durable": "Durable: every call has synced before it returns",
    "durable, commits of 2 ms": "Durable, on a server whose commits take 2 ms at the least (`commit_delay`)",
    "durable, with a synchronous standby": "Durable, on a server and its synchronous standby, both on this disk",
    "durable, in memory": "Durable, where a flush costs nothing: on a file system in memory",
    "between": "Between: a power cut takes back the calls of the last moment, and breaks nothing",
    "off": "Not durable: a power cut may take what was acknowledged",
    "": "Neither",
}
_VERDICTS = {True: "met", False: "missed", None: "not measured"}


def as_markdown(
    environment: dict[str, Any], results: Results, verdicts: Sequence[Verdict], peers: Sequence[type[Peer]]
) -> str:
    """Return the whole report."""
    parts = ["# Results of the bench", _environment(environment)]
    for mode, heading in _HEADINGS.items():
        shown = [series for series in results.series if series.mode == mode and series.measure != WAKE_ALL]
        if shown:
            parts += [f"## {heading}", *_how(mode, peers), *_tables(shown)]
    parts += ["## Goals", _goals(verdicts)]
    if results.remarks:
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in results.remarks)]
    return "\n\n".join(parts) + "\n"


def _environment(environment: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    facts = [f"- {name.replace('_', ' ')}: {fact}" for name, fact in environment.items() if name != "packages"]
    return "\n".join([*facts, f"- packages: {packages}"])


def _how(mode: str, peers: Sequence[type[Peer]]) -> list[str]:
    """Return how each queue was put into that mode."""
    if not mode:
        return []
    how: dict[str, Callable[[type[Peer]], str | None]] = {
        "durable": lambda peer: peer.durable_by,
        "between": lambda peer: peer.between_by,
        "off": lambda peer: peer.relaxed_by,
    }
    lines = [
        f"- {peer.name}: {how[mode.partition(',')[0]](peer)}"
        + ("" if peer.pop_is == "one call" else f"; a pop is {peer.pop_is}")
        for peer in peers
        if peer.can_be(mode.partition(",")[0]) and (peer.is_bound or not peer.is_variant)
    ]
    return ["\n".join(lines)]


def _tables(shown: list[Series]) -> list[str]:
    """Return a table for each workload: contenders down and measures across, or the longer of them down."""
    tables = []
    for workload in dict.fromkeys(series.workload for series in shown):
        of_it = [series for series in shown if series.workload == workload]
        cells = {(series.contender, series.measure): _cell(series) for series in of_it}
        contenders = list(dict.fromkeys(series.contender for series in of_it))
        measures = list(dict.fromkeys(series.measure for series in of_it))
        corner = f"{workload}, {of_it[0].unit}"
        if len(measures) > max(len(contenders), 8):
            rows = [[measure, *(cells.get((name, measure), "-") for name in contenders)] for measure in measures]
            tables.append(_table([corner, *contenders], rows))
        else:
            rows = [[name, *(cells.get((name, measure), "-") for measure in measures)] for name in contenders]
            tables.append(_table([corner, *measures], rows))
    return tables


def _goals(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [
            verdict.goal,
            verdict.wanted,
            short(verdict.reached) if verdict.values else "-",
            f"{short(min(verdict.values))} to {short(max(verdict.values))}" if verdict.values else "-",
            _VERDICTS[verdict.is_met],
        ]
        for verdict in verdicts
    ]
    return _table(["goal", "wanted", "reached", "from round to round", ""], rows)


def _cell(series: Series) -> str:
    if len(series.values) == 1:
        return short(series.median)
    return f"{short(series.median)} ({short(min(series.values))} to {short(max(series.values))})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def short(value: float) -> str:
    """Return the number with three figures that count: 5,270, 12.3k, 1.52."""
    for least, divisor, suffix in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / divisor:.3g}{suffix}" if value < least * 1e2 else f"{value / divisor:,.0f}{suffix}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three figures
