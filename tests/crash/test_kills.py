"""SIGKILL at any line of the library: what was acknowledged is there, and a call is there wholly or not at all.

At every 11th line that a verb executes; at all, each time, with LMDBQUEUE_STEP=1. LMDBQUEUE_SEEDS says how many queues
the long form tries, and LMDBQUEUE_KILLS how many kills it deals out.
"""

import fcntl
import functools
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from account import Found, Journal, Worker, inspect, notes_to, open_queue, take_notes
from opener import as_after_a_reboot
from processes import MODULES, STEP, eventually, forked, in_a_small_process, kill_at_every_line, status_of
from scenarios import any_verb

from lmdbqueue import PersistentQueue
from lmdbqueue._local.relay import relay
from lmdbqueue._local.state import prepared

SEEDS = int(os.environ.get("LMDBQUEUE_SEEDS", "20"))
KILLS = int(os.environ.get("LMDBQUEUE_KILLS", "50000"))
PROCESSES = 4
DEADLINE = 60.0  # seconds
TOLD = "kills"

Items = list[bytes]


@dataclass(frozen=True)
class Verb:
    """A call, and what is in the queue after it."""

    call: Callable[[PersistentQueue[bytes]], object]
    after: Callable[[Items], Items] = lambda items: items
    between: Callable[[Items], Items] | None = None  # of its two transactions

    def amid(self, items: Items) -> Items:
        return (self.between or self.after)(items)


def _rotate(queue: PersistentQueue[bytes]) -> None:
    with queue.transaction():
        queue.push(queue.pop())
        queue.push(b"new")


VERBS = {
    "push": Verb(lambda queue: queue.push(b"new"), lambda items: [*items, b"new"]),
    "push of many": Verb(
        lambda queue: queue.push([b"a", b"b" * 9000, b"c"]), lambda items: [*items, b"a", b"b" * 9000, b"c"]
    ),
    "pop": Verb(lambda queue: queue.pop(), lambda items: items[1:]),
    "pop of many": Verb(lambda queue: queue.pop(5), lambda items: items[5:]),
    "delete": Verb(lambda queue: queue.delete(5), lambda items: items[5:]),
    "clear": Verb(lambda queue: queue.clear(), lambda _: []),
    "put": Verb(lambda queue: queue.put(b"new"), lambda items: [*items, b"new"]),
    "get": Verb(lambda queue: queue.get(), lambda items: items[1:]),
    "put back": Verb(lambda queue: queue._engine.put_back(queue._head.take(2, 2)[0]), between=lambda items: items[2:]),
    "peek": Verb(lambda queue: queue.peek(3)),
    "iteration": Verb(list),
    "flush": Verb(lambda queue: queue.flush(force=True)),
    "check": Verb(lambda queue: queue.check(repair=True)),
    "copy": Verb(lambda queue: queue.copy("copy").close()),
    "transaction": Verb(_rotate, lambda items: [*items[1:], items[0], b"new"]),
    "state": Verb(lambda queue: queue.state.update(a=b"1", b=b"2")),
    "push of one with a delay and a key": Verb(lambda queue: queue.push(b"later", delay=1e6, unique="key")),
    "lease and ack": Verb(lambda queue: queue.lease(3).ack(), lambda items: items[3:]),
    "lease and nack": Verb(lambda queue: queue.lease(3, ttl=9).nack()),
    "drop queue": Verb(lambda queue: queue.drop_queue(queue.name), lambda _: []),
    "close": Verb(lambda queue: queue.close()),
}
SYNC = {"push and sync": Verb(lambda queue: (queue.push(b"new"), queue.sync()), lambda items: [*items, b"new"])}
WITHOUT_FLUSHES = VERBS | SYNC if STEP == 1 else SYNC  # with durability="interval": what differs


def _work(queue: PersistentQueue[bytes], seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    for _ in range(4):
        queue.push([chance.randbytes(chance.choice((1, 50, 3000))) for _ in range(5)])
        queue.delete(chance.randrange(3))


def _kill_verb(place: str, name: str, seed: int, durability: str = "full") -> int:
    verb = (VERBS | SYNC)[name]
    root = os.path.join(place, str(seed))
    os.mkdir(root)
    with open_queue(root, durability=durability) as queue:
        _work(queue, seed)
        before = list(queue)

    def judge(place: str, *, is_done: bool) -> None:
        if durability == "interval":
            as_after_a_reboot(os.path.join(place, "q"))  # which is not: all that was written is there
        with open_queue(place) as queue:
            found = list(queue)
            assert found in ([verb.after(before)] if is_done else [before, verb.amid(before)])
            assert queue.check() == []
            queue.push(b"probe")
            assert queue.pop(len(found) + 2) == [*found, b"probe"]

    return kill_at_every_line(root, MODULES, lambda place: functools.partial(verb.call, open_queue(place)), judge)


@pytest.mark.parametrize("name", VERBS)
def test_a_kill_at_any_line_of_a_verb_leaves_it_done_or_not_done(memory, name, record_property):
    record_property(TOLD, in_a_small_process(_kill_verb, memory, name, 0))


@pytest.mark.parametrize("name", WITHOUT_FLUSHES)
def test_a_kill_at_any_line_takes_nothing_back_that_was_not_flushed(memory, name, record_property):
    record_property(TOLD, in_a_small_process(_kill_verb, memory, name, 0, "interval"))


def _relay(queue: PersistentQueue[bytes]) -> None:
    following = relay(queue, queue.lease(), puts=[prepared(queue.state, "done", b"1")])
    assert len(following) == 1


def _kill_relay(memory: str, durability: str) -> int:
    root = os.path.join(memory, "root")
    os.mkdir(root)
    with open_queue(root, durability=durability) as queue:
        _work(queue, 0)
        before = list(queue)

    def judge(place: str, *, is_done: bool) -> None:
        with open_queue(place) as queue:
            has_taken_effect = "done" in queue.state
            assert has_taken_effect or not is_done
            assert list(queue) == (before[1:] if has_taken_effect else before)
            assert queue.check() == []

    return kill_at_every_line(root, MODULES, lambda place: functools.partial(_relay, open_queue(place)), judge)


@pytest.mark.parametrize("durability", ["full", "interval"])
def test_a_kill_at_any_line_of_a_relay_leaves_all_of_it_or_nothing(memory, durability, record_property):
    record_property(TOLD, in_a_small_process(_kill_relay, memory, durability))


def _kill_opening(memory: str, state: str, durability: str) -> int:
    root = os.path.join(memory, "root")
    os.mkdir(root)
    before: Items = []
    if state != "new":
        with open_queue(root, durability=durability) as queue:
            _work(queue, 0)
            before = list(queue)
            shutil.copytree(root, root + " amid")
        if state == "not closed":
            root += " amid"

    def judge(place: str, *, is_done: bool) -> None:  # noqa: ARG001
        if durability == "interval" and os.path.exists(os.path.join(place, "q", "session")):
            as_after_a_reboot(os.path.join(place, "q"))
        with open_queue(place, durability=durability) as queue:
            assert list(queue) == before
            assert queue.check() == []

    def run(place: str) -> Callable[[], object]:
        return functools.partial(open_queue, place, durability=durability)

    return kill_at_every_line(root, MODULES, run, judge)


@pytest.mark.parametrize(
    ("state", "durability"),
    [("new", "full"), ("closed", "full"), ("not closed", "full"), ("new", "interval"), ("not closed", "interval")],
)
def test_a_kill_at_any_line_of_opening_harms_nothing(memory, state, durability, record_property):
    record_property(TOLD, in_a_small_process(_kill_opening, memory, state, durability))


# the kernel frees the locks of a dead process one by one: who comes next may find some of them taken still


_LOCK_TXN = 48  # where LMDB's lock file has the newest transaction


def _dies_holding(path: str, take: Callable[[int], object], successor: Callable[[], object]) -> int:
    """Kill a process that has done ``take(fd)`` with ``path`` once ``successor()``, of another, waits for it."""
    ear, mouth = os.pipe()

    def holder() -> None:
        take(os.open(path, os.O_RDWR))
        os.write(mouth, b".")
        signal.pause()

    held = forked(holder)
    os.close(mouth)
    assert os.read(ear, 1)
    os.close(ear)
    pid = forked(successor)
    inode = f":{os.stat(path).st_ino} "

    def waits() -> bool:
        with open("/proc/locks", encoding="ascii") as locks:
            return any("->" in line and inode in line for line in locks)

    try:
        eventually(waits)
    finally:
        os.kill(held, signal.SIGKILL)
    assert status_of(held) == -signal.SIGKILL
    return status_of(pid)


def test_who_dies_amid_setting_up_the_lock_file_of_lmdb_costs_nothing(memory):
    with open_queue(memory) as queue:
        queue.push([b"0", b"1"])
        queue.flush(force=True)
        queue.push([b"2", b"3"])
    place = os.path.join(memory, "q")
    (lock_file,) = (os.path.join(place, name) for name in os.listdir(place) if name.endswith("-lock"))

    def set_up_halfway(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1)
        assert 1 < int.from_bytes(os.pread(fd, 8, _LOCK_TXN), sys.byteorder) < 100
        os.pwrite(fd, bytes(8), _LOCK_TXN)

    def successor() -> None:
        with open_queue(memory) as queue:
            assert queue.push(b"4") == 4

    assert _dies_holding(lock_file, set_up_halfway, successor) == 0
    with open_queue(memory) as queue:
        assert list(queue) == [b"0", b"1", b"2", b"3", b"4"]


def test_who_dies_amid_recovery_leaves_it_to_the_next(memory):
    with open_queue(memory) as queue:
        queue.push([b"0", b"1"])
    session = os.path.join(memory, "q", "session")
    unknown = b"\xee" * 16

    def successor() -> None:
        with open_queue(memory) as queue:
            assert list(queue) == [b"0", b"1"]
            with open(session, "rb") as file:
                assert file.read(40)[24:] != unknown, "it did not take itself for the first"

    def recover(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.pwrite(fd, unknown, 24)  # as after a power cut, where the boot stands

    assert _dies_holding(session, recover, successor) == 0


@pytest.mark.long
@pytest.mark.parametrize("durability", ["full", "interval"])
@pytest.mark.parametrize("name", VERBS)
def test_a_kill_at_any_line_of_a_verb_of_many_queues(memory, name, durability, record_property):
    record_property(TOLD, sum(_kill_verb(memory, name, seed, durability) for seed in range(1, 1 + SEEDS)))


# --- kills at random, of processes that share a queue


def _life(place: str, process: int, life: int, mouth: int, *, flushes: bool) -> None:
    """Call verbs until somebody kills this process."""
    worker = Worker(process, notes_to(mouth), (life, process), first_number=life * 10_000)
    queue = open_queue(place)
    while True:
        if flushes and worker.random.random() < 0.1:
            worker.flush(queue)
        any_verb(worker, queue, alone=False)


def _kill_at_random(place: str, kills: int, *, flushes: bool, judged_each: int = 25) -> tuple[int, int]:
    """Let four processes work on one queue and kill one after the other; judge the whole now and then.

    Return how many were killed, and how many generations there were.
    """
    chance = random.Random(kills)  # noqa: S311
    base = Found((), 0)
    killed = 0
    while killed < kills:
        ear, mouth = os.pipe()
        journal, rest = Journal(), b""
        first = killed * PROCESSES

        def start(process: int, life: int, mouth: int = mouth) -> int:
            return forked(lambda: _life(place, process, life, mouth, flushes=flushes))

        alive = {process: start(process, first + process) for process in range(1, 1 + PROCESSES)}
        for kill in range(min(judged_each, kills - killed)):
            wanted = journal.acks + chance.randrange(12)
            deadline = time.monotonic() + DEADLINE
            while journal.acks < wanted:
                assert select.select([ear], [], [], deadline - time.monotonic())[0], "the processes stand still"
                rest = take_notes(journal, rest + os.read(ear, 1 << 16))
            for _ in range(chance.randrange(20_000)):  # a moment, somewhere within a call
                pass
            process = chance.choice(list(alive))
            os.kill(alive[process], signal.SIGKILL)
            assert status_of(alive[process]) == -signal.SIGKILL
            killed += 1
            successor = PROCESSES + 1 + kill
            del alive[process]
            alive[successor] = start(successor, first + successor)
        for pid in alive.values():
            os.kill(pid, signal.SIGKILL)
            assert status_of(pid) == -signal.SIGKILL
        killed += len(alive)
        os.close(mouth)
        with open(ear, "rb") as pipe:
            take_notes(journal, rest + pipe.read())
        probe = (255, killed, 99)
        found = inspect(place, probe=probe)
        problem = journal.account("queue", base).problem(found)
        assert not problem, f"after {killed} kills: {problem}"
        base = found.after(probe)
    (name,) = (name for name in os.listdir(os.path.join(place, "q")) if name.endswith(".mdb"))
    return killed, int(name[:8])


def _kill_at_work(place: str, kills: int) -> tuple[int, int]:
    return _kill_at_random(place, kills, flushes=False)


def _kill_amid_flushes(place: str, kills: int) -> tuple[int, int]:
    return _kill_at_random(place, kills, flushes=True)


def test_kills_at_random_of_four_processes_lose_nothing(memory, record_property):
    killed, _ = in_a_small_process(_kill_at_work, memory, 150)
    record_property(TOLD, killed)


def test_kills_at_random_amid_flushes_lose_nothing(memory, record_property):
    killed, generations = in_a_small_process(_kill_amid_flushes, memory, 120)
    assert generations > 30
    record_property(TOLD, killed)


@pytest.mark.long
@pytest.mark.parametrize("kill", [_kill_at_work, _kill_amid_flushes])
def test_very_many_kills_at_random_lose_nothing(memory, kill, record_property):
    killed, generations = in_a_small_process(kill, memory, KILLS // 2)
    record_property(TOLD, killed)
    record_property("swaps of the file", generations - 1)
