"""Hundreds who wait, in threads and processes, and some who are killed when they are woken: no item is lost, none
sleeps on.

Nobody wakes by itself here: what a waiter misses it sleeps through, until the test gives up.
"""

import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from itertools import count

import pytest
from processes import DEADLINE, KILLED, LIBRARY, Sleeps, eventually, forked, has_ended, in_a_small_process, status_of

from lmdbqueue import ClosedError, PersistentQueue, ShutDown
from lmdbqueue._host import bell

PROCESSES, THREADS = 5, 100
WAITERS = 8
LONG = int(os.environ.get("LMDBQUEUE_KILLS", "5000"))
FAST = {"durability": "off"}


@pytest.fixture(autouse=True)
def no_ceiling(monkeypatch):
    monkeypatch.setattr(bell, "CEILING", 10 * DEADLINE)


def _threads(number, target):
    threads = [threading.Thread(target=target) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def _join(threads):
    deadline = time.monotonic() + DEADLINE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


class Words:
    """A pipe of lines, which children write and the test reads."""

    def __init__(self):
        self._read, self._write = os.pipe()
        self._rest = b""
        self._words = []

    def say(self, word):
        os.write(self._write, f"{word}\n".encode())  # in one piece, since it is short

    def heard(self):
        """Return what was said and not returned yet."""
        while select.select([self._read], [], [], 0)[0]:
            *words, self._rest = (self._rest + os.read(self._read, 65536)).split(b"\n")
            self._words += [word.decode() for word in words]
        words, self._words = self._words, []
        return words

    def close(self):
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def words():
    words = Words()
    yield words
    words.close()


# --- many


def _get_one_each(queue, words):
    Sleeps(queue, lambda: words.say("z"))
    _join(_threads(THREADS, lambda: words.say(queue.get())))


@pytest.mark.parametrize("batch", [1, 37, PROCESSES * THREADS])
def test_500_threads_of_5_processes_get_exactly_one_item_each(open_queue, words, batch):
    total = PROCESSES * THREADS
    queue = open_queue(**FAST)
    children = [forked(_get_one_each, queue, words) for _ in range(PROCESSES)]
    asleep = Counter()
    eventually(lambda: asleep.update(words.heard()) or asleep["z"] >= total)
    for first in range(0, total, batch):
        queue.push(list(range(first, min(first + batch, total))))
    assert [status_of(child) for child in children] == [0] * PROCESSES
    got = Counter(word for word in words.heard() if word != "z")
    assert got == Counter(map(str, range(total)))
    assert queue.count() == 0


@pytest.mark.parametrize("company", [False, True], ids=["alone", "beside another object"])
@pytest.mark.parametrize(("end", "error"), [("close", ClosedError), ("shutdown", ShutDown)])
def test_close_and_shutdown_wake_500_threads_and_nobody_else(open_queue, end, error, company):
    queue = open_queue(**FAST)
    sleeps = Sleeps(queue)
    raised = []

    def wait():
        try:
            queue.get()
        except (ClosedError, ShutDown) as ended:
            raised.append(type(ended))

    beside = []
    if company:
        other = open_queue(**FAST)
        still_waiting = Sleeps(other)
        beside = _threads(1, other.get)
        eventually(lambda: still_waiting.count)
    threads = _threads(500, wait)
    eventually(lambda: sleeps.count >= 500)
    getattr(queue, end)()
    _join(threads)
    assert raised == [error] * 500
    if company:
        assert beside[0].is_alive()
        other.push("item")
        _join(beside)


# --- killed


def _get_and_tell(queue, words):
    while (item := queue.get()) is not None:
        words.say(item)


def _die_at_line_after_waking(number, queue, words):
    """Wait for an item, and die before the ``number``-th line of the library that runs once it was woken."""
    left = number

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def slept(ticket, timeout):
        words.say("z")
        sleep(ticket, timeout)
        sys.settrace(trace)
        frame = sys._getframe(1)
        while frame is not None:  # those that run already
            frame.f_trace = trace
            frame = frame.f_back

    sleep, queue._engine.sleep = queue._engine.sleep, slept
    queue.get()
    sys.settrace(None)


class Items:
    """Numbers, pushed one after the other, and what the waiters said that they got."""

    def __init__(self, queue, words):
        self.queue, self.words = queue, words
        self.pushed = 0
        self.got = Counter()

    def push(self, n):
        self.queue.push(list(range(self.pushed, self.pushed + n)))
        self.pushed += n

    def listen(self):
        self.got.update(self.words.heard())
        return self.got

    def assert_that_somebody_gets_the_next(self, n):
        self.push(n)
        new = set(map(str, range(self.pushed - n, self.pushed)))
        eventually(lambda: new <= self.listen().keys())

    def assert_all_came_once_but_for(self, n):
        """``n``: how many were killed; each may have died when its item had left, and it had not told so yet."""
        assert self.queue.count() == 0
        self.got.pop("z", None)
        assert set(self.got.values()) == {1}
        assert self.pushed - n <= len(self.got) <= self.pushed


def _killed_at_every_line(queue, words):
    """Kill a waiter at each line that runs once it was woken; return how many were killed."""
    others = [forked(_get_and_tell, queue, words) for _ in range(2)]
    items = Items(queue, words)
    for number in count(1):
        slept = items.listen()["z"]
        victim = forked(_die_at_line_after_waking, number, queue, words)
        eventually(lambda slept=slept: items.listen()["z"] > slept)
        while not has_ended(victim):
            items.push(1)
            eventually(lambda victim=victim: has_ended(victim) or not queue.count())
        status = status_of(victim)
        items.assert_that_somebody_gets_the_next(2)
        if status == 0:
            break
        assert status == KILLED
    queue.push([None, None])
    assert [status_of(other) for other in others] == [0, 0]
    items.listen()
    items.assert_all_came_once_but_for(number)
    return number - 1


def _kill_waiters_at_random(queue, words, kills):
    chance = random.Random(kills)  # noqa: S311
    items = Items(queue, words)
    waiters = [forked(_get_and_tell, queue, words) for _ in range(WAITERS)]
    for _ in range(0, kills, WAITERS // 2):
        items.push(WAITERS - 1)
        time.sleep(chance.uniform(0, 0.004))  # so that they are woken, and want to take, and have taken
        for number in chance.sample(range(WAITERS), WAITERS // 2):
            os.kill(waiters[number], signal.SIGKILL)
            assert status_of(waiters[number]) == KILLED
            waiters[number] = forked(_get_and_tell, queue, words)
        items.assert_that_somebody_gets_the_next(WAITERS)
    queue.push([None] * WAITERS)
    assert [status_of(waiter) for waiter in waiters] == [0] * WAITERS
    items.listen()
    items.assert_all_came_once_but_for(kills)
    return kills


def _on_a_queue(place, kill, *args, **options):
    """Return ``kill(queue, words, *args)``, of a queue that is whole at the end."""
    bell.CEILING = 10 * DEADLINE
    words = Words()
    with PersistentQueue("queue", place, **options) as queue:
        kills = kill(queue, words, *args)
        assert queue.check() == []
    words.close()
    return kills


def _kill_at_every_line(place):
    return _on_a_queue(place, _killed_at_every_line, **FAST)


def _kill_at_random(place, kills):
    return _on_a_queue(place, _kill_waiters_at_random, kills)


def test_a_waiter_that_is_killed_at_any_line_after_it_was_woken_leaves_nobody_asleep(tmp_path, record_property):
    kills = in_a_small_process(_kill_at_every_line, str(tmp_path))
    assert kills > 100
    record_property("kills", kills)


def test_waiters_that_are_killed_when_they_are_woken_leave_nobody_asleep(tmp_path, record_property):
    record_property("kills", in_a_small_process(_kill_at_random, str(tmp_path), 200))


@pytest.mark.long
def test_very_many_waiters_that_are_killed_leave_nobody_asleep(tmp_path, record_property):
    record_property("kills", in_a_small_process(_kill_at_random, str(tmp_path), LONG))
