"""Tasks a second through one real Celery worker of two processes, and how late an idle one is.

Owns: the app, the worker. Law: the brokers take turns; what is timed begins with the first task and ends with the last.
Must not know: how transports work.
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
TURNS = 1
_IDLE = 5  # tasks that an idle worker gets
APP = """
import os, sys, time
import lmdbqueue.integrations.kombu
from celery import Celery

PLACE = os.path.dirname(os.path.abspath(__file__))
app = Celery("app", broker=os.environ["BROKER"])
app.conf.update(
    broker_transport_options=eval(os.environ["OPTIONS"]),
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


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


def measure(place: str, broker: str, options: dict[str, str], tasks: int) -> tuple[float, float]:
    """Return the seconds of a task, and how late an idle worker begins one."""
    with open(f"{place}/app.py", "w", encoding="ascii") as file:
        file.write(APP)
    where = {
        **os.environ,
        "BROKER": broker,
        "OPTIONS": repr(options),
        "PYTHONPATH": os.pathsep.join([place, *sys.path]),
    }
    fill = f"import app\nfor n in range({tasks}):\n    app.note.delay(n, 0)\n"
    subprocess.run([sys.executable, "-c", fill], cwd=place, env=where, check=True)
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-c", "2", "-l", "ERROR"]
    worker = subprocess.Popen(
        command, cwd=place, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while len(_notes(place)) < tasks and time.monotonic() < deadline:
            time.sleep(0.1)
        times = [float(note[1]) for note in _notes(place)]
        late = f"import app, time\nfor n in range({_IDLE}):\n    time.sleep(0.7)\n    app.note.delay(n, time.time())\n"
        subprocess.run([sys.executable, "-c", late], cwd=place, env=where, check=True)
        while len(_notes(place)) < tasks + _IDLE and time.monotonic() < deadline:
            time.sleep(0.1)
        return (max(times) - min(times)) / (tasks - 1), median(float(note[2]) for note in _notes(place)[tasks:])
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
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        for _ in range(TURNS):
            for name in ("lmdb, full", "lmdb, interval", "lmdb, off", "filesystem", "sqlalchemy, SQLite", "redis"):
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
    print(f"{'broker':25} {'tasks/s':>8} {'ratio':>6} {'ms late':>8}")
    base = median(each[0] for each in found["filesystem"])
    for name, times in found.items():
        took = median(each[0] for each in times)
        print(f"{name:25} {1 / took:8,.0f} {base / took:6.1f} {median(each[1] for each in times) * 1000:8.1f}")
