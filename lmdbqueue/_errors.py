"""Every exception that lmdbqueue raises on purpose.

Owns: the names, the facts each one carries, and the sentence it prints. Law: an error is built from
its facts alone, they are its attributes and its ``args``, so it pickles and its message cannot drift
from them. Must not know: how any of it came about.
"""

import queue
import sys

if sys.version_info >= (3, 13):
    from queue import ShutDown as _StandardShutDown
else:

    class _StandardShutDown(Exception):
        """Stands in for ``queue.ShutDown``, which Python has from 3.13 on."""


class QueueError(Exception):
    """The base of every error that this library raises on purpose."""


class Empty(QueueError, queue.Empty):
    """Fewer items than asked for were there, at once or until the timeout."""

    def __init__(self, wanted: int, timeout: float | None = None) -> None:
        super().__init__(wanted, timeout)
        self.wanted = wanted
        self.timeout = timeout

    def __str__(self) -> str:
        what = "no item was there" if self.wanted == 1 else f"fewer than {self.wanted} items were there"
        return what if self.timeout is None else f"{what} within {self.timeout:g} s"


class Full(QueueError, queue.Full):
    """A push would exceed a limit of the queue, or a new queue that of its directory; nothing was stored.

    ``unit`` is ``"items"`` (``maxsize``), ``"bytes"`` (``max_bytes``) or ``"queues"``; ``used`` is what is there,
    ``added`` what would come, both in that unit.
    """

    def __init__(self, unit: str, limit: int, used: int, added: int) -> None:
        super().__init__(unit, limit, used, added)
        self.unit = unit
        self.limit = limit
        self.used = used
        self.added = added

    def __str__(self) -> str:
        if self.unit == "queues":
            return f"the directory has {self.used} queues, which is all that it can: drop one, or use another directory"
        return (
            f"the queue holds {self.used:,} of at most {self.limit:,} {self.unit} and {self.added:,} more do "
            f"not fit; nothing was stored: remove items, or use put(), which waits for room"
        )


class ShutDown(QueueError, _StandardShutDown):
    """``shutdown()`` was called on this queue object."""

    def __str__(self) -> str:
        return "this queue object was shut down; the items are still on disk: open it anew to go on"


class ClosedError(QueueError):
    """The queue object was closed before, or while, the call was made."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"this queue object is closed: open {self.path!r} again"


class ForkError(QueueError):
    """A forked child cannot reopen the queue, because the fork happened inside a transaction."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"this process was forked while a transaction on {self.path!r} was under way, which cannot be "
            f"left behind safely: fork outside of transactions, or start the process with 'spawn'"
        )


class DecodeError(QueueError):
    """``loads`` failed on an item, which stays where it is.

    ``seq`` is its sequence number, ``payload`` its bytes; the error of ``loads`` is the ``__cause__``.
    """

    def __init__(self, seq: int, payload: bytes, reason: str) -> None:
        super().__init__(seq, payload, reason)
        self.seq = seq
        self.payload = payload
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"item {self.seq} ({len(self.payload):,} bytes) could not be decoded: {self.reason}; it stays where it is: "
            f"open the queue with the loads that fits its dumps, or dead_letter({self.seq}), or delete_item({self.seq})"
        )


class CorruptItemError(QueueError):
    """An item's checksum does not fit its bytes; it stays where it is.

    ``seq`` is its sequence number, ``payload`` its bytes as they stand on disk.
    """

    def __init__(self, seq: int, payload: bytes) -> None:
        super().__init__(seq, payload)
        self.seq = seq
        self.payload = payload

    def __str__(self) -> str:
        return (
            f"item {self.seq} ({len(self.payload):,} bytes) is damaged on disk: its checksum does not fit; it stays "
            f"where it is for inspection: dead_letter({self.seq}) sets it aside, delete_item({self.seq}) removes it"
        )


class CorruptQueueError(QueueError):
    """The queue's files are damaged beyond what can be put right without losing items."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path!r} is damaged: {self.reason}; nothing was changed: copy the directory before any repair"


class FormatError(QueueError):
    """What stands at the path is not a queue that this version can open; nothing was touched."""

    def __init__(self, path: str, found: str, advice: str) -> None:
        super().__init__(path, found, advice)
        self.path = path
        self.found = found
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} is {self.found}, not a queue directory; nothing was touched: {self.advice}"


class VersionError(FormatError):
    """The queue was written by a newer version of the library; nothing was touched."""

    def __str__(self) -> str:
        return f"{self.path!r} has {self.found}; nothing was touched: {self.advice}"


class OptionError(QueueError, ValueError):
    """An option that is fixed at creation was given with another value; nothing was touched."""

    def __init__(self, path: str, option: str, stored: object, given: object) -> None:
        super().__init__(path, option, stored, given)
        self.path = path
        self.option = option
        self.stored = stored
        self.given = given

    def __str__(self) -> str:
        return (
            f"{self.path!r} was created with {self.option}={self.stored!r}, which is fixed; it was opened with "
            f"{self.given!r}: pass {self.option}={self.stored!r}"
        )


class AccessError(QueueError):
    """The operating system refuses what a queue needs: to create, read and write files in its directory."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path!r} cannot be used as a queue: {self.reason}; whoever uses a queue, consumers too, must be "
            f"able to create, read and write files in its directory"
        )


class PidError(AccessError):
    """Another process with this process's pid has the queue open, in a container with pids of its own."""

    def __str__(self) -> str:
        return (
            f"{self.path!r} is open in another process with the pid of this one, in another container, and LMDB tells "
            f"processes apart by their pids ({self.reason}); nothing was damaged: let the containers share their pids "
            f"(--pid=host, shareProcessNamespace)"
        )


class ExistsError(QueueError):
    """The destination of a copy is there already; nothing was touched."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path!r} exists already and a copy never overwrites: remove it, or choose another name"


class DiskFullError(Full):
    """There is no room left on the file system; nothing of the call was stored.

    ``used`` and ``limit`` are those of the file system, in bytes.
    """

    def __str__(self) -> str:
        return (
            f"the file system is full ({self.used:,} of {self.limit:,} bytes in use); nothing was stored: free some "
            f"space; items can still be read"
        )


class StorageError(QueueError):
    """The storage failed in a way that has no name of its own; nothing of the call was stored.

    ``operation`` names what was under way, ``reason`` what the operating system or LMDB said.
    """

    def __init__(self, path: str, operation: str, reason: str) -> None:
        super().__init__(path, operation, reason)
        self.path = path
        self.operation = operation
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.operation} failed on {self.path!r}: {self.reason}; nothing was stored: look at the disk and its log"
        )


class ServerError(StorageError):
    """The database server refused a call, or could not be reached; nothing of the call was stored.

    ``sqlstate`` is the server's code for it, "" when it did not answer.
    """

    def __init__(self, path: str, operation: str, reason: str, sqlstate: str = "") -> None:
        super().__init__(path, operation, reason)
        self.args = (path, operation, reason, sqlstate)
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        code = f" ({self.sqlstate})" if self.sqlstate else ""
        return (
            f"{self.operation} failed on {self.path!r}: {self.reason}{code}; nothing was stored: look at the server "
            f"and its log"
        )


class GoneError(QueueError):
    """Somebody has removed the queue, or its files, while it was open; nothing of the call was stored.

    ``name``: of a queue that was dropped, "" when it is the files that are gone.
    """

    def __init__(self, path: str, name: str = "") -> None:
        super().__init__(path, name)
        self.path = path
        self.name = name

    def __str__(self) -> str:
        what = f"{self.name!r} in {self.path!r}" if self.name else repr(self.path)
        return f"{what} was removed while the queue was open; nothing was stored: open the queue again"


class TransactionError(QueueError):
    """Something cannot be done inside of ``transaction()``, or what was done there cannot be committed."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"transaction on {self.path!r}: {self.reason}: {self.advice}"


class ForwardError(QueueError):
    """What a target has of a queue does not fit that queue; nothing was forwarded, and nothing removed."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} is not what was forwarded before: {self.reason}: {self.advice}"


class LeaseExpiredError(QueueError):
    """A lease is over: its time, ``clear(all=True)``, or its queue object. Nothing was changed.

    ``name`` is that of the queue; ``seqs`` are the items that were asked for.
    """

    def __init__(self, name: str, seqs: list[int]) -> None:
        super().__init__(name, seqs)
        self.name = name
        self.seqs = seqs

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.seqs[:10])) + ", ..." * (len(self.seqs) > 10)  # noqa: PLR2004
        return (
            f"the lease of items {numbers} of queue {self.name!r} is over, and others may have them; nothing was "
            f"changed: undo what was done with them if it can be, and use a longer ttl, or extend() in time"
        )


class SourceError(QueueError):
    """What stands at the path cannot be imported; nothing was."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} cannot be imported: {self.reason}; nothing was imported: {self.advice}"


class CommitUnknownError(StorageError):
    """The disk failed during a commit: whether the call took place is known only after reopening."""

    def __str__(self) -> str:
        return (
            f"{self.operation} failed on {self.path!r}: {self.reason}; whether it took place is unknown: look at the "
            f"queue (the next call reopens it) before doing it again"
        )
