"""The figures of ``stats()``, for collectors of metrics.

Owns: names, units, meanings and subjects of the figures as metrics; reading them; Prometheus' text format. Law: each
field of ``Stats``, and of its readers, is here once; figures of a directory have no queue as a label, so that they are
not added up; a queue that can no longer be read is left out. Must not know: who asks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from lmdbqueue._base.errors import QueueError
from lmdbqueue._base.values import Stats
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import head_of

Figures = tuple[str, str, Stats]  # path and name of a queue, and the result of its stats()
Labels = dict[str, str]
Sample = tuple[Labels, float]


def figures_of(queues: Iterable[Queue[Any]]) -> Iterator[Figures]:
    """Yield the figures of each queue that can be read."""
    for queue in queues:
        with suppress(QueueError):
            yield head_of(queue).engine.path, queue.name, queue.stats()


def checked(queues: Sequence[Queue[Any]]) -> Sequence[Queue[Any]]:
    """Return these queues; raise ``TypeError`` if one is something else, such as an asynchronous one."""
    for each in queues:
        if not isinstance(each, Queue):
            kind = type(each).__name__
            message = f"metrics are read from a PersistentQueue or PostgresQueue, not {kind}"
            if hasattr(type(each), "transact"):
                message += ": pass its attribute 'queue'"
            raise TypeError(message)
    return queues


def _queue(path: str, name: str, stats: Stats) -> Iterator[tuple[Labels, Any]]:
    yield {"path": path, "queue": name}, stats


def _directory(path: str, _name: str, stats: Stats) -> Iterator[tuple[Labels, Any]]:
    yield {"path": path}, stats


def _reader(path: str, name: str, stats: Stats) -> Iterator[tuple[Labels, Any]]:
    for reader in stats.readers:
        yield {"path": path, "queue": name, "reader": reader.name}, reader


class Metric(NamedTuple):
    """A figure as a metric."""

    field: str  # of Stats or ReaderStats
    name: str  # for Prometheus
    unit: str  # of UCUM, as OpenTelemetry has it
    meaning: str
    is_total: bool = False  # it only grows
    of: Callable[[str, str, Stats], Iterable[tuple[Labels, Any]]] = _queue  # labels, and the object with the field

    def samples(self, path: str, name: str, stats: Stats) -> Iterator[Sample]:
        """Yield each known figure with its labels."""
        text = path.encode("utf-8", "backslashreplace").decode()  # one label that is no text would hide all figures
        for labels, thing in self.of(text, name, stats):
            value: float | None = getattr(thing, self.field)
            if value is not None:
                yield labels, value

    @property
    def key(self) -> str:
        """Its name for OpenTelemetry, within ``lmdbqueue``."""
        return f"reader.{self.field}" if self.of is _reader else self.field


METRICS: Final = (
    Metric("waiting", "lmdbqueue_items_waiting", "{item}", "Waiting items."),
    Metric("leased", "lmdbqueue_items_leased", "{item}", "Leased items."),
    Metric("delayed", "lmdbqueue_items_delayed", "{item}", "Delayed items."),
    Metric("dead", "lmdbqueue_items_dead", "{item}", "Dead letters."),
    Metric("pushed", "lmdbqueue_items_pushed_total", "{item}", "Items ever pushed.", is_total=True),
    Metric("removed", "lmdbqueue_items_removed_total", "{item}", "Items ever removed.", is_total=True),
    Metric("dropped", "lmdbqueue_items_dropped_total", "{item}", "Items dropped by retention.", is_total=True),
    Metric("expired", "lmdbqueue_items_expired_total", "{item}", "Items that expired.", is_total=True),
    Metric("head", "lmdbqueue_head", "1", "Number of the first item that never left."),
    Metric("tail", "lmdbqueue_tail", "1", "Number of the next item to be pushed."),
    Metric("oldest_age", "lmdbqueue_oldest_age_seconds", "s", "Age of the item that has waited longest."),
    Metric("lag", "lmdbqueue_reader_lag", "{item}", "Items not yet passed by a reader.", of=_reader),
    Metric("position", "lmdbqueue_reader_position", "1", "Number of the next item of a reader.", of=_reader),
    Metric("skipped", "lmdbqueue_reader_skipped_total", "{item}", "Items lost to a reader.", is_total=True, of=_reader),
    Metric("seen", "lmdbqueue_reader_seen_seconds", "s", "Time of a reader's last move, since 1970.", of=_reader),
    Metric("bytes_used", "lmdbqueue_used_bytes", "By", "Bytes of pages in use.", of=_directory),
    Metric("bytes_free", "lmdbqueue_free_bytes", "By", "Bytes of empty space in the file.", of=_directory),
    Metric("file_size", "lmdbqueue_file_size_bytes", "By", "Size of the file.", of=_directory),
    Metric(
        "unsynced_seconds",
        "lmdbqueue_unsynced_seconds",
        "s",
        "Age of the oldest call that a power cut could undo.",
        of=_directory,
    ),
    Metric("generation", "lmdbqueue_generation", "1", "Generation of the file.", of=_directory),
    Metric("processes", "lmdbqueue_processes", "{process}", "Processes that have the directory open.", of=_directory),
)


def prometheus_text(figures: Iterable[Figures]) -> str:
    """Return the figures in Prometheus' text format, as the node exporter's textfile collector reads it."""
    figures = list(figures)
    lines: list[str] = []
    for metric in METRICS:
        samples = {
            _sample(metric.name, labels): value
            for path, name, stats in figures
            for labels, value in metric.samples(path, name, stats)
        }
        if samples:
            lines += [
                f"# HELP {metric.name} {metric.meaning}",
                f"# TYPE {metric.name} {'counter' if metric.is_total else 'gauge'}",
                *(f"{sample} {value}" for sample, value in samples.items()),
            ]
    return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels) -> str:
    return name + "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
