"""When what was pushed: a sparse record of times, and of what the tail was then.

Owns: the record ``times``. Law: what a mark says was so, whatever steps a clock makes; pushes make some at most
once a second, and there are few of them, however old the items are. Must not know: clocks (it is told the
time), what is done with what it tells.

Items carry no time. A *mark* says that the tail was so much at a time, so an item whose number is between the tails of
two marks was pushed between their times: that is the *window* of the item, and its resolution.

Making marks. A push that comes a second or more (``_interval``) after the newest mark makes two: that nothing had come
from the end of that second on, and what the tail is now, before it appends. So a window in which items came is a
second long, however seldom somebody pushes. A process remembers when the newest mark was made, as soon as that is
committed, so most pushes do not even look.

Thinning. A mark goes if the window without it is at most two seconds, or an eighth of the age of its end. So their
number grows with the logarithm of the age: some 120 for a day, 200 for a year, 16 bytes each. With a limit of time
(``retain``) a window is a 64th of that at most. What is older than everything that the queue has goes, too.

Clocks. Marks are on the wall clock, which outlives a reboot. The newest is also on the monotonic clock, with the
boot that this belongs to: within a boot all ages are measured on that, and when the wall clock was stepped all marks
are moved with it. So neither a step nor the pause of a suspended machine ages an item. Over a reboot the wall clock
is believed, but not that it was later before: then the time in between counts as none.
"""

from struct import Struct
from typing import Final, NamedTuple

from lmdbqueue import _format
from lmdbqueue._format import away, pack
from lmdbqueue._lmdb.generation import Tables, Txn
from lmdbqueue._model import item_notes, weighed_records
from lmdbqueue._values import Moment

_INTERVAL: Final = 10**9  # ns
_PART: Final = 8  # of an age, that a window may be
_PART_OF_RETENTION: Final = 64
_HEADER: Final = Struct(">16sQ")
_MARK: Final = Struct(">qQ")  # a clock may be stepped to the very beginning
_FIRST: Final = pack(0)


class Mark(NamedTuple):
    """At ``time`` (ns, wall clock) the tail was ``tail``: smaller numbers were given before, all others after."""

    time: int
    tail: int


class _Record(NamedTuple):
    marks: list[Mark]
    is_of_this_boot: bool


def appended(txn: Txn, queue: Tables, first: int, now: Moment, age: int | None) -> None:
    """Note when the numbers from ``first`` on were given, unless a mark tells. ``age``: limit of what is kept, ns."""
    generation = queue.generation
    latest = generation.marking.get(queue.name) or generation.marked.get(queue.name)
    if latest is not None and now.monotonic - latest < (_INTERVAL if age is None else _interval(age)):
        return
    before = _read(txn, queue, now)
    if before.marks and before.is_of_this_boot and now.wall - before.marks[-1].time < _interval(age):
        generation.marking[queue.name] = now.monotonic - (now.wall - before.marks[-1].time)
    else:
        mark(txn, queue, first, now, age)


def mark(txn: Txn, queue: Tables, tail: int, now: Moment, age: int | None) -> None:
    """Make a mark; ``age``, in ns, was the limit of what is kept since the one before."""
    marks = _read(txn, queue, now).marks
    if marks:
        late = max(0, marks[-1].time - now.wall)  # it has waited for its turn, and another has made a mark meanwhile
        now = Moment(now.monotonic + late, now.wall + late)
        marks.append(_end(marks[-1], tail, now, age))
    marks = thinned([*marks, Mark(now.wall, tail)], now.wall, age)
    oldest = _oldest(txn, queue, tail)
    before = sum(each.tail <= oldest for each in marks)  # of these only the last is needed
    data = b"".join(_MARK.pack(*each) for each in marks[max(0, before - 1) :])
    weighed_records.put_sealed(txn, queue, queue.times, _HEADER.pack(queue.generation.boot, now.monotonic) + data)
    queue.generation.marking[queue.name] = now.monotonic


def tail_before(txn: Txn, queue: Tables, tail: int, now: Moment, age: int) -> int:
    """Return what the tail was ``age`` ns ago, the limit of what is kept, or a 64th before; 0 if nothing is known."""
    marks = _read(txn, queue, now).marks
    if marks:
        marks.append(_end(marks[-1], tail, now, age))
    return max((each.tail for each in marks if each.time <= now.wall - age), default=0)


def longest_wait(txn: Txn, queue: Tables, now: Moment) -> int | None:
    """Return for how long, in ns, the item has waited at most that has waited longest; None: no item, or not known.

    An item that had a delay waits since it was due, any other since it was pushed, wherever it was meanwhile.
    """
    marks = _read(txn, queue, now).marks

    def pushed(number: int) -> int | None:
        return max((each.time for each in marks if each.tail <= number), default=None)

    found: list[int | None] = []
    with txn.cursor(queue.items) as cursor:
        if cursor.set_range(_FIRST + b"\0") and (due := _format.due(cursor.key())):
            found.append(max(due, pushed(_format.number(cursor.key())) or due))  # a clock may have been stepped since
    if (number := _first_waiting(txn, queue)) is not None:
        found.append(pushed(number))
    known = [each for each in found if each is not None]
    return max(0, now.wall - min(known)) if known and len(known) == len(found) else None


def thinned(marks: list[Mark], now: int, age: int | None) -> list[Mark]:
    """Return the marks without those that nobody misses; the first and the last stay."""
    kept: list[Mark] = []
    for each in marks:
        while len(kept) > 1 and each.time - kept[-2].time <= _window(now - each.time, age):
            kept.pop()
        kept.append(each)
    return kept


def _window(since: int, age: int | None) -> int:
    """Return how long a window may be that ended ``since`` ns ago."""
    longest = max(2 * _INTERVAL, since // _PART)
    return longest if age is None else min(longest, age // _PART_OF_RETENTION)


def _interval(age: int | None) -> int:
    """Return how long after a mark no other is made, in ns."""
    return _INTERVAL if age is None else min(_INTERVAL, age // (2 * _PART_OF_RETENTION))


def _end(newest: Mark, tail: int, now: Moment, age: int | None) -> Mark:
    """Return what is so since no mark came after the newest, though the tail is ``tail`` now."""
    return Mark(min(newest.time + _interval(age), now.wall), tail)


def _read(txn: Txn, queue: Tables, now: Moment) -> _Record:
    """Return the marks as of today's wall clock. A damaged record counts as none."""
    value = txn.get(queue.times, db=queue.meta)
    data = None if value is None else weighed_records.opened(queue, queue.times, value)
    if not data:
        return _Record([], is_of_this_boot=False)
    size = len(data) % _MARK.size and _HEADER.size  # none in those that were written for a retention only
    marks = [Mark(*each) for each in _MARK.iter_unpack(data[size:])]
    boot, monotonic = _HEADER.unpack_from(data) if size else (b"", 0)
    is_of_this_boot = bool(queue.generation.boot) and boot == queue.generation.boot
    newest = now.wall - (now.monotonic - monotonic) if is_of_this_boot else min(now.wall, marks[-1].time)
    step = newest - marks[-1].time
    if step:
        marks = [Mark(each.time + step, each.tail) for each in marks]
    return _Record(marks, is_of_this_boot)


def _oldest(txn: Txn, queue: Tables, tail: int) -> int:
    """Return the smallest number that waits, or is leased or dead and may wait again; ``tail`` if there is none."""
    found = [tail]
    counts = item_notes.counts(txn, queue)
    for kind, there in (("leased", counts.leased), ("dead", counts.dead)):
        if there:
            with txn.cursor(queue.away) as cursor:
                cursor.set_range(away(queue.name, kind))
                found.append(_format.number(cursor.key()))
    if (number := _first_waiting(txn, queue)) is not None:
        found.append(number)
    return min(found)


def _first_waiting(txn: Txn, queue: Tables) -> int | None:
    """Return the smallest number of what waits and had no delay."""
    with txn.cursor(queue.items) as cursor:
        if cursor.first() and cursor.key() == _FIRST:
            return 0
        return _format.number(cursor.key()) if cursor.set_range(pack(1)) else None
