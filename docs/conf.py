"""How Sphinx makes the site of README, docs and the docstrings.

Owns: which files are pages, and how the reference looks. Law: the documents are written to be read as
files; nothing in them is for Sphinx. Must not know: what they say.

Build it from the root of the repository: ``python -m sphinx -W -c docs . site`` (extra ``docs``); begin at
``site/index.html``.
"""

import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import lmdbqueue

project = "lmdbqueue"
release = lmdbqueue.__version__
copyright = "the lmdbqueue founders"  # noqa: A001  (Sphinx calls it so)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/README.md",
    "bench/NOTES.md",
    "bench/results/*.md",
    "docs/**",
]
exclude_patterns = ["docs/conf.py"]
suppress_warnings = ["toc.not_included"]  # results of the bench are linked, but not in a table of contents

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "alphabetical"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "inherited-members": "Exception,NamedTuple,tuple,MutableMapping,Sequence"}

html_theme = "furo"
html_title = f"lmdbqueue {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""
INTEGRATIONS = ("logging", "prometheus", "otel", "huey", "kombu", "opentelemetry")
PAGES = {
    "Learn": ["quickstart"],
    "Do": ["guide", "operations", "scaling", "migrating"],
    "Integrations": [
        f"integrations/{name}"
        for name in ("logging", "prometheus", "huey", "opentelemetry", "http", "mqtt", "celery", "recipes")
    ],
    "Look up": [
        "verbs",
        "cli",
        "reference/lmdbqueue",
        *(f"reference/{name}" for name in ("aio", "postgres", "postgres.aio", "forward", "legacy")),
        *(f"reference/integrations.{name}" for name in INTEGRATIONS),
    ],
    "Understand": ["comparison", "design", "format"],
}


def add_contents(_app, name, source):
    """Add a table of contents to README, visible only on the site: pages grouped by need."""
    if name == root_doc:
        for caption, pages in PAGES.items():
            source[0] += CONTENTS.format(caption=caption, pages="\n".join(f"docs/{page}" for page in pages))
        rest = {
            "bench": "bench/README",
            "journal": "bench/NOTES",
            "changelog": "CHANGELOG",
            "contributing": "CONTRIBUTING",
            "security": "SECURITY",
        }
        source[0] += CONTENTS.format(caption="The project", pages="\n".join(rest.values()))


def leave_out(_app, _what, name, thing, _skip, _options):
    """Leave out the methods of every exception, and single fields, which Python documents by their number only."""
    is_field = str(getattr(thing, "__doc__", "")).startswith("Alias for field")
    return True if is_field or name in {"add_note", "with_traceback"} else None


def add_index(app, error):
    """Make the first page that servers look for."""
    if error is None and app.builder.format == "html":
        shutil.copy(os.path.join(app.outdir, f"{root_doc}.html"), os.path.join(app.outdir, "index.html"))


def setup(app):
    """Connect all of it."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("build-finished", add_index)
