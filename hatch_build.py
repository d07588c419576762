"""README and the project's links as a package index shows them.

Owns: what becomes of README's relative links, and where the repository's address comes from. Law: a built package has
no dead link. The address is ``LMDBQUEUE_REPOSITORY`` or, in the release workflow, that of its repository; without
either, a link to a file of the repository becomes plain text, and the package has no project links.
"""

import os
import re
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:)([^)\s]*)\)")


class RepositoryLinks(MetadataHookInterface):
    """Fill in ``readme`` and ``urls``."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both fields to the metadata."""
        address = repository()
        with open(os.path.join(self.root, "README.md"), encoding="utf-8") as file:
            text = with_absolute_links(file.read(), address, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_links(address) if address else {}


def repository() -> str:
    """Return the address of the repository, without a slash at its end, or an empty text."""
    given = os.environ.get("LMDBQUEUE_REPOSITORY", "")
    server, name = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
    return (given or (f"{server}/{name}" if server and name else "")).rstrip("/")


def project_links(address: str) -> dict[str, str]:
    """Return the links that an index shows beside the project."""
    return {
        "Source": address,
        "Documentation": f"{address}/blob/HEAD/docs/quickstart.md",
        "Changelog": f"{address}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def with_absolute_links(text: str, address: str, version: str) -> str:
    """Return Markdown whose links to files lead to that version in the repository, or are text if it has no address."""

    def absolute(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if not address:
            return "" if image else label
        page = f"README.md{target}" if target.startswith("#") else target
        return f"{image}[{label}]({address}/{'raw' if image else 'blob'}/v{version}/{page})"

    return _LINK.sub(absolute, text)
