"""Spans, log records and metrics through a queue, decoded by a receiver of OTLP that is away at first."""

import http.server
import os
import signal
import socket
import threading

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from processes import KILLED, eventually, forked, status_of

from lmdbqueue import PersistentQueue, Retry
from lmdbqueue.forward import Forwarder
from lmdbqueue.integrations.opentelemetry import (
    DurableLogExporter,
    DurableMetricExporter,
    DurableSpanExporter,
    collector,
    inject,
    traced,
)

pytestmark = pytest.mark.filterwarnings("default")
KINDS = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


class Receiver(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP, and decodes it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), _Handler)
        self.came = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def spans(self):
        requests = [each for each in self.came if isinstance(each, ExportTraceServiceRequest)]
        scopes = [scope for request in requests for found in request.resource_spans for scope in found.scope_spans]
        return [span.name for scope in scopes for span in scope.spans]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.came.append(KINDS[self.path].FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def receive(port):
    started = []

    def receive_():
        started.append(Receiver(port))
        return started[-1]

    yield receive_
    for each in started:
        each.stop()


def test_all_three_signals_come_to_a_collector_that_was_away_for_longer_than_the_sdk_can_wait(tmp_path, port, receive):
    url, place = f"http://127.0.0.1:{port}", tmp_path / "telemetry"
    traces = TracerProvider()
    batches = BatchSpanProcessor(
        DurableSpanExporter(place, url), max_queue_size=20, max_export_batch_size=10, schedule_delay_millis=10
    )
    traces.add_span_processor(batches)
    logs = LoggerProvider()
    logs.add_log_record_processor(BatchLogRecordProcessor(DurableLogExporter(place, url)))
    reader = PeriodicExportingMetricReader(DurableMetricExporter(place, url), export_interval_millis=60_000)
    metrics = MeterProvider([reader])
    tracer = traces.get_tracer("test")
    for number in range(200):  # ten times what the SDK would keep
        tracer.start_span(f"span {number}").end()
        if number % 10 == 9:
            batches.force_flush()
    logs.get_logger("test").emit(body="a record", severity_text="INFO")
    logs.force_flush()
    metrics.get_meter("test").create_counter("done").add(3)
    metrics.force_flush()
    receiver = receive()
    eventually(lambda: len(receiver.spans()) == 200, 30)
    assert receiver.spans() == [f"span {number}" for number in range(200)]
    eventually(lambda: {type(each) for each in receiver.came} == set(KINDS.values()), 30)
    for provider in (traces, logs, metrics):
        provider.shutdown()


def test_what_a_killed_program_exported_is_sent_by_the_next(tmp_path, port, receive, record_property):
    place = tmp_path / "telemetry"

    def program():
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(DurableSpanExporter(place, f"http://127.0.0.1:{port}")))
        for number in range(50):
            provider.get_tracer("test").start_span(f"span {number}").end()
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(program)) == KILLED
    receiver = receive()
    exporter = DurableSpanExporter(place, f"http://127.0.0.1:{port}")
    eventually(lambda: len(receiver.spans()) >= 50, 30)
    exporter.shutdown()
    assert receiver.spans() == [f"span {number}" for number in range(50)]
    record_property("kills", 1)


def test_without_a_target_another_process_sends(tmp_path, port, receive):
    exporter = DurableSpanExporter(tmp_path / "telemetry")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("test").start_span("one").end()
    assert exporter.force_flush()
    receiver = receive()
    with PersistentQueue("telemetry", tmp_path, name="traces", durability="off") as queue:
        assert Forwarder(queue, collector(f"http://127.0.0.1:{port}/", "traces")).run().items == 1
    assert receiver.spans() == ["one"]
    provider.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE, "it is closed"


def test_the_newest_are_kept(tmp_path):
    exporter = DurableSpanExporter(tmp_path / "telemetry", retain=3)
    for _ in range(10):
        assert exporter.export([]) is SpanExportResult.SUCCESS
    with PersistentQueue("telemetry", tmp_path, name="traces", durability="off") as queue:
        assert len(queue) == 3
    exporter.shutdown()


# --- trace context


def test_a_handler_is_a_child_of_the_producer_at_first_and_linked_to_it_when_it_is_tried_again(open_queue):
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    queue = open_queue()
    with tracer.start_as_current_span("produce") as producer:
        queue.push("bad", headers=inject({"mine": "1"}))
    queue.push("without")
    tries = []

    def handle(item):
        tries.append(item)
        if tries.count("bad") == 1:
            raise ValueError(item)

    queue.work(
        traced(handle, name="work", tracer=tracer),
        retry=Retry(base=0.01, jitter=0),
        stop=lambda: tries.count("bad") == 2 and "without" in tries,
    )
    spans = [span for span in memory.get_finished_spans() if span.name == "work"]
    by_attempt = {
        (span.attributes["messaging.message.id"], span.attributes["lmdbqueue.attempts"]): span for span in spans
    }
    first, second, other = by_attempt["0", 1], by_attempt["0", 2], by_attempt["1", 1]
    wanted = producer.get_span_context()
    assert (first.parent.span_id, first.context.trace_id) == (wanted.span_id, wanted.trace_id)
    assert first.links == ()
    assert first.events[0].name == "exception"
    assert second.parent is None
    assert [link.context.span_id for link in second.links] == [wanted.span_id]
    assert second.context.trace_id != wanted.trace_id
    assert (other.parent, other.links) == (None, ())


def test_a_list_of_items_is_linked_to_all_their_producers(open_queue):
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    queue = open_queue()
    for name in ("a", "b"):
        with tracer.start_as_current_span(name):
            queue.push(name, headers=inject())
    done = []
    queue.work(traced(done.extend, tracer=tracer), items=5, stop=lambda: bool(done))
    a, b, work = memory.get_finished_spans()
    assert done == ["a", "b"]
    assert [link.context.span_id for link in work.links] == [a.context.span_id, b.context.span_id]
    assert work.attributes["messaging.batch.message_count"] == 2
