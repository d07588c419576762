"""The replay of power cuts: record a scenario, build the states that a cut could have left, open each.

Owns: the recording under strace, the choice of moments and states, the share of each processor in the work.
What is legal stands in ``disk``, how a state is opened in ``opener``, what it must hold in ``account``.
"""

import gc
import os
import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from typing import Any

import strace_log
from account import Account, Found, Journal, Judge
from cuts import COPIES
from disk import Disk, State
from opener import Case, build, open_all, pretend_reboot
from processes import MEMORY, forked, status_of

import lmdbqueue

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))
BATCH = 100  # states a child
BLOCK = 40  # moments in a row that are one processor's: those of others have other states
ENOUGH = 5  # failures, after which the rest is given up
LONGEST = 12 * 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Recording:
    """What the processes of a scenario did, from a state that was durable."""

    scenario: str
    events: list[strace_log.Event]
    lock: bytes = b""
    start: State = field(default_factory=dict)
    before: Journal | None = None  # the calls before ``start``

    def results(self) -> dict[int, Any]:
        """Return the result of every call that got one, however late."""
        notes = (event.note for event in self.events if event.kind == "note")
        return {note["call"]: note["result"] for note in notes if note["note"] == "ack" and note["result"] is not None}


@dataclass(slots=True)
class Outcome:
    """What came of opening states."""

    keys: set[int] = field(default_factory=set)  # of the distinct states: files, and how much was acknowledged
    images: set[int] = field(default_factory=set)  # files only
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.keys |= other.keys
        self.images |= other.images
        self.failures += other.failures


# --- recording


def record(scenario: str, place: str, seed: int = 0, mutant: str = "") -> Recording:
    """Run a scenario in ``place``, an empty directory, and return what it did."""
    root, notes, log = _files(place)
    _run(scenario, place, seed, mutant)
    events = strace_log.Reader(root, notes).events(log)
    os.unlink(log)
    _prove_complete(events, root)
    shutil.rmtree(root)
    return Recording(scenario, events, _read(notes + ".lock"))


def record_again(recording: Recording, place: str, count: int, seed: int = 0, mutant: str = "") -> list[Recording]:
    """Build ``count`` states of a recording, and record how each is opened and used after the cut."""
    root, notes, log = _files(place)
    starts = _some_states(recording, count, random.Random(seed))  # noqa: S311
    for number, (state, _) in enumerate(starts):
        build(os.path.join(root, f"{number:04}"), state)
    _run("again", place, seed, mutant)
    found = []
    for number, (state, journal) in enumerate(starts):
        here = os.path.join(root, f"{number:04}")
        names = {path: None if content is None else -each for each, (path, content) in enumerate(state.items(), 1)}
        sizes = {-each: content.size for each, content in enumerate(state.values(), 1) if content is not None}
        events = strace_log.Reader(here, notes, names, sizes).events(log)
        events = [event for event in events if event.kind != "note" or event.note["process"] == 100 + number]
        found.append(Recording(f"{recording.scenario}, again", events, recording.lock, state, journal))
    os.unlink(log)
    shutil.rmtree(root)
    return found


def _prove_complete(events: list[strace_log.Event], root: str) -> None:
    """Demand that the events lead to the very files that are there."""
    disk = Disk()
    for event in events:
        disk.apply(event)
    for path, number in disk.names.items():
        if number is not None and not path.endswith("-lock"):
            content = disk.files[number].latest()
            is_so = content.data.ljust(content.size, b"\0") == _read(os.path.join(root, path))
            assert is_so, f"{path} is not as the record tells"
    found = {os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names}
    assert found == {path for path, number in disk.names.items() if number is not None}


def _files(place: str) -> tuple[str, str, str]:
    """Make the folder that is recorded; return its path, that of the notes, and that of the record."""
    root, notes, log = (os.path.join(place, name) for name in ("root", "notes", "log"))
    os.makedirs(root, exist_ok=True)
    return root, notes, log


def _run(scenario: str, place: str, seed: int, mutant: str) -> None:
    root, notes, log = _files(place)
    command = [sys.executable, os.path.join(HERE, "scenarios.py"), scenario, root, notes, str(seed), mutant]
    strace_log.run(log, command, {"PYTHONPATH": os.pathsep.join((LIBRARY, HERE))})


def _read(path: str) -> bytes:
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def _some_states(recording: Recording, count: int, chance: random.Random) -> list[tuple[State, Journal]]:
    """Return states at moments spread over the recording, each with the calls until then."""
    moments = sorted(chance.sample(range(len(recording.events)), count))
    found = []
    for moment in moments:
        disk, journal = Disk(recording.start, recording.lock), Journal(recording.results())
        for event in recording.events[: moment + 1]:
            disk.apply(event)
            if event.kind == "note":
                journal.note(event.note)
        state = list(disk.states(chance, 40))[chance.choice((0, 1, 1, 1, 3, -1, -1))]
        found.append((state, journal))
    return found


# --- the states of a recording


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of the work that one processor does."""

    number: int
    parts: int
    place: str
    keep: str  # with a folder for each part
    mutant: str
    enough: int

    def run(self, recordings: list[Recording], count: int) -> None:
        """Open ``count`` states of each recording, and write what came of it to a file."""
        pretend_reboot()
        os.mkdir(os.path.join(self.place, str(self.number)))
        os.makedirs(os.path.join(self.keep, str(self.number)), exist_ok=True)
        outcome = Outcome()
        for recording in recordings:
            outcome.add(self._share(recording, count // self.parts))
        with open(self.report, "wb") as file:
            pickle.dump(outcome, file)

    @property
    def report(self) -> str:
        return os.path.join(self.place, f"{self.number}.outcome")

    def _share(self, recording: Recording, count: int) -> Outcome:
        """Open some ``count`` distinct states, or all there are, of this part of a recording's moments."""
        outcome = Outcome()
        cases: list[Case] = []
        moments = sum(event.kind not in ("done", "sync", "dsync") for event in recording.events)
        chance = random.Random(f"{recording.scenario} {self.number}")  # noqa: S311
        fruitless = 0  # passes through all moments
        while len(outcome.keys) < count and fruitless < 3 and not self._is_enough():
            known = len(outcome.keys)
            states = (count - known) * self.parts / moments  # a moment; a few at some of them if that is less
            for case in self._cases(recording, chance, max(3, int(states)), min(1.0, states / 3), outcome):
                cases.append(case)
                if len(cases) == BATCH:
                    outcome.failures += self._open(cases)
                    cases = []
                    if self._is_enough():
                        break
            fruitless += len(outcome.keys) < known + 10
        outcome.failures += self._open(cases)
        return outcome

    def _open(self, cases: list[Case]) -> list[str]:
        number = str(self.number)
        return open_all(cases, os.path.join(self.place, number), os.path.join(self.keep, number), self.mutant)

    def _is_enough(self) -> bool:
        """Tell whether all parts together have seen so many failures."""
        return len(glob(os.path.join(self.keep, "*", "*"))) >= self.enough

    def _cases(
        self, recording: Recording, chance: random.Random, count: int, share: float, outcome: Outcome
    ) -> Iterator[Case]:
        """Yield the cases that ``outcome`` does not know yet, so many at each of a share of the moments."""
        results = recording.results()
        disk, journal = Disk(recording.start, recording.lock), Journal(results)
        accounts: dict[str, Judge] = {}
        for moment, event in enumerate(recording.events):
            if event.kind == "note" and event.note["note"] != "session":
                journal.note(event.note)
                accounts = {}
            if not disk.apply(event) or moment // BLOCK % self.parts != self.number or chance.random() > share:
                continue
            accounts = accounts or _accounts(recording, journal, results)
            for number, state in enumerate(disk.states(chance, count)):
                image = hash(tuple(item for item in state.items() if not item[0].endswith("/bell")))
                key = hash((image, journal.acks))
                if key in outcome.keys:
                    continue
                outcome.keys.add(key)
                outcome.images.add(image)
                label = f"{recording.scenario}, moment {moment} ({event.kind}), state {number}"
                again, is_copy = len(outcome.keys) % 8 == 0, len(outcome.keys) % COPIES == 0
                label += ", as a copy" if is_copy else ""
                yield Case(state, disk.locks(state, chance), accounts, label, again=again, is_copy=is_copy)


def _accounts(recording: Recording, journal: Journal, results: dict[int, Any]) -> dict[str, Judge]:
    """Return what may be found in each queue."""
    before = recording.before
    if before is None:
        return {name: journal.account(name) for name in journal.queues() or ["queue"]}
    calls = list(journal.calls.items())
    seen = next((at for at, (_, call) in enumerate(calls) if call.verb == "found" and call.acked), None)
    if seen is None:
        return {name: before.account(name) for name in before.queues() or ["queue"]}
    tags = tuple(tuple(tag) for tag in calls[seen][1].result)
    end = next((results[id_] for id_, call in calls[seen:] if call.verb == "push" and id_ in results), None)
    if end is None:  # the next call has not begun: nothing tells the sequence numbers
        return {"queue": before.account("queue")}
    return {"queue": Account([call for _, call in calls[seen + 1 :]], Found(tags, end))}


def replay(recordings: list[Recording], count: int, keep: str, mutant: str = "", enough: int = ENOUGH) -> Outcome:
    """Open ``count`` states of each recording, on all processors; keep those that fail, until ``enough`` do."""
    count_of_parts = os.cpu_count() or 1
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-replay-", dir=MEMORY) as place:
        parts = [_Part(number, count_of_parts, place, keep, mutant, enough) for number in range(count_of_parts)]
        gc.collect()
        gc.freeze()  # so that the children share this memory
        pids = [forked(part.run, recordings, count) for part in parts]
        gc.unfreeze()
        statuses = [status_of(pid, LONGEST) for pid in pids]
        assert statuses == [0] * len(parts), "a process of the replay itself failed"
        for part in parts:
            with open(part.report, "rb") as file:
                outcome.add(pickle.load(file))
    return outcome
