"""Forwarding of queues to PostgreSQL, to another directory, over HTTP or MQTT, or to a target of your own.

    Forwarder(PersistentQueue('jobs'), PostgresQueue('postgresql://central/app', 'jobs')).run()
    Forwarder(PersistentQueue('readings'), HttpTarget('https://example.org/readings')).run()

The map, top down:

==============  ==========================================================
``_mqtt``       ``MqttTarget``: a topic of a broker
``_http``       ``HttpTarget``: requests to a URL
``_address``    what a connection needs: host, port, timeout
``_bodies``     the form in which items are sent: JSON, or their bytes
``_forwarder``  ``Forwarder``: the order of the steps, waiting, stopping
==============  ==========================================================
"""

from lmdbqueue._local.source import QueueSource, ReaderSource, Source
from lmdbqueue._local.target import QueueTarget
from lmdbqueue._verbs.batch import AwayError, Batch, BusyError, Envelope, Mark, Origin, RefusedError, Target
from lmdbqueue.forward._bodies import as_bytes, as_json, as_json_lines, as_json_with_headers, load
from lmdbqueue.forward._forwarder import Forwarded, Forwarder
from lmdbqueue.forward._http import HttpTarget
from lmdbqueue.forward._mqtt import MqttTarget

__all__ = [
    "AwayError",
    "Batch",
    "BusyError",
    "Envelope",
    "Forwarded",
    "Forwarder",
    "HttpTarget",
    "Mark",
    "MqttTarget",
    "Origin",
    "QueueSource",
    "QueueTarget",
    "ReaderSource",
    "RefusedError",
    "Source",
    "Target",
    "as_bytes",
    "as_json",
    "as_json_lines",
    "as_json_with_headers",
    "load",
]

for _each in __all__:
    globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module
