"""The options with which an integration opens its directory.

Owns: what becomes of a durability that was given, and of one that was not. Law: a given one is the directory's, or the
opening is refused; without one, a directory keeps its own. Must not know: which integration asks.
"""

import os
from contextlib import suppress
from typing import Any

from lmdbqueue._base.errors import FormatError
from lmdbqueue._base.format import Durability
from lmdbqueue._host.directory import absolute
from lmdbqueue._lmdb.options_record import options_of


def options_for(path: str | os.PathLike[str], given: Durability | None, default: Durability) -> dict[str, Any]:
    """Return the options of a directory, or of a new one; a given durability is not replaced by the stored one."""
    durability, checksum = default, True
    with suppress(FormatError):
        found = options_of(absolute(path))
        durability, checksum = found.durability, found.checksum
    return {"durability": durability if given is None else given, "checksum": checksum}
