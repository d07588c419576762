"""Calls that change nothing, or fail, wait for no call of another thread: LMDB's binding would let them."""

import operator
import os
import threading
from contextlib import contextmanager, suppress

import pytest

from lmdbqueue import Full, OptionError, PersistentQueue, StorageError, TransactionError
from lmdbqueue._host.session import Session

PATIENCE = 60  # seconds, for what happens at once when all is well


@contextmanager
def a_call_that_does_not_end(queue):
    """Keep another thread within a call of the environment: a copy into a pipe that nobody reads."""
    lmdb = queue._engine.environment._generation._env
    out, into = os.pipe()
    began = threading.Event()

    def copy():
        began.set()
        with suppress(Exception):  # its reader has gone
            lmdb.copyfd(into, compact=True)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        assert os.read(out, 1)  # it is under way, and fills the pipe
        yield
        assert thread.is_alive()
    finally:
        os.close(out)
        thread.join()
        os.close(into)


def ends(call):
    """Return whether a call ends, in a thread of its own."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def cancelled(queue):
    assert not queue.cancel("no such key")


def refused(queue):
    queue.maxsize = 1
    with pytest.raises(Full):
        queue.push(b"")


def refused_in_a_group(queue):
    queue.maxsize = 1
    queue._engine.environment._is_writing = True  # as amid a block of another thread: it takes the line
    with pytest.raises(Full):
        queue.push(b"")
    queue._engine.environment._is_writing = False


def undone(queue):
    with suppress(ZeroDivisionError), queue.transaction():
        queue.push(b"")
        raise ZeroDivisionError


def undone_within_a_call(queue):
    queue.maxsize = 1
    with pytest.raises(Full), queue.transaction():
        queue.push(b"")


def dropped(queue):
    with pytest.raises(KeyError):
        queue.drop_queue("no such queue")


def checked(queue):
    assert not queue.check()


def undone_after_an_error_that_is_kept(queue):
    queue.maxsize = 1
    kept = []
    with suppress(ZeroDivisionError), queue.transaction():
        try:
            queue.push(b"")
        except Full as error:
            kept.append(error)
        raise ZeroDivisionError


def undone_after_an_error_that_is_caught(queue):
    with pytest.raises(TransactionError), queue.transaction(), suppress(OptionError):
        queue.push(b"", priority=1)  # beside a reader


def not_opened(queue):
    environment = queue._engine.environment
    with pytest.raises(TypeError):
        environment.open_queue("other", operator.truediv)  # in the place of what makes it


def not_rewritten(queue):
    environment = queue._engine.environment
    os.mkdir(environment.directory.draft(environment._generation.number + 1))  # in the place of the file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "is_in_doubt", lambda *_: True)
        with pytest.raises(StorageError):
            environment._begin_anew()


@pytest.mark.parametrize(
    "call",
    [
        cancelled,
        refused,
        refused_in_a_group,
        undone,
        undone_within_a_call,
        undone_after_an_error_that_is_kept,
        undone_after_an_error_that_is_caught,
        not_opened,
        not_rewritten,
        dropped,
        checked,
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_not_committed_waits_for_no_call_of_another_thread(tmp_path, call):
    with PersistentQueue("queue", tmp_path, serializer="bytes") as queue:
        queue.push([os.urandom(4096)] * 1024)
        queue.reader("reader")
        found = list(queue)
        with a_call_that_does_not_end(queue):
            assert ends(lambda: call(queue))
            queue.maxsize = 0
            assert ends(lambda: queue.push(b"after it"))
        assert list(queue) == [*found, b"after it"]
        assert not queue.check()


def test_a_transaction_to_which_something_else_refers_is_undone(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        kept = []

        def keep(txn, _tables):
            kept.append(txn)

        queue._engine.environment.update(queue._engine.ref, keep)
        queue.push(1)
        assert list(queue) == [1]
