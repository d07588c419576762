"""Every exception that lmdbqueue raises on purpose.

Owns: the names, the facts each one carries, and the sentence it prints. Law: an error is built from
its facts alone, they are its attributes and its ``args``, so it pickles and its message cannot drift
from them. Must not know: how any of it came about.
"""

import queue
import sys
from typing import Final

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

    ``unit`` is ``"items"`` (``maxsize``), ``"bytes"`` (``max_bytes``), ``"queues"``, or ``"address space"`` (of this
    process, in bytes); ``used`` is what is there, ``added`` what would come, both in that unit.
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
        if self.unit == "address space":
            return (
                f"this process has address space for {self.limit:,} bytes of the queue's file, which has "
                f"{self.used:,}; nothing was stored: see ulimit -v, open fewer queues, or remove items"
            )
        more = f" and {self.added:,} more do not fit" if self.added else ""
        return (
            f"the queue holds {self.used:,} of at most {self.limit:,} {self.unit}{more}; nothing was stored: remove "
            f"items, or use put(), which waits for room"
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

    ``seq`` is its sequence number, ``payload`` its bytes; the error of ``loads`` is the ``__cause__``. ``is_dead``: it
    is among the dead letters.
    """

    def __init__(self, seq: int, payload: bytes, reason: str, is_dead: bool = False) -> None:
        super().__init__(seq, payload, reason, is_dead)
        self.seq = seq
        self.payload = payload
        self.reason = reason
        self.is_dead = is_dead

    def __str__(self) -> str:
        what = f"item {self.seq} ({len(self.payload):,} bytes) could not be decoded: {self.reason}"
        if self.is_dead:
            return (
                f"{what}; it stays among the dead letters: open the queue with the loads that fits its dumps, or "
                f"remove it with dead.delete({self.seq})"
            )
        return (
            f"{what}; it stays where it is: open the queue with the loads that fits its dumps, or "
            f"dead_letter({self.seq}), or delete_item({self.seq})"
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
        return (
            f"{self.path!r} is damaged: {self.reason}; nothing was changed: copy the directory, then let lmdbqueue "
            f"check --repair write what can be read to a new file"
        )


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
    """What is asked of a queue does not go with what it was created with, or has; nothing was touched."""

    def __init__(self, path: str, option: str, stored: object, given: object) -> None:
        super().__init__(path, option, stored, given)
        self.path = path
        self.option = option
        self.stored = stored
        self.given = given

    def __str__(self) -> str:
        if self.stored in _NOT_TOGETHER:
            return f"{self.path!r} has {_NOT_TOGETHER[self.stored]}: {self.given} does not go with that"
        return (
            f"{self.path!r} was created with {self.option}={self.stored!r}, which is fixed; it was opened with "
            f"{self.given!r}: pass {self.option}={self.stored!r}"
        )


_NOT_TOGETHER: Final[dict[object, str]] = {
    "named readers": "named readers, which pass items in the order of their pushes",
    "retention": "retention, which drops what is first, and with priorities that is the most urgent",
    "priorities": "or had items with a priority, which come before those that were pushed earlier",
}


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
    """There is no room left for a file; nothing of the call was stored.

    ``unit`` says of what: ``"bytes"`` or ``"files"`` of the file system, ``"quota"`` of the user, ``"file size"`` of
    the process; ``limit`` and ``used`` are in bytes, but for files, and those of the file system for a quota.
    """

    def __str__(self) -> str:
        kept = "nothing was stored"
        if self.unit == "files":
            return (
                f"the file system has no inode left ({self.used:,} of {self.limit:,} in use), though it may have "
                f"bytes; {kept}: remove some files; items can still be read"
            )
        if self.unit == "quota":
            return f"the quota of this user on the file system is used up; {kept}: free some space, or have it raised"
        if self.unit == "file size":
            return f"this process may write no file of over {self.limit:,} bytes (ulimit -f); {kept}: raise the limit"
        return (
            f"the file system is full ({self.used:,} of {self.limit:,} bytes in use); {kept}: free some space; items "
            f"can still be read"
        )


class StorageError(QueueError):
    """The storage failed in a way that has no name of its own; nothing of the call was stored.

    ``operation`` names what was under way, ``reason`` what the operating system or LMDB said, ``advice`` what to do.
    """

    def __init__(self, path: str, operation: str, reason: str, advice: str = "look at the disk and its log") -> None:
        super().__init__(path, operation, reason, advice)
        self.path = path
        self.operation = operation
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.operation} failed on {self.path!r}: {self.reason}; nothing was stored: {self.advice}"


class ServerError(StorageError):
    """The database server refused a call, or could not be reached; nothing of the call was stored.

    ``sqlstate`` is the server's code for it, "" when it did not answer.
    """

    advice = "look at the server and its log"

    def __init__(self, path: str, operation: str, reason: str, sqlstate: str = "") -> None:
        QueueError.__init__(self, path, operation, reason, sqlstate)
        self.path = path
        self.operation = operation
        self.reason = reason
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        code = f" ({self.sqlstate})" if self.sqlstate else ""
        return f"{self.operation} failed on {self.path!r}: {self.reason}{code}; nothing was stored: {self.advice}"


class GoneError(QueueError):
    """Somebody has removed a queue, a reader, or the files, while it was open; nothing of the call was stored.

    ``name``: of a queue that was dropped, "" when it is the files: they, or their directory, were removed, renamed or
    replaced. ``reader``: of a reader that was dropped, "" when it is something else.
    """

    def __init__(self, path: str, name: str = "", reader: str = "") -> None:
        super().__init__(path, name, reader)
        self.path = path
        self.name = name
        self.reader = reader

    def __str__(self) -> str:
        if self.reader:
            return (
                f"reader {self.reader!r} of queue {self.name!r} in {self.path!r} was dropped; nothing was changed: "
                f"reader({self.reader!r}) of the queue makes it anew"
            )
        what = f"{self.name!r} in {self.path!r} was removed" if self.name else f"{self.path!r} was removed or replaced"
        return f"{what} while the queue was open; nothing was stored: open the queue again"


class NestedCallError(QueueError):
    """A call came from within another call of the same thread; nothing of it was stored.

    A signal's handler, or a ``__del__`` that the garbage collector runs, may come amid any call. What it calls cannot
    wait for the call that waits for it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"a call on {self.path!r} came from within another call of the same thread, as from a signal's handler or "
            f"__del__; nothing was stored: let another thread do it (queue.SimpleQueue hands it over)"
        )


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
