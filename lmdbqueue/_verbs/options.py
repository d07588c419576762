"""What each option may be: a rule for each name, on any engine.

Owns: the rules, and the words of a refusal. Law: a value that an option cannot have is refused at the call, before
anything is done, by its name, with what came and what is allowed: ``TypeError`` for another kind of value,
``ValueError`` for one of that kind. Must not know: what the options do, which depend on each other.

A bool is no number. A whole number may be anything with ``__index__``; seconds are an int or a float.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from lmdbqueue._base.format import is_name
from lmdbqueue._base.values import NEWEST, OLDEST, NamedTuple

_CENTURY: Final = 100 * 365 * 86400.0  # seconds
_MOST: Final = sys.maxsize  # items, or bytes
_NUMBERS: Final = 1 << 63  # beyond all of items, of any priority
_ABOVE_ZERO: Final = sys.float_info.min
_LONGEST_HEADER: Final = 65_535  # bytes
_MOST_THREADS: Final = 10_000


class Rule(NamedTuple):
    """What an option may be."""

    allowed: str  # in words
    types: tuple[type, ...]
    least: float = 0  # of a number
    most: float = 0
    or_none: bool = False
    fits: Callable[[Any], bool | None] | None = None  # instead of bounds; None: it is of another kind


def check(rules: Mapping[str, Rule], /, **given: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` for a value that the rule of its name does not allow."""
    for name, value in given.items():
        rule = rules[name]
        if value is None and rule.or_none:
            continue
        if rule.fits is None and type(value) in rule.types and rule.least <= value <= rule.most:
            continue
        _check(name, rule, value)


def _check(name: str, rule: Rule, value: Any) -> None:
    """Do as ``check``, for what is not just a number within its bounds."""
    fits: bool | None = None
    if isinstance(value, rule.types) or not rule.types:
        fits = rule.least <= value <= rule.most if rule.fits is None else rule.fits(value)
        if isinstance(value, bool) and bool not in rule.types:
            fits = None
    elif int in rule.types and hasattr(type(value), "__index__"):
        fits = rule.least <= operator.index(value) <= rule.most
    if not fits:
        none = ", or None" if rule.or_none else ""
        message = f"{name!r} must be {rule.allowed}{none}, not {value!r:.80}"
        raise TypeError(message) if fits is None else ValueError(message)


def numbers_of(seqs: int | Iterable[int] | None) -> set[int] | None:
    """Return the numbers of items in ``seqs``, None for all; raise for what is none."""
    if seqs is None:
        return None
    some = list(seqs) if isinstance(seqs, Iterable) else [seqs]
    if set(map(type, some)) != {int} or not -_NUMBERS <= min(some) <= max(some) < _NUMBERS:
        for each in some:
            check(VERBS, seqs=each)
    return set(map(operator.index, some))


# --- kinds of options


def whole(what: str, least: int, most: int = _MOST, *, or_none: bool = False) -> Rule:
    """Return the rule of a whole number."""
    above = f"{least} or more" if most == _MOST else f"{least} to {most:,}"
    return Rule(f"{what}, {above}", (int,), least, most, or_none)


def seconds(*, more_than_0: bool = False, most: float = _CENTURY, or_none: bool = False) -> Rule:
    """Return the rule of a time."""
    begin = "a positive" if more_than_0 else "a non-negative"
    end = "a century" if most == _CENTURY else f"{most:g}"
    least = _ABOVE_ZERO if more_than_0 else 0.0
    return Rule(f"{begin} number of seconds, at most {end}", (int, float), least, most, or_none)


def one_of(*values: str) -> Rule:
    """Return the rule of a word."""
    *first, last = map(repr, values)
    return Rule(f"{', '.join(first)} or {last}", (str,), fits=values.__contains__)


def _is_encodable(text: str | bytes) -> bool:
    try:
        return isinstance(text, bytes) or text.encode() is not None
    except UnicodeEncodeError:
        return False


def _are_headers(headers: Mapping[Any, Any]) -> bool | None:
    texts = [each for pair in headers.items() for each in pair]
    if not all(isinstance(each, str) for each in texts):
        return None
    return all(_is_encodable(each) and len(each.encode()) <= _LONGEST_HEADER for each in texts)


def _is_start(where: Any) -> bool | None:
    if isinstance(where, str):
        return where in (OLDEST, NEWEST)
    return 0 <= operator.index(where) < 1 << 63 if hasattr(type(where), "__index__") else None


def _can_stop(stop: Any) -> bool | None:
    return callable(stop) or hasattr(stop, "is_set") or None


FLAG: Final = Rule("True or False", (bool, int), 0, 1)
CALLABLE: Final = Rule("a function", (), fits=lambda value: callable(value) or None)
HOOK: Final = CALLABLE._replace(or_none=True)
TEXT: Final = Rule("a str", (str,), fits=lambda _: True)
PATH: Final = Rule("a path (str or os.PathLike)", (str, os.PathLike), fits=lambda path: "\0" not in str(path))
NAME: Final = Rule("the name of a queue or reader: 1 to 200 bytes of UTF-8 without '/' or NUL", (str,), fits=is_name)
_START: Final = Rule("'oldest', 'newest' or the number of an item", (), fits=_is_start)
_KEY: Final = Rule("a key (str or bytes)", (str, bytes), fits=_is_encodable)
_SEQ: Final = Rule("the number of an item", (int,), -_NUMBERS, _NUMBERS - 1)

# --- the rules


OPENING: Final = {  # a queue of any engine
    "name": NAME,
    "dumps": CALLABLE,
    "loads": CALLABLE,
    "maxsize": Rule("a number of items (0 or less: no limit)", (int,), -_MOST, _MOST),  # as queue.Queue has it
    "max_attempts": whole("a number of leases", 1, or_none=True),
    "expired": one_of("drop", "dead"),
}

VERBS: Final = {
    "items": whole("a number of items", 0),
    "at_least": whole("the number of items to wait for", 1),
    "max_bytes": whole("a number of bytes", 1, or_none=True),
    "linger": seconds(),
    "timeout": seconds(or_none=True),
    "ttl": seconds(more_than_0=True, or_none=True),
    "delay": seconds(),
    "expires": seconds(more_than_0=True, or_none=True),
    "priority": Rule("a whole number from -128 (leaves first) to 127", (int,), -128, 127),
    "headers": Rule(
        f"a mapping of str to str, each at most {_LONGEST_HEADER:,} bytes of UTF-8",
        (Mapping,),
        or_none=True,
        fits=_are_headers,
    ),
    "unique": _KEY._replace(or_none=True),
    "key": _KEY,
    "seq": _SEQ,
    "seqs": _SEQ._replace(allowed="the number of an item, or several numbers"),
    "reason": TEXT,
    "trace": TEXT,
    "max_attempts": whole("a number of leases", 0, or_none=True),
    "name": NAME,
    "start": _START,
    "where": _START,
    "on_error": Rule("'raise', 'skip' or a function", (), fits=lambda x: callable(x) or x in ("raise", "skip")),
    **dict.fromkeys(("all", "block", "blocking", "force", "immediate", "repair", "replace", "signals"), FLAG),
}

WORK: Final = {
    **VERBS,
    "ttl": seconds(more_than_0=True),
    "concurrency": whole("a number of threads or tasks", 1, _MOST_THREADS),
    "stop": Rule("an event or a function", (), or_none=True, fits=_can_stop),
    **dict.fromkeys(("progress", "on_retry", "on_dead"), HOOK),
}

RETAINED: Final = {
    "items": whole("a number of items", 1, or_none=True),
    "bytes": whole("a number of bytes", 1, or_none=True),
    "seconds": seconds(more_than_0=True, or_none=True),
}
