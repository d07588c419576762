"""``PersistentQueue``: the verbs on an LMDB environment.

Owns: what a user opens, passes around and closes. Law: each step is one call of the environment; what
it means stands in ``_fifo``, what a verb makes of it in ``_verbs``. Must not know: LMDB, generations.
"""

import os
import pickle
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lmdbqueue import _away, _check, _compact, _fifo, _format, _notes
from lmdbqueue._away import Overdue, Return
from lmdbqueue._consumer import ConsumerQueue
from lmdbqueue._env import Environment, open_environment
from lmdbqueue._errors import ClosedError, CorruptItemError, DiskFullError, Full, QueueError, TransactionError
from lmdbqueue._generation import Tables, Txn
from lmdbqueue._lease import DeadLetter, Leased
from lmdbqueue._owner import Owners
from lmdbqueue._state import State
from lmdbqueue._verbs import Entry, checked_count

if TYPE_CHECKING:
    from lmdbqueue._stats import Stats

T = TypeVar("T")

_BROWSE_BYTES = 1 << 18  # of items that iteration reads at a time
_SECOND = 10**9  # ns
_DEATH_LOOK = 0.25  # seconds between two looks of a sleeper whether others who hold leases have died
_SMALL = 1 << 14  # bytes of an item that is leased on a full disk
_FEW = 64  # items that may be leased on a full disk, so that they cannot use its reserve up
_FAILED_LOOK = 0.05  # seconds until a sleeper tries again what could not come back

# a record of AWAY: its key, its note
_AWAY_OVERHEAD = 100  # bytes


class PersistentQueue(ConsumerQueue[T]):
    """A persistent FIFO queue in a directory, for any number of threads and processes of one machine.

    ``filename`` under ``path`` is the directory; it is created if it is not there, its parent must
    be. ``name`` picks one of several queues in it. ``dumps`` turns an item into bytes and ``loads``
    back; with pickle, the default, opening a queue means trusting whoever can write to it.
    ``maxsize`` (items in this queue) and ``max_bytes`` (pages in use in the directory's environment)
    limit what this object pushes; 0 and None: no limit. ``flush_limit``: bytes of empty space below
    which ``flush`` does nothing. ``max_attempts``: how often an item is leased before it goes to ``dead``
    instead of coming back, when this object gives it back; None: for ever.

    ``durability`` and ``checksum`` are fixed when the directory is created. With ``"full"`` a call
    that returned is on disk: neither a killed process nor a power cut takes it back. With ``"off"``
    it survives a killed process, and after a power cut nothing is promised.

    The first to open a queue after a power cut proves the file before it is used, and takes back a
    torn transaction, which was never acknowledged; the logger ``lmdbqueue`` tells of it. A large file
    takes its time (137 MiB/s were seen): ``progress(done, total)`` is called with bytes meanwhile.

    One object may be used by many threads. A forked child may go on using it; sent to a spawned
    process, by pickling, it opens the same queue there.

    Raises, on opening: ``FormatError``, ``VersionError``, ``OptionError``, ``AccessError``,
    ``CorruptQueueError``; nothing at the path is touched then.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        path: str | os.PathLike[str] = ".",
        dumps: Callable[[T], bytes] = pickle.dumps,
        loads: Callable[[bytes], T] = pickle.loads,
        flush_limit: int = 1048576,
        *,
        name: str = "queue",
        maxsize: int = 0,
        max_bytes: int | None = None,
        max_attempts: int | None = None,
        durability: _format.Durability = "full",
        checksum: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if durability not in ("full", "off"):
            message = f"durability is 'full' or 'off', not {durability!r}"
            raise ValueError(message)
        super().__init__()
        self.filename = filename
        self.path = path
        self.dumps = dumps
        self.loads = loads
        self.flush_limit = flush_limit
        self.name = _format.check_name(name)
        self.maxsize = maxsize
        self.max_bytes = max_bytes
        self.max_attempts = max_attempts
        self.durability = durability
        self.checksum = checksum
        self._directory = os.path.abspath(os.path.join(path, filename))
        environment = open_environment(
            self._directory, _format.Options(checksum=checksum, durability=durability), name, progress
        )
        self._environment: Environment | None = environment
        self._owners = Owners(environment.directory.path)
        self._release = weakref.finalize(self, _let_go, environment, self._owners)

    def __repr__(self) -> str:
        state = "" if self._environment is not None else ", closed"
        return f"<{type(self).__name__} {self.name!r} in {self._directory!r}{state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self._directory, self._options())

    def count(self) -> int:
        """Return how many items wait in the queue, at a cost that does not depend on it."""
        found: int = self._read(self._open.view, _fifo.count)
        return found

    def stats(self) -> "Stats":
        """Return how much of everything there is in the queue, at a cost that does not depend on it."""
        from dataclasses import replace  # noqa: PLC0415  (they take long to import)

        from lmdbqueue._stats import of_queue  # noqa: PLC0415

        environment = self._open
        found: Stats = self._read(environment.view, of_queue)
        return replace(found, processes=environment.processes())

    def flush(self, force: bool = False) -> int:
        """Give empty space back to the file system; return by how many bytes the file shrank.

        Does nothing if less than ``flush_limit`` bytes are empty, unless ``force``. Without it the
        space is used again for new items, so a queue needs it only after it was much longer than it
        will be. Other processes go on meanwhile: readers at once, writers when the copy is done. It
        covers all queues of the directory, needs room on disk for a copy of what is in use, and
        changes nothing if it fails (``DiskFullError``) or its process dies.
        """
        return _compact.flush(self._open, self.name, -1 if force else max(0, self.flush_limit))

    def copy(self, new_filename: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Make a compacted copy of the whole directory, a queue of its own, and return it opened.

        It is a snapshot of one moment, durable when this returns. ``path=None``: beside this one.
        Raises ``ExistsError`` if a queue is there, ``FormatError`` if something else is.
        """
        target = os.path.dirname(self._directory) if path is None else path
        _compact.copy(self._open, self.name, os.path.abspath(os.path.join(target, new_filename)))
        return type(self)(new_filename, target, **self._options())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what this thread does in the block, with all queues of this directory, one atomic step.

        It is durable when the block is left; an exception that leaves it undoes all, and so does a
        kill or a power cut before. Every verb in it sees what those before it did, and nobody else
        sees any of it before the end. Blocks may be nested: the inner one is a part of the outer.

        It holds the one right to write to the directory, of all processes, so keep it short: nothing
        that waits belongs here (leases are for that), least of all ``await``. Readers go on meanwhile.

        Raises ``TransactionError`` for what cannot be a part of it: a queue of another directory, a queue
        that is not there yet, waiting, ``flush``, ``copy``, ``check``, ``drop_queue``; and at the end if a
        call in it failed halfway, even if that error was caught. ``Full`` can be caught. ``StorageError``
        at the end: nothing was stored; ``CommitUnknownError``: look.
        """
        with self._open.transaction():
            yield

    @property
    def state(self) -> State:
        """A persistent mapping of this queue, for totals and offsets; it takes part in transactions."""
        return State(self._open, self.name, self.dumps, self.loads)

    def move(self, items: int = 1, *, to: "PersistentQueue[Any]") -> int:
        """Move the first items to the tail of another queue of this directory, as one atomic step.

        They are not decoded; ``to`` should have the same ``dumps`` and ``loads``. Returns how many there
        were, at most ``items``. Raises ``Full`` by the limits of ``to`` (nothing is moved then),
        ``CorruptItemError``, ``TransactionError`` if ``to`` is in another directory, ``ValueError`` if
        it is this queue.
        """
        n = checked_count(items)
        target = to._as_target(self._open, self.name)  # noqa: SLF001  (of its own class)
        while entries := self._first(n):
            payloads = self._payloads(entries)
            keys = [key for key, _ in entries]
            moved: int = self._open.update(self.name, _fifo.move, keys, payloads, target, room=_fifo.room_for(payloads))
            if moved:
                return moved
        return 0

    def _as_target(self, environment: Environment, name: str) -> tuple[str, int, int | None]:
        """Return the name and the limits of this queue, as one that the queue ``name`` may move items to."""
        self._refuse_after_shutdown()
        if self._open is not environment:
            raise TransactionError(
                environment.directory.path, f"{self!r} is in another directory", "open both in one, with two names"
            )
        if self.name == name:
            message = f"{self!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self.name, self.maxsize, self.max_bytes

    def queues(self) -> list[str]:
        """Return the names of all queues of this directory."""
        names: list[str] = self._open.view(self.name, _names)
        return names

    def drop_queue(self, name: str) -> None:
        """Remove the queue ``name`` of this directory, with its items and state, and give its space back.

        Durable when this returns. Writers wait while the directory is copied twice, so it is not for
        every day. Objects that are open on that queue, of any process, raise ``GoneError`` from then on.
        Raises ``KeyError`` if there is no such queue.
        """
        if name not in self.queues():
            raise KeyError(name)
        _compact.drop(self._open, name)

    def check(self, repair: bool = False) -> list[str]:
        """Return what is wrong with the files: an empty list, or a sentence for each problem.

        Looks at all queues of the directory: the structure of the file, each checksum, head and tail
        against the items, files that should not be there. Writers wait meanwhile. With ``repair`` every
        item that is whole is written to a new file, which takes the place of the damaged one, durably,
        while others go on; a damaged item is kept as it was found in the file ``<queue>.quarantine``
        beside the directory (JSON lines: queue, seq, value in base64), and the answer tells what was lost.
        For a queue that cannot be opened: ``lmdbqueue.check``.
        """
        return _check.check_open(self._open, repair=repair)

    def close(self) -> None:
        """Close this object; waiting verbs of it raise ``ClosedError``, and so does every later call.

        What it holds in leases is given back at once. Closing is not needed for durability: there is nothing in
        memory. Doing it twice is harmless.
        """
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.bell.ring()
            super().close()
            if self._owners.mine:
                with suppress(QueueError):  # else who looks next finds a dead owner
                    how = Return(time.time_ns(), "its queue was closed", max_attempts=self.max_attempts)
                    environment.update(self.name, _away.give_up, self._owners.mine, how)
            self._release()

    # --- the engine

    @property
    def _open(self) -> Environment:
        environment = self._environment
        if environment is None:
            raise ClosedError(self._directory)
        return environment

    def _options(self) -> dict[str, Any]:
        names = (
            *("dumps", "loads", "flush_limit", "name", "maxsize", "max_bytes", "max_attempts"),
            *("durability", "checksum"),
        )
        return {name: getattr(self, name) for name in names}

    def _append(self, payloads: Sequence[bytes]) -> range:
        given: range = self._open.update(
            self.name, _fifo.push, payloads, self.maxsize, self.max_bytes, room=_fifo.room_for(payloads)
        )
        return given

    def _append_apart(self, payloads: Sequence[bytes], delay: float, keys: list[bytes]) -> list[int]:
        due = time.time_ns() + int(delay * _SECOND) if delay else 0
        apart = _away.Apart(due, keys, self.maxsize, self.max_bytes)
        numbers: list[int] = self._open.update(self.name, _away.push, payloads, apart, room=_room_away(payloads))
        return numbers

    def _first(self, n: int) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.view, _fifo.first, n)
        return entries

    def _candidates(self, n: int) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.glance, _fifo.first, n)
        return entries

    def _since(self, place: bytes) -> list[Entry]:
        entries: list[Entry] = self._read(self._open.view, _fifo.since, place, _BROWSE_BYTES)
        return entries

    def _read(self, read: Callable[..., Any], fn: Callable[..., Any], *args: Any) -> Any:
        """Return ``fn(txn, tables, *args)`` by ``read``, once everything that has to come back has."""
        while True:
            times = time.monotonic_ns(), time.time_ns()
            found = read(self.name, _away.look, self._owners.is_dead, times, fn, *args)
            if not isinstance(found, Overdue):
                return found
            if not self._restore(found.owners, times):
                return read(self.name, fn, *args)

    def _restore(self, owners: Sequence[int], times: tuple[int, int]) -> int:
        """Let come back what these owners, who are dead, hold, and what is due; return how much, 0 if it cannot."""
        try:
            changed: int = self._open.update(self.name, _away.restore, owners, times, self.max_attempts)
        except Full:  # of the disk: when consumers have made room it comes back
            return 0
        self._owners.bury(owners)
        return changed

    # --- leases

    def _lease(self, entries: list[Entry], unreadable: dict[bytes, str], ttl: float | None) -> Leased | None:
        deadline = _deadline(ttl)
        terms = _away.Terms(self._owners.join(), deadline, time.time_ns(), unreadable)
        update = partial(self._open.update, self.name, _away.lease, entries, terms)
        leased: tuple[int, list[int], list[int]] | None
        try:
            leased = update(room=_room_away([value for _, value in entries]))
        except DiskFullError:
            counts: _format.Counts = self._open.glance(self.name, _notes.counts)
            if len(entries) > 1 or len(entries[0][1]) > _SMALL or counts.leased > _FEW:
                raise
            leased = update()  # from the reserve, as removals are
        self._refuse_if_closed()  # by another thread meanwhile: then the owner is dead
        if leased is None:
            return None
        token, seqs, attempts = leased
        return Leased(token, seqs, attempts, None if ttl is None else deadline / _SECOND)

    def _ack(self, token: int, seqs: Collection[int] | None) -> list[int] | None:
        settled: list[int] | None = self._open.update(self.name, _away.ack, token, seqs)
        return settled

    def _nack(
        self, token: int, seqs: Collection[int] | None, delay: float, reason: str, max_attempts: int | None
    ) -> list[int] | None:
        now = time.time_ns()
        due = now + int(delay * _SECOND) if delay else 0
        how = Return(now, reason, due, self.max_attempts if max_attempts is None else max_attempts)
        settled: list[int] | None = self._open.update(self.name, _away.nack, token, seqs, how)
        return settled

    def _extend(self, token: int, ttl: float | None) -> tuple[float | None] | None:
        deadline = _deadline(ttl)
        if not self._open.update(self.name, _away.extend, token, deadline):
            return None
        return (None if ttl is None else deadline / _SECOND,)

    def _count_dead(self) -> int:
        counts: _format.Counts = self._read(self._open.view, _notes.counts)
        return counts.dead

    def _dead_since(self, seq: int) -> list[DeadLetter[Any]]:
        records: list[_away.Record] = self._read(self._open.view, _away.dead, seq, _BROWSE_BYTES)
        return [self._letter(record) for record in records]

    def _letter(self, record: _away.Record) -> DeadLetter[T]:
        entry = _format.pack(record.seq), record.value
        return DeadLetter(*self._open_payload(entry), record.note, partial(_only, self._decode, entry))

    def _requeue(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.update(self.name, _away.requeue, seqs)
        return count

    def _delete_dead(self, seqs: Collection[int] | None) -> int:
        count: int = self._open.update(self.name, _away.bury_for_good, seqs)
        return count

    def _begin_with_empty_hands(self) -> None:
        super()._begin_with_empty_hands()
        if hasattr(self, "_owners"):  # not so in the constructor of the base class
            self._owners.begin_anew()

    # --- removing

    def _remove(self, keys: list[bytes]) -> int:
        removed: int = self._open.update(self.name, _fifo.remove, keys)
        return removed

    def _put_back(self, entries: list[Entry]) -> None:
        room = _fifo.room_for([value for _, value in entries])
        self._open.update(self.name, _fifo.put_back, entries, room=room)

    def _delete(self, n: int) -> int:
        removed: int = self._open.update(self.name, _fifo.delete, n)
        return removed

    def _clear(self, *, all: bool) -> int:  # noqa: A002
        removed: int = self._open.update(self.name, _away.clear if all else _fifo.clear)
        return removed

    def _payloads(self, entries: list[Entry]) -> list[bytes]:
        if not self.checksum:
            return [value for _, value in entries]
        for key, value in entries:
            if not _format.is_intact(key[-8:], value):
                raise CorruptItemError(_format.number(key), value[: -_format.SEAL_SIZE])
        return [value[: -_format.SEAL_SIZE] for _, value in entries]

    def _open_payload(self, entry: Entry) -> tuple[int, bytes]:
        key, value = entry
        return _format.number(key), value[: -_format.SEAL_SIZE] if self.checksum else value

    def _refuse_if_closed(self) -> None:
        if self._environment is None:
            raise ClosedError(self._directory)

    def _listen(self) -> int:
        environment = self._open
        environment.refuse_inside("a call would wait", "nobody else can change anything meanwhile: use timeout=0")
        return environment.bell.listen()

    def _sleep(self, ticket: int, timeout: float) -> None:
        environment = self._open
        expiry, due, owners = environment.glance(self.name, _away.next_time)
        if expiry != _away.NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (expiry - time.monotonic_ns()) / _SECOND))
        if due != _away.NEVER:
            timeout = min(timeout, max(_FAILED_LOOK, (due - time.time_ns()) / _SECOND))
        if any(owner != self._owners.mine for owner in owners):
            timeout = min(timeout, _DEATH_LOOK)
        environment.bell.wait(ticket, timeout)

    def _wake(self) -> None:
        self._open.bell.ring()


def _names(txn: Txn, queue: Tables) -> list[str]:
    return sorted(queue.generation.names(txn))


def _let_go(environment: Environment, owners: Owners) -> None:
    try:
        owners.leave()
    finally:
        environment.release()


def _deadline(ttl: float | None) -> int:
    return _away.NEVER if ttl is None else time.monotonic_ns() + int(ttl * _SECOND)


def _room_away(payloads: Sequence[bytes]) -> int:
    return _fifo.room_for(payloads) + 3 * _AWAY_OVERHEAD * len(payloads)


def _only(decode: Callable[[list[Entry]], list[T]], entry: Entry) -> T:
    return decode([entry])[0]


def _reopen(cls: type[PersistentQueue[Any]], directory: str, options: dict[str, Any]) -> PersistentQueue[Any]:
    path, filename = os.path.split(directory)
    return cls(filename, path, **options)
