"""What a loop or a program leaves behind that ends amid awaited calls: what no task has received waits again."""

import json
import subprocess
import sys

import pytest
from processes import DEADLINE, eventually

OPENED = """
import asyncio, gc, json, sys
from lmdbqueue.aio import AsyncPersistentQueue
from lmdbqueue.postgres.aio import AsyncPostgresQueue

kind, where, options = json.loads(sys.argv[1])


async def opened():
    return await (AsyncPersistentQueue if kind == "lmdb" else AsyncPostgresQueue).open(*where, **options)


"""
ENDS_BEFORE_A_RESULT_IS_RECEIVED = (
    OPENED
    + """
verb, end = sys.argv[2:]


class Loop(asyncio.SelectorEventLoop):
    "Stops or raises as soon as a future has its result: the task that waits for it is not resumed."

    futures = None

    def call_soon_threadsafe(self, callback, *args, **options):
        return super().call_soon_threadsafe(self.called, callback, args, **options)

    def called(self, callback, args):
        callback(*args)
        if self.futures and any(each.done() for each in self.futures):
            self.futures = None
            if end == "raise":
                raise SystemExit(3)
            self.stop()

    def create_future(self):
        future = super().create_future()
        if self.futures is not None:
            self.futures.append(future)
        return future


async def call():
    queue = await opened()
    if verb == "read":
        await queue.reader("other")
        reader = await queue.reader("r")
        await reader.peek(2)
        entries = reader._head.first(2)
        loop.futures = []
        print("received", await reader._passed(entries))
    loop.futures = []
    print("received", await {"get": queue.get, "pop": lambda: queue.pop(2), "lease": lambda: queue.lease(2)}[verb]())


loop = Loop()
task = loop.create_task(call())
task._log_destroy_pending = False
loop.run_forever()
assert not task.done()
if end != "stop":
    loop.close()
if end == "drop":
    del task
if end in ("close", "drop"):
    print("closed", flush=True)
    sys.stdin.read()
"""
)


def begun(place, program, *args):
    told = json.dumps([place.kind, place.open.args, place.open.keywords])
    return subprocess.Popen(
        [sys.executable, "-c", program, told, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(place):
    with place.open() as queue:
        queue.push(["a", "b"], unique=["k", None], expires=3600, headers={"to": "me"})
        queue.push("c")
        queue.lease(1).nack()


def assert_as_before(queue):
    assert (queue.find("k"), list(queue)) == (0, ["a", "b", "c"])
    with queue.lease(3) as lease:
        assert (lease.items, lease.seqs, lease.attempts) == (["a", "b", "c"], [0, 1, 2], [2, 1, 1])
        assert lease.headers == [{"to": "me"}, {"to": "me"}, {}]
        lease.nack()


@pytest.mark.parametrize("end", ["stop", "raise", "close", "drop"])
@pytest.mark.parametrize("verb", ["get", "pop", "lease", "read"])
def test_what_no_task_has_received_when_its_loop_or_program_ends_waits_again(place, verb, end):
    fill(place)
    with place.open() as queue, begun(place, ENDS_BEFORE_A_RESULT_IS_RECEIVED, verb, end) as program:
        try:
            if end in ("close", "drop"):  # the program goes on
                assert program.stdout.readline() == "closed\n"
                eventually(lambda: list(queue) == ["a", "b", "c"])
                if verb == "read":
                    eventually(lambda: queue.reader("r").position == 0)
            out, error = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
        assert (program.returncode, out, error) == (3 if end == "raise" else 0, "", "")
        if verb == "read":
            assert (queue.reader("r").position, queue.reader("r").skipped) == (0, 0)
        assert_as_before(queue)


IS_DROPPED_AMID_A_BLOCK = (
    OPENED
    + """
block = sys.argv[2]


async def handle(item):
    loop.call_soon(loop.stop)
    await asyncio.Event().wait()


async def listed():
    async with opener() as queue, queue.lease(ttl=3600), queue.lease(), queue.reader("r") as reader:
        async for item in reader:
            yield item


async def main():
    if block == "generator":
        async for item in listed():
            await handle(item)
    async with opener() as queue:
        if block == "lease":
            async with queue.lease(ttl=3600), queue.lease():
                await handle(None)
        await queue.work(handle, concurrency=2)


def opener():
    return (AsyncPersistentQueue if kind == "lmdb" else AsyncPostgresQueue).open(*where, **options)


loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda *_: None)  # tells of pending tasks that are dropped
task = loop.create_task(main())
loop.run_forever()
loop.close()
del task
gc.collect()
print("closed", flush=True)
sys.stdin.read()
"""
)


@pytest.mark.parametrize("block", ["lease", "work", "generator"])
def test_a_block_that_is_dropped_with_its_loop_gives_back_what_it_holds(place, block):
    with place.open() as queue:
        queue.push(["a", "b", "c"])
        with begun(place, IS_DROPPED_AMID_A_BLOCK, block) as program:
            try:
                assert program.stdout.readline() == "closed\n"
                eventually(lambda: list(queue) == ["a", "b", "c"])
                out, error = program.communicate(timeout=DEADLINE)
            finally:
                program.kill()
        assert (program.returncode, out, error) == (0, "", "")
