"""Power cuts amid single commits, with pages of killed attempts on the disk: all mixtures, without recording anything.

Owns: what a cut amid a commit may leave of a file, and how it is judged what recovery made of that. A commit is played
with the images of the file before and after it, both of which LMDB has written itself. Each unit of the file (a sector,
or a page) is then that of the image before, of the one after, or of an attempt that was killed in between.

The strace replay (``replay``) is closer to the machine, and slower by a factor of ten; it does not kill.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from zlib import crc32

from clocks import Clock

from lmdbqueue import QueueError
from lmdbqueue._host.session import Session
from lmdbqueue._lmdb import generation, meta_page, structure
from lmdbqueue._lmdb.raw_pages import NO_ROOT
from lmdbqueue._lmdb.sound_pages import BIG, SUB, SoundPages, as_tree
from lmdbqueue._local import live, recovery

PAGE = 4096
COPIES = 5  # one state of so many is opened as a copy of the directory that the cut left
Units = dict[int, list[bytes]]


class Snapshot:
    """What the newest snapshot of an image holds, and where."""

    def __init__(self, path: str, image: bytes) -> None:
        with open(path, "wb") as file:
            file.write(image)
        self.newest, _ = meta_page.read(path)
        self.image = image
        self.content: dict[tuple[bytes, bytes], bytes] = {}
        self.pages: set[int] = set()
        fd = os.open(path, os.O_RDONLY)
        try:
            self._pages = SoundPages(fd, PAGE)
            self._read(b"\0free", self.newest.free, is_free_list=True)
            self._read(b"", self.newest.main)
        finally:
            os.close(fd)

    def _read(self, name: bytes, tree: Any, **options: bool) -> None:
        pages = [] if tree.root == NO_ROOT else [((tree.root, None, None), tree.depth - 1)]
        while pages:
            child, height = pages.pop()
            self.pages.add(child[0])
            if height:
                pages += [(each, height - 1) for each in self._pages.branch(child, **options)]
                continue
            for node in self._pages.leaf(child, **options):
                if node[1] == BIG:
                    self.pages.update(self._pages.run(node, self.newest.last_page))
                if node[1] == SUB:
                    self._read(node[0], as_tree(node))
                    self.content[name, node[0]] = b""
                elif not options:
                    self.content[name, node[0]] = self._pages.value(node)

    def is_in(self, fd: int) -> bool:
        """Tell whether all pages of this snapshot are in a file."""
        return all(os.pread(fd, PAGE, at) == self.image[at : at + PAGE] for at in (page * PAGE for page in self.pages))


class Cut:
    """What a power cut may leave of a file, of which ``durable`` was on the disk."""

    def __init__(self, durable: bytes, unit: int) -> None:
        self._durable = durable
        self._now = durable
        self._unit = unit
        self._versions: Units = {}
        self._killed: dict[int, list[int]] = {}  # versions of units that are of killed attempts

    def write(self, image: bytes, *, killed: bool = False) -> None:
        """Let the file become ``image``, not durably."""
        size = max(len(image), len(self._now))
        before, image = self._now.ljust(size, b"\0"), image.ljust(size, b"\0")
        for page in range(0, size, PAGE):
            if before[page : page + PAGE] != image[page : page + PAGE]:
                for at in range(page, min(page + PAGE, size), self._unit):
                    if before[at : at + self._unit] != image[at : at + self._unit]:
                        versions = self._versions.setdefault(at, [])
                        versions.append(image[at : at + self._unit])
                        if killed:
                            self._killed.setdefault(at, []).append(len(versions))
        self._now = image

    def states(self, fd: int, count: int, slot: int, chance: random.Random) -> Iterator[bool]:
        """Make a file what the cut may leave, one state after the other; yield whether all of the last write is in it.

        ``slot``: its meta page. The meta pages and what was changed are put right before the next.
        """
        os.ftruncate(fd, 0)
        os.pwrite(fd, self._durable.ljust(len(self._now), b"\0"), 0)
        full = {at: len(versions) for at, versions in self._versions.items()}
        seen = set()
        for choice in self._choices(full, count, slot // self._unit * self._unit, chance):
            key = tuple(choice[at] for at in full)
            if key not in seen:
                seen.add(key)
                written = {at: self._versions[at][version - 1] for at, version in choice.items() if version}
                for at, unit in written.items():
                    os.pwrite(fd, unit, at)
                yield choice == full
                for at in {*written, 0, PAGE}:
                    os.pwrite(fd, self._durable[at : at + self._unit].ljust(self._unit, b"\0"), at)

    def _choices(self, full: dict[int, int], count: int, slot: int, chance: random.Random) -> Iterator[dict[int, int]]:
        yield full
        combinations = 1
        for versions in full.values():
            combinations = min(1 << 30, combinations * (versions + 1))
        if combinations <= count:
            for choice in product(*(range(versions + 1) for versions in full.values())):
                yield dict(zip(full, choice, strict=True))
            return
        body = [at for at in full if at != slot]
        for at in chance.sample(body, min(len(body), count // 3)):  # one is missing
            yield {**full, at: chance.randrange(full[at])}
        for _ in range(count - count // 3):
            choice = chance.choice((_some_missing, _pages_missing, _killed_but_for_some, _few_arrived, _anything))
            found = choice(full, body, self._killed, chance)
            yield {**found, slot: 0} if chance.random() < 0.05 else {**found, slot: full[slot]}


Killed = dict[int, list[int]]


def _some_missing(full: dict[int, int], body: list[int], _killed: Killed, chance: random.Random) -> dict[int, int]:
    some = chance.sample(body, min(len(body), chance.choice((2, 2, 3, 4))))
    return full | {at: chance.randrange(full[at]) for at in some}


def _pages_missing(full: dict[int, int], body: list[int], _killed: Killed, chance: random.Random) -> dict[int, int]:
    pages = sorted({at // PAGE for at in body})
    missing = set(chance.sample(pages, chance.randint(1, len(pages)))) if pages else set()
    return full | {at: chance.randrange(full[at]) for at in body if at // PAGE in missing}


def _killed_but_for_some(
    full: dict[int, int], body: list[int], killed: Killed, chance: random.Random
) -> dict[int, int]:
    found = full | {at: chance.choice(versions) for at, versions in killed.items()}
    some = chance.sample(body, min(len(body), chance.choice((0, 0, 1, 2, 3))))
    return found | {at: chance.randint(0, full[at]) for at in some}


def _few_arrived(full: dict[int, int], body: list[int], _killed: Killed, chance: random.Random) -> dict[int, int]:
    some = set(chance.sample(body, min(len(body), chance.choice((0, 1, 2, 3, 6)))))
    return full | {at: 0 for at in body if at not in some}


def _anything(full: dict[int, int], body: list[int], _killed: Killed, chance: random.Random) -> dict[int, int]:
    return full | {at: chance.randint(0, full[at]) for at in body}


# --- what recovery makes of it


class AfterACut:
    """The session of whoever opens a queue, or a copy of its directory, first after a power cut."""

    note = b""
    is_standing = is_closed = is_in_doubt = staticmethod(lambda *_: False)
    settle = staticmethod(lambda _synced: None)

    def __init__(self, *, is_copy: bool) -> None:
        self.is_original = lambda: not is_copy


def recover(path: str, options: Any, *, is_copy: bool = False) -> None:
    session: Session = AfterACut(is_copy=is_copy)  # type: ignore[assignment]
    recovery.recover(path, 1, options, session)


def said_of(*, is_copy: bool) -> str:
    return "a copy" if is_copy else "the original"


@contextmanager
def _without_recovery() -> Iterator[None]:
    """Let queues be opened as if their page cache stood."""
    before = live.recover
    live.recover = lambda _path, number, _options, session, _progress: session.settle(number << 40)  # type: ignore[assignment]
    try:
        yield
    finally:
        live.recover = before  # type: ignore[assignment]


class Explorer:
    """Plays commits in ``place``, and opens what cuts amid them may leave.

    ``make(path, seed, clock)`` returns something with ``step()``, which calls any verb, and ``close``. What it does has
    to depend on its seed only; then the same seed gives the same states. Each branch of what happens, as a killed
    attempt or what goes on after a recovery, has a clock of its own, which begins with the time of the cut.
    """

    def __init__(self, place: str, make: Callable[[str, int, Clock], Any], seed: int, unit: int, count: int) -> None:
        self._place = place
        self._make = make
        self._unit = unit
        self._count = count
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311
        self._number = 0
        self.seen = 0  # a CRC over all that was committed
        self.failures: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self._options: Any = None
        self.expects_advance = True
        self.copies = COPIES

    def run(self, states: int) -> None:
        """Go on until so many states were opened, or some failed."""
        while self.told["states"] < states and not self.failures:
            path, clock = self._new(), Clock()
            os.mkdir(path)
            verbs = self._make(path, self._chance.randrange(1 << 30), clock)
            with self._played():
                for _ in range(self._chance.randrange(5, 40)):
                    verbs.step()
            verbs.close()
            shutil.copy(os.path.join(path, "queue", "queue.json"), self._place)
            self._live(path, 12, 0, clock)
            shutil.rmtree(path)

    def _new(self) -> str:
        self._number += 1
        return os.path.join(self._place, str(self._number))

    @contextmanager
    def _played(self, *, of: "list[tuple[bytes, bytes]] | None" = None) -> Iterator[None]:
        """Note the images before and after each commit."""
        commit = generation.Generation._commit

        def _commit(each: Any, txn: Any) -> None:
            self._options = each.options
            with open(each.path, "rb") as file:
                before = file.read()
            commit(each, txn)
            if of is not None:
                with open(each.path, "rb") as file:
                    of.append((before, file.read()))

        generation.Generation._commit = _commit  # type: ignore[method-assign]
        try:
            yield
        finally:
            generation.Generation._commit = commit  # type: ignore[method-assign]

    def _step(self, path: str, seed: int, clock: Clock, *, values: int) -> list[tuple[bytes, bytes]]:
        """Return the images around each commit of a step on the queue at ``path``, which is opened for it."""
        with _without_recovery():
            verbs = self._make(path, seed, clock)
        verbs.values = random.Random(values)  # noqa: S311
        images: list[tuple[bytes, bytes]] = []
        try:
            with self._played(of=images):
                verbs.step()
        finally:
            verbs.close()
        return images

    def _live(self, path: str, steps: int, depth: int, clock: Clock, first: int = 0) -> None:
        """Play steps on a queue all of which is durable, and open what cuts may leave of each of their commits."""
        name = os.path.join(path, "queue", "00000001.mdb")
        killed: list[Snapshot] = []
        cut = None
        for _ in range(steps):
            if self.failures:
                return
            if cut is None:
                with open(name, "rb") as file:
                    cut = Cut(file.read(), self._unit)
            seed, first = first or self._chance.randrange(1 << 30), 0
            while self._chance.random() < 0.4 and len(killed) < 2:  # the same shape, or another
                killed += self._kill(path, name, cut, seed if self._chance.random() < 0.6 else seed + 1, clock.copy())
                if depth < 3 and self._chance.random() < 0.3:  # the power is cut before anybody goes on
                    self._cut_at_once(name, depth, clock, seed)
            images = self._step(path, seed, clock, values=self._chance.randrange(1 << 30))
            if not os.path.exists(name):
                return  # it was flushed
            for before, after in images:
                cut.write(after)
                self._explore(before, after, cut, killed, depth, clock)
                cut, killed = Cut(after, self._unit), []
            cut = None if images else cut

    def _kill(self, path: str, name: str, cut: Cut, seed: int, clock: Clock) -> "list[Snapshot]":
        """Leave the pages of an attempt that was killed before its meta page was; return what it would have made."""
        other = self._new()
        shutil.copytree(path, other)
        images = self._step(other, seed, clock, values=self._chance.randrange(1 << 30))
        shutil.rmtree(other)
        if not images:
            return []
        with open(name, "rb") as file:
            image = bytearray(file.read())
        after = images[0][1]
        pages = [
            at for at in range(2 * PAGE, len(after), PAGE) if after[at : at + PAGE] != images[0][0][at : at + PAGE]
        ]
        if self._chance.random() < 0.3:  # it was not through with them
            pages = pages[: self._chance.randint(0, len(pages))]
        for at in pages:
            image[at : at + PAGE] = after[at : at + PAGE]
        with open(name, "r+b") as file:
            file.write(image)
        cut.write(bytes(image), killed=True)
        self.told["killed attempts"] += 1
        return [self._snapshot(after)]

    def _cut_at_once(self, name: str, depth: int, clock: Clock, seed: int) -> None:
        """Cut the power when all pages of the killed attempt have arrived: from then on none of it may rise."""
        path = self._new()
        shutil.copy(name, path)
        recover(path, self._options)
        self._go_on(path, depth, clock.copy(), seed)
        os.unlink(path)

    def _snapshot(self, image: bytes) -> Snapshot:
        path = self._new()
        try:
            found = Snapshot(path, image)
            self.seen = crc32(repr(sorted(found.content.items())).encode(), self.seen)
            return found
        finally:
            os.unlink(path)

    def _explore(
        self, before: bytes, after: bytes, cut: Cut, killed: "list[Snapshot]", depth: int, clock: Clock
    ) -> None:
        earlier, later = self._snapshot(before), self._snapshot(after)
        self.told["commits"] += 1
        count = self._count if depth == 0 else self._count // 4
        path = self._new()
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        for is_whole in cut.states(fd, count, later.newest.offset, self._chance):
            is_copy = self.told["states"] % self.copies == 0
            problem = self._problem(path, fd, is_whole, earlier, later, killed, is_copy=is_copy)
            self.told["states"] += 1
            if problem:
                how = f"{'killed' if killed else 'none killed'}, {said_of(is_copy=is_copy)}, depth {depth}"
                how += f", seed {self._seed}, state {self.told['states']}"
                self.failures[f"{problem} ({how})"] += 1
                break
            if depth < 3 and self._chance.random() < 0.02:
                self._go_on(path, depth, clock.copy(), self._chance.randrange(1 << 30))
        os.close(fd)
        os.unlink(path)

    def _problem(  # noqa: PLR0911  (a list of what may be wrong)
        self,
        path: str,
        fd: int,
        is_whole: bool,
        earlier: Snapshot,
        later: Snapshot,
        killed: "list[Snapshot]",
        *,
        is_copy: bool,
    ) -> str:
        try:
            recover(path, self._options, is_copy=is_copy)
        except QueueError as error:
            return f"it cannot be opened: {error}"
        newest, other = meta_page.read(path)
        if newest.body != other.body and self.expects_advance:
            return "the number was not advanced"
        is_kept = newest.body == later.newest.body
        self.told["kept" if is_kept else "undone"] += 1
        wanted = later if is_kept else earlier
        if is_whole and not is_kept:
            return "an acknowledged transaction was undone"
        if newest.body != wanted.newest.body:
            return "neither of the two counts"
        if wanted.is_in(fd):
            return ""
        if problems := structure.problems_of(path):
            return f"it is not sound: {problems[0]}"
        with open(path, "rb") as file:
            found = self._snapshot(file.read()).content
        is_same = found == wanted.content
        if is_same or any(found == each.content for each in killed):
            self.told["other bytes, same content" if is_same else "of a killed attempt"] += 1
            return ""
        differ = sorted(key for key in {*found, *wanted.content} if found.get(key) != wanted.content.get(key))
        return f"mixed: of {differ[:4]}"

    def _go_on(self, image: str, depth: int, clock: Clock, seed: int) -> None:
        """Use the queue after a recovery, first as ``seed`` tells, and cut the power again."""
        path = self._new()
        os.makedirs(os.path.join(path, "queue"))
        shutil.copy(image, os.path.join(path, "queue", "00000001.mdb"))
        shutil.copy(os.path.join(self._place, "queue.json"), os.path.join(path, "queue", "queue.json"))
        self._live(path, self._chance.choice((1, 2)), depth + 1, clock, seed)
        shutil.rmtree(path)
