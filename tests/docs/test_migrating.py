"""docs/migrating.md is true: its tables name what is there."""

import os
import re

import litequeue
import persistent_queue
import persistqueue
import pytest
import queuelib
import queuelib.queue
from examples import read

import lmdbqueue
from lmdbqueue import PersistentQueue

PAGE = "docs/migrating.md"


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
    assert os.path.exists(
        os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), PAGE)
    )
    assert "docs/migrating.md" in read("README.md")
