"""Every exception that lmdbqueue raises on purpose.

Owns: the names, the facts each one carries, and the sentence it prints. Law: an error is built from
its facts alone, they are its attributes and its ``args``, so it pickles and its message cannot drift
from them. Must not know: how an error came about.
"""

from __future__ import annotations

import queue
import sys
from typing import Final

if sys.version_info >= (3, 13):
    from queue import ShutDown as _StandardShutDown
else:

    class _StandardShutDown(Exception):
        """Stands in for ``queue.ShutDown``, which Python has from 3.13 on."""


def told(error: BaseException) -> str:
    """Return the type and the text of an error; only the type if its ``__str__``, which may be a user's, fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def without_extra(module: str, package: str, advice: str, error: ImportError) -> ImportError:
    """Return the error of a module that cannot be imported because its extra is not installed."""
    return ImportError(f"{module} needs {package}: {advice} ({error})", name=error.name)


class QueueError(Exception):
    """The base of every error that this library raises on purpose."""


class Empty(QueueError, queue.Empty):
    """There were fewer items than requested, at once or until the timeout."""

    def __init__(self, wanted: int, timeout: float | None = None) -> None:
        super().__init__(wanted, timeout)
        self.wanted = wanted
        self.timeout = timeout

    def __str__(self) -> str:
        what = "there was no item" if self.wanted == 1 else f"there were fewer than {self.wanted} items"
        return what if self.timeout is None else f"{what} within {self.timeout:g} s"


class Full(QueueError, queue.Full):
    """A push would exceed a limit of the queue; nothing was stored.

    ``unit`` is ``"items"`` (``maxsize``), ``"bytes"`` (``max_bytes``), or ``"address space"`` (of this process, in
    bytes); ``used`` is the present amount, ``added`` the requested one, both in that unit.
    """

    def __init__(self, unit: str, limit: int, used: int, added: int) -> None:
        super().__init__(unit, limit, used, added)
        self.unit = unit
        self.limit = limit
        self.used = used
        self.added = added

    def __str__(self) -> str:
        if self.unit == "address space":
            return (
                f"this process has address space for {self.limit:,} bytes of the queue's file, which has "
                f"{self.used:,}; nothing was stored: see ulimit -v, open fewer queues, or remove items"
            )
        more = f", and {self.added:,} more do{'es' * (self.added == 1)} not fit" if self.added else ""
        advice = "remove items, or use put(), which waits for room"
        if self.added > self.limit:  # even an empty queue has no room for them
            advice = "push less at once, or open the queue with a higher limit"
        holds = f"the queue holds {self.used:,} of at most {self.limit:,} {self.unit}{more}"
        return f"{holds}; nothing was stored: {advice}"


class ShutDown(QueueError, _StandardShutDown):
    """``shutdown()`` was called on this queue object."""

    def __str__(self) -> str:
        return "this queue object was shut down; the items are still on disk: open the queue again to continue"


class ClosedError(QueueError):
    """The queue object was closed before, or while, the call was made."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"this queue object is closed: open {self.path!r} again"


class ForkError(QueueError):
    """A forked child cannot use the queue: its parent forked during a call, or code in C (uWSGI) forked it.

    What a child finds that was forked during a transaction or another call is its parent's. The same is true of all
    that was open when code in C forked without Python's hooks: open the queue in the child.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"this process was forked during a transaction or another call on {self.path!r}, which cannot be abandoned "
            f"safely, or by code in C while that was open: fork outside of transactions and signal handlers, start the "
            f"process with 'spawn', or open the queue after the fork"
        )


class DecodeError(QueueError):
    """``loads`` failed on an item, which stays where it is.

    ``seq`` is its sequence number, ``payload`` its bytes; the error of ``loads`` is the ``__cause__``. ``is_dead``: the
    item is a dead letter.
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
                f"{what}; it stays among the dead letters: open the queue with the loads that matches its dumps, or "
                f"remove it with dead.delete({self.seq})"
            )
        return (
            f"{what}; it stays where it is: open the queue with the loads that matches its dumps, or call "
            f"dead_letter({self.seq}) or delete_item({self.seq})"
        )


class CorruptItemError(QueueError):
    """An item's checksum does not match its bytes; it stays where it is.

    ``seq`` is its sequence number, ``payload`` its bytes as they are on disk.
    """

    def __init__(self, seq: int, payload: bytes) -> None:
        super().__init__(seq, payload)
        self.seq = seq
        self.payload = payload

    def __str__(self) -> str:
        return (
            f"item {self.seq} ({len(self.payload):,} bytes) is damaged on disk, its checksum does not match; it stays "
            f"where it is for inspection: dead_letter({self.seq}) sets it aside, delete_item({self.seq}) removes it"
        )


class CorruptQueueError(QueueError):
    """The queue's files are damaged; ``check(repair=True)`` saves everything readable to a new file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path!r} is damaged: {self.reason}; nothing was changed: copy the directory, then run lmdbqueue "
            f"check --repair, which writes everything readable to a new file"
        )


class FormatError(QueueError):
    """The path is not a queue, or not one of this version; nothing was touched."""

    def __init__(self, path: str, found: str, advice: str) -> None:
        super().__init__(path, found, advice)
        self.path = path
        self.found = found
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} is not a queue directory: it is {self.found}; nothing was touched: {self.advice}"


class VersionError(FormatError):
    """The queue was written by a newer version of the library; nothing was touched."""

    def __str__(self) -> str:
        return f"{self.path!r} has {self.found}; nothing was touched: {self.advice}"


class OptionError(QueueError, ValueError):
    """An option or a call conflicts with how the queue was created, or with its contents; nothing was touched.

    ``name`` is the queue; it is "" if the option is one of the whole directory.
    """

    def __init__(self, path: str, option: str, stored: object, given: object, name: str = "") -> None:
        super().__init__(path, option, stored, given, name)
        self.path = path
        self.option = option
        self.stored = stored
        self.given = given
        self.name = name

    def __str__(self) -> str:
        what = f"queue {self.name!r} in {self.path!r}" if self.name else repr(self.path)
        if self.stored in _NOT_TOGETHER:
            return f"{what} has {_NOT_TOGETHER[self.stored]}, so it cannot have {self.given}: use another queue"
        return (
            f"{what} was created with {self.option}={self.stored!r}, which is fixed; it was opened with "
            f"{self.given!r}: pass {self.option}={self.stored!r}"
        )


_NOT_TOGETHER: Final[dict[object, str]] = {
    "named readers": "named readers, which need items in the order of their pushes",
    "retention": "retention, which drops the first items, and with priorities those would be the most urgent",
    "priorities": "or had items with a priority, which come before items pushed earlier",
    "relaxed order": "a relaxed order, in which an item can arrive before the position of a reader",
}


class AccessError(QueueError):
    """The operating system does not permit this process to create, read or write files in the queue's directory."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path!r} cannot be used as a queue: {self.reason}; every user of a queue, consumers too, must be "
            f"able to create, read and write files in its directory"
        )


class PidError(AccessError):
    """A process of another pid namespace, such as that of another container, has the queue open."""

    def __str__(self) -> str:
        return (
            f"{self.path!r} is open in a process of another pid namespace ({self.reason}), and LMDB identifies "
            f"processes and threads by their numbers, which may be the same in both; nothing was damaged: share the "
            f"pid namespace between the containers (--pid=host, shareProcessNamespace), or close the queue there"
        )


class ExistsError(QueueError):
    """The destination of a copy exists already; nothing was touched."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path!r} exists already, and a copy never overwrites: remove it, or choose another name"


class DiskFullError(Full):
    """There is no room left for a file; the call stored nothing.

    ``unit`` names the exhausted resource: ``"bytes"`` or ``"files"`` of the file system, the ``"quota"`` of the user,
    or the ``"file size"`` of the process. ``limit`` and ``used`` are in bytes, or in files; for a quota, those of the
    file system.
    """

    def __str__(self) -> str:
        kept = "nothing was stored"
        if self.unit == "files":
            return (
                f"the file system has no inode left ({self.used:,} of {self.limit:,} in use), though it may have "
                f"bytes; {kept}: remove some files; items can still be read"
            )
        if self.unit == "quota":
            return f"this user's quota on the file system is used up; {kept}: free some space, or have the quota raised"
        if self.unit == "file size":
            return f"this process may not write files over {self.limit:,} bytes (ulimit -f); {kept}: raise the limit"
        return (
            f"the file system is full ({self.used:,} of {self.limit:,} bytes in use); {kept}: free some space; items "
            f"can still be read"
        )


class StorageError(QueueError):
    """The storage failed for a reason that has no exception of its own; the call stored nothing.

    ``operation`` names the operation that failed, ``reason`` is the message of the operating system or LMDB, ``advice``
    says what to do.
    """

    def __init__(self, path: str, operation: str, reason: str, advice: str = "check the disk and its log") -> None:
        super().__init__(path, operation, reason, advice)
        self.path = path
        self.operation = operation
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.operation} failed on {self.path!r}: {self.reason}; nothing was stored: {self.advice}"


class ServerError(StorageError):
    """The database server refused a call, or could not be reached; the call stored nothing.

    ``sqlstate`` is the server's code, or "" if it did not answer.
    """

    advice = "check the server and its log"

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
    """A queue, a reader or the files were removed while the queue was open; the call stored nothing.

    ``name`` is the dropped queue; it is "" if the files or their directory were removed, renamed or replaced.
    ``reader`` is the dropped reader, or "".
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
                f"reader({self.reader!r}) of the queue creates it again"
            )
        what = f"{self.name!r} in {self.path!r} was removed" if self.name else f"{self.path!r} was removed or replaced"
        return f"{what} while the queue was open; nothing was stored: open the queue again"


class NestedCallError(QueueError):
    """A call was made during another call of the same thread; it stored nothing.

    A signal handler, or a ``__del__`` that the garbage collector runs, can interrupt any call. The interrupted call
    waits for the handler, so a call made there must not wait for the interrupted one. It is also raised in a coroutine
    that calls a queue while a function of ``transact()`` on that queue waits for the coroutine.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"a call on {self.path!r} was made during another call of the same thread, or of one that waits for it, "
            f"perhaps by a signal handler or __del__; nothing was stored: make the call in another thread (pass it "
            f"the work through a queue.SimpleQueue)"
        )


class TransactionError(QueueError):
    """A call cannot be part of a ``transaction()``, or the transaction cannot be committed."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"transaction on {self.path!r}: {self.reason}: {self.advice}"


class ForwardError(QueueError):
    """The target's mark does not match the queue; nothing was forwarded, and nothing removed."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} is not the queue that was forwarded before: {self.reason}: {self.advice}"


class LeaseExpiredError(QueueError):
    """A lease is over, or belongs to the parent of this forked process; nothing was changed.

    It ended by its ``ttl``, by ``clear(all=True)``, or with its connection to PostgreSQL.

    ``name`` is the name of the queue; ``seqs`` are the items of the call.
    """

    def __init__(self, name: str, seqs: list[int]) -> None:
        super().__init__(name, seqs)
        self.name = name
        self.seqs = seqs

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.seqs[:10])) + ", ..." * (len(self.seqs) > 10)  # noqa: PLR2004
        return (
            f"the lease of items {numbers} of queue {self.name!r} is over, and others may have them; nothing was "
            f"changed: undo the work on them if possible, and use a longer ttl, or extend() in time"
        )


class SourceError(QueueError):
    """The file or directory at the path cannot be imported; nothing was imported."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path!r} cannot be imported: {self.reason}; nothing was imported: {self.advice}"


class CommitUnknownError(StorageError):
    """The disk or the server failed during a commit: check the queue to see whether the call took effect."""

    def __str__(self) -> str:
        return (
            f"{self.operation} failed on {self.path!r}: {self.reason}; it is unknown whether the call took effect: "
            f"check the queue (the next call reopens it) before you repeat the call"
        )
