"""Items as messages on an MQTT topic; needs paho-mqtt, the extra ``mqtt``.

Owns: when a message counts as sent. Law: an item is done when the broker has acknowledged it (PUBACK, PUBCOMP; with
``qos=0`` when it was written to the connection); a connection that failed is never used again, so no part of a failed
batch is sent during a later one. Must not know: where items come from.
"""

import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lmdbqueue._base.errors import without_extra
from lmdbqueue._verbs.batch import AwayError, Batch, Envelope, Mark, Origin, RefusedError, Target
from lmdbqueue.forward._address import check_connection
from lmdbqueue.forward._bodies import CannotEncodeError, Encode, as_json, encoded, encoder_of, load

if TYPE_CHECKING:
    from paho.mqtt.client import Client

_REFUSED: Final = {0x95: "the message is too large for the broker", 0x99: "the broker does not accept such a payload"}
_FAILED: Final = 0x80  # reason codes from here on
_ID: Final = "lmdbqueue-id"
_NONE: Final = "".join(chr(plane << 16 | 0xFFFE | last) for plane in range(17) for last in (0, 1))  # noncharacters
_ILLEGAL: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NONE}]")  # a broker may disconnect because of them
_AROUND: Final = 30  # the most bytes of a message beside its topic, user properties and payload
_LONGEST_SILENCE: Final = 65_535  # seconds between two messages of a connection, to the broker
_FLIGHT: Final = 100  # the most messages without an answer


class MqttTarget(Target):
    """Publish each item as a message, in order, each at least once.

    It speaks MQTT 5. Messages have the user property ``lmdbqueue-id``: the uuid of the queue's directory, the name of
    the queue, and the number of the item, so a subscriber can skip items that it already has; and one user property for
    each header of the item, such as ``traceparent``. Left out are a header called ``lmdbqueue-id``, and those with a
    control character, for which a broker would end the connection. A message that is too large for the broker becomes a
    dead letter; after any other error the broker counts as unreachable.

    Args:
        host: The broker.
        port: Its port; 8883 is usual with TLS.
        topic: The topic of the messages.
        qos: When a message counts as sent: 1: when the broker has acknowledged it; 2: after MQTT's own handshake; 0:
            when it was written, so messages are lost when the connection breaks.
        tls: The context of a TLS connection, such as ``ssl.create_default_context()``; None: no TLS.
        username: For the broker, with ``password``.
        password: The password of ``username``.
        client_id: The client identifier; "" lets the broker choose one.
        encode: Makes the payload of an item: ``as_json`` (the default), ``as_json_with_headers``, ``as_bytes``, or a
            function of your own, which returns bytes, or a str, which is sent as UTF-8. If it needs a second argument,
            it gets the ``Envelope`` of the item. If it raises, or returns anything else, the item is refused.
        loads: Makes the item from a payload: ``load`` (the default) reads pickles and JSON texts.
        batch: The maximum number of items in a batch, which a crash can repeat. At most 100 messages at a time are
            unacknowledged.
        timeout: Seconds without an answer after which the broker counts as unreachable.
    """

    max_bytes = None

    def __init__(
        self,
        host: str,
        port: int = 1883,
        *,
        topic: str,
        qos: int = 1,
        tls: ssl.SSLContext | None = None,
        username: str | None = None,
        password: str | None = None,
        client_id: str = "",
        encode: Encode = as_json,
        loads: Callable[[bytes], Any] = load,
        batch: int = 1000,
        timeout: float = 10.0,
    ) -> None:
        try:
            import paho.mqtt.client  # noqa: F401, PLC0415  (the extra mqtt)
        except ImportError as error:
            raise without_extra("MqttTarget", "paho-mqtt", "pip install 'lmdbqueue-persistent[mqtt]'", error) from error
        check_connection(host=host, port=port, timeout=timeout, batch=batch)
        check_connection(topic=topic, client_id=client_id, username=username, password=password)
        if not topic or set(topic) & set("+#") or _ILLEGAL.search(topic):
            message = (
                f"a topic to publish to must be a non-empty text without wildcards or control characters, not {topic!r}"
            )
            raise ValueError(message)
        if qos not in (0, 1, 2):
            message = f"'qos' must be 0, 1 or 2, not {qos!r}"
            raise ValueError(message)
        self.limit = batch
        self._address = host, port
        self._topic = topic
        self._qos = qos
        self._tls = tls
        self._user = username, password
        self._client_id = client_id
        self._encode = encoder_of(encode)
        self._loads = loads
        self._timeout = timeout
        self._connection: _Connection | None = None

    def last(self, origin: Origin) -> Mark | None:
        """Return None: a broker keeps no mark.

        Args:
            origin: The queue that the items come from.
        """
        del origin
        return None

    def store(self, batch: Batch) -> None:
        """Publish the items.

        Args:
            batch: The items and their mark.

        Raises:
            RefusedError: The broker will never accept some of the items.
            AwayError: The broker did not accept the items this time.
        """
        refused: dict[int, str] = {}
        stored: list[int] = []
        try:
            connection = self._connected()
            sent: dict[int, int] = {}  # message id to number of the item
            for envelope, payload in batch.enveloped():
                seq = envelope.seq
                try:
                    body = encoded(partial(self._body, envelope, payload))
                except CannotEncodeError as error:
                    refused[seq] = str(error)
                    continue
                properties = _properties(batch.origin, envelope)
                size = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in properties)
                if len(body) + len(self._topic.encode()) + size + _AROUND > connection.max_size:
                    refused[seq] = _REFUSED[0x95]
                    continue
                sent[connection.publish(self._topic, body, self._qos, properties)] = seq
            for message_id, code in connection.answers(set(sent)):
                seq = sent[message_id]
                if code in _REFUSED:
                    refused[seq] = _REFUSED[code]
                elif code < _FAILED:
                    stored.append(seq)
                else:
                    raise AwayError(f"the broker answered with reason code {code:#x}")
        except OSError as error:
            self.close()
            raise AwayError(str(error), stored=sorted(stored), refused=refused) from error
        if refused:
            raise RefusedError(refused, sorted(stored))

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _body(self, envelope: Envelope, payload: bytes) -> bytes | str:
        return self._encode(self._loads(payload), envelope)

    def _connected(self) -> "_Connection":
        if self._connection is None:
            self._connection = _Connection(self._client(), *self._address, self._timeout)
        return self._connection

    def _client(self) -> "Client":
        from paho.mqtt.client import Client, MQTTv5  # noqa: PLC0415
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        client = Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=MQTTv5, reconnect_on_failure=False)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._user[0] is not None:
            client.username_pw_set(*self._user)
        return client


def _properties(origin: Origin, envelope: Envelope) -> list[tuple[str, str]]:
    """Return the user properties of an item's message."""
    headers = [each for each in envelope.headers.items() if each[0] != _ID and not any(map(_ILLEGAL.search, each))]
    return [(_ID, f"{origin.uuid}/{origin.name}/{envelope.seq}"), *headers]


class _Connection:
    """One connection to a broker, until it fails."""

    def __init__(self, client: "Client", host: str, port: int, timeout: float) -> None:
        self.max_size = 1 << 28  # the limit of MQTT
        self._client = client
        self._timeout = timeout
        self._codes: dict[int, int] = {}  # reason codes by message id
        self._flying = 0  # messages without an answer
        self._flight = _FLIGHT
        self._changed = threading.Condition()
        self._is_up = False
        self._failure = ""
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.connect_timeout = timeout
        client.max_inflight_messages_set(0)  # paho ignores how many messages the broker accepts at a time
        client.connect(host, port, math.ceil(min(timeout, _LONGEST_SILENCE)))  # which bounds a TLS handshake, too
        client.loop_start()
        try:
            self._wait(lambda: self._is_up)
        except BaseException:
            self.close()
            raise

    def publish(self, topic: str, body: bytes, qos: int, properties: Sequence[tuple[str, str]]) -> int:
        """Send a message, or let it wait for its turn; return its id."""
        from paho.mqtt.packettypes import PacketTypes  # noqa: PLC0415
        from paho.mqtt.properties import Properties  # noqa: PLC0415

        self._wait(lambda: self._flying < self._flight)
        given = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for pair in properties:
            given.UserProperty = pair  # paho's setter appends
        with self._changed:
            self._flying += 1
        info = self._client.publish(topic, body, qos, properties=given)
        if info.rc:
            raise AwayError(self._failure or f"the connection is lost ({info.rc})")
        return info.mid

    def answers(self, wanted: set[int]) -> "list[tuple[int, int]]":
        """Wait for the broker's answers to messages; return each id with its reason code."""
        while wanted - self._codes.keys():
            known = len(self._codes)
            self._wait(lambda: len(self._codes) > known)  # noqa: B023  (it is called here only)
        with self._changed:
            return [(each, self._codes.pop(each)) for each in sorted(wanted)]

    def close(self) -> None:
        """Leave the broker, and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout
        with self._changed:
            while not is_so():
                if self._failure:
                    raise AwayError(self._failure)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AwayError(f"the broker has not answered for {self._timeout:g} s")
                self._changed.wait(left)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: Any, properties: Any) -> None:
        with self._changed:
            if code.is_failure:
                self._failure = f"the broker refuses the connection: {code}"
            else:
                self.max_size = getattr(properties, "MaximumPacketSize", self.max_size)
                self._flight = min(getattr(properties, "ReceiveMaximum", _FLIGHT), _FLIGHT)
                self._is_up = True
            self._changed.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        with self._changed:
            self._failure = self._failure or f"the connection is lost: {code}"
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, message_id: int, code: Any, _properties: Any) -> None:
        with self._changed:
            self._codes[message_id] = code.value
            self._flying -= 1
            self._changed.notify_all()
