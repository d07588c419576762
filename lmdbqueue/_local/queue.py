"""``PersistentQueue``: the verbs on an LMDB environment.

Owns: what a user opens and passes around; what concerns a directory as a whole. Law: what a verb means stands in
``_verbs.queue``, what its steps are in ``_local.engine``. Must not know: LMDB.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lmdbqueue import _format
from lmdbqueue._errors import TransactionError
from lmdbqueue._lmdb.snapshot import Tables, Txn
from lmdbqueue._local import compaction
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue._local.environment import open_environment
from lmdbqueue._local.state import State
from lmdbqueue._verbs.queue import Queue
from lmdbqueue._verbs.reading import checked_count, head_of
from lmdbqueue._verbs.serializers import CUSTOM, Serializer, chosen

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    T = DefaultTypeVar("T", default=Any)  # which typing has from Python 3.13 on
else:
    T = TypeVar("T")


class PersistentQueue(Queue[T]):
    """A persistent FIFO queue in a directory, for any number of threads and processes of one machine.

    ``filename`` under ``path`` is the directory; it is created if it is not there, its parent must
    be. ``name`` picks one of several queues in it. ``dumps`` turns an item into bytes and ``loads``
    back; with pickle, the default, opening a queue means trusting whoever can write to it. ``serializer`` names a
    pair instead: ``"pickle"``, ``"json"``, ``"msgpack"``, ``"msgspec"``, ``"bytes"``. The name is kept with the queue,
    and opening it by another name raises ``OptionError``; a pair of one's own is never refused.
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
        durability: _format.Durability = "full",
        checksum: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if durability not in ("full", "off"):
            message = f"durability is 'full' or 'off', not {durability!r}"
            raise ValueError(message)
        _format.check_name(name)
        self.serializer, dumps, loads = chosen(serializer, dumps, loads)
        directory = os.path.abspath(os.path.join(path, filename))
        options = _format.Options(checksum=checksum, durability=durability)
        environment = open_environment(directory, options, progress)
        super().__init__(
            LocalEngine(
                environment,
                directory,
                name,
                self.serializer,
                maxsize=maxsize,
                max_bytes=max_bytes,
                max_attempts=max_attempts,
            ),
            dumps,
            loads,
        )
        self.filename = filename
        self.path = path
        self.flush_limit = flush_limit
        self.durability = durability
        self.checksum = checksum

    @property
    def max_bytes(self) -> int | None:
        """How many bytes of pages may be in use for a push of this object to be taken; None: no limit."""
        return self._engine.max_bytes

    @max_bytes.setter
    def max_bytes(self, size: int | None) -> None:
        self._engine.max_bytes = size

    def __repr__(self) -> str:
        state = ", closed" if self._engine.is_closed else ""
        return f"<{type(self).__name__} {self.name!r} in {self._engine.path!r}{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same queue in the process that unpickles it."""
        return _reopen, (type(self), self._engine.path, self._options())

    def flush(self, force: bool = False) -> int:
        """Give empty space back to the file system; return by how many bytes the file shrank.

        Does nothing if less than ``flush_limit`` bytes are empty, unless ``force``. Without it the
        space is used again for new items, so a queue needs it only after it was much longer than it
        will be. Other processes go on meanwhile: readers at once, writers when the copy is done. It
        covers all queues of the directory, needs room on disk for a copy of what is in use, and
        changes nothing if it fails (``DiskFullError``) or its process dies.
        """
        return compaction.flush(self._engine.environment, self._engine.ref, -1 if force else max(0, self.flush_limit))

    def copy(self, new_filename: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Make a compacted copy of the whole directory, a queue of its own, and return it opened.

        It is a snapshot of one moment, durable when this returns. ``path=None``: beside this one.
        Raises ``ExistsError`` if a queue is there, ``FormatError`` if something else is.
        """
        target = os.path.dirname(self._engine.path) if path is None else path
        compaction.copy(self._engine.environment, self._engine.ref, os.path.abspath(os.path.join(target, new_filename)))
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
        with self._engine.environment.transaction():
            yield

    @property
    def state(self) -> State:
        """A persistent mapping of this queue, for totals and offsets; it takes part in transactions."""
        self._engine.refuse_if_closed()
        return State(self._engine.environment, self._engine.ref, self.dumps, self.loads)

    def move(self, items: int = 1, *, to: "PersistentQueue[Any]") -> int:
        """Move the first items to the tail of another queue of this directory, as one atomic step.

        They are not decoded; ``to`` should have the same ``dumps`` and ``loads``. Returns how many there
        were, at most ``items``. Raises ``Full`` by the limits of ``to`` (nothing is moved then),
        ``CorruptItemError``, ``TransactionError`` if ``to`` is in another directory, ``ValueError`` if
        it is this queue.
        """
        n = checked_count(items)
        target = local_engine_of(to)
        self._engine.refuse_if_closed()
        head_of(to).refuse_push()
        if target.environment is not self._engine.environment:
            raise TransactionError(
                self._engine.path, f"{to!r} is in another directory", "open both in one, with two names"
            )
        if to.name == self.name:
            message = f"{to!r}: a queue cannot move items to itself"
            raise ValueError(message)
        return self._engine.move(n, target)

    def queues(self) -> list[str]:
        """Return the names of all queues of this directory."""
        return self._engine.environment.view(self._engine.ref, _names)

    def drop_queue(self, name: str) -> None:
        """Remove the queue ``name`` of this directory, with its items and state, at the cost of a commit.

        Durable when this returns. Its pages are used again; ``flush`` gives them back. Objects that are open on that
        queue, of any process, raise ``GoneError`` from then on, also if a queue of that name is made anew. Raises
        ``KeyError`` if there is no such queue.
        """
        if not self._engine.environment.drop_queue(name):
            raise KeyError(name)

    def check(self, repair: bool = False) -> list[str]:
        """Return what is wrong with the files: an empty list, or a sentence for each problem.

        Looks at all queues of the directory: the structure of the file, each checksum, head and tail
        against the items, files that should not be there. Writers wait meanwhile. With ``repair`` every
        item that is whole is written to a new file, which takes the place of the damaged one, durably,
        while others go on; a damaged item is kept as it was found in the file ``<queue>.quarantine``
        beside the directory (JSON lines: queue, seq, value in base64), and the answer tells what was lost.
        For a queue that cannot be opened: ``lmdbqueue.check``.
        """
        from lmdbqueue._local.check import check_open  # noqa: PLC0415  (for who checks, not for who imports)

        return check_open(self._engine.environment, repair=repair)

    def _options(self) -> dict[str, Any]:
        names = (
            *("dumps", "loads", "flush_limit", "name", "maxsize", "max_bytes", "max_attempts"),
            *("durability", "checksum", "serializer"),
        )
        given = {name: getattr(self, name) for name in names}
        for name in ("serializer",) if self.serializer in ("pickle", CUSTOM) else ("dumps", "loads"):
            del given[name]
        return given


def _names(txn: Txn, queue: Tables) -> list[str]:
    return sorted(queue.generation.names(txn))


def local_engine_of(queue: PersistentQueue[Any]) -> LocalEngine:
    """Return the engine of a queue on LMDB, for who does with its items what no verb does."""
    return queue._engine  # noqa: SLF001  (the one way in)


def _reopen(cls: type[PersistentQueue[Any]], directory: str, options: dict[str, Any]) -> PersistentQueue[Any]:
    path, filename = os.path.split(directory)
    return cls(filename, path, **options)
