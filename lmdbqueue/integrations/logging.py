"""Log records that survive the program: a handler that stores them, a listener that passes them on. No extra needed.

Owns: how a record is stored (a JSON object), when it counts as handled. Law: no error of the queue reaches the program
that logs; a record is acknowledged after every handler has taken it; one that cannot be decoded or handled is set
aside, and the listener continues. Must not know: LMDB, what handlers do.

====  ========================================  ===============================================================
step  what is done, by the listener's thread    its process is killed after it
====  ========================================  ===============================================================
1     lease some records                        they return to their places immediately
2     pass each to every handler                handlers may get records a second time
3     give back or set aside failed records     they come again after their delay, or are dead letters
4     acknowledge the others                    they are done
====  ========================================  ===============================================================

A listener is not ended by a sentinel, so none can be left behind for the next one.

Three ways lead from a log call to the queue. The plain one pushes before the call returns. With ``linger``, and where a
push is impossible (in a transaction of another directory, or during another call of the same thread: a signal handler
that logs, a warning of this library), a thread of the handler pushes a moment later: ``_later``.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, Final, Self

from lmdbqueue._base.errors import (
    ClosedError,
    Empty,
    NestedCallError,
    QueueError,
    ShutDown,
    TransactionError,
    told,
)
from lmdbqueue._base.format import Durability
from lmdbqueue._host.directory import absolute
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.lease import Lease
from lmdbqueue._verbs.worker import DEFAULT_RETRY, Retry
from lmdbqueue.integrations._later import Later
from lmdbqueue.integrations._options import options_for

__all__ = ["DurableHandler", "DurableListener", "decode", "encode"]

_DERIVED: Final = ("args", "exc_info", "filename", "levelname", "module", "msecs")  # derived from other fields
_MADE: Final = {"name", "levelno", "pathname", "lineno", "msg", "funcName", "stack_info"}  # set by the constructor
_LOOK: Final = 1.0  # seconds between two checks of a waiting thread
_PLAIN: Final = logging.Formatter()
_dumps: Final = json.JSONEncoder(separators=(",", ":"), default=repr).encode


def encode(record: logging.LogRecord) -> bytes:
    """Return a record as JSON: its attributes by name, its message in ``msg``, a traceback as text.

    Attributes that JSON cannot express become their ``repr``.

    Args:
        record: The record.
    """
    return _encoded(_fields(record, None))


def _fields(record: logging.LogRecord, formatter: logging.Formatter | None) -> dict[str, Any]:
    """Return the fields to store of a record, independent of what the program changes later."""
    fields = dict(record.__dict__)
    if formatter is not None:
        fields["msg"] = formatter.format(record)
        fields["exc_text"] = fields["stack_info"] = None  # the formatter has put them into the message
    else:
        fields["msg"] = record.getMessage()
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = _PLAIN.formatException(record.exc_info)
    for name in _DERIVED:
        fields.pop(name, None)
    return fields


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        return _dumps(fields).encode()
    except (TypeError, ValueError, RecursionError):  # a dict with other keys than str, or a cycle
        return _dumps({name: _harmless(value) for name, value in fields.items()}).encode()


def _harmless(value: object) -> object:
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def decode(payload: bytes) -> logging.LogRecord:
    """Return the record from which ``encode`` made these bytes.

    Args:
        payload: The bytes.

    Raises:
        ValueError: They are something else.
    """
    fields = json.loads(payload)
    if not isinstance(fields, dict) or not fields.keys() >= _MADE:
        message = "this is not a log record"
        raise ValueError(message)
    record = logging.LogRecord(
        fields.pop("name"),
        fields.pop("levelno"),
        fields.pop("pathname"),
        fields.pop("lineno"),
        fields.pop("msg"),
        (),
        None,
        fields.pop("funcName"),
        fields.pop("stack_info"),
    )
    record.__dict__.update(fields)
    record.msecs = float(int((record.created % 1) * 1000))
    return record


class DurableHandler(logging.Handler):
    """Push each record to a queue in a directory of its own, for a ``DurableListener`` of any process.

    When the log call returns, the record survives the death of the program. With ``durability="full"`` it also survives
    a power cut, and each call waits for the disk (threads that log at the same moment share a sync). The program gets
    no exception: failures go to ``handleError``, as with every handler. A forked child can continue to log.

    A formatter, if one is set, makes the message, which the listener's handlers then format.

    Args:
        path: The directory of the queue; created if it is missing; its parent must exist.
        level: The level of the handler.
        name: The queue in the directory.
        retain: The number of newest records to keep while nobody listens; older ones are dropped. None: all.
        durability: ``"off"``, ``"interval"`` or ``"full"``; fixed when the directory is created. None: that of the
            directory, ``"off"`` for a new one.
        linger: Seconds for which a thread collects records before it pushes them in one step. A log call then takes
            about a sixth of the time, and a killed program loses the records of these seconds. 0: each record is
            pushed immediately.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        level: int | str = logging.NOTSET,
        *,
        name: str = "queue",
        retain: int | None = 1_000_000,
        durability: Durability | None = None,
        linger: float = 0.0,
    ) -> None:
        super().__init__(level)
        self.queue = _opened(path, name, durability)
        self.queue.retain(retain)
        self._linger = linger
        self._here = threading.local()  # .is_pushing
        self._later = Later(self.queue, self._push, self._failed, linger)

    def createLock(self) -> None:  # noqa: N802  (logging's name)
        """Use a lock that never blocks: the queue needs none, and threads that log at the same moment share a sync."""
        self.lock = _NoLock()  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        """Store the record; called by ``logging``."""
        try:
            fields = _fields(record, self.formatter)
            if self._linger or getattr(self._here, "is_pushing", False) or self._later.is_here():
                self._later.add(fields)  # records that a push itself logs wait for the next one
                return
            self._here.is_pushing = True
            try:
                self.queue.push(_encoded(fields))
            except (TransactionError, NestedCallError):
                self._later.add(fields)
            finally:
                self._here.is_pushing = False
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all earlier records are in the queue, or have failed.

        In a transaction of the queue's directory, and in a signal handler that interrupted a call on it, this does not
        wait, since it would wait for itself. At the program's end it waits ten seconds at most.
        """
        self._later.flush()

    def close(self) -> None:
        """Push pending records, and close the queue. Later records go to ``handleError``.

        Where ``flush`` would not wait, this does not either; then a thread closes the queue a moment later. At the
        program's end it waits ten seconds at most, for another process that holds the directory: records that could not
        be pushed until then go to ``handleError``.
        """
        self._later.close()
        super().close()

    def _push(self, some: Sequence[dict[str, Any]]) -> None:
        self.queue.push(list(map(_encoded, some)))

    def _failed(self, fields: dict[str, Any]) -> None:
        self.handleError(logging.makeLogRecord(fields))


class _NoLock:
    """The lock that ``logging`` holds around ``emit``."""

    def acquire(self) -> None: ...

    def release(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def _at_fork_reinit(self) -> None: ...


class DurableListener:
    """Pass the records of a queue to handlers, in a thread, until ``stop``; any number of listeners can share a queue.

    A record is acknowledged when every handler has taken it, so a killed listener loses none, and up to ``batch``
    records may be passed on twice. A handler fails if it raises, or calls its ``handleError``, as those of the standard
    library do; it reports the first and the last attempt. Only this handler gets the record again, according to
    ``retry``; after the last attempt the record becomes a dead letter: ``listener.queue.dead``. An item that is not a
    record becomes one at once.

    Args:
        source: The path of the directory, which is created if it is missing, or a ``PersistentQueue`` on it (the
            listener opens its own).
        handlers: The handlers that get the records.
        name: The queue in the directory, if ``source`` is a path.
        batch: The number of records leased and acknowledged at a time.
        retry: The delays of a failed record, and the number of attempts after which it becomes a dead letter; None:
            ``Retry()``.
        respect_handler_level: Whether a handler gets only records of its level and above, as in ``QueueListener``.
        durability: As for ``DurableHandler``; whichever of the two comes first creates the directory.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | PersistentQueue[Any],
        *handlers: logging.Handler,
        name: str = "queue",
        batch: int = 100,
        retry: Retry | None = None,
        respect_handler_level: bool = False,
        durability: Durability | None = None,
    ) -> None:
        if isinstance(source, PersistentQueue):
            self._where = local_engine_of(source).path, source.name
        else:
            self._where = absolute(source), name
        self.handlers = handlers
        self._durability = durability
        self._batch = batch
        self._retry = DEFAULT_RETRY if retry is None else retry
        self._respects_level = respect_handler_level
        self._took: dict[int, set[int]] = {}  # which handlers have taken a record that will come again
        self._failure: BaseException | None = None  # error of the handler at work
        self._is_to_report = True  # whether its own ``handleError`` hears of it: at the first and the last attempt
        self._thread: threading.Thread | None = None
        self._ident = 0  # identifies that thread
        self._round = _Round()
        self.queue = self._open()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to pass on records, in a new thread. It can be called again after ``stop``, and in a forked child.

        Does nothing if the listener is running.
        """
        if self._thread is None or not self._thread.is_alive():
            if local_engine_of(self.queue).is_closed or local_engine_of(self.queue).is_shut_down:
                self.queue.close()
                self.queue = self._open()
            self._round = _Round()
            self._thread = threading.Thread(
                target=self._run, args=(self.queue, self._round), name="lmdbqueue-listener", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Pass on the waiting records, and end the thread. Records that ``retry`` delays stay in the queue.

        A handler may call this; then the thread ends after the records that it has.
        """
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            try:
                left = self.queue.count()
            except QueueError:  # the disk failed: the records stay in the queue
                left = 0
            is_own = thread is threading.current_thread()
            self._round.left = 0 if is_own else left
            with suppress(ClosedError):
                self.queue.shutdown()  # ends the wait
            if is_own:
                return
            thread.join()
        self.queue.close()

    def _open(self) -> PersistentQueue[logging.LogRecord]:
        return _opened(*self._where, self._durability, loads=decode)  # a listener's death does not count as an attempt

    def _run(self, queue: PersistentQueue[logging.LogRecord], round_: "_Round") -> None:
        self._ident = threading.get_ident()
        originals = [handler.handleError for handler in self.handlers]
        for handler, original in zip(self.handlers, originals, strict=True):
            handler.handleError = partial(self._noted, original)  # type: ignore[method-assign]
        try:
            self._hand_all_on(queue, round_)
        finally:
            for handler, original in zip(self.handlers, originals, strict=True):
                handler.handleError = original  # type: ignore[method-assign]
            if round_.left is not None:
                queue.close()

    def _hand_all_on(self, queue: PersistentQueue[logging.LogRecord], round_: "_Round") -> None:
        while round_.left is None or round_.left > 0:
            is_ending = round_.left is not None  # otherwise records of this lease may not have been counted
            try:
                lease = queue.lease(self._batch, blocking=True, timeout=_LOOK)
                self._hand_on(lease)
            except Empty:
                continue
            except (ShutDown, ClosedError):
                return
            except QueueError:  # the disk failed; this thread continues, unless it is to end
                logging.getLogger("lmdbqueue").exception("a log listener tries again")
                if round_.left is not None:
                    return
                time.sleep(_LOOK)
            else:
                if is_ending and round_.left is not None:
                    round_.left -= len(lease)

    def _noted(self, original: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
        """Stand in for a handler's ``handleError``; other threads may use the handler, too, for example in a logger."""
        if threading.get_ident() == self._ident:
            self._failure = sys.exception()
            if not self._is_to_report:
                return
        original(record)

    def _hand_on(self, lease: Lease[logging.LogRecord]) -> None:
        with lease:
            for record, seq, attempts in zip(lease.items, lease.seqs, lease.attempts, strict=True):
                most = self._retry.max_attempts
                self._is_to_report = attempts == 1 or (most is not None and attempts >= most)
                failure = self._handled(record, seq)
                if failure is not None:
                    delay = self._retry.delay(attempts)
                    if not lease.nack(seq, delay, told(failure), max_attempts=most).returned:
                        self._took.pop(seq, None)

    def _handled(self, record: logging.LogRecord, seq: int) -> BaseException | None:
        """Pass a record to each handler that has not taken it; return the error of one that failed."""
        took = self._took.pop(seq, set())
        found: BaseException | None = None
        for number, handler in enumerate(self.handlers):
            if number in took or (self._respects_level and record.levelno < handler.level):
                continue
            self._failure = None
            try:
                handler.handle(copy(record))  # a handler may change it, which others must not see
            except BaseException as error:  # even SystemExit: the thread continues
                with suppress(Exception):
                    handler.handleError(record)
                self._failure = error
            if self._failure is None:
                took.add(number)
            else:
                found = self._failure
        if found is not None:
            self._took[seq] = took
        return found


class _Round:
    """The run of a listener's thread from ``start`` to ``stop``."""

    left: int | None = None  # the number of records to handle before the end, once stop was called


def _opened(
    path: str | os.PathLike[str], name: str, durability: Durability | None, **options: Any
) -> PersistentQueue[Any]:
    """Open a queue of records."""
    return PersistentQueue(path, dumps=bytes, name=name, **options_for(path, durability, "off"), **options)
