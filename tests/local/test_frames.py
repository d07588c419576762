"""The short path: how many frames of Python a call passes. Counted, never timed."""

import gc
import os
import sys
import time

import pytest

from lmdbqueue._local.relay import relay

CALLS = {  # and their budgets, with a flush a commit and with checkpoints
    "push": (20, 21, lambda queue, _: queue.push("item")),
    "pop": (25, 24, lambda queue, _: queue.pop()),
    "lease + ack": (45, 49, lambda queue, _: queue.lease().ack()),
    "relay": (53, 56, lambda queue, leases: leases.append(relay(queue, leases.pop()))),
    "reader's pop": (45, 45, lambda _, reader: reader.pop()),
}


def _is_settled(queue, directory):
    """Return whether the directory was looked at long enough after it was changed, so that one look at it will do."""
    return queue._engine.environment._generation.presence.since == os.stat(directory).st_ctime_ns


@pytest.mark.parametrize("durability", ["full", "interval"])
@pytest.mark.parametrize("call", CALLS)
def test_a_lone_call_passes_few_frames(open_queue, call, durability):
    *budgets, verb = CALLS[call]
    budget = budgets[durability == "interval"]
    queue = open_queue(durability=durability, interval=3600.0)
    queue.push(list(range(100)))
    other = queue.reader("billing") if call.startswith("reader") else [queue.lease()] if call == "relay" else None
    frames: list[str] = []

    def count(frame, event, _):
        if event == "call":
            frames.append(frame.f_code.co_name)

    def measured():
        frames.clear()
        sys.setprofile(count)
        try:
            verb(queue, other)
        finally:
            sys.setprofile(None)
        return list(frames)

    directory = queue._engine.environment.directory.path
    for _ in range(50):
        verb(queue, other)
        if _is_settled(queue, directory):
            break
        time.sleep(0.02)  # a file system's times are that coarse
    verb(queue, other)
    gc.disable()  # a collection amid the call would count the finalizers of what other tests have left
    try:
        found = min((measured() for _ in range(2)), key=len)  # one of them may have to allocate pages for many calls
    finally:
        gc.enable()
    assert len(found) - 1 <= budget, " ".join(found)  # less that of the test's own function
