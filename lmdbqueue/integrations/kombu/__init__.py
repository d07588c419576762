"""A transport for kombu, so that Celery runs without a broker: the extra ``celery``.

    import lmdbqueue.integrations.kombu  # registers lmdb://

    app = Celery("app", broker="lmdb:////var/lib/app/broker")  # a path: three slashes and /var/lib/app/broker

Each of kombu's queues is a queue of one directory. A message that was delivered but not acknowledged is leased to its
connection, so it returns to its place immediately when the connection closes or its process dies.

The map; imports go down this list only. Each file says which choices kombu and Celery force on it.

==============  =======================================================================================
``_transport``  ``Transport``: a connection; how it waits for messages, and serves an event loop
``_channel``    ``Channel``: publishing and delivering messages
``_topology``   the queues, exchanges and bindings that a channel declares
``_qos``        the messages that were delivered but not acknowledged: their leases
``_alarm``      a descriptor for an event loop, readable when there may be messages
``_broker``     the directory behind a connection: where declarations, bindings and messages are stored
``_messages``   a message as an item: its bytes, and the options of its push
==============  =======================================================================================
"""

from lmdbqueue._base.errors import without_extra

try:
    from kombu.transport import TRANSPORT_ALIASES
except ImportError as error:
    raise without_extra(__name__, "kombu", "pip install 'lmdbqueue-persistent[celery]'", error) from error

from lmdbqueue.integrations.kombu._channel import Channel
from lmdbqueue.integrations.kombu._transport import Transport

__all__ = ["Channel", "Transport"]

for _each in __all__:
    globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module

TRANSPORT_ALIASES["lmdb"] = f"{__name__}:Transport"
