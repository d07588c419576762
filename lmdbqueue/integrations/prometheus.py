"""Figures of queues for prometheus_client: the extra ``prometheus``.

Owns: a collector. Law: figures are read when Prometheus asks, never in between; a queue that can no longer be read is
left out, without affecting the others. Must not know: names and meanings (``_verbs.metrics``).

    from prometheus_client import REGISTRY, start_http_server
    from lmdbqueue.integrations.prometheus import QueueCollector

    REGISTRY.register(QueueCollector(queue))
    start_http_server(9100)
"""

from collections.abc import Iterator
from typing import Any

from lmdbqueue._base.errors import without_extra
from lmdbqueue._verbs import metrics
from lmdbqueue._verbs.queue import Queue

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise without_extra(
        __name__, "prometheus_client", "pip install 'lmdbqueue-persistent[prometheus]'", error
    ) from error

__all__ = ["QueueCollector"]


class QueueCollector(Collector):
    """The figures of ``queue.stats()`` as metrics, ``lmdbqueue_items_waiting`` and so on, read at each scrape.

    Names and labels are those of ``lmdbqueue stat --prometheus``. Register one collector for all queues, since
    prometheus_client refuses two with the same names. Closed queues are left out.

    Args:
        queues: Open queues, in directories or on PostgreSQL; of an asynchronous one its attribute ``queue``.

    Raises:
        TypeError: One of them is something else.
    """

    def __init__(self, *queues: Queue[Any]) -> None:
        self._queues = metrics.checked(queues)

    def describe(self) -> Iterator[Metric]:
        """Name the metrics, for the registry."""
        return map(_family, metrics.METRICS)

    def collect(self) -> Iterator[Metric]:
        """Read the figures; called by the registry."""
        figures = list(metrics.figures_of(self._queues))
        for metric in metrics.METRICS:
            family = _family(metric)
            found: dict[tuple[str, ...], tuple[metrics.Labels, float]] = {}  # a directory's figures once
            for path, name, stats in figures:
                for labels, value in metric.samples(path, name, stats):
                    found[tuple(labels.values())] = labels, value
            for labels, value in found.values():
                family.add_sample(metric.name, labels, value)
            if found:
                yield family


def _family(metric: metrics.Metric) -> Metric:
    family = CounterMetricFamily if metric.is_total else GaugeMetricFamily
    return family(metric.name, metric.meaning)
