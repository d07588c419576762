"""How long ``import lmdbqueue`` takes in a new interpreter, beside what any LMDB queue must import.

Compiled beforehand, as installed packages are.
"""

import os
import subprocess
import sys
from functools import partial

from bench.measure import Measures, Run

MEASURE = "import"
OURS, FLOOR = "import lmdbqueue", "import lmdb, pickle, threading"
_TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


def measure_imports(run: Run) -> None:
    """Measure both imports, in several new interpreters each round."""
    contenders = {statement: partial(_import, statement, run.scale.imports) for statement in (OURS, FLOOR)}
    run.interleave("imports", "", "ms", contenders)


def _import(statement: str, times: int, directory: str) -> Measures:
    """Return the fastest of so many: only what the import itself does is in all of them."""
    command = [sys.executable, "-c", _TIMED.format(statement)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = directory

    def run() -> float:
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)

    seconds = [run() for _ in range(times)]
    return {MEASURE: min(seconds) * 1e3}
