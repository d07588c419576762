"""The transport of kombu's under what programs do with connections, channels and consumers, and what befalls them."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import kombu
import pytest
from kombu.asynchronous import Hub
from processes import KILLED, eventually, forked, status_of

import lmdbqueue.integrations.kombu as transport
from lmdbqueue import DiskFullError, PersistentQueue, TransactionError
from lmdbqueue._host.bell import Bell
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue.integrations.kombu import _alarm, _topology
from lmdbqueue.integrations.kombu._broker import Broker, named

pytestmark = pytest.mark.filterwarnings("default")  # kombu has its own


@pytest.fixture
def connect(tmp_path):
    """Return a function that opens connections to one directory."""
    opened = []

    def connect_():
        connection = kombu.Connection(f"lmdb:///{tmp_path}/broker", transport_options={"durability": "off"})
        opened.append(connection)
        return connection

    yield connect_
    for connection in opened:
        connection.close()


def send(connection, *bodies, queue="tasks", **options):
    with connection.SimpleQueue(queue) as simple:
        for body in bodies:
            simple.put(body, **options)


def drain(connection):
    """Deliver all that comes."""
    with suppress(TimeoutError):
        for _ in range(1000):
            connection.drain_events(timeout=0.05)


def consumer_of(connection, callback, queue="tasks", channel=None, **options):
    made = kombu.Queue(queue)
    consumer = kombu.Consumer(channel or connection.channel(), [made], callbacks=[callback], **options)
    consumer.consume()
    return consumer


def taken_by_another(connect, queue="tasks"):
    """Return the bodies that another connection gets now; they go back."""
    with connect() as other, other.channel() as channel:
        found = []
        while (message := channel.basic_get(queue)) is not None:
            found.append(message.decode())
        return found


def queue_of(tmp_path, name="q-tasks"):
    return PersistentQueue("broker", tmp_path, name=name, dumps=bytes, loads=bytes, durability="off")


# --- delivering


def test_an_acknowledgement_of_several_is_for_all_that_were_delivered_before_and_for_no_other(connect):
    connection = connect()
    send(connection, *range(5))
    send(connection, "got", queue="other")
    channel = connection.channel()
    channel.basic_qos(prefetch_size=0, prefetch_count=4)
    messages = []

    def keep(_, message):
        messages.append(message)
        if len(messages) == 3:
            raise KeyError  # the fourth was leased, and is not delivered

    consumer_of(connection, keep, channel=channel)
    with pytest.raises(KeyError):
        connection.drain_events(timeout=1)
    messages[1].ack(multiple=True)
    assert len(channel.qos._leases) == 2
    channel.basic_get("other").ack(multiple=True)
    assert len(channel.taken) == len(channel.qos._leases) == 1
    connection.close()
    assert taken_by_another(connect) == [3, 4]


def test_a_message_that_is_due_or_expires_at_the_end_of_time_is_sent(connect):
    connection = connect()
    send(connection, "due", headers={"eta": "9999-12-31T23:59:59+00:00"})
    send(connection, "expires", expiration=1e15)
    assert taken_by_another(connect) == ["expires"]


def test_drain_events_delivers_what_the_prefetch_count_permits(connect):
    with connect() as connection:
        send(connection, *range(5))
        seen = []
        consumer = consumer_of(connection, lambda body, message: (seen.append(body), message.ack()))
        consumer.qos(prefetch_count=1)
        connection.drain_events(timeout=1)
        assert seen == [0]
        consumer.qos(prefetch_count=3)
        connection.drain_events(timeout=1)
        assert seen == [0, 1, 2, 3]
        assert taken_by_another(connect) == [4]


def test_a_callback_that_raises_does_not_hide_the_messages_behind(connect):
    seen = []

    def fail_at_first(body, message):
        seen.append(body)
        message.ack()
        if body == 0:
            raise ZeroDivisionError

    with connect() as connection:
        send(connection, *range(4))
        consumer_of(connection, fail_at_first)
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=1)
        connection.drain_events(timeout=1)
        assert seen == [0, 1, 2, 3]


def test_what_was_not_delivered_to_a_cancelled_consumer_is_with_others_at_once(connect):
    with connect() as connection:
        connection.channel()  # another one, which has nothing to do with it
        send(connection, *range(5))
        consumer = consumer_of(connection, lambda _, message: (message.ack(), consumer.cancel()))
        connection.drain_events(timeout=1)
        drain(connection)
        assert taken_by_another(connect) == [1, 2, 3, 4]


def test_channels_of_a_connection_share_a_queue_and_each_acknowledges_what_it_has_delivered(connect, tmp_path):
    came = {"a": [], "b": []}
    with connect() as connection:
        send(connection, *range(40))
        for found in came.values():
            consumer_of(connection, lambda body, message, found=found: (found.append(body), message.ack()))
        drain(connection)
        assert sorted(came["a"] + came["b"]) == list(range(40))
        assert came["a"]
        assert came["b"]
        with queue_of(tmp_path) as queue:
            assert queue.stats().leased == 0


def test_of_two_consumers_of_a_channel_each_gets_messages_and_one_goes_on_alone(connect, tmp_path):
    came = {"a": [], "b": []}
    with connect() as connection:
        send(connection, *range(40))
        channel = connection.channel()
        a, _ = (
            consumer_of(
                connection, lambda body, message, name=name: (came[name].append(body), message.ack()), channel=channel
            )
            for name in came
        )
        for _ in came:
            connection.drain_events(timeout=1)
        assert (len(came["a"]), len(came["b"])) == (16, 16)
        a.cancel()
        drain(connection)
        assert len(came["a"]) == 16
        assert sorted(came["a"] + came["b"]) == list(range(40))
        with queue_of(tmp_path) as queue:
            assert queue.stats().leased == 0


def test_the_prefetch_count_holds_while_it_changes(connect):
    held = []
    with connect() as connection:
        send(connection, *range(20))
        consumer = consumer_of(connection, lambda _, message: held.append(message))
        consumer.qos(prefetch_count=6)
        drain(connection)
        assert taken_by_another(connect) == list(range(6, 20))
        consumer.qos(prefetch_count=5)
        held.pop(0).ack()
        drain(connection)
        assert len(held) == 5, "there is no room"
        held.pop(0).ack()
        drain(connection)
        assert [message.decode() for message in held] == [2, 3, 4, 5, 6]
        consumer.qos(prefetch_count=0)
        drain(connection)
        assert len(held) == 18


def test_what_a_lower_prefetch_count_has_no_room_for_is_with_others(connect):
    def narrow(_, message):
        held.append(message)
        consumer.qos(prefetch_count=2)

    held = []
    with connect() as connection:
        send(connection, *range(9))
        consumer = consumer_of(connection, narrow)
        connection.drain_events(timeout=1)
        assert len(held) == 2
        assert taken_by_another(connect) == list(range(2, 9))


def test_higher_priorities_come_first_and_what_is_recovered_is_in_its_place(connect):
    with connect() as connection:
        for number, priority in enumerate([0, 5, 9, 5]):
            send(connection, number, priority=priority)
        seen = []
        consumer = consumer_of(connection, lambda body, _: seen.append(body))
        consumer.qos(prefetch_count=1)
        connection.drain_events(timeout=1)
        consumer.recover(requeue=True)
        consumer.qos(prefetch_count=0)
        drain(connection)
        assert seen == [2, 2, 1, 3, 0]


def test_what_is_no_message_is_a_dead_letter_and_those_behind_it_come(connect, tmp_path):
    with connect() as connection:
        send(connection, 0)
        with queue_of(tmp_path) as queue:
            queue.push([b"rotten", b"[]"])
        send(connection, 1)
        channel = connection.channel()
        assert [channel.basic_get("tasks", no_ack=True).decode() for _ in range(2)] == [0, 1]
        with queue_of(tmp_path) as queue:
            queue.push(b"{}")
        send(connection, 2)
        assert channel.basic_get("tasks").decode() == 2
        with queue_of(tmp_path) as queue:
            assert [letter.payload for letter in queue.dead] == [b"rotten", b"[]", b"{}"]


# --- what fails


def full(*_):
    raise DiskFullError("bytes", 1, 1, 1)


def test_in_a_transaction_of_another_directory_a_message_is_refused_at_once(connect, open_queue, monkeypatch):
    tries = []
    how = transport.Channel._how
    monkeypatch.setattr(transport.Channel, "_how", lambda *args: (tries.append(1), how(*args))[1])
    with connect() as connection:
        producer = connection.Producer()
        producer.publish("before", routing_key="tasks", declare=[kombu.Queue("tasks")])
        work = open_queue()
        with work.transaction():
            work.push(1)
            policy = {"max_retries": 3, "interval_start": 0.01}
            with pytest.raises(TransactionError):
                producer.publish("in it", routing_key="tasks", retry=True, retry_policy=policy)
        assert len(tries) <= 2
        assert list(work) == [1]
        producer.publish("behind", routing_key="tasks", retry=True, retry_policy=policy)
        assert taken_by_another(connect) == ["before", "behind"]


def test_an_acknowledgement_that_failed_can_be_repeated(connect, monkeypatch, tmp_path):
    with connect() as connection:
        send(connection, 1)
        message = connection.channel().basic_get("tasks")
        with monkeypatch.context() as patched:
            patched.setattr(LocalEngine, "ack", full)
            with pytest.raises(DiskFullError):
                message.ack()
        message.ack()
        with queue_of(tmp_path) as queue:
            assert queue.stats().leased == 0


def test_a_connection_that_cannot_give_back_lets_go_when_it_closes(connect, monkeypatch):
    with connect() as connection:
        send(connection, 1, 2)
        consumer_of(connection, lambda *_: None)
        connection.drain_events(timeout=1)
        with monkeypatch.context() as patched:
            patched.setattr(LocalEngine, "nack", full)
            patched.setattr(Broker, "drop", full)
            connection.close()
        assert taken_by_another(connect) == [1, 2]


def test_a_channel_that_closes_gives_back_though_its_consumer_cannot_clean_up(connect, monkeypatch):
    with connect() as connection:
        channel = connection.channel()
        passing = kombu.Queue("passing", expires=60, auto_delete=True)
        consumer = kombu.Consumer(channel, [passing], on_message=lambda _: None)
        consumer.consume()
        send(connection, 1, 2)
        channel.basic_get("tasks")
        monkeypatch.setattr(Broker, "drop", full)
        channel.close()
        assert taken_by_another(connect) == [1, 2]


def test_a_closed_connection_opens_nothing_again(connect):
    connection = connect()
    send(connection, 1)
    channel = connection.channel()
    message = channel.basic_get("tasks")
    broker = connection.transport.broker
    connection.close()
    message.ack()  # too late: it is with others
    for queue in ("tasks", "another"):
        with pytest.raises(connection.connection_errors):
            len(broker.queue(queue))
    assert taken_by_another(connect) == [1]


def test_threads_that_find_a_queue_gone_share_the_new_one(connect):
    with connect() as connection:
        send(connection, 1)
        broker = connection.transport.broker
        old = broker.queue("tasks")
        broker._forget("tasks", old)
        new = broker.queue("tasks")
        broker._forget("tasks", old)  # by the other thread, later
        assert broker.queue("tasks") is new
        assert len(new) == 1


# --- queues that go with their consumer


def test_a_consumer_that_was_stopped_for_longer_than_its_queue_lives_is_bound_again(connect):
    exchange = kombu.Exchange("news", type="fanout")
    seen = []

    def listen(connection, name, expires):
        queue = kombu.Queue(name, exchange, expires=expires, auto_delete=True, durable=False)
        consumer = kombu.Consumer(connection.channel(), [queue], no_ack=True, callbacks=[lambda b, _: seen.append(b)])
        consumer.consume()

    def publish(body):
        with connect() as other:
            other.Producer().publish(body, exchange=exchange, declare=[exchange])

    with connect() as stopped, connect() as another:
        listen(stopped, "mine", 0.01)
        drain(stopped)
        time.sleep(0.02)
        listen(another, "theirs", 60)  # which drops the other
        publish("lost, as it was gone")
        drain(stopped)
        publish("heard")
        drain(stopped)
        assert seen == ["heard"]


def test_the_queue_of_a_loop_that_is_busy_does_not_expire(connect):
    with connect() as connection:
        hub = Hub()
        queue = kombu.Queue("mine", expires=0.2, auto_delete=True, durable=False)
        kombu.Consumer(connection.channel(), [queue], callbacks=[print]).consume()
        connection.register_with_event_loop(hub)
        broker = connection.transport.broker
        before = broker.declared("mine").seen
        broker._looked.clear()
        broker.wake()  # its thread; the loop does not run
        eventually(lambda: broker.declared("mine").seen > before)
        connection.close()
        hub.close()


# --- the event loop


def test_the_alarm_outlives_what_fails_for_a_while(connect, monkeypatch):
    monkeypatch.setattr(_alarm, "LOOK", 0.01)
    with connect() as connection:
        hub = Hub()
        connection.register_with_event_loop(hub)
        broker = connection.transport.broker
        with monkeypatch.context() as patched:
            failed = threading.Event()
            patched.setattr(broker, "listen", lambda: (failed.set(), full()))
            assert failed.wait(10)
        seen = []
        consumer_of(connection, lambda body, _: seen.append(body))
        loop = hub.create_loop()
        for _ in range(3):
            hub.call_soon(int)
            next(loop)
        connection.transport.is_to_look = False
        send(connect(), 1)
        eventually(lambda: (hub.call_soon(int), next(loop), seen)[-1] == [1])
        connection.close()
        hub.close()


def test_in_a_loop_an_acknowledgement_leases_the_next_message_in_the_same_commit(connect, monkeypatch, tmp_path):
    with connect() as connection:
        hub = Hub()
        send(connection, *range(50))
        send(connection, "other", queue="other")
        connection.register_with_event_loop(hub)
        seen, held = [], []
        channel = connection.channel()
        for name in ("tasks", "other"):
            consumer = consumer_of(
                connection, lambda body, message: (seen.append(body), held.append(message)), name, channel
            )
        consumer.qos(prefetch_count=3)
        loop = hub.create_loop()
        rings = []
        ring = Bell.ring
        with monkeypatch.context() as patched:
            patched.setattr(Bell, "ring", lambda bell: (rings.append(1), ring(bell)))
            while len(seen) < 51:
                eventually(lambda: (hub.call_soon(int), next(loop), len(held) > 1 or len(seen) == 51)[-1])
                held.pop(0).ack()
        assert sorted(seen, key=str) == sorted([*range(50), "other"], key=str)
        assert len(rings) < 60, "one commit each"
        connection.close()
        hub.close()
    with queue_of(tmp_path) as queue:
        of_it = [message for message in held if message.decode() != "other"]
        assert (queue.stats().waiting, queue.stats().leased) == (len(of_it), 0)


def test_in_a_loop_a_consumer_that_acknowledges_at_once_leaves_time_for_others(connect):
    with connect() as connection:
        hub = Hub()
        send(connection, *range(100))
        connection.register_with_event_loop(hub)
        seen, turns = [], []
        channel = connection.channel()
        consumer_of(
            connection, lambda body, message: (seen.append((body, len(channel.taken))), message.ack()), channel=channel
        )
        loop = hub.create_loop()
        eventually(lambda: (turns.append(1), hub.call_soon(int), next(loop), len(seen) == 100)[-1])
        assert [body for body, _ in seen] == list(range(100))
        assert max(taken for _, taken in seen) < 16, "it leaves the others to other processes"
        assert len(turns) > 2
        connection.close()
        hub.close()


def test_in_a_loop_no_queue_waits_until_another_is_empty(connect):
    with connect() as connection:
        hub = Hub()
        send(connection, *range(100))
        connection.register_with_event_loop(hub)
        seen, held = [], []
        channel = connection.channel()
        for name in ("tasks", "other"):
            consumer = consumer_of(
                connection, lambda body, message: (seen.append(body), held.append(message)), name, channel
            )
        consumer.qos(prefetch_count=2)
        loop = hub.create_loop()
        eventually(lambda: (hub.call_soon(int), next(loop), len(held) == 2)[-1])
        send(connect(), "a", "b", "c", queue="other")
        while len(seen) < 103:
            held.pop(0).ack()
            eventually(lambda: (hub.call_soon(int), next(loop), len(held) > 1 or len(seen) == 103)[-1])
        assert seen.index("c") < seen.index(90)
        connection.close()
        hub.close()


def test_a_busy_loop_is_not_woken_by_each_of_its_own_commits(connect, monkeypatch):
    monkeypatch.setattr(_alarm, "_APART", 60.0)
    naps, gate = [], threading.Event()
    clock = SimpleNamespace(sleep=lambda seconds: (naps.append(seconds), gate.wait(60)), monotonic=time.monotonic)
    monkeypatch.setattr(_alarm, "time", clock)
    clock.time = time.time
    with connect() as connection:
        hub = Hub()
        send(connection, *range(30))
        connection.register_with_event_loop(hub)
        seen = []
        consumer = consumer_of(connection, lambda body, message: (seen.append(body), message.ack()))
        consumer.qos(prefetch_count=2)
        loop = hub.create_loop()
        eventually(lambda: (hub.call_soon(int), next(loop), len(seen) == 30)[-1])
        eventually(lambda: naps)
        assert len(naps) == 1, "it looked once, and was woken once"
        gate.set()
        connection.close()
        hub.close()


def test_a_callback_in_a_loop_may_close_the_connection(connect):
    connection = connect()
    hub = Hub()
    connection.register_with_event_loop(hub)
    send(connection, 1, 2)
    consumer_of(connection, lambda *_: connection.close())
    writer = connection.transport._alarm._writer
    tick = connection.transport._on_tick
    connection.transport.is_to_look = True
    tick()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(writer)
    read, write = os.pipe()
    os.dup2(write, writer)  # another file has the number that the alarm had
    tick()
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    for each in (read, write, writer):
        os.close(each)
    assert taken_by_another(connect) == [1, 2]
    hub.close()


# --- processes


def test_a_forked_child_goes_on_without_what_its_parent_has_taken(connect, tmp_path):
    seen = []
    with connect() as connection:
        send(connection, *range(3))

        def see(body, message):
            seen.append(body)
            message.ack()
            if body == 0:
                raise ZeroDivisionError

        def child():
            seen.clear()
            send(connection, 3)
            drain(connection)
            assert seen == [3]
            connection.close()

        consumer_of(connection, see)
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=1)
        assert status_of(forked(child)) == 0
        with queue_of(tmp_path) as queue:
            assert queue.stats().leased == 2, "the child has left them alone"
        connection.drain_events(timeout=1)
        assert seen == [0, 1, 2]


def test_a_pool_of_connections_serves_threads_and_forked_children(connect):
    pool = connect().Pool(limit=2)

    def publish(start):
        for number in range(start, start + 20):
            with pool.acquire(block=True) as connection:
                connection.Producer().publish(number, routing_key="tasks", declare=[kombu.Queue("tasks")])

    def in_threads(*starts):
        threads = [threading.Thread(target=publish, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_threads(0, 20, 40)
    children = [forked(in_threads, *starts) for starts in ((60, 80, 100), (120,))]
    in_threads(140, 160)
    assert [status_of(child) for child in children] == [0, 0]
    pool.force_close_all()
    assert sorted(taken_by_another(connect)) == list(range(180))


def test_a_program_that_ends_without_closing_says_nothing_and_what_it_held_is_back(connect, tmp_path):
    send(connect(), 1)
    program = (
        "import kombu, lmdbqueue.integrations.kombu\n"
        f"connection = kombu.Connection('lmdb:///{tmp_path}/broker')\n"
        "message = connection.channel().basic_get('tasks')\n"
        "assert message.decode() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert taken_by_another(connect) == [1]


# --- exchanges, and queues that nobody uses any more


def bound(connection, name, exchange, routing_key="", **options):
    queue = kombu.Queue(name, exchange, routing_key=routing_key, **options)
    queue(connection.default_channel).declare()
    return queue


def names(connection):
    return {name for name in connection.transport.broker.control.queues() if name.startswith("q-")}


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_a_message_for_several_queues_is_in_all_or_in_none(connect, monkeypatch, kind):
    with connect() as connection:
        exchange = kombu.Exchange("news", kind)
        for name in ("a", "b", "c"):
            bound(connection, name, exchange, "key")
        how, called = transport.Channel._how, []

        def fail_at_the_last(channel, queue, message):
            called.append(queue)
            if len(called) == 3:
                raise KeyboardInterrupt
            return how(channel, queue, message)

        producer = kombu.Producer(connection.default_channel, exchange, routing_key="key")
        with monkeypatch.context() as patched:
            patched.setattr(transport.Channel, "_how", fail_at_the_last)
            with pytest.raises(KeyboardInterrupt):
                producer.publish(1)
        assert [connection.default_channel._size(name) for name in ("a", "b", "c")] == [0, 0, 0]
        producer.publish(2)
        assert [taken_by_another(connect, name) for name in ("a", "b", "c")] == [[2], [2], [2]]


def test_an_exchange_is_deleted_without_its_queues(connect):
    with connect() as connection:
        exchange = kombu.Exchange("news", "fanout")
        queue = bound(connection, "mine", exchange)
        bound(connection, "empty", exchange)
        producer = kombu.Producer(connection.default_channel, exchange)
        producer.publish(1)
        message = queue(connection.default_channel).get()
        exchange(connection.default_channel).delete()
        producer.publish(2)  # no queue is bound
        assert names(connection) == {"q-mine", "q-empty"}
        message.requeue()
        bound(connection, "mine", exchange)
        producer.publish(3)
        assert taken_by_another(connect, "mine") == [1, 3]


def test_a_queue_with_an_unacknowledged_message_is_not_empty(connect):
    with connect() as connection:
        channel = connection.default_channel
        send(connection, 1)
        message = channel.basic_get("tasks")
        channel.queue_delete("tasks", if_empty=True)
        message.requeue()
        assert taken_by_another(connect) == [1]
        channel.basic_get("tasks").ack()
        channel.queue_delete("tasks", if_empty=True)
        assert names(connection) == set()


def test_a_queue_whose_consumer_was_killed_goes_with_the_next_message_for_it(connect):
    with connect() as connection:
        exchange = kombu.Exchange("news", "topic")
        bound(connection, "dead", exchange, "#", expires=0.01, auto_delete=True)
        bound(connection, "alive", exchange, "#")
        time.sleep(0.02)
        producer = kombu.Producer(connection.default_channel, exchange)
        producer.publish(1, routing_key="a.b")
        assert names(connection) == {"q-alive"}
        assert connection.default_channel._size("alive") == 1


def test_an_exclusive_queue_whose_consumer_was_killed_is_dropped_too(connect, monkeypatch):
    monkeypatch.setattr(_topology, "_ABANDONED", 0.01)
    with connect() as connection:
        bound(connection, "dead", kombu.Exchange("news", "fanout"), exclusive=True)
        time.sleep(0.02)
        bound(connection, "other", kombu.Exchange("news", "fanout"))
        assert names(connection) == {"q-other"}


@pytest.mark.parametrize("use", ["declare", "get"])
def test_a_queue_that_is_declared_again_or_asked_for_messages_does_not_expire(connect, use):
    with connect() as connection:
        exchange = kombu.Exchange("news", "fanout")
        queue = bound(connection, "mine", exchange, expires=0.5)
        broker = connection.transport.broker
        before = broker.declared("mine")
        broker.declare("mine", before._replace(seen=before.seen - 10))
        if use == "declare":
            with connect() as other:
                bound(other, "mine", exchange, expires=0.5)
        else:
            queue(connection.default_channel).get()
        assert broker.declared("mine").seen >= before.seen


def test_a_queue_whose_dropping_was_cut_short_is_dropped_later(connect):
    def drop():
        with connect() as connection:
            broker = connection.transport.broker
            broker.control.drop_queue = lambda _: os.kill(os.getpid(), 9)
            broker.drop("mine", broker.declared("mine"))

    with connect() as connection:
        bound(connection, "mine", kombu.Exchange("news", "fanout"), expires=0.01)
    time.sleep(0.02)
    assert status_of(forked(drop)) == KILLED
    with connect() as connection:
        bound(connection, "other", kombu.Exchange("news", "fanout"))
        assert names(connection) == {"q-other"}


def test_a_sender_keeps_no_handle_for_each_queue_of_replies_that_has_gone(connect):
    with connect() as connection, connect() as client:
        for number in range(300):
            send(client, number, queue=f"reply-{number}")
            send(connection, number, queue=f"reply-{number}")
            client.default_channel.queue_delete(f"reply-{number}")
        assert len(connection.transport.broker._queues) <= 100
        send(connection, "last", queue="reply-0")
        assert taken_by_another(connect, "reply-0") == ["last"]


def test_an_argument_of_a_queue_that_has_no_effect_is_told(connect, caplog):
    with connect() as connection:
        bound(connection, "short", kombu.Exchange("news"), max_length=3, expires=60, message_ttl=60, max_priority=9)
    assert [record.getMessage() for record in caplog.records if record.name == "lmdbqueue"] == [
        "arguments of queue 'short' that have no effect here: x-max-length"
    ]


def test_kombu_does_not_warn_that_there_is_no_host(connect, caplog):
    with connect() as connection, connection.clone() as other:
        assert connection.info()["virtual_host"] == other.info()["virtual_host"]
    assert caplog.records == []


def test_a_message_that_is_held_stays_so_when_another_queue_of_its_exchange_was_dropped(connect):
    connection, other = connect(), connect()
    channel = connection.channel()
    exchange = kombu.Exchange("all", type="fanout", channel=channel)
    queues = [kombu.Queue(name, exchange, channel=channel) for name in ("one", "two")]
    for queue in queues:
        queue.declare()
    producer = kombu.Producer(channel, exchange=exchange)
    producer.publish("first")
    held = queues[0].get()
    other.channel().broker.control.drop_queue(named("two"))  # as one that expires, but for its bindings
    producer.publish("second")
    assert taken_by_another(connect, "one") == ["second"]
    held.ack()
    assert taken_by_another(connect, "one") == ["second"]
    assert taken_by_another(connect, "two") == ["second"]


@pytest.mark.parametrize("by_another", [False, True])
@pytest.mark.parametrize("how", ["ack", "reject", "requeue", "close"])
def test_a_message_whose_queue_was_deleted_needs_no_end(connect, caplog, by_another, how):
    connection = connect()
    send(connection, "one", "two")
    channel = connection.channel()
    queue = kombu.Queue("tasks", channel=channel)
    message = queue.get()
    other = connect().channel() if by_another else channel
    kombu.Queue("tasks", channel=other).delete()
    queue.declare()  # a new one
    if by_another:
        assert queue.get() is None
    send(connection, "three")
    if how == "close":
        channel.close()
    else:
        getattr(message, how)()
        assert not channel.qos._leases
    assert caplog.records == []
    assert taken_by_another(connect) == ["three"]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("lmdb:///here", "here"),
        ("lmdb:///in/here", "in/here"),
        ("lmdb://localhost/here", "here"),
        ("lmdb:///a%20b", "a b"),
        ("lmdb://in/here", None),
        ("lmdb://./here", None),
        ("lmdb://here", None),
        ("lmdb://", None),
        ("lmdb:///", None),
    ],
)
def test_a_url_is_a_path_and_one_with_a_host_or_without_a_path_is_refused(tmp_path, monkeypatch, url, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    with kombu.Connection(url) as connection:
        if path is None:
            with pytest.raises(ValueError, match=r"names (a host|no directory)"):
                connection.connect()
            assert [*tmp_path.glob("**/*.mdb")] == []
        else:
            connection.connect()
            assert (tmp_path / path / "queue.json").exists()
