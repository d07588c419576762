"""The replay of power cuts: record a scenario, build the states that a cut could have left, open each.

Owns: the recording under strace, the choice of moments and states, and the processes that open them. Each
state gets a directory of its own in memory; a child opens it through the public interface and judges what it
finds by the account of the calls (see ``account``). A child that a signal kills has failed at that state.

The children look like a machine after a reboot: another boot id, other mounts (``pretend_reboot``).
"""

import ctypes
import faulthandler
import gc
import logging
import mmap
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mutants
import strace_log
from account import Account, Found, Journal, inspect
from disk import Disk, State
from processes import forked, status_of

import lmdbqueue

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(lmdbqueue.__file__)))
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
BATCH = 250  # states a child
BLOCK = 40  # moments in a row that are one processor's: those of others have other states
ENOUGH = 5  # failures, after which a share is given up
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


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
    root, notes, log = (os.path.join(place, name) for name in ("root", "notes", "log"))
    os.makedirs(root)
    _run(scenario, root, notes, log, seed, mutant)
    events = strace_log.Reader(root, notes).events(log)
    os.unlink(log)
    _prove_complete(events, root)
    shutil.rmtree(root)
    return Recording(scenario, events, _read(notes + ".lock"))


def record_again(recording: Recording, place: str, count: int, seed: int = 0, mutant: str = "") -> list[Recording]:
    """Build ``count`` states of a recording, and record how each is opened and used after the cut."""
    root, notes, log = (os.path.join(place, name) for name in ("root", "notes", "log"))
    os.makedirs(root)
    starts = _some_states(recording, count, random.Random(seed))
    for number, (state, _) in enumerate(starts):
        build(os.path.join(root, f"{number:04}"), state)
    _run("again", root, notes, log, seed, mutant)
    found = []
    for number, (state, journal) in enumerate(starts):
        here = os.path.join(root, f"{number:04}")
        names = {path: None if content is None else -each for each, (path, content) in enumerate(state.items(), 1)}
        sizes = {-each: len(content or b"") for each, content in enumerate(state.values(), 1)}
        events = strace_log.Reader(here, notes, names, sizes).events(log)
        events = [event for event in events if event.kind != "note" or event.note.get("process", 100 + number) == 100 + number]
        mine = {event.note["call"] for event in events if event.kind == "note" and event.note["note"] == "begin"}
        events = [e for e in events if e.kind != "note" or e.note["note"] != "ack" or e.note["call"] in mine]
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
            assert disk.files[number].latest() == _read(os.path.join(root, path)), f"{path} is not as the record tells"
    found = {os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names}
    assert found == {path for path, number in disk.names.items() if number is not None}


def _run(scenario: str, root: str, notes: str, log: str, seed: int, mutant: str) -> None:
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
        state = list(disk.states(chance, 40))[chance.choice((0, 1, 3, -1, -1, -1, -1))]
        found.append((state, journal))
    return found


def pretend_reboot() -> None:
    """Give this process another boot id, and mounts that nobody has seen. Takes root."""
    own_mounts()
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        _libc("mount", file.name.encode(), _BOOT_ID.encode(), None, _MS_BIND, None)


def own_mounts() -> None:
    """Give this process mounts of its own, which are gone when it and its children are."""
    _libc("unshare", _CLONE_NEWNS)
    _libc("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def _libc(function: str, *args: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*args):
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


# --- opening


@dataclass(frozen=True, slots=True)
class Case:
    """A state to open, and what may be found in it."""

    state: State
    locks: State
    accounts: dict[str, Account]
    label: str
    again: bool


def build(place: str, state: State) -> None:
    """Make the directory ``place`` with these files in it."""
    os.mkdir(place)
    for path, content in state.items():
        full = os.path.join(place, path)
        if content is None:
            os.mkdir(full, 0o700)
        else:
            fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, content)
            os.close(fd)


def remove(place: str) -> None:
    """Remove what ``build`` made, and what was added to it."""
    for entry in os.scandir(place):
        if entry.is_dir():
            remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(place)


def problem_of(case: Case, place: str) -> str:
    """Open the state in ``place``; return what is wrong."""
    try:
        for name, account in case.accounts.items():
            found = inspect(place, name, again=case.again)
            if problem := account.problem(found):
                return problem
    except BaseException:
        return traceback.format_exc()
    return ""


def open_all(cases: list[Case], place: str, keep: str, mutant: str = "") -> list[str]:
    """Open each of the cases, in children; return what is wrong, and keep the states of it in ``keep``."""
    failures: list[str] = []
    at = mmap.mmap(-1, 8)  # which case a child is at; it outlives the child
    position = memoryview(at).cast("Q")
    fd, report = tempfile.mkstemp(dir=place)

    def work(first: int) -> None:
        logging.getLogger("lmdbqueue").addHandler(logging.NullHandler())  # which tells of each recovery
        faulthandler.disable()  # a death by signal is reported by the parent
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if mutant:
            mutants.OPENING[mutant].apply()
        for number in range(first, len(cases)):
            position[0] = number
            here = os.path.join(place, str(number))
            build(here, {**cases[number].state, **cases[number].locks})
            if problem := problem_of(cases[number], here):
                os.write(fd, pickle.dumps((number, problem)))
            remove(here)

    first = 0
    while first < len(cases):
        status = status_of(forked(work, first))
        first = position[0] + 1
        if status != 0:
            shutil.rmtree(os.path.join(place, str(position[0])), ignore_errors=True)
            os.write(fd, pickle.dumps((position[0], f"the process that opened it ended with {status}")))
    position.release()
    with open(report, "rb") as file:
        while file.peek(1):
            number, problem = pickle.load(file)
            case = cases[number]
            name = f"{len(os.listdir(keep)):03}"
            build(os.path.join(keep, name), {**case.state, **case.locks})
            failures.append(f"{case.label}: {problem} (kept in {keep}/{name})")
    os.close(fd)
    os.unlink(report)
    return failures


# --- the states of a recording


def share(recording: Recording, count: int, part: int, parts: int, place: str, keep: str, mutant: str = "") -> Outcome:
    """Open some ``count`` distinct states, or all there are, of one part of a recording's moments."""
    outcome = Outcome()
    results = recording.results()
    cases: list[Case] = []
    moments = sum(event.kind not in ("done", "sync", "dsync") for event in recording.events)
    chance = random.Random(f"{recording.scenario} {part}")
    fruitless = 0  # passes through all moments
    while len(outcome.keys) < count and fruitless < 3 and len(outcome.failures) < ENOUGH:
        known = len(outcome.keys)
        each = max(3, (count - known) * parts // moments)
        for case in _cases(recording, results, chance, each, part, parts, outcome):
            cases.append(case)
            if len(cases) == BATCH:
                outcome.failures += open_all(cases, place, keep, mutant)
                cases = []
            if len(outcome.failures) >= ENOUGH:
                break
        fruitless += len(outcome.keys) < known + 10
    outcome.failures += open_all(cases, place, keep, mutant)
    return outcome


def _cases(
    recording: Recording,
    results: dict[int, Any],
    chance: random.Random,
    count: int,
    part: int,
    parts: int,
    outcome: Outcome,
) -> Iterator[Case]:
    """Yield the cases that ``outcome`` does not know yet, some at each moment."""
    disk, journal = Disk(recording.start, recording.lock), Journal(results)
    accounts: dict[str, Account] = {}
    for moment, event in enumerate(recording.events):
        if event.kind == "note" and event.note["note"] != "session":
            journal.note(event.note)
            accounts = _accounts(recording, journal, results)
        if not disk.apply(event) or moment // BLOCK % parts != part:
            continue
        for number, state in enumerate(disk.states(chance, count)):
            image = hash(tuple(item for item in state.items() if not item[0].endswith("/bell")))
            key = hash((image, journal.acks))
            if key in outcome.keys:
                continue
            outcome.keys.add(key)
            outcome.images.add(image)
            label = f"{recording.scenario}, moment {moment} ({event.kind}), state {number}"
            yield Case(state, disk.locks(state, chance), accounts, label, again=len(outcome.keys) % 8 == 0)


def _accounts(recording: Recording, journal: Journal, results: dict[int, Any]) -> dict[str, Account]:
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


def replay(recordings: list[Recording], count: int, keep: str, mutant: str = "") -> Outcome:
    """Open ``count`` states of each recording, on all processors; keep those that fail in ``keep``."""
    parts = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="lmdbqueue-replay-", dir=MEMORY) as place:
        gc.collect()
        gc.freeze()  # so that the children share this memory
        pids = [forked(_replay_part, recordings, count, part, parts, place, keep, mutant) for part in range(parts)]
        gc.unfreeze()
        statuses = [status_of(pid, 24 * 3600) for pid in pids]
        assert statuses == [0] * parts, "a process of the replay itself failed"
        outcome = Outcome()
        for part in range(parts):
            with open(os.path.join(place, f"{part}.outcome"), "rb") as file:
                outcome.add(pickle.load(file))
    return outcome


def _replay_part(
    recordings: list[Recording], count: int, part: int, parts: int, place: str, keep: str, mutant: str
) -> None:
    pretend_reboot()
    mine, kept = os.path.join(place, str(part)), os.path.join(keep, str(part))
    os.mkdir(mine)
    os.makedirs(kept, exist_ok=True)
    outcome = Outcome()
    for recording in recordings:
        outcome.add(share(recording, count // parts, part, parts, mine, kept, mutant))
    with open(os.path.join(place, f"{part}.outcome"), "wb") as file:
        pickle.dump(outcome, file)
