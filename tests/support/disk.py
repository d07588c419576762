"""A disk as a power cut may leave it: what was synced, and any part of what was not.

Owns: which states of a directory are legal after a cut at some moment of a record (see ``strace_log``).

- A sync covers what was written before it *began*, and counts once it has ended.
- Of all else that was written, each unit of 512 bytes (or of 4,096; both are tried) is on disk or not,
  whatever became of its neighbours. A unit that was written several times has any of its versions.
- The size of a file is any of those that it had since its last sync; what is missing reads as zeros.
- Names change in order: of those changes in a directory that were not synced, some first ones are there.
- What processes store to the memory of ``session`` is like a write that nobody synced.
- LMDB's lock file means nothing to the first who opens it: it is missing, zeros, or as it was.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from strace_log import Event

META_BYTES = 2 * 4096  # the meta pages of an LMDB file


class Content(NamedTuple):
    """What is in a file: ``data``, and zeros up to ``size``. A queue's file ends with many."""

    data: bytes
    size: int


EMPTY = Content(b"", 0)
State = dict[str, Content | None]  # path: content; None: a directory
Choice = Callable[[int, int], int]  # of a unit of a file that has this many versions: which


@dataclass(slots=True)
class _Write:
    id: int
    at: int
    data: bytes
    is_done: bool = False


class File:
    """One file: what is durable, and what was done to it since."""

    def __init__(self, content: Content = EMPTY) -> None:
        self.durable = content
        self.writes: list[_Write] = []
        self.sizes: list[tuple[int, int, bool]] = []  # write or event, size, whether that has ended
        self.size = content.size
        self._units: dict[int, dict[int, list[tuple[int, bytes]]]] = {}

    def write(self, id_: int, at: int, data: bytes) -> None:
        self.writes.append(_Write(id_, at, data))
        if at + len(data) > self.size:
            self.resize(id_, at + len(data), is_done=False)
        self._units.clear()

    def resize(self, id_: int, size: int, *, is_done: bool = True) -> None:
        if size < self.size:
            self.writes.append(_Write(id_, size, bytes(self.size - size), is_done))
        self.size = size
        self.sizes.append((id_, size, is_done))
        self._units.clear()

    def done(self, id_: int) -> None:
        for write in self.writes:
            if write.id == id_:
                write.is_done = True
        self.sizes = [(each, size, is_done or each == id_) for each, size, is_done in self.sizes]

    def ended(self) -> set[int]:
        """Return the ids of what has ended and is not known to be durable."""
        return {write.id for write in self.writes if write.is_done} | {
            each for each, _, is_done in self.sizes if is_done
        }

    def settle(self, ids: set[int]) -> None:
        """Make these durable."""
        sizes = [size for id_, size, _ in self.sizes if id_ in ids]
        writes = [write for write in self.writes if write.id in ids]
        if sizes or writes:
            data = bytearray(self.durable.data)
            for write in writes:
                _patch(data, write.at, write.data)
            self.durable = _content(data, sizes[-1] if sizes else self.durable.size)
            self.writes = [write for write in self.writes if write.id not in ids]
            self.sizes = [entry for entry in self.sizes if entry[0] not in ids]
            self._units.clear()

    def latest(self) -> Content:
        return self.content(lambda _, versions: versions, 4096, self.size)

    def units(self, size: int) -> dict[int, list[tuple[int, bytes]]]:
        """Return the units that are not durable: for each what was written to it, in order."""
        if size not in self._units:
            found: dict[int, list[tuple[int, bytes]]] = {}
            for write in self.writes:
                at, end = write.at, write.at + len(write.data)
                while at < end:
                    stop = min(end, at // size * size + size)
                    piece = write.data[at - write.at : stop - write.at]
                    found.setdefault(at // size, []).append((at, piece))
                    at = stop
            self._units[size] = found
        return self._units[size]

    def content(self, choose: Choice, unit_size: int, size: int) -> Content:
        """Return the file with the versions of its units that ``choose`` takes (0: the durable one)."""
        units = self.units(unit_size)
        if not units and size == self.durable.size:
            return self.durable
        data = bytearray(self.durable.data)
        for unit, pieces in units.items():
            for at, piece in pieces[: choose(unit, len(pieces))]:
                _patch(data, at, piece)
        return _content(data, size)

    def possible_sizes(self) -> list[int]:
        return [self.durable.size, *(size for _, size, _ in self.sizes)]


def _content(data: bytearray, size: int) -> Content:
    return Content(bytes(data[:size].rstrip(b"\0")), size)


def _patch(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """The directory of a record, event by event."""

    def __init__(self, state: State | None = None, lock: bytes = b"", session: str = "q/session") -> None:
        self.files: dict[int, File] = {}
        self.names: dict[str, int | None] = {}  # as processes see them
        self.durable_names: dict[str, int | None] = {}
        self._changes: list[Event] = []  # of names, not durable
        self._captured: dict[int, dict[int, set[int]]] = {}  # sync: file: what it covers
        self._captured_names: dict[int, list[Event]] = {}
        self._lock = lock
        self._own_ids = 0
        self._session = session
        for number, (path, content) in enumerate((state or {}).items(), 1):
            self.durable_names[path] = None if content is None else -number
            if content is not None:
                self.files[-number] = File(content)
        self.names.update(self.durable_names)

    def apply(self, event: Event) -> bool:
        """Let an event happen; tell whether there may be new states after it."""
        handler = getattr(self, f"_{event.kind}")
        return bool(handler(event))

    def _issue(self, event: Event) -> bool:
        assert event.file is not None
        self.files[event.file].write(event.id, event.at, event.data)
        return True

    def _done(self, event: Event) -> bool:
        assert event.file is not None
        self.files[event.file].done(event.id)
        if event.data:
            self.files[event.file].settle({event.id})
        return bool(event.data)

    def _size(self, event: Event) -> bool:
        assert event.file is not None
        self.files[event.file].resize(self._own_id(), event.at)
        return True

    def _sync(self, event: Event) -> bool:
        files = self.files if event.file is None else {event.file: self.files[event.file]}
        self._captured[event.id] = {number: file.ended() for number, file in files.items()}
        return False

    def _synced(self, event: Event) -> bool:
        for number, ids in self._captured.pop(event.id).items():
            self.files[number].settle(ids)
        return True

    def _make(self, event: Event) -> bool:
        if event.file is not None:
            self.files[event.file] = File()
        _rename(self.names, event)
        self._changes.append(event)
        return True

    def _move(self, event: Event) -> bool:
        _rename(self.names, event)
        self._changes.append(event)
        return True

    _remove = _move

    def _dsync(self, event: Event) -> bool:
        self._captured_names[event.id] = [each for each in self._changes if os.path.dirname(each.path) == event.path]
        return False

    def _dsynced(self, event: Event) -> bool:
        for change in self._captured_names.pop(event.id):
            if any(change is each for each in self._changes):
                _rename(self.durable_names, change)
                self._changes = [each for each in self._changes if each is not change]
        return True

    def _note(self, event: Event) -> bool:
        """Take what was stored in memory for a write that nobody synced."""
        if event.note["note"] != "session" or self.names.get(self._session) is None:
            return event.note["note"] == "ack"
        number = self.names[self._session]
        assert number is not None
        file = self.files[number]
        words = bytes.fromhex(event.note["words"]).ljust(event.note["size"], b"\0")
        latest = file.latest().data.ljust(len(words), b"\0")
        for at in range(0, len(words), 512):
            if words[at : at + 512] != latest[at : at + 512]:
                id_ = self._own_id()
                file.write(id_, at, words[at : at + 512])
                file.done(id_)
        return True

    def _own_id(self) -> int:
        """Return an id for what has none in the record."""
        self._own_ids -= 1
        return self._own_ids

    # --- states

    def states(self, chance: random.Random, count: int) -> Iterator[State]:
        """Yield ``count`` states of this moment, half of them corners. Some come twice."""
        corners = self._corners()
        for number in range(count):
            if number < 2 or chance.random() < 0.5:
                yield corners[number if number < 2 else chance.randrange(len(corners))]()
            else:
                yield self._random_state(chance)

    def _state(self, names: dict[str, int | None], content: Callable[[int, File], Content]) -> State:
        state: State = {}
        for path in sorted(names):
            parent = os.path.dirname(path)
            if parent and parent not in state:
                continue
            number = names[path]
            if number is None:
                state[path] = None
            elif not path.endswith("-lock"):
                state[path] = content(number, self.files[number])
        return state

    def locks(self, state: State, chance: random.Random) -> State:
        """Return a state of LMDB's lock files that may go with ``state``."""
        found: State = {}
        for path, number in self.names.items():
            if path.endswith("-lock") and number is not None and os.path.dirname(path) in state and path[:-5] in state:
                size = self.files[number].size
                kind = chance.randrange(3)
                if kind == 1:
                    found[path] = Content(b"", size)
                elif kind == 2 and len(self._lock) == size:
                    found[path] = Content(self._lock, size)
        return found

    def _names_after(self, applied: Callable[[str, int], int]) -> dict[str, int | None]:
        """Return the names when of each directory's changes the first ``applied(directory, count)`` are there."""
        names = dict(self.durable_names)
        by_directory: dict[str, list[Event]] = {}
        for change in self._changes:
            by_directory.setdefault(os.path.dirname(change.path), []).append(change)
        for directory, changes in by_directory.items():
            for change in changes[: applied(directory, len(changes))]:
                _rename(names, change)
        return names

    def _corners(self) -> list[Callable[[], State]]:
        """Return functions that make the states at the edges: all is lost, all is there, all but one unit, ..."""
        names = self._names_after(lambda _, count: count)
        found: list[Callable[[], State]] = [
            lambda: self._state(self.durable_names, lambda _, file: file.durable),
            lambda: self._state(names, lambda _, file: file.latest()),
            self._kept(names, 4096, lambda _n, _u: True, lambda file: file.durable.size),
            self._kept(names, 4096, lambda _n, _u: False),
        ]
        for first in range(len(self._changes)):
            some = self._names_after(lambda _, _count, first=first: first)
            found.append(partial(self._state, some, lambda _, file: file.latest()))
            found.append(partial(self._state, some, lambda _, file: file.durable))
        for size in (4096, 512):
            last_meta = META_BYTES // size
            found.append(self._kept(names, size, lambda _, unit, last=last_meta: unit < last))
            found.append(self._kept(names, size, lambda _, unit, last=last_meta: unit >= last))
            for number, file in self.files.items():
                if number in names.values():
                    for unit in file.units(size):
                        this = (number, unit)
                        found.append(self._kept(names, size, lambda n, u, this=this: (n, u) == this))
                        found.append(self._kept(names, size, lambda n, u, this=this: (n, u) != this))
        return found

    def _kept(
        self,
        names: dict[str, int | None],
        unit_size: int,
        keep: Callable[[int, int], bool],
        size_of: Callable[[File], int] = lambda file: max(file.possible_sizes()),
    ) -> Callable[[], State]:
        """Return a function that makes the state in which just these units of files are on disk."""

        def content(number: int, file: File) -> Content:
            return file.content(lambda unit, versions: versions * keep(number, unit), unit_size, size_of(file))

        return partial(self._state, names, content)

    def _random_state(self, chance: random.Random) -> State:
        names = self._names_after(lambda _, count: count if chance.random() < 0.6 else chance.randrange(count + 1))
        unit_size = chance.choice((512, 4096))

        def content(_: int, file: File) -> Content:
            sizes = file.possible_sizes()
            size = max(sizes) if chance.random() < 0.7 else chance.choice(sizes)
            keep = chance.choice((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))
            keep_meta = chance.choice((0.0, 0.5, 1.0, 1.0, 1.0, keep))  # a torn transaction is one whose meta page came

            def choose(unit: int, versions: int) -> int:
                if chance.random() < (keep_meta if unit * unit_size < META_BYTES else keep):
                    return versions if versions == 1 or chance.random() < 0.5 else chance.randrange(versions + 1)
                return 0 if versions == 1 or chance.random() < 0.5 else chance.randrange(versions)

            return file.content(choose, unit_size, size)

        return self._state(names, content)


def _rename(names: dict[str, int | None], change: Event) -> None:
    if change.kind == "make":
        names[change.path] = change.file
    elif change.kind == "move":
        names[change.target] = names.pop(change.path)
    else:
        names.pop(change.path, None)
