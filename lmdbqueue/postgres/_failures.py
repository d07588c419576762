"""The meaning of the server's errors.

Owns: which errors mean that a connection is no longer usable, which hide an interrupt, and which of our errors replaces
the others. Law: no exception of psycopg reaches a user of a queue. Must not know: what was being done.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg

from lmdbqueue._base.errors import QueueError, ServerError

# The server is stopping, starting, or now read-only: another connection may find one that accepts writes
_GOING: Final = {"57P01", "57P02", "57P03", "57P05", "25006", "53300"}

# It has undone a transaction in favour of another, or has forgotten a prepared statement: repeat it
_AGAIN: Final = {"40001", "40P01", "26000"}

# Errors that waiting does not cure: values that do not fit, a constraint, a missing permission, a limit of the server
_FINAL: Final = ("22", "23", "42", "54")

# The same for a refused connection: libpq gives no code for that, only the server's message
_REFUSED: Final = re.compile(
    "role .* does not exist|database .* does not exist|authentication failed|no password supplied"
    "|no pg_hba.conf entry|is not permitted to log in|permission denied|invalid connection option"
)


class Lost(Exception):
    """A connection was lost, or the server undid the transaction; ``is_unknown``: perhaps after the commit.

    ``has_begun``: the server may not have noticed yet, and may still hold the claimed items. ``result`` is the result
    of the change if it took place.
    """

    def __init__(
        self, cause: Exception, *, has_begun: bool = False, is_unknown: bool = False, result: Any = None
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.has_begun = has_begun or is_unknown
        self.is_unknown = is_unknown
        self.result = result


def is_lost(error: Exception, connection: psycopg.Connection[Any] | None) -> bool:
    """Return whether an error ended the connection, or says that it is not usable."""
    if not isinstance(error, psycopg.Error):
        return False
    if connection is None or any(each.sqlstate in _GOING for each in _chain(error)):
        return True
    if connection.pgconn.pipeline_status:  # the pipeline could not be left: an answer is missing
        return True
    return connection.closed and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def _chain(error: BaseException) -> Iterator[psycopg.Error]:
    """Yield an error and those during which it was raised: psycopg may end by reporting an open pipeline."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, psycopg.Error):
            yield found
        found = found.__context__


def interrupt_amid(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """Return the interrupt that an error hides: psycopg reports that it cannot leave a block, and drops the reason.

    ``handled`` is the error that the caller was handling before.
    """
    found: BaseException | None = error
    while found is not None and found is not handled:
        if not isinstance(found, Exception):
            return found
        found = found.__context__
    return None


def first_amid(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return the error that psycopg's hide: it raises more, even an ``AssertionError``, as it undoes what it began.

    ``handled`` is the error that the caller was handling before.
    """
    while isinstance(error, (psycopg.Error, AssertionError)) and not error.__suppress_context__:
        before = error.__context__
        if before is None or before is handled:
            break
        error = before
    return error


def is_final(sqlstate: str) -> bool:
    """Return whether repeating the statement would only meet the same error of the server."""
    return sqlstate[:2] in _FINAL


def is_refused(error: psycopg.Error) -> bool:
    """Return whether a connection was refused for a reason that waiting does not cure."""
    return _REFUSED.search(str(error)) is not None


def is_answer(error: psycopg.Error) -> bool:
    """Return whether an error is what the server says, and be it that it accepts no connection."""
    return error.sqlstate is not None or "FATAL" in str(error) or is_refused(error)


def is_answered(error: Exception) -> bool:
    """Return whether an error is the server's answer to one statement that did nothing, on an intact connection."""
    return isinstance(error, psycopg.Error) and error.sqlstate is not None and error.sqlstate[:2] not in ("57", "08")


def is_undone(error: Exception) -> bool:
    """Return whether the server has undone a transaction that can succeed when repeated."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _AGAIN


def is_shut_out(error: Exception) -> bool:
    """Return whether a statement failed because its session is fenced: it divides by the number of rows it found."""
    return isinstance(error, psycopg.Error) and any(
        isinstance(each, psycopg.errors.DivisionByZero) for each in _chain(error)
    )


def is_hopeless(error: Exception) -> bool:
    """Return whether another try to connect meets the same."""
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None and is_refused(error)


def cause_of(error: Exception) -> Exception:
    """Return the error by which a connection was lost."""
    return error.cause if isinstance(error, Lost) else error


def sqlstate_of(error: Exception) -> str:
    """Return the server's code of an error, "" if it has none."""
    cause = cause_of(error)
    return (cause.sqlstate if isinstance(cause, psycopg.Error) else None) or ""


def said(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def explained(error: psycopg.Error, path: str, operation: str) -> QueueError:
    """Return our error for one of psycopg."""
    reason = error.diag.message_primary or str(error).strip() or type(error).__name__
    return ServerError(path, operation, " ".join(reason.split()), error.sqlstate or "")
