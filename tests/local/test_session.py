"""The words that processes share: no number is too large for them, and no mixture of two is taken for one."""

import fcntl
import itertools
import sys

import pytest

from lmdbqueue import PersistentQueue
from lmdbqueue._host import flock
from lmdbqueue._host import session as of_session
from lmdbqueue._host.session import Session, stamp

LARGE = [1, (1 << 24) - 1, 1 << 24, (1 << 40) - 1, 1 << 40, 1 << 63]
FILES = {flock.__file__, of_session.__file__}


@pytest.fixture
def session(tmp_path):
    """Give the session of a process that is alone."""
    session = Session(str(tmp_path / "session"))
    session.join()
    yield session
    session.leave()


@pytest.mark.parametrize("generation", LARGE)
@pytest.mark.parametrize("transaction", LARGE)
def test_any_generation_and_transaction_can_be_told(session, tmp_path, generation, transaction):
    session.settle(stamp(1, 1))
    session.admit()
    told = stamp(generation, transaction)
    session.set_synced(told)
    other = Session(str(tmp_path / "session"))
    other.join()
    for each in (session, other):
        assert each.is_synced(told)
        assert each.is_synced(stamp(generation, transaction - 1))
        assert not each.is_synced(stamp(generation, transaction + 1))
        assert not each.is_synced(stamp(generation + 1, 1))
        assert each.is_synced(stamp(generation - 1, 1 << 62))
    other.leave()


def test_no_mixture_of_what_two_processes_write_is_taken_for_what_one_wrote(session, tmp_path):
    session.settle(stamp(1, 1))
    session.admit()
    told = [(7, 1_000), (8, 2)]
    words = []
    for generation, transaction in told:
        session.settle(stamp(generation, transaction))
        words.append((session._words[1], session._words[508], session._words[509]))
    other = Session(str(tmp_path / "session"))
    other.join()
    for first, second, check in itertools.product(range(2), repeat=3):
        other._known = 0
        session._words[1], session._words[508] = words[first][0], words[second][1]
        session._words[509] = words[check][2]
        is_genuine = first == second == check
        assert other.is_synced(stamp(*told[first])) == is_genuine
        other._known = 0
        assert not other.is_synced(stamp(8, 3))
    other.leave()


def test_the_highest_of_all_lanes_counts_and_none_after_a_new_start(session, tmp_path):
    session.settle(stamp(3, 5))
    session.admit()
    other = Session(str(tmp_path / "session"))
    other.join()
    for lane, told in [(1, stamp(3, 9)), (0, stamp(3, 7)), (15, stamp(2, 1 << 63))]:
        session.set_covered(lane, told)
    assert other.is_covered(stamp(3, 9))
    assert not other.is_covered(stamp(3, 10))
    session.set_covered(16, stamp(3, 10))
    assert session.is_covered(stamp(3, 10)), "there is no word for this lane, but the process itself knows it"
    assert not other.is_covered(stamp(3, 10))
    session._words[460 + 3 * 1] = 4
    assert not other.is_covered(stamp(3, 10)), "a mixture of two writes"
    other.leave()
    session.settle(stamp(3, 2))
    assert not session.is_covered(stamp(3, 3))


def test_a_queue_goes_on_in_its_hundred_millionth_generation_with_many_transactions(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("a")
        environment = queue._engine.environment
        generation = environment._generation
        generation._first_stamp = stamp(generation.number, 1 << 41)  # as after so many transactions
        assert queue.push("b") == 1
        generation._first_stamp = stamp(1 << 25, 0)
        generation.number = 1 << 25
        assert queue.push("c") == 2
        assert queue.pop(3) == ["a", "b", "c"]


def test_an_interrupt_at_any_line_and_at_any_return_of_joining_leaves_no_lock(tmp_path):
    class Interrupt(BaseException):
        pass

    def interrupt_at(number):
        moments = 0

        def trace(frame, event, _):
            nonlocal moments
            code = frame.f_code
            if code.co_filename not in FILES or code.co_name not in {"__init__", "join", "acquire", "share", "alone"}:
                return None
            moments += event in ("line", "return")
            if moments == number and event != "call":
                raise Interrupt
            return trace

        return trace

    PersistentQueue("queue", tmp_path).close()
    for number in itertools.count(1):
        queue = None
        sys.settrace(interrupt_at(number))
        try:
            queue = PersistentQueue("queue", tmp_path)
        except Interrupt:
            pass
        finally:
            sys.settrace(None)
        if queue is not None:
            queue.close()
        with open(tmp_path / "queue" / "session", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if this process has left a lock
        if queue is not None:
            break
    assert number > 25
