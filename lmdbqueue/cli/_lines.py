"""Queues as JSON lines: export and import.

Owns: the form of a line. Law: an export loses no bit of an item, and runs no code of it, unless it is asked to decode;
an import is one step, all of the file or nothing. Must not know: files of other libraries, which go to ``legacy``.

A line is an object with the ``seq`` of an item, which is not kept, and one of: ``payload``, its bytes as base64; or
``item``, its decoded value as JSON.
"""

import json
import os
import pickle
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, Final

import click

from lmdbqueue._base.errors import SourceError, told
from lmdbqueue._local.follow import numbered
from lmdbqueue.cli._command import (
    NO_QUEUE,
    UNREADABLE,
    Failure,
    command,
    counted,
    name_option,
    path_argument,
    print_lines,
)
from lmdbqueue.cli._open import Form, dumps_of, existing, line_of, stored_serializer, writable_as_it_is
from lmdbqueue.cli._progress import progress

_AT_A_TIME: Final = 1_000  # lines


@command("export", example="lmdbqueue export uploads > uploads.jsonl")
@path_argument
@name_option
@click.option("--json", "form", flag_value="json", help="Decode the items, for people and other programs.")
@click.option("--trust", is_flag=True, help="Unpickle items that others may have written; it can run any code.")
def export(path: str, name: str, form: Form, *, trust: bool) -> None:
    """Print all waiting items as JSON lines.

    Nothing is removed. A line contains the bytes of an item, base64-coded; with --json its decoded value.
    """
    with existing(path, name) as queue:
        line = line_of(queue, form, trust=trust) if form else None
        left = queue.stats()
        with progress("exporting") as report:
            done = 0
            items = numbered(queue)
            while some := list(islice(items, _AT_A_TIME)):
                print_lines([_line(*entry, line) for entry in some])
                done += len(some)
                report(done, left.waiting)
    if others := left.leased + left.delayed + left.dead:
        told = f"leased, delayed or dead, so not exported: {counted(others)}; copy includes them"
        click.echo(f"lmdbqueue: {told}", err=True)


def _line(seq: int, payload: bytes, line: Callable[[bytes], bytes] | None) -> bytes:
    if line is None:
        return b'{"seq": %d, "payload": "%s"}' % (seq, b64encode(payload))
    try:
        return b'{"seq": %d, "item": %s}' % (seq, line(payload))
    except Exception as error:
        raise Failure(f"item {seq} is not JSON: {error}; without --json its bytes are exported", UNREADABLE) from error


@command("import", example="lmdbqueue import uploads.jsonl uploads")
@click.argument("file", type=click.Path(allow_dash=True))
@click.argument("path", metavar="DEST", type=click.Path())
@name_option
@click.option("--json", "form", flag_value="json", help="Store decoded items as JSON texts.  [default: as pickles]")
@click.option("--table", help="The queue to import, if another library's database has several.")
def import_(file: str, path: str, name: str, form: Form, table: str | None) -> None:
    """Import an export, or another library's queue, into DEST.

    All items are imported, or none. If FILE is -, an export is read from standard input. Decoded items are encoded by
    the queue's serializer; in a new queue as pickles, or with --json as JSON texts. Queues of python-persistent-queue,
    persist-queue, litequeue and queuelib are not changed.
    """
    if not _is_json_lines(file):
        _import_queue(file, path, name, form, table)
    elif table is not None:
        raise click.UsageError("--table is for a database of another library, but this is an export")
    else:
        click.echo(f"imported {counted(_import_lines(file, path, name, form))}")


def _import_queue(file: str, path: str, name: str, form: Form, table: str | None) -> None:
    from lmdbqueue.legacy import import_file  # noqa: PLC0415  (needs sqlite3 and more)

    loads = json.loads if form == "json" else pickle.loads
    try:
        with progress("importing") as report:
            done = import_file(file, path, name=name, progress=report, table=table, dumps=dumps_of(form), loads=loads)
    except TypeError as error:  # of json.dumps
        raise Failure(f"an item cannot be stored as JSON: {error}; nothing was imported", UNREADABLE) from error
    except SourceError as error:
        raise Failure(str(error), UNREADABLE if os.path.exists(file) else NO_QUEUE) from error
    if done.is_repeated:
        click.echo(f"{done.format}: nothing was imported, since it was imported before: {counted(done.items)}")
    else:
        click.echo(f"{done.format}: imported {counted(done.items)}")
    if done.finished:
        click.echo(f"left out, since their consumers were done with them: {counted(done.finished)}")
    if done.set_aside:
        click.echo(f"set aside, in {done.quarantine}: {counted(done.set_aside)}")
    for note in done.notes:
        click.echo(f"note: {note}")


def _import_lines(file: str, path: str, name: str, form: Form) -> int:
    imported = 0
    report_bytes = progress("importing", in_bytes=True)
    with _opened(file) as source, writable_as_it_is(path, name) as queue, report_bytes as report:
        dumps = dumps_of(form, stored_serializer(queue))
        size, done = os.fstat(source.fileno()).st_size or None, 0
        with queue.transaction():
            while lines := list(islice(source, _AT_A_TIME)):
                queue.push([_payload(line, number, dumps) for number, line in enumerate(lines, imported + 1)])
                imported += len(lines)
                done += sum(map(len, lines))
                report(done, size)
    return imported


def _payload(line: bytes, number: int, dumps: Callable[[Any], bytes]) -> bytes:
    try:
        record = json.loads(line)
        return b64decode(record["payload"], validate=True) if "payload" in record else dumps(record["item"])
    except (ValueError, TypeError, KeyError) as error:
        reason = told(error)
        raise Failure(f"line {number:,} has no item: {reason}; nothing was imported", UNREADABLE) from error


def _is_json_lines(file: str) -> bool:
    if file == "-":
        return True
    if not os.path.isfile(file):
        return os.path.exists(file) and not os.path.isdir(file)  # a pipe, from which nothing may be read in advance
    with open(file, "rb") as source:
        if source.peek(1)[:1] not in (b"{", b""):  # a queue of gigabytes may be a single line
            return False
        try:
            record = json.loads(source.readline() or b"{}")
        except ValueError:
            return False
    return isinstance(record, dict) and (not record or "item" in record or "payload" in record)


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
    else:
        with open(file, "rb") as source:
            yield source
