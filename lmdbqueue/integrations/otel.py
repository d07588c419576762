"""Figures of queues for OpenTelemetry: the extra ``otel``.

Owns: the instruments. Law: a figure is read when it is collected, and never in between; all figures of a queue in one
collection are of one moment; a queue that can no longer be read is left out, without affecting the others. Must not
know: names and meanings (``_verbs.metrics``).

OpenTelemetry asks each instrument by itself. So the first one asked reads all queues, and the others of that collection
use what it has read: each reading serves an instrument once, and for a second at most.

    from opentelemetry import metrics
    from lmdbqueue.integrations.otel import observe

    observe(metrics.get_meter("my.service"), queue)
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from lmdbqueue._base.errors import without_extra
from lmdbqueue._verbs.metrics import METRICS, Figures, Metric, checked, figures_of
from lmdbqueue._verbs.queue import Queue

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
except ImportError as error:
    raise without_extra(__name__, "opentelemetry-api", "pip install 'lmdbqueue-persistent[otel]'", error) from error

__all__ = ["observe"]

_FRESH: Final = 1.0  # seconds that a reading may serve the instruments of a collection


def observe(meter: Meter, *queues: Queue[Any]) -> None:
    """Report the figures of ``queue.stats()`` to OpenTelemetry: ``lmdbqueue.waiting``, ``lmdbqueue.pushed`` and so on.

    They are gauges, except the counters ``pushed``, ``removed`` and ``reader.skipped``. Their attributes are the
    ``path`` of the directory; the name of the ``queue``, except for figures of the whole directory; and the ``reader``
    for ``lmdbqueue.reader.lag`` and the like. Closed queues are left out. Call it once for all queues: OpenTelemetry
    refuses two instruments of one name on a meter.

    Args:
        meter: The meter that reports.
        *queues: Open queues, in directories or on PostgreSQL; of an asynchronous one its attribute ``queue``.

    Raises:
        TypeError: One of them is something else.
    """
    readings = _Readings(checked(queues))
    for metric in METRICS:
        create = meter.create_observable_counter if metric.is_total else meter.create_observable_gauge
        callback = partial(readings.observations, metric)
        create(f"lmdbqueue.{metric.key}", [callback], metric.unit, metric.meaning)


class _Readings:
    """The figures of all queues, read once a collection."""

    def __init__(self, queues: Sequence[Queue[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = queues
        self._clock = clock
        self._found: list[Figures] = []
        self._unserved: set[str] = set()  # instruments that the last reading has not served
        self._until = 0.0  # it serves none from then on, by the clock, in seconds

    def observations(self, metric: Metric, _options: CallbackOptions) -> Iterable[Observation]:
        """Return the observations of one instrument; its callback."""
        if metric.key not in self._unserved or self._clock() > self._until:
            self._found = list(figures_of(self._queues))
            self._unserved = {each.key for each in METRICS}
            self._until = self._clock() + _FRESH
        self._unserved.discard(metric.key)
        found: dict[tuple[str, ...], Observation] = {}  # a directory's figures once, for all its queues
        for figures in self._found:
            for labels, value in metric.samples(*figures):
                found[tuple(labels.values())] = Observation(value, labels)
        return list(found.values())
