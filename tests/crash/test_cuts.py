"""After a power cut amid any commit, killed attempts before it, and cuts after recoveries: nothing lost, nothing mixed.

LMDBQUEUE_STATES says how many states the long form (``-m long``) tests.
"""

import logging
import os
import shutil
import struct
from itertools import count, product

import pytest
import seams
from any_verbs import AnyVerbs
from cuts import PAGE, Explorer
from opener import as_after_a_reboot

from lmdbqueue import PersistentQueue
from lmdbqueue._base import format as _format
from lmdbqueue._base.format import Bounds
from lmdbqueue._lmdb.sound_pages import Unsound
from lmdbqueue._model import last_transaction

SECTOR = 512
STATES = 5_000  # a test: 20,000 in all
AT_A_COMMIT = 60
FAULT_STATES = 200_000  # of a planted fault, at the most: the rarest is found once in some 20,000
SOON = {
    "head, tail and gaps left out": 5,
    "counters left out": 2,
}  # seeds that have found a rare fault soon, in the same states each time
LONG_STATES = int(os.environ.get("LMDBQUEUE_STATES", "1000000"))
TOLD = "states after a power cut"


pytestmark = pytest.mark.usefixtures("silent")  # each recovery is told


def _verbs(path, seed, clock):
    sizes, counts = (0, 5, 20, 20, 60, 200, 900, 2_500, 6_000), (1, 1, 1, 2, 10, 40)
    return AnyVerbs(path, seed, sizes, counts, without=("do_flush",), clock=clock)


def _verbs_in_real_time(path, seed, _):
    return _verbs(path, seed, None)


def _explorer(place, seed, unit):
    """Every other pair of seeds is in real time: keys of attempts differ more, and that finds other faults."""
    return Explorer(place, (_verbs, _verbs_in_real_time)[seed // 2 % 2], seed, unit, AT_A_COMMIT)


def _explore(place, seed, unit, states):
    explorer = _explorer(place, seed, unit)
    explorer.run(states)
    return explorer


@pytest.mark.parametrize(("unit", "seed"), [*product((PAGE, SECTOR), (1, 2))])
def test_what_a_cut_leaves_is_the_last_transaction_or_the_one_before_it_whole(unit, seed, memory, record_property):
    explorer = _explore(memory, seed, unit, STATES)
    record_property(TOLD, explorer.told["states"])
    assert explorer.failures == {}
    assert min(explorer.told[each] for each in ("kept", "undone", "killed attempts", "of a killed attempt")) > 0


def test_a_seed_gives_the_same_states_again(memory):
    told = []
    for place in (os.path.join(memory, "first"), os.path.join(memory, "again")):
        os.mkdir(place)
        explorer = _explore(place, 1, SECTOR, 300)
        told.append((explorer.told, explorer.seen))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", list(seams.MUTANTS))
def test_cuts_find_a_fault_in_the_recovery(name, memory):
    states = 0
    for seed in count(SOON.get(name, 1)):
        place = os.path.join(memory, str(seed))
        os.mkdir(place)
        with seams.mutated(name) as calls:
            explorer = _explorer(place, seed, (PAGE, SECTOR)[seed % 2])
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


# --- mixtures that were accepted once


def _queue(place, name="queue"):
    return PersistentQueue("queue", str(place), dumps=bytes, loads=bytes, name=name)


def _bytes_of(place):
    return (place / "queue" / "00000001.mdb").read_bytes()


def _items_after_a_cut(place, image, name="queue", *, opened="as it is"):
    """Return what a queue holds when it, or a copy of its directory, is opened after a cut that left ``image``."""
    (place / "queue" / "00000001.mdb").write_bytes(image)
    if opened != "as a copy":
        as_after_a_reboot(place / "queue")
    if opened == "in doubt":
        with open(place / "queue" / "session", "r+b") as file:
            file.seek(16)
            file.write(struct.pack("=Q", 1))
    with _queue(place, name) as queue:
        assert queue.check() == []
        return list(queue)


def _leaves(image, before):
    """Return the places of the leaves that are in an image and were not in the one before."""
    return [
        at
        for at in range(2 * PAGE, len(image), PAGE)
        if image[at : at + PAGE] != before[at : at + PAGE] and image[at + 10] == 2
    ]


def test_an_item_of_another_queue_in_the_same_place_is_not_taken_for_this_ones(tmp_path):
    with _queue(tmp_path, "inbox") as inbox, _queue(tmp_path, "outbox") as outbox:
        before = _bytes_of(tmp_path)
        inbox.push(b"of inbox")
        (there,) = [
            at for at in _leaves(_bytes_of(tmp_path), before) if b"of inbox" in _bytes_of(tmp_path)[at : at + PAGE]
        ]
        stale = _bytes_of(tmp_path)[there + 8 : there + PAGE]
        before = _bytes_of(tmp_path)
        outbox.push(b"of outbo")
        shutil.copytree(tmp_path / "queue", tmp_path / "cut" / "queue")
        image = bytearray(_bytes_of(tmp_path))
    (at,) = [at for at in _leaves(image, before) if b"of outbo" in image[at : at + PAGE]]
    image[at + 8 : at + PAGE] = stale
    assert _items_after_a_cut(tmp_path / "cut", image, "outbox") == []


@pytest.mark.parametrize("opened", ["as it is", "as a copy", "in doubt"])
@pytest.mark.parametrize("which", range(3))
def test_items_of_a_killed_attempt_do_not_stand_among_those_of_the_next(which, opened, tmp_path):
    first = [b"A%02d" % number * 100 for number in range(25)]
    second = [b"B%02d" % number * 100 for number in range(25)]
    with _queue(tmp_path) as queue:
        queue.push([b"before"] * 3)
        before = _bytes_of(tmp_path)
    for name, items in (("killed", first), ("cut", second)):
        shutil.copytree(tmp_path / "queue", tmp_path / name / "queue")
        with _queue(tmp_path / name) as queue:
            queue.push(items)
            image = _bytes_of(tmp_path / name)
            shutil.copytree(tmp_path / name / "queue", tmp_path / f"{name} then" / "queue")
        if name == "killed":
            killed = image
    leaves = [
        at for at in _leaves(image, before) if b"B" * 1 in image[at : at + PAGE] and b"A" in killed[at : at + PAGE]
    ]
    leaves = [at for at in leaves if image[at : at + PAGE].count(b"B") > 99]
    assert len(leaves) > which
    mixed = bytearray(image)
    mixed[leaves[which] : leaves[which] + PAGE] = killed[leaves[which] : leaves[which] + PAGE]
    found = _items_after_a_cut(tmp_path / "cut then", mixed, opened=opened)
    assert found == [b"before"] * 3


@pytest.mark.parametrize("is_copy", [False, True])
def test_of_a_copy_it_is_not_claimed_that_what_is_undone_was_never_acknowledged(is_copy, tmp_path, caplog, monkeypatch):
    """Only the original has what was acknowledged on its disk; a copy may lack pages that were written later."""
    monkeypatch.setattr(logging.getLogger("lmdbqueue"), "disabled", False)
    with _queue(tmp_path) as queue:
        queue.push(b"first")
        before = _bytes_of(tmp_path)
        queue.push(b"second")
        image = bytearray(_bytes_of(tmp_path))
        shutil.copytree(tmp_path / "queue", tmp_path / "cut" / "queue")
    (at,) = [at for at in _leaves(image, before) if b"second" in image[at : at + PAGE]]
    image[at : at + PAGE] = before[at : at + PAGE]
    opened = "as a copy" if is_copy else "as it is"
    assert _items_after_a_cut(tmp_path / "cut", image, opened=opened) == [b"first"]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "was torn and is undone; it was never acknowledged" in said
    assert said.endswith(", unless the directory was in use while it was copied") == is_copy


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
