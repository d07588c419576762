"""The code blocks of the documents: found, run in their order, compared with what stands there.

Owns: what a block may be, and the markers. Law: a block that is not run says so and why; none is passed over. Must not
know: what a document is about.

A document's blocks share one directory, one Python process and one set of names, from top to bottom.

=============  ========================================================================================
python         run; an expression with a value in its comment (``queue.pop()  # 'a'``) must have that value
console        each line that begins with ``$`` is given to bash; what it prints must stand below it
sh             given to bash, which must end with 0
sql            run in the database; the rows are ``rows`` in the Python below
text           no code
=============  ========================================================================================

Comments, which readers do not see::

    <!-- python            Python that is run here: what the reader would have, or what must be true then
    ...
    -->
    <!-- not run: why -->  the block below is not run
    <!-- file: name -->    the block below is written to that file, which a later block must name
    <!-- numbers vary -->  in what the block below prints every number may be another

``LMDBQUEUE_WRITE_EXAMPLES=1`` writes what is printed into the documents instead of comparing it.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATABASE = "postgresql://localhost/app"  # as the documents call it
PLACE = "/srv/app"  # as the documents call the directory
IS_WRITING = os.environ.get("LMDBQUEUE_WRITE_EXAMPLES") == "1"
_BLOCK = re.compile(
    r"^<!-- python\n(?P<hidden>.*?)^-->$|(?:^<!-- (?P<marker>[^\n]*) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^ *(?:```|~~~|<!--(?! (?:end of )?figures\b))", re.MULTILINE)  # figures: bench/figures.py
_STEP = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_LANGUAGES = {"python", "console", "sh", "sql", "text"}


class Block(NamedTuple):
    """A block of a document; one in a comment is ``python`` too."""

    language: str
    code: str
    kind: str  # of its marker: "", "not run", "file", "numbers vary"
    told: str  # what the marker says
    line: int


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def documents() -> list[str]:
    pages = [
        f"{folder}/{name}"
        for folder in ("docs", "docs/integrations")
        for name in sorted(os.listdir(os.path.join(ROOT, folder)))
        if name.endswith(".md")
    ]
    return ["README.md", *pages]


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as an index and Sphinx make them."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(name: str, language: str) -> list[str]:
    """Return the blocks of one language that readers see."""
    return [match["code"] for match in _BLOCK.finditer(read(name)) if match["language"] == language]


def all_blocks(name: str) -> list[Block]:
    """Return all blocks of a document; raise ``AssertionError`` for what is none and looks like one."""
    text = read(name)
    found = []
    fences = 0
    for match in _BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match["hidden"] is not None:
            found.append(Block("python", match["hidden"], "", "", line))
            fences += 1
            continue
        kind, _, told = (match["marker"] or "").partition(": ")
        assert kind in {"", "not run", "file", "numbers vary"}, f"{name}:{line}: {kind}?"
        assert bool(told) == (kind in {"not run", "file"}), f"{name}:{line}: {kind}: what?"
        assert kind == "not run" or match["language"] in _LANGUAGES, f"{name}:{line}: who runs {match['language']!r}?"
        found.append(Block(match["language"], match["code"], kind, told, line))
        fences += 2 + bool(kind)
    assert len(_FENCE.findall(text)) == fences, f"{name}: a fence, or a comment, that belongs to no block"
    return found


def with_asserts(code: str) -> str:
    """Return Python with an assert for each line whose comment is the value of its expression."""

    def as_assert(match: re.Match[str]) -> str:
        indent, expression, comment = match.groups()
        try:
            ast.literal_eval(comment)
            ast.parse(expression, mode="eval")
        except (SyntaxError, ValueError):
            assert not re.match(r"['\"\[({0-9]|None\b|True\b|False\b", comment), f"no value, but like one: {match[0]}"
            return match[0]
        return f"{indent}assert ({expression}) == {comment}, {expression!r}"

    return re.sub(r"^( *)(\S.*?)  # (.*)$", as_assert, code, flags=re.MULTILINE)


def masked(text: str, *, numbers: bool) -> str:
    """Leave out of an output what differs from run to run: sizes, times, widths; with ``numbers`` all of those."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"[\d,.]+ (?=[KMG]iB)|\d{2,},\d{3}|\d{5,}", "N", text)
    text = re.sub(r'[\d,.]+(?= (?:s|min|seconds)\b)|(?<="oldest_age": )[\d.]+|(?<="seen": )[\d.]+', "N", text)
    text = re.sub(r" *│$|─+", "", text, flags=re.MULTILINE)  # of a frame, whose width is that of its numbers
    if numbers:
        text = re.sub(r"/\S*|(?<!lost  )\b[\d,.]+(?=\W|$)", "N", text)
        text = re.sub(r"[▁-█]+| +", " ", text)
    return text


class Document:
    """One document, being run in the directory ``place``. ``database`` gives the address of one, if it is needed."""

    def __init__(self, name: str, place: str, database: Callable[[], str]) -> None:
        self.name = name
        self.names: dict[str, object] = {"__name__": "docs"}
        self._place = os.path.join(place, "work")
        self._database = database
        self._url = ""
        self._files: set[str] = set()
        programs = os.path.join(place, "bin")
        os.mkdir(programs)
        os.mkdir(self._place)
        os.chdir(self._place)
        for program, module in (("lmdbqueue", " -m lmdbqueue"), ("python", "")):
            with open(os.path.join(programs, program), "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
            os.chmod(file.name, 0o700)
        path = f"{programs}:{os.environ['PATH']}"
        self._environment = {
            **os.environ, "PATH": path, "PYTHONPATH": ROOT, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"
        }  # fmt: skip

    def run(self) -> None:
        """Run all blocks."""
        for block in all_blocks(self.name):
            if block.kind == "not run" or block.language == "text":
                continue
            code = self._with_database(block.code)
            if block.kind == "file":
                self._files.add(block.told)
                with open(block.told, "w", encoding="utf-8") as file:
                    file.write(code)
            elif block.language == "python":
                self._use_files(code)
                padded = "\n" * block.line + with_asserts(code)  # so that a traceback tells the line
                exec(compile(padded, self.name, "exec"), self.names)  # noqa: S102
            elif block.language == "sql":
                self._query(code)
            elif block.language == "sh":
                status, printed = self._bash(code)
                assert status == 0, f"{code}\n{printed}"
            else:
                self._compare(block)
        assert not self._files, f"{self.name}: written and never used: {self._files}"

    def close(self) -> None:
        """Close what the blocks left open."""
        for each in reversed(self.names.values()):
            if type(each).__module__.startswith("lmdbqueue") and hasattr(each, "close"):
                each.close()

    def _compare(self, block: Block) -> None:
        steps = list(_STEP.finditer(block.code))
        assert "".join(step[0] for step in steps) == block.code, f"{self.name}:{block.line}: it does not begin with $"
        for step in steps:
            command, expected = step.groups()
            self._use_files(command)
            printed = self._bash(self._with_database(command))[1]
            numbers = block.kind == "numbers vary"
            if masked(printed, numbers=numbers) != masked(expected, numbers=numbers):
                if IS_WRITING:
                    _replace(self.name, step[0], f"$ {command}\n{printed}")
                else:
                    assert printed == expected, (command, printed)

    def _use_files(self, code: str) -> None:
        self._files = {name for name in self._files if name not in code}

    def _bash(self, command: str) -> tuple[int, str]:
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self._place,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        printed = result.stdout.replace(os.path.realpath(self._place), PLACE).replace(self._place, PLACE)
        printed = re.sub(r"^bash: line \d+: +\d+ (Killed) .*$", r"\1", printed, flags=re.MULTILINE)  # as on a terminal
        return result.returncode, printed.replace(self._url, DATABASE) if self._url else printed

    def _query(self, query: str) -> None:
        import psycopg  # noqa: PLC0415  (for the few documents with a database)

        with psycopg.connect(self._with_database(DATABASE)) as connection:
            self.names["rows"] = connection.execute(query.encode()).fetchall()

    def _with_database(self, code: str) -> str:
        if DATABASE not in code:
            return code
        self._url = self._url or self._database()
        return code.replace(DATABASE, self._url)


def _replace(name: str, old: str, new: str) -> None:
    text = read(name)
    assert text.count(old) == 1, old
    with open(os.path.join(ROOT, name), "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))


def not_run(name: str) -> Iterator[str]:
    """Yield the reasons of the blocks that are not run."""
    return (block.told for block in all_blocks(name) if block.kind == "not run")
