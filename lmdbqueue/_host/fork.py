"""Forks: what each module does before one, and in the child, and in which order.

Owns: the one ``os.register_at_fork``. Law: the order stands in ``ORDER`` and not in that of imports; what fails in one
module keeps no other from its part.

An interrupt may come anywhere, and Python forks all the same. So what is done after a fork may be done twice.

Before a fork the order is backwards, so that what is given back last was taken first: the environments let no
transaction be open while everything else stands still. In the child it is forwards: locks of the parent go first,
then what its threads were amid, then the environments, which may be used at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Final

ORDER: Final = (
    "locks",  # _host.flock: the child has no part in its parent's
    "doors",  # _host.directory: held by threads that the child does not have
    "departures",  # _host.departures: as doors
    "hands",  # _verbs.hands: what get() gave out is the parent's
    "blocks",  # _local.transaction
    "environments",  # _local.sharing: quiet before, opened anew in the child
    "engines",  # _local.hold: what is leased is the parent's
    "couriers",  # aio._courier
    "PostgreSQL blocks",  # postgres._block
    "PostgreSQL connections",  # postgres._database
    "PostgreSQL engines",  # postgres._engine
    "pushes to come",  # integrations._later: they are the parent's
)


def _nothing() -> None:
    """Do nothing."""


class _Part:
    """What one module does."""

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
    """Have a module's functions called at each fork of this process; ``name``: its place in ``ORDER``."""
    assert name in ORDER
    _parts[name] = _Part(before, in_parent, in_child)


def registered() -> tuple[str, ...]:
    """Return the names of the modules that take part, in their order."""
    return tuple(name for name in ORDER if name in _parts)


def _before() -> None:
    _call([_parts[name].before for name in reversed(registered())])


def _in_parent() -> None:
    if _under_way:
        _call([_parts[name].parent for name in registered()])
        _under_way.clear()


def _in_child() -> None:
    if _under_way:
        _call([_parts[name].child for name in registered()])
        _under_way.clear()


def _call(functions: list[Callable[[], object]]) -> None:
    """Call all of them, whatever any of them raises; then raise the last of that, which Python prints."""
    try:
        while functions:
            functions.pop(0)()
    finally:
        if functions:
            _call(functions)


_under_way: list[int] = []  # something, from the beginning of a fork until all was done after it

os.register_at_fork(before=_before)
os.register_at_fork(before=functools.partial(_under_way.append, 1))  # a call of C, which nothing interrupts
for _ in range(2):  # the second time only what an interrupt has left, which may come as the first one begins
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)
