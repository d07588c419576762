"""Stopping at SIGTERM or SIGINT.

Owns: the handlers, while something runs that can be stopped. Law: the first signal stops everything that runs, is
passed to the previous handler, if the program had set one, and restores that: a second signal does what it would have
done without us. Must not know: what is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from lmdbqueue._host.threads import holding

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_running: list[Callable[[], object]] = []  # functions that stop what is running, in any thread
_before: dict[signal.Signals, Any] = {}  # the previous handlers, while ours are set


@holding
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first signal that comes in the block, whichever thread it runs in.

    Handlers can only be set in the main thread: in another thread, ``stop`` is called only while the main thread is in
    such a block, too. An exception of ``stop`` is raised in the main thread, wherever that is at the moment.
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
            if stop in _running:  # otherwise an interrupt came before
                _running.remove(stop)
        finally:
            if is_first:
                try:
                    _restore()
                finally:
                    _restore()  # in case an interrupt came while this one began


def _take_over(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    if before is not None:  # a handler of an embedding program could not be restored
        _before[number] = before  # first, so that it is restored even after an interrupt
        signal.signal(number, _handle)


def _restore() -> None:
    for number, handler in list(_before.items()):
        if signal.getsignal(number) is _handle:  # otherwise another handler was set since
            signal.signal(number, handler)
        _before.pop(number, None)


def _handle(number: int, frame: FrameType | None) -> None:
    before = _before.get(signal.Signals(number))
    _restore()
    raised: BaseException | None = None
    for stop in _running.copy():  # a copy, since other threads may end meanwhile
        try:
            stop()
        except BaseException as error:
            raised = error
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)
    if raised is not None:
        raise raised
