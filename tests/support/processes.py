"""What the processes of the tests do, and how the tests wait for them.

Every wait has a deadline, and whoever passes it is killed by SIGABRT, so that faulthandler shows where
it stood. The functions that processes run stand here and not in the tests, since a spawned process
has to import them.
"""

import gc
import hashlib
import importlib
import os
import pickle
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count, cycle, islice
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, Self

import lmdbqueue
from lmdbqueue import Empty, PersistentQueue

DEADLINE = 60.0  # seconds; far above what any of it takes
LIBRARY = os.path.dirname(lmdbqueue.__file__) + os.sep
MODULES = [  # of the engine on LMDB, by their paths
    each + module.name
    for each in ("", "_host/", "_lmdb/", "_local/", "_model/", "_verbs/")
    for module in pkgutil.iter_modules([LIBRARY + each])
]
TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
KILLED = -signal.SIGKILL
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  (a folder that needs no disk)
STEP = int(
    os.environ.get("LMDBQUEUE_STEP", "11")
)  # of lines to be killed at, of moments to be interrupted at; 1: at all

Options = dict[str, Any]


# --- waiting


def is_taken(lock):
    """Return whether any thread holds a lock, which the lock itself says from Python 3.14 on."""
    return not repr(lock).startswith("<unlocked")


def eventually(condition: Callable[[], object], within: float = DEADLINE) -> None:
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"did not come about within {within} s"
        time.sleep(0.001)


def threads_of_this_process() -> int:
    """Count those too that ``threading`` did not start."""
    return len(os.listdir("/proc/self/task"))


def start(method: str, target: Callable[..., None], *args: object) -> BaseProcess:
    process = get_context(method).Process(target=target, args=args, daemon=True)
    process.start()
    return process


def finish(processes: Iterable[BaseProcess], within: float = DEADLINE) -> None:
    """Wait until the processes have ended, and demand that none failed."""
    processes = list(processes)
    deadline = time.monotonic() + within
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGABRT)
            process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    for process in processes:
        process.close()


def forked(fn: Callable[..., object], *args: object) -> int:
    """Run ``fn(*args)`` in a forked child, which ends with 0, or with 1 if that raises; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        fn(*args)
        status = 0
    except BaseException:  # a child must not go on with the tests of its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int, within: float = DEADLINE) -> int:
    """Return how a forked child ended: its exit code, or minus the signal."""
    try:
        eventually(lambda: has_ended(pid), within)
    except AssertionError:
        os.kill(pid, signal.SIGABRT)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int) -> bool:
    """Tell whether a forked child has ended; ``status_of`` tells how."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def in_a_small_process(fn: Callable[..., Any], *args: object) -> Any:
    """Return ``fn(*args)``, of a module of the tests, called in a new process, which has imported little yet.

    What forks very often goes there: from a process of pytest's, with all that tests have imported, a fork takes
    ten times as long.
    """
    folder, module = os.path.split(fn.__code__.co_filename.removesuffix(".py"))
    told = pickle.dumps([*sys.path, folder]) + pickle.dumps((module, fn.__name__, args))
    code = "import sys, pickle; sys.path = pickle.load(sys.stdin.buffer); import processes; processes.called()"
    done = subprocess.run([sys.executable, "-c", code], input=told, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def called() -> None:
    """Do what ``in_a_small_process`` says, in it."""
    module, name, args = pickle.load(sys.stdin.buffer)
    found = getattr(importlib.import_module(module), name)(*args)
    sys.stdout.buffer.write(pickle.dumps(found))


class Moments:
    """Call ``do`` at the ``number``-th moment of the block, as the handler of a signal would be.

    Moments are where a function begins and where one of C returns, in the library and in what it calls. Python looks
    for signals there, and besides where a loop goes round. Not within the end of an object: what comes there is
    swallowed by Python, and which objects end is up to the collector.
    """

    def __init__(self, number: int, do: Callable[[], object]) -> None:
        self.left = number
        self._do = do
        self._hook = self._look  # kept: Python 3.11 may call it once more after it was taken away

    def __enter__(self) -> Self:
        self._collects = gc.isenabled()
        gc.disable()  # a generator that an earlier test has left would end amid this one, and without a __del__
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        if self._collects:
            gc.enable()

    def _look(self, frame: Any, event: str, _: object) -> None:
        if event in {"call", "c_return"} and not frame.f_code.co_filename.startswith(TESTS):
            self.left -= 1
            if self.left == 0 and self._is_within_an_end(frame):
                self.left = 1  # the next one
            if self.left == 0:
                sys.setprofile(None)
                self._do()

    @staticmethod
    def _is_within_an_end(frame: Any) -> bool:
        while frame is not None and not frame.f_code.co_filename.startswith(TESTS):
            if frame.f_code.co_name in {"__del__", "_remove"}:  # the latter: of a WeakSet
                return True
            frame = frame.f_back
        return False


def interrupt() -> NoReturn:
    """Raise what Ctrl-C does."""
    raise KeyboardInterrupt


def _lease_and_acknowledge(queue: Any) -> None:
    with queue.lease(1):
        pass


def _move_in_a_transaction(queue: Any) -> None:
    with queue.transaction():
        queue.push(queue.pop())


def _get_and_join(queue: Any) -> None:
    queue.get()
    queue.task_done()
    queue.join()


def _get_or_not(queue: Any) -> None:
    with suppress(lmdbqueue.Empty):
        queue.get(timeout=0.01)


INTERRUPTED: dict[str, Callable[[Any], object]] = {
    "push": lambda queue: queue.push("more"),
    "pop": lambda queue: queue.pop(),
    "get": _get_or_not,
    "lease and ack": _lease_and_acknowledge,
    "transaction": _move_in_a_transaction,
    "join": _get_and_join,
}


def lines_of(modules: Iterable[str], fn: Callable[..., object], **options: object) -> list[int]:
    """Run ``fn(**options)``; return the number, for ``killed_at_line``, of each line's first execution."""
    files = {f"{LIBRARY}{module}.py" for module in modules}
    executed = 0
    found: dict[tuple[str, int], int] = {}

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal executed
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            executed += 1
            found.setdefault((frame.f_code.co_filename, frame.f_lineno), executed)
        return trace

    sys.settrace(trace)
    try:
        fn(**options)
    finally:
        sys.settrace(None)
    return list(found.values())


def killed_at_line(number: int, modules: Iterable[str], fn: Callable[..., object], **options: object) -> None:
    """Run ``fn(**options)``, and die by SIGKILL before the ``number``-th line of these modules that it executes."""
    left = number
    files = {f"{LIBRARY}{module}.py" for module in modules}

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        fn(**options)
    finally:
        sys.settrace(None)


def kill_at_every_line(
    root: str, modules: Iterable[str], run: Callable[[str], Callable[[], object]], judge: Callable[..., None]
) -> int:
    """Run ``run(place)()`` on copies of ``root``, killed at one line of these modules that it executes after the other.

    At every ``STEP``-th of the lines, when it is executed first; with a step of 1 whenever one is executed. On all
    processors. ``judge(place, is_done)`` is called after each. Return how many kills there were.
    """
    parts = os.cpu_count() or 1

    def look(place: str) -> None:
        numbers = lines_of(modules, run(place))
        with open(f"{root} lines", "w", encoding="ascii") as file:
            file.write(" ".join(map(str, numbers[STEP // 2 :: STEP])))

    shutil.copytree(root, f"{root} 0")
    assert status_of(forked(look, f"{root} 0")) == 0
    with open(f"{root} lines", encoding="ascii") as file:
        chosen = [int(each) for each in file.read().split()]
    numbers = count(1) if STEP == 1 else iter([*chosen, chosen[-1] + 1_000_000])  # which is not reached

    def killed(number: int, place: str) -> None:
        killed_at_line(number, modules, run(place))

    def share(part: int) -> None:
        kills = 0
        for number in islice(numbers, part, None, parts):
            place = f"{root} {number}"
            shutil.copytree(root, place)
            status = status_of(forked(killed, number, place))
            assert status in (0, KILLED)
            judge(place, is_done=status == 0)
            shutil.rmtree(place)
            if status == 0:
                break
            kills += 1
        with open(f"{root} kills", "a", encoding="ascii") as file:
            file.write(f"{kills}\n")

    pids = [forked(share, part) for part in range(parts)]
    assert [status_of(pid, 1200) for pid in pids] == [0] * parts
    with open(f"{root} kills", encoding="ascii") as file:
        return sum(map(int, file))


class Sleeps:
    """Tells when a thread of this process goes to sleep in a waiting verb of ``queue``, and how often."""

    def __init__(self, queue: PersistentQueue[Any], tell: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        sleep = queue._engine.sleep

        def told(ticket: int, timeout: float) -> None:
            self.count += 1
            tell()
            sleep(ticket, timeout)

        queue._engine.sleep = told  # type: ignore[method-assign]


# --- producers and consumers


def produce(place: str, options: Options, producer: int, least: int, until: str | None = None) -> None:
    """Push (producer, 0), (producer, 1), ... in every way there is, at least ``least``, until the file is there.

    Notes in a file how many there were.
    """
    numbers = count()
    with PersistentQueue[Any]("queue", place, **options) as queue:
        done = 0
        for size in cycle((1, 7, 0, 40)):
            if done >= least and (until is None or os.path.exists(until)):
                break
            items = [(producer, number) for number in islice(numbers, size or 1)]
            if until is None:
                items = items[: least - done]
            if size == 0:
                queue.put(items[0])
            else:
                queue.push(items[0] if size == 1 else items)
            done += len(items)
    with open(os.path.join(place, f"produced-{producer}"), "w", encoding="ascii") as file:
        file.write(str(done))


def consume(place: str, options: Options, consumer: int) -> None:
    """Take items in every way there is and log them, until a None comes; leave the other Nones to others."""
    log = os.path.join(place, f"consumed-{consumer}")
    with PersistentQueue[Any]("queue", place, **options) as queue, open(log, "w", encoding="ascii") as file:
        for size in cycle((1, 3, 30)):
            items = [queue.get(timeout=DEADLINE)]
            if size == 1:
                items.append(queue.pop(1, blocking=True, timeout=DEADLINE) if items[0] else None)
            else:
                items += queue.pop(size)
            ends = items.count(None) - (size == 1 and items[0] is None)
            file.writelines(f"{item[0]} {item[1]}\n" for item in items if item)
            if ends:
                queue.push([None] * (ends - 1))
                return


def browse(place: str, options: Options, until: str) -> None:
    """Peek and iterate, and demand that each producer's items come in order, until the file is there."""
    with PersistentQueue[Any]("queue", place, **options) as queue:
        while not os.path.exists(until):
            for items in (queue.peek(20), queue):
                last: dict[int, int] = {}
                for item in items:
                    if item:
                        assert last.get(item[0], -1) < item[1]
                        last[item[0]] = item[1]


def flush_again_and_again(place: str, options: Options, swaps: int, enough: str, until: str) -> None:
    """Flush until the file is there; after ``swaps`` times make the file ``enough``."""
    with PersistentQueue[Any]("queue", place, **options) as queue:
        done = 0
        while not os.path.exists(until):
            queue.flush(force=True)
            done += 1
            if done == swaps:
                touch(enough)


def assert_each_item_came_once_and_in_order(place: str, producers: int, consumers: int) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for producer in range(producers):
        with open(os.path.join(place, f"produced-{producer}"), encoding="ascii") as file:
            expected.update((producer, number) for number in range(int(file.read())))
    seen: Counter[tuple[int, int]] = Counter()
    for consumer in range(consumers):
        last = dict.fromkeys(range(producers), -1)
        with open(os.path.join(place, f"consumed-{consumer}"), encoding="ascii") as file:
            for line in file:
                producer, number = map(int, line.split())
                assert last[producer] < number
                last[producer] = number
                seen[producer, number] += 1
    assert seen - expected == Counter(), "came twice, or was never pushed"
    assert expected - seen == Counter(), "was lost"


# --- files


def touch(path: str) -> None:
    with open(path, "x", encoding="ascii"):
        pass


def drained(queue: PersistentQueue[Any]) -> list[Any]:
    """Take all that is in the queue now."""
    items = []
    while True:
        try:
            items.append(queue.get_nowait())
        except Empty:
            return items


def tree(path: str) -> dict[str, tuple[int, str]]:
    """Return what is under ``path``: for each name its mode and the hash of its content.

    Except that of a table of readers, which LMDB writes to whenever it opens a file.
    """
    found = {}
    for folder, folders, files in os.walk(path):
        for name in [*folders, *files]:
            full = os.path.join(folder, name)
            content = b""
            if name in files and not name.endswith(".mdb-lock"):
                with open(full, "rb") as file:
                    content = file.read()
            found[os.path.relpath(full, path)] = (os.stat(full).st_mode, hashlib.sha256(content).hexdigest())
    return found


def generations(directory: str) -> list[str]:
    """Return the names of the environments in a queue's directory."""
    return sorted(name for name in os.listdir(directory) if name.endswith(".mdb"))


def directory_size(directory: str) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(directory))


def holder(fn, *args):
    """Run ``fn`` in a child that lives on until it is killed; return its pid once ``fn`` is done."""
    ear, mouth = os.pipe()

    def hold():
        kept = fn(*args)
        os.write(mouth, b".")
        signal.pause()
        del kept

    pid = forked(hold)
    os.close(mouth)
    assert os.read(ear, 1), "it failed"
    os.close(ear)
    return pid


def kill(pid):
    """Kill a child of ``forked``, and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    assert status_of(pid) == KILLED
