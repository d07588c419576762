"""``PersistentQueue``: the verbs on an LMDB environment.

Owns: the object that users open and pass around; verbs that concern a directory as a whole. Law: the meaning of a verb
is in ``_verbs.queue``, its steps are in ``_local.engine``. Must not know: LMDB.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from operator import index
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, get_args

from lmdbqueue._base import format as _format
from lmdbqueue._base.errors import TransactionError
from lmdbqueue._base.values import Expired
from lmdbqueue._host.directory import absolute
from lmdbqueue._host.disk import translated
from lmdbqueue._host.threads import holding
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue._local.sharing import open_environment
from lmdbqueue._verbs.options import FLAG, HOOK, OPENING, PATH, VERBS, Rule, check, one_of, seconds, whole
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import head_of
from lmdbqueue._verbs.serializers import CUSTOM, Serializer, chosen

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    from lmdbqueue._local.state import State

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")

_OPENING: Final = {
    **OPENING,
    "filename": PATH,
    "path": PATH,
    "flush_limit": whole("a number of bytes", 0),
    "max_bytes": whole("a number of bytes", 1, or_none=True),
    "durability": one_of(*get_args(_format.Durability)),
    "interval": seconds(more_than_0=True, most=3600.0)._replace(or_none=True),
    "checksum": FLAG,
    "progress": HOOK,
}


class PersistentQueue(Queue[T]):
    """A persistent FIFO queue in a directory, for any number of threads and processes on one machine.

    Threads can share an object, and a forked child can continue to use it. Pickling it, as for a spawned process, opens
    the same queue there. With ``durability="full"`` the effect of a call is on disk when the call returns.

    The first process to open a queue after a power cut verifies the last transaction and undoes it if it is torn; it
    was never acknowledged. The logger ``lmdbqueue`` reports that.

    Example:
        >>> queue = PersistentQueue("jobs")
        >>> queue.push({"id": 7})
        0

    Args:
        filename: The directory, under ``path``; created if it is missing. Its parent must exist.
        path: The directory that contains it.
        dumps: Converts an item to bytes. With pickle, the default, you trust everyone who can write to the queue.
        loads: Converts the bytes back to the item.
        flush_limit: Bytes of empty space below which ``flush`` does nothing.
        name: One of several queues in the directory.
        serializer: A pair of ``dumps`` and ``loads`` by name: ``"pickle"``, ``"json"``, ``"msgpack"``, ``"msgspec"`` or
            ``"bytes"``. The name is stored with the queue, and another name raises ``OptionError``.
        maxsize: Items (waiting, leased or delayed) above which pushes of this object raise ``Full``; 0: no limit.
            With ``retain``, a push drops older items before this is checked.
        max_bytes: Bytes of pages in use in the directory above which pushes raise ``Full``; None: no limit.
        max_attempts: Leases of an item after which this object makes it a dead letter instead of returning it to the
            queue; None: no limit.
        expired: What this object does with items that it finds past their ``expires``: ``"drop"``, or ``"dead"``, which
            makes them dead letters.
        durability: ``"full"``: survives killed processes and power cuts. ``"interval"``: much faster, survives killed
            processes; a power cut undoes only the calls of about the last ``interval`` seconds, the latest first, never
            part of a call (see ``sync``). ``"off"``: survives killed processes, promises nothing after a power cut.
            Fixed when the directory is created.
        interval: Seconds between two checkpoints, with ``durability="interval"``. If objects of a process differ, the
            shortest applies. None: that of the other objects, or 0.1 if there are none.
        checksum: Whether each item has a checksum. Fixed when the directory is created.
        progress: Called with bytes done and bytes in total while a whole file is verified: by another thread, every
            tenth of a second, and once more at the end.

    Raises:
        FormatError: There is something else at the path; nothing was changed, as with all errors here.
        VersionError: A newer version of the library wrote the queue.
        OptionError: A fixed option has another value.
        AccessError: This process lacks permissions.
        PidError: A process of another pid namespace has the queue open.
        CorruptQueueError: The files are damaged.
    """

    _engine: LocalEngine

    def __init__(
        self,
        filename: str | os.PathLike[str],
        path: str | os.PathLike[str] = ".",
        dumps: Callable[[T], bytes] = pickle.dumps,
        loads: Callable[[bytes], T] = pickle.loads,
        flush_limit: int = 1048576,
        *,
        name: str = "queue",
        serializer: Serializer | None = None,
        maxsize: int = 0,
        max_bytes: int | None = None,
        max_attempts: int | None = None,
        expired: Expired = "drop",
        durability: _format.Durability = "full",
        interval: float | None = 0.1,
        checksum: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        limits = {"flush_limit": flush_limit, "maxsize": maxsize, "max_bytes": max_bytes, "max_attempts": max_attempts}
        check(_OPENING, filename=filename, path=path, dumps=dumps, loads=loads, name=name, expired=expired, **limits)
        check(_OPENING, durability=durability, interval=interval, checksum=checksum, progress=progress)
        if durability == "interval" and not checksum:
            message = "durability='interval' needs checksum=True: recovery verifies the file by its checksums"
            raise ValueError(message)
        self.serializer, dumps, loads = chosen(serializer, dumps, loads)
        directory = absolute(os.path.join(path, filename))
        options = _format.Options(checksum=checksum, durability=durability)
        environment = open_environment(directory, options, progress, interval=interval)
        super().__init__(
            LocalEngine(
                environment,
                directory,
                name,
                self.serializer,
                maxsize=maxsize,
                max_bytes=max_bytes,
                max_attempts=max_attempts,
                buries_expired=expired == "dead",
            ),
            dumps,
            loads,
        )
        self.filename = filename
        self.path = path
        self.flush_limit = flush_limit
        self.durability = durability
        self.interval = interval
        self.checksum = checksum

    @property
    def max_bytes(self) -> int | None:
        """Bytes of pages in use above which pushes of this object raise ``Full``; None: no limit."""
        return self._engine.max_bytes

    @max_bytes.setter
    def max_bytes(self, size: int | None) -> None:
        check(_OPENING, max_bytes=size)
        self._engine.max_bytes = size

    def __repr__(self) -> str:
        state = ", closed" if self._engine.is_closed else ""
        return f"<{type(self).__name__} {self.name!r} in {self._engine.path!r}{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self._engine.path, self._options())

    def flush(self, force: bool = False) -> int:
        """Return empty space to the file system, for all queues of the directory.

        New items reuse empty space anyway, so a queue needs this only if it is unlikely to become as long again. Other
        processes continue meanwhile; writers wait briefly at the end. If it fails, or its process dies, nothing has
        changed.

        Args:
            force: Shrink the file even if less than ``flush_limit`` bytes are empty.

        Returns:
            The number of bytes by which the file shrank.

        Raises:
            DiskFullError: There is no room for a copy of the data in use.
            TransactionError: It was called in a ``transaction()``.
        """
        check(VERBS, force=force)
        with translated(self._engine.path, "opening"):
            from lmdbqueue._local import compaction  # noqa: PLC0415  (few ever need it)

        return compaction.flush(self._engine.environment, self._engine.ref, -1 if force else self.flush_limit)

    def copy(self, new_filename: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Make a compacted copy of the whole directory: an independent queue, durable when this returns.

        The copy is a snapshot of one moment; others continue meanwhile.

        Args:
            new_filename: The directory of the copy.
            path: The directory that contains it; None: beside this queue.

        Returns:
            The copy, opened with the options of this object.

        Raises:
            ExistsError: There is a queue already; copies never overwrite.
            FormatError: There is something other than a queue.
            DiskFullError: There is no room for the copy.
        """
        check(_COPY, new_filename=new_filename, path=path)
        target = os.path.dirname(self._engine.path) if path is None else path
        with translated(self._engine.path, "opening"):
            from lmdbqueue._local import compaction  # noqa: PLC0415

        compaction.copy(self._engine.environment, self._engine.ref, absolute(os.path.join(target, new_filename)))
        return type(self)(new_filename, target, **self._options())

    @holding
    def transaction(self) -> Iterator[None]:
        """Make all calls of this thread in the block one atomic step, across all queues of the directory.

        The step is durable when the block ends. An exception that leaves the block undoes all of it, and so does a kill
        or a power cut before the end. Calls in the block see the effects of earlier ones; nobody else does until the
        end. An inner block is a part of the outer one.

        The block holds the only write lock of the directory, so keep it short: it is no place for waiting (use a
        lease), least of all for ``await``. A call that only reads waits for it only if it finds items due or expired.

        Example:
            >>> with inbox.transaction():
            ...     outbox.push(inbox.pop())
            ...     inbox.state["handled"] = 1

        Raises:
            TransactionError: A call cannot be part of a transaction: on a queue of another directory or one that does
                not exist yet, a call that waits, ``sync``, ``flush``, ``copy``, ``check``, ``drop_queue``. At the end
                of the block: a call in it failed halfway, even if its error was caught. (``Full`` can be caught.)
            StorageError: At the end: nothing was stored.
            CommitUnknownError: At the end: check whether the block took effect.
        """
        with self._engine.environment.transaction():
            yield

    @property
    def state(self) -> State:
        """A persistent mapping of this queue, for totals and offsets; it takes part in transactions."""
        self._engine.refuse_if_closed()
        with translated(self._engine.path, "opening"):
            from lmdbqueue._local.state import State  # noqa: PLC0415  (most queues have no state)

        return State(self._engine, self.dumps, self.loads)

    def move(self, items: int = 1, *, to: PersistentQueue[Any]) -> int:
        """Move the first items to the tail of another queue of this directory, as one atomic step.

        Durable when this returns. The items are not decoded: ``to`` should have the same ``dumps`` and ``loads``.

        Args:
            items: The number of items, at most.
            to: The other queue.

        Returns:
            The number of items moved.

        Raises:
            Full: A limit of ``to`` would be exceeded; nothing was moved.
            CorruptItemError: An item is damaged; nothing was moved.
            TransactionError: ``to`` is in another directory.
            ValueError: ``to`` is this queue.
        """
        check(_MOVE, items=items, to=to)
        n, target = index(items), local_engine_of(to)
        self._engine.refuse_if_closed()
        head_of(to).refuse_push()
        if target.environment is not self._engine.environment:
            raise TransactionError(
                self._engine.path,
                f"{to!r} is in another directory",
                "open both queues in one directory, under two names",
            )
        if to.name == self.name:
            message = f"{to!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self._engine.move(n, target)

    def queues(self) -> list[str]:
        """Return the names of all queues of this directory."""
        return self._engine.environment.view(self._engine.ref, _names)

    def drop_queue(self, name: str) -> None:
        """Remove a queue of this directory with its items and its state; durable when this returns.

        It costs one commit. ``flush`` returns the space to the file system. Open objects of that queue, in any process,
        raise ``GoneError`` from then on, even if a queue of that name is created again.

        Args:
            name: The name of the queue.

        Raises:
            KeyError: There is no such queue.
        """
        check(OPENING, name=name)
        if not self._engine.environment.drop_queue(name):
            raise KeyError(name)

    def check(self, repair: bool = False) -> list[str]:
        """Verify the files of the directory, and repair them on request.

        It verifies the structure of the file, every checksum, and the records of each queue against its items, and
        reports files that do not belong there. Writers wait meanwhile. For a queue that cannot be opened use
        ``lmdbqueue.check``.

        Args:
            repair: If there are faults, write all readable items to a new file that replaces the damaged one, durably,
                while others continue. Damaged items go, as found, to ``<queue>.quarantine`` beside the directory (JSON
                lines with queue, seq, and value in base64).

        Returns:
            A sentence for each fault, and for what a repair lost; an empty list if there is none.
        """
        check(VERBS, repair=repair)
        with translated(self._engine.path, "opening"):
            from lmdbqueue._local.check import check_open  # noqa: PLC0415  (only for checks)

        return check_open(self._engine.environment, repair=repair)

    def _options(self) -> dict[str, Any]:
        codec = ("dumps", "loads") if self.serializer in ("pickle", CUSTOM) else ("serializer",)
        limits = ("maxsize", "max_bytes", "max_attempts", "expired", "flush_limit")
        return {name: getattr(self, name) for name in ("name", *codec, *limits, "durability", "interval", "checksum")}


_COPY: Final = {"new_filename": PATH, "path": PATH._replace(or_none=True)}
_MOVE: Final = {**VERBS, "to": Rule("an open PersistentQueue", (PersistentQueue,), fits=lambda _: True)}


def _names(txn: Txn, queue: Tables) -> list[str]:
    return sorted(queue.generation.names(txn))


def local_engine_of(queue: PersistentQueue[Any]) -> LocalEngine:
    """Return the engine of a queue on LMDB, for work on its items for which there is no verb."""
    return queue._engine  # noqa: SLF001  (the one way in)


def _reopen(cls: type[PersistentQueue[Any]], directory: str, options: dict[str, Any]) -> PersistentQueue[Any]:
    path, filename = os.path.split(directory)
    return cls(filename, path, **options)
