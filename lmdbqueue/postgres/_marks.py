"""A queue of PostgreSQL as the target of a forwarder.

Owns: the table of marks, and the lock of a forwarded source. Law: a batch and its mark are one transaction, and a mark
follows only the previous one; so a batch is stored once, no matter who tries to store it again, or when. Must not know:
the source.

The lock (of the session, advisory) makes a second forwarder wait. It only serves order: if its connection is lost and
another forwarder continues, the mark refuses the repeated batch.
"""

import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import psycopg

from lmdbqueue._base.errors import ForwardError, GoneError, ServerError
from lmdbqueue._base.values import Push
from lmdbqueue._verbs.batch import Batch, BusyError, Envelope, Mark, Origin, RefusedError, Target, ends_of, seqs_of
from lmdbqueue.postgres import _readers
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._failures import is_final
from lmdbqueue.postgres._items import MAX_SIZE, Place
from lmdbqueue.postgres._queue import PostgresQueue, postgres_engine_of
from lmdbqueue.postgres._session import Session
from lmdbqueue.postgres._step import Step

_PATIENCE: Final = 1.0  # seconds; the forwarder has its own

_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%(key)s)"
_LAST: Final = """
SELECT number, batch, next, removed, digest FROM {marks}
WHERE source = %(source)s AND name = %(name)s AND queue = %(queue)s
"""
_FIRST_MARK: Final = """
INSERT INTO {marks} (source, name, queue, number, next, removed, batch, digest)
VALUES (%(source)s, %(name)s, %(queue)s, %(number)s, %(next)s, %(removed)s, %(batch)s::bigint[], %(digest)s)
ON CONFLICT (source, name, queue) DO NOTHING
"""
_NEXT_MARK: Final = """
UPDATE {marks} SET number = %(number)s, next = %(next)s, removed = %(removed)s, batch = %(batch)s::bigint[],
    digest = %(digest)s, stored = clock_timestamp()
WHERE source = %(source)s AND name = %(name)s AND queue = %(queue)s AND number = %(number)s - 1
"""


# messages of errors that waiting does not cure; for a failed connection psycopg knows no sqlstate
_FOR_GOOD: Final = re.compile(r'(database|role) ".*" does not exist|authentication failed|no pg_hba\.conf entry')


class PostgresTarget(Target):
    """A target that stores each item, with its headers, in a ``PostgresQueue`` exactly once.

    Args:
        queue: An open queue, which the caller closes; or a function that opens it, so that a server that does not
            answer yet can be waited for.
    """

    def __init__(self, queue: PostgresQueue[Any] | Callable[[], PostgresQueue[Any]]) -> None:
        self._open_queue = queue if callable(queue) else None
        self._queue = None if callable(queue) else queue
        self._session: Session | None = None
        self._held: Origin | None = None

    @property
    def identity(self) -> str:
        """The schema, by its uuid, which a restored database keeps, and the queue."""
        if self._queue is None:
            return ""
        engine = postgres_engine_of(self._queue)
        return f"{engine.database.uuid}/{engine.place.id}"

    def last(self, origin: Origin) -> Mark | None:
        """Take the lock of the source, and return its mark.

        Args:
            origin: The queue that the items come from.

        Raises:
            BusyError: Another forwarder has the lock.
        """
        if self._queue is None:
            assert self._open_queue is not None  # one of the two is set
            try:
                self._queue = self._open_queue()
            except ServerError as error:
                if not _FOR_GOOD.search(error.reason):
                    raise
                advice = "create what is missing, or correct the URL, and start again"
                raise ForwardError(error.path, f"the server refuses it: {error.reason}", advice) from error
        engine = postgres_engine_of(self._queue)
        database, place = engine.database, engine.place
        self._hold(origin, database, place)
        return database.view(_PATIENCE, _last, place, origin)

    def store(self, batch: Batch) -> None:
        """Push the items of a batch and store its mark, as one transaction.

        Args:
            batch: The items and their mark.

        Raises:
            BusyError: Another forwarder has stored this batch, or the previous one.
            RefusedError: The server will never accept some of the items.
        """
        assert self._queue is not None  # ``last`` comes first
        engine = postgres_engine_of(self._queue)
        database, place = engine.database, engine.place
        if self._session is None or not self._session.is_alive:
            raise ServerError(database.path, "a batch", "the connection that has the lock of the source was lost")
        large = {
            seq: len(each) for seq, each in zip(batch.mark.seqs, batch.payloads, strict=True) if len(each) > MAX_SIZE
        }
        if large:
            raise RefusedError({seq: f"{size:,} bytes, more than a row can have" for seq, size in large.items()})
        try:
            is_there = database.run(_PATIENCE, _store, place, batch, engine.buries_expired)
        except ServerError as error:
            if not is_final(error.sqlstate):
                raise
            self._refuse(batch, error, database, place)
        if not is_there:
            raise GoneError(database.path, self._queue.name)

    def _refuse(self, batch: Batch, error: ServerError, database: Database, place: Place) -> NoReturn:
        """Raise ``RefusedError`` for items that the server will never accept, ``ForwardError`` if it accepts none."""
        refused = {}
        for envelope, payload in batch.enveloped():
            try:
                database.run(_PATIENCE, _tried, place, payload, envelope)
            except ServerError as found:
                if not is_final(found.sqlstate):
                    raise
                refused[envelope.seq] = str(found)
        if not refused or error.sqlstate.startswith("42"):  # not the fault of the items
            reason = f"items from {batch.mark.seqs[0]} on cannot be stored: {error}"
            raise ForwardError(database.path, reason, "check the server, and start again") from error
        raise RefusedError(refused) from error

    def close(self) -> None:
        """Release the lock; close the queue if it was opened here."""
        self._let_go()
        if self._open_queue is not None and self._queue is not None:
            self._queue.close()
            self._queue = None

    def _let_go(self) -> None:
        session, self._session = self._session, None
        self._held = None
        if session is not None:
            session.leave()

    def _hold(self, origin: Origin, database: Database, place: Place) -> None:
        if self._held == origin and self._session is not None and self._session.is_alive:
            return
        self._let_go()
        session = database.access.entered(time.monotonic() + _PATIENCE)
        try:
            row = session.connection.execute(_TRY_LOCK, {"key": _key(origin, database.uuid, place.id)})
            has_lock = row.fetchall() == [(True,)]
        except psycopg.Error as error:
            session.close()
            raise ServerError(database.path, "taking the lock of a source", str(error).strip()) from error
        except BaseException:  # an interrupt
            session.close()
            raise
        if not has_lock:
            session.leave()
            raise BusyError
        self._session, self._held = session, origin


def _key(origin: Origin, schema: str, queue: int) -> int:
    text = f"{origin.uuid}/{origin.name}/{schema}/{queue}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def _last(step: Step, place: Place, origin: Origin) -> Mark | None:
    row = step.execute(_LAST, source=origin.uuid, name=origin.name, queue=place.id).fetchone()
    if row is None:
        return None
    number, ranges, following, removed, digest = row
    return Mark(number, seqs_of(ranges), following, removed, digest)


def _store(step: Step, place: Place, batch: Batch, buries: bool) -> bool:
    """Store a batch; return whether the queue exists. Raises ``BusyError``, which undoes it, if it does not follow."""
    how = Push(headers_of_each=[envelope.headers for envelope, _ in batch.enveloped()])
    if _readers.push(step, place, batch.payloads, how, 0, buries=buries) is None:
        return False
    mark = batch.mark
    statement = _FIRST_MARK if mark.number == 1 else _NEXT_MARK
    stored = step.changed(
        statement,
        source=batch.origin.uuid,
        name=batch.origin.name,
        queue=place.id,
        number=mark.number,
        next=mark.next,
        removed=mark.removed,
        batch=ends_of(mark.seqs),
        digest=mark.digest,
    )
    if not stored:
        raise BusyError
    return True


def _tried(step: Step, place: Place, payload: bytes, envelope: Envelope) -> None:
    """Store an item as a trial, and undo it."""
    _readers.push(step, place, [payload], Push(headers=envelope.headers), 0)
    step.has_changed = False
