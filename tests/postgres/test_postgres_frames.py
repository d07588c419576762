"""The short path: how many frames of Python a call passes, psycopg's included. Counted, never timed."""

import gc
import sys

import psycopg
import pytest

CALLS = {  # and their budgets
    "push": (25, lambda queue, _: queue.push("item")),
    "pop": (35, lambda queue, _: queue.pop()),
    "pop of what was not seen ahead": (68, lambda queue, _: pop_anew(queue)),
    "lease + ack": (85, lambda queue, _: queue.lease().ack()),
    "peek": (47, lambda queue, _: queue.peek()),
    "len": (70, lambda queue, _: len(queue)),
    "reader's pop": (226, lambda _, reader: reader.pop()),
}


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
    reader = queue.reader("billing", start="oldest") if call.startswith("reader") else None
    for _ in range(5):  # until all is prepared
        verb(queue, reader)
    queue._engine._hold._deaths_seen = float("inf")  # a look for dead owners is another statement
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
