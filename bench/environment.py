"""The facts of the machine that stand beside the figures.

Owns: which facts those are. Law: nothing in them names a machine, a user or a path, so results can be
published as they are.
"""

import importlib.metadata
import os
import platform
import sqlite3
import time
from typing import Any

import lmdb

import lmdbqueue

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


def describe(directory: str, packages: list[str]) -> dict[str, Any]:
    """Return the date, the machine, the file system of ``directory`` and the version of each package."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": round(os.getloadavg()[0], 2),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "lmdb_library": ".".join(map(str, lmdb.version())),
        "packages": {package: _version(package) for package in packages},
    }


def file_system(directory: str) -> str:
    """Return the type of the file system that ``directory`` is on, or ``unknown``."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    return "unknown"


def _version(package: str) -> str:
    return lmdbqueue.__version__ if package == "lmdbqueue" else importlib.metadata.version(package)


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
