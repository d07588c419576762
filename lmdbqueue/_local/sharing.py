"""One environment for each directory of this process: how it is shared, and what happens to all of them at a fork.

Owns: opening, and the order in which the directories are quiesced. Law: while a fork waits for one directory, it holds
no lock of another. Must not know: generations, transactions.

A fork waits until no transaction of this process is under way (see ``_local.live``). A fork that cannot wait any longer
(a transaction lasts too long) leaves a child in which that queue raises ``ForkError``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import OptionError
from lmdbqueue._host import fork
from lmdbqueue._host.directory import open_directory
from lmdbqueue._host.fork import at_fork
from lmdbqueue._host.threads import beating, free
from lmdbqueue._lmdb.opening import build
from lmdbqueue._local.environment import Environment, environments, opening

if TYPE_CHECKING:
    from lmdbqueue._model.invariants import Progress

_PATIENCE: Final = 5.0  # seconds that a fork waits for a transaction under way
_REPORT: Final = 0.1  # seconds between two reports of a proof
_TURN: Final = 0.05  # seconds that a fork waits for one directory while it keeps others still


def open_environment(
    path: str, wanted: _format.Options, progress: Progress | None = None, *, interval: float | None = None
) -> Environment:
    """Return this process's handle on the directory at ``path``; the caller must release it.

    ``interval``: seconds between checkpoints, if there are any; None: as others in this process want it. ``progress``
    is a function of the user's: it is called by a thread that holds nothing, and once more by this one if it was
    called, when nothing is held any more.
    """
    fork.notice()
    directory = open_directory(path, wanted, build, _remembered)
    counted = None  # the environment, once it has to be released
    try:
        _refuse_other_options(path, directory.options, wanted)
        with opening:
            environment = environments.get(directory.identity) or Environment(directory)
            environments[directory.identity] = environment
            environment.handles += 1
            counted = environment  # an interrupt comes where a function returns: none does since the one before
        if environment.directory is not directory:
            directory.close()
        environment.want_interval(interval)
        if progress is None:
            environment.prepare()
        else:
            _prepare(environment, progress)
    except BaseException:
        if counted is None or counted.directory is not directory:
            directory.close()
        if counted is not None:
            counted.release()
        raise
    return environment


def _remembered(path: str) -> bytes:
    """Return the content of ``queue.json`` as the environment at ``path`` has it."""
    from lmdbqueue._lmdb.options_record import remembered  # noqa: PLC0415  (only if the file is lost or damaged)

    return remembered(path)


def _prepare(environment: Environment, progress: Progress) -> None:
    """Open what is live, and report how far its proof has come; what ``progress`` raises is raised when it is open."""
    told: list[tuple[int, int]] = []  # what the proof, which holds locks, said last

    def note(done: int, total: int) -> None:
        told[:] = [(done, total)]

    def report() -> None:
        for each in told:
            progress(*each)

    with ExitStack() as reporting:
        with suppress(RuntimeError):  # no thread can be had: then it is told once
            reporting.enter_context(beating(report, _REPORT))
        environment.prepare(note)
    report()


def _refuse_other_options(path: str, stored: _format.Options, given: _format.Options) -> None:
    for option in ("checksum", "durability"):
        if getattr(stored, option) != getattr(given, option):
            raise OptionError(path, option, getattr(stored, option), getattr(given, option))


_frozen: list[Environment] = []  # held still by the fork under way


def _freeze_all() -> None:
    opening.acquire()
    _freeze(list(environments.values()), _frozen)


def _freeze(waiting: list[Environment], frozen: list[Environment]) -> None:
    """Quiesce the waiting environments one after the other; ``frozen``: those already quiesced."""
    deadline = time.monotonic() + _PATIENCE
    while waiting:
        environment = waiting.pop(0)
        left = max(0.0, deadline - time.monotonic())
        if environment.freeze(min(left, _TURN) if frozen else left):
            frozen.append(environment)
        elif frozen and left and not environment.is_torn:  # the others continue while the fork waits for this one first
            for each in frozen:
                each.thaw()
            waiting[:] = [environment, *frozen, *waiting]
            frozen.clear()


def _thaw_all() -> None:
    _with_each(Environment.thaw)


def _restart_all() -> None:
    for environment in environments.values():
        if environment not in _frozen:  # it could not be frozen, or an interrupt came before: Python forks all the same
            environment.give_up()
    _with_each(Environment.restart)


def _with_each(do: Callable[[Environment], None]) -> None:
    """Call ``do`` with all, and release them; repeat it for one in which a signal handler raised."""
    left = list(environments.values())
    try:
        try:
            while left:
                do(left[-1])
                left.pop()
        finally:
            while left:
                do(left[-1])
                left.pop()
    finally:
        _frozen.clear()
        free(opening)


at_fork("environments", before=_freeze_all, in_parent=_thaw_all, in_child=_restart_all)
