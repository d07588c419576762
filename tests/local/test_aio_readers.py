"""Named readers, awaited: the verbs of a reader, waiting without threads, and cancelling that moves nothing."""

import asyncio
import random
import threading
from collections import Counter

import pytest
from processes import eventually, forked, status_of, threads_of_this_process

from lmdbqueue import ClosedError, DecodeError, Empty, GoneError, ShutDown
from lmdbqueue._verbs.reader import Position


class Held:
    """A verb of ``Reader`` or its queue that does its work in the worker, and then waits to be let go."""

    def __init__(self, monkeypatch, cls, verb):
        self.done, self.goes_on = threading.Event(), threading.Event()
        real = getattr(cls, verb)

        def held(*args):
            result = real(*args)
            self.done.set()
            assert self.goes_on.wait(60)
            return result

        monkeypatch.setattr(cls, verb, held)

    async def reached(self):
        assert await asyncio.to_thread(self.done.wait, 60)


# --- the verbs


def test_the_verbs_of_a_reader_mean_what_they_mean_without_await(run):
    async def test(queue):
        await queue.push(list("abcdef"))
        billing = await queue.reader("billing")
        async with queue.reader("audit", start=2) as audit:
            assert (await audit.peek(), await audit.count(), audit.name) == ("c", 4, "audit")
        assert (await billing.peek(), await billing.peek(2), await billing.peek(0)) == ("a", ["a", "b"], [])
        assert (await billing.pop(), await billing.pop(2), await billing.pop(0)) == ("a", ["b", "c"], [])
        assert (await billing.position(), await billing.count(), await billing.skipped()) == (3, 3, 0)
        assert await queue.count() == 4  # what both have passed is gone
        assert await billing.delete(9) == 3
        assert (await billing.pop(), await billing.pop(2), await billing.peek()) == (None, [], None)
        await billing.seek("oldest")
        assert await billing.peek(9) == list("cdef")
        await billing.seek(4)
        assert await billing.pop(1, blocking=True) == "e"
        assert await billing.peek(1, blocking=True) == "f"
        assert [(each.name, each.position, each.lag) for each in await queue.readers()] == [
            ("audit", 2, 4),
            ("billing", 5, 1),
        ]
        await queue.retain(2)
        assert await queue.count() == 2
        assert [each.skipped for each in await queue.readers()] == [2, 0]
        await queue.drop_reader("audit")
        with pytest.raises(KeyError):
            await queue.drop_reader("audit")
        await queue.drop_reader("billing")
        with pytest.raises(GoneError):
            await billing.peek()
        assert "billing" in repr(billing)

    run(test)


def test_errors_are_those_of_the_verbs(run):
    async def test(queue):
        await queue.push([b"good", b"bad"])
        reader = await queue.reader("billing")
        with pytest.raises(ValueError, match="'start' must be 'oldest'"):
            await queue.reader("other", start="begin")
        for verb in (reader.pop, reader.peek, reader.delete):
            with pytest.raises(ValueError, match="'items' must be"):
                await verb(-1)
        for verb in (reader.pop, reader.peek):
            with pytest.raises(ValueError, match="non-negative"):
                await verb(1, blocking=True, timeout=-1)
            for timeout in (0, 0.01):
                with pytest.raises(Empty) as caught:
                    await verb(3, blocking=True, timeout=timeout)
                assert caught.value.timeout == timeout
        assert await reader.peek_many(2) == await reader.pop(2) == [b"good"]
        for verb in (reader.pop, reader.peek, reader.pop_many, reader.peek_many):
            with pytest.raises(DecodeError, match=r"delete_item\(1\)"):
                await verb(2)
        assert await reader.position() == 1
        with pytest.raises(ValueError, match="'items' must be"):
            await queue.retain(0)

    def loads(data):
        if data == b"bad":
            raise KeyError(data)
        return data

    run(test, dumps=bytes, loads=loads)


def test_a_loop_over_a_reader_passes_each_item_when_it_asks_for_the_next_and_ends_after_shutdown(run):
    async def test(queue):
        await queue.push(list("abc"))
        reader = await queue.reader("billing")
        seen = []
        async for item in reader:
            seen.append((item, await reader.position()))
            if item == "c":
                break
        assert seen == [("a", 0), ("b", 1), ("c", 2)]

        async def read():
            return [item async for item in reader]

        reading = asyncio.create_task(read())
        while await reader.count():
            pass
        await queue.push("d")
        queue.shutdown()
        assert await reading == ["c", "d"]
        with pytest.raises(ShutDown):
            await reader.pop(blocking=True)

    run(test)


def test_a_loop_leaves_to_others_what_they_took(run):
    async def test(queue):
        await queue.push([0, 1, 2, 3])
        one, other = await queue.reader("billing"), await queue.reader("billing")
        loop = aiter(one)
        assert await anext(loop) == 0
        assert await other.pop(3) == [0, 1, 2]
        assert await anext(loop) == 3

    run(test)


# --- waiting


def _push(place, items):
    with place.open() as queue:
        for item in items:
            queue.push(item)


@pytest.mark.parametrize("from_outside", [False, True])
def test_many_readers_that_wait_get_every_item_and_cost_no_threads(run, place, from_outside):
    items = 40 if place.kind == "lmdb" else 20  # each of the five names reads them, by as many objects

    async def test(queue):
        readers = [await queue.reader(f"reader {n % 5}") for n in range(5 * items)]
        waiters = [asyncio.create_task(reader.pop(1, blocking=True)) for reader in readers]
        await queue.count()  # they have all been tried and sleep
        assert threads_of_this_process() <= threads + 3
        pid = forked(_push, place, range(items)) if from_outside else None
        if pid is None:
            await queue.push(list(range(items)))
        found = await asyncio.gather(*waiters)
        for n in range(5):
            assert sorted(found[n::5]) == list(range(items))
        if pid is not None:
            assert status_of(pid) == 0

    threads = threads_of_this_process() + 1  # that of to_thread
    run(test)


@pytest.mark.parametrize("end", ["reader", "queue", "shutdown"])
def test_close_and_shutdown_end_reads_that_wait(run, place, end):
    async def test(queue):
        reader = await queue.reader("billing")

        async def loop():
            async for _ in reader:
                pass

        waiters = [
            asyncio.create_task(each)
            for each in (reader.pop(1, blocking=True), reader.peek(2, blocking=True), reader.pop(3, blocking=True))
        ]
        looping = asyncio.create_task(loop())
        await queue.count()
        if end == "shutdown":
            queue.shutdown()
        else:
            await (reader if end == "reader" else queue).close()
        error = ShutDown if end == "shutdown" else ClosedError
        results = await asyncio.gather(*waiters, looping, return_exceptions=True)
        assert [type(each) for each in results] == [error] * 3 + [type(None) if end == "shutdown" else error]
        await reader.close()
        with pytest.raises(ClosedError):
            await reader.peek()

    if end != "queue":
        run(test)
    else:  # nothing is left to check

        async def main():
            queue = await place.open_async()
            await test(queue)
            await queue.close()

        asyncio.run(main())


# --- cancelling


def test_cancelling_a_read_that_waits_moves_nothing(run):
    async def test(queue):
        reader = await queue.reader("billing")
        for verb in (reader.pop, reader.peek):
            for n in (1, 2):
                waiter = asyncio.create_task(verb(n, blocking=True))
                await queue.count()
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(verb(n, blocking=True), 0.01)
        await queue.push(["x", "y"])
        assert (await reader.position(), await reader.pop(3)) == (0, ["x", "y"])

    run(test)


@pytest.mark.parametrize("company", [False, True], ids=["the last", "not the last"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_pop_that_is_cancelled_when_its_items_have_left_is_undone(run, monkeypatch, company, again):
    async def test(queue):
        await queue.push(list("abcd"))
        reader = await queue.reader("billing")
        if company:
            await queue.reader("audit")
        held = Held(monkeypatch, Position, "pass_by")
        popping = asyncio.create_task(reader.pop(2))
        await held.reached()
        popping.cancel()
        await asyncio.sleep(0)
        if again:
            popping.cancel()
            await asyncio.sleep(0)
        held.goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await popping
        assert (await reader.position(), await reader.skipped()) == (0, 0)
        assert await reader.pop(9) == list("abcd")
        assert await queue.count() == (4 if company else 0)

    run(test)


def test_pops_that_wait_for_their_turn_do_not_keep_one_from_being_undone(run, monkeypatch):
    async def test(queue):
        await queue.push(list(range(10)))
        reader, other = await queue.reader("billing"), await queue.reader("billing")
        held = Held(monkeypatch, Position, "pass_by")
        popping = asyncio.create_task(reader.pop(2))
        await held.reached()
        others = [asyncio.create_task(each.pop()) for each in (reader, other, reader)]
        popping.cancel()
        await asyncio.sleep(0)
        held.goes_on.set()
        assert await asyncio.gather(*others) == [0, 1, 2]
        assert popping.cancelled()

    run(test)


def test_a_pop_that_cannot_be_undone_since_another_moved_the_reader_returns_its_items(run, place, monkeypatch):
    async def test(queue):
        await queue.push(list("abc"))
        reader = await queue.reader("billing")
        held = Held(monkeypatch, Position, "pass_by")
        popping = asyncio.create_task(reader.pop())
        await held.reached()
        with place.open() as sync:
            assert sync.reader("billing").pop() == "b"
        popping.cancel()
        held.goes_on.set()
        assert await popping == "a"
        assert await reader.pop() == "c"

    run(test)


def test_a_pop_that_is_cancelled_just_before_close_is_undone(place, monkeypatch):
    async def main():
        queue = await place.open_async()
        await queue.push(list("abc"))
        reader = await queue.reader("billing")
        held = Held(monkeypatch, Position, "pass_by")
        popping = asyncio.create_task(reader.pop(2))
        await held.reached()
        popping.cancel()
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        held.goes_on.set()
        await closing
        assert popping.cancelled()

    asyncio.run(main())
    with place.open() as queue:
        assert queue.reader("billing").peek(9) == list("abc")
        assert queue.check() == []


def test_a_loop_that_ends_amid_a_pop_leaves_the_reader_where_it_was(place, monkeypatch):
    held = Held(monkeypatch, Position, "pass_by")

    async def main():
        queue = await place.open_async()
        await queue.push(list("abc"))
        reader = await queue.reader("billing")
        popping.append(asyncio.ensure_future(reader.pop(2)))
        await held.reached()

    popping = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    held.goes_on.set()
    with place.open() as queue:
        reader = queue.reader("billing")
        eventually(lambda: reader.position == 0)
        assert reader.peek(9) == list("abc")
    popping[0]._log_destroy_pending = False


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_cancels_lets_each_reader_have_every_item_once(run, seed):
    chance = random.Random(seed)  # noqa: S311
    total = 600

    async def test(queue):
        readers = [await queue.reader(name) for name in ("billing", "audit") for _ in range(2)]
        got = {"billing": Counter(), "audit": Counter()}

        async def read(reader):
            n = chance.choice((1, 1, 3))
            verb = chance.choice((reader.pop, reader.pop, reader.peek))
            found = await verb(n, blocking=chance.random() < 0.7)
            if verb == reader.pop and found is not None:
                got[reader.name].update(found if n > 1 else [found])

        async def write():
            for number in range(0, total, 3):
                await queue.push([number, number + 1, number + 2])

        writing = asyncio.create_task(write())
        tasks = []
        free = asyncio.Semaphore(50)  # else the writer waits behind all that are made
        while not writing.done() or chance.random() < 0.99:
            await free.acquire()
            tasks.append(asyncio.create_task(read(chance.choice(readers))))
            tasks[-1].add_done_callback(lambda _: free.release())
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
            if chance.random() < 0.6:
                chance.choice(tasks[-20:]).cancel()
        await writing
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        assert sum(task.cancelled() for task in tasks) > 50
        for reader in readers[::2]:
            left = Counter(await reader.pop(total + 1))
            assert got[reader.name]
            assert got[reader.name] + left == Counter(range(total))
            assert await reader.skipped() == 0

    run(test)


def test_a_reader_that_moved_amid_the_flush_of_another_lets_items_gather(run, monkeypatch):
    rests = []
    sleep = asyncio.sleep

    async def rest(seconds):
        rests.append(seconds)
        await sleep(0)

    async def test(queue):
        billing = await queue.reader("billing")
        await queue.push(list("abcdef"))
        assert len(await billing.pop(100)) == 6
        await queue.push(["g", "h"])
        monkeypatch.setattr(asyncio, "sleep", rest)
        assert await billing.peek(1, blocking=True) == "g"
        assert rests == []
        queue.queue._engine.is_crowded = lambda: True
        assert await billing.pop(100) == ["g", "h"]
        await queue.push("i")
        assert await billing.pop(1, blocking=True) == "i"
        assert [0 < each <= 0.05 for each in rests] == [True]

    run(test)
