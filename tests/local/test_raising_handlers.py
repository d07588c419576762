"""Handlers of signals that raise an ``Exception``, as those of an alarm do: it may come anywhere, as an interrupt may.

It is no error of the call that it comes amid: it goes through, and what that call did is done once, or not at all.
"""

import errno
import fcntl
import inspect
import itertools
import os
import resource
import signal
import sys
import threading
from contextlib import suppress

import lmdb
import pytest
from processes import Moments, eventually

from lmdbqueue import CommitUnknownError, Empty, LeaseExpiredError, NestedCallError, PersistentQueue, StorageError
from lmdbqueue._base.format import pack
from lmdbqueue._host.bell import Bell
from lmdbqueue._host.disk import translated
from lmdbqueue._lmdb import durability, generation, preallocation
from lmdbqueue._local import group_commit
from lmdbqueue._local.group_commit import Call
from lmdbqueue._local.relay import relay
from lmdbqueue._model import leases, pushing
from lmdbqueue._model.dead_letters import Return

FAST = {"durability": "off"}


class Late(Exception):
    """What an alarm raises."""


RAISED = {
    "of the program": Late(),
    "TimeoutError": TimeoutError(),
    "KeyError": KeyError(),
    "a nested call": NestedCallError("queue"),
}


def _pop(queue):
    return [queue.pop()]


def _push(queue):
    queue.push("e")
    return []


def _lease(queue):
    return queue.lease(1)


def _relay(queue):
    return relay(queue, held[0])


held = []  # the lease that is relayed


def _block(queue):
    with queue.transaction():
        return [queue.pop()]


VERBS = {"pop": _pop, "push": _push, "lease": _lease, "relay": _relay, "block": _block}


@pytest.mark.parametrize("error", RAISED)
@pytest.mark.parametrize("verb", VERBS)
def test_what_a_handler_raises_goes_through_the_call_which_is_done_once_or_not_at_all(open_queue, verb, error):
    queue = open_queue(**FAST)

    def raise_():
        raise RAISED[error]

    for number in itertools.count(1, 1 if verb in ("pop", "push") else 3):
        queue.clear(all=True)
        queue.push(["y", "z", "a", "b", "c", "d"])
        held[:] = [queue.lease()]
        queue.pop()  # so that the next one knows which is the first
        if verb != "relay":
            held[0].ack()
        moments = Moments(number, raise_)
        got = None
        try:
            with moments:
                got = VERBS[verb](queue)
        except type(RAISED[error]):
            assert moments.left == 0
        else:
            assert moments.left > 0, f"swallowed at moment {number}"
        left, whole = list(queue), ["a", "b", "c", "d"]
        done = [*whole, "e"] if verb == "push" else whole[1:]
        if verb in ("lease", "relay"):  # what nobody got is not held back
            assert left == (whole if got is None else done), f"at moment {number}"
            assert got is None or got.items == ["a"], f"at moment {number}"
            with suppress(LeaseExpiredError):
                held[0].nack()  # if it was not relayed
            assert queue.stats().leased == (got is not None)
        else:
            assert left in ([done] if got is not None else [whole, done]), f"at moment {number}"
            assert got in (None, [], ["a"])
            assert queue.stats().leased == 0
        assert not queue._engine.claims
        other = threading.Thread(target=queue.push, args=("more",), daemon=True)  # no lock was left behind
        other.start()
        other.join(10)
        assert not other.is_alive(), f"at moment {number}"
        if moments.left > 0:
            break
    assert number > 10


def test_a_call_in_a_handler_that_fails_gives_back_nothing_of_the_call_it_came_amid(open_queue):
    queue = open_queue(**FAST)

    def fail():
        with pytest.raises((Empty, NestedCallError)):
            queue.lease(blocking=True, timeout=0)

    for number in itertools.count(1, 3):
        queue.clear(all=True)
        queue.push("a")
        moments = Moments(number, fail)
        try:
            with moments:
                lease = queue.lease()
        except pytest.fail.Exception:
            continue  # it got the item before the other
        lease.ack()
        if moments.left > 0:
            break
    assert number > 10


def test_a_lease_that_was_not_committed_is_not_mistaken_for_that_of_another_thread(open_queue):
    """They have the same token."""
    queue = open_queue(**FAST)
    engine = queue._engine
    queue.push(["a", "b"])
    lease = queue.lease()
    for thread, owner in ((0, engine.owners.mine), (threading.get_ident(), 0)):
        engine.claims[lease._token] = thread
        arguments = (lease._token, owner, engine.claims, threading.get_ident(), Return(0))
        assert engine.environment.update(engine.ref, leases.forsake, *arguments) is None
    engine.claims.clear()
    engine.claims[lease._token + 1] = threading.get_ident()  # as of a transaction that was undone
    engine.forsake(())
    assert not engine.claims
    lease.ack()
    assert list(queue) == ["b"]


def test_what_a_handler_raises_lets_go_of_what_a_block_holds(queue):
    """A step of the end that was not begun is taken all the same."""
    for number in itertools.count(1):
        error = Late()

        def raise_(error=error):
            raise error

        moments = Moments(number, raise_)
        try:
            with moments, queue._engine.environment.exclusive():
                pass
        except Late:
            assert moments.left == 0
        other = threading.Thread(target=queue.push, args=("more",), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), f"at moment {number}"
        if moments.left > 0:
            break
    assert number > 10


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
@pytest.mark.parametrize("n", [1, 4])
def test_what_a_handler_raises_in_a_leader_is_for_the_leader_and_no_call_is_done_twice(queue, monkeypatch, n, when):
    """The main thread runs the calls of others, too, and a signal comes to it."""
    environment, generation = queue._engine.environment, queue._engine.environment._generation
    real, raised = generation._commit, []

    def commit(txn):
        if when == "after the commit":
            real(txn)
        if not raised:
            raised.append(threading.get_ident())
            raise Late
        if when == "before the commit":
            real(txn)

    errors = {}

    def push(item):
        try:
            queue.push(item)
        except Late:
            errors[threading.get_ident()] = item

    threads = [threading.Thread(target=push, args=(item,), daemon=True) for item in range(n)]
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_commit", commit)
        with environment._writer:
            environment._is_writing = True  # so that they go to the line
            for number, thread in enumerate(threads, 1):
                thread.start()
                eventually(lambda number=number: len(environment._line) == number)
            environment._is_writing = False
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert list(errors) == raised  # once, where it came
    done = sorted(queue)
    assert done == sorted(set(done)), "one was pushed twice"
    assert set(range(n)) - set(done) <= set(errors.values())


@pytest.mark.parametrize("error", [Late, KeyboardInterrupt])
def test_calls_that_were_committed_together_are_not_done_again_by_the_next_leader(open_queue, monkeypatch, error):
    """It comes as they are to be marked as done."""
    queue = open_queue(**FAST)
    generation, ref = queue._engine.environment._generation, queue._engine.ref
    calls = [Call(ref, pushing.push, ([queue.dumps(item)], pack(1), None, 1)) for item in range(3)]
    real, raised = group_commit._finish, []

    def finish(*args):
        if not raised:
            raised.append(args)
            raise error
        real(*args)

    monkeypatch.setattr(group_commit, "_finish", finish)
    with queue._engine.environment._writer:
        with pytest.raises(error):
            group_commit.run(generation, calls)
        group_commit.run(generation, calls)
    assert sorted(queue) == [0, 1, 2]


def test_an_alarm_ends_the_wait_for_the_turn_of_another_process(open_queue, monkeypatch):
    """A TimeoutError is an OSError, and none of the system's."""
    queue = open_queue(**FAST)
    generation = queue._engine.environment._generation
    monkeypatch.setattr(generation._session, "is_shared", lambda: True)
    fd = os.open(generation.path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as who is writing

    def alarm(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, alarm)
    guard = threading.Timer(10, os.close, (fd,))  # so that this fails, and does not hang
    guard.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(TimeoutError):
            queue.push("a")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert guard.is_alive()
    guard.cancel()
    os.close(fd)
    assert queue.count() == 0
    assert queue.push("b") == 0


def _shared(queue, fn):
    """Return two calls in a group, of which this thread makes one."""
    calls = [Call(queue._engine.ref, fn, ()) for _ in range(2)]
    calls[1].thread = 0
    return calls


def test_a_handler_amid_the_look_at_what_a_failed_commit_left_lets_no_call_that_shared_it_seem_done(
    open_queue, monkeypatch
):
    queue = open_queue(**FAST)
    environment = queue._engine.environment

    def look(_):
        raise Late

    monkeypatch.setattr(durability.Durable, "_can_be_read", look)
    mine, other = _shared(queue, lambda txn, tables: txn.put(b"key", b"value", db=tables.items))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with environment._writer, pytest.raises(Late):
            environment._run([mine, other])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(CommitUnknownError):
        other.outcome()
    monkeypatch.undo()
    assert queue.count() == 0
    assert queue.push("after") == 0


def test_a_nested_call_amid_the_search_for_room_goes_through(open_queue, monkeypatch):
    def is_full(*_):
        raise lmdb.Error(os.strerror(errno.ENOSPC))

    def renew(_):
        raise NestedCallError("queue")

    queue = open_queue(**FAST)
    environment = queue._engine.environment
    monkeypatch.setattr(generation.Generation, "renew", renew)
    with environment._writer, pytest.raises(NestedCallError):
        environment._run([Call(queue._engine.ref, is_full, ())])


def test_an_alarm_as_a_wait_begins_is_not_lost(tmp_path):
    """It takes the first waiter of a process some ms to have the bell watched."""

    def alarm():
        raise TimeoutError

    for number in itertools.count(1):
        bell = Bell(str(tmp_path / "bell"))
        moments = Moments(number, alarm)
        try:
            with moments:
                bell.listen()
        except TimeoutError:
            assert moments.left == 0
        else:
            assert moments.left > 0, f"swallowed at moment {number}"
        bell.forget()
        if moments.left > 0:
            break
    assert number > 10


def test_an_alarm_as_a_file_grows_is_no_want_of_room(open_queue, monkeypatch):
    queue = open_queue(**FAST)
    real, alarms = preallocation.allocate, [TimeoutError()]

    def allocate(*args):
        if alarms:
            raise alarms.pop()
        real(*args)

    monkeypatch.setattr(preallocation, "allocate", allocate)
    with pytest.raises(TimeoutError):
        queue.push("a" * (1 << 20))
    assert queue.push("b") == 0


def test_a_timeout_amid_what_the_system_is_asked_is_no_error_of_the_disk():
    with pytest.raises(TimeoutError), translated("queue", "opening"):
        raise TimeoutError
    with pytest.raises(StorageError), translated(os.curdir, "opening"):
        raise TimeoutError(errno.ETIMEDOUT, "as of a network's file system")


@pytest.mark.parametrize("error", [MemoryError(), Late(), TimeoutError()])
def test_what_is_raised_amid_loads_and_not_again_is_no_fault_of_the_item(open_queue, error):
    errors = []

    def loads(payload):
        if errors:
            raise errors.pop()
        return payload

    queue = open_queue(dumps=bytes, loads=loads, **FAST)
    queue.push([b"a", b"b"])
    for take in (queue.pop, queue.get_nowait, queue.peek, lambda: queue.lease(2), lambda: list(queue)):
        errors.append(error)
        with pytest.raises(type(error)):
            take()
    stats = queue.stats()
    assert (stats.waiting, stats.leased, stats.dead) == (2, 0, 0)
    assert queue.pop(2) == [b"a", b"b"]


def test_a_call_too_deep_in_a_recursion_is_done_once_or_not_at_all(open_queue):
    """At each depth from which it fits just so, and from which it does not."""
    queue = open_queue(**FAST)
    queue.push("first")
    queue.pop()

    def at(depth, fn):
        return at(depth - 1, fn) if depth else fn()

    limit = sys.getrecursionlimit()
    depth = len(inspect.stack(0))
    outcomes = set()
    for left in range(60, 0, -1):
        before = queue.stats().pushed
        try:
            at(limit - depth - left, lambda: queue.push("x"))
            outcomes.add("done")
            assert queue.stats().pushed == before + 1
        except RecursionError:
            outcomes.add("too deep")
            assert queue.stats().pushed <= before + 1
        other = threading.Thread(target=queue.push, args=("more",), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), f"with {left} frames left"
    assert outcomes == {"done", "too deep"}


def test_an_opening_too_deep_in_a_recursion_keeps_no_lock(open_queue, tmp_path):
    """At each depth: leaving a lock's block needs more frames than entering it."""
    open_queue(**FAST)

    def at(depth, fn):
        return at(depth - 1, fn) if depth else fn()

    def open_and_close():
        PersistentQueue("queue", tmp_path, name="other", **FAST).close()

    limit = sys.getrecursionlimit()
    depth = len(inspect.stack(0))
    outcomes = set()
    for left in range(120, 0, -1):
        try:
            at(limit - depth - left, open_and_close)
            outcomes.add("done")
        except RecursionError:
            outcomes.add("too deep")
        open_and_close()  # not a nested call
    assert outcomes == {"done", "too deep"}
