"""The frame of the command line: how a command is made, and how it ends.

Owns: the group of commands, exit codes, errors as one line, the end of a pipe. Law: whatever goes wrong is one line
on stderr and a code that ``docs/cli.md`` lists; each command has an example. Must not know: what any command does.

A new command is a function in one of the modules of this package::

    @command("readers", example="lmdbqueue readers uploads")
    @path_argument
    def readers(path: str) -> None:
        '''List the readers.'''

and a section of ``docs/cli.md``: a test requires it, and runs its examples.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Final, TypeVar

import click

import lmdbqueue

FAILED: Final = 1  # failures without a code of their own; check: there are, or were, faults
USAGE: Final = 2
NOTHING: Final = 3  # no item was found
NO_QUEUE: Final = 4
UNTRUSTED: Final = 5
FULL: Final = 6
UNREADABLE: Final = 7  # an item, or the queue, is damaged or of another format
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (lmdbqueue.Full, FULL),
    (lmdbqueue.DecodeError, UNREADABLE),
    (lmdbqueue.CorruptItemError, UNREADABLE),
    (lmdbqueue.CorruptQueueError, UNREADABLE),
    (lmdbqueue.SourceError, UNREADABLE),
    (lmdbqueue.FormatError, NO_QUEUE),
)

NOT_STORABLE: Final = (ValueError, OverflowError, RecursionError)  # of decoders and encoders

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """The failure of a command: its message and exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
            return BROKEN_PIPE
        return result


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample: lmdbqueue push uploads report.pdf",
)
@click.version_option(lmdbqueue.__version__, prog_name="lmdbqueue")
def commands() -> None:
    """Use and maintain persistent FIFO queues on LMDB.

    PATH is the directory of a queue. Only push and import create a missing queue.
    """


def command(name: str, *, example: str, group: click.Group = commands) -> Callable[[F], click.Command]:
    """Make a function a command; ``example``: one line that a user could type."""
    return group.command(name, epilog=f"\b\nExample: {example}")


path_argument = click.argument("path", type=click.Path())
name_option = click.option("--name", default="queue", show_default=True, help="The queue in the directory.")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, and print an error as one line."""
    warnings.simplefilter("ignore", RuntimeWarning)  # of strangers: commands that decode check by themselves
    try:
        code = commands.main(arguments, prog_name="lmdbqueue", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.Abort:
        return INTERRUPTED
    except (click.ClickException, lmdbqueue.QueueError, OSError, *NOT_STORABLE) as error:
        click.echo(f"{_who(error)}: {_sentence(error)}", err=True)
        return code_of(error)
    return code if isinstance(code, int) else 0


def code_of(error: Exception) -> int:
    """Return the exit code for an error of a command."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, click.UsageError):
        return USAGE
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _who(error: Exception) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "lmdbqueue" if context is None else context.command_path


def _sentence(error: Exception) -> str:
    if isinstance(error, (lmdbqueue.DecodeError, lmdbqueue.CorruptItemError)):
        return sentence_of_item(error)
    if not isinstance(error, click.ClickException):
        return " ".join(str(error).split())
    advice = f" See {_who(error)} --help." if isinstance(error, click.UsageError) else ""
    return " ".join(error.format_message().split()) + advice


def sentence_of_item(error: lmdbqueue.DecodeError | lmdbqueue.CorruptItemError) -> str:
    """Return what is wrong with an item, with the advice for a shell instead of that for a program."""
    fact = " ".join(str(error).rpartition("; it stays")[0].split())
    bytes_too = ", and --raw shows its bytes" if isinstance(error, lmdbqueue.DecodeError) else ""
    return f"{fact}; it stays where it is: lmdbqueue delete --item {error.seq} removes it{bytes_too}"


def print_lines(lines: Iterable[bytes]) -> None:
    """Print lines unchanged, and flush them to the reader."""
    if sys.stdout is None:  # it was closed when Python began
        raise Failure("standard output is closed")
    output: IO[bytes] = sys.stdout.buffer
    for line in lines:
        output.write(line + b"\n")
    output.flush()


def counted(n: int) -> str:
    """Return a number of items in words."""
    return "1 item" if n == 1 else f"{n:,} items"


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation; fail without it."""
    try:
        if yes or click.confirm(question, err=True):
            return
    except click.Abort:
        pass
    raise Failure("nothing was removed")


def header_of(text: str) -> tuple[str, str]:
    """Return the name and the value of a header given as NAME:VALUE."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"A header must be NAME:VALUE, not {text!r}.")
    return name.strip(), value.strip()
