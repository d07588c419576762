"""With which options an integration opens its directory."""

import os
from contextlib import suppress
from typing import Any

from lmdbqueue._errors import FormatError
from lmdbqueue._format import Durability
from lmdbqueue._lmdb.options_record import options_of


def options_for(path: str | os.PathLike[str], given: Durability | None, default: Durability) -> dict[str, Any]:
    """Return the options of a directory, or of a new one; a given durability is not replaced by the stored one."""
    durability, checksum = default, True
    with suppress(FormatError):
        found = options_of(os.path.abspath(path))
        durability, checksum = found.durability, found.checksum
    return {"durability": durability if given is None else given, "checksum": checksum}
