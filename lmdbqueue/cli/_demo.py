"""The demo: a producer and a consumer that are killed again and again, and an account of every line.

Owns: the processes, their logs, the account. Law: it uses public verbs only, real processes and real
SIGKILLs; every figure is counted from the files that the processes wrote. Must not know: how a verb works.

The producer records how many lines ``push`` has acknowledged; the consumer repeats ``peek``, write to a sink,
``delete``. After a kill, both continue where their own file ends. A process killed between a step and its record
repeats that step: a line may be delivered twice, but none may be lost.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from multiprocessing.process import BaseProcess
from pydoc_data import topics
from typing import Final

from lmdbqueue._local.queue import PersistentQueue

_BATCH: Final = 100
_KILLS: Final = 5  # of each process
_BAR: Final = 40
_END: Final = b"end\n"  # the sink's line for the end marker

Item = tuple[int, str] | None  # the number of the line, and the line; None marks the end


def run(source: str | None, items: int) -> int:
    """Run the demo and print the account; return the exit code."""
    source = source or topics.__file__
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-demo-") as place:
        lines = _lines(source, items)
        print(f"{len(lines):,} lines of {source} through a queue in {place};")
        print(f"producer and consumer are killed with SIGKILL {_KILLS} times each")
        begun = time.monotonic()
        kills = _kill_again_and_again(place, source, items)
        elapsed = time.monotonic() - begun
        return _account(place, lines, kills, elapsed)


def _lines(source: str, items: int) -> list[str]:
    with open(source, encoding="utf-8", errors="replace") as file:
        text = [line.rstrip("\n") for line in file] or [""]
    return list(islice(cycle(text), items))


def _produce(place: str, source: str, items: int) -> None:
    lines: list[Item] = list(enumerate(_lines(source, items)))
    lines.append(None)
    with PersistentQueue[Item]("queue", place) as queue, open(os.path.join(place, "acknowledged"), "ab", 0) as log:
        for start in range(_acknowledged(place), len(lines), _BATCH):
            batch = lines[start : start + _BATCH]
            queue.push(batch)
            log.write(b"." * len(batch))  # one byte a line: a count that a kill cannot tear


def _consume(place: str) -> None:
    with PersistentQueue[Item]("queue", place) as queue, open(os.path.join(place, "sink"), "ab", 0) as sink:
        written = _whole_lines(place)
        sink.truncate(len(written))
        more = not written.endswith(_END)
        while more:
            queue.peek(1, blocking=True)
            batch = queue.peek(_BATCH)
            more = None not in batch
            sink.write(b"".join(b"%d\t%s\n" % (item[0], item[1].encode()) if item else _END for item in batch))
            queue.delete(len(batch))
        queue.clear()  # the last batch, if it was written but not deleted


def _acknowledged(place: str) -> int:
    try:
        return os.path.getsize(os.path.join(place, "acknowledged"))
    except FileNotFoundError:
        return 0


def _whole_lines(place: str) -> bytes:
    with open(os.path.join(place, "sink"), "rb") as file:
        content = file.read()
    return content[: content.rfind(b"\n") + 1]


def _delivered(place: str) -> int:
    try:
        with open(os.path.join(place, "sink"), "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _kill_again_and_again(place: str, source: str, items: int) -> int:
    """Run both processes to the end; kill each whenever it has done another share of the work."""
    spawn = multiprocessing.get_context("spawn")
    starts: list[Callable[[], BaseProcess]] = [
        lambda: spawn.Process(target=_produce, args=(place, source, items)),
        lambda: spawn.Process(target=_consume, args=(place,)),
    ]
    workers: list[BaseProcess] = []
    try:
        workers += (_started(start()) for start in starts)
        return _to_the_end(place, items, starts, workers)
    finally:  # after an interrupt: they work in a directory that is about to be removed
        for worker in workers:
            worker.kill()
            worker.join()


def _started(worker: BaseProcess) -> BaseProcess:
    """Start a process that ignores the Ctrl-C of its terminal: the demo gets it, too, and ends this process."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        worker.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    return worker


def _to_the_end(place: str, items: int, starts: list[Callable[[], BaseProcess]], workers: list[BaseProcess]) -> int:
    progress = (_acknowledged, _delivered)
    shares = [1, 1]
    while any(worker.is_alive() for worker in workers):
        done = [measure(place) for measure in progress]
        _draw_bar(min(done), items, sum(shares) - 2)
        for index, worker in enumerate(workers):
            if shares[index] <= _KILLS and done[index] >= shares[index] * items // (_KILLS + 1) and worker.is_alive():
                worker.kill()
                worker.join()
                shares[index] += 1
                workers[index] = _started(starts[index]())
        multiprocessing.connection.wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.002)
    for worker in workers:
        if worker.exitcode:
            message = f"a process of the demo exited with {worker.exitcode}"
            raise SystemExit(message)
    _draw_bar(items, items, sum(shares) - 2)
    return sum(shares) - 2


def _draw_bar(done: int, items: int, kills: int) -> None:
    if sys.stderr.isatty():
        filled = _BAR * min(done, items) // max(items, 1)
        end = "\n" if done >= items else ""
        bar = "#" * filled + "." * (_BAR - filled)
        print(f"\r[{bar}] {done:,} lines, {kills} kills", end=end, file=sys.stderr, flush=True)


def _account(place: str, lines: list[str], kills: int, elapsed: float) -> int:
    with open(os.path.join(place, "sink"), encoding="utf-8", newline="\n") as file:
        delivered = Counter(line for line in file.read().split("\n")[:-1] if line != _END.decode().strip())
    expected = Counter(f"{number}\t{line}" for number, line in enumerate(lines))
    lost = sum((expected - delivered).values())
    altered = sum(line not in expected for line in delivered)
    with PersistentQueue[Item]("queue", place) as queue:
        before = _size(place)
        queue.flush(force=True)
        after = _size(place)
        problems = queue.check()
    rows = [
        ("pushed", f"{_acknowledged(place) - 1:,} lines, each acknowledged"),
        ("delivered", f"{sum(delivered.values()):,}"),
        ("lost", f"{lost:,}"),
        ("altered", f"{altered:,}"),
        ("delivered twice", f"{sum((delivered - expected).values()) - altered:,} (killed before it was recorded)"),
        ("kills", f"{kills}"),
        ("items/s", f"{len(lines) / elapsed:,.0f} (restarts included)"),
        ("directory", f"{before:,} bytes, after flush {after:,}"),
        ("check", problems[0] if problems else "nothing wrong"),
    ]
    for name, value in rows:
        print(f"{name:>16}  {value}")
    return 1 if lost or altered or problems else 0


def _size(place: str) -> int:
    directory = os.path.join(place, "queue")
    return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.name.endswith(".mdb"))
