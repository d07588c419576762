"""``lmdbqueue forward``: a queue on this machine drained into a central one.

Owns: what the command prints, its exit code. Law: nothing is on the standard output but the last line. Must not know:
how items are forwarded.
"""

import sys
from contextlib import closing
from typing import NamedTuple

from lmdbqueue._errors import QueueError
from lmdbqueue._source import QueueSource
from lmdbqueue.forward import Forwarded, Forwarder


class Options(NamedTuple):
    """What the command was given."""

    path: str
    url: str
    name: str
    to: str  # the name of the queue there, "" for the same
    batch: int
    follow: bool
    schema: str = "lmdbqueue"


def run(options: Options) -> int:
    """Forward until there is nothing left, or a signal comes; return the exit code."""
    try:
        from lmdbqueue.postgres import PostgresQueue, PostgresTarget  # noqa: PLC0415  (psycopg, for who has it)
    except ImportError:
        print("lmdbqueue forward: it needs psycopg: pip install 'lmdbqueue[postgres]'", file=sys.stderr)
        return 1

    def there() -> PostgresQueue[bytes]:
        return PostgresQueue(options.url, options.to or options.name, bytes, bytes, schema=options.schema, patience=1.0)

    bar = _Bar()
    progress = bar.show if bar.is_wanted else None
    try:
        with closing(QueueSource(options.path, options.name)) as source:
            target = PostgresTarget(there)
            done = Forwarder(source, target, batch=options.batch, follow=options.follow, progress=progress).run()
    except KeyError:
        bar.end()
        print(f"lmdbqueue forward: {options.path}: no queue is called {options.name!r}", file=sys.stderr)
        return 1
    except QueueError as error:
        bar.end()
        print(f"lmdbqueue forward: {error}", file=sys.stderr)
        return 1
    bar.end()
    print(f"{options.path}: {done.items} items in {done.batches} batches, {done.failures} failures of the target")
    return 0


class _Bar:
    """One line on a terminal, written again and again."""

    def __init__(self) -> None:
        self.is_wanted = sys.stderr.isatty()
        self._is_begun = False

    def show(self, done: Forwarded) -> None:
        """Tell how it goes."""
        total = done.items + done.waiting
        filled = 30 * done.items // total if total else 30
        away = ", the target is away" if done.failures and not done.waiting else ""
        bar = "#" * filled + "." * (30 - filled)
        sys.stderr.write(f"\r[{bar}] {done.items:,} of {total:,} items{away} ")
        sys.stderr.flush()
        self._is_begun = True

    def end(self) -> None:
        """Leave the line."""
        if self._is_begun:
            sys.stderr.write("\n")
