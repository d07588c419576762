"""Spans, log records and metrics through a queue, decoded by a receiver of OTLP that is away at first."""

import asyncio
import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from itertools import count

import pytest
from opentelemetry import trace
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

from lmdbqueue import PersistentQueue, Retry, StorageError
from lmdbqueue._local.source import QueueSource
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.forward import Forwarder, HttpTarget
from lmdbqueue.integrations import opentelemetry
from lmdbqueue.integrations.opentelemetry import (
    DurableLogExporter,
    DurableMetricExporter,
    DurableSpanExporter,
    collector,
    extract,
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
        if not self.thread.is_alive():
            return
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


def test_a_span_that_ends_in_a_transaction_is_stored(tmp_path):
    exporter = DurableSpanExporter(tmp_path / "telemetry")
    with PersistentQueue("work", tmp_path) as work, work.transaction():
        work.push(1)
        assert exporter.export([]) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    with PersistentQueue("telemetry", tmp_path, name="traces", durability="off") as queue:
        assert len(queue) == 1
    exporter.shutdown()


def test_a_span_that_cannot_be_encoded_takes_no_others_with_it(tmp_path, caplog):
    exporter = DurableSpanExporter(tmp_path / "telemetry")
    tracer = TracerProvider().get_tracer("here")
    spans = [tracer.start_span(name) for name in ("one", "\ud800", "two")]
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert "telemetry cannot be encoded: UnicodeEncodeError" in caplog.text
    stored = [ExportTraceServiceRequest.FromString(payload) for payload in exporter._store.queue]
    assert [each.resource_spans[0].scope_spans[0].spans[0].name for each in stored] == ["one", "two"]
    exporter.shutdown()


def test_a_flush_that_has_no_time_left_says_so(tmp_path):
    exporter = DurableSpanExporter(tmp_path / "telemetry")
    writer = exporter._store.queue._engine.environment._writer
    is_held, is_over = threading.Event(), threading.Event()

    def hold():
        with writer:
            is_held.set()
            is_over.wait(60)

    holding = threading.Thread(target=hold)
    holding.start()
    is_held.wait(60)
    try:
        exporter._store._later.add(b"request")  # as from a transaction of another directory
        assert not exporter.force_flush(50)
        assert not is_over.is_set()
    finally:
        is_over.set()
        holding.join()
    assert exporter.force_flush()
    assert len(exporter._store.queue) == 1
    exporter.shutdown()


@pytest.mark.parametrize("how", ["a request that waits", "an export under way"])
@pytest.mark.parametrize("signal_", ["spans", "metrics"])
def test_a_shutdown_that_has_no_time_left_ends(tmp_path, caplog, how, signal_):
    exporter = (DurableSpanExporter if signal_ == "spans" else DurableMetricExporter)(tmp_path / "telemetry")
    writer = exporter._store.queue._engine.environment._writer
    is_held, is_over = threading.Event(), threading.Event()

    def hold():
        with writer:
            is_held.set()
            is_over.wait(60)

    holding = threading.Thread(target=hold)
    holding.start()
    is_held.wait(60)
    shutdown = partial(exporter.shutdown, **{"timeout_millis" if signal_ == "spans" else "timeout": 50})
    closing = threading.Thread(target=shutdown, daemon=True)
    try:
        if how == "a request that waits":
            exporter._store._later.add(b"request")
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        assert ("telemetry was not stored" in caplog.text) == (how == "a request that waits")
    finally:
        is_over.set()
        holding.join()
    eventually(lambda: exporter._store.queue._engine.is_closed)


def test_the_end_of_a_program_stores_what_the_processor_has(tmp_path):
    program = (
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import BatchSpanProcessor\n"
        "provider = TracerProvider()\n"
        "from lmdbqueue.integrations.opentelemetry import DurableSpanExporter\n"
        f"exporter = DurableSpanExporter({str(tmp_path / 'telemetry')!r})\n"
        "provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))\n"
        "provider.get_tracer('test').start_span('one').end()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    with PersistentQueue("telemetry", tmp_path, name="traces", durability="off") as queue:
        assert len(queue) == 1


def test_a_disk_that_fails_for_a_moment_does_not_end_the_sending(tmp_path, port, receive, monkeypatch):
    monkeypatch.setattr(opentelemetry, "_AGAIN", 0.01)
    failed = []

    def fail(*_):
        failed.append(1)
        raise StorageError("telemetry", "reading", "Input/output error")

    exporter = DurableSpanExporter(tmp_path / "telemetry", f"http://127.0.0.1:{port}")
    with monkeypatch.context() as patched:
        patched.setattr(QueueSource, "read", fail)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("test").start_span("one").end()
        eventually(lambda: len(failed) > 1)
    receiver = receive()
    eventually(lambda: receiver.spans() == ["one"])
    provider.shutdown()
    assert not exporter._store._thread.is_alive()


def _export_until_killed(place, url, log, start):
    """Export spans one by one, and write down each that was."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(DurableSpanExporter(place, url)))
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in count(start):
        provider.get_tracer("test").start_span(f"{number}").end()
        os.write(fd, b"%d\n" % number)


def _account(place, port, receive, kills, record_property):
    """Kill a program that exports and sends, again and again, while the collector comes and goes."""
    log, url = place / "exported", f"http://127.0.0.1:{port}"
    log.touch()
    receiver = receive()
    for kill in range(kills):
        exported = log.read_text().split()
        pid = forked(_export_until_killed, place / "telemetry", url, log, int(exported[-1]) + 1 if exported else 0)
        wanted = len(exported) + random.randrange(1, 60)  # noqa: S311
        eventually(lambda wanted=wanted: log.read_text().count("\n") >= wanted)
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == KILLED
        if kill % 3 == 2:
            receiver.stop()
            before, receiver = receiver, receive()
            receiver.came = before.came  # which may still have connections
    exporter = DurableSpanExporter(place / "telemetry", url)
    with PersistentQueue("telemetry", place, name="traces", durability="off") as queue:
        eventually(lambda: not len(queue))
    exporter.shutdown()
    came = receiver.spans()
    exported = log.read_text().split()
    assert set(exported) <= set(came), "some were lost"
    assert list(dict.fromkeys(came)) == sorted(set(came), key=int), "out of order"
    assert len(came) - len(set(came)) <= 2 * kills, "no more came twice than senders and collectors ended"
    record_property("kills", kills)


def test_programs_that_export_and_are_killed_lose_nothing(tmp_path, port, receive, record_property):
    _account(tmp_path, port, receive, 4, record_property)


@pytest.mark.long
def test_programs_that_export_are_killed_a_hundred_times(tmp_path, port, receive, record_property):
    _account(tmp_path, port, receive, 100, record_property)


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


def test_a_traced_handler_may_have_all_that_a_handler_may_have(open_queue, tmp_path):
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    queue, done = open_queue(), []
    queue.push(["a", "b"])

    def with_job(item, job):
        done.append((item, job.seq))

    async def awaited(item):
        await asyncio.sleep(0)
        done.append((item, trace.get_current_span().get_span_context().span_id))

    async def main():
        async with AsyncPersistentQueue("queue", tmp_path) as there:
            await there.work(traced(awaited, tracer=tracer), stop=lambda: len(done) == 2)

    queue.work(traced(with_job, tracer=tracer), stop=lambda: bool(done))
    asyncio.run(main())
    first, second = memory.get_finished_spans()
    assert done == [("a", 0), ("b", second.context.span_id)]
    assert first.attributes["messaging.message.id"] == "0"
    with pytest.raises(TypeError, match="cannot be called with an item"):
        traced(lambda: None)


def test_trace_context_goes_through_a_forwarder_as_headers_of_http_and_of_other_queues(open_queue, open_postgres):
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    queue, there = open_queue(), open_postgres()
    seen, done = [], []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(extract(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with tracer.start_as_current_span("produce") as producer:
        queue.push("a letter", headers=inject())
    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        Forwarder(queue, HttpTarget(f"http://127.0.0.1:{server.server_port}/")).run()
        answering.join()
    queue.push("without", headers=inject())
    with tracer.start_as_current_span("produce too") as other:
        queue.push("with", headers=inject())
    Forwarder(queue, there).run()
    there.work(traced(done.append, name="work", tracer=tracer), stop=lambda: len(done) == 2)
    (context,) = seen
    assert trace.get_current_span(context).get_span_context().trace_id == producer.get_span_context().trace_id
    worked = [span for span in memory.get_finished_spans() if span.name == "work"]
    assert [span.parent and span.parent.span_id for span in worked] == [None, other.get_span_context().span_id]


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
