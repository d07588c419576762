"""A queue that processes share through swaps and forks, and with readers that die or stop: each thing with its mutant.

LMDBQUEUE_READERS says how many readers the long form kills.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import mutants
import pytest
from processes import eventually, forked, status_of

from lmdbqueue import PersistentQueue
from lmdbqueue._lmdb.generation import Generation

READERS = int(os.environ.get("LMDBQUEUE_READERS", "3000"))
SLOTS = 1022  # of LMDB's table of readers


def _nothing() -> None:
    """Plant no fault."""


def _work_through_swaps(place: str) -> None:
    """Push and pop while another process flushes again and again; demand that all is there."""
    with PersistentQueue("queue", place) as queue:
        for round_ in range(5):
            queue.push([(round_, number) for number in range(100)])
            assert status_of(forked(_flush, place)) == 0
            queue.push((round_, "after"))
            with PersistentQueue("queue", place) as other:
                assert len(other) == 101
            assert status_of(forked(_flush, place)) == 0
            assert queue.pop(200) == [*((round_, number) for number in range(100)), (round_, "after")]
            assert queue.check() == []


def _flush(place: str) -> None:
    with PersistentQueue("queue", place) as queue:
        count = len(queue)
        queue.flush(force=True)
        assert len(queue) == count


def _fork_amid_the_pushes_of_threads(place: str) -> None:
    """Let threads push, and children forked meanwhile, with one object; demand that each item is there once."""
    with PersistentQueue("queue", place) as queue:
        enough = threading.Event()
        pushed = [0] * 8

        def push_until_enough(who: int) -> None:
            while not enough.is_set():
                queue.push((who, pushed[who]))
                pushed[who] += 1

        def push_two(who: int) -> None:
            for number in range(2):
                queue.push((who, number))

        threads = [threading.Thread(target=push_until_enough, args=(who,), daemon=True) for who in range(8)]
        for thread in threads:
            thread.start()
        pids = []
        for who in range(8, 28):
            eventually(lambda: queue._engine.environment._line)  # calls that are none of the child's
            pids.append(forked(push_two, who))
        enough.set()
        for thread in threads:
            thread.join()
        assert [status_of(pid, 6) for pid in pids] == [0] * len(pids)
        expected = [(who, number) for who in range(28) for number in range(pushed[who] if who < 8 else 2)]
        assert sorted(queue.pop(len(expected) + 1)) == expected
        assert queue.check() == []


def _succeeds(work: Callable[[], object]) -> bool:
    """Tell whether a child does ``work``; its own children, which a fault may leave hanging, end with it."""

    def lead() -> None:
        os.setpgid(0, 0)
        work()

    pid = forked(lead)
    try:
        return status_of(pid) == 0
    finally:
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("fault", ["", *mutants.SWAPPING])
def test_what_is_pushed_through_swaps_by_others_is_there_or_the_fault_is_found(tmp_path, fault):
    def work() -> None:
        mutants.SWAPPING.get(fault, _nothing)()
        _work_through_swaps(str(tmp_path))

    assert _succeeds(work) == (fault == "")


@pytest.mark.parametrize("fault", ["", *mutants.FORKING])
def test_what_is_pushed_amid_forks_is_there_once_or_the_fault_is_found(tmp_path, fault):
    def work() -> None:
        mutants.FORKING.get(fault, _nothing)()
        _fork_amid_the_pushes_of_threads(str(tmp_path))

    assert _succeeds(work) == (fault == "")


# --- readers


def _read_and_stay(place: str, mouth: int) -> None:
    """Open a read transaction, say so, and stay in it."""
    with PersistentQueue("queue", place, durability="off") as queue:
        queue._engine.environment.view(queue._engine.ref, lambda *_: (os.write(mouth, b"1"), signal.pause()))


def _reader(place: str) -> int:
    ear, mouth = os.pipe()
    pid = forked(_read_and_stay, place, mouth)
    os.close(mouth)
    assert os.read(ear, 1) == b"1"
    os.close(ear)
    return pid


def _size(queue: PersistentQueue[object]) -> int:
    return queue._engine.environment._generation.extent()


def _turn_over(queue: PersistentQueue[object], times: int) -> None:
    for number in range(times):
        queue.push([number] * 20)
        queue.delete(20)


def _come_and_go(place: str) -> None:
    with PersistentQueue("queue", place) as queue:
        queue.push("by another")


def test_a_process_takes_turns_from_when_another_has_joined_until_it_is_the_first_again(tmp_path, monkeypatch):
    place = str(tmp_path)
    turns = []
    begin = Generation._begin_in_turn
    monkeypatch.setattr(Generation, "_begin_in_turn", lambda self: turns.append("turn") or begin(self))
    for _ in range(2):
        with PersistentQueue("queue", place) as queue:
            queue.push("alone")
            assert not turns
            assert status_of(forked(_come_and_go, place)) == 0
            queue.push("in company")
            assert turns == ["turn"]
        turns.clear()


def test_readers_that_are_killed_again_and_again_let_the_file_not_grow(tmp_path):
    with PersistentQueue("queue", str(tmp_path), durability="off") as queue:
        _turn_over(queue, 50)
        sizes = []
        for _ in range(20):
            pid = _reader(str(tmp_path))
            _turn_over(queue, 20)
            os.kill(pid, signal.SIGKILL)
            status_of(pid)
            _turn_over(queue, 20)
            sizes.append(_size(queue))
        assert sizes[-1] < 1.2 * sizes[5], sizes
        assert queue.check() == []


def test_a_stopped_reader_holds_up_nobody(tmp_path):
    with PersistentQueue("queue", str(tmp_path), durability="off") as queue:
        queue.push(list(range(100)))
        pid = _reader(str(tmp_path))
        os.kill(pid, signal.SIGSTOP)
        assert queue.pop(50) == list(range(50))
        queue.push("new")
        assert queue.flush(force=True) >= 0
        assert queue.pop(100) == [*range(50, 100), "new"]
        assert queue.check() == []
        os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
        status_of(pid)


def _die_in_many_reads(place: str, readers: int) -> None:
    """Leave slots of many threads behind, amid their reads, and die."""
    queue = PersistentQueue("queue", place, durability="off")
    inside = threading.Barrier(readers + 1)
    for _ in range(readers):
        view = lambda *_: (inside.wait(), signal.pause())  # noqa: E731
        threading.Thread(target=queue._engine.environment.view, args=(queue._engine.ref, view), daemon=True).start()
    inside.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_slots(tmp_path, readers: int) -> None:
    with PersistentQueue("queue", str(tmp_path), durability="off") as queue:
        for _ in range(0, readers, 100):
            assert status_of(forked(_die_in_many_reads, str(tmp_path), 100)) == -signal.SIGKILL
            queue.push("x")
            assert queue.pop() == "x"
            with PersistentQueue("queue", str(tmp_path), durability="off") as other:
                assert len(other) == 0
        assert queue.check() == []


def test_more_dead_readers_than_lmdb_has_slots_leave_room_for_the_living(tmp_path):
    _leave_slots(tmp_path, SLOTS + 300)


@pytest.mark.long
def test_very_many_dead_readers_leave_room_for_the_living(tmp_path):
    _leave_slots(tmp_path, READERS * 10)
