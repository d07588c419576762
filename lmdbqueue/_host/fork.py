"""Forks: the steps of each module before a fork and in the child, and their order.

Owns: the only ``os.register_at_fork``; what tells a process from the children that it forks. Law: the order is given by
``ORDER``, not by that of imports; a failure in one module does not keep others from their part.

An interrupt may come anywhere, and Python forks all the same. So the steps after a fork may run twice.

A signal handler may fork while its thread has the lock of a directory, and the child returns into that work, which is
the parent's: it would write old pages and names over what the parent has done since. So the lock notes whose it is
(``amid``), and whatever is written, renamed or removed under it is preceded by a look at that, with no call in between,
in which a handler might fork. And what is read there is read by its offset: a child shares the position in a file that
is open, and would move it for its parent.

Code in C (uWSGI, ``daemon(3)``) forks without Python's steps, and nothing is quiet then. So each call compares the
process with the one that has begun (``notice``), and what was open at such a fork raises ``ForkError`` in the child.

Before a fork the order is reversed, so that resources taken first are given back last: the environments quiesce all
transactions while everything else stands still. In the child the order is forwards: first the parent's locks are
dropped, then the state that its threads left, then come the environments, which may be used immediately.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Final

ORDER: Final = (
    "locks",  # _host.flock: the child does not share its parent's locks
    "doors",  # _host.directory: held by threads that do not exist in the child
    "departures",  # _host.departures: as doors
    "hands",  # _verbs.hands: items returned by get() belong to the parent
    "blocks",  # _local.transaction
    "unfinished files",  # _lmdb.opening: the child could not open them
    "environments",  # _local.sharing: quiet before, opened anew in the child
    "engines",  # _local.hold: leases belong to the parent
    "couriers",  # aio._courier
    "PostgreSQL blocks",  # postgres._block
    "PostgreSQL connections",  # postgres._database
    "PostgreSQL engines",  # postgres._engine
    "pushes to come",  # integrations._later: pending pushes belong to the parent
)


def _nothing() -> None:
    """Do nothing."""


pid = os.getpid()  # of the process that has begun, by running the steps after a fork if it is a child
life = object()  # this process's own, not a forked child's; compared without a call, which could be interrupted


class _Amid(threading.local):
    """The work of one thread under the lock of a directory."""

    life: object | None = None  # of the process that has the lock; None: there is no such work


amid = _Amid()


class _Part:
    """The functions of one module."""

    def __init__(self, before: Callable[[], object], parent: Callable[[], object], child: Callable[[], object]) -> None:
        self.before = before
        self.parent = parent
        self.child = child


_parts: dict[str, _Part] = {}


def at_fork(
    name: str,
    *,
    before: Callable[[], object] = _nothing,
    in_parent: Callable[[], object] = _nothing,
    in_child: Callable[[], object] = _nothing,
) -> None:
    """Register a module's functions for each fork of this process; ``name``: its place in ``ORDER``."""
    assert name in ORDER
    _parts[name] = _Part(before, in_parent, in_child)


def registered() -> tuple[str, ...]:
    """Return the names of the modules that take part, in their order."""
    return tuple(name for name in ORDER if name in _parts)


def _before() -> None:
    _call([_parts[name].before for name in reversed(registered())])


def _in_parent() -> None:
    if hasattr(_here, "forks"):
        _call([_parts[name].parent for name in registered()])
        _here.__dict__.clear()


def _in_child() -> None:
    global life, pid  # noqa: PLW0603
    if hasattr(_here, "forks") or os.getpid() != pid:
        life = object()
        _call([_parts[name].child for name in registered()])
        pid = os.getpid()
        _here.__dict__.clear()


def notice() -> None:
    """Begin as a child if code in C has forked this process: then Python has run no step, before or after."""
    for _ in range(2 if os.getpid() != pid else 0):  # as below
        _in_child()


def _call(functions: list[Callable[[], object]]) -> None:
    """Call all functions, even if some raise; then raise the last error, which Python prints."""
    try:
        while functions:
            functions.pop(0)()
    finally:
        if functions:
            _call(functions)


# ``forks`` is there from the beginning of a fork until all steps after it have run. Each thread has its own, since
# another may begin a fork meanwhile, and wait in a step before it until this one has ended
_here = threading.local()

os.register_at_fork(before=_before)
os.register_at_fork(before=functools.partial(setattr, _here, "forks", 1))  # a call of C, never interrupted
for _ in range(2):  # the second run only does what an interrupt of the first one has left
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)
