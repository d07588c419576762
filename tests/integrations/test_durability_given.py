"""A durability that a program asks an integration for is the one it gets, or an error."""

import pytest
from celery import Celery

import lmdbqueue.integrations.kombu  # noqa: F401  (registers lmdb://)
from lmdbqueue import OptionError, PersistentQueue
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue.integrations.huey import LmdbHuey
from lmdbqueue.integrations.logging import DurableHandler, DurableListener
from lmdbqueue.integrations.opentelemetry import DurableLogExporter, DurableMetricExporter, DurableSpanExporter


def of_logging(kind):
    def touch(path, **options):
        opened = kind(path, **options)
        getattr(opened, "close", opened.queue.close)()

    return touch


def of_telemetry(kind):
    def touch(path, **options):
        kind(path, **options).shutdown()

    return touch


def of_huey(path, **options):
    LmdbHuey(path=path, **options).storage.close()


def of_celery(path, **options):
    app = Celery(broker=f"lmdb:///{path}", broker_transport_options=options)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare("celery")


USERS = {
    "handler": (of_logging(DurableHandler), "off"),
    "listener": (of_logging(DurableListener), "off"),
    "spans": (of_telemetry(DurableSpanExporter), "off"),
    "logs": (of_telemetry(DurableLogExporter), "off"),
    "metrics": (of_telemetry(DurableMetricExporter), "off"),
    "huey": (of_huey, "full"),
    "celery": (of_celery, "full"),
}


@pytest.mark.parametrize(("touch", "default"), USERS.values(), ids=USERS)
def test_a_durability_that_is_asked_for_is_given_or_refused(tmp_path, touch, default):
    touch(tmp_path / "new")
    assert options_of(str(tmp_path / "new")).durability == default
    PersistentQueue("old", tmp_path, durability="interval").close()
    touch(tmp_path / "old")
    touch(tmp_path / "old", durability="interval")
    for other in ("full", "off"):
        with pytest.raises(OptionError) as raised:
            touch(tmp_path / "old", durability=other)
        assert (raised.value.stored, raised.value.given) == ("interval", other)
    assert options_of(str(tmp_path / "old")).durability == "interval"
