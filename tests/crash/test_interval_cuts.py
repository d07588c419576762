"""After a power cut amid commits that nobody flushed: what the last checkpoint covers is there, and some of the rest.

LMDBQUEUE_STATES says how many states the long form (``-m long``) tests.
"""

import os
from itertools import count

import pytest
import seams
from any_verbs import AnyVerbs
from interval_cuts import PAGE, Explorer

SECTOR = 512
STATES = 7_000  # a test: 21,000 in all
AT_A_MOMENT = 40
FAULT_STATES = 12_000  # of a planted fault, at the most
SOON = {"content weight left out": 12, "numbers go on after a recovery": 10}  # seeds that have found a rare fault soon
LONG_STATES = int(os.environ.get("LMDBQUEUE_STATES", "1000000"))
TOLD = "states after a power cut"


pytestmark = pytest.mark.usefixtures("silent")  # each recovery is told


def _verbs(path, seed, clock):
    sizes, counts = (0, 5, 20, 20, 60, 200, 900, 2_500, 6_000), (1, 1, 1, 2, 10, 40)
    options = {"durability": "interval", "interval": 3600.0}
    return AnyVerbs(path, seed, sizes, counts, without=("do_flush",), clock=clock, **options)


def _verbs_in_real_time(path, seed, _):
    return _verbs(path, seed, None)


def _explore(place, seed, states):
    """Every other pair of seeds is in real time, as in ``test_cuts``."""
    here = os.path.join(place, str(seed))
    os.mkdir(here)
    make = (_verbs, _verbs_in_real_time)[seed // 2 % 2]
    explorer = Explorer(here, make, seed, (PAGE, SECTOR)[seed % 2], AT_A_MOMENT)
    explorer.run(states)
    return explorer


@pytest.mark.parametrize("seed", range(3))
def test_what_a_cut_leaves_is_a_whole_snapshot_not_older_than_the_checkpoint(seed, memory, record_property):
    explorer = _explore(memory, seed, STATES)
    record_property(TOLD, explorer.told["states"])
    assert explorer.failures == {}
    assert min(explorer.told[each] for each in ("newest", "between", "checkpoint")) > 0


def test_a_seed_gives_the_same_states_again(memory):
    told = []
    for place in (os.path.join(memory, "first"), os.path.join(memory, "again")):
        os.mkdir(place)
        explorer = _explore(place, 1, 300)
        told.append((explorer.told, explorer.seen))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", list(seams.OF_CHECKPOINTS))
def test_cuts_find_a_fault_in_the_checkpoints(name, memory):
    states = 0
    for seed in count(SOON.get(name, 8)):
        with seams.mutated(name, of_checkpoints=True) as calls:
            explorer = _explore(memory, seed, 1_000)
        assert any(calls.values()), "nothing passes its seams"
        states += explorer.told["states"]
        if explorer.failures or states > FAULT_STATES:
            break
    assert explorer.failures


@pytest.mark.long
def test_what_many_cuts_leave_is_a_whole_snapshot_not_older_than_the_checkpoint(memory, record_property):
    states = 0
    for seed in count(1_000):
        explorer = _explore(memory, seed, 10_000)
        states += explorer.told["states"]
        assert explorer.failures == {}, seed
        if states > LONG_STATES:
            break
    record_property(TOLD, states)
