"""Being told to stop by SIGTERM or SIGINT.

Owns: the handlers, for as long as something runs that can stop. Law: the first signal stops all that run, goes on to
the handler of before, if a program had set one, and gives that back: a second signal does what it would have done
without us. Must not know: what is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from lmdbqueue._host.threads import holding

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_running: list[Callable[[], object]] = []  # what stops the running ones, in any thread
_before: dict[signal.Signals, Any] = {}  # the handlers of before, while ours are set


@holding
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first signal that comes in the block, whichever thread it runs in.

    Handlers can be set in the main thread only: elsewhere it is called if somebody there is in such a block, too. What
    ``stop`` raises is raised amid whatever the main thread is at.
    """
    is_first = threading.current_thread() is threading.main_thread() and not _before
    try:
        _running.append(stop)
        if is_first:
            for number in SIGNALS:
                _take_over(number)
        yield
    finally:
        try:
            if stop in _running:  # else an interrupt came before
                _running.remove(stop)
        finally:
            if is_first:
                try:
                    _restore()
                finally:
                    _restore()  # if an interrupt came as the other one began


def _take_over(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    if before is not None:  # else it is of a program that embeds Python, to which it could not be given back
        _before[number] = before  # first, so that it is given back whatever interrupts
        signal.signal(number, _handle)


def _restore() -> None:
    for number, handler in list(_before.items()):
        if signal.getsignal(number) is _handle:  # else somebody has set another since
            signal.signal(number, handler)
        _before.pop(number, None)


def _handle(number: int, frame: FrameType | None) -> None:
    before = _before.get(signal.Signals(number))
    _restore()
    raised: BaseException | None = None
    for stop in _running.copy():  # of which other threads may end amid this
        try:
            stop()
        except BaseException as error:
            raised = error
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)
    if raised is not None:
        raise raised
