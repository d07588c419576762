"""docs/migrating.md is true: its examples give what their comments say, its tables name what is there."""

import ast
import os
import re
import shlex

import litequeue
import persistent_queue
import persistqueue
import pytest
import queuelib
import queuelib.queue
from old_queues import write_file
from test_docs import blocks, read

import lmdbqueue
from lmdbqueue import PersistentQueue, cli

PAGE = "docs/migrating.md"


def with_asserts(code):
    """Return the code with an assert for each line whose comment is the value of its expression; count them."""
    count = 0

    def as_assert(match):
        nonlocal count
        indent, expression, comment = match.groups()
        try:
            ast.literal_eval(comment)
            ast.parse(expression, mode="eval")
        except (SyntaxError, ValueError):
            return match[0]
        count += 1
        return f"{indent}assert ({expression}) == {comment}, {expression!r}"

    return re.sub(r"^( *)(\S.*?)  # (.*)$", as_assert, code, flags=re.MULTILINE), count


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # python-persistent-queue has no close()
def test_every_example_gives_what_its_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    total = 0
    for code in blocks(PAGE, "python"):
        checked, count = with_asserts(code)
        exec(compile(checked, PAGE, "exec"), names)  # noqa: S102
        total += count
    names.clear()
    assert total == len(re.findall(r"^ *[^#\n]+  # ['\[({0-9]", "".join(blocks(PAGE, "python")), re.MULTILINE)) > 15


def test_the_command_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = write_file(str(tmp_path / "uploads.queue"))
    (command,) = blocks(PAGE, "sh")
    program, *arguments = shlex.split(command)
    assert program == "lmdbqueue"
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    assert f"python-persistent-queue: imported {len(expected.items)} item" in capsys.readouterr().out
    with PersistentQueue("uploads") as queue:
        assert list(queue) == expected.items


def test_what_its_tables_name_of_other_libraries_is_there():
    page = read(PAGE)
    in_memory = litequeue.LiteQueue(memory=True)  # whose pop is made with it
    in_memory.close()
    for title, modules in {
        "python-persistent-queue": [persistent_queue.PersistentQueue],
        "persist-queue": [persistqueue, persistqueue.SQLiteQueue, persistqueue.SQLiteAckQueue, persistqueue.Queue],
        "litequeue": [litequeue, in_memory],
        "queuelib": [queuelib, queuelib.queue, queuelib.FifoDiskQueue],
    }.items():
        table = re.search(r"(?:^\|.*\n)+", page.split(f"## From {title}\n")[1], re.MULTILINE)[0]
        left = "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))
        for name in re.findall(r"`(?:persistqueue\.)?(\w+)\(", left):
            assert any(hasattr(each, name) for each in modules), f"{title} has no {name}"


def test_what_its_tables_name_of_this_library_is_there():
    for table in re.findall(r"^\|.*? here \|\n\|.*\n((?:\|.*\n)+)", read(PAGE), re.MULTILINE):
        right = "".join(re.findall(r"^\| .*? \| (.*) \|$", table, re.MULTILINE))
        for name in re.findall(r"`(\w+)\(", right):
            assert hasattr(lmdbqueue, name) or hasattr(PersistentQueue, name) or hasattr(lmdbqueue.Lease, name), name


@pytest.mark.parametrize("package", ["python-persistent-queue", "persist-queue", "litequeue", "queuelib"])
def test_the_versions_that_it_names_are_those_that_the_tests_install(package):
    pinned = re.search(rf'"{package}==([\d.]+)"', read("pyproject.toml"))[1]
    if package == "python-persistent-queue":
        assert f"those of {pinned}" in read(PAGE)
    else:
        assert f"| {package} {pinned} | here |" in read(PAGE)


def test_the_page_is_named_where_old_files_are_met():
    assert os.path.exists(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), PAGE))
    assert "docs/migrating.md" in read("README.md")
