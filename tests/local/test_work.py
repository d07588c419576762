"""The loop of a worker: retries, dead letters, stopping, leases that are kept alive; alone and in an event loop."""

import asyncio
import itertools
import os
import pickle
import random
import signal
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from clocks import SECOND, Clock
from processes import DEADLINE, STEP, Moments, eventually, interrupt

from lmdbqueue import Lease, LeaseExpiredError, Retry, StorageError, Worked
from lmdbqueue._host import signals as _signals
from lmdbqueue._host.signals import stopped_by_signals
from lmdbqueue._verbs.head import Batch
from lmdbqueue._verbs.lease import relay_all
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.aio._grouping import Grouping
from lmdbqueue.aio._jobs import Relay


def test_delays_grow_up_to_a_limit_and_differ_by_chance():
    retry = Retry(base=2.0, factor=3.0, max_delay=50.0, jitter=0.0)
    assert [retry.delay(attempts) for attempts in (1, 2, 3, 4, 5_000)] == [2, 6, 18, 50, 50]
    delays = {Retry(base=10.0, jitter=0.1).delay(1) for _ in range(100)}
    assert len(delays) > 50
    assert min(delays) >= 9
    assert max(delays) <= 11


def test_a_handler_whose_lease_is_over_all_the_same_is_told_of_in_the_log(open_queue, caplog):
    queue = open_queue()
    queue.push(["a", "b"])
    stop = threading.Event()

    def handle(item):
        if item == "a":
            queue.clear(all=True)
        stop.set()

    assert queue.work(handle, stop=stop) == Worked()
    assert "the lease of items 0 of queue 'queue' is over" in caplog.text
    assert caplog.records[0].name == "lmdbqueue.work"


def test_a_lease_that_came_with_an_ack_begins_once_its_item_is_decoded(open_queue):
    clock, stop, handled, seen = Clock(), threading.Event(), [], []
    other = clock.given_to(open_queue())

    def loads(data):
        clock.go_on(50)
        return pickle.loads(data)

    def handle(item):
        handled.append(item)
        clock.go_on(50)
        seen.append(list(other))
        if item == "c":
            stop.set()

    other.push(["a", "b", "c"])
    assert clock.given_to(open_queue(loads=loads)).work(handle, ttl=60, stop=stop) == Worked(3, 0, 0)
    assert (handled, seen) == (["a", "b", "c"], [["b", "c"], ["c"], []])


def test_leases_that_came_with_acks_of_several_tasks_begin_once_all_items_are_decoded(open_queue):
    clock, leases, seen = Clock(), [], []
    other = clock.given_to(open_queue())

    def loads(data):
        clock.go_on(25)
        seen.extend(other if leases else ())
        return pickle.loads(data)

    other.push(list("abcdef"))
    queue = clock.given_to(open_queue(loads=loads))
    leases += [queue.lease() for _ in range(3)]
    relayed = relay_all(queue._engine, leases, 60, head_of(queue).sort_out)
    assert [(error, items) for error, (items, _) in relayed] == [(None, [item]) for item in "def"]
    assert {leased.deadline - clock.mono / SECOND for _, (_, leased) in relayed} == {60}
    clock.go_on(50)
    assert (seen, list(other), other.stats().leased) == ([], [], 3)


def test_a_relay_whose_companion_is_cancelled_gets_the_error_that_came_after_its_ack(open_queue, monkeypatch):
    queue = open_queue(dumps=str.encode, loads=bytes.decode)
    queue.push(["a", "b"])
    queue._engine.append([b"\xff"])

    def fail(*_):
        raise StorageError(queue.path, "commit", "the disk failed")

    async def test():
        jobs = [Relay(asyncio.get_running_loop().create_future(), queue.lease(), 60) for _ in "ab"]
        jobs[0].future.cancel()
        monkeypatch.setattr(queue._engine, "nack", fail)  # what makes the unreadable item a dead letter
        return list(Grouping(head_of(queue)).done(jobs[0].kind, jobs))

    ((_, _, error),) = asyncio.run(test())
    assert isinstance(error, StorageError)
    assert (queue.stats().leased, len(queue)) == (1, 1), "an ack was lost, or a lease stays"


def test_an_item_that_others_lease_while_it_is_decoded_is_not_handled(open_queue):
    clock, stop, handled, taken = Clock(), threading.Event(), [], []
    other = clock.given_to(open_queue())

    def loads(data):
        if handled and not taken:
            clock.go_on(61)
            taken.append(other.lease())
        return pickle.loads(data)

    def handle(item):
        handled.append(item)
        if item == "c":
            stop.set()

    other.push(["a", "b", "c"])
    assert clock.given_to(open_queue(loads=loads)).work(handle, ttl=60, stop=stop) == Worked(2, 0, 0)
    assert (handled, taken[0].items, taken[0].attempts) == (["a", "c"], ["b"], [2])
    taken[0].ack()
    assert other.stats().leased == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_handler_finish_and_ends_the_loop(open_queue, number):
    queue = open_queue()
    queue.push(["a", "b"])
    before = signal.getsignal(number)

    def handle(_item):
        os.kill(os.getpid(), number)
        time.sleep(0.05)

    assert queue.work(handle) == Worked(1, 0, 0)
    assert list(queue) == ["b"]
    assert signal.getsignal(number) is before


def test_a_second_signal_does_what_it_always_does(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])

    def handle(_item):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        queue.work(handle)
    assert list(queue) == ["a", "b"]
    assert queue.lease(2).attempts == [2, 1]


def test_a_shutdown_ends_the_loop_of_another_thread(open_queue):
    queue = open_queue()
    queue.push("a")
    results = []
    thread = threading.Thread(target=lambda: results.append(queue.work(lambda _: None)))
    thread.start()
    eventually(lambda: queue.stats().removed == 1)
    queue.shutdown()
    thread.join(DEADLINE)
    assert results == [Worked(1, 0, 0)]


# --- awaited


def test_awaited_leases_mean_what_they_mean_without_await(run):
    async def test(queue):
        await queue.push(list("abcdef"))
        async with queue.lease(2) as lease:
            assert (list(lease), lease[0], len(lease), lease.items) == (["a", "b"], "a", 2, ["a", "b"])
            assert (lease.seqs, lease.attempts, lease.deadline) == ([0, 1], [1, 1], None)
        with pytest.raises(ZeroDivisionError):
            async with queue.lease(2):
                1 / 0  # noqa: B018
        lease = await queue.lease(3, ttl=50)
        await lease.extend(60)
        assert lease.attempts == [2, 2, 1]
        await lease.nack(2)
        await lease.ack([3])
        stats = await queue.stats()
        assert (stats.waiting, stats.leased) == (2, 1)
        await queue.clear(all=True)
        with pytest.raises(LeaseExpiredError):
            await lease.ack()
        assert not await queue.lease()
        assert await queue.push("k", unique="k", delay=0.05) == await queue.push("k", unique="k")
        async with queue.lease(blocking=True, timeout=DEADLINE) as lease:
            assert list(lease) == ["k"]

    run(test)


def test_awaited_dead_letters(run):
    async def test(queue):
        await queue.push(list("abc"))
        await (await queue.lease(3)).nack()
        assert await queue.dead.count() == 3
        assert [letter.item async for letter in queue.dead] == ["a", "b", "c"]
        assert (await queue.dead.requeue(1), await queue.dead.delete(0), await queue.dead.count()) == (1, 1, 1)

    run(test, max_attempts=1)


def test_leases_that_are_cancelled_give_back_what_they_took(run):
    async def test(queue):
        waiting = [
            asyncio.ensure_future(queue._leased(Batch(1, None, 0.0), None, blocking=True, timeout=None))
            for _ in range(50)
        ]
        await asyncio.sleep(0.05)
        await queue.push(list(range(50)))
        for task in waiting[::2]:
            task.cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        leases = [lease for lease in found if not isinstance(lease, asyncio.CancelledError)]
        assert len(leases) >= 25
        assert (await queue.count(), (await queue.stats()).leased) == (50 - len(leases), len(leases))
        for lease in leases:
            await lease.ack()

    run(test)


def test_an_awaited_worker_that_is_cancelled_gives_back_what_it_holds(run):
    async def test(queue):
        await queue.push("a")
        started = asyncio.Event()

        async def handle(_item):
            started.set()
            await asyncio.sleep(DEADLINE)

        task = asyncio.ensure_future(queue.work(handle))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await queue.peek() == "a"

    run(test)


def test_a_stop_that_is_set_at_first_ends_the_loop_at_once(open_queue):
    stop = threading.Event()
    stop.set()
    assert open_queue().work(print, stop=stop) == Worked()


def test_all_that_run_are_stopped_though_one_of_them_ends_amid_that():
    stopped = []
    with ExitStack() as stack:
        first = ExitStack()

        def stop_and_end():
            stopped.append("first")
            first.close()  # as another thread does meanwhile

        first.enter_context(stopped_by_signals(stop_and_end))
        stack.enter_context(stopped_by_signals(lambda: stopped.append("second")))
        _signals._handle(signal.SIGTERM, None)
    assert stopped == ["first", "second"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, LookupError])
def test_an_interrupt_at_any_moment_leaves_the_handlers_of_before(raised):
    def interrupt():
        raise raised

    before = [signal.getsignal(number) for number in _signals.SIGNALS]
    for number in itertools.count(1):
        moments = Moments(number, interrupt)
        with suppress(raised), moments, stopped_by_signals(lambda: None):
            pass
        assert [signal.getsignal(number) for number in _signals.SIGNALS] == before, f"at moment {number}"
        assert not _signals._before
        assert not _signals._running
        if moments.left > 0:
            break
    assert number > 5


def test_handlers_that_could_not_be_given_back_are_left_alone(monkeypatch):
    """Those of a program that embeds Python, in C, are None here."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    with stopped_by_signals(lambda: None):
        assert not _signals._before


def test_a_lease_is_kept_alive_after_an_extension_that_failed(run, monkeypatch):
    extended, again = [], threading.Event()

    def extend(_lease, ttl):
        extended.append(ttl)
        if len(extended) == 1:
            raise StorageError("queue", "sync", "the disk is away for a moment")
        again.set()

    monkeypatch.setattr(Lease, "extend", extend)

    async def test(queue):
        await queue.push("a")
        ending = threading.Event()

        async def handle(_item):
            await asyncio.to_thread(again.wait, DEADLINE)
            ending.set()

        await queue.work(handle, ttl=0.03, stop=ending)

    run(test)
    assert set(extended) == {0.03}


def test_a_worker_commits_once_an_item(open_queue):
    queue = open_queue()
    queue.push_many(range(10))
    environment = queue._engine.environment._generation._env
    before, done, ending = environment.info()["last_txnid"], [], threading.Event()

    def handle(item):
        done.append(item)
        if len(done) == 10:
            ending.set()

    queue.work(handle, stop=ending)
    assert environment.info()["last_txnid"] == before + 11


def test_awaited_workers_share_commits(run, place):
    """The tasks of a group acknowledge what they have, and lease what follows, in one commit."""
    tasks, rounds = 20, 5

    async def test(queue):
        await queue.push(list(range(tasks * rounds)))
        before, done, ending = place.commits(queue), [], threading.Event()
        together = asyncio.Barrier(tasks)

        async def handle(item):
            await together.wait()
            done.append(item)
            if len(done) == tasks * rounds:
                ending.set()

        assert (await queue.work(handle, concurrency=tasks, stop=ending)).done == tasks * rounds
        assert sorted(done) == list(range(tasks * rounds))
        assert place.commits(queue) - before < tasks * rounds / 2

    run(test)


def test_a_worker_that_is_interrupted_at_any_moment_loses_no_item_and_holds_none(open_queue, record_property):
    for number in itertools.count(1 + random.randrange(STEP), STEP):  # noqa: S311
        queue = open_queue(name=str(number), dumps=bytes, loads=bytes)
        queue.push_many([b"a", b"b", b"c", b"d"])
        done, ending = [], threading.Event()

        def handle(item, done=done, ending=ending):
            done.append(item)
            if len(done) == 3:
                ending.set()

        moments = Moments(number, interrupt)
        with suppress(KeyboardInterrupt), moments:
            queue.work(handle, stop=ending)
        assert queue.stats().leased == 0
        rest = queue.pop(9)
        items = [b"a", b"b", b"c", b"d"]
        assert done == items[: len(done)]
        assert rest in (items[len(done) :], items[max(0, len(done) - 1) :])  # the last one not acknowledged
        if moments.left:
            record_property("interrupts", number // STEP)
            assert rest == [b"d"]
            return
