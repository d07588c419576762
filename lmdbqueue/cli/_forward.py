"""The command ``forward``: a queue on this machine drained into a central one.

Owns: what the command prints. Law: nothing is on the standard output but the last line. Must not know: how items are
forwarded.
"""

import time
from contextlib import closing

import click

from lmdbqueue._local.source import QueueSource, ReaderSource
from lmdbqueue.cli._command import NO_QUEUE, USAGE, Failure, command, counted, name_option, path_argument
from lmdbqueue.cli._progress import progress
from lmdbqueue.forward import Forwarded, Forwarder


@command("forward", example="lmdbqueue forward spool postgresql://central/app --name jobs --follow")
@path_argument
@click.argument("url")
@name_option
@click.option("--to", default="", metavar="NAME", help="The name of the queue there.  [default: the same]")
@click.option(
    "--reader", default="", metavar="READER", help="Drain what this reader has not passed; all stays for others."
)
@click.option("--batch", type=click.IntRange(min=1), default=1_000, show_default=True, help="Items at a time.")
@click.option("--follow", is_flag=True, help="Wait for more items.")
def forward(path: str, url: str, *, name: str, to: str, reader: str, batch: int, follow: bool) -> None:
    """Drain a queue into a PostgreSQL database, each item exactly once.

    URL is the address of the database. In order, whatever is killed meanwhile; it tries again while the database is
    away, and says since when. SIGTERM ends it cleanly.
    """
    try:
        from lmdbqueue.postgres import PostgresQueue, PostgresTarget  # noqa: PLC0415  (psycopg, for who has it)
    except ImportError as error:
        raise Failure("forward needs psycopg: pip install 'lmdbqueue[postgres]'", USAGE) from error

    def there() -> PostgresQueue[bytes]:
        return PostgresQueue(url, to or name, bytes, bytes, patience=1.0)

    try:
        opened = ReaderSource(path, name, reader) if reader else QueueSource(path, name)
        with closing(opened) as source, progress("forwarding") as report:

            def show(now: Forwarded) -> None:
                report(now.items, now.items + now.waiting, _away(now))

            done = Forwarder(source, PostgresTarget(there), batch=batch, follow=follow, progress=show).run()
    except KeyError as error:
        raise Failure(f"no queue is called {name!r} in {path}", NO_QUEUE) from error
    batches = "1 batch" if done.batches == 1 else f"{done.batches:,} batches"
    told = f"{path}: {counted(done.items)} in {batches}; failures of the target: {done.failures:,}"
    click.echo(told + (f", {_away(done)}" if _away(done) else ""))


def _away(now: Forwarded) -> str:
    """Say since when the target is away, if it is."""
    if now.away_since is None:
        return ""
    return time.strftime("the target is away since %H:%M:%S", time.localtime(now.away_since))
