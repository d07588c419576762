"""Other processes that open queues, started once and told what to do.

Owns: starting them (spawned, never forked: a fork would hand LMDB and SQLite over), talking to them,
a common start. Law: a member imports the library that it is told to open and nothing else of the bench,
and does one thing at a time; it answers with a value or with the error that it met.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import time
from contextlib import suppress
from typing import Any, Self

from bench.items import make_items
from bench.peers import Peer, load_one

_PATIENCE_SECONDS = 300.0
_START_NS = 20_000_000  # from the word to the start of all: time enough for each to read it


class Team:
    """``size`` processes, each with at most one queue open at a time."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        self._hangs = False
        for _ in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        """Return it; they are all started."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            process.kill()

    def tell(self, verb: str, *arguments: Any, members: int | None = None) -> None:
        """Tell the first ``members`` (all) to do that; ``answers`` waits for them."""
        for pipe in self._pipes[:members]:
            pipe.send((verb, arguments))

    def answers(self, members: int | None = None) -> list[Any]:
        """Return one answer of each. Raises the first error that one of them met, after all answered."""
        return self._answers_of(self._pipes[:members])

    def ask(self, verb: str, *arguments: Any, members: int | None = None) -> list[Any]:
        """Tell and wait for the answers."""
        self.tell(verb, *arguments, members=members)
        return self.answers(members)

    def open(self, peer: type[Peer], directory: str, mode: str) -> None:
        """Open that queue in all, one after the other: SQLite refuses two that create a database at once."""
        for pipe in self._pipes:
            pipe.send(("open", (peer.address(), directory, mode)))
            self._answers_of([pipe])

    def ask_together(self, verb: str, *arguments: Any, members: int | None = None) -> list[Any]:
        """Do the same, where all begin at the same moment."""
        return self.ask(verb, *arguments, time.monotonic_ns() + _START_NS, members=members)

    def stop(self) -> None:
        """End what goes on until it is stopped; ``answers`` has the results."""
        for pipe in self._pipes:
            pipe.send(None)

    def _answers_of(self, pipes: list[Any]) -> list[Any]:
        found = []
        for pipe in pipes:
            if self._hangs or not pipe.poll(_PATIENCE_SECONDS):
                self._hangs = True  # a late answer would be taken for that to the next question
                raise TimeoutError(f"another process gave no answer for {_PATIENCE_SECONDS:.0f} s")
            found.append(pipe.recv())
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found


class _Member:
    """What a process of the team can do."""

    def __init__(self, pipe: multiprocessing.connection.Connection) -> None:
        self._pipe = pipe
        self._queue: Any = None

    def open(self, address: str, directory: str, mode: str) -> None:
        self._queue = load_one(address)(directory, durable=mode == "durable")

    def close(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.close()

    def push(self, n: int, start_ns: int) -> tuple[int, int]:
        """Push ``n`` items, one by one; return when it began and ended."""
        items = make_items(n, os.getpid() * n)
        _wait_until(start_ns)
        begin = time.monotonic_ns()
        for item in items:
            self._queue.push(item)
        return begin, time.monotonic_ns()

    def pop(self, n: int, start_ns: int) -> tuple[int, int, list[int]]:
        """Pop ``n`` items, one by one; return when it began and ended, and the ids."""
        _wait_until(start_ns)
        begin = time.monotonic_ns()
        items = [self._queue.pop() for _ in range(n)]
        return begin, time.monotonic_ns(), [item["id"] for item in items]

    def push_many(self, n: int, batch: int) -> None:
        """Fill the queue with ``n`` items."""
        for first in range(0, n, batch):
            self._queue.push_many(make_items(min(batch, n - first), first))

    def push_until_stopped(self) -> list[tuple[int, int]]:
        """Push one by one; return when each push began and ended."""
        (item,) = make_items(1)
        pushes = []
        while not self._pipe.poll():
            begin = time.monotonic_ns()
            self._queue.push(item)
            pushes.append((begin, time.monotonic_ns()))
        self._pipe.recv()
        return pushes

    def become_reader(self) -> None:
        """Be a named reader of the queue, of a name of its own."""
        self._reader = self._queue.queue.reader(f"reader {os.getpid()}")

    def read(self, n: int, batch: int, start_ns: int) -> tuple[int, int]:
        """Read ``n`` items that are there, as a reader; return when it began and ended."""
        _wait_until(start_ns)
        begin = time.monotonic_ns()
        for _ in range(0, n, batch):
            self._reader.pop(batch)
        return begin, time.monotonic_ns()

    def follow_until_stopped(self, batch: int) -> int:
        """Read what comes, as a reader; return how many that were."""
        count = 0
        while not self._pipe.poll():
            with suppress(queue.Empty):
                self._reader.peek(blocking=True, timeout=0.05)
                count += len(self._reader.pop(batch))
        self._pipe.recv()
        return count

    def wait(self, timeout: float) -> int | None:
        """Block until there is an item; return the moment it was there."""
        moment: int | None = self._queue.wait(timeout)
        return moment

    def idle(self, seconds: float) -> float:
        """Block for so long on an empty queue; return the seconds of CPU that it took."""
        self._queue.wait(0.1)  # what only the first wait costs
        before = time.process_time()
        self._queue.wait(seconds)
        return time.process_time() - before

    def memory(self) -> tuple[float, float]:
        """Return the bytes of this process's own memory, and with it of the pages of files it has mapped."""
        with open("/proc/self/status", encoding="utf-8") as lines:
            status = dict(line.split(":", 1) for line in lines)
        return tuple(float(status[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    member = _Member(pipe)
    try:
        while True:
            verb, arguments = pipe.recv()
            try:
                answer = getattr(member, verb)(*arguments)
            except Exception as error:
                answer = RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
    except EOFError:
        return


def _wait_until(moment_ns: int) -> None:
    left = moment_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)
