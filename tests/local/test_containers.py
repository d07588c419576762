"""Processes in pid namespaces of their own, as containers have them."""

import os
import subprocess
import sys

import lmdbqueue
from lmdbqueue import PersistentQueue

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))
HOLD = """
import os, sys, lmdbqueue
assert os.getpid() == 1
queue = lmdbqueue.PersistentQueue("queue")
print(queue.push("held"), flush=True)
sys.stdin.read()
print(queue.push("still"), flush=True)
"""
OPEN = """
import os, lmdbqueue
assert os.getpid() == 1
try:
    print(lmdbqueue.PersistentQueue("queue").peek())
except lmdbqueue.PidError as error:
    print(error)
"""


def test_a_second_process_with_the_same_pid_is_told_so_and_damages_nothing(needs, tmp_path):
    needs("pid namespaces")
    in_a_container = ["unshare", "-p", "-f", sys.executable, "-c"]
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ROOT}, "text": True}

    def second():
        return subprocess.run([*in_a_container, OPEN], **place, capture_output=True, timeout=60, check=True).stdout

    with subprocess.Popen([*in_a_container, HOLD], **place, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == "0\n"
        assert "--pid=host" in second()
        with PersistentQueue("queue", tmp_path) as queue:  # of another pid
            assert queue.peek() == "held"
        assert holder.communicate(timeout=60)[0] == "1\n"
    assert second() == "held\n"
    with PersistentQueue("queue", tmp_path) as queue:
        assert list(queue) == ["held", "still"]
        assert queue.check() == []
