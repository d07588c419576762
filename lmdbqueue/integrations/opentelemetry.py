r"""Telemetry that survives outages of the collector and the death of the program: the extra ``opentelemetry``.

Owns: the stored form of spans, log records and metrics (OTLP requests, as bytes), and the thread that sends them. Law:
an export ends when its request is stored, and never waits for a collector; a request leaves the queue once the
collector has answered. Must not know: what is in the requests.

    provider.add_span_processor(
        BatchSpanProcessor(DurableSpanExporter("telemetry", "http://localhost:4318"))
    )

Without a target, another or a later process sends:

    lmdbqueue forward telemetry http://localhost:4318/v1/traces --name traces --bytes \
        --header 'Content-Type: application/x-protobuf' --follow

Trace context travels with items, in their headers: ``queue.push(item, headers=inject())`` here, and
``queue.work(traced(handler))`` there.
"""

import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from lmdbqueue._base.errors import NestedCallError, QueueError, TransactionError, told, without_extra
from lmdbqueue._base.format import Durability
from lmdbqueue._host.threads import Flag
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._verbs.batch import Target
from lmdbqueue._verbs.worker import Job, function_of, takes_job
from lmdbqueue.forward import Forwarder, HttpTarget, as_bytes
from lmdbqueue.integrations._later import Later
from lmdbqueue.integrations._options import options_for

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
except ImportError as error:
    raise without_extra(
        __name__,
        "OpenTelemetry's SDK and its OTLP encoders",
        "pip install 'lmdbqueue-persistent[opentelemetry]'",
        error,
    ) from error

__all__ = [
    "DurableLogExporter",
    "DurableMetricExporter",
    "DurableSpanExporter",
    "collector",
    "extract",
    "inject",
    "traced",
]

_AGAIN: Final = 30.0  # seconds until the next attempt to send, after an error of the disk
_PATIENCE: Final = 5.0  # seconds for which a shutdown waits for the request under way


def collector(url: str, signal: str, headers: dict[str, str] | None = None) -> HttpTarget:
    """Return a target that sends the requests of a signal (``traces``, ``logs``, ``metrics``) to an OTLP/HTTP endpoint.

    Args:
        url: The address of the collector, such as ``http://localhost:4318``.
        signal: The last part of the path, after ``/v1/``.
        headers: More headers, such as ``Authorization``.
    """
    given = {"Content-Type": "application/x-protobuf", **(headers or {})}
    return HttpTarget(f"{url.rstrip('/')}/v1/{signal}", given, as_bytes, loads=bytes)


class _Store:
    """A queue of requests, and the thread that sends them if there is a target."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        target: Target | str | None,
        retain: int | None,
        durability: Durability | None,
    ) -> None:
        options = options_for(path, durability, "off")
        self.queue = PersistentQueue[bytes](path, dumps=bytes, loads=bytes, name=name, **options)
        self.queue.retain(retain)
        self._later: Later[bytes] = Later(self.queue, lambda some: self.queue.push(list(some)), self._failed)
        self._forwarder: Forwarder | None = None
        self._stopped = Flag()
        self._thread: threading.Thread | None = None
        if target is not None:
            self._target = collector(target, name) if isinstance(target, str) else target
            self._forwarder = Forwarder(self.queue, self._target, follow=True)
            self._thread = threading.Thread(target=self._send, name=f"lmdbqueue-{name}", daemon=True)
            self._thread.start()

    def _send(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))  # otherwise sending spans would make spans
        while self._forwarder is not None:
            try:
                self._forwarder.run()
            except Exception:  # stored requests stay
                logging.getLogger("lmdbqueue").exception("telemetry is not sent; the next try is in %g s", _AGAIN)
            while not self._stopped.wait(_AGAIN):
                with suppress(QueueError):
                    self._forwarder = Forwarder(self.queue, self._target, follow=True)
                    break
            else:
                return
            if self._stopped.is_set():  # stopped since
                self._forwarder.stop()

    def push_each(self, encode: Callable[[Sequence[Any]], Any], records: Sequence[Any]) -> bool:
        """Store a request with some records; return whether all were stored.

        If the request cannot be encoded, each record has one of its own, so that one that cannot does not take the
        others with it.
        """
        try:
            request = encode(records)
        except Exception as error:
            if len(records) > 1:
                stored = [self.push_each(encode, [record]) for record in records]
                return all(stored)
            logging.getLogger("lmdbqueue").warning("telemetry cannot be encoded: %s", told(error))
            return False
        return self.push(request)

    def push(self, request: Any) -> bool:
        """Store a request; return whether it was stored.

        In a transaction of another directory, and during a call on this one, a thread stores it a moment later.
        """
        payload: bytes = request.SerializeToString()
        try:
            try:
                self.queue.push(payload)
            except (TransactionError, NestedCallError):
                self._later.add(payload)
        except QueueError:
            self._failed(payload)
            return False
        return True

    def _failed(self, _: bytes) -> None:
        logging.getLogger("lmdbqueue").warning("telemetry was not stored: %s", sys.exception())

    def flush(self, timeout_millis: float) -> bool:
        """Wait until all exported data are stored; return whether they are."""
        return self._later.flush(timeout_millis / 1000)

    def close(self, timeout_millis: float) -> None:
        """Stop sending, and close the queue; the next program sends the rest."""
        deadline = time.monotonic() + timeout_millis / 1000
        self._stopped.set()
        if self._forwarder is not None and self._thread is not None:
            self._forwarder.stop()
            self._thread.join(min(_PATIENCE, timeout_millis / 1000))
        self._later.close(max(0.0, deadline - time.monotonic()))


class DurableSpanExporter(SpanExporter):
    """Store spans, and send them to a collector when it answers.

    Give it to a ``BatchSpanProcessor``. Exported spans survive the program; spans in the processor's memory do not, so
    a short ``schedule_delay_millis`` loses less in a kill.

    Args:
        path: The directory of the queue; created if it is missing; its parent must exist. The exporters of all three
            signals can share it.
        target: The URL of an OTLP/HTTP collector, a ``Target``, or None: another process forwards.
        name: The queue in the directory.
        retain: The number of newest requests to keep while no collector answers; None: all.
        durability: ``"off"``; ``"interval"``: a power cut loses the last moments at most; ``"full"``: it loses nothing.
            Fixed when the directory is created. None: that of the directory, ``"off"`` for a new one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: Target | str | None = None,
        *,
        name: str = "traces",
        retain: int | None = 100_000,
        durability: Durability | None = None,
    ) -> None:
        self._store = _Store(path, name, target, retain, durability)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store spans; called by the processor."""
        return SpanExportResult.SUCCESS if self._store.push_each(encode_spans, spans) else SpanExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Close the queue; the next program sends unsent requests.

        Args:
            timeout_millis: Milliseconds to wait at most, after which a thread goes on.
        """
        self._store.close(timeout_millis)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until all exported data are stored; return whether they are."""
        return self._store.flush(timeout_millis)


class DurableLogExporter(LogRecordExporter):
    """Store log records, and send them to a collector when it answers: see ``DurableSpanExporter``.

    Give it to a ``BatchLogRecordProcessor``.

    Args:
        path: The directory of the queue; created if it is missing.
        target: The URL of an OTLP/HTTP collector, a ``Target``, or None: another process forwards.
        name: The queue in the directory.
        retain: The number of newest requests to keep while no collector answers; None: all.
        durability: ``"off"``; ``"interval"``: a power cut loses the last moments at most; ``"full"``: it loses nothing.
            Fixed when the directory is created. None: that of the directory, ``"off"`` for a new one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: Target | str | None = None,
        *,
        name: str = "logs",
        retain: int | None = 100_000,
        durability: Durability | None = None,
    ) -> None:
        self._store = _Store(path, name, target, retain, durability)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Store log records; called by the processor."""
        is_stored = self._store.push_each(encode_logs, batch)
        return LogRecordExportResult.SUCCESS if is_stored else LogRecordExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Close the queue; the next program sends unsent requests.

        Args:
            timeout_millis: Milliseconds to wait at most, after which a thread goes on.
        """
        self._store.close(timeout_millis)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until all exported data are stored; return whether they are."""
        return self._store.flush(timeout_millis)


class DurableMetricExporter(MetricExporter):
    """Store metrics, and send them to a collector when it answers: see ``DurableSpanExporter``.

    Give it to a ``PeriodicExportingMetricReader``.

    Args:
        path: The directory of the queue; created if it is missing.
        target: The URL of an OTLP/HTTP collector, a ``Target``, or None: another process forwards.
        name: The queue in the directory.
        retain: The number of newest requests to keep while no collector answers; None: all.
        durability: ``"off"``; ``"interval"``: a power cut loses the last moments at most; ``"full"``: it loses nothing.
            Fixed when the directory is created. None: that of the directory, ``"off"`` for a new one.
        **preferred: Options of ``MetricExporter``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: Target | str | None = None,
        *,
        name: str = "metrics",
        retain: int | None = 100_000,
        durability: Durability | None = None,
        **preferred: Any,
    ) -> None:
        super().__init__(**preferred)
        self._store = _Store(path, name, target, retain, durability)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        """Store metrics; called by the reader."""
        del timeout_millis
        is_stored = self._store.push(encode_metrics(metrics_data))
        return MetricExportResult.SUCCESS if is_stored else MetricExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000, *, timeout: float | None = None, **_: Any) -> None:
        """Close the queue; the next program sends unsent requests.

        Args:
            timeout_millis: Milliseconds to wait at most, after which a thread goes on.
            timeout: The same, as the SDK's own reader calls it.
        """
        self._store.close(timeout_millis if timeout is None else timeout)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Wait until all exported data are stored; return whether they are."""
        return self._store.flush(timeout_millis)


def inject(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return headers for ``push`` that carry the context of the current span.

    Args:
        headers: Other headers to keep.
    """
    carrier = dict(headers or {})
    propagate.inject(carrier)
    return carrier


def extract(headers: Mapping[str, str]) -> Context:
    """Return the context that the headers of an item carry.

    Args:
        headers: The headers.
    """
    return propagate.extract(headers)


def traced(
    handler: Callable[..., Any], *, name: str = "process", tracer: trace.Tracer | None = None
) -> Callable[[Any, Any], Any]:
    """Return a handler for ``queue.work`` that runs ``handler`` in a span.

    At the first attempt of an item, the span is a child of its producer's. Later attempts, which may come days after,
    and calls with a list of items have a trace of their own, with a link to the producer's. Errors of the handler are
    recorded.

    Args:
        handler: A handler of ``work``, with or without a second parameter; a coroutine function for that of
            ``lmdbqueue.aio``.
        name: The name of the span.
        tracer: Makes the spans; None: that of the global provider.

    Raises:
        TypeError: The handler cannot be called with an item.
    """
    is_awaited = inspect.iscoroutinefunction(function_of(handler))
    takes = takes_job(handler, is_awaited=is_awaited)

    def call(item: Any, job: Job | list[Job]) -> Any:
        return handler(item, job) if takes else handler(item)

    def run(item: Any, job: Job | list[Job]) -> Any:
        with _span(job, name, tracer):
            return call(item, job)

    async def run_awaited(item: Any, job: Job | list[Job]) -> Any:
        with _span(job, name, tracer):
            return await call(item, job)

    return run_awaited if is_awaited else run


def _span(job: Job | list[Job], name: str, tracer: trace.Tracer | None) -> AbstractContextManager[trace.Span]:
    """Return the span of a call of a handler."""
    jobs = job if isinstance(job, list) else [job]
    contexts = [extract(each.headers) for each in jobs]
    is_child = len(jobs) == 1 and jobs[0].attempts == 1
    spans = [trace.get_current_span(context).get_span_context() for context in contexts]
    links = [] if is_child else [trace.Link(span) for span in spans if span.is_valid]
    attributes: dict[str, str | int] = {
        "messaging.system": "lmdbqueue",
        "messaging.operation.type": "process",
        "messaging.batch.message_count": len(jobs),
    }
    if len(jobs) == 1:
        attributes["messaging.message.id"] = str(jobs[0].seq)
        attributes["lmdbqueue.attempts"] = jobs[0].attempts
    context = contexts[0] if is_child else Context()
    return (tracer or trace.get_tracer("lmdbqueue")).start_as_current_span(
        name, context, kind=trace.SpanKind.CONSUMER, attributes=attributes, links=links
    )
