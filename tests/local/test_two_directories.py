"""Whoever works on two directories in one order, and somebody else in the other: nobody waits for ever."""

import threading

import pytest
from processes import DEADLINE, forked, status_of

from lmdbqueue import PersistentQueue, TransactionError

ROUNDS = 30
FAST = {"durability": "off"}


def _both_ways(place, mine, other):
    """Use the other directory amid a block on mine, in each way there is; move to the other queue of mine, and back."""
    with (
        PersistentQueue(mine, place, **FAST) as here,
        PersistentQueue(mine, place, name="second", **FAST) as beside,
        PersistentQueue(other, place, **FAST) as there,
    ):
        for number in range(ROUNDS):
            with here.transaction():
                here.push(number)
                for call in (there.pop, there.peek, lambda: here.move(to=there), lambda: there.push("item")):
                    with pytest.raises(TransactionError):
                        call()
                with pytest.raises(TransactionError), PersistentQueue(other, place, **FAST):
                    pass
            here.move(to=beside)
            beside.move(to=here)
            there.push("from the other side")
            if number % 10 == 0:
                there.flush(force=True)


def _in_threads(*runs):
    failed = []

    def run(args):
        try:
            _both_ways(*args)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(args,), daemon=True) for args in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed


def _in_processes(*runs):
    assert [status_of(pid) for pid in [forked(_both_ways, *args) for args in runs]] == [0] * len(runs)


@pytest.mark.parametrize("side_by_side", [_in_threads, _in_processes])
def test_who_uses_two_directories_the_other_way_round_waits_for_nobody_for_ever(open_queue, tmp_path, side_by_side):
    place = str(tmp_path)
    side_by_side((place, "a", "b"), (place, "b", "a"))
    for name in "ab":
        queue = open_queue(name, **FAST)
        assert len(queue) + len(open_queue(name, name="second", **FAST)) == 2 * ROUNDS


def test_moves_both_ways_lose_and_double_nothing(open_queue, tmp_path):
    here, there = open_queue(**FAST), open_queue(name="there", **FAST)
    here.push(list(range(50)))
    there.push(list(range(50, 100)))

    def run(source, target):
        with (
            PersistentQueue("queue", tmp_path, name=source, **FAST) as queue,
            PersistentQueue("queue", tmp_path, name=target, **FAST) as other,
        ):
            for _ in range(2 * ROUNDS):
                queue.move(3, to=other)

    pids = [forked(run, "queue", "there"), forked(run, "there", "queue")]
    assert [status_of(pid) for pid in pids] == [0, 0]
    assert sorted([*here, *there]) == list(range(100))
