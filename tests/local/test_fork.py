"""Forks: the child goes on with the same queue object, the parent too, and neither harms the other."""

import contextlib
import ctypes
import faulthandler
import fcntl
import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from functools import partial
from multiprocessing import get_context

import pytest
from opener import as_after_a_reboot
from processes import (
    DEADLINE,
    KILLED,
    STEP,
    Moments,
    Sleeps,
    drained,
    eventually,
    finish,
    forked,
    in_a_small_process,
    interrupt,
    is_taken,
    start,
    status_of,
)

from lmdbqueue import Empty, ForkError, PersistentQueue, QueueError
from lmdbqueue._base import format as _format
from lmdbqueue._host.threads import is_mine
from lmdbqueue._lmdb import checkpoint_pin
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._local import live as _live
from lmdbqueue._local import sharing

FAST = {"durability": "off"}


# --- LMDB's table of readers, which parent and child share


def _readings(generation):
    """Return the snapshots that this process has entries for in LMDB's table of readers."""
    entries = [line.split() for line in generation._env.readers().splitlines()[1:]]
    return [snapshot for pid, _, snapshot in entries if int(pid) == os.getpid()]


def test_a_child_that_is_slow_clears_no_entry_that_its_parent_has_reused(open_queue, monkeypatch):
    queue = open_queue()
    queue.push(["a", "b"])
    generation = queue._engine.environment._generation
    kept = generation.keep()  # as a flush does, which may go on for long
    queue.peek()  # LMDB's binding keeps the entry of the last reading for the next one
    gate, opener = os.pipe()

    def close_later(generation):
        os.read(gate, 1)
        close(generation)

    close = Generation.close
    with monkeypatch.context() as patched:
        patched.setattr(Generation, "close", close_later)  # by the child, as it drops what it has inherited
        pid = forked(queue.peek)
    del kept
    later = [generation.keep() for _ in range(3)]
    os.write(opener, b".")
    assert status_of(pid) == 0
    assert _readings(generation) == [str(each.txn.id()) for each in later]
    generation.let_go()
    os.close(gate)
    os.close(opener)


class _Account:
    """A file in which all threads and processes write what they have pushed and popped."""

    def __init__(self, place):
        self._path = place / "account"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = itertools.count()

    def push(self, queue, n=1):
        for _ in range(n):
            item = f"{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
            queue.push(item)
            os.write(self._fd, f"+{item}\n".encode())

    def pop(self, queue):
        os.write(self._fd, f"-{queue.pop()}\n".encode())

    def close(self):
        """Return the items that must be left, each as often as it must be."""
        os.close(self._fd)
        left = Counter()
        for line in self._path.read_text().split():
            left[line[1:]] += 1 if line[0] == "+" else -1
        return {item: number for item, number in left.items() if number}


def _fork_beside_flushes(place, rounds, durability):
    account, stop = _Account(place), threading.Event()
    queue = PersistentQueue("queue", place, durability=durability)
    account.push(queue, 200)

    def use(queue):
        account.push(queue, 5)
        queue.peek(2)
        account.pop(queue)

    def use_anew():
        with PersistentQueue("queue", place, durability=durability) as mine:
            use(mine)

    def flush():
        queue.flush(force=True)
        time.sleep(0.05)  # so that others do more than follow it

    def open_another():
        PersistentQueue("queue", place, name="another", durability=durability).close()

    def again_and_again(call):
        while not stop.is_set():
            call()
            time.sleep(0.002)

    def in_parent():
        account.push(queue)
        account.pop(queue)

    loops = [threading.Thread(target=again_and_again, args=[call]) for call in (in_parent, flush, open_another)]
    for loop in loops:
        loop.start()
    try:
        for _ in range(rounds):
            for call in (partial(use, queue), use_anew):
                assert status_of(forked(call)) == 0
            two = [threading.Thread(target=lambda: status_of(forked(use, queue))) for _ in range(2)]
            for each in two:
                each.start()
            for each in two:
                each.join()
            assert queue.check() == []
    finally:
        stop.set()
        for loop in loops:
            loop.join()
    assert account.close() == dict.fromkeys(queue, 1)
    queue.close()


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_forks_beside_flushes_lose_nothing_and_bring_nothing_back(tmp_path, durability):
    _fork_beside_flushes(tmp_path, 20, durability)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["full", "interval", "off"])
def test_a_thousand_forks_beside_flushes_lose_nothing_and_bring_nothing_back(tmp_path, durability):
    _fork_beside_flushes(tmp_path, 250, durability)


# --- one object on both sides


def _use_all_verbs(queue):
    assert queue.peek() == "a"
    assert queue.pop() == "a"
    assert queue.push(["child 1", "child 2"]) == range(2, 4)
    queue.put("child 3")
    assert queue.get(timeout=DEADLINE) == "b"
    assert list(queue) == ["child 1", "child 2", "child 3"]
    assert queue.delete() == 1
    queue.flush(force=True)
    assert len(queue) == 2


def test_a_child_uses_every_verb_of_the_object_it_inherited_and_so_does_the_parent_afterwards(open_queue):
    queue = open_queue()
    queue.push(["a", "b"])
    assert status_of(forked(_use_all_verbs, queue)) == 0
    assert queue.pop(5) == ["child 2", "child 3"]
    queue.push("c")
    assert queue.pop() == "c"


def _push_all(queue, items):
    for item in items:
        queue.push(item)


def test_parent_and_child_push_through_one_object_at_the_same_time(open_queue):
    queue = open_queue(**FAST)
    queue.push("first")
    child = forked(_push_all, queue, [("child", number) for number in range(500)])
    _push_all(queue, [("parent", number) for number in range(500)])
    assert status_of(child) == 0
    assert queue.pop() == "first"
    items = drained(queue)
    for who in ("child", "parent"):
        assert [item for item in items if item[0] == who] == [(who, number) for number in range(500)]


def _answer(queue, answers):
    for item in iter(queue.get, None):
        answers.push(item)


def test_a_waiting_child_is_woken_by_its_parent_and_the_other_way_round(open_queue):
    queue, answers = open_queue(**FAST), open_queue("answers", **FAST)
    with pytest.raises(Empty):
        answers.get(timeout=0.001)  # so that the child inherits a bell that was listened to
    with pytest.raises(Empty):
        queue.get(timeout=0.001)
    child = forked(_answer, queue, answers)
    begun = time.monotonic()
    for number in range(100):
        queue.push(number)
        assert answers.get(timeout=DEADLINE) == number
    assert time.monotonic() - begun < 20  # asleep until the ceiling of a second, it would take 100
    queue.push(None)
    assert status_of(child) == 0


def _end_waiting(queue):
    assert queue.get(timeout=DEADLINE) == "for the child"


def test_a_fork_beside_a_waiting_thread_lets_both_wait_on(open_queue):
    queue = open_queue()
    sleeps = Sleeps(queue)
    got = []
    thread = threading.Thread(target=lambda: got.append(queue.get(timeout=DEADLINE)))
    thread.start()
    eventually(lambda: sleeps.count)
    child = forked(_end_waiting, queue)
    queue.push("for the child")
    queue.push("for the child")
    thread.join(DEADLINE)
    assert got == ["for the child"]
    assert status_of(child) == 0


def _fork_again(queue, generation):
    queue.push(generation)
    if generation < 4:
        assert status_of(forked(_fork_again, queue, generation + 1)) == 0
    queue.push(generation)


def test_a_fork_of_a_fork_of_a_fork_uses_the_object_too(open_queue):
    queue = open_queue()
    assert status_of(forked(_fork_again, queue, 1)) == 0
    assert queue.pop(10) == [1, 2, 3, 4, 4, 3, 2, 1]


# --- amid the calls of other threads


def _keep_busy(queue, work, stop):
    done = []
    while not stop.is_set():
        work(queue, done)
    return done


def _push_one(queue, done):
    queue.push(("thread", len(done)))
    done.append(None)


def _pop_one(queue, done):
    item = queue.pop()
    if item is not None:
        done.append(item)


def _look(queue, _):
    queue.peek(200)
    queue.count()


def _browse(queue, _):
    for _item in zip(range(100), queue, strict=False):
        pass


def _fork_amid_threads(place, options, forks):
    stop = threading.Event()
    with PersistentQueue("queue", place, **options) as queue:
        queue.push([("before", number) for number in range(200)])
        lists = []
        threads = [
            threading.Thread(target=lambda work=work: lists.append((work, _keep_busy(queue, work, stop))))
            for work in (_push_one, _pop_one, _look, _look, _browse)
        ]
        for thread in threads:
            thread.start()
        slowest = 0.0
        for number in range(forks):
            begun = time.monotonic()
            child = forked(queue.push, ("child", number))
            slowest = max(slowest, time.monotonic() - begun)
            assert status_of(child, 20) == 0
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        done = dict(lists)
        items = done[_pop_one] + drained(queue)
        assert [item for item in items if item[0] == "child"] == [("child", number) for number in range(forks)]
        pushed = len(done[_push_one])
        assert [item for item in items if item[0] == "thread"] == [("thread", number) for number in range(pushed)]
        assert len(items) == 200 + forks + pushed
        assert slowest < 4  # after 5 s it would have given up waiting for the other threads
        assert queue.check() == []


@pytest.mark.parametrize("options", [{}, FAST], ids=["full", "off"])
def test_forks_amid_the_calls_of_other_threads_neither_lose_an_item_nor_hang(tmp_path, options):
    assert status_of(forked(_fork_amid_threads, tmp_path, options, 30)) == 0


def _flush(queue):
    queue.flush(force=True)


def _fork_while_a_call_moves_on(place):
    queue = PersistentQueue("queue", place)
    assert status_of(forked(_flush, queue)) == 0  # this process has not noticed
    environment = queue._engine.environment
    generation = environment._generation
    look = generation._refuse_superseded
    reached = threading.Event()

    def look_late(txn):
        reached.set()
        eventually(lambda: is_taken(environment._moving))
        look(txn)

    generation._refuse_superseded = look_late
    reader = threading.Thread(target=queue.count)
    reader.start()
    assert reached.wait(DEADLINE)
    begun = time.monotonic()
    child = forked(queue.push, "child")
    assert time.monotonic() - begun < 4
    reader.join(DEADLINE)
    assert status_of(child) == 0
    assert queue.pop() == "child"


def test_a_fork_works_even_if_another_thread_is_just_finding_a_flush_by_others(tmp_path):
    assert status_of(forked(_fork_while_a_call_moves_on, tmp_path), 20) == 0


def _get_one(queue):
    assert queue.get(timeout=DEADLINE) == "a"
    queue.task_done()


def test_a_fork_while_another_thread_counts_what_it_got_leaves_a_child_that_gets(open_queue):
    queue = open_queue()
    queue.push("a")
    held, forked_already = threading.Event(), threading.Event()

    def count():
        with queue._hands.lock:  # as get() does, for a moment
            held.set()
            assert forked_already.wait(DEADLINE)

    thread = threading.Thread(target=count)
    thread.start()
    assert held.wait(DEADLINE)
    child = forked(_get_one, queue)
    forked_already.set()
    thread.join(DEADLINE)
    assert status_of(child, 20) == 0


def _clear_and_join(queue):
    queue.clear()
    queue.join()


def test_a_child_does_not_wait_for_what_threads_of_its_parent_were_taking(open_queue):
    reached, go_on = threading.Event(), threading.Event()

    def loads(payload):
        if threading.current_thread() is thread:
            reached.set()
            assert go_on.wait(DEADLINE)
        return payload.decode()

    queue = open_queue(dumps=str.encode, loads=loads)
    queue.push("a")
    thread = threading.Thread(target=queue.get)
    thread.start()
    assert reached.wait(DEADLINE)
    child = forked(_clear_and_join, queue)
    try:
        assert status_of(child, 20) == 0
    finally:
        queue.push("b")  # since the child has cleared the queue
        go_on.set()
        thread.join(DEADLINE)


# --- what a child keeps alive


def _open_fork_and_wait(place, told, idle):
    queue = PersistentQueue("queue", place)
    queue.push("a")
    child = forked(os.read, idle, 1)  # inherits the queue and does nothing with it
    os.write(told, child.to_bytes(4, "big"))
    os.read(idle, 1)


def _is_alone(place):
    """Tell whether somebody who opens the queue now is alone with it: only then a stray draft is removed."""
    draft = os.path.join(place, "queue", "00000002.mdb.tmp")
    with open(draft, "wb"):
        pass
    with PersistentQueue("queue", place):
        alone = not os.path.exists(draft)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    return alone


def test_an_idle_child_does_not_keep_up_the_life_sign_of_its_dead_parent(tmp_path):
    told, tell = os.pipe()
    idle, wake = os.pipe()
    parent = forked(_open_fork_and_wait, tmp_path, tell, idle)
    child = int.from_bytes(os.read(told, 4), "big")
    try:
        assert status_of(forked(_assert_not_alone, tmp_path)) == 0
        os.kill(parent, signal.SIGKILL)
        assert status_of(parent) == KILLED
        os.kill(child, 0)  # still there
        assert _is_alone(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        for fd in (told, tell, idle, wake):
            os.close(fd)


def _assert_not_alone(place):
    assert not _is_alone(place)


def test_a_child_that_works_with_the_queue_has_a_life_sign_of_its_own(tmp_path):
    told, tell = os.pipe()
    idle, wake = os.pipe()
    queue = PersistentQueue("queue", tmp_path)

    def work_and_wait():
        queue.push("a")
        os.write(tell, b"r")
        os.read(idle, 1)

    child = forked(work_and_wait)
    os.read(told, 1)
    queue.close()
    assert not _is_alone(tmp_path)
    os.write(wake, b"g")
    assert status_of(child) == 0
    assert _is_alone(tmp_path)
    for fd in (told, tell, idle, wake):
        os.close(fd)


def test_a_child_that_closes_the_queue_leaves_it_open_in_the_parent(open_queue):
    queue = open_queue()
    queue.push("a")
    assert status_of(forked(queue.close)) == 0
    assert queue.pop() == "a"
    assert status_of(forked(_assert_not_alone, queue.path)) == 0


# --- multiprocessing


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_queue_is_an_argument_of_a_process_however_that_is_started(open_queue, method):
    queue = open_queue(maxsize=100, **FAST)
    queue.push(["a", None])
    answers = open_queue("answers", **FAST)
    finish([start(method, _answer, queue, answers)])
    assert answers.pop(5) == ["a"]
    assert queue.count() == 0


def test_a_pool_of_forked_workers_shares_one_queue(open_queue):
    queue = open_queue(**FAST)
    with get_context("fork").Pool(4) as pool:
        pool.map(queue.push, range(200), chunksize=1)
        pool.close()
        pool.join()
    assert sorted(drained(queue)) == list(range(200))


def test_nobody_begins_to_read_while_a_fork_waits_for_other_directories(tmp_path):
    with PersistentQueue("queue", str(tmp_path)) as queue:
        queue.push(1)
        environment = queue._engine.environment
        generation = environment._generation
        assert environment.freeze(5.0)
        assert environment._generation is None, "a child could not close what another thread was reading"
        environment.thaw()
        assert environment._generation is generation
        assert queue.peek() == 1


def test_a_child_that_a_handler_forked_may_leave_the_work(open_queue):
    """The thread that keeps the lease is the parent's, so the child waits for none."""
    queue, children = open_queue(**FAST), []
    queue.push("a")
    parent = os.getpid()

    def handle(_):
        children.append(os.fork())
        if os.getpid() != parent:
            raise SystemExit

    try:
        done = queue.work(handle, stop=lambda: bool(children)).done
    except SystemExit:
        os._exit(7)
    assert status_of(children[0], DEADLINE / 4) == 7
    assert done == 1
    assert queue.stats().removed == 1


def test_what_a_handler_raises_while_a_fork_waits_for_a_reader_harms_neither_side(open_queue, monkeypatch):
    """Python ignores it, and forks: the child must not end what the parent's reader is at."""
    queue = open_queue(**FAST)
    queue.push("a")
    engine, begun, goes_on = queue._engine, threading.Event(), threading.Event()

    def read(_txn, _tables):
        begun.set()
        return goes_on.wait(DEADLINE)

    def interrupt(_):
        raise KeyboardInterrupt

    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    reader = threading.Thread(target=engine.environment.view, args=(engine.ref, read))
    reader.start()
    assert begun.wait(DEADLINE)
    with monkeypatch.context() as patch:
        patch.setattr(_live.time, "sleep", interrupt)
        child = forked(queue.push, "of the child")
    generation = engine.environment._generation
    goes_on.set()
    reader.join(DEADLINE)
    assert ignored
    assert status_of(child) == 1  # ForkError
    assert generation is not None
    assert not is_taken(engine.environment._writer)
    assert queue.push("b") == 1
    assert engine.environment._generation is generation
    assert queue.pop(3) == ["a", "b"]


def _fork_interrupted_at_each_moment(place):
    """Return at how many: of what is done before a fork, after it, and in the child."""
    sys.unraisablehook = lambda _: None  # Python can do nothing else with what is raised there
    done = 0
    with PersistentQueue("queue", place, **FAST) as queue, PersistentQueue("other", place, **FAST):
        for number in itertools.count(1, STEP):
            queue.push("a")
            faulthandler.dump_traceback_later(DEADLINE, exit=True)
            with Moments(number, interrupt) as moments:
                pid = os.fork()
            if not pid:
                try:
                    with contextlib.suppress(ForkError, KeyboardInterrupt):
                        queue.push("of the child")
                    os._exit(0)
                finally:
                    os._exit(1)
            assert status_of(pid) == 0, f"at moment {number}"
            other = threading.Thread(target=queue.push, args=("b",), daemon=True)
            other.start()
            other.join(DEADLINE)
            assert not other.is_alive(), f"at moment {number}"
            assert queue.pop() == "a"
            queue.clear()
            if moments.left > 0:
                return done
            done += 1
    return done


def test_an_interrupt_at_any_moment_of_a_fork_holds_up_neither_side(tmp_path):
    assert in_a_small_process(_fork_interrupted_at_each_moment, str(tmp_path)) > 5


# --- forks by a handler amid a call of its thread


def _pop_in_a_block(queue):
    with queue.transaction():
        queue.push("of a block")
        queue.pop()


AMID = {
    "push": lambda queue: queue.push("of the call"),
    "pop": lambda queue: queue.pop(),
    "lease": lambda queue: queue.lease().ack(),
    "block": _pop_in_a_block,
    "peek": lambda queue: queue.peek(2),
}


def _fork_amid(place, verb):
    """Fork at one moment after the other of a call, which the child goes on with once its parent has done much more."""
    number, forks = 1, 0
    with PersistentQueue("queue", place, durability="interval", interval=3600.0) as queue:
        while True:
            queue.clear()
            queue.push([f"before {n}" for n in range(10)])
            goes_on, go_on = os.pipe()
            children = []

            def fork(children=children, goes_on=goes_on):
                children.append(os.fork())
                if not children[0]:
                    os.read(goes_on, 1)

            faulthandler.dump_traceback_later(DEADLINE, exit=True)
            try:
                with contextlib.suppress(QueueError), Moments(number, fork) as moments:
                    AMID[verb](queue)
            finally:
                if children == [0]:
                    os._exit(sys.exc_info()[0] is not None)
            later = [f"{number}: {n}" for n in range(12)]
            for item in later:
                queue.push(item)
            os.write(go_on, b"g")
            for child in children:
                assert status_of(child) == 0, f"at moment {number}"
            assert [item for item in queue if item in later] == later, f"at moment {number}"
            assert queue.check() == [], f"at moment {number}"
            os.close(goes_on)
            os.close(go_on)
            if moments.left > 0:
                return forks
            number, forks = number + STEP, forks + 1


@pytest.mark.parametrize("verb", AMID)
def test_a_child_forked_amid_a_call_of_its_thread_ends_nothing_that_its_parent_has_begun(tmp_path, verb):
    assert in_a_small_process(_fork_amid, str(tmp_path), verb) > 2


def _fork_amid_a_creation_by_another_thread(place, directories):
    inside, forks, pack = threading.Event(), threading.Event(), _format.pack_last
    queue = PersistentQueue("before", place)

    def pack_last(*numbers):
        inside.set()
        assert forks.wait(DEADLINE)
        return pack(*numbers)

    make = queue.copy if directories == 2 else lambda name: PersistentQueue(name, place)
    created = []
    thread = threading.Thread(target=lambda: created.append(make("queue")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_format, "pack_last", pack_last)
        os.register_at_fork(before=forks.set)  # the last one registered is the first one called
        thread.start()
        assert inside.wait(DEADLINE)

        def push():
            eventually(lambda: os.path.exists(os.path.join(place, "queue", "session")))
            PersistentQueue("queue", place).push("child")

        child = forked(push)
    thread.join()
    assert status_of(child) == 0
    return list(created[0])


@pytest.mark.parametrize("directories", [1, 2])
def test_a_child_forked_amid_a_creation_by_another_thread_can_open_what_that_has_created(tmp_path, directories):
    assert in_a_small_process(_fork_amid_a_creation_by_another_thread, str(tmp_path), directories) == ["child"]


def test_a_fork_waits_for_a_thread_that_asks_for_the_age_of_what_is_not_on_the_disk(open_queue, monkeypatch):
    queue = open_queue(durability="interval")
    queue.push(1)
    environment = queue._engine.environment
    monkeypatch.setattr(environment._checkpoints, "uncovered_since", lambda: is_mine(environment._moving))
    assert queue.stats().unsynced_seconds


def _cut_off(place, durability):
    """Leave a queue of 50 items as a power cut would, which is verified before it is opened."""
    options = {"durability": durability}
    assert (
        status_of(forked(lambda: os._exit(PersistentQueue("queue", place, **options).push(list(range(50))) is None)))
        == 0
    )
    as_after_a_reboot(os.path.join(place, "queue"))


def _fork_amid_an_opening(place, durability, stride, before):
    """Fork at moments of an opening, which the child goes on with once its parent has worked with the queue."""
    for number in itertools.count(1, stride):
        shutil.rmtree(os.path.join(place, "queue"), ignore_errors=True)
        if before:
            _cut_off(place, durability)
        goes_on, go_on = os.pipe()
        children = []

        def fork(children=children, goes_on=goes_on):
            children.append(os.fork())
            if not children[0]:
                os.read(goes_on, 1)

        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        try:
            with Moments(number, fork) as moments:
                queue = PersistentQueue("queue", place, durability=durability)
        except QueueError:
            if children != [0]:
                raise
        finally:
            if children == [0]:
                os._exit(0)
        later = [f"{number}: {n}" for n in range(200)]
        for item in later:
            queue.push(item)
        os.write(go_on, b"g")
        for child in children:
            assert status_of(child) == 0, f"at moment {number}"
        queue.push("the last")
        assert list(queue) == [*range(before), *later, "the last"], f"at moment {number}"
        assert queue.check() == [], f"at moment {number}"
        queue.close()
        os.close(goes_on)
        os.close(go_on)
        if moments.left > 0:
            return number // stride
    raise AssertionError


@pytest.mark.parametrize(("durability", "stride", "before"), [("full", 25, 0), ("full", 25, 50), ("interval", 25, 50)])
def test_a_child_forked_amid_an_opening_of_its_thread_writes_over_nothing_of_its_parent(
    tmp_path, durability, stride, before
):
    assert in_a_small_process(_fork_amid_an_opening, str(tmp_path), durability, stride * STEP, before) > 2


def _fork_amid_and_go_on_first(place, verb, stride):
    """Fork at moments of a call, which the child goes on with while its parent is still amid it."""
    for number in itertools.count(1, stride):
        shutil.rmtree(os.path.join(place, "queue"), ignore_errors=True)
        queue = None
        if verb == "flush":
            queue = PersistentQueue("queue", place)
            queue.push([b"item" * 100] * 300)
            queue.delete(200)
        children = []

        def fork(children=children):
            children.append(os.fork())
            if children[0]:
                assert status_of(children[0]) == 0

        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        try:
            with Moments(number, fork) as moments:
                if queue is None:
                    queue = PersistentQueue("queue", place)
                else:
                    queue.flush(force=True)
        except QueueError:
            if children != [0]:
                raise
        finally:
            if children == [0]:
                os._exit(0)
        queue.push(b"the last")
        assert list(queue) == [*[b"item" * 100] * 100 * (verb == "flush"), b"the last"], f"at moment {number}"
        assert queue.check() == [], f"at moment {number}"
        queue.close()
        if moments.left > 0:
            return number // stride
    raise AssertionError


@pytest.mark.parametrize("verb", ["create", "flush"])
def test_a_child_forked_amid_a_call_that_goes_on_first_takes_nothing_from_its_parent(tmp_path, verb):
    assert in_a_small_process(_fork_amid_and_go_on_first, str(tmp_path), verb, 25 * STEP) > 2


def _fork_amid_the_making_of_a_pin(place):
    begin, children = checkpoint_pin._BEGIN, []

    class Begin:
        """Fork between the two transactions by which a pin is made, and their end."""

        def pack(self, *entry):
            children.append(os.fork())
            if children[0]:
                assert status_of(children[0]) == 0
            return begin.pack(*entry)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_pin, "_BEGIN", Begin())
            queue = PersistentQueue("queue", place, durability="interval")
    except QueueError:
        if children != [0]:
            raise
    finally:
        if children == [0]:
            os._exit(0)
    queue.push(1)
    return list(queue)


def test_a_child_forked_amid_the_making_of_a_pin_ends_no_transaction_of_its_parent(tmp_path):
    assert in_a_small_process(_fork_amid_the_making_of_a_pin, str(tmp_path)) == [1]


def _fork_amid_a_checkpoint(place, verb, child_uses_it):
    """Fork at moments of a checkpoint, which the child goes on with; return what it raised, and what check() found."""
    parent, raised, found = os.getpid(), set(), []
    for number in itertools.count(1, STEP):
        queue = PersistentQueue("queue", place, durability="interval", interval=3600.0)
        queue.push("before")
        told, tell = os.pipe()

        def fork(queue=queue):
            if child := os.fork():
                assert status_of(child) == 0
            elif child_uses_it:
                with contextlib.suppress(QueueError):
                    queue.push("by the child")

        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        try:
            with Moments(number, fork) as moments:
                getattr(queue, verb)()
        except Exception as error:
            if os.getpid() == parent:
                raise
            os.write(tell, type(error).__name__.encode())
        finally:
            if os.getpid() != parent:
                os._exit(0)
            os.close(tell)
            with open(told, encoding="ascii") as file:
                raised.add(file.read())
        queue = PersistentQueue("queue", place, durability="interval", interval=3600.0)
        found += queue.check()
        if moments.left > 0:
            return raised, found
    raise AssertionError


@pytest.mark.parametrize("child_uses_it", [False, True])
@pytest.mark.parametrize(("verb", "raised"), [("sync", {"", "ForkError"}), ("close", {""})])
def test_a_child_forked_amid_a_checkpoint_leaves_no_file_and_raises_fork_error_alone(
    tmp_path, verb, raised, child_uses_it
):
    assert in_a_small_process(_fork_amid_a_checkpoint, str(tmp_path), verb, child_uses_it) == (raised, [])


@pytest.mark.parametrize("comes_first", [None, len, list])
def test_a_child_forked_amid_a_reading_of_its_thread_leaves_the_snapshot_to_its_parent(open_queue, comes_first):
    """Even if the handler has read before it forked."""
    queue = open_queue(**FAST)
    queue.push(["a", "b"])
    engine, parent, children = queue._engine, os.getpid(), []

    def read(_, tables):
        if comes_first is not None:
            comes_first(queue)
        children.append(os.fork())
        if os.getpid() == parent:
            assert status_of(children[0]) == 7
        return tables.generation._env.readers()

    try:
        readers = engine.environment.view(engine.ref, read)
    except ForkError:
        os._exit(7)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert [line.split()[0] for line in readers.splitlines()[1:] if line.split()[2] != "-"] == [str(parent)]
    assert queue.pop(2) == ["a", "b"]


def _wait_for_the_turn_and_fork(place, tell, idle):
    sharing._PATIENCE = 0.1  # that the fork waits for the thread
    with PersistentQueue("queue", place) as queue:
        os.write(tell, b"r")
        os.read(idle, 1)
        threading.Thread(target=queue.push, args=("never stored",), daemon=True).start()
        with open(queue._engine.environment._generation.path, "rb") as file:
            eventually(lambda: _is_locked(file))
        child = os.fork()
        if child:
            os.write(tell, child.to_bytes(4, "big"))
        os.read(idle, 1)


def _is_locked(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def test_a_child_that_a_fork_could_not_wait_for_keeps_no_turn_of_its_dead_parent(tmp_path):
    told, tell = os.pipe()
    idle, wake = os.pipe()
    parent = forked(_wait_for_the_turn_and_fork, tmp_path, tell, idle)
    os.read(told, 1)
    with PersistentQueue("queue", tmp_path) as queue:
        with queue.transaction():  # which a thread of the parent waits for
            os.write(wake, b"g")
            child = int.from_bytes(os.read(told, 4), "big")
            os.kill(parent, signal.SIGKILL)
            assert status_of(parent) == KILLED
        try:
            os.kill(child, 0)  # still there
            pusher = threading.Thread(target=queue.push, args=("a",), daemon=True)
            pusher.start()
            pusher.join(DEADLINE)
            assert not pusher.is_alive()
            assert list(queue) == ["a"]
        finally:
            os.kill(child, signal.SIGKILL)
            for fd in (told, tell, idle, wake):
                os.close(fd)


def _fork_in_c(tmp_path, uses, hook):
    if uses != "opening of a new one":
        queue = PersistentQueue("queue", tmp_path)
        queue.push([1, 2])
        queue.peek()
    if uses == "opening after close":
        queue.close()
    child = ctypes.PyDLL(None).fork()
    if child:
        assert status_of(child) == 0
        if uses.startswith("opening"):
            queue = PersistentQueue("queue", tmp_path)
        queue.push(3)
        assert queue.pop(4)[-1] == 3
        assert queue.check() == []
        return
    if hook:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    code = 1
    try:
        if uses in ("opening of a new one", "opening after close"):
            assert PersistentQueue("queue", tmp_path).push("by the child") >= 0
        else:
            with pytest.raises(ForkError, match="code in C"):
                _IN_A_CHILD_OF_C[uses](queue, tmp_path)
        code = 0
    finally:
        os._exit(code)


_IN_A_CHILD_OF_C = {
    "push": lambda queue, _: queue.push("by the child"),
    "peek": lambda queue, _: queue.peek(),
    "transaction": lambda queue, _: queue.transaction().__enter__(),
    "flush": lambda queue, _: queue.flush(force=True),
    "another object": lambda _, place: PersistentQueue("queue", place),
}


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook of a child"])
@pytest.mark.parametrize("uses", [*_IN_A_CHILD_OF_C, "opening of a new one", "opening after close"])
def test_a_child_forked_by_code_in_c_uses_nothing_of_its_parent(tmp_path, uses, hook):
    """As uWSGI forks its workers, by default without any of Python's hooks."""
    assert status_of(forked(lambda: _fork_in_c(tmp_path, uses, hook))) == 0
