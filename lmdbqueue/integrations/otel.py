"""Figures of queues for OpenTelemetry: the extra ``otel``.

Owns: the instruments. Law: a figure is read when it is collected, and never in between; a queue that can no longer be
read is left out, without affecting the others. Must not know: names and meanings (``_verbs.metrics``).

    from opentelemetry import metrics
    from lmdbqueue.integrations.otel import observe

    observe(metrics.get_meter("my.service"), queue)
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lmdbqueue._errors import QueueError
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.metrics import METRICS, Metric

__all__ = ["observe"]


def observe(meter: Meter, *queues: PersistentQueue[Any]) -> None:
    """Report the figures of ``queue.stats()`` to OpenTelemetry: ``lmdbqueue.waiting``, ``lmdbqueue.pushed`` and so on.

    They are gauges, except the counters ``pushed``, ``removed`` and ``reader.skipped``. Their attributes are the
    ``path`` of the directory; the name of the ``queue``, except for figures of the whole directory; and the ``reader``
    for ``lmdbqueue.reader.lag`` and the like. Closed queues are left out. Call it once for all queues: OpenTelemetry
    refuses two instruments of one name on a meter.

    Args:
        meter: The meter that reports.
        *queues: Open queues.
    """
    for metric in METRICS:
        create = meter.create_observable_counter if metric.is_total else meter.create_observable_gauge
        create(f"lmdbqueue.{metric.key}", [_callback(metric, queues)], metric.unit, metric.meaning)


def _callback(
    metric: Metric, queues: Iterable[PersistentQueue[Any]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_options: CallbackOptions) -> Iterable[Observation]:
        found: dict[tuple[str, ...], Observation] = {}  # a directory's figures once, for all its queues
        for queue in queues:
            path = local_engine_of(queue).path
            with suppress(QueueError):
                for labels, value in metric.samples(path, queue.name, queue.stats()):
                    found[tuple(labels.values())] = Observation(value, labels)
        return list(found.values())

    return observations
