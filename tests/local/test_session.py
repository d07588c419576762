"""The words that processes share: no number is too large for them, and no mixture of two is taken for one."""

import itertools

import pytest

from lmdbqueue import PersistentQueue
from lmdbqueue._host.session import Session, stamp

LARGE = [1, (1 << 24) - 1, 1 << 24, (1 << 40) - 1, 1 << 40, 1 << 63]


@pytest.fixture
def session(tmp_path):
    """Give the session of a process that is alone."""
    session = Session(str(tmp_path / "session"))
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
    for first, second, check in itertools.product(range(2), repeat=3):
        other._known = 0
        session._words[1], session._words[508] = words[first][0], words[second][1]
        session._words[509] = words[check][2]
        is_genuine = first == second == check
        assert other.is_synced(stamp(*told[first])) == is_genuine
        other._known = 0
        assert not other.is_synced(stamp(8, 3))
    other.leave()


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
