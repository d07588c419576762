"""A pop of one item: it is claimed, decoded where no transaction is open, and removed."""

import os
import pickle
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

import pytest
from processes import DEADLINE, eventually, forked, status_of

from lmdbqueue import DecodeError, ForkError
from lmdbqueue.postgres._session import Session

_CLAIMS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
_OPEN = "SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"


@pytest.fixture
def queue(open_postgres, postgres):
    """Give a queue of six items, of which no claim is left in the end."""
    queue = open_postgres()
    queue.push([*"abcdef"])
    yield queue
    eventually(lambda: postgres.execute(_CLAIMS) == [(0,)])
    assert queue.check() == []


def test_what_is_decoded_is_claimed_and_no_transaction_is_open(queue, postgres):
    seen = []

    def loads(payload):
        seen.append((postgres.execute(_CLAIMS), postgres.execute(_OPEN)))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop() == "a"
    assert seen == [([(1,)], [])]


def test_each_consumer_decodes_another_item_and_none_decodes_in_vain(queue, open_postgres):
    decoded, together = [], threading.Barrier(4)

    def loads(payload):
        decoded.append(pickle.loads(payload))
        together.wait(DEADLINE)
        return decoded[-1]

    others = [open_postgres(loads=loads) for _ in range(4)]
    with ThreadPoolExecutor(4) as executor:
        pops = [executor.submit(other.pop) for other in others]
        for pop in pops:
            pop.result()
    assert sorted(decoded) == [*"abcd"]
    assert queue.pop(9) == ["e", "f"]


def test_whoever_takes_items_passes_over_one_that_is_being_decoded(queue, open_postgres):
    looks, other = [], open_postgres()
    target = open_postgres("target")

    def loads(payload):
        with other.transaction():
            looks.append(other.pop())
        with other.lease() as lease:
            looks.extend(lease.items)
        looks.extend(other.pop(2))
        looks.append((other.delete(), other.move(1, to=target)))
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop() == "a"
    assert looks == ["b", "c", "d", "e", (1, 0)]
    assert (target.pop(), other.pop()) == (None, None)


def test_an_item_that_was_seen_ahead_is_left_to_whoever_has_claimed_it(queue, open_postgres):
    assert (queue.pop(), queue._engine._takes._ahead.seq) == ("a", 1)

    def loads(payload):
        looks.append(queue.pop())
        return pickle.loads(payload)

    looks = []
    assert open_postgres(loads=loads).pop() == "b"
    assert looks == ["c"]


def test_a_function_that_decodes_may_use_the_same_queue(queue):
    def loads(payload):
        if len(queue) == 6:
            queue.push("more")
            assert queue.pop() == "b"
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop() == "a"
    queue.loads = pickle.loads
    assert queue.pop(9) == [*"cdef", "more"]


def test_what_cannot_be_decoded_is_free_at_once(queue, open_postgres, postgres):
    queue.loads = int
    with pytest.raises(DecodeError):
        queue.pop()
    assert postgres.execute(_CLAIMS) == [(0,)]
    assert open_postgres().pop() == "a"


def test_what_a_killed_process_was_decoding_is_the_first_again(queue, open_postgres, postgres):
    def loads(_payload):
        os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(lambda: open_postgres(loads=loads).pop())
    status_of(pid)
    eventually(lambda: postgres.execute(_CLAIMS) == [(0,)])
    assert queue.pop() == "a"


def test_a_pop_whose_connection_is_lost_while_it_decodes_takes_its_item_with_another(queue, postgres):
    decoded = []

    def loads(payload):
        decoded.append(pickle.loads(payload))
        if len(decoded) == 1:
            postgres.execute(
                "SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
            )
        return decoded[-1]

    queue.loads = loads
    assert (queue.pop(), queue.pop()) == ("a", "b")
    assert decoded == ["a", "a", "b"]


def test_a_pop_whose_item_leaves_while_it_is_decoded_takes_the_next(queue, open_postgres):
    other, decoded = open_postgres(), []

    def loads(payload):
        decoded.append(pickle.loads(payload))
        if len(decoded) == 1:
            other.delete_item(0)
        elif len(decoded) == 2:
            other.clear()
        return decoded[-1]

    queue.loads = loads
    assert queue.pop() is None
    assert decoded == ["a", "b"]


def test_another_item_of_the_same_number_is_not_taken_for_the_one_that_was_decoded(queue, postgres, schema):
    """As after a failover to a standby that lagged, between the two: the number was given again there."""
    decoded = []

    def loads(payload):
        decoded.append(pickle.loads(payload))
        if len(decoded) == 1:
            changed = (
                f"UPDATE \"{schema}\".items SET payload = %s, pushed_at = pushed_at + interval '1 us' WHERE seq = 0"
            )
            postgres.execute(changed, pickle.dumps("x"))
        return decoded[-1]

    queue.loads = loads
    assert queue.pop() == "x"
    assert decoded == ["a", "x"]


@pytest.mark.parametrize("many", [3, 150])
def test_what_a_block_is_taking_is_passed_over(open_postgres, many):
    queue, other = open_postgres(), open_postgres()
    queue.push(list(range(many + 2)))
    with queue.transaction():
        assert len(queue.pop(many)) == many
        popped = []
        thread = threading.Thread(target=lambda: popped.extend([other.pop(), other.pop(), other.pop()]))
        thread.start()
        thread.join(DEADLINE)
        assert popped == [many, many + 1, None]
    assert queue.check() == []


def test_what_was_locked_before_and_is_free_again_is_the_first(queue, open_postgres):
    other = open_postgres()
    with suppress(ZeroDivisionError), queue.transaction():
        queue.pop(3)
        raise ZeroDivisionError
    assert (other.pop(), other.pop(4)) == ("a", [*"bcde"])


def test_readers_count_what_was_claimed_and_left(queue):
    readers = queue.reader("one"), queue.reader("two")
    readers[1].seek(1)
    assert (queue.pop(), queue.pop()) == ("a", "b")
    assert [reader.skipped for reader in readers] == [2, 1]


def test_queues_of_one_database_have_claims_of_their_own(queue, open_postgres):
    other = open_postgres("other")
    other.push("x")

    def loads(payload):
        assert other.pop() == "x"
        return pickle.loads(payload)

    queue.loads = loads
    assert queue.pop() == "a"


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("step", ["claim", "alone"])
def test_what_a_handler_raises_just_after_a_claim_or_before_its_release_leaves_nothing_claimed(
    queue, open_postgres, monkeypatch, n, step
):
    done = getattr(Session, step)

    def interrupted(self, *statement):
        if step == "claim":
            done(self, *statement)
        raise TimeoutError

    queue.loads = int
    with monkeypatch.context() as amid:
        amid.setattr(Session, step, interrupted)
        with pytest.raises(TimeoutError):
            queue.pop_many(n) if n > 1 else queue.pop()
    eventually(lambda: open_postgres().pop(9) == [*"abcdef"])


@pytest.mark.parametrize("n", [1, 2])
def test_a_child_that_is_forked_while_an_item_is_decoded_has_no_part_in_the_pop(queue, postgres, n):
    """Nor does it write to what it has opened under the number of its parent's connection."""
    parent, children, sockets = os.getpid(), [], []
    sessions = postgres.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'lmdbqueue' ORDER BY 1")

    def loads(payload):
        if not children:
            children.append(os.fork())
            if os.getpid() == parent:
                assert status_of(children[0]) == 0
            else:
                sockets.extend(chain(*(socket.socketpair() for _ in range(20))))
        return pickle.loads(payload)

    queue.loads = loads
    try:
        popped = queue.pop_many(n)
        assert os.getpid() == parent
    except ForkError:
        for each in sockets:
            with pytest.raises(BlockingIOError):
                each.recv(1, socket.MSG_DONTWAIT)
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert popped == [*"abcdef"[:n]]
    assert set(sessions) <= set(postgres.execute("SELECT pid FROM pg_stat_activity"))
