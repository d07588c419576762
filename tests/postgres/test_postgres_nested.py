"""Calls on PostgreSQL from within calls of the same thread, ends of objects and of threads amid anything."""

import fcntl
import gc
import itertools
import pickle
import sys
import threading
from contextlib import suppress

import psycopg
import pytest
from postgres_proxy import Proxy
from processes import DEADLINE, STEP, Moments, eventually, interrupt

from lmdbqueue import DecodeError, Empty, NestedCallError, QueueError, TransactionError
from lmdbqueue._host import departures
from lmdbqueue.postgres import PostgresQueue, _database, _ear, _statements
from lmdbqueue.postgres._block import blocks
from lmdbqueue.postgres._ear import Ear


def in_a_thread(fn):
    """Return what ``fn()`` returns, called in another thread; fail if that waits for itself."""
    done = []
    thread = threading.Thread(target=lambda: done.append(fn()), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it waits for itself"
    (result,) = done
    return result


def _lease(queue):
    with queue.lease(ttl=99):
        pass


def _block(queue):
    with queue.transaction() as txn, suppress(TransactionError):
        txn.connection.execute("SELECT 1")
        queue.push("x")


VERBS = {"push": lambda queue: queue.push("x"), "pop": lambda queue: queue.pop(), "lease": _lease, "block": _block}


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_from_within_a_call_never_waits_for_itself(open_postgres, verb):
    queue = open_postgres()

    def called():
        number, nested = 1, 0
        while True:
            queue.push("there")
            told = []

            def call(told=told):
                try:
                    queue.push("nested")
                    queue.lease(ttl=99).ack()
                except (NestedCallError, TransactionError) as error:
                    told.append(error)

            moments = Moments(number, call)
            with suppress(TransactionError), moments:
                VERBS[verb](queue)
            if moments.left > 0:
                return nested
            nested += 1
            number += STEP

    assert in_a_thread(called) > 2
    assert queue.check() == []


def test_a_call_that_would_wait_for_a_connection_that_its_own_thread_uses_is_refused(open_postgres):
    queue = open_postgres(pool=1)
    queue.push(["a", "b"])
    queue.loads = lambda _: queue.push("nested")
    with pytest.raises(DecodeError, match="NestedCallError"):
        queue.pop()
    queue.loads = pickle.loads
    lease = queue.lease()
    queue.push("c")
    other = open_postgres("other")

    def register():
        try:
            other.lease()
        except NestedCallError:
            return "refused"

    with queue._engine.database.owner._session.connection.lock:
        assert in_a_thread(register) == "refused"
    lease.ack()
    assert queue.pop_many(9) == ["b", "c"]


def test_the_end_of_an_object_waits_for_nothing_where_it_comes(open_postgres, postgres, schema):
    queue = open_postgres()
    queue.push(["a", "b"])
    other = type(queue)(postgres.url("template1"), schema=schema)
    database = other._engine.database
    assert other.push("x") == 0
    lease = other.lease()
    del lease
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with _database._registry:
            held.set()
            let_go.wait(DEADLINE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(DEADLINE)
    forgotten = [other]
    del other
    in_a_thread(lambda: (forgotten.clear(), gc.collect()))
    assert database.handles == 1
    let_go.set()
    holder.join()
    assert departures.wait(DEADLINE)
    assert database.handles == 0
    with type(queue)(postgres.url("template1"), schema=schema) as again:
        assert again.pop() == "x"


def test_a_block_that_its_thread_never_leaves_is_undone(open_postgres):
    queue = open_postgres()
    queue.push("a")
    block = queue.transaction()

    def enter():
        block.__enter__()
        return queue.pop()

    assert in_a_thread(enter) == "a"
    eventually(lambda: queue.pop() == "a")
    assert blocks.of_thread == {}
    with pytest.raises(TransactionError, match="has ended"):
        block.__exit__(None, None, None)
    assert queue.push("next") == 1


def test_a_block_that_is_left_in_another_thread_is_undone(open_postgres):
    queue = open_postgres()
    queue.push("a")
    block, entered, left = queue.transaction(), threading.Event(), threading.Event()

    def enter():
        block.__enter__()
        queue.pop()
        entered.set()
        left.wait(DEADLINE)
        return queue.pop()

    found = []
    thread = threading.Thread(target=lambda: found.append(enter()))
    thread.start()
    entered.wait(DEADLINE)
    with pytest.raises(TransactionError, match="a different thread"):
        block.__exit__(None, None, None)
    left.set()
    thread.join()
    assert found == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_what_a_handler_raises_as_a_block_begins_comes_out_of_it(open_postgres, error):
    queue = open_postgres()

    def raise_():
        raise error

    for number in itertools.count(1, STEP):
        queue.count()  # connects
        block, moments = queue.transaction(), Moments(number, raise_)
        try:
            with moments:
                block.__enter__()
        except error:
            assert moments.left == 0
        else:
            block.__exit__(None, None, None)
            break
    assert number > 50
    gc.collect()  # a connection that was lost on its way out of the pool ends here, with a warning


class Late(Exception):
    """What the handler of a signal raises."""


def entered_late(pipeline, enter=psycopg.Pipeline.__enter__):
    enter(pipeline)
    raise Late


def left_late(_pipeline):
    yield from ()
    raise Late


@pytest.mark.parametrize(("step", "late"), [("__enter__", entered_late), ("_exit_gen", left_late)])
def test_what_a_handler_raises_amid_a_pipeline_comes_out_of_it_and_leaves_none_behind(
    postgres, schema, monkeypatch, step, late
):
    proxy = Proxy(postgres, is_near=False)
    try:
        with PostgresQueue(proxy.url(), schema=schema, patience=5.0) as queue:
            queue.push("a")
            with monkeypatch.context() as amid:
                amid.setattr(psycopg.Pipeline, step, late)
                with pytest.raises(Late):
                    queue.delete(1)
            assert not any(each.connection.pgconn.pipeline_status for each in queue._engine.database.access.pool.all)
            assert queue.push("b") == 1
            assert queue.check() == []
    finally:
        proxy.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_as_a_block_ends_leaves_no_block_behind(open_postgres):
    queue = open_postgres()

    def left(number):
        """Interrupt the end of a block at a moment; return whether it came to that."""
        block = queue.transaction()
        block.__enter__()
        queue.push(number)
        moments = Moments(number, interrupt)
        with suppress(KeyboardInterrupt, QueueError), moments:
            block.__exit__(None, None, None)
        return moments.left == 0

    for number in itertools.count(1, STEP):
        was_interrupted = left(number)
        assert (blocks.of_thread, queue._engine.database._amid) == ({}, set())
        if not was_interrupted:
            break
    assert number > STEP
    queue.push("next")
    assert list(queue)[-1] == "next"


def test_an_interrupt_just_before_a_block_commits_leaves_no_transaction_open(open_postgres, monkeypatch):
    """Though the interrupt is kept, whose traceback refers to all that is under way."""
    queue = open_postgres(patience=5.0)
    block = queue.transaction()
    block.__enter__()
    queue.push("undone")
    with monkeypatch.context() as amid:
        amid.setattr(_database.Database, "_commit", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt) as kept:
            block.__exit__(None, None, None)
    queue.push("next")
    assert (list(queue), kept.type) == (["next"], KeyboardInterrupt)


def test_an_ear_whose_thread_ends_as_it_is_closed_strikes_no_pipe_that_is_gone(monkeypatch):
    ear = Ear(lambda: None, None)
    ear._has_begun = True
    thread = threading.Thread(target=ear._run)

    def tell():  # amid the close
        thread.start()
        thread.join(0.1)  # it has ended, or waits for the lock

    monkeypatch.setattr(ear._sleepers, "tell", tell)
    ear.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    ear._strike()  # nothing, whoever has the number of the pipe by now


def test_calls_that_wait_while_the_server_is_away_never_fill_the_pipe_of_who_listens():
    ear = Ear(lambda: None, None)
    ear._has_begun = ear._is_away = True
    fcntl.fcntl(ear._hammer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        assert in_a_thread(lambda: sum(map(ear.listen, ["channel"] * 5000))) == 0
    finally:
        ear._close_pipe()


def test_who_gets_no_thread_to_listen_looks_now_and_then_and_the_next_tries_again(open_postgres, monkeypatch):
    start, refused = _ear.start_new_thread, []

    def refuse_once(fn, args):
        if not refused:
            refused.append(fn)
            message = "can't start new thread"
            raise RuntimeError(message)
        return start(fn, args)

    monkeypatch.setattr(_ear, "start_new_thread", refuse_once)
    monkeypatch.setattr(_ear, "CEILING", 0.01)
    queue = open_postgres()
    with pytest.raises(Empty):
        queue.get(timeout=0.02)
    assert refused
    queue.push("a")
    assert queue.get(timeout=DEADLINE) == "a"
    with pytest.raises(Empty):
        queue.get(timeout=0.02)
    assert queue._engine.database.ear._has_begun


def test_a_claim_is_released_by_whom_a_debugger_interrupts_as_a_lock_is_left(open_postgres):
    """Python calls the trace function once more before it leaves a ``with`` statement, and then does not leave it."""
    queue, other = open_postgres(), open_postgres()

    def interrupted(number):
        """Return whether there was a line of this number to interrupt a pop at."""
        queue.push(["a", "b"])
        left = number

        def trace(frame, event, _):
            nonlocal left
            if frame.f_code is not _statements.Statements.rows.__code__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    interrupt()
            return trace

        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                queue.pop_many(2)
        finally:
            sys.settrace(None)
        other.clear()
        return left <= 0

    assert in_a_thread(lambda: next(number for number in itertools.count(1) if not interrupted(number))) > 11
