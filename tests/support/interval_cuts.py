"""Power cuts amid many commits that are not flushed, checkpoints among them, without recording anything.

Owns: which states a cut may leave of a queue with ``durability="interval"``, and how it is judged what recovery made of
them. As in ``cuts``, commits are played with images of the file that LMDB has written itself; here all those since the
last checkpoint stand between what is on the disk and what is not. What goes on after a recovery gives the same keys to
other items, on pages that hold those which were taken back.
"""

import fcntl
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from zlib import crc32

from clocks import Clock
from cuts import COPIES, PAGE, Cut, Snapshot, _without_recovery, recover, said_of

from lmdbqueue import QueueError
from lmdbqueue._lmdb import checkpoint_pin, checkpoint_slots, generation, meta_page, structure
from lmdbqueue._lmdb.sound_pages import Unsound
from lmdbqueue._local import checkpoints

NAME = "00000001.mdb"
DEEPEST = 3  # recoveries of what goes on after a recovery


class Explorer:
    """Plays verbs in ``place``, and opens what cuts amid them may leave.

    ``make(path, seed, clock)`` returns something with ``step()``, which calls any verb, ``queues``, and ``close``. What
    it does has to depend on its seed only; then the same seed gives the same states.
    """

    def __init__(self, place: str, make: Callable[[str, int, Clock], Any], seed: int, unit: int, count: int) -> None:
        self._place = place
        self._make = make
        self._unit = unit
        self._count = count
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311
        self._number = 0
        self._most = 0
        self.seen = 0  # a CRC over all that was committed
        self._options: Any = None
        self.copies = COPIES
        self.failures: Counter[str] = Counter()
        self.told: Counter[str] = Counter()

    def run(self, states: int) -> None:
        """Go on until so many states were opened, or some failed."""
        self._most = states
        while self.told["states"] < states and not self.failures:
            path = self._new()
            os.mkdir(path)
            self._live(path, 0, Clock(), self._chance.randrange(1 << 30))
            shutil.rmtree(path)

    def _new(self) -> str:
        self._number += 1
        return os.path.join(self._place, str(self._number))

    def _is_over(self) -> bool:
        return bool(self.failures) or self.told["states"] >= self._most

    def _live(self, path: str, depth: int, clock: Clock, seed: int) -> None:
        """Play steps on a queue, make checkpoints now and then, and cut the power amid them."""
        begun = clock.copy()
        with _without_recovery():
            verbs = self._make(path, seed, clock)
        environment = verbs.queues[0]._engine.environment
        verbs.values = random.Random(self._chance.randrange(1 << 30))  # noqa: S311
        self._options = environment.directory.options
        play = _Play(self, path, verbs, clock, depth)
        try:
            with play.noted():
                play.begin()
                for _ in range(self._chance.randrange(8, 40) if depth == 0 else self._chance.randrange(1, 10)):
                    if self._is_over():
                        break
                    draw = self._chance.random()
                    if draw < 0.1:
                        play.checkpoint()
                    elif draw < 0.15:
                        play.forget_pin()
                    play.step()
                    if self._chance.random() < 0.5 and not self._is_over():
                        self._explore(play.history, depth, self._chance.choice((begun, clock)), seed)
        finally:
            del play.checkpoints._wake
            verbs.close()

    def snapshot(self, image: bytes) -> Snapshot:
        """Return what an image holds."""
        path = self._new()
        try:
            found = Snapshot(path, image)
            self.seen = crc32(repr(sorted(found.content.items())).encode(), self.seen)
            return found
        finally:
            os.unlink(path)

    def _explore(self, history: "_History", depth: int, clock: Clock, seed: int) -> None:
        """Open what a cut may leave now. What goes on after it begins with this time: the wall clock may go back."""
        newest = history.snapshots[-1]
        folder = self._new()
        os.mkdir(folder)
        path = os.path.join(folder, NAME)
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        count = self._count if depth == 0 else self._count // 3
        for is_whole in history.cut.states(fd, count, newest.newest.offset, self._chance):
            for name, slots in history.lanes.items():
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(slots)
            is_copy = self.told["states"] % self.copies == 0
            problem = self._problem(path, fd, history, is_whole=is_whole, is_copy=is_copy)
            self.told["states"] += 1
            if problem:
                how = f"{said_of(is_copy=is_copy)}, depth {depth}, seed {self._seed}, state {self.told['states']}"
                self.failures[f"{problem} ({how})"] += 1
                break
            if depth < DEEPEST and self._chance.random() < 0.03 and not self._is_over():
                self._go_on(folder, depth, clock.copy(), seed)
        os.close(fd)
        shutil.rmtree(folder)

    def _problem(self, path: str, fd: int, history: "_History", *, is_whole: bool, is_copy: bool) -> str:
        try:
            recover(path, self._options, is_copy=is_copy)
        except QueueError as error:
            return f"it cannot be opened: {error}"
        possible = history.snapshots[history.least :]
        newest, _ = meta_page.read(path)
        which = [n for n, each in enumerate(possible) if each.newest.body == newest.body and each.is_in(fd)]
        if not which:  # it is none of them byte by byte
            if problems := structure.problems_of(path):
                return f"it is not sound: {problems[0]}"
            try:
                with open(path, "rb") as file:
                    found = self.snapshot(file.read())
            except Unsound as error:
                return f"it is not sound: {error}"
            which = [n for n, each in enumerate(possible) if each.content == found.content]
        if not which:
            return "it holds what none of the transactions since the checkpoint left"
        self.told["newest" if which[-1] == len(possible) - 1 else "checkpoint" if which[0] == 0 else "between"] += 1
        if is_whole and which[-1] != len(possible) - 1:
            return "what had arrived whole was taken back"
        return ""

    def _go_on(self, folder: str, depth: int, clock: Clock, seed: int) -> None:
        """Use the queue after a recovery, as it was used before it, and cut the power again."""
        path = self._new()
        shutil.copytree(folder, os.path.join(path, "queue"))
        with open(os.path.join(path, "queue", "queue.json"), "wb") as file:
            file.write(self._options.to_json())
        self._live(path, depth + 1, clock, seed or self._chance.randrange(1 << 30))
        shutil.rmtree(path)


class _History:
    """What was committed, and which of that is on the disk."""

    def __init__(self, explorer: Explorer, path: str) -> None:
        self._explorer = explorer
        image = _read(path, NAME)
        self.snapshots = [explorer.snapshot(image)]
        self.cut = Cut(image, explorer._unit)
        names = os.listdir(os.path.join(path, "queue"))
        self.lanes = {name: _read(path, name) for name in names if name.startswith("checkpoint")}
        self.least = 0  # the first snapshot that may be found

    def add(self, image: bytes) -> None:
        self.cut.write(image)
        self.snapshots.append(self._explorer.snapshot(image))

    def flush(self, image: bytes) -> None:
        self.cut = Cut(image, self._explorer._unit)


class _Play:
    """A queue in use: what it does to the disk is noted, and others commit amid the steps of its checkpoints."""

    def __init__(self, explorer: Explorer, path: str, verbs: Any, clock: Clock, depth: int) -> None:
        self._explorer = explorer
        self._path = path
        self._verbs = verbs
        self._clock = clock
        self._depth = depth
        environment = verbs.queues[0]._engine.environment
        self._live = environment._generation
        self._is_amid = False  # another step
        self.checkpoints = environment._checkpoints
        assert self.checkpoints.interval > 1_000, "its thread would come amid this"
        environment._covers = bool  # other processes are played by calls from within calls
        self.checkpoints._is_kept = True  # else who commits starts one
        self.checkpoints._wake = lambda: None  # else much that is written wakes the one that the opening has started
        self.history = _History(explorer, path)

    def step(self) -> None:
        self._is_amid, was_amid = True, self._is_amid
        try:
            self._verbs.step()
        finally:
            self._is_amid = was_amid

    def begin(self) -> None:
        """Make the first checkpoint: what was committed before it is not in the history."""
        self._is_amid = True
        self.checkpoint()
        self._is_amid = False

    def checkpoint(self) -> None:
        """Make one; in another lane than the first if one of the others writes there, or was stopped amid that."""
        with ExitStack() as stack:
            if self._explorer._chance.random() < 0.3:
                lane = stack.enter_context(open(os.path.join(self._path, "queue", "checkpoint"), "rb"))
                with suppress(BlockingIOError):  # amid another one, which has it already
                    fcntl.flock(lane, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.enter_context(self.checkpoints._busy)
            self.checkpoints._make()

    def forget_pin(self) -> None:
        """Let the pin hold nothing, as when all have closed the file, and somebody has opened it again."""
        pin = self._live.pin
        pin._words[pin._at] = checkpoint_pin.NOTHING
        self.checkpoints._is_pinned = False

    def _meanwhile(self) -> None:
        """Let others commit, amid the making of a checkpoint, and make another, and the power go."""
        if (
            self._live.pin.transaction != checkpoint_pin.NOTHING
            and not self._is_amid
            and self._explorer._chance.random() < 0.5
            and not self._explorer._is_over()
        ):
            for _ in range(self._explorer._chance.choice((1, 2, 3))):
                self.step()
            if self._explorer._chance.random() < 0.3:
                self._is_amid = True
                self.checkpoint()
                self._is_amid = False
                self.step()
            self._explorer._explore(self.history, self._depth, self._clock, 0)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is committed, flushed and covered in the block."""
        with ExitStack() as stack:
            for owner, name, wrap in (
                (generation.Generation, "_commit", self._committing),
                (generation.Generation, "flush_to_disk", self._flushing),
                (meta_page, "body_of", self._reading),
                (checkpoint_slots.Slots, "raise_to", self._raising),
                (os, "fsync", self._syncing),  # not sync_file: a mutant leaves that out
                (checkpoints.Checkpoints, "_make", self._making),
            ):
                before = getattr(owner, name)
                setattr(owner, name, wrap(before))
                stack.callback(setattr, owner, name, before)
            yield

    def _committing(self, commit: Any) -> Any:
        def _commit(each: Any, txn: Any) -> None:
            commit(each, txn)
            if each is self._live:
                self.history.add(_read(self._path, NAME))

        return _commit

    def _flushing(self, flush: Any) -> Any:
        def flush_to_disk(each: Any) -> None:
            if each is not self._live:
                flush(each)
                return
            self._meanwhile()
            flush(each)
            self.history.flush(_read(self._path, NAME))
            self._meanwhile()

        return flush_to_disk

    def _reading(self, read: Any) -> Any:
        def body_of(fd: int, *args: Any) -> Any:
            first = read(fd, *args)
            if fd == self._live._fd:
                self._meanwhile()
            return first[:72] + read(fd, *args)[72:]  # no system call, and no lock, makes this read one step

        return body_of

    def _raising(self, raise_to: Any) -> Any:
        def raised(each: Any, *args: Any) -> None:
            raise_to(each, *args)
            if each is self.checkpoints._slots:
                self._meanwhile()

        return raised

    def _syncing(self, sync_file: Any) -> Any:
        def sync(fd: int) -> None:
            sync_file(fd)
            for lane in self.checkpoints._slots._lanes:
                if fd == lane._fd:
                    name = os.path.basename(lane._path)
                    self.history.lanes[name] = _read(self._path, name)

        return sync

    def _making(self, make: Any) -> Any:
        def _make(each: Any) -> None:
            covered = len(self.history.snapshots) - 1
            make(each)
            if each is not self.checkpoints:
                return
            self._explorer.told["checkpoints"] += 1
            self.history.least = max(self.history.least, covered)

        return _make


def _read(path: str, name: str) -> bytes:
    with suppress(FileNotFoundError), open(os.path.join(path, "queue", name), "rb") as file:
        return file.read()
    return bytes(2 * PAGE)
