"""Items over MQTT, against a real mosquitto that is killed and started again."""

import gc
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading

import pytest
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from processes import KILLED, eventually, forked, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue.forward import Forwarder, MqttTarget, as_bytes, as_json_with_headers

QUICK = {"pause": 0.01}


class Broker:
    """A mosquitto on a port of its own, that keeps sessions on disk."""

    def __init__(self, place, *lines):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = place / "mosquitto.conf"
        settings = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {place}/",
            "autosave_on_changes true",
            "autosave_interval 1",
            "max_queued_messages 0",
            *(lines or ["allow_anonymous true"]),
        ]
        self.config.write_text("\n".join(settings) + "\n")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            ["mosquitto", "-c", self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self._answers)

    def _answers(self):
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


class Subscriber:
    """Keeps what comes to the topic; comes back by itself."""

    def __init__(self, port):
        self.messages = []
        self.client = Client(CallbackAPIVersion.VERSION2, "subscriber", protocol=MQTTv5)
        self.client.on_connect = self._subscribe
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _client, _data, message: self.messages.append(message)
        self.client.reconnect_delay_set(0.01, 0.05)
        self.ready = threading.Event()
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=session)
        self.client.loop_start()
        assert self.ready.wait(10)

    def _subscribe(self, client, *_):
        client.subscribe("plant/readings", qos=2)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    @property
    def items(self):
        return [json.loads(message.payload) for message in self.messages]


@pytest.fixture
def broker(tmp_path, needs):
    needs("mosquitto")
    if os.geteuid() == 0:
        tmp_path.chmod(0o777)  # it gives up being root
        for parent in list(tmp_path.parents)[:3]:
            parent.chmod(parent.stat().st_mode | 0o711)
    started = []

    def broker_(*lines):
        broker = Broker(tmp_path, *lines)
        started.append(broker)
        broker.start()
        return broker

    yield broker_
    for each in started:
        each.kill()


@pytest.fixture
def subscriber():
    opened = []

    def subscriber_(broker):
        opened.append(Subscriber(broker.port))
        return opened[-1]

    yield subscriber_
    for each in opened:
        each.close()


def target_of(broker, **options):
    return MqttTarget("127.0.0.1", broker.port, topic="plant/readings", timeout=5, **options)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_items_come_in_order_as_json_each_with_its_number(broker, subscriber, open_queue, qos):
    broker = broker()
    subscriber = subscriber(broker)
    queue = open_queue()
    queue.push([{"sensor": 7, "value": number} for number in range(300)])
    done = Forwarder(queue, target_of(broker, qos=qos, batch=150)).run()
    eventually(lambda: len(subscriber.messages) == 300, 10)
    assert [item["value"] for item in subscriber.items] == list(range(300))
    assert (done.items, done.batches, done.failures, len(queue)) == (300, 2, 0, 0)
    uuid = queue._engine.environment.directory.options.uuid
    assert subscriber.messages[7].properties.UserProperty == [("lmdbqueue-id", f"{uuid}/queue/7")]
    assert {message.qos for message in subscriber.messages} == {qos}


def test_the_headers_of_an_item_are_user_properties_of_its_message(broker, subscriber, open_queue):
    broker = broker("allow_anonymous true", "max_packet_size 2000")
    subscriber = subscriber(broker)
    queue = open_queue()
    illegal = {"control": "a\n", "c1": "\x85", "nul\0": "x", "none": "\U0001ffff", "lmdbqueue-id": "mine"}
    queue.push("a", headers={"traceparent": "00-4bf9", "": "é", "empty": "", "𝄞": "𝄢", **illegal})
    queue.push("b")
    queue.push("c", headers={"x": "x" * 2000})
    assert Forwarder(queue, target_of(broker)).run()[4:] == (0, None, 1)
    queue.push("d", headers={"a": "1"})
    Forwarder(queue, target_of(broker, encode=as_json_with_headers)).run()
    eventually(lambda: len(subscriber.messages) == 3, 10)
    uuid = queue._engine.environment.directory.options.uuid
    assert [message.properties.UserProperty for message in subscriber.messages] == [
        [("lmdbqueue-id", f"{uuid}/queue/0"), ("traceparent", "00-4bf9"), ("", "é"), ("empty", ""), ("𝄞", "𝄢")],
        [("lmdbqueue-id", f"{uuid}/queue/1")],
        [("lmdbqueue-id", f"{uuid}/queue/3"), ("a", "1")],
    ]
    assert (subscriber.items[2]["item"], subscriber.items[2]["headers"]) == ("d", {"a": "1"})
    assert [letter.reason for letter in queue.dead] == ["the message is too large for the broker"]


def test_a_message_that_the_broker_is_too_small_for_is_a_dead_letter(broker, subscriber, open_queue):
    broker = broker("allow_anonymous true", "max_packet_size 2000")
    subscriber = subscriber(broker)
    queue = open_queue()
    queue.push(["a", "x" * 3000, {1, 2}, "b"])
    assert Forwarder(queue, target_of(broker)).run().refused == 2
    eventually(lambda: len(subscriber.messages) == 2, 10)
    assert subscriber.items == ["a", "b"]
    reasons = [letter.reason for letter in queue.dead]
    assert reasons[0] == "the message is too large for the broker"
    assert reasons[1].startswith("it cannot be encoded: TypeError")


def test_an_item_for_which_encode_returns_no_bytes_is_a_dead_letter_and_no_empty_message(
    broker, subscriber, open_queue
):
    there = broker()
    seen = subscriber(there)
    queue = open_queue()
    queue.push(["none", "é"])
    encode = {"none": None, "é": '"é"'}.get
    done = Forwarder(queue, MqttTarget("127.0.0.1", there.port, topic="plant/readings", encode=encode)).run()
    assert (done.items, done.refused) == (1, 1)
    eventually(lambda: seen.messages)
    assert seen.items == ["é"]
    assert [letter.item for letter in queue.dead] == ["none"]


def test_a_broker_that_takes_few_at_a_time_gets_few(broker, subscriber, open_queue):
    broker = broker("allow_anonymous true", "max_inflight_messages 2")
    subscriber = subscriber(broker)
    queue = open_queue(dumps=bytes, loads=bytes)
    queue.push([b"%d" % number for number in range(100)])
    assert Forwarder(queue, target_of(broker, encode=as_bytes, loads=bytes)).run().failures == 0
    eventually(lambda: len(subscriber.messages) == 100, 10)


def test_a_broker_that_refuses_the_user_or_is_not_there_is_away(broker, open_queue, caplog, tmp_path):
    (tmp_path / "nobody").write_text("")
    broker = broker("allow_anonymous false", f"password_file {tmp_path}/nobody")
    queue = open_queue()
    queue.push("a")

    def forward(*, port):
        target = MqttTarget("127.0.0.1", port, topic="x", username="Ann", password="secret", timeout=2)  # noqa: S106
        forwarder = Forwarder(queue, target, progress=lambda now: now.failures < 2 or forwarder.stop(), **QUICK)
        return forwarder.run()

    assert forward(port=broker.port).away_since
    assert "the broker refuses the connection" in caplog.text
    broker.kill()
    assert forward(port=broker.port).away_since
    assert len(queue) == 1
    assert len(queue.dead) == 0


@pytest.mark.parametrize(
    "options",
    [{"topic": topic} for topic in ("", "a/#", "+", "a\n", "a" * 65_536, "\ud800")] + [{"topic": "x", "qos": 3}],
)
def test_what_is_no_topic_or_qos_is_refused(options):
    with pytest.raises(ValueError, match=r"topic|qos"):
        MqttTarget("localhost", **options)


@pytest.mark.parametrize("what", ["username", "password", "client_id"])
@pytest.mark.parametrize("text", ["a" * 65_536, "\ud800"])
def test_a_name_that_no_message_can_carry_is_refused(what, text):
    with pytest.raises(ValueError, match=f"'{what}' must be a text of at most 65,535 bytes"):
        MqttTarget("localhost", topic="x", **{what: text})


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # paho leaves the socket to the collector
def test_a_broker_that_never_ends_its_handshake_is_away(open_queue):
    queue = open_queue()
    queue.push(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        target = MqttTarget("127.0.0.1", port, topic="x", tls=ssl.create_default_context(), timeout=0.1)
        forwarder = Forwarder(queue, target, follow=True, progress=lambda _: forwarder.stop())
        thread = threading.Thread(target=forwarder.run, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        gc.collect()


def test_the_command_publishes(broker, subscriber, open_queue):
    broker = broker()
    subscriber = subscriber(broker)
    queue = open_queue()
    queue.push([1, {"a": 2}])
    command = [sys.executable, "-m", "lmdbqueue", "forward", queue._engine.path]
    url = f"mqtt://127.0.0.1:{broker.port}/plant/readings"
    done = subprocess.run([*command, url, "--qos", "2"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("2 items in 1 batch; failures of the target: 0\n")
    eventually(lambda: subscriber.items == [1, {"a": 2}], 10)
    failed = subprocess.run([*command, "mqtts://127.0.0.1/"], capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 2
    assert "a topic" in failed.stderr


# --- kills


def _account(broker, subscriber, place, items, kills):
    """Kill the sender, and each third time the broker, too; each item comes, the first time in order."""
    with PersistentQueue("spool", place) as queue:
        queue.push(list(range(items)))
        path = queue._engine.path

        def forward():
            Forwarder(path, target_of(broker, batch=50), **QUICK).run()

        killed = 0
        for moment in sorted(random.sample(range(items // 20, items), kills)):
            pid = forked(forward)
            eventually(lambda moment=moment: items - len(queue) >= moment, 120)
            if killed % 3 == 2:
                os.kill(pid, signal.SIGSTOP)  # mosquitto acknowledges before it saves: it would lose what only it has
                eventually(lambda: len(set(subscriber.items)) >= items - len(queue), 60)
                broker.kill()
                broker.start()
                left = len(queue)
                os.kill(pid, signal.SIGCONT)
                eventually(lambda left=left: len(queue) < left or not left, 120)
            os.kill(pid, signal.SIGKILL)
            killed += status_of(pid) == KILLED
        assert status_of(forked(forward), 300) == 0
        assert (len(queue), len(queue.dead)) == (0, 0)
    eventually(lambda: set(subscriber.items) == set(range(items)), 60)
    assert list(dict.fromkeys(subscriber.items)) == list(range(items)), "out of order"
    assert len(subscriber.items) <= items + kills * 200
    return killed


def test_a_sender_and_a_broker_that_are_killed_lose_none(broker, subscriber, tmp_path, record_property):
    broker = broker()
    record_property("kills", _account(broker, subscriber(broker), tmp_path, 600, 9))


@pytest.mark.long
def test_a_sender_and_a_broker_are_killed_fifty_times_in_20_000_items(broker, subscriber, tmp_path, record_property):
    broker = broker()
    record_property("kills", _account(broker, subscriber(broker), tmp_path, 20_000, 50))
