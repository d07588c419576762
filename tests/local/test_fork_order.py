"""One file owns what happens at a fork: who takes part, and in which order."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import DEADLINE, forked, status_of

import lmdbqueue
import lmdbqueue.aio._courier
import lmdbqueue.integrations.logging
import lmdbqueue.postgres
from lmdbqueue import PersistentQueue
from lmdbqueue._host import fork

PACKAGE = os.path.dirname(lmdbqueue.__file__)


def _sources():
    for folder, _, files in os.walk(PACKAGE):
        for name in files:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    yield os.path.relpath(os.path.join(folder, name), PACKAGE), file.read()


def test_one_file_registers_with_python():
    calls = re.compile(r"^ *os\.register_at_fork", re.MULTILINE)
    assert [name for name, text in _sources() if calls.search(text)] == ["_host/fork.py"]


def test_all_that_is_in_the_order_takes_part_once():
    parts = [part for _, text in _sources() for part in re.findall(r'^at_fork\("([^"]+)"', text, re.MULTILINE)]
    assert sorted(parts) == sorted(fork.ORDER)
    assert fork.registered() == fork.ORDER


def test_locks_go_before_the_environments_that_are_used_at_once():
    assert fork.ORDER.index("locks") < fork.ORDER.index("doors") < fork.ORDER.index("environments")
    assert fork.ORDER.index("blocks") < fork.ORDER.index("environments")


def test_what_fails_keeps_no_other_from_its_part(monkeypatch):
    done = []

    def fail():
        done.append("fails")
        raise ZeroDivisionError

    parts = {
        "locks": fork._Part(lambda: done.append("before 1"), fork._nothing, lambda: done.append("child 1")),
        "doors": fork._Part(fail, fork._nothing, fail),
        "engines": fork._Part(lambda: done.append("before 3"), fork._nothing, lambda: done.append("child 3")),
    }
    monkeypatch.setattr(fork, "_parts", parts)
    monkeypatch.setattr(fork, "_here", SimpleNamespace(forks=True))
    for step in (fork._before, fork._in_child):
        with pytest.raises(ZeroDivisionError):
            step()
    assert done == ["before 3", "fails", "before 1", "child 1", "fails", "child 3"]


def test_a_child_of_a_child_goes_on(open_queue):
    queue = open_queue()

    def beget():
        queue.push("child")
        assert status_of(forked(queue.push, "grandchild")) == 0

    assert status_of(forked(beget)) == 0
    assert list(queue) == ["child", "grandchild"]


TWO_FORKS = """
import os, sys, threading, time
from lmdbqueue import PersistentQueue
from lmdbqueue._host import fork
from lmdbqueue._local.environment import opening

queue = PersistentQueue(sys.argv[1])
begun, statuses = [], []
fork._parts["pushes to come"] = fork._Part(lambda: begun.append(1), fork._nothing, fork._nothing)  # the first step


def fork_and_push():
    pid = os.fork()
    if pid == 0:
        queue.push("child")
        os._exit(0)
    statuses.append(os.waitpid(pid, 0)[1])
    queue.push("parent")


threads = [threading.Thread(target=fork_and_push) for _ in range(2)]
with opening:  # which both forks wait for
    for thread in threads:
        thread.start()
    while len(begun) < len(threads):
        time.sleep(0.01)
for thread in threads:
    thread.join()
assert statuses == [0, 0]
"""


def test_threads_that_fork_at_the_same_time_each_end_their_own_fork(tmp_path):
    """In a new process: modules imported later have steps that come first, and some let one thread fork at a time."""
    place = tmp_path / "queue"
    subprocess.run([sys.executable, "-c", TWO_FORKS, str(place)], check=True, timeout=DEADLINE)
    with PersistentQueue(place) as queue:
        assert sorted(queue) == ["child", "child", "parent", "parent"]
