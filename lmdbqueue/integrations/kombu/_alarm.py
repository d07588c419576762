"""A descriptor for an event loop, which can wait for nothing else.

Owns: the thread that waits for the directory in its stead. Law: it is readable whenever there may be messages that the
loop has not looked for. Must not know: channels, messages.

A thread sleeps on the bell of the directory, which each commit rings, and writes to a pipe: immediately when the worker
was idle, and every 10 ms at most when it is busy, since most commits are its own then.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lmdbqueue._base.errors import ClosedError, QueueError
from lmdbqueue.integrations.kombu._broker import Broker

LOOK: Final = 1.0  # seconds between two checks of a waiting connection
_APART: Final = 0.01  # seconds between two checks of an event loop, since most commits are its own


class Alarm:
    """A descriptor, readable when the directory may have messages; its thread also keeps consumers' queues alive."""

    def __init__(self, broker: Broker, put_off: Callable[[], None]) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._broker = broker
        self._put_off = put_off
        self._is_closed = False
        self._thread = threading.Thread(target=self._sleep, name="lmdbqueue-alarm", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Make it readable."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def quiet(self) -> None:
        """Make it unreadable until the next ring."""
        with suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def close(self) -> None:
        """End the thread, and free the descriptors."""
        self._is_closed = True
        self._broker.wake()
        self._thread.join(2 * LOOK)
        if not self._thread.is_alive():
            os.close(self.reader)
            os.close(self._writer)

    def _sleep(self) -> None:
        while not self._is_closed:
            try:
                ticket = self._broker.listen()
                self.ring()
                self._put_off()
                looked = time.monotonic()
                self._broker.sleep(ticket, LOOK)
                time.sleep(max(0.0, looked + _APART - time.monotonic()))
            except ClosedError:
                return
            except (QueueError, OSError):  # the loop will look, too, and get the same error
                time.sleep(LOOK)
                self.ring()
