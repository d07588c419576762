"""What the project wants to reach, as ratios within one run.

Owns: each goal's words, its limit, and which figures answer it. Law: a ratio is taken between figures of
the same round, and its median over the rounds is what was reached; a goal whose figures were not
measured says so, and is neither met nor missed.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.measure import Results, Scale
from bench.peers import Peer
from bench.workloads import (
    async_pushes,
    flush,
    free_flush,
    imports,
    leases,
    postgres,
    postgres_jobs,
    readers,
    waiting,
)
from bench.workloads.length import VERBS, length_measure
from bench.workloads.processes import processes_measure
from bench.workloads.threads import threads_measure

OURS, UNCHECKED, RAW = "lmdbqueue", "lmdbqueue, no checksum", "raw"
BOUND, BOUND_BETWEEN = "raw, one flush", "raw, checkpoints"


@dataclass(frozen=True)
class Verdict:
    """A goal and what was reached."""

    goal: str
    wanted: str
    values: list[float]
    is_met: bool | None  # None: not measured

    @property
    def reached(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Return it for the file of results."""
        return asdict(self) | {"reached": self.reached if self.values else None}


def judge(results: Results, scale: Scale, peers: Sequence[type[Peer]]) -> list[Verdict]:
    """Return a verdict on each goal, in the order in which the goals were set."""
    judges = (
        _single,
        _processes,
        _threads,
        _async,
        _batches,
        _leases,
        _readers,
        _between,
        _off,
        _free_flush,
        _waiting,
        _flush,
        _length,
        _imports,
        _postgres,
        _postgres_jobs,
    )
    judged = _Judged(results, scale, peers)
    return [verdict for each in judges for verdict in each(judged)]


@dataclass(frozen=True)
class _Judged:
    results: Results
    scale: Scale
    peers: Sequence[type[Peer]]

    def values(self, mode: str, contender: str, measure: str) -> list[float]:
        found = self.results.find(mode, contender, measure)
        return found.values if found else []

    def ratios(self, mode: str, above: tuple[str, str], below: tuple[str, str]) -> list[float]:
        pairs = zip(self.values(mode, *above), self.values(mode, *below), strict=False)
        return [over / under for over, under in pairs]

    def best_peer(self, mode: str, measure: str, among: Callable[[type[Peer]], bool] = bool) -> str:
        names = {peer.name for peer in self.peers if among(peer) and not peer.is_bound} - {OURS, UNCHECKED, RAW}
        reached = [series for series in self.results.all_of(mode, measure) if series.contender in names]
        return max(reached, key=lambda series: series.median).contender if reached else ""


def _at_least(goal: str, limit: float, values: list[float], unit: str = "x") -> Verdict:
    is_met = statistics.median(values) >= limit if values else None
    return Verdict(goal, f">= {limit:g} {unit}", values, is_met)


def _at_most(goal: str, limit: float, values: list[float], unit: str = "x") -> Verdict:
    is_met = statistics.median(values) <= limit if values else None
    return Verdict(goal, f"<= {limit:g} {unit}", values, is_met)


def _ahead_of(judged: _Judged, mode: str, measure: str, limit: float, which: str) -> Verdict:
    is_sqlite = which == "SQLite peer"
    best = judged.best_peer(mode, measure, lambda peer: peer.is_sqlite or not is_sqlite)
    goal = f"{measure}, {mode}: against the best {which}" + (f", {best}" if best else "")
    return _at_least(goal, limit, judged.ratios(mode, (OURS, measure), (best, measure)))


def _single(judged: _Judged) -> Iterable[Verdict]:
    for verb in ("push", "pop"):
        ratios, bound = (judged.ratios("durable", (each, verb), (RAW, verb)) for each in (OURS, BOUND))
        known = f" (with one flush: {statistics.median(bound):.3g})" if bound else ""
        yield _at_least(f"single {verb}, durable, one thread: against raw{known}", 1.45, ratios)
        yield _ahead_of(judged, "durable", verb, 1.0, "durable peer")


def _processes(judged: _Judged) -> Iterable[Verdict]:
    for n in (2, 4, 8):
        measure = processes_measure("push", n)
        ratios = judged.ratios("durable", (OURS, measure), (RAW, measure))
        yield _at_least(f"{measure}, durable: against raw by as many", 1.2, ratios)


def _threads(judged: _Judged) -> Iterable[Verdict]:
    many, one = threads_measure(16), threads_measure(1)
    yield _at_least(f"{many}, durable: against raw's one", 6, judged.ratios("durable", (OURS, many), (RAW, one)))
    yield _ahead_of(judged, "durable", many, 3.5, "durable peer")


def _async(judged: _Judged) -> Iterable[Verdict]:
    ratios = judged.ratios("durable", (OURS, async_pushes.MEASURE), (RAW, async_pushes.RAW_MEASURE))
    yield _at_least(f"{async_pushes.MEASURE}, durable: against raw's single push", 40, ratios)


def _batches(judged: _Judged) -> Iterable[Verdict]:
    for contender, limits in ((UNCHECKED, (0.9, 0.9, 0.9)), (OURS, (0.8, 0.75, 1.0))):
        for verb, limit in zip(("push", "peek", "delete"), limits, strict=True):
            measure = f"{verb} 1,000"
            ratios = judged.ratios("durable", (contender, measure), (RAW, measure))
            yield _at_least(f"{measure}, durable, {contender}: against raw", limit, ratios)


def _leases(judged: _Judged) -> Iterable[Verdict]:
    many = leases.measure(judged.scale.leased)
    for measure in (leases.measure(0), many):
        ratios = judged.ratios("durable", (OURS, measure), (RAW, leases.RAW_MEASURE))
        yield _at_least(f"{measure}, durable: against raw's {leases.RAW_MEASURE}", 0.4, ratios)
    ratios = judged.ratios("durable", (OURS, many), (OURS, leases.measure(0)))
    yield _at_least(f"{many}: against beside none", 0.9, ratios)


def _readers(judged: _Judged) -> Iterable[Verdict]:
    one, many = readers.read_measure(1), readers.read_measure(readers.READERS)
    yield _at_least(f"{many}, durable: against one", 1, judged.ratios("durable", (OURS, many), (OURS, one)))
    alone, beside = readers.push_measure(0), readers.push_measure(readers.READERS)
    yield _at_least(
        f"{beside}, durable: against beside none", 0.9, judged.ratios("durable", (OURS, beside), (OURS, alone))
    )


def _off(judged: _Judged) -> Iterable[Verdict]:
    for verb, limit, ahead in (("push", 0.6, 1.5), ("pop", 0.5, 1.4)):
        yield _at_least(f"single {verb}, off: against raw", limit, judged.ratios("off", (OURS, verb), (RAW, verb)))
        yield _ahead_of(judged, "off", verb, ahead, "SQLite peer")


def _between(judged: _Judged) -> Iterable[Verdict]:
    ours, bound = (judged.values("between", each, "push") for each in (OURS, BOUND_BETWEEN))
    for mode, contender, name, limit in (("durable", OURS, "durable", 6), ("off", RAW, "raw, off", 0.35)):
        below = judged.values(mode, contender, "push")
        ratios, most = ([over / under for over, under in zip(each, below, strict=False)] for each in (ours, bound))
        known = f" (raw with checkpoints: {statistics.median(most):.3g})" if most and contender == RAW else ""
        yield _at_least(f"single push, between: against {name}{known}", limit, ratios)
    yield _ahead_of(judged, "between", "push", 1.0, "SQLite peer")


def _free_flush(judged: _Judged) -> Iterable[Verdict]:
    for verb, limit in (("push", 0.55), ("pop", 0.45)):
        ratios = judged.ratios(free_flush.MODE, (OURS, verb), (RAW, verb))
        yield _at_least(f"single {verb}, {free_flush.MODE}: against raw", limit, ratios)


def _waiting(judged: _Judged) -> Iterable[Verdict]:
    for measure, limit, unit in (
        (waiting.WAKE_P50, 300, "µs"),
        (waiting.WAKE_P99, 3_000, "µs"),
        (waiting.IDLE, 0.5, "% of a core"),
    ):
        yield _at_most(measure, limit, judged.values("durable", OURS, measure), unit)


def _flush(judged: _Judged) -> Iterable[Verdict]:
    size, left = judged.scale.flush_bytes >> 20, judged.scale.flush_left >> 20
    for case, limit, words in ((flush.LEFT, 150, f"{left} MiB left"), (flush.LIVE, 200, "all of it live")):
        values = judged.values("durable", OURS, flush.flush_measure(flush.STALL, case))
        yield _at_most(f"flush of {size} MiB, {words}: stall of a writer", limit, values, "ms")


def _length(judged: _Judged) -> Iterable[Verdict]:
    shortest, longest = judged.scale.lengths[0], judged.scale.lengths[-1]
    for verb in VERBS:
        long, short = length_measure(verb, longest), length_measure(verb, shortest)
        ratios = judged.ratios("off", (OURS, long), (OURS, short))
        yield _at_most(f"cost of one {verb} at {longest:,} items: against {shortest:,}", 1.3, ratios)


def _imports(judged: _Judged) -> Iterable[Verdict]:
    ratios = judged.ratios("", (imports.OURS, imports.MEASURE), (imports.FLOOR, imports.MEASURE))
    yield _at_most(f"{imports.OURS}: against {imports.FLOOR}", 2, ratios)


def _postgres_jobs(judged: _Judged) -> Iterable[Verdict]:
    jobs = postgres_jobs
    for mode in (jobs.AS_IT_IS, jobs.SLOW):
        where = "" if mode == jobs.AS_IT_IS else ", commits of 2 ms"
        for processes in jobs.PROCESSES:
            many = f"{processes} process" + "es" * (processes > 1)
            for verb, ours, other, limit in (
                ("push", jobs.RELAXED, jobs.HAND, 0.8),
                ("pop", jobs.OURS, jobs.HAND, 0.8),
                ("lease and ack", jobs.OURS, jobs.THEIRS, 1.0),
            ):
                measure = f"{verb}, {processes}"
                ratios = judged.ratios(mode, (ours, measure), (other, measure))
                yield _at_least(f"{verb} on a server, {many}{where}: {ours} against {other}", limit, ratios)
            ratios = judged.ratios(
                mode, (jobs.OURS, f"work, {processes}"), (jobs.THEIRS, f"lease and ack, {processes}")
            )
            yield _at_least(
                f"work(handler) on a server, {many}{where}: against {jobs.THEIRS}'s read, delete", 1.0, ratios
            )
        ratios = judged.ratios(mode, (jobs.OURS, "push, 1"), (jobs.HAND, "push, 1"))
        yield _at_least(f"push on a server in the order of commits{where}: against an insert by hand", 0.6, ratios)
        many, one = (jobs.AWAITED.format(tasks) for tasks in (jobs.TASKS, 1))
        ratios = judged.ratios(mode, (jobs.OURS, many), (jobs.OURS, one))
        yield _at_least(f"lease and ack, {jobs.TASKS} tasks that await them{where}: against one", 5.0, ratios)
        for measure in (jobs.JOBS, jobs.WORKED_JOBS):
            yield _at_least(f"{measure}{where}", 10_000, judged.values(mode, jobs.OURS, measure), "jobs/s")


def _postgres(judged: _Judged) -> Iterable[Verdict]:
    for measure in postgres.MEASURES:
        ratios = judged.ratios("durable", (postgres.OURS, measure), (postgres.BY_HAND, measure))
        yield _at_least(f"{measure}: {postgres.OURS} against a loop {postgres.BY_HAND}", 0.8, ratios)
