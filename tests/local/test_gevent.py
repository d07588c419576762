"""Every verb in a program that gevent has patched, with other greenlets and another process beside it.

A program of its own, since patching is for good. Its ``os.close`` lets a directory's descriptor open, and its lock with
it, until the loop comes round; its locks belong to greenlets.
"""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    from gevent import monkey
    monkey.patch_all()
    import gc, os, sys
    import gevent
    from lmdbqueue import Empty, PersistentQueue
    from lmdbqueue._host import departures

    gevent.sleep(0)  # the hub is there, as in any program that uses gevent
    place = sys.argv[1]
    queue = PersistentQueue("queue", place)
    other = PersistentQueue("queue", place, name="other")

    # all verbs, one after the other
    assert queue.push(["a", "b", "c"]) == range(3)
    assert queue.peek(2) == ["a", "b"]
    assert queue.pop() == "a"
    assert list(queue) == ["b", "c"]
    assert queue.delete() == 1
    with queue.lease() as lease:
        lease.extend(60)
        lease.nack()
    with queue.lease() as lease:
        assert list(lease) == ["c"]
    queue.put("d")
    assert queue.get() == "d"
    queue.task_done()
    queue.join()
    with queue.transaction():
        queue.push("e")
        queue.state["x"] = 1
    assert queue.move(to=other) == 1
    assert other.pop() == "e"
    reader = queue.reader("r")
    queue.push("f")
    assert reader.pop() == "f"
    queue.drop_reader("r")
    assert queue.flush(force=True) >= 0
    assert queue.flush(force=True) >= 0
    assert queue.check() == []
    queue.copy("copy").close()
    other.close()
    queue.drop_queue("other")
    queue.stats()
    queue.clear(all=True)

    # greenlets that wait for each other
    def produce(who):
        for number in range(20):
            queue.put((who, number))
            gevent.sleep(0)

    got = []

    def consume():
        try:
            while True:
                got.append(queue.get(timeout=5))
        except Empty:
            pass

    consumers = [gevent.spawn(consume) for _ in range(3)]
    producers = [gevent.spawn(produce, who) for who in range(5)]
    flusher = gevent.spawn(lambda: [queue.flush(force=True) for _ in range(3)])
    gevent.joinall([*producers, flusher], timeout=30, raise_error=True)
    with gevent.Timeout(30):
        while len(got) < 100:
            gevent.sleep(0.01)
    gevent.killall(consumers)
    assert sorted(got) == [(who, number) for who in range(5) for number in range(20)]

    # a forked child, and a queue that is let go
    queue.push("for the child")
    pid = os.fork()
    if not pid:
        os._exit(0 if queue.pop() == "for the child" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    del lease, reader, consumers, producers, flusher
    left = PersistentQueue("left", place)
    del left
    gc.collect()
    assert departures.wait(10)
    queue.push("kept")
    queue.close()
    print("done")
"""


def test_every_verb_goes_well_under_gevent_and_leaves_no_lock_behind(tmp_path):
    pytest.importorskip("gevent", reason="gevent is not installed: pip install 'lmdbqueue-persistent[test]'")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    look = f"from lmdbqueue import PersistentQueue as Q; q = Q('queue', {str(tmp_path)!r}); print(list(q), q.check())"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "['kept'] []\n"
