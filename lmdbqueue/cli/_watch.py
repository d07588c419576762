"""The command ``watch``.

Owns: when a frame is drawn, and how the command ends. Law: it changes nothing in the queue, and always leaves the
terminal as it was. Must not know: what a frame looks like (``_screen``).
"""

import signal
import sys
import time
from collections import deque
from contextlib import suppress

import click

from lmdbqueue.cli._command import command, name_option, path_argument
from lmdbqueue.cli._open import existing


@command("watch", example="lmdbqueue watch uploads")
@path_argument
@name_option
@click.option(
    "--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Seconds between frames."
)
@click.option("--once", is_flag=True, help="Draw one frame and exit; the default without a terminal.")
def watch(path: str, name: str, *, interval: float, once: bool) -> None:
    """Show a queue while it is used, until Ctrl-C.

    It shows the number of waiting items and the rates; the leased, delayed and dead items; the age of the oldest item;
    the lag of each reader; the space, and the number of processes that have the queue open.
    """
    from rich.console import Console  # noqa: PLC0415  (0.1 s that no other command shall take)
    from rich.live import Live  # noqa: PLC0415

    from lmdbqueue.cli._screen import WIDTH, Sample, frame  # noqa: PLC0415

    console = Console(highlight=False)
    title = f"{path}, queue {name!r}"
    samples: deque[Sample] = deque(maxlen=WIDTH + 1)
    with suppress(KeyboardInterrupt), existing(path, name) as queue:
        samples.append(Sample(time.monotonic(), queue.stats()))
        ascii_only = console.options.ascii_only
        if once or not sys.stdout.isatty():
            console.print(frame(title, samples, ascii_only=ascii_only))
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with Live(frame(title, samples, ascii_only=ascii_only), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                samples.append(Sample(time.monotonic(), queue.stats()))
                live.update(frame(title, samples, ascii_only=ascii_only), refresh=True)
