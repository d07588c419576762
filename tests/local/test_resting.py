"""Flags, those who rest, and threads that beat: whole wherever an interrupt or a signal's handler comes in."""

import contextlib
import itertools
import threading
import time

import pytest
from processes import DEADLINE, Moments, eventually, interrupt, threads_of_this_process

from lmdbqueue import PersistentQueue
from lmdbqueue._host import threads as _threads
from lmdbqueue._host.threads import Flag, Resting, beating, holding
from lmdbqueue.forward import Forwarder, Target


def _in_a_thread(fn):
    """Return what ``fn()`` returns, in a thread that may hang."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fn()), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert found, "it hangs, or has failed"
    return found[0]


def _moments(at):
    """Call ``at(number)`` for each moment, which tells whether there was one; return how many there were."""
    for number in itertools.count(1):
        if not _in_a_thread(lambda number=number: at(number)):
            return number - 1
    raise AssertionError


# --- flags


def test_a_flag_is_set_once_and_for_all():
    flag = Flag()
    assert not flag.is_set()
    assert not flag.wait(0)
    flag.set()
    flag.set()
    assert flag.is_set()
    assert flag.wait(0)
    assert flag.wait(0)


def test_a_flag_that_is_set_ends_the_wait_of_another_thread():
    flag = Flag()
    threading.Timer(0.01, flag.set).start()
    assert flag.wait(DEADLINE)


def test_the_handler_of_a_signal_may_set_a_flag_at_any_moment_of_a_wait():
    def at(number):
        flag = Flag()
        with Moments(number, flag.set) as moments:
            is_set = flag.wait(0.01)
        assert is_set or flag.is_set() is (moments.left == 0)
        return moments.left == 0

    assert _moments(at) >= 2


class _Away(Target):
    """A target that is never there."""

    def last(self, _origin):
        raise OSError

    def store(self, _batch):
        raise OSError

    def close(self):
        pass


def test_the_handler_of_a_signal_may_stop_a_forwarder_at_any_moment(tmp_path):
    PersistentQueue("queue", tmp_path, durability="off").close()

    def at(number):
        forwarder = Forwarder(tmp_path / "queue", _Away(), follow=True, pause=0.0001)
        with Moments(number, forwarder.stop) as moments:
            forwarder.run()
        return moments.left == 0

    for number in range(1, 400, 7):  # it goes on until it is stopped
        assert _in_a_thread(lambda number=number: at(number))


# --- those who rest


def test_who_rests_is_told_or_has_waited_long_enough():
    lock, resting, what = threading.Lock(), Resting(), []
    begun = time.monotonic()
    resting.wait_for(lock, lambda: bool(what), 0.01)
    assert time.monotonic() - begun >= 0.01
    waiters = [threading.Thread(target=resting.wait_for, args=(lock, lambda: bool(what))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    eventually(lambda: len(resting) == 3)
    with lock:
        resting.tell()  # for nothing
    eventually(lambda: len(resting) == 3)
    with lock:
        what.append(1)
        resting.tell()
    for waiter in waiters:
        waiter.join(DEADLINE)
        assert not waiter.is_alive()
    assert len(resting) == 0


def test_who_was_told_nothing_looks_again(monkeypatch):
    monkeypatch.setattr(_threads, "_LOOK", 0.001)
    lock, resting, looks = threading.Lock(), Resting(), []

    def third_look():
        looks.append(1)
        return len(looks) == 3

    _in_a_thread(lambda: (resting.wait_for(lock, third_look),))
    assert len(looks) == 3


def test_as_many_are_told_as_shall_be():
    resting = Resting()
    turns = [resting.rest() for _ in range(3)]
    resting.leave(turns[1])
    resting.tell(1)
    assert [turn.locked() for turn in turns] == [False, True, True]
    resting.leave(turns[0])  # who was told already
    resting.tell(5)
    assert [turn.locked() for turn in turns] == [False, True, False]


def test_an_interrupt_at_any_moment_of_a_rest_leaves_the_lock_free():
    def at(number):
        lock, resting = threading.Lock(), Resting()
        moments = Moments(number, interrupt)
        try:
            with moments:
                resting.wait_for(lock, lambda: False, 0.002)
        except KeyboardInterrupt:
            assert moments.left == 0
        else:
            assert moments.left > 0
        assert not lock.locked()
        return moments.left == 0

    assert _moments(at) > 5


# --- threads that beat


def test_it_is_called_again_and_again_until_the_block_ends():
    beats = []
    with beating(lambda: beats.append(1), 0.0001):
        eventually(lambda: len(beats) > 3)
    heard = len(beats)
    time.sleep(0.01)
    assert len(beats) == heard


def test_what_it_raises_ends_it_and_is_raised_at_the_end():
    beats = []

    def fail():
        beats.append(1)
        message = "it fails"
        raise OSError(message)

    with pytest.raises(OSError, match="it fails"), beating(fail, 0.0001):
        eventually(lambda: beats)
    assert len(beats) == 1


def test_an_error_of_the_block_goes_first():
    beats = []

    def fail():
        beats.append(1)
        raise OSError

    def block():
        with beating(fail, 0.0001):
            eventually(lambda: beats)
            raise KeyError

    with pytest.raises(KeyError):
        block()


def test_without_a_thread_to_be_had_the_block_is_not_begun(monkeypatch):
    def none(*_):
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(_threads, "start_new_thread", none)
    with pytest.raises(RuntimeError, match="can't start"), beating(lambda: None, 1):
        pytest.fail("it was begun")


def test_the_block_ends_beside_a_thread_that_found_no_memory_for_its_first_step(monkeypatch):
    start = _threads.start_new_thread

    def run():
        with beating(lambda: None, 0.0001):
            return True

    monkeypatch.setattr(_threads, "start_new_thread", lambda _fn, args: start(lambda: None, args))
    assert _in_a_thread(run)


def test_an_interrupt_at_any_moment_leaves_no_thread_behind():
    def at(number):
        moments = Moments(number, interrupt)
        try:
            with moments, beating(lambda: None, 0.0001):
                pass
        except KeyboardInterrupt:
            assert moments.left == 0
        else:
            assert moments.left > 0
        return moments.left == 0

    threads = threads_of_this_process()
    assert _moments(at) > 10
    eventually(lambda: threads_of_this_process() <= threads)


# --- what holds something for a block


def test_what_is_held_for_a_block_is_let_go_at_any_moment_though_somebody_keeps_the_interrupt():
    kept = []

    @holding
    def hold(what):
        what.append(1)
        try:
            yield what
        finally:
            what.clear()

    def at(number):
        what = []
        moments = Moments(number, interrupt)
        try:
            with moments, hold(what):
                pass
        except KeyboardInterrupt as error:
            kept.append(error)
        assert what == []
        return moments.left == 0

    assert _moments(at) > 3
    assert kept


def test_what_holds_something_is_a_context_manager_like_any_other():
    ended = []

    @holding
    def hold(what):
        try:
            yield what
        except LookupError:
            ended.append("swallowed")
        finally:
            ended.append(what)

    with hold("a") as found:
        assert found == "a"
    with hold("b"):
        raise LookupError
    with pytest.raises(ValueError, match="other"), hold("c"):
        raise ValueError("other")
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(hold("d")) == "d"
        assert ended[-1] == "c"
    assert ended == ["a", "swallowed", "b", "c", "d"]

    @hold("f")
    def decorated():
        return len(ended)

    assert [decorated(), decorated(), ended.pop(), ended.pop()] == [5, 6, "f", "f"]
    manager = hold("e")
    assert manager.__enter__() == "e"
    del manager  # and nobody leaves it
    assert ended[-1] == "e"


def test_whoever_asks_for_the_end_of_a_block_and_calls_it_not_ends_nothing():
    """A debugger does, which shows the attributes of an object, and a test for a context manager."""
    ended = []

    @holding
    def hold():
        yield
        ended.append("whole")

    manager = hold()
    assert hasattr(manager, "__exit__")
    with manager:
        assert hasattr(manager, "__exit__")
        with pytest.raises(Exception), manager:  # noqa: B017, PT011  (contextlib's own, which differs)
            pass
        assert ended == []
    assert ended == ["whole"]
    manager = hold()
    manager.__enter__()
    manager.__exit__(None, None, None)
    assert ended == ["whole", "whole"]
