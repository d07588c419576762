"""Others who need what a call may hold: another thread, and another process, that write when they are asked.

Owns: how a function of the user's, amid a call, finds out whether anything is held: whoever is asked opens the same
queue and runs a transaction on it, which must end before the function returns.
"""

import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

DEADLINE = 20.0  # seconds, far more than a transaction takes

_PROCESS = """
import pickle, sys

for line in sys.stdin:
    with pickle.loads(bytes.fromhex(line))() as queue, queue.transaction():
        queue.push("of the process", delay=3600)
    print("done", flush=True)
"""


def start_process() -> "subprocess.Popen[bytes]":
    """Start the process, for any number of tests."""
    return subprocess.Popen([sys.executable, "-c", _PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Outsiders:
    """A thread and a process that are asked by functions made with ``asking``."""

    def __init__(self, process: Any, open_: Callable[[], Any], held: Callable[[], Iterable[str]] = lambda: ()) -> None:
        """``open_``: opens the queue; it can be pickled. ``held``: what is held although nobody waits for it."""
        self._open = open_
        self._held = held
        self._process = process
        self.asked: list[str] = []  # by which functions
        self.found: list[str] = []  # who had to wait for what

    def asking(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``fn`` as a function that asks both before it does its work."""

        def asked(*args: Any, **options: Any) -> Any:
            self.ask(name)
            return fn(*args, **options)

        return asked

    def ask(self, name: str) -> None:
        """Have both write, and note who could not."""
        self.asked.append(name)
        thread = threading.Thread(target=self._write, daemon=True)
        thread.start()
        self._process.stdin.write(pickle.dumps(self._open).hex().encode() + b"\n")
        self._process.stdin.flush()
        thread.join(DEADLINE)
        if thread.is_alive():
            self.found.append(f"a thread waits for what is held around {name}")
        if not select.select([self._process.stdout], [], [], DEADLINE)[0]:
            self.found.append(f"a process waits for what is held around {name}")
        else:
            assert self._process.stdout.readline() == b"done\n"
        self.found += [f"around {name}: {each}" for each in self._held()]

    def _write(self) -> None:
        with self._open() as queue, queue.transaction():
            queue.push("of the thread", delay=3600)
