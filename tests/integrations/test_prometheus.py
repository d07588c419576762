"""Figures for prometheus_client, read by the real registry, server and parser."""

import asyncio
import os
import urllib.request
from functools import partial

import pytest
from opentelemetry.metrics import get_meter
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families as parsed

from lmdbqueue import PersistentQueue
from lmdbqueue._verbs.metrics import prometheus_text
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.integrations.otel import observe
from lmdbqueue.integrations.prometheus import QueueCollector


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parsed(text)
        for sample in family.samples
        if "age" not in sample.name
    }


def test_a_scrape_gives_what_the_command_prints(open_queue, tmp_path):
    jobs, mails = open_queue(name="jobs"), open_queue(name="mails")
    registry = CollectorRegistry()
    registry.register(QueueCollector(jobs, mails))
    jobs.push([1, 2, 3])
    jobs.pop()
    lease = jobs.lease()
    mails.reader("archive")
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    path = str(tmp_path / "queue")
    assert samples(text) == samples(prometheus_text([(path, queue.name, queue.stats()) for queue in (jobs, mails)]))
    found = samples(text)
    labels = (("path", path), ("queue", "jobs"))
    assert found["lmdbqueue_items_waiting", *labels] == 1
    assert found["lmdbqueue_items_leased", *labels] == 1
    assert found["lmdbqueue_items_pushed_total", *labels] == 3
    assert "# TYPE lmdbqueue_items_pushed_total counter" in text
    assert text.count("\nlmdbqueue_file_size_bytes{") == 1, "that of a directory stands there once"
    lease.ack()


def test_a_queue_that_is_closed_is_left_out(open_queue):
    jobs = open_queue(name="jobs")
    registry = CollectorRegistry()
    closed = PersistentQueue("queue", jobs.path, name="closed")
    registry.register(QueueCollector(closed, jobs))
    closed.close()
    text = generate_latest(registry).decode()
    assert 'queue="jobs"' in text
    assert 'queue="closed"' not in text


def test_a_directory_whose_path_is_not_utf_8_hides_no_figures(tmp_path):
    registry = CollectorRegistry()
    with PersistentQueue("jobs", tmp_path) as plain:
        (odd := tmp_path / os.fsdecode(b"\xff")).mkdir()
        with PersistentQueue("jobs", odd) as queue:
            registry.register(QueueCollector(queue, plain))
            text = generate_latest(registry).decode()
            assert "\\udcff" in text
            assert prometheus_text([("\udcff", "jobs", queue.stats())]).isascii()


def test_a_program_that_goes_to_another_directory_or_whose_directory_is_gone_keeps_its_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = CollectorRegistry()
    with PersistentQueue("jobs") as jobs:
        registry.register(QueueCollector(jobs))
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir("gone")
        (tmp_path / "gone").rmdir()
        assert f'path="{tmp_path / "jobs"}"' in generate_latest(registry).decode()


def test_registering_reads_nothing_and_refuses_a_second_one(open_queue, monkeypatch):
    queue = open_queue()
    monkeypatch.setattr(queue, "stats", lambda: 1 / 0)
    registry = CollectorRegistry(auto_describe=True)
    registry.register(QueueCollector(queue))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(QueueCollector(queue))


@pytest.mark.parametrize("report", [QueueCollector, partial(observe, get_meter("test"))])
def test_what_is_no_queue_is_refused_at_once_and_an_asynchronous_one_with_advice(tmp_path, report):
    async def main():
        async with AsyncPersistentQueue("queue", tmp_path) as queue:
            with pytest.raises(TypeError, match="not AsyncPersistentQueue: pass its attribute 'queue'"):
                report(queue)
            report(queue.queue)
        with pytest.raises(TypeError, match=r"not str$"):
            report("queue")

    asyncio.run(main())
