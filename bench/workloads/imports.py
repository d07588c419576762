"""How long ``import lmdbqueue`` takes in a new interpreter, beside what any LMDB queue must import."""

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


def _import(statement: str, times: int, _directory: str) -> Measures:
    """Return the fastest of so many: only what the import itself does is in all of them."""
    command = [sys.executable, "-c", _TIMED.format(statement)]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(times)]
    return {MEASURE: min(seconds) * 1e3}
