"""One writer and eight reader processes that are killed again and again: each reader sees every item, in order.

Half of the readers peek, tell, and delete; half pop. On PostgreSQL all pop: there a transaction of a killed process
may be committed when its successor has looked already. LMDBQUEUE_KILLS says how many kills the long form deals out.
"""

import json
import os
import random
import select
import signal
import time
from functools import partial

import pytest
from account import open_queue
from processes import DEADLINE, KILLED, MODULES, forked, in_a_small_process, kill_at_every_line, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue.postgres import PostgresQueue

READERS = 8
ITEMS = 50_000
KILLS = 100
LONG = int(os.environ.get("LMDBQUEUE_KILLS", "5000"))
BATCH = 100
AHEAD = 5_000  # items that the writer may be before the slowest reader


def _write(open_, items):
    queue = open_()
    parent = os.getppid()
    for first in range(0, items, BATCH):
        while len(queue) > AHEAD:
            assert os.getppid() == parent
            time.sleep(0.001)
        queue.push(list(range(first, first + BATCH)))


def _read(open_, number, mouth, pops):
    chance = random.Random(os.getpid())  # noqa: S311
    reader = open_().reader(f"reader {number}")

    def tell(event, batch):
        assert batch == list(range(batch[0], batch[-1] + 1))
        os.write(mouth, json.dumps([number, os.getpid(), event, batch[0], batch[-1]]).encode() + b"\n")

    while True:
        n = chance.randrange(2, BATCH)
        reader.peek(blocking=True, timeout=DEADLINE)
        if pops:
            batch = reader.pop(n)
            tell("pop", batch)
        else:
            batch = reader.peek(n)
            tell("peek", batch)
            assert reader.delete(len(batch)) == len(batch)
            tell("delete", batch)


def problem(events, killed):
    """Return what is wrong with what one reader's processes told, one after the other; "" for nothing.

    They tell of a pop and a delete after it is done, so what one did just before it was killed is not told.
    """
    seen, shown, passed, last = -1, -1, -1, None
    for pid, event, first, stop in events:
        is_new = pid != last
        if is_new and last not in {None, *killed}:
            return f"{last} ended, and was not killed"
        if event == "delete":
            if first != passed + 1 or stop != shown:
                return f"{first} to {stop} were passed after {passed}, and {shown} was seen"
            passed = stop
        elif event == "pop":
            if first <= seen:
                return f"{first} was popped, and {seen} before"
            if first > seen + 1 and not (is_new and last and first - seen <= BATCH):
                return f"{first} was popped after {seen}"
            seen = stop
        else:
            if first != passed + 1 and not (is_new and last and first == shown + 1):
                return f"{first} was seen after {shown}, and {passed} was passed"
            passed, shown = first - 1, stop
        last = pid
    return ""


GOOD = [(1, "peek", 0, 4), (1, "delete", 0, 4), (1, "peek", 5, 6), (2, "peek", 5, 5), (2, "delete", 5, 5)]


def test_the_checker_finds_what_is_wrong():
    good = [*GOOD[:3], (2, "peek", 5, 6), (2, "delete", 5, 6)]
    assert problem(good, {1}) == ""
    assert problem([*GOOD[:3], (2, "peek", 7, 8)], {1}) == ""
    assert "not killed" in problem(good, set())
    assert "was seen" in problem([*GOOD[:2], (1, "peek", 6, 7)], {1})
    assert "was seen" in problem([*GOOD[:2], (2, "peek", 6, 7)], {1})
    assert "were passed" in problem([*GOOD[:2], (1, "delete", 5, 6)], {1})
    pops = [(1, "pop", 0, 4), (2, "pop", 9, 9)]
    assert problem(pops, {1}) == ""
    assert "popped" in problem([*pops, (2, "pop", 11, 12)], {1})
    assert "popped" in problem([*pops, (2, "pop", 9, 12)], {1})
    assert "popped" in problem([pops[0], (2, "pop", 5 + BATCH, 999)], {1})


def _run(open_, items, kills, *, is_lmdb=True):
    chance = random.Random(kills)  # noqa: S311
    ear, mouth = os.pipe()
    with open_() as queue:
        for number in range(READERS):
            queue.reader(f"reader {number}")

    def started(number):
        return forked(_read, open_, number, mouth, number % 2 or not is_lmdb)

    alive = [started(number) for number in range(READERS)]
    writer = forked(_write, open_, items)
    events = [[] for _ in range(READERS)]
    killed = set()
    rest = b""
    looks = 0
    deadline = time.monotonic() + DEADLINE + kills / 5 + items / 500

    def listen():
        nonlocal rest
        time.sleep(0.01)  # else what is told so often lets this process look all the time
        if select.select([ear], [], [], 0.05)[0]:
            *lines, rest = (rest + os.read(ear, 1 << 16)).split(b"\n")
            for number, *event in map(json.loads, lines):
                events[number].append(event)

    with open_() as queue:
        while (passed := min(reader.position for reader in queue.readers())) < items or looks < kills:
            listen()
            assert time.monotonic() < deadline, f"the readers stand still at {passed}"
            if looks < kills and passed > looks * items // (kills + 1):
                number = chance.randrange(READERS)
                os.kill(alive[number], signal.SIGKILL)
                assert status_of(alive[number]) == KILLED
                killed.add(alive[number])
                alive[number] = started(number)
                if is_lmdb:
                    with queue.transaction():  # of one moment
                        readers = queue.readers()
                        assert len(queue) == max(reader.lag for reader in readers), f"{len(queue)} items, {readers}"
                looks += 1
        assert status_of(writer) == 0
        readers = queue.readers()
        assert [(each.position, each.lag, each.skipped) for each in readers] == [(items, 0, 0)] * READERS
        assert len(queue) == 0
        assert queue.check() == []
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == KILLED
    os.close(mouth)
    with open(ear, "rb") as pipe:
        for number, *event in map(json.loads, (rest + pipe.read()).splitlines()):
            events[number].append(event)
    assert [problem(each, killed) for each in events] == [""] * READERS
    return kills


# --- what a consumer gives back behind all readers


def _nacked(queue):
    lease = queue.lease(2)
    queue.reader("r").delete(9)
    lease.nack()


def _requeued(queue):
    queue.lease(1).reject()
    queue.reader("r").delete(9)
    queue.dead.requeue()


def _kill_amid(root, call):
    os.mkdir(root)
    with open_queue(root) as queue:
        queue.push([b"a", b"b"], unique=["a", "b"], headers={"to": "me"})
        queue.push([b"c", b"d"])
        queue.reader("r")

    def judge(place, *, is_done):
        with open_queue(place) as queue:
            dead = [letter.item for letter in queue.dead]
            found = list(queue)
            assert queue.reader("r").peek_many(9) == found  # so the reader meets all that is there
            back = [b"a", b"b"][: 2 if call.__name__ == _nacked.__name__ else 1]
            assert set(back) <= {*found, *dead}
            assert not is_done or (found, dead) == (back, [])
            assert all((queue.find(item.decode()) is None) == (item in dead) for item in back)
            assert queue.check() == []
            assert queue.push(b"probe") is not None
            assert queue.pop(9) == [*found, b"probe"]

    return kill_at_every_line(root, MODULES, lambda place: partial(call, open_queue(place)), judge)


@pytest.mark.parametrize("call", [_nacked, _requeued])
def test_a_kill_at_any_line_loses_nothing_that_comes_back_behind_all_readers(memory, call, record_property):
    record_property("kills", in_a_small_process(_kill_amid, os.path.join(memory, call.__name__), call))


# --- readers in their own processes


def _of_a_directory(place, items, kills):
    return _run(partial(PersistentQueue, "queue", place), items, kills)


def _of_a_database(url, schema, items, kills):
    return _run(partial(PostgresQueue, url, schema=schema), items, kills, is_lmdb=False)


def test_eight_killed_readers_see_every_item_in_order_and_nothing_popped_comes_again(tmp_path, record_property):
    record_property("kills", in_a_small_process(_of_a_directory, tmp_path, ITEMS, KILLS))


def test_killed_readers_of_a_database_see_every_item_in_order(postgres, schema, record_property):
    kills = in_a_small_process(_of_a_database, postgres.url(), schema, ITEMS // 10, KILLS // 4)
    record_property("kills", kills)


@pytest.mark.long
def test_readers_that_are_killed_many_more_times_lose_and_double_nothing(tmp_path, record_property):
    record_property("kills", in_a_small_process(_of_a_directory, tmp_path, LONG * 500, LONG))
