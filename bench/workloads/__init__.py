"""What is measured, one file for each workload.

Each is a function of a ``Run`` that puts its figures into the run's results. Owns here: their names and
their order. Rates are items a second, all of them with items made before the clock starts.
"""

from collections.abc import Callable

from bench.measure import Run
from bench.workloads.async_pushes import measure_async_pushes
from bench.workloads.batches import measure_batches
from bench.workloads.flush import measure_flush
from bench.workloads.free_flush import measure_free_flush
from bench.workloads.imports import measure_imports
from bench.workloads.leases import measure_leases
from bench.workloads.length import measure_length
from bench.workloads.memory import measure_memory
from bench.workloads.postgres import measure_postgres
from bench.workloads.postgres_jobs import measure_postgres_jobs
from bench.workloads.processes import measure_processes
from bench.workloads.readers import measure_readers
from bench.workloads.single import measure_single
from bench.workloads.threads import measure_threads
from bench.workloads.waiting import measure_idle, measure_wake

WORKLOADS: dict[str, Callable[[Run], None]] = {
    "single": measure_single,
    "free flush": measure_free_flush,
    "batches": measure_batches,
    "leases": measure_leases,
    "readers": measure_readers,
    "threads": measure_threads,
    "processes": measure_processes,
    "async": measure_async_pushes,
    "wake": measure_wake,
    "idle": measure_idle,
    "flush": measure_flush,
    "length": measure_length,
    "imports": measure_imports,
    "memory": measure_memory,
    "postgres": measure_postgres,
    "postgres-jobs": measure_postgres_jobs,
}
