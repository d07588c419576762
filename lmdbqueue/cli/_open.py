"""Opening a queue from the command line: only an existing one, and with the format of its items.

Owns: the options that say how items are read, whom to trust. Law: only commands that push create a queue, so a mistyped
path or name creates none elsewhere; no pickle that others may have written is loaded, unless the user permits it. Must
not know: what a command does with the queue.

It is the one file of the command line that looks below the verbs, for facts that they do not show: whether a queue
exists, and its options.

Forms of items. A queue whose serializer has a name is written and read with that serializer. For other queues only
their users know the form: pickles by default, JSON or bytes with ``--json`` and ``--bytes``. When reading, ``--json``
also accepts pickles, and prints them as JSON: a pickle begins with byte 0x80, a JSON text never does.
"""

import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Literal

import click

from lmdbqueue._base.errors import FormatError, OptionError
from lmdbqueue._base.format import Options, check_name
from lmdbqueue._base.format import serializer as serializer_of
from lmdbqueue._host.directory import absolute
from lmdbqueue._host.strangers import strange_in
from lmdbqueue._lmdb.options_record import options_of
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._local.sharing import open_environment
from lmdbqueue._verbs.serializers import pair_of
from lmdbqueue.cli._command import NO_QUEUE, UNTRUSTED, F, Failure
from lmdbqueue.cli._progress import progress

Form = Literal["json", "bytes", "raw"] | None  # None: pickle
Line = Callable[[bytes], bytes]  # makes a printed line of a payload

_PICKLE: Final = b"\x80"
_PATIENCE: Final = 2.0  # seconds
_OF_BYTES: Final = {"dumps": bytes, "loads": bytes}


# --- options


def form_options(fn: F) -> F:
    """Add the options for the form of the items to write."""
    for option in (
        click.option("--bytes", "form", flag_value="bytes", help="Items are bytes, stored unchanged."),
        click.option("--json", "form", flag_value="json", help="Items are JSON, stored in the queue's format."),
    ):
        fn = option(fn)
    return fn


def reading_options(fn: F) -> F:
    """Add the options for reading and printing items."""
    for option in (
        click.option("--trust", is_flag=True, help="Unpickle items that others may have written; it can run any code."),
        click.option("--raw", "form", flag_value="raw", help="Print undecoded bytes in Python's notation."),
        click.option("--bytes", "form", flag_value="bytes", help="Print undecoded bytes."),
        click.option("--json", "form", flag_value="json", help="Print JSON."),
    ):
        fn = option(fn)
    return fn


# --- opening


def existing(path: str, name: str, loads: Callable[[bytes], Any] = bytes) -> PersistentQueue[Any]:
    """Open the queue ``name`` at ``path``, if it exists."""
    check_name(name)
    with _environment(path) as (options, names):
        if name not in names:
            there = ", ".join(names) or "none"
            raise Failure(f"there is no queue {name!r} in {path!r}; existing ones: {there}", NO_QUEUE)
        return _opened(path, options, name=name, loads=loads)


def readable(path: str, name: str, form: Form, *, trust: bool) -> PersistentQueue[bytes]:
    """Open an existing queue; its items are the lines to print."""
    queue = existing(path, name)
    try:
        queue.loads = line_of(queue, form, trust=trust)
    except BaseException:
        queue.close()
        raise
    return queue


def writable(path: str, name: str, form: Form) -> PersistentQueue[Any]:
    """Open a queue to push items of a form; create it with the serializer of that form if it is missing."""
    try:
        return _for_writing(path, name, serializer=form or "pickle")
    except OptionError as error:
        if error.option != "serializer":
            raise
        queue = _for_writing(path, name, dumps=bytes)
        queue.dumps = dumps_of(form, str(error.stored))
        return queue


def writable_as_it_is(path: str, name: str, codec: Mapping[str, Any] = _OF_BYTES) -> PersistentQueue[Any]:
    """Open a queue to push payloads; create it with that codec, by default without a named serializer."""
    return _for_writing(path, name, **codec)


def codec_of(path: str, name: str) -> Mapping[str, Any]:
    """Return how to open a queue for the payloads of an existing one: with its serializer, if that has a name."""
    with existing(path, name) as queue:
        serializer = stored_serializer(queue)
    with suppress(ImportError):  # a package that only the queue's programs need
        if pair_of(serializer) is not None:
            return {"serializer": serializer}
    return _OF_BYTES


def _for_writing(path: str, name: str, **codec: Any) -> PersistentQueue[Any]:
    try:
        options = options_of(absolute(path))
    except FormatError:
        options = Options()  # PersistentQueue reports what is there instead, if anything
    return _opened(path, options, name=name, **codec)


def names_in(path: str) -> list[str]:
    """Return the names of the queues at ``path``."""
    with _environment(path) as (_, names):
        return names


@contextmanager
def _environment(path: str) -> Iterator[tuple[Options, list[str]]]:
    """Yield the options and the names of the queues at ``path``, and keep it open for the block."""
    if not os.path.exists(path):
        raise Failure(f"there is no queue at {path!r}: give the path of a queue's directory", NO_QUEUE)
    options = options_of(absolute(path))
    with _told_if_it_lasts(), progress("verifying", in_bytes=True) as report:
        environment = open_environment(absolute(path), options, report)
    try:
        with _told_if_it_lasts(), environment.exclusive() as (generation, txn):
            names = sorted(generation.names(txn))
        yield options, names
    finally:
        environment.release()


@contextmanager
def _told_if_it_lasts() -> Iterator[None]:
    """If opening a queue takes long, print why: a process stopped in a write delays it indefinitely."""
    reasons = "another process is in the middle of a write, or the file is being verified after a power cut"
    timer = threading.Timer(_PATIENCE, click.echo, [f"lmdbqueue: opening takes a while: {reasons}"], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _opened(path: str, options: Options, **more: Any) -> PersistentQueue[Any]:
    with _told_if_it_lasts(), progress("verifying", in_bytes=True) as report:
        return PersistentQueue(
            path, durability=options.durability, interval=None, checksum=options.checksum, progress=report, **more
        )


# --- items


def line_of(queue: PersistentQueue[Any], form: Form, *, trust: bool) -> Line:
    """Return the function that makes a line of a payload; refuse pickles that cannot be trusted."""
    engine = local_engine_of(queue)
    serializer = stored_serializer(queue)
    if form == "bytes" or (form is None and serializer == "bytes"):
        return bytes
    if form == "raw":
        return lambda payload: repr(payload).encode()
    if serializer in ("json", "msgpack", "msgspec") and (pair := pair_of(serializer)):
        return partial(_loaded_line, pair[1], to_json if form == "json" else _text)
    stranger = "" if trust else strange_in(engine.path)
    if form == "json":
        return partial(_json_line, stranger=stranger)
    if stranger:
        raise Failure(
            f"{stranger}, who can run code here through pickle: --raw shows the bytes, --trust unpickles them",
            UNTRUSTED,
        )
    return _line


def _line(payload: bytes) -> bytes:
    try:
        item = _unpickled(payload)
    except Exception as error:
        if payload.startswith(_PICKLE):
            raise
        message = "it is not a pickle; if it is JSON or bytes, use --json or --bytes"
        raise ValueError(message) from error
    return _text(item)


def _loaded_line(loads: Callable[[bytes], Any], line: Callable[[Any], bytes], payload: bytes) -> bytes:
    return line(loads(payload))


def _text(item: object) -> bytes:
    return (item if isinstance(item, str) else repr(item)).encode(errors="backslashreplace")


def _json_line(payload: bytes, *, stranger: str) -> bytes:
    return to_json(_json_item(payload, stranger))


def _json_item(payload: bytes, stranger: str) -> object:
    if not payload.startswith(_PICKLE):
        return json.loads(payload)
    if stranger:
        message = f"it is a pickle, and {stranger}: --trust unpickles it, --raw shows the bytes"
        raise ValueError(message)
    return _unpickled(payload)


def _unpickled(payload: bytes) -> object:
    try:
        return pickle.loads(payload)  # noqa: S301  (nobody else could write it, or the user trusts them)
    except (ImportError, AttributeError) as error:
        message = f"{error}; if it is a class of your program, set PYTHONPATH to where that is; --raw shows bytes"
        raise ValueError(message) from error


def to_json(item: object) -> bytes:
    """Return an item as JSON, on one line."""
    return json.dumps(item, ensure_ascii=False).encode(errors="backslashreplace")  # lone surrogates become JSON escapes


def stored_serializer(queue: PersistentQueue[Any]) -> str:
    """Return the name of a queue's serializer; some other text if it was created with a pair of functions."""
    return serializer_of(local_engine_of(queue).record)


def dumps_of(form: Form, serializer: str = "") -> Callable[[Any], bytes]:
    """Return the function that makes a payload of an item, in the form that consumers of this serializer read."""
    if form == "bytes":
        return bytes
    if serializer == "bytes":
        return to_json if form == "json" else str.encode
    if (pair := pair_of(serializer)) is not None:
        return pair[0]
    return to_json if form == "json" else pickle.dumps


def item_of(line: bytes, form: Form) -> object:
    """Return the item that a line or an argument represents. Raises ``ValueError``."""
    return line if form == "bytes" else json.loads(line) if form == "json" else line.decode()
