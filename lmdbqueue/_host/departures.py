"""Work that must not be done where it comes up: in the garbage collector, or amid a call of the same thread.

Owns: one thread, which is there while there is such work. Law: ``defer`` takes no lock that it would wait for, and
touches no file; what was deferred is done before the program ends. Must not know: what the work is.

Who lets go of a queue object lets the collector run its finalizer, wherever in the program that comes: amid a write
transaction of that very queue, too, whose lock the finalizer would wait for. The handler of a signal is no better off.
"""

from __future__ import annotations

import atexit
import sys
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final

from lmdbqueue._host.fork import at_fork

_PATIENCE: Final = 10.0  # seconds that the program's end waits for work that is under way

_left: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_working = Lock()  # held by the thread
_is_ending = False  # the program


def defer(fn: Callable[..., object], *args: object) -> None:
    """Call ``fn(*args)`` in another thread, soon; at the end of the program, where no thread can be had, here."""
    _left.append((fn, args))
    if _is_ending:
        _do_what_is_left()
    else:
        _begin()


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
            start_new_thread(_work, ())
        except RuntimeError:  # there are too many threads: the next one, or the end, does it
            _working.release()


def _work() -> None:
    try:
        _do_what_is_left()
    finally:
        _working.release()
    if _left:  # since the last look
        _begin()


def _do_what_is_left() -> None:
    while _left:
        try:
            fn, args = _left.popleft()
        except IndexError:  # another thread has it
            return
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
    _is_ending = True
    if _working.acquire(timeout=_PATIENCE):
        _working.release()
    _do_what_is_left()


def _begin_anew() -> None:
    global _working  # noqa: PLW0603
    _working = Lock()


at_fork("departures", in_child=_begin_anew)
