"""Figures of the results, as PNG.

Owns: which figures there are. Law: as in the tables, durable figures and others are never in one picture.
"""

import os
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: there may be no screen

from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from bench.measure import Results, Series
from bench.workloads.length import VERBS, length_measure
from bench.workloads.processes import PROCESSES, processes_measure
from bench.workloads.threads import THREADS, threads_measure
from bench.workloads.waiting import WAKE_ALL

_VERB_MEASURES = ("push", "pop", "push 1,000", "peek 1,000", "delete 1,000", "pop 1,000")
_COLUMNS = 3
_PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#999999")
_OURS, _OTHER, _FLOOR = "#c03a2b", "#7f8c9b", "#34495e"


def draw(results: Results, stem: str) -> list[str]:
    """Draw each figure whose data were measured; return the files, which begin with ``stem``."""
    mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=_PALETTE)  # no red: that is this queue's
    files = [_verbs(results, mode, f"{stem}-{mode}.png") for mode in ("durable", "off")]
    files.append(_by_count(results, "threads", THREADS, threads_measure, f"{stem}-threads.png"))
    files.append(
        _by_count(results, "processes", PROCESSES, lambda n: processes_measure("push", n), f"{stem}-processes.png")
    )
    files.append(_lengths(results, f"{stem}-length.png"))
    files.append(_wakes(results, f"{stem}-wake.png"))
    return [os.path.basename(file) for file in files if file]


def _verbs(results: Results, mode: str, file: str) -> str:
    panels = [(measure, results.all_of(mode, measure)) for measure in _VERB_MEASURES]
    panels = [(measure, all_series) for measure, all_series in panels if all_series]
    if not panels:
        return ""
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(15, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (measure, all_series) in zip(axes.flat, panels, strict=False):
        ordered = sorted(all_series, key=lambda series: series.median)
        medians = [series.median for series in ordered]
        spread = [
            [series.median - min(series.values) for series in ordered],
            [max(series.values) - series.median for series in ordered],
        ]
        names = [series.contender for series in ordered]
        axis.barh(names, medians, xerr=spread, color=list(map(_color, names)), ecolor="#222222")
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set_title(measure)
        axis.set_xlabel("items/s")
    figure.suptitle(f"Throughput by verb, {'durable' if mode == 'durable' else 'not durable'}: median, least, greatest")
    return _save(figure, file)


def _by_count(results: Results, what: str, counts: Sequence[int], measure: Any, file: str) -> str:
    """Draw durable pushes by the number of threads or processes that push together."""
    names = list(dict.fromkeys(series.contender for series in results.series if series.workload == what))
    if not names:
        return ""
    figure, axis = plt.subplots(figsize=(7.5, 5))
    for name in names:
        found = [(n, results.find("durable", name, measure(n))) for n in counts]
        points = [(n, series) for n, series in found if series]
        _line(axis, name, points)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(counts, list(map(str, counts)))
    axis.set_xlabel(what)
    axis.set_ylabel("items/s, all together")
    axis.set_title(f"Durable pushes by number of {what}")
    axis.legend(fontsize=8)
    return _save(figure, file)


def _lengths(results: Results, file: str) -> str:
    of_it = [series for series in results.series if series.workload == "length"]
    if not of_it:
        return ""
    names = list(dict.fromkeys(series.contender for series in of_it))
    lengths = sorted({int(series.measure.rpartition(" ")[2].replace(",", "")) for series in of_it})
    figure, axes = plt.subplots(1, len(VERBS), figsize=(4.5 * len(VERBS), 4.2), sharey=True)
    for axis, verb in zip(axes, VERBS, strict=True):
        for name in names:
            found = [(length, results.find("off", name, length_measure(verb, length))) for length in lengths]
            _line(axis, name, [(length, series) for length, series in found if series])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(verb)
        axis.set_xlabel("items in the queue")
    axes[0].set_ylabel("µs a call, not durable")
    axes[-1].legend(fontsize=8)
    figure.suptitle("Cost of a call by the length of the queue")
    return _save(figure, file)


def _wakes(results: Results, file: str) -> str:
    all_series = [series for series in results.all_of("durable", WAKE_ALL) if series.values]
    if not all_series:
        return ""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for series in all_series:
        latencies = sorted(max(1.0, value) for value in series.values)  # a logarithm has no 0
        shares = [(index + 1) / len(latencies) for index in range(len(latencies))]
        axis.step(latencies, shares, label=series.contender, color=_color(series.contender, None))
    axis.set_xscale("log")
    axis.set_xlabel("µs from the return of push to the item in hand of a waiter in another process")
    axis.set_ylabel("share of the wakes")
    axis.set_title("Wake latency, durable")
    axis.legend(fontsize=8)
    return _save(figure, file)


def _line(axis: Any, name: str, points: Sequence[tuple[int, Series]]) -> None:
    axis.errorbar(
        [n for n, _ in points],
        [series.median for _, series in points],
        yerr=[
            [series.median - min(series.values) for _, series in points],
            [max(series.values) - series.median for _, series in points],
        ],
        label=name,
        color=_color(name, None),
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=2.5 if name.startswith("lmdbqueue") else 1.3,
    )


def _color(name: str, other: str | None = _OTHER) -> str | None:
    """Return the colour of this queue, of the floor, or of the others."""
    if name.startswith("lmdbqueue"):
        return _OURS
    return _FLOOR if name.startswith("raw") else other


def _save(figure: Any, file: str) -> str:
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
