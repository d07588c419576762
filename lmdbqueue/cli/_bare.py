"""The two commands that exist without the extra ``cli``: demo and check.

Owns: what they do, and their arguments without ``click``. Law: only the standard library is used. Must not know: the
other commands, except that they are missing.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import lmdbqueue

_NO_QUEUE: Final = 4  # exit codes, as in _command
_INTERRUPTED: Final = 130


def demo(source: str | None, items: int) -> int:
    """Run the demo; return the exit code."""
    from lmdbqueue.cli import _demo  # noqa: PLC0415  (multiprocessing and a book of text, for nobody else)

    return _demo.run(source, items)


def check(path: str, *, repair: bool) -> int:
    """Print the faults of a queue; return the exit code."""
    found = _findings(path, repair=repair)
    left = _findings(path, repair=False) if found and repair else found  # report the state after the repair
    for sentence in [*found, *(each for each in left if each not in found)]:
        print(sentence)
    print(f"{path}: {'not whole' if left else 'repaired' if found else 'whole'}")
    return 1 if found else 0


def _findings(path: str, *, repair: bool) -> list[str]:
    try:
        return lmdbqueue.check(path, repair=repair)
    except lmdbqueue.CorruptQueueError as error:
        return [str(error)]


def run(arguments: Sequence[str]) -> int:
    """Run one of the two, or say what the other commands need; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="lmdbqueue",
        description="A persistent FIFO queue on LMDB.",
        epilog="push, pop, stat, watch and all other commands:\n  pip install 'lmdbqueue-persistent[cli]'",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the default formatter breaks the command at its hyphen
    )
    parser.add_argument("--version", action="version", version=f"lmdbqueue, version {lmdbqueue.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    demo_ = commands.add_parser("demo", help="kill a producer and a consumer again and again; nothing is lost")
    demo_.add_argument("--input", metavar="FILE", type=_readable, help="a text file whose lines are the items")
    demo_.add_argument(
        "--items", metavar="N", type=_positive, default=20_000, help="the number of lines (default: %(default)s)"
    )
    check_ = commands.add_parser("check", help="verify the files of a queue, or repair them")
    check_.add_argument("path", metavar="PATH", help="the directory of the queue")
    check_.add_argument("--repair", action="store_true", help="write everything readable to a new file")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands.choices:
        told = "without click and rich there are only demo and check: pip install 'lmdbqueue-persistent[cli]'"
        print(f"lmdbqueue: no command {arguments[0]!r}: {told}", file=sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    try:
        if options.command == "demo":
            return demo(options.input, options.items)
        return check(options.path, repair=options.repair)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except lmdbqueue.QueueError as error:
        print(f"lmdbqueue: {error}", file=sys.stderr)
        return _NO_QUEUE if isinstance(error, lmdbqueue.FormatError) else 1


def _readable(path: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise argparse.ArgumentTypeError(message) from error


def _positive(text: str) -> int:
    with suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    message = f"{text!r} is not a number of at least 1"
    raise argparse.ArgumentTypeError(message)
