"""Dead letters: items that no consumer gets any more, until they are requeued.

Owns: how they are read, requeued and removed. Law: a requeued item has its old place, and no attempts; it gets its
unique key back, which others may use while it is dead, or stays dead while another item has the key. Must not know: why
items die.
"""

from collections.abc import Collection
from typing import Any, Final

from lmdbqueue._base.format import Note, Trailer
from lmdbqueue._base.values import Entry
from lmdbqueue.postgres import _positions, _readers
from lmdbqueue.postgres._items import BROWSE_BYTES, Place, pack, tell, trailer_of, with_keys
from lmdbqueue.postgres._step import Step

_LETTERS: Final = """
SELECT seq, payload, attempts, reason, extract(epoch FROM changed)::float8,
    (extract(epoch FROM pushed_at) * 1000000)::bigint, headers FROM (
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
_KEYS: Final = "SELECT seq, key FROM {items} "
_WITH_KEYS: Final = " AND key IS NOT NULL ORDER BY seq"
_OTHERS: Final = " AND seq <> ALL(%(staying)s::bigint[])"
_SIZES: Final = " RETURNING octet_length(payload), seq"


class Letter(tuple[bytes, bytes]):  # noqa: SLOT001  (a tuple cannot have slots)
    """An entry of a dead letter with all its facts, so that nothing has to be asked again within an event loop."""

    trailer: Trailer


def since(step: Step, place: Place, seq: int) -> list[tuple[Entry, Note]]:
    """Return some dead letters from number ``seq`` on; an empty list only if there are no more."""
    rows = step.execute(_LETTERS, queue=place.id, seq=seq, size=BROWSE_BYTES).fetchall()
    letters: list[tuple[Entry, Note]] = []
    for number, payload, attempts, reason, changed, pushed_at, headers in rows:
        entry = Letter((pack(number), payload))
        entry.trailer = trailer_of(pushed_at, headers)
        letters.append((entry, _note(attempts, reason, changed)))
    return letters


def requeue(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Return dead letters, all or those of ``seqs``, to their places in the queue; return their number.

    One whose unique key another item has by now stays dead.
    """
    _positions.lock_tail(step, place.id)  # so that no key is pushed meanwhile
    staying = _without_key(step, place, seqs)
    back = _of_the_dead(step, place, _REQUEUE, seqs, _OTHERS + _SIZES, staying=staying)
    if back:
        step.count(place.id, dead=-len(back), waiting=len(back), size=sum(size for size, _ in back))
        rows = step.execute(_positions.LOCK, queue=place.id).fetchall()
        _readers.push_anew_behind(step, place, [seq for _, seq in back], rows)
        tell(step, place)
    return len(back)


def forget(step: Step, place: Place, seqs: Collection[int] | None) -> int:
    """Remove dead letters, all or those of ``seqs``; return their number."""
    gone = len(_of_the_dead(step, place, _FORGET, seqs, _SIZES))
    if gone:
        step.count(place.id, dead=-gone)
    return gone


def _without_key(step: Step, place: Place, seqs: Collection[int] | None) -> list[int]:
    """Return the dead letters whose unique key another item has, or an earlier one of them gets."""
    rows = _of_the_dead(step, place, _KEYS, seqs, _WITH_KEYS)
    held = set(with_keys(step, place, [key for _, key in rows]))
    staying = []
    for seq, key in rows:
        if key in held:
            staying.append(seq)
        held.add(key)
    return staying


def _of_the_dead(
    step: Step, place: Place, statement: Any, seqs: Collection[int] | None, rest: Any, **values: Any
) -> list[Any]:
    """Return the rows of a statement about dead letters, all or those of ``seqs``."""
    if seqs is None:
        return step.execute(statement + _ALL + rest, queue=place.id, **values).fetchall()
    return step.execute(statement + _ONLY + rest, queue=place.id, seqs=sorted(seqs), **values).fetchall()


def _note(attempts: int, reason: bytes | None, changed: float | None) -> Note:
    why, _, trace = (reason or b"").decode(errors="replace").partition("\0")
    return Note(attempts, time=int((changed or 0) * 1e9), reason=why, trace=trace)
