"""A message as an item of a queue.

Owns: its bytes, the options of its push, its delivery tag. Must not know: channels, LMDB.

Choices that kombu and Celery force:

- *Priorities* are 0 to 9, and higher ones leave sooner, as with RabbitMQ (Redis has it the other way round).
- *Eta*: Celery's worker takes a message that is due later, and holds it until then. One that is due in more than a
  minute stays in the queue until a minute before that, where no worker's death affects it.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

from kombu.utils.json import dumps, loads

from lmdbqueue._base.errors import told

_SOONEST: Final = 0.001  # seconds after which a message may expire
_LATEST: Final = 100 * 365 * 86_400.0  # seconds after which one may expire or be due, the most that a push accepts
_EARLY: Final = 60.0  # seconds before its eta at which a worker gets a message

_tags: Final = count(1)


def stored(message: Any) -> bytes:
    """Return a message as bytes."""
    return str(dumps(message)).encode()


def message_of(payload: bytes) -> Any:
    """Return the message stored in ``payload``; raise ``ValueError`` if there is none."""
    try:
        message = loads(payload)
        message["properties"]["delivery_info"]["redelivered"] = False
    except Exception as error:
        text = f"it is not a message: {told(error)}"
        raise ValueError(text) from error
    return message


def how_to_push(message: Any, priority: int, ttl: float | None) -> dict[str, Any]:
    """Return the options with which a message is pushed; ``ttl``: seconds that a message of its queue lives."""
    how: dict[str, Any] = {"priority": -priority}
    ends = [float(each) / 1000 for each in (message["properties"].get("expiration"),) if each]
    if ttl is not None:
        ends.append(ttl)
    if ends:
        how["expires"] = min(max(min(ends), _SOONEST), _LATEST)
    eta = (message.get("headers") or {}).get("eta")
    if isinstance(eta, str):
        with suppress(ValueError):
            due = datetime.fromisoformat(eta)
            delay = (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp() - time.time() - _EARLY
            if delay > 0:
                how["delay"] = min(delay, _LATEST)
    return how


def tagged(message: Any, attempts: int) -> Any:
    """Return a message with a delivery tag, as it is delivered for the ``attempts``-th time."""
    properties = message["properties"]
    properties["delivery_tag"] = f"{next(_tags)}"
    properties["delivery_info"]["redelivered"] = attempts > 1
    return message
