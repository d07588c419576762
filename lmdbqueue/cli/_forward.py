"""The command ``forward``: it drains a queue into a central one, another directory, a URL or a topic.

Owns: what the command prints. Law: only the last line goes to standard output. Must not know: how items are forwarded.
"""

import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click

from lmdbqueue._host.directory import absolute
from lmdbqueue._host.strangers import strange_in
from lmdbqueue._local.source import QueueSource, ReaderSource
from lmdbqueue._verbs.batch import Target
from lmdbqueue.cli._command import NO_QUEUE, USAGE, Failure, command, counted, header_of, name_option, path_argument
from lmdbqueue.cli._open import Form, codec_of, writable_as_it_is
from lmdbqueue.cli._progress import progress
from lmdbqueue.forward import (
    Forwarded,
    Forwarder,
    HttpTarget,
    MqttTarget,
    QueueTarget,
    as_bytes,
    as_json,
    as_json_with_headers,
    load,
)
from lmdbqueue.forward._bodies import Encode

_DATABASES: Final = ("postgresql", "postgres")
_HTTP: Final = ("http", "https")
_MQTT: Final = ("mqtt", "mqtts")
_SCHEMES: Final = ("file", *_DATABASES, *_HTTP, *_MQTT)
_HAVE: Final = {  # the schemes with which an option has an effect
    "--to": ("file", *_DATABASES),
    "--header": _HTTP,
    "--qos": _MQTT,
    **dict.fromkeys(("--bytes", "--with-headers", "--trust"), (*_HTTP, *_MQTT)),
}


@command("forward", example="lmdbqueue forward spool postgresql://central/app --name jobs --follow")
@path_argument
@click.argument("url")
@name_option
@click.option("--to", default="", metavar="NAME", help="The name of the target queue.  [default: the same]")
@click.option("--reader", default="", metavar="READER", help="Drain this named reader, created if it is missing.")
@click.option("--batch", type=click.IntRange(min=1), help="Items of a batch, at most.  [default: 1000, with HTTP 1]")
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=8 << 20,
    metavar="N",
    help="Bytes of a batch, at most.  [default: 8 MiB]",
)
@click.option("--follow", is_flag=True, help="Wait for more items.")
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="With --follow: let each batch fill for this time.",
)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Another header of HTTP requests.")
@click.option("--qos", type=click.IntRange(0, 2), help="QoS of MQTT messages.  [default: 1]")
@click.option("--bytes", "form", flag_value="bytes", help="Send the stored bytes over HTTP and MQTT.  [default: JSON]")
@click.option("--with-headers", is_flag=True, help="Send JSON with the number, time and headers of each item.")
@click.option("--trust", is_flag=True, help="Unpickle items that others may have written; it can run any code.")
def forward(
    path: str,
    url: str,
    *,
    name: str,
    reader: str,
    batch: int | None,
    max_bytes: int,
    follow: bool,
    linger: float,
    **how: Any,
) -> None:
    """Drain a queue into PostgreSQL, a directory, HTTP or MQTT.

    URL is postgresql://, file:///DIRECTORY, http://, https://, mqtt://HOST/TOPIC or mqtts://HOST/TOPIC. Items arrive in
    order, even if processes are killed meanwhile: each exactly once in a queue, at least once elsewhere. Their headers
    become headers of requests or user properties of messages. While the target does not answer, the command tries
    again, and shows since when. Refused items become dead letters. SIGTERM ends it cleanly.
    """
    if linger and not follow:
        raise click.UsageError("--linger needs --follow: without it, nothing waits for more items.")
    try:
        target = _target(path, url, name, batch, **how)
        opened = ReaderSource(path, name, reader) if reader else QueueSource(path, name)
        with closing(opened) as source, progress("forwarding") as report:

            def show(now: Forwarded) -> None:
                report(now.items, now.items + now.waiting, _away(now))

            forwarder = Forwarder(
                source,
                target,
                batch=batch or 1000,
                max_bytes=max_bytes,
                linger=linger,
                follow=follow,
                progress=show,
            )
            done = forwarder.run()
    except KeyError as error:
        raise Failure(f"there is no queue {name!r} in {path}", NO_QUEUE) from error
    batches = "1 batch" if done.batches == 1 else f"{done.batches:,} batches"
    told = f"{path}: {counted(done.items)} in {batches}; failures of the target: {done.failures:,}"
    refused = f"; refused, now dead letters: {done.refused:,}" if done.refused else ""
    click.echo(told + refused + (f", {_away(done)}" if _away(done) else ""))


def _target(
    path: str,
    url: str,
    name: str,
    batch: int | None,
    *,
    to: str,
    headers: tuple[str, ...],
    qos: int | None,
    form: Form,
    with_headers: bool,
    trust: bool,
) -> Target:
    """Return the target that a URL names."""
    if with_headers and form == "bytes":
        raise click.UsageError("--with-headers sends JSON, but --bytes sends the stored bytes: use one of them.")
    scheme = _scheme_of(url)
    _refuse_without_effect(
        scheme,
        {
            "--to": bool(to),
            "--header": bool(headers),
            "--qos": qos is not None,
            "--bytes": form is not None,
            "--with-headers": with_headers,
            "--trust": trust,
        },
    )
    codec = codec_of(path, name)  # a missing queue is told before anything of the target
    if scheme == "file":
        return QueueTarget(partial(writable_as_it_is, unquote(urlsplit(url).path), to or name, codec))
    if scheme in (*_HTTP, *_MQTT):
        stranger = "" if trust or form == "bytes" else strange_in(absolute(path))
        loads = bytes if form == "bytes" else partial(_loaded, stranger=stranger)
        encode: Encode = as_bytes if form == "bytes" else as_json_with_headers if with_headers else as_json
        try:
            if scheme in _HTTP:
                given = dict(map(header_of, headers))
                return HttpTarget(url, given, encode, batch or 1, loads=loads)
            return _broker(url, encode=encode, loads=loads, qos=1 if qos is None else qos, batch=batch or 1000)
        except ValueError as error:
            raise Failure(str(error), USAGE) from error
    try:
        from lmdbqueue.postgres import PostgresQueue, PostgresTarget  # noqa: PLC0415  (needs psycopg)
    except ImportError as error:
        raise Failure("forward needs psycopg: pip install 'lmdbqueue-persistent[postgres]'", USAGE) from error

    def there() -> PostgresQueue[Any]:
        return PostgresQueue(url, to or name, **codec, patience=1.0)

    return PostgresTarget(there)


def _scheme_of(url: str) -> str:
    """Return the scheme of a URL that names a target."""
    scheme = urlsplit(url).scheme
    if scheme in _SCHEMES:
        return scheme
    begins = url.partition(":")[0]  # the rest may have a password
    raise click.UsageError(f"URL begins with postgresql, file, http, https, mqtt or mqtts, not with {begins!r}.")


def _refuse_without_effect(scheme: str, given: Mapping[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given and scheme not in _HAVE[option]:
            raise click.UsageError(f"{option} has no effect with {scheme}://.")


def _broker(url: str, **how: Any) -> MqttTarget:
    if find_spec("paho") is None:
        raise Failure("forward to a broker needs paho-mqtt: pip install 'lmdbqueue-persistent[mqtt]'", USAGE)
    parts = urlsplit(url)
    is_secret = parts.scheme == "mqtts"
    return MqttTarget(
        parts.hostname or "localhost",
        parts.port or (8883 if is_secret else 1883),
        topic=unquote(parts.path.removeprefix("/")),
        tls=ssl.create_default_context() if is_secret else None,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        **how,
    )


def _loaded(payload: bytes, *, stranger: str) -> object:
    if stranger and payload.startswith(b"\x80"):
        message = f"it is a pickle, and {stranger}: --trust unpickles it, --bytes sends the bytes"
        raise ValueError(message)
    return load(payload)


def _away(now: Forwarded) -> str:
    """Say since when the target has been unreachable, if it is."""
    if now.away_since is None:
        return ""
    return time.strftime("the target has been away since %H:%M:%S", time.localtime(now.away_since))
