"""Processes in pid namespaces of their own, as containers have them."""

import os
import subprocess
import sys

import pytest

import lmdbqueue
from lmdbqueue import PersistentQueue, PidError

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
import lmdbqueue
try:
    print(lmdbqueue.PersistentQueue("queue").peek())
except lmdbqueue.PidError as error:
    print(error)
"""
BOTH = f"""
import subprocess, sys, lmdbqueue
with lmdbqueue.PersistentQueue("queue"):
    subprocess.run([sys.executable, "-c", {OPEN!r}], check=True)
"""


def test_processes_of_other_namespaces_are_refused_and_damage_nothing(needs, tmp_path):
    """Of the same pid, and of another one, too: their threads may have the same number."""
    needs("pid namespaces")
    in_a_container = ["unshare", "-p", "-f", sys.executable, "-c"]
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ROOT}, "text": True}

    def other(program=OPEN):
        return subprocess.run([*in_a_container, program], **place, capture_output=True, timeout=60, check=True).stdout

    with subprocess.Popen([*in_a_container, HOLD], **place, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == "0\n"
        assert "--pid=host" in other()
        with pytest.raises(PidError, match="--pid=host"):
            PersistentQueue("queue", tmp_path)
        assert holder.communicate(timeout=60)[0] == "1\n"
    assert other(BOTH) == "held\n"
    with PersistentQueue("queue", tmp_path) as queue:
        assert list(queue) == ["held", "still"]
        assert queue.check() == []
        assert "--pid=host" in other()
    assert other() == "held\n"


@pytest.mark.parametrize("is_other", [True, False], ids=["another namespace", "the same"])
def test_namespaces_are_told_apart_without_proc(needs, tmp_path, is_other):
    """As where there is none, or that of another namespace, to which ``nsenter -m`` leads."""
    needs("pid namespaces", "Linux 6.11")
    bare = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$0" "$@"', sys.executable, "-c", OPEN]
    other = ["unshare", "-p", "-f", *bare] if is_other else bare
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push("held")
        place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ROOT}}
        seen = subprocess.run(other, **place, text=True, capture_output=True, timeout=60, check=True).stdout
        assert "--pid=host" in seen if is_other else seen == "held\n"
        assert queue._engine.environment._session.is_shared() is not is_other, "who is refused is waited for"
