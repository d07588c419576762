"""The commands for items: push, peek, pop, delete, follow, and dead.

Owns: what they read from arguments and pipes, and what they print. Law: an item is removed only after it was printed
and flushed to the pipe; lines of a pipe are stored as they arrive. Must not know: files.
"""

import os
import select
import sys
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeVar

import click

from lmdbqueue._base.errors import CorruptItemError, DecodeError, QueueError, told
from lmdbqueue._local.follow import Follower, described
from lmdbqueue._local.queue import PersistentQueue
from lmdbqueue._verbs.lease import DeadLetter, Lease
from lmdbqueue.cli._command import (
    NOT_STORABLE,
    NOTHING,
    Failure,
    code_of,
    command,
    commands,
    counted,
    header_of,
    name_option,
    path_argument,
    print_lines,
    sentence_of_item,
)
from lmdbqueue.cli._open import (
    Form,
    existing,
    form_options,
    item_of,
    line_of,
    readable,
    reading_options,
    to_json,
    writable,
)
from lmdbqueue.cli._progress import progress

T = TypeVar("T")

_BLOCK: Final = 1 << 20  # bytes read from a pipe at a time
_AT_A_TIME: Final = 1_000  # items leased, or printed, at a time
_PIPE_LOOK: Final = 1.0  # seconds between two checks whether the pipe still has a reader

count_option = click.option(
    "-n", "--count", type=click.IntRange(min=0), default=1, show_default=True, help="The number of items, at most."
)


# --- push


@command("push", example="lmdbqueue push uploads report.pdf photo.jpg")
@path_argument
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@name_option
@form_options
@click.option(
    "--delay", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Hold the items back for this time."
)
@click.option(
    "--expires",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Do not deliver the items after this time.",
)
@click.option(
    "--priority", type=click.IntRange(-128, 127), default=0, metavar="N", help="A lower number leaves sooner."
)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header to store with the items.")
@click.option("--unique", metavar="KEY", help="Do not store the item if one with this key exists.")
@click.option("--replace", is_flag=True, help="With --unique: replace an existing item with the key.")
def push(
    path: str,
    items: tuple[str, ...],
    name: str,
    form: Form,
    *,
    unique: str | None,
    replace: bool,
    headers: tuple[str, ...],
    **how: Any,
) -> None:
    """Append items: arguments, or lines of standard input.

    Arguments are stored all or none, in one step. Lines are stored as they arrive.
    """
    if unique is not None and len(items) != 1:
        raise click.UsageError("--unique needs exactly one ITEM.")
    if replace and unique is None:
        raise click.UsageError("--replace needs --unique KEY: it replaces the item with that key.")
    if how["expires"] is not None and how["expires"] <= how["delay"]:
        raise click.UsageError("The item would expire before its --delay is over.")
    how["headers"] = dict(map(header_of, headers)) or None
    found = _items_of(map(os.fsencode, items), form, "ITEM")
    with writable(path, name, form) as queue:
        given: Any  # numbers, as those of a list always are
        if unique is not None:
            given = queue.push(found, unique=[unique], replace=replace, **how)
            click.echo(f"pushed item {given[0]}" if given[0].is_stored else f"not pushed: item {given[0]} has the key")
        elif found:
            given = queue.push(found, **how)
            click.echo(f"pushed item {given[0]}" if len(given) == 1 else f"pushed items {given[0]} to {given[-1]}")
        else:
            click.echo(f"pushed {counted(_push_lines(queue, form, how))}")


def _push_lines(queue: PersistentQueue[Any], form: Form, how: dict[str, Any]) -> int:
    """Push the lines of standard input as they arrive; return their number."""
    stored = 0
    size = os.fstat(0).st_size or None
    with progress("pushing", in_bytes=True) as report:
        for lines, done in _blocks_of_lines():
            try:
                queue.push(_items_of(lines, form, "line", stored), **how)
            except (QueueError, *NOT_STORABLE) as error:
                raise Failure(f"{error}; the {stored:,} lines before are stored", code_of(error)) from error
            stored += len(lines)
            report(done, size)
    return stored


def _blocks_of_lines() -> Iterator[tuple[list[bytes], int]]:
    """Yield the available lines of standard input, with the number of bytes read."""
    rest, done = b"", 0
    while block := os.read(0, _BLOCK):
        done += len(block)
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield lines, done
    if rest:
        yield [rest], done


def _items_of(lines: Iterable[bytes], form: Form, what: str, before: int = 0) -> list[object]:
    """Return the items that texts represent; ``what`` they are, and how many came before, is for errors."""
    items = []
    for number, line in enumerate(lines, before + 1):
        try:
            items.append(item_of(line, form))
        except NOT_STORABLE as error:
            message = f"{what} {number:,} is not {'JSON' if form == 'json' else 'UTF-8'}: {error}"
            raise ValueError(message) from error
    return items


# --- peek, pop, delete


@command("peek", example="lmdbqueue peek uploads -n 3")
@path_argument
@name_option
@count_option
@click.option("--headers", "with_headers", is_flag=True, help="Print the headers of each item before it, as JSON.")
@reading_options
def peek(path: str, name: str, count: int, form: Form, *, with_headers: bool, trust: bool) -> int:
    """Print the first items, and leave them in the queue.

    With --headers a line contains the headers and the item, separated by a tab; with --headers and --json it is one
    JSON object.
    """
    printed = 0
    with readable(path, name, form, trust=trust) as queue:
        items = _with_headers(queue, form) if with_headers else queue
        for lines in _blocks(islice(items, count)):
            print_lines(lines)
            printed += len(lines)
    return 0 if printed or not count else NOTHING


def _with_headers(queue: PersistentQueue[bytes], form: Form) -> Iterator[bytes]:
    for seq, payload, found in described(queue):
        line, headers = _decoded(queue.loads, seq, payload), to_json(dict(found))
        is_json = form == "json"
        yield b'{"headers": %s, "item": %s}' % (headers, line) if is_json else headers + b"\t" + line


@command("pop", example="lmdbqueue pop uploads -n 100 --json | jq .name")
@path_argument
@name_option
@count_option
@reading_options
def pop(path: str, name: str, count: int, form: Form, *, trust: bool) -> int:
    """Print the first items, and remove them.

    Only printed items are removed; if a broken pipe or a kill ends the command earlier, the others return to their
    places.
    """
    left = count
    with existing(path, name) as queue:
        line = line_of(queue, form, trust=trust)
        while left and (lease := queue.lease(min(left, _AT_A_TIME))):
            with lease:
                lines = _before_an_error(line, lease)
                print_lines(lines)
                if len(lines) < len(lease):
                    lease.nack(lease.seqs[len(lines) :])
            left -= len(lines)
    return 0 if left < count or not count else NOTHING


def _before_an_error(line: Any, lease: Lease[bytes]) -> list[bytes]:
    """Return the lines of the items before one that cannot be decoded; raise ``DecodeError`` if it is the first."""
    lines: list[bytes] = []
    for seq, payload in zip(lease.seqs, lease, strict=True):
        try:
            lines.append(_decoded(line, seq, payload))
        except DecodeError:
            if not lines:
                raise
            break
    return lines


def _decoded(line: Any, seq: int, payload: bytes) -> bytes:
    try:
        found: bytes = line(payload)
    except Exception as error:
        raise DecodeError(seq, payload, told(error)) from error
    return found


@command("delete", example="lmdbqueue delete uploads -n 3")
@path_argument
@name_option
@count_option
@click.option("--item", "seqs", type=int, multiple=True, help="Remove the item with this number instead; repeatable.")
def delete(path: str, name: str, count: int, seqs: tuple[int, ...]) -> int:
    """Remove items without decoding them.

    It removes the first items, or with --item those with the given numbers.
    """
    if seqs and count != 1:
        raise click.UsageError("--count means the first items, --item those with these numbers: give one of them.")
    with existing(path, name) as queue:
        deleted = sum(map(queue.delete_item, seqs)) if seqs else queue.delete(count)
    click.echo(f"deleted {counted(deleted)}")
    return 0 if deleted or not (count or seqs) else NOTHING


# --- follow


@command("follow", example="lmdbqueue follow uploads --new")
@path_argument
@name_option
@click.option("--new", "new_only", is_flag=True, help="Only new items.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after this number of items.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="What to do with an item that cannot be read.",
)
@reading_options
def follow(path: str, name: str, count: int | None, form: Form, *, new_only: bool, on_error: str, trust: bool) -> None:
    """Print items as they arrive, and remove nothing.

    First the waiting items, then new ones, one a line, until Ctrl-C. Items that others remove before this command has
    seen them are not printed.
    """
    left = sys.maxsize if count is None else count
    with suppress(KeyboardInterrupt), readable(path, name, form, trust=trust) as queue:
        follower = Follower(queue, new_only=new_only, on_error=_pass_over if on_error == "skip" else "raise")
        while left:
            lines = follower.wait(_PIPE_LOOK)[:left]
            left -= len(lines)
            print_lines(lines)
            _refuse_broken_pipe()


def _pass_over(error: DecodeError | CorruptItemError) -> None:
    click.echo(f"lmdbqueue: left out: {sentence_of_item(error)}", err=True)


def _refuse_broken_pipe() -> None:
    """Fail if the pipe has no reader any more, instead of waiting for another item."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError


# --- dead letters


@commands.group("dead", epilog="\b\nExample: lmdbqueue dead list uploads")
def dead() -> None:
    """Print, requeue or delete dead letters."""


seqs_argument = click.argument("seqs", nargs=-1, type=int, metavar="[NUMBER]...")


@command("list", group=dead, example="lmdbqueue dead list uploads")
@path_argument
@name_option
@reading_options
def list_(path: str, name: str, form: Form, *, trust: bool) -> None:
    """Print the dead letters.

    One a line: number, attempts, time, reason and item, separated by tabs; with --json a JSON object.
    """
    with readable(path, name, form, trust=trust) as queue:
        for lines in _blocks(map(_json_letter if form == "json" else _letter, queue.dead)):
            print_lines(lines)


def _json_letter(letter: DeadLetter[bytes]) -> bytes:
    """Return a JSON object with the item, or with its bytes in base64 if it cannot be decoded."""
    facts = {"seq": letter.seq, "attempts": letter.attempts, "time": letter.time, "reason": letter.reason}
    try:
        item = b'"item": ' + letter.item
    except (DecodeError, CorruptItemError):
        item = b'"payload": "' + b64encode(letter.payload) + b'"'
    return to_json(facts)[:-1] + b", " + item + b"}"


def _letter(letter: DeadLetter[bytes]) -> bytes:
    try:
        item = letter.item
    except (DecodeError, CorruptItemError):
        item = repr(letter.payload).encode()
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.time))
    reason = " ".join(letter.reason.split())
    return f"{letter.seq}\t{letter.attempts}\t{when}\t{reason}\t".encode() + item.replace(b"\n", b"\\n")


@command("requeue", group=dead, example="lmdbqueue dead requeue uploads --all")
@path_argument
@seqs_argument
@name_option
@click.option("--all", "every", is_flag=True, help="All dead letters.")
def requeue(path: str, seqs: tuple[int, ...], name: str, *, every: bool) -> int:
    """Requeue dead letters in their places, as if never tried."""
    wanted = _wanted(seqs, every=every)
    with existing(path, name) as queue:
        found = queue.dead.requeue(wanted)
    click.echo(f"requeued {counted(found)}")
    return 0 if found else NOTHING


@command("delete", group=dead, example="lmdbqueue dead delete uploads 17 18")
@path_argument
@seqs_argument
@name_option
@click.option("--all", "every", is_flag=True, help="All dead letters.")
def delete_dead(path: str, seqs: tuple[int, ...], name: str, *, every: bool) -> int:
    """Remove dead letters for good."""
    wanted = _wanted(seqs, every=every)
    with existing(path, name) as queue:
        found = queue.dead.delete(wanted)
    click.echo(f"deleted {counted(found)}")
    return 0 if found else NOTHING


def _wanted(seqs: tuple[int, ...], *, every: bool) -> tuple[int, ...] | None:
    if every == bool(seqs):
        raise click.UsageError("Give the numbers of dead letters, or --all.")
    return None if every else seqs


def _blocks(things: Iterable[T]) -> Iterator[list[T]]:
    """Yield things in blocks; the things before an unreadable item are yielded before its error is raised."""
    left = iter(things)
    while True:
        some: list[T] = []
        try:
            for each in islice(left, _AT_A_TIME):
                some.append(each)  # noqa: PERF402  (what came before an error stays)
        except (DecodeError, CorruptItemError):
            yield some
            raise
        if not some:
            return
        yield some
