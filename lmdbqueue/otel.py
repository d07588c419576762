"""Figures of queues for OpenTelemetry: the extra ``otel``.

Owns: the instruments. Law: a figure is read when it is collected, and never in between; a queue that cannot be read any
more is left out, and the others are not. Must not know: names and meanings (``_verbs.metrics``).

    from opentelemetry import metrics
    from lmdbqueue.otel import observe

    observe(metrics.get_meter("my.service"), queue)
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lmdbqueue._errors import QueueError
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._verbs.metrics import METRICS, Metric

__all__ = ["observe"]


def observe(meter: Meter, *queues: PersistentQueue[Any]) -> None:
    """Let ``meter`` observe the figures of ``queue.stats()``: ``lmdbqueue.waiting``, ``lmdbqueue.pushed`` and so on.

    Gauges, and counters for ``pushed``, ``removed`` and ``reader.skipped``. Their attributes are the ``path`` of the
    directory and, but for figures of the whole directory, the name of the ``queue``; of ``lmdbqueue.reader.lag`` and
    the like also that of the ``reader``. A queue that was closed is left out from then on. Call it
    once for all queues: two instruments of one name on a meter are an error of OpenTelemetry's.
    """
    for metric in METRICS:
        create = meter.create_observable_counter if metric.is_total else meter.create_observable_gauge
        create(f"lmdbqueue.{metric.key}", [_callback(metric, queues)], metric.unit, metric.meaning)


def _callback(
    metric: Metric, queues: Iterable[PersistentQueue[Any]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_options: CallbackOptions) -> Iterable[Observation]:
        found: dict[tuple[str, ...], Observation] = {}  # a figure of a directory once, whatever queues are in it
        for queue in queues:
            path = os.path.abspath(os.path.join(queue.path, queue.filename))
            with suppress(QueueError):
                for labels, value in metric.samples(path, queue.name, queue.stats()):
                    found[tuple(labels.values())] = Observation(value, labels)
        return list(found.values())

    return observations
