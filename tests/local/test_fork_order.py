"""One file owns what happens at a fork: who takes part, and in which order."""

import os
import re
import threading
from types import SimpleNamespace

import pytest
from processes import eventually, forked, status_of

import lmdbqueue
import lmdbqueue.aio._courier
import lmdbqueue.integrations.logging
import lmdbqueue.postgres
from lmdbqueue._host import fork
from lmdbqueue._local.environment import opening

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


def test_threads_that_fork_at_the_same_time_each_end_their_own_fork(open_queue):
    queue = open_queue()
    begun, statuses = [], []
    mine = fork._Part(lambda: begun.append(threading.get_ident()), fork._nothing, fork._nothing)

    def fork_and_push():
        statuses.append(status_of(forked(queue.push, "child")))
        queue.push("parent")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fork._parts, "pushes to come", mine)  # the first of the steps before a fork
        threads = [threading.Thread(target=fork_and_push) for _ in range(2)]
        with opening:  # which both forks wait for
            for thread in threads:
                thread.start()
            eventually(lambda: len(begun) == len(threads))
        for thread in threads:
            thread.join()
    assert statuses == [0, 0]
    assert sorted(queue) == ["child", "child", "parent", "parent"]
