"""Interleaved rounds, fresh directories, medians.

Owns: the order in which things are measured, and how the figures are kept. Law: in each round every
contender runs the same workload once, and the order rotates from round to round, so whatever else the
machine does is shared by all; a ratio is taken within a round and only then made a median.
"""

import contextlib
import gc
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.progress import Progress

from bench.peers import Peer

Measures = Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """How much is measured; rates do not depend on it, only how steady they are."""

    rounds: int
    single_durable: int  # pushes of one item, then as many pops
    single_off: int
    batches: int  # of 1,000 items, for each verb
    leases: int  # of 100 items
    leased: int  # items that are leased beside
    seconds: float  # a slow queue stops after so long and is measured by what it did
    threaded: int  # pushes of all threads together
    by_processes: int  # pushes, then pops, of all processes together
    wakes: int
    idle_seconds: float
    flush_bytes: int
    flush_left: int
    lengths: tuple[int, ...]
    peer_length: int  # peers are filled up to this length only
    at_length: int  # pushes, peeks and pops at each length
    imports: int
    memory_items: int


FULL = Scale(
    rounds=5,
    single_durable=2_000,
    single_off=20_000,
    batches=20,
    leases=200,
    leased=100_000,
    seconds=2.0,
    threaded=1_600,
    by_processes=1_600,
    wakes=400,
    idle_seconds=10.0,
    flush_bytes=1 << 30,
    flush_left=10 << 20,
    lengths=(10**3, 10**4, 10**5, 10**6, 10**7),
    peer_length=10**5,
    at_length=1_000,
    imports=10,
    memory_items=10**6,
)
QUICK = Scale(
    rounds=3,
    single_durable=200,
    single_off=2_000,
    batches=4,
    leases=30,
    leased=10_000,
    seconds=0.3,
    threaded=192,
    by_processes=160,
    wakes=40,
    idle_seconds=1.0,
    flush_bytes=64 << 20,
    flush_left=1 << 20,
    lengths=(10**3, 10**4, 10**5),
    peer_length=10**4,
    at_length=200,
    imports=5,
    memory_items=5 * 10**4,
)


@dataclass(frozen=True)
class Series:
    """One figure of one contender, measured once in each round."""

    workload: str
    mode: str  # durable, off, or empty where there is no such difference
    contender: str
    measure: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The figure that is reported."""
        return statistics.median(self.values)


@dataclass
class Results:
    """All series of a run, and what went wrong on the way."""

    series: list[Series] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, workload: str, mode: str, contender: str, unit: str, measures: Measures) -> None:
        """Append a round's figures to their series."""
        for measure, value in measures.items():
            found = self.find(mode, contender, measure)
            if found is None:
                found = Series(workload, mode, contender, measure, unit, [])
                self.series.append(found)
            found.values.append(value)

    def find(self, mode: str, contender: str, measure: str) -> Series | None:
        """Return that series, or None if it was not measured."""
        for series in self.series:
            if (series.mode, series.contender, series.measure) == (mode, contender, measure):
                return series
        return None

    def all_of(self, mode: str, measure: str) -> list[Series]:
        """Return what every contender reached at that measure."""
        return [series for series in self.series if (series.mode, series.measure) == (mode, measure)]

    def remark(self, text: str) -> None:
        """Keep a sentence that stands under the tables, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the series with their statistics, for the file of results."""
        return [
            asdict(series) | {"median": series.median, "min": min(series.values), "max": max(series.values)}
            for series in self.series
        ]


@dataclass
class Run:
    """What a workload is given: how much, where, with whom, and where the figures go."""

    scale: Scale
    directory: str
    peers: Sequence[type[Peer]]
    results: Results
    progress: Progress

    def interleave(
        self, workload: str, mode: str, unit: str, contenders: Mapping[str, Callable[[str], Measures]], rounds: int = 0
    ) -> None:
        """Measure each contender once in each round, each time in a directory of its own.

        One that raises is left out of the later rounds, with a remark.
        """
        rounds = rounds or self.scale.rounds
        names = list(contenders)
        bar = self.progress.add_task(f"{workload} {mode}".strip(), total=rounds * len(names))
        for number in range(rounds):
            shift = number % max(1, len(names))
            for name in [*names[shift:], *names[:shift]]:
                if name in contenders:
                    contenders = self._once(workload, mode, unit, contenders, name)
                self.progress.advance(bar)

    def _once(
        self, workload: str, mode: str, unit: str, contenders: Mapping[str, Callable[[str], Measures]], name: str
    ) -> Mapping[str, Callable[[str], Measures]]:
        try:
            with self.fresh_directory() as directory:
                self.results.add(workload, mode, name, unit, contenders[name](directory))
        except Exception as error:
            what = f"{type(error).__name__}: {error}".replace(self.directory, "DIR")
            self.results.remark(
                f"{name} failed at {workload}{mode and f', {mode}'}, and is left out of its later rounds: {what}"
            )
            return {other: measured for other, measured in contenders.items() if other != name}
        return contenders

    @contextlib.contextmanager
    def fresh_directory(self) -> Iterator[str]:
        """Lend an empty directory, on a file system that has nothing left to write."""
        directory = tempfile.mkdtemp(dir=self.directory)
        gc.collect()
        os.sync()
        try:
            yield directory
        finally:
            shutil.rmtree(directory)
