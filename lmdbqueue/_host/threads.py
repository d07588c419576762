"""How a thread waits for another of this process, or has one work beside it.

Owns: a flag, threads that rest until woken, clean-up steps, a thread that calls a function periodically. Law: an
interrupt (KeyboardInterrupt) or a signal handler may come anywhere: no lock is held during a sleep, and each decisive
step is one call of C. Must not know: what is waited for.

The counterparts in ``threading`` do not keep that law, since they are written in Python: a ``Condition`` releases a
lock and takes it again inside a block that holds it, so an interrupt there becomes "release unlocked lock"; so does one
in ``Thread.start``, which waits for an ``Event``; and an ``Event`` that a signal handler sets during a wait of the same
thread waits for itself.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, suppress
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LOOK: Final = (
    1.0  # seconds between two checks of a resting thread: the one that should wake it may have been interrupted
)
_LEAVING: Final = 30  # frames that leaving a ``with`` statement may need beyond those of entering it


class Flag:
    """An ``Event`` that is set once and never cleared. One thread may wait for it; any may set it."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = _closed()

    def set(self) -> None:
        """Set it."""
        self._is_set = True
        with suppress(RuntimeError):  # the flag is set already
            self._gate.release()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; return whether it is."""
        return self._is_set or self._gate.acquire(timeout=timeout)


class Resting:
    """Threads that rest until they are woken. The caller holds the lock that guards what they wait for."""

    def __init__(self) -> None:
        self._turns: deque[Lock] = deque()

    def __len__(self) -> int:
        return len(self._turns)

    def rest(self) -> Lock:
        """Return a lock that can be taken once this thread is woken."""
        turn = _closed()
        self._turns.append(turn)
        return turn

    def leave(self, turn: Lock) -> None:
        """Forget a lock that is no longer waited for."""
        with suppress(ValueError):  # it was woken
            self._turns.remove(turn)

    def tell(self, n: int | None = None) -> None:
        """Wake ``n`` of them, or all."""
        for _ in range(len(self._turns) if n is None else min(n, len(self._turns))):
            self._turns.popleft().release()

    def wait_for(self, lock: Lock | RLock, is_so: Callable[[], bool], timeout: float | None = None) -> None:
        """Take ``lock`` and return once ``is_so()``, called with it held, is true, or after ``timeout`` seconds."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            with lock:
                if is_so():
                    return
                turn = self.rest()
            try:
                turn.acquire(timeout=min(left, _LOOK))
            finally:
                with lock:
                    self.leave(turn)


class Ending:
    """Clean-up steps, run in reverse order.

    An interrupt may come when a function is entered, even the exit of a context manager, which then cleans up nothing.
    So ``close`` is called in a ``finally``, and again in a ``finally`` of that: a step stays until it has finished. A
    step may run twice, and is added *before* the work that it ends begins.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Put a step before all others that have not run yet."""
        self._steps.append(step)

    def close(self) -> None:
        """Run all steps, even if some raise."""
        failed = None
        has_failed = False  # whether the last step has failed
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:  # raised when all have run
                failed = error
                has_failed = not has_failed
                if has_failed:  # once more, since a signal handler may have raised before the step began
                    continue
            has_failed = False
            self._steps.pop()
        if failed is not None:
            raise failed


def is_mine(lock: RLock) -> bool:
    """Return whether this thread holds a lock: then this is a nested call, which must not wait for it."""
    found: bool = lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001  (as Condition asks it)
    return found


def free(lock: RLock) -> None:
    """Release a lock that this thread did not hold before, if it holds it now."""
    if is_mine(lock):
        lock.release()


class _Leaving(functools.partial[bool | None]):
    """The exit function of a ``with`` statement, which the statement drops when it is left, called or not."""

    def __del__(self) -> None:
        gen = self.args[0].gen
        if gen.gi_suspended:  # otherwise it has ended, or may still begin without a ``with`` statement
            gen.close()


def _leave(manager: Any, *error: Any) -> bool | None:
    left: bool | None = manager.__exit__(*error)
    return left


class _Exit:
    """``Held.__exit__``: each ``with`` statement gets an object of its own, to which no frame refers.

    The statement asks for it before it enters. Code that asks for it within the block, such as a debugger, ends
    nothing.
    """

    def __get__(self, held: Held[Any] | None, _: type) -> Callable[..., bool | None]:
        if held is None:
            return _exit
        if held.manager.gen.gi_suspended:
            return functools.partial(_exit, held)
        return _Leaving(_leave, held.manager)


def _exit(held: Held[Any], *error: Any) -> bool | None:
    return _leave(held.manager, *error)


class Held(AbstractContextManager[T], ContextDecorator):
    """The context manager that ``holding`` makes of a generator."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager  # of contextlib

    def __enter__(self) -> T:
        _descend(_LEAVING)  # before anything is held
        entered: T = self.manager.__enter__()
        return entered

    def _recreate_cm(self) -> Self:
        return type(self)(self.manager._recreate_cm())  # noqa: SLF001  (as contextlib does it)

    if TYPE_CHECKING:

        def __exit__(self, *_: object) -> bool | None: ...

    else:
        __exit__ = _Exit()


def _descend(frames: int) -> None:
    """Raise ``RecursionError`` now if the stack has no room for this number of frames."""
    if frames:
        _descend(frames - 1)


def holding(begin: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Like ``contextlib.contextmanager``, but the generator's resources are released whenever the statement is left.

    An interrupt may come just after the generator has yielded, or just before its end begins. Then it is not run any
    more, and with ``contextmanager`` it ends when the garbage collector finds it: never, as long as the interrupt is
    kept, whose traceback refers to it, as an interactive Python does.
    """
    make = contextmanager(begin)

    @functools.wraps(begin)
    def begun(*args: P.args, **options: P.kwargs) -> AbstractContextManager[T]:
        return Held(make(*args, **options))

    return begun


@holding
def held(*locks: RLock, patience: float = -1) -> Iterator[bool]:
    """Hold locks, which this thread does not hold yet, for the block; yield whether all were obtained in time.

    ``patience``: seconds for each of them; -1: as long as it takes.
    """
    ending = Ending()
    try:
        for lock in locks:
            ending.add(functools.partial(free, lock))
            if not lock.acquire(timeout=patience):
                yield False
                return
        yield True
    finally:
        try:
            ending.close()
        finally:
            ending.close()


class Parking:
    """Shows that one thread waits for another process, in the middle of nothing that a fork could harm."""

    def __init__(self) -> None:
        self._gate = RLock()  # closed while this process is being forked
        self._is_parked = False

    @holding
    def parked(self) -> Iterator[None]:
        """Be parked for the block. While this process is being forked, the thread cannot leave it."""
        self._is_parked = True
        try:
            yield
        finally:
            with self._gate:
                self._is_parked = False

    def hold(self) -> bool:
        """If the thread is parked, keep it there until ``let_go``; return whether it is."""
        self._gate.acquire()
        if self._is_parked:
            return True
        self._gate.release()
        return False

    def let_go(self) -> None:
        """Release it, if it is held."""
        free(self._gate)


@holding
def beating(fn: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call ``fn`` every ``seconds`` seconds in another thread while the block runs; its error is raised at the end.

    After an error it is not called again. No call is under way when the block has ended, unless an interrupt ended the
    wait for it. A child forked in the block has no such thread, and leaves the block without waiting.
    """
    process = os.getpid()
    stop, ended = _closed(), _closed()  # each is opened by one call of C, the first in its block
    failed: list[BaseException] = []
    thread = 0  # none yet

    def beat() -> None:
        try:
            while not stop.acquire(timeout=seconds):
                fn()
        except BaseException as error:  # raised again where the block is
            failed.append(error)
        finally:
            ended.release()

    try:
        try:
            thread = start_new_thread(beat, ())
        except RuntimeError:  # there are too many threads
            ended.release()
            raise
        yield
    finally:
        stop.release()
        if os.getpid() == process:
            while not ended.acquire(timeout=_LOOK) and thread in sys._current_frames():  # noqa: SLF001  (as faulthandler)
                pass  # one that found no memory has ended before its first step
    if failed:
        raise failed[0]


def _closed() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


def waits_in_native_code() -> bool:
    """Return whether a wait here also stops the other greenlets of the thread, as ``gevent.monkey`` prevents."""
    return type(Lock()).__module__ == "_thread"
