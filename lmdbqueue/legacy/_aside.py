"""The records set aside by an import: a file of JSON lines beside the queue.

Owns: that file, ``<queue>.quarantine-<id>``. Law: under its final name it is complete and on the disk, or does not
exist. Must not know: why a record is set aside, queues.
"""

import base64
import json
import os
from contextlib import suppress
from typing import BinaryIO

from lmdbqueue._host.disk import open_private, sync_directory, sync_file, translated
from lmdbqueue.legacy._source import Aside


class AsideFile:
    """The file of one import, of ``source`` into ``queue``. Each run writes it anew under a temporary name."""

    def __init__(self, directory: str, id_: str, queue: str, source: str) -> None:
        self.path = f"{directory}.quarantine-{id_}"
        self._directory = directory
        self._queue = queue
        self._source = source
        self._file: BinaryIO | None = None

    def add(self, found: Aside) -> None:
        """Write a line."""
        place = {"queue": self._queue, "source": self._source, "place": found.place, "why": found.why}
        line = json.dumps({**place, "value": base64.b64encode(found.data).decode()})
        with translated(self.path, "setting aside"):
            if self._file is None:
                self._file = open(self.path + ".tmp", "wb", opener=self._private)  # noqa: SIM115  (closed below)
            self._file.write(line.encode() + b"\n")

    def publish(self) -> None:
        """Make the file durable, if it has a line."""
        if self._file is not None:
            with translated(self.path, "setting aside"):
                self._file.flush()
                sync_file(self._file.fileno())
                os.rename(self.path + ".tmp", self.path)
                sync_directory(os.path.dirname(self.path))

    def discard(self) -> None:
        """Remove the file unless it was published."""
        if self._file is not None:
            with suppress(OSError):  # of unflushed lines, as on a full disk
                self._file.close()
            with suppress(FileNotFoundError):
                os.unlink(self.path + ".tmp")

    def _private(self, path: str, flags: int) -> int:
        return open_private(path, flags, beside=self._directory)
