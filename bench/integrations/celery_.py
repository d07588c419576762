"""Tasks a second through one real Celery worker of two processes, and how late an idle one is.

Owns: the app, the worker, a transport that costs nothing, which shows what Celery itself makes here. Law: the brokers
take turns; what is timed begins with the first task and ends with the last. Must not know: how transports work.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from statistics import median

TASKS = 2_000
FREE = "nothing (in the worker)"  # a transport that costs nothing: the bound
TURNS = 1
BROKERS = ("lmdb, full", "lmdb, interval", "lmdb, off", "filesystem", "sqlalchemy, SQLite", FREE, "redis")
_IDLE = 5  # tasks that an idle worker gets
APP = """
import os, socket, sys, time
import lmdbqueue.integrations.kombu
from celery import Celery
from celery.signals import celeryd_after_setup
from kombu.transport import TRANSPORT_ALIASES, memory


class Free(memory.Transport):
    implements = memory.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection, loop):
        loop.on_tick.add(self._on_tick)

    def _on_tick(self):
        try:
            for _ in range(16):
                self.drain_events(None, timeout=0)
        except socket.timeout:
            pass


TRANSPORT_ALIASES["free"] = "app:Free"
PLACE = os.path.dirname(os.path.abspath(__file__))
app = Celery("app", broker=os.environ["BROKER"])
app.conf.update(
    broker_transport_options=eval(os.environ["OPTIONS"]),
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@celeryd_after_setup.connect
def fill(**_):
    for n in range(int(os.environ["FILL"])):
        note.delay(n, 0)


@app.task
def note(n, sent):
    with open(f"{PLACE}/notes", "a") as file:
        file.write(f"{n} {time.time()} {time.time() - sent}\\n")
"""


def _notes(place: str) -> list[list[str]]:
    try:
        with open(f"{place}/notes", encoding="ascii") as file:
            return [line.split() for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _used(pid: int) -> float:
    """Return the seconds of a processor that a process has used, from its start on."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(place: str, broker: str, options: dict[str, str], tasks: int) -> tuple[float, float, float]:
    """Return the seconds of a task, those of them of the worker's own process, and how late an idle one begins."""
    with open(f"{place}/app.py", "w", encoding="ascii") as file:
        file.write(APP)
    where = {
        **os.environ,
        "BROKER": broker,
        "OPTIONS": repr(options),
        "FILL": str(tasks if broker == "free://" else 0),
        "PYTHONPATH": os.pathsep.join([place, *sys.path]),
    }
    fill = f"import app\nfor n in range({tasks}):\n    app.note.delay(n, 0)\n"
    if broker != "free://":
        subprocess.run([sys.executable, "-c", fill], cwd=place, env=where, check=True)
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-c", "2", "-l", "ERROR"]
    worker = subprocess.Popen(
        command, cwd=place, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while not (seen := len(_notes(place))) and time.monotonic() < deadline:
            time.sleep(0.01)
        begin = _used(worker.pid)
        while len(_notes(place)) < tasks and time.monotonic() < deadline:
            time.sleep(0.1)
        used = (_used(worker.pid) - begin) / (tasks - seen)
        times = [float(note[1]) for note in _notes(place)]
        took = (max(times) - min(times)) / (tasks - 1)
        if broker == "free://":
            return took, used, 0.0
        late = f"import app, time\nfor n in range({_IDLE}):\n    time.sleep(0.7)\n    app.note.delay(n, time.time())\n"
        subprocess.run([sys.executable, "-c", late], cwd=place, env=where, check=True)
        while len(_notes(place)) < tasks + _IDLE and time.monotonic() < deadline:
            time.sleep(0.1)
        return took, used, median(float(note[2]) for note in _notes(place)[tasks:])
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def run() -> None:
    """Print the table."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = None
    if shutil.which("redis-server"):
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found: dict[str, list[tuple[float, float, float]]] = {}
    try:
        for _ in range(TURNS):
            for name in BROKERS:
                with tempfile.TemporaryDirectory() as place:
                    broker, options = {
                        "lmdb, full": (f"lmdb:///{place}/broker", {}),
                        "lmdb, interval": (f"lmdb:///{place}/broker", {"durability": "interval"}),
                        "lmdb, off": (f"lmdb:///{place}/broker", {"durability": "off"}),
                        "filesystem": (
                            "filesystem://",
                            {"data_folder_in": f"{place}/q", "data_folder_out": f"{place}/q", "control_folder": place},
                        ),
                        "sqlalchemy, SQLite": (f"sqla+sqlite:///{place}/broker.db", {}),
                        FREE: ("free://", {}),
                        "redis": (f"redis://127.0.0.1:{port}/0", {}),
                    }[name]
                    if name == "filesystem":
                        os.mkdir(f"{place}/q")
                    if name != "redis" or server:
                        found.setdefault(name, []).append(measure(place, broker, options, TASKS))
    finally:
        if server:
            server.terminate()
            server.wait()
    print(f"{'broker':25} {'tasks/s':>8} {'ratio':>6} {'cpu, ms':>8} {'ms late':>8}")
    base = median(each[0] for each in found["filesystem"])
    for name, each in found.items():
        took, used, late = (median(column) for column in zip(*each, strict=True))
        print(f"{name:25} {1 / took:8,.0f} {base / took:6.1f} {used * 1000:8.2f} {late * 1000:8.1f}")
