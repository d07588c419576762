"""What the documents say is so: their examples run, the commands that they give are those that CI runs."""

import inspect
import logging
import os
import pickle
import re
import subprocess
import sys

import click
import pytest

import lmdbqueue
from lmdbqueue import cli
from lmdbqueue.cli import _command
from lmdbqueue.cli._command import commands

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)


def test_first_example_of_readme_gives_what_its_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks("README.md", "python")[0]
    uploaded: list[object] = []
    names = {"upload": lambda batch: uploaded.extend(batch) or True}
    for statement, comment in re.findall(r"^(queue\.peek\(.*?\)) +# (.*)$", code, re.MULTILINE):
        code = code.replace(f"{statement} ", f"assert {statement} == {comment} ")
    assert code.count("assert") == 2
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert uploaded == [1, "a", "b", "c"]
    assert len(names["queue"]) == 0
    names["queue"].close()


def test_signature_in_readme_is_that_of_the_class():
    code = next(code for code in blocks("README.md", "python") if code.startswith("PersistentQueue("))
    names: dict[str, object] = {}
    exec(f"def f{code.removeprefix('PersistentQueue').rstrip()}: pass", {"pickle": pickle}, names)  # noqa: S102
    documented = [(p.name, p.default, p.kind) for p in inspect.signature(names["f"]).parameters.values()]
    real = [(p.name, p.default, p.kind) for p in inspect.signature(lmdbqueue.PersistentQueue).parameters.values()]
    assert documented == real


def test_logging_example_of_readme_passes_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = next(code for code in blocks("README.md", "python") if "QueueListener" in code)
    names = {"PersistentQueue": lmdbqueue.PersistentQueue}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    try:
        logging.getLogger("app").error("passed on")
        names["listener"].start()
        names["listener"].stop()
    finally:
        logging.getLogger("app").handlers.clear()
        names["logs"].close()
    assert "passed on" in capsys.readouterr().err


def test_asyncio_example_of_readme_gives_the_first_item(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(code for code in blocks("README.md", "python") if "AsyncPersistentQueue" in code)
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["asyncio"].run(names["main"]()) == 0


def test_transaction_example_of_readme_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(code for code in blocks("README.md", "python") if "transaction()" in code)
    names = {"PersistentQueue": lmdbqueue.PersistentQueue}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    with names["inbox"] as inbox, names["outbox"] as outbox:
        assert (list(inbox), list(outbox), dict(inbox.state)) == ([2, 3], [10], {"handled": 1})


def test_lease_examples_of_readme_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lease, work = (code for code in blocks("README.md", "python") if "lease(10" in code or ".work(" in code)
    uploaded = []
    with lmdbqueue.PersistentQueue("app", name="inbox") as inbox:
        inbox.push([1, 2, 3])
        exec(compile(lease, "README.md", "exec"), {"inbox": inbox, "upload": uploaded.extend})  # noqa: S102
        assert (uploaded, len(inbox)) == ([1, 2, 3], 0)
    sent = []

    def send(item):
        sent.append(item)

    names = {"PersistentQueue": lmdbqueue.PersistentQueue, "Retry": lmdbqueue.Retry, "send": send}
    exec(compile(work, "README.md", "exec"), names | {"enough": lambda: bool(sent)})  # noqa: S102
    assert sent == ["mail to Ann"]
    with lmdbqueue.PersistentQueue("jobs") as jobs:
        stats = jobs.stats()
        assert (stats.delayed, stats.dead, stats.removed) == (1, 0, 1)


def test_every_public_verb_stands_in_the_table_of_readme():
    table = read("README.md").split("## The verbs")[1].split("```")[0]
    for name in dir(lmdbqueue.PersistentQueue):
        if not name.startswith("_"):
            assert re.search(rf"`{name}\b|\b{name}\(", table), f"README's table of verbs lacks {name}"


def test_every_public_name_has_a_docstring():
    for name in lmdbqueue.__all__:
        thing = getattr(lmdbqueue, name)
        assert thing.__doc__, name
        for attribute, value in vars(thing).items():
            if callable(value) and not attribute.startswith("_"):
                assert value.__doc__, f"{name}.{attribute}"


def test_ci_runs_the_two_commands_of_readme():
    commands = "".join(blocks("README.md", "sh")).splitlines()
    script = read(".ci/run")
    for pattern, command in zip(("lmdbqueue demo$", "m pytest$"), commands, strict=True):
        assert re.search(pattern, command)
        assert f"grep -m 1 '{pattern}' README.md" in script


PAGES = ("cli", "comparison", "design", "format", "migrating", "operations", "scaling")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_between_the_documents_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", read(name)):
        if "://" not in target:
            assert os.path.exists(os.path.join(ROOT, os.path.dirname(name), target)), target


def test_tracked_files_name_no_path_of_a_machine():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.splitlines():
        assert not re.search(r"/(home|root|work|Users)/\w", read(name)), name


# --- the command line


def commands_of(group, before=""):
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands_of(command, f"{before}{name} ")
        else:
            found[before + name] = command
    return found


@pytest.fixture
def all_commands(capsys):
    """Return each command by its whole name."""
    with pytest.raises(SystemExit):
        cli.main(["--version"])  # which registers them
    capsys.readouterr()
    return commands_of(commands)


def test_every_command_and_each_of_its_options_stands_in_the_document(all_commands):
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", read("docs/cli.md"), re.MULTILINE | re.DOTALL))
    common = read("docs/cli.md").split("### push")[0]  # --name, --help and how items are read
    for name, command in all_commands.items():
        section = sections[name.split()[0]]
        assert f"$ lmdbqueue {name}" in section or f"| lmdbqueue {name}" in section, name
        options = [option for each in command.params if isinstance(each, click.Option) for option in each.opts]
        assert [option for option in options if f"`{option}" not in section + common] == [], name
    assert sections.keys() == {name.split()[0] for name in all_commands}


def test_every_command_has_an_example_of_itself_in_its_help(all_commands, capsys):
    for name, command in all_commands.items():
        with pytest.raises(SystemExit) as ended:
            cli.main([*name.split(), "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert f"Example: lmdbqueue {name} " in text
        assert command.help.splitlines()[0] in text


@pytest.fixture
def shell(tmp_path):
    """Run a line of a shell in an empty directory; return what it prints."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    script = tmp_path / "bin" / "lmdbqueue"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m lmdbqueue "$@"\n')
    script.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ROOT, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}

    def run(*command):
        result = subprocess.run(
            command,
            cwd=tmp_path / "work",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return result.stdout.replace(os.fspath(tmp_path / "work"), "/srv/app")

    return run


def masked(text: str, *, whole_numbers: bool) -> str:
    """Leave out of an output what differs from run to run: sizes, times, places; of the demo all numbers."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"[\d,.]+ (?=[KMG]iB)|\d{2,},\d{3}|\d{5,}", "N", text)
    text = re.sub(r'[\d,.]+(?= (?:s|min|seconds)\b)|(?<="oldest_age": )[\d.]+|(?<="seen": )[\d.]+', "N", text)
    text = re.sub(r" *│$|─+", "", text, flags=re.MULTILINE)  # of a frame, whose width is that of its numbers
    if whole_numbers:
        text = re.sub(r"/\S*|(?<!lost  )\b[\d,]+", "N", text)
    return text


def test_every_example_of_the_command_line_prints_what_stands_below_it(shell):
    found = re.findall(r"^```(python|console)\n(.*?)^```$", read("docs/cli.md"), re.MULTILINE | re.DOTALL)
    assert len(found) > 15
    run_and_compare(shell, found)


def test_examples_of_the_command_line_in_readme_print_what_stands_below_them(shell):
    found = [("console", block) for block in blocks("README.md", "console")]
    assert len(found) == 1
    run_and_compare(shell, found)


def run_and_compare(shell, found):
    for language, block in found:
        if language == "python":
            assert shell(sys.executable, "-c", block) == ""
            continue
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            printed = shell("bash", "-c", command)
            is_demo = command.startswith("lmdbqueue demo")
            assert masked(printed, whole_numbers=is_demo) == masked(expected, whole_numbers=is_demo), command


def test_exit_codes_of_the_document_are_those_of_the_code():
    table = read("docs/cli.md").split("## Exit codes")[1].split("##")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert documented == {
        0,
        *(value for name, value in vars(_command).items() if name.isupper() and type(value) is int),
    }
