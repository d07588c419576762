"""What is recorded for the replay of power cuts: ``python scenarios.py SCENARIO PLACE NOTES [SEED [MUTANT]]``.

Owns: the scenarios, each a function of a directory, in which it makes the queue ``q``. They run under strace,
and write their notes (see ``account``) to the file NOTES, so that these stand in the record of strace
between the system calls of LMDB. What strace does not show, stores to the memory of the file ``session``,
they note as well: before and after each C function that may write, sync or commit.
"""

import fcntl
import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mutants
from account import Worker, item, notes_to, open_queue, tag_of
from processes import forked, status_of

from lmdbqueue import PersistentQueue, Reader

Queue = PersistentQueue[bytes]
_WATCHED = frozenset(("abort", "begin", "close", "commit", "flush", "fsync", "fdatasync", "pwrite", "sync", "write"))


class Stage:
    """Where a scenario takes place, and how its processes take notes."""

    def __init__(self, place: str, notes: str, seed: int, mutant: str) -> None:
        self.place = place
        self.seed = seed
        self._notes = notes
        self._mutant = mutant

    def worker(self, process: int, lives: int = 0) -> Worker:
        """Return the worker of this process. Once in each process.

        With ``lives`` it dies at the moment with that number, before or after a C function that is watched:
        never amid a system call, of which nobody could say whether it took place.
        """
        fd = os.open(self._notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        worker = Worker(process, notes_to(fd), (self.seed, process))
        if self._mutant:
            mutants.IN_WORKERS[self._mutant].apply(worker)
        sys.setprofile(_watch(process, os.path.join(self.place, "q", "session"), fd, lives))
        return worker

    def run(self, *roles: Callable[["Stage", int], None]) -> None:
        """Run each role in a process of its own, numbered from 1, and demand that it ends well."""
        pids = [forked(role, self, process) for process, role in enumerate(roles, 1)]
        assert [status_of(pid) for pid in pids] == [0] * len(pids)

    def keep_lock_file(self) -> None:
        """Keep LMDB's lock file as it is while somebody has the queue open, beside the notes."""
        for name in os.listdir(os.path.join(self.place, "q")):
            if name.endswith(".mdb-lock"):
                with open(os.path.join(self.place, "q", name), "rb") as file, open(self._notes + ".lock", "wb") as copy:
                    copy.write(file.read())


def _watch(process: int, path: str, fd: int, lives: int) -> Callable[..., None]:
    """Return a profile function that notes what stands in ``session`` whenever that has changed."""
    note = notes_to(fd)
    session = -1
    last = b""
    moments = 0

    def watch(_frame: object, event: str, arg: Any) -> None:
        nonlocal session, last, moments
        if event not in ("c_call", "c_return") or arg.__name__ not in _WATCHED:
            return
        if session < 0 and os.path.exists(path):
            session = os.open(path, os.O_RDONLY)
        if session >= 0 and os.pread(session, 4096, 0) != last:
            fcntl.flock(fd, fcntl.LOCK_EX)  # so that notes of several processes tell what came after what
            last = os.pread(session, 4096, 0)
            words = last.rstrip(b"\0").hex()
            note({"note": "session", "process": process, "words": words, "size": len(last)})
            fcntl.flock(fd, fcntl.LOCK_UN)
        moments += 1
        if moments == lives:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def _opened(worker: Worker, stage: Stage, name: str = "queue", **options: Any) -> Queue:
    opened: list[Queue] = []
    worker.call("open", name, lambda: opened.append(open_queue(stage.place, name, **options)))
    return opened[0]


def any_verb(worker: Worker, queue: Queue, *, alone: bool, reads: bool = True, largest: int = 6000) -> None:
    """Call a verb, so that the queue stays at some twenty items."""
    draw = worker.random.random()
    long = len(queue) > 20
    if draw < 0.03 and alone:
        worker.clear(queue)
    elif draw < 0.12 and alone:
        worker.delete(queue, worker.random.randrange(1, 5))
    elif draw < 0.2 and reads:
        worker.peek(queue, worker.random.choice((1, 3)))
    elif draw < (0.7 if long else 0.4):
        worker.pop(queue, worker.random.choice((1, 1, 2, 6)))
    elif draw < 0.8:
        worker.push(queue, 1, largest)
    else:
        worker.push(queue, worker.random.randrange(2, 9), worker.random.choice((20, largest)))


# --- the scenarios


def solo(stage: Stage) -> None:
    """One process calls every verb, closes now and then and opens again."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        for session in range(5):
            with _opened(worker, stage) as queue:
                for _ in range(24):
                    any_verb(worker, queue, alone=True)
                if session == 2:
                    stage.keep_lock_file()

    stage.run(role)


def leases(stage: Stage) -> None:
    """One process leases, acknowledges and gives back, closes now and then and opens again."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        for _ in range(4):
            with _opened(worker, stage) as queue:
                for _ in range(12):
                    worker.push(queue, worker.random.randrange(1, 6), 3000)
                    worker.give_back(queue, worker.random.randrange(1, 4))
                    worker.lease(queue, worker.random.randrange(1, 8))

    stage.run(role)


def held(stage: Stage) -> None:
    """One process holds many leases at a time, settles them in any order, and has items that come due."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        chance = worker.random
        worker.call("judged as a set", "queue", int)
        with _opened(worker, stage) as queue:
            leases = []
            for _ in range(20):  # what is alike uses the same pages again and again
                worker.push(queue, 1, 5)
                leases.append(queue.lease())
                if len(leases) == 3:
                    lease = leases.pop(0)
                    worker.settle(queue, [tag_of(each) for each in lease], lease.ack)
            for _ in range(40):
                draw = chance.random()
                if draw < 0.3 or len(queue) < 3:
                    tags = worker.tags(chance.randrange(1, 6), 900)
                    delay = chance.choice((0.0, 0.0, 1e-9))
                    items = [item(tag) for tag in tags]
                    worker.call(
                        "push", "queue", lambda items=items, delay=delay: queue.push(items, delay=delay)[0], tags
                    )
                elif draw < 0.6:
                    leases.append(queue.lease(chance.randrange(1, 5), ttl=chance.choice((None, 1000.0))))
                elif leases:
                    lease = leases.pop(chance.randrange(len(leases)))
                    some = lease.seqs[: chance.randrange(1, 5)]
                    tags = [tag_of(lease.items[lease.seqs.index(seq)]) for seq in some]
                    if draw < 0.85:
                        worker.settle(queue, tags, lambda lease=lease, some=some: lease.ack(some))
                    lease.nack(delay=chance.choice((0.0, 1e-9)), reason="x" * chance.choice((1, 200)))
            stage.keep_lock_file()

    stage.run(role)


def transactions(stage: Stage) -> None:
    """One process does steps over two queues and a state of several pages."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        worker.call("judged by steps", "a", int)
        worker.call("judged by another", "b", int)
        with _opened(worker, stage, "a") as a, _opened(worker, stage, "b") as b:
            for n in range(1, 80):
                worker.step(n, a, b)
            stage.keep_lock_file()

    stage.run(role)


INTERVAL: dict[str, Any] = {"durability": "interval", "interval": 0.003}


def interval(stage: Stage) -> None:
    """One process does steps, none of which is flushed, while its checkpoints go on beside them."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        worker.call("judged by steps since a sync", "a", int)
        worker.call("judged by another", "b", int)
        for session in range(2):
            with _opened(worker, stage, "a", **INTERVAL) as a, _opened(worker, stage, "b", **INTERVAL) as b:
                for n in range(70 * session + 1, 70 * session + 71):
                    worker.step(n, a, b)
                    if n % 16 == 0:
                        worker.sync(n, a)
                    if n == 50:
                        worker.call("flush", "a", lambda a=a: a.flush(force=True))
                if session:
                    stage.keep_lock_file()

    stage.run(role)


def interval_turns(stage: Stage) -> None:
    """Three processes take turns without any flush; one is killed amid that, and another comes in its place."""
    chance = random.Random(stage.seed)  # noqa: S311
    pipes: dict[int, tuple[int, int]] = {}
    pids: dict[int, int] = {}

    def role(stage: Stage, process: int, orders: int, answers: int) -> None:
        worker = stage.worker(process)
        if process == 1:
            worker.call("judged by steps since a sync", "a", int)
            worker.call("judged by another", "b", int)
        with _opened(worker, stage, "a", **INTERVAL) as a, _opened(worker, stage, "b", **INTERVAL) as b:
            os.write(answers, b".")
            while order := int(os.read(orders, 8)):
                worker.step(abs(order), a, b)
                if order < 0:
                    worker.sync(-order, a)
                os.write(answers, b".")

    def begin(process: int) -> None:
        ours, theirs = os.pipe(), os.pipe()
        pids[process] = forked(role, stage, process, ours[0], theirs[1])
        os.close(ours[0])
        os.close(theirs[1])
        pipes[process] = ours[1], theirs[0]
        assert os.read(theirs[0], 1)

    for process in (1, 2, 3):
        begin(process)
    for n in range(1, 100):
        if n == 60:
            os.kill(pids[2], signal.SIGKILL)
            assert status_of(pids.pop(2)) == -signal.SIGKILL
            for fd in pipes.pop(2):
                os.close(fd)
            begin(4)
        orders, answers = pipes[chance.choice(sorted(pipes))]
        os.write(orders, b"%d" % (-n if n % 11 == 0 else n))
        assert os.read(answers, 1)
    stage.keep_lock_file()
    for process, fds in pipes.items():
        os.write(fds[0], b"0")
        assert status_of(pids[process]) == 0


def readers(stage: Stage) -> None:
    """One process pushes, and is three named readers: what all have passed goes by itself."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        worker.call("judged by readings", "queue", int)
        with _opened(worker, stage) as queue:
            found: dict[str, Reader[bytes]] = {}
            for n in range(1, 120):
                worker.read(n, queue, found)
            stage.keep_lock_file()

    stage.run(role)


def pushes(stage: Stage) -> None:
    """One process pushes items one by one: what follows a cut is much like what it took back."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        with _opened(worker, stage) as queue:
            for _ in range(8):
                worker.push(queue, 1, 20)

    stage.run(role)


def _contender(stage: Stage, process: int) -> None:
    worker = stage.worker(process)
    for session in range(2):
        with _opened(worker, stage) as queue:
            for _ in range(16):
                any_verb(worker, queue, alone=False)
            if session:
                stage.keep_lock_file()


def trio(stage: Stage) -> None:
    """Three processes contend."""
    stage.run(_contender, _contender, _contender)


def turns(stage: Stage) -> None:
    """Three processes take turns, so that each commit follows one of another process."""
    pipes = [os.pipe() for _ in range(3)]

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        mine, next_one = pipes[process - 1][0], pipes[process % 3][1]
        with _opened(worker, stage) as queue:
            for _ in range(30):
                os.read(mine, 1)
                any_verb(worker, queue, alone=False)
                os.write(next_one, b".")
            if process == 1:
                stage.keep_lock_file()

    os.write(pipes[0][1], b".")
    stage.run(role, role, role)


def creation(stage: Stage) -> None:
    """A queue is created by two processes at once, and gets its first items."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        with _opened(worker, stage) as queue:
            worker.push(queue)
            worker.push(queue, 3)
            worker.pop(queue)

    stage.run(role, role)


def _flusher(stage: Stage, process: int) -> None:
    worker = stage.worker(process)
    with _opened(worker, stage) as queue:
        for _ in range(5):
            for _ in range(5):
                any_verb(worker, queue, alone=False)
            worker.flush(queue)


def flush(stage: Stage) -> None:
    """One process pushes, pops and flushes."""
    stage.run(_flusher)


def flush_trio(stage: Stage) -> None:
    """Three processes push and pop, and two of them flush."""
    stage.run(_flusher, _contender, _flusher)


def names(stage: Stage) -> None:
    """Two processes make queues of several names in one directory and use them in turn."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        with ExitStack() as stack:
            queues = []
            for name in ("queue", "a", "b") if process == 1 else ("b", "queue"):
                queues.append(stack.enter_context(_opened(worker, stage, name)))
                for _ in range(6):
                    any_verb(worker, worker.random.choice(queues), alone=False)

    stage.run(role, role)


def long_names(stage: Stage) -> None:
    """One process uses queues of such long names that their heads and tails do not fit into one page."""

    def role(stage: Stage, process: int) -> None:
        worker = stage.worker(process)
        with ExitStack() as stack:
            queues = [stack.enter_context(_opened(worker, stage, "n" * 190 + str(i))) for i in range(10, 22)]
            for _ in range(160):
                any_verb(worker, worker.random.choice(queues[:3] + queues[-2:]), alone=True, largest=900)

    stage.run(role)


def killed(stage: Stage) -> None:
    """Processes are killed amid their calls, others go on, and only then the power goes."""

    def role(stage: Stage, process: int, lives: int) -> None:
        worker = stage.worker(process, lives)
        with _opened(worker, stage) as queue:
            while True:
                any_verb(worker, queue, alone=False)

    chance = random.Random(stage.seed)  # noqa: S311
    alive: list[int] = []
    for process in range(1, 15):
        alive.append(forked(role, stage, process, chance.randrange(40, 200)))
        if len(alive) > 1:
            assert status_of(alive.pop(0)) == -signal.SIGKILL
    assert status_of(alive.pop()) == -signal.SIGKILL


def again(stage: Stage) -> None:
    """Open what a power cut has left, note what is there, go on: a second cut may come at any moment of it.

    Takes place in each directory of PLACE.
    """
    root = stage.place
    for number, place in enumerate(sorted(os.listdir(root))):
        stage.place = os.path.join(root, place)

        def role(stage: Stage, process: int) -> None:
            worker = stage.worker(process)
            with _opened(worker, stage) as queue:
                worker.call("found", "queue", lambda: [tag_of(each) for each in queue])
                worker.push(queue)  # which tells where the queue ended
                for _ in range(5):
                    any_verb(worker, queue, alone=True)

        assert status_of(forked(role, stage, 100 + number)) == 0


SCENARIOS = {
    scenario.__name__.replace("_", " "): scenario
    for scenario in (
        solo,
        leases,
        held,
        transactions,
        interval,
        interval_turns,
        readers,
        pushes,
        trio,
        turns,
        creation,
        flush,
        flush_trio,
        names,
        long_names,
        killed,
    )
}


def main(scenario: str, place: str, notes: str, seed: str = "0", mutant: str = "") -> None:
    {**SCENARIOS, "again": again}[scenario](Stage(place, notes, int(seed), mutant))


if __name__ == "__main__":
    main(*sys.argv[1:])
