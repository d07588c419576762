"""Figures as metrics: Prometheus and OpenTelemetry read what ``stats()`` says."""

import dataclasses
import os

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from lmdbqueue._metrics import METRICS, prometheus_text
from lmdbqueue._stats import Stats
from lmdbqueue.otel import observe

FIELDS = [field.name for field in dataclasses.fields(Stats)]
STATS = Stats(**{name: number for number, name in enumerate(FIELDS, 1)})
OF_DIRECTORY = {"bytes_used", "bytes_free", "file_size", "generation", "processes"}


def test_every_figure_is_a_metric_once():
    assert [metric.field for metric in METRICS] == FIELDS
    assert {metric.field for metric in METRICS if not metric.is_of_queue} == OF_DIRECTORY
    assert {metric.field for metric in METRICS if metric.is_total} == {"pushed", "removed"}


# --- Prometheus


def parsed(text):
    """Return the families by name, with their samples."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_reads_each_figure_with_its_meaning_and_type():
    families = parsed(prometheus_text([("/a", "q", STATS)]))
    assert len(families) == len(FIELDS)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type) == (metric.meaning, "counter" if metric.is_total else "gauge")
        (sample,) = family.samples
        assert (sample.name, sample.value) == (metric.name, getattr(STATS, metric.field))
        assert sample.labels == ({"path": "/a", "queue": "q"} if metric.is_of_queue else {"path": "/a"})


def test_labels_may_have_any_character():
    path, name = '/a"b\\n\\\n\u2603{},', 'q"\\'
    (sample,) = parsed(prometheus_text([(path, name, STATS)]))["lmdbqueue_items_waiting"].samples
    assert sample.labels == {"path": path, "queue": name}


def test_figures_of_a_directory_are_told_once_for_all_its_queues():
    families = parsed(prometheus_text([("/a", "p", STATS), ("/a", "q", STATS), ("/b", "q", STATS)]))
    assert len(families["lmdbqueue_items_waiting"].samples) == 3
    assert len(families["lmdbqueue_file_size_bytes"].samples) == 2


def test_a_figure_that_is_not_known_is_left_out():
    families = parsed(prometheus_text([("/a", "q", dataclasses.replace(STATS, processes=None))]))
    assert "lmdbqueue_processes" not in families
    assert len(families) == len(FIELDS) - 1


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
    path = os.path.join(tmp_path, "queue")
    for number in (1, 2):
        queue.push([0] * 5)
        queue.pop(number)
        other.push(0)
        found = collected()
        for each in (queue, other):
            stats = each.stats()
            for metric in METRICS:
                attributes = {"path": path, "queue": each.name} if metric.is_of_queue else {"path": path}
                key = f"lmdbqueue.{metric.field}", tuple(sorted(attributes.items()))
                assert found.get(key) == getattr(stats, metric.field), key
        assert len(found) == 2 * len(FIELDS) - len(OF_DIRECTORY)


def test_a_closed_queue_is_left_out_and_others_are_not(collect, open_queue):
    meter, collected = collect
    first, second = open_queue("first"), open_queue("second")
    observe(meter, first, second)
    first.close()
    assert {dict(attributes)["path"].rpartition("/")[2] for _, attributes in collected()} == {"second"}
