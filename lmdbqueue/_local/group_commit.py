"""Several calls in one transaction.

Owns: the fate of each call when several share a commit. Law: a call takes effect once or not at all, and one that
raises does not affect its neighbours. Must not know: LMDB, who waits for the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock, get_ident
from typing import Any
from weakref import ref

from lmdbqueue._base.errors import CommitUnknownError, Full, NestedCallError, QueueError
from lmdbqueue._lmdb.failures import Doubtful, Superseded, came_after_the_commit, may_be_of_a_handler
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._lmdb.snapshot import Ref, forget_frames, is_open, undo


class Call:
    """A function of a write transaction that is waiting to be run, and then its outcome.

    ``fn(txn, tables, *args)`` returns what it changed; a falsy result means that it changed nothing. It checks before
    it writes: if it raises ``Full`` it has written nothing. ``room``: the most bytes of pages that it adds.
    """

    __slots__ = ("args", "done", "error", "fn", "generation", "ref", "result", "room", "thread", "transaction", "turn")

    def __init__(self, ref: Ref, fn: Callable[..., Any], args: tuple[Any, ...], room: int = 0) -> None:
        self.ref = ref
        self.fn = fn
        self.args = args
        self.room = room
        self.thread = get_ident()
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.generation: Generation | None = None  # in which it was run, until that is durable
        self.transaction = 0  # the transaction it was part of, or that it saw
        self.turn: Lock | None = None  # released when the call is done, or its caller is to lead; set by ``await_turn``

    def await_turn(self, seconds: float) -> None:
        """Wait to be woken; the first call only prepares that, so that the caller checks once more."""
        if self.turn is None:
            turn = Lock()
            turn.acquire()
            self.turn = turn
        else:
            self.turn.acquire(timeout=seconds)

    def wake(self) -> None:
        """Notify the caller, which may be waiting for its turn."""
        if self.turn is not None:
            try:  # noqa: SIM105  (suppress() costs 0.4 us)
                self.turn.release()
            except RuntimeError:  # already woken
                pass

    def secure(self) -> None:
        """Wait until what the call did, or saw, is on the disk. Raises ``CommitUnknownError``."""
        if self.generation is not None:
            self.generation.secure(self.transaction)

    def outcome(self) -> Any:
        """Return the result of a call that is done, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.result


def run(generation: Generation, calls: Sequence[Call], *, again: bool = True) -> None:
    """Run the calls that are not done in one transaction, commit it and flush; mark each ``done``.

    They are done before the flush, so that an interrupt during it undoes nothing. A call that still has a
    ``generation`` is not known to be durable: its caller has to ``secure`` it, and gets the error if that fails. A call
    that raises ``Full`` does not affect the others. After any other error the transaction is undone, and each call gets
    one of its own, so that only the culprit fails; an error that none of them raises then came from a signal handler,
    and is raised here. With ``again``, a call that finds the disk full is run once more if free pages may be available
    for it.
    """
    calls = [call for call in calls if not call.done]
    if not calls:
        return
    try:
        _run(generation, calls)
    except (Superseded, Doubtful, RecursionError):  # RecursionError concerns this thread's depth
        raise
    except Exception as error:  # passed to the callers concerned
        if calls[0].generation is not None:  # it was committed, and then a signal handler raised
            raise
        if not _run_each(generation, calls, error, again=again):
            _give_up(generation, calls, error, again=again)
    else:
        _secure(generation, calls)


def _run_each(generation: Generation, calls: Sequence[Call], error: Exception, *, again: bool) -> bool:
    """Run each call alone, if the error may belong to one of several; return whether it may.

    An error that none of them raises then is raised here: it came from outside, as from a signal handler.
    """
    may_be_of_none = may_be_of_a_handler(error)
    is_of_another = again and may_be_of_none and calls[0].thread != get_ident()
    if not is_of_another and (len(calls) == 1 or isinstance(error, CommitUnknownError)):
        return False
    for call in calls:
        run(generation, [call], again=again and not is_of_another)
    if may_be_of_none and not any(isinstance(call.error, type(error)) for call in calls):
        raise error
    return True


def _give_up(generation: Generation, calls: Sequence[Call], error: Exception, *, again: bool) -> None:
    """Pass an error to the callers, unless the disk was full and may have room now."""
    explained = generation.explain(error, "writing")
    if again and isinstance(explained, Full) and _may_have_room(generation):
        run(generation, calls, again=False)
        return
    if isinstance(explained, Superseded):
        raise explained from error
    _refuse(calls, explained)


def _may_have_room(generation: Generation) -> bool:
    """Return whether free pages may be had now. What keeps them from being had is no error of the calls around it."""
    try:
        return generation.renew()
    except NestedCallError:  # of a signal's handler: nothing in here makes a call amid another
        raise
    except QueueError:
        return False


def _run(generation: Generation, calls: Sequence[Call]) -> None:
    transaction = 0
    txn: Any = generation.begin("writing")  # None: it was undone
    try:
        transaction = generation.stamp(txn) - 1  # the transaction that it sees
        changed = False
        if len(calls) > 1:
            generation.content.enter_group()
        for call in calls:
            call.error = None
            try:
                if call.room:
                    generation.make_room(txn, call.room)
                call.result = call.fn(txn, generation.table_to_write(call.ref), *call.args)
                if call.result:
                    changed = True
            except Full as error:
                call.error = error
                forget_frames(error)  # which keep the transaction
        if changed:
            transaction += 1
            generation.commit(txn)
        else:
            left, txn = ref(txn), None
            undo(left)
        _finish(calls, generation, transaction)
    except BaseException as error:
        if txn is not None and is_open(txn):
            left, txn = ref(txn), None
            undo(left)
        elif came_after_the_commit(error):
            _finish_interrupted(generation, calls, transaction)
        raise


def _finish_interrupted(generation: Generation, calls: Sequence[Call], transaction: int) -> None:
    """Mark calls done whose transaction has ended, when something else than its own error was raised, as an interrupt.

    It counts, for all of them; unless the commit failed, and this came amid the look at what that left.
    """
    if generation.is_broken:
        _refuse(calls, CommitUnknownError(generation.path, "commit", "interrupted when it had failed"))
    else:
        _finish(calls, generation, transaction)


def _secure(generation: Generation, calls: Sequence[Call]) -> None:
    """Bring the transaction of the calls to the disk, so that their callers need not."""
    try:
        generation.secure(calls[0].transaction)
    except QueueError:  # each caller will get the error itself
        return
    for call in calls:
        call.generation = None


def _refuse(calls: Iterable[Call], error: Exception) -> None:
    for call in calls:
        call.error = error
    _finish(calls, None, 0)


def _finish(calls: Iterable[Call], generation: Generation | None, transaction: int) -> None:
    for call in calls:
        call.generation = generation
        call.transaction = transaction
        call.done = True
