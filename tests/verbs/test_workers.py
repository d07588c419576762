"""Workers, on every engine: what a handler may be, what becomes of what it fails at, threads, hooks."""

import asyncio
import functools
import itertools
import logging
import os
import signal
import threading
import time
from contextlib import nullcontext
from functools import partial

import pytest
from processes import DEADLINE, eventually

from lmdbqueue import ClosedError, DecodeError, LeaseExpiredError, Retry, Worked

SOON = Retry(max_attempts=2, base=0.0, jitter=0.0)


class Until:
    """A ``stop`` that is set once so many items were done or are dead."""

    def __init__(self, n):
        self.n = n
        self.worked = Worked()

    def __call__(self):
        return self.worked.done + self.worked.dead >= self.n

    def progress(self, worked):
        self.worked = worked


def work(queue, handler, n, **options):
    until = Until(n)
    return queue.work(handler, stop=until, progress=until.progress, **options)


def test_a_failure_is_logged_with_its_traceback_and_the_dead_letter_keeps_it(queue, caplog):
    queue.push("bad", headers={"trace": "7"})

    def handle(_):
        raise LookupError("no such thing")

    with caplog.at_level(logging.ERROR, "lmdbqueue.work"):
        assert work(queue, handle, 1, retry=SOON) == Worked(0, 1, 1)
    assert [record.name for record in caplog.records] == ["lmdbqueue.work"] * 2
    assert all(record.exc_info[0] is LookupError for record in caplog.records)
    (letter,) = queue.dead
    assert (letter.reason, letter.attempts, letter.headers) == ("LookupError: no such thing", 2, {"trace": "7"})
    assert "in handle" in letter.traceback
    assert letter.traceback.endswith("LookupError: no such thing\n")


@pytest.mark.parametrize("items", [[b"bad"], [b"a", b"bad"]])
def test_an_item_that_loads_ends_the_worker_at_is_held_by_nobody_and_was_not_tried(engine, items):
    """On PostgreSQL it stayed leased until its time was over, or until the next lease, and counted as tried."""
    broken = [True]

    def loads(payload):
        if broken and payload == b"bad":
            raise SystemExit
        return payload

    queue = engine(dumps=bytes, loads=loads)
    queue.push(items)
    with pytest.raises(SystemExit):
        queue.work(lambda _: None, stop=threading.Event())
    assert (queue.stats().leased, queue.stats().waiting) == (0, 1)
    broken.clear()
    with queue.lease() as lease:
        assert (lease.items, lease.attempts) == ([b"bad"], [1])


@pytest.mark.parametrize(("retries", "tries"), [(9, 3), (2, 2), (None, 3)])
def test_the_limit_of_the_queue_applies_to_workers_unless_theirs_is_lower(queue, retries, tries):
    queue.max_attempts = 3
    queue.push("bad")
    seen = []

    def handle(_, job):
        seen.append(job.attempts)
        raise LookupError

    assert work(queue, handle, 1, retry=SOON._replace(max_attempts=retries)) == Worked(0, tries - 1, 1)
    assert seen == list(range(1, tries + 1))


def test_a_long_traceback_is_kept_from_its_end(queue):
    queue.push("bad")

    def handle(_):
        raise LookupError("x" * 100_000 + " the end")

    work(queue, handle, 1, retry=SOON)
    (letter,) = queue.dead
    assert 1_000 < len(letter.traceback) <= 8_000
    assert letter.traceback.endswith(" the end\n")


def test_a_bad_item_takes_none_of_its_batch_along(queue):
    queue.push_many(range(6))
    calls = []

    def handle(items):
        calls.append(items)
        if 3 in items:
            raise ValueError(items)

    assert work(queue, handle, 6, items=6, retry=SOON) == Worked(5, 6, 1)
    assert calls == [list(range(6)), *([n] for n in range(6))]
    assert [letter.item for letter in queue.dead] == [3]


def test_hooks_are_told_of_each_item_and_their_errors_are_logged(queue, caplog):
    queue.push_many(["a", "b"])
    retried, dead = [], []

    def handle(item):
        raise KeyError(item)

    def on_dead(job, error):
        dead.append((job.seq, job.attempts, str(error)))
        raise ZeroDivisionError

    hooks = {"on_retry": lambda job, _: retried.append(job.seq), "on_dead": on_dead}
    assert work(queue, handle, 2, retry=SOON, **hooks) == Worked(0, 2, 2)
    assert (sorted(retried), sorted(dead)) == ([0, 1], [(0, 2, "'a'"), (1, 2, "'b'")])
    assert "ZeroDivisionError" in caplog.text


def test_a_handler_of_two_arguments_gets_the_job(queue):
    before = time.time()
    queue.push("a", headers={"h": "1"})
    queue.push("b")
    seen = []
    work(queue, lambda item, job: seen.append((item, job)), 2)
    known = [(item, job.seq, job.attempts, job.headers) for item, job in seen]
    assert known == [("a", 0, 1, {"h": "1"}), ("b", 1, 1, {})]
    assert all(before - 5 < job.pushed_at < time.time() + 5 for _, job in seen)
    queue.push_many(["c", "d"])
    work(queue, lambda items, jobs: seen.append((items, [job.seq for job in jobs])), 2, items=5)
    assert seen[2:] == [(["c", "d"], [2, 3])]


async def awaited(item):
    """Do nothing."""


def generator(_):
    yield


async def hook_to_await(*_):
    """Do nothing."""


HOOKS = ["stop", "progress", "on_retry", "on_dead"]


class Awaited:
    async def __call__(self, _):
        """Do nothing."""


def of_three(_, __, ___):
    """Do nothing."""


def of_an_option(_, more=1):
    return more


WRONG = [awaited, Awaited(), partial(awaited), lambda: None, of_three, 5, None, "text", generator]


def test_a_handler_that_cannot_be_called_is_refused_before_the_first_lease(queue):
    queue.push("a")
    for handler in WRONG:
        with pytest.raises(TypeError):
            queue.work(handler)
    for hook in HOOKS:
        with pytest.raises(TypeError, match=f"'{hook}' is called and not awaited"):
            queue.work(print, **{hook: hook_to_await})
    assert (len(queue), queue.lease().attempts) == (1, [1])


def test_an_item_whose_handler_returned_a_coroutine_is_not_done(queue):
    queue.push("a")
    assert work(queue, lambda item: awaited(item=item), 1, retry=SOON) == Worked(0, 1, 1)
    (letter,) = queue.dead
    assert "the handler returned a coroutine" in letter.reason


def test_an_item_whose_handler_returned_a_generator_is_not_done(queue):
    queue.push("a")
    assert work(queue, lambda item: (each for each in item), 1, retry=SOON) == Worked(0, 1, 1)


def test_an_item_whose_handler_forgot_to_await_is_not_done(run):
    async def forgets(item):
        return awaited(item)

    async def test(queue):
        await queue.push("a")
        until = Until(1)
        assert await queue.work(forgets, retry=SOON, stop=until, progress=until.progress) == Worked(0, 1, 1)

    run(test)


def plain(item):
    """Do nothing."""


@functools.wraps(awaited)
def hiding(item):
    return awaited(item)


@functools.wraps(plain)
async def in_a_thread(item):
    await asyncio.to_thread(plain, item)


@functools.wraps(in_a_thread)
def hiding_one_of_a_plain_function(item):
    return in_a_thread(item)


@pytest.mark.parametrize(
    "handler", [hiding, in_a_thread, hiding_one_of_a_plain_function], ids=["hidden", "made", "both"]
)
def test_a_decorated_function_is_a_handler_if_it_is_awaited_somewhere(run, handler):
    async def test(queue):
        await queue.push("a")
        until = Until(1)
        assert await queue.work(handler, stop=until, progress=until.progress) == Worked(1, 0, 0)

    run(test)


class SpeechlessError(Exception):
    def __str__(self):
        raise RuntimeError("it has no text")


def speechless(_):
    raise SpeechlessError


def test_an_error_without_a_text_stops_no_worker_and_holds_no_lease(queue):
    queue.push("a")
    assert work(queue, speechless, 1, retry=SOON) == Worked(0, 1, 1)
    assert [letter.reason for letter in queue.dead] == ["SpeechlessError"]
    queue.push("b")
    with pytest.raises(SpeechlessError), queue.lease():
        raise SpeechlessError
    assert queue.pop() == "b"


def test_an_item_whose_loads_raises_an_error_without_a_text_is_passed(queue):
    queue.push("a")
    queue.loads = speechless
    with pytest.raises(DecodeError, match="SpeechlessError"):
        queue.pop()
    assert (len(queue.lease()), queue.stats().dead) == (0, 1)


RIGHT = [[].append, print, str, partial(print, "x"), of_an_option]


def test_whatever_takes_an_item_is_a_handler(queue):
    for handler in RIGHT:
        queue.push("a")
        assert work(queue, handler, 1) == Worked(1, 0, 0)


def test_handlers_run_in_as_many_threads_as_told(queue):
    queue.push_many(range(8))
    meeting = threading.Barrier(4, timeout=DEADLINE)
    threads = set()

    def handle(_):
        threads.add(threading.get_ident())
        meeting.wait()

    assert work(queue, handle, 8, concurrency=4) == Worked(8, 0, 0)
    assert len(threads) == 4
    with pytest.raises(ValueError, match="concurrency"):
        queue.work(handle, concurrency=0)


def test_what_is_no_exception_ends_all_threads_and_gives_their_items_back(queue):
    queue.push_many(range(8))

    def handle(item):
        if item == 3:
            raise SystemExit(item)

    with pytest.raises(SystemExit):
        queue.work(handle, concurrency=2)
    assert 3 in list(queue)
    assert queue.stats().leased == 0


def test_a_signal_ends_all_threads_and_goes_on_to_the_handler_of_before(queue):
    told = []

    def mine(number, _):
        told.append(number)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        beside = []
        other = threading.Thread(target=lambda: beside.append(queue.work(print)))  # in no main thread
        other.start()
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert queue.work(lambda _: None, concurrency=3) == Worked()
        other.join(DEADLINE)
        assert (beside, told) == ([Worked()], [signal.SIGTERM])
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_batches_of_a_worker_are_bounded_by_bytes(engine):
    queue = engine(dumps=bytes, loads=bytes)
    queue.push_many([b"x" * 10] * 5)
    sizes = []
    work(queue, lambda items: sizes.append(len(items)), 5, items=10, max_bytes=25)
    assert sizes == [2, 2, 1]


# --- awaited


def test_an_awaited_worker_does_the_same(run, caplog):
    async def test(queue):
        await queue.push_many(["a", "bad", "c"])
        seen, retried = [], []

        async def handle(items, jobs):
            seen.append((items, [job.seq for job in jobs]))
            if "bad" in items:
                raise LookupError(items)

        until = Until(3)
        told = {"progress": until.progress, "on_retry": lambda job, _: retried.append(job.seq)}
        worked = await queue.work(handle, items=3, retry=SOON, stop=until, **told)
        assert worked == Worked(2, 3, 1)
        assert seen == [(["a", "bad", "c"], [0, 1, 2]), (["a"], [0]), (["bad"], [1]), (["c"], [2])]
        assert retried == [0, 1, 2]
        (letter,) = [letter async for letter in queue.dead]
        assert "in handle" in letter.traceback

    run(test)
    assert "LookupError" in caplog.text


def test_awaited_handlers_run_in_as_many_tasks_as_told_and_may_block_the_loop(run):
    async def test(queue):
        await queue.push_many(range(6))
        together, most = 0, 0

        async def handle(_):
            nonlocal together, most
            together += 1
            most = max(most, together)
            await asyncio.sleep(0.05)
            together -= 1

        until = Until(6)
        assert await queue.work(handle, concurrency=3, stop=until, progress=until.progress) == Worked(6, 0, 0)
        assert most == 3

        async def block(_):
            time.sleep(1.0)  # noqa: ASYNC251  (longer than the ttl)

        await queue.push("slow")
        until = Until(1)
        assert await queue.work(block, ttl=0.4, stop=until, progress=until.progress) == Worked(1, 0, 0)

    run(test)


def test_a_plain_function_is_refused_where_a_coroutine_is_needed(run):
    async def test(queue):
        await queue.push("a")

        class Handlers:
            def plain(self, _):
                """Do nothing."""

        for wrong in (plain, lambda: None, 5, Handlers().plain, partial(plain), generator):
            with pytest.raises(TypeError):
                await queue.work(wrong)
        for hook in HOOKS:
            with pytest.raises(TypeError, match=f"'{hook}' is called and not awaited"):
                await queue.work(awaited, **{hook: hook_to_await})
        assert (await queue.stats()).waiting == 1

    run(test)


def test_an_awaited_worker_touches_no_signal_unless_told(run):
    async def test(queue):
        before = signal.getsignal(signal.SIGTERM)
        task = asyncio.ensure_future(queue.work(awaited))
        await asyncio.sleep(0.1)
        assert signal.getsignal(signal.SIGTERM) is before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        told = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, 1)
        try:
            mine = signal.getsignal(signal.SIGTERM)
            tasks = [asyncio.ensure_future(queue.work(awaited, signals=True)) for _ in range(2)]
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await asyncio.gather(*tasks) == [Worked(), Worked()]
            assert (told, signal.getsignal(signal.SIGTERM)) == ([1], mine)
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    run(test)


def test_the_default_retry_survives_an_hour():
    retry = Retry(jitter=0.0)
    assert sum(retry.delay(attempts) for attempts in range(1, retry.max_attempts)) > 3_600


def test_a_progress_that_waits_holds_up_no_other_thread_of_the_worker(queue):
    """It is called without a lock; in order, once for each lease."""
    queue.push(list(range(4)))
    handled, told, until = [], [], Until(4)

    def progress(worked):
        if not told:
            eventually(lambda: len(handled) >= 3)  # this thread is here: the other one goes on
        told.append(worked)
        until.progress(worked)

    assert queue.work(handled.append, concurrency=2, stop=until, progress=progress) == Worked(4)
    assert told == [Worked(1), Worked(2), Worked(3), Worked(4)]


def test_a_progress_that_raises_ends_the_work_and_is_told_again_by_the_next(queue):
    def fail(_):
        raise LookupError

    queue.push(["a", "b"])
    for _ in range(2):
        with pytest.raises(LookupError):
            queue.work(lambda _: None, progress=fail)
    assert queue.count() == 0


# --- the ack of an item brings the lease of the next along, where one commit can do both


def test_a_worker_leaves_what_it_was_told_not_to_begin_as_if_it_had_never_been_leased(queue):
    for is_event in (False, True):
        queue.push_many(range(6))
        done, ending = [], threading.Event()

        def handle(item, done=done, ending=ending):
            done.append(item)
            if len(done) == 3:
                ending.set()

        assert queue.work(handle, stop=ending if is_event else ending.is_set) == Worked(3, 0, 0)
        assert (done, queue.stats().leased) == ([0, 1, 2], 0)
        with queue.lease(6) as rest:
            assert (list(rest), rest.attempts) == ([3, 4, 5], [1, 1, 1])


def _clear(queue):
    queue.clear()
    queue.shutdown()


def _fail(_):
    raise LeaseExpiredError("another", [7])


@pytest.mark.parametrize("where", ["progress", "stop"])
@pytest.mark.parametrize(
    ("between", "raised", "left"),
    [
        (lambda queue: queue.close(), ClosedError, [2, 3]),
        (lambda queue: queue.shutdown(immediate=True), None, [2, 3]),
        (_clear, None, []),
        (_fail, LeaseExpiredError, [2, 3]),
    ],
)
def test_nothing_is_leased_while_a_function_of_the_users_is_called_between_two_items(
    engine, where, between, raised, left
):
    queue = engine()
    queue.push_many(range(4))
    done, leased = [], []

    def called(*_):
        leased.append(queue.stats().leased)
        if len(done) == 2:
            between(queue)
        return False

    with pytest.raises(raised) if raised else nullcontext():
        queue.work(done.append, **{where: called})
    assert (done, set(leased)) == ([0, 1], {0})
    with engine() as again, again.lease(4) as rest:
        assert (list(rest), rest.attempts) == (left, [1] * len(left))


def test_an_event_that_progress_sets_stops_a_worker_before_the_next_item(queue):
    queue.push_many(range(6))
    done, stop = [], threading.Event()

    def progress(worked):
        if worked.done == 2:
            stop.set()

    assert queue.work(done.append, stop=stop, progress=progress) == Worked(2, 0, 0)
    assert done == [0, 1]
    with queue.lease(6) as rest:
        assert (list(rest), rest.attempts) == ([2, 3, 4, 5], [1, 1, 1, 1])


def test_a_stop_that_looks_at_the_queue_sees_the_items_that_wait(queue):
    for is_over in (lambda: not len(queue), lambda: not queue.peek_many(1)):
        queue.push_many(range(5))
        done = []
        queue.work(done.append, stop=is_over)
        assert done == [0, 1, 2, 3, 4]
        assert (len(queue), queue.stats().leased) == (0, 0)


def test_a_stop_that_says_so_once_is_heard(queue):
    for at in range(1, 8):
        queue.push_many(range(9))
        asked = itertools.count(1)
        worked = queue.work([].append, stop=lambda asked=asked, at=at: next(asked) == at)
        assert (next(asked), worked.done < at) == (at + 1, True)
        queue.clear()


def test_a_stop_that_says_so_once_is_heard_by_an_awaited_worker(run):
    async def handle(_item):
        pass

    async def test(queue):
        for at in range(1, 8):
            await queue.push(list(range(9)))
            asked = itertools.count(1)
            worked = await queue.work(handle, stop=lambda asked=asked, at=at: next(asked) == at)
            assert (next(asked), worked.done < at) == (at + 1, True)
            await queue.clear()

    run(test)


def test_an_item_is_done_although_the_stop_asked_after_it_raises(queue):
    queue.push_many(range(3))
    done = []

    def stop():
        if done:
            raise LookupError

    with pytest.raises(LookupError):
        queue.work(done.append, stop=stop)
    assert done == [0]
    assert queue.stats().leased == 0
    assert queue.pop(5) == [1, 2]


def test_a_worker_meets_what_cannot_be_decoded_what_comes_due_and_what_is_shut_down(engine):
    queue = engine(dumps=bytes, loads=lambda payload: payload.decode())
    queue.push_many([b"a", b"\xff", b"b", b"\xff", b"c" * 100_000, b"d"])
    done = []

    def handle(item):
        done.append(item[0])
        if item == "b":
            queue.push(b"urgent", priority=-1)
        if item == "d":
            queue.shutdown(immediate=True)

    assert queue.work(handle).done == 5
    assert done == ["a", "b", "u", "c", "d"]
    assert [letter.seq for letter in queue.dead] == [1, 3]
