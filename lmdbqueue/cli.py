"""The command line: ``lmdbqueue``, also ``python -m lmdbqueue``.

Owns: where it begins. Law: it works wherever the library does, with two commands if nothing more is installed. Must
not know: what a command does.

With the extra ``cli`` (``click`` and ``rich``) the commands are those of the ``_cli_`` modules: importing one registers
what is in it.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    if find_spec("click") is None or find_spec("rich") is None:
        from lmdbqueue import _cli_bare  # noqa: PLC0415

        raise SystemExit(_cli_bare.run(sys.argv[1:] if arguments is None else arguments))
    from lmdbqueue import _cli_care, _cli_items, _cli_lines, _cli_watch  # noqa: F401, PLC0415
    from lmdbqueue._cli_command import run  # noqa: PLC0415

    raise SystemExit(run(arguments))
