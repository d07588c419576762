"""A block belongs to the thread that entered it: LMDB's mutex can be let go by no other."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import DEADLINE, eventually, forked, is_taken, status_of

from lmdbqueue import PersistentQueue, TransactionError


def _others_can_write(queue, place, item):
    """Demand that another thread and another process can write, soon."""

    def push():
        with PersistentQueue("queue", place) as other:
            other.push(item)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert status_of(forked(push), 20) == 0
    assert queue.pop(2) == [item, item]


def _leave_elsewhere(place, then):
    with PersistentQueue("queue", place) as queue:
        pool = ThreadPoolExecutor(1)
        block = queue.transaction()
        pool.submit(block.__enter__).result(DEADLINE)
        pool.submit(queue.push, "in the block").result(DEADLINE)
        with pytest.raises(TransactionError, match="a different thread"):
            block.__exit__(None, None, None)
        if then == "the thread calls again":
            assert pool.submit(queue.pop).result(DEADLINE) is None
        pool.shutdown()  # "the thread ends"
        eventually(lambda: not is_taken(queue._engine.environment._writer))
        assert len(queue) == 0
        _others_can_write(queue, place, "after")
        with queue.transaction():
            queue.push("another block")
        assert list(queue) == ["another block"]
        assert queue.check() == []


@pytest.mark.parametrize("then", ["the thread calls again", "the thread ends"])
def test_a_block_that_is_left_in_another_thread_is_refused_and_undone(tmp_path, then):
    assert status_of(forked(_leave_elsewhere, tmp_path, then), DEADLINE) == 0


def _leave_by_an_error(place):
    with PersistentQueue("queue", place) as queue:
        pool = ThreadPoolExecutor(1)
        block = queue.transaction()
        pool.submit(block.__enter__).result(DEADLINE)
        error = ZeroDivisionError()
        assert not block.__exit__(type(error), error, None)
        pool.submit(len, queue).result(DEADLINE)
        _others_can_write(queue, place, "after")


def test_an_error_that_leaves_a_block_in_another_thread_is_that_error(tmp_path):
    assert status_of(forked(_leave_by_an_error, tmp_path), DEADLINE) == 0


def _end_inside(place):
    with PersistentQueue("queue", place) as queue:
        block = queue.transaction()

        def enter():
            block.__enter__()
            queue.push("in the block")

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        _others_can_write(queue, place, "after")
        with pytest.raises(TransactionError):
            block.__exit__(None, None, None)
        _others_can_write(queue, place, "and then")
        assert queue.check() == []


def test_a_thread_that_ends_amid_its_block_ends_the_block(tmp_path):
    assert status_of(forked(_end_inside, tmp_path), DEADLINE) == 0


def _let_go(place):
    with PersistentQueue("queue", place) as queue:
        blocks = [queue.transaction()]
        pool = ThreadPoolExecutor(1)
        pool.submit(blocks[0].__enter__).result(DEADLINE)
        blocks.clear()  # the collector leaves the block, in this thread
        pool.shutdown()
        _others_can_write(queue, place, "after")


def test_a_block_that_the_collector_leaves_is_undone(tmp_path):
    assert status_of(forked(_let_go, tmp_path), DEADLINE) == 0


_ENDS_AMID_A_BLOCK = """
import threading
from lmdbqueue import PersistentQueue

queue = PersistentQueue("queue", durability="off")
begun = threading.Event()

def block():
    with queue.transaction():
        queue.push("a")
        begun.set()
        threading.Event().wait()

threading.Thread(target=block, daemon=True).start()
begun.wait()
"""


def test_a_program_ends_while_a_daemon_thread_of_it_is_in_a_block_which_is_undone(tmp_path):
    subprocess.run([sys.executable, "-c", _ENDS_AMID_A_BLOCK], cwd=tmp_path, timeout=20, check=True)
    with PersistentQueue("queue", tmp_path, durability="off") as queue:
        assert queue.count() == 0
        assert queue.push("b") == 0
