"""What ``stats()`` says, for those who collect figures.

Owns: names, units and meanings of the figures as metrics; Prometheus' text. Law: each field of ``Stats`` is here once;
what is of a directory has no queue as a label, so that nobody adds it up. Must not know: who asks, how a figure is had.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from lmdbqueue._stats import Stats

Figures = tuple[str, str, Stats]  # path and name of a queue, and what its stats() said


class Metric(NamedTuple):
    """A field of ``Stats`` as a metric."""

    field: str
    name: str  # for Prometheus
    unit: str  # of UCUM, as OpenTelemetry has it
    meaning: str
    is_total: bool = False  # it only grows
    is_of_queue: bool = True  # else of the directory

    def value(self, stats: Stats) -> int | None:
        """Return the figure; None if it is not known."""
        found: int | None = getattr(stats, self.field)
        return found

    def labels(self, path: str, name: str) -> dict[str, str]:
        """Return what tells this figure from that of others."""
        return {"path": path, "queue": name} if self.is_of_queue else {"path": path}


METRICS: Final = (
    Metric("waiting", "lmdbqueue_items_waiting", "{item}", "Items that wait."),
    Metric("leased", "lmdbqueue_items_leased", "{item}", "Items that consumers hold."),
    Metric("delayed", "lmdbqueue_items_delayed", "{item}", "Items that come due later."),
    Metric("dead", "lmdbqueue_items_dead", "{item}", "Dead letters."),
    Metric("pushed", "lmdbqueue_items_pushed_total", "{item}", "Items ever pushed.", is_total=True),
    Metric("removed", "lmdbqueue_items_removed_total", "{item}", "Items ever removed.", is_total=True),
    Metric("head", "lmdbqueue_head", "1", "Number of the first item that never left."),
    Metric("tail", "lmdbqueue_tail", "1", "Number that the next item gets."),
    Metric("bytes_used", "lmdbqueue_used_bytes", "By", "Bytes of pages in use.", is_of_queue=False),
    Metric("bytes_free", "lmdbqueue_free_bytes", "By", "Bytes that a flush would give back.", is_of_queue=False),
    Metric("file_size", "lmdbqueue_file_size_bytes", "By", "Size of the file.", is_of_queue=False),
    Metric("generation", "lmdbqueue_generation", "1", "Generation of the file.", is_of_queue=False),
    Metric("processes", "lmdbqueue_processes", "{process}", "Processes that have it open.", is_of_queue=False),
)


def prometheus_text(figures: Iterable[Figures]) -> str:
    """Return the figures in Prometheus' text format, as the node exporter's textfile collector reads it."""
    figures = list(figures)
    lines: list[str] = []
    for metric in METRICS:
        samples = {
            _sample(metric.name, metric.labels(path, name)): value
            for path, name, stats in figures
            if (value := metric.value(stats)) is not None
        }
        if samples:
            lines += [
                f"# HELP {metric.name} {metric.meaning}",
                f"# TYPE {metric.name} {'counter' if metric.is_total else 'gauge'}",
                *(f"{sample} {value}" for sample, value in samples.items()),
            ]
    return "\n".join(lines) + "\n"


def _sample(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
