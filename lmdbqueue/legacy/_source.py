"""The values found in the files of other libraries.

Owns: the values that a reader of old files yields, the test for a complete pickle, and how a change of the source is
noticed. Law: nothing here opens a file for writing, and nothing is unpickled that names a module. Must not know: any
format, queues.
"""

import io
import os
import pickle
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmdbqueue._base.errors import SourceError

Stamp = list[list[Any]]  # for each file: its path, size, time of change in ns, inode


class Payload(NamedTuple):
    """An item in the bytes that the old library's ``dumps`` returned."""

    data: bytes
    place: str


class Value(NamedTuple):
    """An item that the old library stores unchanged: text or bytes."""

    value: str | bytes
    place: str


class Aside(NamedTuple):
    """Bytes that are not a waiting item; ``damaged``: they should have been one."""

    data: bytes
    place: str
    why: str
    damaged: bool = True


class Finished(NamedTuple):
    """An item whose consumer is done with it."""

    place: str


class Expected(NamedTuple):
    """The number of records to come, according to the library's own count; a reader yields it first."""

    records: int


Found = Expected | Payload | Value | Aside | Finished


class Source(ABC):
    """Files of another library that hold one queue; they are read once."""

    format: str
    part = ""  # the table in a database

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []  # remarks for the summary; complete after ``read``

    @abstractmethod
    def files(self) -> Sequence[str]:
        """Return the paths of all files that the queue consists of now."""

    @abstractmethod
    def read(self) -> Iterator[Found]:
        """Yield the records of the queue, in the order in which the library would return them."""

    def stamp(self) -> Stamp:
        """Return figures of the file system that change whenever the source does."""
        found = []
        for path in self.files():
            status = os.stat(path)
            found.append([path, status.st_size, status.st_mtime_ns, status.st_ino])
        return found

    def error(self, reason: str, advice: str) -> SourceError:
        """Return the error that says why it cannot be imported."""
        return SourceError(self.path, reason, advice)


def is_pickle(data: bytes) -> bool:
    """Return whether bytes are one complete pickle, without unpickling it."""
    return pickle_length(io.BytesIO(data)) == len(data)


def pickle_length(file: io.BytesIO) -> int:
    """Return the length of the pickle at the file's position, 0 if there is none; move the file behind it."""
    start = file.tell()
    try:
        for _ in pickletools.genops(file):
            pass
    except Exception:  # garbage may cause any error
        return 0
    return file.tell() - start


def plain(data: bytes) -> object:
    """Return the value pickled in ``data`` if it consists only of numbers, str, lists, dicts and the like.

    Otherwise raises some ``Exception``; no code except that of ``pickle`` itself is run.
    """
    return _Plain(io.BytesIO(data)).load()


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        message = f"{module}.{name} is not a plain value"
        raise pickle.UnpicklingError(message)
