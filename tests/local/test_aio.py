"""``AsyncPersistentQueue``: the verbs awaited, shared commits, waiting without threads, cancelling without loss."""

import asyncio
import inspect
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from processes import eventually, forked, has_ended, status_of, threads_of_this_process

from lmdbqueue import (
    ClosedError,
    CorruptItemError,
    DecodeError,
    Empty,
    Full,
    Lease,
    LeaseExpiredError,
    NestedCallError,
    PersistentQueue,
    Reader,
    ShutDown,
)
from lmdbqueue._verbs.head import Batch
from lmdbqueue._verbs.lease import DeadLetters
from lmdbqueue.aio import AsyncDeadLetters, AsyncLease, AsyncPersistentQueue, AsyncReader, _courier
from lmdbqueue.aio._courier import Call
from lmdbqueue.aio._jobs import Claimed, Wanted


def test_the_verbs_mean_what_they_mean_without_await(run, place):
    async def test(queue):
        assert await queue.push("a") == 0
        assert await queue.push(["b", "c", "d"]) == range(1, 4)
        assert await queue.push([]) == range(0)
        assert (await queue.count(), await queue.qsize(), await queue.empty(), await queue.full()) == (
            4,
            4,
            False,
            False,
        )
        assert (await queue.peek(), await queue.peek(2), await queue.peek(0)) == ("a", ["a", "b"], [])
        assert [item async for item in queue] == ["a", "b", "c", "d"]
        assert (await queue.pop(), await queue.pop(0), await queue.pop(2)) == ("a", [], ["b", "c"])
        assert await queue.delete(5) == 1
        assert (await queue.pop(), await queue.pop(3), await queue.peek(), await queue.peek(3)) == (None, [], None, [])
        await queue.put(["one", "item"])
        await queue.put_nowait("two")
        assert (await queue.get(), await queue.get_nowait()) == (["one", "item"], "two")
        await queue.push(list(range(1000)))
        await queue.clear()
        assert await queue.flush(force=True) >= 0
        await queue.push("last")
        async with await queue.copy("copy") as copy:
            assert await copy.pop() == "last"
        assert await queue.check() == []
        assert "queue" in repr(queue)

    run(test)
    with place.open() as queue:
        assert list(queue) == ["last"]


def test_errors_are_those_of_the_verbs(run):
    async def test(queue):
        for verb in (queue.pop, queue.peek, queue.delete):
            with pytest.raises(ValueError, match="'items' must be a number of items, 0 or more"):
                await verb(-1)
            with pytest.raises(TypeError):
                await verb("many")
        with pytest.raises(Empty):
            await queue.get(block=False)
        with pytest.raises(Empty):
            await queue.get(timeout=0)
        with pytest.raises(Empty):
            await queue.pop(2, blocking=True, timeout=0.01)
        with pytest.raises(Empty):
            await queue.peek(blocking=True, timeout=0.01)
        with pytest.raises(ValueError, match="non-negative"):
            await queue.get(timeout=-1)
        with pytest.raises(TypeError, match="dumps must return bytes"):
            await queue.push(object())
        await queue.push([b"1", b"2"])
        await queue.push(b"3")
        with pytest.raises(Full):
            await queue.push(b"4")
        with pytest.raises(Full):
            await queue.put(b"4", timeout=0.01)
        assert await queue.pop(3) == [b"1", b"2", b"3"]

    run(test, maxsize=3, dumps=lambda item: item, loads=bytes)


def test_what_cannot_be_decoded_stays_and_every_caller_is_told(run):
    def loads(data):
        if data == b"bad":
            raise KeyError(data)
        return bytes(data)

    async def test(queue):
        await queue.push([b"good", b"bad", b"more"])
        results = await asyncio.gather(*(queue.get() for _ in range(3)), return_exceptions=True)
        assert results[0] == b"good"
        assert [type(each) for each in results[1:]] == [DecodeError, DecodeError]
        assert await queue.count() == 2
        assert await queue.delete() == 1
        assert await queue.pop() == b"more"

    run(test, dumps=bytes, loads=loads)


def test_stop_iteration_from_a_function_of_the_users_is_told_and_changes_nothing(run):
    async def test(queue):
        for push in (queue.push(b""), queue.push([b"a", b""]), queue.push([b"a", b""], delay=9), queue.put(b"")):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await push
        assert (await queue.stats()).tail == 0
        queue.queue.dumps = bytes
        await queue.push([b"a", b""])
        assert await queue.peek(2) == await queue.pop(2, blocking=True) == [b"a"]
        for read in (queue.peek(2), queue.pop(2), queue.pop(1, blocking=True)):
            with pytest.raises(DecodeError, match="StopIteration"):
                await read
        assert await queue.count() == 1

    empty = iter(())
    run(test, dumps=lambda item: item or next(empty), loads=lambda payload: payload or next(empty))


def test_an_item_is_encoded_before_push_gives_way(run):
    async def test(queue):
        item = ["before"]
        push = asyncio.create_task(queue.put(item))
        await asyncio.sleep(0)
        item[0] = "after"
        await push
        assert await queue.get() == ["before"]

    run(test)


def test_pushes_at_once_share_commits_and_keep_their_order(run, place):
    async def test(queue):
        await queue.push("first")
        before = place.commits(queue)
        numbers = await asyncio.gather(*(queue.push(number) for number in range(1000)))
        assert place.commits(queue) - before < 100
        assert numbers == list(range(1, 1001))
        assert await queue.pop(1001) == ["first", *range(1000)]

    run(test)


def test_pushes_with_options_share_commits_and_fail_alone(run, place):
    tasks = 100

    async def test(queue):
        before = place.commits(queue)
        pushes = [
            queue.push(n, headers={"n": str(n)}, unique=str(n // 2), priority=n % 3, delay=(n % 5 == 4) * 3600)
            for n in range(tasks)
        ]
        told = await asyncio.gather(*pushes)
        assert place.commits(queue) - before < tasks / 4
        assert [number.is_stored for number in told] == [n % 2 == 0 for n in range(tasks)]
        assert [told[n] == told[n + 1] for n in range(0, tasks, 2)] == [True] * (tasks // 2)
        stored = [n for n in range(0, tasks, 2) if n % 5 != 4]
        lease = await queue.lease(tasks)
        assert list(lease) == sorted(stored, key=lambda n: n % 3)
        assert [each["n"] for each in await lease.headers()] == [str(n) for n in lease]
        await lease.ack()
        queue.queue.maxsize = len(queue.queue) + queue.queue.stats().delayed + 2
        told = await asyncio.gather(
            queue.push("a", headers={"n": "a"}),
            queue.push(["b", "b"], headers={"n": "b"}),
            queue.push("c", unique="c"),
            queue.push("d", headers={}),
            queue.put("e", block=False, priority=-1),
            return_exceptions=True,
        )
        assert [type(each).__name__ for each in told] == ["int", "Full", "Number", "Full", "Full"]
        queue.queue.maxsize = 0
        replaced = await asyncio.gather(*(queue.push(n, unique="r", replace=True) for n in range(10)))
        assert all(number.is_stored for number in replaced)
        assert len(set(replaced)) == len(replaced)
        assert await queue.pop_many(9) == ["a", "c", 9]

    run(test)


def test_so_many_pushes_with_options_share_a_commit_that_others_need_not_wait_long(run, monkeypatch):
    async def test(queue):
        engine, shared = queue._engine, []
        append = engine.append_each

        def counted(pushes):
            shared.append(len(pushes))
            return append(pushes)

        monkeypatch.setattr(engine, "append_each", counted)
        pushes = [queue.push(n, headers={"n": str(n)}) for n in range(1000)]
        assert await asyncio.gather(*pushes) == list(range(1000))
        assert 10 <= max(shared) <= 100

    run(test)


def test_pushes_that_share_a_commit_fail_alone(run):
    async def test(queue):
        pushes = [queue.push(list(range(n))) for n in (3, 4, 9, 2, 1, 1)]
        results = await asyncio.gather(*pushes, return_exceptions=True)
        assert [type(each) for each in results] == [range, range, Full, range, range, Full]
        assert await queue.count() == 10

    run(test, maxsize=10)


def test_payloads_of_many_megabytes_do_not_come_into_one_transaction(run, place):
    async def test(queue):
        before = place.commits(queue)
        await asyncio.gather(*(queue.push(b"x" * 6_000_000) for _ in range(6)))
        assert place.commits(queue) - before >= 3
        assert await queue.count() == 6

    run(test, dumps=bytes, loads=bytes)


@pytest.mark.parametrize("from_outside", [False, True])
def test_500_waiters_get_an_item_each_in_their_order_and_cost_no_threads(run, place, from_outside):
    async def test(queue):
        waiters = [asyncio.create_task(queue.get()) for _ in range(500)]
        await queue.count()  # they have all been tried and sleep
        assert threads_of_this_process() <= threads + 3
        if from_outside:
            pid = forked(_push, place, list(range(500)))
        else:
            await asyncio.gather(*(queue.push(number) for number in range(500)))
        assert await asyncio.gather(*waiters) == list(range(500))
        if from_outside:
            assert status_of(pid) == 0

    threads = threads_of_this_process()
    run(test)


@pytest.mark.parametrize(("end", "error"), [("close", ClosedError), ("shutdown", ShutDown)])
def test_close_and_shutdown_wake_500_waiters(run, end, error):
    async def test(queue):
        waiters = [asyncio.create_task(queue.get()) for _ in range(500)]
        await queue.count()  # they have all been tried and sleep
        await queue.close() if end == "close" else queue.shutdown()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(each) for each in results] == [error] * 500

    run(test)


def _push(place, items):
    with place.open() as queue:
        for item in items:
            queue.push(item)


def test_every_verb_that_waits_wakes_up(run):
    async def test(queue):
        waiting = [
            asyncio.create_task(queue.peek(2, blocking=True)),
            asyncio.create_task(queue.pop(2, blocking=True)),
        ]
        await queue.push("a")
        await queue.count()
        assert not any(task.done() for task in waiting)
        await queue.push("b")
        assert await asyncio.gather(*waiting) == [["a", "b"], ["a", "b"]]
        await queue.push(["1", "2"])
        put = asyncio.create_task(queue.put("3"))
        await queue.count()
        assert not put.done()
        assert await queue.get() == "1"
        await put
        assert await queue.pop(2) == ["2", "3"]

    run(test, maxsize=2)


def test_cancelling_a_waiting_get_takes_no_item(run):
    async def test(queue):
        for verb in (queue.get, lambda: queue.pop(blocking=True), lambda: queue.pop(2, blocking=True)):
            waiter = asyncio.create_task(verb())
            await queue.count()
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(verb(), 0.01)
            await queue.push(["x", "y"])
            assert await queue.pop(3) == ["x", "y"]

    run(test)


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_cancels_loses_no_item_and_doubles_none(run, place, seed):
    chance = random.Random(seed)  # noqa: S311
    pushed, tried, got = set(), [], Counter()

    async def push(queue, numbers):
        tried.append(numbers)
        await queue.push(numbers)
        pushed.update(numbers)

    async def take(queue, n):
        found = [await queue.get()] if n == 1 else await queue.pop(n)
        got.update(found)

    async def test(queue):
        number = 0
        tasks = []
        for _ in range(1500):
            if chance.random() < 0.5:
                numbers = list(range(number, number + chance.choice((1, 1, 1, 5))))
                number += len(numbers)
                tasks.append(asyncio.create_task(push(queue, numbers)))
            else:
                tasks.append(asyncio.create_task(take(queue, chance.choice((1, 1, 1, 3)))))
            if chance.random() < 0.1:
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
            if chance.random() < 0.5:
                chance.choice(tasks[-50:]).cancel()
        for task in tasks:
            if not task.done() and chance.random() < 0.5:
                task.cancel()
        pushes = [task for task in tasks if task.get_coro().__name__ == "push"]
        await asyncio.wait(pushes)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run(test)
    with place.open() as queue:
        left = Counter(queue)
        assert list(left) == sorted(left)
    assert set(left.values()) | set(got.values()) <= {1}
    assert not left.keys() & got.keys()
    found = left.keys() | got.keys()
    assert pushed <= found <= {number for numbers in tried for number in numbers}
    assert {len(found.intersection(numbers)) / len(numbers) for numbers in tried} <= {0, 1}  # none by half
    assert got


@pytest.mark.parametrize("seed", range(1))
def test_a_storm_of_cancels_of_those_who_wait_loses_and_doubles_nothing_of_anybody(run, place, seed):
    chance = random.Random(seed)  # noqa: S311
    options = {"maxsize": 8}
    stored, tried, got = set(), set(), Counter()

    def put_all():
        with place.open(**options) as queue:
            for number in range(300):
                queue.put(-1 - number)

    async def put(queue, number):
        tried.add(number)
        await queue.put(number)
        stored.add(number)

    async def take(queue, n):
        found = [await queue.get()] if n == 1 else await queue.pop(n, blocking=True)
        got.update(found)

    async def test(queue):
        pid = forked(put_all)
        tasks = []
        while not has_ended(pid) or len(tasks) < 1000:
            if chance.random() < 0.4:
                tasks.append(asyncio.create_task(put(queue, len(tasks))))
            else:
                tasks.append(asyncio.create_task(take(queue, chance.choice((1, 1, 3)))))
            if sum(not task.done() for task in tasks[-200:]) > 100 or chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
            if chance.random() < 0.6:
                chance.choice(tasks[-20:]).cancel()
        assert status_of(pid) == 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert {type(task.exception()) for task in tasks if not task.cancelled()} == {type(None)}
        assert sum(task.cancelled() for task in tasks) > 100

    run(test, **options)
    with place.open(**options) as queue:
        left = Counter(queue)
        assert queue.check() == []
    assert set((left + got).values()) == {1}
    found = left.keys() | got.keys()
    assert stored | set(range(-300, 0)) <= found <= tried | set(range(-300, 0))


def test_items_of_a_get_that_is_cancelled_after_it_was_served_are_put_back(run):
    async def test(queue):
        await queue.push(["a", "b", "c"])
        task = asyncio.create_task(queue.pop(2))
        while await count(queue) == 3:
            pass
        task.cancel()  # amid the take, or after it
        await asyncio.wait([task])
        left = ["a", "b", "c"] if task.cancelled() else ["c"]
        assert await queue.peek(len(left), blocking=True) == left

    async def count(queue):
        await asyncio.sleep(0)
        return queue.queue.count()

    run(test)


def test_what_an_interrupt_keeps_from_being_delivered_is_delivered_nevertheless(place):
    class Interrupted(asyncio.Future):
        def set_result(self, result):
            if interrupts:
                raise interrupts.pop()
            super().set_result(result)

    async def begin():
        queue = await place.open_async()
        await queue.push(["a", "b", "c"])
        loop.create_future = lambda: Interrupted(loop=loop)
        interrupts.append(KeyboardInterrupt())
        return queue, asyncio.gather(*(queue.get() for _ in range(3)))

    async def end():
        del loop.create_future
        assert await asyncio.wait_for(got, 20) == ["a", "b", "c"]
        await queue.close()

    interrupts, loop = [], asyncio.new_event_loop()
    queue, got = loop.run_until_complete(begin())
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_until_complete(end())
    loop.close()


@pytest.mark.parametrize("verb", ["get", "pop"])
def test_what_a_cancelled_call_had_taken_has_its_key_its_attempts_and_its_readers_again(run, place, verb):
    async def test(queue):
        await queue.push(["a", "b"], unique=["k", None], expires=3600, headers={"to": "me"})
        await (await queue.lease(1)).nack()
        reader = await queue.reader("r")
        task = asyncio.create_task(queue.get() if verb == "get" else queue.pop(2))
        await asyncio.sleep(0)
        while queue.queue.find("k") is not None:  # the loop does not come to deliver what was taken
            time.sleep(0.001)  # noqa: ASYNC251
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        while await queue.count() != 2:
            pass
        assert (await queue.find("k"), await reader.skipped()) == (0, 0)

    run(test)
    with place.open() as queue:
        assert queue.check() == []
        assert not queue.push("c", unique="k").is_stored
        with queue.lease(2) as lease:
            assert (lease.items, lease.attempts) == (["a", "b"], [2, 1])
            assert lease.headers == [{"to": "me"}] * 2


def test_a_lease_whose_caller_was_cancelled_is_no_attempt(run, place):
    async def test(queue):
        await queue.push(["a", "b"], unique=["k", None])
        with place.open() as other:
            other.lease(1).nack()

        async def lease():
            return await queue.lease(2)

        task = asyncio.create_task(lease())
        await asyncio.sleep(0)
        while queue.queue.count():  # the loop does not come to deliver the lease
            time.sleep(0.001)  # noqa: ASYNC251
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        while await queue.count() != 2:
            assert not queue.queue.dead
        assert await queue.find("k") == 0

    run(test, max_attempts=1)
    with place.open() as queue:
        assert queue.check() == []
        with queue.lease(2) as lease:
            assert (lease.items, lease.attempts) == (["a", "b"], [2, 1])


def test_closing_ends_those_who_wait_and_does_what_was_called_before(run, place):
    async def test(queue):
        waiter = asyncio.create_task(queue.get())
        look = asyncio.create_task(queue.peek(101, blocking=True))
        await queue.count()
        pushes = [asyncio.create_task(queue.push(number)) for number in range(100)]
        await asyncio.sleep(0)
        await queue.close()
        await asyncio.gather(*pushes)
        with pytest.raises(ClosedError):
            await look
        (first,) = await asyncio.gather(waiter, return_exceptions=True)
        assert first == 0 or isinstance(first, ClosedError)
        taken.extend([first] if first == 0 else [])
        for verb in (queue.get, queue.count, lambda: queue.push(1), lambda: queue.put(1)):
            with pytest.raises(ClosedError):
                await verb()
        await queue.close()

    taken = []
    run(test)
    with place.open() as queue:
        assert [*taken, *queue] == list(range(100))


def test_shutdown_ends_those_who_wait_when_nothing_is_left(run):
    async def test(queue):
        await queue.push(["a", "b"])
        queue.shutdown()
        with pytest.raises(ShutDown):
            await queue.push("c")
        with pytest.raises(ShutDown):
            await queue.put("c")
        results = await asyncio.gather(*(queue.get() for _ in range(4)), return_exceptions=True)
        assert results[:2] == ["a", "b"]
        assert [type(each) for each in results[2:]] == [ShutDown, ShutDown]

    async def immediately(queue):
        waiters = [asyncio.create_task(queue.get()) for _ in range(3)]
        await queue.count()
        queue.shutdown(immediate=True)
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(each) for each in results] == [ShutDown] * 3

    run(test)
    run(immediately)


def test_join_waits_for_what_was_taken(run):
    async def test(queue):
        await queue.push([1, 2])
        join = asyncio.create_task(queue.join())
        await queue.get()
        await queue.get()
        await queue.count()
        assert not join.done()
        queue.task_done()
        queue.task_done()
        await join
        with pytest.raises(ValueError, match="too many"):
            queue.task_done()

    run(test)


def test_loops_in_two_threads_share_a_directory(place):
    taken = []

    async def work(name):
        async with place.open_async() as queue:
            await asyncio.gather(*(queue.push((name, number)) for number in range(300)))
            taken.extend([await queue.get() for _ in range(300)])

    threads = [threading.Thread(target=lambda name=name: asyncio.run(work(name))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [(name, number) for name in "ab" for number in range(300)]


def test_a_loop_that_ends_with_calls_under_way_loses_nothing(place):
    with place.open() as sync:
        sync.push(list(range(100)))

        async def main():
            queue = await place.open_async()
            for _ in range(100):
                asyncio.ensure_future(queue.get())  # noqa: RUF006
            await asyncio.sleep(0)
            return queue._courier, asyncio.get_running_loop().create_future()

        courier, nobody = asyncio.run(main())
        courier._jobs.put(Call(nobody, bool))
        eventually(courier._is_over.is_set)  # what it had taken for nobody is back then
        sync.push("probe")
        assert sync.pop(101) == [*range(100), "probe"]
        assert sync.check() == []


ENDS_AMID_GETS = """
import asyncio, random, sys
from lmdbqueue.aio import AsyncPersistentQueue


got = []


async def main(seed):
    queue = await AsyncPersistentQueue.open("queue", sys.argv[1])
    chance = random.Random(seed)

    async def take():
        while True:
            got.append(await queue.get())

    tasks = [asyncio.ensure_future(take()) for _ in range(chance.randrange(1, 20))]
    await asyncio.sleep(chance.random() / 50)


asyncio.run(main(int(sys.argv[2])))
print(len(got))  # here, since callbacks that were ready as main returned have run
"""


def test_a_program_that_ends_amid_gets_loses_nothing(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        for seed in range(4):
            queue.clear()
            queue.push(list(range(200)))
            command = [sys.executable, "-c", ENDS_AMID_GETS, str(tmp_path), str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            assert done.stderr == ""
            got = int(done.stdout)
            assert list(queue) == list(range(got, 200))


def test_what_ends_a_program_in_loads_reaches_the_caller_and_leaves_nobody_waiting(run):
    def loads(payload):
        if payload == b"exit":
            raise SystemExit(3)
        return payload

    async def test(queue):
        await queue.push([b"exit", b"a"])
        for verb in (queue.pop(2), queue.get(), queue.peek()):
            with pytest.raises(ValueError, match="3"):
                await asyncio.wait_for(contained(verb), 20)
        assert await queue.count() == 2
        assert await queue.delete_item(0)
        assert await queue.get() == b"a"

    async def contained(awaitable):
        try:
            return await awaitable
        except SystemExit as error:  # which would end the loop
            raise ValueError(*error.args) from None

    run(test, dumps=bytes, loads=loads)


def test_a_waiting_process_that_is_killed_takes_nothing(place):
    told, tell = os.pipe()

    def wait():
        async def main():
            async with place.open_async() as queue:
                waiters = [asyncio.create_task(queue.get()) for _ in range(50)]
                await queue.count()
                os.write(tell, b"1")
                await asyncio.gather(*waiters)

        asyncio.run(main())

    pid = forked(wait)
    os.read(told, 1)
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == -signal.SIGKILL
    with place.open() as queue:
        queue.push(list(range(10)))
        assert queue.pop(10) == list(range(10))


def test_a_damaged_item_is_told_and_stays(tmp_path):
    with PersistentQueue("queue", str(tmp_path), dumps=bytes, loads=bytes) as queue:
        queue.push(b"precious payload")
        path = queue._engine.environment._generation.path
    with open(path, "r+b") as file:
        content = file.read()
        for at in [at for at in range(len(content)) if content.startswith(b"precious", at)]:
            file.seek(at)
            file.write(b"P")

    async def main():
        async with AsyncPersistentQueue.open("queue", tmp_path, dumps=bytes, loads=bytes) as queue:
            with pytest.raises(CorruptItemError):
                await queue.get()
            assert await queue.delete() == 1

    asyncio.run(main())


def test_async_with_opens_and_an_unopened_object_says_so(tmp_path):
    async def main():
        queue = AsyncPersistentQueue("queue", tmp_path, maxsize=3)
        assert "not open" in repr(queue)
        for verb in (lambda: queue.push(1), lambda: queue.pop(1), lambda: queue.get(timeout=1)):
            with pytest.raises(ClosedError, match="async with"):
                await verb()
        await queue.close()  # as in a finally
        assert os.listdir(tmp_path) == []
        async with queue as same:
            assert same is queue
            assert await queue.push("a") == 0
            assert queue.queue.maxsize == 3
        with pytest.raises(ClosedError):
            await queue.push("b")
        with pytest.raises(AttributeError):
            queue.no_such_name  # noqa: B018

    asyncio.run(main())


def test_several_steps_are_one_and_the_state_is_read(run):
    async def test(queue):
        await queue.push(["a", "b"])

        def step(sync):
            sync.state["taken"] = sync.pop()
            return sync.count()

        def fail(sync):
            sync.state["taken"] = sync.pop()
            raise ZeroDivisionError

        assert await queue.transact(step) == 1
        with pytest.raises(ZeroDivisionError):
            await queue.transact(fail)
        assert (await queue.state.get("taken"), await queue.state.get("none", 5)) == ("a", 5)
        assert (await queue.state.items(), await queue.count()) == ({"taken": "a"}, 1)

        async def wrong(_):
            """Do nothing."""

        with pytest.raises(TypeError, match="coroutine"):
            await queue.transact(wrong)

    run(test)


def test_awaited_batches_poison_and_keys_mean_what_they_mean_without_await(run):
    async def test(queue):
        assert await queue.push_many(iter([b"a", b"bad", b"c"])) == range(3)
        assert await queue.peek_many(9) == await queue.pop_many(9, at_least=3, blocking=True) == [b"a"]
        with pytest.raises(DecodeError, match=r"dead_letter\(1\)"):
            await queue.pop_many(1)
        assert [item async for item in queue.browse(on_error="skip")] == [b"c"]
        assert await queue.dead_letter(1, "no use")
        assert not await queue.delete_item(1)
        assert await queue.pop_many(9, max_bytes=1) == [b"c"]
        number = await queue.push(b"x" * 10, unique="k", headers={"h": "1"})
        assert (await queue.find("k"), (await queue.push(b"y", unique="k")).is_stored) == (number, False)
        waiting = asyncio.ensure_future(queue._leased(Batch(2, None, 60.0), None, blocking=True, timeout=60))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await queue.push(b"z")
        lease = await asyncio.wait_for(waiting, 30)
        assert (list(lease), await lease.headers()) == ([b"x" * 10, b"z"], [{"h": "1"}, {}])
        assert not await queue.cancel("k")
        await lease.nack()
        assert await queue.cancel("k")
        assert not await queue.lease(0)
        with pytest.raises(Empty):
            await queue.pop_many(5, at_least=5, blocking=True, timeout=0.01)

    def loads(payload):
        if payload == b"bad":
            raise KeyError(payload)
        return payload

    run(test, dumps=bytes, loads=loads)


def test_leases_and_acks_of_many_tasks_share_their_steps(run, place):
    tasks = 200

    async def test(queue):
        await queue.push(list(range(tasks)))
        before = place.commits(queue)
        leases = await asyncio.gather(*(queue.lease(ttl=99) for _ in range(tasks)))
        assert sorted(lease[0] for lease in leases) == list(range(tasks))
        assert place.commits(queue) - before < tasks / 4
        lost, back, *others = leases
        queue.queue._engine.nack(lost.lease._token, None, 0.0, "lost", None)
        again = await queue.lease(ttl=99)
        assert again.seqs == lost.seqs
        await back.nack()
        before = place.commits(queue)
        told = await asyncio.gather(*(lease.ack() for lease in (lost, again, *others)), return_exceptions=True)
        assert place.commits(queue) - before < tasks / 4
        assert isinstance(told[0], LeaseExpiredError)
        assert told[1:] == [None] * (tasks - 1)
        with pytest.raises(ValueError, match="not in this lease"):
            await back.ack(back.seqs[0] + 1)
        stats = await queue.stats()
        assert (stats.waiting, stats.leased, stats.removed) == (1, 0, tasks - 1)

    run(test)


@pytest.mark.parametrize("verb", ["get", "lease", "work"])
def test_one_look_serves_all_who_wait(run, verb):
    tasks, looks = 300, []

    def counted(fn):
        def count(*args, **options):
            looks.append(fn)
            return fn(*args, **options)

        return count

    async def test(queue):
        engine, got, stop = queue.queue._engine, [], threading.Event()
        for name in ("lease", "lease_each", "take", "candidates"):
            setattr(engine, name, counted(getattr(engine, name)))

        async def take():
            if verb == "get":
                got.append(await queue.get())
            elif verb == "lease":
                async with queue.lease(ttl=99, blocking=True) as lease:
                    got.extend(lease)

        async def work(item):
            got.append(item)

        if verb == "work":
            takers = [asyncio.create_task(queue.work(work, concurrency=tasks, stop=stop))]
        else:
            takers = [asyncio.create_task(take()) for _ in range(tasks)]
        await asyncio.sleep(0)
        while len(queue._courier._grouping.sleepers) < tasks:
            await queue.count()
        looks.clear()
        for _ in range(3):
            queue._courier.look()
            await queue.count()
        assert 3 <= len(looks) < tasks / 3
        await queue.push(list(range(tasks)))
        while len(got) < tasks:
            await queue.count()
        assert sorted(got) == list(range(tasks))
        stop.set()
        await asyncio.gather(*takers)

    run(test)


@pytest.mark.parametrize(
    ("plain", "awaited"),
    [
        (PersistentQueue, AsyncPersistentQueue),
        (Lease, AsyncLease),
        (DeadLetters, AsyncDeadLetters),
        (Reader, AsyncReader),
    ],
)
def test_awaited_verbs_have_the_arguments_of_those_without_await(plain, awaited):
    for name in set(dir(plain)).intersection(dir(awaited)):
        verbs = getattr(plain, name), getattr(awaited, name)
        if not name.startswith("_") and all(map(callable, verbs)):
            mine, theirs = (
                {each.name: each.kind for each in inspect.signature(verb).parameters.values()} for verb in verbs
            )
            theirs.pop("signals", None)  # of work, which touches none of its own accord
            assert theirs == mine, name


def test_an_awaited_nack_can_make_dead_letters_with_a_traceback(run):
    async def main(queue):
        await queue.push("a")
        lease = await queue.lease(1)
        await lease.nack(reason="no", max_attempts=1, trace="Traceback")
        assert [(letter.reason, letter.traceback) async for letter in queue.dead] == [("no", "Traceback")]

    run(main)


def test_a_join_that_waits_for_what_is_in_hand_ends_when_the_queue_is_closed(run):
    async def test(queue):
        await queue.push("a")
        assert await queue.get() == "a"
        joined = asyncio.ensure_future(queue.join())
        while not queue._settled._waiters:
            await queue.count()
        await queue.close()
        with pytest.raises(ClosedError):
            await asyncio.wait_for(joined, 10)

    run(test)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_loop_that_gets_no_thread_is_told_and_goes_on_once_there_is_one(run, monkeypatch, missing):
    begun = []
    start = _courier.start_new_thread

    def start_or_not(fn, args):
        begun.append(fn)
        if len(begun) == missing:
            message = "can't start new thread"
            raise RuntimeError(message)
        return start(fn, args)

    async def test(queue):
        monkeypatch.setattr(_courier, "start_new_thread", start_or_not)
        with pytest.raises(RuntimeError, match="can't start"):
            await queue.push("a")
        got = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        assert await asyncio.wait_for(queue.push("b"), 10) == 0
        assert await asyncio.wait_for(got, 10) == "b"

    run(test)
    assert len(begun) == 3


class Undecided:
    """A value without a truth, as an array of numpy is."""

    def __bool__(self):
        raise ValueError("it is neither")


def test_a_result_without_a_truth_is_delivered(run):
    async def test(queue):
        assert isinstance(await asyncio.wait_for(queue.transact(lambda _: Undecided()), 20), Undecided)

    run(test)


def test_another_loop_is_refused_before_anything_is_done(run):
    async def test(queue):
        await queue.push("a")
        for call in (lambda: queue.push("b"), queue.get, queue.lease, queue.close):

            async def elsewhere(call=call):
                await call()

            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere())
        assert await queue.pop(9) == ["a"]

    run(test)


def test_what_a_get_had_taken_is_put_back_if_its_task_is_dropped_with_the_loop(place):
    loop = asyncio.new_event_loop()

    async def opened():
        queue = await place.open_async()
        await queue.push("a")
        return queue

    queue = loop.run_until_complete(opened())
    deliver = queue._courier._deliver

    def deliver_and_stop():
        deliver()
        loop.stop()

    async def get():
        await queue.get()

    queue._courier._deliver = deliver_and_stop
    task = loop.create_task(get())
    loop.run_forever()
    loop.close()
    task._log_destroy_pending = False
    del task
    with place.open() as left:
        eventually(lambda: list(left) == ["a"])


def test_a_block_of_a_lease_ends_with_its_own_error_even_if_the_queue_was_closed(run):
    async def fail(queue):
        async with queue.lease():
            await queue.close()
            raise ZeroDivisionError

    async def test(queue):
        await queue.push("a")
        with pytest.raises(ZeroDivisionError):
            await fail(queue)

    run(test)


def test_a_lease_and_a_take_with_the_same_numbers_are_not_of_one_kind():
    assert Wanted(5, 2, 3, 1) != Claimed(5, 2, 3, waits=True)


def test_items_with_options_are_encoded_before_other_tasks_run(run):
    async def test(queue):
        items = [{"n": 1}]
        pushing = asyncio.ensure_future(queue.push(items, delay=0.01))
        await asyncio.sleep(0)
        items[0]["n"] = 2
        await pushing
        assert await queue.pop(blocking=True) == {"n": 1}

    run(test)


def test_a_transaction_of_an_object_whose_call_must_be_awaited_is_refused(run):
    class Step:
        async def __call__(self, queue):
            """Do nothing."""

    async def test(queue):
        with pytest.raises(TypeError, match="must not await"):
            await queue.transact(Step())

    run(test)


def test_calls_of_one_kind_that_are_all_cancelled_before_their_turn_stop_no_others(run):
    async def test(queue):
        turn = threading.Event()
        busy = asyncio.ensure_future(queue.transact(lambda _: turn.wait(20)))
        for begin in (queue.get, queue.pop, lambda: queue.push("a"), lambda: queue.lease().__aenter__()):
            tasks = [asyncio.ensure_future(begin()) for _ in range(2)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
        turn.set()
        assert await busy
        assert await asyncio.wait_for(queue.count(), 20) == 0

    run(test)


@pytest.mark.parametrize("verb", ["push", "get", "transact", "count"])
def test_a_coroutine_that_a_transaction_waits_for_cannot_call_its_queue(run, verb):
    async def test(queue):
        loop = asyncio.get_running_loop()
        call = {"push": lambda: queue.push("b"), "transact": lambda: queue.transact(len)}.get(verb)

        async def inner():
            return await (call or getattr(queue, verb))()

        def step(sync):
            sync.push("a")
            asyncio.run_coroutine_threadsafe(inner(), loop).result(20)

        with pytest.raises(NestedCallError):
            await queue.transact(step)
        assert await queue.count() == 0

    run(test)


def test_a_task_that_a_transaction_has_begun_calls_its_queue_afterwards(run):
    async def test(queue):
        begun, goes_on = [], asyncio.Event()

        async def later():
            await goes_on.wait()
            await queue.push("b")

        def step(sync):
            begun.append(asyncio.run_coroutine_threadsafe(later(), loop))
            sync.push("a")

        loop = asyncio.get_running_loop()
        await queue.transact(step)
        goes_on.set()
        await asyncio.wait_for(asyncio.wrap_future(begun[0]), 20)
        assert await queue.pop(9) == ["a", "b"]

    run(test)


def test_a_transaction_whose_function_returns_what_must_be_awaited_is_undone(run):
    async def nothing():
        """Do nothing."""

    async def test(queue):
        def step(sync):
            sync.push("a")
            return nothing()

        for fn in (step, lambda _: nothing()):
            with pytest.raises(TypeError, match="the function of a transaction returned a coroutine"):
                await queue.transact(fn)
        assert await queue.count() == 0

    run(test)


def test_the_loop_is_found_as_libraries_that_bring_other_loops_have_it(run, monkeypatch):
    """As trio-asyncio does: it replaces the function of ``asyncio``, even after this package was imported."""
    find = asyncio.get_running_loop
    asked = []

    def found():
        asked.append("for the loop")
        return find()

    async def test(queue):
        monkeypatch.setattr(asyncio, "get_running_loop", found)
        assert await queue.push("item") == 0
        assert asked

    run(test)
