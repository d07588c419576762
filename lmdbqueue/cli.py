"""The command line: ``lmdbqueue``, also ``python -m lmdbqueue``.

Owns: arguments, exit codes, what is printed. Law: it calls public verbs and nothing below them. Must
not know: how a verb does its work.
"""

import argparse
from collections.abc import Sequence

import lmdbqueue
from lmdbqueue import _demo, _forward_cli


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    parser = argparse.ArgumentParser(prog="lmdbqueue", description="A persistent FIFO queue on LMDB.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="kill a producer and a consumer again and again and show that nothing is lost",
        description="A producer and a consumer do the workflow peek, write, delete, while both are killed with "
        "SIGKILL several times. Exits with 1 if anything is lost.",
        epilog="example: lmdbqueue demo --items 20000",
    )
    demo.add_argument(
        "--input",
        metavar="FILE",
        type=_readable,
        help="a text whose lines are the items (default: Python's own manual)",
    )
    demo.add_argument(
        "--items", metavar="N", type=_positive, default=20_000, help="how many lines (default: %(default)s)"
    )
    demo.set_defaults(run=lambda options: _demo.run(options.input, options.items))

    check = commands.add_parser(
        "check",
        help="prove that a queue is whole, or repair it",
        description="Says what is wrong with a queue: the structure of its file, checksums, head and tail, files that "
        "do not belong there. Exits with 0 if it is whole, with 1 if it is, or was, not.",
        epilog="example: lmdbqueue check /var/spool/uploads --repair",
    )
    check.add_argument("path", metavar="PATH", help="the directory of the queue")
    check.add_argument(
        "--repair",
        action="store_true",
        help="write what is whole to a new file; damaged items go to the file PATH.quarantine",
    )
    check.set_defaults(run=lambda options: _check(options.path, repair=options.repair))

    forward = commands.add_parser(
        "forward",
        help="drain a queue into one in a PostgreSQL database, each item exactly once",
        description="Moves what waits in a queue to a queue of the same name in a database, in order, each item "
        "exactly once, whatever is killed meanwhile; tries again while the database is away. SIGTERM ends it cleanly.",
        epilog="example: lmdbqueue forward /var/spool/jobs postgresql://central/app --name jobs --follow",
    )
    forward.add_argument("path", metavar="PATH", help="the directory of the queue")
    forward.add_argument("url", metavar="URL", help="the address of the database")
    forward.add_argument("--name", default="queue", help="which queue of the directory (default: %(default)s)")
    forward.add_argument("--to", default="", metavar="NAME", help="the name of the queue there (default: the same)")
    forward.add_argument("--batch", type=_positive, default=1000, help="items at a time (default: %(default)s)")
    forward.add_argument("--follow", action="store_true", help="wait for more items")
    forward.set_defaults(run=_forward)

    options = parser.parse_args(arguments)
    raise SystemExit(options.run(options))


def _forward(options: argparse.Namespace) -> int:
    given = _forward_cli.Options(
        options.path, options.url, options.name, options.to, options.batch, follow=options.follow
    )
    return _forward_cli.run(given)


def _check(path: str, *, repair: bool) -> int:
    try:
        problems = lmdbqueue.check(path, repair=repair)
    except lmdbqueue.QueueError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem)
    print(f"{path}: {'not whole' if problems and not repair else 'repaired' if problems else 'whole'}")
    return 1 if problems else 0


def _readable(path: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise argparse.ArgumentTypeError(message) from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        message = f"{number} is not at least 1"
        raise argparse.ArgumentTypeError(message)
    return number
