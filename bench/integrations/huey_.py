"""Tasks a second through a real consumer of Huey's.

Owns: the task, which does nothing, and the consumer. Law: each storage gets the same tasks, in turns; what is timed
begins with the first task and ends with the last. Must not know: how storages work.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from huey import Huey, SqliteHuey

from lmdbqueue.integrations.huey import LmdbHuey

TASKS = 1_000
TURNS = 3


def seconds(make: Callable[[str], Huey], place: str, workers: int, kind: str) -> float:
    """Return what a task takes, from the first that a consumer has done to the last."""
    huey = make(place)
    log = os.path.join(place, "done")

    def work(n: int) -> int:
        if n in (0, TASKS - 1):
            with open(f"{log}{n}", "w", encoding="ascii") as file:
                file.write(str(time.monotonic()))
        return n

    task = huey.task()(work)
    for number in range(TASKS):
        task(number)
    pid = os.fork()
    if not pid:
        os.setsid()
        huey.create_consumer(workers=workers, worker_type=kind, initial_delay=0.001, max_delay=0.001).run()
        os._exit(0)
    try:
        while not (_is_written(f"{log}0") and _is_written(f"{log}{TASKS - 1}")):
            time.sleep(0.05)
        times = [float(open(f"{log}{n}", encoding="ascii").read()) for n in (0, TASKS - 1)]  # noqa: SIM115
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return (times[1] - times[0]) / (TASKS - 1)


def _is_written(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def run() -> None:
    """Print the table."""
    makers: dict[str, Callable[[str], Any]] = {
        "SqliteHuey, fsync=True": lambda place: SqliteHuey("b", filename=f"{place}/full.db", fsync=True),
        "SqliteHuey, fsync=False": lambda place: SqliteHuey("b", filename=f"{place}/off.db", fsync=False),
        "LmdbHuey, full": lambda place: LmdbHuey("b", path=f"{place}/full"),
        "LmdbHuey, interval": lambda place: LmdbHuey("b", path=f"{place}/interval", durability="interval"),
        "LmdbHuey, off": lambda place: LmdbHuey("b", path=f"{place}/off", durability="off"),
    }
    for kind, workers in (("thread", 1), ("thread", 4), ("process", 2)):
        took: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(TURNS):
            for name, make in makers.items():
                with tempfile.TemporaryDirectory() as place:
                    took[name].append(seconds(make, place, workers, kind))
        base = median(took["SqliteHuey, fsync=True"])
        print(f"{f'tasks a second, {workers} {kind} workers':40} {'':>7}  ratio")
        for name, each in took.items():
            print(f"{name:40} {1 / median(each):7,.0f}  {base / median(each):5.2f}")
