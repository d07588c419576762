"""How a thread waits for another one of this process, or has one work beside it.

Owns: a flag, threads that rest until told, what ends that which was begun, a thread that beats. Law: an interrupt
(KeyboardInterrupt) or the handler of a signal may come in anywhere: no lock is held in a sleep, and each step that
counts is one call of C. Must not know: what is waited for.

The same of ``threading`` do not keep that law, since they are written in Python: a ``Condition`` lets a
lock go and takes it again amid a block that holds it, so an interrupt there leaves as "release unlocked lock"; so does
``Thread.start``, which waits for an ``Event``; and an ``Event`` that a signal's handler sets amid the wait of the same
thread waits for itself.
"""

from __future__ import annotations

import functools
import os
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
    1.0  # seconds between two looks of a resting thread: the one that should wake it may have been interrupted
)


class Flag:
    """An ``Event`` that is set once and never cleared. One thread may wait for it; any may set it."""

    def __init__(self) -> None:
        self._is_set = False
        self._gate = _closed()

    def set(self) -> None:
        """Set it."""
        self._is_set = True
        with suppress(RuntimeError):  # it is open
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
        """Return a lock that can be had once there is something to tell."""
        turn = _closed()
        self._turns.append(turn)
        return turn

    def leave(self, turn: Lock) -> None:
        """Forget a lock that is waited for no more."""
        with suppress(ValueError):  # told
            self._turns.remove(turn)

    def tell(self, n: int | None = None) -> None:
        """Wake ``n`` of them, or all."""
        for _ in range(len(self._turns) if n is None else min(n, len(self._turns))):
            self._turns.popleft().release()

    def wait_for(self, lock: Lock | RLock, is_so: Callable[[], bool], timeout: float | None = None) -> None:
        """Return when ``is_so()``, called with the lock, is true, or after ``timeout`` s. This one takes the lock."""
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
    """What ends that which was begun, the last begun first.

    An interrupt may come when a function is entered, that of a context manager, too, which then ends nothing. So
    ``close`` is called in a ``finally``, and again in a ``finally`` of that: a step stays until it has ended. A step
    may run twice, and is added *before* what it ends is begun.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Put a step before all others still to be run."""
        self._steps.append(step)

    def close(self) -> None:
        """Run the steps, whatever one of them raises."""
        failed = None
        has_failed = False  # the step that is the last
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:  # it is raised when all have run
                failed = error
                has_failed = not has_failed
                if has_failed:  # once more: what raised may have been the handler of a signal, before the step began
                    continue
            has_failed = False
            self._steps.pop()
        if failed is not None:
            raise failed


def is_mine(lock: RLock) -> bool:
    """Return whether this thread holds a lock: then a call came from within a call, and must not wait for it."""
    found: bool = lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001  (as Condition asks it)
    return found


def is_taken(lock: RLock) -> bool:
    """Return whether anybody holds a lock; it tells so itself from Python 3.14 on."""
    return not repr(lock).startswith("<unlocked")


def free(lock: RLock) -> None:
    """Release a lock if this thread holds it, and did not before."""
    if is_mine(lock):
        lock.release()


class _Leaving(functools.partial[bool | None]):
    """What a ``with`` statement calls at its end, and drops when it is left, called or not."""

    def __del__(self) -> None:
        gen = self.args[0].gen
        if gen.gi_suspended:  # else it has ended, or this was not of a ``with`` statement, and it may still begin
            gen.close()


def _leave(manager: Any, *error: Any) -> bool | None:
    left: bool | None = manager.__exit__(*error)
    return left


class _Exit:
    """``Held.__exit__``: for a ``with`` statement an object of its own, to which no frame refers.

    The statement asks for it before it enters. Whoever asks amid the block, as a debugger does, ends nothing.
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
    """What ``holding`` makes of a generator."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager  # of contextlib

    def __enter__(self) -> T:
        entered: T = self.manager.__enter__()
        return entered

    def _recreate_cm(self) -> Self:
        return type(self)(self.manager._recreate_cm())  # noqa: SLF001  (as contextlib does it)

    if TYPE_CHECKING:

        def __exit__(self, *_: object) -> bool | None: ...

    else:
        __exit__ = _Exit()


def holding(begin: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Do as ``contextlib.contextmanager``; what the generator holds is let go when the ``with`` statement is left.

    An interrupt may come where the generator has just yielded, or its end is just to begin. Then nobody runs it any
    more, and with ``contextmanager`` it ends when the collector finds it: which is never, as long as somebody keeps
    the interrupt, whose traceback refers to it, as an interactive Python does.
    """
    make = contextmanager(begin)

    @functools.wraps(begin)
    def begun(*args: P.args, **options: P.kwargs) -> AbstractContextManager[T]:
        return Held(make(*args, **options))

    return begun


@holding
def held(*locks: RLock, patience: float = -1) -> Iterator[bool]:
    """Hold locks, which this thread does not hold yet, for the block; give whether each was had in time.

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
    """Where one thread says that it waits for another process, amid nothing that a fork could harm."""

    def __init__(self) -> None:
        self._gate = RLock()  # closed while this process is being forked
        self._is_parked = False

    @holding
    def parked(self) -> Iterator[None]:
        """Be parked for the block. It may end, and is not left, while this process is being forked."""
        self._is_parked = True
        try:
            yield
        finally:
            with self._gate:
                self._is_parked = False

    def hold(self) -> bool:
        """Keep the thread where it is, if it is parked, until ``let_go``; return whether it is."""
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
    """Call ``fn`` each ``seconds`` seconds in another thread while the block runs; what it raises is raised at the end.

    After that it is not called again. No call is under way when the block has ended, unless an interrupt ended the
    wait for it. A child that was forked in the block has no such thread, and leaves it without a wait.
    """
    process = os.getpid()
    stop, ended = _closed(), _closed()  # each is opened by one call of C, the first of its block
    failed: list[BaseException] = []

    def beat() -> None:
        try:
            while not stop.acquire(timeout=seconds):
                fn()
        except BaseException as error:  # it is raised where the block is
            failed.append(error)
        finally:
            ended.release()

    try:
        try:
            start_new_thread(beat, ())
        except RuntimeError:  # there are too many threads
            ended.release()
            raise
        yield
    finally:
        stop.release()
        if os.getpid() == process:
            ended.acquire()
    if failed:
        raise failed[0]


def _closed() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock
