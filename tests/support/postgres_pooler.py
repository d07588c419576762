"""A pooler that gives each transaction whatever connection of the server's is free, as PgBouncer can.

It speaks as much of the protocol as that takes: it answers the start of a client itself, and passes on what comes
between a client's first message and the server's word that no transaction is under way.
"""

import os
import socket
import struct
import tempfile
import threading
from contextlib import suppress

_READY = b"Z"


class Pooler:
    """One pooler, with a thread for each client."""

    def __init__(self, server):
        self.place = tempfile.mkdtemp(prefix="lmdbqueue-pl-", dir="/tmp")
        self._target = os.path.join(server.place, ".s.PGSQL.5432")
        self._path = os.path.join(self.place, ".s.PGSQL.5432")
        self._lock = threading.Lock()
        self._free = []
        self.clients = 0  # that there were
        self._all = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(50)
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self):
        return f"postgresql://postgres@/postgres?host={self.place}"

    def close(self):
        self._listener.close()
        for each in self._all:
            each.close()
        os.unlink(self._path)
        os.rmdir(self.place)

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._all.append(client)
                self.clients += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _connected(self):
        """Return a connection that is free, or a new one, and what the server said at its start."""
        with self._lock:
            if self._free:
                return self._free.pop()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        self._all.append(server)
        start = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0client_encoding\0UTF8\0\0"
        server.sendall(struct.pack("!i", len(start) + 4) + start)
        said = b""
        while True:
            kind, body = _message(server)
            if kind == _READY:
                return server, said
            if kind != b"K":  # the key is of no use to a client
                said += _packed(kind, body)

    def _serve(self, client):
        with suppress(OSError, EOFError):
            size = struct.unpack("!i", _exactly(client, 4))[0]
            while size == 8:  # a request for encryption
                _exactly(client, 4)
                client.sendall(b"N")
                size = struct.unpack("!i", _exactly(client, 4))[0]
            _exactly(client, size - 4)
            server, said = self._connected()
            with self._lock:
                self._free.append((server, said))
            client.sendall(said + _packed(b"K", struct.pack("!ii", 1, 1)) + _packed(_READY, b"I"))
            while True:
                kind, body = _message(client)
                if kind == b"X":
                    break
                self._transact(client, kind, body)
        client.close()

    def _transact(self, client, kind, body):
        """Pass on the messages of a client until no transaction is under way."""
        server, said = self._connected()
        server.sendall(_packed(kind, body))
        while True:
            while kind not in {b"Q", b"S"}:
                kind, body = _message(client)
                server.sendall(_packed(kind, body))
            while kind != _READY:
                kind, body = _message(server)
                if kind == _READY and body == b"I":
                    with self._lock:
                        self._free.append((server, said))  # before the client knows that
                client.sendall(_packed(kind, body))
            if body == b"I":
                return
            kind, body = _message(client)
            server.sendall(_packed(kind, body))


def _packed(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def _message(source):
    kind = _exactly(source, 1)
    return kind, _exactly(source, struct.unpack("!i", _exactly(source, 4))[0] - 4)


def _exactly(source, n):
    found = b""
    while len(found) < n:
        piece = source.recv(n - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found
