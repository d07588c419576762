"""What is found in the files of another library, whichever it is.

Owns: the values that a reader of old files gives, what makes a payload a whole pickle, and how a change of the
source is noticed. Law: nothing here opens a file for writing, and nothing unpickles with the names of modules.
Must not know: any format, queues.
"""

import io
import os
import pickle
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmdbqueue._errors import SourceError

Stamp = list[list[Any]]  # for each file: its path, size, time of change in ns, inode


class Payload(NamedTuple):
    """An item as the ``dumps`` of the old library left it."""

    data: bytes
    place: str


class Value(NamedTuple):
    """An item that the old library keeps as it is: text or bytes."""

    value: str | bytes
    place: str


class Aside(NamedTuple):
    """Bytes that are no item, or none that waits; ``damaged``: they should have been one."""

    data: bytes
    place: str
    why: str
    damaged: bool = True


class Finished(NamedTuple):
    """An item whose consumer is done with it."""

    place: str


class Expected(NamedTuple):
    """How many records there are to come, as the library itself would say; the first that a reader gives."""

    records: int


Found = Expected | Payload | Value | Aside | Finished


class Source(ABC):
    """Files of another library that hold one queue; they are read once."""

    format: str
    part = ""  # the table in a database

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []  # what a reader of the summary should know; complete after ``read``

    @abstractmethod
    def files(self) -> Sequence[str]:
        """Return the paths of all files that the queue is made of now."""

    @abstractmethod
    def read(self) -> Iterator[Found]:
        """Yield what is in the queue, in the order in which the library would give it."""

    def stamp(self) -> Stamp:
        """Return what the file system changes whenever the source changes."""
        found = []
        for path in self.files():
            status = os.stat(path)
            found.append([path, status.st_size, status.st_mtime_ns, status.st_ino])
        return found

    def error(self, reason: str, advice: str) -> SourceError:
        """Return the error that says why it cannot be imported."""
        return SourceError(self.path, reason, advice)


def is_pickle(data: bytes) -> bool:
    """Return whether bytes are one whole pickle, without unpickling it."""
    return pickle_length(io.BytesIO(data)) == len(data)


def pickle_length(file: io.BytesIO) -> int:
    """Return how long the pickle is that begins where ``file`` stands, 0 if none does; end behind it."""
    start = file.tell()
    try:
        for _ in pickletools.genops(file):
            pass
    except Exception:  # of many kinds, and garbage may cause any of them
        return 0
    return file.tell() - start


def plain(data: bytes) -> object:
    """Return what is pickled in ``data`` if it is made of numbers, str, lists, dicts and the like only.

    Raises some ``Exception`` if not; no code but that of ``pickle`` itself is run.
    """
    return _Plain(io.BytesIO(data)).load()


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        message = f"{module}.{name} is not a plain value"
        raise pickle.UnpicklingError(message)
