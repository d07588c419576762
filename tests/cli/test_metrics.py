"""Figures as metrics: Prometheus and OpenTelemetry read what ``stats()`` says."""

import os
import re

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from lmdbqueue import PersistentQueue, ReaderStats
from lmdbqueue._base.values import Stats
from lmdbqueue._verbs.metrics import METRICS, prometheus_text
from lmdbqueue.integrations.otel import _Readings, observe

READERS = (ReaderStats("a", 1, 2, 3, 4.5), ReaderStats("b", 6, 7, 8, 9.5))
FIELDS = list(Stats._fields)
STATS = Stats(**{name: number for number, name in enumerate(FIELDS, 1)} | {"readers": READERS})
OF_DIRECTORY = {"bytes_used", "bytes_free", "file_size", "generation", "processes", "unsynced_seconds"}


def samples_of(metric, path, name, stats):
    """Return what a metric has to say: the value by the labels."""
    if metric.field in OF_DIRECTORY:
        return {(("path", path),): getattr(stats, metric.field)}
    labels = ("path", path), ("queue", name)
    if metric.field in ReaderStats._fields:
        return {(*labels, ("reader", each.name)): getattr(each, metric.field) for each in stats.readers}
    return {labels: getattr(stats, metric.field)}


def test_every_figure_is_a_metric_once():
    fields = [metric.field for metric in METRICS]
    assert sorted(fields) == sorted({*FIELDS, *ReaderStats._fields} - {"readers", "name"})
    totals = {"pushed", "removed", "dropped", "expired", "skipped"}
    assert {metric.field for metric in METRICS if metric.is_total} == totals
    assert len({metric.key for metric in METRICS}) == len({metric.name for metric in METRICS}) == len(METRICS)


def test_rules_of_the_document_are_of_metrics_that_there_are():
    with open(os.path.join(os.path.dirname(__file__), "..", "..", "docs", "operations.md"), encoding="utf-8") as file:
        (rules,) = re.findall(r"^```yaml\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"lmdbqueue_\w+", rules))
    assert len(named) == 5
    assert named <= {metric.name for metric in METRICS}


# --- Prometheus


def parsed(text):
    """Return the families by name, with their samples."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_reads_each_figure_with_its_meaning_and_type():
    families = parsed(prometheus_text([("/a", "q", STATS)]))
    assert len(families) == len(METRICS)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type) == (metric.meaning, "counter" if metric.is_total else "gauge")
        assert {sample.name for sample in family.samples} == {metric.name}
        found = {tuple(sample.labels.items()): sample.value for sample in family.samples}
        assert found == samples_of(metric, "/a", "q", STATS)


def test_labels_may_have_any_character():
    path, name = '/a"b\\n\\\n\u2603{},', 'q"\\'
    readers = (READERS[0]._replace(name='r"\\\n'),)
    families = parsed(prometheus_text([(path, name, STATS._replace(readers=readers))]))
    (sample,) = families["lmdbqueue_items_waiting"].samples
    assert sample.labels == {"path": path, "queue": name}
    (sample,) = families["lmdbqueue_reader_lag"].samples
    assert sample.labels == {"path": path, "queue": name, "reader": readers[0].name}


def test_figures_of_a_directory_are_told_once_for_all_its_queues():
    families = parsed(prometheus_text([("/a", "p", STATS), ("/a", "q", STATS), ("/b", "q", STATS)]))
    assert len(families["lmdbqueue_items_waiting"].samples) == 3
    assert len(families["lmdbqueue_file_size_bytes"].samples) == 2


def test_a_figure_that_is_not_known_is_left_out():
    families = parsed(prometheus_text([("/a", "q", STATS._replace(processes=None, oldest_age=None))]))
    assert not {"lmdbqueue_processes", "lmdbqueue_oldest_age_seconds"} & families.keys()
    assert len(families) == len(METRICS) - 2


def test_a_queue_without_readers_has_no_figures_of_readers():
    assert "reader" not in prometheus_text([("/a", "q", STATS._replace(readers=()))])


# --- OpenTelemetry


@pytest.fixture
def collect():
    """Return a meter, and what it collects: value by name and attributes."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def collect_():
        data = reader.get_metrics_data()
        return {
            (metric.name, tuple(sorted(point.attributes.items()))): point.value
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    yield provider.get_meter("test"), collect_
    provider.shutdown()


def test_a_meter_observes_what_stats_says_when_it_is_collected(collect, open_queue, tmp_path):
    meter, collected = collect
    queue, other = open_queue(), open_queue(name="other")
    observe(meter, queue, other)
    queue.reader("slow")
    queue.reader("fast").delete(3)
    path = os.path.join(tmp_path, "queue")
    for number in (1, 2):
        queue.push([0] * 5)
        queue.pop(number)
        other.push(0)
        found = collected()
        expected = {
            (f"lmdbqueue.{metric.key}", labels): value
            for each in (queue, other)
            for metric in METRICS
            for labels, value in samples_of(metric, path, each.name, each.stats()).items()
        }
        is_age = {key for key in expected if key[0] == "lmdbqueue.oldest_age"}
        assert [found.pop(key) - expected.pop(key) for key in is_age] == pytest.approx([0, 0], abs=5)
        assert found == expected
        assert found["lmdbqueue.reader.lag", (("path", path), ("queue", "queue"), ("reader", "slow"))] > 0


def test_a_collection_reads_each_queue_once(collect, open_queue, monkeypatch):
    meter, collected = collect
    queues = [open_queue(name=name) for name in ("a", "b", "c")]
    observe(meter, *queues)
    asked = []
    stats = PersistentQueue.stats
    monkeypatch.setattr(PersistentQueue, "stats", lambda queue: asked.append(queue.name) or stats(queue))
    for number in (1, 2, 3):
        queues[0].push(0)
        found = collected()
        assert asked == ["a", "b", "c"] * number
        assert [value for (name, labels), value in found.items() if name == "lmdbqueue.waiting"] == [number, 0, 0]


def test_a_reading_serves_an_instrument_that_is_asked_alone_for_a_second_at_most(open_queue):
    queue = open_queue()
    clock = [0.0]
    readings = _Readings([queue], lambda: clock[0])
    waiting, pushed, *_ = (metric for metric in METRICS if metric.key in {"waiting", "pushed"})

    def value(metric):
        (observation,) = readings.observations(metric, None)
        return observation.value

    assert value(waiting) == 0
    queue.push(0)
    assert (value(pushed), value(waiting)) == (0, 1)  # of the first reading; of the second
    queue.push(0)
    clock[0] += 1.1
    assert value(pushed) == 2


def test_a_closed_queue_is_left_out_and_others_are_not(collect, open_queue):
    meter, collected = collect
    first, second = open_queue("first"), open_queue("second")
    observe(meter, first, second)
    first.close()
    assert {dict(attributes)["path"].rpartition("/")[2] for _, attributes in collected()} == {"second"}
