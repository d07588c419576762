"""The disk fails at the n-th write or flush: the call says so, and the queue goes on with all that was acknowledged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmdbqueue import PersistentQueue

WORK = """
import json, sys
from lmdbqueue import CommitUnknownError, PersistentQueue, QueueError

queue = PersistentQueue("queue", sys.argv[1])
queue.push("first")
open("/dev/null").close()  # where the count of calls to fail begins
told, unknown, failed = [], [], []
for number in range(12):
    try:
        queue.push(number)
    except CommitUnknownError:
        unknown.append(number)
    except QueueError:
        failed.append(number)
    else:
        told.append(number)
print(json.dumps([told, unknown, failed, queue.peek(100), queue.check()]))
"""


@pytest.mark.parametrize("when", [1, 2, 5, 11])
@pytest.mark.parametrize(
    "fault", ["fdatasync:error=EIO", "pwrite64:error=EIO", "writev:error=ENOSPC", "fsync:error=EIO"]
)
def test_a_call_that_the_disk_fails_is_told_and_everything_acknowledged_is_there(tmp_path, needs, fault, when):
    needs("strace")
    call = fault.partition(":")[0]
    inject = f"inject={fault}:when={when + 15}"
    work = subprocess.run(
        ["strace", "-f", "-qq", "-o", tmp_path / "trace", "-e", f"trace={call}", "-e", inject,
         sys.executable, "-c", WORK, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if work.returncode:  # the queue could not even be opened, and that was told in our words
        assert "lmdbqueue." in work.stderr.splitlines()[-1], work.stderr
        return
    told, unknown, failed, found, problems = json.loads(work.stdout)
    assert problems == []
    assert found[0] == "first"
    assert set(told) <= set(found[1:]) <= {*told, *unknown}
    assert sorted(told + unknown + failed) == list(range(12))
    assert len(unknown) + len(failed) <= 1, "one fault made more than one call fail"
    with PersistentQueue("queue", tmp_path) as queue:
        assert queue.peek(100) == found
        assert queue.check() == []


WORK_ON = """
import json, random, sys
from lmdbqueue import CommitUnknownError, PersistentQueue, QueueError

chance = random.Random(int(sys.argv[2]))
queue = PersistentQueue("queue", sys.argv[1])
number, told, unknown, popped, doubtful = 0, [], [], [], 0
for _ in range(150):
    draw = chance.random()
    try:
        if draw < 0.6:
            number += 1
            queue.push(number)
            told.append(number)
        elif draw < 0.9:
            found = queue.pop()
            popped += [found] if found is not None else []
        elif draw < 0.95:
            queue.flush(force=True)
        else:
            queue.peek(3)
    except CommitUnknownError:
        if draw < 0.6:
            unknown.append(number)
        doubtful += 0.6 <= draw < 0.9
    except QueueError:
        pass
print(json.dumps([told, unknown, popped, doubtful]))
"""


@pytest.mark.parametrize("step", [14])
@pytest.mark.parametrize(
    "fault",
    ["fdatasync:error=EIO", "pwrite64:error=EIO", "writev:error=ENOSPC", "fsync:error=EIO", "fallocate:error=ENOSPC",
     "rename:error=EIO", "pwrite64:error=EINTR", "fsync:error=EINTR"],
)  # fmt: skip
def test_a_disk_that_fails_again_and_again_takes_nothing_that_was_acknowledged(
    tmp_path, needs, fault, step, record_property
):
    needs("strace")
    call = fault.partition(":")[0]
    work = subprocess.run(
        ["strace", "-f", "-qq", "-o", tmp_path / "trace", "-e", f"trace={call}", "-e", f"inject={fault}:when=20+{step}",
         sys.executable, "-c", WORK_ON, str(tmp_path), str(step)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    faults = (tmp_path / "trace").read_text().count("(INJECTED)")
    assert work.returncode == 0, work.stderr
    told, unknown, popped, doubtful = json.loads(work.stdout)
    with PersistentQueue("queue", tmp_path) as queue:
        left = list(queue)
        assert queue.check() == []
    assert [*popped, *left] == sorted({*popped, *left}), "an item came twice, or out of order"
    assert {*popped, *left} <= {*told, *unknown}
    assert len({*told} - {*popped, *left}) <= doubtful, "an acknowledged item is lost"
    record_property("injected faults", faults)
