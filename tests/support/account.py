"""What a queue must hold after a crash: the account of the calls that processes made on it.

Owns: the journal that a process keeps of its calls (begun, acknowledged, with what result), and the
judgement of what was found after the crash. Knows nothing of how the crash came about.

The rule: every acknowledged call is there, whole; every other call that was begun is there whole or not
at all; nothing else is there; order is that of the sequence numbers. What an acknowledged read has shown
counts as there, too, since somebody may have acted on it.

An item stands for a *tag*, (producer, number, size), and can be told from every other.
"""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from struct import Struct
from typing import Any

from lmdbqueue import PersistentQueue, Reader

Tag = tuple[int, int, int]
PROBE: Tag = (255, 0, 99)
FILLING = 25  # steps
_HEAD = Struct(">BI")


@lru_cache(maxsize=20_000)
def item(tag: Tag) -> bytes:
    """Return the item of a tag: 5 bytes or more."""
    producer, number, size = tag
    return (_HEAD.pack(producer, number) + random.Random(repr(tag)).randbytes(size))[:size]  # noqa: S311


def tag_of(found: bytes) -> Tag | None:
    """Return the tag of an item, None if it is damaged."""
    if len(found) < _HEAD.size:
        return None
    tag = (*_HEAD.unpack_from(found), len(found))
    return tag if found == item(tag) else None


@dataclass(slots=True)
class Call:
    """A verb that a process called on a queue; ``result`` is None as long as it is not acknowledged."""

    process: int
    queue: str
    verb: str
    tags: list[Tag] = field(default_factory=list)  # that it pushes
    n: int = 0  # that it removes, at most
    result: Any = None
    acked: bool = False


class Journal:
    """The calls up to some moment, from the notes of all processes in their order."""

    def __init__(self, results: dict[int, Any] | None = None) -> None:
        self.calls: dict[int, Call] = {}
        self.acks = 0
        self._results = results or {}  # of calls that were acknowledged before they had one (by a mutant)

    def note(self, note: dict[str, Any]) -> bool:
        """Take a note; tell whether it was an acknowledgement."""
        if note["note"] == "begin":
            tags = [tuple(tag) for tag in note["tags"]]
            self.calls[note["call"]] = Call(note["process"], note["queue"], note["verb"], tags, note["n"])
        elif note["note"] == "ack":
            call = self.calls[note["call"]]
            if call.acked:
                return False
            self.acks += 1
            call.acked = True
            call.result = note["result"] if note["result"] is not None else self._results.get(note["call"])
            return True
        return False

    def queues(self) -> list[str]:
        """Return the names of the queues that may be there."""
        return sorted({call.queue for call in self.calls.values()})

    def account(self, queue: str, base: "Found | None" = None) -> "Judge":
        """Return who judges a queue: what kind it is was noted by the first call on it, if it is not the usual one."""
        calls = [call for call in self.calls.values() if call.queue == queue]
        kinds: dict[str, type[Judge]] = {
            "judged as a set": Loose,
            "judged by steps": Steps,
            "judged by steps since a sync": SyncedSteps,
            "judged by readings": Readings,
            "judged by another": Others,
        }
        judge = kinds.get(calls[0].verb if calls else "")
        return Account(calls, base) if judge is None else judge(calls)


def take_notes(journal: Journal, data: bytes, *, is_late: bool = False) -> bytes:
    """Take the notes that have come; return the rest. What is acknowledged too late may have taken place or not."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        note = json.loads(line)
        if not (is_late and note["note"] == "ack"):
            journal.note(note)
    return rest


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in a queue: its items, and the sequence number after the last."""

    tags: tuple[Tag | None, ...]
    tail: int
    state: dict[str, bytes] = field(default_factory=dict)
    readers: dict[str, tuple[int, int]] = field(default_factory=dict)  # position, skipped

    @property
    def head(self) -> int:
        return self.tail - len(self.tags)

    def after(self, probe: Tag) -> "Found":
        """Return what is there after ``inspect`` has pushed the probe and popped one item."""
        return Found((*self.tags, probe)[1:], self.tail + 1, self.state)


class Judge:
    """Says what is wrong with what was found in one queue, and in all of a directory."""

    def __init__(self, calls: Iterable[Call]) -> None: ...

    def problem(self, found: Found) -> str:  # noqa: ARG002
        """Return what is wrong with a queue; nothing, if it may be so."""
        return ""

    def problem_of_all(self, found: dict[str, Found]) -> str:  # noqa: ARG002
        """Return what is wrong with the queues together."""
        return ""


class Others(Judge):
    """The judge of another queue judges this one."""


class Loose(Judge):
    """Items leave in any order: what a call settles is named when it begins."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.known: set[Tag] = set()
        self.pushing: list[list[Tag]] = []
        self.settling: list[set[Tag]] = []
        self.gone: set[Tag] = set()
        for call in calls:
            if call.verb == "push" and call.acked:
                self.known.update(call.tags)
            elif call.verb == "push":
                self.pushing.append(call.tags)
            elif call.verb == "settle" and call.acked:
                self.gone.update(call.tags)
            elif call.verb == "settle":
                self.settling.append(set(call.tags))

    def problem(self, found: Found) -> str:
        there = {tag for tag in found.tags if tag is not None}
        if len(there) < len(found.tags):
            return "an item is damaged, or there twice"
        if again := there & self.gone:
            return f"what was acknowledged is there again: {sorted(again)[:3]}"
        extra = there - self.known
        if extra not in [set(), *map(set, self.pushing)]:
            return f"these are not what one call pushed: {sorted(extra)[:3]}"
        lost = self.known - self.gone - there
        if lost not in [set(), *self.settling]:
            return f"these are gone, and no call took just them: {sorted(lost)[:3]}"
        return ""


class Steps(Judge):
    """One process does steps, each one transaction over two queues and their states: see ``after_steps``."""

    def after(self, n: int) -> dict[str, Found]:
        return after_steps(n)

    def __init__(self, calls: Iterable[Call]) -> None:
        done = [call.n for call in calls if call.verb == "step" and call.acked]
        begun = [call.n for call in calls if call.verb == "step"]
        self.possible = sorted({max(done, default=0), max(begun, default=0)})

    def problem_of_all(self, found: dict[str, Found]) -> str:
        if any(found.items() <= self.after(n).items() for n in self.possible):
            return ""
        wrong = {
            name: [
                what
                for what in ("tags", "tail", "state", "readers")
                if getattr(found[name], what) != getattr(self.after(self.possible[0])[name], what)
            ]
            for name in found
        }
        return f"this is what is there after none of the steps {self.possible}; other than after the first: {wrong}"


class SyncedSteps(Steps):
    """Some first steps are there, and all that were done when a ``sync`` that has returned began."""

    def __init__(self, calls: Iterable[Call]) -> None:
        calls = list(calls)
        synced = [call.n for call in calls if call.verb == "sync" and call.acked]
        begun = [call.n for call in calls if call.verb == "step"]
        self.possible = list(range(max(synced, default=0), max(begun, default=0) + 1))


def step(n: int) -> tuple[int, list[Tag], str, bytes]:
    """Return what step ``n`` does: items moved from a to b, pushed to a, and what of the state it sets."""
    if n <= FILLING:
        return 0, [(1, 10 * n, 8)], f"key {n}", bytes(300)
    if n % 30 < 20:  # steps that are alike use the same pages again and again
        return 1, [(1, 10 * n, 8)], f"key {n % 3}", n.to_bytes(300)
    chance = random.Random(n)  # noqa: S311
    tags = [(1, 10 * n + i, chance.choice((8, 60, 900))) for i in range(chance.randrange(4))]
    return chance.randrange(4), tags, f"key {chance.randrange(FILLING)}", chance.randbytes(300)


@lru_cache
def after_steps(n: int) -> dict[str, Found]:
    """Return what is there after so many steps."""
    return next(islice(after_each_step(), n, None))


def after_each_step() -> Iterator[dict[str, Found]]:
    """Yield what is there after no step, after one, after two, and so on."""
    items: dict[str, list[Tag]] = {"a": [], "b": []}
    tails = {"a": 0, "b": 0}
    state: dict[str, bytes] = {}
    for each in count(1):
        yield {name: Found(tuple(items[name]), tails[name], dict(state) if name == "a" else {}) for name in items}
        moved, tags, key, value = step(each)
        some = items["a"][:moved]
        del items["a"][:moved]
        items["b"] += some
        items["a"] += tags
        tails["a"] += len(tags)
        tails["b"] += len(some)
        state[key] = value
        items["b"] = items["b"][1:]


class Readings(Steps):
    """One process does steps, each one verb of a queue or of its readers: see ``after_readings``."""

    def after(self, n: int) -> dict[str, Found]:
        return after_readings(n)


READERS = ("billing", "search", "audit")


LEASE, GIVE_BACK = "lease", "give back"  # steps of a consumer beside the readers, who all pass its item in between
BESIDE = {50: LEASE, **dict(enumerate(READERS, 51)), 54: GIVE_BACK}  # of each 60 steps


def reading(n: int) -> tuple[str, list[Tag], int]:
    """Return what step ``n`` does: which reader ("" for none) passes how many items, or what is pushed."""
    if n <= len(READERS):
        return READERS[n - 1], [], 0  # it is made
    if n % 60 in BESIDE:
        return BESIDE[n % 60], [], 1_000
    chance = random.Random(n)  # noqa: S311
    if n % 4 == 0:
        return "", [(1, 10 * n + i, chance.choice((8, 60, 900))) for i in range(chance.randrange(1, 6))], 0
    return READERS[n % 4 - 1], [], 1 if n % 60 < 40 else chance.randrange(1, 6)


@lru_cache
def after_readings(n: int) -> dict[str, Found]:
    """Return what is there after so many steps."""
    items: list[Tag] = []
    positions: dict[str, int] = {}
    skipped = dict.fromkeys(READERS, 0)
    held = None  # the number of an item that is leased
    for each in range(1, n + 1):
        name, tags, passed = reading(each)
        items += tags
        if name == LEASE:
            first = min(positions.values())
            held = first if first < len(items) else None
        elif name == GIVE_BACK:
            items += _returned(items, positions, held)
            held = None
        elif name:
            before = positions.get(name, 0)
            there = [number for number in range(before, len(items)) if number != held][:passed]
            positions[name] = there[-1] + 1 if there else before
            skipped[name] += held is not None and before <= held < positions[name]
    items += _returned(items, positions, held)  # its owner is dead
    first = min(positions.values(), default=0)
    readers = {name: (position, skipped[name]) for name, position in positions.items()}
    return {"queue": Found(tuple(items[first:]), len(items), readers=readers)}


def _returned(items: list[Tag], positions: dict[str, int], held: int | None) -> list[Tag]:
    """Return what comes to the tail when a leased item comes back: the item, if all readers have passed its place."""
    return [items[held]] if held is not None and min(positions.values()) > held else []


class Account(Judge):
    """What may be found, from what was there (``base``) and what was called since."""

    def __init__(self, calls: Iterable[Call], base: Found | None = None) -> None:
        base = base or Found((), 0)
        self.base = base
        self.known: dict[int, Tag | None] = dict(enumerate(base.tags, base.head))
        self.pending: list[list[Tag]] = []  # pushes that nobody acknowledged
        self.popped: set[Tag] = set()
        self.removed = 0  # by acknowledged calls
        self.removing: list[int] = []  # by the others, at most
        self.seen: list[list[Tag]] = []
        self.fault = ""  # in what was acknowledged already, without any crash
        processes = set()
        for call in calls:
            processes.add(call.process)
            if call.verb == "push":
                self._push(call)
            elif call.verb in ("pop", "delete", "clear"):
                self._remove(call)
            elif call.verb == "peek" and call.acked:
                self.seen.append([tuple(tag) for tag in call.result])
        self.one_at_a_time = len(processes) < 2 and len(self.removing) + len(self.pending) < 2
        self.place = {tag: (block, i) for block, tags in enumerate(self.pending) for i, tag in enumerate(tags)}
        self.seq = {tag: seq for seq, tag in self.known.items()}

    def _push(self, call: Call) -> None:
        if not call.acked:
            self.pending.append(call.tags)
            return
        for seq, tag in enumerate(call.tags, call.result):
            if seq in self.known:
                self.fault = f"two items were pushed as {seq}"
            self.known[seq] = tag

    def _remove(self, call: Call) -> None:
        if not call.acked:
            self.removing.append(call.n)
        elif call.verb == "pop":
            tags = {tuple(tag) for tag in call.result}
            if tags & self.popped:
                self.fault = f"{tags & self.popped} were popped twice"
            self.popped |= tags
            self.removed += len(tags)
        else:
            self.removed += call.result

    def problem(self, found: Found) -> str:
        """Return what is wrong with what was found; nothing, if it may be so."""
        return self.fault or self._problem_of_items(found) or self._problem_of_removals(found)

    def _problem_of_items(self, found: Found) -> str:
        tags, head, tail = found.tags, found.head, found.tail
        if tail <= max(self.known, default=self.base.tail - 1):
            return f"an acknowledged push is lost: the queue ends at {tail}, {max(self.known)} was pushed"
        for seq, tag in self.known.items():
            if seq >= head and tags[seq - head] != tag:
                return f"item {seq} is {tags[seq - head]} and not {tag}"
        self._found_at: dict[int, int] = {}
        for seq in range(head, tail):
            if seq in self.known:
                continue
            tag = tags[seq - head]
            if tag not in self.place:
                return f"item {seq} is {tag}, which nobody pushed"
            block, i = self.place[tag]
            start = self._found_at.setdefault(block, seq - i)
            if start != seq - i:
                return f"item {seq}, {tag}, is there twice"
            if start + len(self.pending[block]) > tail:
                return f"half a push is there: {self.pending[block]} from {start}, and the queue ends at {tail}"
        return ""

    def _problem_of_removals(self, found: Found) -> str:
        present = set(found.tags)
        if again := self.popped & present:
            return f"an acknowledged pop is undone: {sorted(again)[:3]}"
        extra = found.head - self.base.head - self.removed
        if extra < 0:
            return f"an acknowledged removal is undone: {self.removed} were removed, and the head is {found.head}"
        sums = {0}
        for n in self.removing:
            sums |= {n + other for other in sums}
        # a removal of more than there is removes all; what is there was then pushed later, by another call
        is_short = extra < max(sums) and not (present and self.one_at_a_time)
        if extra not in sums and not is_short:
            return f"{extra} items are gone that nobody took (calls under way: {self.removing})"
        for tags in self.seen:
            for i, tag in enumerate(tags):
                seq = self.seq.get(tag)
                if seq is None and tag in self.place and self.place[tag][0] in self._found_at:
                    seq = self._found_at[self.place[tag][0]] + self.place[tag][1]
                if seq is None and tag not in self.popped and extra == 0:
                    return f"{tag}, which somebody read, is gone"
                if i == 0 and seq is not None and found.head < seq:
                    return f"what stood before {tag} was gone when somebody read, and is there again"
        return ""


class Worker:
    """A process that calls verbs on a queue and notes each before and after. One at a time."""

    def __init__(
        self, process: int, note: Callable[[dict[str, Any]], None], seed: object, first_number: int = 0
    ) -> None:
        self.process = process
        self.note = note
        self.random = random.Random(repr(seed))  # noqa: S311
        self._number = first_number
        self._id = process * 1_000_000
        self._open_call = 0

    def call(self, verb: str, queue: str, fn: Callable[[], Any], tags: Sequence[Tag] = (), n: int = 0) -> Any:
        """Note, call, note; return what ``fn`` returned."""
        self._id += 1
        self.note(
            {
                "note": "begin",
                "call": self._id,
                "process": self.process,
                "queue": queue,
                "verb": verb,
                "tags": tags,
                "n": n,
            }
        )
        self._open_call = self._id
        result = fn()
        self._open_call = 0
        self.note({"note": "ack", "process": self.process, "call": self._id, "result": result})
        return result

    def acknowledge_early(self) -> None:
        """Note the call under way as acknowledged. What only a mutant does."""
        if self._open_call:
            self.note({"note": "ack", "process": self.process, "call": self._open_call, "result": None})

    def tags(self, count: int, largest: int = 6000) -> list[Tag]:
        found = []
        for _ in range(count):
            self._number += 1
            size = int(5 * (largest / 5) ** self.random.random())
            found.append((self.process, self._number, size))
        return found

    # --- verbs

    def push(self, queue: PersistentQueue[bytes], count: int = 1, largest: int = 6000) -> None:
        tags = self.tags(count, largest)
        if count == 1:
            self.call("push", queue.name, lambda: queue.push(item(tags[0])), tags)
        else:
            self.call("push", queue.name, lambda: queue.push([item(tag) for tag in tags]).start, tags)

    def pop(self, queue: PersistentQueue[bytes], n: int = 1) -> int:
        taken = self.call("pop", queue.name, lambda: [tag_of(each) for each in _as_list(queue.pop(n), n)], n=n)
        return len(taken)

    def peek(self, queue: PersistentQueue[bytes], n: int) -> None:
        self.call("peek", queue.name, lambda: [tag_of(each) for each in _as_list(queue.peek(n), n)])

    def delete(self, queue: PersistentQueue[bytes], n: int) -> None:
        self.call("delete", queue.name, lambda: queue.delete(n), n=n)

    def lease(self, queue: PersistentQueue[bytes], n: int = 1) -> None:
        """Lease and acknowledge, which is a pop to who is alone."""

        def take() -> list[Tag | None]:
            with queue.lease(n, ttl=100.0) as lease:
                return [tag_of(each) for each in lease]

        self.call("pop", queue.name, take, n=n)

    def give_back(self, queue: PersistentQueue[bytes], n: int = 1) -> None:
        """Lease and give back, which is a look to who is alone."""

        def take() -> list[Tag | None]:
            lease = queue.lease(n)
            lease.nack()
            return [tag_of(each) for each in lease]

        self.call("peek", queue.name, take)

    def settle(self, queue: PersistentQueue[bytes], tags: Sequence[Tag], fn: Callable[[], Any]) -> None:
        """Call what removes just these items."""
        self.call("settle", queue.name, lambda: (fn(), 0)[1], tags)

    def step(self, n: int, a: PersistentQueue[bytes], b: PersistentQueue[bytes]) -> None:
        """Do step ``n``, as one transaction of two queues."""
        moved, tags, key, value = step(n)

        def do() -> int:
            with a.transaction():
                if moved:
                    b.push(_as_list(a.pop(moved), moved))
                a.push([item(tag) for tag in tags])
                a.state[key] = value
                b.delete(1)
            return 0

        self.call("step", "a", do, n=n)

    def sync(self, n: int, queue: PersistentQueue[bytes]) -> None:
        """Bring all to the disk that was done up to step ``n``."""
        self.call("sync", queue.name, lambda: (queue.sync(), 0)[1], n=n)

    def read(self, n: int, queue: PersistentQueue[bytes], readers: dict[str, Reader[bytes]]) -> None:
        """Do step ``n`` of those with readers, which it adds to ``readers``."""
        name, tags, passed = reading(n)

        def do() -> int:
            if name == LEASE:
                self._lease = queue.lease()
            elif name == GIVE_BACK:
                self._lease.nack()
            elif not name:
                queue.push([item(tag) for tag in tags])
            elif name not in readers:
                readers[name] = queue.reader(name)
            else:
                readers[name].pop(passed)
            return 0

        self.call("step", queue.name, do, n=n)

    def clear(self, queue: PersistentQueue[bytes]) -> None:
        """Clear a queue that nobody else pushes to."""
        held = len(queue)
        self.call("clear", queue.name, lambda: (queue.clear(), held)[1], n=1 << 20)

    def flush(self, queue: PersistentQueue[bytes]) -> None:
        self.call("flush", queue.name, lambda: queue.flush(force=True))


def _as_list(answer: Any, n: int) -> list[bytes]:
    if n == 1:
        return [] if answer is None else [answer]
    return answer


def notes_to(fd: int) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes a note, as one line and one system call, to ``fd``."""
    return lambda note: _write(fd, json.dumps(note, separators=(",", ":")).encode() + b"\n")


def _write(fd: int, data: bytes) -> None:
    assert os.write(fd, data) == len(data)


def open_queue(place: str, name: str = "queue", **options: Any) -> PersistentQueue[bytes]:
    """Open the queue whose items are bytes at ``place``/q, with the durability that it has."""
    if not options and os.path.exists(path := os.path.join(place, "q", "queue.json")):
        with open(path, "rb") as file, suppress(ValueError, KeyError):
            options = {"durability": json.load(file)["durability"]}
    return PersistentQueue("q", place, dumps=bytes, loads=bytes, name=name, **options)


def inspect(place: str, name: str = "queue", probe: Tag = PROBE, *, proves: bool = True, again: bool = False) -> Found:
    """Open the queue in ``place``, demand that it works, and return what was found.

    It must take a push, of the probe, and give a pop; with ``proves`` prove itself whole; with ``again`` hold the
    same once it was closed.
    """
    last = item(probe)
    with open_queue(place, name) as queue:
        items = list(queue)
        state = dict(queue.state)
        readers = {each.name: (each.position, each.skipped) for each in queue.readers()}
        tail = queue.push(last)
        assert len(queue) == len(items) + 1, f"it counts {len(queue)} items and shows {len(items) + 1}"
        assert queue.peek(len(items) + 2) == [*items, last], "a push changed what was there"
        first = queue.pop()
        assert first == [*items, last][0], "a pop gave another item than the first"
        if proves:
            problems = queue.check()
            assert problems == [], problems
    if again:
        with open_queue(place, name) as queue:
            assert list(queue) == [*items, last][1:], "the second opening found something else than the first"
    return Found(tuple(tag_of(each) for each in items), tail, state, readers)
