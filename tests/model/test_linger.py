"""A lease that waits takes what a list of arrivals says, on a clock that only its own waits let go on.

The items arrive while the consumer sleeps: a sleep ends with the next arrival, or when its time is over.
"""

import shutil
import tempfile
import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmdbqueue import Empty, PersistentQueue
from lmdbqueue._verbs import head, queue

seconds = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])
arrivals = st.lists(st.tuples(seconds, st.lists(st.integers(0, 12), min_size=1, max_size=3)), max_size=5)


class Loop:
    """A queue, its clock, and what arrives at which times."""

    def __init__(self, waiting, due):
        self.waiting, self.due = list(waiting), due
        self.now = 0.0
        self.begun = []  # when each sleep began

    def sleep_of(self, opened):
        def sleep(_, timeout):
            self.begun.append(self.now)
            if self.due and self.due[0][0] <= self.now + timeout:
                self.now, sizes = self.due.pop(0)
                opened.push_many(bytes(size) for size in sizes)
            else:
                self.now += timeout

        return sleep


def expected(waiting, due, n, max_bytes, linger, *, timeout):
    """Return the sizes of the items that a lease takes, and when; None for none."""
    there, now, due = list(waiting), 0.0, list(due)
    if not there:
        if timeout is None or not due or due[0][0] > timeout:
            return None, timeout or 0.0
        now, there = due[0][0], due.pop(0)[1]
    end = now + linger
    while linger and len(there) < n and (max_bytes is None or sum(there) < max_bytes):
        if not due or due[0][0] > end:
            now = end
            break
        now, more = due.pop(0)
        there = there + more
    taken = there[:n]
    while max_bytes is not None and len(taken) > 1 and sum(taken) > max_bytes:
        taken.pop()
    return taken, now


@given(
    waiting=st.lists(st.integers(0, 12), max_size=3),
    gaps=arrivals,
    n=st.integers(1, 5),
    max_bytes=st.none() | st.integers(1, 30),
    linger=seconds,
    timeout=st.none() | st.sampled_from([0.5, 3.0]),
)
@example(waiting=[10], gaps=[(0.5, [10])], n=9, max_bytes=20, linger=5.0, timeout=None)
@example(waiting=[12], gaps=[], n=9, max_bytes=10, linger=5.0, timeout=None)
def test_a_lease_lingers_as_long_as_a_list_of_arrivals_says(waiting, gaps, n, max_bytes, linger, timeout):
    due, time = [], 0.0
    for gap, sizes in gaps:
        time += gap + 0.25  # no two at once, and none when a wait is over
        due.append((time, sizes))
    is_blocking = timeout is not None
    wanted, at = expected(waiting, due, n, max_bytes, linger, timeout=timeout)
    loop, path = Loop(waiting, list(due)), tempfile.mkdtemp(dir="/dev/shm")
    clock = types.SimpleNamespace(monotonic=lambda: loop.now)
    try:
        with (
            PersistentQueue("queue", path, serializer="bytes", durability="off") as opened,
            pytest.MonkeyPatch.context() as patch,
        ):
            opened.push_many(bytes(size) for size in waiting)
            patch.setattr(opened._engine, "sleep", loop.sleep_of(opened))
            for module in (head, queue):
                patch.setattr(module, "time", clock)
            options = {"max_bytes": max_bytes, "linger": linger, "blocking": is_blocking, "timeout": timeout}
            if wanted is None and is_blocking:
                with pytest.raises(Empty):
                    opened.lease(n, **options)
            else:
                lease = opened.lease(n, **options)
                assert [len(item) for item in lease] == (wanted or [])
            assert loop.now == at
            assert loop.begun == sorted(set(loop.begun))  # no sleep that lets no time pass
    finally:
        shutil.rmtree(path)
