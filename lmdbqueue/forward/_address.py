"""What a connection to a server needs: its address, a timeout, names.

Owns: what these may be. Law: with what is accepted here, a connection that fails raises an ``OSError``, which is taken
for a server that does not answer. Must not know: protocols.

``socket``, ``ssl`` and paho refuse a name that cannot be looked up, or a timeout that is out of range, as late as the
first connection, by other errors: a forwarder would end there.
"""

import re
from typing import Any, Final

from lmdbqueue._verbs.options import Rule, check, seconds, whole

_ILLEGAL: Final = re.compile(r"[\0-\x20\x7f/?#@\[\]]")
_LONGEST: Final = 86_400.0  # seconds; sockets take 24 days at most
_MOST: Final = 65_535  # bytes of a text in a message of MQTT


def _is_host(host: str) -> bool:
    """Return whether a host can be looked up: ``socket`` and ``ssl`` encode it so."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return bool(host) and _ILLEGAL.search(host) is None


def _is_short(text: str) -> bool:
    try:
        return len(text.encode()) <= _MOST
    except UnicodeEncodeError:
        return False


_TEXT: Final = Rule(f"a text of at most {_MOST:,} bytes of UTF-8", (str,), fits=_is_short)
_RULES: Final = {
    "host": Rule("the name or address of a host", (str,), fits=_is_host),
    "port": whole("a port", 1, 65_535),
    "timeout": seconds(more_than_0=True, most=_LONGEST),
    "batch": whole("a number of items", 1),
    "topic": _TEXT,
    "client_id": _TEXT,
    **dict.fromkeys(("username", "password"), _TEXT._replace(or_none=True)),
}


def check_connection(**given: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` for an argument, by its name, that no connection can be made with."""
    check(_RULES, **given)
