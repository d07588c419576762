"""Several processes and threads at one queue: exactly once, in order, woken when there is something to do."""

import faulthandler
import fcntl
import itertools
import os
import random
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress

import pytest
from processes import (
    DEADLINE,
    INTERRUPTED,
    KILLED,
    LIBRARY,
    STEP,
    TESTS,
    Moments,
    Sleeps,
    assert_each_item_came_once_and_in_order,
    consume,
    drained,
    eventually,
    finish,
    forked,
    generations,
    in_a_small_process,
    interrupt,
    produce,
    start,
    status_of,
)

from lmdbqueue import PersistentQueue
from lmdbqueue._host import departures
from lmdbqueue._host.session import CLOSED, Session
from lmdbqueue._local.environment import Environment
from lmdbqueue._local.transaction import blocks

FAST = {"durability": "off"}


# --- exactly once


@pytest.mark.parametrize(
    ("method", "items", "options"),
    [("spawn", 20_000, FAST), ("fork", 20_000, FAST), ("fork", 4_000, {}), ("spawn", 2_000, {"checksum": False})],
)
def test_every_item_reaches_one_of_four_consumers_once_and_in_order(tmp_path, method, items, options):
    place = str(tmp_path)
    consumers = [start(method, consume, place, options, number) for number in range(4)]
    producers = [start(method, produce, place, options, number, items // 4) for number in range(4)]
    finish(producers)
    with PersistentQueue("queue", place, **options) as queue:
        queue.push([None] * 4)
        finish(consumers)
        assert queue.check() == []
        assert drained(queue) == []
    assert_each_item_came_once_and_in_order(place, 4, 4)


# --- nobody is in the way of others


def _iterate_and_stop_at(queue, number):
    seen = []
    for item in queue:
        seen.append(item)
        if item == number:
            os.kill(os.getpid(), signal.SIGSTOP)
    assert seen == sorted(set(seen))
    assert seen[-1] > number


def test_a_process_stopped_between_two_items_of_an_iteration_is_in_nobodys_way(open_queue):
    queue = open_queue(**FAST)
    queue.push(list(range(1_000)))
    directory = queue._engine.path
    child = forked(_iterate_and_stop_at, queue, 500)
    try:
        eventually(lambda: os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT))
        number = 1_000
        size = 0
        for turn in range(100):  # a reader that held its snapshot would let none of this space be used again
            queue.push(list(range(number, number + 1_000)))
            assert len(queue.pop(1_000)) == 1_000
            number += 1_000
            if turn == 10:
                size = os.path.getsize(os.path.join(directory, generations(directory)[0]))
        assert os.path.getsize(os.path.join(directory, generations(directory)[0])) <= 2 * size
    finally:
        os.kill(child, signal.SIGCONT)
    assert status_of(child) == 0


# --- waking


def _put_all(queue, items):
    for item in items:
        queue.put(item)


def test_a_put_of_another_process_is_woken_when_a_consumer_makes_room(open_queue):
    queue = open_queue(maxsize=1, **FAST)
    begun = time.monotonic()
    producer = forked(_put_all, queue, range(100))
    assert [queue.get(timeout=DEADLINE) for _ in range(100)] == list(range(100))
    assert status_of(producer) == 0
    assert time.monotonic() - begun < 20  # asleep until the ceiling of a second, it would take 100


def _get_and_answer(queue, answers):
    for item in iter(queue.get, None):
        answers.push(item)


def test_a_get_of_another_process_is_woken_by_a_push(open_queue):
    queue, answers = open_queue(**FAST), open_queue("answers", **FAST)
    consumer = forked(_get_and_answer, queue, answers)
    begun = time.monotonic()
    for number in range(100):
        queue.push(number)
        assert answers.get(timeout=DEADLINE) == number
    assert time.monotonic() - begun < 20
    queue.push(None)
    assert status_of(consumer) == 0


def _sleep_in_get(queue, told):
    Sleeps(queue, lambda: os.write(told, b"z"))
    queue.get()


def test_killed_waiters_take_nothing_with_them(open_queue):
    queue = open_queue()
    read, write = os.pipe()
    waiters = [forked(_sleep_in_get, queue, write) for _ in range(5)]
    survivor = forked(_get_and_answer, queue, open_queue("answers"))
    asleep = b""
    while len(asleep) < len(waiters):
        asleep += os.read(read, 1)
    for waiter in waiters:
        os.kill(waiter, signal.SIGKILL)
        assert status_of(waiter) == KILLED
    queue.push(["a", "b", "c"])
    answers = open_queue("answers")
    assert [answers.get(timeout=DEADLINE) for _ in range(3)] == ["a", "b", "c"]
    queue.push(None)
    assert status_of(survivor) == 0
    os.close(read)
    os.close(write)


# --- interrupts


def _get_after_interrupts(queue, told, rounds, company):
    """Tell when asleep (z), interrupted (i) and when an item came (its number)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if company:
        threading.Thread(target=queue.peek, args=(1_000, True), daemon=True).start()
    main = threading.get_ident()
    Sleeps(queue, lambda: os.write(told, b"z") if threading.get_ident() == main else None)
    expected = 0
    while expected < rounds:
        try:
            assert queue.get(timeout=DEADLINE) == expected
        except KeyboardInterrupt:
            os.write(told, b"i")
        else:
            expected += 1
            os.write(told, b"g")


@pytest.mark.parametrize("company", [False, True], ids=["alone", "beside another waiting thread"])
def test_an_interrupt_ends_a_waiting_get_and_the_next_get_works(open_queue, company):
    queue = open_queue(**FAST)
    read, write = os.pipe()
    child = forked(_get_after_interrupts, queue, write, 20, company)
    os.close(write)

    def await_word(word):
        while (heard := os.read(read, 1)) != word:
            assert heard, "the child has died"

    for number in range(20):
        await_word(b"z")
        os.kill(child, signal.SIGINT)
        await_word(b"i")
        await_word(b"z")
        queue.push(number)
        await_word(b"g")
    assert status_of(child) == 0
    assert queue.count() == 0
    os.close(read)


def _flush(queue):
    queue.flush(force=True)


class _Interrupts:
    """SIGINT raises KeyboardInterrupt, but only inside a call made by ``tried``, and once in it."""

    def __init__(self):
        self.armed = False
        self.count = 0
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_):
        if self.armed:
            self.armed = False
            self.count += 1
            raise KeyboardInterrupt

    def tried(self, verb, *args):
        """Return ``[verb(*args)]``, or an empty list if that was interrupted, perhaps just after its end."""
        try:
            try:
                self.armed = True
                result = [verb(*args)]
            finally:
                self.armed = False
        except KeyboardInterrupt:
            return []
        return result


def _work_through_interrupts(place, durability, ready):
    """Push, take, look and flush; demand that all that was acknowledged is there, once and in order."""
    interrupts = _Interrupts()
    queue = PersistentQueue("queue", place, durability=durability)
    os.write(ready, b"r")
    acknowledged = set()
    got = []
    unanswered = 0  # a get that is interrupted after its commit has taken its item
    number = 0
    while interrupts.count < 300:
        for _ in range(5):
            if interrupts.tried(queue.push, number):
                acknowledged.add(number)
            number += 1
        answer = interrupts.tried(queue.pop)
        unanswered += not answer
        got += answer if answer != [None] else []
        interrupts.tried(queue.peek, 100)
        if number % 50 == 0:
            interrupts.tried(_flush, queue)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    queue.flush(force=True)  # an interrupted one may have left its draft
    assert queue.check() == []
    got += drained(queue)
    assert got == sorted(set(got))
    assert len(acknowledged - set(got)) <= unanswered
    queue.close()


@pytest.mark.parametrize("durability", ["full", "off"])
def test_interrupts_anywhere_lose_nothing_acknowledged_and_leave_a_queue_that_works_and_closes(tmp_path, durability):
    read, write = os.pipe()
    child = forked(_work_through_interrupts, str(tmp_path), durability, write)
    randomness = random.Random(1)  # noqa: S311  (nothing is to be kept secret)
    os.read(read, 1)

    def interrupt_or_see_the_end():
        time.sleep(randomness.uniform(0, 0.003))
        os.kill(child, signal.SIGINT)
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    try:
        eventually(interrupt_or_see_the_end)
    finally:
        os.close(read)
        os.close(write)
        assert status_of(child, 0.1) == 0


_kept = []  # an interrupt amid the end of what is let go is swallowed by Python


def _settle_in_parts(queue):
    queue.push_many(["second", "third"])
    with queue.lease(3) as lease:
        lease.extend(60)
        lease.ack(lease.seqs[0])
        lease.nack(lease.seqs[1])


def _fail_with_a_lease(queue):
    with suppress(ZeroDivisionError), queue.lease(1):
        raise ZeroDivisionError


def _work_once(queue):
    answers = itertools.cycle([False, True])
    queue.work(lambda _: None, stop=lambda: next(answers))


_INTERRUPTED = {
    **INTERRUPTED,
    "lease, extend, ack and nack": _settle_in_parts,
    "lease and fail": _fail_with_a_lease,
    "work": _work_once,
    "flush": _flush,
    "count after a flush elsewhere": lambda queue: queue.count(),
    "open": lambda queue: _kept.append(PersistentQueue("queue", queue.path, durability="off")),
}


def _queue_for(place, verb):
    queue = PersistentQueue("queue", place, durability="off")
    if verb != "get":
        queue.push("first")
    if verb == "count after a flush elsewhere":
        assert status_of(forked(_flush, queue)) == 0
    return queue


def _is_at_an_end_of_a_block(error):
    """Tell whether an interrupt came as Python called what begins or ends a block, before that could do anything."""
    frames = [each for each in traceback.walk_tb(error.__traceback__) if each[0].f_code.co_filename.startswith(LIBRARY)]
    frame, line = frames[-1]
    return frame.f_code.co_name in {"__enter__", "__exit__"} and line == frame.f_code.co_firstlineno


def _interrupted_at(number, place, verb):
    """Raise KeyboardInterrupt at the ``number``-th moment (``Moments``) of the verb; tell whether there was one."""
    queue = _queue_for(place, verb)
    moments = Moments(number, interrupt)
    is_lost = False
    try:
        with moments:
            _INTERRUPTED[verb](queue)
        assert moments.left > 0, "the interrupt was swallowed"
    except KeyboardInterrupt as error:
        is_lost = queue.stats().leased > 0 and not _is_at_an_end_of_a_block(error)
    assert moments.left >= 0
    assert not is_lost, "what was leased is left to its owner, who knows nothing of it"
    queue.push("last")
    assert queue.peek() is not None
    other = threading.Thread(target=queue.push, args=("last",))  # to whom no lock of this thread is its own
    other.start()
    other.join()
    queue.close()
    with PersistentQueue("queue", place, durability="off") as again:
        again.flush(force=True)
        assert again.check() == []
        assert drained(again)[-1] == "last"
    return moments.left == 0


def _lines_of(place, verb):
    """Return the number, for ``Moments``, of the first moment at each line of the library that the verb passes."""
    queue = _queue_for(place, verb)
    passed = itertools.count(1)
    found = {}

    def look(frame, event, _):
        if event in {"call", "c_return"} and not frame.f_code.co_filename.startswith(TESTS):
            number, name = next(passed), frame.f_code.co_name
            while not frame.f_code.co_filename.startswith((LIBRARY, TESTS)):
                frame = frame.f_back
            found.setdefault((frame.f_code.co_filename, frame.f_lineno, name, event), number)

    sys.setprofile(look)
    try:
        _INTERRUPTED[verb](queue)
    finally:
        sys.setprofile(None)
    return list(found.values())


def _interrupt_at_every_moment(root, verb):
    """Return at how many; end with the stacks of all threads if one of them hangs."""
    numbers = itertools.count(1)
    if STEP > 1:
        whole, first = os.path.join(root, "whole"), os.path.join(root, "0")
        os.mkdir(whole)
        os.mkdir(first)
        assert not _interrupted_at(sys.maxsize, whole, verb)  # so that all is imported
        numbers = _lines_of(first, verb)[7::15]
    for done, number in enumerate(numbers):
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        place = os.path.join(root, str(number))
        os.mkdir(place)
        try:
            if not _interrupted_at(number, place, verb):
                return done
        except BaseException as error:
            error.add_note(f"interrupted at moment {number}")
            raise
        shutil.rmtree(place)
    return len(numbers)


@pytest.mark.parametrize("verb", _INTERRUPTED)
def test_an_interrupt_at_any_moment_leaves_a_queue_that_works_and_closes(tmp_path, verb, record_property):
    """At each 15th line that the verb passes, when it is passed first; with LMDBQUEUE_STEP=1 at every moment."""
    interrupts = in_a_small_process(_interrupt_at_every_moment, str(tmp_path), verb)
    assert interrupts > (30 if STEP == 1 else 2)
    record_property("interrupts", interrupts)


_HOLDING = {
    "names": lambda environment: environment.directory.lock(),
    "names, parked": lambda environment: environment.directory.lock(environment.directory.parking),
    "compaction": lambda environment: environment.directory.compaction(),
    "write lock": Environment.exclusive,
    "block": Environment.transaction,
}


@pytest.mark.parametrize("holding", _HOLDING)
def test_an_interrupt_at_any_moment_lets_go_of_what_is_held_for_a_block(queue, tmp_path, holding):
    environment = queue._engine.environment
    handles = environment.handles
    for number in itertools.count(1):
        moments = Moments(number, interrupt)
        kept = None  # as an interactive Python does, whose traceback refers to all that was under way
        try:
            with moments, _HOLDING[holding](environment):
                pass
        except KeyboardInterrupt as error:
            kept = error
        assert (kept is None) == (moments.left > 0)
        assert departures.wait(DEADLINE)  # what the collector ended, another thread closes
        assert environment.handles == handles, f"at moment {number}"
        assert not blocks.of_thread
        for path in (tmp_path / "queue", tmp_path / "queue" / "queue.json"):
            fd = os.open(path, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as another process would
            os.close(fd)
        other = threading.Thread(target=queue.push, args=("more",), daemon=True)
        other.start()
        other.join(DEADLINE)
        assert not other.is_alive(), f"at moment {number}"
        if moments.left > 0:
            break
    assert number > 10


def test_a_process_that_opens_while_the_last_one_closes_says_that_the_queue_is_open(tmp_path, monkeypatch):
    """Else a power cut would find it closed, and nothing would be proven."""
    begin, go_on = os.pipe()
    ready, tell = os.pipe()
    end, stop = os.pipe()

    def come() -> None:
        os.read(begin, 1)
        with PersistentQueue("queue", tmp_path) as late:
            late.push("late")
            os.write(tell, b"1")
            os.read(end, 1)

    child = forked(come)  # before there is anything to inherit
    queue = PersistentQueue("queue", tmp_path)
    closing = queue._engine.environment._session

    def leave(self):
        if self is closing:
            os.write(go_on, b"1")
            eventually(lambda: _waits_for_a_lock(child) or select.select([ready], [], [], 0)[0])
        session_leave(self)

    session_leave = Session.leave
    monkeypatch.setattr(Session, "leave", leave)
    queue.close()
    assert os.read(ready, 1) == b"1"
    state = _state(tmp_path)
    os.write(stop, b"1")
    assert status_of(child) == 0
    assert state != CLOSED
    assert _state(tmp_path) == CLOSED


def _state(place) -> bytes:
    return (place / "queue" / "session").read_bytes()[24:40]


def _waits_for_a_lock(pid: int) -> bool:
    with open("/proc/locks", encoding="ascii") as file:
        return any("->" in line and f" {pid} " in line for line in file)
