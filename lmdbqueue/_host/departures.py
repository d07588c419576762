"""Work that must not be done where it arises: in the garbage collector, or during a call of the same thread.

Owns: one thread, which exists while there is such work; how long the program's end waits. Law: ``defer`` waits for no
lock and touches no file; deferred work is done before the program ends, unless it would have to wait too long for
another process. Must not know: what the work is.

When a queue object is dropped, the garbage collector may run its finalizer anywhere in the program: even during a write
transaction of that very queue, for whose lock the finalizer would wait. A signal handler is in the same position.

The end of the program. A thread that waits too long is abandoned, and another one does the rest. Python 3.12 refuses
new threads by then, so the main thread does the rest, and it cannot be abandoned: there, code that closes something
asks ``patience`` how long it may wait for a lock, and if it does not get the lock, leaves the work to the end of the
process.
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

PATIENCE: Final = 10.0  # seconds for which the program's end waits for work under way

_left: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_working = Lock()  # held by the thread
_at_end: list[Callable[[], object]] = []
_is_ending = False  # the program is ending, and no thread waits for another any more
_deadline = 0.0  # deadline of the main thread's waits at the program's end; on time.monotonic()


def defer(fn: Callable[..., object], *args: object) -> None:
    """Call ``fn(*args)`` soon, in another thread; while the program ends, call it at once in the main thread."""
    _left.append((fn, args))
    if _is_ending and current_thread() is main_thread():
        _do_what_is_left()
    else:
        _begin()


def at_end(fn: Callable[[], None]) -> Callable[[], None]:
    """Call ``fn`` when the program ends, last registered first, and wait for the work that it defers. A decorator."""
    _at_end.append(fn)
    return fn


def is_ending() -> bool:
    """Return whether the program ends, and this is the main thread, which then runs the functions of ``atexit``."""
    main = main_thread()
    return current_thread() is main and (bool(_deadline) or not main.is_alive())


def patience() -> float:
    """Return the seconds for which code that closes something may wait for a lock; -1: without limit."""
    if not is_ending():
        return -1
    if not _deadline:  # ``atexit`` may run others before ``_end``
        return PATIENCE
    return max(0.0, _deadline - time.monotonic())


def wait(timeout: float) -> bool:
    """Wait until no work is left, at most ``timeout`` seconds; return whether none is."""
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
        except RuntimeError:  # there are too many threads: the next call, or the end, does it
            _working.release()


def _work(working: Lock) -> None:
    try:
        _do_what_is_left()
    finally:
        working.release()
    if _left:  # added since the last check
        _begin()


def _do_what_is_left() -> None:
    while _left:
        try:
            fn, args = _left.popleft()
        except IndexError:  # another thread has taken it
            return
        _do(fn, *args)


def _do(fn: Callable[..., object], *args: object) -> None:
    try:
        fn(*args)
    except BaseException as error:  # as with any finalizer
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
    """Wait for deferred work. Work that waits too long for another process is abandoned; the rest is done."""
    global _working, _deadline  # noqa: PLW0603
    while not _working.acquire(timeout=PATIENCE):
        if not _left:
            return
        _working = Lock()
        _begin()
    _working.release()
    _deadline = time.monotonic() + PATIENCE
    _do_what_is_left()  # if no thread could be started


def _begin_anew() -> None:
    global _working, _deadline  # noqa: PLW0603
    _working = Lock()
    _deadline = 0.0


at_fork("departures", in_child=_begin_anew)
