"""The command line: ``lmdbqueue``, also ``python -m lmdbqueue``.

Owns: where it begins. Law: it works wherever the library does, with two commands if the extra is not installed. Must
not know: what a command does.

With the extra ``cli`` (``click`` and ``rich``) the commands are those of the modules below: importing one registers
what is in it. The map; imports go down it only:

====================  ============================================================================
``_watch``            its command ``watch``
``_forward``          its command ``forward``
``_lines``            ``export``, ``import``: queues as JSON lines, and those of other libraries
``_items``            ``push``, ``peek``, ``pop``, ``delete``, ``follow``, ``dead``
``_care``             ``stat``, ``queues``, ``readers``, ``check``, ``flush``, ``copy``, ``clear``, ``drop``, ``demo``
``_open``             opening existing queues, how items are read, whom to trust
``_command``          how a command is made and how it ends: exit codes, errors as one line
``_bare``             ``demo`` and ``check``, also without the extra ``cli``
``_screen``           what ``watch`` draws
``_progress``         bars on a terminal
``_demo``             the demo: producer and consumer, killed again and again
====================  ============================================================================
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    if find_spec("click") is None or find_spec("rich") is None:
        from lmdbqueue.cli import _bare  # noqa: PLC0415

        raise SystemExit(_bare.run(sys.argv[1:] if arguments is None else arguments))
    from lmdbqueue.cli import _care, _forward, _items, _lines, _watch  # noqa: F401, PLC0415
    from lmdbqueue.cli._command import run  # noqa: PLC0415

    raise SystemExit(run(arguments))
