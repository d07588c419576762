"""A real power cut, as far as the file system knows, takes back nothing that was acknowledged.

Processes work on a queue in a file system of its own, in a file behind a loop device. At a moment of chance that
file system is shut down (the ioctl FS_IOC_SHUTDOWN: nothing reaches the device any more, also nothing that was
written and not synced), unmounted and mounted again, and the queue must hold what the account of the calls says.
Then the same queue goes on.

An acknowledgement counts when it was read before the shutdown began. In a real cut nobody could hear a later
one; here they can be wrong, since ext4 (Linux 6.18) lets an fdatasync that the shutdown overtakes end well even
though the file's new blocks are lost: 0.2 such lies a cut, measured with nothing but pwrite and fdatasync.

All of it happens in a child with mounts of its own, which are gone with it, whatever happens.

LMDBQUEUE_CUTS says how many cuts the long form (``-m long``) makes.
"""

import ctypes
import faulthandler
import fcntl
import os
import pickle
import random
import select
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import mutants
import pytest
from account import (
    Found,
    Journal,
    Tag,
    Worker,
    after_each_step,
    inspect,
    notes_to,
    open_queue,
    tag_of,
    take_notes,
)
from opener import own_mounts
from processes import DEADLINE, forked, status_of
from replay import MEMORY
from scenarios import any_verb

from lmdbqueue import PersistentQueue

FILE_SYSTEMS = ["ext4", *(["xfs"] if shutil.which("mkfs.xfs") else [])]
DURABILITIES = {"full": 2 / 3, "interval": 1 / 3}  # of the cuts
CUTS = 300 // len(FILE_SYSTEMS)
LONG_CUTS = int(os.environ.get("LMDBQUEUE_CUTS", "20000")) // len(FILE_SYSTEMS)
A_DIRECTORY = 10  # cuts of one directory whose queues are told by the number of steps
TOLD = "real power cuts"

_IMAGE_BYTES = 320 << 20  # the least that xfs takes is 300 MiB
_SHUTDOWN = 0x8004587D
_LOSE_THE_LOG, _FLUSH_THE_LOG = 2, 1
_PR_SET_PDEATHSIG = 1


@pytest.fixture(autouse=True)
def _machine(needs) -> None:
    needs("root", "loop devices", "mkfs.ext4", "mount")


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_after_real_cuts_the_queue_holds_all_that_was_acknowledged(file_system, durability, tmp_path, record_property):
    cuts = round(CUTS * DURABILITIES[durability])
    cut_again_and_again(file_system, str(tmp_path), cuts, durability)
    record_property(TOLD, cuts)


@pytest.mark.long
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_after_many_real_cuts_the_queue_holds_all_that_was_acknowledged(
    file_system, durability, tmp_path, record_property
):
    cut_again_and_again(file_system, str(tmp_path), LONG_CUTS, durability)
    record_property(TOLD, LONG_CUTS)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_real_cuts_find_that_nothing_is_synced(durability, tmp_path):
    with pytest.raises(AssertionError, match="the queue did not hold"):
        cut_again_and_again("ext4", str(tmp_path), CUTS, durability, "no sync")
    assert (tmp_path / "failed").exists(), "it was something else that failed"


def cut_again_and_again(file_system: str, place: str, cuts: int, durability: str, mutant: str = "") -> None:
    """Make ``cuts`` cuts, in a child, and demand that the queue held after each."""
    machine = (_Stepping if durability == "interval" else _Machine)(file_system, place, mutant)
    status = status_of(forked(machine.live, cuts), DEADLINE + cuts)
    assert status == 0, "the queue did not hold, or the machine did not: see what the child wrote"


class _Machine:
    """A machine whose power is cut again and again, and the queue on its disk."""

    def __init__(self, file_system: str, place: str, mutant: str) -> None:
        self.mutant = mutant
        self.file_system = file_system
        self.image = os.path.join(MEMORY or place, f"lmdbqueue-{os.getpid()}-{file_system}.image")
        self.mount_point = os.path.join(place, "mnt")
        self.keep = os.path.join(place, "failed")
        self.random = random.Random(file_system)  # noqa: S311

    def live(self, cuts: int) -> None:
        _die_with_parent()
        own_mounts()
        os.mkdir(self.mount_point)
        with open(self.image, "xb") as file:
            file.truncate(_IMAGE_BYTES)
        try:
            _run(f"mkfs.{self.file_system}", "-q", self.image)
            self._mount()
            base, journal = self._at_first()
            for number in range(cuts):
                base = self._inspected(number, base, journal)
                journal = self._cut(number, base)
                _run("umount", self.mount_point)
                self._mount()
            self._inspected(cuts, base, journal)
            _run("umount", self.mount_point)
        finally:
            os.unlink(self.image)

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self.image, self.mount_point)

    def _at_first(self) -> tuple[Any, Any]:
        return Found((), 0), Journal()

    def _inspected(self, number: int, base: Any, journal: Any) -> Any:
        """Open the queue in a fresh process, demand that it holds, and return what it holds now."""
        probe: Tag = (255, number, 99)
        found: Found = self._seen(number, lambda: inspect(self.mount_point, probe=probe, again=number % 8 == 0))
        self._refuse(number, journal.account("queue", base).problem(found))
        return found.after(probe)

    def _seen(self, number: int, look: Callable[[], Any]) -> Any:
        """Return what ``look()`` finds in a fresh process."""
        ear, mouth = os.pipe()
        pid = forked(lambda: os.write(mouth, pickle.dumps(look())))
        os.close(mouth)
        with open(ear, "rb") as pipe:
            answer = pipe.read()
        status = status_of(pid)
        self._refuse(number, f"the process that opened it ended with {status}" if status else "")
        return pickle.loads(answer)

    def _refuse(self, number: int, problem: str) -> None:
        """Raise ``AssertionError`` if something is wrong after a cut, and keep what is there."""
        if problem:
            shutil.copytree(os.path.join(self.mount_point, "q"), self.keep)
            message = f"after cut {number}: {problem} (what is there now is kept in {self.keep})"
            raise AssertionError(message)

    def _cut(self, number: int, base: Any) -> Any:  # noqa: ARG002
        """Let processes work, cut the power amid it; return what they called."""
        ear, mouth = os.pipe()
        count = self.random.choice((1, 3))
        flushes = self.random.random() < 0.3
        pids = [forked(self._work, process, number, mouth, flushes) for process in range(1, count + 1)]
        os.close(mouth)
        journal = Journal()
        rest = b""
        try:
            wanted = self.random.randrange(60)
            while journal.acks < wanted:
                ready, _, _ = select.select([ear], [], [], DEADLINE)
                data = os.read(ear, 1 << 16) if ready else b""
                assert data, "the processes ended, or stood still, before the power was cut"
                rest = take_notes(journal, rest + data)
            for _ in range(self.random.randrange(20_000)):  # a moment, somewhere within a call
                pass
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            ended = [pid for pid in pids if os.waitid(os.P_PID, pid, how)]
            assert ended == [], "a process failed before the power was cut"
            while select.select([ear], [], [], 0)[0]:
                rest = take_notes(journal, rest + os.read(ear, 1 << 16))
            self._shut_down()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        with open(ear, "rb") as pipe:
            rest = take_notes(journal, rest + pipe.read(), is_late=True)
        assert rest == b""
        for pid in pids:
            os.waitpid(pid, 0)
        return journal

    def _shut_down(self) -> None:
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            how = _FLUSH_THE_LOG if self.random.random() < 0.2 else _LOSE_THE_LOG
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(fd)

    def _work(self, process: int, cut: int, mouth: int, flushes: bool) -> None:
        """Call verbs until the disk fails."""
        _die_with_parent()
        worker = Worker(process, notes_to(mouth), (cut, process), first_number=cut * 10_000)
        if self.mutant:
            mutants.RECORDING[self.mutant].apply(worker)
        faulthandler.disable()  # a store to a mapped file of XFS that was shut down is a SIGBUS
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a process says whose disk is gone
        opened: list[Any] = []
        while True:
            worker.call("open", "queue", lambda: opened.append(open_queue(self.mount_point)))
            with opened.pop() as queue:
                for _ in range(20):
                    any_verb(worker, queue, alone=False, reads=False)  # what it reads after the cut counts for nothing
                if flushes:
                    worker.flush(queue)


class _Stepping(_Machine):
    """The same with ``durability="interval"``: what is there is what was there after some step, none of them synced.

    Processes take turns. A cut takes back no step that was done when a sync began that has returned, or when all was
    said to be covered.
    """

    def _at_first(self) -> tuple[int, range]:
        return 0, range(1)

    def _inspected(self, number: int, base: int, journal: range) -> int:  # noqa: ARG002
        """Open the queues in a fresh process, demand that they hold, and return how many steps are there."""
        found = self._seen(number, lambda: _look(self.mount_point, proves=number % 4 == 0))
        after = enumerate(islice(after_each_step(), journal.stop))
        steps = next((n for n, each in after if n in journal and each == found), None)
        self._refuse(number, "" if steps is not None else f"this is there after none of the steps {journal}")
        if number % A_DIRECTORY or steps is None:
            return steps or 0
        shutil.rmtree(os.path.join(self.mount_point, "q"))
        return 0

    def _cut(self, number: int, base: int) -> range:
        """Let processes do steps in turn, cut the power amid one; return how many may be there."""
        workers = [self._worker(process, number) for process in range(self.random.choice((1, 3)))]
        synced = step = base
        try:
            for step in range(base + 1, base + 1 + self.random.randrange(60)):
                draw = self.random.random()
                what = b"s" if draw < 0.1 else b"u" if draw < 0.2 else b"."  # sync, wait until all is covered, neither
                self._order(self.random.choice(workers), step, what)
                if what != b".":
                    synced = step
            os.write(self.random.choice(workers)[1], b".%7d" % (step + 1))
            for _ in range(self.random.randrange(20_000)):  # a moment, somewhere within a call
                pass
            self._shut_down()
        finally:
            for pid, *fds in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                for fd in fds:
                    os.close(fd)
        return range(synced, step + 2)

    def _worker(self, process: int, number: int) -> tuple[int, int, int]:
        """Start one; return its pid, and where it gets its orders and answers."""
        (orders, mouth), (ear, answers) = os.pipe(), os.pipe()

        def work() -> None:
            _die_with_parent()
            worker = Worker(process, lambda _: None, (number, process))
            if self.mutant:
                mutants.RECORDING[self.mutant].apply(worker)
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with _opened(self.mount_point, "a") as a, _opened(self.mount_point, "b") as b:
                os.write(answers, b".")
                while order := os.read(orders, 8):
                    worker.step(int(order[1:]), a, b)
                    if order[:1] == b"s":
                        a.sync()
                    while order[:1] == b"u" and a.stats().unsynced_seconds:
                        time.sleep(0.001)
                    os.write(answers, b".")

        pid = forked(work)
        os.close(orders)
        os.close(answers)
        assert os.read(ear, 1), "a process failed before the power was cut"
        return pid, mouth, ear

    def _order(self, worker: tuple[int, int, int], step: int, what: bytes) -> None:
        os.write(worker[1], what + b"%7d" % step)
        assert os.read(worker[2], 1), "a process failed before the power was cut"


def _opened(place: str, name: str) -> PersistentQueue[bytes]:
    return open_queue(place, name, durability="interval", interval=0.003)


def _look(place: str, *, proves: bool) -> dict[str, Found]:
    """Return what is in the queues, and change nothing."""
    found = {}
    for name in ("a", "b"):
        with _opened(place, name) as queue, suppress(ZeroDivisionError), queue.transaction():
            items = tuple(tag_of(each) for each in queue)
            found[name] = Found(items, queue.push(b""), dict(queue.state))
            raise ZeroDivisionError
        with _opened(place, name) as queue:
            assert not proves or queue.check() == []
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
