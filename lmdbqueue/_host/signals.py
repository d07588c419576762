"""Being told to stop by SIGTERM or SIGINT.

Owns: the handlers, for as long as something runs that can stop. Law: the first signal stops all that run, goes on to
the handler of before, if a program had set one, and gives that back: a second signal does what it would have done
without us. Must not know: what is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_running: list[Callable[[], object]] = []  # what stops those who run, in any thread
_before: dict[signal.Signals, Any] = {}  # the handlers of before, while ours are set


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first signal that comes in the block, whichever thread it runs in.

    Handlers can be set in the main thread only: elsewhere it is called if somebody there is in such a block, too. What
    ``stop`` raises is raised amid whatever the main thread is at.
    """
    _running.append(stop)
    is_first = threading.current_thread() is threading.main_thread() and not _before
    if is_first:
        for number in SIGNALS:
            _before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        _running.remove(stop)
        if is_first:
            _restore()


def _restore() -> None:
    while _before:
        number, handler = _before.popitem()
        if signal.getsignal(number) is _handle and handler is not None:  # else somebody has set another since
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    before = _before.get(signal.Signals(number))
    _restore()
    raised: BaseException | None = None
    for stop in _running:
        try:
            stop()
        except BaseException as error:
            raised = error
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)
    if raised is not None:
        raise raised
