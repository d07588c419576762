"""The unit of the recipes under a real systemd: a stop finishes what is under way, and a killed worker comes back.

A systemd is started as PID 1 of namespaces of its own, with the file system read-only except for the test's folder, and
with no units but those that are written here: it can change nothing outside, and ends with the test.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples import blocks
from processes import eventually

import lmdbqueue
from lmdbqueue import PersistentQueue

ROOT = Path(lmdbqueue.__file__).parents[1]
SYSTEMD = "/lib/systemd/systemd"
PROGRAMS = [SYSTEMD, "systemctl", "unshare", "nsenter", "setpriv"]
LETTERS = ["mail to Ann", "mail to Bob", "mail to Eve"]
TARGETS = ["basic", "local-fs", "multi-user", "shutdown", "sysinit"]

MORTAL = ["setpriv", "--pdeathsig", "KILL"]

# Each process of the chain dies with its parent: with the test, whatever happens to it, all of it ends.
OUTER = """
set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/lmdbqueue-test-$$
mkdir "$group"
echo $$ > "$group/cgroup.procs"
trap 'echo $$ > /sys/fs/cgroup/cgroup.procs; find "$group" -depth -type d -exec rmdir {} +' EXIT
setpriv --pdeathsig KILL \
    unshare --fork --kill-child --pid --cgroup --uts --ipc --net --mount --mount-proc bash -c "$1" inner "$2" "$3"
"""
INNER = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
if touch /not-read-only 2> /dev/null; then exit 1; fi
exec env -i PATH="$PATH" container=lmdbqueue SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH=/run/none \
    SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
    "$2" --unit=multi-user.target --log-target=null --show-status=0
"""


class Systemd:
    """A systemd with the service `orders`, whose working directory is ``place``."""

    def __init__(self, place: Path):
        self._process = subprocess.Popen(
            [*MORTAL, "unshare", "--mount", "bash", "-c", OUTER, "outer", INNER, str(place), SYSTEMD],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _first(self) -> str | None:
        """Return the process id, seen from here, of its process 1."""
        pid = str(self._process.pid)
        try:
            for _ in range(2):  # the process `unshare`, then its child
                pid = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        except (OSError, IndexError):  # it is not that far yet
            return None
        return pid

    def is_up(self) -> bool:
        """Return whether it answers; skip the test if it has ended."""
        if self._process.poll() is not None:
            pytest.skip(f"NOT TESTED, since no systemd can be started here: {self._process.stderr.read()}")
        first = self._first()
        return first is not None and self.control("show", first=first).returncode == 0

    def control(self, *arguments: str, first: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "--target", first or self._first(), "--all", "systemctl", "--no-pager", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def __call__(self, *arguments: str) -> None:
        done = self.control(*arguments)
        assert (done.returncode, done.stderr) == (0, "")

    def look(self, place: Path, expression: str) -> object:
        """Return what an expression of ``jobs`` is, asked from within: the queue belongs to that pid namespace."""
        program = (
            f"import lmdbqueue\nwith lmdbqueue.PersistentQueue({str(place / 'jobs')!r}) as jobs: print({expression})"
        )
        command = ["nsenter", "--target", str(self._first()), "--all", sys.executable, "-c", program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
        return ast.literal_eval(told.stdout)

    def show(self, *names: str) -> list[str]:
        """Return these properties of the service."""
        properties = self.control("show", "orders", *(f"--property={name}" for name in names)).stdout
        found = dict(line.split("=", 1) for line in properties.splitlines())
        return [found[name] for name in names]

    def end(self) -> None:
        if (first := self._first()) is not None:
            os.kill(int(first), signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()
        self._process.wait(60)
        self._process.stderr.close()


@pytest.fixture
def place(tmp_path) -> Path:
    """Give a folder with the unit and the worker of the guide, whose handler waits until it is told to go on."""
    (worker,) = (block for block in blocks("docs/guide.md", "python") if "jobs.work(send" in block)
    head = "def send(letter):\n"
    assert head in worker
    wait = '    open("begun", "a").close()\n    while not os.path.exists("go on"):\n        time.sleep(0.01)\n'
    (tmp_path / "worker.py").write_text("import os\nimport time\n" + worker.replace(head, head + wait))
    (unit,) = (block for block in blocks("docs/integrations/recipes.md", "text") if "[Service]" in block)
    unit = unit.replace("/srv/app/.venv/bin/python", sys.executable).replace("/srv/app", str(tmp_path))
    unit = unit.replace("User=app", f"User=root\nEnvironment=PYTHONPATH={ROOT}")
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "orders.service").write_text(unit)
    for target in TARGETS:
        (tmp_path / "units" / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    with (tmp_path / "units" / "multi-user.target").open("a") as file:
        file.write("Wants=orders.service\n")  # as `systemctl enable` would
    with PersistentQueue(tmp_path / "jobs") as jobs:
        jobs.push_many(LETTERS)
    return tmp_path


@pytest.fixture
def systemd(place) -> Iterator[Systemd]:
    """Start a systemd; skip the test where none can be started, in CI too, whose machines have none."""
    missing = [each for each in PROGRAMS if not shutil.which(each)]
    if os.geteuid() or missing:
        pytest.skip(f"NOT TESTED, since there is no {', no '.join(missing or ['root'])} here")
    systemd = Systemd(place)
    try:
        eventually(systemd.is_up)
        eventually((place / "begun").exists)
        yield systemd
    finally:
        systemd.end()


def sent(place):
    return (place / "sent.txt").read_text().splitlines() if (place / "sent.txt").exists() else []


def test_a_stop_finishes_the_item_under_way_and_is_a_success(systemd, place):
    systemd("stop", "--no-block", "orders")
    assert systemd.show("ActiveState") == ["deactivating"]  # SIGTERM has been sent
    assert (systemd.look(place, "jobs.stats().leased"), sent(place)) == (1, [])
    (place / "go on").touch()
    eventually(lambda: systemd.show("ActiveState") == ["inactive"])
    assert systemd.show("Result", "ExecMainCode", "ExecMainStatus") == ["success", "1", "0"]  # exited, with 0
    assert systemd.look(place, "(list(jobs), jobs.stats().leased)") == (LETTERS[1:], 0)
    assert sent(place) == LETTERS[:1]
    systemd("start", "orders")
    eventually(lambda: systemd.look(place, "jobs.stats().removed") == len(LETTERS))
    systemd("stop", "orders")
    assert systemd.show("Result", "ExecMainCode", "ExecMainStatus") == ["success", "1", "0"]
    assert (sent(place), systemd.look(place, "len(jobs.dead)")) == (LETTERS, 0)


def test_a_killed_worker_is_started_again_and_has_its_item_again(systemd, place):
    (place / "begun").unlink()
    systemd("kill", "--signal=KILL", "orders")
    eventually((place / "begun").exists)  # by the next one: RestartSec later
    (place / "go on").touch()
    eventually(lambda: systemd.look(place, "jobs.stats().removed") == len(LETTERS))
    assert systemd.look(place, "(jobs.stats().leased, len(jobs.dead))") == (0, 0)
    assert sent(place) == LETTERS
    assert systemd.show("NRestarts", "ActiveState") == ["1", "active"]


def test_a_stop_that_takes_too_long_is_a_kill_and_the_items_return(systemd, place):
    unit = place / "units" / "orders.service"
    assert "TimeoutStopSec=90\n" in unit.read_text()
    unit.write_text(unit.read_text().replace("TimeoutStopSec=90\n", "TimeoutStopSec=1\n"))
    systemd("daemon-reload")
    systemd("stop", "orders")  # returns when it has ended
    assert systemd.show("ActiveState", "Result") == ["failed", "timeout"]
    with PersistentQueue(place / "jobs") as jobs:
        assert (list(jobs), jobs.stats().leased, sent(place)) == (LETTERS, 0, [])
