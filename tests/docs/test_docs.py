"""What the documents say is so: names, links, options, exit codes. That their examples run is ``test_examples``."""

import importlib
import inspect
import os
import pickle
import re
import subprocess

import click
import pytest
from examples import ROOT, anchors, blocks, documents, read

import lmdbqueue
from lmdbqueue import cli
from lmdbqueue.cli import _command
from lmdbqueue.cli._command import commands

FACES = (
    "aio",
    "postgres",
    "postgres.aio",
    "forward",
    "legacy",
    "integrations.logging",
    "integrations.opentelemetry",
    "integrations.kombu",
    "integrations.huey",
    "integrations.prometheus",
    "integrations.otel",
)


def test_signature_in_the_table_of_verbs_is_that_of_the_class():
    (code,) = blocks("docs/verbs.md", "python")
    names: dict[str, object] = {}
    exec(f"def f{code.removeprefix('PersistentQueue').rstrip()}: pass", {"pickle": pickle}, names)  # noqa: S102
    documented = [(p.name, p.default, p.kind) for p in inspect.signature(names["f"]).parameters.values()]
    real = [(p.name, p.default, p.kind) for p in inspect.signature(lmdbqueue.PersistentQueue).parameters.values()]
    assert documented == real


def test_every_public_verb_stands_in_the_table_of_verbs():
    table = read("docs/verbs.md").split("```")[0]
    options = inspect.signature(lmdbqueue.PersistentQueue).parameters
    for name in dir(lmdbqueue.PersistentQueue):
        if not name.startswith("_") and name not in options:
            assert re.search(rf"`{name}\b|\b{name}\(", table), f"the table of verbs lacks {name}"


def test_every_public_name_has_a_docstring():
    for name in lmdbqueue.__all__:
        thing = getattr(lmdbqueue, name)
        assert thing.__doc__, name
        for attribute, value in vars(thing).items():
            if callable(value) and not attribute.startswith("_"):
                assert value.__doc__, f"{name}.{attribute}"


@pytest.mark.parametrize("module", ["lmdbqueue", *(f"lmdbqueue.{name}" for name in FACES)])
def test_the_reference_has_every_public_name_and_no_other(module):
    page = read(f"docs/reference/{module.removeprefix('lmdbqueue.')}.rst")
    names = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    public = set(importlib.import_module(module).__all__)
    assert names == public - ({*lmdbqueue.__all__} if module != "lmdbqueue" else set())


def test_ci_runs_the_two_commands_of_readme():
    commands = "".join(blocks("README.md", "sh")).splitlines()
    script = read(".ci/run")
    for pattern, command in zip(("lmdbqueue demo$", "m pytest$"), commands, strict=True):
        assert re.search(pattern, command)
        assert f"grep -m 1 '{pattern}' README.md" in script


@pytest.mark.parametrize("name", [*documents(), "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md"])
def test_links_between_the_documents_lead_to_a_file_and_a_heading(name):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", read(name)):
        path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
        assert os.path.exists(os.path.join(ROOT, path)), target
        assert not anchor or anchor in anchors(read(path)), f"{target}#{anchor}"


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


def test_exit_codes_of_the_document_are_those_of_the_code():
    table = read("docs/cli.md").split("## Exit codes")[1].split("##")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert documented == {
        0,
        *(value for name, value in vars(_command).items() if name.isupper() and type(value) is int),
    }
