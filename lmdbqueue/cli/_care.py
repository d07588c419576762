"""The commands for a whole queue: its figures, its space, its files.

Owns: what they print. Law: commands that remove items ask first. Must not know: items.
"""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from lmdbqueue._base.values import Stats
from lmdbqueue._host.directory import absolute
from lmdbqueue._local.environment import Environment
from lmdbqueue._local.queue import PersistentQueue, local_engine_of
from lmdbqueue._verbs.metrics import Figures, prometheus_text
from lmdbqueue.cli import _bare
from lmdbqueue.cli._command import NO_QUEUE, Failure, command, confirm, counted, name_option, path_argument
from lmdbqueue.cli._open import existing, names_in
from lmdbqueue.cli._progress import while_it_grows

_PATIENCE: Final = 1.0  # seconds within which waiting processes release the old file
_LOOK: Final = 0.01  # seconds
_UNITS: Final = {
    "bytes_used": " bytes",
    "bytes_free": " bytes",
    "file_size": " bytes",
    "oldest_age": " seconds",
    "unsynced_seconds": " seconds",
}

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


# --- figures and faults


@command("stat", example="lmdbqueue stat uploads --json | jq .waiting")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--name", help="The queue in the directory. [default: all]")
@click.option("--json", "form", flag_value="json", help="Print a JSON object a line, one for each queue.")
@click.option("--prometheus", "form", flag_value="prometheus", help="Print the text format of Prometheus.")
def stat(paths: tuple[str, ...], name: str | None, form: str | None) -> None:
    """Print the figures of queues."""
    figures = _figures(paths, name)
    if form == "prometheus":
        click.echo(prometheus_text((absolute(path), queue, stats) for path, queue, stats in figures), nl=False)
    elif form == "json":
        for path, queue, stats in figures:
            click.echo(json.dumps({"path": path, "queue": queue, **_fields(stats)}, ensure_ascii=False))
    else:
        for path, queue, stats in figures:
            click.echo("\n".join([f"queue {queue!r} in {path}", *_rows(stats)]))


def _figures(paths: Iterable[str], name: str | None) -> Iterator[Figures]:
    for path in paths:
        for each in names_in(path) if name is None else [name]:
            with existing(path, each) as queue:
                yield path, each, queue.stats()


def _fields(stats: Stats) -> dict[str, Any]:
    return {**stats._asdict(), "readers": [each._asdict() for each in stats.readers]}


def _rows(stats: Stats) -> Iterator[str]:
    for field, value in stats._asdict().items():
        if field == "readers":
            yield from (f"{'reader':>12}  {each.name}: {each.lag:,} behind, {each.skipped:,} lost" for each in value)
        else:
            shown = "-" if value is None else f"{value:,}{_UNITS.get(field, '')}"
            yield f"{field.removesuffix('_seconds').replace('_', ' '):>12}  {shown}"


@command("queues", example="lmdbqueue queues app")
@path_argument
def queues(path: str) -> None:
    """Print the names of the queues and their numbers of waiting items."""
    for _, name, stats in _figures([path], None):
        click.echo(f"{name}\t{stats.waiting}")


@command("readers", example="lmdbqueue readers events --name clicks")
@path_argument
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, one for each reader.")
@click.option("--drop", metavar="READER", help="Remove this reader; asks first.")
@yes_option
def readers(path: str, name: str, drop: str | None, *, as_json: bool, yes: bool) -> None:
    """Print the named readers of a queue, or remove one.

    The columns are the name, the number of the next item, the lag, the number of lost items, and the time of the last
    move.
    """
    with existing(path, name) as queue:
        found = queue.readers()
        if drop is not None:
            _drop_reader(queue, drop, {each.name: each.lag for each in found}, yes=yes)
            return
    for each in found:
        if as_json:
            click.echo(json.dumps(each._asdict(), ensure_ascii=False))
        else:
            seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.seen))
            click.echo(f"{each.name}\t{each.position}\t{each.lag}\t{each.skipped}\t{seen}")


def _drop_reader(queue: PersistentQueue[Any], name: str, lags: dict[str, int], *, yes: bool) -> None:
    if name not in lags:
        there = ", ".join(lags) or "none"
        raise Failure(f"there is no reader {name!r}; existing ones: {there}", NO_QUEUE)
    confirm(f"Remove reader {name!r}, which is {counted(lags[name])} behind?", yes=yes)
    queue.drop_reader(name)
    click.echo(f"removed reader {name!r}")


@command("check", example="lmdbqueue check uploads --repair")
@path_argument
@click.option(
    "--repair", is_flag=True, help="Write everything readable to a new file; damaged items go to PATH.quarantine."
)
def check(path: str, *, repair: bool) -> int:
    """Verify the files of a queue, or repair them.

    It verifies the structure of the file, every checksum and the records of each queue, and reports files that do not
    belong there. Exits with 0 if there is no fault, with 1 if there is one, or was one before the repair.
    """
    return _bare.check(path, repair=repair)


@command("demo", example="lmdbqueue demo --items 20000")
@click.option(
    "--input",
    "source",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    metavar="FILE",
    help="A text file whose lines are the items.  [default: Python's manual]",
)
@click.option("--items", type=click.IntRange(min=1), default=20_000, show_default=True, help="The number of lines.")
def demo(source: str | None, items: int) -> int:
    """Kill a producer and a consumer; show that nothing is lost.

    They are killed with SIGKILL again and again, and every line is accounted for. Exits with 1 if anything is lost.
    """
    return _bare.demo(source, items)


# --- space and copies


@command("flush", example="lmdbqueue flush uploads")
@path_argument
@click.option("--force", is_flag=True, help="Even if less than 1 MiB is empty.")
def flush(path: str, *, force: bool) -> None:
    """Return empty space to the file system, while others continue."""
    with existing(path, _any_name(path)) as queue:
        before = queue.stats()
        given = while_it_grows("flushing", path, before.bytes_used or 0, lambda: queue.flush(force))
        after = queue.stats()
        held = _still_held(local_engine_of(queue).environment) if given else 0
    if given or after.generation != before.generation:
        click.echo(f"{path}: {before.file_size:,} bytes before, {after.file_size:,} after")
        if held:
            who = "1 process holds" if held == 1 else f"{held} processes hold"
            click.echo(f"{path}: {who} the old file of {before.file_size:,} bytes until its next call or its end")
    else:
        click.echo(f"{path}: {before.file_size:,} bytes; too few are empty; --force gives back {before.bytes_free:,}")


def _still_held(environment: Environment) -> int:
    """Return the number of processes that still hold the old file a second after a flush."""
    deadline = time.monotonic() + _PATIENCE
    while (held := environment.held_elsewhere() or 0) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return held


@command("copy", example="lmdbqueue copy uploads /backup/uploads")
@path_argument
@click.argument("dest", type=click.Path())
def copy(path: str, dest: str) -> None:
    """Make a compacted copy, while others continue.

    It is a snapshot of one moment, with all queues of the directory, and independent of the original.
    """
    target = absolute(dest)
    with existing(path, _any_name(path)) as queue:
        used = queue.stats().bytes_used or 0
        with while_it_grows("copying", target, used, lambda: queue.copy(target)) as copied:
            size = copied.stats().file_size
    click.echo(f"{dest}: {size:,} bytes")


def _any_name(path: str) -> str:
    names = names_in(path)
    if not names:
        raise Failure(f"there is no queue in {path!r} any more")
    return names[0]


# --- removing


@command("clear", example="lmdbqueue clear uploads --yes")
@path_argument
@name_option
@click.option("--all", "every", is_flag=True, help="Also leased, delayed and dead items.")
@yes_option
def clear(path: str, name: str, *, every: bool, yes: bool) -> None:
    """Remove all waiting items; asks first."""
    with existing(path, name) as queue:
        stats = queue.stats()
        count = stats.waiting + (stats.leased + stats.delayed + stats.dead if every else 0)
        confirm(f"Remove {counted(count)} of queue {name!r} in {path}?", yes=yes)
        queue.clear(all=every)
        removed = queue.stats().removed - stats.removed
    click.echo(f"removed {counted(removed)}")


@command("drop", example="lmdbqueue drop app outbox")
@path_argument
@click.argument("name")
@yes_option
def drop(path: str, name: str, *, yes: bool) -> None:
    """Remove the queue NAME with all its items; asks first."""
    with existing(path, name) as queue:
        confirm(f"Remove queue {name!r} in {path}, with {counted(len(queue))} waiting?", yes=yes)
        queue.drop_queue(name)
    click.echo(f"removed queue {name!r}")
