"""The short path: how many frames of Python a call passes, psycopg's included. Counted, never timed."""

import gc
import sys
import threading
from contextlib import suppress

import psycopg
import pytest
from processes import eventually

from lmdbqueue import Lease
from lmdbqueue._base.values import Push
from lmdbqueue._verbs.lease import relay_all
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.postgres._statements import Statements

CALLS = {  # and their budgets
    "push": (25, lambda queue, _: queue.push("item")),
    "pop": (35, lambda queue, _: queue.pop()),
    "pop of what was not seen ahead": (68, lambda queue, _: pop_anew(queue)),
    "lease + ack": (85, lambda queue, _: queue.lease().ack()),
    "relay": (70, lambda queue, leases: leases.append(relayed(queue, leases.pop()))),
    "peek": (47, lambda queue, _: queue.peek()),
    "len": (70, lambda queue, _: len(queue)),
    "reader's pop": (226, lambda _, reader: reader.pop()),
}


def relayed(queue, lease):
    ((error, following),) = relay_all(queue._engine, [lease], None, head_of(queue).sort_out)
    assert error is None
    return Lease(queue._engine, *(following or queue._engine.lease(1, None, head_of(queue).sort_out)))


def pop_anew(queue):
    queue._engine._takes._ahead = None
    queue._engine._takes._misses = 2
    return queue.pop()


@pytest.mark.skipif(psycopg.pq.__impl__ == "python", reason="psycopg without C passes more frames")
@pytest.mark.parametrize("call", CALLS)
def test_a_lone_call_passes_few_frames(open_postgres, call):
    budget, verb = CALLS[call]
    queue = open_postgres()
    queue.push(list(range(100)))
    queue._engine._hold._deaths_seen = float("inf")  # a look for dead owners is another statement
    reader = queue.reader("billing", start="oldest") if call.startswith("reader") else None
    reader = [queue.lease()] if call == "relay" else reader
    for _ in range(5):  # until all is prepared
        verb(queue, reader)
    queue._engine._hold._deaths_seen = float("inf")
    frames = []

    def count(frame, event, _):
        if event == "call":
            frames.append(frame.f_code.co_name)

    verb(queue, reader)
    gc.disable()  # a collection amid the call would count the finalizers of what other tests have left
    sys.setprofile(count)
    try:
        verb(queue, reader)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert len(frames) - 1 <= budget, " ".join(frames)  # less that of the test's own function


@pytest.fixture
def sent(monkeypatch):
    """Note what is sent to the server."""
    sent, rows, command = [], Statements.rows, Statements.command
    monkeypatch.setattr(Statements, "rows", lambda self, text, values: sent.append(text) or rows(self, text, values))
    monkeypatch.setattr(Statements, "command", lambda self, text: sent.append(text) or command(self, text))
    return sent


@pytest.mark.parametrize("items", [1, 5])
def test_a_worker_sends_few_statements(open_postgres, sent, items):
    """One for each item, which acknowledges it and leases the next; two for each list."""
    queue, done, ending = open_postgres(), [], threading.Event()
    queue.push_many(range(30))
    queue._engine._hold._deaths_seen = float("inf")
    sent.clear()

    def handle(item):
        done.extend(item if items > 1 else [item])
        if len(done) == 30:
            ending.set()

    queue.work(handle, items=items, stop=ending)
    assert done == [*range(30)]
    assert len(sent) <= (33 if items == 1 else 14)


@pytest.mark.parametrize("order", ["commit", "relaxed"])
def test_a_push_with_headers_or_an_expiry_is_one_statement(open_postgres, sent, order):
    queue = open_postgres(order=order)
    queue.push("a", headers={"n": "1"})  # and opens what the session needs
    sent.clear()
    queue.push("b", headers={"n": "2"}, expires=100)
    queue.push(["c", "d"], headers={"n": "3"})
    several = [queue.dumps("e"), queue.dumps("f")]
    queue._engine.append_each([(several, Push(headers={"n": "4"})), (several, Push())])
    assert len(sent) == 3
    sent.clear()
    queue._engine.append_each([([queue.dumps("g")], Push(expires=9)), ([queue.dumps("h")], Push(expires=99))])
    assert len(sent) > 3
    with queue.lease(10) as lease:
        assert list(lease) == list("abcdefefgh")
        assert [each.get("n") for each in lease.headers] == ["1", "2", "3", "3", "4", "4", None, None, None, None]
    queue.push_many(list("abc"), expires=0.001)
    queue.push("d", expires=1000)
    eventually(lambda: list(queue) == ["d"])
    assert queue.stats().expired == 3


def test_items_that_were_acknowledged_are_not_asked_for_again_at_the_end_of_a_lease(open_postgres, sent):
    queue = open_postgres()
    queue.push_many(range(4))
    for acked in (None, 1):
        with queue.lease(2) as lease:
            lease.ack(acked and lease.seqs[0])
            with suppress(ZeroDivisionError), queue.transaction():
                lease.ack()  # which is undone
                raise ZeroDivisionError
            sent.clear()
        assert bool(sent) == bool(acked)
    assert queue.stats().leased == queue.count() == 0
