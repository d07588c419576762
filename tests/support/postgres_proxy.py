"""A proxy that loses connections, at a moment that a test chooses.

It passes on what comes, piece by piece, between a socket of its own (Unix, or by the network) and the server's. Armed,
it counts the pieces in one direction; the piece number ``at`` meets its fate:

- ``request``: what the client sent is dropped, and the connection is closed on both sides
- ``reply``: the same for what the server sent, so what the client asked for was done
- ``late``: the client's side is closed, and what it had sent reaches the server a while later
- ``lost request``, ``lost reply``: it goes nowhere, nor does anything on that connection after it, the end of either
  side neither, as where a network has forgotten it; the systems of both sides hear no silence
"""

import ctypes
import os
import selectors
import socket
import struct
import tempfile
import threading
import time
from contextlib import suppress

LATE = 0.04  # seconds
_SO_ATTACH_FILTER = 26  # of Linux
_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # a filter that drops each packet


class Proxy:
    """One proxy, with a thread for each connection."""

    def __init__(self, server, *, is_near=True):
        self.place = tempfile.mkdtemp(prefix="lmdbqueue-px-", dir="/tmp")
        self.has_cut = False
        self._target = os.path.join(server.place, ".s.PGSQL.5432")
        self._path = os.path.join(self.place, ".s.PGSQL.5432")
        self._lock = threading.Lock()
        self._mode = ""
        self._left = 0
        self._is_down = False
        self._pairs = []
        self._is_near = is_near
        self._listener = socket.socket(socket.AF_UNIX if is_near else socket.AF_INET)
        self._listener.bind(self._path if is_near else ("127.0.0.1", 0))
        self._listener.listen(50)
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self):
        if self._is_near:
            return f"postgresql://postgres@/postgres?host={self.place}"
        return f"postgresql://postgres@127.0.0.1:{self._listener.getsockname()[1]}/postgres"

    def arm(self, mode, at, *, then_down=False):
        """Let the piece number ``at`` from now meet its fate; ``then_down``: nobody can connect afterwards."""
        with self._lock:
            self._mode, self._left, self._then_down, self.has_cut = mode, at, then_down, False

    def go_down(self):
        """Close all connections, and let nobody connect until ``disarm``."""
        with self._lock:
            self._mode, self._is_down = "", True
        for pair in self._pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def fall_silent(self):
        """Let nothing be heard on the connections of now any more, as of a host that vanished; new ones are served."""
        code = ctypes.create_string_buffer(_NOTHING)
        program = struct.pack("HL", 1, ctypes.addressof(code))
        for client, _ in self._pairs:
            with suppress(OSError):  # it is closed
                client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def disarm(self):
        with self._lock:
            self._mode, self._is_down = "", False

    def close(self):
        self._listener.close()
        for pair in self._pairs:
            for each in pair:
                with suppress(OSError):
                    each.close()
        with suppress(OSError):
            if self._is_near:
                os.unlink(self._path)
            os.rmdir(self.place)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_down:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client, server):
        with suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    piece = key.fileobj.recv(1 << 20)
                    fate = self._fate("reply" if key.fileobj is server else "request") if piece else ""
                    if fate == "late":
                        client.close()
                        time.sleep(LATE)
                        server.sendall(piece)
                        time.sleep(LATE)
                    if fate.startswith("lost"):
                        self._swallow(client)
                        return
                    if fate or not piece:
                        client.close()
                        server.close()
                        return
                    key.data.sendall(piece)

    def _swallow(self, client):
        """Pass nothing on, and let the server's side be as it is."""
        with suppress(OSError):
            while client.recv(1 << 20):
                pass
        client.close()

    def _fate(self, direction):
        with self._lock:
            if not self._mode or direction != ("reply" if self._mode.endswith("reply") else "request"):
                return ""
            self._left -= 1
            if self._left:
                return ""
            mode, self._mode, self.has_cut = self._mode, "", True
            self._is_down = self._then_down
            return mode
