"""LMDB's handles of queues: there as long as somebody uses them, and never those of another queue."""

import sys
from contextlib import contextmanager

import pytest
from processes import forked, status_of

from lmdbqueue import PersistentQueue, StorageError
from lmdbqueue._host.directory import Directory
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._local.environment import Environment


def _in_another_process(fn, *args):
    assert status_of(forked(fn, *args)) == 0


def _make(place, *names):
    for name in names:
        with PersistentQueue("queue", place, name=name) as queue:
            queue.push(f"of {name}")


def _interrupted(call, code, at):
    """Interrupt a call when it comes to the ``at``-th line of some code; return whether it came so far."""
    left, last = at, 0

    def trace(frame, event, _arg):
        nonlocal left, last
        if frame.f_code not in code:
            return None
        if event == "line" and frame.f_lineno != last:  # from Python 3.12 on a comprehension is a line once a round
            last = frame.f_lineno
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


OPENING = {each.__code__ for each in (Generation.open_queue, Generation._existing, Generation._keep)}
DROPPING = {each.__code__ for each in (Generation.drop, Generation._existing)}


def test_an_opening_that_is_interrupted_anywhere_leaves_no_handle_that_may_become_another_queues(open_queue, tmp_path):
    queue = open_queue()
    at = 0
    is_interrupted = True
    while is_interrupted:
        at += 1
        ours, other = f"ours {at}", f"other {at}"
        _in_another_process(_make, tmp_path, ours, other)
        is_interrupted = _interrupted(lambda ours=ours: PersistentQueue("queue", tmp_path, name=ours), OPENING, at)
        for name in (other, ours):  # the other first: it gets what the first one has left
            with PersistentQueue("queue", tmp_path, name=name) as opened:
                opened.push("more")
                assert list(opened) == [f"of {name}", "more"]
        assert queue.check() == []
    assert at > 5


def test_a_drop_that_is_interrupted_anywhere_is_done_or_not_and_the_others_go_on(open_queue, tmp_path):
    queue = open_queue()
    at = 0
    is_interrupted = True
    while is_interrupted:
        at += 1
        dropped, other = f"dropped {at}", f"other {at}"
        _in_another_process(_make, tmp_path, dropped, other)
        with PersistentQueue("queue", tmp_path, name=dropped) as opened:
            is_interrupted = _interrupted(lambda dropped=dropped: queue.drop_queue(dropped), DROPPING, at)
            if dropped in queue.queues():
                opened.push("more")
                assert list(opened) == [f"of {dropped}", "more"]
        with PersistentQueue("queue", tmp_path, name=other) as opened:
            assert list(opened) == [f"of {other}"]
        assert queue.check() == []
    assert at > 5


@pytest.mark.parametrize("is_open", [True, False])
def test_a_drop_that_fails_leaves_the_queue_to_those_who_use_it(open_queue, tmp_path, monkeypatch, is_open):
    queue = open_queue()
    _in_another_process(_make, tmp_path, "kept", "other")
    kept = open_queue(name="kept") if is_open else None

    def fail(self, _txn):
        raise StorageError(self.path, "commit", "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Generation, "commit", fail)
        with pytest.raises(StorageError):
            queue.drop_queue("kept")
    assert list(open_queue(name="other")) == ["of other"]
    kept = kept or open_queue(name="kept")
    kept.push("more")
    assert list(kept) == ["of kept", "more"]


def test_a_swap_that_fails_leaves_no_handle_that_may_become_another_queues(open_queue, tmp_path):
    queue = open_queue()
    environment = queue._engine.environment
    _in_another_process(_make, tmp_path, "other", "theirs")

    def fail(generation, txn, _path):
        generation.open_all(txn)
        raise StorageError(generation.path, "compaction", "Input/output error")

    with pytest.raises(StorageError):
        environment.swap(fail)
    for name in ("theirs", "other"):
        assert list(open_queue(name=name)) == [f"of {name}"]


def _pop_each(queues):
    assert [queue.pop() for queue in queues] == list(range(len(queues)))


def test_a_forked_child_has_as_many_queues_open_as_its_parent(open_queue):
    """More than LMDB gives room for at first."""
    queues = [open_queue(name=f"queue {number}", durability="off") for number in range(100)]
    for number, queue in enumerate(queues):
        queue.push(number)
    _in_another_process(_pop_each, queues)
    assert [len(queue) for queue in queues] == [0] * 100


def _flush(queue):
    queue.flush(force=True)


def test_a_queue_that_is_opened_as_another_thread_goes_on_to_the_next_file_is_known_there(open_queue, monkeypatch):
    queue = open_queue()
    count = Environment._count

    def count_when_others_have_gone_on(environment, ref):
        monkeypatch.undo()
        _in_another_process(_flush, queue)
        queue.push("as another thread would")  # which opens the handles of all queues of this process
        count(environment, ref)

    monkeypatch.setattr(Environment, "_count", count_when_others_have_gone_on)
    other = open_queue(name="other")
    other.push("a")
    assert list(other) == ["a"]


def test_an_interrupt_as_the_next_file_was_opened_leaves_it_open_for_the_next_call(open_queue, monkeypatch):
    queue = open_queue()
    _in_another_process(_flush, queue)
    lock = Directory.lock

    @contextmanager
    def lock_that_is_interrupted_as_it_is_let_go(directory, *parking):
        with lock(directory, *parking):
            yield
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Directory, "lock", lock_that_is_interrupted_as_it_is_let_go)
    with pytest.raises(KeyboardInterrupt) as kept:  # with its traceback, and all that its frames refer to
        queue.push("a")
    queue.push("b")
    assert list(queue) == ["b"]
    assert kept
