"""After a power cut amid any commit, killed attempts before it, and cuts after recoveries: nothing lost, nothing mixed.

LMDBQUEUE_STATES says how many states the long form (``-m long``) tests.
"""

import logging
import os
import tempfile
from itertools import count, product

import pytest
import seams
from any_verbs import AnyVerbs
from cuts import PAGE, Explorer
from replay import MEMORY

from lmdbqueue import _format
from lmdbqueue._format import Bounds
from lmdbqueue._lmdb.sound_pages import Unsound
from lmdbqueue._model import last_transaction

SECTOR = 512
STATES = 5_000  # a test: 20,000 in all
AT_A_COMMIT = 60
FAULT_STATES = 20_000  # of a planted fault, at the most
LONG_STATES = int(os.environ.get("LMDBQUEUE_STATES", "1000000"))
TOLD = "states after a power cut"


@pytest.fixture(autouse=True)
def _silent(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lmdbqueue"), "disabled", True)  # each recovery is told


@pytest.fixture
def memory():
    """Give a directory in which a flush costs nothing."""
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-cuts-", dir=MEMORY) as place:
        yield place


def _verbs(path, seed):
    sizes, counts = (0, 5, 20, 20, 60, 200, 900, 2_500, 6_000), (1, 1, 1, 2, 10, 40)
    return AnyVerbs(path, seed, sizes, counts, without=("do_flush",))


def _explore(place, seed, unit, states):
    explorer = Explorer(place, _verbs, seed, unit, AT_A_COMMIT)
    explorer.run(states)
    return explorer


@pytest.mark.parametrize(("unit", "seed"), [*product((PAGE, SECTOR), (1, 2))])
def test_what_a_cut_leaves_is_the_last_transaction_or_the_one_before_it_whole(unit, seed, memory, record_property):
    explorer = _explore(memory, seed, unit, STATES)
    record_property(TOLD, explorer.told["states"])
    assert explorer.failures == {}
    assert min(explorer.told[each] for each in ("kept", "undone", "killed attempts", "of a killed attempt")) > 0


@pytest.mark.parametrize("name", list(seams.MUTANTS))
def test_cuts_find_a_fault_in_the_recovery(name, memory):
    states = 0
    for seed in count(1):
        place = os.path.join(memory, str(seed))
        os.mkdir(place)
        with seams.mutated(name) as calls:
            explorer = Explorer(place, _verbs, seed, (PAGE, SECTOR)[seed % 2], AT_A_COMMIT)
            explorer.expects_advance = False
            explorer.run(2_000)
        assert any(calls.values()), "nothing passes its seams"
        states += explorer.told["states"]
        if explorer.failures or states > FAULT_STATES:
            break
    assert explorer.failures


def test_every_seam_is_where_it_is_said_to_be():
    for seam in seams.SEAMS:
        seams.of(seam)


@pytest.mark.long
def test_what_many_cuts_leave_is_the_last_transaction_or_the_one_before_it_whole(memory, record_property):
    states = 0
    for seed in count(1_000):
        place = os.path.join(memory, str(seed))
        os.mkdir(place)
        explorer = _explore(place, seed, (PAGE, SECTOR)[seed % 2], 10_000)
        states += explorer.told["states"]
        assert explorer.failures == {}, seed
        if states > LONG_STATES:
            break
    record_property(TOLD, states)


# --- which keys have an item


def _bounds(head, tail, skipped=(), returned=()):
    weights = [sum(_format.weigh(_format.pack(key)) for key in keys) & ((1 << 64) - 1) for keys in (skipped, returned)]
    return Bounds(head, tail, len(skipped), weights[0], len(returned), weights[1])


def _there(*keys):
    return lambda low, high: [key for key in keys if low <= key < high]


@pytest.mark.parametrize(
    ("before", "now", "came", "left", "there"),
    [
        (_bounds(0, 0), _bounds(0, 3), {0, 1, 2}, set(), ()),  # a push
        (_bounds(0, 3), _bounds(2, 3), set(), {0, 1}, ()),  # a pop
        (_bounds(0, 5), _bounds(0, 5, {2}), set(), {2}, ()),  # leased from the middle
        (_bounds(0, 5, {2}), _bounds(3, 5), set(), {0, 1}, ()),  # the head passes what has no item
        (_bounds(3, 5), _bounds(3, 5, (), {1}), {1}, set(), ()),  # it comes back
        (_bounds(3, 5, (), {1}), _bounds(3, 5), set(), {1}, ()),  # and leaves
        (_bounds(0, 3), _bounds(3, 3, (), {1}), set(), {0, 2}, (1,)),  # leased and returned at once
        (_bounds(0, 3), _bounds(3, 6, {4}), {3, 5}, {0, 1, 2}, ()),  # pops and pushes, a delayed one among them
        (_bounds(0, 2, {1}), _bounds(4, 4, (), {1, 3}), {1, 3}, {0}, ()),
    ],
)
def test_the_bounds_follow_from_what_came_and_left(before, now, came, left, there):
    assert last_transaction.expected(before, now, came, left, _there(*there)) == now


@pytest.mark.parametrize(
    ("before", "now", "came", "left"),
    [
        (_bounds(0, 5), _bounds(0, 5, {2}), set(), {3}),  # another one of the same number
        (_bounds(3, 5), _bounds(3, 5, (), {1}), {2}, set()),
        (_bounds(0, 5), _bounds(0, 5), set(), {3}),
        (_bounds(0, 5), _bounds(1, 5), set(), set()),
    ],
)
def test_bounds_that_do_not_follow_from_what_came_and_left_are_found(before, now, came, left):
    with pytest.raises(Unsound):
        last_transaction.check_bounds("queue", now, last_transaction.expected(before, now, came, left, _there()))


def test_an_item_behind_the_tail_and_a_head_that_goes_back_are_found():
    with pytest.raises(Unsound):
        last_transaction.expected(_bounds(0, 5), _bounds(0, 5), {5}, set(), _there())
    for now in (_bounds(2, 6), _bounds(3, 4), _bounds(6, 5)):
        with pytest.raises(Unsound):
            last_transaction.check_order(_bounds(3, 5), now)
