"""Items as HTTP requests.

Owns: the meaning of each answer. Law: a request that was not answered with 2xx may have been accepted all the same, so
each carries a key that stays the same whenever the same items are sent. Must not know: where items come from.

============================  ===============================================================================
answer                        the fate of the request's items
============================  ===============================================================================
2xx                           done
413, and other 4xx            sent again in halves; an item that is refused alone becomes a dead letter with the
                              status and the answer's text
429, 503                      sent again, after ``Retry-After`` if that is given and not 0
401, 407, 408, 421, 425       sent again: they concern the sender or the moment, not the items
3xx, 5xx, none, a broken one  sent again, after a pause that doubles each time
============================  ===============================================================================

The headers of an item that has a request of its own become headers of that request, unchanged, such as ``traceparent``.
Left out are those that HTTP cannot carry (a name that is not a token, a value that is not printable ASCII), those that
belong to the connection or to the body, and those that the target sets itself: an item never changes how, or with whose
rights, it is sent. A body of several items contains headers only if ``encode`` puts them there.
"""

import http.client
import io
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from lmdbqueue._verbs.batch import AwayError, Batch, Envelope, Mark, Origin, RefusedError, Target
from lmdbqueue.forward._address import check_connection
from lmdbqueue.forward._bodies import (
    CannotEncodeError,
    Encode,
    as_json,
    as_json_lines,
    as_json_with_headers,
    encoded,
    encoder_of,
    load,
)

_DONE, _MOVED, _REFUSED = 2, 3, 4  # hundreds of a status
_SENDER: Final = {401, 407, 408, 421, 425, 429}  # 4xx that do not concern the items
_TYPES: Final[dict[Encode, str]] = {
    as_json: "application/json",
    as_json_with_headers: "application/json",
    as_json_lines: "application/x-ndjson",
}
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110
_VALUE: Final = re.compile(r"(?:[!-~](?:[ \t!-~]*[!-~])?)?")  # nothing that servers interpret differently
_SENDING: Final = "accept-encoding content-encoding content-length expect host http2-settings idempotency-key"
_CONNECTION: Final = "connection keep-alive proxy-connection te trailer transfer-encoding upgrade"
_PROXY: Final = "proxy-authenticate proxy-authorization"
_NOT_OF_ITEMS: Final = frozenset(f"{_SENDING} {_CONNECTION} {_PROXY}".split())  # they control how a request is sent
_TOLD: Final = 500  # characters of an answer that a reason quotes
_READ: Final = 1 << 16  # bytes of an answer that are read; if it is longer, the connection is closed
_LONGEST: Final = 3600.0  # seconds that ``Retry-After`` may ask for


class HttpTarget(Target):
    """Send items as POST requests to a URL, in order, each at least once, one request at a time.

    Each request has a header ``Idempotency-Key``, made of the uuid of the queue's directory and the numbers of the
    items: a server that remembers keys takes each item once. With ``batch=1`` the key is that of an item; with more
    it is that of a batch, and after a crash the same items may come in other batches.

    With ``batch=1`` the headers of an item are headers of its request, such as ``traceparent``. Left out are those that
    HTTP cannot carry (a name that is not a token, a value that is not printable ASCII), those of the connection or the
    body (``Host``, ``Content-Length``, ...), and those that this target sets or that you gave in ``headers``. In larger
    batches headers are not sent, unless ``encode`` puts them into the body, as ``as_json_with_headers`` does.

    Args:
        url: An ``http`` or ``https`` address; ``user:password@`` in it becomes basic authentication.
        headers: More headers for each request; they replace those of the target and of the items.
        encode: Makes the body, of one item with ``batch=1``, else of a list: ``as_json`` (the default),
            ``as_json_lines``, ``as_json_with_headers``, ``as_bytes``, or a function of your own, which returns bytes,
            or a str, which is sent as UTF-8. If it needs a second argument, it gets the ``Envelope`` of the item
            (number, headers, time of push), or a list of them. If it raises, or returns anything else, the item is
            refused.
        batch: The maximum number of items in a request.
        max_bytes: The maximum size of the payloads of a request; a single item may exceed it.
        timeout: Seconds to wait for the status and the headers of an answer; after that the server counts as
            unreachable.
        loads: Makes the item from a payload: ``load`` (the default) reads pickles and JSON texts; ``bytes`` anything.
        context: For ``https``; None: certificates are verified against those that the system trusts.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        encode: Encode = as_json,
        batch: int = 1,
        max_bytes: int | None = None,
        timeout: float = 10.0,
        *,
        loads: Callable[[bytes], Any] = load,
        context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = url.rpartition("@")[2]  # without a password
            message = f"a URL must begin with http:// or https:// and have a host, not {shown!r}"
            raise ValueError(message)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not _VALUE.fullmatch(path) or " " in path or "\t" in path:
            message = f"the path of a URL must be printable ASCII, not {path!r}: quote it with urllib.parse.quote"
            raise ValueError(message)
        host, port = parts.hostname, _port_of(parts)
        check_connection(host=host, port=port, timeout=timeout, batch=batch)
        self.limit = self._size = batch
        self.max_bytes = max_bytes
        self._encode = encoder_of(encode)
        self._loads = loads
        self._path = path
        self._timeout = timeout
        self._headers = {"Content-Type": _TYPES.get(encode, "application/octet-stream"), "User-Agent": "lmdbqueue"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        given = dict(headers or {})
        for name, value in given.items():
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                message = f"HTTP cannot carry the header {name!r}: its name is a token, its value printable ASCII"
                raise ValueError(message)
        names = {name.lower() for name in given}
        self._headers = {name: value for name, value in self._headers.items() if name.lower() not in names} | given
        self._reserved = _NOT_OF_ITEMS.union(map(str.lower, self._headers))
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._connection.response_class = _Timely

    def last(self, origin: Origin) -> Mark | None:
        """Return None: a server keeps no mark.

        Args:
            origin: The queue that the items come from.
        """
        del origin
        return None

    def store(self, batch: Batch) -> None:
        """Send the items.

        Args:
            batch: The items and their mark.

        Raises:
            RefusedError: The server will never accept some of the items.
            AwayError: The server did not accept the items this time.
        """
        stored: list[int] = []
        refused: dict[int, str] = {}
        whole = batch.enveloped()
        left = [whole[at : at + self._size] for at in range(0, len(whole), self._size)][::-1]
        while left:
            some = left.pop()
            answer = self._try(batch.origin, [envelope for envelope, _ in some], [payload for _, payload in some])
            if answer.is_done:
                stored += [envelope.seq for envelope, _ in some]
            elif not answer.is_refusal:
                raise AwayError(answer.text, retry_after=answer.pause, stored=stored, refused=refused)
            elif len(some) == 1:
                refused[some[0][0].seq] = answer.text
            else:
                half = len(some) // 2
                left += [some[half:], some[:half]]
        if refused:
            raise RefusedError(refused, stored)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _try(self, origin: Origin, envelopes: Sequence[Envelope], payloads: Sequence[bytes]) -> "_Answer":
        """Send one request; return its fate."""
        try:
            body = encoded(lambda: self._body(envelopes, payloads))
        except CannotEncodeError as error:
            return _Answer(None, str(error), is_refusal=True)
        first, last = envelopes[0].seq, envelopes[-1].seq
        numbers = str(first) if self._size == 1 else f"{first}-{last}-{len(envelopes)}"
        headers = {"Idempotency-Key": f"{origin.uuid}-{quote(origin.name, safe='')}-{numbers}", **self._headers}
        if self._size == 1:
            headers.update(self._sendable(envelopes[0].headers))
        is_used = self._connection.sock is not None
        try:
            try:
                return self._post(body, headers)
            except (ConnectionError, http.client.BadStatusLine):
                self._connection.close()
                if not is_used:
                    raise
                return self._post(body, headers)  # the server had closed the connection since the last request
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return _Answer(None, f"{type(error).__name__}: {error}")

    def _sendable(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of an item that its request can carry."""
        return {
            name: value
            for name, value in headers.items()
            if name.lower() not in self._reserved and _NAME.fullmatch(name) and _VALUE.fullmatch(value)
        }

    def _body(self, envelopes: Sequence[Envelope], payloads: Sequence[bytes]) -> bytes | str:
        items = [self._loads(payload) for payload in payloads]  # not by a map, which takes a StopIteration for its end
        return self._encode(items[0], envelopes[0]) if self._size == 1 else self._encode(items, list(envelopes))

    def _post(self, body: bytes, headers: dict[str, str]) -> "_Answer":
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._timeout)  # the last answer had less
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        text = _start_of(answer)
        if not answer.isclosed():
            self._connection.close()
        told = " ".join(text.decode("utf-8", "replace").split())[:_TOLD] or answer.reason
        kind = answer.status // 100
        if kind == _MOVED:
            told = f"it is at {answer.headers.get('Location')}: give that address"
        return _Answer(
            _seconds(answer.headers.get("Retry-After")),
            f"{answer.status} {told}",
            is_done=kind == _DONE,
            is_refusal=kind == _REFUSED and answer.status not in _SENDER,
        )


class _Answer(NamedTuple):
    """The fate of a request: done, refused, or to be sent again."""

    pause: float | None  # seconds to wait, as the server asked
    text: str
    is_done: bool = False
    is_refusal: bool = False


class _Timely(http.client.HTTPResponse):
    """An answer that has the timeout of its connection in all, not for each of its parts."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Parts(sock, self.fp))


class _Parts(io.RawIOBase):
    """The parts of an answer, until its time is over."""

    def __init__(self, sock: socket.socket, file: io.BufferedReader) -> None:
        super().__init__()
        self._socket = sock
        self._file = file
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            message = "timed out"
            raise TimeoutError(message)
        self._socket.settimeout(left)
        return self._file.raw.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _start_of(answer: http.client.HTTPResponse) -> bytes:
    """Return the start of an answer's text, or what comes of it in time: a stream may never end."""
    text = b""
    with suppress(OSError):
        if answer.length is not None:
            return answer.read(_READ)
        while len(text) < _READ and (part := answer.read1(_READ - len(text))):
            text += part
    return text


def _port_of(parts: SplitResult) -> int:
    """Return the port of a URL; http.client would take a part of an IPv6 address for it if it was given none."""
    usual = http.client.HTTPS_PORT if parts.scheme == "https" else http.client.HTTP_PORT
    return usual if parts.port is None else parts.port


def _seconds(after: str | None) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, as a number or a date."""
    if after is None:
        return None
    with suppress(ValueError, OverflowError):  # a header may contain anything, such as a superscript digit
        if after.strip().isdigit():
            return min(float(after), _LONGEST)
        return min(max(0.0, parsedate_to_datetime(after).timestamp() - time.time()), _LONGEST)
    return None
