"""Several calls in one transaction.

Owns: what becomes of each call when they share a commit. Law: a call takes effect once or not at all,
and one that raises does not spoil its neighbours. Must not know: LMDB, who waits for the calls.
"""

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from lmdbqueue._errors import CommitUnknownError, Full
from lmdbqueue._generation import Doubtful, Generation, Superseded, is_open


class Call:
    """A function of a write transaction that waits to be run, and then how it ended.

    ``fn(txn, tables, *args)`` returns what it changed; an empty answer says that it changed nothing.
    It looks before it writes: when it raises ``Full`` it has written nothing. ``room``: the bytes of
    pages that it adds at the most.
    """

    __slots__ = ("args", "done", "error", "fn", "generation", "name", "result", "room", "transaction", "turn")

    def __init__(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], room: int = 0) -> None:
        self.name = name
        self.fn = fn
        self.args = args
        self.room = room
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.generation: Generation | None = None  # that it was run in
        self.transaction = 0  # that it took part in, or that it saw
        self.turn = Lock()  # let go when the call is done, or its caller shall lead
        self.turn.acquire()

    def wake(self) -> None:
        """Tell the caller, who may wait for its turn."""
        try:  # noqa: SIM105  (suppress() costs 0.4 us)
            self.turn.release()
        except RuntimeError:  # told before
            pass

    def is_durable(self) -> bool:
        """Tell whether what the call did, or saw, is known to be on the disk."""
        return self.generation is None or self.generation.is_secured(self.transaction)

    def secure(self) -> None:
        """Return when what the call did, or saw, is on the disk. Raises ``CommitUnknownError``."""
        if self.generation is not None:
            self.generation.secure(self.transaction)

    def outcome(self) -> Any:
        """Return the result of a call that is done, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.result


def run(generation: Generation, calls: Sequence[Call], *, again: bool = True) -> None:
    """Run the calls that are not done in one transaction and commit it; mark each ``done``. Not durable yet.

    A call that raises ``Full`` leaves the others alone. When anything else is raised the transaction
    is undone, and each call gets one of its own, so that only the culprit fails. With ``again`` a call
    that finds the disk full is run once more if free pages may be had for it then.
    """
    calls = [call for call in calls if not call.done]
    try:
        _run(generation, calls)
    except (Superseded, Doubtful):
        raise
    except Exception as error:  # it goes to the callers that it belongs to
        if len(calls) > 1 and not isinstance(error, CommitUnknownError):
            for call in calls:
                run(generation, [call])
            return
        explained = generation.explain(error, "writing")
        if again and isinstance(explained, Full) and generation.renew():
            run(generation, calls, again=False)
            return
        if isinstance(explained, Superseded):
            raise explained from error
        for call in calls:
            call.error = explained
        _finish(calls, None, 0)


def _run(generation: Generation, calls: Sequence[Call]) -> None:
    transaction = 0
    txn = generation.begin("writing")
    try:
        transaction = generation.stamp(txn) - 1  # what it sees
        changed = False
        for call in calls:
            call.error = None
            try:
                if call.room:
                    generation.make_room(txn, call.room)
                call.result = call.fn(txn, generation.table(call.name), *call.args)
                changed = bool(call.result) or changed
            except Full as error:
                call.error = error
        if changed:
            transaction += 1
            generation.commit(txn)
        else:
            txn.abort()
    except BaseException as error:
        if is_open(txn):
            txn.abort()
        elif not isinstance(error, Exception):  # interrupted after the end: it counts
            _finish(calls, generation, transaction)
        raise
    _finish(calls, generation, transaction)


def _finish(calls: Iterable[Call], generation: Generation | None, transaction: int) -> None:
    for call in calls:
        call.generation = generation
        call.transaction = transaction
        call.done = True
