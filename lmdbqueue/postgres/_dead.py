"""Dead letters: items that nobody is handed any more, until they are told to wait again.

Owns: how they are read, requeued and forgotten. Law: an item that waits again has its place, and no attempts. Must not
know: why items die.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

from lmdbqueue._format import Note
from lmdbqueue._values import Entry
from lmdbqueue.postgres._items import BROWSE_BYTES, Place, pack, tell
from lmdbqueue.postgres._step import Step

_LETTERS: Final = """
SELECT seq, payload, attempts, reason, extract(epoch FROM changed)::float8 FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY seq) - octet_length(payload) AS before
    FROM (SELECT * FROM {items} WHERE queue = %(queue)s AND state = 3 AND seq >= %(seq)s
          ORDER BY seq LIMIT 1000) AS next) AS page
WHERE before < %(size)s ORDER BY seq
"""
_REQUEUE: Final = "UPDATE {items} SET state = 0, attempts = 0, reason = NULL, changed = NULL "
_FORGET: Final = "DELETE FROM {items} "
_ALL: Final = "WHERE queue = %(queue)s AND state = 3"
_ONLY: Final = """WHERE ctid = ANY(ARRAY(
    SELECT (SELECT ctid FROM {items} WHERE queue = %(queue)s AND state = 3 AND seq = wanted.seq)
    FROM unnest(%(seqs)s::bigint[]) AS wanted (seq))) AND state + 0 = 3"""
_SIZES: Final = " RETURNING octet_length(payload)"


def since(step: Step, place: Place, seq: int) -> list[tuple[Entry, Note]]:
    """Return some dead letters from number ``seq`` on; none only if there are none."""
    rows = step.execute(_LETTERS, queue=place.id, seq=seq, size=BROWSE_BYTES).fetchall()
    return [
        (
            (pack(number), payload),
            _note(attempts, reason, changed),
        )
        for number, payload, attempts, reason, changed in rows
    ]


def requeue(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Return dead letters, all or those of ``seqs``, to their places in the queue; return their number."""
    sizes = _of_the_dead(step, place, _REQUEUE, seqs)
    if sizes:
        step.count(place.id, dead=-len(sizes), waiting=len(sizes), size=sum(sizes))
        tell(step, place)
    return len(sizes)


def forget(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Remove the dead, all or those of ``seqs``; return how many there were."""
    sizes = _of_the_dead(step, place, _FORGET, seqs)
    if sizes:
        step.count(place.id, dead=-len(sizes))
    return len(sizes)


def _of_the_dead(step: Step, place: Place, statement: Any, seqs: Iterable[int] | None) -> list[int]:
    if seqs is None:
        rows = step.execute(statement + _ALL + _SIZES, queue=place.id).fetchall()
    else:
        rows = step.execute(statement + _ONLY + _SIZES, queue=place.id, seqs=sorted(seqs)).fetchall()
    return [size for (size,) in rows]


def _note(attempts: int, reason: bytes | None, changed: float | None) -> Note:
    why, _, trace = (reason or b"").decode(errors="replace").partition("\0")
    return Note(attempts, time=int((changed or 0) * 1e9), reason=why, trace=trace)
