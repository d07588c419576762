"""Work that must not be done where it comes up: in the garbage collector, or amid a call of the same thread.

Owns: one thread, which is there while there is such work; how long the program's end waits. Law: ``defer`` takes no
lock that it would wait for, and touches no file; what was deferred is done before the program ends, unless it would
have to wait for another process too long. Must not know: what the work is.

Who lets go of a queue object lets the collector run its finalizer, wherever in the program that comes: amid a write
transaction of that very queue, too, whose lock the finalizer would wait for. The handler of a signal is no better off.

The end of the program. A thread that waits too long is left behind, and another one does the rest. Python 3.12 refuses
new threads by then, so the main thread does it, which nobody could leave behind: there, what closes something
asks ``patience`` how long it may wait for a lock, and what it does not get is left to the end of the process.
"""

from __future__ import annotations

import atexit
import sys
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from threading import Lock, current_thread, main_thread
from types import SimpleNamespace
from typing import Any, Final

from lmdbqueue._host.fork import at_fork

_PATIENCE: Final = 10.0  # seconds that the program's end waits for work that is under way

_left: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_working = Lock()  # held by the thread
_at_end: list[Callable[[], object]] = []
_is_ending = False  # the program, and nobody waits for another thread any more
_deadline = 0.0  # of the main thread's waits, at the program's end; on time.monotonic()


def defer(fn: Callable[..., object], *args: object) -> None:
    """Call ``fn(*args)`` in another thread, soon; in the main thread, once the program ends, at once."""
    _left.append((fn, args))
    if _is_ending and current_thread() is main_thread():
        _do_what_is_left()
    else:
        _begin()


def at_end(fn: Callable[[], None]) -> Callable[[], None]:
    """Call ``fn`` when the program ends, and wait for what it defers; the last one first. A decorator."""
    _at_end.append(fn)
    return fn


def patience() -> float:
    """Return how many seconds whoever closes something may wait for a lock; -1: for as long as it takes."""
    if not _deadline or current_thread() is not main_thread():
        return -1
    return max(0.0, _deadline - time.monotonic())


def wait(timeout: float) -> bool:
    """Wait until nothing is left, at most ``timeout`` seconds; return whether nothing is."""
    if _left:
        _begin()
    if not _working.acquire(timeout=timeout):
        return False
    _working.release()
    return not _left


def _begin() -> None:
    if _working.acquire(blocking=False):
        try:
            start_new_thread(_work, (_working,))
        except RuntimeError:  # there are too many threads: the next one, or the end, does it
            _working.release()


def _work(working: Lock) -> None:
    try:
        _do_what_is_left()
    finally:
        working.release()
    if _left:  # since the last look
        _begin()


def _do_what_is_left() -> None:
    while _left:
        try:
            fn, args = _left.popleft()
        except IndexError:  # another thread has it
            return
        _do(fn, *args)


def _do(fn: Callable[..., object], *args: object) -> None:
    try:
        fn(*args)
    except BaseException as error:  # as of any finalizer
        sys.unraisablehook(
            SimpleNamespace(
                exc_type=type(error), exc_value=error, exc_traceback=error.__traceback__, err_msg=None, object=fn
            )
        )


@atexit.register
def _end() -> None:
    global _is_ending  # noqa: PLW0603
    for fn in reversed(_at_end):
        _do(fn)
    _finish()
    _is_ending = True


def _finish() -> None:
    """Wait for what was deferred. What waits for another process, for too long, is left behind; the rest is done."""
    global _working, _deadline  # noqa: PLW0603
    while not _working.acquire(timeout=_PATIENCE):
        if not _left:
            return
        _working = Lock()
        _begin()
    _working.release()
    _deadline = time.monotonic() + _PATIENCE
    _do_what_is_left()  # where no thread could be had


def _begin_anew() -> None:
    global _working, _deadline  # noqa: PLW0603
    _working = Lock()
    _deadline = 0.0


at_fork("departures", in_child=_begin_anew)
