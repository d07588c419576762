"""The forwarder: what is in a queue here goes there, each item once and in order, whatever dies meanwhile."""

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import postgres_server
import pytest
from postgres_proxy import Proxy
from processes import DEADLINE, KILLED, eventually, forked, status_of

from lmdbqueue import CorruptItemError, ForwardError, GoneError, OptionError, PersistentQueue, forward
from lmdbqueue.forward import Batch, Envelope, Forwarded, Forwarder, Mark, Origin, QueueSource, ReaderSource, Target
from lmdbqueue.postgres import PostgresQueue, PostgresTarget


@pytest.fixture
def proxy(postgres):
    proxy = Proxy(postgres)
    yield proxy
    proxy.close()


class Memory(Target):
    """A target in memory, that keeps marks, or not, and that can be away."""

    def __init__(self, *, keeps=True):
        self.keeps = keeps
        self.mark = None
        self.items = []
        self.numbers = []
        self.sizes = []  # of batches
        self.away = 0
        self.origin = None
        self.is_closed = False

    def last(self, origin):
        self.origin = origin
        self._refuse_if_away()
        return self.mark

    def store(self, batch):
        self._refuse_if_away()
        self.items += batch.payloads
        self.numbers += batch.mark.seqs
        self.sizes.append(sum(map(len, batch.payloads)))
        if self.keeps:
            assert batch.mark.number == (self.mark.number if self.mark else 0) + 1
            self.mark = batch.mark

    def close(self):
        self.is_closed = True

    def _refuse_if_away(self):
        if self.away:
            self.away -= 1
            message = "nobody there"
            raise OSError(message)


def raw(open_queue, **options):
    return open_queue(dumps=bytes, loads=bytes, **options)


def numbered(source, items):
    envelopes, payloads = source.read(items, 1000)
    return [envelope.seq for envelope in envelopes], payloads


# --- what it does


def test_what_waits_goes_there_in_order_as_bytes_and_is_gone_here(open_queue, tmp_path):
    queue = open_queue(loads=lambda _: 1 / 0)
    queue.push(list(range(25)))
    target = Memory()
    done = Forwarder(queue, target, batch=10).run()
    assert list(map(pickle.loads, target.items)) == list(range(25))
    assert (len(queue), done.items, done.batches, done.failures, done.waiting) == (0, 25, 3, 0, 0)
    assert done.size == sum(map(len, target.items))
    assert target.mark._replace(digest=b"") == Mark(3, [20, 21, 22, 23, 24], 25, 25)
    assert target.origin == Origin(queue._engine.environment.directory.options.uuid, "queue")
    assert target.is_closed
    queue.push("more")
    assert Forwarder(tmp_path / "queue", target).run() == Forwarded(1, 1, len(pickle.dumps("more")), 0, 0)
    assert queue.push("next") == 26


def test_a_batch_is_limited_in_bytes_and_has_one_item_at_least(open_queue):
    queue = raw(open_queue)
    queue.push([b"x" * 1000] * 10 + [b"y" * 50_000])
    target = Memory()
    assert Forwarder(queue, target, max_bytes=3000).run().batches == 5
    assert [len(item) for item in target.items] == [1000] * 10 + [50_000]
    assert target.sizes == [3000, 3000, 3000, 1000, 50_000]
    for options in ({"batch": 0}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            Forwarder(queue, target, **options)
    with pytest.raises(TypeError, match="'remote' must be a queue or a Target, not str"):
        Forwarder(queue, "postgresql://")


@pytest.mark.parametrize("is_reader", [False, True])
def test_a_target_gets_the_number_headers_and_time_of_each_item(open_queue, is_reader):
    queue = raw(open_queue)
    source = queue.reader("r") if is_reader else queue
    before = time.time()
    headers = [{"traceparent": "00-é", "": "empty"}, {}, {}, {"n": "d"}]
    queue.push(b"a", headers=headers[0])
    queue.push([b"b", b"c"])
    queue.push(b"d", headers=headers[3], unique="d", expires=500)
    target = Memory()
    seen = []
    store = target.store
    target.store = lambda batch: (store(batch), seen.extend(batch.enveloped()))
    assert Forwarder(source, target, batch=3).run().items == 4
    assert [envelope[:2] for envelope, _ in seen] == list(enumerate(headers))
    assert [payload for _, payload in seen] == target.items == [b"a", b"b", b"c", b"d"]
    assert all(before - 1 <= envelope.pushed_at <= time.time() for envelope, _ in seen)
    assert Batch(Origin("", ""), Mark(1, [7], 8, 1), [b"x"]).enveloped() == [(Envelope(7), b"x")]


@pytest.mark.parametrize("is_reader", [False, True])
def test_headers_come_to_postgresql_with_their_items(open_queue, open_postgres, postgres, schema, is_reader):
    queue, there = raw(open_queue), open_postgres(dumps=bytes, loads=bytes)
    source = queue.reader("r") if is_reader else queue
    headers = [{"traceparent": "00-é"}, {}, {"a": "1", "": "\0"}, {"bad": "x"}]
    for number, each in enumerate(headers):
        queue.push(b"%d" % number, headers=each)
    postgres.execute(f"""ALTER TABLE "{schema}".items ADD CHECK (coalesce(headers NOT LIKE '%bad%', true))""")
    assert Forwarder(source, there).run().refused == 1
    lease = there.lease(9)
    assert (lease.items, lease.headers) == ([b"0", b"1", b"2"], headers[:3])
    aside = queue
    if is_reader:
        aside = PersistentQueue(queue._engine.path, name="queue-r-refused", dumps=bytes, loads=bytes)
    assert [(letter.payload, letter.headers) for letter in aside.dead] == [(b"3", {"bad": "x"})]
    aside.close()


@pytest.mark.parametrize("is_reader", [False, True])
def test_a_batch_that_lingers_goes_when_it_is_full_and_at_the_end_of_its_time(open_queue, is_reader):
    queue = raw(open_queue)
    source = queue.reader("r") if is_reader else queue
    queue.push(b"a")
    target = Memory()
    forwarder = Forwarder(source, target, batch=3, max_bytes=100, linger=3600, follow=True)
    with ThreadPoolExecutor(1) as pool:
        try:
            done = pool.submit(forwarder.run)
            eventually(lambda: target.origin is not None)
            queue.push([b"b", b"c"])
            eventually(lambda: len(target.items) == 3)
            queue.push([b"x" * 60, b"y" * 60])  # the second does not fit
            eventually(lambda: target.sizes == [3, 60])
            queue.push(b"z" * 60)
            eventually(lambda: target.sizes == [3, 60, 60])
        finally:
            forwarder.stop()
        done.result(DEADLINE)
    with pytest.raises(ValueError, match="follow=True"):
        Forwarder(queue, target, linger=1)
    queue.push(b"late")
    target = Memory(keeps=False)
    short = Forwarder(source, target, linger=0.01, follow=True, progress=lambda _: short.stop())
    assert short.run().batches == 1


def test_what_came_back_or_due_goes_in_the_order_in_which_consumers_would_get_it(open_queue):
    queue = raw(open_queue)
    queue.push([b"0", b"1", b"2", b"3"])
    queue.push(b"due", delay=1)
    queue.push(b"later", delay=100)
    lease = queue.lease(3)
    lease.nack(1)
    eventually(lambda: len(queue) == 3)
    target = Memory()
    assert Forwarder(queue, target, batch=2).run().items == 3
    assert target.items == [b"1", b"3", b"due"]
    lease.nack()
    assert Forwarder(queue, target, batch=1).run().items == 2
    assert target.items == [b"1", b"3", b"due", b"0", b"2"]
    assert queue.stats().delayed == 1


@pytest.mark.parametrize("unique", [None, list("abcdefgh")])
def test_just_what_was_forwarded_is_removed_whatever_others_do_meanwhile(open_queue, unique):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(8)], unique=unique)
    held = queue.lease(2)
    source = QueueSource(queue._engine.path)
    assert numbered(source, 3) == ([2, 3, 4], [b"2", b"3", b"4"])
    assert queue.pop() == b"2"
    held.nack()
    assert queue.push([b"8"]) == range(8, 9)
    assert source.remove([2, 3, 4]) == 2
    assert source.remove([2, 3, 4]) == 0
    assert source.remove([]) == 0
    assert list(queue) == [b"0", b"1", b"5", b"6", b"7", b"8"]
    assert queue.lease(2).attempts == [2, 2], "what is known of the others was lost"
    if unique:
        assert queue.push([b"x", b"y"], unique=["a", "d"]) == [0, 9]
    source.close()
    assert queue.check() == []


def test_a_damaged_item_stops_it_and_stays(open_queue):
    queue = raw(open_queue)
    queue.push([b"a", b"b"])
    with queue._engine.environment.exclusive() as (generation, txn):
        txn.put(bytes([128, 0, 0, 0, 0, 0, 0, 1]), b"rotten", db=generation.table(queue._engine.ref).items)
        generation.commit(txn)
    target = Memory()
    with pytest.raises(CorruptItemError):
        Forwarder(queue, target, batch=1).run()
    assert (target.items, len(queue)) == ([b"a"] if len(target.items) else [], 2 - len(target.items))
    queue.clear()


# --- from a named reader


def test_a_reader_is_drained_and_what_it_passed_stays_for_others(open_queue):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(10)])
    queue.reader("billing")
    archive, central = Memory(), Memory()
    assert Forwarder(queue.reader("archive", start=6), archive, batch=3).run().items == 4
    assert Forwarder(queue.reader("central"), central, batch=4).run().items == 10
    assert (archive.numbers, central.numbers) == ([6, 7, 8, 9], list(range(10)))
    assert central.origin == Origin(queue._engine.environment.directory.options.uuid, "queue/central")
    assert {each.name: each.position for each in queue.readers()} == {"archive": 10, "billing": 0, "central": 10}
    assert len(queue) == 10
    queue.push(b"more")
    assert Forwarder(queue.reader("central"), central).run() == Forwarded(1, 1, 4, 0, 0)
    assert central.numbers[-1] == 10


def test_a_reader_of_a_database_is_refused(open_postgres):
    with pytest.raises(TypeError, match="only a reader of a PersistentQueue"):
        Forwarder(open_postgres().reader("central"), Memory())


@pytest.mark.parametrize("keeps", [True, False])
def test_a_reader_whose_forwarder_dies_between_the_two_sides_forwards_each_item_once(open_queue, keeps):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(10)])
    target = Memory(keeps=keeps)
    source = ReaderSource(queue._engine.path, "queue", "central")
    source.remove = lambda _: (_ for _ in ()).throw(_Killed)
    with pytest.raises(_Killed):
        Forwarder(source, target, batch=4).run()
    source.close()
    reader = queue.reader("central")
    assert (len(target.items), reader.position) == (4, 0)
    Forwarder(reader, target, batch=3).run()
    assert target.numbers == [*([] if keeps else range(4)), *range(10)]
    assert (len(queue), reader.skipped) == (0, 0)


def test_what_came_back_before_the_end_of_a_batch_is_passed_and_skipped(open_queue):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(8)])
    queue.reader("other")
    source = ReaderSource(queue._engine.path, "queue", "central")
    held = queue.lease(2)
    assert numbered(source, 4) == ([2, 3, 4, 5], [b"2", b"3", b"4", b"5"])
    held.nack(1)
    assert source.remove([2, 3, 4, 5]) == 4
    assert source.remove([2, 3, 4, 5]) == source.remove([]) == 0
    reader = queue.reader("central")
    assert (reader.position, reader.skipped, source.bounds()) == (6, 2, (6, 2))
    assert numbered(source, 4)[0] == [6, 7]
    source.close()


def test_a_reader_that_was_put_back_is_refused(open_queue):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(10)])
    queue.reader("other")
    reader, target = queue.reader("central"), Memory()
    Forwarder(reader, target, batch=3).run()
    reader.seek(5)
    with pytest.raises(ForwardError, match="older copy"):
        Forwarder(reader, target).run()
    assert (reader.position, len(target.items)) == (5, 10)


# --- crashes, as a target sees them


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("keeps", [True, False])
def test_one_that_dies_between_the_two_sides_has_each_item_once_if_the_target_keeps_marks(open_queue, keeps):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(10)])
    target = Memory(keeps=keeps)
    source = QueueSource(queue._engine.path)
    source.remove = lambda _: (_ for _ in ()).throw(_Killed)
    with pytest.raises(_Killed):
        Forwarder(source, target, batch=4).run()
    assert (len(target.items), len(queue)) == (4, 10)
    source.close()
    Forwarder(queue, target, batch=3).run()
    assert target.numbers == [*([] if keeps else range(4)), *range(10)]
    assert len(queue) == 0


def test_a_target_that_is_away_is_tried_again(open_queue, caplog):
    queue = raw(open_queue)
    queue.push([b"a", b"b"])
    target = Memory()
    target.away = 3
    seen = []
    done = Forwarder(queue, target, batch=1, pause=0.02, progress=seen.append).run()
    assert (target.items, done.failures) == ([b"a", b"b"], 3)
    assert [each.failures for each in seen] == [1, 2, 3, 3, 3, 3]
    assert [each.away_since is None for each in seen] == [False, False, False, True, True, True]
    assert seen[0].away_since == seen[2].away_since == pytest.approx(time.time(), abs=DEADLINE)
    assert caplog.text.count("the target of 'queue' has been away since") == 3
    assert caplog.text.count("the target of 'queue' is back after") == 1


def test_a_target_that_takes_nothing_is_away_until_it_has_taken_a_batch(open_queue, caplog):
    queue = raw(open_queue)
    queue.push([b"a", b"b"])
    target = Memory()
    store, tries = target.store, []

    def fail(batch):
        tries.append(batch)
        if len(tries) < 3:
            raise TimeoutError
        store(batch)

    target.store = fail
    seen = []
    Forwarder(queue, target, pause=0.01, progress=seen.append).run()
    assert [each.away_since is None for each in seen] == [False, False, True, True]
    assert seen[0].away_since == seen[1].away_since
    assert caplog.text.count("the target of 'queue' is back after") == 1


def test_an_error_that_does_not_mean_away_ends_it(open_queue):
    queue = raw(open_queue)
    queue.push(b"a")
    target = Memory()
    target.store = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Forwarder(queue, target).run()
    assert target.is_closed
    assert list(queue) == [b"a"]


@pytest.mark.parametrize("how", ["shorter", "longer than what was forwarded"])
def test_a_source_that_was_restored_from_a_backup_is_refused(open_queue, tmp_path, how):
    queue = raw(open_queue)
    queue.push([b"%d" % n for n in range(10)])
    queue.close()
    shutil.copytree(tmp_path / "queue", tmp_path / "backup")
    target = Memory()
    with PersistentQueue("queue", tmp_path) as queue:
        Forwarder(queue, target, batch=2).run()
        queue.push([b"x"] * 5)
        Forwarder(queue, target, batch=2).run()
    shutil.rmtree(tmp_path / "queue")
    shutil.copytree(tmp_path / "backup", tmp_path / "queue")
    with PersistentQueue("queue", tmp_path, dumps=bytes, loads=bytes) as queue:
        if how != "shorter":
            queue.push([b"new"] * 10)
        before = list(queue)
        with pytest.raises(ForwardError, match="older copy"):
            Forwarder(queue, target).run()
        assert list(queue) == before
        assert len(target.items) == 15
        assert queue.check() == []


def test_no_queue_is_made_of_a_wrong_name_or_path(open_queue, tmp_path):
    open_queue()
    with pytest.raises(KeyError):
        QueueSource(tmp_path / "queue", "jobs")
    with PersistentQueue("queue", tmp_path) as queue:
        assert queue.queues() == ["queue"]
    for arguments, told in (
        (["nothing", "postgresql://"], "there is no queue at"),
        (["queue", "postgresql://", "--name", "jobs"], "there is no queue 'jobs'"),
    ):
        process = command(tmp_path / arguments[0], *arguments[1:])
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 4
        assert told in err
    assert os.listdir(tmp_path) == ["queue"]


# --- following, stopping


def test_one_that_follows_forwards_what_comes_and_ends_when_it_is_told(open_queue):
    queue = raw(open_queue)
    target = Memory()
    forwarder = Forwarder(queue, target, follow=True)
    thread = threading.Thread(target=forwarder.run)
    thread.start()
    for n in range(5):
        queue.push(b"%d" % n)
        eventually(lambda n=n: len(target.items) == n + 1)
    forwarder.stop()
    thread.join(DEADLINE)
    assert target.items == [b"0", b"1", b"2", b"3", b"4"]
    assert target.is_closed


def command(path, url, *arguments):
    words = [sys.executable, "-m", "lmdbqueue", "forward", os.fspath(path), url, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_drains_a_queue_and_says_so(open_queue, postgres, tmp_path):
    queue = open_queue(name="jobs")
    queue.push([*range(2500)])
    there = PostgresQueue(postgres.url(), "jobs")
    process = command(tmp_path / "queue", postgres.url(), "--name", "jobs")
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    assert out == f"{tmp_path / 'queue'}: 2,500 items in 3 batches; failures of the target: 0\n"
    assert there.pop(3000) == [*range(2500)]
    process = command(tmp_path / "queue", postgres.url(), "--name", "jobs", "--to", "other", "--follow")
    queue.push("followed")
    with PostgresQueue(postgres.url(), "other") as other:
        assert other.get(timeout=DEADLINE) == "followed"
        eventually(lambda: len(queue) == 0)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
        assert "1 item in 1 batch;" in out
        other.drop_queue("other")
        other.drop_queue("jobs")
    there.close()


def test_a_queue_that_the_command_makes_has_the_serializer_of_its_source(open_queue, postgres, tmp_path):
    queue = open_queue(name="texts", serializer="json")
    queue.push({"a": 1})
    _, err = command(tmp_path / "queue", postgres.url(), "--name", "texts").communicate(timeout=DEADLINE)
    assert err == ""
    with PostgresQueue(postgres.url(), "texts", serializer="json") as there:
        assert there.pop() == {"a": 1}
        with pytest.raises(OptionError):
            PostgresQueue(postgres.url(), "texts")
        there.drop_queue("texts")


def test_the_command_drains_a_reader(open_queue, postgres, tmp_path):
    queue = open_queue(name="jobs")
    queue.push([*range(5)])
    queue.reader("other")
    process = command(tmp_path / "queue", postgres.url(), "--name", "jobs", "--reader", "central", "--batch", "2")
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    assert "5 items in 3 batches" in out
    assert [(each.name, each.lag) for each in queue.readers()] == [("central", 0), ("other", 5)]
    with PostgresQueue(postgres.url(), "jobs") as there:
        assert there.pop(9) == [*range(5)]
        there.drop_queue("jobs")


def test_the_command_waits_for_a_database_that_is_away(open_queue, proxy, tmp_path):
    queue = open_queue(name="jobs")
    queue.push("a")
    proxy._is_down = True
    process = command(tmp_path / "queue", proxy.url(), "--name", "jobs")
    assert "the target of 'jobs' has been away since" in process.stderr.readline()
    proxy.disarm()
    assert process.wait(DEADLINE) == 0
    assert len(queue) == 0
    process.communicate()
    with PostgresQueue(proxy.url(), "jobs") as there:
        assert there.pop() == "a"
        there.drop_queue("jobs")


# --- into PostgreSQL


@pytest.mark.parametrize("mode", ["request", "reply", "late"])
def test_each_item_is_there_once_whenever_a_connection_is_lost(open_queue, proxy, schema, open_postgres, mode):
    queue, there = open_queue(durability="off"), open_postgres()
    at = 1
    number = 0
    while True:
        queue.push([number, number + 1, number + 2])
        remote = PostgresQueue(proxy.url(), schema=schema, patience=5.0)
        proxy.arm(mode, at)
        done = Forwarder(queue, remote, batch=2, pause=0.05).run()
        has_cut = proxy.has_cut
        proxy.disarm()
        remote.close()
        assert done.items in (1, 3)  # 1: a batch was there, and found so
        assert there.pop(10) == [number, number + 1, number + 2]
        assert len(queue) == 0
        number += 3
        at += 1
        if not has_cut:
            break
    assert at > 5


def test_of_two_forwarders_of_one_source_one_works_and_the_other_waits(open_queue, open_postgres):
    queue, there = open_queue(), open_postgres()
    queue.push([1, 2, 3])
    first, second = PostgresTarget(there), PostgresTarget(there)
    origin = QueueSource(queue._engine.path)
    assert first.last(origin.origin) is None
    waiting = threading.Thread(target=Forwarder(origin, second, batch=1).run)
    waiting.start()
    with pytest.raises(forward.BusyError):
        PostgresTarget(there).last(origin.origin)
    assert len(there) == 0
    first.close()
    waiting.join(DEADLINE)
    assert there.pop(5) == [1, 2, 3]
    origin.close()


def test_a_batch_that_another_has_stored_is_not_stored_again(open_postgres):
    there = open_postgres(dumps=bytes, loads=bytes)
    target = PostgresTarget(there)
    origin = Origin("u", "n")
    assert target.last(origin) is None
    batch = Batch(origin, Mark(1, [0, 1], 2, 2), [b"a", b"b"])
    target.store(batch)
    with pytest.raises(forward.BusyError):
        target.store(batch)
    with pytest.raises(forward.BusyError):
        target.store(Batch(origin, Mark(3, [4], 5, 3), [b"c"]))
    assert target.last(origin) == Mark(1, [0, 1], 2, 2)
    target.store(Batch(origin, Mark(2, [7, 8, 2], 9, 5), [b"c", b"d", b"e"]))
    assert target.last(origin) == Mark(2, [7, 8, 2], 9, 5)
    assert list(there) == [b"a", b"b", b"c", b"d", b"e"]
    there.drop_queue("queue")
    assert target.last(origin) is None
    with pytest.raises(GoneError):
        target.store(batch)
    assert target.last(origin) is None
    target.close()


def forward_for_ever(place, url, schema, kills_before, reader):
    """Forward; with ``kills_before`` die before the removal of some batch, which is stored already."""
    if kills_before:
        left = [random.randrange(1, 6)]  # noqa: S311
        kind = ReaderSource if reader else QueueSource
        remove = kind.remove

        def removed(self, seqs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return remove(self, seqs)

        kind.remove = removed

    def there():
        return PostgresQueue(url, schema=schema, patience=1.0)

    source = ReaderSource(place, "queue", reader) if reader else QueueSource(place)
    Forwarder(source, PostgresTarget(there), batch=25, pause=0.1).run()


def drain_through_kills(place, server, schema, *, items, kills, server_kills, reader=""):
    """Forward all items while the forwarder, and the server, are killed again and again; return what is there."""
    chance = random.Random(1)  # noqa: S311
    with PersistentQueue("queue", place) as queue:
        queue.push(list(range(items)))
        done = 0
        ends = sorted(chance.sample(range(1, kills), server_kills))
        while done < kills:
            pid = forked(forward_for_ever, place / "queue", server.url(), schema, done % 2, reader)
            before = len(queue)
            wanted = chance.randrange(1, items // kills)

            def has_come(before=before, wanted=wanted, pid=pid):
                return len(queue) <= before - wanted or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

            eventually(has_come)
            if done in ends:
                (server.stop if chance.random() < 0.5 else server.kill)()
            os.kill(pid, signal.SIGKILL)
            assert status_of(pid) == KILLED
            if done in ends:
                server.start()
            assert len(queue), "it was faster than the kills"
            done += 1
        forward_for_ever(place / "queue", server.url(), schema, 0, reader)
        assert len(queue) == 0
    found = []
    with PostgresQueue(server.url(), schema=schema) as there:
        found += there.pop(items // 2)
    server.stop()
    server.start()
    with PostgresQueue(server.url(), schema=schema) as there:
        while got := there.pop(1000):
            found += got
        assert there.check() == []
    return found


@pytest.fixture
def own_server(needs_postgres):
    """Give a server that may be killed."""
    needs_postgres()
    server = postgres_server.Server().create().start()
    yield server
    server.remove()


def test_each_item_is_there_once_and_in_order_through_kills_of_both_sides(own_server, tmp_path, record_property):
    found = drain_through_kills(tmp_path, own_server, "s", items=2_000, kills=12, server_kills=3)
    assert found == list(range(2_000))
    record_property("kills", 15)


def test_each_item_of_a_reader_is_there_once_and_in_order_through_kills_of_both_sides(own_server, tmp_path):
    found = drain_through_kills(tmp_path, own_server, "s", items=1_000, kills=6, server_kills=2, reader="central")
    assert found == list(range(1_000))


@pytest.mark.long
def test_each_item_is_there_once_and_in_order_through_very_many_kills(own_server, tmp_path, record_property):
    found = drain_through_kills(tmp_path, own_server, "s", items=20_000, kills=50, server_kills=10)
    assert found == list(range(20_000))
    record_property("kills", 60)


def test_the_time_until_a_stop_is_short_though_the_target_is_away(open_queue):
    queue = raw(open_queue)
    queue.push(b"a")
    target = Memory()
    target.away = 10**9
    forwarder = Forwarder(queue, target, pause=600)
    thread = threading.Thread(target=forwarder.run)
    thread.start()
    eventually(lambda: target.away < 10**9 - 3)
    begun = time.monotonic()
    forwarder.stop()
    thread.join(DEADLINE)
    assert time.monotonic() - begun < 5
    assert list(queue) == [b"a"]
